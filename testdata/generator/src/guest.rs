//! Guest file systems, made by e2fsprogs: `mkfs.ext4` and `debugfs` must be installed.
//!
//! Files are written through `debugfs` instead of `mkfs.ext4 -d`, which would copy the change times of this machine.

use crate::Device;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

/// An ext4 file system in a scratch file, and what is in it.
#[derive(Debug)]
pub struct Guest {
    scratch: PathBuf,
    image: PathBuf,
    files: BTreeMap<String, Vec<u8>>,
}

impl Guest {
    /// An empty file system of `len` bytes. `time` is Unix seconds, `number` makes its UUID.
    pub fn new(scratch: &Path, len: u64, label: &str, number: u8, time: u64) -> io::Result<Self> {
        let image = scratch.join(format!("{label}.ext4"));
        Device::new(len).save(&image)?;
        let uuid = format!("5b1d7c20-9a4e-4f63-8c11-2e7d903fa6{number:02x}");
        let done = Command::new("mkfs.ext4")
            .args(["-q", "-F", "-b", "4096", "-L", label, "-U", &uuid])
            .args(["-m", "0", "-I", "256", "-N", "2048", "-J", "size=4"])
            // What the e2fsprogs of the day turn on by default is spelled out, so that the image does not change.
            .args(["-O", "none,has_journal,ext_attr,dir_index,filetype,extent,64bit,flex_bg,sparse_super"])
            .args(["-O", "large_file,huge_file,dir_nlink,extra_isize,metadata_csum,resize_inode"])
            .args(["-E", &format!("hash_seed={uuid},lazy_itable_init=0,lazy_journal_init=0,nodiscard,root_owner=0:0")])
            .arg(&image)
            .env("E2FSPROGS_FAKE_TIME", time.to_string())
            .env("MKE2FS_CONFIG", "/dev/null")
            .output()?;
        check("mkfs.ext4", &done)?;
        Ok(Self { scratch: scratch.into(), image, files: BTreeMap::new() })
    }

    /// Writes and removes files. An existing file is replaced; directories are made as needed.
    pub fn change(&mut self, time: u64, write: &[(String, Vec<u8>)], remove: &[&str]) -> io::Result<()> {
        let mut script = String::new();
        let mut have: Vec<String> = self.files.keys().flat_map(|p| parents(p)).collect();
        for path in remove {
            let known = self.files.remove(*path).is_some();
            assert!(known, "{path} is not in the guest");
            let _ = writeln!(script, "rm /{path}");
        }
        for (n, (path, bytes)) in write.iter().enumerate() {
            for dir in parents(path) {
                if !have.contains(&dir) {
                    let _ = writeln!(script, "mkdir /{dir}");
                    have.push(dir);
                }
            }
            if self.files.contains_key(path) {
                let _ = writeln!(script, "rm /{path}");
            }
            let source = self.scratch.join(format!("source-{n}"));
            fs::write(&source, bytes)?;
            let _ = writeln!(script, "write {} /{path}", source.display());
            let _ = writeln!(script, "set_inode_field /{path} mode 0100644");
            self.files.insert(path.clone(), bytes.clone());
        }
        let commands = self.scratch.join("commands");
        fs::write(&commands, script)?;
        let done = Command::new("debugfs")
            .arg("-w")
            .arg("-f")
            .arg(&commands)
            .arg(&self.image)
            .env("E2FSPROGS_FAKE_TIME", time.to_string())
            .output()?;
        check("debugfs", &done)?;
        // debugfs reports a failed command and goes on.
        let said = String::from_utf8_lossy(&done.stderr);
        let faults: Vec<&str> = said.lines().filter(|l| !l.starts_with("debugfs ") && !l.is_empty()).collect();
        if faults.is_empty() { Ok(()) } else { Err(io::Error::other(format!("debugfs: {}", faults.join("; ")))) }
    }

    /// The file system as it is now.
    pub fn device(&self) -> io::Result<Device> {
        Device::load(&self.image)
    }

    /// Its files as they are now.
    #[must_use]
    pub fn files(&self) -> &BTreeMap<String, Vec<u8>> {
        &self.files
    }
}

fn parents(path: &str) -> Vec<String> {
    path.match_indices('/').map(|(at, _)| path[..at].to_string()).collect()
}

fn check(tool: &str, done: &std::process::Output) -> io::Result<()> {
    if done.status.success() {
        return Ok(());
    }
    Err(io::Error::other(format!("{tool}: {}", String::from_utf8_lossy(&done.stderr).trim())))
}
