//! Writing QCOW2: version 3, clusters of 64 KiB, packed or plain, no backing file, no snapshots.
//!
//! Source: QEMU's `docs/interop/qcow2.rst`, and what `qemu-img check` accepts. Everything is laid out in the order in
//! which it comes; only the first clusters have a fixed place:
//!
//! | cluster | holds |
//! | --- | --- |
//! | 0 | header |
//! | 1 | counters of the first 32768 clusters of the file |
//! | 2 | table of the blocks of counters, as long as the largest file could need |
//! | behind | L1 table |
//! | n × 32768 | counters of as many clusters from here on |
//!
//! A table has its cluster before its first entry, so that the file says itself how far it is: to go on, a writer needs
//! to know the next free cluster and where packed clusters may be appended, and nothing that grows with the disk.

use super::Encoder;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use vdrecover_formats::num::{narrow, wide};

/// Bytes in a cluster.
pub(crate) const CLUSTER: u64 = 1 << CLUSTER_BITS;
const CLUSTER_BITS: u32 = 16;
/// Entries of 8 bytes in a cluster: of the L1 table, of an L2 table, of the table of counters.
const ENTRIES: u64 = CLUSTER / 8;
/// Counters of 2 bytes in a cluster.
const RANGE: u64 = CLUSTER / 2;
/// QEMU opens no larger L1 table.
const MAX_L1: u64 = (32 << 20) / 8;
/// Exactly one entry refers to it: it may be written in place.
const COPIED: u64 = 1 << 63;
const COMPRESSED: u64 = 1 << 62;
const OFFSET: u64 = 0x00FF_FFFF_FFFF_FE00;
/// Bits of the offset in the entry of a packed cluster; the number of further sectors is above them.
const PACKED_OFFSET_BITS: u32 = 62 - (CLUSTER_BITS - 8);
const SECTOR: u64 = 512;
const COUNTERS_AT: u64 = 1;
const DIRECTORY_AT: u64 = 2;

/// A QCOW2 file that is being written.
#[derive(Debug)]
pub(crate) struct Qcow2 {
    len: u64,
    zstd: bool,
    l1: Vec<u64>,
    l1_at: u64,
    /// The L2 table that is being filled, and which one it is.
    l2: Vec<u64>,
    open: Option<usize>,
    /// L1 entries from here on are not in the file yet.
    unwritten: usize,
    /// Counters of the clusters of the last range.
    counters: Vec<u16>,
    range: u64,
    /// The next free cluster.
    next: u64,
    /// Room for packed clusters behind the last one.
    tail: std::ops::Range<u64>,
}

impl Qcow2 {
    /// For a disk of `len` bytes. `None` where QEMU would not open it.
    pub(crate) fn new(len: u64, zstd: bool) -> Option<Self> {
        let units = len.div_ceil(CLUSTER);
        let tables = units.div_ceil(ENTRIES);
        if tables > MAX_L1 {
            return None;
        }
        let l1_clusters = tables.div_ceil(ENTRIES);
        // Each unit and each L2 table has one cluster at most, and each range its counters; one more for all that is
        // rounded.
        let ranges = (units + tables + l1_clusters).div_ceil(RANGE - 1) + 2;
        let directory = ranges.div_ceil(ENTRIES);
        let l1_at = DIRECTORY_AT + directory;
        let next = l1_at + l1_clusters;
        let mut counters = vec![0; narrow(RANGE)];
        counters[..narrow(next)].fill(1);
        Some(Self {
            len,
            zstd,
            l1: vec![0; narrow(tables)],
            l1_at,
            l2: vec![0; narrow(ENTRIES)],
            open: None,
            unwritten: 0,
            counters,
            range: 0,
            next,
            tail: 0..0,
        })
    }

    /// Goes on with a file at what [`Encoder::mark`] said when everything before `done` was in it.
    pub(crate) fn resume(len: u64, zstd: bool, file: &File, marks: &[u64], done: u64) -> Option<Self> {
        let [next, tail_start, tail_end, shared] = *marks else { return None };
        let mut new = Self::new(len, zstd)?;
        if next < new.next || tail_start > tail_end || tail_end > next * CLUSTER {
            return None;
        }
        let count = new.l1.len();
        new.l1 = read_table(file, new.l1_at * CLUSTER, count)?;
        for entry in &mut new.l1 {
            // What was laid out after the mark is laid out again.
            if (*entry & OFFSET) / CLUSTER >= next {
                *entry = 0;
            }
        }
        new.open = new.l1.iter().rposition(|entry| *entry != 0);
        if let Some(open) = new.open {
            new.l2 = read_table(file, new.l1[open] & OFFSET, narrow(ENTRIES))?;
            let first = done.div_ceil(CLUSTER).saturating_sub(wide(open) * ENTRIES);
            new.l2.iter_mut().skip(narrow(first)).for_each(|entry| *entry = 0);
            new.unwritten = open;
        }
        new.next = next;
        new.range = (next - 1) / RANGE;
        let mut bytes = vec![0; narrow(CLUSTER)];
        file.read_exact_at(&mut bytes, counters_at(new.range)).ok()?;
        new.counters = bytes.chunks_exact(2).map(|two| u16::from_be_bytes([two[0], two[1]])).collect();
        let used = next - new.range * RANGE;
        new.counters.iter_mut().skip(narrow(used)).for_each(|counter| *counter = 0);
        new.tail = tail_start..tail_end;
        if !new.tail.is_empty() {
            let at = narrow(tail_start / CLUSTER % RANGE);
            new.counters[at] = u16::try_from(shared).ok()?;
            file.write_all_at(&vec![0; narrow(tail_end - tail_start)], tail_start).ok()?;
        }
        file.set_len(next * CLUSTER).ok()?;
        Some(new)
    }

