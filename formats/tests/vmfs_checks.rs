//! Journals, owners and cross-checks, on generated crashes and on real volumes that were damaged on purpose.
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

use std::collections::{BTreeMap, BTreeSet};
use std::ops::{ControlFlow, Range};
use std::sync::Arc;
use vdrecover_formats::adapt::Damaged;
use vdrecover_formats::vmfs::address::{Address, FdAddress};
use vdrecover_formats::vmfs::descriptor::Origin;
use vdrecover_formats::vmfs::header::Header;
use vdrecover_formats::vmfs::journal::{self, Standing};
use vdrecover_formats::vmfs::lvm::{Device as Lvm, Logical};
use vdrecover_formats::vmfs::resource::Resource;
use vdrecover_formats::vmfs::volume::Volume;
use vdrecover_formats::{Bytes, Finding, Kind, Layer, NodeId, Note, Place, Pool, Tree, Trust, Why, read_vec, walk};
use vdrecover_testdata::samples::SAMPLES;
use vdrecover_testdata::vmfs as made;
use vdrecover_testdata::vmfs::{Crash, Crashed, Expected, Layout, Version, Vmfs, VmfsSpec};
use vmfs_support::{Disk, GIB, MIB, Sparse, find, image, list, open, tree};

fn datastore(bytes: Bytes) -> Arc<dyn Tree> {
    tree(open(bytes).join_alone().unwrap())
}

fn volume(bytes: &Bytes) -> Volume {
    let logical = Arc::new(Logical::new(Lvm::load(bytes).unwrap(), []));
    let lv: Bytes = Arc::<Logical>::clone(&logical);
    Volume::replayed(Header::load(&*lv).unwrap(), &lv, Some(logical), &Pool::new(32 << 20).share())
}

fn findings(tree: &dyn Tree) -> Vec<Finding> {
    let mut found = Vec::new();
    for part in 0..tree.parts() {
        let _ = tree.audit(part, &mut |note| {
            if let Note::Finding(finding) = note {
                found.push(finding);
            }
            ControlFlow::Continue(())
        });
    }
    found
}

fn codes(findings: &[Finding]) -> BTreeSet<&'static str> {
    findings.iter().filter(|finding| finding.trust > Trust::Sound).map(|finding| finding.code).collect()
}

fn cross_check(tree: &dyn Tree) -> Vec<Finding> {
    let mut found = Vec::new();
    tree.check(&mut |finding| found.push(finding));
    found
}

// Crashes

fn crashed(version: Version, how: Crash) -> Crashed {
    let mut store = Vmfs::new(VmfsSpec { crashed: true, ..VmfsSpec::new(version, 288 << 20) });
    store.file("old", made::Content::patterned(3000, 1), &Layout::default());
    store.crash(how, |store| {
        store.mkdir("folder");
        store.file("folder/new", made::Content::patterned(3_000_000, 2), &Layout::default());
        store.file("small", made::Content::bytes("small\n"), &Layout::default());
    })
}

fn check_files(tree: &dyn Tree, files: &[Expected]) {
    for file in files.iter().filter(|file| file.content.is_some()) {
        let layer = tree.open(find(tree, &file.path)).unwrap();
        assert_eq!(layer.len(), file.len, "{}", file.path);
        let (bytes, seen) = read_vec(&*layer, 0, layer.len() as usize);
        assert!(seen.is_whole(), "{}: {seen:?}", file.path);
        assert!(bytes == file.content.as_ref().unwrap().read(0, file.len as usize), "{}", file.path);
    }
}

