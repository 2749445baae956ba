//! The hosted sparse extent, `KDMV`: VMware's "Virtual Disk Format 5.0", section "Hosted Sparse Extents".
//!
//! An extent has two full copies of its tables. Both are asked for every run: where they agree it is sound, where they
//! do not, the copy that has something wins, doubtfully. Lost tables are zeros or garbage more often than data.
//! Compressed (stream-optimized) extents are not read here.

use super::sparse::{Dialect, Grain, Parent, Shape, Sparse, Table, power, shl};
use crate::audit::{Codes, audit_runs};
use crate::cursor::same_layer;
use crate::entries::{Entries, Page};
use crate::error::Error;
use crate::layer::{Bytes, Layer, Loss, Place, Run, Trust, Why};
use crate::note::{Finding, Note, Sink, Use};
use crate::record::Record;
use binrw::BinRead;
use std::ops::{ControlFlow, Range};
use std::sync::Arc;

pub(super) const MAGIC: &[u8] = b"KDMV";

/// The part of the header that reading needs. Offsets and sizes are in sectors.
#[derive(BinRead, Debug)]
#[br(little)]
pub(super) struct Raw {
    magic: [u8; 4],
    version: u32,
    flags: u32,
    capacity: u64,
    grain_size: u64,
    descriptor_offset: u64,
    descriptor_size: u64,
    num_gtes_per_gt: u32,
    rgd_offset: u64,
    /// The overhead, the number of sectors before the first grain, follows.
    #[br(pad_after = 8)]
    gd_offset: u64,
    unclean_shutdown: u8,
    newlines: [u8; 4],
    compress_algorithm: u16,
}

impl Record for Raw {
    const SIZE: usize = 79;
    const NAME: &'static str = "hosted sparse extent header";
}

mod flag {
    pub(super) const NEWLINE_TEST: u32 = 1;
    pub(super) const REDUNDANT: u32 = 1 << 1;
    pub(super) const ZERO_GRAIN: u32 = 1 << 2;
    pub(super) const COMPRESSED: u32 = 1 << 16;
    pub(super) const MARKERS: u32 = 1 << 17;
}

/// The extent in `entries`' layer.
pub(super) fn load(entries: &Entries, parent: &Parent) -> Result<Bytes, Error> {
    let layer: &dyn Layer = &**entries.layer();
    let raw = Raw::load(layer, 0)?;
    if raw.magic != *MAGIC {
        return Err(Error::corrupt("hosted sparse extent header: magic", 0, format!("{:02x?}", raw.magic)));
    }
    if !(1..=3).contains(&raw.version) {
        return Err(Error::unsupported(format!("hosted sparse extent version {}", raw.version)));
    }
    if raw.flags & (flag::COMPRESSED | flag::MARKERS) != 0 || raw.compress_algorithm != 0 || raw.gd_offset == u64::MAX {
        return Err(Error::unsupported("a compressed hosted sparse extent"));
    }
    let grain_bits = power("hosted sparse extent header: grain_size", 20, raw.grain_size)?;
    let per_table = raw.num_gtes_per_gt;
    if !per_table.is_power_of_two() || per_table > 1 << 16 {
        let found = format!("{per_table} (a power of two up to 65536)");
        return Err(Error::corrupt("hosted sparse extent header: num_gtes_per_gt", 44, found));
    }
    let table_bits = per_table.trailing_zeros();
    let too_large = || Error::corrupt("hosted sparse extent header: capacity", 12, format!("{:#x}", raw.capacity));
    let len = raw.capacity.checked_mul(512).ok_or_else(too_large)?;
    let mut findings = Vec::new();
    let mut trust = Trust::Sound;
    if raw.flags & flag::NEWLINE_TEST != 0 && raw.newlines != *b"\n \r\n" {
        trust = Trust::Doubtful;
        let text = format!("the newline test has {:02x?}: the file was transferred as text", raw.newlines);
        findings.push(Finding::new("KDMV-NEWLINES", 73..77, trust, text));
    }
    if raw.unclean_shutdown != 0 {
        let text = "the extent was not closed";
        findings.push(Finding::new("KDMV-UNCLEAN", 72..73, Trust::Sound, text));
    }
    let copy = |directory: u64, findings: Vec<Finding>| Sparse {
        entries: entries.clone(),
        shape: Shape {
            len,
            grain_bits,
            table_bits,
            directory: directory.saturating_mul(512),
            tables: len.div_ceil(shl(1, grain_bits.saturating_add(table_bits))),
        },
        dialect: Hosted { zero_grain: raw.flags & flag::ZERO_GRAIN != 0 },
        parent: parent.clone(),
        trust,
        findings,
        areas: vec![
            (0, 512, Use::Metadata),
            (raw.descriptor_offset.saturating_mul(512), raw.descriptor_size.saturating_mul(512), Use::Metadata),
        ],
    };
    let primary = copy(raw.gd_offset, findings);
    let has_second = raw.flags & flag::REDUNDANT != 0 && raw.rgd_offset != 0 && raw.rgd_offset != raw.gd_offset;
    if !has_second {
        return Ok(Arc::new(primary));
    }
    Ok(Arc::new(Redundant { primary, second: copy(raw.rgd_offset, Vec::new()) }))
}

