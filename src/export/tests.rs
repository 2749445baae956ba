//! Exports of layers with every kind of place in them, from one to many threads, stopped and gone on with.
#![allow(clippy::unwrap_used, clippy::panic, clippy::single_range_in_vec_init, reason = "tests")]

use super::*;
use crate::digest::{hex, sha256};
use std::fs;
use std::io::{self, Write as _};
use std::ops::Range;
use std::os::unix::fs::MetadataExt as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use vdrecover_formats::adapt::{Blank, Concat, Damaged, Memory, Trusted};
use vdrecover_formats::{Bytes, Fault, Memo, Place, Pool, Run, Unit, Why, read_vec};

/// Bytes that look random, with some blocks of zeros between.
fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut x = seed | 1;
    let mut bytes = vec![0; len];
    for (i, block) in bytes.chunks_mut(4096).enumerate() {
        if i % 7 == 3 {
            continue;
        }
        for eight in block.chunks_mut(8) {
            x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let len = eight.len();
            eight.copy_from_slice(&x.to_le_bytes()[..len]);
        }
    }
    bytes
}

/// Units of 64 KiB that are packed by exclusive or, some of them broken.
#[derive(Debug)]
struct Coded {
    packed: Bytes,
    memo: Memo,
}

const UNIT: u64 = 65_536;

impl Layer for Coded {
    fn len(&self) -> u64 {
        self.packed.len()
    }

    fn run(&self, at: u64, want: u64) -> Run<'_> {
        let start = at / UNIT * UNIT;
        let len = u32::try_from(UNIT.min(self.len() - start)).unwrap();
        let unit = Unit { from: &*self.packed, packed_at: start, packed_len: len, start, len, memo: &self.memo };
        Run::sound(want.min(start + u64::from(len) - at), Place::Coded(unit))
    }

    fn decode(&self, unit: &Unit<'_>, packed: &[u8], out: &mut [u8]) -> Result<Trust, Fault> {
        for (to, from) in out.iter_mut().zip(packed) {
            *to = from ^ 0x5a;
        }
        if packed.len() < out.len() {
            return Err(Fault::after(packed.len(), Why::Undecodable, unit.packed_at));
        }
        if unit.start / UNIT % 11 == 5 {
            Err(Fault::after(1000, Why::Undecodable, unit.packed_at))
        } else {
            Ok(Trust::Sound)
        }
    }
}

/// Calls a hook at each fetch, with how many there were.
struct Hooked<F> {
    base: Bytes,
    count: AtomicUsize,
    hook: F,
}

impl<F> std::fmt::Debug for Hooked<F> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Hooked")
    }
}

impl<F: Fn(usize) + Send + Sync> Layer for Hooked<F> {
    fn len(&self) -> u64 {
        self.base.len()
    }

    fn run(&self, at: u64, want: u64) -> Run<'_> {
        let run = self.base.run(at, want);
        match run.place {
            Place::Below { .. } | Place::Own => Run { place: Place::Own, ..run },
            _ => run,
        }
    }

    fn fetch(&self, at: u64, buf: &mut [u8]) -> Result<Trust, Fault> {
        (self.hook)(self.count.fetch_add(1, Ordering::SeqCst));
        let seen = vdrecover_formats::read(&*self.base, at, buf);
        seen.gaps.first().map_or(Ok(seen.trust), |gap| {
            let good = usize::try_from(gap.range.start - at).unwrap();
            let lost = usize::try_from(gap.range.end - gap.range.start).unwrap();
            Err(Fault { good, lost, loss: gap.loss })
        })
    }
}

fn lost(base: Bytes, ranges: &[Range<u64>]) -> Bytes {
    Arc::new(Damaged::new(base, ranges.to_vec(), Why::Unreadable))
}

/// 12 MiB of everything: data, holes, coded units, losses large and small.
fn mixed() -> Bytes {
    let packed: Bytes = Arc::new(Memory::new(noise(3_000_000, 3)));
    let parts: Vec<Bytes> = vec![
        lost(Arc::new(Memory::new(noise(4_000_001, 1))), &[100..200, 5000..5001, 1_048_000..1_049_000]),
        Arc::new(Blank::zero(2_500_000)),
        Arc::new(Coded { packed: lost(packed, &[70_000..70_001]), memo: Pool::new(1 << 20).share() }),
        Arc::new(Blank::lost(1_500_000, Why::Absent, 7)),
        Arc::new(Memory::new(noise(1_000_000, 9))),
    ];
    Arc::new(Concat::new(parts).unwrap())
}

