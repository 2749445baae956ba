//! GUID partition table: UEFI Specification 2.10, section 5.3, with sectors of 512 and of 4096 bytes.
//!
//! Both copies are read. The primary is used if its checksums hold, whatever the backup says: systems do the same, and
//! a backup stays behind where a disk grew or got another table. Else the backup is used if its do, as inferred, and
//! doubtfully where the damaged primary has other partitions. Else what there is, doubtfully.

use super::boot::{BootSector, PROTECTIVE, bytes, overlaps, type_name, volume_name};
use crate::adapt::{Trusted, Window};
use crate::error::Error;
use crate::format::{Format, Holds, Magic, score};
use crate::guid;
use crate::layer::{Bytes, Layer, Trust};
use crate::link::{Content, Fact, Link, Opened, Value, Volume};
use crate::memo::Memo;
use crate::note::Finding;
use crate::num::{narrow, wide};
use crate::read::{read_exact, read_vec};
use crate::record::Record;
use binrw::BinRead;
use std::sync::Arc;

/// The row in the table of formats.
pub static FORMAT: Format = Format {
    name: "gpt",
    about: "GUID partition table",
    holds: Holds::Volumes,
    spec: "UEFI Specification 2.10, section 5.3",
    magics: &[Magic { at: 512, bytes: SIGNATURE }, Magic { at: 4096, bytes: SIGNATURE }],
    probe,
    open,
    sweep: None,
};

const SIGNATURE: &[u8] = b"EFI PART";
const SECTORS: [u64; 2] = [512, 4096];
/// Bytes of entries that are read: 256 times the 16 KiB that systems make.
const MAX_ENTRIES: u64 = 4 << 20;

/// The header.
#[derive(BinRead, Clone, Debug, PartialEq, Eq)]
#[br(little)]
pub(super) struct RawHeader {
    signature: [u8; 8],
    revision: u32,
    header_size: u32,
    header_crc32: u32,
    reserved: u32,
    my_lba: u64,
    alternate_lba: u64,
    first_usable_lba: u64,
    last_usable_lba: u64,
    disk_guid: [u8; 16],
    partition_entry_lba: u64,
    number_of_partition_entries: u32,
    size_of_partition_entry: u32,
    partition_entry_array_crc32: u32,
}

impl Record for RawHeader {
    const SIZE: usize = 92;
    const NAME: &'static str = "GPT header";
}

/// A partition entry, without what larger ones hold behind it.
#[derive(BinRead, Clone, Debug, PartialEq, Eq)]
#[br(little)]
pub(super) struct RawEntry {
    partition_type_guid: [u8; 16],
    unique_partition_guid: [u8; 16],
    starting_lba: u64,
    ending_lba: u64,
    attributes: u64,
    partition_name: [u16; 36],
}

impl Record for RawEntry {
    const SIZE: usize = 128;
    const NAME: &'static str = "GPT entry";
}

/// One of the two copies of the table.
#[derive(Clone, Debug)]
struct Copy {
    /// Where its header lies.
    at: u64,
    sector: u64,
    header: RawHeader,
    entries: Vec<u8>,
    /// What is wrong with it; nothing if both checksums hold.
    wrong: Vec<String>,
    /// 2 for a header that holds, 1 for entries that do.
    score: u8,
}

