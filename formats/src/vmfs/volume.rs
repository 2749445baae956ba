//! A VMFS volume with its resource files.
//!
//! A pointer can lead into a resource file that is itself mapped by pointers. What keeps this from going round in
//! circles is the order: `.pb2.sf`, `.pbc.sf`, `.sbc.sf`, then all others, and each may only use those before it.
//! The order suffices, because the descriptors of all system files lie at fixed places.

use super::address::{Address, FdAddress, Spot};
use super::descriptor::{Descriptor, Origin, read_poisoned};
use super::file::File;
use super::header::Header;
use super::heartbeat::Heartbeats;
use super::journal;
use super::lvm::Logical;
use super::owner::{self, Owned};
use super::resource::Resource;
use crate::error::Error;
use crate::layer::{Bytes, Layer, Place, Trust};
use crate::memo::{Block, Memo};
use crate::note::Finding;
use crate::num::narrow;
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
}

impl Pools {
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
        let space = Arc::new(Space {
            lv: Bytes::clone(lv),
            logical,
            header,
            tables: memo.share(),
            pages: memo.share(),
            clusters: memo.share(),
            folders: memo.share(),
        });
        let mut findings = Vec::new();
        let mut open = |pools: &Arc<Pools>, address: FdAddress, name: &str| {
            Resource::open(&space, pools, address)
                .map_err(|error| {
                    let at = space.physical(space.header.fixed(address).unwrap_or_default());
                    let range = at..at.saturating_add(space.header.descriptor_size());
                    let text = format!("{name} can't be used: {error}");
                    findings.push(Finding::new("VMFS-RESOURCE", range, Trust::Doubtful, text));
                })
                .ok()
        };
        let mut pools = Arc::new(Pools::default());
        let pb2 = space.header.pb2().and_then(|address| open(&pools, address, ".pb2.sf"));
        pools = Arc::new(Pools { pb2, ..Pools::default() });
        let pbc = open(&pools, FdAddress::PBC, ".pbc.sf");
        pools = Arc::new(Pools { pbc, ..(*pools).clone() });
        let sbc = open(&pools, FdAddress::SBC, ".sbc.sf");
        pools = Arc::new(Pools { sbc, ..(*pools).clone() });
        let fdc = open(&pools, FdAddress::FDC, ".fdc.sf");
        let fbb = open(&pools, FdAddress::FBB, ".fbb.sf");
        let six = space.header.is_six();
        let jbc = if six { open(&pools, FdAddress::JBC, ".jbc.sf") } else { None };
        let mut sfb = None;
        if let Some(fbb) = fbb.as_ref().filter(|fbb| six && fbb.child_at != 0) {
            match Resource::at(&space.header, Arc::clone(&fbb.file), fbb.child_at) {
                Ok(child) => sfb = Some(child),
                Err(error) => {
                    let at = space.physical(fbb.position(fbb.child_at).unwrap_or_default());
                    findings.push(Finding::new("VMFS-RESOURCE", at..at, Trust::Doubtful, error.to_string()));
                }
            }
        }
        let heartbeats = Heartbeats::load(&**lv, &space.header);
        findings.extend(heartbeats.findings(&|at| space.physical(at)));
        Self { space, pools, fdc, fbb, sfb, jbc, heartbeats, owned: OnceLock::new(), findings }
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
            Ok(found) => return Ok(found),
            Err(error) => error,
        };
        // System files are needed to find what is left of others.
        if self.space.header.fixed(address).is_some() || self.is_free(address) != Some(false) {
            return Err(error);
        }
        owner::rebuild(self, at, address).ok_or(error)
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
