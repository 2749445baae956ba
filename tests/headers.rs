//! Datastores whose headers are gone, and what is left of one under a newer format, as a user meets them.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs, reason = "tests")]

mod common;

use common::{expect, records};
use std::fs;
use std::path::{Path, PathBuf};
use vdrecover_testdata::Device;
use vdrecover_testdata::gpt::{Guid, Partition, TYPE_LINUX, TYPE_VMFS, write_gpt, write_gpt_of};
use vdrecover_testdata::vmfs::{Content, Layout, Version, Vmfs, VmfsSpec};
use vdrecover_testdata::{qcow2, vmdk};

const MIB: u64 = 1 << 20;
const LEN: u64 = 320 * MIB;

fn content() -> Content {
    Content::patterned(40_000_000, 11)
}

fn store(version: Version) -> Device {
    let mut store = Vmfs::new(VmfsSpec::new(version, LEN));
    store.mkdir("vm");
    store.file("vm/hello", Content::bytes(*b"hello\n"), &Layout::default());
    store.file("vm/big.bin", content(), &Layout::default());
    store.finish().remove(0)
}

fn saved(folder: &Path, name: &str, device: &Device) -> PathBuf {
    let path = folder.join(name);
    device.save(&path).unwrap();
    path
}

/// The path of a file in the case, and the codes of all findings of a scan.
fn scanned(code: i32, args: &[&str]) -> (Option<String>, Vec<String>) {
    let codes = records(code, [&["scan", "--json"], args].concat())
        .iter()
        .filter(|row| row["record"] == "finding")
        .map(|row| row["code"].as_str().unwrap().to_owned())
        // That a file of the host has holes is no matter here.
        .filter(|code| code != "SOURCE-HOLES")
        .collect();
    let listed = String::from_utf8(common::vdrecover([&["ls", "-R"], args].concat()).stdout).unwrap();
    (listed.lines().find(|line| line.ends_with("/vm/big.bin")).map(str::to_owned), codes)
}

#[track_caller]
fn has_content(image: &Path, path: &str, options: &[&str], code: i32) {
    let locator = format!("{}::{path}", image.display());
    let found = expect(code, [&["cat", locator.as_str()], options].concat());
    let right = content();
    assert!(found == right.read(0, usize::try_from(right.len()).unwrap()), "{path}");
}

#[test]
fn a_partition_without_its_first_20_mib_is_listed() {
    let folder = tempfile::tempdir().unwrap();
    for version in [Version::Five, Version::Six] {
        let mut device = store(version);
        device.zero(0..20 * MIB);
        let path = saved(folder.path(), "partition.img", &device);
        let (file, codes) = scanned(1, &[path.to_str().unwrap()]);
        assert!(codes.contains(&"LVM-GONE".to_owned()) && codes.contains(&"VMFS-HEADER".to_owned()), "{codes:?}");
        has_content(&path, &file.unwrap(), &[], 1);
        // The same in a container.
        let image = folder.path().join("partition.qcow2");
        fs::write(&image, qcow2::write(&device, &qcow2::Options::default())).unwrap();
        let (file, _) = scanned(1, &[image.to_str().unwrap()]);
        has_content(&image, &file.unwrap(), &[], 1);
    }
}

/// What kind of volume it was, the records that remain say.
#[test]
fn a_volume_without_its_header_keeps_its_version() {
    let folder = tempfile::tempdir().unwrap();
    let six = VmfsSpec::new(Version::Six, LEN);
    for (spec, lvm, kind) in [
        (VmfsSpec::new(Version::Three, LEN), true, "VMFS-3.31"),
        (VmfsSpec::new(Version::Five, LEN), true, "VMFS-5.81"),
        (six.clone(), true, "VMFS-6.82"),
        (VmfsSpec { local: true, ..six.clone() }, true, "VMFS-L"),
        (VmfsSpec { local: true, ..six }, false, "VMFS-L"),
    ] {
        let mut store = Vmfs::new(spec);
        store.file("hello", Content::bytes(*b"hello\n"), &Layout::default());
        let mut device = store.finish().remove(0);
        device.zero(if lvm { 19 * MIB..19 * MIB + 4096 } else { MIB..20 * MIB });
        let path = saved(folder.path(), "partition.img", &device);
        let rows = records(1, ["check", "--json", path.to_str().unwrap()]);
        assert!(rows.iter().all(|row| row["trust"] != "doubtful"), "{kind}: {rows:?}");
        let rows = records(1, ["scan", "--json", path.to_str().unwrap()]);
        let store = rows.iter().find(|row| row["record"] == "store").unwrap();
        assert_eq!(store["kind"], kind);
        // Without heartbeats, VMFS3 is told by what it has not.
        if kind == "VMFS-3.31" {
            device.zero(20 * MIB..21 * MIB);
            let path = saved(folder.path(), "partition.img", &device);
            let rows = records(1, ["scan", "--json", path.to_str().unwrap()]);
            let store = rows.iter().find(|row| row["record"] == "store").unwrap();
            assert_eq!(store["kind"], "VMFS-3");
        }
    }
}

