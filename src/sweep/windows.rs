//! A device in windows: where there is data, and what lies between.

use crate::ranges::RangeSet;
use std::iter::Peekable;
use std::ops::Range;
use vdrecover_formats::cursor::{Merged, walk_merged};
use vdrecover_formats::num::round_up;
use vdrecover_formats::{Layer, Place};

/// Data is rounded out to this: a hole that is smaller costs less to look at than a window of its own.
const GRAIN: u64 = 1 << 20;
/// Windows start at multiples of this, whatever range was asked for: formats look at sectors and pages.
const ALIGN: u64 = 4096;

/// A window, or a stretch without data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Item {
    /// What it is answerable for. Items tile the ranges asked for.
    pub(super) range: Range<u64>,
    /// Where the window starts: at or shortly before its range.
    pub(super) from: u64,
    /// Whether there is anything to read.
    pub(super) data: bool,
}

/// The items of all ranges.
pub(super) struct Windows<'a> {
    layer: &'a dyn Layer,
    ranges: std::slice::Iter<'a, Range<u64>>,
    size: u64,
    now: Option<Now<'a>>,
}

/// Where it is in one range.
struct Now<'a> {
    at: u64,
    end: u64,
    extents: Peekable<Extents<'a>>,
    rest: Option<Range<u64>>,
}

impl<'a> Windows<'a> {
    pub(super) fn new(layer: &'a dyn Layer, ranges: &'a RangeSet, size: u64) -> Self {
        Self { layer, ranges: ranges.iter(), size: round_up(size.max(1), ALIGN), now: None }
    }
}

impl Iterator for Windows<'_> {
    type Item = Item;

    fn next(&mut self) -> Option<Item> {
        loop {
            if let Some(item) = self.now.as_mut().and_then(|now| now.next(self.size)) {
                return Some(item);
            }
            let Range { start, end } = self.ranges.next()?.clone();
            let extents = Extents { runs: walk_merged(self.layer, start..end), range: start..end }.peekable();
            self.now = Some(Now { at: start, end, extents, rest: None });
        }
    }
}

impl Now<'_> {
    fn next(&mut self, size: u64) -> Option<Item> {
        // Rounding makes neighbours overlap: what was shown already is not shown again.
        let at = self.at;
        let fresh = |extent: Range<u64>| (extent.end > at).then(|| extent.start.max(at)..extent.end);
        let next = self.rest.take().and_then(fresh).or_else(|| self.extents.find_map(fresh));
        let Some(Range { start, mut end }) = next else {
            self.at = self.end;
            return (at < self.end).then_some(Item { from: at, range: at..self.end, data: false });
        };
        if at < start {
            self.at = start;
            self.rest = Some(start..end);
            return Some(Item { from: at, range: at..start, data: false });
        }
        let border = (start / size).saturating_add(1).saturating_mul(size);
        while end < border {
            let Some(more) = self.extents.next_if(|more| more.start <= end) else { break };
            end = end.max(more.end);
        }
        let cut = end.min(border);
        self.rest = Some(cut..end);
        self.at = cut;
        Some(Item { range: start..cut, from: start / ALIGN * ALIGN, data: true })
    }
}

/// Stretches of data, rounded out inside the range; each may overlap the one before.
struct Extents<'a> {
    runs: Merged<'a>,
    range: Range<u64>,
}

impl Iterator for Extents<'_> {
    type Item = Range<u64>;

    fn next(&mut self) -> Option<Range<u64>> {
        let data = |place| matches!(place, Place::Own | Place::Coded(_) | Place::Below { .. });
        let run = self.runs.find(|run| data(run.place))?;
        let start = run.at / GRAIN * GRAIN;
        let end = round_up(run.at.saturating_add(run.len), GRAIN);
        Some(start.max(self.range.start)..end.min(self.range.end))
    }
}
