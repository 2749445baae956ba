//! Probing, joining and opening again, until nothing new comes out.

use super::folder::Folder;
use super::item::{Filled, Item, ItemId, Origin, State};
use super::{Case, Noted, Options, Store, StoreFile, paths, wants};
use crate::health;
use crate::progress::Progress;
use crate::ranges::RangeSet;
use crate::source::{Source, SourceKind};
use crate::sweep::SweepOptions;
use anyhow::{Result, bail};
use std::cmp::Reverse;
use std::collections::{HashSet, VecDeque};
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use vdrecover_formats::adapt::{Trusted, Window};
use vdrecover_formats::format::{Clue, Holds, score};
use vdrecover_formats::link::{Disk, Link};
use vdrecover_formats::{Bytes, Content, Entry, Error, FORMATS, Finding, Format, Kind, Opened, Role, Tree, Trust};

/// Containers in containers: real nesting is 3 or 4 deep, a container that holds itself nests for ever.
const MAX_DEPTH: usize = 16;
/// Items of a case: a bound on what hostile nesting can make.
const MAX_ITEMS: usize = 200_000;
/// What the length of a raw disk is a multiple of.
const SECTOR: u64 = 512;
/// Times the length of all that is open that an image's data may be for the disk to be searched; compressed zeros reach 1,000.
const MOST_MAPPED: u64 = 1024;
/// No description of a disk is longer.
const TEXT: u64 = 64 << 10;
/// Entries of all stores together that are looked at.
const MAX_FILES: usize = 2_000_000;
/// Bytes of a path in a store; longer ones are not gone into. Each entry keeps its path, and folders in folders
/// would make the sum of them the square of their number.
const MAX_PATH: usize = 4096;
/// Stores of a case: each has 48 of the 64 bits of a node's number to itself.
pub(super) const MAX_STORES: usize = 50_000;

/// Opens everything that `options` names.
pub(super) fn run(case: &mut Case, options: &Options, progress: &Progress) -> Result<()> {
    if let Some(folder) = &options.keep {
        super::keep::prepare(folder, options.inputs.iter().chain(&options.with))?;
    }
    let mut work = Work { case, queue: VecDeque::new(), waiting: Vec::new(), opened: HashSet::new() };
    for path in &options.inputs {
        work.give(path, true);
    }
    for path in &options.with {
        work.give(path, false);
    }
    if work.case.items.is_empty() && work.case.stores.is_empty() {
        let [(path, error), ..] = work.case.failed.as_slice() else { bail!("no image was given") };
        bail!("{}: {error}", path.display());
    }
    work.settle();
    if options.sweep || options.deep {
        work.sweep(options, progress);
        work.settle();
    }
    work.find_loose();
    let Case { stores, loose, items, .. } = work.case;
    if stores.is_empty() && loose.is_empty() && items.iter().all(|item| item.format.name == "raw") {
        let Some(source) = case.inputs.first() else { bail!("no image was given") };
        bail!(
            "{}: is no image: nothing in its {} bytes was recognised, and a raw disk has whole sectors of {SECTOR}",
            source.path.display(),
            source.len
        );
    }
    Ok(())
}

struct Work<'a> {
    case: &'a mut Case,
    /// Items that have all that they want.
    queue: VecDeque<ItemId>,
    /// Items that want others.
    waiting: Vec<ItemId>,
    /// Disks that were looked into.
    opened: HashSet<ItemId>,
}

