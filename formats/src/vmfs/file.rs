//! The bytes of a file: its pointers, as a map.
//!
//! With `n` = offset / block size, the pointers lead to the data through none, one or two levels of pointer blocks
//! of 1024 (VMFS5) or 8192 (VMFS6) pointers each. All combinations occur on real images, except large file blocks,
//! blocks to be zeroed and blocks shared for copy on write, which are known from sources only.
//!
//! **A zero does not end an array.** It is a hole as long as all that it could have mapped, and a thin disk of
//! 69 GiB can have its only pointer in slot 42.
//!
//! An array of nothing but zeros is a hole only if the descriptor counts no more blocks than all pointers of the file
//! lead to; otherwise it was wiped, and what it mapped is lost. Zeros among other pointers can't be told from holes: if
//! the file misses pointers, or has more than its descriptor counts, each of its holes is Doubtful.
//!
//! A live file's block that its bitmap has as free, or that another file has too, is read as it stands, and Doubtful.

use super::address::{Address, Block as FileBlock, Spot};
use super::descriptor::{Descriptor, Shape};
use super::heir::Heir;
use super::resource::Resource;
use super::volume::{Pools, Space};
use super::witness::Witness;
use crate::adapt::below;
use crate::layer::{Layer, Place, Run, Trust, Why};
use crate::memo::Block;
use crate::num::{narrow, wide};
use byteorder::{ByteOrder, LittleEndian};
use std::cmp::Ordering;
use std::collections::BTreeSet;
use std::fmt;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};

/// No file is longer: 64 TiB.
const LONGEST: u64 = 1 << 46;

/// A file of a volume, as a layer.
#[derive(Clone)]
pub struct File {
    space: Arc<Space>,
    pools: Arc<Pools>,
    descriptor: Descriptor,
    top: Table,
    /// The bitmaps of the live volume, for a file that is not alive: what they have as used, somebody else has.
    heir: Option<Arc<Heir>>,
    /// What is in use may be this file's own, or somebody else's by now.
    rival: bool,
    /// What the rest of the volume says, of a file that is alive.
    witness: Option<Arc<Witness>>,
    /// For each level the pointer block that was asked about last and is this file's own.
    own_tables: Arc<[AtomicU64; 2]>,
    /// Whether the descriptor counts as many blocks as the pointers lead to.
    balance: OnceLock<Ordering>,
}

impl fmt::Debug for File {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "File({}, {} bytes)", self.descriptor.address, self.descriptor.len)
    }
}

/// An array of pointers and where it lies in the volume.
#[derive(Clone)]
struct Table {
    at: u64,
    block: Arc<Block>,
}

impl Table {
    fn pointer(&self, index: u64, width: u64) -> Option<u64> {
        let start = narrow(index.checked_mul(width)?);
        let width = narrow(width);
        Some(LittleEndian::read_uint(self.block.bytes.get(start..start.checked_add(width)?)?, width))
    }
}

/// Where one pointer to data leads.
enum Target {
    Hole,
    /// Bytes of the volume, as many as there are.
    Volume {
        at: u64,
        len: u64,
        trust: Trust,
    },
    Zero(Trust),
    Bad,
}

fn is_blank(table: &Table) -> bool {
    table.block.bytes.iter().all(|byte| *byte == 0)
}

fn shl(n: u64, shift: u32) -> u64 {
    1_u64.checked_shl(shift).map_or(u64::MAX, |size| n.saturating_mul(size))
}

fn shr(n: u64, shift: u32) -> u64 {
    n.checked_shr(shift).unwrap_or(0)
}

fn rem(n: u64, shift: u32) -> u64 {
    n & 1_u64.checked_shl(shift).map_or(u64::MAX, |size| size.saturating_sub(1))
}

impl File {
    /// The content of a descriptor.
    #[must_use]
    pub fn new(space: Arc<Space>, pools: Arc<Pools>, mut descriptor: Descriptor) -> Self {
        if descriptor.links == 0 {
            // What a deleted file's pointers name may have been given away since.
            descriptor.trust = descriptor.trust.max(Trust::Inferred);
        }
        let bytes = std::mem::take(&mut descriptor.pointers);
        let top =
            Table { at: descriptor.pointers_at, block: Arc::new(Block { bytes, fault: None, trust: Trust::Sound }) };
        Self {
            space,
            pools,
            descriptor,
            top,
            heir: None,
            rival: false,
            witness: None,
            own_tables: Arc::default(),
            balance: OnceLock::new(),
        }
    }

    /// The descriptor, without its pointers.
    #[must_use]
    pub fn descriptor(&self) -> &Descriptor {
        &self.descriptor
    }

