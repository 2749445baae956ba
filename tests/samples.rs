//! The generator's sample datastores, read: every name, fact and byte, where each block lies, and what was deleted.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    missing_docs,
    reason = "tests"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Instant;
use vdrecover_formats::laws::{Effort, check_laws};
use vdrecover_formats::{
    Bytes, Content, Entry, Fault, Find, Finding, Kind, Layer, Named, NodeId, Note, Place, Pool, Run, State, Tree,
    Trust, Why, read_vec, vmfs, walk,
};
use vdrecover_testdata::Device;
use vdrecover_testdata::samples::{SAMPLES, Sample};
use vdrecover_testdata::vmfs as made;
use vdrecover_testdata::vmfs::{
    Deleted, Deletion, Expected, Fate, FileType, Layout, Located, Remains, Version, Vmfs, VmfsSpec,
};

/// A generated device; no file is as sparse, and none needs to hold 17 TiB.
struct Disk(Device);

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

/// A datastore that was read, and what the generator says of it.
struct Store {
    name: &'static str,
    devices: Vec<Bytes>,
    tree: Arc<dyn Tree>,
    expected: Vec<Expected>,
    deleted: Vec<(Deleted, Remains)>,
    /// Where files lie, by path, with the device and the position there of each block.
    located: BTreeMap<String, (Located, Vec<(usize, u64)>)>,
}

fn open(devices: &[Bytes]) -> Arc<dyn Tree> {
    assert_eq!((vmfs::FORMAT.probe)(&*devices[0]), vdrecover_formats::format::score::PROVEN);
    let opened = (vmfs::FORMAT.open)(&devices[0], &Pool::new(64 << 20).share()).unwrap();
    assert_eq!(opened.findings, []);
    let others: Vec<Option<Bytes>> = devices[1..].iter().cloned().map(Some).collect();
    assert_eq!(opened.wants.len(), others.len());
    let Ok(Content::Tree(tree)) = (opened.join)(&others) else { panic!("no datastore") };
    tree
}

impl Store {
    fn read(name: &'static str, mut made: Vmfs) -> Self {
        let expected = made.expected();
        let deleted = made.deleted().to_vec();
        let deleted = deleted.into_iter().map(|gone| (gone.clone(), made.remains(&gone))).collect();
        let mut located = BTreeMap::new();
        // Asking for the place of a name writes its folder out: too slow for each of thousands.
        let step = expected.len().div_ceil(400);
        for Expected { path, .. } in expected.iter().step_by(step) {
            let at = made.locate(path);
            let places = at.blocks.iter().map(|block| made.device_position(block.lv)).collect();
            located.insert(path.clone(), (at, places));
        }
        let devices: Vec<Bytes> = made.finish().into_iter().map(|device| -> Bytes { Arc::new(Disk(device)) }).collect();
        let tree = open(&devices);
        Self { name, devices, tree, expected, deleted, located }
    }

    fn list(&self, dir: NodeId) -> Vec<Entry> {
        let mut entries = Vec::new();
        let take = &mut |entry: Result<Entry, _>| {
            entries.push(entry.unwrap());
            ControlFlow::Continue(())
        };
        self.tree.list(dir, 0, take).unwrap();
        entries
    }

    /// Every entry by its path, system files left out.
    fn all(&self) -> BTreeMap<String, (NodeId, Entry)> {
        let mut found = BTreeMap::new();
        let mut open = vec![(String::new(), self.tree.root())];
        while let Some((path, dir)) = open.pop() {
            for entry in self.list(dir) {
                let name = String::from_utf8(entry.name.clone()).unwrap();
                if path.is_empty() && name.starts_with('.') {
                    continue;
                }
                let path = format!("{path}{name}");
                if entry.kind == Kind::Dir {
                    open.push((format!("{path}/"), entry.id));
                }
                assert!(found.insert(path.clone(), (dir, entry)).is_none(), "{path} is listed twice");
            }
        }
        found
    }

    fn check(&self) {
        let all = self.all();
        let want: BTreeSet<&str> = self.expected.iter().map(|file| file.path.as_str()).collect();
        let have: BTreeSet<&str> = all.keys().map(String::as_str).collect();
        assert_eq!(have, want, "{}", self.name);
        for file in &self.expected {
            let (dir, entry) = &all[&file.path];
            self.check_file(file, *dir, entry);
        }
        self.check_audit();
    }

