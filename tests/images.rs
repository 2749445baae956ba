//! Disks written as images, read back by `qemu-img` and by the program itself.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs, reason = "tests")]

mod common;

use common::{demo, expect, records, tool, vdrecover};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use vdrecover_testdata::vmfs::pattern;
use vdrecover_testdata::{Device, vmdk, vmx};

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

/// Reads a VMDK with dissect.hypervisor and prints its SHA-256.
const DISSECT: &str = "
import sys, hashlib
from pathlib import Path
from dissect.hypervisor.disk.vmdk import VMDK
stream, sha = VMDK(Path(sys.argv[1])), hashlib.sha256()
stream = stream.open() if hasattr(stream, 'open') else stream
while block := stream.read(1 << 20):
    sha.update(block)
print(sha.hexdigest())
";

#[test]
fn a_vmdk_of_every_type_is_right() {
    let folder = tempfile::tempdir().unwrap();
    for (name, len) in [("small", 12 * MIB + 512), ("large", 700 * MIB)] {
        let raw = raw(folder.path(), &format!("{name}.img"), &disk(len));
        for format in ["vmdk", "vmdk-sparse", "vmdk-stream"] {
            let out = folder.path().join(format!("{name}-{format}.vmdk"));
            expect(0, ["export", &text(&raw), "-o", &text(&out), "--format", format]);
            check("vmdk", &out, &raw);
            sha256sum(folder.path(), &format!("{name}-{format}.vmdk.sha256"));
            let flat = folder.path().join(format!("{name}-{format}-flat.vmdk"));
            assert_eq!(flat.exists(), format == "vmdk");
            // dissect reads no disk that ends off a multiple of 8 KiB.
            if name == "large" && tool("images", "python3", &["-c", "import dissect.hypervisor"]) {
                let read = Command::new("python3").args(["-c", DISSECT, &text(&out)]).output().unwrap();
                let want = Command::new("sha256sum").arg(&raw).output().unwrap();
                let (read, told) = (String::from_utf8_lossy(&read.stdout), String::from_utf8_lossy(&read.stderr));
                assert_eq!(read.trim(), &String::from_utf8_lossy(&want.stdout)[..64], "{format}: {told}");
            }
        }
        // The suffix means what ESXi can run: the descriptor, and its bytes beside it.
        let out = folder.path().join(format!("{name}.vmdk"));
        expect(0, ["export", &text(&raw), "-o", &text(&out)]);
        let descriptor = fs::read_to_string(&out).unwrap();
        assert!(descriptor.contains("createType=\"vmfs\""), "{descriptor}");
        assert!(descriptor.contains(&format!("RW {} VMFS \"{name}-flat.vmdk\"", len / 512)), "{descriptor}");
        assert!(fs::read(folder.path().join(format!("{name}-flat.vmdk"))).unwrap() == fs::read(&raw).unwrap());
    }
}

#[test]
fn a_vmdk_replaces_nothing_either() {
    let folder = tempfile::tempdir().unwrap();
    let raw = raw(folder.path(), "a.img", &disk(12 * MIB));
    for taken in ["b.vmdk", "b-flat.vmdk", "b-flat.vmdk.map"] {
        fs::write(folder.path().join(taken), "mine").unwrap();
        let output = vdrecover(["export", &text(&raw), "-o", &text(&folder.path().join("b.vmdk"))]);
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2));
        assert!(told.contains("exists already"), "{told}");
        assert_eq!(fs::read(folder.path().join(taken)).unwrap(), b"mine");
        fs::remove_file(folder.path().join(taken)).unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }
    let quoted = folder.path().join("b\".vmdk");
    let output = vdrecover(["export", &text(&raw), "-o", &text(&quoted)]);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("can't hold this name"));
}

#[test]
fn the_hash_is_of_the_disk_and_of_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let raw = raw(folder.path(), "a.img", &disk(12 * MIB));
    let (plain, image) = (folder.path().join("plain.raw"), folder.path().join("a.qcow2"));
    let first = records(0, ["export", "--json", &text(&raw), "-o", &text(&plain)]);
    let second = records(0, ["export", "--json", &text(&raw), "-o", &text(&image), "--compress", "zstd"]);
    assert_eq!(first[0]["sha256"], second[0]["sha256"]);
    let file = &second[0]["files"][0];
    assert_eq!(file["length"], fs::metadata(&image).unwrap().len());
    let sums = fs::read_to_string(folder.path().join("a.qcow2.sha256")).unwrap();
    assert!(sums.contains(second[0]["sha256"].as_str().unwrap()), "{sums}");
    assert!(sums.contains(file["sha256"].as_str().unwrap()), "{sums}");
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

