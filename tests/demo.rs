//! The demo image through every command, against what its generator put in.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs, reason = "tests")]

mod common;

use common::{demo, expect, records, skip};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;
use vdrecover::digest::{hex, sha256};

fn expected() -> Value {
    serde_json::from_slice(&fs::read(demo().with_file_name("EXPECTED.json")).unwrap()).unwrap()
}

fn at(path: &str) -> String {
    format!("{}::{path}", demo().display())
}

/// The states of the disks, with the paths that they have in the tree.
fn states() -> Vec<(String, u64, String)> {
    let places = [
        ("before upgrade", "vms/web01/snapshots/1-before upgrade/web01.raw"),
        ("after upgrade", "vms/web01/snapshots/2-after upgrade/web01.raw"),
        ("current", "vms/web01/web01.raw"),
    ];
    let disks = expected()["disks"].as_array().unwrap().clone();
    let found = disks.iter().map(|disk| {
        let file = disk["path"].as_str().unwrap();
        let state = disk["state"].as_str().unwrap();
        let place = places.iter().find(|(name, _)| file.starts_with("web01/") && *name == state);
        let place = place.map_or("vms/db01/db01.raw", |(_, place)| place);
        (place.to_owned(), disk["size"].as_u64().unwrap(), disk["sha256"].as_str().unwrap().to_owned())
    });
    let found: Vec<_> = found.collect();
    assert_eq!(found.len(), 4);
    found
}

#[test]
fn scan_shows_what_is_there_and_what_to_do_next() {
    let text = String::from_utf8(expect(0, ["scan".as_ref(), demo().as_os_str()])).unwrap();
    for word in ["datastore1", "web01", "db01", "deleted", "NEXT", "vdrecover mount", "vdrecover recover"] {
        assert!(text.contains(word), "no {word} in\n{text}");
    }
    let rows = records(0, ["scan".as_ref(), "--json".as_ref(), demo().as_os_str()]);
    let vms: Vec<&Value> = rows.iter().filter(|row| row["record"] == "vm").collect();
    let told: Vec<_> =
        vms.iter().map(|vm| (&vm["name"], &vm["verdict"], vm["snapshots"].as_array().unwrap().len())).collect();
    assert_eq!(told, [(&"web01".into(), &"sound".into(), 2), (&"db01".into(), &"sound".into(), 0)]);
    let deleted = rows.iter().filter(|row| row["record"] == "unlinked");
    let classes: Vec<_> = deleted.map(|row| row["class"].as_str().unwrap()).collect();
    // The pointer block of the disk that was deleted is still there.
    let count = expected()["deleted"].as_array().unwrap().len();
    assert_eq!(classes, [vec!["deleted"; count], vec!["fragment"]].concat());
}

#[test]
fn the_answer_is_the_same_for_any_number_of_threads() {
    let scan = |threads: &str| {
        expect(0, ["scan".as_ref(), "--json".as_ref(), "--threads".as_ref(), threads.as_ref(), demo().as_os_str()])
    };
    assert_eq!(scan("1"), scan("2"));
    assert_eq!(scan("1"), scan("7"));
}

#[test]
fn every_file_of_the_datastore_is_as_it_was_written() {
    let rows = records(0, ["ls", "-R", "--json", &at("store/datastore1")]);
    let listed: BTreeMap<&str, &Value> = rows.iter().map(|row| (row["path"].as_str().unwrap(), row)).collect();
    let entries = expected()["entries"].as_array().unwrap().clone();
    let shown: Vec<&Value> = entries.iter().filter(|entry| !entry["path"].as_str().unwrap().starts_with('.')).collect();
    assert_eq!(listed.len(), shown.len());
    for entry in shown {
        let path = format!("store/datastore1/{}", entry["path"].as_str().unwrap());
        let row = listed[path.as_str()];
        assert_eq!(
            row["mode"].as_str().unwrap().trim_start_matches('0'),
            entry["mode"].as_str().unwrap().trim_start_matches('0'),
            "{path}"
        );
        let time: jiff::Timestamp = row["mtime"].as_str().unwrap().parse().unwrap();
        assert_eq!(time.as_second(), entry["mtime"].as_i64().unwrap(), "{path}");
        if let Some(hash) = entry["sha256"].as_str() {
            assert_eq!(row["size"], entry["size"], "{path}");
            assert_eq!(hex(&sha256(&expect(0, ["cat", &at(&path)]))), hash, "{path}");
        }
    }
}

#[test]
fn every_state_of_every_disk_is_exported_as_it_was() {
    let folder = tempfile::tempdir().unwrap();
    for (number, (path, size, hash)) in states().into_iter().enumerate() {
        let out = folder.path().join(format!("{number}.raw"));
        let rows = records(0, ["export", &at(&path), "--json", "-o", out.to_str().unwrap()]);
        assert_eq!((&rows[0]["sha256"], &rows[0]["length"]), (&hash.clone().into(), &size.into()), "{path}");
        assert_eq!(hex(&sha256(&fs::read(&out).unwrap())), hash, "{path}");
        assert_eq!(hex(&sha256(&expect(0, ["cat", &at(&path)]))), hash, "{path}");
    }
}

