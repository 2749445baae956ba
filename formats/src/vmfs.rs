//! VMFS3, VMFS5 and VMFS6, the file system of `ESXi` datastores, and the logical volume below it.
//!
//! There is no specification. Each module's table says where its facts come from: *real images* are volumes that
//! `ESXi` formatted and filled, *sources* are other readers that no image confirms. VMFS3 is read as VMFS5 is: without
//! `.pb2.sf`, dense sub-blocks and resident files, which agrees with the metadata of one real volume of 2009 (4.31).
//!
//! A datastore is one or more devices ([`lvm`]) that make a logical volume. At 2 MiB of it lies the [`header`], and
//! from there everything else is a file: descriptors, sub-blocks and pointer blocks live in [`resource`] files, which
//! are mapped ([`mod@file`]) by pointers ([`address`]) like any other. [`volume`] says how that starts.
//!
//! All integers are little-endian and records are packed. Every lock sector names its own position.

pub mod address;
mod assemble;
mod audit;
mod check;
pub mod descriptor;
pub mod directory;
pub mod file;
mod finds;
mod former;
mod fragment;
mod frame;
mod ground;
pub mod hash;
pub mod header;
pub mod heartbeat;
pub mod heir;
pub mod journal;
pub mod lvm;
pub mod owner;
mod page;
mod pieces;
mod rebuild;
mod relic;
mod remnant;
pub mod resource;
mod rivals;
mod sweep;
mod system;
mod teller;
#[cfg(test)]
mod tests;
pub mod tree;
pub mod volume;
mod witness;

use self::header::Header;
use self::lvm::{Device, Logical};
use self::tree::Datastore;
use self::volume::Volume;
use crate::cursor::walk;
use crate::error::Error;
use crate::format::{Format, Holds, Magic, Sweep, score};
use crate::layer::{Bytes, Layer, Place, Trust, Why};
use crate::link::{Content, Fact, Link, Opened, Role, Value, Want};
use crate::memo::Memo;
use crate::note::Finding;
use crate::num::wide;
use crate::read::read;
use std::fmt::Write;
use std::ops::Range;
use std::sync::Arc;

/// The row in the table of formats.
pub static FORMAT: Format = Format {
    name: "vmfs",
    about: "VMware VMFS datastore",
    holds: Holds::Files,
    spec: "none published; facts from volumes made by ESXi, and from open readers",
    magics: &[
        Magic { at: lvm::HEADER_AT, bytes: &lvm::MAGIC.to_le_bytes() },
        Magic { at: header::HEADER_AT, bytes: &header::MAGIC.to_le_bytes() },
        Magic { at: header::HEADER_AT, bytes: &header::MAGIC_LOCAL.to_le_bytes() },
    ],
    probe,
    open,
    sweep: Some(Sweep { look: sweep::look, build: sweep::build, near: sweep::NEAR }),
};

fn probe(layer: &dyn Layer) -> u8 {
    match lvm::looks_like(layer) {
        Some(true) => {
            let mut data_offset = [0; 8];
            read(layer, lvm::HEADER_AT.saturating_add(0x7A), &mut data_offset);
            let header = u64::from_le_bytes(data_offset).saturating_add(header::HEADER_AT);
            // The second and later devices of a volume have no header, but a volume table.
            if has_magic(layer, header) || Device::is_later(layer) { score::PROVEN } else { score::MAGIC }
        }
        None if has_magic(layer, header::HEADER_AT) || system::descriptors_at(layer).is_some() => score::MAGIC,
        Some(false) | None if remains(layer).is_some() => score::REMAINS,
        Some(false) | None => score::NONE,
    }
}

fn has_magic(layer: &dyn Layer, at: u64) -> bool {
    let mut magic = [0; 4];
    let whole = at.checked_add(4).is_some_and(|end| end <= layer.len()) && read(layer, at, &mut magic).is_whole();
    whole && header::is_magic(u32::from_le_bytes(magic))
}

/// Where the volume starts on a device whose own header is gone, if something stands at a place where it would.
fn remains(layer: &dyn Layer) -> Option<u64> {
    let header = lvm::DATA_AT.saturating_add(header::HEADER_AT);
    let on_device = has_magic(layer, header) || rebuild::is_here(layer, lvm::DATA_AT) || Device::is_tabled(layer);
    if on_device {
        return Some(lvm::DATA_AT);
    }
    rebuild::is_here(layer, 0).then_some(0)
}

