//! Files that are a packed image as a whole: what a person has to do first.

use vdrecover_formats::{Layer, read_exact};

/// What begins so, what it is packed with, and what unpacks it beside itself.
const KINDS: [(&[u8], &str, &str); 4] = [
    (b"\x1F\x8B\x08", "gzip", "gunzip -k"),
    (b"\x28\xB5\x2F\xFD", "zstd", "unzstd"),
    (b"\xFD7zXZ\x00", "xz", "unxz -k"),
    (b"BZh", "bzip2", "bunzip2 -k"),
];

/// The name of the packer and the command that unpacks, if a file is packed.
pub(super) fn kind(layer: &dyn Layer) -> Option<(&'static str, &'static str)> {
    let mut head = [0; 10];
    read_exact(layer, 0, &mut head).ok()?;
    let (_, name, command) = KINDS.into_iter().find(|(mark, ..)| head.starts_with(mark))?;
    // The mark of bzip2 is three letters: a block of it, or its end, follows.
    let is_block = head[4..] == *b"\x31\x41\x59\x26\x53\x59" || head[4..] == *b"\x17\x72\x45\x38\x50\x90";
    (name != "bzip2" || is_block).then_some((name, command))
}

#[cfg(test)]
mod tests {
    use super::*;
    use vdrecover_formats::adapt::Memory;

    #[test]
    fn packed_files_are_told() {
        let name = |head: &[u8]| kind(&Memory::new([head, &[0; 10]].concat())).map(|(name, _)| name);
        assert_eq!(name(b"\x1F\x8B\x08\x00"), Some("gzip"));
        assert_eq!(name(b"\x28\xB5\x2F\xFD"), Some("zstd"));
        assert_eq!(name(b"\xFD7zXZ\x00"), Some("xz"));
        assert_eq!(name(b"BZh91AY&SY"), Some("bzip2"));
        assert_eq!((name(b"BZh9 a text"), name(b"\x1F\x8B"), kind(&Memory::new(vec![0x1F]))), (None, None, None));
    }
}
