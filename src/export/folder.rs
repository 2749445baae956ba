//! Writing a folder of a tree into a new folder, with a manifest of all that is in it.

mod manifest;
mod names;
mod plan;
#[cfg(test)]
mod tests;
mod walker;
mod write;

pub use names::safe_name;
pub use plan::{Plan, plan};

use super::journal::Journal;
use super::slot::Slot;
use super::{Evidence, ExportOptions, Refused};
use crate::ordered::ordered;
use crate::progress::Progress;
use anyhow::Context as _;
use rustix::fs::{AtFlags, Mode, OFlags};
use serde_json::Value;
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Write as _};
use std::ops::{AddAssign, ControlFlow};
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use vdrecover_formats::{Finding, NodeId, Tree, Trust};
use walker::{Job, Walker, What};
use write::{Context, Done};

/// The list of everything in the export.
const MANIFEST: &str = "manifest.jsonl";
/// Findings that are kept; the manifest has all.
const FINDINGS: usize = 10_000;
/// Lines wait for a sync of the files they speak of, until they are this many bytes,
const LINES: usize = 4 << 20;
/// or the files this many.
const UNSYNCED: u64 = 256 << 20;

/// How to export a folder.
#[derive(Clone, Debug, Default)]
pub struct FolderOptions {
    /// How to export each file. The mapfile's place is ignored: it is beside its file.
    pub export: ExportOptions,
    /// Where the folder is: the beginning of every `source` in the manifest.
    pub source: String,
    /// Nodes that are disks, to be written as what [`ExportOptions::kind`] says. Everything else is written as it is.
    pub disks: Arc<BTreeSet<NodeId>>,
    /// Streams and extended attributes as well: streams become files, attributes lines.
    pub attributes: bool,
}

/// What was exported.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Foldered {
    /// How many of what.
    pub tally: Tally,
    /// Of what no folder lists any more: that something is missing there is no damage of what was asked for.
    pub finds: Tally,
    /// The worst that was met, finds aside.
    pub trust: Trust,
    /// What else is to be said, the first 10,000.
    pub findings: Vec<Finding>,
    /// The manifest.
    pub manifest: PathBuf,
    /// Nodes that an earlier, interrupted export had done.
    pub resumed: u64,
}

impl Foldered {
    /// Whether all of it is there and nothing speaks against it: exit code 0, else 1.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        let Tally { failed, damaged, .. } = self.tally;
        failed == 0 && damaged == 0 && self.trust == Trust::Sound && self.findings.is_empty()
    }
}

/// Counts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Files and streams written.
    pub files: u64,
    /// Of them, with something missing.
    pub damaged: u64,
    /// Folders made.
    pub folders: u64,
    /// Further names of files.
    pub links: u64,
    /// Symbolic links, and what has a line but no content.
    pub others: u64,
    /// Nodes that could not be exported.
    pub failed: u64,
    /// Bytes written.
    pub data_bytes: u64,
    /// Bytes missing in files.
    pub lost_bytes: u64,
}

impl AddAssign for Tally {
    fn add_assign(&mut self, more: Self) {
        self.files += more.files;
        self.damaged += more.damaged;
        self.folders += more.folders;
        self.links += more.links;
        self.others += more.others;
        self.failed += more.failed;
        self.data_bytes += more.data_bytes;
        self.lost_bytes += more.lost_bytes;
    }
}

