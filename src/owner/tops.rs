//! Everything of a case that can have bytes of a device, other than by a claim.

use super::Kind;
use super::chain::{Known, Level, store_path, text};
use crate::case::{Case, Origin};
use crate::ranges::RangeSet;
use std::ops::{ControlFlow, Range};
use std::sync::Arc;
use vdrecover_formats::cursor::same_layer;
use vdrecover_formats::{Bytes, Content, Entry, Kind as NodeKind, NodeId, State, Tree};

/// What of a gap between partitions is taken for their table: a GPT has 16 KiB of entries at either end of a disk,
/// and a chain of logical partitions has a sector before each.
const TABLE: u64 = 64 << 10;

/// Something that can have bytes.
#[derive(Debug)]
pub(super) struct Top {
    pub(super) name: Arc<str>,
    pub(super) level: Level,
    pub(super) kind: Kind,
    pub(super) state: State,
    /// The part of it that is meant.
    pub(super) range: Option<Range<u64>>,
    of: Of,
}

#[derive(Debug)]
enum Of {
    Bytes(Bytes),
    /// Opened when needed: a store has more files than can be kept open.
    Node(usize, NodeId),
}

impl Top {
    pub(super) fn open(&self, case: &Case) -> Option<Bytes> {
        match &self.of {
            Of::Bytes(bytes) => Some(Arc::clone(bytes)),
            Of::Node(store, id) => case.stores.get(*store)?.tree.open(*id).ok(),
        }
    }
}

/// All of them, and the names of the case's layers.
#[derive(Debug)]
pub(super) struct Tops {
    pub(super) all: Vec<Top>,
    pub(super) known: Known,
}

impl Tops {
    pub(super) fn of(case: &Case) -> Self {
        let mut tops = Self { all: Vec::new(), known: Known::of(case) };
        tops.disks(case);
        tops.images(case);
        tops.gaps(case);
        tops.files(case);
        tops
    }

    fn push(&mut self, name: &str, level: Level, kind: Kind, of: Of) {
        self.all.push(Top { name: name.into(), level, kind, state: State::Live, range: None, of });
    }

    fn add(&mut self, case: &Case, name: &str, level: Level, bytes: &Bytes) {
        if self.known.add(&**bytes, level, name) {
            let kind = if is_opened(case, bytes) { Kind::Unclaimed } else { Kind::Data };
            self.push(name, level, kind, Of::Bytes(Arc::clone(bytes)));
        }
    }

    /// The disks and volumes that have a path in the case.
    fn disks(&mut self, case: &Case) {
        for (path, entry) in own_files(case) {
            if let Some(target) = case.target(entry.id) {
                let level = if path.starts_with(b"files/") { Level::Volume } else { Level::Disk };
                self.add(case, &text(&path), level, &target.bytes);
            }
        }
    }

    /// What images and partitions hold that has no path: containers, earlier links of chains.
    fn images(&mut self, case: &Case) {
        for (id, item) in case.items.iter().enumerate() {
            if let Some(Content::Disks(disks)) = item.content() {
                let name = format!("{} ({})", self.known.item(case, id), item.format.name);
                for disk in disks.iter().filter(|disk| !same_layer(&*disk.bytes, &*item.bytes)) {
                    self.add(case, &name, Level::Disk, &disk.bytes);
                }
            }
        }
        for (id, item) in case.items.iter().enumerate() {
            if let Some(Content::Volumes(volumes)) = item.content() {
                for volume in volumes {
                    let name = format!("{} > {}", self.known.item(case, id), text(&volume.name));
                    self.add(case, &name, Level::Volume, &volume.bytes);
                }
            }
        }
    }

    /// What of a disk with partitions none of them has.
    fn gaps(&mut self, case: &Case) {
        for (id, item) in case.items.iter().enumerate() {
            for (range, is_table) in gaps(item.content(), item.bytes.len()) {
                let name = self.known.item(case, id);
                let (name, kind) = if is_table {
                    (format!("partition table ({}) of {name}", item.format.name), Kind::Structure)
                } else {
                    (format!("outside all partitions of {name}"), Kind::Unclaimed)
                };
                let (state, of) = (State::Live, Of::Bytes(Arc::clone(&item.bytes)));
                let level = Level::Structure;
                self.all.push(Top { name: name.into(), level, kind, state, range: Some(range), of });
            }
        }
    }

