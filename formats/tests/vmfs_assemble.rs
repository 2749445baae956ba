//! Deleted disks put together again, and every block that is claimed compared with where it was. A find may lack
//! anything, but what it claims and does not call doubtful must be right.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::arithmetic_side_effects,
    clippy::as_conversions,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::similar_names,
    reason = "tests"
)]

mod vmfs_support;

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;
use vdrecover_formats::format::Window;
use vdrecover_formats::laws::{Effort, check_laws};
use vdrecover_formats::{
    Bytes, Fault, Find, Finding, Layer, Named, Note, Place, Run, State, Tree, Trust, Why, read_vec, walk,
};
use vdrecover_testdata::Device;
use vdrecover_testdata::gpt::{Guid, Partition, TYPE_LINUX, write_gpt, write_mbr};
use vdrecover_testdata::vmdk::Descriptor;
use vdrecover_testdata::vmfs::{Addressing, Allocation, Content, Layout, Located, Version, Vmfs, VmfsSpec, pattern};
use vmfs_support::{CHUNK, GIB, MIB, Sparse, tree};

const VOLUME: u64 = 4 * GIB;

/// An image whose empty chunks are holes.
#[derive(Debug)]
struct Holey(Sparse);

impl Layer for Holey {
    fn len(&self) -> u64 {
        self.0.len
    }

    fn run(&self, at: u64, want: u64) -> Run<'_> {
        let chunk = at / CHUNK as u64;
        let rest = want.min((chunk + 1) * CHUNK as u64 - at);
        if self.0.chunks.contains_key(&chunk) {
            return Run::sound(rest, Place::Own);
        }
        let next = self.0.chunks.range(chunk..).next().map_or(u64::MAX, |(next, _)| next * CHUNK as u64);
        Run::sound(want.min(next - at), Place::Hole)
    }

    fn fetch(&self, at: u64, buf: &mut [u8]) -> Result<Trust, Fault> {
        self.0.fetch(at, buf)
    }
}

// Guests

/// A disk whose every MiB has a sector that no other has.
fn marked(len: u64, seed: u64) -> Device {
    let mut disk = Device::new(len);
    for block in 0..len / MIB {
        disk.write(block * MIB + 0x9_0000, &pattern(512, seed * 100_000 + block));
    }
    disk
}

/// Superblocks and group descriptors of an ext file system with blocks of 1 KiB: a group has 8 MiB.
fn ext(disk: &mut Device, start: u64, len: u64, uuid: u8) {
    const GROUP: u64 = 8192;
    let blocks = len / 1024;
    let groups = (blocks - 1).div_ceil(GROUP);
    let power = |mut n: u64, of: u64| {
        while n.is_multiple_of(of) {
            n /= of;
        }
        n == 1
    };
    for group in (0..groups).filter(|g| *g < 2 || power(*g, 3) || power(*g, 5) || power(*g, 7)) {
        let mut sb = vec![0; 1024];
        let mut put = |at: usize, bytes: &[u8]| sb[at..at + bytes.len()].copy_from_slice(bytes);
        put(0x00, &(groups as u32 * 2048).to_le_bytes());
        put(0x04, &(blocks as u32).to_le_bytes());
        put(0x14, &1_u32.to_le_bytes());
        put(0x20, &(GROUP as u32).to_le_bytes());
        put(0x28, &2048_u32.to_le_bytes());
        put(0x38, &0xEF53_u16.to_le_bytes());
        put(0x5A, &(group as u16).to_le_bytes());
        put(0x68, &[uuid; 16]);
        put(0x78, b"root");
        let at = start + (group * GROUP + 1) * 1024;
        disk.write(at, &sb);
        let places = [70_u32, 71, 72].map(u32::to_le_bytes).concat();
        disk.write(at + 1024, &places);
    }
}

/// A GPT with one partition that has an ext file system.
fn linux(len: u64, seed: u64, id: u8) -> Device {
    let mut disk = marked(len, seed);
    let part = Partition { kind: TYPE_LINUX, name: "root", start: MIB, len: len - 2 * MIB };
    write_gpt(&mut disk, Guid::seeded(id.into()), &[part]);
    ext(&mut disk, MIB, len - 2 * MIB, id);
    disk
}

