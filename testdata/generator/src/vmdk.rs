//! VMDK: descriptors in ESXi's style, and sparse extents (seSparse, COWD, and the hosted kind).

use crate::Device;
use std::collections::BTreeMap;
use std::fmt::Write;

const SECTOR: u64 = 512;
const SESPARSE_GRAIN: u64 = 4096;
const SESPARSE_TABLE_GRAINS: u64 = 4096;
const SESPARSE_TABLE_SECTORS: u64 = 64;
/// The content id that ESXi writes into every disk it creates.
pub const ESXI_CID: u32 = 0xFFFF_FFFE;
/// The parent content id of a disk without a parent.
pub const NO_PARENT: u32 = 0xFFFF_FFFF;

/// A descriptor's fields, in the order in which ESXi writes them.
#[derive(Clone, Debug)]
pub struct Descriptor {
    /// Content id.
    pub cid: u32,
    /// The parent's content id, or `NO_PARENT`.
    pub parent_cid: u32,
    /// For example `vmfs` or `seSparse`.
    pub create_type: String,
    /// The parent descriptor's name.
    pub parent: Option<String>,
    /// (access, sectors, type, file name) of each extent.
    pub extents: Vec<(String, u64, String, String)>,
    /// `ddb.` keys without that prefix, and their values; sorted by key on writing.
    pub ddb: Vec<(String, String)>,
}

impl Descriptor {
    /// A disk of `len` bytes with one flat extent on a datastore.
    #[must_use]
    pub fn flat(len: u64, file: &str, thin: bool, id: u64) -> Self {
        let sectors = len / SECTOR;
        let (heads, per_track) = match len >> 30 {
            0 => (64, 32),
            1 => (128, 32),
            _ => (255, 63),
        };
        let mut ddb = vec![
            ("adapterType".into(), "lsilogic".into()),
            ("geometry.cylinders".into(), (sectors / (heads * per_track)).to_string()),
            ("geometry.heads".into(), heads.to_string()),
            ("geometry.sectors".into(), per_track.to_string()),
            ("longContentID".into(), long_content_id(id)),
            ("uuid".into(), uuid(id)),
            ("virtualHWVersion".into(), "19".into()),
        ];
        if thin {
            ddb.push(("thinProvisioned".into(), "1".into()));
        }
        Self {
            cid: ESXI_CID,
            parent_cid: NO_PARENT,
            create_type: "vmfs".into(),
            parent: None,
            extents: vec![("RW".into(), sectors, "VMFS".into(), file.into())],
            ddb,
        }
    }

    /// A snapshot's delta over `parent` of `len` bytes; `kind` is `SESPARSE` or `VMFSSPARSE`.
    #[must_use]
    pub fn delta(len: u64, kind: &str, file: &str, parent: &str, id: u64) -> Self {
        let create_type = if kind == "SESPARSE" { "seSparse" } else { "vmfsSparse" };
        Self {
            cid: ESXI_CID,
            parent_cid: ESXI_CID,
            create_type: create_type.into(),
            parent: Some(parent.into()),
            extents: vec![("RW".into(), len / SECTOR, kind.into(), file.into())],
            ddb: vec![("longContentID".into(), long_content_id(id))],
        }
    }

    /// The descriptor file's text.
    #[must_use]
    pub fn text(&self) -> String {
        let mut out = String::from("# Disk DescriptorFile\nversion=1\nencoding=\"UTF-8\"\n");
        let _ = writeln!(out, "CID={:08x}\nparentCID={:08x}", self.cid, self.parent_cid);
        let _ = writeln!(out, "createType=\"{}\"", self.create_type);
        if let Some(parent) = &self.parent {
            let _ = writeln!(out, "parentFileNameHint=\"{parent}\"");
        }
        out.push_str("\n# Extent description\n");
        for (access, sectors, kind, file) in &self.extents {
            let _ = writeln!(out, "{access} {sectors} {kind} \"{file}\"");
        }
        out.push_str("\n# The Disk Data Base \n#DDB\n\n");
        let mut ddb = self.ddb.clone();
        ddb.sort();
        for (key, value) in ddb {
            let _ = writeln!(out, "ddb.{key} = \"{value}\"");
        }
        out
    }
}

/// 32 hexadecimal digits that end in the content id.
#[must_use]
pub fn long_content_id(id: u64) -> String {
    let a = scramble(id);
    format!("{a:016x}{:08x}{ESXI_CID:08x}", scramble(a) >> 32)
}

