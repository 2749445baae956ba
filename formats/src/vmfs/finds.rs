//! What no folder lists: descriptors that were deleted, orphaned or formatted over, and what they were called.
//!
//! A descriptor is found by its place in `.fdc.sf`: of the volume as it is, and of the volumes that were there before
//! ([`super::former`]). Its name is an entry that leads to it, by address *and* generation: in a folder that is dead as
//! well, or in what a folder has behind its end or in its gaps. Where no entry is left, the descriptor of a VMFS6 still
//! says in which folder it was.

use super::address::{FdAddress, Spot};
use super::descriptor::{Descriptor, Type};
use super::directory::Folder;
use super::ground::Ground;
use super::journal::Image;
use super::tree::{Datastore, node_id};
use super::volume::Volume;
use crate::layer::Trust;
use crate::note::Finding;
use crate::num::narrow;
use crate::tree::{Entry, Find, Finder, Kind, Named, NodeId, State};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::{ControlFlow, Range};

/// Places for entries that are looked at to name what was found.
const NAMING: u64 = 1 << 22;
/// Descriptors that are told: each was read from a place of its own. No volume has as many files.
const MOST: usize = 1 << 19;
/// Descriptors that bitmaps have in use and that can't be read, of which something may be left elsewhere.
const UNREADABLE: usize = 1 << 20;
/// Runs of folders by which entries in journals are told apart.
const GROUNDS: usize = 1 << 20;
/// Entries without descriptor that are matched.
const ADRIFT: usize = 1 << 18;
/// Names of reused descriptors that one folder's find lists.
const SHOWN: usize = 8;
/// What the system files are called, whose descriptors lie at fixed places.
const SYSTEM: [(FdAddress, &str); 9] = [
    (FdAddress::FBB, ".fbb.sf"),
    (FdAddress::FDC, ".fdc.sf"),
    (FdAddress::PBC, ".pbc.sf"),
    (FdAddress::SBC, ".sbc.sf"),
    (FdAddress::VH, ".vh.sf"),
    (FdAddress::PB2, ".pb2.sf"),
    (FdAddress::SDD, ".sdd.sf"),
    (FdAddress::JBC, ".jbc.sf"),
    (FdAddress::UNMAP, ".unmap.sf"),
];
/// What stands for the volume in the nodes of descriptors that only a journal has.
const JOURNAL: u64 = 0xFFFF;
/// Deepest chain of dead folders.
const DEEP: usize = 256;

/// What no folder lists, by node.
#[derive(Debug, Default)]
pub(super) struct Lost {
    nodes: BTreeMap<NodeId, Dead>,
    /// What there was more of than is looked at.
    cut: BTreeSet<&'static str>,
}

/// A descriptor that no folder lists.
#[derive(Debug)]
struct Dead {
    address: FdAddress,
    generation: u32,
    changed: u32,
    raw_kind: Type,
    kind: Kind,
    state: State,
    used: Option<bool>,
    /// The folder that it says it is in.
    said: Option<FdAddress>,
    name: Option<(Vec<u8>, Named)>,
    parent: Option<NodeId>,
    /// Names in it whose descriptors others have by now, and how many there are.
    reused: (Vec<Vec<u8>>, usize),
}

/// An entry that may name something. The least is the best.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Candidate {
    named: Named,
    /// The descriptor says that it is in another folder.
    elsewhere: bool,
    /// `None` where nothing says in which folder the entry was.
    folder: Option<NodeId>,
    name: Vec<u8>,
}

impl Candidate {
    fn new(named: Named, folder: impl Into<Option<NodeId>>, name: Vec<u8>) -> Self {
        Self { named, elsewhere: false, folder: folder.into(), name }
    }
}

impl Datastore {
    /// Tells all that no folder lists, by node.
    pub(super) fn tell_finds(&self, sink: Finder<'_>) -> ControlFlow<()> {
        for (id, dead) in &self.lost().nodes {
            sink(dead.find(*id, self))?;
        }
        ControlFlow::Continue(())
    }

