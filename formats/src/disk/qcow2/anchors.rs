//! What the guest's own structures say of where a table belongs: a cluster with a partition table, a superblock or one
//! of its copies knows its place on the disk ([`crate::guest`]), and so the table that names it knows its own.
//!
//! A volume says where it is in itself only. Where it starts on the disk, the partition table says, or the volume's own
//! count of hidden sectors; without a partition table it may be the whole disk.

use super::census::Plan;
use super::entry::Taken;
use crate::adapt;
use crate::blocks::{mask, shl};
use crate::format::Window;
use crate::guest::{self, Anchor, Part};
use crate::num::narrow;
use crate::read::read_vec;
use std::collections::{BTreeMap, BTreeSet};

/// Clusters that are looked at: 512 MiB are read at most.
const MOST: u32 = 1 << 16;
/// Anchors that are used.
const MOST_ANCHORS: usize = 1 << 10;
/// What is read of a cluster: superblocks lie a KiB behind the start of their volume.
const HEAD: u64 = 8 << 10;
/// What an anchor may need behind its cluster: a partition table.
const REACH: u64 = 1 << 20;
/// Where partitions start if no table says so.
const USUAL: u64 = 1 << 20;

/// What was seen of the guest's disk.
#[derive(Debug, Default)]
pub(super) struct Seen {
    /// Anchors with the table that names their cluster and where in what the table maps they are.
    anchors: Vec<(u64, u64, Anchor)>,
}

impl Seen {
    /// Looks at the clusters that these tables name.
    pub(super) fn new(plan: &Plan, tables: &[u64]) -> Self {
        let mut seen = Self::default();
        let mut left = MOST;
        for table in tables {
            plan.each_l2(*table, &mut |slot, taken| {
                let Some(Taken::Cluster(host)) = taken else { return };
                let Some(rest) = left.checked_sub(1).filter(|_| seen.anchors.len() < MOST_ANCHORS) else { return };
                left = rest;
                let into = shl(slot, plan.dialect.cluster_bits);
                for anchor in anchors(plan, host) {
                    let at = into.saturating_add(anchor.at);
                    seen.anchors.push((*table, at, anchor));
                }
            });
        }
        seen
    }

    fn disks(&self) -> impl Iterator<Item = &(u64, u64, Anchor)> {
        self.anchors.iter().filter(|(_, _, anchor)| anchor.of.sort.is_disk())
    }

    fn parts(&self) -> Vec<Part> {
        let mut parts: Vec<Part> = Vec::new();
        for (_, _, anchor) in self.disks() {
            for part in &anchor.parts {
                if !parts.contains(part) {
                    parts.push(*part);
                }
            }
        }
        parts
    }

    /// The length of the disk, where its partition table says it, else what its partitions or volume reach.
    pub(super) fn len(&self) -> (Option<u64>, u64) {
        let stated: BTreeSet<u64> = self.disks().filter_map(|(_, _, anchor)| anchor.len).collect();
        let stated = (stated.len() == 1).then(|| stated.first().copied()).flatten();
        let parts = self.parts();
        let reach = parts.iter().map(|part| part.start.saturating_add(part.len)).max();
        let alone = || {
            let lens = self.anchors.iter().filter(|(_, at, anchor)| anchor.offsets.contains(at));
            lens.filter_map(|(_, _, anchor)| anchor.len).max()
        };
        (stated, reach.or_else(alone).unwrap_or(0))
    }

