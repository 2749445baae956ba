//! What the disks were called that were put together, and what stands behind each.

use super::MOST_FINDS;
use super::assembly::Found;
use super::candidate::Candidate;
use crate::guest::{self, Classes};
use crate::layer::Trust;
use crate::num::narrow;
use crate::read::read_vec;
use crate::tree::{Kind, Named, NodeId, State, Tree as _};
use crate::vmfs::descriptor::{Descriptor, Shape};
use crate::vmfs::pieces::{Assembled, Source};
use crate::vmfs::tree::Datastore;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::ops::ControlFlow;
use std::sync::Arc;

/// Folders that are asked for a name.
const MOST_ASKED: usize = 1 << 14;
/// A disk can be so much longer than what its MBR divides.
const TAIL: u64 = 64 << 20;
/// No description of a disk is longer.
const TEXT: u64 = 64 << 10;
/// Entries of living folders that are looked through for descriptions of disks that are gone.
const MOST_ENTRIES: u32 = 1 << 18;

/// The name and length of a disk, from its description.
pub(super) struct Hint {
    pub(super) name: Vec<u8>,
    pub(super) len: u64,
    pub(super) parent: Option<NodeId>,
}

/// How many descriptors there are of files that were deleted and had pointer blocks, as only disks do. There may have
/// been more: descriptors are used again.
pub(super) fn deleted(store: &Datastore) -> usize {
    let mut count: usize = 0;
    let _ = store.tell_finds(&mut |find| {
        let fd = store.fact(find.entry.id).map(|(fd, _)| fd);
        let of_disk = |fd: &Descriptor| matches!(fd.shape, Shape::Mapped { levels: 1.., .. });
        if find.entry.kind == Kind::File && find.entry.state != State::Orphaned && fd.is_ok_and(|fd| of_disk(&fd)) {
            count = count.saturating_add(1);
        }
        ControlFlow::Continue(())
    });
    count
}

/// The disks that descriptions name and that are gone.
pub(super) fn hints(store: &Datastore) -> (Vec<Hint>, Option<NodeId>) {
    let mut hints: Vec<Hint> = Vec::new();
    let mut asked: BTreeSet<(Option<NodeId>, Vec<u8>, u64)> = BTreeSet::new();
    let mut known: BTreeSet<(Vec<u8>, u64)> = BTreeSet::new();
    let mut add = |text: &[u8], parent: Option<NodeId>, gone: &dyn Fn(&[u8]) -> bool| {
        if hints.len() >= MOST_FINDS || asked.len() >= MOST_ASKED {
            return;
        }
        for (name, len) in extents(text) {
            let is_known = known.contains(&(name.clone(), len)) || !asked.insert((parent, name.clone(), len));
            if !is_known && gone(&name) {
                known.insert((name.clone(), len));
                hints.push(Hint { name, len, parent });
            }
        }
    };
    let text_of = |id: NodeId| {
        let bytes = store.open(id).ok()?;
        let len = bytes.len();
        (1..=TEXT).contains(&len).then(|| read_vec(&*bytes, 0, narrow(len)).0)
    };
    let mut left = MOST_ENTRIES;
    let mut open = vec![store.root()];
    let mut seen: BTreeSet<NodeId> = open.iter().copied().collect();
    while let Some(dir) = open.pop() {
        let mut texts = Vec::new();
        let _ = store.list(dir, 0, &mut |entry| {
            let Some(rest) = left.checked_sub(1) else { return ControlFlow::Break(()) };
            left = rest;
            let Ok(entry) = entry else { return ControlFlow::Continue(()) };
            if entry.kind == Kind::Dir && seen.insert(entry.id) {
                open.push(entry.id);
            } else if entry.kind == Kind::File && entry.name.ends_with(b".vmdk") {
                texts.push(entry.id);
            }
            ControlFlow::Continue(())
        });
        for id in texts {
            if let Some(text) = text_of(id) {
                add(&text, Some(dir), &|name| matches!(store.lookup(dir, name), Ok(None)));
            }
        }
    }
    let mut parents = BTreeSet::new();
    let _ = store.tell_finds(&mut |find| {
        if find.entry.kind == Kind::File {
            let node = store.node(find.entry.id);
            match node.map(|node| node.len) {
                // Its pointers and length are wiped: what `ESXi` deleted.
                Ok(0) if find.entry.state == State::Deleted => parents.extend(find.parent),
                Ok(1..=TEXT) => {
                    if let Some(text) = text_of(find.entry.id) {
                        add(&text, find.parent, &|_| true);
                    }
                }
                _ => {}
            }
        }
        ControlFlow::Continue(())
    });
    let sub = 1_u64.checked_shl(store.volume.space.header.sub_shift).unwrap_or(0).min(TEXT);
    for at in &store.fragments().texts {
        add(&read_vec(store.volume.lv(), *at, narrow(sub)).0, None, &|_| true);
    }
    // All that was deleted was in one folder, so that these were too.
    let parent = parents.first().copied().filter(|_| parents.len() == 1);
    (hints, parent)
}

