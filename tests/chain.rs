//! Chains of images on the host, of which only the top is given.
#![allow(clippy::unwrap_used, missing_docs, reason = "tests")]

mod common;

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

/// A folder in which parents may lie is searched, and not shown.
#[test]
fn parents_in_a_folder_given_with_with() {
    let folder = tempfile::tempdir().unwrap();
    let (parents, children) = (folder.path().join("parents"), folder.path().join("children"));
    std::fs::create_dir(&parents).unwrap();
    std::fs::create_dir(&children).unwrap();
    let text = |cid: &str, parent: &str, rest: &str| {
        format!("# Disk DescriptorFile\nversion=1\nCID={cid}\nparentCID={parent}\ncreateType=\"vmfs\"\n{rest}\n")
    };
    std::fs::write(parents.join("base-flat.vmdk"), vec![7; 1 << 20]).unwrap();
    std::fs::write(parents.join("base.vmdk"), text("aaaaaaaa", "ffffffff", "RW 2048 VMFS \"base-flat.vmdk\"")).unwrap();
    std::fs::write(parents.join("other.raw"), vec![1; 1 << 20]).unwrap();
    let delta = "parentFileNameHint=\"/vmfs/volumes/ds/vm/base.vmdk\"\nRW 2048 SESPARSE \"top-sesparse.vmdk\"";
    std::fs::write(children.join("top.vmdk"), text("bbbbbbbb", "aaaaaaaa", delta)).unwrap();
    let grains = std::collections::BTreeMap::new();
    let bytes = vdrecover_testdata::vmdk::sesparse(1 << 20, &grains, vdrecover_testdata::vmdk::Order::Ascending);
    std::fs::write(children.join("top-sesparse.vmdk"), bytes).unwrap();
    let top = children.join("top.vmdk").display().to_string();
    let alone = common::vdrecover(["cat", &top]);
    assert_eq!((alone.status.code(), alone.stdout.len()), (Some(1), 0));
    let with = parents.display().to_string();
    assert_eq!(common::expect(0, ["cat", &top, "--with", &with]), vec![7; 1 << 20]);
    let listed = String::from_utf8(common::expect(0, ["ls", "-R", &top, "--with", &with])).unwrap();
    assert_eq!(listed, "disks/\ndisks/top.raw\n");
}