    fn check_file(&self, file: &Expected, dir: NodeId, entry: &Entry) {
        let about = format!("{}: {}", self.name, file.path);
        let found = self.tree.lookup(dir, &entry.name).unwrap().unwrap();
        assert_eq!((&found.name, found.id, found.kind), (&entry.name, entry.id, entry.kind), "{about}");
        assert_eq!(entry.id, NodeId(file.fd.into()), "{about}");
        let node = self.tree.node(entry.id).unwrap();
        let kind = match file.kind {
            FileType::Directory => Kind::Dir,
            FileType::File | FileType::System => Kind::File,
            FileType::Symlink => Kind::Symlink,
            FileType::Rdm => Kind::Mapping,
        };
        assert_eq!((node.kind, entry.kind, node.state, node.trust), (kind, kind, State::Live, Trust::Sound), "{about}");
        assert_eq!((node.mode, node.modified), (file.mode, Some(i128::from(file.time) * 1_000_000_000)), "{about}");
        if kind == Kind::Dir {
            assert!(self.tree.open(entry.id).is_err(), "{about}");
            return;
        }
        assert_eq!(node.len, file.len, "{about}");
        let layer = self.tree.open(entry.id).unwrap();
        assert_eq!(layer.len(), file.len, "{about}");
        if let Some(content) = &file.content {
            // That a VMFS6 block to be zeroed reads as zeros is known from sources only.
            let zeroed = self.located.get(&file.path).is_some_and(|(at, _)| at.blocks.iter().any(|b| b.to_be_zeroed));
            let worst = if zeroed && self.name.starts_with("vmfs6") { Trust::Inferred } else { Trust::Sound };
            check_content(&*layer, content, worst, &about);
        }
        if let Some((located, places)) = self.located.get(&file.path) {
            self.check_map(&*layer, located, places, &about);
            check_laws(&*layer, Effort { runs: 300, bytes: 1 << 20 }).unwrap();
        }
    }

    /// Each block lies where the generator put it, and nothing else has bytes.
    fn check_map(&self, layer: &dyn Layer, located: &Located, places: &[(usize, u64)], about: &str) {
        if located.resident_lv.is_some() {
            let run = walk(layer, 0..layer.len()).next();
            assert!(run.is_none_or(|run| matches!(run.place, Place::Own)), "{about}");
            return;
        }
        let mut mapped = 0;
        for (block, (device, at)) in located.blocks.iter().zip(places) {
            let end = (block.offset + block.len).min(layer.len());
            mapped += end.saturating_sub(block.offset);
            if end <= block.offset {
                continue;
            }
            let run = walk(layer, block.offset..end).next().unwrap();
            if block.to_be_zeroed {
                assert!(matches!(run.place, Place::Zero), "{about}: {block:?}, {run:?}");
                continue;
            }
            assert_eq!((run.offset, run.len), (*at, end - block.offset), "{about}: {block:?}");
            let disk = &*self.devices[*device];
            assert!(std::ptr::addr_eq(run.layer, disk) && run.trust == Trust::Sound, "{about}: {block:?}");
        }
        let holes = walk(layer, 0..layer.len()).filter(|run| matches!(run.place, Place::Hole)).map(|run| run.len);
        let lost = walk(layer, 0..layer.len()).filter(|run| matches!(run.place, Place::Lost(_))).map(|run| run.len);
        let (holes, lost): (u64, u64) = (holes.sum(), lost.sum());
        let mapping = self.expected.iter().any(|file| file.fd == located.fd && file.kind == FileType::Rdm);
        let (want_holes, want_lost) = if mapping { (0, layer.len()) } else { (layer.len() - mapped, 0) };
        assert_eq!((holes, lost), (want_holes, want_lost), "{about}");
    }

