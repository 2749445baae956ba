//! Disk images.

pub mod qcow2;
pub mod raw;
pub mod vmdk;