impl Copy {
    /// Reads the copy whose header is at `at`. Without the signature or usable sizes, there is none.
    fn load(layer: &dyn Layer, at: u64, sector: u64) -> Result<Self, String> {
        let header = RawHeader::load(layer, at).map_err(|error| error.to_string())?;
        if header.signature != *SIGNATURE {
            return Err(format!("no signature at {at:#x}"));
        }
        let mut wrong = Vec::new();
        let mut score = 0;
        match header_crc(layer, at, sector, &header) {
            Some(crc) if crc == header.header_crc32 => score = 2,
            Some(crc) => wrong.push(format!("header checksum {crc:08x}, not {:08x}", header.header_crc32)),
            None => wrong.push(format!("header_size {} (92..={sector})", header.header_size)),
        }
        if header.my_lba.checked_mul(sector) != Some(at) {
            wrong.push(format!("my_lba {}, but it is at {at:#x}", header.my_lba));
            score = 0;
        }
        let size = u64::from(header.size_of_partition_entry);
        let len = size.saturating_mul(header.number_of_partition_entries.into());
        let from = header.partition_entry_lba.checked_mul(sector);
        if size < wide(RawEntry::SIZE) || size > 4096 || len > MAX_ENTRIES {
            let count = header.number_of_partition_entries;
            return Err(format!(
                "{count} entries of {size} bytes (entries of 128..=4096, {MAX_ENTRIES} bytes of them)"
            ));
        }
        let Some(from) = from.filter(|from| from.checked_add(len).is_some()) else {
            return Err(format!("partition_entry_lba {:#x}", header.partition_entry_lba));
        };
        let (entries, seen) = read_vec(layer, from, narrow(len));
        let crc = crc32fast::hash(&entries);
        if let Some(gap) = seen.gaps.first() {
            wrong.push(format!("entries: {gap}"));
        } else if crc == header.partition_entry_array_crc32 {
            score = u8::saturating_add(score, 1);
        } else {
            wrong.push(format!("entries' checksum {crc:08x}, not {:08x}", header.partition_entry_array_crc32));
        }
        Ok(Self { at, sector, header, entries, wrong, score })
    }

    fn is_whole(&self) -> bool {
        self.score == 3
    }

    /// Whether two copies describe the same partitions of the same disk.
    fn agrees(&self, other: &Self) -> bool {
        let mine = (&self.header.disk_guid, self.header.first_usable_lba, self.header.last_usable_lba);
        let its = (&other.header.disk_guid, other.header.first_usable_lba, other.header.last_usable_lba);
        mine == its && self.entries == other.entries
    }
}

/// The header's checksum, which counts its own field as zero.
fn header_crc(layer: &dyn Layer, at: u64, sector: u64, header: &RawHeader) -> Option<u32> {
    let len = u64::from(header.header_size);
    if len < wide(RawHeader::SIZE) || len > sector {
        return None;
    }
    let mut bytes = vec![0; narrow(len)];
    read_exact(layer, at, &mut bytes).ok()?;
    bytes.get_mut(16..20)?.fill(0);
    Some(crc32fast::hash(&bytes))
}

fn has_signature(layer: &dyn Layer, at: u64) -> bool {
    Magic { at, bytes: SIGNATURE }.is_in(layer)
}

/// Where the last whole sector is.
fn last_sector(layer: &dyn Layer, sector: u64) -> Option<u64> {
    layer.len().checked_div(sector)?.checked_sub(1)?.checked_mul(sector)
}

/// Where a backup header may be when no primary one says so: in the last sector, or, if the device grew or something
/// was appended to its image, in the last one that the protective MBR covers.
fn backup_places(layer: &dyn Layer, sector: u64) -> impl Iterator<Item = (u64, u64)> {
    let covered = BootSector::load(layer, 0).ok().and_then(|boot| {
        let entry = boot.entries().into_iter().find(|entry| entry.kind == PROTECTIVE)?;
        entry.start.checked_add(entry.sectors)?.checked_sub(1)?.checked_mul(sector)
    });
    [last_sector(layer, sector), covered].into_iter().flatten().map(move |at| (at, sector))
}

fn probe(layer: &dyn Layer) -> u8 {
    let boot = BootSector::load(layer, 0).ok();
    let is_mbr = boot.is_some_and(|boot| boot.is_table(layer.len()) && !boot.is_protective());
    let primary = SECTORS.into_iter().find(|sector| has_signature(layer, *sector));
    if is_mbr {
        // The device was partitioned anew, or holds a table that nothing protects: the MBR is what systems use.
        return primary.map_or(score::NONE, |_| score::WEAK.saturating_sub(1));
    }
    if let Some(sector) = primary {
        let proven = RawHeader::load(layer, sector)
            .is_ok_and(|header| header_crc(layer, sector, sector, &header) == Some(header.header_crc32));
        return if proven { score::PROVEN } else { score::MAGIC };
    }
    let holds = |(at, sector): (u64, u64)| {
        has_signature(layer, at)
            && RawHeader::load(layer, at)
                .is_ok_and(|header| header_crc(layer, at, sector, &header) == Some(header.header_crc32))
    };
    // A backup alone may be what is left of a table that the disk no longer has: whatever is at the start goes first.
    if SECTORS.into_iter().flat_map(|sector| backup_places(layer, sector)).any(holds) {
        score::REMAINS
    } else {
        score::NONE
    }
}

