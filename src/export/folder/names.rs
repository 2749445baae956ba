//! Names from images as names in an export: nothing in them can lead out of the folder or upset a terminal.

use crate::digest::{hex, sha256};
use crate::export::slot::NAME_MAX;
use std::borrow::Cow;
use std::collections::HashSet;
use std::ffi::OsString;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::os::unix::ffi::OsStringExt as _;

/// Devices on Windows, with any extension.
const RESERVED: [&str; 6] = ["con", "prn", "aux", "nul", "conin$", "conout$"];
/// Ends of names that the export itself uses.
const OURS: [&str; 4] = [".vdrecover-part", ".vdrecover-part.state", ".vdrecover-old", ".vdrecover.map"];
/// Longest ending that is kept when a name is shortened.
const EXTENSION: usize = 16;

/// A name that is safe to create, as like the original as possible.
///
/// Separators, control characters and what turns text around are written as `%XX`; `.`, `..` and nothing at
/// all become visible; devices of Windows and names that this program uses get an underscore; what is too long
/// is cut, with a digest of the whole in its place. Bytes that are not UTF-8 stay as they are.
#[must_use]
pub fn safe_name(original: &[u8]) -> OsString {
    let mut name = Vec::with_capacity(original.len());
    for chunk in original.utf8_chunks() {
        for letter in chunk.valid().chars() {
            let mut buf = [0; 4];
            let bytes = letter.encode_utf8(&mut buf).as_bytes();
            if is_harmful(letter) { escape(bytes, &mut name) } else { name.extend_from_slice(bytes) }
        }
        // 0x80 to 0x9F are control characters to terminals that do not speak UTF-8.
        for byte in chunk.invalid() {
            if (0x80..0xa0).contains(byte) { escape(&[*byte], &mut name) } else { name.push(*byte) }
        }
    }
    if name.iter().all(|byte| *byte == b'.') && name.len() < 3 {
        name = if name.is_empty() { b"%".to_vec() } else { b"%2E".repeat(name.len()) };
    }
    let lower = String::from_utf8_lossy(&name).to_lowercase();
    if is_device(&lower) {
        name.insert(0, b'_');
    }
    if OURS.iter().any(|end| lower.ends_with(end)) {
        name.push(b'_');
    }
    OsString::from_vec(shorten(name, original))
}