/// The flat extents that the description of a disk names: file and bytes.
pub(super) fn extents(text: &[u8]) -> Vec<(Vec<u8>, u64)> {
    let text = text.split(|byte| *byte == 0).next().unwrap_or_default();
    let line = |line: &[u8]| {
        let line = std::str::from_utf8(line).ok()?;
        let mut quoted = line.split('"');
        let mut words = quoted.next()?.split_ascii_whitespace();
        let (access, sectors, kind) = (words.next()?, words.next()?, words.next()?);
        let len = sectors.parse::<u64>().ok()?.checked_mul(guest::SECTOR)?;
        let name = quoted.next()?;
        let plain = !name.is_empty() && !name.contains('/');
        (matches!(access, "RW" | "RDONLY") && kind == "VMFS" && plain).then(|| (name.as_bytes().to_vec(), len))
    };
    text.split(|byte| *byte == b'\n').take(4096).filter_map(line).collect()
}

/// Names the candidates and says what stands behind each.
pub(super) fn name(store: &Datastore, candidates: &[Candidate], classes: &Classes) -> Vec<Found> {
    let (hints, deleted_in) = hints(store);
    let fits = |candidate: &Candidate, hint: &Hint| match candidate.len {
        _ if !candidate.of.sort.is_disk() => false,
        Some(len) => hint.len == len,
        None => hint.len.checked_sub(candidate.least).is_some_and(|rest| rest <= TAIL),
    };
    let mut used: BTreeMap<Vec<u8>, usize> = BTreeMap::new();
    let mut finds = Vec::new();
    for candidate in candidates {
        let fitting: Vec<&Hint> = hints.iter().filter(|hint| fits(candidate, hint)).collect();
        let hint = match fitting.as_slice() {
            // As many disks would fit the description: it names none.
            [hint] if candidates.iter().filter(|other| fits(other, hint)).count() == 1 => Some(*hint),
            _ => None,
        };
        let (mut name, named) = match hint {
            Some(hint) => (hint.name.clone(), Named::Descriptor),
            None if candidate.of.sort.is_disk() => (format!("disk_{}", candidate.of).into_bytes(), Named::Place),
            None => {
                let label = if candidate.label.is_empty() { b"volume".to_vec() } else { candidate.label.clone() };
                // A label is any bytes: it must not make a path.
                let label = label.iter().map(|byte| if matches!(byte, b'/' | 0) { b'_' } else { *byte });
                let end = format!("_{}_{}", candidate.of.sort.word(), candidate.of);
                (label.chain(end.into_bytes()).collect(), Named::Place)
            }
        };
        let count = used.entry(name.clone()).or_default();
        *count = count.saturating_add(1);
        if *count > 1 {
            name.extend(format!("_{count}").into_bytes());
        }
        let len = hint.map_or(candidate.len.unwrap_or(candidate.least), |hint| hint.len.max(candidate.least));
        let shared = candidate.pieces.iter().any(|piece| piece.trust == Trust::Doubtful);
        let trust = if shared { Trust::Doubtful } else { Trust::Inferred };
        let why = why(candidate, hint, classes);
        let parent = hint.map_or(deleted_in, |hint| hint.parent.or(deleted_in));
        let layer = Assembled::new(Arc::clone(&store.volume.space.lv), len, candidate.pieces.clone(), 0);
        finds.push(Found { name, named, parent, why, trust, state: State::Fragment, layer: Arc::new(layer) });
    }
    finds
}

pub(super) fn why(candidate: &Candidate, hint: Option<&Hint>, classes: &Classes) -> String {
    let (mut free, mut filled, mut taken, mut holes) = (0_u64, 0_u64, 0_u64, 0_u64);
    for piece in &candidate.pieces {
        match piece.source {
            Source::Volume(at) => {
                free = free.saturating_add(piece.len);
                filled = filled.saturating_add(classes.filled(at, piece.len));
            }
            Source::Taken(_) => taken = taken.saturating_add(piece.len),
            Source::Hole(_) => holes = holes.saturating_add(piece.len),
        }
    }
    let sorts: Vec<&str> = candidate.sorts.iter().map(|sort| sort.word()).collect();
    let mut text = format!("{} structures of {} say where their blocks belong", candidate.anchors, sorts.join(", "));
    if !candidate.leaves.is_empty() {
        let _ = write!(text, "; {} free pointer blocks name its blocks", candidate.leaves.len());
    }
    let _ = write!(text, "; {free} bytes are there");
    let zero = free.saturating_sub(filled);
    if zero > 0 {
        let _ = write!(text, ", of which {zero} read zero: unmapped or never written");
    }
    if holes > 0 {
        let _ = write!(text, "; {holes} were never written");
    }
    if taken > 0 {
        let _ = write!(text, "; {taken} are overwritten");
    }
    if candidate.clone {
        text.push_str("; other blocks claim the same places, so that it is one stretch of one of several copies");
    }
    if candidate.loose {
        text.push_str("; more disks were deleted than are told apart, so that a part may be of a copy");
    }
    if let Some(hint) = hint {
        let _ = write!(text, "; the description of a disk that is gone gives name and length, {} bytes", hint.len);
    }
    text
}
