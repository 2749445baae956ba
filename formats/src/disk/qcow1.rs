//! QCOW, version 1: the header comment of QEMU's `docs/qcow-image-format`, and images of QEMU. All numbers are
//! big-endian.
//!
//! | what | where | how sure |
//! |---|---|---|
//! | header, 48 bytes | 0 | images of QEMU 0.9 to 10 |
//! | name of the backing file | where the header says | the same |
//! | L1: an L2 table's place of 8 bytes an entry; as many as the size needs | where the header says | the same |
//! | L2: a cluster's place of 8 bytes an entry | aligned to a cluster | the same |
//! | compressed: bit 63, then as many bits of packed bytes as a cluster has bits, then the place of raw deflate | | the same |
//!
//! There are no checksums, copies or refcounts. An encrypted image has its header and tables in the clear.

use crate::audit::{Codes, audit_runs, claim, parts};
use crate::blocks::{Parent, mask, shl};
use crate::codec::{Cut, inflate};
use crate::entries::{Entries, Page};
use crate::error::Error;
use crate::format::{Format, Holds, Magic, score};
use crate::layer::{Bytes, Fault, Layer, Loss, MAX_UNIT, Place, Run, Trust, Unit, Why};
use crate::link::{Content, Disk, Fact, Link, Opened, Role, Value, Want};
use crate::memo::Memo;
use crate::note::{Finding, Sink, Use};
use crate::num::{narrow, wide};
use crate::read::read_exact;
use crate::record::Record;
use binrw::BinRead;
use std::fmt;
use std::ops::ControlFlow;
use std::sync::Arc;

const MAGIC: &[u8] = b"QFI\xFB\0\0\0\x01";
const COMPRESSED: u64 = 1 << 63;
/// QEMU's limit.
const MAX_NAME: u32 = 1023;
/// Where the header names the backing file, and says how it is encrypted.
const BACKING_AT: u64 = 8;
const CRYPT_AT: u64 = 36;

/// The row in the table of formats.
pub static FORMAT: Format = Format {
    name: "qcow",
    about: "QEMU copy-on-write image, version 1",
    holds: Holds::Disk,
    spec: "QEMU block/qcow.c, header comment",
    magics: &[Magic { at: 0, bytes: MAGIC }],
    probe,
    open,
    sweep: None,
};

fn probe(layer: &dyn Layer) -> u8 {
    match Raw::load(layer, 0) {
        Ok(raw) if raw.mark == *MAGIC && raw.check().is_ok() => score::PROVEN,
        Ok(raw) if raw.mark == *MAGIC => score::MAGIC,
        _ => score::NONE,
    }
}

#[derive(BinRead, Clone, Debug)]
#[br(big)]
struct Raw {
    mark: [u8; 8],
    backing_offset: u64,
    backing_len: u32,
    modified: u32,
    size: u64,
    cluster_bits: u8,
    #[br(pad_after = 2)]
    l2_bits: u8,
    crypt: u32,
    l1: u64,
}

impl Record for Raw {
    const SIZE: usize = 48;
    const NAME: &'static str = "qcow header";
}

impl Raw {
    /// QEMU's limits; the size of an L1 table follows from the others.
    fn check(&self) -> Result<(), Error> {
        if !(9..=16).contains(&self.cluster_bits) {
            return Err(Error::corrupt("qcow header: cluster_bits", 32, format!("{} (9..=16)", self.cluster_bits)));
        }
        if !(6..=13).contains(&self.l2_bits) {
            return Err(Error::corrupt("qcow header: l2_bits", 33, format!("{} (6..=13)", self.l2_bits)));
        }
        if self.l1_entries() > 1 << 28 {
            return Err(Error::corrupt("qcow header: size", 24, format!("{} bytes", self.size)));
        }
        Ok(())
    }

    fn span_bits(&self) -> u32 {
        u32::from(self.cluster_bits).saturating_add(self.l2_bits.into())
    }

    fn l1_entries(&self) -> u64 {
        self.size.div_ceil(shl(1, self.span_bits()))
    }
}

