//! The toolkit: opens images, puts them together, and hands out what is in them.
//!
//! `cli` runs a command on a `case`; a case is made of `source`s, which are opened by the formats of
//! `vdrecover_formats`. Nothing in here can write to a source: no type that opens one has a way to.

pub mod audit;
pub mod case;
pub mod cli;
pub mod digest;
pub mod export;
pub mod health;
pub mod locator;
pub mod mapfile;
pub mod mount;
pub mod number;
pub mod ordered;
pub mod owner;
pub mod progress;
pub mod ranges;
pub mod report;
pub mod source;
pub mod stdout;
pub mod sweep;
#[cfg(test)]
mod testing;
pub mod want;
