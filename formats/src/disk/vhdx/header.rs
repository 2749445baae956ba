//! The headers and the region tables: \[MS-VHDX\] 2.2.

use crate::error::Error;
use crate::layer::{Layer, Trust};
use crate::note::Finding;
use crate::num::{narrow, wide};
use crate::read::read_exact;
use crate::record::Record;
use binrw::BinRead;
use byteorder::{ByteOrder, LittleEndian};
use std::ops::Range;

const HEADERS: [u64; 2] = [64 << 10, 128 << 10];
const TABLES: [u64; 2] = [192 << 10, 256 << 10];
const HEADER_LEN: usize = 4 << 10;
const TABLE_LEN: usize = 64 << 10;
/// Section 2.2.3.2.
const BAT: [u8; 16] = *b"\x66\x77\xC2\x2D\x23\xF6\x00\x42\x9D\x64\x11\x5E\x9B\xFD\x4A\x08";
const METADATA: [u8; 16] = *b"\x06\xA2\x7C\x8B\x90\x47\x9A\x4B\xB8\xFE\x57\x5F\x05\x0F\x88\x6E";

#[derive(BinRead, Debug)]
#[br(little)]
struct RawHeader {
    #[br(pad_before = 8)]
    sequence: u64,
    #[br(pad_before = 16)]
    data_write: [u8; 16],
    log_id: [u8; 16],
    log_version: u16,
    version: u16,
    log_length: u32,
    log_offset: u64,
}

impl Record for RawHeader {
    const SIZE: usize = 80;
    const NAME: &'static str = "VHDX header";
}

#[derive(BinRead, Debug)]
#[br(little)]
struct RawRegion {
    id: [u8; 16],
    offset: u64,
    length: u32,
    required: u32,
}

impl Record for RawRegion {
    const SIZE: usize = 32;
    const NAME: &'static str = "VHDX region table entry";
}

/// What the current header says.
#[derive(Clone, Debug, Default)]
pub(super) struct Header {
    /// Changes with the data: children name it. `None` if no header is left.
    pub data_write: Option<[u8; 16]>,
    /// Names the log, if it is not empty.
    pub log_id: Option<[u8; 16]>,
    /// Where the log lies.
    pub log: Range<u64>,
}

/// The structure at `at`, and whether its checksum, 4 bytes at 4, is right.
fn summed(layer: &dyn Layer, at: u64, len: usize, mark: &[u8]) -> Option<(Vec<u8>, bool)> {
    let mut bytes = vec![0; len];
    read_exact(layer, at, &mut bytes).ok()?;
    bytes.starts_with(mark).then(|| {
        let valid = is_valid(&bytes);
        (bytes, valid)
    })
}

/// Whether a structure's CRC-32C, 4 bytes at 4, is that of its bytes with zeros in its place.
pub(super) fn is_valid(bytes: &[u8]) -> bool {
    let (Some(mark), Some(sum), Some(rest)) = (bytes.get(..4), bytes.get(4..8), bytes.get(8..)) else { return false };
    let crc = crc32c::crc32c_append(crc32c::crc32c_append(crc32c::crc32c(mark), &[0; 4]), rest);
    crc.to_le_bytes() == *sum
}

/// Whether one header at least is whole.
pub(super) fn any_valid(layer: &dyn Layer) -> bool {
    HEADERS.into_iter().any(|at| summed(layer, at, HEADER_LEN, b"head").is_some_and(|(_, valid)| valid))
}

impl Header {
    /// The valid header with the higher number. An image of which none is left may still be read, doubtfully: no
    /// header says where the data lies.
    pub(super) fn load(layer: &dyn Layer, findings: &mut Vec<Finding>) -> Self {
        let mut note = |at: u64, trust, text: &str| {
            findings.push(Finding::new("VHDX-HEADER", at..at.saturating_add(wide(HEADER_LEN)), trust, text));
        };
        let found = HEADERS.map(|at| {
            let (bytes, valid) = summed(layer, at, HEADER_LEN, b"head")?;
            let raw = RawHeader::parse(&bytes, at).ok()?;
            (valid && raw.version == 1).then_some((raw, bytes))
        });
        let current = match found {
            [Some((a, a_bytes)), Some((b, b_bytes))] => {
                if a.sequence == b.sequence && a_bytes != b_bytes {
                    note(HEADERS[0], Trust::Doubtful, "two headers of one number differ");
                }
                if b.sequence > a.sequence { b } else { a }
            }
            [Some((only, _)), None] => {
                // The lost one may have been the newer, which knows of a log that this one does not.
                note(HEADERS[1], Trust::Inferred, "the second header is damaged; the first is used");
                only
            }
            [None, Some((only, _))] => {
                note(HEADERS[0], Trust::Inferred, "the first header is damaged; the second is used");
                only
            }
            [None, None] => {
                note(HEADERS[0], Trust::Doubtful, "both headers are damaged; nothing tells whether there is a log");
                return Self::default();
            }
        };
        if current.log_version != 0 {
            note(HEADERS[0], Trust::Doubtful, "a log of an unknown version");
        }
        Self {
            data_write: Some(current.data_write),
            log_id: (current.log_id != [0; 16]).then_some(current.log_id),
            log: current.log_offset..current.log_offset.saturating_add(current.log_length.into()),
        }
    }
}