#[test]
fn a_disk_without_partition_table_and_headers_is_searched() {
    let folder = tempfile::tempdir().unwrap();
    let mut disk = Device::new(LEN + 10 * MIB);
    let mut device = store(Version::Six);
    device.zero(0..20 * MIB);
    disk.embed(3 * MIB + 512, &device);
    let path = saved(folder.path(), "disk.img", &disk);
    let (file, codes) = scanned(1, &[path.to_str().unwrap()]);
    assert!(codes.contains(&"SWEEP-FOUND".to_owned()), "{codes:?}");
    has_content(&path, &file.unwrap(), &[], 1);
}

#[test]
fn a_dump_that_starts_late_is_searched() {
    let folder = tempfile::tempdir().unwrap();
    let device = store(Version::Five);
    let path = saved(folder.path(), "late.img", &device.cut(18 * MIB..LEN));
    let (file, _) = scanned(1, &[path.to_str().unwrap()]);
    has_content(&path, &file.unwrap(), &[], 1);
}

/// The start of a device has all names; of the rest each file says that it is outside.
#[test]
fn a_dump_of_the_start_has_the_whole_inventory() {
    let folder = tempfile::tempdir().unwrap();
    let mut store = Vmfs::new(VmfsSpec::new(Version::Six, LEN));
    store.file("here", Content::patterned(3_000_000, 1), &Layout::default());
    store.file("there", Content::patterned(9_000_000, 2), &Layout::default().from(250 * MIB));
    let mut disk = Device::new(LEN + 2 * MIB);
    let rows = [Partition { kind: TYPE_VMFS, name: "store", start: MIB, len: LEN }];
    write_gpt(&mut disk, Guid::seeded(1), &rows);
    let device = store.finish().remove(0);
    disk.embed(MIB, &device);
    for (name, mut device) in [("part.img", device), ("disk.img", disk)] {
        device.truncate(260 * MIB);
        let path = saved(folder.path(), name, &device);
        let path = path.to_str().unwrap();
        let listed = String::from_utf8(common::vdrecover(["ls", "-R", path]).stdout).unwrap();
        let find = |name: &str| listed.lines().find(|line| line.ends_with(name)).unwrap().to_owned();
        expect(0, ["cat", &format!("{path}::{}", find("/here"))]);
        let rows = records(1, ["map", "--json", &format!("{path}::{}", find("/there"))]);
        let why: Vec<_> = rows.iter().filter(|row| row["kind"] == "lost").map(|row| row["why"].clone()).collect();
        assert_eq!(why, ["outside"], "{name}: {rows:?}");
        let text = String::from_utf8(expect(i32::from(name == "part.img"), ["scan", path])).unwrap();
        assert!(!text.contains("truncated"), "{text}");
        assert_eq!(text.contains("outside this dump"), name == "part.img", "{text}");
    }
}

