//! Images of the corpus in memory, and short ways to use them.
#![allow(
    dead_code,
    unreachable_pub,
    missing_docs,
    clippy::needless_pass_by_value,
    reason = "every test file uses a part, and hands over what it made"
)]

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::fs;
use std::ops::{ControlFlow, Range};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use vdrecover_formats::{
    Bytes, Content, Entry, Fault, Finding, Kind, Layer, NodeId, Note, Opened, Place, Pool, Run, Tree, Trust, Use,
    read_vec, vmfs,
};
use vdrecover_testdata::Device;

pub const MIB: u64 = 1 << 20;
pub const GIB: u64 = 1 << 30;
pub const CHUNK: usize = 64 << 10;

/// An image of which only the chunks that are not zero are in memory.
#[derive(Clone)]
pub struct Sparse {
    pub chunks: BTreeMap<u64, Arc<[u8]>>,
    pub len: u64,
}

impl fmt::Debug for Sparse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Sparse({} bytes)", self.len)
    }
}

impl Sparse {
    pub fn empty(len: u64) -> Self {
        Self { chunks: BTreeMap::new(), len }
    }

    pub fn write(&mut self, at: u64, bytes: &[u8]) {
        let mut bytes = bytes;
        let mut at = at;
        while !bytes.is_empty() {
            let skip = at as usize % CHUNK;
            let len = (CHUNK - skip).min(bytes.len());
            let chunk = self.chunks.entry(at / CHUNK as u64).or_insert_with(|| vec![0; CHUNK].into());
            Arc::make_mut(chunk)[skip..skip + len].copy_from_slice(&bytes[..len]);
            at += len as u64;
            bytes = &bytes[len..];
        }
    }
}

impl Layer for Sparse {
    fn len(&self) -> u64 {
        self.len
    }

    fn run(&self, _: u64, want: u64) -> Run<'_> {
        Run::sound(want, Place::Own)
    }

    fn fetch(&self, at: u64, buf: &mut [u8]) -> Result<Trust, Fault> {
        let mut done = 0;
        while done < buf.len() {
            let at = at + done as u64;
            let skip = at as usize % CHUNK;
            let len = (CHUNK - skip).min(buf.len() - done);
            let out = &mut buf[done..done + len];
            match self.chunks.get(&(at / CHUNK as u64)) {
                Some(chunk) => out.copy_from_slice(&chunk[skip..skip + len]),
                None => out.fill(0),
            }
            done += len;
        }
        Ok(Trust::Sound)
    }
}

/// A generated device.
pub struct Disk(pub Device);

impl fmt::Debug for Disk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Layer for Disk {
    fn len(&self) -> u64 {
        self.0.len()
    }

    fn run(&self, _: u64, want: u64) -> Run<'_> {
        Run::sound(want, Place::Own)
    }

    fn fetch(&self, at: u64, buf: &mut [u8]) -> Result<Trust, Fault> {
        buf.copy_from_slice(&self.0.read(at, buf.len()));
        Ok(Trust::Sound)
    }
}

/// The folder of the corpus; without it, says that the test is skipped.
pub fn folder() -> Option<PathBuf> {
    let folder = std::env::var_os("VDRECOVER_CORPUS").map(|folder| PathBuf::from(folder).join("vmfs"));
    if folder.is_none() {
        // Past the harness, which keeps what a passing test prints to itself.
        let _ =
            std::io::Write::write_all(&mut std::io::stderr(), b"SKIPPED vmfs corpus: VDRECOVER_CORPUS is not set\n");
    }
    folder
}

pub fn unpack(packed: &[u8]) -> Vec<u8> {
    let len = u32::from_le_bytes(packed[packed.len() - 4..].try_into().unwrap());
    let mut bytes = vec![0; len as usize];
    libdeflater::Decompressor::new().gzip_decompress(packed, &mut bytes).unwrap();
    bytes
}

/// An image of the corpus. Unpacked once and one at a time: each has 2 GiB.
pub fn image(name: &str) -> Option<Arc<Sparse>> {
    static IMAGES: OnceLock<Mutex<HashMap<String, Arc<Sparse>>>> = OnceLock::new();
    let folder = folder()?;
    let mut images = IMAGES.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(image) = images.get(name) {
        return Some(image.clone());
    }
    let bytes = unpack(&fs::read(folder.join(format!("{name}.bin.gz"))).unwrap());
    let zero = vec![0; CHUNK];
    let mut image = Sparse::empty(bytes.len() as u64);
    for (i, chunk) in (0..).zip(bytes.chunks(CHUNK)) {
        if chunk != &zero[..chunk.len()] {
            let mut whole = chunk.to_vec();
            whole.resize(CHUNK, 0);
            image.chunks.insert(i, whole.into());
        }
    }
    let image = Arc::new(image);
    images.insert(name.to_string(), image.clone());
    Some(image)
}

pub fn open(bytes: Bytes) -> Opened {
    (vmfs::FORMAT.open)(&bytes, &Pool::new(32 << 20).share()).unwrap()
}

