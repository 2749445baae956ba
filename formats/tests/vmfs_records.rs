//! Real VMFS volumes that lost single records: what hung on the record is lost, nothing else, and all is told.
//!
//! `VDRECOVER_STEP=1` damages every sector and every byte; without it a part of them is.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::arithmetic_side_effects,
    clippy::as_conversions,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    missing_docs,
    reason = "tests"
)]

mod vmfs_support;

use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::ops::ControlFlow;
use std::sync::Arc;
use vdrecover_formats::{Bytes, Content, Finding, Note, Pool, Tree, Trust, read, vmfs};
use vmfs_support::{Seen, Sparse, audit, datastore, find, image, is_told, look, open, tree};

const LV: u64 = 0x110_0000;

/// A change of the device: where, and the bytes that are there then.
type Change = (u64, Vec<u8>);

fn zero(at: u64) -> Change {
    (at, vec![0; 512])
}

fn changed(image: &Sparse, changes: &[Change]) -> Bytes {
    let mut damaged = Sparse::clone(image);
    for (at, bytes) in changes {
        damaged.write(*at, bytes);
    }
    Arc::new(damaged)
}

fn reopened(bytes: &Bytes) -> Option<(Arc<dyn Tree>, Vec<Finding>)> {
    let opened = (vmfs::FORMAT.open)(bytes, &Pool::new(32 << 20).share()).ok()?;
    let Ok(Content::Tree(tree)) = opened.join_alone() else { return None };
    Some((tree, opened.findings))
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

fn texts(tree: &dyn Tree, code: &str) -> Vec<String> {
    let mut texts = Vec::new();
    for part in 0..tree.parts() {
        let _ = tree.audit(part, &mut |note| {
            match note {
                Note::Finding(finding) if finding.code == code => texts.push(finding.text),
                _ => {}
            }
            ControlFlow::Continue(())
        });
    }
    texts
}

/// What of a file differs from what is right.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Difference {
    /// Its name is not there.
    Gone,
    /// It has not all of its bytes.
    Lost,
    /// Something is wrong that is not sound.
    Doubtful,
    /// Something is wrong and sound.
    Wrong,
}

/// All that differs, by path.
fn differences(right: &BTreeMap<String, Seen>, found: &BTreeMap<String, Seen>) -> BTreeMap<String, Difference> {
    let plain = |seen: &Seen| seen.facts.replace("Doubtful", "Sound").replace("Inferred", "Sound");
    let mut all = BTreeMap::new();
    for (path, right) in right {
        let Some(own) = found.get(path) else {
            all.insert(path.clone(), Difference::Gone);
            continue;
        };
        let differs = own.bytes.len() != right.bytes.len()
            || own.bytes.iter().zip(&right.bytes).any(|(own, right)| own.is_some() && own != right);
        let difference = match (plain(own) != plain(right) || differs, own.trust) {
            (true, Trust::Sound) => Difference::Wrong,
            (true, _) => Difference::Doubtful,
            (false, _) if own.bytes != right.bytes => Difference::Lost,
            (false, _) => continue,
        };
        all.insert(path.clone(), difference);
    }
    let new = found.keys().filter(|path| !right.contains_key(*path));
    all.extend(new.map(|path| (path.clone(), Difference::Wrong)));
    all
}

fn step() -> usize {
    env::var("VDRECOVER_STEP").ok().and_then(|step| step.parse().ok()).unwrap_or(23)
}

/// The sectors of an image that hold metadata and are not zero.
fn sectors(image: &Arc<Sparse>) -> BTreeSet<u64> {
    let tree = tree(open(image.clone()).join_alone().unwrap());
    let mut sectors = BTreeSet::from([LV + 0x20_0000]);
    for (range, of) in audit(&*tree, image).claims {
        let range = if of.is_metadata() { range } else { 0..0 };
        for at in (range.start / 512 * 512..range.end).step_by(512) {
            let mut bytes = [0; 512];
            read(&**image, LV + at, &mut bytes);
            if bytes.iter().any(|byte| *byte != 0) {
                sectors.insert(LV + at);
            }
        }
    }
    sectors
}

