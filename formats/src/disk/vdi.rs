//! VDI, the disk of `VirtualBox`, version 1.1: `VDICore.h` of `VirtualBox`. All numbers are little-endian.
//!
//! | what | where | how sure |
//! |---|---|---|
//! | a line of text, the signature, the version | 0, 64, 68 | source, and images of `VirtualBox` and QEMU |
//! | header: kind, places of block map and data, sizes, four ids | 72 | the same |
//! | block map, a block number of 4 bytes a block; all ones for none, one less for zeros | where the header says | the same |
//! | blocks, each with `extra` bytes before it that nobody uses | behind the map | source |
//!
//! Nothing has a checksum or a copy. What reveals damage: blocks are handed out in order, so that no entry reaches the
//! number of those that the header counts; none is handed out twice; sizes and places have to agree.
//!
//! A child names its parent by the ids of its creation and of its last change, and by no file name.

use crate::audit::Codes;
use crate::blocks::{Block, Blocks, Dialect, Parent, Shape};
use crate::entries::{Entries, Page};
use crate::error::Error;
use crate::format::{Format, Holds, Magic, score};
use crate::guid;
use crate::layer::{Bytes, Layer, Loss, Trust};
use crate::link::{Content, Disk, Fact, Link, Opened, Role, Value, Want};
use crate::memo::Memo;
use crate::note::Finding;
use crate::record::Record;
use binrw::BinRead;
use std::sync::Arc;

const SIGNATURE: &[u8] = &0xBEDA_107F_u32.to_le_bytes();

/// The row in the table of formats.
pub static FORMAT: Format = Format {
    name: "vdi",
    about: "VirtualBox disk (VDI)",
    holds: Holds::Disk,
    spec: "VirtualBox VDICore.h",
    magics: &[Magic { at: 64, bytes: SIGNATURE }],
    probe,
    open,
    sweep: None,
};

fn probe(layer: &dyn Layer) -> u8 {
    match Raw::load(layer, 0) {
        Ok(raw) if raw.signature == *SIGNATURE && raw.check().is_ok() => score::PROVEN,
        Ok(raw) if raw.signature == *SIGNATURE => score::MAGIC,
        _ => score::NONE,
    }
}

#[derive(BinRead, Clone, Debug)]
#[br(little)]
struct Raw {
    #[br(pad_before = 64)]
    signature: [u8; 4],
    version: u32,
    header_len: u32,
    kind: u32,
    flags: u32,
    comment: [u8; 256],
    map: u32,
    data: u32,
    #[br(pad_before = 12)]
    sector: u32,
    #[br(pad_before = 4)]
    size: u64,
    block: u32,
    extra: u32,
    blocks: u32,
    allocated: u32,
    created: [u8; 16],
    modified: [u8; 16],
    parent: [u8; 16],
    parent_modified: [u8; 16],
}

impl Record for Raw {
    const SIZE: usize = 456;
    const NAME: &'static str = "VDI header";
}

/// Kinds of images.
mod kind {
    pub(super) const DYNAMIC: u32 = 1;
    pub(super) const STATIC: u32 = 2;
    pub(super) const UNDO: u32 = 3;
    pub(super) const DIFFERENCING: u32 = 4;
}

impl Raw {
    /// What has to hold before any block can be found.
    fn check(&self) -> Result<(), Error> {
        if self.version >> 16 != 1 {
            return Err(Error::unsupported(format!("VDI version {}.{}", self.version >> 16, self.version & 0xFFFF)));
        }
        if !(kind::DYNAMIC..=kind::DIFFERENCING).contains(&self.kind) {
            return Err(Error::unsupported(format!("VDI image type {}", self.kind)));
        }
        // 1 MiB in all images seen; `VirtualBox` allows other powers of two.
        if !self.block.is_power_of_two() || !(512..=1 << 30).contains(&self.block) {
            return Err(Error::corrupt("VDI block size", 376, format!("{} (a power of two, 512..=2^30)", self.block)));
        }
        if self.extra != 0 && !self.extra.is_power_of_two() {
            return Err(Error::corrupt("VDI extra bytes of a block", 380, format!("{} (a power of two)", self.extra)));
        }
        Ok(())
    }

    /// What does not agree with the rest.
    fn contradictions(&self, file: u64) -> Vec<Finding> {
        let mut findings = Vec::new();
        let mut note = |code, at: u64, len: u64, text: String| {
            findings.push(Finding::new(code, at..at.saturating_add(len), Trust::Doubtful, text));
        };
        let needed = self.size.div_ceil(self.block.into());
        if u64::from(self.blocks) != needed {
            note("VDI-BLOCKS", 384, 4, format!("the map has {} entries, {needed} are needed", self.blocks));
        }
        if self.allocated > self.blocks {
            note("VDI-ALLOCATED", 388, 4, format!("{} blocks of {} are allocated", self.allocated, self.blocks));
        }
        let map_end = u64::from(self.map).saturating_add(u64::from(self.blocks).saturating_mul(4));
        if self.map < 456 || map_end > self.data.into() || self.header_len < 384 {
            let text = format!("header of {} bytes, map at {:#x}, data at {:#x}", self.header_len, self.map, self.data);
            note("VDI-LAYOUT", 340, 8, text);
        }
        let each = u64::from(self.block).saturating_add(self.extra.into());
        let end = u64::from(self.data).saturating_add(u64::from(self.allocated).saturating_mul(each));
        if end > file {
            note("VDI-SHORT", 388, 4, format!("the file has {file} bytes, its {} blocks need {end}", self.allocated));
        } else if file >= end.saturating_add(each) {
            // Blocks are appended: of what lies behind the last, the header should know.
            note("VDI-ALLOCATED", 388, 4, format!("{} bytes lie behind the last block", file.saturating_sub(end)));
        }
        if self.sector != 512 {
            note("VDI-SECTOR", 360, 4, format!("sectors of {} bytes", self.sector));
        }
        findings
    }
}

