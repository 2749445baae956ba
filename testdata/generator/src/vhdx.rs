//! VHDX images (Microsoft's \[MS-VHDX\]), laid out as Hyper-V does: headers, log, metadata, block table, blocks.

use crate::Device;
use std::ops::Range;

const MIB: u64 = 1 << 20;
const LOG: Range<u64> = MIB..2 * MIB;
const METADATA: u64 = 2 * MIB;
/// Where the block table lies.
pub const BAT: u64 = 3 * MIB;

/// A VHDX image to write.
#[derive(Clone, Debug)]
pub struct Vhdx {
    /// Names the content: children refer to it.
    pub data_write: [u8; 16],
    /// Bytes of a block: 1 MiB to 256 MiB, a power of two.
    pub block: u64,
    /// 512 or 4096.
    pub sector: u64,
    /// Blocks with a state of their own, whatever the disk has there: 1 undefined, 2 zero, 3 unmapped.
    pub states: Vec<(u64, u64)>,
    /// Whether the block table is in the log only.
    pub dirty: bool,
}

/// The parent of a differencing image.
#[derive(Clone, Copy, Debug)]
pub struct Parent<'a> {
    /// Its disk.
    pub disk: &'a Device,
    /// What names its content.
    pub data_write: [u8; 16],
    /// Its name, relative to the child.
    pub name: &'a str,
}

impl Default for Vhdx {
    fn default() -> Self {
        Self { data_write: *b"vhdx data write.", block: MIB, sector: 512, states: Vec::new(), dirty: false }
    }
}

impl Vhdx {
    /// The image of a disk, or of what differs from its parent.
    #[must_use]
    pub fn write(&self, disk: &Device, parent: Option<Parent<'_>>) -> Vec<u8> {
        let blocks = disk.len().div_ceil(self.block);
        let chunk = (1 << 23) * self.sector / self.block;
        let chunks = blocks.div_ceil(chunk);
        let bat_len = ((blocks + chunks) * 8).next_multiple_of(MIB);
        let mut image = vec![0; (BAT + bat_len) as usize];
        put(&mut image, 0, b"vhdxfile");
        let creator: Vec<u8> = "vdrecover".encode_utf16().flat_map(u16::to_le_bytes).collect();
        put(&mut image, 8, &creator);
        for (n, at) in [64 << 10, 128 << 10].into_iter().enumerate() {
            put(&mut image, at, &self.header(7 + n as u64));
        }
        let regions = regions(bat_len as u32);
        put(&mut image, 192 << 10, &regions);
        put(&mut image, 256 << 10, &regions);
        put(&mut image, METADATA, &self.metadata(disk.len(), parent));
        let bat = self.data(&mut image, disk, parent, chunk);
        for (index, entry) in bat {
            put(&mut image, BAT + index * 8, &entry.to_le_bytes());
        }
        if self.dirty {
            hide_in_log(&mut image);
        }
        image
    }

    /// Appends the blocks, and tells the entries of the table.
    fn data(&self, image: &mut Vec<u8>, disk: &Device, parent: Option<Parent<'_>>, chunk: u64) -> Vec<(u64, u64)> {
        let blocks = disk.len().div_ceil(self.block);
        let empty = Device::new(disk.len());
        let below = parent.map_or(&empty, |parent| parent.disk);
        let mut bat = Vec::new();
        let mut bitmaps: Vec<Vec<u8>> = vec![vec![0; MIB as usize]; blocks.div_ceil(chunk) as usize];
        for block in 0..blocks {
            let index = block + block / chunk;
            if let Some((_, state)) = self.states.iter().find(|(own, _)| *own == block) {
                bat.push((index, *state));
                continue;
            }
            let start = block * self.block;
            let end = (start + self.block).min(disk.len());
            let read = |device: &Device, at: u64| {
                let len = device.len().saturating_sub(at).min(self.sector);
                let mut sector = if len > 0 { device.read(at, len as usize) } else { Vec::new() };
                sector.resize(self.sector as usize, 0);
                sector
            };
            let sectors = (start..end).step_by(self.sector as usize);
            let changed: Vec<u64> = sectors.clone().filter(|at| read(disk, *at) != read(below, *at)).collect();
            if changed.is_empty() {
                continue;
            }
            let at = image.len() as u64;
            let mut data = vec![0; self.block as usize];
            for sector in &changed {
                put(&mut data, sector - start, &read(disk, *sector));
            }
            image.extend(data);
            let is_part = parent.is_some() && changed.len() < sectors.count();
            bat.push((index, at | if is_part { 7 } else { 6 }));
            for sector in changed.iter().filter(|_| is_part) {
                let bit = (sector / self.sector) % (1 << 23);
                bitmaps[(block / chunk) as usize][(bit / 8) as usize] |= 1 << (bit % 8);
            }
        }
        for (n, bitmap) in (0..).zip(bitmaps) {
            if bitmap.iter().any(|byte| *byte != 0) {
                bat.push(((n + 1) * chunk + n, image.len() as u64 | 6));
                image.extend(bitmap);
            }
        }
        bat
    }

