//! The headers of a tar archive.
//!
//! | off | size | field |
//! |---|---|---|
//! | 0 | 100 | name |
//! | 100 | 8 | mode, in octal digits as all numbers |
//! | 108, 116 | 8, 8 | owner, group |
//! | 124 | 12 | bytes; where the highest bit of the first byte is set, a big-endian number (GNU) |
//! | 136 | 12 | last change, in seconds since 1970 |
//! | 148 | 8 | sum of all bytes of the header, with blanks in place of this |
//! | 156 | 1 | type |
//! | 157 | 100 | link |
//! | 257 | 6 | `ustar` |
//! | 345 | 155 | folders before the name (POSIX only) |
//!
//! A record of type `x` has longer values for the next header, one of type `L` or `K` its longer name or link.

use crate::layer::{Layer, Trust};
use crate::note::Finding;
use crate::num::{narrow, round_up};
use crate::read::read_exact;
use std::collections::HashMap;

const BLOCK: u64 = 512;
/// Longer values of a name are no name.
const MAX_EXTRA: u64 = 64 << 10;
/// Members of an archive. An OVA has a handful.
const MAX_MEMBERS: usize = 1 << 16;

/// One member.
#[derive(Clone, Debug)]
pub(super) struct Member {
    /// With `/` between its parts, none of which is empty.
    pub path: Vec<u8>,
    /// Where its first header lies.
    pub at: u64,
    /// Where its bytes lie.
    pub data: u64,
    pub len: u64,
    pub what: What,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub modified: Option<i128>,
    pub trust: Trust,
}

impl Member {
    /// For people.
    pub(super) fn name(&self) -> String {
        self.path.escape_ascii().to_string()
    }
}

/// What a member is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum What {
    File,
    Dir,
    Link(Vec<u8>),
    /// A file with holes, in the old form of GNU.
    Sparse,
    Special,
}

/// Values for the next header.
#[derive(Debug, Default)]
struct Extra {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    sparse: bool,
    /// Where the first of them lies.
    at: Option<u64>,
}

/// Whether a whole header is at the start.
pub(super) fn starts(layer: &dyn Layer) -> bool {
    matches!(header(layer, 0), Found::Header(bytes) if field(&bytes, 257, 5) == b"ustar")
}

enum Found {
    Header([u8; 512]),
    /// What lies there has not the sum that it says.
    Damaged([u8; 512]),
    Unreadable,
    Zeros,
}

fn header(layer: &dyn Layer, at: u64) -> Found {
    let mut bytes = [0; 512];
    if read_exact(layer, at, &mut bytes).is_err() {
        return Found::Unreadable;
    }
    if bytes.iter().all(|byte| *byte == 0) {
        return Found::Zeros;
    }
    let sum = |value: fn(u8) -> i64| {
        let others = bytes.iter().enumerate().map(|(i, byte)| if (148..156).contains(&i) { b' ' } else { *byte });
        others.map(value).fold(0_i64, i64::saturating_add)
    };
    let said = octal(field(&bytes, 148, 8)).and_then(|said| i64::try_from(said).ok());
    // Some old writers summed signed bytes.
    let is_whole =
        said.is_some() && (said == Some(sum(i64::from)) || said == Some(sum(|byte| i64::from(byte.cast_signed()))));
    if is_whole { Found::Header(bytes) } else { Found::Damaged(bytes) }
}

fn field(bytes: &[u8; 512], at: usize, len: usize) -> &[u8] {
    bytes.get(at..at.saturating_add(len)).unwrap_or_default()
}

/// Bytes up to the first zero.
fn text(bytes: &[u8]) -> &[u8] {
    bytes.split(|byte| *byte == 0).next().unwrap_or_default()
}

fn octal(bytes: &[u8]) -> Option<u64> {
    let digits = text(bytes).trim_ascii();
    digits.iter().try_fold(0_u64, |number, digit| {
        let digit = digit.checked_sub(b'0').filter(|digit| *digit < 8)?;
        number.checked_mul(8)?.checked_add(digit.into())
    })
}

/// Octal digits, or GNU's binary form.
fn number(bytes: &[u8]) -> Option<u64> {
    match bytes.split_first() {
        Some((0x80, rest)) => {
            rest.iter().try_fold(0_u64, |number, byte| number.checked_mul(256)?.checked_add((*byte).into()))
        }
        _ => octal(bytes),
    }
}

