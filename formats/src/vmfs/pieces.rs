//! A file put together from blocks of the volume, without a descriptor that would map it.

use crate::adapt::below;
use crate::layer::{Bytes, Layer, Place, Run, Trust, Why};
use std::fmt;

/// Where consecutive bytes come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// From here on in the volume.
    Volume(u64),
    /// They were there, and somebody else has the place now.
    Taken(u64),
    /// Never written, by the pointer block that lies there.
    Hole(u64),
}

impl Source {
    fn skip(self, len: u64) -> Self {
        match self {
            Self::Volume(at) => Self::Volume(at.saturating_add(len)),
            Self::Taken(at) => Self::Taken(at.saturating_add(len)),
            Self::Hole(at) => Self::Hole(at),
        }
    }
}

/// Consecutive bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    /// Where in the file.
    pub at: u64,
    /// Bytes.
    pub len: u64,
    /// Where from.
    pub source: Source,
    /// Never [`Trust::Sound`].
    pub trust: Trust,
}

impl Piece {
    fn end(&self) -> u64 {
        self.at.saturating_add(self.len)
    }

    /// The part that lies in `from..to` of the file.
    pub(super) fn cut(&self, from: u64, to: u64) -> Option<Self> {
        let (start, end) = (self.at.max(from), self.end().min(to));
        let source = self.source.skip(start.saturating_sub(self.at));
        (start < end).then(|| Self { at: start, len: end.saturating_sub(start), source, trust: self.trust })
    }
}

/// Puts pieces in order, each behind the one before: those given first win where they overlap. Neighbours that go on
/// become one.
pub(super) fn lay(layers: &[Vec<Piece>]) -> Vec<Piece> {
    let mut done: Vec<Piece> = Vec::new();
    for layer in layers {
        let mut layer = layer.clone();
        layer.sort_by_key(|piece| (piece.at, piece.len));
        let mut merged: Vec<Piece> = Vec::new();
        let mut below = done.iter().peekable();
        let mut covered = 0;
        for piece in &layer {
            let mut at = piece.at.max(covered);
            covered = covered.max(piece.end());
            // What lies behind an earlier piece, and before the next of those that win.
            while at < piece.end() {
                while below.next_if(|won| won.end() <= at).is_some() {}
                let next = below.peek().map_or(u64::MAX, |won| won.at);
                if next > at {
                    merged.extend(piece.cut(at, next));
                    at = next.min(piece.end());
                } else {
                    at = below.peek().map_or(u64::MAX, |won| won.end());
                }
            }
        }
        done.extend(merged);
        done.sort_by_key(|piece| piece.at);
    }
    let mut all: Vec<Piece> = Vec::new();
    for piece in done {
        match all.last_mut() {
            Some(last)
                if last.end() == piece.at
                    && last.trust == piece.trust
                    && last.source.skip(last.len) == piece.source =>
            {
                last.len = last.len.saturating_add(piece.len);
            }
            _ => all.push(piece),
        }
    }
    all
}

/// The file.
#[derive(Clone)]
pub(super) struct Assembled {
    lv: Bytes,
    len: u64,
    pieces: Vec<Piece>,
    why_at: u64,
}

impl fmt::Debug for Assembled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Assembled({} bytes of {} pieces)", self.len, self.pieces.len())
    }
}

impl Assembled {
    /// A file of `len` bytes out of pieces that [`lay`] put in order. What none has is lost; the structure at `why_at`
    /// of the volume is what would have known.
    pub(super) fn new(lv: Bytes, len: u64, pieces: Vec<Piece>, why_at: u64) -> Self {
        Self { lv, len, pieces, why_at }
    }
}

impl Layer for Assembled {
    fn len(&self) -> u64 {
        self.len
    }

    fn about(&self) -> String {
        "VMFS blocks put together".into()
    }

    fn run(&self, at: u64, want: u64) -> Run<'_> {
        let next = self.pieces.partition_point(|piece| piece.end() <= at);
        let gap = |len: u64| Run { trust: Trust::Inferred, ..Run::lost(len, Why::Unmapped, self.why_at) };
        match self.pieces.get(next) {
            Some(piece) if piece.at <= at => {
                let len = want.min(piece.end().saturating_sub(at));
                let run = match piece.source.skip(at.saturating_sub(piece.at)) {
                    Source::Volume(offset) => below(&*self.lv, offset, len),
                    Source::Taken(offset) => Run::lost(len, Why::Overwritten, offset),
                    Source::Hole(_) => Run::sound(len, Place::Hole),
                };
                Run { trust: piece.trust, ..run }
            }
            Some(piece) => gap(want.min(piece.at.saturating_sub(at))),
            None => gap(want),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::adapt::Memory;
    use crate::laws::{Effort, check_laws};
    use std::sync::Arc;

    fn piece(at: u64, len: u64, source: Source) -> Piece {
        Piece { at, len, source, trust: Trust::Inferred }
    }

    #[test]
    fn the_first_wins_and_neighbours_become_one() {
        let first = vec![piece(10, 10, Source::Volume(110)), piece(30, 5, Source::Hole(1))];
        let second = vec![piece(0, 40, Source::Volume(100)), piece(35, 10, Source::Taken(7))];
        let all = lay(&[first, second]);
        let wanted = [
            piece(0, 30, Source::Volume(100)),
            piece(30, 5, Source::Hole(1)),
            piece(35, 5, Source::Volume(135)),
            piece(40, 5, Source::Taken(12)),
        ];
        assert_eq!(all, wanted);
        let lv: Bytes = Arc::new(Memory::new(vec![5; 120]));
        check_laws(&Assembled::new(lv, 60, all, 3), Effort::default()).unwrap();
    }
}
