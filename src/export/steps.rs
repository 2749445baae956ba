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
