//! The names of the case: `vms/`, `disks/`, `files/`, `store/`. What lies in a store is linked, not repeated.

use super::item::ItemId;
use super::machines::MachineDisk;
use super::{Case, compose};
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use vdrecover_formats::format::Holds;
use vdrecover_formats::tree::Lister;
use vdrecover_formats::{Bytes, Content, Entry, Error, Kind, Node, NodeId, State, Tree};

/// The case's own folders and disks. Nodes of stores appear in them under their composed number.
#[derive(Debug, Default)]
pub struct Names {
    /// The node `n` is at `n - 1`; the root is 1, as the mount wants it.
    nodes: Vec<Named>,
    /// What the numbers of its nodes start with.
    base: u64,
}

#[derive(Debug)]
enum Named {
    Dir {
        entries: BTreeMap<Vec<u8>, Linked>,
        node: Node,
    },
    Disk {
        target: Target,
        node: Node,
    },
    /// A disk put together of what was found.
    Made {
        bytes: Bytes,
        node: Node,
    },
}

/// What a name leads to.
#[derive(Clone, Copy, Debug)]
struct Linked {
    id: NodeId,
    kind: Kind,
    state: State,
}

impl Linked {
    fn entry(self, name: &[u8], next: u64) -> Entry {
        Entry { name: name.to_vec(), id: self.id, kind: self.kind, state: self.state, next }
    }
}

/// A disk or volume that the case made a name for.
#[derive(Clone, Debug)]
pub struct Target {
    /// Its bytes, as a guest sees them.
    pub bytes: Bytes,
    /// The item that they come from.
    pub item: ItemId,
}

const ROOT: NodeId = NodeId(1);

impl Names {
    /// The disk that a node is.
    #[must_use]
    pub fn target(&self, id: NodeId) -> Option<&Target> {
        match self.get(id) {
            Ok(Named::Disk { target, .. }) => Some(target),
            _ => None,
        }
    }

    /// Names whose nodes' numbers start with `base`, with a root.
    pub(super) fn based(base: u64) -> Self {
        let mut names = Self { nodes: Vec::new(), base };
        names.push(Named::Dir { entries: BTreeMap::new(), node: Node::plain(Kind::Dir, 0, 0o555) });
        names
    }

    fn get(&self, id: NodeId) -> Result<&Named, Error> {
        let at = usize::try_from(super::inner(id).0).ok().and_then(|at| at.checked_sub(1));
        at.and_then(|at| self.nodes.get(at)).ok_or(Error::NotFound)
    }

    fn push(&mut self, named: Named) -> NodeId {
        self.nodes.push(named);
        NodeId(self.base | self.nodes.len() as u64)
    }

    fn link(&mut self, dir: NodeId, name: &[u8], id: NodeId, kind: Kind) {
        self.link_as(dir, name, id, kind, State::Live);
    }

    /// Gives a node a name in a folder; the name that it got, which is another where the folder has it already.
    pub(super) fn link_as(&mut self, dir: NodeId, name: &[u8], id: NodeId, kind: Kind, state: State) -> Vec<u8> {
        let name = safe(name);
        let at = usize::try_from(super::inner(dir).0).ok().and_then(|at| at.checked_sub(1));
        if let Some(Named::Dir { entries, .. }) = at.and_then(|at| self.nodes.get_mut(at)) {
            let free = |name: &[u8]| !entries.contains_key(name);
            // Callers keep names apart; this catches what two hostile names become when they are made safe.
            let name = (1..=entries.len() + 1)
                .map(|n| if n == 1 { name.clone() } else { [name.as_slice(), format!("~{n}").as_bytes()].concat() })
                .find(|name| free(name));
            entries.extend(name.clone().map(|name| (name, Linked { id, kind, state })));
            return name.unwrap_or_default();
        }
        name
    }

    fn dir(&mut self, parent: NodeId, name: &[u8]) -> NodeId {
        self.dir_as(parent, name, Node::plain(Kind::Dir, 0, 0o555), State::Live).0
    }