/// Writes all that is in the folder `node` into the new folder `dest`. What can't be written is a finding and
/// a line with an `error`, and the rest goes on; only a full file system and the user stop it.
pub fn export_folder(
    tree: &dyn Tree,
    node: NodeId,
    dest: &Path,
    evidence: &Evidence,
    options: &FolderOptions,
    progress: &Progress,
) -> anyhow::Result<Foldered> {
    evidence.check(dest)?;
    let export = &options.export;
    let identity = export.identity.as_deref();
    let goes_on = open_old(dest, identity, evidence);
    if goes_on.is_none() && !export.force && is_used(dest) {
        return Err(Refused::Exists(dest.to_path_buf()).into());
    }
    if export.check_space {
        let plan = plan(tree, node, dest, progress);
        // What an earlier try wrote is counted out only as far as the file system is fuller now.
        if let Some(free) = plan.free.filter(|free| plan.data > *free && goes_on.is_none()) {
            return Err(Refused::NoSpace { dest: dest.to_path_buf(), need: plan.data, free }.into());
        }
        progress.start(&dest.to_string_lossy(), plan.data);
    } else {
        progress.start(&dest.to_string_lossy(), 0);
    }
    fs::create_dir_all(dest).with_context(|| format!("cannot create the folder {}", dest.display()))?;
    evidence.check(dest)?;
    let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
    let open = || format!("cannot open the folder {}", dest.display());
    let top = Arc::new(rustix::fs::open(dest, flags, Mode::empty()).with_context(open)?);
    let slot = Slot::within(Arc::clone(&top), MANIFEST.into(), dest.join(MANIFEST), evidence);
    let old = goes_on.and_then(|()| slot.set_aside());
    let force = export.force || old.is_some();
    if let (None, Some(identity)) = (&old, identity) {
        Journal::start(&slot, identity, 0)?;
    }
    let mut lines = Lines::new(slot.lock_part()?, &top)?;
    let context = Context { tree, top: Arc::clone(&top), shown: dest, evidence, options, force, progress };
    let walker = Walker::new(tree, node, Arc::clone(&top), folds_case(&top), options.attributes, &[MANIFEST]);
    let mut all = Foldered { manifest: dest.join(MANIFEST), ..Foldered::default() };
    let mut ended = None;
    let work = |(job, old): (Job, Option<Value>)| match old {
        Some(line) => Again::Old(line),
        None => Again::New(Box::new(guarded(&context, job))),
    };
    ordered(export.threads, WithOld { walker, old: old.map(BufReader::new) }, work, |done| {
        let result = match done {
            Again::Old(line) => {
                all.resumed += 1;
                all.count_old(&line);
                lines.add(&line_of(&line), 0)
            }
            Again::New(done) => {
                let mut done = *done;
                if let Some(later) = done.later.take() {
                    done = context.finish(later);
                }
                if let Some(error) = done.fatal {
                    ended = Some(error);
                    return ControlFlow::Break(());
                }
                all.count(&done);
                let line = done.line.as_ref().map(manifest::Line::to_bytes).unwrap_or_default();
                lines.add(&line, done.tally.data_bytes)
            }
        };
        ended = result.err();
        if ended.is_none() && progress.stopped() {
            ended = Some(Refused::Stopped.into());
        }
        if ended.is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    if let Some(error) = ended {
        // The next run starts from the lines that are on the disk.
        let _ = lines.flush();
        return Err(error);
    }
    lines.flush()?;
    lines.file.sync_all()?;
    slot.commit(force)?;
    slot.sync_dir();
    slot.remove_state();
    slot.remove_old();
    Ok(all)
}

/// A job that was done before, or now.
enum Again {
    Old(Value),
    New(Box<Done>),
}

/// A bug in a format costs the node that it shows in.
fn guarded(context: &Context<'_>, job: Job) -> Done {
    let line = manifest::Line::new(&job.path, &job.original, &job.entry, job.node.as_ref(), &context.options.source);
    let shown = String::from_utf8_lossy(&job.original).escape_debug().to_string();
    let done = catch_unwind(AssertUnwindSafe(|| context.work(job)));
    done.unwrap_or_else(|_| Done::failed(line, &shown, "reading it failed inside the program; please report it"))
}

/// Whether an interrupted export of the same thing is there.
fn open_old(dest: &Path, identity: Option<&str>, evidence: &Evidence) -> Option<()> {
    let slot = Slot::at(&dest.join(MANIFEST), evidence).ok()?;
    Journal::resume(&slot, identity?, 0).map(|_| ())
}

fn is_used(dest: &Path) -> bool {
    match fs::read_dir(dest) {
        Ok(mut entries) => entries.next().is_some(),
        Err(_) => dest.symlink_metadata().is_ok(),
    }
}

/// Whether the file system takes upper and lower case for the same.
fn folds_case(dir: &OwnedFd) -> bool {
    let (lower, upper) = (".vdrecover-case", ".VDRECOVER-CASE");
    // Made here or not at all: it is removed again.
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    if rustix::fs::openat(dir, lower, flags, Mode::from_raw_mode(0o600)).is_err() {
        return true;
    }
    let folds = rustix::fs::statat(dir, upper, AtFlags::SYMLINK_NOFOLLOW).is_ok();
    let _ = rustix::fs::unlinkat(dir, lower, AtFlags::empty());
    folds
}

/// Jobs, each with the line that an earlier export wrote for it. Both come in the order of the tree, so that
/// no index of what was done is needed; the first line that differs ends it.
struct WithOld<'a> {
    walker: Walker<'a>,
    old: Option<BufReader<File>>,
}

impl WithOld<'_> {
    fn line(&mut self) -> Option<Value> {
        let mut line = Vec::new();
        self.old.as_mut()?.read_until(b'\n', &mut line).ok()?;
        let (b'\n', text) = line.split_last()? else { return None };
        serde_json::from_slice(text).ok()
    }
}

