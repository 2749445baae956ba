//! QCOW2 against qemu-img, and one outcome for each damage.

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
use std::sync::Arc;
use vdrecover_formats::adapt::Damaged;
use vdrecover_formats::disk::qcow2::FORMAT;
use vdrecover_formats::{Bytes, Place, Role, Trust, Why, read_vec, walk};

/// One row of `qemu-img map`.
struct Row {
    start: u64,
    len: u64,
    depth: u64,
    present: bool,
    zero: bool,
    compressed: bool,
    offset: Option<u64>,
}

fn qemu_map(folder: &Folder, image: &str) -> Vec<Row> {
    let text = folder.run("qemu-img", &["map", "--output=json", image]);
    let field = |line: &str, name: &str| {
        let key = format!("\"{name}\": ");
        let rest = line.split_once(&key)?.1;
        rest.split([',', '}']).next().map(|value| value.trim().to_owned())
    };
    text.lines()
        .filter(|line| line.contains("\"start\""))
        .map(|line| {
            let number = |name| field(line, name).and_then(|value| value.parse::<u64>().ok());
            let flag = |name| field(line, name).as_deref() == Some("true");
            Row {
                start: number("start").unwrap(),
                len: number("length").unwrap(),
                depth: number("depth").unwrap(),
                present: flag("present"),
                zero: flag("zero"),
                compressed: flag("compressed"),
                offset: number("offset"),
            }
        })
        .collect()
}

/// Our map says what QEMU's says, offset by offset. `same_file`: data lies in the image itself.
fn compare_map(folder: &Folder, image: &str, layer: &Bytes, same_file: bool) {
    for row in qemu_map(folder, image).iter().filter(|row| row.depth == 0) {
        let end = (row.start + row.len).min(layer.len());
        for run in walk(&**layer, row.start..end) {
            let place = format!("{image} at {:#x}: {:?}", run.at, run.place);
            match run.place {
                Place::Own => {
                    assert!(row.present && !row.compressed, "{place}");
                    if same_file && !row.zero {
                        assert_eq!(row.offset.map(|at| at + run.at - row.start), Some(run.offset), "{place}");
                    }
                }
                Place::Coded(_) => assert!(row.compressed, "{place}"),
                Place::Zero => assert!(row.zero && row.present, "{place}"),
                Place::Hole => assert!(row.zero && !row.present, "{place}"),
                other => panic!("{place}: {other:?}"),
            }
        }
    }
}

#[test]
fn images_of_qemu_img() {
    if !has("qemu-img", "images_of_qemu_img") {
        return;
    }
    let folder = Folder::new();
    let plain = sample((5 << 20) + 1536);
    folder.write("plain.raw", &plain);
    let cases: [(&str, bool); 18] = [
        ("compat=0.10,cluster_size=512", false),
        ("compat=1.1,cluster_size=512", false),
        ("compat=0.10,cluster_size=4096", false),
        ("compat=1.1,cluster_size=4096,refcount_bits=1", false),
        ("compat=0.10,cluster_size=65536", false),
        ("compat=1.1,cluster_size=65536,lazy_refcounts=on", false),
        ("compat=1.1,cluster_size=2M", false),
        ("compat=1.1,extended_l2=on,cluster_size=16384", false),
        ("compat=1.1,extended_l2=on,cluster_size=2M", false),
        ("compat=1.1,preallocation=metadata", false),
        ("compat=1.1,preallocation=full", false),
        ("compat=1.1,preallocation=falloc,extended_l2=on,cluster_size=65536", false),
        ("compat=0.10,cluster_size=65536", true),
        ("compat=1.1,cluster_size=512", true),
        ("compat=1.1,cluster_size=2M", true),
        ("compat=1.1,cluster_size=65536,compression_type=zstd", true),
        ("compat=1.1,cluster_size=2M,compression_type=zstd", true),
        ("compat=1.1,extended_l2=on,cluster_size=65536", true),
    ];
    for (options, compressed) in cases {
        let mut args = vec!["convert", "-O", "qcow2", "-o", options];
        args.extend(compressed.then_some("-c"));
        args.extend(["-f", "raw", "plain.raw", "image.qcow2"]);
        folder.run("qemu-img", &args);
        let image = folder.load("image.qcow2");
        assert_eq!(format_of(&image), "qcow2");
        let opened = open(&image);
        assert_eq!((opened.wants.len(), opened.findings.len()), (0, 0), "{options}: {:?}", opened.findings);
        let layer = disk(&image);
        assert!(all(&layer) == plain, "{options}");
        assert_eq!(read_vec(&*layer, 0, plain.len()).1.trust, Trust::Sound);
        compare_map(&folder, "image.qcow2", &layer, true);
        check(&layer);
        assert_eq!(findings(&layer), [""; 0], "{options}");
    }
}