fn file_record(number: u32, runs: &[(u64, u64)]) -> Vec<u8> {
    let mut bytes = vec![0; 1024];
    let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
    put(0, b"FILE");
    put(4, &0x30_u16.to_le_bytes());
    put(6, &3_u16.to_le_bytes());
    put(0x14, &0x38_u16.to_le_bytes());
    put(0x16, &1_u16.to_le_bytes());
    put(0x18, &0x200_u32.to_le_bytes());
    put(0x1C, &1024_u32.to_le_bytes());
    put(0x2C, &number.to_le_bytes());
    put(0x30, &[7, 7]);
    let mut at = 0x38;
    if !runs.is_empty() {
        put(at, &0x80_u32.to_le_bytes());
        put(at + 4, &0x80_u32.to_le_bytes());
        put(at + 8, &[1]);
        put(at + 0x20, &0x40_u16.to_le_bytes());
        let (mut last, mut to) = (0_i64, at + 0x40);
        for (len, first) in runs {
            put(to, &[0x44]);
            put(to + 1, &(*len as u32).to_le_bytes());
            put(to + 5, &((first.cast_signed() - last) as i32).to_le_bytes());
            (last, to) = (first.cast_signed(), to + 9);
        }
        at += 0x80;
    }
    put(at, &u32::MAX.to_le_bytes());
    put(510, &[7, 7]);
    put(1022, &[7, 7]);
    bytes
}

/// NTFS with a `$MFT` in two pieces, of 20,000 records.
fn ntfs(disk: &mut Device, start: u64, len: u64, serial: u64) {
    let cluster = 4096;
    let runs = [(2560, 16 * MIB / cluster), (2560, len / 2 / cluster)];
    let mirror = 2 * cluster;
    let mut boot = vec![0; 1024];
    let mut put = |at: usize, bytes: &[u8]| boot[at..at + bytes.len()].copy_from_slice(bytes);
    put(3, b"NTFS    ");
    put(0x0B, &512_u16.to_le_bytes());
    put(0x0D, &[8]);
    put(0x1C, &((start / 512) as u32).to_le_bytes());
    put(0x28, &(len / 512 - 1).to_le_bytes());
    put(0x30, &runs[0].1.to_le_bytes());
    put(0x38, &(mirror / cluster).to_le_bytes());
    put(0x48, &serial.to_le_bytes());
    put(510, &[0x55, 0xAA]);
    disk.write(start, &boot[..512]);
    disk.write(start + len - 512, &boot[..512]);
    for number in 0..20_000_u64 {
        let record = file_record(number as u32, if number == 0 { &runs } else { &[] });
        let at = number * 1024;
        let place =
            if at < 2560 * cluster { runs[0].1 * cluster + at } else { runs[1].1 * cluster + at - 2560 * cluster };
        disk.write(start + place, &record);
        if number < 4 {
            disk.write(start + mirror + at, &record);
        }
    }
}

fn windows(len: u64, seed: u64, serial: u64) -> Device {
    let mut disk = marked(len, seed);
    write_mbr(&mut disk, seed as u32, &[(7, MIB, len - 2 * MIB)]);
    ntfs(&mut disk, MIB, len - 2 * MIB, serial);
    disk
}

// Datastores

fn spec(six: bool) -> VmfsSpec {
    VmfsSpec::new(if six { Version::Six } else { Version::Five }, VOLUME)
}

fn store(six: bool) -> Vmfs {
    let mut store = Vmfs::new(spec(six));
    store.mkdir("vm");
    store
}

fn disk(store: &mut Vmfs, name: &str, content: &Device, layout: &Layout) {
    let flat = format!("{name}-flat.vmdk");
    store.file(
        &format!("vm/{name}.vmdk"),
        Content::bytes(Descriptor::flat(content.len(), &flat, false, 7).text()),
        &Layout::default(),
    );
    store.file(&format!("vm/{flat}"), Content::device(content), layout);
}

