//! Putting deleted disks together from free space.
//!
//! `ESXi` wipes length and pointers in the descriptor of a file that it deletes; the blocks keep their bytes until they
//! are used again or unmapped. What says which block was which part of which disk is the content itself, by the
//! [`guest`] structures that know their own place, and what is left of pointer blocks ([`super::fragment`]).
//!
//! - A file's blocks are aligned in the file as they are in the volume: an anchor whose place in its disk is not, is of
//!   an image inside of a guest's file and says nothing.
//! - A volume belongs to the partition that it lies behind without a break, or to the only one of its length.
//! - Blocks between two anchors of one disk with the same distance from volume to disk are taken to be of it: `ESXi`
//!   takes the next free block. Not so if any anchor in between says otherwise, of this disk or of another.
//! - Where the distance grows, and between the two are exactly as many free blocks as are missing, it grew by what
//!   others had there, and the free ones are of the disk.
//! - A pointer block is placed by the anchors in the blocks that it names, and by its neighbours.
//! - Clones share all their names. If two blocks claim one place, every stretch is a find of its own, unless a pointer
//!   block joins them. Where more disks were deleted than have names, what nothing but the name joins is doubtful.
//!
//! Nothing of this is proven: all is inferred at best, and what two finds share is doubtful in both. What nothing tells
//! of is lost, and what lies where a file that is alive has its blocks is overwritten.

mod stray;

use super::descriptor::{Descriptor, Shape};
use super::fragment::Fragments;
use super::page::Pointer;
use super::pieces::{Assembled, Piece, Source, lay};
use super::tree::Datastore;
use super::volume::Volume;
use crate::error::Error;
use crate::format::{Clue, Window};
use crate::guest::{self, Anchor, Classes, Identity, Part, Record, Sort};
use crate::layer::{Bytes, Layer, Trust};
use crate::note::{Finding, Note, Sink};
use crate::num::narrow;
use crate::read::read_vec;
use crate::tree::{Entry, Find, Finder, Kind, Lister, Named, Node, NodeId, Search, State, Tree};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::ops::{ControlFlow, Range};
use std::sync::Arc;

/// Ranges of free space that are kept: 64 MiB. What is behind is not searched, and that is a finding.
const MOST_RANGES: usize = 1 << 22;
/// Anchors that are used.
const MOST_ANCHORS: usize = 1 << 18;
/// Pointers of free pointer blocks that are compared with anchors: those of 64 TiB.
const MOST_POINTERS: usize = 1 << 26;
/// Partitions that are compared with volumes.
const MOST_PARTS: usize = 1 << 20;
/// Places where a volume could start by the partitions of disks.
const MOST_STARTS: usize = 1 << 20;
/// Comparisons of records of files with volumes, and of pointers with anchors.
const MOST_STEPS: usize = 1 << 27;
/// Pieces of all disks together.
const MOST_PIECES: usize = 1 << 21;
/// Folders that are asked for a name.
const MOST_ASKED: usize = 1 << 14;
/// Finds of one search.
const MOST_FINDS: usize = 1 << 12;
/// A volume can be so much shorter than its partition.
const SLACK: u64 = 1 << 20;
/// A disk can be so much longer than what its MBR divides.
const TAIL: u64 = 64 << 20;
/// No description of a disk is longer.
const TEXT: u64 = 64 << 10;
/// Entries of living folders that are looked through for descriptions of disks that are gone.
const MOST_ENTRIES: u32 = 1 << 18;

/// How the free space of a datastore is searched.
pub(super) fn search(store: &Datastore) -> Search {
    let volume = store.volume.clone();
    let (free, _) = free_ranges(&volume);
    Search {
        layer: Arc::clone(&volume.space.lv),
        free,
        look,
        // What is free is asked again: a fragmented volume has millions of stretches.
        build: Box::new(move |clues| {
            let (free, cut) = free_ranges(&volume);
            Arc::new(build(volume.clone(), &free, cut, clues))
        }),
    }
}

/// Reports what guests left, and descriptors.
fn look(window: &Window<'_>, tell: &mut dyn FnMut(Clue)) {
    guest::look(window, tell);
    stray::look(window, tell);
}

/// Where the bitmaps have no block in use; all that a lost bitmap has. Whether there was more than is kept.
fn free_ranges(volume: &Volume) -> (Vec<Range<u64>>, bool) {
    let len = volume.lv().len();
    let mut free: Vec<Range<u64>> = Vec::new();
    let Some(blocks) = volume.blocks() else {
        // No bitmap at all: whatever lies behind the header may be free.
        return (std::iter::once(super::header::HEADER_AT..len).filter(|range| !range.is_empty()).collect(), false);
    };
    let size = 1_u64.checked_shl(volume.space.header.file_shift).unwrap_or(1);
    let all = len.checked_div(size).unwrap_or(0).saturating_add(1).min(blocks.total);
    // What no cluster speaks of may be free.
    let clusters = all.div_ceil(blocks.per_cluster.max(1));
    for cluster in 0..clusters.min(blocks.clusters()) {
        let first = cluster.saturating_mul(blocks.per_cluster);
        let count = blocks.per_cluster.min(blocks.total.saturating_sub(first));
        let state = blocks.cluster(&volume.space, cluster).map(|state| state.free).unwrap_or_default();
        for block in 0..count {
            if state.get(narrow(block)) == Some(&false) {
                continue;
            }
            let start = first.saturating_add(block).saturating_mul(size);
            let end = start.saturating_add(size).min(len);
            let full = free.len() >= MOST_RANGES;
            match free.last_mut() {
                _ if start >= end => {}
                Some(last) if last.end == start => last.end = end,
                _ if full => return (free, true),
                _ => free.push(start..end),
            }
        }
    }
    (free, false)
}

fn signed(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

/// What was seen of one volume or disk.
#[derive(Default)]
struct Known {
    /// Where an anchor was seen, and where in the volume or disk it can lie.
    anchors: Vec<(u64, Vec<u64>)>,
    len: Option<u64>,
    hidden: Option<u64>,
    parts: Vec<Part>,
    label: Vec<u8>,
    mft: Option<(u64, u64, u64)>,
}

/// A block of the volume that an anchor shows to be a block of a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Pin {
    index: u64,
    block: u64,
}

impl Pin {
    /// How far the block lies from where it would if the disk started at the volume's.
    fn shift(self) -> i64 {
        signed(self.block).saturating_sub(signed(self.index))
    }
}

