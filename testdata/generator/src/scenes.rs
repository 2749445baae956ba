//! Whole scenes of loss, each with what a right reader finds. What is made of one datastore by one call is a method
//! of [`Vmfs`]: deletions, crashes, damage to a part, a copy of a device at another time (a clone that goes on).

use crate::Device;
use crate::anchors::{Guest, Skeleton};
use crate::gpt::{Guid, Partition, TYPE_VMFS, write_gpt_of};
use crate::vmdk::Descriptor;
use crate::vmfs::{
    Block, Content, Deleted, Expected, FORMAT_TIME, Hangs, Layout, Left, Located, Remains, Version, Vmfs, VmfsSpec,
    pattern,
};
use std::ops::Range;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// A scene.
#[derive(Clone, Debug)]
pub struct Scene {
    /// The devices.
    pub devices: Vec<Device>,
    /// What is there, by path.
    pub expected: Vec<Expected>,
    /// What is dead, and what is left of it.
    pub dead: Vec<(Deleted, Remains)>,
}

/// Ends a datastore's story.
#[must_use]
pub fn end(mut store: Vmfs) -> Scene {
    let dead = store.deleted().to_vec();
    let dead = dead.into_iter().map(|dead| (store.remains(&dead), dead)).map(|(left, dead)| (dead, left)).collect();
    Scene { expected: store.expected(), devices: store.finish(), dead }
}

/// A datastore formatted over another, and then used: its files take descriptors, sub-blocks and data of the older.
/// In the older, `outer` loses its descriptor and its entries to `new`, so that `outer/inner` is a folder whose own
/// parent is gone and whose parent's address belongs to a stranger; `outer/inner/deep.txt` is whole; `disks/x-flat.vmdk`
/// loses some of its blocks to `taker`.
#[must_use]
pub fn formatted_over(older: Version, newer: Version) -> Scene {
    let auto = Layout::default();
    let spec = |version, label: &str, seed| VmfsSpec {
        label: label.into(),
        seed,
        // The same room for records on both, so that much survives.
        ..VmfsSpec::new(version, GIB + 32 * MIB)
    };
    let mut store = Vmfs::new(spec(older, "older", 7));
    store.set_time(FORMAT_TIME - 30 * 86_400);
    store.mkdir("outer");
    // Its entries get the first sub-blocks, as those of `new` will.
    store.sync();
    // Its descriptor goes to `new/taker`.
    store.file("outer/first", Content::bytes(*b"first\n"), &auto);
    store.mkdir("outer/inner");
    store.file("outer/inner/deep.txt", Content::patterned(30_000, 1), &auto);
    store.mkdir("disks");
    let len = 20 * GIB;
    let disk = Content::sparse(len).with(0, pattern(5_000_000, 2)).with(15 * GIB, pattern(3_000_000, 3));
    let last = store.volume_len() - 64 * MIB;
    store.file("disks/x-flat.vmdk", disk, &auto.clone().from(last));
    let text = Descriptor::flat(len, "x-flat.vmdk", true, 9).text();
    store.file("disks/x.vmdk", Content::bytes(text), &auto);
    let blocks = store.locate("disks/x-flat.vmdk").blocks;
    let doomed = store.doomed();
    let mut store = Vmfs::format_over(spec(newer, "newer", 8), store.finish());
    store.remember(doomed);
    store.mkdir("new");
    let taken = blocks[1].lv;
    store.file("new/taker", Content::patterned(1_500_000, 4), &auto.from(taken));
    end(store)
}

/// A guest's disk that was deleted as ESXi does.
#[derive(Clone, Debug)]
pub struct LostGuest {
    /// The datastore; the disk is `vm/x-flat.vmdk`, its descriptor was `vm/x.vmdk`.
    pub scene: Scene,
    /// The disk.
    pub guest: Skeleton,
    /// Where it was: what a reassembly must come to, guest byte by guest byte.
    pub located: Located,
}

