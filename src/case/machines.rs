//! Virtual machines, put together from what their configuration and snapshot files say.

use super::discover;
use super::item::{ItemId, Origin};
use super::{Case, Noted, Store, StoreFile, names, paths, wants};
use std::collections::HashSet;
use vdrecover_formats::vm::{self, Dictionary};
use vdrecover_formats::{Error, Finding, Kind, Trust, read_vec};

/// A virtual machine as its owner thinks of it.
#[derive(Clone, Debug)]
pub struct Machine {
    /// Its name, unique in the case and safe as the name of a folder.
    pub name: Vec<u8>,
    /// Guest operating system, as its configuration names it.
    pub guest: Option<Vec<u8>>,
    /// Memory, processors and adapters, as its configuration says.
    pub hardware: vm::Hardware,
    /// The store that holds its configuration.
    pub store: usize,
    /// Path of its configuration in the store.
    pub config: Vec<u8>,
    /// Its own files that are no disks, as indices into the store's files.
    pub files: Vec<usize>,
    /// What the configuration points at.
    pub disks: Vec<MachineDisk>,
    /// Its snapshots, in the order in which they were taken.
    pub snapshots: Vec<Snapshot>,
    /// Every other end of a chain in its folder.
    pub tips: Vec<MachineDisk>,
}

impl Machine {
    /// Where its folder is in the case, with a slash behind it.
    pub(super) fn place(&self, stores: &[Store]) -> Vec<u8> {
        let store = stores.get(self.store).map_or(&b""[..], |store| &store.name);
        let folder = paths::split(&self.config).0;
        let slash = if folder.is_empty() { &b""[..] } else { b"/" };
        [b"store/", store, b"/", folder, slash].concat()
    }

    /// Every disk of it, in all states.
    fn all_disks(&self) -> impl Iterator<Item = &MachineDisk> {
        self.disks.iter().chain(self.snapshots.iter().flat_map(|snapshot| &snapshot.disks))
    }
}

/// A disk of a machine.
#[derive(Clone, Debug)]
pub struct MachineDisk {
    /// Name without a suffix, unique among its neighbours.
    pub name: Vec<u8>,
    /// What the configuration calls it.
    pub file: Vec<u8>,
    /// The image; `None` if it is not there.
    pub item: Option<ItemId>,
}

/// A snapshot of a machine.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// Names it for good.
    pub uid: i64,
    /// As its owner called it.
    pub name: Vec<u8>,
    /// When it was taken, in microseconds since 1970.
    pub taken: Option<i64>,
    /// The state of each disk.
    pub disks: Vec<MachineDisk>,
}

/// Finds the machines of all stores and takes their disks off the list of loose ones.
pub(super) fn find(case: &mut Case) {
    let (mut machines, mut notes) = (Vec::new(), Vec::new());
    for store in (0..case.stores.len()).filter(|store| case.stores[*store].shown) {
        for file in &case.stores[store].files {
            let is_config = file.entry.kind == Kind::File && file.entry.name.to_ascii_lowercase().ends_with(b".vmx");
            if let Some(text) = is_config.then(|| dictionary(case, store, file, &mut notes)).flatten() {
                machines.push(machine(case, store, file, &text, &mut notes));
            }
        }
    }
    case.findings.append(&mut notes);
    name_apart(&mut machines);
    for machine in &machines {
        let about = format!("vms/{}", super::item::text(&machine.name));
        let mut told = HashSet::new();
        for disk in machine.all_disks().filter(|disk| disk.item.is_none() && told.insert(&disk.file)) {
            let text = format!("its disk {} is not there", super::item::text(&disk.file));
            case.findings.push(Noted {
                about: about.clone(),
                finding: Finding::new("VM-DISK-ABSENT", 0..0, Trust::Doubtful, text),
            });
        }
    }
    let used: Vec<ItemId> = machines
        .iter()
        .flat_map(|machine| machine.all_disks().chain(&machine.tips))
        .filter_map(|disk| disk.item)
        .collect();
    case.loose.retain(|item| !used.contains(item));
    case.machines = machines;
    let failed: Vec<Noted> = case
        .items
        .iter()
        .enumerate()
        .filter_map(|(id, item)| {
            // What lacks others of its set is whole, and was told as such.
            let error = discover::error_of(&item.state).filter(|error| !matches!(error, Error::Absent { .. }))?;
            let finding = Finding::new("ITEM-UNUSABLE", 0..0, Trust::Doubtful, format!("stays a plain file: {error}"));
            Some(Noted { about: case.label(id), finding })
        })
        .collect();
    case.findings.extend(failed);
}

