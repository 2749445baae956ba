//! A full pass over a datastore: who has which bytes, what is free, what contradicts what.
//!
//! Part 0 walks the folders and the fixed structures, then follow the cluster groups of `.fdc.sf`, one a part, then
//! the bitmaps of the file blocks. Bodies of resource files are claimed by those who use them: an unused sub-block or
//! descriptor is nobody's, and may hold what was deleted.

use super::address::{FdAddress, Spot};
use super::descriptor::{Descriptor, Origin, Shape, Type};
use super::directory::Folder;
use super::ground::Ground;
use super::owner;
use super::resource::Resource;
use super::teller::Teller;
use super::tree::Datastore;
use super::volume::Volume;
use crate::cursor::walk_merged;
use crate::error::Error;
use crate::layer::{Layer, Place, Trust, Why};
use crate::note::{Concern, Finding, Note, Part, Sink, Use};
use crate::num::{narrow, wide};
use crate::tree::{Kind, NodeId, State};
use std::collections::BTreeSet;
use std::ops::{ControlFlow, Range};
use std::sync::Arc;

/// Clusters of file blocks in a part.
const CLUSTERS: u64 = 256;
/// Lost ranges of one file that get a finding of their own.
const LOST: u64 = 16;
/// Findings of one kind that one part tells one by one.
const TOLD: usize = 64;
/// The same of the blocks of one folder: a folder that is damaged is damaged all over.
const TOLD_OF_FOLDER: usize = 4;
/// Entries of folders that are compared: no volume has as many files.
const ENTRIES: u64 = 1 << 22;

/// Which descriptors folders list: a bit each.
#[derive(Debug)]
pub(super) struct Linked {
    bits: Vec<u64>,
    /// Folders of which a part is elsewhere: what they list, nobody can say.
    partial: BTreeSet<FdAddress>,
}

impl Linked {
    fn new(clusters: u64) -> Self {
        // A cluster has up to 1024 descriptors, and there are up to 65536 of them: 8 MiB.
        Self { bits: vec![0; narrow(clusters.min(1 << 16).saturating_mul(16))], partial: BTreeSet::new() }
    }

    /// Whether the folder that lists a descriptor may be one of those that are not all there.
    fn may_be_elsewhere(&self, fd: &Descriptor) -> bool {
        let unseen = |parent: FdAddress| self.partial.contains(&parent) || !self.has(parent);
        !self.partial.is_empty() && fd.parent.is_none_or(unseen)
    }

    fn place(address: FdAddress) -> (usize, u64) {
        let Spot { cluster, resource } = address.spot();
        let index = cluster << 10 | resource;
        (narrow(index >> 6), index & 63)
    }

    pub(super) fn has(&self, address: FdAddress) -> bool {
        let (word, bit) = Self::place(address);
        self.bits.get(word).is_some_and(|word| word >> bit & 1 == 1)
    }

    /// Whether it is new.
    fn add(&mut self, address: FdAddress) -> bool {
        let (word, bit) = Self::place(address);
        let Some(word) = self.bits.get_mut(word) else { return false };
        let before = *word;
        *word |= 1_u64.unbounded_shl(u32::try_from(bit).unwrap_or(64));
        before != *word
    }
}

impl Datastore {
    fn fdc_groups(&self) -> u64 {
        // An address has 16 bits for the cluster.
        self.volume.fdc.as_ref().map_or(0, Resource::groups).min(1 << 16)
    }

    pub(super) fn audit_parts(&self) -> u32 {
        let bitmaps = self.volume.blocks().map_or(0, |blocks| self.block_clusters(blocks).div_ceil(CLUSTERS));
        u32::try_from(bitmaps.saturating_add(self.fdc_groups()).saturating_add(1)).unwrap_or(u32::MAX)
    }

