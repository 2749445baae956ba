//! An image whose header is gone, made again from its tables: every cluster of an L2 table names whole clusters of the
//! file, and the lowest bit that any of their places has is the size of a cluster.
//!
//! | lost | told by |
//! |---|---|
//! | size of a cluster | the places that tables name; how long compressed clusters get; QEMU's second cluster, which has the places of the counters |
//! | kind of L2 entries | their second words are no places |
//! | L1 | a table that names tables; of several, none that the snapshot table names, and the one that names most |
//! | L1, gone too | tables are placed by content and order (`mend.rs`) |
//! | snapshots | their table looks like nothing else |
//! | compression | what decodes to exactly a cluster |
//! | size of the disk | the guest's GPT; else what its partitions reach or tables map |
//! | encryption | a LUKS header that no table names |
//!
//! That it had a backing file, AES encryption or an external data file, nothing tells but the header.

use super::anchors;
use super::bits::Bits;
use super::census::{Census, Plan, Refcounts, State};
use super::entry::{COPIED, Dialect, OFFSET, Table, Taken};
use super::header::{Compression, Header, Made};
use super::mend::Orphans;
use super::snapshot::{self, Snapshot};
use crate::blocks::{mask, shl};
use crate::codec::{Cut, Zstd, inflate};
use crate::entries::Entries;
use crate::error::Error;
use crate::format::{Clue, Window};
use crate::layer::{Bytes, Layer, Trust};
use crate::memo::Memo;
use crate::note::Finding;
use crate::num::{narrow, round_up, wide};
use crate::read::{read, read_vec};
use byteorder::{BigEndian, ByteOrder};
use std::collections::BTreeSet;

const SECTOR: u64 = 512;
/// Offsets above this are of no file: QEMU's limit is 2^56, but no sweep reaches that far.
const HIGHEST: u64 = 1 << 48;
/// How far from the start tables are looked for when a file is opened; a sweep looks everywhere.
const NEAR: u64 = 64 << 20;
/// Entries that are looked at for the size of a cluster.
const SAMPLES: usize = 1 << 16;
/// Compressed clusters that are decoded for it.
const DECODED: usize = 8;
/// log2 of what a table must map for a guest to use some of it: 2 MiB.
const ALL_OVER: u32 = 21;
/// Bytes of a table of L1 without an entry that may lie between two with some.
const MOST_BLANK: u64 = 64 << 10;
/// Clusters before the first table that are looked at.
const LEADING: usize = 1 << 12;
/// Clusters that clues point to.
const MOST_CLUSTERS: usize = 1 << 22;

/// The kinds of clues. Entries of 8 bytes.
const TABLE: u32 = 1;
/// Entries of 16 bytes.
const EXTENDED: u32 = 2;
/// A snapshot table.
const SNAPSHOTS: u32 = 3;
/// A LUKS header.
const LUKS: u32 = 4;

/// What was found out without a header.
pub(super) struct Rebuilt {
    pub header: Header,
    pub snapshots: Vec<Snapshot>,
    /// Where the snapshot table was found, and its bytes.
    pub snapshots_at: (u64, u64),
}

/// Reports sectors that could be of a table.
pub(super) fn look(window: &Window<'_>, tell: &mut dyn FnMut(Clue)) {
    let from = narrow(round_up(window.at, SECTOR).saturating_sub(window.at));
    let mut open: Option<Clue> = None;
    for into in (from..window.own).step_by(narrow(SECTOR)) {
        let at = window.at.saturating_add(wide(into));
        let Some(bytes) = window.bytes.get(into..into.saturating_add(narrow(SECTOR))) else { break };
        let kind = kind(bytes);
        match (&mut open, kind) {
            (Some(clue), Some(kind)) if clue.kind == kind && kind <= EXTENDED => {
                clue.len = clue.len.saturating_add(SECTOR);
                continue;
            }
            _ => open.take().into_iter().for_each(&mut *tell),
        }
        open = kind.map(|kind| Clue { at, kind, len: SECTOR, value: 0 });
    }
    open.into_iter().for_each(tell);
}

