//! Something with names.

use crate::error::Error;
use crate::format::{Clue, Window};
use crate::layer::{Bytes, Trust};
use crate::note::{Finding, Sink};
use std::collections::BTreeSet;
use std::fmt::{self, Debug};
use std::ops::{ControlFlow, Range};
use std::sync::Arc;

/// A node of one tree.
///
/// A format's own nodes stay below [`NodeId::LIMIT`], so that a case of many trees numbers all nodes as
/// `tree << 48 | node` and a mount needs no table of inodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(
    /// Number.
    pub u64,
);

impl NodeId {
    /// First number that a format's own tree may not use.
    pub const LIMIT: u64 = 1 << 48;
}

/// A row of a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Name, as the bytes on disk.
    pub name: Vec<u8>,
    /// Node.
    pub id: NodeId,
    /// Kind of the node.
    pub kind: Kind,
    /// Live, or how it was found.
    pub state: State,
    /// Pass this as `from` to go on behind this entry.
    pub next: u64,
}

/// Kinds of nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Bytes.
    File,
    /// Entries.
    Dir,
    /// A path, as its bytes.
    Symlink,
    /// A raw device mapping: has a length, but its bytes are on another LUN.
    Mapping,
    /// A further stream of a file.
    Stream,
    /// An extended attribute.
    Xattr,
    /// Device, pipe, socket.
    Special,
}

impl Kind {
    /// The stable lower-case word of reports and JSON.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::Dir => "dir",
            Self::Symlink => "symlink",
            Self::Mapping => "rdm",
            Self::Stream => "stream",
            Self::Xattr => "xattr",
            Self::Special => "special",
        }
    }
}

/// Evidence classes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum State {
    /// Linked from the root.
    #[default]
    Live,
    /// Intact, but no directory lists it.
    Orphaned,
    /// Marked as deleted.
    Deleted,
    /// Of a format that was made over.
    Reformatted,
    /// Known from a journal only.
    Journal,
    /// A part, put together from pieces.
    Fragment,
}

impl State {
    /// The stable lower-case word of reports and JSON.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Live => "live",
            Self::Orphaned => "orphaned",
            Self::Deleted => "deleted",
            Self::Reformatted => "reformatted",
            Self::Journal => "journal",
            Self::Fragment => "fragment",
        }
    }
}

/// A node that no directory lists: deleted, orphaned, formatted over, or put together from pieces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Find {
    /// Its name, and its evidence class as the state.
    pub entry: Entry,
    /// The folder that it was in, alive or found itself.
    pub parent: Option<NodeId>,
    /// Where its name comes from.
    pub named: Named,
    /// What stands behind it, in words.
    pub why: String,
}

/// Where the name of a find comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Named {
    /// An entry of a folder that is dead itself, or that lost the entry.
    Folder,
    /// What is left of an entry in a folder behind its end or in its gaps.
    Slack,
    /// A copy of an entry in a journal.
    Journal,
    /// The description of a disk.
    Descriptor,
    /// The configuration of a virtual machine.
    Config,
    /// Made up of the place where it was found.
    Place,
}

impl Named {
    /// The stable lower-case word of reports and JSON.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Folder => "folder",
            Self::Slack => "slack",
            Self::Journal => "journal",
            Self::Descriptor => "descriptor",
            Self::Config => "config",
            Self::Place => "place",
        }
    }
}

/// Takes finds; `Break` stops.
pub type Finder<'s> = &'s mut dyn FnMut(Find) -> ControlFlow<()>;

/// A search of the space that a tree has as free, for what is left of files that nothing names any more.
pub struct Search {
    /// The layer that holds the space.
    pub layer: Bytes,
    /// Where it is free, ascending and apart.
    pub free: Vec<Range<u64>>,
    /// Reports the clues that start in the window's own part.
    pub look: fn(&Window<'_>, &mut dyn FnMut(Clue)),
    /// Puts the clues, sorted, together. What comes out is a tree whose finds are what was found.
    pub build: Assemble,
}

impl Debug for Search {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Search").field("layer", &self.layer).field("free", &self.free.len()).finish_non_exhaustive()
    }
}

/// Makes a tree of finds out of clues. Pure: it may read the layer where the clues point.
pub type Assemble = Box<dyn Fn(&[Clue]) -> Arc<dyn Tree> + Send + Sync>;

