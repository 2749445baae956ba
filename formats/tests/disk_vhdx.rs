//! VHDX against qemu-img and images of Windows, and one outcome for each damage.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::arithmetic_side_effects,
    clippy::as_conversions,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    missing_docs,
    unreachable_pub,
    reason = "tests"
)]

mod disk_support;

use disk_support::*;
use vdrecover_formats::{Bytes, Trust, read_vec};
use vdrecover_testdata::Device;
use vdrecover_testdata::vhdx::{BAT, Parent, Vhdx, seal};

const MIB: usize = 1 << 20;

/// A disk of six blocks of 1 MiB, of which the second and the third were never written.
fn six() -> Vec<u8> {
    let mut plain = sample(5 * MIB + 1024);
    plain[MIB..3 * MIB].fill(0);
    plain
}

fn image(writer: &Vhdx) -> Vec<u8> {
    writer.write(&Device::from_bytes(&six()), None)
}

#[test]
fn images_of_qemu_img() {
    if !has("qemu-img", "images_of_qemu_img") {
        return;
    }
    let folder = Folder::new();
    let plain = sample(5 * MIB + 1536);
    folder.write("plain.raw", &plain);
    for options in ["subformat=dynamic,block_size=1M", "subformat=fixed,block_size=2M", "block_size=1M,log_size=2M"] {
        folder.run("qemu-img", &["convert", "-f", "raw", "-O", "vhdx", "-o", options, "plain.raw", "image.vhdx"]);
        let image = folder.load("image.vhdx");
        assert_eq!((format_of(&image), codes(&image)), ("vhdx", vec![]), "{options}");
        let layer = disk(&image);
        assert!(all(&layer) == plain, "{options}");
        assert_eq!(trust_of(&layer), Trust::Sound);
        check(&layer);
        assert_eq!(findings(&layer), [""; 0], "{options}");
    }
}

#[test]
fn qemu_img_reads_the_fixtures() {
    if !has("qemu-img", "qemu_img_reads_the_fixtures") {
        return;
    }
    let folder = Folder::new();
    for writer in [Vhdx::default(), Vhdx { sector: 4096, block: 2 << 20, ..Vhdx::default() }] {
        let mut plain = six();
        plain.resize(plain.len().next_multiple_of(4096), 0);
        let image = writer.write(&Device::from_bytes(&plain), None);
        folder.write("image.vhdx", &image);
        assert!(all(&disk(&memory(image))) == plain);
        if writer.sector == 512 {
            assert!(folder.raw(&["-f", "vhdx", "image.vhdx"]) == plain);
        }
    }
    // It replays a log by writing, into its own copy.
    folder.write("dirty.vhdx", &image(&Vhdx { dirty: true, ..Vhdx::default() }));
    folder.run("qemu-img", &["check", "-r", "all", "dirty.vhdx"]);
    assert!(folder.raw(&["-f", "vhdx", "dirty.vhdx"]) == six());
}

#[test]
fn states_of_blocks() {
    let writer = Vhdx { states: vec![(0, 1), (3, 2), (4, 3)], ..Vhdx::default() };
    let layer = disk(&memory(image(&writer)));
    let mib = MIB as u64;
    let want = [
        (0, mib, "zero", Trust::Inferred),
        (mib, 2 * mib, "hole", Trust::Sound),
        (3 * mib, mib, "zero", Trust::Sound),
        (4 * mib, mib, "zero", Trust::Inferred),
        (5 * mib, 1024, "data", Trust::Sound),
    ];
    assert_eq!(map(&layer), want.map(|(at, len, kind, trust)| (at, len, kind.to_owned(), trust)));
    check(&layer);
}

#[test]
fn a_log_is_replayed_in_memory() {
    let bytes = image(&Vhdx { dirty: true, ..Vhdx::default() });
    let image = memory(bytes.clone());
    assert_eq!(codes(&image), ["VHDX-LOG-REPLAYED"]);
    let fact = open(&image).facts.into_iter().find(|fact| fact.name == "log_entries_replayed").unwrap();
    assert_eq!(fact.value, vdrecover_formats::link::Value::Count(2));
    let layer = disk(&image);
    assert!(all(&layer) == six());
    assert_eq!(trust_of(&layer), Trust::Sound);
    check(&layer);
    // The last entry is torn: the one before it is all that counts, as for Windows, and it says garbage.
    let mut torn = bytes.clone();
    torn[MIB + 100] ^= 1;
    let layer = disk(&memory(torn));
    assert!(gaps(&layer).iter().any(|(_, _, why)| why == "unmapped"), "{:?}", gaps(&layer));
    check(&layer);
    // Both are: nothing says any more what the table was.
    let mut lost = bytes;
    lost[MIB..2 * MIB].fill(0x11);
    let image = memory(lost);
    assert_eq!(codes(&image), ["VHDX-LOG"]);
    assert_eq!(trust_of(&disk(&image)), Trust::Doubtful);
}

