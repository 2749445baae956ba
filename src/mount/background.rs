//! A mount that outlives the command: the program starts itself again and waits until the mount is there.
//!
//! A process with threads can't be forked safely, and everything that opened the images would have to be done
//! twice. So a new process does all the work, and the old one only waits for a word on a pipe.

use anyhow::{Context, Result, bail};
use rustix::stdio::{dup2_stderr, dup2_stdout};
use std::ffi::OsStr;
use std::io::{Read, Write};
use std::process::{Command, ExitStatus, Stdio};

/// Set for the process in the background: its standard output is the pipe.
const CHILD: &str = "VDRECOVER_MOUNT_CHILD";
/// The word.
const READY: &[u8] = b"ready\n";

/// What became of a mount in the background.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Started {
    /// It is there, served by this process.
    Ready {
        /// Signal it to unmount.
        pid: u32,
    },
    /// It ended before; it has said why on standard error.
    Failed(ExitStatus),
}

/// A mount in the background that is to be started.
#[derive(Debug)]
pub struct Background(Command);

impl Background {
    /// This program with `args`: those behind its name, which must lead to [`super::mount`] in the foreground.
    ///
    /// # Errors
    /// The program's own file can't be found.
    pub fn new(args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Result<Self> {
        let program = std::env::current_exe().context("finding this program to start it again")?;
        let mut command = Command::new(program);
        command.args(args);
        Ok(Self(command))
    }

    /// With a variable in its environment.
    #[must_use]
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.0.env(name, value);
        self
    }

    /// Starts it, and waits until it has mounted or ended. Its standard error is ours until then.
    ///
    /// # Errors
    /// The program can't be started again.
    pub fn start(mut self) -> Result<Started> {
        let command = self.0.env(CHILD, "1").stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = command.spawn().context("starting the mount in the background")?;
        let Some(mut pipe) = child.stdout.take() else { bail!("the mount in the background has no pipe") };
        let mut word = Vec::new();
        // Ends when the child closes the pipe, by its word or by its death.
        pipe.read_to_end(&mut word).context("waiting for the mount in the background")?;
        if word.ends_with(READY) {
            return Ok(Started::Ready { pid: child.id() });
        }
        Ok(Started::Failed(child.wait().context("waiting for the mount in the background")?))
    }
}

/// Whether this process was started by a [`Background`], to mount and to stay.
#[must_use]
pub fn is_child() -> bool {
    std::env::var_os(CHILD).is_some()
}

/// In a process of the background: tells the one that waits, and lets go of its terminal and folder.
pub(super) fn tell_ready() {
    if !is_child() {
        return;
    }
    // Before the word: whoever hears it may count on all of this.
    let _ = rustix::process::setsid();
    let _ = std::env::set_current_dir("/");
    let mut out = std::io::stdout();
    // If nobody waits any more, the mount is there all the same.
    let _ = out.write_all(READY).and_then(|()| out.flush());
    if let Ok(null) = std::fs::OpenOptions::new().read(true).write(true).open("/dev/null") {
        let _ = dup2_stdout(&null);
        let _ = dup2_stderr(&null);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]
    use super::*;

    fn shell(script: &str) -> Started {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        Background(command).start().unwrap()
    }

    #[test]
    fn the_parent_waits_for_the_word() {
        let begun = std::time::Instant::now();
        let Started::Ready { pid } = shell("echo ready; exec >&-; sleep 30 2>&-") else { panic!("not ready") };
        assert!(begun.elapsed().as_secs() < 20, "goes on while the child lives");
        let pid = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    }

    #[test]
    fn a_child_that_dies_first_is_a_failure() {
        let Started::Failed(status) = shell("exit 7") else { panic!("ready") };
        assert_eq!(status.code(), Some(7));
    }
}
