//! Internal snapshots: the specification's section "Snapshots".

use super::header::Header;
use crate::error::Error;
use crate::layer::{Layer, Trust};
use crate::note::Finding;
use crate::num::{narrow, round_up};
use crate::read::{read_exact, read_vec};
use crate::record::Record;
use binrw::BinRead;
use byteorder::{BigEndian, ByteOrder};

/// The fixed part of a table entry.
#[derive(BinRead, Debug)]
#[br(big)]
pub(super) struct Raw {
    l1_table_offset: u64,
    l1_size: u32,
    id_len: u16,
    name_len: u16,
    /// Nanoseconds (4 bytes) and the machine's clock (8 bytes) follow.
    #[br(pad_after = 12)]
    seconds: u32,
    vm_state_size: u32,
    extra_len: u32,
}

impl Record for Raw {
    const SIZE: usize = 40;
    const NAME: &'static str = "qcow2 snapshot table entry";
}

/// One snapshot.
#[derive(Clone, Debug)]
pub(super) struct Snapshot {
    pub name: Vec<u8>,
    pub l1_table_offset: u64,
    pub l1_size: u32,
    /// Of the disk when it was taken.
    pub size: u64,
    /// When it was taken, in seconds since 1970.
    pub seconds: u32,
    /// Bytes of the machine's memory, which lie behind the disk in the same tables.
    pub vm_state_size: u64,
}

/// QEMU's limits.
const MAX_SNAPSHOTS: u32 = 65536;
const MAX_EXTRA: u32 = 1024;

/// The snapshots of an image, and what is wrong with their table. An entry that can't be right ends the list: where
/// the next one starts would be a guess.
/// The third result is the number of bytes that the table has.
pub(super) fn load(layer: &dyn Layer, header: &Header) -> (Vec<Snapshot>, Vec<Finding>, u64) {
    let len = |at: u64| at.saturating_sub(header.snapshots_offset);
    let mut snapshots = Vec::new();
    let mut findings = Vec::new();
    let mut at = header.snapshots_offset;
    for number in 0..header.nb_snapshots.min(MAX_SNAPSHOTS) {
        match load_one(layer, header.cluster_size(), header.size, at) {
            Ok((snapshot, next)) => {
                snapshots.push(snapshot);
                at = next;
            }
            Err(error) => {
                let text = format!("snapshot {} of {}: {error}", number.saturating_add(1), header.nb_snapshots);
                findings.push(Finding::new("QCOW2-SNAPSHOT", at..Raw::end(at), Trust::Sound, text));
                return (snapshots, findings, len(at));
            }
        }
    }
    if header.nb_snapshots > MAX_SNAPSHOTS {
        let text = format!("nb_snapshots {}, above QEMU's limit of {MAX_SNAPSHOTS}", header.nb_snapshots);
        findings.push(Finding::new("QCOW2-SNAPSHOT", 60..64, Trust::Sound, text));
    }
    (snapshots, findings, len(at))
}

/// One entry of an image with clusters of `cluster` bytes whose disk has `size` now.
fn load_one(layer: &dyn Layer, cluster: u64, size: u64, at: u64) -> Result<(Snapshot, u64), Error> {
    let raw = Raw::load(layer, at)?;
    if raw.extra_len > MAX_EXTRA {
        let found = format!("{} bytes of extra data (0..={MAX_EXTRA})", raw.extra_len);
        return Err(Error::corrupt(Raw::NAME, at, found));
    }
    if raw.l1_table_offset == 0 || !raw.l1_table_offset.is_multiple_of(cluster) {
        return Err(Error::corrupt(Raw::NAME, at, format!("its L1 table at {:#x}", raw.l1_table_offset)));
    }
    let read = |at: u64, len: u64| {
        let mut bytes = vec![0; narrow(len)];
        match read_exact(layer, at, &mut bytes) {
            Ok(_) => Ok(bytes),
            Err(gap) => Err(Error::Lost { what: Raw::NAME, gap }),
        }
    };
    let extra_at = Raw::end(at);
    let extra = read(extra_at, raw.extra_len.into())?;
    let id_at = extra_at.saturating_add(raw.extra_len.into());
    let name_at = id_at.saturating_add(raw.id_len.into());
    let mut name = read(name_at, raw.name_len.into())?;
    if name.is_empty() {
        // A snapshot need not have a name, but it always has an id.
        name = read(id_at, raw.id_len.into())?;
    }
    let size = extra.get(8..16).map_or(size, BigEndian::read_u64);
    let next = round_up(name_at.saturating_add(raw.name_len.into()), 8);
    let vm_state_size = extra.get(..8).map_or(raw.vm_state_size.into(), BigEndian::read_u64);
    let Raw { l1_table_offset, l1_size, seconds, .. } = raw;
    Ok((Snapshot { name, l1_table_offset, l1_size, size, seconds, vm_state_size }, next))
}

/// Whether a snapshot table could start with these bytes: what QEMU writes has a number for its id and 16 or 24 bytes
/// of extra data.
pub(super) fn is_entry(bytes: &[u8]) -> bool {
    let Ok(raw) = Raw::parse(bytes, 0) else { return false };
    let id_at = Raw::SIZE.saturating_add(narrow(raw.extra_len.into()));
    let id = bytes.get(id_at..id_at.saturating_add(raw.id_len.into())).unwrap_or_default();
    raw.l1_table_offset != 0
        && raw.l1_table_offset.is_multiple_of(512)
        && raw.l1_table_offset < 1 << 48
        && (1..=1 << 22).contains(&raw.l1_size)
        && matches!(raw.extra_len, 16 | 24)
        && (1..=20).contains(&raw.id_len)
        && id.iter().all(u8::is_ascii_digit)
}

/// The snapshots of a table that starts at `at`, as many as can be, and its bytes.
pub(super) fn found_at(layer: &dyn Layer, at: u64, cluster_bits: u32) -> (Vec<Snapshot>, u64) {
    let mut snapshots = Vec::new();
    let mut next = at;
    while snapshots.len() < narrow(MAX_SNAPSHOTS.into()) {
        let (head, _) = read_vec(layer, next, 512);
        if !is_entry(&head) {
            break;
        }
        let Ok((snapshot, behind)) = load_one(layer, 1_u64.checked_shl(cluster_bits).unwrap_or(0), 0, next) else {
            break;
        };
        snapshots.push(snapshot);
        next = behind;
    }
    (snapshots, next.saturating_sub(at))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_have_the_size_of_the_specification() {
        assert_eq!(Raw::SIZE, 40);
        assert!(Raw::parse(&[0; 40], 0).is_ok() && Raw::parse(&[0; 39], 0).is_err());
    }
}
