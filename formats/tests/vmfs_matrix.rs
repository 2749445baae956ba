//! One damage, one outcome: what each kind of damage costs on generated VMFS5 and VMFS6 volumes, to the byte.
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

use std::collections::BTreeSet;
use std::ops::{ControlFlow, Range};
use std::sync::Arc;
use vdrecover_formats::adapt::Damaged;
use vdrecover_formats::laws::{Effort, check_laws};
use vdrecover_formats::{
    Bytes, Content, Error, Layer, NodeId, Note, Place, Pool, Tree, Trust, Why, read_vec, vmfs, walk,
};
use vdrecover_testdata::Device;
use vdrecover_testdata::samples;
use vdrecover_testdata::vmfs as made;
use vdrecover_testdata::vmfs::{Addressing, Expected, Layout, Located, Version, Vmfs, VmfsSpec, pattern};
use vmfs_support::Disk;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const VERSIONS: [Version; 2] = [Version::Five, Version::Six];

/// What one pointer block maps.
fn leaf(version: Version) -> u64 {
    if version == Version::Six { 8 * GIB } else { GIB }
}

fn store(version: Version, extents: Vec<u64>) -> Vmfs {
    let mut store = Vmfs::new(VmfsSpec { extents, ..VmfsSpec::new(version, 0) });
    let leaf = leaf(version);
    let thin = |seed| {
        made::Content::sparse(4 * leaf)
            .with(5 * MIB, pattern(9000, seed))
            .with(leaf + 7 * MIB, pattern(3_000_000, seed + 1))
            .with(3 * leaf + 100, pattern(5000, seed + 2))
    };
    store.file("thin", thin(10), &Layout::default().addressing(Addressing::Single));
    store.file("deep", thin(20), &Layout::default().addressing(Addressing::Double));
    store.file("direct", made::Content::patterned(5_000_000, 30), &Layout::default().addressing(Addressing::Direct));
    let everywhere = Layout::default().addressing(Addressing::Single).shuffled(5);
    store.file("everywhere", made::Content::patterned(30_000_000, 31), &everywhere);
    store.mkdir("folder");
    for n in 0..50 {
        store.file(&format!("folder/file{n:02}"), made::Content::bytes(format!("File {n}\n")), &Layout::default());
    }
    store
}

fn one(version: Version) -> Vmfs {
    store(version, vec![320 << 20])
}

fn disk(device: Device) -> Bytes {
    Arc::new(Disk(device))
}

fn open(devices: &[Option<Bytes>]) -> Arc<dyn Tree> {
    let first = devices[0].clone().unwrap();
    let opened = (vmfs::FORMAT.open)(&first, &Pool::new(16 << 20).share()).unwrap();
    let Ok(Content::Tree(tree)) = (opened.join)(&devices[1..]) else { panic!("no datastore") };
    tree
}

fn find(tree: &dyn Tree, path: &str) -> NodeId {
    path.split('/').fold(tree.root(), |dir, name| tree.lookup(dir, name.as_bytes()).unwrap().unwrap().id)
}

/// Lost ranges, neighbours of one kind put together.
fn lost(layer: &dyn Layer) -> Vec<(Range<u64>, Why)> {
    let mut lost: Vec<(Range<u64>, Why)> = Vec::new();
    for run in walk(layer, 0..layer.len()) {
        let Place::Lost(cause) = run.place else { continue };
        match lost.last_mut() {
            Some((range, why)) if range.end == run.at && *why == cause.why => range.end += run.len,
            _ => lost.push((run.at..run.at + run.len, cause.why)),
        }
    }
    lost
}

