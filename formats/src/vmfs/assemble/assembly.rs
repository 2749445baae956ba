//! The tree of what was put together.

use crate::error::Error;
use crate::layer::{Bytes, Trust};
use crate::note::{Finding, Note, Sink};
use crate::num::narrow;
use crate::tree::{Entry, Find, Finder, Kind, Lister, Named, Node, NodeId, State, Tree};
use std::ops::ControlFlow;
use std::sync::Arc;

/// What was put together.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) name: Vec<u8>,
    pub(super) named: Named,
    pub(super) parent: Option<NodeId>,
    pub(super) why: String,
    pub(super) trust: Trust,
    pub(super) state: State,
    pub(super) layer: Bytes,
}

/// The tree of what was put together. Its root lists nothing: all are finds. Parents are nodes of the datastore.
#[derive(Debug)]
pub(super) struct Assembly {
    pub(super) finds: Vec<Found>,
    pub(super) findings: Vec<Finding>,
}

impl Assembly {
    pub(super) fn found(&self, id: NodeId) -> Result<&Found, Error> {
        id.0.checked_sub(1).and_then(|i| self.finds.get(narrow(i))).ok_or(Error::NotFound)
    }
}

impl Tree for Assembly {
    fn root(&self) -> NodeId {
        NodeId(0)
    }

    fn node(&self, id: NodeId) -> Result<Node, Error> {
        if id == self.root() {
            return Ok(Node::plain(Kind::Dir, 0, 0o700));
        }
        let found = self.found(id)?;
        Ok(Node { state: found.state, trust: found.trust, ..Node::plain(Kind::File, found.layer.len(), 0o600) })
    }

    fn list(&self, dir: NodeId, _: u64, _: Lister<'_>) -> Result<(), Error> {
        if dir == self.root() { Ok(()) } else { self.found(dir).and(Err(Error::NotFolder)) }
    }

    fn lookup(&self, dir: NodeId, _: &[u8]) -> Result<Option<Entry>, Error> {
        if dir == self.root() { Ok(None) } else { self.found(dir).and(Err(Error::NotFolder)) }
    }

    fn open(&self, id: NodeId) -> Result<Bytes, Error> {
        if id == self.root() {
            return Err(Error::NotFile);
        }
        let layer = Arc::clone(&self.found(id)?.layer);
        Ok(layer)
    }

    fn finds(&self, sink: Finder<'_>) {
        for (number, found) in (1..).zip(&self.finds) {
            let entry =
                Entry { name: found.name.clone(), id: NodeId(number), kind: Kind::File, state: found.state, next: 0 };
            let find = Find { entry, parent: found.parent, named: found.named, why: found.why.clone() };
            if sink(find).is_break() {
                return;
            }
        }
    }

    fn audit(&self, part: u32, sink: Sink<'_>) -> ControlFlow<()> {
        if part == 0 {
            for finding in &self.findings {
                sink(Note::Finding(finding.clone()))?;
            }
        }
        ControlFlow::Continue(())
    }
}
