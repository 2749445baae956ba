//! VMDK descriptors, COWD and SESparse, against qemu-img where it can read them.

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
use std::collections::BTreeMap;
use vdrecover_formats::disk::vmdk::{FORMAT, sesparse};
use vdrecover_formats::laws::{Effort, check_laws};
use vdrecover_formats::{Bytes, Error, Place, Role, Trust, read_vec, walk};

/// What a grain of a hand-made SESparse extent is.
#[derive(Clone, Copy)]
enum Grain {
    Unmapped,
    Zero,
    Data(u8),
}

/// An SESparse extent of `capacity` sectors: headers, journal and maps of one sector each, the directory, the tables
/// in the reverse of their order on the disk, the grains in the order of `grains`.
fn sesparse_image(capacity: u64, grains: &BTreeMap<u64, Grain>) -> Vec<u8> {
    let tables = capacity.div_ceil(4096 * 8).max(1);
    let mut used: Vec<u64> = grains.keys().map(|grain| grain / 4096).collect();
    used.dedup();
    used.reverse();
    let directory_sectors = (tables * 8).div_ceil(512);
    let directory = 16;
    let area = directory + directory_sectors;
    let grains_at = (area + used.len() as u64 * 64).next_multiple_of(8);
    let count = grains.values().filter(|grain| matches!(grain, Grain::Data(_))).count() as u64;
    let mut bytes = vec![0; ((grains_at + count * 8) * 512) as usize];
    let fields = [
        0xcafe_babe,
        0x2_0000_0001,
        capacity,
        8,
        64,
        0,
        0,
        0,
        0,
        0,
        1,
        1,
        2,
        1,
        3,
        1,
        directory,
        directory_sectors,
        area,
        used.len() as u64 * 64,
        4,
        1,
        5,
        1,
        grains_at,
        count * 8,
    ];
    let mut put = |at: u64, value: u64| bytes[at as usize..][..8].copy_from_slice(&value.to_le_bytes());
    for (i, field) in fields.into_iter().enumerate() {
        put(i as u64 * 8, field);
    }
    put(512, 0xcafe_cafe);
    for (index, table) in used.iter().enumerate() {
        put(directory * 512 + table * 8, 0x1000_0000_0000_0000 | index as u64);
    }
    let mut next = 0_u64;
    let mut data = Vec::new();
    for (grain, what) in grains {
        let index = used.iter().position(|table| *table == grain / 4096).unwrap() as u64;
        let at = (area + index * 64) * 512 + grain % 4096 * 8;
        match what {
            Grain::Unmapped => put(at, 1 << 60),
            Grain::Zero => put(at, 2 << 60),
            Grain::Data(byte) => {
                put(at, 3 << 60 | (next & 0xfff) << 48 | next >> 12);
                data.push(((grains_at + next * 8) * 512, *byte));
                next += 1;
            }
        }
    }
    for (at, byte) in data {
        bytes[at as usize..][..4096].fill(byte);
    }
    bytes
}

/// The disk that it should show over `parent`.
fn expected(len: u64, grains: &BTreeMap<u64, Grain>, parent: &[u8]) -> Vec<u8> {
    let mut bytes = parent.to_vec();
    bytes.resize(len as usize, 0);
    for (grain, what) in grains {
        let from = (*grain as usize * 4096).min(bytes.len());
        let to = (from + 4096).min(bytes.len());
        match what {
            Grain::Zero | Grain::Unmapped => bytes[from..to].fill(0),
            Grain::Data(byte) => bytes[from..to].fill(*byte),
        }
    }
    bytes
}

/// 40 MiB and 3 sectors: three tables, of which the middle one is absent.
const CAPACITY: u64 = 40 * 2048 + 3;

fn grains() -> BTreeMap<u64, Grain> {
    let mut grains = BTreeMap::new();
    for grain in 0..40 {
        grains.insert(grain, Grain::Data(grain as u8 + 1));
    }
    grains.insert(50, Grain::Zero);
    grains.insert(51, Grain::Zero);
    for (i, grain) in [9000, 8999, 9001, 10240].into_iter().enumerate() {
        grains.insert(grain, Grain::Data(100 + i as u8));
    }
    grains.insert(9100, Grain::Zero);
    grains
}

