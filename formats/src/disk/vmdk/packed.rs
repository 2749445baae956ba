//! Compressed grains: "Virtual Disk Format 5.0", section "Stream-Optimized Compressed Sparse Extents".
//!
//! A grain is a record on a sector of its own: the first sector of the disk that it has (8 bytes), the number of
//! packed bytes (4 bytes), and so many bytes of zlib. Images without markers have no sector number; on their records
//! readers disagree, so these are never sound.

use crate::codec::{Cut, inflate_zlib};
use crate::layer::{Fault, Layer, Loss, MAX_UNIT, Place, Run, Trust, Unit, Why};
use crate::memo::{Block, Memo};
use crate::num::{narrow, round_up, wide};
use crate::read::{read_block, read_exact};
use byteorder::{ByteOrder, LittleEndian};
use std::sync::Arc;

/// Special markers: a record of zero bytes, whose kind follows.
pub(super) mod marker {
    pub(crate) const END: u32 = 0;
    pub(crate) const TABLE: u32 = 1;
    pub(crate) const DIRECTORY: u32 = 2;
    pub(crate) const FOOTER: u32 = 3;
    pub(crate) const PROGRESS: u32 = 4;
}

/// How the grains of an extent are packed.
#[derive(Clone, Debug)]
pub(super) struct Packing {
    /// Whether a record tells its sector.
    pub markers: bool,
    /// Heads of records, by where they lie. Nothing else may use it.
    pub heads: Memo,
    /// Unpacked grains. Nothing else may use it.
    pub units: Memo,
}

/// A grain: where it is wanted on the disk, and how long it is there.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted {
    /// Where the grain starts on the disk.
    pub start: u64,
    /// Bytes of a whole grain.
    pub grain: u64,
    /// Bytes of the disk.
    pub disk: u64,
}

/// Bytes before the packed ones.
fn head_len(markers: bool) -> usize {
    if markers { 12 } else { 4 }
}

/// The code of a record that says of itself what can't be.
pub(super) const HEAD: &str = "KDMV-GRAIN-HEAD";

impl Packing {
    /// The head of the record at `record`.
    pub(super) fn head(&self, file: &dyn Layer, record: u64) -> Arc<Block> {
        self.heads.get(record, || read_block(file, record, head_len(self.markers)))
    }

    /// Where a record says that its grain lies on the disk, if it does.
    pub(super) fn place(&self, head: &Block) -> Option<u64> {
        let sector = head.bytes.get(..8).filter(|_| self.markers).map(LittleEndian::read_u64)?;
        Some(sector.saturating_mul(512))
    }

    /// The run at `at` of the grain whose record lies at `record`, of up to `want` bytes. `entry` is what says so.
    pub(super) fn run<'a>(
        &'a self,
        file: &'a dyn Layer,
        at: u64,
        want: u64,
        record: u64,
        (entry, trust): (u64, Trust),
        wanted: Wanted,
    ) -> Run<'a> {
        let Wanted { start, grain, disk } = wanted;
        let unit_len = disk.saturating_sub(start).min(grain);
        let len = start.saturating_add(unit_len).saturating_sub(at).min(want);
        let lost = |why, at| Run { len, place: Place::Lost(Loss { why, at }), trust };
        let inside = file.len().saturating_sub(record);
        if inside == 0 {
            return lost(Why::Truncated, entry);
        }
        let head_len = head_len(self.markers);
        let head = self.head(file, record);
        if let Some(fault) = head.fault {
            return lost(fault.loss.why, record);
        }
        let mut trust = trust.max(head.trust);
        let size = u64::from(LittleEndian::read_u32(head.bytes.get(head_len.saturating_sub(4)..).unwrap_or(&[0; 4])));
        // Packed bytes may exceed the grain, but not by much: what is longer, or empty, is no record of a grain.
        if size == 0 || size > grain.saturating_mul(2) {
            return lost(Why::Unmapped, record);
        }
        match self.place(&head) {
            None => trust = trust.max(Trust::Inferred),
            Some(place) if place == start => {}
            // The sector of another grain: the table leads to what belongs elsewhere.
            Some(place) if place < disk && place.checked_rem(grain) == Some(0) => return lost(Why::Unmapped, record),
            // What is no grain's sector is damage to the record's head.
            Some(_) => trust = Trust::Doubtful,
        }
        // With its padding, which nothing else uses.
        let packed_len = round_up(size.saturating_add(wide(head_len)), 512).min(inside);
        let unit = Unit {
            from: file,
            packed_at: record,
            packed_len: u32::try_from(packed_len).unwrap_or(MAX_UNIT).min(MAX_UNIT),
            start,
            len: u32::try_from(unit_len).unwrap_or(MAX_UNIT),
            memo: &self.units,
        };
        Run { len, place: Place::Coded(unit), trust }
    }
}

/// Unpacks a record, `grain` bytes in all or as many as `out` has at the end of the disk.
pub(super) fn decode(
    markers: bool,
    grain: u64,
    unit: &Unit<'_>,
    packed: &[u8],
    out: &mut [u8],
) -> Result<Trust, Fault> {
    let fault = |good| Fault::after(good, Why::Undecodable, unit.packed_at);
    let head = head_len(markers);
    let size = packed.get(head.saturating_sub(4)..head).map(LittleEndian::read_u32).ok_or(fault(0))?;
    let rest = packed.get(head..).unwrap_or_default();
    let rest = rest.get(..narrow(size.into())).unwrap_or(rest);
    let decoded = inflate_zlib(rest, out);
    if decoded == Ok(Trust::Sound) || wide(out.len()) >= grain {
        return decoded.map_err(|Cut(good)| fault(good));
    }
    // Some writers pack whole grains only: the last one goes on behind the end of the disk.
    let mut whole = vec![0; narrow(grain.min(MAX_UNIT.into()))];
    let (good, trust) = match inflate_zlib(rest, &mut whole) {
        Ok(trust) => (out.len(), trust),
        Err(Cut(good)) => (good.min(out.len()), Trust::Doubtful),
    };
    if let (Some(to), Some(from)) = (out.get_mut(..good), whole.get(..good)) {
        to.copy_from_slice(from);
    }
    if good < out.len() { Err(fault(good)) } else { Ok(trust) }
}

/// The kind of the special marker at `at`, if there is one.
pub(super) fn marker_at(file: &dyn Layer, at: u64) -> Option<u32> {
    let mut head = [0; 16];
    read_exact(file, at, &mut head).ok()?;
    let (size, kind) = head.split_at(12);
    let is_marker = LittleEndian::read_u32(size.get(8..)?) == 0;
    is_marker.then(|| LittleEndian::read_u32(kind))
}
