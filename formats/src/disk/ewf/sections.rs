//! Segments, their sections, and what these say of the disk.

use crate::codec::inflate_zlib;
use crate::error::Error;
use crate::guid;
use crate::layer::{Layer, MAX_UNIT, Trust, Why};
use crate::link::{Fact, Value};
use crate::note::Finding;
use crate::num::{narrow, wide};
use crate::read::{read_exact, read_vec};
use byteorder::{ByteOrder, LittleEndian};
use libdeflater::adler32;
use std::ops::Range;

pub(super) const MAGIC: &[u8] = b"EVF\x09\x0D\x0A\xFF\x00";
pub(super) const MAGIC_2: &[u8] = b"EVF2\x0D\x0A\x81\x00";
pub(super) const MAGIC_LOGICAL: &[u8] = b"LVF\x09\x0D\x0A\xFF\x00";
const HEAD_LEN: u64 = 13;
const SECTION_LEN: u64 = 76;
/// The head of a table.
const TABLE_LEN: u64 = 24;
/// Real tables have 65,534 chunks at most.
pub(super) const MAX_CHUNKS: u32 = 1 << 19;
/// Sections of all segments together.
const MAX_SECTIONS: usize = 1 << 20;
/// Ranges that could not be read, of one image.
const MAX_ERRORS: u64 = 1 << 20;
/// Headers of an image: three, of which two are copies.
const MAX_HEADERS: u32 = 8;
/// Bytes of a header's text.
const MAX_TEXT: usize = 1 << 20;

/// The codes of segments that are not there.
pub(super) const MISSING: [&str; 3] = ["EWF-SEGMENT-GONE", "EWF-SEGMENT-CUT", "EWF-END"];

/// What an image is.
#[derive(Debug)]
pub(super) struct Image {
    pub volume: Volume,
    /// By their first chunk.
    pub tables: Vec<Table>,
    /// What the imager could not read, ascending.
    pub errors: Vec<Range<u64>>,
    /// Structures, for the audit.
    pub areas: Vec<Range<u64>>,
    pub findings: Vec<Finding>,
    /// Why a chunk without a table is lost.
    pub why: Why,
    segments: u32,
    texts: Vec<(&'static str, String)>,
}

/// Sizes.
#[derive(Clone, Debug)]
pub(super) struct Volume {
    pub chunks: u32,
    pub chunk_len: u32,
    sector_len: u32,
    sectors: u64,
    set: Option<[u8; 16]>,
}

impl Volume {
    pub(super) fn len(&self) -> u64 {
        self.sectors.saturating_mul(self.sector_len.into())
    }
}

/// A table of chunks, and its copy.
#[derive(Clone, Debug)]
pub(super) struct Table {
    /// Number of its first chunk.
    pub first: u64,
    pub count: u32,
    /// The places of the entries of both.
    pub copies: Vec<Copy>,
    /// Where its last chunk ends.
    pub end: u64,
    /// Whether its place among the chunks is a choice.
    pub trust: Trust,
    segment: u16,
}

/// One copy of a table.
#[derive(Clone, Debug)]
pub(super) struct Copy {
    pub at: u64,
    /// What its entries count from.
    pub base: u64,
    /// Whether a checksum lies behind the entries.
    pub summed: bool,
}

/// One section.
struct Section {
    at: u64,
    kind: [u8; 16],
    /// Where the next one lies.
    next: u64,
    /// Where its content ends.
    end: u64,
}

impl Section {
    fn is(&self, name: &str) -> bool {
        let (own, rest) = self.kind.split_at(name.len().min(16));
        own == name.as_bytes() && rest.iter().all(|byte| *byte == 0)
    }