fn open(bytes: &Bytes, memo: &Memo) -> Result<Opened, Error> {
    let raw = Raw::load(&**bytes, 0)?;
    if raw.mark != *MAGIC {
        return Err(Error::corrupt("qcow header: magic", 0, raw.mark.escape_ascii().to_string()));
    }
    raw.check()?;
    let mut findings = Vec::new();
    let mut note = |code, at: u64, len: u64, trust, text: String| {
        findings.push(Finding::new(code, at..at.saturating_add(len), trust, text));
    };
    let has_backing = raw.backing_offset != 0;
    let mut name = None;
    if has_backing {
        let mut text = vec![0; narrow(raw.backing_len.min(MAX_NAME).into())];
        let whole = read_exact(&**bytes, raw.backing_offset, &mut text).is_ok();
        name = (whole && raw.backing_len <= MAX_NAME && !text.is_empty()).then_some(text);
        if name.is_none() {
            let text = format!("its name of {} bytes at {:#x} can't be read", raw.backing_len, raw.backing_offset);
            note("QCOW-BACKING-NAME", BACKING_AT, 12, Trust::Sound, text);
        }
    } else if raw.backing_len != 0 {
        let text = format!("a backing file's name of {} bytes, but no place of it", raw.backing_len);
        note("QCOW-BACKING-NAME", BACKING_AT, 12, Trust::Doubtful, text);
    }
    if raw.crypt != 0 {
        note("QCOW-ENCRYPTED", CRYPT_AT, 4, Trust::Sound, format!("clusters are encrypted: {}", crypt_name(raw.crypt)));
    }
    let header_end = raw.backing_offset.saturating_add(raw.backing_len.into()).max(48);
    if raw.l1 < 48 || (has_backing && raw.l1 < header_end && raw.backing_offset < raw.l1) || !raw.l1.is_multiple_of(8) {
        note("QCOW-L1", 40, 8, Trust::Doubtful, format!("the L1 table at {:#x} lies in the header", raw.l1));
    }
    let trust = findings.iter().map(|finding| finding.trust).max().unwrap_or_default();
    let mut facts = vec![
        Fact::new("version", Value::Count(1)),
        Fact::new("size", Value::Bytes(raw.size)),
        Fact::new("cluster_size", Value::Bytes(shl(1, raw.cluster_bits.into()))),
        Fact::new("l1_table", format!("{} entries at {:#x}", raw.l1_entries(), raw.l1)),
        Fact::new("crypt_method", crypt_name(raw.crypt)),
    ];
    facts.extend(name.as_ref().map(|name| Fact::new("backing_file", name.escape_ascii().to_string())));
    if raw.modified != 0 {
        // Of the backing file, when the image was made.
        facts.push(Fact::new("backing_modified", Value::Time(i128::from(raw.modified).saturating_mul(1_000_000_000))));
    }
    let want = has_backing.then_some(Want { role: Role::Parent, id: None, hint: name, len: None });
    let link = Link { len: raw.size, ..Link::default() };
    let (bytes, memo) = (bytes.clone(), memo.clone());
    let join = move |others: &[Option<Bytes>]| {
        let layer = Qcow1 {
            entries: Entries::new(bytes.clone(), memo.share()),
            units: memo.share(),
            raw: raw.clone(),
            parent: Parent::of(has_backing.then_some(BACKING_AT), others),
            trust,
        };
        Ok(Content::Disks(vec![Disk { name: Vec::new(), bytes: Arc::new(layer) }]))
    };
    Ok(Opened { link, wants: Vec::from_iter(want), join: Box::new(join), findings, facts })
}

fn crypt_name(method: u32) -> String {
    match method {
        0 => "none".into(),
        1 => "AES-128 in CBC mode".into(),
        other => format!("unknown ({other})"),
    }
}

/// The disk of an image.
struct Qcow1 {
    entries: Entries,
    units: Memo,
    raw: Raw,
    parent: Parent,
    trust: Trust,
}

impl fmt::Debug for Qcow1 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Qcow1({} bytes)", self.raw.size)
    }
}

/// What an L2 entry says of a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Spot {
    Parent,
    At(u64),
    Packed { at: u64, len: u64 },
    Broken,
}

impl Qcow1 {
    fn file(&self) -> &dyn Layer {
        &**self.entries.layer()
    }

