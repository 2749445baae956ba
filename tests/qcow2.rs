//! QCOW2 images that lost a structure, as a user meets them.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs, reason = "tests")]

mod common;

use common::{expect, records};
use std::fs;
use vdrecover_testdata::Device;
use vdrecover_testdata::qcow2::{Options, write};
use vdrecover_testdata::vmfs::pattern;

const MIB: u64 = 1 << 20;

fn disk() -> Device {
    let mut disk = Device::new(24 * MIB);
    for n in 0..5 {
        disk.write(n * 5 * MIB, &pattern(700_000, n));
    }
    disk.write(24 * MIB - 512, &pattern(512, 9));
    disk
}

fn be64(bytes: &[u8], at: usize) -> u64 {
    bytes[at..at + 8].iter().fold(0, |all, byte| all << 8 | u64::from(*byte))
}

#[test]
fn what_is_left_of_an_image_is_exported() {
    let folder = tempfile::tempdir().unwrap();
    let disk = disk();
    let whole = write(&disk, &Options::default());
    let l1 = usize::try_from(be64(&whole, 40)).unwrap();
    // The header; the cluster of it; all that is before the L2 table; only the entry that names it.
    let cases = [
        (0..512, "QCOW2-HEADER"),
        (0..65_536, "QCOW2-HEADER"),
        (0..l1 + 8, "QCOW2-L1-GONE"),
        (l1..l1 + 8, "QCOW2-L1-MENDED"),
    ];
    for (lost, code) in cases {
        let image = folder.path().join("image.qcow2");
        let mut bytes = whole.clone();
        bytes[lost.clone()].fill(0);
        fs::write(&image, bytes).unwrap();
        let rows = records(1, ["scan", "--json", image.to_str().unwrap()]);
        let codes: Vec<&str> =
            rows.iter().filter(|row| row["record"] == "finding").filter_map(|row| row["code"].as_str()).collect();
        assert!(codes.contains(&code), "{lost:?}: {codes:?}");
    }
    // By what is left at its start, also without a search.
    let image = folder.path().join("image.qcow2");
    let mut bytes = whole.clone();
    bytes[..65_536].fill(0);
    fs::write(&image, bytes).unwrap();
    let found = expect(1, ["cat", image.to_str().unwrap()]);
    let len = found.len().min(24 << 20);
    assert!(found[..len] == disk.read(0, len), "{} bytes", found.len());
}
