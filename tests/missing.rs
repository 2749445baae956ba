//! What is not there is told by every command that should have shown it: a VM or disk never just disappears.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, missing_docs, reason = "tests")]

mod common;

use common::{demo, expect, records, vdrecover};
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;
use vdrecover_testdata::vmfs::{Content, Layout, Located, Version, Vmfs, VmfsSpec, pattern};

fn arg(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A folder with the files of one of the demo's VMs.
fn vm(folder: &Path, name: &str) {
    expect(0, ["export", &format!("{}::store/datastore1/{name}", arg(&demo())), "-o", arg(folder)]);
    fs::remove_file(folder.join("manifest.jsonl")).unwrap();
}

/// Every command that takes the folder as a whole ends with 1 and says `word`.
#[track_caller]
fn told(folder: &Path, paths: &[&str], word: &str) {
    let out = tempfile::tempdir().unwrap();
    let dest = out.path().join("out");
    let mut runs = vec![
        vec!["scan".to_owned(), arg(folder).to_owned()],
        vec!["ls".to_owned(), "-R".to_owned(), arg(folder).to_owned()],
        vec!["recover".to_owned(), arg(folder).to_owned(), "-o".to_owned(), arg(&dest).to_owned()],
    ];
    for (at, path) in paths.iter().enumerate() {
        let (locator, dest) = (format!("{}::{path}", arg(folder)), format!("{}-{at}", arg(&dest)));
        runs.push(vec!["ls".to_owned(), locator.clone()]);
        runs.push(vec!["export".to_owned(), locator, "-o".to_owned(), dest]);
    }
    for args in runs {
        let output = vdrecover(&args);
        let all = [output.stdout, output.stderr].concat();
        let all = String::from_utf8(all).unwrap();
        assert_eq!(output.status.code(), Some(1), "{args:?}: {all}");
        assert!(all.contains(word), "no {word:?}: {args:?}: {all}");
    }
}

#[test]
fn a_datastore_of_which_only_the_system_files_were_copied() {
    let out = tempfile::tempdir().unwrap();
    let folder = out.path().join("copied");
    fs::create_dir(&folder).unwrap();
    for name in [".vh.sf", ".fdc.sf", ".fbb.sf", ".sbc.sf", ".pbc.sf", ".pb2.sf", ".jbc.sf"] {
        let file = format!("{}::store/datastore1/{name}", arg(&demo()));
        expect(0, ["export", &file, "--no-hash", "-o", arg(&folder.join(name))]);
    }
    for given in [folder.clone(), folder.join(".vh.sf")] {
        let rows = records(1, ["scan", "--json", arg(&given)]);
        assert!(rows.iter().any(|row| row["record"] == "store" && row["kind"] == "VMFS-6.82"), "{rows:?}");
        // The root folder lies in a file block, so that its names are lost; other folders lie in sub-blocks.
        let listed = records(0, ["ls", "-R", "--all", "--json", &format!("{}::found/orphaned", arg(&given))]);
        for (path, whole) in [("web01/web01.vmx", true), ("web01/web01-flat.vmdk", false), (".sbc.sf", true)] {
            let path = format!("found/orphaned/{path}");
            let row = listed.iter().find(|row| row["path"] == path).unwrap_or_else(|| panic!("no {path}"));
            assert_eq!(row["missing"] == 0, whole, "{row}");
        }
        assert!(rows.iter().any(|row| row["code"] == "VMFS-SF-ONLY"), "{rows:?}");
    }
}

/// Without the file that has the header, the descriptors say all but the name.
#[test]
fn a_part_of_the_system_files() {
    let out = tempfile::tempdir().unwrap();
    let folder = out.path().join("copied");
    fs::create_dir(&folder).unwrap();
    let copy = |name: &str| {
        let file = format!("{}::store/datastore1/{name}", arg(&demo()));
        expect(0, ["export", &file, "--no-hash", "-o", arg(&folder.join(name))]);
    };
    copy(".sbc.sf");
    let output = vdrecover(["scan", arg(&folder)]);
    let told = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{told}");
    assert!(told.contains(".sbc.sf") && told.contains("neither .fdc.sf"), "{told}");
    copy(".fdc.sf");
    // On VMFS6 a table of `.pb2.sf` says where `.sbc.sf` lies.
    copy(".pb2.sf");
    for given in [folder.clone(), folder.join(".fdc.sf")] {
        let rows = records(1, ["scan", "--json", arg(&given)]);
        assert!(rows.iter().any(|row| row["record"] == "store" && row["kind"] == "VMFS-6"), "{rows:?}");
        assert!(rows.iter().any(|row| row["code"] == "VMFS-HEADER"), "{rows:?}");
        assert!(rows.iter().all(|row| row["trust"] != "doubtful"), "{rows:?}");
        let listed = records(0, ["ls", "-R", "--all", "--json", &format!("{}::found/orphaned", arg(&given))]);
        for (path, whole) in [("web01/web01.vmx", true), ("web01/web01-flat.vmdk", false)] {
            let path = format!("found/orphaned/{path}");
            let row = listed.iter().find(|row| row["path"] == path).unwrap_or_else(|| panic!("no {path}"));
            assert_eq!(row["missing"] == 0, whole, "{row}");
        }
    }
    // With the header's file there is one store of all, and it has its name.
    copy(".vh.sf");
    let rows = records(1, ["scan", "--json", arg(&folder)]);
    let stores: Vec<_> = rows.iter().filter(|row| row["record"] == "store" && row["kind"] != "folder").collect();
    assert_eq!(stores.len(), 1, "{stores:?}");
    assert!(rows.iter().all(|row| row["code"] != "VMFS-HEADER"), "{rows:?}");
}

#[test]
fn a_disk_that_is_not_there() {
    let folder = tempfile::tempdir().unwrap();
    let vm_folder = folder.path().join("db01");
    vm(&vm_folder, "db01");
    expect(0, ["recover", arg(&vm_folder), "-o", arg(&folder.path().join("whole"))]);
    fs::remove_file(vm_folder.join("db01.vmdk")).unwrap();
    told(&vm_folder, &["vms/db01", "vms"], "db01.vmdk");
}

#[test]
fn the_disk_of_a_snapshot_that_is_not_there() {
    let folder = tempfile::tempdir().unwrap();
    let vm_folder = folder.path().join("web01");
    vm(&vm_folder, "web01");
    let list = fs::read_to_string(vm_folder.join("web01.vmsd")).unwrap();
    fs::write(vm_folder.join("web01.vmsd"), list.replace("web01-000001.vmdk", "web01-000009.vmdk")).unwrap();
    told(&vm_folder, &["vms/web01"], "web01-000009.vmdk");
}

#[test]
fn a_configuration_that_says_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let vm_folder = folder.path().join("db01");
    vm(&vm_folder, "db01");
    for text in [&[0; 700][..], b""] {
        fs::write(vm_folder.join("db01.vmx"), text).unwrap();
        told(&vm_folder, &["disks"], "db01.vmx");
    }
}