/// The members of an archive, and what is wrong with it. What can't be told apart any more is one doubtful member.
pub(super) fn read(layer: &dyn Layer) -> (Vec<Member>, Vec<Finding>) {
    let mut members: Vec<Member> = Vec::new();
    let mut files: HashMap<Vec<u8>, usize> = HashMap::new();
    let mut findings = Vec::new();
    let mut note = |code, at: u64, text: String| {
        findings.push(Finding::new(code, at..at.saturating_add(BLOCK), Trust::Doubtful, text));
    };
    let mut extra = Extra::default();
    let mut at: u64 = 0;
    let mut ended = false;
    while at < layer.len() {
        if members.len() >= MAX_MEMBERS {
            note("OVA-MANY", at, format!("only {MAX_MEMBERS} members are listed"));
            ended = true;
            break;
        }
        let (bytes, trust) = match header(layer, at) {
            Found::Zeros => {
                // One block of zeros is an end too, at the end of the file; two are one anywhere.
                let next = at.saturating_add(BLOCK);
                ended = next >= layer.len() || matches!(header(layer, next), Found::Zeros);
                if !ended {
                    doubt_last(&mut members);
                }
                break;
            }
            Found::Header(bytes) => (bytes, Trust::Sound),
            Found::Damaged(bytes) if leads_on(layer, at, &bytes) => {
                note("OVA-HEADER", at, "a member's header does not match its checksum".into());
                (bytes, Trust::Doubtful)
            }
            found @ (Found::Damaged(_) | Found::Unreadable) => {
                note("OVA-HEADER", at, "a member's header is damaged; all that follows is shown as one".into());
                if matches!(found, Found::Damaged(_)) {
                    doubt_last(&mut members);
                }
                members.push(rest(layer, at));
                ended = true;
                break;
            }
        };
        let kind = field(&bytes, 156, 1).first().copied().unwrap_or(0);
        let data = at.saturating_add(BLOCK);
        let Some(own) = number(field(&bytes, 124, 12)) else {
            note("OVA-HEADER", at, "a member's size is no number; all that follows is shown as one".into());
            members.push(rest(layer, at));
            ended = true;
            break;
        };
        if matches!(kind, b'x' | b'L' | b'K' | b'g') {
            if kind != b'g' {
                extra.at.get_or_insert(at);
                extra.take(layer, kind, data, own);
            }
            at = data.saturating_add(round_up(own, BLOCK));
            continue;
        }
        let extra = std::mem::take(&mut extra);
        let len = extra.size.unwrap_or(own);
        let (path, led_out) = path(&bytes, &extra);
        if led_out {
            note("OVA-NAME", at, format!("the name {} leads out of the archive", path.escape_ascii()));
        }
        let member = Member {
            path,
            at: extra.at.unwrap_or(at),
            data,
            len,
            what: what(kind, &bytes, &extra),
            mode: small(field(&bytes, 100, 8)) & 0o7777,
            uid: small(field(&bytes, 108, 8)),
            gid: small(field(&bytes, 116, 8)),
            modified: number(field(&bytes, 136, 12)).map(|seconds| i128::from(seconds).saturating_mul(1_000_000_000)),
            trust: if led_out { Trust::Doubtful } else { trust },
        };
        at = data.saturating_add(if member.what == What::File || member.what == What::Sparse {
            round_up(len, BLOCK)
        } else {
            0
        });
        let end = data.saturating_add(len);
        if member.what == What::File && end > layer.len() {
            note("OVA-CUT", member.at, format!("the archive ends inside {}", member.name()));
            ended = true;
            at = layer.len();
        }
        // A hard link: the bytes are those of a member before.
        let target = extra.link.as_deref().unwrap_or_else(|| text(field(&bytes, 157, 100)));
        let target =
            if kind == b'1' { files.get(&clean(target).0).and_then(|number| members.get(*number)) } else { None };
        let member = match target {
            Some(target) => Member { path: member.path, ..target.clone() },
            None => member,
        };
        if member.what == What::File {
            files.insert(member.path.clone(), members.len());
        }
        members.push(member);
    }
    if !ended {
        note("OVA-END", at.min(layer.len()).saturating_sub(BLOCK), "the archive ends without its end mark".into());
    }
    (members, findings)
}

/// What lies behind a member is no header: the header before it, or the one behind it, is wrong.
fn doubt_last(members: &mut [Member]) {
    if let Some(last) = members.last_mut() {
        last.trust = Trust::Doubtful;
    }
}

fn small(bytes: &[u8]) -> u32 {
    number(bytes).and_then(|number| u32::try_from(number).ok()).unwrap_or(0)
}

/// Whether what a damaged header says of its size leads to the next header, or to the end.
fn leads_on(layer: &dyn Layer, at: u64, bytes: &[u8; 512]) -> bool {
    let Some(size) = number(field(bytes, 124, 12)) else { return false };
    let next = at.saturating_add(BLOCK).saturating_add(round_up(size, BLOCK));
    next < layer.len() && matches!(header(layer, next), Found::Header(_) | Found::Zeros)
}

