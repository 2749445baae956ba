//! The place of one output: a name in an open folder, and the names beside it that an unfinished one uses.

use super::Evidence;
use super::refused::Refused;
use anyhow::Context as _;
use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags, RenameFlags, fstatvfs};
use rustix::io::Errno;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Longest name that Linux file systems take.
pub(crate) const NAME_MAX: usize = 255;
/// An output that is not finished yet.
const PART: &str = ".vdrecover-part";
/// Of an earlier try.
const OLD: &str = ".vdrecover-old";
/// How far it is.
const STATE: &str = ".vdrecover-part.state";

/// Where an output goes. All steps are relative to one open folder, so that no link that is planted or moved
/// meanwhile can lead them elsewhere.
#[derive(Clone, Debug)]
pub(crate) struct Slot {
    dir: Arc<OwnedFd>,
    name: OsString,
    shown: PathBuf,
    /// What no step may touch, whatever name it has.
    evidence: Evidence,
}

impl Slot {
    /// For a path that the user gave.
    pub(crate) fn at(path: &Path, evidence: &Evidence) -> anyhow::Result<Self> {
        // A link to an existing file means that file; replacing the link itself would surprise.
        let path = if path.is_symlink() && path.exists() { path.canonicalize()? } else { path.to_path_buf() };
        let name = path.file_name().with_context(|| format!("{} has no file name", path.display()))?;
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
        let dir = rustix::fs::open(parent, flags, Mode::empty())
            .with_context(|| format!("cannot open the folder {}", parent.display()))?;
        let name = name.to_os_string();
        Ok(Self { dir: Arc::new(dir), name, shown: path, evidence: evidence.clone() })
    }

    /// For a name in a folder that is open already.
    pub(crate) fn within(dir: Arc<OwnedFd>, name: OsString, shown: PathBuf, evidence: &Evidence) -> Self {
        Self { dir, name, shown, evidence: evidence.clone() }
    }

    /// For messages.
    pub(crate) fn shown(&self) -> &Path {
        &self.shown
    }

    /// Its name.
    pub(crate) fn name(&self) -> &OsStr {
        &self.name
    }

    /// The place of another output in the same folder, named after this one.
    pub(crate) fn beside(&self, suffix: &str) -> Self {
        self.named(self.longer(suffix))
    }

    /// The place of another output in the same folder.
    pub(crate) fn named(&self, name: OsString) -> Self {
        Self { shown: self.shown.with_file_name(&name), name, ..self.clone() }
    }

    pub(crate) fn exists(&self) -> bool {
        self.stat(&self.name)
    }

    fn stat(&self, name: &OsStr) -> bool {
        rustix::fs::statat(&*self.dir, name, AtFlags::SYMLINK_NOFOLLOW).is_ok()
    }

    /// Bytes that a user may still write there.
    pub(crate) fn free(&self) -> Option<u64> {
        let stat = fstatvfs(&*self.dir).ok()?;
        Some(stat.f_bavail.saturating_mul(stat.f_frsize))
    }

    /// Opens the unfinished output, made anew where there is none.
    pub(crate) fn open_part(&self) -> anyhow::Result<File> {
        self.open(&self.longer(PART), OFlags::CREATE | OFlags::RDWR)
    }

