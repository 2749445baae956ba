//! Disks written as images, read back by `qemu-img` and by the program itself.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs, reason = "tests")]

mod common;

use common::{demo, expect, records, tool, vdrecover};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use vdrecover_testdata::Device;
use vdrecover_testdata::vmfs::pattern;

const MIB: u64 = 1 << 20;

fn text(path: &Path) -> String {
    path.display().to_string()
}

/// Noise, text, zeros on purpose, holes, ends that fill no cluster, and data far behind.
fn disk(len: u64) -> Device {
    let mut disk = Device::new(len);
    disk.write(0, &pattern(3_000_000, 1));
    disk.write(5 * MIB + 512, &b"the quick brown fox jumps over the lazy dog. ".repeat(40_000));
    disk.write(9 * MIB, &vec![0; 300_000]);
    disk.write(len - 70_000, &pattern(70_000, 2));
    if len > 600 * MIB {
        disk.write(513 * MIB + 1, &b"beyond the first table ".repeat(20_000));
        disk.write(545 * MIB, &pattern(200_000, 3));
    }
    disk
}

fn raw(folder: &Path, name: &str, disk: &Device) -> PathBuf {
    let path = folder.join(name);
    disk.save(&path).unwrap();
    path
}

fn qemu_img(args: &[&str]) -> String {
    let output = Command::new("qemu-img").args(args).stdin(Stdio::null()).output().unwrap();
    let told = [output.stdout, output.stderr].concat();
    let told = String::from_utf8_lossy(&told).into_owned();
    assert!(output.status.success(), "qemu-img {}: {told}", args.join(" "));
    told
}

fn sha256sum(folder: &Path, file: &str) {
    let args = ["--strict", "-c", file];
    let output = Command::new("sha256sum").args(args).current_dir(folder).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

/// `image` is right to itself, has the bytes of `raw`, and reads so by the program too.
fn check(format: &str, image: &Path, raw: &Path) {
    let back = expect(0, ["cat", &text(image)]);
    assert!(back == fs::read(raw).unwrap(), "{}", image.display());
    let scanned = String::from_utf8(expect(0, ["scan", &text(image)])).unwrap();
    assert!(!scanned.contains("doubtful"), "{scanned}");
    if tool("images", "qemu-img", &["--version"]) {
        qemu_img(&["compare", "-f", "raw", "-F", format, &text(raw), &text(image)]);
        if format == "qcow2" {
            let told = qemu_img(&["check", &text(image)]);
            assert!(told.contains("No errors were found"), "{told}");
        }
    }
}

#[test]
fn a_qcow2_of_every_packing_is_right() {
    let folder = tempfile::tempdir().unwrap();
    for (name, len) in [("small", 12 * MIB + 512), ("large", 700 * MIB)] {
        let raw = raw(folder.path(), &format!("{name}.img"), &disk(len));
        let mut sizes = Vec::new();
        for packing in ["none", "zlib", "zstd"] {
            let out = folder.path().join(format!("{name}-{packing}.qcow2"));
            expect(0, ["export", &text(&raw), "-o", &text(&out), "--compress", packing]);
            check("qcow2", &out, &raw);
            sha256sum(folder.path(), &format!("{name}-{packing}.qcow2.sha256"));
            sizes.push(fs::metadata(&out).unwrap().len());
            // The same from one thread.
            let again = folder.path().join("again.qcow2");
            let args = ["export", &text(&raw), "-o", &text(&again), "--compress", packing, "--threads", "1"];
            expect(0, args.iter().copied().chain(["--force"]));
            assert!(fs::read(&again).unwrap() == fs::read(&out).unwrap());
        }
        assert!(sizes[0] < len - 4 * MIB || name == "small", "zeros take no room: {sizes:?}");
        assert!(sizes[1] < sizes[0] - MIB && sizes[2] < sizes[0] - MIB, "{sizes:?}");
    }
}

#[test]
fn the_hash_is_of_the_disk_and_of_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let raw = raw(folder.path(), "a.img", &disk(12 * MIB));
    let (plain, image) = (folder.path().join("plain.raw"), folder.path().join("a.qcow2"));
    let first = records(0, ["export", "--json", &text(&raw), "-o", &text(&plain)]);
    let second = records(0, ["export", "--json", &text(&raw), "-o", &text(&image), "--compress", "zstd"]);
    assert_eq!(first[0]["sha256"], second[0]["sha256"]);
    assert_eq!(second[0]["image_length"], fs::metadata(&image).unwrap().len());
    let sums = fs::read_to_string(folder.path().join("a.qcow2.sha256")).unwrap();
    assert!(sums.contains(second[0]["sha256"].as_str().unwrap()), "{sums}");
    assert!(sums.contains(second[0]["image_sha256"].as_str().unwrap()), "{sums}");
    sha256sum(folder.path(), "plain.raw.sha256");
}

