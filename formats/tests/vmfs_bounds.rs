//! Hostile volumes: what an image claims costs nothing, what is there costs what it is. Work is counted in what is asked
//! of the image, never in time.
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

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use vdrecover_formats::format::Window;
use vdrecover_formats::vmfs::address::FdAddress;
use vdrecover_formats::vmfs::descriptor::{Descriptor, Origin};
use vdrecover_formats::vmfs::header::Header;
use vdrecover_formats::vmfs::journal::{self, Standing};
use vdrecover_formats::vmfs::lvm::{Device as Lvm, Logical};
use vdrecover_formats::vmfs::volume::Volume;
use vdrecover_formats::{Bytes, Fault, Finding, Layer, Note, Place, Pool, Run, Tree, Trust, Why};
use vdrecover_formats::{read_vec, walk};
use vdrecover_testdata::Device;
use vdrecover_testdata::vmfs::{Addressing, Content, Crash, Layout, Lock, Version, Vmfs, VmfsSpec};
use vmfs_support::{CHUNK, MIB, Sparse, find, image, open, tree};

const BASE: u64 = 0x110_0000;
const LEN: u64 = 288 * MIB;

/// A device that ends the test when more is asked of it than `most` times, and can lose a range.
#[derive(Debug)]
struct Meter {
    device: Device,
    len: u64,
    asked: AtomicU64,
    most: u64,
    lost: std::ops::Range<u64>,
}

impl Meter {
    fn new(device: Device, most: u64) -> Self {
        let len = device.len();
        Self { device, len, asked: AtomicU64::new(0), most, lost: 0..0 }
    }
}

impl Layer for Meter {
    fn len(&self) -> u64 {
        self.len
    }

    fn run(&self, at: u64, want: u64) -> Run<'_> {
        if self.lost.contains(&at) {
            return Run::lost(want.min(self.lost.end - at), Why::Unreadable, at);
        }
        let want = if at < self.lost.start { want.min(self.lost.start - at) } else { want };
        if at >= self.device.len() {
            return Run::sound(want, Place::Hole);
        }
        Run::sound(want.min(self.device.len() - at), Place::Own)
    }

    fn fetch(&self, at: u64, buf: &mut [u8]) -> Result<Trust, Fault> {
        let asked = self.asked.fetch_add(1, Ordering::Relaxed);
        assert!(asked < self.most, "asked {asked} times");
        buf.copy_from_slice(&self.device.read(at, buf.len()));
        Ok(Trust::Sound)
    }
}

fn spec(version: Version) -> VmfsSpec {
    VmfsSpec::new(version, LEN)
}

fn datastore(meter: Meter) -> Arc<dyn Tree> {
    tree(open(Arc::new(meter)).join_alone().unwrap())
}

fn volume(device: Device) -> Volume {
    let bytes: Bytes = Arc::new(Meter::new(device, u64::MAX));
    let logical = Arc::new(Logical::new(Lvm::load(&bytes).unwrap(), []));
    let lv: Bytes = Arc::<Logical>::clone(&logical);
    Volume::replayed(Header::load(&*lv).unwrap(), &lv, Some(logical), &Pool::new(32 << 20).share())
}

