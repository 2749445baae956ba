//! What comparing all files of a datastore with each other told of single files, for whoever reads one of them.

use super::{Case, ItemId, Noted, Origin, compose};
use std::collections::{BTreeMap, HashSet};
use vdrecover_formats::NodeId;

/// What contradicts single nodes, by node of the case.
#[derive(Debug, Default)]
pub struct Compared {
    notes: BTreeMap<NodeId, Vec<Noted>>,
    shared: HashSet<NodeId>,
}

/// Notes of one node that are kept.
const MOST: usize = 16;

impl Compared {
    /// Keeps what was observed of a node.
    pub fn add(&mut self, id: NodeId, noted: &Noted) {
        let own = self.notes.entry(id).or_default();
        if own.len() < MOST && !own.iter().any(|known| known.finding == noted.finding) {
            own.push(noted.clone());
        }
    }

    /// Keeps that somebody else has bytes of a node too.
    pub fn share(&mut self, id: NodeId, noted: &Noted) {
        self.shared.insert(id);
        self.add(id, noted);
    }
}

impl Case {
    /// What comparing all files told, if somebody did.
    #[must_use]
    pub fn compared(&self) -> Option<&Compared> {
        self.compared.get()
    }

    /// Keeps what comparing all files told; it is the same whoever compares.
    pub fn set_compared(&self, compared: Compared) {
        let _ = self.compared.set(compared);
    }

    /// Whether somebody else has bytes of a node, or of the files that it is made of. `None` if nobody looked.
    #[must_use]
    pub fn is_shared(&self, id: NodeId) -> Option<bool> {
        let compared = self.compared()?;
        Some(!compared.shared.is_empty() && self.made_of(id).iter().any(|id| compared.shared.contains(id)))
    }

    /// What contradicts the content of a node, or of the files that it is made of, as far as somebody looked.
    #[must_use]
    pub fn contradictions(&self, id: NodeId) -> Vec<&Noted> {
        let Some(compared) = self.compared().filter(|compared| !compared.notes.is_empty()) else { return Vec::new() };
        let mut told: Vec<&Noted> = Vec::new();
        for noted in self.made_of(id).into_iter().filter_map(|id| compared.notes.get(&id)).flatten() {
            if !told.iter().any(|known| known.finding == noted.finding && known.about == noted.about) {
                told.push(noted);
            }
        }
        told
    }

    /// All that contradicts files, each once, in the order of their nodes.
    #[must_use]
    pub fn all_contradictions(&self) -> Vec<&Noted> {
        let mut told: Vec<&Noted> = Vec::new();
        let mut seen = HashSet::new();
        for noted in self.compared().iter().flat_map(|compared| compared.notes.values()).flatten() {
            let finding = &noted.finding;
            if seen.insert((&noted.about, finding.code, finding.range.start, &finding.text)) {
                told.push(noted);
            }
        }
        told
    }

    /// A node, and the nodes of stores that its content comes from: a disk is made of descriptors, extents and parents,
    /// and all of them may lie in a datastore on another disk.
    fn made_of(&self, id: NodeId) -> Vec<NodeId> {
        let mut nodes = vec![id];
        let mut open: Vec<ItemId> = self.target(id).map(|target| target.item).into_iter().collect();
        let outer = id.0 / NodeId::LIMIT;
        let store = outer.checked_sub(1).and_then(|store| self.stores.get(usize::try_from(store).ok()?));
        open.extend(store.and_then(|store| store.item));
        let mut seen: HashSet<ItemId> = HashSet::new();
        while let Some(item) = open.pop() {
            if !seen.insert(item) {
                continue;
            }
            let found = &self.items[item];
            open.extend(found.filled.iter().filter_map(|filled| filled.item));
            let parts = self.items.iter().enumerate().filter(|(_, part)| part.used_by == Some(item));
            open.extend(parts.map(|(part, _)| part));
            match &found.origin {
                Origin::File { store, entry, .. } => {
                    nodes.push(compose(*store, entry.id));
                    open.extend(self.stores[*store].item);
                }
                Origin::Inside(of) | Origin::Volume { of, .. } => open.push(*of),
                Origin::Source(_) => {}
            }
        }
        nodes
    }
}