/// A disk, or a volume of which the disk is not known, that is put together.
struct Candidate {
    of: Identity,
    sorts: BTreeSet<Sort>,
    label: Vec<u8>,
    pins: BTreeSet<Pin>,
    anchors: usize,
    /// Bytes of the first blocks that lie before the first byte.
    skew: u64,
    len: Option<u64>,
    /// It is at least as long.
    least: u64,
    /// One of several that claim the same places.
    clone: bool,
    /// Some of it is joined by nothing but its names, and could be of a clone.
    loose: bool,
    /// Leaves, and which block of the candidate their first slot is.
    leaves: BTreeMap<usize, i64>,
    pieces: Vec<Piece>,
}

/// The name and length of a disk, from its description.
struct Hint {
    name: Vec<u8>,
    len: u64,
    parent: Option<NodeId>,
}

/// Which stretches of a candidate more than their names join.
struct Bonds(BTreeMap<i64, i64>);

impl Bonds {
    fn new(pins: &BTreeSet<Pin>) -> Self {
        Self(pins.iter().map(|pin| (pin.shift(), pin.shift())).collect())
    }

    fn root(&mut self, shift: i64) -> i64 {
        let mut root = shift;
        // A root is smaller than what it is the root of.
        while let Some(next) = self.0.get(&root).copied().filter(|next| *next < root) {
            root = next;
        }
        // The next who asks has one step to go.
        let mut at = shift;
        while let Some(next) = self.0.insert(at, root).filter(|next| *next > root) {
            at = next;
        }
        root
    }

    fn join(&mut self, a: Option<i64>, b: Option<i64>) {
        let (Some(a), Some(b)) = (a, b) else { return };
        let (a, b) = (self.root(a), self.root(b));
        self.0.insert(a.max(b), a.min(b));
    }

    /// What most anchors are in.
    fn main(&mut self, pins: &BTreeSet<Pin>) -> i64 {
        let mut counts: BTreeMap<i64, usize> = BTreeMap::new();
        for pin in pins {
            let count = counts.entry(self.root(pin.shift())).or_default();
            *count = count.saturating_add(1);
        }
        let mut main = (0, 0);
        for (root, count) in counts {
            if count > main.1 {
                main = (root, count);
            }
        }
        main.0
    }
}

/// The sizes that all steps need.
struct Bench<'a> {
    volume: &'a Volume,
    free: &'a [Range<u64>],
    block: u64,
    fan: u64,
    /// Pieces that may still be made.
    left: usize,
    /// What there was more of than is looked at.
    cut: BTreeSet<&'static str>,
}

fn build(volume: Volume, free: &[Range<u64>], cut: bool, clues: &[Clue]) -> Assembly {
    let store = Datastore::new(volume, Vec::new());
    let header = &store.volume.space.header;
    let block = 1_u64.checked_shl(header.file_shift).unwrap_or(1);
    let fan = 1_u64.checked_shl(header.fan_shift).unwrap_or(1);
    let mut bench = Bench { volume: &store.volume, free, block, fan, left: MOST_PIECES, cut: BTreeSet::new() };
    let mut findings = Vec::new();
    let mut note = |text: String| findings.push(Finding::new("VMFS-FREE", 0..0, Trust::Inferred, text));
    if cut {
        note(format!("free space in more than {MOST_RANGES} stretches: what lies behind them was not searched"));
    }
    let classes = guest::classes(clues);
    for (class, bytes) in classes.totals().into_iter().filter(|(_, bytes)| *bytes > 0) {
        note(format!("free space: {bytes} bytes: {}", class.words()));
    }
    let mut known = BTreeMap::new();
    let mut records = Vec::new();
    let (mut count, mut parts): (usize, usize) = (0, MOST_PARTS);
    for clue in clues {
        if count >= MOST_ANCHORS {
            note(format!("more than {MOST_ANCHORS} structures of guests: those from {:#x} on are left out", clue.at));
            break;
        }
        if let Some(mut anchor) = guest::anchor(store.volume.lv(), clue) {
            count = count.saturating_add(1);
            if let Some(left) = parts.checked_sub(anchor.parts.len()) {
                parts = left;
            } else {
                anchor.parts.clear();
                bench.cut.insert("partitions");
            }
            add(&mut known, anchor);
        } else if let Some(record) = guest::record(store.volume.lv(), clue) {
            count = count.saturating_add(1);
            records.push(record);
        }
    }
    bench.attach(&mut known, &records);
    let mut candidates = bench.candidates(&known);
    candidates = bench.split(candidates, store.fragments());
    bench.place(&mut candidates, store.fragments());
    candidates.retain(|candidate| {
        candidate.anchors > 1 || candidate.of.sort == Sort::Gpt && !candidate.clone || !candidate.leaves.is_empty()
    });
    if candidates.len() > MOST_FINDS {
        note(format!("more than {MOST_FINDS} disks and volumes: the others are left out"));
        candidates.truncate(MOST_FINDS);
    }
    let disks: BTreeSet<Identity> =
        candidates.iter().map(|candidate| candidate.of).filter(|of| of.sort.is_disk()).collect();
    let rivals = deleted(&store) > disks.len().max(1);
    bench.fill(&mut candidates, store.fragments(), rivals);
    let (stray, cut) = stray::finds(&store, clues);
    if cut {
        bench.cut.insert("descriptors in free space");
    }
    for what in &bench.cut {
        note(format!("more {what} than are looked at: the others are left out"));
    }
    if store.fragments().cut {
        note("more free pages of pointers than any volume has pointer blocks: the others are left out".into());
    }
    drop_nested(&mut candidates, block);
    doubt_shared(&mut candidates);
    let mut finds = name(&store, &candidates, &classes);
    finds.extend(stray);
    Assembly { finds, findings }
}

fn add(known: &mut BTreeMap<Identity, Known>, anchor: Anchor) {
    let entry = known.entry(anchor.of).or_default();
    entry.anchors.push((anchor.at, anchor.offsets));
    entry.len = entry.len.or(anchor.len);
    entry.hidden = entry.hidden.or(anchor.hidden);
    entry.mft = entry.mft.or(anchor.mft);
    if entry.parts.is_empty() {
        entry.parts = anchor.parts;
    }
    if entry.label.is_empty() {
        entry.label = anchor.label;
    }
}

/// Where a volume or disk would have to start for an anchor to lie where it lies.
fn start(at: u64, offset: u64) -> i64 {
    signed(at).saturating_sub(signed(offset))
}

fn starts(what: &Known) -> BTreeSet<i64> {
    what.anchors.iter().flat_map(|(at, offsets)| offsets.iter().map(move |offset| start(*at, *offset))).collect()
}

