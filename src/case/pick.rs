//! A part of the case's tree, as a tree: what `recover` writes.

use super::machines::Machine;
use super::{Case, Origin, compose};
use std::collections::HashSet;
use std::ops::ControlFlow;
use vdrecover_formats::note::Sink;
use vdrecover_formats::tree::Lister;
use vdrecover_formats::{Bytes, Entry, Error, Find, Kind, Node, NodeId, Tree};

/// Which parts of a case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each is one word of --what")]
pub struct Parts {
    /// Machines: configuration, current disks, other ends of chains.
    pub vms: bool,
    /// The states of their snapshots.
    pub snapshots: bool,
    /// Disks that belong to no machine.
    pub disks: bool,
    /// Files of datastores that are neither disks nor the datastore's own system files.
    pub store: bool,
    /// All files of datastores, disks and system files too.
    pub whole_store: bool,
    /// Volumes and what is in them.
    pub files: bool,
    /// What no folder lists any more.
    pub found: bool,
}

/// A case without what was not asked for.
#[derive(Debug)]
pub struct Pick<'a> {
    case: &'a Case,
    hidden: HashSet<NodeId>,
}

impl<'a> Pick<'a> {
    /// The parts of a case; with `machine`, of that machine only.
    #[must_use]
    pub fn new(case: &'a Case, parts: Parts, machine: Option<&Machine>) -> Self {
        let mut pick = Self { case, hidden: HashSet::new() };
        let alone = machine.is_some();
        pick.hide(b"vms", !parts.vms && !parts.snapshots);
        pick.hide(b"disks", !parts.disks || alone);
        pick.hide(b"files", !parts.files);
        pick.hide(b"found", !parts.found || alone);
        pick.hide(b"store", (!parts.store && !parts.whole_store) || alone);
        for own in &case.machines {
            let path = [b"vms/", super::names::safe(&own.name).as_slice()].concat();
            let other = machine.is_some_and(|machine| machine.name != own.name);
            pick.hide(&path, other);
            pick.hide(&[b"files/", super::names::safe(&own.name).as_slice()].concat(), other);
            pick.hide(&[path.as_slice(), b"/snapshots"].concat(), !parts.snapshots);
            if !parts.vms {
                pick.hide_all_but(&path, b"snapshots");
            }
        }
        if !parts.whole_store {
            pick.hide_disks();
        }
        // What a disk was put together of is written as that disk.
        if parts.found && !alone && !parts.whole_store {
            pick.hidden.extend(case.lost().parts());
        }
        pick
    }

    fn hide(&mut self, path: &[u8], hide: bool) {
        if let (true, Ok(Some(entry))) = (hide, self.case.find(path)) {
            self.hidden.insert(entry.id);
        }
    }

    fn hide_all_but(&mut self, path: &[u8], kept: &[u8]) {
        let Ok(Some(dir)) = self.case.find(path) else { return };
        let mut others = Vec::new();
        let _ = self.case.list(dir.id, 0, &mut |entry| {
            others.extend(entry.ok().filter(|entry| entry.name != kept).map(|entry| entry.id));
            ControlFlow::Continue(())
        });
        // Configuration files are nodes of the store, where they stay.
        self.hidden.extend(others.into_iter().filter(|id| id.0 < NodeId::LIMIT));
    }

    /// The disks of a store are under vms/ and disks/, flattened; its system files describe the store itself.
    /// Of a folder that was given, everything is there already.
    fn hide_disks(&mut self) {
        for (index, store) in self.case.stores.iter().enumerate() {
            if store.item.is_none() {
                self.hide(&[b"store/", store.name.as_slice()].concat(), true);
                continue;
            }
            let system = store.files.iter().filter(|file| {
                let top = !file.path.contains(&b'/');
                top && file.entry.name.starts_with(b".") && file.entry.name.ends_with(b".sf")
            });
            self.hidden.extend(system.map(|file| compose(index, file.entry.id)));
        }
        for item in &self.case.items {
            // A descriptor is text, and says things about its disk that nothing else does.
            let is_data = item.format.name != "vmdk" || item.opened.wants.is_empty();
            if let (Origin::File { store, entry, .. }, true) = (&item.origin, is_data) {
                self.hidden.insert(compose(*store, entry.id));
            }
        }
    }

    fn shows(&self, entry: &Entry) -> bool {
        !self.hidden.contains(&entry.id) && entry.kind != Kind::Special
    }
}

impl Tree for Pick<'_> {
    fn root(&self) -> NodeId {
        self.case.root()
    }

    fn node(&self, id: NodeId) -> Result<Node, Error> {
        self.case.node(id)
    }

    fn list(&self, dir: NodeId, from: u64, sink: Lister<'_>) -> Result<(), Error> {
        self.case.list(dir, from, &mut |entry| match entry {
            Ok(entry) if !self.shows(&entry) => ControlFlow::Continue(()),
            entry => sink(entry),
        })
    }

    fn lookup(&self, dir: NodeId, name: &[u8]) -> Result<Option<Entry>, Error> {
        Ok(self.case.lookup(dir, name)?.filter(|entry| self.shows(entry)))
    }

    fn attrs(&self, id: NodeId) -> Vec<Entry> {
        self.case.attrs(id)
    }

    fn open(&self, id: NodeId) -> Result<Bytes, Error> {
        self.case.open(id)
    }

    fn found(&self, id: NodeId) -> Option<Find> {
        self.case.found(id)
    }

    fn contradicted(&self, id: NodeId) -> Vec<String> {
        self.case.contradicted(id)
    }

    fn parts(&self) -> u32 {
        self.case.parts()
    }

    fn audit(&self, part: u32, sink: Sink<'_>) -> ControlFlow<()> {
        self.case.audit(part, sink)
    }
}