    /// A find has its name where its entry is still there or its folder still lists it.
    fn check_name(&self, gone: &Deleted, remains: &Remains, find: &Find, about: &str) {
        let name = gone.path.rsplit('/').next().unwrap().as_bytes();
        let known = find.named != Named::Place;
        assert_eq!(known, find.entry.name == name, "{about}: {find:?}");
        // The folder that it was in, if that is one that was lost too.
        let folder = gone.path.rsplit_once('/').map(|(folder, _)| folder);
        let folder = folder.and_then(|folder| self.deleted.iter().find(|(other, _)| other.path == folder));
        // Nothing leads to the blocks of a folder that lost its pointers.
        let reachable = folder.is_none_or(|(folder, _)| folder.how != Deletion::Esxi);
        assert!(known || !remains.name || !reachable, "{about}: its entry is there, {find:?}");
        let placed = known && find.named != Named::Journal;
        if let (Some((folder, _)), true) = (folder, placed || self.name.contains("vmfs6")) {
            assert_eq!(find.parent.map(|id| id.0 & 0xFFFF_FFFF), Some(folder.located.fd.into()), "{about}: {find:?}");
        }
    }

    /// What a journal has of a deleted file leads to all of it that is left, under its name.
    fn is_copy(&self, find: &Find) -> bool {
        if find.entry.state != State::Journal {
            return false;
        }
        let name = |gone: &Deleted| gone.path.rsplit('/').next().unwrap().as_bytes() == find.entry.name;
        let (gone, remains) = self.deleted.iter().find(|(gone, _)| name(gone)).unwrap_or_else(|| panic!("{find:?}"));
        if gone.content.is_some() {
            check_remains(&*self.tree.open(find.entry.id).unwrap(), gone, remains, &gone.path);
        }
        find.named != Named::Place
    }

    fn check_audit(&self) {
        let mut findings = Vec::new();
        let mut unlinked = BTreeMap::new();
        for part in 0..self.tree.parts() {
            let _ = self.tree.audit(part, &mut |note| {
                if let Note::Finding(finding) = note {
                    findings.push(finding);
                }
                ControlFlow::Continue(())
            });
        }
        self.tree.finds(&mut |find| {
            unlinked.insert(find.entry.id, find);
            ControlFlow::Continue(())
        });
        // What has lost its name and nothing else is told of, for each of its descriptors.
        let (unlisted, others): (Vec<_>, Vec<_>) =
            findings.into_iter().partition(|finding| finding.code == "VMFS-FD-UNLISTED");
        // Home went on without the journal there: what is older can't be told without a lock.
        let undated = |finding: &Finding| self.name.ends_with("-crashed") && finding.code.starts_with("VMFS-JOURNAL");
        let others: Vec<Finding> = others.into_iter().filter(|finding| !undated(finding)).collect();
        assert_eq!(others, [], "{}", self.name);
        let nameless = self.deleted.iter().filter(|(gone, _)| gone.how == Deletion::NameOnly).count();
        assert_eq!(unlisted.len(), nameless, "{}: {unlisted:?}", self.name);
        let mut known = BTreeSet::new();
        for (gone, remains) in &self.deleted {
            let about = format!("{}: {}", self.name, gone.path);
            // A VMFS5 has its descriptors at other places than the VMFS6 that was there before.
            let former = gone.how == Deletion::Formatted && self.name.starts_with("vmfs5");
            let id = NodeId(u64::from(former) << 32 | u64::from(gone.located.fd));
            let find = unlinked.get(&id).unwrap_or_else(|| panic!("{about} is not found"));
            let entry = &find.entry;
            self.check_name(gone, remains, find, &about);
            let state = match gone.how {
                Deletion::Esxi | Deletion::KeepingPointers => State::Deleted,
                Deletion::NameOnly => State::Orphaned,
                Deletion::Formatted => State::Reformatted,
            };
            assert_eq!((entry.state, known.insert(id)), (state, true), "{about}");
            let Some(content) = &gone.content else {
                assert_eq!(entry.kind, Kind::Dir, "{about}");
                continue;
            };
            let layer = self.tree.open(id).unwrap();
            if gone.how == Deletion::Esxi {
                assert_eq!((self.tree.node(id).unwrap().len, layer.len()), (0, 0), "{about}");
                continue;
            }
            assert_eq!(layer.len(), content.len(), "{about}");
            check_remains(&*layer, gone, remains, &about);
        }
        let mut extra: Vec<&Find> = unlinked.values().filter(|find| !known.contains(&find.entry.id)).collect();
        if self.name == "vmfs5-reformatted" {
            // The root of the VMFS6 that was there before, and the file that its own format did not lose.
            extra.retain(|find| ![&b"orphan_c0_r0"[..], b"first"].contains(&&find.entry.name[..]));
        }
        extra.retain(|find| !self.is_copy(find));
        assert!(extra.is_empty(), "{}: {extra:?}", self.name);
    }
}

