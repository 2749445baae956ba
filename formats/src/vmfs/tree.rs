//! The names of a datastore.

use super::address::FdAddress;
use super::descriptor::{Descriptor, Type};
use super::directory::{Dirent, Folder};
use super::volume::Volume;
use crate::error::Error;
use crate::layer::{Bytes, Trust};
use crate::note::{Finding, Sink};
use crate::tree::{Entry, Finder, Kind, Lister, Node, NodeId, Search, State, Tree};
use std::ops::ControlFlow;
use std::sync::{Arc, OnceLock};

/// A datastore. A node's number is the address of its descriptor.
#[derive(Debug)]
pub struct Datastore {
    pub(super) volume: Volume,
    /// What was seen when the volume was put together; [`Tree::audit`] tells it.
    pub(super) findings: Vec<Finding>,
    /// Which descriptors folders list, made by the first audit that needs it.
    pub(super) linked: OnceLock<super::audit::Linked>,
    /// What is left of pointer blocks, looked for by the first who asks for it; bounded there.
    pub(super) fragments: OnceLock<super::fragment::Fragments>,
}

impl Datastore {
    /// The datastore of a volume.
    #[must_use]
    pub fn new(volume: Volume, mut findings: Vec<Finding>) -> Self {
        findings.extend(volume.findings.iter().cloned());
        Self { volume, findings, linked: OnceLock::new(), fragments: OnceLock::new() }
    }

    pub(super) fn state(&self, descriptor: &Descriptor) -> State {
        let header = &self.volume.space.header;
        if descriptor.links == 0 {
            return State::Deleted;
        }
        // System files need no bitmap to be known.
        if header.fixed(descriptor.address).is_some() || self.volume.is_free(descriptor.address) != Some(true) {
            return State::Live;
        }
        // A quick format frees all and wipes little: what is older than the volume is of the one before.
        if descriptor.changed < header.created { State::Reformatted } else { State::Orphaned }
    }

    pub(super) fn entry(&self, dirent: Dirent) -> Entry {
        let kind = match Type::of(dirent.kind) {
            Some(Type::Folder) => Kind::Dir,
            Some(Type::File) => Kind::File,
            Some(Type::Symlink) => Kind::Symlink,
            Some(Type::Mapping) => Kind::Mapping,
            // Only the descriptor tells a system folder from a system file.
            Some(Type::System) | None => {
                self.volume.descriptor(dirent.address).map_or(Kind::File, |found| found.node_kind())
            }
        };
        let id = NodeId(dirent.address.0.into());
        Entry { name: dirent.name, id, kind, state: State::Live, next: dirent.next }
    }
}

pub(super) fn address(id: NodeId) -> Result<FdAddress, Error> {
    u32::try_from(id.0).ok().and_then(FdAddress::of).ok_or(Error::NotFound)
}

/// Nanoseconds of a time on disk.
fn time(seconds: u32) -> i128 {
    i128::from(seconds).saturating_mul(1_000_000_000)
}

impl Tree for Datastore {
    fn root(&self) -> NodeId {
        NodeId(FdAddress::ROOT.0.into())
    }

    fn node(&self, id: NodeId) -> Result<Node, Error> {
        if let Some(chain) = self.fragment(id) {
            return Ok(self.fragment_node(chain?));
        }
        let found = self.volume.descriptor(address(id)?)?;
        let state = self.state(&found);
        let mut trust = found.trust;
        if state != State::Live {
            trust = trust.max(Trust::Inferred);
        }
        Ok(Node {
            kind: found.node_kind(),
            len: found.len,
            mode: found.mode & 0o7777,
            links: found.links,
            uid: found.uid,
            gid: found.gid,
            rdev: 0,
            modified: Some(time(found.modified)),
            accessed: Some(time(found.accessed)),
            changed: Some(time(found.changed)),
            born: None,
            state,
            trust,
        })
    }

    fn list(&self, dir: NodeId, from: u64, sink: Lister<'_>) -> Result<(), Error> {
        let folder = Folder::open(&self.volume, address(dir)?)?;
        // What only a dead folder lists is as dead.
        let state = self.state(folder.descriptor());
        folder.list(from, &mut |entry| match entry {
            Ok(dirent) => sink(Ok(Entry { state, ..self.entry(dirent) })),
            Err(finding) => sink(Err(finding)),
        });
        Ok(())
    }

    fn lookup(&self, dir: NodeId, name: &[u8]) -> Result<Option<Entry>, Error> {
        let folder = Folder::open(&self.volume, address(dir)?)?;
        let state = self.state(folder.descriptor());
        Ok(folder.find(name).map(|dirent| Entry { state, ..self.entry(dirent) }))
    }

    fn open(&self, id: NodeId) -> Result<Bytes, Error> {
        if let Some(chain) = self.fragment(id) {
            return Ok(self.open_fragment(chain?));
        }
        let found = self.volume.descriptor(address(id)?)?;
        if found.node_kind() == Kind::Dir {
            return Err(Error::NotFile);
        }
        let state = self.state(&found);
        let file = self.volume.file(found);
        Ok(Arc::new(match state {
            State::Live => file,
            // Perhaps only its bit is wrong, and the blocks in use are its own.
            State::Orphaned => file.trusted(Trust::Inferred),
            _ => file.dead(self.volume.blocks().cloned()),
        }))
    }

    fn finds(&self, sink: Finder<'_>) {
        if self.find_descriptors(sink).is_continue() {
            let _ = super::fragment::finds(self, sink);
        }
    }

    fn search(&self) -> Option<Search> {
        Some(super::assemble::search(self))
    }

    fn parts(&self) -> u32 {
        self.audit_parts()
    }

    fn audit(&self, part: u32, sink: Sink<'_>) -> ControlFlow<()> {
        self.audit_part(part, sink)
    }

    fn check(&self, sink: &mut dyn FnMut(Finding)) {
        self.cross_check(sink);
    }
}
