//! Matching what an image wants with what is at hand.

use super::folder::Folder;
use super::item::{Filled, ItemId, Origin};
use super::paths;
use super::{Case, Item};
use crate::source::Source;
use std::cmp::{Ordering, Reverse};
use std::os::unix::fs::FileTypeExt as _;
use std::path::Path;
use std::sync::{Arc, PoisonError};
use vdrecover_formats::link::Member;
use vdrecover_formats::{Bytes, Entry, Finding, Kind, NodeId, Role, Tree, Trust, Want};

/// Where an image looks for the others: the folder in which it lies.
pub(super) struct Beside {
    tree: Arc<dyn Tree>,
    dir: NodeId,
    /// Path of the folder in its store; `None` on the host, where a name never leaves the folder.
    path: Option<Vec<u8>>,
    /// Which store, if it is one.
    store: Option<usize>,
}

/// The folder in which an item lies. Something inside a disk or a device lies in none.
pub(super) fn beside(case: &Case, item: &Item) -> Option<Beside> {
    match &item.origin {
        Origin::File { store, dir, path, .. } => Some(Beside {
            tree: Arc::clone(&case.stores[*store].tree),
            dir: *dir,
            path: Some(paths::split(path).0.to_vec()),
            store: Some(*store),
        }),
        Origin::Source(source) => host_folder(case, &source.path),
        // What was recognised in a file that is no disk image lies where the file lies.
        Origin::Inside(of) if case.items[*of].format.name == "raw" => beside(case, &case.items[*of]),
        Origin::Inside(_) | Origin::Volume { .. } => None,
    }
}

fn host_folder(case: &Case, file: &Path) -> Option<Beside> {
    let parent = file.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // Devices have neighbours that are none of the image's business.
    if std::fs::metadata(file).is_ok_and(|meta| meta.file_type().is_block_device()) {
        return None;
    }
    let mut folders = case.folders.lock().unwrap_or_else(PoisonError::into_inner);
    let folder = if let Some(folder) = folders.get(parent) {
        Arc::clone(folder)
    } else {
        let folder = Arc::new(Folder::open(parent, false, Arc::clone(&case.sources)).ok()?);
        folders.insert(parent.to_owned(), Arc::clone(&folder));
        folder
    };
    let dir = folder.root();
    Some(Beside { tree: folder, dir, path: None, store: None })
}

/// A file that a name led to.
pub(super) struct Named {
    pub(super) entry: Entry,
    pub(super) store: Option<usize>,
    /// Node in the tree it was found in.
    pub(super) tree: Arc<dyn Tree>,
    /// Whether the name led there as written, or by its last part only.
    pub(super) exact: bool,
}

/// Follows a name that an image gives: as written where that stays inside its store, else by its last part.
pub(super) fn by_name(case: &Case, item: &Item, hint: &[u8]) -> Option<Named> {
    let beside = beside(case, item);
    let last = paths::last_part(hint);
    if !paths::is_plain(last) {
        return None;
    }
    // A full path first: a linked clone and its base may have one name in two folders.
    in_stores(case, item, hint)
        .or_else(|| outside(case, item, hint))
        .or_else(|| beside.as_ref().and_then(|beside| in_folder(beside, hint, last)))
        .or_else(|| among_sources(case, last, last == hint))
}

fn in_folder(beside: &Beside, hint: &[u8], last: &[u8]) -> Option<Named> {
    let found = |dir: NodeId, path: &[u8]| {
        paths::resolve(&*beside.tree, dir, path).ok().flatten().filter(|entry| entry.kind != Kind::Dir)
    };
    let named = |entry, exact| Named { entry, store: beside.store, tree: Arc::clone(&beside.tree), exact };
    if hint == last {
        return found(beside.dir, last).map(|entry| named(entry, true));
    }
    // A relative path inside a datastore may name another folder of it.
    if let (Some(folder), false) = (&beside.path, hint.starts_with(b"/"))
        && let Some(path) = paths::normal(folder, hint)
        && let Some(entry) = found(beside.tree.root(), &path)
    {
        return Some(named(entry, true));
    }
    found(beside.dir, last).map(|entry| named(entry, false))
}

/// `/vmfs/volumes/STORE/FOLDER/FILE`: by the store's name or id and the path in it, else by folder and file in
/// any store.
fn in_stores(case: &Case, item: &Item, hint: &[u8]) -> Option<Named> {
    let (volume, path) = volume_path(hint)?;
    let own = match &item.origin {
        Origin::File { store, .. } => Some(*store),
        _ => None,
    };
    let (stores, exact) = stores_of(case, own, volume);
    stores.into_iter().enumerate().find_map(|(at, index)| {
        let tree = &case.stores[index].tree;
        let entry = paths::resolve(&**tree, tree.root(), &path).ok().flatten()?;
        let exact = exact && at == 0;
        (entry.kind != Kind::Dir).then(|| Named { entry, store: Some(index), tree: Arc::clone(tree), exact })
    })
}

