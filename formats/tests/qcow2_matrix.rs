//! Every option of QCOW2 and QCOW that qemu-img has: what it makes of an image is what we make of it.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::arithmetic_side_effects,
    clippy::as_conversions,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::precedence,
    missing_docs,
    unreachable_pub,
    reason = "tests"
)]

mod disk_support;

use disk_support::*;
use vdrecover_formats::{Bytes, Content, FORMATS, Role, Trust, read_vec};

/// A small disk with text, noise, zeros and a last byte.
fn small() -> Vec<u8> {
    sample((1 << 20) + 1536 + 512)
}

/// The states of an image; a parent and a data file are found by their names.
fn states(folder: &Folder, name: &str) -> Vec<(Vec<u8>, Bytes)> {
    let image = folder.load(name);
    let opened = open(&image);
    let others: Vec<Option<Bytes>> = opened
        .wants
        .iter()
        .map(|want| {
            let name = String::from_utf8(want.hint.clone().unwrap()).unwrap();
            let bytes = folder.load(&name);
            Some(if want.role == Role::Parent { states(folder, &name)[0].1.clone() } else { bytes })
        })
        .collect();
    match (opened.join)(&others).unwrap() {
        Content::Disks(disks) => disks.into_iter().map(|disk| (disk.name, disk.bytes)).collect(),
        other => panic!("{other:?}"),
    }
}

#[track_caller]
fn agrees(folder: &Folder, format: &str, image: &str, what: &str) {
    let layer = states(folder, image)[0].1.clone();
    assert!(all(&layer) == folder.raw(&["-f", format, image]), "{what}");
    assert_eq!(read_vec(&*layer, 0, layer.len() as usize).1.trust, Trust::Sound, "{what}");
    check(&layer);
    assert_eq!(findings(&layer), [""; 0], "{what}");
}

fn convert(folder: &Folder, format: &str, options: &str, packed: bool) {
    let mut args = vec!["convert", "-O", format, "-f", "raw"];
    if !options.is_empty() {
        args.extend(["-o", options]);
    }
    args.extend(packed.then_some("-c"));
    args.extend(["plain.raw", "image"]);
    folder.run("qemu-img", &args);
}

#[test]
fn every_size_of_cluster_version_counter_and_compression() {
    if !has("qemu-img", "every_size_of_cluster_version_counter_and_compression") {
        return;
    }
    let folder = Folder::new();
    folder.write("plain.raw", &small());
    let mut all: Vec<(String, bool)> = Vec::new();
    for bits in 9..=21 {
        let size = 1 << bits;
        all.push((format!("compat=0.10,cluster_size={size}"), false));
        all.push((format!("compat=0.10,cluster_size={size}"), true));
        all.push((format!("compat=1.1,cluster_size={size}"), false));
        all.push((format!("compat=1.1,cluster_size={size}"), true));
        all.push((format!("compat=1.1,cluster_size={size},compression_type=zstd"), true));
        for width in [1, 2, 4, 8, 32, 64] {
            all.push((format!("cluster_size={size},refcount_bits={width}"), bits % 2 == 0));
        }
        if bits >= 14 {
            all.push((format!("cluster_size={size},extended_l2=on"), false));
            all.push((format!("cluster_size={size},extended_l2=on"), true));
            all.push((format!("cluster_size={size},extended_l2=on,compression_type=zstd"), true));
        }
    }
    for allocation in ["metadata", "falloc", "full"] {
        all.push((format!("preallocation={allocation}"), false));
        all.push((format!("preallocation={allocation},extended_l2=on"), false));
    }
    all.push(("lazy_refcounts=on".into(), false));
    assert!(all.len() > 150, "{}", all.len());
    for (options, packed) in all {
        convert(&folder, "qcow2", &options, packed);
        agrees(&folder, "qcow2", "image", &format!("{options}, packed: {packed}"));
    }
}

