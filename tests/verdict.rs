//! All commands agree in what they call sound, and say why it is not.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs, reason = "tests")]

mod common;

use common::{expect, records, vdrecover};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use vdrecover_testdata::Device;
use vdrecover_testdata::vmfs::{Content, Layout, Version, Vmfs, VmfsSpec};

const MIB: u64 = 1 << 20;

/// A datastore in which the disk `b` has one block of the file `a`, and one that is free.
struct Crossed {
    image: PathBuf,
    /// What the pointers of `b` lead to.
    bytes: Vec<u8>,
}

fn crossed(folder: &Path, version: Version) -> Crossed {
    let mut store = Vmfs::new(VmfsSpec::new(version, 2 << 30));
    let auto = Layout::default();
    let text = "# Disk DescriptorFile\nversion=1\nCID=00000001\nparentCID=ffffffff\ncreateType=\"vmfs\"\n\
                RW 6144 VMFS \"b-flat.vmdk\"\n";
    store.file("a", Content::patterned(2 * MIB, 1), &auto);
    store.file("b.vmdk", Content::bytes(text), &auto);
    store.file("b-flat.vmdk", Content::patterned(3 * MIB, 2), &auto);
    store.file("c", Content::patterned(2 * MIB, 3), &auto);
    store.file("d", Content::patterned(MIB, 4), &auto);
    let (a, b) = (store.locate("a"), store.locate("b-flat.vmdk"));
    let d = store.delete_keeping_pointers("d");
    store.sync();
    let width = if version == Version::Six { 8 } else { 4 };
    for (slot, block) in [(1, a.blocks[0]), (2, d.blocks[0])] {
        store.write_lv(b.pointers_lv + slot * width, &block.address.to_le_bytes()[..usize::try_from(width).unwrap()]);
    }
    let lvs = [b.blocks[0].lv, a.blocks[0].lv, d.blocks[0].lv];
    let mib = usize::try_from(MIB).unwrap();
    let bytes = lvs.iter().flat_map(|lv| store.read_lv(*lv, mib)).collect();
    // `finish` would write the descriptor again.
    let device: Device = store.into_devices().remove(0);
    let image = folder.join("store.img");
    device.save(&image).unwrap();
    Crossed { image, bytes }
}

fn at(image: &Path, path: &str) -> String {
    format!("{}::{path}", image.display())
}

const STORE: &str = "store/datastore1";

#[test]
fn a_block_of_two_files_and_a_free_one_are_told_by_all_commands() {
    for version in [Version::Five, Version::Six] {
        let folder = tempfile::tempdir().unwrap();
        let Crossed { image, bytes } = crossed(folder.path(), version);
        let own = |name: &str| at(&image, &format!("{STORE}/{name}"));
        let flat = own("b-flat.vmdk");

        // Lists.
        for (name, code, trust, links) in
            [("a", 1, "doubtful", "shared"), ("b-flat.vmdk", 1, "doubtful", "shared"), ("c", 0, "sound", "none")]
        {
            let row = records(code, ["ls", "--json", &own(name)]).remove(0);
            assert_eq!(
                (&row["trust"], &row["cross_links"]),
                (&trust.into(), &links.into()),
                "{version:?} {name}: {row}"
            );
            assert_eq!(row["contradicted"].is_array(), trust != "sound", "{row}");
        }
        let disk = records(1, ["ls", "--json", &at(&image, "disks/b.raw")]).remove(0);
        assert_eq!((&disk["trust"], &disk["cross_links"]), (&"doubtful".into(), &"shared".into()), "{disk}");

        // Bytes: as they stand, with the reasons, and only where there are some.
        let output = vdrecover(["cat", &flat]);
        assert_eq!(output.status.code(), Some(1));
        assert!(output.stdout == bytes, "{version:?}");
        let told = String::from_utf8(output.stderr).unwrap();
        assert!(told.contains("store/datastore1/a and store/datastore1/b-flat.vmdk use the same"), "{told}");
        assert!(told.contains("bitmap has as free"), "{told}");
        expect(0, ["cat", &flat, "--length", "1M"]);
        expect(1, ["cat", &flat, "--offset", "1M", "--length", "1"]);
        expect(1, ["cat", &flat, "--offset", "2M", "--length", "1"]);
        expect(1, ["cat", &own("a"), "--length", "1"]);
        expect(0, ["cat", &own("a"), "--offset", "1M"]);
        let runs = records(1, ["map", "--json", &flat]);
        let trusts: Vec<_> = runs.iter().map(|run| run["trust"].as_str().unwrap()).collect();
        assert_eq!(trusts.first(), Some(&"sound"), "{runs:?}");
        assert!(trusts[1..].iter().all(|trust| *trust == "doubtful"), "{runs:?}");
        expect(1, ["trace", &flat, "--offset", "1M"]);

        // Copies.
        let out = folder.path().join("b.raw");
        let done = records(1, ["export", "--json", &at(&image, "disks/b.raw"), "-o", out.to_str().unwrap()]);
        assert_eq!(done[0]["trust"], "doubtful");
        assert!(done.iter().any(|row| row["code"] == "CLAIM-SHARED"), "{done:?}");
        assert!(fs::read(&out).unwrap() == bytes);
        let out = folder.path().join("all");
        expect(1, ["recover", image.to_str().unwrap(), "-o", out.to_str().unwrap()]);
        let lines = fs::read_to_string(out.join("manifest.jsonl")).unwrap();
        let rows: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        for (path, trust) in
            [("disks/b.raw", "doubtful"), ("store/datastore1/a", "doubtful"), ("store/datastore1/c", "sound")]
        {
            let row = rows.iter().find(|row| row["path"] == path).unwrap_or_else(|| panic!("no {path}: {lines}"));
            assert_eq!(row["trust"], trust, "{row}");
            assert_eq!(row["contradicted"].is_array(), trust != "sound", "{row}");
        }

        // The whole.
        for command in ["scan", "check", "info"] {
            let rows = records(1, [command, "--json", image.to_str().unwrap()]);
            let told: Vec<_> = rows.iter().filter(|row| row["code"] == "CLAIM-SHARED").collect();
            assert_eq!(told.len(), 1, "{command}: {rows:?}");
            assert!(told[0]["text"].as_str().unwrap().contains("store/datastore1/a and"), "{command}: {told:?}");
            let free = rows.iter().find(|row| row["code"] == "VMFS-BLOCK-FREE").unwrap();
            assert_eq!(free["about"], "store/datastore1/b-flat.vmdk", "{command}");
            if let Some(disk) = rows.iter().find(|row| row["record"] == "disk") {
                assert_eq!((&disk["trust"], &disk["verdict"]), (&"doubtful".into(), &"doubtful".into()));
            }
        }
    }
}

