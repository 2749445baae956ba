//! Folders.
//!
//! VMFS5: a flat array of 140-byte entries: u32 type, u32 descriptor, u32 generation, 128 bytes of name. An entry
//! without descriptor is free; `.` and `..` are entries.
//!
//! VMFS6: a header of 64 KiB, then blocks of one alignment unit. A block starts with 64 bytes: u16 version, u16 type,
//! u16 slots, u16 free, and from 8 on a bitmap in which 1 is free.
//!
//! | offset in the header | type | meaning | how sure |
//! | --- | --- | --- | --- |
//! | 0x000 | u32 | version, 0xF50001 or 0xFDC001 | real images, sources |
//! | 0x004 | u32 | entries, `.` and `..` included | real images |
//! | 0x00C, 0x010 | u32, u32\[128\] | blocks of the allocation map | real images |
//! | 0x3B8, 0x4D8 | 288 | entries of itself and of its parent | real images |
//! | 0x5F8 | u32\[16001\] | hash table of locations | real images |
//!
//! | entry of 288 bytes | type | meaning | how sure |
//! | --- | --- | --- | --- |
//! | 0x00, 0x04, 0x08 | u32 | type, descriptor, generation | real images |
//! | 0x0C | u32 | low half of the name's hash | real images |
//! | 0x10 | u64 | own offset in the folder | real images |
//! | 0x18 | 256 | name | real images |
//!
//! The map has a nibble a block, the high one first: bits 0–1 its type (1 entries, 2 links, 3 map), bit 2 free slots
//! left, bit 3 never written. A location is type, block (bits 2–23) and slot (24–31). A group of links has 84 bytes:
//! u16 slot of the table, u8 links, u8 free ones, 12 links of location and 16 bits of the hash, and the location of
//! the next group at 0x4E.
//!
//! Seen on real images: 0x008 of the header repeats the count of entries, and a block of links has 48 groups.
//!
//! Listing walks the map; finding a name goes through the hash table. The two are checked against each other and
//! against the entries, which know their own place and hash, so that either can be lost.

use super::address::FdAddress;
use super::descriptor::{Descriptor, Type};
use super::file::File;
use super::hash;
use super::header::Header;
use super::volume::{Space, Volume};
use crate::error::Error;
use crate::layer::{Layer, Place, Trust};
use crate::memo::Block;
use crate::note::Finding;
use crate::num::{narrow, wide};
use crate::read::{Seen, read_block, read_vec};
use byteorder::{ByteOrder, LittleEndian};
use std::ops::ControlFlow;
use std::sync::Arc;

/// Bytes of an entry on VMFS5.
const ENTRY5: u64 = 140;
/// Entries of VMFS5 that are read at once: about 16 KiB.
const CHUNK5: u64 = 117;
/// Bytes of an entry on VMFS6.
const ENTRY6: u64 = 288;
/// Where blocks start on VMFS6.
const BLOCKS_AT: u64 = 0x1_0000;
/// Bytes of the header of a block.
const BLOCK_HEADER: u64 = 64;
/// Bytes of the bitmap in it.
const BITMAP: usize = 56;
const VERSION: u32 = 0xF5_0001;
const VERSION_DEBUG: u32 = 0xFD_C001;
const TABLE_AT: u64 = 0x5F8;
const MAX_MAPS: u64 = 128;
/// A location has 22 bits for the block.
const MAX_BLOCKS: u64 = 1 << 22;
/// Bytes of a group of links.
const GROUP: u64 = 0x54;
const LINKS: u64 = 12;
/// Groups that a lookup follows: room for 49,000 names in one slot.
const MAX_GROUPS: usize = 4096;
/// Marks a position in blocks that the map does not have.
const HIDDEN: u64 = 1 << 40;
/// What the cache has of a folder beside its header, above the address of its descriptor.
const ASTRAY: u64 = 1 << 32;
const MENDED: u64 = 2 << 32;

const ENTRIES: u16 = 1;
const MAP: u16 = 3;

/// An entry of a folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dirent {
    /// Name.
    pub name: Vec<u8>,
    /// Type, as on disk.
    pub kind: u32,
    /// Descriptor.
    pub address: FdAddress,
    /// Generation of the descriptor when the entry was made.
    pub generation: u32,
    /// Where the entry lies in the folder.
    pub at: u64,
    /// The position behind it.
    pub next: u64,
}

/// What is left of an entry that its folder does not have any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stale {
    /// Name.
    pub name: Vec<u8>,
    /// Type, as on disk.
    pub kind: u32,
    /// Descriptor, if the entry still says which.
    pub address: Option<FdAddress>,
    /// Generation of the descriptor when the entry was made.
    pub generation: u32,
}

/// Takes entries and what is wrong between them.
pub type Taker<'s> = &'s mut dyn FnMut(Result<Dirent, Finding>) -> ControlFlow<()>;

/// A folder, opened.
#[derive(Clone, Debug)]
pub struct Folder {
    space: Arc<Space>,
    file: File,
    address: FdAddress,
}

impl Folder {
    /// The folder of a descriptor.
    pub fn open(volume: &Volume, address: FdAddress) -> Result<Self, Error> {
        let descriptor = volume.descriptor(address)?;
        if descriptor.node_kind() != crate::tree::Kind::Dir {
            return Err(Error::NotFolder);
        }
        Ok(Self::over(Arc::clone(&volume.space), volume.file(descriptor)))
    }

