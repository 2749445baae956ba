//! The full pass over everything that a case holds: what is claimed, by whom, twice or not at all.
//!
//! What it puts in doubt it tells the trees ([`vdrecover_formats::Tree::doubt`]), so that whoever reads a file from then
//! on is told too: `scan` and `check` need the whole pass, and all who read files [`compare`] them first.

use crate::case::{Case, Compared, Noted, Store, compose};
use crate::progress::Progress;
use crate::ranges::RangeSet;
use rayon::prelude::*;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::{ControlFlow, Range};
use vdrecover_formats::{Concern, Doubts, Finding, Layer, NodeId, Note, Place, Tree, Trust, Use, walk};

/// What the pass found.
#[derive(Debug, Default)]
pub struct Audit {
    /// One for each store of the case.
    pub stores: Vec<StoreAudit>,
    /// What is claimed of each source, by its tag.
    pub sources: Vec<RangeSet>,
    /// Contradictions.
    pub findings: Vec<Noted>,
}

/// What the pass found in one store.
#[derive(Debug, Default)]
pub struct StoreAudit {
    /// Bytes that structures and files hold, in the store's own address space.
    pub used: u64,
    /// Bytes that the store says are free.
    pub free: u64,
}

/// What one part of one store said.
#[derive(Default)]
struct Part {
    own: Vec<Range<u64>>,
    claims: Vec<Claim>,
    free: u64,
    findings: Vec<Finding>,
    sources: Vec<(u32, Range<u64>)>,
}

/// Bytes of a layer that somebody has.
struct Claim {
    range: Range<u64>,
    /// `None` for structures that are no node's.
    node: Option<NodeId>,
    /// Tells layers apart, and nothing else.
    layer: usize,
}

/// How much of the pass is wanted.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Depth {
    /// Who has which bytes of the devices too.
    Devices,
    /// What is wrong with files, and which of them share bytes.
    Files,
}

/// Audits all stores on all cores. The answer does not depend on their number.
#[must_use]
pub fn run(case: &Case, progress: &Progress) -> Audit {
    pass(case, Depth::Devices, progress)
}

/// Compares all files of each datastore with each other, unless somebody did: what is doubtful is doubtful then for
/// whoever reads it. It reads what describes the files and where their blocks lie, and no content.
pub fn compare(case: &Case, progress: &Progress) {
    if case.compared().is_none() {
        pass(case, Depth::Files, progress);
    }
}

fn pass(case: &Case, depth: Depth, progress: &Progress) -> Audit {
    let mut audit = Audit::default();
    let mut compared = Compared::default();
    let mut doubted = false;
    let mut sources: Vec<Vec<Range<u64>>> = vec![Vec::new(); case.sources.all().len()];
    for (index, store) in case.stores.iter().enumerate() {
        let tree = &*store.tree;
        progress.start("checking the datastore", u64::from(tree.parts()));
        let parts: Vec<Part> = (0..tree.parts())
            .into_par_iter()
            .map(|number| {
                let part = part(tree, number, depth);
                progress.add(1);
                part
            })
            .collect();
        let mut sum = StoreAudit::default();
        let (mut own, mut claims, mut findings) = (Vec::new(), Vec::new(), Vec::new());
        for part in parts {
            own.extend(part.own);
            claims.extend(part.claims);
            sum.free += part.free;
            findings.extend(part.findings);
            for (tag, range) in part.sources {
                if let Some(source) = usize::try_from(tag).ok().and_then(|tag| sources.get_mut(tag)) {
                    source.push(range);
                }
            }
        }
        sum.used = RangeSet::build(own).total();
        let shared = Shared::of(claims);
        let whole = findings
            .iter()
            .filter(|finding| finding.trust == Trust::Doubtful)
            .filter_map(|finding| if let Some(Concern::Whole(id)) = finding.node { Some(id) } else { None });
        let doubts = Doubts { nodes: whole.collect::<BTreeSet<_>>(), ranges: shared.ranges.as_slice().to_vec() };
        doubted |= doubts != Doubts::default();
        tree.doubt(doubts);
        let names = if findings.is_empty() && shared.pairs.is_empty() { HashMap::new() } else { names(store) };
        let about = case.store_label(store);
        for finding in findings {
            let id = finding.node.map(Concern::id);
            let path = id.and_then(|id| names.get(&id));
            let noted = Noted { about: path.unwrap_or(&about).clone(), finding };
            if let Some(id) = id.filter(|_| noted.finding.trust > Trust::Sound) {
                compared.add(compose(index, id), &noted);
            }
            audit.findings.push(noted);
        }
        for (pair, finding) in shared.findings(&names) {
            let noted = Noted { about: about.clone(), finding };
            for id in pair.into_iter().flatten().flatten() {
                compared.share(compose(index, id), &noted);
            }
            audit.findings.push(noted);
        }
        audit.stores.push(sum);
    }
    if doubted {
        // What was read through the files before was believed more.
        case.pool.clear();
    }
    case.set_compared(compared);
    audit.sources = sources.into_iter().map(RangeSet::build).collect();
    audit
}

