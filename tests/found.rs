//! What no folder lists any more: in the tree, in a listing, in an export, and put together to disks.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    missing_docs,
    reason = "tests"
)]

mod common;

use common::{expect, records, unpacked};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use vdrecover_testdata::anchors::Guest;
use vdrecover_testdata::samples::SAMPLES;
use vdrecover_testdata::vmfs::{Content, Layout, Left, Version, Vmfs, VmfsSpec};

fn at(image: &Path, path: &str) -> String {
    format!("{}::{path}", image.display())
}

/// A sample on the disk of the machine.
fn sample(folder: &Path, name: &str) -> PathBuf {
    let made = SAMPLES.iter().find(|sample| sample.name == name).unwrap().build().finish();
    save(folder, &made)
}

fn save(folder: &Path, devices: &[vdrecover_testdata::Device]) -> PathBuf {
    let path = folder.join("store.img");
    devices[0].save(&path).unwrap();
    path
}

/// All of `found/`, by path.
fn found(image: &Path) -> BTreeMap<String, Value> {
    let rows = records(0, ["ls", "-R", "--json", &at(image, "found")]);
    rows.into_iter().map(|row| (row["path"].as_str().unwrap().to_owned(), row)).collect()
}

fn paths(found: &BTreeMap<String, Value>) -> Vec<&str> {
    found.keys().map(String::as_str).collect()
}

#[test]
fn a_real_datastore_that_was_formatted_over() {
    let Some(image) = unpacked("a_real_datastore_that_was_formatted_over", "vmfs/zero6.bin.gz") else { return };
    let found = found(&image);
    let dir = "found/reformatted/test";
    let gone = ["c19_r0", "c19_r1", "c19_r2", "c19_r3", "c19_r6"].map(|spot| format!("{dir}/orphan_{spot}"));
    let mut want: Vec<&str> = gone.iter().map(String::as_str).collect();
    let (flat, raw, said) = (format!("{dir}/test-flat.vmdk"), format!("{dir}/test.raw"), format!("{dir}/test.vmdk"));
    want.extend(["found/reformatted", dir, &flat, &raw, &said]);
    want.sort_unstable();
    assert_eq!(paths(&found), want);
    for path in &gone {
        let row = &found[path];
        let facts = (&row["state"], &row["size"], &row["named_by"]);
        assert_eq!(facts, (&"deleted".into(), &0.into(), &"place".into()), "{path}");
    }
    assert_eq!((&found[&flat]["size"], &found[&flat]["named_by"]), (&(100_u64 << 30).into(), &"folder".into()));
    assert_eq!((&found[dir]["named_by"], &found[dir]["state"]), (&"config".into(), &"reformatted".into()));
    let text = String::from_utf8(expect(1, ["cat", &at(&image, &said)])).unwrap();
    assert!(text.starts_with("# Disk DescriptorFile\n") && text.contains("RW 209715200 VMFS \"test-flat.vmdk\""));
    let told: Vec<Value> = records(0, ["scan", "--json", image.to_str().unwrap()]);
    let told = told.iter().filter(|row| row["record"] == "unlinked");
    assert_eq!(told.filter(|row| found.contains_key(row["path"].as_str().unwrap())).count(), 8);
}

#[test]
fn a_datastore_of_another_version_is_found_under_the_new_one() {
    for name in ["vmfs5-reformatted", "vmfs6-reformatted"] {
        let folder = tempfile::tempdir().unwrap();
        let image = sample(folder.path(), name);
        let found = found(&image);
        let flat =
            found.keys().find(|path| path.ends_with("/test/test-flat.vmdk")).unwrap_or_else(|| panic!("{found:?}"));
        let (row, disk) = (&found[flat], flat.replace("-flat.vmdk", ".raw"));
        assert_eq!((&row["state"], &row["size"]), (&"reformatted".into(), &(100_u64 << 30).into()), "{name}");
        assert_eq!(row["map"]["lost"], 0, "{name}: {row}");
        // The piece that the sample has there, through the disk that was put together.
        let piece = ["cat", &at(&image, &disk), "--offset", &(77_u64 << 30).to_string(), "--length", "2000000"];
        assert_eq!(expect(1, piece), vdrecover_testdata::vmfs::pattern(2_000_000, 96), "{name}");
    }
}

