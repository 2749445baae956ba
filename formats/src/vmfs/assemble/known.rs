//! What was seen of each volume and disk, by the structures that name it.

use super::bench::Bench;
use super::signed;
use crate::guest::{Anchor, Identity, Part, Record};
use std::collections::{BTreeMap, BTreeSet};

/// Comparisons of records of files with volumes, and of pointers with anchors.
pub(super) const MOST_STEPS: usize = 1 << 27;

/// What was seen of one volume or disk.
#[derive(Default)]
pub(super) struct Known {
    /// Where an anchor was seen, and where in the volume or disk it can lie.
    pub(super) anchors: Vec<(u64, Vec<u64>)>,
    pub(super) len: Option<u64>,
    pub(super) hidden: Option<u64>,
    pub(super) parts: Vec<Part>,
    pub(super) label: Vec<u8>,
    pub(super) mft: Option<(u64, u64, u64)>,
}

pub(super) fn add(known: &mut BTreeMap<Identity, Known>, anchor: Anchor) {
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
pub(super) fn start(at: u64, offset: u64) -> i64 {
    signed(at).saturating_sub(signed(offset))
}

pub(super) fn starts(what: &Known) -> BTreeSet<i64> {
    what.anchors.iter().flat_map(|(at, offsets)| offsets.iter().map(move |offset| start(*at, *offset))).collect()
}

/// The table of the records of a volume: its runs, and where the volume would have to start.
struct Table<'r> {
    of: Identity,
    runs: &'r [(u64, u64)],
    starts: BTreeSet<i64>,
}

impl Bench<'_> {
    /// Finds out of which volume `FILE` records are: they do not say.
    pub(super) fn attach(&mut self, known: &mut BTreeMap<Identity, Known>, records: &[Record]) {
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
}
