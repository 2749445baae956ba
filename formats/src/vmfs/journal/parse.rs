//! Records of both versions, out of the bytes of a journal.

use super::{Piece, Record, Standing, Transaction, number};
use crate::num::{narrow, round_up, wide};
use crate::read::Seen;
use std::collections::BTreeMap;
use std::ops::Range;

/// Bytes of a page of VMFS6, and of its head.
const PAGE: u64 = 4096;
const PAGE_HEAD: u64 = 32;
/// Where positions start to count.
const FIRST: u64 = PAGE;
/// Bytes of the head of a record.
const HEAD5: u64 = 32;
const HEAD6: u64 = 0x28;
/// Bytes of a lock in a transaction's head.
const LOCK: u64 = 32;

/// The bytes of a journal with what is needed to read them.
pub(super) struct Parser<'a> {
    bytes: &'a [u8],
    seen: Seen,
    volume: u64,
    /// The transaction of each page of VMFS6.
    pages: Vec<Option<u64>>,
    /// Pieces that may still be kept.
    pub left: usize,
    /// There were more.
    pub cut: bool,
}

impl<'a> Parser<'a> {
    /// A parser of a journal's bytes, for a volume of so many bytes, that keeps `left` pieces at most.
    pub(super) fn new(bytes: &'a [u8], seen: Seen, volume: u64, left: usize) -> Self {
        Self { bytes, seen, volume, pages: Vec::new(), left, cut: false }
    }

    /// Whether there is room for a record.
    fn take(&mut self, record: &Record) -> bool {
        let left = self.left.checked_sub(record.pieces.len().max(1));
        self.cut |= left.is_none();
        self.left = left.unwrap_or(0);
        left.is_some()
    }

    fn number(&self, at: u64, len: usize) -> Option<u64> {
        number(self.bytes, at, len)
    }

    fn is_lost(&self, range: &Range<u64>) -> bool {
        self.seen.has_gap(range)
    }

    // VMFS5

    pub(super) fn five(&mut self) -> Vec<Transaction> {
        let mut found: Vec<Transaction> = Vec::new();
        let mut at = 0;
        let mut end = None;
        while at < wide(self.bytes.len()) {
            let Some(record) = self.record5(at) else {
                at = at.saturating_add(16);
                continue;
            };
            if !self.take(&record) {
                break;
            }
            let next = record.pieces.iter().fold(at, |_, piece| piece.at.saturating_add(piece.len));
            if end != Some(at) {
                // What lies behind a break was not overwritten yet by what lies before it. A break that is a bad
                // sector tells nothing.
                let newest = found.is_empty() || !self.seen.is_whole();
                found.push(Transaction { newest, ..Transaction::default() });
            }
            let first = found.last().and_then(|open| open.records.first()).map_or(at, |first| first.at);
            if let Some(open) = found.last_mut() {
                open.records.push(Record { transaction: first, ..record });
            }
            end = Some(next);
            at = next;
        }
        found.reverse();
        found
    }

    fn record5(&self, at: u64) -> Option<Record> {
        let head = self.number(at, 4)? == 1 && self.number(at.checked_add(4)?, 4)? < 64;
        let target = self.number(at.checked_add(0x10)?, 8)?;
        let len = self.number(at.checked_add(0x18)?, 8)?;
        let start = at.checked_add(HEAD5)?;
        let end = start.checked_add(len)?;
        let fits = (512..=1 << 20).contains(&len) && end <= wide(self.bytes.len());
        let aligned = target != 0 && (target | len).trailing_zeros() >= 9 && target.checked_add(len)? <= self.volume;
        let good = head && self.number(at.checked_add(8)?, 8)? == 0 && fits && aligned && !self.is_lost(&(at..end));
        let pieces = vec![Piece { target, len, at: start }];
        good.then_some(Record { at, transaction: at, target, pieces, standing: Standing::Unsure })
    }

    // VMFS6