/// The pairs in a file. What a machine is made of depends on them: whatever is wrong with the file is noted.
fn dictionary(case: &Case, store: usize, file: &StoreFile, notes: &mut Vec<Noted>) -> Option<Dictionary> {
    let mut note = |trust, text| notes.push(noted(case, store, file, trust, text));
    let tree = &case.stores[store].tree;
    // Every machine without a snapshot has an empty list of them.
    if is_list(file) && tree.node(file.entry.id).is_ok_and(|node| node.len == 0) {
        return None;
    }
    let bytes = match tree.open(file.entry.id) {
        Ok(bytes) => bytes,
        Err(error) => {
            note(Trust::Doubtful, format!("can't be read, and what it says of a VM is not known: {error}"));
            return None;
        }
    };
    let len = usize::try_from(bytes.len().min(vm::MAX_TEXT)).ok()?;
    // What is lost in it reads as zeros, which end a line: the other lines count.
    let (text, seen) = read_vec(&*bytes, 0, len);
    let found = Dictionary::parse(&text);
    if let Some(gap) = seen.gaps.first() {
        note(Trust::Doubtful, format!("settings in it are missing: {gap}"));
    } else if seen.trust > Trust::Sound {
        note(seen.trust, format!("its content is {}, and so is what it says of a VM", seen.trust.word()));
    } else if bytes.len() > vm::MAX_TEXT {
        note(Trust::Doubtful, format!("only its first {} bytes were looked at", vm::MAX_TEXT));
    } else if found.is_empty() {
        note(Trust::Doubtful, "holds no settings; what it should say of a VM is not known".into());
    }
    (!found.is_empty()).then_some(found)
}

fn noted(case: &Case, store: usize, file: &StoreFile, trust: Trust, text: String) -> Noted {
    let about = super::item::text(&[b"store/", &case.stores[store].name[..], b"/", &file.path].concat());
    Noted { about, finding: Finding::new("VM-CONFIG", 0..0, trust, text) }
}

fn is_list(file: &StoreFile) -> bool {
    file.entry.name.to_ascii_lowercase().ends_with(b".vmsd")
}

fn machine(case: &Case, store: usize, config: &StoreFile, text: &Dictionary, notes: &mut Vec<Noted>) -> Machine {
    let stated = vm::Machine::of(text);
    let stem = config.entry.name.get(..config.entry.name.len().saturating_sub(4)).unwrap_or_default();
    let folder = config.folder();
    let mut disks: Vec<MachineDisk> = stated
        .disks
        .iter()
        .map(|slot| MachineDisk {
            name: base_name(&slot.file),
            file: slot.file.clone(),
            item: image(case, store, folder, &slot.file),
        })
        .collect();
    set_apart(&mut disks, |at| stated.disks[at].name.replace(':', "_").into_bytes());

    let beside: Vec<&StoreFile> = case.stores[store].files.iter().filter(|file| file.folder() == folder).collect();
    let snapshots = snapshots(case, store, (folder, stem), &beside, notes);
    let known = |id: ItemId| {
        let own = disks.iter().chain(snapshots.iter().flat_map(|snapshot| &snapshot.disks));
        own.filter_map(|disk| disk.item).any(|item| item == id)
    };
    let tips = case.items.iter().enumerate().filter_map(|(id, item)| {
        let Origin::File { store: own, path, entry, .. } = &item.origin else { return None };
        let is_tip =
            *own == store && paths::split(path).0 == folder && item.used_by.is_none() && item.children.is_empty();
        let name = stem_of(&entry.name).to_vec();
        (is_tip && !known(id)).then(|| MachineDisk { name, file: entry.name.clone(), item: Some(id) })
    });
    let mut tips: Vec<MachineDisk> = tips.collect();
    set_apart(&mut tips, |at| at.to_string().into_bytes());
    Machine {
        name: names::safe(&stated.name.unwrap_or_else(|| stem.to_vec())),
        guest: stated.guest,
        hardware: vm::Hardware::of(text),
        store,
        config: config.path.clone(),
        files: own_files(case, store, folder),
        disks,
        snapshots,
        tips,
    }
}

/// Files of a machine's folder that are no disk and no part of one.
fn own_files(case: &Case, store: usize, folder: &[u8]) -> Vec<usize> {
    let files = case.stores[store].files.iter().enumerate();
    let own = files.filter(|(_, file)| {
        file.folder() == folder
            && file.entry.kind == Kind::File
            && !file.entry.name.to_ascii_lowercase().ends_with(b".vmdk")
    });
    own.map(|(at, _)| at).collect()
}

