//! Writing one node, whatever its kind.

use super::manifest::{Line, base64};
use super::walker::{Job, What};
use super::{FolderOptions, Tally};
use crate::export::job::{Part, to_slot};
use crate::export::slot::Slot;
use crate::export::{Evidence, ExportOptions, Exported, ImageKind, Refused, whole_sectors};
use crate::health;
use crate::progress::Progress;
use rustix::fs::{AtFlags, Mode, Timespec, Timestamps, UTIME_OMIT};
use rustix::io::Errno;
use std::ffi::{OsStr, OsString};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use vdrecover_formats::num::narrow;
use vdrecover_formats::{Bytes, Finding, Kind, Layer, Node, Place, State, Tree, Trust, Why, read_vec, walk};

/// Files from here on are exported one by one, each by all threads and with a journal of its own.
const LARGE: u64 = 32 << 20;
/// Longest text of a symbolic link that Linux takes.
const LINK_TEXT: u64 = 4095;
/// Longest extended attribute that Linux has.
const XATTR: u64 = 64 << 10;

/// What all jobs of one export share.
#[derive(Debug)]
pub(crate) struct Context<'a> {
    pub(crate) tree: &'a dyn Tree,
    pub(crate) top: Arc<OwnedFd>,
    pub(crate) shown: &'a Path,
    pub(crate) evidence: &'a Evidence,
    pub(crate) options: &'a FolderOptions,
    /// Files of an earlier try are ours to replace.
    pub(crate) force: bool,
    pub(crate) progress: &'a Progress,
}

/// A job after the work on it.
#[derive(Debug, Default)]
pub(crate) struct Done {
    pub(crate) line: Option<Line>,
    pub(crate) tally: Tally,
    pub(crate) trust: Trust,
    pub(crate) findings: Vec<Finding>,
    /// What has to wait until everything before it is done.
    pub(crate) later: Option<Later>,
    /// Whether it is of something that no folder lists any more.
    pub(crate) dead: bool,
    /// No use in going on.
    pub(crate) fatal: Option<anyhow::Error>,
}

/// Work for the thread that takes the results.
#[derive(Debug)]
pub(crate) enum Later {
    Large(Bytes, Job, Box<Line>),
    Link(Job, Box<Line>),
    Leave(Arc<OwnedFd>, Option<Node>),
}

impl Done {
    pub(crate) fn failed(mut line: Line, shown: &str, why: &str) -> Self {
        line.error(why);
        let text = format!("{shown}: {why}");
        let finding = Finding::new("EXPORT-FILE", 0..0, Trust::Doubtful, text);
        let tally = Tally { failed: 1, ..Tally::default() };
        Self { line: Some(line), tally, trust: Trust::Doubtful, findings: vec![finding], ..Self::default() }
    }
}

