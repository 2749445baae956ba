//! Segments of an EWF image: `disk.E01` to `disk.E99`, then `disk.EAA` to `disk.EZZ`, `disk.FAA` and so on.
//!
//! Each says its number, so that the format tells what is missing between those that are there.

use super::{Input, Joined, Piece, raise_file_limit};
use crate::report;
use crate::source::file::FileLayer;
use crate::source::{Source, SourceKind, holes};
use anyhow::{Context, Result, bail};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use vdrecover_formats::{Tag, Trust};

/// The place of a name among the segments of its set, from 1 on, with the stem that all have.
pub(in crate::source) fn number(name: &OsStr) -> Option<(Vec<u8>, u32)> {
    let name = name.as_bytes();
    let (stem, suffix) = name.split_at_checked(name.len().checked_sub(3)?)?;
    if stem.last() != Some(&b'.') || stem.len() < 2 {
        return None;
    }
    let upper: Vec<u8> = suffix.to_ascii_uppercase();
    let [first, second, third] = *upper.as_slice() else { return None };
    let letter = |byte: u8| byte.checked_sub(b'A').filter(|place| *place < 26).map(u32::from);
    let digit = |byte: u8| byte.checked_sub(b'0').filter(|place| *place < 10).map(u32::from);
    let number = match (digit(second), digit(third)) {
        (Some(tens), Some(ones)) if matches!(first, b'E' | b'S') => tens * 10 + ones,
        // Both kinds count on through the letters behind their own.
        _ => {
            let start = letter(if first < b'S' { b'E' } else { b'S' })?;
            let rounds = letter(first)?.checked_sub(start)?;
            100 + rounds * 676 + letter(second)? * 26 + letter(third)?
        }
    };
    (number > 0).then(|| (stem.to_vec(), number))
}

/// Joins the segments that lie beside the first one. Links are not followed. Fails for a later one: it is no image.
pub(in crate::source) fn join(path: &Path, first: &Input, tag: Tag) -> Result<Option<Source>> {
    let Some((stem, place)) = path.file_name().and_then(number) else { return Ok(None) };
    if first.facts.device || !is_segment(path) {
        return Ok(None);
    }
    if place > 1 {
        let stem = report::printable(&stem);
        bail!("segment {place} of an image in segments: give its first, {stem}E01; the others are found beside that");
    }
    let folder = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let Ok(entries) = std::fs::read_dir(folder) else { return Ok(None) };
    let mut found: Vec<(u32, PathBuf)> = entries
        .flatten()
        .filter_map(|entry| {
            let (own, number) = number(&entry.file_name())?;
            let is_file = own == stem && number > 1 && entry.metadata().ok()?.is_file();
            let path = path.with_file_name(entry.file_name());
            (is_file && is_segment(&path)).then_some((number, path))
        })
        .collect();
    found.sort();
    // The names of two kinds of sets may go on in each other.
    found.dedup_by_key(|(number, _)| *number);
    if found.is_empty() {
        return Ok(None);
    }
    raise_file_limit();
    let mut inputs = vec![Input::open(path)?];
    for (_, path) in &found {
        let opened = Input::open_part(path);
        inputs.push(opened.with_context(|| format!("{}: opening a segment of the image", path.display()))?);
    }
    let mut parts = vec![path.to_owned()];
    parts.extend(found.into_iter().map(|(_, path)| path));
    Ok(Some(source(parts, inputs, first, tag)))
}

/// Whether a file is a segment that the first of its set, which lies beside it, speaks for.
pub(crate) fn is_spoken_for(path: &Path) -> bool {
    let Some((stem, 2..)) = path.file_name().and_then(number) else { return false };
    let first = |suffix: &str| {
        let path = path.with_file_name(OsStr::from_bytes(&[&stem, suffix.as_bytes()].concat()));
        path.symlink_metadata().is_ok_and(|meta| meta.is_file()) && is_segment(&path)
    };
    is_segment(path) && ["E01", "e01", "S01", "s01"].into_iter().any(first)
}

/// Whether a file says that it is a segment: `a.exe` has the form of a segment's name too.
fn is_segment(path: &Path) -> bool {
    let mut mark = [0; 8];
    let read = std::fs::File::open(path).and_then(|mut file| std::io::Read::read_exact(&mut file, &mut mark));
    read.is_ok() && mark == *b"EVF\x09\x0D\x0A\xFF\x00"
}

fn source(parts: Vec<PathBuf>, inputs: Vec<Input>, first: &Input, tag: Tag) -> Source {
    let mut start: u64 = 0;
    let mut pieces = Vec::new();
    let mut modified = None;
    let mut has_holes = false;
    for input in inputs {
        let Some(end) = start.checked_add(input.facts.len) else { break };
        modified = modified.max(input.facts.modified);
        let file = FileLayer::new(input, None);
        has_holes |= file.has_holes();
        pieces.push(Piece { range: start..end, file: Some(file), trust: Trust::Sound });
        start = end;
    }
    Source {
        path: parts.first().cloned().unwrap_or_default(),
        bytes: Arc::new(Joined { pieces, len: start, tag }),
        kind: SourceKind::Split { parts },
        len: start,
        modified,
        identity: first.facts.identity,
        sector: first.facts.sector,
        findings: holes(has_holes, start).into_iter().collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_count_on() {
        let place = |name: &str| number(OsStr::new(name)).map(|(_, number)| number);
        let names = ["a.E01", "a.e02", "a.E99", "a.EAA", "a.EAB", "a.EZZ", "a.FAA", "a.s01", "a.S99", "a.SAA", "a.TAA"];
        let want = [1, 2, 99, 100, 101, 775, 776, 1, 99, 100, 776];
        assert_eq!(names.map(place), want.map(Some));
        for other in ["a.E00", "a.001", "E01", ".E01", "a.bin", "a.B01", "a.E1"] {
            assert_eq!(place(other), None, "{other}");
        }
    }
}
