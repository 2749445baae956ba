//! The journal of a host that did not unmount: images of the descriptors and directory blocks that it last wrote.
//!
//! Observed on volumes in use by ESXi. VMFS5 has a file block of records, each a 32-byte head (version, count, zero,
//! target, length) and the bytes. VMFS6 has a journal block: a head page, then pages of which each begins with
//! 32 bytes of its own; records run on across pages and say in which pieces their bytes lie. Checksums and the
//! transaction records between them are not understood and left out.

use super::resource::{Pool, put16, put32, put64};
use super::{HEARTBEAT_GENERATION, HOST_UUID, Vmfs, address};

/// Whether pages grow with the alignment of metadata is not known.
const PAGE: u64 = 4096;
const PAGE_HEAD: u64 = 32;
const RECORD_HEAD: u64 = 0x40;
const FIRST_PAGE: u64 = 0x1000;

/// Where the journal is, and how far it is filled.
#[derive(Clone, Debug)]
pub(crate) struct Journal {
    lv: u64,
    len: u64,
    next: u64,
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
            next = FIRST_PAGE + PAGE_HEAD;
        }
        self.journal = Some(Journal { lv, len, next });
    }

    /// Notes what the bytes at a volume position are now, while there is room.
    pub(super) fn log(&mut self, target: u64, len: u64) {
        let Some(mut journal) = self.journal.clone() else {
            return;
        };
        // Twice the length is more than a record and the page heads inside it take.
        if journal.next + 2 * (len + RECORD_HEAD + PAGE_HEAD) > journal.len {
            return;
        }
        let bytes = self.volume.read(target, len as usize);
        if self.six() {
            self.log6(&mut journal, target, &bytes);
        } else {
            let mut record = vec![0; 32];
            put32(&mut record, 0, 1);
            put64(&mut record, 16, target);
            put64(&mut record, 24, len);
            record.extend(bytes);
            self.volume.write(journal.lv + journal.next, &record);
            journal.next += record.len() as u64;
        }
        self.journal = Some(journal);
    }

    fn log6(&mut self, journal: &mut Journal, target: u64, bytes: &[u8]) {
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
        for page in page_of(start)..=page_of(at - 1) {
            let mut number = vec![0; 2];
            put16(&mut number, 0, page as u16);
            self.volume.write(journal.lv + page * PAGE + 4, &number);
            self.volume.write(journal.lv + page * PAGE + 16, &1u64.to_le_bytes());
        }
        journal.next = at;
    }
}