/// A disk's UUID in VMware's form.
#[must_use]
pub fn uuid(id: u64) -> String {
    let mut bytes = *b"\x60\x00\xC2\x90\0\0\0\0\0\0\0\0\0\0\0\0";
    bytes[4..12].copy_from_slice(&scramble(id ^ 0x55).to_be_bytes());
    bytes[12..].copy_from_slice(&scramble(id ^ 0xAA).to_be_bytes()[..4]);
    let text: Vec<String> = bytes.iter().map(|b| format!("{b:02x}")).collect();
    format!("{}-{}", text[..8].join(" "), text[8..].join(" "))
}

fn scramble(id: u64) -> u64 {
    let mut x = id.wrapping_add(0x9E37_79B9_7F4A_7C15);
    x = (x ^ x >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ x >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ x >> 31
}

/// What a delta says of one grain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Grain {
    /// Unmapped by the guest (seSparse type 1).
    Unmapped,
    /// Zeros (seSparse type 2).
    Zero,
    /// These bytes (seSparse type 3).
    Data(Vec<u8>),
}

/// Grains of `grain` bytes in which `new` differs from `base`, by number. A grain that became zeros is `Zero`.
#[must_use]
pub fn difference(base: &Device, new: &Device, grain: u64) -> BTreeMap<u64, Grain> {
    assert_eq!(base.len(), new.len(), "a snapshot has its parent's length");
    let touched =
        base.blocks().chain(new.blocks()).flat_map(|(at, bytes)| at / grain..=(at + bytes.len() as u64 - 1) / grain);
    let mut grains = BTreeMap::new();
    for n in touched {
        let len = grain.min(new.len() - n * grain) as usize;
        let now = new.read(n * grain, len);
        if base.read(n * grain, len) != now {
            let zero = now.iter().all(|&b| b == 0);
            grains.insert(n, if zero { Grain::Zero } else { Grain::Data(now) });
        }
    }
    grains
}

/// Lays a delta over `base`: what a guest sees. Unmapped grains read as zeros.
#[must_use]
pub fn apply(base: &Device, grains: &BTreeMap<u64, Grain>, grain: u64) -> Device {
    let mut out = base.clone();
    for (&n, what) in grains {
        let at = n * grain;
        match what {
            Grain::Data(bytes) => {
                out.write(at, &bytes[..bytes.len().min((out.len() - at) as usize)]);
            }
            Grain::Unmapped | Grain::Zero => out.zero(at..(at + grain).min(out.len())),
        }
    }
    out
}

/// In which order an extent's tables and grains are laid down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// As they come on the disk.
    Ascending,
    /// The other way round, as a guest may well write.
    Descending,
}

