//! What an image says of itself, which others it needs, and what comes out when it has them.
//!
//! No format ever reaches another file. It states its wants; the case matches them to what it was given,
//! chooses, and joins from the bottom up. Chains, spans, arrays and external data files are all this.

use crate::error::Error;
use crate::layer::Bytes;
use crate::note::Finding;
use crate::tree::Tree;
use std::fmt::{self, Debug};
use std::ops::Range;
use std::sync::Arc;

/// Parsed, not yet joined with the others it needs.
pub struct Opened {
    /// What it says of itself.
    pub link: Link,
    /// What it needs, in the order in which [`Opened::join`] takes it.
    pub wants: Vec<Want>,
    /// Makes the content out of as many layers as there are wants. May be called again, with others.
    pub join: Join,
    /// What was seen on the way.
    pub findings: Vec<Finding>,
    /// What a person wants to know of it, for `info`, in reading order.
    pub facts: Vec<Fact>,
}

impl Opened {
    /// Something that needs no other image.
    #[must_use]
    pub fn alone(link: Link, content: Content) -> Self {
        Self {
            link,
            wants: Vec::new(),
            join: Box::new(move |_| Ok(content.clone())),
            findings: Vec::new(),
            facts: Vec::new(),
        }
    }

    /// The content without any other image: what they would have is lost.
    pub fn join_alone(&self) -> Result<Content, Error> {
        (self.join)(&vec![None; self.wants.len()])
    }
}

impl Debug for Opened {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Opened").field("link", &self.link).field("wants", &self.wants).finish_non_exhaustive()
    }
}

/// Makes content. A want that is `None` becomes [`crate::Why::Absent`] runs where it would have been.
pub type Join = Box<dyn Fn(&[Option<Bytes>]) -> Result<Content, Error> + Send + Sync>;

/// What came out.
#[derive(Clone, Debug)]
pub enum Content {
    /// A disk as a guest sees it; behind the first, its internal snapshots.
    Disks(Vec<Disk>),
    /// Parts of a device.
    Volumes(Vec<Volume>),
    /// Names.
    Tree(Arc<dyn Tree>),
}

/// A disk as a guest sees it.
#[derive(Clone, Debug)]
pub struct Disk {
    /// Empty for the current state, else the snapshot's name.
    pub name: Vec<u8>,
    /// The disk.
    pub bytes: Bytes,
}

/// A part of a device.
#[derive(Clone, Debug)]
pub struct Volume {
    /// Short and unique among its neighbours, such as `p1`.
    pub name: Vec<u8>,
    /// What the table says that it is, such as `VMFS` or `Linux filesystem`.
    pub about: String,
    /// Where it lies, in the layer that was opened.
    pub range: Range<u64>,
    /// Its bytes.
    pub bytes: Bytes,
}

/// Identity of an image.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Link {
    /// What people call it: a label.
    pub name: Option<Vec<u8>>,
    /// What others refer to it by: a content id, a UUID.
    pub id: Option<Vec<u8>>,
    /// The set that it is a member of.
    pub set: Option<Member>,
    /// Bytes as a guest sees them.
    pub len: u64,
    /// Creation, in nanoseconds since 1970.
    pub born: Option<i128>,
    /// Bytes of the device that it is on, as its own structures have them: a table around it may be newer, and wrong.
    pub device: Option<u64>,
}

/// A place in a set: an extent of a spanned volume, a member of an array.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Names the set, equal in all its members.
    pub set: Vec<u8>,
    /// Orders the members.
    pub first: u64,
    /// How many there are.
    pub count: u32,
    /// Names this member: two images of one member are copies of each other, not two members.
    pub id: Vec<u8>,
    /// How often the set was changed, as this member has it: equal in members of one time.
    pub epoch: u64,
    /// How often its own metadata was changed: of two copies, the one with more is newer.
    pub generation: u64,
    /// The last change that it knows of, in microseconds since 1970: of two copies of one generation, the later one is
    /// newer.
    pub changed: u64,
}

impl Member {
    /// Orders copies of one member by how new they are.
    #[must_use]
    pub fn age(&self) -> (u64, u64, u64) {
        (self.epoch, self.generation, self.changed)
    }
}

/// A need for another image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Want {
    /// What for.
    pub role: Role,
    /// The id of the image wanted, or of its set. `None` where the format has no ids, so that the name is all
    /// there is to go by; an id that identifies nothing is given as it stands, and no image has it.
    pub id: Option<Vec<u8>>,
    /// What the image that wants it calls it: a name as written there, never followed as a path.
    pub hint: Option<Vec<u8>>,
    /// Bytes that it must have.
    pub len: Option<u64>,
}

/// What another image is needed for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// The state before this snapshot: its content is wanted, flattened.
    Parent,
    /// Holds a part of the data: its bytes are wanted.
    Extent,
    /// Another member of the same set: its bytes are wanted.
    Member,
    /// Holds all of the data: its bytes are wanted.
    DataFile,
}

impl Role {
    /// The stable lower-case word of reports and JSON.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Parent => "parent",
            Self::Extent => "extent",
            Self::Member => "member",
            Self::DataFile => "data-file",
        }
    }
}

/// One line of `info`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fact {
    /// In the specification's words, snake case: also the JSON key.
    pub name: &'static str,
    /// What it is.
    pub value: Value,
}

/// A value with its unit, so that people and programs both get it in their own form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// Words.
    Text(String),
    /// A number of bytes.
    Bytes(u64),
    /// A time, in nanoseconds since 1970.
    Time(i128),
    /// A number whose digits mean something in base 16: an offset, flags.
    Hex(u64),
    /// A number of things.
    Count(u64),
    /// Yes or no.
    Flag(bool),
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl PartialEq<&str> for Value {
    fn eq(&self, text: &&str) -> bool {
        matches!(self, Self::Text(own) if own == text)
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl Fact {
    /// A fact.
    #[must_use]
    pub fn new(name: &'static str, value: impl Into<Value>) -> Self {
        Self { name, value: value.into() }
    }
}