fn to(path: &Path, layer: &dyn Layer, options: &ExportOptions) -> anyhow::Result<Exported> {
    export(layer, &Dest::File(path.into()), &Evidence::default(), options, &Progress::silent())
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn any_number_of_threads_gives_the_same() {
    let layer = mixed();
    let (want, seen) = read_vec(&*layer, 0, usize::try_from(layer.len()).unwrap());
    let dir = tempfile::tempdir().unwrap();
    let mut maps = Vec::new();
    for threads in [1, 2, 7] {
        let path = dir.path().join(format!("{threads}.img"));
        let exported = to(&path, &*layer, &ExportOptions { threads, ..ExportOptions::default() }).unwrap();
        let meta = fs::metadata(&path).unwrap();
        let got = fs::read(&path).unwrap();
        assert_eq!(got.iter().zip(&want).position(|(a, b)| a != b), None);
        assert!(got == want);
        assert_eq!(exported.digest.hex().unwrap(), hex(&sha256(&want)));
        assert_eq!(exported.lost_bytes, seen.gaps.iter().map(|gap| gap.range.end - gap.range.start).sum::<u64>());
        assert_eq!(
            exported.gaps.iter().map(|gap| &gap.range).collect::<Vec<_>>(),
            seen.gaps.iter().map(|gap| &gap.range).collect::<Vec<_>>()
        );
        assert_eq!(exported.gap_count, exported.gaps.len() as u64);
        assert!(!exported.is_sound());
        assert!(meta.blocks() * 512 < 8_000_000, "sparse: {} blocks", meta.blocks());
        assert!(exported.data_bytes < 8_000_000);
        maps.push(fs::read_to_string(exported.map.unwrap()).unwrap());
    }
    assert!(maps[0].contains("0x00000064  0x00000064  -\n"), "{}", maps[0]);
    assert_eq!(maps[0], maps[1]);
    assert_eq!(maps[1], maps[2]);
    assert_eq!(names(dir.path()), ["1.img", "1.img.map", "2.img", "2.img.map", "7.img", "7.img.map"]);
}

#[test]
fn a_sound_layer_gets_no_map() {
    let dir = tempfile::tempdir().unwrap();
    for len in [0, 1, 1 << 20, (1 << 20) + 1] {
        let path = dir.path().join(len.to_string());
        let exported = to(&path, &Memory::new(noise(len, 5)), &ExportOptions::default()).unwrap();
        assert!(exported.is_sound());
        assert!(fs::read(&path).unwrap() == noise(len, 5));
    }
    assert_eq!(names(dir.path()).len(), 4);
    let doubtful = Trusted::new(Arc::new(Memory::new(vec![1])), Trust::Doubtful);
    assert!(!to(&dir.path().join("x"), &doubtful, &ExportOptions::default()).unwrap().is_sound());
}

#[test]
fn a_pipe_gets_every_byte() {
    let layer = mixed();
    let (want, _) = read_vec(&*layer, 0, usize::try_from(layer.len()).unwrap());
    let mut out = Vec::new();
    let options = ExportOptions { threads: 3, ..ExportOptions::default() };
    let exported =
        job::to_pipe(&*layer, &mut out, Path::new("-"), &Evidence::default(), &options, &Progress::silent()).unwrap();
    assert!(out == want);
    assert_eq!(exported.digest.hex().unwrap(), hex(&sha256(&want)));
    let hashed = digest(&*layer, &options, &Progress::silent()).unwrap();
    assert_eq!(hashed.digest, exported.digest);
    assert_eq!(hashed.gaps, exported.gaps);
}

#[test]
fn a_closed_pipe_is_told_apart() {
    struct Shut;
    impl io::Write for Shut {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(rustix::io::Errno::PIPE.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let options = ExportOptions::default();
    let error = job::to_pipe(&*mixed(), &mut Shut, Path::new("-"), &Evidence::default(), &options, &Progress::silent());
    assert!(matches!(error.unwrap_err().downcast_ref(), Some(Refused::Closed)));
}

#[test]
fn nothing_is_replaced_without_force() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x");
    let layer = mixed();
    fs::write(&path, "mine").unwrap();
    let refused = to(&path, &*layer, &ExportOptions::default()).unwrap_err();
    assert!(matches!(refused.downcast_ref(), Some(Refused::Exists(_))), "{refused}");
    fs::rename(&path, dir.path().join("x.map")).unwrap();
    let refused = to(&path, &*layer, &ExportOptions::default()).unwrap_err();
    assert!(matches!(refused.downcast_ref(), Some(Refused::Exists(_))), "{refused}");
    assert_eq!(names(dir.path()), ["x.map"]);
    assert_eq!(fs::read(dir.path().join("x.map")).unwrap(), b"mine");
    to(&path, &*layer, &ExportOptions { force: true, ..ExportOptions::default() }).unwrap();
    // A sound output makes the old map wrong.
    to(&path, &Memory::new(vec![1; 10]), &ExportOptions { force: true, ..ExportOptions::default() }).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().len(), 10);
    assert!(fs::read_to_string(dir.path().join("x.map")).unwrap().ends_with("0x00000000  0x0000000A  +\n"));
}

#[test]
fn inputs_are_never_written() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk");
    fs::write(&path, "evidence").unwrap();
    let evidence = Evidence::of(&[&path]).unwrap();
    let options = ExportOptions { force: true, ..ExportOptions::default() };
    let run = |dest: Dest| export(&*mixed(), &dest, &evidence, &options, &Progress::silent());
    let refused = run(Dest::File(path.clone())).unwrap_err();
    assert!(matches!(refused.downcast_ref(), Some(Refused::Evidence { .. })));
    let mapped = ExportOptions { map: Some(path.clone()), ..options.clone() };
    let out = Dest::File(dir.path().join("out"));
    assert!(export(&*mixed(), &out, &evidence, &mapped, &Progress::silent()).is_err());
    assert_eq!(fs::read(&path).unwrap(), b"evidence");
    assert_eq!(names(dir.path()), ["disk"]);
    // An unfinished export of somebody else can be evidence, too.
    let part = dir.path().join("out.vdrecover-part");
    fs::write(&part, "evidence").unwrap();
    let evidence = Evidence::of(&[&part]).unwrap();
    assert!(export(&*mixed(), &out, &evidence, &options, &Progress::silent()).is_err());
    assert_eq!(fs::read(&part).unwrap(), b"evidence");
}

