//! SESparse, the snapshot format of VMFS 6 and of disks above 2 TB.
//!
//! VMware publishes no specification. The layout is what QEMU and dissect.hypervisor agree on; where they do not,
//! in unmapped grains and in images whose journal waits for its replay, the result is never sound.

use super::sparse::{Area, Dialect, Grain, Parent, Shape, Sparse, Table};
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

/// The row in the table of formats.
pub static FORMAT: Format = Format {
    name: "sesparse",
    about: "VMware SESparse delta extent, without its descriptor",
    holds: Holds::Disk,
    spec: "none published: what QEMU block/vmdk.c and dissect.hypervisor agree on",
    magics: &[Magic { at: 0, bytes: &[0xbe, 0xba, 0xfe, 0xca, 0, 0, 0, 0] }],
    probe,
    open,
    sweep: None,
};

const CONSTANT_MAGIC: u64 = 0xcafe_babe;
const VOLATILE_MAGIC: u64 = 0xcafe_cafe;
const VERSION: u64 = 0x2_0000_0001;
/// log2 of a grain's bytes: 8 sectors.
const GRAIN_BITS: u32 = 12;
/// log2 of a grain table's entries: 64 sectors of 8 bytes each.
const TABLE_BITS: u32 = 12;

/// The constant header. Offsets and sizes are in sectors.
#[derive(BinRead, Debug)]
#[br(little)]
pub(super) struct ConstantHeader {
    magic: u64,
    version: u64,
    capacity: u64,
    grain_size: u64,
    grain_table_size: u64,
    flags: u64,
    reserved: [u64; 4],
    volatile_header_offset: u64,
    volatile_header_size: u64,
    journal_header_offset: u64,
    journal_header_size: u64,
    journal_offset: u64,
    journal_size: u64,
    grain_dir_offset: u64,
    grain_dir_size: u64,
    grain_tables_offset: u64,
    grain_tables_size: u64,
    free_bitmap_offset: u64,
    free_bitmap_size: u64,
    backmap_offset: u64,
    backmap_size: u64,
    #[br(pad_after = 8)]
    grains_offset: u64,
}

impl Record for ConstantHeader {
    const SIZE: usize = 208;
    const NAME: &'static str = "SESparse constant header";
}

impl ConstantHeader {
    /// What the extent holds beside its directory, tables and grains.
    fn areas(&self) -> Vec<Area> {
        [
            (0, 1, Use::Metadata),
            (self.volatile_header_offset, self.volatile_header_size, Use::Metadata),
            (self.journal_header_offset, self.journal_header_size, Use::Journal),
            (self.journal_offset, self.journal_size, Use::Journal),
            (self.free_bitmap_offset, self.free_bitmap_size, Use::Metadata),
            (self.backmap_offset, self.backmap_size, Use::Metadata),
        ]
        .into_iter()
        .map(|(at, len, of)| (at.saturating_mul(512), len.saturating_mul(512), of))
        .collect()
    }
}

/// The volatile header.
#[derive(BinRead, Debug)]
#[br(little)]
pub(super) struct VolatileHeader {
    magic: u64,
    /// The next transaction's number follows.
    #[br(pad_after = 8)]
    free_table: u64,
    replay_journal: u64,
}

impl Record for VolatileHeader {
    const SIZE: usize = 32;
    const NAME: &'static str = "SESparse volatile header";
}

/// Whether the file starts with the constant header's magic.
pub(super) fn is_sesparse(layer: &dyn Layer) -> bool {
    probe(layer) != score::NONE
}

fn probe(layer: &dyn Layer) -> u8 {
    let mut head = [0; 16];
    if layer.len() < 512 || read_exact(layer, 0, &mut head).is_err() || LittleEndian::read_u64(&head) != CONSTANT_MAGIC
    {
        return score::NONE;
    }
    if LittleEndian::read_u64(&head[8..]) == VERSION { score::PROVEN } else { score::MAGIC }
}

