//! Sparse VMDK files on their own, packed and plain, against qemu-img where it can read them.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::arithmetic_side_effects,
    clippy::as_conversions,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::case_sensitive_file_extension_comparisons,
    missing_docs,
    unreachable_pub,
    reason = "tests"
)]

mod disk_support;

use disk_support::*;
use flate2::read::GzDecoder;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::process::Command;
use vdrecover_formats::link::Value;
use vdrecover_formats::{Bytes, Note, Place, Role, Trust, Use, read_vec, walk};
use vdrecover_testdata::Device;
use vdrecover_testdata::vmdk::{self, Grain};
use vdrecover_testdata::vmfs::pattern;

const MIB: u64 = 1 << 20;

/// A disk whose last grain is cut, with data across grains and tables.
fn device() -> Device {
    let mut device = Device::new(70 * MIB + 3 * 512);
    device.write(0, &pattern(1536, 1));
    device.write(5 * MIB + 1536, &pattern(300_000, 2));
    device.write(9 * MIB, &vec![0x5a; MIB as usize]);
    device.write(32 * MIB - 700, &pattern(1400, 3));
    device.write(70 * MIB + 512, &pattern(1024, 4));
    device
}

fn plain(device: &Device) -> Vec<u8> {
    device.read(0, device.len() as usize)
}

fn trust(layer: &Bytes) -> Trust {
    read_vec(&**layer, 0, usize::try_from(layer.len()).unwrap()).1.trust
}

/// Every byte of the file that the audit gives a use.
fn claimed(layer: &Bytes, file: u64) -> Vec<bool> {
    let mut used = vec![false; file as usize];
    for part in 0..layer.parts() {
        let _ = layer.audit(part, &mut |note| {
            if let Note::Claim { range, of, .. } = note {
                for byte in &mut used[range.start as usize..range.end as usize] {
                    assert!(!*byte || of == Use::Metadata, "claimed twice: {range:x?}");
                    *byte = true;
                }
            }
            std::ops::ControlFlow::Continue(())
        });
    }
    used
}

#[test]
fn a_sparse_disk_of_one_file() {
    let device = device();
    let image = memory(vmdk::hosted_sparse(&device, "other-name.vmdk", 0x1234_5678));
    assert_eq!(format_of(&image), "kdmv");
    let opened = open(&image);
    assert_eq!((opened.link.id.as_deref(), opened.link.len), (Some(&b"12345678"[..]), device.len()));
    assert_eq!((opened.wants.len(), opened.findings.len()), (0, 0), "the name in the extent line is of no meaning");
    let layer = disk(&image);
    check(&layer);
    assert!(all(&layer) == plain(&device));
    assert_eq!((trust(&layer), layer.about().as_str()), (Trust::Sound, "VMDK sparse extent"));
}

#[test]
fn a_stream_with_a_footer() {
    let device = device();
    let stream = vmdk::stream_optimized(&device, "generated-stream.vmdk", 0x8765_4321);
    let image = memory(stream.clone());
    assert_eq!(format_of(&image), "kdmv");
    let opened = open(&image);
    assert_eq!((opened.link.id.as_deref(), opened.wants.len()), (Some(&b"87654321"[..]), 0));
    assert_eq!(opened.findings, []);
    assert!(opened.facts.iter().any(|fact| fact.name == "compressed" && fact.value == Value::Flag(true)));
    let layer = disk(&image);
    check(&layer);
    assert!(all(&layer) == plain(&device));
    assert_eq!(trust(&layer), Trust::Sound);
    // Header and descriptor, then, from the overhead on, everything.
    let used = claimed(&layer, image.len());
    let free: Vec<usize> = (0..used.len()).step_by(512).filter(|at| used[*at..*at + 512].contains(&false)).collect();
    assert_eq!(free, (3 * 512..128 * 512).step_by(512).collect::<Vec<_>>());
    mutate(&stream, 300, 512, joined);
    mutate(&stream, 300, stream.len(), joined);
}

