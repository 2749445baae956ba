//! The command line: one file a command, each with its arguments and a `run` that tells how it went.

mod cat;
mod check;
mod export;
mod info;
mod ls;
mod map;
mod mount;
mod out;
mod owner;
mod recover;
mod scan;
mod trace;

use crate::case::{Case, Options};
use crate::locator::{self, Locator};
use crate::mapfile::MapArg;
use crate::progress::Progress;
use anyhow::{Result, bail};
use clap::{Args, Parser, Subcommand};
use out::Out;
use rustix::fs::FileType;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// How a command ended; the exit code of the process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    /// What was asked for is whole and sound.
    #[default]
    Sound,
    /// It came with loss or doubt.
    Doubt,
    /// It failed.
    Failed,
}

impl Outcome {
    /// `Doubt` if something is missing or not sound.
    #[must_use]
    pub fn doubt_if(doubt: bool) -> Self {
        if doubt { Self::Doubt } else { Self::Sound }
    }

    fn code(self) -> ExitCode {
        ExitCode::from(match self {
            Self::Sound => 0,
            Self::Doubt => 1,
            Self::Failed => 2,
        })
    }
}

const EXIT_CODES: &str = "\
LOCATOR is IMAGE or IMAGE::PATH; `vdrecover ls IMAGE` shows the paths. Numbers take 0x and K, M, G, T.
Exit code: 0 what was asked for is whole and sound; 1 it came with loss or doubt; 2 it failed.
What was deleted counts only where it was asked for (found/, --what found), and the LUN of a raw device
mapping, which never was in the image, only where its bytes were (cat, export of it).
Inputs are opened read-only and never written.";

/// Finds, reads and hands back what is on VM disk images and datastores, without a hypervisor.
#[derive(Debug, Parser)]
#[command(name = "vdrecover", version, about, after_help = EXIT_CODES, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    global: Global,
}

/// What every command takes.
#[derive(Clone, Debug, Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is an option of its own that a user sets by name")]
struct Global {
    /// Results as JSON Lines on stdout; the schema is in docs/json.md
    #[arg(long, global = true)]
    json: bool,
    /// No progress and no hints on stderr; errors are still told
    #[arg(long, short, global = true)]
    quiet: bool,
    /// Threads to use; the answer is the same for any number
    #[arg(long, global = true, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
    /// A further extent or member, or a folder in which parents and extents may lie (repeatable)
    #[arg(long, global = true, value_name = "FILE|DIR")]
    with: Vec<PathBuf>,
    /// Follow the names that images give of parents and extents wherever they lead: absolute, through `..`, through
    /// links. Only for images that you trust: whoever made one can have any file of this machine read
    #[arg(long, global = true)]
    allow_outside: bool,
    /// A ddrescue map of an input: every status but + is lost (repeatable)
    #[arg(long = "mapfile", global = true, value_name = "IMAGE=MAP[@SHIFT]")]
    maps: Vec<OsString>,
    /// Search plain files through a memory mapping: faster, but a bad sector or a file cut short ends the program
    #[arg(long, global = true)]
    mmap: bool,
    /// Search inputs from end to end for datastores even where something was recognised: a device can be
    /// formatted over, and hold what was there before
    #[arg(long, global = true)]
    deep: bool,
    /// A folder, not beside the evidence, in which sweeps and hashes are kept for later commands
    #[arg(long, global = true, value_name = "DIR")]
    case: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Inventory and health, and what to do next
    Scan(scan::Command),
    /// Compare all structures with each other, and tell every contradiction
    Check(check::Command),
    /// What an image is, layer by layer
    Info(info::Command),
    /// List what is in it
    Ls(ls::Command),
    /// Write a file's or a disk's bytes to stdout
    Cat(cat::Command),
    /// Take out a file, a folder, a disk or a VM
    Export(export::Command),
    /// Take out everything that can be had, live and lost, in one go
    Recover(recover::Command),
    /// Show everything as a read-only file system
    Mount(mount::Command),
    /// Where each range of a file or disk lives; with --want, what of the device a rescue should read first
    Map(map::Command),
    /// Follow one byte down to the device
    Trace(trace::Command),
    /// Who has a byte of the device (--offset), or each of a list of bad sectors (--list): volume, file, VM, guest disk,
    /// structure, or nobody
    Owner(owner::Command),
    /// The formats that are recognised
    Formats,
}