fn kind(bytes: &[u8]) -> Option<u32> {
    if bytes.starts_with(b"LUKS\xba\xbe") {
        return Some(LUKS);
    }
    if is_entries(bytes) {
        return Some(TABLE);
    }
    if is_extended(bytes) {
        return Some(EXTENDED);
    }
    snapshot::is_entry(bytes).then_some(SNAPSHOTS)
}

/// What can be an entry of some image.
enum Word {
    Nothing,
    Place(u64),
    Packed,
}

fn word(word: u64, flag: u64) -> Option<Word> {
    let host = word & OFFSET;
    if word & 1 << 62 != 0 {
        // The lowest 49 bits are of the offset, whatever the size of a cluster.
        return (word & (COPIED | HIGHEST) == 0).then_some(Word::Packed);
    }
    match word & !(OFFSET | COPIED | flag) {
        0 if host >= HIGHEST => None,
        0 if host != 0 => Some(Word::Place(host)),
        0 => Some(Word::Nothing),
        _ => None,
    }
}

fn is_entries(bytes: &[u8]) -> bool {
    let (mut places, mut sure, mut last) = (0_u32, false, 0);
    for number in bytes.chunks_exact(8).map(BigEndian::read_u64) {
        // Two clusters never lie in one place.
        if number > 1 && number == last {
            return false;
        }
        last = number;
        match word(number, 1) {
            None => return false,
            Some(Word::Nothing) => {}
            Some(Word::Packed) => sure = true,
            Some(Word::Place(_)) => {
                places = places.saturating_add(1);
                sure |= number & COPIED != 0;
            }
        }
    }
    sure || places > 1
}

fn is_extended(bytes: &[u8]) -> bool {
    let (mut places, mut sure, mut last) = (0_u32, false, 0);
    for pair in bytes.chunks_exact(16) {
        let (entry, bitmap) = (BigEndian::read_u64(pair), pair.get(8..).map_or(0, BigEndian::read_u64));
        if entry != 0 && entry == last {
            return false;
        }
        last = entry;
        let disjoint = (bitmap >> 32 & bitmap).trailing_zeros() >= 32;
        match word(entry, 0) {
            Some(Word::Place(host)) if disjoint && bitmap != 0 && host.trailing_zeros() >= 14 => {
                places = places.saturating_add(1);
                sure |= entry & COPIED != 0;
            }
            Some(Word::Packed) => sure = true,
            Some(Word::Nothing) if disjoint && bitmap.trailing_zeros() >= 32 => {}
            _ => return false,
        }
    }
    sure || places > 1
}

/// Whether it is an image though its start does not say so, from a few small reads.
pub(super) fn is_headless(layer: &dyn Layer) -> bool {
    (9..=21).any(|bits| counters_at(layer, bits).is_some())
}

/// Where the counters are, if they are where QEMU puts those of every image that it makes: in the second cluster the
/// table, in the third the first block, which counts itself. Widths of 1 bit to 8 bytes.
fn counters_at(layer: &dyn Layer, bits: u32) -> Option<Refcounts> {
    let (at, size) = (shl(1, bits), shl(1, bits));
    if layer.len() < size.saturating_mul(4) {
        return None;
    }
    let (table, seen) = read_vec(layer, at, 512);
    let mut places = table.chunks_exact(8).map(BigEndian::read_u64);
    let first = places.next().filter(|first| *first >= size.saturating_mul(2))?;
    let right = |place: u64| place & mask(bits) == 0 && place < layer.len();
    if !seen.is_whole() || !right(first) || !places.all(right) {
        return None;
    }
    let (block, seen) = read_vec(layer, first, 512);
    let orders = [4_u32, 3, 5, 6, 2, 1, 0];
    let ones = |order: u32| {
        let width = shl(1, order);
        (0..first >> bits).take(16).all(|number| {
            let bit = number.saturating_mul(width);
            if order < 3 {
                let byte = block.get(narrow(bit >> 3)).copied().unwrap_or(0);
                let shift = u32::try_from(bit & 7).unwrap_or(0);
                return u64::from(byte).checked_shr(shift).unwrap_or(0) & mask(u32::try_from(width).unwrap_or(0)) == 1;
            }
            let (from, len) = (narrow(bit >> 3), narrow(width >> 3));
            block.get(from..from.saturating_add(len)).is_some_and(|counter| BigEndian::read_uint(counter, len) == 1)
        })
    };
    let order = orders.into_iter().find(|order| ones(*order)).filter(|_| seen.is_whole())?;
    Some(Refcounts { at, entries: size >> 3, order })
}

