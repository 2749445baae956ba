//! VMFS volumes that a real `ESXi` formatted and filled, against what is known of their content.
//!
//! `VDRECOVER_CORPUS` names a folder with `vmfs/*.bin.gz`. Without it every test here says that it was skipped.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::arithmetic_side_effects,
    clippy::as_conversions,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "tests"
)]

mod vmfs_support;

use std::collections::BTreeSet;
use std::fs;
use std::ops::ControlFlow;
use std::sync::Arc;
use vdrecover_formats::adapt::{Blank, Copied, Patch, Window as Part};
use vdrecover_formats::format::Window;
use vdrecover_formats::laws::{Effort, check_laws};
use vdrecover_formats::{
    Bytes, Content, Kind, Layer, NodeId, Place, Pool, State, Tree, Trust, Use, Why, read, read_vec, vmfs, walk,
};
use vmfs_support::{CHUNK, GIB, MIB, Sparse, all, audit, datastore, find, folder, image, list, open, tree, unpack};

const SINGLE: [&str; 5] = ["vmfs5", "vmfs6", "vmfs6l", "vmfs5-no-dense-sbpc", "zero6"];

fn content(tree: &dyn Tree, path: &str) -> Vec<u8> {
    let layer = tree.open(find(tree, path)).unwrap();
    let (bytes, seen) = read_vec(&*layer, 0, layer.len() as usize);
    assert!(seen.is_whole(), "{path}: {seen:?}");
    bytes
}

/// A thin disk of `len` bytes of which only the block at `at` is there, and of it only 512 bytes are not zero.
fn check_thin(tree: &dyn Tree, path: &str, len: u64, at: u64) {
    let layer = tree.open(find(tree, path)).unwrap();
    assert_eq!(layer.len(), len, "{path}");
    let (bytes, seen) = read_vec(&*layer, at - 512, 1536);
    assert!(seen.is_whole() && seen.trust == Trust::Sound, "{path}: {seen:?}");
    assert!(bytes[512..1024].iter().all(|byte| *byte == 0x42), "{path}");
    assert!(bytes[..512].iter().chain(&bytes[1024..]).all(|byte| *byte == 0), "{path}: beside");
    let runs: Vec<_> = walk(&*layer, 0..len).collect();
    let holes = runs.iter().filter(|run| matches!(run.place, Place::Hole)).map(|run| run.len).sum::<u64>();
    assert_eq!(holes, len - MIB, "{path}");
    assert!(runs.len() < 10, "{path}: {} runs", runs.len());
}

#[test]
fn content_is_what_was_written() {
    for name in ["vmfs5", "vmfs6"] {
        let Some(tree) = datastore(name) else { return };
        assert_eq!(content(&*tree, "small"), b"tiny\n");
        assert_eq!(content(&*tree, "big").len() as u64, MIB + 1);
        assert_eq!(content(&*tree, "symlink"), format!("/vmfs/volumes/{name}/small").as_bytes());
        let bigger = tree.open(find(&*tree, "bigger")).unwrap();
        assert_eq!(bigger.len(), 128 * MIB);
        for i in 0..128_u8 {
            let (bytes, seen) = read_vec(&*bigger, u64::from(i) * MIB, MIB as usize);
            assert!(seen.is_whole() && bytes == vec![i; MIB as usize], "{name}: MiB {i}");
        }
        assert_eq!(list(&*tree, find(&*tree, "directory")).len(), 100);
        for i in 1..=100 {
            assert_eq!(content(&*tree, &format!("directory/file{i}")), format!("File {i}\n").as_bytes());
        }
        check_thin(&*tree, "normal-flat.vmdk", 69 * GIB, 42 * GIB);
        check_thin(&*tree, "large-flat.vmdk", 42 << 40, 117 * GIB);
        let rdm = tree.lookup(tree.root(), b"rdm-rdm.vmdk").unwrap().unwrap();
        assert_eq!((rdm.kind, tree.node(rdm.id).unwrap().len), (Kind::Mapping, 6969 * GIB));
        let layer = tree.open(rdm.id).unwrap();
        let run = walk(&*layer, 0..layer.len()).next().unwrap();
        assert!(run.len == 6969 * GIB && matches!(run.place, Place::Lost(loss) if loss.why == Why::NotGiven));
        assert_eq!(tree.lookup(tree.root(), b"nothing"), Ok(None));
    }
}

