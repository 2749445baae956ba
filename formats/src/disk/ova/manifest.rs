//! The manifest of an OVA: DSP0243, section "Manifest": a line `SHA256(name)= digits` a member.

use crate::layer::{Gap, Layer};
use crate::num::{narrow, wide};
use crate::read::{read_exact, read_vec};
use sha1::Sha1;
use sha2::{Sha256, Sha512};

/// A manifest has a line a member.
const MAX_LEN: u64 = 4 << 20;
/// Bytes of a member that are read at once.
const PIECE: u64 = 1 << 20;

/// A digest of a member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Digest {
    kind: Kind,
    digits: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Sha1,
    Sha256,
    Sha512,
}

/// A name and its digest.
pub(super) type Line = (Vec<u8>, Digest);

/// Reads the manifest of `len` bytes at `at`, or says why it can't be used.
pub(super) fn read(layer: &dyn Layer, at: u64, len: u64) -> Result<Vec<Line>, String> {
    if len > MAX_LEN {
        return Err(format!("the manifest has {len} bytes"));
    }
    let (bytes, seen) = read_vec(layer, at, narrow(len));
    if let Some(gap) = seen.gaps.first() {
        return Err(format!("the manifest: {gap}"));
    }
    let lines = bytes.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii).filter(|line| !line.is_empty());
    lines.map(|line| parse(line).ok_or_else(|| format!("a line of the manifest: {}", line.escape_ascii()))).collect()
}

fn parse(line: &[u8]) -> Option<Line> {
    let open = line.iter().position(|byte| *byte == b'(')?;
    let close = line.iter().rposition(|byte| *byte == b')')?;
    let kind = match line.get(..open)?.trim_ascii().to_ascii_uppercase().as_slice() {
        b"SHA1" => Kind::Sha1,
        b"SHA256" => Kind::Sha256,
        b"SHA512" => Kind::Sha512,
        _ => return None,
    };
    let name = line.get(open.checked_add(1)?..close)?.to_vec();
    let digits = line.get(close..)?.strip_prefix(b")")?.trim_ascii().strip_prefix(b"=")?.trim_ascii();
    let digits = digits.to_ascii_lowercase();
    let is_digest = digits.len() == kind.digits() && digits.iter().all(u8::is_ascii_hexdigit);
    is_digest.then_some((name, Digest { kind, digits }))
}

impl Kind {
    fn digits(self) -> usize {
        match self {
            Self::Sha1 => 40,
            Self::Sha256 => 64,
            Self::Sha512 => 128,
        }
    }
}

impl Digest {
    /// Its algorithm.
    pub(super) fn name(&self) -> &'static str {
        match self.kind {
            Kind::Sha1 => "SHA-1",
            Kind::Sha256 => "SHA-256",
            Kind::Sha512 => "SHA-512",
        }
    }

    /// Whether a layer has it; the first bytes that can't be read otherwise.
    pub(super) fn of(&self, layer: &dyn Layer) -> Result<bool, Gap> {
        let digest = match self.kind {
            Kind::Sha1 => all::<Sha1>(layer)?,
            Kind::Sha256 => all::<Sha256>(layer)?,
            Kind::Sha512 => all::<Sha512>(layer)?,
        };
        let digits = digest.iter().flat_map(|byte| [byte >> 4, byte & 15]);
        Ok(digits
            .map(|digit| char::from_digit(digit.into(), 16))
            .eq(self.digits.iter().map(|digit| Some((*digit).into()))))
    }
}

fn all<D: sha2::digest::Digest>(layer: &dyn Layer) -> Result<Vec<u8>, Gap> {
    let mut hash = D::new();
    let mut buf = vec![0; narrow(PIECE.min(layer.len()))];
    let mut at = 0;
    while at < layer.len() {
        let len = narrow(layer.len().saturating_sub(at)).min(buf.len());
        let piece = buf.get_mut(..len).unwrap_or_default();
        read_exact(layer, at, piece)?;
        hash.update(&*piece);
        at = at.saturating_add(wide(len));
    }
    Ok(hash.finalize().to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_all_writers() {
        let digits = "da39a3ee5e6b4b0d3255bfef95601890afd80709";
        for line in [format!("SHA1(a b.vmdk)= {digits}"), format!("SHA1 (a b.vmdk) = {}", digits.to_ascii_uppercase())]
        {
            let (name, digest) = parse(line.as_bytes()).unwrap_or_else(|| unreachable!("{line}"));
            assert_eq!((name.as_slice(), digest.name()), (&b"a b.vmdk"[..], "SHA-1"));
            assert_eq!(digest.of(&crate::adapt::Memory::new(Vec::new())), Ok(true));
            assert_eq!(digest.of(&crate::adapt::Memory::new(vec![0])), Ok(false));
        }
        for line in ["", "MD5(x)= 00", "SHA1(x)= 00", "SHA1 x = 00", "SHA256)x(= 00"] {
            assert_eq!(parse(line.as_bytes()), None, "{line}");
        }
    }
}
