//! The text descriptor: VMware's "Virtual Disk Format 5.0", section "The Descriptor File", read as tolerantly as
//! the files that real products write need.

use crate::error::Error;
use crate::layer::Trust;
use crate::note::Finding;
use crate::num::{narrow, wide};
use encoding_rs::Encoding;
use std::ops::Range;

/// Larger texts are not read: real ones of split disks of 2 TB have 64 KiB.
pub(super) const MAX_LEN: u64 = 4 << 20;
/// The largest disk there is, 62 TB, has half as many parts of 2 GB.
const MAX_EXTENTS: usize = 65_536;
/// Keys of a descriptor. Real ones have less than a hundred; each new one is compared with all before it.
const MAX_PAIRS: usize = 4096;
/// Lines that are told of one by one.
const MAX_FINDINGS: usize = 64;

const SIGNATURE: &[u8] = b"disk descriptorfile";
const BOM: &[u8] = b"\xef\xbb\xbf";

/// A parsed descriptor.
#[derive(Clone, Debug, Default)]
pub(super) struct Descriptor {
    /// Header and disk database in the order of the file; keys in lower case, values without quotes.
    pairs: Vec<(String, Vec<u8>)>,
    pub extents: Vec<Extent>,
    pub findings: Vec<Finding>,
}

/// How a disk is encrypted. Observed: an encrypted disk of `ESXi` has `keyID`, `encryptionKeys` with a list of wrapped
/// keys, and `vmwarevmcrypt` among its I/O filters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Seal {
    pub by: &'static str,
    pub cipher: &'static str,
    /// Wrapped copies of the key.
    pub slots: u64,
    /// What the key provider calls the key.
    pub key: Option<Vec<u8>>,
}

/// One extent line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Extent {
    /// The line, in the text.
    pub line: Range<u64>,
    pub access: Access,
    pub sectors: u64,
    pub kind: Kind,
    /// As written.
    pub name: Option<Vec<u8>>,
    /// Where the extent starts in its file, in sectors.
    pub offset: u64,
}

/// What the line allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    ReadWrite,
    ReadOnly,
    /// Not even reading.
    None,
}

/// How the extent is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// `FLAT` and `VMFS`: byte for byte.
    Flat,
    /// No file.
    Zero,
    /// `SPARSE`, hosted as a rule: the magic in the file tells.
    Sparse,
    /// `VMFSSPARSE`, COWD as a rule.
    Cowd,
    SeSparse,
    /// `VMFSRDM` and `VMFSRAW`: on a device.
    Device,
    /// A word that no known product writes.
    Unknown(String),
}

/// Whether a text starts like a descriptor, whatever precedes the signature.
pub(super) fn is_signed(text: &[u8]) -> bool {
    let text = text.strip_prefix(BOM).unwrap_or(text).trim_ascii_start();
    let Some(text) = text.strip_prefix(b"#") else { return false };
    let text = text.trim_ascii_start();
    text.get(..SIGNATURE.len()).is_some_and(|head| head.eq_ignore_ascii_case(SIGNATURE))
}

impl Descriptor {
    /// Parses a text. An extent line that can't be understood is an error: all that follows would be shifted.
    pub(super) fn parse(text: &[u8]) -> Result<Self, Error> {
        let mut descriptor = Self::default();
        let mut at = 0;
        // In a hosted sparse file the text is padded with NUL.
        let text = text.split(|byte| *byte == 0).next().unwrap_or_default();
        for raw in text.split(|byte| *byte == b'\n') {
            let end = wide(raw.len()).saturating_add(at);
            let line = if at == 0 { raw.strip_prefix(BOM).unwrap_or(raw) } else { raw };
            descriptor.line(line.trim_ascii(), at..end)?;
            at = end.saturating_add(1);
        }
        Ok(descriptor)
    }

