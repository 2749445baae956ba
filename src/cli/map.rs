//! `vdrecover map`: where each range lives, and what of a device a rescue should read first.

use super::export::evidence;
use super::out::Out;
use super::{Global, Outcome, size};
use crate::export::{Refused, write_small};
use crate::locator::{self, Locator};
use crate::mapfile::{Status, write_map};
use crate::ranges::BlockMap;
use crate::report;
use crate::source::Source;
use crate::want::{self, Wants};
use anyhow::{Context, Result, bail};
use clap::Args;
use serde_json::json;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use vdrecover_formats::cursor::walk_merged;
use vdrecover_formats::{Place, Resolved, Tree, Trust};

/// Arguments of `map`.
#[derive(Debug, Args)]
pub(super) struct Command {
    /// `IMAGE::PATH`, or IMAGE if there is one disk in it; with --want the IMAGE
    #[arg(value_name = "LOCATOR", required_unless_present = "want")]
    locator: Option<OsString>,
    /// First byte
    #[arg(long, value_name = "N", default_value = "0", value_parser = size)]
    offset: u64,
    /// Bytes; to the end if absent
    #[arg(long, value_name = "N", value_parser = size)]
    length: Option<u64>,
    /// Write the ranges of the device that this needs, as a ddrescue domain: a path in the image or `IMAGE::PATH`,
    /// a folder or VM with all in it, or `metadata` for all that listing and searching needs (repeatable)
    #[arg(long, value_name = "LOCATOR", requires = "output", conflicts_with_all = ["offset", "length"])]
    want: Vec<OsString>,
    /// The domain mapfile to make; with several devices one for each, named after it
    #[arg(long, short, value_name = "MAP", requires = "want")]
    output: Option<PathBuf>,
    /// Replace the mapfile if it is there
    #[arg(long, requires = "want")]
    force: bool,
}

pub(super) fn run(command: &Command, global: &Global, out: &mut Out) -> Result<Outcome> {
    if let Some(output) = &command.output {
        return wanted(command, output, global, out);
    }
    let locator = Locator::parse(command.locator.as_deref().unwrap_or_default());
    let case = global.open_at(&locator, out)?;
    global.compare(&case);
    let (found, bytes) = locator::open(&case, &locator)?;
    let len = bytes.len();
    let start = command.offset;
    if start > len {
        bail!("{}: offset {start:#x} is behind its end at {len:#x}", report::printable(&found.path));
    }
    let end = command.length.map_or(len, |length| start.saturating_add(length).min(len));
    out.line(format_args!("{:>18} {:>18} {:8} {:8} WHERE", "START", "LENGTH", "KIND", "TRUST"))?;
    let mut doubt = false;
    // Sources are opened while a case is made, and not by a walk.
    let sources = case.sources.all();
    for run in walk_merged(&*bytes, start..end) {
        doubt |= run.trust > Trust::Sound || matches!(run.place, Place::Lost(_));
        line(&run, &sources, out)?;
    }
    Ok(Outcome::doubt_if(doubt))
}