    /// Tells where the search for what is lost ends before its end.
    pub(super) fn tell_left_out(&self, sink: &mut dyn FnMut(Finding)) {
        let mut cuts: BTreeSet<&'static str> = self.lost().cut.clone();
        let mut cut = |is_cut: bool, what: &'static str| cuts.extend(Some(what).filter(|_| is_cut));
        cut(self.fragments().cut, "there are more free pages of pointers than any volume has pointer blocks");
        cut(self.volume.owned_cut(), "there are more owners of blocks than any volume has files");
        cut(self.rivals().cut, "dead files claim more blocks than are compared with each other");
        cut(self.heir().cut, "resource files lie in more pieces than any volume's do");
        let at = self.volume.space.physical(self.volume.space.header.fdc_at());
        for what in cuts {
            let text = format!("{what}: the rest is not looked at");
            sink(Finding::new("VMFS-SEARCH-CUT", at..at, Trust::Inferred, text));
        }
    }

    /// Files of which somebody else may have the blocks by now: last change, generation and node.
    pub(super) fn dead_files(&self) -> Vec<(u32, u32, NodeId)> {
        let nodes = self.lost().nodes.iter();
        let files = nodes.filter(|(_, dead)| dead.kind == Kind::File && dead.used != Some(true));
        files.map(|(id, dead)| (dead.changed, dead.generation, *id)).collect()
    }

    /// What no folder lists; looked for once. No lock is held meanwhile.
    fn lost(&self) -> &Lost {
        if let Some(lost) = self.lost.get() {
            return lost;
        }
        let mut survey = Survey::default();
        survey.look(self);
        survey.name(self);
        self.lost.get_or_init(|| survey.lost)
    }
}

impl Dead {
    fn find(&self, id: NodeId, store: &Datastore) -> Find {
        let (name, named) = self.name.clone().unwrap_or_else(|| {
            let Spot { cluster, resource } = self.address.spot();
            // The system files have their places on every volume.
            let own = SYSTEM.iter().find(|(address, _)| *address == self.address && self.raw_kind == Type::System);
            let name = own.map_or_else(|| format!("orphan_c{cluster}_r{resource}"), |(_, name)| (*name).to_owned());
            (name.into_bytes(), Named::Place)
        });
        let place = if self.state == State::Journal { "in a journal" } else { "still there" };
        let standing = match (self.state, self.used) {
            (State::Journal, _) => "and on the volume without what it led to, or no more",
            (State::Deleted, _) => "with link count 0",
            (State::Reformatted, _) => "older than the volume",
            (_, Some(false)) => "free in its bitmap",
            (_, Some(true)) => "in use, but no folder lists it",
            (_, None) => "and nothing says whether it is in use",
        };
        let mut parts = vec![format!("its descriptor {} is {place}, {standing}", self.address)];
        if store.rivals().files.contains(&id) {
            parts.push("a file that was changed later and is dead too claims blocks of it".into());
        }
        if store.rivals().left_out.contains(&id) {
            parts.push("whether other dead files claim its blocks was not looked at".into());
        }
        parts.extend(store.former_of(id).map(|about| format!("of {about}")));
        let (reused, count) = &self.reused;
        if *count > 0 {
            let shown: Vec<String> = reused.iter().map(|name| name.escape_ascii().to_string()).collect();
            let more = count.saturating_sub(shown.len());
            let more = if more > 0 { format!(" and {more} more") } else { String::new() };
            let shown = shown.join(", ");
            parts.push(format!("the descriptors of {shown}{more} that it lists are gone or others' by now"));
        }
        let why = parts.join("; ");
        let entry = Entry { name, id, kind: self.kind, state: self.state, next: 0 };
        Find { entry, parent: self.parent, named, why }
    }

    fn is_folder(&self) -> bool {
        self.kind == Kind::Dir
    }
}

