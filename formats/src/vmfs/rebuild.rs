//! What stands in for a header that is destroyed: the volume's geometry, from the records that remain.
//!
//! A header that is there is held against the same records: a field that they contradict is believed as they have it.
//!
//! The header of a volume has no second copy, but nearly all that it says is written elsewhere too. Only the label
//! and the UUID are nowhere else.
//!
//! | of the header | taken from | how sure |
//! | --- | --- | --- |
//! | layout, alignment of metadata | where `.fdc.sf` starts, and the size of its resources | real images, 4 KiB; others sources |
//! | group 0 and clusters in a group of `.fdc.sf` | its own header; without it the values of all real images | real images |
//! | file block size | descriptors of the system files | real images |
//! | sub-block size, whether dense | header of `.sbc.sf`: dense has 64 in a cluster | real images |
//! | version | heartbeats: 4 is VMFS3, 14 VMFS5, 24 VMFS6 | real images, one of VMFS3 |
//! | whether VMFS3, without heartbeats | there is no descriptor of `.pb2.sf` | one real image |
//! | whether VMFS-L | the kind of lock in heartbeats: 1, else 3 | real images, one of VMFS-L |
//! | time of creation | descriptors of the system files | real images: equal |
//! | length of the volume | file blocks that `.fbb.sf` counts | real images: equal |
//!
//! Every record that is relied on says where in the volume it lies, which is what proves the start of the volume.

use super::address::FdAddress;
use super::descriptor::{self, Descriptor, RawLock, RawMetadata, Shape, Type};
use super::header::{GROUP_AT, Geometry, Header, Name, RawHeader, is_magic};
use super::resource::RawResource;
use super::volume::{Pools, Space, Volume};
use crate::adapt::Trusted;
use crate::error::Error;
use crate::layer::{Bytes, Layer, Trust};
use crate::memo::Memo;
use crate::read::read;
use crate::record::Record;
use std::sync::Arc;

/// First bytes of the header of a cluster of descriptors.
pub(super) const FDC_CLUSTER: u32 = 0x10C0_0005;
/// First bytes of a heartbeat, free and in use.
pub(super) const HEARTBEATS: [u32; 2] = [0xABCD_EF01, 0xABCD_EF02];
/// Heartbeats of a volume, at most.
const BEATS: u64 = 2048;

/// A layout that a volume can have, and where its `.fdc.sf` then starts.
#[derive(Clone, Copy)]
struct Layout {
    six: bool,
    md: u64,
    /// A file block size that has this layout.
    file_shift: u32,
}

impl Layout {
    /// VMFS5 by the place that its file blocks allow, VMFS6 by the alignments that there are.
    const ALL: [Self; 7] = [
        Self::five(20),
        Self::six(4 << 10),
        Self::five(23),
        Self::six(8 << 10),
        Self::six(16 << 10),
        Self::six(32 << 10),
        Self::six(64 << 10),
    ];

    const fn five(file_shift: u32) -> Self {
        Self { six: false, md: 512, file_shift }
    }

    const fn six(md: u64) -> Self {
        Self { six: true, md, file_shift: 20 }
    }

    /// The header of such a volume, as all real images have it.
    fn usual(self) -> Geometry {
        Geometry::usual(self.six, self.md, self.file_shift)
    }
}

/// Whether a record with this magic that knows its place lies at `at` of a volume that starts at `base`.
fn is_record(layer: &dyn Layer, base: u64, at: u64, magic: u32) -> bool {
    let mut lock = [0; RawLock::SIZE];
    let Some(place) = base.checked_add(at).filter(|place| RawLock::end(*place) <= layer.len()) else { return false };
    let whole = read(layer, place, &mut lock).is_whole();
    whole && RawLock::parse(&lock, place).is_ok_and(|lock| lock.magic == magic && lock.at == at)
}

/// Whether `.fdc.sf` of a volume that starts at `base` lies at one of the places where it can.
pub(super) fn is_here(layer: &dyn Layer, base: u64) -> bool {
    Layout::ALL.into_iter().any(|layout| {
        let header = Header::assumed(&layout.usual());
        let root = header.fixed(FdAddress::ROOT);
        is_record(layer, base, header.fdc_at().saturating_add(GROUP_AT), FDC_CLUSTER)
            || root.is_some_and(|root| is_record(layer, base, root, descriptor::MAGIC))
    })
}