impl LostGuest {
    /// Byte of the volume that held a byte of the disk; `None` in a hole.
    #[must_use]
    pub fn lv(&self, at: u64) -> Option<u64> {
        let blocks = &self.located.blocks;
        let block: &Block = blocks.get(blocks.partition_point(|b| b.offset + b.len <= at))?;
        (block.offset <= at).then(|| block.lv + at - block.offset)
    }
}

/// How a disk lay on its datastore.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Its blocks in order, other files' or free ones between.
    Ascending,
    /// Its blocks in any order.
    Any,
}

/// A thin disk of `len` bytes, 3 GiB and more, that was deleted; beside it another machine's, which lives.
#[must_use]
pub fn lost_guest(version: Version, guest: Guest, len: u64, order: Order, pointer_blocks: Left) -> LostGuest {
    let pieces: Vec<u64> = (0..24).map(|n| (300 + n + 40 * (n / 6)) * MIB).collect();
    let skeleton = Skeleton::new(guest, len, &pieces);
    let (scene, located) = lost_disk(version, &skeleton.device, order, pointer_blocks);
    LostGuest { scene, guest: skeleton, located }
}

/// As [`lost_guest`] with any disk, as one that holds a file system of [`crate::guest`].
#[must_use]
pub fn lost_disk(version: Version, disk: &Device, order: Order, pointer_blocks: Left) -> (Scene, Located) {
    let auto = Layout::default();
    let mut store = Vmfs::new(VmfsSpec::new(version, 2 * GIB + 32 * MIB));
    let layout = match order {
        Order::Ascending => auto.clone().gapped(2),
        Order::Any => auto.clone().shuffled(17),
    };
    store.mkdir("vm");
    let text = Descriptor::flat(disk.len(), "x-flat.vmdk", true, 9).text();
    store.file("vm/x.vmdk", Content::bytes(text), &auto);
    store.file("vm/x-flat.vmdk", Content::device(disk), &layout);
    store.mkdir("other");
    let other = Skeleton::new(Guest::Ext, 3 * GIB, &[]);
    store.file("other/y-flat.vmdk", Content::device(&other.device), &layout);
    store.delete_as_esxi("vm/x.vmdk");
    let located = store.delete_leaving("vm/x-flat.vmdk", pointer_blocks, Left::Kept);
    (end(store), located)
}

/// A span of three, and what of which file hangs on each extent.
#[derive(Clone, Debug)]
pub struct Span {
    /// The scene with all three.
    pub scene: Scene,
    /// By device: what is lost without it.
    pub without: Vec<Vec<Hangs>>,
}

/// A span of three with files on all of it.
#[must_use]
pub fn span(version: Version) -> Span {
    let extents = vec![GIB + 32 * MIB, 288 * MIB, 544 * MIB];
    let mut store = Vmfs::new(VmfsSpec { extents: extents.clone(), ..VmfsSpec::new(version, 0) });
    let auto = Layout::default();
    store.file("first", Content::patterned(3_000_000, 60), &auto);
    store.file("everywhere", Content::patterned(60_000_000, 61), &auto.clone().shuffled(5));
    let thin = Content::sparse(30 * GIB).with(20 * GIB, pattern(9_000_000, 62));
    store.file("thin-flat.vmdk", thin, &auto.clone().shuffled(6));
    // Ends on the second extent and begins on the third.
    store.file("edge", Content::patterned(6_000_000, 63), &auto.from(GIB + 256 * MIB - 3 * MIB));
    let without = extents.iter().enumerate().map(|(n, &len)| store.depends(n, 0..len)).collect();
    Span { scene: end(store), without }
}

/// A whole LUN with a datastore's device in its only partition.
#[derive(Clone, Debug)]
pub struct Lun {
    /// Its bytes.
    pub device: Device,
    /// Where the partition lies.
    pub partition: Range<u64>,
    /// Where the partition tables lie: protective MBR, GPT, and the backup at the end.
    pub tables: [Range<u64>; 2],
}

