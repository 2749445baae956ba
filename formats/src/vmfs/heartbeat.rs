//! Heartbeats: which hosts had the volume, and which never said goodbye.
//!
//! One slot a host, of a sector on VMFS5 (2048 of them) and of one alignment unit on VMFS6 (1024).
//!
//! | offset | type | meaning | how sure |
//! | --- | --- | --- | --- |
//! | 0x00 | u32 | 0xABCDEF01 free, 0xABCDEF02 in use | real images |
//! | 0x04 | u64 | own position in the volume | real images |
//! | 0x0C | u64 | generation | real images |
//! | 0x14 | u64 | microseconds that the host was up | real images |
//! | 0x1C | 16 | UUID of the host, zero once it is free | real images |
//! | 0x2C | u32 | address of its journal | real images |
//! | 0x30, 0x34 | u32, u8 | version of the file system that the host speaks | real images |
//! | 0x36 | 46 | IP address of the host, as text; stays when the slot is given back | real images |
//! | 0x64 | u64 | position of its journal in the volume | real images |
//!
//! Slots and locks are evidence. They never limit reading: a slot in use says that a host was running when the image
//! was made or that it crashed, and both leave a journal behind that may not have been written home.

use super::header::Header;
use super::uuid;
use crate::layer::{Layer, Trust, Why};
use crate::link::Fact;
use crate::note::Finding;
use crate::num::narrow;
use crate::read::{read, read_vec};
use crate::record::Record;
use binrw::BinRead;
use std::ops::Range;

/// First bytes of a slot that is free.
pub const FREE: u32 = 0xABCD_EF01;
/// First bytes of a slot that is in use.
pub const IN_USE: u32 = 0xABCD_EF02;

/// Damaged slots that get a finding of their own.
const TOLD: usize = 8;

/// A slot as on disk.
#[derive(BinRead, Clone, Debug)]
#[br(little)]
#[expect(dead_code, reason = "the record as it is documented, of which not all is needed")]
pub(super) struct RawHeartbeat {
    pub magic: u32,
    pub at: u64,
    pub generation: u64,
    pub stamp: u64,
    pub owner: [u8; 16],
    pub journal: u32,
    pub major_version: u32,
    pub minor_version: u8,
    pub lock_implementation: u8,
    pub host: [u8; 46],
    pub journal_at: u64,
}

impl Record for RawHeartbeat {
    const SIZE: usize = 0x6C;
    const NAME: &'static str = "VMFS heartbeat";
}

/// A slot that a host used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Heartbeat {
    /// Number of the slot.
    pub slot: u64,
    /// Where it lies in the volume.
    pub at: u64,
    /// Whether the host has it still.
    pub in_use: bool,
    /// How often the slot was taken.
    pub generation: u64,
    /// Microseconds that the host had been up at its last beat.
    pub stamp: u64,
    /// UUID of the host; zeros once it gave the slot back.
    pub owner: [u8; 16],
    /// IP address of the host, as it wrote it.
    pub host: Vec<u8>,
    /// Address of its journal, 0 without one.
    pub journal: u32,
    /// Where its journal lies in the volume, 0 without one.
    pub journal_at: u64,
}

impl Heartbeat {
    /// In words, for a person.
    #[must_use]
    pub fn about(&self) -> String {
        let host = if self.host.is_empty() { "an unknown host".into() } else { String::from_utf8_lossy(&self.host) };
        let seconds = self.stamp.checked_div(1_000_000).unwrap_or(0);
        let state = if self.in_use { "in use" } else { "free" };
        let mut text = format!("{host}, slot {} {state}, generation {}, up {seconds} s", self.slot, self.generation);
        if self.owner != [0; 16] {
            text.push_str(", host ");
            text.push_str(&uuid(self.owner));
        }
        text
    }
}

/// All slots of a volume.
#[derive(Clone, Debug, Default)]
pub struct Heartbeats {
    /// Those that a host used, by their number.
    pub seen: Vec<Heartbeat>,
    /// Those that can't be had or are none.
    pub bad: Vec<BadSlot>,
}

/// A slot that can't be had or is none.
#[derive(Clone, Debug)]
pub struct BadSlot {
    /// Its place in the volume.
    pub range: Range<u64>,
    /// Why, in words.
    pub why: String,
    /// Why, if it is only elsewhere.
    pub gone: Option<Why>,
}

impl Heartbeats {
    /// Reads the slots of a volume: the start of each, two thousand at most.
    #[must_use]
    pub fn load(lv: &dyn Layer, header: &Header) -> Self {
        let mut found = Self::default();
        let area = header.heartbeats();
        let count = area.end.saturating_sub(area.start).checked_div(header.md).unwrap_or(0).min(2048);
        // Neighbouring sectors are read at once; where slots are far apart, each for itself.
        let at_once = if header.md < 4096 { 256 } else { 1 };
        let mut slot: u64 = 0;
        while slot < count {
            let start = area.start.saturating_add(slot.saturating_mul(header.md));
            let len = if at_once == 1 { RawHeartbeat::SIZE } else { narrow(header.md.saturating_mul(at_once)) };
            let (bytes, seen) = read_vec(lv, start, len);
            for piece in bytes.chunks(narrow(header.md)) {
                let at = area.start.saturating_add(slot.saturating_mul(header.md));
                let lost = seen
                    .gaps
                    .iter()
                    .find(|gap| gap.range.start < RawHeartbeat::end(at) && at < gap.range.end)
                    .map(|gap| (gap.to_string(), gap.loss.why));
                match lost {
                    Some((lost, why)) => {
                        let gone = Some(why).filter(|why| why.is_elsewhere());
                        found.bad.push(BadSlot { range: at..at.saturating_add(header.md), why: lost, gone });
                    }
                    None => found.add(slot, at, header.md, piece),
                }
                slot = slot.saturating_add(1);
            }
        }
        found
    }