fn descriptor(parent: &str, lines: &str) -> Vec<u8> {
    format!(
        "# Disk DescriptorFile\nversion=1\nCID=1234abcd\nparentCID={parent}\ncreateType=\"seSparse\"\n\
        parentFileNameHint=\"base.vmdk\"\n\n# Extent description\n{lines}\n\n# The Disk Data Base\n#DDB\n\n\
        ddb.longContentID = \"0123456789abcdef0123456789abcdef\"\n"
    )
    .into_bytes()
}

#[test]
fn sesparse_alone() {
    let plain = sample(41 << 20);
    let grains = grains();
    let image = memory(sesparse_image(CAPACITY, &grains));
    assert_eq!(format_of(&image), "sesparse");
    let opened = open(&image);
    assert_eq!(opened.findings, []);
    assert_eq!((opened.wants.len(), opened.wants[0].role), (1, Role::Parent));
    let layer = disks(&opened, &[Some(memory(plain.clone()))])[0].bytes.clone();
    assert_eq!(layer.len(), CAPACITY * 512);
    check(&layer);
    assert!(all(&layer) == expected(CAPACITY * 512, &grains, &plain[..CAPACITY as usize * 512]));
    assert_eq!(walk(&*layer, 0..layer.len()).next().unwrap().len, 40 * 4096, "neighbours are merged");
    // Where there are zero grains, others may be gone.
    assert_eq!(findings(&layer), ["SESPARSE-UNNAMED"]);
    let mut data_only = grains.clone();
    data_only.retain(|_, grain| matches!(grain, Grain::Data(_)));
    let without = memory(sesparse_image(CAPACITY, &data_only));
    let without = disks(&open(&without), &[Some(memory(plain.clone()))])[0].bytes.clone();
    assert_eq!(findings(&without), [""; 0]);
    assert_eq!(read_vec(&*without, 0, 41 << 20).1.trust, Trust::Sound);

    let short = disks(&opened, &[Some(memory(plain[..1 << 20].to_vec()))])[0].bytes.clone();
    check(&short);
    assert!(all(&short) == expected(CAPACITY * 512, &grains, &plain[..1 << 20]));

    let orphan = disks(&opened, &[None])[0].bytes.clone();
    check(&orphan);
    assert!(gaps(&orphan).iter().all(|gap| gap.2 == "absent"));
    assert!(read_vec(&*orphan, 0, 40 * 4096).1.is_whole());
}

#[test]
fn sesparse_as_qemu_reads_it() {
    if !has("qemu-img", "sesparse_as_qemu_reads_it") {
        return;
    }
    let folder = Folder::new();
    let grains = grains();
    folder.write("top-sesparse.vmdk", &sesparse_image(CAPACITY, &grains));
    let line = format!("RW {CAPACITY} SESPARSE \"top-sesparse.vmdk\"");
    let alone =
        String::from_utf8(descriptor("ffffffff", &line)).unwrap().replace("parentFileNameHint=\"base.vmdk\"\n", "");
    folder.write("alone.vmdk", alone.as_bytes());
    let image = folder.load("alone.vmdk");
    assert_eq!(format_of(&image), "vmdk");
    let opened = open(&image);
    assert_eq!((opened.wants.len(), opened.wants[0].role), (1, Role::Extent));
    assert_eq!(opened.wants[0].hint.as_deref(), Some(&b"top-sesparse.vmdk"[..]));
    let layer = disks(&opened, &[Some(folder.load("top-sesparse.vmdk"))])[0].bytes.clone();
    check(&layer);
    assert!(all(&layer) == folder.raw(&["-f", "vmdk", "alone.vmdk"]));

    let plain = sample(CAPACITY as usize * 512);
    folder.write("base-flat.vmdk", &plain);
    let base = format!(
        "# Disk DescriptorFile\nversion=1\nCID=0000beef\nparentCID=ffffffff\ncreateType=\"vmfs\"\n\n\
        RW {CAPACITY} VMFS \"base-flat.vmdk\"\n"
    );
    folder.write("base.vmdk", base.as_bytes());
    folder.write("top.vmdk", &descriptor("0000beef", &line));
    let base = open(&folder.load("base.vmdk"));
    assert_eq!(base.link.id.as_deref(), Some(&b"0000beef"[..]));
    assert_eq!((base.wants.len(), base.wants[0].len), (1, Some(CAPACITY * 512)));
    let base = disks(&base, &[Some(memory(plain))])[0].bytes.clone();
    let top = open(&folder.load("top.vmdk"));
    assert_eq!((top.wants[1].role, top.wants[1].id.as_deref()), (Role::Parent, Some(&b"0000beef"[..])));
    assert_eq!(top.wants[1].hint.as_deref(), Some(&b"base.vmdk"[..]));
    let layer = disks(&top, &[Some(folder.load("top-sesparse.vmdk")), Some(base)])[0].bytes.clone();
    check(&layer);
    assert!(all(&layer) == folder.raw(&["-f", "vmdk", "top.vmdk"]));
    assert_eq!(read_vec(&*layer, 0, 40 * 4096).1.trust, Trust::Sound);
    assert_eq!(read_vec(&*layer, 0, 1 << 20).1.trust, Trust::Inferred);
}