/// A partition, and what claims to be in it.
#[derive(Clone, Copy)]
struct Room {
    disk: Identity,
    at: u64,
    len: u64,
}

/// Which partition of which disk a volume lies in, if that is clear: the only one that it lies behind without a break,
/// or else the only one of its length, and nobody else has as good a claim to it. Whether comparisons were left
/// out is told beside it.
fn homes(known: &BTreeMap<Identity, Known>) -> (BTreeMap<Identity, (Identity, u64)>, bool) {
    let mut rooms: Vec<Room> = Vec::new();
    // Where a volume starts that lies where a partition's table says, counted from where the table lies.
    let mut by_start: BTreeMap<i64, Vec<usize>> = BTreeMap::new();
    let (mut left, mut cut) = (MOST_STARTS, false);
    for (disk, what) in known.iter().filter(|(of, _)| of.sort.is_disk()) {
        let starts = starts(what);
        for part in &what.parts {
            for start in &starts {
                let Some(less) = left.checked_sub(1) else {
                    cut = true;
                    break;
                };
                left = less;
                by_start.entry(start.saturating_add(signed(part.start))).or_default().push(rooms.len());
            }
            rooms.push(Room { disk: *disk, at: part.start, len: part.len });
        }
    }
    let mut by_len: Vec<(u64, usize)> = (0..).zip(&rooms).map(|(i, room)| (room.len, i)).collect();
    by_len.sort_unstable();
    let volumes = || known.iter().filter(|(of, _)| !of.sort.is_disk());
    // Per room, how many volumes have it by their start, and how many by their length and not by their start.
    let mut behind: BTreeMap<usize, BTreeSet<Identity>> = BTreeMap::new();
    for (volume, what) in volumes() {
        for room in starts(what).iter().filter_map(|start| by_start.get(start)).flatten() {
            let fits = rooms.get(*room).is_some_and(|room| what.len.is_none_or(|len| len <= room.len));
            let Some(less) = left.checked_sub(usize::from(fits)) else {
                cut = true;
                break;
            };
            left = less;
            if fits {
                behind.entry(*room).or_default().insert(*volume);
            }
        }
    }
    let mut sure: BTreeMap<Identity, Vec<usize>> = BTreeMap::new();
    for (room, volumes) in &behind {
        for volume in volumes {
            sure.entry(*volume).or_default().push(*room);
        }
    }
    // By length: only the first two of a volume and of a room matter, as then neither is clear.
    let mut of_room: BTreeMap<usize, usize> = BTreeMap::new();
    let mut by_length: BTreeMap<Identity, Vec<usize>> = BTreeMap::new();
    for (volume, what) in volumes() {
        let Some(len) = what.len else { continue };
        let first = by_len.partition_point(|(room, _)| *room < len);
        let fitting = by_len.iter().skip(first).take_while(|(room, _)| room.saturating_sub(len) < SLACK);
        let right =
            |room: &usize| rooms.get(*room).is_some_and(|room| what.hidden.is_none_or(|hidden| hidden == room.at));
        for room in fitting.map(|(_, room)| *room) {
            let Some(less) = left.checked_sub(1) else {
                cut = true;
                break;
            };
            left = less;
            if right(&room) {
                let count = of_room.entry(room).or_default();
                *count = count.saturating_add(1);
                by_length.entry(*volume).or_default().push(room);
            }
        }
    }
    let mut homes = BTreeMap::new();
    for (volume, _) in volumes() {
        let [room] = sure.get(volume).or_else(|| by_length.get(volume)).map_or(&[][..], Vec::as_slice) else {
            continue;
        };
        let others = behind.get(room).map_or(0, |of| of.iter().filter(|other| *other != volume).count());
        let same = of_room.get(room).copied().unwrap_or(0);
        let rivals = if sure.contains_key(volume) { others } else { others.max(same.saturating_sub(1)) };
        if let (0, Some(room)) = (rivals, rooms.get(*room)) {
            homes.insert(*volume, (room.disk, room.at));
        }
    }
    (homes, cut)
}

/// The table of the records of a volume: its runs, and where the volume would have to start.
struct Table<'r> {
    of: Identity,
    runs: &'r [(u64, u64)],
    starts: BTreeSet<i64>,
}