#[test]
fn dirty_images_of_windows_and_others() {
    let Some(folder) = corpus("dirty_images_of_windows_and_others", "disks/qemu-iotests") else { return };
    let host = Folder::new();
    for (name, replayed) in
        [("iotest-dirtylog-10G-4M.vhdx", true), ("iotest-dynamic-1G.vhdx", false), ("test-disk2vhd.vhdx", false)]
    {
        let image = unpack(&folder.join(format!("{name}.bz2")));
        let expect: &[&str] = if replayed { &["VHDX-LOG-REPLAYED"] } else { &[] };
        assert_eq!((format_of(&image), codes(&image)), ("vhdx", expect.to_vec()), "{name}");
        let layer = disk(&image);
        let rows = map(&layer);
        assert!(rows.iter().all(|(_, _, kind, _)| kind != "unmapped" && kind != "truncated"), "{name}: {rows:?}");
        check(&layer);
        if !has("qemu-img", "dirty_images_of_windows_and_others") {
            continue;
        }
        // On a copy, since a replay writes; compared where there is data.
        host.write(name, &all(&image));
        if replayed {
            host.run("qemu-img", &["check", "-q", "-r", "all", name]);
        }
        for (at, len, ..) in rows.iter().filter(|(_, _, kind, _)| kind == "data") {
            for at in (*at..at + len).step_by(4 << 20) {
                let len = (layer.len() - at).min(64 << 10) as usize;
                let (skip, count) = (format!("skip={}", at / 512), format!("count={}", len / 512));
                let from = format!("if={name}");
                let args = ["dd", "-f", "vhdx", "-O", "raw", &from, "of=piece", "bs=512"];
                // `count` of qemu-img counts from the start of the input.
                let count = format!("count={}", at / 512 + count[6..].parse::<u64>().unwrap());
                host.run("qemu-img", &[&args[..], &[skip.as_str(), count.as_str()]].concat());
                assert!(read_vec(&*layer, at, len).0 == std::fs::read(host.path("piece")).unwrap(), "{name} {at:#x}");
            }
        }
        std::fs::remove_file(host.path(name)).unwrap();
    }
}

#[test]
fn a_differencing_pair_of_windows() {
    let Some(folder) = corpus("a_differencing_pair_of_windows", "disks/dfvfs") else { return };
    let (child, parent) =
        (unpack(&folder.join("ntfs-differential.vhdx.gz")), unpack(&folder.join("ntfs-parent.vhdx.gz")));
    let opened = open(&child);
    assert_eq!(opened.wants[0].id, open(&parent).link.id);
    assert!(opened.wants[0].hint.as_ref().unwrap().ends_with(b"ntfs-parent.vhdx"), "{:?}", opened.wants);
    let layer = disks(&opened, &[Some(disk(&parent))])[0].bytes.clone();
    check(&layer);
    let bytes = all(&layer);
    // The child is the parent with a file more.
    assert!(bytes != all(&disk(&parent)));
    assert_eq!(sha256(&bytes), NTFS_CHILD);
    let ext2 = unpack(&folder.join("ext2.vhdx.gz"));
    assert_eq!(sha256(&all(&disk(&ext2))[..4 << 20])[..16], *"a6c2f0e39afe6c6a");
}

/// As libvhdi 20260901 and dissect.hypervisor 3.21 read it.
const NTFS_CHILD: &str = "1ef1fb5360247aa7d36a38415bc7bf6e1e52f62af5e6bd1283815e82584c7efc";

#[test]
fn a_differencing_disk_shows_its_parent_sector_by_sector() {
    for sector in [512_usize, 4096] {
        let parent = sample(6 * MIB);
        let mut child = parent.clone();
        for at in [0, 3 * sector, 4 * sector, 9 * sector, MIB - sector, 4 * MIB + 9 * sector] {
            child[at..at + sector - 100].fill(0xC5);
        }
        child[2 * MIB..3 * MIB].iter_mut().for_each(|byte| *byte = !*byte);
        let (parent_device, writer) = (Device::from_bytes(&parent), Vhdx { sector: sector as u64, ..Vhdx::default() });
        let parent_image =
            memory(Vhdx { data_write: *b"the parent's id.", ..writer.clone() }.write(&parent_device, None));
        let link = Parent { disk: &parent_device, data_write: *b"the parent's id.", name: ".\\parent.vhdx" };
        let image = memory(writer.write(&Device::from_bytes(&child), Some(link)));
        let opened = open(&image);
        assert_eq!(opened.wants[0].hint.as_deref(), Some(&b".\\parent.vhdx"[..]));
        assert_eq!(opened.wants[0].id, open(&parent_image).link.id);
        let layer = disks(&opened, &[Some(disk(&parent_image))])[0].bytes.clone();
        assert!(all(&layer) == child);
        assert_eq!(trust_of(&layer), Trust::Sound);
        check(&layer);
        let alone = disk(&image);
        assert_eq!(gaps(&alone)[0], (sector as u64, 2 * sector as u64, "absent".into()));
        check(&alone);
    }
}

