//! The hosted sparse extent, `KDMV`: VMware's "Virtual Disk Format 5.0", section "Hosted Sparse Extents".
//!
//! An extent has two full copies of its tables. Both are asked for every run: where they agree it is sound, where they
//! do not, the copy that has something wins, doubtfully. Lost tables are zeros or garbage more often than data.
//! Compressed (stream-optimized) extents have the same tables, of records of packed grains (`packed.rs`).
//!
//! With its descriptor inside (`monolithicSparse`, `streamOptimized`) an extent is a disk of its own; what the
//! descriptor calls the file is of no meaning, since files get renamed.

use super::packed::{self, Packing, marker};
use super::sparse::{Area, Dialect, Grain, Parent, Shape, Sparse, Table, power, shl};
use super::{Descriptor, descriptor, opened};
use crate::audit::{Codes, audit_runs};
use crate::cursor::same_layer;
use crate::entries::{Entries, Page};
use crate::error::Error;
use crate::format::{Format, Holds, Magic, score};
use crate::layer::{Bytes, Fault, Layer, Loss, MAX_UNIT, Place, Run, Trust, Unit, Why};
use crate::link::{Content, Disk, Fact, Link, Opened, Value};
use crate::memo::Memo;
use crate::note::{Finding, Note, Sink, Use};
use crate::num::narrow;
use crate::read::read_vec;
use crate::record::Record;
use binrw::BinRead;
use std::ops::{ControlFlow, Range};
use std::sync::Arc;

pub(super) const MAGIC: &[u8] = b"KDMV";

/// The row in the table of formats.
pub static FORMAT: Format = Format {
    name: "kdmv",
    about: "VMware sparse disk (monolithicSparse, streamOptimized), or an extent of one",
    holds: Holds::Disk,
    spec: "VMware Virtual Disk Format 5.0, Hosted Sparse Extents; libyal VMDK format notes",
    magics: &[Magic { at: 0, bytes: MAGIC }],
    probe,
    open,
    sweep: None,
};

fn probe(layer: &dyn Layer) -> u8 {
    // The magic is four letters: a text may start with them.
    match Raw::load(layer, 0) {
        Ok(raw) if raw.magic == *MAGIC && (1..=3).contains(&raw.version) => score::PROVEN,
        Ok(raw) if raw.magic == *MAGIC => score::MAGIC,
        _ => score::NONE,
    }
}

fn open(bytes: &Bytes, memo: &Memo) -> Result<Opened, Error> {
    let mut header = Header::load(&**bytes)?;
    let mut findings = std::mem::take(&mut header.findings);
    let descriptor = match embedded(&**bytes, header.descriptor) {
        Ok(Some(descriptor)) => descriptor,
        Ok(None) => {
            // It may be one of many, and any of them may have a parent: what is not here need not be zero.
            let text = "there is no descriptor in it: it may be a part of a disk, and may have a parent";
            findings.push(Finding::new("KDMV-NO-DESCRIPTOR", 28..44, Trust::Sound, text));
            header.at_best(Trust::Inferred);
            Descriptor::default()
        }
        Err(error) => {
            let text = format!("its descriptor is damaged, so that its parent is unknown: {error}");
            findings.push(Finding::new("KDMV-DESCRIPTOR", 28..44, Trust::Doubtful, text));
            header.at_best(Trust::Doubtful);
            Descriptor::default()
        }
    };
    if header.len == 0 && !descriptor.extents.is_empty() {
        // The disk is in the extents that the descriptor names; this file only carries it.
        return opened(descriptor, findings, memo);
    }
    findings.extend(descriptor.findings.iter().cloned());
    let stated = descriptor.sectors().unwrap_or(0).saturating_mul(512);
    if !descriptor.extents.is_empty() && stated != header.len {
        let text = format!("the header says {} bytes, the descriptor {stated}", header.len);
        findings.push(Finding::new("KDMV-SIZE", 12..20, Trust::Sound, text));
    }
    let parent = super::parent(&descriptor);
    let link = Link { id: super::content_id(&descriptor, "cid"), len: header.len, ..Link::default() };
    let facts = facts(&header, &descriptor);
    let wants = Vec::from_iter(parent);
    let (entries, memo) = (Entries::new(bytes.clone(), memo.share()), memo.clone());
    let join = move |others: &[Option<Bytes>]| {
        let parent = match others {
            [] => Parent::None,
            [Some(parent), ..] => Parent::Given(parent.clone(), 0),
            [None, ..] => Parent::Absent,
        };
        let bytes = header.clone().into_layer(&entries, &memo, &parent, Vec::new());
        Ok(Content::Disks(vec![Disk { name: Vec::new(), bytes }]))
    };
    Ok(Opened { link, wants, join: Box::new(join), findings, facts })
}

