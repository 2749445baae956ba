//! `vdrecover cat`: bytes to stdout, up to the first that can't be had.

use super::out::Out;
use super::{Global, Outcome, size};
use crate::locator::{self, Locator};
use crate::report;
use anyhow::{Result, bail};
use clap::Args;
use std::ffi::OsString;
use vdrecover_formats::{Layer, Seen, Trust, read};

/// Arguments of `cat`.
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
    /// Zeros for what can't be had, instead of stopping there
    #[arg(long)]
    fill: bool,
}

/// Bytes of one read: large enough for whole units, small enough for the processor's cache.
const STEP: usize = 256 << 10;

pub(super) fn run(command: &Command, global: &Global, out: &mut Out) -> Result<Outcome> {
    if out.json {
        bail!("cat writes bytes, which JSON can't hold; `map --json` tells where they are");
    }
    let locator = Locator::parse(&command.locator);
    let case = global.open_at(&locator, out)?;
    let (found, bytes) = locator::open(&case, &locator)?;
    let shown = report::printable(&found.path);
    let len = bytes.len();
    if command.offset > len {
        bail!("{shown}: offset {:#x} is behind its end at {len:#x}", command.offset);
    }
    let end = command.length.map_or(len, |length| command.offset.saturating_add(length).min(len));
    let outcome = copy(&*bytes, command.offset, end, command.fill, &shown, out)?;
    out.flush()?;
    if is_descriptor(&found.entry.name, len) {
        out.hint(&format!("{shown} is a descriptor: its disk is in vms/ or disks/, see `vdrecover ls -R IMAGE`"));
    }
    Ok(outcome)
}

/// A `.vmdk` too small to hold a disk is the text that describes one.
pub(super) fn is_descriptor(name: &[u8], len: u64) -> bool {
    name.to_ascii_lowercase().ends_with(b".vmdk") && len <= 64 << 10
}

fn copy(bytes: &dyn Layer, start: u64, end: u64, fill: bool, shown: &str, out: &mut Out) -> Result<Outcome> {
    let mut buf = vec![0; STEP];
    let mut at = start;
    let mut trust = Trust::Sound;
    let mut missing: u64 = 0;
    while at < end {
        // Steps end where units begin, so that none is decoded twice.
        let step = (STEP as u64 - at % STEP as u64).min(end - at);
        let chunk = &mut buf[..usize::try_from(step)?];
        let Seen { gaps, trust: own } = read(bytes, at, chunk);
        trust = trust.max(own);
        if let (Some(gap), false) = (gaps.first(), fill) {
            out.bytes(&chunk[..usize::try_from(gap.range.start - at)?])?;
            out.flush()?;
            out.error(&format!("{shown}: stopped at {:#x}: {gap}; --fill writes zeros for them", gap.range.start));
            return Ok(Outcome::Doubt);
        }
        missing += gaps.iter().map(|gap| gap.range.end - gap.range.start).sum::<u64>();
        out.bytes(chunk)?;
        at += step;
    }
    if missing > 0 {
        out.error(&format!("{shown}: {missing} bytes are lost and were written as zeros"));
    }
    if trust > Trust::Sound {
        out.error(&format!("{shown}: the bytes are {}; `vdrecover scan` says why", trust.word()));
    }
    Ok(Outcome::doubt_if(missing > 0 || trust > Trust::Sound))
}
