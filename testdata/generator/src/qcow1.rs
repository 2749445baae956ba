//! QCOW images of version 1 (QEMU's `block/qcow.c`, header comment), laid out as `qemu-img` does: header, name of the
//! backing file, L1, then each L2 table before its clusters.

use crate::Device;
use flate2::{Compress, Compression, FlushCompress};

/// What image to write.
#[derive(Clone, Debug)]
pub struct Options {
    /// 9 to 16; the cluster is 2 to this power.
    pub cluster_bits: u32,
    /// 6 to 13; an L2 table has 2 to this power entries.
    pub l2_bits: u32,
    /// Whether clusters are compressed.
    pub packed: bool,
    /// Name of the backing file.
    pub backing: Option<String>,
    /// What the header says of encryption. Nothing is encrypted.
    pub crypt: u32,
}

impl Default for Options {
    fn default() -> Self {
        Self { cluster_bits: 12, l2_bits: 9, packed: false, backing: None, crypt: 0 }
    }
}

/// The image of the clusters in which `disk` differs from `parent`.
#[must_use]
pub fn write(disk: &Device, parent: &Device, options: &Options) -> Vec<u8> {
    let cluster = 1_u64 << options.cluster_bits;
    let span = cluster << options.l2_bits;
    let name = options.backing.as_deref().unwrap_or_default();
    let l1_at = (48 + name.len() as u64).next_multiple_of(8);
    let l1_len = disk.len().div_ceil(span) * 8;
    let mut image = vec![0; (l1_at + l1_len).next_multiple_of(cluster) as usize];
    put(&mut image, 0, b"QFI\xFB\0\0\0\x01");
    if options.backing.is_some() {
        put(&mut image, 8, &48_u64.to_be_bytes());
        put(&mut image, 16, &(name.len() as u32).to_be_bytes());
        put(&mut image, 48, name.as_bytes());
    }
    put(&mut image, 24, &disk.len().to_be_bytes());
    put(&mut image, 32, &[options.cluster_bits as u8, options.l2_bits as u8]);
    put(&mut image, 36, &options.crypt.to_be_bytes());
    put(&mut image, 40, &l1_at.to_be_bytes());
    let read = |device: &Device, at: u64| {
        let len = device.len().saturating_sub(at).min(cluster);
        let mut bytes = if len > 0 { device.read(at, len as usize) } else { Vec::new() };
        bytes.resize(cluster as usize, 0);
        bytes
    };
    let mut table: Option<(u64, u64)> = None;
    for at in (0..disk.len()).step_by(cluster as usize) {
        let bytes = read(disk, at);
        if bytes == read(parent, at) {
            continue;
        }
        let (index, l2_index) = (at / span, at % span / cluster);
        let l2 = match table {
            Some((own, l2)) if own == index => l2,
            _ => {
                let l2 = (image.len() as u64).next_multiple_of(cluster);
                image.resize((l2 + (8 << options.l2_bits)) as usize, 0);
                put(&mut image, l1_at + index * 8, &l2.to_be_bytes());
                table = Some((index, l2));
                l2
            }
        };
        let packed = options.packed.then(|| deflate(&bytes)).filter(|packed| packed.len() < cluster as usize);
        let entry = if let Some(packed) = packed {
            let place = image.len() as u64;
            image.extend(&packed);
            1 << 63 | (packed.len() as u64) << (63 - options.cluster_bits) | place
        } else {
            let place = (image.len() as u64).next_multiple_of(cluster);
            image.resize(place as usize, 0);
            image.extend(bytes);
            place
        };
        put(&mut image, l2 + l2_index * 8, &entry.to_be_bytes());
    }
    image
}

fn deflate(bytes: &[u8]) -> Vec<u8> {
    let mut stream = Compress::new_with_window_bits(Compression::default(), false, 12);
    let mut packed = Vec::with_capacity(bytes.len() * 2 + 64);
    stream.compress_vec(bytes, &mut packed, FlushCompress::Finish).expect("deflate takes any bytes");
    packed
}

fn put(bytes: &mut [u8], at: u64, what: &[u8]) {
    bytes[at as usize..at as usize + what.len()].copy_from_slice(what);
}