    /// The folder whose bytes are `file`.
    #[must_use]
    pub fn over(space: Arc<Space>, file: File) -> Self {
        let address = file.descriptor().address;
        Self { space, file, address }
    }

    /// Its descriptor.
    #[must_use]
    pub fn descriptor(&self) -> &Descriptor {
        self.file.descriptor()
    }

    /// Bytes of it that are looked at at once: an entry on VMFS5, a block of entries on VMFS6.
    pub(super) fn step(&self) -> u64 {
        if self.space.header.is_six() { self.space.header.md } else { ENTRY5 }
    }

    /// Where in the volume its bytes lie. `Break` ends it.
    pub fn places(&self, sink: &mut dyn FnMut(std::ops::Range<u64>) -> ControlFlow<()>) {
        // A location has 22 bits for the block.
        let most = BLOCKS_AT.saturating_add(MAX_BLOCKS.saturating_mul(self.space.header.md));
        let len = self.file.room().min(self.space.lv.len()).min(most);
        let file = self.file.with_len(len);
        let mut at: u64 = 0;
        while at < len {
            let run = file.run(at, len.saturating_sub(at));
            if let Place::Below { offset, .. } = run.place
                && sink(offset..offset.saturating_add(run.len)).is_break()
            {
                return;
            }
            at = at.saturating_add(run.len.max(1));
        }
    }

    /// The entries behind position `from`, without `.` and `..`.
    pub fn list(&self, from: u64, taker: Taker<'_>) {
        let _ = if self.space.header.is_six() { self.list6(from, taker) } else { self.list5(from, taker) };
    }

    /// The entry of a name.
    #[must_use]
    pub fn find(&self, name: &[u8]) -> Option<Dirent> {
        if name == b"." || name == b".." {
            return None;
        }
        if self.space.header.is_six() {
            // Where the table contradicts itself or can't be read, or does not have all names, the entries may still be
            // there.
            match self.find_by_hash(name) {
                Ok(Some(found)) => return Some(found),
                Ok(None) if !self.is_astray(name) => return None,
                Ok(None) | Err(Damaged) => {}
            }
        }
        let mut found = None;
        self.list(0, &mut |entry| match entry {
            Ok(entry) if entry.name == name => {
                found = Some(entry);
                ControlFlow::Break(())
            }
            _ => ControlFlow::Continue(()),
        });
        found
    }

    /// Says so if names of a VMFS6 folder are not found through its hash table.
    pub fn index(&self) -> Option<Finding> {
        if !self.space.header.is_six() {
            return None;
        }
        let astray = self.astray();
        let count = LittleEndian::read_u64(astray.bytes.get(..8)?);
        let text = format!("{count} of its names are not found through its hash table, but among its entries");
        (count > 0).then(|| self.finding("VMFS-DIR-HASH", TABLE_AT, hash::SLOTS.saturating_mul(4), &text))
    }

    /// Whether a name may be there though the hash table does not lead to it.
    fn is_astray(&self, name: &[u8]) -> bool {
        let slot = hash::slot(self.address, name);
        let at = narrow(slot >> 3).saturating_add(8);
        self.astray().bytes.get(at).is_none_or(|byte| byte >> (slot & 7) & 1 == 1)
    }

    /// How many entries their slots of the hash table do not lead to, and a bit for each such slot; from the cache.
    fn astray(&self) -> Arc<Block> {
        /// Groups of links that are read for this; what lies behind further ones is taken for astray.
        const GROUPS: u64 = 1 << 20;
        let key = ASTRAY | u64::from(self.address.0);
        self.space.folders.get(key, || {
            let mut bits = vec![0_u8; narrow(hash::SLOTS >> 3).saturating_add(1)];
            let (mut count, mut left) = (0_u64, GROUPS);
            self.list(0, &mut |entry| {
                let Ok(entry) = entry else { return ControlFlow::Continue(()) };
                let chained = self.slot_of(&entry.name).is_some_and(|location| location.kind() == 2);
                left = left.saturating_sub(u64::from(chained));
                let found = if left > 0 { self.find_by_hash(&entry.name).ok().flatten() } else { None };
                if found.is_none_or(|found| found.at != entry.at) {
                    count = count.saturating_add(1);
                    let slot = hash::slot(self.address, &entry.name);
                    if let Some(byte) = bits.get_mut(narrow(slot >> 3)) {
                        *byte |= 1 << (slot & 7);
                    }
                }
                ControlFlow::Continue(())
            });
            let mut bytes = count.to_le_bytes().to_vec();
            bytes.append(&mut bits);
            Block { bytes, fault: None, trust: Trust::Sound }
        })
    }

    /// What the hash table has for a name.
    fn slot_of(&self, name: &[u8]) -> Option<Location> {
        let at = narrow(TABLE_AT.saturating_add(hash::slot(self.address, name).saturating_mul(4)));
        let head = self.head();
        Some(Location(LittleEndian::read_u32(head.good().get(at..at.checked_add(4)?)?)))
    }