    /// As [`Slot::open_part`], and locks it against a second export.
    pub(crate) fn lock_part(&self) -> anyhow::Result<File> {
        let file = self.open_part()?;
        let busy = Refused::Busy { dest: self.shown.clone(), why: "another export is writing it" };
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) => Err(busy.into()),
            // File systems without locks can still be written to.
            _ => Ok(file),
        }
    }

    /// Opens the journal.
    pub(crate) fn open_state(&self, create: bool) -> anyhow::Result<File> {
        let create = if create { OFlags::CREATE } else { OFlags::empty() };
        self.open(&self.longer(STATE), create | OFlags::RDWR)
    }

    fn open(&self, name: &OsStr, flags: OFlags) -> anyhow::Result<File> {
        self.guard(name)?;
        let flags = flags | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let file = rustix::fs::openat(&*self.dir, name, flags, Mode::from_raw_mode(0o666));
        let shown = || format!("cannot create {}", self.shown.with_file_name(name).display());
        Ok(File::from(file.with_context(shown)?))
    }

    /// Refuses a name under which an input lies: it would be cut, replaced or removed.
    fn guard(&self, name: &OsStr) -> anyhow::Result<()> {
        let shown = || self.shown.with_file_name(name);
        self.evidence.guard(&self.dir, name).map_err(|why| Refused::Evidence { dest: shown(), why: why.into() }.into())
    }

    fn remove(&self, name: &OsStr) {
        // Nothing depends on it: what can't be removed is replaced by the next export.
        if self.guard(name).is_ok() {
            let _ = rustix::fs::unlinkat(&*self.dir, name, AtFlags::empty());
        }
    }

    /// Gives the finished part its name.
    pub(crate) fn commit(&self, force: bool) -> anyhow::Result<()> {
        let part = self.longer(PART);
        self.guard(&part)?;
        self.guard(&self.name)?;
        let done = if force {
            rustix::fs::renameat(&*self.dir, &part, &*self.dir, &self.name)
        } else {
            self.rename_new(&part)
        };
        match done {
            Ok(()) => Ok(()),
            Err(Errno::EXIST) => Err(Refused::Exists(self.shown.clone()).into()),
            Err(error) => Err(error).with_context(|| format!("cannot rename to {}", self.shown.display())),
        }
    }

    fn rename_new(&self, part: &OsStr) -> Result<(), Errno> {
        let dir = &*self.dir;
        match rustix::fs::renameat_with(dir, part, dir, &self.name, RenameFlags::NOREPLACE) {
            // Not every file system has this flag. A hard link fails as well if the name is taken.
            Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {}
            done => return done,
        }
        match rustix::fs::linkat(dir, part, dir, &self.name, AtFlags::empty()) {
            Ok(()) => rustix::fs::unlinkat(dir, part, AtFlags::empty()),
            Err(Errno::EXIST) => Err(Errno::EXIST),
            Err(_) if self.exists() => Err(Errno::EXIST),
            Err(_) => rustix::fs::renameat(dir, part, dir, &self.name),
        }
    }

    /// Renames an unfinished output of lines, to read it while it is written anew. Where an earlier try left
    /// one as well, the longer of the two.
    pub(crate) fn set_aside(&self) -> Option<File> {
        let (part, old) = (self.longer(PART), self.longer(OLD));
        let size =
            |name| rustix::fs::statat(&*self.dir, name, AtFlags::SYMLINK_NOFOLLOW).map_or(-1, |stat| stat.st_size);
        self.guard(&part).and_then(|()| self.guard(&old)).ok()?;
        if size(&part) >= size(&old) {
            rustix::fs::renameat(&*self.dir, &part, &*self.dir, &old).ok()?;
        }
        self.open(&old, OFlags::RDONLY).ok()
    }

    /// Removes what was set aside.
    pub(crate) fn remove_old(&self) {
        self.remove(&self.longer(OLD));
    }

    /// Removes the unfinished output.
    pub(crate) fn remove_part(&self) {
        self.remove(&self.longer(PART));
    }

    /// Removes the journal.
    pub(crate) fn remove_state(&self) {
        self.remove(&self.longer(STATE));
    }

    /// Makes the names themselves survive a power failure.
    pub(crate) fn sync_dir(&self) {
        // Some file systems refuse to sync a folder; the file itself is synced before.
        let _ = rustix::fs::fsync(&*self.dir);
    }

    /// The name with `suffix`, shortened and told apart by a digest where that would be too long.
    fn longer(&self, suffix: &str) -> OsString {
        let name = self.name.as_bytes();
        if name.len() + STATE.len() <= NAME_MAX {
            return OsString::from_vec([name, suffix.as_bytes()].concat());
        }
        let digest = crate::digest::hex(&crate::digest::sha256(name)[..8]);
        let head = String::from_utf8_lossy(name).chars().take(50).collect::<String>();
        OsString::from(format!("{head}~{digest}{suffix}"))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use std::io::Write as _;

    fn put(slot: &Slot, text: &str, force: bool) -> anyhow::Result<()> {
        slot.open_part()?.write_all(text.as_bytes())?;
        slot.commit(force)
    }

    #[test]
    fn replaces_only_when_told() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        let slot = Slot::at(&path, &Evidence::default()).unwrap();
        put(&slot, "one", false).unwrap();
        let refused = put(&slot, "two", false).unwrap_err();
        assert!(matches!(refused.downcast_ref(), Some(Refused::Exists(_))));
        assert_eq!(std::fs::read(&path).unwrap(), b"one");
        put(&slot, "two", true).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"two");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn two_exports_do_not_mix() {
        let dir = tempfile::tempdir().unwrap();
        let slot = Slot::at(&dir.path().join("x"), &Evidence::default()).unwrap();
        let _first = slot.lock_part().unwrap();
        let refused = slot.lock_part().unwrap_err();
        assert!(matches!(refused.downcast_ref(), Some(Refused::Busy { .. })));
    }

    #[test]
    fn a_planted_link_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(dir.path().join("victim"), dir.path().join("x.vdrecover-part")).unwrap();
        assert!(Slot::at(&dir.path().join("x"), &Evidence::default()).unwrap().open_part().is_err());
        assert!(!dir.path().join("victim").exists());
    }

    #[test]
    fn the_longest_name_still_has_a_part() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ä".repeat(127));
        put(&Slot::at(&path, &Evidence::default()).unwrap(), "x", false).unwrap();
        assert_eq!(std::fs::read(path).unwrap(), b"x");
    }
}
