//! Pointer blocks that no file has any more.
//!
//! `ESXi` wipes the pointers in the descriptor of a file that it deletes, but a pointer block is freed as it is, until it
//! is used again (the one freed pointer block that real images have is zero, so that this is luck and not the rule).
//! What is left of one says which blocks made up 1 GiB (VMFS5 with blocks of 1 MiB) or 8 GiB (VMFS6) of a disk, in
//! order. It does not say of which disk, and which GiB.
//!
//! The journals of VMFS5 hold copies of pages as well, which are used where the page itself is no more.
//!
//! Pages of `.pbc.sf` and `.pb2.sf` are nothing else, but the sub-blocks of VMFS6 hold the content of small files as
//! well. A page is taken for pointers only if every word of it that is not zero is one, of one kind, into the volume,
//! twice to no place, ascending where there are few, and if some of the blocks are free: a pointer has 21 or more bits
//! that are the same in all pointers, so that what is none does not pass.

mod chained;

use self::chained::Chained;
use super::address::{Address, Spot};
use super::ground::Ground;
use super::header::Header;
use super::journal::{self, Standing};
use super::page::{Page, Pointer};
use super::pieces::{Piece, Source, lay};
use super::resource::{Part, Resource};
use super::tree::Datastore;
use super::volume::{Pools, Volume};
use crate::error::Error;
use crate::layer::{Bytes, Trust};
use crate::num::{narrow, wide};
use crate::read::read_vec;
use crate::tree::{Entry, Find, Finder, Kind, Named, Node, NodeId, State};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::sync::Arc;

/// Nodes from here on are fragments: behind it the sector of the volume in which the first pointer block lies.
const NODES: u64 = 1 << 40;
/// Free pages that are read in one resource file: 64 GiB of sub-blocks.
const MOST_PAGES: usize = 1 << 20;
/// Pages that are named by free pages of addresses: those of 64 TiB are a fourth of this.
const MOST_NAMES: usize = 1 << 18;
/// Leaves that are kept: enough for 64 TiB of VMFS5, or 512 TiB of VMFS6.
const MOST_LEAVES: usize = 1 << 16;
/// Fewer pointers are no evidence.
const FEWEST: usize = 4;
/// So many need not be in order.
const MANY: usize = 64;
/// Of so many blocks one must be free, or the page is of a file that is alive.
const FREE: usize = 8;
/// What the description of a disk starts with.
const DESCRIPTION: &[u8] = b"# Disk DescriptorFile";

/// A page of pointers to data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Leaf {
    /// Where it lies in the volume.
    pub at: u64,
    /// Its address.
    pub spot: Spot,
    /// Its number among all pages of its resource file.
    pub number: u64,
    /// Pointers in it.
    pub count: u64,
    /// How many of their blocks are still free.
    pub free: u64,
    /// The first of them.
    pub first: Pointer,
    /// The last of them.
    pub last: Pointer,
}

/// Leaves that follow each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Chain {
    /// Which leaves, each with its number in the chain.
    pub leaves: Vec<(u64, usize)>,
    /// Where the page lies that says so, if one does.
    pub upper: Option<u64>,
}

/// All that is left of pointer blocks on a volume.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Fragments {
    /// Leaves, by their place in their file.
    pub leaves: Vec<Leaf>,
    /// What they make up; each leaf is in one.
    pub chains: Vec<Chain>,
    /// Free sub-blocks that hold the description of a disk, as places in the volume.
    pub texts: Vec<u64>,
    /// There are more than were looked at.
    pub cut: bool,
}