#[test]
fn a_list_of_snapshots_that_contradicts_itself() {
    let folder = tempfile::tempdir().unwrap();
    let vm_folder = folder.path().join("web01");
    vm(&vm_folder, "web01");
    let path = vm_folder.join("web01.vmsd");
    let list = fs::read_to_string(&path).unwrap();
    assert!(list.contains("snapshot1.uid = \"2\""), "{list}");
    for other in ["snapshot1.uid = \"1\"", "snapshot1.vid = \"2\"", ""] {
        fs::write(&path, list.replace("snapshot1.uid = \"2\"", other)).unwrap();
        told(&vm_folder, &["vms/web01"], "web01.vmsd");
    }
    fs::write(&path, [0; 700]).unwrap();
    told(&vm_folder, &["vms/web01"], "web01.vmsd");
    // A machine that never had any has an empty list.
    fs::write(&path, "").unwrap();
    let rows = common::records(0, ["scan", "--json", arg(&vm_folder)]);
    assert!(rows.iter().any(|row| row["record"] == "vm" && row["name"] == "web01"));
}

/// A generated datastore in a file, opened for damage.
fn sample(folder: &Path, name: &str) -> (std::path::PathBuf, fs::File) {
    vdrecover_testdata::samples::write(folder, name).unwrap();
    let mut found = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let path = found.find(|path| path.extension().is_some_and(|suffix| suffix != "json")).unwrap();
    let file = fs::OpenOptions::new().read(true).write(true).open(&path).unwrap();
    (path, file)
}

