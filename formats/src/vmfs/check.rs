//! Cross-checks: what each structure says, against what others say of the same.
//!
//! | two that must agree | how sure |
//! | --- | --- |
//! | the count of free resources in a cluster's header, and its bitmap | real images, all resource files |
//! | the resources that files point to, and those that bitmaps have as used | real images |
//! | the owner of a sub-block or pointer block, and the file that points to it (VMFS6) | real images |
//! | the blocks of each file in a cluster by the table of owners, and by its pointers (VMFS6) | real images |
//! | link count of a file, and the entries that name it; of a folder, two and one for each folder in it | real images |
//! | the parent that a descriptor names, its owner, and the folder that lists it (VMFS6) | real images |
//!
//! Nothing points to the file blocks before `.fdc.sf`, which hold header and heartbeats, nor to journals of VMFS5.
//! Blocks shared for copy on write are known from sources only; they are not taken for a contradiction.

use super::address::{Address, FdAddress, Spot};
use super::descriptor::{Descriptor, Origin};
use super::directory::Folder;
use super::ground::Ground;
use super::heartbeat::Lock;
use super::journal::{self, Standing};
use super::owner;
use super::resource::Resource;
use super::teller::{Take, Teller};
use super::tree::Datastore;
use crate::error::Error;
use crate::layer::Trust;
use crate::note::Finding;
use crate::num::{narrow, wide};
use crate::tree::Kind;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;

/// Contradictions of one kind that are told one by one.
const TOLD: usize = 64;
/// Entries of folders that are compared: no volume has as many files.
const ENTRIES: u64 = 1 << 22;
/// Descriptors that folders name.
const NAMED: usize = 1 << 21;
/// Sub-blocks and pointer blocks that files have: 256 GiB of them.
const USERS: usize = 1 << 22;
/// Pairs of a file and a cluster that it has blocks in. 64 TiB have 131072 clusters.
const PAIRS: usize = 1 << 22;
/// Blocks of which it is known whether somebody has them: 64 TiB in blocks of 512 KiB.
const BLOCKS: u64 = 1 << 27;

/// Which resource file a resource is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Pool {
    Sub,
    Pointer,
    Pointer2,
}

/// What files and folders say of themselves and of each other. As large as a volume can be, and no larger: what an image
/// only claims is not kept.
#[derive(Default)]
struct Picture {
    /// Entries that name a descriptor, and the folder of the first.
    named: BTreeMap<FdAddress, (u64, FdAddress)>,
    /// Folders in a folder.
    folders: BTreeMap<FdAddress, u64>,
    /// Who uses a resource, by [`key`].
    users: BTreeMap<u64, FdAddress>,
    /// File blocks that a file has in a cluster: the cluster above, the file below.
    blocks: BTreeMap<u64, u32>,
    /// Clusters in which large blocks lie: how those count is not known.
    large: BTreeSet<u64>,
    /// File blocks that somebody points to, a bit each.
    used: Vec<u64>,
    /// Descriptors in use that can't be read, or not whole: what only they have can't be told from what nobody has.
    unknown: bool,
    /// Folders of which a part is elsewhere: what they name is not counted.
    unlisted: bool,
    /// Files of which pointers are elsewhere.
    partial: BTreeSet<FdAddress>,
    /// What there was more of than is kept.
    cut: Option<&'static str>,
}

impl Picture {
    /// There is more than is kept: what was not compared can't be told from what agrees, or does not.
    fn cut(&mut self, what: &'static str) {
        self.unknown = true;
        self.cut = self.cut.or(Some(what));
    }

    fn blocks_of(&self, cluster: u64) -> impl Iterator<Item = (FdAddress, u64)> + '_ {
        let all = self.blocks.range(cluster << 32..=(cluster << 32 | u64::from(u32::MAX)));
        all.map(|(key, count)| (FdAddress(u32::try_from(key & u64::from(u32::MAX)).unwrap_or(0)), u64::from(*count)))
    }
}

/// The first and the last resource that there can be.
const FIRST: Spot = Spot { cluster: 0, resource: 0 };
const LAST: Spot = Spot { cluster: 0xFFFF_FFFF_FFFF, resource: 0x3FFF };