/// A file has exactly these gaps, and all else of it is right and sound.
fn check(tree: &dyn Tree, file: &Expected, gaps: &[(Range<u64>, Why)]) {
    let layer = tree.open(find(tree, &file.path)).unwrap();
    assert_eq!(lost(&*layer), gaps, "{}", file.path);
    check_laws(&*layer, Effort { runs: 2000, bytes: 1 << 20 }).unwrap();
    let content = file.content.as_ref().unwrap();
    for (start, piece) in content.pieces() {
        let end = start + piece.len() as u64;
        let (bytes, seen) = read_vec(&*layer, *start, piece.len());
        assert_eq!(seen.trust, Trust::Sound, "{}", file.path);
        let cut = |gap: &Range<u64>| gap.start.max(*start)..gap.end.min(end);
        let missing: Vec<Range<u64>> =
            gaps.iter().map(|(gap, _)| cut(gap)).filter(|range| range.start < range.end).collect();
        assert_eq!(seen.gaps.iter().map(|gap| gap.range.clone()).collect::<Vec<_>>(), missing, "{}", file.path);
        let mut right = piece.clone();
        for gap in missing {
            right[(gap.start - start) as usize..(gap.end - start) as usize].fill(0);
        }
        assert!(bytes == right, "{}", file.path);
    }
}

/// All other files are whole.
fn others(tree: &dyn Tree, files: &[Expected], but: &[&str]) {
    for file in files.iter().filter(|file| file.content.is_some() && !but.contains(&file.path.as_str())) {
        check(tree, file, &[]);
    }
}

fn named<'a>(files: &'a [Expected], path: &str) -> &'a Expected {
    files.iter().find(|file| file.path == path).unwrap()
}

fn codes(tree: &dyn Tree) -> BTreeSet<&'static str> {
    let mut codes = BTreeSet::new();
    for part in 0..tree.parts() {
        let _ = tree.audit(part, &mut |note| {
            if let Note::Finding(finding) = note {
                codes.insert(finding.code);
            }
            ControlFlow::Continue(())
        });
    }
    codes
}

#[test]
fn a_pointer_block_costs_what_it_maps() {
    for version in VERSIONS {
        for name in ["thin", "deep"] {
            for index in 0..3 {
                let mut store = one(version);
                let files = store.expected();
                let table = store.locate(name).pointer_blocks[index];
                assert_eq!(table.level, 0);
                let (_, at) = store.device_position(table.lv);
                let device = store.finish().remove(0);
                let gap = table.offset..table.offset + leaf(version);

                let bad = Damaged::new(disk(device.clone()), vec![at..at + table.len], Why::Unreadable);
                let tree = open(&[Some(Arc::new(bad))]);
                check(&*tree, named(&files, name), &[(gap.clone(), Why::Unmapped)]);
                others(&*tree, &files, &[name]);
                assert!(codes(&*tree).contains("VMFS-POINTER"), "{version:?} {name}");

                let mut wiped = device.clone();
                wiped.zero(at..at + table.len);
                let tree = open(&[Some(disk(wiped))]);
                check(&*tree, named(&files, name), &[(gap, Why::Unmapped)]);
                others(&*tree, &files, &[name]);
                let codes = codes(&*tree);
                assert!(codes.contains("VMFS-POINTER") && codes.contains("VMFS-FD-BLOCKS"), "{codes:?}");
            }
        }
    }
}

/// A pointer block of pointer blocks costs what all of those map.
#[test]
fn an_upper_pointer_block_costs_all_below() {
    for version in VERSIONS {
        let mut store = one(version);
        let files = store.expected();
        let located = store.locate("deep");
        let table = *located.pointer_blocks.iter().find(|table| table.level == 1).unwrap();
        let (_, at) = store.device_position(table.lv);
        let device = store.finish().remove(0);
        let file = named(&files, "deep");
        let all = [(0..file.len, Why::Unmapped)];
        let bad = Damaged::new(disk(device.clone()), vec![at..at + table.len], Why::Unreadable);
        let tree = open(&[Some(Arc::new(bad))]);
        check(&*tree, file, &all);
        others(&*tree, &files, &["deep"]);
        let mut wiped = device;
        wiped.zero(at..at + table.len);
        let tree = open(&[Some(disk(wiped))]);
        check(&*tree, file, &all);
        others(&*tree, &files, &["deep"]);
    }
}

/// A pointer array that was wiped in the descriptor itself.
#[test]
fn wiped_pointers_are_no_hole() {
    for version in VERSIONS {
        let mut store = one(version);
        let files = store.expected();
        let at = store.locate("direct");
        let (_, start) = store.device_position(at.pointers_lv);
        let mut device = store.finish().remove(0);
        device.zero(start..start + 1024);
        let tree = open(&[Some(disk(device))]);
        let file = named(&files, "direct");
        check(&*tree, file, &[(0..file.len, Why::Unmapped)]);
        others(&*tree, &files, &["direct"]);
    }
}

