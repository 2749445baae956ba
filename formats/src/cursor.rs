//! Following runs down to the layer that answers.

use crate::layer::{Layer, Place, Run, Trust, Why};
use crate::num::narrow;
use std::ops::Range;

/// Most layers on top of each other. A chain 64 deep inside nested containers fits; a container that is its
/// own content does not, and ends here as [`Why::TooDeep`].
pub const MAX_DEPTH: usize = 256;

/// A run followed to the layer that answers for it.
#[derive(Clone, Copy, Debug)]
pub struct Resolved<'a> {
    /// Where, in the layer that the walk started from.
    pub at: u64,
    /// Bytes.
    pub len: u64,
    /// The layer that answers.
    pub layer: &'a dyn Layer,
    /// Where in that layer.
    pub offset: u64,
    /// Never [`Place::Below`].
    pub place: Place<'a>,
    /// The worst trust on the way.
    pub trust: Trust,
}

/// One level of a walk: byte `offset` of `layer` is byte `at` of the layer asked, and so on up to `end`.
#[derive(Clone, Copy, Debug)]
pub struct Hop<'a> {
    /// The layer on this level.
    pub layer: &'a dyn Layer,
    /// Where in it the hop starts.
    pub offset: u64,
    /// Where in the layer asked.
    pub at: u64,
    /// Where it ends, in the layer asked.
    pub end: u64,
    /// The worst trust down to here.
    pub trust: Trust,
}

/// The runs of a range at the bottom of a stack of layers.
///
/// Keeps one run a level and asks a level again only when its run is used up: a walk that restarts at the top
/// for every run at the bottom is quadratic in the depth.
#[derive(Clone, Debug)]
pub struct Cursor<'a> {
    path: Vec<Hop<'a>>,
    at: u64,
    end: u64,
}

/// Starts a walk over `range` of `layer`.
#[must_use]
pub fn walk(layer: &dyn Layer, range: Range<u64>) -> Cursor<'_> {
    let Range { start, end } = range;
    let top = Hop { layer, offset: start, at: start, end, trust: Trust::Sound };
    // Room for most stacks: one allocation a walk.
    let mut path = Vec::with_capacity(8);
    path.push(top);
    Cursor { path, at: start, end }
}

impl<'a> Cursor<'a> {
    /// The levels of the run that `next` gave last, from the layer asked down to the one that answered.
    #[must_use]
    pub fn path(&self) -> &[Hop<'a>] {
        &self.path
    }
}

impl<'a> Iterator for Cursor<'a> {
    type Item = Resolved<'a>;

    fn next(&mut self) -> Option<Resolved<'a>> {
        let at = self.at;
        if at >= self.end {
            return None;
        }
        while self.path.len() > 1 && self.path.last().is_some_and(|hop| hop.end <= at) {
            self.path.pop();
        }
        loop {
            let top = *self.path.last()?;
            let offset = top.offset.saturating_add(at.saturating_sub(top.at));
            let rest = top.end.saturating_sub(at);
            // A layer is never asked beyond its end; what its user wants there is a gap of its own.
            let inside = top.layer.len().saturating_sub(offset).min(rest);
            let run = if inside == 0 {
                Run::lost(rest, Why::Truncated, offset)
            } else if self.path.len() > MAX_DEPTH {
                Run::lost(inside, Why::TooDeep, offset)
            } else {
                let run = top.layer.run(offset, inside);
                Run { len: run.len.clamp(1, inside), ..run }
            };
            let end = at.saturating_add(run.len);
            let trust = top.trust.max(run.trust);
            if let Place::Below { layer, offset } = run.place {
                self.path.push(Hop { layer, offset, at, end, trust });
            } else {
                self.at = end;
                return Some(Resolved { at, len: run.len, layer: top.layer, offset, place: run.place, trust });
            }
        }
    }
}

/// Runs of one walk put together where they continue each other: one line of a map instead of one a block.
#[derive(Debug)]
pub struct Merged<'a> {
    cursor: std::iter::Peekable<Cursor<'a>>,
}

/// As [`walk`], with neighbours merged that are consecutive in the same layer or equally absent.
#[must_use]
pub fn walk_merged(layer: &dyn Layer, range: Range<u64>) -> Merged<'_> {
    Merged { cursor: walk(layer, range).peekable() }
}

impl<'a> Iterator for Merged<'a> {
    type Item = Resolved<'a>;

    fn next(&mut self) -> Option<Resolved<'a>> {
        let mut run = self.cursor.next()?;
        while let Some(next) = self.cursor.next_if(|next| continues(&run, next)) {
            run.len = run.len.saturating_add(next.len);
        }
        Some(run)
    }
}

/// Whether two layers are one object.
#[must_use]
pub fn same_layer(a: &dyn Layer, b: &dyn Layer) -> bool {
    std::ptr::addr_eq(std::ptr::from_ref(a), std::ptr::from_ref(b))
}

fn continues(run: &Resolved<'_>, next: &Resolved<'_>) -> bool {
    if run.trust != next.trust {
        return false;
    }
    match (run.place, next.place) {
        (Place::Own, Place::Own) => {
            same_layer(run.layer, next.layer) && run.offset.checked_add(run.len) == Some(next.offset)
        }
        (Place::Zero, Place::Zero) | (Place::Hole, Place::Hole) => true,
        (Place::Lost(a), Place::Lost(b)) => a.why == b.why,
        (Place::Coded(a), Place::Coded(b)) => {
            a.start == b.start
                && same_layer(run.layer, next.layer)
                && run.offset.checked_add(run.len) == Some(next.offset)
        }
        _ => false,
    }
}

/// Splits a buffer: the part that a run of `len` bytes fills, and the rest.
pub(crate) fn split(buf: &mut [u8], len: u64) -> (&mut [u8], &mut [u8]) {
    let len = narrow(len).min(buf.len());
    buf.split_at_mut(len)
}
