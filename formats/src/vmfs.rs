//! VMFS5 and VMFS6, the file system of `ESXi` datastores, and the logical volume below it.
//!
//! There is no specification. Each module's table says where its facts come from: *real images* are volumes that
//! `ESXi` formatted and filled, *sources* are other readers that no image confirms.
//!
//! A datastore is one or more devices ([`lvm`]) that make a logical volume. At 2 MiB of it lies the [`header`], and
//! from there everything else is a file: descriptors, sub-blocks and pointer blocks live in [`resource`] files, which
//! are mapped ([`mod@file`]) by pointers ([`address`]) like any other. [`volume`] says how that starts.
//!
//! All integers are little-endian and records are packed. Every lock sector names its own position.

pub mod address;
mod audit;
pub mod descriptor;
pub mod directory;
pub mod file;
mod finds;
mod former;
pub mod hash;
pub mod header;
pub mod heir;
pub mod lvm;
pub mod resource;
mod sweep;
#[cfg(test)]
mod tests;
pub mod tree;
pub mod volume;

use self::header::Header;
use self::lvm::{Device, Logical};
use self::tree::Datastore;
use self::volume::Volume;
use crate::error::Error;
use crate::format::{Format, Holds, Magic, Sweep, score};
use crate::layer::{Bytes, Layer, Trust};
use crate::link::{Content, Fact, Link, Opened, Role, Value, Want};
use crate::memo::Memo;
use crate::note::Finding;
use crate::num::wide;
use crate::read::read;
use std::fmt::Write;
use std::sync::Arc;

/// The row in the table of formats.
pub static FORMAT: Format = Format {
    name: "vmfs",
    about: "VMware VMFS5 and VMFS6 datastore",
    holds: Holds::Files,
    spec: "none published; facts from volumes made by ESXi, and from open readers",
    magics: &[
        Magic { at: lvm::HEADER_AT, bytes: &lvm::MAGIC.to_le_bytes() },
        Magic { at: header::HEADER_AT, bytes: &header::MAGIC.to_le_bytes() },
        Magic { at: header::HEADER_AT, bytes: &header::MAGIC_LOCAL.to_le_bytes() },
    ],
    probe,
    open,
    sweep: Some(Sweep { look: sweep::look, build: sweep::build }),
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
        None if has_magic(layer, header::HEADER_AT) => score::MAGIC,
        Some(false) | None => score::NONE,
    }
}

fn has_magic(layer: &dyn Layer, at: u64) -> bool {
    let mut magic = [0; 4];
    let whole = at.checked_add(4).is_some_and(|end| end <= layer.len()) && read(layer, at, &mut magic).is_whole();
    whole && [header::MAGIC, header::MAGIC_LOCAL].contains(&u32::from_le_bytes(magic))
}

fn open(bytes: &Bytes, memo: &Memo) -> Result<Opened, Error> {
    if lvm::looks_like(&**bytes).is_none() && has_magic(&**bytes, header::HEADER_AT) {
        return open_bare(bytes, memo);
    }
    let device = Device::load(bytes)?;
    let member = device.member();
    let alone = Arc::new(Logical::new(device.clone(), []));
    let header = Header::load(&*alone);
    let header = match header {
        Ok(header) => Some(header),
        // Only the first device has it.
        Err(_) if member.first != 0 => None,
        Err(error) => return Err(error),
    };
    let want = Want { role: Role::Member, id: Some(member.set.clone()), hint: None, len: None };
    let wants = vec![want; crate::num::narrow(u64::from(member.count.saturating_sub(1)))];
    let mut facts = Vec::new();
    device_facts(&device, &mut facts);
    if let Some(header) = &header {
        header_facts(header, &mut facts);
    }
    let link = Link {
        name: header.map(|header| header.label),
        id: Some(member.set.clone()),
        len: device.volume.logical_size,
        born: Some(micros(device.volume.creation_time)),
        set: Some(member),
    };
    let findings = device.findings.clone();
    let memo = memo.clone();
    let join = move |others: &[Option<Bytes>]| join(&device, others, &memo);
    Ok(Opened { link, wants, join: Box::new(join), findings, facts })
}

/// An image of the volume itself, without the device around it.
fn open_bare(bytes: &Bytes, memo: &Memo) -> Result<Opened, Error> {
    let header = Header::load(&**bytes)?;
    let mut facts = Vec::new();
    header_facts(&header, &mut facts);
    let link = Link {
        name: Some(header.label.clone()),
        id: Some(header.uuid.to_vec()),
        set: None,
        len: bytes.len(),
        born: Some(i128::from(header.created).saturating_mul(1_000_000_000)),
    };
    let (lv, memo) = (Bytes::clone(bytes), memo.clone());
    let join = move |_: &[Option<Bytes>]| {
        let volume = Volume::load(&lv, None, &memo)?;
        Ok(Content::Tree(Arc::new(Datastore::new(volume, Vec::new()))))
    };
    Ok(Opened { link, wants: Vec::new(), join: Box::new(join), findings: Vec::new(), facts })
}

fn join(device: &Device, others: &[Option<Bytes>], memo: &Memo) -> Result<Content, Error> {
    let mut findings = Vec::new();
    let mut devices = Vec::new();
    for bytes in others.iter().flatten() {
        match Device::load(bytes) {
            Ok(other) if other.member().set == device.member().set => {
                findings.extend(other.findings.iter().cloned());
                devices.push(other);
            }
            Ok(other) => findings.push(refused(&format!("{other:?} is of another volume"))),
            Err(error) => findings.push(refused(&error.to_string())),
        }
    }
    let logical = Arc::new(Logical::new(device.clone(), devices));
    let devices = wide(logical.devices().len());
    if logical.is_partial() {
        let text = format!("{devices} of {} devices are there", device.member().count);
        findings.push(Finding::new("LVM-ABSENT", lvm::HEADER_AT..lvm::HEADER_AT, Trust::Doubtful, text));
    }
    let lv: Bytes = Arc::<Logical>::clone(&logical);
    let volume = Volume::load(&lv, Some(logical), memo)?;
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
}

/// A version as `ESXi` shows it: 24.82 on disk is VMFS-6.82, 14.81 is VMFS-5.81.
fn version(local: bool, major: u32, minor: u8) -> String {
    // Observed: 14 and 24. What lies between or behind them is shown as it stands.
    match (local, major) {
        (true, _) => "VMFS-L".into(),
        (false, 14) => format!("VMFS-5.{minor}"),
        (false, 24) => format!("VMFS-6.{minor}"),
        (false, _) => format!("VMFS {major}.{minor}"),
    }
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
