//! Chains of images on the host, of which only the top is given.
#![allow(clippy::unwrap_used, missing_docs, reason = "tests")]

use std::fs;
use vdrecover::case::{Case, Options};
use vdrecover::progress::Progress;
use vdrecover_formats::{Tree, read_vec};

/// A QCOW2, version 2, of 64 KiB in which nothing is allocated.
fn child(parent: &str) -> Vec<u8> {
    let mut image = vec![0; 4 << 16];
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"QFI\xfb");
    put(4, &2_u32.to_be_bytes());
    put(8, &512_u64.to_be_bytes());
    put(16, &u32::try_from(parent.len()).unwrap().to_be_bytes());
    put(20, &16_u32.to_be_bytes());
    put(24, &65_536_u64.to_be_bytes());
    put(36, &1_u32.to_be_bytes());
    put(40, &(3_u64 << 16).to_be_bytes());
    put(48, &(1_u64 << 16).to_be_bytes());
    put(56, &1_u32.to_be_bytes());
    put(512, parent.as_bytes());
    image
}

#[test]
fn parents_of_parents_are_found_beside_the_image_that_was_given() {
    let folder = tempfile::tempdir().unwrap();
    let mut base = vec![7; 65_536];
    base[..5].copy_from_slice(b"hello");
    fs::write(folder.path().join("base.raw"), &base).unwrap();
    let mut parent = "base.raw".to_owned();
    for level in 0..20 {
        let name = format!("{level}.qcow2");
        fs::write(folder.path().join(&name), child(&parent)).unwrap();
        parent = name;
    }
    let options = Options { inputs: vec![folder.path().join(&parent)], ..Options::default() };
    let case = Case::open(&options, &Progress::silent()).unwrap();
    let top = case.find(b"disks/19.raw").unwrap().expect("the disk of the image that was given");
    let (bytes, seen) = read_vec(&*case.open(top.id).unwrap(), 0, base.len());
    assert!(seen.is_whole(), "{:?}", seen.gaps);
    assert!(bytes == base);
}