#[test]
fn every_kind_of_backing_and_data_file() {
    if !has("qemu-io", "every_kind_of_backing_and_data_file") {
        return;
    }
    let folder = Folder::new();
    folder.write("plain.raw", &small());
    for (format, options) in [
        ("raw", ""),
        ("qcow2", "cluster_size=4k"),
        ("qcow2", "extended_l2=on"),
        ("qcow2", "compat=0.10"),
        ("qcow", ""),
        ("vmdk", "subformat=monolithicSparse"),
        ("vmdk", "subformat=streamOptimized"),
        ("vhdx", ""),
        ("vdi", ""),
    ] {
        convert(&folder, format, options, false);
        std::fs::rename(folder.path("image"), folder.path("base")).unwrap();
        for top in ["cluster_size=64k", "cluster_size=512", "compat=0.10", "extended_l2=on,cluster_size=32k"] {
            let create = ["create", "-q", "-f", "qcow2", "-o", top, "-b", "base", "-F", format, "image", "2M"];
            folder.run("qemu-img", &create);
            let writes = ["write -P 1 5k 3k", "write -z 200k 100k", "write -P 2 1900k 10k", "discard 640k 64k"];
            for write in writes {
                folder.run("qemu-io", &["-f", "qcow2", "-c", write, "image"]);
            }
            let layer = states(&folder, "image")[0].1.clone();
            assert!(all(&layer) == folder.raw(&["-f", "qcow2", "image"]), "{top} over {format} {options}");
            check(&layer);
        }
    }
    for options in [
        "data_file=data",
        "data_file=data,data_file_raw=on",
        "data_file=data,extended_l2=on",
        "data_file=data,cluster_size=512",
        "data_file=data,preallocation=metadata",
    ] {
        let _ = std::fs::remove_file(folder.path("data"));
        convert(&folder, "qcow2", options, false);
        agrees(&folder, "qcow2", "image", options);
    }
}

#[test]
fn every_snapshot_is_a_disk_of_its_own() {
    if !has("qemu-io", "every_snapshot_is_a_disk_of_its_own") {
        return;
    }
    for options in [
        "cluster_size=512",
        "compat=0.10",
        "cluster_size=2M",
        "extended_l2=on,cluster_size=16k",
        "refcount_bits=2",
        "refcount_bits=64",
    ] {
        let folder = Folder::new();
        folder.write("plain.raw", &small());
        convert(&folder, "qcow2", options, options == "refcount_bits=64");
        // Two bits count to three: the current state and two snapshots.
        for name in ["one", "two"] {
            folder.run("qemu-img", &["snapshot", "-c", name, "image"]);
            let write = format!("write -P {} 300k 77k", name.len() + usize::from(name == "two"));
            folder.run("qemu-io", &["-f", "qcow2", "-c", &write, "image"]);
        }
        let states = states(&folder, "image");
        assert_eq!(states.iter().map(|state| state.0.as_slice()).collect::<Vec<_>>(), [&b""[..], b"one", b"two"]);
        for (name, layer) in states {
            let name = String::from_utf8(name).unwrap();
            let mut args = vec!["-f", "qcow2"];
            args.extend(if name.is_empty() { vec![] } else { vec!["-l", name.as_str()] });
            args.push("image");
            assert!(all(&layer) == folder.raw(&args), "{options}: {name}");
            assert_eq!(read_vec(&*layer, 0, layer.len() as usize).1.trust, Trust::Sound, "{options}: {name}");
            check(&layer);
            assert_eq!(findings(&layer), [""; 0], "{options}: {name}");
        }
    }
}