    /// Length of the volume that it lies on.
    #[must_use]
    pub fn volume_len(&self) -> u64 {
        self.space.lv.len()
    }

    /// How long the file would be if all of the block that it ends in counted: what lies there was written to it.
    #[must_use]
    pub fn room(&self) -> u64 {
        match self.descriptor.shape {
            Shape::Mapped { shift, .. } => crate::num::round_up(self.len(), shl(1, shift)),
            Shape::Resident => self.len().max(self.descriptor.content_len),
            Shape::Elsewhere => self.len(),
        }
    }

    /// The same blocks, read up to `len`.
    #[must_use]
    pub fn with_len(&self, len: u64) -> Self {
        let mut file = self.clone();
        file.descriptor.len = len;
        file
    }

    /// Believes the whole file at most as much as `trust`.
    #[must_use]
    pub fn trusted(mut self, trust: Trust) -> Self {
        self.descriptor.trust = self.descriptor.trust.max(trust);
        self
    }

    /// The content of a file whose descriptor is free: what the bitmaps have as used may be its own or somebody
    /// else's, and is doubtful.
    #[must_use]
    pub fn rival(mut self, heir: Arc<Heir>) -> Self {
        self.rival = true;
        self.heir = Some(heir);
        self.trusted(Trust::Inferred)
    }

    /// The content of a file that is alive: what the rest of the volume contradicts is doubtful.
    #[must_use]
    pub(super) fn witnessed(mut self, witness: Arc<Witness>) -> Self {
        self.witness = Some(witness);
        self
    }

    /// The content of a file that is not alive: what the bitmaps of the live volume have as used by now is lost as
    /// overwritten, the rest is what was left there.
    #[must_use]
    pub fn dead(mut self, heir: Arc<Heir>) -> Self {
        self.descriptor.trust = self.descriptor.trust.max(Trust::Inferred);
        self.heir = Some(heir);
        self
    }

