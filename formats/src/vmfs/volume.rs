//! A VMFS volume with its resource files.
//!
//! A pointer can lead into a resource file that is itself mapped by pointers. What keeps this from going round in
//! circles is the order: `.pb2.sf`, `.pbc.sf`, `.sbc.sf`, then all others, and each may only use those before it.
//! The order suffices, because the descriptors of all system files lie at fixed places.

use super::address::{Address, FdAddress, Spot};
use super::descriptor::{Descriptor, Origin, Shape, Type, read_poisoned};
use super::file::File;
use super::frame;
use super::header::Header;
use super::heartbeat::Heartbeats;
use super::journal;
use super::lvm::Logical;
use super::owner::{self, Owned};
use super::relic;
use super::resource::Resource;
use crate::error::Error;
use crate::layer::{Bytes, Layer, Place, Trust, Why};
use crate::memo::{Block, Memo};
use crate::note::Finding;
use crate::num::narrow;
use std::ops::Range;
use std::sync::{Arc, OnceLock};

/// What every file of a volume needs.
#[derive(Debug)]
pub struct Space {
    /// The logical volume.
    pub lv: Bytes,
    /// What it is made of, if the image is of a device and not of the volume itself.
    pub logical: Option<Arc<Logical>>,
    /// Its header.
    pub header: Header,
    /// Pointer blocks, by their position in the volume.
    pub tables: Memo,
    /// Pointer blocks that nothing names any more, by their position in the volume.
    pub(super) pages: Memo,
    /// Headers of clusters, by their position in the volume.
    pub clusters: Memo,
    /// Headers of folders, by the address of their descriptor.
    pub folders: Memo,
}

impl Space {
    /// What the files of a logical volume with this header need.
    #[must_use]
    pub fn new(header: Header, lv: &Bytes, logical: Option<Arc<Logical>>, memo: &Memo) -> Self {
        let (tables, pages, clusters, folders) = (memo.share(), memo.share(), memo.share(), memo.share());
        Self { lv: Bytes::clone(lv), logical, header, tables, pages, clusters, folders }
    }

    /// The descriptor at `at`, which must be that of `address`.
    pub fn descriptor(&self, at: u64, address: FdAddress) -> Result<Descriptor, Error> {
        Descriptor::load(&*self.lv, &self.header, at, address)
    }

    /// The same of another image of the volume.
    #[must_use]
    pub fn over(&self, lv: Bytes) -> Self {
        Self {
            lv,
            logical: self.logical.clone(),
            header: self.header.clone(),
            tables: self.tables.share(),
            pages: self.pages.share(),
            clusters: self.clusters.share(),
            folders: self.folders.share(),
        }
    }

    /// Where `at` of the volume lies on its device.
    #[must_use]
    pub fn physical(&self, at: u64) -> u64 {
        let run = self.logical.as_ref().filter(|lv| at < lv.len()).map(|lv| lv.run(at, 1).place);
        if let Some(Place::Below { offset, .. }) = run { offset } else { at }
    }

    /// A table of pointers that lies in a resource file: its position in the volume, and its content.
    #[must_use]
    pub fn table(&self, resource: &Resource, at: u64) -> Option<(u64, Arc<Block>)> {
        let position = resource.position(at)?;
        let len = narrow(self.header.table_size());
        let have = narrow(self.header.table_size().min(resource.size));
        let block = self.tables.get(position, || {
            let (mut bytes, seen) = read_poisoned(&*resource.file, at, have);
            bytes.resize(len, 0xFF);
            Block { bytes, fault: None, trust: seen.trust }
        });
        Some((position, block))
    }
}

/// Resource files that pointers can lead into.
#[derive(Clone, Debug, Default)]
pub struct Pools {
    /// `.pb2.sf`
    pub pb2: Option<Resource>,
    /// `.pbc.sf`
    pub pbc: Option<Resource>,
    /// `.sbc.sf`
    pub sbc: Option<Resource>,
    /// Why one of them can't be had, if it is only elsewhere.
    pub gone: Option<Why>,
}

