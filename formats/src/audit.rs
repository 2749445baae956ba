//! Claims and findings of a two-level map, derived from its runs.

use crate::Trust;
use crate::cursor::same_layer;
use crate::layer::{Layer, Place, Why};
use crate::note::{Finding, Note, Sink, Use};
use crate::num::wide;
use crate::tree::NodeId;
use std::ops::{ControlFlow, Range};

/// The stable codes of what the runs of one format can reveal.
#[derive(Clone, Copy, Debug)]
pub struct Codes {
    /// An entry names a place behind the end of the file.
    pub range: &'static str,
    /// An entry can't be read, or says what its specification does not allow.
    pub entry: &'static str,
}

/// Claims what the runs of `range` use, other than of `parent`, and reports the runs that are lost because of the
/// image itself. Damage that repeats is counted in one finding: a table of garbage has thousands of bad entries.
pub fn audit_runs(
    layer: &dyn Layer,
    range: Range<u64>,
    parent: Option<&dyn Layer>,
    codes: Codes,
    sink: Sink<'_>,
) -> ControlFlow<()> {
    let mut broken: Option<Broken> = None;
    let mut at = range.start;
    while at < range.end {
        let run = layer.run(at, range.end.saturating_sub(at));
        let len = run.len.max(1);
        match run.place {
            Place::Below { layer: below, offset } if !parent.is_some_and(|parent| same_layer(parent, below)) => {
                claim(below, offset, len, Use::Data(NodeId(0)), sink)?;
            }
            Place::Coded(unit) if unit.start == at || at == range.start => {
                claim(unit.from, unit.packed_at, unit.packed_len.into(), Use::Data(NodeId(0)), sink)?;
            }
            Place::Lost(loss) if matches!(loss.why, Why::Unmapped | Why::Truncated) => {
                let code = if loss.why == Why::Truncated { codes.range } else { codes.entry };
                match &mut broken {
                    Some(known) if known.code == code && known.guest.end == at => {
                        known.guest.end = at.saturating_add(len);
                        known.entries.end = known.entries.end.max(loss.at.saturating_add(1));
                    }
                    _ => {
                        report(broken.take(), sink)?;
                        let entries = loss.at..loss.at.saturating_add(1);
                        broken = Some(Broken { code, guest: at..at.saturating_add(len), entries });
                    }
                }
            }
            _ => {}
        }
        at = at.saturating_add(len);
    }
    report(broken, sink)
}

/// Consecutive bytes that are lost for one kind of reason.
struct Broken {
    code: &'static str,
    guest: Range<u64>,
    entries: Range<u64>,
}

fn report(broken: Option<Broken>, sink: Sink<'_>) -> ControlFlow<()> {
    let Some(Broken { code, guest, entries }) = broken else { return ControlFlow::Continue(()) };
    let len = guest.end.saturating_sub(guest.start);
    let text = format!("{len} bytes of the disk at {:#x} can't be found through the tables", guest.start);
    sink(Note::Finding(Finding::new(code, entries, Trust::Doubtful, text)))
}

/// Claims the part of `len` bytes at `at` that `layer` has.
pub fn claim(layer: &dyn Layer, at: u64, len: u64, of: Use, sink: Sink<'_>) -> ControlFlow<()> {
    let end = at.saturating_add(len).min(layer.len());
    if at >= end {
        return ControlFlow::Continue(());
    }
    sink(Note::Claim { layer, range: at..end, of })
}

/// How many parts of `each` entries a table of `entries` has.
#[must_use]
pub fn parts(entries: u64, each: usize) -> u32 {
    u32::try_from(entries.div_ceil(wide(each).max(1))).unwrap_or(u32::MAX).max(1)
}