#[test]
fn either_copy_is_enough() {
    let clean = image(&Vhdx::default());
    let kib = 1 << 10;
    for (what, places, code, trust) in [
        ("first header", &[64 * kib + 40][..], "VHDX-HEADER", Trust::Inferred),
        ("second header", &[128 * kib + 40], "VHDX-HEADER", Trust::Inferred),
        ("both headers", &[64 * kib + 40, 128 * kib + 41], "VHDX-HEADER", Trust::Doubtful),
        ("first table", &[192 * kib + 60_000], "VHDX-REGIONS", Trust::Inferred),
        ("second table", &[256 * kib + 60_000], "VHDX-REGIONS", Trust::Sound),
        ("both tables", &[192 * kib + 60_000, 256 * kib + 60_000], "VHDX-REGIONS", Trust::Doubtful),
        ("identifier", &[3], "VHDX-IDENTIFIER", Trust::Sound),
    ] {
        let mut image = clean.clone();
        for at in places {
            image[*at] ^= 0x40;
        }
        let image = memory(image);
        assert_eq!((format_of(&image), codes(&image)), ("vhdx", vec![code]), "{what}");
        let layer = disk(&image);
        assert!(all(&layer) == six(), "{what}");
        assert_eq!(trust_of(&layer), trust, "{what}");
        check(&layer);
    }
}

#[test]
fn broken_entries_cost_their_block() {
    let good = image(&Vhdx::default());
    let at = BAT as usize;
    let fourth = u64::from_le_bytes(good[at + 24..at + 32].try_into().unwrap());
    let mib = MIB as u64;
    for (what, value, lost) in [
        ("behind the end", 1 << 40 | 6, Some("truncated")),
        ("the table itself", BAT | 6, Some("unmapped")),
        ("the headers", 6, Some("unmapped")),
        ("a reserved bit", 1 << 24 | 1 << 10 | 6, Some("unmapped")),
        ("state 4", 4, Some("unmapped")),
        ("in part, without a parent", fourth | 7, Some("unmapped")),
        ("the place of another block", fourth, None),
    ] {
        let mut image = good.clone();
        image[at..at + 8].copy_from_slice(&u64::to_le_bytes(value));
        let layer = disk(&memory(image));
        check(&layer);
        if let Some(why) = lost {
            assert_eq!(gaps(&layer), [(0, mib, why.into())], "{what}");
            assert_eq!(read_vec(&*layer, mib, 4 * MIB).1.trust, Trust::Sound, "{what}");
            assert_eq!(findings(&layer).len(), 1, "{what}");
        } else {
            let doubtful: Vec<_> =
                map(&layer).into_iter().filter(|row| row.3 == Trust::Doubtful).map(|row| (row.0, row.1)).collect();
            assert_eq!(doubtful, [(0, mib), (3 * mib, mib)], "{what}");
            assert_eq!(findings(&layer), ["VHDX-BLOCK-SHARED"], "{what}");
        }
    }
}

#[test]
fn hostile_numbers() {
    let open_it = |image: &Bytes| {
        let opened = (vdrecover_formats::disk::vhdx::FORMAT.open)(image, &memo()).ok()?;
        let others = vec![None; opened.wants.len()];
        (opened.join)(&others).ok()?;
        Some(disks(&opened, &others)[0].bytes.clone())
    };
    let good = image(&Vhdx { dirty: true, ..Vhdx::default() });
    // Regions and logs of any place and length, with right checksums.
    for (copies, len, field, value) in [
        ([192 << 10, 256 << 10], 64 << 10, 8, u64::MAX),
        ([192 << 10, 256 << 10], 64 << 10, 32, u64::MAX - 7),
        ([192 << 10, 256 << 10], 64 << 10, 36, u64::MAX),
        ([64 << 10, 128 << 10], 4096, 68, u64::MAX),
        ([64 << 10, 128 << 10], 4096, 72, u64::MAX),
        ([64 << 10, 128 << 10], 4096, 66, 0x0400_0000_0000_0001),
    ] {
        let mut image = good.clone();
        for at in copies {
            image[at + field..at + field + 8].copy_from_slice(&u64::to_le_bytes(value));
            seal(&mut image[at..at + len]);
        }
        if let Some(layer) = open_it(&memory(image)) {
            check(&layer);
        }
    }
    let areas = [64 << 10, 128 << 10, 192 << 10, 2 << 20, (2 << 20) + (64 << 10), 3 << 20, (1 << 20) + 4096];
    for at in areas {
        // `mutate` works on what it gets, which is put in place of the area.
        mutate(&good[at..at + 256], 25, 256, |bytes| {
            let (piece, _) = read_vec(&**bytes, 0, bytes.len() as usize);
            let mut image = good.clone();
            image[at..at + piece.len()].copy_from_slice(&piece);
            open_it(&memory(image))
        });
    }
}
