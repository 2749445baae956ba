//! What is wrong with an input or a destination is told in one clear line, with the right exit code, and nothing
//! is written over.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs, reason = "tests")]

mod common;

use common::{demo, expect, skip, vdrecover};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};

/// Runs the program, expects failure, and that the message holds all `words`. Gives the message.
#[track_caller]
fn fails<S: AsRef<OsStr>>(args: &[S], words: &[&str]) -> String {
    let output = vdrecover(args);
    let told = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{told}");
    assert!(output.stdout.is_empty(), "results in spite of the failure");
    for word in words {
        assert!(told.contains(word), "no {word:?} in {told:?}");
    }
    let lines: Vec<&str> = told.lines().collect();
    assert!(lines.len() == 1 && lines[0].starts_with("vdrecover: ") && !told.contains("panicked"), "{told}");
    told
}

fn arg(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn inputs_that_are_no_images() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    fs::write(at("notes.txt"), "hello").unwrap();
    fs::write(at("empty.img"), "").unwrap();
    fs::create_dir(at("nothing")).unwrap();
    fs::write(at("nothing/notes.txt"), "hello").unwrap();
    let status = Command::new("mkfifo").arg(at("pipe")).status().unwrap();
    assert!(status.success());
    for command in ["scan", "info", "ls"] {
        fails(&[command, arg(&at("notes.txt"))], &["notes.txt", "no image", "5 bytes"]);
        fails(&[command, arg(&at("empty.img"))], &["empty.img", "empty"]);
        fails(&[command, arg(&at("nothing"))], &["nothing", "folder", "no image"]);
        fails(&[command, arg(&at("pipe"))], &["pipe"]);
        fails(&[command, arg(&at("missing.img"))], &["missing.img", "No such file"]);
    }
    fails(
        &["scan", arg(&demo()), "--mapfile", &format!("{}={}", arg(&demo()), arg(&at("missing.map")))],
        &["missing.map"],
    );
    fails(&["scan", arg(&demo()), "--mapfile", &format!("{}={}", arg(&demo()), arg(&at("notes.txt")))], &["notes.txt"]);
}

#[test]
fn one_bad_input_among_good_ones_is_told_and_the_rest_goes_on() {
    let output = vdrecover(["scan", arg(&demo()), "no-such-file.img"]);
    let (text, told) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert!(text.contains("web01") && told.contains("no-such-file.img"), "{told}");
}

#[test]
fn a_truncated_image_says_what_is_gone() {
    let folder = tempfile::tempdir().unwrap();
    let cut = folder.path().join("cut.qcow2");
    let whole = fs::read(demo()).unwrap();
    fs::write(&cut, &whole[..whole.len() * 3 / 4]).unwrap();
    let rows = common::records(1, ["scan", "--json", arg(&cut)]);
    let lost: u64 = rows.iter().filter(|row| row["record"] == "vm").map(|row| row["missing"].as_u64().unwrap()).sum();
    assert!(lost > 0 || rows.iter().any(|row| row["record"] == "finding" && row["trust"] == "doubtful"));
    let locator = format!("{}::vms/db01/db01.raw", arg(&cut));
    let output = vdrecover(["cat", &locator]);
    // Either it is whole in what is left, or `cat` stops: never zeros with exit code 0.
    if output.status.code() == Some(0) {
        assert_eq!(output.stdout, expect(0, ["cat", &format!("{}::vms/db01/db01.raw", arg(&demo()))]));
    }
}

#[test]
fn a_file_that_shrinks_while_it_is_read_is_a_loss() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("shrinks.raw");
    let file = File::create(&path).unwrap();
    file.write_all_at(&vec![7; 64 << 20], 0).unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_vdrecover"))
        .args(["cat", arg(&path)])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut out = child.stdout.take().unwrap();
    let mut first = [0; 4096];
    std::io::Read::read_exact(&mut out, &mut first).unwrap();
    file.set_len(32 << 20).unwrap();
    let mut rest = Vec::new();
    std::io::Read::read_to_end(&mut out, &mut rest).unwrap();
    let output = child.wait_with_output().unwrap();
    let told = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert!(rest.iter().all(|byte| *byte == 7) && rest.len() + first.len() >= 32 << 20, "{}", rest.len());
    assert!(told.contains("stopped at"), "{told}");
}

