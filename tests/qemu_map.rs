//! Where bytes lie, by `map --json` and by `qemu-img map`: the same, for images of every kind that qemu-img makes.
//! `docs/qemu-differences.md` says where the two differ and why; each row of it is a part of this test or of those
//! that it names.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs, reason = "tests")]

mod common;

use common::{expect, tool, vdrecover};
use serde_json::Value;
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::process::Command;

const LEN: usize = 12 << 20;

/// What a range is: zeros, compressed, or bytes of a file at a distance from their place on the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Zero,
    Coded,
    Data(Option<i64>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Row {
    start: u64,
    len: u64,
    kind: Kind,
}

/// Appends a row; equal ones that touch are one.
fn push(rows: &mut Vec<Row>, start: u64, len: u64, kind: Kind) {
    match rows.last_mut() {
        Some(last) if last.kind == kind && last.start + last.len == start => last.len += len,
        _ => rows.push(Row { start, len, kind }),
    }
}

fn number(row: &Value, key: &str) -> u64 {
    row[key].as_u64().unwrap()
}

fn distance(offset: &Value, start: u64) -> Option<i64> {
    offset.as_i64().map(|offset| offset - i64::try_from(start).unwrap())
}

fn of_qemu(format: &str, image: &Path) -> Vec<Row> {
    let mut command = Command::new("qemu-img");
    // It looks for a data file where it is run, and not beside the image.
    command.args(["map", "--output=json", "-f", format]).arg(image).current_dir(image.parent().unwrap());
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mut rows = Vec::new();
    for row in serde_json::from_slice::<Vec<Value>>(&output.stdout).unwrap() {
        let start = number(&row, "start");
        let kind = if row["zero"] == true || row["present"] == false {
            Kind::Zero
        } else if row["compressed"] == true {
            Kind::Coded
        } else {
            Kind::Data(distance(&row["offset"], start))
        };
        push(&mut rows, start, number(&row, "length"), kind);
    }
    rows
}

fn ours(image: &Path) -> Vec<Row> {
    let mut rows = Vec::new();
    for row in common::records(0, ["map".as_ref(), "--json".as_ref(), image.as_os_str()]) {
        assert_eq!((&row["record"], &row["trust"]), (&"run".into(), &"sound".into()), "{row}");
        let start = number(&row, "start");
        let kind = match row["kind"].as_str().unwrap() {
            "zero" | "hole" => Kind::Zero,
            "coded" => Kind::Coded,
            "data" => Kind::Data(distance(&row["offset"], start)),
            other => panic!("{other}: {row}"),
        };
        push(&mut rows, start, number(&row, "length"), kind);
    }
    rows
}

/// What `rows` say at `at`.
fn at(rows: &[Row], at: u64) -> Option<Kind> {
    rows.iter().find(|row| (row.start..row.start + row.len).contains(&at)).map(|row| row.kind)
}

/// A disk with holes, text and zeros that are stored, of an odd number of sectors.
fn plain() -> Vec<u8> {
    let mut bytes = vec![0; LEN + 3 * 512];
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let mut at = 0;
    while at < bytes.len() {
        let piece = [512, 1024, 4096, 65_536, 69_632, 300 << 10, 1 << 20][usize::try_from(next() % 7).unwrap()];
        let end = (at + piece).min(bytes.len());
        match next() % 3 {
            0 => bytes[at..end].chunks_mut(8).for_each(|bytes| bytes.fill_with(|| next().to_le_bytes()[3])),
            1 => bytes[at..end].fill(0x5a),
            _ => {}
        }
        at = end;
    }
    bytes
}

/// The files of the image, written anew without holes.
fn fill_holes(folder: &Path) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let bytes = fs::read(&path).unwrap();
        let mut file = File::create(&path).unwrap();
        file.write_all(&bytes).unwrap();
        file.sync_all().unwrap();
    }
}

fn qemu(folder: &Path, args: &[&str]) {
    let output = Command::new("qemu-img").args(args).current_dir(folder).output().unwrap();
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Format, options, further arguments of `convert`.
type Made<'a> = (&'a str, String, &'a [&'a str]);

fn all() -> Vec<Made<'static>> {
    let mut all: Vec<Made<'_>> = Vec::new();
    let mut add = |format, options: &[&str], more| {
        all.extend(options.iter().map(|options| (format, (*options).to_owned(), more)));
    };
    let clusters: Vec<String> = (9..=21).map(|bits| format!("cluster_size={}", 1 << bits)).collect();
    let clusters: Vec<&str> = clusters.iter().map(String::as_str).collect();
    add("qcow2", &clusters, &[]);
    add("qcow2", &["compat=0.10", "compat=1.1", "lazy_refcounts=on", "refcount_bits=1", "refcount_bits=64"], &[]);
    add("qcow2", &["preallocation=metadata", "preallocation=falloc", "preallocation=full"], &[]);
    add("qcow2", &["extended_l2=on", "extended_l2=on,cluster_size=16k"], &[]);
    add("qcow2", &["data_file=made.data", "data_file=made.data,data_file_raw=on"], &[]);
    add("qcow2", &["", "cluster_size=512", "cluster_size=2M", "extended_l2=on", "compression_type=zstd"], &["-c"]);
    add("qcow2", &[""], &["-S", "0"]);
    add("qcow", &[""], &[]);
    add("vmdk", &["subformat=monolithicFlat", "subformat=twoGbMaxExtentFlat"], &[]);
    add("vmdk", &["subformat=monolithicSparse", "subformat=twoGbMaxExtentSparse", "subformat=streamOptimized"], &[]);
    add("vmdk", &["subformat=monolithicSparse,zeroed_grain=on", "subformat=streamOptimized,zeroed_grain=on"], &[]);
    add("vmdk", &["compat6=on", "hwversion=13", "adapter_type=lsilogic", "adapter_type=legacyESX"], &[]);
    add("vpc", &["subformat=dynamic", "subformat=fixed"], &[]);
    add("vpc", &["subformat=dynamic,force_size=on", "subformat=fixed,force_size=on"], &[]);
    add("vhdx", &["subformat=dynamic", "subformat=fixed", "block_state_zero=off", "block_size=1M"], &[]);
    add("vhdx", &["block_size=256M", "log_size=4M"], &[]);
    add("vdi", &["static=off", "static=on"], &[]);
    add("raw", &["preallocation=off", "preallocation=falloc", "preallocation=full"], &[]);
    all
}

