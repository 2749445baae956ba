//! `vdrecover export`: a file, a folder, a disk or a VM, out of an image.

use super::cat::is_descriptor;
use super::out::Out;
use super::{Global, Outcome, size};
use crate::case::{Case, Hashes, Machine};
use crate::digest::Digest;
use crate::export::folder::{FolderOptions, Foldered, Tally, export_folder};
use crate::export::{
    Appliance, Dest, Evidence, ExportOptions, Exported, Hashing, ImageKind, Images, Packing, Refused, Written, export,
    in_a_row, whole_sectors, write_small,
};
use crate::locator::{self, Locator};
use crate::progress::Progress;
use crate::report::{self, printable};
use anyhow::{Context, Result, bail};
use base64::Engine;
use clap::{Args, ValueEnum};
use serde_json::{Value, json};
use signal_hook::consts::{SIGINT, SIGTERM};
use std::ffi::OsString;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use vdrecover_formats::vm::Hardware;
use vdrecover_formats::{Bytes, Finding, Kind, Tree, Trust};

/// Arguments of `export`.
#[derive(Debug, Args)]
pub(super) struct Command {
    /// `IMAGE::PATH`, or IMAGE if there is one disk in it
    #[arg(value_name = "LOCATOR")]
    locator: OsString,
    /// The file or folder to make, an existing block device with --force, or - for stdout
    #[arg(short, long, value_name = "DEST")]
    output: PathBuf,
    #[command(flatten)]
    shape: Shape,
    #[command(flatten)]
    writing: Writing,
}

/// What a disk becomes.
#[derive(Clone, Copy, Debug, Args)]
pub(super) struct Shape {
    /// Format of a disk; else the suffix of DEST decides
    #[arg(long, value_enum)]
    format: Option<Format>,
    /// How the clusters of a QCOW2 are packed
    #[arg(long, value_enum, default_value = "none")]
    compress: Compress,
}

/// What every command that writes takes.
#[derive(Clone, Debug, Args)]
pub(super) struct Writing {
    /// Replace what is there; needed for every block device
    #[arg(long)]
    pub(super) force: bool,
    /// No SHA-256: hashing costs more than copying
    #[arg(long)]
    no_hash: bool,
    /// Hash what is at most this long
    #[arg(long, value_name = "N", default_value = "64G", value_parser = size)]
    hash_limit: u64,
    /// Start even where there may be too little room: how small packed disks become is not known before
    #[arg(long)]
    no_space_check: bool,
}

/// Formats that a disk can be written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// Byte for byte, sparse
    Raw,
    /// QCOW2, for QEMU and KVM
    Qcow2,
    /// VMDK as on a datastore, for ESXi: a descriptor, and NAME-flat.vmdk beside it
    Vmdk,
    /// VMDK in one file, for Workstation: monolithicSparse
    VmdkSparse,
    /// VMDK in one file, packed, for imports: streamOptimized
    VmdkStream,
    /// OVA: a VM, or a disk, in one file to be imported
    Ova,
}

/// How clusters are packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Compress {
    /// Not at all
    None,
    /// Deflate, which every reader knows
    Zlib,
    /// Zstandard: smaller and faster; QEMU 5.1 and newer
    Zstd,
}

/// Suffixes of formats that a user may expect and this version does not write.
const UNWRITTEN: [&str; 3] = ["vhd", "vhdx", "vdi"];

