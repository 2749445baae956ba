//! QCOW2 images without header, without tables, and what is put in their place.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::arithmetic_side_effects,
    clippy::as_conversions,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::precedence,
    missing_docs,
    unreachable_pub,
    reason = "tests"
)]

mod disk_support;

use disk_support::*;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use vdrecover_formats::disk::qcow2::FORMAT;
use vdrecover_formats::format::{Clue, Window};
use vdrecover_formats::layer::Run;
use vdrecover_formats::{Bytes, Content, Fault, Layer, Opened, Place, Trust, read_vec, walk};
use vdrecover_testdata::anchors::{Guest, Skeleton};
use vdrecover_testdata::vmfs::pattern;
use vdrecover_testdata::{Device, qcow2};

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

fn be64(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap())
}

fn clues(image: &Bytes) -> Vec<Clue> {
    let sweep = FORMAT.sweep.unwrap();
    let mut clues = Vec::new();
    for at in (0..image.len()).step_by(MIB as usize) {
        let own = (image.len() - at).min(MIB) as usize;
        let (window, _) = read_vec(&**image, at, (image.len() - at).min(2 * MIB) as usize);
        (sweep.look)(&Window { at, bytes: &window, own }, &mut |clue| clues.push(clue));
    }
    clues.sort_unstable();
    clues
}

/// As a case opens it: by what is left at its start, else by a search.
fn found(image: &Bytes) -> Option<Opened> {
    let known = if (FORMAT.probe)(&**image) > 0 { (FORMAT.open)(image, &memo()).ok() } else { None };
    known.or_else(|| (FORMAT.sweep.unwrap().build)(image, &memo(), &clues(image)).ok())
}

fn states(opened: &Opened) -> Vec<Bytes> {
    match (opened.join)(&vec![None; opened.wants.len()]).unwrap() {
        Content::Disks(disks) => disks.into_iter().map(|disk| disk.bytes).collect(),
        other => panic!("{other:?}"),
    }
}

#[track_caller]
fn same(layer: &Bytes, plain: &[u8], what: &str) {
    let bytes = all(layer);
    let len = bytes.len().min(plain.len());
    assert!(bytes[..len] == plain[..len], "{what}");
    assert!(bytes[len..].iter().chain(&plain[len..]).all(|byte| *byte == 0), "{what}: {} bytes", bytes.len());
    assert!(read_vec(&**layer, 0, bytes.len()).1.trust >= Trust::Inferred, "{what} is not sound");
}

#[test]
fn headers_of_all_kinds_are_made_again() {
    if !has("qemu-img", "headers_of_all_kinds_are_made_again") {
        return;
    }
    let folder = Folder::new();
    let plain = sample(5 << 20);
    folder.write("plain.raw", &plain);
    for (options, packed) in [
        ("compat=0.10,cluster_size=512", false),
        ("compat=1.1,cluster_size=1k", false),
        ("compat=0.10,cluster_size=4k", false),
        ("compat=1.1,cluster_size=32k", false),
        ("compat=0.10", false),
        ("compat=1.1", false),
        ("cluster_size=256k", false),
        ("cluster_size=2M", false),
        ("refcount_bits=1", false),
        ("refcount_bits=64", false),
        ("extended_l2=on,cluster_size=16k", false),
        ("extended_l2=on", false),
        ("extended_l2=on,cluster_size=2M", false),
        ("preallocation=metadata", false),
        ("compat=0.10", true),
        ("cluster_size=512", true),
        ("cluster_size=4k", true),
        ("cluster_size=2M", true),
        ("compression_type=zstd", true),
        ("compression_type=zstd,cluster_size=2M", true),
        ("extended_l2=on,compression_type=zstd", true),
        ("extended_l2=on", true),
    ] {
        let mut args = vec!["convert", "-O", "qcow2", "-o", options, "-f", "raw"];
        args.extend(packed.then_some("-c"));
        args.extend(["plain.raw", "image"]);
        folder.run("qemu-img", &args);
        let mut bytes = std::fs::read(folder.path("image")).unwrap();
        bytes[..512].fill(0);
        let image = memory(bytes);
        let what = format!("{options}, packed: {packed}");
        // Without its second cluster too, only a search finds it.
        let opened = found(&image).unwrap_or_else(|| panic!("{what}"));
        assert!(opened.findings.iter().any(|finding| finding.code == "QCOW2-HEADER"), "{what}");
        let layer = states(&opened)[0].clone();
        check(&layer);
        same(&layer, &plain, &what);
        let swept =
            (FORMAT.sweep.unwrap().build)(&image, &memo(), &clues(&image)).unwrap_or_else(|e| panic!("{what}: {e}"));
        same(&states(&swept)[0], &plain, &what);
    }
}