fn snapshots(
    case: &Case,
    store: usize,
    (folder, stem): (&[u8], &[u8]),
    beside: &[&StoreFile],
    notes: &mut Vec<Noted>,
) -> Vec<Snapshot> {
    let own = beside.iter().find(|file| is_list(file) && stem_of(&file.entry.name).eq_ignore_ascii_case(stem));
    let Some(file) = own.or_else(|| beside.iter().find(|file| is_list(file))) else { return Vec::new() };
    let Some(text) = dictionary(case, store, file, notes) else { return Vec::new() };
    let mut snapshots: Vec<Snapshot> = vm::snapshots(&text)
        .into_iter()
        .map(|stated| {
            let mut disks: Vec<MachineDisk> = stated
                .disks
                .iter()
                .map(|file| MachineDisk {
                    name: base_name(file),
                    file: file.clone(),
                    item: image(case, store, folder, file),
                })
                .collect();
            set_apart(&mut disks, |at| at.to_string().into_bytes());
            Snapshot { uid: stated.uid, name: stated.name, taken: stated.taken, disks }
        })
        .collect();
    snapshots.sort_by_key(|snapshot| snapshot.uid);
    let stated = text.number("snapshot.numsnapshots");
    let twice = snapshots.windows(2).any(|pair| pair[0].uid == pair[1].uid);
    if twice || stated.is_some_and(|stated| i64::try_from(snapshots.len()) != Ok(stated)) {
        let stated = stated.map_or_else(|| "no number of".to_owned(), |stated| stated.to_string());
        let same = if twice { ", two of them with the same uid" } else { "" };
        let text = format!("says it has {stated} snapshots, and {} are in it{same}", snapshots.len());
        notes.push(noted(case, store, file, Trust::Doubtful, text));
    }
    snapshots
}

/// The image that a configuration means by a name.
fn image(case: &Case, store: usize, folder: &[u8], file: &[u8]) -> Option<ItemId> {
    let at = |index: usize, wanted: &[u8]| {
        case.items.iter().position(|item| {
            matches!(&item.origin, Origin::File { store, path, .. } if *store == index && path == wanted)
                && item.used_by.is_none()
        })
    };
    if file.starts_with(b"/vmfs/volumes/") {
        let (volume, path) = wants::volume_path(file)?;
        return wants::stores_of(case, Some(store), volume).0.into_iter().find_map(|store| at(store, &path));
    }
    let written = paths::normal(folder, file).and_then(|path| at(store, &path));
    written.or_else(|| at(store, &paths::join(folder, paths::last_part(file))))
}

/// `web01-000002.vmdk` is a state of `web01`.
fn base_name(file: &[u8]) -> Vec<u8> {
    let stem = stem_of(paths::last_part(file));
    match stem.len().checked_sub(7).and_then(|at| stem.split_at_checked(at)) {
        Some((base, [b'-', digits @ ..])) if !base.is_empty() && digits.iter().all(u8::is_ascii_digit) => base.to_vec(),
        _ => stem.to_vec(),
    }
}

fn stem_of(name: &[u8]) -> &[u8] {
    match name.iter().rposition(|byte| *byte == b'.') {
        Some(dot) if dot > 0 => &name[..dot],
        _ => name,
    }
}

/// Two disks of one name get what tells them apart behind it, both of them.
fn set_apart(disks: &mut [MachineDisk], key: impl Fn(usize) -> Vec<u8>) {
    let names: Vec<Vec<u8>> = disks.iter().map(|disk| disk.name.clone()).collect();
    for (at, disk) in disks.iter_mut().enumerate() {
        if names.iter().filter(|name| **name == disk.name).count() > 1 {
            disk.name = [disk.name.as_slice(), b"~", &key(at)].concat();
        }
    }
}

/// Two machines of one name get their configuration's place behind it, both of them.
fn name_apart(machines: &mut [Machine]) {
    let names: Vec<Vec<u8>> = machines.iter().map(|machine| machine.name.clone()).collect();
    for machine in machines.iter_mut() {
        if names.iter().filter(|name| **name == machine.name).count() > 1 {
            let place = format!("~{}-", machine.store + 1);
            let folder = paths::split(&machine.config).0;
            let file = stem_of(paths::last_part(&machine.config));
            let name = [machine.name.as_slice(), place.as_bytes(), &paths::join(folder, file)].concat();
            machine.name = names::safe(&name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_file_is_a_state_of_its_base() {
        assert_eq!(base_name(b"web01-000002.vmdk"), b"web01");
        assert_eq!(base_name(b"/vmfs/volumes/x/a/web-01.vmdk"), b"web-01");
        assert_eq!(base_name(b"-000001.vmdk"), b"-000001");
        assert_eq!(base_name(b".vmdk"), b".vmdk");
    }
}
