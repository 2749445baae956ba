//! `vdrecover owner`: who has these bytes of the device.

use super::out::Out;
use super::{Global, Outcome, size};
use crate::case::Case;
use crate::owner::{self, Kind, Level, Owner, Piece, Step};
use crate::ranges::RangeSet;
use crate::report::{self, printable};
use anyhow::{Context, Result, bail};
use clap::{ArgGroup, Args};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::PathBuf;
use vdrecover_formats::{State, Trust};

/// Arguments of `owner`.
#[derive(Debug, Args)]
#[command(group(ArgGroup::new("asked").required(true).args(["offset", "list"])))]
pub(super) struct Command {
    /// The device, or an image of it
    #[arg(value_name = "IMAGE")]
    image: PathBuf,
    /// A byte of the image
    #[arg(long, value_name = "N", value_parser = size)]
    offset: Option<u64>,
    /// How many bytes from there on
    #[arg(long, value_name = "N", value_parser = size, default_value = "1", requires = "offset")]
    length: u64,
    /// A file with a number, FIRST-LAST or FIRST+COUNT a line, or a ddrescue mapfile, whose failed blocks are meant
    #[arg(long, value_name = "FILE")]
    list: Option<PathBuf>,
    /// Bytes that 1 stands for in the list: 512 for LBAs of most disks
    #[arg(long, visible_alias = "sector-size", value_name = "N", value_parser = size, default_value = "1", requires = "list")]
    unit: u64,
}

pub(super) fn run(command: &Command, global: &Global, out: &mut Out) -> Result<Outcome> {
    let asked = match (&command.list, command.offset) {
        (Some(list), _) if command.unit > 0 => owner::read_list(list, command.unit)?,
        (None, Some(at)) if command.length > 0 => std::iter::once(at..at.saturating_add(command.length)).collect(),
        _ => bail!("nothing is asked: a length or unit of 0"),
    };
    if command.image.is_dir() {
        bail!("{}: is a folder; give the device or image that the offsets are of", command.image.display());
    }
    let case = global.open(std::slice::from_ref(&command.image), true, out)?;
    let source = case.inputs.first().with_context(|| format!("{}: can't be opened", command.image.display()))?;
    let inside = asked.intersect(&RangeSet::all(source.len));
    if inside.is_empty() && !asked.is_empty() {
        bail!("{}: all of it is behind its end at {:#x}", command.image.display(), source.len);
    }
    global.compare(&case);
    let progress = global.progress();
    let mut sums = Sums::new(&case);
    owner::find(&case, source, &inside, &progress, &mut |piece| show(piece, &mut sums, out))?;
    sums.show(out)?;
    if asked.is_empty() {
        out.hint("the list names no place: nothing failed");
    }
    let outside = asked.total() - inside.total();
    if outside > 0 {
        out.error(&format!("{outside} bytes of what is asked are behind the end of {}", command.image.display()));
    }
    Ok(Outcome::doubt_if(outside > 0))
}

fn show(piece: &Piece, sums: &mut Sums, out: &mut Out) -> Result<()> {
    let len = piece.range.end - piece.range.start;
    out.line(format_args!("{:#x}: {len} bytes", piece.range.start))?;
    let mut before: &[owner::Step] = &[];
    for (number, owner) in piece.owners.iter().enumerate() {
        let vms = sums.add(owner, len);
        out.record("owner", record(piece, number, owner, &vms))?;
        let common = owner.steps.iter().zip(before).take_while(|(own, other)| own == other).count();
        if number > 0 {
            out.line("  and")?;
        }
        for step in &owner.steps[common..] {
            out.line(format_args!("{:#18x}  {}", step.offset, step.name))?;
        }
        out.line(format_args!("  {}", text(owner, &vms)))?;
        before = &owner.steps;
    }
    if piece.more {
        out.line("  and more: so many have the same bytes that not all are told")?;
    }
    Ok(())
}