fn joined(image: &Bytes) -> Option<Bytes> {
    let opened = (vdrecover_formats::disk::vmdk::hosted::FORMAT.open)(image, &memo()).ok()?;
    match opened.join_alone().ok()? {
        vdrecover_formats::Content::Disks(disks) => Some(disks[0].bytes.clone()),
        _ => None,
    }
}

#[test]
fn packed_grains_that_contradict_the_tables() {
    let device = device();
    let stream = vmdk::stream_optimized(&device, "s.vmdk", 1);
    let want = plain(&device);
    let grain = 65536;
    let record = 128 * 512;
    assert_eq!(stream[record..record + 8], [0; 8]);
    let changed = |at: usize, bytes: &[u8]| {
        let mut stream = stream.clone();
        stream[at..at + bytes.len()].copy_from_slice(bytes);
        let layer = disk(&memory(stream));
        check(&layer);
        layer
    };
    let lost = |layer: &Bytes| gaps(layer);
    // The sector of another grain: these bytes belong elsewhere.
    let layer = changed(record, &128_u64.to_le_bytes());
    assert_eq!(lost(&layer), [(0, grain, "unmapped".to_owned())]);
    assert!(findings(&layer).contains(&"KDMV-ENTRY"));
    // A sector of no grain: the head is damaged, what it leads to may still be right.
    for sector in [1_u64, 1 << 40, u64::MAX] {
        let layer = changed(record, &sector.to_le_bytes());
        assert_eq!((lost(&layer), trust(&layer)), (vec![], Trust::Doubtful));
        assert!(findings(&layer).contains(&"KDMV-GRAIN-HEAD"));
        assert!(all(&layer) == want);
    }
    for size in [0_u32, 200_000, u32::MAX] {
        let layer = changed(record + 8, &size.to_le_bytes());
        assert_eq!(lost(&layer), [(0, grain, "unmapped".to_owned())], "{size}");
    }
    let layer = changed(record + 12, &[0xff; 40]);
    assert_eq!(lost(&layer)[0].2, "undecodable");
    assert_eq!(trust(&layer), Trust::Doubtful);
    // The Adler-32 at the end of the stream.
    let size = u32::from_le_bytes(stream[record + 8..record + 12].try_into().unwrap()) as usize;
    let layer = changed(record + 12 + size - 1, &[!stream[record + 12 + size - 1]]);
    assert_eq!((lost(&layer), trust(&layer)), (vec![], Trust::Doubtful));
    // The footer is a second opinion on the header.
    let layer = changed(stream.len() - 1024 + 12, &1_u64.to_le_bytes());
    assert_eq!(trust(&layer), Trust::Doubtful);
    assert!(all(&layer) == want);
}

#[test]
fn descriptors_that_are_not_there() {
    let device = device();
    let mut bytes = vmdk::hosted_sparse(&device, "a.vmdk", 1);
    bytes[512..21 * 512].fill(0);
    let opened = open(&memory(bytes.clone()));
    assert_eq!(opened.findings[0].code, "KDMV-NO-DESCRIPTOR");
    assert_eq!(trust(&disk(&memory(bytes.clone()))), Trust::Inferred);
    bytes[512] = b'!';
    let opened = open(&memory(bytes.clone()));
    assert_eq!(opened.findings[0].code, "KDMV-DESCRIPTOR");
    let layer = disk(&memory(bytes));
    assert_eq!(trust(&layer), Trust::Doubtful);
    assert!(all(&layer) == plain(&device));
}

#[test]
fn a_file_that_only_carries_a_descriptor() {
    let text = "# Disk DescriptorFile\nCID=5\nparentCID=ffffffff\ncreateType=\"custom\"\nRW 4 FLAT \"a\" 0\n";
    let mut bytes = vmdk::hosted_sparse(&device(), "a.vmdk", 1);
    bytes[12..20].fill(0);
    bytes[512..21 * 512].fill(0);
    bytes[512..512 + text.len()].copy_from_slice(text.as_bytes());
    let opened = open(&memory(bytes));
    assert_eq!((opened.wants[0].role, opened.link.len), (Role::Extent, 2048));
}

