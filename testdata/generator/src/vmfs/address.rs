//! Block addresses. The low three bits of each say what it points to; an address of 0 is a hole.

/// What an address points to, in the numbering of the low three bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum BlockKind {
    /// A file block (VMFS5) or small file block (VMFS6).
    FileBlock = 1,
    /// A sub-block.
    SubBlock = 2,
    /// A pointer block of `.pbc.sf`.
    PointerBlock = 3,
    /// A file descriptor.
    Descriptor = 4,
    /// A pointer block of `.pb2.sf`.
    PointerBlock2 = 5,
    /// A journal block.
    Journal = 6,
    /// A large file block (VMFS6).
    LargeFileBlock = 7,
}

/// Addresses of one version, and how they are put together.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Addresses {
    pub(crate) six: bool,
    pub(crate) dense: bool,
}

/// Small file blocks in a cluster, which is also the number in a large one.
pub(crate) const SFB_PER_LFB: u64 = 512;

impl Addresses {
    /// Address of file block `block`; all to-be-zeroed bits are set when `tbz`.
    pub(crate) fn file_block(self, block: u64, tbz: bool) -> u64 {
        if self.six {
            let tbz = if tbz { 0xFF << 7 } else { 0 };
            1 | tbz | (block / SFB_PER_LFB) << 15 | (block % SFB_PER_LFB) << 51
        } else {
            assert!(block < 1 << 26, "file block {block} does not fit a VMFS5 address");
            1 | u64::from(tbz) << 5 | block << 6
        }
    }

    /// Address of large file block `block`.
    pub(crate) fn large_file_block(self, block: u64, tbz: bool) -> u64 {
        assert!(self.six, "VMFS5 has no large file blocks");
        7 | if tbz { 0xFF << 7 } else { 0 } | block << 15
    }

    /// Address of a sub-block, or of a pointer block of either kind.
    pub(crate) fn in_cluster(self, kind: BlockKind, cluster: u64, resource: u64) -> u64 {
        let low = kind as u64 | cluster << 6;
        if self.six {
            return low | resource << 56;
        }
        assert!(cluster < 1 << 22, "cluster {cluster} does not fit a VMFS5 address");
        if kind == BlockKind::SubBlock && self.dense {
            low | (resource & 15) << 28 | (resource >> 4) << 3
        } else {
            low | resource << 28
        }
    }
}

/// Address of a file descriptor, the same in both versions.
pub(crate) fn descriptor(cluster: u64, resource: u64) -> u32 {
    (4 | cluster << 6 | resource << 22) as u32
}

/// Address of a VMFS6 journal block.
pub(crate) fn journal(cluster: u64, resource: u64) -> u32 {
    (6 | cluster << 3 | resource << 26) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_seen_on_real_volumes() {
        let five = Addresses { six: false, dense: true };
        let six = Addresses { six: true, dense: true };
        // Observed: `.jbc.sf`, a directory's second sub-block, a pointer block.
        assert_eq!(five.file_block(0x5, false), 0x141);
        assert_eq!(five.in_cluster(BlockKind::SubBlock, 18, 1), 0x1000_0482);
        assert_eq!(five.in_cluster(BlockKind::PointerBlock, 0xD12, 0), 0x3_4483);
        assert_eq!(six.file_block(512 + 0xDE, false), 0x06F0_0000_0000_8001);
        assert_eq!(six.in_cluster(BlockKind::SubBlock, 0x23, 1), 0x0100_0000_0000_08C2);
        assert_eq!(descriptor(44, 1), 0x0040_0B04);
    }
}
