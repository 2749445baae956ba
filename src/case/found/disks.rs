//! Disks of what was found, put together as those that are alive: extents and parents by their names, among what lies
//! in the same folder, and in the folder where the finds were before.

use super::super::discover::recognise;
use super::super::{Case, Origin, inner, paths};
use super::Found;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use vdrecover_formats::adapt::Trusted;
use vdrecover_formats::format::Holds;
use vdrecover_formats::link::Volume;
use vdrecover_formats::{Bytes, Content, Kind, Node, NodeId, Role, State, Tree, Trust, Want};

/// Files that are looked at to see whether they are disks.
const MOST: usize = 20_000;
/// Longest chain of parents.
const DEEP: usize = 64;
/// Shorter files hold no volume.
const SMALLEST: u64 = 1 << 20;

/// A disk that was put together.
#[derive(Clone)]
struct Made {
    bytes: Bytes,
    /// Whether it is more than the bytes of its file.
    is_own: bool,
    /// What it was put together of.
    parts: Vec<NodeId>,
}

/// Where finds are looked up by name.
type Place = (usize, Option<usize>, Option<NodeId>);

/// Adds all disks, and the volumes on them, beside the files that they are in.
pub(super) fn add(case: &Case, found: &mut Found) {
    let mut maker = Maker { case, found, by_name: HashMap::new(), made: HashMap::new(), open: HashSet::new() };
    for at in 0..maker.found.nodes.len() {
        let node = &maker.found.nodes[at];
        maker.by_name.entry((maker.place(at), node.find.entry.name.clone())).or_insert(at);
    }
    let images: Vec<usize> = (0..maker.found.nodes.len()).filter(|at| maker.is_image(*at)).take(MOST).collect();
    let disks: Vec<(usize, Made)> = images.into_iter().filter_map(|at| Some((at, maker.make(at, 0)?))).collect();
    let used: HashSet<NodeId> = disks.iter().flat_map(|(_, made)| made.parts.iter().copied()).collect();
    for (at, made) in disks {
        // What is a part of another disk is none itself.
        if !used.contains(&found.nodes[at].find.entry.id) {
            show(case, found, at, &made);
        }
    }
    found.parts = used.into_iter().filter(|id| found.index.contains_key(id)).collect();
    found.parts.sort_unstable();
}

/// Names a disk and its volumes.
fn show(case: &Case, found: &mut Found, at: usize, made: &Made) {
    let node = &found.nodes[at];
    let name = &node.find.entry.name;
    let stem = name.strip_suffix(b".vmdk").unwrap_or(name).to_vec();
    let stem = stem.strip_suffix(b"-flat").map_or(stem.clone(), <[u8]>::to_vec);
    let Some(dir) = folder_of(found, at) else { return };
    let (modified, state) = (found.nodes[at].modified, found.nodes[at].find.entry.state);
    let facts =
        |bytes: &Bytes| Node { modified, state, trust: Trust::Inferred, ..Node::plain(Kind::File, bytes.len(), 0o444) };
    if made.is_own {
        found.names.made(dir, &[&stem[..], b".raw"].concat(), made.bytes.clone(), facts(&made.bytes));
    }
    let volumes = volumes(case, &made.bytes);
    if !volumes.is_empty() {
        let node = Node { state, ..Node::plain(Kind::Dir, 0, 0o555) };
        let (dir, _) = found.names.dir_as(dir, &[&stem[..], b".volumes"].concat(), node, state);
        for volume in volumes {
            let name = [&volume.name[..], b".raw"].concat();
            found.names.made(dir, &name, volume.bytes.clone(), facts(&volume.bytes));
        }
    }
}

/// The folder that a find is shown in.
fn folder_of(found: &Found, at: usize) -> Option<NodeId> {
    let path = paths::split(&found.nodes[at].path).0;
    let below = path.strip_prefix(b"found")?;
    paths::resolve(&found.names, super::ROOT, below).ok().flatten().map(|entry| entry.id)
}