    fn header(&self, sequence: u64) -> Vec<u8> {
        let mut header = vec![0; 4096];
        put(&mut header, 0, b"head");
        put(&mut header, 8, &sequence.to_le_bytes());
        put(&mut header, 16, b"file write guid.");
        put(&mut header, 32, &self.data_write);
        if self.dirty {
            put(&mut header, 48, &LOG_ID);
        }
        put(&mut header, 66, &1_u16.to_le_bytes());
        put(&mut header, 68, &((LOG.end - LOG.start) as u32).to_le_bytes());
        put(&mut header, 72, &LOG.start.to_le_bytes());
        seal(&mut header);
        header
    }

    fn metadata(&self, size: u64, parent: Option<Parent<'_>>) -> Vec<u8> {
        let mut region = vec![0; MIB as usize];
        let flags = if parent.is_some() { 2_u32 } else { 0 };
        let mut items: Vec<([u8; 16], u32, Vec<u8>)> = vec![
            (
                guid(0xCAA1_6737, 0xFA36, 0x4D43, 0xB3B6_33F0_AA44_E76B),
                4,
                [(self.block as u32).to_le_bytes(), flags.to_le_bytes()].concat(),
            ),
            (guid(0x2FA5_4224, 0xCD1B, 0x4876, 0xB211_5DBE_D83B_F4B8), 6, size.to_le_bytes().to_vec()),
            (guid(0xBECA_12AB, 0xB2E6, 0x4523, 0x93EF_C309_E000_C746), 6, b"virtual disk id.".to_vec()),
            (guid(0x8141_BF1D, 0xA96F, 0x4709, 0xBA47_F233_A8FA_AB5F), 6, (self.sector as u32).to_le_bytes().to_vec()),
            (guid(0xCDA3_48C7, 0x445D, 0x4471, 0x9CC9_E988_5251_C556), 6, 4096_u32.to_le_bytes().to_vec()),
        ];
        if let Some(parent) = parent {
            items.push((guid(0xA8D3_5F2D, 0xB30B, 0x454D, 0xABF7_D3D8_4834_AB0C), 4, locator(parent)));
        }
        put(&mut region, 0, b"metadata");
        put(&mut region, 10, &(items.len() as u16).to_le_bytes());
        let mut at = 64 << 10;
        for (n, (id, flags, bytes)) in (0..).zip(items) {
            let entry = 32 + n * 32;
            put(&mut region, entry, &id);
            put(&mut region, entry + 16, &(at as u32).to_le_bytes());
            put(&mut region, entry + 20, &(bytes.len() as u32).to_le_bytes());
            put(&mut region, entry + 24, &flags.to_le_bytes());
            put(&mut region, at, &bytes);
            at += bytes.len() as u64;
        }
        region
    }
}

const LOG_ID: [u8; 16] = *b"the log's id....";

/// Takes the first 8 KiB of the block table into the log, in two entries of which the second goes on at the
/// start of the log, and leaves garbage and zeros in the file.
fn hide_in_log(image: &mut [u8]) {
    let sectors: Vec<Vec<u8>> =
        (0..2).map(|n| image[(BAT + n * 4096) as usize..(BAT + (n + 1) * 4096) as usize].to_vec()).collect();
    let end = image.len() as u64;
    let len = LOG.end - LOG.start;
    let first_at = len - 3 * 4096;
    // The first entry clears the table, and writes its first sector wrong; the second writes both as they are.
    let wrong = vec![0xEE; 4096];
    let first = entry(11, first_at, end, Some((BAT, 8192)), &[(BAT, &wrong)]);
    let second = entry(12, first_at, end, None, &[(BAT, &sectors[0]), (BAT + 4096, &sectors[1])]);
    let mut at = first_at;
    for sector in first.chunks(4096).chain(second.chunks(4096)) {
        put(image, LOG.start + at, sector);
        at = (at + 4096) % len;
    }
    // An older entry, whole but of no use any more.
    let stale = entry(3, 16 << 12, end, Some((METADATA, 4096)), &[]);
    put(image, LOG.start + (16 << 12), &stale);
    image[BAT as usize..BAT as usize + 8192].fill(0);
}

