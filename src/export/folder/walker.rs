//! A tree as a sequence of jobs, each folder before what is in it.

use super::names::Used;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use std::collections::{HashMap, HashSet, VecDeque};
use std::ffi::OsString;
use std::ops::ControlFlow;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::sync::Arc;
use vdrecover_formats::{Entry, Finding, Kind, Node, NodeId, Tree};

/// Entries that are listed at once.
const BATCH: usize = 512;
/// Deepest folder, and longest path in bytes: what Windows allows, eight times what Linux does. Each line of
/// the manifest has the path, so that a hostile tree could fill the disk with them.
const MAX_DEPTH: usize = 1024;
const MAX_PATH: usize = 32 << 10;
/// Folders on the way down that are kept open.
const OPEN: usize = 64;
/// Files with several names that are remembered; those behind are written once for each name.
const LINKS: usize = 1 << 20;

/// One thing to do.
#[derive(Debug)]
pub(crate) struct Job {
    /// In the export, relative to its top, `/` between the parts.
    pub(crate) path: Vec<u8>,
    /// In the tree.
    pub(crate) original: Vec<u8>,
    pub(crate) entry: Entry,
    pub(crate) node: Option<Node>,
    pub(crate) what: What,
}

/// What to do.
#[derive(Debug)]
pub(crate) enum What {
    /// Write a file, a link, a stream, or nothing but a line, in this folder.
    Write { dir: Arc<OwnedFd>, name: OsString },
    /// Another name of a file that is there already, relative to the top.
    Link { dir: Arc<OwnedFd>, name: OsString, first: Vec<u8> },
    /// A folder was made.
    Enter,
    /// All that is in a folder is done: it gets its times.
    Leave(Arc<OwnedFd>),
    /// It can't be exported, and why.
    Fail(String),
    /// The tree reports something between entries.
    Note(Finding),
}

/// Walks the tree. Makes the folders itself: what is in them needs them.
#[derive(Debug)]
pub(crate) struct Walker<'a> {
    tree: &'a dyn Tree,
    fold: bool,
    streams: bool,
    frames: Vec<Frame>,
    path: Vec<u8>,
    original: Vec<u8>,
    ready: VecDeque<Job>,
    folders: HashSet<NodeId>,
    links: HashMap<NodeId, Vec<u8>>,
}

/// A folder that is being walked.
#[derive(Debug)]
struct Frame {
    entry: Entry,
    node: Option<Node>,
    dir: Option<Arc<OwnedFd>>,
    used: Used,
    batch: VecDeque<Result<Entry, Finding>>,
    next: u64,
    listed: bool,
    /// Lengths of both paths above it.
    above: (usize, usize),
}

impl<'a> Walker<'a> {
    /// The entries of `top`, into `dir`. `taken` are names that the top must leave alone.
    pub(crate) fn new(
        tree: &'a dyn Tree,
        top: NodeId,
        dir: Arc<OwnedFd>,
        fold: bool,
        streams: bool,
        taken: &[&str],
    ) -> Self {
        let mut used = Used::new(fold);
        for name in taken {
            used.take(name.as_bytes());
        }
        let state = vdrecover_formats::State::Live;
        let entry = Entry { name: Vec::new(), id: top, kind: Kind::Dir, state, next: 0 };
        let node = tree.node(top).ok();
        let frame =
            Frame { entry, node, dir: Some(dir), used, batch: VecDeque::new(), next: 0, listed: false, above: (0, 0) };
        Self {
            tree,
            fold,
            streams,
            frames: vec![frame],
            path: Vec::new(),
            original: Vec::new(),
            ready: VecDeque::new(),
            folders: HashSet::from([top]),
            links: HashMap::new(),
        }
    }