    fn mapped(&self, at: u64, want: u64, levels: u32, shift: u32) -> Run<'_> {
        let width = self.space.header.width.bytes();
        let fan = self.space.header.fan_shift;
        let mut table = self.top.clone();
        let mut level = levels;
        let mut trust = self.descriptor.trust;
        loop {
            // What one pointer of this table spans, and which of its pointers it is.
            let span = shift.saturating_add(level.saturating_mul(fan));
            let index = shr(at, span);
            let index = if level == levels { index } else { rem(index, fan) };
            let rest = shl(1, span).saturating_sub(rem(at, span));
            let pointer_at = table.at.saturating_add(index.saturating_mul(width));
            let Some(raw) = table.pointer(index, width) else {
                // Longer than the descriptor has room to map.
                return Run { trust, ..Run::lost(want, Why::Unmapped, self.descriptor.at) };
            };
            if raw == 0 {
                let more = self.count(&table, index, want.saturating_sub(rest.min(want)), span, |next| next == 0);
                let len = rest.saturating_add(shl(more, span)).min(want);
                let balance = self.balance();
                if balance == Ordering::Less && is_blank(&table) {
                    return Run { trust, ..Run::lost(len, Why::Unmapped, table.at) };
                }
                // Some zero of this file was a pointer.
                let trust = if balance == Ordering::Equal { trust } else { Trust::Doubtful };
                return Run { len, place: Place::Hole, trust };
            }
            let Some(below) = level.checked_sub(1) else {
                let slot = Slot { table: &table, index, pointer_at, trust, shift };
                return self.data(raw, at, want.min(rest), want, &slot);
            };
            let address = self.space.header.width.decode(raw);
            let found = self.pools.table(address);
            let Some((position, block)) = found.and_then(|(pool, offset)| self.space.table(pool, offset)) else {
                let why = self.unmapped(pointer_at, found);
                return Run { trust, ..Run::lost(rest.min(want), why, pointer_at) };
            };
            // Not a table any more, once somebody else has any of it.
            let whole = self.space.header.table_size();
            let taken = self.heir.as_ref().and_then(|heir| {
                let first = heir.at(position, whole);
                first.by.or_else(|| heir.at(position.saturating_add(first.len), 1).by.filter(|_| first.len < whole))
            });
            if let (Some(bitmap), false) = (taken, self.rival) {
                return Run { trust, ..Run::lost(rest.min(want), Why::Overwritten, bitmap) };
            }
            trust = trust.max(self.own_table(level, raw, address));
            trust = trust.max(block.trust).max(if taken.is_some() { Trust::Doubtful } else { Trust::Sound });
            table = Table { at: position, block };
            level = below;
        }
    }

    /// How far to believe that a pointer block is this file's. Most runs follow one that led through the same.
    fn own_table(&self, level: u32, raw: u64, address: Address) -> Trust {
        let Some(witness) = &self.witness else { return Trust::Sound };
        let known = self.own_tables.get(narrow(u64::from(level.saturating_sub(1))));
        if known.is_some_and(|known| known.load(Relaxed) == raw) {
            return Trust::Sound;
        }
        let trust = witness.resource(address, self.descriptor.address);
        if let Some(known) = known.filter(|_| trust == Trust::Sound) {
            known.store(raw, Relaxed);
        }
        trust
    }

    /// A run of a live file, as far as the rest of the volume says the same of all of it.
    fn witnessed_run<'a>(&self, run: Run<'a>) -> Run<'a> {
        let (Some(witness), Place::Below { offset, .. }) = (&self.witness, run.place) else { return run };
        let (trust, len) = witness.bytes(offset, run.len);
        Run { len, trust: run.trust.max(trust), ..run }
    }

    /// Why what a pointer names can't be had: the table that it lies in, or what it should lead to, may be elsewhere.
    fn unmapped(&self, pointer_at: u64, found: Option<(&Resource, u64)>) -> Why {
        let pointer = pointer_at..pointer_at.saturating_add(self.space.header.width.bytes());
        let own = || super::elsewhere(&*self.space.lv, pointer);
        let why = match found {
            Some((pool, at)) => super::elsewhere(&*pool.file, at..at.saturating_add(1)),
            None => self.pools.gone,
        };
        own().or(why).unwrap_or(Why::Unmapped)
    }

    /// A run, as far as bitmaps and owners say the same of all of it. Pointers and bitmaps are asked for as much as the
    /// answer holds, and not for all that follows: where the two break at different places, the same pointers would be
    /// looked at for every block.
    fn judged(&self, at: u64, want: u64, levels: u32, shift: u32) -> Run<'_> {
        if self.heir.is_none() && self.witness.is_none() {
            return self.mapped(at, want, levels, shift);
        }
        let mut ask = shl(1, shift).min(want);
        loop {
            let run = self.witnessed_run(self.left(self.mapped(at, ask, levels, shift)));
            if run.len < ask || ask == want {
                return run;
            }
            ask = ask.saturating_mul(4).min(want);
        }
    }

    /// What is left of a run of a file that is not alive: what somebody else has now is overwritten.
    fn left<'a>(&self, run: Run<'a>) -> Run<'a> {
        let (Some(heir), Place::Below { offset, .. }) = (&self.heir, run.place) else { return run };
        let holding = heir.at(offset, run.len);
        match holding.by {
            Some(_) if self.rival => Run { len: holding.len, trust: Trust::Doubtful, ..run },
            Some(bitmap) => Run { trust: run.trust, ..Run::lost(holding.len, Why::Overwritten, bitmap) },
            None => Run { len: holding.len, ..run },
        }
    }

    /// How the pointers to data compare with what the descriptor counts. Asked once, when a hole is met. No lock is
    /// held meanwhile; as long as the file is open the answer stays what it was, as that of its tables does.
    fn balance(&self) -> Ordering {
        if let Some(balance) = self.balance.get() {
            return *balance;
        }
        let survey = self.survey(&mut |_| {});
        let balance = match survey.blocks.cmp(&self.descriptor.blocks) {
            // What counts as a block where large ones are is not known.
            _ if survey.large > 0 || survey.endless => Ordering::Equal,
            // What is missing is where a table is lost, as far as anybody can tell.
            Ordering::Less if survey.unknown => Ordering::Equal,
            balance => balance,
        };
        *self.balance.get_or_init(|| balance)
    }

    /// How many pointers behind `index` also pass, as far as `want` goes.
    fn count(&self, table: &Table, index: u64, want: u64, span: u32, passes: impl Fn(u64) -> bool) -> u64 {
        let width = self.space.header.width.bytes();
        let most = shr(want, span).saturating_add(u64::from(rem(want, span) != 0));
        let mut count: u64 = 0;
        while count < most {
            let next = index.saturating_add(count).saturating_add(1);
            if !table.pointer(next, width).is_some_and(&passes) {
                break;
            }
            count = count.saturating_add(1);
        }
        count
    }

    /// The run of a pointer to data: `want` bytes of its own, or `most` with those of the pointers behind it.
    fn data(&self, raw: u64, at: u64, want: u64, most: u64, slot: &Slot<'_>) -> Run<'_> {
        let into = rem(at, slot.shift);
        let start = at.saturating_sub(into);
        let header = &self.space.header;
        let address = header.width.decode(raw);
        if let Address::Sub(spot) = address {
            let pool = self.pools.sbc.as_ref();
            let found = pool.and_then(|pool| Some((pool, pool.body(spot)?))).filter(|(pool, _)| into < pool.size);
            let Some((pool, body)) = found else {
                let gone = if pool.is_none() { self.pools.gone } else { None };
                return Run { trust: slot.trust, ..Run::lost(want, gone.unwrap_or(Why::Unmapped), slot.pointer_at) };
            };
            let run = pool.run(body.saturating_add(into), want.min(pool.size.saturating_sub(into)));
            let own = self
                .witness
                .as_ref()
                .map_or(Trust::Sound, |witness| witness.resource(address, self.descriptor.address));
            return Run { trust: run.trust.max(slot.trust).max(own), ..run };
        }
        match self.target(raw, start, slot.shift) {
            Target::Volume { at: target, len, trust } if into < len => {
                let mut run_len = want.min(len.saturating_sub(into));
                // Neighbours that go on where this block ends make one run.
                if run_len == want && len == shl(1, slot.shift) {
                    let mut next = target;
                    let mut index = slot.index;
                    while run_len < most {
                        next = next.saturating_add(len);
                        index = index.saturating_add(1);
                        let pointer = slot.table.pointer(index, header.width.bytes()).unwrap_or_default();
                        let file_at = start.saturating_add(next.saturating_sub(target));
                        match self.target(pointer, file_at, slot.shift) {
                            Target::Volume { at: found, len: found_len, trust: found_trust }
                                if found == next && found_len == len && found_trust == trust =>
                            {
                                run_len = run_len.saturating_add(len).min(most);
                            }
                            _ => break,
                        }
                    }
                }
                let place = Place::Below { layer: &*self.space.lv, offset: target.saturating_add(into) };
                Run { len: run_len, place, trust: slot.trust.max(trust) }
            }
            Target::Zero(trust) => Run { len: want, place: Place::Zero, trust: slot.trust.max(trust) },
            Target::Hole => Run { len: want, place: Place::Hole, trust: slot.trust },
            Target::Volume { .. } | Target::Bad => {
                let pointer = slot.pointer_at..slot.pointer_at.saturating_add(header.width.bytes());
                let why = super::elsewhere(&*self.space.lv, pointer).unwrap_or(Why::Unmapped);
                Run { trust: slot.trust, ..Run::lost(want, why, slot.pointer_at) }
            }
        }
    }

    /// Where a pointer to a file block leads, for the slot that starts at `start` of the file.
    fn target(&self, raw: u64, start: u64, shift: u32) -> Target {
        let header = &self.space.header;
        let (FileBlock { number, tbz, odd, .. }, size) = match header.width.decode(raw) {
            Address::Hole => return Target::Hole,
            Address::File(block) => (block, header.file_shift),
            Address::Large(block) => (block, header.large_shift),
            _ => return Target::Bad,
        };
        let Some(block_at) = number.checked_mul(shl(1, size)) else { return Target::Bad };
        if block_at.checked_add(shl(1, size)).is_none_or(|end| end > self.space.lv.len()) {
            return Target::Bad;
        }
        let trust = if odd { Trust::Doubtful } else { Trust::Sound };
        if tbz != 0 {
            // VMFS6 has a bit for each part of the block. Sources read the block as zeros if any is set; that
            // unset ones keep data would be as plausible, and no image shows it.
            let trust = match tbz {
                _ if !header.is_six() => trust,
                0xFF => trust.max(Trust::Inferred),
                _ => Trust::Doubtful,
            };
            return Target::Zero(trust);
        }
        // A slot smaller than its block is the part of the block that the file's offset says.
        let skip = rem(start, size);
        let len = shl(1, size).saturating_sub(skip).min(shl(1, shift));
        Target::Volume { at: block_at.saturating_add(skip), len, trust }
    }

    /// Visits every pointer, those behind the end of the file too, in the order of the file, and calls `sink` with the
    /// place in the volume of every pointer block.
    pub fn survey(&self, sink: &mut dyn FnMut(Range<u64>)) -> Survey {
        self.pointers(sink, &mut |_, _| {})
    }

    /// The same, and calls `each` with every pointer that is not zero and the level of what it leads to, 0 for data.
    pub fn pointers(&self, sink: &mut dyn FnMut(Range<u64>), each: &mut dyn FnMut(u32, Address)) -> Survey {
        let mut survey = Survey::default();
        let Shape::Mapped { levels, .. } = self.descriptor.shape else { return survey };
        let header = &self.space.header;
        let width = header.width.bytes();
        // As many bytes of 0xFF as a pointer has: it was lost.
        let lost = u64::MAX.checked_shr(u32::try_from(64_u64.saturating_sub(width << 3)).unwrap_or(0)).unwrap_or(0);
        // No file has more blocks than its volume, and none shares a pointer block with itself.
        let most = shr(self.space.lv.len(), header.sub_shift);
        let span = header.file_shift.saturating_add(header.fan_shift);
        let most_tables = shr(LONGEST, span).saturating_mul(2).saturating_add(wide(self.top.block.bytes.len()));
        let mut seen = BTreeSet::new();
        // One table of each level is held, and how far it was walked: a file can have 64 TiB of them.
        let mut open = vec![(self.top.clone(), levels, 0)];
        while let Some((table, level, index)) = open.last_mut() {
            let count = wide(table.block.bytes.len()).checked_div(width).unwrap_or(0);
            if *index >= count {
                open.pop();
                continue;
            }
            let raw = table.pointer(*index, width).unwrap_or(0);
            *index = index.saturating_add(1);
            if raw == 0 {
                continue;
            }
            if raw == lost {
                survey.unknown = true;
                let own = table.at..table.at.saturating_add(wide(table.block.bytes.len()));
                let gone = super::elsewhere(&*self.space.lv, own).is_some();
                survey.elsewhere = survey.elsewhere.saturating_add(gone.into());
                continue;
            }
            let address = header.width.decode(raw);
            each(*level, address);
            let Some(below) = level.checked_sub(1) else {
                survey.blocks = survey.blocks.saturating_add(1);
                survey.large = survey.large.saturating_add(matches!(address, Address::Large(_)).into());
                if survey.blocks > most {
                    survey.endless = true;
                    return survey;
                }
                continue;
            };
            survey.tables = survey.tables.saturating_add(1);
            let found = self.pools.table(address);
            let table = found.and_then(|(pool, offset)| {
                // Its place is enough to see that it was there before.
                let at = pool.position(offset)?;
                if !seen.insert(at) || survey.tables > most_tables {
                    survey.endless = true;
                    return None;
                }
                Some((self.space.table(pool, offset)?, pool.size.min(header.table_size())))
            });
            if survey.endless {
                return survey;
            }
            let Some(((at, block), size)) = table else {
                survey.unknown = true;
                let gone = self.unmapped(u64::MAX, found).is_elsewhere();
                survey.elsewhere = survey.elsewhere.saturating_add(gone.into());
                continue;
            };
            sink(at..at.saturating_add(size));
            open.push((Table { at, block }, below, 0));
        }
        survey
    }
}

