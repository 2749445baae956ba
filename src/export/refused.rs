//! Why an export was not made. The root of the error, so that a caller can tell the kinds apart.

use rustix::io::Errno;
use std::io;
use std::path::{Path, PathBuf};

/// Why nothing, or not all, was written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Refused {
    /// Something has the name already.
    #[error("{} exists already; choose another name, or replace it with --force", .0.display())]
    Exists(PathBuf),
    /// Writing there would change the evidence.
    #[error("{} {why}; nothing is written there, choose a place on another disk", .dest.display())]
    Evidence {
        /// What was to be written.
        dest: PathBuf,
        /// How it touches an input.
        why: String,
    },
    /// The file system has an upper limit for files.
    #[error(
        "{} would be {len} bytes long, more than its file system allows; \
         use one without this limit, such as XFS, or mount the image instead of exporting it", .dest.display()
    )]
    TooLarge {
        /// What was to be written.
        dest: PathBuf,
        /// Its length.
        len: u64,
    },
    /// The format has no room for so large a disk.
    #[error("{}: a disk of {len} bytes is more than {kind} can hold; write raw", .dest.display())]
    NotRepresentable {
        /// What was to be written.
        dest: PathBuf,
        /// The format.
        kind: &'static str,
        /// Length of the disk.
        len: u64,
    },
    /// The file system is full, or would be.
    #[error("{}: {need} bytes are to be written and {free} are free there; make room or choose another place", .dest.display())]
    NoSpace {
        /// What was to be written.
        dest: PathBuf,
        /// Bytes still to be written.
        need: u64,
        /// Bytes free.
        free: u64,
    },
    /// Another process writes the same output, or has the device mounted.
    #[error("{} is in use: {why}", .dest.display())]
    Busy {
        /// What was to be written.
        dest: PathBuf,
        /// By what.
        why: &'static str,
    },
    /// The user asked to stop.
    #[error("stopped by the user")]
    Stopped,
    /// The reader of a pipe went away.
    #[error("the reader of the output closed it")]
    Closed,
}

/// Tells a full file system, a file too long and a closed pipe from other failures of a write.
pub(crate) fn classify(error: io::Error, dest: &Path, len: u64, left: u64) -> anyhow::Error {
    let dest = dest.to_path_buf();
    match Errno::from_io_error(&error) {
        Some(Errno::NOSPC | Errno::DQUOT) => Refused::NoSpace { dest, need: left, free: 0 }.into(),
        Some(Errno::FBIG) => Refused::TooLarge { dest, len }.into(),
        Some(Errno::PIPE) => Refused::Closed.into(),
        _ => anyhow::Error::new(error).context(format!("cannot write to {}", dest.display())),
    }
}