    fn line(&mut self, line: &[u8], range: Range<u64>) -> Result<(), Error> {
        if line.is_empty() || line.starts_with(b"#") {
            return Ok(());
        }
        let fields = fields(line);
        let second_is_number = fields.get(1).is_some_and(|field| number(field).is_some());
        let access = fields.first().and_then(|field| Access::parse(field));
        if access.is_some() && fields.len() > 1 && fields.get(1).is_some_and(|field| !field.starts_with(b"=")) {
            if self.extents.len() >= MAX_EXTENTS {
                let found = format!("more than {MAX_EXTENTS} extents, no disk has as many");
                return Err(Error::corrupt("VMDK descriptor", range.start, found));
            }
            self.extents.push(Extent::parse(access, &fields, range)?);
        } else if let Some((key, value)) = pair(line) {
            self.pair(key, value, range);
        } else if fields.len() >= 3 && second_is_number {
            let found = format!("access {:?}", fields.first().map(|field| field.escape_ascii().to_string()));
            return Err(Error::corrupt("VMDK descriptor: extent line", range.start, found));
        } else if self.findings.len() < MAX_FINDINGS {
            let text = format!("a line that is no comment, key or extent: {}", line.escape_ascii());
            self.findings.push(Finding::new("VMDK-DESCRIPTOR-LINE", range, Trust::Sound, text));
        }
        Ok(())
    }

    fn pair(&mut self, key: &[u8], value: &[u8], range: Range<u64>) {
        let key = String::from_utf8_lossy(key).to_ascii_lowercase();
        let value = unquote(value);
        if let Some(first) = self.get(&key) {
            if first != value && self.findings.len() < MAX_FINDINGS {
                let text = format!("a second value of {key}: {}; the first one counts", value.escape_ascii());
                self.findings.push(Finding::new("VMDK-DESCRIPTOR-TWICE", range, Trust::Inferred, text));
            }
            return;
        }
        if self.pairs.len() >= MAX_PAIRS {
            if self.findings.len() < MAX_FINDINGS {
                let text = format!("more than {MAX_PAIRS} keys: {} is left out", key.escape_default());
                self.findings.push(Finding::new("VMDK-DESCRIPTOR-KEYS", range, Trust::Inferred, text));
            }
            return;
        }
        self.pairs.push((key, value.to_vec()));
    }

    /// The value of a key, given in lower case.
    pub(super) fn get(&self, key: &str) -> Option<&[u8]> {
        self.pairs.iter().find(|(known, _)| known == key).map(|(_, value)| value.as_slice())
    }

    /// The value of a key as eight hexadecimal digits in lower case, if it is such a number.
    pub(super) fn content_id(&self, key: &str) -> Option<Vec<u8>> {
        let text = std::str::from_utf8(self.get(key)?).ok()?;
        let id = u32::from_str_radix(text.trim_start_matches("0x"), 16).ok()?;
        Some(format!("{id:08x}").into_bytes())
    }

    /// A name in it as UTF-8, which is what file systems have; unchanged where its encoding is not known.
    pub(super) fn name(&self, raw: &[u8]) -> Vec<u8> {
        let encoding = self.get("encoding").and_then(Encoding::for_label);
        match encoding {
            Some(encoding) if std::str::from_utf8(raw).is_err() => match encoding.decode_without_bom_handling(raw) {
                (text, false) => text.into_owned().into_bytes(),
                _ => raw.to_vec(),
            },
            _ => raw.to_vec(),
        }
    }

    /// How the disk is encrypted, if it is.
    pub(super) fn seal(&self) -> Option<Seal> {
        let filters = self.get("ddb.iofilters").unwrap_or_default();
        let by_host = filters.split(|byte| *byte == b',').any(|filter| filter.trim_ascii() == b"vmwarevmcrypt");
        let keys = ["encryptionkeys", "encryption.keysafe", "ddb.encryption.keysafe"];
        // Whatever a version calls the list of its wrapped keys, it begins alike.
        let list = || self.pairs.iter().map(|(_, value)| value).find(|value| value.starts_with(b"vmware:key/"));
        let keys = keys.into_iter().find_map(|key| self.get(key)).or_else(|| list().map(Vec::as_slice)).map(unescape);
        // VMware documents that the descriptor of an encrypted disk has the key's id.
        if !by_host && keys.is_none() && self.get("keyid").is_none() {
            return None;
        }
        let keys = keys.unwrap_or_default();
        let count = |part: &str| keys.matches(part).count();
        let named = ["XTS-AES-256", "XTS-AES-128", "AES-256", "AES-192", "AES-128"];
        let cipher = named.into_iter().find(|name| keys.contains(name));
        Some(Seal {
            by: if by_host { "vSphere VM encryption (vmwarevmcrypt)" } else { "VMware VM encryption" },
            // What VMware documents for vSphere; the descriptor does not repeat it.
            cipher: cipher.unwrap_or(if by_host { "XTS-AES-256" } else { "unknown" }),
            slots: wide(count("pair/(")),
            key: self.get("keyid").map(<[u8]>::to_vec),
        })
    }