/// Opens a resource file, and says what of it is not as it is written, or why it can't be used. The error is where it
/// is, if it is only elsewhere.
fn open_resource(
    space: &Arc<Space>,
    pools: &Arc<Pools>,
    address: FdAddress,
    name: &str,
    findings: &mut Vec<Finding>,
) -> Result<Resource, Option<Why>> {
    let at = space.physical(space.header.fixed(address).unwrap_or_default());
    let range = at..at.saturating_add(space.header.descriptor_size());
    match Resource::open(space, pools, address) {
        Ok(resource) => {
            made(name, &resource, &range, findings);
            Ok(resource)
        }
        Err(error) => {
            let text = format!("{name} can't be used: {error}");
            findings.push(Finding::new("VMFS-RESOURCE", range, error.doubt(), text));
            let Error::Lost { gap, .. } = error else { return Err(None) };
            Err(Some(gap.loss.why).filter(|why| why.is_elsewhere()))
        }
    }
}

/// Says what of a resource file, or of a header in it, was made up. What is read through it is a choice, and no worse.
fn made(what: &str, resource: &Resource, range: &Range<u64>, findings: &mut Vec<Finding>) {
    for text in &resource.told {
        let text = format!("{what} is not as it is written: {text}");
        findings.push(Finding::new("VMFS-RESOURCE-MADE", range.clone(), Trust::Inferred, text));
    }
}

/// The small file blocks that `.fbb.sf` of a VMFS6 splits large ones into.
fn small(space: &Arc<Space>, fbb: &Resource, findings: &mut Vec<Finding>) -> Option<Resource> {
    let child = fbb.child_at;
    if child == 0 {
        return None;
    }
    let at = space.physical(fbb.position(child).unwrap_or_default());
    let range = at..at.saturating_add(512);
    let kind = frame::Kind::small(&space.header);
    match Resource::at(&space.header, kind, Arc::clone(&fbb.file), child, Some(&fbb.raw)) {
        Ok(small) => {
            made("the header of small file blocks", &small, &range, findings);
            Some(small)
        }
        Err(error) => {
            findings.push(Finding::new("VMFS-RESOURCE", range, error.doubt(), error.to_string()));
            None
        }
    }
}

impl Pools {
    /// Opens them in their order, of which each needs those before it.
    pub(super) fn open(space: &Arc<Space>, findings: &mut Vec<Finding>) -> Arc<Self> {
        let mut gone = None;
        let mut open = |pools: &Arc<Self>, address, name| {
            let opened = open_resource(space, pools, address, name, findings);
            (opened.map_err(|why| gone = gone.or(why)).ok(), gone)
        };
        let mut pools = Arc::new(Self::default());
        let (pb2, gone) = space.header.pb2().map_or((None, None), |address| open(&pools, address, ".pb2.sf"));
        pools = Arc::new(Self { pb2, gone, ..Self::default() });
        let (pbc, gone) = open(&pools, FdAddress::PBC, ".pbc.sf");
        pools = Arc::new(Self { pbc, gone, ..(*pools).clone() });
        let (sbc, gone) = open(&pools, FdAddress::SBC, ".sbc.sf");
        Arc::new(Self { sbc, gone, ..(*pools).clone() })
    }

    /// Where a pointer block lies: the resource file and the offset there.
    #[must_use]
    pub fn table(&self, address: Address) -> Option<(&Resource, u64)> {
        let (pool, spot) = match address {
            Address::Pointer(spot) => (&self.pbc, spot),
            Address::Pointer2(spot) => (&self.pb2, spot),
            Address::Sub(spot) => (&self.sbc, spot),
            _ => return None,
        };
        let pool = pool.as_ref()?;
        Some((pool, pool.body(spot)?))
    }
}

/// An opened volume.
#[derive(Clone, Debug)]
pub struct Volume {
    /// What every file needs.
    pub space: Arc<Space>,
    /// What pointers lead into.
    pub pools: Arc<Pools>,
    /// `.fdc.sf`
    pub fdc: Option<Resource>,
    /// `.fbb.sf`: file blocks, or large file blocks on VMFS6.
    pub fbb: Option<Resource>,
    /// Small file blocks on VMFS6.
    pub sfb: Option<Resource>,
    /// `.jbc.sf` on VMFS6.
    pub jbc: Option<Resource>,
    /// Which hosts had it.
    pub heartbeats: Heartbeats,
    owned: OnceLock<Owned>,
    /// The top folder, as far as it can be had without its descriptor.
    top: OnceLock<Option<Descriptor>>,
    /// What was seen on the way.
    pub findings: Vec<Finding>,
}

