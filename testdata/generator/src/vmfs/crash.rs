//! A host that died between writing its journal and writing home.
//!
//! File data is written before the metadata that names it, as on any journaled disk; metadata goes to the journal
//! first. What marks a transaction as complete is known of VMFS6 from one journal only, and of VMFS5 not at all.

use super::{Expected, Vmfs};
use crate::Device;
use std::collections::BTreeMap;
use std::ops::Range;

/// How far the host came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Crash {
    /// The journal holds the whole change, home holds nothing of it: it counts.
    Pending,
    /// The journal holds the whole change and, before it, an older state of the same records. All of the change is
    /// home: the journal must change nothing.
    Home,
    /// The journal's last page was not written, and home holds nothing of the change: it does not count. VMFS6 only.
    Torn,
}

/// A datastore after a crash.
#[derive(Clone, Debug)]
pub struct Crashed {
    /// The devices.
    pub devices: Vec<Device>,
    /// What there was before the change.
    pub before: Vec<Expected>,
    /// What there is after it.
    pub after: Vec<Expected>,
    /// Bytes of the volume that the journal holds, one range a record.
    pub records: Vec<Range<u64>>,
    /// Where the journal lies in the volume.
    pub journal: Range<u64>,
}

impl Vmfs {
    /// Makes a change of which the host did not get everything written.
    #[must_use]
    pub fn crash(mut self, how: Crash, change: impl FnOnce(&mut Self)) -> Crashed {
        assert!(how != Crash::Torn || self.six(), "what marks a whole transaction on VMFS5 is not known");
        if self.journal.is_none() {
            self.open_journal();
        }
        self.sync();
        let mut changed = self.clone();
        // What the change itself logs would be a second copy.
        let journal = changed.journal.take();
        change(&mut changed);
        changed.sync();
        changed.journal.clone_from(&journal);
        let metadata = self.units(&changed);
        let mut records = Vec::new();
        let (mut old, mut new) = (Vec::new(), Vec::new());
        for (&lv, &len) in &metadata {
            let (was, is) = (self.volume.read(lv, len as usize), changed.volume.read(lv, len as usize));
            if was != is {
                records.push(lv..lv + len);
                old.push((lv, was));
                new.push((lv, is));
            }
        }
        let (before, after) = (self.expected(), changed.expected());
        let mut store = match how {
            Crash::Pending | Crash::Torn => {
                // The data is there already.
                for node in changed.nodes.values().filter(|node| node.content.is_some()) {
                    for block in &node.blocks {
                        self.volume.copy(&changed.volume, block.lv, block.len);
                    }
                }
                self
            }
            Crash::Home => {
                changed.transaction(&old, true);
                changed
            }
        };
        store.transaction(&new, how != Crash::Torn);
        let journal = store.journal.as_ref().map_or(0..0, super::journal::Journal::range);
        Crashed { devices: store.volume.into_devices(), before, after, records, journal }
    }

    /// Every unit of metadata of this state and of another, as position and length: what a record changes at once.
    fn units(&self, other: &Self) -> BTreeMap<u64, u64> {
        use super::What::{FsHeader, Heartbeats, Journal, ResourceHeader};
        let mut units = BTreeMap::new();
        let parts = self.volume_parts().into_iter().chain(other.volume_parts());
        for (_, _, lv) in parts.filter(|(what, ..)| !matches!(what, FsHeader | Heartbeats | Journal | ResourceHeader)) {
            // Units are aligned: parts of a directory may share one.
            let md = self.shape.md;
            let mut at = lv.start / md * md;
            while at < lv.end {
                units.insert(at, md);
                at += md;
            }
        }
        units
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vmfs::{Content, Layout, Version, VmfsSpec};

    #[test]
    fn what_is_pending_is_in_the_journal_and_nowhere_else() {
        for version in [Version::Three, Version::Five, Version::Six] {
            let mut store = Vmfs::new(VmfsSpec::new(version, 288 << 20));
            store.file("old", Content::patterned(3000, 1), &Layout::default());
            let places = store.clone();
            let change = |store: &mut Vmfs| store.file("new", Content::patterned(3_000_000, 2), &Layout::default());
            let [pending, home] = [Crash::Pending, Crash::Home].map(|how| store.clone().crash(how, change));
            assert_eq!((pending.before.len(), pending.after.len()), (1, 2));
            assert!(pending.records.len() >= 4, "descriptor, its cluster, folder, blocks: {:x?}", pending.records);
            for record in &pending.records {
                let (_, at) = places.device_position(record.start);
                let len = (record.end - record.start) as usize;
                let [was, is] = [&pending, &home].map(|crashed| crashed.devices[0].read(at, len));
                assert_ne!(was, is);
            }
            let named = |crashed: &Crashed| {
                let (_, at) = places.device_position(crashed.journal.start);
                let bytes = crashed.devices[0].read(at, (crashed.journal.end - crashed.journal.start) as usize);
                bytes.windows(4).filter(|w| w == b"new\0").count()
            };
            assert!(named(&pending) == 1 && named(&home) == 1, "{version:?}");
        }
    }

    #[test]
    fn a_torn_transaction_lacks_its_last_page() {
        let mut store = Vmfs::new(VmfsSpec::new(Version::Six, 288 << 20));
        store.file("old", Content::patterned(3000, 1), &Layout::default());
        let places = store.clone();
        let change = |store: &mut Vmfs| drop(store.delete_as_esxi("old"));
        let [torn, whole] = [Crash::Torn, Crash::Pending].map(|how| store.clone().crash(how, change));
        let (_, at) = places.device_position(torn.journal.start);
        // The head of the transaction repeats the check of its last page.
        let says = |crashed: &Crashed| {
            let bytes = crashed.devices[0].read(at + 0x1000, 1 << 20);
            let pages = bytes.chunks(4096).take_while(|page| page[4..6] != [0xFF, 0xFF]);
            pages.last().is_some_and(|last| last[8..16] == bytes[0x20..0x28])
        };
        assert_eq!((says(&torn), says(&whole)), (false, true));
        assert_eq!((whole.before.len(), whole.after.len()), (1, 0));
    }
}
