//! The names of a datastore.

use super::address::FdAddress;
use super::descriptor::{Descriptor, Type};
use super::directory::{Dirent, Folder};
use super::file::File;
use super::finds::{Lost, copy_of, home_of, volume_of};
use super::former::{self, Former};
use super::heir::Heir;
use super::journal::Image;
use super::rivals::Rivals;
use super::volume::Volume;
use super::witness::Witness;
use crate::error::Error;
use crate::layer::{Bytes, Trust};
use crate::note::{Finding, Sink};
use crate::num::narrow;
use crate::tree::{Doubts, Entry, Finder, Kind, Lister, Node, NodeId, Search, State, Tree};
use std::ops::{ControlFlow, Range};
use std::sync::{Arc, OnceLock};

/// A datastore. A node's number is the address of its descriptor, and above that, from bit 32 on, the volume: 0 is the
/// one that is alive, the others were there before.
#[derive(Debug)]
pub struct Datastore {
    pub(super) volume: Volume,
    /// What was seen when the volume was put together; [`Tree::audit`] tells it.
    pub(super) findings: Vec<Finding>,
    /// What the volume says of the blocks of live files.
    pub(super) witness: Arc<Witness>,
    /// Which descriptors folders list, made by the first audit that needs it.
    pub(super) linked: OnceLock<super::audit::Linked>,
    /// What is left of pointer blocks, looked for by the first who asks for it; bounded there.
    pub(super) fragments: OnceLock<super::fragment::Fragments>,
    /// What no folder lists, once it was asked for.
    pub(super) lost: OnceLock<Lost>,
    /// The volumes of before, once they were asked for.
    pub(super) formers: OnceLock<Vec<Former>>,
    /// What journals have of dead descriptors, once it was asked for.
    pub(super) copies: OnceLock<Vec<Image>>,
    /// Dead files whose blocks newer dead ones claim, once it was asked for.
    pub(super) rivals: OnceLock<Rivals>,
    /// What the volume has of the bytes of dead files, once it was asked for.
    pub(super) heir: OnceLock<Arc<Heir>>,
}

impl Datastore {
    /// The datastore of a volume.
    #[must_use]
    pub fn new(volume: Volume, mut findings: Vec<Finding>) -> Self {
        findings.extend(volume.findings.iter().cloned());
        Self {
            witness: Arc::new(Witness::new(&volume)),
            volume,
            findings,
            linked: OnceLock::new(),
            lost: OnceLock::new(),
            formers: OnceLock::new(),
            heir: OnceLock::new(),
            rivals: OnceLock::new(),
            copies: OnceLock::new(),
            fragments: OnceLock::new(),
        }
    }

    /// The bitmaps that say what the live volume has by now. No lock is held while they are put together.
    pub(super) fn heir(&self) -> &Arc<Heir> {
        if let Some(heir) = self.heir.get() {
            return heir;
        }
        let heir = Arc::new(Heir::new(&self.volume));
        self.heir.get_or_init(|| heir)
    }

    /// The volumes of another layout that were here before. No lock is held while they are looked for.
    pub(super) fn formers(&self) -> &[Former] {
        if let Some(formers) = self.formers.get() {
            return formers;
        }
        let formers = former::look(&self.volume);
        self.formers.get_or_init(|| formers)
    }

    /// The volume that a node was of, in words, if that is not the one that is alive.
    pub(super) fn former_of(&self, id: NodeId) -> Option<&str> {
        let index = home_of(id).checked_sub(1)?;
        self.formers().get(narrow(index)).map(|former| former.about.as_str())
    }

    /// What journals have of descriptors that are dead by now. No lock is held while they are read.
    pub(super) fn copies(&self) -> &[Image] {
        if let Some(copies) = self.copies.get() {
            return copies;
        }
        let copies = super::finds::copies(self);
        self.copies.get_or_init(|| copies)
    }

    /// What a journal has, of a node that only a journal has.
    fn copy(&self, id: NodeId) -> Option<Result<&Image, Error>> {
        copy_of(id).map(|index| self.copies().get(index).ok_or(Error::NotFound))
    }

    /// The descriptor of a node, and its evidence class as far as it tells itself.
    pub(super) fn fact(&self, id: NodeId) -> Result<(Descriptor, State), Error> {
        if let Some(copy) = self.copy(id) {
            return Ok((copy?.descriptor.clone(), State::Journal));
        }
        let address = address(id)?;
        let Some(index) = volume_of(id).checked_sub(1) else {
            let found = self.volume.descriptor(address)?;
            let state = self.state(&found);
            return Ok((found, state));
        };
        let former = self.formers().get(narrow(index)).ok_or(Error::NotFound)?;
        let found = former.volume.descriptor(address)?;
        let state = if found.links == 0 { State::Deleted } else { State::Reformatted };
        Ok((found, state))
    }

    fn volume_at(&self, id: NodeId) -> Result<&Volume, Error> {
        match home_of(id).checked_sub(1) {
            None => Ok(&self.volume),
            Some(index) => self.formers().get(narrow(index)).map(|former| &former.volume).ok_or(Error::NotFound),
        }
    }