impl Bench<'_> {
    /// Finds out of which volume `FILE` records are: they do not say.
    fn attach(&mut self, known: &mut BTreeMap<Identity, Known>, records: &[Record]) {
        let lists: BTreeSet<&[(u64, u64)]> =
            records.iter().filter(|record| !record.runs.is_empty()).map(|record| record.runs.as_slice()).collect();
        let mut left = MOST_STEPS;
        let mut tables: Vec<Table<'_>> = Vec::new();
        for (identity, volume) in known.iter() {
            let Some((cluster, mft, _)) = volume.mft else { continue };
            let Some(less) = left.checked_sub(lists.len()) else {
                self.cut.insert("volumes with records of files");
                break;
            };
            left = less;
            let starts_there =
                |runs: &&&[(u64, u64)]| runs.first().is_some_and(|run| run.1.checked_mul(cluster) == Some(mft));
            let fitting: Vec<&[(u64, u64)]> = lists.iter().filter(starts_there).copied().collect();
            if let [runs] = fitting.as_slice() {
                tables.push(Table { of: *identity, runs, starts: starts(volume) });
            }
        }
        let alone = known.values().filter(|volume| volume.mft.is_some()).count() == 1;
        let mut new: Vec<(Identity, u64, Vec<u64>)> = Vec::new();
        for record in records {
            let Some(less) = left.checked_sub(tables.len()) else {
                self.cut.insert("records of files");
                break;
            };
            left = less;
            let mut fits = Vec::new();
            for Table { of: identity, runs, starts } in &tables {
                let Some(volume) = known.get(identity) else { continue };
                let Some((cluster, _, mirror)) = volume.mft else { continue };
                let Some(at) = record.number.checked_mul(record.size) else { continue };
                let mut offsets: Vec<u64> = Record::place(runs, cluster, at).into_iter().collect();
                // The mirror has the first records a second time.
                if at < record.size.saturating_mul(4).max(cluster) {
                    offsets.push(mirror.saturating_add(at));
                }
                if !alone {
                    offsets.retain(|offset| starts.contains(&start(record.at, *offset)));
                }
                if !offsets.is_empty() {
                    fits.push((*identity, record.at, offsets));
                }
            }
            if fits.len() == 1 {
                new.append(&mut fits);
            }
        }
        for (identity, at, offsets) in new {
            if let Some(volume) = known.get_mut(&identity) {
                volume.anchors.push((at, offsets));
            }
        }
    }

    /// Disks with the volumes on them, and volumes alone, with every block that an anchor lies in.
    fn candidates(&mut self, known: &BTreeMap<Identity, Known>) -> Vec<Candidate> {
        let (homes, cut) = homes(known);
        if cut {
            self.cut.insert("partitions and volumes");
        }
        let mut inside: BTreeMap<Identity, Vec<(Identity, u64)>> = BTreeMap::new();
        for (volume, (disk, start)) in &homes {
            inside.entry(*disk).or_default().push((*volume, *start));
        }
        let mut candidates = Vec::new();
        for (of, what) in known {
            if homes.contains_key(of) {
                continue;
            }
            let mut anchors = what.anchors.clone();
            let mut sorts = BTreeSet::from([of.sort]);
            let mut least = what.parts.iter().map(|part| part.start.saturating_add(part.len)).max().unwrap_or(0);
            let mut skew = 0;
            if of.sort.is_disk() {
                for (volume, start) in inside.get(of).into_iter().flatten() {
                    sorts.insert(volume.sort);
                    let own = known.get(volume).map_or(&[][..], |volume| &volume.anchors);
                    let moved = |offset: &u64| offset.saturating_add(*start);
                    anchors.extend(own.iter().map(|(at, offsets)| (*at, offsets.iter().map(moved).collect())));
                }
            } else {
                // Where in a block the volume starts, most of its anchors know. A leaf can start before the volume.
                let phase = self.phase(&anchors);
                skew = phase.saturating_add(self.fan.saturating_mul(self.block));
                for offset in anchors.iter_mut().flat_map(|(_, offsets)| offsets) {
                    *offset = offset.saturating_add(skew);
                }
                least = what.len.unwrap_or(0);
            }
            let pins = self.pins(&mut anchors);
            candidates.push(Candidate {
                of: *of,
                sorts,
                label: what.label.clone(),
                anchors: anchors.len(),
                pins,
                skew,
                len: what.len,
                least,
                clone: false,
                loose: false,
                leaves: BTreeMap::new(),
                pieces: Vec::new(),
            });
        }
        candidates
    }

    fn phase(&self, anchors: &[(u64, Vec<u64>)]) -> u64 {
        let mut votes: BTreeMap<u64, usize> = BTreeMap::new();
        for (at, offsets) in anchors {
            for offset in offsets {
                let at = at.checked_rem(self.block).unwrap_or(0).saturating_add(self.block);
                let phase = at.saturating_sub(offset.checked_rem(self.block).unwrap_or(0));
                let votes = votes.entry(phase.checked_rem(self.block).unwrap_or(0)).or_default();
                *votes = votes.saturating_add(1);
            }
        }
        votes
            .into_iter()
            .max_by_key(|(phase, votes)| (*votes, u64::MAX.saturating_sub(*phase)))
            .map_or(0, |vote| vote.0)
    }

    /// The blocks of anchors that are clear. Those that are not are taken out of the list.
    fn pins(&self, anchors: &mut Vec<(u64, Vec<u64>)>) -> BTreeSet<Pin> {
        anchors.sort_unstable();
        anchors.dedup();
        let mut votes: BTreeMap<i64, usize> = BTreeMap::new();
        let start = |at: u64, offset: u64| signed(at).saturating_sub(signed(offset));
        for (at, offsets) in anchors.iter_mut() {
            // Blocks are aligned alike in the file and in the volume.
            offsets.retain(|offset| offset.checked_rem(self.block) == at.checked_rem(self.block) && *offset < 1 << 50);
            for offset in offsets.iter() {
                let votes = votes.entry(start(*at, *offset)).or_default();
                *votes = votes.saturating_add(1);
            }
        }
        for (at, offsets) in anchors.iter_mut() {
            let votes = |offset: &u64| votes.get(&start(*at, *offset)).copied().unwrap_or(0);
            let most = offsets.iter().map(votes).max().unwrap_or(0);
            if offsets.len() > 1 {
                offsets.retain(|offset| most > 1 && votes(offset) == most);
            }
        }
        anchors.retain(|(_, offsets)| offsets.len() == 1);
        let blocks = |n: u64| n.checked_div(self.block).unwrap_or(0);
        let pin = |(at, offsets): &(u64, Vec<u64>)| Some(Pin { index: blocks(*offsets.first()?), block: blocks(*at) });
        let mut pins: BTreeSet<Pin> = anchors.iter().filter_map(pin).collect();
        // A block that claims two places proves neither.
        let mut claims: BTreeMap<u64, usize> = BTreeMap::new();
        for pin in &pins {
            let count = claims.entry(pin.block).or_default();
            *count = count.saturating_add(1);
        }
        pins.retain(|pin| claims.get(&pin.block) == Some(&1));
        anchors.retain(|anchor| pin(anchor).is_some_and(|pin| pins.contains(&pin)));
        pins
    }

    /// Takes clones apart.
    fn split(&mut self, candidates: Vec<Candidate>, fragments: &Fragments) -> Vec<Candidate> {
        let contested = |candidate: &Candidate| {
            let mut last = None;
            candidate.pins.iter().any(|pin| last.replace(pin.index) == Some(pin.index))
        };
        let all = candidates.into_iter().filter(|candidate| !candidate.pins.is_empty());
        let (clones, mut all): (Vec<Candidate>, Vec<Candidate>) = all.partition(contested);
        if clones.is_empty() {
            return all;
        }
        // Stretches with one distance; a pointer block that names blocks of several joins them.
        let mut bonds: Vec<Bonds> = clones.iter().map(|candidate| Bonds::new(&candidate.pins)).collect();
        let mut mine: BTreeMap<u64, Vec<(usize, Pin)>> = BTreeMap::new();
        for (i, candidate) in (0..).zip(&clones) {
            for pin in &candidate.pins {
                mine.entry(pin.block).or_default().push((i, *pin));
            }
        }
        let mut left = MOST_STEPS;
        let (block, mut cut) = (self.block, false);
        self.each_pointer(fragments, &mut |_, pointers| {
            let mut bases: BTreeMap<usize, BTreeMap<i64, Vec<i64>>> = BTreeMap::new();
            for pointer in pointers {
                for (of, pin) in mine.get(&pointer.at.checked_div(block).unwrap_or(0)).into_iter().flatten() {
                    let Some(less) = left.checked_sub(1) else {
                        cut = true;
                        return;
                    };
                    left = less;
                    let base = signed(pin.index).saturating_sub(signed(pointer.slot));
                    bases.entry(*of).or_default().entry(base).or_default().push(pin.shift());
                }
            }
            for (of, bases) in bases {
                // Pins that contradict each other join nothing.
                let [shifts] = bases.values().collect::<Vec<_>>()[..] else { continue };
                let Some(bonds) = bonds.get_mut(of) else { continue };
                for pair in shifts.windows(2) {
                    bonds.join(pair.first().copied(), pair.last().copied());
                }
            }
        });
        if cut {
            self.cut.insert("pointers to blocks of several disks");
        }
        for (candidate, mut bonds) in clones.into_iter().zip(bonds) {
            let mut parts: BTreeMap<i64, BTreeSet<Pin>> = BTreeMap::new();
            for pin in &candidate.pins {
                parts.entry(bonds.root(pin.shift())).or_default().insert(*pin);
            }
            for pins in parts.into_values() {
                let mut last = None;
                // Joined, and still two blocks for one place.
                if pins.iter().any(|pin| last.replace(pin.index) == Some(pin.index)) {
                    continue;
                }
                all.push(Candidate {
                    of: candidate.of,
                    sorts: candidate.sorts.clone(),
                    label: candidate.label.clone(),
                    anchors: pins.len(),
                    pins,
                    skew: candidate.skew,
                    len: candidate.len,
                    least: candidate.least,
                    clone: true,
                    loose: false,
                    leaves: BTreeMap::new(),
                    pieces: Vec::new(),
                });
            }
        }
        // As they were: by what they are.
        all.sort_by_key(|candidate| candidate.of);
        all
    }

    fn each_pointer(&mut self, fragments: &Fragments, sink: &mut dyn FnMut(usize, &[Pointer])) {
        let mut left = MOST_POINTERS;
        for (i, leaf) in (0..).zip(&fragments.leaves) {
            let Some(rest) = left.checked_sub(narrow(leaf.count)) else {
                self.cut.insert("pointers in free pages");
                return;
            };
            left = rest;
            sink(i, &Fragments::pointers(self.volume, leaf));
        }
    }

    /// Places leaves by the anchors in the blocks that they name, and then by each other.
    fn place(&mut self, candidates: &mut [Candidate], fragments: &Fragments) {
        let mut pins: BTreeMap<u64, Vec<(usize, u64)>> = BTreeMap::new();
        for (i, candidate) in (0..).zip(candidates.iter()) {
            for pin in &candidate.pins {
                pins.entry(pin.block).or_default().push((i, pin.index));
            }
        }
        let fan = signed(self.fan);
        let mut homes: BTreeMap<usize, (usize, i64)> = BTreeMap::new();
        let (block, mut left, mut cut) = (self.block, MOST_STEPS, false);
        self.each_pointer(fragments, &mut |leaf, pointers| {
            let mut votes: BTreeMap<(usize, i64), usize> = BTreeMap::new();
            let mut total: usize = 0;
            for pointer in pointers {
                let block = pointer.at.checked_div(block).unwrap_or(0);
                for (candidate, index) in pins.get(&block).into_iter().flatten() {
                    let Some(less) = left.checked_sub(1) else {
                        cut = true;
                        return;
                    };
                    left = less;
                    let base = signed(*index).saturating_sub(signed(pointer.slot));
                    let whole = candidates.get(*candidate).is_some_and(|found| found.of.sort.is_disk());
                    total = total.saturating_add(1);
                    // A leaf of a disk starts at a whole leaf; where a volume lies in its disk is not known.
                    if base >= 0 && (!whole || base.checked_rem(fan) == Some(0)) {
                        let votes = votes.entry((*candidate, base)).or_default();
                        *votes = votes.saturating_add(1);
                    }
                }
            }
            let best = votes.iter().max_by_key(|(_, votes)| **votes);
            // One block that was used again by another disk does not take the others away.
            if let Some((home, _)) = best.filter(|(_, votes)| votes.saturating_mul(4) >= total.saturating_mul(3)) {
                homes.insert(leaf, *home);
            }
        });
        if cut {
            self.cut.insert("pointers to blocks with structures of guests");
        }
        // Two leaves in one place contradict each other.
        let mut places: BTreeMap<(usize, i64), usize> = BTreeMap::new();
        for home in homes.values() {
            let count = places.entry(*home).or_default();
            *count = count.saturating_add(1);
        }
        homes.retain(|_, home| places.get(home) == Some(&1));
        for chain in &fragments.chains {
            let of_chain: BTreeSet<(usize, i64)> = chain
                .leaves
                .iter()
                .filter_map(|(number, leaf)| {
                    let (candidate, base) = homes.get(leaf)?;
                    Some((*candidate, base.saturating_sub(signed(*number).saturating_mul(fan))))
                })
                .collect();
            let [(candidate, base)] = of_chain.into_iter().collect::<Vec<_>>()[..] else { continue };
            for (number, leaf) in &chain.leaves {
                let home = (candidate, base.saturating_add(signed(*number).saturating_mul(fan)));
                let free = !places.contains_key(&home);
                if free && home.1 >= 0 && !homes.contains_key(leaf) {
                    homes.insert(*leaf, home);
                    places.insert(home, 1);
                }
            }
        }
        self.between(&mut homes, fragments);
        for (leaf, (candidate, base)) in homes {
            if let Some(candidate) = candidates.get_mut(candidate) {
                candidate.leaves.insert(leaf, base);
            }
        }
    }

    /// Places the leaves between two of one disk, if pages and leaves are as many: pages are taken in order too.
    fn between(&self, homes: &mut BTreeMap<usize, (usize, i64)>, fragments: &Fragments) {
        let mut placed: Vec<(usize, i64, usize)> = homes.iter().map(|(leaf, (of, base))| (*of, *base, *leaf)).collect();
        placed.sort_unstable();
        let numbers: BTreeMap<(u64, bool), usize> =
            (0..).zip(&fragments.leaves).map(|(i, leaf)| ((leaf.number, self.is_second(leaf.at)), i)).collect();
        for pair in placed.windows(2) {
            let [(of, low, first), (other, high, second)] = pair else { continue };
            let (Some(first), Some(second)) = (fragments.leaves.get(*first), fragments.leaves.get(*second)) else {
                continue;
            };
            let gap = high.saturating_sub(*low).checked_div(signed(self.fan)).unwrap_or(0);
            let pages = signed(second.number).saturating_sub(signed(first.number));
            if of != other || gap != pages || !(2..=1 << 16).contains(&gap) {
                continue;
            }
            for step in 1..gap {
                let number = first.number.saturating_add(u64::try_from(step).unwrap_or(0));
                let Some(leaf) = numbers.get(&(number, self.is_second(first.at))) else { continue };
                let base = low.saturating_add(step.saturating_mul(signed(self.fan)));
                homes.entry(*leaf).or_insert((*of, base));
            }
        }
    }

    /// Whether a page lies in `.pb2.sf`, whose numbers are its own.
    fn is_second(&self, at: u64) -> bool {
        self.volume.pools.pb2.as_ref().and_then(|pool| pool.position(0)).is_some_and(|start| {
            let len = self.volume.pools.pb2.as_ref().map_or(0, |pool| pool.file.len());
            (start..start.saturating_add(len)).contains(&at)
        })
    }

    /// Makes the pieces.
    ///
    /// With `rivals`, more disks were deleted than are told apart, so that stretches which nothing but their names joins
    /// can be of two clones: all but the largest are doubtful.
    fn fill(&mut self, candidates: &mut [Candidate], fragments: &Fragments, rivals: bool) {
        // Anchors of all, by block: one that says otherwise keeps a stretch from being filled. Volumes without a disk
        // may lie in one, and speak against it only if they are in several pieces themselves.
        let mut all: BTreeMap<u64, Vec<(usize, i64)>> = BTreeMap::new();
        for (i, candidate) in (0..).zip(candidates.iter()) {
            let shifts: BTreeSet<i64> = candidate.pins.iter().map(|pin| pin.shift()).collect();
            if candidate.of.sort.is_disk() || shifts.len() > 1 {
                for pin in &candidate.pins {
                    all.entry(pin.block).or_default().push((i, pin.shift()));
                }
            }
        }
        for (i, candidate) in (0..).zip(candidates.iter_mut()) {
            let mut bonds = Bonds::new(&candidate.pins);
            let mut mapped = Vec::new();
            for (leaf, base) in &candidate.leaves {
                let Some(leaf) = fragments.leaves.get(*leaf) else { continue };
                let start = u64::try_from(*base).unwrap_or(0);
                let covered = Pin { index: start, block: 0 }..Pin { index: start.saturating_add(self.fan), block: 0 };
                let shifts: Vec<i64> = candidate.pins.range(covered).map(|pin| pin.shift()).collect();
                for pair in shifts.windows(2) {
                    bonds.join(pair.first().copied(), pair.last().copied());
                }
                let pieces = Fragments::pieces(self.volume, leaf, start.saturating_mul(self.block));
                if !self.affords(pieces.len()) {
                    break;
                }
                mapped.push((shifts.first().copied(), pieces));
            }
            let mut pinned = Vec::new();
            let mut last: Option<Pin> = None;
            for pin in &candidate.pins {
                let mut stretch = Vec::new();
                self.stretch(pin.index, pin.block, 1, &mut stretch);
                if let Some(before) = last.replace(*pin).filter(|before| before.block < pin.block) {
                    let (index, block) = (before.index.saturating_add(1), before.block.saturating_add(1));
                    let mut inside = all.range(block..pin.block).flat_map(|(_, pins)| pins).peekable();
                    let count = pin.index.saturating_sub(index);
                    if before.shift() == pin.shift() {
                        if inside.all(|(of, shift)| *of == i && *shift == pin.shift()) {
                            let before = stretch.len();
                            self.stretch(index, block, count, &mut stretch);
                            if !self.affords(stretch.len().saturating_sub(before)) {
                                stretch.truncate(before);
                            }
                        }
                    } else if inside.peek().is_none() && self.skip(index, block..pin.block, count, &mut stretch) {
                        bonds.join(Some(before.shift()), Some(pin.shift()));
                    }
                }
                pinned.push((Some(pin.shift()), stretch));
            }
            let main = bonds.main(&candidate.pins);
            let mut trusted = |stretches: Vec<(Option<i64>, Vec<Piece>)>| -> Vec<Piece> {
                let mut trusted = Vec::new();
                for (shift, pieces) in stretches {
                    let loose = rivals && shift.is_some_and(|shift| bonds.root(shift) != main);
                    candidate.loose |= loose;
                    let trust = if loose { Trust::Doubtful } else { Trust::Inferred };
                    trusted.extend(pieces.into_iter().map(|piece| Piece { trust, ..piece }));
                }
                trusted
            };
            let (mapped, pinned) = (trusted(mapped), trusted(pinned));
            let end = candidate.pins.iter().map(|pin| pin.index.saturating_add(1).saturating_mul(self.block)).max();
            candidate.least = candidate.least.max(end.unwrap_or(0).saturating_sub(candidate.skew));
            let upto = candidate.len.map_or(u64::MAX, |len| len.saturating_add(candidate.skew));
            let pieces = lay(&[mapped, pinned]);
            let skew = candidate.skew;
            let moved = |piece: Piece| Piece { at: piece.at.saturating_sub(skew), ..piece };
            candidate.pieces = pieces.iter().filter_map(|piece| piece.cut(skew, upto)).map(moved).collect();
        }
    }

    /// Whether there is room for so many pieces more.
    fn affords(&mut self, pieces: usize) -> bool {
        let left = self.left.checked_sub(pieces);
        if left.is_none() {
            self.cut.insert("pieces of disks");
        }
        self.left = left.unwrap_or(self.left);
        left.is_some()
    }

    /// The free blocks of a stretch of the volume, if they are as many as are missing: those in between were somebody
    /// else's when the disk grew over them.
    fn skip(&mut self, index: u64, blocks: Range<u64>, count: u64, pieces: &mut Vec<Piece>) -> bool {
        let (start, end) = (blocks.start.saturating_mul(self.block), blocks.end.saturating_mul(self.block));
        let first = self.free.partition_point(|range| range.end <= start);
        let inside = self.free.iter().skip(first).take_while(|range| range.start < end);
        let inside: Vec<Range<u64>> =
            inside.map(|range| range.start.max(start)..range.end.min(end)).take(self.left.saturating_add(1)).collect();
        let free: u64 = inside.iter().map(|range| range.end.saturating_sub(range.start)).sum();
        if free != count.saturating_mul(self.block) || !self.affords(inside.len()) {
            return false;
        }
        let mut at = index.saturating_mul(self.block);
        for range in inside {
            let len = range.end.saturating_sub(range.start);
            pieces.push(Piece { at, len, source: Source::Volume(range.start), trust: Trust::Inferred });
            at = at.saturating_add(len);
        }
        true
    }

    /// Blocks one behind the other, by whether they are free.
    fn stretch(&self, index: u64, block: u64, count: u64, pieces: &mut Vec<Piece>) {
        let start = block.saturating_mul(self.block);
        let end = start.saturating_add(count.saturating_mul(self.block)).min(self.volume.lv().len());
        let to = |at: u64| index.saturating_mul(self.block).saturating_add(at.saturating_sub(start));
        let mut push = |from: u64, upto: u64, source: Source| {
            if from < upto {
                let len = upto.saturating_sub(from);
                pieces.push(Piece { at: to(from), len, source, trust: Trust::Inferred });
            }
        };
        let first = self.free.partition_point(|range| range.end <= start);
        let mut at = start;
        // One more than there is room for says that there is none.
        for range in self.free.iter().skip(first).take_while(|range| range.start < end).take(self.left.max(1)) {
            let from = range.start.max(start);
            push(at, from, Source::Taken(at));
            at = range.end.min(end);
            push(from, at, Source::Volume(from));
        }
        push(at, end, Source::Taken(at));
    }
}

