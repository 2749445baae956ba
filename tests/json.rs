//! `docs/json.md` has every kind of record, and every field of it, that a command writes.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs, reason = "tests")]

mod common;

use common::{demo, vdrecover};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use vdrecover_testdata::samples::SAMPLES;

type Fields = BTreeMap<String, BTreeSet<String>>;

fn text() -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/json.md")).unwrap()
}

/// The words in backticks.
fn words(text: &str) -> BTreeSet<String> {
    text.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

/// The rows of the table: the words of each kind of record.
fn documented() -> Fields {
    let text = text();
    let rows = text.lines().filter(|line| line.starts_with("| `"));
    rows.map(|row| {
        let mut cells = row.trim_matches('|').splitn(3, " | ");
        let kind = words(cells.next().unwrap()).pop_first().unwrap();
        (kind, words(cells.nth(1).unwrap()))
    })
    .collect()
}

/// Names of the fields of a record, those of records in it too.
fn fields(value: &Value, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(map) => {
            for (name, value) in map {
                found.insert(name.clone());
                // What formats tell of themselves has names of its own, and sums are told below the table.
                if !matches!(name.as_str(), "facts" | "map" | "found" | "map_sums") {
                    fields(value, found);
                }
            }
        }
        Value::Array(all) => all.iter().for_each(|value| fields(value, found)),
        _ => {}
    }
}

fn collect(args: &[&str], all: &mut Fields) {
    let output = vdrecover(["--json"].iter().chain(args));
    assert!(output.status.code().unwrap() < 2, "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    for row in serde_json::Deserializer::from_slice(&output.stdout).into_iter::<Value>() {
        let row = row.unwrap();
        fields(&row, all.entry(row["record"].as_str().unwrap().to_owned()).or_default());
    }
}

#[test]
fn every_field_is_documented() {
    let (folder, case) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let case = case.path().to_str().unwrap();
    let made = |name: &str| {
        let path = folder.path().join(name);
        let sample = SAMPLES.iter().find(|sample| sample.name == name).unwrap();
        sample.build().finish()[0].save(&path).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let (demo, lost, mixed) = (demo(), made("vmfs6-reformatted"), made("vmfs6-basic"));
    let demo = demo.to_str().unwrap();
    let out = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let at = |path: &str| format!("{demo}::{path}");
    let mut all = Fields::new();
    for image in [demo, &lost, &mixed] {
        for args in [&["scan"][..], &["check"], &["info"], &["ls", "-R", "--all"], &["scan", "--deep"]] {
            collect(&[args, &[image]].concat(), &mut all);
        }
        let to = out(&format!("all-{}", Path::new(image).file_name().unwrap().display()));
        collect(&["recover", image, "-o", &to, "--case", case], &mut all);
    }
    collect(&["ls", "-R", demo, "--case", case], &mut all);
    collect(&["cat", &at("vms/db01/db01.raw"), "--length", "64K"], &mut all);
    collect(&["export", &at("vms/db01/db01.raw"), "-o", &out("db01.raw")], &mut all);
    collect(&["map", &at("vms/db01/db01.raw")], &mut all);
    collect(&["map", demo, "--want", "metadata", "-o", &out("meta.map")], &mut all);
    collect(&["trace", &at("vms/db01/db01.raw"), "--offset", "1M"], &mut all);
    collect(&["owner", demo, "--offset", "0x60000", "--length", "64K"], &mut all);
    collect(&["formats"], &mut all);
    // A part of an image that can't be read, for gaps.
    let map = out("bad.map");
    fs::write(&map, "0 ? 1\n0 0x1A00000 +\n0x1A00000 0x1000 -\n0x1A01000 0x100000000 +\n").unwrap();
    let bad = format!("{mixed}={map}");
    collect(&["cat", &format!("{mixed}::store/basic/.fbb.sf"), "--fill", "--mapfile", &bad], &mut all);

    let documented = documented();
    for (kind, fields) in &all {
        let known = documented.get(kind).unwrap_or_else(|| panic!("docs/json.md has no record {kind}"));
        let unknown: Vec<_> =
            fields.iter().filter(|name| !matches!(name.as_str(), "v" | "record") && !known.contains(*name)).collect();
        assert!(unknown.is_empty(), "docs/json.md: the row of {kind} lacks {unknown:?}");
    }
    let missing: Vec<_> = documented.keys().filter(|kind| *kind != "mount" && !all.contains_key(*kind)).collect();
    assert!(missing.is_empty(), "no command wrote {missing:?}");

    let manifest = words(text().split("## manifest.jsonl").nth(1).unwrap());
    let mut fields_of = BTreeSet::new();
    for name in ["all-datastore.qcow2", "all-vmfs6-reformatted", "all-vmfs6-basic"] {
        let lines = fs::read_to_string(folder.path().join(name).join("manifest.jsonl")).unwrap();
        lines.lines().for_each(|line| fields(&serde_json::from_str(line).unwrap(), &mut fields_of));
    }
    let unknown: Vec<_> = fields_of.difference(&manifest).collect();
    assert!(unknown.is_empty(), "docs/json.md: the manifest lacks {unknown:?}");
}