/// A host's folder with a machine in it.
fn machine(folder: &Path, name: &str, shown: &str, guest: &str, disk: &Device) -> PathBuf {
    let home = folder.join(name);
    fs::create_dir_all(&home).unwrap();
    disk.save(&home.join(format!("{name}-flat.vmdk"))).unwrap();
    let descriptor = vmdk::Descriptor::flat(disk.len(), &format!("{name}-flat.vmdk"), true, 301).written(0x1122_3344);
    fs::write(home.join(format!("{name}.vmdk")), descriptor.text()).unwrap();
    let machine = vmx::Machine { name: shown, disk: &format!("{name}.vmdk"), guest, memory: 3072, number: 9 };
    let more = "firmware = \"efi\"\nscsi0:1.fileName = \"gone.vmdk\"\nscsi0:1.present = \"TRUE\"\n";
    fs::write(home.join(format!("{name}.vmx")), machine.vmx() + more).unwrap();
    folder.to_path_buf()
}

/// An XML parser of other ancestry takes it.
fn well_formed(xml: &Path) {
    if tool("images", "python3", &["-c", "import xml.dom.minidom"]) {
        let code = "import sys, xml.dom.minidom; xml.dom.minidom.parse(sys.argv[1])";
        let output = Command::new("python3").args(["-c", code, &text(xml)]).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

#[test]
fn a_vm_becomes_images_and_a_domain() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("kvm");
    let locator = format!("{}::vms/web01", demo().display());
    expect(0, ["export", &locator, "--format", "qcow2", "--compress", "zlib", "-o", &text(&out)]);
    let plain = folder.path().join("web.img");
    expect(0, ["export", &format!("{locator}/web01.raw"), "-o", &text(&plain)]);
    check("qcow2", &out.join("web01.qcow2"), &plain);
    assert!(!out.join("web01.raw").exists() && out.join("web01.vmx").exists());
    let xml = fs::read_to_string(out.join("web01.xml")).unwrap();
    for part in [
        "<name>web01</name>",
        "<memory unit='MiB'>2048</memory>",
        "<vcpu>2</vcpu>",
        "<driver name='qemu' type='qcow2'/>",
        &format!("<source file='{}'/>", out.join("web01.qcow2").display()),
        "<target dev='vda' bus='virtio'/>",
        "<mac address='00:50:56:a1:b2:01'/>",
    ] {
        assert!(xml.contains(part), "{part}: {xml}");
    }
    well_formed(&out.join("web01.xml"));
    // The manifest has the hash of the image and that of the disk.
    let manifest = fs::read_to_string(out.join("manifest.jsonl")).unwrap();
    let rows = manifest.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    let row = rows.into_iter().find(|row| row["path"] == "web01.qcow2").unwrap();
    let sums = format!(
        "{}  kvm/web01.qcow2\n{}  web.img\n",
        row["sha256"].as_str().unwrap(),
        row["disk_sha256"].as_str().unwrap()
    );
    fs::write(folder.path().join("sums"), sums).unwrap();
    sha256sum(folder.path(), "sums");
}

#[test]
fn all_vms_of_a_datastore_become_images_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("kvm");
    let args = ["recover", &text(&demo()), "--what", "vms,disks", "--format", "qcow2", "-o", &text(&out)];
    expect(0, args);
    for name in ["web01", "db01"] {
        let home = out.join("vms").join(name);
        let xml = fs::read_to_string(home.join(format!("{name}.xml"))).unwrap();
        let image = home.join(format!("{name}.qcow2"));
        assert!(xml.contains(&format!("<source file='{}'/>", image.display())), "{xml}");
        assert!(image.exists());
    }
    // Again: all of it is there.
    assert_eq!(vdrecover(args).status.code(), Some(2));
}

#[test]
fn windows_boots_from_sata_and_hostile_names_stay_text() {
    let folder = tempfile::tempdir().unwrap();
    let store = folder.path().join("store");
    let shown = "a<b>&'c'--/../d";
    machine(&store, "win", shown, "windows2019srv-64", &disk(12 * MIB));
    let out = folder.path().join("kvm");
    // A disk of it is not there.
    expect(1, ["recover", &text(&store), "--what", "vms", "--format", "qcow2", "-o", &text(&out)]);
    let homes: Vec<PathBuf> = fs::read_dir(out.join("vms")).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(homes.len(), 1, "{homes:?}");
    let xml = fs::read_dir(&homes[0]).unwrap().map(|entry| entry.unwrap().path());
    let xml = xml.into_iter().find(|path| path.extension().is_some_and(|suffix| suffix == "xml")).unwrap();
    well_formed(&xml);
    let domain = fs::read_to_string(&xml).unwrap();
    for part in [
        "<os firmware='efi'>",
        "<target dev='sda' bus='sata'/>",
        "<model type='e1000e'/>",
        "<name>a&lt;b&gt;&amp;&apos;c&apos;--_.._d</name>",
        "<!-- Its disk gone.vmdk was not there. -->",
        "<clock offset='localtime'/>",
    ] {
        assert!(domain.contains(part), "{part}: {domain}");
    }
}

