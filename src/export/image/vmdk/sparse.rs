//! `monolithicSparse`: grains as they are, two copies of all tables before them.

use super::{
    DESCRIPTOR_AT, DESCRIPTOR_SECTORS, Descriptor, ENTRIES, GRAIN_SECTORS, Header, MAX_SECTORS, SECTOR, TABLE_SECTORS,
    number, read_numbers, tables, write_numbers,
};
use crate::export::image::Encoder;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use vdrecover_formats::num::narrow;

/// Newline test valid, redundant tables valid.
const FLAGS: u32 = 3;

/// A file that is being written. Both copies of a table are in the file when its last grain is.
#[derive(Debug)]
pub(crate) struct Sparse {
    name: String,
    capacity: u64,
    tables: u64,
    /// Sectors of the directories, the redundant one first; the tables are behind each.
    directories: [u64; 2],
    directory_sectors: u64,
    overhead: u64,
    open: Option<u64>,
    table: Vec<u32>,
    /// The next free sector.
    next: u64,
}

impl Sparse {
    /// For a disk of `len` bytes. `None` where its tables alone would be too large.
    pub(crate) fn new(len: u64, name: &str) -> Option<Self> {
        let capacity = len / SECTOR;
        let (tables, directory_sectors) = tables(capacity);
        let copy = directory_sectors + tables * TABLE_SECTORS;
        let first = DESCRIPTOR_AT + DESCRIPTOR_SECTORS;
        let overhead = (first + 2 * copy).next_multiple_of(GRAIN_SECTORS);
        (overhead < MAX_SECTORS).then(|| Self {
            name: name.to_owned(),
            capacity,
            tables,
            directories: [first, first + copy],
            directory_sectors,
            overhead,
            open: None,
            table: vec![0; narrow(ENTRIES)],
            next: overhead,
        })
    }

    pub(crate) fn resume(len: u64, name: &str, file: &File, marks: &[u64], done: u64) -> Option<Self> {
        let [next] = *marks else { return None };
        let mut new = Self::new(len, name)?;
        if next < new.next || file.metadata().ok()?.len() < next * SECTOR {
            return None;
        }
        new.next = next;
        file.set_len(next * SECTOR).ok()?;
        if done > 0 {
            let span = GRAIN_SECTORS * ENTRIES * SECTOR;
            let open = (done - 1) / span;
            new.table = read_numbers(file, new.table_at(0, open), narrow(ENTRIES))?;
            // What was laid out after the mark is laid out again.
            new.table.iter_mut().filter(|sector| u64::from(**sector) >= next).for_each(|sector| *sector = 0);
            new.open = Some(open);
        }
        Some(new)
    }

    fn table_at(&self, copy: usize, table: u64) -> u64 {
        (self.directories[copy] + self.directory_sectors + table * TABLE_SECTORS) * SECTOR
    }

    fn write_table(&self, file: &File) -> io::Result<()> {
        let Some(open) = self.open else { return Ok(()) };
        write_numbers(file, self.table_at(0, open), &self.table)?;
        write_numbers(file, self.table_at(1, open), &self.table)
    }
}

impl Encoder for Sparse {
    fn put(&mut self, file: &File, unit: u64, bytes: &[u8], _: bool) -> io::Result<()> {
        let table = unit / ENTRIES;
        if self.open != Some(table) {
            self.write_table(file)?;
            self.table.fill(0);
            self.open = Some(table);
        }
        number(self.next + GRAIN_SECTORS)?;
        self.table[narrow(unit % ENTRIES)] = number(self.next)?;
        file.write_all_at(bytes, self.next * SECTOR)?;
        self.next += GRAIN_SECTORS;
        Ok(())
    }

    fn mark(&mut self, file: &File) -> io::Result<Vec<u64>> {
        self.write_table(file)?;
        // Without a grain the file ends in its tables.
        if self.next == self.overhead {
            file.set_len(self.next * SECTOR)?;
        }
        Ok(vec![self.next])
    }

    fn finish(&mut self, file: &File, seed: &[u8; 32]) -> io::Result<u64> {
        self.write_table(file)?;
        for copy in [0, 1] {
            let places = (0..self.tables).map(|table| number(self.table_at(copy, table) / SECTOR));
            write_numbers(file, self.directories[copy] * SECTOR, &places.collect::<io::Result<Vec<_>>>()?)?;
        }
        let sectors = self.capacity;
        let descriptor = Descriptor { kind: "monolithicSparse", extent: "SPARSE", file: &self.name, sectors, seed };
        descriptor.embed(file, 0)?;
        let header = Header {
            version: 1,
            flags: FLAGS,
            capacity: self.capacity,
            redundant_at: self.directories[0],
            directory_at: self.directories[1],
            overhead: self.overhead,
            packed: false,
        };
        file.write_all_at(&header.bytes(), 0)?;
        Ok(self.next * SECTOR)
    }
}