/// The search in the making.
#[derive(Default)]
struct Survey {
    lost: Lost,
    /// Folders that are alive.
    alive: Vec<FdAddress>,
    /// Where descriptors lie, so that two layouts do not tell one twice.
    seen: BTreeSet<u64>,
    best: BTreeMap<NodeId, Candidate>,
    /// What journals have, by address and generation.
    copies: BTreeMap<(FdAddress, u32), NodeId>,
    /// Where folders lie, to tell whose an entry in a journal is.
    grounds: Vec<(Range<u64>, NodeId)>,
    /// Entries that lost their descriptor: type, generation, folder, name.
    adrift: Vec<(u32, u32, NodeId, Vec<u8>)>,
    left: u64,
}

impl Survey {
    // Descriptors

    fn look(&mut self, store: &Datastore) {
        self.scan(store, 0, &store.volume);
        for (former, number) in store.formers().iter().zip(1..) {
            self.scan(store, number, &former.volume);
        }
        for (index, copy) in (0..).zip(store.copies()) {
            let id = copy_id(index);
            self.copies.insert((copy.descriptor.address, copy.descriptor.generation), id);
            self.insert(id, &copy.descriptor, State::Journal, None);
        }
    }

    fn scan(&mut self, store: &Datastore, number: u64, volume: &Volume) {
        let Some(fdc) = &volume.fdc else { return };
        let mut ground = Ground::of(fdc, volume.lv());
        let mut state: (u64, Vec<bool>) = (u64::MAX, Vec::new());
        let _ = ground.spots(fdc, &mut |spot, _| {
            let left = fdc.total.saturating_sub(spot.cluster.saturating_mul(fdc.per_cluster));
            let Some(address) = FdAddress::new(spot).filter(|_| spot.resource < left) else {
                return ControlFlow::Continue(());
            };
            let Ok(fd) = volume.descriptor(address) else { return ControlFlow::Continue(()) };
            if state.0 != spot.cluster {
                let free = fdc.cluster(&volume.space, spot.cluster).map(|state| state.free).unwrap_or_default();
                state = (spot.cluster, free);
            }
            // A cluster whose bitmap is lost may hold anything.
            let used = state.1.get(narrow(spot.resource)).map(|free| !free);
            self.add_one(store, number, volume, &fd, used)
        });
        self.look_elsewhere(store, number, volume, &ground.clusters(fdc));
        if ground.cut {
            self.lost.cut.insert("there are more descriptors than any volume has");
        }
    }

    /// What is in use and not there, something else may have left: a journal, or the tables of owners.
    fn look_elsewhere(&mut self, store: &Datastore, number: u64, volume: &Volume, clusters: &[u64]) {
        let Some(fdc) = &volume.fdc else { return };
        let mut left = UNREADABLE;
        for cluster in clusters {
            let Ok(state) = fdc.cluster(&volume.space, *cluster) else { continue };
            for (resource, _) in (0..).zip(&state.free).filter(|(_, free)| !**free) {
                let Some(address) = FdAddress::new(Spot { cluster: *cluster, resource }) else { continue };
                if volume.locate(address).is_ok_and(|at| self.seen.contains(&at)) {
                    continue;
                }
                let Some(less) = left.checked_sub(1) else {
                    self.lost.cut.insert("there are more descriptors in use that can't be read than any volume has");
                    return;
                };
                left = less;
                let Ok(fd) = volume.descriptor(address) else { continue };
                if self.add_one(store, number, volume, &fd, Some(true)).is_break() {
                    return;
                }
            }
        }
    }

    fn add_one(
        &mut self,
        store: &Datastore,
        number: u64,
        volume: &Volume,
        fd: &Descriptor,
        used: Option<bool>,
    ) -> ControlFlow<()> {
        if self.lost.nodes.len() >= MOST {
            self.lost.cut.insert("there are more descriptors that no folder lists than any volume has");
            return ControlFlow::Break(());
        }
        if number == 0 {
            self.add_own(store, fd, used);
        } else {
            self.add_former(number, fd, volume);
        }
        ControlFlow::Continue(())
    }

    fn add_own(&mut self, store: &Datastore, fd: &Descriptor, used: Option<bool>) {
        self.seen.insert(fd.at);
        let listed = store.linked().is_none_or(|linked| linked.has(fd.address));
        if listed && used != Some(false) && fd.links > 0 {
            if fd.node_kind() == Kind::Dir {
                self.alive.push(fd.address);
            }
            return;
        }
        let state = match store.state(fd) {
            State::Live if listed => return,
            // In use, but no folder lists it.
            State::Live => State::Orphaned,
            state => state,
        };
        self.add(0, fd, state, used);
    }

