//! Finding datastores on a device whose partition table is gone: by the header of the logical volume's device, which
//! lies 1 MiB behind the start of the partition and knows how long the partition is; and where that is gone too, by
//! the file system's records, each of which says where in the volume it lies.
//!
//! A record that lies where it says is a vote for the start of its volume. On real images all votes but those of
//! copies in a journal, one in some thousands, are for the right one.

use super::header;
use super::lvm::{AREA, DATA_AT, Device, EXTENT, HEADER_AT, MAGIC, RawDevice, STRETCH};
use super::rebuild::{FDC_CLUSTER, HEARTBEATS};
use crate::adapt::{Blank, Concat, Window as Part};
use crate::error::Error;
use crate::format::{Clue, Window};
use crate::layer::{Bytes, Trust, Why};
use crate::link::{Content, Link, Opened, Volume};
use crate::memo::Memo;
use crate::note::Finding;
use crate::num::wide;
use crate::record::Record;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;

/// Partitions start at sectors.
const STEP: usize = 512;
/// The kinds of clues: the header of a device, that of a file system, and records that vote: headers of clusters of
/// descriptors, which `.fdc.sf` starts with, and all others.
const DEVICE: u32 = 1;
const VOLUME: u32 = 2;
const CLUSTERS: u32 = 3;
const RECORDS: u32 = 4;
/// The first bytes of records, of which the low byte differs.
const RECORD: u32 = 0x10C0_0000;
const RECORD_LAST: u32 = 9;
/// Starts that the records of one window can vote for: a real one has two or three, garbage has as many as it likes.
const STARTS: usize = 64;
/// Volumes that are tried by their votes, the ones with the most first.
const TRIES: usize = 64;
/// Headers of devices that are tried, those with the header of a file system behind them first. A header claims up to
/// some MiB of tables.
const HEADERS: usize = 256;
/// Votes that are worth a word even if no volume comes out.
const WORTH: u64 = 16;

/// Where clues lie on a disk with one of the usual partitions, which start in its first MiB: what is left of a
/// datastore on a disk that another format owns by now.
pub(super) const NEAR: &[Range<u64>] = &[
    // The headers of the device and of the file system.
    HEADER_AT..0x20_1000,
    0x130_0000..0x140_1000,
    // `.fdc.sf` of VMFS5, and of VMFS6 with metadata in units of 4 KiB.
    0x150_0000..0x163_2000,
    0x180_0000..0x193_4000,
];

/// Reports headers, and what records vote for.
pub(super) fn look(window: &Window<'_>, tell: &mut dyn FnMut(Clue)) {
    let magic = MAGIC.to_le_bytes();
    // Windows need not start at a sector.
    let skip =
        STEP.saturating_sub(crate::num::narrow(window.at & wide(STEP.saturating_sub(1)))) & STEP.saturating_sub(1);
    let mut votes: BTreeMap<(u32, u64), (u64, u64)> = BTreeMap::new();
    for offset in (skip..window.own).step_by(STEP) {
        let at = window.at.saturating_add(wide(offset));
        let Some(bytes) = window.bytes.get(offset..) else { continue };
        if let Some((kind, start)) = vote(bytes, at) {
            let room = votes.len() < STARTS;
            if let Some((_, count)) = votes.get_mut(&(kind, start)) {
                *count = count.saturating_add(1);
            } else if room {
                votes.insert((kind, start), (at, 1));
            }
        }
        if header::is_start(bytes) {
            tell(Clue { at, kind: VOLUME, len: 0, value: 0 });
        }
        if !bytes.starts_with(&magic) {
            continue;
        }
        let Ok(header) = RawDevice::parse(bytes, at) else { continue };
        if header.is_plausible() && at >= HEADER_AT {
            tell(Clue { at, kind: DEVICE, len: header.total_bytes, value: header.major_version.into() });
        }
    }
    for ((kind, value), (at, count)) in votes {
        tell(Clue { at, kind, len: count.saturating_mul(wide(STEP)), value });
    }
}

/// Where the volume starts whose record lies at `at`, as a number that wraps around for a start before the device.
fn vote(bytes: &[u8], at: u64) -> Option<(u32, u64)> {
    let magic = u32::from_le_bytes(*bytes.first_chunk()?);
    let known = (1..=RECORD_LAST).contains(&(magic ^ RECORD)) || HEARTBEATS.contains(&magic);
    let own = bytes.get(4..12).filter(|_| known)?.first_chunk().map(|own| u64::from_le_bytes(*own))?;
    // Nothing of a volume lies before its heartbeats, and none is so long.
    let fits = own.is_multiple_of(wide(STEP)) && (header::HEARTBEATS_AT..1 << 50).contains(&own);
    // On its device a volume has an area of metadata behind every 16 TiB.
    let areas = own.checked_div(STRETCH).unwrap_or(0).saturating_mul(AREA);
    let kind = if magic == FDC_CLUSTER { CLUSTERS } else { RECORDS };
    fits.then(|| (kind, at.wrapping_sub(own).wrapping_sub(areas)))
}

/// A volume's start, as its clues have it.
#[derive(Clone, Copy, Debug, Default)]
struct Start {
    /// Records that vote for it.
    records: u64,
    /// Whether more than records speak for it: its header, or the start of `.fdc.sf`.
    strong: bool,
    /// The first of its clues.
    at: u64,
}