/// A resource as one number: clusters have 36 bits at most, resources 8.
fn key(pool: Pool, spot: Spot) -> u64 {
    let pool: u64 = match pool {
        Pool::Sub => 1,
        Pool::Pointer => 2,
        Pool::Pointer2 => 3,
    };
    pool << 62 | (spot.cluster & 0xFFFF_FFFF_FFFF) << 14 | (spot.resource & 0x3FFF)
}

/// Tells findings by their place in the volume.
struct Reporter<'a> {
    teller: Teller,
    take: Take<'a>,
    physical: &'a dyn Fn(u64) -> u64,
}

impl Reporter<'_> {
    fn tell(&mut self, code: &'static str, at: u64, trust: Trust, text: String) {
        let at = (self.physical)(at);
        let _ = self.teller.tell(Finding::new(code, at..at, trust, text), self.take);
    }

    fn wrong(&mut self, code: &'static str, at: u64, text: String) {
        self.tell(code, at, Trust::Doubtful, text);
    }
}

impl Datastore {
    /// Compares everything with everything else, and tells of hosts, locks and journals.
    pub(super) fn cross_check(&self, sink: &mut dyn FnMut(Finding)) {
        let space = &self.volume.space;
        let physical = |at| space.physical(at);
        let mut sink = |finding| {
            sink(finding);
            ControlFlow::Continue(())
        };
        let mut teller = Reporter { teller: Teller::new(TOLD), take: &mut sink, physical: &physical };
        self.check_hosts(&mut teller);
        let mut picture = Picture::default();
        self.look_at_folders(&mut picture, &mut teller);
        self.look_at_files(&mut picture, &mut teller);
        self.check_resources(&picture, &mut teller);
        self.check_blocks(&picture, &mut teller);
        if let Some(what) = picture.cut {
            let text = format!("{what} than any volume has: the rest was not compared");
            teller.tell("VMFS-CHECK-CUT", space.header.fdc_at(), Trust::Doubtful, text);
        }
        let _ = teller.teller.finish("", teller.take);
    }

    fn check_hosts(&self, teller: &mut Reporter<'_>) {
        for beat in self.volume.heartbeats.in_use() {
            teller.tell("VMFS-HOST", beat.at, Trust::Sound, format!("a host has the volume in use: {}", beat.about()));
        }
        for journal in journal::journals(&self.volume) {
            let count = |standing| journal.records.iter().filter(|record| record.standing == standing).count();
            let whose = journal.slot.map_or("without heartbeat".into(), |slot| format!("of slot {slot}"));
            let text = format!(
                "journal {whose}: {} records, {} newer than home, {} of which that can't be told",
                journal.records.len(),
                count(Standing::Newer),
                count(Standing::Unsure)
            );
            // What those cost is told when the volume is opened.
            teller.tell("VMFS-JOURNAL", journal.at, Trust::Sound, text);
            if journal.cut && journal.slot.is_none() {
                let text = "a journal has more records than journals have: the rest was not looked at".into();
                teller.wrong("VMFS-JOURNAL-CUT", journal.at, text);
            }
        }
    }

    /// All folders from the root.
    fn look_at_folders(&self, picture: &mut Picture, teller: &mut Reporter<'_>) {
        let mut open = vec![FdAddress::ROOT];
        let mut seen = BTreeSet::from([FdAddress::ROOT]);
        let mut left = ENTRIES;
        while let Some(address) = open.pop() {
            let folder = match Folder::open(&self.volume, address) {
                Ok(folder) => folder,
                Err(error) => {
                    picture.unknown = true;
                    picture.unlisted |= error.doubt() == Trust::Sound;
                    continue;
                }
            };
            picture.unlisted |= folder.is_partial();
            folder.list(0, &mut |entry| {
                // What is wrong with a folder itself, the audit tells.
                let Ok(entry) = entry else {
                    picture.unknown = true;
                    return ControlFlow::Continue(());
                };
                let Some(less) = left.checked_sub(1).filter(|_| picture.named.len() < NAMED) else {
                    picture.cut("folders have more entries");
                    return ControlFlow::Break(());
                };
                left = less;
                let (count, _) = picture.named.entry(entry.address).or_insert((0, address));
                *count = count.saturating_add(1);
                let Ok(fd) = self.volume.descriptor(entry.address) else { return ControlFlow::Continue(()) };
                if fd.node_kind() == Kind::Dir {
                    let inside = picture.folders.entry(address).or_default();
                    *inside = inside.saturating_add(1);
                    if seen.insert(entry.address) {
                        open.push(entry.address);
                    } else {
                        let text = format!("the folder {} is listed again, by {address}", entry.address);
                        teller.wrong("VMFS-DIR-LOOP", fd.at, text);
                    }
                }
                ControlFlow::Continue(())
            });
        }
    }

