//! What must never be written to: the inputs, whatever holds them, and what is made of them.

use super::refused::Refused;
use anyhow::Context as _;
use rustix::fs::AtFlags;
use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

/// Most devices below each other that are followed: partitions, loop devices, device-mapper.
const MAX_DEVICES: usize = 1024;

/// The inputs of a run, by identity and not by name: links and bind mounts do not hide them.
#[derive(Clone, Debug, Default)]
pub struct Evidence {
    /// Shared: every place that is written to knows them.
    files: Arc<BTreeSet<(u64, u64)>>,
    devices: BTreeSet<u64>,
    folders: Vec<PathBuf>,
}

impl Evidence {
    /// Of the inputs that the user gave: files, block devices, and folders with all that is in them.
    pub fn of<P: AsRef<Path>>(inputs: &[P]) -> anyhow::Result<Self> {
        let mut evidence = Self::default();
        for input in inputs {
            evidence.add(input.as_ref())?;
        }
        Ok(evidence)
    }

    /// One input more.
    pub fn add(&mut self, input: &Path) -> anyhow::Result<()> {
        let meta = fs::metadata(input).with_context(|| format!("cannot look at the input {}", input.display()))?;
        if meta.is_dir() {
            self.folders.push(fs::canonicalize(input)?);
        } else if meta.file_type().is_block_device() {
            self.devices.insert(meta.rdev());
        } else {
            Arc::make_mut(&mut self.files).insert((meta.dev(), meta.ino()));
        }
        Ok(())
    }

    /// Refuses `dest` if it is an input, lies in an input folder, or on a file system that lies on an input.
    pub fn check(&self, dest: &Path) -> anyhow::Result<()> {
        let refuse = |why: String| Err(Refused::Evidence { dest: dest.to_path_buf(), why }.into());
        if let Ok(meta) = fs::metadata(dest) {
            if self.files.contains(&(meta.dev(), meta.ino())) {
                return refuse("is one of the inputs".into());
            }
            if meta.file_type().is_block_device() && self.holds(meta.rdev()) {
                return refuse("is an input, or is on the same device as one".into());
            }
        }
        let home = existing(dest).with_context(|| format!("{}: a folder before .. does not exist", dest.display()))?;
        let home = fs::canonicalize(&home).with_context(|| format!("cannot look at {}", home.display()))?;
        if let Some(folder) = self.folders.iter().find(|folder| home.starts_with(folder)) {
            return refuse(format!("lies in the input folder {}", folder.display()));
        }
        let below = Below::of(fs::metadata(&home)?.dev());
        if below.devices.iter().any(|device| self.devices.contains(device))
            || below.files.iter().any(|file| self.files.contains(file))
        {
            return refuse("lies on a file system that is itself on an input".into());
        }
        Ok(())
    }

    /// Whether an open file is an input.
    pub(crate) fn is_input(&self, meta: &fs::Metadata) -> bool {
        self.files.contains(&(meta.dev(), meta.ino()))
    }

    /// Whether a name in an open folder may be written, replaced or removed; if not, why.
    pub(crate) fn guard(&self, dir: &OwnedFd, name: &OsStr) -> Result<(), &'static str> {
        if self.files.is_empty() {
            return Ok(());
        }
        match rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) if self.files.contains(&(stat.st_dev, stat.st_ino)) => Err("is one of the inputs"),
            _ => Ok(()),
        }
    }

    /// Whether writing to a block device would change an input.
    fn holds(&self, device: u64) -> bool {
        let below = Below::of(device);
        below.devices.iter().any(|device| self.devices.contains(device))
            || below.files.iter().any(|file| self.files.contains(file))
            || self.devices.iter().any(|input| Below::of(*input).devices.contains(&device))
            // A file system with evidence on it would be overwritten.
            || self.files.iter().any(|(dev, _)| Below::of(*dev).devices.contains(&device))
    }
}

/// The nearest folder on the way to `dest` that exists. `..` behind it could lead anywhere once the folders
/// between are made.
fn existing(dest: &Path) -> Option<PathBuf> {
    let absolute = std::path::absolute(dest).ok()?;
    let dir = absolute.ancestors().find(|path| path.is_dir())?;
    let rest = absolute.strip_prefix(dir).ok()?;
    let strays = rest.components().any(|part| part == Component::ParentDir);
    (!strays).then(|| dir.to_path_buf())
}

/// A block device and all that it is made of, as the kernel tells in sysfs.
#[derive(Debug, Default)]
struct Below {
    devices: BTreeSet<u64>,
    files: BTreeSet<(u64, u64)>,
}

impl Below {
    fn of(device: u64) -> Self {
        let mut below = Self::default();
        let mut todo = vec![device];
        while let Some(device) = todo.pop() {
            if below.devices.len() >= MAX_DEVICES || !below.devices.insert(device) {
                continue;
            }
            let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
            let Ok(sys) = fs::canonicalize(format!("/sys/dev/block/{major}:{minor}")) else { continue };
            if sys.join("partition").exists() {
                todo.extend(sys.parent().and_then(number));
            }
            let slaves = fs::read_dir(sys.join("slaves")).into_iter().flatten().flatten();
            todo.extend(slaves.filter_map(|slave| number(&slave.path())));
            if let Ok(backing) = fs::read_to_string(sys.join("loop/backing_file"))
                && let Ok(meta) = fs::metadata(backing.trim_end_matches('\n'))
            {
                below.files.insert((meta.dev(), meta.ino()));
                todo.push(if meta.file_type().is_block_device() { meta.rdev() } else { meta.dev() });
            }
        }
        below
    }
}

/// The device number that a sysfs folder names.
fn number(sys: &Path) -> Option<u64> {
    let text = fs::read_to_string(sys.join("dev")).ok()?;
    let (major, minor) = text.trim().split_once(':')?;
    Some(rustix::fs::makedev(major.parse().ok()?, minor.parse().ok()?))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn inputs_and_their_folders_are_safe() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::write(at("disk.img"), b"x").unwrap();
        fs::hard_link(at("disk.img"), at("other.img")).unwrap();
        std::os::unix::fs::symlink(at("disk.img"), at("link.img")).unwrap();
        fs::create_dir_all(at("set/inner")).unwrap();
        std::os::unix::fs::symlink(at("set"), at("door")).unwrap();
        let evidence = Evidence::of(&[at("disk.img"), at("set")]).unwrap();
        for bad in ["disk.img", "other.img", "link.img", "set", "set/new", "set/inner/a/b", "door/new", "x/../set/new"]
        {
            assert!(evidence.check(&at(bad)).is_err(), "{bad}");
        }
        for good in ["new.img", "settle", "a/b/c"] {
            evidence.check(&at(good)).unwrap();
        }
    }

    #[test]
    fn an_input_that_is_not_there_is_an_error() {
        assert!(Evidence::of(&["/nowhere/at/all"]).is_err());
    }
}