#[test]
fn unmapped_grains_are_zeros_that_nobody_swears_to() {
    let grains = BTreeMap::from([(0, Grain::Data(1)), (1, Grain::Unmapped), (2, Grain::Data(2))]);
    let opened = open(&memory(sesparse_image(24, &grains)));
    let layer = disks(&opened, &[Some(memory(vec![9; 3 * 4096]))])[0].bytes.clone();
    check(&layer);
    let row = |at: u64, kind: &str, trust| (at * 4096, 4096, kind.to_owned(), trust);
    let rows = [row(0, "data", Trust::Sound), row(1, "zero", Trust::Doubtful), row(2, "data", Trust::Sound)];
    assert_eq!(map(&layer), rows);
    assert!(all(&layer)[4096..8192] == [0; 4096]);
}

#[test]
fn a_waiting_journal_makes_all_doubtful() {
    let mut bytes = sesparse_image(CAPACITY, &grains());
    bytes[512 + 24] = 1;
    let image = memory(bytes);
    let opened = open(&image);
    assert_eq!(opened.findings[0].code, "SESPARSE-REPLAY");
    let layer = disks(&opened, &[Some(memory(vec![0; 4096]))])[0].bytes.clone();
    check(&layer);
    assert!(walk(&*layer, 0..layer.len()).all(|run| run.trust == Trust::Doubtful));
}

#[test]
fn one_sesparse_damage_is_one_outcome() {
    let good = sesparse_image(CAPACITY, &grains());
    let directory = 16 * 512;
    let second = 17 * 512 + 64 * 512;
    let table = |bytes: &mut Vec<u8>, grain: usize, entry: u64| {
        // The table of the first 16 MiB is the second one in the file.
        bytes[second + grain * 8..][..8].copy_from_slice(&entry.to_le_bytes());
    };
    let unmapped = |at: u64, len: u64| vec![(at, len, "unmapped".to_owned())];
    let mut cases = Vec::new();
    for entry in [4 << 60, 15 << 60, 7] {
        let mut bytes = good.clone();
        table(&mut bytes, 5, entry);
        cases.push((bytes, unmapped(5 * 4096, 4096), "SESPARSE-ENTRY"));
    }
    let mut bytes = good.clone();
    table(&mut bytes, 5, 3 << 60 | 1 << 20);
    cases.push((bytes, vec![(5 * 4096, 4096, "truncated".to_owned())], "SESPARSE-GRAIN-RANGE"));
    for entry in [1_u64, 0x2000_0000_0000_0000, 0x1000_0000_00ff_ffff] {
        let mut bytes = good.clone();
        bytes[directory..directory + 8].copy_from_slice(&entry.to_le_bytes());
        cases.push((bytes, unmapped(0, 16 << 20), "SESPARSE-ENTRY"));
    }
    let mut bytes = good.clone();
    bytes.truncate(good.len() - 1000);
    // The last grain of the file, the 44th that was allocated, shows the end of the disk: 3 sectors of it.
    cases.push((bytes, vec![], ""));
    for (bytes, lost, code) in cases {
        let opened = open(&memory(bytes));
        let layer = disks(&opened, &[Some(memory(vec![7; 4096]))])[0].bytes.clone();
        check(&layer);
        assert_eq!(gaps(&layer), lost);
        let codes: Vec<&str> = findings(&layer).into_iter().filter(|code| *code != "SESPARSE-UNNAMED").collect();
        assert_eq!(codes, if code.is_empty() { vec![] } else { vec![code] });
    }
}