fn volume_ranges(candidate: &Candidate) -> impl Iterator<Item = Range<u64>> + '_ {
    candidate.pieces.iter().filter_map(|piece| match piece.source {
        Source::Volume(at) => Some(at..at.saturating_add(piece.len)),
        _ => None,
    })
}

/// Leaves out volumes that lie in a disk: they are found there.
fn drop_nested(candidates: &mut Vec<Candidate>, block: u64) {
    let mut of_disks: Vec<Range<u64>> =
        candidates.iter().filter(|candidate| candidate.of.sort.is_disk()).flat_map(volume_ranges).collect();
    of_disks.sort_unstable_by_key(|range| range.start);
    let mut ends: Vec<(u64, u64)> = Vec::new();
    for range in of_disks {
        match ends.last_mut() {
            Some(last) if range.start <= last.1 => last.1 = last.1.max(range.end),
            _ => ends.push((range.start, range.end)),
        }
    }
    let covered = |number: u64| {
        let at = number.saturating_mul(block);
        let next = ends.partition_point(|range| range.1 <= at);
        ends.get(next).is_some_and(|range| range.0 <= at)
    };
    candidates.retain(|candidate| candidate.of.sort.is_disk() || !candidate.pins.iter().all(|pin| covered(pin.block)));
}

/// What two have is doubtful in both.
fn doubt_shared(candidates: &mut [Candidate]) {
    let mut ranges: Vec<Range<u64>> = candidates.iter().flat_map(volume_ranges).collect();
    ranges.sort_unstable_by_key(|range| (range.start, range.end));
    let mut shared: Vec<Range<u64>> = Vec::new();
    let mut furthest = 0;
    for range in ranges {
        let end = range.end.min(furthest);
        if range.start < end {
            match shared.last_mut() {
                Some(last) if range.start <= last.end => last.end = last.end.max(end),
                _ => shared.push(range.start..end),
            }
        }
        furthest = furthest.max(range.end);
    }
    if shared.is_empty() {
        return;
    }
    for candidate in candidates {
        let mut doubtful = Vec::new();
        for piece in &candidate.pieces {
            let Source::Volume(at) = piece.source else { continue };
            let end = at.saturating_add(piece.len);
            let first = shared.partition_point(|range| range.end <= at);
            for range in shared.iter().skip(first).take_while(|range| range.start < end) {
                let from = piece.at.saturating_add(range.start.saturating_sub(at));
                let upto = piece.at.saturating_add(range.end.min(end).saturating_sub(at));
                doubtful.extend(piece.cut(from, upto).map(|piece| Piece { trust: Trust::Doubtful, ..piece }));
            }
        }
        candidate.pieces = lay(&[doubtful, std::mem::take(&mut candidate.pieces)]);
    }
}