impl Context<'_> {
    /// Does what can be done in any order.
    pub(crate) fn work(&self, job: Job) -> Done {
        let dead = is_dead(&job);
        Done { dead, ..self.work_on(job) }
    }

    fn work_on(&self, job: Job) -> Done {
        let mut line = Line::new(&job.path, &job.original, &job.entry, job.node.as_ref(), &self.options.source);
        if let Some(find) = is_dead(&job).then(|| self.tree.found(job.entry.id)).flatten() {
            line.found(&find);
        }
        let shown = String::from_utf8_lossy(&job.original).escape_debug().to_string();
        match &job.what {
            What::Note(finding) => {
                let finding = Finding { text: format!("{shown}: {}", finding.text), ..finding.clone() };
                Done { trust: finding.trust, findings: vec![finding], ..Done::default() }
            }
            What::Fail(why) => Done::failed(line, &shown, &why.clone()),
            What::Leave(dir) => {
                Done { later: Some(Later::Leave(Arc::clone(dir), job.node.clone())), ..Done::default() }
            }
            What::Enter => {
                let trust = job.node.as_ref().map_or(Trust::Doubtful, |node| node.trust);
                let tally = Tally { folders: 1, ..Tally::default() };
                Done { line: Some(line), tally, trust, ..Done::default() }
            }
            What::Link { .. } => Done { later: Some(Later::Link(job, Box::new(line))), ..Done::default() },
            What::Write { dir, name } => {
                let (dir, name) = (Arc::clone(dir), name.clone());
                self.write(job, &dir, &name, line, &shown)
            }
        }
    }

    fn write(&self, job: Job, dir: &Arc<OwnedFd>, name: &OsStr, mut line: Line, shown: &str) -> Done {
        let other = Tally { others: 1, ..Tally::default() };
        match job.entry.kind {
            Kind::Mapping => {
                // The bytes are not in the image: that is what a mapping is, and no damage.
                line.without_content("a raw device mapping: its bytes are on another LUN");
                Done { line: Some(line), tally: other, ..Done::default() }
            }
            Kind::Special => {
                line.without_content("a device, pipe or socket: it has no content");
                Done { line: Some(line), tally: other, ..Done::default() }
            }
            Kind::Dir => Done::failed(line, shown, "the tree calls it a folder and a file"),
            Kind::Symlink | Kind::Xattr => match self.small(&job) {
                Err(why) => Done::failed(line, shown, &why),
                Ok(value) if job.entry.kind == Kind::Xattr => {
                    line.set("value_b64", base64(&value));
                    Done { line: Some(line), tally: other, ..Done::default() }
                }
                Ok(text) => {
                    line.text("target", &text);
                    match self.symlink(dir, name, &text, job.node.as_ref()) {
                        Ok(()) => Done { line: Some(line), tally: other, ..Done::default() },
                        Err(error) => Done::failed(line, shown, &format!("the link can't be made: {error}")),
                    }
                }
            },
            Kind::File | Kind::Stream => match self.tree.open(job.entry.id) {
                Err(error) => Done::failed(line, shown, &error.to_string()),
                Ok(layer) if is_elsewhere(&*layer) => {
                    line.without_content("a disk on a LUN that was not given: raw device mappings have no bytes");
                    Done { line: Some(line), tally: other, ..Done::default() }
                }
                Ok(layer) if layer.len() >= LARGE => {
                    Done { later: Some(Later::Large(layer, job, Box::new(line))), ..Done::default() }
                }
                Ok(layer) => {
                    let options = ExportOptions { threads: 1, identity: None, ..self.options.export.clone() };
                    self.file(&layer, &job, dir, name, line, options)
                }
            },
        }
    }

    /// The value of a link or an attribute, whole.
    fn small(&self, job: &Job) -> Result<Vec<u8>, String> {
        let layer = self.tree.open(job.entry.id).map_err(|error| error.to_string())?;
        let most = if job.entry.kind == Kind::Symlink { LINK_TEXT } else { XATTR };
        if layer.len() > most {
            return Err(format!("{} bytes, at most {most} can be", layer.len()));
        }
        let (value, seen) = read_vec(&*layer, 0, narrow(layer.len()));
        seen.gaps.first().map_or(Ok(value), |gap| Err(gap.to_string()))
    }

    fn symlink(&self, dir: &OwnedFd, name: &OsStr, text: &[u8], node: Option<&Node>) -> Result<(), Errno> {
        let make = || rustix::fs::symlinkat(text, dir, name);
        self.again(dir, name, make)?;
        // A link's own times are of little use; where the file system has none, the link is still right.
        let times = node.map(times);
        let _ = times.map(|times| rustix::fs::utimensat(dir, name, &times, AtFlags::SYMLINK_NOFOLLOW));
        Ok(())
    }

    /// Makes a name; what an earlier try left there is replaced.
    fn again(&self, dir: &OwnedFd, name: &OsStr, make: impl Fn() -> Result<(), Errno>) -> Result<(), Errno> {
        match make() {
            Err(Errno::EXIST) if self.force && self.evidence.guard(dir, name).is_ok() => {
                rustix::fs::unlinkat(dir, name, AtFlags::empty())?;
                make()
            }
            done => done,
        }
    }

    fn file(
        &self,
        layer: &Bytes,
        job: &Job,
        dir: &Arc<OwnedFd>,
        name: &OsStr,
        mut line: Line,
        options: ExportOptions,
    ) -> Done {
        let is_disk = self.options.disks.contains(&job.entry.id);
        let kind = if is_disk { options.kind } else { ImageKind::Raw };
        let options = ExportOptions { force: self.force, map: None, kind, ..options };
        let layer = &whole_sectors(Arc::clone(layer), kind);
        let slot = Slot::within(Arc::clone(dir), name.to_os_string(), self.path(&job.path), self.evidence);
        line.set("size", layer.len());
        match to_slot(&**layer, &slot, Part::OfFolder, self.evidence, &options, self.progress) {
            Err(error) => {
                let why = format!("{error:#}");
                let stop = matches!(error.downcast_ref(), Some(Refused::NoSpace { .. } | Refused::Stopped));
                if stop {
                    return Done { fatal: Some(error), ..Done::default() };
                }
                Done::failed(line, &String::from_utf8_lossy(&job.original).escape_debug().to_string(), &why)
            }
            Ok(exported) => {
                if let Some(node) = &job.node {
                    dress(dir, name, node);
                }
                self.written(line, job, &**layer, exported)
            }
        }
    }

    fn written(&self, mut line: Line, job: &Job, layer: &dyn Layer, exported: Exported) -> Done {
        let trust = job.node.as_ref().map_or(Trust::Doubtful, |node| node.trust).max(exported.trust);
        line.exported(&exported, trust);
        if is_dead(job) {
            line.set("map_sums", health::of(layer, health::LISTING).sums());
        }
        let tally = Tally {
            files: 1,
            damaged: u64::from(exported.gap_count > 0),
            data_bytes: exported.data_bytes,
            lost_bytes: exported.lost_bytes,
            ..Tally::default()
        };
        let shown = self.path(&job.path);
        let named = |finding: Finding| Finding { text: format!("{}: {}", shown.display(), finding.text), ..finding };
        let against = self.tree.contradicted(job.entry.id);
        let told = against.iter().map(|why| Finding::new("EXPORT-DOUBT", 0..0, Trust::Doubtful, why.as_str()));
        let findings = told.chain(exported.findings).map(named).collect();
        if !against.is_empty() {
            line.set("contradicted", against);
        }
        Done { line: Some(line), tally, trust, findings, ..Done::default() }
    }

    /// Does what had to wait.
    pub(crate) fn finish(&self, later: Later) -> Done {
        let dead = match &later {
            Later::Leave(..) => false,
            Later::Large(_, job, _) | Later::Link(job, _) => is_dead(job),
        };
        Done { dead, ..self.finish_it(later) }
    }

    fn finish_it(&self, later: Later) -> Done {
        match later {
            Later::Leave(dir, node) => {
                if let Some(node) = node {
                    dress_dir(&dir, &node);
                }
                Done::default()
            }
            Later::Large(bytes, job, line) => {
                let Some((dir, name)) = place(&job) else { return Done::default() };
                let all = &self.options.export;
                // A file can go on inside; its journal is told apart by its path.
                let path = String::from_utf8_lossy(&job.path);
                let identity = all.identity.as_ref().map(|identity| format!("{identity}\n{path}"));
                self.file(&bytes, &job, &dir, &name, *line, ExportOptions { identity, ..all.clone() })
            }
            Later::Link(job, line) => self.link(job, *line),
        }
    }

    fn link(&self, mut job: Job, mut line: Line) -> Done {
        let What::Link { dir, name, first } = &job.what else { return Done::default() };
        let make = || rustix::fs::linkat(&*self.top, OsStr::from_bytes(first), dir, name, AtFlags::empty());
        if self.again(dir, name, make).is_ok() {
            line.text("link", first);
            line.set("sha256", serde_json::Value::Null);
            line.set("sha256_reason", "another name of the file in \"link\"");
            let tally = Tally { links: 1, ..Tally::default() };
            return Done { line: Some(line), tally, ..Done::default() };
        }
        // The file system has no such links, or the first name failed: the content is written again.
        job.what = What::Write { dir: Arc::clone(dir), name: name.clone() };
        let done = self.work(job);
        match done.later {
            Some(later) => self.finish(later),
            None => done,
        }
    }

    fn path(&self, relative: &[u8]) -> PathBuf {
        self.shown.join(OsStr::from_bytes(relative))
    }
}