/// The volume and the path of `/vmfs/volumes/VOLUME/PATH`.
pub(super) fn volume_path(hint: &[u8]) -> Option<(&[u8], Vec<u8>)> {
    let rest = hint.strip_prefix(b"/vmfs/volumes/")?;
    let slash = rest.iter().position(|byte| *byte == b'/')?;
    Some((&rest[..slash], paths::normal(b"", &rest[slash + 1..])?))
}

/// The stores in which a path on `volume` may lie, the likeliest first, and whether the first is sure: the one that
/// has the name or id. Then comes the store of whoever names it.
pub(super) fn stores_of(case: &Case, own: Option<usize>, volume: &[u8]) -> (Vec<usize>, bool) {
    let is_named = |index: &usize| {
        let store = &case.stores[*index];
        let link = store.item.map(|id| &case.items[id].opened.link);
        let says = |said: &Option<Vec<u8>>| said.as_deref() == Some(volume);
        store.name == volume || link.is_some_and(|link| says(&link.name) || says(&link.id))
    };
    let mut stores: Vec<usize> = (0..case.stores.len()).filter(is_named).collect();
    let exact = stores.len() == 1;
    let named = stores.clone();
    let others = own.into_iter().chain((0..case.stores.len()).filter(|index| Some(*index) != own));
    stores.extend(others.filter(|index| !named.contains(index)));
    (stores, exact)
}

/// A name as the host takes it, wherever it leads, if the user allows that. Only a path of a regular file is one: no
/// URI, no protocol in front.
fn outside(case: &Case, item: &Item, hint: &[u8]) -> Option<Named> {
    use std::os::unix::ffi::OsStrExt;
    let Origin::Source(source) = &item.origin else { return None };
    let path = source.path.parent()?.join(std::ffi::OsStr::from_bytes(hint));
    let path = if case.outside { path.canonicalize().ok()? } else { return None };
    let tree: Arc<dyn Tree> = host_folder(case, &path)?.tree;
    let entry = tree.lookup(tree.root(), path.file_name()?.as_bytes()).ok().flatten()?;
    (entry.kind == Kind::File).then_some(Named { entry, store: None, tree, exact: true })
}

/// Whether a name would lead out of its folder.
fn leads_out(hint: &[u8]) -> bool {
    hint.starts_with(b"/") || hint.split(|byte| *byte == b'/').any(|part| part == b"..")
}

/// What helps where a file was not found by its name.
fn remedy(case: &Case, item: &Item, hint: &[u8]) -> &'static str {
    let on_host = matches!(item.origin, Origin::Source(_));
    if on_host && leads_out(hint) && !case.outside {
        "give it with --with, or follow names out of the folder with --allow-outside"
    } else {
        "give it with --with"
    }
}

/// Files that were given, by their name.
fn among_sources(case: &Case, name: &[u8], exact: bool) -> Option<Named> {
    use std::os::unix::ffi::OsStrExt;
    let all = case.sources.all();
    let mut same = all.iter().filter(|source| source.path.file_name().is_some_and(|own| own.as_bytes() == name));
    let source = same.next()?;
    if same.next().is_some() {
        return None;
    }
    let tree: Arc<dyn Tree> = host_folder(case, &source.path)?.tree;
    let entry = tree.lookup(tree.root(), name).ok().flatten()?;
    Some(Named { entry, store: None, tree, exact })
}

/// The only further file that was given and is as long as this: a LUN has no name that an image could know.
fn of_length(case: &Case, len: u64) -> Option<Named> {
    use std::os::unix::ffi::OsStrExt;
    let further = |source: &&Arc<Source>| !case.inputs.iter().any(|input| Arc::ptr_eq(input, source));
    let all = case.sources.all();
    let mut fits = all.iter().filter(|source| source.len == len && len > 0).filter(further);
    let (source, None) = (fits.next()?, fits.next()) else { return None };
    let tree: Arc<dyn Tree> = host_folder(case, &source.path)?.tree;
    let entry = tree.lookup(tree.root(), source.path.file_name()?.as_bytes()).ok().flatten()?;
    Some(Named { entry, store: None, tree, exact: false })
}

/// A LUN that was given for a mapping: nothing in the mapping proves that it is that one.
fn lun_of(lun: &Named, name: &str) -> (Filled, Option<Named>) {
    let shown = super::item::text(&lun.entry.name);
    match lun.tree.open(lun.entry.id) {
        Ok(bytes) => {
            let why = format!("{shown} was given, and taken for the LUN that {name} maps");
            (Filled { bytes: Some(bytes), item: None, trust: Trust::Inferred, why }, None)
        }
        Err(error) => (Filled::nothing(format!("{shown}: {error}")), None),
    }
}

