//! A volume of which only the system files were copied: what they hold is there, all else is absent, nothing is wrong.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::arithmetic_side_effects,
    clippy::as_conversions,
    clippy::cast_possible_truncation,
    missing_docs,
    reason = "tests"
)]

mod vmfs_support;

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;
use vdrecover_formats::{
    Bytes, Content, Finding, Kind, Layer, NodeId, Note, Place, Pool, Tree, Trust, Why, read_vec, vmfs, walk,
};
use vdrecover_testdata::samples::SAMPLES;
use vmfs_support::Disk;

fn tree(content: Content) -> Arc<dyn Tree> {
    let Content::Tree(tree) = content else { panic!("no datastore") };
    tree
}

/// The sample, whole, and what its system files alone make of it, but for those in `without`.
fn both(name: &str, without: &[&str]) -> (Arc<dyn Tree>, Arc<dyn Tree>) {
    let sample = SAMPLES.iter().find(|sample| sample.name == name).unwrap();
    let mut devices =
        sample.build().finish().into_iter().map(|device| -> Option<Bytes> { Some(Arc::new(Disk(device))) });
    let first = devices.next().unwrap().unwrap();
    let pool = Pool::new(16 << 20);
    let opened = (vmfs::FORMAT.open)(&first, &pool.share()).unwrap();
    let whole = tree((opened.join)(&devices.collect::<Vec<_>>()).unwrap());
    let file = |name: &[u8]| {
        let entry = whole.lookup(whole.root(), name).unwrap()?;
        Some(whole.open(entry.id).unwrap())
    };
    let opened = (vmfs::FORMAT.open)(&file(b".vh.sf").unwrap(), &pool.share()).unwrap();
    let files: Vec<Option<Bytes>> = opened
        .wants
        .iter()
        .map(|want| want.hint.as_deref().unwrap())
        .map(|hint| if without.iter().any(|name| name.as_bytes() == hint) { None } else { file(hint) })
        .collect();
    let part = tree((opened.join)(&files).unwrap());
    (whole, part)
}

/// All nodes by their id: those that folders list, and those that they do not.
fn nodes(tree: &dyn Tree) -> BTreeMap<NodeId, Kind> {
    let mut nodes = BTreeMap::new();
    let mut open = vec![tree.root()];
    tree.finds(&mut |find| {
        nodes.insert(find.entry.id, find.entry.kind);
        ControlFlow::Continue(())
    });
    while let Some(dir) = open.pop() {
        let _ = tree.list(dir, 0, &mut |entry| {
            if let Ok(entry) = entry
                && nodes.insert(entry.id, entry.kind).is_none()
                && entry.kind == Kind::Dir
            {
                open.push(entry.id);
            }
            ControlFlow::Continue(())
        });
    }
    nodes
}

fn findings(tree: &dyn Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for part in 0..tree.parts() {
        let _ = tree.audit(part, &mut |note| {
            if let Note::Finding(finding) = note {
                findings.push(finding);
            }
            ControlFlow::Continue(())
        });
    }
    findings
}

/// Compares a file with the right one: what is there is right and never sound. Bytes that are there, and absent ones.
fn compare(about: &str, right: &dyn Layer, found: &dyn Layer) -> (u64, u64) {
    assert_eq!(found.len(), right.len(), "{about}");
    let (mut there, mut absent) = (0, 0);
    for run in walk(found, 0..found.len()) {
        match run.place {
            Place::Lost(loss) => {
                assert_eq!(loss.why, Why::Absent, "{about} at {:#x}", run.at);
                absent += run.len;
                continue;
            }
            Place::Hole | Place::Zero => {}
            _ => {
                there += run.len;
                let (ours, seen) = read_vec(found, run.at, run.len as usize);
                assert!(seen.is_whole() && seen.trust > Trust::Sound, "{about}: {seen:?}");
                let (theirs, _) = read_vec(right, run.at, run.len as usize);
                assert!(ours == theirs, "{about} at {:#x}", run.at);
                continue;
            }
        }
        for theirs in walk(right, run.at..run.at + run.len) {
            assert!(matches!(theirs.place, Place::Hole | Place::Zero), "{about} at {:#x}", theirs.at);
        }
    }
    (there, absent)
}

#[test]
fn system_files_alone_show_every_descriptor_and_all_that_lies_in_them() {
    for name in ["vmfs5-basic", "vmfs6-basic", "vmfs5-512k", "vmfs5-8m", "vmfs6-layouts", "vmfs5-span"] {
        let (whole, part) = both(name, &[]);
        let found = nodes(&*part);
        let (mut there, mut absent) = (0, 0);
        for (id, kind) in nodes(&*whole) {
            let about = format!("{name}: {id:?}");
            assert_eq!(found.get(&id), Some(&kind), "{about}");
            assert_eq!(part.node(id).unwrap().len, whole.node(id).unwrap().len, "{about}");
            if matches!(kind, Kind::File | Kind::Symlink) {
                let (own, lost) = compare(&about, &*whole.open(id).unwrap(), &*part.open(id).unwrap());
                there += own;
                absent += lost;
            }
        }
        assert!(there > 1 << 20 && absent > 1 << 20, "{name}: {there} bytes are there, {absent} are absent");
        let codes: Vec<_> = findings(&*part).into_iter().map(|finding| finding.code).collect();
        assert!(codes.contains(&"VMFS-SF-ONLY"), "{name}: {codes:?}");
    }
}

#[test]
fn a_system_file_that_is_missing_costs_what_it_holds() {
    for without in [".pb2.sf", ".pbc.sf", ".sbc.sf", ".fbb.sf"] {
        for name in ["vmfs5-basic", "vmfs6-basic"] {
            let (whole, part) = both(name, &[without]);
            let found = nodes(&*part);
            for (id, kind) in nodes(&*whole).into_iter().filter(|(_, kind)| *kind == Kind::File) {
                let about = format!("{name} without {without}: {id:?}");
                assert_eq!(found.get(&id), Some(&kind), "{about}");
                let (right, ours) = (whole.open(id).unwrap(), part.open(id).unwrap());
                for run in walk(&*ours, 0..ours.len()) {
                    if !matches!(run.place, Place::Lost(_)) && run.len <= 1 << 20 {
                        let read = |layer: &Bytes| read_vec(&**layer, run.at, run.len as usize).0;
                        assert!(read(&ours) == read(&right), "{about} at {:#x}", run.at);
                    }
                }
            }
        }
    }
    // Without descriptors there is nothing but the header.
    let (_, part) = both("vmfs6-basic", &[".fdc.sf"]);
    assert_eq!(nodes(&*part), BTreeMap::new());
    assert!(findings(&*part).iter().any(|finding| finding.code == "VMFS-SF"));
}
