//! How the clusters of an image are encrypted: the LUKS header in it, version 1 (the LUKS on-disk format
//! specification 1.2.3). QEMU writes no other. Numbers are big-endian.
//!
//! | at | bytes | field |
//! |---|---|---|
//! | 0 | 6 | `LUKS\xba\xbe` |
//! | 6 | 2 | version, 1 |
//! | 8 | 32 | name of the cipher |
//! | 40 | 32 | its mode |
//! | 72 | 32 | hash |
//! | 108 | 4 | bytes of the key |
//! | 208 | 8 × 48 | key slots, each with 0x00AC71F3 first if it is in use |

use crate::layer::Layer;
use crate::read::read_vec;
use byteorder::{BigEndian, ByteOrder};
use std::fmt;

const MAGIC: &[u8] = b"LUKS\xba\xbe";
const SLOTS_AT: usize = 208;
const SLOT: usize = 48;
const SLOTS: usize = 8;
const IN_USE: u32 = 0x00AC_71F3;

/// How an image is encrypted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Seal {
    /// The cipher, its mode and the bits of its key.
    pub cipher: String,
    /// Key slots in use.
    pub slots: u64,
    /// Key slots that there are. 0: the password is the key.
    pub of: u64,
}

impl fmt::Display for Seal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { cipher, slots, of } = self;
        match of {
            0 => write!(f, "{cipher}, the password is the key"),
            of => write!(f, "{cipher}, {slots} of {of} key slots in use"),
        }
    }
}

impl Seal {
    /// Reads the LUKS header at `at`. `None` if it is none.
    pub(super) fn load(layer: &dyn Layer, at: u64) -> Option<Self> {
        let (bytes, _) = read_vec(layer, at, SLOTS_AT.saturating_add(SLOTS.saturating_mul(SLOT)));
        if !bytes.starts_with(MAGIC) || bytes.get(6..8)? != [0, 1] {
            return None;
        }
        let text = |at: usize| {
            let field = bytes.get(at..at.saturating_add(32)).unwrap_or_default();
            field.split(|byte| *byte == 0).next().unwrap_or_default().escape_ascii().to_string()
        };
        let bits = bytes.get(108..112).map_or(0, BigEndian::read_u32).saturating_mul(8);
        let used = bytes.get(SLOTS_AT..)?.chunks_exact(SLOT).filter(|slot| BigEndian::read_u32(slot) == IN_USE).count();
        let cipher = format!("{}-{}, {bits} bits, {}", text(8), text(40), text(72));
        Some(Self { cipher, slots: crate::num::wide(used), of: crate::num::wide(SLOTS) })
    }
}