#[test]
fn a_vm_becomes_an_ova() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("web01.ova");
    let locator = format!("{}::vms/web01", demo().display());
    expect(0, ["export", &locator, "-o", &text(&out)]);
    sha256sum(folder.path(), "web01.ova.sha256");
    let plain = folder.path().join("web.img");
    expect(0, ["export", &format!("{locator}/web01.raw"), "-o", &text(&plain)]);
    // Our own reader compares the members with the manifest.
    expect(0, ["scan", &text(&out)]);
    assert!(expect(0, ["cat", &format!("{}::disks/web01-disk1.raw", out.display())]) == fs::read(&plain).unwrap());
    if tool("images", "tar", &["--version"]) {
        let output = Command::new("tar").args(["-xf", "web01.ova"]).current_dir(folder.path()).output().unwrap();
        assert!(output.status.success() && output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
        let listed = Command::new("tar").args(["-tf", "web01.ova"]).current_dir(folder.path()).output().unwrap();
        assert_eq!(listed.stdout, b"web01.ovf\nweb01.mf\nweb01-disk1.vmdk\n");
        check("vmdk", &folder.path().join("web01-disk1.vmdk"), &plain);
        well_formed(&folder.path().join("web01.ovf"));
        let ovf = fs::read_to_string(folder.path().join("web01.ovf")).unwrap();
        let size = fs::metadata(folder.path().join("web01-disk1.vmdk")).unwrap().len();
        for part in [
            &format!("ovf:size=\"{size}\""),
            "ovf:capacity=\"134217728\"",
            "<rasd:VirtualQuantity>2048</rasd:VirtualQuantity>",
            "<rasd:ResourceSubType>VirtualSCSI</rasd:ResourceSubType>",
            "<rasd:ResourceSubType>VmxNet3</rasd:ResourceSubType>",
        ] {
            assert!(ovf.contains(part), "{part}: {ovf}");
        }
        let manifest = fs::read_to_string(folder.path().join("web01.mf")).unwrap();
        for line in manifest.lines() {
            let (name, hash) = line.strip_prefix("SHA256(").unwrap().split_once(")= ").unwrap();
            fs::write(folder.path().join("line"), format!("{hash}  {name}\n")).unwrap();
            sha256sum(folder.path(), "line");
        }
    }
}

#[test]
fn an_ova_of_several_disks_and_of_a_lone_one() {
    let folder = tempfile::tempdir().unwrap();
    let store = folder.path().join("store");
    // The second disk is empty at its start, and neither ends with a grain.
    machine(&store, "vm", "two", "debian12-64", &disk(12 * MIB + 512));
    let home = store.join("vm");
    let mut second = Device::new(9 * MIB + 1024);
    second.write(7 * MIB, &pattern(100_000, 7));
    second.save(&home.join("more-flat.vmdk")).unwrap();
    let descriptor = vmdk::Descriptor::flat(second.len(), "more-flat.vmdk", true, 302).written(0x5566_7788);
    fs::write(home.join("gone.vmdk"), descriptor.text()).unwrap();
    let out = folder.path().join("two.ova");
    expect(0, ["export", &format!("{}::vms/two", store.display()), "-o", &text(&out)]);
    let cat = |ova: &Path, disk: &str| expect(0, ["cat", &format!("{}::disks/{disk}.raw", ova.display())]);
    expect(0, ["scan", &text(&out)]);
    assert!(cat(&out, "two-disk1") == fs::read(home.join("vm-flat.vmdk")).unwrap());
    assert!(cat(&out, "two-disk2") == fs::read(home.join("more-flat.vmdk")).unwrap());
    // A disk alone.
    let out = folder.path().join("lone disk.ova");
    expect(0, ["export", &text(&home.join("vm.vmdk")), "-o", &text(&out)]);
    assert!(cat(&out, "lone_disk-disk1") == fs::read(home.join("vm-flat.vmdk")).unwrap());
    // With one of two it is not whole.
    fs::remove_file(home.join("more-flat.vmdk")).unwrap();
    fs::remove_file(home.join("gone.vmdk")).unwrap();
    let args = ["export", &format!("{}::vms/two", store.display()), "-o", &text(&folder.path().join("half.ova"))];
    expect(1, args);
    let output = vdrecover(["recover", &text(&store), "--format", "ova", "-o", &text(&folder.path().join("all"))]);
    assert!(String::from_utf8_lossy(&output.stderr).contains("an OVA has one VM"));
}