#[test]
fn a_delta_without_its_descriptor() {
    let changes = [(1, Grain::Data(vec![7; 512])), (9000, Grain::Data(vec![8; 512]))].into();
    let cowd = vmdk::cowd(8 * MIB, &changes);
    let image = memory(cowd.clone());
    assert_eq!(format_of(&image), "cowd");
    let opened = open(&image);
    assert_eq!((opened.wants[0].role, &opened.wants[0].hint), (Role::Parent, &None));
    let alone = disk(&image);
    check(&alone);
    assert_eq!(gaps(&alone)[0], (0, 512, "absent".to_owned()));
    assert_eq!(alone.about(), "COWD delta over its parent");
    let parent = vec![3; 8 * MIB as usize];
    let layer = disks(&opened, &[Some(memory(parent.clone()))])[0].bytes.clone();
    check(&layer);
    let mut want = parent;
    want[512..1024].fill(7);
    want[9000 * 512..9001 * 512].fill(8);
    assert!(all(&layer) == want);
    // Older products' headers: a disk without a parent has its geometry where a delta names its parent.
    let mut root = cowd.clone();
    root[32..44].copy_from_slice(&[16, 0, 0, 0, 16, 0, 0, 0, 63, 0, 0, 0]);
    assert_eq!(open(&memory(root)).wants, []);
    let mut named = cowd.clone();
    named[32..44].copy_from_slice(b"parent.vmdk\0");
    assert_eq!(open(&memory(named)).wants[0].hint.as_deref(), Some(&b"parent.vmdk"[..]));
    let open = |image: &Bytes| {
        let opened = (vdrecover_formats::disk::vmdk::cowd::FORMAT.open)(image, &memo()).ok()?;
        let parents = vec![Some(memory(vec![3; 100_000])); opened.wants.len()];
        Some(disks(&opened, &parents)[0].bytes.clone())
    };
    mutate(&cowd, 200, 64, open);
    mutate(&cowd, 200, cowd.len(), open);
}

/// Offset and length of what is lost. What is wrong, such as what a damaged grain decodes to, must be doubtful.
fn damage(layer: &Bytes, right: &[u8]) -> Vec<(u64, u64)> {
    assert_eq!(layer.len(), right.len() as u64);
    let (bytes, seen) = read_vec(&**layer, 0, right.len());
    let mut bytes = bytes;
    for gap in &seen.gaps {
        let range = gap.range.start as usize..gap.range.end as usize;
        bytes[range.clone()].copy_from_slice(&right[range]);
    }
    let wrong = (0..right.len()).step_by(512).filter(|at| bytes[*at..at + 512] != right[*at..at + 512]);
    for at in wrong {
        let trust = read_vec(&**layer, at as u64, 512).1.trust;
        assert_eq!(trust, Trust::Doubtful, "wrong and believed at {at:#x}");
    }
    seen.gaps.iter().map(|gap| (gap.range.start, gap.range.end - gap.range.start)).collect()
}