    /// All descriptors in use.
    fn look_at_files(&self, picture: &mut Picture, teller: &mut Reporter<'_>) {
        let Some(fdc) = &self.volume.fdc else {
            picture.unknown = true;
            return;
        };
        if let Some(blocks) = self.volume.blocks() {
            let total = blocks.total.min(self.volume.lv().len() >> self.volume.space.header.file_shift.min(63));
            let total = total.min(BLOCKS);
            picture.used = vec![0; narrow(total.div_ceil(64))];
        }
        let named_in: BTreeSet<u64> = picture.named.keys().map(|address| address.spot().cluster).collect();
        // What lies where the volume has nothing was never made; of that only what folders name is asked for.
        let mut ground = Ground::of(fdc, self.volume.lv());
        let mut clusters: BTreeSet<u64> = ground.clusters(fdc).into_iter().collect();
        clusters.extend(named_in.iter().copied().filter(|cluster| *cluster < fdc.clusters()));
        if ground.cut {
            picture.cut("there are more descriptors");
        }
        // An address has 16 bits for the cluster.
        for cluster in clusters.into_iter().filter(|cluster| *cluster < 1 << 16) {
            let state = match fdc.cluster(&self.volume.space, cluster) {
                Ok(state) => state,
                Err(error) => {
                    let first = FdAddress::new(Spot { cluster, resource: 0 });
                    let named = cluster == 0 || named_in.contains(&cluster);
                    if named && error == Error::NotFound {
                        let at = first.and_then(|first| self.volume.locate(first).ok()).unwrap_or_default();
                        let text =
                            format!("cluster {cluster} of .fdc.sf was never made, and folders list descriptors of it");
                        teller.wrong("VMFS-CLUSTER", at, text);
                    }
                    // The audit tells of one that can't be had.
                    picture.unknown |= named || error != Error::NotFound;
                    continue;
                }
            };
            for (resource, _) in (0..).zip(&state.free).filter(|(_, free)| !**free) {
                let Some(address) = FdAddress::new(Spot { cluster, resource }) else { continue };
                match self.volume.descriptor(address) {
                    Ok(fd) if fd.links > 0 => self.look_at_file(&fd, picture, teller),
                    // The audit tells what is wrong with it.
                    Ok(_) | Err(_) => picture.unknown = true,
                }
            }
        }
    }

