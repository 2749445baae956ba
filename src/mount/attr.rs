//! Facts of a node as the kernel wants them.

use super::MountOptions;
use fuser::{Errno, FileAttr, FileType, INodeNo};
use std::time::{Duration, SystemTime};
use vdrecover_formats::{Error, Kind, Node};

/// Owners that are shown in place of those on disk.
#[derive(Clone, Copy, Debug)]
pub(super) struct Owner {
    uid: Option<u32>,
    gid: Option<u32>,
}

impl Owner {
    pub(super) fn new(options: &MountOptions) -> Self {
        Self { uid: options.uid, gid: options.gid }
    }

    pub(super) fn attr(self, inode: INodeNo, node: &Node) -> FileAttr {
        let size = size(node);
        let modified = node.modified.or(node.changed).map_or(SystemTime::UNIX_EPOCH, time);
        FileAttr {
            ino: inode,
            size,
            blocks: blocks(size),
            atime: node.accessed.map_or(modified, time),
            mtime: modified,
            ctime: node.changed.map_or(modified, time),
            crtime: node.born.map_or(SystemTime::UNIX_EPOCH, time),
            kind: file_type(node.kind),
            perm: u16::try_from(node.mode & 0o7777).unwrap_or(0),
            nlink: node.links.max(1),
            uid: self.uid.unwrap_or(node.uid),
            gid: self.gid.unwrap_or(node.gid),
            rdev: 0,
            blksize: 4096,
            flags: 0,
        }
    }
}

/// The kernel's file sizes are signed.
pub(super) fn size(node: &Node) -> u64 {
    node.len.min(i64::MAX.unsigned_abs())
}

/// Storage of a file in units of 512 bytes. How much there is would take a walk over its map. One block less than
/// the length says "perhaps sparse": `cp` and `tar` then ask for the holes, and a disk of 42 TiB that is mostly
/// empty copies in the time of its data. A small file is said to be full, since `tar` takes 0 blocks for all hole.
fn blocks(size: u64) -> u64 {
    const SMALL: u64 = 64 << 10;
    if size < SMALL { size.div_ceil(512) } else { size / 512 - 1 }
}

/// A raw device mapping is a file that can't be read. What kind of special file it is on disk does not matter:
/// none may reach a driver of this machine, and a socket that nobody listens on can't be opened.
pub(super) fn file_type(kind: Kind) -> FileType {
    match kind {
        Kind::File | Kind::Mapping | Kind::Stream | Kind::Xattr => FileType::RegularFile,
        Kind::Dir => FileType::Directory,
        Kind::Symlink => FileType::Symlink,
        Kind::Special => FileType::Socket,
    }
}

/// Nanoseconds since 1970, of any sign; what the system's own time can't hold ends at its first or last second.
pub(super) fn time(nanos: i128) -> SystemTime {
    const SECOND: i128 = 1_000_000_000;
    let secs = i64::try_from(nanos.div_euclid(SECOND));
    let secs = secs.unwrap_or(if nanos < 0 { i64::MIN } else { i64::MAX - 1 });
    let part = Duration::from_nanos(u64::try_from(nanos.rem_euclid(SECOND)).unwrap_or(0));
    let whole = Duration::from_secs(secs.unsigned_abs());
    let base =
        if secs < 0 { SystemTime::UNIX_EPOCH.checked_sub(whole) } else { SystemTime::UNIX_EPOCH.checked_add(whole) };
    base.and_then(|base| base.checked_add(part)).unwrap_or(SystemTime::UNIX_EPOCH)
}

/// What a program is told.
pub(super) fn errno(error: &Error) -> Errno {
    match error {
        Error::NotFound => Errno::ENOENT,
        Error::NotFolder => Errno::ENOTDIR,
        Error::NotFile => Errno::EISDIR,
        Error::Unsupported { .. } => Errno::EOPNOTSUPP,
        _ => Errno::EIO,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn times_before_and_behind_what_fits() {
        let second = Duration::from_secs(1);
        assert_eq!(time(0), SystemTime::UNIX_EPOCH);
        assert_eq!(time(1_500_000_000), SystemTime::UNIX_EPOCH + second + second / 2);
        assert_eq!(time(-500_000_000), SystemTime::UNIX_EPOCH - second / 2);
        assert_eq!(time(-11_644_473_600 * 1_000_000_000), SystemTime::UNIX_EPOCH - Duration::from_secs(11_644_473_600));
        assert!(time(i128::MAX) > SystemTime::UNIX_EPOCH);
        assert!(time(i128::MIN) < SystemTime::UNIX_EPOCH);
    }

    #[test]
    fn sizes_stay_signed_and_small_files_are_not_sparse() {
        assert_eq!(size(&Node::plain(Kind::File, u64::MAX, 0)), i64::MAX.unsigned_abs());
        assert_eq!((blocks(0), blocks(1), blocks(4096)), (0, 1, 8));
        assert_eq!(blocks(1 << 20), 2047);
    }
}