#[test]
fn a_stream_without_its_footer() {
    let device = device();
    let want = plain(&device);
    let stream = vmdk::stream_optimized(&device, "s.vmdk", 1);
    let opened = |bytes: &[u8]| {
        let layer = disk(&memory(bytes.to_vec()));
        check(&layer);
        layer
    };
    // All but the footer: the directory's marker says that no grain follows.
    let layer = opened(&stream[..stream.len() - 1536]);
    assert_eq!((damage(&layer, &want), trust(&layer)), (vec![], Trust::Inferred));
    assert_eq!(layer.about(), "VMDK stream without its directory");
    assert_eq!(findings(&layer), ["KDMV-RECORDS"]);
    // Bytes behind the end, few and many.
    for more in [512, 5000, 3 << 20] {
        let mut longer = stream.clone();
        longer.resize(stream.len() + more, 0xa5);
        let layer = opened(&longer);
        let want_trust = if more < MIB as usize { Trust::Sound } else { Trust::Inferred };
        assert_eq!((damage(&layer, &want), trust(&layer)), (vec![], want_trust), "{more}");
    }
    // Half of it: what is there is right, the rest is lost and not zero.
    let half = stream.len() / 2;
    let lost = damage(&opened(&stream[..half]), &want);
    let (at, len) = *lost.last().unwrap();
    assert!(lost.len() <= 2 && at + len == device.len() && at > 5 * MIB, "{lost:?}");
    // A hole of garbage in the middle of what has no directory: its grains are lost, all others are found.
    let mut bytes = stream[..stream.len() - 1536].to_vec();
    let record = 128 * 512;
    let from = record + 100_000;
    bytes[from..from + 70_000].fill(0x33);
    let layer = opened(&bytes);
    let lost = damage(&layer, &want);
    assert!(!lost.is_empty() && lost.iter().map(|lost| lost.1).sum::<u64>() < 8 * MIB, "{lost:?}");
    // The header too.
    let mut bytes = stream.clone();
    bytes[..512].fill(0);
    let layer = opened(&bytes);
    assert_eq!((damage(&layer, &want), trust(&layer)), (vec![], Trust::Inferred));
    bytes.truncate(stream.len() - 1536);
    let layer = opened(&bytes);
    assert_eq!((damage(&layer, &want), trust(&layer)), (vec![], Trust::Inferred));
    mutate(&stream[..stream.len() - 1536], 200, stream.len() - 1536, joined);
}

#[test]
fn a_stream_whose_tables_leave_grains_out() {
    let device = device();
    let want = plain(&device);
    let stream = vmdk::stream_optimized(&device, "s.vmdk", 1);
    let le32 = |at: usize| u32::from_le_bytes(stream[at..at + 4].try_into().unwrap()) as usize * 512;
    let directory = le32(stream.len() - 1024 + 56);
    for (at, len) in
        [(directory, 4), (directory, 12), (directory + 4, 4), (le32(directory), 2048), (le32(directory), 4)]
    {
        for byte in [0, 0xff] {
            let mut bytes = stream.clone();
            bytes[at..at + len].fill(byte);
            let layer = disk(&memory(bytes));
            check(&layer);
            assert_eq!(damage(&layer, &want), [], "{at:#x} {len} {byte}");
            assert!(trust(&layer) != Trust::Sound);
        }
    }
    // The same of a writer whose tables lie before the grains, and who writes no footer.
    if !has("qemu-img", "a_stream_whose_tables_leave_grains_out") {
        return;
    }
    let folder = Folder::new();
    folder.write("plain.raw", &want);
    let options = "subformat=streamOptimized";
    folder.run("qemu-img", &["convert", "-O", "vmdk", "-o", options, "-f", "raw", "plain.raw", "a.vmdk"]);
    let good = std::fs::read(folder.path("a.vmdk")).unwrap();
    let sector = |at: usize| u64::from_le_bytes(good[at..at + 8].try_into().unwrap()) as usize * 512;
    let (second, primary) = (sector(48), sector(56));
    for both in [false, true] {
        for byte in [0, 0xee] {
            let mut bytes = good.clone();
            for at in [primary, second].into_iter().skip(usize::from(!both)) {
                bytes[at..at + 512 + 2048].fill(byte);
            }
            let layer = disk(&memory(bytes));
            check(&layer);
            assert_eq!(damage(&layer, &want), []);
            assert!(trust(&layer) != Trust::Sound);
        }
    }
}

