//! Opening an input, and the system calls on it. All of them read.

use super::Identity;
use super::extents::{Extent, ExtentKind};
use super::file::Device;
use anyhow::{Result, anyhow, bail};
use rustix::fd::OwnedFd;
use rustix::fs::{self, Advice, FileType, Mode, OFlags, SeekFrom, Stat};
use rustix::io::Errno;
use std::num::NonZeroU64;
use std::ops::Range;
use std::path::Path;
use std::time::{Duration, SystemTime};

/// What is known of an input from opening it.
#[derive(Clone, Debug)]
pub(super) struct Facts {
    pub(super) len: u64,
    pub(super) device: bool,
    pub(super) modified: Option<SystemTime>,
    pub(super) identity: Identity,
    pub(super) sector: u32,
}

/// A file or block device, open for reading.
#[derive(Debug)]
pub(super) struct Input {
    pub(super) fd: OwnedFd,
    pub(super) facts: Facts,
}

/// The sector size of whatever does not tell its own.
const SECTOR: u32 = 512;

impl Input {
    /// Opens `path`, following links: it is what the user named.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let input = Self::open_any(path, OFlags::empty())?;
        if input.facts.len == 0 {
            let (what, hint) = if input.facts.device {
                ("has no medium", "insert one, or give another device")
            } else {
                ("is empty", "give the file that holds the data")
            };
            bail!("{}: {what}: 0 bytes; {hint}", path.display());
        }
        Ok(input)
    }

    /// Opens a further part of a split image: a regular file, never through a link, empty or not.
    pub(super) fn open_part(path: &Path) -> Result<Self> {
        let input = Self::open_any(path, OFlags::NOFOLLOW)?;
        if input.facts.device {
            bail!("{}: is a block device, wanted a part of a split image", path.display());
        }
        Ok(input)
    }

    fn open_any(path: &Path, more: OFlags) -> Result<Self> {
        // Some devices act on being opened (a tape rewinds, a watchdog starts): look before. Then look again at
        // what was opened, since a path can be given another meaning in between.
        let before = fs::stat(path).map_err(|error| refused(path, error))?;
        check_kind(path, &before)?;
        let fd = open_to_read(path, more).map_err(|error| refused(path, error))?;
        let stat = fs::fstat(&fd).map_err(|error| refused(path, error))?;
        check_kind(path, &stat)?;
        // Only so that a FIFO could not hold us up. Reads of files and devices are meant to wait.
        let _ = fs::fcntl_setfl(&fd, OFlags::empty());
        let facts = facts(path, &fd, &stat)?;
        Ok(Self { fd, facts })
    }

    fn seek(&self, to: SeekFrom) -> Result<u64, Errno> {
        fs::seek(&self.fd, to)
    }

    /// What the file has left of its length at open.
    fn len_now(&self) -> u64 {
        let now = fs::fstat(&self.fd).ok().and_then(|stat| u64::try_from(stat.st_size).ok());
        now.unwrap_or(self.facts.len).min(self.facts.len)
    }
}

/// The one place that opens inputs. The access mode is not a parameter.
fn open_to_read(path: &Path, more: OFlags) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY | more;
    // Only an owner may leave the access time alone.
    fs::open(path, flags | OFlags::NOATIME, Mode::empty()).or_else(|error| match error {
        Errno::PERM => fs::open(path, flags, Mode::empty()),
        error => Err(error),
    })
}

fn check_kind(path: &Path, stat: &Stat) -> Result<()> {
    let path = path.display();
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile | FileType::BlockDevice => Ok(()),
        FileType::Directory => bail!("{path}: is a directory; give the images inside it"),
        FileType::Fifo => bail!("{path}: is a pipe, which can't be read at an offset; write it to a file first"),
        FileType::Socket => bail!("{path}: is a socket, which can't be read at an offset; give a file or a device"),
        FileType::CharacterDevice => {
            bail!("{path}: is a character device, which can't be read at an offset; give the block device")
        }
        FileType::Symlink | FileType::Unknown => bail!("{path}: is neither a file nor a block device"),
    }
}

