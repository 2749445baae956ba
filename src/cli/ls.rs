//! `vdrecover ls`: what is in an image.

use super::out::Out;
use super::{Global, Outcome};
use crate::case::{Case, FoundNode, Hashes};
use crate::health::{self, Health};
use crate::locator::{self, Locator};
use crate::report;
use anyhow::Result;
use base64::Engine;
use clap::Args;
use serde_json::{Value, json};
use std::collections::HashSet;
use std::ffi::OsString;
use std::ops::ControlFlow;
use vdrecover_formats::{Entry, Finding, Kind, Node, NodeId, State, Tree, Trust};

/// Arguments of `ls`.
#[derive(Debug, Args)]
pub(super) struct Command {
    /// IMAGE, or `IMAGE::PATH` for a folder or file in it
    #[arg(value_name = "LOCATOR")]
    locator: OsString,
    /// One line each: type and mode, size, time, state, trust, missing bytes
    #[arg(short)]
    long: bool,
    /// Folders below too
    #[arg(short = 'R')]
    recursive: bool,
    /// Names that start with a dot too, and nodes that no folder lists any more
    #[arg(long)]
    all: bool,
}

pub(super) fn run(command: &Command, global: &Global, out: &mut Out) -> Result<Outcome> {
    let locator = Locator::parse(&command.locator);
    let case = global.open(std::slice::from_ref(&locator.image), true, out)?;
    // Names alone say nothing of content.
    if command.long || out.json {
        global.compare(&case);
    }
    let path = locator.path.clone().unwrap_or_default();
    let start = locator::find(&case, &path)?;
    let hashes = Hashes::load(&case, global.case.as_deref());
    let mut listing = Listing { case: &case, command, out, hashes, worst: Outcome::Sound };
    if start.entry.kind == Kind::Dir {
        listing.folder(start.entry.id, &path)?;
    } else {
        listing.entry(&start.entry, &path)?;
    }
    let worst = listing.worst;
    let doubts = if start.entry.kind == Kind::Dir { case.doubts(&path) } else { Vec::new() };
    for noted in &doubts {
        let about = &noted.about;
        out.record("finding", finding_record(about, &noted.finding))?;
        if !out.json {
            out.error(&format!("{about}: {} {}", noted.finding.code, noted.finding.text));
        }
    }
    let incomplete = !case.failed.is_empty() || !doubts.is_empty();
    Ok(worst.max(Outcome::doubt_if(incomplete)))
}

struct Listing<'a> {
    case: &'a Case,
    command: &'a Command,
    out: &'a mut Out,
    hashes: Hashes,
    worst: Outcome,
}