/// The device that an image is of, or what is left of it, with the length of its volume.
fn device(bytes: &Bytes, memo: &Memo) -> Result<Device, Error> {
    if lvm::looks_like(&**bytes).is_none() && has_magic(&**bytes, header::HEADER_AT) {
        return Ok(measured(Device::none(bytes, bytes.len()), memo));
    }
    let error = match Device::load(bytes) {
        Ok(device) => return Ok(device),
        Err(error) => error,
    };
    if let Some(device) = Device::without_table(bytes).or_else(|| Device::without_header(bytes)) {
        return Ok(if device.alone { measured(device, memo) } else { device });
    }
    match remains(&**bytes) {
        None => Err(error),
        Some(0) => Ok(measured(Device::none(bytes, bytes.len()), memo)),
        Some(data) => {
            let mut device = Device::assumed(bytes, data, bytes.len().saturating_sub(data));
            let text = format!(
                "the metadata of the device is destroyed ({error}); its records show that the volume starts at {data:#x}, \
                 and it is taken for the only device of its volume"
            );
            let range = lvm::HEADER_AT..data;
            device.findings.push(Finding::new("LVM-GONE", range, Trust::Inferred, text));
            Ok(measured(device, memo))
        }
    }
}

/// A device on which nothing says how long its volume is, and which it is: asks the file system.
fn measured(mut device: Device, memo: &Memo) -> Device {
    let lv: Bytes = Arc::new(Logical::new(device.clone(), []));
    let Ok(found) = rebuild::header(&lv, memo) else { return device };
    (device.volume.uuid, device.volume.snapshot_id) = (found.header.lv_uuid, found.header.lv_snapshot_id);
    let volume = Volume::with(found.header, &found.lv, None, &memo.share());
    let Some(len) = rebuild::length(&volume) else { return device };
    let have = device.bytes.len().saturating_sub(device.data_offset);
    if device.major != 0 {
        // Its tables say what it has; where the file system has more, there are more devices.
        device.volume.num_devices = if len > device.span().end { 2 } else { 1 };
        device.volume.logical_size = len;
        return device;
    }
    // A dump of a volume is perhaps more than the volume.
    if device.is_none() && len <= have { device } else { device.of_len(len) }
}

fn open(bytes: &Bytes, memo: &Memo) -> Result<Opened, Error> {
    if let Some(at) = system::descriptors_at(&**bytes).filter(|_| lvm::looks_like(&**bytes).is_none()) {
        return open_headless(bytes, at, memo);
    }
    let device = device(bytes, memo)?;
    let mut member = device.member();
    let lv: Bytes = Arc::new(Logical::new(device.clone(), []));
    let header = match rebuild::header(&lv, memo) {
        Ok(found) => {
            member.changed = member.changed.max(rebuild::changed(&found).saturating_mul(1_000_000));
            let mut header = found.header;
            header.local |= found.text.is_some() && device.local;
            Some(header)
        }
        // Only the first device has it.
        Err(_) if member.first != 0 => None,
        Err(error) => return Err(error),
    };
    if let Some(header) = header.as_ref().filter(|header| device.is_none() && system::is_head(bytes, header)) {
        return Ok(open_head(bytes, header.clone(), memo));
    }
    let known = device.volume.uuid != [0; 16];
    let want = Want { role: Role::Member, id: Some(member.set.clone()), hint: None, len: None };
    // Where nothing says how many there are, a volume that goes on behind its device has one more at least.
    let more = device.alone && known && !device.is_none() && device.volume.logical_size > device.room();
    let more = more || device.alone && member.count > 1;
    let wants = if more { 1 } else { u64::from(member.count.saturating_sub(1)) };
    let wants = vec![want; crate::num::narrow(wants)];
    let mut facts = Vec::new();
    if device.major != 0 {
        device_facts(&device, &mut facts);
    }
    if let Some(header) = &header {
        header_facts(header, &mut facts);
        heartbeat::facts(&*lv, header, &mut facts);
    }
    let made = header.as_ref().map(|header| i128::from(header.created).saturating_mul(1_000_000_000));
    let own = header.as_ref().map(|header| header.uuid.to_vec());
    let link = Link {
        name: header.map(|header| header.label),
        id: if device.is_none() { own } else { known.then(|| member.set.clone()) },
        len: device.volume.logical_size,
        born: if device.volume.creation_time == 0 { made } else { Some(micros(device.volume.creation_time)) },
        set: (known && !device.is_none()).then_some(member),
        device: (!device.is_none()).then_some(device.total_bytes),
    };
    let findings = device.findings.clone();
    let memo = memo.clone();
    let join = move |others: &[Option<Bytes>]| join(&device, others, &memo);
    Ok(Opened { link, wants, join: Box::new(join), findings, facts })
}

