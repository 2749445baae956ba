//! Header and header extensions: QEMU's `docs/interop/qcow2.rst`, sections "Header" and "Header extensions".

use super::census::Refcounts;
use super::entry::Dialect;
use super::seal::Seal;
use crate::error::Error;
use crate::layer::{Layer, Trust};
use crate::note::Finding;
use crate::num::{narrow, round_up, wide};
use crate::read::{read, read_exact};
use crate::record::Record;
use binrw::BinRead;
use byteorder::{BigEndian, ByteOrder};

/// `QFI\xfb`.
pub(super) const MAGIC: &[u8] = b"QFI\xfb";

/// Incompatible feature bits.
pub(super) mod incompatible {
    /// Refcounts may be stale.
    pub(in super::super) const DIRTY: u64 = 1;
    /// Any structure may be damaged.
    pub(in super::super) const CORRUPT: u64 = 1 << 1;
    /// Guest clusters are in another file.
    pub(in super::super) const DATA_FILE: u64 = 1 << 2;
    /// `compression_type` is not deflate.
    pub(in super::super) const COMPRESSION: u64 = 1 << 3;
    /// 16-byte L2 entries with a subcluster bitmap.
    pub(in super::super) const EXTENDED_L2: u64 = 1 << 4;
    /// All that this reader knows.
    pub(in super::super) const KNOWN: u64 = DIRTY | CORRUPT | DATA_FILE | COMPRESSION | EXTENDED_L2;
}

/// The part that versions 2 and 3 share.
#[derive(BinRead, Debug)]
#[br(big)]
pub(super) struct Raw {
    magic: [u8; 4],
    version: u32,
    backing_file_offset: u64,
    backing_file_size: u32,
    cluster_bits: u32,
    size: u64,
    crypt_method: u32,
    l1_size: u32,
    l1_table_offset: u64,
    refcount_table_offset: u64,
    refcount_table_clusters: u32,
    nb_snapshots: u32,
    snapshots_offset: u64,
}

impl Record for Raw {
    const SIZE: usize = 72;
    const NAME: &'static str = "qcow2 header";
}

/// What version 3 adds, without `compression_type`, which only longer headers have.
#[derive(BinRead, Debug)]
#[br(big)]
pub(super) struct RawV3 {
    incompatible_features: u64,
    compatible_features: u64,
    autoclear_features: u64,
    refcount_order: u32,
    header_length: u32,
}

impl Record for RawV3 {
    const SIZE: usize = 32;
    const NAME: &'static str = "qcow2 version 3 header";
}

/// How compressed clusters are packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Compression {
    /// Raw deflate.
    Deflate,
    /// One Zstandard frame.
    Zstd,
    /// A number that no published specification names.
    Unknown(u8),
}

/// The persistent bitmaps of an image.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bitmaps {
    pub count: u32,
    /// Where their directory lies.
    pub directory: u64,
    /// Its bytes.
    pub len: u64,
}

/// A header that was checked.
#[derive(Clone, Debug)]
#[expect(clippy::struct_field_names, reason = "the specification's names")]
pub(super) struct Header {
    pub version: u32,
    pub cluster_bits: u32,
    /// Virtual size in bytes.
    pub size: u64,
    pub crypt_method: u32,
    pub l1_size: u32,
    pub l1_table_offset: u64,
    pub refcount_table_offset: u64,
    pub refcount_table_clusters: u32,
    pub nb_snapshots: u32,
    pub snapshots_offset: u64,
    pub incompatible: u64,
    pub compatible: u64,
    pub autoclear: u64,
    pub refcount_order: u32,
    pub header_length: u32,
    pub compression: Compression,
    /// Where the backing file's name lies, if there is a backing file.
    pub backing_at: Option<u64>,
    /// The name, if it could be read.
    pub backing_name: Option<Vec<u8>>,
    pub backing_format: Option<Vec<u8>>,
    pub data_file_name: Option<Vec<u8>>,
    pub bitmaps: Option<Bitmaps>,
    /// Where the LUKS header lies, and its bytes.
    pub crypto_header: Option<(u64, u64)>,
    /// Of an image without header and L1: the entry that the first table of the file had.
    pub first_table: u64,
    pub findings: Vec<Finding>,
}