    fn look_at_file(&self, fd: &Descriptor, picture: &mut Picture, teller: &mut Reporter<'_>) {
        let space = &self.volume.space;
        let address = fd.address;
        if let Some(lock) = Lock::load(self.volume.lv(), fd.at).filter(|lock| lock.mode != 0) {
            let text = format!("{address} is locked, in mode {}, by host {}", lock.mode, super::uuid(lock.owner));
            teller.tell("VMFS-LOCK", fd.at, Trust::Sound, text);
        }
        let is_guess = matches!(fd.origin, Origin::Owners | Origin::Pointers);
        picture.unknown |= is_guess;
        self.check_links(fd, picture, teller);
        let per_cluster = self.volume.blocks().map_or(1, |blocks| blocks.per_cluster).max(1);
        let last = space.lv.len() >> space.header.file_shift.min(63);
        let mut wrong: BTreeMap<&'static str, (u64, String)> = BTreeMap::new();
        let mut note = |code, text: String| {
            let (count, _) = wrong.entry(code).or_insert((0, text));
            *count = count.saturating_add(1);
        };
        let file = self.volume.file(fd.clone());
        let survey = file.pointers(&mut |_| {}, &mut |_, pointer| {
            let (pool, spot) = match pointer {
                Address::File(block) if block.number < last => {
                    let cluster = block.number.checked_div(per_cluster).unwrap_or(0);
                    let pair = cluster << 32 | u64::from(address.0);
                    let room = picture.blocks.len() < PAIRS;
                    if let Some(count) = picture.blocks.get_mut(&pair) {
                        *count = count.saturating_add(1);
                    } else if room {
                        picture.blocks.insert(pair, 1);
                    } else {
                        picture.cut("files have blocks in more clusters");
                    }
                    let bit = 1_u64.unbounded_shl(u32::try_from(block.number & 63).unwrap_or(64));
                    if let Some(word) = picture.used.get_mut(narrow(block.number >> 6)) {
                        if *word & bit != 0 && !block.cow {
                            note("VMFS-BLOCK-SHARED", format!("block {} is pointed to more than once", block.number));
                        }
                        *word |= bit;
                    }
                    return;
                }
                Address::Large(block) if block.number < last => {
                    if picture.large.len() < PAIRS {
                        picture.large.insert(block.number);
                    } else {
                        picture.cut("files have more large blocks");
                    }
                    return;
                }
                Address::Sub(spot) => (Pool::Sub, spot),
                Address::Pointer(spot) => (Pool::Pointer, spot),
                Address::Pointer2(spot) => (Pool::Pointer2, spot),
                Address::File(_) | Address::Large(_) | Address::Bad | Address::Hole => {
                    return note("VMFS-POINTER-RANGE", format!("{pointer} is nothing that the volume has"));
                }
            };
            let resource = match pool {
                Pool::Sub => &self.volume.pools.sbc,
                Pool::Pointer => &self.volume.pools.pbc,
                Pool::Pointer2 => &self.volume.pools.pb2,
            };
            if resource.as_ref().is_some_and(|resource| resource.body(spot).is_none()) {
                return note("VMFS-POINTER-RANGE", format!("{pointer} is nothing that the volume has"));
            }
            if picture.users.len() >= USERS {
                return picture.cut("files have more sub-blocks and pointer blocks");
            }
            if let Some(other) = picture.users.insert(key(pool, spot), address) {
                note("VMFS-RESOURCE-SHARED", format!("{pointer} is used by {other} too"));
            }
        });
        picture.unknown |= survey.unknown;
        if survey.elsewhere > 0 {
            picture.partial.insert(address);
        }
        for (code, (count, text)) in wrong {
            teller.wrong(code, fd.at, format!("{address}: {text}, the first of {count}"));
        }
    }

    /// Whether a descriptor is not damaged but only elsewhere.
    fn is_elsewhere(&self, address: FdAddress) -> bool {
        self.volume.descriptor(address).is_err_and(|error| error.doubt() == Trust::Sound)
    }

    fn check_links(&self, fd: &Descriptor, picture: &Picture, teller: &mut Reporter<'_>) {
        let address = fd.address;
        let is_folder = fd.node_kind() == Kind::Dir;
        let named = picture.named.get(&address);
        let links = if is_folder {
            picture.folders.get(&address).copied().unwrap_or(0).saturating_add(2)
        } else {
            named.map_or(0, |(count, _)| *count)
        };
        // What no folder lists, the audit tells; what is put together again has no count of its own.
        let is_listed = named.is_some() || address == FdAddress::ROOT;
        let counted = !picture.unlisted || links > u64::from(fd.links);
        let is_made = matches!(fd.origin, Origin::Owners | Origin::Pointers);
        if is_listed && counted && u64::from(fd.links) != links && !is_made {
            let text = format!("{address} counts {} links, folders give it {links}", fd.links);
            teller.wrong("VMFS-FD-LINKS", fd.at, text);
        }
        let Some((_, folder)) = named else { return };
        if fd.parent.is_some_and(|parent| parent != *folder) {
            let parent = fd.parent.unwrap_or(FdAddress::ROOT);
            teller.wrong("VMFS-FD-PARENT", fd.at, format!("{address} says that it is in {parent}, and is in {folder}"));
        }
        let owner = self.volume.fdc.as_ref().and_then(|fdc| owner::of(&self.volume.space, fdc, address.spot()));
        if let Some(owner) = owner.filter(|owner| owner != folder) {
            teller.wrong("VMFS-OWNER", fd.at, format!("{address} is in {folder}, the table of owners says {owner}"));
        }
    }

