//! Folders of images whose names and references are odd or hostile: nothing vanishes without a word, nothing is
//! taken for another, and what is printed is safe to look at and to paste.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs, reason = "tests")]

mod common;

use common::{expect, records, tool, vdrecover};
use serde_json::Value;
use std::fs;
use std::path::Path;
use std::process::Command;

/// A descriptor; `more` is what stands before its extents.
fn descriptor(path: &Path, cid: &str, more: &str, extents: &str) {
    let parent = if more.contains("parentCID") { "" } else { "parentCID=ffffffff\n" };
    let text = format!("# Disk DescriptorFile\nversion=1\nCID={cid}\n{parent}{more}createType=\"vmfs\"\n{extents}\n");
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

/// A disk of one sector, filled with `byte`.
fn disk(folder: &Path, name: &str, cid: &str, byte: u8) {
    descriptor(&folder.join(format!("{name}.vmdk")), cid, "", &format!("RW 1 VMFS \"{name}-flat.vmdk\""));
    fs::write(folder.join(format!("{name}-flat.vmdk")), [byte; 512]).unwrap();
}

fn machine(path: &Path, name: &str, disks: &[&str]) {
    let slots: Vec<String> = disks
        .iter()
        .enumerate()
        .map(|(at, disk)| format!("scsi0:{at}.present = \"TRUE\"\nscsi0:{at}.fileName = \"{disk}\"\n"))
        .collect();
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, format!("displayName = \"{name}\"\n{}", slots.concat())).unwrap();
}

fn arg(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn codes(records: &[Value]) -> Vec<&str> {
    records.iter().filter_map(|record| record["code"].as_str()).collect()
}

fn paths<'a>(records: &'a [Value], kind: &str) -> Vec<&'a str> {
    records.iter().filter(|record| record["record"] == kind).filter_map(|record| record["path"].as_str()).collect()
}

#[test]
fn images_that_are_parts_of_each_other_do_not_vanish() {
    let folder = tempfile::tempdir().unwrap();
    descriptor(&folder.path().join("a.vmdk"), "1", "", "RW 1 VMFS \"b.vmdk\"");
    descriptor(&folder.path().join("b.vmdk"), "2", "", "RW 1 VMFS \"a.vmdk\"");
    let found = records(1, ["scan", "--json", arg(folder.path())]);
    assert_eq!(paths(&found, "disk"), ["disks/a.raw"]);
    assert!(codes(&found).contains(&"WANT-LOOP"), "{found:?}");
}

#[test]
fn a_child_that_contradicts_its_parent_does_not_hide_it() {
    let folder = tempfile::tempdir().unwrap();
    disk(folder.path(), "base", "11111111", b'b');
    let more = "parentCID=22222222\nparentFileNameHint=\"base.vmdk\"\n";
    descriptor(&folder.path().join("child.vmdk"), "33333333", more, "RW 1 ZERO");
    let found = records(1, ["scan", "--json", arg(folder.path())]);
    assert_eq!(paths(&found, "disk"), ["disks/base.raw", "disks/child.raw"]);
}

#[test]
fn what_can_not_be_opened_in_a_folder_is_told() {
    let folder = tempfile::tempdir().unwrap();
    for number in 0..100 {
        fs::write(folder.path().join(format!("{number}.img")), [1; 512]).unwrap();
    }
    // Root may read everything, but not open more than the limit.
    let line = format!("ulimit -n 64; exec {} scan --json {}", env!("CARGO_BIN_EXE_vdrecover"), arg(folder.path()));
    let output = Command::new("bash").args(["-c", &line]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert_eq!(text.matches("\"record\":\"disk\"").count() + text.matches("FILE-OPEN").count(), 100);
}

#[test]
fn files_that_are_no_images_do_not_stay_open() {
    let folder = tempfile::tempdir().unwrap();
    for number in 0..100 {
        fs::write(folder.path().join(format!("{number}.log")), "text").unwrap();
    }
    fs::write(folder.path().join("disk.img"), [1; 512]).unwrap();
    let line = format!("ulimit -n 64; exec {} scan {}", env!("CARGO_BIN_EXE_vdrecover"), arg(folder.path()));
    assert_eq!(Command::new("bash").args(["-c", &line]).status().unwrap().code(), Some(0));
}

#[test]
fn a_clone_finds_its_base_by_the_whole_path() {
    let folder = tempfile::tempdir().unwrap();
    let store = folder.path().join("ds1");
    disk(&store.join("base"), "web", "fffffffe", b'b');
    disk(&store.join("other"), "web", "fffffffe", b'o');
    let more = "parentCID=fffffffe\nparentFileNameHint=\"/vmfs/volumes/ds1/base/web.vmdk\"\n";
    descriptor(&store.join("clone/web.vmdk"), "fffffffe", more, "RW 1 VMFSSPARSE \"none-delta.vmdk\"");
    let info = records(1, ["info", "--json", arg(&store)]);
    let clone = info.iter().find(|item| item["label"].as_str().is_some_and(|label| label.ends_with("clone/web.vmdk")));
    let wants = clone.unwrap()["wants"].as_array().unwrap();
    let parent = wants.iter().find(|want| want["role"] == "parent").unwrap();
    assert_eq!(parent["found"], true, "{parent}");
}

#[test]
fn a_machine_gets_the_disk_of_the_datastore_that_it_names() {
    let folder = tempfile::tempdir().unwrap();
    let (one, two) = (folder.path().join("ds1"), folder.path().join("ds2"));
    disk(&one.join("web"), "web", "1", b'1');
    disk(&two.join("web"), "web", "2", b'2');
    machine(&one.join("web/web.vmx"), "web", &["/vmfs/volumes/ds2/web/web.vmdk"]);
    let bytes = expect(0, ["cat", &format!("{}::vms/web/web.raw", arg(&one)), "--with", arg(&two)]);
    assert_eq!(bytes, [b'2'; 512]);
}

#[test]
fn a_machine_has_a_name_that_is_one_folder() {
    let folder = tempfile::tempdir().unwrap();
    for (number, name) in ["../../x$(id)", "a/b", "a_b"].into_iter().enumerate() {
        let home = folder.path().join(number.to_string());
        disk(&home, "d", &number.to_string(), b'x');
        machine(&home.join("d.vmx"), name, &["d.vmdk"]);
    }
    let found = records(0, ["scan", "--json", arg(folder.path())]);
    for path in paths(&found, "vm") {
        assert_eq!(path.matches('/').count(), 1, "{path}");
        expect(0, ["cat", &format!("{}::{path}/d.raw", arg(folder.path()))]);
    }
    let next = found.iter().find(|record| record["record"] == "next").unwrap();
    assert!(next["commands"][1].as_str().unwrap().ends_with("-o '.._.._x$(id)'"), "{next}");
}

#[test]
fn sums_of_impossible_sizes_stay_sums() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["a", "b"] {
        descriptor(&folder.path().join(format!("{name}.vmdk")), "1", "", "RW 36028797018963967 ZERO");
    }
    machine(&folder.path().join("vm.vmx"), "vm", &["a.vmdk", "b.vmdk"]);
    let found = records(0, ["scan", "--json", arg(folder.path())]);
    let vm = found.iter().find(|record| record["record"] == "vm").unwrap();
    assert_eq!(vm["size"], u64::MAX);
}