/// Any one sector of metadata, zeroed: what differs is told, and names are only lost with the sector that holds them.
#[test]
fn a_sector_costs_what_hung_on_it() {
    let mut bad = Vec::new();
    for name in ["vmfs5", "vmfs6"] {
        let Some(image) = image(name) else { return };
        let right = look(&*datastore(name).unwrap());
        let sectors = sectors(&image);
        println!("{name}: {} sectors", sectors.len());
        for at in sectors.into_iter().step_by(step()) {
            let Some((tree, findings)) = reopened(&changed(&image, &[zero(at)])) else {
                bad.push(format!("{name} {at:#x}: does not open"));
                continue;
            };
            let all = differences(&right, &look(&*tree));
            let is_gone = |path: &str| all.get(path) == Some(&Difference::Gone);
            // What was in a folder went with the folder's name.
            let tops =
                all.keys().filter(|path| is_gone(path) && !path.rsplit_once('/').is_some_and(|(dir, _)| is_gone(dir)));
            let gone = tops.count();
            let told = all.is_empty() || !findings.is_empty() || is_told(&*tree);
            let wrong: Vec<_> = all.iter().filter(|(_, difference)| **difference == Difference::Wrong).collect();
            if env::var_os("VDRECOVER_SHOW").is_some() && !all.is_empty() {
                let few: Vec<_> = all.iter().take(4).collect();
                println!("{name} {at:#x}: {} differ, told {told}: {few:?} {:?}", all.len(), codes(&*tree));
            }
            // Entries have 140 bytes on VMFS5 and 288 on VMFS6, and lie across sectors.
            if !told || gone > if name == "vmfs5" { 5 } else { 3 } {
                bad.push(format!("{name} {at:#x}: {} differ, {gone} gone, told {told}, wrong {wrong:?}", all.len()));
            }
        }
    }
    assert!(bad.is_empty(), "{}:\n{}", bad.len(), bad.join("\n"));
}

/// Each byte of the file system's header, changed: everything is read as before, or told.
#[test]
fn a_byte_of_the_header_costs_no_name() {
    for name in ["vmfs5", "vmfs6"] {
        let Some(image) = image(name) else { return };
        let right = look(&*datastore(name).unwrap());
        let mut bad = Vec::new();
        let at = LV + 0x20_0000;
        // Of the name, one byte stands for all.
        let bytes = (0..512_u64).filter(|byte| !(0x0A..0x19).contains(byte) && !(0x1E..0x9D).contains(byte));
        for byte in bytes {
            let mut old = [0];
            read(&*image, at + byte, &mut old);
            for mask in [0x01, 0x10, 0x30, 0x80, 0xFF] {
                if step() > 1 && byte > 0x13C && mask != 0xFF {
                    continue;
                }
                let Some((tree, _)) = reopened(&changed(&image, &[(at + byte, vec![old[0] ^ mask])])) else {
                    bad.push(format!("{name} {byte:#x} ^ {mask:#x}: does not open"));
                    continue;
                };
                let all = differences(&right, &look(&*tree));
                // The file of the header has the damaged byte.
                if !all.is_empty() {
                    let few: Vec<_> = all.iter().take(3).collect();
                    bad.push(format!("{name} {byte:#x} ^ {mask:#x}: {} differ: {few:?}", all.len()));
                }
            }
        }
        assert!(bad.is_empty(), "{}:\n{}", bad.len(), bad.join("\n"));
    }
}

/// A field of the header that all else contradicts is named, with what it says and what is believed.
#[test]
fn a_contradicted_field_is_named() {
    for name in ["vmfs5", "vmfs6"] {
        let Some(image) = image(name) else { return };
        for (byte, value, words) in [
            // The label and the UUID stand where all but the magic agrees.
            (0x00, 0x00, "all else of it agrees"),
            (0xA3, 0x20, "file block size at 0xa1 is 0x200000, 0x100000 is believed"),
            (0xDA, 0x40, "sub-block size at "),
            (0xD5, 0x20, "clusters in a group of .fdc.sf at 0xd5 is 0x20, 0x"),
            (0xAC, 0x7F, "creation at 0xa9 is 0x7f"),
        ] {
            let (tree, _) = reopened(&changed(&image, &[(LV + 0x20_0000 + byte, vec![value])])).unwrap();
            let texts = texts(&*tree, "VMFS-HEADER");
            assert!(texts.len() == 1 && texts[0].contains(words), "{name} {byte:#x}: {texts:?}");
        }
    }
}

