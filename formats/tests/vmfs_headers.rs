//! Real volumes whose headers are destroyed, and dumps of parts of them: every file has its content, or has lost
//! exactly what the dump has not.
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

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::Range;
use std::sync::Arc;
use vdrecover_formats::adapt::{Blank, Copied, Memory, Patch, Window as Part};
use vdrecover_formats::format::{Clue, Window};
use vdrecover_formats::laws::{Effort, check_laws};
use vdrecover_formats::link::Volume;
use vdrecover_formats::{Bytes, Content, Finding, Kind, Layer, Place, Pool, Tree, Trust, Why, read, vmfs, walk};
use vmfs_support::{MIB, Sparse, all, audit, image, open, tree};

const IMAGES: [&str; 3] = ["vmfs5", "vmfs6", "vmfs6l"];

/// Bytes that were written over the image.
fn over(image: &Bytes, ranges: &[Range<u64>], garbage: bool) -> Bytes {
    let copies = ranges.iter().map(|range| {
        let len = range.end - range.start;
        let from: Bytes = if garbage {
            Arc::new(Memory::new((0..len).map(|i| (i * 7 + i / 251) as u8 | 1).collect::<Vec<u8>>()))
        } else {
            Arc::new(Blank::zero(len))
        };
        Copied { at: range.start, len, from, offset: 0 }
    });
    Arc::new(Patch::new(image.clone(), copies.collect(), Trust::Sound).unwrap())
}

/// What a sweep sees in the first part of a device, where the metadata of these volumes begins.
fn clues(disk: &Bytes) -> Vec<Clue> {
    const WINDOW: u64 = 16 * MIB;
    let look = vmfs::FORMAT.sweep.unwrap().look;
    let mut clues = Vec::new();
    let mut buf = vec![0; (WINDOW + MIB) as usize];
    for at in (0..disk.len().min(128 * MIB)).step_by(WINDOW as usize) {
        let len = (disk.len() - at).min(WINDOW + MIB) as usize;
        read(&**disk, at, &mut buf[..len]);
        let own = len.min(WINDOW as usize);
        look(&Window { at, bytes: &buf[..len], own }, &mut |clue| clues.push(clue));
    }
    clues.sort_unstable();
    clues
}

fn swept(disk: &Bytes) -> (Vec<Volume>, Vec<Finding>) {
    let opened = (vmfs::FORMAT.sweep.unwrap().build)(disk, &Pool::new(8 << 20).share(), &clues(disk)).unwrap();
    let Content::Volumes(volumes) = opened.join_alone().unwrap() else { panic!("volumes are wanted") };
    (volumes, opened.findings)
}

/// One range of a file: its bytes' digest, or nothing for a hole.
type Piece = (Range<u64>, Option<u64>);

fn digest(layer: &dyn Layer, range: Range<u64>) -> u64 {
    let mut hasher = DefaultHasher::new();
    let mut buf = vec![0; MIB as usize];
    let mut at = range.start;
    while at < range.end {
        let len = (range.end - at).min(MIB) as usize;
        assert!(read(layer, at, &mut buf[..len]).is_whole());
        buf[..len].hash(&mut hasher);
        at += len as u64;
    }
    hasher.finish()
}

/// Every file of a volume: its length, and where on the device each of its ranges lies.
fn places(tree: &dyn Tree) -> BTreeMap<String, (u64, Vec<(Range<u64>, Option<u64>)>)> {
    let files = all(tree).into_iter().filter(|(_, entry)| matches!(entry.kind, Kind::File | Kind::Symlink));
    files
        .map(|(path, entry)| {
            let layer = tree.open(entry.id).unwrap();
            let runs = walk(&*layer, 0..layer.len()).map(|run| {
                let at = match run.place {
                    Place::Own => Some(run.offset),
                    Place::Hole | Place::Zero => None,
                    place => panic!("{path}: {place:?}"),
                };
                (run.at..run.at + run.len, at)
            });
            let runs = runs.collect();
            (path, (layer.len(), runs))
        })
        .collect()
}

/// What a file has: of `gone`, a range of the device, nothing.
fn expected(tree: &dyn Tree, path: &str, runs: &[(Range<u64>, Option<u64>)], gone: &Range<u64>) -> (Vec<Piece>, u64) {
    let layer = tree.open(vmfs_support::find(tree, &path[1..])).unwrap();
    let mut pieces = Vec::new();
    let mut lost = 0;
    for (range, at) in runs {
        let Some(at) = at else {
            pieces.push((range.clone(), None));
            continue;
        };
        let place = |device: u64| range.start + device.clamp(*at, at + (range.end - range.start)) - at;
        let hit = place(gone.start)..place(gone.end);
        lost += hit.end - hit.start;
        for part in [range.start..hit.start, hit.end..range.end] {
            if !part.is_empty() {
                pieces.push((part.clone(), Some(digest(&*layer, part))));
            }
        }
    }
    (pieces, lost)
}