/// What a header is made of where there is none.
pub(super) struct Made {
    pub cluster_bits: u32,
    pub extended: bool,
    pub compression: Compression,
    pub size: u64,
    pub l1: u64,
    pub l1_size: u32,
    pub refcounts: Option<Refcounts>,
    pub first_table: u64,
    /// Where a LUKS header lies that is the image's own.
    pub luks: Option<u64>,
    /// Where the snapshot table lies, and its entries.
    pub snapshots: (u64, u32),
    pub findings: Vec<Finding>,
}

impl Header {
    /// A header for an image that lost its own. Version 3 reads all that version 2 has.
    pub(super) fn made(made: Made) -> Self {
        let zstd = made.compression != Compression::Deflate;
        let features = if made.extended { incompatible::EXTENDED_L2 } else { 0 };
        let mut header = Self {
            version: 3,
            cluster_bits: made.cluster_bits,
            size: made.size,
            crypt_method: if made.luks.is_some() { 2 } else { 0 },
            l1_size: made.l1_size,
            l1_table_offset: made.l1,
            refcount_table_offset: made.refcounts.map_or(0, |refcounts| refcounts.at),
            refcount_table_clusters: u32::from(made.refcounts.is_some()),
            nb_snapshots: made.snapshots.1,
            snapshots_offset: made.snapshots.0,
            incompatible: features | if zstd { incompatible::COMPRESSION } else { 0 },
            compatible: 0,
            autoclear: 0,
            refcount_order: made.refcounts.map_or(4, |refcounts| refcounts.order),
            header_length: 104,
            compression: made.compression,
            backing_at: None,
            backing_name: None,
            backing_format: None,
            data_file_name: None,
            bitmaps: None,
            crypto_header: made.luks.map(|at| (at, 4096)),
            first_table: made.first_table,
            findings: made.findings,
        };
        if made.luks.is_some() {
            header.note("QCOW2-SEALED", 32, 4, Trust::Inferred, "a LUKS header that no table names: it is encrypted");
        }
        header
    }

    pub(super) fn has(&self, feature: u64) -> bool {
        self.incompatible & feature != 0
    }

    pub(super) fn cluster_size(&self) -> u64 {
        1_u64.checked_shl(self.cluster_bits).unwrap_or(u64::MAX)
    }

    /// How its entries are to be read.
    pub(super) fn dialect(&self) -> Dialect {
        Dialect {
            cluster_bits: self.cluster_bits,
            zero_bit: self.version >= 3,
            extended: self.has(incompatible::EXTENDED_L2),
            data_file: self.has(incompatible::DATA_FILE),
        }
    }

    /// log2 of the guest bytes that one L1 entry maps. At most 39.
    pub(super) fn l1_span_bits(&self) -> u32 {
        self.dialect().span_bits()
    }

    pub(super) fn load(layer: &dyn Layer) -> Result<Self, Error> {
        let raw = Raw::load(layer, 0)?;
        if raw.magic != *MAGIC {
            return Err(Error::corrupt("qcow2 header: magic", 0, format!("{:02x?}", raw.magic)));
        }
        if !(2..=3).contains(&raw.version) {
            return Err(Error::unsupported(format!("qcow2 version {}", raw.version)));
        }
        if !(9..=21).contains(&raw.cluster_bits) {
            let found = format!("{} (9..=21)", raw.cluster_bits);
            return Err(Error::corrupt("qcow2 header: cluster_bits", 0x14, found));
        }
        let v3 = if raw.version >= 3 {
            RawV3::load(layer, 72)?
        } else {
            RawV3 {
                incompatible_features: 0,
                compatible_features: 0,
                autoclear_features: 0,
                refcount_order: 4,
                header_length: 72,
            }
        };
        let mut header = Self {
            version: raw.version,
            cluster_bits: raw.cluster_bits,
            size: raw.size,
            crypt_method: raw.crypt_method,
            l1_size: raw.l1_size,
            l1_table_offset: raw.l1_table_offset,
            refcount_table_offset: raw.refcount_table_offset,
            refcount_table_clusters: raw.refcount_table_clusters,
            nb_snapshots: raw.nb_snapshots,
            snapshots_offset: raw.snapshots_offset,
            incompatible: v3.incompatible_features,
            compatible: v3.compatible_features,
            autoclear: v3.autoclear_features,
            refcount_order: v3.refcount_order,
            header_length: v3.header_length,
            compression: Compression::Deflate,
            backing_at: None,
            backing_name: None,
            backing_format: None,
            data_file_name: None,
            bitmaps: None,
            crypto_header: None,
            first_table: 0,
            findings: Vec::new(),
        };
        header.check_v3(layer)?;
        let backing = (raw.backing_file_offset, raw.backing_file_size);
        let names = header.load_extensions(layer, backing.0);
        header.check_features(&names, layer)?;
        header.load_backing(layer, backing.0, backing.1);
        header.check_tables(layer)?;
        Ok(header)
    }