/// What single records cost that stand for many others.
#[test]
fn system_files_are_read_without_one_of_their_records() {
    let cases: [(&str, Change, &str); 8] = [
        ("vmfs6", zero(0x182_4000), "VMFS-FD-LOCK"),
        ("vmfs6", zero(0x182_5000), "VMFS-RESOURCE-MADE"),
        ("vmfs6", (0x180_0020, vec![0x40]), "VMFS-RESOURCE-MADE"),
        ("vmfs6", (0x180_0030, vec![0x41]), "VMFS-RESOURCE-MADE"),
        ("vmfs6", (0x182_4005, vec![0xFF]), "VMFS-FD-LOCK"),
        ("vmfs6", zero(0x180_0000), "VMFS-RESOURCE-MADE"),
        ("vmfs5", zero(0x152_1000), "VMFS-FD-LOCK"),
        ("vmfs5", zero(0x152_1400), "VMFS-RESOURCE-MADE"),
    ];
    for (name, change, code) in cases {
        let Some(image) = image(name) else { return };
        let right = look(&*datastore(name).unwrap());
        let (tree, _) = reopened(&changed(&image, std::slice::from_ref(&change))).unwrap();
        let mut all = differences(&right, &look(&*tree));
        // What was lost of it is not known, as its length.
        all.remove("/.fdc.sf");
        assert_eq!(all, BTreeMap::new(), "{name} {:#x}", change.0);
        let codes = codes(&*tree);
        assert!(codes.contains(code), "{name} {:#x}: {codes:?}", change.0);
    }
}

/// A descriptor whose lock sector is lost: all of it stands behind that.
#[test]
fn a_lost_lock_costs_nothing() {
    for (name, path) in [("vmfs5", "bigger"), ("vmfs6", "bigger"), ("vmfs6", "directory"), ("vmfs6", "small")] {
        let Some(image) = image(name) else { return };
        let healthy = datastore(name).unwrap();
        let right = look(&*healthy);
        let at = descriptor(&image, &*healthy, path);
        let (tree, _) = reopened(&changed(&image, &[zero(at)])).unwrap();
        assert_eq!(differences(&right, &look(&*tree)), BTreeMap::new(), "{name} {path}");
        assert_eq!(tree.node(find(&*tree, path)).unwrap().trust, Trust::Inferred, "{name} {path}");
        assert!(codes(&*tree).contains("VMFS-FD-LOCK"), "{name} {path}");
    }
}

/// Where the descriptor of a file lies on the device.
fn descriptor(image: &Arc<Sparse>, tree: &dyn Tree, path: &str) -> u64 {
    let id = find(tree, path);
    let claims = audit(tree, image).claims;
    let own = claims.into_iter().find(|(_, of)| {
        matches!(of, vdrecover_formats::Use::Node { id: own, part: vdrecover_formats::note::Part::Descriptor } if *own == id)
    });
    LV + own.unwrap().0.start
}

/// Where a folder of VMFS6 says that it is its own: the header of the sub-block that its hash table is in.
fn head(image: &Sparse, entries: u32) -> u64 {
    let start = [0x00F5_0001_u32.to_le_bytes(), entries.to_le_bytes()].concat();
    let found = image.chunks.iter().find(|(_, chunk)| chunk.starts_with(&start));
    found.unwrap().0 * vmfs_support::CHUNK as u64
}

/// A sector of a hash table: the names in it are found among the entries, and the audit says so.
#[test]
fn names_are_found_without_their_slot() {
    let Some(image) = image("vmfs6") else { return };
    let right = look(&*datastore("vmfs6").unwrap());
    let table = head(&image, 102) + 0x5F8;
    let mut told = 0;
    for sector in (table / 512 + 1..table / 512 + 125).step_by(7) {
        let (tree, _) = reopened(&changed(&image, &[zero(sector * 512)])).unwrap();
        for path in right.keys().filter(|path| path.starts_with("/directory/")) {
            find(&*tree, &path[1..]);
        }
        assert_eq!(tree.lookup(find(&*tree, "directory"), b"none").unwrap(), None);
        told += usize::from(codes(&*tree).contains("VMFS-DIR-HASH"));
    }
    assert!(told >= 8, "{told}");
    assert!(!codes(&*datastore("vmfs6").unwrap()).contains("VMFS-DIR-HASH"));
}