#[test]
fn system_files_are_listed_and_open() {
    for (name, count) in SINGLE.into_iter().zip([7, 9, 9, 7, 9]) {
        let Some(tree) = datastore(name) else { return };
        let names = list(&*tree, tree.root());
        let system: Vec<_> = names.iter().filter(|entry| entry.name.ends_with(b".sf")).collect();
        assert_eq!(system.len(), count, "{name}");
        for entry in system {
            let found = tree.lookup(tree.root(), &entry.name).unwrap();
            assert_eq!(found.as_ref().map(|found| found.id), Some(entry.id), "{name}: {entry:?}");
            let is_folder = entry.name == b".sdd.sf";
            assert_eq!(entry.kind, if is_folder { Kind::Dir } else { Kind::File });
            assert_eq!(tree.open(entry.id).is_ok(), !is_folder);
        }
    }
}

#[test]
fn names_with_one_hash_are_found() {
    for name in ["vmfs5", "vmfs6"] {
        let Some(tree) = datastore(name) else { return };
        let folder = find(&*tree, "collision");
        let names = list(&*tree, folder);
        // The folder counts 21: `.` and `..` are among them.
        assert_eq!(names.len(), 19, "{name}");
        for entry in &names {
            let found = tree.lookup(folder, &entry.name).unwrap().unwrap();
            assert_eq!(found.id, entry.id, "{name}: {:?}", String::from_utf8_lossy(&entry.name));
        }
        assert_eq!(tree.lookup(folder, b"none of them").unwrap(), None);
    }
}

#[test]
fn listings_resume_anywhere() {
    for name in ["vmfs5", "vmfs6"] {
        let Some(tree) = datastore(name) else { return };
        let folder = find(&*tree, "directory");
        let (mut from, mut pieces) = (0, Vec::new());
        loop {
            let before = pieces.len();
            tree.list(folder, from, &mut |entry| {
                pieces.push(entry.unwrap());
                if pieces.len() - before == 3 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            })
            .unwrap();
            match pieces.last() {
                Some(last) if pieces.len() > before => from = last.next,
                _ => break,
            }
        }
        assert_eq!(pieces, list(&*tree, folder), "{name}");
    }
}

#[test]
fn every_file_keeps_the_laws() {
    let effort = Effort { runs: 400, bytes: 1 << 20 };
    for name in SINGLE {
        let Some(tree) = datastore(name) else { return };
        for (path, entry) in all(&*tree) {
            let node = tree.node(entry.id).unwrap();
            assert_eq!((node.kind, node.state, node.trust), (entry.kind, State::Live, Trust::Sound), "{name}{path}");
            if entry.kind != Kind::Dir {
                let layer = tree.open(entry.id).unwrap();
                check_laws(&*layer, effort).unwrap_or_else(|law| panic!("{name}{path}: {law}"));
            }
        }
    }
}

#[test]
fn healthy_volumes_have_no_findings() {
    for name in SINGLE {
        let Some(image) = image(name) else { return };
        let opened = open(image.clone());
        assert_eq!(opened.findings, []);
        let tree = tree(opened.join_alone().unwrap());
        let audit = audit(&*tree, &image);
        assert_eq!(audit.findings, [], "{name}");
        // No byte is claimed twice, and none that the bitmaps have as free.
        let mut ranges: Vec<_> = audit.claims.iter().map(|(range, _)| range.clone()).chain(audit.free).collect();
        ranges.sort_by_key(|range| range.start);
        for pair in ranges.windows(2) {
            assert!(pair[0].end <= pair[1].start, "{name}: {:x?} and {:x?}", pair[0], pair[1]);
        }
        let files: BTreeSet<_> = all(&*tree).into_iter().map(|(_, entry)| entry.id).collect();
        for (_, of) in &audit.claims {
            assert!(!matches!(of, Use::Data(id) if !files.contains(id)), "{name}: {of:?}");
        }
        if name != "zero6" {
            assert_eq!(audit.finds, [], "{name}");
        }
    }
}