/// Makes a part of the device of every header, and of every start that records vote for.
pub(super) fn build(bytes: &Bytes, memo: &Memo, clues: &[Clue]) -> Result<Opened, Error> {
    let mut volumes = Vec::new();
    let mut known = Vec::new();
    let mut findings = Vec::new();
    let stores: BTreeSet<u64> = clues.iter().filter(|clue| clue.kind == VOLUME).map(|clue| clue.at).collect();
    let mut devices: Vec<&Clue> = clues.iter().filter(|clue| clue.kind == DEVICE && clue.at >= HEADER_AT).collect();
    devices.sort_by_key(|clue| {
        let store = clue.at.saturating_sub(HEADER_AT).saturating_add(DATA_AT).saturating_add(header::HEADER_AT);
        (!stores.contains(&store), clue.at)
    });
    if let Some(first) = devices.get(HEADERS) {
        let more = devices.len().saturating_sub(HEADERS);
        let text = format!("{more} more headers of VMFS devices than are tried");
        findings.push(Finding::new("VMFS-HEADERS", first.at..first.at.saturating_add(512), Trust::Inferred, text));
    }
    for clue in devices.into_iter().take(HEADERS) {
        let start = clue.at.saturating_sub(HEADER_AT);
        let range = start..start.saturating_add(clue.len);
        let part: Bytes = Arc::new(Part::of_device(Bytes::clone(bytes), start, clue.len));
        // The records of a later device vote for a start that is as far before it as the devices before it are long.
        let (data, first) = Device::load(&part)
            .map_or((DATA_AT, 0), |device| (device.data_offset, device.volume.first_pe.saturating_mul(EXTENT)));
        known.push(start.saturating_add(data).wrapping_sub(first));
        let about = format!("VMFS (LVM {}), found by its header", clue.value);
        volumes.push(Volume { name: Vec::new(), about, range, bytes: part });
    }
    let mut starts: BTreeMap<u64, Start> = BTreeMap::new();
    for clue in clues {
        let start = match clue.kind {
            VOLUME => clue.at.wrapping_sub(header::HEADER_AT),
            CLUSTERS | RECORDS => clue.value,
            _ => continue,
        };
        let found = starts.entry(start).or_insert(Start { at: clue.at, ..Start::default() });
        found.records = found.records.saturating_add(clue.len.checked_div(wide(STEP)).unwrap_or(0));
        found.strong |= clue.kind != RECORDS;
    }
    starts.retain(|start, found| !known.contains(start) && (found.strong || found.records >= WORTH));
    let mut ranked: Vec<(u64, Start)> = starts.into_iter().collect();
    ranked.sort_by_key(|(start, found)| (std::cmp::Reverse((found.strong, found.records)), *start));
    for (start, found) in ranked.into_iter().take(TRIES) {
        match by_votes(bytes, memo, start) {
            Some(volume) => volumes.push(volume),
            None if found.records >= WORTH || found.strong => {
                let before = if start > i64::MAX.unsigned_abs() { start.wrapping_neg() } else { 0 };
                let from =
                    if before > 0 { format!("{before} bytes before this device") } else { format!("{start:#x}") };
                let text = format!(
                    "{} records of a VMFS volume that starts at {from}; it can't be opened: the start of its .fdc.sf is not here",
                    found.records
                );
                findings.push(Finding::new(
                    "VMFS-RECORDS",
                    found.at..found.at.saturating_add(512),
                    Trust::Inferred,
                    text,
                ));
            }
            None => {}
        }
    }
    volumes.retain(|volume| !volume.range.is_empty());
    volumes.sort_by_key(|volume| (volume.range.start, volume.range.end));
    for (volume, number) in volumes.iter_mut().zip(1_u32..) {
        volume.name = format!("vmfs{number}").into_bytes();
    }
    if let (true, Some(finding)) = (volumes.is_empty(), findings.first()) {
        return Err(Error::corrupt("VMFS without .fdc.sf", finding.range.start, finding.text.clone()));
    }
    let link = Link { len: bytes.len(), ..Link::default() };
    Ok(Opened { findings, ..Opened::alone(link, Content::Volumes(volumes)) })
}

/// The part of the device that a volume makes whose data starts at `base`, if it opens. What the volume has before the
/// start of the device, or behind its end, was not dumped.
fn by_votes(bytes: &Bytes, memo: &Memo, base: u64) -> Option<Volume> {
    let start = base.wrapping_sub(DATA_AT);
    let missing = if start > i64::MAX.unsigned_abs() { start.wrapping_neg() } else { 0 };
    let from = if missing > 0 { 0 } else { start };
    if from >= bytes.len() || missing > EXTENT {
        return None;
    }
    let part = |len: u64| -> Option<Bytes> {
        let rest: Bytes = Arc::new(Part::of_device(Bytes::clone(bytes), from, len.saturating_sub(missing)));
        if missing == 0 {
            return Some(rest);
        }
        let before: Bytes = Arc::new(Blank::lost(missing, Why::Outside, 0));
        Some(Arc::new(Concat::new([before, rest])?))
    };
    let all = part(bytes.len().saturating_sub(from).saturating_add(missing))?;
    let device = super::device(&all, memo).ok()?;
    let len = device.end();
    let range = from..from.saturating_add(len.saturating_sub(missing));
    let about = if missing > 0 {
        format!("VMFS, found by its records: its first {missing} bytes are outside this dump")
    } else {
        "VMFS, found by its records".into()
    };
    Some(Volume { name: Vec::new(), about, range, bytes: part(len)? })
}