    /// The name of an entry that does not agree with its hash, if one damaged byte is all that keeps it from that. Only
    /// few are tried in a folder.
    fn mended(&self, at: u64) -> Option<Vec<u8>> {
        /// Entries of a folder that are tried.
        const TRIES: usize = 16;
        let key = MENDED | u64::from(self.address.0);
        let all = self.space.folders.get(key, || {
            let mut bytes = Vec::new();
            let mut tries = 0;
            for block in 0..self.blocks() {
                let start = self.block_at(block);
                if tries >= TRIES || !matches!(self.file.run(start, 1).place, Place::Below { .. }) {
                    continue;
                }
                let (raw, seen) = read_vec(&self.file, start, narrow(self.space.header.md));
                let Some(header) = BlockHeader::new(&raw, self.slots()).filter(|_| seen.is_whole()) else { continue };
                for slot in (0..self.slots()).filter(|slot| header.is_used(*slot)) {
                    let Some((entry, false)) = self.entry(&raw, start, slot, 0) else { continue };
                    tries = tries.saturating_add(1);
                    let Some(name) = self.mend(&raw, &entry, start).filter(|_| tries <= TRIES) else { continue };
                    bytes.extend(entry.at.to_le_bytes());
                    bytes.extend(u8::try_from(name.len()).unwrap_or(0).to_le_bytes());
                    bytes.extend(name);
                }
            }
            Block { bytes, fault: None, trust: Trust::Sound }
        });
        let mut rest = all.bytes.as_slice();
        while let Some((head, behind)) = rest.split_at_checked(9) {
            let (name, next) = behind.split_at_checked(usize::from(*head.get(8)?))?;
            if LittleEndian::read_u64(head) == at {
                return Some(name.to_vec());
            }
            rest = next;
        }
        None
    }

    fn mend(&self, block: &[u8], entry: &Dirent, block_at: u64) -> Option<Vec<u8>> {
        let start = narrow(entry.at.checked_sub(block_at)?);
        let raw = block.get(start..start.checked_add(narrow(ENTRY6))?)?;
        let own = LittleEndian::read_u64(raw.get(0x10..0x18)?) == entry.at;
        // The table leads here by the name as it is: it is the hash that is damaged.
        let here = |name: &[u8]| {
            self.slot_of(name).is_some_and(|location| {
                let (block, slot) = (self.block_at(location.block()), location.slot());
                let place = block.saturating_add(BLOCK_HEADER).saturating_add(slot.saturating_mul(ENTRY6));
                location.kind() == 1 && place == entry.at
            })
        };
        if !own || here(&entry.name) {
            return None;
        }
        hash::mend(self.address, raw.get(0x18..0x118)?, LittleEndian::read_u32(raw.get(0x0C..0x10)?))
    }

    fn finding(&self, code: &'static str, at: u64, len: u64, text: &str) -> Finding {
        let text = format!("folder {}: {text}", self.address);
        let at = match self.file.run(at.min(self.file.len().saturating_sub(1)), 1).place {
            Place::Below { offset, .. } => self.space.physical(offset),
            _ => self.space.physical(self.file.descriptor().at),
        };
        Finding::new(code, at..at.saturating_add(len), Trust::Doubtful, text)
    }

    /// As [`Folder::finding`] of what can't be had of `range`: no doubt, if that is only elsewhere.
    fn missing(&self, code: &'static str, range: std::ops::Range<u64>, text: &str) -> Finding {
        let gone = super::elsewhere(&self.file, range.clone());
        let text =
            gone.map_or_else(|| text.to_owned(), |why| format!("{text}; what is missing of it can't be had: {why}"));
        let trust = if gone.is_some() { Trust::Sound } else { Trust::Doubtful };
        let found = self.finding(code, range.start, range.end.saturating_sub(range.start), &text);
        Finding { trust, ..found }
    }

    /// Whether a part of the folder is not damaged but elsewhere, so that nobody can say what it does not list.
    pub(super) fn is_partial(&self) -> bool {
        super::elsewhere(&self.file, 0..self.file.len()).is_some()
    }

    /// Entries that are no part of the folder any more: in free slots, in blocks that the map does not have, behind
    /// its end. On VMFS5 an entry that was freed has lost its descriptor; then `address` is `None`. VMFS6 entries know
    /// their place and their hash, and only such are told.
    ///
    /// Looks at `budget` places for an entry at most and gives back how many are left of it.
    pub fn stale(&self, budget: u64, taker: &mut dyn FnMut(Stale)) -> u64 {
        if self.space.header.is_six() { self.stale6(budget, taker) } else { self.stale5(budget, taker) }
    }

    fn stale5(&self, budget: u64, taker: &mut dyn FnMut(Stale)) -> u64 {
        let (len, end) = (self.file.len(), self.file.room());
        let count = end.min(self.space.lv.len()).checked_div(ENTRY5).unwrap_or(0);
        let file = self.file.with_len(end);
        let (mut left, mut index) = (budget, 0);
        while index < count && left > 0 {
            let start = index.saturating_mul(ENTRY5);
            let most = count.saturating_sub(index).min(left);
            let run = file.run(start, most.saturating_mul(ENTRY5));
            // Entries that start in a hole or a gap are none, and need not be read.
            let is_there = matches!(run.place, Place::Below { .. });
            let step = if is_there { CHUNK5 } else { run.len.div_ceil(ENTRY5).max(1) }.min(most);
            left = left.saturating_sub(step);
            index = index.saturating_add(step);
            if !is_there {
                continue;
            }
            let (bytes, seen) = read_vec(&file, start, narrow(step.saturating_mul(ENTRY5)));
            for (at, raw) in (start..).step_by(narrow(ENTRY5)).zip(bytes.chunks_exact(narrow(ENTRY5))) {
                // Inside of the folder an entry with a descriptor is alive.
                let inside = at.saturating_add(ENTRY5) <= len;
                if let Some(stale) = stale_entry5(raw, inside).filter(|_| !is_cut(&seen, at, ENTRY5)) {
                    taker(stale);
                }
            }
        }
        left
    }