#[test]
fn paths_that_are_not_in_it() {
    let at = |path: &str| format!("{}::{path}", arg(&demo()));
    fails(&["ls", &at("vms/web02")], &["vms/web02", "no such path"]);
    fails(&["cat", &at("vms/web01")], &["vms/web01", "folder"]);
    fails(&["cat", &at("vms/web01/web01.raw"), "--offset", "1T"], &["behind its end"]);
    fails(&["trace", &at("vms/web01/web01.raw"), "--offset", "128M"], &["behind its end"]);
    let folder = tempfile::tempdir().unwrap();
    fails(
        &["recover", arg(&demo()), "--vm", "web02", "-o", arg(&folder.path().join("x"))],
        &["web02", "web01", "db01"],
    );
}

#[test]
fn destinations_that_must_not_be_written() {
    let folder = tempfile::tempdir().unwrap();
    let evidence = folder.path().join("evidence");
    fs::create_dir(&evidence).unwrap();
    let image = evidence.join("datastore.qcow2");
    fs::copy(demo(), &image).unwrap();
    let before = fs::read(&image).unwrap();
    let disk = format!("{}::vms/db01/db01.raw", arg(&image));
    // The input itself, by its name, by a link, and a file in a folder that was given.
    fails(&["export", &disk, "-o", arg(&image), "--force"], &["datastore.qcow2"]);
    let link = folder.path().join("link");
    std::os::unix::fs::symlink(&image, &link).unwrap();
    fails(&["export", &disk, "-o", arg(&link), "--force"], &["link"]);
    fails(&["recover", arg(&evidence), "-o", arg(&evidence.join("out"))], &["out"]);
    assert!(!evidence.join("out").exists());
    // What exists stays, without --force.
    let there = folder.path().join("there");
    fs::write(&there, "mine").unwrap();
    fails(&["export", &disk, "-o", arg(&there)], &["there", "--force"]);
    assert_eq!(fs::read(&there).unwrap(), b"mine");
    expect(0, ["export", &disk, "-o", arg(&there), "--force"]);
    fails(&["export", &disk, "-o", arg(&folder.path().join("db01.vhdx"))], &["vhdx", "qemu-img convert"]);
    fails(&["export", &disk, "-o", arg(folder.path())], &["folder"]);
    fails(&["export", &disk, "-o", arg(&folder.path().join("no/such/folder.raw"))], &["no/such"]);
    assert_eq!(fs::read(&image).unwrap(), before);
    assert_eq!(fs::read_dir(&evidence).unwrap().count(), 1);
}

/// Runs `vdrecover` and expects that no byte of `input` changes and that the name stays.
#[track_caller]
fn keeps<S: AsRef<OsStr>>(input: &Path, args: &[S]) -> std::process::Output {
    let before = fs::read(input).unwrap();
    let output = vdrecover(args);
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(fs::read(input).is_ok_and(|now| now == before), "{} was touched: {told}", input.display());
    assert_eq!(output.status.code(), Some(2), "{told}");
    output
}

#[test]
fn names_that_an_export_would_use_for_itself_may_be_inputs() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let whole = fs::read(demo()).unwrap();
    let iso = "store/datastore1/iso/tools.iso";
    for name in ["out.iso.vdrecover-part", "out.iso.vdrecover-part.state"] {
        fs::write(at(name), &whole).unwrap();
        for force in [&["--force"][..], &[]] {
            let locator = format!("{}::{iso}", arg(&at(name)));
            let out = at("out.iso");
            keeps(&at(name), &[&["export", &locator, "-o", arg(&out)], force].concat());
        }
        fs::remove_file(at(name)).unwrap();
    }
    let names = ["manifest.jsonl", "manifest.jsonl.vdrecover-part", "manifest.jsonl.vdrecover-part.state"];
    for name in names {
        let input = at("folder").join(name);
        fs::create_dir(at("folder")).unwrap();
        fs::write(&input, &whole).unwrap();
        keeps(&input, &["recover", arg(&input), "-o", arg(&at("folder")), "--force"]);
        fs::remove_dir_all(at("folder")).unwrap();
    }
    // What a run only removes or replaces on its way: the run may go on, the input stays.
    for name in
        ["manifest.jsonl.vdrecover-old", ".vdrecover-case", iso, "store/datastore1/iso/tools.iso.vdrecover-part"]
    {
        let input = at("folder").join(name);
        fs::create_dir_all(input.parent().unwrap()).unwrap();
        fs::write(&input, &whole).unwrap();
        vdrecover(["recover", arg(&input), "-o", arg(&at("folder")), "--force"]);
        assert!(fs::read(&input).is_ok_and(|now| now == whole), "{name}");
        fs::remove_dir_all(at("folder")).unwrap();
    }
}

