//! The full pass over everything that a case holds: what is claimed, by whom, twice or not at all.

use crate::case::{Case, Noted};
use crate::progress::Progress;
use crate::ranges::RangeSet;
use rayon::prelude::*;
use std::collections::BTreeMap;
use std::ops::{ControlFlow, Range};
use vdrecover_formats::{Finding, Layer, NodeId, Note, Place, Tree, Trust, Use, walk};

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
    data: Vec<(Range<u64>, NodeId)>,
    free: u64,
    findings: Vec<Finding>,
    sources: Vec<(u32, Range<u64>)>,
}

/// Audits all stores on all cores. The answer does not depend on their number.
#[must_use]
pub fn run(case: &Case, progress: &Progress) -> Audit {
    let mut audit = Audit::default();
    let mut sources: Vec<Vec<Range<u64>>> = vec![Vec::new(); case.sources.all().len()];
    for store in &case.stores {
        let tree = &*store.tree;
        progress.start("checking the datastore", u64::from(tree.parts()));
        let parts: Vec<Part> = (0..tree.parts())
            .into_par_iter()
            .map(|number| {
                let part = part(tree, number);
                progress.add(1);
                part
            })
            .collect();
        let about = store.item.map_or_else(|| crate::report::printable(&store.name), |item| case.label(item));
        let mut sum = StoreAudit::default();
        let mut own = Vec::new();
        let mut data = Vec::new();
        for part in parts {
            own.extend(part.own);
            data.extend(part.data);
            sum.free += part.free;
            for finding in part.findings {
                audit.findings.push(Noted { about: about.clone(), finding });
            }
            for (tag, range) in part.sources {
                if let Some(source) = usize::try_from(tag).ok().and_then(|tag| sources.get_mut(tag)) {
                    source.push(range);
                }
            }
        }
        sum.used = RangeSet::build(own).total();
        for finding in shared(data) {
            audit.findings.push(Noted { about: about.clone(), finding });
        }
        audit.stores.push(sum);
    }
    audit.sources = sources.into_iter().map(RangeSet::build).collect();
    audit
}

fn part(tree: &dyn Tree, number: u32) -> Part {
    let mut part = Part::default();
    let _ = tree.audit(number, &mut |note| {
        match note {
            Note::Claim { layer, range, of } => {
                push_down(layer, range.clone(), &mut part.sources, 0);
                if let Use::Data(node) = of {
                    part.data.push((range.clone(), node));
                }
                part.own.push(range);
            }
            Note::Free { range, .. } => part.free += range.end.saturating_sub(range.start),
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

/// Blocks that two nodes hold: at most one of them can be right. One finding for each pair, however many blocks.
fn shared(mut data: Vec<(Range<u64>, NodeId)>) -> Vec<Finding> {
    data.sort_unstable_by_key(|(range, node)| (range.start, range.end, *node));
    let mut pairs: BTreeMap<(NodeId, NodeId), (Range<u64>, u64)> = BTreeMap::new();
    let mut more: u64 = 0;
    let mut last: Option<(Range<u64>, NodeId)> = None;
    for (range, node) in data {
        if let Some((before, other)) = &last
            && *other != node
            && range.start < before.end
        {
            let both = range.start..range.end.min(before.end);
            let len = both.end - both.start;
            let pair = (node.min(*other), node.max(*other));
            if let Some((span, sum)) = pairs.get_mut(&pair) {
                (span.end, *sum) = (span.end.max(both.end), *sum + len);
            } else if pairs.len() < PAIRS {
                pairs.insert(pair, (both, len));
            } else {
                more += len;
            }
        }
        if last.as_ref().is_none_or(|(before, _)| range.end > before.end) {
            last = Some((range, node));
        }
    }
    let mut pairs: Vec<_> = pairs.into_iter().collect();
    pairs.sort_by_key(|(pair, (span, _))| (span.start, *pair));
    let mut findings: Vec<Finding> = pairs
        .into_iter()
        .map(|((a, b), (span, sum))| {
            let text = format!("{sum} bytes belong to nodes {:#x} and {:#x}", a.0, b.0);
            Finding::new("CLAIM-SHARED", span, Trust::Doubtful, text)
        })
        .collect();
    if more > 0 {
        let text = format!("{more} bytes more belong to two nodes each, in other pairs than the {PAIRS} told");
        findings.push(Finding::new("CLAIM-SHARED", 0..0, Trust::Doubtful, text));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pair_that_shares_many_blocks_is_one_finding() {
        let mut data: Vec<(Range<u64>, NodeId)> = Vec::new();
        for block in 0..100_u64 {
            data.extend([(block * 10..block * 10 + 10, NodeId(7)), (block * 10..block * 10 + 4, NodeId(3))]);
        }
        data.push((2000..2010, NodeId(3)));
        let told: Vec<_> = shared(data).into_iter().map(|finding| (finding.range, finding.text)).collect();
        assert_eq!(told, [(0..994, "400 bytes belong to nodes 0x3 and 0x7".to_owned())]);
    }

    #[test]
    fn pairs_are_bounded() {
        let data = (0..3000_u64).flat_map(|i| [(i * 8..i * 8 + 8, NodeId(i)), (i * 8..i * 8 + 8, NodeId(i + 10_000))]);
        let found = shared(data.collect());
        assert_eq!(found.len(), PAIRS + 1);
        assert!(found[PAIRS].text.starts_with("16000 bytes more"), "{}", found[PAIRS].text);
    }
}