    /// Takes a cluster, which is counted already.
    fn cluster(&mut self, file: &File) -> io::Result<u64> {
        if self.next.is_multiple_of(RANGE) {
            self.write_counters(file)?;
            self.range = self.next / RANGE;
            self.counters.fill(0);
            self.counters[0] = 1;
            // Its counter is written for good.
            self.tail = 0..0;
            self.next += 1;
        }
        let cluster = self.next;
        self.counters[narrow(cluster % RANGE)] = 1;
        self.next += 1;
        Ok(cluster)
    }

    /// Takes room for a packed cluster: behind the one before, as far as that goes.
    fn room(&mut self, file: &File, len: u64) -> io::Result<u64> {
        let mut fresh = None;
        if self.tail.end - self.tail.start < len {
            let cluster = self.cluster(file)?;
            if self.tail.is_empty() || self.tail.end != cluster * CLUSTER {
                self.tail.start = cluster * CLUSTER;
            }
            self.tail.end = (cluster + 1) * CLUSTER;
            fresh = Some(cluster);
        }
        let at = self.tail.start;
        self.tail.start += len;
        for cluster in at / CLUSTER..=(at + len - 1) / CLUSTER {
            if fresh != Some(cluster) {
                self.counters[narrow(cluster % RANGE)] += 1;
            }
        }
        Ok(at)
    }

    fn write_counters(&self, file: &File) -> io::Result<()> {
        let bytes: Vec<u8> = self.counters.iter().flat_map(|counter| counter.to_be_bytes()).collect();
        file.write_all_at(&bytes, counters_at(self.range))
    }

    fn write_l2(&self, file: &File) -> io::Result<()> {
        let Some(open) = self.open else { return Ok(()) };
        write_table(file, self.l1[open] & OFFSET, &self.l2)
    }

    fn write_l1(&mut self, file: &File) -> io::Result<()> {
        let end = self.open.map_or(0, |open| open + 1);
        let from = self.unwritten.min(end);
        write_table(file, self.l1_at * CLUSTER + wide(from) * 8, &self.l1[from..end])?;
        self.unwritten = end.saturating_sub(1);
        Ok(())
    }

    fn header(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(112);
        let directory = self.l1_at - DIRECTORY_AT;
        out.extend(b"QFI\xfb");
        out.extend(3_u32.to_be_bytes());
        // No backing file.
        out.extend([0; 12]);
        out.extend(CLUSTER_BITS.to_be_bytes());
        out.extend(self.len.to_be_bytes());
        // Not encrypted.
        out.extend([0; 4]);
        out.extend(u32::try_from(self.l1.len()).unwrap_or(u32::MAX).to_be_bytes());
        out.extend((self.l1_at * CLUSTER).to_be_bytes());
        out.extend((DIRECTORY_AT * CLUSTER).to_be_bytes());
        out.extend(u32::try_from(directory).unwrap_or(u32::MAX).to_be_bytes());
        // No snapshots.
        out.extend([0; 12]);
        // Incompatible: the type of packing has to be understood where it is not deflate.
        out.extend((u64::from(self.zstd) << 3).to_be_bytes());
        out.extend([0; 16]);
        // Counters of 1 << 4 bits.
        out.extend(4_u32.to_be_bytes());
        out.extend(112_u32.to_be_bytes());
        out.extend([u8::from(self.zstd), 0, 0, 0, 0, 0, 0, 0]);
        // No extensions.
        out.extend([0; 8]);
        out
    }
}

impl Encoder for Qcow2 {
    fn put(&mut self, file: &File, unit: u64, bytes: &[u8], packed: bool) -> io::Result<()> {
        let table = narrow(unit / ENTRIES);
        if self.open != Some(table) {
            self.write_l2(file)?;
            self.l2.fill(0);
            self.l1[table] = (self.cluster(file)? * CLUSTER) | COPIED;
            self.open = Some(table);
        }
        let (at, entry) = if packed {
            let len = wide(bytes.len());
            let at = self.room(file, len)?;
            let more = (at + len - 1) / SECTOR - at / SECTOR;
            (at, COMPRESSED | (more << PACKED_OFFSET_BITS) | at)
        } else {
            let at = self.cluster(file)? * CLUSTER;
            (at, at | COPIED)
        };
        self.l2[narrow(unit % ENTRIES)] = entry;
        file.write_all_at(bytes, at)
    }