    /// A folder of the case's own that stands for another one.
    pub(super) fn dir_as(&mut self, parent: NodeId, name: &[u8], node: Node, state: State) -> (NodeId, Vec<u8>) {
        let id = self.push(Named::Dir { entries: BTreeMap::new(), node });
        let name = self.link_as(parent, name, id, Kind::Dir, state);
        (id, name)
    }

    /// A disk that was put together.
    pub(super) fn made(&mut self, parent: NodeId, name: &[u8], bytes: Bytes, node: Node) {
        let state = node.state;
        let id = self.push(Named::Made { bytes, node });
        self.link_as(parent, name, id, Kind::File, state);
    }

    fn disk(
        &mut self,
        parent: NodeId,
        name: &[u8],
        target: Target,
        modified: Option<i128>,
        trust: vdrecover_formats::Trust,
    ) {
        let node = Node { modified, trust, ..Node::plain(Kind::File, target.bytes.len(), 0o444) };
        let id = self.push(Named::Disk { target, node });
        self.link(parent, name, id, Kind::File);
    }
}

/// A name that every kernel and shell can hold: no separator, no NUL, never empty or a dot folder.
pub(super) fn safe(name: &[u8]) -> Vec<u8> {
    let name: Vec<u8> = name.iter().map(|byte| if matches!(byte, b'/' | 0) { b'_' } else { *byte }).take(240).collect();
    match name.as_slice() {
        b"" | b"." | b".." => [b"_", name.as_slice()].concat(),
        _ => name,
    }
}

/// Makes the names of a case.
pub(super) fn build(case: &Case) -> Names {
    let mut names = Names::based(0);
    let root = ROOT;
    if !case.machines.is_empty() {
        let vms = names.dir(root, b"vms");
        for machine in &case.machines {
            let dir = names.dir(vms, &machine.name);
            for file in machine.files.iter().filter_map(|at| case.stores[machine.store].files.get(*at)) {
                names.link(dir, &file.entry.name, compose(machine.store, file.entry.id), file.entry.kind);
            }
            add_disks(case, &mut names, dir, &machine.disks);
            if !machine.snapshots.is_empty() {
                let snapshots = names.dir(dir, b"snapshots");
                for snapshot in &machine.snapshots {
                    let name = [format!("{}-", snapshot.uid).as_bytes(), &snapshot.name].concat();
                    let dir = names.dir(snapshots, &name);
                    add_disks(case, &mut names, dir, &snapshot.disks);
                }
            }
            if !machine.tips.is_empty() {
                let tips = names.dir(dir, b"tips");
                add_disks(case, &mut names, tips, &machine.tips);
            }
        }
    }
    add_loose(case, &mut names, root);
    add_volumes(case, &mut names, root);
    if case.stores.iter().any(|store| store.shown) {
        let dir = names.dir(root, b"store");
        for (index, store) in case.stores.iter().enumerate().filter(|(_, store)| store.shown) {
            names.link(dir, &store.name, compose(index, store.tree.root()), Kind::Dir);
        }
    }
    // What is in it is looked for when somebody looks into it.
    if super::found::is_possible(case) {
        names.link(root, b"found", super::found::ROOT, Kind::Dir);
    }
    names
}

fn add_disks(case: &Case, names: &mut Names, dir: NodeId, disks: &[MachineDisk]) {
    for disk in disks {
        if let Some(item) = disk.item {
            add_disk(case, names, dir, &disk.name, item);
        }
    }
}

fn add_disk(case: &Case, names: &mut Names, dir: NodeId, name: &[u8], item: ItemId) {
    let target = Target { bytes: case.items[item].disk(), item };
    let trust = case.items[item].trust();
    names.disk(dir, &[name, b".raw"].concat(), target, modified(case, item), trust);
    // Internal snapshots are disks of their own, beside the current state.
    if let Some(Content::Disks(disks)) = case.items[item].content() {
        for snapshot in disks.iter().skip(1) {
            let name = [name, b"@", &snapshot.name, b".raw"].concat();
            let target = Target { bytes: snapshot.bytes.clone(), item };
            names.disk(dir, &name, target, modified(case, item), trust);
        }
    }
}