/// The same files with the same content, but for what lies in `gone` of the undamaged device.
fn check(what: &str, whole: &dyn Tree, tree: &dyn Tree, gone: &Range<u64>, trust: Trust) {
    let names =
        |tree: &dyn Tree| all(tree).into_iter().map(|(path, entry)| (path, entry.kind)).collect::<BTreeMap<_, _>>();
    assert_eq!(names(whole), names(tree), "{what}");
    for (path, (len, runs)) in places(whole) {
        let layer = tree.open(vmfs_support::find(tree, &path[1..])).unwrap();
        assert_eq!(layer.len(), len, "{what}: {path}");
        let (expected, lost) = expected(whole, &path, &runs, gone);
        let mut found: u64 = 0;
        for run in walk(&*layer, 0..len) {
            if let Place::Lost(loss) = run.place {
                assert_eq!(loss.why, Why::Outside, "{what}: {path} at {:#x}", run.at);
                found += run.len;
            }
            assert!(run.trust >= trust, "{what}: {path} at {:#x} is {:?}", run.at, run.trust);
        }
        assert_eq!(found, lost, "{what}: {path}");
        for (range, content) in expected {
            match content {
                Some(content) => assert_eq!(digest(&*layer, range.clone()), content, "{what}: {path} {range:x?}"),
                None => assert!(
                    walk(&*layer, range).all(|run| matches!(run.place, Place::Hole | Place::Zero)),
                    "{what}: {path}"
                ),
            }
        }
        check_laws(&*layer, Effort { runs: 50, bytes: 1 << 16 }).unwrap_or_else(|law| panic!("{what}: {path}: {law}"));
    }
}

fn codes(tree: &dyn Tree, opened: &[Finding], image: &Sparse) -> Vec<&'static str> {
    let audit = audit(tree, image);
    let mut codes: Vec<_> = opened.iter().chain(&audit.findings).map(|finding| finding.code).collect();
    codes.sort_unstable();
    codes.dedup();
    codes
}

