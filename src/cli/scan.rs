//! `vdrecover scan`: inventory and health, and what to do next.

use super::ls::finding_record;
use super::out::Out;
use super::{Global, Outcome};
use crate::audit::{self, Audit};
use crate::case::{Case, FoundDisk, FoundMachine, Machine, MachineDisk, Noted, Origin};
use crate::health::{self, Health};
use crate::report::{self, printable};
use anyhow::Result;
use base64::Engine as _;
use clap::Args;
use rayon::prelude::*;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use vdrecover_formats::link::Value as Said;
use vdrecover_formats::num::narrow;
use vdrecover_formats::{Content, Entry, Kind, Layer, Node, NodeId, Place, State, Tree, Trust, read, walk};

/// Arguments of `scan`.
#[derive(Debug, Args)]
pub(super) struct Command {
    /// Images, devices or folders; all extents of a spanned datastore together
    #[arg(value_name = "IMAGE", required = true)]
    images: Vec<PathBuf>,
}

/// Findings of one kind that are shown one by one before they are counted.
const SHOWN: usize = 5;
/// Lost machines for which a command is shown.
const COMMANDS: usize = 3;

pub(super) fn run(command: &Command, global: &Global, out: &mut Out) -> Result<Outcome> {
    let case = global.open(&command.images, true, out)?;
    let progress = global.progress();
    let audit = audit::run(&case, &progress);
    progress.finish();
    let mut scan = Scan { case: &case, out, worst: Outcome::doubt_if(!case.failed.is_empty()) };
    scan.images(&audit)?;
    scan.stores(&audit)?;
    scan.machines()?;
    scan.loose()?;
    scan.lost_and_found(global.deep)?;
    let lost = scan.lost_machines()?;
    scan.findings(&audit, global.deep)?;
    scan.next(command, global, &lost)?;
    Ok(scan.worst)
}

/// What was found of one class.
#[derive(Default)]
struct Class<'a> {
    count: usize,
    len: u64,
    good: u64,
    zeros: u64,
    best: Option<Trust>,
    shown: Vec<&'a [u8]>,
}

struct Scan<'a> {
    case: &'a Case,
    out: &'a mut Out,
    worst: Outcome,
}