#[test]
fn what_was_committed_and_not_written_home_counts() {
    for version in [Version::Five, Version::Six] {
        let crashed = crashed(version, Crash::Pending);
        assert!(crashed.after.len() > crashed.before.len());
        let tree = datastore(Arc::new(Disk(crashed.devices[0].clone())));
        check_files(&*tree, &crashed.after);
        let new = tree.node(find(&*tree, "folder/new")).unwrap();
        assert_eq!(new.trust, Trust::Inferred, "{version:?}");
        let found = findings(&*tree);
        assert!(codes(&found).contains("VMFS-JOURNAL-REPLAY"), "{version:?}: {found:?}");
        assert!(!codes(&found).contains("VMFS-JOURNAL-UNSURE"), "{version:?}: {found:?}");
        // What the journal does not touch is as sound as before.
        let old = tree.open(find(&*tree, "old")).unwrap();
        assert_eq!(walk(&*old, 0..old.len()).map(|run| run.trust).max(), Some(Trust::Sound), "{version:?}");
        let volume = volume(&(Arc::new(Disk(crashed.devices[0].clone())) as Bytes));
        let known = journal::images(&volume);
        assert!(known.iter().any(|image| image.descriptor.len == 3_000_000), "{version:?}");
        let mut names = Vec::new();
        journal::names(&volume, &mut |name| names.push(name));
        assert!(names.iter().any(|name| name.name == b"new"), "{version:?}: {names:?}");
    }
}

#[test]
fn what_is_home_is_left_alone() {
    for version in [Version::Five, Version::Six] {
        let crashed = crashed(version, Crash::Home);
        let tree = datastore(Arc::new(Disk(crashed.devices[0].clone())));
        check_files(&*tree, &crashed.after);
        assert_eq!(findings(&*tree), [], "{version:?}");
        assert_eq!(tree.node(find(&*tree, "folder/new")).unwrap().trust, Trust::Sound);
    }
}

#[test]
fn what_was_not_committed_does_not_count() {
    let crashed = crashed(Version::Six, Crash::Torn);
    let tree = datastore(Arc::new(Disk(crashed.devices[0].clone())));
    check_files(&*tree, &crashed.before);
    assert_eq!(tree.lookup(tree.root(), b"small"), Ok(None));
    assert!(findings(&*tree).iter().all(|finding| !finding.code.starts_with("VMFS-JOURNAL")));
}

/// A journal that can't be told from a newer one: the same records, with tokens as at home and no head.
#[test]
fn what_nobody_can_tell_of_is_doubtful() {
    for version in [Version::Five, Version::Six] {
        let mut store = Vmfs::new(VmfsSpec { crashed: true, ..VmfsSpec::new(version, 288 << 20) });
        store.file("old", made::Content::patterned(9000, 1), &Layout::default());
        let at = store.locate("old");
        let len = at.fd_len / 2;
        let crashed = store.clone().crash(Crash::Home, |store| store.set_time(1_800_000_000));
        let (_, start) = store.device_position(crashed.journal.start);
        let mut device = crashed.devices[0].clone();
        // One record without any lock: the second half of the descriptor, with another length.
        let (_, home) = store.device_position(at.fd_lv);
        let half = if version == Version::Six { len } else { 512 };
        let mut bytes = device.read(home + half, (at.fd_len - half) as usize);
        bytes[0x14..0x16].copy_from_slice(&4000_u16.to_le_bytes());
        let target = at.fd_lv + half;
        let mut journal = vec![0; 64 << 10];
        if version == Version::Six {
            for page in 1..16_usize {
                journal[page * 4096..page * 4096 + 6].copy_from_slice(b"TO6J\xFF\xFF");
            }
            for page in 1..3_usize {
                journal[page * 4096 + 4..page * 4096 + 6].copy_from_slice(&(page as u16).to_le_bytes());
                journal[page * 4096 + 24] = 7;
            }
            let head: [(usize, u64, usize); 9] = [
                (0, 0x20, 4),
                (8, 0x104, 2),
                (0xC, target, 8),
                (0x14, bytes.len() as u64, 4),
                (0x22, 2, 2),
                (0x28, 0x60, 4),
                (0x2C, 4096 - 0x60, 4),
                (0x30, 0x1020, 4),
                (0x34, 0x60, 4),
            ];
            for (at, value, len) in head {
                journal[0x1020 + at..0x1020 + at + len].copy_from_slice(&value.to_le_bytes()[..len]);
            }
            let (first, second) = bytes.split_at(4096 - 0x60);
            journal[0x1060..0x2000].copy_from_slice(first);
            journal[0x2020..0x2020 + second.len()].copy_from_slice(second);
        } else {
            journal[0x200] = 1;
            journal[0x210..0x218].copy_from_slice(&target.to_le_bytes());
            journal[0x218..0x220].copy_from_slice(&(bytes.len() as u64).to_le_bytes());
            journal[0x220..0x220 + bytes.len()].copy_from_slice(&bytes);
        }
        device.zero(start..start + (64 << 10));
        device.write(start, &journal);
        let bytes: Bytes = Arc::new(Disk(device));
        let tree = datastore(Bytes::clone(&bytes));
        let node = tree.node(find(&*tree, "old")).unwrap();
        assert_eq!((node.len, node.trust), (9000, Trust::Doubtful), "{version:?}");
        let found = findings(&*tree);
        assert_eq!(codes(&found), BTreeSet::from(["VMFS-JOURNAL-UNSURE"]), "{version:?}: {found:?}");
        let all = journal::journals(&volume(&bytes));
        assert!(all[0].records.iter().any(|record| record.standing == Standing::Unsure));
    }
}

