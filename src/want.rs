//! What of each device is needed for some files, disks or machines, or for the names of all: the domain of a rescue.
//!
//! A device that is dying is read where it matters first. Nothing can be opened without what describes it, so that
//! partition tables, the datastore's own headers and bitmaps, all folders and what names the machines always belong
//! to the answer; of everything else only what the wanted has.

use crate::audit::MAX_NESTED;
use crate::case::{Case, Item, ItemId, Origin};
use crate::owner::{gaps, is_system};
use crate::progress::Progress;
use crate::ranges::BlockMap;
use crate::source::Source;
use rayon::prelude::*;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::ops::{ControlFlow, Range};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use vdrecover_formats::cursor::same_layer;
use vdrecover_formats::{Content, Kind, Layer, NodeId, Note, Part, Place, Tree, Use, walk};

/// Memory for the answer, in all: a device of 512 GiB is told in sectors, a larger one in larger blocks.
const MEMORY: u64 = 256 << 20;
/// A text that describes a machine or a disk is not longer.
const TEXT: u64 = 1 << 20;

/// What is wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wants {
    /// All structures, for whatever listing and searching needs.
    pub metadata: bool,
    /// Nodes of the case: files, disks, folders with all that is in them.
    pub nodes: Vec<NodeId>,
}

/// What is needed of each source.
#[derive(Debug)]
pub struct Domain {
    /// The sources, each with the blocks that are needed of it.
    pub sources: Vec<(Arc<Source>, BlockMap)>,
    /// Bytes of the wanted of which nobody knows where they lie.
    pub lost: u64,
}

/// Finds out what of the sources is needed.
#[must_use]
pub fn domain(case: &Case, wants: &Wants, progress: &Progress) -> Domain {
    let sources = case.sources.all();
    let memory = MEMORY / (sources.len() as u64).max(1);
    let maps = sources.iter().map(|source| (Arc::clone(source), BlockMap::new(source.len, memory))).collect();
    let need = Need { case, sources: maps, lost: AtomicU64::new(0) };
    let wanted = Wanted::of(case, wants);
    need.frames(&wanted, wants.metadata);
    need.stores(&wanted, wants.metadata, progress);
    let contents: Vec<&NodeId> = wanted.content.iter().collect();
    progress.start("following what is wanted", contents.len() as u64);
    contents.par_iter().for_each(|id| {
        if let Ok(bytes) = case.open(**id) {
            need.whole(&*bytes);
        }
        progress.add(1);
    });
    progress.finish();
    // A rescue ends where its domain does, and the image shall be as long as the device.
    for (source, map) in &need.sources {
        if map.claimed_bytes() > 0 {
            map.claim(source.len.saturating_sub(1)..source.len);
        }
    }
    Domain { sources: need.sources, lost: need.lost.into_inner() }
}

/// The items that are extents and members of others.
type Parts = HashMap<ItemId, Vec<ItemId>>;

/// The wanted, down to single nodes.
#[derive(Debug, Default)]
struct Wanted {
    /// Nodes of the case whose content is needed.
    content: BTreeSet<NodeId>,
    /// Nodes of stores whose structures are needed.
    nodes: HashSet<NodeId>,
    /// Items whose own tables are needed.
    items: HashSet<ItemId>,
}

impl Wanted {
    fn of(case: &Case, wants: &Wants) -> Self {
        let mut wanted = Self::default();
        let mut parts = Parts::new();
        for (id, item) in case.items.iter().enumerate() {
            if let Some(user) = item.used_by {
                parts.entry(user).or_default().push(id);
            }
        }
        let mut open = wants.nodes.clone();
        let mut seen: HashSet<NodeId> = open.iter().copied().collect();
        while let Some(id) = open.pop() {
            let mut add = |id: NodeId, kind: Kind| {
                if kind != Kind::Dir {
                    wanted.add(case, &parts, id);
                } else if seen.insert(id) {
                    open.push(id);
                }
            };
            if case.node(id).is_ok_and(|node| node.kind != Kind::Dir) {
                add(id, Kind::File);
                continue;
            }
            // What is wrong with a folder was told when the case was opened.
            let _ = case.list(id, 0, &mut |entry| {
                if let Ok(entry) = entry {
                    add(entry.id, entry.kind);
                }
                ControlFlow::Continue(())
            });
        }
        wanted.texts(case);
        for (index, store) in case.stores.iter().enumerate() {
            let root = crate::case::compose(index, store.tree.root());
            wanted.nodes.insert(root);
            for file in &store.files {
                let id = crate::case::compose(index, file.entry.id);
                let system = is_system(&file.path);
                if file.entry.kind == Kind::Dir || system {
                    wanted.nodes.insert(id);
                }
                // Descriptors of what was deleted; nobody claims them.
                if wants.metadata && file.path == b".fdc.sf" && store.item.is_some() {
                    wanted.content.insert(id);
                }
            }
        }
        wanted
    }