pub(super) fn run(command: &Command, global: &Global, out: &mut Out) -> Result<Outcome> {
    let locator = Locator::parse(&command.locator);
    let case = global.open_at(&locator, out)?;
    global.compare(&case);
    let found = match &locator.path {
        Some(path) => locator::find(&case, path)?,
        None => locator::one_disk(&case)?,
    };
    let evidence = evidence(&case, std::slice::from_ref(&locator.image), global)?;
    let progress = stoppable(global)?;
    let options = command.writing.options(&case, &printable(&found.path), global);
    let is_disk = case.target(found.entry.id).is_some();
    let machine = machine(&case, &found.path);
    let archive =
        machine.is_some() && command.output.extension().is_some_and(|suffix| suffix.eq_ignore_ascii_case("ova"));
    let kind = command.shape.kind((is_disk || archive).then_some(command.output.as_path()))?;
    if found.entry.kind == Kind::Dir && !(kind == ImageKind::Ova && machine.is_some()) {
        let incomplete = doubts(&case, &found.path, out)?;
        let source = format!("{}::{}", locator.image.display(), printable(&found.path));
        let mut options = FolderOptions { export: options, source, attributes: true, ..FolderOptions::default() };
        let images = command.shape.images(&case, &case, &found.path, &command.output, &mut options)?;
        let tree: &dyn Tree = images.as_ref().map_or(&case, |images| images);
        let done = export_folder(tree, found.entry.id, &command.output, &evidence, &options, &progress)
            .map_err(|error| advise(error, &command.output));
        progress.finish();
        let done = done?;
        let kept = keep_folder(&case, global, &found.path, &done, out)?;
        let asked = if found.path.starts_with(b"found") { Asked::Finds } else { Asked::All };
        return Ok(tell_folder(&done, &command.output, asked, out)?.max(incomplete).max(kept));
    }
    let mut incomplete = Outcome::doubt_if(!case.failed.is_empty());
    let mut options = ExportOptions { kind, ..options };
    let bytes = if let Some(machine) = machine.filter(|_| kind == ImageKind::Ova) {
        let (appliance, disks) = appliance(&case, machine, &found.path)?;
        let absent = disks.len() < machine.disks.len();
        incomplete = incomplete.max(Outcome::doubt_if(absent)).max(doubts(&case, &found.path, out)?);
        options.appliance = Some(Arc::new(appliance));
        in_a_row(&disks).context("it has no disks that are there")?
    } else {
        let disk = whole_sectors(case.open(found.entry.id).with_context(|| printable(&found.path))?, kind);
        if kind == ImageKind::Ova {
            options.appliance = Some(Arc::new(lone(&disk, &command.output)));
            in_a_row(&[disk]).context("it is empty")?
        } else {
            disk
        }
    };
    let dest = Dest::of(&command.output);
    let has_sums = (is_disk || archive) && matches!(dest, Dest::File(_));
    let sums = has_sums.then(|| beside(&command.output, ".sha256"));
    if let Some(sums) = sums.as_ref().filter(|sums| sums.exists() && !command.writing.force) {
        return Err(Refused::Exists(sums.clone()).into());
    }
    let done = export(&*bytes, &dest, &evidence, &options, &progress);
    progress.finish();
    let mut done = match done {
        // Whoever reads the pipe wants no more.
        Err(error) if matches!(error.downcast_ref(), Some(Refused::Closed)) => return Ok(incomplete),
        done => done.map_err(|error| advise(error, &command.output))?,
    };
    if options.appliance.is_some_and(|appliance| appliance.disks[..] != [done.len]) {
        done.digest = Digest::Absent("several disks, or one that was filled up, are in it".into());
    }
    let is_pipe = matches!(dest, Dest::Pipe(_));
    let mut outcome = tell(&done, &command.output, is_pipe, out)?;
    for noted in case.contradictions(found.entry.id) {
        if is_pipe {
            out.error(&format!("{}: {}", noted.about, noted.finding.text));
        } else {
            super::scan::show_finding(noted, out)?;
        }
    }
    let own = done.files.first().map_or(&done.digest, |file| &file.digest);
    if let Some(sums) = sums.filter(|_| own.hex().is_some()) {
        let force = command.writing.force;
        write_small(&sums, &evidence, force, &mut |out| write_sums(out, &command.output, &done))?;
    }
    // Of what was filled up to whole sectors, the hash is not that of the file.
    let same = case.node(found.entry.id).is_ok_and(|node| node.len == done.len);
    if let Some(hash) = done.digest.hex().filter(|_| same) {
        outcome = outcome.max(keep(&case, global, [(found.path.clone(), hash)], out)?);
    }
    if is_descriptor(&found.entry.name, bytes.len()) {
        out.hint("this is the descriptor's text: its disk is in vms/ or disks/, see `vdrecover ls -R IMAGE`");
    }
    Ok(outcome.max(incomplete))
}

