//! What goes to stdout: results only, as text or as JSON Lines. What goes to stderr: everything else.

use crate::export::stream_zeros;
use crate::report::printable;
use crate::stdout::Stdout;
use anyhow::Result;
use serde_json::{Value, json};
use std::fmt::Display;
use std::io::{self, BufWriter, Write};

/// Version of the JSON schema in `docs/json.md`.
const SCHEMA: u32 = 1;

/// The two streams of a command.
#[derive(Debug)]
pub(super) struct Out {
    pub(super) json: bool,
    pub(super) quiet: bool,
    stdout: BufWriter<Stdout>,
}

impl Out {
    pub(super) fn new(json: bool, quiet: bool) -> Self {
        Self { json, quiet, stdout: BufWriter::with_capacity(64 << 10, Stdout) }
    }

    /// A line of text. Silent with `--json`. Paths and names come from the evidence: what would move a cursor or
    /// start a line of its own is escaped here, whoever wrote it.
    pub(super) fn line(&mut self, line: impl Display) -> Result<()> {
        if !self.json {
            writeln!(self.stdout, "{}", printable(line.to_string().as_bytes()))?;
        }
        Ok(())
    }

    /// A JSON record of a kind. Silent without `--json`.
    pub(super) fn record(&mut self, kind: &str, fields: Value) -> Result<()> {
        if self.json {
            let mut record = json!({"v": SCHEMA, "record": kind});
            if let (Value::Object(record), Value::Object(fields)) = (&mut record, fields) {
                record.extend(fields);
            }
            serde_json::to_writer(&mut self.stdout, &record)?;
            self.stdout.write_all(b"\n")?;
        }
        Ok(())
    }

    /// Bytes as they are.
    pub(super) fn bytes(&mut self, bytes: &[u8]) -> Result<()> {
        Ok(self.stdout.write_all(bytes)?)
    }

    /// So many zeros.
    pub(super) fn zeros(&mut self, len: u64) -> Result<()> {
        Ok(stream_zeros(&mut self.stdout, len)?)
    }

    pub(super) fn flush(&mut self) -> Result<()> {
        Ok(self.stdout.flush()?)
    }

    /// Something went wrong, or is missing. Always told.
    #[expect(clippy::unused_self, reason = "stderr belongs to it as stdout does")]
    pub(super) fn error(&self, message: &str) {
        tell(&format!("vdrecover: {message}"));
    }

    /// What a person might want to know or do next.
    pub(super) fn hint(&self, message: &str) {
        if !self.quiet {
            tell(message);
        }
    }
}

/// Text on stderr, with its line breaks and no other controls. That it may be closed must not end the work.
fn tell(text: &str) {
    let lines: Vec<String> = text.split('\n').map(|line| printable(line.as_bytes())).collect();
    let _ = writeln!(io::stderr(), "{}", lines.join("\n"));
}

/// Whether an error is that stdout's reader went away.
pub(super) fn is_closed(error: &anyhow::Error) -> bool {
    let kind = |error: &io::Error| error.kind() == io::ErrorKind::BrokenPipe;
    error.chain().any(|cause| {
        cause.downcast_ref::<io::Error>().is_some_and(kind)
            || cause
                .downcast_ref::<serde_json::Error>()
                .is_some_and(|error| error.io_error_kind() == Some(io::ErrorKind::BrokenPipe))
    })
}
