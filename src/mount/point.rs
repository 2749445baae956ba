//! Is a directory fit to mount on, and does the machine have FUSE.

use anyhow::{Context, Result, anyhow, bail};
use rustix::fs::{AtFlags, CWD, FileType, StatxAttributes, StatxFlags};
use rustix::io::Errno;
use std::path::{Path, PathBuf};

/// The mount point as an absolute path without links.
pub(super) fn check(path: &Path) -> Result<PathBuf> {
    let shown = path.display();
    let stat =
        rustix::fs::statx(CWD, path, AtFlags::empty(), StatxFlags::BASIC_STATS).map_err(|error| match error {
            Errno::NOENT => anyhow!("{shown}: the mount point does not exist; create it with mkdir"),
            Errno::NOTCONN => {
                anyhow!("{shown}: a mount was left here whose process ended; remove it with fusermount3 -u {shown}")
            }
            Errno::ACCESS => anyhow!("{shown}: no permission to reach the mount point; give another, or run as root"),
            error => anyhow!("{shown}: the mount point can't be examined: {error}"),
        })?;
    if FileType::from_raw_mode(stat.stx_mode.into()) != FileType::Directory {
        bail!("{shown}: the mount point is not a directory; give an empty directory");
    }
    if stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT) {
        bail!("{shown}: something is mounted here already; unmount it, or give another directory");
    }
    let mut entries = std::fs::read_dir(path)
        .with_context(|| format!("{shown}: the mount point can't be listed; give another, or run as root"))?;
    if entries.next().is_some() {
        bail!("{shown}: the mount point is not empty, and a mount would hide what is in it; give an empty directory");
    }
    check_fuse(Path::new("/dev/fuse"))?;
    path.canonicalize().with_context(|| format!("{shown}: resolving the mount point"))
}

fn check_fuse(device: &Path) -> Result<()> {
    match std::fs::OpenOptions::new().read(true).write(true).open(device) {
        Ok(_) => Ok(()),
        Err(error) => {
            let hint = match error.kind() {
                std::io::ErrorKind::NotFound => {
                    "load the module with modprobe fuse, or give the container --device /dev/fuse"
                }
                std::io::ErrorKind::PermissionDenied => "run as root, or give your user access to it",
                _ => "load the module with modprobe fuse",
            };
            Err(anyhow!("{}: FUSE can't be used: {error}; {hint}", device.display()))
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn a_bad_mount_point_says_what_is_wrong() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("file"), "x").unwrap();
        let table = [
            (dir.path().join("none"), "does not exist; create it"),
            (dir.path().join("file"), "is not a directory"),
            (dir.path().to_owned(), "is not empty"),
            (PathBuf::from("/proc"), "something is mounted here already"),
        ];
        for (path, want) in table {
            let error = format!("{:#}", check(&path).unwrap_err());
            assert!(error.starts_with(path.to_str().unwrap()) && error.contains(want), "{error}");
            assert!(!error.contains('\n'), "{error}");
        }
    }

    #[test]
    fn a_machine_without_fuse_says_so() {
        let error = check_fuse(Path::new("/dev/none")).unwrap_err().to_string();
        assert!(error.starts_with("/dev/none: FUSE can't be used") && error.contains("modprobe"), "{error}");
    }
}
