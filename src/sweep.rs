//! One parallel pass over a device, for all formats at once: clues for repair, for a deep scan, for carving.

mod windows;

use crate::ordered::ordered;
use crate::progress::Progress;
use crate::ranges::RangeSet;
use std::ops::{ControlFlow, Range};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, PoisonError};
use vdrecover_formats::cursor::walk_merged;
use vdrecover_formats::format::{Clue, Window};
use vdrecover_formats::num::narrow;
use vdrecover_formats::{Finding, Format, Gap, Layer, Loss, Place, Trust, Why, read, walk};
use windows::{Item, Windows};

/// Gaps that are listed one by one; the sums go on behind it.
const GAPS: usize = 1 << 20;

/// How to sweep.
#[derive(Clone, Debug)]
pub struct SweepOptions {
    /// Bytes of a window, without its margin.
    pub window: u64,
    /// Bytes behind a window that are shown with it: the longest structure that a look has to see whole.
    pub margin: u64,
    /// Where clues are looked for. `None`: everywhere.
    pub ranges: Option<RangeSet>,
    /// Threads; 0 for one a core. Each holds one window and its margin in memory.
    pub threads: usize,
    /// Clues a format may have, 32 bytes each; what comes behind is counted out in a finding.
    pub clues: usize,
}

impl Default for SweepOptions {
    fn default() -> Self {
        Self { window: 16 << 20, margin: 1 << 20, ranges: None, threads: 0, clues: 1 << 20 }
    }
}

/// What a sweep saw.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// For each format that looks for something: its index in the list given, and its clues, ascending.
    pub clues: Vec<(usize, Vec<Clue>)>,
    /// What could not be looked at, ascending: the first million.
    pub gaps: Vec<Gap>,
    /// Bytes in all gaps.
    pub lost_bytes: u64,
    /// Bytes that were looked at. Holes, zeros and losses are none.
    pub bytes_read: u64,
    /// Looks that failed, and clues that were too many.
    pub findings: Vec<Finding>,
    /// Where the user stopped it.
    pub stopped_at: Option<u64>,
}

