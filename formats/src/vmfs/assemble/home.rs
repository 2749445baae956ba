//! Which partition of which disk a volume lies in.

use super::known::{Known, starts};
use super::signed;
use crate::guest::Identity;
use std::collections::{BTreeMap, BTreeSet};

/// Places where a volume could start by the partitions of disks.
const MOST_STARTS: usize = 1 << 20;
/// A volume can be so much shorter than its partition.
const SLACK: u64 = 1 << 20;

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
pub(super) fn homes(known: &BTreeMap<Identity, Known>) -> (BTreeMap<Identity, (Identity, u64)>, bool) {
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
