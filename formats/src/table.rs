//! The one table of formats: probing, sweeping, `--list-formats`, the documentation and the fixture test read it.

use crate::format::Format;

/// All formats. Scores decide between them, not the order here.
pub static FORMATS: &[&Format] = &[
    &crate::disk::qcow1::FORMAT,
    &crate::disk::qcow2::FORMAT,
    &crate::disk::vmdk::FORMAT,
    &crate::disk::vmdk::hosted::FORMAT,
    &crate::disk::vmdk::cowd::FORMAT,
    &crate::disk::vmdk::sesparse::FORMAT,
    &crate::disk::vhd::FORMAT,
    &crate::disk::vhdx::FORMAT,
    &crate::disk::vdi::FORMAT,
    &crate::disk::ewf::FORMAT,
    &crate::disk::ova::FORMAT,
    &crate::volume::gpt::FORMAT,
    &crate::volume::mbr::FORMAT,
    &crate::vmfs::FORMAT,
    &crate::disk::raw::FORMAT,
];
