//! Which cluster of the file is whose. QCOW2 tables have no checksums, but an image says everything twice: a table
//! names a cluster, and a counter says that it is in use. What is counted and not named by any table was named by one
//! that is lost; what two entries of one state name can be right in one of them at most.
//!
//! | what is seen | what it shows |
//! |---|---|
//! | a counter above 0, and no table names the cluster | an orphan: a table lost its entry, or QEMU leaked the cluster |
//! | a counter of 0 for a cluster that a table names | this block of counters is stale or damaged: it tells nothing |
//! | no block of counters where the file has clusters, or a block of zeros | the same |
//! | an L2 table without an entry | written and emptied by a guest's discards, or lost: the orphans behind it decide |
//! | an entry with reserved bits, or not aligned | the table is damaged, and its other entries are doubtful |

use super::bits::Bits;
use super::entry::{Dialect, Table, Taken};
use super::layer::Metadata;
use crate::blocks::{mask, shl};
use crate::entries::{Entries, Page};
use crate::layer::Layer;
use std::ops::Range;

/// Entries that are looked at: the tables of 4 TiB of 64 KiB clusters, read in a second.
pub(super) const MOST_ENTRIES: u64 = 1 << 26;
/// Clusters of a file: 2 TiB of 64 KiB. A dozen bits are kept of each.
pub(super) const MOST_CLUSTERS: u64 = 1 << 25;

/// A state of the disk.
#[derive(Clone, Copy, Debug)]
pub(super) struct State {
    /// Where its L1 table lies.
    pub l1: u64,
    /// Entries of it that lie inside the file.
    pub l1_size: u64,
    /// Bytes of the disk.
    pub len: u64,
}

/// Where the counters are.
#[derive(Clone, Copy, Debug)]
pub(super) struct Refcounts {
    /// The table of blocks.
    pub at: u64,
    /// Entries that the header gives it.
    pub entries: u64,
    /// log2 of the bits of a counter.
    pub order: u32,
}

/// Where the structures of an image are.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub tables: Entries,
    pub dialect: Dialect,
    /// The current state, then the snapshots.
    pub states: Vec<State>,
    pub refcounts: Option<Refcounts>,
    /// The entry of L1 that the first table of the file had, where both are guessed.
    pub first_table: u64,
    pub metadata: Vec<Metadata>,
}

/// What came out.
#[derive(Debug, Default)]
pub(super) struct Census {
    /// Whether all was compared.
    pub complete: bool,
    /// Clusters of the file.
    pub clusters: u64,
    /// Clusters of structures that no state has for itself.
    pub fixed: Bits,
    /// Clusters that the current state names.
    pub current: Bits,
    /// Clusters that are L2 tables.
    pub tables: Bits,
    /// Clusters that are in use, or about which no counter tells, and that nothing names.
    pub orphans: Bits,
    /// Those of them that are counted.
    pub counted: Bits,
    /// Whether a table is damaged, or could be.
    pub damaged: bool,
    /// Clusters that a state names twice.
    pub shared: Bits,
    /// Tables without any entry, ascending.
    pub silent: Vec<u64>,
    /// Tables with entries that can't be, ascending.
    pub odd: Vec<u64>,
    /// Whether the current L1 table has no entry at all, and how many of its entries can't be used.
    pub l1_silent: bool,
    pub l1_broken: u64,
}

impl Plan {
    pub(super) fn file(&self) -> &dyn Layer {
        &**self.tables.layer()
    }

    pub(super) fn clusters(&self) -> u64 {
        self.file().len().div_ceil(self.size())
    }

    pub(super) fn size(&self) -> u64 {
        shl(1, self.dialect.cluster_bits)
    }

    /// What L1 says, entry by entry.
    pub(super) fn each_l1(&self, state: &State, tell: &mut dyn FnMut(u64, Option<Table>)) {
        let mut page = self.tables.page(state.l1);
        for index in 0..state.l1_size.min(MOST_ENTRIES) {
            let at = state.l1.saturating_add(index.saturating_mul(8));
            if !page.covers(at) {
                page = self.tables.page(at);
            }
            tell(index, page.be64(at).ok().map(|entry| self.dialect.table(entry)));
        }
    }