impl Volume {
    /// Opens the volume of a logical volume. A resource file that can't be opened costs what needs it. What the
    /// journals of hosts that did not unmount have and was not written home is laid over the volume.
    pub fn load(lv: &Bytes, logical: Option<Arc<Logical>>, memo: &Memo) -> Result<Self, Error> {
        Ok(Self::replayed(Header::load(&**lv)?, lv, logical, memo))
    }

    /// As [`Volume::load`], of a logical volume that has this header.
    #[must_use]
    pub fn replayed(header: Header, lv: &Bytes, logical: Option<Arc<Logical>>, memo: &Memo) -> Self {
        let volume = Self::with(header.clone(), lv, logical.clone(), memo);
        let replay = journal::replay(&volume);
        let mut volume = match replay.over(lv) {
            Some(over) => Self::with(header, &over, logical, memo),
            None => volume,
        };
        volume.findings.extend(replay.findings);
        volume
    }

    /// Opens the volume of a logical volume that has this header, as it stands, whatever journals say.
    #[must_use]
    pub fn with(header: Header, lv: &Bytes, logical: Option<Arc<Logical>>, memo: &Memo) -> Self {
        let space = Arc::new(Space::new(header, lv, logical, memo));
        let mut findings = Vec::new();
        let pools = Pools::open(&space, &mut findings);
        let fdc = open_resource(&space, &pools, FdAddress::FDC, ".fdc.sf", &mut findings).ok();
        let fbb = open_resource(&space, &pools, FdAddress::FBB, ".fbb.sf", &mut findings).ok();
        let six = space.header.is_six();
        let jbc = six.then(|| open_resource(&space, &pools, FdAddress::JBC, ".jbc.sf", &mut findings).ok()).flatten();
        let sfb = fbb.as_ref().filter(|_| six).and_then(|fbb| small(&space, fbb, &mut findings));
        let heartbeats = Heartbeats::load(&**lv, &space.header);
        findings.extend(heartbeats.findings(&|at| space.physical(at)));
        Self { space, pools, fdc, fbb, sfb, jbc, heartbeats, owned: OnceLock::new(), top: OnceLock::new(), findings }
    }

    /// The bitmaps of file blocks, of VMFS6 of the small ones, if they can be had.
    pub(super) fn block_bitmaps(space: &Arc<Space>, pools: &Arc<Pools>) -> Option<Resource> {
        let mut findings = Vec::new();
        let fbb = open_resource(space, pools, FdAddress::FBB, ".fbb.sf", &mut findings).ok()?;
        if space.header.is_six() { small(space, &fbb, &mut findings) } else { Some(fbb) }
    }

    /// Where the descriptor of an address lies in the volume.
    pub fn locate(&self, address: FdAddress) -> Result<u64, Error> {
        if let Some(at) = self.space.header.fixed(address) {
            return Ok(at);
        }
        let fdc = self.fdc.as_ref().ok_or_else(|| {
            Error::corrupt("VMFS .fdc.sf", self.space.header.fdc_at(), "it can't be used, and so no descriptor in it")
        })?;
        self.locate_spot(fdc, address.spot())
    }

    fn locate_spot(&self, fdc: &Resource, spot: Spot) -> Result<u64, Error> {
        let at = fdc.body(spot).ok_or(Error::NotFound)?;
        let run = fdc.run(at, self.space.header.descriptor_size());
        match run.place {
            Place::Below { offset, .. } => Ok(offset),
            Place::Lost(loss) => {
                let range = at..at.saturating_add(run.len);
                Err(Error::Lost { what: "VMFS descriptor in .fdc.sf", gap: crate::layer::Gap { range, loss } })
            }
            _ => Err(Error::NotFound),
        }
    }