// Real volumes

const BASE: u64 = 0x110_0000;

fn damaged(image: &Sparse, writes: &[(u64, Vec<u8>)]) -> Arc<Sparse> {
    let mut copy = image.clone();
    for (lv, bytes) in writes {
        copy.write(BASE + lv, bytes);
    }
    Arc::new(copy)
}

fn word(value: u64, len: usize) -> Vec<u8> {
    value.to_le_bytes()[..len].to_vec()
}

/// The last transaction of a real journal, and home as it was before it: the locks are held, nothing is written.
#[test]
fn a_real_transaction_counts_if_its_host_died() {
    let Some(image) = image("vmfs6") else { return };
    let healthy = datastore(image.clone());
    let folder = healthy.node(find(&*healthy, "directory")).map(|_| ()).is_ok();
    assert!(folder);
    let held = |token: u64| [word(token, 8), word(1, 4)].concat();
    let mut writes = vec![
        (0x273_E01C, held(0x2D)),
        (0x192_201C, held(0x26)),
        (0x1B5_401C, held(0x14)),
        // The descriptor was not there, nor its entry in a folder.
        (0x1B5_5000, vec![0; 4096]),
        (0x11B4_34C0, vec![0; 0x120]),
    ];
    let bytes: Bytes = damaged(&image, &writes);
    let tree = datastore(Bytes::clone(&bytes));
    let found = findings(&*tree);
    assert_eq!(codes(&found), BTreeSet::from(["VMFS-JOURNAL-REPLAY"]), "{found:?}");
    let of = |tree: &dyn Tree| {
        let all = vmfs_support::all(tree).into_iter();
        all.map(|(path, entry)| (path, entry.id, tree.node(entry.id).unwrap().len)).collect::<Vec<_>>()
    };
    assert_eq!(of(&*tree), of(&*healthy));
    assert_eq!(tree.node(NodeId(0x0480_0244)).unwrap().trust, Trust::Inferred);
    // Without the page that makes it whole it may have been torn, or damaged: what it says is doubted.
    let journal = 0x1FD1_8000;
    writes.push((journal + 0x3008, vec![0x55; 8]));
    let tree = datastore(damaged(&image, &writes));
    let codes = codes(&findings(&*tree));
    assert!(codes.contains("VMFS-JOURNAL-UNSURE") && !codes.contains("VMFS-JOURNAL-REPLAY"), "{codes:?}");
}

