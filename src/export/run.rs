//! The engine: pieces are read, decoded and written by all threads, and hashed and counted in order by one.

use super::image::{Encoder, Packer};
use super::journal::{Journal, Point, append};
use super::steps::{Aligned, Step, Steps};
use super::target::{Target, is_zero, stream_zeros, write_sparse, zero_device};
use crate::digest::Hasher;
use crate::ordered::{Buffers, ordered};
use crate::progress::Progress;
use serde_json::Value;
use std::fs::File;
use std::io::{self, Write as _};
use std::ops::{ControlFlow, Range};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use vdrecover_formats::num::{narrow, wide};
use vdrecover_formats::{Finding, Gap, Layer, Loss, Trust, Why, read};

/// Everything that one run needs.
pub(crate) struct Run<'a, 'w> {
    pub(crate) layer: &'a dyn Layer,
    pub(crate) target: &'a mut Target<'w>,
    pub(crate) journal: Option<&'a mut Journal>,
    pub(crate) hasher: Option<Hasher>,
    pub(crate) threads: usize,
    /// Bytes of data between two points in the journal.
    pub(crate) checkpoint: u64,
    pub(crate) progress: &'a Progress,
    /// What else is to be said.
    pub(crate) findings: &'a mut Vec<Finding>,
}

/// How a run ended.
pub(crate) enum End {
    /// All is written.
    Whole(Option<Hasher>),
    /// The user stopped it.
    Stopped,
    /// A write failed.
    Failed(io::Error),
}

/// A piece after the work on it.
struct Done {
    range: Range<u64>,
    gaps: Vec<Gap>,
    trust: Trust,
    written: u64,
    /// Its bytes where somebody still needs them; none where all of it is zero.
    bytes: Option<Vec<u8>>,
    /// The units of an image, and what is packed of them.
    units: Vec<Laid>,
    packed: Vec<u8>,
    is_data: bool,
    panicked: bool,
    error: Option<io::Error>,
}

/// A unit that is not zero.
struct Laid {
    unit: u64,
    /// Where in the packed bytes, or where in the piece.
    range: Range<usize>,
    packed: bool,
}

