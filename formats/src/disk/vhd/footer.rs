//! The footer, its copy, and the dynamic header.

use crate::blocks::shl;
use crate::error::Error;
use crate::layer::{Layer, Trust};
use crate::note::Finding;
use crate::num::{narrow, round_up};
use crate::read::read_exact;
use crate::record::Record;
use binrw::BinRead;
use byteorder::{BigEndian, ByteOrder, LittleEndian};

const COOKIE: &[u8; 8] = b"conectix";
const DYNAMIC_COOKIE: &[u8; 8] = b"cxsparse";
/// Where the specification's sums lie.
const FOOTER_SUM: usize = 64;
const DYNAMIC_SUM: usize = 36;

/// The specification's "Hard Disk Footer Format".
#[derive(BinRead, Clone, Debug, PartialEq, Eq)]
#[br(big)]
struct Raw {
    cookie: [u8; 8],
    features: u32,
    version: u32,
    data_offset: u64,
    timestamp: u32,
    creator: [u8; 4],
    creator_version: u32,
    creator_host: [u8; 4],
    original_size: u64,
    current_size: u64,
    cylinders: u16,
    heads: u8,
    sectors: u8,
    kind: u32,
    checksum: u32,
    unique_id: [u8; 16],
    saved_state: u8,
}

impl Record for Raw {
    const SIZE: usize = 85;
    const NAME: &'static str = "VHD footer";
}

/// The specification's "Dynamic Disk Header Format", up to the parent's name.
#[derive(BinRead, Debug)]
#[br(big)]
struct RawDynamic {
    cookie: [u8; 8],
    #[br(pad_before = 8)]
    table_offset: u64,
    version: u32,
    max_table_entries: u32,
    block_size: u32,
    #[br(pad_before = 4)]
    parent_id: [u8; 16],
    parent_time: u32,
}

impl Record for RawDynamic {
    const SIZE: usize = 60;
    const NAME: &'static str = "VHD dynamic header";
}

/// Kinds of disks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Fixed,
    Dynamic,
    Differencing,
}

impl Kind {
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Fixed => "fixed",
            Self::Dynamic => "dynamic",
            Self::Differencing => "differencing",
        }
    }
}

/// A checked footer.
#[derive(Clone, Debug)]
pub(super) struct Footer {
    /// Where the chosen copy lies.
    pub at: u64,
    pub kind: Kind,
    pub size: u64,
    pub original_size: u64,
    pub geometry: (u16, u8, u8),
    pub creator: [u8; 4],
    pub unique_id: [u8; 16],
    pub saved_state: bool,
    pub trust: Trust,
    pub findings: Vec<Finding>,
    timestamp: u32,
    data_offset: u64,
}

impl Footer {
    /// Creation, in nanoseconds since 1970.
    pub(super) fn born(&self) -> i128 {
        time(self.timestamp)
    }
}

/// Times count seconds since the year 2000.
pub(super) fn time(seconds: u32) -> i128 {
    const YEAR_2000: i128 = 946_684_800;
    i128::from(seconds).saturating_add(YEAR_2000).saturating_mul(1_000_000_000)
}

/// One place where a footer may be.
struct Copy {
    at: u64,
    raw: Raw,
    /// Whether its sum is right.
    valid: bool,
    bytes: Vec<u8>,
}

fn copy_at(layer: &dyn Layer, at: u64, len: usize) -> Option<Copy> {
    let mut bytes = vec![0; len];
    read_exact(layer, at, &mut bytes).ok()?;
    let raw = Raw::parse(&bytes, at).ok()?;
    (raw.cookie == *COOKIE).then(|| Copy { at, valid: sum(&bytes, FOOTER_SUM) == raw.checksum, raw, bytes })
}

/// The complement of the sum of all bytes but those of the sum itself.
fn sum(bytes: &[u8], at: usize) -> u32 {
    let own = at..at.saturating_add(4);
    let others = bytes.iter().enumerate().filter(|(i, _)| !own.contains(i));
    !others.fold(0_u32, |sum, (_, byte)| sum.wrapping_add(u32::from(*byte)))
}