    fn cluster_bits(&self) -> u32 {
        self.raw.cluster_bits.into()
    }

    fn l1_at(&self, index: u64) -> u64 {
        self.raw.l1.saturating_add(index.saturating_mul(8))
    }

    fn l2_at(&self, table: u64, at: u64) -> u64 {
        let index = (at & mask(self.raw.span_bits())) >> self.cluster_bits();
        table.saturating_add(index.saturating_mul(8))
    }

    /// Bytes from `at` to the end of the span of `bits`, `want` at most.
    fn rest(at: u64, bits: u32, want: u64) -> u64 {
        (at | mask(bits)).saturating_sub(at).saturating_add(1).min(want)
    }

    /// Where tables and whole clusters may lie: behind the header and L1, aligned to a cluster, in the file.
    fn is_place(&self, at: u64) -> bool {
        let l1_end = self.l1_at(self.raw.l1_entries());
        let in_l1 = at < l1_end && self.raw.l1 < at.saturating_add(shl(1, self.cluster_bits()));
        at >= 48 && !in_l1 && at & mask(self.cluster_bits()) == 0
    }

    /// The L2 table that maps `at`, or the run where L1 alone tells.
    fn l1_run(&self, at: u64, want: u64) -> Result<(u64, u64, Trust), Run<'_>> {
        let bits = self.raw.span_bits();
        let first = at >> bits;
        let entry_at = self.l1_at(first);
        let page = self.entries.page(entry_at);
        let rest = Self::rest(at, bits, want);
        let table = page.be64(entry_at).map_err(|loss| Run::lost(rest, loss.why, loss.at))?;
        let trust = self.trust.max(page.trust());
        if table == 0 {
            let mut len = rest;
            let mut next = first.saturating_add(1);
            while len < want && page.covers(self.l1_at(next)) && page.be64(self.l1_at(next)) == Ok(0) {
                len = len.saturating_add(shl(1, bits)).min(want);
                next = next.saturating_add(1);
            }
            return Err(self.parent.run(at, len, trust));
        }
        if !self.is_place(table) || table >= self.file().len() {
            return Err(Run::lost(rest, Why::Unmapped, entry_at));
        }
        Ok((table, rest, trust))
    }

    fn spot(&self, page: &Page, entry_at: u64) -> Result<Spot, Loss> {
        let entry = page.be64(entry_at)?;
        if entry == 0 {
            return Ok(Spot::Parent);
        }
        if entry & COMPRESSED == 0 {
            return Ok(if self.is_place(entry) { Spot::At(entry) } else { Spot::Broken });
        }
        let place_bits = 63_u32.saturating_sub(self.cluster_bits());
        let at = entry & mask(place_bits);
        let len = (entry & !COMPRESSED) >> place_bits;
        Ok(if len == 0 || at < 48 { Spot::Broken } else { Spot::Packed { at, len } })
    }

    /// How many bytes from `at` on are of one piece with `first`, as far as the page tells.
    fn merged(&self, page: &Page, table: u64, at: u64, want: u64, first: Spot) -> u64 {
        let size = shl(1, self.cluster_bits());
        let start = at & !mask(self.cluster_bits());
        let mut len = start.saturating_add(size).saturating_sub(at);
        while len < want {
            let next = at.saturating_add(len);
            let entry_at = self.l2_at(table, next);
            if !page.covers(entry_at) {
                break;
            }
            let goes_on = match (first, self.spot(page, entry_at)) {
                (Spot::At(host), Ok(Spot::At(next_host))) => {
                    host.checked_add(next.saturating_sub(start)) == Some(next_host)
                }
                (Spot::Parent, Ok(Spot::Parent)) => true,
                _ => false,
            };
            if !goes_on {
                break;
            }
            len = len.saturating_add(size);
        }
        len.min(want)
    }

    fn packed(&self, at: u64, want: u64, (packed_at, packed_len): (u64, u64), entry: u64, trust: Trust) -> Run<'_> {
        let bits = self.cluster_bits();
        let len = Self::rest(at, bits, want);
        let inside = self.file().len().saturating_sub(packed_at).min(packed_len);
        if inside == 0 {
            return Run::lost(len, Why::Truncated, entry);
        }
        let unit = Unit {
            from: self.file(),
            packed_at,
            packed_len: u32::try_from(inside).unwrap_or(MAX_UNIT).min(MAX_UNIT),
            start: at & !mask(bits),
            len: u32::try_from(shl(1, bits)).unwrap_or(MAX_UNIT),
            memo: &self.units,
        };
        Run { len, place: Place::Coded(unit), trust }
    }
}