    fn data(&self) -> u64 {
        self.at.saturating_add(SECTION_LEN)
    }
}

/// Whether the first section is whole.
pub(super) fn starts(layer: &dyn Layer) -> bool {
    section(layer, 0, HEAD_LEN).is_some_and(|(_, valid)| valid)
}

fn section(layer: &dyn Layer, segment: u64, at: u64) -> Option<(Section, bool)> {
    let mut bytes = [0; 76];
    read_exact(layer, at, &mut bytes).ok()?;
    let word = |at: usize| bytes.get(at..).map_or(0, LittleEndian::read_u64);
    let valid = bytes.get(..72).map(adler32) == bytes.get(72..).map(LittleEndian::read_u32);
    let kind = std::array::from_fn(|i| bytes.get(i).copied().unwrap_or(0));
    let next = segment.saturating_add(word(16));
    // Some writers leave the size out: then the next section tells.
    let end = if word(24) >= SECTION_LEN { at.saturating_add(word(24)) } else { next };
    // No section reaches into the next: what all of them have together is no more than the file.
    let end = if next > at { end.min(next) } else { end };
    Some((Section { at, kind, next, end }, valid))
}

/// Everything but the chunks.
pub(super) fn read(layer: &dyn Layer) -> Result<Image, Error> {
    let mut reader = Reader::new(layer);
    reader.walk()?;
    reader.finish()
}

struct Reader<'a> {
    layer: &'a dyn Layer,
    volume: Option<Volume>,
    tables: Vec<Table>,
    errors: Vec<Range<u64>>,
    areas: Vec<Range<u64>>,
    findings: Vec<Finding>,
    texts: Vec<(&'static str, String)>,
    /// Headers that were read.
    headers: u32,
    /// The last segment's number.
    segment: u16,
    segments: u32,
    /// The number behind which segments are missing.
    gaps: Vec<u16>,
    /// Whether the last segment says that it is.
    done: bool,
    /// The sectors that the next table is of.
    sectors_end: Option<u64>,
    /// How far a segment was looked for.
    searched: u64,
}

impl<'a> Reader<'a> {
    fn new(layer: &'a dyn Layer) -> Self {
        Self {
            layer,
            volume: None,
            tables: Vec::new(),
            errors: Vec::new(),
            areas: Vec::new(),
            findings: Vec::new(),
            texts: Vec::new(),
            headers: 0,
            segment: 0,
            segments: 0,
            gaps: Vec::new(),
            done: false,
            sectors_end: None,
            searched: 0,
        }
    }

    fn note(&mut self, code: &'static str, range: Range<u64>, trust: Trust, text: impl Into<String>) {
        self.findings.push(Finding::new(code, range, trust, text));
    }

    fn walk(&mut self) -> Result<(), Error> {
        let mut start = 0;
        while start < self.layer.len() && !self.done {
            let mut head = [0; 13];
            let whole = read_exact(self.layer, start, &mut head).is_ok() && head.starts_with(MAGIC);
            if !whole {
                if start == 0 {
                    return Err(Error::corrupt("EWF segment", 0, "no EVF there"));
                }
                self.note(
                    "EWF-SEGMENT",
                    start..start.saturating_add(13),
                    Trust::Sound,
                    "no segment begins where one should",
                );
                break;
            }
            let number = head.get(9..11).map_or(0, LittleEndian::read_u16);
            if start == 0 && number != 1 {
                let text = "an EWF image without its first segment: give the .E01 file, and the others beside it:";
                return Err(Error::unsupported(format!("segment {number} of {text}")));
            }
            if number <= self.segment {
                let text = format!("segment {number} lies behind segment {}", self.segment);
                self.note("EWF-SEGMENT", start..start.saturating_add(13), Trust::Doubtful, text);
            } else if number.checked_sub(1) != Some(self.segment) {
                if self.gaps.last() != Some(&self.segment) {
                    self.gaps.push(self.segment);
                }
                let text = format!("segments behind {} and before {number} are not there", self.segment);
                self.note("EWF-SEGMENT-GONE", start..start.saturating_add(13), Trust::Doubtful, text);
            }
            self.segment = number;
            self.segments = self.segments.saturating_add(1);
            self.areas.push(start..start.saturating_add(HEAD_LEN));
            start = match self.segment(start) {
                Some(end) => end,
                None => match self.next_segment(number) {
                    Some(next) => next,
                    None => break,
                },
            };
        }
        if !self.done {
            let end = self.layer.len();
            let text = "the last segment is not there, or cut: what it has is lost";
            self.note("EWF-END", end.saturating_sub(1)..end, Trust::Doubtful, text);
        }
        Ok(())
    }