/// Looks for tables near the start of a file that has no header.
pub(super) fn load(bytes: &Bytes, memo: &Memo) -> Result<Rebuilt, Error> {
    const WINDOW: u64 = 1 << 20;
    let layer = &**bytes;
    let mut clues = Vec::new();
    let mut at = 0;
    while at < layer.len().min(NEAR) {
        let own = layer.len().saturating_sub(at).min(WINDOW);
        let (bytes, _) = read_vec(layer, at, narrow(own));
        look(&Window { at, bytes: &bytes, own: narrow(own) }, &mut |clue| clues.push(clue));
        at = at.saturating_add(WINDOW);
    }
    from_clues(bytes, memo, &clues)
}

/// The image that the clues are of.
pub(super) fn from_clues(bytes: &Bytes, memo: &Memo, clues: &[Clue]) -> Result<Rebuilt, Error> {
    let nothing = || {
        let at = clues.first().map_or(0, |clue| clue.at);
        Error::corrupt("qcow2 image without header", at, "sectors that look like its tables, and no table")
    };
    let guess = Guess::new(&**bytes, clues).ok_or_else(nothing)?;
    let tables = Entries::new(bytes.clone(), memo.share());
    let plan = Plan {
        tables,
        dialect: guess.dialect,
        states: vec![State { l1: bytes.len(), l1_size: 0, len: 0 }],
        refcounts: None,
        first_table: 0,
        metadata: Vec::new(),
    };
    // All that no table names may be a guest's.
    let census = Census { damaged: true, ..Census::new(&plan) };
    let bits = guess.dialect.cluster_bits;
    let kind = if guess.dialect.extended { EXTENDED } else { TABLE };
    let mut clusters: BTreeSet<u64> = BTreeSet::new();
    for clue in clues.iter().filter(|clue| clue.kind == kind || clue.kind == TABLE) {
        let span = plan.span(clue.at, clue.len);
        clusters.extend(span.take(MOST_CLUSTERS.saturating_sub(clusters.len())));
    }
    let found = Orphans::find(&plan, &census, clusters.iter().copied());
    let (snapshots, snapshots_at) = snapshots(&**bytes, bits, clues);
    let of_snapshots: BTreeSet<u64> = snapshots.iter().map(|snapshot| snapshot.l1_table_offset).collect();
    let directory = directory(&plan, &found, &of_snapshots);
    if directory.is_none() && !fills(&plan, &found) {
        return Err(nothing());
    }
    let seen = anchors::Seen::new(&plan, &found.tables);
    let (stated, reach) = seen.len();
    let span_bits = guess.dialect.span_bits();
    let mut findings = Vec::new();
    let mut note = |code, trust, text: String| findings.push(Finding::new(code, 0..72, trust, text));
    let text =
        format!("the header is gone; clusters of {} bytes and the tables are found by what they say", plan.size());
    note("QCOW2-HEADER", Trust::Inferred, text);
    let mut first_table = 0;
    let (l1, l1_size, mapped) = if let Some((at, entries)) = directory {
        (at, entries, mapped(&plan, at, entries))
    } else {
        let text = "the L1 table is gone too: L2 tables are placed by what the guest's disk says and by their order";
        note("QCOW2-L1-GONE", Trust::Inferred, text.into());
        let places = seen.places(&plan, u64::MAX);
        let reached = places.values().copied().max().map_or(0, |last| last.saturating_add(1));
        // Nothing tells how long the disk is, nor where anything lies: what is left is that a guest uses a disk all
        // over, so that there is a table for each few MiB, and that they were made in order.
        let blind = stated.is_none() && reach == 0 && places.is_empty();
        if blind && span_bits < ALL_OVER && found.tables.len() > 1 {
            return Err(nothing());
        }
        // What lies before the first table was named by one that is gone too.
        first_table = u64::from(blind && leads(&plan, &found));
        let count = wide(found.tables.len()).saturating_add(first_table);
        (0, 0, shl(if blind { count } else { reached }, span_bits))
    };
    let size = match stated {
        Some(len) if round_up(len, plan.size()) >= mapped || directory.is_none() => len,
        _ => {
            let text = "how long the disk is, nothing says: it has what its partitions reach and its tables map";
            note("QCOW2-SIZE", if directory.is_some() { Trust::Inferred } else { Trust::Doubtful }, text.into());
            mapped.max(reach)
        }
    };
    let sealed = clues.iter().find(|clue| clue.kind == LUKS && is_own(&plan, &found, clue.at));
    let refcounts = counters_at(&**bytes, bits);
    let header = Header::made(Made {
        cluster_bits: bits,
        extended: guess.dialect.extended,
        compression: guess.compression,
        size,
        l1,
        l1_size: u32::try_from(l1_size).unwrap_or(u32::MAX),
        refcounts,
        first_table,
        luks: sealed.map(|clue| clue.at),
        snapshots: (snapshots_at.0, u32::try_from(snapshots.len()).unwrap_or(u32::MAX)),
        findings,
    });
    Ok(Rebuilt { header, snapshots, snapshots_at })
}