impl Layer for Qcow1 {
    fn len(&self) -> u64 {
        self.raw.size
    }

    fn about(&self) -> String {
        "QCOW disk".into()
    }

    fn run(&self, at: u64, want: u64) -> Run<'_> {
        let (table, want, trust) = match self.l1_run(at, want) {
            Ok(found) => found,
            Err(run) => return run,
        };
        let entry_at = self.l2_at(table, at);
        let page = self.entries.page(entry_at);
        let trust = trust.max(page.trust());
        let bits = self.cluster_bits();
        let spot = match self.spot(&page, entry_at) {
            Ok(spot) => spot,
            Err(loss) => return Run::lost(Self::rest(at, bits, want), loss.why, loss.at),
        };
        let len = self.merged(&page, table, at, want, spot);
        match spot {
            Spot::Parent => self.parent.run(at, len, trust),
            Spot::Broken => Run::lost(len, Why::Unmapped, entry_at),
            Spot::At(_) | Spot::Packed { .. } if self.raw.crypt != 0 => Run::lost(len, Why::Sealed, CRYPT_AT),
            Spot::At(host) => {
                let offset = host.saturating_add(at & mask(bits));
                match self.file().len().saturating_sub(offset) {
                    0 => Run::lost(len, Why::Truncated, entry_at),
                    inside => Run { len: len.min(inside), place: Place::Below { layer: self.file(), offset }, trust },
                }
            }
            Spot::Packed { at: packed_at, len: packed_len } => {
                self.packed(at, want, (packed_at, packed_len), entry_at, trust)
            }
        }
    }

    fn decode(&self, unit: &Unit<'_>, packed: &[u8], out: &mut [u8]) -> Result<Trust, Fault> {
        inflate(packed, out).map_err(|Cut(good)| Fault::after(good, Why::Undecodable, unit.packed_at))
    }

    fn parts(&self) -> u32 {
        parts(self.raw.l1_entries(), TABLES_A_PART)
    }

    fn audit(&self, part: u32, sink: Sink<'_>) -> ControlFlow<()> {
        if part == 0 {
            claim(self.file(), 0, 48, Use::Metadata, &mut *sink)?;
            claim(self.file(), self.raw.backing_offset, self.raw.backing_len.into(), Use::Metadata, &mut *sink)?;
            claim(self.file(), self.raw.l1, self.raw.l1_entries().saturating_mul(8), Use::Metadata, &mut *sink)?;
        }
        let span = shl(1, self.raw.span_bits());
        let each = span.saturating_mul(wide(TABLES_A_PART));
        let mut at = each.saturating_mul(part.into()).min(self.raw.size);
        let end = at.saturating_add(each).min(self.raw.size);
        while at < end {
            let next = match self.l1_run(at, end.saturating_sub(at)) {
                Ok((table, len, _)) => {
                    claim(self.file(), table, shl(8, self.raw.l2_bits.into()), Use::Metadata, &mut *sink)?;
                    at.saturating_add(len)
                }
                Err(run) => at.saturating_add(run.len.max(1)),
            };
            audit_runs(self, at..next, self.parent.layer(), CODES, &mut *sink)?;
            at = next;
        }
        ControlFlow::Continue(())
    }
}

/// A part of an audit is at most this many L2 tables.
const TABLES_A_PART: usize = 64;

const CODES: Codes = Codes { range: "QCOW-L2-RANGE", entry: "QCOW-L2-ENTRY" };

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_have_their_size() {
        assert_eq!(Raw::SIZE, 48);
        assert!(Raw::parse(&[0; 48], 0).is_ok() && Raw::parse(&[0; 47], 0).is_err());
    }
}
