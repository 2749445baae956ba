//! Master boot record: four primary partitions, and logical ones in a chain of extended boot records.
//!
//! UEFI Specification 2.10, section 5.2.1, for the table; the chain is what DOS, Windows and Linux agree on.
//! Sectors have 512 bytes.

use super::boot::{BootSector, Entry, PROTECTIVE, SECTOR, bytes, overlaps, type_name, volume_name};
use crate::adapt::Window;
use crate::error::Error;
use crate::format::{Format, Holds, Magic, score};
use crate::layer::{Bytes, Layer, Trust};
use crate::link::{Content, Fact, Link, Opened, Value, Volume};
use crate::memo::Memo;
use crate::note::Finding;
use crate::num::wide;
use std::collections::BTreeSet;

/// The row in the table of formats.
pub static FORMAT: Format = Format {
    name: "mbr",
    about: "Master boot record partitions",
    holds: Holds::Volumes,
    spec: "UEFI Specification 2.10, section 5.2.1",
    magics: &[Magic { at: 510, bytes: &[0x55, 0xaa] }],
    probe,
    open,
    sweep: None,
};

/// No system makes more; a chain that goes on is damage.
const MAX_LOGICAL: usize = 256;

fn probe(layer: &dyn Layer) -> u8 {
    match BootSector::load(layer, 0) {
        Ok(boot) if boot.is_table(layer.len()) && boot.entries().iter().any(|entry| is_plain(*entry)) => {
            // A hybrid's entries are copies of some of the GPT's.
            if boot.is_protective() { score::FALLBACK.saturating_add(1) } else { score::WEAK }
        }
        _ => score::NONE,
    }
}

fn is_plain(entry: Entry) -> bool {
    !entry.is_empty() && entry.kind != PROTECTIVE
}

fn open(layer: &Bytes, _: &Memo) -> Result<Opened, Error> {
    let boot = BootSector::load(&**layer, 0)?;
    let mut table = Table { layer, volumes: Vec::new(), findings: Vec::new() };
    let entries = boot.entries();
    for (number, entry) in (1..).zip(entries) {
        if !matches!(entry.status, 0 | 0x80) {
            let text = format!("partition {number}: status {:#04x} (0x00 or 0x80)", entry.status);
            table.note("MBR-STATUS", 446..510, text);
        }
        if is_plain(entry) && !entry.is_extended() {
            table.add(number, entry, 0);
        }
    }
    let mut number = 5;
    for entry in entries.into_iter().filter(|entry| is_plain(*entry) && entry.is_extended()) {
        table.chain(entry, &mut number);
    }
    if table.volumes.is_empty() && table.findings.is_empty() && !entries.into_iter().any(Entry::is_extended) {
        return Err(Error::corrupt("MBR", 446, "no partition"));
    }
    let Table { volumes, mut findings, .. } = table;
    findings.extend(overlaps(&volumes, "MBR-OVERLAP"));
    let facts = vec![
        Fact::new("disk_signature", format!("{:08x}", boot.disk_signature())),
        Fact::new("sector_size", Value::Bytes(SECTOR)),
        Fact::new("partitions", Value::Count(wide(volumes.len()))),
    ];
    let link = Link { len: layer.len(), ..Link::default() };
    Ok(Opened { findings, facts, ..Opened::alone(link, Content::Volumes(volumes)) })
}

struct Table<'a> {
    layer: &'a Bytes,
    volumes: Vec<Volume>,
    findings: Vec<Finding>,
}

