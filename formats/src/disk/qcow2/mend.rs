//! Entries that tables lost, put back where something says what they were.
//!
//! What is in use and named by nothing ([`super::census`]) is either a table itself or a cluster of the guest.
//!
//! - A table is known by its entries: all of them can be, none names what a living table has. What another such table
//!   names as its data is no table.
//! - A lost entry of L1 gets the table that the guest's own structures place there ([`super::anchors`]), one that still
//!   shares clusters with a snapshot's table for that part of the disk, or, where as many tables as entries are missing
//!   between two that are known, the next in the file: QEMU takes new clusters one behind the other.
//! - What is left of a lost L1 table is filled from a snapshot's.
//! - A cluster whose entry is gone lies, by the same order, behind its table and before the next. Where as many are
//!   there as entries are missing, each gets its own: inferred. Where fewer are there, and only one end of what is missing
//!   goes on with what is known, they are laid against that end: doubtful.
//! - An L2 table that is damaged is filled from the one that a snapshot has for the same part of the disk: doubtful
//!   where clusters are left over, which were written since.
//! - Nothing else is placed. What a table without an entry would map is lost if orphans lie behind it, and is never
//!   taken for a hole.

use super::anchors;
use super::bits::Bits;
use super::census::{Census, MOST_ENTRIES, Plan, State};
use super::entry::{COPIED, Dialect, OFFSET, Table, Taken};
use crate::blocks::shl;
use crate::cursor::walk;
use crate::layer::{Place, Trust};
use crate::note::Finding;
use crate::num::narrow;
use crate::read::read_vec;
use std::collections::{BTreeMap, BTreeSet};

/// Orphans that are looked at for being tables: 512 bytes of each are read.
const MOST_LOOKS: u64 = 1 << 22;
/// Tables that are placed.
const MOST_TABLES: usize = 1 << 16;
/// Entries of L1 that are looked through.
const MOST_SLOTS: u64 = 1 << 22;
/// Clusters that are placed one by one.
const MOST_CLUSTERS: usize = 1 << 20;
/// Bytes without an entry that a table starts with at most.
const LEADING: u64 = 64 << 10;
/// Images in images that tables are told apart in.
const MOST_NESTED: u32 = 8;
/// Words of the map of clusters that are looked through for those that are placed.
const MOST_WORDS: u64 = 1 << 28;
/// Clusters of a snapshot's table that are compared.
const SAMPLE: usize = 64;

/// What was put back.
#[derive(Debug, Default)]
pub(super) struct Mend {
    /// Tables, by the entry of the current L1 table.
    pub tables: BTreeMap<u64, (u64, Trust)>,
    /// Entries, by the guest's cluster.
    pub clusters: BTreeMap<u64, Placed>,
    /// Entries of the L1 table are lost and could not be put back: what has none is no hole.
    pub l1_lost: bool,
    /// Tables without an entry that had some, ascending.
    pub emptied: Vec<u64>,
    /// Tables with entries, of which others may be lost, ascending.
    pub thinned: Vec<u64>,
    /// L1 tables that no header and no snapshot names.
    pub stray: Vec<u64>,
    /// What was seen.
    pub findings: Vec<Finding>,
}

/// An entry of an L2 table that was put back.
#[derive(Clone, Copy, Debug)]
pub(super) struct Placed {
    pub entry: u64,
    /// With entries of 16 bytes.
    pub bitmap: u64,
    pub trust: Trust,
}

impl Placed {
    /// A whole cluster at `host`. Which of its parts were written, nothing tells.
    fn at(host: u64, trust: Trust, dialect: Dialect) -> Self {
        let bitmap = if dialect.extended { 0xFFFF_FFFF } else { 0 };
        Self { entry: host | COPIED, bitmap, trust: if dialect.extended { Trust::Doubtful } else { trust } }
    }

    fn host(&self) -> u64 {
        self.entry & OFFSET
    }
}