/// Bitmaps are listed, claimed, and no orphans; neither is what a guest discarded, nor what a removed snapshot left.
#[test]
fn what_is_in_use_beside_the_disk_is_known() {
    if !has("qemu-io", "what_is_in_use_beside_the_disk_is_known") {
        return;
    }
    for options in ["cluster_size=64k", "cluster_size=512", "extended_l2=on"] {
        let folder = Folder::new();
        folder.write("plain.raw", &small());
        convert(&folder, "qcow2", options, false);
        for (n, name) in ["a", "b", "c"].iter().enumerate() {
            folder.run("qemu-img", &["bitmap", "--add", "image", name]);
            let write = format!("write -P {n} {n}00k 70k");
            folder.run("qemu-io", &["-f", "qcow2", "-c", &write, "image"]);
        }
        let opened = open(&folder.load("image"));
        let bitmaps = opened.facts.iter().find(|fact| fact.name == "bitmaps").unwrap();
        assert_eq!(bitmaps.value, vdrecover_formats::link::Value::Count(3));
        agrees(&folder, "qcow2", "image", options);
        folder.run("qemu-img", &["snapshot", "-c", "gone", "image"]);
        folder.run("qemu-io", &["-f", "qcow2", "-c", "write -P 7 0 1M", "image"]);
        folder.run("qemu-img", &["snapshot", "-d", "gone", "image"]);
        folder.run("qemu-io", &["-f", "qcow2", "-c", "discard 0 512k", "image"]);
        agrees(&folder, "qcow2", "image", options);
        folder.run("qemu-io", &["-f", "qcow2", "-c", "discard 0 1M", "image"]);
        agrees(&folder, "qcow2", "image", options);
        folder.run("qemu-img", &["resize", "-q", "image", "3M"]);
        folder.run("qemu-io", &["-f", "qcow2", "-c", "write -P 8 2900k 20k", "image"]);
        agrees(&folder, "qcow2", "image", options);
        folder.run("qemu-img", &["resize", "-q", "--shrink", "image", "1M"]);
        agrees(&folder, "qcow2", "image", options);
    }
}

#[test]
fn encrypted_images_are_sealed_and_named() {
    if !has("qemu-img", "encrypted_images_are_sealed_and_named") {
        return;
    }
    let secret = "secret,id=s,data=abc";
    for (format, options, cipher, slots) in [
        (
            "qcow2",
            "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10",
            "aes-xts-plain64, 512 bits, sha256",
            1,
        ),
        (
            "qcow2",
            "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10,encrypt.cipher-alg=twofish-256,\
             encrypt.cipher-mode=cbc,encrypt.ivgen-alg=essiv,encrypt.ivgen-hash-alg=sha256,encrypt.hash-alg=sha512",
            "twofish-cbc-essiv:sha256, 256 bits, sha512",
            1,
        ),
        ("qcow2", "encrypt.format=aes,encrypt.key-secret=s", "aes-cbc-plain64, 128 bits", 0),
    ] {
        let folder = Folder::new();
        let create = ["create", "-q", "-f", format, "--object", secret, "-o", options, "image", "1M"];
        folder.run("qemu-img", &create);
        let image = folder.load("image");
        let opened = open(&image);
        assert_eq!(opened.findings[0].code, "QCOW2-SEALED");
        let fact = |name: &str| opened.facts.iter().find(|fact| fact.name == name).unwrap().value.clone();
        assert_eq!(fact("encryption_cipher"), vdrecover_formats::link::Value::Text(cipher.into()));
        assert_eq!(fact("encryption_key_slots"), vdrecover_formats::link::Value::Count(slots));
        assert!(opened.findings[0].text.contains(cipher), "{}", opened.findings[0].text);
    }
    // QEMU's tools write neither AES format any more; an image is encrypted by its header.
    let folder = Folder::new();
    let plain = small();
    folder.write("plain.raw", &plain);
    for (format, at, code) in [("qcow2", 32, "QCOW2-SEALED"), ("qcow", 36, "QCOW-ENCRYPTED")] {
        convert(&folder, format, "", false);
        let mut bytes = std::fs::read(folder.path("image")).unwrap();
        bytes[at + 3] = 1;
        let image = memory(bytes);
        assert_eq!(open(&image).findings[0].code, code);
        let layer = disk(&image);
        check(&layer);
        let kinds: std::collections::BTreeSet<String> = map(&layer).into_iter().map(|row| row.2).collect();
        assert!(kinds.contains("sealed") && kinds.iter().all(|kind| kind == "sealed" || kind == "hole"), "{kinds:?}");
        assert!(read_vec(&*layer, 0, layer.len() as usize).0.iter().all(|byte| *byte == 0), "never ciphertext");
    }
}

