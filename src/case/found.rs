//! `found/CLASS/…`: what no folder of a datastore lists any more, as folders and files like all others.
//!
//! A find that lies in a folder that was found too is shown in that folder; all others are shown under their evidence
//! class, where several datastores have finds under the name of the datastore, and there under the path of the folder
//! that they were in, if that is alive. Two finds of one name get the
//! number of their node behind it, which depends on where they lie and on nothing else.
//!
//! Disks are put together of what was found as they are of what is alive, and shown beside their description: the
//! flattened disk as `NAME.raw`, its volumes in `NAME.volumes/`.

mod called;
mod disks;
mod machines;

pub use machines::{FoundDisk, FoundMachine};

use super::discover::MAX_STORES;
use super::names::Names;
use super::{Case, compose};
use crate::ranges::RangeSet;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::{ControlFlow, Range};
use vdrecover_formats::{Entry, Find, Kind, Node, NodeId, Place, State, Tree, Trust, walk};

/// What the numbers of its nodes start with: behind those of all stores.
pub(super) const NUMBER: u64 = 0xFFFF;
const BASE: u64 = NUMBER * NodeId::LIMIT;
/// The folder `found/`.
pub(super) const ROOT: NodeId = NodeId(BASE | 1);
/// The classes, the most trustworthy first.
const CLASSES: [State; 5] = [State::Orphaned, State::Deleted, State::Reformatted, State::Journal, State::Fragment];

/// What no folder lists any more.
#[derive(Debug)]
pub struct Found {
    names: Names,
    nodes: Vec<FoundNode>,
    /// Where in `nodes`, by node of the case.
    index: HashMap<NodeId, usize>,
    /// Nodes that a disk beside them was put together of.
    parts: Vec<NodeId>,
}

/// A node that was found.
#[derive(Clone, Debug)]
pub struct FoundNode {
    /// Which store it is of.
    pub store: usize,
    /// Its path in the case.
    pub path: Vec<u8>,
    /// What is told of it. Nodes are those of the case, and the name is the one that it has there.
    pub find: Find,
    /// Its length in bytes.
    pub len: u64,
    /// Last change of its content.
    modified: Option<i128>,
    /// Which of all its folder is.
    folder: Option<usize>,
}

impl Found {
    /// The folder `found/` and all below.
    pub(super) fn names(&self) -> &Names {
        &self.names
    }

    /// All nodes, each folder before what is in it.
    #[must_use]
    pub fn nodes(&self) -> &[FoundNode] {
        &self.nodes
    }

    /// One node.
    #[must_use]
    pub fn get(&self, id: NodeId) -> Option<&FoundNode> {
        self.nodes.get(*self.index.get(&id)?)
    }

    /// The machines and disks among it.
    #[must_use]
    pub fn machines(&self, case: &Case) -> Vec<FoundMachine> {
        machines::all(case, self)
    }

    /// Nodes that a disk beside them was put together of.
    pub(super) fn parts(&self) -> impl Iterator<Item = NodeId> {
        self.parts.iter().copied()
    }
}

/// Whether there can be finds: folders of the host have none.
pub(super) fn is_possible(case: &Case) -> bool {
    case.stores.iter().any(|store| store.shown && store.item.is_some())
}

/// Looks for all that was lost and gives it names.
pub(super) fn build(case: &Case) -> Found {
    let mut nodes = collect(case);
    called::name(case, &mut nodes);
    let mut found = Found { names: Names::based(BASE), nodes: Vec::new(), index: HashMap::new(), parts: Vec::new() };
    place(case, nodes, &mut found);
    disks::add(case, &mut found);
    found
}