    /// Clusters of file blocks: not more than the volume has blocks for.
    fn block_clusters(&self, blocks: &Resource) -> u64 {
        let all = self.volume.lv().len().checked_shr(self.volume.space.header.file_shift).unwrap_or(0);
        blocks.clusters().min(all.div_ceil(blocks.per_cluster.max(1)))
    }

    /// A part, of which many findings that are alike are told as one.
    pub(super) fn audit_part(&self, part: u32, sink: Sink<'_>) -> ControlFlow<()> {
        let mut teller = Teller::new(TOLD);
        self.audit_all(part, &mut |note| match note {
            Note::Finding(finding) => teller.tell(finding, &mut |finding| sink(Note::Finding(finding))),
            note => sink(note),
        })?;
        teller.finish("", &mut |finding| sink(Note::Finding(finding)))
    }

    fn audit_all(&self, part: u32, sink: Sink<'_>) -> ControlFlow<()> {
        let Some(group) = u64::from(part).checked_sub(1) else { return self.audit_frame(sink) };
        match group.checked_sub(self.fdc_groups()) {
            None => self.audit_descriptors(group, sink),
            Some(chunk) => self.audit_free(chunk, sink),
        }
    }

    fn finding(&self, code: &'static str, range: Range<u64>, text: String) -> Note<'static> {
        let start = self.volume.space.physical(range.start);
        let len = range.end.saturating_sub(range.start);
        Note::Finding(Finding::new(code, start..start.saturating_add(len), Trust::Doubtful, text))
    }

    /// A finding about a node.
    fn about(
        &self,
        fd: &Descriptor,
        concern: fn(NodeId) -> Concern,
        code: &'static str,
        range: Range<u64>,
        text: String,
    ) -> Note<'static> {
        match self.finding(code, range, text) {
            Note::Finding(finding) => Note::Finding(finding.about(concern(NodeId(fd.address.0.into())))),
            other => other,
        }
    }