#[test]
fn recover_writes_what_was_found_and_its_manifest_says_how() {
    let folder = tempfile::tempdir().unwrap();
    let image = sample(folder.path(), "vmfs6-reformatted");
    let out = folder.path().join("out");
    // As `cat` of a find ends with 1, so does taking out nothing but finds; beside the living they change nothing.
    expect(1, ["recover", image.to_str().unwrap(), "--what", "found", "-o", out.to_str().unwrap()]);
    let beside = folder.path().join("beside");
    expect(0, ["recover", image.to_str().unwrap(), "-o", beside.to_str().unwrap()]);
    let lines = fs::read_to_string(out.join("manifest.jsonl")).unwrap();
    let rows: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let path = |row: &Value| row["path"].as_str().unwrap().to_owned();
    assert!(rows.iter().all(|row| path(row).starts_with("found")), "{rows:?}");
    let text = rows.iter().find(|row| path(row).ends_with("/test.vmdk")).unwrap();
    assert_eq!((&text["state"], &text["named_by"]), (&"reformatted".into(), &"folder".into()));
    assert!(text["why"].as_str().unwrap().contains("descriptor") && text["map_sums"]["lost"] == 0, "{text}");
    // The disk is there once: flattened, and not as what it was put together of.
    let disk = rows.iter().find(|row| path(row).ends_with("/test.raw")).unwrap();
    assert!(!rows.iter().any(|row| path(row).ends_with("-flat.vmdk")), "{rows:?}");
    assert_eq!(fs::metadata(out.join(path(disk))).unwrap().len(), 100 << 30);
}

#[test]
fn one_and_eight_threads_say_the_same() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["vmfs5-deleted", "vmfs6-crashed"] {
        let image = sample(folder.path(), name);
        let run = |threads: &str| {
            let all = ["--json", "--threads", threads, image.to_str().unwrap()];
            let scan = common::vdrecover(["scan"].iter().chain(&all)).stdout;
            (scan, common::vdrecover(["ls", "-R"].iter().chain(&all)).stdout)
        };
        let one = run("1");
        assert!(one == run("8") && !one.0.is_empty(), "{name}");
    }
}