/// The LUN of a raw mapping never was in the image: no inventory is worse for it, and only who asks for its bytes is
/// told that they are not there.
#[test]
fn a_raw_lun_that_was_not_given_is_no_loss() {
    let folder = tempfile::tempdir().unwrap();
    let mut store = Vmfs::new(VmfsSpec::new(Version::Six, 2 << 30));
    let text = "# Disk DescriptorFile\nversion=1\nCID=00000001\nparentCID=ffffffff\n\
                createType=\"vmfsRawDeviceMap\"\nRW 8192 VMFSRDM \"lun-rdm.vmdk\"\n";
    store.file("lun.vmdk", Content::bytes(text), &Layout::default());
    store.rdm("lun-rdm.vmdk", 4 * MIB);
    let image = folder.path().join("store.img");
    store.finish().remove(0).save(&image).unwrap();
    let shown = image.to_str().unwrap();
    for args in [&["scan"][..], &["check"], &["info"], &["ls", "-lR"], &["recover", "--dry-run", "-o", "x"]] {
        expect(0, args.iter().chain(&[shown]));
    }
    let disk = records(0, ["scan", "--json", shown]).into_iter().find(|row| row["record"] == "disk").unwrap();
    assert_eq!(disk["verdict"], "raw LUN, not given");
    let out = folder.path().join("out");
    expect(0, ["recover", shown, "-o", out.to_str().unwrap()]);
    let lines = fs::read_to_string(out.join("manifest.jsonl")).unwrap();
    let rows: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let row = rows.iter().find(|row| row["path"] == "disks/lun.raw").unwrap();
    assert!(row["reason"].as_str().unwrap().contains("LUN"), "{row}");
    for path in ["disks/lun.raw", "store/datastore1/lun-rdm.vmdk"] {
        expect(1, ["cat", &at(&image, path)]);
        let gap = records(1, ["map", "--json", &at(&image, path)]);
        assert_eq!((&gap[0]["kind"], &gap[0]["why"]), (&"lost".into(), &"not-given".into()));
    }
    // With the LUN the disk is whole, but nothing proves that it is that one.
    let other = tempfile::tempdir().unwrap();
    let lun = other.path().join("sdx");
    fs::write(&lun, vec![7; usize::try_from(4 * MIB).unwrap()]).unwrap();
    let with = ["--with", lun.to_str().unwrap()];
    let bytes = expect(1, ["cat", &at(&image, "disks/lun.raw")].iter().chain(&with));
    assert!(bytes == fs::read(&lun).unwrap());
}

/// The top folder says itself that it is it: without its descriptor the names are still there. How long it is
/// is a guess.
#[test]
fn a_top_folder_without_descriptor_is_listed() {
    // All of it; of VMFS6 also the lock alone, which is 4 KiB apart from the rest.
    let cases = [
        (Version::Five, 2048, "VMFS-FD-CONTENT", "doubtful"),
        (Version::Six, 2048, "VMFS-FD-LOCK", "inferred"),
        (Version::Six, 8192, "VMFS-FD-CONTENT", "doubtful"),
    ];
    for (version, len, code, trust) in cases {
        let folder = tempfile::tempdir().unwrap();
        let mut store = Vmfs::new(VmfsSpec::new(version, 2 << 30));
        let auto = Layout::default();
        store.mkdir("vm");
        store.file("vm/a", Content::patterned(2 * MIB, 1), &auto);
        store.file("b", Content::patterned(2 * MIB, 2), &auto);
        store.sync();
        let root = store.landmarks()["root"];
        store.write_lv(root, &vec![0xAA; len]);
        let image = folder.path().join("store.img");
        store.into_devices()[0].save(&image).unwrap();
        let rows = records(0, ["ls", "-R", "--json", &at(&image, STORE)]);
        let paths: Vec<&str> = rows.iter().filter_map(|row| row["path"].as_str()).collect();
        for (path, seed) in [("vm/a", 1), ("b", 2)] {
            let path = format!("{STORE}/{path}");
            assert!(paths.contains(&path.as_str()), "{version:?}: {paths:?}");
            let bytes = expect(0, ["cat", &at(&image, &path)]);
            assert!(bytes == Content::patterned(2 * MIB, seed).read(0, bytes.len()), "{version:?}");
        }
        let told = records(1, ["scan", "--json", image.to_str().unwrap()]);
        let found: Vec<_> = told.iter().filter(|row| row["code"] == code).collect();
        assert_eq!((found.len(), &found[0]["trust"]), (1, &trust.into()), "{version:?}");
        assert!(!told.iter().any(|row| row["record"] == "unlinked"), "{version:?}: {told:?}");
    }
}