#[test]
fn deleted_and_reformatted_files_are_reported() {
    let Some(image) = image("zero6") else { return };
    let tree = tree(open(image.clone()).join_alone().unwrap());
    let unlinked = audit(&*tree, &image).finds;
    let of = |state| unlinked.iter().filter(move |entry| entry.state == state);
    // At 0x2F40000, 0x2F42000, 0x2F44000, 0x2F46000 and 0x2F4C000 of the volume.
    let deleted: Vec<_> = of(State::Deleted).map(|entry| String::from_utf8_lossy(&entry.name)).collect();
    assert_eq!(deleted, ["orphan_c19_r0", "orphan_c19_r1", "orphan_c19_r2", "orphan_c19_r3", "orphan_c19_r6"]);
    let names: Vec<_> = of(State::Reformatted).map(|entry| (entry.kind, &entry.name[..])).collect();
    let expected: [(Kind, &[u8]); 3] =
        [(Kind::Dir, b"orphan_c30_r0"), (Kind::File, b"test-flat.vmdk"), (Kind::File, b"test.vmdk")];
    assert_eq!(names, expected);
    let called = |name: &[u8]| of(State::Reformatted).find(|entry| entry.name == name).unwrap().id;
    assert_eq!(tree.node(called(b"test-flat.vmdk")).unwrap().len, 100 * GIB);
    let folder = list(&*tree, called(b"orphan_c30_r0"));
    assert!(folder.iter().all(|entry| entry.state == State::Reformatted));
    let folder: Vec<_> = folder.into_iter().map(|entry| entry.name).collect();
    assert_eq!(folder, [b"test-flat.vmdk".to_vec(), b"test.vmdk".to_vec()]);
    let layer = tree.open(called(b"test.vmdk")).unwrap();
    let (text, seen) = read_vec(&*layer, 0, layer.len() as usize);
    assert!(seen.is_whole() && seen.trust == Trust::Inferred);
    assert!(String::from_utf8(text).unwrap().contains("VMFS \"test-flat.vmdk\""));
}

fn span(first: &str, second: Option<&str>) -> Option<Arc<dyn Tree>> {
    let opened = open(image(first)?);
    assert_eq!(opened.wants.len(), 1);
    assert_eq!(opened.wants[0].id, opened.link.set.as_ref().map(|member| member.set.clone()));
    let second = second.map(|second| image(second).unwrap() as Bytes);
    Some(tree((opened.join)(&[second]).unwrap()))
}

#[test]
fn spans_join_in_any_order() {
    let Some(tree) = span("vmfs5-span-0", Some("vmfs5-span-1")) else { return };
    let other = span("vmfs5-span-1", Some("vmfs5-span-0")).unwrap();
    let names = all(&*tree);
    assert_eq!(names, all(&*other));
    for (path, entry) in names.iter().filter(|(_, entry)| entry.kind == Kind::File) {
        let (a, b) = (tree.open(entry.id).unwrap(), other.open(entry.id).unwrap());
        let len = a.len().min(4 * MIB) as usize;
        assert_eq!(read_vec(&*a, 0, len), read_vec(&*b, 0, len), "{path}");
        check_laws(&*a, Effort { runs: 200, bytes: 1 << 18 }).unwrap();
    }
    let audit = audit(&*tree, &image("vmfs5-span-0").unwrap());
    assert_eq!((audit.findings, audit.finds), (vec![], vec![]));
}

#[test]
fn a_span_without_its_second_device_opens() {
    let Some(part) = span("vmfs5-span-0", None) else { return };
    let whole = span("vmfs5-span-0", Some("vmfs5-span-1")).unwrap();
    assert_eq!(all(&*part), all(&*whole));
    for (path, entry) in all(&*part).iter().filter(|(_, entry)| entry.kind == Kind::File) {
        let (part, whole) = (part.open(entry.id).unwrap(), whole.open(entry.id).unwrap());
        let lost: u64 = walk(&*part, 0..part.len())
            .filter(|run| matches!(run.place, Place::Lost(loss) if loss.why == Why::Absent))
            .map(|run| run.len)
            .sum();
        assert_eq!(lost, 0, "{path}: all that the image has lies on the first device");
        assert_eq!(walk(&*part, 0..part.len()).count(), walk(&*whole, 0..whole.len()).count());
        check_laws(&*part, Effort { runs: 200, bytes: 1 << 18 }).unwrap();
    }
    // Of the volume itself, the second half is gone, in one piece.
    let first: Bytes = image("vmfs5-span-0").unwrap();
    let lv = vmfs::lvm::Logical::new(vmfs::lvm::Device::load(&first).unwrap(), []);
    let runs: Vec<_> = walk(&lv, 0..lv.len()).map(|run| (run.len, matches!(run.place, Place::Own))).collect();
    assert_eq!(runs, [(2 * GIB, true), (2 * GIB, false)]);
    let run = lv.run(3 * GIB, GIB);
    assert!(run.len == GIB && matches!(run.place, Place::Lost(loss) if loss.why == Why::Absent));
    check_laws(&lv, Effort { runs: 10, bytes: 1 << 20 }).unwrap();
    // The header is on the first device: the second alone says what it is and no more.
    let opened = open(image("vmfs5-span-1").unwrap());
    assert_eq!(opened.link.set.as_ref().map(|member| (member.first, member.count)), Some((8, 2)));
    assert!(opened.join_alone().is_err());
    let both = vmfs::lvm::Device::load(&(image("vmfs5-span-1").unwrap() as Bytes)).unwrap();
    let lv = vmfs::lvm::Logical::new(both, [vmfs::lvm::Device::load(&first).unwrap()]);
    let (across, seen) = read_vec(&lv, 2 * GIB - 4096, 8192);
    assert!(seen.is_whole() && across.len() == 8192 && !lv.is_partial());
}

