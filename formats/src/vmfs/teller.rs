//! Telling findings: of many that are alike the first ones, and how many there are.

use crate::layer::Trust;
use crate::note::Finding;
use std::collections::BTreeMap;
use std::ops::{ControlFlow, Range};

/// What was not told of one code.
#[derive(Default)]
struct Count {
    told: usize,
    more: u64,
    /// Where the first is, and what the worst of them leaves.
    first: Range<u64>,
    worst: Trust,
}

/// Takes findings; `Break` ends it.
pub(super) type Take<'s> = &'s mut dyn FnMut(Finding) -> ControlFlow<()>;

/// Passes findings on, a bounded number of each code.
pub(super) struct Teller {
    most: usize,
    counts: BTreeMap<&'static str, Count>,
}

impl Teller {
    /// One that tells so many findings of each code one by one.
    pub(super) fn new(most: usize) -> Self {
        Self { most, counts: BTreeMap::new() }
    }

    /// Tells a finding, or counts it.
    pub(super) fn tell(&mut self, finding: Finding, take: Take<'_>) -> ControlFlow<()> {
        let count = self.counts.entry(finding.code).or_default();
        if count.told < self.most {
            count.told = count.told.saturating_add(1);
            return take(finding);
        }
        if count.more == 0 {
            count.first = finding.range;
        }
        count.more = count.more.saturating_add(1);
        count.worst = finding.trust.max(count.worst);
        ControlFlow::Continue(())
    }

    /// Says of each code how many more there were, and of what.
    pub(super) fn finish(self, of: &str, take: Take<'_>) -> ControlFlow<()> {
        for (code, Count { more, first, worst, .. }) in self.counts {
            if more > 0 {
                take(Finding::new(code, first, worst, format!("{of}{more} more of this kind")))?;
            }
        }
        ControlFlow::Continue(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_are_told_and_the_others_counted() {
        let mut told = Vec::new();
        let mut sink = |finding: Finding| {
            told.push(finding);
            ControlFlow::Continue(())
        };
        let mut teller = Teller::new(2);
        for (at, trust) in [(1, Trust::Sound), (2, Trust::Sound), (3, Trust::Doubtful), (4, Trust::Sound)] {
            let _ = teller.tell(Finding::new("MANY", at..at, trust, format!("number {at}")), &mut sink);
        }
        let _ = teller.tell(Finding::new("ONE", 9..9, Trust::Inferred, "alone"), &mut sink);
        let _ = teller.finish("of it ", &mut sink);
        let texts: Vec<_> = told.iter().map(|finding| finding.text.as_str()).collect();
        assert_eq!(texts, ["number 1", "number 2", "alone", "of it 2 more of this kind"]);
        assert_eq!((told[3].code, told[3].range.clone(), told[3].trust), ("MANY", 3..3, Trust::Doubtful));
    }
}
