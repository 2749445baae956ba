//! Names that the kernel takes, for names that disks have.
//!
//! A name on disk is any bytes. The kernel refuses the whole listing for a `/`, ends a name at a NUL, and gives
//! `.` and `..` a meaning. Such bytes are shown as `%2F`, `%00` and `%2E`; so that this can be undone, a `%`
//! before one of these pairs becomes `%25`. All other names stay as they are.

use std::borrow::Cow;

/// Longest name that the kernel takes from FUSE.
const LONGEST: usize = 1024;

const ESCAPES: [(u8, &[u8; 2]); 4] = [(b'/', b"2F"), (0, b"00"), (b'.', b"2E"), (b'%', b"25")];

/// The name to show. Nothing for a name that can't be shown in any way: an empty or an endless one.
pub(super) fn shown(name: &[u8]) -> Option<Cow<'_, [u8]>> {
    let dots = matches!(name, b"." | b"..");
    let plain = !dots && !name.iter().enumerate().any(|(i, byte)| needs_escape(name, i, *byte));
    let shown = if plain {
        Cow::Borrowed(name)
    } else {
        let mut out = Vec::with_capacity(name.len() + 8);
        for (i, byte) in name.iter().enumerate() {
            let escape = ESCAPES.iter().find(|(raw, _)| raw == byte && (dots || needs_escape(name, i, *byte)));
            match escape {
                Some((_, pair)) => out.extend([b'%', pair[0], pair[1]]),
                None => out.push(*byte),
            }
        }
        Cow::Owned(out)
    };
    (!shown.is_empty() && shown.len() <= LONGEST).then_some(shown)
}

fn needs_escape(name: &[u8], i: usize, byte: u8) -> bool {
    match byte {
        b'/' | 0 => true,
        b'%' => raw(name.get(i + 1..i + 3).unwrap_or_default()).is_some(),
        _ => false,
    }
}

/// The name on disk for a name that was shown.
pub(super) fn on_disk(shown: &[u8]) -> Cow<'_, [u8]> {
    if !shown.contains(&b'%') {
        return Cow::Borrowed(shown);
    }
    let mut out = Vec::with_capacity(shown.len());
    let mut rest = shown;
    while let Some((byte, after)) = rest.split_first() {
        let escaped = (*byte == b'%').then(|| raw(after.get(..2).unwrap_or_default())).flatten();
        out.push(escaped.unwrap_or(*byte));
        rest = match escaped {
            Some(_) => after.get(2..).unwrap_or_default(),
            None => after,
        };
    }
    Cow::Owned(out)
}

fn raw(pair: &[u8]) -> Option<u8> {
    ESCAPES.iter().find(|(_, known)| known.as_slice() == pair).map(|(raw, _)| *raw)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn a_shown_name_leads_back() {
        let table: [(&[u8], &[u8]); 10] = [
            (b"plain", b"plain"),
            (b"100%", b"100%"),
            (b"50%25", b"50%2525"),
            (b"a/b", b"a%2Fb"),
            (b"a%2Fb", b"a%252Fb"),
            (b"%2/", b"%2%2F"),
            (b"nul\0", b"nul%00"),
            (b".", b"%2E"),
            (b"..", b"%2E%2E"),
            (b"\xff\xfe", b"\xff\xfe"),
        ];
        for (disk, want) in table {
            let name = shown(disk).unwrap();
            assert_eq!(&*name, want);
            assert_eq!(&*on_disk(&name), disk);
        }
        assert_eq!(shown(b""), None);
        assert_eq!(shown(&[b'x'; 1025]), None);
    }

    #[test]
    fn no_two_names_are_shown_alike() {
        let mut seen = std::collections::BTreeMap::new();
        let alphabet = b"%/205EF.\0";
        for n in 1..9_usize.pow(5) {
            let name: Vec<u8> = (0..5)
                .scan(n, |n, _| {
                    let byte = alphabet[*n % 9];
                    *n /= 9;
                    Some(byte)
                })
                .collect();
            let shown = shown(&name).unwrap().into_owned();
            assert!(!shown.contains(&b'/') && !shown.contains(&0));
            assert_eq!(&*on_disk(&shown), name);
            assert_eq!(seen.insert(shown, name.clone()), None, "{name:?}");
        }
    }
}