#[test]
fn hostile_sesparse_headers() {
    let good = sesparse_image(CAPACITY, &grains());
    for field in 0..26 {
        for value in [1 << 60, u64::MAX, 1 << 54, 0, 1] {
            let mut bytes = good.clone();
            bytes[field * 8..][..8].copy_from_slice(&u64::to_le_bytes(value));
            let Ok(opened) = (sesparse::FORMAT.open)(&memory(bytes), &memo()) else { continue };
            let layer = disks(&opened, &[None])[0].bytes.clone();
            check_laws(&*layer, Effort { runs: 300, bytes: 256 << 10 }).unwrap();
        }
    }
}

/// A COWD extent with grains of one sector.
fn cowd_image(capacity: u32, sectors: &[(u32, u8)]) -> Vec<u8> {
    let entries = capacity.div_ceil(4096);
    let tables_at = 4 + (entries * 4).div_ceil(512);
    let mut used: Vec<u32> = sectors.iter().map(|(sector, _)| sector / 4096).collect();
    used.dedup();
    let data_at = tables_at + used.len() as u32 * 32;
    let mut bytes = vec![0; (data_at as usize + sectors.len()) * 512];
    let mut put = |at: usize, value: u32| bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
    put(0, u32::from_le_bytes(*b"COWD"));
    for (i, value) in [1, 3, capacity, 1, 4, entries, data_at + sectors.len() as u32].into_iter().enumerate() {
        put(4 + i * 4, value);
    }
    for (i, table) in used.iter().enumerate() {
        put(4 * 512 + *table as usize * 4, tables_at + i as u32 * 32);
    }
    for (i, (sector, _)) in sectors.iter().enumerate() {
        let index = used.iter().position(|table| *table == sector / 4096).unwrap();
        let table = (tables_at as usize + index * 32) * 512;
        put(table + (*sector % 4096) as usize * 4, data_at + i as u32);
    }
    for (i, (_, byte)) in sectors.iter().enumerate() {
        bytes[(data_at as usize + i) * 512..][..512].fill(*byte);
    }
    bytes
}

#[test]
fn cowd_over_a_flat_parent() {
    let sectors = [(0, 1), (1, 2), (7, 3), (6, 4), (9000, 5), (9001, 6)];
    let cowd = cowd_image(10_000, &sectors);
    let plain = sample(10_000 * 512);
    let mut want = plain.clone();
    for (sector, byte) in sectors {
        want[sector as usize * 512..][..512].fill(byte);
    }
    let top = "# Disk DescriptorFile\nversion=1\nCID=00000002\nparentCID=00000001\ncreateType=\"vmfsSparse\"\n\
        parentFileNameHint=\"base.vmdk\"\nRW 10000 VMFSSPARSE \"top-delta.vmdk\"\n";
    let opened = open(&memory(top.as_bytes().to_vec()));
    let layer = disks(&opened, &[Some(memory(cowd.clone())), Some(memory(plain.clone()))])[0].bytes.clone();
    check(&layer);
    assert!(all(&layer) == want);
    assert_eq!(findings(&layer), [""; 0]);
    if has("qemu-img", "cowd_over_a_flat_parent") {
        let folder = Folder::new();
        folder.write("top.vmdk", top.as_bytes());
        folder.write("top-delta.vmdk", &cowd);
        folder.write("base-flat.vmdk", &plain);
        let base = "# Disk DescriptorFile\nversion=1\nCID=00000001\nparentCID=ffffffff\ncreateType=\"vmfs\"\n\
            RW 10000 VMFS \"base-flat.vmdk\"\n";
        folder.write("base.vmdk", base.as_bytes());
        assert!(folder.raw(&["-f", "vmdk", "top.vmdk"]) == want);
    }
}

#[test]
fn flat_images_of_qemu_img() {
    if !has("qemu-img", "flat_images_of_qemu_img") {
        return;
    }
    let folder = Folder::new();
    let plain = sample((6 << 20) + 512);
    folder.write("plain.raw", &plain);
    for kind in ["monolithicFlat", "twoGbMaxExtentFlat"] {
        let name = format!("{kind}.vmdk");
        let options = format!("subformat={kind}");
        folder.run("qemu-img", &["convert", "-O", "vmdk", "-o", &options, "-f", "raw", "plain.raw", &name]);
        let image = folder.load(&name);
        assert_eq!(format_of(&image), "vmdk");
        let opened = open(&image);
        assert_eq!(opened.findings, []);
        let files: Vec<Option<Bytes>> = opened
            .wants
            .iter()
            .map(|want| Some(folder.load(std::str::from_utf8(want.hint.as_ref().unwrap()).unwrap())))
            .collect();
        let layer = disks(&opened, &files)[0].bytes.clone();
        check(&layer);
        assert!(all(&layer)[..plain.len()] == plain, "{kind}");
    }
}