/// Keeps hashes in the case folder. One that differs from what the same inputs gave before is a doubt.
fn keep(
    case: &Case,
    global: &Global,
    new: impl IntoIterator<Item = (Vec<u8>, String)>,
    out: &mut Out,
) -> Result<Outcome> {
    if global.case.is_none() {
        return Ok(Outcome::Sound);
    }
    let mut hashes = Hashes::load(case, global.case.as_deref());
    let mut outcome = Outcome::Sound;
    for (path, hash) in new {
        if let Some(before) = hashes.add(&path, &hash) {
            let text = format!("came out as {hash}, and before, of inputs that look unchanged, as {before}");
            let finding = Finding::new("CASE-HASH", 0..0, Trust::Doubtful, text);
            super::scan::show_finding(&crate::case::Noted { about: printable(&path), finding }, out)?;
            outcome = Outcome::Doubt;
        }
    }
    hashes.save()?;
    Ok(outcome)
}

/// Keeps the hashes of a manifest.
pub(super) fn keep_folder(case: &Case, global: &Global, top: &[u8], done: &Foldered, out: &mut Out) -> Result<Outcome> {
    if global.case.is_none() {
        return Ok(Outcome::Sound);
    }
    let text = std::fs::read_to_string(&done.manifest).with_context(|| done.manifest.display().to_string())?;
    let rows = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let new = rows.filter_map(|row| {
        // Of an image only its own hash is known by name.
        if row.get("disk_sha256").is_some() {
            return None;
        }
        let path = match row["original_b64"].as_str() {
            Some(coded) => base64::engine::general_purpose::STANDARD.decode(coded).ok()?,
            None => row["path"].as_str()?.as_bytes().to_vec(),
        };
        let path = if top.is_empty() { path } else { [top, b"/", &path].concat() };
        Some((path, row["sha256"].as_str()?.to_owned()))
    });
    keep(case, global, new, out)
}

/// Says what may be missing in a folder that nothing in it can tell of.
pub(super) fn doubts(case: &Case, path: &[u8], out: &mut Out) -> Result<Outcome> {
    let doubts = case.doubts(path);
    for noted in doubts.iter().take(20) {
        super::scan::show_finding(noted, out)?;
    }
    if doubts.len() > 20 {
        out.line(format_args!("  and {} more; `vdrecover scan` has them all", doubts.len() - 20))?;
    }
    Ok(Outcome::doubt_if(!doubts.is_empty() || !case.failed.is_empty()))
}

impl Shape {
    /// What is to be written. `dest` is given where the suffix counts.
    fn kind(self, dest: Option<&Path>) -> Result<ImageKind> {
        let suffix = dest.and_then(Path::extension).map(|suffix| suffix.to_string_lossy().to_ascii_lowercase());
        let format = match (self.format, suffix.as_deref()) {
            (Some(format), _) => format,
            (None, Some("qcow2")) => Format::Qcow2,
            (None, Some("vmdk")) => Format::Vmdk,
            (None, Some("ova")) => Format::Ova,
            (None, Some(suffix)) if UNWRITTEN.contains(&suffix) => bail!(
                "this version does not write {suffix}; write qcow2 and let `qemu-img convert` make it, or name the \
                 file otherwise for raw bytes"
            ),
            (None, _) => Format::Raw,
        };
        let packing = match self.compress {
            Compress::None => Packing::Plain,
            Compress::Zlib => Packing::Deflate,
            Compress::Zstd => Packing::Zstd,
        };
        match format {
            Format::Qcow2 => Ok(ImageKind::Qcow2(packing)),
            _ if self.compress != Compress::None => bail!("--compress is for qcow2"),
            Format::Raw => Ok(ImageKind::Raw),
            Format::Vmdk => Ok(ImageKind::VmdkFlat),
            Format::VmdkSparse => Ok(ImageKind::VmdkSparse),
            Format::VmdkStream => Ok(ImageKind::VmdkStream),
            Format::Ova => Ok(ImageKind::Ova),
        }
    }
}