fn open(layer: &Bytes, _: &Memo) -> Result<Opened, Error> {
    let mut findings = Vec::new();
    let (copy, trust) = choose(&**layer, &mut findings)?;
    look_at_mbr(&**layer, &mut findings);
    let volumes = volumes(layer, &copy, trust, &mut findings);
    let header = &copy.header;
    let facts = vec![
        Fact::new("disk_guid", guid::mixed(&header.disk_guid)),
        Fact::new("sector_size", Value::Bytes(copy.sector)),
        Fact::new("header", Value::Hex(copy.at)),
        Fact::new("number_of_partition_entries", Value::Count(header.number_of_partition_entries.into())),
        Fact::new("usable_lbas", format!("{}..={}", header.first_usable_lba, header.last_usable_lba)),
        Fact::new("partitions", Value::Count(wide(volumes.len()))),
    ];
    let link = Link { id: Some(guid::mixed(&header.disk_guid).into_bytes()), len: layer.len(), ..Link::default() };
    Ok(Opened { findings, facts, ..Opened::alone(link, Content::Volumes(volumes)) })
}

/// The copy to use, and how far to believe it.
fn choose(layer: &dyn Layer, findings: &mut Vec<Finding>) -> Result<(Copy, Trust), Error> {
    // What is left of a table of the other sector size may stand before the one that counts.
    let signed = SECTORS.into_iter().filter(|sector| has_signature(layer, *sector));
    let whole = |sector: &u64| Copy::load(layer, *sector, *sector).is_ok_and(|copy| copy.is_whole());
    let primary = signed.clone().find(whole).or_else(|| signed.clone().next());
    let mut backups: Vec<(u64, u64)> = Vec::new();
    let loaded = match primary {
        Some(sector) => Copy::load(layer, sector, sector).map_err(|why| (sector, why)),
        None => Err((512, "no signature".to_owned())),
    };
    let primary = match loaded {
        Ok(copy) => {
            backups.extend(copy.header.alternate_lba.checked_mul(copy.sector).map(|at| (at, copy.sector)));
            Some(copy)
        }
        Err((at, why)) => {
            note(findings, "GPT-PRIMARY", at, Trust::Doubtful, format!("primary table: {why}"));
            None
        }
    };
    let sectors = primary.as_ref().map_or(SECTORS.to_vec(), |copy| vec![copy.sector]);
    backups.extend(sectors.into_iter().flat_map(|sector| backup_places(layer, sector)));
    let mut first_why = None;
    let mut backup: Option<Copy> = None;
    for (at, sector) in backups {
        match Copy::load(layer, at, sector) {
            Ok(copy) if primary.as_ref().is_some_and(|primary| primary.at == copy.at) => {}
            Ok(copy) if backup.as_ref().is_none_or(|known| known.score < copy.score) => backup = Some(copy),
            Ok(_) => {}
            Err(why) => first_why = first_why.or(Some((at, why))),
        }
    }
    for (copy, code, name) in [(&primary, "GPT-PRIMARY", "primary"), (&backup, "GPT-BACKUP", "backup")] {
        if let Some(copy) = copy.as_ref().filter(|copy| !copy.is_whole()) {
            note(findings, code, copy.at, Trust::Doubtful, format!("{name} table: {}", copy.wrong.join("; ")));
        }
    }
    if let (None, Some((at, why))) = (&backup, first_why) {
        note(findings, "GPT-BACKUP", at, Trust::Sound, format!("no backup table: {why}"));
    }
    match (primary, backup) {
        (Some(primary), Some(backup)) if primary.is_whole() && backup.is_whole() => {
            let trust = if primary.agrees(&backup) { Trust::Sound } else { Trust::Inferred };
            if trust != Trust::Sound {
                let at = backup.at;
                let text =
                    format!("the backup table at {at:#x} describes other partitions than the primary, which is used");
                note(findings, "GPT-DISAGREE", at, trust, text);
            }
            Ok((primary, trust))
        }
        (Some(primary), _) if primary.is_whole() => Ok((primary, Trust::Sound)),
        (Some(primary), Some(backup)) => {
            let agree = primary.entries == backup.entries;
            if !agree {
                let (used, other) =
                    if backup.score > primary.score { ("backup", "primary") } else { ("primary", "backup") };
                let text = format!("the {other} table describes other partitions than the {used}, which is used");
                note(findings, "GPT-DISAGREE", backup.at, Trust::Doubtful, text);
            }
            let trust = if agree && backup.is_whole() { Trust::Inferred } else { Trust::Doubtful };
            Ok((if backup.score > primary.score { backup } else { primary }, trust))
        }
        (None, Some(backup)) if backup.is_whole() => Ok((backup, Trust::Inferred)),
        (Some(copy), None) | (None, Some(copy)) => Ok((copy, Trust::Doubtful)),
        (None, None) => {
            let found: Vec<String> = findings.iter().map(|finding| finding.text.clone()).collect();
            Err(Error::corrupt("GPT", 512, found.join("; ")))
        }
    }
}