#[test]
fn writes_zeros_and_discards_of_a_guest() {
    if !has("qemu-io", "writes_zeros_and_discards_of_a_guest") {
        return;
    }
    for options in [
        "cluster_size=65536,compat=0.10",
        "cluster_size=65536",
        "cluster_size=512",
        "cluster_size=65536,extended_l2=on",
        "cluster_size=2M",
        "cluster_size=65536,data_file=data.raw",
        "cluster_size=65536,data_file=data.raw,data_file_raw=on",
    ] {
        let folder = Folder::new();
        folder.run("qemu-img", &["create", "-f", "qcow2", "-o", options, "image.qcow2", "9M"]);
        let writes = [
            "write -P 1 0 512",
            "write -P 2 70000 100000",
            "write -z 1M 300k",
            "write -P 3 1100k 4k",
            "discard 64k 64k",
            "write -P 4 3M 3M",
            "discard 4M 128k",
            "write -z -u 5M 64k",
            "write -P 5 9436672 512",
        ];
        for write in writes {
            folder.run("qemu-io", &["-c", write, "image.qcow2"]);
        }
        let image = folder.load("image.qcow2");
        let opened = open(&image);
        let external = options.contains("data_file");
        let layer = if external {
            assert_eq!(opened.wants[0].role, Role::DataFile);
            assert_eq!(opened.wants[0].hint.as_deref(), Some(&b"data.raw"[..]));
            let absent = disks(&opened, &[None])[0].bytes.clone();
            assert!(gaps(&absent).iter().all(|gap| gap.2 == "absent") && !gaps(&absent).is_empty());
            check(&absent);
            disks(&opened, &[Some(folder.load("data.raw"))])[0].bytes.clone()
        } else {
            disk(&image)
        };
        assert!(all(&layer) == folder.raw(&["-f", "qcow2", "image.qcow2"]), "{options}");
        compare_map(&folder, "image.qcow2", &layer, true);
        check(&layer);
    }
}

#[test]
fn backing_chains() {
    if !has("qemu-io", "backing_chains") {
        return;
    }
    let folder = Folder::new();
    let plain = sample(3 << 20);
    folder.write("base.raw", &plain);
    folder.run("qemu-img", &["create", "-q", "-f", "qcow2", "-b", "base.raw", "-F", "raw", "mid.qcow2", "4M"]);
    folder.run("qemu-io", &["-c", "write -P 7 1M 200k", "-c", "write -z 2M 64k", "mid.qcow2"]);
    let options = "extended_l2=on,cluster_size=32k";
    let create = ["create", "-q", "-f", "qcow2", "-o", options, "-b", "mid.qcow2", "-F", "qcow2", "top.qcow2", "5M"];
    folder.run("qemu-img", &create);
    folder.run("qemu-io", &["-c", "write -P 8 1050k 5k", "-c", "write -P 9 4500k 1k", "top.qcow2"]);

    let mid = open(&folder.load("mid.qcow2"));
    assert_eq!((mid.wants[0].role, mid.wants[0].hint.as_deref()), (Role::Parent, Some(&b"base.raw"[..])));
    assert!(mid.facts.iter().any(|fact| fact.name == "backing_format" && fact.value == "raw"));
    let mid_disk = disks(&mid, &[Some(memory(plain))])[0].bytes.clone();
    let top = open(&folder.load("top.qcow2"));
    let layer = disks(&top, &[Some(mid_disk)])[0].bytes.clone();
    assert!(all(&layer) == folder.raw(&["-f", "qcow2", "top.qcow2"]));
    check(&layer);
    assert!(walk(&*layer, 3 << 20..4 << 20).all(|run| matches!(run.place, Place::Hole)), "behind the base's end");

    let orphan = disks(&top, &[None])[0].bytes.clone();
    check(&orphan);
    assert!(gaps(&orphan).iter().all(|gap| gap.2 == "absent"));
    let (bytes, seen) = read_vec(&*orphan, 1050 << 10, 5 << 10);
    assert!(bytes.iter().all(|byte| *byte == 8) && seen.is_whole(), "what the child has can be had");
}