#[test]
fn a_stopped_export_goes_on() {
    let want = mixed();
    let (bytes, _) = read_vec(&*want, 0, usize::try_from(want.len()).unwrap());
    for threads in [1, 4] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        let options =
            ExportOptions { threads, identity: Some("disk".into()), checkpoint: 1 << 20, ..ExportOptions::default() };
        let mut stops = 0;
        let exported = loop {
            let progress = Progress::silent();
            let flag = progress.stop_flag();
            let hook = move |count| flag.store(count >= 5, Ordering::Relaxed);
            let layer = Hooked { base: Arc::clone(&want), count: AtomicUsize::new(0), hook };
            match export(&layer, &Dest::File(path.clone()), &Evidence::default(), &options, &progress) {
                Ok(exported) => break exported,
                Err(error) => assert!(matches!(error.downcast_ref(), Some(Refused::Stopped)), "{error:#}"),
            }
            assert_eq!(names(dir.path()), ["x.vdrecover-part", "x.vdrecover-part.state"]);
            stops += 1;
            assert!(stops < 100);
        };
        assert!(stops > 1 && exported.resumed_at > 0);
        assert!(fs::read(&path).unwrap() == bytes);
        assert_eq!(exported.digest.hex().unwrap(), hex(&sha256(&bytes)));
        let layer = Hooked { base: Arc::clone(&want), count: AtomicUsize::new(0), hook: |_| () };
        let whole = to(&dir.path().join("y"), &layer, &ExportOptions::default()).unwrap();
        assert_eq!(
            exported.gaps.iter().map(|gap| &gap.range).collect::<Vec<_>>(),
            whole.gaps.iter().map(|gap| &gap.range).collect::<Vec<_>>()
        );
        assert_eq!(
            (exported.gap_count, exported.lost_bytes, exported.data_bytes),
            (whole.gap_count, whole.lost_bytes, whole.data_bytes)
        );
        assert_eq!(fs::read(path.with_extension("map")).unwrap(), fs::read(dir.path().join("y.map")).unwrap());
        assert_eq!(names(dir.path()), ["x", "x.map", "y", "y.map"]);
    }
}

