//! Images that come from other hypervisors and from examiners, through the program.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs, reason = "tests")]

mod common;

use common::{expect, vdrecover};
use std::fs;
use std::path::Path;
use vdrecover_testdata::vmfs::pattern;
use vdrecover_testdata::{Device, ewf, ova, vdi, vhd, vhdx, vmdk};

const MIB: u64 = 1 << 20;

fn disk() -> Device {
    let mut device = Device::new(4 * MIB);
    device.write(0, &pattern(9000, 1));
    device.write(2 * MIB + 700, &pattern(100_000, 2));
    device
}

fn bytes(device: &Device) -> Vec<u8> {
    device.read(0, usize::try_from(device.len()).unwrap())
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

#[test]
fn a_packed_image_says_what_unpacks_it() {
    let folder = tempfile::tempdir().unwrap();
    for (name, head, command) in [
        ("disk.raw.gz", &b"\x1F\x8B\x08\x00"[..], "gunzip -k"),
        ("disk.raw.zst", b"\x28\xB5\x2F\xFD", "unzstd"),
        ("disk.raw.xz", b"\xFD7zXZ\x00", "unxz -k"),
        ("disk.raw.bz2", b"BZh91AY&SY", "bunzip2 -k"),
    ] {
        let path = folder.path().join(name);
        fs::write(&path, [head, &[0; 4096]].concat()).unwrap();
        for command_line in ["info", "ls", "cat"] {
            let output = vdrecover([command_line, &text(&path)]);
            let told = String::from_utf8(output.stderr).unwrap();
            assert_eq!((output.status.code(), output.stdout.len()), (Some(2), 0), "{name}: {told}");
            assert!(told.contains(&format!("unpack it first: {command} {}", path.display())), "{told}");
        }
    }
}

#[test]
fn a_disk_in_an_ova_opens_as_in_a_folder() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("web.ova");
    let stream = vmdk::stream_optimized(&disk(), "web-disk1.vmdk", 7);
    let mut archive = ova::write("web", &[("web-disk1.vmdk".to_owned(), stream)]);
    fs::write(&path, &archive).unwrap();
    let listed = String::from_utf8(expect(0, ["ls", "-R", &text(&path)])).unwrap();
    assert!(listed.lines().any(|line| line == "store/web/web.ovf"), "{listed}");
    let line = listed.lines().find(|line| line.starts_with("disks/") && line.contains("web-disk1"));
    let found = expect(0, ["cat", &format!("{}::{}", path.display(), line.unwrap_or_else(|| panic!("{listed}")))]);
    assert!(found == bytes(&disk()));
    expect(0, ["scan", &text(&path)]);
    // A byte of the disk, which only the manifest tells.
    let at = archive.len() - 3000;
    archive[at] ^= 1;
    fs::write(&path, &archive).unwrap();
    let told = String::from_utf8(expect(1, ["scan", &text(&path)])).unwrap();
    assert!(told.contains("OVA-DIGEST"), "{told}");
}

#[test]
fn segments_beside_the_first_one_are_joined() {
    let folder = tempfile::tempdir().unwrap();
    let first = folder.path().join("disk.E01");
    let options = ewf::Options { segment: 40, ..ewf::Options::default() };
    let segments = ewf::write(&disk(), &options);
    assert_eq!(segments.len(), 4);
    for (number, segment) in (1..).zip(&segments) {
        fs::write(folder.path().join(format!("disk.E{number:02}")), segment).unwrap();
    }
    // Neither a segment by its content.
    fs::write(folder.path().join("disk.exe"), b"MZ").unwrap();
    assert!(expect(0, ["cat", &text(&first)]) == bytes(&disk()));
    fs::remove_file(folder.path().join("disk.E03")).unwrap();
    let cut = expect(1, ["cat", &text(&first)]);
    let gap = 80 * 32 * 1024..120 * 32 * 1024;
    let mut want = bytes(&disk());
    want[gap].fill(0);
    assert!(cut == want || cut.len() < want.len(), "{}", cut.len());
    let told = String::from_utf8(expect(1, ["scan", &text(&first)])).unwrap();
    assert!(told.contains("EWF-SEGMENT-GONE"), "{told}");
}

#[test]
fn differencing_disks_find_their_parents() {
    let folder = tempfile::tempdir().unwrap();
    let (parent, mut child) = (disk(), disk());
    child.write(MIB + 512, &pattern(5000, 3));
    child.write(2 * MIB + 1024, &pattern(700, 4));
    let put = |name: &str, image: Vec<u8>| {
        let path = folder.path().join(name);
        fs::write(&path, image).unwrap();
        text(&path)
    };
    let writer = vhd::Vhd { id: [1; 16], ..vhd::Vhd::default() };
    put("base.vhd", writer.dynamic(&parent));
    let link = vhd::Parent { disk: &parent, id: [1; 16], name: ".\\base.vhd" };
    let top = put("top.vhd", vhd::Vhd { id: [2; 16], ..writer.clone() }.differencing(&child, link));
    assert!(expect(0, ["cat", &top]) == bytes(&child));
    // Another disk under the parent's name.
    put("base.vhd", vhd::Vhd { id: [9; 16], ..writer }.dynamic(&parent));
    let told = String::from_utf8(expect(1, ["info", &top])).unwrap();
    assert!(told.contains("the ids differ"), "{told}");

    let writer = vhdx::Vhdx { data_write: [1; 16], ..vhdx::Vhdx::default() };
    put("base.vhdx", writer.write(&parent, None));
    let link = vhdx::Parent { disk: &parent, data_write: [1; 16], name: ".\\base.vhdx" };
    let top = put("top.vhdx", vhdx::Vhdx { data_write: [2; 16], ..writer }.write(&child, Some(link)));
    assert!(expect(0, ["cat", &top]) == bytes(&child));

    // Without a name, by its ids alone.
    let ids = vdi::Ids { created: [1; 16], modified: [2; 16] };
    let base = put("base.vdi", vdi::write(&parent, ids, None));
    let own = vdi::Ids { created: [3; 16], modified: [4; 16] };
    let top = put("top.vdi", vdi::write(&child, own, Some((&parent, ids))));
    assert!(expect(0, ["cat", &top, "--with", &base]) == bytes(&child));
    assert_eq!(vdrecover(["info", &top]).status.code(), Some(1), "its parent was not given");
}