/// What the pointers of a file add up to.
#[derive(Clone, Copy, Debug, Default)]
pub struct Survey {
    /// Pointers to data.
    pub blocks: u64,
    /// Pointers to pointer blocks.
    pub tables: u64,
    /// Those of them to large file blocks.
    pub large: u64,
    /// Pointers are lost, and what they led to is not counted.
    pub unknown: bool,
    /// How many of those are only outside of the dump, or on a device that was not given.
    pub elsewhere: u64,
    /// They name more than the volume has, or a pointer block twice: the rest was not visited.
    pub endless: bool,
}

/// Which pointer of which table.
struct Slot<'a> {
    table: &'a Table,
    index: u64,
    pointer_at: u64,
    trust: Trust,
    shift: u32,
}

impl Layer for File {
    fn len(&self) -> u64 {
        self.descriptor.len
    }

    fn about(&self) -> String {
        let Spot { cluster, resource } = self.descriptor.address.spot();
        format!("VMFS file c{cluster} r{resource}")
    }

    fn run(&self, at: u64, want: u64) -> Run<'_> {
        let fd = &self.descriptor;
        let run = match fd.shape {
            Shape::Mapped { levels, shift } => self.judged(at, want, levels, shift),
            Shape::Elsewhere => Run::lost(want, Why::NotGiven, fd.content_at),
            Shape::Resident => {
                let offset = fd.content_at.saturating_add(at);
                let run = match fd.content_len.saturating_sub(at) {
                    0 => Run::lost(want, Why::Unmapped, fd.at),
                    inside => below(&*self.space.lv, offset, want.min(inside)),
                };
                Run { trust: fd.trust, ..run }
            }
        };
        let doubted = self.witness.as_ref().is_some_and(|witness| witness.doubts(fd.address));
        if doubted { Run { trust: Trust::Doubtful, ..run } } else { run }
    }
}