/// A seSparse extent of `len` virtual bytes with 4 KiB grains. The free bitmap and the back map, whose contents are
/// not publicly known, are zeros.
#[must_use]
pub fn sesparse(len: u64, grains: &BTreeMap<u64, Grain>, order: Order) -> Vec<u8> {
    let capacity = len / SECTOR;
    let directory_entries = len.div_ceil(SESPARSE_GRAIN * SESPARSE_TABLE_GRAINS);
    let total_grains = len.div_ceil(SESPARSE_GRAIN);
    let directory = 4096;
    let directory_sectors = (directory_entries * 8).div_ceil(SECTOR);
    let tables = (directory + directory_sectors).next_multiple_of(8);
    let tables_sectors = directory_entries * SESPARSE_TABLE_SECTORS;
    let bitmap = tables + tables_sectors;
    let bitmap_sectors = total_grains.div_ceil(8 * SECTOR).next_multiple_of(8);
    let backmap = bitmap + bitmap_sectors;
    let backmap_sectors = (total_grains * 8).div_ceil(SECTOR).next_multiple_of(8);
    let data = backmap + backmap_sectors;

    let mut sequence: Vec<u64> = grains.keys().copied().collect();
    if order == Order::Descending {
        sequence.reverse();
    }
    let mut table_of: BTreeMap<u64, u64> = BTreeMap::new();
    let mut place_of: BTreeMap<u64, u64> = BTreeMap::new();
    for n in sequence {
        let next = table_of.len() as u64;
        table_of.entry(n / SESPARSE_TABLE_GRAINS).or_insert(next);
        if matches!(grains[&n], Grain::Data(_)) {
            let next = place_of.len() as u64;
            place_of.insert(n, next);
        }
    }

    let mut out = vec![0; (data * SECTOR + place_of.len() as u64 * SESPARSE_GRAIN) as usize];
    let header = [
        0xCAFE_BABE,
        0x2_0000_0001,
        capacity,
        8,
        SESPARSE_TABLE_SECTORS,
        0,
        0,
        0,
        0,
        0,
        1,
        1,
        2,
        2,
        2048,
        2048,
        directory,
        directory_sectors,
        tables,
        tables_sectors,
        bitmap,
        bitmap_sectors,
        backmap,
        backmap_sectors,
        data,
        total_grains * 8,
    ];
    for (n, field) in header.into_iter().enumerate() {
        put64(&mut out, 8 * n as u64, field);
    }
    for (n, field) in [0xCAFE_CAFE, table_of.len() as u64, 1, 0].into_iter().enumerate() {
        put64(&mut out, SECTOR + 8 * n as u64, field);
    }
    for (&n, &table) in &table_of {
        put64(&mut out, directory * SECTOR + 8 * n, 0x1000_0000 << 32 | table);
    }
    for (&n, grain) in grains {
        let table = table_of[&(n / SESPARSE_TABLE_GRAINS)];
        let entry = match grain {
            Grain::Unmapped => 1 << 60,
            Grain::Zero => 2 << 60,
            Grain::Data(bytes) => {
                let place = place_of[&n];
                let at = (data * SECTOR + place * SESPARSE_GRAIN) as usize;
                out[at..at + bytes.len()].copy_from_slice(bytes);
                3 << 60 | (place & 0xFFF) << 48 | place >> 12
            }
        };
        let at = (tables + table * SESPARSE_TABLE_SECTORS) * SECTOR + n % SESPARSE_TABLE_GRAINS * 8;
        put64(&mut out, at, entry);
    }
    out
}

/// A COWD extent (vmfsSparse) of `len` virtual bytes with one-sector grains. It knows no zero grains.
#[must_use]
pub fn cowd(len: u64, grains: &BTreeMap<u64, Grain>) -> Vec<u8> {
    const TABLE: u64 = 4096;
    let capacity = len / SECTOR;
    let directory_entries = capacity.div_ceil(TABLE);
    let mut out = vec![0; (4 * SECTOR + (directory_entries * 4).next_multiple_of(SECTOR)) as usize];
    let mut tables: BTreeMap<u64, u64> = BTreeMap::new();
    for (&n, grain) in grains {
        let bytes = match grain {
            Grain::Data(bytes) => bytes.clone(),
            Grain::Zero | Grain::Unmapped => vec![0; SECTOR as usize],
        };
        let table = *tables.entry(n / TABLE).or_insert_with(|| {
            let at = out.len() as u64 / SECTOR;
            out.resize(out.len() + (TABLE * 4) as usize, 0);
            put32(&mut out, 4 * SECTOR + 4 * (n / TABLE), at as u32);
            at
        });
        let at = out.len() as u64 / SECTOR;
        out.extend(&bytes);
        put32(&mut out, table * SECTOR + 4 * (n % TABLE), at as u32);
    }
    out[..4].copy_from_slice(b"COWD");
    let free = out.len() as u64 / SECTOR;
    let fields = [1, 3, capacity, 1, 4, directory_entries, free];
    for (n, field) in fields.into_iter().enumerate() {
        put32(&mut out, 4 + 4 * n as u64, field as u32);
    }
    out
}

