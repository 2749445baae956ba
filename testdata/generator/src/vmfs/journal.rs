//! The journal of a host that did not unmount.
//!
//! Observed on volumes in use by ESXi. VMFS5 has a file block of records, each a 32-byte head (version, count, zero,
//! target, length) and the bytes. VMFS6 has a journal block: a head page, then pages of which each begins with
//! 32 bytes of its own: magic, number, a check, the number of the transaction. A transaction starts a page with a
//! head that repeats the check of its last page; its records run on across pages and say in which pieces their bytes
//! lie. Which check it is is not known: ours only tells transactions and pages apart. Records of locks, which come
//! before the others, are left out.

use super::resource::{Pool, put16, put32, put64};
use super::{HEARTBEAT_GENERATION, HOST_UUID, Vmfs, address};
use std::ops::Range;

/// Whether pages grow with the alignment of metadata is not known.
const PAGE: u64 = 4096;
const PAGE_HEAD: u64 = 32;
const TRANSACTION_HEAD: u64 = 0xC0;
const RECORD_HEAD: u64 = 0x40;
const FIRST_PAGE: u64 = 0x1000;

/// Where the journal is, and how far it is filled.
#[derive(Clone, Debug)]
pub(crate) struct Journal {
    lv: u64,
    len: u64,
    next: u64,
    /// Number of the next transaction.
    number: u64,
}

impl Journal {
    /// Bytes of the volume that it takes.
    pub(crate) fn range(&self) -> Range<u64> {
        self.lv..self.lv + self.len
    }
}

impl Vmfs {
    /// Takes a journal for the host and marks its heartbeat as in use.
    pub(super) fn open_journal(&mut self) {
        let six = self.six();
        let (lv, len, name) = if six {
            let n = self.pool_mut(Pool::Journal).take(0, 0);
            let journal = self.pool(Pool::Journal);
            let name = address::journal(n / journal.per_cluster, n % journal.per_cluster);
            (self.system_lv(8, journal.body_at(n)), journal.size, u64::from(name))
        } else {
            let n = self.pool_mut(Pool::FileBlock).take(0, 0);
            let size = self.spec.file_block_size;
            (n * size, size, self.addresses.file_block(n, false))
        };
        let slot = self.shape.heartbeat_at();
        let mut heartbeat = self.volume.read(slot, 512);
        put32(&mut heartbeat, 0, 0xABCD_EF02);
        put64(&mut heartbeat, 0x0C, HEARTBEAT_GENERATION);
        heartbeat[0x1C..0x2C].copy_from_slice(&HOST_UUID);
        put32(&mut heartbeat, 0x2C, name as u32);
        put64(&mut heartbeat, 0x64, lv);
        self.volume.write(slot, &heartbeat);
        let mut next = 512;
        // What the block held before may not be taken for records.
        self.volume.zero(lv, len);
        if six {
            let mut head = vec![0; 0x210];
            head[..4].copy_from_slice(b"6JSF");
            put32(&mut head, 4, 0x1_0000);
            put32(&mut head, 0x10, 1);
            head[0x20..0x24].copy_from_slice(b"HJ6J");
            put64(&mut head, 0x204, lv);
            self.volume.write(lv, &head);
            for page in (FIRST_PAGE..len).step_by(PAGE as usize) {
                self.volume.write(lv + page, b"TO6J\xFF\xFF");
            }
            next = FIRST_PAGE;
        }
        // Observed: a host's first transactions are long past.
        self.journal = Some(Journal { lv, len, next, number: 0x147 });
    }

    /// Notes what the bytes at volume positions are now as one transaction, while there is room.
    pub(super) fn log(&mut self, targets: &[(u64, u64)]) {
        let Some(journal) = &self.journal else {
            return;
        };
        let records: Vec<(u64, Vec<u8>)> =
            targets.iter().map(|&(lv, len)| (lv, self.volume.read(lv, len as usize))).collect();
        if journal.next + room(&records) <= journal.len {
            self.transaction(&records, true);
        }
    }

    /// Writes a transaction; one that is not whole lacks what its last page should say.
    pub(super) fn transaction(&mut self, records: &[(u64, Vec<u8>)], whole: bool) {
        let mut journal = self.journal.clone().unwrap_or_else(|| panic!("there is no journal"));
        assert!(journal.next + room(records) <= journal.len, "a transaction of {} records is too long", records.len());
        if self.six() {
            self.transaction6(&mut journal, records, whole);
        } else {
            for (target, bytes) in records {
                let mut record = vec![0; 32];
                put32(&mut record, 0, 1);
                put64(&mut record, 16, *target);
                put64(&mut record, 24, bytes.len() as u64);
                record.extend(bytes);
                self.volume.write(journal.lv + journal.next, &record);
                journal.next += record.len() as u64;
            }
        }
        journal.number += 1;
        self.journal = Some(journal);
    }

