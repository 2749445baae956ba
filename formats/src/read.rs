//! Reading, derived from the map.

use crate::cursor::{Resolved, split, walk_merged};
use crate::layer::{Fault, Gap, Layer, Loss, MAX_UNIT, Place, Trust, Unit, Why};
use crate::memo::Block;
use crate::num::{narrow, wide};
use std::mem;
use std::ops::Range;

/// What a read met.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Ranges that could not be had and were zeroed, ascending.
    pub gaps: Vec<Gap>,
    /// The worst trust of the map and of the decoders.
    pub trust: Trust,
}

impl Seen {
    /// Whether every byte is there.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.gaps.is_empty()
    }

    /// Whether any byte of a range is missing.
    #[must_use]
    pub fn has_gap(&self, range: &Range<u64>) -> bool {
        let first = self.gaps.partition_point(|gap| gap.range.end <= range.start);
        self.gaps.get(first).is_some_and(|gap| gap.range.start < range.end)
    }

    fn lose(&mut self, at: u64, out: &mut [u8], loss: Loss) {
        if out.is_empty() {
            return;
        }
        out.fill(0);
        let end = at.saturating_add(wide(out.len()));
        match self.gaps.last_mut() {
            Some(gap) if gap.range.end == at && gap.loss.why == loss.why => gap.range.end = end,
            _ => self.gaps.push(Gap { range: at..end, loss }),
        }
    }
}

/// Fills `buf` with the bytes at `at`. What can't be had is zeroed and named in the answer, always.
pub fn read(layer: &dyn Layer, at: u64, buf: &mut [u8]) -> Seen {
    let mut seen = Seen::default();
    let mut rest = buf;
    let end = at.saturating_add(wide(rest.len()));
    // Neighbours in one place are fetched at once: fragments in a table are not fragments on the device.
    for run in walk_merged(layer, at..end) {
        let (out, after) = split(mem::take(&mut rest), run.len);
        rest = after;
        seen.trust = seen.trust.max(run.trust);
        fill(&run, out, &mut seen);
    }
    // Only a range that wraps around the address space leaves a rest.
    seen.lose(end, rest, Loss { why: Why::Truncated, at: end });
    seen
}

/// Fills `buf`, or says what is missing first. For metadata, where a part is worth nothing.
pub fn read_exact(layer: &dyn Layer, at: u64, buf: &mut [u8]) -> Result<Trust, Gap> {
    let seen = read(layer, at, buf);
    seen.gaps.into_iter().next().map_or(Ok(seen.trust), Err)
}

/// Reads `len` bytes. The caller has bounded `len`: it is allocated.
#[must_use]
pub fn read_vec(layer: &dyn Layer, at: u64, len: usize) -> (Vec<u8>, Seen) {
    let mut bytes = vec![0; len];
    let seen = read(layer, at, &mut bytes);
    (bytes, seen)
}

/// Reads one table or record into a cache block, its damage included.
#[must_use]
pub fn read_block(layer: &dyn Layer, at: u64, len: usize) -> Block {
    let (bytes, seen) = read_vec(layer, at, len);
    let fault = seen.gaps.first().map(|gap| Fault {
        good: narrow(gap.range.start.saturating_sub(at)),
        lost: narrow(gap.range.end.saturating_sub(gap.range.start)),
        loss: gap.loss,
    });
    Block { bytes, fault, trust: seen.trust }
}

