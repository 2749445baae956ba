//! What no folder lists: descriptors that were deleted, orphaned or formatted over.

use super::address::{FdAddress, Spot};
use super::descriptor::Descriptor;
use super::directory::Folder;
use super::tree::Datastore;
use crate::num::narrow;
use crate::tree::{Entry, Find, Finder, Named, NodeId, State};
use std::ops::ControlFlow;

/// Entries of folders that are looked through to name what was found.
const NAMING: u32 = 1 << 20;

impl Datastore {
    /// All descriptors of `.fdc.sf` that no folder lists, by their place.
    pub(super) fn find_descriptors(&self, sink: Finder<'_>) -> ControlFlow<()> {
        let Some(fdc) = &self.volume.fdc else { return ControlFlow::Continue(()) };
        let mut naming = NAMING;
        // An address has 16 bits for the cluster.
        for cluster in 0..fdc.clusters().min(1 << 16) {
            let free = fdc.cluster(&self.volume.space, cluster).map(|state| state.free).unwrap_or_default();
            let left = fdc.total.saturating_sub(cluster.saturating_mul(fdc.per_cluster));
            for resource in 0..fdc.per_cluster.min(left) {
                let Some(address) = FdAddress::new(Spot { cluster, resource }) else { continue };
                // A cluster whose bitmap is lost may hold anything.
                let used = free.get(narrow(resource)).map(|free| !free);
                self.find_descriptor(address, used, &mut naming, sink)?;
            }
        }
        ControlFlow::Continue(())
    }

    fn find_descriptor(
        &self,
        address: FdAddress,
        used: Option<bool>,
        naming: &mut u32,
        sink: Finder<'_>,
    ) -> ControlFlow<()> {
        let Ok(fd) = self.volume.descriptor(address) else { return ControlFlow::Continue(()) };
        let listed = self.linked().is_none_or(|linked| linked.has(address));
        if listed && used != Some(false) && fd.links > 0 {
            return ControlFlow::Continue(());
        }
        let state = match self.state(&fd) {
            State::Live if listed => return ControlFlow::Continue(()),
            // In use, but no folder lists it.
            State::Live => State::Orphaned,
            state => state,
        };
        let Spot { cluster, resource } = address.spot();
        let place = || (format!("orphan_c{cluster}_r{resource}").into_bytes(), Named::Place);
        let (name, named) = self.name_of(&fd, naming).map_or_else(place, |name| (name, Named::Folder));
        let entry = Entry { name, id: NodeId(address.0.into()), kind: fd.node_kind(), state, next: 0 };
        let parent = fd.parent.map(|parent| NodeId(parent.0.into()));
        sink(Find { entry, parent, named, why: format!("its descriptor {address} is still there") })
    }

    /// The name that the folder gives which a descriptor says to be in, be the folder alive or not.
    fn name_of(&self, fd: &Descriptor, naming: &mut u32) -> Option<Vec<u8>> {
        let folder = Folder::open(&self.volume, fd.parent?).ok()?;
        let mut name = None;
        folder.list(0, &mut |entry| {
            let Some(left) = naming.checked_sub(1) else { return ControlFlow::Break(()) };
            *naming = left;
            match entry {
                Ok(entry) if entry.address == fd.address && entry.generation == fd.generation => {
                    name = Some(entry.name);
                    ControlFlow::Break(())
                }
                _ => ControlFlow::Continue(()),
            }
        });
        name
    }
}