    /// What could not be had because of `error`.
    fn failed(&self, code: &'static str, at: u64, error: &Error, text: String) -> Note<'static> {
        let at = self.volume.space.physical(at);
        Note::Finding(Finding::new(code, at..at, error.doubt(), text))
    }

    fn whole(&self, fd: &Descriptor) -> Range<u64> {
        fd.at..fd.at.saturating_add(self.volume.space.header.descriptor_size())
    }

    // Part 0

    fn audit_frame(&self, sink: Sink<'_>) -> ControlFlow<()> {
        for finding in &self.findings {
            sink(Note::Finding(finding.clone()))?;
        }
        for device in self.volume.space.logical.iter().flat_map(|logical| logical.devices()) {
            for range in &device.metadata {
                sink(Note::Claim { layer: &*device.bytes, range: range.clone(), of: Use::Metadata })?;
            }
        }
        let header = &self.volume.space.header;
        // `.vh.sf` is the start of the volume, up to `.fdc.sf`, with the header and the heartbeats, whatever its own
        // descriptor says.
        let head = Use::Node { id: NodeId(FdAddress::VH.0.into()), part: Part::System };
        let end = header.fdc_at().min(self.volume.lv().len());
        sink(Note::Claim { layer: self.volume.lv(), range: 0..end, of: head })?;
        let Volume { pools, fdc, fbb, jbc, .. } = &self.volume;
        // A journal of VMFS5 is a file block that only its heartbeat points to.
        for beat in self.volume.heartbeats.in_use().filter(|beat| !header.is_six() && beat.journal_at != 0) {
            let end = beat.journal_at.saturating_add(1_u64.checked_shl(header.file_shift).unwrap_or(0));
            let end = end.min(self.volume.lv().len());
            if beat.journal_at < end {
                sink(Note::Claim { layer: self.volume.lv(), range: beat.journal_at..end, of: Use::Journal })?;
            }
        }
        for resource in [&pools.pb2, &pools.pbc, &pools.sbc, fdc, jbc].into_iter().flatten() {
            self.claim_frame(resource, sink)?;
        }
        for resource in [&pools.pb2, &pools.pbc, &pools.sbc].into_iter().flatten() {
            self.taken(resource, sink)?;
        }
        if let Some(resource) = fbb {
            let of = structure(resource.file.descriptor(), Part::System);
            self.claim(&*resource.file, 0..resource.file.len(), of, sink)?;
        }
        if let Some(resource) = jbc {
            for cluster in Ground::of(resource, self.volume.lv()).clusters(resource) {
                let Some(start) = resource.body(Spot { cluster, resource: 0 }) else { continue };
                let len = resource.per_cluster.saturating_mul(resource.size);
                let end = start.saturating_add(len).min(resource.file.len());
                self.claim(&*resource.file, start..end, Use::Journal, sink)?;
            }
        }
        let linked = self.walk(&mut |finding| sink(Note::Finding(finding)));
        match linked {
            Ok(linked) => {
                // Another part may have been here first, with the same.
                let _ = self.linked.set(linked);
                ControlFlow::Continue(())
            }
            Err(Cancelled) => ControlFlow::Break(()),
        }
    }

    /// What of a resource file is not the body of a resource.
    fn claim_frame(&self, resource: &Resource, sink: Sink<'_>) -> ControlFlow<()> {
        let len = resource.file.len();
        let of = structure(resource.file.descriptor(), Part::Frame);
        self.claim(&*resource.file, 0..resource.group(0).min(len), of, sink)?;
        let clusters = Ground::of(resource, self.volume.lv()).clusters(resource);
        let groups = clusters.iter().filter_map(|cluster| cluster.checked_div(resource.per_group));
        for group in groups.collect::<BTreeSet<u64>>() {
            let start = resource.group(group);
            let end = start.saturating_add(resource.headers_len()).min(len);
            self.claim(&*resource.file, start..end, of, sink)?;
        }
        ControlFlow::Continue(())
    }

    /// Tells which resources of a file are in use.
    fn taken(&self, resource: &Resource, sink: Sink<'_>) -> ControlFlow<()> {
        let size = resource.size;
        for cluster in 0..resource.clusters() {
            // What is wrong with a cluster is told by the check.
            let Ok(state) = resource.cluster(&self.volume.space, cluster) else { continue };
            let used = stretches(&state.free, state.free.len()).into_iter().filter(|(.., free)| !free);
            // Where a table says who has each of them, neighbours are not one.
            let each = if resource.owned { 1 } else { u64::MAX };
            let pieces = used.flat_map(|(first, count, _)| {
                (0..count.div_ceil(each)).map(move |number| (first.saturating_add(number), count.min(each)))
            });
            for (first, count) in pieces {
                let Some(body) = resource.body(Spot { cluster, resource: first }) else { continue };
                let end = body.saturating_add(count.saturating_mul(size)).min(resource.file.len());
                self.places(&*resource.file, body..end, &mut |layer, range| sink(Note::Taken { layer, range }))?;
            }
        }
        ControlFlow::Continue(())
    }

    /// Claims the places of a range of a file.
    fn claim(&self, file: &dyn Layer, range: Range<u64>, of: Use, sink: Sink<'_>) -> ControlFlow<()> {
        self.places(file, range, &mut |layer, range| sink(Note::Claim { layer, range, of }))
    }

    /// The places of a range of a file.
    fn places(&self, file: &dyn Layer, range: Range<u64>, sink: Taker<'_>) -> ControlFlow<()> {
        let mut at = range.start;
        while at < range.end {
            let run = file.run(at, range.end.saturating_sub(at));
            if let Place::Below { offset, .. } = run.place {
                let range = offset..offset.saturating_add(run.len);
                sink(self.volume.lv(), range)?;
            }
            at = at.saturating_add(run.len.max(1));
        }
        ControlFlow::Continue(())
    }

    /// Walks all folders from the root. Tells what is wrong with them on the way.
    fn walk(&self, tell: &mut dyn FnMut(Finding) -> ControlFlow<()>) -> Result<Linked, Cancelled> {
        let mut linked = Linked::new(self.volume.fdc.as_ref().map_or(1, Resource::clusters));
        linked.add(FdAddress::ROOT);
        let mut open = vec![FdAddress::ROOT];
        let mut flow = ControlFlow::Continue(());
        let mut left = ENTRIES;
        while let Some(address) = open.pop() {
            let folder = match Folder::open(&self.volume, address) {
                Ok(folder) => folder,
                Err(error) => {
                    let at = self.volume.space.physical(self.volume.locate(address).unwrap_or_default());
                    let text = format!("the folder {address} can't be opened: {error}");
                    if error.doubt() == Trust::Sound {
                        linked.partial.insert(address);
                    }
                    flow = tell(Finding::new("VMFS-DIR-OPEN", at..at, error.doubt(), text));
                    if flow.is_break() {
                        return Err(Cancelled);
                    }
                    continue;
                }
            };
            if folder.is_partial() {
                linked.partial.insert(address);
            }
            let mut teller = Teller::new(TOLD_OF_FOLDER);
            folder.list(0, &mut |entry| {
                flow = match entry {
                    Err(finding) => teller.tell(finding, tell),
                    Ok(_) if left == 0 => {
                        let at = self.volume.space.physical(folder.descriptor().at);
                        let text =
                            format!("folders have more than {ENTRIES} entries: from {address} on they are left out");
                        let _ = tell(Finding::new("VMFS-DIR-CUT", at..at, Trust::Doubtful, text));
                        return ControlFlow::Break(());
                    }
                    Ok(dirent) => {
                        left = left.saturating_sub(1);
                        let wrong = self.check_entry(&dirent, !linked.add(dirent.address), &mut open);
                        wrong.map_or(ControlFlow::Continue(()), |(trust, text)| {
                            if trust == Trust::Sound {
                                linked.partial.insert(dirent.address);
                            }
                            let name = String::from_utf8_lossy(&dirent.name);
                            let text = format!("{name:?} in folder {address}: {text}");
                            let at = self.volume.locate(dirent.address).unwrap_or_default();
                            let at = self.volume.space.physical(at);
                            let node = Concern::Whole(NodeId(dirent.address.0.into()));
                            tell(Finding::new("VMFS-DIR-LINK", at..at, trust, text).about(node))
                        })
                    }
                };
                flow
            });
            if flow.is_continue()
                && let Some(finding) = folder.index()
            {
                flow = teller.tell(finding, tell);
            }
            if flow.is_break() || teller.finish(&format!("folder {address}: "), tell).is_break() {
                return Err(Cancelled);
            }
            if left == 0 {
                break;
            }
        }
        Ok(linked)
    }

    /// Compares an entry with its descriptor. Folders that were not seen yet are to be opened.
    fn check_entry(
        &self,
        dirent: &super::directory::Dirent,
        again: bool,
        open: &mut Vec<FdAddress>,
    ) -> Option<(Trust, String)> {
        let fd = match self.volume.descriptor(dirent.address) {
            Ok(fd) => fd,
            Err(error) => return Some((error.doubt(), format!("{} can't be read: {error}", dirent.address))),
        };
        let wrong = |text| Some((Trust::Doubtful, text));
        let is_folder = fd.node_kind() == Kind::Dir;
        if again && (is_folder || fd.links < 2) {
            return wrong(format!("{} is listed more than once", dirent.address));
        }
        if is_folder && !again {
            open.push(dirent.address);
        }
        let is_guess = matches!(fd.origin, Origin::Owners | Origin::Pointers);
        if !is_guess && fd.generation != dirent.generation {
            return wrong(format!(
                "its generation is {}, that of {} is {}",
                dirent.generation, fd.address, fd.generation
            ));
        }
        if !is_guess && Type::of(dirent.kind) != Some(fd.kind) {
            let said = Type::of(dirent.kind)
                .map_or_else(|| format!("of no known type, {}", dirent.kind), |kind| kind.to_string());
            return wrong(format!("it says that {} is {said}, and it is {}", fd.address, fd.kind));
        }
        if fd.links == 0 {
            return wrong(format!("{} has link count 0", fd.address));
        }
        if self.state(&fd) != State::Live {
            return wrong(format!("{} is free in its bitmap", fd.address));
        }
        None
    }

    /// Who has a range by the tables of owners: of exactly a sub-block, a pointer block or a descriptor, else of some
    /// blocks of a cluster. Whose pointers can be read is not told: they would lead there.
    pub(super) fn holders_of(&self, range: Range<u64>) -> (Vec<NodeId>, bool) {
        let space = &self.volume.space;
        if let Some((resource, spot)) = self.heir().resource(range.start) {
            let is_descriptor = self.volume.fdc.as_ref().is_some_and(|fdc| Arc::ptr_eq(&fdc.file, &resource.file));
            let owner = if is_descriptor { FdAddress::new(spot) } else { owner::of(space, resource, spot) };
            return (owner.map(|owner| NodeId(owner.0.into())).into_iter().collect(), true);
        }
        let blocks = self.volume.blocks();
        let number = range.start.checked_shr(space.header.file_shift);
        let cluster = blocks.zip(number).and_then(|(blocks, number)| Some((blocks, blocks.spot(number)?.cluster)));
        let owners = cluster.and_then(|(blocks, cluster)| owner::blocks(space, blocks, cluster)).unwrap_or_default();
        let unread = owners.into_iter().filter(|(owner, _)| {
            let found = self.volume.descriptor(*owner);
            !found.is_ok_and(|fd| fd.links > 0 && fd.origin == Origin::Disk)
        });
        (unread.map(|(owner, _)| NodeId(owner.0.into())).collect(), false)
    }

    // Parts of descriptors

    /// Which descriptors folders list. Walks the folders if nothing did before; no lock is held meanwhile.
    pub(super) fn linked(&self) -> Option<&Linked> {
        if self.linked.get().is_none() {
            let linked = self.walk(&mut |_| ControlFlow::Continue(())).ok()?;
            let _ = self.linked.set(linked);
        }
        self.linked.get()
    }

    fn audit_descriptors(&self, group: u64, sink: Sink<'_>) -> ControlFlow<()> {
        let Some(fdc) = &self.volume.fdc else { return ControlFlow::Continue(()) };
        let first = group.saturating_mul(fdc.per_group);
        for cluster in first..first.saturating_add(fdc.per_group).min(fdc.clusters()) {
            let state = fdc.cluster(&self.volume.space, cluster);
            match &state {
                Ok(state) => {
                    let free = wide(state.free.iter().filter(|free| **free).count());
                    if free != state.free_count {
                        let range = state.at..state.at.saturating_add(self.volume.space.header.cluster_header_size());
                        let text = format!(
                            "cluster {cluster} of .fdc.sf counts {} free descriptors, its bitmap {free}",
                            state.free_count
                        );
                        sink(self.finding("VMFS-BITMAP-COUNT", range, text))?;
                    }
                }
                Err(Error::NotFound) => {}
                Err(error) => {
                    let at = fdc.header(cluster).and_then(|at| fdc.position(at)).unwrap_or_default();
                    let text = format!("cluster {cluster} of .fdc.sf: {error}");
                    sink(self.failed("VMFS-FDC-CLUSTER", at, error, text))?;
                }
            }
            let free = state.map(|state| state.free).unwrap_or_default();
            let left = fdc.total.saturating_sub(cluster.saturating_mul(fdc.per_cluster));
            if let Some(at) = self.is_hole(fdc, cluster) {
                // Nothing of them was ever written: those of which nothing else is left would all say the same.
                let mut blank: u64 = 0;
                for (resource, _) in (0..).zip(&free).filter(|(_, free)| !**free) {
                    let Some(address) = FdAddress::new(Spot { cluster, resource }) else { continue };
                    if self.volume.owned().knows(address) {
                        self.audit_descriptor(address, Some(true), sink)?;
                    } else {
                        blank = blank.saturating_add(1);
                    }
                }
                if blank > 0 {
                    let text = format!("{blank} descriptors of cluster {cluster} are in use and were never written");
                    sink(self.finding("VMFS-FD", at..at, text))?;
                }
                continue;
            }
            for resource in 0..fdc.per_cluster.min(left) {
                let Some(address) = FdAddress::new(Spot { cluster, resource }) else { continue };
                // A cluster whose bitmap is lost may hold anything.
                let used = free.get(narrow(resource)).map(|free| !free);
                self.audit_descriptor(address, used, sink)?;
            }
        }
        ControlFlow::Continue(())
    }

    /// Where the descriptors of a cluster lie, if all of that is a hole of the volume.
    fn is_hole(&self, fdc: &Resource, cluster: u64) -> Option<u64> {
        let start = fdc.body(Spot { cluster, resource: 0 })?;
        let len = fdc.per_cluster.saturating_mul(fdc.size);
        let Place::Below { offset, .. } = fdc.run(start, len.min(fdc.file.len().saturating_sub(start))).place else {
            return None;
        };
        let run = walk_merged(self.volume.lv(), offset..offset.saturating_add(len)).next()?;
        (run.len >= len && matches!(run.place, Place::Hole | Place::Zero)).then_some(offset)
    }

    fn audit_descriptor(&self, address: FdAddress, used: Option<bool>, sink: Sink<'_>) -> ControlFlow<()> {
        let fd = match self.volume.descriptor(address) {
            Ok(fd) => fd,
            Err(error) => {
                if used == Some(true) {
                    let at = self.volume.locate(address).unwrap_or_default();
                    let text = format!("{address} is in use and can't be read: {error}");
                    let end = at.saturating_add(self.volume.space.header.descriptor_size());
                    if at > 0 && end <= self.volume.lv().len() {
                        sink(Note::Taken { layer: self.volume.lv(), range: at..end })?;
                    }
                    sink(self.failed("VMFS-FD", at, &error, text))?;
                }
                return ControlFlow::Continue(());
            }
        };
        if let Some(finding) = self.rebuilt(&fd) {
            sink(Note::Finding(finding))?;
        }
        if used != Some(false) && fd.links > 0 {
            self.audit_live(&fd, sink)?;
            let unlisted = |linked: &Linked| !linked.has(address) && !linked.may_be_elsewhere(&fd);
            if used == Some(true) && self.linked().is_some_and(unlisted) {
                let folder = fd.parent.map(|parent| format!("; it says that it is in {parent}")).unwrap_or_default();
                let text = format!("{address} is in use, and no folder lists it{folder}");
                sink(self.finding("VMFS-FD-UNLISTED", self.whole(&fd), text))?;
            }
        }
        ControlFlow::Continue(())
    }

    /// Says so if a descriptor is not read from its place.
    fn rebuilt(&self, fd: &Descriptor) -> Option<Finding> {
        let (code, text) = match fd.origin {
            Origin::Disk => return None,
            Origin::Unlocked => {
                let text =
                    format!("the lock sector of {} is lost; it is read by its metadata, which name it", fd.address);
                ("VMFS-FD-LOCK", text)
            }
            Origin::Content => {
                let text = format!(
                    "the pointers of the folder {} are lost; it is read where its content says that it is its own",
                    fd.address
                );
                ("VMFS-FD-CONTENT", text)
            }
            Origin::Pointers => {
                let text = format!(
                    "the metadata of {} are lost; its bytes are where the pointers behind them lead, its length, {}, goes \
                     to their end, and its times, owner and mode are not known",
                    fd.address, fd.len
                );
                ("VMFS-FD-POINTERS", text)
            }
            Origin::Journal { journal, at } => {
                let text = format!(
                    "{} can't be read; it is read from the journal at {journal:#x}, at {at:#x} of it",
                    fd.address
                );
                ("VMFS-FD-JOURNAL", text)
            }
            Origin::Owners => {
                let guess = if fd.trust == Trust::Doubtful {
                    "in an order, and with a length, that are guessed"
                } else {
                    "in the only order that there is"
                };
                let text = format!(
                    "{} can't be read; it is made again of the sub-blocks that it owns, {guess}: {} bytes, {} blocks",
                    fd.address, fd.len, fd.blocks
                );
                ("VMFS-FD-OWNERS", text)
            }
        };
        let start = self.volume.space.physical(fd.at);
        let len = self.volume.space.header.descriptor_size();
        let node = Concern::Part(NodeId(fd.address.0.into()));
        Some(Finding::new(code, start..start.saturating_add(len), fd.trust, text).about(node))
    }

    /// Claims all that a live descriptor has, and checks it.
    fn audit_live(&self, fd: &Descriptor, sink: Sink<'_>) -> ControlFlow<()> {
        let lv = self.volume.lv();
        let own = match fd.shape {
            Shape::Resident => fd.at..fd.content_at,
            _ => self.whole(fd),
        };
        sink(Note::Claim { layer: lv, range: own, of: structure(fd, Part::Descriptor) })?;
        let file = self.volume.file(fd.clone());
        let mut flow = ControlFlow::Continue(());
        let survey = file.survey(&mut |range| {
            if flow.is_continue() {
                flow = sink(Note::Claim { layer: lv, range, of: structure(fd, Part::Pointers) });
            }
        });
        flow?;
        if survey.endless {
            let text =
                format!("{} has more pointers than the volume has blocks, or one pointer block twice", fd.address);
            return sink(self.about(fd, Concern::Whole, "VMFS-FD-POINTERS", self.whole(fd), text));
        }
        let balances = survey.blocks == fd.blocks || survey.unknown && survey.blocks < fd.blocks;
        if survey.large == 0 && !balances {
            let text = format!("{} counts {} blocks and points to {}", fd.address, fd.blocks, survey.blocks);
            sink(self.about(fd, Concern::Whole, "VMFS-FD-BLOCKS", self.whole(fd), text))?;
        }
        // Resource files were claimed in part 0, as far as they are nobody else's.
        let resources = [FdAddress::FBB, FdAddress::FDC, FdAddress::PBC, FdAddress::SBC, FdAddress::VH, FdAddress::JBC];
        let is_resource = fd.kind == Type::System
            && (resources.contains(&fd.address) || self.volume.space.header.pb2() == Some(fd.address));
        if is_resource || fd.shape == Shape::Elsewhere {
            return ControlFlow::Continue(());
        }
        let of = match fd.node_kind() {
            Kind::Dir => structure(fd, Part::Folder),
            _ if fd.kind == Type::System => structure(fd, Part::System),
            _ => Use::Data(NodeId(fd.address.0.into())),
        };
        self.audit_data(fd, &file, of, sink)
    }

    fn audit_data(&self, fd: &Descriptor, file: &dyn Layer, of: Use, sink: Sink<'_>) -> ControlFlow<()> {
        let lv = self.volume.lv();
        let mut at: u64 = 0;
        let mut count: u64 = 0;
        let mut free: Option<(u64, u64, Range<u64>)> = None;
        while at < file.len() {
            let run = file.run(at, file.len().saturating_sub(at));
            match run.place {
                Place::Below { offset, .. } => {
                    let range = offset..offset.saturating_add(run.len);
                    if let Some((more, first)) = self.witness.free_blocks(range.clone()) {
                        let (blocks, _, _) = free.get_or_insert((0, first, range.clone()));
                        *blocks = blocks.saturating_add(more);
                    }
                    sink(Note::Claim { layer: lv, range, of })?;
                }
                Place::Lost(loss) if loss.why == Why::Unmapped => {
                    count = count.saturating_add(1);
                    if count <= LOST {
                        let text = format!("{}: {:#x} bytes at {at:#x} have no usable pointer", fd.address, run.len);
                        let range = loss.at..loss.at.saturating_add(8);
                        sink(self.about(fd, Concern::Part, "VMFS-POINTER", range, text))?;
                    }
                }
                _ => {}
            }
            at = at.saturating_add(run.len.max(1));
        }
        if let Some((blocks, first, range)) = free {
            let text = format!(
                "{} uses {blocks} blocks that the bitmap has as free, the first is block {first}: what is in them may \
                 be another file's",
                fd.address
            );
            sink(self.about(fd, Concern::Part, "VMFS-BLOCK-FREE", range, text))?;
        }
        if count > LOST {
            let text = format!("{}: {count} ranges have no usable pointer", fd.address);
            sink(self.about(fd, Concern::Part, "VMFS-POINTER", self.whole(fd), text))?;
        }
        ControlFlow::Continue(())
    }

    // Bitmaps of blocks

    fn audit_free(&self, chunk: u64, sink: Sink<'_>) -> ControlFlow<()> {
        let Some(blocks) = self.volume.blocks() else { return ControlFlow::Continue(()) };
        let size = 1_u64.checked_shl(self.volume.space.header.file_shift).unwrap_or(0);
        let lv = self.volume.lv();
        let first = chunk.saturating_mul(CLUSTERS);
        for cluster in first..first.saturating_add(CLUSTERS).min(self.block_clusters(blocks)) {
            let state = match blocks.cluster(&self.volume.space, cluster) {
                Ok(state) => state,
                // A large block that is not split has no cluster of small ones.
                Err(Error::NotFound) => continue,
                Err(error) => {
                    let at = blocks.header(cluster).and_then(|at| blocks.position(at)).unwrap_or_default();
                    let text = format!("cluster {cluster} of .fbb.sf: {error}");
                    sink(self.failed("VMFS-FBB-CLUSTER", at, &error, text))?;
                    continue;
                }
            };
            let start = cluster.saturating_mul(blocks.per_cluster);
            let total = blocks.total.saturating_sub(start);
            for (first, count, free) in stretches(&state.free, narrow(total)) {
                let at = start.saturating_add(first).saturating_mul(size);
                let range = at..at.saturating_add(count.saturating_mul(size)).min(lv.len());
                if free && range.start < range.end {
                    sink(Note::Free { layer: lv, range })?;
                } else if !free {
                    // Of what lies in resource files their own bitmaps tell.
                    for range in self.heir().outside_of_resources(range) {
                        sink(Note::Taken { layer: lv, range })?;
                    }
                }
            }
        }
        ControlFlow::Continue(())
    }
}

/// Takes places of a layer; `Break` stops.
type Taker<'s> = &'s mut dyn FnMut(&dyn Layer, Range<u64>) -> ControlFlow<()>;

/// Neighbours in a bitmap that are alike: the first of them, how many, and whether they are free.
fn stretches(free: &[bool], most: usize) -> Vec<(u64, u64, bool)> {
    let mut found: Vec<(u64, u64, bool)> = Vec::new();
    for (number, free) in (0..).zip(free.iter().take(most)) {
        match found.last_mut() {
            Some((_, count, known)) if known == free => *count = count.saturating_add(1),
            _ => found.push((number, 1, *free)),
        }
    }
    found
}

/// A structure of a descriptor's node.
fn structure(fd: &Descriptor, part: Part) -> Use {
    Use::Node { id: NodeId(fd.address.0.into()), part }
}

/// The sink broke off.
struct Cancelled;
