//! VMFS volumes whose metadata is overwritten, by accident and by malice: nothing panics, nothing hangs, no layer
//! breaks a law. `VDRECOVER_CORPUS` as in the other tests; `VDRECOVER_ROUNDS` asks for more than a few rounds.
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

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Instant;
use vdrecover_formats::laws::{Effort, check_laws};
use vdrecover_formats::{
    Bytes, Content, Fault, Kind, Layer, Place, Pool, Run, State, Tree, Trust, Why, read, read_vec, vmfs, walk,
};
use vmfs_support::{MIB, Sparse, all, audit, find, finds, image, list, open, tree};

const LV: u64 = 0x110_0000;

/// An image of which a test overwrote some sectors and lost others.
#[derive(Debug)]
struct Mutant {
    base: Arc<Sparse>,
    sectors: BTreeMap<u64, Vec<u8>>,
    bad: BTreeSet<u64>,
}

impl Mutant {
    fn new(base: &Arc<Sparse>) -> Self {
        Self { base: base.clone(), sectors: BTreeMap::new(), bad: BTreeSet::new() }
    }
}

impl Layer for Mutant {
    fn len(&self) -> u64 {
        self.base.len
    }

    fn run(&self, at: u64, want: u64) -> Run<'_> {
        match self.bad.range(at / 512..).next() {
            Some(bad) if *bad == at / 512 => Run::lost(want.min(512 - at % 512), Why::Unreadable, at),
            Some(bad) => Run::sound(want.min(bad * 512 - at), Place::Own),
            None => Run::sound(want, Place::Own),
        }
    }

    fn fetch(&self, at: u64, buf: &mut [u8]) -> Result<Trust, Fault> {
        self.base.fetch(at, buf)?;
        let end = at + buf.len() as u64;
        for (sector, bytes) in self.sectors.range(at / 512..end.div_ceil(512)) {
            for (i, byte) in (sector * 512..).zip(bytes).filter(|(i, _)| (at..end).contains(i)) {
                buf[(i - at) as usize] = *byte;
            }
        }
        Ok(Trust::Sound)
    }
}

/// A fixed sequence of numbers: xorshift.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % sides.max(1)
    }
}

fn sector(image: &Sparse, sector: u64) -> Vec<u8> {
    let mut bytes = vec![0; 512];
    read(image, sector * 512, &mut bytes);
    bytes
}

/// The sectors of an image that hold metadata, those that decide over all others first.
fn metadata(image: &Arc<Sparse>) -> Vec<u64> {
    let tree = tree(open(image.clone()).join_alone().unwrap());
    let heads = [0x10_0000, 0x10_0200, 0x10_1000, 0x18_0200, 0x18_1000, 0x18_0600, 0x18_2000, LV + 0x20_0000];
    let mut sectors: Vec<u64> = heads.iter().map(|at| at / 512).collect();
    for (range, of) in audit(&*tree, image).claims {
        let range = if of.is_metadata() { range } else { 0..0 };
        let all = (range.start..range.end).step_by(512).map(|at| (LV + at) / 512);
        sectors.extend(all.filter(|at| sector(image, *at).iter().any(|byte| *byte != 0)));
    }
    sectors
}

fn damage(image: &Arc<Sparse>, sectors: &[u64], dice: &mut Dice) -> Mutant {
    let mut mutant = Mutant::new(image);
    for _ in 0..=dice.roll(4) {
        let few = dice.roll(2) == 0;
        let at = sectors[dice.roll(if few { 64.min(sectors.len()) } else { sectors.len() } as u64) as usize];
        let mut bytes = sector(image, at);
        match dice.roll(7) {
            0 => bytes.fill(0),
            1 => bytes.fill(0xFF),
            2 => drop(mutant.bad.insert(at)),
            3 => bytes = sector(image, sectors[dice.roll(sectors.len() as u64) as usize]),
            4 => bytes.iter_mut().for_each(|byte| *byte = dice.roll(256) as u8),
            _ => {
                for _ in 0..=dice.roll(6) {
                    let at = dice.roll(127) as usize * 4 + dice.roll(4) as usize;
                    let old = u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
                    let new = match dice.roll(5) {
                        0 => u32::MAX,
                        1 => 1 << dice.roll(32),
                        2 => dice.roll(1 << 32) as u32,
                        3 => old.wrapping_sub(1),
                        _ => old.wrapping_add(1),
                    };
                    bytes[at..at + 4].copy_from_slice(&new.to_le_bytes());
                }
            }
        }
        mutant.sectors.insert(at, bytes);
    }
    mutant
}

