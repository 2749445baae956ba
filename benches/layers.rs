//! What the core costs, in one process: `cargo bench --bench layers [-- IMAGE::PATH...]`.
//!
//! Each line of the output has a name, the median of five runs in seconds after one to warm up, and how many
//! bytes or things that was, separated by tabs. Of an image that is named, the whole tree is listed and the file
//! read. `scripts/bench-peers` does that and puts the numbers beside those of other programs.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::cast_possible_truncation,
    missing_docs,
    reason = "a bench may stop"
)]

use flate2::{Compression, write::DeflateEncoder};
use std::ffi::OsStr;
use std::hint::black_box;
use std::io::Write as _;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;
use vdrecover::case::{Case, Options};
use vdrecover::health;
use vdrecover::locator::Locator;
use vdrecover::progress::Progress;
use vdrecover_formats::adapt::Memory;
use vdrecover_formats::codec::{Cut, inflate};
use vdrecover_formats::{
    Bytes, Fault, Kind, Layer, Memo, NodeId, Place, Pool, Run, Tree, Trust, Unit, Why, read, walk,
};

const MIB: u64 = 1 << 20;
const GRAIN: u64 = 512;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    // Without it, this is a run of the tests.
    if !args.iter().any(|arg| arg == "--bench") {
        return;
    }
    for depth in [1, 8, 30] {
        chain(depth);
    }
    units();
    for locator in args.iter().filter(|arg| !arg.starts_with('-')) {
        image(&Locator::parse(OsStr::new(locator)));
    }
}

/// Prints the median of five runs after one to warm up. `work` gives how many things it did.
fn measure(name: &str, work: impl Fn() -> u64) {
    let mut count = work();
    let mut times: Vec<f64> = (0..5)
        .map(|_| {
            let start = Instant::now();
            count = black_box(work());
            start.elapsed().as_secs_f64()
        })
        .collect();
    times.sort_by(f64::total_cmp);
    println!("{name}\t{:.6}\t{count}", times[2]);
}

/// Pseudo-random, the same on every run.
fn mix(n: u64) -> u64 {
    let mut x = n.wrapping_add(0x9E37_79B9_7F4A_7C15).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x ^= x >> 29;
    x.wrapping_mul(0x94D0_49BB_1331_11EB) >> 32
}

/// A copy-on-write child with grains of 512 bytes. A table block tells of 64 of them.
#[derive(Debug)]
struct Child {
    parent: Bytes,
    own: Bytes,
    level: u64,
    levels: u64,
}

impl Child {
    /// Each grain is on one of the levels, chosen at random.
    fn has(&self, grain: u64) -> bool {
        mix(grain) % (self.levels + 1) == self.level
    }
}

impl Layer for Child {
    fn len(&self) -> u64 {
        self.parent.len()
    }

    fn run(&self, at: u64, want: u64) -> Run<'_> {
        let first = at / GRAIN;
        let has = self.has(first);
        let end = (first + 1..=first | 63).find(|grain| self.has(*grain) != has).unwrap_or((first | 63) + 1);
        let layer = if has { &*self.own } else { &*self.parent };
        Run::sound(want.min(end * GRAIN - at), Place::Below { layer, offset: at })
    }
}

fn read_all(layer: &dyn Layer, step: u64) -> u64 {
    let mut buf = vec![0; step as usize];
    let mut at = 0;
    while at < layer.len() {
        let len = step.min(layer.len() - at);
        let seen = read(layer, at, &mut buf[..len as usize]);
        assert!(seen.is_whole());
        at += len;
    }
    at
}

fn chain(levels: u64) {
    let len = 16 * MIB;
    let data: Bytes = Arc::new(Memory::new(vec![0x42; len as usize]));
    let mut top = Arc::clone(&data);
    for level in 1..=levels {
        top = Arc::new(Child { parent: top, own: Arc::clone(&data), level, levels });
    }
    measure(&format!("chain-{levels}-walk"), || walk(&*top, 0..len).map(black_box).count() as u64);
    measure(&format!("chain-{levels}-read"), || read_all(&*top, 256 << 10));
}

