//! ddrescue's mapfiles: which parts of a device a rescue read, and which it did not.
//!
//! The format is the one of the GNU ddrescue manual, chapter "Mapfile structure": comments start with `#`; the
//! first other line is the position, status and (since 1.22) pass of the rescue; every further one is a block,
//! `position size status`, with numbers in decimal, `0x` hexadecimal or `0` octal, ascending.

use crate::number::parse_size;
use anyhow::{Context, Result, bail};
use std::ffi::OsStr;
use std::io::{self, Read, Write};
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// What a rescue did with a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Status {
    /// `?`: not tried yet.
    Untried,
    /// `*`: failed, its edges were not looked for.
    Untrimmed,
    /// `/`: failed, its sectors were not tried one by one.
    Unscraped,
    /// `-`: bad sectors.
    Bad,
    /// `+`: read.
    Finished,
}

impl Status {
    fn parse(word: &str) -> Option<Self> {
        Some(match word {
            "?" => Self::Untried,
            "*" => Self::Untrimmed,
            "/" => Self::Unscraped,
            "-" => Self::Bad,
            "+" => Self::Finished,
            _ => return None,
        })
    }

    /// The character of the format.
    #[must_use]
    pub fn sign(self) -> char {
        match self {
            Self::Untried => '?',
            Self::Untrimmed => '*',
            Self::Unscraped => '/',
            Self::Bad => '-',
            Self::Finished => '+',
        }
    }
}

/// The blocks of a mapfile, ascending and apart.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mapfile {
    blocks: Vec<(Range<u64>, Status)>,
}

/// A mapfile of the most fragmented rescue is far below that. It is read into memory.
const LONGEST: u64 = 1 << 30;

impl Mapfile {
    /// Reads a mapfile.
    pub fn read(path: &Path) -> Result<Self> {
        let shown = path.display();
        // A pipe would wait for a writer that never comes.
        if std::fs::metadata(path).is_ok_and(|meta| !meta.is_file()) {
            bail!("{shown}: the mapfile is not a file; give the map that ddrescue wrote");
        }
        let file = std::fs::File::open(path).with_context(|| format!("{shown}: the mapfile can't be opened"))?;
        let mut text = Vec::new();
        file.take(LONGEST + 1).read_to_end(&mut text).with_context(|| format!("{shown}: reading the mapfile"))?;
        if text.len() as u64 > LONGEST {
            bail!("{shown}: is larger than 1 GiB, which no mapfile is; give the map that ddrescue wrote");
        }
        Self::parse(&text).with_context(|| format!("{shown}: not a usable mapfile"))
    }

    /// Parses the text of a mapfile. Names and comments in it may be in any encoding.
    pub fn parse(text: &[u8]) -> Result<Self> {
        let mut blocks: Vec<(Range<u64>, Status)> = Vec::new();
        let mut state = false;
        for (i, line) in text.split(|byte| *byte == b'\n').enumerate() {
            let line = String::from_utf8_lossy(line);
            let line = line.split('#').next().unwrap_or_default();
            let words: Vec<&str> = line.split_ascii_whitespace().collect();
            if words.is_empty() {
                continue;
            }
            if state {
                let (range, status) = block(&words).with_context(|| format!("line {}", i + 1))?;
                let end = blocks.last().map_or(0, |(range, _)| range.end);
                if range.start < end {
                    bail!(
                        "line {}: the block at {:#x} starts before the end of the last, {end:#x}",
                        i + 1,
                        range.start
                    );
                }
                if !range.is_empty() {
                    blocks.push((range, status));
                }
            } else {
                position(&words).with_context(|| format!("line {}", i + 1))?;
                state = true;
            }
        }
        if blocks.is_empty() {
            bail!("it names no block; give the map that ddrescue wrote beside the image");
        }
        Ok(Self { blocks })
    }

    /// The blocks, ascending and apart, in positions of the device.
    #[must_use]
    pub fn blocks(&self) -> &[(Range<u64>, Status)] {
        &self.blocks
    }

    /// What was not read of an image of `len` bytes whose first byte is byte `shift` of the device.
    ///
    /// Every status but `+` is lost, also where the image has bytes: nobody vouches for them. So is what the map
    /// does not mention at all, as ddrescue itself takes it: it adds such ranges as not tried.
    #[must_use]
    pub fn lost(&self, shift: u64, len: u64) -> Vec<Range<u64>> {
        self.outside(shift, len, |status| status == Status::Finished)
    }

    /// What the map does not mention of that image.
    #[must_use]
    pub fn uncovered(&self, shift: u64, len: u64) -> Vec<Range<u64>> {
        self.outside(shift, len, |_| true)
    }

    /// The complement of the blocks with a wanted status, in positions of the image.
    fn outside(&self, shift: u64, len: u64, wanted: impl Fn(Status) -> bool) -> Vec<Range<u64>> {
        let mut outside = Vec::new();
        let mut at = 0;
        for (range, _) in self.blocks.iter().filter(|(_, status)| wanted(*status)) {
            let start = range.start.saturating_sub(shift).min(len);
            let end = range.end.saturating_sub(shift).min(len);
            if start < end {
                outside.push(at..start);
                at = end;
            }
        }
        outside.push(at..len);
        outside.retain(|range| !range.is_empty());
        outside
    }
}