    fn add(&mut self, slot: u64, at: u64, size: u64, bytes: &[u8]) {
        let raw = match RawHeartbeat::parse(bytes, at) {
            Ok(raw) if matches!(raw.magic, FREE | IN_USE) && raw.at == at => raw,
            Ok(raw) => {
                let text = format!("it starts with {:#010x} and says that it lies at {:#x}", raw.magic, raw.at);
                return self.bad.push(BadSlot { range: at..at.saturating_add(size), why: text, gone: None });
            }
            Err(error) => {
                let range = at..at.saturating_add(size);
                return self.bad.push(BadSlot { range, why: error.to_string(), gone: None });
            }
        };
        let host = raw.host.split(|byte| *byte == 0).next().unwrap_or_default().to_vec();
        let in_use = raw.magic == IN_USE;
        if !in_use && raw.generation == 0 && host.is_empty() {
            return;
        }
        self.seen.push(Heartbeat {
            slot,
            at,
            in_use,
            generation: raw.generation,
            stamp: raw.stamp,
            owner: raw.owner,
            host,
            journal: raw.journal,
            journal_at: raw.journal_at,
        });
    }

    /// The slots that a host has.
    pub fn in_use(&self) -> impl Iterator<Item = &Heartbeat> {
        self.seen.iter().filter(|beat| beat.in_use)
    }

    /// What is wrong with them. `physical` says where a byte of the volume lies on the device.
    pub fn findings(&self, physical: &dyn Fn(u64) -> u64) -> Vec<Finding> {
        let finding = |range: &Range<u64>, trust, text: String| {
            let at = physical(range.start);
            let len = range.end.saturating_sub(range.start);
            Finding::new("VMFS-HEARTBEAT", at..at.saturating_add(len), trust, text)
        };
        let (gone, bad): (Vec<_>, Vec<_>) = self.bad.iter().partition(|slot| slot.gone.is_some());
        let told = bad.iter().take(TOLD);
        let mut findings: Vec<_> = told
            .map(|slot| finding(&slot.range, Trust::Doubtful, format!("a heartbeat slot can't be used: {}", slot.why)))
            .collect();
        if let (Some(first), Some(more)) = (bad.get(TOLD), bad.len().checked_sub(TOLD).filter(|more| *more > 0)) {
            findings.push(finding(&first.range, Trust::Doubtful, format!("{more} more heartbeat slots can't be used")));
        }
        if let Some((first, why)) = gone.first().and_then(|slot| Some((slot, slot.gone?))) {
            let text = format!("{} heartbeat slots can't be had: {why}", gone.len());
            findings.push(finding(&first.range, Trust::Sound, text));
        }
        findings
    }
}

/// What the slots of a volume say of its hosts, for `info`.
pub(super) fn facts(lv: &dyn Layer, header: &Header, facts: &mut Vec<Fact>) {
    for beat in Heartbeats::load(lv, header).seen {
        facts.push(Fact::new("vmfs_host", beat.about()));
    }
}

/// The start of a lock sector: every descriptor and every cluster header has one.
///
/// | offset | type | meaning | how sure |
/// | --- | --- | --- | --- |
/// | 0x00, 0x04 | u32, u64 | magic, own position in the volume | real images |
/// | 0x0C, 0x14 | u64 | heartbeat of the last holder, and its generation then | real images |
/// | 0x1C | u64 | token: counts up when the lock is taken and when it is given back | real images |
/// | 0x24 | u32 | mode, 0 = free | real images |
/// | 0x28 | 16 | UUID of the holder | real images |
/// | 0x38 | u64 | counts changes on the whole volume | real images |
#[derive(BinRead, Clone, Debug)]
#[br(little)]
#[expect(dead_code, reason = "the record as it is documented, of which not all is needed")]
pub(super) struct RawLockSector {
    pub magic: u32,
    pub at: u64,
    pub heartbeat_at: u64,
    pub heartbeat_generation: u64,
    pub token: u64,
    pub mode: u32,
    pub owner: [u8; 16],
    pub changes: u64,
}

impl Record for RawLockSector {
    const SIZE: usize = 0x40;
    const NAME: &'static str = "VMFS lock";
}

/// A lock sector that says where it lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lock {
    /// Where it lies in the volume.
    pub at: u64,
    /// Heartbeat of the last holder.
    pub heartbeat_at: u64,
    /// How often it was taken and given back.
    pub token: u64,
    /// 0 if it is free.
    pub mode: u32,
    /// UUID of the holder.
    pub owner: [u8; 16],
}

impl Lock {
    /// The lock in `bytes`, which belong to `at`.
    #[must_use]
    pub fn parse(bytes: &[u8], at: u64) -> Option<Self> {
        let raw = RawLockSector::parse(bytes, at).ok()?;
        let known = (0x10C0_0001..=0x10C0_0009).contains(&raw.magic);
        (known && raw.at == at).then_some(Self {
            at,
            heartbeat_at: raw.heartbeat_at,
            token: raw.token,
            mode: raw.mode,
            owner: raw.owner,
        })
    }

    /// The lock at `at` of a volume.
    #[must_use]
    pub fn load(lv: &dyn Layer, at: u64) -> Option<Self> {
        let mut bytes = [0; RawLockSector::SIZE];
        let whole = at < lv.len() && read(lv, at, &mut bytes).is_whole();
        whole.then(|| Self::parse(&bytes, at)).flatten()
    }
}