/// Runs the program on the process's own arguments.
#[must_use]
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let code = if error.use_stderr() { Outcome::Failed } else { Outcome::Sound };
            // Nothing can be told of a terminal that is gone.
            let _ = error.print();
            return code.code();
        }
    };
    let mut out = Out::new(cli.global.json, cli.global.quiet);
    match run(&cli, &mut out).and_then(|outcome| out.flush().map(|()| outcome)) {
        Ok(outcome) => outcome.code(),
        // Whoever reads wants no more: that is no failure.
        Err(error) if out::is_closed(&error) => Outcome::Sound.code(),
        Err(error) => {
            out.error(&format!("{error:#}"));
            Outcome::Failed.code()
        }
    }
}

fn run(cli: &Cli, out: &mut Out) -> Result<Outcome> {
    if let Some(threads) = cli.global.threads {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads.into());
        pool.build_global()?;
    }
    let global = &cli.global;
    match &cli.command {
        Command::Scan(command) => scan::run(command, global, out),
        Command::Check(command) => check::run(command, global, out),
        Command::Info(command) => info::run(command, global, out),
        Command::Ls(command) => ls::run(command, global, out),
        Command::Cat(command) => cat::run(command, global, out),
        Command::Export(command) => export::run(command, global, out),
        Command::Recover(command) => recover::run(command, global, out),
        Command::Mount(command) => mount::run(command, global, out),
        Command::Map(command) => map::run(command, global, out),
        Command::Trace(command) => trace::run(command, global, out),
        Command::Owner(command) => owner::run(command, global, out),
        Command::Formats => info::formats(out),
    }
}

impl Global {
    fn progress(&self) -> Progress {
        Progress::on_terminal(self.quiet)
    }

    /// Opens a case of these inputs. `sweep` searches inputs in which nothing is recognised.
    fn open(&self, inputs: &[PathBuf], sweep: bool, out: &mut Out) -> Result<Case> {
        let maps = self.map_args()?;
        for map in &maps {
            locator::check_exists(&map.image)?;
        }
        let options = Options {
            inputs: inputs.to_vec(),
            with: self.with.clone(),
            maps,
            sweep,
            deep: self.deep,
            keep: self.case.clone(),
            mmap: self.mmap,
            outside: self.allow_outside,
        };
        let progress = self.progress();
        let case = Case::open(&options, &progress)?;
        progress.finish();
        if case.sources.all().iter().flat_map(|source| source.files()).any(is_stdout) {
            bail!("standard output is one of the inputs; nothing is written there, send it to another file");
        }
        for (path, error) in &case.failed {
            out.error(&format!("{}: {error}", path.display()));
        }
        Ok(case)
    }

    /// Compares the files of each datastore with each other, so that whoever reads one is told what contradicts it.
    fn compare(&self, case: &Case) {
        let progress = self.progress();
        crate::audit::compare(case, &progress);
        progress.finish();
    }

    fn map_args(&self) -> Result<Vec<MapArg>> {
        self.maps.iter().map(|arg| MapArg::parse(arg)).collect()
    }

    /// Opens the image of a locator.
    fn open_at(&self, locator: &Locator, out: &mut Out) -> Result<Case> {
        self.open(std::slice::from_ref(&locator.image), locator.path.is_some(), out)
    }

    fn thread_count(&self) -> usize {
        self.threads.map_or_else(rayon::current_num_threads, usize::from)
    }
}

/// Whether stdout was redirected into this file or device.
fn is_stdout(path: &Path) -> bool {
    let (Ok(stdout), Ok(file)) = (rustix::fs::fstat(rustix::stdio::stdout()), rustix::fs::stat(path)) else {
        return false;
    };
    let is_device = FileType::from_raw_mode(file.st_mode) == FileType::BlockDevice;
    (stdout.st_dev, stdout.st_ino) == (file.st_dev, file.st_ino)
        || is_device
            && FileType::from_raw_mode(stdout.st_mode) == FileType::BlockDevice
            && stdout.st_rdev == file.st_rdev
}

/// Parses a number of bytes for clap.
fn size(text: &str) -> Result<u64, String> {
    crate::number::parse_size(text).map_err(|error| format!("{error:#}"))
}
