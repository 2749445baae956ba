//! VHDX, the disk of Hyper-V: Microsoft's \[MS-VHDX\], version 8.0. All numbers are little-endian.
//!
//! | what | where | how sure |
//! |---|---|---|
//! | file identifier `vhdxfile` | 0 | specification |
//! | two headers with a CRC-32C, of which the valid one with the higher number holds | 64 KiB, 128 KiB | specification |
//! | two equal region tables with a CRC-32C | 192 KiB, 256 KiB | specification |
//! | metadata: sizes, whether there is a parent, what it is called | a region | specification |
//! | block table: 8 bytes a block, after each chunk of blocks one for the chunk's sector bitmap | a region | specification |
//! | sector bitmap: 1 is here, 0 is the parent's, the lowest bit of a byte first | 1 MiB a chunk | specification, and a pair of Windows |
//! | log of metadata that may not have reached its place | where the header says | specification, and two dirty images |
//!
//! A log that was not replayed is replayed in memory: the file stays as it is. A block that the table calls undefined
//! or unmapped reads as zeros, as a choice.

mod header;
mod log;
mod metadata;

use crate::adapt::{Blank, Concat, Memory, Patch, Trusted};
use crate::audit::Codes;
use crate::blocks::{Area, Block, Blocks, Dialect, Parent, Shape, shl};
use crate::entries::{Entries, Page};
use crate::error::Error;
use crate::format::{Format, Holds, Magic, score};
use crate::guid;
use crate::layer::{Bytes, Layer, Loss, Trust};
use crate::link::{Content, Disk, Fact, Link, Opened, Role, Value, Want};
use crate::memo::Memo;
use crate::note::Finding;
use header::Header;
use metadata::Metadata;
use std::sync::Arc;

const MAGIC: &[u8] = b"vhdxfile";

/// The row in the table of formats.
pub static FORMAT: Format = Format {
    name: "vhdx",
    about: "Hyper-V disk (VHDX)",
    holds: Holds::Disk,
    spec: "[MS-VHDX] 8.0",
    magics: &[Magic { at: 0, bytes: MAGIC }],
    probe,
    open,
    sweep: None,
};

fn probe(layer: &dyn Layer) -> u8 {
    let is_marked = FORMAT.magics.iter().any(|magic| magic.is_in(layer));
    if header::any_valid(layer) {
        score::PROVEN
    } else if is_marked {
        score::MAGIC
    } else {
        score::NONE
    }
}

fn open(bytes: &Bytes, memo: &Memo) -> Result<Opened, Error> {
    let mut findings = Vec::new();
    if !FORMAT.magics.iter().any(|magic| magic.is_in(&**bytes)) {
        let text = "the file identifier is not vhdxfile";
        findings.push(Finding::new("VHDX-IDENTIFIER", 0..8, Trust::Sound, text));
    }
    let header = Header::load(&**bytes, &mut findings);
    let regions = header::regions(&**bytes, &mut findings)?;
    let (file, replayed) = replay(bytes, &header, &mut findings);
    let metadata = Metadata::load(&*file, &regions.metadata, &mut findings)?;
    let trust = findings.iter().map(|finding| finding.trust).max().unwrap_or_default();
    let link =
        Link { id: header.data_write.map(|id| guid::mixed(&id).into_bytes()), len: metadata.size, ..Link::default() };
    let mut facts = metadata.facts();
    facts.extend(header.data_write.map(|id| Fact::new("data_write_id", guid::mixed(&id))));
    facts.push(Fact::new("log_entries_replayed", Value::Count(replayed)));
    let mut wants = Vec::new();
    if metadata.has_parent {
        let id = metadata.parent_id.clone().map(String::into_bytes);
        let hint = metadata.parent_name.clone().map(String::into_bytes);
        wants.push(Want { role: Role::Parent, id, hint, len: None });
    }
    let entries = Entries::new(file, memo.share());
    let bat = Bat {
        table: regions.bat.start,
        block_bits: metadata.block_bits,
        sector_bits: metadata.sector_bits,
        has_parent: metadata.has_parent,
    };
    let shape = Shape {
        len: metadata.size,
        bits: metadata.block_bits,
        blocks: bat.blocks(regions.bat.end.saturating_sub(regions.bat.start)),
    };
    if shape.blocks < metadata.size.div_ceil(shl(1, metadata.block_bits)) {
        let text = format!("the block table has room for {} blocks only", shape.blocks);
        findings.push(Finding::new("VHDX-TABLE-SHORT", regions.bat.clone(), Trust::Sound, text));
    }
    let areas = vec![0..1 << 20, regions.bat, regions.metadata, header.log.clone()];
    let named_at = metadata.has_parent.then_some(metadata.locator_at);
    let join = move |others: &[Option<Bytes>]| {
        let parent = Parent::of(named_at, others);
        let layer = Blocks::new(entries.clone(), bat, shape, parent, trust, areas.clone());
        Ok(Content::Disks(vec![Disk { name: Vec::new(), bytes: Arc::new(layer) }]))
    };
    Ok(Opened { link, wants, join: Box::new(join), findings, facts })
}