/// The machine whose folder `path` is.
fn machine<'a>(case: &'a Case, path: &[u8]) -> Option<&'a Machine> {
    let name = path.strip_prefix(b"vms/")?;
    let name = name.strip_suffix(b"/").unwrap_or(name);
    case.machines.iter().find(|machine| machine.name == name)
}

/// A machine as what goes into an OVA, with those of its disks that are there.
fn appliance(case: &Case, machine: &Machine, path: &[u8]) -> Result<(Appliance, Vec<Bytes>)> {
    let mut disks = Vec::new();
    for disk in &machine.disks {
        if let Some(entry) = case.find(&[path, b"/", &disk.name[..], b".raw"].concat())? {
            disks.push(whole_sectors(case.open(entry.id)?, ImageKind::Ova));
        }
    }
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let appliance = Appliance {
        name: text(&machine.name),
        guest: machine.guest.as_deref().map(text).unwrap_or_default(),
        hardware: machine.hardware.clone(),
        disks: disks.iter().map(|disk| disk.len()).collect(),
    };
    Ok((appliance, disks))
}

/// A machine that is made up for a disk without one.
fn lone(disk: &Bytes, output: &Path) -> Appliance {
    let name = output.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let hardware = Hardware { cpus: 1, cores: 1, ..Hardware::default() };
    Appliance { name, guest: String::new(), hardware, disks: vec![disk.len()] }
}

impl Shape {
    /// `tree`, the folder `top` of which is written as `dest`, with disks as images where the user named a format.
    pub(super) fn images<'a>(
        self,
        case: &Case,
        tree: &'a dyn Tree,
        top: &[u8],
        dest: &Path,
        options: &mut FolderOptions,
    ) -> Result<Option<Images<'a>>> {
        let kind = self.kind(None)?;
        if kind == ImageKind::Ova {
            bail!("an OVA has one VM: `export IMAGE::vms/NAME -o NAME.ova`");
        }
        if self.format.is_none() {
            return Ok(None);
        }
        let images = Images::new(case, tree, kind, top, dest);
        options.export.kind = kind;
        options.disks = images.disks();
        // What was begun in another format starts anew.
        options.export.identity = options.export.identity.take().map(|identity| format!("{identity}\n{kind:?}"));
        Ok(Some(images))
    }
}

/// A file named after another one.
fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_os_string();
    name.push(suffix);
    name.into()
}

/// What `sha256sum -c` reads: a line for each file.
fn write_sums(out: &mut dyn Write, path: &Path, done: &Exported) -> io::Result<()> {
    if done.files.is_empty() {
        return write_sum(out, path, &done.digest.hex().unwrap_or_default());
    }
    if let Some(content) = done.digest.hex().filter(|_| done.files.iter().all(|file| file.digest != done.digest)) {
        writeln!(out, "# the disk in it, as raw bytes: {content}")?;
    }
    done.files.iter().try_for_each(|file| write_sum(out, &file.path, &file.digest.hex().unwrap_or_default()))
}