/// What people call the nodes of a store.
fn names(store: &Store) -> HashMap<NodeId, String> {
    let top = [b"store/", &store.name[..]].concat();
    let files = store.files.iter().map(|file| (file.entry.id, [&top[..], b"/", &file.path].concat()));
    let all = std::iter::once((store.tree.root(), top.clone())).chain(files);
    all.map(|(id, path)| (id, crate::report::printable(&path))).collect()
}

fn part(tree: &dyn Tree, number: u32, depth: Depth) -> Part {
    let mut part = Part::default();
    let _ = tree.audit(number, &mut |note| {
        match note {
            Note::Claim { layer, range, of } => {
                let node = match of {
                    Use::Data(id) | Use::Node { id, .. } => Some(id),
                    Use::Metadata | Use::Journal => None,
                };
                let key = std::ptr::from_ref(layer).cast::<()>().addr();
                part.claims.push(Claim { range: range.clone(), node, layer: key });
                if depth == Depth::Devices {
                    push_down(layer, range.clone(), &mut part.sources, 0);
                    part.own.push(range);
                }
            }
            Note::Free { range, .. } => part.free += range.end.saturating_sub(range.start),
            Note::Taken { .. } => {}
            Note::Finding(finding) => part.findings.push(finding),
        }
        ControlFlow::Continue(())
    });
    part.own = RangeSet::build(part.own).as_slice().to_vec();
    part
}

/// Packed units inside packed units: containers nest a few times, not more.
pub(crate) const MAX_NESTED: u32 = 8;

/// A claim on a layer is a claim on the bytes of the sources that it is made of.
fn push_down(layer: &dyn Layer, range: Range<u64>, sources: &mut Vec<(u32, Range<u64>)>, depth: u32) {
    for run in walk(layer, range) {
        match run.place {
            Place::Own | Place::Below { .. } => {
                if let Some(tag) = run.layer.tag() {
                    sources.push((tag.0, run.offset..run.offset.saturating_add(run.len)));
                }
            }
            Place::Coded(unit) if depth < MAX_NESTED => {
                push_down(unit.from, unit.packed(), sources, depth + 1);
            }
            Place::Coded(_) | Place::Zero | Place::Hole | Place::Lost(_) => {}
        }
    }
}

/// Pairs of nodes that are told one by one.
const PAIRS: usize = 1000;

/// Two that have the same bytes; `None` is no node, but a structure.
type Pair = (Option<NodeId>, Option<NodeId>);

/// Bytes that two have: at most one of them can be right.
#[derive(Default)]
struct Shared {
    /// All of them.
    ranges: RangeSet,
    /// Who has them: from the first to the last byte, and how many.
    pairs: BTreeMap<Pair, (Range<u64>, u64)>,
    /// Bytes of pairs that are too many to be told.
    more: u64,
}

impl Shared {
    fn of(mut claims: Vec<Claim>) -> Self {
        // Structures of the devices below are in another address space than files.
        let Some(layer) = claims.iter().find(|claim| claim.node.is_some()).map(|claim| claim.layer) else {
            return Self::default();
        };
        claims.retain(|claim| claim.layer == layer);
        claims.sort_unstable_by_key(|claim| (claim.range.start, claim.range.end, claim.node));
        let (mut shared, mut ranges) = (Self::default(), Vec::new());
        let mut last: Option<Claim> = None;
        for claim in claims {
            if let Some(before) = last.as_ref().filter(|before| claim.range.start < before.range.end)
                && (before.node.is_some() || claim.node.is_some())
            {
                let both = claim.range.start..claim.range.end.min(before.range.end);
                let pair = (claim.node.min(before.node), claim.node.max(before.node));
                shared.add(pair, both.clone());
                ranges.push(both);
            }
            if last.as_ref().is_none_or(|before| claim.range.end > before.range.end) {
                last = Some(claim);
            }
        }
        shared.ranges = RangeSet::build(ranges);
        shared
    }

