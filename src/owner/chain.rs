//! The way from the device up to an owner, with names that people know.

use crate::case::{Case, ItemId, Origin};
use crate::source::Source;
use std::collections::HashMap;
use std::sync::Arc;
use vdrecover_formats::{Bytes, Layer, NodeId, Place, Tag, Trust, walk};

/// What a step is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Level {
    /// An input.
    Device,
    /// A layer with no name of its own.
    Layer,
    /// A partition or another part of a disk.
    Volume,
    /// A file of a datastore.
    File,
    /// A disk as a guest sees it, or the content of an image.
    Disk,
    /// A structure, or free space: the offset counts from its start.
    Structure,
}

impl Level {
    /// The stable lower-case word of JSON.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Device => "device",
            Self::Layer => "layer",
            Self::Volume => "volume",
            Self::File => "file",
            Self::Disk => "disk",
            Self::Structure => "structure",
        }
    }
}

/// One level on the way.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Step {
    /// What it is.
    pub level: Level,
    /// Its path in the tree if it has one, else what it is called elsewhere.
    pub name: Arc<str>,
    /// Where in it.
    pub offset: u64,
}

/// The steps from the device upward.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Chain {
    pub(super) steps: Vec<Step>,
    pub(super) trust: Trust,
    /// How many steps, from the device on, lie below the lowest packed unit, if there is one.
    below: Option<usize>,
}

impl Chain {
    pub(super) fn packed(&self) -> bool {
        self.below.is_some()
    }

    /// The way of a byte further on. What is decoded from a unit stays where it is.
    pub(super) fn advance(&mut self, by: u64) {
        let moving = self.below.unwrap_or(self.steps.len());
        for step in self.steps.iter_mut().take(moving) {
            step.offset += by;
        }
    }
}

/// Layers of the case that have names, by their address: the case keeps them all alive.
#[derive(Debug, Default)]
pub(super) struct Known {
    names: HashMap<usize, Vec<(Level, Arc<str>)>>,
    sources: Vec<Arc<Source>>,
    /// Of each store, where in its list of files a node is.
    nodes: Vec<HashMap<NodeId, usize>>,
}

fn address(layer: &dyn Layer) -> usize {
    std::ptr::from_ref(layer).cast::<()>().addr()
}

impl Known {
    pub(super) fn of(case: &Case) -> Self {
        let nodes = case.stores.iter().map(|store| {
            let files = store.files.iter().enumerate().rev();
            files.map(|(at, file)| (file.entry.id, at)).collect()
        });
        let mut known = Self { names: HashMap::new(), sources: case.sources.all(), nodes: nodes.collect() };
        for source in known.sources.clone() {
            known.add(&*source.bytes, Level::Device, &source.path.display().to_string());
        }
        for item in &case.items {
            if let Origin::File { store, path, .. } = &item.origin
                && case.stores[*store].item.is_some()
            {
                known.add(&*item.bytes, Level::File, &store_path(case, *store, path));
            }
        }
        // An extent is a layer of its own to the disk that it is a part of.
        for (bytes, part) in extents(case) {
            if let Origin::File { store, path, .. } = &case.items[part].origin {
                known.add(&**bytes, Level::File, &store_path(case, *store, path));
            }
        }
        known
    }

    /// Gives a layer a name, unless it has one at this level. Those nearer to the device are given first.
    pub(super) fn add(&mut self, layer: &dyn Layer, level: Level, name: &str) -> bool {
        let names = self.names.entry(address(layer)).or_default();
        let new = names.iter().all(|(known, _)| *known != level);
        if new {
            names.push((level, name.into()));
        }
        new
    }

    pub(super) fn tag(&self, source: &Arc<Source>) -> Option<Tag> {
        let at = self.sources.iter().position(|known| Arc::ptr_eq(known, source))?;
        u32::try_from(at).ok().map(Tag)
    }

    pub(super) fn device(&self, source: &Source, offset: u64) -> Step {
        let names = self.names.get(&address(&*source.bytes));
        let name = names.and_then(|names| names.first()).map(|(_, name)| Arc::clone(name));
        Step { level: Level::Device, name: name.unwrap_or_else(|| source.path.display().to_string().into()), offset }
    }