/// The pointers of a page that lead to data, if it is one of a file that is gone. `free` tells whether the block at a
/// place in the volume is free.
fn judge(
    header: &Header,
    mut pointers: Vec<Pointer>,
    free: &dyn Fn(u64) -> Option<bool>,
) -> Option<(Vec<Pointer>, u64)> {
    pointers.retain(|pointer| !pointer.zero);
    if pointers.len() < FEWEST {
        return None;
    }
    let mut places: Vec<u64> = pointers.iter().map(|pointer| pointer.at).collect();
    let up = places.windows(2).filter(|pair| pair.first() < pair.last()).count();
    places.sort_unstable();
    places.dedup();
    let steps = places.len().saturating_sub(1);
    if places.len() != pointers.len() || pointers.len() < MANY && up.saturating_mul(4) < steps.saturating_mul(3) {
        return None;
    }
    // Numbers that grow by the same amount can look like pointers that leave out as many blocks each. That files which
    // grow side by side do is no reason for more than a few.
    let strides: BTreeSet<u64> =
        places.windows(2).filter_map(|pair| pair.last()?.checked_sub(*pair.first()?)).collect();
    let block = 1_u64.checked_shl(header.file_shift)?;
    if let (1, Some(stride)) = (strides.len(), strides.first())
        && *stride >= block.saturating_mul(8)
    {
        return None;
    }
    let left = pointers.iter().filter(|pointer| free(pointer.at) != Some(false)).count();
    (left.saturating_mul(FREE) >= pointers.len()).then(|| (pointers, wide(left)))
}

/// Shows all pages that are free, or all where no bitmap tells. Whether there were more than are looked at.
fn pages(volume: &Volume, pool: &Resource, ground: &Ground, sink: &mut dyn FnMut(Spot, u64, &[u8])) -> bool {
    let len = narrow(pool.size.min(volume.space.header.table_size()));
    let mut left = MOST_PAGES;
    let mut state = (u64::MAX, Vec::new());
    let flow = ground.spots(pool, &mut |spot, body| {
        if state.0 != spot.cluster {
            let free = pool.cluster(&volume.space, spot.cluster).map(|state| state.free).unwrap_or_default();
            state = (spot.cluster, free);
        }
        if state.1.get(narrow(spot.resource)) == Some(&false) {
            return ControlFlow::Continue(());
        }
        let Some(at) = pool.position(body) else { return ControlFlow::Continue(()) };
        let Some(next) = left.checked_sub(1) else { return ControlFlow::Break(()) };
        left = next;
        let (bytes, seen) = read_vec(volume.lv(), at, len);
        if seen.is_whole() {
            sink(spot, at, &bytes);
        }
        ControlFlow::Continue(())
    });
    flow.is_break()
}

/// Shows what the journals of VMFS5 have as copies of pages, the newest first: where each belongs, and where it is. Once
/// `sink` has taken one, no older one of its journal is shown: the newest can be the page as it was wiped. What a host
/// did not finish does not count.
fn copies(volume: &Volume, sink: &mut dyn FnMut(u64, u64, &[u8]) -> bool) {
    let len = volume.space.header.table_size();
    for journal in journal::journals(volume) {
        let mut taken = BTreeSet::new();
        let whole = journal.records.iter().rev().filter(|record| record.standing != Standing::Torn);
        for piece in whole.flat_map(|record| &record.pieces).filter(|piece| piece.len == len) {
            if taken.contains(&piece.target) {
                continue;
            }
            let (bytes, gaps) = read_vec(&*journal.bytes, piece.at, narrow(len));
            if gaps.is_whole() && sink(piece.target, journal.at.saturating_add(piece.at), &bytes) {
                taken.insert(piece.target);
            }
        }
    }
}

