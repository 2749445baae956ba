//! What a datastore tells besides its files: locks of living hosts, and its system files as somebody saved them.

use super::resource::{put32, put64};
use super::{Vmfs, format};
use crate::Device;
use std::collections::BTreeMap;

/// A lock that a host holds on a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lock {
    /// Mode: 1 exclusive, 2 read-only, 3 several writers (from sources). Only 0, which is free, was observed.
    pub mode: u32,
    /// The owner's UUID, which is that in its heartbeat.
    pub owner: [u8; 16],
    /// The owner's number among the heartbeats; not the slot that formatting left.
    pub slot: u64,
    /// Its address as its heartbeat has it, up to 45 bytes.
    pub address: String,
}

impl Vmfs {
    /// Lets a host hold a file: its descriptor's lock names the host, whose heartbeat is in use. Gives the volume positions of lock and heartbeat.
    pub fn lock(&mut self, path: &str, lock: &Lock) -> (u64, u64) {
        let super::Located { fd, fd_lv, .. } = self.locate(path);
        let (slots, size) = self.shape.heartbeats();
        assert!(lock.slot < slots && lock.address.len() < 46, "no such heartbeat: {lock:?}");
        let slot_lv = super::descriptor::HEARTBEATS + lock.slot * size;
        let mut slot = self.volume.read(slot_lv, 512);
        put32(&mut slot, 0, 0xABCD_EF02);
        put64(&mut slot, 4, slot_lv);
        put64(&mut slot, 0x0C, super::HEARTBEAT_GENERATION + 1);
        put64(&mut slot, 0x14, 77_000_000_000);
        slot[0x1C..0x2C].copy_from_slice(&lock.owner);
        slot[0x36..0x36 + lock.address.len()].copy_from_slice(lock.address.as_bytes());
        self.volume.write(slot_lv, &slot);
        self.locks.insert(fd, lock.clone());
        self.sync();
        (fd_lv, slot_lv)
    }

    /// Puts a lock into a descriptor's record.
    pub(super) fn put_held_lock(&self, address: u32, record: &mut [u8]) {
        if let Some(lock) = self.locks.get(&address) {
            let slot_lv = super::descriptor::HEARTBEATS + lock.slot * self.shape.md;
            put64(record, 0x0C, slot_lv);
            put64(record, 0x14, super::HEARTBEAT_GENERATION + 1);
            put32(record, 0x24, lock.mode);
            record[0x28..0x38].copy_from_slice(&lock.owner);
        }
    }

    /// The system files as files of their own, which is what practitioners save first: `.vh.sf`, `.fbb.sf` and so
    /// on by name, each as long as its descriptor says.
    pub fn system_files(&mut self) -> BTreeMap<String, Device> {
        self.sync();
        let size = self.spec.file_block_size;
        let files = format::names(self.shape).iter().filter(|(number, _)| !matches!(number, 0 | 7));
        files
            .map(|&(number, name)| {
                let blocks = &self.system[&number];
                let len = self.nodes[&super::address::descriptor(0, u64::from(number))].fd.len;
                let mut file = Device::new((blocks.len() as u64 * size).max(len));
                for (n, block) in (0..).zip(blocks) {
                    for part in (0..size).step_by(64 << 10) {
                        file.write(n * size + part, &self.volume.read(block * size + part, 64 << 10));
                    }
                }
                file.truncate(len);
                (name.into(), file)
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vmfs::{Content, Layout, Version, VmfsSpec};

    #[test]
    fn a_lock_names_its_owner_and_system_files_begin_as_they_should() {
        for version in [Version::Three, Version::Five, Version::Six] {
            let mut store = Vmfs::new(VmfsSpec::new(version, 288 << 20));
            store.file("held", Content::patterned(100_000, 1), &Layout::default());
            let lock = Lock { mode: 1, owner: *b"UUID OF A HOST..", slot: 9, address: "198.51.100.7".into() };
            let (fd, slot) = store.lock("held", &lock);
            let files = store.system_files();
            let fdc = &files[".fdc.sf"];
            assert!(fdc.len() > 0x1_0000 && fdc.read(0x1_0000, 4) == 0x10C0_0005u32.to_le_bytes());
            // `.vh.sf` is the volume's own start.
            let vh = &files[".vh.sf"];
            assert_eq!(vh.read(0x20_0000, 2), [0x5E, 0xF1]);
            assert_eq!(vh.read(slot + 0x36, 12), b"198.51.100.7");
            assert_eq!(store.read_lv(fd + 0x28, 16), lock.owner);
            let device = store.finish().remove(0);
            assert_eq!(device.read(0x110_0000 + fd + 0x24, 4), [1, 0, 0, 0]);
        }
    }
}
