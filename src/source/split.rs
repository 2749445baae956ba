//! Split raw images: `disk.001`, `disk.002` and so on, joined to the disk they were cut from.
//!
//! The tools that cut (FTK Imager, ewfexport, `split`) make all parts equally long but the last. That is the
//! evidence that files with such names belong together, and it places what lies behind a missing part.

mod segments;

pub(crate) use segments::is_spoken_for;

use super::file::FileLayer;
use super::input::{Facts, Input};
use super::{Source, SourceKind, holes};
use anyhow::{Context, Result};
use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::ops::Range;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use vdrecover_formats::num::wide;
use vdrecover_formats::{Fault, Finding, Layer, Place, Run, Tag, Trust, Why};

/// What the name and the neighbours of a file say.
pub(super) enum Found {
    /// The first part of a set.
    Set(Box<Source>),
    /// A file of its own, perhaps with a remark.
    Single(Vec<Finding>),
}

/// Joins the set that `first` opens. Only regular files of the same folder, by consecutive names; a link beside
/// the first part is not followed.
pub(super) fn join(path: &Path, first: &Input, tag: Tag) -> Result<Found> {
    let single = Ok(Found::Single(Vec::new()));
    if let Some(set) = segments::join(path, first, tag)? {
        return Ok(Found::Set(Box::new(set)));
    }
    let Some(name) = path.file_name().and_then(PartName::parse) else { return single };
    if first.facts.device {
        return single;
    }
    if !name.is_first() {
        return Ok(Found::Single(not_first(path, &name, first.facts.len)));
    }
    // Most names are of no set. To list the folder for each of its files would take the square of their number.
    if !may_be_of_set(path, &name) {
        return single;
    }
    let siblings = siblings(path, &name);
    let Some(numbers) = consecutive(name.number, &siblings) else { return single };
    raise_file_limit();
    // The first part is opened once more, so that a set which turns out to be none leaves `first` as it was.
    let mut parts = vec![Part { path: path.to_owned(), file: Some(Input::open(path)?) }];
    for number in numbers.skip(1) {
        let path = path.with_file_name(name.with_number(number));
        let file = siblings
            .contains_key(&number)
            .then(|| Input::open_part(&path))
            .transpose()
            .with_context(|| format!("{}: opening the parts of a split image", parts[0].path.display()))?;
        parts.push(Part { path, file });
    }
    match full_length(&parts) {
        Some(full) => Ok(Found::Set(Box::new(source(parts, full, &first.facts, tag)))),
        None => Ok(Found::Single(vec![uneven(&parts, first.facts.len)])),
    }
}

/// Asks for the few names that matter: `.img` and `.raw` have the form of a part's name too, and to list a folder
/// for each of its files takes the square of their number.
fn not_first(path: &Path, name: &PartName, len: u64) -> Vec<Finding> {
    let part = |number: u32| {
        let meta = std::fs::symlink_metadata(path.with_file_name(name.with_number(number))).ok()?;
        meta.is_file().then_some(meta.len())
    };
    let lowest = (0..=1).find(|number| *number < name.number && part(*number).is_some());
    let before = name.number.checked_sub(1).and_then(part).is_some_and(|before| before >= len);
    match lowest {
        Some(lowest) if before => {
            let first = name.with_number(lowest);
            let text =
                format!("looks like a later part of a split image; give {} to join them", first.to_string_lossy());
            vec![Finding::new("SPLIT-LATER-PART", 0..len, Trust::Inferred, text)]
        }
        _ => Vec::new(),
    }
}

fn uneven(parts: &[Part], len: u64) -> Finding {
    let text = format!(
        "{} files beside it are named like further parts of a split image, but their lengths do not fit: not joined",
        parts.len() - 1
    );
    Finding::new("SPLIT-UNEVEN", 0..len, Trust::Sound, text)
}

/// A name that ends in a number of a fixed width: digits, or letters as `split` counts.
#[derive(Clone, Debug, PartialEq, Eq)]
struct PartName {
    stem: Vec<u8>,
    width: usize,
    letters: bool,
    number: u32,
}

