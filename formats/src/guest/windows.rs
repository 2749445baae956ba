//! What Windows guests have: NTFS with its `$MFT`, FAT32, exFAT.

use super::{Anchor, SECTOR, Sort, has, label, le};
use crate::layer::Layer;
use crate::num::{narrow, wide};
use crate::read::read_vec;

/// Runs of the `$MFT` that are kept.
const RUNS: usize = 4096;
const DATA: u64 = 0x80;
const END: u64 = 0xFFFF_FFFF;

/// What every boot sector of Windows starts with: bytes of a sector, sectors of a cluster.
fn units(bytes: &[u8]) -> Option<(u64, u64)> {
    let (sector, raw) = (le(bytes, 0x0B, 2), le(bytes, 0x0D, 1));
    let sectors = if raw > 0x80 { 1_u64.checked_shl(u32::try_from(256_u64.saturating_sub(raw)).ok()?)? } else { raw };
    let cluster = sector.checked_mul(sectors)?;
    let sound =
        sector.is_power_of_two() && (512..=4096).contains(&sector) && cluster.is_power_of_two() && cluster <= 2 << 20;
    sound.then_some((sector, cluster))
}

pub(super) fn ntfs(bytes: &[u8], at: u64) -> Option<Anchor> {
    let (sector, cluster) = units(bytes)?;
    let total = le(bytes, 0x28, 8);
    let (mft, mirror) = (le(bytes, 0x30, 8).checked_mul(cluster)?, le(bytes, 0x38, 8).checked_mul(cluster)?);
    let last = total.checked_mul(sector)?;
    if total == 0 || last > 1 << 50 || mft == 0 || mft >= last || mirror >= last {
        return None;
    }
    let len = last.saturating_add(sector);
    let mut anchor = Anchor::new(at, Sort::Ntfs, bytes.get(0x48..0x50)?, len);
    // The loader goes on behind the first sector of a volume, and nothing behind the last.
    let wide_text = |text: &[u8]| {
        let units = text.iter().flat_map(|byte| [*byte, 0]);
        bytes.get(514..).is_some_and(|bytes| units.eq(bytes.iter().copied().take(text.len().saturating_mul(2))))
    };
    anchor.offsets.push(0);
    if !wide_text(b"BOOTMGR") && !wide_text(b"NTLDR") {
        anchor.offsets.push(last);
    }
    anchor.len = Some(len);
    anchor.hidden = Some(le(bytes, 0x1C, 4).saturating_mul(SECTOR)).filter(|hidden| *hidden != 0);
    anchor.mft = Some((cluster, mft, mirror));
    Some(anchor)
}

pub(super) fn fat(layer: &dyn Layer, bytes: &[u8], at: u64) -> Option<Anchor> {
    let (sector, _) = units(bytes)?;
    let (total, copy) = (le(bytes, 0x20, 4), le(bytes, 0x32, 2));
    if total == 0 || copy == 0 || copy > 32 {
        return None;
    }
    let len = total.saturating_mul(sector);
    let mut anchor = Anchor::new(at, Sort::Fat, bytes.get(0x43..0x47)?, len);
    let distance = copy.saturating_mul(sector);
    let (behind, seen) = read_vec(layer, at.checked_add(distance)?, 512);
    let first = seen.is_whole() && has(&behind, 0x52, b"FAT32   ") && behind.get(0x43..0x47) == bytes.get(0x43..0x47);
    anchor.offsets.push(if first { 0 } else { distance });
    anchor.len = Some(len);
    anchor.hidden = Some(le(bytes, 0x1C, 4).saturating_mul(SECTOR)).filter(|hidden| *hidden != 0);
    anchor.label = label(bytes, 0x47, 11);
    Some(anchor)
}

/// Sectors of a boot region of exFAT; its copy follows it.
const REGION: u64 = 12;

pub(super) fn exfat(layer: &dyn Layer, at: u64) -> Option<Anchor> {
    let (head, seen) = read_vec(layer, at, 512);
    let (shift, cluster_shift, tables) = (le(&head, 0x6C, 1), le(&head, 0x6D, 1), le(&head, 0x6E, 1));
    let (hidden, sectors) = (le(&head, 0x40, 8), le(&head, 0x48, 8));
    let empty = head.get(0x0B..0x40).is_some_and(|bytes| bytes.iter().all(|byte| *byte == 0));
    let fits = (9..=12).contains(&shift) && cluster_shift <= 25_u64.saturating_sub(shift) && (1..=2).contains(&tables);
    if !seen.is_whole() || !empty || !fits || !(REGION..=1 << 50).contains(&sectors) {
        return None;
    }
    let sector = 1_u64.checked_shl(u32::try_from(shift).ok()?)?;
    // The last sector of the region repeats the sum of those before it; two fields that change are left out.
    let sum_at = sector.saturating_mul(REGION.saturating_sub(1));
    let (region, seen) = read_vec(layer, at, narrow(sum_at.saturating_add(4)));
    let (body, sum) = region.split_at_checked(narrow(sum_at)).filter(|_| seen.is_whole())?;
    let own = (0_usize..).zip(body).filter(|(at, _)| !matches!(at, 106 | 107 | 112));
    let own = own.fold(0_u32, |sum, (_, byte)| sum.rotate_right(1).wrapping_add(u32::from(*byte)));
    if u64::from(own) != le(sum, 0, 4) {
        return None;
    }
    let len = sectors.checked_mul(sector)?;
    let distance = REGION.saturating_mul(sector);
    let (behind, seen) = read_vec(layer, at.checked_add(distance)?, 512);
    let first = seen.is_whole() && has(&behind, 3, b"EXFAT   ") && behind.get(0x64..0x68) == head.get(0x64..0x68);
    let mut anchor = Anchor::new(at, Sort::ExFat, head.get(0x64..0x68)?, len);
    anchor.offsets.push(if first { 0 } else { distance });
    anchor.len = Some(len);
    anchor.hidden = hidden.checked_mul(sector).filter(|hidden| *hidden != 0);
    Some(anchor)
}