    /// What an L2 table says, entry by entry. `None`: it can't be read.
    pub(super) fn each_l2(&self, table: u64, tell: &mut dyn FnMut(u64, Option<Taken>)) {
        self.each_entry(table, &mut |index, entry| {
            tell(index, entry.map(|(entry, bitmap)| self.dialect.taken(entry, bitmap)));
        });
    }

    /// The entries of an L2 table with their bitmaps, as they stand.
    pub(super) fn each_entry(&self, table: u64, tell: &mut dyn FnMut(u64, Option<(u64, u64)>)) {
        let step = self.dialect.entry_len();
        let mut page = self.tables.page(table);
        for index in 0..shl(1, self.dialect.l2_bits()) {
            let at = table.saturating_add(index.saturating_mul(step));
            if !page.covers(at) {
                page = self.tables.page(at);
            }
            let entry = page.be64(at).and_then(|entry| {
                Ok((entry, if self.dialect.extended { page.be64(at.saturating_add(8))? } else { 0 }))
            });
            tell(index, entry.ok());
        }
    }

    /// The numbers of the clusters that `len` bytes at `at` touch.
    pub(super) fn span(&self, at: u64, len: u64) -> Range<u64> {
        let bits = self.dialect.cluster_bits;
        let end = at.saturating_add(len).min(self.file().len());
        if at >= end {
            0..0
        } else {
            at >> bits..end.saturating_sub(1).checked_shr(bits).unwrap_or(0).saturating_add(1)
        }
    }

    /// The structures that belong to no state, and whether that is all of them.
    fn fixed(&self) -> (Bits, bool) {
        let mut fixed = Bits::new(self.clusters());
        let mut left = MOST_ENTRIES;
        for what in &self.metadata {
            let (span, entries) = match *what {
                Metadata::Range(at, len) => (self.span(at, len), None),
                Metadata::Clusters(at, entries) => (self.span(at, entries.saturating_mul(8)), Some((at, entries))),
            };
            let inside = span.end.saturating_sub(span.start).saturating_mul(self.size() >> 3);
            left = left.saturating_sub(if entries.is_some() { inside } else { inside >> 6 });
            if left == 0 {
                return (fixed, false);
            }
            fixed.set_all(span);
            if let Some((at, entries)) = entries {
                self.each_cluster(at, entries, &mut |block| {
                    fixed.set(block >> self.dialect.cluster_bits);
                });
            }
        }
        (fixed, true)
    }

    /// The places in a table of clusters that can be.
    fn each_cluster(&self, at: u64, entries: u64, tell: &mut dyn FnMut(u64)) {
        let inside = self.file().len().saturating_sub(at).div_ceil(8).min(entries);
        let mut page = self.tables.page(at);
        for entry_at in (0..inside).map(|index| at.saturating_add(index.saturating_mul(8))) {
            if !page.covers(entry_at) {
                page = self.tables.page(entry_at);
            }
            let place = page.be64(entry_at).unwrap_or(0);
            if place != 0 && place & mask(self.dialect.cluster_bits) == 0 {
                tell(place);
            }
        }
    }
}