/// What is known of a node. Times are signed nanoseconds since 1970: disks hold years that the system's own
/// time type can't.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Kind.
    pub kind: Kind,
    /// Length in bytes.
    pub len: u64,
    /// Permission bits, without the type bits.
    pub mode: u32,
    /// Link count.
    pub links: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number of a special file.
    pub rdev: u32,
    /// Last change of the content.
    pub modified: Option<i128>,
    /// Last read.
    pub accessed: Option<i128>,
    /// Last change of the node.
    pub changed: Option<i128>,
    /// Creation.
    pub born: Option<i128>,
    /// Live, or how it was found.
    pub state: State,
    /// How far to believe these facts.
    pub trust: Trust,
}

impl Node {
    /// A node of which nothing but kind, length and mode is known.
    #[must_use]
    pub fn plain(kind: Kind, len: u64, mode: u32) -> Self {
        Self {
            kind,
            len,
            mode,
            links: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            modified: None,
            accessed: None,
            changed: None,
            born: None,
            state: State::Live,
            trust: Trust::Sound,
        }
    }
}

/// What a look at all files of a tree put in doubt.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Doubts {
    /// Places that two have, in the layer that the tree's claims are on; ascending and apart.
    pub ranges: Vec<Range<u64>>,
    /// Nodes of which nothing is sound.
    pub nodes: BTreeSet<NodeId>,
}

/// Takes the entries of a listing, and what is wrong between them; `Break` stops.
pub type Lister<'s> = &'s mut dyn FnMut(Result<Entry, Finding>) -> ControlFlow<()>;

/// Something with names: a file system, a datastore, or the whole case.
pub trait Tree: Debug + Send + Sync {
    /// The top.
    fn root(&self) -> NodeId;

    /// Facts of a node.
    fn node(&self, id: NodeId) -> Result<Node, Error>;

    /// Entries behind `from` (0: from the first), in an order that never changes, without `.` and `..`.
    /// Memory for one block, however large the directory.
    fn list(&self, dir: NodeId, from: u64, sink: Lister<'_>) -> Result<(), Error>;

    /// One entry by its name, through the format's index where it has one and never by listing all.
    fn lookup(&self, dir: NodeId, name: &[u8]) -> Result<Option<Entry>, Error>;

    /// Streams and extended attributes; they are nodes too.
    fn attrs(&self, id: NodeId) -> Vec<Entry> {
        let _ = id;
        Vec::new()
    }

    /// Content: of a file, a stream, an attribute; of a symlink its text.
    fn open(&self, id: NodeId) -> Result<Bytes, Error>;

    /// Nodes that no directory lists, from the structures alone, each once and in an order that never changes. What
    /// lies in a folder that was found itself is told with that folder as its parent; parents make no loops.
    fn finds(&self, sink: Finder<'_>) {
        let _ = sink;
    }

    /// What is told of a node that was found. `None` for all others.
    fn found(&self, id: NodeId) -> Option<Find> {
        let _ = id;
        None
    }

    /// What contradicts the content of a node, in words, as far as somebody compared it with others.
    fn contradicted(&self, id: NodeId) -> Vec<String> {
        let _ = id;
        Vec::new()
    }

    /// What [`Tree::finds`] left out because there was more than any volume has: damage, or malice.
    fn left_out(&self, sink: &mut dyn FnMut(Finding)) {
        let _ = sink;
    }

    /// How free space is searched for more.
    fn search(&self) -> Option<Search> {
        None
    }

    /// As [`crate::Layer::parts`].
    fn parts(&self) -> u32 {
        1
    }

    /// As [`crate::Layer::audit`].
    fn audit(&self, part: u32, sink: Sink<'_>) -> ControlFlow<()> {
        let _ = (part, sink);
        ControlFlow::Continue(())
    }

    /// Nodes that the format's own records, other than their pointers, say have a range of the layer that claims are
    /// on; and whether they say it of exactly these bytes, or only of some near them.
    fn holders(&self, range: Range<u64>) -> (Vec<NodeId>, bool) {
        let _ = range;
        (Vec::new(), false)
    }

    /// Takes what an audit of all parts put in doubt: whoever reads it from then on is told, be it through a layer that
    /// was opened before.
    fn doubt(&self, doubts: Doubts) {
        let _ = doubts;
    }

    /// Compares structures with each other that only a look at all of them can compare, beyond the audit: too dear for
    /// every listing. A finding that is Sound is no contradiction, but a fact that whoever checks wants to know.
    fn check(&self, sink: &mut dyn FnMut(Finding)) {
        let _ = sink;
    }
}
