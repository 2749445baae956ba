//! Finding datastores on a device whose partition table is gone: by the header of the logical volume's device, which
//! lies 1 MiB behind the start of the partition and knows how long the partition is.

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
/// The kind of the one clue that there is.
const DEVICE: u32 = 1;

/// Reports device headers.
pub(super) fn look(window: &Window<'_>, tell: &mut dyn FnMut(Clue)) {
    let magic = MAGIC.to_le_bytes();
    // Windows need not start at a sector.
    let skip =
        STEP.saturating_sub(crate::num::narrow(window.at & wide(STEP.saturating_sub(1)))) & STEP.saturating_sub(1);
    for offset in (skip..window.own).step_by(STEP) {
        let Some(bytes) = window.bytes.get(offset..).filter(|bytes| bytes.starts_with(&magic)) else { continue };
        let at = window.at.saturating_add(wide(offset));
        let Ok(header) = RawDevice::parse(bytes, at) else { continue };
        if header.is_plausible() && at >= HEADER_AT {
            tell(Clue { at, kind: DEVICE, len: header.total_bytes, value: header.major_version.into() });
        }
    }
}

/// Makes a part of the device of every header.
#[expect(clippy::unnecessary_wraps, reason = "the signature that every row of the table has")]
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
    let link = Link { len: bytes.len(), ..Link::default() };
    Ok(Opened::alone(link, Content::Volumes(volumes)))
}