/// The header of a volume, and the volume as far as it is believed then.
#[derive(Clone, Debug)]
pub(super) struct Found {
    /// The header.
    pub header: Header,
    /// The volume.
    pub lv: Bytes,
    /// What it was made up from, if it was.
    pub text: Option<String>,
}

/// The header of a volume; where it is destroyed, leads nowhere or is contradicted by the system files, the one that the
/// records say it had.
pub(super) fn header(lv: &Bytes, memo: &Memo) -> Result<Found, Error> {
    let as_is = |header| Found { header, lv: Bytes::clone(lv), text: None };
    let raw = RawHeader::load(&**lv, super::header::HEADER_AT).ok();
    let why = match Header::load(&**lv) {
        Ok(header) if leads(&**lv, &header) => {
            let believed = corrected(lv, memo, &header);
            let fields = fields(&header, &believed);
            if fields.is_empty() {
                return Ok(as_is(header));
            }
            return Ok(made_up(lv, believed, header.name(), format!("is contradicted by its system files: {fields}")));
        }
        // A header that agrees with itself, and with nothing else.
        Ok(header) => match rebuild(lv, memo) {
            Some((rebuilt, text)) if !rebuilt.is_alike(&header) && leads(&**lv, &rebuilt) => {
                let fields = fields(&header, &rebuilt);
                return Ok(made_up(
                    lv,
                    header.shaped(&rebuilt),
                    header.name(),
                    format!("leads nowhere: {fields}: {text}"),
                ));
            }
            _ => return Ok(as_is(header)),
        },
        Err(error) => error,
    };
    let Some((rebuilt, text)) = rebuild(lv, memo) else { return Err(why) };
    // With its magic the name stands too, and so it does where all but the magic agrees with the records.
    let whole = raw.as_ref().and_then(|raw| Header::of(raw).ok()).filter(|header| header.is_alike(&rebuilt));
    if let Some(header) = whole {
        let text = format!("can't be used ({why}); all else of it agrees with {text}");
        return Ok(made_up(lv, header.shaped(&rebuilt), header.name(), text));
    }
    let name = raw.filter(|raw| is_magic(raw.magic)).map(|raw| raw.name());
    Ok(match name {
        Some(name) => made_up(lv, rebuilt, name, format!("can't be used ({why}): {text}")),
        None => made_up(
            lv,
            rebuilt.clone(),
            rebuilt.name(),
            format!("is destroyed: {text}; the label and the UUID are lost"),
        ),
    })
}

fn made_up(lv: &Bytes, mut header: Header, name: Name, text: String) -> Found {
    header.called(name);
    Found { header, lv: Arc::new(Trusted::new(Bytes::clone(lv), Trust::Inferred)), text: Some(text) }
}

/// The fields of a header that are believed to be others, in words.
fn fields(header: &Header, believed: &Header) -> String {
    let fields = header.differences(believed).into_iter();
    let texts = fields.map(|(name, at, said, right)| format!("{name} at {at:#x} is {said:#x}, {right:#x} is believed"));
    texts.collect::<Vec<_>>().join("; ")
}

/// Whether the descriptor of `.fdc.sf`, or that of `.fbb.sf`, is where a header has it.
fn leads(lv: &dyn Layer, header: &Header) -> bool {
    let load = |address| header.fixed(address).and_then(|at| Descriptor::load(lv, header, at, address).ok());
    let blocks = |fd: &Descriptor| matches!(fd.shape, Shape::Mapped { shift, .. } if shift == header.file_shift);
    load(FdAddress::FDC).is_some_and(|fd| blocks(&fd)) || load(FdAddress::FBB).is_some_and(|fd| blocks(&fd))
}