/// The descriptor in the extent, if it has one.
fn embedded(layer: &dyn Layer, (at, len): (u64, u64)) -> Result<Option<Descriptor>, Error> {
    if at == 0 || len == 0 {
        return Ok(None);
    }
    let (text, seen) = read_vec(layer, at, narrow(len.min(descriptor::MAX_LEN)));
    if let Some(gap) = seen.gaps.into_iter().next() {
        return Err(Error::Lost { what: "VMDK descriptor", gap });
    }
    if text.iter().all(|byte| *byte == 0) {
        // Observed: the extents of a split disk keep the room for one.
        return Ok(None);
    }
    if !descriptor::is_signed(&text) {
        return Err(Error::corrupt("VMDK descriptor", at, "no signature `# Disk DescriptorFile`"));
    }
    Descriptor::parse(&text).map(Some)
}

fn facts(header: &Header, descriptor: &Descriptor) -> Vec<Fact> {
    let mut facts = super::facts(descriptor, header.len);
    facts.extend([
        Fact::new("sparse_version", Value::Count(header.version.into())),
        Fact::new("flags", Value::Hex(header.flags.into())),
        Fact::new("grain_size", Value::Bytes(shl(1, header.grain_bits))),
        Fact::new("compressed", Value::Flag(header.packed)),
        Fact::new("unclean_shutdown", Value::Flag(header.unclean)),
    ]);
    facts
}

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

/// A checked header, with the place of the directory wherever it was told. All in bytes.
#[derive(Clone, Debug)]
pub(super) struct Header {
    pub len: u64,
    pub version: u32,
    pub flags: u32,
    pub unclean: bool,
    pub grain_bits: u32,
    table_bits: u32,
    /// Where an embedded descriptor lies, and its length; 0 for none.
    pub descriptor: (u64, u64),
    directory: u64,
    /// The second copy's directory.
    second: Option<u64>,
    pub packed: bool,
    trust: Trust,
    areas: Vec<Area>,
    pub findings: Vec<Finding>,
}

impl Header {
    pub(super) fn load(layer: &dyn Layer) -> Result<Self, Error> {
        let raw = Raw::load(layer, 0)?;
        if raw.magic != *MAGIC {
            return Err(Error::corrupt("hosted sparse extent header: magic", 0, format!("{:02x?}", raw.magic)));
        }
        if !(1..=3).contains(&raw.version) {
            return Err(Error::unsupported(format!("hosted sparse extent version {}", raw.version)));
        }
        if raw.compress_algorithm > 1 {
            return Err(Error::unsupported(format!("hosted sparse extent compression {}", raw.compress_algorithm)));
        }
        let packed = raw.compress_algorithm == 1;
        if !packed && raw.flags & flag::MARKERS != 0 {
            return Err(Error::unsupported("a hosted sparse extent with markers and without compression"));
        }
        let grain_bits = power("hosted sparse extent header: grain_size", 20, raw.grain_size)?;
        if packed && shl(1, grain_bits) > u64::from(MAX_UNIT) >> 2 {
            return Err(Error::unsupported(format!("compressed grains of {} sectors", raw.grain_size)));
        }
        let per_table = raw.num_gtes_per_gt;
        if !per_table.is_power_of_two() || per_table > 1 << 16 {
            let found = format!("{per_table} (a power of two up to 65536)");
            return Err(Error::corrupt("hosted sparse extent header: num_gtes_per_gt", 44, found));
        }
        let too_large = || Error::corrupt("hosted sparse extent header: capacity", 12, format!("{:#x}", raw.capacity));
        let len = raw.capacity.checked_mul(512).ok_or_else(too_large)?;
        let descriptor = (raw.descriptor_offset.saturating_mul(512), raw.descriptor_size.saturating_mul(512));
        let has_second = raw.flags & flag::REDUNDANT != 0 && raw.rgd_offset != 0 && raw.rgd_offset != raw.gd_offset;
        let mut header = Self {
            len,
            version: raw.version,
            flags: raw.flags,
            unclean: raw.unclean_shutdown != 0,
            grain_bits,
            table_bits: per_table.trailing_zeros(),
            descriptor,
            directory: raw.gd_offset.saturating_mul(512),
            second: has_second.then(|| raw.rgd_offset.saturating_mul(512)),
            packed,
            trust: Trust::Sound,
            areas: vec![(0, 512, Use::Metadata), (descriptor.0, descriptor.1, Use::Metadata)],
            findings: Vec::new(),
        };
        header.look(&raw);
        // A carrier of a descriptor has no disk, so it needs no directory.
        if header.len > 0 {
            header.find_directory(layer, &raw)?;
        }
        Ok(header)
    }

    fn doubt(&mut self, code: &'static str, range: Range<u64>, text: impl Into<String>) {
        self.trust = Trust::Doubtful;
        self.findings.push(Finding::new(code, range, Trust::Doubtful, text));
    }

