//! OVA, an exported virtual machine: DMTF DSP0243 2.1, section "Distribution as a single file", which is a tar archive
//! (POSIX.1-1988 `ustar`, with the extensions of POSIX.1-2001 and of GNU) of a description, its manifest and disks.
//!
//! The members are windows over the archive, so that a disk in it opens as one in a folder does. Any other tar
//! archive reads the same. The manifest has a digest of each member; they are compared by the audit, since a digest
//! of a large disk takes as long as to read all of it.

mod manifest;
mod tar;

use crate::adapt::{Memory, Window};
use crate::audit::claim;
use crate::error::Error;
use crate::format::{Format, Holds, Magic, score};
use crate::layer::{Bytes, Layer, Trust};
use crate::link::{Content, Fact, Link, Opened, Value};
use crate::memo::Memo;
use crate::note::{Finding, Note, Sink, Use};
use crate::num::{narrow, wide};
use crate::tree::{Entry, Kind, Lister, Node, NodeId, State, Tree};
use manifest::Digest;
use std::collections::{BTreeMap, HashMap};
use std::ops::ControlFlow;
use std::sync::Arc;
use tar::{Member, What};

/// The row in the table of formats.
pub static FORMAT: Format = Format {
    name: "ova",
    about: "Exported virtual machine (OVA), or another tar archive",
    holds: Holds::Files,
    spec: "DMTF DSP0243 2.1; POSIX.1-2001 pax, ustar; GNU tar",
    magics: &[Magic { at: 257, bytes: b"ustar" }],
    probe,
    open,
    sweep: None,
};

fn probe(layer: &dyn Layer) -> u8 {
    if tar::starts(layer) {
        score::PROVEN
    } else if FORMAT.magics.iter().any(|magic| magic.is_in(layer)) {
        score::MAGIC
    } else {
        score::NONE
    }
}

fn open(bytes: &Bytes, _: &Memo) -> Result<Opened, Error> {
    let (members, mut findings) = tar::read(&**bytes);
    if members.is_empty() {
        return Err(Error::corrupt("tar header", 0, "no member is whole"));
    }
    let mut archive = Archive::new(bytes.clone(), members, &mut findings);
    archive.read_manifest(&mut findings);
    let suffix = |member: &Member, suffix: &[u8]| member.path.to_ascii_lowercase().ends_with(suffix);
    let description = archive.members.iter().find(|member| suffix(member, b".ovf"));
    let name = description.and_then(|member| {
        let last = member.path.rsplit(|byte| *byte == b'/').next()?;
        Some(last.get(..last.len().checked_sub(4)?)?.to_vec())
    });
    let mut facts = vec![Fact::new("members", Value::Count(wide(archive.members.len())))];
    facts.push(Fact::new("digests", Value::Count(wide(archive.digests.len()))));
    facts.extend(description.map(|member| Fact::new("description", member.path.escape_ascii().to_string())));
    let link = Link { name, len: bytes.len(), ..Link::default() };
    Ok(Opened { findings, facts, ..Opened::alone(link, Content::Tree(Arc::new(archive))) })
}

/// A name in the archive.
#[derive(Debug)]
struct Name {
    text: Vec<u8>,
    /// Its member; a folder need not have one.
    member: Option<usize>,
    /// Its entries, if it is a folder.
    children: Vec<usize>,
    /// Their last places by name.
    index: HashMap<Vec<u8>, usize>,
    is_dir: bool,
    trust: Trust,
}

impl Name {
    fn folder(text: Vec<u8>) -> Self {
        Self { text, member: None, children: Vec::new(), index: HashMap::new(), is_dir: true, trust: Trust::Sound }
    }
}

/// The members as a tree.
#[derive(Debug)]
struct Archive {
    bytes: Bytes,
    members: Vec<Member>,
    /// The first is the root.
    names: Vec<Name>,
    /// The names of the members.
    ids: HashMap<usize, usize>,
    /// What the manifest says, by member.
    digests: BTreeMap<usize, Digest>,
}

/// Folders in folders of a member's path.
const MAX_PARTS: usize = 64;
/// Names of all folders and members together.
const MAX_NAMES: usize = 1 << 18;

