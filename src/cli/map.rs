//! `vdrecover map`: where each range lives.

use super::out::Out;
use super::{Global, Outcome, size};
use crate::locator::{self, Locator};
use crate::report;
use crate::source::Source;
use anyhow::{Result, bail};
use clap::Args;
use serde_json::json;
use std::ffi::OsString;
use std::sync::Arc;
use vdrecover_formats::cursor::walk_merged;
use vdrecover_formats::{Place, Resolved, Trust};

/// Arguments of `map`.
#[derive(Debug, Args)]
pub(super) struct Command {
    /// `IMAGE::PATH`, or IMAGE if there is one disk in it
    #[arg(value_name = "LOCATOR")]
    locator: OsString,
    /// First byte
    #[arg(long, value_name = "N", default_value = "0", value_parser = size)]
    offset: u64,
    /// Bytes; to the end if absent
    #[arg(long, value_name = "N", value_parser = size)]
    length: Option<u64>,
}

pub(super) fn run(command: &Command, global: &Global, out: &mut Out) -> Result<Outcome> {
    let locator = Locator::parse(&command.locator);
    let case = global.open_at(&locator, out)?;
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
