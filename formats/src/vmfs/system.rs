//! A volume of which there are only the system files, as people copy them from `/vmfs/volumes/NAME/.*.sf`.
//!
//! | file | what it is of the volume | how sure |
//! | --- | --- | --- |
//! | `.vh.sf` | its first bytes, up to where `.fdc.sf` starts, at their own offsets: header, heartbeats | real images |
//! | `.fdc.sf` | the descriptors; its first file block follows `.vh.sf` and holds those of all system files | real images |
//! | `.pb2.sf`, `.pbc.sf`, `.sbc.sf`, `.fbb.sf`, `.jbc.sf` | what their descriptors say | real images |
//!
//! Without `.vh.sf` the start of `.fdc.sf` says where it lies in the volume, by its first record, and from there the
//! volume opens as one does whose header is destroyed.
//!
//! Each file is laid where the pointers of its descriptor have it, in the order in which a volume is opened, so that
//! the pointer blocks that the next one needs are there. What lies in none of them, which is the content of all larger
//! files, is [`Why::Absent`].

use super::address::FdAddress;
use super::descriptor::RawLock;
use super::header::{HEADER_AT, HEARTBEATS_AT, Header};
use super::rebuild::{self, FDC_CLUSTER};
use super::resource::RawResource;
use super::tree::Datastore;
use super::volume::Volume;
use crate::adapt::{Blank, below};
use crate::error::Error;
use crate::layer::{Bytes, Layer, Place, Run, Trust, Why};
use crate::link::{Content, Role, Want};
use crate::memo::Memo;
use crate::note::Finding;
use crate::record::Record;
use std::sync::Arc;

/// The files beside `.vh.sf`, in the order in which they are laid out.
const FILES: [(&str, FdAddress); 6] = [
    (".pb2.sf", FdAddress::PB2),
    (".pbc.sf", FdAddress::PBC),
    (".sbc.sf", FdAddress::SBC),
    (".fdc.sf", FdAddress::FDC),
    (".fbb.sf", FdAddress::FBB),
    (".jbc.sf", FdAddress::JBC),
];
/// `.fdc.sf` among them.
const FDC: usize = 3;
/// The smallest file block: so much of `.fdc.sf` lies in one piece, and has the descriptors of all system files.
const LEAST_BLOCK: u64 = 512 << 10;
/// A volume whose length nothing tells: the most that VMFS has.
const MAX_LEN: u64 = 64 << 40;

/// Whether a layer that starts as a volume ends where `.vh.sf` does.
pub(super) fn is_head(bytes: &Bytes, header: &Header) -> bool {
    bytes.len() <= header.fdc_at()
}

/// Where in its volume a layer starts that is `.fdc.sf`.
pub(super) fn descriptors_at(layer: &dyn Layer) -> Option<u64> {
    let raw = RawResource::load(layer, 0).ok()?;
    let group = u64::from(raw.cluster_group_offset);
    if !(512..=16 << 20).contains(&group) || !raw.resource_size.is_power_of_two() {
        return None;
    }
    let lock = RawLock::load(layer, group).ok().filter(|lock| lock.magic == FDC_CLUSTER)?;
    lock.at.checked_sub(group).filter(|at| (HEARTBEATS_AT..1 << 30).contains(at))
}

/// The header of a volume by its `.fdc.sf`, which starts at `at`, and what that was made up from.
pub(super) fn header_by(fdc: &Bytes, at: u64, memo: &Memo) -> Result<(Header, String), Error> {
    let part = Part { at, len: LEAST_BLOCK.min(fdc.len()), from: Bytes::clone(fdc), offset: 0 };
    let lv: Bytes = Arc::new(Parts { len: MAX_LEN, parts: vec![part] });
    let found = rebuild::header(&lv, memo)?;
    Ok((found.header, found.text.unwrap_or_default()))
}

/// The volume out of `.fdc.sf` and the files beside it, without `.vh.sf`. `others` are what [`wants`] names but `.fdc.sf`.
pub(super) fn join_headless(fdc: &Bytes, header: &Header, others: &[Option<Bytes>], memo: &Memo) -> Content {
    let (before, behind) = others.split_at_checked(FDC).unwrap_or((others, &[]));
    let files = [before, &[Some(Bytes::clone(fdc))], behind].concat();
    let head: Bytes = Arc::new(Blank::zero(0));
    join(&head, header, &files, memo)
}

/// The files that lie beside `.fdc.sf` where there is no `.vh.sf`.
pub(super) fn wants_headless(header: &Header) -> Vec<Want> {
    let mut wants = wants(header);
    wants.remove(FDC);
    wants
}

/// The files that lie beside `.vh.sf`.
pub(super) fn wants(header: &Header) -> Vec<Want> {
    let files = FILES.iter().filter(|(_, address)| header.is_six() || *address != FdAddress::JBC);
    let want = |name: &str| Want { role: Role::Extent, id: None, hint: Some(name.into()), len: None };
    files.map(|(name, _)| want(name)).collect()
}

