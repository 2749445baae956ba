//! A hosted extent whose header is gone, made again from what is left: a stream's footer is a copy of it; the
//! descriptor has the length; directories are recognised by their numbers (`layout.rs`) and streams by their records
//! (`stream.rs`). What no copy of the header says, the size of a grain and of a table, is the same in all writers.

use super::descriptor::{self, Descriptor};
use super::hosted::{self, Header, MAGIC, Made};
use super::layout::Directory;
use super::packed::{self, marker};
use super::stream;
use crate::error::Error;
use crate::format::{Clue, Window};
use crate::layer::{Bytes, Layer, Trust};
use crate::link::Opened;
use crate::memo::Memo;
use crate::note::Finding;
use crate::num::{narrow, round_up, wide};
use crate::read::{read, read_vec};
use byteorder::{ByteOrder, LittleEndian};

/// What all writers use: 64 KiB.
const GRAIN: u64 = 64 << 10;
/// What a table of 512 grains maps.
const TABLE_MAPS: u64 = 512 * GRAIN;
/// Its bytes.
const TABLE_LEN: u64 = 512 * 4;
/// Where an embedded descriptor lies, and how long it is at most in all writers.
const TEXT: (u64, u64) = (512, 20 * 512);
/// How far from the start tables are looked for when a file is opened; a sweep looks everywhere.
const NEAR: u64 = 8 << 20;
/// Where the first directory lies behind an embedded descriptor, and where there is none.
const USUAL: [u64; 2] = [21 * 512, 512];

/// The kinds of clues. A descriptor at its usual place.
const DESCRIPTOR: u32 = 1;
/// A directory, `len` entries.
const DIRECTORY: u32 = 2;
/// Records of a stream, one behind the other; `value` is where the last one's grain starts on the disk.
const RECORDS: u32 = 3;

/// Whether it is an extent though its start does not say so, from a few small reads.
pub(super) fn is_headless(layer: &dyn Layer) -> bool {
    let mut head = [0; 512];
    if layer.len() < 1024 {
        return false;
    }
    let whole = |at: u64, buf: &mut [u8]| read(layer, at, buf).is_whole();
    if whole(TEXT.0, &mut head) && descriptor::is_signed(&head) {
        return true;
    }
    let end = layer.len() & !511;
    let footer = end.checked_sub(1024).filter(|at| whole(*at, &mut head) && head.starts_with(MAGIC));
    if footer.and_then(|at| packed::marker_at(layer, at.checked_sub(512)?)) == Some(marker::FOOTER) {
        return true;
    }
    // The numbers of a short directory could be there by chance.
    USUAL.iter().any(|at| {
        whole(*at, &mut head) && Directory::recognise(*at, &head).is_some_and(|directory| directory.tables >= 4)
    })
}

/// The header of an extent, or one made from what is left. `len` is how long the disk must be, where it is known.
pub(super) fn load(layer: &dyn Layer, len: Option<u64>) -> Result<Header, Error> {
    match Header::load(layer) {
        Err(Error::Unsupported { what }) => Err(Error::Unsupported { what }),
        Err(error) => make(layer, len).ok_or(error),
        header => header,
    }
}

fn make(layer: &dyn Layer, len: Option<u64>) -> Option<Header> {
    let copy = hosted::footer(layer).and_then(|(_, raw)| Header::check(&raw, layer).ok());
    if let Some(mut header) = copy {
        header.at_best(Trust::Inferred);
        let text = "the header is damaged; the copy in the footer is used";
        header.findings.push(Finding::new("KDMV-HEADER", 0..512, Trust::Inferred, text));
        return Some(header);
    }
    let mut clues = Vec::new();
    let mut at = 0;
    while at < layer.len().min(NEAR) {
        const WINDOW: u64 = 1 << 20;
        let own = layer.len().saturating_sub(at).min(WINDOW);
        let with_margin = layer.len().saturating_sub(at).min(WINDOW << 1);
        let (bytes, _) = read_vec(layer, at, narrow(with_margin));
        look(&Window { at, bytes: &bytes, own: narrow(own) }, &mut |clue| clues.push(clue));
        at = at.saturating_add(WINDOW);
    }
    from_clues(layer, &clues, len, false)
}