fn fill(run: &Resolved<'_>, out: &mut [u8], seen: &mut Seen) {
    match run.place {
        Place::Zero | Place::Hole => out.fill(0),
        Place::Lost(loss) => seen.lose(run.at, out, loss),
        // A cursor never gives `Below`; if it did, the bytes would be unknown, not zero.
        Place::Below { offset, .. } => seen.lose(run.at, out, Loss { why: Why::Unmapped, at: offset }),
        Place::Own => fetch(run, out, seen),
        Place::Coded(unit) if unit.start == run.offset && u64::from(unit.len) == wide(out.len()) => {
            // A whole unit goes straight to the caller: exporters hand whole units to all cores and would
            // only push the useful blocks out of the cache.
            let fault = match unpack(run.layer, &unit, out) {
                Ok(trust) => {
                    seen.trust = seen.trust.max(trust);
                    return;
                }
                Err(fault) => fault,
            };
            seen.trust = seen.trust.max(contradicted(&fault));
            lose_after(run.at, fault, out, seen);
        }
        Place::Coded(unit) => {
            let block = unit.memo.get(unit.start, || {
                let mut bytes = vec![0; narrow(unit.len.min(MAX_UNIT).into())];
                match unpack(run.layer, &unit, &mut bytes) {
                    Ok(trust) => Block { bytes, fault: None, trust },
                    Err(fault) => Block { bytes, fault: Some(fault), trust: contradicted(&fault) },
                }
            });
            seen.trust = seen.trust.max(block.trust);
            let skip = narrow(run.offset.saturating_sub(unit.start));
            let good = block.fault.map_or(block.bytes.len(), |fault| fault.good.min(block.bytes.len()));
            let have = block.bytes.get(skip..good).unwrap_or_default();
            let len = have.len().min(out.len());
            if let (Some(to), Some(from)) = (out.get_mut(..len), have.get(..len)) {
                to.copy_from_slice(from);
            }
            let loss = block.fault.map_or(Loss { why: Why::Undecodable, at: unit.packed_at }, |fault| fault.loss);
            lose_after(run.at, Fault { good: len, lost: usize::MAX, loss }, out, seen);
        }
    }
}

/// Fetches `Own` bytes and goes on behind each fault: a bad sector costs its own bytes.
fn fetch(run: &Resolved<'_>, out: &mut [u8], seen: &mut Seen) {
    let mut out = out;
    let mut done = 0;
    while !out.is_empty() {
        match run.layer.fetch(run.offset.saturating_add(done), out) {
            Ok(trust) => {
                seen.trust = seen.trust.max(trust);
                return;
            }
            Err(fault) => {
                let good = fault.good.min(out.len());
                let (_, after) = mem::take(&mut out).split_at_mut(good);
                let (bad, after) = split(after, wide(fault.lost.max(1)));
                done = done.saturating_add(wide(good));
                seen.lose(run.at.saturating_add(done), bad, fault.loss);
                done = done.saturating_add(wide(bad.len()));
                out = after;
            }
        }
    }
}

/// What decoded before the first contradiction in a unit is worth having, but nothing proves it.
fn contradicted(fault: &Fault) -> Trust {
    if fault.loss.why == Why::Undecodable { Trust::Doubtful } else { Trust::Sound }
}

fn lose_after(at: u64, fault: Fault, out: &mut [u8], seen: &mut Seen) {
    let good = fault.good.min(out.len());
    let (_, bad) = out.split_at_mut(good);
    seen.lose(at.saturating_add(wide(good)), bad, fault.loss);
}

/// Reads a unit's packed bytes and decodes them. A gap in the packed bytes costs what does not decode before it.
fn unpack(layer: &dyn Layer, unit: &Unit<'_>, out: &mut [u8]) -> Result<Trust, Fault> {
    let mut packed = vec![0; narrow(unit.packed_len.min(MAX_UNIT).into())];
    let seen = read(unit.from, unit.packed_at, &mut packed);
    let gap = seen.gaps.first();
    let good = gap.map_or(packed.len(), |gap| narrow(gap.range.start.saturating_sub(unit.packed_at)));
    match layer.decode(unit, packed.get(..good).unwrap_or_default(), out) {
        Ok(trust) => Ok(trust.max(seen.trust)),
        Err(fault) => Err(Fault { loss: gap.map_or(fault.loss, |gap| gap.loss), ..fault }),
    }
}
