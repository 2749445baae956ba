//! Real datastores, read beside dissect.vmfs, which runs as a process of its own.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs, reason = "tests")]

mod common;

use common::{expect, records, skip, tool, unpacked, vdrecover};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use vdrecover::case::{Case, Options};
use vdrecover::digest::{Hasher, hex};
use vdrecover::progress::Progress;
use vdrecover_formats::{Tree, read};

/// Files up to here are compared by their content.
const HASH_LIMIT: u64 = 256 << 20;

fn oracle(test: &str, images: &[PathBuf]) -> Option<BTreeMap<String, Value>> {
    if !tool(test, "python3", &["-c", "import dissect.vmfs"]) {
        return None;
    }
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/oracle/dissect_vmfs.py");
    let output = Command::new("python3").arg(script).arg(HASH_LIMIT.to_string()).args(images).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let printed = String::from_utf8(output.stdout).unwrap();
    let rows = printed.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    Some(rows.map(|row| (row["path"].as_str().unwrap().to_owned(), row)).collect())
}

/// The only store of the images, and what `ls` says of it, in the oracle's words.
fn ours(images: &[PathBuf]) -> BTreeMap<String, Value> {
    let options = Options { inputs: images.to_vec(), ..Options::default() };
    let case = Case::open(&options, &Progress::silent()).unwrap();
    let store = String::from_utf8(case.stores[0].name.clone()).unwrap();
    assert_eq!(case.stores.len(), 1);
    let mut args = vec!["ls".to_owned(), "--json".into(), "--all".into(), "-R".into()];
    args.extend(images[1..].iter().flat_map(|image| ["--with".to_owned(), image.display().to_string()]));
    args.push(format!("{}::store/{store}", images[0].display()));
    let output = vdrecover(&args);
    // A raw device mapping has no bytes here: 1 is right for a volume that has one.
    assert!(matches!(output.status.code(), Some(0 | 1)), "{}", String::from_utf8_lossy(&output.stderr));
    let listing = String::from_utf8(output.stdout).unwrap();
    let mut found = BTreeMap::new();
    for line in listing.lines() {
        let row: Value = serde_json::from_str(line).unwrap();
        assert_eq!(row["record"], "entry", "a healthy volume has no findings: {row}");
        // What is no longer listed is nothing that the oracle shows.
        if row["state"] != "live" {
            continue;
        }
        assert_eq!(row["trust"], "sound", "{row}");
        let full = row["path"].as_str().unwrap();
        let path = full.strip_prefix(&format!("store/{store}/")).unwrap().to_owned();
        let mut want = json!({
            "path": path, "type": row["type"], "size": row["size"], "mode": row["mode"], "uid": row["uid"],
            "gid": row["gid"], "links": row["links"],
            "mtime": row["mtime"].as_str().unwrap().parse::<jiff::Timestamp>().unwrap().as_second(),
        });
        let is_content = row["type"] == "file" || row["type"] == "symlink";
        if is_content && row["size"].as_u64().unwrap() <= HASH_LIMIT {
            want["sha256"] = content(&case, full.as_bytes()).into();
        }
        found.insert(path, want);
    }
    found
}

fn content(case: &Case, path: &[u8]) -> String {
    let entry = case.find(path).unwrap().unwrap();
    let bytes = case.open(entry.id).unwrap();
    let mut hasher = Hasher::default();
    let mut buf = vec![0; 1 << 20];
    let mut at = 0;
    while at < bytes.len() {
        let step = usize::try_from((bytes.len() - at).min(buf.len() as u64)).unwrap();
        assert!(read(&*bytes, at, &mut buf[..step]).is_whole());
        hasher.update(&buf[..step]);
        at += step as u64;
    }
    hex(&hasher.finish())
}

fn agree(test: &str, names: &[&str], least: usize) {
    let images: Option<Vec<PathBuf>> =
        names.iter().map(|name| unpacked(test, &format!("vmfs/{name}.bin.gz"))).collect();
    let Some(images) = images else { return };
    let Some(theirs) = oracle(test, &images) else { return };
    assert!(theirs.len() >= least, "{} entries", theirs.len());
    let ours = ours(&images);
    for (path, row) in &theirs {
        assert_eq!(ours.get(path), Some(row), "{path}");
    }
    assert_eq!(ours.len(), theirs.len());
}

#[test]
fn vmfs5_as_dissect_reads_it() {
    agree("vmfs5_as_dissect_reads_it", &["vmfs5"], 130);
}

#[test]
fn vmfs6_as_dissect_reads_it() {
    agree("vmfs6_as_dissect_reads_it", &["vmfs6"], 140);
}

#[test]
fn vmfs_l_as_dissect_reads_it() {
    agree("vmfs_l_as_dissect_reads_it", &["vmfs6l"], 9);
}

#[test]
fn sub_blocks_that_are_not_dense_as_dissect_reads_them() {
    agree("sub_blocks_that_are_not_dense_as_dissect_reads_them", &["vmfs5-no-dense-sbpc"], 7);
}