    fn check_resources(&self, picture: &Picture, teller: &mut Reporter<'_>) {
        let pools = &self.volume.pools;
        let all = [
            (".sbc.sf", pools.sbc.as_ref(), Some(Pool::Sub)),
            (".pbc.sf", pools.pbc.as_ref(), Some(Pool::Pointer)),
            (".pb2.sf", pools.pb2.as_ref(), Some(Pool::Pointer2)),
            (".jbc.sf", self.volume.jbc.as_ref(), None),
        ];
        for (name, resource, pool) in all {
            let Some(resource) = resource else { continue };
            let mut ground = Ground::of(resource, self.volume.lv());
            let mut clusters: BTreeSet<u64> = ground.clusters(resource).into_iter().collect();
            if let Some(pool) = pool {
                let users = picture.users.range(key(pool, FIRST)..=key(pool, LAST));
                clusters.extend(users.map(|(key, _)| key >> 14 & 0xFFFF_FFFF_FFFF));
            }
            for cluster in clusters.into_iter().filter(|cluster| *cluster < resource.clusters()) {
                self.check_cluster(name, resource, cluster, pool, picture, teller);
            }
            if ground.cut {
                let text = format!("{name} has more clusters than any volume's has: the rest was not compared");
                teller.wrong("VMFS-CHECK-CUT", resource.file.descriptor().at, text);
            }
        }
    }

    fn check_cluster(
        &self,
        name: &str,
        resource: &Resource,
        cluster: u64,
        pool: Option<Pool>,
        picture: &Picture,
        teller: &mut Reporter<'_>,
    ) {
        let state = match resource.cluster(&self.volume.space, cluster) {
            Ok(state) => state,
            Err(error) => {
                let used = |pool| {
                    let [first, last] = [0, 0x3FFF].map(|resource| key(pool, Spot { cluster, resource }));
                    picture.users.range(first..=last).next().is_some()
                };
                if error == Error::NotFound && !pool.is_some_and(used) {
                    return;
                }
                let at = resource.header(cluster).and_then(|at| resource.position(at)).unwrap_or_default();
                let text = format!("cluster {cluster} of {name}: {error}");
                return teller.tell("VMFS-CLUSTER", at, error.doubt(), text);
            }
        };
        let free = wide(state.free.iter().filter(|free| **free).count());
        if free != state.free_count {
            let text =
                format!("cluster {cluster} of {name} counts {} free resources, its bitmap {free}", state.free_count);
            teller.wrong("VMFS-BITMAP-COUNT", state.at, text);
        }
        let Some(pool) = pool else { return };
        for (resource_number, free) in (0..).zip(&state.free) {
            let spot = Spot { cluster, resource: resource_number };
            let user = picture.users.get(&key(pool, spot));
            let what = || format!("resource {resource_number} of cluster {cluster} of {name}");
            match (user, free) {
                (Some(user), true) => {
                    teller.wrong(
                        "VMFS-RESOURCE-FREE",
                        state.at,
                        format!("{} is used by {user}, its bitmap has it as free", what()),
                    );
                }
                (None, false) if !picture.unknown => {
                    teller.wrong(
                        "VMFS-RESOURCE-UNUSED",
                        state.at,
                        format!("{} is in use, and no file points to it", what()),
                    );
                }
                _ => {}
            }
            if !resource.owned {
                continue;
            }
            let owner = owner::of(&self.volume.space, resource, spot);
            if user.is_some() && owner != user.copied() || owner.is_some() && *free {
                let show = |who: Option<&FdAddress>| who.map_or("nobody".into(), ToString::to_string);
                let text =
                    format!("{} is used by {}, its table of owners says {}", what(), show(user), show(owner.as_ref()));
                teller.wrong("VMFS-OWNER", state.at, text);
            }
        }
    }