#[test]
fn everything_that_was_given_is_an_input() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let (image, map) = (at("datastore.qcow2"), at("out.raw.map"));
    fs::copy(demo(), &image).unwrap();
    fs::write(&map, "0x0 + 1\n0x0 0x40000000 +\n0x40000000 0x1C0100000 -\n").unwrap();
    let with_map = format!("{}={}", arg(&image), arg(&map));
    let disk = format!("{}::vms/web01/web01.raw", arg(&image));
    let iso = format!("{}::store/datastore1/iso/tools.iso", arg(&image));
    keeps(&map, &["export", &iso, "-o", arg(&map), "--force", "--mapfile", &with_map]);
    // Another member, or a part of a split image.
    let other = at("other");
    fs::create_dir(&other).unwrap();
    fs::copy(demo(), other.join("copy.qcow2")).unwrap();
    for dest in ["copy.qcow2", "new.raw"] {
        let dest = other.join(dest);
        keeps(&other.join("copy.qcow2"), &["export", &disk, "-o", arg(&dest), "--force", "--with", arg(&other)]);
    }
    let halves = fs::read(demo()).unwrap();
    let (first, second) = halves.split_at(512 << 10);
    fs::write(at("part.001"), first).unwrap();
    fs::write(at("part.002"), second).unwrap();
    let iso = format!("{}::store/datastore1/iso/tools.iso", arg(&at("part.001")));
    keeps(&at("part.002"), &["export", &iso, "-o", arg(&at("part.002")), "--force"]);
    keeps(&at("part.002"), &["scan", arg(&at("part.001")), "--case", arg(&at("case"))]);
    let stray = folder.path().join("none/../stray");
    keeps(&image, &["scan", arg(&image), "--case", arg(&stray)]);
    assert!(!at("stray").exists() && !at("none").exists());
    keeps(&image, &["scan", arg(&demo()), "--with", arg(&other), "--case", arg(&other.join("case"))]);
    assert_eq!(fs::read_dir(&other).unwrap().count(), 1);
}

#[test]
fn stdout_may_be_an_input() {
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("datastore.qcow2");
    fs::copy(demo(), &image).unwrap();
    let iso = format!("{}::store/datastore1/iso/tools.iso", arg(&image));
    for args in [&["scan", arg(&image)][..], &["cat", &iso], &["export", &iso, "-o", "-"], &["info", arg(&image)]] {
        let stdout = fs::OpenOptions::new().append(true).open(&image).unwrap();
        let output = Command::new(env!("CARGO_BIN_EXE_vdrecover")).args(args).stdout(stdout).output().unwrap();
        assert_eq!(output.status.code(), Some(2));
        assert!(String::from_utf8_lossy(&output.stderr).contains("standard output"));
        assert_eq!(fs::read(&image).unwrap(), fs::read(demo()).unwrap(), "{args:?}");
    }
}

#[test]
fn mount_points_that_can_not_be_used() {
    let test = "mount_points_that_can_not_be_used";
    let folder = tempfile::tempdir().unwrap();
    let full = folder.path().join("full");
    fs::create_dir(&full).unwrap();
    fs::write(full.join("file"), "mine").unwrap();
    fails(&["mount", arg(&demo()), arg(&full)], &["full", "not empty"]);
    fails(&["mount", arg(&demo()), arg(&folder.path().join("missing"))], &["missing"]);
    fails(&["mount", arg(&demo()), arg(&full.join("file"))], &["file"]);
    if fs::OpenOptions::new().read(true).write(true).open("/dev/fuse").is_err() {
        return skip(test, "/dev/fuse can't be opened");
    }
    let busy = folder.path().join("busy");
    fs::create_dir(&busy).unwrap();
    expect(0, ["mount", arg(&demo()), arg(&busy)]);
    fails(&["mount", arg(&demo()), arg(&busy)], &["busy"]);
    assert!(Command::new("umount").arg(&busy).status().unwrap().success());
}