    fn mark(&mut self, file: &File) -> io::Result<Vec<u64>> {
        self.write_l2(file)?;
        self.write_counters(file)?;
        self.write_l1(file)?;
        let last = narrow(self.tail.start / CLUSTER % RANGE);
        let shared = if self.tail.is_empty() { 0 } else { self.counters[last] };
        Ok(vec![self.next, self.tail.start, self.tail.end, shared.into()])
    }

    fn finish(&mut self, file: &File, _: &[u8; 32]) -> io::Result<u64> {
        self.write_l2(file)?;
        self.write_counters(file)?;
        write_table(file, self.l1_at * CLUSTER, &self.l1)?;
        let directory: Vec<u64> = (0..=self.range).map(counters_at).collect();
        write_table(file, DIRECTORY_AT * CLUSTER, &directory)?;
        // Last: without it, it is no image.
        file.write_all_at(&self.header(), 0)?;
        Ok(self.next * CLUSTER)
    }
}

/// Where the counters of a range are.
fn counters_at(range: u64) -> u64 {
    CLUSTER * if range == 0 { COUNTERS_AT } else { range * RANGE }
}

fn write_table(file: &File, at: u64, entries: &[u64]) -> io::Result<()> {
    let bytes: Vec<u8> = entries.iter().flat_map(|entry| entry.to_be_bytes()).collect();
    file.write_all_at(&bytes, at)
}

fn read_table(file: &File, at: u64, entries: usize) -> Option<Vec<u64>> {
    let mut bytes = vec![0; entries * 8];
    file.read_exact_at(&mut bytes, at).ok()?;
    let eights = bytes.chunks_exact(8).filter_map(|eight| eight.try_into().ok());
    Some(eights.map(u64::from_be_bytes).collect())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::print_stderr, reason = "tests")]
    use super::*;
    use crate::export::image::Packer;
    use crate::export::image::pack::Method;
    use std::process::Command;

    #[test]
    fn counters_of_a_file_of_several_gib_are_right() {
        // 5 GiB of disk in clusters that are plain, small and nearly full, past two borders of counters; once in a go,
        // once taken up again at every border. Of a plain cluster only a byte is written: the file is sparse.
        const UNITS: u64 = 81_920;
        let dir = tempfile::tempdir().unwrap();
        let packer = Packer::new(Method::Zstd);
        let mut clusters = [Vec::new(), Vec::new()];
        let mut x = 1_u64;
        let noise = |_| {
            x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            x.to_le_bytes()[7]
        };
        let large: Vec<u8> = (0..60_000).map(noise).chain([0; 5_536]).collect();
        assert!(packer.pack(&vec![7; 65_536], &mut clusters[0]) && packer.pack(&large, &mut clusters[1]));
        let fill = |path: &std::path::Path, stops: u64| {
            let file = File::options().create_new(true).read(true).write(true).open(path).unwrap();
            let mut image = Qcow2::new(UNITS * CLUSTER, true).unwrap();
            for unit in 0..UNITS {
                match unit % 400 {
                    0 | 7 | 8 => image.put(&file, unit, &clusters[0], true).unwrap(),
                    3 | 9 => image.put(&file, unit, &clusters[1], true).unwrap(),
                    _ => image.put(&file, unit, &[1], false).unwrap(),
                }
                if stops > 0 && unit % stops == 0 {
                    let marks = image.mark(&file).unwrap();
                    // More was written when it ended.
                    image.put(&file, unit + 1, &clusters[1], true).unwrap();
                    image.put(&file, unit + 2, &[9], false).unwrap();
                    image.mark(&file).unwrap();
                    image = Qcow2::resume(UNITS * CLUSTER, true, &file, &marks, (unit + 1) * CLUSTER).unwrap();
                }
            }
            let len = image.finish(&file, &[0; 32]).unwrap();
            file.set_len(len).unwrap();
            len
        };
        let paths = ["once", "often"].map(|name| dir.path().join(name));
        assert_eq!(fill(&paths[0], 0), fill(&paths[1], 4093));
        let Ok(version) = Command::new("qemu-img").arg("--version").output() else {
            eprintln!("SKIPPED counters_of_a_file_of_several_gib_are_right: qemu-img does not run");
            return;
        };
        assert!(version.status.success());
        for path in &paths {
            let checked = Command::new("qemu-img").args(["check", "-f", "qcow2"]).arg(path).output().unwrap();
            let told = String::from_utf8_lossy(&checked.stdout);
            assert!(
                told.contains("No errors were found") && told.contains("81920/81920 = 100.00% allocated"),
                "{told}"
            );
        }
        let compared = Command::new("qemu-img").arg("compare").args(&paths).output().unwrap();
        assert!(compared.status.success(), "{}", String::from_utf8_lossy(&compared.stdout));
    }
}
