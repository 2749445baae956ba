//! Who has the bytes of a device: the reverse of following a byte down.
//!
//! Everything that could have a byte (each file, disk, volume, structure and free range of the case) is walked down
//! to the device, and of it only what meets the question is kept: memory is bounded by what is asked, not by what
//! the device holds. Where an answer would be too large still, the question is cut in two.

mod chain;
mod list;
#[cfg(test)]
mod tests;
mod tops;

pub use chain::{Level, Step};
pub use list::read_list;

use crate::audit::MAX_NESTED;
use crate::case::Case;
use crate::progress::Progress;
use crate::ranges::RangeSet;
use crate::source::Source;
use anyhow::Result;
use chain::{Chain, Known};
use rayon::prelude::*;
use std::collections::HashSet;
use std::ops::{ControlFlow, Range};
use std::sync::Arc;
use tops::{Top, Tops};
pub(crate) use tops::{gaps, is_system};
use vdrecover_formats::cursor::same_layer;
use vdrecover_formats::{Layer, NodeId, Note, Place, State, Trust, Use, walk};

/// Hits that are kept at once, about 100 bytes each.
const MOST: usize = 1 << 20;
/// Owners of one byte that are told one by one. A packed unit of 2 MiB can have a thousand descriptors; where nothing
/// is packed no sound image comes near.
const SHOWN: usize = 2048;
/// A question is not cut further than that.
const SMALLEST: u64 = 512;
/// Tops that are walked between two looks at how much there is.
const BATCH: usize = 256;

/// What an owner has the bytes for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Content of a file, a disk or a volume.
    Data,
    /// A structure.
    Structure,
    /// What a datastore has as free.
    Free,
    /// A bitmap has it as used, and no file that can be read leads there.
    Allocated,
    /// A file of structures, in a part that nothing uses now.
    Unused,
    /// Inside something whose content is known, and nothing of that has it.
    Unclaimed,
}

impl Kind {
    /// The stable lower-case word of reports and JSON.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Data => "data",
            Self::Structure => "structure",
            Self::Free => "free",
            Self::Allocated => "allocated",
            Self::Unused => "unused",
            Self::Unclaimed => "unclaimed",
        }
    }
}

/// One owner of a range.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// What for.
    pub kind: Kind,
    /// Of a file: live, or how it was found.
    pub state: State,
    /// How far to believe the way up.
    pub trust: Trust,
    /// Whether the range is packed: it decodes to what the steps above it name.
    pub packed: bool,
    /// From the device upward; the last is the owner itself.
    pub steps: Vec<Step>,
}

/// Consecutive bytes of the device with the same owners.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// On the device.
    pub range: Range<u64>,
    /// All that have it. Never empty: the device itself is the least.
    pub owners: Vec<Owner>,
    /// Whether there are more than are told.
    pub more: bool,
}

/// A part of the question that a top has.
#[derive(Clone, Debug)]
struct Hit {
    range: Range<u64>,
    /// Where it starts in the top.
    at: u64,
    /// Where the way leads through packed units: the place in what each is packed in, from the top downward.
    vias: Box<[u64]>,
    by: By,
}

#[derive(Clone, Debug)]
enum By {
    /// A top, which is opened again to tell the way.
    Top(usize),
    /// A claim: its layer is known only while it is made, and with it the way.
    Claim(Box<(Kind, Chain)>),
}

/// Tells piece by piece who has the ranges `asked` of `source`, ascending.
///
/// # Errors
/// Those of `tell`.
pub fn find(
    case: &Case,
    source: &Arc<Source>,
    asked: &RangeSet,
    progress: &Progress,
    tell: &mut dyn FnMut(&Piece) -> Result<()>,
) -> Result<()> {
    find_in(case, source, asked, MOST, progress, tell)
}

/// The same with at most about so many hits at once.
fn find_in(
    case: &Case,
    source: &Arc<Source>,
    asked: &RangeSet,
    most: usize,
    progress: &Progress,
    tell: &mut dyn FnMut(&Piece) -> Result<()>,
) -> Result<()> {
    let tops = Tops::of(case);
    let search = Search { case, known: &tops.known, tops: &tops.all, source, most };
    progress.start("looking for owners", search.tops.len() as u64);
    let mut open = vec![asked.clone()];
    while let Some(asked) = open.pop() {
        let Some(mut hits) = search.hits(&asked, progress) else {
            let (first, second) = halves(&asked);
            open.extend([second, first]);
            continue;
        };
        hits.sort_by_key(|hit| (hit.range.start, hit.rank()));
        for range in &asked {
            search.tell(range, &hits, tell)?;
        }
    }
    progress.finish();
    Ok(())
}