/// What is left of a dead file is there, and what others own by now is lost to them and to nothing else.
fn check_remains(layer: &dyn Layer, gone: &Deleted, remains: &Remains, about: &str) {
    let content = gone.content.as_ref().unwrap();
    for (range, fate) in &remains.data {
        for run in walk(layer, range.clone()) {
            let taken = matches!(run.place, Place::Lost(loss) if loss.why == Why::Overwritten);
            assert_eq!(taken, matches!(fate, Fate::Overwritten(_)), "{about} at {:#x}: {run:?}, {fate:?}", run.at);
            // In use but without a name: nothing else contradicts it.
            assert_eq!(taken || run.trust == Trust::Sound, taken || gone.how == Deletion::NameOnly, "{about}");
        }
        let len = (range.end - range.start).min(4 << 20) as usize;
        let (bytes, seen) = read_vec(layer, range.start, len);
        match fate {
            Fate::Kept => assert!(bytes == content.read(range.start, len) && seen.is_whole(), "{about}: {seen:?}"),
            Fate::Zeroed => assert!(bytes.iter().all(|byte| *byte == 0) && seen.is_whole(), "{about}: {seen:?}"),
            Fate::Overwritten(_) => {}
        }
    }
    for (start, piece) in content.pieces().iter().filter(|_| remains.data.is_empty()) {
        let (bytes, seen) = read_vec(layer, *start, piece.len());
        assert!(bytes == *piece && seen.is_whole(), "{about}: {seen:?}");
    }
}

/// All bytes of a short file; of a long one its pieces and what lies around them. What is no piece may be `worst`.
fn check_content(layer: &dyn Layer, content: &made::Content, worst: Trust, about: &str) {
    const STEP: u64 = 1 << 20;
    const WHOLE: u64 = 64 << 20;
    let len = content.len();
    let mut ranges = Vec::new();
    if len <= WHOLE {
        ranges.push((0..len, worst));
    } else {
        ranges.extend([0..4096, len - 4096..len, len / 3..len / 3 + 4096].map(|range| (range, worst)));
    }
    for (start, piece) in content.pieces() {
        let end = start + piece.len() as u64;
        ranges.push((*start..end, Trust::Sound));
        ranges.push((start.saturating_sub(4096)..(end + 4096).min(len), worst));
    }
    for (range, worst) in ranges {
        let mut at = range.start;
        while at < range.end {
            let step = (range.end - at).min(STEP) as usize;
            let (bytes, seen) = read_vec(layer, at, step);
            assert!(seen.is_whole() && seen.trust <= worst, "{about} at {at:#x}: {seen:?}");
            let right = content.read(at, step);
            let wrong = bytes.iter().zip(&right).position(|(a, b)| a != b);
            assert_eq!(wrong, None, "{about} at {at:#x}");
            at += step as u64;
        }
    }
}

#[test]
fn samples_are_read_as_they_were_made() {
    let next = AtomicUsize::new(0);
    let work = || {
        while let Some(sample) = SAMPLES.get(next.fetch_add(1, Ordering::Relaxed)) {
            let start = Instant::now();
            let Sample { name, .. } = sample;
            let store = Store::read(name, sample.build());
            let made = start.elapsed();
            store.check();
            println!("{name}: made in {made:?}, read by {:?}", start.elapsed());
        }
    };
    thread::scope(|scope| {
        scope.spawn(work);
        work();
    });
}

fn layers(devices: Vec<Device>) -> Vec<Bytes> {
    devices.into_iter().map(|device| -> Bytes { Arc::new(Disk(device)) }).collect()
}

fn finds(tree: &dyn Tree) -> Vec<Find> {
    let mut finds = Vec::new();
    tree.finds(&mut |find| {
        finds.push(find);
        ControlFlow::Continue(())
    });
    finds
}

/// Where the parent and the first pointer of a VMFS6 descriptor lie in it.
const PARENT: u64 = 0x1070;
const POINTERS: u64 = 0x1600;