impl Archive {
    fn new(bytes: Bytes, members: Vec<Member>, findings: &mut Vec<Finding>) -> Self {
        let mut names = vec![Name::folder(Vec::new())];
        let mut twice: usize = 0;
        let mut first = None;
        for (number, member) in members.iter().enumerate() {
            let parts: Vec<&[u8]> = member.path.split(|byte| *byte == b'/').collect();
            if parts.len() > MAX_PARTS || names.len() >= MAX_NAMES {
                let text = "folders in folders, too deep or too many: a member is not listed";
                findings.push(Finding::new("OVA-DEEP", member.at..member.data, Trust::Doubtful, text));
                break;
            }
            let mut dir = 0;
            for (depth, part) in parts.iter().enumerate() {
                let is_last = depth.saturating_add(1) == parts.len();
                let known = names.get(dir).and_then(|name| name.index.get(*part)).copied();
                let known = known.filter(|known| names.get(*known).is_some_and(|known| known.is_dir));
                if let Some(known) = known.filter(|_| !is_last || member.what == What::Dir) {
                    dir = known;
                    if let Some(name) = names.get_mut(known).filter(|_| is_last) {
                        name.member = Some(number);
                    }
                    continue;
                }
                let id = names.len();
                let mut name = Name::folder(part.to_vec());
                name.is_dir = !is_last || member.what == What::Dir;
                name.member = is_last.then_some(number);
                name.trust = member.trust;
                let Some(parent) = names.get_mut(dir) else { break };
                parent.children.push(id);
                let old = parent.index.insert(part.to_vec(), id);
                if let Some(old) = old {
                    // Which of two members of one name is meant, nothing tells.
                    name.trust = Trust::Doubtful;
                    twice = twice.saturating_add(1);
                    first = first.or(Some(member.at));
                    if let Some(old) = names.get_mut(old) {
                        old.trust = Trust::Doubtful;
                    }
                }
                names.push(name);
                dir = id;
            }
        }
        if let Some(at) = first {
            let text = format!("{twice} members have the name of another");
            findings.push(Finding::new("OVA-TWICE", at..at.saturating_add(512), Trust::Doubtful, text));
        }
        let ids = names.iter().enumerate().filter_map(|(id, name)| Some((name.member?, id))).collect();
        Self { bytes, members, names, ids, digests: BTreeMap::new() }
    }

    fn read_manifest(&mut self, findings: &mut Vec<Finding>) {
        let is_manifest = |member: &&Member| member.path.to_ascii_lowercase().ends_with(b".mf");
        let Some(member) = self.members.iter().find(is_manifest) else { return };
        let range = member.data..member.data.saturating_add(member.len);
        let lines = match manifest::read(&*self.bytes, member.data, member.len) {
            Ok(lines) => lines,
            Err(text) => {
                findings.push(Finding::new("OVA-MANIFEST", range, Trust::Sound, text));
                return;
            }
        };
        let by_path: HashMap<&[u8], usize> =
            self.members.iter().enumerate().map(|(number, member)| (&member.path[..], number)).collect();
        let mut digests = BTreeMap::new();
        for (name, digest) in lines {
            if let Some(number) = by_path.get(&name[..]) {
                digests.insert(*number, digest);
            } else {
                let text = format!("the manifest names {}, which is not there", name.escape_ascii());
                findings.push(Finding::new("OVA-MEMBER-GONE", range.clone(), Trust::Sound, text));
            }
        }
        self.digests = digests;
    }

    fn name(&self, id: NodeId) -> Result<&Name, Error> {
        self.names.get(narrow(id.0)).ok_or(Error::NotFound)
    }

    fn member(&self, name: &Name) -> Option<&Member> {
        self.members.get(name.member?)
    }

    fn kind(&self, name: &Name) -> Kind {
        match self.member(name).map(|member| &member.what) {
            _ if name.is_dir => Kind::Dir,
            None => Kind::Dir,
            Some(What::Link(_)) => Kind::Symlink,
            Some(What::File | What::Sparse) => Kind::File,
            Some(What::Dir | What::Special) => Kind::Special,
        }
    }