#[test]
fn a_descriptor_of_garbage_costs_its_file() {
    for version in VERSIONS {
        let mut store = one(version);
        let files = store.expected();
        let Located { fd, fd_lv, fd_len, .. } = store.locate("direct");
        let (_, at) = store.device_position(fd_lv);
        let mut device = store.finish().remove(0);
        device.write(at, &pattern(fd_len as usize, 99));
        let tree = open(&[Some(disk(device))]);
        let id = NodeId(fd.into());
        let entry = tree.lookup(tree.root(), b"direct").unwrap().unwrap();
        assert_eq!(entry.id, id);
        assert!(matches!(tree.node(id), Err(Error::Corrupt { .. })), "{:?}", tree.node(id));
        assert!(matches!(tree.open(id), Err(Error::Corrupt { .. })));
        others(&*tree, &files, &["direct"]);
        assert_eq!(codes(&*tree), BTreeSet::from(["VMFS-DIR-LINK", "VMFS-FD"]), "{version:?}");
    }
}

#[test]
fn a_bad_block_of_a_folder_costs_the_names_in_it() {
    for version in VERSIONS {
        let mut store = one(version);
        let files = store.expected();
        let names: Vec<&str> = files.iter().filter_map(|file| file.path.strip_prefix("folder/")).collect();
        let entry_len = if version == Version::Six { 0x120 } else { 140 };
        let place = |store: &mut Vmfs, name: &str| {
            let lv = store.locate(&format!("folder/{name}")).entry_lv.unwrap();
            store.device_position(lv).1
        };
        let at: Vec<u64> = names.iter().map(|name| place(&mut store, name)).collect();
        let block = at[25] & !4095;
        let bad = block..block + 4096;
        let hit = |at: u64| at < bad.end && bad.start < at + entry_len;
        let want: BTreeSet<&str> = names.iter().zip(&at).filter(|(_, at)| !hit(**at)).map(|(name, _)| *name).collect();
        assert!(want.len() > 10 && want.len() < 45, "{want:?}");
        let device = store.finish().remove(0);
        let tree = open(&[Some(Arc::new(Damaged::new(disk(device), vec![bad.clone()], Why::Unreadable)))]);
        let dir = find(&*tree, "folder");
        let (mut have, mut findings) = (BTreeSet::new(), Vec::new());
        let take = &mut |entry: Result<vdrecover_formats::Entry, vdrecover_formats::Finding>| {
            match entry {
                Ok(entry) => drop(have.insert(String::from_utf8(entry.name).unwrap())),
                Err(finding) => findings.push(finding),
            }
            ControlFlow::Continue(())
        };
        tree.list(dir, 0, take).unwrap();
        assert_eq!(have.iter().map(String::as_str).collect::<BTreeSet<_>>(), want, "{version:?}");
        assert!(!findings.is_empty(), "{version:?}");
        assert!(
            findings
                .iter()
                .any(|finding| finding.range.start < bad.end
                    && bad.start < finding.range.end.max(finding.range.start + 1)),
            "{findings:x?}"
        );
        for name in &names {
            let found = tree.lookup(dir, name.as_bytes()).unwrap();
            assert_eq!(found.is_some(), want.contains(name), "{version:?} {name}");
        }
        let gone: Vec<String> =
            names.iter().filter(|name| !want.contains(*name)).map(|name| format!("folder/{name}")).collect();
        let gone: Vec<&str> = gone.iter().map(String::as_str).collect();
        others(&*tree, &files, &gone);
        // What has lost its name is found without it.
        let mut orphans = 0;
        tree.finds(&mut |_| {
            orphans += 1;
            ControlFlow::Continue(())
        });
        assert_eq!(orphans, gone.len(), "{version:?}");
    }
}