/// What a want for bytes is met with.
pub(super) fn extent(case: &Case, id: ItemId, want: &Want) -> (Filled, Option<Named>) {
    let item = &case.items[id];
    let Some(hint) = &want.hint else { return (Filled::nothing("the image does not say which"), None) };
    let name = super::item::text(hint);
    let Some(named) = by_name(case, item, hint) else {
        return (Filled::nothing(format!("{name} is not there: {}", remedy(case, item, hint))), None);
    };
    if named.entry.kind == Kind::Mapping {
        let file = hint.rsplit(|byte| *byte == b'/').next().unwrap_or(hint);
        return match among_sources(case, file, false).or_else(|| of_length(case, want.len?)) {
            Some(lun) => lun_of(&lun, &name),
            None => (Filled::nothing(format!("{name} maps a LUN that was not given")), Some(named)),
        };
    }
    match named.tree.open(named.entry.id) {
        Ok(bytes) => {
            let fits = want.len.is_none_or(|len| len <= bytes.len());
            let (trust, why) = if named.exact {
                (Trust::Sound, format!("named {name}"))
            } else {
                (Trust::Inferred, format!("found {} for {name}", super::item::text(&named.entry.name)))
            };
            let short = if fits { "" } else { ", but it is too short" };
            (Filled { bytes: Some(bytes), item: None, trust, why: why + short }, Some(named))
        }
        Err(error) => (Filled::nothing(format!("{name}: {error}")), Some(named)),
    }
}

/// The members of a set, one for each of `wants`, in the order of their place in it.
pub(super) fn members(case: &Case, id: ItemId) -> Vec<Filled> {
    let item = &case.items[id];
    let Some(own) = &item.opened.link.set else { return Vec::new() };
    let mut taken = vec![own.id.clone()];
    let mut found: Vec<(u64, ItemId)> = Vec::new();
    let mut candidates: Vec<_> = case
        .items
        .iter()
        .enumerate()
        .filter_map(|(other, item)| Some((other, item, item.opened.link.set.as_ref()?)))
        .filter(|(other, item, member)| *other != id && member.set == own.set && item.used_by.is_none())
        .collect();
    // Of copies of one device, those are of one time that know of as many changes of the volume, or lie beside each other.
    candidates.sort_by_key(|(other, _, member)| {
        (member.epoch != own.epoch, !same_folder(case, *other, id), Reverse(member.age()), *other)
    });
    for (other, _, member) in candidates {
        if !taken.contains(&member.id) {
            taken.push(member.id.clone());
            found.push((member.first, other));
        }
    }
    found.sort_unstable();
    let wants = item.opened.wants.iter().filter(|want| want.role == Role::Member).count();
    let mut filled: Vec<Filled> = found
        .into_iter()
        .take(wants)
        .map(|(_, other)| Filled {
            bytes: Some(case.items[other].bytes.clone()),
            item: Some(other),
            trust: among_copies(case, other, id),
            why: "same set".into(),
        })
        .collect();
    filled.resize_with(wants, || Filled::nothing("an extent of this volume was not given: give it with --with"));
    filled
}

/// Other images of the device that `id` is an image of.
fn copies_of(case: &Case, id: ItemId) -> impl Iterator<Item = ItemId> {
    let set = move |id: ItemId| case.items[id].opened.link.set.as_ref();
    let same = move |own: &Member, other: &Member| own.set == other.set && own.id == other.id;
    let others = (0..case.items.len()).filter(move |other| *other != id);
    others.filter(move |other| set(id).zip(set(*other)).is_some_and(|(own, other)| same(own, other)))
}

/// How sure it is that an image is the right one of its device, in the set that `lead` speaks for.
pub(super) fn among_copies(case: &Case, id: ItemId, lead: ItemId) -> Trust {
    copies_of(case, id).map(|other| preferred(case, id, other, lead).0).max().unwrap_or(Trust::Sound)
}

/// Why of two images of one device `own` is used, and how sure that is.
fn preferred(case: &Case, own: ItemId, other: ItemId, lead: ItemId) -> (Trust, &'static str) {
    let set = |id: ItemId| case.items[id].opened.link.set.as_ref();
    let (Some(mine), Some(theirs), Some(first)) = (set(own), set(other), set(lead)) else {
        return (Trust::Doubtful, "nothing tells which is newer");
    };
    if own != lead && (mine.epoch == first.epoch) != (theirs.epoch == first.epoch) {
        return (Trust::Inferred, "it knows of as many changes of the volume as the first extent");
    }
    if own != lead && same_folder(case, own, lead) && !same_folder(case, other, lead) {
        return (Trust::Inferred, "it lies beside the others of its volume");
    }
    match mine.age().cmp(&theirs.age()) {
        Ordering::Greater if (mine.epoch, mine.generation) > (theirs.epoch, theirs.generation) => {
            (Trust::Inferred, "its LVM metadata has the higher generation")
        }
        Ordering::Greater => (Trust::Inferred, "its last change is the later one"),
        Ordering::Less => (Trust::Doubtful, "it comes first, but the other one is newer"),
        Ordering::Equal => (Trust::Doubtful, "nothing tells which is newer, and it comes first"),
    }
}

