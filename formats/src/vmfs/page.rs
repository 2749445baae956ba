//! A page of pointers, known by nothing but what is in it.
//!
//! A pointer has bits that are the same in all of its kind, so that a page of which every word that is not zero is a
//! pointer of one kind, to what the volume has, is hardly anything else. There is no other mark on it.

use super::address::Address;
use super::header::Header;
use crate::num::narrow;
use byteorder::{ByteOrder, LittleEndian};

/// A pointer to data in a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pointer {
    /// Which word of the page.
    pub slot: u64,
    /// Where the block lies in the volume.
    pub at: u64,
    /// It is to be zeroed: a hole, as far as content goes.
    pub zero: bool,
}

impl Pointer {
    /// The pointer in a slot. `None` if it is none to data of a volume of `lv_len` bytes.
    pub(super) fn of(header: &Header, lv_len: u64, slot: u64, raw: u64) -> Option<Self> {
        let block = 1_u64.checked_shl(header.file_shift)?;
        let large = 1_u64.checked_shl(header.large_shift)?;
        let (at, tbz) = match header.width.decode(raw) {
            Address::File(file) if !file.odd && file.number != 0 => (file.number.checked_mul(block)?, file.tbz),
            // Each slot is the part of the large block that its place in the file says.
            Address::Large(file) if !file.odd => {
                let into = slot.checked_mul(block)?.checked_rem(large)?;
                (file.number.checked_mul(large)?.checked_add(into)?, file.tbz)
            }
            _ => return None,
        };
        (at.checked_add(block)? <= lv_len).then_some(Self { slot, at, zero: tbz != 0 })
    }
}

/// What a page holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Page {
    /// Pointers to data, and nothing else.
    Data(Vec<Pointer>),
    /// Addresses of pages, each with its slot, and nothing else.
    Pages(Vec<(u64, Address)>),
    /// Something else, or nothing.
    Other,
}

impl Page {
    /// The page in `bytes`, on a volume of `lv_len` bytes.
    pub(super) fn of(header: &Header, lv_len: u64, bytes: &[u8]) -> Self {
        let data: Option<Vec<Pointer>> =
            words(header, bytes).map(|(slot, raw)| Pointer::of(header, lv_len, slot, raw)).collect();
        let page = |(slot, raw)| match header.width.decode(raw) {
            address @ (Address::Sub(_) | Address::Pointer(_) | Address::Pointer2(_)) => Some((slot, address)),
            _ => None,
        };
        match data {
            Some(data) if data.is_empty() => Self::Other,
            Some(data) => Self::Data(data),
            None => words(header, bytes).map(page).collect::<Option<_>>().map_or(Self::Other, Self::Pages),
        }
    }
}

/// The words of a page that are not zero, each with its slot.
fn words<'b>(header: &Header, bytes: &'b [u8]) -> impl Iterator<Item = (u64, u64)> + 'b {
    let width = narrow(header.width.bytes());
    let read = move |word: &[u8]| LittleEndian::read_uint(word, width);
    (0..).zip(bytes.chunks_exact(width).map(read)).filter(|(_, raw)| *raw != 0)
}