impl Mend {
    pub(super) fn new(plan: &Plan, census: &Census) -> Self {
        let mut mend = Self::default();
        let Some(state) = plan.states.first() else { return mend };
        if !census.complete {
            let text = "more tables than are compared: whether all clusters are named is not known";
            mend.findings.push(Finding::new("QCOW2-CENSUS", 0..0, Trust::Inferred, text));
            return mend;
        }
        let counted = census.counted.count();
        if counted > 0 {
            let text = format!("{counted} clusters are in use, and no table names them");
            mend.findings.push(Finding::new("QCOW2-ORPHANS", 0..0, Trust::Inferred, text));
        }
        let shared = census.shared.count();
        if shared > 0 {
            let first = census.shared.ones(0..census.clusters).next().unwrap_or(0);
            let at = first.saturating_mul(plan.size());
            let text = format!("{shared} clusters are named twice; at most one of the entries can be right");
            mend.findings.push(Finding::new("QCOW2-SHARED", at..at.saturating_add(1), Trust::Doubtful, text));
        }
        let quiet = census.counted.is_empty() && !census.damaged;
        if quiet || (census.orphans.is_empty() && census.l1_broken == 0 && !census.l1_silent) {
            return mend;
        }
        let found = Orphans::find(plan, census, census.orphans.ones(0..census.clusters));
        mend.stray.clone_from(&found.directories);
        mend.place_tables(plan, census, state, &found);
        mend.place_clusters(plan, census, state, &found);
        mend
    }

    fn place_tables(&mut self, plan: &Plan, census: &Census, state: &State, found: &Orphans) {
        let span_bits = plan.dialect.span_bits();
        let needed = state.len.div_ceil(shl(1, span_bits)).min(MOST_SLOTS);
        let mut slots = Slots::new(plan, census, state, needed);
        if slots.free.is_empty() || (found.tables.is_empty() && slots.broken.is_empty() && !census.l1_silent) {
            return;
        }
        let mut rest: BTreeSet<u64> = found.tables.iter().copied().collect();
        let by_snapshot = slots.by_snapshot(plan, &found.tables);
        let by_content =
            if slots.free.len() > 1 { anchors::places(plan, &found.tables, needed) } else { BTreeMap::new() };
        for places in [by_content, by_snapshot] {
            for (table, index) in places {
                if rest.contains(&table) && slots.take(index, table) {
                    rest.remove(&table);
                    self.tables.insert(index, (table, Trust::Inferred));
                }
            }
        }
        for (index, table) in slots.in_order(&rest, plan.first_table) {
            if slots.take(index, table) {
                rest.remove(&table);
                self.tables.insert(index, (table, Trust::Inferred));
            }
        }
        let placed = self.tables.len();
        // An L1 table never loses an entry by itself: what is missing here and there in a snapshot is an older state.
        let lost = !rest.is_empty() || placed > 0 || census.l1_silent;
        let mut older: usize = 0;
        for (index, table) in slots.of_snapshots.clone() {
            if (lost || slots.broken.contains(&index)) && slots.take(index, table) {
                self.tables.insert(index, (table, Trust::Inferred));
                older = older.saturating_add(1);
            }
        }
        self.l1_lost =
            !rest.is_empty() || (census.l1_silent && !census.counted.is_empty() && placed == 0 && older == 0);
        let at = state.l1..state.l1.saturating_add(needed.saturating_mul(8));
        if placed > 0 {
            let text = format!("{placed} L2 tables that L1 lost are placed by content and order");
            self.findings.push(Finding::new("QCOW2-L1-MENDED", at.clone(), Trust::Inferred, text));
        }
        if older > 0 {
            let text = format!("{older} entries of L1 are a snapshot's: what was written since is not in them");
            self.findings.push(Finding::new("QCOW2-L1-SNAPSHOT", at.clone(), Trust::Inferred, text));
        }
        if !rest.is_empty() {
            let text = format!("{} L2 tables belong to unknown places: what L1 does not map is lost", rest.len());
            self.findings.push(Finding::new("QCOW2-L2-UNPLACED", at, Trust::Doubtful, text));
        }
    }

