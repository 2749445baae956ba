//! Volumes of another layout that were there before: what a quick format leaves of them.
//!
//! A new volume of the same layout finds the old descriptors in its own `.fdc.sf`. One of another layout has that file
//! elsewhere, so that the old one lies in blocks that are free or were taken for something else, and much of it is
//! still there (real images: VMFS5 over VMFS6). The landmark is the descriptor of the old `.fdc.sf`, which has one
//! place for each layout, knows that place, and says how large file blocks are.

use super::address::FdAddress;
use super::descriptor::{Descriptor, Shape, Type};
use super::header::{Geometry, Header};
use super::volume::Volume;
use crate::layer::Trust;

/// A volume that was there before.
#[derive(Debug)]
pub(super) struct Former {
    /// As far as it is left. What lies where in it is not checked against the volume of now.
    pub volume: Volume,
    /// In words.
    pub about: String,
}

/// Looks for volumes of other layouts where `live` lies now, in the order of the layouts.
pub(super) fn look(live: &Volume) -> Vec<Former> {
    let is_here = |geometry: &Geometry| {
        let header = Header::assumed(geometry);
        !header.is_alike(&live.space.header) && has_landmark(live, &header)
    };
    layouts().filter(is_here).filter_map(|geometry| open(live, geometry)).collect()
}

/// All layouts that volumes have, by where `.fdc.sf` starts and what its descriptor says.
fn layouts() -> impl Iterator<Item = Geometry> {
    // As all real images have it, until the volume's own files say otherwise.
    let six = (12..=16_u32).map(|shift| Geometry::usual(true, 1_u64.unbounded_shl(shift), 20));
    let five = (19..=23_u32).map(|shift| Geometry::usual(false, 512, shift));
    six.chain(five)
}

fn has_landmark(live: &Volume, header: &Header) -> bool {
    let Some(at) = header.fixed(FdAddress::FDC) else { return false };
    let found = Descriptor::load(&*live.space.lv, header, at, FdAddress::FDC);
    found.is_ok_and(|fd| {
        let blocks = matches!(fd.shape, Shape::Mapped { shift, .. } if shift == header.file_shift);
        blocks && fd.kind == Type::System && fd.trust == Trust::Sound
    })
}

fn open(live: &Volume, geometry: Geometry) -> Option<Former> {
    let (space, memo) = (&live.space, live.space.tables.share());
    let volume = |geometry| Volume::with(Header::assumed(geometry), &space.lv, space.logical.clone(), &memo);
    let mut found = volume(&geometry);
    if let Some(geometry) = geometry.with_subs_of(&found.pools) {
        found = volume(&geometry);
    }
    // Without it no descriptor can be found.
    found.fdc.as_ref()?;
    let block = 1_u64.unbounded_shl(geometry.file_shift) >> 10;
    let version = if geometry.six { 6 } else { 5 };
    Some(Former { volume: found, about: format!("a VMFS{version} with blocks of {block} KiB that was here before") })
}