impl Fragments {
    /// Looks for all of them. Reads the free pages of the resource files, and nothing else.
    pub(super) fn survey(volume: &Volume) -> Self {
        let header = &volume.space.header;
        let mut found = Self::default();
        let mut uppers: Vec<(u64, Vec<(u64, u64)>)> = Vec::new();
        let mut names_left = MOST_NAMES;
        let Pools { pb2, pbc, sbc, .. } = &*volume.pools;
        for (pool, subs) in [(pbc, false), (pb2, false), (sbc, true)] {
            let Some(pool) = pool else { continue };
            let ground = Ground::of(pool, volume.lv());
            let mut cut = ground.cut;
            cut |= pages(volume, pool, &ground, &mut |spot, at, bytes| {
                if subs && bytes.starts_with(DESCRIPTION) {
                    if found.texts.len() < MOST_LEAVES {
                        found.texts.push(at);
                    } else {
                        found.cut = true;
                    }
                }
                // Only on VMFS6 sub-blocks hold pointers.
                if subs && !header.is_six() {
                    return;
                }
                match Page::of(header, volume.lv().len(), bytes) {
                    Page::Data(pointers) => {
                        found.add(volume, pool, spot, at, pointers);
                    }
                    Page::Pages(addresses) => {
                        let Some(names) = upper(volume, &addresses) else { return };
                        let Some(left) = names_left.checked_sub(names.len()) else {
                            found.cut = true;
                            return;
                        };
                        names_left = left;
                        uppers.push((at, names));
                    }
                    Page::Other => {}
                }
            });
            found.cut |= cut;
        }
        if let Some(pool) = pbc.as_ref().filter(|_| !header.is_six()) {
            let known: BTreeSet<u64> = found.leaves.iter().map(|leaf| leaf.at).collect();
            let ground = Ground::of(pool, volume.lv());
            copies(volume, &mut |target, at, bytes| {
                let file_at = ground.file_at(target).filter(|_| !known.contains(&target));
                let Some((Part::Body(spot), file_at)) = file_at.map(|at| (pool.part(at).0, at)) else { return false };
                let page = Page::of(header, volume.lv().len(), bytes);
                match page {
                    Page::Data(pointers) if pool.body(spot) == Some(file_at) => {
                        found.add(volume, pool, spot, at, pointers)
                    }
                    _ => false,
                }
            });
        }
        found.chain(header, &uppers);
        found
    }

    /// Keeps a page of pointers to data, if that is what it is.
    fn add(&mut self, volume: &Volume, pool: &Resource, spot: Spot, at: u64, pointers: Vec<Pointer>) -> bool {
        let free = |at: u64| is_free(volume, at);
        let Some((pointers, left)) = judge(&volume.space.header, pointers, &free) else { return false };
        let (Some(first), Some(last)) = (pointers.first(), pointers.last()) else { return false };
        if self.leaves.len() >= MOST_LEAVES {
            self.cut = true;
            return false;
        }
        let number = spot.cluster.saturating_mul(pool.per_cluster).saturating_add(spot.resource);
        let count = wide(pointers.len());
        self.leaves.push(Leaf { at, spot, number, count, free: left, first: *first, last: *last });
        true
    }