    fn add_former(&mut self, number: u64, fd: &Descriptor, volume: &Volume) {
        let unsure = volume.space.header.is_six() && fd.trust > Trust::Sound;
        // System files describe a volume that is no more. A descriptor knows its place and its address, so that what
        // the volume of now wrote there does not look like one of before.
        if unsure || fd.kind == Type::System || !self.seen.insert(fd.at) {
            return;
        }
        let state = if fd.links == 0 { State::Deleted } else { State::Reformatted };
        self.add(number, fd, state, None);
    }

    fn add(&mut self, number: u64, fd: &Descriptor, state: State, used: Option<bool>) {
        self.insert(node_id(number, fd.address), fd, state, used);
    }

    fn insert(&mut self, id: NodeId, fd: &Descriptor, state: State, used: Option<bool>) {
        let dead = Dead {
            address: fd.address,
            generation: fd.generation,
            changed: fd.changed,
            raw_kind: fd.kind,
            kind: fd.node_kind(),
            state,
            used,
            said: fd.parent,
            name: None,
            parent: None,
            reused: (Vec::new(), 0),
        };
        self.lost.nodes.insert(id, dead);
    }

    // Names

    fn name(&mut self, store: &Datastore) {
        self.left = NAMING;
        let folders: Vec<NodeId> =
            self.lost.nodes.iter().filter(|(_, dead)| dead.is_folder()).map(|(id, _)| *id).collect();
        for id in &folders {
            if let Ok(folder) = store.folder(*id) {
                self.mark(*id, &folder);
                if self.affords(&folder) {
                    self.read_dead(*id, &folder);
                }
                self.read_stale(*id, &folder);
            }
        }
        for address in std::mem::take(&mut self.alive) {
            if let Ok(folder) = Folder::open(&store.volume, address) {
                self.mark(node_id(0, address), &folder);
                self.read_stale(node_id(0, address), &folder);
            }
        }
        self.read_journals(store);
        self.match_adrift();
        for (id, candidate) in std::mem::take(&mut self.best) {
            if let Some(dead) = self.lost.nodes.get_mut(&id) {
                dead.parent = candidate.folder;
                dead.name = Some((candidate.name, candidate.named));
            }
        }
        self.take_parents(store);
        self.break_loops();
    }

    /// Whether there is time to list a dead folder, whose length nobody vouches for.
    fn affords(&mut self, folder: &Folder) -> bool {
        let cost = folder.descriptor().len.checked_div(folder.step()).unwrap_or(0);
        let left = self.left.checked_sub(cost);
        if left.is_none() {
            self.lost.cut.insert("dead folders have room for more entries than any volume has");
        }
        self.left = left.unwrap_or(self.left);
        left.is_some()
    }

    /// Offers a name to the descriptor on the volume, and to what a journal has of one of its address.
    fn offer(&mut self, id: NodeId, kind: u32, generation: u32, candidate: Candidate) -> bool {
        let address = u32::try_from(id.0 & u64::from(u32::MAX)).ok().and_then(FdAddress::of);
        let copy = address.filter(|_| volume_of(id) == 0).and_then(|address| self.copies.get(&(address, generation)));
        let copied = copy.copied().is_some_and(|copy| {
            let Candidate { named, folder, ref name, .. } = candidate;
            self.offer_one(copy, kind, generation, Candidate::new(named, folder, name.clone()))
        });
        self.offer_one(id, kind, generation, candidate) || copied
    }

    fn offer_one(&mut self, id: NodeId, kind: u32, generation: u32, candidate: Candidate) -> bool {
        let Some(dead) = self.lost.nodes.get(&id) else { return false };
        if dead.generation != generation || Type::of(kind) != Some(dead.raw_kind) {
            return false;
        }
        let said = dead.said.map(|said| node_id(home_of(id), said));
        let elsewhere = said.zip(candidate.folder).is_some_and(|(said, folder)| said != folder);
        let candidate = Candidate { elsewhere, ..candidate };
        if candidate.folder == Some(id) || self.best.get(&id).is_some_and(|best| *best <= candidate) {
            return true;
        }
        self.best.insert(id, candidate);
        true
    }

