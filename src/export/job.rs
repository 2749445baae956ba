//! The three kinds of outputs, and what they have in common.

use super::image::{Descriptor, Encoder, ImageKind, Reached, flat_name, plain_name};
use super::journal::{Journal, Point};
use super::losses::Losses;
use super::refused::{Refused, classify};
use super::run::{End, Run};
use super::slot::Slot;
use super::steps::{Step, Steps};
use super::target::Target;
use super::{Evidence, ExportOptions, Exported, Hashing, Written, map};
use crate::digest::{Digest, Hasher};
use crate::progress::Progress;
use anyhow::Context as _;
use rustix::fs::OFlags;
use std::ffi::OsString;
use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use vdrecover_formats::{Finding, Layer, Trust};

/// Steps that are counted before the export starts, for the check of free space and the progress bar.
const COUNTED: usize = 1 << 20;

/// SHA-256 and gaps of a layer, without writing it anywhere.
pub fn digest(layer: &dyn Layer, options: &ExportOptions, progress: &Progress) -> anyhow::Result<Exported> {
    let job = Job { layer, options, progress, shown: Path::new("nowhere") };
    let mut point = Point::default();
    let (whole, findings) = job.run(&mut Target::Nowhere, None, &mut point)?;
    Ok(job.exported(point, whole, findings))
}

/// Whether an output stands alone or is one of many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// Counted, checked for space, and synced by itself.
    Alone,
    /// Counted, checked and synced with all others. Its mapfile has a name that no file of an image gets.
    OfFolder,
}

/// As [`super::export`], into a place that is open already.
pub(crate) fn to_slot(
    layer: &dyn Layer,
    slot: &Slot,
    part_of: Part,
    evidence: &Evidence,
    options: &ExportOptions,
    progress: &Progress,
) -> anyhow::Result<Exported> {
    if options.kind == ImageKind::VmdkFlat {
        return flat(layer, slot, part_of, evidence, options, progress);
    }
    let alone = part_of == Part::Alone;
    let map = if alone { map_slot(options, Some(slot), evidence)? } else { Some(slot.beside(".vdrecover.map")) };
    let job = Job { layer, options, progress, shown: slot.shown() };
    // One of many finds out when it gets its name: asking before costs more than writing most files.
    if alone && !options.force && slot.exists() {
        return Err(Refused::Exists(slot.shown().to_path_buf()).into());
    }
    let part = if alone { slot.lock_part()? } else { slot.open_part()? };
    let meta = part.metadata().with_context(|| format!("cannot look at {}", slot.shown().display()))?;
    if evidence.is_input(&meta) {
        let why = "would be written through one of the inputs".into();
        return Err(Refused::Evidence { dest: slot.shown().to_path_buf(), why }.into());
    }
    let len = layer.len();
    let identity = identity(options);
    let (old, encoder) = job.resume(slot, &part, &meta, identity.as_deref());
    let mapped = old.as_ref().is_some_and(|(_, point)| point.mapped);
    if let Some(map) = map.as_ref().filter(|map| alone && !options.force && !mapped && map.exists()) {
        if old.is_none() {
            slot.remove_part();
        }
        return Err(Refused::Exists(map.shown().to_path_buf()).into());
    }
    let (mut journal, mut point) = match (old, &identity) {
        (Some((journal, point)), _) => (Some(journal), point),
        (None, Some(identity)) => (Some(Journal::start(slot, identity, len)?), Point::default()),
        (None, None) => (None, Point::default()),
    };
    let begun = if alone { job.check_room(slot, &meta) } else { Ok(0) };
    let resumed_at = point.done;
    let begun = begun.and_then(|need| job.target(slot, part, &meta, need, encoder, point.done));
    let mut target = begun.inspect_err(|_| {
        if resumed_at == 0 {
            slot.remove_part();
            slot.remove_state();
        }
    })?;
    let ran = job.run(&mut target, journal.as_mut(), &mut point);
    let (part, encoder) = match target {
        Target::Sparse(part) => (part, None),
        Target::Image { file, encoder, .. } => (file, Some(encoder)),
        _ => anyhow::bail!("the output is not a file"),
    };
    let (whole, findings) = match ran {
        Ok(ran) => ran,
        Err(error) => {
            // The last point: the next run goes on from here. An image that could not be written goes on from the last
            // one that is on the disk already.
            let tells = encoder.is_none() || matches!(error.downcast_ref(), Some(Refused::Stopped));
            match &mut journal {
                Some(journal) if tells => {
                    let _ = part.sync_data().and_then(|()| journal.tell(&point));
                }
                Some(_) => {}
                None => slot.remove_part(),
            }
            return Err(error);
        }
    };
    let image_len = match encoder {
        None => None,
        Some(mut encoder) => {
            let finished = finish(&mut *encoder, &part, whole.as_ref(), &mut point, len);
            Some(finished.map_err(|error| classify(error, slot.shown(), len, 0))?)
        }
    };
    if alone || journal.is_some() {
        part.sync_all().map_err(|error| classify(error, slot.shown(), len, 0))?;
    }
    let mut exported = job.exported(point.clone(), whole, findings);
    exported.resumed_at = resumed_at;
    if let Some(image_len) = image_len {
        let digest = match exported.digest.reason() {
            None => Digest::Sha256(job.hash_file(&part, image_len)?.finish()),
            Some(why) => Digest::Absent(why.to_owned()),
        };
        exported.files.push(Written { path: slot.shown().to_path_buf(), len: image_len, digest });
    }
    if let Some(map) = map.filter(|map| exported.gap_count > 0 || options.force && map.exists()) {
        point.mapped = true;
        if let Some(journal) = &mut journal {
            journal.tell(&point)?;
        }
        exported.map = Some(write_map(&map, len, &point.losses, options.force || journal.is_some())?);
    }
    slot.commit(options.force)?;
    if alone {
        slot.sync_dir();
    }
    if journal.is_some() {
        slot.remove_state();
    }
    Ok(exported)
}