/// Every kind of image.
const IMAGES: [ImageKind; 6] = [
    ImageKind::Qcow2(Packing::Plain),
    ImageKind::Qcow2(Packing::Deflate),
    ImageKind::Qcow2(Packing::Zstd),
    ImageKind::VmdkSparse,
    ImageKind::VmdkStream,
    ImageKind::Ova,
];

/// The mixed layer as two disks.
fn appliance() -> Arc<Appliance> {
    let first = 9 << 20;
    let disks = vec![first, mixed().len().next_multiple_of(512) - first];
    let hardware = vdrecover_formats::vm::Hardware::default();
    Arc::new(Appliance { name: "x".into(), guest: String::new(), hardware, disks })
}

#[test]
fn a_stopped_image_goes_on_to_the_same_bytes() {
    let want = mixed();
    for kind in IMAGES {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        let options = ExportOptions {
            threads: 3,
            identity: Some("disk".into()),
            checkpoint: 1 << 20,
            kind,
            appliance: Some(appliance()),
            ..ExportOptions::default()
        };
        let mut stops = 0;
        let exported = loop {
            let progress = Progress::silent();
            let flag = progress.stop_flag();
            let hook = move |count| flag.store(count >= 5, Ordering::Relaxed);
            let layer = Hooked { base: Arc::clone(&want), count: AtomicUsize::new(0), hook };
            match export(&layer, &Dest::File(path.clone()), &Evidence::default(), &options, &progress) {
                Ok(exported) => break exported,
                Err(error) => assert!(matches!(error.downcast_ref(), Some(Refused::Stopped)), "{error:#}"),
            }
            assert_eq!(names(dir.path()), ["x.vdrecover-part", "x.vdrecover-part.state"]);
            stops += 1;
            assert!(stops < 100);
        };
        assert!(stops > 1 && exported.resumed_at > 0, "{kind:?}");
        let layer = Hooked { base: Arc::clone(&want), count: AtomicUsize::new(0), hook: |_| () };
        // Its name is in some.
        let other = tempfile::tempdir().unwrap();
        let whole = to(
            &other.path().join("x"),
            &layer,
            &ExportOptions { kind, appliance: Some(appliance()), ..ExportOptions::default() },
        )
        .unwrap();
        assert!(fs::read(&path).unwrap() == fs::read(other.path().join("x")).unwrap(), "{kind:?}");
        assert_eq!((exported.digest, &exported.files[0].digest), (whole.digest, &whole.files[0].digest));
        assert_eq!((exported.gaps, exported.data_bytes), (whole.gaps, whole.data_bytes));
        assert_eq!(fs::read(path.with_extension("map")).unwrap(), fs::read(other.path().join("x.map")).unwrap());
    }
}

#[test]
fn a_killed_image_goes_on_to_the_same_bytes() {
    for kind in IMAGES {
        let (dir, after) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (from, to_dir) = (dir.path().to_path_buf(), after.path().to_path_buf());
        let copied = AtomicBool::new(false);
        let hook = move |count| {
            if count >= 14 && !copied.swap(true, Ordering::SeqCst) {
                // The file is further than the journal when a program dies.
                fs::copy(from.join("x.vdrecover-part.state"), to_dir.join("x.vdrecover-part.state")).unwrap();
                std::thread::sleep(std::time::Duration::from_millis(30));
                fs::copy(from.join("x.vdrecover-part"), to_dir.join("x.vdrecover-part")).unwrap();
            }
        };
        let layer = Hooked { base: mixed(), count: AtomicUsize::new(0), hook };
        let options = ExportOptions {
            identity: Some("d".into()),
            checkpoint: 1,
            threads: 2,
            kind,
            appliance: Some(appliance()),
            ..ExportOptions::default()
        };
        to(&dir.path().join("x"), &layer, &options).unwrap();
        let exported = to(&after.path().join("x"), &*mixed(), &options).unwrap();
        assert!(exported.resumed_at > 0, "{kind:?}");
        for name in ["x", "x.map"] {
            assert!(fs::read(dir.path().join(name)).unwrap() == fs::read(after.path().join(name)).unwrap(), "{kind:?}");
        }
        assert_eq!(names(after.path()), ["x", "x.map"]);
    }
}

