//! What a person would ask for among what was found: machines and disks, each with all that is left of it.

use super::super::{Case, inner};
use super::{Found, ROOT};
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use vdrecover_formats::{Entry, Kind, NodeId, State, Tree};

/// Shorter files are descriptions of disks.
const SMALLEST: u64 = 1 << 20;
/// Suffixes of disks, with that of what they were called.
const SUFFIXES: [&[u8]; 3] = [b".raw", b"-flat.vmdk", b".vmdk"];

/// A folder that was a machine's, or a disk that lies in none.
#[derive(Clone, Debug)]
pub struct FoundMachine {
    /// Its folder's name, or its disk's.
    pub name: Vec<u8>,
    /// Its folder, or its disk, as a path in the case.
    pub path: Vec<u8>,
    /// Its evidence class: that of its folder of `found/`.
    pub state: State,
    /// Whether its configuration was found.
    pub has_config: bool,
    /// Its disks, put together where their descriptions were found.
    pub disks: Vec<FoundDisk>,
}

/// A disk of it.
#[derive(Clone, Debug)]
pub struct FoundDisk {
    /// Its file's name.
    pub name: Vec<u8>,
    /// Its node.
    pub id: NodeId,
}

/// All of them, in the order of the tree.
pub(super) fn all(case: &Case, found: &Found) -> Vec<FoundMachine> {
    let mut machines = Vec::new();
    let mut open: Vec<(NodeId, Vec<u8>, usize)> = vec![(ROOT, b"found".to_vec(), 0)];
    while let Some((dir, path, depth)) = open.pop() {
        let entries = entries(found, dir);
        let mut below = Vec::new();
        for entry in entries.iter().filter(|entry| entry.kind == Kind::Dir && !entry.name.ends_with(b".volumes")) {
            below.push((entry.id, join(&path, &entry.name), depth + 1));
        }
        open.extend(below.into_iter().rev());
        let Some(state) = state_of(&path) else { continue };
        let disks: Vec<FoundDisk> = disks(case, found, &entries);
        let has_config = entries.iter().any(|entry| entry.name.to_ascii_lowercase().ends_with(b".vmx"));
        if depth > 1 && (has_config || !disks.is_empty()) {
            let name = super::super::paths::last_part(&path).to_vec();
            machines.push(FoundMachine { name, path, state, has_config, disks });
        } else {
            // What lay at the top of a datastore is no machine's folder.
            machines.extend(disks.into_iter().map(|disk| FoundMachine {
                name: stem(&disk.name).to_vec(),
                path: join(&path, &disk.name),
                state,
                has_config: false,
                disks: vec![disk],
            }));
        }
    }
    machines
}

fn join(folder: &[u8], name: &[u8]) -> Vec<u8> {
    [folder, b"/", name].concat()
}

fn entries(found: &Found, dir: NodeId) -> Vec<Entry> {
    let mut entries = Vec::new();
    // Its own folders can always be listed.
    let _ = found.names.list(inner(dir), 0, &mut |entry| {
        entries.extend(entry.ok());
        ControlFlow::Continue(())
    });
    entries
}

/// The class that a path in `found/` is of.
fn state_of(path: &[u8]) -> Option<State> {
    let class = path.split(|byte| *byte == b'/').nth(1)?;
    super::CLASSES.into_iter().find(|state| state.word().as_bytes() == class)
}

/// The disks of a folder: those that were put together, and what has the name of a disk and is part of none.
fn disks(case: &Case, found: &Found, entries: &[Entry]) -> Vec<FoundDisk> {
    let mut disks: BTreeMap<&[u8], FoundDisk> = BTreeMap::new();
    for entry in entries.iter().filter(|entry| entry.kind == Kind::File) {
        let is_made = found.get(entry.id).is_none();
        let named = SUFFIXES[1..].iter().any(|suffix| entry.name.ends_with(suffix));
        let whole = (named || entry.state == State::Fragment) && found.parts.binary_search(&entry.id).is_err();
        let long = || case.node(entry.id).is_ok_and(|node| node.len >= SMALLEST);
        if is_made || whole && long() {
            disks.insert(&entry.name, FoundDisk { name: entry.name.clone(), id: entry.id });
        }
    }
    disks.into_values().collect()
}

/// What a disk is called, without what says only how it is kept.
fn stem(name: &[u8]) -> &[u8] {
    SUFFIXES.iter().find_map(|suffix| name.strip_suffix(*suffix)).unwrap_or(name)
}