/// Reports descriptors, directories and records of streams. Places in an extent count from its start, so that only
/// one that starts where the layer does is found.
pub(super) fn look(window: &Window<'_>, tell: &mut dyn FnMut(Clue)) {
    let from = narrow(round_up(window.at, 512).saturating_sub(window.at));
    for into in (from..window.own).step_by(512) {
        let at = window.at.saturating_add(wide(into));
        let Some(rest) = window.bytes.get(into..) else { break };
        if at == TEXT.0 && descriptor::is_signed(rest.get(..512).unwrap_or(rest)) {
            tell(Clue { at, kind: DESCRIPTOR, len: TEXT.1, value: 0 });
        }
        if let Some(directory) = Directory::recognise(at, rest) {
            tell(Clue { at, kind: DIRECTORY, len: directory.tables, value: 0 });
        }
    }
    let mut chain: Option<Clue> = None;
    stream::records(window.at, window.bytes, window.own, GRAIN, u64::MAX, &mut |record| {
        let len = record.end.saturating_sub(record.at);
        match &mut chain {
            // Across a marker and its table.
            Some(clue) if record.start > clue.value && record.at.saturating_sub(clue.at) < 1 << 30 => {
                clue.len = clue.len.saturating_add(len);
                clue.value = record.start;
            }
            _ => {
                let new = Clue { at: record.at, kind: RECORDS, len, value: record.start };
                if let Some(old) = chain.replace(new) {
                    tell(old);
                }
            }
        }
    });
    chain.into_iter().for_each(tell);
}

/// The extent that the clues are of.
pub(super) fn build(bytes: &Bytes, memo: &Memo, clues: &[Clue]) -> Result<Opened, Error> {
    let nothing = || {
        let at = clues.first().map_or(0, |clue| clue.at);
        Error::corrupt("VMDK extent without header", at, "parts of one, which are not the whole image")
    };
    let header = from_clues(&**bytes, clues, None, true).ok_or_else(nothing)?;
    hosted::open_with(header, bytes, memo)
}

/// A header of what was seen. `strict` where nothing but the clues says that it is an extent at all.
fn from_clues(layer: &dyn Layer, clues: &[Clue], len: Option<u64>, strict: bool) -> Option<Header> {
    let has_text = clues.iter().any(|clue| clue.kind == DESCRIPTOR);
    let text = if has_text { hosted::embedded(layer, TEXT).ok().flatten() } else { None };
    let stated = text.as_ref().filter(|text| !text.extents.is_empty()).and_then(Descriptor::sectors);
    let len = len.or(stated.and_then(|sectors| sectors.checked_mul(512)));
    let place = if text.is_some() { TEXT } else { (0, 0) };
    let is_stream = text.as_ref().and_then(|text| text.get("createtype")).is_some_and(is_stream_type);
    let tables = directories(layer, clues, len, strict);
    let streamed = if is_stream || tables.is_none() { streamed(layer, clues, len, strict) } else { None };
    let (made, text) = match (streamed, tables) {
        (Some((len, overhead)), _) => {
            let made = Made { len, descriptor: place, directory: None, second: None, packed: true, overhead };
            (made, "the header is damaged; the grains are found by their records")
        }
        (None, Some((first, second))) => {
            let (directory, redundant) = second.map_or((first, None), |second| (second, Some(first.at)));
            // What the tables lead to are records, if there is little else in the file.
            let records = first_record(clues, if strict { layer.len() } else { layer.len().min(NEAR) });
            let made = Made {
                len: len.unwrap_or(first.tables.saturating_mul(TABLE_MAPS)),
                descriptor: place,
                directory: Some(directory.at),
                second: redundant,
                packed: records.is_some(),
                overhead: records.unwrap_or(round_up(directory.end(), GRAIN)),
            };
            (made, "the header is damaged; the tables are found by their layout")
        }
        (None, None) => return None,
    };
    let mut header = Header::made(made);
    header.findings.push(Finding::new("KDMV-HEADER", 0..512, Trust::Inferred, text));
    if len.is_none() {
        let text = "how long the disk is, nothing says: it has what its tables or grains reach";
        header.findings.push(Finding::new("KDMV-SIZE", 0..512, Trust::Doubtful, text));
    }
    Some(header)
}

