//! What kind of content a MiB has, where nothing says what it is.

use crate::format::{Clue, Window};
use crate::num::{narrow, wide};

/// Bytes of a cell: one class each.
const CELL: u64 = 1 << 20;
/// Classes that one clue holds, four bits each.
const CELLS: u64 = 16;
/// Bytes that are counted of each of [`SAMPLES`] places of a cell.
const SAMPLE: usize = 2048;
const SAMPLES: usize = 16;

/// Kinds of content.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Class {
    /// Nothing but zeros.
    Zero,
    /// Text.
    Text,
    /// As even as only compressed or encrypted bytes are.
    Dense,
    /// Structures of a guest's file system, or of a partition table.
    Guest,
    /// None of these.
    Other,
}

impl Class {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Zero, Self::Text, Self::Dense, Self::Guest, Self::Other];

    /// In words.
    #[must_use]
    pub fn words(self) -> &'static str {
        match self {
            Self::Zero => "reads zero: unmapped or never written",
            Self::Text => "text",
            Self::Dense => "encrypted or compressed",
            Self::Guest => "with structures of a guest's disk",
            Self::Other => "other content",
        }
    }

    fn code(self) -> u64 {
        match self {
            Self::Zero => 1,
            Self::Text => 2,
            Self::Dense => 3,
            Self::Guest => 4,
            Self::Other => 5,
        }
    }

    fn of(code: u64) -> Option<Self> {
        Self::ALL.into_iter().find(|class| class.code() == code)
    }

    fn seen(bytes: &[u8]) -> Self {
        if bytes.chunks(64).all(|chunk| chunk.iter().fold(0, |all, byte| all | byte) == 0) {
            return Self::Zero;
        }
        let mut counts = [0_u64; 256];
        let mut all: u64 = 0;
        let step = bytes.len().div_ceil(SAMPLES).max(1);
        for sample in bytes.chunks(step) {
            for byte in sample.iter().take(SAMPLE) {
                if let Some(count) = counts.get_mut(usize::from(*byte)) {
                    *count = count.saturating_add(1);
                }
                all = all.saturating_add(1);
            }
        }
        let text: u64 = counts.iter().zip(0_u8..=255).map(|(count, byte)| if is_text(byte) { *count } else { 0 }).sum();
        if text.saturating_mul(100) >= all.saturating_mul(97) {
            return Self::Text;
        }
        // Bytes that are all as frequent have the smallest sum of squares; what is left is chance.
        let squares: u64 = counts.iter().map(|count| count.saturating_mul(*count)).sum();
        let even = all.saturating_mul(all) / 256;
        if all >= 4096 && squares.saturating_mul(100) <= even.saturating_add(all).saturating_mul(108) {
            return Self::Dense;
        }
        Self::Other
    }
}

fn is_text(byte: u8) -> bool {
    matches!(byte, b'\t' | b'\n' | b'\r' | 0x20..=0x7E)
}

/// The cells of a window.
pub(super) struct Cells<'w> {
    window: Window<'w>,
    anchored: Vec<u64>,
}

impl<'w> Cells<'w> {
    pub(super) fn new(window: &Window<'w>) -> Self {
        Self { window: *window, anchored: Vec::new() }
    }

    /// An anchor lies at `at`; they come in order.
    pub(super) fn anchored(&mut self, at: u64) {
        let cell = at / CELL;
        if self.anchored.last() != Some(&cell) {
            self.anchored.push(cell);
        }
    }

    /// Tells the classes, sixteen cells in a clue.
    pub(super) fn tell(&self, kind: u32, tell: &mut dyn FnMut(Clue)) {
        let Window { at, own, bytes } = self.window;
        let end = at.saturating_add(wide(own));
        let mut from = at;
        while from < end {
            let mut clue = Clue { at: from, kind, len: 0, value: 0 };
            for shift in (0..CELLS).map(|i| i.saturating_mul(4)) {
                if from >= end {
                    break;
                }
                let to = (from / CELL).saturating_add(1).saturating_mul(CELL).min(end);
                let shown = bytes.get(narrow(from.saturating_sub(at))..narrow(to.saturating_sub(at)));
                let class = if self.anchored.binary_search(&(from / CELL)).is_ok() {
                    Class::Guest
                } else {
                    Class::seen(shown.unwrap_or_default())
                };
                clue.value |= class.code() << shift;
                clue.len = to.saturating_sub(clue.at);
                from = to;
            }
            tell(clue);
        }
    }
}

/// The classes of all that was looked at.
#[derive(Clone, Debug, Default)]
pub struct Classes {
    clues: Vec<(u64, u64, u64)>,
}

impl Classes {
    pub(super) fn new<'c>(clues: impl Iterator<Item = &'c Clue>) -> Self {
        Self { clues: clues.map(|clue| (clue.at, clue.len, clue.value)).collect() }
    }

    /// Bytes of each class.
    #[must_use]
    pub fn totals(&self) -> Vec<(Class, u64)> {
        let mut totals = Class::ALL.map(|class| (class, 0_u64));
        for (at, len, value) in &self.clues {
            each(*at, *len, *value, &mut |class, start, end| {
                for total in totals.iter_mut().filter(|total| total.0 == class) {
                    total.1 = total.1.saturating_add(end.saturating_sub(start));
                }
            });
        }
        totals.into()
    }

    /// Bytes of `at..at + len` that were seen to hold anything but zeros.
    #[must_use]
    pub fn filled(&self, at: u64, len: u64) -> u64 {
        let end = at.saturating_add(len);
        let first = self.clues.partition_point(|clue| clue.0.saturating_add(clue.1) <= at);
        let mut filled: u64 = 0;
        for (clue_at, len, value) in self.clues.iter().skip(first).take_while(|clue| clue.0 < end) {
            each(*clue_at, *len, *value, &mut |class, from, to| {
                if class != Class::Zero {
                    filled = filled.saturating_add(to.min(end).saturating_sub(from.max(at)));
                }
            });
        }
        filled
    }
}

fn each(at: u64, len: u64, value: u64, sink: &mut dyn FnMut(Class, u64, u64)) {
    let end = at.saturating_add(len);
    let mut from = at;
    for shift in (0..CELLS).map(|i| i.saturating_mul(4)) {
        if from >= end {
            break;
        }
        let to = (from / CELL).saturating_add(1).saturating_mul(CELL).min(end);
        if let Some(class) = Class::of(value >> shift & 15) {
            sink(class, from, to);
        }
        from = to;
    }
}