    /// Where the first segment behind `number` begins, behind all that was read: what lies before it is of a segment
    /// that was cut. What is cut is read once, however often that happens.
    fn next_segment(&mut self, number: u16) -> Option<u64> {
        const STEP: u64 = 1 << 20;
        let read = self.areas.last().map_or(0, |area| area.start);
        let mut at = read.max(self.searched);
        while at < self.layer.len() {
            let (bytes, _) = read_vec(self.layer, at, narrow(STEP.saturating_add(HEAD_LEN)));
            let found = bytes.windows(narrow(HEAD_LEN)).position(|head| {
                let later = head.get(9..11).map_or(0, LittleEndian::read_u16) > number;
                // Behind the magic: 1, the number, 0.
                head.starts_with(MAGIC) && head.get(8) == Some(&1) && head.get(11..) == Some(&[0, 0][..]) && later
            });
            if let Some(into) = found {
                let start = at.saturating_add(wide(into));
                let text = format!("segment {number} is cut: what it lacks is lost");
                self.note("EWF-SEGMENT-CUT", read..start, Trust::Doubtful, text);
                self.searched = start;
                // What a cut segment lacks is not known, as if there were segments missing behind it.
                self.gaps.push(number);
                return Some(start);
            }
            at = at.saturating_add(STEP);
        }
        self.searched = self.layer.len();
        None
    }

    /// Reads the sections of a segment; where the next segment begins, if that can be told.
    fn segment(&mut self, start: u64) -> Option<u64> {
        let mut at = start.saturating_add(HEAD_LEN);
        self.sectors_end = None;
        loop {
            if self.areas.len() >= MAX_SECTIONS {
                self.note(
                    "EWF-SECTION",
                    at..at.saturating_add(SECTION_LEN),
                    Trust::Doubtful,
                    "more sections than any image has",
                );
                return None;
            }
            let Some((section, valid)) = section(self.layer, start, at) else {
                self.note("EWF-SECTION", at..at.saturating_add(SECTION_LEN), Trust::Sound, "a section can't be read");
                return None;
            };
            let is_last = section.is("next") || section.is("done");
            let named = section.kind.first().is_some_and(u8::is_ascii_lowercase);
            let leads_on = section.next > at && section.next <= self.layer.len().max(section.end);
            if !valid && !(named && (leads_on || is_last)) {
                // What is not found costs itself: that the chunks before are whole, their checksums say.
                let text = "there is no section where one should be";
                self.note("EWF-SECTION", at..at.saturating_add(SECTION_LEN), Trust::Sound, text);
                return None;
            }
            if !valid {
                let text = "a section's head does not match its checksum";
                self.note("EWF-SECTION", at..at.saturating_add(SECTION_LEN), Trust::Doubtful, text);
            }
            let area_end =
                if section.is("sectors") { section.data() } else { section.end.min(section.data().max(section.next)) };
            self.areas.push(at..area_end);
            self.take(&section, start);
            if is_last {
                self.done = section.is("done");
                // Its content is none; SMART gives it a size all the same.
                return Some(section.data());
            }
            if section.next <= at {
                self.note("EWF-SECTION", at..at.saturating_add(SECTION_LEN), Trust::Doubtful, "a section leads back");
                return None;
            }
            at = section.next;
        }
    }

