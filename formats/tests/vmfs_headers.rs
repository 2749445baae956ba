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
    clippy::single_range_in_vec_init,
    missing_docs,
    reason = "tests"
)]

mod vmfs_support;

use std::collections::BTreeMap;
use std::fmt;
use std::hash::{DefaultHasher, Hasher};
use std::ops::{ControlFlow, Range};
use std::sync::Arc;
use vdrecover_formats::adapt::{Blank, Copied, Memory, Patch, Window as Part};
use vdrecover_formats::format::{Clue, Window};
use vdrecover_formats::laws::{Effort, check_laws};
use vdrecover_formats::link::Volume;
use vdrecover_formats::{
    Bytes, Content, Entry, Fault, Finding, Kind, Layer, NodeId, Place, Pool, Run, Tree, Trust, Why, read, read_vec,
    vmfs, walk,
};
use vdrecover_testdata::Device;
use vdrecover_testdata::vmfs as made;
use vdrecover_testdata::vmfs::{Layout, Version, Vmfs, VmfsSpec};
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

fn digest(layer: &dyn Layer, range: Range<u64>) -> u64 {
    let mut hasher = DefaultHasher::new();
    let mut buf = vec![0; MIB as usize];
    let mut at = range.start;
    while at < range.end {
        let len = (range.end - at).min(MIB) as usize;
        assert!(read(layer, at, &mut buf[..len]).is_whole());
        hasher.write(&buf[..len]);
        at += len as u64;
    }
    hasher.finish()
}

/// One range of a file: where on the device it lies, and the digest of its bytes; nothing for a hole.
struct Piece {
    range: Range<u64>,
    data: Option<(u64, u64)>,
}

/// A range of a file that is there, and the digest of its bytes; nothing for a hole.
type Kept = (Range<u64>, Option<u64>);

/// An undamaged volume.
struct Whole {
    tree: Arc<dyn Tree>,
    names: Vec<(String, Entry)>,
    files: BTreeMap<String, (u64, Vec<Piece>)>,
}

impl Whole {
    fn new(tree: Arc<dyn Tree>) -> Self {
        let names = all(&*tree);
        let files = names.iter().filter(|(_, entry)| matches!(entry.kind, Kind::File | Kind::Symlink));
        let files = files
            .map(|(path, entry)| {
                let layer = tree.open(entry.id).unwrap();
                let pieces = walk(&*layer, 0..layer.len()).map(|run| {
                    let range = run.at..run.at + run.len;
                    let data = match run.place {
                        Place::Own => Some((run.offset, digest(&*layer, range.clone()))),
                        Place::Hole | Place::Zero => None,
                        place => panic!("{path}: {place:?}"),
                    };
                    Piece { range, data }
                });
                (path.clone(), (layer.len(), pieces.collect()))
            })
            .collect();
        Self { tree, names, files }
    }

    /// What a file has if the device lacks `gone`: its ranges with the digests of their bytes, and what it has not.
    fn without(&self, path: &str, gone: &Range<u64>) -> (Vec<Kept>, u64) {
        let layer = self.tree.open(vmfs_support::find(&*self.tree, &path[1..])).unwrap();
        let mut pieces = Vec::new();
        let mut lost = 0;
        for Piece { range, data } in &self.files[path].1 {
            let Some((at, content)) = data else {
                pieces.push((range.clone(), None));
                continue;
            };
            let place = |device: u64| range.start + device.clamp(*at, at + (range.end - range.start)) - at;
            let hit = place(gone.start)..place(gone.end);
            if hit.is_empty() {
                pieces.push((range.clone(), Some(*content)));
                continue;
            }
            lost += hit.end - hit.start;
            for part in [range.start..hit.start, hit.end..range.end] {
                if !part.is_empty() {
                    pieces.push((part.clone(), Some(digest(&*layer, part))));
                }
            }
        }
        (pieces, lost)
    }
}