#[test]
fn a_reader_that_goes_away_is_no_failure() {
    let script = format!(
        "{0} cat {1}::vms/db01/db01.raw | head -c 10 >/dev/null; {0} ls -R {1} | head -1",
        env!("CARGO_BIN_EXE_vdrecover"),
        arg(&demo())
    );
    let output = Command::new("bash").args(["-o", "pipefail", "-c", &script]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_later_segment_is_no_image_and_a_missing_one_is_told() {
    use vdrecover_testdata::ewf::{Options, write};
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let mut disk = vdrecover_testdata::Device::new(1 << 20);
    disk.write(0, b"the first");
    disk.write((1 << 20) - 512, b"the last");
    let parts = write(&disk, &Options { segment: 10, ..Options::default() });
    assert_eq!(parts.len(), 4);
    for (n, part) in parts.iter().enumerate() {
        fs::write(at(&format!("disk.E{:02}", n + 1)), part).unwrap();
    }
    let first = at("disk.E01");
    expect(0, ["info", arg(&first)]);
    fails(&["info", arg(&at("disk.E02"))], &["segment 2 of", "disk.E01"]);
    // In a folder the first one speaks for all.
    let listed = String::from_utf8(expect(0, ["info", arg(folder.path())])).unwrap();
    assert!(listed.contains("disk.E01") && !listed.contains("disk.E02"), "{listed}");
    for gone in ["disk.E04", "disk.E02"] {
        fs::remove_file(at(gone)).unwrap();
        expect(1, ["info", arg(&first)]);
        expect(1, ["cat", "--fill", arg(&first)]);
    }
}

#[test]
fn names_in_images_open_nothing_outside() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    fs::create_dir(at("given")).unwrap();
    fs::write(at("secret"), vec![b's'; 1 << 20]).unwrap();
    std::os::unix::fs::symlink(at("secret"), at("given/link-flat.vmdk")).unwrap();
    for name in ["../secret", "/etc/passwd", "link-flat.vmdk", arg(&at("secret"))] {
        let text = format!(
            "# Disk DescriptorFile\nversion=1\nCID=12345678\nparentCID=ffffffff\ncreateType=\"vmfs\"\nRW 2048 VMFS \"{name}\"\n"
        );
        fs::write(at("given/disk.vmdk"), text).unwrap();
        let out = vdrecover(["cat", "--fill", arg(&at("given/disk.vmdk"))]);
        assert_eq!(out.status.code(), Some(1), "{name}");
        assert!(out.stdout.iter().all(|byte| *byte == 0), "{name} was opened");
        let told = String::from_utf8(expect(1, ["info", arg(&at("given/disk.vmdk"))])).unwrap();
        assert_eq!(told.contains("--allow-outside"), name.contains('/'), "{told}");
        // Only who says so has them followed.
        let out = vdrecover(["cat", "--fill", "--allow-outside", arg(&at("given/disk.vmdk"))]);
        let code = i32::from(name == "/etc/passwd");
        assert_eq!(out.status.code(), Some(code), "{name}: {}", String::from_utf8_lossy(&out.stderr));
        assert!(code == 1 || out.stdout.iter().all(|byte| *byte == b's'), "{name} was not opened");
    }
    // What is no path of a file stays none.
    for name in
        ["json:{'driver':'file','filename':'secret'}", "file:../secret", "file:///etc/passwd", "nbd://host/x", ".."]
    {
        let text = format!(
            "# Disk DescriptorFile\nversion=1\nCID=12345678\nparentCID=ffffffff\ncreateType=\"monolithicFlat\"\nRW 2048 FLAT \"{name}\" 0\n"
        );
        fs::write(at("given/disk.vmdk"), text).unwrap();
        for allow in [&["--allow-outside"][..], &[]] {
            let out = vdrecover([&["cat", "--fill", arg(&at("given/disk.vmdk"))], allow].concat());
            assert_eq!(out.status.code(), Some(1), "{name}");
            assert!(out.stdout.iter().all(|byte| *byte == 0), "{name} was opened");
        }
    }
    // The same holds for a backing file.
    for (name, code) in [("../secret", 0), ("/etc/passwd", 0), ("file:../secret", 1)] {
        let mut image = vec![0; 3 << 16];
        image[..8].copy_from_slice(b"QFI\xfb\0\0\0\x02");
        image[8..16].copy_from_slice(&72_u64.to_be_bytes());
        image[16..20].copy_from_slice(&u32::try_from(name.len()).unwrap().to_be_bytes());
        image[20..24].copy_from_slice(&16_u32.to_be_bytes());
        image[24..32].copy_from_slice(&(1_u64 << 20).to_be_bytes());
        image[36..40].copy_from_slice(&1_u32.to_be_bytes());
        image[40..48].copy_from_slice(&(2_u64 << 16).to_be_bytes());
        image[72..72 + name.len()].copy_from_slice(name.as_bytes());
        fs::write(at("given/over.qcow2"), image).unwrap();
        let out = vdrecover(["cat", "--fill", arg(&at("given/over.qcow2"))]);
        assert!(out.stdout.iter().all(|byte| *byte == 0) && out.status.code() == Some(1), "{name} was opened");
        let out = vdrecover(["cat", "--fill", "--allow-outside", arg(&at("given/over.qcow2"))]);
        assert_eq!(out.stdout.iter().any(|byte| *byte != 0), code == 0, "{name}");
    }
}

#[test]
fn parents_in_a_circle_and_without_end() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let delta = |name: &str, id: u32, parent: &str, parent_id: u32| {
        let text = format!(
            "# Disk DescriptorFile\nversion=1\nCID={id:08x}\nparentCID={parent_id:08x}\ncreateType=\"vmfsSparse\"\n\
             parentFileNameHint=\"{parent}\"\nRW 2048 VMFSSPARSE \"delta.bin\"\n"
        );
        fs::write(at(name), text).unwrap();
    };
    fs::write(at("delta.bin"), vdrecover_testdata::vmdk::cowd(1 << 20, &std::collections::BTreeMap::new())).unwrap();
    // Of itself, of each other, and of three.
    delta("self.vmdk", 1, "self.vmdk", 1);
    delta("a.vmdk", 2, "b.vmdk", 3);
    delta("b.vmdk", 3, "a.vmdk", 2);
    delta("x.vmdk", 4, "y.vmdk", 5);
    delta("y.vmdk", 5, "z.vmdk", 6);
    delta("z.vmdk", 6, "x.vmdk", 4);
    for name in ["self.vmdk", "a.vmdk", "b.vmdk", "y.vmdk"] {
        let told = String::from_utf8(expect(1, ["info", arg(&at(name))])).unwrap();
        let word = if name == "self.vmdk" { "WANT-ABSENT" } else { "CHAIN-LOOP" };
        assert!(told.contains(word), "{name}: {told}");
        let out = vdrecover(["cat", "--fill", arg(&at(name))]);
        assert!(matches!(out.status.code(), Some(1 | 2)), "{name}: {}", String::from_utf8_lossy(&out.stderr));
        assert!(out.stdout.iter().all(|byte| *byte == 0), "{name}");
    }
    // More layers than any chain has.
    for n in 0..400_u32 {
        delta(&format!("n{n}.vmdk"), 100 + n, &format!("n{}.vmdk", n + 1), 101 + n);
    }
    let out = vdrecover(["cat", "--fill", arg(&at("n0.vmdk"))]);
    assert_eq!(out.status.code(), Some(1), "{}", String::from_utf8_lossy(&out.stderr));
    assert_eq!(out.stdout, vec![0; 1 << 20]);
}