    fn take(&mut self, section: &Section, start: u64) {
        if section.is("volume") || section.is("disk") || section.is("data") {
            self.take_volume(section);
        } else if section.is("sectors") {
            self.sectors_end = Some(section.end.max(section.next));
        } else if section.is("table") || section.is("table2") {
            self.take_table(section, start);
        } else if section.is("error2") {
            self.take_errors(section);
        } else if section.is("hash") {
            self.take_sums(section, &[("md5", 16)], 32);
        } else if section.is("digest") {
            self.take_sums(section, &[("md5", 16), ("sha1", 20)], 76);
        } else if section.is("header") || section.is("header2") || section.is("xheader") {
            self.take_text(section);
        }
    }

    /// The bytes of a section, at most `max`.
    fn content(&self, section: &Section, max: u64) -> Option<Vec<u8>> {
        let len = section.end.checked_sub(section.data())?.min(max);
        let (bytes, seen) = read_vec(self.layer, section.data(), narrow(len));
        seen.is_whole().then_some(bytes)
    }

    fn take_volume(&mut self, section: &Section) {
        // 1,052 bytes of EnCase, 94 of SMART.
        let Some(bytes) = self.content(section, 1052).filter(|bytes| bytes.len() >= 94) else { return };
        let is_long = bytes.len() >= 1052;
        let summed = if is_long { 1048 } else { 90 };
        let valid = bytes.get(..summed).map(adler32) == bytes.get(summed..).map(LittleEndian::read_u32);
        let word = |at: usize| bytes.get(at..).map_or(0, LittleEndian::read_u32);
        let long = |at: usize| bytes.get(at..).map_or(0, LittleEndian::read_u64);
        let volume = Volume {
            chunks: word(4),
            chunk_len: word(8).saturating_mul(word(12)),
            sector_len: word(12),
            sectors: if is_long { long(16) } else { word(16).into() },
            set: bytes.get(64..80).filter(|_| is_long).and_then(|id| id.try_into().ok()),
        };
        let fits = (1..=MAX_UNIT).contains(&volume.chunk_len)
            && volume.sectors.checked_mul(volume.sector_len.into()).is_some()
            && volume.len() <= u64::from(volume.chunks).saturating_mul(volume.chunk_len.into());
        let range = section.at..section.end;
        if !valid || !fits {
            let text = if valid { "the sizes contradict each other" } else { "the sizes do not match their checksum" };
            // A later segment may have a copy that does.
            let trust = if self.volume.is_some() { Trust::Sound } else { Trust::Inferred };
            self.note("EWF-VOLUME", range, trust, text);
            return;
        }
        match &self.volume {
            None => self.volume = Some(volume),
            Some(known)
                if (known.chunks, known.chunk_len, known.sectors, known.set)
                    != (volume.chunks, volume.chunk_len, volume.sectors, volume.set) =>
            {
                self.note("EWF-SET", range, Trust::Doubtful, "a segment is of another image");
            }
            Some(_) => {}
        }
    }

    fn take_table(&mut self, section: &Section, start: u64) {
        let mut head = [0; 24];
        let whole = read_exact(self.layer, section.data(), &mut head).is_ok();
        let valid = head.get(..20).map(adler32) == head.get(20..).map(LittleEndian::read_u32);
        let count = LittleEndian::read_u32(&head);
        let range = section.at..section.data().saturating_add(TABLE_LEN);
        let is_copy = section.is("table2");
        let entries_end = section.data().saturating_add(TABLE_LEN).saturating_add(u64::from(count).saturating_mul(4));
        if !whole || !valid || count > MAX_CHUNKS || entries_end > section.end {
            // Its copy counts the same chunks; if there is none, the chunks behind are where they should not be.
            self.note("EWF-TABLE", range, Trust::Inferred, "the head of a table is damaged");
            return;
        }
        let entries = section.data().saturating_add(TABLE_LEN);
        // Of SMART the chunks follow the entries at once.
        let has_chunks = section.end > entries_end.saturating_add(64) && self.sectors_end.is_none();
        let base = start.saturating_add(head.get(8..).map_or(0, LittleEndian::read_u64));
        let copy = Copy { at: entries, base, summed: !has_chunks && section.end >= entries_end.saturating_add(4) };
        let end = if has_chunks { section.end } else { self.sectors_end.unwrap_or(entries_end) };
        let segment = self.segment;
        let is_of = |last: &&mut Table| is_copy && last.copies.len() == 1 && last.end == end && last.segment == segment;
        if let Some(last) = self.tables.last_mut().filter(is_of) {
            if last.count == count {
                last.copies.push(copy);
            } else {
                last.trust = Trust::Doubtful;
            }
            return;
        }
        let copies = vec![copy];
        self.tables.push(Table { first: 0, count, copies, end, trust: Trust::Sound, segment });
    }