    fn entry(&self, id: usize, next: u64) -> Option<Entry> {
        let name = self.names.get(id)?;
        let kind = self.kind(name);
        Some(Entry { name: name.text.clone(), id: NodeId(wide(id)), kind, state: State::Live, next })
    }

    /// Compares a member with what the manifest says of it.
    fn check(&self, member: &Member, digest: &Digest) -> Option<Finding> {
        let layer = Window::new(self.bytes.clone(), member.data, member.len);
        let found = digest.of(&layer);
        let text = match found {
            Ok(true) => return None,
            Ok(false) => format!("{} is not what the manifest says: its {} differs", member.name(), digest.name()),
            Err(gap) => format!("{} can't be compared with the manifest: {gap}", member.name()),
        };
        let end = member.data.saturating_add(member.len);
        Some(Finding::new("OVA-DIGEST", member.data..end, Trust::Doubtful, text))
    }
}

impl Tree for Archive {
    fn root(&self) -> NodeId {
        NodeId(0)
    }

    fn node(&self, id: NodeId) -> Result<Node, Error> {
        let name = self.name(id)?;
        let kind = self.kind(name);
        let Some(member) = self.member(name) else { return Ok(Node::plain(kind, 0, 0o755)) };
        let len = match &member.what {
            What::Link(text) => wide(text.len()),
            What::File | What::Sparse => member.len,
            What::Dir | What::Special => 0,
        };
        Ok(Node {
            uid: member.uid,
            gid: member.gid,
            modified: member.modified,
            trust: name.trust,
            ..Node::plain(kind, len, member.mode)
        })
    }

    fn list(&self, dir: NodeId, from: u64, sink: Lister<'_>) -> Result<(), Error> {
        let name = self.name(dir)?;
        if !name.is_dir {
            return Err(Error::NotFolder);
        }
        for (place, id) in (1_u64..).zip(&name.children).skip(narrow(from)) {
            let Some(entry) = self.entry(*id, place) else { continue };
            if sink(Ok(entry)).is_break() {
                break;
            }
        }
        Ok(())
    }

    fn lookup(&self, dir: NodeId, name: &[u8]) -> Result<Option<Entry>, Error> {
        let dir = self.name(dir)?;
        if !dir.is_dir {
            return Err(Error::NotFolder);
        }
        Ok(dir.index.get(name).and_then(|id| self.entry(*id, 0)))
    }

    fn open(&self, id: NodeId) -> Result<Bytes, Error> {
        let name = self.name(id)?;
        let member = self.member(name).filter(|_| !name.is_dir).ok_or(Error::NotFile)?;
        let layer: Bytes = match &member.what {
            What::Link(text) => return Ok(Arc::new(Memory::new(text.clone()))),
            What::Dir | What::Special => return Err(Error::NotFile),
            What::Sparse => return Err(Error::unsupported("a sparse member of a GNU tar archive")),
            What::File => Arc::new(Window::new(self.bytes.clone(), member.data, member.len).named("archive member")),
        };
        Ok(match name.trust {
            Trust::Sound => layer,
            trust => Arc::new(crate::adapt::Trusted::new(layer, trust)),
        })
    }

    fn parts(&self) -> u32 {
        u32::try_from(self.members.len()).unwrap_or(u32::MAX)
    }

    fn audit(&self, part: u32, sink: Sink<'_>) -> ControlFlow<()> {
        let number = narrow(part.into());
        let Some(member) = self.members.get(number) else { return ControlFlow::Continue(()) };
        claim(&*self.bytes, member.at, member.data.saturating_sub(member.at), Use::Metadata, &mut *sink)?;
        let id = self.ids.get(&number).copied().unwrap_or(0);
        claim(&*self.bytes, member.data, member.len, Use::Data(NodeId(wide(id))), &mut *sink)?;
        match self.digests.get(&number).and_then(|digest| self.check(member, digest)) {
            Some(finding) => sink(Note::Finding(finding)),
            None => ControlFlow::Continue(()),
        }
    }
}