#[test]
fn snapshots() {
    if !has("qemu-io", "snapshots") {
        return;
    }
    for compat in ["0.10", "1.1"] {
        let folder = Folder::new();
        let options = format!("compat={compat},cluster_size=4096");
        folder.run("qemu-img", &["create", "-q", "-f", "qcow2", "-o", &options, "image.qcow2", "3M"]);
        for (pattern, name) in [("1", "first"), ("2", "se cond"), ("3", "third")] {
            let write = format!("write -P {pattern} {pattern}00k 150k");
            folder.run("qemu-io", &["-c", &write, "image.qcow2"]);
            folder.run("qemu-img", &["snapshot", "-c", name, "image.qcow2"]);
        }
        if compat == "1.1" {
            // Only version 3 notes the size of the disk in a snapshot, so that the disk may grow.
            folder.run("qemu-img", &["resize", "-q", "image.qcow2", "4M"]);
        }
        folder.run("qemu-io", &["-c", "write -P 9 0 2500k", "image.qcow2"]);
        let states = disks(&open(&folder.load("image.qcow2")), &[]);
        let names: Vec<&[u8]> = states.iter().map(|disk| disk.name.as_slice()).collect();
        assert_eq!(names, [&b""[..], b"first", b"se cond", b"third"]);
        assert!(all(&states[0].bytes) == folder.raw(&["-f", "qcow2", "image.qcow2"]));
        for state in &states[1..] {
            let name = String::from_utf8(state.name.clone()).unwrap();
            let old = folder.raw(&["-l", &name, "-f", "qcow2", "image.qcow2"]);
            // qemu-img shows a snapshot with the size that the disk has now.
            assert!(all(&state.bytes) == old[..3 << 20], "{compat} {name}");
            check(&state.bytes);
        }
        assert_eq!(states[1].bytes.len(), 3 << 20);
    }
}

#[test]
fn encrypted_clusters_are_sealed() {
    if !has("qemu-img", "encrypted_clusters_are_sealed") {
        return;
    }
    let folder = Folder::new();
    folder.write("plain.raw", &sample(1 << 20));
    let secret = "secret,id=s,data=abc";
    let options = "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10";
    let args = ["convert", "-O", "qcow2", "--object", secret, "-o", options, "-f", "raw", "plain.raw", "image.qcow2"];
    folder.run("qemu-img", &args);
    let image = folder.load("image.qcow2");
    assert_eq!(open(&image).findings[0].code, "QCOW2-SEALED");
    let layer = disk(&image);
    check(&layer);
    assert!(!gaps(&layer).is_empty() && gaps(&layer).iter().all(|gap| gap.2 == "sealed"));
}

#[test]
fn corpus_images() {
    for name in ["ext2.qcow2", "windows_volume.qcow2"] {
        let Some(path) = corpus("corpus_images", &format!("disks/dfvfs/{name}.gz")) else { continue };
        if !has("qemu-img", "corpus_images") {
            return;
        }
        let folder = Folder::new();
        let mut bytes = Vec::new();
        let mut file = flate2::read::GzDecoder::new(std::fs::File::open(path).unwrap());
        std::io::Read::read_to_end(&mut file, &mut bytes).unwrap();
        folder.write(name, &bytes);
        let layer = disk(&memory(bytes));
        check(&layer);
        assert!(all(&layer) == folder.raw(&["-f", "qcow2", name]), "{name}");
    }
}