impl Scan<'_> {
    fn images(&mut self, audit: &Audit) -> Result<()> {
        for source in &self.case.inputs {
            let items = self.case.items.iter().enumerate();
            let own =
                items.clone().find(|(_, item)| matches!(&item.origin, Origin::Source(own) if own.path == source.path));
            let layers = own.map(|(id, _)| self.layers(id)).unwrap_or_default();
            let tag = self.case.sources.all().iter().position(|other| other.path == source.path);
            let claimed = tag.and_then(|tag| audit.sources.get(tag)).map_or(0, crate::ranges::RangeSet::total);
            let path = source.path.display().to_string();
            self.out
                .record("image", json!({"path": path, "length": source.len, "layers": layers, "claimed": claimed}))?;
            self.out.line(format_args!("{path}: {}, {}", report::size(source.len), layers.join(" > ")))?;
        }
        Ok(())
    }

    /// What an image is, from the outside in, along its first content.
    fn layers(&self, id: usize) -> Vec<String> {
        let mut layers = vec![self.case.items[id].format.about.to_owned()];
        let mut at = id;
        for _ in 0..16 {
            let inside = self.case.items.iter().enumerate().find(|(_, item)| match item.origin {
                Origin::Inside(of) | Origin::Volume { of, .. } => of == at && item.format.name != "raw",
                _ => false,
            });
            let Some((next, item)) = inside else { break };
            layers.push(item.format.about.to_owned());
            at = next;
        }
        layers
    }

    fn stores(&mut self, audit: &Audit) -> Result<()> {
        for (store, found) in self.case.stores.iter().zip(&audit.stores).filter(|(store, _)| store.shown) {
            let item = store.item.map(|item| &self.case.items[item]);
            let version = item.and_then(|item| {
                item.opened.facts.iter().find_map(|fact| match &fact.value {
                    Said::Text(text) if fact.name == "version" => Some(text.clone()),
                    _ => None,
                })
            });
            let count = |kind: Kind| store.files.iter().filter(|file| file.entry.kind == kind).count();
            let (files, folders) = (count(Kind::File), count(Kind::Dir));
            let len = item.map_or(0, |item| item.opened.link.len);
            let name = printable(&store.name);
            let kind = match (item, version) {
                (Some(_), Some(version)) => version,
                (Some(item), None) => item.format.about.to_owned(),
                (None, _) => "folder".into(),
            };
            let absent = item.map_or(0, |item| item.filled.iter().filter(|filled| filled.bytes.is_none()).count());
            if absent > 0 {
                self.worst = self.worst.max(Outcome::Doubt);
            }
            // A dump of a part is no damage, but it is not the whole either.
            if item.is_some_and(|item| item.opened.findings.iter().any(|finding| finding.code == "LVM-SHORT")) {
                self.worst = self.worst.max(Outcome::Doubt);
            }
            self.out.record(
                "store",
                json!({
                    "name": name, "path": format!("store/{name}"), "kind": kind, "length": len, "files": files,
                    "folders": folders, "used": found.used, "free": found.free, "absent_extents": absent,
                }),
            )?;
            self.out.line("")?;
            let size = if len > 0 { format!(", {}", report::size(len)) } else { String::new() };
            let used = if found.used > 0 { format!(", {} in use", report::size(found.used)) } else { String::new() };
            self.out.line(format_args!("DATASTORE {name}: {kind}{size}{used}, {files} files in {folders} folders"))?;
            if absent > 0 {
                self.out.line(format_args!(
                    "  {absent} of its extents were not given: what lies on them is lost until then"
                ))?;
            }
        }
        Ok(())
    }

    fn machines(&mut self) -> Result<()> {
        if self.case.machines.is_empty() {
            return Ok(());
        }
        let width = self.case.machines.iter().map(|vm| printable(&vm.name).len()).max().unwrap_or(0).clamp(4, 40);
        self.out.line("")?;
        self.out.line(format_args!(
            "{:width$}  {:22} {:>10} {:>10}  {:9} GUEST",
            "VM", "VERDICT", "DISKS", "SIZE", "SNAPSHOTS"
        ))?;
        for machine in &self.case.machines {
            self.machine(machine, width)?;
        }
        Ok(())
    }

    fn machine(&mut self, machine: &Machine, width: usize) -> Result<()> {
        let mut worst = Health::default();
        let mut disks = Vec::new();
        let (mut absent, mut size) = (0, 0);
        for disk in &machine.disks {
            let Some(item) = disk.item else {
                absent += 1;
                disks.push(json!({"name": printable(&disk.name), "found": false}));
                continue;
            };
            let bytes = self.case.items[item].disk();
            let health = health::of(&*bytes, health::LISTING);
            size = u64::saturating_add(size, bytes.len());
            worst.missing = worst.missing.saturating_add(health.missing);
            worst.not_given = worst.not_given.saturating_add(health.not_given);
            worst.trust = worst.trust.max(health.trust).max(self.case.items[item].trust());
            disks.push(disk_record(disk, bytes.len(), &health));
        }
        let verdict = verdict(&worst, absent);
        if absent > 0 || !worst.is_sound() {
            self.worst = self.worst.max(Outcome::Doubt);
        }
        let name = printable(&machine.name);
        let guest = machine.guest.as_deref().map_or_else(|| "-".to_owned(), printable);
        self.out.record(
            "vm",
            json!({
                "name": name, "path": format!("vms/{name}"), "verdict": verdict, "trust": worst.trust.word(),
                "missing": worst.missing, "size": size, "guest": guest, "disks": disks,
                "snapshots": machine.snapshots.iter().map(|s| json!({"uid": s.uid, "name": printable(&s.name)})).collect::<Vec<_>>(),
                "tips": machine.tips.iter().map(|tip| printable(&tip.name)).collect::<Vec<_>>(),
                "config": printable(&machine.config),
            }),
        )?;
        self.out.line(format_args!(
            "{name:width$}  {verdict:22} {:>10} {:>10}  {:<9} {guest}",
            machine.disks.len(),
            report::size(size),
            machine.snapshots.len(),
        ))
    }

    fn loose(&mut self) -> Result<()> {
        let Ok(Some(dir)) = self.case.find(b"disks") else { return Ok(()) };
        let mut disks = Vec::new();
        let _ = self.case.list(dir.id, 0, &mut |entry| {
            disks.extend(entry.ok());
            std::ops::ControlFlow::Continue(())
        });
        self.out.line("")?;
        self.out.line("DISKS THAT BELONG TO NO VM")?;
        for entry in disks {
            let Some(target) = self.case.target(entry.id) else { continue };
            let health = health::of(&*target.bytes, health::LISTING);
            let trust = health.trust.max(self.case.items[target.item].trust());
            let health = Health { trust, ..health };
            if !health.is_sound() {
                self.worst = self.worst.max(Outcome::Doubt);
            }
            let name = printable(&entry.name);
            let about = self.contents(target.item);
            self.out.record(
                "disk",
                json!({
                    "path": format!("disks/{name}"), "length": target.bytes.len(), "verdict": verdict(&health, 0),
                    "trust": trust.word(), "missing": health.missing, "holds": about,
                }),
            )?;
            let about = if about.is_empty() { String::new() } else { format!("  {}", about.join(", ")) };
            let size = report::size(target.bytes.len());
            self.out.line(format_args!("  {name:30} {:22} {size:>10}{about}", verdict(&health, 0)))?;
        }
        Ok(())
    }

    /// The volumes on a disk, in words.
    fn contents(&self, id: usize) -> Vec<String> {
        let items = self.case.items.iter().enumerate();
        let inside = items.filter(|(own, item)| *own == id || matches!(item.origin, Origin::Inside(of) if of == id));
        let mut found = Vec::new();
        for (_, item) in inside {
            if let Some(Content::Volumes(volumes)) = item.content() {
                found.extend(volumes.iter().map(|volume| format!("{} {}", printable(&volume.name), volume.about)));
            }
        }
        found
    }

    fn lost_and_found(&mut self, deep: bool) -> Result<()> {
        let nodes = self.case.lost().nodes();
        if nodes.is_empty() {
            return Ok(());
        }
        // Maps of many TiB are read here: on all cores, told in order.
        let health: Vec<(Node, Health, Option<u64>)> = nodes
            .par_iter()
            .map(|node| {
                let entry = &node.find.entry;
                let facts = Node { trust: Trust::Doubtful, ..Node::plain(entry.kind, node.len, 0) };
                let facts = self.case.node(entry.id).unwrap_or(facts);
                let health = super::ls::content_health(self.case, entry, &facts);
                // Whether blocks read zero is only known of what was read.
                let bytes = (deep && entry.kind == Kind::File).then(|| self.case.open(entry.id).ok()).flatten();
                (facts, health, bytes.map(|bytes| zeros(&*bytes)))
            })
            .collect();
        let mut classes: BTreeMap<State, Class<'_>> = BTreeMap::new();
        for (node, (facts, health, zeros)) in nodes.iter().zip(&health) {
            let Entry { id, kind, state, .. } = node.find.entry;
            let class = classes.entry(state).or_default();
            class.count += 1;
            class.len = class.len.saturating_add(node.len);
            class.good = class.good.saturating_add(health.data);
            class.zeros = class.zeros.saturating_add(zeros.unwrap_or(0));
            class.best = Some(class.best.map_or(health.trust, |best| best.min(health.trust)));
            if class.shown.len() < SHOWN {
                class.shown.push(&node.path);
            }
            let mut record = json!({
                "store": printable(&self.case.stores[node.store].name), "path": String::from_utf8_lossy(&node.path),
                "class": state.word(), "type": kind.word(), "size": node.len, "named_by": node.find.named.word(),
                "why": node.find.why, "trust": health.trust.word(), "map": health.sums(),
                "mtime": facts.modified.and_then(report::time), "node": id.0 % NodeId::LIMIT, "reads_zero": zeros,
            });
            if std::str::from_utf8(&node.path).is_err() {
                record["path_b64"] = base64::engine::general_purpose::STANDARD.encode(&node.path).into();
            }
            self.out.record("unlinked", record)?;
        }
        self.out.line("")?;
        self.out.line("LOST AND FOUND")?;
        for store in self.case.stores.iter().filter(|store| store.shown) {
            let facts = store.item.map_or(&[][..], |item| &self.case.items[item].opened.facts);
            let unmaps = facts.iter().find(|fact| fact.name == "vmfs_unmap_priority");
            if let Some(Said::Text(priority)) = unmaps.map(|fact| &fact.value).filter(|_| store.item.is_some()) {
                let (name, note) = (printable(&store.name), if priority == "none" { "keeps" } else { "may unmap" });
                self.out.line(format_args!(
                    "  {name} {note} freed blocks (unmap priority {priority}); what was unmapped reads as zeros"
                ))?;
            }
        }
        for (state, class) in classes {
            let names: Vec<String> = class.shown.iter().map(|path| printable(path)).collect();
            let more = class.count - names.len();
            let more = if more > 0 { format!(", and {more} more") } else { String::new() };
            self.out.line(format_args!(
                "  {:5} {:12} {:>10} long, {:>10} there, {:8}  {}{more}",
                class.count,
                state.word(),
                report::size(class.len),
                report::size(class.good),
                class.best.unwrap_or_default().word(),
                names.join(", ")
            ))?;
            if class.zeros > 0 {
                let zeros = report::size(class.zeros);
                self.out.line(format_args!("        {zeros} of it reads zero: unmapped or never written"))?;
            }
        }
        Ok(())
    }

    /// The machines and disks among the finds, and the paths of the best of them.
    fn lost_machines(&mut self) -> Result<Vec<FoundMachine>> {
        let machines = self.case.lost().machines(self.case);
        if machines.is_empty() {
            return Ok(machines);
        }
        let health: Vec<Vec<Health>> = machines
            .par_iter()
            .map(|machine| {
                let of = |disk: &FoundDisk| self.case.open(disk.id).map(|bytes| health::of(&*bytes, health::LISTING));
                machine.disks.iter().map(|disk| of(disk).unwrap_or_default()).collect()
            })
            .collect();
        self.out.line("")?;
        self.out.line("LOST VMS AND DISKS")?;
        for (machine, health) in machines.iter().zip(&health) {
            let (name, path) = (printable(&machine.name), printable(&machine.path));
            let disks: Vec<Value> = machine
                .disks
                .iter()
                .zip(health)
                .map(|(disk, health)| {
                    json!({
                        "name": printable(&disk.name), "length": self.len(disk), "trust": health.trust.word(),
                        "map": health.sums(),
                    })
                })
                .collect();
            self.out.record(
                "lost_vm",
                json!({
                    "name": name, "path": path, "class": machine.state.word(), "config": machine.has_config,
                    "disks": disks,
                }),
            )?;
            let config = if machine.has_config { "its configuration and " } else { "" };
            let count = machine.disks.len();
            let plural = if count == 1 { "" } else { "s" };
            let word = machine.state.word();
            self.out.line(format_args!("  {name} ({word}): {config}{count} disk{plural} in {path}"))?;
            for (disk, health) in machine.disks.iter().zip(health) {
                let name = printable(&disk.name);
                self.out.line(format_args!("    {name:30} {}", self.left_of(disk, health)))?;
            }
        }
        // The most of data first: what a person would try first.
        let data = |health: &[Health]| health.iter().map(|health| health.data).sum::<u64>();
        let mut order: Vec<usize> = (0..machines.len()).filter(|at| data(&health[*at]) > 0).collect();
        order.sort_by_key(|at| (std::cmp::Reverse(data(&health[*at])), *at));
        Ok(order.into_iter().map(|at| machines[at].clone()).collect())
    }

    fn len(&self, disk: &FoundDisk) -> u64 {
        self.case.node(disk.id).map_or(0, |node| node.len)
    }

    /// How much of a disk is there, in words.
    fn left_of(&self, disk: &FoundDisk, health: &Health) -> String {
        let lost = health.missing - health.overwritten - health.not_given;
        let sums = [
            (health.data, "there"),
            (health.empty, "never written"),
            (health.overwritten, "overwritten"),
            (lost, "lost"),
            (health.not_given, "on a LUN that was not given"),
        ];
        let sums = sums.iter().filter(|(bytes, word)| *bytes > 0 || *word == "there");
        let sums: Vec<String> = sums.map(|(bytes, word)| format!("{} {word}", report::size(*bytes))).collect();
        format!("{:>10} long: {}; {}", report::size(self.len(disk)), sums.join(", "), health.trust.word())
    }

    fn findings(&mut self, audit: &Audit, deep: bool) -> Result<()> {
        let mut more = Vec::new();
        // Where something is not sound, the tables of disk images are asked why.
        if self.worst > Outcome::Sound {
            more = super::check::disks(self.case);
            more.retain(|noted| noted.finding.trust > Trust::Sound);
        }
        // A deep search told it where it searched.
        for store in self.case.stores.iter().filter(|_| !deep) {
            let about = self.case.store_label(store);
            store.tree.left_out(&mut |finding| more.push(Noted { about: about.clone(), finding }));
        }
        let all: Vec<&Noted> = self.case.findings.iter().chain(&audit.findings).chain(&more).collect();
        if all.is_empty() {
            return Ok(());
        }
        self.out.line("")?;
        self.out.line("FINDINGS")?;
        let mut seen: BTreeMap<(&str, &str), usize> = BTreeMap::new();
        for noted in &all {
            if noted.finding.trust > Trust::Sound {
                self.worst = self.worst.max(Outcome::Doubt);
            }
            let count = seen.entry((noted.finding.code, &noted.about)).or_default();
            *count += 1;
            if *count <= SHOWN || self.out.json {
                show_finding(noted, self.out)?;
            }
        }
        for ((code, about), count) in seen.into_iter().filter(|(_, count)| *count > SHOWN) {
            self.out.line(format_args!("  and {} more [{code}] in {about}; --json shows them all", count - SHOWN))?;
        }
        Ok(())
    }

    /// The commands that a person would want next, ready to paste.
    fn next(&mut self, command: &Command, global: &Global, lost: &[FoundMachine]) -> Result<()> {
        let [image, others @ ..] = command.images.as_slice() else { return Ok(()) };
        let word = |path: &PathBuf| format!(" {}", quoted(path.as_os_str().as_bytes()));
        let mut options: Vec<String> = global.with.iter().map(|path| format!(" --with{}", word(path))).collect();
        options.extend(global.maps.iter().map(|map| format!(" --mapfile {}", quoted(map.as_bytes()))));
        options.extend(global.deep.then(|| " --deep".to_owned()));
        options.extend(global.case.iter().map(|case| format!(" --case{}", word(case))));
        let options = options.concat();
        // A locator has one image, to which the others are given; what takes several gets them as they were.
        let with: Vec<String> = others.iter().map(|path| format!(" --with{}", word(path))).collect();
        let with = with.concat() + &options;
        let images: String = command.images.iter().map(word).collect();
        let at = |path: &[u8]| quoted(&[image.as_os_str().as_bytes(), b"::", path].concat());
        let image = quoted(image.as_os_str().as_bytes());
        let mut next = Vec::new();
        let lacks = |item: &crate::case::Item| {
            item.opened.link.set.is_some()
                && item.used_by.is_none()
                && item.filled.iter().any(|filled| filled.bytes.is_none())
        };
        if self.case.items.iter().any(lacks) {
            next.push(format!("vdrecover scan{images}{options} --with EXTENT"));
        }
        next.push(format!("vdrecover ls -R {image}{with}"));
        if let Some(machine) = self.case.machines.first() {
            let path = [b"vms/", machine.name.as_slice()].concat();
            next.push(format!("vdrecover export {}{with} -o {}", at(&path), quoted(&machine.name)));
        } else if let [disk, ..] = crate::locator::disks(self.case).as_slice() {
            let file = disk.rsplit(|byte| *byte == b'/').next().unwrap_or(disk);
            next.push(format!("vdrecover export {}{with} -o {}", at(disk), quoted(file)));
        }
        next.push(format!("vdrecover mount{images} /mnt{options}"));
        for machine in lost.iter().take(COMMANDS) {
            let file = machine.path.rsplit(|byte| *byte == b'/').next().unwrap_or(&machine.name);
            next.push(format!("vdrecover export {}{with} -o {}", at(&machine.path), quoted(file)));
        }
        if self.worst > Outcome::Sound {
            next.push(format!("vdrecover check{images}{options}"));
        }
        if !self.case.lost().nodes().is_empty() {
            next.push(format!("vdrecover recover{images}{options} --what found -o DIR"));
            if !global.deep {
                next.push(format!("vdrecover scan{images}{options} --deep"));
            }
        }
        next.push(format!("vdrecover recover{images}{options} -o DIR"));
        self.out.record("next", json!({"commands": next}))?;
        self.out.line("")?;
        self.out.line("NEXT")?;
        for line in next {
            self.out.line(format_args!("  {line}"))?;
        }
        Ok(())
    }
}

