//! Lists of places on a device: numbers and ranges, one a line, or the bad blocks of a rescue.

use crate::mapfile::{Mapfile, Status};
use crate::number::parse_size;
use crate::ranges::RangeSet;
use anyhow::{Context, Result, bail};
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::ops::Range;
use std::path::Path;

/// A longer list is none. What is read of it is kept as ranges, 16 bytes each.
const LONGEST: u64 = 1 << 30;

/// Reads a list of places: a ddrescue mapfile, whose failed blocks are meant, or lines of `N`, `FIRST-LAST` or
/// `FIRST+COUNT` in units of `unit` bytes, with `#` before remarks.
///
/// # Errors
/// The file can't be read, or has a line that is none of these.
pub fn read_list(path: &Path, unit: u64) -> Result<RangeSet> {
    let shown = path.display();
    if fs::metadata(path).is_ok_and(|meta| meta.is_dir()) {
        bail!("{shown}: is a folder; give a file with a number a line, or a mapfile");
    }
    let open = || File::open(path).with_context(|| format!("{shown}: the list can't be opened"));
    let mut lines = BufReader::new(open()?.take(LONGEST + 1));
    let mut ranges = Vec::new();
    let (mut line, mut number, mut total) = (Vec::new(), 0_u64, 0);
    loop {
        line.clear();
        let len = lines.read_until(b'\n', &mut line).with_context(|| format!("{shown}: reading the list"))?;
        if len == 0 {
            break;
        }
        number += 1;
        total += len as u64;
        if total > LONGEST {
            bail!("{shown}: is larger than 1 GiB; cut the list in parts");
        }
        let text = String::from_utf8_lossy(&line);
        let text = text.split('#').next().unwrap_or_default().trim();
        if text.is_empty() {
            continue;
        }
        if ranges.is_empty() && is_map(text) {
            return Ok(failed(&Mapfile::read(path)?));
        }
        ranges.push(range(text, unit).with_context(|| format!("{shown}: line {number}"))?);
    }
    Ok(RangeSet::build(ranges))
}

/// Whether the first line is that of a mapfile: a position and a status.
fn is_map(line: &str) -> bool {
    line.split_ascii_whitespace().nth(1).is_some_and(|word| matches!(word, "?" | "*" | "/" | "-" | "F" | "G" | "+"))
}

/// What a rescue tried and did not get.
fn failed(map: &Mapfile) -> RangeSet {
    let failed = |status: Status| matches!(status, Status::Bad | Status::Untrimmed | Status::Unscraped);
    map.blocks().iter().filter(|(_, status)| failed(*status)).map(|(range, _)| range.clone()).collect()
}

fn range(text: &str, unit: u64) -> Result<Range<u64>> {
    let (first, count) = if let Some((first, last)) = text.split_once('-') {
        let (first, last) = (parse_size(first)?, parse_size(last)?);
        if last < first {
            bail!("'{text}' ends before it starts");
        }
        (first, (last - first).checked_add(1))
    } else if let Some((first, count)) = text.split_once('+') {
        (parse_size(first)?, Some(parse_size(count)?))
    } else {
        (parse_size(text)?, Some(1))
    };
    let start = first.checked_mul(unit);
    let len = count.and_then(|count| count.checked_mul(unit));
    match start.zip(len).and_then(|(start, len)| Some(start..start.checked_add(len)?)) {
        Some(range) => Ok(range),
        None => bail!("'{text}' in units of {unit} bytes is behind the largest offset"),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn read(text: &str, unit: u64) -> Result<Vec<Range<u64>>> {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), text).unwrap();
        Ok(read_list(file.path(), unit)?.as_slice().to_vec())
    }

    #[test]
    fn numbers_and_ranges() {
        assert_eq!(
            read("# bad\n7\n 8 # next\n0x10-0x1F\n40+2\n\n", 512).unwrap(),
            [3584..4608, 8192..16384, 20480..21504]
        );
        assert_eq!(read("4K\n1-1\n", 1).unwrap(), [1..2, 4096..4097]);
        assert_eq!(read("", 1).unwrap(), []);
    }

    #[test]
    fn a_mapfile_gives_what_failed() {
        let map = "# x\n0x0 ? 1\n0x0 0x200 +\n0x200 0x200 -\n0x400 0x200 ?\n0x600 0x200 *\n0x800 0x200 /\n";
        assert_eq!(read(map, 512).unwrap(), [0x200..0x400, 0x600..0xA00]);
    }

    #[test]
    fn other_lines_are_told() {
        for bad in ["x", "5-3", "1 2", "-5", "0xFFFFFFFFFFFFFFFF"] {
            let error = format!("{:#}", read(&format!("1\n{bad}\n"), 512).unwrap_err());
            assert!(error.contains("line 2"), "{bad}: {error}");
        }
    }
}