/// By what an interrupted export is known again: what was written as another kind does not go on.
fn identity(options: &ExportOptions) -> Option<String> {
    let identity = options.identity.as_ref()?;
    Some(match options.kind {
        ImageKind::Raw => identity.clone(),
        ImageKind::Ova => format!("{identity}\n{:?}", options.appliance),
        kind => format!("{identity}\n{kind:?}"),
    })
}

/// Makes an image of what was laid out; how long it is. The point tells of everything then.
fn finish(
    encoder: &mut dyn Encoder,
    part: &File,
    whole: Option<&Hasher>,
    point: &mut Point,
    len: u64,
) -> io::Result<u64> {
    point.marks = encoder.mark(part)?;
    point.hash = whole.map(Hasher::state);
    let digest = whole.map_or(Digest::Absent(String::new()), |whole| Digest::Sha256(whole.clone().finish()));
    let image_len = encoder.finish(part, &seed(&digest, len))?;
    part.set_len(image_len)?;
    Ok(image_len)
}

/// A descriptor, and the bytes beside it. The descriptor gets its name last: without it there is no disk.
fn flat(
    layer: &dyn Layer,
    slot: &Slot,
    part_of: Part,
    evidence: &Evidence,
    options: &ExportOptions,
    progress: &Progress,
) -> anyhow::Result<Exported> {
    let data = slot.named(OsString::from_vec(flat_name(slot.name().as_bytes())));
    let Some(file) = plain_name(data.name().as_bytes()) else {
        anyhow::bail!("{}: a descriptor can't hold this name; choose another one", slot.shown().display());
    };
    if slot.exists() && !options.force {
        return Err(Refused::Exists(slot.shown().to_path_buf()).into());
    }
    let raw = ExportOptions { kind: ImageKind::Raw, ..options.clone() };
    let mut exported = to_slot(layer, &data, part_of, evidence, &raw, progress)?;
    let seed = seed(&exported.digest, exported.len);
    let sectors = exported.len / 512;
    let text = Descriptor { kind: "vmfs", extent: "VMFS", file, sectors, seed: &seed }.text();
    let part = slot.lock_part()?;
    let written = part.set_len(0).and_then(|()| part.write_all_at(text.as_bytes(), 0)).and_then(|()| part.sync_all());
    written.map_err(|error| classify(error, slot.shown(), 0, 0))?;
    slot.commit(options.force)?;
    slot.sync_dir();
    let digest = match exported.digest.reason() {
        None => Digest::Sha256(crate::digest::sha256(text.as_bytes())),
        Some(why) => Digest::Absent(why.to_owned()),
    };
    exported.files.push(Written { path: slot.shown().to_path_buf(), len: text.len() as u64, digest });
    let (path, digest) = (data.shown().to_path_buf(), exported.digest.clone());
    exported.files.push(Written { path, len: exported.len, digest });
    Ok(exported)
}

