//! Generated devices as layers, and what a mutation makes of them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use vdrecover_formats::{Fault, Layer, Place, Run, Trust, Why};
use vdrecover_testdata::Device;

pub const SECTOR: u64 = 512;

/// A device of which some sectors were overwritten, some can't be read, and the end may lie elsewhere.
#[derive(Clone)]
pub struct Image {
    base: Arc<Device>,
    len: u64,
    sectors: BTreeMap<u64, [u8; 512]>,
    bad: BTreeSet<u64>,
}

impl fmt::Debug for Image {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Image({} bytes, {} sectors changed)", self.len, self.sectors.len())
    }
}

impl Image {
    pub fn new(base: &Arc<Device>) -> Self {
        Self { base: base.clone(), len: base.len(), sectors: BTreeMap::new(), bad: BTreeSet::new() }
    }

    /// A sector, with zeros behind the end of the device.
    pub fn sector(&self, number: u64) -> [u8; 512] {
        if let Some(bytes) = self.sectors.get(&number) {
            return *bytes;
        }
        let mut sector = [0; 512];
        let at = number * SECTOR;
        let len = self.base.len().saturating_sub(at).min(SECTOR) as usize;
        if len > 0 {
            sector[..len].copy_from_slice(&self.base.read(at, len));
        }
        sector
    }

    pub fn set_sector(&mut self, number: u64, bytes: &[u8; 512]) {
        self.sectors.insert(number, *bytes);
    }

    pub fn get(&self, at: u64, len: usize) -> Vec<u8> {
        (at..at + len as u64).map(|at| self.sector(at / SECTOR)[(at % SECTOR) as usize]).collect()
    }

    pub fn put(&mut self, at: u64, bytes: &[u8]) {
        for (at, byte) in (at..).zip(bytes) {
            let mut sector = self.sector(at / SECTOR);
            sector[(at % SECTOR) as usize] = *byte;
            self.sectors.insert(at / SECTOR, sector);
        }
    }

    pub fn lose_sector(&mut self, number: u64) {
        self.bad.insert(number);
    }

    pub fn set_len(&mut self, len: u64) {
        self.len = len;
    }
}

impl Layer for Image {
    fn len(&self) -> u64 {
        self.len
    }

    fn run(&self, at: u64, want: u64) -> Run<'_> {
        match self.bad.range(at / SECTOR..).next() {
            Some(bad) if *bad == at / SECTOR => Run::lost(want.min(SECTOR - at % SECTOR), Why::Unreadable, at),
            Some(bad) => Run::sound(want.min(bad * SECTOR - at), Place::Own),
            None => Run::sound(want, Place::Own),
        }
    }

    fn fetch(&self, at: u64, buf: &mut [u8]) -> Result<Trust, Fault> {
        buf.fill(0);
        let end = at + buf.len() as u64;
        let len = self.base.len().saturating_sub(at).min(buf.len() as u64) as usize;
        if len > 0 {
            buf[..len].copy_from_slice(&self.base.read(at, len));
        }
        for (number, bytes) in self.sectors.range(at / SECTOR..end.div_ceil(SECTOR)) {
            let start = number * SECTOR;
            let (from, to) = (start.max(at), (start + SECTOR).min(end));
            buf[(from - at) as usize..(to - at) as usize]
                .copy_from_slice(&bytes[(from - start) as usize..(to - start) as usize]);
        }
        Ok(Trust::Sound)
    }
}
