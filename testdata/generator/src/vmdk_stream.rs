//! Stream-optimized disks as their writers lay them out.

use crate::Device;
use crate::vmdk::Descriptor;
use std::collections::BTreeSet;

const SECTOR: u64 = 512;
const GRAIN: u64 = 128;
const TABLE: u64 = 512;

/// How a writer lays a stream out.
#[derive(Clone, Copy, Debug)]
pub struct Writer {
    /// A short name.
    pub name: &'static str,
    flags: u32,
    /// Whether the tables lie before the grains; else behind them, each behind a marker.
    tables_first: bool,
    /// Whether the header names the directory.
    header_knows: bool,
    footer: bool,
    descriptor_sectors: u64,
    /// Sectors before the first grain; 0 for what the tables need, in whole grains.
    overhead: u64,
}

/// The writers that were seen: VMware's exports, ovftool and its like, `VirtualBox`, QEMU, VMware's open-vmdk.
pub const WRITERS: [Writer; 5] = [
    Writer {
        name: "vmware",
        flags: 0x3_0001,
        tables_first: false,
        header_knows: false,
        footer: true,
        descriptor_sectors: 1,
        overhead: GRAIN,
    },
    Writer {
        name: "ovftool",
        flags: 0x3_0001,
        tables_first: false,
        header_knows: true,
        footer: true,
        descriptor_sectors: 1,
        overhead: GRAIN,
    },
    Writer {
        name: "virtualbox",
        flags: 0x3_0001,
        tables_first: false,
        header_knows: false,
        footer: true,
        descriptor_sectors: 2,
        overhead: GRAIN,
    },
    Writer {
        name: "qemu",
        flags: 0x3_0003,
        tables_first: true,
        header_knows: true,
        footer: false,
        descriptor_sectors: 20,
        overhead: 0,
    },
    Writer {
        name: "open-vmdk",
        flags: 0x3_0001,
        tables_first: true,
        header_knows: true,
        footer: false,
        descriptor_sectors: 20,
        overhead: 30,
    },
];

impl Writer {
    /// The same, with records that do not tell their place.
    #[must_use]
    pub fn without_places(self) -> Self {
        Self { name: "no markers", flags: self.flags & !0x2_0000, ..self }
    }

    /// A stream of `device`.
    #[must_use]
    pub fn write(&self, device: &Device, cid: u32) -> Vec<u8> {
        let capacity = device.len() / SECTOR;
        let tables = capacity.div_ceil(GRAIN * TABLE);
        let directory_sectors = (tables * 4).div_ceil(SECTOR);
        let copy_sectors = directory_sectors + tables * 4;
        let mut text = Descriptor::flat(device.len(), "generated-stream.vmdk", false, u64::from(cid));
        text.cid = cid;
        text.create_type = "streamOptimized".into();
        text.extents = vec![("RDONLY".into(), capacity, "SPARSE".into(), "generated-stream.vmdk".into())];
        text.ddb.truncate(2);
        let text = text.text();
        assert!(text.len() as u64 <= self.descriptor_sectors * SECTOR, "{} has room for {}", self.name, text.len());
        let first_copy = 1 + self.descriptor_sectors;
        let copies = if self.flags & 2 == 0 { 1 } else { 2 };
        let overhead = match self.overhead {
            0 => (first_copy + copies * copy_sectors).next_multiple_of(GRAIN),
            given => given,
        };
        let primary = first_copy + (copies - 1) * copy_sectors;
        let mut header = vec![0; SECTOR as usize];
        header[..4].copy_from_slice(b"KDMV");
        put(&mut header, 4, 3, 4);
        put(&mut header, 8, self.flags.into(), 4);
        put(&mut header, 44, TABLE, 4);
        for (at, field) in [
            (12, capacity),
            (20, GRAIN),
            (28, 1),
            (36, self.descriptor_sectors),
            (48, if copies == 2 { first_copy } else { 0 }),
            (56, if self.tables_first { primary } else { u64::MAX }),
            (64, overhead),
        ] {
            put(&mut header, at, field, 8);
        }
        header[73..79].copy_from_slice(b"\n \r\n\x01\0");
        let mut out = header.clone();
        out.extend(text.into_bytes());
        assert!(self.tables_first || out.len() as u64 <= overhead * SECTOR, "the grains lie behind");
        out.resize((overhead * SECTOR) as usize, 0);
        let (entries, directory) = self.grains(&mut out, device, tables);
        if self.tables_first {
            for start in [first_copy, primary] {
                for (n, table) in entries.iter().enumerate() {
                    let at = start + directory_sectors + 4 * n as u64;
                    put(&mut out, start * SECTOR + 4 * n as u64, at, 4);
                    out[(at * SECTOR) as usize..][..table.len()].copy_from_slice(table);
                }
            }
            return out;
        }
        marker(&mut out, directory_sectors, 2);
        let place = out.len() as u64 / SECTOR;
        out.extend(directory);
        let mut footer = header;
        put(&mut footer, 56, place, 8);
        if self.header_knows {
            put(&mut out, 56, place, 8);
        }
        if self.footer {
            marker(&mut out, 1, 3);
            out.extend(footer);
        }
        marker(&mut out, 0, 0);
        out
    }

    /// Appends the grains, and their tables where those lie behind them; all tables, and the directory.
    fn grains(&self, out: &mut Vec<u8>, device: &Device, tables: u64) -> (Vec<Vec<u8>>, Vec<u8>) {
        let grains: BTreeSet<u64> = device.blocks().map(|(at, _)| at / (GRAIN * SECTOR)).collect();
        let mut all = Vec::new();
        let mut directory = vec![0; (tables * 4).next_multiple_of(SECTOR) as usize];
        for n in 0..tables {
            let mut table = vec![0; (TABLE * 4) as usize];
            for &grain in grains.range(n * TABLE..(n + 1) * TABLE) {
                put(&mut table, 4 * (grain % TABLE), out.len() as u64 / SECTOR, 4);
                let at = grain * GRAIN * SECTOR;
                let packed = zlib(&device.read(at, (GRAIN * SECTOR).min(device.len() - at) as usize));
                if self.flags & 0x2_0000 != 0 {
                    out.extend((grain * GRAIN).to_le_bytes());
                }
                out.extend((packed.len() as u32).to_le_bytes());
                out.extend(packed);
                out.resize(out.len().next_multiple_of(SECTOR as usize), 0);
            }
            if !self.tables_first && table.iter().any(|&byte| byte != 0) {
                marker(out, TABLE * 4 / SECTOR, 1);
                put(&mut directory, 4 * n, out.len() as u64 / SECTOR, 4);
                out.extend(&table);
            }
            all.push(table);
        }
        (all, directory)
    }
}

fn put(out: &mut [u8], at: u64, value: u64, width: usize) {
    out[at as usize..][..width].copy_from_slice(&value.to_le_bytes()[..width]);
}

fn marker(out: &mut Vec<u8>, sectors: u64, kind: u64) {
    let at = out.len() as u64;
    out.resize(out.len() + SECTOR as usize, 0);
    put(out, at, sectors, 8);
    put(out, at + 12, kind, 4);
}

fn zlib(bytes: &[u8]) -> Vec<u8> {
    let mut stream = flate2::Compress::new(flate2::Compression::fast(), true);
    let mut out = Vec::with_capacity(bytes.len() + 1024);
    let status = stream.compress_vec(bytes, &mut out, flate2::FlushCompress::Finish);
    assert_eq!(status.ok(), Some(flate2::Status::StreamEnd), "there is room for it");
    out
}