impl Work<'_> {
    fn give(&mut self, path: &Path, input: bool) {
        let given = if path.is_dir() { self.give_folder(path, input) } else { self.give_file(path, input) };
        if let Err(error) = given {
            self.case.failed.push((path.to_owned(), format!("{error:#}")));
        }
    }

    fn give_file(&mut self, path: &Path, input: bool) -> Result<()> {
        let source = self.case.sources.open(path)?;
        if source.kind == SourceKind::File
            && let Some((name, command)) = super::packed::kind(&*source.bytes)
        {
            bail!("is packed with {name}: unpack it first: {command} {}", path.display());
        }
        if input {
            if self.case.inputs.iter().any(|known| Arc::ptr_eq(known, &source)) {
                bail!("is given twice");
            }
            self.case.inputs.push(Arc::clone(&source));
        }
        self.add_source(source);
        Ok(())
    }

    fn give_folder(&mut self, path: &Path, input: bool) -> Result<()> {
        let folder = Folder::open(path, true, Arc::clone(&self.case.sources))?;
        let name = path.canonicalize().unwrap_or_else(|_| path.to_owned());
        let name = name
            .file_name()
            .map_or_else(|| b"folder".to_vec(), |name| std::os::unix::ffi::OsStrExt::as_bytes(name).to_vec());
        let before = self.case.items.len();
        let tree: Arc<dyn Tree> = Arc::new(folder);
        self.add_store(None, &name, &tree);
        if let Some(store) = self.case.stores.last_mut() {
            store.shown = input;
        }
        if self.case.items.len() == before {
            let files = self.case.stores.last().map_or(&[][..], |store| &store.files);
            let system: Vec<_> = files.iter().filter(|file| file.path.ends_with(b".sf")).collect();
            let system: Vec<String> = system.iter().map(|file| super::item::text(&file.path)).collect();
            if input {
                self.case.stores.pop();
            }
            if !system.is_empty() {
                bail!(
                    "has system files of a VMFS volume ({}), but neither .fdc.sf, which has all descriptors, nor .vh.sf, \
                     which has the header: without one of them nothing says what the others hold",
                    system.join(", ")
                );
            }
            bail!("is a folder in which no image was recognised; give an image, or the folder that holds it");
        }
        Ok(())
    }

    fn add_source(&mut self, source: Arc<Source>) -> Option<ItemId> {
        let label = source.path.display().to_string();
        let known = self
            .case
            .items
            .iter()
            .position(|item| matches!(&item.origin, Origin::Source(other) if Arc::ptr_eq(other, &source)));
        if known.is_some() {
            return known;
        }
        for finding in &source.findings {
            self.case.findings.push(Noted { about: label.clone(), finding: finding.clone() });
        }
        let bytes = source.bytes.clone();
        self.add(Origin::Source(source), bytes, 0)
    }

    /// Says, once for each bound, that there is more than is looked at.
    fn left_out(&mut self, origin: &Origin) {
        let (code, text) = if self.case.items.len() >= MAX_ITEMS {
            ("CASE-MANY", format!("only the first {MAX_ITEMS} images and volumes were looked at"))
        } else {
            ("CASE-DEEP", format!("images in images, more than {MAX_DEPTH} deep: what is further in was not looked at"))
        };
        if self.case.findings.iter().any(|noted| noted.finding.code == code) {
            return;
        }
        let about = match origin {
            Origin::Source(source) => source.path.display().to_string(),
            Origin::File { store, .. } => super::item::text(&self.case.stores[*store].name),
            Origin::Inside(of) | Origin::Volume { of, .. } => self.case.label(*of),
        };
        let finding = Finding::new(code, 0..0, Trust::Doubtful, text);
        self.case.findings.push(Noted { about, finding });
    }

    /// Recognises a layer and takes it in as an item.
    fn add(&mut self, origin: Origin, bytes: Bytes, depth: usize) -> Option<ItemId> {
        if self.case.items.len() >= MAX_ITEMS || depth > MAX_DEPTH {
            self.left_out(&origin);
            return None;
        }
        let id = self.case.items.len();
        let (mut bytes, (mut format, mut opened, mut failed)) = match &origin {
            // A file is a disk first; what is on it is looked at once it is known that no other image uses it.
            Origin::Source(_) | Origin::File { .. } => {
                let known = recognise(&bytes, self.case, |holds| holds == Holds::Disk);
                (bytes, known)
            }
            Origin::Inside(_) => {
                let known = recognise(&bytes, self.case, |_| true);
                (bytes, known)
            }
            Origin::Volume { of, .. } => {
                let known = recognise_volume(&bytes, self.case, *of);
                (bytes, known)
            }
        };
        if let Origin::Volume { of, number } = &origin
            && let Some((whole, finding)) = uncut(self.case, *of, *number, &opened)
        {
            let again = recognise_volume(&whole, self.case, *of);
            if again.0.name == format.name {
                (bytes, (format, opened, failed)) = (whole, again);
                failed.push(finding);
            }
        }
        // Nothing was recognised inside of something: that is no item.
        if let (true, Origin::Inside(of)) = (format.name == "raw", &origin) {
            for finding in failed {
                self.note(*of, finding);
            }
            return None;
        }
        let joined = opened.wants.is_empty();
        let item = Item {
            origin,
            bytes,
            format,
            filled: Vec::new(),
            opened,
            state: State::Pending,
            used_by: None,
            children: Vec::new(),
            depth,
        };
        self.case.items.push(item);
        let label = self.case.label(id);
        let own = self.case.items[id].opened.findings.clone();
        for finding in failed.into_iter().chain(own) {
            self.case.findings.push(Noted { about: label.clone(), finding });
        }
        if joined {
            self.queue.push_back(id);
        } else {
            self.waiting.push(id);
        }
        Some(id)
    }

    /// Joins and opens until nothing is left to do.
    fn settle(&mut self) {
        loop {
            while let Some(id) = self.queue.pop_front() {
                self.join(id, &[]);
            }
            self.take_extents();
            if self.join_ready() || self.join_one_anyway() {
                continue;
            }
            if !self.look_inside() {
                return;
            }
        }
    }

    /// Meets the wants for bytes: whatever is an extent of another is no image of its own.
    fn take_extents(&mut self) {
        for id in self.waiting.clone() {
            if !self.case.items[id].filled.is_empty() {
                continue;
            }
            let wants = self.case.items[id].opened.wants.clone();
            let mut filled = Vec::new();
            for want in &wants {
                let found = match want.role {
                    Role::Extent | Role::DataFile => {
                        let (found, named) = wants::extent(self.case, id, want);
                        if let Some(used) = named.and_then(|named| wants::item_at(self.case, &named))
                            && used != id
                            && found.bytes.is_some()
                        {
                            self.take(used, id, want.role);
                        }
                        found
                    }
                    Role::Parent | Role::Member => Filled::nothing("not looked for yet"),
                };
                filled.push(found);
            }
            self.case.items[id].filled = filled;
        }
        // What lies inside of a part of another is a part of it too.
        for id in self.waiting.clone() {
            if let Origin::Inside(of) = self.case.items[id].origin
                && let Some(user) = self.case.items[of].used_by.filter(|user| *user != id)
            {
                self.case.items[id].used_by = Some(user);
                let (about, own) = (self.case.label(id), &self.case.items[id].opened.findings);
                self.case.findings.retain(|noted| noted.about != about || !own.contains(&noted.finding));
            }
        }
        let items = &self.case.items;
        self.waiting.retain(|id| items[*id].used_by.is_none());
    }

    /// `used` is a part of `id` from now on, unless `id` is a part of it: two that name each other would both vanish.
    fn take(&mut self, used: ItemId, id: ItemId, role: Role) {
        let users = std::iter::successors(Some(id), |user| self.case.items[*user].used_by);
        // Every step so far was checked, so that there is no loop that the way up could not leave.
        if users.into_iter().any(|user| user == used) {
            let text = format!("{}: it names an image that it is itself a part of", role.word());
            self.note(id, Finding::new("WANT-LOOP", 0..0, Trust::Doubtful, text));
        } else {
            self.case.items[used].used_by = Some(id);
        }
    }

    /// Joins each waiting item whose parents and members are all there. Whether one was, or a parent was taken in
    /// that may now wait itself.
    fn join_ready(&mut self) -> bool {
        let known = self.case.items.len();
        let mut any = false;
        for id in self.waiting.clone() {
            if self.case.items[id].used_by.is_none() && self.meet(id) {
                any = true;
            }
        }
        any || self.case.items.len() > known
    }

    /// Nothing is complete: joins one item with what it has. Members first, since others lie in them.
    fn join_one_anyway(&mut self) -> bool {
        let first = |id: &&ItemId| {
            let set = self.case.items[**id].opened.link.set.as_ref();
            set.map(|member| (member.first, Reverse(member.age())))
        };
        let set = self.waiting.iter().filter(|id| first(id).is_some()).min_by_key(first);
        let Some(id) = set.or(self.waiting.first()).copied() else { return false };
        if self.case.items[id].opened.link.set.is_some() {
            self.meet_members(id);
        }
        let looped = self.case.items[id].opened.wants.iter().any(|want| {
            want.role == Role::Parent
                && wants::parent(self.case, id, want)
                    .is_ok_and(|found| matches!(self.case.items[found.item].state, State::Pending))
        });
        if looped {
            let text = "its chain of parents leads back to itself; what they would have is lost";
            self.note(id, Finding::new("CHAIN-LOOP", 0..0, Trust::Doubtful, text));
        }
        self.finish(id);
        true
    }

    /// Joins an item if its parents and members are there.
    fn meet(&mut self, id: ItemId) -> bool {
        let wants = self.case.items[id].opened.wants.clone();
        if wants.iter().any(|want| want.role == Role::Member) {
            // The first of a set speaks for it: its structures name the volume.
            let first = |id: ItemId| {
                let set = self.case.items[id].opened.link.set.as_ref();
                set.map(|member| (member.first, Reverse(member.age()), id))
            };
            let set = |id: ItemId| self.case.items[id].opened.link.set.as_ref().map(|member| &member.set);
            if self.waiting.iter().any(|other| set(*other) == set(id) && first(*other) < first(id)) {
                return false;
            }
            // An extent that was not found may still come out of an item that waits itself.
            let complete = wants::members(self.case, id).iter().all(|filled| filled.bytes.is_some());
            if !complete {
                return false;
            }
            self.meet_members(id);
        }
        for (at, want) in wants.iter().enumerate().filter(|(_, want)| want.role == Role::Parent) {
            self.take_parent_beside(id, want);
            match wants::parent(self.case, id, want) {
                Ok(found) => match self.case.items[found.item].state {
                    State::Pending => return false,
                    State::Joined(_) => {
                        let bytes = self.case.items[found.item].disk();
                        self.case.items[id].filled[at] = Filled::with(bytes, found.item, found.trust, found.why);
                    }
                    State::Failed(_) => {
                        self.case.items[id].filled[at] = Filled::nothing("its parent could not be opened");
                    }
                },
                // With a set still waiting, the parent may lie in it.
                Err(_) if self.waiting.iter().any(|id| self.case.items[*id].opened.link.set.is_some()) => return false,
                Err(why) => self.case.items[id].filled[at] = Filled::nothing(why),
            }
        }
        self.finish(id);
        true
    }

    /// A parent that lies beside its child on the host was not given, but is named: it is opened, and listed.
    fn take_parent_beside(&mut self, id: ItemId, want: &vdrecover_formats::Want) {
        let Some(hint) = want.hint.as_deref() else { return };
        let Some(named) = wants::by_name(self.case, &self.case.items[id], hint) else { return };
        if named.store.is_some() || wants::item_at(self.case, &named).is_some() {
            return;
        }
        let Ok(bytes) = named.tree.open(named.entry.id) else { return };
        let source = self.case.sources.all().into_iter().find(|source| Arc::ptr_eq(&source.bytes, &bytes));
        if let Some(source) = source {
            self.add_source(source);
            while let Some(id) = self.queue.pop_front() {
                self.join(id, &[]);
            }
            self.take_extents();
        }
    }

    fn meet_members(&mut self, id: ItemId) {
        let members = wants::members(self.case, id);
        let chosen: Vec<ItemId> = members.iter().filter_map(|filled| filled.item).chain([id]).collect();
        for finding in wants::copies(self.case, &chosen, id) {
            self.note(id, finding);
        }
        self.believe(id, wants::among_copies(self.case, id, id));
        let mut members = members.into_iter();
        let roles: Vec<Role> = self.case.items[id].opened.wants.iter().map(|want| want.role).collect();
        for (at, _) in roles.iter().enumerate().filter(|(_, role)| **role == Role::Member) {
            let Some(filled) = members.next() else { break };
            if let Some(other) = filled.item {
                self.case.items[other].used_by = Some(id);
            }
            self.case.items[id].filled[at] = filled;
        }
        let set = |case: &Case, id: ItemId| case.items[id].opened.link.set.clone();
        let taken: Vec<_> = chosen.iter().filter_map(|chosen| set(self.case, *chosen)).collect();
        for other in (0..self.case.items.len()).filter(|other| *other != id) {
            let copy =
                set(self.case, other).is_some_and(|own| taken.iter().any(|a| a.set == own.set && a.id == own.id));
            if copy && self.case.items[other].used_by.is_none() {
                self.case.items[other].used_by = Some(id);
            }
        }
    }

    /// Believes an item at best as far as the choice of its image was sure.
    fn believe(&mut self, id: ItemId, trust: Trust) {
        let item = &mut self.case.items[id];
        if trust == Trust::Sound {
            return;
        }
        let bytes: Bytes = Arc::new(Trusted::new(item.bytes.clone(), trust));
        if let Ok(opened) = (item.format.open)(&bytes, &self.case.pool.share()) {
            (item.bytes, item.opened) = (bytes, opened);
        }
    }

    fn finish(&mut self, id: ItemId) {
        let items = &self.case.items;
        self.waiting.retain(|waiting| *waiting != id && items[*waiting].used_by.is_none());
        let filled = self.case.items[id].filled.clone();
        let wants = self.case.items[id].opened.wants.clone();
        for parent in filled.iter().filter_map(|filled| filled.item) {
            self.case.items[parent].children.push(id);
        }
        let layers: Vec<Option<Bytes>> = filled
            .iter()
            .map(|filled| {
                let bytes = filled.bytes.clone()?;
                let sure = filled.trust == Trust::Sound;
                Some(if sure { bytes } else { Arc::new(Trusted::new(bytes, filled.trust)) })
            })
            .collect();
        self.join(id, &layers);
        // Without the others of its set it is nothing, and said so.
        let alone = matches!(self.case.items[id].state, State::Failed(Error::Absent { .. }));
        for (want, filled) in wants.iter().zip(&filled) {
            let (code, trust) = match (filled.bytes.is_some(), filled.trust) {
                (false, _) if alone => continue,
                (false, _) => ("WANT-ABSENT", Trust::Sound),
                // How copies of a member were chosen between is told of the copies.
                (true, trust) if trust == Trust::Sound || want.role == Role::Member => continue,
                (true, trust) => ("WANT-CHOICE", trust),
            };
            let text = format!("{}: {}", want.role.word(), filled.why);
            self.note(id, Finding::new(code, 0..0, trust, text));
        }
    }

    fn join(&mut self, id: ItemId, layers: &[Option<Bytes>]) {
        match (self.case.items[id].opened.join)(layers) {
            Ok(content) => {
                let depth = self.case.items[id].depth;
                self.case.items[id].state = State::Joined(content.clone());
                match content {
                    Content::Tree(_) if self.case.stores.len() >= MAX_STORES => {
                        let text = format!("only the first {MAX_STORES} datastores were looked at");
                        self.note(id, Finding::new("CASE-STORES", 0..0, Trust::Doubtful, text));
                    }
                    Content::Tree(tree) => {
                        let link = &self.case.items[id].opened.link;
                        let name = link.name.clone().filter(|name| !name.is_empty());
                        self.add_store(Some(id), name.as_deref().unwrap_or(b"datastore"), &tree);
                    }
                    Content::Volumes(volumes) => {
                        for (number, volume) in volumes.into_iter().enumerate() {
                            self.add(Origin::Volume { of: id, number }, volume.bytes, depth + 1);
                        }
                    }
                    Content::Disks(_) => {}
                }
            }
            Err(error) => {
                let code = if matches!(error, Error::Absent { .. }) { "SET-ABSENT" } else { "JOIN-FAILED" };
                let finding = Finding::new(code, 0..0, Trust::Doubtful, error.to_string());
                self.note(id, finding);
                self.case.items[id].state = State::Failed(error);
            }
        }
    }

    /// Looks into each disk that is nobody's parent or part. Whether one was looked into.
    fn look_inside(&mut self) -> bool {
        let mut any = false;
        for id in 0..self.case.items.len() {
            let item = &self.case.items[id];
            let is_disk = matches!(item.content(), Some(Content::Disks(_)));
            // What a volume holds was asked when it was taken in.
            let asked = item.format.name == "raw" && matches!(item.origin, Origin::Volume { .. });
            if is_disk && !asked && item.used_by.is_none() && !is_base(self.case, id) && self.opened.insert(id) {
                let (disk, depth) = (item.disk(), item.depth + 1);
                self.add(Origin::Inside(id), disk, depth);
                any = true;
            }
        }
        any
    }

    /// How many entries the next store may have. Many stores can be made of the same few bytes, so that the bound is
    /// one for all of them.
    fn files_left(&self) -> usize {
        MAX_FILES.saturating_sub(self.case.stores.iter().map(|store| store.files.len()).sum())
    }

    fn add_store(&mut self, item: Option<ItemId>, name: &[u8], tree: &Arc<dyn Tree>) {
        let store = self.case.stores.len();
        let (files, findings) = files(&**tree, self.files_left());
        let about = item.map_or_else(|| super::item::text(name), |id| self.case.label(id));
        for finding in findings {
            self.case.findings.push(Noted { about: about.clone(), finding });
        }
        let depth = item.map_or(0, |id| self.case.items[id].depth + 1);
        let name = unique(super::names::safe(name), &self.case.stores);
        let images: Vec<StoreFile> = files.iter().filter(|file| is_image(file, item.is_none())).cloned().collect();
        self.case.stores.push(Store { item, name, tree: Arc::clone(tree), files, shown: true });
        for file in images {
            let bytes = match tree.open(file.entry.id) {
                Ok(bytes) => bytes,
                // What is empty is no image, whatever its name.
                Err(_) if tree.node(file.entry.id).is_ok_and(|node| node.len == 0) => continue,
                // Nor is what another file of the folder speaks for.
                Err(Error::NotFile) => continue,
                Err(error) => {
                    let text = format!("{}: was not looked into: {error}", super::item::text(&file.path));
                    let finding = Finding::new("FILE-OPEN", 0..0, error.doubt(), text);
                    self.case.findings.push(Noted { about: about.clone(), finding });
                    continue;
                }
            };
            let certain = is_disk_name(&file.entry.name);
            // A file of any name is an image if it says so; one that says nothing must have a disk's name.
            if !certain && best(&bytes).0 <= score::WEAK {
                if is_text_name(&file.entry.name) && bytes.len() <= TEXT {
                    let gone = health::of(&*bytes, health::LISTING).reasons.into_iter().find(|why| why.is_elsewhere());
                    let none = "is named as a disk and is none: its content is damaged, or something else";
                    let (trust, text) = gone.map_or_else(
                        || (Trust::Doubtful, none.to_owned()),
                        |why| (Trust::Sound, format!("is named as a disk, and can't be read: {why}")),
                    );
                    let place = [b"store/", &self.case.stores[store].name[..], b"/", &file.path].concat();
                    let about = if item.is_some() { format!("{about} > ") } else { String::new() };
                    let about = about + &super::item::text(&place);
                    let finding = Finding::new("DISK-UNKNOWN", 0..bytes.len(), trust, text);
                    self.case.findings.push(Noted { about, finding });
                }
                self.case.sources.close_last(&bytes);
                continue;
            }
            let origin = Origin::File { store, dir: file.dir, path: file.path, entry: file.entry };
            self.add(origin, bytes, depth);
        }
    }

    /// Searches inputs in which nothing was recognised from end to end; the others where remains of another format
    /// usually lie, or on request from end to end too.
    fn sweep(&mut self, options: &Options, progress: &Progress) {
        for id in 0..self.case.items.len() {
            let item = &self.case.items[id];
            let Origin::Source(source) = &item.origin else { continue };
            let source = Arc::clone(source);
            let disk = item.disk();
            let plain = matches!(item.content(), Some(Content::Disks(_)));
            if !plain || item.used_by.is_some() || !self.case.inputs.iter().any(|input| Arc::ptr_eq(input, &source)) {
                continue;
            }
            let owner = self.case.items.iter().position(|other| matches!(other.origin, Origin::Inside(of) if of == id));
            if let (Some(owner), false) = (owner, options.deep) {
                self.sweep_near(id, owner, &disk, progress);
                continue;
            }
            // A map may show the same few bytes over and over: no search is worth what such an image says of itself.
            let mapped = health::of(&*disk, health::LISTING).data;
            // Its extents and parents are sources too.
            let given = self.case.sources.all().iter().fold(0, |sum: u64, source| sum.saturating_add(source.len));
            if mapped > given.saturating_mul(MOST_MAPPED) {
                let text = format!(
                    "maps {mapped} bytes or more out of files of {given}: not searched for what may be on the disk"
                );
                self.note(id, Finding::new("SWEEP-BOUND", 0..0, Trust::Doubtful, text));
                continue;
            }
            let swept = super::keep::sweep(&disk, &source, options.keep.as_deref(), progress);
            for finding in swept.findings {
                self.note(id, finding);
            }
            if swept.clues.is_empty() && owner.is_none() {
                let text = "no image format, partition table or datastore was recognised; it is taken for a raw disk";
                self.note(id, Finding::new("RAW-ONLY", 0..0, Trust::Sound, text));
            }
            // What is found on a disk is more than what the disk may have been in.
            let inside = swept.clues.iter().any(|(format, _)| format.holds != Holds::Disk);
            for (format, clues) in swept.clues.iter().filter(|(format, _)| !inside || format.holds != Holds::Disk) {
                self.build(id, owner, &disk, format, clues);
            }
        }
    }

    /// Looks for what is left of another format on a disk that one owns by now, where it usually lies.
    fn sweep_near(&mut self, id: ItemId, owner: ItemId, disk: &Bytes, progress: &Progress) {
        for format in FORMATS {
            let Some(near) = format.sweep.map(|sweep| sweep.near).filter(|near| !near.is_empty()) else { continue };
            let ranges = RangeSet::build(near.to_vec());
            let window = near.iter().map(|range| range.end - range.start).max().unwrap_or(SECTOR);
            let sweep = SweepOptions { ranges: Some(ranges), window, margin: SECTOR, ..SweepOptions::default() };
            for (_, clues) in crate::sweep::sweep(&**disk, &[*format], &sweep, progress).clues {
                if !clues.is_empty() {
                    self.build(id, Some(owner), disk, format, &clues);
                }
            }
        }
    }

    /// Opens what a search found, beside what `owner` has.
    fn build(&mut self, id: ItemId, owner: Option<ItemId>, disk: &Bytes, format: &'static Format, clues: &[Clue]) {
        let Some(build) = format.sweep.map(|sweep| sweep.build) else { return };
        match (build(disk, &self.case.pool.share(), clues), owner) {
            (Ok(opened), None) if format.holds == Holds::Disk => self.replace_swept(id, format, opened),
            (Ok(opened), None) => {
                let text = format!("no partition table is at its start; a search found a {}", format.about);
                self.note(id, Finding::new("SWEEP-FOUND", 0..0, Trust::Inferred, text));
                self.add_swept(id, disk.clone(), format, opened);
            }
            (Ok(opened), Some(owner)) => self.add_remains(id, owner, disk, format, &opened),
            // Remains of a format that can't be put together are no damage of the one that owns the disk.
            (Err(_), Some(_)) => {}
            // Pieces of images lie about on many disks.
            (Err(_), None) if format.holds == Holds::Disk => {}
            (Err(error), None) => {
                self.note(id, Finding::new("SWEEP-BUILD", 0..0, Trust::Doubtful, error.to_string()));
            }
        }
    }

    /// Takes in what is left of a format on a disk that another one owns by now, but for what that one has itself.
    fn add_remains(&mut self, id: ItemId, owner: ItemId, disk: &Bytes, format: &'static Format, opened: &Opened) {
        let Ok(Content::Volumes(mut volumes)) = opened.join_alone() else { return };
        let known = self.known(owner, format);
        let memo = self.case.pool.share();
        volumes.retain(|volume| {
            // A stray header is no volume.
            !known.contains(&volume.range.start) && (format.open)(&volume.bytes, &memo).is_ok()
        });
        if volumes.is_empty() {
            return;
        }
        let (about, link) = (self.case.items[owner].format.about, opened.link.clone());
        for volume in &mut volumes {
            // Nothing tells what the new owner wrote over it.
            volume.bytes = Arc::new(Trusted::new(volume.bytes.clone(), Trust::Inferred));
            let text = format!(
                "another format owns the device now, {about}; under it lies what is left of {}, and nothing tells which \
                 parts were overwritten",
                volume.about
            );
            self.note(id, Finding::new("SWEEP-UNDER", volume.range.clone(), Trust::Inferred, text));
        }
        let findings = opened.findings.clone();
        self.add_swept(id, disk.clone(), format, Opened { findings, ..Opened::alone(link, Content::Volumes(volumes)) });
    }

    /// Where the volumes of a format start that `owner` is or has.
    fn known(&self, owner: ItemId, format: &Format) -> Vec<u64> {
        // What only lacks others of its set is known for what it is.
        let known = |item: &Item| !matches!(item.state, State::Failed(_)) || item.opened.link.set.is_some();
        let same = |item: &Item| item.format.name == format.name && known(item);
        let own = same(&self.case.items[owner]).then_some(0);
        let volumes = match self.case.items[owner].content() {
            Some(Content::Volumes(volumes)) => volumes.as_slice(),
            _ => &[],
        };
        let parts = self.case.items.iter().filter_map(|item| match &item.origin {
            Origin::Volume { of, number } if *of == owner && same(item) => volumes.get(*number),
            _ => None,
        });
        own.into_iter().chain(parts.map(|volume| volume.range.start)).collect()
    }

    /// An image whose start is gone: the input is what the search says, and no raw disk.
    fn replace_swept(&mut self, id: ItemId, format: &'static Format, opened: Opened) {
        let text = format!("its start does not say what it is; a search found {}", format.about);
        self.note(id, Finding::new("SWEEP-FOUND", 0..0, Trust::Inferred, text));
        for finding in opened.findings.clone() {
            self.note(id, finding);
        }
        let queue = opened.wants.is_empty();
        let item = &mut self.case.items[id];
        (item.format, item.opened, item.state) = (format, opened, State::Pending);
        self.opened.remove(&id);
        if queue {
            self.queue.push_back(id);
        } else {
            self.waiting.push(id);
        }
    }

    fn add_swept(&mut self, of: ItemId, bytes: Bytes, format: &'static Format, opened: Opened) {
        let id = self.case.items.len();
        for finding in opened.findings.clone() {
            self.note(of, finding);
        }
        self.case.items.push(Item {
            origin: Origin::Inside(of),
            bytes,
            format,
            opened,
            filled: Vec::new(),
            state: State::Pending,
            used_by: None,
            children: Vec::new(),
            depth: self.case.items[of].depth + 1,
        });
        self.queue.push_back(id);
    }

    fn note(&mut self, id: ItemId, finding: Finding) {
        let about = self.case.label(id);
        self.case.findings.push(Noted { about, finding });
    }

    /// Disks that no store, set or other disk uses.
    fn find_loose(&mut self) {
        let holds_store = |id: ItemId| {
            self.case.stores.iter().filter_map(|store| store.item).any(|mut item| {
                loop {
                    if item == id {
                        return true;
                    }
                    match &self.case.items[item].origin {
                        Origin::Inside(of) | Origin::Volume { of, .. } => item = *of,
                        Origin::Source(_) | Origin::File { .. } => return false,
                    }
                }
            })
        };
        let used_in_set = |id: ItemId| {
            self.case
                .items
                .iter()
                .enumerate()
                .any(|(other, item)| item.used_by.is_some() && inside_of(self.case, other, id))
        };
        let loose = (0..self.case.items.len()).filter(|id| {
            let item = &self.case.items[*id];
            // What was opened to look for parents and extents in is nothing that was asked for.
            let own = match &item.origin {
                Origin::Source(source) => self.case.inputs.iter().any(|input| Arc::ptr_eq(input, source)),
                Origin::File { store, .. } => self.case.stores[*store].shown,
                Origin::Inside(_) | Origin::Volume { .. } => false,
            };
            let disk = item.format.name != "raw" || item.bytes.len().is_multiple_of(SECTOR);
            own && disk && item.used_by.is_none() && !is_base(self.case, *id) && !holds_store(*id) && !used_in_set(*id)
        });
        self.case.loose = loose.collect();
    }
}