#[test]
fn an_image_claims_every_cluster_of_its_file() {
    if !has("qemu-img", "an_image_claims_every_cluster_of_its_file") {
        return;
    }
    let folder = Folder::new();
    folder.write("plain.raw", &sample(2 << 20));
    folder.run(
        "qemu-img",
        &["convert", "-O", "qcow2", "-f", "raw", "-o", "cluster_size=4096", "plain.raw", "image.qcow2"],
    );
    folder.run("qemu-img", &["snapshot", "-c", "one", "image.qcow2"]);
    folder.run("qemu-img", &["bitmap", "--add", "image.qcow2", "changes"]);
    folder.run("qemu-io", &["-c", "write -P 1 1M 64k", "image.qcow2"]);
    let image = folder.load("image.qcow2");
    let mut claimed = vec![false; image.len().div_ceil(4096) as usize];
    for state in disks(&open(&image), &[]) {
        for part in 0..state.bytes.parts() {
            let _ = state.bytes.audit(part, &mut |note| {
                if let vdrecover_formats::Note::Claim { layer, range, .. } = note {
                    assert_eq!(layer.len(), image.len(), "claims are on the file");
                    claimed[(range.start / 4096) as usize..range.end.div_ceil(4096) as usize].fill(true);
                }
                std::ops::ControlFlow::Continue(())
            });
        }
    }
    // The image's own refcounts, 16 bits each, say the same: what nothing claims is free.
    let bytes = all(&image);
    let number = |at: usize| u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap()) as usize;
    let block = number(number(48));
    for (cluster, claimed) in claimed.iter().enumerate() {
        let refcount = &bytes[block + cluster * 2..][..2];
        assert_eq!(*claimed, refcount != [0, 0], "cluster {cluster}");
    }
}

/// Clusters of 4 KiB: 0 header, 1 L1, 2 L2, 3.. data. The disk has 16 clusters, the first 8 of them have data, the
/// ninth is zero, the others are nowhere.
fn image() -> Vec<u8> {
    let mut bytes = vec![0; 11 * 4096];
    let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
    put(0, b"QFI\xfb\0\0\0\x03");
    put(20, &12_u32.to_be_bytes());
    put(24, &(16 * 4096_u64).to_be_bytes());
    put(36, &1_u32.to_be_bytes());
    put(40, &4096_u64.to_be_bytes());
    put(96, &4_u32.to_be_bytes());
    put(100, &104_u32.to_be_bytes());
    put(4096, &(1 << 63 | 2 * 4096_u64).to_be_bytes());
    for i in 0..8_u64 {
        put(8192 + i as usize * 8, &(1 << 63 | (3 + i) * 4096).to_be_bytes());
        put((3 + i as usize) * 4096, &[i as u8 + 1; 4096]);
    }
    put(8192 + 64, &1_u64.to_be_bytes());
    bytes
}

fn l2(bytes: &mut [u8], index: usize, entry: u64) {
    bytes[8192 + index * 8..][..8].copy_from_slice(&entry.to_be_bytes());
}

#[test]
fn the_sample_is_sound() {
    let layer = disk(&memory(image()));
    check(&layer);
    let rows = map(&layer);
    let sound = |at: u64, len: u64, kind: &str| (at * 4096, len * 4096, kind.to_owned(), Trust::Sound);
    assert_eq!(rows, [sound(0, 8, "data"), sound(8, 1, "zero"), sound(9, 7, "hole")]);
    assert_eq!(walk(&*layer, 0..layer.len()).next().unwrap().len, 8 * 4096, "neighbours are merged");
}