/// The encoding of hosted tables: sector numbers, 0 for none.
#[derive(Clone, Copy, Debug)]
pub(super) struct Hosted {
    /// Whether a table entry of 1 says zeros.
    zero_grain: bool,
}

impl Dialect for Hosted {
    const DIRECTORY_ENTRY: u64 = 4;
    const TABLE_ENTRY: u64 = 4;
    const CODES: Codes = Codes { range: "KDMV-GRAIN-RANGE", entry: "KDMV-ENTRY" };

    fn table(&self, page: &Page, at: u64) -> Result<Table, Loss> {
        page.le32(at).map(|sector| match sector {
            0 => Table::None,
            sector => Table::At(u64::from(sector).saturating_mul(512)),
        })
    }

    fn grain(&self, page: &Page, at: u64) -> Result<Grain, Loss> {
        page.le32(at).map(|sector| match sector {
            0 => Grain::Parent,
            1 if self.zero_grain => Grain::Zero,
            // Without the flag sector 1 would be a grain inside the header's descriptor.
            1 => Grain::Broken,
            sector => Grain::At(u64::from(sector).saturating_mul(512)),
        })
    }
}

/// An extent through both copies of its tables.
#[derive(Debug)]
struct Redundant {
    primary: Sparse<Hosted>,
    second: Sparse<Hosted>,
}

impl Redundant {
    /// How much a place says: nothing, that there is nothing here, that there is something.
    fn weight(&self, place: Place<'_>) -> u8 {
        match place {
            Place::Lost(Loss { why: Why::Absent, .. }) | Place::Hole => 1,
            Place::Lost(_) => 0,
            Place::Below { layer, .. } if same_layer(layer, &**self.primary.entries.layer()) => 3,
            Place::Zero => 2,
            _ => 1,
        }
    }
}

impl Redundant {
    /// The run at `at`, and whether the copies agree on it.
    fn choose(&self, at: u64, want: u64) -> (Run<'_>, bool) {
        let first = self.primary.run(at, want);
        let second = self.second.run(at, first.len);
        let len = first.len.min(second.len);
        let agree = match (first.place, second.place) {
            (Place::Below { layer: a, offset: x }, Place::Below { layer: b, offset: y }) => same_layer(a, b) && x == y,
            (Place::Lost(a), Place::Lost(b)) => a.why == b.why,
            (Place::Zero, Place::Zero) | (Place::Hole, Place::Hole) => true,
            _ => false,
        };
        if agree {
            return (Run { len, trust: first.trust.max(second.trust), ..first }, true);
        }
        let better = self.weight(second.place) > self.weight(first.place);
        (Run { len, trust: Trust::Doubtful, ..if better { second } else { first } }, false)
    }

    /// One finding for all that the copies disagree on in `range`.
    fn audit_copies(&self, range: Range<u64>, sink: Sink<'_>) -> ControlFlow<()> {
        let mut differ = 0_u64;
        let mut first = None;
        let mut at = range.start;
        while at < range.end {
            let (run, agree) = self.choose(at, range.end.saturating_sub(at));
            if !agree {
                differ = differ.saturating_add(run.len);
                first = first.or(Some(at));
            }
            at = at.saturating_add(run.len.max(1));
        }
        let Some(first) = first else { return ControlFlow::Continue(()) };
        let text = format!("the two copies of the tables differ for {differ} bytes of the disk, first at {first:#x}");
        sink(Note::Finding(Finding::new("KDMV-COPIES", 48..64, Trust::Doubtful, text)))
    }
}

impl Layer for Redundant {
    fn len(&self) -> u64 {
        self.primary.len()
    }

    fn run(&self, at: u64, want: u64) -> Run<'_> {
        self.choose(at, want).0
    }

    fn parts(&self) -> u32 {
        self.primary.parts().max(self.second.parts())
    }

    fn audit(&self, part: u32, sink: Sink<'_>) -> ControlFlow<()> {
        // Each copy claims its own tables; what they map is claimed once, as it is read.
        for (copy, is_first) in [(&self.primary, true), (&self.second, false)] {
            if part >= copy.parts() {
                continue;
            }
            copy.audit(part, &mut |note| match note {
                Note::Claim { of: Use::Data(_), .. } => ControlFlow::Continue(()),
                Note::Claim { range, .. } if range.start == 0 && !is_first => ControlFlow::Continue(()),
                note => sink(note),
            })?;
        }
        let range = if self.primary.parts() >= self.second.parts() { &self.primary } else { &self.second }.span(part);
        self.audit_copies(range.clone(), &mut *sink)?;
        audit_runs(self, range, self.primary.parent(), Hosted::CODES, &mut |note| match note {
            // The copies have reported their own.
            Note::Finding(_) => ControlFlow::Continue(()),
            note => sink(note),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_have_their_size() {
        assert_eq!(Raw::SIZE, 79);
        assert!(Raw::parse(&[0; 79], 0).is_ok() && Raw::parse(&[0; 78], 0).is_err());
    }
}