/// Whether a disk is the state before another one, which then shows what it has. A child that contradicts its
/// parent, or did not open, does not stand for it.
fn is_base(case: &Case, id: ItemId) -> bool {
    case.items[id].children.iter().any(|child| {
        let child = &case.items[*child];
        let trusted = child.filled.iter().any(|filled| filled.item == Some(id) && filled.trust < Trust::Doubtful);
        trusted && !matches!(child.state, State::Failed(_))
    })
}

/// Whether `id` lies inside `container`, by way of volumes and disks.
fn inside_of(case: &Case, id: ItemId, container: ItemId) -> bool {
    let mut next = id;
    loop {
        match &case.items[next].origin {
            Origin::Inside(of) | Origin::Volume { of, .. } => next = *of,
            Origin::Source(_) | Origin::File { .. } => return false,
        }
        if next == container {
            return true;
        }
    }
}

/// The best format of a layer and its score.
fn best(bytes: &Bytes) -> (u8, &'static Format) {
    ranked(bytes).first().map_or((0, FORMATS[0]), |(score, format)| (*score, format))
}

fn ranked(bytes: &Bytes) -> Vec<(u8, &'static Format)> {
    let mut ranked: Vec<_> = FORMATS.iter().map(|format| ((format.probe)(&**bytes), *format)).collect();
    ranked.retain(|(score, _)| *score > score::NONE);
    // Stable: between equal scores the table's order decides.
    ranked.sort_by_key(|(score, _)| std::cmp::Reverse(*score));
    ranked
}