/// A volume of which the second part is on a device that is absent: the image, cut where `bigger` crosses an extent.
#[test]
fn data_on_an_absent_device_is_lost() {
    const CUT: u64 = 3 * 256 * MIB;
    let Some(image) = image("vmfs6") else { return };
    let mut device = (*image).clone();
    // The volume table: its last extent here, and two devices. The one entry of the extent table: its length.
    device.write(0x10_1080, &2_u64.to_le_bytes());
    device.write(0x10_1090, &2_u32.to_le_bytes());
    device.write(0x18_2019, &CUT.to_le_bytes());
    let opened = open(Arc::new(device));
    assert_eq!((opened.wants.len(), opened.findings.len()), (1, 0));
    let tree = tree(opened.join_alone().unwrap());
    assert_eq!(list(&*tree, tree.root()).len(), 21);
    let bigger = tree.open(find(&*tree, "bigger")).unwrap();
    let runs: Vec<_> = walk(&*bigger, 0..bigger.len()).collect();
    assert_eq!(runs.len(), 2);
    assert!(matches!(runs[0].place, Place::Own) && runs[0].offset + runs[0].len == 0x110_0000 + CUT);
    assert!(matches!(runs[1].place, Place::Lost(loss) if loss.why == Why::Absent));
    assert_eq!((runs[0].len, runs[1].len), (29 * MIB, 99 * MIB));
    let (bytes, seen) = read_vec(&*bigger, 28 * MIB, 2 * MIB as usize);
    assert!(bytes[..MIB as usize].iter().all(|byte| *byte == 28));
    assert_eq!(seen.gaps[0].range, 29 * MIB..30 * MIB);
    check_laws(&*bigger, Effort { runs: 300, bytes: 1 << 20 }).unwrap();
    // Content of the folder lies in sub-blocks behind the cut: it is missing and not empty.
    let mut codes = Vec::new();
    tree.list(find(&*tree, "directory"), 0, &mut |entry| {
        codes.push(entry.unwrap_err().code);
        ControlFlow::Continue(())
    })
    .unwrap();
    assert_eq!(codes, ["VMFS-DIR-HEAD"]);
    let audit = audit(&*tree, &image);
    assert!(audit.findings.iter().any(|finding| finding.code == "LVM-ABSENT"));
}

#[test]
fn probes_and_sweeps_find_devices() {
    let Some(image) = image("vmfs6") else { return };
    assert_eq!((vmfs::FORMAT.probe)(&*image), 192);
    let sweep = vmfs::FORMAT.sweep.unwrap();
    // The partition starts at sector 2048 of a disk whose partition table is gone.
    let mut disk = Sparse::empty(image.len + 2 * MIB);
    for (i, chunk) in &image.chunks {
        disk.chunks.insert(i + MIB / CHUNK as u64, chunk.clone());
    }
    let disk: Bytes = Arc::new(disk);
    let (bytes, _) = read_vec(&*disk, 0, 4 << 20);
    let mut clues = Vec::new();
    (sweep.look)(&Window { at: 0, bytes: &bytes, own: bytes.len() }, &mut |clue| clues.push(clue));
    assert_eq!(clues.iter().map(|clue| (clue.at, clue.len)).collect::<Vec<_>>(), [(2 * MIB, image.len)]);
    // Windows that start within a sector see the same.
    let mut again = Vec::new();
    (sweep.look)(&Window { at: 100, bytes: &bytes[100..], own: bytes.len() - 100 }, &mut |clue| again.push(clue));
    assert_eq!(again, clues);
    let pool = Pool::new(8 << 20);
    let Content::Volumes(volumes) = (sweep.build)(&disk, &pool.share(), &clues).unwrap().join_alone().unwrap() else {
        panic!("volumes are wanted")
    };
    assert_eq!(volumes[0].range, MIB..MIB + image.len);
    let tree = tree(open(volumes[0].bytes.clone()).join_alone().unwrap());
    assert_eq!(content(&*tree, "small"), b"tiny\n");
}