#[test]
fn what_was_in_a_live_folder_is_listed_with_all_only() {
    let folder = tempfile::tempdir().unwrap();
    let image = sample(folder.path(), "vmfs6-deleted");
    let list = |all: &[&str]| {
        let mut args = vec!["ls", "--json"];
        args.extend(all);
        let place = at(&image, "store/deleted/vm");
        args.push(&place);
        let rows = records(0, args);
        rows.iter().map(|row| row["state"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(list(&[]), ["live"]);
    assert_eq!(list(&["--all"]), ["live", "deleted", "deleted"]);
}

/// A flat disk without a name gets it from its description, whatever else was deleted.
#[test]
fn a_description_names_its_disk() {
    let folder = tempfile::tempdir().unwrap();
    let mut store = Vmfs::new(VmfsSpec::new(Version::Five, 2 << 30));
    let auto = Layout::default();
    let text = "# Disk DescriptorFile\nversion=1\nCID=00000001\nparentCID=ffffffff\ncreateType=\"vmfs\"\n\
                RW 20480 VMFS \"web-flat.vmdk\"\n";
    store.file("web.vmdk", Content::bytes(text), &auto);
    store.file("web-flat.vmdk", Content::patterned(10 << 20, 5), &auto);
    store.file("other", Content::patterned(3 << 20, 6), &auto);
    for name in ["web.vmdk", "web-flat.vmdk", "other"] {
        store.delete_keeping_pointers(name);
    }
    // The entries that the deletions left behind are gone as well.
    for n in 0..20 {
        store.file(&format!("later-{n}"), Content::bytes(*b"x"), &auto);
    }
    let image = save(folder.path(), &store.finish());
    let found = found(&image);
    let named: BTreeMap<&str, &str> =
        found.iter().filter_map(|(path, row)| Some((path.as_str(), row["named_by"].as_str()?))).collect();
    assert_eq!(named["found/deleted/web-flat.vmdk"], "descriptor", "{named:?}");
    assert_eq!(named["found/deleted/web.vmdk"], "descriptor", "{named:?}");
    assert_eq!(named.len(), 3, "{named:?}");
    let disk = expect(1, ["cat", &at(&image, "found/deleted/web.raw")]);
    assert!(disk == Content::patterned(10 << 20, 5).read(0, 10 << 20));
}

fn scan(image: &Path, options: &[&str]) -> Vec<Value> {
    let mut args = vec!["scan", "--json", image.to_str().unwrap()];
    args.extend(options);
    serde_json::Deserializer::from_slice(&common::vdrecover(args).stdout).into_iter().map(Result::unwrap).collect()
}

/// What lost its entry in a folder that lives is found under that folder's name.
#[test]
fn what_was_in_a_live_folder_is_found_under_its_name() {
    let folder = tempfile::tempdir().unwrap();
    let mut store = Vmfs::new(VmfsSpec::new(Version::Six, 2 << 30));
    let auto = Layout::default();
    for path in ["a", "a/b", "c"] {
        store.mkdir(path);
    }
    for (number, path) in ["a/b/x.bin", "c/x.bin", "x.bin"].into_iter().enumerate() {
        store.file(path, Content::patterned(2 << 20, number as u64), &auto);
        store.orphan(path);
    }
    let image = save(folder.path(), &store.finish());
    let found = found(&image);
    let files: Vec<&str> =
        found.iter().filter(|(_, row)| row["type"] == "file").map(|(path, _)| path.as_str()).collect();
    let [in_b, in_c, top] = files.as_slice() else { panic!("{files:?}") };
    assert!(in_b.starts_with("found/orphaned/a/b/orphan_"), "{files:?}");
    assert!(in_c.starts_with("found/orphaned/c/orphan_"), "{files:?}");
    assert!(top.starts_with("found/orphaned/orphan_"), "{files:?}");
    // All of it is listed once, and each find under one path.
    let rows = records(0, ["ls", "-R", "--all", "--json", image.to_str().unwrap()]);
    let all: Vec<&str> = rows.iter().filter_map(|row| row["path"].as_str()).collect();
    let mut once = all.clone();
    once.sort_unstable();
    once.dedup();
    assert_eq!(all.len(), once.len());
    assert_eq!(all.iter().filter(|path| path.contains("orphan_")).count(), 3, "{all:?}");
}

/// A lost machine is shown as one, and the command that scan suggests takes it out.
#[test]
fn scan_shows_lost_machines_and_how_to_get_them() {
    let folder = tempfile::tempdir().unwrap();
    let mut store = Vmfs::new(VmfsSpec::new(Version::Six, 2 << 30));
    let auto = Layout::default();
    let text = "# Disk DescriptorFile\nversion=1\nCID=00000001\nparentCID=ffffffff\ncreateType=\"vmfs\"\n\
                RW 6144 VMFS \"web-flat.vmdk\"\n";
    store.mkdir("web");
    store.file("web/web.vmx", Content::bytes(*b"config.version = \"8\"\ndisplayName = \"web\"\n"), &auto);
    store.file("web/web.vmdk", Content::bytes(text), &auto);
    let disk = Content::patterned(3 << 20, 5);
    store.file("web/web-flat.vmdk", disk.clone(), &auto);
    for path in ["web/web.vmx", "web/web.vmdk", "web/web-flat.vmdk"] {
        store.delete_keeping_pointers(path);
    }
    store.delete_keeping_pointers("web");
    let image = save(folder.path(), &store.finish());
    let rows = scan(&image, &[]);
    let lost: Vec<&Value> = rows.iter().filter(|row| row["record"] == "lost_vm").collect();
    let [vm] = lost.as_slice() else { panic!("{lost:?}") };
    let facts = (&vm["name"], &vm["path"], &vm["class"], &vm["config"]);
    assert_eq!(facts, (&"web".into(), &"found/deleted/web".into(), &"deleted".into(), &true.into()));
    let disks = vm["disks"].as_array().unwrap();
    assert_eq!(disks.len(), 1, "the flat file is a part of its disk: {disks:?}");
    assert_eq!((&disks[0]["name"], &disks[0]["map"]["good"]), (&"web.raw".into(), &(3 << 20).into()));
    let next = rows.iter().find(|row| row["record"] == "next").unwrap();
    let commands: Vec<&str> = next["commands"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    let command = commands.iter().find(|command| command.contains("::found/deleted/web ")).unwrap();
    let args: Vec<&str> = command.split(' ').skip(1).collect();
    let done =
        std::process::Command::new(env!("CARGO_BIN_EXE_vdrecover")).args(args).current_dir(folder.path()).output();
    assert_eq!(done.unwrap().status.code(), Some(1), "inferred, as `cat` of it");
    assert!(fs::read(folder.path().join("web/web.raw")).unwrap() == disk.read(0, 3 << 20));
}

/// A pointer block whose blocks a searched disk has is not shown beside it.
#[test]
fn fragments_of_a_disk_that_was_put_together_are_in_it() {
    use vdrecover_testdata::scenes::{Order, lost_guest};
    let folder = tempfile::tempdir().unwrap();
    let guest = lost_guest(Version::Six, Guest::Ext, 3 << 30, Order::Ascending, Left::Kept);
    let image = save(folder.path(), &guest.scene.devices);
    let fragments = |options: &[&str]| -> Vec<Value> {
        let rows = scan(&image, options).into_iter();
        rows.filter(|row| row["record"] == "unlinked" && row["class"] == "fragment").collect()
    };
    let before = fragments(&[]);
    assert_eq!(before.len(), 1, "{before:?}");
    assert!(before[0]["path"].as_str().unwrap().contains("/fragment_"), "{before:?}");
    let after = fragments(&["--deep"]);
    assert_eq!(after.len(), 1, "{after:?}");
    let name = before[0]["path"].as_str().unwrap().rsplit('/').next().unwrap();
    assert!(!after[0]["path"].as_str().unwrap().contains(name), "{after:?}");
    assert!(after[0]["why"].as_str().unwrap().contains(&format!("all of {name} is in it")), "{after:?}");
}

/// What a search of free space saw is kept in the case folder for the next command, and holds for the same input only.
#[test]
fn a_search_is_kept_for_the_next_command() {
    use vdrecover_testdata::scenes::{Order, lost_guest};
    let (folder, kept) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let guest = lost_guest(Version::Six, Guest::Ext, 3 << 30, Order::Ascending, Left::Zeroed);
    let image = save(folder.path(), &guest.scene.devices);
    let case = kept.path().join("case");
    let options = ["--deep", "--case", case.to_str().unwrap()];
    let disks = || scan(&image, &options).iter().filter(|row| row["class"] == "fragment").count();
    let first = scan(&image, &options);
    assert!(disks() > 0);
    let files: Vec<PathBuf> = fs::read_dir(&case).unwrap().map(|entry| entry.unwrap().path()).collect();
    let of_search = |path: &&PathBuf| path.file_name().unwrap().to_str().unwrap().starts_with("search-");
    let file = files.iter().find(of_search).unwrap();
    assert_eq!(scan(&image, &options), first);
    // Nothing is searched again: what the file does not tell is not found.
    let mut text: Value = serde_json::from_slice(&fs::read(file).unwrap()).unwrap();
    text["clues"] = Vec::<Value>::new().into();
    fs::write(file, text.to_string()).unwrap();
    assert_eq!(disks(), 0);
    // An input that changed is.
    fs::File::open(&image).unwrap().set_modified(std::time::SystemTime::now()).unwrap();
    assert!(disks() > 0);
    assert_eq!(scan(&image, &options), first);
}