#[test]
fn recover_writes_the_tree_with_a_manifest_that_is_true() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("all");
    expect(0, ["recover".as_ref(), demo().as_os_str(), "-o".as_ref(), out.as_os_str()]);
    let manifest = fs::read_to_string(out.join("manifest.jsonl")).unwrap();
    let mut files = 0;
    for line in manifest.lines() {
        let row: Value = serde_json::from_str(line).unwrap();
        let path = out.join(row["path"].as_str().unwrap());
        if row["type"] == "file" && row["sha256"].is_string() {
            assert_eq!(hex(&sha256(&fs::read(&path).unwrap())), row["sha256"].as_str().unwrap(), "{}", path.display());
            files += 1;
        }
    }
    assert!(files > 20, "{files} files");
    let (_, _, current) = states().into_iter().find(|(path, ..)| path == "vms/web01/web01.raw").unwrap();
    assert_eq!(hex(&sha256(&fs::read(out.join("vms/web01/web01.raw")).unwrap())), current);
    assert!(!out.join("vms/web01/snapshots").exists(), "snapshots are asked for");
    // What is there is not written over, and the same command finds its work done only with --force.
    expect(2, ["recover".as_ref(), demo().as_os_str(), "-o".as_ref(), out.as_os_str()]);
    expect(0, ["recover".as_ref(), demo().as_os_str(), "--force".as_ref(), "-o".as_ref(), out.as_os_str()]);
    let snapshots = folder.path().join("snapshots");
    expect(
        0,
        [
            "recover".as_ref(),
            demo().as_os_str(),
            "--what".as_ref(),
            "snapshots".as_ref(),
            "--vm".as_ref(),
            "web01".as_ref(),
            "-o".as_ref(),
            snapshots.as_os_str(),
        ],
    );
    assert!(snapshots.join("vms/web01/snapshots/2-after upgrade/web01.raw").exists());
    assert!(!snapshots.join("vms/web01/web01.raw").exists() && !snapshots.join("store").exists());
}

/// An ESXi boot disk: a datastore, and volumes of other kinds beside it.
#[test]
fn volumes_beside_a_datastore_are_shown() {
    use vdrecover_testdata::gpt::{Guid, Partition, TYPE_LINUX, TYPE_VMFS, write_gpt};
    use vdrecover_testdata::vmfs::{Content, Layout, Version, Vmfs, VmfsSpec};
    let mut store = Vmfs::new(VmfsSpec::new(Version::Six, 288 << 20));
    store.file("hello", Content::bytes(*b"hello\n"), &Layout::default());
    let store = store.finish().remove(0);
    let mut disk = vdrecover_testdata::Device::new(320 << 20);
    let row = |kind, name, start, len| Partition { kind, name, start, len };
    let rows = [row(TYPE_LINUX, "boot", 1 << 20, 4 << 20), row(TYPE_VMFS, "store", 8 << 20, store.len())];
    write_gpt(&mut disk, Guid::seeded(1), &rows);
    disk.write(1 << 20, &[7; 4096]);
    disk.embed(8 << 20, &store);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("boot.img");
    disk.save(&path).unwrap();
    let listed = String::from_utf8(expect(0, ["ls".as_ref(), "-R".as_ref(), path.as_os_str()])).unwrap();
    let volume = listed.lines().find(|line| line.ends_with("/p1.raw")).unwrap_or_else(|| panic!("{listed}"));
    assert!(!listed.contains("/p2.raw") && listed.contains("/hello"), "{listed}");
    assert_eq!(expect(0, ["cat", "--length", "2", &format!("{}::{volume}", path.display())]), [7, 7]);
}

#[test]
fn a_case_folder_keeps_hashes_until_the_input_changes() {
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("evidence/datastore.qcow2");
    fs::create_dir(image.parent().unwrap()).unwrap();
    fs::copy(demo(), &image).unwrap();
    let keep = folder.path().join("case").display().to_string();
    let disk = format!("{}::vms/db01/db01.raw", image.display());
    let out = folder.path().join("db01.raw");
    let export = || records(0, ["export", &disk, "--json", "--force", "--case", &keep, "-o", out.to_str().unwrap()]);
    let hash = export()[0]["sha256"].clone();
    let listed = || records(0, ["ls", &disk, "--json", "--case", &keep])[0]["sha256"].clone();
    assert_eq!(listed(), hash);
    // A hash that the same input does not give again is told.
    let kept = Path::new(&keep).join("hashes.json");
    let text = fs::read_to_string(&kept).unwrap();
    fs::write(&kept, text.replace(hash.as_str().unwrap(), &"0".repeat(64))).unwrap();
    let rows = records(1, ["export", &disk, "--json", "--force", "--case", &keep, "-o", out.to_str().unwrap()]);
    assert!(rows.iter().any(|row| row["code"] == "CASE-HASH"), "{rows:?}");
    assert_eq!(listed(), hash);
    fs::File::options().append(true).open(&image).unwrap().set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
    assert_eq!(listed(), Value::Null);
}

