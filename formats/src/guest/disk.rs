//! Partition tables.

use super::{Anchor, Part, SECTOR, Sort, has, le};
use crate::layer::Layer;
use crate::num::{narrow, wide};
use crate::read::read_vec;

/// The table of an MBR.
const TABLE: usize = 0x1BE;
const ENTRY: usize = 16;
/// The type of the one partition that an MBR in front of a GPT has.
const PROTECTIVE: u64 = 0xEE;
/// More bytes of partition entries than any GPT has.
const MAX_TABLE: u64 = 1 << 20;

fn entries(bytes: &[u8]) -> Option<Vec<Part>> {
    let mut parts: Vec<Part> = Vec::new();
    for entry in bytes.get(TABLE..)?.chunks_exact(ENTRY).take(4) {
        if entry.iter().all(|byte| *byte == 0) {
            continue;
        }
        let (status, kind) = (le(entry, 0, 1), le(entry, 4, 1));
        let part = Part { start: le(entry, 8, 4).saturating_mul(SECTOR), len: le(entry, 12, 4).saturating_mul(SECTOR) };
        if status & 0x7F != 0 || kind == 0 || kind == PROTECTIVE || part.start == 0 || part.len == 0 {
            return None;
        }
        let apart = |other: &Part| {
            other.start.saturating_add(other.len) <= part.start || part.start.saturating_add(part.len) <= other.start
        };
        if !parts.iter().all(apart) {
            return None;
        }
        parts.push(part);
    }
    (!parts.is_empty()).then_some(parts)
}

pub(super) fn is_mbr(bytes: &[u8]) -> bool {
    has(bytes, 510, &[0x55, 0xAA]) && entries(bytes).is_some()
}

pub(super) fn mbr(bytes: &[u8], at: u64) -> Option<Anchor> {
    let parts = entries(bytes)?;
    let table = bytes.get(TABLE..510)?;
    let mut anchor = Anchor::new(at, Sort::Mbr, bytes.get(0x1B8..0x1BC)?, crc32fast::hash(table).into());
    anchor.offsets.push(0);
    anchor.parts = parts;
    Some(anchor)
}

pub(super) fn gpt(layer: &dyn Layer, at: u64) -> Option<Anchor> {
    let (mut bytes, seen) = read_vec(layer, at, 512);
    let size = narrow(le(&bytes, 12, 4));
    let (own, other) = (le(&bytes, 24, 8), le(&bytes, 32, 8));
    let crc = le(&bytes, 16, 4);
    bytes.get_mut(16..20)?.fill(0);
    let sound = seen.is_whole()
        && (92..=512).contains(&size)
        && u64::from(crc32fast::hash(bytes.get(..size)?)) == crc
        && own != 0
        && own != other
        && own.max(other) < u64::MAX >> 10;
    if !sound {
        return None;
    }
    let len = own.max(other).saturating_add(1).saturating_mul(SECTOR);
    let mut anchor = Anchor::new(at, Sort::Gpt, bytes.get(56..72)?, len);
    anchor.offsets.push(own.saturating_mul(SECTOR));
    anchor.len = Some(len);
    anchor.parts = table(layer, &bytes, at, own).unwrap_or_default();
    Some(anchor)
}

/// The partitions, if the table lies beside the header and has the checksum that the header says.
fn table(layer: &dyn Layer, header: &[u8], at: u64, own: u64) -> Option<Vec<Part>> {
    let (start, count, size) = (le(header, 72, 8), le(header, 80, 4), le(header, 84, 4));
    let len = count.checked_mul(size).filter(|len| (1..=MAX_TABLE).contains(len) && size >= 128)?;
    let distance = start.abs_diff(own).checked_mul(SECTOR)?;
    let table_at = if start > own { at.checked_add(distance)? } else { at.checked_sub(distance)? };
    let (bytes, seen) = read_vec(layer, table_at, narrow(len));
    if !seen.is_whole() || u64::from(crc32fast::hash(&bytes)) != le(header, 88, 4) {
        return None;
    }
    let part = |entry: &[u8]| {
        let (first, last) = (le(entry, 32, 8), le(entry, 40, 8));
        let sectors = last.checked_sub(first)?.checked_add(1)?;
        let used = entry.iter().take(16).any(|byte| *byte != 0);
        used.then_some(Part { start: first.checked_mul(SECTOR)?, len: sectors.checked_mul(SECTOR)? })
    };
    Some(bytes.chunks_exact(narrow(size)).take(narrow(count)).filter_map(part).take(narrow(wide(256))).collect())
}