fn refused(path: &Path, error: Errno) -> anyhow::Error {
    let hint = match error {
        Errno::NOENT => "no such file; check the path".to_owned(),
        Errno::NOTDIR => "a part of the path is not a directory; check the path".to_owned(),
        Errno::ACCESS | Errno::PERM => "permission denied; run as a user who may read it, or as root".to_owned(),
        Errno::LOOP => "is a symbolic link, or one of too many; give the file itself".to_owned(),
        Errno::NXIO | Errno::NODEV => "there is no device behind it; check that it is attached".to_owned(),
        Errno::NOMEDIUM => "has no medium; insert one".to_owned(),
        Errno::MFILE | Errno::NFILE => "too many open files; raise the limit with ulimit -n".to_owned(),
        error => error.to_string(),
    };
    anyhow!("{}: can't be opened: {hint}", path.display())
}

fn facts(path: &Path, fd: &OwnedFd, stat: &Stat) -> Result<Facts> {
    let device = FileType::from_raw_mode(stat.st_mode) == FileType::BlockDevice;
    if device {
        // The offset of a device's end is its size; it needs no request of its own.
        let len = fs::seek(fd, SeekFrom::End(0))
            .map_err(|error| anyhow!("{}: the size of the device can't be found: {error}", path.display()))?;
        let sector = fs::ioctl_blksszget(fd).ok().filter(|size| size.is_power_of_two()).unwrap_or(SECTOR);
        let identity = Identity::Device { rdev: stat.st_rdev };
        return Ok(Facts { len, device, modified: None, identity, sector });
    }
    let len = u64::try_from(stat.st_size)
        .map_err(|_| anyhow!("{}: has a length of {} bytes", path.display(), stat.st_size))?;
    let identity = Identity::File { dev: stat.st_dev, ino: stat.st_ino };
    Ok(Facts { len, device, modified: modified(stat), identity, sector: SECTOR })
}

fn modified(stat: &Stat) -> Option<SystemTime> {
    let nanos = Duration::from_nanos(stat.st_mtime_nsec);
    let whole = match u64::try_from(stat.st_mtime) {
        Ok(after) => SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(after)),
        Err(_) => SystemTime::UNIX_EPOCH.checked_sub(Duration::from_secs(stat.st_mtime.unsigned_abs())),
    };
    whole?.checked_add(nanos)
}

impl Device for Input {
    fn len(&self) -> u64 {
        self.facts.len
    }

    fn sector(&self) -> u64 {
        self.facts.sector.into()
    }

    fn pread(&self, at: u64, buf: &mut [u8]) -> Result<usize, Errno> {
        rustix::io::pread(&self.fd, buf, at)
    }

    fn may_have_holes(&self) -> bool {
        !self.facts.device && self.seek(SeekFrom::Hole(0)).is_ok_and(|hole| hole < self.facts.len)
    }

    /// The file position that these seeks move is used by nothing: reads name their own.
    fn extent(&self, at: u64) -> Extent {
        let len = self.facts.len;
        let rest = Extent { end: len, kind: ExtentKind::Data };
        match self.seek(SeekFrom::Data(at)) {
            Ok(data) if data > at => Extent { end: data.min(len), kind: ExtentKind::Hole },
            Ok(_) => match self.seek(SeekFrom::Hole(at)) {
                // A hole at `at` that was data a moment ago: the file changes under us. Let a read tell.
                Ok(hole) if hole > at => Extent { end: hole.min(len), kind: ExtentKind::Data },
                _ => rest,
            },
            // No data behind `at`: a hole up to the end, wherever that is by now.
            Err(Errno::NXIO) => match self.len_now() {
                now if now > at => Extent { end: now, kind: ExtentKind::Hole },
                _ => Extent { end: len, kind: ExtentKind::Gone },
            },
            // The file system can't tell: all of it is data.
            Err(_) => rest,
        }
    }

    fn advise(&self, soon: &Range<u64>) {
        let len = soon.end.saturating_sub(soon.start);
        if let Some(len) = NonZeroU64::new(len) {
            // Advice: if it is not taken, reads are slower, nothing else.
            let _ = fs::fadvise(&self.fd, soon.start, Some(len), Advice::WillNeed);
        }
    }
}