    /// The descriptor of an address. One that is in use and can't be read is made again out of what a journal or the
    /// tables of owners have of it, if they do: [`Descriptor::origin`] tells.
    pub fn descriptor(&self, address: FdAddress) -> Result<Descriptor, Error> {
        let at = self.locate(address)?;
        let error = match self.space.descriptor(at, address) {
            Ok(found) if relic::is_bare(&found) => return Ok(relic::sought(self, &found).unwrap_or(found)),
            Ok(found) => return Ok(found),
            Err(error) => error,
        };
        // All names hang on it, and it takes a search.
        if address == FdAddress::ROOT {
            let top = self.top.get().cloned().unwrap_or_else(|| {
                let top = self.remade(at, address);
                self.top.get_or_init(|| top).clone()
            });
            return top.ok_or(error);
        }
        // System files are needed to find what is left of others.
        if self.space.header.fixed(address).is_some() {
            let made = self.resources().find(|resource| resource.file.descriptor().address == address);
            let made = made.and_then(|resource| resource.made.clone());
            return made.or_else(|| relic::descriptor(self, at, address)).ok_or(error);
        }
        if self.is_free(address) != Some(false) {
            return Err(error);
        }
        self.remade(at, address).ok_or(error)
    }

    /// A descriptor that can't be read, as journals, what is left of it, or the tables of owners have it.
    fn remade(&self, at: u64, address: FdAddress) -> Option<Descriptor> {
        // A journal's image can be older than the pointers that still stand behind the metadata.
        match (owner::image(self, at, address), relic::descriptor(self, at, address)) {
            (Some(image), Some(relic)) if relic.shape != Shape::Resident && image.pointers != relic.pointers => {
                Some(relic)
            }
            // Nor has a folder's image to be as long as the folder by now. On VMFS6 its own map says which of its blocks
            // count; on VMFS5 entries of others can lie behind its end.
            (Some(image), Some(relic))
                if self.space.header.is_six() && image.kind == Type::Folder && relic.kind == Type::Folder =>
            {
                Some(Descriptor { len: image.len.max(relic.len), origin: relic.origin, trust: relic.trust, ..image })
            }
            (Some(image), _) => Some(image),
            (None, Some(relic)) => Some(relic),
            (None, None) => owner::rebuild(self, at, address),
        }
    }

    /// The resource files that were opened.
    fn resources(&self) -> impl Iterator<Item = &Resource> {
        let Self { pools, fdc, fbb, jbc, .. } = self;
        [&pools.pb2, &pools.pbc, &pools.sbc, fdc, fbb, jbc].into_iter().flatten()
    }

    /// What files own, and what journals have of them. No lock is held while it is read; what was read once stays, so
    /// that one volume is the same for all who ask.
    pub(super) fn owned(&self) -> &Owned {
        if let Some(owned) = self.owned.get() {
            return owned;
        }
        let owned = Owned::load(self);
        self.owned.get_or_init(|| owned)
    }

    /// Whether there is more to know of what files own than is kept. Not asked unless a descriptor is lost.
    pub(super) fn owned_cut(&self) -> bool {
        self.owned.get().is_some_and(|owned| owned.cut)
    }

    /// The content of a descriptor.
    #[must_use]
    pub fn file(&self, descriptor: Descriptor) -> File {
        if let Origin::Journal { journal, at } = descriptor.origin
            && let Some(image) = self.owned().image(descriptor.address, journal, at)
        {
            return image.file(self);
        }
        File::new(Arc::clone(&self.space), Arc::clone(&self.pools), descriptor)
    }

    /// The bitmaps of the blocks that files are made of.
    #[must_use]
    pub fn blocks(&self) -> Option<&Resource> {
        if self.space.header.is_six() { self.sfb.as_ref() } else { self.fbb.as_ref() }
    }

    /// Whether the bitmap says that a descriptor is free. `None` if the bitmap can't be had.
    #[must_use]
    pub fn is_free(&self, address: FdAddress) -> Option<bool> {
        self.fdc.as_ref()?.is_free(&self.space, address.spot()).map(|(free, _)| free)
    }

    /// The logical volume.
    #[must_use]
    pub fn lv(&self) -> &dyn Layer {
        &*self.space.lv
    }
}