/// Whether a folder's own bytes lie outside of the dump.
fn is_cut(tree: &dyn Tree, dir: NodeId) -> bool {
    let mut cut = false;
    tree.list(dir, 0, &mut |entry| {
        cut |= entry.is_err();
        ControlFlow::Continue(())
    })
    .unwrap();
    cut
}

/// The same files with the same content, but for what lies in `gone` of the undamaged device.
fn check(what: &str, whole: &Whole, tree: &dyn Tree, gone: &Range<u64>, trust: Trust) {
    let cut: Vec<String> = whole
        .names
        .iter()
        .filter(|(_, entry)| entry.kind == Kind::Dir && is_cut(tree, entry.id))
        .map(|(path, _)| format!("{path}/"))
        .collect();
    assert!(cut.is_empty() || !gone.is_empty(), "{what}: {cut:?}");
    for (path, (len, _)) in &whole.files {
        let len = *len;
        if cut.iter().any(|cut| path.starts_with(cut)) {
            continue;
        }
        // The file of the volume's header has what was written over it.
        if path == "/.vh.sf" && gone.is_empty() {
            continue;
        }
        let layer = tree.open(vmfs_support::find(tree, &path[1..])).unwrap();
        assert_eq!(layer.len(), len, "{what}: {path}");
        let (expected, lost) = whole.without(path, gone);
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
        let whole = Whole::new(tree(open(bytes.clone()).join_alone().unwrap()));
        for (what, ranges, findings, trust) in cases(name != "vmfs5") {
            for garbage in [false, true].into_iter().take(if trust == Trust::Sound { 1 } else { 2 }) {
                let what = format!("{name}: {what}, {}", if garbage { "garbage" } else { "zeros" });
                let damaged = over(&bytes, &ranges, garbage);
                assert!((vmfs::FORMAT.probe)(&*damaged) > 64, "{what}");
                let opened = open(damaged);
                let tree = tree(opened.join_alone().unwrap());
                check(&what, &whole, &*tree, &(0..0), trust);
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
        let whole = Whole::new(tree(open(bytes.clone()).join_alone().unwrap()));
        for (i, (what, ranges, _, trust)) in cases(name != "vmfs5").into_iter().enumerate() {
            {
                let start = [MIB, 63 * 512][i % 2];
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
                check(&what, &whole, &*tree, &(0..0), trust);
            }
        }
    }
}

#[test]
fn dumps_of_a_part_have_what_is_in_them() {
    for name in IMAGES {
        let Some(image) = image(name) else { return };
        let bytes: Bytes = image.clone();
        let whole = Whole::new(tree(open(bytes.clone()).join_alone().unwrap()));
        for late in [MIB, 18 * MIB, 19 * MIB + 512] {
            let what = format!("{name} without its first {late} bytes");
            let dump: Bytes = Arc::new(Part::new(bytes.clone(), late, image.len - late));
            let (volumes, _) = swept(&dump);
            assert_eq!(volumes.len(), 1, "{what}");
            assert_eq!(volumes[0].range.start, 0, "{what}");
            assert!(volumes[0].about.contains(&format!("{late} bytes are outside")), "{what}: {}", volumes[0].about);
            let tree = tree(open(volumes[0].bytes.clone()).join_alone().unwrap());
            let trust = if late == MIB { Trust::Sound } else { Trust::Inferred };
            check(&what, &whole, &*tree, &(0..late), trust);
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
                check(&what, &whole, &*tree, &(from + len..image.len), Trust::Sound);
            }
        }
    }
}

fn spanned(devices: &[Option<Bytes>], lead: usize) -> Result<(Arc<dyn Tree>, Vec<Finding>), String> {
    let opened = open(devices[lead].clone().unwrap());
    let others: Vec<_> =
        devices.iter().enumerate().filter(|(i, _)| *i != lead).map(|(_, other)| other.clone()).collect();
    assert_eq!(opened.wants.len(), others.len(), "device {lead}");
    let content = (opened.join)(&others).map_err(|error| error.to_string())?;
    Ok((tree(content), opened.findings))
}

#[test]
fn extents_without_their_headers_find_each_other() {
    let (Some(first), Some(second)) = (image("vmfs5-span-0"), image("vmfs5-span-1")) else { return };
    let (first, second): (Bytes, Bytes) = (first, second);
    let whole = Whole::new(spanned(&[Some(first.clone()), Some(second.clone())], 0).unwrap().0);
    let (header, lvm) = ([MIB..MIB + 512], [MIB..17 * MIB]);
    for (what, devices) in [
        ("header of the first", [over(&first, &header, true), second.clone()]),
        ("header of the second", [first.clone(), over(&second, &header, true)]),
        ("both headers", [over(&first, &header, false), over(&second, &header, false)]),
        ("all of LVM on the first", [over(&first, &lvm, true), second.clone()]),
    ] {
        let devices = devices.map(Some);
        for lead in [0, 1] {
            let (tree, _) = spanned(&devices, lead).unwrap();
            check(what, &whole, &*tree, &(0..0), Trust::Sound);
        }
        // The second alone says which part is wanted.
        let error = spanned(&[None, devices[1].clone()], 1).unwrap_err();
        assert!(
            error.contains("extent 2 of 2 of volume 68627359-6c988da8-bfe9-bc2411b17e28; extent 1 is missing"),
            "{what}: {error}"
        );
    }
}

/// A generated device.
struct Made(Device);

impl fmt::Debug for Made {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Layer for Made {
    fn len(&self) -> u64 {
        self.0.len()
    }

    fn run(&self, _: u64, want: u64) -> Run<'_> {
        Run::sound(want, Place::Own)
    }

    fn fetch(&self, at: u64, buf: &mut [u8]) -> Result<Trust, Fault> {
        buf.copy_from_slice(&self.0.read(at, buf.len()));
        Ok(Trust::Sound)
    }
}

/// Layouts that no image of the corpus has: what is rebuilt follows from the records in each of them.
#[test]
fn every_layout_is_rebuilt() {
    let five = || VmfsSpec::new(Version::Five, 640 * MIB);
    let six = || VmfsSpec::new(Version::Six, 4096 * MIB);
    let mut specs = Vec::new();
    for file_block_size in [MIB / 2, MIB, 2 * MIB, 4 * MIB, 8 * MIB] {
        for dense_sub_blocks in [true, false] {
            specs.push(VmfsSpec { file_block_size, dense_sub_blocks, extents: vec![640 * MIB], ..five() });
        }
    }
    for metadata_alignment in [4096, 8192, 16384, 65536] {
        specs.push(VmfsSpec { metadata_alignment, ..six() });
    }
    specs.push(VmfsSpec { sector_size: 4096, ..five() });
    specs.push(VmfsSpec { sector_size: 4096, ..six() });
    specs.push(VmfsSpec { local: true, ..six() });
    for spec in specs {
        let what = format!("{spec:?}");
        let mut store = Vmfs::new(spec);
        store.file("direct", made::Content::patterned(9_000_000, 30), &Layout::default());
        store.mkdir("folder");
        for n in 1..40 {
            store.file(&format!("folder/file{n:02}"), made::Content::patterned(n * 500, n), &Layout::default());
        }
        let files = store.expected();
        let len = store.volume_len();
        let bytes: Bytes = Arc::new(Made(store.finish().remove(0)));
        assert_eq!((vmfs::FORMAT.probe)(&*bytes), 192, "{what}");
        for wiped in [vec![], vec![MIB..17 * MIB, 19 * MIB..19 * MIB + 4096], vec![0..20 * MIB]] {
            let what = format!("{what} {wiped:x?}");
            let damaged = over(&bytes, &wiped, true);
            let opened = open(damaged);
            assert_eq!(opened.link.len, len, "{what}");
            let tree = tree(opened.join_alone().unwrap());
            for file in files.iter().filter(|file| file.content.is_some() && !file.path.starts_with('.')) {
                let layer = tree.open(vmfs_support::find(&*tree, &file.path)).unwrap();
                let (found, seen) = read_vec(&*layer, 0, file.len as usize);
                assert!(seen.is_whole(), "{what}: {}: {seen:?}", file.path);
                assert_eq!(
                    seen.trust,
                    if wiped.is_empty() { Trust::Sound } else { Trust::Inferred },
                    "{what}: {}",
                    file.path
                );
                assert!(found == file.content.as_ref().unwrap().read(0, file.len as usize), "{what}: {}", file.path);
            }
        }
    }
}

/// Several volumes of which nothing but their records is left, and one whose start alone is there.
#[test]
fn volumes_side_by_side_are_told_apart() {
    let mut disk = Device::new(1200 * MIB);
    let mut starts = Vec::new();
    for (seed, version, start) in [(1, Version::Five, 7 * 512), (2, Version::Six, 330 * MIB + 512)] {
        let mut store = Vmfs::new(VmfsSpec { seed, ..VmfsSpec::new(version, 320 * MIB) });
        store.file("own", made::Content::patterned(3_000_000, u64::from(seed)), &Layout::default());
        disk.embed(start, &store.finish().remove(0));
        disk.zero(start..start + 20 * MIB);
        starts.push(start);
    }
    let bytes: Bytes = Arc::new(Made(disk));
    let mut clues = Vec::new();
    let look = vmfs::FORMAT.sweep.unwrap().look;
    for at in (0..bytes.len()).step_by(16 << 20) {
        let (window, _) = read_vec(&*bytes, at, (bytes.len() - at).min(16 * MIB) as usize);
        let before = clues.len();
        look(&Window { at, bytes: &window, own: window.len() }, &mut |clue| clues.push(clue));
        assert!(clues.len() - before < 10, "{at:#x}: {:?}", &clues[before..]);
    }
    clues.sort_unstable();
    let opened = (vmfs::FORMAT.sweep.unwrap().build)(&bytes, &Pool::new(8 << 20).share(), &clues).unwrap();
    let Content::Volumes(volumes) = opened.join_alone().unwrap() else { panic!("volumes are wanted") };
    assert_eq!(volumes.iter().map(|volume| volume.range.start).collect::<Vec<_>>(), starts);
    for (volume, seed) in volumes.iter().zip(1..) {
        let tree = tree(open(volume.bytes.clone()).join_alone().unwrap());
        let layer = tree.open(vmfs_support::find(&*tree, "own")).unwrap();
        let (found, seen) = read_vec(&*layer, 0, 3_000_000);
        assert!(seen.is_whole() && found == made::Content::patterned(3_000_000, seed).read(0, 3_000_000));
    }
}

/// Garbage that looks like records makes neither clues without end nor volumes.
#[test]
fn votes_of_garbage_are_bounded() {
    let mut bytes = vec![0; 1 << 20];
    for (i, sector) in bytes.chunks_exact_mut(512).enumerate() {
        sector[..4].copy_from_slice(&(0x10C0_0001_u32 + i as u32 % 9).to_le_bytes());
        sector[4..12].copy_from_slice(&(0x30_0000 + (i as u64 * 7919 % 1000) * 512).to_le_bytes());
    }
    let mut clues = Vec::new();
    let sweep = vmfs::FORMAT.sweep.unwrap();
    (sweep.look)(&Window { at: 0, bytes: &bytes, own: bytes.len() }, &mut |clue| clues.push(clue));
    assert_eq!(clues.len(), 64);
    let disk: Bytes = Arc::new(Memory::new(bytes));
    clues.sort_unstable();
    match (sweep.build)(&disk, &Pool::new(8 << 20).share(), &clues) {
        Ok(opened) => {
            let Content::Volumes(volumes) = opened.join_alone().unwrap() else { panic!("volumes are wanted") };
            assert!(volumes.is_empty());
        }
        Err(error) => assert!(error.to_string().contains("can't be opened"), "{error}"),
    }
}
