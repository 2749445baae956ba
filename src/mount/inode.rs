//! Numbers of nodes as inode numbers.

use fuser::INodeNo;
use vdrecover_formats::NodeId;

/// Swaps the root's number with 1, which FUSE gives to the root, and keeps all others. FUSE has no inode 0; the
/// node that would get it gets the largest number, which no tree uses.
#[derive(Clone, Copy, Debug)]
pub(super) struct Inodes {
    root: u64,
}

impl Inodes {
    pub(super) fn new(root: NodeId) -> Self {
        Self { root: root.0 }
    }

    pub(super) fn inode(self, id: NodeId) -> INodeNo {
        INodeNo(match self.swap(id.0) {
            0 => u64::MAX,
            n => n,
        })
    }

    pub(super) fn node(self, inode: INodeNo) -> NodeId {
        NodeId(match inode.0 {
            u64::MAX => self.swap(0),
            n => self.swap(n),
        })
    }

    fn swap(self, n: u64) -> u64 {
        match n {
            n if n == self.root => 1,
            1 => self.root,
            n => n,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_go_there_and_back() {
        for root in [0, 1, 2, 5, 1 << 48] {
            let inodes = Inodes::new(NodeId(root));
            assert_eq!(inodes.inode(NodeId(root)), INodeNo::ROOT);
            let mut seen = std::collections::BTreeSet::new();
            for id in [0, 1, 2, 3, 5, 6, 1 << 48, u64::MAX - 1] {
                let inode = inodes.inode(NodeId(id));
                assert_eq!(inodes.node(inode), NodeId(id), "root {root}");
                assert!(inode.0 != 0 && seen.insert(inode.0), "root {root}, node {id}: {inode:?}");
            }
        }
    }
}