fn open(bytes: &Bytes, memo: &Memo) -> Result<Opened, Error> {
    let header = Header::load(&**bytes)?;
    let (entries, memo) = (Entries::new(bytes.clone(), memo.share()), memo.clone());
    let link = Link { len: header.len, ..Link::default() };
    let findings = header.findings.clone();
    let facts = vec![
        Fact::new("size", Value::Bytes(header.len)),
        Fact::new("grain_size", Value::Bytes(4096)),
        Fact::new("grain_directory", format!("{} entries at {:#x}", header.tables, header.directory)),
        Fact::new("grain_tables_offset", Value::Hex(header.grain_tables)),
        Fact::new("grains_offset", Value::Hex(header.grains)),
        Fact::new("replay_journal", header.replay.map_or_else(|| "unknown".into(), Value::Flag)),
    ];
    let join = move |others: &[Option<Bytes>]| {
        // The format only exists as a delta: without a descriptor its parent is unknown, not absent by design.
        let parent = match others {
            [Some(parent)] => Parent::Given(parent.clone(), 0),
            _ => Parent::Absent,
        };
        let layer = header.clone().into_layer(entries.clone(), &memo, parent, Vec::new());
        Ok(Content::Disks(vec![Disk { name: Vec::new(), bytes: Arc::new(layer) }]))
    };
    let wants = vec![Want { role: Role::Parent, id: None, hint: None, len: None }];
    Ok(Opened { link, wants, join: Box::new(join), findings, facts })
}

/// Both headers, checked. All in bytes.
#[derive(Clone, Debug)]
pub(super) struct Header {
    pub len: u64,
    directory: u64,
    tables: u64,
    grain_tables: u64,
    grain_tables_len: u64,
    grains: u64,
    areas: Vec<Area>,
    replay: Option<bool>,
    /// The number of the first grain table that is not in use.
    free_table: u64,
    trust: Trust,
    pub findings: Vec<Finding>,
}