#[test]
fn snapshots_are_found_without_the_header_and_without_their_table() {
    if !has("qemu-io", "snapshots_are_found_without_the_header_and_without_their_table") {
        return;
    }
    for options in ["cluster_size=64k", "cluster_size=4k", "extended_l2=on,cluster_size=16k", "compat=0.10"] {
        let folder = Folder::new();
        let then = sample(3 << 20);
        folder.write("plain.raw", &then);
        folder.run("qemu-img", &["convert", "-O", "qcow2", "-o", options, "-f", "raw", "plain.raw", "image"]);
        folder.run("qemu-img", &["snapshot", "-c", "then", "image"]);
        folder.run("qemu-io", &["-f", "qcow2", "-c", "write -P 9 1M 50k", "image"]);
        let now = folder.raw(&["-f", "qcow2", "image"]);
        let whole = std::fs::read(folder.path("image")).unwrap();
        let mut bytes = whole.clone();
        bytes[..512].fill(0);
        let layers = states(&found(&memory(bytes)).unwrap());
        same(&layers[0], &now, options);
        same(&layers[1], &then, options);
        let mut bytes = whole.clone();
        let table = be64(&whole, 64) as usize;
        bytes[table..table + 512].fill(0);
        let opened = found(&memory(bytes)).unwrap();
        assert_eq!(opened.findings.iter().map(|finding| finding.code).collect::<Vec<_>>(), ["QCOW2-SNAPSHOT"]);
        let layers = states(&opened);
        assert!(all(&layers[0]) == now);
        same(&layers[1], &then, options);
    }
}

/// A lost L1 table is filled with L2 tables that say what they are of, and with a snapshot's.
#[test]
fn a_lost_l1_table_is_put_together() {
    if !has("qemu-io", "a_lost_l1_table_is_put_together") {
        return;
    }
    let folder = Folder::new();
    let then = sample(9 << 20);
    folder.write("plain.raw", &then);
    folder.run("qemu-img", &["convert", "-O", "qcow2", "-o", "cluster_size=4k", "-f", "raw", "plain.raw", "image"]);
    folder.run("qemu-img", &["snapshot", "-c", "then", "image"]);
    folder.run("qemu-io", &["-f", "qcow2", "-c", "write -P 9 5M 50k", "image"]);
    let now = folder.raw(&["-f", "qcow2", "image"]);
    let mut bytes = std::fs::read(folder.path("image")).unwrap();
    let l1 = be64(&bytes, 40) as usize;
    bytes[l1..l1 + 5 * 8].fill(0);
    let layer = disk(&memory(bytes));
    check(&layer);
    same(&layer, &now, "the rewritten table is of the same part of the disk as the snapshot's");
    let codes = findings(&layer);
    assert!(codes.contains(&"QCOW2-L1-MENDED") && codes.contains(&"QCOW2-L1-SNAPSHOT"), "{codes:?}");
}

/// Bytes of a sparse disk that are where they were; none may be elsewhere, and no hole where there was data.
fn right(layer: &Bytes, disk: &Device) -> u64 {
    let mut right = 0;
    for run in walk(&**layer, 0..layer.len()) {
        assert!(run.trust >= Trust::Inferred || matches!(run.place, Place::Lost(_)), "{:#x}", run.at);
        let len = run.len.min(disk.len().saturating_sub(run.at));
        match run.place {
            Place::Lost(_) => {}
            Place::Hole | Place::Zero => {
                let data = disk.blocks().find(|(at, _)| (run.at..run.at + len).contains(at));
                assert!(data.is_none(), "a hole of {len} bytes at {:#x} where there was data", run.at);
            }
            _ => {
                for at in (run.at..run.at + len).step_by(MIB as usize) {
                    let len = (run.at + len - at).min(MIB) as usize;
                    assert!(read_vec(&**layer, at, len).0 == disk.read(at, len), "{at:#x}");
                }
                right += len;
            }
        }
    }
    right
}

