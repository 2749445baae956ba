//! Disk images.

pub mod ewf;
pub mod ova;
pub mod qcow1;
pub mod qcow2;
pub mod raw;
pub mod vdi;
pub mod vhd;
pub mod vhdx;
pub mod vmdk;
