//! mount
use super::out::Out;
use super::{Global, Outcome};
use anyhow::Result;
use clap::Args;
/// Arguments
#[derive(Debug, Args)]
pub(super) struct Command {}
pub(super) fn run(_: &Command, _: &Global, _: &mut Out) -> Result<Outcome> {
    Ok(Outcome::Sound)
}