fn audit(tree: &dyn Tree) -> Vec<Finding> {
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

fn check(tree: &dyn Tree) -> Vec<Finding> {
    let mut found = Vec::new();
    tree.check(&mut |finding| found.push(finding));
    found
}

/// System files that claim to be 64 TiB long, with as many resources, of which the device has what it had.
#[test]
fn claims_of_system_files_cost_nothing() {
    for version in [Version::Five, Version::Six] {
        let six = version == Version::Six;
        let mut store = Vmfs::new(spec(version));
        store.file("a", Content::patterned(3 * MIB, 1), &Layout::default());
        let mut device = store.finish().remove(0);
        let clean = volume(device.clone());
        let header = &clean.space.header;
        let pools = [&clean.pools.pb2, &clean.pools.pbc, &clean.pools.sbc, &clean.fdc, &clean.fbb, &clean.jbc];
        for resource in pools.into_iter().flatten() {
            let fd = resource.file.descriptor();
            let metadata = BASE + fd.at + header.md;
            device.put_u64(metadata + 0x14, 64 << 40);
            let raw = BASE + resource.position(0).unwrap();
            device.put_u32(raw + 0x14, u32::MAX);
            device.put_u32(raw + 0x1C, 0xFF);
            device.put_u32(raw + 0x18, u32::MAX);
        }
        let tree = datastore(Meter::new(device, 3_000_000));
        assert!(!audit(&*tree).is_empty());
        let _ = check(&*tree);
        tree.finds(&mut |_| ControlFlow::Continue(()));
        assert!(tree.search().is_some(), "six {six}");
    }
}

/// Pointers of a file that all lead to one pointer block.
#[test]
fn a_pointer_block_is_visited_once() {
    for version in [Version::Five, Version::Six] {
        let mut store = Vmfs::new(spec(version));
        store.file("big", Content::patterned(40 * MIB, 3), &Layout::default().addressing(Addressing::Double));
        let at = store.locate("big");
        let mut device = store.finish().remove(0);
        let fd = volume(device.clone()).descriptor(FdAddress(at.fd)).unwrap();
        let width = if version == Version::Six { 8 } else { 4 };
        let first = device.read(BASE + fd.pointers_at, width);
        for slot in 1..(fd.pointers.len() / width) as u64 {
            device.write(BASE + fd.pointers_at + slot * width as u64, &first);
        }
        // And all of the first block, to one below it.
        let upper = at.pointer_blocks.iter().find(|table| table.level == 1).unwrap();
        let below = device.read(BASE + upper.lv, width);
        for slot in 1..upper.len / width as u64 {
            device.write(BASE + upper.lv + slot * width as u64, &below);
        }
        let volume = volume(device);
        let fd = volume.descriptor(FdAddress(at.fd)).unwrap();
        let mut visited = 0;
        let survey = volume.file(fd).pointers(&mut |_| visited += 1, &mut |_, _| {});
        assert!(survey.endless);
        assert_eq!((visited, survey.blocks), (2, 40), "{version:?}: the two that there are, once each");
    }
}

/// Every slot of a heartbeat names the same journal.
#[test]
fn a_journal_is_read_once() {
    for version in [Version::Five, Version::Six] {
        let mut store = Vmfs::new(VmfsSpec { crashed: true, ..spec(version) });
        store.file("a", Content::patterned(9000, 1), &Layout::default());
        let device = store.finish().remove(0);
        let clean = volume(device.clone());
        let area = clean.space.header.heartbeats();
        let used = clean.heartbeats.in_use().next().unwrap().clone();
        let raw = device.read(BASE + used.at, 512);
        let mut hostile = device;
        for slot in 0..200 {
            let at = area.start + slot * clean.space.header.md;
            let mut beat = raw.clone();
            beat[4..12].copy_from_slice(&at.to_le_bytes());
            hostile.write(BASE + at, &beat);
        }
        let volume = volume(hostile);
        assert!(volume.heartbeats.in_use().count() >= 200);
        let named: Vec<u64> = journal::journals(&volume).iter().map(|journal| journal.at).collect();
        assert_eq!(named.iter().filter(|at| **at == used.journal_at).count(), 1, "{version:?}: {named:x?}");
    }
}

/// Records of VMFS6 of which each claims the same bytes again.
#[test]
fn bytes_of_a_journal_are_of_one_record() {
    let mut store = Vmfs::new(VmfsSpec { crashed: true, ..spec(Version::Six) });
    store.file("a", Content::patterned(9000, 1), &Layout::default());
    let mut device = store.finish().remove(0);
    let at = volume(device.clone()).heartbeats.in_use().next().unwrap().journal_at;
    let (target, mut page) = (0x80_0000_u64, vec![0_u8; 4096]);
    // Sixty pieces of the second half of the page, which every record has.
    let len = 0x800_u32;
    for start in (0x20..0x400_usize).step_by(0x30) {
        let mut head = vec![0; 0x30];
        head[..4].copy_from_slice(&(start as u32).to_le_bytes());
        head[4..8].copy_from_slice(&(start as u32 + 0x30).to_le_bytes());
        head[8..10].copy_from_slice(&0x104_u16.to_le_bytes());
        head[0xC..0x14].copy_from_slice(&target.to_le_bytes());
        head[0x14..0x18].copy_from_slice(&len.to_le_bytes());
        head[0x22..0x24].copy_from_slice(&1_u16.to_le_bytes());
        head[0x28..0x2C].copy_from_slice(&0x800_u32.to_le_bytes());
        head[0x2C..0x30].copy_from_slice(&len.to_le_bytes());
        page[start..start + 0x30].copy_from_slice(&head);
    }
    page[..4].copy_from_slice(b"TO6J");
    page[4..6].copy_from_slice(&1_u16.to_le_bytes());
    page[0x18] = 7;
    let mut blank = vec![0; 2 << 20];
    blank[0x1000..0x2000].copy_from_slice(&page);
    device.write(BASE + at, &blank);
    let journals = journal::journals(&volume(device));
    let pieces: Vec<_> =
        journals.iter().flat_map(|journal| &journal.records).flat_map(|record| &record.pieces).collect();
    assert_eq!(pieces.len(), 1, "{pieces:x?}");
}

/// A descriptor that is lost does not come back from a transaction that was not finished.
#[test]
fn what_is_torn_makes_no_descriptor() {
    let mut store = Vmfs::new(VmfsSpec { crashed: true, ..spec(Version::Six) });
    store.file("old", Content::patterned(3000, 1), &Layout::default());
    let at = store.locate("old");
    let change = |store: &mut Vmfs| {
        store.set_time(1_800_000_000);
        store.set_mode("old", 0o640);
        for n in 0..20 {
            store.file(&format!("new{n}"), Content::patterned(3000, 2), &Layout::default());
        }
    };
    for (how, comes) in [(Crash::Pending, true), (Crash::Torn, false)] {
        let crashed = store.clone().crash(how, change);
        let mut device = crashed.devices[0].clone();
        // All that the host logged before goes, so that only the last transaction is left to ask.
        let fd = BASE + at.fd_lv;
        device.zero(fd..fd + at.fd_len);
        let volume = volume(device);
        let has = |standing: &dyn Fn(Standing) -> bool| {
            let journals = journal::journals(&volume);
            let mut records = journals.iter().flat_map(|journal| journal.records.iter());
            records.any(|record| record.target == at.fd_lv + 4096 && standing(record.standing))
        };
        assert_eq!(has(&|standing| standing == Standing::Torn), !comes, "{how:?}");
        let found = volume.descriptor(FdAddress(at.fd));
        // What was finished is laid over the volume, and then needs no lock.
        let logged = |fd: &&Descriptor| matches!(fd.origin, Origin::Journal { .. } | Origin::Unlocked);
        let mode = found.as_ref().ok().filter(logged).map(|fd| fd.mode & 0o777);
        assert_eq!(mode == Some(0o640), comes, "{how:?}: {found:?}");
    }
}

/// Each of a hundred locks is the same contradiction for whoever reads the list.
#[test]
fn many_alike_are_told_as_one() {
    let mut store = Vmfs::new(spec(Version::Six));
    for n in 0..100 {
        let path = format!("f{n}");
        store.file(&path, Content::bytes("x"), &Layout::default());
        let lock = Lock { mode: 1, owner: *b"UUID OF A HOST..", slot: 9, address: "198.51.100.7".into() };
        store.lock(&path, &lock);
    }
    let tree = datastore(Meter::new(store.finish().remove(0), u64::MAX));
    let locks: Vec<Finding> = check(&*tree).into_iter().filter(|finding| finding.code == "VMFS-LOCK").collect();
    assert_eq!(locks.len(), 65);
    assert_eq!(locks.last().map(|finding| finding.text.as_str()), Some("36 more of this kind"));
}

/// A folder of which a whole part can't be read, entry by entry.
#[test]
fn the_gaps_of_one_folder_are_told_as_one() {
    let mut store = Vmfs::new(spec(Version::Five));
    store.mkdir("d");
    for n in 0..300 {
        store.file(&format!("d/file{n}"), Content::bytes("x"), &Layout::default());
    }
    let at = store.locate("d").blocks[0].lv;
    let mut meter = Meter::new(store.finish().remove(0), u64::MAX);
    meter.lost = BASE + at + 4096..BASE + at + 4096 + 4096;
    let tree = datastore(meter);
    assert!(tree.lookup(tree.root(), b"d").unwrap().is_some() && find(&*tree, "d/file0").0 != 0);
    let gaps: Vec<Finding> = audit(&*tree).into_iter().filter(|finding| finding.code == "VMFS-DIR-GAP").collect();
    assert_eq!(gaps.len(), 1, "{gaps:?}");
    assert!(gaps[0].text.ends_with("30 entries can't be had"), "{gaps:?}");
}

/// A real image with holes where it has nothing, that counts what is asked of it.
#[derive(Debug)]
struct Real {
    image: Sparse,
    asked: AtomicU64,
    most: u64,
}

impl Layer for Real {
    fn len(&self) -> u64 {
        self.image.len
    }

    fn run(&self, at: u64, want: u64) -> Run<'_> {
        let chunk = at / CHUNK as u64;
        let rest = want.min((chunk + 1) * CHUNK as u64 - at);
        if self.image.chunks.contains_key(&chunk) {
            return Run::sound(rest, Place::Own);
        }
        let next = self.image.chunks.range(chunk..).next().map_or(u64::MAX, |(next, _)| next * CHUNK as u64);
        Run::sound(want.min(next - at), Place::Hole)
    }

    fn fetch(&self, at: u64, buf: &mut [u8]) -> Result<Trust, Fault> {
        let asked = self.asked.fetch_add(1, Ordering::Relaxed);
        assert!(asked < self.most, "asked {asked} times");
        self.image.fetch(at, buf)
    }
}