    fn note(&mut self, code: &'static str, at: u64, len: u64, trust: Trust, text: impl Into<String>) {
        self.findings.push(Finding::new(code, at..at.saturating_add(len), trust, text));
    }

    fn check_v3(&mut self, layer: &dyn Layer) -> Result<(), Error> {
        if self.version < 3 {
            return Ok(());
        }
        let length = u64::from(self.header_length);
        if length < 104 || length > self.cluster_size() {
            let found = format!("{length} (104..={})", self.cluster_size());
            return Err(Error::corrupt("qcow2 header: header_length", 100, found));
        }
        if !length.is_multiple_of(8) {
            self.note("QCOW2-HEADER-LENGTH", 100, 4, Trust::Sound, format!("header_length {length}, no multiple of 8"));
        }
        if self.refcount_order > 6 {
            let text = format!("refcount_order {} (0..=6); refcounts are not needed for reading", self.refcount_order);
            self.note("QCOW2-REFCOUNT-ORDER", 96, 4, Trust::Sound, text);
        }
        let mut kind = [0];
        if length > 104 && read_exact(layer, 104, &mut kind).is_ok() {
            self.compression = match kind {
                [0] => Compression::Deflate,
                [1] => Compression::Zstd,
                [other] => Compression::Unknown(other),
            };
        }
        // Observed: QEMU refuses both contradictions. The type is a number of its own, the bit only guards it.
        if self.has(incompatible::COMPRESSION) != (self.compression != Compression::Deflate) {
            let text = format!("compression type {:?} contradicts the incompatible feature bit 3", self.compression);
            self.note("QCOW2-COMPRESSION-TYPE", 104, 1, Trust::Doubtful, text);
        }
        Ok(())
    }

    fn check_features(&mut self, names: &[FeatureName], layer: &dyn Layer) -> Result<(), Error> {
        let unknown = self.incompatible & !incompatible::KNOWN;
        if unknown != 0 {
            let listed: Vec<String> = (0..64_u8)
                .filter(|bit| unknown.checked_shr((*bit).into()).unwrap_or(0) & 1 != 0)
                .map(|bit| {
                    let name = names.iter().find(|name| name.kind == 0 && name.bit == bit);
                    name.map_or_else(|| format!("bit {bit}"), |name| format!("bit {bit} ({})", name.text))
                })
                .collect();
            return Err(Error::unsupported(format!("qcow2 incompatible feature {}", listed.join(", "))));
        }
        if self.has(incompatible::EXTENDED_L2) && self.cluster_bits < 14 {
            let found = format!("{} with extended L2 entries (14..=21)", self.cluster_bits);
            return Err(Error::corrupt("qcow2 header: cluster_bits", 0x14, found));
        }
        if self.has(incompatible::DIRTY) {
            let text =
                "the dirty bit is set: the image was not closed; refcounts may be stale, which reading needs not";
            self.note("QCOW2-DIRTY", 72, 8, Trust::Sound, text);
        }
        if self.has(incompatible::CORRUPT) {
            let text = "the corrupt bit is set: QEMU met contradicting structures in this image";
            self.note("QCOW2-CORRUPT", 72, 8, Trust::Doubtful, text);
        }
        if self.crypt_method != 0 {
            let how = match self.seal(layer) {
                Some(seal) => format!("; {seal}"),
                None => String::new(),
            };
            let name = crypt_name(self.crypt_method);
            let text = format!("crypt_method {name}: every allocated cluster is encrypted{how}");
            self.note("QCOW2-SEALED", 32, 4, Trust::Sound, text);
        }
        Ok(())
    }

    /// How the clusters are encrypted, as far as it is written anywhere.
    pub(super) fn seal(&self, layer: &dyn Layer) -> Option<Seal> {
        match self.crypt_method {
            0 => None,
            1 => Some(Seal { cipher: "aes-cbc-plain64, 128 bits".into(), slots: 0, of: 0 }),
            _ => Seal::load(layer, self.crypto_header?.0),
        }
    }