    /// Puts the leaves in chains: by the pages that name them, and where one is full and the next starts with the
    /// block behind its last.
    fn chain(&mut self, header: &Header, uppers: &[(u64, Vec<(u64, u64)>)]) {
        let by_place: BTreeMap<u64, usize> = (0..).zip(&self.leaves).map(|(i, leaf)| (leaf.at, i)).collect();
        let mut used = BTreeSet::new();
        for (at, names) in uppers {
            let leaves: Vec<(u64, usize)> =
                names.iter().filter_map(|(slot, at)| Some((*slot, *by_place.get(at)?))).collect();
            // A page of addresses whose pages are no pointers is a coincidence, or was used again.
            if leaves.len().saturating_mul(2) < names.len() || leaves.iter().any(|(_, leaf)| used.contains(leaf)) {
                continue;
            }
            used.extend(leaves.iter().map(|(_, leaf)| *leaf));
            self.chains.push(Chain { leaves, upper: Some(*at) });
        }
        let fan = 1_u64.checked_shl(header.fan_shift).unwrap_or(1);
        let block = 1_u64.checked_shl(header.file_shift).unwrap_or(1);
        let alone = |i: &usize| !used.contains(i);
        let mut starts: BTreeMap<u64, Vec<usize>> = BTreeMap::new();
        let mut ends: BTreeMap<u64, usize> = BTreeMap::new();
        for (i, leaf) in (0..).zip(&self.leaves).filter(|(i, _)| alone(i)) {
            if leaf.first.slot == 0 {
                starts.entry(leaf.first.at).or_default().push(i);
            }
            if leaf.last.slot.saturating_add(1) == fan {
                let count = ends.entry(leaf.last.at.saturating_add(block)).or_insert(0);
                *count = count.saturating_add(1);
            }
        }
        let next = |leaf: &Leaf| {
            let at = leaf.last.at.saturating_add(block);
            let full = leaf.last.slot.saturating_add(1) == fan && ends.get(&at) == Some(&1);
            let [only] = starts.get(&at).filter(|_| full)?.as_slice() else { return None };
            Some(*only)
        };
        let behind: BTreeSet<usize> =
            self.leaves.iter().zip(0..).filter(|(_, i)| alone(i)).filter_map(|(leaf, _)| next(leaf)).collect();
        for first in (0..self.leaves.len()).filter(|i| alone(i) && !behind.contains(i)) {
            let mut leaves = Vec::new();
            let mut leaf = Some(first);
            while let Some(i) = leaf.filter(|_| leaves.len() < self.leaves.len()) {
                leaves.push((wide(leaves.len()), i));
                leaf = self.leaves.get(i).and_then(next);
            }
            self.chains.push(Chain { leaves, upper: None });
        }
        // What goes round in a circle has no first, and is no chain.
        let told: BTreeSet<usize> = self.chains.iter().flat_map(|chain| &chain.leaves).map(|(_, leaf)| *leaf).collect();
        let rest: Vec<usize> = (0..self.leaves.len()).filter(|i| !told.contains(i)).collect();
        self.chains.extend(rest.into_iter().map(|i| Chain { leaves: vec![(0, i)], upper: None }));
        self.chains
            .sort_by_key(|chain| chain.leaves.first().and_then(|(_, i)| self.leaves.get(*i)).map(|leaf| leaf.at));
    }

    /// The pointers of a leaf.
    pub(super) fn pointers(volume: &Volume, leaf: &Leaf) -> Vec<Pointer> {
        let header = &volume.space.header;
        let (bytes, _) = read_vec(volume.lv(), leaf.at, narrow(header.table_size()));
        match Page::of(header, volume.lv().len(), &bytes) {
            Page::Data(pointers) => pointers.into_iter().filter(|pointer| !pointer.zero).collect(),
            Page::Pages(_) | Page::Other => Vec::new(),
        }
    }

    /// What a leaf maps, as pieces of a file in which its first slot lies at `start`.
    pub(super) fn pieces(volume: &Volume, leaf: &Leaf, start: u64) -> Vec<Piece> {
        let header = &volume.space.header;
        let shift = header.file_shift;
        let len = 1_u64.checked_shl(shift).unwrap_or(1);
        let offset = |slot: u64| start.saturating_add(slot.saturating_mul(len));
        let fan = 1_u64.checked_shl(header.fan_shift).unwrap_or(1);
        let hole =
            Piece { at: start, len: fan.saturating_mul(len), source: Source::Hole(leaf.at), trust: Trust::Inferred };
        let data = |pointer: Pointer| {
            let free = is_free(volume, pointer.at) != Some(false);
            let source = if free { Source::Volume(pointer.at) } else { Source::Taken(pointer.at) };
            Piece { at: offset(pointer.slot), len, source, trust: Trust::Inferred }
        };
        lay(&[Self::pointers(volume, leaf).into_iter().map(data).collect(), vec![hole]])
    }
}

/// Whether the block at a place in the volume is free. `None` if no bitmap tells.
pub(super) fn is_free(volume: &Volume, at: u64) -> Option<bool> {
    let blocks = volume.blocks()?;
    let number = at.checked_shr(volume.space.header.file_shift)?;
    blocks.is_free(&volume.space, blocks.spot(number)?).map(|(free, _)| free)
}

/// The slots of a page of addresses of pages, and where in the volume those lie.
fn upper(volume: &Volume, addresses: &[(u64, Address)]) -> Option<Vec<(u64, u64)>> {
    let mut seen = BTreeSet::new();
    let place = |(slot, address): &(u64, Address)| {
        let (pool, offset) = volume.pools.table(*address)?;
        let at = pool.position(offset)?;
        seen.insert(at).then_some((*slot, at))
    };
    addresses.iter().map(place).collect()
}

