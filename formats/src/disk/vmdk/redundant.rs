//! A hosted extent through both copies of its tables.
//!
//! Both are asked for every run. Where they agree it is sound. Where they do not, a table in which something can't
//! be loses against one in which everything can; where nothing judges, the copy that has something wins, doubtfully:
//! lost tables are zeros or garbage more often than data.

use super::hosted::Hosted;
use super::layout::judge;
use super::packed;
use super::sparse::{Dialect, Sparse};
use crate::audit::audit_runs;
use crate::cursor::same_layer;
use crate::layer::{Fault, Layer, Loss, Place, Run, Trust, Unit, Why};
use crate::note::{Finding, Note, Sink, Use};
use std::ops::{ControlFlow, Range};

/// An extent through both copies of its tables.
#[derive(Debug)]
pub(super) struct Redundant {
    pub primary: Sparse<Hosted>,
    pub second: Sparse<Hosted>,
}

/// How the copies compare.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Agree,
    /// They differ, and one of the tables is damaged for certain.
    Judged,
    Differ,
}

impl Redundant {
    /// How much a place says: nothing, that there is nothing here, that there is something.
    fn weight(&self, place: Place<'_>) -> u8 {
        match place {
            Place::Lost(Loss { why: Why::Absent, .. }) | Place::Hole => 1,
            Place::Lost(_) => 0,
            Place::Below { layer, .. } if same_layer(layer, &**self.primary.entries.layer()) => 3,
            Place::Coded(_) => 3,
            Place::Zero => 2,
            _ => 1,
        }
    }

    /// Whether the primary copy's table for `at` is sure to be the better one, or sure not to be.
    fn judge(&self, at: u64) -> Option<bool> {
        let look = |copy: &Sparse<Hosted>| copy.table_of(at).map(|table| copy.look(table));
        match (look(&self.primary), look(&self.second)) {
            (Some(first), Some(second)) => judge(first, second),
            _ => None,
        }
    }

    /// The run at `at`, and how the copies compare on it.
    fn choose(&self, at: u64, want: u64) -> (Run<'_>, Verdict) {
        let first = self.primary.told(at, want);
        let second = self.second.told(at, first.len);
        let len = first.len.min(second.len);
        let agree = match (first.place, second.place) {
            (Place::Below { layer: a, offset: x }, Place::Below { layer: b, offset: y }) => same_layer(a, b) && x == y,
            (Place::Lost(a), Place::Lost(b)) => a.why == b.why,
            (Place::Coded(a), Place::Coded(b)) => a.packed_at == b.packed_at,
            (Place::Zero, Place::Zero) | (Place::Hole, Place::Hole) => true,
            _ => false,
        };
        let worst = first.trust.max(second.trust);
        if agree && worst == Trust::Sound {
            let unnamed = self.primary.is_absent(first.place)
                && self.primary.unnamed().is_some()
                && self.second.unnamed().is_some();
            let trust = if unnamed { Trust::Inferred } else { Trust::Sound };
            return (Run { len, trust, ..first }, Verdict::Agree);
        }
        let (trust, verdict) = match (self.judge(at), agree) {
            (Some(_), true) => (Trust::Inferred, Verdict::Agree),
            (None, true) => (worst, Verdict::Agree),
            (Some(true), false) => (first.trust.max(Trust::Inferred), Verdict::Judged),
            (Some(false), false) => (second.trust.max(Trust::Inferred), Verdict::Judged),
            (None, false) => (Trust::Doubtful, Verdict::Differ),
        };
        let better = match self.judge(at) {
            // What is damaged for certain may still be all that there is: an unreadable sector in the good copy.
            Some(first_wins) => {
                let (won, lost) = if first_wins { (first, second) } else { (second, first) };
                let useless = self.weight(won.place) == 0 && self.weight(lost.place) > 0;
                first_wins == useless
            }
            None => self.weight(second.place) > self.weight(first.place),
        };
        let run = if better { second } else { first };
        let trust = if run.trust > trust { run.trust } else { trust };
        (Run { len, trust, ..run }, verdict)
    }

    /// One finding for all that the copies disagree on in `range`.
    fn audit_copies(&self, range: Range<u64>, sink: Sink<'_>) -> ControlFlow<()> {
        let (mut differ, mut judged) = (0_u64, 0_u64);
        let mut first = None;
        let mut at = range.start;
        while at < range.end {
            let (run, verdict) = self.choose(at, range.end.saturating_sub(at));
            if verdict != Verdict::Agree {
                differ = differ.saturating_add(run.len);
                judged = judged.saturating_add(if verdict == Verdict::Judged { run.len } else { 0 });
                first = first.or(Some(at));
            }
            at = at.saturating_add(run.len.max(1));
        }
        let Some(first) = first else { return ControlFlow::Continue(()) };
        let text = format!(
            "the two copies of the tables differ for {differ} bytes of the disk, first at {first:#x}; for {judged} of \
             them one of the tables is damaged for certain"
        );
        let trust = if differ > judged { Trust::Doubtful } else { Trust::Inferred };
        sink(Note::Finding(Finding::new("KDMV-COPIES", 48..64, trust, text)))
    }
}

impl Layer for Redundant {
    fn len(&self) -> u64 {
        self.primary.len()
    }

    fn about(&self) -> String {
        self.primary.about()
    }

    fn run(&self, at: u64, want: u64) -> Run<'_> {
        self.choose(at, want).0
    }

    fn decode(&self, unit: &Unit<'_>, packed: &[u8], out: &mut [u8]) -> Result<Trust, Fault> {
        self.primary.decode(unit, packed, out)
    }

    fn parts(&self) -> u32 {
        self.primary.parts().max(self.second.parts())
    }

    fn audit(&self, part: u32, sink: Sink<'_>) -> ControlFlow<()> {
        // Each copy claims its own tables; what they map is claimed once, as it is read.
        let both_leave_out = self.primary.unnamed().is_some() && self.second.unnamed().is_some();
        for (copy, is_first) in [(&self.primary, true), (&self.second, false)] {
            if part >= copy.parts() {
                continue;
            }
            copy.audit(part, &mut |note| match note {
                Note::Claim { of: Use::Data(_), .. } => ControlFlow::Continue(()),
                Note::Claim { range, .. } if range.start == 0 && !is_first => ControlFlow::Continue(()),
                // Both lead to the same records.
                Note::Finding(finding) if finding.code == packed::HEAD && !is_first => ControlFlow::Continue(()),
                Note::Finding(finding) if finding.code == Hosted::UNNAMED && (!is_first || !both_leave_out) => {
                    ControlFlow::Continue(())
                }
                note => sink(note),
            })?;
        }
        let range = if self.primary.parts() >= self.second.parts() { &self.primary } else { &self.second }.span(part);
        self.audit_copies(range.clone(), &mut *sink)?;
        audit_runs(self, range, self.primary.parent(), Hosted::CODES, &mut |note| match note {
            // The copies have reported their own.
            Note::Finding(_) => ControlFlow::Continue(()),
            note => sink(note),
        })
    }
}
