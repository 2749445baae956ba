//! MBR and GPT.

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
use vdrecover_formats::link::Volume;
use vdrecover_formats::volume::{gpt, mbr};
use vdrecover_formats::{Content, Opened, Trust, read_vec};

fn volumes(opened: &Opened) -> Vec<Volume> {
    match opened.join_alone().unwrap() {
        Content::Volumes(volumes) => volumes,
        other => panic!("no volumes: {other:?}"),
    }
}

/// Name, first byte, end, what it is.
fn rows(opened: &Opened) -> Vec<(String, u64, u64, String)> {
    volumes(opened)
        .into_iter()
        .map(|v| (String::from_utf8(v.name).unwrap(), v.range.start, v.range.end, v.about))
        .collect()
}

fn codes(opened: &Opened) -> Vec<&'static str> {
    opened.findings.iter().map(|finding| finding.code).collect()
}

const VMFS: [u8; 16] = [0x2a, 0xe0, 0x31, 0xaa, 0x0f, 0x40, 0xdb, 0x11, 0x95, 0x90, 0x00, 0x0c, 0x29, 0x11, 0xd1, 0xb8];

/// A disk of 128 sectors whose table has 8 entries of 128 bytes, on both ends.
fn gpt_disk(sector: usize, partitions: &[(usize, u64, u64, &str)]) -> Vec<u8> {
    let last = 127_u64;
    let mut bytes = vec![0; sector * 128];
    let mut entries = vec![0; 8 * 128];
    for (slot, first, end, name) in partitions {
        let at = slot * 128;
        entries[at..at + 16].copy_from_slice(&VMFS);
        entries[at + 16] = *slot as u8 + 1;
        entries[at + 32..at + 40].copy_from_slice(&first.to_le_bytes());
        entries[at + 40..at + 48].copy_from_slice(&end.to_le_bytes());
        for (i, unit) in name.encode_utf16().enumerate() {
            entries[at + 56 + i * 2..][..2].copy_from_slice(&unit.to_le_bytes());
        }
    }
    let entry_sectors = 1024_usize.div_ceil(sector) as u64;
    for (mine, other, table) in [(1, last, 2), (last, 1, last - entry_sectors)] {
        let mut header = b"EFI PART\0\0\x01\0\x5c\0\0\0\0\0\0\0\0\0\0\0".to_vec();
        for lba in [mine, other, 2 + entry_sectors, last - entry_sectors - 1] {
            header.extend(u64::to_le_bytes(lba));
        }
        header.extend([7; 16]);
        header.extend(u64::to_le_bytes(table));
        header.extend(u32::to_le_bytes(8));
        header.extend(u32::to_le_bytes(128));
        header.extend(crc32fast::hash(&entries).to_le_bytes());
        let crc = crc32fast::hash(&header);
        header[16..20].copy_from_slice(&crc.to_le_bytes());
        bytes[mine as usize * sector..][..92].copy_from_slice(&header);
        bytes[table as usize * sector..][..1024].copy_from_slice(&entries);
    }
    bytes[446 + 4] = 0xee;
    bytes[446 + 8] = 1;
    bytes[446 + 12] = 127;
    bytes[510..512].copy_from_slice(&[0x55, 0xaa]);
    bytes
}

fn sample_gpt(sector: usize) -> Vec<u8> {
    let mut bytes = gpt_disk(sector, &[(0, 10, 19, "datastore"), (4, 40, 40, "")]);
    bytes[10 * sector..20 * sector].fill(0x11);
    bytes[40 * sector..41 * sector].fill(0x22);
    bytes
}

fn expected(sector: u64) -> Vec<(String, u64, u64, String)> {
    vec![
        ("p1".to_owned(), 10 * sector, 20 * sector, "VMware VMFS `datastore`".to_owned()),
        ("p5".to_owned(), 40 * sector, 41 * sector, "VMware VMFS".to_owned()),
    ]
}

