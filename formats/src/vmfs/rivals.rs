//! Blocks that two dead files claim: the one that was changed last had them last, and the others are doubtful.

use super::descriptor::Shape;
use super::tree::Datastore;
use crate::layer::{Layer, Place};
use crate::tree::NodeId;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

/// Runs of dead files that are compared; a file in single blocks of 1 MiB has a million a TiB.
const RUNS: usize = 1 << 22;

/// Ranges, apart and ascending.
#[derive(Default)]
struct Taken {
    by_start: BTreeMap<u64, u64>,
}

impl Taken {
    fn has(&self, range: &Range<u64>) -> bool {
        let before = self.by_start.range(..range.end).next_back();
        before.is_some_and(|(_, end)| *end > range.start)
    }

    fn add(&mut self, range: Range<u64>) {
        let (mut start, mut end) = (range.start, range.end);
        while let Some((known, known_end)) = self.by_start.range(..=end).next_back().map(|(a, b)| (*a, *b)) {
            if known_end < start {
                break;
            }
            self.by_start.remove(&known);
            (start, end) = (start.min(known), end.max(known_end));
        }
        self.by_start.insert(start, end);
    }
}

/// Dead files of which newer dead files claim blocks.
#[derive(Debug, Default)]
pub(super) struct Rivals {
    /// Their nodes.
    pub files: BTreeSet<NodeId>,
    /// Nodes that were not compared: there are more runs than are looked at.
    pub left_out: BTreeSet<NodeId>,
    /// Whether there are such.
    pub cut: bool,
}

/// Compares the dead files, the newest first.
pub(super) fn look(store: &Datastore) -> Rivals {
    let mut files = store.dead_files();
    // The newest first; of two that are as new the one with the higher generation.
    files.sort_unstable_by_key(|file| std::cmp::Reverse(*file));
    let (mut taken, mut rivals) = (Taken::default(), Rivals::default());
    let mut left = RUNS;
    for (_, _, id) in files {
        let Ok(file) = store.content_of(id) else { continue };
        if !matches!(file.descriptor().shape, Shape::Mapped { .. }) {
            continue;
        }
        let (mut at, mut own): (u64, Vec<Range<u64>>) = (0, Vec::new());
        while at < file.len() {
            let Some(less) = left.checked_sub(1) else {
                rivals.cut = true;
                rivals.left_out.insert(id);
                break;
            };
            left = less;
            let run = file.run(at, file.len().saturating_sub(at));
            if let Place::Below { offset, .. } = run.place {
                own.push(offset..offset.saturating_add(run.len));
            }
            at = at.saturating_add(run.len.max(1));
        }
        if own.iter().any(|range| taken.has(range)) {
            rivals.files.insert(id);
        }
        for range in own {
            taken.add(range);
        }
    }
    rivals
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_meet_or_do_not() {
        let mut taken = Taken::default();
        for range in [10..20, 30..40, 20..25, 5..8] {
            assert!(!taken.has(&range), "{range:?}");
            taken.add(range);
        }
        for (range, has) in
            [(8..10, false), (24..26, true), (25..30, false), (0..6, true), (39..50, true), (40..50, false)]
        {
            assert_eq!(taken.has(&range), has, "{range:?}");
        }
        taken.add(0..100);
        assert_eq!(taken.by_start.into_iter().collect::<Vec<_>>(), [(0, 100)]);
    }
}
