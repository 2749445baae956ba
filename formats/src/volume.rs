//! Parts of devices.

mod boot;
pub mod gpt;
pub mod mbr;
