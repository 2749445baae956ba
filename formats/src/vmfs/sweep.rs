//! Finding datastores on a device whose partition table is gone: by the header of the logical volume's device, which
//! lies 1 MiB behind the start of the partition and knows how long the partition is.

use super::header;
use super::lvm::{HEADER_AT, MAGIC, RawDevice};
use crate::adapt::Window as Part;
use crate::error::Error;
use crate::format::{Clue, Window};
use crate::layer::Bytes;
use crate::link::{Content, Link, Opened, Volume};
use crate::memo::Memo;
use crate::num::wide;
use crate::record::Record;
use std::sync::Arc;

/// Partitions start at sectors.
const STEP: usize = 512;
/// The kinds of clues: the header of a device, and that of a file system.
const DEVICE: u32 = 1;
const VOLUME: u32 = 2;
/// From the header of a device to that of the file system on it.
const BETWEEN: u64 = 0x120_0000;

/// Reports device headers.
pub(super) fn look(window: &Window<'_>, tell: &mut dyn FnMut(Clue)) {
    let magic = MAGIC.to_le_bytes();
    // Windows need not start at a sector.
    let skip =
        STEP.saturating_sub(crate::num::narrow(window.at & wide(STEP.saturating_sub(1)))) & STEP.saturating_sub(1);
    for offset in (skip..window.own).step_by(STEP) {
        let at = window.at.saturating_add(wide(offset));
        let Some(bytes) = window.bytes.get(offset..) else { continue };
        if at >= header::HEADER_AT && header::is_start(bytes) {
            tell(Clue { at, kind: VOLUME, len: 0, value: 0 });
        }
        if !bytes.starts_with(&magic) {
            continue;
        }
        let Ok(header) = RawDevice::parse(bytes, at) else { continue };
        if header.is_plausible() && at >= HEADER_AT {
            tell(Clue { at, kind: DEVICE, len: header.total_bytes, value: header.major_version.into() });
        }
    }
}

/// Makes a part of the device of every header.
pub(super) fn build(bytes: &Bytes, _: &Memo, clues: &[Clue]) -> Result<Opened, Error> {
    let found = clues.iter().filter(|clue| clue.kind == DEVICE && clue.at >= HEADER_AT);
    let volumes = found
        .zip(1_u32..)
        .map(|(clue, number)| {
            let start = clue.at.saturating_sub(HEADER_AT);
            Volume {
                name: format!("vmfs{number}").into_bytes(),
                about: format!("VMFS (LVM {}), found by its header", clue.value),
                range: start..start.saturating_add(clue.len),
                bytes: Arc::new(Part::new(Bytes::clone(bytes), start, clue.len)),
            }
        })
        .collect();
    let mut volumes: Vec<Volume> = volumes;
    volumes.retain(|volume| !volume.range.is_empty());
    let has_device = |at: u64| clues.iter().any(|clue| clue.kind == DEVICE && clue.at.saturating_add(BETWEEN) == at);
    let alone = clues.iter().find(|clue| clue.kind == VOLUME && !has_device(clue.at));
    if let (true, Some(clue)) = (volumes.is_empty(), alone) {
        let found = "a VMFS file system; the header of the device it lay on is destroyed, so that it can't be opened";
        return Err(Error::corrupt("VMFS without LVM", clue.at, found));
    }
    let link = Link { len: bytes.len(), ..Link::default() };
    Ok(Opened::alone(link, Content::Volumes(volumes)))
}
