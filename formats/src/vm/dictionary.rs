//! VMware's `key = "value"` dictionary: the text of `.vmx` and `.vmsd` files.
//!
//! Source: files of ESXi and Workstation. Keys differ in case between writers and are compared without it; a
//! quoted value carries `|XX` for bytes that it can't hold (Observed: `|22` for a quotation mark). Lines that
//! are neither a comment nor a pair are passed over: half a file is worth its half.

use std::collections::BTreeMap;

/// No dictionary is longer: 4 MiB. A longer file is something else.
pub const MAX_TEXT: u64 = 4 << 20;

/// Keys in lower case with their values, as bytes: the file says in which encoding, and often wrongly.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dictionary(BTreeMap<String, Vec<u8>>);

impl Dictionary {
    /// Parses as much as is there. Where a key comes twice the last one counts, as in ESXi.
    #[must_use]
    pub fn parse(text: &[u8]) -> Self {
        let text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text);
        Self(text.split(|byte| matches!(byte, b'\n' | b'\r' | 0)).filter_map(pair).collect())
    }

    /// The value of `key`, which is given in lower case.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&[u8]> {
        self.0.get(key).map(Vec::as_slice)
    }

    /// The value as a number.
    #[must_use]
    pub fn number(&self, key: &str) -> Option<i64> {
        std::str::from_utf8(self.get(key)?).ok()?.trim().parse().ok()
    }

    /// Whether the value is `TRUE`, in any case.
    #[must_use]
    pub fn is_true(&self, key: &str) -> bool {
        self.get(key).is_some_and(|value| value.eq_ignore_ascii_case(b"true"))
    }

    /// All pairs, by key.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.0.iter().map(|(key, value)| (key.as_str(), value.as_slice()))
    }

    /// Whether nothing was found.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

fn pair(line: &[u8]) -> Option<(String, Vec<u8>)> {
    let line = line.trim_ascii();
    if line.starts_with(b"#") {
        return None;
    }
    let (key, value) = line.split_at_checked(line.iter().position(|byte| *byte == b'=')?)?;
    let key = std::str::from_utf8(key.trim_ascii()).ok()?.to_ascii_lowercase();
    let value = value.strip_prefix(b"=").unwrap_or(value).trim_ascii();
    let value = match value.strip_prefix(b"\"") {
        Some(quoted) => quoted.split(|byte| *byte == b'"').next().unwrap_or(quoted),
        None => value,
    };
    (!key.is_empty()).then(|| (key, unescape(value)))
}

fn unescape(value: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut rest = value;
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        let hex = after.get(..2).filter(|_| byte == b'|').and_then(|hex| std::str::from_utf8(hex).ok());
        match hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(code) => {
                out.push(code);
                rest = after.get(2..).unwrap_or_default();
            }
            None => out.push(byte),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_esxi_writes_and_what_people_edit() {
        let text = b"\xef\xbb\xbf.encoding = \"UTF-8\"\r\ndisplayName = \"a |22b|22\"\nSCSI0:0.fileName=disk.vmdk\n\
                     # numvcpus = \"4\"\nno pair\nmemSize = \"512\"\nmemsize = \"1024\"\nscsi0.present = \"TRUE\"";
        let found = Dictionary::parse(text);
        assert_eq!(found.get("displayname"), Some(&b"a \"b\""[..]));
        assert_eq!(found.get("scsi0:0.filename"), Some(&b"disk.vmdk"[..]));
        assert_eq!(found.get("numvcpus"), None);
        assert_eq!(found.number("memsize"), Some(1024));
        assert!(found.is_true("scsi0.present"));
        assert_eq!(found.iter().count(), 5);
    }

    #[test]
    fn a_lone_bar_is_a_bar() {
        assert_eq!(Dictionary::parse(b"a = \"|zz|2|\"").get("a"), Some(&b"|zz|2|"[..]));
    }
}