#[test]
fn the_map_is_that_of_qemu_img() {
    if !tool("the_map_is_that_of_qemu_img", "qemu-img", &["--version"]) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let plain_raw = folder.path().join("plain.raw");
    fs::write(&plain_raw, plain()).unwrap();
    for (format, options, more) in all() {
        let what = format!("{format} {options} {more:?}");
        let made = tempfile::tempdir_in(folder.path()).unwrap();
        let image = made.path().join(format!("made.{}", if format == "vpc" { "vhd" } else { format }));
        let mut args = vec!["convert", "-f", "raw", "-O", format];
        args.extend(more);
        args.extend(if options.is_empty() { vec![] } else { vec!["-o", &options] });
        args.extend([plain_raw.to_str().unwrap(), image.to_str().unwrap()]);
        qemu(made.path(), &args);
        // As it is made, the file has holes, and ours looks at them. What is data for ours is so for qemu-img, at the
        // same place, and what is none for qemu-img is none for ours.
        let (theirs, mine) = (of_qemu(format, &image), ours(&image));
        for row in &mine {
            for place in [row.start, row.start + row.len - 1] {
                let there = at(&theirs, place);
                let same = match (row.kind, there) {
                    (Kind::Zero, Some(_)) | (Kind::Data(_), Some(Kind::Data(None))) => true,
                    (kind, there) => Some(kind) == there,
                };
                assert!(same, "{what}: {row:?} is {there:?} for qemu-img");
            }
        }
        let last = mine.last().unwrap();
        assert_eq!(last.start + last.len, theirs.last().map(|row| row.start + row.len).unwrap(), "{what}: length");
        if format == "raw" {
            assert_eq!(mine, theirs, "{what}");
            continue;
        }
        fill_holes(made.path());
        let (theirs, mine) = (of_qemu(format, &image), ours(&image));
        if format == "vhdx" {
            // qemu-img has no map of VHDX: to it all is data, anywhere.
            assert_eq!(theirs.iter().map(|row| row.kind).collect::<Vec<_>>(), [Kind::Data(None)], "{what}");
            let output = vdrecover(["cat".as_ref(), image.as_os_str()]);
            assert!(output.stdout == plain(), "{what}");
        } else {
            assert_eq!(mine, theirs, "{what}");
        }
    }
}

#[test]
fn the_map_of_a_chain_is_that_of_qemu_img() {
    if !tool("the_map_of_a_chain_is_that_of_qemu_img", "qemu-img", &["--version"]) {
        return;
    }
    for (base, top, options) in [
        ("raw", "qcow2", ""),
        ("qcow2", "qcow2", "cluster_size=4096"),
        ("vmdk", "qcow2", "extended_l2=on"),
        ("vdi", "qcow2", "compat=0.10"),
        ("vmdk", "vmdk", "subformat=monolithicSparse"),
        ("qcow", "qcow", ""),
    ] {
        if !tool("the_map_of_a_chain_is_that_of_qemu_img", "qemu-io", &["--version"]) {
            return;
        }
        let what = format!("{top} {options} over {base}");
        let made = tempfile::tempdir().unwrap();
        fs::write(made.path().join("plain.raw"), plain()).unwrap();
        qemu(made.path(), &["convert", "-f", "raw", "-O", base, "plain.raw", &format!("base.{base}")]);
        let base_name = format!("base.{base}");
        let top_name = format!("top.{top}");
        let mut args = vec!["create", "-q", "-f", top, "-F", base, "-b", &base_name];
        args.extend(if options.is_empty() { vec![] } else { vec!["-o", options] });
        args.push(&top_name);
        qemu(made.path(), &args);
        let writes = ["write -P 7 70k 5k", "write -P 8 3M 200k", "write -z 5M 1M", "write -P 9 8M 64k"];
        let mut command = Command::new("qemu-io");
        command.args(["-f", top]).arg(&top_name).current_dir(made.path());
        for write in writes {
            command.args(["-c", write]);
        }
        let output = command.output().unwrap();
        assert!(output.status.success(), "{what}: {}", String::from_utf8_lossy(&output.stderr));
        fs::remove_file(made.path().join("plain.raw")).unwrap();
        fill_holes(made.path());
        let image = made.path().join(&top_name);
        assert_eq!(ours(&image), of_qemu(top, &image), "{what}");
        let flat = made.path().join("flat.raw");
        qemu(made.path(), &["convert", "-O", "raw", &top_name, "flat.raw"]);
        assert!(expect(0, ["cat".as_ref(), image.as_os_str()]) == fs::read(flat).unwrap(), "{what}");
    }
}
