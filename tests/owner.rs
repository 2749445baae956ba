//! `owner` is the reverse of `map` and `trace`; `map --want` is what a rescue needs.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs, reason = "tests")]

mod common;

use common::{demo, expect, records, tool, unpacked, vdrecover};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::Command;
use vdrecover::case::{Case, Options};
use vdrecover::mapfile::{Mapfile, Status};
use vdrecover::progress::Progress;
use vdrecover_formats::cursor::walk_merged;
use vdrecover_formats::{Entry, Kind, Layer, NodeId, Place, Tree, walk};
use vdrecover_testdata::samples::SAMPLES;
use vdrecover_testdata::vmfs::{Content, Crash, Layout, Version, Vmfs, VmfsSpec};

/// Runs of one file that are asked for.
const RUNS: usize = 24;
/// Files of one case that are asked for.
const FILES: usize = 400;

fn case(images: &[PathBuf]) -> Case {
    let options = Options { inputs: images.to_vec(), ..Options::default() };
    Case::open(&options, &Progress::silent()).unwrap()
}

/// Every file of a case's tree, with its path.
fn files(case: &Case) -> Vec<(String, Entry)> {
    fn below(case: &Case, id: NodeId, path: &str, found: &mut Vec<(String, Entry)>) {
        let mut entries = Vec::new();
        case.list(id, 0, &mut |entry| {
            entries.extend(entry.ok());
            ControlFlow::Continue(())
        })
        .unwrap();
        for entry in entries {
            let path = format!("{path}{}", String::from_utf8_lossy(&entry.name));
            match entry.kind {
                Kind::Dir => below(case, entry.id, &format!("{path}/"), found),
                _ => found.push((path, entry)),
            }
        }
    }
    let mut found = Vec::new();
    below(case, case.root(), "", &mut found);
    found
}

/// Where a byte of a layer is on its device: the source and the offset there.
fn device(layer: &dyn Layer, at: u64) -> Option<(usize, u64)> {
    let run = walk(layer, at..at + 1).next()?;
    match run.place {
        Place::Coded(unit) => device(unit.from, unit.packed_at),
        Place::Lost(_) => None,
        _ => Some((run.layer.tag()?.0 as usize, run.offset)),
    }
}

/// What must be told of one byte of a device: the file, and where in it.
type Wanted = BTreeMap<u64, BTreeSet<(String, u64, bool)>>;

/// The middle of runs of every file and disk, by the image that they lie on.
fn wanted(case: &Case) -> Vec<Wanted> {
    let mut wanted = vec![Wanted::new(); case.sources.all().len()];
    let files = files(case);
    for (path, entry) in files.iter().step_by(files.len().div_ceil(FILES)) {
        let is_system = path.starts_with("store/") && path.split('/').nth(2).is_some_and(|name| name.starts_with('.'));
        // What a machine's folder has of a store goes by its path there.
        let is_link = !path.starts_with("store/") && entry.id.0 >= NodeId::LIMIT;
        let Ok(bytes) = case.open(entry.id) else { continue };
        if is_system || is_link {
            continue;
        }
        let mut runs: Vec<(u64, u64, bool)> = Vec::new();
        for run in walk_merged(&*bytes, 0..bytes.len()) {
            match run.place {
                Place::Coded(_) => runs.push((run.at, run.at, true)),
                Place::Own => runs.push((run.at, run.at + run.len / 2, false)),
                _ => {}
            }
        }
        for (start, middle, packed) in runs.iter().step_by(runs.len().div_ceil(RUNS).max(1)) {
            let Some((source, at)) = device(&*bytes, *middle) else { continue };
            let at_most = if *packed { *start } else { *middle };
            wanted[source].entry(at).or_default().insert((path.clone(), at_most, *packed));
        }
    }
    wanted
}

/// A number a line.
fn lines<'a>(numbers: impl Iterator<Item = &'a u64>) -> String {
    numbers.map(u64::to_string).collect::<Vec<_>>().join("\n")
}