impl Census {
    pub(super) fn new(plan: &Plan) -> Self {
        let clusters = plan.clusters();
        if clusters > MOST_CLUSTERS {
            return Self::default();
        }
        let (fixed, complete) = plan.fixed();
        let mut census = Self { complete, clusters, fixed, ..Self::default() };
        let mut named = census.fixed.clone();
        let bits = plan.dialect.cluster_bits;
        // A table of counters that names a guest's cluster is wrong itself: reading needs none.
        let mut taken = Bits::new(clusters);
        for what in &plan.metadata {
            if let Metadata::Range(at, len) = *what {
                taken.set_all(plan.span(at, len));
            }
        }
        for state in &plan.states {
            let table = plan.span(state.l1, state.l1_size.saturating_mul(8));
            census.fixed.set_all(table.clone());
            taken.set_all(table);
        }
        census.shared = Bits::new(clusters);
        let mut looked = Bits::new(clusters);
        let mut left = MOST_ENTRIES;
        let mut damaged = false;
        for (number, state) in plan.states.iter().enumerate() {
            // Each state costs a map of the file.
            left = left.saturating_sub(clusters >> 9);
            if left == 0 {
                census.complete = false;
                break;
            }
            let mut seen = Seen { once: taken.clone(), packed: Bits::new(clusters) };
            let (mut said, mut broken) = (0_u64, 0_u64);
            plan.each_l1(state, &mut |_, table| {
                left = left.saturating_sub(1);
                said = said.saturating_add(u64::from(table != Some(Table::None)));
                let Some(Table::At(table)) = table.filter(|_| left > 0) else {
                    broken = broken.saturating_add(u64::from(matches!(table, Some(Table::Broken) | None)));
                    return;
                };
                let cluster = table >> bits;
                if cluster >= clusters {
                    broken = broken.saturating_add(1);
                    return;
                }
                if seen.once.set(cluster) {
                    // Two entries of L1 have one table: all that it maps is in two places.
                    census.shared.set(cluster);
                    return;
                }
                let first = !looked.set(cluster);
                left = left.saturating_sub(shl(1, plan.dialect.l2_bits()));
                let look = seen.table(plan, table, &mut census.shared);
                if first && look.used == 0 && look.broken == 0 && look.lost == 0 {
                    census.silent.push(table);
                }
                if first && look.broken > 0 {
                    census.odd.push(table);
                }
                damaged |= look.broken > 0 || look.lost > 0;
            });
            census.complete &= left > 0 && state.l1_size <= MOST_ENTRIES;
            // Entries that the disk needs and that the table, or the file, has not.
            let short = state.len.div_ceil(shl(1, plan.dialect.span_bits())).saturating_sub(state.l1_size);
            broken = broken.saturating_add(short);
            damaged |= broken > 0;
            // A compressed cluster shares its place with others of its kind only.
            for cluster in seen.once.ones(0..clusters).filter(|cluster| seen.packed.has(*cluster)) {
                census.shared.set(cluster);
            }
            for bit in seen.once.ones(0..clusters).chain(seen.packed.ones(0..clusters)) {
                named.set(bit);
            }
            if number == 0 {
                census.l1_silent = said == 0 && state.l1_size > 0;
                census.l1_broken = broken;
                census.current = seen.once;
                for bit in seen.packed.ones(0..clusters) {
                    census.current.set(bit);
                }
            }
        }
        census.tables = looked;
        census.silent.sort_unstable();
        census.odd.sort_unstable();
        damaged |= !census.silent.is_empty() || census.l1_silent;
        for bit in census.fixed.ones(0..clusters) {
            named.set(bit);
        }
        let (used, untold, odd) = counters(plan, &named, damaged);
        census.counted = used.clone().without(&[&named]);
        census.damaged = damaged || odd;
        let mut orphans = used;
        for bit in untold.ones(0..clusters) {
            orphans.set(bit);
        }
        census.orphans = orphans.without(&[&named]);
        census
    }

    pub(super) fn is_silent(&self, table: u64) -> bool {
        self.silent.binary_search(&table).is_ok()
    }

    pub(super) fn is_odd(&self, table: u64) -> bool {
        self.odd.binary_search(&table).is_ok()
    }
}

/// What one state takes.
struct Seen {
    /// Clusters that belong to one entry each.
    once: Bits,
    /// Clusters in which compressed ones lie: several may.
    packed: Bits,
}

/// What one table looks like.
#[derive(Clone, Copy, Default)]
struct Look {
    used: u64,
    broken: u64,
    lost: u64,
}