#[test]
fn tables_are_placed_by_what_the_guest_says() {
    for guest in [Guest::Ext, Guest::Ntfs, Guest::Xfs] {
        let what = format!("{guest:?}");
        let disk = Skeleton::new(guest, 4 * GIB, &[700 * MIB, 1300 * MIB, 3000 * MIB]).device;
        let mut bytes = qcow2::write(&disk, &qcow2::Options::default());
        let l1 = be64(&bytes, 40) as usize;
        let tables = (0..8).filter(|n| be64(&bytes, l1 + n * 8) != 0).count() as u64;
        assert!(tables < 8, "{what}: order alone would tell");
        bytes[l1..l1 + 64].fill(0);
        let layer = disk_of(&memory(bytes.clone()));
        check(&layer);
        let with_header = right(&layer, &disk);
        assert!(with_header >= 4 * 64 << 10, "{what}: {with_header} bytes are placed");
        assert!(findings(&layer).contains(&"QCOW2-L1-MENDED"), "{what}");
        // The header gone too: only a search finds it.
        bytes[..128 << 10].fill(0);
        let opened = found(&memory(bytes)).unwrap();
        let layer = states(&opened)[0].clone();
        check(&layer);
        assert!(right(&layer, &disk) > 0, "{what}");
    }
}

fn disk_of(image: &Bytes) -> Bytes {
    states(&(FORMAT.open)(image, &memo()).unwrap())[0].clone()
}

/// An image in a guest's file has tables too.
#[test]
fn tables_of_an_image_inside_are_data() {
    let mut inner = Device::new(8 * MIB);
    inner.write(0, &pattern(3 << 20, 5));
    let inner = qcow2::write(&inner, &qcow2::Options::default());
    let mut disk = Device::new(16 * MIB);
    disk.write(0, &pattern(1 << 20, 6));
    disk.write(2 * MIB, &inner);
    let image = qcow2::write(&disk, &qcow2::Options::default());
    let plain = disk.read(0, 16 << 20);
    let l1 = be64(&image, 40) as usize;
    for damage in [0..512, l1..l1 + 8] {
        let mut bytes = image.clone();
        bytes[damage.clone()].fill(0);
        let layer = states(&found(&memory(bytes)).unwrap())[0].clone();
        same(&layer, &plain, &format!("{damage:?}"));
    }
}

/// A disk with an image somewhere in it is no image, whatever its start has lost.
#[test]
fn an_image_somewhere_on_a_disk_is_none() {
    for (at, compression) in
        [(MIB, qcow2::Compression::None), (64 << 10, qcow2::Compression::None), (3 * MIB, qcow2::Compression::Deflate)]
    {
        let mut inner = Device::new(64 * MIB);
        for n in 0..12 {
            inner.write(n * 5 * MIB, &sample(1 << 20));
        }
        let image = qcow2::write(&inner, &qcow2::Options { compression, ..Default::default() });
        let mut disk = vec![0; at as usize];
        disk.extend(image);
        let disk = memory(disk);
        assert_eq!((FORMAT.probe)(&*disk), 0);
        let clues = clues(&disk);
        assert!(!clues.is_empty());
        assert!((FORMAT.sweep.unwrap().build)(&disk, &memo(), &clues).is_err(), "{at:#x}");
    }
}