/// The footer of an image: the one at its end, or else the copy at its start.
pub(super) fn find(layer: &dyn Layer) -> Result<Footer, Error> {
    let end = layer.len();
    let at_end = [512_u16, 511].into_iter().find_map(|len| copy_at(layer, end.checked_sub(len.into())?, len.into()));
    let at_start = copy_at(layer, 0, 512).filter(|copy| copy.raw.kind != 2);
    let mut findings = Vec::new();
    let mut find = |code, at: u64, trust, text: &str| {
        findings.push(Finding::new(code, at..at.saturating_add(512), trust, text));
    };
    let (chosen, trust) = match (at_end, at_start) {
        (Some(end), Some(start)) if end.valid && start.valid => {
            // A short footer lacks a byte that is reserved.
            let same = start.bytes.starts_with(&end.bytes);
            if !same {
                find("VHD-FOOTER-DIFFERS", 0, Trust::Doubtful, "the footer and its copy at the start differ");
            }
            (end, if same { Trust::Sound } else { Trust::Doubtful })
        }
        (Some(end), start) if end.valid => {
            if end.raw.kind != 2 {
                let text = if start.is_some() { "fails its checksum" } else { "is missing" };
                find("VHD-FOOTER-COPY", 0, Trust::Sound, &format!("the copy of the footer at the start {text}"));
            }
            (end, Trust::Sound)
        }
        (end, Some(start)) if start.valid => {
            let text = if end.is_some() { "fails its checksum" } else { "is missing" };
            let text = format!("the footer at the end {text}; its copy at the start is used");
            find("VHD-FOOTER", layer.len().saturating_sub(512), Trust::Inferred, &text);
            (start, Trust::Inferred)
        }
        (Some(copy), _) | (None, Some(copy)) => {
            find("VHD-FOOTER", copy.at, Trust::Doubtful, "no copy of the footer matches its checksum");
            (copy, Trust::Doubtful)
        }
        (None, None) => return Err(Error::corrupt(Raw::NAME, end.saturating_sub(512), "no conectix there")),
    };
    check(chosen, trust, findings)
}

fn check(copy: Copy, trust: Trust, mut findings: Vec<Finding>) -> Result<Footer, Error> {
    let Copy { at, raw, valid, .. } = copy;
    let kind = match raw.kind {
        2 => Kind::Fixed,
        3 => Kind::Dynamic,
        4 => Kind::Differencing,
        other => return Err(Error::unsupported(format!("VHD disk type {other}"))),
    };
    if raw.version != 0x1_0000 {
        return Err(Error::unsupported(format!("VHD version {:#x}", raw.version)));
    }
    if kind == Kind::Fixed && raw.current_size != at {
        let text = format!("{} bytes lie before the footer, which says {}", at, raw.current_size);
        // Rounded up to a larger unit it is what some converters leave.
        let trust = if raw.current_size > at { Trust::Doubtful } else { Trust::Sound };
        findings.push(Finding::new("VHD-SIZE", at..at.saturating_add(512), trust, text));
    }
    let trust = findings.iter().map(|finding| finding.trust).fold(trust, Trust::max);
    // What a damaged footer says of a fixed disk's size is worth less than where it lies.
    let size = if kind == Kind::Fixed && !valid { at } else { raw.current_size };
    Ok(Footer {
        at,
        kind,
        size,
        original_size: raw.original_size,
        geometry: (raw.cylinders, raw.heads, raw.sectors),
        creator: raw.creator,
        unique_id: raw.unique_id,
        saved_state: raw.saved_state != 0,
        trust,
        findings,
        timestamp: raw.timestamp,
        data_offset: raw.data_offset,
    })
}

/// A checked dynamic header.
#[derive(Clone, Debug)]
pub(super) struct Dynamic {
    pub at: u64,
    /// Where the block allocation table lies.
    pub table: u64,
    pub entries: u32,
    pub block_bits: u32,
    pub parent_id: Option<[u8; 16]>,
    pub parent_time: u32,
    /// As the image writes it.
    pub parent_name: Option<String>,
    pub findings: Vec<Finding>,
}

impl Dynamic {
    pub(super) fn block_size(&self) -> u64 {
        shl(1, self.block_bits)
    }