/// The first of the system files that people copy off a volume, which is the start of the volume itself.
fn open_head(bytes: &Bytes, header: Header, memo: &Memo) -> Opened {
    let mut facts = Vec::new();
    header_facts(&header, &mut facts);
    heartbeat::facts(&**bytes, &header, &mut facts);
    let link = Link {
        name: Some(header.label.clone()),
        id: Some(header.uuid.to_vec()),
        born: Some(i128::from(header.created).saturating_mul(1_000_000_000)),
        // How long the volume is, only its bitmaps say.
        ..Link::default()
    };
    let wants = system::wants(&header);
    let (bytes, memo) = (Bytes::clone(bytes), memo.clone());
    let join = move |others: &[Option<Bytes>]| Ok(system::join(&bytes, &header, others, &memo));
    Opened { link, wants, join: Box::new(join), findings: Vec::new(), facts }
}

/// `.fdc.sf` of a volume, without the file that has the volume's start.
fn open_headless(bytes: &Bytes, at: u64, memo: &Memo) -> Result<Opened, Error> {
    let (header, text) = system::header_by(bytes, at, memo)?;
    let mut facts = Vec::new();
    header_facts(&header, &mut facts);
    let text = text.strip_prefix("is destroyed: ").unwrap_or(&text);
    let text = format!(".vh.sf, which has the header of the file system, was not given: {text}");
    let findings = vec![Finding::new("VMFS-HEADER", 0..0, Trust::Inferred, text)];
    let wants = system::wants_headless(&header);
    let link = Link { born: Some(i128::from(header.created).saturating_mul(1_000_000_000)), ..Link::default() };
    let (bytes, memo) = (Bytes::clone(bytes), memo.clone());
    let join = move |others: &[Option<Bytes>]| Ok(system::join_headless(&bytes, &header, others, &memo));
    Ok(Opened { link, wants, join: Box::new(join), findings, facts })
}

fn join(device: &Device, others: &[Option<Bytes>], memo: &Memo) -> Result<Content, Error> {
    let mut findings = Vec::new();
    let mut devices = Vec::new();
    for bytes in others.iter().flatten() {
        match self::device(bytes, memo) {
            Ok(other) if other.member().set == device.member().set => {
                findings.extend(other.findings.iter().cloned());
                devices.push(other);
            }
            Ok(other) => findings.push(refused(&format!("{other:?} is of another volume"))),
            Err(error) => findings.push(refused(&error.to_string())),
        }
    }
    devices.insert(0, device.clone());
    // One that is taken for the only device of its volume has what is before the others.
    if let Some(next) = devices.iter().map(|device| device.volume.first_pe).filter(|first| *first > 0).min() {
        devices
            .iter_mut()
            .filter(|device| device.alone && device.volume.first_pe == 0)
            .for_each(|device| device.end_at(next));
    }
    devices.sort_by_key(|device| device.alone);
    let lead = devices.remove(0);
    let logical = Arc::new(Logical::new(lead, devices));
    let [first, others @ ..] = logical.devices() else { return Err(Error::NotFound) };
    if first.volume.first_pe > 0 {
        let place = first.place();
        let more = if others.is_empty() {
            String::new()
        } else {
            format!(" ({} extents were given)", logical.devices().len())
        };
        let what = format!(
            "{place}{more}: the names and maps of all files are on extent 1, so that no file can be shown without it"
        );
        return Err(Error::Absent { what });
    }
    let devices = wide(logical.devices().len());
    if logical.is_partial() {
        let count = logical.devices().iter().map(|device| device.member().count).max().unwrap_or(0);
        let text = format!("{devices} of {count} devices are there");
        findings.push(Finding::new("LVM-ABSENT", lvm::HEADER_AT..lvm::HEADER_AT, Trust::Doubtful, text));
    }
    let lv: Bytes = Arc::<Logical>::clone(&logical);
    let found = rebuild::header(&lv, memo)?;
    let volume = Volume::replayed(found.header, &found.lv, Some(logical), memo);
    if let Some(text) = found.text {
        let at = volume.space.physical(header::HEADER_AT);
        let text = format!("the header of the file system {text}");
        findings.push(Finding::new("VMFS-HEADER", at..at.saturating_add(512), Trust::Inferred, text));
    }
    Ok(Content::Tree(Arc::new(Datastore::new(volume, findings))))
}

fn refused(why: &str) -> Finding {
    Finding::new("LVM-MEMBER", lvm::HEADER_AT..lvm::HEADER_AT, Trust::Doubtful, format!("a device is left out: {why}"))
}

