//! What journals know that nothing else does: descriptors and names, be they home or not.

use super::{Journal, LONGEST, Record, Standing, journals, number};
use crate::adapt::{Copied, Memory, Patch};
use crate::layer::{Bytes, Trust};
use crate::num::{narrow, wide};
use crate::read::read_vec;
use crate::vmfs::address::FdAddress;
use crate::vmfs::descriptor::{Descriptor, MAGIC, Type};
use crate::vmfs::file::File;
use crate::vmfs::hash;
use crate::vmfs::volume::Volume;
use std::ops::Range;
use std::sync::Arc;

/// Bytes of a descriptor's metadata without which it is none.
const METADATA: usize = 0x90;
/// Bytes of descriptors that are kept, with what is made of them.
const ROOM: u64 = 64 << 20;

/// A descriptor that a journal has.
#[derive(Clone, Debug)]
pub struct Image {
    /// The descriptor, as the journal has it. Its `at` is where it belongs in the volume.
    pub descriptor: Descriptor,
    /// Whether it is home.
    pub standing: Standing,
    /// Which journal, by its place in the volume.
    pub journal: u64,
    /// Where in that journal.
    pub at: u64,
    bytes: Arc<[u8]>,
}

/// An entry of a folder that a journal has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Name {
    /// Name.
    pub name: Vec<u8>,
    /// Type, as on disk.
    pub kind: u32,
    /// Descriptor.
    pub address: FdAddress,
    /// Generation of the descriptor when the entry was made.
    pub generation: u32,
    /// Where the entry belongs in the volume.
    pub target: u64,
}

/// All descriptors that the journals of a volume have, the oldest first: what they were, be it home or not. Those of
/// 32 MiB at most.
#[must_use]
pub fn images(volume: &Volume) -> Vec<Image> {
    let mut found = Vec::new();
    let header = &volume.space.header;
    let size = header.descriptor_size().saturating_sub(header.md);
    let mut room = ROOM;
    each(volume, &mut |journal, record, bytes| {
        let mut start: u64 = 0;
        while let Some(metadata) = bytes.get(narrow(start)..).filter(|metadata| metadata.len() >= METADATA) {
            let metadata = metadata.get(..narrow(size)).unwrap_or(metadata);
            let at = record.target.saturating_add(start).checked_sub(header.md);
            start = start.saturating_add(header.md);
            let address = number(metadata, 0, 4).and_then(|raw| FdAddress::of(u32::try_from(raw).ok()?));
            let Some(at) = at.filter(|at| address.is_some_and(|address| volume.locate(address) == Ok(*at))) else {
                continue;
            };
            // The lock sector has a record of its own, or none: of it, only what makes it one is needed.
            let mut all = vec![0; narrow(header.md)];
            all.splice(..12, MAGIC.to_le_bytes().into_iter().chain(at.to_le_bytes()));
            all.extend(metadata);
            // A sector of pointers that did not change has no record: it is as at home, if that did not change since.
            let have = wide(all.len());
            let mut trust = if record.standing == Standing::Unsure { Trust::Doubtful } else { Trust::Inferred };
            if let Some(missing) = header.descriptor_size().checked_sub(have).filter(|missing| *missing > 0) {
                let (home, seen) = read_vec(&*volume.space.lv, at.saturating_add(have), narrow(missing));
                all.extend(home);
                let same = record.standing == Standing::Newer && seen.is_whole();
                trust = if same { trust } else { Trust::Doubtful };
            }
            // The bytes, and the pointers among them a second time.
            let Some(left) = room.checked_sub(wide(all.len()).saturating_mul(2)) else { return };
            if let Ok(descriptor) = Descriptor::parse(header, at, &all, trust) {
                room = left;
                let (journal, standing) = (journal.at, record.standing);
                found.push(Image { descriptor, standing, journal, at: record.at, bytes: all.into() });
            }
        }
    });
    found
}

