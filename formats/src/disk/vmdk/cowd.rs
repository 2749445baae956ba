//! COWD, the sparse extent of ESX: libyal's "VMware Virtual Disk (VMDK) format", section "COWD sparse extent".

use super::sparse::{Dialect, Grain, Parent, Shape, Sparse, Table, power};
use super::tally::Totals;
use crate::audit::Codes;
use crate::entries::{Entries, Page};
use crate::error::Error;
use crate::format::{Format, Holds, Magic, score};
use crate::layer::{Bytes, Layer, Loss, Trust};
use crate::link::{Content, Disk, Fact, Link, Opened, Role, Value, Want};
use crate::memo::Memo;
use crate::note::{Finding, Use};
use crate::num::round_up;
use crate::read::read_exact;
use crate::record::Record;
use binrw::BinRead;
use byteorder::{ByteOrder, LittleEndian};
use std::sync::{Arc, OnceLock};

pub(super) const MAGIC: &[u8] = b"COWD";
/// Entries of a grain table, always: 16 KiB.
const TABLE_BITS: u32 = 12;
const TABLE_LEN: u64 = 4 << TABLE_BITS;

/// The row in the table of formats.
pub static FORMAT: Format = Format {
    name: "cowd",
    about: "VMware COWD delta extent (vmfsSparse), without its descriptor",
    holds: Holds::Disk,
    spec: "libyal VMDK format notes, COWD sparse extent",
    magics: &[Magic { at: 0, bytes: MAGIC }],
    probe,
    open,
    sweep: None,
};

fn probe(layer: &dyn Layer) -> u8 {
    // The magic is four letters: a text may start with them.
    match Raw::load(layer, 0) {
        Ok(raw) if raw.magic == *MAGIC && raw.version == 1 => score::PROVEN,
        Ok(raw) if raw.magic == *MAGIC => score::MAGIC,
        _ => score::NONE,
    }
}

fn open(bytes: &Bytes, memo: &Memo) -> Result<Opened, Error> {
    let header = Header::load(&**bytes)?;
    let (entries, memo) = (Entries::new(bytes.clone(), memo.share()), memo.clone());
    let link = Link { len: header.shape.len, ..Link::default() };
    let findings = header.findings.clone();
    let facts = vec![
        Fact::new("size", Value::Bytes(header.shape.len)),
        Fact::new("grain_size", Value::Bytes(super::sparse::shl(1, header.shape.grain_bits))),
        Fact::new("grain_directory", format!("{} entries at {:#x}", header.shape.tables, header.shape.directory)),
    ];
    let join = move |others: &[Option<Bytes>]| {
        let parent = match others {
            [] => Parent::None,
            [Some(parent), ..] => Parent::Given(parent.clone(), 0),
            [None, ..] => Parent::Absent,
        };
        let layer = header.clone().into_layer(entries.clone(), &memo, parent, Vec::new());
        Ok(Content::Disks(vec![Disk { name: Vec::new(), bytes: Arc::new(layer) }]))
    };
    // ESXi only writes deltas, and names the parent in the descriptor: without it the parent is unknown.
    let parent = (!is_root(&**bytes)).then(|| parent_name(&**bytes));
    let wants = Vec::from_iter(parent.map(|hint| Want { role: Role::Parent, id: None, hint, len: None }));
    Ok(Opened { link, wants, join: Box::new(join), findings, facts })
}

/// Whether it is a disk without a parent, of older products: libyal, then cylinders, heads and sectors are at 32.
fn is_root(layer: &dyn Layer) -> bool {
    let mut geometry = [0; 12];
    if read_exact(layer, 32, &mut geometry).is_err() {
        return false;
    }
    let mut numbers = [0; 3];
    LittleEndian::read_u32_into(&geometry, &mut numbers);
    let [cylinders, heads, sectors] = numbers;
    cylinders != 0 && (1..=255).contains(&heads) && (1..=63).contains(&sectors)
}

/// The name that older products put into a delta's header: libyal, 1,024 bytes at 32.
fn parent_name(layer: &dyn Layer) -> Option<Vec<u8>> {
    let mut name = [0; 1024];
    read_exact(layer, 32, &mut name).ok()?;
    let name = name.split(|byte| *byte == 0).next()?;
    (!name.is_empty() && name.iter().all(|byte| *byte >= 0x20)).then(|| name.to_vec())
}

/// The part of the header that reading needs. Offsets and sizes are in sectors.
#[derive(BinRead, Debug)]
#[br(little)]
pub(super) struct Raw {
    magic: [u8; 4],
    version: u32,
    flags: u32,
    capacity: u32,
    grain_size: u32,
    gd_offset: u32,
    gd_entries: u32,
    /// The next sector that a table or grain will get.
    free_sector: u32,
}

impl Record for Raw {
    const SIZE: usize = 32;
    const NAME: &'static str = "COWD header";
}

