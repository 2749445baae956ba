//! Images whose start is destroyed, through the program.
#![allow(clippy::unwrap_used, missing_docs, reason = "tests")]

mod common;

use common::expect;
use std::fs;
use vdrecover_testdata::Device;
use vdrecover_testdata::vmdk;
use vdrecover_testdata::vmfs::pattern;

#[test]
fn a_search_finds_what_an_image_was() {
    let mut device = Device::new(70 << 20);
    device.write(0, &pattern(4000, 1));
    device.write(50 << 20, &pattern(70_000, 2));
    let mut bytes = vmdk::hosted_sparse(&device, "a.vmdk", 1);
    bytes[..21 * 512].fill(0);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("wiped.vmdk");
    fs::write(&path, bytes).unwrap();
    let text = String::from_utf8(expect(1, ["scan".as_ref(), path.as_os_str()])).unwrap();
    assert!(text.contains("SWEEP-FOUND") && text.contains("KDMV-HEADER"), "{text}");
    let listed = String::from_utf8(expect(1, ["ls".as_ref(), "-R".as_ref(), path.as_os_str()])).unwrap();
    assert!(listed.contains("wiped"), "{listed}");
    let disk = format!("{}::disks/wiped.raw", path.display());
    // The length and the place of everything are conclusions, and the exit code says so.
    let read = expect(1, ["cat", disk.as_str()]);
    assert_eq!(read.len(), 96 << 20);
    assert!(read[..70 << 20] == device.read(0, 70 << 20)[..]);
}
