//! The virtual disk that a descriptor's extents make, one behind the other.

use crate::adapt::below;
use crate::layer::{Bytes, Layer, Loss, Place, Run, Trust, Why};
use crate::note::{Finding, Note, Sink};
use std::fmt;
use std::ops::ControlFlow;

/// Where the bytes of one extent are.
#[derive(Clone, Debug)]
pub(super) enum Stored {
    /// In a layer, from an offset on.
    In(Bytes, u64),
    /// They are zeros.
    Zero,
    /// They can't be had.
    Lost(Why),
}

/// One extent of the disk.
#[derive(Clone, Debug)]
pub(super) struct Part {
    /// Where it starts on the disk.
    pub start: u64,
    /// Bytes on the disk.
    pub len: u64,
    pub stored: Stored,
    /// At best.
    pub trust: Trust,
    /// Where its line is in the descriptor.
    pub line: u64,
}

/// All extents.
pub(super) struct Vmdk {
    /// Ascending and without gaps; none is empty.
    parts: Vec<Part>,
    len: u64,
    findings: Vec<Finding>,
}

impl fmt::Debug for Vmdk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Vmdk({} bytes in {} extents)", self.len, self.parts.len())
    }
}

impl Vmdk {
    /// The disk of `parts`, which come in the order of the descriptor. `findings` are what its audit reports.
    pub(super) fn new(mut parts: Vec<Part>, findings: Vec<Finding>) -> Self {
        parts.retain(|part| part.len > 0);
        let len = parts.last().map_or(0, |part| part.start.saturating_add(part.len));
        Self { parts, len, findings }
    }
}

impl Layer for Vmdk {
    fn len(&self) -> u64 {
        self.len
    }

    fn about(&self) -> String {
        match self.parts.len() {
            1 => "VMDK extent".into(),
            count => format!("VMDK, {count} extents"),
        }
    }

    fn run(&self, at: u64, want: u64) -> Run<'_> {
        let behind = self.parts.partition_point(|part| part.start <= at);
        let Some(part) = behind.checked_sub(1).and_then(|last| self.parts.get(last)) else {
            return Run::lost(want, Why::Unmapped, 0);
        };
        let into = at.saturating_sub(part.start);
        let want = want.min(part.len.saturating_sub(into)).max(1);
        let run = match &part.stored {
            Stored::In(layer, offset) => below(&**layer, offset.saturating_add(into), want),
            Stored::Zero => Run::sound(want, Place::Zero),
            Stored::Lost(why) => Run::sound(want, Place::Lost(Loss { why: *why, at: part.line })),
        };
        Run { trust: part.trust, ..run }
    }

    fn audit(&self, _: u32, sink: Sink<'_>) -> ControlFlow<()> {
        // The findings are on the descriptor; the extents that have tables are audited as the layers that they are.
        self.findings.iter().try_for_each(|finding| sink(Note::Finding(finding.clone())))?;
        for part in &self.parts {
            if let Stored::In(layer, _) = &part.stored {
                (0..layer.parts()).try_for_each(|n| layer.audit(n, &mut *sink))?;
            }
        }
        ControlFlow::Continue(())
    }
}