    pub(super) fn six(&mut self) -> Vec<Transaction> {
        let count = wide(self.bytes.len()).checked_div(PAGE).unwrap_or(0);
        self.pages = (0..count).map(|page| self.page(page)).collect();
        let mut found: BTreeMap<u64, Transaction> = BTreeMap::new();
        let mut at = FIRST.saturating_add(PAGE_HEAD);
        while at < wide(self.bytes.len()) {
            let page = at.checked_div(PAGE).unwrap_or(0);
            let start = page.saturating_mul(PAGE);
            let Some(number) = self.pages.get(narrow(page)).copied().flatten() else {
                at = start.saturating_add(PAGE);
                continue;
            };
            at = at.max(start.saturating_add(PAGE_HEAD));
            if at == start.saturating_add(PAGE_HEAD)
                && let Some(head) = self.head(at, number)
            {
                at = head.first;
                let open = found.entry(number).or_default();
                (open.complete, open.torn, open.locks) = (head.complete, head.torn, head.locks);
                continue;
            }
            let Some((record, next)) = self.record6(at, number) else {
                at = at.saturating_add(8);
                continue;
            };
            if !self.take(&record) {
                break;
            }
            // The last record does not know where it ends. None ends before its last piece: bytes of the journal are
            // of one record.
            let last = record.pieces.last().map_or(at, |piece| piece.at.saturating_add(piece.len));
            let end = next.filter(|next| *next >= last).unwrap_or_else(|| round_up(last, 8));
            at = end.max(at.saturating_add(8));
            found.entry(number).or_default().records.push(record);
        }
        if let Some(mut last) = found.last_entry() {
            last.get_mut().newest = true;
        }
        found.into_values().collect()
    }

    /// The transaction that a page belongs to.
    fn page(&self, page: u64) -> Option<u64> {
        let at = page.checked_mul(PAGE)?;
        let good = self.bytes.get(narrow(at)..)?.starts_with(b"TO6J")
            && self.number(at.checked_add(4)?, 2)? == page
            && !self.is_lost(&(at..at.checked_add(PAGE_HEAD)?));
        if good { self.number(at.checked_add(0x18)?, 8) } else { None }
    }

    fn is_page(&self, page: u64) -> bool {
        let at = narrow(page.saturating_mul(PAGE));
        self.bytes.get(at..).is_some_and(|bytes| bytes.starts_with(b"TO6J"))
    }

    /// The head of a transaction, if one starts at `at`.
    fn head(&self, at: u64, number: u64) -> Option<Head> {
        let field = |offset: u64, len: usize| self.number(at.checked_add(offset)?, len);
        let (locks_at, first, count) = (field(0x30, 4)?, field(0x34, 4)?, field(0x38, 2)?);
        let page = at.checked_div(PAGE)?;
        let in_page = FIRST.checked_add(first)?.checked_div(PAGE)? == page;
        let room = locks_at.checked_add(count.checked_mul(LOCK)?)? == first && in_page;
        (field(0x28, 8)? == number && FIRST.checked_add(locks_at)? > at && room).then_some(())?;
        let mut locks = Vec::new();
        for i in 0..count {
            let lock = locks_at.checked_add(i.checked_mul(LOCK)?)?;
            let at = FIRST.checked_add(lock)?;
            if self.number(at, 4)? == lock && self.number(at.checked_add(9)?, 1)? == 2 {
                locks.push((self.number(at.checked_add(0xC)?, 8)?, self.number(at.checked_add(0x14)?, 8)?));
            }
        }
        let last = FIRST.checked_add(field(0x10, 4)?.checked_sub(1)?)?.checked_div(PAGE)?;
        let whole = (page..=last).all(|page| self.pages.get(narrow(page)).copied().flatten() == Some(number));
        // What stands in the place of a page that was not written is a page, of another transaction or of none.
        let all_pages = (page..=last).all(|page| self.is_page(page));
        let checksum = field(0, 8)?;
        let complete = whole
            && self.seen.is_whole()
            && checksum != 0
            && self.number(last.checked_mul(PAGE)?.checked_add(8)?, 8)? == checksum
            && wide(locks.len()) == count;
        let torn = !whole && all_pages && self.seen.is_whole();
        Some(Head { first: FIRST.checked_add(first)?, locks, complete, torn })
    }

