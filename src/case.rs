//! The case: everything that was given, opened as far as it goes, as one tree of names.
//!
//! The case probes every source, lets the formats say which other images they want, matches those wants to what
//! is at hand, joins from the bottom up, and opens what comes out again: a disk in a datastore in a partition in
//! a QCOW2 is nothing special. It never follows a name that an image gives as a path: a name is looked up among
//! what was given, and beside the image, by its last part.

mod compared;
mod discover;
mod folder;
mod found;
mod hashes;
mod item;
mod keep;
mod machines;
mod names;
mod packed;
mod paths;
mod pick;
mod search;
mod sources;
mod wants;

pub use compared::Compared;
pub use found::{Found, FoundDisk, FoundMachine, FoundNode};
pub use hashes::{Hashes, identity};
pub use item::{Filled, Item, ItemId, Origin, State};
pub use machines::{Machine, MachineDisk, Snapshot};
pub use names::{Names, Target};
pub use pick::{Parts, Pick};
pub use search::{Searched, search};
pub use sources::Sources;

use crate::mapfile::MapArg;
use crate::progress::Progress;
use crate::source::Source;
use anyhow::Result;
use folder::Folder;
use std::collections::HashMap;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock};
use vdrecover_formats::note::Sink;
use vdrecover_formats::tree::Lister;
use vdrecover_formats::{Bytes, Entry, Error, Find, Finding, Node, NodeId, Pool, Tree, Trust};

/// What a case is opened with.
#[derive(Clone, Debug, Default)]
#[expect(clippy::struct_excessive_bools, reason = "each is an option of its own that a user sets by name")]
pub struct Options {
    /// Images and folders to look into.
    pub inputs: Vec<PathBuf>,
    /// Further images, and folders in which parents and extents may lie.
    pub with: Vec<PathBuf>,
    /// Maps of what could be read of an input.
    pub maps: Vec<MapArg>,
    /// Whether an input in which nothing is recognised is searched from end to end.
    pub sweep: bool,
    /// Whether every input is, whatever was recognised in it.
    pub deep: bool,
    /// Whether plain files are mapped into memory for a search.
    pub mmap: bool,
    /// Where sweeps are kept for the next command.
    pub keep: Option<PathBuf>,
    /// Whether a name in an image of the host may lead out of the image's folder.
    pub outside: bool,
}

/// A datastore or another tree of files that was found.
#[derive(Clone, Debug)]
pub struct Store {
    /// The item that it came out of; `None` for a folder that was given.
    pub item: Option<ItemId>,
    /// Its name in the case, unique.
    pub name: Vec<u8>,
    /// Its files.
    pub tree: Arc<dyn Tree>,
    /// Every entry of it, by path.
    pub files: Vec<StoreFile>,
    /// Whether it is something to show; a folder to look for parents in is not.
    pub shown: bool,
}

/// An entry of a store.
#[derive(Clone, Debug)]
pub struct StoreFile {
    /// Path inside the store, with `/` between names.
    pub path: Vec<u8>,
    /// The folder that holds it.
    pub dir: NodeId,
    /// The entry.
    pub entry: Entry,
}

impl StoreFile {
    /// The path of the folder that holds it.
    #[must_use]
    pub fn folder(&self) -> &[u8] {
        paths::split(&self.path).0
    }
}

/// An observation, and what it is about.
#[derive(Clone, Debug)]
pub struct Noted {
    /// The image, as a person knows it.
    pub about: String,
    /// The observation.
    pub finding: Finding,
}

/// Everything that was given, opened.
#[derive(Debug)]
pub struct Case {
    /// The cache of all layers.
    pub pool: Arc<Pool>,
    /// Every file and device that was opened.
    pub sources: Arc<Sources>,
    /// How many of the sources were named by the user; they come first.
    pub inputs: Vec<Arc<Source>>,
    /// Inputs that could not be opened, with the reason.
    pub failed: Vec<(PathBuf, String)>,
    /// Everything that was recognised.
    pub items: Vec<Item>,
    /// Every tree of files that was found.
    pub stores: Vec<Store>,
    /// What searches of the stores' free space put together, each with the store.
    searched: Vec<(usize, Arc<dyn Tree>)>,
    /// Virtual machines.
    pub machines: Vec<Machine>,
    /// Disks that belong to no machine.
    pub loose: Vec<ItemId>,
    /// What was observed on the way.
    pub findings: Vec<Noted>,
    names: Names,
    /// What no folder lists any more, once somebody looked.
    found: OnceLock<Found>,
    /// What comparing all files with each other told, once somebody did.
    compared: OnceLock<Compared>,
    /// The folders of the host in which sources lie: listed once, however many ask what lies beside them.
    folders: Mutex<HashMap<PathBuf, Arc<Folder>>>,
    /// Whether a name in an image of the host may lead out of the image's folder.
    outside: bool,
}

/// Bytes of tables and decoded units that are kept in memory.
const CACHE: u64 = 96 << 20;

impl Case {
    /// Opens all of it. Fails only if there is nothing that can be looked at.
    pub fn open(options: &Options, progress: &Progress) -> Result<Self> {
        let mut case = Self {
            pool: Pool::new(CACHE),
            sources: Arc::new(Sources::new(options.maps.clone(), options.mmap)),
            inputs: Vec::new(),
            failed: Vec::new(),
            items: Vec::new(),
            stores: Vec::new(),
            searched: Vec::new(),
            machines: Vec::new(),
            loose: Vec::new(),
            findings: Vec::new(),
            names: Names::default(),
            found: OnceLock::new(),
            compared: OnceLock::new(),
            folders: Mutex::default(),
            outside: options.outside,
        };
        discover::run(&mut case, options, progress)?;
        if options.deep {
            search::run(&mut case, options, progress);
        }
        machines::find(&mut case);
        case.names = names::build(&case);
        Ok(case)
    }