#[test]
fn both_sector_sizes() {
    for sector in [512, 4096] {
        let image = memory(sample_gpt(sector));
        assert_eq!((format_of(&image), (mbr::FORMAT.probe)(&*image)), ("gpt", 0));
        let opened = open(&image);
        assert_eq!(codes(&opened), [""; 0]);
        assert_eq!(rows(&opened), expected(sector as u64));
        for (volume, byte) in volumes(&opened).iter().zip([0x11, 0x22]) {
            check(&volume.bytes);
            assert!(all(&volume.bytes).iter().all(|b| *b == byte));
        }
    }
}

#[test]
fn one_damage_is_one_outcome() {
    let trust = |opened: &Opened| read_vec(&*volumes(opened)[0].bytes, 0, 512).1.trust;
    for sector in [512, 4096] {
        let cases: [(&str, usize, &[&str], Trust); 8] = [
            ("primary signature", sector, &["GPT-PRIMARY"], Trust::Inferred),
            ("primary header", sector + 56, &["GPT-PRIMARY"], Trust::Inferred),
            ("primary entries", 2 * sector, &["GPT-PRIMARY", "GPT-DISAGREE"], Trust::Doubtful),
            ("backup signature", 127 * sector, &["GPT-BACKUP"], Trust::Sound),
            ("backup header", 127 * sector + 56, &["GPT-BACKUP"], Trust::Sound),
            ("backup entries", (127 - 1024_usize.div_ceil(sector)) * sector, &["GPT-BACKUP"], Trust::Sound),
            ("protective entry", 450, &["GPT-MBR"], Trust::Sound),
            ("boot signature", 511, &["GPT-MBR"], Trust::Sound),
        ];
        for (name, at, found, doubt) in cases {
            let mut bytes = sample_gpt(sector);
            bytes[at] = if at == 450 { 0 } else { bytes[at] ^ 1 };
            let image = memory(bytes);
            assert_eq!(format_of(&image), "gpt", "{name}");
            let opened = open(&image);
            assert_eq!((codes(&opened), rows(&opened)), (found.to_vec(), expected(sector as u64)), "{name}");
            assert_eq!(trust(&opened), doubt, "{name}");
        }
        // Both headers: the partitions are still what the primary says.
        let mut bytes = sample_gpt(sector);
        bytes[sector + 56] ^= 1;
        bytes[127 * sector + 56] ^= 1;
        let opened = open(&memory(bytes));
        assert_eq!((codes(&opened), rows(&opened)), (vec!["GPT-PRIMARY", "GPT-BACKUP"], expected(sector as u64)));
        assert_eq!(trust(&opened), Trust::Doubtful);
    }
}

#[test]
fn a_backup_that_is_not_in_the_last_sector() {
    // The device grew, or something was appended to its image, and the primary table is gone.
    for sector in [512, 4096] {
        let mut bytes = sample_gpt(sector);
        bytes[sector..3 * sector].fill(0);
        bytes.resize(300 * sector, 0xcc);
        let image = memory(bytes);
        assert_eq!(format_of(&image), "gpt");
        let opened = open(&image);
        assert_eq!((codes(&opened), rows(&opened)), (vec!["GPT-PRIMARY"], expected(sector as u64)));
    }
}

#[test]
fn copies_that_disagree() {
    let mut bytes = sample_gpt(512);
    let other = gpt_disk(512, &[(0, 10, 25, "older")]);
    bytes[100 * 512..].copy_from_slice(&other[100 * 512..]);
    let trust = |opened: &Opened| read_vec(&*volumes(opened)[0].bytes, 0, 512).1.trust;
    let opened = open(&memory(bytes.clone()));
    assert_eq!((codes(&opened), rows(&opened)), (vec!["GPT-DISAGREE"], expected(512)));
    assert_eq!(trust(&opened), Trust::Inferred, "the primary holds");
    // The primary is gone: the stale one is all there is, as an inference.
    let mut wiped = bytes.clone();
    wiped[512..34 * 512].fill(0);
    let image = memory(wiped);
    assert_eq!((gpt::FORMAT.probe)(&*image), vdrecover_formats::format::score::REMAINS);
    let opened = open(&image);
    assert_eq!((rows(&opened)[0].2, trust(&opened)), (26 * 512, Trust::Inferred));
    // It is damaged, and has other partitions.
    bytes[512 + 56] ^= 1;
    let opened = open(&memory(bytes));
    assert_eq!((codes(&opened), rows(&opened)[0].2), (vec!["GPT-PRIMARY", "GPT-DISAGREE"], 26 * 512));
    assert_eq!(trust(&opened), Trust::Doubtful);
}