/// The word for a kind of place.
pub(super) fn kind(place: &Place<'_>) -> &'static str {
    match place {
        Place::Own | Place::Below { .. } => "data",
        Place::Coded(_) => "coded",
        Place::Zero => "zero",
        Place::Hole => "hole",
        Place::Lost(_) => "lost",
    }
}

fn line(run: &Resolved<'_>, sources: &[Arc<Source>], out: &mut Out) -> Result<()> {
    let source =
        run.layer.tag().and_then(|tag| sources.get(tag.0 as usize)).map(|source| source.path.display().to_string());
    let mut record = json!({
        "start": run.at,
        "length": run.len,
        "kind": kind(&run.place),
        "trust": run.trust.word(),
    });
    let place = match run.place {
        Place::Own | Place::Below { .. } => {
            record["offset"] = run.offset.into();
            record["source"] = source.clone().into();
            format!("{} at {:#x}", source.unwrap_or_else(|| run.layer.about()), run.offset)
        }
        Place::Coded(unit) => {
            record["packed_at"] = unit.packed_at.into();
            record["packed_length"] = unit.packed_len.into();
            format!("{} packed bytes at {:#x} of {}", unit.packed_len, unit.packed_at, unit.from.about())
        }
        Place::Lost(loss) => {
            record["why"] = loss.why.word().into();
            record["cause_at"] = loss.at.into();
            format!("{} (see {:#x} in {})", loss.why, loss.at, run.layer.about())
        }
        Place::Zero | Place::Hole => String::new(),
    };
    out.record("run", record)?;
    out.line(format_args!("{:#018x} {:#018x} {:8} {:8} {place}", run.at, run.len, kind(&run.place), run.trust.word()))
}

/// The word that stands for all structures.
const METADATA: &str = "metadata";

/// Writes the domain of a rescue.
fn wanted(command: &Command, output: &Path, global: &Global, out: &mut Out) -> Result<Outcome> {
    let (image, paths) = question(command)?;
    let case = global.open(std::slice::from_ref(&image), true, out)?;
    let mut wants = Wants::default();
    for path in &paths {
        match path {
            None => wants.metadata = true,
            Some(path) if path.is_empty() => wants.nodes.push(case.root()),
            Some(path) => wants.nodes.push(locator::find(&case, path)?.entry.id),
        }
    }
    let guard = evidence(&case, &[image], global)?;
    let progress = global.progress();
    let domain = want::domain(&case, &wants, &progress);
    let needed: Vec<_> = domain.sources.iter().filter(|(_, map)| map.claimed_bytes() > 0).collect();
    if needed.is_empty() {
        bail!("nothing of what is wanted lies on a device");
    }
    let names = names(output, &needed);
    // All or none: a name that is taken is told before the first is written.
    if let Some(taken) = names.iter().find(|name| name.symlink_metadata().is_ok()).filter(|_| !command.force) {
        return Err(Refused::Exists(taken.clone()).into());
    }
    for ((source, map), name) in needed.iter().zip(&names) {
        let notes = [
            "Domain for ddrescue --domain-mapfile: + is needed, ? is not.".to_owned(),
            format!("Device: {}", report::printable(source.path.as_os_str().as_bytes())),
        ];
        let rest: Vec<_> = map.unclaimed().map(|range| (range, Status::Untried)).collect();
        write_small(name, &guard, command.force, &mut |out| write_map(out, source.len, &notes, &rest))?;
        tell(source, map, name, out)?;
    }
    if domain.lost > 0 {
        out.error(&format!(
            "{} bytes of what is wanted have no known place: a table that maps them is lost",
            domain.lost
        ));
    }
    Ok(Outcome::doubt_if(domain.lost > 0))
}

fn tell(source: &Source, map: &BlockMap, name: &Path, out: &mut Out) -> Result<()> {
    let ranges = map.claimed().count();
    let wanted = map.claimed_bytes();
    out.record(
        "domain",
        json!({
            "path": name.display().to_string(), "source": source.path.display().to_string(), "length": source.len,
            "wanted": wanted, "ranges": ranges, "block": map.block(),
        }),
    )?;
    out.line(format_args!(
        "{}: {} of {} in {ranges} ranges of {}",
        name.display(),
        report::size(wanted),
        report::size(source.len),
        source.path.display()
    ))
}

/// The image, and the paths that are wanted of it; `None` for its metadata.
fn question(command: &Command) -> Result<(PathBuf, Vec<Option<Vec<u8>>>)> {
    let mut image = command.locator.as_ref().map(PathBuf::from);
    let mut paths = Vec::new();
    for want in &command.want {
        let locator = Locator::parse(want);
        let of_image = locator.path.is_some() && locator.image.symlink_metadata().is_ok();
        if want == OsStr::new(METADATA) {
            paths.push(None);
        } else if of_image || image.is_none() {
            if image.as_ref().is_some_and(|image| !same_file(image, &locator.image)) {
                bail!("{}: is of another image; what is wanted lies in one", want.display());
            }
            image.get_or_insert(locator.image);
            // As `IMAGE::metadata` the word needs no other locator; no folder of the tree has this name.
            let path = locator.path.unwrap_or_default();
            paths.push((path != METADATA.as_bytes()).then_some(path));
        } else {
            paths.push(Some(want.as_bytes().to_vec()));
        }
    }
    let image = image.context("of which image? write `vdrecover map IMAGE --want metadata -o MAP`")?;
    Ok((image, paths))
}

fn same_file(a: &Path, b: &Path) -> bool {
    let place = |path: &Path| path.canonicalize().ok();
    place(a).is_some() && place(a) == place(b)
}

/// The names of the mapfiles: of several devices each has its device's name before the suffix.
fn names(output: &Path, needed: &[&(Arc<Source>, BlockMap)]) -> Vec<PathBuf> {
    let [_, _, ..] = needed else { return vec![output.to_path_buf()] };
    let stem = output.file_stem().unwrap_or_default();
    let names = needed.iter().enumerate().map(|(number, (source, _))| {
        let device = source.path.file_name().unwrap_or_default();
        let twin = needed[..number].iter().any(|(other, _)| other.path.file_name() == source.path.file_name());
        let mut name = stem.to_os_string();
        name.push(".");
        name.push(device);
        if twin {
            name.push(format!("~{}", number + 1));
        }
        name.push(".");
        name.push(output.extension().unwrap_or(OsStr::new("map")));
        output.with_file_name(name)
    });
    names.collect()
}