/// The same on VMFS5: its lock is at home as it was before the journal was written.
#[test]
fn a_real_transaction_of_vmfs5_counts_if_its_host_died() {
    let Some(image) = image("vmfs5") else { return };
    let healthy = datastore(image.clone());
    let (_, fd) = (0, FdAddress(0x2080_0104));
    let before = healthy.node(NodeId(fd.0.into())).ok();
    let tree = datastore(damaged(&image, &[(0x7F_101C, word(0x83, 8)), (0x7F_1200, vec![0; 0x600])]));
    let codes = codes(&findings(&*tree));
    assert_eq!(codes, BTreeSet::from(["VMFS-JOURNAL-REPLAY"]));
    let node = tree.node(NodeId(fd.0.into())).ok();
    assert!(node.is_some());
    assert_eq!(node.as_ref().map(|node| node.len), before.map(|node| node.len));
    assert_eq!(node.map(|node| node.trust), Some(Trust::Inferred));
}

#[test]
fn lost_descriptors_come_back_from_journals_and_owners() {
    let Some(image) = image("vmfs6") else { return };
    let healthy = volume(&(image.clone() as Bytes));
    let names = datastore(image.clone());
    let lose = |address: FdAddress| {
        let at = healthy.locate(address).unwrap();
        let lost = BASE + at..BASE + at + 8192;
        let bytes: Bytes = Arc::new(Damaged::new(image.clone(), vec![lost], Why::Unreadable));
        (volume(&bytes), datastore(bytes))
    };
    let address = |path: &str| FdAddress(u32::try_from(find(&*names, path).0).unwrap());

    // The last file that was made is in the journal.
    let last = FdAddress(0x0480_0244);
    let (broken, tree) = lose(last);
    let fd = broken.descriptor(last).unwrap();
    assert!(matches!(fd.origin, Origin::Journal { .. }) && fd.trust == Trust::Inferred);
    assert_eq!(fd.generation, healthy.descriptor(last).unwrap().generation);
    assert!(codes(&findings(&*tree)).contains("VMFS-FD-JOURNAL"));

    // A disk of two levels: its one upper table says where the others belong.
    let (broken, tree) = lose(address("large-flat.vmdk"));
    let fd = broken.descriptor(address("large-flat.vmdk")).unwrap();
    assert_eq!((fd.origin, fd.trust, fd.blocks), (Origin::Owners, Trust::Inferred, 1));
    let layer = tree.open(find(&*tree, "large-flat.vmdk")).unwrap();
    let (bytes, seen) = read_vec(&*layer, 117 * GIB, 512);
    assert!(bytes.iter().all(|byte| *byte == 0x42) && seen.is_whole() && seen.trust == Trust::Inferred);
    assert!(codes(&findings(&*tree)).contains("VMFS-FD-OWNERS"));

    // A disk of one table that has holes before its data: nobody can tell where the table belongs.
    let (broken, tree) = lose(address("normal-flat.vmdk"));
    let fd = broken.descriptor(address("normal-flat.vmdk")).unwrap();
    assert_eq!((fd.origin, fd.trust, fd.blocks), (Origin::Owners, Trust::Doubtful, 1));
    let layer = tree.open(find(&*tree, "normal-flat.vmdk")).unwrap();
    assert!(walk(&*layer, 0..layer.len()).all(|run| run.trust == Trust::Doubtful));

    // A folder: its header and its entries know where they belong.
    let (broken, tree) = lose(address("directory"));
    let fd = broken.descriptor(address("directory")).unwrap();
    assert_eq!(fd.origin, Origin::Owners);
    assert_eq!(list(&*tree, find(&*tree, "directory")), list(&*names, find(&*names, "directory")));

    // What lay in the descriptor itself is gone, and the name stays.
    let (_, tree) = lose(address("small"));
    assert!(tree.lookup(tree.root(), b"small").unwrap().is_some());
    assert!(tree.open(find(&*tree, "small")).is_err());
}