impl Seen {
    fn table(&mut self, plan: &Plan, table: u64, shared: &mut Bits) -> Look {
        let bits = plan.dialect.cluster_bits;
        let mut look = Look::default();
        plan.each_l2(table, &mut |_, taken| match taken {
            Some(Taken::Nothing) => {}
            Some(Taken::Zero | Taken::Elsewhere) => look.used = look.used.saturating_add(1),
            Some(Taken::Cluster(host)) => {
                look.used = look.used.saturating_add(1);
                if self.once.set(host >> bits) {
                    shared.set(host >> bits);
                }
            }
            Some(Taken::Packed { at, len }) => {
                look.used = look.used.saturating_add(1);
                self.packed.set_all(plan.span(at, len));
            }
            Some(Taken::Broken) => look.broken = look.broken.saturating_add(1),
            None => look.lost = look.lost.saturating_add(1),
        });
        look
    }
}

/// The clusters that are counted, those about which no counter tells, and whether counters are wrong.
fn counters(plan: &Plan, named: &Bits, damaged: bool) -> (Bits, Bits, bool) {
    let clusters = plan.clusters();
    let (mut used, mut untold) = (Bits::new(clusters), Bits::new(clusters));
    let Some(refcounts) = plan.refcounts.filter(|refcounts| refcounts.order <= 6) else {
        untold.set_all(0..clusters);
        return (used, untold, false);
    };
    let bits = plan.dialect.cluster_bits;
    let per_block = shl(1, bits.saturating_add(3).saturating_sub(refcounts.order));
    let mut odd = false;
    let per_sector = 4096_u64.checked_shr(refcounts.order).unwrap_or(0).max(1);
    for index in 0..clusters.div_ceil(per_block.max(1)) {
        let first = index.saturating_mul(per_block);
        let range = first..first.saturating_add(per_block).min(clusters);
        let at = refcounts.at.saturating_add(index.saturating_mul(8));
        let block = if index < refcounts.entries { plan.tables.page(at).be64(at).ok() } else { None };
        let block = block.filter(|block| *block != 0 && block & mask(bits) == 0 && *block < plan.file().len());
        let Some(block) = block else {
            odd = true;
            untold.set_all(range);
            continue;
        };
        let mut page = plan.tables.page(block);
        let mut sector = first;
        while sector < range.end {
            let end = sector.saturating_add(per_sector).min(range.end);
            let into = sector.saturating_sub(first);
            let mut any = false;
            let mut stale = false;
            let mut lost = false;
            for cluster in sector..end {
                let number = into.saturating_add(cluster.saturating_sub(sector));
                let bit = shl(number, refcounts.order);
                let at = block.saturating_add(bit >> 3);
                if !page.covers(at) {
                    page = plan.tables.page(at);
                }
                match counter(&page, at, bit, refcounts.order) {
                    Some(true) => {
                        any = true;
                        used.set(cluster);
                    }
                    Some(false) => stale |= named.has(cluster),
                    None => lost = true,
                }
            }
            // Clusters that are free side by side are nothing special in an image in which nothing else is wrong.
            odd |= lost || stale;
            if lost || stale || (!any && damaged) {
                untold.set_all(sector..end);
            }
            sector = end;
        }
    }
    (used, untold, odd)
}

/// Whether the counter of `1 << order` bits at `at` is above 0. Narrow ones are packed from the lowest bit on.
fn counter(page: &Page, at: u64, bit: u64, order: u32) -> Option<bool> {
    if order < 3 {
        let byte = *page.bytes(at, 1).ok()?.first()?;
        let shift = u32::try_from(bit & 7).ok()?;
        let width = u32::try_from(shl(1, order)).ok()?;
        return Some(u64::from(byte) >> shift & mask(width) != 0);
    }
    let bytes = usize::try_from(shl(1, order) >> 3).ok()?;
    Some(page.bytes(at, bytes).ok()?.iter().any(|byte| *byte != 0))
}