    /// Reads the extensions up to the end mark, the backing file's name or the end of the first cluster.
    fn load_extensions(&mut self, layer: &dyn Layer, backing_file_offset: u64) -> Vec<FeatureName> {
        let start = u64::from(self.header_length);
        let end = match backing_file_offset {
            0 => self.cluster_size(),
            at => self.cluster_size().min(at),
        };
        let mut names = Vec::new();
        let mut at = round_up(start, 8);
        while at.saturating_add(8) <= end {
            let mut head = [0; 8];
            if read_exact(layer, at, &mut head).is_err() {
                self.note("QCOW2-EXTENSION", at, 8, Trust::Sound, "the header extensions can't be read from here on");
                break;
            }
            let (kind, len) = (BigEndian::read_u32(&head), BigEndian::read_u32(&head[4..]));
            let data = at.saturating_add(8);
            if kind == 0 {
                break;
            }
            if u64::from(len) > end.saturating_sub(data.min(end)) {
                let text = format!("header extension {kind:#010x} of {len} bytes leaves the first cluster");
                self.note("QCOW2-EXTENSION", at, 8, Trust::Sound, text);
                break;
            }
            self.load_extension(layer, kind, data, len, &mut names);
            at = data.saturating_add(round_up(len.into(), 8));
        }
        names
    }

    fn load_extension(&mut self, layer: &dyn Layer, kind: u32, at: u64, len: u32, names: &mut Vec<FeatureName>) {
        /// No name that QEMU takes is longer.
        const LONGEST: u32 = 1023;
        match kind {
            0xe279_2aca => self.backing_format = text(layer, at, len.min(LONGEST)),
            0x4441_5441 => self.data_file_name = text(layer, at, len.min(LONGEST)),
            0x6803_f857 => {
                let table = text(layer, at, len.min(48 * 256)).unwrap_or_default();
                names.extend(table.chunks_exact(48).filter_map(FeatureName::parse));
            }
            0x2385_2875 => {
                if let Some(field) = text(layer, at, 24).filter(|_| len >= 24) {
                    self.bitmaps = Some(Bitmaps {
                        count: BigEndian::read_u32(&field),
                        len: field.get(8..16).map_or(0, BigEndian::read_u64),
                        directory: field.get(16..24).map_or(0, BigEndian::read_u64),
                    });
                }
            }
            0x0537_be77 => {
                if let Some(field) = text(layer, at, 16).filter(|_| len >= 16) {
                    let len = field.get(8..16).map_or(0, BigEndian::read_u64);
                    self.crypto_header = Some((BigEndian::read_u64(&field), len));
                }
            }
            _ => {}
        }
    }

    fn load_backing(&mut self, layer: &dyn Layer, at: u64, len: u32) {
        if at == 0 || len == 0 {
            return;
        }
        self.backing_at = Some(at);
        let end = at.saturating_add(len.into());
        if len > 1023 || end > self.cluster_size() {
            let text = format!("the backing file's name, {len} bytes at {at:#x}, leaves the first cluster");
            self.note("QCOW2-BACKING-NAME", 8, 12, Trust::Sound, text);
            return;
        }
        self.backing_name = text(layer, at, len);
        if self.backing_name.is_none() {
            self.note("QCOW2-BACKING-NAME", at, len.into(), Trust::Sound, "the backing file's name can't be read");
        }
    }

    fn check_tables(&mut self, layer: &dyn Layer) -> Result<(), Error> {
        let at = self.l1_table_offset;
        if !at.is_multiple_of(self.cluster_size()) {
            let found = format!("{at:#x}, no multiple of the cluster size {:#x}", self.cluster_size());
            return Err(Error::corrupt("qcow2 header: l1_table_offset", 0x28, found));
        }
        let span = 1_u64.checked_shl(self.l1_span_bits()).unwrap_or(u64::MAX);
        let needed = self.size.div_ceil(span);
        if u64::from(self.l1_size) < needed {
            let text = format!("l1_size {}, {needed} are needed for {} bytes", self.l1_size, self.size);
            self.note("QCOW2-L1-SHORT", 36, 4, Trust::Sound, text);
        }
        // Observed: QEMU refuses tables above 32 MiB. Entries are read as they are needed, so that none costs memory.
        if self.l1_size > (32 << 20) / 8 {
            let text = format!("l1_size {}, above QEMU's limit of 4194304", self.l1_size);
            self.note("QCOW2-L1-SIZE", 36, 4, Trust::Sound, text);
        }
        let l1_len = needed.min(self.l1_size.into()).saturating_mul(8);
        if l1_len > 0 && (at == 0 || at.saturating_add(l1_len) > layer.len()) {
            let text = format!("the L1 table, {l1_len} bytes at {at:#x}, is not inside the file of {}", layer.len());
            self.note("QCOW2-L1-RANGE", at, l1_len, Trust::Sound, text);
        }
        Ok(())
    }
}

