//! What datastores promise: the same bytes each time, and structures that lie where `locate` says.

#![allow(clippy::expect_used, reason = "a test stops where its expectation fails")]

use vdrecover_testdata::Device;
use vdrecover_testdata::vmfs::{
    Addressing, Allocation, BlockKind, Content, Deletion, Layout, Version, Vmfs, VmfsSpec, pattern,
};

const DISK: u64 = 2_181_038_592;
const BOTH: [Version; 2] = [Version::Five, Version::Six];

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

fn lv(device: &Device, at: u64, len: usize) -> Vec<u8> {
    device.read(0x110_0000 + at, len)
}

fn filled(version: Version) -> Vmfs {
    let mut store = Vmfs::new(VmfsSpec::new(version, DISK));
    store.mkdir("vm");
    let thin = Content::sparse(40 << 30).with(33 << 30, pattern(3_000_000, 1));
    store.file("vm/vm-flat.vmdk", thin, &Layout::default());
    store.file("vm/scattered", Content::patterned(9_000_000, 2), &Layout::default().shuffled(3));
    store.file("vm/vm.vmx", Content::bytes(*b"displayName = \"vm\"\n"), &Layout::default());
    store
}

#[test]
fn two_runs_give_the_same_bytes() {
    for version in BOTH {
        assert!(filled(version).finish() == filled(version).finish(), "{version:?}");
    }
}

#[test]
fn every_record_names_its_own_position() {
    for version in BOTH {
        let device = filled(version).finish().remove(0);
        let mut records = 0;
        for (at, bytes) in device.blocks() {
            for (n, sector) in bytes.chunks(512).enumerate() {
                let known = matches!(u32_at(sector, 0), 0x10C0_0001..=0x10C0_0009 | 0xABCD_EF01 | 0xABCD_EF02);
                if known {
                    assert_eq!(u64_at(sector, 4), at + 512 * n as u64 - 0x110_0000);
                    records += 1;
                }
            }
        }
        assert!(records > 2000, "{version:?}: only {records} records");
    }
}

#[test]
fn located_structures_are_there() {
    for version in BOTH {
        let six = version == Version::Six;
        let mut store = filled(version);
        let at = store.locate("vm/vm-flat.vmdk");
        let vmx = store.locate("vm/vm.vmx");
        let device = store.finish().remove(0);
        let fd = lv(&device, at.fd_lv, usize::try_from(at.fd_len).expect("small"));
        let meta = if six { 4096 } else { 512 };
        assert_eq!(u32_at(&fd, meta), at.fd);
        assert_eq!(u64_at(&fd, meta + 0x14), 40 << 30);
        assert_eq!(u32_at(&fd, meta + 0x44), 3);
        assert_eq!(u32_at(&lv(&device, at.cluster_lv, 4), 0), 0x10C0_0005);
        let entry = lv(&device, at.entry_lv.expect("has a name"), 140);
        assert_eq!(u32_at(&entry, 4), at.fd);
        assert!(entry[if six { 24 } else { 12 }..].starts_with(b"vm-flat.vmdk\0"));
        // 3 MB from 33 GiB on: pattern in the first block, a pointer to it in the leaf.
        let first = at.blocks[0];
        assert_eq!((first.offset, first.kind), (33 << 30, BlockKind::FileBlock));
        assert_eq!(lv(&device, first.lv, 512), pattern(512, 1));
        let leaf = at.pointer_blocks.iter().find(|p| p.level == 0).expect("has a leaf");
        let width = if six { 8 } else { 4 };
        let slot = (first.offset - leaf.offset) / (1 << 20) * width;
        let pointer = lv(&device, leaf.lv + slot, 8);
        let pointer = if six { u64_at(&pointer, 0) } else { u32_at(&pointer, 0).into() };
        assert_eq!(pointer, first.address);
        let text = lv(&device, vmx.resident_lv.expect("is resident"), 11);
        assert_eq!(text, b"displayName");
    }
}