/// Whether these tables are of an image that starts where the file does: they name half of it, and what they name lies
/// behind them. Those of an image somewhere on a disk name places before themselves.
fn fills(plan: &Plan, found: &Orphans) -> bool {
    let mut named = Bits::new(plan.clusters());
    let (mut behind, mut before) = (0_u64, 0_u64);
    for table in &found.tables {
        named.set(table >> plan.dialect.cluster_bits);
        plan.each_l2(*table, &mut |_, taken| {
            let Some(Taken::Cluster(at) | Taken::Packed { at, .. }) = taken else { return };
            let len = if let Some(Taken::Packed { len, .. }) = taken { len } else { 1 };
            named.set_all(plan.span(at, len));
            let count = if at > *table { &mut behind } else { &mut before };
            *count = count.saturating_add(1);
        });
    }
    behind > before && named.count().saturating_mul(2) >= plan.clusters()
}

/// Whether the file has data before its first table that no table names.
fn leads(plan: &Plan, found: &Orphans) -> bool {
    let first = found.tables.first().map_or(0, |at| *at >> plan.dialect.cluster_bits);
    found.loose.ones(0..first).take(LEADING).any(|cluster| {
        let (bytes, _) = read_vec(plan.file(), shl(cluster, plan.dialect.cluster_bits), narrow(SECTOR));
        bytes.iter().any(|byte| *byte != 0)
    })
}

/// Whether no table names the cluster at `at`: a guest's LUKS volume begins with the same words.
fn is_own(plan: &Plan, found: &Orphans, at: u64) -> bool {
    let mut own = at & mask(plan.dialect.cluster_bits) == 0;
    for table in &found.tables {
        plan.each_l2(*table, &mut |_, taken| own &= taken != Some(Taken::Cluster(at)));
    }
    own
}