fn is_harmful(letter: char) -> bool {
    // The last two groups turn the direction of the text that follows.
    letter.is_control() || matches!(letter, '/' | '\\' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

fn is_device(lower: &str) -> bool {
    let stem = lower.split('.').next().unwrap_or_default().trim_end();
    let numbered =
        |prefix| stem.strip_prefix(prefix).is_some_and(|n| matches!(n, "0" | "¹" | "²" | "³") || is_digit(n));
    RESERVED.contains(&stem) || numbered("com") || numbered("lpt")
}

fn is_digit(text: &str) -> bool {
    text.len() == 1 && text.bytes().all(|byte| byte.is_ascii_digit())
}

fn escape(bytes: &[u8], name: &mut Vec<u8>) {
    for byte in bytes {
        name.push(b'%');
        name.extend(hex(&[*byte]).to_uppercase().bytes());
    }
}

fn shorten(name: Vec<u8>, original: &[u8]) -> Vec<u8> {
    if name.len() <= NAME_MAX {
        return name;
    }
    let mark = format!("~{}", hex(&sha256(original)[..8]));
    with_mark(&name, &mark)
}

/// `mark` between the stem and the extension, the stem cut so that it fits.
fn with_mark(name: &[u8], mark: &str) -> Vec<u8> {
    let dot = name.iter().rposition(|byte| *byte == b'.').filter(|dot| *dot > 0 && name.len() - dot <= EXTENSION);
    let (stem, extension) = name.split_at(dot.unwrap_or(name.len()));
    let mut keep = stem.len().min(NAME_MAX - mark.len() - extension.len());
    while keep > 0 && keep < stem.len() && stem[keep] & 0xc0 == 0x80 {
        keep -= 1;
    }
    [&stem[..keep], mark.as_bytes(), extension].concat()
}

/// The names in use in one folder of the export; 8 bytes each.
#[derive(Debug)]
pub(crate) struct Used {
    seen: HashSet<u64>,
    fold: bool,
    next: u64,
}

impl Used {
    /// `fold` where the file system does not tell upper from lower case.
    pub(crate) fn new(fold: bool) -> Self {
        Self { seen: HashSet::new(), fold, next: 2 }
    }

    /// A name of its own for `original`. Two that are equal by chance cost a number, never a file.
    pub(crate) fn take(&mut self, original: &[u8]) -> OsString {
        let name = safe_name(original).into_vec();
        let mut free = name.clone();
        while !self.seen.insert(self.key(&free)) {
            free = with_mark(&name, &format!("~{}", self.next));
            self.next += 1;
        }
        OsString::from_vec(free)
    }

    fn key(&self, name: &[u8]) -> u64 {
        let text = String::from_utf8_lossy(name);
        let name = if self.fold { Cow::Owned(text.to_lowercase().into_bytes()) } else { Cow::Borrowed(name) };
        let mut hasher = DefaultHasher::new();
        name.hash(&mut hasher);
        hasher.finish()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use std::os::unix::ffi::OsStrExt as _;

    fn safe(original: &[u8]) -> Vec<u8> {
        safe_name(original).into_vec()
    }

    #[test]
    fn names_that_lead_elsewhere() {
        for (original, want) in [
            (&b""[..], "%"),
            (b".", "%2E"),
            (b"..", "%2E%2E"),
            (b"...", "..."),
            (b"/etc/passwd", "%2Fetc%2Fpasswd"),
            (b"..\\..\\x", "..%5C..%5Cx"),
            (b"a\0b\nc\x1b[31m\x7f", "a%00b%0Ac%1B[31m%7F"),
            ("x\u{202e}gpj.exe".as_bytes(), "x%E2%80%AEgpj.exe"),
            ("\u{85}".as_bytes(), "%C2%85"),
            (b"\x9b0m", "%9B0m"),
            (b"CON", "_CON"),
            (b"nul.tar.gz", "_nul.tar.gz"),
            (b"Com7 .txt", "_Com7 .txt"),
            (b"comma", "comma"),
            (b"console.log", "console.log"),
            (b"x.vdrecover-part", "x.vdrecover-part_"),
            ("Grüße.txt".as_bytes(), "Grüße.txt"),
        ] {
            assert_eq!(String::from_utf8(safe(original)).unwrap(), want);
        }
        assert_eq!(safe(b"caf\xe9"), b"caf\xe9");
    }

    #[test]
    fn long_names_keep_their_ending_and_stay_apart() {
        let a = safe(&[b"a".repeat(400), b"1.vmdk".to_vec()].concat());
        let b = safe(&[b"a".repeat(400), b"2.vmdk".to_vec()].concat());
        assert!(a != b && a.len() == NAME_MAX && a.ends_with(b".vmdk"));
        let umlauts = safe("ä".repeat(300).as_bytes());
        assert!(umlauts.len() <= NAME_MAX && String::from_utf8(umlauts).is_ok());
        assert_eq!(safe(&b"\n".repeat(255)).len(), NAME_MAX);
        assert_eq!(safe(&b"b".repeat(255)), b"b".repeat(255));
    }

    #[test]
    fn names_are_kept_apart() {
        let mut used = Used::new(true);
        let mut take = |name: &str| used.take(name.as_bytes()).into_string().unwrap();
        assert_eq!(
            [take("a.txt"), take("A.TXT"), take("a.txt"), take("a~2.txt")],
            ["a.txt", "A~2.TXT", "a~3.txt", "a~2~4.txt"]
        );
        let mut exact = Used::new(false);
        assert_eq!(exact.take(b"a").as_bytes(), b"a");
        assert_eq!(exact.take(b"A").as_bytes(), b"A");
        assert_eq!(exact.take(b"a").as_bytes(), b"a~2");
        let many: HashSet<_> = (0..10_000).map(|_| exact.take(&[b'x'; 300])).collect();
        assert_eq!(many.len(), 10_000);
    }
}