fn write_sum(out: &mut dyn Write, path: &Path, hash: &str) -> io::Result<()> {
    let name = path.file_name().unwrap_or_default().as_bytes();
    // Names with these are escaped, and the line says so.
    let escaped = name.iter().any(|byte| matches!(byte, b'\\' | b'\n' | b'\r'));
    out.write_all(if escaped { b"\\" } else { b"" })?;
    write!(out, "{hash}  ")?;
    for byte in name {
        match byte {
            b'\\' => out.write_all(b"\\\\")?,
            b'\n' => out.write_all(b"\\n")?,
            b'\r' => out.write_all(b"\\r")?,
            byte => out.write_all(&[*byte])?,
        }
    }
    out.write_all(b"\n")
}

impl Writing {
    /// How to export, with an identity by which an interrupted export knows its own beginning.
    pub(super) fn options(&self, case: &Case, what: &str, global: &Global) -> ExportOptions {
        ExportOptions {
            force: self.force,
            threads: global.thread_count(),
            hash: if self.no_hash { Hashing::Off } else { Hashing::UpTo(self.hash_limit) },
            identity: Some(format!("{what} {}", crate::case::identity(case))),
            check_space: !self.no_space_check,
            ..ExportOptions::default()
        }
    }
}

/// What may not be written to: every source, and every file and folder that was given.
pub(super) fn evidence(case: &Case, inputs: &[PathBuf], global: &Global) -> Result<Evidence> {
    let maps = global.map_args()?;
    let given = inputs.iter().chain(&global.with).chain(maps.iter().map(|map| &map.map));
    // What is not there was told when the case was opened.
    let given: Vec<&PathBuf> = given.filter(|path| path.exists()).collect();
    let mut evidence = Evidence::of(&given)?;
    for path in case.sources.all().iter().flat_map(|source| source.files()) {
        evidence.add(path)?;
    }
    Ok(evidence)
}

/// A progress that Ctrl-C and SIGTERM stop at its next step; a second one ends the program.
pub(super) fn stoppable(global: &Global) -> Result<Progress> {
    let progress = global.progress();
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register_conditional_shutdown(signal, 2, progress.stop_flag())?;
        signal_hook::flag::register(signal, progress.stop_flag())?;
    }
    Ok(progress)
}

/// Adds to an error what to try.
pub(super) fn advise(error: anyhow::Error, dest: &Path) -> anyhow::Error {
    let advice = match error.downcast_ref::<Refused>() {
        Some(Refused::Stopped) => "stopped; the same command goes on from here",
        Some(Refused::NoSpace { .. }) => "name a DEST on a file system with more room",
        _ => return error,
    };
    error.context(format!("{}: {advice}", dest.display()))
}

fn tell(done: &Exported, output: &Path, is_pipe: bool, out: &mut Out) -> Result<Outcome> {
    let outcome = Outcome::doubt_if(!done.is_sound());
    let shown = output.display().to_string();
    if is_pipe {
        for finding in &done.findings {
            out.error(&format!("[{}] {}", finding.code, finding.text));
        }
        if done.lost_bytes > 0 {
            out.error(&format!("{} bytes are lost and were written as zeros", done.lost_bytes));
        }
        return Ok(outcome);
    }
    out.record(
        "export",
        json!({
            "path": shown, "length": done.len, "written": done.data_bytes, "sha256": done.digest.hex(),
            "sha256_reason": done.digest.reason(), "trust": done.trust.word(), "missing": done.lost_bytes,
            "gaps": done.gap_count, "map": done.map.as_ref().map(|map| map.display().to_string()),
            "resumed_at": done.resumed_at, "files": done.files.iter().map(file_json).collect::<Vec<_>>(),
        }),
    )?;
    let written = report::size(done.data_bytes);
    out.line(format_args!("{shown}: {}, {written} of it data, {}", report::size(done.len), done.trust.word()))?;
    for file in &done.files {
        let sum = file.digest.hex().map_or_else(String::new, |hex| format!(", sha256 {hex}"));
        out.line(format_args!("{}: {} long{sum}", file.path.display(), report::size(file.len)))?;
    }
    if !done.files.is_empty() && done.digest.hex().is_some() {
        out.line(format_args!("the disk in it, as raw bytes:"))?;
    }
    match &done.digest {
        Digest::Sha256(_) => out.line(format_args!("sha256 {}", done.digest))?,
        Digest::Absent(reason) => out.line(format_args!("no sha256: {reason}"))?,
    }
    if done.lost_bytes > 0 {
        let map = done.map.as_ref().map_or_else(String::new, |map| format!("; {} tells which", map.display()));
        out.line(format_args!("{} bytes in {} gaps are missing{map}", done.lost_bytes, done.gap_count))?;
        for gap in done.gaps.iter().take(5) {
            out.line(format_args!("  {gap}"))?;
        }
    }
    findings(&done.findings, done.trust, &shown, out)?;
    Ok(outcome)
}

