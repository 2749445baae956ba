//! Disk images.

pub mod raw;