impl PartName {
    fn parse(name: &OsStr) -> Option<Self> {
        let name = name.as_bytes();
        let dot = name.iter().rposition(|byte| *byte == b'.').filter(|dot| *dot > 0)?;
        let (stem, suffix) = name.split_at(dot + 1);
        let letters = suffix.iter().all(u8::is_ascii_lowercase);
        if !(2..=6).contains(&suffix.len()) || !(letters || suffix.iter().all(u8::is_ascii_digit)) {
            return None;
        }
        let (base, zero) = if letters { (26, b'a') } else { (10, b'0') };
        let number = suffix.iter().fold(0, |number, byte| number * base + u32::from(byte - zero));
        Some(Self { stem: stem.to_vec(), width: suffix.len(), letters, number })
    }

    /// Letters count from `aa`, digits from 0 or from 1.
    fn is_first(&self) -> bool {
        self.number == 0 || (self.number == 1 && !self.letters)
    }

    fn with_number(&self, number: u32) -> OsString {
        let (base, zero) = if self.letters { (26, b'a') } else { (10, b'0') };
        let mut suffix = vec![zero; self.width];
        let mut rest = number;
        for byte in suffix.iter_mut().rev() {
            *byte = zero + u8::try_from(rest % base).unwrap_or_default();
            rest /= base;
        }
        OsString::from_vec([self.stem.as_slice(), &suffix].concat())
    }
}

/// Whether those files are there without which neither [`consecutive`] nor [`not_first`] finds anything.
fn may_be_of_set(path: &Path, name: &PartName) -> bool {
    let needed = if name.is_first() { [name.number + 1, name.number + 2] } else { [0, 1] };
    needed.into_iter().any(|number| path.with_file_name(name.with_number(number)).symlink_metadata().is_ok())
}

/// Numbers and lengths of the regular files beside `path` that differ from it in the number only.
fn siblings(path: &Path, name: &PartName) -> BTreeMap<u32, u64> {
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    // A folder that can't be listed has no siblings to offer; the file itself was opened.
    let Ok(entries) = std::fs::read_dir(folder) else { return BTreeMap::new() };
    let named = entries.flatten().filter_map(|entry| {
        let other = PartName::parse(&entry.file_name())?;
        let same = other.stem == name.stem && other.width == name.width && other.letters == name.letters;
        let meta = same.then(|| entry.metadata().ok())??;
        meta.is_file().then_some((other.number, meta.len()))
    });
    named.collect()
}

/// The numbers from `first` to the last part, or nothing when there is only one. At most as many parts may be
/// missing as there are: a set that lost more than it has is not recognised by its names any more.
fn consecutive(first: u32, siblings: &BTreeMap<u32, u64>) -> Option<std::ops::RangeInclusive<u32>> {
    let mut last = first;
    for (number, have) in siblings.range(first + 1..).map(|(number, _)| *number).zip(1..) {
        if number - first - have > have {
            break;
        }
        last = number;
    }
    (last > first).then_some(first..=last)
}

struct Part {
    path: PathBuf,
    file: Option<Input>,
}

impl Part {
    fn len(&self) -> Option<u64> {
        self.file.as_ref().map(|file| file.facts.len)
    }
}

/// How long a part is that is not the last: what most of them are. Nothing if a part is longer than that, since
/// no tool cuts so.
fn full_length(parts: &[Part]) -> Option<u64> {
    let mut counts = BTreeMap::new();
    for len in parts.iter().rev().skip(1).filter_map(Part::len) {
        *counts.entry(len).or_insert(0_usize) += 1;
    }
    let (full, _) = counts.into_iter().max_by_key(|(len, count)| (*count, *len))?;
    parts.iter().filter_map(Part::len).all(|len| len <= full).then_some(full)
}

fn source(parts: Vec<Part>, full: u64, first: &Facts, tag: Tag) -> Source {
    let paths: Vec<PathBuf> = parts.iter().map(|part| part.path.clone()).collect();
    let count = parts.len();
    let mut findings = Vec::new();
    let mut pieces = Vec::new();
    let mut start: u64 = 0;
    let mut modified = None;
    let mut has_holes = false;
    let mut trust = Trust::Sound;
    for (i, part) in parts.into_iter().enumerate() {
        let found = part.len();
        let len = if i + 1 == count { found.unwrap_or(full) } else { full };
        // No real set is longer than the address space; what would be is left out.
        let Some(end) = start.checked_add(len) else { break };
        // Behind a part that is missing or short, the place of a part follows from the length of the others.
        let place = trust;
        let mut odd = |code, text| {
            findings.push(Finding::new(code, start..end, Trust::Inferred, format!("{}: {text}", part.path.display())));
            trust = Trust::Inferred;
        };
        match found {
            None => odd("SPLIT-PART-MISSING", format!("this part is missing; taken to be {len} bytes as the others")),
            Some(found) if found < len => {
                odd("SPLIT-PART-SHORT", format!("this part has {found} bytes, the others have {len}"));
            }
            Some(_) => {}
        }
        let file = part.file.map(|input| {
            modified = modified.max(input.facts.modified);
            FileLayer::new(input, None)
        });
        has_holes |= file.as_ref().is_some_and(FileLayer::has_holes);
        pieces.push(Piece { range: start..end, file, trust: place });
        start = end;
    }
    findings.extend(holes(has_holes, start));
    Source {
        path: paths.first().cloned().unwrap_or_default(),
        bytes: Arc::new(Joined { pieces, len: start, tag }),
        kind: SourceKind::Split { parts: paths },
        len: start,
        modified,
        identity: first.identity,
        sector: first.sector,
        findings,
    }
}