/// Name, damage, gaps, codes of the audit's findings.
type Case = (&'static str, fn(&mut Vec<u8>), Vec<(u64, u64, String)>, &'static [&'static str]);

#[test]
fn one_damage_is_one_outcome() {
    const C: u64 = 4096;
    let truncated = |at: u64, len: u64| vec![(at, len, "truncated".to_owned())];
    let unmapped = |at: u64, len: u64| vec![(at, len, "unmapped".to_owned())];
    let cases: Vec<Case> = vec![
        ("past the end", |b| l2(b, 3, 1 << 63 | 99 << 30), truncated(3 * C, C), &["QCOW2-L2-RANGE"]),
        ("behind the hole", |b| l2(b, 12, 1 << 63 | 0x5200), unmapped(12 * C, C), &["QCOW2-L2-ENTRY"]),
        ("reserved", |b| l2(b, 12, 1 << 58 | 0x5000), unmapped(12 * C, C), &["QCOW2-L2-ENTRY"]),
        (
            "cut in the last cluster",
            |b| b.truncate(10 * 4096 + 100),
            truncated(7 * C + 100, C - 100),
            &["QCOW2-L2-RANGE"],
        ),
        ("cut before it", |b| b.truncate(9 * 4096), truncated(6 * C, 2 * C), &["QCOW2-L2-RANGE"]),
        (
            "cut in the L2 table",
            |b| b.truncate(8192 + 16),
            [truncated(0, 2 * C), unmapped(2 * C, 14 * C)].concat(),
            &["QCOW2-L2-RANGE", "QCOW2-L2-ENTRY"],
        ),
        (
            "the L2 table past the end",
            |b| {
                b[4096 + 2] = 1;
                b[8192..12288].fill(0);
            },
            unmapped(0, 16 * C),
            &["QCOW2-L2-ENTRY"],
        ),
        ("packed past the end", |b| l2(b, 3, 1 << 62 | 1 << 40), truncated(3 * C, C), &["QCOW2-L2-RANGE"]),
    ];
    for (name, patch, lost, codes) in cases {
        let mut bytes = image();
        patch(&mut bytes);
        let layer = disk(&memory(bytes));
        check(&layer);
        assert_eq!(gaps(&layer), lost, "{name}");
        assert_eq!(findings(&layer), codes, "{name}");
    }
}

/// What a table lost is put back where only one place is left for it, and says that it was.
#[test]
fn what_tables_lost_is_put_back() {
    type Case = (&'static str, fn(&mut Vec<u8>), &'static [&'static str]);
    let cases: [Case; 8] = [
        ("an entry that is not aligned", |b| l2(b, 3, 1 << 63 | 0x5200), &["QCOW2-L2-MENDED"]),
        ("an entry with reserved bits", |b| l2(b, 3, 1 << 58 | 0x5000), &["QCOW2-L2-MENDED"]),
        ("two entries of noise", |b| (4..6).for_each(|i| l2(b, i, u64::MAX)), &["QCOW2-L2-MENDED"]),
        ("L2 table past the end", |b| b[4096 + 2] = 1, &["QCOW2-L1-MENDED"]),
        ("L2 table unaligned", |b| b[4096 + 6] = 0x22, &["QCOW2-L1-MENDED"]),
        ("L1 table zeroed", |b| b[4096..8192].fill(0), &["QCOW2-L1-MENDED"]),
        ("L1 table past the end", |b| b[43] = 1, &["QCOW2-L1-MENDED"]),
        ("a header without an L1 table", |b| b[36..40].fill(0), &["QCOW2-L1-MENDED"]),
    ];
    let whole = all(&disk(&memory(image())));
    for (name, patch, codes) in cases {
        let mut bytes = image();
        patch(&mut bytes);
        let layer = disk(&memory(bytes));
        check(&layer);
        assert!(all(&layer) == whole, "{name}: {:?}", map(&layer));
        assert_eq!(findings(&layer), codes, "{name}");
        let hit = read_vec(&*layer, 3 * 4096, 3 * 4096).1.trust;
        assert!(hit >= Trust::Inferred, "{name}");
        assert!(map(&layer).iter().filter(|row| row.2 == "hole").all(|row| row.3 >= Trust::Inferred), "{name}");
    }
}

/// A cluster that two entries name is doubtful in both, and so is one that is a table.
#[test]
fn shared_clusters_are_doubtful() {
    for (entry, doubtful) in [(5 * 4096, vec![2, 7]), (2 * 4096, vec![7]), (4096, vec![7]), (0x1000_0000, vec![])] {
        let mut bytes = image();
        l2(&mut bytes, 7, 1 << 63 | entry);
        let layer = disk(&memory(bytes));
        check(&layer);
        let seen: Vec<u64> = (0..8).filter(|n| read_vec(&*layer, n * 4096, 4096).1.trust == Trust::Doubtful).collect();
        let all: Vec<u64> = (0..8).collect();
        // The table itself has two owners: all of it is doubtful.
        assert_eq!(seen, if entry == 2 * 4096 { all } else { doubtful }, "{entry:#x}");
        assert_eq!(findings(&layer).contains(&"QCOW2-SHARED"), !seen.is_empty());
    }
}

#[test]
fn unreadable_table_sectors_cost_their_entries() {
    let broken = Damaged::new(memory(image()), vec![8192 + 16..8192 + 32, 5 * 4096..5 * 4096 + 512], Why::Unreadable);
    let layer = disk(&(Arc::new(broken) as Bytes));
    check(&layer);
    // Only two clusters are left for the two entries; the data of the first is not all there.
    assert_eq!(gaps(&layer), [(2 * 4096, 512, "unreadable".to_owned())]);
    let (bytes, seen) = read_vec(&*layer, 3 * 4096, 4096);
    assert!(bytes.iter().all(|byte| *byte == 4) && seen.is_whole() && seen.trust == Trust::Inferred);
    // Without the end of the file nothing tells which of two is there.
    let (hit, cut) = (8192 + 48..8192 + 64, memory(image()[..10 * 4096].to_vec()));
    let broken = Damaged::new(cut, Vec::from([hit]), Why::Unreadable);
    let layer = disk(&(Arc::new(broken) as Bytes));
    check(&layer);
    assert_eq!(gaps(&layer), [(6 * 4096, 2 * 4096, "unmapped".to_owned())]);
    let run = walk(&*layer, 6 * 4096..8 * 4096).next().unwrap();
    assert!(matches!(run.place, Place::Lost(loss) if loss.at == 8192 + 48), "at the entry");
}

#[test]
fn compressed_clusters_lose_what_does_not_decode() {
    use std::io::Write;
    let plain: Vec<u8> = sample(64 << 10).into_iter().take(4096).map(|byte| byte | 1).collect();
    let noise: Vec<u8> = (0..2048_u64).flat_map(|i| ((i * i * 31) as u16).to_le_bytes()).collect();
    for plain in [plain, noise] {
        let mut encoder = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::best());
        encoder.write_all(&plain).unwrap();
        let packed = encoder.finish().unwrap();
        let mut bytes = image();
        // The last cluster of the file, one byte behind a sector; the file ends with the stream.
        let at = 10 * 4096 + 1;
        bytes.truncate(at);
        bytes.extend(&packed);
        let sectors = (1 + packed.len()).div_ceil(512) as u64 - 1;
        l2(&mut bytes, 7, 1 << 62 | sectors << 58 | at as u64);
        let layer = disk(&memory(bytes.clone()));
        check(&layer);
        assert_eq!(gaps(&layer), []);
        assert!(all(&layer)[7 * 4096..8 * 4096] == plain);

        bytes.truncate(at + packed.len() * 2 / 3);
        let cut = disk(&memory(bytes.clone()));
        check(&cut);
        let (have, seen) = read_vec(&*cut, 7 * 4096, 4096);
        let gap = &seen.gaps[0];
        assert_eq!((seen.gaps.len(), gap.range.end, gap.loss.why), (1, 8 * 4096, Why::Undecodable));
        let good = (gap.range.start - 7 * 4096) as usize;
        assert!(have[..good] == plain[..good] && have[good..].iter().all(|byte| *byte == 0));
        assert_eq!(seen.trust, Trust::Doubtful);
    }
}

#[test]
fn corrupt_and_dirty_bits() {
    for (bit, code, trust) in [(1, "QCOW2-DIRTY", Trust::Sound), (2, "QCOW2-CORRUPT", Trust::Doubtful)] {
        let mut bytes = image();
        bytes[79] = bit;
        let image = memory(bytes);
        let codes: Vec<&str> = open(&image).findings.iter().map(|finding| finding.code).collect();
        assert_eq!(codes, [code]);
        assert_eq!(read_vec(&*disk(&image), 0, 4096).1.trust, trust);
    }
}

#[test]
fn a_short_l1_table_loses_what_it_does_not_map() {
    let mut bytes = image();
    bytes[24..32].copy_from_slice(&(4_u64 << 20).to_be_bytes());
    let image = memory(bytes);
    assert_eq!(open(&image).findings[0].code, "QCOW2-L1-SHORT");
    let layer = disk(&image);
    check(&layer);
    assert_eq!(gaps(&layer), [(2 << 20, 2 << 20, "unmapped".to_owned())]);
}

#[test]
fn hostile_headers_cost_nothing() {
    let patches: [(usize, &[u8]); 6] = [
        (36, &[0x7f, 0xff, 0xff, 0xff]),
        (24, &[0xff; 8]),
        (60, &[0xff; 4]),
        (64, &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xf8]),
        (8, &[0, 0, 0, 0, 0, 0, 0, 104, 0xff, 0xff, 0xff, 0xff]),
        (20, &[0, 0, 0, 21]),
    ];
    for (at, patch) in patches {
        let mut bytes = image();
        bytes[at..at + patch.len()].copy_from_slice(patch);
        let image = memory(bytes);
        if let Ok(opened) = (FORMAT.open)(&image, &memo()) {
            let others = vec![None; opened.wants.len()];
            for state in disks(&opened, &others).iter().take(3) {
                vdrecover_formats::laws::check_laws(
                    &*state.bytes,
                    vdrecover_formats::laws::Effort { runs: 500, bytes: 1 << 20 },
                )
                .unwrap();
            }
        }
    }
}

/// The shapes of CVE-2014-0142 to 0148 and 0150: sizes and places that no file can back.
#[test]
fn sizes_that_no_file_can_back() {
    type Patch = Box<dyn Fn(&mut Vec<u8>)>;
    let big = |at: usize, value: u64| move |b: &mut Vec<u8>| b[at..at + 8].copy_from_slice(&value.to_be_bytes());
    let word = |at: usize, value: u32| move |b: &mut Vec<u8>| b[at..at + 4].copy_from_slice(&value.to_be_bytes());
    let cases: Vec<(&str, Patch)> = vec![
        ("l1_size", Box::new(word(36, u32::MAX))),
        ("refcount_table_clusters", Box::new(word(56, u32::MAX))),
        ("refcount_table_offset", Box::new(big(48, u64::MAX << 12))),
        ("refcount_table on the header", Box::new(|b| b[56..60].copy_from_slice(&1_u32.to_be_bytes()))),
        ("refcount_order", Box::new(word(96, 63))),
        ("nb_snapshots over the whole file", Box::new(|b| b[60..68].copy_from_slice(&[0xff; 8]))),
        (
            "snapshots that lie on L1",
            Box::new(|b| b[60..72].copy_from_slice(&[0, 0, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 16, 0])),
        ),
        ("size", Box::new(big(24, u64::MAX))),
        (
            "size and l1_size",
            Box::new(|b| {
                b[24..32].fill(0x7f);
                b[36..40].fill(0xff);
            }),
        ),
        ("an extension of 4 GiB", Box::new(|b| b[104..112].copy_from_slice(&[1, 2, 3, 4, 0xff, 0xff, 0xff, 0xff]))),
        ("extensions of no bytes without end", Box::new(|b| b[104..4096].chunks_mut(8).for_each(|c| c[0] = 9))),
        (
            "65535 bitmaps over the whole file",
            Box::new(|b| {
                b[104..112].copy_from_slice(&[0x23, 0x85, 0x28, 0x75, 0, 0, 0, 24]);
                b[112..136].copy_from_slice(&[
                    0, 0, 0xff, 0xff, 0, 0, 0, 0, 0x7f, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x30, 0,
                ]);
            }),
        ),
        (
            "every L1 entry the same table",
            Box::new(|b| {
                b[24..32].copy_from_slice(&(1_u64 << 30).to_be_bytes());
                b[36..40].copy_from_slice(&512_u32.to_be_bytes());
                let entry: Vec<u8> = b[4096..4104].to_vec();
                b[4096..8192].chunks_mut(8).for_each(|c| c.copy_from_slice(&entry));
            }),
        ),
        ("an L2 table that is its own data", Box::new(|b| l2(b, 0, 1 << 63 | 8192))),
        (
            "an L2 table that is the L1 table",
            Box::new(|b| b[4096..4104].copy_from_slice(&(1_u64 << 63 | 4096).to_be_bytes())),
        ),
    ];
    for (name, patch) in cases {
        let mut bytes = image();
        patch(&mut bytes);
        let begun = std::time::Instant::now();
        if let Ok(opened) = (FORMAT.open)(&memory(bytes), &memo()) {
            for state in disks(&opened, &vec![None; opened.wants.len()]).iter().take(4) {
                let effort = vdrecover_formats::laws::Effort { runs: 500, bytes: 1 << 20 };
                vdrecover_formats::laws::check_laws(&*state.bytes, effort)
                    .unwrap_or_else(|law| panic!("{name}: {law}"));
                audit(&state.bytes);
            }
        }
        assert!(begun.elapsed().as_secs() < 20, "{name}");
    }
}

/// A name is evidence and nothing else: the format passes on what is written, and opens nothing.
#[test]
fn names_of_other_files_are_passed_on_as_written() {
    for name in ["/etc/passwd", "json:{\"driver\":\"file\"}", "nbd://host/disk", "../../secret", "a\0b", "fat:rw:/"] {
        let mut bytes = image();
        bytes[8..16].copy_from_slice(&200_u64.to_be_bytes());
        bytes[16..20].copy_from_slice(&(name.len() as u32).to_be_bytes());
        bytes[200..200 + name.len()].copy_from_slice(name.as_bytes());
        let opened = open(&memory(bytes));
        assert_eq!((opened.wants.len(), opened.wants[0].role), (1, Role::Parent));
        assert_eq!(opened.wants[0].hint.as_deref(), Some(name.as_bytes()));
        let layer = disks(&opened, &[None])[0].bytes.clone();
        assert_eq!(gaps(&layer), [(9 * 4096, 7 * 4096, "absent".to_owned())]);
    }
    // Longer than QEMU takes, or outside of the first cluster: a finding, and no name.
    for (at, len) in [(200_u64, 1024_u32), (4090, 20), (u64::MAX - 3, 20)] {
        let mut bytes = image();
        bytes[8..16].copy_from_slice(&at.to_be_bytes());
        bytes[16..20].copy_from_slice(&len.to_be_bytes());
        let opened = open(&memory(bytes));
        assert_eq!((opened.wants[0].hint.clone(), opened.findings[0].code), (None, "QCOW2-BACKING-NAME"));
    }
}

#[test]
fn a_bomb_stays_in_its_cluster() {
    use std::io::Write;
    let mut encoder = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(&vec![0; 32 << 20]).unwrap();
    let packed = encoder.finish().unwrap();
    let mut bytes = image();
    let at = bytes.len() as u64;
    bytes.extend(&packed);
    l2(&mut bytes, 9, 1 << 62 | 15 << 58 | at);
    let layer = disk(&memory(bytes));
    check(&layer);
    assert_eq!(gaps(&layer), []);
    assert_eq!(read_vec(&*layer, 9 * 4096, 4096).1.trust, Trust::Doubtful, "the stream goes on behind the cluster");
}

/// The mutation runner has the fixtures of the generator; extended entries and snapshots are QEMU's.
#[test]
fn mutated_images_of_qemu_are_lawful() {
    if !has("qemu-img", "mutated_images_of_qemu_are_lawful") {
        return;
    }
    let folder = Folder::new();
    folder.write("plain.raw", &sample(192 << 10));
    for options in [
        "compat=1.1,cluster_size=512",
        "compat=1.1,cluster_size=4096,compression_type=zstd",
        "compat=1.1,cluster_size=16384,extended_l2=on",
    ] {
        folder.run("qemu-img", &["convert", "-c", "-O", "qcow2", "-o", options, "-f", "raw", "plain.raw", "a.qcow2"]);
        folder.run("qemu-io", &["-c", "write -P 1 20k 9k", "-c", "write -z 64k 16k", "a.qcow2"]);
        folder.run("qemu-img", &["snapshot", "-c", "s", "a.qcow2"]);
        let bytes = std::fs::read(folder.path("a.qcow2")).unwrap();
        let open = |image: &Bytes| {
            let opened = (FORMAT.open)(image, &memo()).ok()?;
            let states = disks(&opened, &vec![Some(memory(vec![5; 50_000])); opened.wants.len()]);
            states.last().map(|state| state.bytes.clone())
        };
        mutate(&bytes, 100, 128, open);
        mutate(&bytes, 200, bytes.len(), open);
    }
}