/// The header of an extent whose descriptor says how long its disk is, or one made for it: the layout of what `ESXi`
/// writes is always the same, so that a directory behind where the header was needs no header.
pub(super) fn load(file: &Bytes, len: u64, memo: &Memo) -> Result<Header, Error> {
    let error = match Header::load(&**file) {
        Err(error @ (Error::Corrupt { .. } | Error::Lost { .. })) => error,
        header => return header,
    };
    let bits = TABLE_BITS.saturating_add(9);
    let tables = len.div_ceil(super::sparse::shl(1, bits));
    let shape = Shape { len, grain_bits: 9, table_bits: TABLE_BITS, directory: 2048, tables };
    let text = format!("{error}; the directory lies where all writers put it");
    let findings = vec![Finding::new("COWD-HEADER", 0..2048, Trust::Inferred, text)];
    let header = Header { shape, free: file.len(), trust: Trust::Inferred, findings };
    // Only a file whose tables look like tables has them there.
    let entries = Entries::new(Bytes::clone(file), memo.share());
    let extent = header.clone().into_layer(entries, memo, Parent::None, Vec::new());
    let mut looks = extent.named_tables().take(64).map(|table| extent.look(table)).peekable();
    let right = looks.peek().is_some() && looks.all(|look| look.odd == 0 && look.said > 0);
    if right { Ok(header) } else { Err(error) }
}

/// A checked header.
#[derive(Clone, Debug)]
pub(super) struct Header {
    shape: Shape,
    /// Where the next table or grain will lie, in bytes.
    free: u64,
    trust: Trust,
    pub findings: Vec<Finding>,
}

impl Header {
    pub(super) fn load(layer: &dyn Layer) -> Result<Self, Error> {
        let raw = Raw::load(layer, 0)?;
        if raw.magic != *MAGIC {
            return Err(Error::corrupt("COWD header: magic", 0, format!("{:02x?}", raw.magic)));
        }
        if raw.version != 1 {
            return Err(Error::unsupported(format!("COWD version {}", raw.version)));
        }
        let grain_bits = power("COWD header: grain_size", 16, raw.grain_size.into())?;
        let len = u64::from(raw.capacity).saturating_mul(512);
        let mut findings = Vec::new();
        let needed = len.div_ceil(super::sparse::shl(1, grain_bits.saturating_add(TABLE_BITS)));
        if u64::from(raw.gd_entries) < needed {
            let text = format!("the grain directory has {} entries, {needed} are needed", raw.gd_entries);
            findings.push(Finding::new("COWD-DIRECTORY-SHORT", 24..28, Trust::Sound, text));
        }
        if raw.flags != 3 {
            let text = format!("flags {:#x}: all known images have 0x3", raw.flags);
            findings.push(Finding::new("COWD-FLAGS", 8..12, Trust::Sound, text));
        }
        let shape = Shape {
            len,
            grain_bits,
            table_bits: TABLE_BITS,
            directory: u64::from(raw.gd_offset).saturating_mul(512),
            tables: raw.gd_entries.into(),
        };
        let free = u64::from(raw.free_sector).saturating_mul(512);
        Ok(Self { shape, free, trust: Trust::Sound, findings })
    }

    /// `findings` are what its audit reports first.
    pub(super) fn into_layer(
        self,
        entries: Entries,
        memo: &Memo,
        parent: Parent,
        findings: Vec<Finding>,
    ) -> Sparse<Cowd> {
        Sparse {
            entries,
            shape: self.shape,
            dialect: Cowd { free: self.free },
            parent,
            trust: self.trust,
            findings,
            areas: vec![(0, 2048, Use::Metadata)],
            packing: None,
            looks: memo.share(),
            unnamed: OnceLock::new(),
        }
    }
}

/// The encoding of COWD tables: sector numbers, 0 for none.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cowd {
    /// Where the next table or grain will lie, in bytes.
    free: u64,
}

impl Dialect for Cowd {
    const NAME: &'static str = "COWD";
    const DIRECTORY_ENTRY: u64 = 4;
    const TABLE_ENTRY: u64 = 4;
    const CODES: Codes = Codes { range: "COWD-GRAIN-RANGE", entry: "COWD-ENTRY" };
    const UNNAMED: &'static str = "COWD-UNNAMED";

    fn table(&self, page: &Page, at: u64) -> Result<Table, Loss> {
        page.le32(at).map(|sector| match sector {
            0 => Table::None,
            sector => Table::At(u64::from(sector).saturating_mul(512)),
        })
    }

    fn grain(&self, page: &Page, at: u64) -> Result<Grain, Loss> {
        page.le32(at).map(|sector| match sector {
            0 => Grain::Parent,
            sector => Grain::At(u64::from(sector).saturating_mul(512)),
        })
    }

    fn plausible(&self, host: u64, shape: &Shape) -> bool {
        let first = shape.directory.saturating_add(shape.tables.saturating_mul(4));
        let full = shape.len.saturating_add(shape.tables.saturating_mul(TABLE_LEN)).saturating_add(first);
        (first..full.saturating_mul(2)).contains(&host)
    }

    fn unnamed(&self, totals: &Totals, file: u64, shape: &Shape) -> Option<String> {
        if totals.silent > 0 {
            // A table is made when its first grain is written.
            return Some(format!("{} grain tables are there and say nothing", totals.silent));
        }
        let first = round_up(shape.directory.saturating_add(shape.tables.saturating_mul(4)), 512);
        let grains = totals.used.saturating_mul(super::sparse::shl(1, shape.grain_bits));
        let known = totals.tables.saturating_mul(TABLE_LEN).saturating_add(grains);
        // Files grow in larger steps than grains; the header knows how far they are used.
        let used = self.free.min(file).saturating_sub(first);
        (used > known)
            .then(|| format!("{} bytes of the file are in use, and no table names them", used.saturating_sub(known)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_have_their_size() {
        assert_eq!(Raw::SIZE, 32);
        assert!(Raw::parse(&[0; 32], 0).is_ok() && Raw::parse(&[0; 31], 0).is_err());
    }
}