#[test]
fn an_unfinished_image_of_another_kind_starts_anew() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x");
    let options = |kind| ExportOptions { identity: Some("d".into()), kind, ..ExportOptions::default() };
    let progress = Progress::silent();
    progress.stop_flag().store(true, Ordering::Relaxed);
    let dest = Dest::File(path.clone());
    export(&*mixed(), &dest, &Evidence::default(), &options(ImageKind::Raw), &progress).unwrap_err();
    let exported = to(&path, &*mixed(), &options(IMAGES[1])).unwrap();
    assert_eq!(exported.resumed_at, 0);
    let whole = to(&dir.path().join("y"), &*mixed(), &options(IMAGES[1])).unwrap();
    assert!(fs::read(&path).unwrap() == fs::read(dir.path().join("y")).unwrap());
    assert_eq!(exported.files[0].digest, whole.files[0].digest);
}

#[test]
fn a_killed_export_goes_on() {
    // What a kill leaves behind: the two files, copied in the middle of the run.
    let dir = tempfile::tempdir().unwrap();
    let after = tempfile::tempdir().unwrap();
    let (from, to_dir) = (dir.path().to_path_buf(), after.path().to_path_buf());
    let copied = AtomicBool::new(false);
    let hook = move |count| {
        if count >= 14 && !copied.swap(true, Ordering::SeqCst) {
            for name in ["x.vdrecover-part.state", "x.vdrecover-part"] {
                fs::copy(from.join(name), to_dir.join(name)).unwrap();
            }
            // A line that was being written when it happened.
            let mut state = fs::OpenOptions::new().append(true).open(to_dir.join("x.vdrecover-part.state")).unwrap();
            state.write_all(b"{\"done\":99").unwrap();
        }
    };
    let layer = Hooked { base: mixed(), count: AtomicUsize::new(0), hook };
    let options = ExportOptions { identity: Some("d".into()), checkpoint: 1, threads: 2, ..ExportOptions::default() };
    to(&dir.path().join("x"), &layer, &options).unwrap();
    let exported = to(&after.path().join("x"), &*mixed(), &options).unwrap();
    assert!(exported.resumed_at > 0);
    for name in ["x", "x.map"] {
        assert!(fs::read(dir.path().join(name)).unwrap() == fs::read(after.path().join(name)).unwrap());
    }
    assert_eq!(names(after.path()), ["x", "x.map"]);
}

#[test]
fn what_can_no_longer_be_read_is_not_left_behind() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x");
    let base: Bytes = Arc::new(Memory::new(vec![7; 8 << 20]));
    let progress = Progress::silent();
    let flag = progress.stop_flag();
    let hook = move |count| flag.store(count >= 2, Ordering::Relaxed);
    let layer = Hooked { base: Arc::clone(&base), count: AtomicUsize::new(0), hook };
    let options = ExportOptions { identity: Some("d".into()), threads: 4, ..ExportOptions::default() };
    export(&layer, &Dest::File(path.clone()), &Evidence::default(), &options, &progress).unwrap_err();
    let exported = to(&path, &*lost(base, &[4 << 20..8 << 20]), &options).unwrap();
    let bytes = fs::read(&path).unwrap();
    assert!(exported.resumed_at > 0 && bytes[..4 << 20].iter().all(|byte| *byte == 7));
    assert!(bytes[4 << 20..].iter().all(|byte| *byte == 0));
}

#[test]
fn another_input_starts_anew() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x");
    let run = |layer: Bytes, identity: &str, stop: bool| {
        let progress = Progress::silent();
        progress.stop_flag().store(stop, Ordering::Relaxed);
        let options = ExportOptions { identity: Some(identity.into()), ..ExportOptions::default() };
        export(&*layer, &Dest::File(path.clone()), &Evidence::default(), &options, &progress)
    };
    let old: Bytes = Arc::new(Memory::new(vec![1; 3 << 20]));
    run(old, "old", true).unwrap_err();
    let exported = run(Arc::new(Memory::new(vec![2; 3 << 20])), "new", false).unwrap();
    assert_eq!(exported.resumed_at, 0);
    assert!(fs::read(&path).unwrap().iter().all(|byte| *byte == 2));
}

