//! `vdrecover scan`: inventory and health, and what to do next.

use super::ls::finding_record;
use super::out::Out;
use super::{Global, Outcome};
use crate::case::Noted;
use anyhow::Result;
use clap::Args;
use std::path::PathBuf;

/// Arguments of `scan`.
#[derive(Debug, Args)]
pub(super) struct Command {
    /// Images, devices or folders
    #[arg(value_name = "IMAGE", required = true)]
    images: Vec<PathBuf>,
}

pub(super) fn run(command: &Command, global: &Global, out: &mut Out) -> Result<Outcome> {
    let case = global.open(&command.images, true, out)?;
    for noted in &case.findings { show_finding(noted, out)?; }
    Ok(Outcome::Sound)
}

/// One finding, as a line or a record.
pub(super) fn show_finding(noted: &Noted, out: &mut Out) -> Result<()> {
    let finding = &noted.finding;
    out.record("finding", finding_record(&noted.about, finding))?;
    out.line(format_args!("  {} [{}] {}: {}", finding.trust.word(), finding.code, noted.about, finding.text))
}
