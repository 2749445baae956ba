#![allow(clippy::unwrap_used, clippy::panic, clippy::single_range_in_vec_init, reason = "tests")]
use super::*;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use vdrecover_formats::laws::{Effort, check_laws};
use vdrecover_formats::read;

/// A disk whose bytes tell their offset and whose bad sectors fail as a kernel's do: a read gives what lies
/// before the first bad sector, and fails when that is nothing.
#[derive(Debug, Default)]
struct Failing {
    len: u64,
    bad: Vec<u64>,
    /// A read over a bad sector fails as a whole, as with direct I/O.
    whole: bool,
    shrunk: AtomicU64,
    tries: Mutex<Vec<Range<u64>>>,
    error: Option<Errno>,
}

fn byte(at: u64) -> u8 {
    (at % 251).to_le_bytes()[0] | 1
}

impl Failing {
    fn new(len: u64, bad: impl IntoIterator<Item = u64>, whole: bool) -> Self {
        Self { len, bad: bad.into_iter().collect(), whole, shrunk: AtomicU64::new(len), ..Self::default() }
    }
}

impl Device for Failing {
    fn len(&self) -> u64 {
        self.len
    }
    fn sector(&self) -> u64 {
        512
    }
    fn pread(&self, at: u64, buf: &mut [u8]) -> Result<usize, Errno> {
        let end = (at + wide(buf.len())).min(self.shrunk.load(Ordering::Relaxed)).max(at);
        let bad = self.bad.iter().filter(|sector| *sector * 512 < end && (*sector + 1) * 512 > at).min();
        let end = match bad {
            Some(bad) if self.whole || bad * 512 <= at => {
                self.tries.lock().unwrap().push(at..end);
                return Err(self.error.unwrap_or(Errno::IO));
            }
            Some(bad) => bad * 512,
            None => end,
        };
        let count = narrow(end - at);
        for (i, out) in buf.iter_mut().take(count).enumerate() {
            *out = byte(at + wide(i));
        }
        Ok(count)
    }
    fn may_have_holes(&self) -> bool {
        false
    }
    fn extent(&self, _: u64) -> Extent {
        Extent { end: self.len, kind: ExtentKind::Data }
    }
    fn advise(&self, _: &Range<u64>) {}
}

fn gaps(layer: &dyn Layer, range: Range<u64>) -> Vec<Range<u64>> {
    let mut buf = vec![0xaa; narrow(range.end - range.start)];
    let seen = read(layer, range.start, &mut buf);
    for (i, found) in buf.iter().enumerate() {
        let at = range.start + wide(i);
        let lost = seen.gaps.iter().any(|gap| gap.range.contains(&at));
        assert_eq!(*found, if lost { 0 } else { byte(at) }, "at {at:#x}");
    }
    assert!(seen.gaps.iter().all(|gap| gap.loss.why == Why::Unreadable));
    seen.gaps.into_iter().map(|gap| gap.range).collect()
}

#[test]
fn a_bad_sector_costs_its_own_bytes() {
    for whole in [false, true] {
        let layer = FileLayer::new(Failing::new(1 << 20, [0, 100, 101, 102, 2047], whole), None);
        assert_eq!(gaps(&layer, 0..1 << 20), [0..512, 51200..52736, 1_048_064..1_048_576], "whole: {whole}");
        assert_eq!(gaps(&layer, 51_300..51_301), [51_300..51_301]);
        assert_eq!(gaps(&layer, 52_700..52_800), [52_700..52_736]);
    }
}

#[test]
fn pieces_and_the_whole_agree_on_gaps_cold_and_warm() {
    for whole in [false, true] {
        for start in [0, 1, 511, 513, 1000] {
            let layer = FileLayer::new(Failing::new(20_000, [1, 3, 4, 20, 39], whole), None);
            let pieces: Vec<_> =
                (start..20_000).step_by(7).flat_map(|at| gaps(&layer, at..(at + 7).min(20_000))).collect();
            let cold = FileLayer::new(Failing::new(20_000, [1, 3, 4, 20, 39], whole), None);
            let lost = |gaps: &[Range<u64>]| gaps.iter().map(|gap| gap.end - gap.start).sum::<u64>();
            let at_once = gaps(&cold, start..20_000);
            assert_eq!(lost(&pieces), lost(&at_once));
            assert_eq!(at_once, gaps(&layer, start..20_000), "what the pieces taught");
        }
    }
}

#[test]
fn a_failing_disk_keeps_the_laws() {
    for (bad, whole) in
        [(vec![], false), (vec![0, 7, 8, 300], false), (vec![0, 7, 8, 300], true), ((0..400).collect(), true)]
    {
        let layer = FileLayer::new(Failing::new(200_001, bad, whole), None);
        check_laws(&layer, Effort::default()).unwrap();
    }
}

#[test]
fn a_bad_sector_is_tried_once_on_its_own() {
    let layer = FileLayer::new(Failing::new(1 << 20, 1000..1100, false), None);
    for _ in 0..3 {
        assert_eq!(gaps(&layer, 0..1 << 20), [512_000..563_200]);
    }
    let tries = layer.device.tries.lock().unwrap();
    let single = tries.iter().filter(|range| range.end - range.start <= 512).count();
    assert_eq!(single, 100, "one each");
    assert!(tries.len() <= 110, "{} tries of 100 bad sectors", tries.len());
}

#[test]
fn other_errors_of_a_device_are_gaps_too() {
    for error in [Errno::NODATA, Errno::REMOTEIO, Errno::STALE, Errno::NXIO] {
        let device = Failing { error: Some(error), ..Failing::new(4096, [2], false) };
        assert_eq!(gaps(&FileLayer::new(device, None), 0..4096), [1024..1536]);
    }
}

#[test]
fn more_bad_places_than_are_remembered() {
    // Every second sector, more of them than fit.
    let len = 70_000 * 2 * 512;
    let layer = FileLayer::new(Failing::new(len, [], false), None);
    for sector in 0..70_000 {
        layer.bad.insert(sector * 1024..sector * 1024 + 512);
    }
    let mut layer = layer;
    layer.device.bad = vec![139_998];
    assert_eq!(gaps(&layer, len - 2048..len), [len - 1024..len - 512]);
    assert_eq!(gaps(&layer, len - 1000..len - 900), [len - 1000..len - 900]);
}

#[test]
fn a_device_that_becomes_shorter_truncates() {
    for bad in [vec![], vec![4]] {
        let layer = FileLayer::new(Failing::new(8192, bad, true), None);
        layer.device.shrunk.store(3000, Ordering::Relaxed);
        let mut buf = [7; 8192];
        let seen = read(&layer, 0, &mut buf);
        let last = seen.gaps.last().unwrap();
        assert_eq!((last.range.clone(), last.loss.why), (3000..8192, Why::Truncated));
    }
}
