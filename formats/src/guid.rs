//! Globally unique ids as people write them.

/// An id whose first three groups are little-endian on disk, as Microsoft and UEFI write them.
#[must_use]
pub fn mixed(bytes: &[u8; 16]) -> String {
    let [a0, a1, a2, a3, b0, b1, c0, c1, rest @ ..] = *bytes;
    let [d0, d1, e0, e1, e2, e3, e4, e5] = rest;
    plain(&[a3, a2, a1, a0, b1, b0, c1, c0, d0, d1, e0, e1, e2, e3, e4, e5])
}

/// An id whose bytes lie in the order in which people write them (RFC 9562).
#[must_use]
pub fn plain(bytes: &[u8; 16]) -> String {
    use std::fmt::Write as _;
    let mut text = String::with_capacity(36);
    for (at, byte) in bytes.iter().enumerate() {
        if matches!(at, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        // Writing to a string can't fail.
        let _ = write!(text, "{byte:02X}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_written_as_people_know_them() {
        let disk = *b"\x2A\xE0\x31\xAA\x0F\x40\xDB\x11\x95\x90\x00\x0C\x29\x11\xD1\xB8";
        assert_eq!(mixed(&disk), "AA31E02A-400F-11DB-9590-000C2911D1B8");
        assert_eq!(plain(&disk), "2AE031AA-0F40-DB11-9590-000C2911D1B8");
    }
}