/// Whether it is nothing that a folder of the datastore lists.
fn is_dead(job: &Job) -> bool {
    job.entry.state != State::Live
}

/// Whether all of it lies on a LUN that a raw mapping names.
fn is_elsewhere(layer: &dyn Layer) -> bool {
    let mut runs = walk(layer, 0..layer.len()).take(2);
    let first = runs.next().filter(|run| run.len == layer.len());
    first.is_some_and(|run| matches!(run.place, Place::Lost(loss) if loss.why == Why::NotGiven))
}

fn place(job: &Job) -> Option<(Arc<OwnedFd>, OsString)> {
    match &job.what {
        What::Write { dir, name } => Some((Arc::clone(dir), name.clone())),
        _ => None,
    }
}

/// Gives a file its mode and times. What sets the user on execution stays behind: an image must not bring
/// programs that run as root. A failure costs looks only; the manifest has both.
fn dress(dir: &OwnedFd, name: &OsStr, node: &Node) {
    if node.mode & 0o777 != 0 {
        let mode = Mode::from_raw_mode(node.mode & 0o777 | 0o600);
        let _ = rustix::fs::chmodat(dir, name, mode, AtFlags::empty());
    }
    let _ = rustix::fs::utimensat(dir, name, &times(node), AtFlags::SYMLINK_NOFOLLOW);
}

fn dress_dir(dir: &OwnedFd, node: &Node) {
    if node.mode & 0o777 != 0 {
        let _ = rustix::fs::fchmod(dir, Mode::from_raw_mode(node.mode & 0o777 | 0o700));
    }
    let _ = rustix::fs::futimens(dir, &times(node));
}

fn times(node: &Node) -> Timestamps {
    let spec = |time: Option<i128>| {
        let known = time.and_then(|ns| {
            let seconds = i64::try_from(ns.div_euclid(1_000_000_000)).ok()?;
            Some(Timespec { tv_sec: seconds, tv_nsec: i64::try_from(ns.rem_euclid(1_000_000_000)).ok()? })
        });
        known.unwrap_or(Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT })
    };
    Timestamps { last_access: spec(node.accessed), last_modification: spec(node.modified) }
}