/// What a layer is: its format, what that says of it, and why others that it looked like are not it.
type Known = (&'static Format, Opened, Vec<Finding>);

/// Opens a volume of item `of`. What a search found by a format's structures is of that format, whatever another one
/// has at its start by now.
fn recognise_volume(bytes: &Bytes, case: &Case, of: ItemId) -> Known {
    let by = case.items[of].format;
    if by.holds != Holds::Volumes {
        let known = recognise_as(bytes, case, |format| format.name == by.name);
        if known.0.name == by.name {
            return known;
        }
    }
    recognise(bytes, case, |_| true)
}

/// A volume as long as its own structures say, if the table that has it gives it less than that and less than the disk
/// has: a newer table, whose partition starts where the old one did.
fn uncut(case: &Case, of: ItemId, number: usize, opened: &Opened) -> Option<(Bytes, Finding)> {
    let table = &case.items[of];
    let Some(Content::Volumes(volumes)) = table.content().filter(|_| table.format.holds == Holds::Volumes) else {
        return None;
    };
    let range = volumes.get(number)?.range.clone();
    let (have, says) = (range.end.checked_sub(range.start)?, opened.link.device?);
    let len = says.min(table.bytes.len().checked_sub(range.start)?);
    if len <= have {
        return None;
    }
    let whole =
        Window::of_device(table.bytes.clone(), range.start, len).named("partition, as long as the volume on it");
    let text = format!(
        "the partition has {have} bytes, the volume on it is made for {says}: the table is newer than the volume and cuts it. It is read as far as the disk goes; what the new partitions wrote over it, nothing tells"
    );
    let finding = Finding::new("PART-CUT", range, Trust::Inferred, text);
    Some((Arc::new(Trusted::new(Arc::new(whole), Trust::Inferred)), finding))
}

/// Opens a layer with the best format that can. The ones that could not leave a finding.
pub(super) fn recognise(bytes: &Bytes, case: &Case, may: impl Fn(Holds) -> bool) -> Known {
    recognise_as(bytes, case, |format| may(format.holds))
}

fn recognise_as(bytes: &Bytes, case: &Case, may: impl Fn(&Format) -> bool) -> Known {
    let mut failed = Vec::new();
    for (score, format) in ranked(bytes).into_iter().filter(|(_, format)| may(format)) {
        match (format.open)(bytes, &case.pool.share()) {
            // What has the mark of a format that can't be opened is no sound disk, whatever else it is.
            Ok(_) if score <= score::FALLBACK && !failed.is_empty() => break,
            Ok(opened) => return (format, opened, failed),
            Err(error) if score >= score::MAGIC => {
                let text = format!("looks like {}, but {error}", format.about);
                failed.push(Finding::new("FORMAT-OPEN", 0..0, error.doubt(), text));
            }
            Err(_) => {}
        }
    }
    let raw = &vdrecover_formats::disk::raw::FORMAT;
    let link = Link { len: bytes.len(), ..Default::default() };
    let bytes = Arc::new(Trusted::new(bytes.clone(), Trust::Doubtful));
    let disk = Disk { name: Vec::new(), bytes };
    (raw, Opened::alone(link, Content::Disks(vec![disk])), failed)
}

/// All entries of a tree, each folder once.
fn files(tree: &dyn Tree, max: usize) -> (Vec<StoreFile>, Vec<Finding>) {
    let (mut files, mut findings) = (Vec::new(), Vec::new());
    let mut seen = HashSet::from([tree.root()]);
    let mut todo = VecDeque::from([(tree.root(), Vec::new())]);
    while let Some((dir, path)) = todo.pop_front() {
        let listed = tree.list(dir, 0, &mut |entry: Result<Entry, Finding>| {
            match entry {
                Ok(entry) => {
                    let path = paths::join(&path, &entry.name);
                    if entry.kind == Kind::Dir && path.len() > MAX_PATH {
                        let text = "folders in folders, too deep: what is in them was not looked at";
                        findings.push(Finding::new("TREE-DEEP", 0..0, Trust::Doubtful, text));
                    } else if entry.kind == Kind::Dir && seen.insert(entry.id) {
                        todo.push_back((entry.id, path.clone()));
                    }
                    files.push(StoreFile { path, dir, entry });
                }
                Err(finding) => findings.push(finding),
            }
            if files.len() < max { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        });
        if let Err(error) = listed {
            let name = if path.is_empty() { "the root".to_owned() } else { super::item::text(&path) };
            let text = format!("folder {name}: {error}");
            findings.push(Finding::new("TREE-LIST", 0..0, error.doubt(), text));
        }
        if files.len() >= max {
            let text = format!("only {max} of its entries were looked at: a case has at most {MAX_FILES}");
            findings.push(Finding::new("TREE-MANY", 0..0, Trust::Inferred, text));
            break;
        }
    }
    (files, findings)
}

/// Whether a name is that of a disk's description.
fn is_text_name(name: &[u8]) -> bool {
    let name = name.to_ascii_lowercase();
    let part = [&b"-rdm.vmdk"[..], b"-rdmp.vmdk"].iter().any(|suffix| name.ends_with(suffix));
    name.ends_with(b".vmdk") && !part
}

/// Whether a name is a virtual disk's, whatever the content says.
fn is_disk_name(name: &[u8]) -> bool {
    let name = name.to_ascii_lowercase();
    name.ends_with(b"-flat.vmdk") || name.ends_with(b".img") || name.ends_with(b".raw") || name.ends_with(b".dd")
}

/// Whether a file of a store is worth a look. In a folder of the host, every file is.
fn is_image(file: &StoreFile, host: bool) -> bool {
    const SUFFIXES: [&[u8]; 10] =
        [b".vmdk", b".qcow2", b".qcow", b".img", b".raw", b".dd", b".vhd", b".vhdx", b".vdi", b".ova"];
    let name = file.entry.name.to_ascii_lowercase();
    file.entry.kind == Kind::File && (host || SUFFIXES.iter().any(|suffix| name.ends_with(suffix)))
}

/// A name that no other store has.
fn unique(name: Vec<u8>, stores: &[Store]) -> Vec<u8> {
    let taken = |name: &[u8]| stores.iter().any(|store| store.name == name);
    if !taken(&name) {
        return name;
    }
    // The number is the place in the order of what was given, equal in every run.
    let numbered = (2..=stores.len() + 2).map(|n| [name.as_slice(), format!("~{n}").as_bytes()].concat());
    numbered.into_iter().find(|name| !taken(name)).unwrap_or(name)
}

/// What a failed join says.
#[must_use]
pub(super) fn error_of(state: &State) -> Option<&Error> {
    match state {
        State::Failed(error) => Some(error),
        State::Pending | State::Joined(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vdrecover_formats::tree::Lister;
    use vdrecover_formats::{Node, NodeId};

    /// A folder in a folder, for ever.
    #[derive(Debug)]
    struct Well;

    impl Tree for Well {
        fn root(&self) -> NodeId {
            NodeId(0)
        }

        fn node(&self, _: NodeId) -> Result<Node, Error> {
            Ok(Node::plain(Kind::Dir, 0, 0o555))
        }

        fn list(&self, dir: NodeId, _: u64, sink: Lister<'_>) -> Result<(), Error> {
            let state = vdrecover_formats::State::Live;
            let _ = sink(Ok(Entry { name: vec![b'x'; 100], id: NodeId(dir.0 + 1), kind: Kind::Dir, state, next: 1 }));
            Ok(())
        }

        fn lookup(&self, _: NodeId, _: &[u8]) -> Result<Option<Entry>, Error> {
            Ok(None)
        }

        fn open(&self, _: NodeId) -> Result<Bytes, Error> {
            Err(Error::NotFile)
        }
    }

    #[test]
    fn folders_in_folders_end() {
        let (found, findings) = files(&Well, MAX_FILES);
        assert_eq!(found.len(), MAX_PATH / 101 + 1);
        assert_eq!(findings.iter().map(|finding| finding.code).collect::<Vec<_>>(), ["TREE-DEEP"]);
        let (found, findings) = files(&Well, 10);
        assert_eq!((found.len(), findings[0].code), (10, "TREE-MANY"));
    }
}