/// The snapshots of the table that names the most.
fn snapshots(layer: &dyn Layer, bits: u32, clues: &[Clue]) -> (Vec<Snapshot>, (u64, u64)) {
    let mut best = (Vec::new(), (0, 0));
    for clue in clues.iter().filter(|clue| clue.kind == SNAPSHOTS && clue.at & mask(bits) == 0).take(1 << 10) {
        let (snapshots, len) = snapshot::found_at(layer, clue.at, bits);
        if snapshots.len() > best.0.len() {
            best = (snapshots, (clue.at, len));
        }
    }
    best
}

/// Where the current L1 table lies, and its entries.
fn directory(plan: &Plan, found: &Orphans, of_snapshots: &BTreeSet<u64>) -> Option<(u64, u64)> {
    let bits = plan.dialect.cluster_bits;
    // A table of more than a cluster goes on in the next.
    let mut runs: Vec<(u64, u64)> = Vec::new();
    for at in &found.directories {
        let blank = |from: u64| {
            let len = at.saturating_sub(from).min(MOST_BLANK.saturating_add(1));
            let (bytes, seen) = read_vec(plan.file(), from, narrow(len));
            len <= MOST_BLANK && seen.is_whole() && bytes.iter().all(|byte| *byte == 0)
        };
        match runs.last_mut() {
            Some((start, len)) if !of_snapshots.contains(at) && blank(start.saturating_add(*len)) => {
                *len = at.saturating_add(plan.size()).saturating_sub(*start);
            }
            _ => runs.push((*at, plan.size())),
        }
    }
    let count = |at: u64, len: u64| {
        let (mut tables, mut last) = (0_u64, 0);
        let state = State { l1: at, l1_size: (len >> 3).min(plan.file().len().saturating_sub(at) >> 3), len: 0 };
        plan.each_l1(&state, &mut |index, table| {
            if let Some(Table::At(table)) = table
                && table >> bits < plan.clusters()
            {
                tables = tables.saturating_add(1);
                last = index.saturating_add(1);
            }
        });
        (tables, last)
    };
    let mut best: Option<(u64, u64, u64)> = None;
    for (at, len) in runs.into_iter().filter(|(at, _)| !of_snapshots.contains(at)) {
        let (tables, entries) = count(at, len);
        // Of equals the first: QEMU makes the current table before all others.
        if best.is_none_or(|(_, _, most)| tables > most) {
            best = Some((at, entries, tables));
        }
    }
    best.map(|(at, entries, _)| (at, entries))
}

/// Where what a table of L1 maps ends.
fn mapped(plan: &Plan, l1: u64, entries: u64) -> u64 {
    let state = State { l1, l1_size: entries, len: 0 };
    let mut last = None;
    plan.each_l1(&state, &mut |index, table| {
        if let Some(Table::At(table)) = table {
            last = Some((index, table));
        }
    });
    let Some((index, table)) = last else { return 0 };
    let mut end = 0;
    plan.each_l2(table, &mut |slot, taken| {
        if !matches!(taken, Some(Taken::Nothing) | None) {
            end = slot.saturating_add(1);
        }
    });
    shl(index, plan.dialect.span_bits()).saturating_add(shl(end, plan.dialect.cluster_bits))
}

/// What the entries of an image tell of their kind.
struct Guess {
    dialect: Dialect,
    compression: Compression,
}