#[test]
fn hosted_sparse_extents_have_two_tables() {
    if !has("qemu-img", "hosted_sparse_extents_have_two_tables") {
        return;
    }
    let folder = Folder::new();
    let plain = sample((40 << 20) + 512);
    folder.write("plain.raw", &plain);
    let options = "subformat=twoGbMaxExtentSparse";
    folder.run("qemu-img", &["convert", "-O", "vmdk", "-o", options, "-f", "raw", "plain.raw", "a.vmdk"]);
    let opened = open(&folder.load("a.vmdk"));
    let good = std::fs::read(folder.path("a-s001.vmdk")).unwrap();
    let sector = |at: usize| u64::from_le_bytes(good[at..at + 8].try_into().unwrap()) as usize * 512;
    let (second, primary) = (sector(48), sector(56));
    let table = |at: usize| u32::from_le_bytes(good[at..at + 4].try_into().unwrap()) as usize * 512;
    let trust_of = |bytes: Vec<u8>| {
        let layer = disks(&opened, &[Some(memory(bytes))])[0].bytes.clone();
        check(&layer);
        assert!(all(&layer) == plain);
        let trust = read_vec(&*layer, 0, plain.len()).1.trust;
        let codes = findings(&layer);
        let told = codes.iter().any(|code| ["KDMV-COPIES", "KDMV-DIRECTORY", "KDMV-HEADER"].contains(code));
        assert_eq!(told, trust != Trust::Sound, "{codes:?}");
        trust
    };
    assert_eq!(trust_of(good.clone()), Trust::Sound);
    // Directories are computed, and garbage in a table gives itself away; of zeros and data nobody can tell.
    for (at, garbage, want) in [
        (primary, 0, Trust::Inferred),
        (primary, 0xff, Trust::Inferred),
        (second, 0, Trust::Inferred),
        (second, 0xff, Trust::Inferred),
        (table(primary), 0, Trust::Doubtful),
        (table(primary), 0xff, Trust::Inferred),
        (table(second), 0, Trust::Doubtful),
        (table(second), 0xff, Trust::Inferred),
    ] {
        let mut bytes = good.clone();
        bytes[at..at + 8].fill(garbage);
        assert_eq!(trust_of(bytes), want, "{at:#x} {garbage}");
    }
    // Both directories.
    let mut bytes = good.clone();
    bytes[primary..primary + 8].fill(0);
    bytes[second..second + 8].fill(0xee);
    assert_eq!(trust_of(bytes), Trust::Inferred);
    // Header and both directories of a split disk's extent, which has no descriptor of its own.
    let mut bytes = good.clone();
    bytes[..512].fill(0);
    assert_eq!(trust_of(bytes), Trust::Inferred);
}

