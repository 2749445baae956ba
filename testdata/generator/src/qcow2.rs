//! QCOW2 images (QEMU's `docs/interop/qcow2.rst`), laid out as `qemu-img convert` does: header, refcount table,
//! refcount blocks, L1, then each L2 table before its data.

use crate::Device;
use flate2::{Compress, Compression as Level, FlushCompress, Status};
use std::collections::BTreeMap;
use std::ops::Range;

const COPIED: u64 = 1 << 63;
const COMPRESSED: u64 = 1 << 62;
const ZERO: u64 = 1;
const SECTOR: u64 = 512;

/// How clusters are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    None,
    /// Raw deflate with a window of 12 bits, as QEMU reads and writes it.
    Deflate,
    /// A zstd frame a cluster; version 3 only.
    Zstd,
}

/// What image to write.
#[derive(Clone, Debug)]
pub struct Options {
    /// 2 or 3.
    pub version: u32,
    /// 9 to 21; the cluster is 2 to this power.
    pub cluster_bits: u32,
    /// How clusters are compressed.
    pub compression: Compression,
    /// Guest byte ranges whose whole clusters get the zero flag; version 3 only.
    pub zero_clusters: Vec<Range<u64>>,
    /// Backing file's name and format.
    pub backing: Option<(String, String)>,
}

impl Default for Options {
    fn default() -> Self {
        Self { version: 3, cluster_bits: 16, compression: Compression::None, zero_clusters: Vec::new(), backing: None }
    }
}

/// One guest cluster, ready to be placed.
enum Cluster {
    Zero,
    Plain(Vec<u8>),
    Packed(Vec<u8>),
}

/// The image file of what `device` stores; the rest of it is left unallocated.
#[must_use]
pub fn write(device: &Device, options: &Options) -> Vec<u8> {
    assert!((9..=21).contains(&options.cluster_bits), "cluster_bits {} is not in 9..=21", options.cluster_bits);
    let three = options.version == 3;
    assert!(three || options.version == 2, "there is no QCOW2 version {}", options.version);
    assert!(
        three || options.compression != Compression::Zstd && options.zero_clusters.is_empty(),
        "zstd and zero clusters need version 3"
    );
    let image = Image::new(device, options);
    image.write(device.len(), options)
}

struct Image {
    size: u64,
    bits: u32,
    clusters: BTreeMap<u64, Cluster>,
    l1_entries: u64,
}

impl Image {
    fn new(device: &Device, options: &Options) -> Self {
        let size = 1 << options.cluster_bits;
        let mut clusters = BTreeMap::new();
        for (at, _) in device.blocks() {
            // A stored block holds one or more small clusters, or is part of one large.
            for n in at / size..=(at + crate::device::BLOCK - 1).min(device.len() - 1) / size {
                clusters.entry(n).or_insert_with(|| {
                    let len = size.min(device.len() - n * size) as usize;
                    let mut bytes = device.read(n * size, len);
                    bytes.resize(size as usize, 0);
                    pack(bytes, options.compression)
                });
            }
        }
        for range in &options.zero_clusters {
            for n in range.start.div_ceil(size)..range.end / size {
                clusters.insert(n, Cluster::Zero);
            }
        }
        let l1_entries = device.len().div_ceil(size * (size / 8));
        Self { size, bits: options.cluster_bits, clusters, l1_entries }
    }