#[test]
fn the_mount_shows_the_same_bytes() {
    let test = "the_mount_shows_the_same_bytes";
    let usable = fs::OpenOptions::new().read(true).write(true).open("/dev/fuse").is_ok();
    if !usable {
        return skip(test, "/dev/fuse can't be opened");
    }
    let folder = tempfile::tempdir().unwrap();
    expect(0, ["mount".as_ref(), demo().as_os_str(), folder.path().as_os_str()]);
    let hashes: Vec<_> = states()
        .into_iter()
        .map(|(path, _, want)| (fs::read(folder.path().join(&path)).map(|bytes| hex(&sha256(&bytes))), want, path))
        .collect();
    // What was lost is looked for when somebody looks there.
    let below = |dir: &Path| fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect::<Vec<_>>();
    let lost = below(&folder.path().join("found/deleted"));
    let lost: usize = lost.iter().map(|path| 1 + if path.is_dir() { below(path).len() } else { 0 }).sum();
    let ended = Command::new("umount").arg(folder.path()).status().unwrap();
    assert!(ended.success());
    assert_eq!(lost, expected()["deleted"].as_array().unwrap().len());
    for (got, want, path) in hashes {
        assert_eq!(got.unwrap(), want, "{path}");
    }
}

#[test]
fn map_covers_a_disk_and_trace_ends_on_the_device() {
    let rows = records(0, ["map", "--json", &at("vms/web01/web01.raw")]);
    let mut end = 0;
    for row in &rows {
        assert_eq!(row["start"], end);
        end += row["length"].as_u64().unwrap();
    }
    assert_eq!(end, 128 << 20);
    let rows = records(0, ["trace", "--json", &at("vms/web01/web01.raw"), "--offset", "1M"]);
    let hops: Vec<&str> = rows.iter().filter_map(|row| row["layer"].as_str()).collect();
    assert_eq!(hops.first(), Some(&"vms/web01/web01.raw"));
    assert_eq!(hops.last().map(Path::new), Some(demo().as_path()));
}

#[test]
fn a_disk_must_be_named_where_there_are_several() {
    let output = common::vdrecover(["cat".as_ref(), demo().as_os_str()]);
    let told = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(told.contains("vms/web01/web01.raw") && told.contains("vms/db01/db01.raw"), "{told}");
}

#[test]
fn a_lost_partition_table_is_found_again_and_the_sweep_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    let raw = folder.path().join("evidence/wiped.raw");
    fs::create_dir(raw.parent().unwrap()).unwrap();
    // The container's own disk: no path in the tree, since it holds a datastore.
    let source = vdrecover_formats_disk(&demo());
    let wiped: vdrecover_formats::Bytes =
        std::sync::Arc::new(vdrecover_formats::adapt::Window::new(source, 0, 8 << 30));
    write_sparse(&*wiped, &raw, &[0..34 * 512, (8 << 30) - 33 * 512..8 << 30]);
    let keep = folder.path().join("case");
    let scan =
        || records(1, ["scan".as_ref(), "--json".as_ref(), "--case".as_ref(), keep.as_os_str(), raw.as_os_str()]);
    let first = scan();
    let vms: Vec<&str> =
        first.iter().filter(|row| row["record"] == "vm").map(|row| row["name"].as_str().unwrap()).collect();
    assert_eq!(vms, ["web01", "db01"]);
    assert!(first.iter().any(|row| row["code"] == "SWEEP-FOUND"));
    let kept: Vec<_> = fs::read_dir(&keep).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(kept.len(), 1, "{kept:?}");
    assert_eq!(scan(), first, "from what was kept");
    let beside = raw.with_file_name("case");
    expect(2, ["scan".as_ref(), "--case".as_ref(), beside.as_os_str(), raw.as_os_str()]);
    assert!(!beside.exists());
}

/// The disk inside the demo's QCOW2.
fn vdrecover_formats_disk(image: &Path) -> vdrecover_formats::Bytes {
    let options = vdrecover::case::Options { inputs: vec![image.to_owned()], ..Default::default() };
    let case = vdrecover::case::Case::open(&options, &vdrecover::progress::Progress::silent()).unwrap();
    case.items[0].disk()
}

/// Writes the data of a layer, but for some ranges.
fn write_sparse(layer: &dyn vdrecover_formats::Layer, path: &Path, but: &[std::ops::Range<u64>]) {
    use std::os::unix::fs::FileExt;
    let file = fs::File::create(path).unwrap();
    file.set_len(layer.len()).unwrap();
    for run in vdrecover_formats::walk(layer, 0..layer.len()) {
        if matches!(run.place, vdrecover_formats::Place::Hole | vdrecover_formats::Place::Zero) {
            continue;
        }
        let mut bytes = vec![0; usize::try_from(run.len).unwrap()];
        assert!(vdrecover_formats::read(layer, run.at, &mut bytes).is_whole());
        for (at, byte) in (run.at..).zip(&mut bytes) {
            if but.iter().any(|range| range.contains(&at)) {
                *byte = 0;
            }
        }
        file.write_all_at(&bytes, run.at).unwrap();
    }
}