    /// The bytes of a node, as far as nobody else has them by now.
    fn content(&self, id: NodeId, found: Descriptor, state: State) -> Result<File, Error> {
        if let Some(copy) = self.copy(id) {
            return Ok(copy?.file(&self.volume).dead(Arc::clone(self.heir())));
        }
        let file = self.volume_at(id)?.file(found);
        Ok(match state {
            State::Live => file.witnessed(Arc::clone(&self.witness)),
            // Nothing says that the blocks in use are still its own.
            State::Orphaned if self.is_given_up(file.descriptor().address) => file.rival(Arc::clone(self.heir())),
            // Only its bit is wrong, or only its name is gone.
            State::Orphaned => file.witnessed(Arc::clone(&self.witness)).trusted(Trust::Inferred),
            _ => file.dead(Arc::clone(self.heir())),
        })
    }

    /// Whether a descriptor is free and no folder lists it.
    fn is_given_up(&self, address: FdAddress) -> bool {
        let listed = || self.linked().is_some_and(|linked| linked.has(address));
        self.volume.is_free(address) == Some(true) && !listed()
    }

    /// The bytes of a node as its descriptor and the bitmaps tell.
    pub(super) fn content_of(&self, id: NodeId) -> Result<File, Error> {
        let (found, state) = self.fact(id)?;
        self.content(id, found, state)
    }

    /// Dead files whose blocks newer dead ones claim. No lock is held while they are compared.
    pub(super) fn rivals(&self) -> &Rivals {
        if let Some(rivals) = self.rivals.get() {
            return rivals;
        }
        let rivals = super::rivals::look(self);
        self.rivals.get_or_init(|| rivals)
    }

    /// The folder of a node, alive or dead.
    pub(super) fn folder(&self, id: NodeId) -> Result<Folder, Error> {
        let (found, state) = self.fact(id)?;
        if found.node_kind() != Kind::Dir {
            return Err(Error::NotFolder);
        }
        let space = Arc::clone(&self.volume_at(id)?.space);
        Ok(Folder::over(space, self.content(id, found, state)?))
    }

    /// An entry of a folder that is not alive: only what it still leads to, by address and generation.
    fn dead_entry(&self, dir: NodeId, dirent: Dirent) -> Option<Entry> {
        let id = node_id(home_of(dir), dirent.address);
        let (found, state) = self.fact(id).ok().filter(|_| id != dir)?;
        let same = found.generation == dirent.generation && Type::of(dirent.kind) == Some(found.kind);
        let Dirent { name, next, .. } = dirent;
        (same && state != State::Live).then(|| Entry { name, id, kind: found.node_kind(), state, next })
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

/// The node of a descriptor of volume `number`.
pub(super) fn node_id(number: u64, address: FdAddress) -> NodeId {
    NodeId(number << 32 | u64::from(address.0))
}

fn address(id: NodeId) -> Result<FdAddress, Error> {
    u32::try_from(id.0 & u64::from(u32::MAX)).ok().and_then(FdAddress::of).ok_or(Error::NotFound)
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
        let (found, state) = self.fact(id)?;
        let mut trust = found.trust;
        if state != State::Live {
            trust = trust.max(Trust::Inferred);
        } else if self.witness.doubts(found.address) {
            trust = Trust::Doubtful;
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
        let folder = self.folder(dir)?;
        let (_, state) = self.fact(dir)?;
        folder.list(from, &mut |entry| match entry {
            Ok(dirent) if state == State::Live => sink(Ok(self.entry(dirent))),
            Ok(dirent) => self.dead_entry(dir, dirent).map_or(ControlFlow::Continue(()), |entry| sink(Ok(entry))),
            Err(finding) => sink(Err(finding)),
        });
        Ok(())
    }

    fn lookup(&self, dir: NodeId, name: &[u8]) -> Result<Option<Entry>, Error> {
        let folder = self.folder(dir)?;
        let (_, state) = self.fact(dir)?;
        Ok(folder.find(name).and_then(|dirent| {
            if state == State::Live { Some(self.entry(dirent)) } else { self.dead_entry(dir, dirent) }
        }))
    }

    fn open(&self, id: NodeId) -> Result<Bytes, Error> {
        if let Some(chain) = self.fragment(id) {
            return Ok(self.open_fragment(chain?));
        }
        let (found, state) = self.fact(id)?;
        if found.node_kind() == Kind::Dir {
            return Err(Error::NotFile);
        }
        let file = self.content(id, found, state)?;
        // What is alive has no rivals, and needs no look at what is dead.
        let doubtful = state != State::Live && self.rivals().files.contains(&id);
        Ok(Arc::new(if doubtful { file.trusted(Trust::Doubtful) } else { file }))
    }

    fn finds(&self, sink: Finder<'_>) {
        if self.tell_finds(sink).is_continue() {
            let _ = super::fragment::finds(self, sink);
        }
    }

    fn left_out(&self, sink: &mut dyn FnMut(Finding)) {
        self.tell_left_out(sink);
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

    fn holders(&self, range: Range<u64>) -> (Vec<NodeId>, bool) {
        self.holders_of(range)
    }

    fn doubt(&self, doubts: Doubts) {
        self.witness.take(doubts);
    }

    fn check(&self, sink: &mut dyn FnMut(Finding)) {
        self.cross_check(sink);
    }
}