/// Shows all data of `layer` to every format, once. A window that reaches into a hole has zeros there. What
/// comes out depends on neither the number of threads nor their order.
#[must_use]
pub fn sweep(layer: &dyn Layer, formats: &[&Format], options: &SweepOptions, progress: &Progress) -> Swept {
    let whole = RangeSet::all(layer.len());
    let ranges = options.ranges.as_ref().map_or_else(|| whole.clone(), |ranges| ranges.intersect(&whole));
    progress.start("sweep", ranges.total());
    let lookers: Vec<_> = formats.iter().enumerate().filter(|(_, format)| format.sweep.is_some()).collect();
    let mut swept = Swept { clues: lookers.iter().map(|(i, _)| (*i, Vec::new())).collect(), ..Swept::default() };
    let mut cut = vec![false; lookers.len()];
    let buffers = Mutex::new(Vec::new());
    let names: Vec<&Format> = lookers.iter().map(|(_, format)| **format).collect();
    let work = |item: Item| {
        let mut buf: Vec<u8> = buffers.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default();
        let looked = look(layer, &names, options, &item, &mut buf);
        buffers.lock().unwrap_or_else(PoisonError::into_inner).push(buf);
        looked
    };
    ordered(options.threads, Windows::new(layer, &ranges, options.window), work, |looked| {
        swept.bytes_read = swept.bytes_read.saturating_add(looked.read);
        swept.findings.extend(looked.findings);
        for gap in looked.gaps {
            add_gap(&mut swept, gap);
        }
        for (i, new) in looked.clues.into_iter().enumerate() {
            let (Some((_, clues)), Some(cut)) = (swept.clues.get_mut(i), cut.get_mut(i)) else { continue };
            let room = options.clues.saturating_sub(clues.len());
            if let Some(first) = new.get(room).filter(|_| !*cut) {
                *cut = true;
                swept.findings.push(too_many(names[i], first.at..layer.len(), options.clues));
            }
            clues.extend(new.into_iter().take(room));
        }
        progress.add(looked.range.end - looked.range.start);
        if progress.stopped() {
            swept.stopped_at = Some(looked.range.end);
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    });
    swept
}

/// What came out of one window.
struct Looked {
    range: Range<u64>,
    clues: Vec<Vec<Clue>>,
    gaps: Vec<Gap>,
    read: u64,
    findings: Vec<Finding>,
}

fn look(layer: &dyn Layer, formats: &[&Format], options: &SweepOptions, item: &Item, buf: &mut Vec<u8>) -> Looked {
    let range = item.range.clone();
    let mut looked = Looked { range, clues: Vec::new(), gaps: Vec::new(), read: 0, findings: Vec::new() };
    let Range { start, end } = item.range;
    if !item.data {
        looked.gaps.extend(walk_merged(layer, start..end).filter_map(|run| match run.place {
            Place::Lost(loss) => Some(Gap { range: run.at..run.at.saturating_add(run.len), loss }),
            _ => None,
        }));
        return looked;
    }
    let len = end.saturating_add(options.margin).min(layer.len()) - item.from;
    looked.read = len;
    let bytes = if let Some(bytes) = borrowed(layer, item.from, len) {
        bytes
    } else {
        buf.resize(narrow(len), 0);
        // A bug in a format costs its window and no more.
        let Ok(seen) = catch_unwind(AssertUnwindSafe(|| read(layer, item.from, buf))) else {
            looked.read = 0;
            looked.findings.push(failed("reading", &item.range));
            looked.gaps.push(Gap { range: item.range.clone(), loss: Loss { why: Why::Unmapped, at: start } });
            return looked;
        };
        looked.gaps.extend(seen.gaps.into_iter().filter_map(|gap| {
            let range = gap.range.start.max(start)..gap.range.end.min(end);
            (range.start < range.end).then_some(Gap { range, loss: gap.loss })
        }));
        buf
    };
    let window = Window { at: item.from, bytes, own: narrow(end - item.from) };
    for format in formats {
        let mut clues = Vec::new();
        let shown = catch_unwind(AssertUnwindSafe(|| {
            let Some(sweep) = format.sweep else { return };
            (sweep.look)(&window, &mut |clue| {
                // One more than allowed shows that there are more.
                if (start..end).contains(&clue.at) && clues.len() <= options.clues {
                    clues.push(clue);
                }
            });
        }));
        if shown.is_err() {
            clues.clear();
            looked.findings.push(failed(format.name, &item.range));
        }
        clues.sort_unstable();
        clues.dedup();
        looked.clues.push(clues);
    }
    looked
}

/// The bytes without a copy, where one layer has them all in memory: a mapped input.
fn borrowed(layer: &dyn Layer, at: u64, len: u64) -> Option<&[u8]> {
    let run = walk(layer, at..at.checked_add(len)?).next()?;
    let whole = matches!(run.place, Place::Own) && run.len == len;
    whole.then(|| run.layer.slice(run.offset..run.offset.saturating_add(len))).flatten()
}

fn add_gap(swept: &mut Swept, gap: Gap) {
    swept.lost_bytes = swept.lost_bytes.saturating_add(gap.range.end - gap.range.start);
    let room = swept.gaps.len() < GAPS;
    match swept.gaps.last_mut() {
        Some(last) if last.range.end == gap.range.start && last.loss.why == gap.loss.why => {
            last.range.end = gap.range.end;
        }
        _ if room => swept.gaps.push(gap),
        _ => {}
    }
}

fn failed(what: &str, range: &Range<u64>) -> Finding {
    let text =
        format!("{what}: the search of {} bytes failed inside the program; please report it", range.end - range.start);
    Finding::new("SWEEP-PANIC", range.clone(), Trust::Doubtful, text)
}

fn too_many(format: &Format, range: Range<u64>, most: usize) -> Finding {
    let text = format!(
        "{}: more than {most} structures were seen; those from {:#x} on are left out",
        format.name, range.start
    );
    Finding::new("SWEEP-CLUES-CUT", range, Trust::Inferred, text)
}

#[cfg(test)]
mod tests;