/// How many descriptors there are of files that were deleted and had pointer blocks, as only disks do. There may have
/// been more: descriptors are used again.
fn deleted(store: &Datastore) -> usize {
    let mut count: usize = 0;
    let _ = store.tell_finds(&mut |find| {
        let fd = store.fact(find.entry.id).map(|(fd, _)| fd);
        let of_disk = |fd: &Descriptor| matches!(fd.shape, Shape::Mapped { levels: 1.., .. });
        if find.entry.kind == Kind::File && find.entry.state != State::Orphaned && fd.is_ok_and(|fd| of_disk(&fd)) {
            count = count.saturating_add(1);
        }
        ControlFlow::Continue(())
    });
    count
}

/// The disks that descriptions name and that are gone.
fn hints(store: &Datastore) -> (Vec<Hint>, Option<NodeId>) {
    let mut hints: Vec<Hint> = Vec::new();
    let mut asked: BTreeSet<(Option<NodeId>, Vec<u8>, u64)> = BTreeSet::new();
    let mut known: BTreeSet<(Vec<u8>, u64)> = BTreeSet::new();
    let mut add = |text: &[u8], parent: Option<NodeId>, gone: &dyn Fn(&[u8]) -> bool| {
        if hints.len() >= MOST_FINDS || asked.len() >= MOST_ASKED {
            return;
        }
        for (name, len) in extents(text) {
            let is_known = known.contains(&(name.clone(), len)) || !asked.insert((parent, name.clone(), len));
            if !is_known && gone(&name) {
                known.insert((name.clone(), len));
                hints.push(Hint { name, len, parent });
            }
        }
    };
    let text_of = |id: NodeId| {
        let bytes = store.open(id).ok()?;
        let len = bytes.len();
        (1..=TEXT).contains(&len).then(|| read_vec(&*bytes, 0, narrow(len)).0)
    };
    let mut left = MOST_ENTRIES;
    let mut open = vec![store.root()];
    let mut seen: BTreeSet<NodeId> = open.iter().copied().collect();
    while let Some(dir) = open.pop() {
        let mut texts = Vec::new();
        let _ = store.list(dir, 0, &mut |entry| {
            let Some(rest) = left.checked_sub(1) else { return ControlFlow::Break(()) };
            left = rest;
            let Ok(entry) = entry else { return ControlFlow::Continue(()) };
            if entry.kind == Kind::Dir && seen.insert(entry.id) {
                open.push(entry.id);
            } else if entry.kind == Kind::File && entry.name.ends_with(b".vmdk") {
                texts.push(entry.id);
            }
            ControlFlow::Continue(())
        });
        for id in texts {
            if let Some(text) = text_of(id) {
                add(&text, Some(dir), &|name| matches!(store.lookup(dir, name), Ok(None)));
            }
        }
    }
    let mut parents = BTreeSet::new();
    let _ = store.tell_finds(&mut |find| {
        if find.entry.kind == Kind::File {
            let node = store.node(find.entry.id);
            match node.map(|node| node.len) {
                // Its pointers and length are wiped: what `ESXi` deleted.
                Ok(0) if find.entry.state == State::Deleted => parents.extend(find.parent),
                Ok(1..=TEXT) => {
                    if let Some(text) = text_of(find.entry.id) {
                        add(&text, find.parent, &|_| true);
                    }
                }
                _ => {}
            }
        }
        ControlFlow::Continue(())
    });
    let sub = 1_u64.checked_shl(store.volume.space.header.sub_shift).unwrap_or(0).min(TEXT);
    for at in &store.fragments().texts {
        add(&read_vec(store.volume.lv(), *at, narrow(sub)).0, None, &|_| true);
    }
    // All that was deleted was in one folder, so that these were too.
    let parent = parents.first().copied().filter(|_| parents.len() == 1);
    (hints, parent)
}