#[test]
fn a_dump_of_the_volume_itself_opens() {
    let Some(image) = image("vmfs6") else { return };
    let dump: Bytes = Arc::new(Part::new(image, 0x110_0000, 2 * GIB));
    assert_eq!((vmfs::FORMAT.probe)(&*dump), 128);
    let opened = open(dump);
    assert_eq!(opened.link.name.as_deref(), Some(&b"vmfs6"[..]));
    assert_eq!(content(&*tree(opened.join_alone().unwrap()), "small"), b"tiny\n");
}

/// Metadata of a real device of 64 TiB, and at every 16 TiB a text that says where it is.
#[test]
fn volumes_above_16_tib_are_mapped_by_their_tables() {
    let Some(folder) = folder() else { return };
    for name in ["lvm5", "lvm6"] {
        let text = String::from_utf8(unpack(&fs::read(folder.join(format!("{name}.csv.gz"))).unwrap())).unwrap();
        let mut device = Sparse::empty(1 << 47);
        for line in text.lines() {
            let (at, hex) = line.split_once(',').unwrap();
            let digit = |digit: u8| if digit < b'a' { digit - b'0' } else { digit - b'a' + 10 };
            let bytes: Vec<u8> = hex.as_bytes().chunks(2).map(|pair| digit(pair[0]) << 4 | digit(pair[1])).collect();
            device.write(at.parse().unwrap(), &bytes);
        }
        let bytes: Bytes = Arc::new(device);
        let device = vmfs::lvm::Device::load(&bytes).unwrap();
        assert_eq!(device.findings, [], "{name}");
        let lv = vmfs::lvm::Logical::new(device, []);
        for i in 0..4_u64 {
            let at = i << 44;
            let mut bytes = [0; 64];
            assert!(read(&lv, at, &mut bytes).is_whole());
            let text = if i == 0 { "Logical offset 0".to_string() } else { format!("Logical offset {at:#x}") };
            assert!(bytes.starts_with(text.as_bytes()), "{name}: {}", String::from_utf8_lossy(&bytes));
            let run = walk(&lv, at..at + 1).next().unwrap();
            assert_eq!(run.offset, at + 0x110_0000 + i * 0x100_0000, "{name}");
        }
        let map = |lv: &vmfs::lvm::Logical| {
            walk(lv, 0..lv.len()).map(|run| (run.at, run.len, run.offset)).collect::<Vec<_>>()
        };
        let runs = map(&lv);
        assert!((4..=5).contains(&runs.len()), "{name}: {runs:?}");
        // Without the tables, and without the headers that continue them, what is assumed of a device is the same.
        for from in [0x8_0000, 0x1000_0000] {
            let tables: Vec<_> =
                lv.devices()[0].metadata.iter().map(|range| range.start.max(MIB + from)..range.end).collect();
            let copies = tables.into_iter().filter(|range| range.start < range.end).map(|range| {
                let len = range.end - range.start;
                Copied { at: range.start, len, from: Arc::new(Blank::zero(len)), offset: 0 }
            });
            let wiped: Bytes = Arc::new(Patch::new(bytes.clone(), copies.collect(), Trust::Sound).unwrap());
            let device = vmfs::lvm::Device::load(&wiped).unwrap();
            if from < 0x1000_0000 || device.findings.len() > 1 {
                assert_eq!(device.findings.last().unwrap().code, "LVM-PE-RULE", "{name}");
            }
            let assumed = vmfs::lvm::Logical::new(device, []);
            let whole = |runs: Vec<(u64, u64, u64)>| {
                let mut merged: Vec<(u64, u64, u64)> = Vec::new();
                for run in runs {
                    match merged.last_mut() {
                        Some(last) if last.2 + last.1 == run.2 => last.1 += run.1,
                        _ => merged.push(run),
                    }
                }
                merged
            };
            assert_eq!(whole(map(&assumed)), whole(runs.clone()), "{name}");
        }
    }
}

#[test]
fn nodes_are_no_other_than_descriptors() {
    let Some(tree) = datastore("vmfs6") else { return };
    for id in [0, 1, 3, 5, 0xFFFF_FFFC, 1 << 32 | 4, NodeId::LIMIT - 4] {
        assert!(tree.node(NodeId(id)).is_err(), "{id:#x}");
        assert!(tree.open(NodeId(id)).is_err(), "{id:#x}");
    }
}