    /// Places everything behind the metadata, which starts the file and takes `reserved` clusters.
    fn place(&self, reserved: u64) -> Placed<'_> {
        let (size, per_l2) = (self.size, self.size / 8);
        let mut placed = Placed { end: reserved * size, l1: BTreeMap::new(), l2: BTreeMap::new(), data: Vec::new() };
        for (&n, cluster) in &self.clusters {
            let table = n / per_l2;
            if !placed.l1.contains_key(&table) {
                placed.end = placed.end.next_multiple_of(size);
                placed.l1.insert(table, placed.end);
                placed.end += size;
            }
            let entry = match cluster {
                Cluster::Zero => ZERO,
                Cluster::Plain(bytes) => {
                    placed.end = placed.end.next_multiple_of(size);
                    let at = placed.end;
                    placed.data.push((at, bytes));
                    placed.end += size;
                    at | COPIED
                }
                Cluster::Packed(bytes) => {
                    let at = placed.end;
                    placed.data.push((at, bytes));
                    placed.end += bytes.len() as u64;
                    let more = (placed.end - 1) / SECTOR - at / SECTOR;
                    COMPRESSED | more << (62 - (self.bits - 8)) | at
                }
            };
            placed.l2.entry(table).or_default().insert(n % per_l2, entry);
        }
        placed.end = placed.end.next_multiple_of(size);
        placed
    }

    fn write(&self, len: u64, options: &Options) -> Vec<u8> {
        let size = self.size;
        let l1_clusters = (self.l1_entries * 8).div_ceil(size).max(1);
        // 16-bit counters; the table and its blocks count themselves, so grow until they fit.
        let (mut table, mut blocks) = (1, 1);
        let placed = loop {
            let placed = self.place(1 + table + blocks + l1_clusters);
            let need = (placed.end / size).div_ceil(size / 2);
            let need_table = (need * 8).div_ceil(size);
            if need <= blocks && need_table <= table {
                break placed;
            }
            (table, blocks) = (table.max(need_table), blocks.max(need));
        };
        let l1_at = (1 + table + blocks) * size;
        let mut out = vec![0; placed.end as usize];
        let header = self.header(len, l1_at, table, options);
        out[..header.len()].copy_from_slice(&header);
        let mut counts = vec![0u16; (placed.end / size) as usize];
        counts[..(1 + table + blocks + l1_clusters) as usize].fill(1);
        for n in 0..blocks {
            put64(&mut out, size + 8 * n, (1 + table + n) * size);
        }
        for (&n, &l2_at) in &placed.l1 {
            put64(&mut out, l1_at + 8 * n, l2_at | COPIED);
            counts[(l2_at / size) as usize] += 1;
            for (&k, &entry) in &placed.l2[&n] {
                put64(&mut out, l2_at + 8 * k, entry);
                let shift = 62 - (self.bits - 8);
                if entry & COMPRESSED != 0 {
                    let at = entry & ((1 << shift) - 1);
                    let more = (entry & (COMPRESSED - 1)) >> shift;
                    let first = at / SECTOR * SECTOR;
                    for c in first / size..=(first + (more + 1) * SECTOR - 1) / size {
                        counts[c as usize] += 1;
                    }
                } else if entry != ZERO {
                    counts[((entry & !COPIED) / size) as usize] += 1;
                }
            }
        }
        for (at, bytes) in &placed.data {
            out[*at as usize..*at as usize + bytes.len()].copy_from_slice(bytes);
        }
        let counters = ((1 + table) * size) as usize;
        for (n, count) in counts.iter().enumerate() {
            out[counters + 2 * n..][..2].copy_from_slice(&count.to_be_bytes());
        }
        out
    }

    fn header(&self, len: u64, l1_at: u64, table: u64, options: &Options) -> Vec<u8> {
        let zstd = options.compression == Compression::Zstd;
        let mut h = vec![0; if options.version == 2 { 72 } else { 112 }];
        h[..4].copy_from_slice(b"QFI\xFB");
        put32(&mut h, 4, options.version);
        put32(&mut h, 20, options.cluster_bits);
        put64(&mut h, 24, len);
        put32(&mut h, 36, self.l1_entries as u32);
        put64(&mut h, 40, l1_at);
        put64(&mut h, 48, self.size);
        put32(&mut h, 56, table as u32);
        if options.version == 3 {
            put64(&mut h, 72, u64::from(zstd) << 3);
            put32(&mut h, 96, 4);
            put32(&mut h, 100, 112);
            h[104] = u8::from(zstd);
        }
        if let Some((name, format)) = &options.backing {
            extension(&mut h, 0xE279_2ACA, format.as_bytes());
            extension(&mut h, 0, b"");
            let at = h.len() as u64;
            put64(&mut h, 8, at);
            put32(&mut h, 16, name.len() as u32);
            h.extend(name.as_bytes());
        } else {
            extension(&mut h, 0, b"");
        }
        assert!(h.len() as u64 <= self.size, "the header does not fit a cluster of {} bytes", self.size);
        h
    }
}