impl Listing<'_> {
    /// Lists a folder, and with `-R` all below it. A loop of folders is listed once.
    fn folder(&mut self, start: NodeId, path: &[u8]) -> Result<()> {
        let mut seen = HashSet::from([start]);
        let mut todo = vec![(start, path.to_vec())];
        while let Some((dir, path)) = todo.pop() {
            let (mut entries, mut findings) = (Vec::new(), Vec::new());
            let listed = self.case.list(dir, 0, &mut |entry| {
                match entry {
                    Ok(entry) if entry.name.starts_with(b".") && !self.command.all => {}
                    Ok(entry) => entries.push(entry),
                    Err(finding) => findings.push(finding),
                }
                ControlFlow::Continue(())
            });
            entries.sort_by(|a, b| a.name.cmp(&b.name));
            let mut below = Vec::new();
            for entry in entries {
                let path = join(&path, &entry.name);
                if entry.kind == Kind::Dir && self.command.recursive && seen.insert(entry.id) {
                    below.push((entry.id, path.clone()));
                }
                self.entry(&entry, &path)?;
            }
            // Where all of the tree is listed, they are told in `found/`.
            if self.command.all && !(self.command.recursive && start == self.case.root()) {
                self.lost(dir)?;
            }
            for finding in findings {
                self.finding(&path, &finding)?;
            }
            if let Err(error) = listed {
                self.worst = Outcome::Doubt;
                self.out.error(&format!("{}: {error}", report::printable(&path)));
            }
            // The first folder comes next.
            todo.extend(below.into_iter().rev());
        }
        Ok(())
    }

    fn entry(&mut self, entry: &Entry, path: &[u8]) -> Result<()> {
        self.shown_as(entry, path, self.command.recursive)
    }

    /// One line, with the whole path or the name only.
    fn shown_as(&mut self, entry: &Entry, path: &[u8], whole: bool) -> Result<()> {
        let shown = if whole { path } else { &entry.name };
        if !self.command.long && !self.out.json {
            let slash = if entry.kind == Kind::Dir { "/" } else { "" };
            return self.out.line(format_args!("{}{slash}", report::printable(shown)));
        }
        let node = match self.case.node(entry.id) {
            Ok(node) => node,
            Err(error) => return self.unknown(entry, path, shown, &error),
        };
        let health = content_health(self.case, entry, &node);
        // What was deleted is not what was asked for to be whole.
        if entry.state == State::Live && !health.is_sound() {
            self.worst = Outcome::Doubt;
        }
        let against = self.case.contradicted(entry.id);
        if self.out.json {
            let mut record = record(path, entry, &node, &health);
            if entry.state == State::Live {
                let words = [(None, "unchecked"), (Some(false), "none"), (Some(true), "shared")];
                let is_shared = self.case.is_shared(entry.id);
                let word = words.iter().find(|(known, _)| *known == is_shared).map(|(_, word)| *word);
                record["cross_links"] = word.into();
            }
            if !against.is_empty() {
                record["contradicted"] = against.into();
            }
            if let Some(find) = (entry.state != State::Live).then(|| self.case.found(entry.id)).flatten() {
                record["named_by"] = find.named.word().into();
                record["why"] = find.why.into();
                record["map"] = health.sums();
            }
            if let Some(hash) = self.hashes.get(path) {
                record["sha256"] = hash.into();
            }
            return self.out.record("entry", record);
        }
        let missing = match (health.missing - health.not_given, health.not_given) {
            (0, 0) => String::new(),
            (0, bytes) => format!(" {} on a LUN that was not given", report::size(bytes)),
            (bytes, _) => format!(" {} missing", report::size(bytes)),
        };
        let target = if entry.kind == Kind::Symlink { link_text(self.case, entry.id) } else { String::new() };
        self.out.line(format_args!(
            "{} {:>5} {:>5} {:>16} {} {:8} {:8} {}{target}{missing}",
            mode_text(&node),
            node.uid,
            node.gid,
            node.len,
            report::short_time(node.modified),
            entry.state.word(),
            health.trust.word(),
            report::printable(shown),
        ))?;
        for why in &against {
            self.out.error(why);
        }
        Ok(())
    }

    /// The line of an entry of which nothing but its name is known: neither how long it is nor how much of it is missing.
    fn unknown(&mut self, entry: &Entry, path: &[u8], shown: &[u8], error: &vdrecover_formats::Error) -> Result<()> {
        if entry.state == State::Live {
            self.worst = Outcome::Doubt;
        }
        self.out.error(&format!("{}: {error}", report::printable(path)));
        if self.out.json {
            let node = Node { state: entry.state, ..Node::plain(entry.kind, 0, 0) };
            let health = Health { trust: Trust::Doubtful, partial: true, ..Health::default() };
            let mut record = record(path, entry, &node, &health);
            for fact in ["size", "mode", "uid", "gid", "links", "missing"] {
                record[fact] = Value::Null;
            }
            return self.out.record("entry", record);
        }
        self.out.line(format_args!(
            "{} {:>5} {:>5} {:>16} {} {:8} {:8} {} ? missing",
            "?".repeat(10),
            "?",
            "?",
            "?",
            report::short_time(None),
            entry.state.word(),
            Trust::Doubtful.word(),
            report::printable(shown),
        ))
    }

    fn finding(&mut self, path: &[u8], finding: &Finding) -> Result<()> {
        self.worst = Outcome::Doubt;
        let about = report::printable(path);
        self.out.record("finding", finding_record(&about, finding))?;
        if !self.out.json {
            self.out.error(&format!("{about}: {} {}", finding.code, finding.text));
        }
        Ok(())
    }

    /// What was in a folder and is listed there no more, under the path that it is found by. At the top of a store also
    /// that of which nothing says where it was.
    fn lost(&mut self, dir: NodeId) -> Result<()> {
        let store = |at: &usize| crate::case::compose(*at, self.case.stores[*at].tree.root()) == dir;
        let top = (0..self.case.stores.len()).find(store);
        // A folder of the case's own had nothing that could get lost.
        if top.is_none() && dir.0 < NodeId::LIMIT {
            return Ok(());
        }
        let lost = self.case.lost();
        let was_here = |node: &&FoundNode| match node.find.parent {
            Some(parent) => parent == dir,
            None => top == Some(node.store),
        };
        for node in lost.nodes().iter().filter(was_here) {
            self.shown_as(&node.find.entry, &node.path, true)?;
        }
        Ok(())
    }
}