/// Everything that can be asked of a datastore, a deep search of what is there included.
fn ask_all(tree: &dyn Tree) {
    let _ = audit(tree);
    let _ = check(tree);
    let mut nodes = Vec::new();
    tree.finds(&mut |find| {
        nodes.push(find.entry.id);
        if nodes.len() < 200 { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    });
    tree.left_out(&mut |_| {});
    for id in nodes {
        if let Ok(layer) = tree.open(id) {
            let _ = walk(&*layer, 0..layer.len()).take(2000).count();
        }
    }
    let search = tree.search().unwrap();
    let mut clues = Vec::new();
    for range in &search.free {
        for run in walk(&*search.layer, range.clone()).filter(|run| !matches!(run.place, Place::Hole)) {
            let (bytes, _) = read_vec(&*search.layer, run.at, run.len.min(MIB) as usize);
            let window = Window { at: run.at, bytes: &bytes, own: bytes.len() };
            (search.look)(&window, &mut |clue| clues.push(clue));
        }
    }
    clues.sort_unstable();
    (search.build)(&clues).finds(&mut |_| ControlFlow::Continue(()));
}

/// Fields of the metadata of real volumes, set to what no writer writes. `VDRECOVER_MUTATIONS=N` asks for more.
#[test]
fn mutated_real_volumes_cost_what_they_are() {
    let count = std::env::var("VDRECOVER_MUTATIONS").ok().and_then(|n| n.parse().ok()).unwrap_or(6_u64);
    for name in ["vmfs5", "vmfs6"] {
        let Some(image) = image(name) else { return };
        let mut sectors = Vec::new();
        for (chunk, bytes) in &image.chunks {
            for (i, sector) in bytes.chunks(512).enumerate() {
                let word = u32::from_le_bytes(sector[..4].try_into().unwrap());
                let marks = [0x7266_6D64, 0x7263_6D64, 0x6664_6D64, 0xC001_D00D, 0x2FAB_F15E];
                let known = (0x10C0_0001..=0x10C0_0009).contains(&word) || marks.contains(&word);
                if known || sector.windows(4).any(|w| w == b"dmfr" || w == b"dmdf") {
                    sectors.push(chunk * CHUNK as u64 + i as u64 * 512);
                }
            }
        }
        // What a mutation hits first: the few that all others hang on.
        let mut state: u64 = 0x9E37_79B9_7F4A_7C15;
        let mut next = |below: u64| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state % below
        };
        for number in 0..count {
            let mut hostile = Sparse::clone(&image);
            let mut about = Vec::new();
            for _ in 0..=next(12) {
                let few = if next(2) == 0 { sectors.len().min(200) } else { sectors.len() } as u64;
                let at = sectors[next(few) as usize] + [0, 512, 4096][next(3) as usize] + next(128) * 4;
                let value = [0, 1, u64::MAX, 1 << 40, 0x7FFF_FFFF, next(1 << 40)][next(6) as usize];
                hostile.write(at, &value.to_le_bytes()[..[4, 8][next(2) as usize]]);
                about.push((at, value));
            }
            let real: Bytes = Arc::new(Real { image: hostile, asked: AtomicU64::new(0), most: 4_000_000 });
            println!("{name} {number}: {about:x?}");
            let opened = (vdrecover_formats::vmfs::FORMAT.open)(&real, &Pool::new(32 << 20).share());
            let joined = opened.ok().and_then(|opened| opened.join_alone().ok());
            if let Some(vdrecover_formats::Content::Tree(tree)) = joined {
                ask_all(&*tree);
            }
        }
    }
}