fn open(bytes: &Bytes, memo: &Memo) -> Result<Opened, Error> {
    let raw = Raw::load(&**bytes, 0)?;
    if raw.signature != *SIGNATURE {
        return Err(Error::corrupt("VDI signature", 64, format!("{:02x?}", raw.signature)));
    }
    raw.check()?;
    let findings = raw.contradictions(bytes.len());
    let trust = findings.iter().map(|finding| finding.trust).max().unwrap_or_default();
    let is_child = matches!(raw.kind, kind::DIFFERENCING | kind::UNDO);
    let link = Link { id: Some(ids(&raw.created, &raw.modified)), len: raw.size, ..Link::default() };
    let want = Want { role: Role::Parent, id: Some(ids(&raw.parent, &raw.parent_modified)), hint: None, len: None };
    let wants = Vec::from_iter(is_child.then_some(want));
    let facts = facts(&raw, is_child);
    let entries = Entries::new(bytes.clone(), memo.share());
    let join = move |others: &[Option<Bytes>]| {
        let map_len = u64::from(raw.blocks).saturating_mul(4);
        let areas = vec![0..Raw::end(0), raw.map.into()..u64::from(raw.map).saturating_add(map_len)];
        let layer = Blocks::new(
            entries.clone(),
            Map {
                at: raw.map.into(),
                data: raw.data.into(),
                block: raw.block.into(),
                extra: raw.extra.into(),
                allocated: raw.allocated,
            },
            Shape { len: raw.size, bits: raw.block.trailing_zeros(), blocks: raw.blocks.into() },
            // 424: where the parent's id lies.
            Parent::of(is_child.then_some(424), others),
            trust,
            areas,
        );
        Ok(Content::Disks(vec![Disk { name: Vec::new(), bytes: Arc::new(layer) }]))
    };
    Ok(Opened { link, wants, join: Box::new(join), findings, facts })
}

/// The state of a disk: who it is, and when it was changed last.
fn ids(created: &[u8; 16], modified: &[u8; 16]) -> Vec<u8> {
    format!("{} {}", guid::mixed(created), guid::mixed(modified)).into_bytes()
}

fn facts(raw: &Raw, is_child: bool) -> Vec<Fact> {
    let kind = match raw.kind {
        kind::DYNAMIC => "dynamic",
        kind::STATIC => "static",
        kind::UNDO => "undo",
        _ => "differencing",
    };
    let comment: Vec<u8> = raw.comment.iter().copied().take_while(|byte| *byte != 0).collect();
    let mut facts = vec![
        Fact::new("version", format!("{}.{}", raw.version >> 16, raw.version & 0xFFFF)),
        Fact::new("type", kind),
        Fact::new("size", Value::Bytes(raw.size)),
        Fact::new("block_size", Value::Bytes(raw.block.into())),
        Fact::new("blocks", Value::Count(raw.blocks.into())),
        Fact::new("blocks_allocated", Value::Count(raw.allocated.into())),
        Fact::new("flags", Value::Hex(raw.flags.into())),
        Fact::new("uuid", guid::mixed(&raw.created)),
        Fact::new("uuid_modified", guid::mixed(&raw.modified)),
    ];
    if !comment.is_empty() {
        facts.push(Fact::new("comment", comment.escape_ascii().to_string()));
    }
    if is_child {
        facts.push(Fact::new("uuid_parent", guid::mixed(&raw.parent)));
        facts.push(Fact::new("uuid_parent_modified", guid::mixed(&raw.parent_modified)));
    }
    facts
}

/// The block map.
#[derive(Clone, Copy, Debug)]
struct Map {
    at: u64,
    data: u64,
    block: u64,
    extra: u64,
    allocated: u32,
}

impl Dialect for Map {
    const NAME: &'static str = "VDI disk";
    const CODES: Codes = Codes { range: "VDI-BLOCK-RANGE", entry: "VDI-BLOCK-ENTRY" };
    const SHARED: &'static str = "VDI-BLOCK-SHARED";
    const HIGH_FIRST: bool = false;

    fn entry_at(&self, block: u64) -> u64 {
        self.at.saturating_add(block.saturating_mul(4))
    }

    fn block(&self, entries: &Entries, page: &Page, at: u64, _: u64) -> Result<Block, Loss> {
        Ok(match page.le32(at)? {
            u32::MAX => Block::Parent,
            0xFFFF_FFFE => Block::Zero,
            number => {
                let each = self.block.saturating_add(self.extra);
                let host = self.data.saturating_add(u64::from(number).saturating_mul(each)).saturating_add(self.extra);
                match number >= self.allocated {
                    false => Block::At(host),
                    // Either the entry or the count is wrong; the file tells where it can't be the count.
                    true if host >= entries.layer().len() => Block::Broken,
                    true => Block::Doubtful(host),
                }
            }
        })
    }

    fn head(&self) -> u64 {
        self.extra
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_have_their_size() {
        assert_eq!(Raw::SIZE, 456);
        assert!(Raw::parse(&[0; 456], 0).is_ok() && Raw::parse(&[0; 455], 0).is_err());
    }
}
