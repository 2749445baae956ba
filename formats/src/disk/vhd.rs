//! VHD, the disk of Virtual PC and of the first Hyper-V: Microsoft's "Virtual Hard Disk Image Format Specification",
//! version 1.0. All numbers are big-endian.
//!
//! | what | where | how sure |
//! |---|---|---|
//! | footer, 512 bytes, checked by a sum | the last 512 bytes; of oldest images the last 511 | specification; the short one: `QEMU` and `libvhdi` read it |
//! | its copy | at 0, dynamic and differencing disks only | specification |
//! | dynamic header, 1,024 bytes, checked by a sum | where the footer says, 512 in all images seen | specification |
//! | block allocation table, a sector number of 4 bytes a block, all ones for none | where the header says | specification |
//! | block: a bitmap of its sectors in whole sectors, then its data | anywhere | specification |
//! | bitmap: 1 is written here, the highest bit of a byte first | | specification, and a differencing disk of Windows |
//!
//! The size is what the footer calls the current one. Its geometry may be smaller, and QEMU goes by that where the
//! creator is not one that it knows to mean the size.
//!
//! Without a parent the bitmaps are not asked: a sector that was never written is zeros in its block as well, and a
//! damaged bitmap then costs nothing. With a parent they decide.

mod footer;

use crate::audit::Codes;
use crate::blocks::{Block, Blocks, Dialect, Parent, Shape};
use crate::entries::{Entries, Page};
use crate::error::Error;
use crate::format::{Format, Holds, score};
use crate::layer::{Bytes, Layer, Loss, Trust};
use crate::link::{Content, Disk, Fact, Link, Opened, Role, Value, Want};
use crate::memo::Memo;
use crate::num::round_up;
use crate::{adapt, guid};
use footer::{Dynamic, Footer, Kind};
use std::ops::Range;
use std::sync::Arc;

/// The row in the table of formats.
pub static FORMAT: Format = Format {
    name: "vhd",
    about: "Virtual PC and Hyper-V disk (VHD)",
    holds: Holds::Disk,
    spec: "Microsoft Virtual Hard Disk Image Format Specification 1.0",
    magics: &[],
    probe,
    open,
    sweep: None,
};

fn probe(layer: &dyn Layer) -> u8 {
    match footer::find(layer) {
        Ok(found) if found.trust < Trust::Doubtful => score::PROVEN,
        Ok(_) => score::MAGIC,
        Err(_) => score::NONE,
    }
}

fn open(bytes: &Bytes, memo: &Memo) -> Result<Opened, Error> {
    let footer = footer::find(&**bytes)?;
    let mut findings = footer.findings.clone();
    let mut facts = facts(&footer);
    let link = Link {
        id: Some(guid::plain(&footer.unique_id).into_bytes()),
        len: footer.size,
        born: Some(footer.born()),
        ..Link::default()
    };
    if footer.kind == Kind::Fixed {
        let layer = fixed(bytes, &footer);
        let content = Content::Disks(vec![Disk { name: Vec::new(), bytes: layer }]);
        return Ok(Opened { findings, facts, ..Opened::alone(link, content) });
    }
    let header = footer::dynamic(&**bytes, &footer)?;
    findings.extend(header.findings.iter().cloned());
    let trust = findings.iter().map(|finding| finding.trust).max().unwrap_or_default();
    let mut wants = Vec::new();
    if footer.kind == Kind::Differencing {
        let id = header.parent_id.map(|id| guid::plain(&id));
        let name = header.parent_name.clone();
        facts.push(Fact::new("parent_id", id.clone().unwrap_or_default()));
        facts.push(Fact::new("parent_name", name.clone().unwrap_or_default()));
        if header.parent_time != 0 {
            facts.push(Fact::new("parent_modified", Value::Time(footer::time(header.parent_time))));
        }
        let hint = name.map(String::into_bytes);
        wants.push(Want { role: Role::Parent, id: id.map(String::into_bytes), hint, len: None });
    }
    facts.push(Fact::new("block_size", Value::Bytes(header.block_size())));
    facts.push(Fact::new("block_table", format!("{} entries at {:#x}", header.entries, header.table)));
    let entries = Entries::new(bytes.clone(), memo.share());
    let named_at = (footer.kind == Kind::Differencing).then_some(header.at);
    let join = move |others: &[Option<Bytes>]| {
        let parent = Parent::of(named_at, others);
        let layer = Blocks::new(
            entries.clone(),
            Bat { table: header.table, bitmap: header.bitmap_len(), differencing: named_at.is_some() },
            Shape { len: footer.size, bits: header.block_bits, blocks: header.entries.into() },
            parent,
            trust,
            areas(&footer, &header),
        );
        Ok(Content::Disks(vec![Disk { name: Vec::new(), bytes: Arc::new(layer) }]))
    };
    Ok(Opened { link, wants, join: Box::new(join), findings, facts })
}

