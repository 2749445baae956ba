//! Extended attributes: what is known of a node and has no other place in a file system.

use vdrecover_formats::num::narrow;
use vdrecover_formats::{Error, Kind, Node, NodeId, Place, Tree, Trust, read, walk};

/// Live, or how the node was found.
const STATE: &[u8] = b"user.vdrecover.state";
/// How far to believe the facts of the node, and its content as far as its map is looked at.
const TRUST: &[u8] = b"user.vdrecover.trust";
/// How many bytes the map says are lost, or `unknown` when the map is too long to look at.
const MISSING: &[u8] = b"user.vdrecover.missing";

/// Longest map that is walked to answer.
const RUNS: usize = 100_000;
/// Largest value, and largest list of names, that the kernel passes on.
const LARGEST: u64 = 64 << 10;

/// The value of an attribute; nothing if there is none of that name.
pub(super) fn get(tree: &dyn Tree, id: NodeId, name: &[u8]) -> Result<Option<Vec<u8>>, Error> {
    if !name.starts_with(b"user.") {
        return Ok(None);
    }
    let node = tree.node(id)?;
    match name {
        STATE => return Ok(Some(node.state.word().into())),
        TRUST => return Ok(Some(trust(tree, id, &node).word().into())),
        MISSING if has_bytes(node.kind) => return Ok(Some(missing(tree, id, node.len)?.into_bytes())),
        _ => {}
    }
    let Some(entry) = guest(tree, id).into_iter().find(|(shown, _)| shown == name) else { return Ok(None) };
    let bytes = tree.open(entry.1)?;
    if bytes.len() > LARGEST {
        return Err(Error::unsupported("an extended attribute of more than 64 KiB"));
    }
    let mut value = vec![0; narrow(bytes.len())];
    match read(&*bytes, 0, &mut value).gaps.into_iter().next() {
        Some(gap) => Err(Error::Lost { what: "extended attribute", gap }),
        None => Ok(Some(value)),
    }
}

/// The names of a node's attributes, each with a NUL behind it.
pub(super) fn list(tree: &dyn Tree, id: NodeId) -> Result<Vec<u8>, Error> {
    let node = tree.node(id)?;
    let mut names: Vec<Vec<u8>> = vec![STATE.into(), TRUST.into()];
    if has_bytes(node.kind) {
        names.push(MISSING.into());
    }
    names.extend(guest(tree, id).into_iter().map(|(name, _)| name));
    let mut list = Vec::new();
    for name in names {
        if list.len() + name.len() < narrow(LARGEST) {
            list.extend(name);
            list.push(0);
        }
    }
    Ok(list)
}

fn has_bytes(kind: Kind) -> bool {
    !matches!(kind, Kind::Dir | Kind::Special)
}

/// The guest's own attributes. Only those of users: others mean something to this machine's kernel.
fn guest(tree: &dyn Tree, id: NodeId) -> Vec<(Vec<u8>, NodeId)> {
    let attrs = tree.attrs(id).into_iter().filter(|entry| entry.kind == Kind::Xattr);
    let ours = |name: &[u8]| matches!(name, STATE | TRUST | MISSING);
    let plain = |name: &[u8]| name.starts_with(b"user.") && name.len() <= 255 && !name.contains(&0) && !ours(name);
    attrs.filter(|entry| plain(&entry.name)).map(|entry| (entry.name, entry.id)).collect()
}

/// The least trusted of the node and its runs.
fn trust(tree: &dyn Tree, id: NodeId, node: &Node) -> Trust {
    let bytes = has_bytes(node.kind).then(|| tree.open(id).ok()).flatten();
    let runs = bytes.iter().flat_map(|bytes| walk(&**bytes, 0..bytes.len()).take(RUNS).map(|run| run.trust));
    runs.fold(node.trust, Trust::max)
}

fn missing(tree: &dyn Tree, id: NodeId, len: u64) -> Result<String, Error> {
    let bytes = tree.open(id)?;
    let mut lost: u64 = 0;
    for (i, run) in walk(&*bytes, 0..len).enumerate() {
        if i == RUNS {
            return Ok("unknown".to_owned());
        }
        if matches!(run.place, Place::Lost(_)) {
            lost = lost.saturating_add(run.len);
        }
    }
    Ok(lost.to_string())
}
