//! Shapes of layers that later formats need, under the laws: what the core can't carry shows here first.
#![allow(
    clippy::unwrap_used,
    clippy::arithmetic_side_effects,
    clippy::as_conversions,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    missing_docs,
    reason = "tests"
)]

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use vdrecover_formats::adapt::{Concat, Copied, Damaged, Memory, Patch, Window};
use vdrecover_formats::laws::{Effort, check_laws};
use vdrecover_formats::{Bytes, Fault, Layer, Memo, Place, Pool, Run, Tag, Trust, Unit, Why, read, walk};

fn noise(len: usize, seed: u32) -> Vec<u8> {
    (0..len as u32).map(|i| ((i ^ seed).wrapping_mul(2_654_435_761) >> 13) as u8).collect()
}

fn content(layer: &dyn Layer) -> (Vec<u8>, vdrecover_formats::Seen) {
    let mut bytes = vec![1; layer.len() as usize];
    let seen = read(layer, 0, &mut bytes);
    (bytes, seen)
}

fn lawful(layer: &dyn Layer) {
    check_laws(layer, Effort::default()).unwrap();
}

/// Bytes that lie in a gap need not be right, all others must.
fn assert_right_but_for_gaps(layer: &dyn Layer, want: &[u8]) -> u64 {
    let (bytes, seen) = content(layer);
    let lost = |at: u64| seen.gaps.iter().any(|gap| gap.range.contains(&at));
    for (at, (got, want)) in bytes.iter().zip(want).enumerate() {
        assert!(got == want || lost(at as u64), "wrong byte at {at:#x} that no gap explains");
    }
    seen.gaps.iter().map(|gap| gap.range.end - gap.range.start).sum()
}

/// A device with a tag and one range that faults, in the middle of whatever is asked.
#[derive(Debug)]
struct Device {
    bytes: Vec<u8>,
    bad: Range<u64>,
    tag: u32,
}

impl Layer for Device {
    fn len(&self) -> u64 {
        self.bytes.len() as u64
    }
    fn run(&self, _: u64, want: u64) -> Run<'_> {
        Run::sound(want, Place::Own)
    }
    fn fetch(&self, at: u64, buf: &mut [u8]) -> Result<Trust, Fault> {
        let end = at + buf.len() as u64;
        let overlap = self.bad.start.max(at)..self.bad.end.min(end);
        let good = if overlap.is_empty() { buf.len() } else { (overlap.start - at) as usize };
        buf[..good].copy_from_slice(&self.bytes[at as usize..][..good]);
        if overlap.is_empty() {
            return Ok(Trust::Sound);
        }
        let lost = (overlap.end - overlap.start) as usize;
        Err(Fault { lost, ..Fault::after(good, Why::Unreadable, overlap.start) })
    }
    fn tag(&self) -> Option<Tag> {
        Some(Tag(self.tag))
    }
}

/// A row of a degraded RAID 5: the missing member is made of the others, a unit of 4 KiB at a time.
#[derive(Debug)]
struct Raid5 {
    members: Vec<Option<Bytes>>,
    survivors: Survivors,
    chunk: u64,
    memo: Memo,
}

const UNIT: u64 = 4096;

/// The survivors, interleaved: unit `k` of the missing member is the packed unit `k` here.
#[derive(Debug)]
struct Survivors(Vec<Bytes>);

impl Layer for Survivors {
    fn len(&self) -> u64 {
        self.0[0].len() * self.0.len() as u64
    }
    fn run(&self, at: u64, want: u64) -> Run<'_> {
        let (unit, count) = (at / UNIT, self.0.len() as u64);
        let layer = &*self.0[(unit % count) as usize];
        let offset = unit / count * UNIT + at % UNIT;
        Run::sound(want.min(UNIT - at % UNIT), Place::Below { layer, offset })
    }
}

impl Layer for Raid5 {
    fn len(&self) -> u64 {
        self.survivors.0[0].len() * (self.members.len() as u64 - 1)
    }
    fn run(&self, at: u64, want: u64) -> Run<'_> {
        let count = self.members.len() as u64;
        let (chunk, inside) = (at / self.chunk, at % self.chunk);
        let row = chunk / (count - 1);
        let parity = count - 1 - row % count;
        let member = ((parity + 1 + chunk % (count - 1)) % count) as usize;
        let offset = row * self.chunk + inside;
        let rest = want.min(self.chunk - inside);
        if let Some(layer) = &self.members[member] {
            return Run::sound(rest, Place::Below { layer: &**layer, offset });
        }
        let unit = Unit {
            from: &self.survivors,
            packed_at: offset / UNIT * UNIT * (count - 1),
            packed_len: (UNIT * (count - 1)) as u32,
            start: at - offset % UNIT,
            len: UNIT as u32,
            memo: &self.memo,
        };
        Run::sound(rest.min(UNIT - offset % UNIT), Place::Coded(unit))
    }
    fn decode(&self, unit: &Unit<'_>, packed: &[u8], out: &mut [u8]) -> Result<Trust, Fault> {
        if packed.len() < unit.packed_len as usize {
            return Err(Fault::all(Why::Undecodable, unit.packed_at));
        }
        out.fill(0);
        for part in packed.chunks(UNIT as usize) {
            out.iter_mut().zip(part).for_each(|(out, byte)| *out ^= byte);
        }
        Ok(Trust::Sound)
    }
}