    /// Files of datastores, live and found.
    fn files(&mut self, case: &Case) {
        for (index, store) in case.stores.iter().enumerate().filter(|(_, store)| store.item.is_some()) {
            for file in store.files.iter().filter(|file| file.entry.kind != NodeKind::Dir) {
                let kind = if is_system(&file.path) { Kind::Unused } else { Kind::Data };
                self.push(&store_path(case, index, &file.path), Level::File, kind, Of::Node(index, file.entry.id));
            }
            store.tree.finds(&mut |find| {
                if find.entry.kind != NodeKind::Dir {
                    let (name, state) = (text(&find.entry.name), find.entry.state);
                    let name = format!("{name}, {} in store/{}", state.word(), text(&store.name));
                    let of = Of::Node(index, find.entry.id);
                    let (level, kind) = (Level::File, Kind::Data);
                    self.all.push(Top { name: name.into(), level, kind, state, range: None, of });
                }
                ControlFlow::Continue(())
            });
        }
    }
}

/// Whether a file is one of a datastore's own, in which its structures lie.
pub(crate) fn is_system(path: &[u8]) -> bool {
    path.starts_with(b".") && path.ends_with(b".sf") && !path.contains(&b'/')
}

/// Whether something was recognised on a disk or volume.
fn is_opened(case: &Case, bytes: &Bytes) -> bool {
    case.items.iter().any(|item| {
        let inside = matches!(item.origin, Origin::Inside(_) | Origin::Volume { .. });
        let held = matches!(item.content(), Some(Content::Volumes(_) | Content::Tree(_)));
        inside && held && same_layer(&*item.bytes, &**bytes)
    })
}

/// The parts of a disk of `len` bytes that are in no partition, and whether the partition table may be there.
pub(crate) fn gaps(content: Option<&Content>, len: u64) -> Vec<(Range<u64>, bool)> {
    let Some(Content::Volumes(volumes)) = content else { return Vec::new() };
    let taken: RangeSet = volumes.iter().map(|volume| volume.range.clone()).collect();
    let mut parts = Vec::new();
    for gap in &taken.complement(len) {
        if gap.end - gap.start <= 2 * TABLE {
            parts.push((gap.clone(), true));
        } else {
            parts.push((gap.start..gap.start + TABLE, true));
            parts.push((gap.start + TABLE..gap.end - TABLE, false));
            parts.push((gap.end - TABLE..gap.end, true));
        }
    }
    parts
}

/// The disks and volumes of the case's own folders, with their paths, in the order of the tree.
fn own_files(case: &Case) -> Vec<(Vec<u8>, Entry)> {
    let mut found = Vec::new();
    let mut open = vec![(Vec::new(), case.root())];
    while let Some((folder, id)) = open.pop() {
        let mut folders = Vec::new();
        let _ = case.list(id, 0, &mut |entry| {
            // Nodes of stores have numbers from there on.
            if let Some(entry) = entry.ok().filter(|entry| entry.id.0 < NodeId::LIMIT) {
                let slash = if folder.is_empty() { &b""[..] } else { b"/" };
                let path = [folder.as_slice(), slash, &entry.name].concat();
                match entry.kind {
                    NodeKind::Dir => folders.push((path, entry.id)),
                    _ => found.push((path, entry)),
                }
            }
            ControlFlow::Continue(())
        });
        open.extend(folders.into_iter().rev());
    }
    // Of the names that a disk has, the one of the machine as it is now comes first.
    found.sort_by_key(|(path, _)| {
        let top = [&b"vms/"[..], b"disks/", b"files/"].iter().position(|top| path.starts_with(top));
        (top, path.split(|byte| *byte == b'/').count())
    });
    found
}