/// The line before the blocks: nothing of it is used, but a file without it is no mapfile.
fn position(words: &[&str]) -> Result<()> {
    let want = "wanted a position, a status of ? * / - F G + and perhaps a pass";
    let ([at, status] | [at, status, _]) = words else {
        bail!("found '{}', {want}", words.join(" "));
    };
    if number(at).is_err() || !matches!(*status, "?" | "*" | "/" | "-" | "F" | "G" | "+") {
        bail!("found '{}', {want}", words.join(" "));
    }
    match words.get(2).map(|pass| number(pass)) {
        Some(Err(error)) => Err(error),
        _ => Ok(()),
    }
}

fn block(words: &[&str]) -> Result<(Range<u64>, Status)> {
    let [at, size, status] = words else {
        bail!("found '{}', wanted a position, a size and a status", words.join(" "));
    };
    let (at, size) = (number(at)?, number(size)?);
    let Some(status) = Status::parse(status) else {
        bail!("found the status '{status}', wanted one of ? * / - +");
    };
    match at.checked_add(size) {
        Some(end) => Ok((at..end, status)),
        None => bail!("the block at {at:#x} of {size:#x} bytes ends behind the largest offset"),
    }
}

/// As C reads numbers, which is how ddrescue reads them.
fn number(text: &str) -> Result<u64> {
    let (digits, radix) = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(hex) => (hex, 16),
        None => match text.strip_prefix('0').filter(|octal| !octal.is_empty()) {
            Some(octal) => (octal, 8),
            None => (text, 10),
        },
    };
    if digits.starts_with('+') {
        bail!("'{text}' is not a number");
    }
    u64::from_str_radix(digits, radix).with_context(|| format!("'{text}' is not a number"))
}

/// An argument that gives a mapfile to an image: `IMAGE=MAP` or `IMAGE=MAP@SHIFT`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MapArg {
    /// The image, as it is given elsewhere on the command line.
    pub image: PathBuf,
    /// Its mapfile.
    pub map: PathBuf,
    /// The position on the rescued device of the image's first byte.
    pub shift: u64,
}

impl MapArg {
    /// Parses the argument. The first `=` separates; an `@` counts when a number follows it, so that a path with
    /// an `@` needs no quoting.
    pub fn parse(text: &OsStr) -> Result<Self> {
        let shown = text.display();
        let bytes = text.as_bytes();
        let Some(equals) = bytes.iter().position(|byte| *byte == b'=') else {
            bail!("'{shown}' names no mapfile: write IMAGE=MAP or IMAGE=MAP@SHIFT");
        };
        let (image, map) = (&bytes[..equals], &bytes[equals + 1..]);
        let (map, shift) = match map.iter().rposition(|byte| *byte == b'@') {
            Some(at) => match std::str::from_utf8(&map[at + 1..]).ok().and_then(|text| parse_size(text).ok()) {
                Some(shift) => (&map[..at], shift),
                None => (map, 0),
            },
            None => (map, 0),
        };
        if image.is_empty() || map.is_empty() {
            bail!("'{shown}' leaves out the image or the mapfile: write IMAGE=MAP or IMAGE=MAP@SHIFT");
        }
        let path = |bytes| PathBuf::from(OsStr::from_bytes(bytes));
        Ok(Self { image: path(image), map: path(map), shift })
    }
}

/// Writes a mapfile of `len` bytes, with `notes` as comments at its head. `blocks` are ascending and apart; what they leave out is finished.
/// Neighbours with the same status become one block, as ddrescue writes them.
pub fn write_map(out: &mut dyn Write, len: u64, notes: &[String], blocks: &[(Range<u64>, Status)]) -> io::Result<()> {
    let mut all: Vec<(Range<u64>, Status)> = Vec::new();
    let mut add = |range: Range<u64>, status| match all.last_mut() {
        _ if range.is_empty() => {}
        Some((last, same)) if *same == status && last.end == range.start => last.end = range.end,
        _ => all.push((range, status)),
    };
    let mut at = 0;
    for (range, status) in blocks {
        let (start, end) = (range.start.max(at).min(len), range.end.min(len));
        add(at..start, Status::Finished);
        add(start..end, *status);
        at = end.max(start);
    }
    add(at..len, Status::Finished);
    writeln!(out, "# Mapfile. Created by vdrecover {}", env!("CARGO_PKG_VERSION"))?;
    for note in notes {
        writeln!(out, "# {note}")?;
    }
    writeln!(out, "# current_pos  current_status  current_pass")?;
    writeln!(out, "0x00000000     +               1")?;
    writeln!(out, "#      pos        size  status")?;
    for (range, status) in all {
        writeln!(out, "0x{:08X}  0x{:08X}  {}", range.start, range.end - range.start, status.sign())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