/// The last change of the newest file that a disk is made of, as far as it is known.
fn modified(case: &Case, item: ItemId) -> Option<i128> {
    use super::Origin;
    match &case.items[item].origin {
        Origin::File { store, entry, .. } => {
            let own = case.stores[*store].tree.node(entry.id).ok().and_then(|node| node.modified);
            let parts =
                case.items.iter().filter(|part| part.used_by == Some(item)).filter_map(|part| match &part.origin {
                    Origin::File { store, entry, .. } => case.stores[*store].tree.node(entry.id).ok()?.modified,
                    _ => None,
                });
            parts.chain(own).max()
        }
        Origin::Source(source) => source.modified_nanos().and_then(|nanos| i128::try_from(nanos).ok()),
        Origin::Inside(of) | Origin::Volume { of, .. } => modified(case, *of),
    }
}

/// Name of a loose disk: its file's, without what says only which format it has.
fn loose_name(case: &Case, item: ItemId) -> Vec<u8> {
    const SUFFIXES: [&[u8]; 10] =
        [b"-flat.vmdk", b".vmdk", b".qcow2", b".qcow", b".img", b".raw", b".dd", b".vhd", b".vhdx", b".vdi"];
    let name = case.items[item].file_name().unwrap_or(b"disk");
    let lower = name.to_ascii_lowercase();
    let suffix = SUFFIXES.iter().find(|suffix| lower.ends_with(suffix) && lower.len() > suffix.len());
    name.get(..name.len() - suffix.map_or(0, |suffix| suffix.len())).unwrap_or(name).to_vec()
}

fn loose_names(case: &Case) -> Vec<(Vec<u8>, ItemId)> {
    let names: Vec<Vec<u8>> = case.loose.iter().map(|item| loose_name(case, *item)).collect();
    let mut counts: BTreeMap<&[u8], usize> = BTreeMap::new();
    for name in &names {
        *counts.entry(name).or_default() += 1;
    }
    let pairs = case.loose.iter().zip(&names).map(|(item, name)| {
        let clash = counts.get(name.as_slice()).is_some_and(|count| *count > 1);
        // An item's number depends on what was given only, never on time or threads.
        let name = if clash { [name.as_slice(), format!("~{item}").as_bytes()].concat() } else { name.clone() };
        (name, *item)
    });
    pairs.collect()
}

fn add_loose(case: &Case, names: &mut Names, root: NodeId) {
    if case.loose.is_empty() {
        return;
    }
    let dir = names.dir(root, b"disks");
    for (name, item) in loose_names(case) {
        add_disk(case, names, dir, &name, item);
    }
}

/// `files/VM/DISK/VOLUME.raw` and `files/DISK/VOLUME.raw`.
fn add_volumes(case: &Case, names: &mut Names, root: NodeId) {
    let mut top = None;
    for machine in &case.machines {
        let mut own = None;
        for disk in &machine.disks {
            let Some(volumes) = disk.item.map(|item| volumes(case, item)).filter(|found| !found.is_empty()) else {
                continue;
            };
            let files = *top.get_or_insert_with(|| names.dir(root, b"files"));
            let dir = *own.get_or_insert_with(|| names.dir(files, &machine.name));
            let dir = names.dir(dir, &disk.name);
            add_volume_files(names, dir, volumes);
        }
    }
    for (name, item) in loose_names(case).into_iter().chain(holders(case)) {
        let volumes = volumes(case, item);
        if !volumes.is_empty() {
            let files = *top.get_or_insert_with(|| names.dir(root, b"files"));
            let dir = names.dir(files, &name);
            add_volume_files(names, dir, volumes);
        }
    }
}