#[test]
fn every_extent_counts() {
    let text = "\u{feff}\r\n# Disk DescriptorFile\r\nVERSION=1\r\nCid=fffffffe\r\nparentCID=ffffffff\r\n\
        createType=\"custom\"\r\nRW 4 FLAT \"a.vmdk\" 2\r\nRW 3 ZERO\r\nRDONLY 2 FLAT \"b.vmdk\" 0\r\n\
        NOACCESS 5 FLAT \"c.vmdk\" 0\r\nRW 6 FLAT \"gone.vmdk\" 0\r\nRW 1 VMFSRDM \"rdm.vmdk\"\r\n\
        RW 2 VMFS \"vsan://52/x\"\r\nRW 7 LATER \"x\"\r\nNOACCESS 1 ZERO\r\nRW 8 FLAT \"short.vmdk\" 1\r\n";
    let image = memory(text.as_bytes().to_vec());
    assert_eq!(format_of(&image), "vmdk");
    let opened = open(&image);
    assert_eq!((opened.link.id.clone(), opened.link.len), (None, 39 * 512));
    let hints: Vec<&[u8]> = opened.wants.iter().map(|want| want.hint.as_deref().unwrap()).collect();
    assert_eq!(hints, [&b"a.vmdk"[..], b"b.vmdk", b"gone.vmdk", b"rdm.vmdk", b"short.vmdk"]);
    let codes: Vec<&str> = opened.findings.iter().map(|finding| finding.code).collect();
    assert_eq!(codes, ["VMDK-NOACCESS", "VMDK-DEVICE", "VMDK-OBJECT", "VMDK-EXTENT-TYPE", "VMDK-NOACCESS"]);
    let numbered = |count: u8| memory((0..count).flat_map(|i| [i + 1; 512]).collect());
    let files = [Some(numbered(6)), Some(numbered(2)), None, None, Some(numbered(5))];
    let layer = disks(&opened, &files)[0].bytes.clone();
    check(&layer);
    let row = |at: u64, len: u64, kind: &str, trust| (at * 512, len * 512, kind.to_owned(), trust);
    let sound = |at, len, kind: &str| row(at, len, kind, Trust::Sound);
    let rows = [
        sound(0, 4, "data"),
        sound(4, 3, "zero"),
        sound(7, 2, "data"),
        sound(9, 5, "unsupported"),
        sound(14, 6, "absent"),
        sound(20, 1, "not-given"),
        sound(21, 2, "absent"),
        sound(23, 7, "unsupported"),
        row(30, 1, "zero", Trust::Inferred),
        sound(31, 4, "data"),
        sound(35, 4, "truncated"),
    ];
    assert_eq!(map(&layer), rows);
    assert_eq!(findings(&layer), ["VMDK-EXTENT-SHORT"]);
    let (bytes, _) = read_vec(&*layer, 0, 39 * 512);
    let firsts: Vec<u8> = bytes.chunks(512).map(|sector| sector[0]).collect();
    let mut want = vec![3, 4, 5, 6, 0, 0, 0, 1, 2];
    want.resize(31, 0);
    want.extend([2, 3, 4, 5, 0, 0, 0, 0]);
    assert_eq!(firsts, want);
}

#[test]
fn texts_that_are_no_descriptor() {
    for text in ["", "# Disk DescriptorFile\n", "# Disk DescriptorFile\nRX 1 FLAT \"a\" 0\n", "hello"] {
        let opened = (FORMAT.open)(&memory(text.as_bytes().to_vec()), &memo());
        assert!(matches!(opened, Err(Error::Corrupt { .. })), "{text:?}");
    }
    let huge = memory([b"# Disk DescriptorFile\nRW 1 ZERO\n".to_vec(), vec![b'\n'; 5 << 20]].concat());
    let error = (FORMAT.open)(&huge, &memo()).unwrap_err();
    assert!(error.to_string().contains("real ones have less"), "{error}");
    let many = memory([b"# Disk DescriptorFile\n".to_vec(), b"RW 1 ZERO\n".repeat(300_000)].concat());
    let error = (FORMAT.open)(&many, &memo()).unwrap_err();
    assert!(error.to_string().contains("more than 65536 extents"), "{error}");
}

#[test]
fn an_extent_that_is_something_else_is_lost() {
    let text = b"# Disk DescriptorFile\nCID=1\nparentCID=ffffffff\ncreateType=\"vmfsSparse\"\nRW 8 VMFSSPARSE \"a\"\n";
    let opened = open(&memory(text.to_vec()));
    let layer = disks(&opened, &[Some(memory(b"QFI\xfb and so on".to_vec()))])[0].bytes.clone();
    check(&layer);
    assert_eq!(gaps(&layer), [(0, 4096, "unsupported".to_owned())]);
    assert_eq!(findings(&layer), ["VMDK-EXTENT"]);
    assert!(walk(&*layer, 0..4096).all(|run| matches!(run.place, Place::Lost(_))));
}

#[test]
fn corpus_descriptors() {
    let Some(folder) = corpus("corpus_descriptors", "disks/securityronin-vmdk") else { return };
    let image = load(&folder.join("tw_sparse.vmdk"));
    assert_eq!(format_of(&image), "vmdk");
    let opened = open(&image);
    assert_eq!(opened.wants[0].hint.as_deref(), Some(&b"tw_sparse-s001.vmdk"[..]));
}