/// Whatever a dump leaves out: what is not there contradicts nothing.
#[test]
fn a_dump_of_any_part_of_the_start_is_not_told_as_damage() {
    let folder = tempfile::tempdir().unwrap();
    for version in [Version::Five, Version::Six] {
        let mut store = Vmfs::new(VmfsSpec::new(version, LEN));
        for folder in ["a", "b", "b/c"] {
            store.mkdir(folder);
            for n in 0..40 {
                store.file(&format!("{folder}/{n}"), Content::patterned(n * 3000, n), &Layout::default());
            }
        }
        store.mkdir("far");
        store.file("far/big", Content::patterned(9_000_000, 3), &Layout::default().from(200 * MIB));
        let whole = store.finish().remove(0);
        for len in [18, 20, 22, 24, 27, 30, 40, 64, 100, 160, 210, 300] {
            let mut device = whole.clone();
            device.truncate(len * MIB);
            let path = saved(folder.path(), "part.img", &device);
            let output = common::vdrecover(["check", "--json", path.to_str().unwrap()]);
            let told = String::from_utf8(output.stdout).unwrap();
            assert!(told.contains("outside this dump"), "{version:?} {len}: {told}");
            let doubtful: Vec<_> = told.lines().filter(|line| line.contains("\"trust\":\"doubtful\"")).collect();
            assert!(doubtful.is_empty(), "{version:?}, {len} MiB: {doubtful:#?}");
        }
    }
}

/// The same of volumes that a host made.
#[test]
fn a_dump_of_the_start_of_a_real_volume_is_not_told_as_damage() {
    let test = "a_dump_of_the_start_of_a_real_volume_is_not_told_as_damage";
    for name in ["vmfs5", "vmfs6", "vmfs6l"] {
        let Some(image) = common::unpacked(test, &format!("vmfs/{name}.bin.gz")) else { return };
        let folder = tempfile::tempdir_in(image.parent().unwrap()).unwrap();
        let path = folder.path().join("part.img");
        let copied = std::process::Command::new("cp").arg("--sparse=always").arg(&image).arg(&path).status();
        assert!(copied.is_ok_and(|status| status.success()));
        let file = fs::File::options().write(true).open(&path).unwrap();
        for len in [1800, 1248, 700, 500, 160, 60, 26, 20] {
            file.set_len(len * MIB).unwrap();
            let told =
                String::from_utf8(common::vdrecover(["check", "--json", path.to_str().unwrap()]).stdout).unwrap();
            let doubtful: Vec<_> = told.lines().filter(|line| line.contains("\"trust\":\"doubtful\"")).collect();
            assert!(doubtful.is_empty() && told.contains("LVM-SHORT"), "{name}, {len} MiB: {doubtful:#?}");
        }
    }
}

/// A new partition table, and something written into its first partition.
#[test]
fn what_lies_under_another_format_is_found() {
    let folder = tempfile::tempdir().unwrap();
    for (start, deep) in [(MIB, false), (64 << 10, false), (11 * MIB, true)] {
        let mut disk = Device::new(LEN + 32 * MIB);
        disk.embed(start, &store(Version::Six));
        // What the new owner wrote.
        let rows = [
            Partition { kind: TYPE_LINUX, name: "new", start: 2 * MIB, len: 100 * MIB },
            Partition { kind: TYPE_LINUX, name: "more", start: 200 * MIB, len: 50 * MIB },
        ];
        disk.zero(0..2 * MIB);
        write_gpt(&mut disk, Guid::seeded(1), &rows);
        let path = saved(folder.path(), "owned.img", &disk);
        let image = path.to_str().unwrap();
        let (file, codes) = scanned(i32::from(!deep), &[image]);
        assert_eq!(file.is_some(), !deep, "{start}: {codes:?}");
        assert_eq!(codes.contains(&"SWEEP-UNDER".to_owned()), !deep, "{start}: {codes:?}");
        let (file, codes) = scanned(1, &[image, "--deep"]);
        assert_eq!(codes.iter().filter(|code| *code == "SWEEP-UNDER").count(), 1, "{start}: {codes:?}");
        has_content(&path, &file.unwrap(), &["--deep"], 1);
    }
    // What is the device's own is no remains.
    let mut disk = Device::new(LEN + 32 * MIB);
    disk.embed(MIB, &store(Version::Six));
    write_gpt(&mut disk, Guid::seeded(1), &[Partition { kind: TYPE_VMFS, name: "store", start: MIB, len: LEN }]);
    let path = saved(folder.path(), "own.img", &disk);
    for options in [&[path.to_str().unwrap()][..], &[path.to_str().unwrap(), "--deep"]] {
        let (file, codes) = scanned(0, options);
        assert!(file.is_some() && codes.is_empty(), "{codes:?}");
    }
}