/// Whether two items come out of files of one folder of the host.
fn same_folder(case: &Case, a: ItemId, b: ItemId) -> bool {
    let folder = |mut id: ItemId| loop {
        match &case.items[id].origin {
            Origin::Source(source) => break source.path.parent(),
            Origin::Inside(of) | Origin::Volume { of, .. } => id = *of,
            Origin::File { .. } => break None,
        }
    };
    folder(a).is_some_and(|own| folder(b) == Some(own))
}

/// Copies of the members of a set, two images of one device: which is used, and why. `chosen` are the members that
/// are, and `lead` is the one of them that speaks for the set.
pub(super) fn copies(case: &Case, chosen: &[ItemId], lead: ItemId) -> Vec<Finding> {
    let pairs = chosen.iter().flat_map(|id| copies_of(case, *id).map(|other| (*id, other)));
    let told = pairs.map(|(id, other)| {
        let (trust, why) = preferred(case, id, other, lead);
        let (used, left) = (case.label(id), case.label(other));
        let text =
            format!("{used} and {left} are images of the same device; they are not mixed: {used} is used, {why}");
        Finding::new("SET-COPY", 0..0, trust, text)
    });
    told.collect()
}

/// What was found for a parent: the item, not its content, which may have to be joined first.
pub(super) struct Parent {
    pub(super) item: ItemId,
    pub(super) trust: Trust,
    pub(super) why: String,
}

/// The item that a want for a parent means: the one that is named, checked by its id; else the only one with
/// the id.
pub(super) fn parent(case: &Case, id: ItemId, want: &Want) -> Result<Parent, String> {
    let item = &case.items[id];
    let same = |other: &ItemId| want.id.is_some() && case.items[*other].opened.link.id == want.id;
    let hint = want.hint.as_deref().unwrap_or_default();
    if let Some(named) = by_name(case, item, hint)
        && let Some(other) = item_at(case, &named)
        && other != id
    {
        let name = super::item::text(hint);
        let theirs = &case.items[other].opened.link.id;
        return Ok(match (&want.id, theirs) {
            (Some(wanted), Some(theirs)) if wanted == theirs => {
                Parent { item: other, trust: Trust::Sound, why: format!("named {name}, and the ids agree") }
            }
            (Some(_), Some(_)) => {
                Parent { item: other, trust: Trust::Doubtful, why: format!("named {name}, but the ids differ") }
            }
            (Some(_), None) => Parent {
                item: other,
                trust: Trust::Inferred,
                why: format!("named {name}; there is no id to check it by"),
            },
            (None, _) => {
                let trust = if named.exact { Trust::Sound } else { Trust::Inferred };
                Parent { item: other, trust, why: format!("named {name}; the format has no ids") }
            }
        });
    }
    let others: Vec<ItemId> = (0..case.items.len()).filter(|other| *other != id).filter(same).collect();
    match others.as_slice() {
        [other] => Ok(Parent { item: *other, trust: Trust::Sound, why: "its id agrees; the name does not".into() }),
        [] => Err(format!("its parent {} is not there: {}", super::item::text(hint), remedy(case, item, hint))),
        _ => Err("several images have the id of its parent".into()),
    }
}

/// The item that a file is, if it was recognised as one.
pub(super) fn item_at(case: &Case, named: &Named) -> Option<ItemId> {
    // On the host a source is opened once: the same bytes are the same file.
    let bytes = if named.store.is_none() { named.tree.open(named.entry.id).ok() } else { None };
    case.items.iter().position(|item| match (&item.origin, named.store) {
        (Origin::File { store, entry, .. }, Some(index)) => *store == index && entry.id == named.entry.id,
        (Origin::Source(source), None) => bytes.as_ref().is_some_and(|bytes| Arc::ptr_eq(bytes, &source.bytes)),
        _ => false,
    })
}

impl Filled {
    /// Nothing was found.
    pub(super) fn nothing(why: impl Into<String>) -> Self {
        Self { bytes: None, item: None, trust: Trust::Sound, why: why.into() }
    }

    /// Bytes that were chosen.
    pub(super) fn with(bytes: Bytes, item: ItemId, trust: Trust, why: String) -> Self {
        Self { bytes: Some(bytes), item: Some(item), trust, why }
    }
}