/// The file with its log replayed, and how many entries that were.
fn replay(bytes: &Bytes, header: &Header, findings: &mut Vec<Finding>) -> (Bytes, u64) {
    let same = (bytes.clone(), 0);
    let Some(id) = header.log_id else { return same };
    let mut broken = |text: String| findings.push(Finding::new("VHDX-LOG", header.log.clone(), Trust::Doubtful, text));
    let replay = match log::load(&**bytes, &header.log, &id) {
        Ok(replay) => replay,
        Err(text) => {
            broken(format!("{text}: what the log would change is not known"));
            return same;
        }
    };
    // Up to here the file was on the disk when the log was written; what lies behind may not have been.
    if bytes.len() < replay.flushed {
        broken(format!("the file has {} bytes, its log says {} at least", bytes.len(), replay.flushed));
    }
    let grown = replay.last.saturating_sub(bytes.len());
    let base = if grown > 0 && bytes.len() >= replay.flushed {
        let more: Bytes = Arc::new(Trusted::new(Arc::new(Blank::zero(grown)), Trust::Inferred));
        Concat::new([bytes.clone(), more]).map_or_else(|| bytes.clone(), |base| -> Bytes { Arc::new(base) })
    } else {
        bytes.clone()
    };
    let memory: Bytes = Arc::new(Memory::new(replay.bytes));
    let copies = log::copies(&replay.pieces, &memory, base.len());
    match Patch::new(base, copies, Trust::Sound) {
        Some(patch) => {
            let text =
                format!("{} log entries had not reached their place; they are read from the log", replay.entries);
            findings.push(Finding::new("VHDX-LOG-REPLAYED", header.log.clone(), Trust::Sound, text));
            (Arc::new(patch), replay.entries)
        }
        None => same,
    }
}

/// The block allocation table.
#[derive(Clone, Copy, Debug)]
struct Bat {
    table: u64,
    block_bits: u32,
    sector_bits: u32,
    has_parent: bool,
}

/// Section 2.5.1: bits of an entry.
mod entry {
    pub(super) const STATE: u64 = 7;
    /// A multiple of 1 MiB, in place.
    pub(super) const OFFSET: u64 = !((1 << 20) - 1);
    pub(super) const RESERVED: u64 = !(STATE | OFFSET);
}

impl Bat {
    /// log2 of the blocks of a chunk: a bitmap has 2^23 bits.
    fn chunk_bits(&self) -> u32 {
        self.sector_bits.saturating_add(23).saturating_sub(self.block_bits)
    }

    /// Blocks that a table of `len` bytes has entries for.
    fn blocks(&self, len: u64) -> u64 {
        let (entries, chunk) = (len >> 3, shl(1, self.chunk_bits()));
        let row = chunk.saturating_add(1);
        let whole = entries.checked_div(row).unwrap_or(0);
        let rest = entries.checked_rem(row).unwrap_or(0).min(chunk);
        whole.saturating_mul(chunk).saturating_add(rest)
    }

    fn at(&self, index: u64) -> u64 {
        self.table.saturating_add(index.saturating_mul(8))
    }

    /// Where the bitmap of a chunk lies, if it is there.
    fn bitmap(&self, entries: &Entries, chunk: u64) -> Result<Option<u64>, Loss> {
        let index = shl(chunk.saturating_add(1), self.chunk_bits()).saturating_add(chunk);
        let at = self.at(index);
        let entry = entries.page(at).le64(at)?;
        let is_there = entry & entry::STATE == 6 && entry & entry::RESERVED == 0;
        Ok(is_there.then_some(entry & entry::OFFSET))
    }
}

impl Dialect for Bat {
    const NAME: &'static str = "VHDX disk";
    const CODES: Codes = Codes { range: "VHDX-BLOCK-RANGE", entry: "VHDX-BLOCK-ENTRY" };
    const SHARED: &'static str = "VHDX-BLOCK-SHARED";
    const HIGH_FIRST: bool = false;

    fn bit(&self) -> u32 {
        self.sector_bits
    }

    fn entry_at(&self, block: u64) -> u64 {
        let chunk = block.checked_shr(self.chunk_bits()).unwrap_or(0);
        self.at(block.saturating_add(chunk))
    }

    fn block(&self, entries: &Entries, page: &Page, at: u64, block: u64) -> Result<Block, Loss> {
        let entry = page.le64(at)?;
        if entry & entry::RESERVED != 0 {
            return Ok(Block::Broken);
        }
        let host = entry & entry::OFFSET;
        Ok(match entry & entry::STATE {
            0 => Block::Parent,
            1 | 3 => Block::Undefined,
            2 => Block::Zero,
            6 => Block::At(host),
            7 if self.has_parent => {
                let chunk = block.checked_shr(self.chunk_bits()).unwrap_or(0);
                let into = block.saturating_sub(shl(chunk, self.chunk_bits()));
                let each = self.block_bits.saturating_sub(self.sector_bits).saturating_sub(3);
                match self.bitmap(entries, chunk)? {
                    Some(base) => Block::Mixed { at: host, bitmap: base.saturating_add(shl(into, each)) },
                    None => Block::Broken,
                }
            }
            _ => Block::Broken,
        })
    }

    fn beside(&self, entries: &Entries, block: u64) -> Option<Area> {
        let chunk = block.checked_shr(self.chunk_bits()).unwrap_or(0);
        let is_first = self.has_parent && shl(chunk, self.chunk_bits()) == block;
        let at = is_first.then(|| self.bitmap(entries, chunk).ok().flatten()).flatten()?;
        Some(at..at.saturating_add(1 << 20))
    }
}