/// The volumes on a disk.
fn volumes(case: &Case, bytes: &Bytes) -> Vec<Volume> {
    if bytes.len() < SMALLEST {
        return Vec::new();
    }
    let (_, opened, _) = recognise(bytes, case, |holds| holds == Holds::Volumes);
    match opened.wants.is_empty().then(|| (opened.join)(&[])) {
        Some(Ok(Content::Volumes(volumes))) => volumes,
        _ => Vec::new(),
    }
}

struct Maker<'a> {
    case: &'a Case,
    found: &'a Found,
    by_name: HashMap<(Place, Vec<u8>), usize>,
    made: HashMap<usize, Option<Made>>,
    /// Disks whose parents are being made: a chain that leads back to itself ends there.
    open: HashSet<usize>,
}

impl Maker<'_> {
    fn place(&self, at: usize) -> Place {
        let node = &self.found.nodes[at];
        (node.store, node.folder, node.find.parent)
    }

    fn is_image(&self, at: usize) -> bool {
        let node = &self.found.nodes[at];
        let entry = &node.find.entry;
        let named = entry.name.to_ascii_lowercase().ends_with(b".vmdk");
        entry.kind == Kind::File && node.len > 0 && (named || entry.state == State::Fragment)
    }

    /// The disk that a file is.
    fn make(&mut self, at: usize, depth: usize) -> Option<Made> {
        if let Some(made) = self.made.get(&at) {
            return made.clone();
        }
        if depth >= DEEP || !self.open.insert(at) {
            return None;
        }
        let made = self.put_together(at, depth);
        self.open.remove(&at);
        self.made.insert(at, made.clone());
        made
    }

    fn put_together(&mut self, at: usize, depth: usize) -> Option<Made> {
        let id = self.found.nodes[at].find.entry.id;
        let bytes = self.case.open(id).ok()?;
        let (format, opened, _) = recognise(&bytes, self.case, |holds| holds == Holds::Disk);
        if format.name == "raw" {
            return Some(Made { bytes, is_own: false, parts: Vec::new() });
        }
        let mut parts = Vec::new();
        let layers: Vec<Option<Bytes>> = opened
            .wants
            .iter()
            .map(|want| {
                let bytes = self.meet(at, want, &mut parts, depth)?;
                let trusted: Bytes = Arc::new(Trusted::new(bytes, Trust::Inferred));
                Some(trusted)
            })
            .collect();
        match (opened.join)(&layers).ok()? {
            Content::Disks(disks) => {
                let bytes = disks.into_iter().next()?.bytes;
                Some(Made { bytes, is_own: true, parts })
            }
            _ => None,
        }
    }

    /// The bytes for a want: found beside it, else still alive in the folder where it was.
    fn meet(&mut self, at: usize, want: &Want, parts: &mut Vec<NodeId>, depth: usize) -> Option<Bytes> {
        let name = paths::last_part(want.hint.as_deref()?).to_vec();
        let found = self.by_name.get(&(self.place(at), name.clone())).copied().filter(|other| *other != at);
        if let Some(other) = found {
            let id = self.found.nodes[other].find.entry.id;
            return match want.role {
                Role::Parent => self.make(other, depth + 1).map(|made| made.bytes),
                Role::Extent | Role::DataFile => {
                    parts.push(id);
                    self.case.open(id).ok()
                }
                Role::Member => None,
            };
        }
        let node = &self.found.nodes[at];
        let store = self.case.stores.get(node.store)?;
        let dir = inner(node.find.parent?);
        let entry = store.tree.lookup(dir, &name).ok().flatten().filter(|entry| entry.kind == Kind::File)?;
        if want.role != Role::Parent {
            return store.tree.open(entry.id).ok();
        }
        let is_it = |origin: &Origin| match origin {
            Origin::File { store, entry: own, .. } => *store == node.store && own.id == entry.id,
            _ => false,
        };
        self.case.items.iter().find(|item| is_it(&item.origin)).map(super::super::Item::disk)
    }
}