/// What is destroyed, the findings that say so, and how far the files are believed then.
type Case = (&'static str, Vec<Range<u64>>, &'static [&'static str], Trust);

fn cases(six: bool) -> Vec<Case> {
    let table = if six { 0x10_1000 } else { 0x10_0200 };
    let tables = if six { 0x18_1000..0x28_2000 } else { 0x18_0200..0x28_0600 };
    let (lvm, fs) = (0x10_0000..0x10_0200, 0x130_0000..0x130_1000);
    let gone: &[&str] = &["LVM-GONE"];
    let (rule, header): (&[&str], &[&str]) = (&["LVM-PE-RULE"], &["VMFS-HEADER"]);
    let both: &[&str] = &["LVM-GONE", "VMFS-HEADER"];
    vec![
        ("nothing", vec![], &[], Trust::Sound),
        ("first MiB", vec![0..MIB], &[], Trust::Sound),
        ("LVM header", vec![lvm.clone()], &["LVM-HEADER"], Trust::Sound),
        ("volume table", vec![table..table + 512], &["LVM-VOLUME"], Trust::Sound),
        ("tables of extents", vec![tables.clone()], rule, Trust::Inferred),
        (
            "LVM header and tables of extents",
            vec![lvm.clone(), tables.clone()],
            &["LVM-HEADER", "LVM-PE-RULE"],
            Trust::Inferred,
        ),
        (
            "volume table and tables of extents",
            vec![table..table + 512, tables],
            &["LVM-PE-RULE", "LVM-VOLUME"],
            Trust::Inferred,
        ),
        ("LVM header and volume table", vec![lvm.start..table + 512], gone, Trust::Inferred),
        ("all of LVM", vec![MIB..17 * MIB], gone, Trust::Inferred),
        ("file system header", vec![fs.clone()], header, Trust::Inferred),
        ("both headers", vec![lvm, fs.clone()], &["LVM-HEADER", "VMFS-HEADER"], Trust::Inferred),
        ("all of LVM and the header", vec![MIB..17 * MIB, fs], both, Trust::Inferred),
        ("first 20 MiB", vec![0..20 * MIB], both, Trust::Inferred),
    ]
}

#[test]
fn volumes_open_without_their_headers() {
    for name in IMAGES {
        let Some(image) = image(name) else { return };
        let bytes: Bytes = image.clone();
        let whole = tree(open(bytes.clone()).join_alone().unwrap());
        for (what, ranges, findings, trust) in cases(name != "vmfs5") {
            for garbage in [false, true] {
                let what = format!("{name}: {what}, {}", if garbage { "garbage" } else { "zeros" });
                let damaged = over(&bytes, &ranges, garbage);
                assert!((vmfs::FORMAT.probe)(&*damaged) > 64, "{what}");
                let opened = open(damaged);
                let tree = tree(opened.join_alone().unwrap());
                check(&what, &*whole, &*tree, &(0..0), trust);
                assert_eq!(codes(&*tree, &opened.findings, &image), findings, "{what}");
                assert_eq!(opened.link.len, 2 << 30, "{what}");
                if findings.contains(&"VMFS-HEADER") {
                    assert_eq!(opened.link.name.as_deref(), Some(&b""[..]), "{what}");
                } else {
                    assert_eq!(opened.link.name.as_deref(), Some(name.as_bytes()), "{what}");
                }
            }
        }
    }
}

/// The same on a disk of which nothing says where the partition starts, be that no round number.
#[test]
fn a_sweep_finds_volumes_without_their_headers() {
    for name in IMAGES {
        let Some(image) = image(name) else { return };
        let bytes: Bytes = image.clone();
        let whole = tree(open(bytes.clone()).join_alone().unwrap());
        for (what, ranges, _, trust) in cases(name != "vmfs5") {
            for start in [MIB, 63 * 512] {
                let what = format!("{name} at {start}: {what}");
                let damaged = over(&bytes, &ranges, true);
                let disk = vdrecover_formats::adapt::Concat::new([
                    Arc::new(Blank::zero(start)) as Bytes,
                    damaged,
                    Arc::new(Blank::zero(5 * MIB)),
                ]);
                let disk: Bytes = Arc::new(disk.unwrap());
                let (volumes, findings) = swept(&disk);
                assert_eq!((volumes.len(), findings.len()), (1, 0), "{what}: {volumes:?} {findings:?}");
                assert_eq!(volumes[0].range.start, start, "{what}");
                let end = volumes[0].range.end - start;
                assert!([image.len, 0x110_0000 + (2 << 30)].contains(&end), "{what}: {end:#x}");
                let tree = tree(open(volumes[0].bytes.clone()).join_alone().unwrap());
                check(&what, &*whole, &*tree, &(0..0), trust);
            }
        }
    }
}

#[test]
fn dumps_of_a_part_have_what_is_in_them() {
    for name in IMAGES {
        let Some(image) = image(name) else { return };
        let bytes: Bytes = image.clone();
        let whole = tree(open(bytes.clone()).join_alone().unwrap());
        for late in [MIB, 18 * MIB, 19 * MIB + 512] {
            let what = format!("{name} without its first {late} bytes");
            let dump: Bytes = Arc::new(Part::new(bytes.clone(), late, image.len - late));
            let (volumes, _) = swept(&dump);
            assert_eq!(volumes.len(), 1, "{what}");
            assert_eq!(volumes[0].range.start, 0, "{what}");
            assert!(volumes[0].about.contains(&format!("{late} bytes are outside")), "{what}: {}", volumes[0].about);
            let tree = tree(open(volumes[0].bytes.clone()).join_alone().unwrap());
            let trust = if late == MIB { Trust::Sound } else { Trust::Inferred };
            check(&what, &*whole, &*tree, &(0..late), trust);
        }
        for (what, from, len) in [
            ("device cut", 0, 1536 * MIB),
            ("volume itself cut", 0x110_0000, 1536 * MIB),
            ("device cut before its files", 0, 700 * MIB),
        ] {
            let what = format!("{name}: {what}");
            let dump: Bytes = Arc::new(Part::new(bytes.clone(), from, len));
            let opened = open(dump);
            assert_eq!(opened.link.len, 2 << 30, "{what}");
            let short = opened.findings.iter().find(|finding| finding.code == "LVM-SHORT");
            assert_eq!(short.is_some(), from == 0, "{what}: {:?}", opened.findings);
            if let Some(short) = short {
                assert!(short.trust == Trust::Sound && short.text.contains("outside this dump"), "{what}: {short:?}");
            }
            let tree = tree(opened.join_alone().unwrap());
            if len > 1024 * MIB {
                check(&what, &*whole, &*tree, &(from + len..image.len), Trust::Sound);
            }
        }
    }
}