#[test]
fn a_pointer_that_became_zero_is_no_sound_hole() {
    for name in ["vmfs5", "vmfs6"] {
        let Some(image) = image(name) else { return };
        let healthy = volume(&(image.clone() as Bytes));
        let names = datastore(image.clone());
        let fd = healthy.descriptor(FdAddress(u32::try_from(find(&*names, "bigger").0).unwrap())).unwrap();
        let width = healthy.space.header.width.bytes();
        let tree = datastore(damaged(&image, &[(fd.pointers_at + 5 * width, vec![0; width as usize])]));
        let layer = tree.open(find(&*tree, "bigger")).unwrap();
        for run in walk(&*layer, 0..layer.len()) {
            let is_hole = matches!(run.place, Place::Hole);
            assert_eq!(is_hole, (run.at..run.at + run.len) == (5 * MIB..6 * MIB), "{name}");
            assert_eq!(run.trust, if is_hole { Trust::Doubtful } else { Trust::Sound }, "{name}");
        }
    }
}

// Cross-checks

#[test]
fn nothing_contradicts_on_healthy_volumes() {
    for name in ["vmfs5", "vmfs6", "vmfs6l", "vmfs5-no-dense-sbpc", "zero6"] {
        let Some(image) = image(name) else { return };
        let found = cross_check(&*datastore(image.clone()));
        assert_eq!(codes(&found), BTreeSet::new(), "{name}: {found:?}");
        let hosts = found.iter().filter(|finding| finding.code == "VMFS-HOST").count();
        assert_eq!(hosts, usize::from(name != "zero6"), "{name}");
        assert_eq!(volume(&(image as Bytes)).findings, [], "{name}");
    }
}

