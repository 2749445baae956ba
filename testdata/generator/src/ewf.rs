//! EWF images (libyal's "Expert Witness Compression Format specification"), laid out as `EnCase` 6 does.

use crate::Device;
use flate2::Compression;
use flate2::write::ZlibEncoder;
use std::io::Write;
use std::ops::Range;

const SECTOR: u64 = 512;
/// Sectors of a chunk.
pub const CHUNK: u64 = 64;

/// How an image is written.
#[derive(Clone, Debug)]
pub struct Options {
    /// Chunks of a segment.
    pub segment: usize,
    /// Chunks of a table.
    pub table: usize,
    /// Whether every third chunk is left plain.
    pub mixed: bool,
    /// Sectors that could not be read.
    pub errors: Vec<Range<u32>>,
}

impl Default for Options {
    fn default() -> Self {
        Self { segment: usize::MAX, table: 24, mixed: true, errors: Vec::new() }
    }
}

/// The segments of the image of a disk.
#[must_use]
pub fn write(disk: &Device, options: &Options) -> Vec<Vec<u8>> {
    let chunk_len = CHUNK * SECTOR;
    let chunks: Vec<(bool, Vec<u8>)> = (0..disk.len().div_ceil(chunk_len))
        .map(|n| {
            let at = n * chunk_len;
            let bytes = disk.read(at, (disk.len() - at).min(chunk_len) as usize);
            if options.mixed && n % 3 == 1 {
                let sum = adler32(&bytes);
                return (false, [bytes, sum.to_le_bytes().to_vec()].concat());
            }
            (true, zlib(&bytes))
        })
        .collect();
    let segments: Vec<&[(bool, Vec<u8>)]> = chunks.chunks(options.segment).collect();
    let count = segments.len();
    let volume = volume(disk.len(), chunks.len() as u32);
    segments
        .into_iter()
        .enumerate()
        .map(|(n, chunks)| {
            let mut image = b"EVF\x09\x0D\x0A\xFF\x00\x01".to_vec();
            image.extend((n as u16 + 1).to_le_bytes());
            image.extend([0, 0]);
            if n == 0 {
                let text = "1\nmain\nc\tn\ta\te\tt\nthe case\tnumber 7\ta disk\tsomebody\tno notes\n\n";
                section(&mut image, "header", &zlib(text.as_bytes()));
                section(&mut image, "volume", &volume);
            } else {
                section(&mut image, "data", &volume);
            }
            for chunks in chunks.chunks(options.table) {
                let start = image.len() + 76;
                section(
                    &mut image,
                    "sectors",
                    &chunks.iter().flat_map(|(_, bytes)| bytes.clone()).collect::<Vec<u8>>(),
                );
                let mut at = start as u32;
                let mut entries = Vec::new();
                for (packed, bytes) in chunks {
                    entries.extend((at | u32::from(*packed) << 31).to_le_bytes());
                    at += bytes.len() as u32;
                }
                let mut table = vec![0; 20];
                table[..4].copy_from_slice(&(chunks.len() as u32).to_le_bytes());
                let head_sum = adler32(&table);
                table.extend(head_sum.to_le_bytes());
                table.extend(&entries);
                table.extend(adler32(&entries).to_le_bytes());
                section(&mut image, "table", &table);
                section(&mut image, "table2", &table);
            }
            if n + 1 == count {
                if !options.errors.is_empty() {
                    section(&mut image, "error2", &errors(&options.errors));
                }
                let mut hash = b"sixteen md5 byte".to_vec();
                hash.resize(32, 0);
                hash.extend(adler32(&hash).to_le_bytes());
                section(&mut image, "hash", &hash);
            }
            last_section(&mut image, if n + 1 == count { "done" } else { "next" });
            image
        })
        .collect()
}

fn volume(len: u64, chunks: u32) -> Vec<u8> {
    let mut volume = vec![0; 1048];
    volume[0] = 1;
    volume[4..8].copy_from_slice(&chunks.to_le_bytes());
    volume[8..12].copy_from_slice(&(CHUNK as u32).to_le_bytes());
    volume[12..16].copy_from_slice(&(SECTOR as u32).to_le_bytes());
    volume[16..24].copy_from_slice(&(len / SECTOR).to_le_bytes());
    volume[64..80].copy_from_slice(b"the set's own id");
    let sum = adler32(&volume);
    volume.extend(sum.to_le_bytes());
    volume
}

fn errors(ranges: &[Range<u32>]) -> Vec<u8> {
    let mut bytes = vec![0; 516];
    bytes[..4].copy_from_slice(&(ranges.len() as u32).to_le_bytes());
    let sum = adler32(&bytes);
    bytes.extend(sum.to_le_bytes());
    let entries: Vec<u8> = ranges
        .iter()
        .flat_map(|range| [range.start.to_le_bytes(), (range.end - range.start).to_le_bytes()].concat())
        .collect();
    bytes.extend(&entries);
    bytes.extend(adler32(&entries).to_le_bytes());
    bytes
}

fn section(image: &mut Vec<u8>, kind: &str, content: &[u8]) {
    let len = 76 + content.len() as u64;
    head(image, kind, image.len() as u64 + len, len);
    image.extend(content);
}

fn last_section(image: &mut Vec<u8>, kind: &str) {
    head(image, kind, image.len() as u64, 0);
}

fn head(image: &mut Vec<u8>, kind: &str, next: u64, len: u64) {
    let mut head = vec![0; 72];
    head[..kind.len()].copy_from_slice(kind.as_bytes());
    head[16..24].copy_from_slice(&next.to_le_bytes());
    head[24..32].copy_from_slice(&len.to_le_bytes());
    let sum = adler32(&head);
    image.extend(head);
    image.extend(sum.to_le_bytes());
}

fn zlib(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = ZlibEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).and_then(|()| encoder.finish()).expect("memory takes all bytes")
}

/// Adler-32 (RFC 1950).
#[must_use]
pub fn adler32(bytes: &[u8]) -> u32 {
    let (a, b) = bytes.iter().fold((1, 0), |(a, b), byte| {
        let a = (a + u32::from(*byte)) % 65521;
        (a, (b + a) % 65521)
    });
    b << 16 | a
}
