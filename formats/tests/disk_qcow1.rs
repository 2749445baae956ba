//! QCOW version 1 against qemu-img, and one outcome for each damage.

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
use vdrecover_formats::Trust;
use vdrecover_formats::disk::qcow1::FORMAT;
use vdrecover_testdata::Device;
use vdrecover_testdata::qcow1::{Options, write};

const MIB: usize = 1 << 20;

fn image(plain: &[u8], options: &Options) -> Vec<u8> {
    write(&Device::from_bytes(plain), &Device::new(plain.len() as u64), options)
}

#[test]
fn images_of_qemu_img() {
    if !has("qemu-img", "images_of_qemu_img") {
        return;
    }
    let folder = Folder::new();
    for packed in [false, true] {
        // qemu-img does not pack a part of a cluster.
        let plain = sample(5 * MIB + if packed { 0 } else { 1536 });
        folder.write("plain.raw", &plain);
        let mut args = vec!["convert", "-f", "raw", "-O", "qcow"];
        args.extend(packed.then_some("-c"));
        args.extend(["plain.raw", "image.qcow"]);
        // With -c, qemu-img 10 writes the image whole and then says that it failed: what it reads from it counts.
        let _ = std::process::Command::new("qemu-img").args(args).current_dir(&folder.0).status().unwrap();
        assert!(folder.raw(&["-f", "qcow", "image.qcow"]) == plain);
        let image = folder.load("image.qcow");
        assert_eq!((format_of(&image), codes(&image)), ("qcow", vec![]));
        let layer = disk(&image);
        assert!(all(&layer) == plain);
        assert_eq!(trust_of(&layer), Trust::Sound);
        assert!(!packed || map(&layer).iter().any(|(_, _, kind, _)| kind == "coded"));
        check(&layer);
        assert_eq!(findings(&layer), [""; 0]);
    }
}

#[test]
fn a_chain_of_qemu_img() {
    if !has("qemu-io", "a_chain_of_qemu_img") {
        return;
    }
    let folder = Folder::new();
    let plain = sample(3 * MIB + 512);
    folder.write("base.raw", &plain);
    folder.run("qemu-img", &["create", "-q", "-f", "qcow", "-b", "base.raw", "-F", "raw", "top.qcow", "4M"]);
    for write in ["write -P 1 0 512", "write -P 2 70000 100000", "write -P 3 3M 512k"] {
        folder.run("qemu-io", &["-f", "qcow", "-c", write, "top.qcow"]);
    }
    let image = folder.load("top.qcow");
    let opened = open(&image);
    assert_eq!(opened.wants[0].hint.as_deref(), Some(&b"base.raw"[..]));
    let layer = disks(&opened, &[Some(memory(plain))])[0].bytes.clone();
    assert!(all(&layer) == folder.raw(&["top.qcow"]));
    check(&layer);
    let alone = disk(&image);
    assert!(gaps(&alone).iter().all(|(_, _, why)| why == "absent") && !gaps(&alone).is_empty());
    check(&alone);
}

#[test]
fn fixtures_of_all_shapes() {
    let plain = sample(2 * MIB + 700);
    for (cluster_bits, l2_bits) in [(9, 6), (9, 12), (12, 9), (16, 13)] {
        for packed in [false, true] {
            let options = Options { cluster_bits, l2_bits, packed, ..Options::default() };
            let bytes = image(&plain, &options);
            let layer = disk(&memory(bytes.clone()));
            assert!(all(&layer) == plain, "{options:?}");
            check(&layer);
            // QEMU itself only reads disks of whole sectors.
            if has("qemu-img", "fixtures_of_all_shapes") {
                let folder = Folder::new();
                folder.write("image.qcow", &bytes);
                assert!(folder.raw(&["-f", "qcow", "image.qcow"])[..2 * MIB] == plain[..2 * MIB], "{options:?}");
            }
        }
    }
}

#[test]
fn encrypted_clusters_are_sealed() {
    let mut plain = sample(MIB);
    plain[64 << 10..128 << 10].fill(0);
    let image = memory(image(&plain, &Options { crypt: 1, ..Options::default() }));
    assert_eq!(codes(&image), ["QCOW-ENCRYPTED"]);
    let layer = disk(&image);
    let rows = map(&layer);
    assert!(rows.iter().all(|(_, _, kind, _)| kind == "sealed" || kind == "hole"), "{rows:?}");
    assert!(rows.iter().any(|row| row.2 == "hole" && row.0 <= 64 << 10 && row.0 + row.1 >= 128 << 10));
    check(&layer);
}

#[test]
fn broken_entries_cost_their_cluster() {
    let plain: Vec<u8> = (0..MIB).map(|i| (i / 4096 + 1) as u8).collect();
    let good = image(&plain, &Options::default());
    let number = |at: usize| u64::from_be_bytes(good[at..at + 8].try_into().unwrap());
    let (l1, l2) = (number(40) as usize, number(number(40) as usize) as usize);
    for (what, at, value, lost) in [
        ("behind the end", l2, 1 << 30, (0, 4096, "truncated")),
        ("unaligned", l2, number(l2) + 512, (0, 4096, "unmapped")),
        ("the header", l2 + 8, 40, (4096, 4096, "unmapped")),
        ("packed, behind the end", l2, 1 << 63 | 100 << 51 | 1 << 30, (0, 4096, "truncated")),
        ("packed in no bytes", l2, 1 << 63 | 4096, (0, 4096, "unmapped")),
        ("a table behind the end", l1, 1 << 30, (0, MIB as u64, "unmapped")),
        ("an unaligned table", l1, l2 as u64 + 8, (0, MIB as u64, "unmapped")),
    ] {
        let mut image = good.clone();
        image[at..at + 8].copy_from_slice(&u64::to_be_bytes(value));
        let layer = disk(&memory(image));
        let (start, len, why) = lost;
        assert_eq!(gaps(&layer), [(start, len, why.into())], "{what}");
        assert_eq!(findings(&layer).len(), 1, "{what}");
        check(&layer);
    }
}

#[test]
fn headers_out_of_bounds_are_refused() {
    let good = image(&sample(MIB), &Options::default());
    for (at, bytes, text) in [
        (32, &[8][..], "cluster_bits at 0x20 is corrupt: 8 (9..=16)"),
        (32, &[63], "cluster_bits at 0x20 is corrupt: 63 (9..=16)"),
        (33, &[14], "l2_bits at 0x21 is corrupt: 14 (6..=13)"),
        (24, &[0xFF; 8], "size at 0x18 is corrupt"),
    ] {
        let mut image = good.clone();
        image[at..at + bytes.len()].copy_from_slice(bytes);
        let image = memory(image);
        assert_eq!(format_of(&image), "qcow", "{text}");
        let error = (FORMAT.open)(&image, &memo()).unwrap_err().to_string();
        assert!(error.contains(text), "{error}");
    }
    for (at, value) in [(8, u64::MAX - 3), (16, 0xFFFF_FFFF_0000_0000), (40, 0), (40, u64::MAX - 7)] {
        let mut image = good.clone();
        image[at..at + 8].copy_from_slice(&u64::to_be_bytes(value));
        let layer = disk(&memory(image));
        check(&layer);
    }
    mutate(&good, 150, 8192, |image| {
        let opened = (FORMAT.open)(image, &memo()).ok()?;
        Some(disks(&opened, &vec![None; opened.wants.len()])[0].bytes.clone())
    });
}