impl Header {
    pub(super) fn load(layer: &dyn Layer) -> Result<Self, Error> {
        let raw = ConstantHeader::load(layer, 0)?;
        let field = |name: &'static str, at: u64, value: u64, right: u64| {
            let found = || Error::corrupt(name, at, format!("{value:#x} ({right:#x})"));
            if value == right { Ok(()) } else { Err(found()) }
        };
        field("SESparse constant header: magic", 0, raw.magic, CONSTANT_MAGIC)?;
        if raw.version != VERSION {
            return Err(Error::unsupported(format!("SESparse version {:#x}", raw.version)));
        }
        // Observed: no writer uses other sizes, no reader takes them.
        field("SESparse constant header: grain_size", 24, raw.grain_size, 8)?;
        field("SESparse constant header: grain_table_size", 32, raw.grain_table_size, 64)?;
        let bytes = |name: &'static str, at: u64, sectors: u64| {
            let found = || Error::corrupt(name, at, format!("{sectors:#x} sectors, more than 64 bits of bytes"));
            sectors.checked_mul(512).ok_or_else(found)
        };
        let mut header = Self {
            len: bytes("SESparse constant header: capacity", 16, raw.capacity)?,
            directory: bytes("SESparse constant header: grain_dir_offset", 128, raw.grain_dir_offset)?,
            tables: bytes("SESparse constant header: grain_dir_size", 136, raw.grain_dir_size)? >> 3,
            grain_tables: bytes("SESparse constant header: grain_tables_offset", 144, raw.grain_tables_offset)?,
            grain_tables_len: bytes("SESparse constant header: grain_tables_size", 152, raw.grain_tables_size)?,
            grains: bytes("SESparse constant header: grains_offset", 192, raw.grains_offset)?,
            areas: raw.areas(),
            replay: None,
            free_table: 0,
            trust: Trust::Sound,
            findings: Vec::new(),
        };
        if raw.flags != 0 || raw.reserved != [0; 4] {
            let text = format!("flags {:#x}, reserved {:x?}: all known images have zeros", raw.flags, raw.reserved);
            header.doubt("SESPARSE-FLAGS", 40..80, text);
        }
        let needed = header.len.div_ceil(super::sparse::shl(1, GRAIN_BITS.saturating_add(TABLE_BITS)));
        if header.tables < needed {
            let text = format!("the grain directory has {} entries, {needed} are needed", header.tables);
            header.findings.push(Finding::new("SESPARSE-DIRECTORY-SHORT", 128..144, Trust::Sound, text));
        }
        header.load_volatile(layer, raw.volatile_header_offset);
        Ok(header)
    }

    fn load_volatile(&mut self, layer: &dyn Layer, sectors: u64) {
        let at = sectors.saturating_mul(512);
        let range = at..VolatileHeader::end(at);
        match VolatileHeader::load(layer, at) {
            Ok(raw) if raw.magic == VOLATILE_MAGIC => {
                self.replay = Some(raw.replay_journal != 0);
                self.free_table = raw.free_table;
                if raw.replay_journal != 0 {
                    let text = "replay_journal is set: the journal holds changes that the tables do not";
                    self.doubt("SESPARSE-REPLAY", range, text);
                }
            }
            Ok(raw) => {
                let text =
                    format!("volatile header: magic {:#x}: whether the journal must be replayed is unknown", raw.magic);
                self.doubt("SESPARSE-VOLATILE", range, text);
            }
            Err(error) => {
                self.doubt(
                    "SESPARSE-VOLATILE",
                    range,
                    format!("{error}: whether the journal must be replayed is unknown"),
                );
            }
        }
    }

    fn doubt(&mut self, code: &'static str, range: std::ops::Range<u64>, text: impl Into<String>) {
        self.findings.push(Finding::new(code, range, Trust::Doubtful, text));
        self.trust = Trust::Doubtful;
    }

    /// `findings` are what its audit reports first.
    pub(super) fn into_layer(
        self,
        entries: Entries,
        memo: &Memo,
        parent: Parent,
        findings: Vec<Finding>,
    ) -> Sparse<SeSparse> {
        Sparse {
            entries,
            shape: Shape {
                len: self.len,
                grain_bits: GRAIN_BITS,
                table_bits: TABLE_BITS,
                directory: self.directory,
                tables: self.tables,
            },
            dialect: SeSparse {
                grain_tables: self.grain_tables,
                grain_tables_len: self.grain_tables_len,
                grains: self.grains,
                free_table: self.free_table,
            },
            parent,
            trust: self.trust,
            findings,
            areas: self.areas,
            packing: None,
            looks: memo.share(),
            unnamed: OnceLock::new(),
        }
    }
}

/// The encoding of SESparse tables.
#[derive(Clone, Copy, Debug)]
pub(super) struct SeSparse {
    grain_tables: u64,
    grain_tables_len: u64,
    grains: u64,
    free_table: u64,
}

impl SeSparse {
    fn table_of(self, entry: u64) -> Table {
        const TABLE_LEN: u64 = 8 << TABLE_BITS;
        if entry == 0 {
            return Table::None;
        }
        if entry >> 32 != 0x1000_0000 {
            return Table::Broken;
        }
        let into = (entry & 0xffff_ffff).saturating_mul(TABLE_LEN);
        let table = self.grain_tables.saturating_add(into);
        // Not every writer is known to keep the size of the area up to date: the table is read, but not believed.
        let inside = into.saturating_add(TABLE_LEN) <= self.grain_tables_len;
        if inside { Table::At(table) } else { Table::Doubtful(table) }
    }

    fn grain_of(self, entry: u64) -> Grain {
        match entry >> 60 {
            0 if entry == 0 => Grain::Parent,
            1 => Grain::Unmapped,
            2 => Grain::Zero,
            3 => {
                // Bits 48 to 59 are the low twelve bits of the grain's number, bits 0 to 47 those above them.
                let index = ((entry >> 48) & 0xfff) | ((entry & 0xffff_ffff_ffff) << 12);
                let at = index.checked_mul(4096).and_then(|into| into.checked_add(self.grains));
                at.map_or(Grain::Broken, Grain::At)
            }
            _ => Grain::Broken,
        }
    }
}

