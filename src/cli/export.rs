//! `vdrecover export`: a file, a folder, a disk or a VM, out of an image.

use super::cat::is_descriptor;
use super::out::Out;
use super::{Global, Outcome, size};
use crate::case::{Case, Hashes};
use crate::digest::Digest;
use crate::export::folder::{FolderOptions, Foldered, Tally, export_folder};
use crate::export::{Dest, Evidence, ExportOptions, Exported, Hashing, Refused, export};
use crate::locator::{self, Locator};
use crate::progress::Progress;
use crate::report::{self, printable};
use anyhow::{Context, Result, bail};
use base64::Engine;
use clap::{Args, ValueEnum};
use serde_json::{Value, json};
use signal_hook::consts::{SIGINT, SIGTERM};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use vdrecover_formats::{Finding, Kind, Tree, Trust};

/// Arguments of `export`.
#[derive(Debug, Args)]
pub(super) struct Command {
    /// `IMAGE::PATH`, or IMAGE if there is one disk in it
    #[arg(value_name = "LOCATOR")]
    locator: OsString,
    /// The file or folder to make, an existing block device with --force, or - for stdout
    #[arg(short, long, value_name = "DEST")]
    output: PathBuf,
    /// Format of a disk; else the suffix of DEST decides
    #[arg(long, value_enum)]
    format: Option<Format>,
    #[command(flatten)]
    writing: Writing,
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
}

/// Formats that a disk can be written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// Byte for byte, sparse
    Raw,
}

/// Suffixes of formats that a user may expect and this version does not write.
const UNWRITTEN: [&str; 6] = ["qcow2", "vmdk", "vhd", "vhdx", "vdi", "ova"];

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
    if found.entry.kind == Kind::Dir {
        let incomplete = doubts(&case, &found.path, out)?;
        let source = format!("{}::{}", locator.image.display(), printable(&found.path));
        let options = FolderOptions { export: options, source, attributes: true };
        let done = export_folder(&case, found.entry.id, &command.output, &evidence, &options, &progress)
            .map_err(|error| advise(error, &command.output));
        progress.finish();
        let done = done?;
        let kept = keep_folder(&case, global, &found.path, &done, out)?;
        let asked = if found.path.starts_with(b"found") { Asked::Finds } else { Asked::All };
        return Ok(tell_folder(&done, &command.output, asked, out)?.max(incomplete).max(kept));
    }
    let incomplete = Outcome::doubt_if(!case.failed.is_empty());
    if case.target(found.entry.id).is_some() {
        check_format(command)?;
    }
    let bytes = case.open(found.entry.id).with_context(|| printable(&found.path))?;
    let dest = Dest::of(&command.output);
    let done = export(&*bytes, &dest, &evidence, &options, &progress);
    progress.finish();
    let done = match done {
        // Whoever reads the pipe wants no more.
        Err(error) if matches!(error.downcast_ref(), Some(Refused::Closed)) => return Ok(incomplete),
        done => done.map_err(|error| advise(error, &command.output))?,
    };
    let is_pipe = matches!(dest, Dest::Pipe(_));
    let mut outcome = tell(&done, &command.output, is_pipe, out)?;
    for noted in case.contradictions(found.entry.id) {
        if is_pipe {
            out.error(&format!("{}: {}", noted.about, noted.finding.text));
        } else {
            super::scan::show_finding(noted, out)?;
        }
    }
    if let Some(hash) = done.digest.hex() {
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

fn check_format(command: &Command) -> Result<()> {
    let suffix = command.output.extension().map(|suffix| suffix.to_string_lossy().to_ascii_lowercase());
    match suffix.filter(|suffix| command.format.is_none() && UNWRITTEN.contains(&suffix.as_str())) {
        Some(suffix) => bail!(
            "{}: this version does not write {suffix}; write raw (-o NAME.raw, or --format raw) and let `qemu-img \
             convert` make it",
            command.output.display()
        ),
        None => Ok(()),
    }
}

impl Writing {
    /// How to export, with an identity by which an interrupted export knows its own beginning.
    pub(super) fn options(&self, case: &Case, what: &str, global: &Global) -> ExportOptions {
        ExportOptions {
            force: self.force,
            threads: global.thread_count(),
            hash: if self.no_hash { Hashing::Off } else { Hashing::UpTo(self.hash_limit) },
            identity: Some(format!("{what} {}", crate::case::identity(case))),
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
            "resumed_at": done.resumed_at,
        }),
    )?;
    let written = report::size(done.data_bytes);
    out.line(format_args!("{shown}: {}, {written} of it data, {}", report::size(done.len), done.trust.word()))?;
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
