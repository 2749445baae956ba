//! `vdrecover cat`: bytes to stdout, up to the first that can't be had.

use super::out::Out;
use super::{Global, Outcome, size};
use crate::export::{PIECE, Step, Steps};
use crate::locator::{self, Locator};
use crate::ordered::{Buffers, ordered};
use crate::report;
use anyhow::{Result, bail};
use base64::Engine;
use clap::Args;
use serde_json::json;
use std::ffi::OsString;
use std::ops::{ControlFlow, Range};
use vdrecover_formats::num::narrow;
use vdrecover_formats::{Gap, Layer, Seen, Tree, Trust, read};

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

/// What `copy` has to know beside what to copy.
struct How<'a> {
    shown: &'a str,
    fill: bool,
    threads: usize,
    /// What contradicts it, in words.
    contradicted: Vec<String>,
}

pub(super) fn run(command: &Command, global: &Global, out: &mut Out) -> Result<Outcome> {
    let locator = Locator::parse(&command.locator);
    let case = global.open_at(&locator, out)?;
    global.compare(&case);
    let (found, bytes) = locator::open(&case, &locator)?;
    let shown = report::printable(&found.path);
    let len = bytes.len();
    if command.offset > len {
        bail!("{shown}: offset {:#x} is behind its end at {len:#x}", command.offset);
    }
    let end = command.length.map_or(len, |length| command.offset.saturating_add(length).min(len));
    let outcome = copy(
        &*bytes,
        command.offset..end,
        &How {
            shown: &shown,
            fill: command.fill,
            threads: global.thread_count(),
            contradicted: case.contradicted(found.entry.id),
        },
        out,
    )?;
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

/// A piece of the answer after the work on it.
struct Piece {
    range: Range<u64>,
    /// `None` where no byte is there.
    bytes: Option<Vec<u8>>,
    seen: Seen,
}

fn copy(layer: &dyn Layer, range: Range<u64>, how: &How<'_>, out: &mut Out) -> Result<Outcome> {
    let How { shown, fill, threads, ref contradicted } = *how;
    let buffers = Buffers::default();
    // A pipe is no faster than a few threads that decode, and each of them has pieces in memory.
    let threads = if range.end - range.start <= PIECE { 1 } else { threads.min(8) };
    let mut trust = Trust::Sound;
    let mut missing: u64 = 0;
    let mut ended = None;
    ordered(
        threads,
        Steps::new(layer, range),
        |step| piece(layer, step, &buffers),
        |Piece { range, bytes, seen }| {
            trust = trust.max(seen.trust);
            missing += seen.gaps.iter().map(|gap| gap.range.end - gap.range.start).sum::<u64>();
            let gap = seen.gaps.first().filter(|_| !fill);
            let end = gap.map_or(range.end, |gap| gap.range.start);
            let known = bytes.as_ref().map(|bytes| &bytes[..narrow(end - range.start)]);
            let written = match (known, out.json) {
                (_, true) => records(range.start..end, known, &seen, out),
                (Some(bytes), false) => out.bytes(bytes),
                (None, false) => out.zeros(end - range.start),
            };
            if let Some(bytes) = bytes {
                buffers.give(bytes);
            }
            if let (Ok(()), None) = (&written, gap) {
                return ControlFlow::Continue(());
            }
            ended = Some(written.map(|()| gap.cloned()));
            ControlFlow::Break(())
        },
    );
    if let Some(gap) = ended.transpose()?.flatten() {
        out.flush()?;
        out.error(&format!("{shown}: stopped at {:#x}: {gap}; --fill writes zeros for them", gap.range.start));
        return Ok(Outcome::Doubt);
    }
    if missing > 0 {
        out.error(&format!("{shown}: {missing} bytes are lost and were written as zeros"));
    }
    if trust > Trust::Sound {
        let why = if contradicted.is_empty() { "; `vdrecover scan` says why" } else { "" };
        out.error(&format!("{shown}: the bytes are {}{why}", trust.word()));
        for text in contradicted {
            out.error(text);
        }
    }
    Ok(Outcome::doubt_if(missing > 0 || trust > Trust::Sound))
}

/// With `--json`: what is there as base64, and what is not as a gap. Zeros that are in no file are only counted.
fn records(range: Range<u64>, bytes: Option<&[u8]>, seen: &Seen, out: &mut Out) -> Result<()> {
    let data = bytes.map(|bytes| base64::engine::general_purpose::STANDARD.encode(bytes));
    let fields =
        json!({"start": range.start, "length": range.end - range.start, "trust": seen.trust.word(), "data_b64": data});
    out.record("bytes", fields)?;
    for gap in &seen.gaps {
        let len = gap.range.end - gap.range.start;
        out.record("gap", json!({"start": gap.range.start, "length": len, "why": gap.loss.why.word()}))?;
    }
    Ok(())
}

fn piece(layer: &dyn Layer, step: Step, buffers: &Buffers) -> Piece {
    match step {
        Step::Skip { range, loss, trust } => {
            let gaps = loss.map(|loss| Gap { range: range.clone(), loss }).into_iter().collect();
            Piece { range, bytes: None, seen: Seen { gaps, trust } }
        }
        Step::Data(range) => {
            let mut bytes = buffers.take(narrow(range.end - range.start));
            let seen = read(layer, range.start, &mut bytes);
            Piece { range, bytes: Some(bytes), seen }
        }
    }
}