    /// Where a node is found in the tree, resolved name by name. `None` if there is no such path.
    pub fn find(&self, path: &[u8]) -> Result<Option<Entry>, Error> {
        paths::resolve(self, self.root(), path)
    }

    /// What was observed that leaves less than sound trust in what the folder `path` should hold: something may be
    /// missing in it that no file there can tell of.
    #[must_use]
    pub fn doubts(&self, path: &[u8]) -> Vec<&Noted> {
        let mut parts = path.split(|byte| *byte == b'/').filter(|part| !part.is_empty());
        let (top, name) = (parts.next(), parts.next());
        let of_machine = |noted: &Noted| {
            let mut machines = self.machines.iter().filter(|machine| name.is_none_or(|name| name == machine.name));
            machines.any(|machine| {
                let own = format!("vms/{}", item::text(&machine.name));
                let folder = item::text(&machine.place(&self.stores));
                noted.about == own || noted.about.contains(&folder)
            })
        };
        let doubtful = self.findings.iter().filter(|noted| noted.finding.trust > Trust::Sound);
        match (top, name) {
            (None | Some(b"disks" | b"files"), _) | (Some(b"vms"), None) => doubtful.collect(),
            (Some(b"vms"), Some(_)) => doubtful.filter(|noted| of_machine(noted)).collect(),
            // A store tells of itself when it is listed.
            _ => Vec::new(),
        }
    }

    /// How a person calls an item: the path of its file, and the way into it.
    #[must_use]
    pub fn label(&self, id: ItemId) -> String {
        item::label(self, id)
    }

    /// How a person calls a store: as the image that it is in.
    #[must_use]
    pub fn store_label(&self, store: &Store) -> String {
        store.item.map_or_else(|| item::text(&store.name), |item| self.label(item))
    }

    /// The disk that a node of the case's own is, with the item that it comes from.
    #[must_use]
    pub fn target(&self, id: NodeId) -> Option<&Target> {
        self.names.target(id)
    }

    /// What no folder of any store lists any more. Looked for once, by whoever asks first.
    pub fn lost(&self) -> &Found {
        if let Some(found) = self.found.get() {
            return found;
        }
        // No lock is held meanwhile: two that ask at once come to the same.
        let found = found::build(self);
        self.found.get_or_init(|| found)
    }

    /// The tree of a node, and the number that its nodes are composed with; 0 where they are composed already.
    fn tree(&self, id: NodeId) -> Result<(&dyn Tree, u64), Error> {
        let number = id.0 / NodeId::LIMIT;
        if number == found::NUMBER {
            return Ok((self.lost().names(), 0));
        }
        if number == 0 {
            return Ok((&self.names, 0));
        }
        let index = usize::try_from(number - 1).map_err(|_| Error::NotFound)?;
        if let Some(index) = index.checked_sub(discover::MAX_STORES) {
            return self.searched.get(index).map(|(_, tree)| (&**tree, number)).ok_or(Error::NotFound);
        }
        self.stores.get(index).map(|store| (&*store.tree, number)).ok_or(Error::NotFound)
    }
}

/// A node of store `index`, as a node of the case.
pub(crate) fn compose(index: usize, id: NodeId) -> NodeId {
    NodeId(((index as u64 + 1) * NodeId::LIMIT) | id.0)
}

/// The node inside its own tree.
fn inner(id: NodeId) -> NodeId {
    NodeId(id.0 % NodeId::LIMIT)
}

fn outer(number: u64, entry: Entry) -> Entry {
    // The names of the case itself link into the stores and are composed already.
    if number == 0 { entry } else { Entry { id: NodeId((number * NodeId::LIMIT) | entry.id.0), ..entry } }
}

impl Tree for Case {
    fn root(&self) -> NodeId {
        self.names.root()
    }

    fn node(&self, id: NodeId) -> Result<Node, Error> {
        self.tree(id)?.0.node(inner(id))
    }

    fn list(&self, dir: NodeId, from: u64, sink: Lister<'_>) -> Result<(), Error> {
        let (tree, number) = self.tree(dir)?;
        tree.list(inner(dir), from, &mut |entry| sink(entry.map(|entry| outer(number, entry))))
    }

    fn lookup(&self, dir: NodeId, name: &[u8]) -> Result<Option<Entry>, Error> {
        let (tree, number) = self.tree(dir)?;
        Ok(tree.lookup(inner(dir), name)?.map(|entry| outer(number, entry)))
    }

    fn attrs(&self, id: NodeId) -> Vec<Entry> {
        let Ok((tree, number)) = self.tree(id) else { return Vec::new() };
        tree.attrs(inner(id)).into_iter().map(|entry| outer(number, entry)).collect()
    }

    fn open(&self, id: NodeId) -> Result<Bytes, Error> {
        self.tree(id)?.0.open(inner(id))
    }

    fn found(&self, id: NodeId) -> Option<Find> {
        self.lost().get(id).map(|node| node.find.clone())
    }

    fn contradicted(&self, id: NodeId) -> Vec<String> {
        self.contradictions(id).into_iter().map(|noted| format!("{}: {}", noted.about, noted.finding.text)).collect()
    }

    fn parts(&self) -> u32 {
        self.stores.iter().map(|store| store.tree.parts()).sum()
    }

    fn audit(&self, part: u32, sink: Sink<'_>) -> ControlFlow<()> {
        let mut part = part;
        for store in &self.stores {
            if part < store.tree.parts() {
                return store.tree.audit(part, sink);
            }
            part -= store.tree.parts();
        }
        ControlFlow::Continue(())
    }
}