/// What of each block of a file lies where `is_lost` says, as ranges of the file.
fn parts_of(
    located: &Located,
    len: u64,
    position: impl Fn(u64) -> (usize, u64),
    cut: impl Fn(usize, u64) -> u64,
) -> Vec<Range<u64>> {
    let mut parts: Vec<Range<u64>> = Vec::new();
    for block in &located.blocks {
        let (device, at) = position(block.lv);
        let end = (block.offset + block.len).min(len);
        // How much of the block is there.
        let have = cut(device, at).min(block.len);
        let range = block.offset + have..end;
        if range.start >= range.end {
            continue;
        }
        match parts.last_mut() {
            Some(last) if last.end == range.start => last.end = range.end,
            _ => parts.push(range),
        }
    }
    parts
}

#[test]
fn a_cut_device_costs_what_lay_behind() {
    for version in VERSIONS {
        let mut store = one(version);
        let files = store.expected();
        let places: Vec<Located> = files.iter().map(|file| store.locate(&file.path)).collect();
        let direct = store.locate("direct");
        let cut = store.device_position(direct.blocks[2].lv).1 + 100_000;
        let (at, before) = (store.clone(), store.finish().remove(0));
        let mut device = before;
        device.truncate(cut);
        let tree = open(&[Some(disk(device))]);
        let mut hit = 0;
        for (file, located) in files.iter().zip(&places).filter(|(file, _)| file.content.is_some()) {
            let small = located.blocks.iter().all(|block| block.len < MIB);
            if small || located.resident_lv.is_some() {
                check(&*tree, file, &[]);
                continue;
            }
            let gaps = parts_of(located, file.len, |lv| at.device_position(lv), |_, at| cut.saturating_sub(at));
            hit += usize::from(!gaps.is_empty());
            let gaps: Vec<_> = gaps.into_iter().map(|gap| (gap, Why::Outside)).collect();
            check(&*tree, file, &gaps);
        }
        assert!(hit >= 2, "{version:?}: {hit}");
    }
}

#[test]
fn a_missing_extent_costs_what_lay_on_it() {
    for version in VERSIONS {
        let mut store = store(version, vec![640 << 20, 320 << 20, 320 << 20]);
        let files = store.expected();
        let places: Vec<Located> = files.iter().map(|file| store.locate(&file.path)).collect();
        let at = store.clone();
        let devices: Vec<Bytes> = store.finish().into_iter().map(disk).collect();
        for gone in 1..3 {
            let given: Vec<Option<Bytes>> = (0..3).map(|n| (n != gone).then(|| devices[n].clone())).collect();
            let tree = open(&given);
            let mut hit = 0;
            for (file, located) in files.iter().zip(&places).filter(|(file, _)| file.content.is_some()) {
                let have = |device, _| if device == gone { 0 } else { u64::MAX };
                let gaps = parts_of(located, file.len, |lv| at.device_position(lv), have);
                hit += usize::from(!gaps.is_empty());
                let gaps: Vec<_> = gaps.into_iter().map(|gap| (gap, Why::Absent)).collect();
                check(&*tree, file, &gaps);
            }
            assert!(hit >= 1, "{version:?}: {hit}");
            assert!(codes(&*tree).contains("LVM-ABSENT"));
        }
    }
}

/// Metadata of each alignment and blocks of each size are read alike, and nothing is wrong with them.
#[test]
fn other_geometries_are_read_alike() {
    for (name, unlisted) in [
        ("vmfs3-1m", false),
        ("vmfs3-2m", false),
        ("vmfs3-4m", false),
        ("vmfs3-8m", false),
        ("vmfs5-2m", false),
        ("vmfs5-4m", false),
        ("vmfs6-md8k", true),
        ("vmfs6-md16k", true),
        ("vmfs6-md64k", true),
        ("vmfs6-4kn", true),
    ] {
        let store = samples::SAMPLES.iter().find(|sample| sample.name == name).unwrap().build();
        let files = store.expected();
        let tree = open(&store.finish().into_iter().map(|device| Some(disk(device))).collect::<Vec<_>>());
        println!("{name}");
        others(&*tree, &files, &[]);
        assert_eq!(codes(&*tree), if unlisted { BTreeSet::from(["VMFS-FD-UNLISTED"]) } else { BTreeSet::new() });
    }
}
