//! The hosted sparse extent, `KDMV`: VMware's "Virtual Disk Format 5.0", section "Hosted Sparse Extents".
//!
//! An extent has two full copies of its tables (`redundant.rs`), laid out alike by all writers (`layout.rs`). Compressed
//! (stream-optimized) extents have the same tables, of records of packed grains (`packed.rs`), which can also be found
//! without them (`stream.rs`). Where the header is gone, what is left of the rest makes another (`rebuild.rs`).
//!
//! With its descriptor inside (`monolithicSparse`, `streamOptimized`) an extent is a disk of its own; what the
//! descriptor calls the file is of no meaning, since files get renamed.

use super::layout::{Row, guessed};
use super::packed::{self, Packing, marker};
use super::redundant::Redundant;
use super::sparse::{Area, Dialect, Grain, Parent, Shape, Sparse, Table, power, shl};
use super::stream::{self, Stream};
use super::tally::Totals;
use super::{Descriptor, descriptor, opened, rebuild};
use crate::adapt::Blank;
use crate::audit::Codes;
use crate::entries::{Entries, Page};
use crate::error::Error;
use crate::format::{Format, Holds, Magic, Sweep, score};
use crate::layer::{Bytes, Layer, Loss, MAX_UNIT, Trust, Why};
use crate::link::{Content, Disk, Fact, Link, Opened, Value};
use crate::memo::Memo;
use crate::note::{Finding, Use};
use crate::num::narrow;
use crate::read::read_vec;
use crate::record::Record;
use binrw::BinRead;
use std::ops::Range;
use std::sync::{Arc, OnceLock};

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
    sweep: Some(Sweep { look: rebuild::look, build: rebuild::build, near: &[] }),
};

fn probe(layer: &dyn Layer) -> u8 {
    // The magic is four letters: a text may start with them.
    match Raw::load(layer, 0) {
        Ok(raw) if raw.magic == *MAGIC && (1..=3).contains(&raw.version) => score::PROVEN,
        Ok(raw) if raw.magic == *MAGIC => score::MAGIC,
        _ if rebuild::is_headless(layer) => score::MAGIC,
        _ => score::NONE,
    }
}

fn open(bytes: &Bytes, memo: &Memo) -> Result<Opened, Error> {
    let header = rebuild::load(&**bytes, None)?;
    open_with(header, bytes, memo)
}