    fn transaction6(&mut self, journal: &mut Journal, records: &[(u64, Vec<u8>)], whole: bool) {
        let first = journal.next;
        journal.next = first + PAGE_HEAD + TRANSACTION_HEAD;
        for (target, bytes) in records {
            // A record's head has room for three pieces.
            for (n, part) in (0..).zip(bytes.chunks(PAGE as usize)) {
                self.record6(journal, target + n * PAGE, part);
            }
        }
        let end = journal.next;
        journal.next = end.next_multiple_of(PAGE);
        let last = journal.next - PAGE;
        for page in (first..journal.next).step_by(PAGE as usize) {
            let mut head = vec![0; PAGE_HEAD as usize];
            head[..4].copy_from_slice(b"TO6J");
            put16(&mut head, 4, (page / PAGE) as u16);
            put64(&mut head, 8, check(journal.number, page));
            put64(&mut head, 16, 1);
            put64(&mut head, 24, journal.number);
            if whole || page != last {
                self.volume.write(journal.lv + page, &head);
            } else {
                // Nothing of the last page was written but what it was before.
                self.volume.zero(journal.lv + page, PAGE);
                self.volume.write(journal.lv + page, b"TO6J\xFF\xFF");
            }
        }
        let mut head = vec![0; TRANSACTION_HEAD as usize];
        put64(&mut head, 0x00, check(journal.number, last));
        put64(&mut head, 0x08, 1);
        put32(&mut head, 0x10, (end - FIRST_PAGE) as u32);
        put16(&mut head, 0x14, 1);
        put64(&mut head, 0x18, HEARTBEAT_GENERATION);
        put64(&mut head, 0x20, journal.number + 2);
        put64(&mut head, 0x28, journal.number);
        // The first record, and the first that is not of a lock.
        put32(&mut head, 0x30, (first - FIRST_PAGE + PAGE_HEAD + TRANSACTION_HEAD) as u32);
        put32(&mut head, 0x34, (first - FIRST_PAGE + PAGE_HEAD + TRANSACTION_HEAD) as u32);
        head[0x3F] = records.len().min(255) as u8;
        put16(&mut head, 0x40, 1);
        put16(&mut head, 0x42, 2);
        put32(&mut head, 0x44, records.len() as u32);
        if whole || first != last {
            self.volume.write(journal.lv + first + PAGE_HEAD, &head);
        }
    }

    fn record6(&mut self, journal: &mut Journal, target: u64, bytes: &[u8]) {
        let page_of = |at: u64| at / PAGE;
        // A record's head does not straddle pages.
        if page_of(journal.next) != page_of(journal.next + RECORD_HEAD) {
            journal.next = page_of(journal.next + RECORD_HEAD) * PAGE + PAGE_HEAD;
        }
        let start = journal.next;
        let mut pieces = Vec::new();
        let mut at = start + RECORD_HEAD;
        let mut done = 0;
        while done < bytes.len() {
            let len = ((PAGE - at % PAGE) as usize).min(bytes.len() - done);
            self.volume.write(journal.lv + at, &bytes[done..done + len]);
            pieces.push((at, len as u64));
            done += len;
            at += len as u64;
            if at.is_multiple_of(PAGE) {
                at += PAGE_HEAD;
            }
        }
        // Positions inside the journal count from its first page.
        let mut head = vec![0; RECORD_HEAD as usize];
        put32(&mut head, 0, (start - FIRST_PAGE) as u32);
        put32(&mut head, 4, (at - FIRST_PAGE) as u32);
        put16(&mut head, 8, 0x0104);
        put64(&mut head, 12, target);
        for at in [0x14, 0x18, 0x1C] {
            put32(&mut head, at, bytes.len() as u32);
        }
        put32(&mut head, 0x20, 0x3_0000);
        for (n, (at, len)) in pieces.iter().enumerate() {
            put32(&mut head, 0x28 + 8 * n, (at - FIRST_PAGE) as u32);
            put32(&mut head, 0x2C + 8 * n, *len as u32);
        }
        self.volume.write(journal.lv + start, &head);
        journal.next = at;
    }
}

/// More than a transaction of these records takes, heads and gaps before them included.
fn room(records: &[(u64, Vec<u8>)]) -> u64 {
    let of = |(_, bytes): &(u64, Vec<u8>)| 2 * (bytes.len() as u64 + RECORD_HEAD + PAGE_HEAD);
    PAGE + records.iter().map(of).sum::<u64>()
}

/// Tells pages of transactions apart.
fn check(number: u64, page: u64) -> u64 {
    (number << 32 | page).wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ 0x5851_F42D_4C95_7F2D
}
