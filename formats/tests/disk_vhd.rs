//! VHD against qemu-img and images of Windows, and one outcome for each damage.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::arithmetic_side_effects,
    clippy::as_conversions,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::single_range_in_vec_init,
    missing_docs,
    unreachable_pub,
    reason = "tests"
)]

mod disk_support;

use disk_support::*;
use vdrecover_formats::link::Value;
use vdrecover_formats::{Bytes, Trust, read_vec};
use vdrecover_testdata::Device;
use vdrecover_testdata::vhd::{Parent, Vhd};

const MIB: usize = 1 << 20;

/// A disk of three blocks of 2 MiB, of which the middle one was never written.
fn three() -> Vec<u8> {
    let mut plain = sample(5 * MIB + 512);
    plain[2 * MIB..4 * MIB].fill(0);
    plain
}

fn dynamic() -> Vec<u8> {
    Vhd::default().dynamic(&Device::from_bytes(&three()))
}

#[test]
fn images_of_qemu_img() {
    if !has("qemu-img", "images_of_qemu_img") {
        return;
    }
    let folder = Folder::new();
    let plain = sample(5 * MIB + 1536);
    folder.write("plain.raw", &plain);
    for options in ["subformat=dynamic,force_size=on", "subformat=fixed,force_size=on", "subformat=dynamic"] {
        folder.run("qemu-img", &["convert", "-f", "raw", "-O", "vpc", "-o", options, "plain.raw", "image.vhd"]);
        let image = folder.load("image.vhd");
        assert_eq!((format_of(&image), codes(&image)), ("vhd", vec![]), "{options}");
        let layer = disk(&image);
        // Without force_size QEMU rounds up to whole cylinders.
        assert!(layer.len() >= plain.len() as u64 && options.contains("force") <= (layer.len() == plain.len() as u64));
        assert!(all(&layer)[..plain.len()] == plain, "{options}");
        assert!(all(&layer) == folder.raw(&["-f", "vpc", "image.vhd"]), "{options}");
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
    for image in [dynamic(), Vhd::default().fixed(&Device::from_bytes(&three()))] {
        folder.write("image.vhd", &image);
        assert!(folder.raw(&["-f", "vpc", "image.vhd"]) == three());
        assert!(all(&disk(&memory(image))) == three());
    }
}

#[test]
fn a_map_tells_holes() {
    let layer = disk(&memory(dynamic()));
    let rows: Vec<_> = map(&layer).into_iter().map(|(at, len, kind, _)| (at, len, kind)).collect();
    let (two, rest) = (2 << 20, (1 << 20) + 512);
    assert_eq!(rows, [(0, two, "data".into()), (two, two, "hole".into()), (2 * two, rest, "data".into())]);
}

/// The fixture's parent and child disks: sectors of the child in all places, sectors of the parent between them.
fn pair() -> (Vec<u8>, Vec<u8>, Vec<u8>) {
    let parent = sample(5 * MIB);
    let mut child = parent.clone();
    for at in [0, 3 * 512, 4 * 512, 9 * 512, 4096 * 512 - 512, 4 * MIB + 700] {
        child[at..at + 400].fill(0xC5);
    }
    let parent_device = Device::from_bytes(&parent);
    let link = Parent { disk: &parent_device, id: *b"the parent's id.", name: ".\\parent.vhd" };
    let image = Vhd { id: *b"the child's id..", ..Vhd::default() }.differencing(&Device::from_bytes(&child), link);
    (parent, child, image)
}

#[test]
fn a_differencing_disk_shows_its_parent_sector_by_sector() {
    let (parent, child, image) = pair();
    let image = memory(image);
    let opened = open(&image);
    assert_eq!(opened.wants.len(), 1);
    assert_eq!(opened.wants[0].hint.as_deref(), Some(&b".\\parent.vhd"[..]));
    let parent_image = Vhd { id: *b"the parent's id.", ..Vhd::default() }.dynamic(&Device::from_bytes(&parent));
    let parent_image = memory(parent_image);
    assert_eq!(opened.wants[0].id, open(&parent_image).link.id);
    let layer = disks(&opened, &[Some(disk(&parent_image))])[0].bytes.clone();
    assert!(all(&layer) == child);
    assert_eq!(trust_of(&layer), Trust::Sound);
    check(&layer);
    // Without its parent it has what was written, and nothing else.
    let alone = disk(&image);
    assert_eq!(gaps(&alone)[0], (512, 1024, "absent".into()));
    let (bytes, seen) = read_vec(&*alone, 0, child.len());
    let lost = |at: usize| seen.gaps.iter().any(|gap| gap.range.contains(&(at as u64)));
    assert!((0..child.len()).all(|at| lost(at) || bytes[at] == child[at]));
    check(&alone);
}

#[test]
fn differencing_disks_of_windows() {
    let Some(folder) = corpus("differencing_disks_of_windows", "disks/dfvfs") else { return };
    let gunzip = |name: &str| unpack(&folder.join(name));
    let (child, parent) = (gunzip("fat-differential.vhd.gz"), gunzip("fat-parent.vhd.gz"));
    let opened = open(&child);
    assert_eq!(opened.wants[0].id, open(&parent).link.id);
    assert!(opened.wants[0].hint.as_ref().unwrap().ends_with(b".vhd"), "{:?}", opened.wants);
    let layer = disks(&opened, &[Some(disk(&parent))])[0].bytes.clone();
    assert_eq!(sha256(&all(&layer))[..16], *"f4b61a33ee2f7e8c");
    check(&layer);
    // A dynamic image whose volume other formats of the corpus hold too.
    let ext2 = gunzip("ext2.vhd.gz");
    assert_eq!(sha256(&all(&disk(&ext2))[..4 << 20])[..16], *"a6c2f0e39afe6c6a");
}

#[test]
fn images_of_other_writers() {
    let Some(folder) = corpus("images_of_other_writers", "disks/qemu-iotests") else { return };
    for (name, size) in [
        ("d2v-zerofilled.vhd.bz2", 263_454_720),
        ("hyperv2012r2-dynamic.vhd.bz2", 127 << 30),
        ("virtualpc-dynamic.vhd.bz2", 127 << 30),
    ] {
        let image = unpack(&folder.join(name));
        assert_eq!((format_of(&image), codes(&image)), ("vhd", vec![]), "{name}");
        let layer = disk(&image);
        assert_eq!(layer.len(), size, "{name}");
        assert!(map(&layer).iter().all(|(_, _, kind, trust)| kind != "unmapped" && *trust == Trust::Sound), "{name}");
        check(&layer);
    }
}

#[test]
fn either_footer_is_enough() {
    let image = dynamic();
    let end = image.len() - 512;
    for (what, damage, code, trust) in [
        (
            "end cut",
            (|image: &mut Vec<u8>, end: usize| image.truncate(end)) as fn(&mut Vec<u8>, usize),
            "VHD-FOOTER",
            Trust::Inferred,
        ),
        ("end zeroed", |image, end| image[end..].fill(0), "VHD-FOOTER", Trust::Inferred),
        ("end changed", |image, end| image[end + 50] ^= 1, "VHD-FOOTER", Trust::Inferred),
        ("start zeroed", |image, _| image[..512].fill(0), "VHD-FOOTER-COPY", Trust::Sound),
        ("start changed", |image, _| image[55] ^= 1, "VHD-FOOTER-COPY", Trust::Sound),
        (
            "both changed",
            |image, end| [28, end + 29].iter().for_each(|at| image[*at] ^= 1),
            "VHD-FOOTER",
            Trust::Doubtful,
        ),
    ] {
        let mut image = image.clone();
        damage(&mut image, end);
        let image = memory(image);
        assert_eq!((format_of(&image), codes(&image)), ("vhd", vec![code]), "{what}");
        let layer = disk(&image);
        assert!(all(&layer) == three(), "{what}");
        assert_eq!(trust_of(&layer), trust, "{what}");
        check(&layer);
    }
}

#[test]
fn a_footer_of_511_bytes() {
    let mut image = Vhd::default().fixed(&Device::from_bytes(&three()));
    image.pop();
    let image = memory(image);
    assert_eq!((format_of(&image), codes(&image)), ("vhd", vec![]));
    assert!(all(&disk(&image)) == three());
}

#[test]
fn a_fixed_disk_that_lost_its_middle() {
    let mut image = Vhd::default().fixed(&Device::from_bytes(&three()));
    image.drain(MIB..MIB + 4096);
    let image = memory(image);
    assert_eq!(codes(&image), ["VHD-SIZE"]);
    let layer = disk(&image);
    assert_eq!(gaps(&layer), [(three().len() as u64 - 4096, 4096, "truncated".into())]);
    assert_eq!(trust_of(&layer), Trust::Doubtful);
}

/// Each entry that no writer makes costs its own block.
#[test]
fn broken_entries_cost_their_block() {
    let good = dynamic();
    let second = u32::from_be_bytes(good[1536 + 8..1536 + 12].try_into().unwrap());
    for (what, value, lost) in [
        ("behind the end", 1_000_000_u32, Some("truncated")),
        ("the table itself", 3, Some("unmapped")),
        ("the header", 0, Some("unmapped")),
        ("the place of another block", second, None),
        ("a part of another block", second - 1, None),
    ] {
        let mut image = good.clone();
        image[1536..1540].copy_from_slice(&value.to_be_bytes());
        let layer = disk(&memory(image));
        check(&layer);
        let rows = map(&layer);
        let end = three().len() as u64;
        if let Some(why) = lost {
            assert_eq!(gaps(&layer), [(0, 2 << 20, why.into())], "{what}");
            assert!(read_vec(&*layer, 2 << 20, 3 << 20).1.trust == Trust::Sound, "{what}");
            assert_eq!(findings(&layer).len(), 1, "{what}");
        } else {
            // Which of the two owners is right, nothing tells.
            let doubtful: Vec<_> =
                rows.iter().filter(|row| row.3 == Trust::Doubtful).map(|row| (row.0, row.1)).collect();
            assert_eq!(doubtful, [(0, 2 << 20), (4 << 20, end - (4 << 20))], "{what}");
            assert_eq!(findings(&layer), ["VHD-BLOCK-SHARED"], "{what}");
        }
    }
}

#[test]
fn a_changed_dynamic_header_is_doubtful() {
    let mut image = dynamic();
    image[512 + 700] ^= 4;
    let image = memory(image);
    assert_eq!(codes(&image), ["VHD-HEADER"]);
    assert!(all(&disk(&image)) == three());
    assert_eq!(trust_of(&disk(&image)), Trust::Doubtful);
}

#[test]
fn an_unreadable_bitmap_costs_its_sectors() {
    let (parent, _, image) = pair();
    let first = u64::from(u32::from_be_bytes(image[1536..1540].try_into().unwrap())) * 512;
    let damaged: Bytes = std::sync::Arc::new(vdrecover_formats::adapt::Damaged::new(
        memory(image),
        vec![first..first + 512],
        vdrecover_formats::Why::Unreadable,
    ));
    let opened = open(&damaged);
    let layer = disks(&opened, &[Some(memory(parent))])[0].bytes.clone();
    assert_eq!(gaps(&layer), [(0, 2 << 20, "unmapped".into())]);
    check(&layer);
}

#[test]
fn the_footer_tells_who_made_it() {
    let opened = open(&memory(dynamic()));
    let fact = |name| opened.facts.iter().find(|fact| fact.name == name).unwrap().value.clone();
    assert_eq!(fact("creator"), "win ");
    assert_eq!(fact("type"), "dynamic");
    // 800,000,000 s after the year 2000.
    assert_eq!(fact("created"), Value::Time(1_746_684_800_000_000_000));
}

#[test]
fn hostile_numbers() {
    let good = dynamic();
    let seal = |bytes: &mut [u8], at: usize| {
        bytes[at..at + 4].fill(0);
        let sum: u32 = bytes.iter().map(|byte| u32::from(*byte)).sum();
        bytes[at..at + 4].copy_from_slice(&(!sum).to_be_bytes());
    };
    for (at, value) in [(16, u64::MAX), (16, u64::MAX - 511), (24, 0x0001_0000_FFFF_FFFF), (28, 0xFFFF_FFFF_8000_0000)]
    {
        let mut image = good.clone();
        image[512 + at..512 + at + 8].copy_from_slice(&value.to_be_bytes());
        seal(&mut image[512..1536], 36);
        let image = memory(image);
        if let Ok(opened) = (vdrecover_formats::disk::vhd::FORMAT.open)(&image, &memo()) {
            check(&disks(&opened, &[])[0].bytes);
        }
    }
    mutate(&good, 150, 2048, |image| {
        let opened = (vdrecover_formats::disk::vhd::FORMAT.open)(image, &memo()).ok()?;
        let others = vec![None; opened.wants.len()];
        Some(disks(&opened, &others)[0].bytes.clone())
    });
}