    /// Sectors of the virtual disk: of all extents, whatever can be read of them.
    pub(super) fn sectors(&self) -> Option<u64> {
        self.extents.iter().try_fold(0_u64, |sum, extent| sum.checked_add(extent.sectors))
    }
}

impl Access {
    fn parse(word: &[u8]) -> Option<Self> {
        let known: [(&[u8], Self); 3] =
            [(b"RW", Self::ReadWrite), (b"RDONLY", Self::ReadOnly), (b"NOACCESS", Self::None)];
        known.into_iter().find(|(name, _)| name.eq_ignore_ascii_case(word)).map(|(_, access)| access)
    }

    pub(super) fn word(self) -> &'static str {
        match self {
            Self::ReadWrite => "RW",
            Self::ReadOnly => "RDONLY",
            Self::None => "NOACCESS",
        }
    }
}

impl Kind {
    fn parse(word: &[u8]) -> Self {
        let word = String::from_utf8_lossy(word).to_ascii_uppercase();
        match word.as_str() {
            "FLAT" | "VMFS" => Self::Flat,
            "ZERO" => Self::Zero,
            "SPARSE" => Self::Sparse,
            "VMFSSPARSE" => Self::Cowd,
            "SESPARSE" => Self::SeSparse,
            "VMFSRDM" | "VMFSRAW" => Self::Device,
            _ => Self::Unknown(word),
        }
    }

    pub(super) fn word(&self) -> &str {
        match self {
            Self::Flat => "FLAT",
            Self::Zero => "ZERO",
            Self::Sparse => "SPARSE",
            Self::Cowd => "VMFSSPARSE",
            Self::SeSparse => "SESPARSE",
            Self::Device => "VMFSRDM",
            Self::Unknown(word) => word,
        }
    }
}

impl Extent {
    fn parse(access: Option<Access>, fields: &[&[u8]], line: Range<u64>) -> Result<Self, Error> {
        let corrupt = |what: &str| {
            let words: Vec<String> = fields.iter().map(|field| field.escape_ascii().to_string()).collect();
            Error::corrupt("VMDK descriptor: extent line", line.start, format!("{what} in: {}", words.join(" ")))
        };
        let sectors = fields.get(1).and_then(|field| number(field)).ok_or_else(|| corrupt("no number of sectors"))?;
        let kind = fields.get(2).ok_or_else(|| corrupt("no type"))?;
        let offset = match fields.get(4) {
            Some(field) => number(field).ok_or_else(|| corrupt("no number as offset"))?,
            None => 0,
        };
        let name = fields.get(3).map(|field| unquote(field)).filter(|name| !name.is_empty());
        let bytes = |sectors: u64| sectors.checked_mul(512);
        if bytes(sectors).and_then(|len| len.checked_add(bytes(offset)?)).is_none() {
            return Err(corrupt("more bytes than 64 bits count"));
        }
        Ok(Self {
            access: access.unwrap_or(Access::ReadWrite),
            sectors,
            kind: Kind::parse(kind),
            name: name.map(<[u8]>::to_vec),
            offset,
            line,
        })
    }

    /// Bytes of the disk.
    pub(super) fn len(&self) -> u64 {
        self.sectors.saturating_mul(512)
    }

    /// Whether its name is that of a whole device or partition of the machine that made it.
    pub(super) fn is_device(&self) -> bool {
        let name = self.name.as_deref().unwrap_or_default();
        self.kind == Kind::Device || name.starts_with(b"/dev/") || name.starts_with(b"\\\\.\\")
    }

    /// Whether its name is that of a file, not of an object in a vSAN or vVol store.
    pub(super) fn has_file(&self) -> bool {
        self.name.as_ref().is_some_and(|name| !name.windows(3).any(|part| part == b"://"))
    }
}