/// The method's name.
pub(super) fn crypt_name(method: u32) -> String {
    match method {
        0 => "none".into(),
        1 => "1 (AES-CBC)".into(),
        2 => "2 (LUKS)".into(),
        other => other.to_string(),
    }
}

/// What a feature bit is called in the image's own table.
struct FeatureName {
    kind: u8,
    bit: u8,
    text: String,
}

impl FeatureName {
    fn parse(entry: &[u8]) -> Option<Self> {
        let (&kind, rest) = entry.split_first()?;
        let (&bit, name) = rest.split_first()?;
        let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
        Some(Self { kind, bit, text: name.escape_ascii().to_string() })
    }
}

/// `len` bytes at `at` if all of them can be had. The caller has bounded `len`.
fn text(layer: &dyn Layer, at: u64, len: u32) -> Option<Vec<u8>> {
    let mut bytes = vec![0; narrow(len.into())];
    let inside = at.saturating_add(wide(bytes.len())) <= layer.len();
    (inside && read(layer, at, &mut bytes).is_whole()).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapt::Memory;

    #[test]
    fn records_have_the_size_of_the_specification() {
        assert_eq!(Raw::SIZE, 72);
        assert_eq!(RawV3::SIZE, 32);
        assert!(Raw::parse(&[0; 72], 0).is_ok() && Raw::parse(&[0; 71], 0).is_err());
        assert!(RawV3::parse(&[0; 32], 0).is_ok() && RawV3::parse(&[0; 31], 0).is_err());
    }

    fn header(patch: &[(usize, &[u8])]) -> Result<Header, Error> {
        let mut bytes = vec![0; 4096];
        for (at, value) in [
            (0, MAGIC),
            (4, &[0, 0, 0, 3]),
            (20, &[0, 0, 0, 12]),
            (31, &[0]),
            (36, &[0, 0, 0, 1]),
            (46, &[0x10, 0]),
            (96, &[0, 0, 0, 4]),
            (100, &[0, 0, 0, 112]),
        ]
        .iter()
        .chain(patch)
        {
            bytes[*at..*at + value.len()].copy_from_slice(value);
        }
        Header::load(&Memory::new(bytes))
    }

    #[test]
    fn one_wrong_field_is_one_error() {
        assert!(header(&[]).is_ok_and(|header| header.findings.is_empty()));
        let cases: [(usize, &[u8], &str); 8] = [
            (0, b"X", "qcow2 header: magic at 0x0 is corrupt: [58, 46, 49, fb]"),
            (4, &[0, 0, 0, 1], "qcow2 version 1 is not supported"),
            (20, &[0, 0, 0, 63], "qcow2 header: cluster_bits at 0x14 is corrupt: 63 (9..=21)"),
            (20, &[0, 0, 0, 8], "qcow2 header: cluster_bits at 0x14 is corrupt: 8 (9..=21)"),
            (100, &[0, 0, 0, 103], "qcow2 header: header_length at 0x64 is corrupt: 103 (104..=4096)"),
            (72, &[0x80], "qcow2 incompatible feature bit 63 is not supported"),
            (79, &[16], "qcow2 header: cluster_bits at 0x14 is corrupt: 12 with extended L2 entries (14..=21)"),
            (
                46,
                &[0x10, 8],
                "qcow2 header: l1_table_offset at 0x28 is corrupt: 0x1008, no multiple of the cluster size 0x1000",
            ),
        ];
        for (at, value, error) in cases {
            assert_eq!(header(&[(at, value)]).map(|_| ()).map_err(|e| e.to_string()), Err(error.to_owned()));
        }
    }

    #[test]
    fn an_unknown_feature_is_named_by_the_image() {
        let mut table = vec![0x68, 0x03, 0xf8, 0x57, 0, 0, 0, 48, 0, 9];
        table.extend(b"time travel");
        let error = header(&[(78, &[2]), (112, &table)]).map(|_| ()).map_err(|error| error.to_string());
        assert_eq!(error, Err("qcow2 incompatible feature bit 9 (time travel) is not supported".to_owned()));
    }
}