/// Where a piece's bytes go from the thread that read it.
enum Placed<'a> {
    Sparse(&'a File),
    Device(&'a File),
    /// Into an image, in order; packed before.
    Image {
        packer: &'a Packer,
        unit: u64,
    },
    Later,
}

impl Run<'_, '_> {
    /// Goes on at `point` and moves it forward.
    pub(crate) fn run(self, point: &mut Point) -> End {
        let mut image = None;
        let (placed, sync, mut stream) = match self.target {
            Target::Sparse(file) => (Placed::Sparse(file), Some(&*file), None),
            Target::Image { file, encoder, packer, unit } => {
                image = Some((&*file, &mut **encoder));
                (Placed::Image { packer, unit: *unit }, Some(&*file), None)
            }
            Target::Device(file) => (Placed::Device(file), Some(&*file), None),
            Target::Stream(out) => {
                let out: &mut (dyn io::Write + Send) = &mut **out;
                (Placed::Later, None, Some(out))
            }
            Target::Nowhere => (Placed::Later, None, None),
        };
        let keep = self.hasher.is_some() || stream.is_some();
        let buffers = Buffers::default();
        let steps: Box<dyn Iterator<Item = Step> + Send> = match placed {
            Placed::Image { unit, .. } => Box::new(Aligned::new(self.layer, point.done, unit)),
            _ => Box::new(Steps::new(self.layer, point.done..self.layer.len())),
        };
        let mut hasher = self.hasher;
        let mut end = None;
        std::thread::scope(|scope| {
            let mut keeper = self.journal.and_then(|journal| {
                let (output, file) = (sync?.try_clone().ok()?, journal.file().ok()?);
                let (sender, points) = sync_channel(1);
                scope.spawn(move || keep_points(&output, &file, &points));
                Some(Keeper { journal, sender, every: self.checkpoint, since: 0 })
            });
            let work = |step| work(self.layer, step, &placed, keep, &buffers);
            ordered(self.threads, steps, work, |done| {
                if let Some(error) = done.error {
                    end = Some(End::Failed(error));
                    return ControlFlow::Break(());
                }
                let laid = match &mut image {
                    Some((file, encoder)) => lay(&done, file, &mut **encoder),
                    None => Ok(done.written),
                };
                let written = laid.and_then(|laid| in_order(&done, hasher.as_mut(), &mut stream).map(|()| laid));
                let written = match written {
                    Ok(written) => written,
                    Err(error) => {
                        end = Some(End::Failed(error));
                        return ControlFlow::Break(());
                    }
                };
                if done.panicked {
                    self.findings.push(panicked(&done.range));
                }
                done.gaps.iter().for_each(|gap| point.losses.push(gap));
                point.losses.trust = point.losses.trust.max(done.trust);
                point.data += written;
                point.done = done.range.end;
                if let Some(bytes) = done.bytes {
                    buffers.give(bytes);
                }
                if done.packed.capacity() > 0 {
                    buffers.give(done.packed);
                }
                let stopped = self.progress.stopped() && point.done < self.layer.len();
                let len = if done.is_data { done.range.end - done.range.start } else { 0 };
                self.progress.add(len);
                let due = keeper.as_mut().is_some_and(|keeper| keeper.is_due(len));
                // What an encoder holds back goes into the file, so that the point tells of what is there.
                if let (true, Some((file, encoder))) = (due || stopped, &mut image) {
                    match encoder.mark(file) {
                        Ok(marks) => point.marks = marks,
                        Err(error) => {
                            end = Some(End::Failed(error));
                            return ControlFlow::Break(());
                        }
                    }
                    point.hash = hasher.as_ref().map(Hasher::state);
                }
                if let (true, Some(keeper)) = (due, &mut keeper) {
                    keeper.reached(point);
                }
                if stopped {
                    end = Some(End::Stopped);
                    return ControlFlow::Break(());
                }
                ControlFlow::Continue(())
            });
        });
        if let (Some(out), None) = (stream, &end)
            && let Err(error) = out.flush()
        {
            end = Some(End::Failed(error));
        }
        end.unwrap_or(End::Whole(hasher))
    }
}

/// Reads a piece and writes it where that needs no order.
fn work(layer: &dyn Layer, step: Step, placed: &Placed<'_>, keep: bool, buffers: &Buffers) -> Done {
    let blank = Done {
        range: step.range().clone(),
        gaps: Vec::new(),
        trust: Trust::Sound,
        written: 0,
        bytes: None,
        units: Vec::new(),
        packed: Vec::new(),
        is_data: false,
        panicked: false,
        error: None,
    };
    match step {
        Step::Skip { range, loss, trust } => {
            let gaps = loss.map(|loss| Gap { range: range.clone(), loss }).into_iter().collect();
            let error = match placed {
                Placed::Device(file) => zero_device(file, &range).err(),
                _ => None,
            };
            Done { gaps, trust, error, ..blank }
        }
        Step::Data(range) => {
            let mut bytes = buffers.take(narrow(range.end - range.start));
            // A bug in a format must not cost more than the piece that it shows in.
            let seen = catch_unwind(AssertUnwindSafe(|| read(layer, range.start, &mut bytes)));
            let (gaps, trust, panicked) = if let Ok(seen) = seen {
                (seen.gaps, seen.trust, false)
            } else {
                bytes.fill(0);
                let loss = Loss { why: Why::Unmapped, at: range.start };
                (vec![Gap { range: range.clone(), loss }], Trust::Sound, true)
            };
            let written = match placed {
                Placed::Sparse(file) => write_sparse(file, range.start, &bytes),
                Placed::Device(file) => {
                    std::os::unix::fs::FileExt::write_all_at(*file, &bytes, range.start).map(|()| wide(bytes.len()))
                }
                Placed::Later => Ok(wide(bytes.len())),
                Placed::Image { .. } => Ok(0),
            };
            let (mut units, mut packed) = (Vec::new(), Vec::new());
            if let Placed::Image { packer, unit } = placed {
                packed = buffers.take(0);
                units = pack(&mut bytes, range.start / unit, narrow(*unit), packer, &mut packed);
            }
            let keep = keep || units.iter().any(|laid| !laid.packed);
            let (written, error) = match written {
                Ok(written) => (written, None),
                Err(error) => (0, Some(error)),
            };
            let mut kept = None;
            if keep {
                kept = Some(bytes);
            } else {
                buffers.give(bytes);
            }
            Done { gaps, trust, written, bytes: kept, units, packed, is_data: true, panicked, error, ..blank }
        }
    }
}

/// Packs the units of a piece that are not zero, into `out`. The last one is filled up.
fn pack(piece: &mut Vec<u8>, first: u64, unit: usize, packer: &Packer, out: &mut Vec<u8>) -> Vec<Laid> {
    piece.resize(piece.len().next_multiple_of(unit), 0);
    let units = (first..).zip(piece.chunks(unit)).enumerate().filter(|(_, (_, bytes))| !is_zero(bytes));
    units
        .map(|(index, (number, bytes))| {
            let start = out.len();
            let smaller = packer.pack(bytes, out);
            let range = if smaller { start..out.len() } else { index * unit..(index + 1) * unit };
            Laid { unit: number, range, packed: smaller }
        })
        .collect()
}

/// Lays the units of a piece out; gives how many bytes that were.
fn lay(done: &Done, file: &File, encoder: &mut dyn Encoder) -> io::Result<u64> {
    let plain = done.bytes.as_deref().unwrap_or_default();
    let mut written = 0;
    for laid in &done.units {
        let bytes = &if laid.packed { &*done.packed } else { plain }[laid.range.clone()];
        encoder.put(file, laid.unit, bytes, laid.packed)?;
        written += wide(bytes.len());
    }
    Ok(written)
}

/// What has to see all bytes in order.
fn in_order(
    done: &Done,
    hasher: Option<&mut Hasher>,
    stream: &mut Option<&mut (dyn io::Write + Send)>,
) -> io::Result<()> {
    let len = done.range.end - done.range.start;
    if let Some(hasher) = hasher {
        match &done.bytes {
            // The last unit of an image is filled up with zeros that the disk does not have.
            Some(bytes) => hasher.update(&bytes[..narrow(len).min(bytes.len())]),
            None => hasher.zeros(len),
        }
    }
    if let Some(out) = stream {
        match &done.bytes {
            Some(bytes) => out.write_all(bytes)?,
            None => stream_zeros(out, len)?,
        }
    }
    Ok(())
}

/// Decides when the journal gets a line. The line is made here, in order, and written by a thread of its own:
/// syncing takes as long as the disk needs.
struct Keeper<'a> {
    journal: &'a mut Journal,
    sender: SyncSender<Value>,
    every: u64,
    since: u64,
}

impl Keeper<'_> {
    /// Whether so many bytes more make a new point.
    fn is_due(&mut self, more: u64) -> bool {
        self.since = self.since.saturating_add(more);
        let due = more > 0 && self.since >= self.every;
        if due {
            self.since = 0;
        }
        due
    }

    fn reached(&mut self, point: &Point) {
        // Waits only while the one before the last is still being synced.
        let _ = self.sender.send(self.journal.entry(point));
    }
}

fn keep_points(output: &File, journal: &File, points: &Receiver<Value>) {
    while let Ok(entry) = points.recv() {
        // Without a journal the export still works, it only can't be resumed.
        if output.sync_data().and_then(|()| append(journal, &entry)).is_err() {
            return;
        }
    }
}

fn panicked(range: &Range<u64>) -> Finding {
    let text = "reading these bytes failed inside the program; they are lost in the output. Please report it";
    Finding::new("EXPORT-PANIC", range.clone(), Trust::Doubtful, text)
}
