//! `vdrecover check`: what each structure says, against what the others say.

use super::out::Out;
use super::scan::show_finding;
use super::{Global, Outcome};
use crate::audit;
use crate::case::{Case, Noted};
use anyhow::Result;
use clap::Args;
use rayon::prelude::*;
use serde_json::json;
use std::collections::HashSet;
use std::ops::ControlFlow;
use std::path::PathBuf;
use vdrecover_formats::{Content, Note, Trust};

/// Arguments of `check`.
#[derive(Debug, Args)]
pub(super) struct Command {
    /// Images, devices or folders; all extents of a spanned datastore together
    #[arg(value_name = "IMAGE", required = true)]
    images: Vec<PathBuf>,
}

pub(super) fn run(command: &Command, global: &Global, out: &mut Out) -> Result<Outcome> {
    let case = global.open(&command.images, true, out)?;
    let progress = global.progress();
    let audit = audit::run(&case, &progress);
    progress.finish();
    let mut all: Vec<Noted> = case.findings.iter().cloned().chain(audit.findings).collect();
    all.extend(stores(&case));
    all.extend(disks(&case));
    for noted in &all {
        show_finding(noted, out)?;
    }
    let count = |trust| all.iter().filter(|noted| noted.finding.trust == trust).count();
    let (doubtful, inferred, notes) = (count(Trust::Doubtful), count(Trust::Inferred), count(Trust::Sound));
    let failed = case.failed.len();
    out.record(
        "check",
        json!({
            "items": case.items.len(), "stores": case.stores.len(), "failed": failed,
            "doubtful": doubtful, "inferred": inferred, "notes": notes,
        }),
    )?;
    let verdict = match doubtful + inferred + failed {
        0 if all.iter().any(|noted| noted.finding.code == "LVM-SHORT") => {
            "nothing contradicts in the part that was dumped"
        }
        0 => "nothing contradicts",
        _ => "not sound",
    };
    out.line(format_args!(
        "{verdict}: {} images and volumes, {} file stores, {doubtful} doubtful, {inferred} inferred, {notes} notes",
        case.items.len(),
        case.stores.len()
    ))?;
    Ok(Outcome::doubt_if(doubtful + inferred + failed > 0))
}

/// What comparing all of a store with all of it tells, in the order of the stores.
fn stores(case: &Case) -> Vec<Noted> {
    let each = case.stores.par_iter().map(|store| {
        let about = case.store_label(store);
        let mut found = Vec::new();
        store.tree.check(&mut |finding| found.push(Noted { about: about.clone(), finding }));
        found
    });
    each.collect::<Vec<_>>().concat()
}

/// What the tables of disk images tell, in the order in which the images were found.
pub(super) fn disks(case: &Case) -> Vec<Noted> {
    let items: Vec<_> = case.items.iter().enumerate().collect();
    let each = items.into_par_iter().map(|(id, item)| {
        let Some(Content::Disks(disks)) = item.content() else { return Vec::new() };
        let mut found: Vec<Noted> = Vec::new();
        for disk in disks {
            for part in 0..disk.bytes.parts() {
                let _ = disk.bytes.audit(part, &mut |note| {
                    if let Note::Finding(finding) = note {
                        found.push(Noted { about: case.label(id), finding });
                    }
                    ControlFlow::Continue(())
                });
            }
        }
        // Snapshots inside an image share its tables, and what is wrong with them.
        let mut seen = HashSet::new();
        found.retain(|Noted { finding, .. }| {
            seen.insert((finding.code, finding.range.start, finding.range.end, finding.text.clone()))
        });
        found
    });
    each.collect::<Vec<_>>().concat()
}