#[test]
fn with_helps_and_is_not_what_was_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    fs::create_dir(at("with")).unwrap();
    fs::write(at("disk.img"), [b'd'; 512]).unwrap();
    fs::write(at("with/one.img"), [b'1'; 512]).unwrap();
    fs::write(at("with/two.img"), [b'2'; 512]).unwrap();
    assert_eq!(expect(0, ["cat", arg(&at("disk.img")), "--with", arg(&at("with"))]), [b'd'; 512]);
}

#[test]
fn what_is_next_goes_on_with_all_images() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    fs::write(at("a b.img"), [b'1'; 512]).unwrap();
    fs::write(at("two.img"), [b'2'; 512]).unwrap();
    let found = records(0, ["scan", "--json", arg(&at("a b.img")), arg(&at("two.img"))]);
    let next = found.iter().find(|record| record["record"] == "next").unwrap();
    let recover = next["commands"].as_array().unwrap().last().unwrap().as_str().unwrap();
    let home = arg(folder.path());
    assert_eq!(recover, format!("vdrecover recover '{home}/a b.img' {home}/two.img -o DIR"));
}

#[test]
fn an_internal_snapshot_is_no_second_disk() {
    const TEST: &str = "an_internal_snapshot_is_no_second_disk";
    if !tool(TEST, "qemu-img", &["--version"]) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("disk.qcow2");
    let qemu_img = |args: &[&str]| assert!(Command::new("qemu-img").args(args).status().unwrap().success());
    qemu_img(&["create", "-q", "-f", "qcow2", arg(&image), "64K"]);
    qemu_img(&["snapshot", "-c", "before", arg(&image)]);
    assert_eq!(expect(0, ["cat", arg(&image)]).len(), 64 << 10);
    let listed = String::from_utf8(expect(0, ["ls", "-R", arg(&image)])).unwrap();
    assert_eq!(listed, "disks/\ndisks/disk.raw\ndisks/disk@before.raw\n");
}

#[test]
fn the_case_folder_does_not_lie_beside_what_helps() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    for name in ["input", "with"] {
        fs::create_dir(at(name)).unwrap();
        fs::write(at(name).join("disk.img"), [1; 512]).unwrap();
    }
    let (input, with, case) = (at("input/disk.img"), at("with/disk.img"), at("with/case"));
    let output = vdrecover(["scan", arg(&input), "--with", arg(&with), "--case", arg(&case)]);
    assert_eq!(output.status.code(), Some(2));
    assert!(!case.exists());
}

#[test]
fn a_map_does_not_start_behind_the_end() {
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("disk.img");
    fs::write(&image, [1; 512]).unwrap();
    expect(2, ["map", arg(&image), "--offset", "513"]);
    expect(0, ["map", arg(&image), "--offset", "512"]);
}

#[test]
fn names_of_files_move_no_cursor() {
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("a\u{1b}[2J\nb.img");
    fs::write(&image, [1; 512]).unwrap();
    for command in ["scan", "info", "map"] {
        let output = vdrecover([command, arg(&image)]);
        let lines = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        assert!(!lines.contains('\u{1b}') && !lines.lines().any(|line| line.starts_with("b.img")), "{lines}");
    }
}