/// Where in the first 64 MiB a sequence of bytes is.
fn position(file: &fs::File, wanted: &[u8]) -> u64 {
    let mut bytes = vec![0; 64 << 20];
    file.read_exact_at(&mut bytes, 0).unwrap();
    bytes.windows(wanted.len()).position(|window| window == wanted).unwrap() as u64
}

#[test]
fn names_that_were_wiped_out_of_a_folder() {
    let folder = tempfile::tempdir().unwrap();
    let (path, file) = sample(folder.path(), "vmfs5-small");
    expect(0, ["scan", arg(&path)]);
    // The entry of the root in itself: a folder, its descriptor, its generation, its name.
    let dot = position(&file, &[2, 0, 0, 0, 4, 0, 0, 0]);
    let mut old = vec![0; 4096];
    file.read_exact_at(&mut old, dot).unwrap();
    assert_eq!(old[12..14], *b".\0");
    // All of the root: even listing and dry runs must tell.
    file.write_all_at(&[0; 4096], dot).unwrap();
    for args in [&["scan", arg(&path)][..], &["ls", "-R", arg(&path)], &["recover", "--dry-run", arg(&path), "-o", "x"]]
    {
        expect(1, args);
    }
    file.write_all_at(&old, dot).unwrap();
    // A single entry: its file is in use and in no folder.
    file.write_all_at(&[0; 140], dot + 10 * 140).unwrap();
    let text = String::from_utf8(expect(1, ["scan", arg(&path)])).unwrap();
    assert!(text.contains("VMFS-FD-UNLISTED"), "{text}");
}

#[test]
fn a_datastore_whose_device_header_is_destroyed() {
    let folder = tempfile::tempdir().unwrap();
    let (path, file) = sample(folder.path(), "vmfs6-small");
    let magic = position(&file, &0xC001_D00D_u32.to_le_bytes());
    file.write_all_at(&[0; 512], magic).unwrap();
    let text = String::from_utf8(expect(1, ["scan", arg(&path)])).unwrap();
    assert!(text.contains("LVM-HEADER") && text.contains("DATASTORE small"), "{text}");
}

#[test]
fn a_description_of_a_disk_that_is_none() {
    let folder = tempfile::tempdir().unwrap();
    let vm_folder = folder.path().join("db01");
    vm(&vm_folder, "db01");
    fs::write(vm_folder.join("db01.vmdk"), [0; 439]).unwrap();
    told(&vm_folder, &["vms/db01"], "DISK-UNKNOWN");
}

/// An entry whose descriptor is garbage: how long it is and how much is missing is not known, and not nothing.
#[test]
fn a_file_of_unknown_length() {
    let mut store = Vmfs::new(VmfsSpec::new(Version::Five, 320 << 20));
    store.file("lost.bin", Content::patterned(3_000_000, 7), &Layout::default());
    let Located { fd_lv, fd_len, .. } = store.locate("lost.bin");
    let (_, at) = store.device_position(fd_lv);
    let mut device = store.finish().remove(0);
    device.write(at, &pattern(usize::try_from(fd_len).unwrap(), 99));
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("store.img");
    device.save(&image).unwrap();
    let listed = records(1, ["ls", "--json", &format!("{}::store/datastore1", arg(&image))]);
    let row = listed.iter().find(|row| row["path"] == "store/datastore1/lost.bin").unwrap();
    assert!(row["size"].is_null() && row["missing"].is_null() && row["missing_is_exact"] == false, "{row}");
    let text = String::from_utf8(expect(1, ["ls", "-l", &format!("{}::store/datastore1", arg(&image))])).unwrap();
    let line = text.lines().find(|line| line.contains("lost.bin")).unwrap();
    assert!(line.starts_with('?') && line.ends_with("lost.bin ? missing"), "{line}");
}