/// A damaged byte in a name: its hash says what it was.
#[test]
fn a_name_is_mended_by_its_hash() {
    let Some(image) = image("vmfs6") else { return };
    let (at, chunk) = image
        .chunks
        .iter()
        .find_map(|(number, chunk)| {
            let at = chunk.windows(8).position(|window| window == b"file95\0\0")?;
            Some((number * vmfs_support::CHUNK as u64 + at as u64, chunk.clone()))
        })
        .unwrap();
    assert_eq!(chunk[at as usize % vmfs_support::CHUNK], b'f');
    let right = look(&*datastore("vmfs6").unwrap());
    // Another letter, a cut, a name that goes on.
    for (byte, value) in [(0, b'F'), (2, 0), (5, 0), (6, b'x')] {
        let (tree, _) = reopened(&changed(&image, &[(at + byte, vec![value])])).unwrap();
        assert_eq!(differences(&right, &look(&*tree)), BTreeMap::new(), "{byte}");
        find(&*tree, "directory/file95");
        assert!(texts(&*tree, "VMFS-DIR-ENTRY").iter().any(|text| text.contains("file95")), "{byte}");
    }
    // More than one byte can't be told; what is shown is found, and told.
    let (tree, _) = reopened(&changed(&image, &[(at, b"FILE".to_vec())])).unwrap();
    find(&*tree, "directory/FILE95");
    assert!(codes(&*tree).contains("VMFS-DIR-ENTRY"));
    // A damaged hash is no damaged name.
    let (tree, _) = reopened(&changed(&image, &[(at - 0x18 + 0x0C, vec![0x5A])])).unwrap();
    find(&*tree, "directory/file95");
    assert!(codes(&*tree).contains("VMFS-DIR-ENTRY"));
}

/// A descriptor whose metadata are lost: its bytes are where its pointers lead; only facts are lost.
#[test]
fn pointers_stand_without_their_metadata() {
    for name in ["vmfs5", "vmfs6"] {
        let Some(image) = image(name) else { return };
        let healthy = datastore(name).unwrap();
        let metadata = if name == "vmfs5" { 512 } else { 4096 };
        for path in ["bigger", "normal-flat.vmdk", "directory", "collision", ""] {
            let at = if path.is_empty() {
                LV + if name == "vmfs5" { 0x42_0000 } else { 0x72_0000 }
            } else {
                descriptor(&image, &*healthy, path)
            };
            let (tree, _) = reopened(&changed(&image, &[zero(at + metadata)])).unwrap();
            let all = differences(&look(&*healthy), &look(&*tree));
            let others: Vec<_> = all.keys().filter(|own| own[1..] != *path).collect();
            assert!(others.is_empty(), "{name} {path}: {others:?}");
            assert_ne!(all.get(&format!("/{path}")), Some(&Difference::Wrong), "{name} {path}");
            if path.ends_with("-flat.vmdk") {
                let right = healthy.open(find(&*healthy, path)).unwrap();
                let own = tree.open(find(&*tree, path)).unwrap();
                let bytes = |layer: &Bytes| vdrecover_formats::read_vec(&**layer, 42 << 30, 4096).0;
                assert!(bytes(&own) == bytes(&right), "{name} {path}: {own:?} {:?}", own.run(42 << 30, 1));
                assert_eq!(tree.node(find(&*tree, path)).unwrap().trust, Trust::Doubtful, "{name} {path}");
            }
        }
    }
}

/// A folder whose pointers are lost, the root too: its content says whose it is.
#[test]
fn a_folder_is_found_by_its_content() {
    for name in ["vmfs5", "vmfs6"] {
        let Some(image) = image(name) else { return };
        let healthy = datastore(name).unwrap();
        let right = look(&*healthy);
        let (root, pointers) = if name == "vmfs5" { (0x42_0000, 1024) } else { (0x72_0000, 0x1600) };
        for at in [LV + root, descriptor(&image, &*healthy, "collision")] {
            let (tree, _) = reopened(&changed(&image, &[zero(at + pointers)])).unwrap();
            assert_eq!(differences(&right, &look(&*tree)), BTreeMap::new(), "{name} {at:#x}");
            assert!(codes(&*tree).contains("VMFS-FD-CONTENT"), "{name} {at:#x}");
        }
    }
}
