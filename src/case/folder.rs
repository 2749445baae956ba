//! A folder of the host, as a tree like any other: what lies beside an image is found as in a datastore.

use super::sources::Sources;
use std::fs;
use std::io;
use std::ops::ControlFlow;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use vdrecover_formats::tree::Lister;
use vdrecover_formats::{Bytes, Entry, Error, Kind, Node, NodeId, State, Tree};

/// Entries of a folder that are looked at: no evidence folder has more.
const MAX_ENTRIES: usize = 1_000_000;
/// Folders in folders.
const MAX_DEPTH: usize = 32;

/// A folder of the host. Symbolic links and special files are left out: a name must not lead elsewhere.
#[derive(Debug)]
pub(super) struct Folder {
    nodes: Vec<HostNode>,
    sources: Arc<Sources>,
}

#[derive(Debug)]
struct HostNode {
    path: PathBuf,
    meta: fs::Metadata,
    /// Sorted by name.
    children: Vec<(Vec<u8>, usize)>,
}

impl Folder {
    /// Reads the names in `path`, and with `deep` those in the folders below.
    pub(super) fn open(path: &Path, deep: bool, sources: Arc<Sources>) -> io::Result<Self> {
        // Absolute: a mount in the background leaves the folder that it was started in.
        let path = &path.canonicalize()?;
        let meta = fs::metadata(path)?;
        let mut nodes = vec![HostNode { path: path.to_owned(), meta, children: Vec::new() }];
        let mut todo = vec![(0, 0)];
        while let Some((dir, depth)) = todo.pop() {
            let mut found = Vec::new();
            let entries = match fs::read_dir(&nodes[dir].path) {
                Ok(entries) => entries,
                Err(error) if dir == 0 => return Err(error),
                Err(_) => continue,
            };
            for entry in entries.flatten().take(MAX_ENTRIES.saturating_sub(nodes.len())) {
                if let Ok(meta) = entry.metadata()
                    && (meta.is_file() || meta.is_dir())
                {
                    found.push((entry.file_name().as_bytes().to_vec(), entry.path(), meta));
                }
            }
            found.sort_by(|a, b| a.0.cmp(&b.0));
            for (name, path, meta) in found {
                let id = nodes.len();
                if meta.is_dir() && deep && depth < MAX_DEPTH {
                    todo.push((id, depth + 1));
                }
                nodes.push(HostNode { path, meta, children: Vec::new() });
                nodes[dir].children.push((name, id));
            }
        }
        Ok(Self { nodes, sources })
    }

    fn get(&self, id: NodeId) -> Result<&HostNode, Error> {
        usize::try_from(id.0).ok().and_then(|id| self.nodes.get(id)).ok_or(Error::NotFound)
    }

    fn entry(&self, name: &[u8], id: usize, next: usize) -> Entry {
        let kind = if self.nodes[id].meta.is_dir() { Kind::Dir } else { Kind::File };
        Entry { name: name.to_vec(), id: NodeId(id as u64), kind, state: State::Live, next: next as u64 }
    }
}

impl Tree for Folder {
    fn root(&self) -> NodeId {
        NodeId(0)
    }

    fn node(&self, id: NodeId) -> Result<Node, Error> {
        let meta = &self.get(id)?.meta;
        let kind = if meta.is_dir() { Kind::Dir } else { Kind::File };
        let time = |seconds: i64, nanos: i64| Some(i128::from(seconds) * 1_000_000_000 + i128::from(nanos));
        Ok(Node {
            links: u32::try_from(meta.nlink()).unwrap_or(u32::MAX),
            uid: meta.uid(),
            gid: meta.gid(),
            modified: time(meta.mtime(), meta.mtime_nsec()),
            accessed: time(meta.atime(), meta.atime_nsec()),
            changed: time(meta.ctime(), meta.ctime_nsec()),
            ..Node::plain(kind, meta.len(), meta.mode() & 0o7777)
        })
    }

    fn list(&self, dir: NodeId, from: u64, sink: Lister<'_>) -> Result<(), Error> {
        let node = self.get(dir)?;
        if !node.meta.is_dir() {
            return Err(Error::NotFolder);
        }
        let skip = usize::try_from(from).unwrap_or(usize::MAX);
        for (at, (name, id)) in node.children.iter().enumerate().skip(skip) {
            if sink(Ok(self.entry(name, *id, at + 1))) == ControlFlow::Break(()) {
                break;
            }
        }
        Ok(())
    }

    fn lookup(&self, dir: NodeId, name: &[u8]) -> Result<Option<Entry>, Error> {
        let children = &self.get(dir)?.children;
        let found = children.binary_search_by(|child| child.0.as_slice().cmp(name));
        Ok(found.ok().map(|at| self.entry(name, children[at].1, at + 1)))
    }

    fn open(&self, id: NodeId) -> Result<Bytes, Error> {
        let node = self.get(id)?;
        if node.meta.is_dir() {
            return Err(Error::NotFile);
        }
        // It is a part of another file's image, and no image itself.
        if crate::source::split::is_spoken_for(&node.path) {
            return Err(Error::NotFile);
        }
        let source = self.sources.open(&node.path);
        source.map(|source| source.bytes.clone()).map_err(|error| Error::unsupported(format!("{error:#}")))
    }
}