    fn stale6(&self, budget: u64, taker: &mut dyn FnMut(Stale)) -> u64 {
        let end = self.file.room();
        let all = Self { file: self.file.with_len(end), ..self.clone() };
        let head = self.head();
        let map = Map::new(&self.space.header, head.good());
        let mut state = None;
        let mut left = budget;
        for block in 0..all.blocks() {
            let Some(less) = left.checked_sub(1) else { break };
            left = less;
            let at = all.block_at(block);
            if !matches!(all.file.run(at, 1).place, Place::Below { .. }) {
                continue;
            }
            let mapped = map.as_ref().is_some_and(|map| map.kind(self, block, &mut state) == Some(ENTRIES));
            let mapped = mapped && at < self.file.len();
            let (bytes, seen) = read_vec(&all.file, at, narrow(self.space.header.md));
            let header = BlockHeader::new(&bytes, self.slots()).filter(|_| !is_cut(&seen, at, BLOCK_HEADER));
            for slot in 0..self.slots() {
                let alive = mapped && header.is_none_or(|header| header.is_used(slot));
                let offset = at.saturating_add(BLOCK_HEADER).saturating_add(slot.saturating_mul(ENTRY6));
                if alive || is_cut(&seen, offset, ENTRY6) {
                    continue;
                }
                if let Some((Dirent { name, kind, address, generation, .. }, true)) = self.entry(&bytes, at, slot, 0) {
                    left = left.saturating_sub(1);
                    taker(Stale { name, kind, address: Some(address), generation });
                }
            }
        }
        left
    }

    // VMFS5

    fn list5(&self, from: u64, taker: Taker<'_>) -> ControlFlow<()> {
        // No folder has more than its volume has room for.
        let count = self.file.len().min(self.space.lv.len()).checked_div(ENTRY5).unwrap_or(0);
        if from == 0 {
            self.check5(count, taker)?;
        }
        let mut index = from;
        while index < count {
            let at = index.saturating_mul(ENTRY5);
            let run = self.file.run(at, self.file.len().saturating_sub(at));
            let whole = run.len.checked_div(ENTRY5).unwrap_or(0);
            if !matches!(run.place, Place::Below { .. }) && whole > 0 {
                let range = at..at.saturating_add(run.len);
                taker(Err(self.missing("VMFS-DIR-GAP", range, &format!("{whole} entries can't be had"))))?;
                index = index.saturating_add(whole);
                continue;
            }
            let take = count.saturating_sub(index).min(CHUNK5);
            let (bytes, seen) = read_vec(&self.file, at, narrow(take.saturating_mul(ENTRY5)));
            let take_end = at.saturating_add(take.saturating_mul(ENTRY5));
            let mut cut = 0;
            for raw in bytes.chunks_exact(narrow(ENTRY5)) {
                let at = index.saturating_mul(ENTRY5);
                index = index.saturating_add(1);
                if is_cut(&seen, at, ENTRY5) {
                    // Neighbours are told as one.
                    if cut <= at {
                        cut = at;
                        while is_cut(&seen, cut, ENTRY5) && cut < take_end {
                            cut = cut.saturating_add(ENTRY5);
                        }
                        let count = cut.saturating_sub(at).checked_div(ENTRY5).unwrap_or(0);
                        let text = if count == 1 {
                            "an entry can't be had".into()
                        } else {
                            format!("{count} entries can't be had")
                        };
                        taker(Err(self.missing("VMFS-DIR-GAP", at..cut, &text)))?;
                    }
                    continue;
                }
                let Some((kind, address, generation)) = numbers(raw).filter(|(_, address, _)| *address != 0) else {
                    continue;
                };
                let name = until_zero(raw.get(12..).unwrap_or_default());
                if name == b"." || name == b".." {
                    continue;
                }
                if let Some(address) = FdAddress::of(address).filter(|_| !name.is_empty()) {
                    let name = name.to_vec();
                    taker(Ok(Dirent { name, kind, address, generation, at, next: index }))?;
                } else {
                    let text = format!("an entry with descriptor {address:#x} and a name of {} bytes", name.len());
                    taker(Err(self.finding("VMFS-DIR-ENTRY", at, ENTRY5, &text)))?;
                }
            }
        }
        ControlFlow::Continue(())
    }