/// Tells what pointer blocks are left of, chain by chain. Cheap beside a search of the free space: only the free pages
/// of the resource files are read, once a datastore. Names are made up of the place of the first page.
pub(super) fn finds(store: &Datastore, sink: Finder<'_>) -> ControlFlow<()> {
    for chain in &store.fragments().chains {
        let Some(find) = store.fragment_find(chain) else { continue };
        sink(find)?;
    }
    ControlFlow::Continue(())
}

impl Datastore {
    /// What is left of pointer blocks. No lock is held while it is looked for.
    pub(super) fn fragments(&self) -> &Fragments {
        if let Some(fragments) = self.fragments.get() {
            return fragments;
        }
        let fragments = Fragments::survey(&self.volume);
        self.fragments.get_or_init(|| fragments)
    }

    fn fragment_find(&self, chain: &Chain) -> Option<Find> {
        let leaves: Vec<&Leaf> =
            chain.leaves.iter().filter_map(|(_, leaf)| self.fragments().leaves.get(*leaf)).collect();
        let first = leaves.first()?;
        let (blocks, free) = leaves.iter().fold((0_u64, 0_u64), |(blocks, free), leaf| {
            (blocks.saturating_add(leaf.count), free.saturating_add(leaf.free))
        });
        let Spot { cluster, resource } = first.spot;
        // Pages of different resource files can have the same address.
        let name = format!("fragment_{:x}_c{cluster}_r{resource}", first.at);
        let order = match (leaves.len(), chain.upper) {
            (1, _) => "its place in the file is not known",
            (_, Some(_)) => "in the order of the pointer block above them",
            (_, None) => "in order, because the blocks of each go on where those of the one before end",
        };
        let why = format!(
            "{} free pointer blocks name {blocks} blocks, of which {free} are still free; {order}",
            leaves.len()
        );
        let id = NodeId(NODES | first.at >> 9);
        let entry = Entry { name: name.into_bytes(), id, kind: Kind::File, state: State::Fragment, next: 0 };
        Some(Find { entry, parent: None, named: Named::Place, why })
    }

    /// The chain of a node. `None` if the node is no fragment.
    pub(super) fn fragment(&self, id: NodeId) -> Option<Result<&Chain, Error>> {
        let sector = id.0.checked_sub(NODES).filter(|sector| *sector < NODES)?;
        let fragments = self.fragments();
        let sector_of = |chain: &Chain| {
            let first = chain.leaves.first().and_then(|(_, leaf)| fragments.leaves.get(*leaf));
            first.map_or(0, |leaf| leaf.at >> 9)
        };
        // Chains are in the order of their first pages.
        let found = fragments.chains.binary_search_by_key(&sector, sector_of);
        Some(found.ok().and_then(|index| fragments.chains.get(index)).ok_or(Error::NotFound))
    }

    fn fragment_len(&self, chain: &Chain) -> u64 {
        let header = &self.volume.space.header;
        let span = header.fan_shift.saturating_add(header.file_shift);
        let last = chain.leaves.iter().map(|(number, _)| *number).max().unwrap_or(0);
        1_u64.checked_shl(span).unwrap_or(0).saturating_mul(last.saturating_add(1))
    }

    /// Facts of a chain.
    pub(super) fn fragment_node(&self, chain: &Chain) -> Node {
        Node {
            state: State::Fragment,
            trust: Trust::Inferred,
            ..Node::plain(Kind::File, self.fragment_len(chain), 0o600)
        }
    }