fn look_at_mbr(layer: &dyn Layer, findings: &mut Vec<Finding>) {
    let Ok(boot) = BootSector::load(layer, 0) else {
        return note(findings, "GPT-MBR", 0, Trust::Sound, "no protective MBR: no boot signature");
    };
    if !boot.is_protective() {
        note(findings, "GPT-MBR", 0, Trust::Sound, "no protective MBR: no entry of type 0xee");
    }
    let others: Vec<String> = boot
        .entries()
        .iter()
        .filter(|entry| !entry.is_empty() && entry.kind != PROTECTIVE)
        .map(|entry| format!("{} at sector {}, {} sectors", type_name(entry.kind), entry.start, entry.sectors))
        .collect();
    if !others.is_empty() {
        note(findings, "GPT-HYBRID", 446, Trust::Sound, format!("the MBR has entries too: {}", others.join("; ")));
    }
}

fn volumes(layer: &Bytes, copy: &Copy, trust: Trust, findings: &mut Vec<Finding>) -> Vec<Volume> {
    let size = narrow(copy.header.size_of_partition_entry.into()).max(1);
    let base = copy.header.partition_entry_lba.saturating_mul(copy.sector);
    let mut volumes = Vec::new();
    for (index, raw) in copy.entries.chunks_exact(size).enumerate() {
        let at = base.saturating_add(wide(index).saturating_mul(wide(size)));
        let Ok(entry) = RawEntry::parse(raw, at) else { continue };
        if entry.partition_type_guid == [0; 16] {
            continue;
        }
        let number = index.saturating_add(1);
        let sectors = entry.ending_lba.checked_sub(entry.starting_lba).and_then(|last| last.checked_add(1));
        let Some(range) = sectors.and_then(|sectors| bytes(entry.starting_lba, sectors, copy.sector)) else {
            let text = format!("partition {number}: sectors {}..={}", entry.starting_lba, entry.ending_lba);
            note(findings, "GPT-ENTRY", at, Trust::Doubtful, text);
            continue;
        };
        if entry.starting_lba < copy.header.first_usable_lba || entry.ending_lba > copy.header.last_usable_lba {
            let text = format!("partition {number} leaves the usable sectors");
            note(findings, "GPT-USABLE", at, Trust::Sound, text);
        }
        if range.end > layer.len() {
            let text = format!("partition {number} ends at {:#x}, the device at {:#x}", range.end, layer.len());
            findings.push(Finding::new("GPT-RANGE", range.clone(), Trust::Sound, text));
        }
        let window = Window::of_device(layer.clone(), range.start, range.end.saturating_sub(range.start));
        let window: Bytes = Arc::new(window.named(format!("GPT partition {number}")));
        let bytes = if trust == Trust::Sound { window } else { Arc::new(Trusted::new(window, trust)) };
        volumes.push(Volume { name: volume_name(number), about: about(&entry), range, bytes });
    }
    findings.extend(overlaps(&volumes, "GPT-OVERLAP"));
    volumes
}

