//! Writing OVA: a tar archive of a description, a manifest with the SHA-256 of each member, and one stream of VMDK a disk.
//!
//! Source: DMTF DSP0243, "Distribution as a single file", and POSIX `ustar`, with GNU's way to write a number of more than
//! 8 GiB. The description and the manifest come first and tell of what follows them: room is left for both. Numbers in
//! the description get blanks behind it where they are shorter than they could be.

use super::Encoder;
use super::ovf::Appliance;
use super::vmdk::{GRAIN, Stream};
use crate::digest::{Hasher, hex, sha256};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use vdrecover_formats::num::{narrow, wide};

const BLOCK: u64 = 512;

/// An archive that is being written. Its disks come one behind the other, each filled up to whole grains.
#[derive(Debug)]
pub(crate) struct Ova {
    appliance: Arc<Appliance>,
    /// Lengths of the members that are whole: disks.
    members: Vec<u64>,
    /// Where the first disk's header is.
    front: u64,
    /// The first grain of the disk that is being written, among those of all.
    first: u64,
    stream: Stream,
}

impl Ova {
    /// `None` where a disk is larger than a stream can be.
    pub(crate) fn new(appliance: Arc<Appliance>) -> Option<Self> {
        let front = BLOCK + description_room(&appliance) + BLOCK + blocks(wide(manifest_room(&appliance)));
        let stream = Stream::new(*appliance.disks.first()?, &appliance.disk_name(0), front + BLOCK)?;
        appliance.disks.iter().all(|len| Stream::new(*len, "", 0).is_some()).then_some(Self {
            appliance,
            members: Vec::new(),
            front,
            first: 0,
            stream,
        })
    }

    pub(crate) fn resume(appliance: Arc<Appliance>, file: &File, marks: &[u64]) -> Option<Self> {
        let (end, members) = marks.split_first()?;
        let mut new = Self::new(appliance)?;
        let number = members.len();
        new.members = members.to_vec();
        new.first = new.appliance.disks.get(..number)?.iter().map(|len| len.div_ceil(GRAIN)).sum();
        let (len, name) = (*new.appliance.disks.get(number)?, new.appliance.disk_name(number));
        new.stream = Stream::resume(len, &name, file, new.header_at(number) + BLOCK, *end)?;
        Some(new)
    }

    /// Where a disk's header is.
    fn header_at(&self, number: usize) -> u64 {
        self.members.iter().take(number).fold(self.front, |at, len| at + BLOCK + len)
    }

    /// Grains before the end of the disk that is being written.
    fn end(&self) -> u64 {
        self.first + self.appliance.disks.get(self.members.len()).map_or(0, |len| len.div_ceil(GRAIN))
    }

    /// Ends the disk, and starts the next one if there is one.
    fn end_disk(&mut self, file: &File) -> io::Result<()> {
        let number = self.members.len();
        let at = self.header_at(number);
        let name = self.appliance.disk_name(number);
        // Ids of streams that have no parents: any that differ.
        let end = self.stream.finish(file, &sha256(format!("{name}\n{}", self.appliance.disks[number]).as_bytes()))?;
        let len = end - at - BLOCK;
        file.write_all_at(&header(&name, len), at)?;
        self.first = self.end();
        self.members.push(len);
        if let Some(len) = self.appliance.disks.get(number + 1) {
            let stream = Stream::new(*len, &self.appliance.disk_name(number + 1), end + BLOCK);
            self.stream = stream.ok_or_else(|| io::Error::other("the disk is larger than a stream can be"))?;
        }
        Ok(())
    }
}

impl Encoder for Ova {
    fn put(&mut self, file: &File, unit: u64, bytes: &[u8], packed: bool) -> io::Result<()> {
        while unit >= self.end() && self.members.len() < self.appliance.disks.len() {
            self.end_disk(file)?;
        }
        self.stream.put(file, unit - self.first, bytes, packed)
    }

    fn mark(&mut self, file: &File) -> io::Result<Vec<u64>> {
        let mut marks = self.stream.mark(file)?;
        marks.extend(&self.members);
        Ok(marks)
    }

    fn finish(&mut self, file: &File, _: &[u8; 32]) -> io::Result<u64> {
        while self.members.len() < self.appliance.disks.len() {
            self.end_disk(file)?;
        }
        let stem = self.appliance.stem();
        let mut description = self.appliance.ovf(&self.members).into_bytes();
        description.resize(narrow(description_room(&self.appliance)), b'\n');
        file.write_all_at(&header(&format!("{stem}.ovf"), wide(description.len())), 0)?;
        file.write_all_at(&description, BLOCK)?;
        let mut manifest = line(&format!("{stem}.ovf"), &hex(&sha256(&description)));
        for (number, len) in self.members.iter().enumerate() {
            let hash = hash(file, self.header_at(number) + BLOCK, *len)?;
            manifest.push_str(&line(&self.appliance.disk_name(number), &hex(&hash)));
        }
        let at = BLOCK + wide(description.len());
        file.write_all_at(&header(&format!("{stem}.mf"), wide(manifest.len())), at)?;
        file.write_all_at(manifest.as_bytes(), at + BLOCK)?;
        // Two blocks of zeros end an archive.
        Ok(self.header_at(self.members.len()) + 2 * BLOCK)
    }
}

fn blocks(len: u64) -> u64 {
    len.next_multiple_of(BLOCK)
}

/// Room for a description with the longest lengths of members.
fn description_room(appliance: &Appliance) -> u64 {
    blocks(wide(appliance.ovf(&vec![u64::MAX; appliance.disks.len()]).len()))
}

fn manifest_room(appliance: &Appliance) -> usize {
    let digits = "0".repeat(64);
    let disks = (0..appliance.disks.len()).map(|number| line(&appliance.disk_name(number), &digits).len());
    line(&format!("{}.ovf", appliance.stem()), &digits).len() + disks.sum::<usize>()
}

fn line(name: &str, digits: &str) -> String {
    format!("SHA256({name})= {digits}\n")
}

fn hash(file: &File, at: u64, len: u64) -> io::Result<[u8; 32]> {
    let mut hasher = Hasher::default();
    let mut buf = vec![0; 1 << 20];
    let mut done = 0;
    while done < len {
        let step = narrow(len - done).min(buf.len());
        file.read_exact_at(&mut buf[..step], at + done)?;
        hasher.update(&buf[..step]);
        done += wide(step);
    }
    Ok(hasher.finish())
}

/// The header of a member.
fn header(name: &str, len: u64) -> [u8; 512] {
    let mut header = [0; 512];
    let mut put = |at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, name.as_bytes());
    put(100, b"0000644\0");
    put(108, b"0000000\0");
    put(116, b"0000000\0");
    if len < 1 << 33 {
        put(124, format!("{len:011o}\0").as_bytes());
    } else {
        put(124, &[0x80, 0, 0, 0]);
        put(128, &len.to_be_bytes());
    }
    // No time: the same input gives the same archive.
    put(136, b"00000000000\0");
    put(148, b"        ");
    put(156, b"0");
    put(257, b"ustar\x0000");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_holds_lengths_that_octal_digits_do_not() {
        assert_eq!(&header("a", 8 << 30)[124..136], &[0x80, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0]);
        assert_eq!(&header("a", (8 << 30) - 1)[124..136], b"77777777777\0");
    }
}
