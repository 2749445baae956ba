//! What an audit reports.

use crate::layer::{Layer, Trust};
use crate::tree::NodeId;
use std::ops::{ControlFlow, Range};

/// Takes the notes of an audit; `Break` cancels the pass.
pub type Sink<'s> = &'s mut dyn FnMut(Note<'_>) -> ControlFlow<()>;

/// One statement of an audit.
#[derive(Debug)]
pub enum Note<'a> {
    /// Bytes of a layer are in use. The case pushes the claim down to the sources.
    Claim {
        /// The layer that holds them.
        layer: &'a dyn Layer,
        /// Where in it.
        range: Range<u64>,
        /// By what.
        of: Use,
    },
    /// Bytes of a layer that its owner knows to be free.
    Free {
        /// The layer that holds them.
        layer: &'a dyn Layer,
        /// Where in it.
        range: Range<u64>,
    },
    /// Bytes of a layer that a bitmap has as used. Whoever uses them claims them too, if it can be read.
    Taken {
        /// The layer that holds them.
        layer: &'a dyn Layer,
        /// Where in it.
        range: Range<u64>,
    },
    /// An observation.
    Finding(Finding),
}

/// What claimed bytes are used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Use {
    /// Structures of the format.
    Metadata,
    /// A structure of one node.
    Node {
        /// The node that it makes.
        id: NodeId,
        /// Which of its structures.
        part: Part,
    },
    /// Content of a node.
    Data(NodeId),
    /// A journal.
    Journal,
}

impl Use {
    /// Whether it is a structure, of the format or of a node.
    #[must_use]
    pub fn is_metadata(self) -> bool {
        matches!(self, Self::Metadata | Self::Node { .. })
    }
}

/// Structures that a node has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Part {
    /// What describes it: its inode.
    Descriptor,
    /// Tables that say where its content lies.
    Pointers,
    /// The entries of a folder.
    Folder,
    /// The content of a file that is itself a structure of the format.
    System,
    /// What divides such a file up: headers and bitmaps.
    Frame,
}

impl Part {
    /// The stable lower-case word of reports and JSON.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Descriptor => "descriptor",
            Self::Pointers => "pointer block",
            Self::Folder => "folder",
            Self::System => "system file",
            Self::Frame => "headers and bitmaps",
        }
    }
}

/// An observation. States what was seen, not what it might mean.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Stable code, such as `QCOW2-L2-RANGE`.
    pub code: &'static str,
    /// Where, in the layer that the format was opened on.
    pub range: Range<u64>,
    /// What the observation leaves of the trust in what it concerns.
    pub trust: Trust,
    /// In words.
    pub text: String,
    /// The node that it is about.
    pub node: Option<Concern>,
}

/// How much of a node an observation is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Concern {
    /// A part of it, which its own runs tell.
    Part(NodeId),
    /// All of it.
    Whole(NodeId),
}

impl Concern {
    /// The node.
    #[must_use]
    pub fn id(self) -> NodeId {
        match self {
            Self::Part(id) | Self::Whole(id) => id,
        }
    }
}

impl Finding {
    /// An observation on `range`.
    #[must_use]
    pub fn new(code: &'static str, range: Range<u64>, trust: Trust, text: impl Into<String>) -> Self {
        Self { code, range, trust, text: text.into(), node: None }
    }

    /// The same, about a node.
    #[must_use]
    pub fn about(self, node: Concern) -> Self {
        Self { node: Some(node), ..self }
    }
}