fn thick() -> Layout {
    Layout { allocation: Allocation::EagerThick, ..Layout::default() }
}

/// Deletes the flat file, and keeps its description or not.
fn delete(store: &mut Vmfs, name: &str, described: bool, tables: bool) -> Located {
    let located = store.delete_as_esxi(&format!("vm/{name}-flat.vmdk"));
    if !described {
        store.delete_as_esxi(&format!("vm/{name}.vmdk"));
    }
    if !tables {
        for table in &located.pointer_blocks {
            store.write_lv(table.lv, &vec![0; table.len as usize]);
        }
    }
    located
}

fn opened(store: Vmfs) -> Arc<dyn Tree> {
    let mut image = Sparse::empty(VOLUME);
    for (at, bytes) in store.finish()[0].blocks() {
        image.write(at, bytes);
    }
    let image: Bytes = Arc::new(Holey(image));
    tree(vmfs_support::open(image).join_alone().unwrap())
}

/// Searches as a sweep does: window by window, holes left out.
fn searched(tree: &dyn Tree) -> Arc<dyn Tree> {
    let search = tree.search().unwrap();
    let mut clues = Vec::new();
    for range in &search.free {
        let mut at = range.start;
        while at < range.end {
            let end = (at / (16 * MIB) + 1).saturating_mul(16 * MIB).min(range.end);
            if walk(&*search.layer, at..end).any(|run| !matches!(run.place, Place::Hole)) {
                let (bytes, _) =
                    read_vec(&*search.layer, at, (end + MIB).min(search.layer.len()) as usize - at as usize);
                let window = Window { at, bytes: &bytes, own: (end - at) as usize };
                (search.look)(&window, &mut |clue| clues.push(clue));
            }
            at = end;
        }
    }
    clues.sort_unstable();
    (search.build)(&clues)
}

fn finds(tree: &dyn Tree) -> Vec<Find> {
    let mut finds = Vec::new();
    tree.finds(&mut |find| {
        finds.push(find);
        ControlFlow::Continue(())
    });
    finds
}

fn findings(tree: &dyn Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    let _ = tree.audit(0, &mut |note| {
        if let Note::Finding(finding) = note {
            findings.push(finding);
        }
        ControlFlow::Continue(())
    });
    findings
}

/// How a find compares with the disk that it is of.
#[derive(Debug, Default)]
struct Score {
    right: u64,
    wrong: u64,
    doubtful: u64,
    overwritten: u64,
    missing: u64,
    all: u64,
}

impl Score {
    fn share(&self) -> u64 {
        self.right * 100 / self.all.max(1)
    }
}

/// Compares block by block, by where it lies in the volume. `skip` is where the find starts in the disk.
fn score(layer: &dyn Layer, located: &Located, skip: u64) -> Score {
    let truth: BTreeMap<u64, u64> = located.blocks.iter().map(|block| (block.offset, block.lv)).collect();
    let mut score = Score { all: truth.len() as u64, ..Score::default() };
    let end = truth.last_key_value().map_or(0, |last| last.0 + MIB).max(layer.len() + skip);
    for offset in (0..end).step_by(MIB as usize) {
        let Some(at) = offset.checked_sub(skip).filter(|at| *at < layer.len()) else {
            score.missing += u64::from(truth.contains_key(&offset));
            continue;
        };
        let run = layer.run(at, 1);
        assert_ne!(run.trust, Trust::Sound, "nothing of this is proven");
        match (run.place, truth.get(&offset)) {
            (Place::Below { .. }, _) if run.trust == Trust::Doubtful => score.doubtful += 1,
            (Place::Below { offset, .. }, Some(lv)) if offset == *lv => score.right += 1,
            (Place::Hole, None) => {}
            (Place::Below { .. }, _) | (Place::Hole, Some(_)) => score.wrong += 1,
            (Place::Lost(loss), Some(_)) if loss.why == Why::Overwritten => score.overwritten += 1,
            (_, known) => score.missing += u64::from(known.is_some()),
        }
    }
    score
}