/// A list of keys escapes what separates its parts as `%2d`.
fn unescape(value: &[u8]) -> String {
    let mut out = Vec::new();
    let mut rest = value;
    while let Some((first, after)) = rest.split_first() {
        let code = after.get(..2).and_then(|two| std::str::from_utf8(two).ok());
        let code = code.and_then(|two| u8::from_str_radix(two, 16).ok());
        let escaped = code.filter(|_| *first == b'%');
        out.push(escaped.unwrap_or(*first));
        rest = if escaped.is_some() { after.get(2..).unwrap_or_default() } else { after };
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// The words of an extent line. Quotes hold a name with blanks together and stay.
fn fields(line: &[u8]) -> Vec<&[u8]> {
    let mut fields = Vec::new();
    let mut rest = line.trim_ascii_start();
    while let Some(first) = rest.first() {
        let end = if *first == b'"' {
            let close = rest.iter().skip(1).position(|byte| *byte == b'"');
            close.map_or(rest.len(), |close| close.saturating_add(2))
        } else {
            rest.iter().position(u8::is_ascii_whitespace).unwrap_or(rest.len())
        };
        let (field, after) = rest.split_at(end.min(rest.len()));
        fields.push(field);
        rest = after.trim_ascii_start();
    }
    fields
}

fn pair(line: &[u8]) -> Option<(&[u8], &[u8])> {
    let equals = line.iter().position(|byte| *byte == b'=')?;
    let (key, value) = line.split_at(equals);
    let key = key.trim_ascii();
    (!key.is_empty()).then(|| (key, value.get(1..).unwrap_or_default().trim_ascii()))
}

fn unquote(value: &[u8]) -> &[u8] {
    let value = value.strip_prefix(b"\"").unwrap_or(value);
    value.strip_suffix(b"\"").unwrap_or(value)
}

fn number(field: &[u8]) -> Option<u64> {
    std::str::from_utf8(field).ok()?.parse().ok()
}

/// The part of a text that a probe looks at.
pub(super) fn head(len: u64) -> usize {
    narrow(len.min(512))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn signature_is_found_behind_what_writers_put_first() {
        for text in ["# Disk DescriptorFile\n", "\u{feff}# Disk DescriptorFile", "\r\n \n#disk descriptorfile\r\n"] {
            assert!(is_signed(text.as_bytes()), "{text:?}");
        }
        for text in ["", "#", "# Disk Descriptor", "Disk DescriptorFile", "KDMV"] {
            assert!(!is_signed(text.as_bytes()), "{text:?}");
        }
    }

    #[test]
    fn extent_lines_of_three_to_seven_fields() {
        let text = b"\xef\xbb\xbf# Disk DescriptorFile\r\nVersion = 1\r\nCiD=Fffffffe\r\nparentCID=0000abcd\r\n\
            createtype=\"vmfs\"\r\n\r\n# Extent description\r\nRW 63 FLAT \"a b.vmdk\" 7\r\n  rdonly  5   zero\r\n\
            NOACCESS 1 VMFS x.vmdk\r\nRW 2 FLAT \"p.vmdk\" 0 partitionUUID \\\\.\\PhysicalDrive0\r\n\
            RW 9 VMFSRDM \"rdm.vmdk\"\nRW 4 SOMEDAY \"vsan://52-aa/\"\nddb.uuid = \"60 00 =\"\n\0garbage";
        let descriptor = Descriptor::parse(text).unwrap();
        assert_eq!(descriptor.findings, []);
        assert_eq!(descriptor.get("version"), Some(&b"1"[..]));
        assert_eq!(descriptor.content_id("cid"), Some(b"fffffffe".to_vec()));
        assert_eq!(descriptor.content_id("parentcid"), Some(b"0000abcd".to_vec()));
        assert_eq!(descriptor.get("createtype"), Some(&b"vmfs"[..]));
        assert_eq!(descriptor.get("ddb.uuid"), Some(&b"60 00 ="[..]));
        assert_eq!(descriptor.sectors(), Some(63 + 5 + 1 + 2 + 9 + 4));
        let rows: Vec<_> = descriptor
            .extents
            .iter()
            .map(|e| (e.access, e.sectors, e.kind.clone(), e.name.as_deref(), e.offset, e.has_file()))
            .collect();
        assert_eq!(
            rows,
            [
                (Access::ReadWrite, 63, Kind::Flat, Some(&b"a b.vmdk"[..]), 7, true),
                (Access::ReadOnly, 5, Kind::Zero, None, 0, false),
                (Access::None, 1, Kind::Flat, Some(b"x.vmdk"), 0, true),
                (Access::ReadWrite, 2, Kind::Flat, Some(b"p.vmdk"), 0, true),
                (Access::ReadWrite, 9, Kind::Device, Some(b"rdm.vmdk"), 0, true),
                (Access::ReadWrite, 4, Kind::Unknown("SOMEDAY".into()), Some(b"vsan://52-aa/"), 0, false),
            ]
        );
    }

    #[test]
    fn names_are_read_in_the_encoding_that_the_text_says() {
        let name = |encoding: &str, raw: &[u8]| {
            let mut text = format!("encoding=\"{encoding}\"\nRW 1 FLAT \"").into_bytes();
            text.extend(raw);
            text.extend(b"\" 0\n");
            let descriptor = Descriptor::parse(&text).unwrap();
            let extent = descriptor.extents[0].name.clone().unwrap();
            assert_eq!(extent, raw);
            descriptor.name(&extent)
        };
        assert_eq!(name("windows-1252", b"\xfcber.vmdk"), "über.vmdk".as_bytes());
        assert_eq!(name("GBK", b"\xb4\xc5\xc5\xcc-flat.vmdk"), "磁盘-flat.vmdk".as_bytes());
        assert_eq!(name("Shift_JIS", b"\x83\x66.vmdk"), "デ.vmdk".as_bytes());
        assert_eq!(name("UTF-8", "ü".as_bytes()), "ü".as_bytes());
        // Already what file systems have, not what it says, or not known.
        assert_eq!(name("windows-1252", "ü".as_bytes()), "ü".as_bytes());
        assert_eq!(name("GBK", b"\xff\xff"), b"\xff\xff");
        assert_eq!(name("Klingon", b"\xff"), b"\xff");
    }

    #[test]
    fn encryption_is_named() {
        let seal = |text: &str| Descriptor::parse(text.as_bytes()).unwrap().seal();
        assert_eq!(seal("CID=1\nddb.iofilters = \"cache,spm\"\n"), None);
        let host = seal(
            "keyID=\"kms/4711\"\nencryptionKeys=\"vmware:key/list/(pair/(fqid/a,HMAC%2dSHA%2d256,b))\"\n\
            ddb.iofilters = \"spm, vmwarevmcrypt\"\n",
        );
        let key = Some(b"kms/4711".to_vec());
        let by = "vSphere VM encryption (vmwarevmcrypt)";
        assert_eq!(host, Some(Seal { by, cipher: "XTS-AES-256", slots: 1, key }));
        // The id of its key is enough, and so is a list of keys by another name.
        assert!(seal("keyID=kms/4711\n").is_some());
        assert_eq!(seal("x.keys=\"vmware:key/list/(pair/(a,b))\"\n").map(|seal| seal.slots), Some(1));
        assert_eq!(seal("x.keys=\"other:key\"\n"), None);
        let own = seal(
            "encryption.keySafe = \"vmware:key/list/(pair/(phrase/x/pass2key%3dPBKDF2%3acipher%3dAES%2d256,\
            HMAC),pair/(null/y,z))\"\n",
        );
        assert_eq!(own, Some(Seal { by: "VMware VM encryption", cipher: "AES-256", slots: 2, key: None }));
    }

    #[test]
    fn what_no_disk_has_is_refused_in_time() {
        let error = Descriptor::parse("RW 1 ZERO\n".repeat(300_000).as_bytes()).unwrap_err();
        assert!(error.to_string().contains("more than 65536 extents"), "{error}");
        assert_eq!(Descriptor::parse("RW 1 ZERO\n".repeat(65_536).as_bytes()).unwrap().sectors(), Some(65_536));
        assert_eq!(Descriptor::parse("what\n".repeat(300_000).as_bytes()).unwrap().findings.len(), MAX_FINDINGS);
    }

    #[test]
    fn an_extent_line_that_is_not_understood_is_an_error() {
        for line in
            ["RX 5 FLAT \"a\" 0", "RW five FLAT \"a\"", "RW 5", "RW 5 FLAT \"a\" x", "RW 36028797018963968 ZERO"]
        {
            let text = format!("# Disk DescriptorFile\n{line}\n");
            assert!(Descriptor::parse(text.as_bytes()).is_err(), "{line}");
        }
        let odd = Descriptor::parse(b"hello\nCID=1\nCID=2\n").unwrap();
        let codes: Vec<_> = odd.findings.iter().map(|finding| (finding.code, finding.range.clone())).collect();
        assert_eq!(codes, [("VMDK-DESCRIPTOR-LINE", 0..5), ("VMDK-DESCRIPTOR-TWICE", 12..17)]);
    }
}