#[test]
fn dead_folders_in_each_other_have_a_top() {
    let spec = || VmfsSpec::new(Version::Six, 2 << 30);
    let mut older = Vmfs::new(spec());
    older.mkdir("a");
    older.mkdir("a/b");
    older.file("a/b/deep", made::Content::bytes(*b"deep\n"), &Layout::default());
    let (a, b) = (older.locate("a"), older.locate("a/b"));
    let mut store = Vmfs::format_over(VmfsSpec { seed: 8, ..spec() }, older.finish());
    // The upper folder says that it is in the lower one.
    store.write_lv(a.fd_lv + PARENT, &b.fd.to_le_bytes());
    let tree = open(&layers(store.finish()));
    let parents: BTreeMap<NodeId, Option<NodeId>> =
        finds(&*tree).into_iter().map(|find| (find.entry.id, find.parent)).collect();
    assert_eq!(parents.len(), 3, "{parents:?}");
    assert_eq!(parents.values().filter(|parent| parent.is_none()).count(), 1, "{parents:?}");
}

#[test]
fn of_two_dead_files_the_newer_one_has_the_block() {
    let mut store = Vmfs::new(VmfsSpec::new(Version::Six, 2 << 30));
    let direct = Layout::default().addressing(made::Addressing::Direct);
    for (name, seed) in [("old", 1), ("new", 2), ("other", 3)] {
        store.file(name, made::Content::patterned(3 << 20, seed), &direct);
    }
    let [old, new, other] = ["old", "new", "other"].map(|name| store.locate(name));
    for name in ["old", "new", "other"] {
        store.delete_keeping_pointers(name);
    }
    let pointer = store.read_lv(old.fd_lv + POINTERS, 8);
    store.write_lv(new.fd_lv + POINTERS, &pointer);
    let tree = open(&layers(store.finish()));
    let trust = |at: &Located| {
        let layer = tree.open(NodeId(at.fd.into())).unwrap();
        walk(&*layer, 0..layer.len()).map(|run| run.trust).max().unwrap()
    };
    let told = [trust(&old), trust(&new), trust(&other)];
    assert_eq!(told, [Trust::Doubtful, Trust::Inferred, Trust::Inferred]);
}

/// Listing and looking up, in seconds and not in minutes.
#[test]
fn a_folder_of_a_hundred_thousand_names() {
    const NAMES: usize = 100_000;
    let mut made = Vmfs::new(VmfsSpec {
        descriptors: Some(NAMES as u64 + 1000),
        all_cluster_headers: false,
        ..VmfsSpec::new(Version::Six, 4 << 30)
    });
    made.mkdir("many");
    for n in 0..NAMES {
        made.file(&format!("many/vm-{n:06}.vmdk"), made::Content::default(), &Layout::default());
    }
    let devices = made.finish();
    let spec = VmfsSpec { descriptors: Some(NAMES as u64 + 1000), seed: 3, ..VmfsSpec::new(Version::Six, 4 << 30) };
    let over = Vmfs::format_over(VmfsSpec { all_cluster_headers: false, ..spec }, devices.clone()).finish();
    let tree = open(&layers(devices));
    let dir = tree.lookup(tree.root(), b"many").unwrap().unwrap().id;
    let start = Instant::now();
    let mut names = BTreeSet::new();
    let take = &mut |entry: Result<Entry, _>| {
        names.insert(entry.unwrap().name);
        ControlFlow::Continue(())
    };
    tree.list(dir, 0, take).unwrap();
    let listed = start.elapsed();
    assert_eq!(names.len(), NAMES);
    assert!(names.iter().zip(0..).all(|(name, n)| *name == format!("vm-{n:06}.vmdk").into_bytes()));
    for name in &names {
        assert_eq!(tree.lookup(dir, name).unwrap().unwrap().name, *name);
    }
    assert_eq!(tree.lookup(dir, b"vm-100000.vmdk").unwrap(), None);
    let took = start.elapsed();
    println!("listed in {listed:?}, all looked up by {took:?}");

    // Formatted over, all of them are found with their names, in the folder that has none any more.
    let start = Instant::now();
    let finds = finds(&*open(&layers(over)));
    println!("all found in {:?}", start.elapsed());
    let (folders, files): (Vec<&Find>, Vec<&Find>) = finds.iter().partition(|find| find.entry.kind == Kind::Dir);
    let [folder] = folders.as_slice() else { panic!("{folders:?}") };
    assert!(files.iter().all(|find| find.parent == Some(folder.entry.id) && find.named == Named::Folder));
    let again: BTreeSet<Vec<u8>> = files.iter().map(|find| find.entry.name.clone()).collect();
    assert!(again == names, "{} names", again.len());
}