    /// Fills the batch of the innermost folder.
    fn list(&mut self) {
        let Some(frame) = self.frames.last_mut() else { return };
        let (batch, next) = (&mut frame.batch, &mut frame.next);
        let before = *next;
        let listed = self.tree.list(frame.entry.id, before, &mut |row| {
            if let Ok(entry) = &row {
                *next = entry.next;
            }
            batch.push_back(row);
            if batch.len() < BATCH { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        });
        // A folder that does not get on would be listed for ever.
        frame.listed = batch.len() < BATCH || *next == before;
        if let Err(error) = listed {
            frame.listed = true;
            let entry = frame.entry.clone();
            let job = self.job(entry, None, What::Fail(format!("its entries can't be listed: {error}")));
            self.ready.push_back(job);
        }
    }

    fn job(&self, entry: Entry, node: Option<Node>, what: What) -> Job {
        Job { path: self.path.clone(), original: self.original.clone(), entry, node, what }
    }

    /// Adds a part to both paths; gives their lengths before.
    fn descend(&mut self, name: &[u8], original: &[u8]) -> (usize, usize) {
        let above = (self.path.len(), self.original.len());
        for (path, part) in [(&mut self.path, name), (&mut self.original, original)] {
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend_from_slice(part);
        }
        above
    }

    fn ascend(&mut self, above: (usize, usize)) {
        self.path.truncate(above.0);
        self.original.truncate(above.1);
    }

    /// What one entry asks for.
    fn entry(&mut self, entry: Entry) {
        let Some(frame) = self.frames.last_mut() else { return };
        let dir = frame.dir.clone();
        let name = frame.used.take(&entry.name);
        let node = self.tree.node(entry.id);
        let above = self.descend(name.as_bytes(), &entry.name.clone());
        let Some(dir) = dir else {
            let job = self.job(entry, None, What::Fail("its folder in the export can't be opened again".into()));
            self.ready.push_back(job);
            return self.ascend(above);
        };
        match node {
            Err(error) => {
                let job = self.job(entry, None, What::Fail(error.to_string()));
                self.ready.push_back(job);
            }
            Ok(node) if node.kind == Kind::Dir => return self.enter(&dir, &name, entry, node, above),
            Ok(node) => {
                let (id, has_links) = (entry.id, node.links > 1 && node.kind == Kind::File);
                let first = self.links.get(&id).filter(|_| has_links).cloned();
                let seen = first.is_some();
                if has_links && !seen && self.links.len() < LINKS {
                    self.links.insert(id, self.path.clone());
                }
                let what = match first {
                    Some(first) => What::Link { dir: Arc::clone(&dir), name, first },
                    None => What::Write { dir: Arc::clone(&dir), name },
                };
                let job = self.job(entry.clone(), Some(node), what);
                self.ready.push_back(job);
                if self.streams && !seen {
                    self.attrs(&dir, &entry);
                }
            }
        }
        self.ascend(above);
    }

    /// Streams and attributes, under the name of their file, a colon and their own.
    fn attrs(&mut self, dir: &Arc<OwnedFd>, of: &Entry) {
        let (path, original) = (self.path.clone(), self.original.clone());
        for attr in self.tree.attrs(of.id) {
            let full = [&of.name[..], b":", &attr.name].concat();
            let Some(frame) = self.frames.last_mut() else { return };
            let name = frame.used.take(&full);
            let cut = path.iter().rposition(|byte| *byte == b'/').map_or(0, |slash| slash + 1);
            self.path = [&path[..cut], name.as_bytes()].concat();
            self.original = [&original[..], b":", &attr.name].concat();
            let node = self.tree.node(attr.id).ok();
            let job = self.job(attr, node, What::Write { dir: Arc::clone(dir), name });
            self.ready.push_back(job);
        }
        (self.path, self.original) = (path, original);
    }

    fn enter(&mut self, dir: &OwnedFd, name: &OsString, entry: Entry, node: Node, above: (usize, usize)) {
        let why = if self.folders.contains(&entry.id) {
            Some("the folder is in this tree more than once; it was exported where it came first".to_string())
        } else if self.frames.len() >= MAX_DEPTH || self.original.len().max(self.path.len()) > MAX_PATH {
            Some(format!("more than {MAX_DEPTH} folders in each other, or a path of more than {MAX_PATH} bytes"))
        } else {
            None
        };
        let made = match why {
            Some(why) => Err(why),
            None => make_dir(dir, name).map_err(|error| format!("the folder can't be made: {error}")),
        };
        match made {
            Err(why) => {
                let job = self.job(entry, Some(node), What::Fail(why));
                self.ready.push_back(job);
                self.ascend(above);
            }
            Ok(dir) => {
                self.folders.insert(entry.id);
                let job = self.job(entry.clone(), Some(node.clone()), What::Enter);
                self.ready.push_back(job);
                if let Some(far) = self.frames.len().checked_sub(OPEN).and_then(|far| self.frames.get_mut(far)) {
                    far.dir = None;
                }
                let (dir, used) = (Some(Arc::new(dir)), Used::new(self.fold));
                let batch = VecDeque::new();
                let node = Some(node);
                self.frames.push(Frame { entry, node, dir, used, batch, next: 0, listed: false, above });
            }
        }
    }

    fn leave(&mut self) {
        let Some(frame) = self.frames.pop() else { return };
        if let Some(dir) = frame.dir {
            if let Some(parent) = self.frames.last_mut().filter(|parent| parent.dir.is_none()) {
                // It was closed on the way down; the kernel knows where it is, whatever its path is now.
                parent.dir = open_dir(&dir, "..").ok().map(Arc::new);
            }
            let job = self.job(frame.entry, frame.node, What::Leave(dir));
            self.ready.push_back(job);
        }
        self.ascend(frame.above);
    }
}

impl Iterator for Walker<'_> {
    type Item = Job;

    fn next(&mut self) -> Option<Job> {
        loop {
            if let Some(job) = self.ready.pop_front() {
                return Some(job);
            }
            let frame = self.frames.last_mut()?;
            match frame.batch.pop_front() {
                Some(Ok(entry)) => self.entry(entry),
                Some(Err(finding)) => {
                    let entry = frame.entry.clone();
                    return Some(self.job(entry, None, What::Note(finding)));
                }
                None if frame.listed => self.leave(),
                None => self.list(),
            }
        }
    }
}

fn make_dir(dir: &OwnedFd, name: &OsString) -> Result<OwnedFd, Errno> {
    match rustix::fs::mkdirat(dir, name, Mode::from_raw_mode(0o777)) {
        Ok(()) | Err(Errno::EXIST) => open_dir(dir, name),
        Err(error) => Err(error),
    }
}

/// Never through a link: an image has links as well.
fn open_dir(dir: &OwnedFd, name: impl rustix::path::Arg) -> Result<OwnedFd, Errno> {
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::RDONLY | OFlags::CLOEXEC;
    rustix::fs::openat(dir, name, flags, Mode::empty())
}