fn file_json(file: &Written) -> Value {
    json!({ "path": file.path.display().to_string(), "length": file.len, "sha256": file.digest.hex() })
}

/// Says how an export of a folder went.
/// Finds change the outcome only if they are what was `asked` for.
pub(super) fn tell_folder(done: &Foldered, output: &Path, asked: Asked, out: &mut Out) -> Result<Outcome> {
    let tally = &done.tally;
    let shown = output.display().to_string();
    out.record(
        "export",
        json!({
            "path": shown, "files": tally.files, "damaged": tally.damaged, "folders": tally.folders,
            "others": tally.others, "failed": tally.failed, "written": tally.data_bytes,
            "missing": tally.lost_bytes, "trust": done.trust.word(),
            "manifest": done.manifest.display().to_string(), "resumed": done.resumed,
            "found": {
                "files": done.finds.files, "damaged": done.finds.damaged, "folders": done.finds.folders,
                "others": done.finds.others, "failed": done.finds.failed, "written": done.finds.data_bytes,
                "missing": done.finds.lost_bytes,
            },
        }),
    )?;
    let written = report::size(tally.data_bytes);
    out.line(format_args!(
        "{shown}: {} files, {} folders, {written} written, {}",
        tally.files,
        tally.folders,
        done.trust.word()
    ))?;
    let finds = &done.finds;
    if *finds != Tally::default() {
        let written = report::size(finds.data_bytes);
        let gaps = if finds.damaged > 0 { format!(", {} of them with gaps", finds.damaged) } else { String::new() };
        let failed = if finds.failed > 0 { format!(", {} could not be read", finds.failed) } else { String::new() };
        out.line(format_args!("found again: {} files, {written} written{gaps}{failed}", finds.files))?;
    }
    if tally.damaged > 0 {
        let lost = report::size(tally.lost_bytes);
        out.line(format_args!(
            "{} files have gaps, {lost} in all; each has a .vdrecover.map beside it",
            tally.damaged
        ))?;
    }
    if tally.failed > 0 {
        out.line(format_args!("{} files could not be taken out", tally.failed))?;
    }
    out.line(format_args!("{} lists every file with its hash, state and trust", done.manifest.display()))?;
    findings(&done.findings, done.trust, &shown, out)?;
    // Nothing of a find is sound: at best it is inferred that it is what it was.
    let finds = asked == Asked::Finds && finds.files + finds.failed > 0;
    Ok(Outcome::doubt_if(!done.is_sound() || finds))
}

/// What an export of a folder was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asked {
    /// What is alive, and perhaps finds with it.
    All,
    /// What no folder lists any more.
    Finds,
}

fn findings(all: &[Finding], trust: Trust, about: &str, out: &mut Out) -> Result<()> {
    for finding in all.iter().take(20) {
        let noted = crate::case::Noted { about: about.to_owned(), finding: finding.clone() };
        super::scan::show_finding(&noted, out)?;
    }
    if all.len() > 20 {
        out.line(format_args!("  and {} more; the manifest has them all", all.len() - 20))?;
    }
    if trust > Trust::Sound {
        out.hint(&format!("the content is {}: `vdrecover scan` says why", trust.word()));
    }
    Ok(())
}