/// A LUKS image without its header is sealed too: its own LUKS header is left.
#[test]
fn a_sealed_image_without_header_is_sealed() {
    if !has("qemu-img", "a_sealed_image_without_header_is_sealed") {
        return;
    }
    let folder = Folder::new();
    folder.write("plain.raw", &small());
    let secret = "secret,id=s,data=abc";
    let options = "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10";
    let args = ["convert", "-O", "qcow2", "--object", secret, "-o", options, "-f", "raw", "plain.raw", "image"];
    folder.run("qemu-img", &args);
    let mut bytes = std::fs::read(folder.path("image")).unwrap();
    bytes[..512].fill(0);
    let layer = disk(&memory(bytes));
    check(&layer);
    let rows = map(&layer);
    assert!(rows.iter().all(|row| row.2 == "sealed" || row.2 == "hole"), "{rows:?}");
    assert!(rows.iter().any(|row| row.2 == "sealed"));
}

#[test]
fn every_kind_of_qcow() {
    if !has("qemu-io", "every_kind_of_qcow") {
        return;
    }
    let folder = Folder::new();
    folder.write("plain.raw", &small());
    convert(&folder, "qcow", "", false);
    agrees(&folder, "qcow", "image", "plain");
    for (format, options) in [("raw", ""), ("qcow2", "cluster_size=4k"), ("qcow", ""), ("vmdk", "")] {
        convert(&folder, format, options, false);
        std::fs::rename(folder.path("image"), folder.path("base")).unwrap();
        folder.run("qemu-img", &["create", "-q", "-f", "qcow", "-b", "base", "-F", format, "image", "2M"]);
        for write in ["write -P 1 5k 3k", "write -P 2 1900k 10k"] {
            folder.run("qemu-io", &["-f", "qcow", "-c", write, "image"]);
        }
        let layer = states(&folder, "image")[0].1.clone();
        assert!(all(&layer) == folder.raw(&["-f", "qcow", "image"]), "over {format}");
        check(&layer);
    }
}

/// Bits that say how the image was left are observations; one that nobody knows is a reason not to read it.
#[test]
fn bits_of_the_header() {
    if !has("qemu-img", "bits_of_the_header") {
        return;
    }
    let folder = Folder::new();
    let plain = small();
    folder.write("plain.raw", &plain);
    convert(&folder, "qcow2", "", false);
    let whole = std::fs::read(folder.path("image")).unwrap();
    let row = FORMATS.iter().find(|row| row.name == "qcow2").unwrap();
    for (at, bit, code, trust) in [
        (79, 1, Some("QCOW2-DIRTY"), Trust::Sound),
        (79, 2, Some("QCOW2-CORRUPT"), Trust::Doubtful),
        (87, 1, None, Trust::Sound),
        (80, 0x80, None, Trust::Sound),
        (88, 0x80, None, Trust::Sound),
    ] {
        let mut bytes = whole.clone();
        bytes[at] |= bit;
        let image = memory(bytes);
        let codes: Vec<&str> = open(&image).findings.iter().map(|finding| finding.code).collect();
        assert_eq!(codes, Vec::from_iter(code), "{at}");
        let layer = disk(&image);
        assert!(all(&layer) == plain, "{at}");
        assert_eq!(read_vec(&*layer, 0, 4096).1.trust, trust, "{at}");
    }
    for (at, bit) in [(79, 0x20), (72, 0x80)] {
        let mut bytes = whole.clone();
        bytes[at] |= bit;
        let error = (row.open)(&memory(bytes), &memo()).unwrap_err().to_string();
        assert!(error.contains("incompatible feature bit"), "{error}");
    }
}
