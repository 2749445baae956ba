//! `vdrecover recover`: everything that can be had, in one go.

use super::export::{Asked, Shape, Writing, advise, doubts, evidence, keep_folder, stoppable, tell_folder};
use super::out::Out;
use super::{Global, Outcome};
use crate::case::{Case, Machine, Parts, Pick};
use crate::export::folder::{FolderOptions, export_folder, plan};
use crate::report::{self, printable};
use anyhow::{Result, bail};
use clap::{Args, ValueEnum};
use serde_json::json;
use std::path::PathBuf;
use vdrecover_formats::Tree;

/// Arguments of `recover`.
#[derive(Debug, Args)]
pub(super) struct Command {
    /// Images, devices or folders; all extents of a spanned datastore together
    #[arg(value_name = "IMAGE", required = true)]
    images: Vec<PathBuf>,
    /// The folder to make
    #[arg(short, long, value_name = "DIR")]
    output: PathBuf,
    /// What to take out
    #[arg(long, value_enum, value_delimiter = ',', default_value = "vms,disks,store,found")]
    what: Vec<What>,
    /// Only this VM
    #[arg(long, value_name = "NAME")]
    vm: Option<String>,
    /// Only say what would be written
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    shape: Shape,
    #[command(flatten)]
    writing: Writing,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum What {
    /// VMs: configuration, current disks flattened, other ends of chains
    Vms,
    /// The disks of each VM as they were at each snapshot
    Snapshots,
    /// Disks that belong to no VM
    Disks,
    /// Files of datastores that are no disks
    Store,
    /// Volumes inside the disks
    Files,
    /// What was deleted, orphaned or formatted over
    Found,
    /// All of it, and the datastores' own disk and system files
    All,
}

pub(super) fn run(command: &Command, global: &Global, out: &mut Out) -> Result<Outcome> {
    let case = global.open(&command.images, true, out)?;
    global.compare(&case);
    let machine = command.vm.as_deref().map(|name| machine(&case, name)).transpose()?;
    let all = command.what.contains(&What::All);
    let chosen = |what: What| all || command.what.contains(&what);
    let parts = Parts {
        vms: chosen(What::Vms),
        snapshots: chosen(What::Snapshots),
        disks: chosen(What::Disks),
        store: chosen(What::Store),
        whole_store: all,
        files: chosen(What::Files),
        found: chosen(What::Found),
    };
    let pick = Pick::new(&case, parts, machine);
    let evidence = evidence(&case, &command.images, global)?;
    evidence.check(&command.output)?;
    let progress = stoppable(global)?;
    let what = format!("recover {:?} {:?}", command.what, command.vm);
    let mut options = FolderOptions {
        export: command.writing.options(&case, &what, global),
        source: command.images.iter().map(|image| image.display().to_string()).collect::<Vec<_>>().join(" + ") + "::",
        attributes: true,
        ..FolderOptions::default()
    };
    let images = command.shape.images(&case, &pick, b"", &command.output, &mut options)?;
    let tree: &dyn Tree = images.as_ref().map_or(&pick, |images| images);
    let plan = plan(tree, tree.root(), &command.output, &progress);
    progress.finish();
    let free = plan.free.map_or_else(|| "unknown".to_owned(), report::size);
    out.record(
        "plan",
        json!({
            "path": command.output.display().to_string(), "files": plan.files, "folders": plan.folders,
            "others": plan.others, "bytes": plan.bytes, "data": plan.data, "free": plan.free,
        }),
    )?;
    out.line(format_args!(
        "{} files in {} folders, {} long, {} to be written; {free} free at {}",
        plan.files,
        plan.folders,
        report::size(plan.bytes),
        report::size(plan.data),
        command.output.display()
    ))?;
    out.flush()?;
    let machine = command.vm.as_ref().map(|name| format!("vms/{name}")).unwrap_or_default();
    let incomplete = doubts(&case, machine.as_bytes(), out)?;
    if command.dry_run {
        return Ok(incomplete);
    }
    if plan.files + plan.others == 0 {
        bail!("there is nothing of that kind in it; `vdrecover scan` shows what there is");
    }
    let done = export_folder(tree, tree.root(), &command.output, &evidence, &options, &progress);
    progress.finish();
    let done = done.map_err(|error| advise(error, &command.output))?;
    let incomplete = incomplete.max(keep_folder(&case, global, b"", &done, out)?);
    let asked = if command.what == [What::Found] { Asked::Finds } else { Asked::All };
    Ok(tell_folder(&done, &command.output, asked, out)?.max(incomplete))
}

fn machine<'a>(case: &'a Case, name: &str) -> Result<&'a Machine> {
    let named = case.machines.iter().find(|machine| machine.name == name.as_bytes());
    if let Some(machine) = named {
        return Ok(machine);
    }
    let known: Vec<String> = case.machines.iter().map(|machine| printable(&machine.name)).collect();
    bail!("there is no VM {name} in it; there are: {}", known.join(", "))
}
