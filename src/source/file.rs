//! The layer of one file or device: where it has data, and reads that survive bad sectors.

use super::bad::BadRanges;
use super::extents::{Extent, ExtentKind, Extents};
use rustix::io::Errno;
use std::fmt::Debug;
use std::ops::Range;
use vdrecover_formats::num::{narrow, wide};
use vdrecover_formats::{Fault, Layer, Place, Run, Tag, Trust, Why};

/// The system calls that a file layer needs, so that tests can put a failing disk in their place.
pub(super) trait Device: Debug + Send + Sync {
    /// Length in bytes, fixed.
    fn len(&self) -> u64;
    /// What people call it.
    fn about(&self) -> &'static str {
        "image file"
    }
    /// Smallest number of bytes that can fail.
    fn sector(&self) -> u64;
    /// As the system call: may read less than it was asked for, and 0 is the end.
    fn pread(&self, at: u64, buf: &mut [u8]) -> Result<usize, Errno>;
    /// Whether asking for extents is worth anything.
    fn may_have_holes(&self) -> bool;
    /// What is at `at`, which lies before the end.
    fn extent(&self, at: u64) -> Extent;
    /// This range will be read soon.
    fn advise(&self, soon: &Range<u64>);
}

/// A file or device as a layer.
#[derive(Debug)]
pub(super) struct FileLayer<D> {
    device: D,
    tag: Option<Tag>,
    /// `None` for a file without holes, which then costs no system call a run.
    extents: Option<Extents>,
    bad: BadRanges,
}

impl<D: Device> FileLayer<D> {
    pub(super) fn new(device: D, tag: Option<Tag>) -> Self {
        let extents = device.may_have_holes().then(Extents::default);
        Self { device, tag, extents, bad: BadRanges::default() }
    }

    pub(super) fn has_holes(&self) -> bool {
        self.extents.is_some()
    }

    /// The sector around `at`, clipped to the device.
    fn sector(&self, at: u64) -> Range<u64> {
        let size = self.device.sector().max(1);
        let start = at - at % size;
        start..start.saturating_add(size).min(self.device.len())
    }

    fn pread(&self, at: u64, buf: &mut [u8]) -> Result<usize, Errno> {
        loop {
            match self.device.pread(at, buf) {
                Err(Errno::INTR) => {}
                done => return done,
            }
        }
    }

    /// Goes on after a read at `at` failed: a sector first, then in growing steps while they are good. Every
    /// sector of a bad stretch is tried once on its own and remembered, since each try can take a failing disk
    /// many seconds. The fault is relative to `at`.
    fn salvage(&self, at: u64, buf: &mut [u8]) -> Result<usize, Fault> {
        let end = at.saturating_add(wide(buf.len()));
        let mut pos = at;
        let mut bad_from = None;
        let mut step = 1;
        while pos < end {
            let one = self.sector(pos).end.max(pos + 1);
            let until = one.saturating_add((step - 1) * self.device.sector()).min(end);
            let Some(part) = buf.get_mut(narrow(pos - at)..narrow(until - at)) else { break };
            match self.pread(pos, part) {
                // The bad stretch ends here. The reader takes note of it and comes back for what is behind it.
                Ok(_) if bad_from.is_some() => break,
                Ok(0) => return Err(Fault::after(narrow(pos - at), Why::Truncated, pos)),
                Ok(count) => {
                    pos += wide(count);
                    step = (step * 2).min(256);
                }
                Err(_) if step > 1 => step = 1,
                Err(_) => {
                    self.bad.insert(self.sector(pos));
                    bad_from = bad_from.or(Some(pos));
                    pos = one.min(end);
                }
            }
        }
        match bad_from {
            Some(bad) => Err(Fault { lost: narrow(pos - bad), ..Fault::after(narrow(bad - at), Why::Unreadable, bad) }),
            None => Ok(narrow(pos - at)),
        }
    }
}

impl<D: Device> Layer for FileLayer<D> {
    fn len(&self) -> u64 {
        self.device.len()
    }

    fn about(&self) -> String {
        self.device.about().into()
    }

    fn run(&self, at: u64, want: u64) -> Run<'_> {
        let Some(extents) = &self.extents else {
            return Run::sound(want, Place::Own);
        };
        let extent = extents.at(at, || self.device.extent(at));
        let len = extent.end.saturating_sub(at).clamp(1, want);
        match extent.kind {
            ExtentKind::Data => Run::sound(len, Place::Own),
            ExtentKind::Hole => Run::sound(len, Place::Hole),
            ExtentKind::Gone => Run::lost(len, Why::Truncated, at),
        }
    }

    fn fetch(&self, at: u64, buf: &mut [u8]) -> Result<Trust, Fault> {
        let end = at.saturating_add(wide(buf.len()));
        let mut done = 0;
        while done < buf.len() {
            let pos = at.saturating_add(wide(done));
            let bad = self.bad.first_in(&(pos..end));
            let stop = match bad {
                Some(bad) if bad.start <= pos => {
                    return Err(Fault { lost: narrow(bad.end - pos), ..Fault::after(done, Why::Unreadable, pos) });
                }
                Some(bad) => bad.start,
                None => end,
            };
            let Some(part) = buf.get_mut(done..narrow(stop - at)) else { break };
            match self.pread(pos, part) {
                Ok(0) => return Err(Fault::after(done, Why::Truncated, pos)),
                Ok(count) => done += count,
                Err(_) => match self.salvage(pos, part) {
                    Ok(count) => done += count,
                    Err(fault) => return Err(Fault { good: done + fault.good, ..fault }),
                },
            }
        }
        Ok(Trust::Sound)
    }

    fn tag(&self) -> Option<Tag> {
        self.tag
    }

    fn advise(&self, soon: &[Range<u64>]) {
        for range in soon {
            self.device.advise(range);
        }
    }
}

#[cfg(test)]
mod tests;
