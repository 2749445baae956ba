//! The laws of every layer, checked by one function on all fixtures and on mutated ones.

use crate::cursor::walk;
use crate::layer::{Layer, MAX_UNIT, Place};
use crate::num::{narrow, wide};
use crate::read::{Seen, read};
use std::ops::Range;

/// How much a check may do: it is a bound on work, so that hostile maps of 2^60 bytes can be checked too.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// Runs to look at.
    pub runs: usize,
    /// Bytes to read.
    pub bytes: u64,
}

impl Default for Effort {
    fn default() -> Self {
        Self { runs: 20_000, bytes: 16 << 20 }
    }
}

/// Checks that runs tile the layer, that no run leaves the layer that it names, that the middle of a run says
/// what its start says, and that a read in pieces equals a read at once, gaps included and as zeros. The error
/// names the law that is broken and where.
pub fn check_laws(layer: &dyn Layer, effort: Effort) -> Result<(), String> {
    let mut seams = vec![0];
    let mut at: u64 = 0;
    for run in walk(layer, 0..layer.len()).take(effort.runs) {
        if run.at != at || run.len == 0 {
            return Err(format!("law 1, runs tile: a run at {:#x} of {} bytes, wanted at {at:#x}", run.at, run.len));
        }
        check_runs(layer, run.at, run.len)?;
        at = at.saturating_add(run.len);
        seams.push(at);
    }
    if at != layer.len() && seams.len() <= effort.runs {
        return Err(format!("law 1, runs tile: they end at {at:#x} of {:#x}", layer.len()));
    }
    check_reads(layer, &seams, effort.bytes)
}

/// Asks every level on the way for itself: a cursor clamps what is wrong here.
fn check_runs(layer: &dyn Layer, at: u64, len: u64) -> Result<(), String> {
    for at in [at, at.saturating_add(len >> 1), at.saturating_add(len.saturating_sub(1))] {
        let mut cursor = walk(layer, at..at.saturating_add(1));
        cursor.next();
        for hop in cursor.path() {
            let want = hop.layer.len().saturating_sub(hop.offset);
            if want == 0 {
                continue;
            }
            for want in [1, want.min(513), want] {
                let run = hop.layer.run(hop.offset, want);
                let place = || format!("{} at {:#x}, want {want}", hop.layer.about(), hop.offset);
                if run.len == 0 || run.len > want {
                    return Err(format!("law 1, 1..=want bytes a run: {} bytes: {}", run.len, place()));
                }
                match run.place {
                    Place::Below { layer, offset }
                        if offset.checked_add(run.len).is_none_or(|end| end > layer.len()) =>
                    {
                        return Err(format!(
                            "law 2, below stays inside: {} bytes at {offset:#x} of {:#x}: {}",
                            run.len,
                            layer.len(),
                            place()
                        ));
                    }
                    Place::Coded(unit) => {
                        let end = unit.start.saturating_add(unit.len.into());
                        let inside = unit.start <= hop.offset && hop.offset.saturating_add(run.len) <= end;
                        if !inside || unit.len > MAX_UNIT || unit.packed_len > MAX_UNIT {
                            return Err(format!("law 2, a run lies inside its unit at {:#x}: {}", unit.start, place()));
                        }
                    }
                    _ => {}
                }
            }
        }
    }
    Ok(())
}

fn check_reads(layer: &dyn Layer, seams: &[u64], bytes: u64) -> Result<(), String> {
    const SPAN: u64 = 64 << 10;
    let spans = narrow(bytes.div_ceil(SPAN)).max(1);
    let step = seams.len().div_ceil(spans).max(1);
    for seam in seams.iter().step_by(step) {
        let start = seam.saturating_sub(SPAN >> 1);
        check_span(layer, start..start.saturating_add(SPAN).min(layer.len()))?;
    }
    Ok(())
}

fn check_span(layer: &dyn Layer, range: Range<u64>) -> Result<(), String> {
    let len = narrow(range.end.saturating_sub(range.start));
    let mut whole = vec![1; len];
    let mut marks = vec![0_u8; len];
    let seen = read(layer, range.start, &mut whole);
    mark(&mut marks, range.start, &seen, 1);
    if whole.iter().zip(&marks).any(|(byte, mark)| *mark != 0 && *byte != 0) {
        return Err(format!("law 7, a gap reads as zeros: {range:x?}"));
    }
    let mut pieces = vec![2; len];
    let mut trust = crate::Trust::Sound;
    let mut rest = pieces.as_mut_slice();
    let mut at = range.start;
    let mut piece: usize = 1;
    while !rest.is_empty() {
        let (out, after) = rest.split_at_mut(piece.min(rest.len()));
        let seen = read(layer, at, out);
        mark(&mut marks, range.start, &seen, 2);
        trust = trust.max(seen.trust);
        at = at.saturating_add(wide(out.len()));
        rest = after;
        // Sizes that are no multiple of anything on disk, up to more than one page.
        piece = piece.saturating_mul(7).checked_rem(9973).unwrap_or(0).max(1);
    }
    let law = "law 3, a read in pieces equals a read at once";
    if let Some(i) = whole.iter().zip(&pieces).position(|(a, b)| a != b) {
        return Err(format!("{law}: bytes differ at {:#x}", range.start.saturating_add(wide(i))));
    }
    if let Some(i) = marks.iter().position(|mark| *mark != 0 && *mark != 3) {
        return Err(format!("{law}: gaps differ at {:#x}", range.start.saturating_add(wide(i))));
    }
    if trust != seen.trust {
        return Err(format!("{law}: trust differs in {range:x?}: {trust:?} and {:?}", seen.trust));
    }
    let lost_in_map = walk(layer, range.clone()).filter(|run| matches!(run.place, Place::Lost(_)));
    for run in lost_in_map {
        let i = narrow(run.at.saturating_sub(range.start));
        if marks.get(i) == Some(&0) {
            return Err(format!("law 7, a gap is reported: {:#x} in {}", run.at, run.layer.about()));
        }
    }
    // The same question again, now that the caches are warm.
    let again = read(layer, range.start, &mut pieces);
    if again != seen || pieces != whole {
        return Err(format!("law 6, equal answers: {range:x?} differs when it is read again"));
    }
    Ok(())
}

fn mark(marks: &mut [u8], start: u64, seen: &Seen, bit: u8) {
    for gap in &seen.gaps {
        let from = narrow(gap.range.start.saturating_sub(start));
        let to = narrow(gap.range.end.saturating_sub(start));
        for mark in marks.get_mut(from..to).unwrap_or_default() {
            *mark |= bit;
        }
    }
}