/// The volume out of `.vh.sf` and the files beside it.
pub(super) fn join(head: &Bytes, header: &Header, others: &[Option<Bytes>], memo: &Memo) -> Content {
    let mut findings = Vec::new();
    let mut lv =
        Parts { len: MAX_LEN, parts: vec![Part { at: 0, len: head.len(), from: Bytes::clone(head), offset: 0 }] };
    if let Some(Some(fdc)) = others.get(FDC) {
        let block = 1_u64.checked_shl(header.file_shift).unwrap_or_default().min(fdc.len());
        lv.add(header.fdc_at(), block, fdc, 0);
    }
    for ((name, address), bytes) in FILES.iter().zip(others) {
        let Some(bytes) = bytes else { continue };
        let address = if *address == FdAddress::PB2 { header.pb2().unwrap_or(*address) } else { *address };
        let all: Bytes = Arc::new(lv.clone());
        // Where the files lie says the volume as it stands; journals are read once all of it is there.
        let volume = Volume::with(header.clone(), &all, None, memo);
        match volume.descriptor(address) {
            Ok(descriptor) => {
                if descriptor.len != bytes.len() {
                    let text = format!("{name} has {} bytes, its descriptor says {}", bytes.len(), descriptor.len);
                    findings.push(Finding::new("VMFS-SF-LENGTH", descriptor.at..descriptor.at, Trust::Doubtful, text));
                }
                lv.lay(&volume.file(descriptor), bytes);
            }
            Err(error) => {
                let text = format!("{name} can't be put in its place: {error}");
                findings.push(Finding::new("VMFS-SF", HEADER_AT..HEADER_AT, Trust::Doubtful, text));
            }
        }
    }
    let all: Bytes = Arc::new(lv.clone());
    let have = lv.parts.last().map_or(0, Part::end);
    // Only with `.sbc.sf` in its place do the descriptors say all of a header that is not there.
    let found = if head.is_empty() { rebuild::header(&all, memo).ok() } else { None };
    let header = found.as_ref().map_or(header, |found| &found.header);
    let whole = Volume::replayed(header.clone(), &all, None, memo);
    lv.len = rebuild::length(&whole).unwrap_or(MAX_LEN).max(have);
    let text = "only the volume's system files are there: what lies in its file blocks is absent";
    findings.push(Finding::new("VMFS-SF-ONLY", HEADER_AT..HEADER_AT, Trust::Inferred, text));
    let lv: Bytes = Arc::new(lv);
    Content::Tree(Arc::new(Datastore::new(Volume::replayed(header.clone(), &lv, None, memo), findings)))
}

/// The parts of a volume that lie in its system files.
#[derive(Clone, Debug)]
struct Parts {
    /// Ascending and apart.
    parts: Vec<Part>,
    len: u64,
}

#[derive(Clone, Debug)]
struct Part {
    at: u64,
    len: u64,
    from: Bytes,
    offset: u64,
}

impl Part {
    fn end(&self) -> u64 {
        self.at.saturating_add(self.len)
    }
}

impl Parts {
    /// Adds a part, as far as no other is there already.
    fn add(&mut self, mut at: u64, len: u64, from: &Bytes, mut offset: u64) {
        let end = at.saturating_add(len);
        let mut next = self.parts.partition_point(|part| part.end() <= at);
        while at < end {
            let (taken, behind) = self.parts.get(next).map_or((end, end), |part| (part.at.min(end), part.end()));
            let len = taken.saturating_sub(at);
            if len > 0 {
                self.parts.insert(next, Part { at, len, from: Bytes::clone(from), offset });
                next = next.saturating_add(1);
            }
            next = next.saturating_add(1);
            offset = offset.saturating_add(behind.saturating_sub(at));
            at = behind;
        }
    }

    /// Lays `bytes`, the content of `file`, where `file` has it.
    fn lay(&mut self, file: &dyn Layer, bytes: &Bytes) {
        let end = file.len().min(bytes.len());
        let mut at = 0;
        while at < end {
            let run = file.run(at, end.saturating_sub(at));
            let len = run.len.max(1);
            if let Place::Below { offset, .. } = run.place {
                self.add(offset, len, bytes, at);
            }
            at = at.saturating_add(len);
        }
    }
}

impl Layer for Parts {
    fn len(&self) -> u64 {
        self.len
    }

    fn about(&self) -> String {
        "VMFS volume, as far as its system files have it".into()
    }

    fn run(&self, at: u64, want: u64) -> Run<'_> {
        let next = self.parts.partition_point(|part| part.end() <= at);
        match self.parts.get(next) {
            Some(part) if part.at <= at => {
                let into = at.saturating_sub(part.at);
                let run = below(&*part.from, part.offset.saturating_add(into), want.min(part.len.saturating_sub(into)));
                // The files of a volume in use are copied one after the other, while it changes.
                Run { trust: Trust::Inferred, ..run }
            }
            Some(part) => Run::lost(want.min(part.at.saturating_sub(at)), Why::Absent, at),
            None => Run::lost(want, Why::Absent, at),
        }
    }
}
