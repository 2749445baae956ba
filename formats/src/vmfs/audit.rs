//! A full pass over a datastore.

use super::tree::Datastore;
use crate::note::{Note, Sink};
use std::ops::ControlFlow;

/// Which descriptors folders list.
#[derive(Debug)]
pub(super) struct Linked;

impl Datastore {
    pub(super) fn audit_parts(&self) -> u32 {
        1
    }

    pub(super) fn audit_part(&self, _part: u32, sink: Sink<'_>) -> ControlFlow<()> {
        for finding in &self.findings {
            sink(Note::Finding(finding.clone()))?;
        }
        ControlFlow::Continue(())
    }
}