/// Every find keeps the laws, and two share a block only if both are doubtful of it.
fn lawful(tree: &dyn Tree) {
    let mut claimed = std::collections::BTreeSet::new();
    for find in finds(tree) {
        let layer = tree.open(find.entry.id).unwrap();
        check_laws(&*layer, Effort::default()).unwrap();
        let mut at = 0;
        while at < layer.len() {
            let run = layer.run(at, layer.len() - at);
            if let (Place::Below { offset, .. }, Trust::Inferred) = (run.place, run.trust) {
                for block in offset / MIB..(offset + run.len).div_ceil(MIB) {
                    assert!(claimed.insert(block), "block {block} is in two finds: {find:?}");
                }
            }
            at += run.len;
        }
        assert_eq!(find.entry.state, State::Fragment);
        assert!(tree.node(find.entry.id).unwrap().trust > Trust::Sound);
    }
}

/// Says how well it went, and that nothing is wrong.
fn one(about: &str, tree: &Arc<dyn Tree>, located: &Located) -> (Find, Score) {
    let found = finds(&**tree);
    let [find] = found.as_slice() else { panic!("{about}: {found:#?}") };
    let score = score(&*tree.open(find.entry.id).unwrap(), located, 0);
    eprintln!("{about}: {}% of {} blocks, {score:?}", score.share(), score.all);
    assert_eq!(score.wrong, 0, "{about}: {find:?}");
    lawful(&**tree);
    (find.clone(), score)
}

#[test]
fn a_disk_comes_back_by_its_pointer_blocks() {
    for six in [true, false] {
        let double = thick().addressing(Addressing::Double);
        let shuffled = Layout::default().shuffled(9);
        for (layout, kind) in
            [(thick(), "thick"), (Layout::default(), "thin"), (shuffled, "shuffled"), (double, "double")]
        {
            let mut store = store(six);
            let content = linux(1200 * MIB, 1, 1);
            disk(&mut store, "db", &content, &layout);
            let located = delete(&mut store, "db", true, true);
            let tree = opened(store);
            let (find, score) = one(&format!("six {six}, {kind}, pointer blocks kept"), &searched(&*tree), &located);
            assert_eq!(score.right, score.all);
            assert_eq!((find.entry.name.as_slice(), find.named), (&b"db-flat.vmdk"[..], Named::Descriptor));
            assert_eq!(find.parent, Some(tree.lookup(tree.root(), b"vm").unwrap().unwrap().id));
            let plain: Vec<Find> =
                finds(&*tree).into_iter().filter(|find| find.entry.state == State::Fragment).collect();
            // The pointer blocks are found without a search. VMFS5 has two for 1.2 GiB: one goes on where the other ends,
            // a third names them, or nothing joins them.
            assert_eq!(plain.len(), if !six && kind == "shuffled" { 2 } else { 1 }, "{plain:?}");
            for find in &plain {
                check_laws(&*tree.open(find.entry.id).unwrap(), Effort::default()).unwrap();
                assert!(tree.node(find.entry.id).unwrap().len > 0);
            }
            if let [find] = plain.as_slice() {
                let score = self::score(&*tree.open(find.entry.id).unwrap(), &located, 0);
                assert_eq!((score.right, score.wrong), (score.all, 0), "{find:?}");
            }
        }
    }
}

#[test]
fn a_disk_comes_back_by_what_is_in_it() {
    for six in [true, false] {
        let mut store = store(six);
        let content = linux(1200 * MIB, 1, 1);
        disk(&mut store, "db", &content, &thick());
        let located = delete(&mut store, "db", true, false);
        let tree = opened(store);
        assert!(finds(&*tree).iter().all(|find| find.entry.state != State::Fragment), "no pointer block is left");
        let (find, score) = one(&format!("six {six}, anchors only"), &searched(&*tree), &located);
        assert_eq!(score.right, score.all, "both copies of the GPT and what lies between");
        assert_eq!(find.entry.name, b"db-flat.vmdk");
        // Without the description name and parent are gone, the length is that of the GPT.
        let mut store = Vmfs::new(spec(six));
        store.mkdir("vm");
        disk(&mut store, "db", &content, &thick());
        let located = delete(&mut store, "db", false, false);
        let (find, score) = one("no description", &searched(&*opened(store)), &located);
        assert_eq!((score.right, find.named), (score.all, Named::Place));
        assert!(find.entry.name.starts_with(b"disk_"));
    }
}