/// What a person should know of an owner.
fn text(owner: &Owner, vms: &[&str]) -> String {
    let mut text = match owner.kind {
        Kind::Data if owner.state == State::Live => "data".to_owned(),
        Kind::Data => format!("data, {}", owner.state.word()),
        Kind::Structure => "a structure".into(),
        Kind::Free => "free".into(),
        Kind::Allocated => "allocated by its bitmap; no file that can be read leads there".into(),
        Kind::Unused => "in a file of structures, used by nothing".into(),
        Kind::Unclaimed => "unclaimed: nothing that was recognised has it".into(),
    };
    if owner.packed {
        text.push_str(", packed: what it decodes to starts there");
    }
    if owner.trust > Trust::Sound {
        text = format!("{text} ({})", owner.trust.word());
    }
    if !vms.is_empty() {
        text = format!("{text}; of VM {}", vms.join(", "));
    }
    text
}

fn record(piece: &Piece, number: usize, owner: &Owner, vms: &[&str]) -> Value {
    let steps = owner.steps.iter();
    json!({
        "start": piece.range.start,
        "length": piece.range.end - piece.range.start,
        "number": number,
        "kind": owner.kind.word(),
        "state": owner.state.word(),
        "trust": owner.trust.word(),
        "packed": owner.packed,
        "vms": vms,
        "layers": steps.map(|step| json!({
            "level": step.level.word(), "name": &*step.name, "offset": step.offset
        })).collect::<Vec<_>>(),
        "more": piece.more,
    })
}

/// Whether a step is in a folder of the case, or a structure of something in it.
fn is_in(step: &Step, folder: &str) -> bool {
    let mut parts = match step.level {
        Level::Structure => step.name.split(" of ").collect(),
        _ => vec![&*step.name],
    };
    parts.retain(|part| part.starts_with(folder));
    !parts.is_empty()
}

/// How much each owner has of all that was asked.
struct Sums {
    /// The beginnings of the paths of each machine.
    machines: Vec<(String, Vec<String>)>,
    owners: BTreeMap<(Kind, String), (u64, u64)>,
}

/// Owners that are summed up.
const MOST: usize = 1 << 16;

impl Sums {
    fn new(case: &Case) -> Self {
        let machines = case.machines.iter().map(|machine| {
            let name = printable(&machine.name);
            let own = String::from_utf8_lossy(&machine.name);
            let mut places = vec![format!("vms/{own}/"), format!("files/{own}/")];
            let config = String::from_utf8_lossy(&machine.config);
            let store = case.stores.get(machine.store).map(|store| String::from_utf8_lossy(&store.name));
            if let (Some((folder, _)), Some(store)) = (config.rsplit_once('/'), store) {
                places.push(format!("store/{store}/{folder}/"));
            }
            (name, places)
        });
        Self { machines: machines.collect(), owners: BTreeMap::new() }
    }

    /// Adds to the sums; the machines that an owner is of.
    fn add(&mut self, owner: &Owner, len: u64) -> Vec<&str> {
        if let Some(last) = owner.steps.last() {
            let key = (owner.kind, last.name.to_string());
            if self.owners.len() < MOST || self.owners.contains_key(&key) {
                let sum = self.owners.entry(key).or_default();
                *sum = (sum.0 + 1, sum.1 + len);
            }
        }
        let of = |places: &[String]| {
            let mut steps = owner.steps.iter();
            steps.any(|step| places.iter().any(|place| is_in(step, place)))
        };
        self.machines.iter().filter(|(_, places)| of(places)).map(|(name, _)| name.as_str()).collect()
    }

    fn show(&self, out: &mut Out) -> Result<()> {
        let mut sums: Vec<_> = self.owners.iter().collect();
        sums.sort_by_key(|(_, (_, bytes))| std::cmp::Reverse(*bytes));
        let several = sums.iter().map(|(_, (pieces, _))| pieces).sum::<u64>() > 1;
        if several {
            out.line("")?;
            out.line(format_args!("{:>10} {:>8}  {:9}  OWNER", "BYTES", "PIECES", "KIND"))?;
        }
        for ((kind, name), (pieces, bytes)) in sums {
            out.record("owned", json!({"name": name, "kind": kind.word(), "pieces": pieces, "bytes": bytes}))?;
            if several {
                out.line(format_args!("{:>10} {pieces:>8}  {:9}  {name}", report::size(*bytes), kind.word()))?;
            }
        }
        Ok(())
    }
}
