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

mod assembly;
mod bench;
mod bond;
mod candidate;
mod fill;
mod home;
mod known;
mod name;
mod stray;

use self::assembly::Assembly;
use self::bench::Bench;
use self::candidate::{doubt_shared, drop_nested};
use self::known::add;
use self::name::{deleted, name};
use super::tree::Datastore;
use super::volume::Volume;
use crate::format::{Clue, Window};
use crate::guest::{self, Identity, Sort};
use crate::layer::Trust;
use crate::note::Finding;
use crate::num::narrow;
use crate::tree::Search;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;

/// Ranges of free space that are kept: 64 MiB. What is behind is not searched, and that is a finding.
const MOST_RANGES: usize = 1 << 22;
/// Anchors that are used.
const MOST_ANCHORS: usize = 1 << 18;
/// Partitions that are compared with volumes.
const MOST_PARTS: usize = 1 << 20;
/// Pieces of all disks together.
const MOST_PIECES: usize = 1 << 21;
/// Finds of one search.
const MOST_FINDS: usize = 1 << 12;

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

fn build(volume: Volume, free: &[Range<u64>], cut: bool, clues: &[Clue]) -> Assembly {
    let store = Datastore::new(volume, Vec::new());
    let header = &store.volume.space.header;
    let block = 1_u64.checked_shl(header.file_shift).unwrap_or(1);
    let fan = 1_u64.checked_shl(header.fan_shift).unwrap_or(1);
    let mut bench = Bench { volume: &store.volume, free, block, fan, left: MOST_PIECES, cut: BTreeSet::new() };
    let mut findings = Vec::new();
    let classes = guest::classes(clues);
    for (class, bytes) in classes.totals().into_iter().filter(|(_, bytes)| *bytes > 0) {
        // What lies in free space is a fact, and nothing against what is alive.
        let text = format!("free space: {bytes} bytes: {}", class.words());
        findings.push(Finding::new("VMFS-FREE", 0..0, Trust::Sound, text));
    }
    let mut note = |text: String| findings.push(Finding::new("VMFS-FREE", 0..0, Trust::Inferred, text));
    if cut {
        note(format!("free space in more than {MOST_RANGES} stretches: what lies behind them was not searched"));
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
