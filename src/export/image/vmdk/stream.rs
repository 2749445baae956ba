//! `streamOptimized`: packed grains one behind the other, each with its place on the disk, a table behind those that it
//! lists, the directory and a copy of the header at the end.

use super::{
    DESCRIPTOR_AT, DESCRIPTOR_SECTORS, Descriptor, ENTRIES, GRAIN_SECTORS, Header, MAX_SECTORS, SECTOR, TABLE_SECTORS,
    number, tables, write_numbers,
};
use crate::export::image::Encoder;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use vdrecover_formats::num::{narrow, wide};

/// Newline test valid, grains packed, markers before everything.
const FLAGS: u32 = 0x3_0001;
/// Where the header says that the footer has the directory.
const AT_END: u64 = u64::MAX;
/// Sectors before the first grain.
const OVERHEAD: u64 = 128;
/// Bytes before a packed grain: its place, its length.
const RECORD: u64 = 12;
const TABLE: u32 = 1;
const DIRECTORY: u32 = 2;
const FOOTER: u32 = 3;
const END: u32 = 0;

/// A stream that is being written, at `base` of a file. It says itself how far it is: to go on, its records are walked.
#[derive(Debug)]
pub(crate) struct Stream {
    name: String,
    base: u64,
    capacity: u64,
    directory: Vec<u32>,
    open: Option<u64>,
    table: Vec<u32>,
    /// The next free sector.
    next: u64,
}

impl Stream {
    /// For a disk of `len` bytes. `None` where its directory alone would be too large.
    pub(crate) fn new(len: u64, name: &str, base: u64) -> Option<Self> {
        const { assert!(DESCRIPTOR_AT + DESCRIPTOR_SECTORS <= OVERHEAD) };
        let capacity = len / SECTOR;
        let (tables, directory_sectors) = tables(capacity);
        (directory_sectors < MAX_SECTORS).then(|| Self {
            name: name.to_owned(),
            base,
            capacity,
            directory: vec![0; narrow(directory_sectors * SECTOR / 4).max(narrow(tables))],
            open: None,
            table: vec![0; narrow(ENTRIES)],
            next: OVERHEAD,
        })
    }

    /// Goes on with a stream of which `end` sectors are there.
    pub(crate) fn resume(len: u64, name: &str, file: &File, base: u64, end: u64) -> Option<Self> {
        let mut new = Self::new(len, name, base)?;
        if end < new.next || end > new.next && file.metadata().ok()?.len() < base + end * SECTOR {
            return None;
        }
        while new.next < end {
            let mut head = [0; 16];
            file.read_exact_at(&mut head, base + new.next * SECTOR).ok()?;
            let value = u64::from_le_bytes(head[..8].try_into().ok()?);
            let size = u32::from_le_bytes(head[8..12].try_into().ok()?);
            let kind = u32::from_le_bytes(head[12..].try_into().ok()?);
            if size > 0 {
                let unit = value / GRAIN_SECTORS;
                new.open = Some(unit / ENTRIES);
                new.table[narrow(unit % ENTRIES)] = number(new.next).ok()?;
                new.next += (RECORD + u64::from(size)).div_ceil(SECTOR);
            } else if kind == TABLE && value == TABLE_SECTORS {
                *new.directory.get_mut(narrow(new.open.take()?))? = number(new.next + 1).ok()?;
                new.table.fill(0);
                new.next += 1 + value;
            } else {
                return None;
            }
        }
        file.set_len(base + end * SECTOR).ok()?;
        (new.next == end).then_some(new)
    }

    fn marker(&mut self, file: &File, value: u64, kind: u32) -> io::Result<()> {
        let mut bytes = vec![0; narrow(SECTOR)];
        bytes[..8].copy_from_slice(&value.to_le_bytes());
        bytes[12..16].copy_from_slice(&kind.to_le_bytes());
        file.write_all_at(&bytes, self.base + self.next * SECTOR)?;
        self.next += 1;
        Ok(())
    }

    fn write_table(&mut self, file: &File) -> io::Result<()> {
        let Some(open) = self.open.take() else { return Ok(()) };
        self.marker(file, TABLE_SECTORS, TABLE)?;
        self.directory[narrow(open)] = number(self.next)?;
        write_numbers(file, self.base + self.next * SECTOR, &self.table)?;
        self.next += TABLE_SECTORS;
        self.table.fill(0);
        Ok(())
    }
}

impl Encoder for Stream {
    fn put(&mut self, file: &File, unit: u64, bytes: &[u8], packed: bool) -> io::Result<()> {
        if !packed {
            return Err(io::Error::other("a grain of a stream was not packed"));
        }
        let table = unit / ENTRIES;
        if self.open != Some(table) {
            self.write_table(file)?;
            self.open = Some(table);
        }
        self.table[narrow(unit % ENTRIES)] = number(self.next)?;
        let size = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        let sectors = (RECORD + wide(bytes.len())).div_ceil(SECTOR);
        let mut record = Vec::with_capacity(narrow(sectors * SECTOR));
        record.extend((unit * GRAIN_SECTORS).to_le_bytes());
        record.extend(size.to_le_bytes());
        record.extend_from_slice(bytes);
        record.resize(narrow(sectors * SECTOR), 0);
        file.write_all_at(&record, self.base + self.next * SECTOR)?;
        self.next += sectors;
        Ok(())
    }

    fn mark(&mut self, _: &File) -> io::Result<Vec<u64>> {
        Ok(vec![self.next])
    }

    fn finish(&mut self, file: &File, seed: &[u8; 32]) -> io::Result<u64> {
        self.write_table(file)?;
        let sectors = wide(self.directory.len()) * 4 / SECTOR;
        self.marker(file, sectors, DIRECTORY)?;
        let directory_at = self.next;
        number(directory_at + sectors)?;
        write_numbers(file, self.base + directory_at * SECTOR, &self.directory)?;
        self.next += sectors;
        self.marker(file, 1, FOOTER)?;
        let header = |directory_at| Header {
            version: 3,
            flags: FLAGS,
            capacity: self.capacity,
            redundant_at: 0,
            directory_at,
            overhead: OVERHEAD,
            packed: true,
        };
        file.write_all_at(&header(directory_at).bytes(), self.base + self.next * SECTOR)?;
        let first = header(AT_END).bytes();
        self.next += 1;
        self.marker(file, 0, END)?;
        let descriptor =
            Descriptor { kind: "streamOptimized", extent: "SPARSE", file: &self.name, sectors: self.capacity, seed };
        descriptor.embed(file, self.base)?;
        file.write_all_at(&first, self.base)?;
        Ok(self.base + self.next * SECTOR)
    }
}