    /// What the fields say of the extent's state.
    fn look(&mut self, raw: &Raw) {
        if raw.flags & flag::NEWLINE_TEST != 0 && raw.newlines != *b"\n \r\n" {
            let text = format!("the newline test has {:02x?}: the file was transferred as text", raw.newlines);
            self.doubt("KDMV-NEWLINES", 73..77, text);
        }
        if self.packed != (raw.flags & flag::COMPRESSED != 0) {
            let text = format!("flags {:#x}, but the compression is {}", raw.flags, raw.compress_algorithm);
            self.doubt("KDMV-COMPRESSION", 77..79, text);
        }
        if self.unclean {
            let text = "the extent was not closed";
            self.findings.push(Finding::new("KDMV-UNCLEAN", 72..73, Trust::Sound, text));
        }
    }

    /// A stream's directory may be known only when its writer has reached the end: then a footer names it.
    fn find_directory(&mut self, layer: &dyn Layer, raw: &Raw) -> Result<(), Error> {
        const AT_END: u64 = u64::MAX;
        if raw.gd_offset == 0 {
            return Err(Error::corrupt("hosted sparse extent header: gd_offset", 56, "0: it has no grain directory"));
        }
        let footer = if self.packed { footer(layer) } else { None };
        let Some((at, copy)) = footer else {
            if raw.gd_offset != AT_END {
                return Ok(());
            }
            let found = "it is in the footer, and the file does not end in one: the stream was cut, or goes on";
            return Err(Error::corrupt("hosted sparse extent header: gd_offset", 56, found));
        };
        self.areas.push((at.saturating_sub(512), 1536, Use::Metadata));
        if raw.gd_offset == AT_END {
            if matches!(copy.gd_offset, 0 | AT_END) {
                let found = format!("{:#x}: it has no grain directory", copy.gd_offset);
                return Err(Error::corrupt("hosted sparse extent footer: gd_offset", at.saturating_add(56), found));
            }
            self.directory = copy.gd_offset.saturating_mul(512);
        }
        let same = |raw: &Raw| (raw.capacity, raw.grain_size, raw.num_gtes_per_gt, raw.compress_algorithm);
        let differs = same(raw) != same(&copy) || (raw.gd_offset != AT_END && raw.gd_offset != copy.gd_offset);
        if differs {
            let text = "the footer says something else than the header";
            self.doubt("KDMV-FOOTER", at..at.saturating_add(512), text);
        }
        Ok(())
    }

    /// `findings` are what its audit reports first.
    pub(super) fn into_layer(self, entries: &Entries, memo: &Memo, parent: &Parent, findings: Vec<Finding>) -> Bytes {
        let copy = |directory: u64, findings: Vec<Finding>| Sparse {
            entries: entries.clone(),
            shape: Shape {
                len: self.len,
                grain_bits: self.grain_bits,
                table_bits: self.table_bits,
                directory,
                tables: self.len.div_ceil(shl(1, self.grain_bits.saturating_add(self.table_bits))),
            },
            dialect: Hosted { zero_grain: self.flags & flag::ZERO_GRAIN != 0 },
            parent: parent.clone(),
            trust: self.trust,
            findings,
            areas: self.areas.clone(),
            packing: self.packed.then(|| Packing {
                markers: self.flags & flag::MARKERS != 0,
                heads: memo.share(),
                units: memo.share(),
            }),
        };
        let primary = copy(self.directory, findings);
        match self.second {
            None => Arc::new(primary),
            Some(second) => Arc::new(Redundant { primary, second: copy(second, Vec::new()) }),
        }
    }

    /// Believes the whole extent at most as much.
    pub(super) fn at_best(&mut self, trust: Trust) {
        self.trust = self.trust.max(trust);
    }
}

/// The copy of the header at the end of a stream and where it lies: a footer marker goes before it, an end marker
/// behind.
fn footer(layer: &dyn Layer) -> Option<(u64, Raw)> {
    let end = layer.len() & !511;
    let at = end.checked_sub(1024)?;
    if packed::marker_at(layer, at.checked_sub(512)?) != Some(marker::FOOTER) {
        return None;
    }
    Raw::load(layer, at).ok().filter(|raw| raw.magic == *MAGIC).map(|raw| (at, raw))
}

/// The encoding of hosted tables: sector numbers, 0 for none.
#[derive(Clone, Copy, Debug)]
pub(super) struct Hosted {
    /// Whether a table entry of 1 says zeros.
    zero_grain: bool,
}

impl Dialect for Hosted {
    const NAME: &'static str = "VMDK sparse extent";
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
            Place::Coded(_) => 3,
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
            (Place::Coded(a), Place::Coded(b)) => a.packed_at == b.packed_at,
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

    fn about(&self) -> String {
        self.primary.about()
    }

    fn run(&self, at: u64, want: u64) -> Run<'_> {
        self.choose(at, want).0
    }

    fn decode(&self, unit: &Unit<'_>, packed: &[u8], out: &mut [u8]) -> Result<Trust, Fault> {
        self.primary.decode(unit, packed, out)
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
                // Both lead to the same records.
                Note::Finding(finding) if finding.code == packed::HEAD && !is_first => ControlFlow::Continue(()),
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