    /// Names of a layer, those nearer to the device first.
    fn names(&self, layer: &dyn Layer) -> Vec<(Level, Arc<str>)> {
        if let Some(names) = self.names.get(&address(layer)) {
            return names.clone();
        }
        // The file below a map of what could be read of it.
        let source = layer.tag().and_then(|tag| self.sources.get(usize::try_from(tag.0).ok()?));
        match source {
            Some(source) => vec![(Level::Device, self.device(source, 0).name)],
            None => vec![(Level::Layer, layer.about().into())],
        }
    }

    /// What an item is called.
    pub(super) fn item(&self, case: &Case, id: ItemId) -> String {
        match &case.items[id].origin {
            Origin::File { store, path, .. } if case.stores[*store].item.is_some() => store_path(case, *store, path),
            Origin::Inside(of) => {
                // What a disk holds is the disk's.
                let disk = case.items[*of].disk();
                let name = self.names.get(&address(&*disk)).and_then(|names| names.last());
                name.map_or_else(|| case.label(id), |(_, name)| name.to_string())
            }
            _ => case.label(id),
        }
    }

    /// What a node of a store is called.
    pub(super) fn node(&self, case: &Case, store: usize, id: NodeId) -> String {
        let files = &case.stores[store].files;
        match self.nodes[store].get(&id).and_then(|at| files.get(*at)) {
            Some(file) => store_path(case, store, &file.path),
            None if id == case.stores[store].tree.root() => format!("store/{}", text(&case.stores[store].name)),
            None => format!("node {:#x} of store/{}", id.0, text(&case.stores[store].name)),
        }
    }
}

/// What files of stores met the wants of images for bytes, each with the item that the file is.
fn extents(case: &Case) -> Vec<(&Bytes, ItemId)> {
    let mut files: HashMap<&[u8], Vec<ItemId>> = HashMap::new();
    for (id, item) in case.items.iter().enumerate() {
        if let (Origin::File { .. }, Some(name)) = (&item.origin, item.file_name()) {
            files.entry(name).or_default().push(id);
        }
    }
    let mut found = Vec::new();
    for (id, item) in case.items.iter().enumerate() {
        for (want, filled) in item.opened.wants.iter().zip(&item.filled) {
            let (Some(hint), Some(bytes), None) = (&want.hint, &filled.bytes, filled.item) else { continue };
            let name = hint.rsplit(|byte| matches!(byte, b'/' | b'\\')).next().unwrap_or(hint);
            let named = files.get(name).map_or(&[][..], Vec::as_slice);
            let used = named.iter().find(|part| case.items[**part].used_by == Some(id));
            found.extend(used.map(|part| (bytes, *part)));
        }
    }
    found
}

/// Bytes of a name as text.
pub(super) fn text(name: &[u8]) -> std::borrow::Cow<'_, str> {
    String::from_utf8_lossy(name)
}

/// The path of a store's file in the case.
pub(super) fn store_path(case: &Case, store: usize, path: &[u8]) -> String {
    format!("store/{}/{}", text(&case.stores[store].name), text(path))
}

/// The way from the device up to byte `at` of `layer`. `vias` are the places in what packed units are packed in.
pub(super) fn chain(known: &Known, layer: &dyn Layer, at: u64, vias: &[u64]) -> Chain {
    let mut down: Vec<Step> = Vec::new();
    let mut trust = Trust::Sound;
    let mut above = None;
    let mut next = Some((layer, at));
    let mut vias = vias.iter();
    while let Some((layer, at)) = next.take() {
        let mut cursor = walk(layer, at..at.saturating_add(1));
        let Some(end) = cursor.next() else { break };
        trust = trust.max(end.trust);
        for hop in cursor.path() {
            let names = known.names(hop.layer).into_iter().rev();
            for (level, name) in names {
                let step = Step { level, name, offset: hop.offset };
                // A map of what could be read and the file below it are one device.
                if down.last() != Some(&step) {
                    down.push(step);
                }
            }
        }
        if let (Place::Coded(unit), Some(via)) = (end.place, vias.next()) {
            above = Some(down.len());
            next = Some((unit.from, *via));
        }
    }
    let below = above.map(|above| down.len() - above);
    down.reverse();
    Chain { steps: down, trust, below }
}