/// What is wrong, what is written to make it so, and what is told.
type Case = (&'static str, Vec<(u64, Vec<u8>)>, &'static [&'static str]);

#[test]
fn each_contradiction_is_told() {
    let Some(image) = image("vmfs6") else { return };
    let healthy = volume(&(image.clone() as Bytes));
    let names = datastore(image.clone());
    let fd = |path: &str| healthy.descriptor(FdAddress(u32::try_from(find(&*names, path).0).unwrap())).unwrap();
    let header =
        |resource: &Resource, cluster: u64| resource.position(resource.header(cluster).unwrap()).unwrap() + 4096;
    let (sbc, fdc) = (healthy.pools.sbc.as_ref().unwrap(), healthy.fdc.as_ref().unwrap());
    let sfb = healthy.sfb.as_ref().unwrap();
    let bigger = fd("bigger");
    let metadata = bigger.at + 4096;
    let Address::File(block) =
        healthy.space.header.width.decode(u64::from_le_bytes(bigger.pointers[..8].try_into().unwrap()))
    else {
        panic!("a file block")
    };
    let cluster = block.number / 512;
    let byte = |at: u64| read_vec(healthy.lv(), at, 1).0[0];
    let flip = |at: u64, bit: u8| (at, vec![byte(at) ^ bit]);
    let in_sfb = header(sfb, cluster);
    let cases: [Case; 9] = [
        ("links", vec![(metadata + 8, word(3, 4))], &["VMFS-FD-LINKS"]),
        ("parent", vec![(metadata + 0x70, word(fd("directory").address.0.into(), 4))], &["VMFS-FD-PARENT"]),
        ("owner of a descriptor", vec![(header(fdc, 15) + 0x8E0, word(0x0040_03C4, 4))], &["VMFS-OWNER"]),
        ("owner of a sub-block", vec![(header(sbc, 9) + 0x8E0, word(0x0040_03C4, 4))], &["VMFS-OWNER"]),
        (
            "free sub-block",
            vec![flip(header(sbc, 9) + 0x80, 1)],
            &["VMFS-BITMAP-COUNT", "VMFS-RESOURCE-FREE", "VMFS-OWNER"],
        ),
        ("sub-block of nobody", vec![flip(header(sbc, 9) + 0x81, 1)], &["VMFS-BITMAP-COUNT", "VMFS-RESOURCE-UNUSED"]),
        ("blocks of an owner", vec![flip(in_sfb + 0x948 + 4, 1)], &["VMFS-OWNER", "VMFS-OWNER-SUM"]),
        (
            "block of nobody",
            vec![flip(in_sfb + 0x180 + 0x3F, 0x40)],
            &["VMFS-BITMAP-COUNT", "VMFS-BLOCK-UNUSED", "VMFS-OWNER-SUM"],
        ),
        (
            "block of two",
            vec![(bigger.pointers_at + 8, bigger.pointers[..8].to_vec())],
            &["VMFS-BLOCK-SHARED", "VMFS-BLOCK-UNUSED"],
        ),
    ];
    for (what, writes, expected) in cases {
        let found = cross_check(&*datastore(damaged(&image, &writes)));
        assert_eq!(codes(&found), expected.iter().copied().collect(), "{what}: {found:?}");
    }
    // Hosts and locks are facts, and no contradictions.
    let found = cross_check(&*datastore(damaged(&image, &[(bigger.at + 0x24, word(1, 4))])));
    assert!(codes(&found).is_empty() && found.iter().any(|finding| finding.code == "VMFS-LOCK"), "{found:?}");
}

// Every structure of real volumes, damaged in every way

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Key {
    Data(u64),
    Empty,
    Lost,
}

type Map = Vec<(Range<u64>, Key, Trust)>;

fn map(layer: &dyn Layer) -> Map {
    let runs = walk(layer, 0..layer.len());
    let key = |run: &vdrecover_formats::Resolved<'_>| match run.place {
        Place::Own | Place::Below { .. } | Place::Coded(_) => Key::Data(run.offset),
        Place::Zero | Place::Hole => Key::Empty,
        Place::Lost(_) => Key::Lost,
    };
    runs.map(|run| (run.at..run.at + run.len, key(&run), run.trust)).collect()
}

/// The worst that a damaged map says: what of it differs from the right one, how many bytes are lost, and whether
/// something wrong is called sound.
#[derive(Default)]
struct Harm {
    lost: Vec<Range<u64>>,
    doubted: bool,
    wrong_and_sound: Option<Range<u64>>,
}

fn harm(right: &Map, now: &Map) -> Harm {
    let mut harm = Harm::default();
    let mut right = right.iter().peekable();
    for (range, key, trust) in now {
        harm.doubted |= *trust > Trust::Sound;
        let mut at = range.start;
        while at < range.end {
            while right.next_if(|(have, ..)| have.end <= at).is_some() {}
            let Some((have, expected, _)) = right.peek() else { break };
            let same = match (key, expected) {
                (Key::Data(now), Key::Data(then)) => now + (at - range.start) == then + (at - have.start),
                (now, then) => *now == *then,
            };
            if !same && *key == Key::Lost {
                harm.lost.push(at..range.end);
            } else if !same && *trust == Trust::Sound {
                harm.wrong_and_sound.get_or_insert(at..range.end);
            }
            at = have.end.min(range.end).max(at + 1);
        }
    }
    harm
}

/// All that can be reached by name, with the map of each file; what is wrong on the way is left out.
fn everything(tree: &dyn Tree) -> BTreeMap<String, (Kind, u64, Trust, Option<Map>)> {
    let mut found = BTreeMap::new();
    let mut open = vec![(String::new(), tree.root())];
    while let Some((path, dir)) = open.pop() {
        let mut entries = Vec::new();
        let _ = tree.list(dir, 0, &mut |entry| {
            entries.extend(entry.ok());
            ControlFlow::Continue(())
        });
        for entry in entries {
            let path = format!("{path}/{}", String::from_utf8_lossy(&entry.name));
            let Ok(node) = tree.node(entry.id) else { continue };
            if node.kind == Kind::Dir && path.matches('/').count() < 4 {
                open.push((path.clone(), entry.id));
            }
            let map = tree.open(entry.id).ok().map(|layer| map(&*layer));
            found.insert(path, (node.kind, node.len, node.trust, map));
        }
    }
    found
}

/// A structure: what it is, where it lies in the volume, and the paths that hang on it. `None` are all.
struct Structure {
    name: String,
    range: Range<u64>,
    hangs: Option<Vec<String>>,
}

fn is_system(path: &str) -> bool {
    path.as_bytes().ends_with(b".sf")
}

fn structures(volume: &Volume, tree: &dyn Tree) -> Vec<Structure> {
    let header = &volume.space.header;
    let half = header.cluster_header_size();
    let mut all = Vec::new();
    let mut add = |name: String, at: u64, len: u64, hangs: Option<Vec<String>>| {
        all.push(Structure { name, range: at..at + len, hangs });
    };
    let six = header.is_six();
    let pools = &volume.pools;
    let resources = [
        ("fdc", volume.fdc.as_ref()),
        ("fbb", volume.fbb.as_ref()),
        ("sfb", volume.sfb.as_ref()),
        ("sbc", pools.sbc.as_ref()),
        ("pbc", pools.pbc.as_ref()),
        ("pb2", pools.pb2.as_ref()),
        ("jbc", volume.jbc.as_ref()),
    ];
    for (name, resource) in resources.into_iter().filter_map(|(name, resource)| Some((name, resource?))) {
        // Headers of clusters with something in them: nothing that is read needs them.
        let used = (0..resource.clusters()).filter(|cluster| {
            resource.cluster(&volume.space, *cluster).is_ok_and(|state| state.free.iter().any(|free| !free))
        });
        for cluster in used.take(6) {
            let at = resource.position(resource.header(cluster).unwrap()).unwrap();
            add(format!("header of cluster {cluster} of {name}"), at, half, Some(Vec::new()));
        }
        if name != "sfb" {
            let needed = !matches!(name, "fbb" | "jbc");
            let hangs = if needed { None } else { Some(Vec::new()) };
            add(format!("header of {name}"), resource.position(0).unwrap(), 512, hangs);
        }
    }
    let beat = volume.heartbeats.seen[0].clone();
    add("heartbeat".into(), beat.at, 512, Some(Vec::new()));
    for journal in journal::journals(volume) {
        add("journal".into(), journal.at, 0x6000, Some(Vec::new()));
    }
    for (path, entry) in vmfs_support::all(tree) {
        // Files in one folder are alike: a few of them stand for all.
        if is_system(&path) || path.contains("/file") && !path.ends_with('7') {
            continue;
        }
        let fd = volume.descriptor(FdAddress(u32::try_from(entry.id.0).unwrap())).unwrap();
        let inside = |path: &str| format!("{path}/");
        let hanging: Vec<String> = vmfs_support::all(tree)
            .into_iter()
            .map(|(other, _)| other)
            .filter(|other| *other == path || other.starts_with(&inside(&path)))
            .collect();
        add(format!("descriptor of {path}"), fd.at, header.descriptor_size(), Some(hanging.clone()));
        let file = volume.file(fd.clone());
        let mut tables = Vec::new();
        file.survey(&mut |range| tables.push(range));
        for range in tables {
            add(format!("pointer block of {path}"), range.start, range.end - range.start, Some(hanging.clone()));
        }
        if entry.kind == Kind::Dir {
            let unit = if six { header.md } else { 512 };
            let mut at = 0;
            while at < file.len() {
                if let Place::Below { offset, .. } = file.run(at, 1).place {
                    let len = if six && at == 0 { 0x1_0000 } else { unit };
                    add(format!("{path} at {at:#x}"), offset, len, Some(hanging.clone()));
                }
                at += if six && at == 0 { 0x1_0000 } else { unit };
            }
        }
    }
    all
}

#[test]
fn what_hangs_on_a_structure_is_lost_and_nothing_else() {
    for name in ["vmfs5", "vmfs6"] {
        let Some(image) = image(name) else { return };
        let volume = volume(&(image.clone() as Bytes));
        let healthy = datastore(image.clone());
        let right = everything(&*healthy);
        let structures = structures(&volume, &*healthy);
        assert!(structures.len() > 40, "{}", structures.len());
        let mut wrong = Vec::new();
        for structure in &structures {
            let Range { start, end } = structure.range;
            let (at, len) = (BASE + start, (end - start) as usize);
            for how in ["unreadable", "zeroed", "garbage"] {
                let bytes: Bytes = match how {
                    "unreadable" => Arc::new(Damaged::new(image.clone(), vec![at..at + len as u64], Why::Unreadable)),
                    "zeroed" => damaged(&image, &[(start, vec![0; len])]),
                    _ => damaged(&image, &[(start, made::pattern(len, 77))]),
                };
                let tree = datastore(bytes);
                let now = everything(&*tree);
                let found: BTreeSet<_> =
                    codes(&findings(&*tree)).into_iter().chain(codes(&cross_check(&*tree))).collect();
                let mut changed = false;
                let mut wrong = |problem: String| wrong.push(format!("{name}: {} {how}: {problem}", structure.name));
                for (path, (kind, size, _, map)) in &right {
                    let hangs = structure.hangs.as_ref().is_none_or(|hangs| hangs.contains(path));
                    let Some((now_kind, now_size, trust, now_map)) = now.get(path) else {
                        changed = true;
                        if !hangs {
                            wrong(format!("{path} is gone"));
                        }
                        continue;
                    };
                    if *trust == Trust::Sound && (now_kind, now_size) != (kind, size) {
                        wrong(format!("{path} is sound and other"));
                    }
                    let (Some(map), Some(now_map)) = (map, now_map) else {
                        if map.is_none() != now_map.is_none() {
                            changed = true;
                            if !hangs {
                                wrong(format!("{path} does not open"));
                            }
                        }
                        continue;
                    };
                    let harm = harm(map, now_map);
                    if let Some(range) = harm.wrong_and_sound {
                        wrong(format!("{path} is wrong and sound at {range:x?}"));
                    }
                    // System files have the damage as their content, and a bad sector in them is lost.
                    let own = is_system(path);
                    let harmed = !harm.lost.is_empty() || harm.doubted;
                    if !hangs && !own && harmed {
                        wrong(format!("{path} is harmed: {:x?}", harm.lost));
                    }
                    changed |= !own && harmed;
                }
                for path in now.keys().filter(|path| !right.contains_key(*path)) {
                    // A name on VMFS5 has no check: what is left of one, or garbage, is a name too.
                    let folder = path.rsplit_once('/').map(|(folder, _)| folder.to_owned());
                    let in_it = structure
                        .hangs
                        .as_ref()
                        .is_some_and(|hangs| folder.is_none_or(|folder| hangs.contains(&folder)));
                    if name != "vmfs5" || !in_it {
                        wrong(format!("{path} is new"));
                    }
                }
                // Of journals that say nothing any more, nothing can be told. Not compared with anything yet: the
                // header of large blocks, that of journals once it is blank, and blocks of links, which no list needs.
                let quiet =
                    ["journal", "header of cluster 0 of fbb", "header of cluster 2 of jbc", "/collision at 0x12000"]
                        .contains(&structure.name.as_str());
                if found.is_empty() && (changed || !quiet) {
                    wrong("nothing is told".into());
                }
            }
        }
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    }
}

/// What the generator makes is right, other than what it breaks on purpose.
#[test]
fn nothing_contradicts_in_healthy_samples() {
    for sample in SAMPLES {
        let devices: Vec<Bytes> =
            sample.build().finish().into_iter().map(|device| Arc::new(Disk(device)) as Bytes).collect();
        let opened = open(devices[0].clone());
        let others: Vec<Option<Bytes>> = devices[1..].iter().cloned().map(Some).collect();
        let tree = tree((opened.join)(&others).unwrap());
        let found = cross_check(&*tree);
        assert_eq!(codes(&found), BTreeSet::new(), "{}: {found:?}", sample.name);
        let journal = findings(&*tree).into_iter().find(|finding| finding.code.starts_with("VMFS-JOURNAL"));
        // Home went on without the journal there: what is older can't be told without a lock.
        assert!(journal.is_none() || sample.name.ends_with("-crashed"), "{}: {journal:?}", sample.name);
    }
}
