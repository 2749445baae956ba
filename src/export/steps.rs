//! An export's plan: the map of a layer, cut into pieces of work.

use std::ops::Range;
use vdrecover_formats::cursor::{Merged, Resolved, walk_merged};
use vdrecover_formats::{Layer, Loss, Place, Trust};

/// Data is read, hashed and written in pieces that end at multiples of this: large enough that a piece costs
/// more than handing it over, small enough to stay in a core's cache. A coded unit is never cut: the piece
/// ends with it.
pub(crate) const PIECE: u64 = 1 << 20;

/// One piece of work. Steps tile the layer, and depend on nothing but its map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Holds data: to be read. Small holes and losses between data are part of it.
    Data(Range<u64>),
    /// Holds none, however long it is.
    Skip {
        /// Which bytes.
        range: Range<u64>,
        /// Set where they can't be had.
        loss: Option<Loss>,
        /// How far to believe the map.
        trust: Trust,
    },
}

impl Step {
    pub(crate) fn range(&self) -> &Range<u64> {
        match self {
            Self::Data(range) | Self::Skip { range, .. } => range,
        }
    }
}

/// The steps of a range, which starts at one of their borders if they have to be the same again.
#[derive(Debug)]
pub(crate) struct Steps<'a> {
    runs: Merged<'a>,
    /// The run that the last step ended before or inside.
    rest: Option<Part>,
}

/// What is left of a run.
#[derive(Clone, Debug)]
struct Part {
    range: Range<u64>,
    place: Held,
}

#[derive(Clone, Copy, Debug)]
enum Held {
    Bytes,
    Unit,
    Nothing(Option<Loss>, Trust),
}

impl<'a> Steps<'a> {
    pub(crate) fn new(layer: &'a dyn Layer, range: Range<u64>) -> Self {
        Self { runs: walk_merged(layer, range), rest: None }
    }

    fn part(&mut self) -> Option<Part> {
        self.rest.take().or_else(|| self.runs.next().map(|run| Part::of(&run)))
    }
}

impl Part {
    fn of(run: &Resolved<'_>) -> Self {
        let place = match run.place {
            Place::Own | Place::Below { .. } => Held::Bytes,
            Place::Coded(_) => Held::Unit,
            Place::Zero | Place::Hole => Held::Nothing(None, run.trust),
            Place::Lost(loss) => Held::Nothing(Some(loss), run.trust),
        };
        Self { range: run.at..run.at.saturating_add(run.len), place }
    }
}

impl Iterator for Steps<'_> {
    type Item = Step;

    fn next(&mut self) -> Option<Step> {
        let first = self.part()?;
        if let Held::Nothing(loss, trust) = first.place {
            return Some(Step::Skip { range: first.range, loss, trust });
        }
        let start = first.range.start;
        let goal = (start / PIECE).saturating_add(1).saturating_mul(PIECE);
        let mut end = start;
        let mut next = Some(first);
        while let Some(part) = next {
            match part.place {
                // The hole reaches out of the piece: it is skipped at once, as a step of its own.
                Held::Nothing(..) if part.range.end >= goal => {
                    self.rest = Some(part);
                    break;
                }
                Held::Bytes if part.range.end > goal => {
                    end = goal;
                    self.rest = Some(Part { range: goal..part.range.end, place: part.place });
                }
                _ => end = part.range.end,
            }
            next = if end < goal { self.part() } else { None };
        }
        Some(Step::Data(start..end))
    }
}

/// Steps whose borders are multiples of `unit`, for outputs that are laid out in units: a hole counts only as far as
/// it covers whole units.
#[derive(Debug)]
pub(crate) struct Aligned<'a> {
    steps: Steps<'a>,
    unit: u64,
    len: u64,
    /// Data that no step has yet.
    data: Range<u64>,
    /// A hole behind it, and where what is left of it behind its last whole unit ends.
    hole: Option<(Step, u64)>,
}

impl<'a> Aligned<'a> {
    /// From `start` to the end of the layer.
    pub(crate) fn new(layer: &'a dyn Layer, start: u64, unit: u64) -> Self {
        let len = layer.len();
        Self { steps: Steps::new(layer, start..len), unit, len, data: start..start, hole: None }
    }

    fn down(&self, at: u64) -> u64 {
        if at >= self.len { self.len } else { at / self.unit * self.unit }
    }
}

