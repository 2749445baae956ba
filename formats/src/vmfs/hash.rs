//! The hash of a name in a VMFS6 folder.
//!
//! The key has 256 bytes: the name, then zeros to a multiple of eight, then a salt up to byte 128, then zeros. It is
//! hashed with the 64-bit hash that Bob Jenkins published as `lookup8`, over 64-bit words and with their **number**
//! added as the length. All names of real images agree.

use super::address::FdAddress;

/// Slots of a folder's hash table.
pub const SLOTS: u64 = 16001;
/// Slots of the root's hash table that names are hashed to; those behind belong to the system files.
pub const ROOT_SLOTS: u64 = SLOTS - 28;

const SALT: u64 = 0x739A_75C2_8E61_B017;
const SEED: u64 = 42;
const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C13;
const KEY: usize = 256;
/// System files in the order of their slots in the root.
const SYSTEM: [&[u8]; 10] = [
    b".fbb.sf",
    b".fdc.sf",
    b".pbc.sf",
    b".sbc.sf",
    b".vh.sf",
    b".pb2.sf",
    b".sdd.sf",
    b".jbc.sf",
    b".unmap.sf",
    b".dfd.sf",
];

/// The hash of a name; 0 for the system files in the root, which have slots of their own.
#[must_use]
pub fn hash(folder: FdAddress, name: &[u8]) -> u64 {
    if folder == FdAddress::ROOT && SYSTEM.contains(&name) { 0 } else { lookup8(name) }
}

/// The slot of a name in the hash table.
#[must_use]
pub fn slot(folder: FdAddress, name: &[u8]) -> u64 {
    if folder != FdAddress::ROOT {
        return lookup8(name).checked_rem(SLOTS).unwrap_or(0);
    }
    match (ROOT_SLOTS..).zip(SYSTEM).find(|(_, system)| *system == name) {
        // The first system slot is 0x3E66, one behind the last of the names.
        Some((slot, _)) => slot.saturating_add(1),
        None => lookup8(name).checked_rem(ROOT_SLOTS).unwrap_or(0),
    }
}

/// The name that has this hash, if it lies in `field` with one byte of it damaged. The field is the name and zeros behind
/// it. `None` also where several would do.
#[must_use]
pub fn mend(folder: FdAddress, field: &[u8], low: u32) -> Option<Vec<u8>> {
    /// `ESXi` gives no longer names.
    const LONGEST: usize = 127;
    let end = field.iter().rposition(|byte| *byte != 0)?.saturating_add(2).min(LONGEST);
    let mut changed: Vec<u8> = field.to_vec();
    let mut found: Option<Vec<u8>> = None;
    for at in 0..end {
        let Some(old) = field.get(at).copied() else { break };
        for byte in (0..=u8::MAX).filter(|byte| *byte != old) {
            if let Some(place) = changed.get_mut(at) {
                *place = byte;
            }
            let len = changed.iter().position(|byte| *byte == 0).unwrap_or(changed.len());
            let (name, rest) = changed.split_at(len);
            let fits = !name.is_empty() && rest.iter().all(|byte| *byte == 0);
            if fits && hash(folder, name) & u64::from(u32::MAX) == u64::from(low) {
                if found.is_some() {
                    return None;
                }
                found = Some(name.to_vec());
            }
        }
        if let Some(place) = changed.get_mut(at) {
            *place = old;
        }
    }
    found
}

pub(super) fn lookup8(name: &[u8]) -> u64 {
    let mut key = [0; KEY];
    for (to, from) in key.iter_mut().zip(name) {
        *to = *from;
    }
    // The salt starts behind the name and at least one zero, at a multiple of eight, and covers up to byte 128.
    let first = name.len().saturating_add(8) & !7;
    for word in key.get_mut(first..KEY >> 1).unwrap_or_default().chunks_exact_mut(8) {
        word.copy_from_slice(&SALT.to_le_bytes());
    }
    let word = |bytes: &[u8]| bytes.iter().rev().fold(0_u64, |word, byte| word << 8 | u64::from(*byte));
    let (mut a, mut b, mut c) = (SEED, SEED, GOLDEN);
    for three in key.chunks(24) {
        let mut words = three.chunks(8).map(word);
        a = a.wrapping_add(words.next().unwrap_or(0));
        b = b.wrapping_add(words.next().unwrap_or(0));
        match words.next() {
            Some(word) => c = c.wrapping_add(word),
            // The last two words come with the length, which is counted in words.
            None => c = c.wrapping_add(32),
        }
        (a, b, c) = mix(a, b, c);
    }
    c
}

fn mix(mut a: u64, mut b: u64, mut c: u64) -> (u64, u64, u64) {
    for (left, right, last) in [(43, 9, 8), (38, 23, 5), (35, 49, 11), (12, 18, 22)] {
        a = a.wrapping_sub(b).wrapping_sub(c) ^ c.unbounded_shr(left);
        b = b.wrapping_sub(c).wrapping_sub(a) ^ a.unbounded_shl(right);
        c = c.wrapping_sub(a).wrapping_sub(b) ^ b.unbounded_shr(last);
    }
    (a, b, c)
}
