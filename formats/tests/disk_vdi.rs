//! VDI against qemu-img, and one outcome for each damage.

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
use vdrecover_formats::disk::vdi::FORMAT;
use vdrecover_formats::{Bytes, Trust, read_vec};
use vdrecover_testdata::Device;
use vdrecover_testdata::vdi::{DATA, Ids, MAP, write};

const MIB: usize = 1 << 20;
const IDS: Ids = Ids { created: *b"created, as ever", modified: *b"modified at last" };

/// A disk of six blocks, of which the second and the third were never written.
fn six() -> Vec<u8> {
    let mut plain = sample(5 * MIB + 1024);
    plain[MIB..3 * MIB].fill(0);
    plain
}

fn image() -> Vec<u8> {
    write(&Device::from_bytes(&six()), IDS, None)
}

#[test]
fn images_of_qemu_img() {
    if !has("qemu-img", "images_of_qemu_img") {
        return;
    }
    let folder = Folder::new();
    let plain = sample(5 * MIB + 1536);
    folder.write("plain.raw", &plain);
    for options in ["static=off", "static=on"] {
        folder.run("qemu-img", &["convert", "-f", "raw", "-O", "vdi", "-o", options, "plain.raw", "image.vdi"]);
        let image = folder.load("image.vdi");
        assert_eq!((format_of(&image), codes(&image)), ("vdi", vec![]), "{options}");
        let layer = disk(&image);
        assert!(all(&layer) == plain, "{options}");
        assert_eq!(trust_of(&layer), Trust::Sound);
        check(&layer);
        assert_eq!(findings(&layer), [""; 0], "{options}");
    }
    folder.write("image.vdi", &image());
    assert!(folder.raw(&["-f", "vdi", "image.vdi"]) == six(), "the fixture");
}

#[test]
fn a_child_shows_zeros_where_it_says_so_and_else_its_parent() {
    let parent = sample(5 * MIB);
    let mut child = parent.clone();
    child[MIB..2 * MIB].fill(0);
    child[3 * MIB + 5] ^= 1;
    let below = Device::from_bytes(&parent);
    let parent_image = memory(write(&below, IDS, None));
    let own = Ids { created: [3; 16], modified: [4; 16] };
    let image = memory(write(&Device::from_bytes(&child), own, Some((&below, IDS))));
    let opened = open(&image);
    assert_eq!(opened.wants[0].id, open(&parent_image).link.id);
    let layer = disks(&opened, &[Some(disk(&parent_image))])[0].bytes.clone();
    assert!(all(&layer) == child);
    check(&layer);
    let alone = disk(&image);
    let mib = MIB as u64;
    let kinds: Vec<_> = map(&alone).into_iter().map(|(at, len, kind, _)| (at / mib, len / mib, kind)).collect();
    let row = |at, len, kind: &str| (at, len, kind.to_owned());
    assert_eq!(
        kinds,
        [row(0, 1, "absent"), row(1, 1, "zero"), row(2, 1, "absent"), row(3, 1, "data"), row(4, 1, "absent")]
    );
    // A parent that was changed since is not the one that is wanted.
    let changed = Ids { modified: [9; 16], ..IDS };
    assert_ne!(opened.wants[0].id, open(&memory(write(&below, changed, None))).link.id);
}

#[test]
fn broken_entries_cost_their_block() {
    let good = image();
    let (map_at, mib) = (MAP as usize, MIB as u64);
    for (what, value, lost, doubtful) in [
        ("behind the end", 1000_u32, Some((0, mib, "unmapped".to_owned())), vec![]),
        ("the place of another block", 2, None, vec![(0, mib), (4 * mib, mib)]),
    ] {
        let mut image = good.clone();
        image[map_at..map_at + 4].copy_from_slice(&value.to_le_bytes());
        let layer = disk(&memory(image));
        check(&layer);
        assert_eq!(gaps(&layer), Vec::from_iter(lost), "{what}");
        let rows = map(&layer).into_iter().filter(|row| row.3 == Trust::Doubtful);
        assert_eq!(rows.map(|row| (row.0, row.1)).collect::<Vec<_>>(), doubtful, "{what}");
        assert_eq!(findings(&layer).len(), 1, "{what}");
    }
}

#[test]
fn a_header_that_contradicts_itself_is_doubtful() {
    for (what, at, value, code) in [
        ("fewer blocks allocated", 388, 3_u32, "VDI-ALLOCATED"),
        ("more blocks allocated", 388, 5, "VDI-SHORT"),
        ("more than there are", 388, 7, "VDI-ALLOCATED"),
        ("another number of blocks", 384, 7, "VDI-BLOCKS"),
        ("data in the map", 344, MAP as u32, "VDI-LAYOUT"),
        ("sectors of 4 KiB", 360, 4096, "VDI-SECTOR"),
    ] {
        let mut image = image();
        image[at..at + 4].copy_from_slice(&value.to_le_bytes());
        let image = memory(image);
        assert!(codes(&image).contains(&code), "{what}: {:?}", codes(&image));
        let layer = disk(&image);
        assert_eq!(trust_of(&layer), Trust::Doubtful, "{what}");
        check(&layer);
    }
}

#[test]
fn a_cut_image_keeps_what_it_has() {
    let mut image = image();
    image.truncate(DATA as usize + 2 * MIB + 4096);
    let image = memory(image);
    assert_eq!(codes(&image), ["VDI-SHORT"]);
    let layer = disk(&image);
    let mib = MIB as u64;
    assert_eq!(gaps(&layer), [(4 * mib + 4096, mib + 1024 - 4096, "truncated".into())]);
    assert!(read_vec(&*layer, 0, 4 * MIB).0 == six()[..4 * MIB]);
}

#[test]
fn other_versions_are_named() {
    let mut image = image();
    image[70] = 0;
    let error = (FORMAT.open)(&memory(image), &memo()).unwrap_err();
    assert_eq!(error.to_string(), "VDI version 0.1 is not supported");
}

#[test]
fn hostile_numbers() {
    let good = image();
    let open_it = |image: &Bytes| {
        let opened = (FORMAT.open)(image, &memo()).ok()?;
        Some(disks(&opened, &vec![None; opened.wants.len()])[0].bytes.clone())
    };
    for (at, value) in [(340, u64::MAX), (368, u64::MAX), (376, 0x4000_0000_4000_0000), (384, u64::MAX)] {
        let mut image = good.clone();
        image[at..at + 8].copy_from_slice(&value.to_le_bytes());
        if let Some(layer) = open_it(&memory(image)) {
            check(&layer);
        }
    }
    for at in [64, 336, MAP as usize] {
        mutate(&good[at..at + 128], 60, 128, |bytes| {
            let (piece, _) = read_vec(&**bytes, 0, bytes.len() as usize);
            let mut image = good.clone();
            image[at..at + piece.len()].copy_from_slice(&piece);
            open_it(&memory(image))
        });
    }
}