#[derive(Debug)]
struct Piece {
    range: Range<u64>,
    file: Option<FileLayer<Input>>,
    trust: Trust,
}

/// The parts as one address space. It answers for its bytes itself, and does not point below: claims and
/// provenance name a source by its tag and an offset, and the offset has to be that of the whole.
#[derive(Debug)]
struct Joined {
    pieces: Vec<Piece>,
    len: u64,
    tag: Tag,
}

impl Joined {
    /// The first piece that ends behind `at`; empty ones are passed over.
    fn piece(&self, at: u64) -> Option<&Piece> {
        self.pieces.get(self.pieces.partition_point(|piece| piece.range.end <= at))
    }
}

impl Layer for Joined {
    fn len(&self) -> u64 {
        self.len
    }

    fn about(&self) -> String {
        format!("split image of {} parts", self.pieces.len())
    }

    fn run(&self, at: u64, want: u64) -> Run<'_> {
        let Some(piece) = self.piece(at) else {
            return Run::lost(want, Why::Truncated, at);
        };
        let want = want.min(piece.range.end - at);
        let into = at - piece.range.start;
        let run = match &piece.file {
            None => Run::lost(want, Why::Absent, at),
            Some(file) => match file.len().saturating_sub(into) {
                0 => Run::lost(want, Why::Truncated, at),
                inside => file.run(into, want.min(inside)),
            },
        };
        // What is lost is named by its offset in the whole, too.
        let place = match run.place {
            Place::Lost(loss) => Place::Lost(vdrecover_formats::Loss { at, ..loss }),
            place => place,
        };
        Run { place, trust: piece.trust.max(run.trust), ..run }
    }

    fn fetch(&self, at: u64, buf: &mut [u8]) -> Result<Trust, Fault> {
        let mut done = 0;
        while done < buf.len() {
            let pos = at.saturating_add(wide(done));
            let piece = self.piece(pos).ok_or(Fault::after(done, Why::Truncated, pos))?;
            let rest = buf.get_mut(done..).unwrap_or_default();
            let count = rest.len().min(vdrecover_formats::num::narrow(piece.range.end - pos));
            let part = rest.get_mut(..count).unwrap_or_default();
            let Some(file) = &piece.file else {
                return Err(Fault { lost: count, ..Fault::after(done, Why::Absent, pos) });
            };
            file.fetch(pos - piece.range.start, part).map_err(|fault| Fault {
                good: done + fault.good,
                lost: fault.lost.min(count.saturating_sub(fault.good)).max(1),
                loss: vdrecover_formats::Loss { at: pos + wide(fault.good), ..fault.loss },
            })?;
            done += count;
        }
        Ok(Trust::Sound)
    }

    fn tag(&self) -> Option<Tag> {
        Some(self.tag)
    }

    fn advise(&self, soon: &[Range<u64>]) {
        for range in soon {
            let from = self.pieces.partition_point(|piece| piece.range.end <= range.start);
            for piece in self.pieces.iter().skip(from).take_while(|piece| piece.range.start < range.end) {
                let start = range.start.max(piece.range.start) - piece.range.start;
                let end = range.end.min(piece.range.end) - piece.range.start;
                if let Some(file) = &piece.file {
                    file.advise(std::slice::from_ref(&(start..end)));
                }
            }
        }
    }
}

/// A set may have more parts, and a folder more images, than a process may have files open by default. Asks for
/// as many as the system grants; where that is too few, opening a file says so.
pub(crate) fn raise_file_limit() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    let _ = setrlimit(Resource::Nofile, limit);
}

#[cfg(test)]
mod tests;