/// The finds of all stores, each folder before what is in it, with the nodes of the case.
fn collect(case: &Case) -> Vec<FoundNode> {
    let mut all = Vec::new();
    let stores = case.stores.iter().enumerate().filter(|(_, store)| store.shown);
    let stores = stores.map(|(store, found)| (store, store, &found.tree));
    let searched = (MAX_STORES..).zip(&case.searched).map(|(number, (store, tree))| (number, *store, tree));
    let mut whole: Vec<Whole> = case.searched.iter().flat_map(|(store, tree)| wholes(*store, &**tree)).collect();
    for (number, store, tree) in stores.chain(searched) {
        let mut finds = Vec::new();
        tree.finds(&mut |find| {
            let is_piece = number == store && find.entry.state == State::Fragment;
            if !is_piece || !swallow(&mut whole, store, &**tree, &find.entry) {
                finds.push(find);
            }
            ControlFlow::Continue(())
        });
        let known: HashMap<NodeId, usize> = finds.iter().enumerate().map(|(at, find)| (find.entry.id, at)).collect();
        let mut below: BTreeMap<Option<usize>, Vec<usize>> = BTreeMap::new();
        for (at, find) in finds.iter().enumerate() {
            // The parents of what a search put together are nodes of the store, and no finds of its own.
            let parent = find.parent.filter(|_| number == store);
            let folder = parent.and_then(|parent| known.get(&parent).copied()).filter(|folder| *folder != at);
            below.entry(folder).or_default().push(at);
        }
        let mut open: Vec<(usize, Option<usize>)> =
            below.remove(&None).unwrap_or_default().into_iter().rev().map(|at| (at, None)).collect();
        while let Some((at, folder)) = open.pop() {
            let Find { entry, parent, named, mut why } = finds[at].clone();
            let known = whole.iter().find(|whole| number != store && whole.store == store && whole.id == entry.id);
            if let Some(pieces) = known.map(|whole| &whole.pieces).filter(|pieces| !pieces.is_empty()) {
                why = format!("{why}; all of {} is in it", pieces.join(", "));
            }
            let node = tree.node(entry.id).ok();
            let entry = Entry { id: compose(number, entry.id), ..entry };
            let parent = parent.map(|parent| compose(store, parent));
            // Every find is below one other at most, so that each comes up once.
            let inside = below.remove(&Some(at)).unwrap_or_default();
            open.extend(inside.into_iter().rev().map(|inside| (inside, Some(all.len()))));
            all.push(FoundNode {
                store,
                path: Vec::new(),
                find: Find { entry, parent, named, why },
                len: node.as_ref().map_or(0, |node| node.len),
                modified: node.and_then(|node| node.modified),
                folder,
            });
        }
    }
    all
}

/// A disk that a search put together, and where its bytes lie.
struct Whole {
    store: usize,
    id: NodeId,
    /// By the tag of the source.
    places: BTreeMap<u32, RangeSet>,
    /// The names of the fragments that are in it.
    pieces: Vec<String>,
}

fn wholes(store: usize, tree: &dyn Tree) -> Vec<Whole> {
    let mut found = Vec::new();
    tree.finds(&mut |find| {
        let places = places(tree, find.entry.id);
        found.push(Whole { store, id: find.entry.id, places, pieces: Vec::new() });
        ControlFlow::Continue(())
    });
    found
}

/// Where the bytes of a node lie.
fn places(tree: &dyn Tree, id: NodeId) -> BTreeMap<u32, RangeSet> {
    let mut found: BTreeMap<u32, Vec<Range<u64>>> = BTreeMap::new();
    if let Ok(bytes) = tree.open(id) {
        for run in walk(&*bytes, 0..bytes.len()).take(crate::health::LISTING) {
            if let (Place::Own, Some(tag)) = (run.place, run.layer.tag()) {
                found.entry(tag.0).or_default().push(run.offset..run.offset.saturating_add(run.len));
            }
        }
    }
    found.into_iter().map(|(tag, ranges)| (tag, RangeSet::build(ranges))).collect()
}

/// Whether all that a fragment has is in a disk that was put together, which is told then: it need not be shown twice.
fn swallow(whole: &mut [Whole], store: usize, tree: &dyn Tree, entry: &Entry) -> bool {
    if whole.is_empty() {
        return false;
    }
    let own = places(tree, entry.id);
    let inside = |whole: &&mut Whole| {
        let has = |(tag, ranges): (&u32, &RangeSet)| {
            whole.places.get(tag).is_some_and(|all| all.intersect(ranges).total() == ranges.total())
        };
        whole.store == store && !own.is_empty() && own.iter().all(has)
    };
    let Some(whole) = whole.iter_mut().find(inside) else { return false };
    whole.pieces.push(String::from_utf8_lossy(&entry.name).into_owned());
    true
}

/// What keeps names apart: the folder that was found, the store, the class, the folder that is alive, and the name.
type Key = (Option<usize>, usize, State, Option<NodeId>, Vec<u8>);