#[test]
fn what_is_lost_is_told_and_reads_as_zeros_in_an_image() {
    let folder = tempfile::tempdir().unwrap();
    let device = disk(12 * MIB);
    let raw = raw(folder.path(), "a.img", &device);
    let map = folder.path().join("a.map");
    fs::write(&map, "# Mapfile\n0x0 ? 1\n0x0 0x100200 +\n0x100200 0x200 -\n0x100400 0xAFFC00 +\n").unwrap();
    let image = folder.path().join("a.qcow2");
    let mapped = format!("{}={}", raw.display(), map.display());
    let args = ["export", "--json", &text(&raw), "-o", &text(&image), "--compress", "zlib", "--mapfile", &mapped];
    let told = records(1, args);
    assert_eq!(told[0]["missing"], 512);
    let lines = fs::read_to_string(folder.path().join("a.qcow2.map")).unwrap();
    assert!(lines.contains("0x00100200  0x00000200  -"), "{lines}");
    let mut want = device.read(0, usize::try_from(device.len()).unwrap());
    want[0x10_0200..0x10_0400].fill(0);
    assert!(expect(0, ["cat", &text(&image)]) == want);
}

#[test]
fn nothing_is_replaced_and_a_format_that_is_not_written_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let raw = raw(folder.path(), "a.img", &disk(12 * MIB));
    let image = folder.path().join("b.qcow2");
    for taken in ["b.qcow2", "b.qcow2.sha256"] {
        fs::write(folder.path().join(taken), "mine").unwrap();
        let output = vdrecover(["export", &text(&raw), "-o", &text(&image)]);
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2));
        assert!(told.contains(taken) && told.contains("exists already"), "{told}");
        assert_eq!(fs::read(folder.path().join(taken)).unwrap(), b"mine");
        fs::remove_file(folder.path().join(taken)).unwrap();
    }
    for (out, more, word) in [
        ("c.vhdx", &[][..], "does not write vhdx"),
        ("c.raw", &["--compress", "zstd"], "--compress is for qcow2"),
        ("-", &["--format", "qcow2"], "only a file can become a qcow2"),
    ] {
        let out = if out == "-" { out.to_owned() } else { text(&folder.path().join(out)) };
        let output = vdrecover(["export", &text(&raw), "-o", &out].iter().chain(more));
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{told}");
        assert!(told.contains(word), "{told}");
    }
}

#[test]
fn a_disk_of_a_vm_becomes_an_image() {
    let folder = tempfile::tempdir().unwrap();
    let locator = format!("{}::vms/web01/web01.raw", demo().display());
    let (plain, image) = (folder.path().join("web.img"), folder.path().join("web.qcow2"));
    expect(0, ["export", &locator, "-o", &text(&plain)]);
    expect(0, ["export", &locator, "-o", &text(&image), "--compress", "zlib"]);
    check("qcow2", &image, &plain);
}