impl Image {
    /// The content that the descriptor of the journal leads to. Resident content is the journal's.
    #[must_use]
    pub fn file(&self, volume: &Volume) -> File {
        let from: Bytes = Arc::new(Memory::new(Arc::clone(&self.bytes)));
        let copy = Copied { at: self.descriptor.at, len: from.len(), from, offset: 0 };
        let lv = Patch::new(Bytes::clone(&volume.space.lv), vec![copy], Trust::Inferred);
        let space = lv.map_or_else(|| Arc::clone(&volume.space), |lv| Arc::new(volume.space.over(Arc::new(lv))));
        File::new(space, Arc::clone(&volume.pools), self.descriptor.clone()).trusted(Trust::Inferred)
    }
}

/// Calls `take` with all entries of folders that the journals of a volume have, the oldest first, each as often as it
/// is there.
pub fn names(volume: &Volume, take: &mut dyn FnMut(Name)) {
    let six = volume.space.header.is_six();
    each(volume, &mut |_, record, bytes| {
        // Patches have targets of their own; entries lie whole in one of them.
        let mut at: usize = 0;
        while let Some(rest) = bytes.get(at..).filter(|rest| !rest.is_empty()) {
            let entry = if six { entry6(rest) } else { entry5(rest) };
            let Some((name, len)) = entry else {
                at = at.saturating_add(4);
                continue;
            };
            let target = record.target.saturating_add(wide(at));
            take(Name { target, ..name });
            at = at.saturating_add(len);
        }
    });
}

/// Every range of the volume that a record has, or that several have of which each goes on where the one before ends,
/// as a record of its own, with its bytes. Those of transactions that were not finished do not count.
fn each(volume: &Volume, take: &mut dyn FnMut(&Journal, &Record, &[u8])) {
    for journal in journals(volume) {
        let (data, _) = read_vec(&*journal.bytes, 0, narrow(journal.bytes.len().min(LONGEST)));
        let mut open: Option<(Record, Vec<u8>)> = None;
        let records = journal.records.iter().filter(|record| record.standing != Standing::Torn);
        let parts = records.flat_map(|record| record.pieces.iter().map(move |piece| (record, piece)));
        for (record, piece) in parts {
            let start = narrow(piece.at);
            let bytes = data.get(start..start.saturating_add(narrow(piece.len))).unwrap_or_default();
            match &mut open {
                Some((first, have))
                    if first.transaction == record.transaction
                        && first.target.saturating_add(wide(have.len())) == piece.target =>
                {
                    have.extend(bytes);
                    // What was not whole is as sure as the least sure part.
                    first.standing = first.standing.max(record.standing);
                }
                _ => {
                    let next = (Record { target: piece.target, ..record.clone() }, bytes.to_vec());
                    if let Some((record, bytes)) = open.replace(next) {
                        take(&journal, &record, &bytes);
                    }
                }
            }
        }
        if let Some((record, bytes)) = open {
            take(&journal, &record, &bytes);
        }
    }
}

fn entry(bytes: &[u8], name: Range<usize>) -> Option<Name> {
    let word = |at| number(bytes, at, 4).and_then(|word| u32::try_from(word).ok());
    let (kind, address, generation) = (word(0)?, FdAddress::of(word(4)?)?, word(8)?);
    Type::of(kind)?;
    let raw = bytes.get(name)?;
    let len = raw.iter().position(|byte| *byte == 0)?;
    let (name, rest) = raw.split_at_checked(len)?;
    let plain = !name.is_empty() && name != b"." && name != b".." && generation != 0;
    let clean = name.iter().all(|byte| *byte >= b' ' && *byte != b'/') && rest.iter().all(|byte| *byte == 0);
    (plain && clean).then(|| Name { name: name.to_vec(), kind, address, generation, target: 0 })
}

fn entry5(bytes: &[u8]) -> Option<(Name, usize)> {
    Some((entry(bytes, 12..140)?, 140))
}

fn entry6(bytes: &[u8]) -> Option<(Name, usize)> {
    let found = entry(bytes, 0x18..0x118)?;
    // System files have none.
    let hash = number(bytes, 0xC, 4)?;
    (hash == hash::lookup8(&found.name) & 0xFFFF_FFFF).then_some((found, 288))
}