/// The flat extents that the description of a disk names: file and bytes.
fn extents(text: &[u8]) -> Vec<(Vec<u8>, u64)> {
    let text = text.split(|byte| *byte == 0).next().unwrap_or_default();
    let line = |line: &[u8]| {
        let line = std::str::from_utf8(line).ok()?;
        let mut quoted = line.split('"');
        let mut words = quoted.next()?.split_ascii_whitespace();
        let (access, sectors, kind) = (words.next()?, words.next()?, words.next()?);
        let len = sectors.parse::<u64>().ok()?.checked_mul(guest::SECTOR)?;
        let name = quoted.next()?;
        let plain = !name.is_empty() && !name.contains('/');
        (matches!(access, "RW" | "RDONLY") && kind == "VMFS" && plain).then(|| (name.as_bytes().to_vec(), len))
    };
    text.split(|byte| *byte == b'\n').take(4096).filter_map(line).collect()
}

/// Names the candidates and says what stands behind each.
fn name(store: &Datastore, candidates: &[Candidate], classes: &Classes) -> Vec<Found> {
    let (hints, deleted_in) = hints(store);
    let fits = |candidate: &Candidate, hint: &Hint| match candidate.len {
        _ if !candidate.of.sort.is_disk() => false,
        Some(len) => hint.len == len,
        None => hint.len.checked_sub(candidate.least).is_some_and(|rest| rest <= TAIL),
    };
    let mut used: BTreeMap<Vec<u8>, usize> = BTreeMap::new();
    let mut finds = Vec::new();
    for candidate in candidates {
        let fitting: Vec<&Hint> = hints.iter().filter(|hint| fits(candidate, hint)).collect();
        let hint = match fitting.as_slice() {
            // As many disks would fit the description: it names none.
            [hint] if candidates.iter().filter(|other| fits(other, hint)).count() == 1 => Some(*hint),
            _ => None,
        };
        let (mut name, named) = match hint {
            Some(hint) => (hint.name.clone(), Named::Descriptor),
            None if candidate.of.sort.is_disk() => (format!("disk_{}", candidate.of).into_bytes(), Named::Place),
            None => {
                let label = if candidate.label.is_empty() { b"volume".to_vec() } else { candidate.label.clone() };
                // A label is any bytes: it must not make a path.
                let label = label.iter().map(|byte| if matches!(byte, b'/' | 0) { b'_' } else { *byte });
                let end = format!("_{}_{}", candidate.of.sort.word(), candidate.of);
                (label.chain(end.into_bytes()).collect(), Named::Place)
            }
        };
        let count = used.entry(name.clone()).or_default();
        *count = count.saturating_add(1);
        if *count > 1 {
            name.extend(format!("_{count}").into_bytes());
        }
        let len = hint.map_or(candidate.len.unwrap_or(candidate.least), |hint| hint.len.max(candidate.least));
        let shared = candidate.pieces.iter().any(|piece| piece.trust == Trust::Doubtful);
        let trust = if shared { Trust::Doubtful } else { Trust::Inferred };
        let why = why(candidate, hint, classes);
        let parent = hint.map_or(deleted_in, |hint| hint.parent.or(deleted_in));
        let layer = Assembled::new(Arc::clone(&store.volume.space.lv), len, candidate.pieces.clone(), 0);
        finds.push(Found { name, named, parent, why, trust, state: State::Fragment, layer: Arc::new(layer) });
    }
    finds
}