/// A pointer block that is wiped, of which the journal has a copy.
#[test]
fn pointer_blocks_are_found_in_the_journal() {
    let mut store = Vmfs::new(VmfsSpec { crashed: true, ..spec(false) });
    store.mkdir("vm");
    disk(&mut store, "db", &linux(900 * MIB, 1, 1), &thick().shuffled(3));
    let located = store.locate("vm/db-flat.vmdk");
    let [table] = located.pointer_blocks.as_slice() else { panic!("{located:?}") };
    let journal = u64::from_le_bytes(store.read_lv(0x34_2000 + 0x64, 8).try_into().unwrap());
    let mut record = vec![0; 32];
    record[0] = 1;
    record[16..24].copy_from_slice(&table.lv.to_le_bytes());
    record[24..32].copy_from_slice(&4096_u64.to_le_bytes());
    record.extend(store.read_lv(table.lv, 4096));
    // Over what the host logged, from the start on, and a break behind it.
    store.write_lv(journal + 512, &[record.as_slice(), &[0; 64]].concat());
    // What lies behind is older: the page as it was when the disk had other blocks.
    let mut stale = record.clone();
    stale[32..].chunks_exact_mut(4).rev().take(700).for_each(|pointer| pointer.fill(0));
    stale[32..].chunks_exact_mut(4).take(300).for_each(|pointer| {
        let moved = u32::from_le_bytes((&*pointer).try_into().unwrap()) + (7 << 6);
        pointer.copy_from_slice(&moved.to_le_bytes());
    });
    store.write_lv(journal + 512 + record.len() as u64 + 64, &stale);
    delete(&mut store, "db", true, false);
    let (find, score) = one("pointer block in the journal", &searched(&*opened(store)), &located);
    assert_eq!((score.right, find.entry.name.as_slice()), (900, &b"db-flat.vmdk"[..]));
}

/// A descriptor in free space that lies where it says, and where no `.fdc.sf` has one.
#[test]
fn descriptors_outside_of_the_geometry_are_finds() {
    for six in [true, false] {
        let mut store = store(six);
        store.file("vm/notes", Content::patterned(300_000, 5), &Layout::default());
        store.sync();
        let located = store.locate("vm/notes");
        let mut copy = store.read_lv(located.fd_lv, located.fd_len as usize);
        // In the last GiB nothing is in use. It says that it is another, and lies there.
        let at = VOLUME - 512 * MIB + 3 * 512;
        let md = located.fd_len as usize / if six { 2 } else { 4 };
        copy[4..12].copy_from_slice(&at.to_le_bytes());
        let address = u32::from_le_bytes(copy[md..md + 4].try_into().unwrap()) | 0x40;
        copy[md..md + 4].copy_from_slice(&address.to_le_bytes());
        store.write_lv(at, &copy);
        // One that says that it lies elsewhere is a copy, and no find.
        store.write_lv(at + MIB, &copy);
        store.delete_as_esxi("vm/notes");
        let tree = searched(&*opened(store));
        let found = finds(&*tree);
        let [find] = found.as_slice() else { panic!("six {six}: {found:#?}") };
        assert!(find.entry.name.starts_with(format!("descriptor_{at:x}_").as_bytes()), "{find:?}");
        let node = tree.node(find.entry.id).unwrap();
        assert_eq!((node.len, node.trust), (300_000, Trust::Inferred));
        let (bytes, seen) = read_vec(&*tree.open(find.entry.id).unwrap(), 0, 300_000);
        assert!(seen.is_whole() && bytes == Content::patterned(300_000, 5).read(0, 300_000), "six {six}: {seen:?}");
    }
}