#[test]
fn a_span_in_any_order_as_dissect_reads_it() {
    agree("a_span_in_any_order_as_dissect_reads_it", &["vmfs5-span-0", "vmfs5-span-1"], 7);
    agree("a_span_in_any_order_as_dissect_reads_it", &["vmfs5-span-1", "vmfs5-span-0"], 7);
}

#[test]
fn a_reformatted_volume_as_dissect_reads_it() {
    agree("a_reformatted_volume_as_dissect_reads_it", &["zero6"], 10);
}

/// Both packaged tools on Linux return zeros for these.
#[test]
fn the_far_ends_of_thin_disks() {
    let test = "the_far_ends_of_thin_disks";
    for (name, label) in [("vmfs5", "vmfs5"), ("vmfs6", "vmfs6")] {
        let Some(image) = unpacked(test, &format!("vmfs/{name}.bin.gz")) else { return };
        let far = [("normal-flat.vmdk", 42_u64 << 30), ("large-flat.vmdk", 117 << 30)];
        for (file, at) in far {
            let locator = format!("{}::store/{label}/{file}", image.display());
            let cat =
                |offset: u64, len: &str| expect(0, ["cat", "--offset", &offset.to_string(), "--length", len, &locator]);
            assert_eq!(cat(at, "512"), [0x42; 512]);
            assert_eq!(cat(at - 1, "1"), [0]);
            assert_eq!(cat(at + 512, "0x1000"), [0; 4096]);
        }
    }
}

/// The same through an export, which needs a file system that holds 42 TiB, and through the mount.
#[test]
fn the_far_ends_of_thin_disks_exported_and_mounted() {
    let test = "the_far_ends_of_thin_disks_exported_and_mounted";
    let far = [("normal-flat.vmdk", 42_u64 << 30), ("large-flat.vmdk", 117 << 30)];
    let at = |file: &Path, offset: u64| {
        let mut bytes = [0; 514];
        File::open(file).unwrap().read_exact_at(&mut bytes, offset - 1).unwrap();
        assert_eq!((bytes[0], bytes[513]), (0, 0));
        assert_eq!(bytes[1..513], [0x42; 512]);
    };
    for name in ["vmfs5", "vmfs6"] {
        let Some(image) = unpacked(test, &format!("vmfs/{name}.bin.gz")) else { return };
        let memory = Path::new("/dev/shm");
        if memory.is_dir() {
            let folder = tempfile::tempdir_in(memory).unwrap();
            for (file, offset) in far {
                let out = folder.path().join(file);
                let locator = format!("{}::store/{name}/{file}", image.display());
                expect(0, ["export", &locator, "-o", out.to_str().unwrap()]);
                at(&out, offset);
                assert!(fs::metadata(&out).unwrap().blocks() < 100_000, "holes stay holes");
            }
        } else {
            skip(test, "there is no /dev/shm to export 42 TiB to");
        }
        if File::options().read(true).write(true).open("/dev/fuse").is_err() {
            skip(test, "/dev/fuse can't be opened");
            continue;
        }
        let folder = tempfile::tempdir().unwrap();
        expect(0, ["mount".as_ref(), image.as_os_str(), folder.path().as_os_str()]);
        let mounted = std::panic::catch_unwind(|| {
            for (file, offset) in far {
                at(&folder.path().join("store").join(name).join(file), offset);
            }
            let listed = fs::read_dir(folder.path().join("store").join(name).join("directory")).unwrap();
            assert_eq!(listed.count(), 100);
        });
        assert!(Command::new("umount").arg(folder.path()).status().unwrap().success());
        mounted.unwrap();
    }
}

/// What the project's own generator writes, read by others: dissect.vmfs, vmfs-tools, vmfs6-tools, qemu-img.
#[test]
fn others_read_the_fixtures_as_they_were_written() {
    let test = "others_read_the_fixtures_as_they_were_written";
    if !tool(test, "python3", &["-c", "import dissect.vmfs"]) {
        return;
    }
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/verify-testdata");
    for sample in ["vmfs5-basic", "vmfs6-basic", "vmfs5-span", "vmfs6-layouts"] {
        let output = Command::new("python3").arg(&script).arg(sample).output().unwrap();
        let told = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{told}\n{}", String::from_utf8_lossy(&output.stderr));
    }
}

#[test]
fn half_a_span_lists_all_and_says_what_is_missing() {
    let test = "half_a_span_lists_all_and_says_what_is_missing";
    let Some(image) = unpacked(test, "vmfs/vmfs5-span-0.bin.gz") else { return };
    let scan = records(1, ["scan".as_ref(), "--json".as_ref(), image.as_os_str()]);
    let store = scan.iter().find(|row| row["record"] == "store").unwrap();
    assert_eq!(store["absent_extents"], 1);
    assert!(scan.iter().any(|row| row["code"] == "WANT-ABSENT"));
}

#[test]
fn what_is_skipped_is_named() {
    if std::env::var_os("VDRECOVER_CORPUS").is_none() {
        skip("conformance", "VDRECOVER_CORPUS is not set: no real image was read");
    }
}