fn note(findings: &mut Vec<Finding>, code: &'static str, at: u64, trust: Trust, text: impl Into<String>) {
    findings.push(Finding::new(code, at..at.saturating_add(wide(RawHeader::SIZE)), trust, text));
}

/// The type, and the label where there is one.
fn about(entry: &RawEntry) -> String {
    let kind = guid::mixed(&entry.partition_type_guid);
    let known = TYPES.iter().find(|(guid, _)| *guid == kind).map_or(kind.as_str(), |(_, name)| *name);
    let label = entry.partition_name.split(|unit| *unit == 0).next().unwrap_or_default();
    match String::from_utf16_lossy(label) {
        label if label.is_empty() => known.to_owned(),
        label => format!("{known} `{}`", label.escape_default()),
    }
}

/// Partition types: the UEFI Specification, the Discoverable Partitions Specification, and what vendors publish.
const TYPES: [(&str, &str); 27] = [
    ("C12A7328-F81F-11D2-BA4B-00A0C93EC93B", "EFI system"),
    ("024DEE41-33E7-11D3-9D69-0008C781F39F", "MBR partition scheme"),
    ("21686148-6449-6E6F-744E-656564454649", "BIOS boot"),
    ("AA31E02A-400F-11DB-9590-000C2911D1B8", "VMware VMFS"),
    ("9D275380-40AD-11DB-BF97-000C2911D1B8", "VMware diagnostic"),
    ("9198EFFC-31C0-11DB-8F78-000C2911D1B8", "VMware reserved"),
    ("381CFCCC-7288-11E0-92EE-000C2911D0B2", "VMware vSAN"),
    ("77719A0C-A4A0-11E3-A47E-000C29745A24", "VMware Virsto"),
    ("4EB2EA39-7855-4790-A79E-FAE495E21F8D", "VMware VMFS-L (OSDATA)"),
    ("E3C9E316-0B5C-4DB8-817D-F92DF00215AE", "Microsoft reserved"),
    ("EBD0A0A2-B9E5-4433-87C0-68B6B72699C7", "Microsoft basic data"),
    ("DE94BBA4-06D1-4D40-A16A-BFD50179D6AC", "Windows recovery"),
    ("5808C8AA-7E8F-42E0-85D2-E1E90434CFB3", "Windows LDM metadata"),
    ("AF9B60A0-1431-4F62-BC68-3311714A69AD", "Windows LDM data"),
    ("E75CAF8F-F680-4CEE-AFA3-B001E56EFC2D", "Windows storage spaces"),
    ("0FC63DAF-8483-4772-8E79-3D69D8477DE4", "Linux filesystem"),
    ("0657FD6D-A4AB-43C4-84E5-0933C84B4F4F", "Linux swap"),
    ("E6D6D379-F507-44C2-A23C-238F2A3DF928", "Linux LVM"),
    ("A19D880F-05FC-4D3B-A006-743F0F84911E", "Linux RAID"),
    ("4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709", "Linux root (x86-64)"),
    ("933AC7E1-2EB4-4F13-B844-0E14E2AEF915", "Linux home"),
    ("BC13C2FF-59E6-4262-A352-B275FD6F7172", "Linux extended boot"),
    ("CA7D7CCB-63ED-4C53-861C-1742536059CC", "LUKS"),
    ("48465300-0000-11AA-AA11-00306543ECAC", "Apple HFS+"),
    ("7C3457EF-0000-11AA-AA11-00306543ECAC", "Apple APFS"),
    ("516E7CB4-6ECF-11D6-8FF8-00022D09712B", "FreeBSD data"),
    ("6A898CC3-1DD2-11B2-99A6-080020736631", "ZFS"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_have_the_size_of_the_specification() {
        assert_eq!(RawHeader::SIZE, 92);
        assert_eq!(RawEntry::SIZE, 128);
        assert!(RawHeader::parse(&[0; 92], 0).is_ok() && RawHeader::parse(&[0; 91], 0).is_err());
        assert!(RawEntry::parse(&[0; 128], 0).is_ok() && RawEntry::parse(&[0; 127], 0).is_err());
    }
}
