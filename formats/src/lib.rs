//! Disk images, volumes, datastores and file systems, each as a map that says where every byte is.
//!
//! Two traits carry everything: a [`Layer`] is an address space of bytes that knows where each of them comes
//! from, a [`Tree`] is something with names whose files are layers. A format turns a layer into either.
//! The crate is pure: bytes in, values out. It opens no file, starts no thread, reads no clock and logs nothing.
//!
//! ```
//! use std::sync::Arc;
//! use vdrecover_formats::{Bytes, Place, adapt::Memory, read, walk};
//!
//! let disk: Bytes = Arc::new(Memory::new(b"hello".to_vec()));
//! let mut buf = [0; 4];
//! let seen = read(&*disk, 3, &mut buf);
//! assert_eq!(&buf, b"lo\0\0");
//! assert_eq!(seen.gaps[0].range, 5..7, "what is behind the end is a gap, not a zero");
//! assert!(matches!(walk(&*disk, 0..5).next().unwrap().place, Place::Own));
//! ```
#![forbid(unsafe_code)]
#![cfg_attr(not(test), warn(clippy::arithmetic_side_effects, clippy::as_conversions, clippy::indexing_slicing))]

pub mod adapt;
pub mod audit;
pub mod blocks;
pub mod codec;
pub mod cursor;
pub mod disk;
pub mod entries;
pub mod error;
pub mod format;
pub mod guest;
pub mod guid;
pub mod laws;
pub mod layer;
pub mod link;
pub mod memo;
pub mod note;
pub mod num;
pub mod read;
pub mod record;
pub mod table;
pub mod tree;
pub mod vm;
pub mod vmfs;
pub mod volume;

pub use cursor::{Cursor, Resolved, walk};
pub use error::Error;
pub use format::Format;
pub use layer::{Bytes, Fault, Gap, Layer, Loss, Place, Run, Tag, Trust, Unit, Why};
pub use link::{Content, Join, Link, Opened, Role, Want};
pub use memo::{Block, Memo, Pool};
pub use note::{Concern, Finding, Note, Part, Sink, Use};
pub use read::{Seen, read, read_exact, read_vec};
pub use table::FORMATS;
pub use tree::{Doubts, Entry, Find, Kind, Named, Node, NodeId, Search, State, Tree};