#[test]
fn an_extent_without_its_header() {
    let device = device();
    let want = plain(&device);
    let good = vmdk::hosted_sparse(&device, "a.vmdk", 0x1234_5678);
    for zeroed in [0..512, 0..8, 4..79, 20..28] {
        for byte in [0, 0x11] {
            let mut bytes = good.clone();
            bytes[zeroed.clone()].fill(byte);
            let image = memory(bytes);
            assert_eq!(format_of(&image), "kdmv", "{zeroed:?}");
            let opened = open(&image);
            assert!(opened.findings.iter().any(|finding| finding.code == "KDMV-HEADER"));
            assert_eq!(opened.link.id.as_deref(), Some(&b"12345678"[..]));
            let layer = disk(&image);
            check(&layer);
            assert_eq!((damage(&layer, &want), trust(&layer)), (vec![], Trust::Inferred), "{zeroed:?} {byte}");
        }
    }
    // And without its descriptor: two directories that fit each other are still there, the length is not.
    let mut bytes = good.clone();
    bytes[..21 * 512].fill(0);
    let image = memory(bytes.clone());
    assert_eq!(format_of(&image), "raw", "nothing near the start tells");
    let row = &vdrecover_formats::disk::vmdk::hosted::FORMAT;
    let opened = (row.open)(&image, &memo()).unwrap();
    let layer = disks(&opened, &[])[0].bytes.clone();
    check(&layer);
    assert_eq!(layer.len(), 96 * MIB, "three tables");
    assert!(all(&layer)[..want.len()] == want);
    // What a search finds is the same.
    let mut clues = Vec::new();
    let sweep = row.sweep.unwrap();
    for at in (0..bytes.len()).step_by(1 << 20) {
        let end = (at + (2 << 20)).min(bytes.len());
        let window =
            vdrecover_formats::format::Window { at: at as u64, bytes: &bytes[at..end], own: (end - at).min(1 << 20) };
        (sweep.look)(&window, &mut |clue| clues.push(clue));
    }
    let opened = (sweep.build)(&image, &memo(), &clues).unwrap();
    assert_eq!((opened.link.len, opened.wants.len()), (96 * MIB, 0));
    assert!((sweep.build)(&image, &memo(), &[]).is_err());
}

/// A stream whose tables lie before its grains, and one of two copies of them behind what was lost.
#[test]
fn a_long_stream_without_its_first_64_kib() {
    let mut device = Device::new(2048 * MIB);
    for n in 0..24 {
        device.write(n * 85 * MIB + n * 512, &pattern(300_000, n));
    }
    let writer = vdrecover_testdata::vmdk_stream::WRITERS.iter().find(|writer| writer.name == "qemu").unwrap();
    let mut bytes = writer.write(&device, 1);
    bytes[..64 << 10].fill(0);
    let image = memory(bytes.clone());
    let row = &vdrecover_formats::disk::vmdk::hosted::FORMAT;
    let mut clues = Vec::new();
    for at in (0..bytes.len()).step_by(1 << 20) {
        let end = (at + (2 << 20)).min(bytes.len());
        let window =
            vdrecover_formats::format::Window { at: at as u64, bytes: &bytes[at..end], own: (end - at).min(1 << 20) };
        (row.sweep.unwrap().look)(&window, &mut |clue| clues.push(clue));
    }
    for opened in [(row.sweep.unwrap().build)(&image, &memo(), &clues), (row.open)(&image, &memo())] {
        let layer = disks(&opened.unwrap(), &[])[0].bytes.clone();
        assert_eq!(layer.len(), device.len());
        let mut coded = 0;
        for n in 0..24 {
            let at = n * 85 * MIB;
            let (read, seen) = read_vec(&*layer, at, MIB as usize);
            assert!(seen.is_whole() && read == device.read(at, MIB as usize), "{n}");
            coded += walk(&*layer, at..at + MIB).filter(|run| matches!(run.place, Place::Coded(_))).count();
        }
        assert!(coded >= 24 * 5, "{coded}");
    }
}