    /// Every folder starts with itself and its parent, and has whole entries: a start that was wiped or a length
    /// that was changed hides the others.
    fn check5(&self, count: u64, taker: Taker<'_>) -> ControlFlow<()> {
        let len = self.file.len();
        if count.saturating_mul(ENTRY5) != len {
            let text = format!("its length {len} is no multiple of {ENTRY5}: entries may be missing");
            taker(Err(self.finding("VMFS-DIR-LENGTH", 0, 0, &text)))?;
        }
        for (at, wanted) in [(0, &b"."[..]), (ENTRY5, b"..")] {
            let (entry, seen) = read_vec(&self.file, at, narrow(ENTRY5));
            // A gap is told where it is met.
            if seen.is_whole() && until_zero(entry.get(12..).unwrap_or_default()) != wanted {
                let text = "it does not start with . and ..: entries may be missing";
                taker(Err(self.finding("VMFS-DIR-DOTS", at, ENTRY5, text)))?;
                break;
            }
        }
        self.check_blank(taker)
    }

    /// An entry that was freed keeps its name, and a folder ends with its last entry: no sector of it is blank.
    fn check_blank(&self, taker: Taker<'_>) -> ControlFlow<()> {
        const SECTOR: usize = 512;
        const PIECE: u64 = 16 << 10;
        /// Sectors that are told.
        const TOLD: usize = 16;
        let len = self.file.len().min(self.space.lv.len());
        let (mut at, mut told) = (0_u64, 0);
        while at < len && told < TOLD {
            let (bytes, seen) = read_vec(&self.file, at, narrow(PIECE.min(len.saturating_sub(at))));
            for (start, sector) in (at..).step_by(SECTOR).zip(bytes.chunks_exact(SECTOR)) {
                if sector.iter().all(|byte| *byte == 0) && !is_cut(&seen, start, wide(SECTOR)) && told < TOLD {
                    told = told.saturating_add(1);
                    let text = "a sector of it is blank: entries in it are missing, or names that go on in it are cut";
                    taker(Err(self.finding("VMFS-DIR-BLANK", start, wide(SECTOR), text)))?;
                }
            }
            at = at.saturating_add(PIECE);
        }
        ControlFlow::Continue(())
    }

    // VMFS6

    fn blocks(&self) -> u64 {
        // No folder has more than its volume has room for.
        let len = self.file.len().min(self.space.lv.len()).saturating_sub(BLOCKS_AT);
        len.checked_div(self.space.header.md).unwrap_or(0).min(MAX_BLOCKS)
    }

    fn block_at(&self, block: u64) -> u64 {
        BLOCKS_AT.saturating_add(block.saturating_mul(self.space.header.md))
    }

    /// The header of the folder, from the cache.
    fn head(&self) -> Arc<Block> {
        let len = narrow(self.file.len().min(BLOCKS_AT));
        self.space.folders.get(u64::from(self.address.0), || read_block(&self.file, 0, len))
    }

    fn list6(&self, from: u64, taker: Taker<'_>) -> ControlFlow<()> {
        let head = self.head();
        let map = Map::new(&self.space.header, head.good());
        if map.is_none() {
            let text = "the header can't be used, all blocks are tried";
            taker(Err(self.missing("VMFS-DIR-HEAD", 0..TABLE_AT, text)))?;
        }
        let blocks = self.blocks();
        if from < HIDDEN {
            self.list_blocks(map.as_ref(), from..blocks << 8, false, taker)?;
        }
        // Entries that the header counts and the map does not show: look into all other blocks.
        let Some(map) = map else { return ControlFlow::Continue(()) };
        if self.used(&map) < map.entries.saturating_sub(2) {
            if from < HIDDEN {
                let text = format!("its map shows fewer entries than its header counts, {}", map.entries);
                let finding = self.finding("VMFS-DIR-MAP", 0, TABLE_AT, &text);
                let trust = if self.is_partial() { Trust::Sound } else { finding.trust };
                taker(Err(Finding { trust, ..finding }))?;
            }
            let from = if from < HIDDEN { 0 } else { from & !HIDDEN };
            self.list_blocks(Some(&map), from..blocks << 8, true, taker)?;
        }
        ControlFlow::Continue(())
    }

    /// Used slots of all blocks that the map has as blocks of entries.
    fn used(&self, map: &Map) -> u64 {
        let mut used: u64 = 0;
        let mut state = None;
        for block in 0..self.blocks() {
            if map.kind(self, block, &mut state) != Some(ENTRIES) {
                continue;
            }
            let (bytes, _) = read_vec(&self.file, self.block_at(block), narrow(BLOCK_HEADER));
            let header = BlockHeader::new(&bytes, self.slots());
            used = used.saturating_add(header.map_or(0, BlockHeader::used));
        }
        used
    }

    /// Entries that fit into a block.
    fn slots(&self) -> u64 {
        self.space.header.md.saturating_sub(BLOCK_HEADER).checked_div(ENTRY6).unwrap_or(0)
    }

    /// Lists blocks of entries. Positions are block times 256 plus slot. Without a map all blocks are tried; with
    /// `hidden` those that the map does not have.
    fn list_blocks(
        &self,
        map: Option<&Map>,
        range: std::ops::Range<u64>,
        hidden: bool,
        taker: Taker<'_>,
    ) -> ControlFlow<()> {
        let mut block = range.start >> 8;
        let mut first = range.start & 0xFF;
        let mut state = None;
        while block < range.end >> 8 {
            let kind = map.and_then(|map| map.kind(self, block, &mut state));
            if let Some(true) = state.as_mut().map(|state: &mut MapState| std::mem::take(&mut state.fresh_damage)) {
                let at = state.as_ref().map_or(0, |state| state.at);
                let text = "a block of its map can't be used, the blocks that it maps are tried";
                taker(Err(self.missing("VMFS-DIR-MAP", at..at.saturating_add(BLOCK_HEADER), text)))?;
            }
            let expected = kind == Some(ENTRIES);
            let wanted = match (map.is_some(), hidden) {
                (false, _) => true,
                (true, false) => expected || kind.is_none(),
                (true, true) => kind.is_some() && !expected,
            };
            if wanted {
                self.list_block(block, first, expected, hidden, taker)?;
            }
            first = 0;
            block = block.saturating_add(1);
        }
        ControlFlow::Continue(())
    }