#[test]
fn a_degraded_raid_5_loses_the_unit_that_a_bad_sector_is_part_of() {
    let (count, rows, chunk) = (4_u64, 8, 16_384);
    let data = noise((rows * chunk * (count - 1)) as usize, 7);
    let mut disks = vec![vec![0; (rows * chunk) as usize]; count as usize];
    for (number, bytes) in data.chunks(chunk as usize).enumerate() {
        let row = number as u64 / (count - 1);
        let parity = (count - 1 - row % count) as usize;
        let member = (parity + 1 + number % (count as usize - 1)) % count as usize;
        let at = (row * chunk) as usize;
        disks[member][at..at + bytes.len()].copy_from_slice(bytes);
        for (i, byte) in bytes.iter().enumerate() {
            disks[parity][at + i] ^= byte;
        }
    }
    for (missing, bad) in [(1, 0..0), (3, 0..0), (0, 4096..4608)] {
        let members: Vec<Option<Bytes>> = disks
            .iter()
            .enumerate()
            .map(|(i, disk)| {
                let bad = if i == 2 { bad.clone() } else { 0..0 };
                (i != missing).then(|| Arc::new(Device { bytes: disk.clone(), bad, tag: i as u32 }) as Bytes)
            })
            .collect();
        let survivors = Survivors(members.iter().flatten().cloned().collect());
        let raid = Raid5 { members, survivors, chunk, memo: Pool::new(1 << 20).share() };
        lawful(&raid);
        let lost = assert_right_but_for_gaps(&raid, &data);
        assert_eq!(
            lost,
            if bad.is_empty() { 0 } else { 512 + UNIT },
            "its own sector, and a unit of the missing member"
        );
    }
}

#[test]
fn a_log_replay_is_a_remap_and_is_less_than_sound() {
    let base: Bytes = Arc::new(Device { bytes: vec![1; 65_536], bad: 0..0, tag: 0 });
    let log: Bytes = Arc::new(Device { bytes: vec![2; 65_536], bad: 0..0, tag: 1 });
    // A VHDX log sector of 4 KiB comes from three places.
    let copies = [(8192, 8, 100), (8200, 4084, 4096), (12_284, 4, 40)];
    let copies = copies.map(|(at, len, offset)| Copied { at, len, from: log.clone(), offset });
    let patched = Patch::new(base.clone(), copies.to_vec(), Trust::Inferred).unwrap();
    lawful(&patched);
    let mut bytes = [0; 4100];
    let seen = read(&patched, 8190, &mut bytes);
    assert_eq!((bytes[1], bytes[2], bytes[4097], bytes[4098], seen.trust), (1, 2, 2, 1, Trust::Inferred));
    let mut cursor = walk(&patched, 8200..8201);
    cursor.next();
    assert_eq!(cursor.path().last().unwrap().layer.tag(), Some(Tag(1)), "the byte is traced to the log");
    let overlap = [(0, 10, 0), (5, 10, 0)].map(|(at, len, offset)| Copied { at, len, from: log.clone(), offset });
    assert!(Patch::new(base, overlap.to_vec(), Trust::Inferred).is_none());
}

/// A copy-on-write child: every `step`-th grain of 512 bytes is its own.
#[derive(Debug)]
struct Child {
    parent: Bytes,
    own: Bytes,
    step: u64,
    asked: Arc<AtomicUsize>,
}

impl Layer for Child {
    fn len(&self) -> u64 {
        self.parent.len()
    }
    fn run(&self, at: u64, want: u64) -> Run<'_> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        let grain = at / 512;
        let is_own = |grain: u64| grain.is_multiple_of(self.step);
        let end = (grain + 1..).take_while(|next| is_own(*next) == is_own(grain)).take(64).last().unwrap_or(grain);
        let len = want.min((end + 1) * 512 - at);
        let layer = if is_own(grain) { &*self.own } else { &*self.parent };
        Run::sound(len, Place::Below { layer, offset: at })
    }
}