impl Guess {
    fn new(layer: &dyn Layer, clues: &[Clue]) -> Option<Self> {
        let bytes_of = |kind: u32| {
            clues.iter().filter(|clue| clue.kind == kind).fold(0_u64, |sum, clue| sum.saturating_add(clue.len))
        };
        let extended = bytes_of(EXTENDED) > bytes_of(TABLE) / 2 && bytes_of(EXTENDED) > 0;
        let (hosts, packed) = samples(layer, clues, if extended { EXTENDED } else { TABLE });
        let decoded = decode(layer, &packed);
        let lowest = if extended { 14 } else { 9 };
        let by_counters = (lowest..=21).find(|bits| counters_at(layer, *bits).is_some());
        let aligned = |bits: u32| hosts.iter().filter(|host| **host & mask(bits) == 0).count();
        // What a guest's file holds may look like a table too.
        let most = |bits: &u32| aligned(*bits).saturating_mul(20) >= hosts.len().saturating_mul(19);
        let by_places = (lowest..=21).rev().find(|bits| !hosts.is_empty() && most(bits));
        let cluster_bits = match (by_places, by_counters, &decoded) {
            (_, _, Some((bits, _))) => *bits,
            // A few places may be rounder than they must.
            (Some(places), Some(counters), _) if counters <= places && most(&counters) => counters,
            (Some(places), _, _) => places,
            (None, counters, _) => counters?,
        };
        let dialect = Dialect { cluster_bits, zero_bit: true, extended, data_file: false };
        let compression = decoded.map_or(Compression::Deflate, |(_, compression)| compression);
        Some(Self { dialect, compression })
    }
}

/// Places and compressed clusters that tables name, as they stand.
fn samples(layer: &dyn Layer, clues: &[Clue], kind: u32) -> (Vec<u64>, Vec<u64>) {
    let (mut hosts, mut packed) = (Vec::new(), Vec::new());
    let all = clues.iter().filter(|clue| clue.kind == kind).fold(0_u64, |sum, clue| sum.saturating_add(clue.len));
    // Evenly from all of them.
    let each = (all / SECTOR).div_ceil(wide(SAMPLES) / 64).max(1);
    let mut number = 0_u64;
    for clue in clues.iter().filter(|clue| clue.kind == kind) {
        let mut into = 0;
        while into < clue.len {
            if number.is_multiple_of(each) {
                let mut sector = [0; 512];
                let _ = read(layer, clue.at.saturating_add(into), &mut sector);
                let step = if kind == EXTENDED { 16 } else { 8 };
                for entry in sector.chunks_exact(step).map(BigEndian::read_u64) {
                    match word(entry, 1) {
                        Some(Word::Place(host)) if host < layer.len() => hosts.push(host),
                        Some(Word::Packed) => packed.push(entry),
                        _ => {}
                    }
                }
            }
            number = number.saturating_add(1);
            into = into.saturating_add(SECTOR);
        }
    }
    (hosts, packed)
}

/// The size of a cluster, and how it is compressed, by what decodes to exactly that.
fn decode(layer: &dyn Layer, packed: &[u64]) -> Option<(u32, Compression)> {
    let zstd = Zstd::default();
    let mut out = vec![0; (2 << 20) + 1];
    let step = (packed.len() / DECODED).max(1);
    let mut votes: Vec<((u32, Compression), u32)> = Vec::new();
    for entry in packed.iter().step_by(step).take(DECODED) {
        for bits in 9..=21_u32 {
            let dialect = Dialect { cluster_bits: bits, zero_bit: true, extended: false, data_file: false };
            let Taken::Packed { at, len } = dialect.taken(*entry, 0) else { continue };
            if at >= layer.len() || len > shl(2, bits) {
                continue;
            }
            let (bytes, seen) = read_vec(layer, at, narrow(len.min(layer.len().saturating_sub(at))));
            let size = narrow(shl(1, bits));
            let (Some(exact), true) = (out.get_mut(..size), seen.is_whole()) else { continue };
            let deflate = inflate(&bytes, exact) == Ok(Trust::Sound);
            let longer = out.get_mut(..size.saturating_add(1)).unwrap_or_default();
            let compression = match zstd.decode(&bytes, longer) {
                Err(Cut(good)) if good == size => Compression::Zstd,
                _ if deflate => Compression::Deflate,
                _ => continue,
            };
            match votes.iter_mut().find(|(kind, _)| *kind == (bits, compression)) {
                Some((_, count)) => *count = count.saturating_add(1),
                None => votes.push(((bits, compression), 1)),
            }
        }
    }
    votes.into_iter().max_by_key(|(_, count)| *count).map(|(kind, _)| kind)
}