#[test]
fn windows_comes_back_by_its_mft() {
    let mut store = store(true);
    disk(&mut store, "win", &windows(900 * MIB, 3, 0x1234), &thick());
    let located = delete(&mut store, "win", true, false);
    let (find, score) = one("NTFS on MBR, anchors only", &searched(&*opened(store)), &located);
    assert!(score.share() >= 99, "all but what lies behind the last sector of NTFS: {score:?}");
    assert_eq!(find.entry.name, b"win-flat.vmdk");
    // In no order, only the blocks that have anchors are known: the `$MFT`, the boot sectors.
    let mut store = Vmfs::new(spec(true));
    store.mkdir("vm");
    disk(&mut store, "win", &windows(900 * MIB, 3, 0x1234), &thick().shuffled(4));
    let located = delete(&mut store, "win", true, false);
    let (_, score) = one("NTFS, shuffled, anchors only", &searched(&*opened(store)), &located);
    assert!(score.right >= 20, "20 MiB of $MFT: {score:?}");
}

#[test]
fn clones_are_kept_apart() {
    for tables in [true, false] {
        for layout in [thick(), thick().shuffled(5)] {
            let mut store = store(true);
            let content = linux(400 * MIB, 1, 1);
            disk(&mut store, "a", &content, &layout);
            disk(&mut store, "b", &content, &layout);
            let located = [delete(&mut store, "a", true, tables), delete(&mut store, "b", true, tables)];
            let tree = searched(&*opened(store));
            lawful(&*tree);
            let found = finds(&*tree);
            let mut right = [0; 2];
            for find in &found {
                let layer = tree.open(find.entry.id).unwrap();
                let scores = [0, 1].map(|i| score(&*layer, &located[i], 0));
                // A stretch is of one of the two, and all of it.
                let of = usize::from(scores[0].wrong > scores[1].wrong);
                assert_eq!(scores[of].wrong, 0, "{find:?}: {scores:?}");
                right[of] += scores[of].right;
            }
            eprintln!("clones, {layout:?}, tables {tables}: {right:?} of 400 each in {} finds", found.len());
            match (tables, layout == thick()) {
                (true, _) | (_, true) => assert_eq!(right, [400, 400]),
                _ => assert!(found.len() < 3, "what is in no order proves nothing"),
            }
        }
    }
}

/// Two clones, each of which lost what the other still has: no two blocks claim one place.
#[test]
fn halves_of_clones_are_not_made_one() {
    let mut store = store(true);
    let content = linux(400 * MIB, 1, 1);
    disk(&mut store, "a", &content, &thick());
    disk(&mut store, "b", &content, &thick());
    let located = [delete(&mut store, "a", true, false), delete(&mut store, "b", true, false)];
    let (first, second) = (located[0].blocks[0].lv, located[1].blocks[180].lv);
    store.file("vm/x.bin", Content::bytes(pattern(180 << 20, 5)), &Layout::default().from(first));
    store.file("vm/y.bin", Content::bytes(pattern(220 << 20, 6)), &Layout::default().from(second));
    let tree = searched(&*opened(store));
    lawful(&*tree);
    let found = finds(&*tree);
    assert!(!found.is_empty());
    for find in &found {
        let layer = tree.open(find.entry.id).unwrap();
        let scores = [0, 1].map(|i| score(&*layer, &located[i], 0));
        eprintln!("halves of clones: {scores:?}");
        assert!(scores.iter().any(|score| score.wrong == 0 && score.right > 0), "{find:?}: {scores:?}");
        assert_eq!(tree.node(find.entry.id).unwrap().trust, Trust::Doubtful);
        assert!(find.why.contains("may be of a copy"), "{find:?}");
    }
}