/// All behind a header that says nothing.
fn rest(layer: &dyn Layer, at: u64) -> Member {
    let data = at.saturating_add(BLOCK).min(layer.len());
    Member {
        path: format!("unnamed-{at:x}").into_bytes(),
        at,
        data,
        len: layer.len().saturating_sub(data),
        what: What::File,
        mode: 0o644,
        uid: 0,
        gid: 0,
        modified: None,
        trust: Trust::Doubtful,
    }
}

fn what(kind: u8, bytes: &[u8; 512], extra: &Extra) -> What {
    match kind {
        b'0' | 0 | b'7' | b'1' if extra.sparse => What::Sparse,
        b'0' | 0 | b'7' => What::File,
        b'5' => What::Dir,
        b'2' => What::Link(extra.link.clone().unwrap_or_else(|| text(field(bytes, 157, 100)).to_vec())),
        b'S' => What::Sparse,
        _ => What::Special,
    }
}

/// The member's path, and whether it tried to lead out of the archive.
fn path(bytes: &[u8; 512], extra: &Extra) -> (Vec<u8>, bool) {
    if let Some(path) = &extra.path {
        return clean(path);
    }
    let name = text(field(bytes, 0, 100));
    let prefix = text(field(bytes, 345, 155));
    // GNU keeps times where POSIX keeps folders.
    let is_posix = field(bytes, 257, 6) == b"ustar\0";
    if prefix.is_empty() || !is_posix { clean(name) } else { clean(&[prefix, name].join(&b'/')) }
}

fn clean(path: &[u8]) -> (Vec<u8>, bool) {
    let led_out = path.split(|byte| *byte == b'/').any(|part| part == b"..");
    let parts: Vec<&[u8]> =
        path.split(|byte| *byte == b'/').filter(|part| !matches!(*part, b"" | b"." | b"..")).collect();
    if parts.is_empty() { (b"unnamed".to_vec(), led_out) } else { (parts.join(&b'/'), led_out) }
}

impl Extra {
    fn take(&mut self, layer: &dyn Layer, kind: u8, at: u64, len: u64) {
        let mut bytes = vec![0; narrow(len.min(MAX_EXTRA))];
        if !crate::read::read(layer, at, &mut bytes).is_whole() {
            return;
        }
        match kind {
            b'L' => self.path = Some(text(&bytes).to_vec()),
            b'K' => self.link = Some(text(&bytes).to_vec()),
            _ => self.take_records(&bytes),
        }
    }

    /// Records of the form `LEN KEY=VALUE\n`, where LEN counts all of it.
    fn take_records(&mut self, mut bytes: &[u8]) {
        while let Some(blank) = bytes.iter().position(|byte| *byte == b' ') {
            let (len, _) = bytes.split_at(blank);
            let len = std::str::from_utf8(len).ok().and_then(|len| len.parse::<usize>().ok());
            let record = len.and_then(|len| bytes.get(blank.saturating_add(1)..len.saturating_sub(1)));
            let Some((record, rest)) = record.zip(len.and_then(|len| bytes.get(len..))) else { return };
            bytes = rest;
            let Some(equals) = record.iter().position(|byte| *byte == b'=') else { continue };
            let (key, value) = record.split_at(equals);
            let value = value.get(1..).unwrap_or_default();
            match key {
                b"path" => self.path = Some(value.to_vec()),
                b"linkpath" => self.link = Some(value.to_vec()),
                b"size" => self.size = std::str::from_utf8(value).ok().and_then(|size| size.parse().ok()),
                key if key.starts_with(b"GNU.sparse") => self.sparse = true,
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_in_both_forms() {
        assert_eq!(number(b"00000001750\0"), Some(1000));
        assert_eq!(number(b"  1750 \0\0\0\0\0"), Some(1000));
        assert_eq!(number(b"\x80\0\0\0\0\0\0\x02\0\0\0\0"), Some(8 << 30));
        assert_eq!(number(b"\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF"), None);
        assert_eq!(number(b"\x80\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF"), None);
    }

    #[test]
    fn paths_stay_in_the_archive() {
        assert_eq!(clean(b"./a//b"), (b"a/b".to_vec(), false));
        assert_eq!(clean(b"/../../etc/passwd"), (b"etc/passwd".to_vec(), true));
        assert_eq!(clean(b"."), (b"unnamed".to_vec(), false));
    }

    #[test]
    fn records_of_any_length_end() {
        let mut extra = Extra::default();
        extra.take_records(b"12 path=abc\n20 size=99999999999\n99999999999999999999 x=y\n");
        assert_eq!((extra.path.as_deref(), extra.size), (Some(&b"abc"[..]), Some(99_999_999_999)));
        for bytes in [&b"0 a=b\n"[..], b"1 a=b\n", b"3 \n", b" x=y\n", b"5 \xFF=\xFF"] {
            Extra::default().take_records(bytes);
        }
    }
}