    fn add(&mut self, pair: Pair, both: Range<u64>) {
        let len = both.end - both.start;
        if let Some((span, sum)) = self.pairs.get_mut(&pair) {
            (span.end, *sum) = (span.end.max(both.end), *sum + len);
        } else if self.pairs.len() < PAIRS {
            self.pairs.insert(pair, (both, len));
        } else {
            self.more += len;
        }
    }

    /// One finding for each pair, however many blocks, in the order of their places.
    fn findings(&self, names: &HashMap<NodeId, String>) -> Vec<(Option<[Option<NodeId>; 2]>, Finding)> {
        let name = |node: Option<NodeId>| match node {
            None => "the datastore's own structures".to_owned(),
            Some(id) => names.get(&id).cloned().unwrap_or_else(|| format!("file {:#x}, which no folder lists", id.0)),
        };
        let mut pairs: Vec<_> = self.pairs.iter().collect();
        pairs.sort_by_key(|(pair, (span, _))| (span.start, **pair));
        let tell = |((a, b), (span, sum)): (&Pair, &(Range<u64>, u64))| {
            let whose = if a == b {
                format!("{} uses {sum} bytes more than once", name(*a))
            } else {
                format!("{} and {} use the same {sum} bytes: at most one of them is right", name(*a), name(*b))
            };
            (Some([*a, *b]), Finding::new("CLAIM-SHARED", span.clone(), Trust::Doubtful, whose))
        };
        let mut findings: Vec<_> = pairs.into_iter().map(tell).collect();
        if self.more > 0 {
            let text = format!("{} bytes more belong to two each, in other pairs than the {PAIRS} told", self.more);
            findings.push((None, Finding::new("CLAIM-SHARED", 0..0, Trust::Doubtful, text)));
        }
        findings
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shared(claims: impl IntoIterator<Item = (Range<u64>, Option<u64>)>) -> Shared {
        let claim = |(range, node): (Range<u64>, Option<u64>)| Claim { range, node: node.map(NodeId), layer: 1 };
        Shared::of(claims.into_iter().map(claim).collect())
    }

    fn told(shared: &Shared) -> Vec<String> {
        let names = HashMap::from([(NodeId(3), "store/a/three".to_owned())]);
        shared.findings(&names).into_iter().map(|(_, finding)| finding.text).collect()
    }

    #[test]
    fn a_pair_that_shares_many_blocks_is_one_finding() {
        let mut data = Vec::new();
        for block in 0..100_u64 {
            data.extend([(block * 10..block * 10 + 10, Some(7)), (block * 10..block * 10 + 4, Some(3))]);
        }
        data.push((2000..2010, Some(3)));
        let shared = shared(data);
        let want =
            "store/a/three and file 0x7, which no folder lists use the same 400 bytes: at most one of them is right";
        assert_eq!(told(&shared), [want]);
        assert_eq!(shared.ranges.total(), 400);
    }

    #[test]
    fn a_file_can_share_with_itself_and_with_structures() {
        let all =
            [(0..10, Some(3)), (5..7, Some(3)), (20..30, None), (25..40, Some(3)), (50..60, None), (50..60, None)];
        let shared = shared(all);
        assert_eq!(shared.ranges.as_slice(), [5..7, 25..30]);
        let told = told(&shared);
        assert_eq!(told[0], "store/a/three uses 2 bytes more than once");
        assert!(told[1].starts_with("the datastore's own structures and store/a/three"), "{told:?}");
        assert_eq!(told.len(), 2);
    }

    #[test]
    fn other_layers_are_other_places() {
        let claim = |node, layer| Claim { range: 0..10, node, layer };
        assert!(Shared::of(vec![claim(None, 2), claim(Some(NodeId(3)), 1), claim(None, 2)]).pairs.is_empty());
    }

    #[test]
    fn pairs_are_bounded() {
        let data = (0..3000_u64).flat_map(|i| [(i * 8..i * 8 + 8, Some(i)), (i * 8..i * 8 + 8, Some(i + 10_000))]);
        let told = told(&shared(data));
        assert_eq!(told.len(), PAIRS + 1);
        assert!(told[PAIRS].starts_with("16000 bytes more"), "{}", told[PAIRS]);
    }
}