impl Table<'_> {
    fn note(&mut self, code: &'static str, range: std::ops::Range<u64>, text: impl Into<String>) {
        self.findings.push(Finding::new(code, range, Trust::Sound, text));
    }

    /// `base` is the sector that the entry counts from.
    fn add(&mut self, number: usize, entry: Entry, base: u64) {
        // Sums of 32-bit sector numbers: their bytes fit.
        let Some(range) = bytes(base.saturating_add(entry.start), entry.sectors, SECTOR) else { return };
        if range.end > self.layer.len() {
            let text = format!("partition {number} ends at {:#x}, the device at {:#x}", range.end, self.layer.len());
            self.note("MBR-RANGE", range.clone(), text);
        }
        let len = range.end.saturating_sub(range.start);
        self.volumes.push(Volume {
            name: volume_name(number),
            about: format!("{} ({:#04x})", type_name(entry.kind), entry.kind),
            bytes: std::sync::Arc::new(
                Window::of_device(self.layer.clone(), range.start, len).named(format!("MBR partition {number}")),
            ),
            range,
        });
    }

    /// Follows the extended boot records of `extended`. Each has one logical partition, which counts from the record
    /// itself, and the next record, which counts from the start of the extended partition.
    fn chain(&mut self, extended: Entry, number: &mut usize) {
        let mut seen = BTreeSet::new();
        let mut next = 0;
        loop {
            let sector = extended.start.saturating_add(next);
            let at = sector.saturating_mul(SECTOR);
            let range = at..at.saturating_add(SECTOR);
            if !seen.insert(sector) {
                return self.note("MBR-EBR-LOOP", range, "the chain of extended boot records comes back to itself");
            }
            if seen.len() > MAX_LOGICAL {
                return self.note("MBR-EBR-LOOP", range, format!("more than {MAX_LOGICAL} extended boot records"));
            }
            if next >= extended.sectors {
                return self.note("MBR-EBR-RANGE", range, "an extended boot record outside of the extended partition");
            }
            let boot = match BootSector::load(&**self.layer, at) {
                Ok(boot) => boot,
                Err(error) => return self.note("MBR-EBR", range, format!("extended boot record: {error}")),
            };
            let [logical, link, ..] = boot.entries();
            if !logical.is_empty() && !logical.is_extended() {
                self.add(*number, logical, sector);
                *number = number.saturating_add(1);
            }
            // Some tools leave the first entry empty and still go on in the second.
            if link.is_empty() || !link.is_extended() {
                return;
            }
            next = link.start;
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]
    use super::*;
    use crate::adapt::Memory;
    use crate::memo::Pool;
    use std::sync::Arc;

    /// Sectors with their entries: (sector, slot, status, type, start, sectors).
    fn disk(entries: &[(usize, usize, u8, u8, u32, u32)]) -> Bytes {
        let mut bytes = vec![0; 256 * 512];
        for (sector, slot, status, kind, start, sectors) in entries {
            let at = sector * 512 + 446 + slot * 16;
            bytes[at] = *status;
            bytes[at + 4] = *kind;
            bytes[at + 8..at + 12].copy_from_slice(&start.to_le_bytes());
            bytes[at + 12..at + 16].copy_from_slice(&sectors.to_le_bytes());
            bytes[sector * 512 + 510..sector * 512 + 512].copy_from_slice(&[0x55, 0xaa]);
        }
        Arc::new(Memory::new(bytes))
    }

    fn listed(disk: &Bytes) -> (Vec<(String, u64, u64)>, Vec<&'static str>) {
        let opened = open(disk, &Pool::new(1 << 20).share()).unwrap();
        let Content::Volumes(volumes) = opened.join_alone().unwrap() else { panic!("volumes") };
        let rows = volumes
            .iter()
            .map(|v| (String::from_utf8_lossy(&v.name).into_owned(), v.range.start / 512, v.range.end / 512))
            .collect();
        (rows, opened.findings.iter().map(|finding| finding.code).collect())
    }

    #[test]
    fn logical_partitions_count_from_their_records() {
        let disk = disk(&[
            (0, 0, 0x80, 0x83, 1, 9),
            (0, 1, 0, 0x05, 20, 100),
            (20, 0, 0, 0x83, 2, 10),
            (20, 1, 0, 0x05, 40, 30),
            (60, 0, 0, 0x82, 1, 29),
        ]);
        assert_eq!(probe(&*disk), score::WEAK);
        let rows = [("p1".to_owned(), 1, 10), ("p5".to_owned(), 22, 32), ("p6".to_owned(), 61, 90)];
        assert_eq!(listed(&disk), (rows.to_vec(), vec![]));
    }

    #[test]
    fn a_record_that_names_itself_ends_the_chain() {
        let disk = disk(&[
            (0, 0, 0, 0x05, 20, 100),
            (20, 0, 0, 0x83, 2, 10),
            (20, 1, 0, 0x05, 40, 30),
            (60, 1, 0, 0x05, 40, 30),
        ]);
        assert_eq!(listed(&disk), (vec![("p5".to_owned(), 22, 32)], vec!["MBR-EBR-LOOP"]));
    }

    #[test]
    fn damage_is_one_finding_each() {
        let behind = disk(&[(0, 0, 0, 0x83, 250, 10)]);
        assert_eq!(listed(&behind), (vec![("p1".to_owned(), 250, 260)], vec!["MBR-RANGE"]));
        let no_record = disk(&[(0, 0, 0, 0x83, 1, 9), (0, 1, 0, 0x0f, 20, 100)]);
        assert_eq!(listed(&no_record), (vec![("p1".to_owned(), 1, 10)], vec!["MBR-EBR"]));
        let outside = disk(&[(0, 0, 0, 0x05, 20, 100), (20, 1, 0, 0x05, 100, 5)]);
        assert_eq!(listed(&outside), (vec![], vec!["MBR-EBR-RANGE"]));
    }

    #[test]
    fn other_boot_sectors_are_left_alone() {
        assert_eq!(probe(&*disk(&[(0, 0, 0, 0, 0, 0)])), score::NONE, "no entry");
        assert_eq!(probe(&*disk(&[(0, 0, 0, 0xee, 1, 255)])), score::NONE, "protective");
        assert_eq!(probe(&*disk(&[(0, 0, 0x41, 0x83, 1, 9)])), score::NONE, "status");
        assert_eq!(probe(&*disk(&[(0, 0, 0, 0x83, 1, 9), (0, 1, 0, 0x83, 5, 9)])), score::NONE, "overlap");
    }
}