    /// Bytes of a block's bitmap: a bit a sector, in whole sectors.
    pub(super) fn bitmap_len(&self) -> u64 {
        round_up(self.block_size() >> 12, 512).max(512)
    }
}

/// Blocks of real images are 512 KiB and 2 MiB; nothing is gained by following larger powers than this.
const MAX_BLOCK: u32 = 1 << 30;

pub(super) fn dynamic(layer: &dyn Layer, footer: &Footer) -> Result<Dynamic, Error> {
    let at = footer.data_offset;
    let mut bytes = [0; 1024];
    read_exact(layer, at, &mut bytes).map_err(|gap| Error::Lost { what: RawDynamic::NAME, gap })?;
    let raw = RawDynamic::parse(&bytes, at)?;
    let mut findings = Vec::new();
    let mut find = |code, trust, text| findings.push(Finding::new(code, at..at.saturating_add(1024), trust, text));
    if raw.cookie != *DYNAMIC_COOKIE {
        return Err(Error::corrupt("VHD dynamic header: cookie", at, raw.cookie.escape_ascii().to_string()));
    }
    if sum(&bytes, DYNAMIC_SUM) != BigEndian::read_u32(bytes.get(DYNAMIC_SUM..).unwrap_or(&[0; 4])) {
        find("VHD-HEADER", Trust::Doubtful, "the dynamic header fails its checksum".to_owned());
    }
    if raw.version != 0x1_0000 {
        return Err(Error::unsupported(format!("VHD dynamic header version {:#x}", raw.version)));
    }
    if !raw.block_size.is_power_of_two() || !(512..=MAX_BLOCK).contains(&raw.block_size) {
        let found = format!("{} (a power of two, 512..={MAX_BLOCK})", raw.block_size);
        return Err(Error::corrupt("VHD dynamic header: block size", at.saturating_add(32), found));
    }
    let needed = footer.size.div_ceil(raw.block_size.into());
    if u64::from(raw.max_table_entries) < needed {
        let text = format!("the block table has {} entries, {needed} are needed", raw.max_table_entries);
        find("VHD-TABLE-SHORT", Trust::Doubtful, text);
    }
    let parent_name = (footer.kind == Kind::Differencing).then(|| parent_name(layer, &bytes)).flatten();
    Ok(Dynamic {
        at,
        table: raw.table_offset,
        entries: raw.max_table_entries,
        block_bits: raw.block_size.trailing_zeros(),
        parent_id: (footer.kind == Kind::Differencing).then_some(raw.parent_id),
        parent_time: raw.parent_time,
        parent_name,
        findings,
    })
}

/// No path of Windows is longer, in bytes of UTF-16.
const MAX_NAME: u32 = 64 << 10;

/// The relative locator, the absolute one, or the name in the header.
fn parent_name(layer: &dyn Layer, header: &[u8]) -> Option<String> {
    let locators = header.get(576..768).unwrap_or_default();
    let locator = |code: &[u8; 4]| {
        let found = locators.chunks_exact(24).find(|locator| locator.starts_with(code))?;
        let len = BigEndian::read_u32(found.get(8..12)?);
        let at = BigEndian::read_u64(found.get(16..24)?);
        let mut bytes = vec![0; narrow(len.min(MAX_NAME).into())];
        read_exact(layer, at, &mut bytes).ok()?;
        text(&bytes, LittleEndian::read_u16)
    };
    locator(b"W2ru").or_else(|| locator(b"W2ku")).or_else(|| text(header.get(64..576)?, BigEndian::read_u16))
}

/// UTF-16 up to its first zero, if there is any.
fn text(bytes: &[u8], unit: fn(&[u8]) -> u16) -> Option<String> {
    let units: Vec<u16> = bytes.chunks_exact(2).map(unit).take_while(|unit| *unit != 0).collect();
    (!units.is_empty()).then(|| String::from_utf16_lossy(&units))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_have_the_size_of_the_specification() {
        assert_eq!((Raw::SIZE, RawDynamic::SIZE), (85, 60));
        assert!(Raw::parse(&[0; 85], 0).is_ok() && Raw::parse(&[0; 84], 0).is_err());
        assert!(RawDynamic::parse(&[0; 60], 0).is_ok() && RawDynamic::parse(&[0; 59], 0).is_err());
    }
}
