//! Why a whole thing failed. Missing bytes inside something that works are a [`crate::Place::Lost`] instead.

use crate::layer::{Gap, Trust};
use thiserror::Error as Derive;

/// Why something could not be opened, listed or looked up.
#[derive(Clone, Debug, Derive, PartialEq, Eq)]
#[non_exhaustive]
pub enum Error {
    /// A structure contradicts its specification.
    #[error("{what} at {at:#x} is corrupt: {found}")]
    Corrupt {
        /// The structure and the field, in the specification's words.
        what: &'static str,
        /// Where it lies in the layer that was opened.
        at: u64,
        /// What was found there and what would be right.
        found: String,
    },
    /// Right, but nothing that this program reads.
    #[error("{what} is not supported")]
    Unsupported {
        /// The feature.
        what: String,
    },
    /// Bytes that the structure needs can't be had.
    #[error("{what}: {gap}")]
    Lost {
        /// The structure.
        what: &'static str,
        /// The bytes.
        gap: Gap,
    },
    /// A part of a set that was not given, without which the others show nothing. The part that is there is whole.
    #[error("{what}")]
    Absent {
        /// What is there, and what is not.
        what: String,
    },
    /// There is no such node.
    #[error("not found")]
    NotFound,
    /// Asked for the entries of something that has none.
    #[error("not a folder")]
    NotFolder,
    /// Asked for the bytes of something that has none.
    #[error("not a file")]
    NotFile,
}

impl Error {
    /// A contradiction: `what` lies at `at`, and `found` says what is there.
    #[must_use]
    pub fn corrupt(what: &'static str, at: u64, found: impl Into<String>) -> Self {
        Self::Corrupt { what, at, found: found.into() }
    }

    /// How much the failure speaks against what is there: not at all, if only bytes are missing that are elsewhere.
    #[must_use]
    pub fn doubt(&self) -> Trust {
        match self {
            Self::Lost { gap, .. } if gap.loss.why.is_elsewhere() => Trust::Sound,
            Self::Absent { .. } => Trust::Sound,
            _ => Trust::Doubtful,
        }
    }

    /// Something that this program does not read.
    #[must_use]
    pub fn unsupported(what: impl Into<String>) -> Self {
        Self::Unsupported { what: what.into() }
    }
}
