//! A case whose disks are to be written as images, with a domain file for each machine.

use super::ImageKind;
use super::domain::{Domain, DomainDisk};
use super::folder::safe_name;
use crate::case::{Case, Machine};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use vdrecover_formats::adapt::Memory;
use vdrecover_formats::note::Sink;
use vdrecover_formats::tree::Lister;
use vdrecover_formats::{Bytes, Entry, Error, Find, Kind, Node, NodeId, State, Tree};

/// Where a folder's own entries end and the files begin that this adds: no format has so many.
const ADDED: u64 = 1 << 63;
/// Suffix of a disk in a case.
const RAW: &[u8] = b".raw";

/// A part of a case, with other names for disks and with further files.
#[derive(Debug)]
pub struct Images<'a> {
    tree: &'a dyn Tree,
    suffix: Vec<u8>,
    disks: Arc<BTreeSet<NodeId>>,
    /// By the folder that they are in.
    added: BTreeMap<NodeId, (Vec<u8>, usize)>,
    files: Vec<Bytes>,
}

impl<'a> Images<'a> {
    /// `tree` is what of `case` is written; its root, or the folder `top` of it, becomes the folder `dest`.
    #[must_use]
    pub fn new(case: &Case, tree: &'a dyn Tree, kind: ImageKind, top: &[u8], dest: &Path) -> Self {
        let mut disks = BTreeSet::new();
        for folder in [&b"vms"[..], b"disks"] {
            if let Ok(Some(entry)) = case.find(folder) {
                collect(case, entry.id, &mut disks);
            }
        }
        let suffix = format!(".{}", kind.suffix()).into_bytes();
        let (disks, added, files) = (Arc::new(disks), BTreeMap::new(), Vec::new());
        let mut images = Self { tree, suffix, disks, added, files };
        for machine in &case.machines {
            let path = [b"vms/", &machine.name[..]].concat();
            let (Some(below), Ok(Some(folder))) = (below(&path, top), case.find(&path)) else { continue };
            let parts = below.split(|byte| *byte == b'/').filter(|part| !part.is_empty());
            let home = parts.fold(dest.to_path_buf(), |dir, part| dir.join(safe_name(part)));
            let home = std::path::absolute(&home).unwrap_or(home);
            let text = images.domain(case, machine, &path, &home, kind);
            images.added.insert(folder.id, ([&machine.name[..], b".xml"].concat(), images.files.len()));
            images.files.push(Arc::new(Memory::new(text.into_bytes())));
        }
        images
    }

    /// The nodes that are disks.
    #[must_use]
    pub fn disks(&self) -> Arc<BTreeSet<NodeId>> {
        Arc::clone(&self.disks)
    }

    /// The name of an entry, as it is written.
    fn name(&self, entry: &Entry) -> Vec<u8> {
        match entry.name.strip_suffix(RAW).filter(|_| self.disks.contains(&entry.id)) {
            Some(stem) => [stem, &self.suffix].concat(),
            None => entry.name.clone(),
        }
    }

    fn domain(&self, case: &Case, machine: &Machine, path: &[u8], home: &Path, kind: ImageKind) -> String {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let disks = machine.disks.iter().map(|disk| {
            let found = case.find(&[path, b"/", &disk.name[..], RAW].concat()).ok().flatten();
            let found = found.filter(|entry| self.disks.contains(&entry.id));
            let path = found.map(|entry| home.join(safe_name(&self.name(&entry))).to_string_lossy().into_owned());
            DomainDisk { name: text(&disk.file), path, format: kind.suffix() }
        });
        let guest = machine.guest.as_deref().map(text).unwrap_or_default();
        let domain =
            Domain { name: &text(&machine.name), guest: &guest, hardware: &machine.hardware, disks: disks.collect() };
        domain.xml()
    }

    fn added(&self, id: NodeId) -> Option<&Bytes> {
        usize::try_from(u64::MAX - id.0).ok().and_then(|number| self.files.get(number))
    }

    fn extra(&self, dir: NodeId) -> Option<Entry> {
        let (name, number) = self.added.get(&dir)?;
        let id = NodeId(u64::MAX - *number as u64);
        Some(Entry { name: name.clone(), id, kind: Kind::File, state: State::Live, next: ADDED })
    }
}

/// What of `path` is below `top`. `None` if it is elsewhere.
fn below<'p>(path: &'p [u8], top: &[u8]) -> Option<&'p [u8]> {
    let rest = path.strip_prefix(top)?;
    (top.is_empty() || rest.is_empty() || rest.starts_with(b"/")).then_some(rest)
}

/// The disks in a folder of the case and below.
fn collect(case: &Case, top: NodeId, disks: &mut BTreeSet<NodeId>) {
    let mut folders = vec![top];
    while let Some(folder) = folders.pop() {
        // The folders of a case are in memory: they list whole.
        let _ = case.list(folder, 0, &mut |row| {
            match row {
                Ok(entry) if case.target(entry.id).is_some() => drop(disks.insert(entry.id)),
                // A folder of the case's own; those of stores hold no disks of it.
                Ok(entry) if entry.kind == Kind::Dir && entry.id.0 < NodeId::LIMIT => folders.push(entry.id),
                _ => {}
            }
            ControlFlow::Continue(())
        });
    }
}

impl Tree for Images<'_> {
    fn root(&self) -> NodeId {
        self.tree.root()
    }

    fn node(&self, id: NodeId) -> Result<Node, Error> {
        match self.added(id) {
            Some(bytes) => Ok(Node::plain(Kind::File, bytes.len(), 0o644)),
            None => self.tree.node(id),
        }
    }

    fn list(&self, dir: NodeId, from: u64, sink: Lister<'_>) -> Result<(), Error> {
        if from >= ADDED {
            return Ok(());
        }
        let mut ended = false;
        self.tree.list(dir, from, &mut |row| {
            let flow = sink(row.map(|entry| Entry { name: self.name(&entry), ..entry }));
            ended = flow.is_break();
            flow
        })?;
        if let Some(entry) = self.extra(dir).filter(|_| !ended) {
            let _ = sink(Ok(entry));
        }
        Ok(())
    }

    fn lookup(&self, dir: NodeId, name: &[u8]) -> Result<Option<Entry>, Error> {
        if let Some(stem) = name.strip_suffix(&self.suffix[..]) {
            let disk = self.tree.lookup(dir, &[stem, RAW].concat())?.filter(|entry| self.disks.contains(&entry.id));
            if let Some(entry) = disk {
                return Ok(Some(Entry { name: name.to_vec(), ..entry }));
            }
        }
        match self.tree.lookup(dir, name)? {
            Some(entry) => Ok(Some(entry)),
            None => Ok(self.extra(dir).filter(|entry| entry.name == name)),
        }
    }

    fn attrs(&self, id: NodeId) -> Vec<Entry> {
        if self.added(id).is_some() { Vec::new() } else { self.tree.attrs(id) }
    }

    fn open(&self, id: NodeId) -> Result<Bytes, Error> {
        match self.added(id) {
            Some(bytes) => Ok(Arc::clone(bytes)),
            None => self.tree.open(id),
        }
    }

    fn found(&self, id: NodeId) -> Option<Find> {
        self.tree.found(id)
    }

    fn parts(&self) -> u32 {
        self.tree.parts()
    }

    fn audit(&self, part: u32, sink: Sink<'_>) -> ControlFlow<()> {
        self.tree.audit(part, sink)
    }
}