/// Where the regions are that every image has.
#[derive(Clone, Debug)]
pub(super) struct Regions {
    pub bat: Range<u64>,
    pub metadata: Range<u64>,
}

/// The regions by the first of the two tables that is whole.
pub(super) fn regions(layer: &dyn Layer, findings: &mut Vec<Finding>) -> Result<Regions, Error> {
    let mut note = |at: u64, trust, text: &str| {
        findings.push(Finding::new("VHDX-REGIONS", at..at.saturating_add(wide(TABLE_LEN)), trust, text));
    };
    let found = TABLES.map(|at| summed(layer, at, TABLE_LEN, b"regi"));
    let (at, bytes) = match found {
        [Some((a, true)), Some((b, true))] => {
            if a != b {
                note(TABLES[1], Trust::Doubtful, "the two region tables differ");
            }
            (TABLES[0], a)
        }
        [Some((a, true)), _] => {
            note(TABLES[1], Trust::Sound, "the second region table is damaged");
            (TABLES[0], a)
        }
        [_, Some((b, true))] => {
            note(TABLES[0], Trust::Inferred, "the first region table is damaged; the second is used");
            (TABLES[1], b)
        }
        [Some((a, false)), _] => {
            note(TABLES[0], Trust::Doubtful, "both region tables are damaged");
            (TABLES[0], a)
        }
        [None, Some((b, false))] => {
            note(TABLES[1], Trust::Doubtful, "both region tables are damaged");
            (TABLES[1], b)
        }
        [None, None] => return Err(Error::corrupt("VHDX region tables", TABLES[0], "neither is there")),
    };
    // Section 2.2.3: at most 2,047 entries, which is all that the table has room for.
    let count = bytes.get(8..12).map_or(0, LittleEndian::read_u32);
    let (mut bat, mut metadata) = (None, None);
    for entry in bytes.get(16..).unwrap_or_default().chunks_exact(RawRegion::SIZE).take(narrow(count.into())) {
        let raw = RawRegion::parse(entry, at)?;
        let range = raw.offset..raw.offset.saturating_add(raw.length.into());
        match raw.id {
            BAT => bat = Some(range),
            METADATA => metadata = Some(range),
            _ if raw.required & 1 == 1 => {
                let id = crate::guid::mixed(&raw.id);
                return Err(Error::unsupported(format!("VHDX region {id}")));
            }
            _ => {}
        }
    }
    let missing = || Error::corrupt("VHDX region table", at, "it does not name the block table and the metadata");
    Ok(Regions { bat: bat.ok_or_else(missing)?, metadata: metadata.ok_or_else(missing)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_have_the_size_of_the_specification() {
        assert_eq!((RawHeader::SIZE, RawRegion::SIZE), (80, 32));
        assert!(RawHeader::parse(&[0; 80], 0).is_ok() && RawHeader::parse(&[0; 79], 0).is_err());
        assert!(RawRegion::parse(&[0; 32], 0).is_ok() && RawRegion::parse(&[0; 31], 0).is_err());
    }

    #[test]
    fn the_checksum_is_crc32c() {
        // RFC 3720, B.4: 32 bytes of zeros.
        assert_eq!(crc32c::crc32c(&[0; 32]), 0x8A91_36AA);
        let mut bytes = [0; 32];
        bytes[4..8].copy_from_slice(&0x8A91_36AA_u32.to_le_bytes());
        assert!(is_valid(&bytes) && !is_valid(&bytes[..31]));
    }
}