/// Bytes of data that read as zeros, in pieces of a file block.
fn zeros(layer: &dyn Layer) -> u64 {
    const PIECE: u64 = 1 << 20;
    let data = walk(layer, 0..layer.len()).take(health::LISTING);
    let data = data.filter(|run| matches!(run.place, Place::Own | Place::Below { .. } | Place::Coded(_)));
    let mut buf = vec![0; narrow(PIECE)];
    let mut zeros: u64 = 0;
    for run in data {
        for at in (run.at..run.at.saturating_add(run.len)).step_by(narrow(PIECE)) {
            let len = PIECE.min(run.at.saturating_add(run.len) - at);
            let piece = &mut buf[..narrow(len)];
            let whole = read(layer, at, piece).is_whole();
            zeros = zeros.saturating_add(if whole && piece.iter().all(|byte| *byte == 0) { len } else { 0 });
        }
    }
    zeros
}

/// What a machine's or a disk's owner wants to know first.
fn verdict(health: &Health, absent: usize) -> String {
    match (absent, health.missing - health.not_given, health.trust) {
        (1.., ..) => format!("{absent} disks not found"),
        (0, missing @ 1.., _) => format!("{} missing", report::size(missing)),
        (0, 0, Trust::Sound) if health.not_given > 0 => "raw LUN, not given".into(),
        (0, 0, trust) => trust.word().to_owned(),
    }
}