    /// Whether a range of the journal lies in the body of one page of a transaction.
    fn is_in(&self, at: u64, len: u64, number: u64) -> bool {
        let (Some(page), Some(end)) = (at.checked_div(PAGE), at.checked_add(len)) else { return false };
        let start = page.saturating_mul(PAGE);
        at >= start.saturating_add(PAGE_HEAD)
            && end <= start.saturating_add(PAGE)
            && self.pages.get(narrow(page)).copied().flatten() == Some(number)
            && !self.is_lost(&(at..end))
    }

    /// The record at `at`, and where the next one is, if it says so.
    fn record6(&self, at: u64, number: u64) -> Option<(Record, Option<u64>)> {
        let position = at.checked_sub(FIRST)?;
        (self.number(at, 4)? == position && self.is_in(at, HEAD6, number)).then_some(())?;
        let field = |offset: u64, len: usize| self.number(at.checked_add(offset)?, len);
        let (next, kind, target, len) = (field(4, 4)?, field(8, 2)?, field(0xC, 8)?, field(0x14, 4)?);
        let room = target.checked_add(1 << 16)? <= self.volume;
        (target != 0 && target.trailing_zeros() >= 9 && room && len <= 1 << 16).then_some(())?;
        let body = at.checked_add(HEAD6)?;
        let pieces = match kind {
            0x104 => self.image(body, target, len, field(0x22, 2)?, number)?,
            0x105 => self.patches(body, target, len, number)?,
            _ => return None,
        };
        let record = Record { at, transaction: number, target, pieces, standing: Standing::Unsure };
        Some((record, FIRST.checked_add(next).filter(|_| next != 0)))
    }

    fn image(&self, list: u64, target: u64, len: u64, count: u64, number: u64) -> Option<Vec<Piece>> {
        let mut pieces = Vec::new();
        let mut done: u64 = 0;
        // Pieces follow the list and each other.
        let mut behind = list.checked_add(count.checked_mul(8)?)?;
        for i in 0..count.min(64) {
            let entry = list.checked_add(i.checked_mul(8)?)?;
            let at = FIRST.checked_add(self.number(entry, 4)?)?;
            let len = self.number(entry.checked_add(4)?, 4)?;
            if len == 0 {
                continue;
            }
            (at >= behind && self.is_in(at, len, number)).then_some(())?;
            behind = at.checked_add(len)?;
            pieces.push(Piece { target: target.checked_add(done)?, len, at });
            done = done.checked_add(len)?;
        }
        (done == len && len > 0).then_some(pieces)
    }

    fn patches(&self, list: u64, target: u64, len: u64, number: u64) -> Option<Vec<Piece>> {
        let mut pieces = Vec::new();
        let mut at = list;
        let mut left = len;
        while left > 0 {
            at = self.body(at);
            let offset = self.number(at, 4)?;
            let mut len = self.number(at.checked_add(4)?, 4)?;
            self.is_in(at, 8, number).then_some(())?;
            left = left.checked_sub(len.checked_add(8)?)?;
            let mut target = target.checked_add(offset)?;
            (offset.checked_add(len)? <= 1 << 16).then_some(())?;
            at = at.checked_add(8)?;
            while len > 0 {
                at = self.body(at);
                let in_page = PAGE.checked_sub(at.checked_rem(PAGE)?)?.min(len);
                self.is_in(at, in_page, number).then_some(())?;
                pieces.push(Piece { target, len: in_page, at });
                (target, at) = (target.checked_add(in_page)?, at.checked_add(in_page)?);
                len = len.checked_sub(in_page)?;
            }
        }
        Some(pieces)
    }

    /// The next place at or behind `at` that is not the head of a page.
    #[expect(clippy::unused_self, reason = "a question about positions of this journal")]
    fn body(&self, at: u64) -> u64 {
        if at & PAGE.saturating_sub(1) == 0 { at.saturating_add(PAGE_HEAD) } else { at }
    }
}

/// The head of a transaction.
struct Head {
    first: u64,
    locks: Vec<(u64, u64)>,
    complete: bool,
    torn: bool,
}