#[test]
fn other_disks_do_not_mix() {
    let mut store = store(true);
    disk(&mut store, "a", &linux(500 * MIB, 1, 1), &thick());
    disk(&mut store, "b", &windows(600 * MIB, 2, 77), &thick());
    disk(&mut store, "c", &windows(700 * MIB, 3, 78), &thick());
    let located = ["a", "b", "c"].map(|name| delete(&mut store, name, true, false));
    let tree = searched(&*opened(store));
    lawful(&*tree);
    let found = finds(&*tree);
    assert_eq!(found.len(), 3, "{found:#?}");
    for (name, located) in ["a-flat.vmdk", "b-flat.vmdk", "c-flat.vmdk"].iter().zip(&located) {
        let find = found.iter().find(|find| find.entry.name == name.as_bytes()).unwrap();
        let score = score(&*tree.open(find.entry.id).unwrap(), located, 0);
        eprintln!("three disks, {name}: {}%, {score:?}", score.share());
        assert!(score.wrong == 0 && score.share() > 98, "{score:?}");
    }
}

#[test]
fn what_is_alive_has_overwritten() {
    for tables in [true, false] {
        let mut store = store(true);
        disk(&mut store, "db", &linux(1200 * MIB, 1, 1), &thick());
        let located = delete(&mut store, "db", true, tables);
        let at = located.blocks[300].lv;
        store.file("vm/new.bin", Content::bytes(pattern(100 * MIB as usize, 5)), &Layout::default().from(at));
        let (_, score) = one(&format!("overwritten in part, tables {tables}"), &searched(&*opened(store)), &located);
        assert_eq!((score.right, score.overwritten), (1100, 100));
    }
}

/// Files of a few MiB lie all over the volume, so that a disk is in many pieces, and so is the next.
#[test]
fn pieces_are_joined_where_anchors_are() {
    let mut store = store(false);
    for i in 0..40 {
        store.file(
            &format!("vm/{i}.bin"),
            Content::bytes(pattern(3 << 20, i)),
            &Layout::default().from((600 + i * 37) * MIB),
        );
    }
    disk(&mut store, "db", &linux(1200 * MIB, 1, 1), &thick());
    disk(&mut store, "other", &linux(300 * MIB, 2, 2), &thick());
    let located = delete(&mut store, "db", true, false);
    delete(&mut store, "other", true, false);
    let tree = searched(&*opened(store));
    lawful(&*tree);
    let find = finds(&*tree).into_iter().find(|find| find.entry.name == b"db-flat.vmdk").unwrap();
    let score = score(&*tree.open(find.entry.id).unwrap(), &located, 0);
    eprintln!("in 40 pieces, anchors only: {}%, {score:?}", score.share());
    assert!(score.wrong == 0 && score.right == score.all, "{score:?}");
}

/// The disk was written in another order than it lies in: stretches of any length, each somewhere else.
#[test]
fn stretches_out_of_order_are_not_mixed_up() {
    for (round, cuts) in
        [[300, 37, 211, 90, 401, 161], [64, 128, 33, 500, 75, 400], [10, 700, 20, 300, 50, 120]].iter().enumerate()
    {
        let mut store = store(true);
        disk(&mut store, "db", &linux(1200 * MIB, 1, 1), &thick());
        let mut located = delete(&mut store, "db", true, false);
        let mut start = 0;
        let pieces: Vec<Vec<usize>> = cuts
            .iter()
            .map(|len| {
                start += len;
                (start - len..start).collect()
            })
            .collect();
        let order: Vec<usize> = [3, 1, 5, 0, 4, 2].iter().flat_map(|piece| pieces[*piece].clone()).collect();
        let places: Vec<u64> = located.blocks.iter().map(|block| block.lv).collect();
        let bytes: Vec<Vec<u8>> = order.iter().map(|i| store.read_lv(places[*i], MIB as usize)).collect();
        for ((i, place), bytes) in order.iter().zip(&places).zip(bytes) {
            store.write_lv(*place, &bytes);
            located.blocks[*i].lv = *place;
        }
        let (_, score) = one(&format!("out of order {round}, anchors only"), &searched(&*opened(store)), &located);
        assert!(score.right > 250, "{score:?}");
    }
}