fn device_facts(device: &Device, facts: &mut Vec<Fact>) {
    let volume = &device.volume;
    let mut fact = |name, value: Value| facts.push(Fact::new(name, value));
    fact("lvm_version", format!("{}.{}", device.major, device.minor).into());
    fact("lvm_device_uuid", uuid(device.uuid).into());
    fact("lvm_device_created", Value::Time(micros(device.made)));
    fact("lvm_device_size", Value::Bytes(device.total_bytes));
    fact("lvm_data_offset", Value::Hex(device.data_offset));
    fact("lvm_volume_uuid", uuid(volume.uuid).into());
    fact("lvm_volume_created", Value::Time(micros(volume.creation_time)));
    fact("lvm_snapshot_id", Value::Hex(volume.snapshot_id.into()));
    fact("lvm_volume_size", Value::Bytes(volume.logical_size));
    fact("lvm_volume_state", Value::Count(volume.state.into()));
    fact("lvm_devices", Value::Count(device.member().count.into()));
    fact("lvm_extents", format!("{} to {}", volume.first_pe, volume.last_pe).into());
}

fn header_facts(header: &Header, facts: &mut Vec<Fact>) {
    let size = |shift: u32| Value::Bytes(1_u64.checked_shl(shift).unwrap_or(0));
    let mut fact = |name, value: Value| facts.push(Fact::new(name, value));
    fact("version", version(header.local, header.major, header.minor).into());
    fact("vmfs_version", format!("{}.{}", header.major, header.minor).into());
    fact("vmfs_label", String::from_utf8_lossy(&header.label).into_owned().into());
    fact("vmfs_uuid", uuid(header.uuid).into());
    fact("vmfs_created", Value::Time(i128::from(header.created).saturating_mul(1_000_000_000)));
    fact("vmfs_config", Value::Hex(header.config.into()));
    fact("vmfs_file_block_size", size(header.file_shift));
    fact("vmfs_sub_block_size", size(header.sub_shift));
    fact("vmfs_metadata_alignment", Value::Bytes(header.md));
    if let Some(priority) = header.unmap_priority {
        // The words are those of ESXi; only "low" was seen on disk.
        let word = match priority {
            0 => "none".into(),
            1 => "low".into(),
            other => format!("{other}"),
        };
        fact("vmfs_unmap_priority", word.into());
    }
}

/// A version as `ESXi` shows it: 24.82 on disk is VMFS-6.82, 14.81 is VMFS-5.81.
fn version(local: bool, major: u32, minor: u8) -> String {
    // Observed: 4, 14 and 24; that hosts show the minor of a 4 unchanged is inferred. Others are shown as they stand.
    match (local, major) {
        (true, _) => "VMFS-L".into(),
        (false, 4) if minor == 0 => "VMFS-3".into(),
        (false, 4) => format!("VMFS-3.{minor}"),
        (false, 14) if minor == 0 => "VMFS-5".into(),
        (false, 24) if minor == 0 => "VMFS-6".into(),
        (false, 14) => format!("VMFS-5.{minor}"),
        (false, 24) => format!("VMFS-6.{minor}"),
        (false, _) => format!("VMFS {major}.{minor}"),
    }
}

/// Runs of one range that are asked whether they are elsewhere.
const RUNS: usize = 1024;

/// Why a part of a range can't be had, if that is because it is outside of the dump or on a device that was not given.
fn elsewhere(layer: &dyn Layer, range: Range<u64>) -> Option<Why> {
    let range = range.start.min(layer.len())..range.end.min(layer.len());
    walk(layer, range).take(RUNS).find_map(|run| match run.place {
        Place::Lost(loss) => Some(loss.why).filter(|why| why.is_elsewhere()),
        _ => None,
    })
}

fn micros(time: u64) -> i128 {
    i128::from(time).saturating_mul(1000)
}

/// A UUID as `ESXi` writes it: two numbers of 32 bits, one of 16, and the six bytes of a network address.
#[must_use]
pub fn uuid(bytes: [u8; 16]) -> String {
    let [a0, a1, a2, a3, b0, b1, b2, b3, c0, c1, mac @ ..] = bytes;
    let (a, b) = (u32::from_le_bytes([a0, a1, a2, a3]), u32::from_le_bytes([b0, b1, b2, b3]));
    let mut text = format!("{a:08x}-{b:08x}-{:04x}-", u16::from_le_bytes([c0, c1]));
    for byte in mac {
        let _ = write!(text, "{byte:02x}");
    }
    text
}
