//! A tree as a read-only file system of the machine, through FUSE.
//!
//! Bytes that can't be had are errors, never zeros that look like data. Through the page cache a read that
//! touches a gap fails as a whole; the kernel then reads page by page, so that a gap costs its pages. A short
//! read is no answer there: the kernel takes it for the end of the file. [`Gaps::Exact`] goes around the page
//! cache and is exact to the byte; [`Gaps::Fill`] delivers zeros, because the user asked for them.
//!
//! What is mounted was made by others. It is mounted without devices, without set-user-id and without execution.
//! Symbolic links are as on disk: an absolute one leads into the machine's own file system, as it does in every
//! mount of a foreign disk.

mod attr;
mod background;
mod fuse;
mod handles;
mod inode;
mod name;
mod point;
mod xattr;

pub use background::{Background, Started, is_child};

use anyhow::{Context, Result, anyhow};
use fuser::{Config, MountOption, Session, SessionACL, SessionUnmounter};
use rustix::mount::UnmountFlags;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use vdrecover_formats::Tree;

/// How to mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountOptions {
    /// An empty directory.
    pub mount_point: PathBuf,
    /// Let other users in. The modes and owners of the files then apply to them.
    pub allow_other: bool,
    /// What a read gives where bytes can't be had.
    pub gaps: Gaps,
    /// Show everything as owned by this user.
    pub uid: Option<u32>,
    /// Show everything as owned by this group.
    pub gid: Option<u32>,
    /// Threads that answer; 0 for as many as the machine has cores.
    pub threads: usize,
    /// What the table of mounts names as the source.
    pub name: String,
}

impl MountOptions {
    /// The usual mount: for this user alone, gaps are errors.
    #[must_use]
    pub fn new(mount_point: impl Into<PathBuf>) -> Self {
        Self {
            mount_point: mount_point.into(),
            allow_other: false,
            gaps: Gaps::Fail,
            uid: None,
            gid: None,
            threads: 0,
            name: "vdrecover".to_owned(),
        }
    }
}

/// What a read gives where bytes can't be had.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Gaps {
    /// An error for each page of the page cache that a gap touches.
    #[default]
    Fail,
    /// What lies before the gap, then an error, to the byte. Without page cache: slow for small reads, no `mmap`.
    Exact,
    /// Zeros.
    Fill,
}

/// Mounts `tree` and serves it until it is unmounted, by `umount` or by SIGINT, SIGTERM or SIGHUP.
///
/// What is still in use at the first signal is detached from the folder and served until it is closed; a second
/// signal ends the process.
///
/// In a process that [`Background`] started, the waiting parent hears that the mount is there.
///
/// # Errors
/// The mount point is not usable, or the machine does not let us mount.
pub fn mount(tree: Arc<dyn Tree>, options: &MountOptions) -> Result<()> {
    // Before the mount is there: a signal in between would leave it behind.
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP]).context("waiting for signals")?;
    let handle = signals.handle();
    let mut mounted = Mounted::new(tree, options)?;
    let mut unmounter = mounted.unmounter.take();
    let point = mounted.point.clone();
    thread::Builder::new().name("signals".to_owned()).spawn(move || {
        for signal in signals.forever() {
            match unmounter.take() {
                Some(unmounter) => {
                    if let Err(error) = unmount(unmounter, &point) {
                        eprintln!("{}: can't be unmounted: {error}; run umount -l", point.display());
                    }
                }
                // Detached before, but something still has a file open. Whoever asks twice means it.
                None => std::process::exit(128 + signal),
            }
        }
    })?;
    background::tell_ready();
    let ended = mounted.wait();
    handle.close();
    ended
}

/// A tree that is mounted; dropping it unmounts.
#[derive(Debug)]
pub struct Mounted {
    point: PathBuf,
    unmounter: Option<SessionUnmounter>,
    server: Option<JoinHandle<io::Result<()>>>,
}

impl Mounted {
    /// Mounts `tree` and serves it from threads of this process.
    ///
    /// # Errors
    /// As [`mount`].
    pub fn new(tree: Arc<dyn Tree>, options: &MountOptions) -> Result<Self> {
        let point = point::check(&options.mount_point)?;
        let config = config(options);
        let server = fuse::Server::new(tree, options);
        let mut session = Session::new(server, &point, &config).map_err(|error| refused(&point, &error))?;
        let unmounter = Some(session.unmount_callable());
        let server = thread::Builder::new().name("mount".to_owned()).spawn(move || session.run())?;
        Ok(Self { point, unmounter, server: Some(server) })
    }

    /// Where.
    #[must_use]
    pub fn point(&self) -> &Path {
        &self.point
    }

    /// Waits until someone unmounts it.
    ///
    /// # Errors
    /// The connection to the kernel failed.
    pub fn wait(mut self) -> Result<()> {
        self.join()
    }

    fn join(&mut self) -> Result<()> {
        let Some(server) = self.server.take() else { return Ok(()) };
        let ended = server.join().map_err(|_| anyhow!("{}: serving the mount panicked", self.point.display()))?;
        ended.with_context(|| format!("{}: serving the mount", self.point.display()))
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if let Some(unmounter) = self.unmounter.take()
            && unmount(unmounter, &self.point).is_ok()
        {
            let _ = self.join();
        }
    }
}

/// Unmounts. What is still in use is detached: nothing new can be opened, and the rest ends by itself.
fn unmount(mut unmounter: SessionUnmounter, point: &Path) -> io::Result<()> {
    match unmounter.unmount() {
        Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
            Ok(rustix::mount::unmount(point, UnmountFlags::DETACH)?)
        }
        done => done,
    }
}

fn config(options: &MountOptions) -> Config {
    // The name goes into a list of options that commas separate.
    let name = options.name.replace(|c: char| c == ',' || c == '\\' || c.is_control(), "_");
    let mut config = Config::default();
    config.mount_options = vec![
        MountOption::FSName(name),
        MountOption::Subtype("vdrecover".to_owned()),
        MountOption::RO,
        MountOption::NoSuid,
        MountOption::NoDev,
        MountOption::NoExec,
        MountOption::NoAtime,
    ];
    if options.allow_other {
        // Alone, the user who mounts reads everything, whatever modes a damaged or foreign disk has. Other users
        // get what the modes give them.
        config.mount_options.push(MountOption::DefaultPermissions);
        config.acl = SessionACL::All;
    }
    let cores = || thread::available_parallelism().map_or(4, usize::from);
    config.n_threads = Some(if options.threads == 0 { cores().clamp(2, 16) } else { options.threads });
    config.clone_fd = true;
    config
}

fn refused(point: &Path, error: &io::Error) -> anyhow::Error {
    let hint = match error.kind() {
        io::ErrorKind::PermissionDenied => "run as root, or install fusermount3 (package fuse3)",
        io::ErrorKind::NotFound => "install fusermount3 (package fuse3), or run as root",
        io::ErrorKind::ResourceBusy => "something else is mounted or at work there; give another directory",
        io::ErrorKind::InvalidInput => "the kernel refused an option of the mount",
        _ => "for --allow-other as a user, /etc/fuse.conf needs user_allow_other",
    };
    anyhow!("{}: can't be mounted: {error}; {hint}", point.display())
}