#[test]
fn a_volume_without_its_disk_is_a_find() {
    let mut store = store(true);
    let mut content = linux(600 * MIB, 1, 9);
    content.zero(0..MIB);
    content.zero(599 * MIB..600 * MIB);
    disk(&mut store, "db", &content, &thick());
    let located = delete(&mut store, "db", false, false);
    let tree = searched(&*opened(store));
    lawful(&*tree);
    let found = finds(&*tree);
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].entry.name.starts_with(b"root_ext_09"), "{found:?}");
    let score = score(&*tree.open(found[0].entry.id).unwrap(), &located, MIB);
    eprintln!("no partition table: {}%, {score:?}", score.share());
    // The last copy of the superblock lies in group 49 of 75.
    assert!(score.wrong == 0 && score.right == 393, "{score:?}");
}

#[test]
fn free_space_is_told_of() {
    let mut store = store(true);
    let mut noise = Vec::new();
    let mut state: u64 = 7;
    while noise.len() < 8 << 20 {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        noise.extend(&(state ^ state >> 31).to_le_bytes()[..4]);
    }
    store.file("vm/noise", Content::bytes(noise), &Layout::default());
    store.file("vm/text", Content::bytes(b"all work and no play\n".repeat(200_000)), &Layout::default());
    let len = b"all work and no play\n".len() * 200_000;
    for name in ["vm/noise", "vm/text"] {
        store.delete_as_esxi(name);
    }
    let tree = searched(&*opened(store));
    assert!(finds(&*tree).is_empty());
    let told: Vec<String> = findings(&*tree).into_iter().map(|finding| finding.text).collect();
    let of = |words: &str| {
        let line = told.iter().find(|line| line.ends_with(words)).unwrap_or_else(|| panic!("{words}: {told:?}"));
        line.split(' ').nth(2).unwrap().parse::<u64>().unwrap()
    };
    assert_eq!(of("encrypted or compressed"), 8 * MIB);
    assert!(of("text").abs_diff(len as u64) < MIB);
}

/// Anchors with bytes that a stranger chose: whatever comes out keeps the laws, and ends.
#[test]
fn hostile_anchors_are_bounded() {
    let mut state: u64 = 0x9E37_79B9_7F4A_7C15;
    let mut roll = move |sides: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % sides
    };
    let mut store = store(true);
    disk(&mut store, "a", &linux(500 * MIB, 1, 1), &thick());
    disk(&mut store, "b", &windows(500 * MIB, 2, 77), &thick());
    let located = ["a", "b"].map(|name| delete(&mut store, name, true, true));
    for round in 0..6 {
        let mut hurt = store.clone();
        for located in &located {
            for block in &located.blocks {
                for _ in 0..4 {
                    let at = block.lv + roll(3) * 512 + roll(128);
                    let value = [0, 0xFF, roll(256) as u8][roll(3) as usize];
                    if roll(3) == 0 {
                        hurt.write_lv(at, &[value; 4]);
                    }
                }
            }
            for table in &located.pointer_blocks {
                for _ in 0..roll(40) {
                    let slot = roll(500) * 8;
                    let other = hurt.read_lv(table.lv + roll(500) * 8, 8);
                    hurt.write_lv(table.lv + slot, &other);
                }
            }
        }
        // The same anchors in many places.
        let head = hurt.read_lv(located[0].blocks[0].lv, 64 << 10);
        for _ in 0..roll(20) {
            hurt.write_lv(located[1].blocks[roll(400) as usize].lv, &head);
        }
        let tree = searched(&*opened(hurt));
        lawful(&*tree);
        eprintln!("round {round}: {} finds", finds(&*tree).len());
    }
}

/// A datastore that was formatted over, with files of ESXi: nothing is made up.
#[test]
fn nothing_is_made_up_on_a_real_volume() {
    let Some(image) = vmfs_support::image("zero6") else { return };
    let tree = tree(vmfs_support::open(image).join_alone().unwrap());
    let before = finds(&*tree);
    assert!(before.iter().all(|find| find.entry.state != State::Fragment), "{before:?}");
    let tree = searched(&*tree);
    assert!(finds(&*tree).is_empty(), "{:?}", finds(&*tree));
}