/// A new partition that starts where the old one did, and is shorter: the volume goes on behind it.
#[test]
fn a_new_partition_at_the_old_start_does_not_cut_the_volume() {
    let folder = tempfile::tempdir().unwrap();
    for (version, len, code) in [
        (Version::Five, 100 * MIB, "PART-CUT"),
        (Version::Six, 100 * MIB, "PART-CUT"),
        // Too short for the volume's own header.
        (Version::Six, 16 * MIB, "SWEEP-UNDER"),
    ] {
        let mut disk = Device::new(LEN + 2 * MIB);
        disk.embed(MIB, &store(version));
        write_gpt(&mut disk, Guid::seeded(1), &[Partition { kind: TYPE_LINUX, name: "new", start: MIB, len }]);
        let path = saved(folder.path(), "new.img", &disk);
        let image = path.to_str().unwrap();
        let (file, codes) = scanned(1, &[image]);
        assert_eq!(codes.iter().filter(|own| *own == code).count(), 1, "{codes:?}");
        assert!(!codes.contains(&"LVM-SHORT".to_owned()), "{codes:?}");
        has_content(&path, &file.unwrap(), &[], 1);
        // The new table stays what the disk has.
        let rows = records(i32::from(code == "PART-CUT"), ["info", "--json", image]);
        let table = rows.iter().find(|row| row["format"] == "gpt").unwrap();
        assert_eq!(table["facts"]["partitions"], 1, "{rows:?}");
    }
}

/// A datastore that had no partition, and a table that was written over its unused first bytes since.
#[test]
fn a_datastore_under_a_new_table_at_its_own_start_opens() {
    let folder = tempfile::tempdir().unwrap();
    for version in [Version::Five, Version::Six] {
        let rows = [Partition { kind: TYPE_LINUX, name: "new", start: 2 * MIB, len: 100 * MIB }];
        for rows in [&rows[..], &[]] {
            let mut device = store(version);
            write_gpt(&mut device, Guid::seeded(1), rows);
            let path = saved(folder.path(), "lun.img", &device);
            let (file, codes) = scanned(1, &[path.to_str().unwrap()]);
            assert_eq!(codes, ["SWEEP-UNDER"], "{version:?}");
            has_content(&path, &file.unwrap(), &[], 1);
            // Of the table only the stale copy at the end is left: it owns nothing.
            device.zero(0..64 << 10);
            let path = saved(folder.path(), "stale.img", &device);
            let (file, codes) = scanned(0, &[path.to_str().unwrap()]);
            assert_eq!(codes, [""; 0], "{version:?}");
            has_content(&path, &file.unwrap(), &[], 0);
        }
    }
}

/// A disk with sectors of 4096 bytes, and disks in containers: what is true of a plain one is true of them.
#[test]
fn tables_of_large_sectors_and_tables_in_containers() {
    let folder = tempfile::tempdir().unwrap();
    let mut large = Vmfs::new(VmfsSpec { sector_size: 4096, ..VmfsSpec::new(Version::Six, LEN) });
    large.mkdir("vm");
    large.file("vm/big.bin", content(), &Layout::default());
    let large = large.finish().remove(0);
    let small = store(Version::Five);
    for (name, sector, device) in [("large", 4096, &large), ("small", 512, &small)] {
        let mut disk = Device::new(LEN + 4 * MIB);
        disk.embed(MIB, device);
        let own = Partition { kind: TYPE_VMFS, name: "store", start: MIB, len: LEN };
        let short = Partition { kind: TYPE_LINUX, name: "new", start: MIB, len: 64 * MIB };
        for (partition, codes) in [(own, &[][..]), (short, &["PART-CUT"])] {
            write_gpt_of(&mut disk, sector, Guid::seeded(1), &[partition]);
            let (code, codes) = (i32::from(!codes.is_empty()), codes.to_vec());
            let path = saved(folder.path(), "disk.img", &disk);
            let rows = records(code, ["info", "--json", path.to_str().unwrap()]);
            let table = rows.iter().find(|row| row["format"] == "gpt").unwrap();
            assert_eq!(table["facts"]["sector_size"], sector, "{name}");
            let qcow = folder.path().join("disk.qcow2");
            fs::write(&qcow, qcow2::write(&disk, &qcow2::Options::default())).unwrap();
            let sparse = folder.path().join("disk.vmdk");
            fs::write(&sparse, vmdk::hosted_sparse(&disk, "disk.vmdk", 7)).unwrap();
            let stream = folder.path().join("stream.vmdk");
            fs::write(&stream, vmdk::stream_optimized(&disk, "stream.vmdk", 7)).unwrap();
            for image in [path, qcow, sparse, stream] {
                let (file, told) = scanned(code, &[image.to_str().unwrap()]);
                assert_eq!(told, codes, "{name}: {}", image.display());
                has_content(&image, &file.unwrap(), &[], code);
            }
        }
    }
}