    /// Fills what a damaged table lost from the table that the newest snapshot has for the same part of the disk.
    fn take_older(&mut self, plan: &Plan, census: &Census, rows: &[Row], changed: bool) {
        let wanted: BTreeMap<u64, u64> = rows
            .iter()
            .filter(|row| census.is_silent(row.table) || census.is_odd(row.table))
            .map(|row| (row.index, row.table))
            .collect();
        if wanted.is_empty() {
            return;
        }
        let mut older: BTreeMap<u64, u64> = BTreeMap::new();
        for snapshot in plan.states.iter().skip(1).rev() {
            plan.each_l1(snapshot, &mut |index, table| {
                if let (Some(Table::At(table)), Some(lost)) = (table, wanted.get(&index))
                    && table != *lost
                    && !census.is_silent(table)
                {
                    older.entry(index).or_insert(table);
                }
            });
        }
        let bits = plan.dialect.l2_bits();
        let before = self.clusters.len();
        for (index, table) in older {
            let mut missing = BTreeSet::new();
            plan.each_l2(wanted.get(&index).copied().unwrap_or(0), &mut |slot, taken| {
                if matches!(taken, Some(Taken::Nothing | Taken::Broken) | None) && missing.len() < MOST_CLUSTERS {
                    missing.insert(slot);
                }
            });
            plan.each_entry(table, &mut |slot, found| {
                let Some((entry, bitmap)) = found else { return };
                if missing.contains(&slot) && self.clusters.len() < MOST_CLUSTERS {
                    // Which of them were written again since, nothing tells.
                    let trust = if changed { Trust::Doubtful } else { Trust::Inferred };
                    self.clusters.insert(shl(index, bits).saturating_add(slot), Placed { entry, bitmap, trust });
                }
            });
        }
        let taken = self.clusters.len().saturating_sub(before);
        if taken > 0 {
            let text =
                format!("{taken} clusters that L2 tables lost are a snapshot's: what was written since is not in them");
            self.findings.push(Finding::new("QCOW2-L2-SNAPSHOT", 0..0, Trust::Inferred, text));
        }
    }

    fn place_clusters(&mut self, plan: &Plan, census: &Census, state: &State, found: &Orphans) {
        if plan.dialect.data_file || (found.loose.is_empty() && census.silent.is_empty() && census.odd.is_empty()) {
            return;
        }
        let mut tables: Vec<(u64, u64)> = Vec::new();
        plan.each_l1(state, &mut |index, table| {
            if let Some(Table::At(table)) = table {
                tables.push((table, index));
            }
        });
        tables.extend(self.tables.iter().map(|(index, (table, _))| (*table, *index)));
        tables.sort_unstable();
        let rows: Vec<Row> = tables
            .iter()
            .zip(tables.iter().skip(1).map(|next| next.0).chain([u64::MAX]))
            .filter(|((table, _), next)| table != next)
            .map(|((table, index), next)| Row { table: *table, index: *index, next })
            .collect();
        self.take_older(plan, census, &rows, !found.loose.is_empty());
        if found.loose.is_empty() {
            return;
        }
        let by_index = rows.iter().map(|row| (row.index, row.table)).collect();
        let first_bits = plan.dialect.l2_bits();
        let bench = Bench { plan, loose: &found.loose, tables: by_index, len: state.len, first_bits };
        if !bench.sequential(&rows) {
            // The order of the file says nothing, but that something is missing.
            self.emptied = rows.iter().map(|row| row.table).filter(|table| census.is_silent(*table)).collect();
            self.note_emptied(plan);
            return;
        }
        let mut used = Bits::new(census.clusters);
        let mut left = MOST_WORDS;
        for exact in [true, false] {
            for row in rows.iter().filter(|row| bench.behind(row) > 0) {
                bench.fill(row, exact, &mut used, &mut left, &mut self.clusters);
            }
        }
        for row in rows.iter().filter(|row| bench.behind(row) > 0) {
            let list = if census.is_silent(row.table) { &mut self.emptied } else { &mut self.thinned };
            list.push(row.table);
        }
        self.emptied.sort_unstable();
        self.thinned.sort_unstable();
        if !self.clusters.is_empty() {
            let text =
                format!("{} clusters that L2 tables lost are placed by the order of the file", self.clusters.len());
            self.findings.push(Finding::new("QCOW2-L2-MENDED", 0..0, Trust::Inferred, text));
        }
        self.note_emptied(plan);
    }

    fn note_emptied(&mut self, plan: &Plan) {
        if let Some(first) = self.emptied.first() {
            let text =
                format!("{} L2 tables lost all entries: what was not placed of them is lost", self.emptied.len());
            let range = *first..first.saturating_add(plan.size());
            self.findings.push(Finding::new("QCOW2-L2-LOST", range, Trust::Doubtful, text));
        }
    }
}