/// Asks for all of them at once, and looks for each in the answer.
fn check(images: &[PathBuf]) -> usize {
    let case = case(images);
    let folder = tempfile::tempdir().unwrap();
    let mut count = 0;
    for (source, wanted) in case.sources.all().iter().zip(wanted(&case)) {
        if wanted.is_empty() || !images.contains(&source.path) {
            continue;
        }
        let list = folder.path().join("list");
        fs::write(&list, lines(wanted.keys())).unwrap();
        let mut args = vec!["owner".into(), "--json".into(), source.path.clone(), "--list".into(), list];
        for other in images.iter().filter(|image| **image != source.path) {
            args.extend(["--with".into(), other.clone()]);
        }
        let rows = records(0, &args);
        let mut told: BTreeMap<u64, Vec<&Value>> = BTreeMap::new();
        for row in rows.iter().filter(|row| row["record"] == "owner") {
            told.entry(row["start"].as_u64().unwrap()).or_default().push(row);
        }
        for (at, owners) in wanted {
            let (start, rows) = told.range(..=at).next_back().unwrap();
            assert!(start + rows[0]["length"].as_u64().unwrap() > at, "{at:#x} is not told");
            for (path, file_at, packed) in owners {
                let has = |row: &&Value| {
                    let layers = row["layers"].as_array().unwrap();
                    assert_eq!((&layers[0]["level"], &layers[0]["offset"]), (&"device".into(), &(*start).into()));
                    layers.iter().any(|layer| {
                        let offset = layer["offset"].as_u64().unwrap();
                        let here = if packed { offset } else { offset + (at - start) };
                        layer["name"] == path.as_str() && here == file_at
                    })
                };
                assert!(rows.iter().any(has), "{at:#x}: no {path} at {file_at:#x} in {rows:#?}");
                count += 1;
            }
        }
    }
    count
}

#[test]
fn every_run_of_the_demo_has_its_owner() {
    assert!(check(&[demo()]) > 60);
}

#[test]
fn every_run_of_the_samples_has_its_owner() {
    for name in ["vmfs5-layouts", "vmfs6-basic", "vmfs6-span", "vmfs5-512k"] {
        let sample = SAMPLES.iter().find(|sample| sample.name == name).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let devices = sample.build().finish().into_iter().enumerate();
        let images: Vec<PathBuf> = devices
            .map(|(number, device)| {
                let path = folder.path().join(format!("{number}.img"));
                device.save(&path).unwrap();
                path
            })
            .collect();
        let count = check(&images);
        assert!(count > 20, "{name}: {count}");
    }
}

#[test]
fn every_run_of_the_real_images_has_its_owner() {
    let test = "every_run_of_the_real_images_has_its_owner";
    for name in ["vmfs5", "vmfs6"] {
        let Some(image) = unpacked(test, &format!("vmfs/{name}.bin.gz")) else { return };
        let count = check(&[image]);
        assert!(count > 100, "{name}: {count}");
    }
}

/// A device with a file that is there and one that was deleted.
struct Made {
    image: PathBuf,
    /// Where their blocks are.
    live: Vec<u64>,
    dead: Vec<u64>,
    /// Where their descriptors are.
    live_fd: u64,
    dead_fd: u64,
    /// Where the header of the file system is.
    header: u64,
}

fn volume(folder: &Path) -> Made {
    let mut made = Vmfs::new(VmfsSpec::new(Version::Six, 288 << 20));
    made.mkdir("vm");
    made.file("vm/live.bin", Content::bytes(vec![7; 3 << 20]), &Layout::default());
    made.file("dead.bin", Content::bytes(vec![9; 2 << 20]), &Layout::default());
    let live = made.locate("vm/live.bin");
    let dead = made.delete_keeping_pointers("dead.bin");
    let places = |blocks: &[vdrecover_testdata::vmfs::Block]| -> Vec<u64> {
        blocks.iter().map(|block| made.device_position(block.lv).1).collect()
    };
    let at = |lv| made.device_position(lv).1;
    let found = Made {
        image: folder.join("volume.img"),
        live: places(&live.blocks),
        dead: places(&dead.blocks),
        live_fd: at(live.fd_lv),
        dead_fd: at(dead.fd_lv),
        header: at(2 << 20),
    };
    made.finish().remove(0).save(&found.image).unwrap();
    found
}

/// The kinds and names of the owners of one byte.
fn owners(image: &Path, at: u64) -> Vec<(String, String, String)> {
    let image = image.to_str().unwrap();
    let rows = records(0, ["owner", "--json", image, "--offset", &at.to_string()]);
    let rows = rows.iter().filter(|row| row["record"] == "owner");
    rows.map(|row| {
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let last = row["layers"].as_array().unwrap().last().unwrap();
        (text(&row["kind"]), text(&row["state"]), text(&last["name"]))
    })
    .collect()
}