#[test]
fn a_panic_costs_one_piece() {
    let hook = |count| assert!(count != 2, "on purpose");
    let layer = Hooked { base: Arc::new(Memory::new(vec![7; 4 << 20])), count: AtomicUsize::new(0), hook };
    let dir = tempfile::tempdir().unwrap();
    let options = ExportOptions { threads: 1, ..ExportOptions::default() };
    let exported = to(&dir.path().join("x"), &layer, &options).unwrap();
    assert_eq!((exported.gap_count, exported.lost_bytes), (1, 1 << 20));
    assert_eq!(exported.findings[0].code, "EXPORT-PANIC");
}

/// A 42 TiB thin disk with one sector in it.
fn thin() -> Concat {
    let parts: Vec<Bytes> =
        vec![Arc::new(Blank::zero(21 << 40)), Arc::new(Memory::new(vec![9; 512])), Arc::new(Blank::zero(21 << 40))];
    Concat::new(parts).unwrap()
}

#[test]
fn a_huge_thin_disk_takes_no_time() {
    let started = std::time::Instant::now();
    // Where tests run there may be either kind of file system; both answers are right on one of them.
    for home in [std::env::temp_dir(), PathBuf::from("/dev/shm")] {
        let Ok(dir) = tempfile::tempdir_in(&home) else { continue };
        match to(&dir.path().join("x"), &thin(), &ExportOptions::default()) {
            Ok(exported) => {
                assert_eq!((exported.len, exported.data_bytes), ((42 << 40) + 512, 512));
                assert!(exported.digest.reason().unwrap().contains("hash limit"));
                assert!(fs::metadata(dir.path().join("x")).unwrap().blocks() < 100);
            }
            Err(error) => {
                assert!(matches!(error.downcast_ref(), Some(Refused::TooLarge { .. })), "{error:#}");
                assert!(names(dir.path()).is_empty());
            }
        }
    }
    assert!(started.elapsed().as_secs() < 5);
}

#[derive(Debug)]
struct Full;
impl Layer for Full {
    fn len(&self) -> u64 {
        8 << 40
    }
    fn run(&self, _: u64, want: u64) -> Run<'_> {
        Run::sound(want, Place::Own)
    }
}

#[test]
fn more_than_is_free_is_refused_before_it_starts() {
    let dir = tempfile::tempdir().unwrap();
    let error = to(&dir.path().join("x"), &Full, &ExportOptions::default());
    let Err(error) = error else { panic!("a machine with terabytes free") };
    assert!(matches!(error.downcast_ref(), Some(Refused::NoSpace { .. } | Refused::TooLarge { .. })), "{error:#}");
    assert!(names(dir.path()).is_empty());
    for kind in IMAGES.into_iter().chain([ImageKind::VmdkFlat]) {
        let options = ExportOptions {
            kind,
            appliance: Some(appliance()),
            identity: Some("d".into()),
            ..ExportOptions::default()
        };
        let error = to(&dir.path().join("x.vmdk"), &Full, &options).unwrap_err();
        assert!(matches!(error.downcast_ref(), Some(Refused::NoSpace { .. })), "{kind:?}: {error:#}");
        assert!(names(dir.path()).is_empty(), "{kind:?}");
    }
    // No table of QCOW2 is long enough for 4 PiB, however little is on them.
    let options = ExportOptions { kind: IMAGES[0], ..ExportOptions::default() };
    let error = to(&dir.path().join("x"), &Blank::zero(4 << 50), &options).unwrap_err();
    assert!(matches!(error.downcast_ref(), Some(Refused::NotRepresentable { .. })), "{error:#}");
    assert!(names(dir.path()).is_empty());
}

#[test]
fn destinations() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(Dest::of(Path::new("-")), Dest::Pipe(None));
    assert_eq!(Dest::of(Path::new("/dev/null")), Dest::Pipe(Some("/dev/null".into())));
    assert_eq!(Dest::of(&dir.path().join("x")), Dest::File(dir.path().join("x")));
    let options = ExportOptions { force: true, ..ExportOptions::default() };
    let folder = to(dir.path(), &Memory::new(vec![1]), &options).unwrap_err();
    assert!(folder.to_string().contains("is a folder"));
}
