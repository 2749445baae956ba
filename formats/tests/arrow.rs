//! The arrow of the architecture, as a test: formats never import each other, and the core imports no format.
#![allow(clippy::unwrap_used, missing_docs, reason = "tests")]

use std::fs;
use std::path::Path;

const FORMATS: [&str; 4] = ["disk", "volume", "vmfs", "fs"];

fn sources(dir: &Path, found: &mut Vec<(String, String)>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|suffix| suffix == "rs") {
            found.push((path.to_string_lossy().into_owned(), fs::read_to_string(&path).unwrap()));
        }
    }
}

/// The format that a source belongs to: its path below `src`, without what is one format's own.
fn format_of(path: &str) -> Option<String> {
    let below = path.split("/src/").last()?.trim_end_matches(".rs");
    let mut parts = below.split('/');
    let group = parts.next()?;
    FORMATS.contains(&group).then(|| match (group, parts.next()) {
        ("vmfs", _) | (_, None) => group.to_owned(),
        (group, Some(name)) => format!("{group}::{name}"),
    })
}

#[test]
fn formats_never_import_each_other() {
    let mut all = Vec::new();
    sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut all);
    assert!(all.len() > 15, "the sources were not found");
    let mut wrong = Vec::new();
    for (path, text) in &all {
        let own = format_of(path);
        // The table is the one place that knows them all.
        if path.ends_with("/table.rs") || path.ends_with("/lib.rs") {
            continue;
        }
        for line in text.lines().filter(|line| line.contains("crate::")) {
            for group in FORMATS {
                let Some(rest) = line.split(&format!("crate::{group}")).nth(1) else { continue };
                let other = match rest.strip_prefix("::") {
                    _ if group == "vmfs" => group.to_owned(),
                    Some(rest) => {
                        let name: String = rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
                        format!("{group}::{name}")
                    }
                    None => continue,
                };
                if own.as_ref() != Some(&other) {
                    wrong.push(format!("{path}: {}", line.trim()));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "against the arrow:\n{}", wrong.join("\n"));
}