pub fn tree(content: Content) -> Arc<dyn Tree> {
    let Content::Tree(tree) = content else { panic!("{content:?}") };
    tree
}

pub fn datastore(name: &str) -> Option<Arc<dyn Tree>> {
    Some(tree(open(image(name)?).join_alone().unwrap()))
}

/// Lists a folder in which nothing is wrong.
pub fn list(tree: &dyn Tree, dir: NodeId) -> Vec<Entry> {
    let mut entries = Vec::new();
    tree.list(dir, 0, &mut |entry| {
        entries.push(entry.unwrap());
        ControlFlow::Continue(())
    })
    .unwrap();
    entries
}

pub fn find(tree: &dyn Tree, path: &str) -> NodeId {
    path.split('/').fold(tree.root(), |dir, name| {
        tree.lookup(dir, name.as_bytes()).unwrap().unwrap_or_else(|| panic!("{path} is not there")).id
    })
}

/// All nodes below the root, with their paths.
pub fn all(tree: &dyn Tree) -> Vec<(String, Entry)> {
    let mut found = Vec::new();
    let mut open = vec![(String::new(), tree.root())];
    while let Some((path, dir)) = open.pop() {
        for entry in list(tree, dir) {
            let path = format!("{path}/{}", String::from_utf8_lossy(&entry.name));
            if entry.kind == Kind::Dir {
                open.push((path.clone(), entry.id));
            }
            found.push((path, entry));
        }
    }
    found
}

#[derive(Default)]
pub struct Audit {
    pub findings: Vec<Finding>,
    pub finds: Vec<Entry>,
    pub claims: Vec<(Range<u64>, Use)>,
    pub free: Vec<Range<u64>>,
}

/// All parts of an audit; of the claims, those in the volume and not those on the device of `image`.
pub fn audit(tree: &dyn Tree, image: &Sparse) -> Audit {
    let mut audit = Audit::default();
    for part in 0..tree.parts() {
        let flow = tree.audit(part, &mut |note| {
            match note {
                Note::Claim { layer, .. } if layer.len() == image.len => {}
                Note::Claim { range, of, .. } => audit.claims.push((range, of)),
                Note::Free { range, .. } => audit.free.push(range),
                Note::Taken { .. } => {}
                Note::Finding(finding) => audit.findings.push(finding),
            }
            ControlFlow::Continue(())
        });
        assert!(flow.is_continue());
    }
    audit.finds = finds(tree);
    audit
}

/// What no folder lists.
pub fn finds(tree: &dyn Tree) -> Vec<Entry> {
    let mut found = Vec::new();
    tree.finds(&mut |find| {
        found.push(find.entry);
        ControlFlow::Continue(())
    });
    found
}

/// What a reader sees of a file.
#[derive(Clone, Debug, PartialEq)]
pub struct Seen {
    pub facts: String,
    /// Bytes at some places; `None` is a gap.
    pub bytes: Vec<Option<Vec<u8>>>,
    pub trust: Trust,
}

/// Places that are compared: the first blocks of the small files, and the written places of the thin ones.
pub const PLACES: [u64; 5] = [0, 1 << 20, 5 << 20, 42 << 30, 117 << 30];

/// All names of a tree, and what is seen of each.
pub fn look(tree: &dyn Tree) -> BTreeMap<String, Seen> {
    let mut seen = BTreeMap::new();
    let mut open = vec![(String::new(), tree.root())];
    let mut known = BTreeSet::from([tree.root()]);
    while let Some((path, dir)) = open.pop() {
        let _ = tree.list(dir, 0, &mut |entry| {
            let Ok(entry) = entry else { return ControlFlow::Continue(()) };
            let path = format!("{path}/{}", String::from_utf8_lossy(&entry.name));
            let Ok(node) = tree.node(entry.id) else { return ControlFlow::Continue(()) };
            let mut own = Seen { facts: format!("{:?} {node:?}", entry.kind), bytes: Vec::new(), trust: node.trust };
            // What lies in the system files are the structures themselves.
            let system = entry.name.starts_with(b".");
            if let (false, Ok(layer)) = (system, tree.open(entry.id)) {
                for at in PLACES.into_iter().filter(|at| *at < layer.len()) {
                    let (bytes, read) = read_vec(&*layer, at, (layer.len() - at).min(4096) as usize);
                    own.trust = own.trust.max(read.trust);
                    own.bytes.push(read.is_whole().then_some(bytes));
                }
            }
            if entry.kind == Kind::Dir && known.insert(entry.id) {
                open.push((path.clone(), entry.id));
            }
            seen.insert(path, own);
            if seen.len() < 2000 { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        });
    }
    seen
}

/// Whether the audit or the check says that something is wrong.
pub fn is_told(tree: &dyn Tree) -> bool {
    let mut told = false;
    for part in 0..tree.parts() {
        let _ = tree.audit(part, &mut |note| {
            told |= matches!(note, Note::Finding(_));
            if told { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
    }
    // A dearer look, for which the first may do.
    if !told {
        tree.check(&mut |finding| told |= finding.trust > Trust::Sound);
    }
    told
}