impl Iterator for Aligned<'_> {
    type Item = Step;

    fn next(&mut self) -> Option<Step> {
        loop {
            let whole = self.down(self.data.end);
            if whole.saturating_sub(self.data.start) >= PIECE || self.hole.is_some() && whole > self.data.start {
                let range = self.data.start..whole;
                self.data.start = whole;
                return Some(Step::Data(range));
            }
            if let Some((hole, rest)) = self.hole.take() {
                self.data = hole.range().end..rest;
                return Some(hole);
            }
            match self.steps.next() {
                Some(Step::Data(range)) => self.data.end = range.end,
                Some(Step::Skip { range, loss, trust }) => {
                    let start = self.data.end.div_ceil(self.unit).saturating_mul(self.unit);
                    let end = self.down(range.end);
                    if start < end {
                        // What the hole has of the units at its borders is read with them.
                        self.data.end = start;
                        self.hole = Some((Step::Skip { range: start..end, loss, trust }, range.end));
                    } else {
                        self.data.end = range.end;
                    }
                }
                None if self.data.is_empty() => return None,
                None => {
                    let range = self.data.start..self.len;
                    self.data.start = self.len;
                    return Some(Step::Data(range));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use std::sync::Arc;
    use vdrecover_formats::adapt::{Blank, Concat, Damaged, Memory};
    use vdrecover_formats::{Bytes, Why};

    fn concat(parts: Vec<Bytes>) -> Concat {
        Concat::new(parts).unwrap()
    }

    #[test]
    fn a_huge_hole_is_one_step() {
        let data: Bytes = Arc::new(Memory::new(vec![1; 512]));
        let disk = concat(vec![Arc::new(Blank::zero(20 << 40)), data, Arc::new(Blank::zero(22 << 40))]);
        let steps: Vec<_> = Steps::new(&disk, 0..disk.len()).collect();
        let at = 20 << 40;
        assert_eq!(steps.len(), 3);
        assert_eq!(steps[1], Step::Data(at..at + 512));
    }

    #[test]
    fn aligned_steps_tile_in_units() {
        const UNIT: u64 = 1 << 16;
        let data = |len: usize| -> Bytes { Arc::new(Memory::new(vec![1; len])) };
        let bad = Damaged::new(data(5_000_000), vec![10..20, 2_000_000..4_500_000], Why::Unreadable);
        let (hole, end): (Bytes, Bytes) = (Arc::new(Blank::zero(300_000)), Arc::new(Blank::zero(70_000)));
        let disk = concat(vec![Arc::new(bad), hole, data(10), end]);
        let steps: Vec<_> = Aligned::new(&disk, 0, UNIT).collect();
        let mut at = 0;
        for (i, step) in steps.iter().enumerate() {
            assert_eq!(step.range().start, at);
            assert_eq!(at % UNIT, 0);
            at = step.range().end;
            let again: Vec<_> = Aligned::new(&disk, at, UNIT).map(|step| step.range().clone()).collect();
            assert_eq!(again, steps[i + 1..].iter().map(|step| step.range().clone()).collect::<Vec<_>>());
        }
        assert_eq!(at, disk.len());
        let holes: Vec<_> = steps.iter().filter(|step| matches!(step, Step::Skip { .. })).map(Step::range).collect();
        assert_eq!(holes, [&(31 * UNIT..68 * UNIT), &(77 * UNIT..80 * UNIT)]);
    }

    #[test]
    fn steps_tile_and_can_start_at_any_border() {
        let data: Bytes = Arc::new(Memory::new(vec![1; 5_000_000]));
        let bad = Damaged::new(data, vec![10..20, 999_999..1_500_000, 2_000_000..4_500_000], Why::Unreadable);
        let disk = concat(vec![Arc::new(bad), Arc::new(Blank::zero(100)), Arc::new(Memory::new(vec![2; 77]))]);
        let steps: Vec<_> = Steps::new(&disk, 0..disk.len()).collect();
        let mut at = 0;
        for (i, step) in steps.iter().enumerate() {
            assert_eq!(step.range().start, at);
            at = step.range().end;
            assert_eq!(Steps::new(&disk, at..disk.len()).collect::<Vec<_>>(), steps[i + 1..]);
        }
        assert_eq!(at, disk.len());
        assert!(steps.iter().any(|step| matches!(step, Step::Skip { loss: Some(_), .. })));
    }
}
