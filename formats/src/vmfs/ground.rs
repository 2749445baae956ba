//! The ground of a resource file: which of its bytes are there at all.
//!
//! How long a resource file is, and how many resources it has, its descriptor and its header only claim. What costs
//! work is what lies in the volume: pointers can lead to one place over and over, and to places that were never
//! written. So every pass over all clusters, or all resources, goes by the ground: each place of the volume once, and
//! none where the volume has a hole. What can't be read is ground too, as far as clusters go: somebody has to tell.

use super::address::Spot;
use super::resource::{Part, Resource};
use crate::cursor::walk_merged;
use crate::layer::{Layer, Place};
use std::ops::{ControlFlow, Range};

/// Runs of the file and of what lies below it that are looked at. `.sbc.sf` of a volume of 64 TiB has 65536 blocks.
const STEPS: usize = 1 << 20;
/// Clusters that are told: 64 TiB in blocks of 512 KiB are 700,000.
const CLUSTERS: usize = 1 << 20;
/// Those of them that can't be had: as many as 64 TiB of VMFS6 have.
const LOST: usize = 1 << 17;
/// No resource is smaller.
const SMALLEST: u64 = 512;

/// Consecutive bytes of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Stretch {
    file: Range<u64>,
    /// Where they lie in the volume.
    at: u64,
    state: State,
}

/// What the volume has there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    There,
    /// They can't be had.
    Lost,
    Hole,
}

impl Stretch {
    fn len(&self) -> u64 {
        self.file.end.saturating_sub(self.file.start)
    }
}

/// The ground of one resource file.
#[derive(Clone, Debug, Default)]
pub(super) struct Ground {
    stretches: Vec<Stretch>,
    /// Place in the volume, length, and place in the file, by the first.
    places: Vec<(u64, u64, u64)>,
    /// There is more of it than any volume has.
    pub cut: bool,
}

impl Ground {
    /// Walks the map of the file. Reads no more than its pointers.
    pub(super) fn of(resource: &Resource, lv: &dyn Layer) -> Self {
        let mut found = Self::default();
        let len = resource.file.len();
        let (mut at, mut left): (u64, usize) = (0, STEPS);
        while at < len {
            let Some(less) = left.checked_sub(1) else {
                found.cut = true;
                break;
            };
            left = less;
            let run = resource.file.run(at, len.saturating_sub(at));
            let end = at.saturating_add(run.len.max(1)).min(len);
            if let Place::Below { offset, .. } = run.place {
                for part in walk_merged(lv, offset..offset.saturating_add(end.saturating_sub(at))) {
                    left = left.saturating_sub(1);
                    let from = at.saturating_add(part.at.saturating_sub(offset));
                    let state = match part.place {
                        Place::Hole | Place::Zero => State::Hole,
                        Place::Lost(_) => State::Lost,
                        _ => State::There,
                    };
                    found.stretches.push(Stretch { file: from..from.saturating_add(part.len), at: part.at, state });
                    if left == 0 {
                        break;
                    }
                }
            } else {
                found.stretches.push(Stretch { file: at..end, at: u64::MAX, state: State::Lost });
            }
            at = end;
        }
        found.once();
        found
    }

    /// Leaves out places of the volume that an earlier part of the file has.
    fn once(&mut self) {
        let all = std::mem::take(&mut self.stretches);
        let (mapped, mut kept): (Vec<Stretch>, Vec<Stretch>) = all.into_iter().partition(|part| part.at != u64::MAX);
        let mut mapped = mapped;
        mapped.sort_by_key(|part| (part.at, part.file.start));
        let mut taken: u64 = 0;
        for mut part in mapped {
            let (end, skip) = (part.at.saturating_add(part.len()), taken.saturating_sub(part.at));
            taken = end.max(taken);
            if skip < part.len() {
                part.file.start = part.file.start.saturating_add(skip);
                part.at = part.at.saturating_add(skip);
                self.places.push((part.at, part.len(), part.file.start));
                kept.push(part);
            }
        }
        kept.sort_by_key(|part| part.file.start);
        self.stretches = kept;
    }

    /// The clusters whose headers are there, or were, ascending.
    pub(super) fn clusters(&mut self, resource: &Resource) -> Vec<u64> {
        let total = resource.clusters();
        let size = resource.headers_len().checked_div(resource.per_group).unwrap_or(0);
        let end_of = |cluster| resource.header(cluster).map_or(u64::MAX, |at| at.saturating_add(size));
        let mut found = Vec::new();
        let (mut next, mut last, mut room): (u64, Option<u64>, usize) = (0, None, LOST);
        for part in self.stretches.iter().filter(|part| part.state != State::Hole) {
            let (mut low, mut high) = (next, total);
            while low < high {
                let middle = low.saturating_add(high.saturating_sub(low) >> 1);
                if end_of(middle) > part.file.start { high = middle } else { low = middle.saturating_add(1) }
            }
            next = low;
            while next < total {
                let Some(at) = resource.header(next).filter(|at| *at < part.file.end) else { break };
                // Groups that lie in each other are of no volume.
                if last.replace(at).is_some_and(|last| at <= last) || found.len() >= CLUSTERS {
                    self.cut = true;
                    return found;
                }
                if part.state == State::Lost {
                    let Some(less) = room.checked_sub(1) else {
                        self.cut = true;
                        break;
                    };
                    room = less;
                }
                found.push(next);
                next = next.saturating_add(1);
            }
        }
        found
    }

    /// The resources of which any byte is there, ascending, each with its place in the file.
    pub(super) fn spots(
        &self,
        resource: &Resource,
        sink: &mut dyn FnMut(Spot, u64) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        if resource.size < SMALLEST {
            return ControlFlow::Continue(());
        }
        let mut last = None;
        for part in self.stretches.iter().filter(|part| part.state == State::There) {
            let mut at = part.file.start;
            while at < part.file.end {
                let (what, end) = resource.part(at);
                if let Part::Body(spot) = what
                    && last.replace(spot) != Some(spot)
                    && let Some(body) = resource.body(spot)
                {
                    sink(spot, body)?;
                }
                at = end.max(at.saturating_add(SMALLEST));
            }
        }
        ControlFlow::Continue(())
    }

    /// Which byte of the file lies at a place of the volume.
    pub(super) fn file_at(&self, at: u64) -> Option<u64> {
        let before = self.places.partition_point(|place| place.0 <= at).checked_sub(1)?;
        let (start, len, file) = *self.places.get(before)?;
        let into = at.saturating_sub(start);
        (into < len).then(|| file.saturating_add(into))
    }
}