/// Everything that one can do with a tree, without trusting any of it.
fn exercise(tree: &dyn Tree) {
    let effort = Effort { runs: 48, bytes: 1 << 17 };
    let mut open = vec![tree.root()];
    let mut seen = BTreeSet::new();
    while let Some(dir) = open.pop() {
        if !seen.insert(dir) || seen.len() > 20 {
            continue;
        }
        let mut entries = Vec::new();
        let _ = tree.list(dir, 0, &mut |entry| {
            entries.extend(entry.ok());
            if entries.len() < 200 { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        });
        for entry in entries.iter().step_by(1 + entries.len() / 30) {
            let _ = tree.lookup(dir, &entry.name);
            let _ = tree.node(entry.id);
            if entry.kind == Kind::Dir {
                open.push(entry.id);
            }
            if let Ok(layer) = tree.open(entry.id) {
                check_laws(&*layer, effort).unwrap_or_else(|law| panic!("{entry:?}: {law}"));
            }
        }
        let _ = tree.lookup(dir, b"none");
    }
    for part in 0..tree.parts().min(64) {
        let mut notes = 0;
        let _ = tree.audit(part, &mut |_| {
            notes += 1;
            if notes < 20_000 { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        });
    }
    for entry in finds(tree).iter().take(20) {
        if let Ok(layer) = tree.open(entry.id) {
            check_laws(&*layer, effort).unwrap_or_else(|law| panic!("{entry:?}: {law}"));
        }
    }
}

#[test]
fn damaged_metadata_neither_panics_nor_hangs() {
    let rounds: u64 = std::env::var("VDRECOVER_ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(15);
    for name in ["vmfs6", "vmfs5", "zero6"] {
        let Some(image) = image(name) else { return };
        let sectors = metadata(&image);
        let mut opens = 0;
        for round in 0..rounds {
            let mut dice = Dice(0x9E37_79B9_7F4A_7C15 ^ round.wrapping_mul(0x2545_F491_4F6C_DD1D));
            let mutant = damage(&image, &sectors, &mut dice);
            let about = format!("{name}, round {round}: {:x?} {:x?}", mutant.sectors.keys(), mutant.bad);
            let mutant: Bytes = Arc::new(mutant);
            let _ = (vmfs::FORMAT.probe)(&*mutant);
            let start = Instant::now();
            if let Ok(opened) = (vmfs::FORMAT.open)(&mutant, &Pool::new(16 << 20).share())
                && let Ok(Content::Tree(tree)) = opened.join_alone()
            {
                opens += 1;
                exercise(&*tree);
            }
            let took = start.elapsed();
            assert!(took.as_secs() < 60, "{about}: {took:?}");
            if took.as_secs() > 2 {
                println!("{about}: {took:?}");
            }
        }
        println!("{name}: {opens} of {rounds} damaged images open");
    }
}

/// Where a file's bytes of metadata lie on the device, found by their content.
fn position(image: &Arc<Sparse>, of: &str) -> u64 {
    let tree = tree(open(image.clone()).join_alone().unwrap());
    let layer = tree.open(find(&*tree, of)).unwrap();
    walk(&*layer, 0..1).next().unwrap().offset
}

#[test]
fn a_bad_pointer_block_costs_what_it_maps() {
    for (name, block_span, blocks) in [("vmfs5", 1 << 30, 8), ("vmfs6", 8 << 30, 128)] {
        let Some(image) = image(name) else { return };
        let tree_of = |bytes: Bytes| tree(open(bytes).join_alone().unwrap());
        let healthy = tree_of(image.clone());
        let file = find(&*healthy, "normal-flat.vmdk");
        // The one pointer block of the file is a claim of metadata that holds the pointer to its one block.
        let data = walk(&*healthy.open(file).unwrap(), 42 << 30..(42 << 30) + 512).next().unwrap().offset - LV;
        let block = data / MIB;
        let raw = if name == "vmfs5" { (block << 6) | 1 } else { ((block / 512) << 15) | ((block % 512) << 51) | 1 };
        let width = if name == "vmfs5" { 4 } else { 8 };
        let index = (42_u64 << 10) % (block_span / MIB);
        let is_table = |start: u64| {
            let (bytes, _) = read_vec(&*image, LV + start + index * width, width as usize);
            bytes == raw.to_le_bytes()[..width as usize]
        };
        let claims = audit(&*healthy, &image).claims;
        let len = blocks * 512;
        let table = claims
            .iter()
            .find(|(range, of)| of.is_metadata() && range.end - range.start == len && is_table(range.start));
        let table = LV + table.unwrap_or_else(|| panic!("{name}: no pointer block")).0.start;

        // One bad sector costs the pointers in it and no others.
        let mut mutant = Mutant::new(&image);
        mutant.bad.insert(table / 512 + index * width / 512);
        let layer = tree_of(Arc::new(mutant)).open(file).unwrap();
        let lost: Vec<_> = walk(&*layer, 0..layer.len()).filter(|run| matches!(run.place, Place::Lost(_))).collect();
        let span = 512 / width * MIB;
        assert_eq!(lost.iter().map(|run| run.len).sum::<u64>(), span, "{name}");
        assert_eq!(lost[0].at, (42 << 30) / span * span, "{name}");
        for gap in lost {
            let Place::Lost(cause) = gap.place else { unreachable!() };
            assert_eq!(cause.why, Why::Unmapped);
            assert!((table - LV..table - LV + len).contains(&cause.at), "{name}: {cause:x?}");
        }
        check_laws(&*layer, Effort::default()).unwrap();

        // A pointer of nonsense costs its block.
        let mut mutant = Mutant::new(&image);
        let at = table / 512 + index * width / 512;
        let mut bytes = sector(&image, at);
        let within = (index * width % 512) as usize;
        bytes[within..within + width as usize]
            .copy_from_slice(&0xDEAD_BEEF_DEAD_BEEF_u64.to_le_bytes()[..width as usize]);
        mutant.sectors.insert(at, bytes);
        let layer = tree_of(Arc::new(mutant)).open(file).unwrap();
        let lost: Vec<_> = walk(&*layer, 0..layer.len())
            .filter(|run| matches!(run.place, Place::Lost(_)))
            .map(|run| (run.at, run.len))
            .collect();
        assert_eq!(lost, [(42 << 30, MIB)], "{name}");
    }
}

/// The folder's own structures: its map, its hash table, one of its blocks.
#[test]
fn folders_survive_their_structures() {
    let Some(image) = image("vmfs6") else { return };
    let healthy = tree(open(image.clone()).join_alone().unwrap());
    let folder = find(&*healthy, "directory");
    let names: BTreeSet<_> = list(&*healthy, folder).into_iter().map(|entry| entry.name).collect();
    // The header is a sub-block that starts with the version and counts 102 entries.
    let head = audit(&*healthy, &image).claims.into_iter().map(|(range, _)| LV + range.start).find(|at| {
        let (bytes, _) = read_vec(&*image, *at, 8);
        bytes == [0x01, 0x00, 0xF5, 0x00, 102, 0, 0, 0]
    });
    let head = head.unwrap();
    let check = |mutant: Mutant, code: &str, missing: usize| {
        let tree = tree(open(Arc::new(mutant)).join_alone().unwrap());
        let (mut found, mut codes) = (BTreeSet::new(), BTreeSet::new());
        let listed = tree.list(folder, 0, &mut |entry| {
            match entry {
                Ok(entry) => drop(found.insert(entry.name)),
                Err(finding) => drop(codes.insert(finding.code)),
            }
            ControlFlow::Continue(())
        });
        listed.unwrap();
        assert_eq!(names.difference(&found).count(), missing, "{code}");
        assert!(found.is_subset(&names), "{code}");
        assert!(code.is_empty() || codes.contains(code), "{codes:?}");
        for name in &found {
            let entry = tree.lookup(folder, name).unwrap();
            assert!(entry.is_some(), "{code}: {}", String::from_utf8_lossy(name));
        }
    };
    check(Mutant::new(&image), "", 0);
    // The version: nothing of the header can be believed.
    let mut mutant = Mutant::new(&image);
    mutant.sectors.insert(head / 512, vec![0; 512]);
    check(mutant, "VMFS-DIR-HEAD", 0);
    // The hash table: lookups fall back to the entries.
    for fill in [0, 0xFF, 0x55] {
        let mut mutant = Mutant::new(&image);
        for i in 3..128 {
            mutant.sectors.insert(head / 512 + i, vec![fill; 512]);
        }
        check(mutant, "", 0);
    }
    let mut mutant = Mutant::new(&image);
    mutant.bad.extend((8..128).map(|i| head / 512 + i));
    check(mutant, "", 0);
    // The map lies in the second sub-block, in its first block; entries follow.
    let tree = tree(open(image.clone()).join_alone().unwrap());
    let map = all(&*tree).len();
    assert!(map > 100);
    let second = audit(&*tree, &image).claims.into_iter().map(|(range, _)| LV + range.start).find(|at| {
        let (bytes, _) = read_vec(&*image, at + 4096, 0x20 + 64);
        *at != head && bytes[..6] == [1, 0, 1, 0, 14, 0] && bytes[64 + 0x18..].starts_with(b"file")
    });
    let second = second.unwrap();
    for (bad, fill) in [(false, 0), (false, 0x88), (true, 0)] {
        let mut mutant = Mutant::new(&image);
        for i in 0..8 {
            let keep = fill == 0x88 && i == 0;
            let bytes = if keep { sector(&image, second / 512) } else { vec![fill; 512] };
            mutant.sectors.insert(second / 512 + i, bytes);
            mutant.bad.extend(bad.then_some(second / 512 + i));
        }
        if fill == 0x88 {
            // Header of the map block intact, and every block "never written".
            let bytes = mutant.sectors.get_mut(&(second / 512)).unwrap();
            bytes[64..].fill(0x88);
        }
        check(mutant, "VMFS-DIR-MAP", 0);
    }
    // One sector in the middle of a block of entries costs the entries in it.
    let mut mutant = Mutant::new(&image);
    mutant.bad.insert((second + 4096) / 512 + 3);
    check(mutant, "VMFS-DIR-BLOCK", 2);
    assert!(position(&image, "bigger") > LV);
}

/// Where a record lies on the device: among the claims of metadata, with these numbers in its second alignment unit.
fn record(image: &Arc<Sparse>, magic: u32, at: usize, number: u64, len: usize) -> u64 {
    let healthy = tree(open(image.clone()).join_alone().unwrap());
    let claims = audit(&*healthy, image).claims;
    let places = claims.iter().flat_map(|(range, _)| (LV + range.start..LV + range.end).step_by(0x2000));
    let found = places.into_iter().find(|place| {
        let (bytes, _) = read_vec(&**image, *place, 0x2000);
        bytes[..4] == magic.to_le_bytes() && bytes[0x1000 + at..][..len] == number.to_le_bytes()[..len]
    });
    found.unwrap_or_else(|| panic!("no record {magic:#x} {number}"))
}

fn patch(mutant: &mut Mutant, at: u64, change: impl FnOnce(&mut u8)) {
    let base = mutant.base.clone();
    let bytes = mutant.sectors.entry(at / 512).or_insert_with(|| sector(&base, at / 512));
    change(&mut bytes[(at % 512) as usize]);
}

/// `bigger` as if a format had gone over it: free, and older than the volume. Its blocks are in use, but for one.
#[test]
fn what_a_dead_file_lost_to_others_is_overwritten() {
    let Some(image) = image("vmfs6") else { return };
    let healthy = tree(open(image.clone()).join_alone().unwrap());
    let file = find(&*healthy, "bigger");
    let data = walk(&*healthy.open(file).unwrap(), 0..1).next().unwrap().offset - LV;
    let fd = record(&image, 0x10C0_0001, 0, file.0, 4);
    let fdc = record(&image, 0x10C0_0005, 0x18, file.0 >> 6 & 0xFFFF, 8);
    let block = data / MIB + 7;
    let sfb = record(&image, 0x10C0_0002, 0x18, block / 512, 8);

    // Its bit alone: the file is an orphan, and nothing of it is lost.
    let mut mutant = Mutant::new(&image);
    let resource = file.0 >> 22;
    patch(&mut mutant, fdc + 0x1080 + resource / 8, |byte| *byte |= 1 << (resource % 8));
    let orphan = Mutant { base: image.clone(), sectors: mutant.sectors.clone(), bad: BTreeSet::new() };
    let tree_of = |mutant: Mutant| tree(open(Arc::new(mutant)).join_alone().unwrap());
    let orphan = tree_of(orphan);
    assert_eq!(orphan.node(file).unwrap().state, State::Orphaned);
    let layer = orphan.open(file).unwrap();
    assert!(walk(&*layer, 0..layer.len()).all(|run| matches!(run.place, Place::Own) && run.trust == Trust::Inferred));

    // Older than the volume as well: the blocks that are in use are no longer its own.
    patch(&mut mutant, fd + 0x1033, |byte| *byte = 0);
    let (half, index) = (block % 512 / 256, block % 256);
    patch(&mut mutant, sfb + 0x1080 + half * 0x100 + index / 4, |byte| *byte |= 1 << (index % 4 * 2));
    let dead = tree_of(mutant);
    assert_eq!(dead.node(file).unwrap().state, State::Reformatted);
    let layer = dead.open(file).unwrap();
    let have: Vec<_> = walk(&*layer, 0..layer.len())
        .filter(|run| matches!(run.place, Place::Own))
        .map(|run| (run.at, run.len, run.trust))
        .collect();
    assert_eq!(have, [(7 * MIB, MIB, Trust::Inferred)]);
    let first = walk(&*layer, 0..MIB).next().unwrap();
    assert!(matches!(first.place, Place::Lost(loss) if loss.why == Why::Overwritten && LV + loss.at == sfb));
    check_laws(&*layer, Effort { runs: 300, bytes: 1 << 20 }).unwrap();
}

/// An extent's place, one bit of it: what two of them then share, or what lies where no fresh device has it, is not
/// sound, and is read where it is.
#[test]
fn an_extent_in_the_wrong_place_is_not_believed() {
    for (name, table, extents) in [("vmfs5", 0x18_0600, 8), ("vmfs6", 0x18_2000, 1)] {
        let Some(image) = image(name) else { return };
        let healthy = tree(open(image.clone()).join_alone().unwrap());
        for (extent, byte) in (0..extents).flat_map(|extent| [(extent, 2), (extent, 3)]) {
            let mut mutant = Mutant::new(&image);
            patch(&mut mutant, table + extent * 128 + 9 + byte, |byte| *byte ^= 0x80);
            let opened = open(Arc::new(mutant));
            let codes: Vec<_> = opened.findings.iter().map(|finding| finding.code).collect();
            assert!(codes.contains(&"LVM-PE-PLACE"), "{name} {extent} {byte}: {codes:?}");
            let tree = tree(opened.join_alone().unwrap());
            for file in ["big", "bigger", "small", "directory/file7"] {
                let (right, found) = (healthy.open(find(&*healthy, file)), tree.open(find(&*tree, file)));
                let (right, found) = (right.unwrap(), found.unwrap());
                for at in (0..right.len()).step_by(MIB as usize) {
                    let len = (right.len() - at).min(4096) as usize;
                    let (bytes, seen) = read_vec(&*found, at, len);
                    let same = bytes == read_vec(&*right, at, len).0;
                    assert!(same || seen.trust > Trust::Sound, "{name} {extent} {byte}: {file} at {at:#x}");
                }
            }
        }
    }
}