/// A header that leads to its system files, with those of its fields as they say that contradict it.
fn corrected(lv: &Bytes, memo: &Memo, header: &Header) -> Header {
    let mut believed = header.clone();
    let (found, by_descriptors, system) = descriptors(&**lv, header.geometry());
    if found >= 2 {
        if by_descriptors.file_shift != header.file_shift {
            believed = header.shaped(&Header::assumed(&by_descriptors));
        }
        // No volume is younger than the files that it was made with.
        if system.created != 0 && system.created < header.created {
            believed.created = system.created;
        }
    }
    let row = Header::assumed(&believed.geometry()).clone().later().map(|place| *place);
    for (place, usual) in believed.later().into_iter().zip(row) {
        let known = Descriptor::load(&**lv, header, usual.0, usual.1).is_ok_and(|fd| fd.kind == Type::System);
        if known {
            *place = usual;
        }
    }
    let space = Arc::new(Space::new(believed.clone(), lv, None, memo));
    let pools = Pools::open(&space, &mut Vec::new());
    let Some(subs) = believed.geometry().with_subs_of(&pools) else { return believed };
    if subs != believed.geometry() {
        believed = believed.shaped(&Header::assumed(&subs));
    }
    let small = if believed.is_six() { Volume::block_bitmaps(&space, &pools) } else { None };
    let small = small.and_then(|small| u32::try_from(small.per_cluster).ok());
    if let Some(per_cluster) = small.filter(|small| small.is_power_of_two()) {
        believed.large_shift = believed.file_shift.saturating_add(per_cluster.trailing_zeros());
    }
    believed
}

/// When the root of a volume was changed, Unix seconds; 0 if it can't be had.
pub(super) fn changed(found: &Found) -> u64 {
    let root = found.header.fixed(FdAddress::ROOT);
    let root = root.and_then(|at| Descriptor::load(&*found.lv, &found.header, at, FdAddress::ROOT).ok());
    root.map_or(0, |root| u64::from(root.changed.max(root.modified)))
}

/// Bytes of a volume, by the file blocks that are counted. `None` where the count can't be had or stands against
/// the file that it is in.
pub(super) fn length(volume: &Volume) -> Option<u64> {
    let blocks = volume.blocks().filter(|blocks| blocks.counts_agree())?;
    let len = blocks.total.checked_mul(1_u64.checked_shl(volume.space.header.file_shift)?)?;
    (1..=1 << 50).contains(&len).then_some(len)
}

/// Makes up the header of a volume by what its records say. `None` if there are too few.
fn rebuild(lv: &Bytes, memo: &Memo) -> Option<(Header, String)> {
    let (found, geometry, system) =
        Layout::ALL.into_iter().filter_map(|layout| survey(&**lv, layout)).max_by_key(|(found, ..)| *found)?;
    if found < 2 {
        return None;
    }
    let mut header = Header::assumed(&geometry);
    let volume = Volume::with(header.clone(), lv, None, &memo.share());
    let (geometry, subs) = geometry.with_subs_of(&volume.pools).map_or_else(
        || (geometry, "as is usual: the header of .sbc.sf can't be had"),
        |geometry| (geometry, "of its own header"),
    );
    header = Header::assumed(&geometry);
    let version = beat(&**lv, &header);
    if let Some(Beat { major, minor, local }) = version {
        (header.major, header.minor, header.local) = (major, minor, local);
    } else if !geometry.six && has_no_pb2(&**lv, &header) {
        header.major = VMFS3;
    }
    if header.major == VMFS3 {
        header.without_pb2();
    }
    header.created = system.created;
    let sizes = |shift: u32| 1_u64.checked_shl(shift).unwrap_or(0);
    let text = format!(
        "VMFS{}{} with file blocks of {} bytes by {found} descriptors of system files, sub-blocks of {} bytes ({subs}), \
         metadata in units of {}, version {}",
        match header.major {
            VMFS3 => "3",
            _ if geometry.six => "6",
            _ => "5",
        },
        if header.local { " (VMFS-L)" } else { "" },
        sizes(geometry.file_shift),
        sizes(geometry.sub_shift),
        geometry.md,
        version.map_or("unknown".into(), |Beat { major, minor, .. }| format!("{major}.{minor} by a heartbeat")),
    );
    Some((header, text))
}

/// What the system files' descriptors say together.
struct System {
    created: u32,
}

/// How many descriptors of system files a layout finds, and the geometry by them.
fn survey(lv: &dyn Layer, layout: Layout) -> Option<(usize, Geometry, System)> {
    let usual = layout.usual();
    let at = Header::assumed(&usual).fdc_at();
    let raw = RawResource::load(lv, at).ok().filter(|raw| is_fdc(raw, &usual));
    let said = raw.map(|raw| Geometry {
        fdc_offset: raw.cluster_group_offset.into(),
        fdc_clusters: raw.clusters_per_group.into(),
        ..usual
    });
    // The file's own header can be damaged too: what it says has to lead to descriptors.
    let tries = [said, Some(usual)].into_iter().flatten();
    tries.map(|geometry| descriptors(lv, geometry)).max_by_key(|(found, ..)| *found).filter(|(found, ..)| *found > 0)
}