#[test]
fn tables_that_are_gone_in_both_copies() {
    let device = device();
    let want = plain(&device);
    let good = vmdk::hosted_sparse(&device, "a.vmdk", 1);
    let sector = |at: usize| u64::from_le_bytes(good[at..at + 8].try_into().unwrap()) as usize * 512;
    for byte in [0, 0x22, 0xff] {
        let mut bytes = good.clone();
        for directory in [sector(48), sector(56)] {
            bytes[directory + 512..directory + 1024].fill(byte);
        }
        let layer = disk(&memory(bytes));
        check(&layer);
        let (read, seen) = read_vec(&*layer, 0, want.len());
        assert!(read != want);
        assert!(!seen.is_whole() || seen.trust != Trust::Sound);
        for run in walk(&*layer, 0..layer.len()).filter(|run| run.trust == Trust::Sound) {
            let range = run.at as usize..(run.at + run.len) as usize;
            let lost = matches!(run.place, Place::Lost(_));
            assert!(lost || read[range.clone()] == want[range], "{run:?}");
        }
    }
}

/// Puts a layer into a sparse file and lets qemu-img compare it with the image.
fn same_as_qemu(folder: &Folder, layer: &Bytes, image: &str) {
    let mut file = File::create(folder.path("ours.raw")).unwrap();
    file.set_len(layer.len()).unwrap();
    for run in walk(&**layer, 0..layer.len()) {
        if matches!(run.place, Place::Zero | Place::Hole) {
            continue;
        }
        let (bytes, seen) = read_vec(&**layer, run.at, usize::try_from(run.len).unwrap());
        assert!(seen.is_whole(), "{image}: {:?}", seen.gaps);
        file.seek(SeekFrom::Start(run.at)).unwrap();
        file.write_all(&bytes).unwrap();
    }
    drop(file);
    folder.run("qemu-img", &["compare", "-f", "vmdk", "-F", "raw", image, "ours.raw"]);
}

#[test]
fn images_that_qemu_img_makes() {
    if !has("qemu-img", "images_that_qemu_img_makes") {
        return;
    }
    let folder = Folder::new();
    let plain = sample((34 << 20) + 1024);
    folder.write("plain.raw", &plain);
    for (name, options) in [
        ("plain", "subformat=monolithicSparse"),
        ("zeroed", "subformat=monolithicSparse,zeroed_grain=on"),
        ("stream", "subformat=streamOptimized"),
    ] {
        folder.run("qemu-img", &["convert", "-O", "vmdk", "-o", options, "-f", "raw", "plain.raw", "a.vmdk"]);
        let image = folder.load("a.vmdk");
        assert_eq!(format_of(&image), "kdmv");
        let opened = open(&image);
        assert_eq!((opened.findings.len(), opened.wants.len()), (0, 0), "{:?}", opened.findings);
        let layer = disk(&image);
        check(&layer);
        assert!(all(&layer) == plain, "{name}");
        assert_eq!((trust(&layer), findings(&layer).len()), (Trust::Sound, 0), "{name}");
        let bytes = std::fs::read(folder.path("a.vmdk")).unwrap();
        mutate(&bytes, 60, 512, joined);
        mutate(&bytes, 60, 200 << 10, joined);
    }
}

