//! A format that looks for a byte, on layers with holes, losses and borders.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::unnecessary_wraps,
    clippy::single_range_in_vec_init,
    reason = "tests"
)]

use super::*;
use std::sync::Arc;
use vdrecover_formats::adapt::{Blank, Concat, Damaged, Memory};
use vdrecover_formats::format::{Holds, Magic, Sweep};
use vdrecover_formats::{Bytes, Error, Memo, Opened};

fn nothing(_: &Bytes, _: &Memo) -> Result<Opened, Error> {
    Err(Error::NotFile)
}

fn build(_: &Bytes, _: &Memo, _: &[Clue]) -> Result<Opened, Error> {
    Err(Error::NotFile)
}

type Look = fn(&Window<'_>, &mut dyn FnMut(Clue));

const fn format(name: &'static str, look: Option<Look>) -> Format {
    const NO: &[Magic] = &[];
    let sweep = match look {
        Some(look) => Some(Sweep { look, build, near: &[] }),
        None => None,
    };
    Format { name, about: "", holds: Holds::Disk, spec: "", magics: NO, probe: |_| 0, open: nothing, sweep }
}

/// `ABCD`, wherever it starts; reports those in the margin too, as a careless format would.
fn abcd(window: &Window<'_>, sink: &mut dyn FnMut(Clue)) {
    assert_eq!(window.at % 4096, 0);
    for (i, four) in window.bytes.windows(4).enumerate().rev() {
        if four == b"ABCD" {
            sink(Clue { at: window.at + i as u64, kind: 1, len: 4, value: 0 });
        }
    }
}

fn broken(window: &Window<'_>, sink: &mut dyn FnMut(Clue)) {
    sink(Clue { at: window.at, kind: 2, len: 1, value: 0 });
    assert!(!window.bytes.starts_with(b"!"), "on purpose");
}

static ABCD: Format = format("abcd", Some(abcd));
static BROKEN: Format = format("broken", Some(broken));
static BLIND: Format = format("blind", None);

fn options(threads: usize) -> SweepOptions {
    SweepOptions { window: 8192, margin: 16, threads, ..SweepOptions::default() }
}

fn run(layer: &dyn Layer, formats: &[&Format], options: &SweepOptions) -> Swept {
    sweep(layer, formats, options, &Progress::silent())
}

fn with(len: usize, at: &[usize]) -> Vec<u8> {
    let mut bytes = vec![b'x'; len];
    for at in at {
        bytes[*at..at + 4].copy_from_slice(b"ABCD");
    }
    bytes
}

fn places(swept: &Swept) -> Vec<u64> {
    swept.clues[0].1.iter().map(|clue| clue.at).collect()
}

#[test]
fn borders_of_windows_hide_nothing_and_double_nothing() {
    let at = [0, 8188, 8192 + 8191, 3 * 8192 - 2, 4 * 8192, 50_000, 99_996];
    let layer = Memory::new(with(100_000, &at));
    for threads in [1, 2, 7] {
        let swept = run(&layer, &[&BLIND, &ABCD], &options(threads));
        assert_eq!(places(&swept), at.map(|at| at as u64));
        assert_eq!(swept.clues[0].0, 1);
        assert_eq!((swept.lost_bytes, swept.stopped_at, swept.findings.len()), (0, None, 0));
    }
}

#[test]
fn holes_are_not_read_and_are_zeros_at_the_border() {
    let part = |at: &[usize]| -> Bytes { Arc::new(Memory::new(with(3 << 20, at))) };
    let bad: Bytes = Arc::new(Damaged::new(part(&[5, 70_000]), vec![69_000..71_000, 0..1], Why::Unreadable));
    let hole: Bytes = Arc::new(Blank::zero(40 << 40));
    let gone: Bytes = Arc::new(Blank::lost(5 << 30, Why::Absent, 0));
    let layer = Concat::new([part(&[0, (3 << 20) - 4]), hole, bad, gone, part(&[77])]).unwrap();
    let options = SweepOptions { window: 1 << 20, ..options(0) };
    let swept = run(&layer, &[&ABCD], &options);
    let far = (3 << 20) + (40 << 40);
    assert_eq!(places(&swept), [0, (3 << 20) - 4, far + 5, far + (3 << 20) + (5 << 30) + 77]);
    assert_eq!(swept.lost_bytes, 2001 + (5 << 30));
    assert_eq!(swept.gaps.len(), 3);
    assert!(swept.bytes_read < 12 << 20, "{}", swept.bytes_read);
    for threads in [1, 2, 7] {
        assert_eq!(run(&layer, &[&ABCD], &SweepOptions { threads, ..options.clone() }), swept);
    }
}

#[test]
fn only_the_ranges_asked_for() {
    let at = [10, 5000, 9000, 20_000, 30_000];
    let layer = Memory::new(with(40_000, &at));
    let ranges = RangeSet::build(vec![5000..5001, 8999..9001, 19_000..20_000, 30_000..1 << 60]);
    let swept = run(&layer, &[&ABCD], &SweepOptions { ranges: Some(ranges), ..options(2) });
    assert_eq!(places(&swept), [5000, 9000, 30_000]);
}

#[test]
fn a_panic_costs_one_window_of_one_format() {
    let mut bytes = with(50_000, &[20_000]);
    bytes[16_384] = b'!';
    let layer = Memory::new(bytes);
    let one = run(&layer, &[&BROKEN, &ABCD], &options(1));
    assert_eq!(places(&one), [0, 8192, 24_576, 32_768, 40_960, 49_152]);
    assert_eq!(one.clues[1].1.len(), 1);
    assert_eq!(one.findings[0].range, 16_384..24_576);
    assert_eq!(one.findings[0].code, "SWEEP-PANIC");
    assert_eq!(run(&layer, &[&BROKEN, &ABCD], &options(7)), one);
}

#[test]
fn too_many_clues_are_cut_and_said() {
    let layer = Memory::new(b"ABCD".repeat(10_000));
    let few = |threads| SweepOptions { clues: 3000, ..options(threads) };
    let swept = run(&layer, &[&ABCD], &few(1));
    assert_eq!(places(&swept), (0..3000).map(|i| i * 4).collect::<Vec<_>>());
    assert_eq!(swept.findings[0].code, "SWEEP-CLUES-CUT");
    assert_eq!(swept.findings[0].range.start, 12_000);
    assert_eq!(run(&layer, &[&ABCD], &few(7)), swept);
}

#[test]
fn stops_when_asked() {
    let progress = Progress::silent();
    progress.stop_flag().store(true, std::sync::atomic::Ordering::Relaxed);
    let swept = sweep(&Memory::new(with(50_000, &[])), &[&ABCD], &options(2), &progress);
    assert_eq!(swept.stopped_at, Some(8192));
}

#[test]
fn items_tile_the_ranges() {
    let part = |len: usize| -> Bytes { Arc::new(Memory::new(vec![1; len])) };
    let hole = |len: u64| -> Bytes { Arc::new(Blank::zero(len)) };
    let layer =
        Concat::new([part(1000), hole(9 << 20), part(5_000_000), hole(7), part(9), hole(100 << 20), part(1)]).unwrap();
    for ranges in [vec![0..layer.len()], vec![1..2, 999..1001, 9_000_000..50_000_000, 60_000_000..60_000_001]] {
        let ranges = RangeSet::build(ranges);
        let items: Vec<_> = Windows::new(&layer, &ranges, 1 << 22).collect();
        let back: RangeSet = items.iter().map(|item| item.range.clone()).collect();
        assert_eq!(back, ranges);
        assert_eq!(items.iter().map(|item| item.range.end - item.range.start).sum::<u64>(), ranges.total());
        assert!(items.iter().all(|item| !item.data || item.range.end - item.from <= (1 << 22) + 4096));
    }
}
