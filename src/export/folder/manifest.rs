//! The lines of `manifest.jsonl`: one for each node, in the order of the tree.

use crate::digest::Digest;
use crate::export::Exported;
use serde_json::{Map, Value, json};
use std::path::Path;
use vdrecover_formats::{Entry, Find, Node, State, Trust};

/// Missing ranges that a line lists; the mapfile beside the output has all.
const MISSING: usize = 1000;

/// One line, as its fields in reading order.
#[derive(Clone, Debug)]
pub(crate) struct Line(Map<String, Value>);

impl Line {
    /// `path` in the export, `original` in the tree, and what the tree says of the node.
    pub(crate) fn new(path: &[u8], original: &[u8], entry: &Entry, node: Option<&Node>, source: &str) -> Self {
        let mut line = Self(Map::new());
        line.text("path", path);
        if path != original {
            line.set("original_b64", base64(original));
        }
        line.set("type", entry.kind.word());
        line.set("size", node.map(|node| node.len));
        let state = node.map_or(entry.state, |node| if node.state == State::Live { entry.state } else { node.state });
        line.set("state", state.word());
        line.set("trust", node.map_or(Trust::Doubtful, |node| node.trust).word());
        if let Some(node) = node {
            line.set("mode", format!("{:04o}", node.mode));
            line.set("uid", node.uid);
            line.set("gid", node.gid);
            for (key, time) in [("mtime", node.modified), ("btime", node.born)] {
                if let Some(time) = time.and_then(crate::report::time) {
                    line.set(key, time);
                }
            }
        }
        let below = String::from_utf8_lossy(original).escape_default().to_string();
        // The source is a locator: behind `IMAGE::` a path begins, behind a path it goes on.
        let join = if below.is_empty() || source.ends_with("::") { "" } else { "/" };
        line.set("source", format!("{source}{join}{below}"));
        line
    }

    pub(crate) fn set(&mut self, key: &str, value: impl Into<Value>) {
        self.0.insert(key.to_string(), value.into());
    }

    /// Bytes as text; where they are not UTF-8, exactly as well.
    pub(crate) fn text(&mut self, key: &str, bytes: &[u8]) {
        self.set(key, String::from_utf8_lossy(bytes).into_owned());
        if std::str::from_utf8(bytes).is_err() {
            self.set(&format!("{key}_b64"), base64(bytes));
        }
    }

    /// How it was found, and how it got its name.
    pub(crate) fn found(&mut self, find: &Find) {
        self.set("named_by", find.named.word());
        self.set("why", find.why.as_str());
    }

    /// What became of its bytes.
    pub(crate) fn exported(&mut self, exported: &Exported, trust: Trust) {
        match exported.files.split_first() {
            None => self.digest(&exported.digest),
            Some((image, others)) => {
                self.digest(&image.digest);
                self.set("image_size", image.len);
                self.set("disk_sha256", exported.digest.hex());
                let name = |path: &Path| path.file_name().map(|name| name.to_string_lossy().into_owned());
                let others = others
                    .iter()
                    .map(|file| json!({ "name": name(&file.path), "size": file.len, "sha256": file.digest.hex() }));
                self.set("files", others.collect::<Vec<_>>());
            }
        }
        self.set("trust", trust.word());
        let listed = exported.gaps.iter().take(MISSING);
        let missing: Vec<_> = listed
            .map(|gap| json!([gap.range.start, gap.range.end.saturating_sub(gap.range.start), gap.loss.why.word()]))
            .collect();
        self.set("missing", missing);
        if exported.gap_count > 0 {
            self.set("missing_bytes", exported.lost_bytes);
            self.set("missing_ranges", exported.gap_count);
            if let Some(map) = exported.map.as_ref().and_then(|map| map.file_name()) {
                self.text("map", map.as_encoded_bytes());
            }
        }
    }

    pub(crate) fn digest(&mut self, digest: &Digest) {
        self.set("sha256", digest.hex());
        if let Some(why) = digest.reason() {
            self.set("sha256_reason", why);
        }
    }

    /// Nothing was written for it, and why.
    pub(crate) fn error(&mut self, why: &str) {
        self.digest(&Digest::Absent("not exported".into()));
        self.set("error", why);
    }

    /// There is nothing to be written for it, and why: no failure.
    pub(crate) fn without_content(&mut self, why: &str) {
        self.digest(&Digest::Absent("no content".into()));
        self.set("reason", why);
    }

    /// With its end of line.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        // A map of strings can always be written.
        let mut bytes = serde_json::to_vec(&self.0).unwrap_or_default();
        bytes.push(b'\n');
        bytes
    }
}

/// RFC 4648 with padding.
pub(crate) fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for three in bytes.chunks(3) {
        let byte = |i: usize| u32::from(three.get(i).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for digit in 0..4 {
            let index = usize::try_from(bits >> (18 - 6 * digit) & 63).unwrap_or(0);
            text.push(if digit > three.len() { '=' } else { char::from(DIGITS[index]) });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_known_answers() {
        for (bytes, want) in [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")] {
            assert_eq!(base64(bytes.as_bytes()), want);
        }
        assert_eq!(base64(&[0xff, 0xfe, 0xfd]), "//79");
    }
}