fn disk_record(disk: &MachineDisk, len: u64, health: &Health) -> Value {
    json!({
        "name": printable(&disk.name), "found": true, "length": len, "data": health.data,
        "trust": health.trust.word(), "missing": health.missing,
        "why": health.reasons.iter().map(|why| why.word()).collect::<Vec<_>>(),
    })
}

/// One finding, as a line or a record.
pub(super) fn show_finding(noted: &Noted, out: &mut Out) -> Result<()> {
    let finding = &noted.finding;
    out.record("finding", finding_record(&noted.about, finding))?;
    let trust = if finding.trust == Trust::Sound { "note" } else { finding.trust.word() };
    out.line(format_args!("  {trust:8} [{}] {}: {}", finding.code, noted.about, printable(finding.text.as_bytes())))
}

/// A word as a shell takes it, from bytes that an attacker may have chosen: nothing in it is run, is an option, or
/// moves the cursor of whoever sees it.
fn quoted(word: &[u8]) -> String {
    let word = if word.starts_with(b"-") { [b"./", word].concat() } else { word.to_vec() };
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"/._-+:,@=%".contains(byte);
    if !word.is_empty() && word.iter().all(plain) {
        return String::from_utf8_lossy(&word).into_owned();
    }
    match std::str::from_utf8(&word) {
        Ok(text) if printable(&word) == text => format!("'{}'", text.replace('\'', "'\\''")),
        // The form in which bash, zsh and ksh take bytes by number.
        _ => {
            let shown = word.iter().map(|byte| match byte {
                b' '..=b'~' if !matches!(byte, b'\'' | b'\\') => char::from(*byte).to_string(),
                // Three octal digits end where they end: after `\x` more digits than two might be taken.
                byte => format!("\\{byte:03o}"),
            });
            format!("$'{}'", shown.collect::<String>())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shell_takes_any_name_as_one_word() {
        for name in [
            &b"plain.raw"[..],
            b"",
            b"a b",
            b"$(id)`id`;id",
            b"it's",
            b"-rf",
            b"a\x1b[2J\n7",
            b"\xff'\\x",
            b"~root",
            "\u{202e}x".as_bytes(),
        ] {
            let line = format!("printf %s {}", quoted(name));
            assert!(line.chars().all(|c| !c.is_control()), "{line:?}");
            let output = std::process::Command::new("bash").args(["-c", &line]).output().unwrap();
            let name = if name.starts_with(b"-") { [b"./", name].concat() } else { name.to_vec() };
            assert_eq!(output.stdout, name, "{line}");
        }
    }
}