#[test]
fn esxi_deletion_keeps_who_it_was_and_wipes_where_it_lay() {
    for version in BOTH {
        let six = version == Version::Six;
        let mut store = filled(version);
        let at = store.delete_as_esxi("vm/vm-flat.vmdk");
        assert_eq!(store.deleted()[0].how, Deletion::Esxi);
        let device = store.finish().remove(0);
        let fd = lv(&device, at.fd_lv, usize::try_from(at.fd_len).expect("small"));
        let meta = if six { 4096 } else { 512 };
        assert_eq!(u32_at(&fd, meta), at.fd);
        assert_eq!(u32_at(&fd, meta + 0x44), 3, "the address type stays");
        for zero in [0x08, 0x14, 0x24] {
            assert_eq!(u32_at(&fd, meta + zero), 0, "field {zero:#x}");
        }
        let pointers = usize::try_from(at.pointers_lv - at.fd_lv).expect("small");
        assert!(fd[pointers..].iter().all(|&b| b == 0));
        assert_eq!(lv(&device, at.blocks[0].lv, 512), pattern(512, 1), "data stays");
        let leaf = at.pointer_blocks[0];
        let bytes = lv(&device, leaf.lv, usize::try_from(leaf.len).expect("small"));
        assert!(bytes.iter().any(|&b| b != 0), "pointer blocks stay");
        if six {
            let entry = lv(&device, at.entry_lv.expect("had a name"), 288);
            assert!(entry.iter().all(|&b| b == 0));
        }
    }
}

#[test]
fn used_blocks_are_counted_once() {
    // Over all file block clusters, total less free is what the descriptors of the volume say they use.
    let mut store = filled(Version::Five);
    let mut want = 0;
    for path in ["", "vm", "vm/vm-flat.vmdk", "vm/scattered"] {
        let at = store.locate(path);
        want += at.blocks.iter().filter(|b| b.kind == BlockKind::FileBlock).count();
    }
    let landmarks = store.landmarks();
    let device = store.finish().remove(0);
    for name in [".fbb.sf", ".fdc.sf", ".pbc.sf", ".sbc.sf", ".vh.sf", ".pb2.sf", ".sdd.sf"] {
        want += u32_at(&lv(&device, landmarks[name] + 0x224, 4), 0) as usize;
    }
    let fbb = landmarks[".fbb.sf data"];
    let mut used = 0;
    for cluster in 0..11 {
        let header = lv(&device, fbb + 0x1_0000 + 1024 * cluster, 1024);
        let (total, free) = (u32_at(&header, 0x204), u32_at(&header, 0x208));
        let ones: u32 = header[0x210..0x230].iter().map(|b| b.count_ones()).sum();
        assert_eq!(ones, free, "cluster {cluster}");
        used += (total - free) as usize;
    }
    assert_eq!(used, want);
}

#[test]
fn a_lazy_thick_file_holds_stale_bytes_behind_its_flags() {
    for version in BOTH {
        let mut store = Vmfs::new(VmfsSpec::new(version, DISK));
        let content = Content::sparse(8 << 20).with(5 << 20, *b"here");
        store.file("lazy", content, &Layout::default().allocation(Allocation::LazyThick));
        let at = store.locate("lazy");
        assert_eq!(at.blocks.len(), 8);
        assert_eq!(at.blocks.iter().filter(|b| b.to_be_zeroed).count(), 7);
        let device = store.finish().remove(0);
        assert!(lv(&device, at.blocks[0].lv, 11).starts_with(b"STALE BYTES"));
    }
}

#[test]
#[should_panic(expected = "not resident data")]
fn refuses_resident_data_that_does_not_fit() {
    let mut store = Vmfs::new(VmfsSpec::new(Version::Five, DISK));
    store.file("f", Content::patterned(5000, 1), &Layout::default().addressing(Addressing::Resident));
}