/// A hosted sparse extent (monolithicSparse) with its descriptor inside, 64 KiB grains and both sets of tables.
#[must_use]
pub fn hosted_sparse(device: &Device, file: &str, cid: u32) -> Vec<u8> {
    const GRAIN: u64 = 128;
    const TABLE: u64 = 512;
    let capacity = device.len() / SECTOR;
    let tables = capacity.div_ceil(GRAIN).div_ceil(TABLE);
    let directory_sectors = (tables * 4).div_ceil(SECTOR);
    let copy_sectors = directory_sectors + tables * 4;
    let (redundant, primary) = (21, 21 + copy_sectors);
    let overhead = (primary + copy_sectors).next_multiple_of(GRAIN);
    let mut out = vec![0; (overhead * SECTOR) as usize];
    out[..4].copy_from_slice(b"KDMV");
    put32(&mut out, 4, 1);
    put32(&mut out, 8, 3);
    for (at, field) in [(12, capacity), (20, GRAIN), (28, 1), (36, 20), (48, redundant), (56, primary), (64, overhead)]
    {
        put64(&mut out, at, field);
    }
    put32(&mut out, 44, TABLE as u32);
    out[73..77].copy_from_slice(b"\n \r\n");
    let text = Descriptor {
        cid,
        parent_cid: NO_PARENT,
        create_type: "monolithicSparse".into(),
        parent: None,
        extents: vec![("RW".into(), capacity, "SPARSE".into(), file.into())],
        ddb: Descriptor::flat(device.len(), file, false, u64::from(cid)).ddb,
    }
    .text();
    out[512..512 + text.len()].copy_from_slice(text.as_bytes());
    for start in [redundant, primary] {
        for table in 0..tables {
            put32(&mut out, start * SECTOR + 4 * table, (start + directory_sectors + 4 * table) as u32);
        }
    }
    let mut done = None;
    for (at, _) in device.blocks() {
        let grain = at / (GRAIN * SECTOR);
        if done == Some(grain) {
            continue;
        }
        done = Some(grain);
        let sector = out.len() as u64 / SECTOR;
        let len = (GRAIN * SECTOR).min(device.len() - grain * GRAIN * SECTOR) as usize;
        out.extend(device.read(grain * GRAIN * SECTOR, len));
        out.resize(out.len().next_multiple_of((GRAIN * SECTOR) as usize), 0);
        for start in [redundant, primary] {
            put32(&mut out, (start + directory_sectors) * SECTOR + 4 * grain, sector as u32);
        }
    }
    out
}

fn put32(out: &mut [u8], at: u64, value: u32) {
    out[at as usize..at as usize + 4].copy_from_slice(&value.to_le_bytes());
}

fn put64(out: &mut [u8], at: u64, value: u64) {
    out[at as usize..at as usize + 8].copy_from_slice(&value.to_le_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn difference_and_apply_are_inverse() {
        let mut base = Device::new(1 << 20);
        base.write(5000, &vec![1; 20_000]);
        let mut new = base.clone();
        new.write(9000, &[2; 5000]);
        new.zero(16_384..20_480);
        let grains = difference(&base, &new, 4096);
        assert_eq!(grains.keys().copied().collect::<Vec<_>>(), [2, 3, 4]);
        assert_eq!(grains[&4], Grain::Zero);
        assert_eq!(apply(&base, &grains, 4096).blocks().collect::<Vec<_>>(), new.blocks().collect::<Vec<_>>());
    }

    #[test]
    fn sesparse_entries_name_their_grains() {
        let grains =
            BTreeMap::from([(1, Grain::Zero), (5000, Grain::Data(vec![7; 4096])), (9000, Grain::Data(vec![8; 4096]))]);
        let file = sesparse(64 << 20, &grains, Order::Descending);
        let at = |n: usize| u64::from_le_bytes(file[n..n + 8].try_into().expect("eight bytes"));
        let (directory, tables, data) = (at(128) as usize * 512, at(144) as usize * 512, at(192) as usize * 512);
        // Written last to first, grain 9000 has table 0 and place 0.
        assert_eq!(at(directory), 0x1000_0000_0000_0002);
        assert_eq!(at(directory + 16), 0x1000_0000_0000_0000);
        assert_eq!(at(tables + (9000 % 4096) * 8), 3 << 60);
        assert_eq!(at(tables + 32_768 + (5000 % 4096) * 8), 3 << 60 | 1 << 48);
        assert_eq!(at(tables + 2 * 32_768 + 8), 2 << 60);
        assert_eq!(file[data + 4096], 7);
        assert_eq!(file.len(), data + 8192);
    }

    #[test]
    fn a_descriptor_reads_as_esxi_writes_it() {
        let text = Descriptor::flat(69 << 30, "normal-flat.vmdk", true, 1).text();
        let head = "# Disk DescriptorFile\nversion=1\nencoding=\"UTF-8\"\nCID=fffffffe\nparentCID=ffffffff\n\
                    createType=\"vmfs\"\n\n# Extent description\nRW 144703488 VMFS \"normal-flat.vmdk\"\n\n\
                    # The Disk Data Base \n#DDB\n\nddb.adapterType = \"lsilogic\"\n\
                    ddb.geometry.cylinders = \"9007\"\n";
        assert!(text.starts_with(head), "{text}");
        assert!(text.contains("fffffffe\"\nddb.thinProvisioned = \"1\"\n"), "{text}");
    }
}