    fn take_errors(&mut self, section: &Section) {
        let range = section.at..section.end;
        let head = self.content(section, 520).filter(|head| head.len() == 520);
        let count = head.as_deref().map_or(0, LittleEndian::read_u32);
        let valid =
            head.is_some_and(|head| head.get(..516).map(adler32) == head.get(516..).map(LittleEndian::read_u32));
        let inside = section.end.saturating_sub(section.data()).saturating_sub(520);
        let len = u64::from(count).saturating_mul(8);
        let (bytes, seen) =
            read_vec(self.layer, section.data().saturating_add(520), narrow(len.min(MAX_ERRORS << 3).min(inside)));
        if !valid || !seen.is_whole() || wide(bytes.len()) < len {
            // What the imager put there instead of what it could not read is taken for data.
            self.note("EWF-ERRORS", range, Trust::Doubtful, "the list of unreadable sectors is damaged");
        }
        let sector = self.volume.as_ref().map_or(512, |volume| volume.sector_len);
        for entry in bytes.chunks_exact(8) {
            let (first, count) = (LittleEndian::read_u32(entry), entry.get(4..).map_or(0, LittleEndian::read_u32));
            let start = u64::from(first).saturating_mul(sector.into());
            self.errors.push(start..start.saturating_add(u64::from(count).saturating_mul(sector.into())));
        }
    }