/// The disk is what lies before the footer.
fn fixed(bytes: &Bytes, footer: &Footer) -> Bytes {
    let data = adapt::Window::new(bytes.clone(), 0, footer.at);
    // What the footer promises beyond its own place was cut out of the middle of the file.
    let disk: Bytes = Arc::new(adapt::Window::new(Arc::new(data), 0, footer.size).named("VHD disk"));
    if footer.trust == Trust::Sound { disk } else { Arc::new(adapt::Trusted::new(disk, footer.trust)) }
}

/// Where no block can lie.
fn areas(footer: &Footer, header: &Dynamic) -> Vec<Range<u64>> {
    let table = u64::from(header.entries).saturating_mul(4);
    let mut areas = vec![
        0..512,
        header.at..header.at.saturating_add(1024),
        header.table..header.table.saturating_add(round_up(table, 512)),
    ];
    areas.extend((footer.at > 0).then(|| footer.at..footer.at.saturating_add(512)));
    areas
}

fn facts(footer: &Footer) -> Vec<Fact> {
    let (cylinders, heads, sectors) = footer.geometry;
    vec![
        Fact::new("type", footer.kind.word()),
        Fact::new("size", Value::Bytes(footer.size)),
        Fact::new("original_size", Value::Bytes(footer.original_size)),
        Fact::new("geometry", format!("{cylinders} cylinders, {heads} heads, {sectors} sectors a track")),
        Fact::new("creator", footer.creator.escape_ascii().to_string()),
        Fact::new("created", Value::Time(footer.born())),
        Fact::new("unique_id", guid::plain(&footer.unique_id)),
        Fact::new("saved_state", Value::Flag(footer.saved_state)),
    ]
}

/// The block allocation table.
#[derive(Clone, Copy, Debug)]
struct Bat {
    table: u64,
    /// Bytes of a bitmap, in whole sectors.
    bitmap: u64,
    differencing: bool,
}

impl Dialect for Bat {
    const NAME: &'static str = "VHD disk";
    const CODES: Codes = Codes { range: "VHD-BLOCK-RANGE", entry: "VHD-BLOCK-ENTRY" };
    const SHARED: &'static str = "VHD-BLOCK-SHARED";
    const HIGH_FIRST: bool = true;

    fn entry_at(&self, block: u64) -> u64 {
        self.table.saturating_add(block.saturating_mul(4))
    }

    fn block(&self, entries: &Entries, page: &Page, at: u64, _: u64) -> Result<Block, Loss> {
        let sector = match page.be32(at)? {
            u32::MAX => return Ok(Block::Parent),
            sector => u64::from(sector).saturating_mul(512),
        };
        let data = sector.saturating_add(self.bitmap);
        // A bitmap that the file does not have any more says nothing.
        let has_bitmap = self.differencing && sector < entries.layer().len();
        Ok(if has_bitmap { Block::Mixed { at: data, bitmap: sector } } else { Block::At(data) })
    }

    fn head(&self) -> u64 {
        self.bitmap
    }
}