#[test]
fn a_chain_64_deep_is_walked_in_time_that_its_runs_cost() {
    let len = 1 << 20;
    let asked = Arc::new(AtomicUsize::new(0));
    let mut want = noise(len, 0);
    let mut top: Bytes = Arc::new(Memory::new(want.clone()));
    for level in 1..=64_u64 {
        let own = noise(len, level as u32);
        let step = level + 1;
        for (grain, bytes) in want.chunks_mut(512).enumerate().filter(|(grain, _)| (*grain as u64).is_multiple_of(step))
        {
            bytes.copy_from_slice(&own[grain * 512..][..512]);
        }
        let own: Bytes = Arc::new(Memory::new(own));
        top = Arc::new(Child { parent: top, own, step, asked: Arc::clone(&asked) });
    }
    assert_eq!(content(&*top).0, want);
    // A cursor that restarted at the top for each of the 2,048 grains would ask some 60,000 times more than
    // this: each level is asked once for each of its own runs and of the runs that lie above it.
    let questions = asked.load(Ordering::Relaxed);
    assert!(questions < 64 * 2048, "{questions} questions");
    check_laws(&*top, Effort { runs: 100, bytes: 256 << 10 }).unwrap();
}

/// Units that a trivial code makes: every byte inverted, behind a byte that must be there.
#[derive(Debug)]
struct Inverted {
    packed: Bytes,
    units: u64,
    memo: Memo,
    decoded: AtomicUsize,
}

impl Layer for Inverted {
    fn len(&self) -> u64 {
        self.units * 1000
    }
    fn run(&self, at: u64, want: u64) -> Run<'_> {
        let number = at / 1000;
        let unit = Unit {
            from: &*self.packed,
            packed_at: number * 1001,
            packed_len: 1001,
            start: number * 1000,
            len: 1000,
            memo: &self.memo,
        };
        Run::sound(want.min(1000 - at % 1000), Place::Coded(unit))
    }
    fn decode(&self, unit: &Unit<'_>, packed: &[u8], out: &mut [u8]) -> Result<Trust, Fault> {
        self.decoded.fetch_add(1, Ordering::Relaxed);
        let Some((0x5a, body)) = packed.split_first().map(|(mark, body)| (*mark, body)) else {
            return Err(Fault::all(Why::Undecodable, unit.packed_at));
        };
        out.iter_mut().zip(body).for_each(|(out, byte)| *out = !byte);
        if body.len() < out.len() {
            Err(Fault::after(body.len(), Why::Undecodable, unit.packed_at))
        } else {
            Ok(Trust::Sound)
        }
    }
}

#[test]
fn a_damaged_unit_gives_its_prefix_and_small_reads_decode_once() {
    let want = noise(16_000, 3);
    let mut packed: Vec<u8> =
        want.chunks(1000).flat_map(|unit| std::iter::once(0x5a).chain(unit.iter().map(|byte| !byte))).collect();
    packed[3 * 1001] = 0;
    let device: Bytes = Arc::new(Device { bytes: packed, bad: 5500..5510, tag: 0 });
    let units = Inverted { packed: device, units: 16, memo: Pool::new(1 << 20).share(), decoded: AtomicUsize::new(0) };
    lawful(&units);
    // Unit 3 has lost its mark; unit 5 is read up to the bad bytes: 5500 - 5 * 1001 - 1 of it are good.
    assert_eq!(assert_right_but_for_gaps(&units, &want), 1000 + 1000 - 494);
    let (_, seen) = content(&units);
    assert_eq!(seen.gaps.iter().map(|gap| gap.loss.why).collect::<Vec<_>>(), [Why::Undecodable, Why::Unreadable]);
    let fresh = Inverted { memo: Pool::new(1 << 20).share(), decoded: AtomicUsize::new(0), ..units };
    for at in (0..16_000).step_by(10) {
        read(&fresh, at, &mut [0; 10]);
    }
    assert_eq!(fresh.decoded.load(Ordering::Relaxed), 16);
}

#[test]
fn a_layer_that_is_its_own_content_ends() {
    #[derive(Debug)]
    struct Ouroboros;
    impl Layer for Ouroboros {
        fn len(&self) -> u64 {
            1 << 60
        }
        fn run(&self, at: u64, want: u64) -> Run<'_> {
            Run::sound(want, Place::Below { layer: self, offset: at })
        }
    }
    let seen = read(&Ouroboros, 12, &mut [0; 100]);
    assert_eq!((seen.gaps.len(), seen.gaps[0].loss.why), (1, Why::TooDeep));
}

#[test]
fn adapters_keep_the_laws_and_say_what_is_missing() {
    let base: Bytes = Arc::new(Memory::new(noise(100_000, 9)));
    let cut: Bytes = Arc::new(Window::new(base.clone(), 90_000, 20_000));
    lawful(&*cut);
    let (_, seen) = content(&*cut);
    assert_eq!((seen.gaps[0].range.clone(), seen.gaps[0].loss.why), (10_000..20_000, Why::Truncated));
    let damaged: Bytes = Arc::new(Damaged::new(base.clone(), vec![500..600, 10..20, 550..700, 9..9], Why::Overwritten));
    lawful(&*damaged);
    let gaps: Vec<_> = content(&*damaged).1.gaps.into_iter().map(|gap| gap.range).collect();
    assert_eq!(gaps, [10..20, 500..700]);
    let joined = Concat::new([cut, damaged, Arc::new(Memory::new(Vec::new())), base]).unwrap();
    lawful(&joined);
    assert_eq!(joined.len(), 220_000);
}
