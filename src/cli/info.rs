//! `vdrecover info`: what an image is, layer by layer.

use super::out::Out;
use super::{Global, Outcome};
use crate::case::{Case, Item, ItemId, Origin, State};
use crate::health;
use crate::report;
use anyhow::Result;
use clap::Args;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::path::PathBuf;
use vdrecover_formats::link::Value as Said;
use vdrecover_formats::{Content, FORMATS, Trust};

/// Arguments of `info`.
#[derive(Debug, Args)]
pub(super) struct Command {
    /// Images or folders
    #[arg(value_name = "IMAGE", required = true)]
    images: Vec<PathBuf>,
}

pub(super) fn run(command: &Command, global: &Global, out: &mut Out) -> Result<Outcome> {
    let case = global.open(&command.images, false, out)?;
    let mut worst = Outcome::doubt_if(!case.failed.is_empty());
    for id in in_order(&case) {
        show(&case, id, out)?;
        let item = &case.items[id];
        // A part of another image is complete when that is.
        let absent = item.used_by.is_none() && item.filled.iter().any(|filled| filled.bytes.is_none());
        // The LUN of a raw mapping never was in the image.
        let absent = absent && !matches!(item.content(), Some(Content::Disks(_)) if is_elsewhere(item));
        worst = worst.max(Outcome::doubt_if(absent || matches!(item.state, State::Failed(_))));
    }
    global.compare(&case);
    for noted in case.findings.iter().chain(case.all_contradictions()) {
        worst = worst.max(Outcome::doubt_if(noted.finding.trust > Trust::Sound));
        super::scan::show_finding(noted, out)?;
    }
    Ok(worst)
}

/// Whether nothing of a disk is missing but what lies on LUNs that were not given.
fn is_elsewhere(item: &Item) -> bool {
    let health = health::of(&*item.disk(), health::LISTING);
    health.not_given > 0 && health.missing == health.not_given
}

/// Every item behind the one that it lies in.
fn in_order(case: &Case) -> Vec<ItemId> {
    let holder = |id: ItemId| match &case.items[id].origin {
        Origin::Source(_) => None,
        Origin::File { store, .. } => case.stores[*store].item,
        Origin::Inside(of) | Origin::Volume { of, .. } => Some(*of),
    };
    let mut inside: BTreeMap<Option<ItemId>, Vec<ItemId>> = BTreeMap::new();
    for id in (0..case.items.len()).rev() {
        inside.entry(holder(id)).or_default().push(id);
    }
    let mut order = Vec::new();
    let mut todo = inside.remove(&None).unwrap_or_default();
    while let Some(id) = todo.pop() {
        order.push(id);
        todo.extend(inside.remove(&Some(id)).unwrap_or_default());
    }
    order
}

fn show(case: &Case, id: ItemId, out: &mut Out) -> Result<()> {
    let item = &case.items[id];
    let label = case.label(id);
    let content = match (&item.state, item.content()) {
        (_, Some(Content::Disks(disks))) => {
            let size = report::size(disks.first().map_or(0, |disk| disk.bytes.len()));
            let more = disks.len().saturating_sub(1);
            if more == 0 { format!("disk of {size}") } else { format!("disk of {size}, {more} internal snapshots") }
        }
        (_, Some(Content::Volumes(volumes))) => format!("{} volumes", volumes.len()),
        (_, Some(Content::Tree(_))) => "files".into(),
        (State::Failed(error), _) => format!("unusable: {error}"),
        _ if item.used_by.is_some() => "part of another image".into(),
        _ => "unusable".into(),
    };
    let mut facts: Map<String, Value> = Map::new();
    for fact in &item.opened.facts {
        // What an image says more than once, of its extents or snapshots, is a list.
        match facts.get_mut(fact.name) {
            None => drop(facts.insert(fact.name.to_owned(), for_programs(&fact.value))),
            Some(Value::Array(all)) => all.push(for_programs(&fact.value)),
            Some(first) => *first = json!([first.take(), for_programs(&fact.value)]),
        }
    }
    let wants: Vec<Value> = item
        .opened
        .wants
        .iter()
        .zip(&item.filled)
        .filter(|_| item.used_by.is_none())
        .map(|(want, filled)| {
            json!({
                "role": want.role.word(),
                "name": want.hint.as_deref().map(String::from_utf8_lossy),
                "found": filled.bytes.is_some(),
                "trust": filled.trust.word(),
                "why": filled.why,
            })
        })
        .collect();
    out.record(
        "item",
        json!({
            "label": label, "format": item.format.name, "about": item.format.about, "length": item.bytes.len(),
            "depth": item.depth, "content": content, "facts": facts, "wants": wants,
            "used_by": item.used_by.map(|other| case.label(other)),
        }),
    )?;
    let indent = "  ".repeat(item.depth);
    out.line(format_args!("{indent}{label}"))?;
    out.line(format_args!("{indent}  {}: {content}", item.format.about))?;
    if let Origin::Volume { of, number } = &item.origin
        && let Some(Content::Volumes(volumes)) = case.items[*of].content()
        && let Some(volume) = volumes.get(*number)
    {
        let range = &volume.range;
        let len = report::size(range.end.saturating_sub(range.start));
        out.line(format_args!("{indent}  volume: {}, {len} at {:#x}", volume.about, range.start))?;
    }
    for fact in &item.opened.facts {
        out.line(format_args!("{indent}  {}: {}", fact.name, for_people(&fact.value)))?;
    }
    let wants = item.opened.wants.iter().zip(&item.filled);
    for (want, filled) in wants.filter(|_| item.used_by.is_none()) {
        let found = if filled.bytes.is_some() { "found" } else { "missing" };
        out.line(format_args!("{indent}  {} {found}: {}", want.role.word(), filled.why))?;
    }
    Ok(())
}

fn for_people(value: &Said) -> String {
    match value {
        Said::Text(text) => report::printable(text.as_bytes()),
        Said::Bytes(bytes) if *bytes < 1024 => report::size(*bytes),
        Said::Bytes(bytes) => format!("{} ({bytes} bytes)", report::size(*bytes)),
        Said::Time(nanos) => report::time(*nanos).unwrap_or_else(|| format!("{nanos} ns after 1970")),
        Said::Hex(number) => format!("{number:#x}"),
        Said::Count(number) => number.to_string(),
        Said::Flag(flag) => if *flag { "yes" } else { "no" }.to_owned(),
    }
}

/// Times as RFC 3339 in UTC, numbers as numbers, unless their digits mean something in base 16.
fn for_programs(value: &Said) -> Value {
    match value {
        Said::Bytes(number) | Said::Count(number) => (*number).into(),
        Said::Flag(flag) => (*flag).into(),
        Said::Text(text) => text.as_str().into(),
        Said::Time(_) | Said::Hex(_) => for_people(value).into(),
    }
}

/// Lists the table of formats.
pub(super) fn formats(out: &mut Out) -> Result<Outcome> {
    for format in FORMATS {
        let sweep = format.sweep.is_some();
        out.record("format", json!({"name": format.name, "about": format.about, "spec": format.spec, "sweep": sweep}))?;
        out.line(format_args!("{:10} {}", format.name, format.about))?;
    }
    Ok(Outcome::Sound)
}
