//! `vdrecover mount`: everything as a read-only file system.

use super::out::Out;
use super::{Global, Outcome};
use crate::mount::{Background, Gaps, MountOptions, Started, mount};
use anyhow::{Context, Result, bail};
use clap::Args;
use serde_json::json;
use std::path::PathBuf;
use std::sync::Arc;

/// Arguments of `mount`.
#[derive(Debug, Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of the command line")]
pub(super) struct Command {
    /// Images, devices or folders, and last the empty folder to mount on
    #[arg(value_name = "IMAGE... DIR", required = true, num_args = 2..)]
    paths: Vec<PathBuf>,
    /// Stay in the foreground until Ctrl-C or umount
    #[arg(long)]
    foreground: bool,
    /// Let other users in; file modes then apply to them
    #[arg(long)]
    allow_other: bool,
    /// Reads end exactly at a gap, not at its page; slow for small reads
    #[arg(long, conflicts_with = "fill")]
    exact_gaps: bool,
    /// Zeros for what can't be had, instead of an error
    #[arg(long)]
    fill: bool,
    /// Show everything as owned by this user
    #[arg(long, value_name = "N")]
    uid: Option<u32>,
    /// Show everything as owned by this group
    #[arg(long, value_name = "N")]
    gid: Option<u32>,
}

pub(super) fn run(command: &Command, global: &Global, out: &mut Out) -> Result<Outcome> {
    let Some((point, images)) = command.paths.split_last().filter(|(_, images)| !images.is_empty()) else {
        bail!("mount takes at least one image, and the folder to mount on");
    };
    if !command.foreground && !crate::mount::is_child() {
        return background(point, out);
    }
    let case = global.open(images, true, out)?;
    global.compare(&case);
    let gaps = match (command.exact_gaps, command.fill) {
        (true, _) => Gaps::Exact,
        (_, true) => Gaps::Fill,
        _ => Gaps::Fail,
    };
    let name = images.first().map_or_else(String::new, |image| image.display().to_string());
    let options = MountOptions {
        allow_other: command.allow_other,
        gaps,
        uid: command.uid,
        gid: command.gid,
        threads: global.threads.map_or(0, usize::from),
        name,
        ..MountOptions::new(point)
    };
    let outcome = Outcome::doubt_if(!case.failed.is_empty());
    mount(Arc::new(case), &options)?;
    Ok(outcome)
}

/// Starts this program again with the same arguments; as the child of this one it stays in the foreground.
fn background(point: &std::path::Path, out: &mut Out) -> Result<Outcome> {
    match Background::new(std::env::args_os().skip(1))?.start().context("starting the mount")? {
        Started::Ready { pid } => {
            let shown = point.display().to_string();
            out.record("mount", json!({"path": shown, "pid": pid}))?;
            out.line(format_args!("mounted on {shown}; `umount {shown}` ends it"))?;
            Ok(Outcome::Sound)
        }
        // The child has said why.
        Started::Failed(status) => match status.code() {
            Some(2) | None => Ok(Outcome::Failed),
            Some(code) => bail!("the mount ended at once, with exit code {code}"),
        },
    }
}
