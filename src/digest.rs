//! SHA-256 of exported content.

use sha2::digest::common::hazmat::{SerializableState as _, SerializedState};
use sha2::{Digest as _, Sha256};
use std::fmt;

/// Zeros are hashed from this buffer, again and again: making them would cost more than hashing them.
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// What a manifest says of a file's content, or why it says nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Digest {
    /// SHA-256 of the whole content, zeros and gaps included.
    Sha256([u8; 32]),
    /// Not computed, and why not.
    Absent(String),
}

impl Digest {
    /// Lower-case hex digits.
    #[must_use]
    pub fn hex(&self) -> Option<String> {
        match self {
            Self::Sha256(bytes) => Some(hex(bytes)),
            Self::Absent(_) => None,
        }
    }

    /// Why there is none.
    #[must_use]
    pub fn reason(&self) -> Option<&str> {
        match self {
            Self::Sha256(_) => None,
            Self::Absent(why) => Some(why),
        }
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sha256(bytes) => f.write_str(&hex(bytes)),
            Self::Absent(why) => write!(f, "none: {why}"),
        }
    }
}

/// Lower-case hex digits of `bytes`.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    const DIGITS: [char; 16] = ['0', '1', '2', '3', '4', '5', '6', '7', '8', '9', 'a', 'b', 'c', 'd', 'e', 'f'];
    let pairs = bytes.iter().flat_map(|byte| [DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]]);
    pairs.collect()
}

/// SHA-256 of `bytes`.
#[must_use]
pub fn sha256(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}

/// SHA-256 of content that comes in order.
#[derive(Clone, Debug, Default)]
pub struct Hasher(Sha256);

impl Hasher {
    /// The next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The next `len` bytes are zeros. As slow as any other bytes: SHA-256 has no short cut through them.
    pub fn zeros(&mut self, len: u64) {
        let mut left = len;
        while left > 0 {
            let step = usize::try_from(left).unwrap_or(usize::MAX).min(ZEROS.len());
            self.0.update(&ZEROS[..step]);
            left = left.saturating_sub(step as u64);
        }
    }

    /// All that is needed to go on later, in hex digits.
    #[must_use]
    pub fn state(&self) -> String {
        hex(&self.0.serialize())
    }

    /// Goes on where [`Hasher::state`] was asked.
    #[must_use]
    pub fn resume(state: &str) -> Option<Self> {
        let pairs = state.as_bytes().chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok());
        let bytes = pairs.collect::<Option<Vec<u8>>>()?;
        Sha256::deserialize(&SerializedState::<Sha256>::try_from(bytes.as_slice()).ok()?).ok().map(Self)
    }

    /// The digest.
    #[must_use]
    pub fn finish(self) -> [u8; 32] {
        self.0.finalize().into()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn known_answer() {
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(hex(&sha256(b"abc")), abc);
        assert_eq!(Digest::Sha256(sha256(b"abc")).hex().unwrap(), abc);
        assert_eq!(Digest::Absent("off".into()).reason(), Some("off"));
    }

    #[test]
    fn a_hash_goes_on_from_its_state() {
        let mut hasher = Hasher::default();
        hasher.update(&[7; 1000]);
        let mut again = Hasher::resume(&hasher.state()).unwrap();
        again.update(b"more");
        assert_eq!(again.finish(), sha256(&[&[7; 1000][..], b"more"].concat()));
        assert!(Hasher::resume("12zz").is_none() && Hasher::resume("12").is_none());
    }

    #[test]
    fn zeros_are_hashed_as_written() {
        for len in [0, 1, 65_536, 65_537, 200_000] {
            let mut hasher = Hasher::default();
            hasher.update(b"x");
            hasher.zeros(len);
            let mut plain = vec![0; usize::try_from(len).unwrap() + 1];
            plain[0] = b'x';
            assert_eq!(hasher.finish(), sha256(&plain));
        }
    }
}