/// Inputs that hold a datastore: no disks of their own, but an ESXi boot disk has other volumes beside it.
fn holders(case: &Case) -> Vec<(Vec<u8>, ItemId)> {
    let items = case.items.iter().enumerate();
    let inputs = items.filter(|(id, item)| match &item.origin {
        super::Origin::Source(source) => {
            let given = case.inputs.iter().any(|input| std::sync::Arc::ptr_eq(input, source));
            given && item.used_by.is_none() && item.children.is_empty() && !case.loose.contains(id)
        }
        _ => false,
    });
    inputs.map(|(id, _)| ([loose_name(case, id).as_slice(), format!("~{id}").as_bytes()].concat(), id)).collect()
}

fn add_volume_files(names: &mut Names, dir: NodeId, volumes: Vec<(Vec<u8>, Target)>) {
    for (name, target) in volumes {
        names.disk(dir, &[name.as_slice(), b".raw"].concat(), target, None, vdrecover_formats::Trust::Sound);
    }
}

/// The volumes on a disk: of the item itself, or of what was recognised inside of it.
fn volumes(case: &Case, item: ItemId) -> Vec<(Vec<u8>, Target)> {
    use super::Origin;
    let inside =
        case.items.iter().enumerate().filter(|(_, other)| matches!(other.origin, Origin::Inside(of) if of == item));
    let holders = std::iter::once((item, &case.items[item])).chain(inside);
    let mut found = Vec::new();
    for (id, holder) in holders {
        if let Some(Content::Volumes(volumes)) = holder.content() {
            for (number, volume) in volumes.iter().enumerate() {
                // A datastore is in `store/`.
                let is_store = case.items.iter().any(|item| {
                    let here = matches!(item.origin, Origin::Volume { of, number: own } if of == id && own == number);
                    here && item.format.holds == Holds::Files
                });
                if !is_store {
                    let target = Target { bytes: volume.bytes.clone(), item: id };
                    found.push((volume.name.clone(), target));
                }
            }
        }
    }
    found
}

impl Tree for Names {
    fn root(&self) -> NodeId {
        NodeId(self.base | ROOT.0)
    }

    fn node(&self, id: NodeId) -> Result<Node, Error> {
        match self.get(id)? {
            Named::Dir { entries, node } => {
                let dirs = entries.values().filter(|linked| linked.kind == Kind::Dir).count();
                Ok(Node { links: u32::try_from(dirs + 2).unwrap_or(u32::MAX), ..node.clone() })
            }
            Named::Disk { node, .. } | Named::Made { node, .. } => Ok(node.clone()),
        }
    }

    fn list(&self, dir: NodeId, from: u64, sink: Lister<'_>) -> Result<(), Error> {
        let Named::Dir { entries, .. } = self.get(dir)? else { return Err(Error::NotFolder) };
        let skip = usize::try_from(from).unwrap_or(usize::MAX);
        for (at, (name, linked)) in entries.iter().enumerate().skip(skip) {
            if sink(Ok(linked.entry(name, at as u64 + 1))) == ControlFlow::Break(()) {
                break;
            }
        }
        Ok(())
    }

    fn lookup(&self, dir: NodeId, name: &[u8]) -> Result<Option<Entry>, Error> {
        let Named::Dir { entries, .. } = self.get(dir)? else { return Err(Error::NotFolder) };
        Ok(entries.get(name).map(|linked| linked.entry(name, 0)))
    }

    fn open(&self, id: NodeId) -> Result<Bytes, Error> {
        match self.get(id)? {
            Named::Dir { .. } => Err(Error::NotFile),
            Named::Disk { target, .. } => Ok(target.bytes.clone()),
            Named::Made { bytes, .. } => Ok(bytes.clone()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_names_are_made_safe_and_kept_apart() {
        let mut names = Names::based(0);
        let root = ROOT;
        for name in [&b"../x"[..], b".._x", b"..", b"", b"a\0b"] {
            names.dir(root, name);
        }
        let mut listed = Vec::new();
        let all = &mut |entry: Result<Entry, _>| {
            listed.push(String::from_utf8(entry.unwrap().name).unwrap());
            ControlFlow::Continue(())
        };
        names.list(root, 0, all).unwrap();
        assert_eq!(listed, [".._x", ".._x~2", "_", "_..", "a_b"]);
    }
}