    /// The entries of a folder that is dead itself.
    fn read_dead(&mut self, id: NodeId, folder: &Folder) {
        let (mut names, mut count) = (Vec::new(), 0_usize);
        folder.list(0, &mut |entry| {
            let Ok(entry) = entry else { return ControlFlow::Continue(()) };
            // A former volume's own system files are not told.
            let system = Type::of(entry.kind) == Some(Type::System);
            let candidate =
                Candidate { named: Named::Folder, elsewhere: false, folder: Some(id), name: entry.name.clone() };
            let child = node_id(home_of(id), entry.address);
            if !self.offer(child, entry.kind, entry.generation, candidate) && !system {
                count = count.saturating_add(1);
                if names.len() < SHOWN {
                    names.push(entry.name);
                }
            }
            ControlFlow::Continue(())
        });
        if let Some(dead) = self.lost.nodes.get_mut(&id) {
            dead.reused = (names, count);
        }
    }

    /// What is left of entries that a folder does not have any more.
    fn read_stale(&mut self, id: NodeId, folder: &Folder) {
        let left = self.left;
        self.left = folder.stale(left, &mut |stale| {
            let Some(address) = stale.address else {
                if self.adrift.len() < ADRIFT {
                    self.adrift.push((stale.kind, stale.generation, id, stale.name));
                } else {
                    self.lost.cut.insert("folders hold more entries without descriptor than any volume's do");
                }
                return;
            };
            let candidate = Candidate::new(Named::Slack, id, stale.name);
            self.offer(node_id(home_of(id), address), stale.kind, stale.generation, candidate);
        });
    }

    /// Remembers where a folder of the volume lies.
    fn mark(&mut self, id: NodeId, folder: &Folder) {
        if home_of(id) == 0 {
            folder.places(&mut |range| {
                if self.grounds.len() >= GROUNDS {
                    self.lost.cut.insert("folders lie in more pieces than any volume's do");
                    return ControlFlow::Break(());
                }
                self.grounds.push((range, id));
                ControlFlow::Continue(())
            });
        }
    }

    /// Entries that journals have copies of, of whatever is dead by now.
    fn read_journals(&mut self, store: &Datastore) {
        let mut grounds = std::mem::take(&mut self.grounds);
        grounds.sort_unstable_by_key(|(range, id)| (range.start, *id));
        super::journal::names(&store.volume, &mut |entry| {
            let behind = grounds.partition_point(|(range, _)| range.start <= entry.target);
            let ground = behind.checked_sub(1).and_then(|index| grounds.get(index));
            let folder = ground.filter(|(range, _)| entry.target < range.end).map(|(_, id)| *id);
            let candidate = Candidate::new(Named::Journal, folder, entry.name);
            self.offer(node_id(0, entry.address), entry.kind, entry.generation, candidate);
        });
    }

    /// An entry without descriptor still has type and generation: where exactly one nameless descriptor has both, it
    /// is that one's.
    fn match_adrift(&mut self) {
        let mut nameless: BTreeMap<(u64, u32), Vec<NodeId>> = BTreeMap::new();
        for (id, dead) in self.lost.nodes.iter().filter(|(id, _)| !self.best.contains_key(id)) {
            nameless.entry((volume_of(*id), dead.generation)).or_default().push(*id);
        }
        for (kind, generation, folder, name) in std::mem::take(&mut self.adrift) {
            if let Some([only]) = nameless.get(&(volume_of(folder), generation)).map(Vec::as_slice) {
                let candidate = Candidate::new(Named::Slack, folder, name);
                self.offer(*only, kind, generation, candidate);
            }
        }
    }