#[test]
fn structures_free_space_and_dead_files_are_told_apart() {
    let folder = tempfile::tempdir().unwrap();
    let Made { image, live, dead, live_fd, dead_fd, header } = volume(folder.path());
    let one = |at| {
        let all = owners(&image, at);
        let [(kind, state, name)] = all.as_slice() else { panic!("{at:#x}: {all:?}") };
        (kind.clone(), state.clone(), name.clone())
    };
    let (kind, state, name) = one(live[1] + 5);
    assert!((kind.as_str(), state.as_str()) == ("data", "live") && name.ends_with("/vm/live.bin"), "{name}");
    let (kind, _, name) = one(live_fd + 100);
    assert!(kind == "structure" && name.starts_with("descriptor of") && name.ends_with("/vm/live.bin"), "{name}");
    let told = owners(&image, dead[0]);
    let told: Vec<_> = told.iter().map(|(kind, state, _)| (kind.as_str(), state.as_str())).collect();
    assert_eq!(told, [("data", "deleted"), ("free", "live")]);
    let (kind, _, name) = one(dead_fd + 100);
    assert!(kind == "unused" && name.ends_with("/.fdc.sf"), "{name}");
    assert!(one(0x10_0000).2.starts_with("metadata of store/"), "the header of the volume manager");
    assert!(one(header).2.starts_with("system file of store/") && one(header).2.ends_with("/.vh.sf"));
    assert_eq!(one(0x5000).0, "unclaimed");
}

/// What a bitmap has as used is nobody's only if no table says whose it is.
#[test]
fn blocks_of_a_lost_descriptor_are_allocated() {
    for version in [Version::Five, Version::Six] {
        let folder = tempfile::tempdir().unwrap();
        let mut made = Vmfs::new(VmfsSpec::new(version, 288 << 20));
        made.mkdir("vm");
        made.file("vm/lost.bin", Content::bytes(vec![7; 3 << 20]), &Layout::default());
        made.file("other.bin", Content::bytes(vec![8; 3 << 20]), &Layout::default());
        let lost = made.locate("vm/lost.bin");
        made.sync();
        made.write_lv(lost.fd_lv, &vec![0xAA; usize::try_from(lost.fd_len).unwrap()]);
        let at = |lv| made.device_position(lv).1;
        let (block, fd) = (at(lost.blocks[1].lv), at(lost.fd_lv));
        let image = folder.path().join("volume.img");
        made.into_devices().remove(0).save(&image).unwrap();
        let all = owners(&image, block + 5);
        let [(kind, _, name)] = all.as_slice() else { panic!("{version:?}: {all:?}") };
        assert_eq!(kind, "allocated", "{version:?}: {name}");
        // Only VMFS6 has a table of who has blocks.
        assert_eq!(name.ends_with("perhaps of store/datastore1/vm/lost.bin"), version == Version::Six, "{name}");
        let all = owners(&image, fd + 5);
        let [(kind, _, name)] = all.as_slice() else { panic!("{version:?}: {all:?}") };
        assert_eq!(kind, "allocated", "{version:?}: {name}");
        assert!(name.ends_with("of store/datastore1/vm/lost.bin"), "{name}");
    }
}

/// A journal of VMFS5 is a file block that no file has.
#[test]
fn a_journal_in_a_file_block_is_metadata() {
    let folder = tempfile::tempdir().unwrap();
    let store = Vmfs::new(VmfsSpec { crashed: true, ..VmfsSpec::new(Version::Five, 288 << 20) });
    let crashed = store.crash(Crash::Pending, |store| store.file("new", Content::bytes(*b"new"), &Layout::default()));
    let image = folder.path().join("volume.img");
    crashed.devices[0].save(&image).unwrap();
    let at = 0x110_0000 + crashed.journal.start;
    let all = owners(&image, at + 600);
    assert!(all.iter().any(|(kind, _, name)| kind == "structure" && name.starts_with("journal of")), "{all:?}");
    let map = folder.path().join("meta.map");
    expect(0, ["map", image.to_str().unwrap(), "--want", "metadata", "-o", map.to_str().unwrap()]);
    let map = Mapfile::read(&map).unwrap();
    let wanted = map.blocks().iter().filter(|(_, status)| *status == Status::Finished);
    assert!(wanted.clone().any(|(range, _)| range.start <= at && at + 4096 <= range.end), "{map:?}");
}

#[test]
fn places_behind_the_end_are_a_doubt() {
    let folder = tempfile::tempdir().unwrap();
    let list = folder.path().join("list");
    fs::write(&list, "0\n1T\n").unwrap();
    expect(1, ["owner", demo().to_str().unwrap(), "--list", list.to_str().unwrap()]);
}