/// What ids are made of: the content, as far as it is known.
fn seed(digest: &Digest, len: u64) -> [u8; 32] {
    match digest {
        Digest::Sha256(bytes) => *bytes,
        Digest::Absent(_) => crate::digest::sha256(&len.to_le_bytes()),
    }
}

/// Over what is on a block device.
pub(crate) fn to_device(
    layer: &dyn Layer,
    path: &Path,
    evidence: &Evidence,
    options: &ExportOptions,
    progress: &Progress,
) -> anyhow::Result<Exported> {
    if !options.force {
        return Err(Refused::Exists(path.to_path_buf()).into());
    }
    // For block devices the kernel takes O_EXCL as: not while it is mounted or part of something else.
    let exclusive = i32::try_from(OFlags::EXCL.bits()).unwrap_or(0);
    let opened = OpenOptions::new().write(true).custom_flags(exclusive).open(path);
    let mut device = match opened {
        Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
            let why = "it is mounted or part of another device";
            return Err(Refused::Busy { dest: path.to_path_buf(), why }.into());
        }
        opened => opened.with_context(|| format!("cannot open {} for writing", path.display()))?,
    };
    let room = device.seek(SeekFrom::End(0)).with_context(|| format!("cannot tell how large {} is", path.display()))?;
    if room < layer.len() {
        return Err(Refused::NoSpace { dest: path.to_path_buf(), need: layer.len(), free: room }.into());
    }
    let map = map_slot(options, None, evidence)?;
    let job = Job { layer, options, progress, shown: path };
    job.count();
    let mut point = Point::default();
    let mut target = Target::Device(device);
    let (whole, mut findings) = job.run(&mut target, None, &mut point)?;
    let Target::Device(device) = target else { anyhow::bail!("the output is not a device") };
    device.sync_all().map_err(|error| classify(error, path, layer.len(), 0))?;
    if room > layer.len() {
        let text = format!("the device is {room} bytes long; what was behind the exported bytes is still there");
        findings.push(Finding::new("EXPORT-DEVICE-TAIL", layer.len()..room, Trust::Sound, text));
    }
    job.with_map(point, whole, findings, map)
}

/// All bytes in order.
pub(crate) fn to_pipe(
    layer: &dyn Layer,
    out: &mut (dyn Write + Send),
    shown: &Path,
    evidence: &Evidence,
    options: &ExportOptions,
    progress: &Progress,
) -> anyhow::Result<Exported> {
    let map = map_slot(options, None, evidence)?;
    let job = Job { layer, options, progress, shown };
    job.count();
    let mut point = Point::default();
    let (whole, findings) = job.run(&mut Target::Stream(out), None, &mut point)?;
    job.with_map(point, whole, findings, map)
}

/// What lays an image out, where the output is one.
type Layout = Option<Box<dyn Encoder>>;

/// What all kinds of outputs have in common.
struct Job<'a> {
    layer: &'a dyn Layer,
    options: &'a ExportOptions,
    progress: &'a Progress,
    shown: &'a Path,
}