/// The disk of an extent with a header that was read or made.
pub(super) fn open_with(mut header: Header, bytes: &Bytes, memo: &Memo) -> Result<Opened, Error> {
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
    let sealed = descriptor.seal().is_some();
    findings.extend(super::observations(&descriptor).into_iter().filter(|_| sealed));
    let parent = super::parent(&descriptor);
    let link = Link { id: super::content_id(&descriptor, "cid"), len: header.len, ..Link::default() };
    let facts = facts(&header, &descriptor);
    let wants = Vec::from_iter(parent);
    let (entries, memo) = (Entries::new(bytes.clone(), memo.share()), memo.clone());
    let join = move |others: &[Option<Bytes>]| {
        if sealed {
            let bytes: Bytes = Arc::new(Blank::lost(header.len, Why::Sealed, 0));
            return Ok(Content::Disks(vec![Disk { name: Vec::new(), bytes }]));
        }
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
pub(super) fn embedded(layer: &dyn Layer, (at, len): (u64, u64)) -> Result<Option<Descriptor>, Error> {
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
    gd_offset: u64,
    overhead: u64,
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
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of its own of the header or the file")]
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
    /// Where the first grain lies.
    overhead: u64,
    /// Whether the directory is nowhere: grains are found by their records.
    adrift: bool,
    /// Whether a stream ends with its last grain, because its tables lie before the first.
    ends_with_grains: bool,
    trust: Trust,
    areas: Vec<Area>,
    pub findings: Vec<Finding>,
}

impl Header {
    pub(super) fn load(layer: &dyn Layer) -> Result<Self, Error> {
        Self::check(&Raw::load(layer, 0)?, layer)
    }

    /// Checks a header, wherever it was, against the extent `layer`.
    pub(super) fn check(raw: &Raw, layer: &dyn Layer) -> Result<Self, Error> {
        if raw.magic != *MAGIC {
            return Err(Error::corrupt("hosted sparse extent header: magic", 0, format!("{:02x?}", raw.magic)));
        }
        // What no product will ever number so is damage.
        if !(1..16).contains(&raw.version) || raw.compress_algorithm >= 16 {
            let found = format!("version {}, compression {}", raw.version, raw.compress_algorithm);
            return Err(Error::corrupt("hosted sparse extent header", 4, found));
        }
        if raw.version > 3 {
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
            overhead: raw.overhead.saturating_mul(512),
            adrift: false,
            ends_with_grains: false,
            trust: Trust::Sound,
            areas: vec![(0, 512, Use::Metadata), (descriptor.0, descriptor.1, Use::Metadata)],
            findings: Vec::new(),
        };
        header.look(raw);
        // A carrier of a descriptor has no disk, so it needs no directory.
        if header.len > 0 {
            header.find_directory(layer, raw)?;
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
        let at_end = |offset: u64| matches!(offset, 0 | AT_END);
        let footer = if self.packed { footer(layer) } else { None };
        let Some((at, copy)) = footer else {
            if !at_end(raw.gd_offset) {
                self.ends_with_grains = raw.gd_offset < raw.overhead;
                return Ok(());
            }
            if self.packed {
                let text = "its directory is named in a footer that is not there: the stream was cut, or goes on";
                self.lose_directory(text);
                return Ok(());
            }
            let Some(second) = self.second.take() else {
                return Err(Error::corrupt(
                    "hosted sparse extent header: gd_offset",
                    56,
                    "0: it has no grain directory",
                ));
            };
            self.doubt("KDMV-DIRECTORY", 56..64, "no primary directory: the redundant one is used");
            self.directory = second;
            return Ok(());
        };
        self.areas.push((at.saturating_sub(512), 1536, Use::Metadata));
        let rest = layer.len().saturating_sub(at.saturating_add(1024));
        if rest >= 512 {
            let text = format!("{rest} bytes follow the end of the stream");
            self.findings.push(Finding::new("KDMV-TRAILING", at.saturating_add(1024)..layer.len(), Trust::Sound, text));
        }
        if at_end(raw.gd_offset) {
            if at_end(copy.gd_offset) {
                self.lose_directory("the footer names no directory");
                return Ok(());
            }
            self.directory = copy.gd_offset.saturating_mul(512);
        }
        let same = |raw: &Raw| (raw.capacity, raw.grain_size, raw.num_gtes_per_gt, raw.compress_algorithm);
        let differs = same(raw) != same(&copy) || (!at_end(raw.gd_offset) && raw.gd_offset != copy.gd_offset);
        if differs {
            let text = "the footer says something else than the header";
            self.doubt("KDMV-FOOTER", at..at.saturating_add(512), text);
        }
        Ok(())
    }

    /// Grains are to be found by their records.
    fn lose_directory(&mut self, text: &str) {
        self.adrift = true;
        self.findings.push(Finding::new("KDMV-FOOTER", 56..64, Trust::Inferred, text));
    }

    /// A header that was made because the real one is gone.
    pub(super) fn made(made: Made) -> Self {
        let Made { len, descriptor, directory, second, packed, overhead } = made;
        let markers = if packed { flag::COMPRESSED | flag::MARKERS } else { 0 };
        let redundant = if second.is_some() { flag::REDUNDANT } else { 0 };
        Self {
            len,
            version: 1,
            // Whether 1 means zeros is not known, but no grain lies there.
            flags: flag::ZERO_GRAIN | markers | redundant,
            unclean: false,
            grain_bits: 16,
            table_bits: 9,
            descriptor,
            directory: directory.unwrap_or(0),
            second,
            packed,
            overhead,
            adrift: directory.is_none(),
            ends_with_grains: packed && directory.is_some_and(|directory| directory < overhead),
            trust: Trust::Inferred,
            areas: vec![(descriptor.0, descriptor.1, Use::Metadata)],
            findings: Vec::new(),
        }
    }

    /// `findings` are what its audit reports first.
    pub(super) fn into_layer(self, entries: &Entries, memo: &Memo, parent: &Parent, findings: Vec<Finding>) -> Bytes {
        let markers = self.flags & flag::MARKERS != 0;
        let packing = || self.packed.then(|| Packing { markers, heads: memo.share(), units: memo.share() });
        let copy = |directory: u64, mut findings: Vec<Finding>| {
            let shape = Shape {
                len: self.len,
                grain_bits: self.grain_bits,
                table_bits: self.table_bits,
                directory,
                tables: self.len.div_ceil(shl(1, self.grain_bits.saturating_add(self.table_bits)).max(1)),
            };
            let mut dialect = Hosted {
                zero_grain: self.flags & flag::ZERO_GRAIN != 0,
                packed: self.packed,
                overhead: self.overhead,
                row: None,
            };
            dialect.row = Row::find(entries, &shape, &dialect);
            let moved = guessed(entries, &shape, &dialect);
            if moved > 0 {
                let text = format!("{moved} entries of a directory are damaged; its tables lie in a row behind it");
                let range = directory..directory.saturating_add(shape.tables.saturating_mul(4));
                findings.push(Finding::new("KDMV-DIRECTORY", range, Trust::Inferred, text));
            }
            Sparse {
                entries: entries.clone(),
                shape,
                dialect,
                parent: parent.clone(),
                trust: self.trust,
                findings,
                areas: self.areas.clone(),
                packing: packing(),
                looks: memo.share(),
                unnamed: OnceLock::new(),
            }
        };
        let extent = stream::Extent {
            parent: parent.clone(),
            grain: shl(1, self.grain_bits),
            disk: self.len,
            from: self.overhead,
            ends_with_grains: self.ends_with_grains,
        };
        let tables = |findings: Vec<Finding>| -> Bytes {
            let primary = copy(self.directory, findings);
            match self.second {
                None => Arc::new(primary),
                Some(second) => Arc::new(Redundant { primary, second: copy(second, Vec::new()) }),
            }
        };
        match packing() {
            Some(packing) if packing.markers && self.adrift => {
                Arc::new(Stream::new(entries.layer(), None, packing, extent, memo, findings))
            }
            Some(packing) if packing.markers => {
                let tables = Some(tables(findings));
                Arc::new(Stream::new(entries.layer(), tables, packing, extent, memo, Vec::new()))
            }
            _ => tables(findings),
        }
    }

    /// Believes the whole extent at most as much.
    pub(super) fn at_best(&mut self, trust: Trust) {
        self.trust = self.trust.max(trust);
    }
}

/// In place of a directory's sector: the footer names it.
const AT_END: u64 = u64::MAX;

/// What is known of an extent whose header is gone. All in bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Made {
    pub len: u64,
    /// Where its descriptor lies, and its length; 0 for none.
    pub descriptor: (u64, u64),
    pub directory: Option<u64>,
    pub second: Option<u64>,
    pub packed: bool,
    pub overhead: u64,
}

/// The copy of the header at the end of a stream and where it lies: a footer marker goes before it, an end marker
/// behind. What was appended to the file is gone back over.
pub(super) fn footer(layer: &dyn Layer) -> Option<(u64, Raw)> {
    /// What a transfer or a tool appends is shorter; behind more, a stream is read without its footer.
    const BACK: u64 = 1 << 20;
    let end = layer.len() & !511;
    let from = end.saturating_sub(BACK);
    let (tail, _) = read_vec(layer, from, narrow(end.saturating_sub(from)));
    let sectors = tail.chunks_exact(512).enumerate().rev();
    let mut found = sectors.filter(|(_, sector)| sector.starts_with(MAGIC)).filter_map(|(index, sector)| {
        let at = from.saturating_add(crate::num::wide(index).saturating_mul(512));
        let is_footer = packed::marker_at(layer, at.checked_sub(512)?) == Some(marker::FOOTER);
        is_footer.then(|| Raw::parse(sector, at).ok().map(|raw| (at, raw))).flatten()
    });
    found.next()
}

/// The encoding of hosted tables: sector numbers, 0 for none.
#[derive(Clone, Copy, Debug)]
pub(super) struct Hosted {
    /// Whether a table entry of 1 says zeros.
    zero_grain: bool,
    packed: bool,
    /// Where the first grain lies.
    overhead: u64,
    /// Where the tables lie, if as in all extents.
    pub row: Option<Row>,
}

impl Dialect for Hosted {
    const NAME: &'static str = "VMDK sparse extent";
    const DIRECTORY_ENTRY: u64 = 4;
    const TABLE_ENTRY: u64 = 4;
    const CODES: Codes = Codes { range: "KDMV-GRAIN-RANGE", entry: "KDMV-ENTRY" };
    const UNNAMED: &'static str = "KDMV-UNNAMED";

    fn table(&self, page: &Page, at: u64) -> Result<Table, Loss> {
        let said = page.le32(at).map(|sector| u64::from(sector).saturating_mul(512));
        match self.row.and_then(|row| row.table(at)) {
            Some(right) if said == Ok(right) => Ok(Table::At(right)),
            Some(right) => Ok(Table::Guessed(right)),
            None => said.map(|table| if table == 0 { Table::None } else { Table::At(table) }),
        }
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

    fn plausible(&self, host: u64, shape: &Shape) -> bool {
        let grain = shl(1, shape.grain_bits);
        let first = self.overhead.max(512);
        if self.packed {
            // How far packed grains reach no field tells.
            return host >= first;
        }
        // Observed: where grains start at a multiple of their size, all do.
        let aligned = !self.overhead.is_multiple_of(grain) || host.is_multiple_of(grain);
        // Writers that free grains leave them behind: twice the disk is room enough.
        let full = first.saturating_add(shape.len.saturating_mul(2)).saturating_add(16 << 20);
        aligned && (first..full).contains(&host)
    }

    fn unnamed(&self, totals: &Totals, file: u64, shape: &Shape) -> Option<String> {
        let all = file.saturating_sub(self.overhead.max(512)) >> shape.grain_bits;
        (all > totals.used)
            .then(|| format!("the file has room for {all} grains, and a copy of the tables names {}", totals.used))
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