/// What is left of a table with sectors of 512 bytes does not stand in the way of one with 4096.
#[test]
fn a_table_of_another_sector_size_before_the_right_one() {
    let mut bytes = sample_gpt(4096);
    let stale = gpt_disk(512, &[(0, 10, 25, "older")]);
    bytes[512..1024].copy_from_slice(&stale[512..1024]);
    let opened = open(&memory(bytes));
    assert_eq!((codes(&opened), rows(&opened)), (vec![], expected(4096)));
}

#[test]
fn a_cut_device_keeps_its_partitions() {
    let mut bytes = sample_gpt(512);
    bytes.truncate(15 * 512);
    let opened = open(&memory(bytes));
    assert_eq!((codes(&opened), rows(&opened)), (vec!["GPT-BACKUP", "GPT-RANGE", "GPT-RANGE"], expected(512)));
    let volumes = volumes(&opened);
    check(&volumes[0].bytes);
    assert_eq!(gaps(&volumes[0].bytes), [(5 * 512, 5 * 512, "outside".to_owned())]);
    assert_eq!(gaps(&volumes[1].bytes), [(0, 512, "outside".to_owned())]);
}

#[test]
fn hostile_tables() {
    for (at, value) in
        [(80, u32::MAX), (84, u32::MAX), (84, 0), (84, 1), (12, u32::MAX), (12, 0), (72, u32::MAX), (76, u32::MAX)]
    {
        for recompute in [false, true] {
            let mut bytes = sample_gpt(512);
            bytes.truncate(100 * 512);
            bytes[512 + at..][..4].copy_from_slice(&value.to_le_bytes());
            if recompute {
                bytes[512 + 16..512 + 20].fill(0);
                let crc = crc32fast::hash(&bytes[512..512 + 92]);
                bytes[512 + 16..512 + 20].copy_from_slice(&crc.to_le_bytes());
            }
            if let Ok(opened) = (gpt::FORMAT.open)(&memory(bytes), &memo()) {
                assert!(!opened.findings.is_empty());
                for volume in volumes(&opened) {
                    check(&volume.bytes);
                }
            }
        }
    }
}

#[test]
fn corpus_volumes() {
    let Some(folder) = corpus("corpus_volumes", "volumes") else { return };
    let of = |name: &str| {
        let image = load(&folder.join(name));
        let opened = open(&image);
        let mut codes = codes(&opened);
        codes.dedup();
        let rows = rows(&opened).into_iter().map(|(name, from, to, about)| format!("{name} {from}..{to} {about}"));
        (format_of(&image), rows.collect::<Vec<_>>(), codes)
    };
    // All four are the first sectors of larger disks.
    let basic = "NTFS, exFAT or HPFS (0x07)";
    let rows = vec![format!("p1 1048576..525336576 {basic}"), format!("p2 525336576..64423460864 {basic}")];
    assert_eq!(of("mbr.bin"), ("mbr", rows, vec!["MBR-RANGE"]));
    let rows = [
        "p1 32768..104890368 EFI system `BOOT`",
        "p5 106954752..4400873472 Microsoft basic data `BOOTBANK1`",
        "p6 4401922048..8695840768 Microsoft basic data `BOOTBANK2`",
        "p7 8696889344..137438953472 VMware VMFS-L (OSDATA) `OSDATA`",
        "p8 137440002048..152471322112 VMware VMFS `datastore1`",
    ];
    assert_eq!(of("gpt_esxi.bin"), ("gpt", rows.map(str::to_owned).to_vec(), vec!["GPT-BACKUP", "GPT-RANGE"]));
    let (format, rows, codes) = of("gpt_hybrid.bin");
    assert_eq!((format, rows.len(), codes), ("gpt", 3, vec!["GPT-BACKUP", "GPT-HYBRID", "GPT-RANGE"]));
    let (format, rows, codes) = of("gpt_4k.bin");
    assert_eq!((format, rows.len(), codes), ("gpt", 3, vec!["GPT-BACKUP", "GPT-RANGE"]));
    assert_eq!(rows[0], "p1 1048576..2101248 Linux filesystem `Linux filesystem`", "sectors of 4096 bytes");
}