fn why(candidate: &Candidate, hint: Option<&Hint>, classes: &Classes) -> String {
    let (mut free, mut filled, mut taken, mut holes) = (0_u64, 0_u64, 0_u64, 0_u64);
    for piece in &candidate.pieces {
        match piece.source {
            Source::Volume(at) => {
                free = free.saturating_add(piece.len);
                filled = filled.saturating_add(classes.filled(at, piece.len));
            }
            Source::Taken(_) => taken = taken.saturating_add(piece.len),
            Source::Hole(_) => holes = holes.saturating_add(piece.len),
        }
    }
    let sorts: Vec<&str> = candidate.sorts.iter().map(|sort| sort.word()).collect();
    let mut text = format!("{} structures of {} say where their blocks belong", candidate.anchors, sorts.join(", "));
    if !candidate.leaves.is_empty() {
        let _ = write!(text, "; {} free pointer blocks name its blocks", candidate.leaves.len());
    }
    let _ = write!(text, "; {free} bytes are there");
    let zero = free.saturating_sub(filled);
    if zero > 0 {
        let _ = write!(text, ", of which {zero} read zero: unmapped or never written");
    }
    if holes > 0 {
        let _ = write!(text, "; {holes} were never written");
    }
    if taken > 0 {
        let _ = write!(text, "; {taken} are overwritten");
    }
    if candidate.clone {
        text.push_str("; other blocks claim the same places, so that it is one stretch of one of several copies");
    }
    if candidate.loose {
        text.push_str("; more disks were deleted than are told apart, so that a part may be of a copy");
    }
    if let Some(hint) = hint {
        let _ = write!(text, "; the description of a disk that is gone gives name and length, {} bytes", hint.len);
    }
    text
}

/// What was put together.
#[derive(Debug)]
struct Found {
    name: Vec<u8>,
    named: Named,
    parent: Option<NodeId>,
    why: String,
    trust: Trust,
    state: State,
    layer: Bytes,
}

/// The tree of what was put together. Its root lists nothing: all are finds. Parents are nodes of the datastore.
#[derive(Debug)]
struct Assembly {
    finds: Vec<Found>,
    findings: Vec<Finding>,
}

impl Assembly {
    fn found(&self, id: NodeId) -> Result<&Found, Error> {
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