/// Where everything lies; positions are bytes of the file.
struct Placed<'a> {
    end: u64,
    l1: BTreeMap<u64, u64>,
    l2: BTreeMap<u64, BTreeMap<u64, u64>>,
    data: Vec<(u64, &'a Vec<u8>)>,
}

/// Compresses a cluster where that saves room.
fn pack(bytes: Vec<u8>, compression: Compression) -> Cluster {
    let packed = match compression {
        Compression::None => return Cluster::Plain(bytes),
        Compression::Deflate => {
            let mut packed = Vec::with_capacity(bytes.len() + 1024);
            let mut deflate = Compress::new_with_window_bits(Level::best(), false, 12);
            let status = deflate.compress_vec(&bytes, &mut packed, FlushCompress::Finish);
            assert!(matches!(status, Ok(Status::StreamEnd)), "deflate stopped early: {status:?}");
            packed
        }
        Compression::Zstd => zstd::bulk::compress(&bytes, 19).expect("a cluster compresses in memory"),
    };
    if packed.len() < bytes.len() { Cluster::Packed(packed) } else { Cluster::Plain(bytes) }
}

fn extension(header: &mut Vec<u8>, kind: u32, data: &[u8]) {
    header.extend(kind.to_be_bytes());
    header.extend((data.len() as u32).to_be_bytes());
    header.extend(data);
    header.resize(header.len().next_multiple_of(8), 0);
}

fn put32(out: &mut [u8], at: usize, value: u32) {
    out[at..at + 4].copy_from_slice(&value.to_be_bytes());
}

fn put64(out: &mut [u8], at: u64, value: u64) {
    out[at as usize..at as usize + 8].copy_from_slice(&value.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vmfs::pattern;
    use std::io::Read;

    fn device() -> Device {
        let mut device = Device::new(3_000_000 / 512 * 512);
        device.write(70_000, &pattern(5000, 1));
        device.write(1 << 20, &vec![0x55; 200_000]);
        device
    }

    fn be64(bytes: &[u8], at: usize) -> u64 {
        u64::from_be_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
    }

    #[test]
    fn plain_clusters_lie_where_the_tables_say() {
        let image = write(&device(), &Options::default());
        let l1 = be64(&image, 40) as usize;
        let l2 = (be64(&image, l1) & !COPIED) as usize;
        let data = (be64(&image, l2 + 8) & !COPIED) as usize;
        assert_eq!(image[data..data + 65_536], device().read(65_536, 65_536));
        assert_eq!(be64(&image, l2), 0);
        assert_eq!(image.len() % 65_536, 0);
    }

    #[test]
    fn compressed_clusters_unpack_to_the_guest_bytes() {
        for compression in [Compression::Deflate, Compression::Zstd] {
            let image = write(&device(), &Options { compression, ..Options::default() });
            let l1 = be64(&image, 40) as usize;
            let l2 = (be64(&image, l1) & !COPIED) as usize;
            let entry = be64(&image, l2 + 8 * 17);
            assert_ne!(entry & COMPRESSED, 0);
            let at = (entry & ((1 << 54) - 1)) as usize;
            let mut out = vec![0; 65_536];
            match compression {
                Compression::Deflate => {
                    flate2::read::DeflateDecoder::new(&image[at..]).read_exact(&mut out).expect("deflate data");
                }
                _ => {
                    zstd::stream::read::Decoder::new(&image[at..])
                        .and_then(|mut d| d.read_exact(&mut out))
                        .expect("zstd data");
                }
            }
            assert_eq!(out, device().read(17 * 65_536, 65_536));
        }
    }

    #[test]
    fn every_cluster_is_counted() {
        let image = write(&device(), &Options { cluster_bits: 12, ..Options::default() });
        let block = be64(&image, be64(&image, 48) as usize) as usize;
        let clusters = image.len() / 4096;
        let counts: Vec<u16> =
            image[block..block + 2 * clusters].chunks(2).map(|c| u16::from_be_bytes([c[0], c[1]])).collect();
        assert!(counts.iter().all(|&c| c == 1), "{counts:?}");
    }

    #[test]
    fn the_same_input_gives_the_same_bytes() {
        let options = Options { compression: Compression::Deflate, ..Options::default() };
        assert_eq!(write(&device(), &options), write(&device(), &options));
    }
}
