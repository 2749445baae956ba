//! How far an export is: lines of JSON beside the unfinished output.
//!
//! The first line says what is exported, each further one a point up to which the output is on the disk, with
//! what was lost since the line before. The last whole line counts; a torn one is dropped.

use super::losses::{KEPT, Losses};
use super::slot::Slot;
use super::steps::PIECE;
use serde_json::{Value, json};
use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Seek as _, SeekFrom, Write as _};
use vdrecover_formats::{Gap, Loss, Trust, Why};

/// Longest line that is believed: the losses of some gigabytes.
const MAX_LINE: usize = 256 << 20;

/// A point from which an export goes on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Point {
    /// Everything before is on the disk.
    pub(crate) done: u64,
    /// Bytes of it that were written.
    pub(crate) data: u64,
    /// What of it is lost.
    pub(crate) losses: Losses,
    /// The mapfile has its name already.
    pub(crate) mapped: bool,
    /// Of an image: what its encoder needs to go on, and the state of the hash of its content.
    pub(crate) marks: Vec<u64>,
    pub(crate) hash: Option<String>,
}

/// The journal of one export.
#[derive(Debug)]
pub(crate) struct Journal {
    file: File,
    /// Losses before this one are on earlier lines for good.
    told: usize,
}

impl Journal {
    /// Reads the journal beside `slot` if it is of the same export, and goes on behind its last whole line.
    pub(crate) fn resume(slot: &Slot, identity: &str, len: u64) -> Option<(Self, Point)> {
        let mut reader = BufReader::new(slot.open_state(false).ok()?);
        let mut whole = 0;
        let mut line = Vec::new();
        let mut point = None;
        loop {
            line.clear();
            let read = io::Read::take(&mut reader, MAX_LINE as u64).read_until(b'\n', &mut line).ok()?;
            let Some((b'\n', text)) = line.split_last() else { break };
            let Ok(value) = serde_json::from_slice::<Value>(text) else { break };
            match &mut point {
                None if value == head(identity, len) => point = Some(Point::default()),
                None => return None,
                Some(point) => {
                    if add(point, &value, len).is_none() {
                        break;
                    }
                }
            }
            whole += read as u64;
        }
        let point = point?;
        let mut file = reader.into_inner();
        file.set_len(whole).ok()?;
        file.seek(SeekFrom::Start(whole)).ok()?;
        let told = point.losses.gaps.len().saturating_sub(1);
        Some((Self { file, told }, point))
    }

    /// Starts a journal anew.
    pub(crate) fn start(slot: &Slot, identity: &str, len: u64) -> anyhow::Result<Self> {
        let file = slot.open_state(true)?;
        file.set_len(0)?;
        let mut journal = Self { file, told: 0 };
        journal.line(&head(identity, len))?;
        Ok(journal)
    }

    /// The line for `point`. The last gap is told again with the next line: it may have grown.
    pub(crate) fn entry(&mut self, point: &Point) -> Value {
        let Losses { gaps, count, bytes, cut, trust, end } = &point.losses;
        let new: Vec<_> = gaps.iter().skip(self.told).map(gap_out).collect();
        self.told = gaps.len().saturating_sub(1);
        json!({
            "done": point.done, "data": point.data, "trust": trust.word(), "lost": bytes, "gaps": count,
            "cut": cut, "end": end.as_ref().map(gap_out), "new": new, "mapped": point.mapped,
            "marks": point.marks, "hash": point.hash,
        })
    }

    /// A second handle, for the thread that syncs.
    pub(crate) fn file(&self) -> io::Result<File> {
        self.file.try_clone()
    }

    /// Writes `point`. The output must be synced before.
    pub(crate) fn tell(&mut self, point: &Point) -> io::Result<()> {
        let entry = self.entry(point);
        self.line(&entry)
    }

    fn line(&mut self, value: &Value) -> io::Result<()> {
        append(&self.file, value)
    }
}

/// Writes one line and syncs it.
pub(crate) fn append(mut file: &File, value: &Value) -> io::Result<()> {
    let mut line = serde_json::to_vec(value)?;
    line.push(b'\n');
    file.write_all(&line)?;
    file.sync_data()
}

fn head(identity: &str, len: u64) -> Value {
    json!({ "vdrecover_export": 1, "identity": identity, "len": len, "piece": PIECE })
}