/// An entry of the log.
fn entry(sequence: u64, tail: u64, file: u64, zero: Option<(u64, u64)>, data: &[(u64, &[u8])]) -> Vec<u8> {
    let mut bytes = vec![0; 4096 * (1 + data.len())];
    let len = bytes.len() as u32;
    put(&mut bytes, 0, b"loge");
    put(&mut bytes, 8, &len.to_le_bytes());
    put(&mut bytes, 12, &(tail as u32).to_le_bytes());
    put(&mut bytes, 16, &sequence.to_le_bytes());
    put(&mut bytes, 24, &((data.len() + usize::from(zero.is_some())) as u32).to_le_bytes());
    put(&mut bytes, 32, &LOG_ID);
    put(&mut bytes, 48, &file.to_le_bytes());
    put(&mut bytes, 56, &file.to_le_bytes());
    let mut at = 64;
    if let Some((from, len)) = zero {
        put(&mut bytes, at, b"zero");
        put(&mut bytes, at + 8, &len.to_le_bytes());
        put(&mut bytes, at + 16, &from.to_le_bytes());
        put(&mut bytes, at + 24, &sequence.to_le_bytes());
        at += 32;
    }
    for (n, (to, sector)) in (1..).zip(data) {
        put(&mut bytes, at, b"desc");
        put(&mut bytes, at + 4, &sector[4092..]);
        put(&mut bytes, at + 8, &sector[..8]);
        put(&mut bytes, at + 16, &to.to_le_bytes());
        put(&mut bytes, at + 24, &sequence.to_le_bytes());
        at += 32;
        let place = n * 4096;
        put(&mut bytes, place, b"data");
        put(&mut bytes, place + 4, &((sequence >> 32) as u32).to_le_bytes());
        put(&mut bytes, place + 8, &sector[8..4092]);
        put(&mut bytes, place + 4092, &(sequence as u32).to_le_bytes());
    }
    seal(&mut bytes);
    bytes
}

fn regions(bat_len: u32) -> Vec<u8> {
    let mut table = vec![0; 64 << 10];
    put(&mut table, 0, b"regi");
    put(&mut table, 8, &2_u32.to_le_bytes());
    let rows = [
        (guid(0x2DC2_7766, 0xF623, 0x4200, 0x9D64_115E_9BFD_4A08), BAT, bat_len),
        (guid(0x8B7C_A206, 0x4790, 0x4B9A, 0xB8FE_575F_050F_886E), METADATA, MIB as u32),
    ];
    for (n, (id, at, len)) in (0..).zip(rows) {
        put(&mut table, 16 + n * 32, &id);
        put(&mut table, 32 + n * 32, &at.to_le_bytes());
        put(&mut table, 40 + n * 32, &len.to_le_bytes());
        put(&mut table, 44 + n * 32, &1_u32.to_le_bytes());
    }
    seal(&mut table);
    table
}

fn locator(parent: Parent<'_>) -> Vec<u8> {
    let hex = |bytes: &[u8]| crate::hex(bytes);
    let mut id = parent.data_write;
    id[..4].reverse();
    id[4..6].reverse();
    id[6..8].reverse();
    let linkage =
        format!("{{{}-{}-{}-{}-{}}}", hex(&id[..4]), hex(&id[4..6]), hex(&id[6..8]), hex(&id[8..10]), hex(&id[10..]));
    let pairs = [("parent_linkage", linkage.as_str()), ("relative_path", parent.name)];
    let mut bytes = guid(0xB04A_EFB7, 0xD19E, 0x4A81, 0xB789_25B8_E944_5913).to_vec();
    bytes.extend([0, 0]);
    bytes.extend((pairs.len() as u16).to_le_bytes());
    let mut texts = Vec::new();
    let base = 20 + pairs.len() * 12;
    for (key, value) in pairs {
        let wide = |text: &str| text.encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<u8>>();
        let (key, value) = (wide(key), wide(value));
        bytes.extend(((base + texts.len()) as u32).to_le_bytes());
        bytes.extend(((base + texts.len() + key.len()) as u32).to_le_bytes());
        bytes.extend((key.len() as u16).to_le_bytes());
        bytes.extend((value.len() as u16).to_le_bytes());
        texts.extend(key);
        texts.extend(value);
    }
    bytes.extend(texts);
    bytes
}

/// A GUID as it lies on disk: its first three groups are little-endian.
fn guid(a: u32, b: u16, c: u16, rest: u64) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..4].copy_from_slice(&a.to_le_bytes());
    bytes[4..6].copy_from_slice(&b.to_le_bytes());
    bytes[6..8].copy_from_slice(&c.to_le_bytes());
    bytes[8..].copy_from_slice(&rest.to_be_bytes());
    bytes
}

fn put(bytes: &mut [u8], at: u64, what: &[u8]) {
    bytes[at as usize..at as usize + what.len()].copy_from_slice(what);
}

/// Puts the CRC-32C of all bytes at 4, which is zero so far.
pub fn seal(bytes: &mut [u8]) {
    bytes[4..8].fill(0);
    let crc = !bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0x82F6_3B78 } else { crc >> 1 })
    });
    bytes[4..8].copy_from_slice(&crc.to_le_bytes());
}