/// Gives every node its place in the tree.
fn place(case: &Case, nodes: Vec<FoundNode>, found: &mut Found) {
    let several = nodes.iter().any(|node| node.store != nodes[0].store);
    let mut namesakes: HashMap<Key, usize> = HashMap::new();
    let alive = Alive::of(case, &nodes);
    let key = |node: &FoundNode| -> Key {
        // In a folder the class does not keep names apart.
        let (state, parent) = match node.folder {
            Some(_) => (State::Live, None),
            None => (node.find.entry.state, alive.folder(node).map(|(id, _)| id)),
        };
        (node.folder, node.store, state, parent, node.find.entry.name.clone())
    };
    for node in &nodes {
        *namesakes.entry(key(node)).or_default() += 1;
    }
    let mut tops: BTreeMap<(usize, usize), (NodeId, Vec<u8>)> = BTreeMap::new();
    // The classes in their order, whichever comes first.
    let class = |node: &FoundNode| CLASSES.iter().position(|class| *class == node.find.entry.state).unwrap_or(0);
    let mut classes: BTreeMap<usize, NodeId> = BTreeMap::new();
    let mut dirs: HashMap<usize, NodeId> = HashMap::new();
    // Folders that stand for those that are alive.
    let mut shadows: HashMap<(NodeId, Vec<u8>), (NodeId, Vec<u8>)> = HashMap::new();
    let plain = || Node::plain(Kind::Dir, 0, 0o555);
    for (at, mut node) in nodes.into_iter().enumerate() {
        let inside = node.folder.and_then(|folder| Some((*dirs.get(&folder)?, found.nodes.get(folder)?.path.clone())));
        let (dir, above) = inside.unwrap_or_else(|| {
            let class = class(&node);
            let names = &mut found.names;
            let word = CLASSES[class].word().as_bytes();
            let top = tops.entry((class, node.store)).or_insert_with(|| {
                let dir = classes.entry(class).or_insert_with(|| names.dir_as(ROOT, word, plain(), State::Live).0);
                let path = [b"found/", word].concat();
                if !several {
                    return (*dir, path);
                }
                let (dir, name) = names.dir_as(*dir, &case.stores[node.store].name, plain(), State::Live);
                (dir, [&path[..], b"/", &name].concat())
            });
            let (mut dir, mut above) = top.clone();
            for part in alive.folder(&node).into_iter().flat_map(|(_, path)| path.split(|byte| *byte == b'/')) {
                let known = shadows
                    .entry((dir, part.to_vec()))
                    .or_insert_with(|| names.dir_as(dir, part, plain(), State::Live));
                (dir, above) = (known.0, [&above[..], b"/", &known.1].concat());
            }
            (dir, above)
        });
        let mut name = node.find.entry.name.clone();
        if namesakes.get(&key(&node)).is_some_and(|count| *count > 1) {
            name = apart(&name, super::inner(node.find.entry.id));
        }
        let Entry { id, kind, state, .. } = node.find.entry;
        let name = if kind == Kind::Dir {
            let facts = case.node(id).unwrap_or_else(|_| Node { state, trust: Trust::Doubtful, ..plain() });
            let (own, name) = found.names.dir_as(dir, &name, Node { state, ..facts }, state);
            dirs.insert(at, own);
            found.index.insert(own, at);
            name
        } else {
            found.names.link_as(dir, &name, id, kind, state)
        };
        found.index.insert(id, at);
        node.path = [&above[..], b"/", &name].concat();
        node.find.entry.name = name;
        found.nodes.push(node);
    }
}

/// The folders that are alive and had finds in them, by node of the case, with their paths in their stores.
struct Alive(HashMap<NodeId, Vec<u8>>);

impl Alive {
    fn of(case: &Case, nodes: &[FoundNode]) -> Self {
        let wanted: HashSet<NodeId> = nodes.iter().filter_map(|node| node.find.parent).collect();
        let stores = case.stores.iter().enumerate().filter(|_| !wanted.is_empty());
        let folders = stores.flat_map(|(index, store)| {
            let folders = store.files.iter().filter(|file| file.entry.kind == Kind::Dir);
            folders.map(move |file| (compose(index, file.entry.id), &file.path))
        });
        let folders = folders.filter(|(id, _)| wanted.contains(id));
        Self(folders.map(|(id, path)| (id, path.clone())).collect())
    }

    /// The folder that a find was in, other than the top of its store.
    fn folder(&self, node: &FoundNode) -> Option<(NodeId, &[u8])> {
        let parent = node.find.parent.filter(|_| node.folder.is_none())?;
        self.0.get(&parent).map(|path| (parent, &path[..]))
    }
}

/// A name with the number of its node in it, before the suffix.
fn apart(name: &[u8], id: NodeId) -> Vec<u8> {
    let mark = format!("~{:x}", id.0).into_bytes();
    let dot = name.iter().rposition(|byte| *byte == b'.').filter(|dot| *dot > 0 && name.len() - dot <= 8);
    let (stem, suffix) = name.split_at(dot.unwrap_or(name.len()));
    [stem, &mark, suffix].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_apart_keep_their_suffix() {
        assert_eq!(apart(b"web-flat.vmdk", NodeId(0x1c4)), b"web-flat~1c4.vmdk");
        assert_eq!(apart(b".hidden", NodeId(4)), b".hidden~4");
        assert_eq!(apart(b"a", NodeId(4)), b"a~4");
        assert_eq!(apart(b"name.with a long end", NodeId(4)), b"name.with a long end~4");
    }
}