fn gap_out(gap: &Gap) -> Value {
    json!([gap.range.start, gap.range.end, gap.loss.why.word(), gap.loss.at])
}

fn gap_in(value: &Value) -> Option<Gap> {
    let [start, end, why, at] = value.as_array()?.as_slice() else { return None };
    let loss = Loss { why: why_of(why.as_str()?)?, at: at.as_u64()? };
    Some(Gap { range: start.as_u64()?..end.as_u64()?, loss })
}

/// Brings `point` to what the line says. `None`, and no change, if it says nothing that could be.
fn add(point: &mut Point, line: &Value, len: u64) -> Option<()> {
    let number = |key: &str| line.get(key).and_then(Value::as_u64);
    let trust = match line.get("trust")?.as_str()? {
        "sound" => Trust::Sound,
        "inferred" => Trust::Inferred,
        "doubtful" => Trust::Doubtful,
        _ => return None,
    };
    let done = number("done").filter(|done| (point.done..=len).contains(done))?;
    let new = line.get("new")?.as_array()?.iter().map(gap_in).collect::<Option<Vec<_>>>()?;
    let end = match line.get("end")? {
        Value::Null => None,
        gap => Some(gap_in(gap)?),
    };
    let marks = line.get("marks")?.as_array()?.iter().map(Value::as_u64).collect::<Option<Vec<_>>>()?;
    let (data, bytes, count) = (number("data")?, number("lost")?, number("gaps")?);
    let gaps = &mut point.losses.gaps;
    gaps.truncate(gaps.len().saturating_sub(usize::from(!new.is_empty())));
    gaps.extend(new);
    gaps.truncate(KEPT);
    point.losses.count = count;
    point.losses.bytes = bytes;
    point.losses.cut = number("cut");
    point.losses.end = end;
    point.losses.trust = trust;
    point.mapped = line.get("mapped")?.as_bool()?;
    point.marks = marks;
    point.hash = line.get("hash")?.as_str().map(str::to_owned);
    point.data = data;
    point.done = done;
    Some(())
}

fn why_of(word: &str) -> Option<Why> {
    let all = [
        Why::Truncated,
        Why::Unreadable,
        Why::Absent,
        Why::Unmapped,
        Why::Overwritten,
        Why::Undecodable,
        Why::Sealed,
        Why::Unsupported,
        Why::TooDeep,
        Why::Outside,
        Why::NotGiven,
    ];
    all.into_iter().find(|why| why.word() == word)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::export::Evidence;

    fn gap(start: u64, end: u64) -> Gap {
        Gap { range: start..end, loss: Loss { why: Why::Absent, at: 3 } }
    }

    #[test]
    fn says_what_was_told_and_drops_a_torn_line() {
        let dir = tempfile::tempdir().unwrap();
        let slot = Slot::at(&dir.path().join("x"), &Evidence::default()).unwrap();
        let mut journal = Journal::start(&slot, "disk", 1000).unwrap();
        let mut point = Point { done: 100, data: 50, ..Point::default() };
        journal.tell(&point).unwrap();
        for (start, end) in [(10, 20), (20, 30), (90, 100)] {
            point.losses.push(&gap(start, end));
        }
        journal.tell(&point).unwrap();
        point.losses.push(&gap(100, 200));
        point.losses.trust = Trust::Doubtful;
        point.done = 500;
        journal.tell(&point).unwrap();
        (&journal.file).write_all(b"{\"done\":600,").unwrap();
        let (mut journal, read) = Journal::resume(&slot, "disk", 1000).unwrap();
        assert_eq!(read, point);
        point.losses.push(&gap(600, 601));
        point.done = 700;
        journal.tell(&point).unwrap();
        assert_eq!(Journal::resume(&slot, "disk", 1000).unwrap().1, point);
    }

    #[test]
    fn another_input_does_not_go_on() {
        let dir = tempfile::tempdir().unwrap();
        let slot = Slot::at(&dir.path().join("x"), &Evidence::default()).unwrap();
        assert!(Journal::resume(&slot, "disk", 1000).is_none());
        Journal::start(&slot, "disk", 1000).unwrap();
        assert!(Journal::resume(&slot, "disk", 1001).is_none());
        assert!(Journal::resume(&slot, "disc", 1000).is_none());
        assert!(Journal::resume(&slot, "disk", 1000).is_some());
    }
}