/// Copies that lie in one folder: the generation in the metadata tells them apart, and where nothing does, that is said.
#[test]
fn copies_of_an_extent_are_told_apart_by_their_generation() {
    let folder = tempfile::tempdir().unwrap();
    let mut store = Vmfs::new(VmfsSpec { extents: vec![LEN, LEN], ..VmfsSpec::new(Version::Five, 0) });
    store.file("vm.bin", content(), &Layout::default());
    let devices = store.finish();
    let first = saved(folder.path(), "first.img", &devices[0]);
    for (by, trust, why) in [
        (1_u8, "inferred", "b.img is used, its LVM metadata has the higher generation"),
        (0, "doubtful", "a.img is used, nothing tells which is newer"),
    ] {
        let a = saved(folder.path(), "a.img", &devices[1]);
        let mut other = devices[1].clone();
        let at = MIB + 0x72;
        let generation = other.read(at, 1)[0];
        other.write(at, &[generation + by]);
        let b = saved(folder.path(), "b.img", &other);
        let [first, a, b] = [&first, &a, &b].map(|path| path.to_str().unwrap());
        let rows = records(1, ["scan", "--json", first, a, b]);
        let copies: Vec<_> = rows.iter().filter(|row| row["code"] == "SET-COPY").collect();
        let [copy] = copies[..] else { panic!("{copies:?}") };
        assert!(copy["text"].as_str().unwrap().contains(why) && copy["trust"] == trust, "{copy:?}");
        assert_eq!(rows.iter().filter(|row| row["record"] == "store").count(), 1);
    }
}

/// The second of two extents alone says which it is, once, and what is missing.
#[test]
fn a_later_extent_alone_says_what_it_is() {
    let folder = tempfile::tempdir().unwrap();
    for version in [Version::Five, Version::Six] {
        let mut store = Vmfs::new(VmfsSpec { extents: vec![LEN, LEN], ..VmfsSpec::new(version, 0) });
        store.file("vm.bin", content(), &Layout::default());
        let devices = store.finish();
        let path = saved(folder.path(), "second.img", &devices[1]);
        let image = path.to_str().unwrap();
        for command in ["scan", "check"] {
            let rows = records(1, [command, "--json", image]);
            let told: Vec<_> =
                rows.iter().filter(|row| row["record"] == "finding" && row["code"] != "SOURCE-HOLES").collect();
            let [told] = told[..] else { panic!("{command}: {told:?}") };
            let text = told["text"].as_str().unwrap();
            assert_eq!(told["code"], "SET-ABSENT");
            assert!(text.starts_with("extent 2 of 2 of volume ") && text.contains("extent 1 is missing"), "{text}");
            if command == "scan" {
                let next = rows.iter().find(|row| row["record"] == "next").unwrap();
                assert_eq!(next["commands"][0], format!("vdrecover scan {image} --with EXTENT"));
            }
        }
        let first = saved(folder.path(), "first.img", &devices[0]);
        let whole = String::from_utf8(expect(0, ["scan", image, "--with", first.to_str().unwrap()])).unwrap();
        assert!(!whole.contains("--with EXTENT") && whole.contains("DATASTORE"), "{whole}");
    }
}