    /// The entry of L1 of each table whose anchors agree on one below `needed`.
    pub(super) fn places(&self, plan: &Plan, needed: u64) -> BTreeMap<u64, u64> {
        let bits = plan.dialect.span_bits();
        let parts = self.parts();
        let starts = |anchor: &Anchor| -> Vec<u64> {
            match (anchor.of.sort.is_disk(), anchor.hidden) {
                (true, _) => vec![0],
                (false, Some(hidden)) => vec![hidden],
                (false, None) if parts.is_empty() => vec![0, USUAL],
                (false, None) => {
                    let room = |part: &&Part| anchor.len.is_none_or(|len| len <= part.len);
                    parts.iter().filter(room).map(|part| part.start).collect()
                }
            }
        };
        let mut votes: BTreeMap<u64, BTreeMap<u64, u64>> = BTreeMap::new();
        for (table, at, anchor) in &self.anchors {
            let mut fits: BTreeSet<u64> = BTreeSet::new();
            for start in starts(anchor) {
                for offset in &anchor.offsets {
                    let from = start.checked_add(*offset).and_then(|place| place.checked_sub(*at));
                    let index = from.filter(|from| from & mask(bits) == 0).map(|from| from >> bits);
                    fits.extend(index.filter(|index| *index < needed));
                }
            }
            // Copies that are alike say nothing alone.
            if fits.len() == 1 {
                for index in fits {
                    let count = votes.entry(*table).or_default().entry(index).or_default();
                    *count = count.saturating_add(1);
                }
            }
        }
        let mut places: BTreeMap<u64, u64> = BTreeMap::new();
        for (table, votes) in votes {
            let most = votes.values().copied().max().unwrap_or(0);
            let mut best = votes.iter().filter(|(_, count)| **count == most).map(|(index, _)| *index);
            if let (Some(index), None) = (best.next(), best.next()) {
                places.insert(table, index);
            }
        }
        // Two tables for one place: what is inside of a guest's file has anchors too.
        let mut takers: BTreeMap<u64, u32> = BTreeMap::new();
        for index in places.values() {
            let count = takers.entry(*index).or_default();
            *count = count.saturating_add(1);
        }
        places.retain(|_, index| takers.get(index) == Some(&1));
        places
    }
}

/// Where these tables belong, as far as the guest's structures tell.
pub(super) fn places(plan: &Plan, tables: &[u64], needed: u64) -> BTreeMap<u64, u64> {
    // The partition table may be where nothing was lost.
    let mut all: Vec<u64> = tables.to_vec();
    if let Some(state) = plan.states.first() {
        let mut known = Vec::new();
        plan.each_l1(state, &mut |index, table| {
            if let Some(super::entry::Table::At(table)) = table
                && (index == 0 || index.saturating_add(1) == state.l1_size)
            {
                known.push(table);
            }
        });
        all.extend(known);
    }
    let mut places = Seen::new(plan, &all).places(plan, needed);
    let own: BTreeSet<u64> = tables.iter().copied().collect();
    places.retain(|table, _| own.contains(table));
    places
}

/// The anchors of a cluster, each with its place in it.
fn anchors(plan: &Plan, host: u64) -> Vec<Anchor> {
    let file = plan.tables.layer();
    let reach = file.len().saturating_sub(host).min(REACH.max(plan.size()));
    let own = plan.size().min(HEAD).min(reach);
    let (bytes, seen) = read_vec(&**file, host, narrow(reach.min(HEAD)));
    if !seen.is_whole() {
        return Vec::new();
    }
    // From here on the file goes on with the disk in most images, and what an anchor needs has checksums.
    let part = adapt::Window::new(file.clone(), host, reach);
    let mut found = Vec::new();
    let mut look = |at: u64, bytes: &[u8], own: u64| {
        guest::look(&Window { at, bytes, own: narrow(own) }, &mut |clue| found.extend(guest::anchor(&part, &clue)));
    };
    look(0, &bytes, own);
    // The second copy of a GPT ends the disk.
    let last = plan.states.first().map_or(0, |state| state.len).checked_sub(guest::SECTOR);
    let tail = last.map_or(plan.size().saturating_sub(guest::SECTOR), |last| last & mask(plan.dialect.cluster_bits));
    if tail >= own && tail.saturating_add(guest::SECTOR) <= reach {
        let (bytes, _) = read_vec(&part, tail, narrow(guest::SECTOR));
        look(tail, &bytes, guest::SECTOR);
    }
    found
}
