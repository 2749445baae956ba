//! What is left of a descriptor whose metadata are lost: the pointers or the content that lie behind them in sectors of
//! their own, and what others say of it.
//!
//! | fact | taken from | how sure |
//! | --- | --- | --- |
//! | address | its place | real images |
//! | type | its place, for the root and system files; else its content: a folder's starts as one | real images |
//! | what the pointers lead to | their own types; a sub-block of pointers maps blocks, any other is data | real images |
//! | length | the end of the last block, or of the last byte that is not zero of resident content | a guess |
//! | folder | table of owners, VMFS6 | real images |
//!
//! Generation, times, owner and mode are nowhere else.

use super::address::{Address, FdAddress, Spot};
use super::descriptor::{Descriptor, MAGIC, Origin, RawLock, Shape, Type, read_poisoned};
use super::directory;
use super::file::File;
use super::header::Header;
use super::owner::{self, Content};
use super::volume::{Pools, Space, Volume};
use crate::layer::{Layer, Trust};
use crate::num::{narrow, wide};
use crate::read::read_vec;
use crate::record::Record;
use byteorder::{ByteOrder, LittleEndian};
use std::sync::Arc;

/// A descriptor of which only the place is known.
pub(super) fn blank(header: &Header, at: u64, address: FdAddress, kind: Type) -> Descriptor {
    let (pointers, content) = Descriptor::parts(header);
    Descriptor {
        at,
        address,
        generation: 0,
        links: 1,
        kind,
        len: 0,
        blocks: 0,
        modified: 0,
        changed: 0,
        accessed: 0,
        uid: 0,
        gid: 0,
        mode: 0,
        parent: None,
        shape: Shape::Mapped { levels: 0, shift: header.file_shift },
        pointers: Vec::new(),
        pointers_at: at.saturating_add(pointers),
        content_at: at.saturating_add(content),
        content_len: header.descriptor_size().saturating_sub(content),
        origin: Origin::Pointers,
        trust: Trust::Doubtful,
    }
}

/// The pointers of the descriptor at `at`. `None` if there are none, or nonsense is among them.
pub(super) fn pointers(space: &Space, at: u64) -> Option<Vec<u8>> {
    let header = &space.header;
    let (start, _) = Descriptor::parts(header);
    let (bytes, _) =
        read_poisoned(&*space.lv, at.saturating_add(start), narrow(header.descriptor_size().saturating_sub(start)));
    let mut some = false;
    for address in decoded(header, &bytes) {
        let fits = match address {
            Address::Hole => continue,
            Address::File(block) => block.number < space.lv.len() >> header.file_shift.min(63) && !block.odd,
            Address::Large(block) => block.number < space.lv.len() >> header.large_shift.min(63) && !block.odd,
            Address::Sub(_) | Address::Pointer(_) | Address::Pointer2(_) => true,
            Address::Bad => false,
        };
        if !fits {
            return None;
        }
        some = true;
    }
    some.then_some(bytes)
}

/// The pointers of an array; those that are lost are left out.
fn decoded<'a>(header: &Header, bytes: &'a [u8]) -> impl Iterator<Item = Address> + use<'a> {
    let width = header.width;
    let raws = bytes.chunks_exact(narrow(width.bytes()).max(1)).filter(|raw| raw.iter().any(|byte| *byte != 0xFF));
    raws.map(move |raw| width.decode(LittleEndian::read_uint(raw, raw.len())))
}

/// The file block that an array starts with.
pub(super) fn first(header: &Header, pointers: &[u8]) -> Option<u64> {
    match decoded(header, pointers).next()? {
        Address::File(block) => Some(block.number),
        _ => None,
    }
}

/// How many levels of pointer blocks an array of a system file has, by the types of its pointers, which are all alike.
pub(super) fn levels(header: &Header, pointers: &[u8]) -> Option<u32> {
    let mut levels =
        decoded(header, pointers).filter(|address| *address != Address::Hole).map(|address| match address {
            Address::File(_) => Some(0),
            Address::Sub(_) | Address::Pointer(_) | Address::Pointer2(_) => Some(1),
            _ => None,
        });
    let first = levels.next()??;
    levels.all(|level| level == Some(first)).then_some(first)
}

