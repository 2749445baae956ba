//! VHD images (Microsoft's Virtual Hard Disk Image Format Specification 1.0), laid out as Hyper-V does: the footer's
//! copy, the dynamic header, the block table, the parent locators, blocks in the order of the disk, the footer.

use crate::Device;

const SECTOR: u64 = 512;

/// A VHD image to write.
#[derive(Clone, Debug)]
pub struct Vhd {
    /// The image's own id.
    pub id: [u8; 16],
    /// Bytes of a block, a power of two.
    pub block: u64,
    /// Seconds since the year 2000.
    pub time: u32,
}

/// The parent of a differencing image.
#[derive(Clone, Copy, Debug)]
pub struct Parent<'a> {
    /// Its disk.
    pub disk: &'a Device,
    /// Its id.
    pub id: [u8; 16],
    /// Its name, relative to the child.
    pub name: &'a str,
}

impl Default for Vhd {
    fn default() -> Self {
        Self { id: *b"vhd number one..", block: 2 << 20, time: 800_000_000 }
    }
}

impl Vhd {
    /// A fixed image: the disk, then the footer.
    #[must_use]
    pub fn fixed(&self, disk: &Device) -> Vec<u8> {
        let mut bytes = disk.read(0, disk.len() as usize);
        bytes.extend(self.footer(disk.len(), 2));
        bytes
    }

    /// A dynamic image: the blocks in which anything was written.
    #[must_use]
    pub fn dynamic(&self, disk: &Device) -> Vec<u8> {
        self.sparse(disk, None)
    }

    /// A differencing image: the sectors that differ from the parent's.
    #[must_use]
    pub fn differencing(&self, disk: &Device, parent: Parent<'_>) -> Vec<u8> {
        self.sparse(disk, Some(parent))
    }

    fn sparse(&self, disk: &Device, parent: Option<Parent<'_>>) -> Vec<u8> {
        let blocks = disk.len().div_ceil(self.block);
        let table_at = 3 * SECTOR;
        let table_len = (blocks * 4).next_multiple_of(SECTOR);
        let locator_at = table_at + table_len;
        let name: Vec<u8> =
            parent.map(|parent| parent.name.encode_utf16().flat_map(u16::to_le_bytes).collect()).unwrap_or_default();
        let empty = Device::new(disk.len());
        let below = parent.map_or(&empty, |parent| parent.disk);
        let mut image = self.footer(disk.len(), if parent.is_some() { 4 } else { 3 });
        let mut header = vec![0; 1024];
        put(&mut header, 0, b"cxsparse");
        put(&mut header, 8, &[0xFF; 8]);
        put(&mut header, 16, &table_at.to_be_bytes());
        put(&mut header, 24, &0x1_0000_u32.to_be_bytes());
        put(&mut header, 28, &(blocks as u32).to_be_bytes());
        put(&mut header, 32, &(self.block as u32).to_be_bytes());
        if let Some(parent) = parent {
            put(&mut header, 40, &parent.id);
            put(&mut header, 56, &(self.time - 5).to_be_bytes());
            let plain = parent.name.trim_start_matches(".\\");
            put(&mut header, 64, &plain.encode_utf16().flat_map(u16::to_be_bytes).collect::<Vec<u8>>());
            put(&mut header, 576, b"W2ru");
            put(&mut header, 580, &512_u32.to_be_bytes());
            put(&mut header, 584, &(name.len() as u32).to_be_bytes());
            put(&mut header, 592, &locator_at.to_be_bytes());
        }
        seal(&mut header, 36);
        image.extend(header);
        image.resize(locator_at as usize, 0xFF);
        if parent.is_some() {
            image.extend(name);
            image.resize((locator_at + SECTOR) as usize, 0);
        }
        for block in 0..blocks {
            let start = block * self.block;
            let changed: Vec<bool> = (start..start + self.block)
                .step_by(SECTOR as usize)
                .map(|at| at < disk.len() && disk.read(at, SECTOR as usize) != padded(below, at))
                .collect();
            if !changed.contains(&true) {
                continue;
            }
            let sector = image.len() as u64 / SECTOR;
            put(&mut image, (table_at + block * 4) as usize, &(sector as u32).to_be_bytes());
            let mut bitmap = vec![0_u8; (changed.len() / 8).next_multiple_of(SECTOR as usize)];
            let mut data = vec![0; self.block as usize];
            for (n, _) in changed.iter().enumerate().filter(|(_, changed)| **changed) {
                bitmap[n / 8] |= 0x80 >> (n % 8);
                let at = n * SECTOR as usize;
                put(&mut data, at, &disk.read(start + at as u64, SECTOR as usize));
            }
            image.extend(bitmap);
            image.extend(data);
        }
        let footer = image[..SECTOR as usize].to_vec();
        image.extend(footer);
        image
    }

    fn footer(&self, size: u64, kind: u32) -> Vec<u8> {
        let mut footer = vec![0; SECTOR as usize];
        put(&mut footer, 0, b"conectix");
        put(&mut footer, 8, &2_u32.to_be_bytes());
        put(&mut footer, 12, &0x1_0000_u32.to_be_bytes());
        put(&mut footer, 16, &(if kind == 2 { u64::MAX } else { SECTOR }).to_be_bytes());
        put(&mut footer, 24, &self.time.to_be_bytes());
        put(&mut footer, 28, b"win \x00\x0A\x00\x00Wi2k");
        put(&mut footer, 40, &size.to_be_bytes());
        put(&mut footer, 48, &size.to_be_bytes());
        put(&mut footer, 56, &[0, 120, 4, 17]);
        put(&mut footer, 60, &kind.to_be_bytes());
        put(&mut footer, 68, &self.id);
        seal(&mut footer, 64);
        footer
    }
}

fn put(bytes: &mut [u8], at: usize, what: &[u8]) {
    bytes[at..at + what.len()].copy_from_slice(what);
}

/// Puts the complement of the sum of all bytes at `at`, which is zero so far.
fn seal(bytes: &mut [u8], at: usize) {
    let sum: u32 = bytes.iter().map(|byte| u32::from(*byte)).sum();
    put(bytes, at, &(!sum).to_be_bytes());
}

/// A sector of a disk that may end before it.
fn padded(disk: &Device, at: u64) -> Vec<u8> {
    let len = disk.len().saturating_sub(at).min(SECTOR);
    let mut sector = if len > 0 { disk.read(at, len as usize) } else { Vec::new() };
    sector.resize(SECTOR as usize, 0);
    sector
}