    fn list_block(&self, block: u64, first: u64, expected: bool, hidden: bool, taker: Taker<'_>) -> ControlFlow<()> {
        let at = self.block_at(block);
        if !expected && !matches!(self.file.run(at, 1).place, Place::Below { .. }) {
            return ControlFlow::Continue(());
        }
        let (bytes, seen) = read_vec(&self.file, at, narrow(self.space.header.md));
        let header = BlockHeader::new(&bytes, self.slots()).filter(|_| !is_cut(&seen, at, BLOCK_HEADER));
        if expected && (header.is_none() || !seen.is_whole()) {
            let text = "a block of entries is damaged, its entries are taken by what they say of themselves";
            taker(Err(self.missing("VMFS-DIR-BLOCK", at..at.saturating_add(self.space.header.md), text)))?;
        }
        for slot in first..self.slots() {
            if header.is_some_and(|header| !header.is_used(slot)) {
                continue;
            }
            let offset = at.saturating_add(BLOCK_HEADER).saturating_add(slot.saturating_mul(ENTRY6));
            if is_cut(&seen, offset, ENTRY6) {
                continue;
            }
            let mark = if hidden { HIDDEN } else { 0 };
            let next = (block << 8 | slot).saturating_add(1) | mark;
            match self.entry(&bytes, at, slot, next) {
                Some((entry, true)) => taker(Ok(entry))?,
                // It contradicts itself: shown where the map and the block say that it is there.
                Some((entry, false)) if expected && header.is_some() => {
                    let shown = entry.name.escape_ascii();
                    if let Some(name) = self.mended(entry.at) {
                        let text = format!(
                            "the name of an entry, {shown}, does not agree with its hash; one byte of it is changed to what the \
                             hash is of: {}",
                            name.escape_ascii()
                        );
                        taker(Err(self.finding("VMFS-DIR-ENTRY", offset, ENTRY6, &text)))?;
                        taker(Ok(Dirent { name, ..entry }))?;
                        continue;
                    }
                    let text = format!("an entry, {shown}, does not agree with its place or its hash");
                    taker(Err(self.finding("VMFS-DIR-ENTRY", offset, ENTRY6, &text)))?;
                    taker(Ok(entry))?;
                }
                None if expected && header.is_some() => {
                    let text = "an entry has no name or names no descriptor";
                    taker(Err(self.finding("VMFS-DIR-ENTRY", offset, ENTRY6, text)))?;
                }
                _ => {}
            }
        }
        ControlFlow::Continue(())
    }

    /// The entry in a slot of a block, and whether its own offset and hash are right.
    fn entry(&self, block: &[u8], block_at: u64, slot: u64, next: u64) -> Option<(Dirent, bool)> {
        let start = BLOCK_HEADER.checked_add(slot.checked_mul(ENTRY6)?)?;
        let raw = block.get(narrow(start)..narrow(start.checked_add(ENTRY6)?))?;
        let (kind, address, generation) = numbers(raw)?;
        let address = FdAddress::of(address)?;
        let name = until_zero(raw.get(0x18..0x118)?).to_vec();
        if name.is_empty() || name == b"." || name == b".." {
            return None;
        }
        let at = block_at.checked_add(start)?;
        let low = hash::hash(self.address, &name) & u64::from(u32::MAX);
        let agrees = LittleEndian::read_u64(raw.get(0x10..0x18)?) == at
            && u64::from(LittleEndian::read_u32(raw.get(0x0C..0x10)?)) == low;
        Some((Dirent { name, kind, address, generation, at, next }, agrees))
    }

    /// Looks a name up. Absent only if the table is whole and says so.
    fn find_by_hash(&self, name: &[u8]) -> Result<Option<Dirent>, Damaged> {
        let head = self.head();
        let map = Map::new(&self.space.header, head.good()).ok_or(Damaged)?;
        let wanted = hash::slot(self.address, name);
        let bits = hash::hash(self.address, name) >> 16 & 0xFFFF;
        let table = head.good().get(narrow(TABLE_AT)..).unwrap_or_default();
        let table = table.get(..narrow(hash::SLOTS.saturating_mul(4))).ok_or(Damaged)?;
        let index = narrow(wanted.saturating_mul(4));
        let location = Location(LittleEndian::read_u32(table.get(index..).unwrap_or(&[0; 4])));
        if location.0 == 0 {
            // A table without any location does not belong to a folder with entries.
            let empty = table.iter().all(|byte| *byte == 0);
            return if empty && map.entries > 2 { Err(Damaged) } else { Ok(None) };
        }
        let mut groups = Vec::new();
        let mut open = vec![location];
        while let Some(location) = open.pop() {
            match location.kind() {
                1 => {
                    let entry = self.entry_of(location).ok_or(Damaged)?;
                    if entry.name == name {
                        return Ok(Some(entry));
                    }
                }
                2 if groups.len() < MAX_GROUPS && !groups.contains(&location) => {
                    groups.push(location);
                    self.follow(location, wanted, bits, &mut open)?;
                }
                _ => return Err(Damaged),
            }
        }
        Ok(None)
    }