fn join(folder: &[u8], name: &[u8]) -> Vec<u8> {
    if folder.is_empty() { name.to_vec() } else { [folder, b"/", name].concat() }
}

/// The health of a node's content; of a folder, what is known of the folder itself.
pub(super) fn content_health(case: &Case, entry: &Entry, node: &Node) -> Health {
    let own = Health { trust: node.trust, ..Health::default() };
    match entry.kind {
        Kind::File | Kind::Symlink | Kind::Mapping | Kind::Stream => match case.open(entry.id) {
            Ok(bytes) => {
                let health = health::of(&*bytes, health::LISTING);
                Health { trust: health.trust.max(node.trust), ..health }
            }
            // What can't be opened is missing as a whole.
            Err(_) => Health { missing: node.len, trust: Trust::Doubtful, ..own },
        },
        Kind::Dir | Kind::Xattr | Kind::Special => own,
    }
}

/// A listing record of `docs/json.md`.
pub(super) fn record(path: &[u8], entry: &Entry, node: &Node, health: &Health) -> Value {
    let time = |nanos: Option<i128>| nanos.and_then(report::time);
    let mut record = json!({
        "path": String::from_utf8_lossy(path),
        "type": entry.kind.word(),
        "size": node.len,
        "mode": format!("{:04o}", node.mode),
        "uid": node.uid,
        "gid": node.gid,
        "links": node.links,
        "mtime": time(node.modified),
        "ctime": time(node.changed),
        "atime": time(node.accessed),
        "state": entry.state.word(),
        "trust": health.trust.word(),
        "missing": health.missing,
        "missing_is_exact": !health.partial,
        "not_given": health.not_given,
        "cross_links": "unchecked",
    });
    if std::str::from_utf8(path).is_err()
        && let Some(record) = record.as_object_mut()
    {
        record.insert("path_b64".into(), base64::engine::general_purpose::STANDARD.encode(path).into());
    }
    record
}

/// A finding record of `docs/json.md`.
pub(super) fn finding_record(about: &str, finding: &Finding) -> Value {
    json!({
        "about": about,
        "code": finding.code,
        "trust": finding.trust.word(),
        "start": finding.range.start,
        "end": finding.range.end,
        "text": finding.text,
    })
}

/// ` -> target` of a symbolic link.
fn link_text(case: &Case, id: NodeId) -> String {
    let Ok(bytes) = case.open(id) else { return " -> ?".into() };
    let len = usize::try_from(bytes.len().min(4096)).unwrap_or(0);
    let (text, seen) = vdrecover_formats::read_vec(&*bytes, 0, len);
    if seen.is_whole() { format!(" -> {}", report::printable(&text)) } else { " -> ?".into() }
}

fn mode_text(node: &Node) -> String {
    let kind = match node.kind {
        Kind::Dir => 'd',
        Kind::Symlink => 'l',
        Kind::Mapping => 'r',
        Kind::Special => 'c',
        Kind::File | Kind::Stream | Kind::Xattr => '-',
    };
    let bit = |shift: u32, letter: char| if node.mode >> shift & 1 == 1 { letter } else { '-' };
    // Set-user-id, set-group-id and the sticky bit stand where the x of their group stands.
    let special = |at: u32, letter: char| match (node.mode >> (11 - at / 3) & 1, letter) {
        (0, letter) => letter,
        (_, 'x') => {
            if at == 8 {
                't'
            } else {
                's'
            }
        }
        (_, _) => {
            if at == 8 {
                'T'
            } else {
                'S'
            }
        }
    };
    let bits = (0..9).map(|at| {
        let letter = bit(8 - at, ['r', 'w', 'x'][at as usize % 3]);
        if at % 3 == 2 { special(at, letter) } else { letter }
    });
    std::iter::once(kind).chain(bits).collect()
}