    fn take_sums(&mut self, section: &Section, sums: &[(&'static str, usize)], summed: usize) {
        let Some(bytes) = self.content(section, 80) else { return };
        if bytes.get(..summed).map(adler32)
            != bytes.get(summed..).filter(|sum| sum.len() >= 4).map(LittleEndian::read_u32)
        {
            self.note("EWF-HASH", section.at..section.end, Trust::Sound, "a digest does not match its checksum");
            return;
        }
        let mut rest = bytes.as_slice();
        for (name, len) in sums {
            let (sum, after) = rest.split_at((*len).min(rest.len()));
            rest = after;
            if sum.iter().any(|byte| *byte != 0) && !self.texts.iter().any(|(known, _)| known == name) {
                let digits = sum.iter().flat_map(|byte| [byte >> 4, byte & 15]);
                let digits = digits.filter_map(|digit| char::from_digit(digit.into(), 16)).collect();
                self.texts.push((name, digits));
            }
        }
    }

    /// The examiner's words: zlib of lines, of which the third names the columns of the fourth.
    fn take_text(&mut self, section: &Section) {
        if self.headers >= MAX_HEADERS {
            return;
        }
        self.headers = self.headers.saturating_add(1);
        let Some(packed) = self.content(section, wide(MAX_TEXT)) else { return };
        let mut bytes = vec![0; MAX_TEXT];
        let len = match inflate_zlib(&packed, &mut bytes) {
            Ok(_) => MAX_TEXT,
            Err(crate::codec::Cut(len)) => len,
        };
        let bytes = bytes.get(..len).unwrap_or_default();
        let text = match bytes.strip_prefix(b"\xFF\xFE") {
            Some(wide) => {
                String::from_utf16_lossy(&wide.chunks_exact(2).map(LittleEndian::read_u16).collect::<Vec<u16>>())
            }
            None => String::from_utf8_lossy(bytes).into_owned(),
        };
        let mut lines = text.lines().skip(2);
        let (Some(names), Some(values)) = (lines.next(), lines.next()) else { return };
        for (name, value) in names.split('\t').zip(values.split('\t')) {
            let name = match name {
                "c" => "case_number",
                "n" => "evidence_number",
                "a" => "description",
                "e" => "examiner",
                "t" => "notes",
                "m" => "acquired",
                "av" => "acquired_by",
                _ => continue,
            };
            if !value.is_empty() && !self.texts.iter().any(|(known, _)| *known == name) {
                self.texts.push((name, value.escape_default().to_string()));
            }
        }
    }

    fn finish(mut self) -> Result<Image, Error> {
        let missing = || Error::corrupt("EWF volume section", HEAD_LEN, "none is whole");
        let volume = self.volume.clone().ok_or_else(missing)?;
        self.count_chunks(u64::from(volume.chunks));
        self.errors.retain(|range| range.start < range.end);
        self.errors.sort_by_key(|range| range.start);
        self.errors.dedup_by(|next, range| {
            let touches = next.start <= range.end;
            if touches {
                range.end = range.end.max(next.end);
            }
            touches
        });
        let has = |code: &str| self.findings.iter().any(|finding| finding.code == code);
        let why = match (has("EWF-SEGMENT-GONE"), self.done && self.gaps.is_empty()) {
            (true, _) => Why::Absent,
            (false, false) => Why::Truncated,
            (false, true) => Why::Unmapped,
        };
        Ok(Image {
            volume,
            tables: self.tables,
            errors: self.errors,
            areas: self.areas,
            findings: self.findings,
            why,
            segments: self.segments,
            texts: self.texts,
        })
    }

    /// Counts the chunks on from table to table; behind a gap, from the end.
    fn count_chunks(&mut self, chunks: u64) {
        let mut first: u64 = 0;
        let gap = self.gaps.first().copied();
        for table in self.tables.iter_mut().take_while(|table| gap.is_none_or(|gap| table.segment <= gap)) {
            table.first = first;
            first = first.saturating_add(table.count.into());
        }
        let last_gap = self.gaps.last().copied();
        if let Some(last_gap) = last_gap {
            let mut end = chunks;
            // Between two gaps nothing tells where the chunks are.
            let one_gap = self.gaps.len() == 1 && self.done;
            self.tables
                .retain(|table| gap.is_some_and(|gap| table.segment <= gap) || (one_gap && table.segment > last_gap));
            for table in self.tables.iter_mut().rev().take_while(|table| table.segment > last_gap) {
                end = end.saturating_sub(table.count.into());
                table.first = end;
                table.trust = table.trust.max(Trust::Inferred);
            }
            if end < first {
                self.note("EWF-CHUNKS", 0..1, Trust::Doubtful, "the segments have more chunks than the image");
                self.tables.retain(|table| table.segment <= last_gap);
            }
        } else if first > chunks || (self.done && first != chunks) {
            // Which table lacks or adds chunks is not known: those behind it are shifted.
            let text = format!("the tables have {first} chunks, the image {chunks}");
            self.note("EWF-CHUNKS", 0..1, Trust::Doubtful, text);
        }
    }
}

impl Image {
    pub(super) fn facts(&self) -> Vec<Fact> {
        let mut facts = vec![
            Fact::new("size", Value::Bytes(self.volume.len())),
            Fact::new("sector_size", Value::Bytes(self.volume.sector_len.into())),
            Fact::new("chunk_size", Value::Bytes(self.volume.chunk_len.into())),
            Fact::new("chunks", Value::Count(self.volume.chunks.into())),
            Fact::new("segments", Value::Count(self.segments.into())),
            Fact::new("unreadable_ranges", Value::Count(wide(self.errors.len()))),
        ];
        facts.extend(self.volume.set.filter(|set| *set != [0; 16]).map(|set| Fact::new("set_id", guid::mixed(&set))));
        facts.extend(self.texts.iter().map(|(name, text)| Fact::new(name, text.clone())));
        facts
    }
}