    fn entry_of(&self, location: Location) -> Option<Dirent> {
        if location.block() >= self.blocks() || location.slot() >= self.slots() {
            return None;
        }
        let at = self.block_at(location.block());
        let (bytes, seen) = read_vec(&self.file, at, narrow(self.space.header.md));
        let header = BlockHeader::new(&bytes, self.slots())?;
        let next = (location.block() << 8 | location.slot()).saturating_add(1);
        let (entry, agrees) = self.entry(&bytes, at, location.slot(), next)?;
        (agrees && header.is_used(location.slot()) && !is_cut(&seen, entry.at, ENTRY6)).then_some(entry)
    }

    /// Adds the links of a group that can lead to the name, and the next group.
    fn follow(&self, group: Location, wanted: u64, bits: u64, open: &mut Vec<Location>) -> Result<(), Damaged> {
        let start = BLOCK_HEADER.saturating_add(group.slot().saturating_mul(GROUP));
        if group.block() >= self.blocks() || start.saturating_add(GROUP) > self.space.header.md {
            return Err(Damaged);
        }
        let at = self.block_at(group.block()).saturating_add(start);
        let (bytes, seen) = read_vec(&self.file, at, narrow(GROUP));
        let number = |at: u64, len: usize| {
            let at = narrow(at);
            bytes.get(at..at.saturating_add(len)).map_or(0, |bytes| LittleEndian::read_uint(bytes, len))
        };
        if !seen.is_whole() || number(0, 2) != wanted {
            return Err(Damaged);
        }
        let location = |at| Location(u32::try_from(number(at, 4)).unwrap_or(0));
        open.extend(Some(location(0x4E)).filter(|next| next.0 != 0));
        for i in 0..LINKS {
            let at = i.saturating_mul(6).saturating_add(6);
            let link = location(at);
            // A link to a further group can have any hash.
            if link.0 != 0 && (number(at.saturating_add(4), 2) == bits || link.kind() == 2) {
                open.push(link);
            }
        }
        Ok(())
    }
}

/// The hash table can't be believed.
struct Damaged;

/// A location in a folder, as on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Location(u32);

impl Location {
    fn kind(self) -> u32 {
        self.0 & 3
    }

    fn block(self) -> u64 {
        u64::from(self.0 >> 2 & 0x3F_FFFF)
    }

    fn slot(self) -> u64 {
        u64::from(self.0 >> 24)
    }
}

/// The header of a block of entries.
#[derive(Clone, Copy)]
struct BlockHeader {
    slots: u64,
    free: [u8; BITMAP],
}

impl BlockHeader {
    fn new(bytes: &[u8], most: u64) -> Option<Self> {
        let kind = LittleEndian::read_u16(bytes.get(2..4)?);
        let slots = u64::from(LittleEndian::read_u16(bytes.get(4..6)?));
        (kind == ENTRIES && (1..=most).contains(&slots)).then_some(())?;
        let mut free = [0; BITMAP];
        free.copy_from_slice(bytes.get(8..BITMAP.checked_add(8)?)?);
        Some(Self { slots, free })
    }

    fn is_used(self, slot: u64) -> bool {
        slot < self.slots && self.free.get(narrow(slot >> 3)).is_some_and(|byte| byte >> (slot & 7) & 1 == 0)
    }

    fn used(self) -> u64 {
        wide((0..self.slots).filter(|slot| self.is_used(*slot)).count())
    }
}

/// What the folder's header says of its allocation map.
struct Map {
    entries: u64,
    blocks: Vec<u64>,
    per_block: u64,
}

/// The block of the map that was asked last.
struct MapState {
    index: u64,
    at: u64,
    nibbles: Option<Vec<u8>>,
    /// It can't be used, and nobody was told yet.
    fresh_damage: bool,
}

impl Map {
    fn new(header: &Header, head: &[u8]) -> Option<Self> {
        let word = |at: u64| {
            let at = narrow(at);
            Some(LittleEndian::read_u32(head.get(at..at.checked_add(4)?)?))
        };
        let version = word(0)?;
        let maps = u64::from(word(0xC)?);
        if (version != VERSION && version != VERSION_DEBUG) || maps > MAX_MAPS {
            return None;
        }
        let blocks = (0..maps).map(|i| word(i.saturating_mul(4).saturating_add(0x10)).map(u64::from));
        Some(Self {
            entries: u64::from(word(4)?),
            blocks: blocks.collect::<Option<_>>()?,
            per_block: header.md.saturating_sub(BLOCK_HEADER).saturating_mul(2),
        })
    }