#[test]
fn what_can_not_be_placed_is_lost() {
    // Tables of a disk that has something here and there, and nothing that says where.
    let mut disk = Device::new(64 * MIB);
    for n in [3, 9, 21] {
        disk.write(n * 2 * MIB + 4096 * n, &pattern(40_000, n));
    }
    let mut bytes = qcow2::write(&disk, &qcow2::Options { cluster_bits: 12, ..Default::default() });
    let l1 = be64(&bytes, 40) as usize;
    let mut one = bytes.clone();
    bytes[l1..l1 + 32 * 8].fill(0);
    let layer = disk_of(&memory(bytes));
    check(&layer);
    assert!(map(&layer).iter().all(|row| row.2 == "unmapped"), "{:?}", map(&layer));
    assert!(findings(&layer).contains(&"QCOW2-L2-UNPLACED"));
    // One L2 table without its entries: its part of the disk is lost, the rest is as it was.
    let table = (be64(&one, l1 + 9 * 8) & !(1 << 63)) as usize;
    one[table..table + 4096].fill(0);
    let layer = disk_of(&memory(one));
    check(&layer);
    assert_eq!(gaps(&layer), [(18 * MIB, 2 * MIB, "unmapped".to_owned())]);
    assert!(findings(&layer).contains(&"QCOW2-L2-LOST"));
}

/// Counts what is read of it.
#[derive(Debug)]
struct Counted(Bytes, AtomicU64);

impl Layer for Counted {
    fn len(&self) -> u64 {
        self.0.len()
    }

    fn run(&self, _: u64, want: u64) -> Run<'_> {
        Run::sound(want, Place::Own)
    }

    fn fetch(&self, at: u64, buf: &mut [u8]) -> Result<Trust, Fault> {
        self.1.fetch_add(buf.len() as u64, Ordering::Relaxed);
        let (bytes, _) = read_vec(&*self.0, at, buf.len());
        buf.copy_from_slice(&bytes);
        Ok(Trust::Sound)
    }
}

/// The work is bounded by the tables of a sound image, and by the file for a damaged one.
#[test]
fn the_effort_is_bounded() {
    let mut disk = Device::new(512 * MIB);
    for n in 0..60 {
        disk.write(n * 8 * MIB, &pattern(1 << 20, n));
    }
    let image = qcow2::write(&disk, &qcow2::Options::default());
    let l1 = be64(&image, 40) as usize;
    let cost = |bytes: Vec<u8>| {
        let counted = Arc::new(Counted(memory(bytes), AtomicU64::new(0)));
        let layer = disk_of(&(counted.clone() as Bytes));
        let _ = read_vec(&*layer, 0, 512);
        counted.1.load(Ordering::Relaxed)
    };
    let sound = cost(image.clone());
    assert!(sound < 8 * 65_536, "{sound} bytes are read for one sector of a sound image");
    let mut lost = image.clone();
    lost[l1..l1 + 8].fill(0);
    let (len, lost) = (image.len() as u64, cost(lost));
    assert!(lost < len, "{lost} of {len} bytes are read for the L1 table");
    // Tables that name tables that name tables: every cluster is one.
    let mut chain = image[..4 << 20].to_vec();
    let clusters = chain.len() as u64 >> 16;
    for n in 4..clusters - 1 {
        let at = (n << 16) as usize;
        chain[at..at + 65_536].fill(0);
        chain[at..at + 8].copy_from_slice(&((n + 1) << 16 | 1 << 63).to_be_bytes());
    }
    chain[l1..l1 + 8].fill(0);
    let chained = cost(chain);
    assert!(chained < 64 << 20, "{chained}");
}

/// Whatever looks like tables: what comes out is lawful, or nothing.
#[test]
fn mutated_images_without_header_are_lawful() {
    let mut disk = Device::new(3 * MIB);
    disk.write(0, &sample(1 << 20));
    for options in [
        qcow2::Options { cluster_bits: 12, ..Default::default() },
        qcow2::Options { cluster_bits: 12, compression: qcow2::Compression::Deflate, ..Default::default() },
    ] {
        let mut bytes = qcow2::write(&disk, &options);
        bytes[..512].fill(0);
        let open = |image: &Bytes| found(image).map(|opened| states(&opened)[0].clone());
        mutate(&bytes, 60, 64 << 10, open);
        mutate(&bytes, 60, bytes.len(), open);
    }
}