/// A record of the `$MFT`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Where it was seen.
    pub at: u64,
    /// Its own number.
    pub number: u64,
    /// Bytes of a record.
    pub size: u64,
    /// What the record 0 says of the `$MFT`: clusters, and the first of them, run by run.
    pub runs: Vec<(u64, u64)>,
}

/// Number and size of the record that starts here, as far as its first sector tells.
pub(super) fn number(bytes: &[u8]) -> Option<(u64, u64)> {
    let (usa, count, size) = (le(bytes, 4, 2), le(bytes, 6, 2), le(bytes, 0x1C, 4));
    let sound = has(bytes, 0, b"FILE")
        && matches!(size, 1024 | 4096)
        && count == (size / SECTOR).saturating_add(1)
        // Where the number lies belongs to the array in the oldest versions.
        && (0x30..=0x40).contains(&usa)
        && le(bytes, 0x18, 4) <= size
        && le(bytes, 0x14, 2) >= usa;
    sound.then(|| (le(bytes, 0x2C, 4), size))
}

pub(super) fn record(layer: &dyn Layer, at: u64) -> Option<Record> {
    let (mut bytes, seen) = read_vec(layer, at, 4096);
    let (number, size) = number(&bytes)?;
    bytes.truncate(narrow(size));
    if seen.gaps.first().is_some_and(|gap| gap.range.start < at.saturating_add(size)) {
        return None;
    }
    let usa = narrow(le(&bytes, 4, 2));
    let check = le(&bytes, usa, 2);
    for sector in 1..=narrow(size / SECTOR) {
        let end = sector.saturating_mul(512).saturating_sub(2);
        let saved = usa.saturating_add(sector.saturating_mul(2));
        if le(&bytes, end, 2) != check {
            return None;
        }
        let saved = [le(&bytes, saved, 1), le(&bytes, saved.saturating_add(1), 1)];
        for (to, from) in bytes.get_mut(end..)?.iter_mut().zip(saved) {
            *to = u8::try_from(from).unwrap_or(0);
        }
    }
    let runs = if number == 0 { data_runs(&bytes) } else { Vec::new() };
    Some(Record { at, number, size, runs })
}

/// The runs of the unnamed data of a record.
fn data_runs(bytes: &[u8]) -> Vec<(u64, u64)> {
    let mut at = narrow(le(bytes, 0x14, 2));
    // A record has no more attributes than it has room for.
    for _ in 0..64 {
        let (kind, len) = (le(bytes, at, 4), narrow(le(bytes, at.saturating_add(4), 4)));
        if kind == END || len < 0x18 || at.saturating_add(len) > bytes.len() {
            break;
        }
        let attribute = bytes.get(at..at.saturating_add(len)).unwrap_or_default();
        if kind == DATA && le(attribute, 8, 1) == 1 && le(attribute, 9, 1) == 0 && le(attribute, 0x10, 8) == 0 {
            return decode_runs(attribute.get(narrow(le(attribute, 0x20, 2))..).unwrap_or_default());
        }
        at = at.saturating_add(len);
    }
    Vec::new()
}

/// Clusters and first cluster of each run; what can't be one ends the list.
fn decode_runs(bytes: &[u8]) -> Vec<(u64, u64)> {
    let mut runs = Vec::new();
    let mut rest = bytes;
    let mut cluster: i64 = 0;
    while let Some((head, behind)) = rest.split_first() {
        let (len_size, at_size) = (usize::from(head & 15), usize::from(head >> 4));
        if *head == 0 || !(1..=8).contains(&len_size) || !(1..=8).contains(&at_size) || runs.len() >= RUNS {
            break;
        }
        let (Some(len), Some(at)) = (behind.get(..len_size), behind.get(len_size..len_size.saturating_add(at_size)))
        else {
            break;
        };
        let len = le(len, 0, len_size);
        // The distance has a sign: its highest bit.
        let shift = u32::try_from(wide(8_usize.saturating_sub(at_size)).saturating_mul(8)).unwrap_or(0);
        let step = i64::from_le_bytes((le(at, 0, at_size) << shift).to_le_bytes()) >> shift;
        let Some(next) = cluster.checked_add(step).filter(|next| *next > 0) else { break };
        cluster = next;
        runs.push((len, u64::try_from(cluster).unwrap_or(0)));
        rest = behind.get(len_size.saturating_add(at_size)..).unwrap_or_default();
    }
    runs
}

impl Record {
    /// Where in the volume the `$MFT` with these runs has the byte `at`.
    #[must_use]
    pub fn place(runs: &[(u64, u64)], cluster: u64, at: u64) -> Option<u64> {
        let mut rest = at;
        for (len, first) in runs {
            let bytes = len.checked_mul(cluster)?;
            if rest < bytes {
                return first.checked_mul(cluster)?.checked_add(rest);
            }
            rest = rest.saturating_sub(bytes);
        }
        None
    }
}