/// Both halves of a question: of its ranges, or of its only one.
fn halves(asked: &RangeSet) -> (RangeSet, RangeSet) {
    match asked.as_slice() {
        [range] => {
            let middle = range.start + (range.end - range.start) / 2;
            (std::iter::once(range.start..middle).collect(), std::iter::once(middle..range.end).collect())
        }
        ranges => {
            let (first, second) = ranges.split_at(ranges.len() / 2);
            (RangeSet::build(first.to_vec()), RangeSet::build(second.to_vec()))
        }
    }
}

impl Hit {
    /// Among what starts at the same byte, in the order of the case; claims behind.
    fn rank(&self) -> usize {
        match self.by {
            By::Top(top) => top,
            By::Claim(_) => usize::MAX,
        }
    }
}

struct Search<'a> {
    case: &'a Case,
    known: &'a Known,
    tops: &'a [Top],
    source: &'a Arc<Source>,
    most: usize,
}

impl Search<'_> {
    /// All hits; `None` if they are too many and the question can be cut.
    fn hits(&self, asked: &RangeSet, progress: &Progress) -> Option<Vec<Hit>> {
        let most = if asked.total() > SMALLEST { self.most } else { usize::MAX };
        let mut hits = Vec::new();
        let mut add = |found: Vec<Vec<Hit>>| {
            hits.extend(found.into_iter().flatten());
            (hits.len() < most).then_some(())
        };
        for (batch, tops) in self.tops.chunks(BATCH).enumerate() {
            let of = |(index, top): (usize, &Top)| {
                let mut found = Vec::new();
                if let Some(layer) = top.open(self.case) {
                    let range = top.range.clone().unwrap_or(0..layer.len());
                    self.collect(&*layer, range, asked, most, &mut |range, at, vias| {
                        found.push(Hit { range, at, vias, by: By::Top(batch * BATCH + index) });
                    });
                }
                found
            };
            add(tops.par_iter().enumerate().map(of).collect())?;
            progress.add(tops.len() as u64);
        }
        for (store, tree) in self.case.stores.iter().map(|store| &store.tree).enumerate() {
            let parts: Vec<u32> = (0..tree.parts()).collect();
            for batch in parts.chunks(BATCH) {
                let of = |part: &u32| {
                    let mut found = Vec::new();
                    let _ = tree.audit(*part, &mut |note| {
                        self.note(&note, store, asked, most, &mut found);
                        if found.len() < most { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
                    });
                    found
                };
                add(batch.par_iter().map(of).collect())?;
            }
        }
        for (id, item) in self.case.items.iter().enumerate() {
            let disk = item.disk();
            if same_layer(&*disk, &*item.bytes) {
                continue;
            }
            let parts: Vec<u32> = (0..disk.parts()).collect();
            for batch in parts.chunks(BATCH) {
                let of = |part: &u32| {
                    let mut found = Vec::new();
                    let _ = disk.audit(*part, &mut |note| {
                        if let Note::Claim { layer, range, of: Use::Metadata | Use::Journal } = note {
                            let name =
                                || format!("{} metadata of {}", item.format.name, self.known.item(self.case, id));
                            self.claim(layer, range, Kind::Structure, &name, asked, most, &mut found);
                        }
                        if found.len() < most { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
                    });
                    found
                };
                add(batch.par_iter().map(of).collect())?;
            }
        }
        Some(hits)
    }

    fn note(&self, note: &Note<'_>, store: usize, asked: &RangeSet, most: usize, found: &mut Vec<Hit>) {
        let own = String::from_utf8_lossy(&self.case.stores[store].name);
        match note {
            Note::Claim { layer, range, of } => {
                let name = || match of {
                    Use::Node { id, part } => format!("{} of {}", part.word(), self.known.node(self.case, store, *id)),
                    Use::Journal => format!("journal of store/{own}"),
                    Use::Metadata | Use::Data(_) => format!("metadata of store/{own}"),
                };
                // Content is told by walking the files: a claim does not say where in the file it is.
                if !matches!(of, Use::Data(_)) {
                    self.claim(*layer, range.clone(), Kind::Structure, &name, asked, most, found);
                }
            }
            Note::Free { layer, range } => {
                let name = || format!("free space of store/{own}");
                self.claim(*layer, range.clone(), Kind::Free, &name, asked, most, found);
            }
            Note::Taken { layer, range } => {
                let name = || self.holder(store, range.clone());
                self.claim(*layer, range.clone(), Kind::Allocated, &name, asked, most, found);
            }
            Note::Finding(_) => {}
        }
    }

    /// To whom a store says that a range of it is allocated.
    fn holder(&self, store: usize, range: Range<u64>) -> String {
        let (nodes, is_exact) = self.case.stores[store].tree.holders(range);
        let own = String::from_utf8_lossy(&self.case.stores[store].name);
        let name = |id: &NodeId| {
            let found = self.case.lost().get(crate::case::compose(store, *id));
            found.map_or_else(
                || self.known.node(self.case, store, *id),
                |found| String::from_utf8_lossy(&found.path).into_owned(),
            )
        };
        let names: Vec<String> = nodes.iter().map(name).collect();
        match (names.as_slice(), is_exact) {
            ([], _) => format!("allocated space of store/{own}"),
            (names, true) => format!("allocated space of store/{own}, of {}", names.join(", ")),
            (names, false) => format!("allocated space of store/{own}, perhaps of {}", names.join(" or ")),
        }
    }

    #[expect(clippy::too_many_arguments, reason = "what a claim says, what was asked, and where it goes")]
    fn claim(
        &self,
        layer: &dyn Layer,
        range: Range<u64>,
        kind: Kind,
        name: &dyn Fn() -> String,
        asked: &RangeSet,
        most: usize,
        found: &mut Vec<Hit>,
    ) {
        let start = range.start;
        self.collect(layer, range, asked, most, &mut |range, at, vias| {
            let mut chain = chain::chain(self.known, layer, at, &vias);
            chain.steps.push(Step { level: Level::Structure, name: name().into(), offset: at.saturating_sub(start) });
            found.push(Hit { range, at, vias, by: By::Claim(Box::new((kind, chain))) });
        });
    }

    /// Calls `sink` with each range of the device that both `range` of `layer` and the question have, with where it
    /// starts in `layer`. Ranges that follow each other all the way down come as one.
    fn collect(
        &self,
        layer: &dyn Layer,
        range: Range<u64>,
        asked: &RangeSet,
        most: usize,
        sink: &mut dyn FnMut(Range<u64>, u64, Box<[u64]>),
    ) {
        let mut left = most;
        let mut last: Option<(Range<u64>, u64, Way)> = None;
        let mut vias = Vec::new();
        let mut cursor = walk(layer, range);
        while let Some(run) = cursor.next() {
            if left == 0 {
                break;
            }
            if let Place::Coded(_) = run.place {
                self.packed(&run.place, asked, &mut vias, &mut left, &mut |range, vias| {
                    sink(range, run.at, vias.into());
                });
                continue;
            }
            if !self.is_device(run.layer) {
                continue;
            }
            let way = || -> Way {
                let hops = cursor.path().iter();
                hops.map(|hop| (std::ptr::from_ref(hop.layer).cast(), hop.offset.wrapping_sub(hop.at))).collect()
            };
            for hit in within(asked, run.offset..run.offset.saturating_add(run.len)) {
                let at = run.at + (hit.start - run.offset);
                let way = way();
                match &mut last {
                    Some((range, _, before)) if range.end == hit.start && *before == way => range.end = hit.end,
                    _ => {
                        if let Some((range, at, _)) = last.take() {
                            sink(range, at, Box::default());
                        }
                        left = left.saturating_sub(1);
                        last = Some((hit, at, way));
                    }
                }
            }
        }
        if let Some((range, at, _)) = last {
            sink(range, at, Box::default());
        }
    }

    /// The same for what a unit is packed in. All of it is one place in the layer that decodes.
    fn packed(
        &self,
        place: &Place<'_>,
        asked: &RangeSet,
        vias: &mut Vec<u64>,
        left: &mut usize,
        sink: &mut dyn FnMut(Range<u64>, &[u64]),
    ) {
        let Place::Coded(unit) = place else { return };
        if vias.len() >= MAX_NESTED as usize {
            return;
        }
        for run in walk(unit.from, unit.packed()) {
            if let Place::Coded(_) = run.place {
                vias.push(run.at);
                self.packed(&run.place, asked, vias, left, sink);
                vias.pop();
            } else if self.is_device(run.layer) {
                for hit in within(asked, run.offset..run.offset.saturating_add(run.len)) {
                    *left = left.saturating_sub(1);
                    vias.push(run.at + (hit.start - run.offset));
                    sink(hit, vias);
                    vias.pop();
                }
            }
        }
    }

    /// Whether a layer is the device that was asked about. With a mapfile what could not be read ends a layer above.
    fn is_device(&self, layer: &dyn Layer) -> bool {
        same_layer(layer, &*self.source.bytes)
            || layer.tag().is_some_and(|tag| Some(tag) == self.known.tag(self.source))
    }

    /// Cuts one range of the question where its owners change, and tells each piece.
    fn tell(&self, asked: &Range<u64>, hits: &[Hit], tell: &mut dyn FnMut(&Piece) -> Result<()>) -> Result<()> {
        let first = hits.partition_point(|hit| hit.range.start < asked.start);
        let behind = hits.partition_point(|hit| hit.range.start < asked.end);
        let mut next = hits[first..behind].iter().peekable();
        let mut active: Vec<&Hit> = Vec::new();
        let mut more_until = 0;
        let mut at = asked.start;
        while at < asked.end {
            active.retain(|hit| hit.range.end > at);
            while let Some(hit) = next.next_if(|hit| hit.range.start <= at) {
                if active.len() < SHOWN {
                    active.push(hit);
                } else {
                    more_until = more_until.max(hit.range.end);
                }
            }
            let end = active.iter().map(|hit| hit.range.end).chain(next.peek().map(|hit| hit.range.start)).min();
            let end = end.unwrap_or(asked.end).min(asked.end);
            tell(&Piece { range: at..end, owners: self.owners(at, &active), more: more_until > at })?;
            at = end;
        }
        Ok(())
    }

    fn owners(&self, at: u64, hits: &[&Hit]) -> Vec<Owner> {
        let mut owners: Vec<Owner> = hits.iter().filter_map(|hit| self.owner(at, hit)).collect();
        owners.push(Owner {
            kind: Kind::Unclaimed,
            state: State::Live,
            trust: Trust::Sound,
            packed: false,
            steps: vec![self.known.device(self.source, at)],
        });
        // Whoever is on the way to another owner is told with it.
        let mut ways: HashSet<&[Step]> = HashSet::new();
        for steps in owners.iter().map(|owner| &owner.steps) {
            ways.extend((1..steps.len()).map(|len| &steps[..len]));
        }
        let last: Vec<bool> = owners.iter().map(|owner| ways.insert(&owner.steps)).collect();
        let best = owners.iter().zip(&last).filter(|(_, last)| **last).map(|(owner, _)| owner.kind).min();
        let tells = |kind: Kind| match kind {
            Kind::Data | Kind::Structure | Kind::Free => true,
            // Say something only where nobody else does.
            Kind::Allocated | Kind::Unused | Kind::Unclaimed => Some(kind) == best,
        };
        let mut kept = last.into_iter();
        owners.retain(|owner| kept.next() == Some(true) && tells(owner.kind));
        owners.sort_by_key(|owner| (owner.kind, owner.state != State::Live));
        owners
    }

    /// The way from the device up to the owner of `at`, which is in the hit.
    fn owner(&self, at: u64, hit: &Hit) -> Option<Owner> {
        let into = at - hit.range.start;
        let (kind, state, mut chain) = match &hit.by {
            By::Claim(claim) => {
                let (kind, mut chain) = (**claim).clone();
                chain.advance(into);
                (kind, State::Live, chain)
            }
            By::Top(index) => {
                let top = self.tops.get(*index)?;
                let layer = top.open(self.case)?;
                let mut vias = hit.vias.clone();
                let mut place = hit.at;
                match vias.last_mut() {
                    Some(via) => *via += into,
                    None => place += into,
                }
                let mut chain = chain::chain(self.known, &*layer, place, &vias);
                let start = top.range.as_ref().map_or(0, |range| range.start);
                chain.steps.push(Step { level: top.level, name: top.name.clone(), offset: place - start });
                (top.kind, top.state, chain)
            }
        };
        chain.steps.dedup();
        let packed = chain.packed();
        Some(Owner { kind, state, trust: chain.trust, packed, steps: chain.steps })
    }
}

/// The layers on a way down, each with how far its offsets are from those at the top.
type Way = Vec<(*const (), u64)>;

/// The parts of `asked` that lie in `range`.
fn within(asked: &RangeSet, range: Range<u64>) -> impl Iterator<Item = Range<u64>> {
    let all = asked.as_slice();
    let first = all.partition_point(|have| have.end <= range.start);
    let end = range.end;
    let inside = all[first..].iter().take_while(move |have| have.start < end);
    inside.map(move |have| have.start.max(range.start)..have.end.min(range.end))
}