/// Two pairs of images of one spanned datastore, taken at two times.
#[test]
fn images_of_two_times_are_not_mixed() {
    let folder = tempfile::tempdir().unwrap();
    let mut store = Vmfs::new(VmfsSpec { extents: vec![LEN, LEN], ..VmfsSpec::new(Version::Six, 0) });
    store.file("old", Content::bytes(*b"old\n"), &Layout::default());
    let mut later = store.clone();
    later.set_time(1_900_000_000);
    later.file("new", Content::bytes(*b"new\n"), &Layout::default());
    let mut all = Vec::new();
    for (name, store) in [("a", store), ("b", later)] {
        fs::create_dir(folder.path().join(name)).unwrap();
        for (i, device) in store.finish().iter().enumerate() {
            all.push(saved(&folder.path().join(name), &format!("{i}.img"), device));
        }
    }
    let all: Vec<&str> = all.iter().map(|path| path.to_str().unwrap()).collect();
    for order in [[0, 1, 2, 3], [3, 0, 2, 1], [2, 3, 0, 1]] {
        let given: Vec<&str> = order.iter().map(|i| all[*i]).collect();
        let rows = records(1, [&["scan", "--json"], &given[..]].concat());
        let copies: Vec<_> = rows.iter().filter(|row| row["code"] == "SET-COPY").collect();
        assert!(copies.iter().all(|row| row["trust"] == "inferred"), "{copies:?}");
        let copies: Vec<&str> = copies.iter().map(|row| row["text"].as_str().unwrap()).collect();
        assert_eq!(copies.len(), 2, "{order:?}: {copies:?}");
        assert!(
            copies.iter().any(|text| text.contains("b/0.img is used, its last change is the later one")),
            "{copies:?}"
        );
        assert!(copies.iter().any(|text| text.contains("b/1.img is used")), "{order:?}: {copies:?}");
        assert_eq!(rows.iter().filter(|row| row["record"] == "store").count(), 1, "{order:?}");
        let listed = String::from_utf8(expect(1, [&["ls", "-R"], &given[..1], &with(&given[1..])].concat())).unwrap();
        assert!(listed.lines().any(|line| line.ends_with("/new")), "{order:?}: {listed}");
    }
}

fn with<'a>(others: &[&'a str]) -> Vec<&'a str> {
    others.iter().flat_map(|other| ["--with", other]).collect()
}

/// The same on a volume that a host made: a copy, not the corpus, is damaged.
#[test]
fn a_real_volume_without_its_headers_is_listed() {
    let test = "a_real_volume_without_its_headers_is_listed";
    for name in ["vmfs5", "vmfs6"] {
        let Some(image) = common::unpacked(test, &format!("vmfs/{name}.bin.gz")) else { return };
        let folder = tempfile::tempdir_in(image.parent().unwrap()).unwrap();
        let path = folder.path().join("damaged.img");
        let copied = std::process::Command::new("cp").arg("--sparse=always").arg(&image).arg(&path).status();
        assert!(copied.is_ok_and(|status| status.success()));
        let file = fs::File::options().write(true).open(&path).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, &vec![0xA5; 20 << 20], 0).unwrap();
        let path = path.to_str().unwrap();
        let rows = records(1, ["scan", "--json", path]);
        let codes: Vec<_> = rows.iter().filter(|row| row["record"] == "finding").map(|row| &row["code"]).collect();
        assert!(["LVM-GONE", "VMFS-HEADER"].iter().all(|code| codes.contains(&&serde_json::json!(code))), "{codes:?}");
        let names = |path: &str| {
            let listed = String::from_utf8(common::vdrecover(["ls", "-R", path]).stdout).unwrap();
            let store = listed.lines().filter_map(|line| line.trim_start_matches('/').strip_prefix("store/"));
            store.filter_map(|path| Some(path.split_once('/')?.1.to_owned())).collect::<Vec<_>>()
        };
        let found = names(path);
        assert_eq!(found, names(image.to_str().unwrap()), "{name}");
        assert!(found.len() > 100, "{name}: {found:?}");
        let bytes = expect(1, ["cat", &format!("{path}::store/datastore/small")]);
        assert_eq!(bytes, b"tiny\n", "{name}");
    }
}