    /// Bitmaps and owners of file blocks.
    fn check_blocks(&self, picture: &Picture, teller: &mut Reporter<'_>) {
        let Some(blocks) = self.volume.blocks() else { return };
        let space = &self.volume.space;
        let shift = space.header.file_shift.min(63);
        let mut nobodys: BTreeSet<u64> = (0..space.header.fdc_at() >> shift).collect();
        nobodys.extend(self.volume.heartbeats.in_use().map(|beat| beat.journal_at >> shift));
        let mut ground = Ground::of(blocks, self.volume.lv());
        let mut clusters: BTreeSet<u64> = ground.clusters(blocks).into_iter().collect();
        clusters.extend(picture.blocks.keys().map(|pair| pair >> 32));
        if ground.cut {
            let text = "there are more clusters of file blocks than any volume has: the rest was not compared".into();
            teller.wrong("VMFS-CHECK-CUT", blocks.file.descriptor().at, text);
        }
        for cluster in clusters.into_iter().filter(|cluster| *cluster < blocks.clusters()) {
            // The audit tells of clusters that can't be had.
            let state = match blocks.cluster(space, cluster) {
                Ok(state) => state,
                Err(error) => {
                    let user = picture.blocks_of(cluster).next();
                    if let Some((user, count)) = user.filter(|_| error == Error::NotFound) {
                        let at = blocks.header(cluster).and_then(|at| blocks.position(at)).unwrap_or_default();
                        let text = format!(
                            "cluster {cluster} of file blocks was never made, and {user} has {count} blocks of it"
                        );
                        teller.wrong("VMFS-CLUSTER", at, text);
                    }
                    continue;
                }
            };
            let free = wide(state.free.iter().filter(|free| **free).count());
            if free != state.free_count {
                let text =
                    format!("cluster {cluster} of file blocks counts {} free, its bitmap {free}", state.free_count);
                teller.wrong("VMFS-BITMAP-COUNT", state.at, text);
            }
            if picture.large.contains(&cluster) {
                continue;
            }
            let start = cluster.saturating_mul(blocks.per_cluster);
            let mut unused: Option<(u64, u64)> = None;
            for (number, _) in (start..).zip(&state.free).filter(|(_, free)| !**free) {
                let word = picture.used.get(narrow(number >> 6)).copied().unwrap_or(0);
                if word >> (number & 63) & 1 == 0 && !nobodys.contains(&number) && !picture.unknown {
                    let (_, count) = unused.get_or_insert((number, 0));
                    *count = count.saturating_add(1);
                }
            }
            if let Some((first, count)) = unused {
                let text = format!(
                    "{count} blocks of cluster {cluster} are in use, and no file points to them, the first is {first}"
                );
                teller.wrong("VMFS-BLOCK-UNUSED", state.at, text);
            }
            let Some(owners) = owner::blocks(space, blocks, cluster) else { continue };
            let used = wide(state.free.len()).saturating_sub(free);
            let sum = owners.iter().fold(0_u64, |sum, (_, count)| sum.saturating_add(*count));
            if sum != used {
                let text =
                    format!("the owners of cluster {cluster} have {sum} file blocks, its bitmap has {used} as used");
                teller.wrong("VMFS-OWNER-SUM", state.at, text);
            }
            if picture.cut.is_some() {
                continue;
            }
            let have: BTreeMap<FdAddress, u64> = picture.blocks_of(cluster).collect();
            for (owner, count) in &owners {
                let have = have.get(owner).copied().unwrap_or(0);
                // Pointers that are elsewhere can't contradict.
                let partial = picture.partial.contains(owner) && have < *count;
                if have != *count && !partial && !self.is_elsewhere(*owner) {
                    let text = format!(
                        "{owner} has {count} blocks of cluster {cluster} by the table of owners, {have} by its pointers"
                    );
                    teller.wrong("VMFS-OWNER", state.at, text);
                }
            }
            let known: BTreeSet<FdAddress> = owners.iter().map(|(owner, _)| *owner).collect();
            for (owner, count) in &have {
                if !known.contains(owner) {
                    let text =
                        format!("{owner} has {count} blocks of cluster {cluster}, and is not in its table of owners");
                    teller.wrong("VMFS-OWNER", state.at, text);
                }
            }
        }
    }
}