/// What is in use and not named.
pub(super) struct Orphans {
    /// Tables, ascending.
    pub tables: Vec<u64>,
    /// L1 tables that nothing lists, ascending.
    pub directories: Vec<u64>,
    /// Clusters that no table names, not even a lost one.
    pub loose: Bits,
}

impl Orphans {
    /// Looks for tables among these orphans. What it costs is bounded by the entries that are read.
    pub(super) fn find(plan: &Plan, census: &Census, among: impl Iterator<Item = u64>) -> Self {
        let bits = plan.dialect.cluster_bits;
        let (mut rest, mut candidates): (Vec<u64>, Vec<u64>) = (Vec::new(), Vec::new());
        let mut left = MOST_ENTRIES;
        // All of them can be read a few times over.
        let most = narrow(MOST_ENTRIES >> plan.dialect.l2_bits()).min(MOST_TABLES);
        for cluster in among.filter(|cluster| census.orphans.has(*cluster)).take(narrow(MOST_LOOKS)) {
            let at = shl(cluster, bits);
            let table = rest.len() < most && is_table(plan, census, at, Own::Alone, &mut left);
            // The entries of L1 have 8 bytes in all images, and name what other tables may have too.
            let short = Dialect { extended: false, ..plan.dialect };
            if candidates.len() < most && (table || can_be_table(plan, short, at)) {
                candidates.push(at);
            }
            rest.extend(table.then_some(at));
        }
        let all: BTreeSet<u64> = rest.iter().copied().collect();
        candidates.sort_unstable();
        let directories: Vec<u64> =
            candidates.into_iter().filter(|at| is_directory(plan, census, &all, *at, &mut left)).collect();
        rest.retain(|at| directories.binary_search(at).is_err());
        let mut tables = Vec::new();
        // What a table has as data is no table, though it looks like one: an image inside of a guest's file.
        for _ in 0..MOST_NESTED {
            let named = named_by(plan, census.clusters, &rest);
            let (below, roots): (Vec<u64>, Vec<u64>) = rest.into_iter().partition(|at| named.has(*at >> bits));
            if roots.is_empty() {
                break;
            }
            let named = named_by(plan, census.clusters, &roots);
            tables.extend(roots);
            rest = below.into_iter().filter(|at| !named.has(*at >> bits)).collect();
        }
        tables.sort_unstable();
        let mut named = named_by(plan, census.clusters, &tables);
        for at in tables.iter().chain(&directories) {
            named.set(at >> bits);
        }
        // Without a sign of damage, what no counter tells of is free.
        let loose = if census.damaged { &census.orphans } else { &census.counted };
        let loose = loose.clone().without(&[&named]);
        Self { tables, directories, loose }
    }
}

/// The clusters that these tables name.
fn named_by(plan: &Plan, clusters: u64, tables: &[u64]) -> Bits {
    let mut named = Bits::new(clusters);
    for table in tables {
        plan.each_l2(*table, &mut |_, taken| match taken {
            Some(Taken::Cluster(host)) => {
                named.set(host >> plan.dialect.cluster_bits);
            }
            Some(Taken::Packed { at, len }) => named.set_all(plan.span(at, len)),
            _ => {}
        });
    }
    named
}

/// Whether the first sector of a cluster that is not zeros could be of a table. Most clusters are given up here,
/// without a page in the cache.
fn can_be_table(plan: &Plan, dialect: Dialect, at: u64) -> bool {
    const SECTOR: u64 = 512;
    let end = at.saturating_add(plan.size().min(LEADING)).min(plan.file().len());
    if walk(plan.file(), at..end).all(|run| matches!(run.place, Place::Hole | Place::Zero)) {
        return false;
    }
    let mut into = 0;
    while into < plan.size().min(LEADING) {
        let (bytes, seen) = read_vec(plan.file(), at.saturating_add(into), narrow(SECTOR));
        if !seen.is_whole() {
            return false;
        }
        if bytes.iter().any(|byte| *byte != 0) {
            return bytes.chunks_exact(narrow(dialect.entry_len())).all(|entry| dialect.can_be(entry, reach(plan)));
        }
        into = into.saturating_add(SECTOR);
    }
    false
}