#[test]
fn corpus_disks() {
    let Some(folder) = corpus("corpus_disks", "disks/dfvfs") else { return };
    for (name, format, want) in [
        ("mbr", "mbr", &[("p1", 512, 66_560), ("p5", 67_072, 133_120)][..]),
        ("gpt", "gpt", &[("p1", 1_048_576, 1_114_112), ("p2", 2_097_152, 2_162_688)]),
        ("gpt_non_sequential", "gpt", &[("p1", 1_048_576, 1_114_112), ("p3", 3_145_728, 3_211_264)]),
        // File systems, and what else has a boot signature.
        ("fat12", "raw", &[]),
        ("ntfs", "raw", &[]),
        ("ext4", "raw", &[]),
        ("xfs", "raw", &[]),
        ("iso9660", "raw", &[]),
        ("luks1", "raw", &[]),
    ] {
        let mut bytes = Vec::new();
        let file = std::fs::File::open(folder.join(format!("{name}.raw.gz"))).unwrap();
        std::io::Read::read_to_end(&mut flate2::read::GzDecoder::new(file), &mut bytes).unwrap();
        let image = memory(bytes);
        let is_volumes = [&gpt::FORMAT, &mbr::FORMAT].into_iter().any(|row| (row.probe)(&*image) > 0);
        assert_eq!(is_volumes, format != "raw", "{name}");
        if !is_volumes {
            continue;
        }
        assert_eq!(format_of(&image), format, "{name}");
        let opened = open(&image);
        let rows = rows(&opened);
        let rows: Vec<_> = rows.iter().map(|(name, from, to, _)| (name.as_str(), *from, *to)).collect();
        assert_eq!((rows.as_slice(), codes(&opened)), (want, vec![]), "{name}");
        for volume in volumes(&opened) {
            check(&volume.bytes);
        }
    }
}

#[test]
fn tables_of_sgdisk() {
    if !has("sgdisk", "tables_of_sgdisk") {
        return;
    }
    let folder = Folder::new();
    folder.write("disk.raw", &vec![0; 16 << 20]);
    let args = ["-n1:2048:4095", "-t1:fb00", "-c1:data store", "-n7:8192:+1M", "-t7:8200", "-n3:20000:0", "disk.raw"];
    folder.run("sgdisk", &args);
    let opened = open(&folder.load("disk.raw"));
    assert_eq!(codes(&opened), [""; 0]);
    let listed = folder.run("sgdisk", &["-p", "disk.raw"]);
    let listed: Vec<(String, u64, u64)> = listed
        .lines()
        .filter_map(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            let number: u64 = words.first()?.parse().ok()?;
            let (first, last): (u64, u64) = (words.get(1)?.parse().ok()?, words.get(2)?.parse().ok()?);
            Some((format!("p{number}"), first * 512, (last + 1) * 512))
        })
        .collect();
    let ours: Vec<_> = rows(&opened).into_iter().map(|(name, from, to, _)| (name, from, to)).collect();
    assert_eq!(ours, listed);
    assert_eq!(rows(&opened)[0].3, "VMware VMFS `data store`");
    assert_eq!(rows(&opened)[2].3, "Linux swap");
}
