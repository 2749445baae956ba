//! Names for what no entry names: what other files that were found say.
//!
//! A description of a disk says what its extents are called and how long they are, and by that what it is called
//! itself; a configuration says what its machine is called.

use super::super::Case;
use super::FoundNode;
use std::collections::{HashMap, HashSet};
use vdrecover_formats::disk::vmdk;
use vdrecover_formats::vm::{Dictionary, Machine};
use vdrecover_formats::{Bytes, Kind, Named, NodeId, Role, Tree, Want, read_vec};

/// Longer texts describe no disk and no machine.
const TEXT: u64 = 64 << 10;
/// Files that are read to see what they say.
const READ: usize = 50_000;

/// Neighbours that are compared with each other; more of one length, or in one folder, tell nothing.
const NEIGHBOURS: usize = 256;

/// Where a node lies: its store, the folder that was found with it, and the folder that it was in.
type Place = (usize, Option<usize>, Option<NodeId>);

fn place(node: &FoundNode) -> Place {
    (node.store, node.folder, node.find.parent)
}

/// What lies where, so that no text is compared with all that was found.
#[derive(Default)]
struct Neighbours {
    /// Files without a name, by their length.
    nameless: HashMap<(Place, u64), Vec<usize>>,
    names: HashSet<(Place, Vec<u8>)>,
    /// Configurations in a folder, without their suffix.
    machines: HashMap<Place, Vec<Vec<u8>>>,
}

impl Neighbours {
    fn new(nodes: &[FoundNode]) -> Self {
        let mut all = Self::default();
        for (at, node) in nodes.iter().enumerate() {
            if node.find.named == Named::Place && node.find.entry.kind == Kind::File {
                all.nameless.entry((place(node), node.len)).or_default().push(at);
            }
            all.add(node);
        }
        all
    }

    fn add(&mut self, node: &FoundNode) {
        let name = &node.find.entry.name;
        self.names.insert((place(node), name.clone()));
        if let Some(stem) = name.strip_suffix(b".vmx") {
            self.machines.entry(place(node)).or_default().push(stem.to_vec());
        }
    }
}

/// Names what it can of what has no name.
pub(super) fn name(case: &Case, nodes: &mut [FoundNode]) {
    // Where all have names there is nothing to do.
    if nodes.iter().any(|node| node.find.named == Named::Place && node.len > 0) {
        name_files(case, nodes);
        name_folders(nodes);
    }
}

fn name_files(case: &Case, nodes: &mut [FoundNode]) {
    let mut all = Neighbours::new(nodes);
    let short = |node: &FoundNode| node.find.entry.kind == Kind::File && (1..=TEXT).contains(&node.len);
    let texts: Vec<usize> = (0..nodes.len()).filter(|at| short(&nodes[*at])).take(READ).collect();
    for at in texts {
        let Ok(bytes) = case.open(nodes[at].find.entry.id) else { continue };
        let nameless = nodes[at].find.named == Named::Place;
        let wants = described(case, &bytes);
        if let (true, Some(stem)) = (nameless, wants.iter().find_map(|want| stem(want.hint.as_deref()?))) {
            give(&mut nodes[at], [stem, b".vmdk"].concat(), Named::Descriptor, "its own text says what it describes");
        } else if let (true, true, Some((name, why))) = (nameless, wants.is_empty(), config(&bytes, &nodes[at], &all)) {
            give(&mut nodes[at], name, Named::Config, why);
        }
        if nameless && nodes[at].find.named != Named::Place {
            all.add(&nodes[at]);
        }
        for want in &wants {
            name_extent(nodes, at, want, &mut all);
        }
    }
}

/// Names folders without a name after the one machine in them, or the one disk: so does ESXi when it makes a machine.
fn name_folders(nodes: &mut [FoundNode]) {
    /// What stands in a folder for its machine, the best first.
    const MARKS: [&[u8]; 2] = [b".vmx", b".vmdk"];
    // For each folder and mark the stem, and whether it is the only one.
    let mut stems: HashMap<(usize, usize), (Vec<u8>, bool)> = HashMap::new();
    for node in nodes.iter() {
        let (Some(folder), Kind::File) = (node.folder, node.find.entry.kind) else { continue };
        let name = &node.find.entry.name;
        let Some(mark) = MARKS.iter().position(|mark| name.ends_with(mark)) else { continue };
        let own = stem(name).or_else(|| name.strip_suffix(MARKS[mark])).filter(|stem| !stem.is_empty());
        if let (Some(own), true) = (own, node.find.named != Named::Place) {
            let known = stems.entry((folder, mark)).or_insert_with(|| (own.to_vec(), true));
            known.1 &= known.0 == own;
        }
    }
    for (at, node) in nodes.iter_mut().enumerate() {
        let known = (0..MARKS.len()).find_map(|mark| stems.remove(&(at, mark)).filter(|(_, only)| *only));
        if let (Some((stem, _)), Named::Place) = (known, node.find.named) {
            let why = "its name is a guess, after the one machine or disk in it";
            give(node, stem, Named::Config, why);
        }
    }
}