/// How far entries can reach: a file that was cut has tables that name what is gone.
fn reach(plan: &Plan) -> u64 {
    plan.file().len().saturating_mul(4)
}

/// What a table may name.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Own {
    /// Only what the current state has not: it was a part of that itself.
    Alone,
    /// A snapshot's shares clusters with the current state.
    Shared,
}

/// Whether all of a cluster are entries that can be.
fn is_table(plan: &Plan, census: &Census, at: u64, own: Own, left: &mut u64) -> bool {
    if !can_be_table(plan, plan.dialect, at) || *left == 0 {
        return false;
    }
    *left = left.saturating_sub(shl(1, plan.dialect.l2_bits()));
    let bits = plan.dialect.cluster_bits;
    let end = plan.file().len();
    let (mut hosts, mut packed, mut gone, mut wrong): (Vec<u64>, usize, usize, bool) = (Vec::new(), 0, 0, false);
    plan.each_l2(at, &mut |_, taken| match taken {
        Some(Taken::Cluster(host)) => {
            let cluster = host >> bits;
            wrong |= host >= reach(plan) || census.fixed.has(cluster) || host == at;
            wrong |= own == Own::Alone && census.current.has(cluster);
            gone = gone.saturating_add(usize::from(host >= end));
            hosts.push(host);
        }
        Some(Taken::Packed { at: from, .. }) => {
            wrong |= from >= reach(plan) || census.fixed.has(from >> bits);
            gone = gone.saturating_add(usize::from(from >= end));
            packed = packed.saturating_add(1);
        }
        Some(Taken::Nothing | Taken::Zero) => {}
        Some(Taken::Elsewhere | Taken::Broken) | None => wrong = true,
    });
    let all = hosts.len();
    hosts.sort_unstable();
    hosts.dedup();
    !wrong && all == hosts.len() && gone < all.saturating_add(packed)
}

/// Whether what a cluster names are tables: then it is of L1, whose entries have 8 bytes in all images.
fn is_directory(plan: &Plan, census: &Census, tables: &BTreeSet<u64>, at: u64, left: &mut u64) -> bool {
    let bits = plan.dialect.cluster_bits;
    let end = at.saturating_add(plan.size());
    let mut page = plan.tables.page(at);
    let mut entry_at = at;
    let mut any = false;
    while entry_at < end {
        if !page.covers(entry_at) {
            page = plan.tables.page(entry_at);
        }
        let right = match page.be64(entry_at).map(|entry| plan.dialect.table(entry)) {
            Ok(Table::None) => true,
            Ok(Table::At(host)) => {
                any = true;
                let known = tables.contains(&host) || census.tables.has(host >> bits);
                host != at && (known || (host < plan.file().len() && is_table(plan, census, host, Own::Shared, left)))
            }
            _ => false,
        };
        if !right {
            return false;
        }
        entry_at = entry_at.saturating_add(8);
    }
    any
}

/// The entries of the current L1 table.
struct Slots {
    /// Those that name no table that can be.
    free: BTreeSet<u64>,
    /// Those of them that can't be right.
    broken: BTreeSet<u64>,
    /// The tables of the others.
    known: BTreeMap<u64, u64>,
    /// What the newest snapshot that has one has there.
    of_snapshots: BTreeMap<u64, u64>,
}

impl Slots {
    fn new(plan: &Plan, census: &Census, state: &State, needed: u64) -> Self {
        let (mut free, mut broken): (BTreeSet<u64>, BTreeSet<u64>) = (BTreeSet::new(), BTreeSet::new());
        let mut known = BTreeMap::new();
        let end = plan.file().len();
        plan.each_l1(state, &mut |index, table| match table {
            _ if index >= needed => {}
            Some(Table::At(table)) if table < end => {
                known.insert(index, table);
            }
            Some(Table::None) => {
                free.insert(index);
            }
            _ => {
                free.insert(index);
                broken.insert(index);
            }
        });
        // A table shorter than its disk, or none at all.
        for index in state.l1_size.min(needed)..needed {
            free.insert(index);
            broken.insert(index);
        }
        let mut of_snapshots = BTreeMap::new();
        for snapshot in plan.states.iter().skip(1).rev() {
            plan.each_l1(snapshot, &mut |index, table| {
                if let Some(Table::At(table)) = table
                    && index < needed
                    && free.contains(&index)
                    && census.tables.has(table >> plan.dialect.cluster_bits)
                {
                    of_snapshots.entry(index).or_insert(table);
                }
            });
        }
        Self { free, broken, known, of_snapshots }
    }