    /// Type of a block; 0 for one that holds nothing. `None` if the map can't be had.
    fn kind(&self, folder: &Folder, block: u64, state: &mut Option<MapState>) -> Option<u16> {
        let index = block.checked_div(self.per_block)?;
        // Blocks behind the last map were never allocated.
        let Some(map) = self.blocks.get(narrow(index)) else { return Some(0) };
        if state.as_ref().is_none_or(|state| state.index != index) {
            let at = folder.block_at(*map);
            let nibbles = Self::load(folder, *map);
            let fresh_damage = nibbles.is_none();
            *state = Some(MapState { index, at, nibbles, fresh_damage });
        }
        let nibbles = state.as_ref()?.nibbles.as_ref()?;
        let within = block.checked_rem(self.per_block)?;
        let byte = *nibbles.get(narrow(within >> 1))?;
        let nibble = if within & 1 == 0 { byte >> 4 } else { byte & 0xF };
        // "Never written" leaves whatever the block held before.
        Some(if nibble & 8 == 0 { u16::from(nibble & 3) } else { 0 })
    }

    fn load(folder: &Folder, map: u64) -> Option<Vec<u8>> {
        if map >= folder.blocks() {
            return None;
        }
        let (mut bytes, seen) = read_vec(&folder.file, folder.block_at(map), narrow(folder.space.header.md));
        let sound = seen.is_whole() && LittleEndian::read_u16(bytes.get(2..4)?) == MAP;
        sound.then(|| bytes.split_off(narrow(BLOCK_HEADER)))
    }
}

/// Whether these are the first bytes of a folder of VMFS6.
pub(super) fn is_head(bytes: &[u8]) -> bool {
    bytes.first_chunk::<4>().is_some_and(|raw| [VERSION, VERSION_DEBUG].contains(&u32::from_le_bytes(*raw)))
}

/// Whether these are the first bytes of a folder of VMFS5, which are itself and its parent.
pub(super) fn is_flat(bytes: &[u8]) -> bool {
    let mut entries = bytes.chunks_exact(narrow(ENTRY5)).map(|entry| until_zero(entry.get(12..).unwrap_or_default()));
    entries.next() == Some(b".") && entries.next() == Some(b"..")
}

/// The descriptor of the folder that starts with these bytes, by its entry of itself.
pub(super) fn own(header: &Header, bytes: &[u8]) -> Option<FdAddress> {
    /// Where the header of a folder of VMFS6 has it.
    const SELF: usize = 0x3B8;
    let entry = match header.is_six() {
        true if is_head(bytes) => bytes.get(SELF..)?,
        false if is_flat(bytes) => bytes,
        _ => return None,
    };
    let (kind, address, _) = numbers(entry)?;
    Type::of(kind).and_then(|_| FdAddress::of(address))
}

/// What an entry of VMFS5 that is no part of its folder any more says; one `inside` of it is alive with a descriptor.
fn stale_entry5(raw: &[u8], inside: bool) -> Option<Stale> {
    let (kind, address, generation) = numbers(raw)?;
    let name = until_zero(raw.get(12..).unwrap_or_default());
    let alive = address != 0 && inside;
    if alive || name.is_empty() || name == b"." || name == b".." || Type::of(kind).is_none() {
        return None;
    }
    let address = if address == 0 { None } else { Some(FdAddress::of(address)?) };
    Some(Stale { name: name.to_vec(), kind, address, generation })
}

/// How long a folder of VMFS5 is by its entries: up to the first that none ever was.
pub(super) fn flat_len(file: &File) -> u64 {
    let most = file.len().min(file.volume_len()).checked_div(ENTRY5).unwrap_or(0);
    for index in 0..most {
        let (entry, seen) = read_vec(file, index.saturating_mul(ENTRY5), narrow(ENTRY5));
        if seen.is_whole() && entry.iter().all(|byte| *byte == 0) {
            return index.saturating_mul(ENTRY5);
        }
    }
    most.saturating_mul(ENTRY5)
}

/// Where in its folder these blocks lie, by the first entry that says where it lies itself.
pub(super) fn place_of(bytes: &[u8], md: u64) -> Option<u64> {
    let mut at: u64 = 0;
    while let Some(block) = bytes.get(narrow(at)..).filter(|block| !block.is_empty()) {
        let entry = block.get(narrow(BLOCK_HEADER)..narrow(BLOCK_HEADER.saturating_add(ENTRY6)))?;
        let own = LittleEndian::read_u64(entry.get(0x10..0x18)?);
        let named = numbers(entry).is_some_and(|(_, address, _)| FdAddress::of(address).is_some());
        let start = own.checked_sub(BLOCK_HEADER).and_then(|start| start.checked_sub(at));
        if let Some(start) = start.filter(|start| named && *start >= BLOCKS_AT && start.is_multiple_of(md)) {
            return Some(start);
        }
        at = at.saturating_add(md);
    }
    None
}

fn is_cut(seen: &Seen, at: u64, len: u64) -> bool {
    seen.gaps.iter().any(|gap| gap.range.start < at.saturating_add(len) && at < gap.range.end)
}

/// The three numbers that any entry starts with.
fn numbers(raw: &[u8]) -> Option<(u32, u32, u32)> {
    let word = |at: usize| Some(LittleEndian::read_u32(raw.get(at..at.checked_add(4)?)?));
    Some((word(0)?, word(4)?, word(8)?))
}

fn until_zero(bytes: &[u8]) -> &[u8] {
    bytes.split(|byte| *byte == 0).next().unwrap_or_default()
}