#[test]
fn what_a_map_calls_bad_still_has_its_owner() {
    let folder = tempfile::tempdir().unwrap();
    let Made { image, live, .. } = volume(folder.path());
    let map = folder.path().join("bad.map");
    let len = fs::metadata(&image).unwrap().len();
    let (at, rest) = (live[2] + 512, live[2] + 1536);
    fs::write(&map, format!("0 ? 1\n0 {at} +\n{at} 1024 -\n{rest} {} +\n", len - rest)).unwrap();
    let [image, map] = [&image, &map].map(|path| path.to_str().unwrap());
    let rows = records(0, ["owner", "--json", image, "--list", map, "--mapfile", &format!("{image}={map}")]);
    let owners: Vec<&Value> = rows.iter().filter(|row| row["record"] == "owner").collect();
    assert_eq!(owners.len(), 1, "{owners:#?}");
    assert_eq!((&owners[0]["start"], &owners[0]["length"]), (&at.into(), &1024.into()));
    let last = owners[0]["layers"].as_array().unwrap().last().unwrap();
    assert!(last["name"].as_str().unwrap().ends_with("/vm/live.bin"));
    assert_eq!(last["offset"], (2 << 20) + 512);
}

#[test]
fn a_long_list_is_answered_byte_for_byte() {
    let folder = tempfile::tempdir().unwrap();
    let Made { image, .. } = volume(folder.path());
    let sectors = fs::metadata(&image).unwrap().len() / 512;
    // Scattered, each once, and in no order.
    let all: BTreeSet<u64> = (0..100_000_u64).map(|i| (i * 7919 + 3) % sectors).collect();
    let list = folder.path().join("list");
    fs::write(&list, lines(all.iter().rev())).unwrap();
    let (image, list) = (image.to_str().unwrap(), list.to_str().unwrap());
    let rows =
        |threads| records(0, ["owner", "--json", image, "--list", list, "--sector-size", "512", "--threads", threads]);
    let told = rows("2");
    let first = told.iter().filter(|row| row["record"] == "owner" && row["number"] == 0);
    let mut covered = 0;
    let mut end = 0;
    for row in first {
        let (start, len) = (row["start"].as_u64().unwrap(), row["length"].as_u64().unwrap());
        assert!(start >= end && (start..start + len).step_by(512).all(|at| all.contains(&(at / 512))));
        (end, covered) = (start + len, covered + len);
    }
    assert_eq!(covered, all.len() as u64 * 512);
    assert_eq!(told, rows("1"));
}

#[test]
fn a_question_that_makes_no_sense_says_so() {
    let image = demo();
    let image = image.to_str().unwrap();
    for args in [&["--offset", "1T"][..], &["--list", "/dev"], &[], &["--offset", "0", "--length", "0"]] {
        let output = vdrecover(["owner", image].iter().chain(args));
        assert_eq!(output.status.code(), Some(2), "{args:?}");
    }
}

/// Rescues `image` where `map` says so.
fn rescue(image: &Path, map: &Path, to: &Path) {
    let log = to.with_extension("log");
    let domain = format!("--domain-mapfile={}", map.display());
    let done = Command::new("ddrescue").args(["-q", &domain]).args([image, to, &log]).status().unwrap();
    assert!(done.success());
}

#[test]
fn a_rescue_of_what_is_wanted_is_enough() {
    let test = "a_rescue_of_what_is_wanted_is_enough";
    if !tool(test, "ddrescue", &["--version"]) || !tool(test, "ddrescuelog", &["--version"]) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    fs::copy(demo(), at("demo.qcow2")).unwrap();
    let image = at("demo.qcow2");
    // One VM: all of it comes out of the rescued image as it does of the whole one.
    let row = records(0, ["map", "--json", &image, "--want", "vms/web01", "-o", &at("web01.map")]).remove(0);
    let status = Command::new("ddrescuelog").args(["-t", &at("web01.map")]).output().unwrap();
    assert!(status.status.success());
    let shown = String::from_utf8(status.stdout).unwrap();
    let rescued = shown.lines().find(|line| line.contains("rescued:")).unwrap();
    let wanted = row["wanted"].as_u64().unwrap();
    assert!(rescued.contains(&format!(" {wanted} B")), "{wanted}: {rescued}");
    assert!(shown.contains(&format!(" {} B", fs::metadata(&image).unwrap().len())), "{shown}");
    assert!(wanted < fs::metadata(&image).unwrap().len() * 9 / 10, "{wanted}");
    rescue(Path::new(&image), Path::new(&at("web01.map")), Path::new(&at("web01.qcow2")));
    for path in [
        "vms/web01/web01.raw",
        "vms/web01/web01.vmx",
        "vms/web01/snapshots/1-before upgrade/web01.raw",
        "store/datastore1/web01/web01-flat.vmdk",
    ] {
        let digest = |image: &str| {
            let out = expect(0, ["cat", &format!("{image}::{path}")]);
            vdrecover::digest::hex(&vdrecover::digest::sha256(&out))
        };
        assert_eq!(digest(&image), digest(&at("web01.qcow2")), "{path}");
    }
    // The metadata: everything is listed with its facts, and nothing else was read.
    let row = records(0, ["map", "--json", "--want", &format!("{image}::metadata"), "-o", &at("meta.map")]).remove(0);
    assert!(row["wanted"].as_u64().unwrap() < fs::metadata(&image).unwrap().len() * 3 / 4, "{row}");
    rescue(Path::new(&image), Path::new(&at("meta.map")), Path::new(&at("meta.qcow2")));
    for path in ["store", "vms"] {
        // Pointer blocks that are free are no metadata, whatever is left in them.
        let listed = |image: &str| {
            let mut rows = records(0, ["ls", "-R", "--all", "--json", &format!("{image}::{path}")]);
            rows.retain(|row| row["state"] != "fragment");
            rows
        };
        assert!(listed(&image) == listed(&at("meta.qcow2")), "{path}");
    }
}