/// Deflate units of 64 KiB.
#[derive(Debug)]
struct Packed {
    bytes: Bytes,
    places: Vec<(u64, u32)>,
    memo: Memo,
}

const UNIT: u64 = 64 << 10;

impl Layer for Packed {
    fn len(&self) -> u64 {
        self.places.len() as u64 * UNIT
    }

    fn run(&self, at: u64, want: u64) -> Run<'_> {
        let (packed_at, packed_len) = self.places[(at / UNIT) as usize];
        let unit = Unit {
            from: &*self.bytes,
            packed_at,
            packed_len,
            start: at / UNIT * UNIT,
            len: UNIT as u32,
            memo: &self.memo,
        };
        Run::sound(want.min(UNIT - at % UNIT), Place::Coded(unit))
    }

    fn decode(&self, unit: &Unit<'_>, packed: &[u8], out: &mut [u8]) -> Result<Trust, Fault> {
        inflate(packed, out).map_err(|Cut(good)| Fault::after(good, Why::Undecodable, unit.packed_at))
    }
}

fn units() {
    let len = 64 * MIB;
    // Words of a small vocabulary: deflate takes it to about a third.
    let plain: Vec<u8> =
        (0..len / 8).flat_map(|n| (mix(n) % 50_000).wrapping_mul(0x0101_0001_0001).to_le_bytes()).collect();
    let (mut packed, mut places) = (Vec::new(), Vec::new());
    for unit in plain.chunks(UNIT as usize) {
        let mut encoder = DeflateEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(unit).unwrap();
        let unit = encoder.finish().unwrap();
        places.push((packed.len() as u64, unit.len() as u32));
        packed.extend(unit);
    }
    let packed: Bytes = Arc::new(Memory::new(packed));
    let layer = |cache: u64| Packed {
        bytes: Arc::clone(&packed),
        places: places.clone(),
        memo: Pool::new(cache * MIB).share(),
    };
    let whole = layer(96);
    measure("units-whole", || read_all(&whole, 4 * UNIT));
    measure("units-4k-in-order", || read_all(&layer(96), 4096));
    // A cache that holds all of it, and one that holds an eighth.
    for cache in [96, 8] {
        let layer = layer(cache);
        measure(&format!("units-4k-random-cache-{cache}"), || {
            let mut buf = [0; 4096];
            for n in 0..16_384 {
                let at = mix(n) % (len / 4096) * 4096;
                assert!(read(&layer, at, &mut buf).is_whole());
            }
            16_384 * 4096
        });
    }
}

fn open(image: &Path) -> Case {
    let options = Options { inputs: vec![image.to_owned()], ..Options::default() };
    Case::open(&options, &Progress::silent()).unwrap()
}

/// Lists all folders with the facts and the health of each entry, as `ls -lR` does.
fn list(case: &Case) -> u64 {
    let mut todo: Vec<NodeId> = vec![case.root()];
    let mut count = 0;
    while let Some(dir) = todo.pop() {
        case.list(dir, 0, &mut |entry| {
            let entry = entry.unwrap();
            let node = case.node(entry.id).unwrap();
            if entry.kind == Kind::Dir {
                todo.push(entry.id);
            } else if entry.kind != Kind::Mapping {
                black_box(health::of(&*case.open(entry.id).unwrap(), health::LISTING));
            }
            black_box(node);
            count += 1;
            ControlFlow::Continue(())
        })
        .unwrap();
    }
    count
}

fn image(locator: &Locator) {
    let shown = locator.image.file_stem().unwrap_or_default().to_string_lossy();
    measure(&format!("{shown}-open"), || open(&locator.image).items.len() as u64);
    measure(&format!("{shown}-open-and-list"), || list(&open(&locator.image)));
    let case = open(&locator.image);
    measure(&format!("{shown}-list"), || list(&case));
    let Some(path) = &locator.path else { return };
    let found = case.find(path).unwrap().expect("the path is in the image");
    let bytes = case.open(found.id).unwrap();
    measure(&format!("{shown}-read"), || read_all(&*bytes, 256 << 10));
}