impl Job<'_> {
    /// What an interrupted export left, if it goes on: a journal without its output, or with another one, says
    /// nothing.
    fn resume(
        &self,
        slot: &Slot,
        part: &File,
        meta: &Metadata,
        identity: Option<&str>,
    ) -> (Option<(Journal, Point)>, Layout) {
        let (len, options) = (self.layer.len(), self.options);
        let Some((journal, point)) = identity.and_then(|identity| Journal::resume(slot, identity, len)) else {
            return (None, None);
        };
        if options.kind.unit().is_none() {
            return ((meta.len() == len).then_some((journal, point)), None);
        }
        let hashed = point.hash.is_some() || !matches!(options.hash, Hashing::UpTo(limit) if len <= limit);
        let reached = Some(Reached { marks: &point.marks, done: point.done });
        let encoder = options.kind.encoder(len, slot.name(), options.appliance.as_ref(), part, reached);
        let encoder = encoder.filter(|_| hashed);
        (encoder.is_some().then_some((journal, point)), encoder)
    }

    /// How many bytes the output may need, if so many are free.
    fn check_room(&self, slot: &Slot, meta: &Metadata) -> anyhow::Result<u64> {
        let need = self.options.kind.worst(self.count());
        let allocated = meta.blocks().saturating_mul(512);
        match slot.free().filter(|_| self.options.check_space) {
            Some(free) if need > free.saturating_add(allocated) => {
                let need = need.saturating_sub(allocated);
                Err(Refused::NoSpace { dest: slot.shown().into(), need, free }.into())
            }
            _ => Ok(need),
        }
    }

    /// Makes the part ready for what comes at `done`.
    fn target(
        &self,
        slot: &Slot,
        part: File,
        meta: &Metadata,
        need: u64,
        encoder: Layout,
        done: u64,
    ) -> anyhow::Result<Target<'static>> {
        let (len, options) = (self.layer.len(), self.options);
        let failed = |error| classify(error, slot.shown(), len, need);
        let Some(unit) = options.kind.unit() else {
            // Cut behind what is known to be there: what was written later may be of bytes that can't be read any more.
            // A new file is not cut: ext4 takes that for a rewrite and then waits for the disk when the file is closed.
            let cut = if meta.len() > done { part.set_len(done) } else { Ok(()) };
            cut.and_then(|()| if len > 0 { part.set_len(len) } else { Ok(()) }).map_err(failed)?;
            return Ok(Target::Sparse(part));
        };
        let packer = options.kind.packer();
        if let Some(encoder) = encoder {
            return Ok(Target::Image { file: part, encoder, packer, unit });
        }
        if meta.len() > 0 {
            part.set_len(0).map_err(failed)?;
        }
        let encoder = options.kind.encoder(len, slot.name(), options.appliance.as_ref(), &part, None);
        let kind = options.kind.suffix();
        let encoder = encoder.ok_or_else(|| Refused::NotRepresentable { dest: slot.shown().into(), kind, len })?;
        Ok(Target::Image { file: part, encoder, packer, unit })
    }

    /// Bytes that will be read, which is the most that will be written. Where the map is too long to count,
    /// a lower bound.
    fn count(&self) -> u64 {
        let mut total = 0_u64;
        let mut counted = 0;
        for step in Steps::new(self.layer, 0..self.layer.len()).take(COUNTED) {
            counted += 1;
            if let Step::Data(range) = step {
                total = total.saturating_add(range.end - range.start);
            }
        }
        let shown = if counted < COUNTED { total } else { self.layer.len() };
        self.progress.start(&self.shown.to_string_lossy(), shown);
        total
    }

    fn run(
        &self,
        target: &mut Target<'_>,
        journal: Option<&mut Journal>,
        point: &mut Point,
    ) -> anyhow::Result<(Option<Hasher>, Vec<Finding>)> {
        let len = self.layer.len();
        let hasher = match (self.options.hash, &*target) {
            (Hashing::UpTo(limit), _) if len > limit => None,
            // What an earlier run wrote is hashed from the output itself: that tells of what really is there.
            (Hashing::UpTo(_), Target::Sparse(part)) => Some(self.hash_file(part, point.done)?),
            // An image would have to be unpacked for that.
            (Hashing::UpTo(_), Target::Image { .. }) => {
                Some(point.hash.as_deref().and_then(Hasher::resume).unwrap_or_default())
            }
            (Hashing::UpTo(_), _) => Some(Hasher::default()),
            (Hashing::Off, _) => None,
        };
        let mut findings = Vec::new();
        let run = Run {
            layer: self.layer,
            target,
            journal,
            hasher,
            threads: self.options.threads,
            checkpoint: self.options.checkpoint,
            progress: self.progress,
            findings: &mut findings,
        };
        match run.run(point) {
            End::Whole(hasher) => Ok((hasher, findings)),
            End::Stopped => Err(Refused::Stopped.into()),
            End::Failed(error) => {
                Err(classify(error, self.shown, len, self.progress.total().saturating_sub(point.data)))
            }
        }
    }

    /// The hash of the first `done` bytes of the output.
    fn hash_file(&self, mut part: &File, done: u64) -> anyhow::Result<Hasher> {
        let mut hasher = Hasher::default();
        if done == 0 {
            return Ok(hasher);
        }
        let mut buf = vec![0; 1 << 20];
        let mut left = done;
        part.seek(SeekFrom::Start(0))?;
        while left > 0 {
            if self.progress.stopped() {
                return Err(Refused::Stopped.into());
            }
            let step = usize::try_from(left).unwrap_or(usize::MAX).min(buf.len());
            let again = || format!("cannot read back {}", self.shown.display());
            part.read_exact(&mut buf[..step]).with_context(again)?;
            hasher.update(&buf[..step]);
            left -= step as u64;
        }
        Ok(hasher)
    }

    fn exported(&self, point: Point, hasher: Option<Hasher>, mut findings: Vec<Finding>) -> Exported {
        let Losses { gaps, count, bytes, cut, trust, .. } = point.losses;
        let len = self.layer.len();
        let digest = match (hasher, self.options.hash) {
            (Some(hasher), _) => Digest::Sha256(hasher.finish()),
            (None, Hashing::UpTo(limit)) => {
                Digest::Absent(format!("{len} bytes are more than the hash limit of {limit}"))
            }
            (None, Hashing::Off) => Digest::Absent("hashing was switched off".into()),
        };
        if let Some(cut) = cut {
            let text = format!("{count} ranges are lost; those from {cut:#x} on are counted but not listed");
            findings.push(Finding::new("EXPORT-GAPS-CUT", cut..len, Trust::Sound, text));
        }
        Exported {
            len,
            data_bytes: point.data,
            digest,
            files: Vec::new(),
            gaps,
            gap_count: count,
            lost_bytes: bytes,
            trust,
            map: None,
            resumed_at: 0,
            findings,
        }
    }

    fn with_map(
        &self,
        point: Point,
        hasher: Option<Hasher>,
        findings: Vec<Finding>,
        map: Option<Slot>,
    ) -> anyhow::Result<Exported> {
        let written = map.map(|map| write_map(&map, self.layer.len(), &point.losses, self.options.force));
        let map = written.transpose()?;
        Ok(Exported { map, ..self.exported(point, hasher, findings) })
    }
}

fn map_slot(options: &ExportOptions, beside: Option<&Slot>, evidence: &Evidence) -> anyhow::Result<Option<Slot>> {
    let Some(path) = &options.map else { return Ok(beside.map(|slot| slot.beside(".map"))) };
    evidence.check(path)?;
    let slot = Slot::at(path, evidence)?;
    if beside.is_none() && !options.force && slot.exists() {
        return Err(Refused::Exists(path.clone()).into());
    }
    Ok(Some(slot))
}

fn write_map(slot: &Slot, len: u64, losses: &Losses, force: bool) -> anyhow::Result<PathBuf> {
    let part = slot.open_part()?;
    part.set_len(0)?;
    let mut out = io::BufWriter::new(&part);
    let written = map::write(&mut out, len, losses).and_then(|()| out.flush()).and_then(|()| part.sync_all());
    written.map_err(|error| classify(error, slot.shown(), 0, 0))?;
    slot.commit(force)?;
    Ok(slot.shown().to_path_buf())
}