/// The same descriptor, as long as its pointers go, and with as many blocks.
pub(super) fn measured(space: &Arc<Space>, pools: &Arc<Pools>, fd: Descriptor) -> Option<Descriptor> {
    let Shape::Mapped { levels, shift } = fd.shape else { return Some(fd) };
    let header = &space.header;
    let width = narrow(header.width.bytes()).max(1);
    let last =
        |bytes: &[u8]| bytes.chunks_exact(width).rposition(|raw| raw.iter().any(|byte| ![0, 0xFF].contains(byte)));
    let mut table = fd.pointers.clone();
    let mut end: u64 = 0;
    for level in (0..=levels).rev() {
        let index = last(&table)?;
        let span = 1_u64.checked_shl(shift.checked_add(level.checked_mul(header.fan_shift)?)?)?;
        end = end.checked_add(wide(index).checked_mul(span)?)?;
        if level == 0 {
            end = end.checked_add(span)?;
            break;
        }
        let raw = table.chunks_exact(width).nth(index)?;
        let address = header.width.decode(LittleEndian::read_uint(raw, raw.len()));
        let (pool, offset) = pools.table(address)?;
        table.clone_from(&space.table(pool, offset)?.1.bytes);
    }
    let file = File::new(Arc::clone(space), Arc::clone(pools), fd.clone());
    let survey = file.survey(&mut |_| {});
    (end <= 1 << 50 && !survey.endless).then_some(Descriptor { len: end, blocks: survey.blocks, ..fd })
}

/// What is left of the descriptor of an address, which lies at `at` and whose metadata are lost.
pub(super) fn descriptor(volume: &Volume, at: u64, address: FdAddress) -> Option<Descriptor> {
    let space = &volume.space;
    let header = &space.header;
    let fixed = header.fixed(address).is_some();
    let kind = match address {
        FdAddress::ROOT => Type::Folder,
        _ if fixed => Type::System,
        _ => Type::File,
    };
    let parent = volume.fdc.as_ref().and_then(|fdc| owner::of(space, fdc, address.spot()));
    let fd = Descriptor { parent, ..blank(header, at, address, kind) };
    let led = pointers(space, at);
    if address == FdAddress::ROOT {
        let led = led.and_then(|pointers| led_to(volume, Descriptor { pointers, ..fd.clone() }));
        let led = led.filter(|fd| starts_as(volume, fd) == Some(address));
        let size = 1_u64.checked_shl(header.file_shift)?;
        let found = led.or_else(|| sought(volume, &Descriptor { len: size, blocks: 1, ..fd }))?;
        return Some(as_folder(volume, found, fixed));
    }
    match led {
        Some(pointers) => Some(as_folder(volume, led_to(volume, Descriptor { pointers, ..fd })?, fixed)),
        None if fixed => None,
        None => resident(space, fd),
    }
}

/// Which folder the content of a descriptor says that it is.
fn starts_as(volume: &Volume, fd: &Descriptor) -> Option<FdAddress> {
    let (bytes, seen) = read_vec(&volume.file(fd.clone()), 0, narrow(fd.len.min(0x400)));
    directory::own(&volume.space.header, &bytes).filter(|_| seen.is_whole())
}

/// A descriptor of which there are only pointers, as long as what they lead to.
fn led_to(volume: &Volume, fd: Descriptor) -> Option<Descriptor> {
    let header = &volume.space.header;
    let first = decoded(header, &fd.pointers).find(|address| *address != Address::Hole)?;
    let (levels, shift) = match first {
        Address::File(_) | Address::Large(_) => (0, header.file_shift),
        Address::Pointer(_) | Address::Pointer2(_) => (if is_upper(volume, first) { 2 } else { 1 }, header.file_shift),
        Address::Sub(spot) => match sub(volume, spot)? {
            Content::Leaf { .. } if header.is_six() => (1, header.file_shift),
            Content::Upper { .. } if header.is_six() => (2, header.file_shift),
            _ => (0, header.sub_shift),
        },
        Address::Hole | Address::Bad => return None,
    };
    measured(&volume.space, &volume.pools, Descriptor { shape: Shape::Mapped { levels, shift }, ..fd })
}

/// The same as a folder, if its content is one's.
fn as_folder(volume: &Volume, fd: Descriptor, fixed: bool) -> Descriptor {
    /// Type bits of a folder in a mode, and what all may do with it.
    const MODE: u32 = 0o040_755;
    let file = volume.file(fd.clone());
    let (head, seen) = read_vec(&file, 0, narrow(file.len().min(280)));
    let is_folder = seen.is_whole()
        && if volume.space.header.is_six() { directory::is_head(&head) } else { directory::is_flat(&head) };
    if !is_folder && fd.kind != Type::Folder {
        return fd;
    }
    let kind = if fixed { fd.kind } else { Type::Folder };
    let len = if volume.space.header.is_six() { fd.len } else { directory::flat_len(&file) };
    Descriptor { kind, len, mode: MODE, ..fd }
}

/// Whether a folder counts blocks, and has lost all pointers to them.
pub(super) fn is_bare(fd: &Descriptor) -> bool {
    let direct = matches!(fd.shape, Shape::Mapped { levels: 0, .. });
    let lost = || fd.pointers.iter().all(|byte| [0, 0xFF].contains(byte));
    direct && fd.blocks > 0 && fd.node_kind() == crate::tree::Kind::Dir && lost()
}