    fn take(&mut self, index: u64, table: u64) -> bool {
        let free = self.free.remove(&index);
        if free {
            self.known.insert(index, table);
        }
        free
    }

    /// A table that was copied from a snapshot's has most of its clusters in the same places.
    fn by_snapshot(&self, plan: &Plan, tables: &[u64]) -> BTreeMap<u64, u64> {
        let mut places: BTreeMap<(u64, u64), u64> = BTreeMap::new();
        for (index, table) in &self.of_snapshots {
            let mut left = SAMPLE;
            plan.each_l2(*table, &mut |slot, taken| {
                if let Some(Taken::Cluster(at) | Taken::Packed { at, .. }) = taken
                    && left > 0
                {
                    left = left.saturating_sub(1);
                    places.insert((slot, at), *index);
                }
            });
        }
        let mut found = BTreeMap::new();
        for table in tables {
            let mut votes: BTreeMap<u64, u64> = BTreeMap::new();
            plan.each_l2(*table, &mut |slot, taken| {
                if let Some(Taken::Cluster(at) | Taken::Packed { at, .. }) = taken
                    && let Some(index) = places.get(&(slot, at))
                {
                    let count = votes.entry(*index).or_default();
                    *count = count.saturating_add(1);
                }
            });
            if votes.len() == 1 {
                found.extend(votes.into_keys().map(|index| (*table, index)));
            }
        }
        found
    }

    /// Where as many tables as entries are missing between two that are known, each gets its own, if the file has all
    /// that are known in the order of the disk.
    fn in_order(&self, rest: &BTreeSet<u64>, first: u64) -> Vec<(u64, u64)> {
        let known: Vec<(u64, u64)> = self.known.iter().map(|(index, table)| (*index, *table)).collect();
        if !known.is_sorted_by_key(|(_, table)| *table) {
            return Vec::new();
        }
        let mut placed = Vec::new();
        let ends = known.iter().copied().map(Some).chain([None]);
        let mut before: Option<(u64, u64)> = None;
        for next in ends {
            let from = before.map_or(first, |(index, _)| index.saturating_add(1));
            let to = next.map_or(u64::MAX, |(index, _)| index);
            let tables_from = before.map_or(0, |(_, table)| table);
            let tables_to = next.map_or(u64::MAX, |(_, table)| table);
            if from < to && tables_from < tables_to {
                let indexes: Vec<u64> = self.free.range(from..to).copied().collect();
                let tables: Vec<u64> = rest.range(tables_from..tables_to).copied().collect();
                if indexes.len() == tables.len() {
                    placed.extend(indexes.into_iter().zip(tables));
                }
            }
            before = next;
        }
        placed
    }
}

/// An L2 table, the entry of L1 that names it, and where the next table lies in the file.
struct Row {
    table: u64,
    index: u64,
    next: u64,
}

/// Entries side by side that name nothing.
struct Missing {
    /// The first, and the first behind the last.
    from: u64,
    to: u64,
    /// Where in the file what they name can lie.
    low: u64,
    high: u64,
}

struct Bench<'a> {
    plan: &'a Plan,
    loose: &'a Bits,
    /// Tables by the entry of L1.
    tables: BTreeMap<u64, u64>,
    len: u64,
    first_bits: u32,
}

