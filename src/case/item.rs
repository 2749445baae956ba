//! One thing that was recognised, and where it lies.

use super::Case;
use crate::source::Source;
use std::sync::Arc;
use vdrecover_formats::{Bytes, Content, Entry, Error, Format, NodeId, Opened, Tree, Trust};

/// Number of an item in its case.
pub type ItemId = usize;

/// One thing that was recognised.
#[derive(Debug)]
pub struct Item {
    /// Where its bytes lie.
    pub origin: Origin,
    /// Its bytes, before they are understood.
    pub bytes: Bytes,
    /// What it is.
    pub format: &'static Format,
    /// What it says of itself and needs.
    pub opened: Opened,
    /// What its needs were met with, in their order.
    pub filled: Vec<Filled>,
    /// How far it got.
    pub state: State,
    /// The item that uses it up: as an extent or a member, it is nothing of its own.
    pub used_by: Option<ItemId>,
    /// The items that have it as their parent.
    pub children: Vec<ItemId>,
    /// How many containers it lies in.
    pub depth: usize,
}

/// How far an item got.
#[derive(Debug)]
pub enum State {
    /// Waits for others.
    Pending,
    /// Has its content.
    Joined(Content),
    /// Its parts do not fit together.
    Failed(Error),
}

/// Where an item's bytes lie.
#[derive(Clone, Debug)]
pub enum Origin {
    /// A file or device that was opened.
    Source(Arc<Source>),
    /// A file of a store.
    File {
        /// Which store.
        store: usize,
        /// The folder that holds it.
        dir: NodeId,
        /// Its path in the store.
        path: Vec<u8>,
        /// Its entry.
        entry: Entry,
    },
    /// The content of a disk, looked at for what is inside.
    Inside(ItemId),
    /// A volume of an item.
    Volume {
        /// Which item.
        of: ItemId,
        /// Which of its volumes.
        number: usize,
    },
}

/// What met a need.
#[derive(Clone, Debug)]
pub struct Filled {
    /// The bytes; `None` if nothing did.
    pub bytes: Option<Bytes>,
    /// The item, if it is one.
    pub item: Option<ItemId>,
    /// How sure the choice is.
    pub trust: Trust,
    /// Why this one: the evidence, in words.
    pub why: String,
}

impl Item {
    /// The content, once it is there.
    #[must_use]
    pub fn content(&self) -> Option<&Content> {
        match &self.state {
            State::Joined(content) => Some(content),
            State::Pending | State::Failed(_) => None,
        }
    }

    /// The disk that this item is to a guest: its own content, or its bytes where they are no disk image.
    #[must_use]
    pub fn disk(&self) -> Bytes {
        match self.content() {
            Some(Content::Disks(disks)) if !disks.is_empty() => disks[0].bytes.clone(),
            _ => self.bytes.clone(),
        }
    }

    /// The file's own name.
    #[must_use]
    pub fn file_name(&self) -> Option<&[u8]> {
        match &self.origin {
            Origin::Source(source) => source.path.file_name().map(std::os::unix::ffi::OsStrExt::as_bytes),
            Origin::File { entry, .. } => Some(&entry.name),
            Origin::Inside(_) | Origin::Volume { .. } => None,
        }
    }

    /// Whether it came out as a tree of files.
    #[must_use]
    pub fn tree(&self) -> Option<&Arc<dyn Tree>> {
        match self.content() {
            Some(Content::Tree(tree)) => Some(tree),
            _ => None,
        }
    }

    /// The least certain of the choices that were made for it.
    #[must_use]
    pub fn trust(&self) -> Trust {
        self.filled.iter().map(|filled| filled.trust).max().unwrap_or_default()
    }
}

/// How a person calls an item.
pub(super) fn label(case: &Case, id: ItemId) -> String {
    let mut parts = Vec::new();
    let mut next = Some(id);
    // Depth bounds the way up.
    while let Some(item) = next.and_then(|id| case.items.get(id)) {
        next = match &item.origin {
            Origin::Source(source) => {
                parts.push(source.path.display().to_string());
                None
            }
            Origin::File { store, path, .. } => {
                let store = &case.stores[*store];
                parts.push(format!("store/{}/{}", text(&store.name), text(path)));
                store.item.filter(|_| parts.len() < 32)
            }
            Origin::Inside(of) => Some(*of),
            Origin::Volume { of, number } => {
                if let Some(Content::Volumes(volumes)) = case.items[*of].content() {
                    parts.extend(volumes.get(*number).map(|volume| text(&volume.name)));
                }
                Some(*of)
            }
        };
    }
    parts.reverse();
    parts.join(" > ")
}

/// Bytes of a name for people: what is not printable is escaped.
#[must_use]
pub(crate) fn text(name: &[u8]) -> String {
    crate::report::printable(name)
}