/// A folder whose pointers are lost, with its first block: each folder starts with an entry of itself. The root lies
/// behind the first block of `.fdc.sf` on all real images; others are looked for where the tables of owners have them,
/// and among the sub-blocks and blocks in use.
pub(super) fn sought(volume: &Volume, fd: &Descriptor) -> Option<Descriptor> {
    /// Sub-blocks and blocks that are looked at.
    const LOOKED: u64 = 1 << 14;
    let space = &volume.space;
    let header = &space.header;
    let shift = header.file_shift.min(63);
    let is_it = |layer: &dyn Layer, at: u64| {
        let (bytes, seen) = read_vec(layer, at, narrow(if header.is_six() { 0x400 } else { 280 }));
        seen.is_whole() && directory::own(header, &bytes) == Some(fd.address)
    };
    let found = |raw: u64, shift: u32| {
        let raw = raw.to_le_bytes();
        let mut pointers = raw.get(..narrow(header.width.bytes()))?.to_vec();
        // The others are lost, and no holes.
        pointers.resize(fd.pointers.len().max(pointers.len()), 0xFF);
        let shape = Shape::Mapped { levels: 0, shift };
        let trust = fd.trust.max(Trust::Inferred);
        Some(Descriptor { pointers, shape, trust, origin: Origin::Content, ..fd.clone() })
    };
    let block_at = |block: u64| block.saturating_mul(1_u64.checked_shl(shift).unwrap_or(0));
    let second = (header.fdc_at() >> shift).saturating_add(1);
    if fd.address == FdAddress::ROOT && is_it(&*space.lv, block_at(second)) {
        return found(header.width.to_block(second)?, header.file_shift);
    }
    let owned = owner::rebuild(volume, fd.at, fd.address).filter(|owned| owned.kind == Type::Folder);
    if let Some(owned) = owned {
        let trust = fd.trust.max(Trust::Inferred);
        return Some(Descriptor {
            pointers: owned.pointers,
            shape: owned.shape,
            trust,
            origin: Origin::Content,
            ..fd.clone()
        });
    }
    if let Some(sbc) = &volume.pools.sbc {
        let spots = (0..sbc.total.min(LOOKED)).filter_map(|number| sbc.spot(number));
        let mut spots = spots.filter(|spot| sbc.is_free(space, *spot).is_none_or(|(free, _)| !free));
        if let Some(spot) = spots.find(|spot| sbc.body(*spot).is_some_and(|body| is_it(&*sbc.file, body))) {
            return found(header.width.to_sub(spot)?, header.sub_shift);
        }
    }
    let bitmaps = volume.blocks()?;
    let blocks = (0..bitmaps.total.min(LOOKED)).filter(|block| {
        let free = bitmaps.spot(*block).and_then(|spot| bitmaps.is_free(space, spot));
        free.is_none_or(|(free, _)| !free)
    });
    let block = blocks.into_iter().find(|block| is_it(&*space.lv, block_at(*block)))?;
    found(header.width.to_block(block)?, header.file_shift)
}

/// Content in the descriptor itself: up to its last byte that is not zero. That it is content, only the lock before it
/// can say.
fn resident(space: &Space, fd: Descriptor) -> Option<Descriptor> {
    let lock = RawLock::load(&*space.lv, fd.at).ok()?;
    if lock.magic != MAGIC || lock.at != fd.at {
        return None;
    }
    let (bytes, seen) = read_vec(&*space.lv, fd.content_at, narrow(fd.content_len));
    let last = bytes.iter().rposition(|byte| *byte != 0).filter(|_| seen.is_whole())?;
    Some(Descriptor { shape: Shape::Resident, len: wide(last).saturating_add(1), ..fd })
}

fn sub(volume: &Volume, spot: Spot) -> Option<Content> {
    let sbc = volume.pools.sbc.as_ref()?;
    let body = sbc.body(spot)?;
    let (bytes, _) = read_poisoned(&*sbc.file, body, narrow(sbc.size));
    // Who owns the sub-blocks that it may lead to is asked later: here its own type is wanted.
    let all: Vec<_> = decoded(&volume.space.header, &bytes).filter_map(Address::spot).collect();
    Some(owner::content(volume, spot, &bytes, &all))
}

/// Whether a pointer block leads to further ones.
fn is_upper(volume: &Volume, address: Address) -> bool {
    let table = volume.pools.table(address).and_then(|(pool, offset)| volume.space.table(pool, offset));
    let Some((_, block)) = table else { return false };
    let first = decoded(&volume.space.header, &block.bytes).find(|address| *address != Address::Hole);
    matches!(first, Some(Address::Pointer(_) | Address::Pointer2(_) | Address::Sub(_)))
}