/// A MiB that says that it is 64 TiB: every entry of the first table names one second table, and that one cluster.
#[test]
fn an_image_that_maps_the_same_bytes_over_and_over_is_not_searched() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("again.qcow2");
    let cluster = 1_u64 << 16;
    let (l1, l2, data) = (cluster, 20 * cluster, 21 * cluster);
    let mut header = vec![0; 104];
    header[..8].copy_from_slice(b"QFI\xfb\0\0\0\x03");
    header[20..24].copy_from_slice(&16_u32.to_be_bytes());
    header[24..32].copy_from_slice(&(64_u64 << 40).to_be_bytes());
    header[36..40].copy_from_slice(&131_072_u32.to_be_bytes());
    header[40..48].copy_from_slice(&l1.to_be_bytes());
    header[96..100].copy_from_slice(&4_u32.to_be_bytes());
    header[100..104].copy_from_slice(&104_u32.to_be_bytes());
    let file = File::create(&path).unwrap();
    file.write_all_at(&header, 0).unwrap();
    let table = |to: u64, count: usize| (to | 1 << 63).to_be_bytes().repeat(count);
    file.write_all_at(&table(l2, 131_072), l1).unwrap();
    file.write_all_at(&table(data, 8192), l2).unwrap();
    file.write_all_at(&vec![7; 1 << 16], data).unwrap();
    let rows = common::records(1, ["scan", "--json", arg(&path)]);
    assert!(rows.iter().any(|row| row["code"] == "SWEEP-BOUND"), "{rows:?}");
    expect(1, ["ls", "-l", "-R", arg(&path)]);
    // Who else has the cluster has a say: the same bytes in two places of a disk are nobody's intention.
    assert_eq!(expect(1, ["cat", "--offset", "63T", "--length", "2", arg(&path)]), [7, 7]);
}