/// Puts a device into a partition at 1 MiB of a disk with sectors of `sector` bytes.
#[must_use]
pub fn lun(device: &Device, sector: u64) -> Lun {
    let partition = MIB..MIB + device.len();
    let len = partition.end.next_multiple_of(MIB) + MIB;
    let mut disk = Device::new(len);
    disk.embed(MIB, device);
    let table = 128 * 128;
    let part = Partition { kind: TYPE_VMFS, name: "", start: MIB, len: device.len() };
    write_gpt_of(&mut disk, sector, Guid::seeded(5), &[part]);
    let tables = [0..2 * sector + table, len - sector - table..len];
    Lun { device: disk, partition, tables }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vmfs::{By, Fate};

    #[test]
    fn formatting_over_leaves_what_it_says() {
        for (older, newer) in
            [(Version::Six, Version::Six), (Version::Six, Version::Five), (Version::Five, Version::Six)]
        {
            let scene = formatted_over(older, newer);
            let of = |path: &str| &scene.dead.iter().find(|(dead, _)| dead.path == path).expect("it was there").1;
            let disk = of("disks/x-flat.vmdk");
            let taken = Fate::Overwritten("new/taker".into());
            assert!(disk.data.contains(&(1 << 20..3 << 20, taken)), "{older:?} {newer:?}: {:?}", disk.data);
            assert!(disk.data.iter().any(|(_, fate)| *fate == Fate::Kept));
            if older == newer {
                assert!(!of("outer").descriptor && of("outer/inner").descriptor);
                assert!(!of("outer/inner").name, "its parent's entries went to another folder");
                assert!(of("outer/inner/deep.txt").name);
                let deep = &of("outer/inner/deep.txt").data;
                assert!(deep.iter().all(|(_, fate)| *fate == Fate::Kept), "{deep:?}");
            }
        }
    }

    #[test]
    fn a_lost_guest_is_where_it_was() {
        for (version, order) in [(Version::Five, Order::Ascending), (Version::Six, Order::Any)] {
            for guest in [Guest::Ext, Guest::Ntfs, Guest::Xfs] {
                let lost = lost_guest(version, guest, 4 * GIB, order, Left::Zeroed);
                for anchor in &lost.guest.anchors {
                    let lv = lost.lv(anchor.at).expect("anchors have blocks");
                    let at = 0x110_0000 + lv;
                    assert_eq!(lost.scene.devices[0].read(at, 64), lost.guest.device.read(anchor.at, 64), "{anchor:?}");
                }
                let sorted = lost.located.blocks.is_sorted_by_key(|b| b.lv);
                assert_eq!(sorted, order == Order::Ascending);
            }
        }
    }

    #[test]
    fn each_extent_of_a_span_has_its_share() {
        for version in [Version::Five, Version::Six] {
            let span = span(version);
            let data = |n: usize, path: &str| -> u64 {
                let hangs = span.without[n].iter().filter(|h| h.path == path && h.by == By::Data);
                hangs.map(|h| h.range.end - h.range.start).sum()
            };
            assert_eq!((0..3).map(|n| data(n, "everywhere")).sum::<u64>(), 60_000_000);
            assert!((0..3).all(|n| data(n, "everywhere") > 0));
            assert_eq!([0, 1, 2].map(|n| data(n, "edge")), [0, 3 * MIB, 6_000_000 - 3 * MIB]);
        }
    }

    #[test]
    fn a_lun_of_4096_byte_sectors_has_its_table_there() {
        let lun = lun(&Device::new(64 * MIB), 4096);
        assert_eq!(lun.device.read(4096, 8), b"EFI PART");
        assert_eq!(lun.device.read(lun.device.len() - 4096, 8), b"EFI PART");
        assert_eq!(lun.device.read(2 * 4096 + 32, 8), (MIB / 4096).to_le_bytes());
    }
}