/// Whether the header of a resource file can be that of `.fdc.sf`.
fn is_fdc(raw: &RawResource, of: &Geometry) -> bool {
    let size = Header::assumed(of).descriptor_size();
    u64::from(raw.resource_size) == size
        && (1..=1024).contains(&raw.resources_per_cluster)
        && (1..=1 << 16).contains(&raw.clusters_per_group)
        && (1..=16 << 20).contains(&raw.cluster_group_offset)
}

fn descriptors(lv: &dyn Layer, geometry: Geometry) -> (usize, Geometry, System) {
    let header = Header::assumed(&geometry);
    let row =
        [FdAddress::FBB, FdAddress::FDC, FdAddress::PBC, FdAddress::SBC, FdAddress::VH, FdAddress::PB2, FdAddress::JBC];
    let mut shifts = Vec::new();
    let mut created = u32::MAX;
    for address in row {
        let Some(at) = header.fixed(address) else { continue };
        let Ok(raw) = system(lv, &header, at) else { continue };
        if raw.address == address.0 && Type::of(raw.kind) == Some(Type::System) {
            created = created.min(raw.mtime);
            shifts.push(raw.block_size.trailing_zeros());
        }
    }
    // One damaged descriptor does not outvote the others. Shifts are few, so that counting them is cheap.
    let most = (19..=23_u32).max_by_key(|shift| shifts.iter().filter(|own| *own == shift).count()).unwrap_or(20);
    let found = shifts.iter().filter(|shift| **shift == most).count();
    // An 8 MiB block moves `.fdc.sf`, smaller ones do not.
    let fits = Header::assumed(&Geometry { file_shift: most, ..geometry }).fdc_at() == header.fdc_at();
    (
        if fits { found } else { 0 },
        Geometry { file_shift: most, ..geometry },
        System { created: if created == u32::MAX { 0 } else { created } },
    )
}

/// The metadata of the descriptor at `at`, if it lies where it says.
fn system(lv: &dyn Layer, header: &Header, at: u64) -> Result<RawMetadata, Error> {
    let lock = RawLock::load(lv, at)?;
    if lock.magic != descriptor::MAGIC || lock.at != at {
        return Err(Error::corrupt("VMFS descriptor: position", at, format!("it says {:#x}", lock.at)));
    }
    RawMetadata::load(lv, at.saturating_add(header.md))
}

/// The major version of VMFS3.
const VMFS3: u32 = 4;

/// What a heartbeat says of its host's driver.
#[derive(Clone, Copy)]
struct Beat {
    major: u32,
    minor: u8,
    /// Whether it locks as on VMFS-L.
    local: bool,
}

/// Whether nothing was ever written where the descriptor of `.pb2.sf` would be.
fn has_no_pb2(lv: &dyn Layer, header: &Header) -> bool {
    let mut lock = [0; RawLock::SIZE];
    let at = header.fixed(FdAddress::PB2);
    at.is_some_and(|at| read(lv, at, &mut lock).is_whole() && lock.iter().all(|byte| *byte == 0))
}

/// The version that a heartbeat says its host's driver writes.
fn beat(lv: &dyn Layer, header: &Header) -> Option<Beat> {
    /// The kind of lock on VMFS-L.
    const LOCAL: u8 = 1;
    let range = header.heartbeats();
    let mut slot = [0; 0x36];
    for index in 0..BEATS {
        let at = range.start.saturating_add(index.saturating_mul(header.md));
        if at >= range.end {
            break;
        }
        let known = read(lv, at, &mut slot).is_whole()
            && RawLock::parse(&slot, at).is_ok_and(|lock| HEARTBEATS.contains(&lock.magic) && lock.at == at);
        let major =
            slot.get(0x30..0x34).and_then(|bytes| bytes.first_chunk::<4>()).map(|bytes| u32::from_le_bytes(*bytes));
        let real = |major: &u32| *major == VMFS3 || (14..64).contains(major);
        let fits = major.as_ref().is_some_and(|major| real(major) && (*major >= 24) == header.is_six());
        if let (true, Some(major), Some([minor, lock])) = (known && fits, major, slot.get(0x34..)) {
            return Some(Beat { major, minor: *minor, local: *lock == LOCAL });
        }
    }
    None
}
