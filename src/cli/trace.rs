//! `vdrecover trace`: one byte's way down to the device.

use super::map::kind;
use super::out::Out;
use super::{Global, Outcome, size};
use crate::case::Case;
use crate::locator::{self, Locator};
use crate::report;
use anyhow::{Result, bail};
use clap::Args;
use serde_json::json;
use std::ffi::OsString;
use vdrecover_formats::cursor::{Hop, same_layer};
use vdrecover_formats::{Layer, Place, Trust, walk};

/// Arguments of `trace`.
#[derive(Debug, Args)]
pub(super) struct Command {
    /// `IMAGE::PATH`, or IMAGE if there is one disk in it
    #[arg(value_name = "LOCATOR")]
    locator: OsString,
    /// The byte
    #[arg(long, value_name = "N", value_parser = size)]
    offset: u64,
}

pub(super) fn run(command: &Command, global: &Global, out: &mut Out) -> Result<Outcome> {
    let locator = Locator::parse(&command.locator);
    let case = global.open_at(&locator, out)?;
    global.compare(&case);
    let (found, bytes) = locator::open(&case, &locator)?;
    let len = bytes.len();
    if command.offset >= len {
        bail!("{}: offset {:#x} is behind its end at {len:#x}", report::printable(&found.path), command.offset);
    }
    let mut doubt = false;
    let mut layer: &dyn Layer = &*bytes;
    let mut at = command.offset;
    let mut first = Some(report::printable(&found.path));
    // A coded unit goes on below in the layer that holds its packed bytes; real stacks have a few of those.
    for _ in 0..16 {
        let mut cursor = walk(layer, at..at + 1);
        let Some(end) = cursor.next() else { break };
        for hop in cursor.path() {
            let name = first.take().unwrap_or_else(|| name(&case, hop));
            show(out, &name, hop.offset, hop.trust)?;
        }
        doubt |= end.trust > Trust::Sound || matches!(end.place, Place::Lost(_));
        let what = match end.place {
            Place::Lost(loss) => format!("lost: {} (see {:#x})", loss.why, loss.at),
            Place::Coded(unit) => format!(
                "byte {} of {} that are decoded from {} packed bytes",
                end.offset - unit.start,
                unit.len,
                unit.packed_len
            ),
            Place::Zero => "zero: a table says so".into(),
            Place::Hole => "hole: never written, reads as zero".into(),
            Place::Own | Place::Below { .. } => "data".into(),
        };
        out.record("end", json!({"kind": kind(&end.place), "trust": end.trust.word(), "text": what}))?;
        out.line(format_args!("  {what}"))?;
        let Place::Coded(unit) = end.place else { break };
        (layer, at) = (unit.from, unit.packed_at);
        if at >= layer.len() {
            break;
        }
    }
    Ok(Outcome::doubt_if(doubt))
}

fn show(out: &mut Out, name: &str, offset: u64, trust: Trust) -> Result<()> {
    out.record("hop", json!({"layer": name, "offset": offset, "trust": trust.word()}))?;
    out.line(format_args!("{offset:#18x}  {name}"))
}

/// What a person calls a layer: the source's path, the item's place, or what the layer says of itself.
fn name(case: &Case, hop: &Hop<'_>) -> String {
    if let Some(tag) = hop.layer.tag()
        && let Some(source) = case.sources.all().get(tag.0 as usize)
    {
        return source.path.display().to_string();
    }
    let own = |item: &crate::case::Item| same_layer(&*item.bytes, hop.layer) || same_layer(&*item.disk(), hop.layer);
    match case.items.iter().position(own) {
        Some(item) => format!("{} ({})", case.label(item), case.items[item].format.name),
        None => hop.layer.about(),
    }
}
