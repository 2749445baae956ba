//! What all steps need, and the first of them: which blocks of a disk are known, and which pages of pointers.

use super::bond::Bonds;
use super::candidate::{Candidate, Pin};
use super::home::homes;
use super::known::{Known, MOST_STEPS};
use super::signed;
use crate::guest::Identity;
use crate::layer::Layer as _;
use crate::num::narrow;
use crate::vmfs::fragment::Fragments;
use crate::vmfs::page::Pointer;
use crate::vmfs::volume::Volume;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

/// Pointers of free pointer blocks that are compared with anchors: those of 64 TiB.
const MOST_POINTERS: usize = 1 << 26;

/// The sizes that all steps need.
pub(super) struct Bench<'a> {
    pub(super) volume: &'a Volume,
    pub(super) free: &'a [Range<u64>],
    pub(super) block: u64,
    pub(super) fan: u64,
    /// Pieces that may still be made.
    pub(super) left: usize,
    /// What there was more of than is looked at.
    pub(super) cut: BTreeSet<&'static str>,
}

impl Bench<'_> {
    /// Disks with the volumes on them, and volumes alone, with every block that an anchor lies in.
    pub(super) fn candidates(&mut self, known: &BTreeMap<Identity, Known>) -> Vec<Candidate> {
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

    pub(super) fn phase(&self, anchors: &[(u64, Vec<u64>)]) -> u64 {
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
    pub(super) fn pins(&self, anchors: &mut Vec<(u64, Vec<u64>)>) -> BTreeSet<Pin> {
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
    pub(super) fn split(&mut self, candidates: Vec<Candidate>, fragments: &Fragments) -> Vec<Candidate> {
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

    pub(super) fn each_pointer(&mut self, fragments: &Fragments, sink: &mut dyn FnMut(usize, &[Pointer])) {
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
    pub(super) fn place(&mut self, candidates: &mut [Candidate], fragments: &Fragments) {
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
    pub(super) fn between(&self, homes: &mut BTreeMap<usize, (usize, i64)>, fragments: &Fragments) {
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
    pub(super) fn is_second(&self, at: u64) -> bool {
        self.volume.pools.pb2.as_ref().and_then(|pool| pool.position(0)).is_some_and(|start| {
            let len = self.volume.pools.pb2.as_ref().map_or(0, |pool| pool.file.len());
            (start..start.saturating_add(len)).contains(&at)
        })
    }
}