    /// Who has no entry is where its descriptor says, if that is a folder.
    fn take_parents(&mut self, store: &Datastore) {
        let folders: BTreeSet<NodeId> =
            self.lost.nodes.iter().filter(|(_, dead)| dead.is_folder()).map(|(id, _)| *id).collect();
        let mut alive: BTreeMap<FdAddress, bool> = BTreeMap::new();
        for (id, dead) in &mut self.lost.nodes {
            let Some(said) = dead.said.filter(|_| dead.parent.is_none()) else { continue };
            let home = home_of(*id);
            let parent = node_id(home, said);
            let is_alive = |said| {
                let fd = store.volume.descriptor(said);
                fd.is_ok_and(|fd| fd.node_kind() == Kind::Dir && store.state(&fd) == State::Live)
            };
            let there = folders.contains(&parent) || home == 0 && *alive.entry(said).or_insert_with(|| is_alive(said));
            dead.parent = Some(parent).filter(|parent| there && parent != id);
        }
    }

    /// Folders that lie in each other have no top: the first of each loop becomes one. What lies too deep becomes one
    /// as well.
    fn break_loops(&mut self) {
        // How many folders lie above each node that was looked at.
        let mut depths: BTreeMap<NodeId, usize> = BTreeMap::new();
        let ids: Vec<NodeId> = self.lost.nodes.keys().copied().collect();
        for start in ids {
            let mut way = Vec::new();
            let mut on_way = BTreeSet::new();
            let mut next = Some(start);
            while let Some(id) = next.filter(|id| !depths.contains_key(id)) {
                if !on_way.insert(id) {
                    // It goes round: this one becomes the top.
                    depths.insert(id, 0);
                    if let Some(dead) = self.lost.nodes.get_mut(&id) {
                        dead.parent = None;
                    }
                    break;
                }
                way.push(id);
                next = self.lost.nodes.get(&id).and_then(|dead| dead.parent);
            }
            for id in way.into_iter().rev() {
                if depths.contains_key(&id) {
                    continue;
                }
                let dead = self.lost.nodes.get_mut(&id);
                let above = dead.as_ref().and_then(|dead| dead.parent).and_then(|parent| depths.get(&parent));
                let depth = above.map_or(0, |above| above.saturating_add(1));
                if let Some(dead) = dead.filter(|_| depth >= DEEP) {
                    dead.parent = None;
                }
                depths.insert(id, if depth >= DEEP { 0 } else { depth });
            }
        }
    }
}

/// The node of a descriptor that a journal has.
fn copy_id(index: u64) -> NodeId {
    NodeId(JOURNAL << 32 | index)
}

/// Which of the descriptors that journals have a node is.
pub(super) fn copy_of(id: NodeId) -> Option<usize> {
    (volume_of(id) == JOURNAL).then(|| narrow(id.0 & u64::from(u32::MAX)))
}

/// Which volume the descriptors are of that a node speaks of.
pub(super) fn home_of(id: NodeId) -> u64 {
    if volume_of(id) == JOURNAL { 0 } else { volume_of(id) }
}

/// Which volume a node is of: 0 is the one that is alive.
pub(super) fn volume_of(id: NodeId) -> u64 {
    id.0 >> 32
}

/// What journals have of descriptors that are dead by now, each of an address and a generation once: the last that
/// leads to anything. What the volume itself still has is left out.
pub(super) fn copies(store: &Datastore) -> Vec<Image> {
    let mut last: BTreeMap<(FdAddress, u32), Image> = BTreeMap::new();
    for image in super::journal::images(&store.volume) {
        let fd = &image.descriptor;
        if fd.links > 0 && fd.len > 0 && fd.kind != Type::System {
            last.insert((fd.address, fd.generation), image);
        }
    }
    let is_gone = |image: &Image| {
        let old = &image.descriptor;
        let Ok(now) = store.volume.descriptor(old.address) else { return true };
        if now.generation != old.generation {
            return true;
        }
        // Of what is alive nothing is lost; what is dead lost something if it says less than it did.
        let listed = store.linked().is_none_or(|linked| linked.has(now.address));
        let alive = store.state(&now) == State::Live && listed;
        !alive && now.len < old.len
    };
    last.into_values().filter(is_gone).collect()
}