impl Bench<'_> {
    fn bits(&self) -> u32 {
        self.plan.dialect.cluster_bits
    }

    /// The clusters between two places in the file that nothing names.
    fn between(&self, low: u64, high: u64) -> impl Iterator<Item = u64> + '_ {
        let first = (low >> self.bits()).saturating_add(1);
        self.loose.ones(first..high >> self.bits())
    }

    fn behind(&self, row: &Row) -> usize {
        // More than a table maps are not its own, but that is not what is asked.
        self.between(row.table, row.next).take(1).count()
    }

    /// The entries that a table has for the disk.
    fn entries(&self, row: &Row) -> u64 {
        let first = shl(row.index, self.first_bits);
        let all = self.len.div_ceil(self.plan.size());
        all.saturating_sub(first).min(shl(1, self.first_bits))
    }

    /// Whether the data of nearly all tables lies behind them and before the next.
    fn sequential(&self, rows: &[Row]) -> bool {
        let (mut inside, mut outside) = (0_u64, 0_u64);
        for row in rows {
            self.plan.each_l2(row.table, &mut |_, taken| {
                if let Some(Taken::Cluster(host)) = taken {
                    let here = host > row.table && host < row.next;
                    inside = inside.saturating_add(u64::from(here));
                    outside = outside.saturating_add(u64::from(!here));
                }
            });
        }
        outside.saturating_mul(16) <= inside.saturating_add(outside)
    }

    fn missing(&self, row: &Row, done: &BTreeMap<u64, Placed>) -> Vec<Missing> {
        let first = shl(row.index, self.first_bits);
        let count = self.entries(row);
        let mut all: Vec<Missing> = Vec::new();
        let mut open: Option<(u64, u64)> = None;
        let mut low = row.table;
        self.plan.each_l2(row.table, &mut |slot, taken| {
            if slot >= count {
                return;
            }
            let guest = first.saturating_add(slot);
            let placed = done.get(&guest).filter(|placed| placed.entry >> 62 != 1).map(Placed::host);
            let host = match (placed, taken) {
                (Some(host), _) | (None, Some(Taken::Cluster(host))) => Some(host),
                (None, Some(Taken::Nothing | Taken::Broken) | None) => {
                    open = open.or(Some((guest, low)));
                    return;
                }
                (None, Some(_)) => None,
            };
            let high = host.unwrap_or(low);
            if let Some((from, low)) = open.take()
                && host.is_some()
            {
                all.push(Missing { from, to: guest, low, high });
            }
            low = host.unwrap_or(low);
        });
        let to = first.saturating_add(count);
        all.extend(open.map(|(from, low)| Missing { from, to, low, high: row.next }));
        all.retain(|missing| missing.low < missing.high && missing.from < missing.to);
        all
    }

    fn fill(&self, row: &Row, exact: bool, used: &mut Bits, left: &mut u64, done: &mut BTreeMap<u64, Placed>) {
        for missing in self.missing(row, done) {
            let words = missing.high.min(self.plan.file().len()).saturating_sub(missing.low) >> self.bits() >> 6;
            *left = left.saturating_sub(words);
            if *left == 0 {
                return;
            }
            let count = missing.to.saturating_sub(missing.from);
            let most = narrow(count.saturating_add(1));
            let hosts: Vec<u64> =
                self.between(missing.low, missing.high).filter(|host| !used.has(*host)).take(most).collect();
            let there = crate::num::wide(hosts.len());
            let (from, trust) = match (exact, there) {
                (_, 0) => continue,
                (true, there) if there == count => (missing.from, Trust::Inferred),
                // Where most is missing, there may be several stretches of it.
                (false, there) if there < count && there >= count / 4 => {
                    let left = missing.from > 0 && self.has(missing.from.saturating_sub(1), done);
                    let right = self.has(missing.to, done);
                    match (left, right) {
                        (true, false) => (missing.from, Trust::Doubtful),
                        (false, true) => (missing.to.saturating_sub(there), Trust::Doubtful),
                        _ => continue,
                    }
                }
                _ => continue,
            };
            for (guest, host) in (from..).zip(hosts) {
                if done.len() < MOST_CLUSTERS {
                    used.set(host);
                    done.insert(guest, Placed::at(shl(host, self.bits()), trust, self.plan.dialect));
                }
            }
        }
    }

    /// Whether a cluster of the guest is known to be in the file.
    fn has(&self, guest: u64, done: &BTreeMap<u64, Placed>) -> bool {
        if done.contains_key(&guest) {
            return true;
        }
        let (index, slot) = (guest >> self.first_bits, guest & crate::blocks::mask(self.first_bits));
        let Some(table) = self.tables.get(&index) else { return false };
        let at = table.saturating_add(slot.saturating_mul(self.plan.dialect.entry_len()));
        let entry = self.plan.tables.page(at).be64(at).unwrap_or(0);
        matches!(self.plan.dialect.taken(entry, 0), Taken::Cluster(_))
    }
}
