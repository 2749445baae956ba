//! Hashes of what was taken out, kept in the case folder: the next command shows them, and an export that comes
//! out differently from the same inputs is told.

use super::Case;
use anyhow::{Context, Result};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// SHA-256 by path in the case's tree. Void when an input changes.
#[derive(Debug, Default)]
pub struct Hashes {
    file: Option<PathBuf>,
    identity: Value,
    known: BTreeMap<String, String>,
}

impl Hashes {
    /// What `folder` keeps for these inputs; nothing without a folder.
    #[must_use]
    pub fn load(case: &Case, folder: Option<&Path>) -> Self {
        let Some(folder) = folder else { return Self::default() };
        let file = folder.join("hashes.json");
        let identity = identity(case);
        let kept = fs::read(&file).ok().and_then(|text| serde_json::from_slice::<Value>(&text).ok());
        let kept = kept.filter(|kept| kept["identity"] == identity);
        let known = kept.and_then(|kept| serde_json::from_value(kept["sha256"].clone()).ok()).unwrap_or_default();
        Self { file: Some(file), identity, known }
    }

    /// The hash of a path, if it was taken out before.
    #[must_use]
    pub fn get(&self, path: &[u8]) -> Option<&str> {
        self.known.get(&key(path)).map(String::as_str)
    }

    /// Takes a hash in. The one that was known, if it was another.
    pub fn add(&mut self, path: &[u8], hash: &str) -> Option<String> {
        let before = self.known.insert(key(path), hash.to_owned());
        before.filter(|before| before != hash)
    }

    /// Writes what is known to the case folder.
    pub fn save(&self) -> Result<()> {
        let Some(file) = &self.file else { return Ok(()) };
        let part = file.with_extension("part");
        let text = serde_json::to_vec_pretty(&json!({"identity": self.identity, "sha256": self.known}))?;
        let kept = fs::write(&part, text).and_then(|()| fs::rename(&part, file));
        kept.with_context(|| format!("{}: keeping hashes", file.display()))
    }
}

fn key(path: &[u8]) -> String {
    crate::report::printable(path)
}

/// Every source with its length and time of change: what must be unchanged for anything kept to hold.
#[must_use]
pub fn identity(case: &Case) -> Value {
    let sources = case.sources.all();
    let sources = sources.iter().map(|source| {
        json!([source.path.display().to_string(), source.len, source.modified_nanos().map(|nanos| nanos.to_string())])
    });
    json!({"program": env!("CARGO_PKG_VERSION"), "sources": sources.collect::<Vec<_>>()})
}