fn is_stream_type(name: &[u8]) -> bool {
    name.eq_ignore_ascii_case(b"streamOptimized")
}

/// The first directory, and the second if it lies right behind the tables of the first.
fn directories(
    layer: &dyn Layer,
    clues: &[Clue],
    len: Option<u64>,
    strict: bool,
) -> Option<(Directory, Option<Directory>)> {
    let needed = len.map(|len| len.div_ceil(TABLE_MAPS));
    let all: Vec<Directory> = clues
        .iter()
        .filter(|clue| clue.kind == DIRECTORY)
        .map(|clue| Directory { at: clue.at, tables: clue.len })
        .filter(|directory| directory.end() <= layer.len() && needed.is_none_or(|needed| needed == directory.tables))
        .collect();
    let pair = |first: &Directory| {
        let second = all.iter().find(|second| second.at == first.end() && second.tables == first.tables);
        second.map(|second| (*first, Some(*second)))
    };
    // The numbers of a short directory could be there by chance, those of two that fit each other hardly.
    let alone = |first: &&Directory| first.tables >= 4 || (needed.is_some() && !strict);
    let found = all.iter().find_map(pair).or_else(|| all.iter().find(alone).map(|first| (*first, None)));
    found.or_else(|| unseen(layer, needed?))
}

/// The directories of an extent of so many tables, both gone: at the usual places, if there are tables behind them.
fn unseen(layer: &dyn Layer, tables: u64) -> Option<(Directory, Option<Directory>)> {
    const SAMPLES: u64 = 64;
    USUAL.into_iter().find_map(|at| {
        let first = Directory { at, tables };
        let second = Directory { at: first.end(), tables };
        let grains = round_up(second.end(), GRAIN);
        if tables == 0 || grains > layer.len() {
            return None;
        }
        let (mut right, mut wrong) = (0_u64, 0_u64);
        let each = tables.div_ceil(SAMPLES);
        for index in (0..SAMPLES).map(|sample| sample.saturating_mul(each)).take_while(|index| *index < tables) {
            let behind = tables.saturating_sub(index).saturating_mul(TABLE_LEN);
            let (table, _) = read_vec(layer, second.end().saturating_sub(behind), narrow(TABLE_LEN));
            let places =
                table.chunks_exact(4).map(|entry| u64::from(LittleEndian::read_u32(entry)).saturating_mul(512));
            for place in places.filter(|place| *place > 512) {
                let is_grain = place >= grains && place.is_multiple_of(GRAIN) && place < layer.len();
                right = right.saturating_add(u64::from(is_grain));
                wrong = wrong.saturating_add(u64::from(!is_grain));
            }
        }
        (right > 0 && wrong == 0).then_some((first, Some(second)))
    })
}

/// Where the first of the records lies that most of the first `seen` bytes of a file are.
fn first_record(clues: &[Clue], seen: u64) -> Option<u64> {
    let chains = || clues.iter().filter(|clue| clue.kind == RECORDS);
    let first = chains().next()?.at;
    let covered = chains().fold(0_u64, |sum, clue| sum.saturating_add(clue.len));
    (covered.saturating_mul(2) >= seen.saturating_sub(first)).then_some(first)
}

/// The length of the disk of a stream, and where its first record lies.
fn streamed(layer: &dyn Layer, clues: &[Clue], len: Option<u64>, strict: bool) -> Option<(u64, u64)> {
    let chains: Vec<&Clue> = clues.iter().filter(|clue| clue.kind == RECORDS).collect();
    let ascending = chains.is_sorted_by_key(|clue| clue.value);
    let first = chains.first()?;
    let covered = chains.iter().fold(0_u64, |sum, clue| sum.saturating_add(clue.len));
    let whole = covered.saturating_mul(2) >= layer.len() && first.at <= NEAR;
    if !ascending || (strict && !whole) {
        return None;
    }
    let last = chains.last()?.value.saturating_add(GRAIN);
    // Seen from its start only, a stream may go on.
    let len = len.or_else(|| strict.then_some(last))?;
    Some((len, first.at))
}