    fn add(&mut self, case: &Case, parts: &Parts, id: NodeId) {
        if !self.content.insert(id) {
            return;
        }
        self.nodes.insert(id);
        let mut open: Vec<ItemId> = case.target(id).map(|target| target.item).into_iter().collect();
        while let Some(item) = open.pop().filter(|item| self.items.insert(*item)) {
            let found = &case.items[item];
            open.extend(found.filled.iter().filter_map(|filled| filled.item));
            open.extend(parts.get(&item).into_iter().flatten());
            match &found.origin {
                Origin::File { store, entry, .. } => {
                    self.nodes.insert(crate::case::compose(*store, entry.id));
                    open.extend(case.stores[*store].item);
                }
                Origin::Inside(of) | Origin::Volume { of, .. } => open.push(*of),
                Origin::Source(_) => {}
            }
        }
    }

    /// The texts that say which machines and disks there are: without them nothing has its name.
    fn texts(&mut self, case: &Case) {
        for (index, store) in case.stores.iter().enumerate() {
            for file in store.files.iter().filter(|file| is_config(&file.entry.name)) {
                self.text(case, crate::case::compose(index, file.entry.id));
            }
        }
        for item in case.items.iter().filter(|item| item.format.name == "vmdk" && !item.opened.wants.is_empty()) {
            if let Origin::File { store, entry, .. } = &item.origin {
                self.text(case, crate::case::compose(*store, entry.id));
            }
        }
    }

    fn text(&mut self, case: &Case, id: NodeId) {
        self.nodes.insert(id);
        if case.node(id).is_ok_and(|node| node.kind == Kind::File && node.len <= TEXT) {
            self.content.insert(id);
        }
    }
}

fn is_config(name: &[u8]) -> bool {
    let name = name.to_ascii_lowercase();
    name.ends_with(b".vmx") || name.ends_with(b".vmsd")
}

struct Need<'a> {
    case: &'a Case,
    sources: Vec<(Arc<Source>, BlockMap)>,
    lost: AtomicU64,
}

impl Need<'_> {
    /// Partition tables, and the tables of images: of all that hold a datastore, and of the wanted ones.
    fn frames(&self, wanted: &Wanted, all: bool) {
        for (id, item) in self.case.items.iter().enumerate() {
            if !all && !wanted.items.contains(&id) && self.in_file(id) {
                continue;
            }
            for (range, is_table) in gaps(item.content(), item.bytes.len()) {
                if is_table {
                    self.claim(&*item.bytes, range, 0);
                }
            }
            self.image(item);
        }
    }

    /// Whether an item lies in a file of a store.
    fn in_file(&self, id: ItemId) -> bool {
        let mut next = id;
        loop {
            match &self.case.items[next].origin {
                Origin::Inside(of) | Origin::Volume { of, .. } => next = *of,
                Origin::File { store, .. } => return self.case.stores[*store].item.is_some(),
                Origin::Source(_) => return false,
            }
        }
    }

    /// The tables of an image, in the file that it is.
    fn image(&self, item: &Item) {
        let Some(Content::Disks(disks)) = item.content() else { return };
        for disk in disks.iter().filter(|disk| !same_layer(&*disk.bytes, &*item.bytes)) {
            (0..disk.bytes.parts()).into_par_iter().for_each(|part| {
                let _ = disk.bytes.audit(part, &mut |note| {
                    if let Note::Claim { layer, range, of: Use::Metadata | Use::Journal } = note {
                        self.claim(layer, range, 0);
                    }
                    ControlFlow::Continue(())
                });
            });
        }
    }

    fn stores(&self, wanted: &Wanted, all: bool, progress: &Progress) {
        for (index, store) in self.case.stores.iter().enumerate() {
            progress.start("looking for metadata", store.tree.parts().into());
            (0..store.tree.parts()).into_par_iter().for_each(|part| {
                let _ = store.tree.audit(part, &mut |note| {
                    if let Note::Claim { layer, range, of } = note {
                        let needed = match of {
                            Use::Metadata
                            | Use::Journal
                            | Use::Node { part: Part::Frame | Part::System | Part::Folder, .. } => true,
                            Use::Node { id, .. } => all || wanted.nodes.contains(&crate::case::compose(index, id)),
                            Use::Data(_) => false,
                        };
                        if needed {
                            self.claim(layer, range, 0);
                        }
                    }
                    ControlFlow::Continue(())
                });
                progress.add(1);
            });
        }
    }

    fn whole(&self, layer: &dyn Layer) {
        self.claim(layer, 0..layer.len(), 0);
    }

    /// A need for a range of a layer is a need for the bytes of the sources that it is made of.
    fn claim(&self, layer: &dyn Layer, range: Range<u64>, depth: u32) {
        for run in walk(layer, range) {
            let tag = run.layer.tag().and_then(|tag| usize::try_from(tag.0).ok());
            // With a mapfile what could not be read ends at the map.
            let source = tag.and_then(|tag| self.sources.get(tag)).or_else(|| {
                let is_lost = matches!(run.place, Place::Lost(_));
                self.sources.iter().find(|(source, _)| is_lost && same_layer(&*source.bytes, run.layer))
            });
            match (source, run.place) {
                (Some((_, map)), _) => map.claim(run.offset..run.offset.saturating_add(run.len)),
                (None, Place::Coded(unit)) if depth < MAX_NESTED => {
                    self.claim(unit.from, unit.packed(), depth + 1);
                }
                (None, Place::Lost(_)) => {
                    self.lost.fetch_add(run.len, Ordering::Relaxed);
                }
                (None, _) => {}
            }
        }
    }
}