fn give(node: &mut FoundNode, name: Vec<u8>, named: Named, why: &str) {
    node.find.entry.name = name;
    node.find.named = named;
    node.find.why = format!("{}; {why}", node.find.why);
}

/// What a description of a disk wants.
fn described(case: &Case, bytes: &Bytes) -> Vec<Want> {
    if (vmdk::FORMAT.probe)(&**bytes) < vdrecover_formats::format::score::MAGIC {
        return Vec::new();
    }
    let opened = (vmdk::FORMAT.open)(bytes, &case.pool.share());
    let wants = opened.map(|opened| opened.wants).unwrap_or_default();
    wants.into_iter().filter(|want| want.role == Role::Extent).collect()
}

/// `web` of `web-flat.vmdk`.
fn stem(extent: &[u8]) -> Option<&[u8]> {
    let name = super::super::paths::last_part(extent);
    let suffixes = [&b"-flat.vmdk"[..], b"-delta.vmdk", b"-sesparse.vmdk", b"-rdm.vmdk", b"-rdmp.vmdk", b"-s001.vmdk"];
    suffixes.iter().find_map(|suffix| name.strip_suffix(*suffix)).filter(|stem| !stem.is_empty())
}

/// Names the file that is as long as an extent: the only one beside its description without a name, or of several
/// the one that was changed last when the description was.
fn name_extent(nodes: &mut [FoundNode], at: usize, want: &Want, all: &mut Neighbours) {
    let (Some(hint), Some(len)) = (want.hint.as_deref(), want.len.filter(|len| *len > 0)) else { return };
    let name = super::super::paths::last_part(hint).to_vec();
    let (here, time) = (place(&nodes[at]), nodes[at].modified);
    if all.names.contains(&(here, name.clone())) {
        return;
    }
    let Some(fits) = all.nameless.get(&(here, len)).filter(|fits| fits.len() <= NEIGHBOURS) else { return };
    let fits: Vec<usize> =
        fits.iter().copied().filter(|other| *other != at && nodes[*other].find.named == Named::Place).collect();
    let same_time = fits.iter().copied().filter(|other| time.is_some() && nodes[*other].modified == time);
    let chosen = match (fits.as_slice(), same_time.collect::<Vec<_>>().as_slice()) {
        ([only], _) | (_, [only]) => *only,
        _ => return,
    };
    let why = format!("it is the one file of {len} bytes beside a description that names it");
    give(&mut nodes[chosen], name, Named::Descriptor, &why);
    all.add(&nodes[chosen]);
}

/// The name of a configuration, by the machine that it is of, and why.
fn config(bytes: &Bytes, node: &FoundNode, all: &Neighbours) -> Option<(Vec<u8>, &'static str)> {
    let len = usize::try_from(bytes.len().min(TEXT)).ok()?;
    let (text, seen) = read_vec(&**bytes, 0, len);
    let is_text = text.iter().all(|byte| *byte >= b' ' || matches!(byte, b'\t' | b'\n' | b'\r'));
    let text = Some(Dictionary::parse(&text)).filter(|_| is_text && seen.is_whole())?;
    let machine = Machine::of(&text);
    let is_config = text.get("config.version").or(text.get("virtualhw.version")).is_some() || !machine.disks.is_empty();
    let nvram = text.get("nvram").and_then(|name| name.strip_suffix(b".nvram")).map(<[u8]>::to_vec);
    let stem = nvram.or(machine.name.filter(|_| is_config));
    if let Some(stem) = stem.filter(|stem| !stem.is_empty() && !stem.contains(&b'/')) {
        return Some(([&stem[..], b".vmx"].concat(), "it is a machine's configuration"));
    }
    text.get("snapshot.numsnapshots")?;
    // Its machine's name is that of the configuration beside it.
    match all.machines.get(&place(node))?.as_slice() {
        [stem] => Some(([&stem[..], b".vmsd"].concat(), "it is a list of snapshots")),
        _ => None,
    }
}
