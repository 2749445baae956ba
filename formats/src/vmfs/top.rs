//! The top folder of a volume that has lost its descriptor.
//!
//! No pointer leads to it then, but the start of a folder says which folder it is:
//!
//! | version | offset | meaning | how sure |
//! | --- | --- | --- | --- |
//! | VMFS5 | 0 | the entry `.`, whose descriptor is the folder's own | real images |
//! | VMFS5 | 140 | the entry `..`, in the top folder with the same descriptor | real images |
//! | VMFS6 | 0x3BC | u32 descriptor of the folder, in the entry for itself behind the header | real images |
//!
//! On all real images it is one file block near the start of the volume. What of it lies in other blocks is not found.

use super::address::FdAddress;
use super::descriptor::{Descriptor, Origin, Shape, Type};
use super::directory::is_head;
use super::volume::Volume;
use crate::layer::Trust;
use crate::num::{narrow, wide};
use crate::read::read_vec;
use byteorder::{ByteOrder, LittleEndian};

/// File blocks at the start of the volume that are looked at, as far as they are in use: 8 GiB.
const BLOCKS: u64 = 1 << 13;
/// Bytes that tell.
const HEAD: usize = 0x400;
/// Bytes of an entry on VMFS5.
const ENTRY: usize = 140;

/// The descriptor, made of the block that says that it is the top folder. Doubtful if several do.
pub(super) fn find(volume: &Volume, at: u64) -> Option<Descriptor> {
    let header = &volume.space.header;
    let blocks = volume.blocks()?;
    let size = 1_u64.checked_shl(header.file_shift)?;
    let (mut found, mut left): (Vec<u64>, u64) = (Vec::new(), BLOCKS);
    for cluster in 0..blocks.clusters().min(BLOCKS.div_ceil(blocks.per_cluster.max(1))) {
        let state = blocks.cluster(&volume.space, cluster).map(|state| state.free).unwrap_or_default();
        let first = cluster.saturating_mul(blocks.per_cluster);
        for (number, _) in (first..).zip(&state).filter(|(_, free)| !**free) {
            let Some(less) = left.checked_sub(1) else { break };
            left = less;
            let (bytes, _) = read_vec(volume.lv(), number.saturating_mul(size), HEAD);
            if is_top(&bytes, header.is_six()) {
                found.push(number);
            }
        }
    }
    let number = *found.first()?;
    let (raw, room, len) = if header.is_six() {
        let cluster = number.checked_div(blocks.per_cluster)?;
        let resource = number.checked_rem(blocks.per_cluster)?;
        let raw = 1 | cluster.checked_shl(15)? | resource.checked_shl(51)?;
        (raw, narrow(header.md).saturating_mul(2).saturating_sub(0x1600).max(2560), size)
    } else {
        (1 | number.checked_shl(6)?, 1024, entries_len(volume, number.saturating_mul(size), size))
    };
    let mut pointers = vec![0; room];
    let width = narrow(header.width.bytes());
    LittleEndian::write_uint(pointers.get_mut(..width)?, raw, width);
    Some(Descriptor {
        at,
        address: FdAddress::ROOT,
        generation: 0,
        links: 2,
        kind: Type::Folder,
        len,
        blocks: 1,
        modified: 0,
        changed: 0,
        accessed: 0,
        uid: 0,
        gid: 0,
        mode: 0o040_755,
        parent: None,
        shape: Shape::Mapped { levels: 0, shift: header.file_shift },
        pointers,
        pointers_at: at,
        content_at: at,
        content_len: 0,
        origin: Origin::Owners,
        trust: if found.len() == 1 { Trust::Inferred } else { Trust::Doubtful },
    })
}

fn is_top(bytes: &[u8], six: bool) -> bool {
    let root = |at: usize| {
        bytes
            .get(at..)
            .and_then(<[u8]>::first_chunk::<4>)
            .is_some_and(|raw| u32::from_le_bytes(*raw) == FdAddress::ROOT.0)
    };
    if six {
        return is_head(bytes) && root(0x3BC);
    }
    let named = |at: usize, name: &[u8]| bytes.get(at.saturating_add(12)..).is_some_and(|rest| rest.starts_with(name));
    root(4) && named(0, b".\0") && root(ENTRY.saturating_add(4)) && named(ENTRY, b"..\0")
}

/// How long the array of entries is that starts at `at`, in at most `size` bytes: up to the first that is none.
fn entries_len(volume: &Volume, at: u64, size: u64) -> u64 {
    let (bytes, _) = read_vec(volume.lv(), at, narrow(size.min(8 << 20)));
    let is_entry = |entry: &&[u8]| {
        let kind = entry.first_chunk::<4>().map(|raw| u32::from_le_bytes(*raw));
        entry.len() == ENTRY && kind.and_then(Type::of).is_some()
    };
    wide(bytes.chunks(ENTRY).take_while(is_entry).count()).saturating_mul(wide(ENTRY))
}
