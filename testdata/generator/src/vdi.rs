//! VDI images (`VirtualBox` `VDICore.h`, version 1.1), laid out as `VirtualBox` does: header, block map and data each
//! from a MiB on, blocks in the order of the disk.

use crate::Device;

const MIB: u64 = 1 << 20;
/// Where the block map lies.
pub const MAP: u64 = MIB;
/// Where the blocks lie.
pub const DATA: u64 = 2 * MIB;
/// Bytes of a block.
pub const BLOCK: u64 = MIB;

/// What a VDI image is called, and what it is a child of.
#[derive(Clone, Copy, Debug)]
pub struct Ids {
    /// Of its creation.
    pub created: [u8; 16],
    /// Of its last change.
    pub modified: [u8; 16],
}

/// The image of a disk, or of the blocks that differ from its parent's. Blocks that are all zeros are marked as such
/// where the parent has something, and left out where it has nothing.
#[must_use]
pub fn write(disk: &Device, ids: Ids, parent: Option<(&Device, Ids)>) -> Vec<u8> {
    let blocks = disk.len().div_ceil(BLOCK);
    let mut image = vec![0; DATA as usize];
    put(&mut image, 0, b"<<< Oracle VM VirtualBox Disk Image >>>\n");
    let mut allocated = 0_u32;
    let empty = Device::new(disk.len());
    let below = parent.map_or(&empty, |(parent, _)| parent);
    let read = |device: &Device, block: u64| {
        let len = device.len().saturating_sub(block * BLOCK).min(BLOCK);
        let mut bytes = if len > 0 { device.read(block * BLOCK, len as usize) } else { Vec::new() };
        bytes.resize(BLOCK as usize, 0);
        bytes
    };
    for block in 0..blocks {
        let bytes = read(disk, block);
        let entry = if bytes == read(below, block) {
            u32::MAX
        } else if bytes.iter().all(|byte| *byte == 0) {
            u32::MAX - 1
        } else {
            image.extend(bytes);
            allocated += 1;
            allocated - 1
        };
        put(&mut image, MAP + block * 4, &entry.to_le_bytes());
    }
    put(&mut image, 64, &0xBEDA_107F_u32.to_le_bytes());
    put(&mut image, 68, &0x1_0001_u32.to_le_bytes());
    put(&mut image, 72, &400_u32.to_le_bytes());
    put(&mut image, 76, &(if parent.is_some() { 4_u32 } else { 1 }).to_le_bytes());
    put(&mut image, 340, &(MAP as u32).to_le_bytes());
    put(&mut image, 344, &(DATA as u32).to_le_bytes());
    put(&mut image, 360, &512_u32.to_le_bytes());
    put(&mut image, 368, &disk.len().to_le_bytes());
    put(&mut image, 376, &(BLOCK as u32).to_le_bytes());
    put(&mut image, 384, &(blocks as u32).to_le_bytes());
    put(&mut image, 388, &allocated.to_le_bytes());
    put(&mut image, 392, &ids.created);
    put(&mut image, 408, &ids.modified);
    if let Some((_, ids)) = parent {
        put(&mut image, 424, &ids.created);
        put(&mut image, 440, &ids.modified);
    }
    image
}

fn put(bytes: &mut [u8], at: u64, what: &[u8]) {
    bytes[at as usize..at as usize + what.len()].copy_from_slice(what);
}