#[test]
fn a_chain_of_sparse_disks() {
    if !has("qemu-img", "a_chain_of_sparse_disks") || !has("qemu-io", "a_chain_of_sparse_disks") {
        return;
    }
    let folder = Folder::new();
    let plain = sample(8 << 20);
    folder.write("plain.raw", &plain);
    folder.run("qemu-img", &["convert", "-O", "vmdk", "-f", "raw", "plain.raw", "base.vmdk"]);
    folder.run("qemu-img", &["create", "-f", "vmdk", "-F", "vmdk", "-b", "base.vmdk", "top.vmdk"]);
    folder.run("qemu-io", &["-f", "vmdk", "-c", "write -P 0x33 1M 100k", "top.vmdk"]);
    let (base, top) = (folder.load("base.vmdk"), folder.load("top.vmdk"));
    let opened = open(&top);
    let [want] = &opened.wants[..] else { panic!("one want: {:?}", opened.wants) };
    assert_eq!((want.role, want.hint.as_deref()), (Role::Parent, Some(&b"base.vmdk"[..])));
    assert_eq!(want.id, open(&base).link.id);
    let layer = disks(&opened, &[Some(disk(&base))])[0].bytes.clone();
    check(&layer);
    assert!(all(&layer) == folder.raw(&["-f", "vmdk", "top.vmdk"]));
    assert_eq!(trust(&layer), Trust::Sound);
    assert_eq!(gaps(&disk(&top))[0].2, "absent");
}

#[test]
fn corpus_images() {
    if !has("qemu-img", "corpus_images") {
        return;
    }
    let Some(root) = corpus("corpus_images", "disks") else { return };
    for name in [
        "cot/blank.vmdk",
        "cot/input.vmdk",
        "cot/ubuntu.2.0-disk1.vmdk",
        "dfvfs/ext2.vmdk.gz",
        "qemu-iotests/iotest-version3.vmdk.bz2",
        "securityronin-vmdk/compressed_stream_opt.vmdk",
    ] {
        let packed = root.join(name);
        let mut bytes = Vec::new();
        if name.ends_with(".gz") {
            GzDecoder::new(File::open(packed).unwrap()).read_to_end(&mut bytes).unwrap();
        } else if name.ends_with(".bz2") {
            bytes = Command::new("bzip2").arg("-dc").arg(packed).output().unwrap().stdout;
        } else {
            bytes = std::fs::read(packed).unwrap();
        }
        let folder = Folder::new();
        folder.write("image.vmdk", &bytes);
        let image = folder.load("image.vmdk");
        assert_eq!(format_of(&image), "kdmv", "{name}");
        let opened = open(&image);
        assert_eq!(opened.findings, [], "{name}");
        let layer = disk(&image);
        check(&layer);
        assert_eq!(findings(&layer), [""; 0], "{name}");
        same_as_qemu(&folder, &layer, "image.vmdk");
        println!("{name}: {} bytes, as qemu-img reads it", layer.len());
    }
}

#[test]
fn corpus_images_that_are_damaged() {
    let Some(root) = corpus("corpus_images_that_are_damaged", "disks") else { return };
    // Cut after 1 MiB: 35 grains and a part of one, of 30 MiB.
    let image = load(&root.join("govmomi/ttylinux-pc_i486-16.1-disk1.vmdk"));
    assert_eq!(open(&image).findings[0].code, "KDMV-FOOTER");
    let layer = disk(&image);
    check(&layer);
    let (bytes, seen) = read_vec(&*layer, 0, usize::try_from(layer.len()).unwrap());
    assert_eq!((layer.len(), seen.trust), (30 * MIB, Trust::Doubtful));
    let whole = walk(&*layer, 0..layer.len()).filter(|run| matches!(run.place, Place::Coded(_))).count();
    assert_eq!(whole, 36);
    // A partition table, and the ext3 file system in the first partition.
    assert_eq!(bytes[510..512], [0x55, 0xaa]);
    let start = u32::from_le_bytes(bytes[454..458].try_into().unwrap()) as usize * 512;
    assert_eq!(bytes[start + 1080..start + 1082], [0x53, 0xef]);
    let last = walk(&*layer, 0..layer.len()).filter(|run| matches!(run.place, Place::Coded(_))).last().unwrap();
    assert!(seen.gaps[0].range.start > last.at, "the cut grain gives a prefix");
    assert_eq!(seen.gaps.last().unwrap().range.end, layer.len());
    let part = load(&root.join("securityronin-vmdk/tw_sparse-s001.vmdk"));
    assert_eq!(open(&part).findings[0].code, "KDMV-NO-DESCRIPTOR");
}
