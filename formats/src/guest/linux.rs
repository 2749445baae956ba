//! What Linux guests have: ext, XFS, Btrfs, swap, LVM2.

use super::{Anchor, SECTOR, Sort, be, has, label, le};
use crate::layer::Layer;
use crate::read::read_vec;

const INCOMPAT_META_BG: u64 = 0x10;
const INCOMPAT_64BIT: u64 = 0x80;

/// What a superblock of ext says of its shape.
struct Ext {
    block: u64,
    blocks: u64,
    per_group: u64,
    first: u64,
    group: u64,
    incompat: u64,
}

fn ext_shape(bytes: &[u8]) -> Option<Ext> {
    let block = 1024_u64.checked_shl(u32::try_from(le(bytes, 0x18, 4)).ok().filter(|shift| *shift <= 6)?)?;
    let incompat = le(bytes, 0x60, 4);
    let high = if incompat & INCOMPAT_64BIT == 0 { 0 } else { le(bytes, 0x150, 4) };
    let blocks = high << 32 | le(bytes, 0x04, 4);
    let (per_group, first, group) = (le(bytes, 0x20, 4), le(bytes, 0x14, 4), le(bytes, 0x5A, 2));
    let (inodes, inodes_per_group) = (le(bytes, 0, 4), le(bytes, 0x28, 4));
    let groups = blocks.checked_sub(first)?.div_ceil(per_group.max(1));
    let sound = per_group > 0
        && per_group <= block.saturating_mul(8)
        && first == u64::from(block == 1024)
        && group < groups
        && blocks < 1 << 48
        && inodes_per_group > 0
        && inodes_per_group <= block.saturating_mul(8)
        && inodes <= groups.saturating_mul(inodes_per_group)
        && inodes > 0;
    sound.then_some(Ext { block, blocks, per_group, first, group, incompat })
}

/// Whether a superblock starts here, as far as one sector tells.
pub(super) fn is_ext(bytes: &[u8]) -> bool {
    ext_shape(bytes).is_some()
}

pub(super) fn ext(layer: &dyn Layer, bytes: &[u8], at: u64) -> Option<Anchor> {
    let Ext { block, blocks, per_group, first, group, incompat } = ext_shape(bytes)?;
    let number = group.checked_mul(per_group)?.checked_add(first)?;
    let offset = if group == 0 { 1024 } else { number.checked_mul(block)? };
    // The journal has copies of superblocks, but with what else was written beside them: behind the one of a group
    // come the descriptors of all groups.
    let next = if group == 0 && block > 1024 { block.saturating_sub(1024) } else { block };
    let (descriptors, seen) = read_vec(layer, at.checked_add(next)?, 32);
    let places = [0, 4, 8].map(|at| le(&descriptors, at, 4));
    let [a, b, c] = places;
    let known = places.iter().all(|place| *place != 0 && *place < blocks) && a != b && b != c && a != c;
    if incompat & INCOMPAT_META_BG == 0 && !(seen.is_whole() && known) {
        return None;
    }
    let len = blocks.checked_mul(block)?;
    let mut anchor = Anchor::new(at, Sort::Ext, bytes.get(0x68..0x78)?, len);
    anchor.offsets.push(offset);
    anchor.len = Some(len);
    anchor.label = label(bytes, 0x78, 16);
    (anchor.of.id != [0; 16]).then_some(anchor)
}

pub(super) fn xfs(layer: &dyn Layer, bytes: &[u8], at: u64) -> Option<Anchor> {
    let (block, blocks) = (be(bytes, 4, 4), be(bytes, 8, 8));
    let (ag_blocks, ags, sector) = (be(bytes, 84, 4), be(bytes, 88, 4), be(bytes, 102, 2));
    let sound = block.is_power_of_two()
        && (512..=65536).contains(&block)
        && sector.is_power_of_two()
        && (512..=32768).contains(&sector)
        && ag_blocks > 0
        && ags > 0
        && blocks <= ag_blocks.saturating_mul(ags)
        && blocks > ag_blocks.saturating_mul(ags.saturating_sub(1));
    if !sound {
        return None;
    }
    // The superblock does not say whose copy it is; the AGF in the next sector does.
    let (agf, seen) = read_vec(layer, at.checked_add(sector)?, 512);
    let (number, len) = (be(&agf, 8, 4), be(&agf, 12, 4));
    if !seen.is_whole() || !has(&agf, 0, b"XAGF") || be(&agf, 4, 4) != 1 || number >= ags || len > ag_blocks {
        return None;
    }
    let bytes_len = blocks.checked_mul(block)?;
    let mut anchor = Anchor::new(at, Sort::Xfs, bytes.get(32..48)?, bytes_len);
    anchor.offsets.push(number.checked_mul(ag_blocks)?.checked_mul(block)?);
    anchor.len = Some(bytes_len);
    anchor.label = label(bytes, 108, 12);
    (anchor.of.id != [0; 16]).then_some(anchor)
}

pub(super) fn btrfs(bytes: &[u8], at: u64) -> Option<Anchor> {
    /// Where the superblock and its copies lie on every device.
    const PLACES: [u64; 3] = [64 << 10, 64 << 20, 256 << 30];
    let (own, kind, devices) = (le(bytes, 0x30, 8), le(bytes, 0xC4, 2), le(bytes, 0x88, 8));
    let len = le(bytes, 0xD1, 8);
    let sum = u64::from(crc32c::crc32c(bytes.get(0x20..4096)?));
    // Other kinds of checksum than CRC-32C have more bytes; then the rest has to do.
    let sound = kind != 0 && kind <= 3 || sum == le(bytes, 0, 4);
    if !sound || !PLACES.contains(&own) || devices == 0 || len <= own || len >= 1 << 60 {
        return None;
    }
    let mut anchor = Anchor::new(at, Sort::Btrfs, bytes.get(0x10B..0x11B)?, len);
    anchor.offsets.push(own);
    anchor.len = Some(len);
    anchor.label = label(bytes, 0x12B, 256);
    (anchor.of.id != [0; 16]).then_some(anchor)
}

pub(super) fn swap(bytes: &[u8], at: u64) -> Option<Anchor> {
    let (version, last) = (le(bytes, 1024, 4), le(bytes, 1028, 4));
    if version != 1 || last == 0 {
        return None;
    }
    let len = last.saturating_add(1).saturating_mul(4096);
    let mut anchor = Anchor::new(at, Sort::Swap, bytes.get(1036..1052)?, len);
    anchor.offsets.push(0);
    anchor.len = Some(len);
    anchor.label = label(bytes, 1052, 16);
    (anchor.of.id != [0; 16]).then_some(anchor)
}

pub(super) fn lvm(bytes: &[u8], at: u64) -> Option<Anchor> {
    let (sector, offset) = (le(bytes, 8, 8), usize::try_from(le(bytes, 20, 4)).ok()?);
    // A label lies in one of the first four sectors.
    if sector > 3 || !has(bytes, 24, b"LVM2 001") || offset > 400 {
        return None;
    }
    let id = bytes.get(offset..offset.saturating_add(32))?;
    if !id.iter().all(u8::is_ascii_alphanumeric) {
        return None;
    }
    let len = le(bytes, offset.saturating_add(32), 8);
    let mut anchor = Anchor::new(at, Sort::Lvm, id, len);
    anchor.offsets.push(sector.saturating_mul(SECTOR));
    anchor.len = Some(len).filter(|len| *len != 0);
    Some(anchor)
}