#[test]
fn a_rescue_of_a_real_volumes_metadata_lists_it_all() {
    let test = "a_rescue_of_a_real_volumes_metadata_lists_it_all";
    if !tool(test, "ddrescue", &["--version"]) {
        return;
    }
    let Some(image) = unpacked(test, "vmfs/vmfs5.bin.gz") else { return };
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let map = at("meta.map");
    let args = ["map".as_ref(), image.as_os_str(), "--want".as_ref(), "metadata".as_ref(), "-o".as_ref()];
    expect(0, args.into_iter().chain([map.as_os_str()]));
    let domain = format!("--domain-mapfile={}", map.display());
    // Sparse: what is wanted of this volume is mostly zeros.
    let log = at("log");
    let args = ["-q", "-S", &domain];
    assert!(Command::new("ddrescue").args(args).args([&image, &at("r.img"), &log]).status().unwrap().success());
    let listed = |image: &Path| expect(0, ["ls".as_ref(), "-R".as_ref(), "--json".as_ref(), image.as_os_str()]);
    assert_eq!(listed(&image), listed(&at("r.img")));
    // A span has a map for each device.
    let spans = ["vmfs5-span-0", "vmfs5-span-1"].map(|name| unpacked(test, &format!("vmfs/{name}.bin.gz")));
    let [Some(one), Some(two)] = spans else { return };
    let (one, two, map) = (one.to_str().unwrap(), two.to_str().unwrap(), at("span.map"));
    let rows = records(0, ["map", one, "--json", "--with", two, "--want", "metadata", "-o", map.to_str().unwrap()]);
    let mut paths: Vec<PathBuf> = rows.iter().map(|row| row["path"].as_str().unwrap().into()).collect();
    paths.sort();
    assert_eq!(paths, [at("span.vmfs5-span-0.bin.map"), at("span.vmfs5-span-1.bin.map")]);
    assert!(paths.iter().all(|path| path.is_file()) && !map.exists());
}

#[test]
fn a_domain_is_not_written_over_anything() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    fs::copy(demo(), at("demo.qcow2")).unwrap();
    let before = fs::read(at("demo.qcow2")).unwrap();
    let map = |output: &str, more: &[&str]| {
        let args = ["map", &at("demo.qcow2"), "--want", "metadata", "-o", output].map(str::to_owned);
        vdrecover(args.into_iter().chain(more.iter().map(|arg| (*arg).to_owned()))).status.code()
    };
    assert_eq!(map(&at("demo.qcow2"), &["--force"]), Some(2));
    assert_eq!(fs::read(at("demo.qcow2")).unwrap(), before);
    fs::write(at("x.map"), "mine").unwrap();
    assert_eq!(map(&at("x.map"), &[]), Some(2));
    assert_eq!(fs::read(at("x.map")).unwrap(), b"mine");
    assert_eq!(map(&at("x.map"), &["--force"]), Some(0));
    assert!(fs::read(at("x.map")).unwrap().starts_with(b"# Mapfile"));
    assert_eq!(map(&at("no/such/x.map"), &[]), Some(2));
    for bad in [&["--want", "store/none"][..], &["--want", "metadata"], &["--want", "metadata", "--offset", "5"]] {
        let output = vdrecover(["map", &at("demo.qcow2")].into_iter().chain(bad.iter().copied()));
        assert_eq!(output.status.code(), Some(2), "{bad:?}");
    }
}