impl Iterator for WithOld<'_> {
    type Item = (Job, Option<Value>);

    fn next(&mut self) -> Option<Self::Item> {
        let job = self.walker.next()?;
        if matches!(job.what, What::Leave(_) | What::Note(_)) {
            return Some((job, None));
        }
        let path = String::from_utf8_lossy(&job.path);
        let line = self.line().filter(|line| line.get("path").and_then(Value::as_str) == Some(&*path));
        if line.is_none() {
            self.old = None;
        }
        // What failed is tried again.
        let line = line.filter(|line| line.get("error").is_none());
        Some((job, line))
    }
}

fn line_of(line: &Value) -> Vec<u8> {
    let mut bytes = serde_json::to_vec(line).unwrap_or_default();
    bytes.push(b'\n');
    bytes
}

impl Foldered {
    fn count(&mut self, done: &Done) {
        if done.dead {
            self.finds += done.tally.clone();
            return;
        }
        self.tally += done.tally.clone();
        self.trust = self.trust.max(done.trust);
        let room = FINDINGS.saturating_sub(self.findings.len());
        self.findings.extend(done.findings.iter().take(room).cloned());
    }

    fn count_old(&mut self, line: &Value) {
        let word = |key: &str| line.get(key).and_then(Value::as_str).unwrap_or_default();
        let lost = line.get("missing_bytes").and_then(Value::as_u64).unwrap_or(0);
        let dead = !matches!(word("state"), "" | "live");
        let tally = if dead { &mut self.finds } else { &mut self.tally };
        match word("type") {
            "dir" => tally.folders += 1,
            "file" | "stream" if line.get("link").is_some() => tally.links += 1,
            "file" | "stream" => tally.files += 1,
            _ => tally.others += 1,
        }
        tally.damaged += u64::from(lost > 0);
        tally.lost_bytes += lost;
        if dead {
            return;
        }
        let trusts = [Trust::Inferred, Trust::Doubtful];
        let trust = trusts.into_iter().find(|trust| trust.word() == word("trust"));
        self.trust = self.trust.max(trust.unwrap_or_default());
    }
}

/// The unfinished manifest. A line gets there when the file that it speaks of is on the disk.
struct Lines<'a> {
    file: File,
    top: &'a OwnedFd,
    waiting: Vec<u8>,
    bytes: u64,
}

impl<'a> Lines<'a> {
    fn new(file: File, top: &'a OwnedFd) -> anyhow::Result<Self> {
        file.set_len(0)?;
        Ok(Self { file, top, waiting: Vec::new(), bytes: 0 })
    }

    fn add(&mut self, line: &[u8], bytes: u64) -> anyhow::Result<()> {
        self.waiting.extend_from_slice(line);
        self.bytes = self.bytes.saturating_add(bytes);
        if self.waiting.len() > LINES || self.bytes > UNSYNCED { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> anyhow::Result<()> {
        rustix::fs::syncfs(self.top).context("cannot sync the export to its disk")?;
        self.file.write_all(&self.waiting).context("cannot write the manifest")?;
        self.waiting.clear();
        self.bytes = 0;
        Ok(())
    }
}