impl Dialect for SeSparse {
    const NAME: &'static str = "SESparse";
    const DIRECTORY_ENTRY: u64 = 8;
    const TABLE_ENTRY: u64 = 8;
    const CODES: Codes = Codes { range: "SESPARSE-GRAIN-RANGE", entry: "SESPARSE-ENTRY" };
    const UNNAMED: &'static str = "SESPARSE-UNNAMED";

    fn table(&self, page: &Page, at: u64) -> Result<Table, Loss> {
        page.le64(at).map(|entry| self.table_of(entry))
    }

    fn grain(&self, page: &Page, at: u64) -> Result<Grain, Loss> {
        page.le64(at).map(|entry| self.grain_of(entry))
    }

    fn plausible(&self, host: u64, shape: &Shape) -> bool {
        // The low part of a number is in the high bits of its entry: grains come in blocks of 4,096.
        let full = round_up(shape.len, super::sparse::shl(1, GRAIN_BITS.saturating_add(TABLE_BITS)));
        host.checked_sub(self.grains).is_some_and(|into| into < full.saturating_mul(2))
    }

    fn unnamed(&self, totals: &Totals, _: u64, _: &Shape) -> Option<String> {
        if totals.silent > 0 {
            // A table is made when its first grain is written.
            return Some(format!("{} grain tables are there and say nothing", totals.silent));
        }
        if totals.tables < self.free_table {
            let (used, named) = (self.free_table, totals.tables);
            return Some(format!("{used} grain tables are in use, and the directory names {named}"));
        }
        if totals.zeros > 0 {
            // Nothing in the file counts them. Where there are none at all, there is no sign that there ever were.
            let zeros = totals.zeros;
            return Some(format!("it has {zeros} zero grains, which are an entry and nothing else: more may be lost"));
        }
        let reach = totals.highest.saturating_sub(self.grains) >> GRAIN_BITS;
        let all = if totals.used == 0 { 0 } else { reach.saturating_add(1) };
        (all > totals.used).then(|| {
            let more = all.saturating_sub(totals.used);
            format!("{more} of the {all} grains up to the last that is named are named by no table")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_have_their_size() {
        assert_eq!(ConstantHeader::SIZE, 208);
        assert_eq!(VolatileHeader::SIZE, 32);
        assert!(ConstantHeader::parse(&[0; 208], 0).is_ok() && ConstantHeader::parse(&[0; 207], 0).is_err());
        assert!(VolatileHeader::parse(&[0; 32], 0).is_ok() && VolatileHeader::parse(&[0; 31], 0).is_err());
    }

    #[test]
    fn entries() {
        let dialect = SeSparse { grain_tables: 0x1000, grain_tables_len: 0x2_0000, grains: 0x10_0000, free_table: 0 };
        assert_eq!(dialect.table_of(0), Table::None);
        assert_eq!(dialect.table_of(0x1000_0000_0000_0003), Table::At(0x1000 + 3 * 0x8000));
        assert_eq!(dialect.table_of(0x1000_0000_0000_0004), Table::Doubtful(0x1000 + 4 * 0x8000));
        assert_eq!(dialect.table_of(0x1000_0001_0000_0000), Table::Broken);
        assert_eq!(dialect.table_of(1), Table::Broken);
        assert_eq!(dialect.grain_of(0), Grain::Parent);
        assert_eq!(dialect.grain_of(1), Grain::Broken);
        assert_eq!(dialect.grain_of(1 << 60), Grain::Unmapped);
        assert_eq!(dialect.grain_of(2 << 60), Grain::Zero);
        assert_eq!(dialect.grain_of(0x3005_0000_0000_0000), Grain::At(0x10_0000 + 5 * 4096));
        assert_eq!(dialect.grain_of(0x3005_0000_0000_0002), Grain::At(0x10_0000 + (5 + (2 << 12)) * 4096));
        assert_eq!(dialect.grain_of(0x3fff_ffff_ffff_ffff), Grain::Broken);
        assert_eq!(dialect.grain_of(4 << 60), Grain::Broken);
    }
}