    /// The content of a chain.
    pub(super) fn open_fragment(&self, chain: &Chain) -> Bytes {
        let fragments = self.fragments();
        let page = |(number, leaf): &(u64, usize)| Some((*number, fragments.leaves.get(*leaf)?.at));
        let pages = chain.leaves.iter().filter_map(page).collect();
        let at = chain.upper.unwrap_or_default();
        Arc::new(Chained::new(self.volume.clone(), pages, self.fragment_len(chain), at))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, clippy::arithmetic_side_effects, reason = "tests")]
    use super::*;

    fn header(six: bool) -> Header {
        super::super::tests::header(six)
    }

    const LV: u64 = 2 << 40;

    fn judged(six: bool, bytes: &[u8]) -> Option<usize> {
        let Page::Data(pointers) = Page::of(&header(six), LV, bytes) else { return None };
        judge(&header(six), pointers, &|_| Some(true)).map(|(pointers, _)| pointers.len())
    }

    fn page6(numbers: impl Iterator<Item = u64>) -> Vec<u8> {
        let mut page: Vec<u8> = numbers
            .flat_map(|n| if n == 0 { [0; 8] } else { (1 | (n / 512) << 15 | (n % 512) << 51).to_le_bytes() })
            .collect();
        page.resize(65536, 0);
        page
    }

    fn page5(numbers: impl Iterator<Item = u32>) -> Vec<u8> {
        let mut page: Vec<u8> = numbers.flat_map(|n| if n == 0 { 0 } else { n << 6 | 1 }.to_le_bytes()).collect();
        page.resize(4096, 0);
        page
    }

    #[test]
    fn pointers_are_taken_for_pointers() {
        assert_eq!(judged(true, &page6(5000..13192)), Some(8192));
        assert_eq!(judged(true, &page6([0, 0, 700, 701, 0, 702, 900].into_iter())), Some(4));
        assert_eq!(judged(true, &page6((0..200).map(|n| 3000 + n * 7919 % 997))), Some(200), "out of order");
        assert_eq!(judged(false, &page5(700..1724)), Some(1024));
        assert_eq!(judged(false, &page5([0, 90, 91, 0, 92, 300].into_iter())), Some(4));
    }

    #[test]
    fn what_a_file_holds_is_not() {
        let mut random = Vec::new();
        let mut state: u64 = 88_172_645_463_325_252;
        while random.len() < 65536 {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            random.extend(state.to_le_bytes());
        }
        let text: Vec<u8> = b"RW 83886080 VMFS \"x-flat.vmdk\"\n".iter().copied().cycle().take(65536).collect();
        let numbers = |step: u64, from: u64| -> Vec<u8> {
            (0..8192).flat_map(|n: u64| from.wrapping_add(n.wrapping_mul(step)).to_le_bytes()).collect()
        };
        let small = |step: u32, from: u32| -> Vec<u8> {
            (0..1024).flat_map(|n: u32| from.wrapping_add(n.wrapping_mul(step)).to_le_bytes()).collect()
        };
        for six in [true, false] {
            for bytes in [&random, &text, &vec![0; 65536], &vec![0xFF; 65536], &vec![1; 65536]] {
                assert_eq!(judged(six, bytes), None);
            }
        }
        for step in [1, 2, 8, 64, 512, 1 << 15, 1 << 16, 1 << 20, 1 << 32] {
            for from in [0, 1, 2, 0x8001] {
                assert_eq!(judged(true, &numbers(step, from)), None, "{from} and steps of {step}");
            }
        }
        for step in [1, 2, 4, 8, 16, 512, 4096] {
            for from in [0, 1, 65] {
                assert_eq!(judged(false, &small(step, from)), None, "{from} and steps of {step}");
            }
        }
        assert_eq!(judged(true, &page6([700, 701, 702].into_iter())), None, "three are no evidence");
        assert_eq!(judged(true, &page6([700, 701, 702, 703, 701].into_iter())), None, "one block twice");
        assert_eq!(judged(true, &page6([700, 650, 702, 600, 640, 500].into_iter())), None, "few, and in no order");
        assert_eq!(judged(true, &page6((1 << 30)..(1 << 30) + 80)), None, "behind the volume");
        let free = |_: u64| Some(false);
        let Page::Data(pointers) = Page::of(&header(true), LV, &page6(5000..6000)) else { panic!("no pointers") };
        assert_eq!(judge(&header(true), pointers, &free), None, "all used: of a file that is alive");
    }
}
