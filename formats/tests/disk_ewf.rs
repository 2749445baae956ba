//! EWF against ewfacquire, and one outcome for each damage.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::arithmetic_side_effects,
    clippy::as_conversions,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::single_range_in_vec_init,
    missing_docs,
    unreachable_pub,
    reason = "tests"
)]

mod disk_support;

use disk_support::*;
use vdrecover_formats::disk::ewf::FORMAT;
use vdrecover_formats::link::Value;
use vdrecover_formats::{Bytes, Trust, read_vec};
use vdrecover_testdata::Device;
use vdrecover_testdata::ewf::{Options, adler32, write};

const MIB: usize = 1 << 20;
/// Bytes of a chunk.
const CHUNK: u64 = 32 << 10;

fn plain() -> Vec<u8> {
    sample(2 * MIB + 5 * 512)
}

fn segments(options: &Options) -> Vec<Vec<u8>> {
    write(&Device::from_bytes(&plain()), options)
}

fn image() -> Vec<u8> {
    segments(&Options::default()).concat()
}

/// Where the sections of a kind are.
fn places(image: &[u8], kind: &str) -> Vec<usize> {
    let mut mark = kind.as_bytes().to_vec();
    mark.resize(16, 0);
    (0..image.len() - 76)
        .filter(|at| image[*at..*at + 16] == mark[..])
        .filter(|at| adler32(&image[*at..*at + 72]).to_le_bytes() == image[*at + 72..*at + 76])
        .collect()
}

#[test]
fn images_of_ewfacquire() {
    if std::process::Command::new("ewfacquire").arg("-V").output().is_err() {
        has("ewfacquire", "images_of_ewfacquire");
        return;
    }
    let folder = Folder::new();
    let plain = sample(5 * MIB + 5 * 512);
    folder.write("plain.raw", &plain);
    for (format, packing, chunk, first) in [
        ("encase6", "none", "64", "image.E01"),
        ("encase6", "fast", "64", "image.E01"),
        ("encase6", "empty-block", "1024", "image.E01"),
        ("encase2", "best", "64", "image.E01"),
        ("encase5", "fast", "64", "image.E01"),
        ("encase7", "fast", "64", "image.E01"),
        ("linen6", "fast", "64", "image.E01"),
        ("ftk", "fast", "64", "image.E01"),
        ("smart", "fast", "64", "image.s01"),
        ("ewf", "fast", "64", "image.e01"),
    ] {
        let args =
            ["-u", "-q", "-t", "image", "-f", format, "-c", packing, "-b", chunk, "-S", "1500000", "-C", "case 9"];
        folder.run("ewfacquire", &[&args[..], &["plain.raw"]].concat());
        let mut names: Vec<_> = std::fs::read_dir(&folder.0).unwrap().map(|entry| entry.unwrap().path()).collect();
        names.retain(|name| name.file_stem().unwrap() == "image");
        names.sort();
        assert_eq!(names[0].file_name().unwrap(), first);
        let bytes: Vec<u8> = names.iter().flat_map(|name| std::fs::read(name).unwrap()).collect();
        assert!(packing != "none" || names.len() > 3, "{names:?}");
        for name in &names {
            std::fs::remove_file(name).unwrap();
        }
        let image = memory(bytes);
        assert_eq!((format_of(&image), codes(&image)), ("ewf", vec![]), "{format} {packing}");
        let opened = open(&image);
        let fact = |name| opened.facts.iter().find(|fact| fact.name == name).map(|fact| fact.value.clone());
        assert_eq!(fact("case_number"), Some(Value::Text("case 9".into())), "{format}");
        assert!(fact("md5").is_some(), "{format}");
        let layer = disk(&image);
        assert!(all(&layer) == plain, "{format} {packing}");
        assert_eq!(trust_of(&layer), Trust::Sound);
        check(&layer);
        assert_eq!(findings(&layer), [""; 0], "{format} {packing}");
    }
}

#[test]
fn segments_in_order_are_one_disk() {
    for options in [
        Options::default(),
        Options { segment: 20, ..Options::default() },
        Options { segment: 13, table: 5, mixed: false, ..Options::default() },
    ] {
        let image = memory(segments(&options).concat());
        assert_eq!(codes(&image), [""; 0]);
        let layer = disk(&image);
        assert!(all(&layer) == plain());
        check(&layer);
    }
}

#[test]
fn ewfexport_reads_the_fixtures() {
    if std::process::Command::new("ewfexport").arg("-V").output().is_err() {
        has("ewfexport", "ewfexport_reads_the_fixtures");
        return;
    }
    let folder = Folder::new();
    for (n, segment) in segments(&Options { segment: 20, ..Options::default() }).into_iter().enumerate() {
        folder.write(&format!("image.E{:02}", n + 1), &segment);
    }
    folder.run("ewfexport", &["-u", "-q", "-f", "raw", "-t", "out", "image.E01"]);
    assert!(std::fs::read(folder.path("out.raw")).unwrap() == plain());
}

#[test]
fn missing_segments_cost_their_chunks() {
    let parts = segments(&Options { segment: 20, ..Options::default() });
    assert_eq!(parts.len(), 4);
    let len = plain().len() as u64;
    let whole = plain();
    for (what, keep, code, gone, why, trust) in [
        ("the second", &[0, 2, 3][..], vec!["EWF-SEGMENT-GONE"], 20 * CHUNK..40 * CHUNK, "absent", Trust::Inferred),
        ("the last", &[0, 1, 2], vec!["EWF-END"], 60 * CHUNK..len, "truncated", Trust::Sound),
        (
            "the second and the last",
            &[0, 2],
            vec!["EWF-SEGMENT-GONE", "EWF-END"],
            20 * CHUNK..len,
            "absent",
            Trust::Sound,
        ),
    ] {
        let image = memory(keep.iter().flat_map(|n| parts[*n].clone()).collect());
        assert_eq!(codes(&image), code, "{what}");
        let layer = disk(&image);
        assert_eq!(gaps(&layer), [(gone.start, gone.end - gone.start, why.into())], "{what}");
        assert_eq!(trust_of(&layer), trust, "{what}");
        let (bytes, _) = read_vec(&*layer, 0, whole.len());
        assert!((0..len).all(|at| gone.contains(&at) || bytes[at as usize] == whole[at as usize]), "{what}");
        check(&layer);
    }
    let error = (FORMAT.open)(&memory(parts[1].clone()), &memo()).unwrap_err();
    assert!(
        error.to_string().starts_with("segment 2 of an EWF image without its first segment: give the .E01"),
        "{error}"
    );
}

#[test]
fn a_segment_cut_in_the_middle_costs_its_own_chunks() {
    let parts = segments(&Options { segment: 20, ..Options::default() });
    let (whole, len) = (plain(), plain().len() as u64);
    for (what, cut, keep, lost, why, trust) in [
        ("in its sectors", parts[1].len() / 2, &[0, 1, 2, 3][..], 20 * CHUNK..40 * CHUNK, "truncated", Trust::Inferred),
        ("behind its head", 13, &[0, 1, 2, 3], 20 * CHUNK..40 * CHUNK, "truncated", Trust::Inferred),
        ("and the next is missing", parts[1].len() / 2, &[0, 1, 3], 20 * CHUNK..60 * CHUNK, "absent", Trust::Inferred),
        ("and the last is missing", parts[1].len() / 2, &[0, 1, 2], 20 * CHUNK..len, "truncated", Trust::Sound),
    ] {
        let mut parts = parts.clone();
        parts[1].truncate(cut);
        let image = memory(keep.iter().flat_map(|n| parts[*n].clone()).collect());
        assert!(codes(&image).contains(&"EWF-SEGMENT-CUT"), "{what}: {:?}", codes(&image));
        let layer = disk(&image);
        assert_eq!(gaps(&layer), [(lost.start, lost.end - lost.start, why.into())], "{what}");
        let (bytes, _) = read_vec(&*layer, 0, whole.len());
        assert!((0..len).all(|at| lost.contains(&at) || bytes[at as usize] == whole[at as usize]), "{what}");
        // What comes before the cut is as sure as ever.
        assert_eq!(read_vec(&*layer, 0, 20 * CHUNK as usize).1.trust, Trust::Sound, "{what}");
        assert_eq!(trust_of(&layer), trust, "{what}");
        check(&layer);
    }
}

#[test]
fn either_table_is_enough() {
    let clean = image();
    let (first, second) = (places(&clean, "table")[0] + 76, places(&clean, "table2")[0] + 76);
    for (what, places, trust, open_codes, audit_codes) in [
        ("entries of the first", vec![first + 30], Trust::Inferred, vec![], vec!["EWF-TABLE"]),
        ("entries of the second", vec![second + 30], Trust::Sound, vec![], vec![]),
        ("head of the first", vec![first], Trust::Inferred, vec!["EWF-TABLE"], vec![]),
        ("head of the second", vec![second], Trust::Inferred, vec!["EWF-TABLE"], vec![]),
    ] {
        let mut image = clean.clone();
        for at in places {
            image[at] ^= 1;
        }
        let image = memory(image);
        assert_eq!(codes(&image), open_codes, "{what}");
        let layer = disk(&image);
        assert!(all(&layer) == plain(), "{what}");
        assert_eq!(trust_of(&layer), trust, "{what}");
        assert_eq!(findings(&layer), audit_codes, "{what}");
        check(&layer);
    }
    let mut both = clean;
    both[first + 30] ^= 1;
    both[second + 30] ^= 2;
    let layer = disk(&memory(both));
    assert_eq!(trust_of(&layer), Trust::Doubtful);
    check(&layer);
}

#[test]
fn damaged_chunks_cost_themselves() {
    let clean = image();
    let table = places(&clean, "table")[0] + 100;
    let place = |n: usize| {
        u32::from_le_bytes(clean[table + 4 * n..table + 4 * n + 4].try_into().unwrap()) as usize & 0x7FFF_FFFF
    };
    // The second chunk is plain: its bytes are there, but not what their checksum says.
    let mut image = clean.clone();
    image[place(1) + 1000] ^= 1;
    let layer = disk(&memory(image));
    assert_eq!(gaps(&layer), []);
    let trust = |n: u64| read_vec(&*layer, n * CHUNK, CHUNK as usize).1.trust;
    assert_eq!([trust(0), trust(1), trust(2)], [Trust::Sound, Trust::Doubtful, Trust::Sound]);
    check(&layer);
    // The third is packed: what comes out before the damage is doubtful, the rest is lost.
    let mut image = clean.clone();
    image[place(2)..place(3)].fill(0xFF);
    let layer = disk(&memory(image));
    assert_eq!(gaps(&layer), [(2 * CHUNK, CHUNK, "undecodable".into())]);
    check(&layer);
}

#[test]
fn what_the_imager_could_not_read_is_lost() {
    let image = memory(segments(&Options { errors: vec![8..16, 100..101], ..Options::default() }).concat());
    assert_eq!(codes(&image), [""; 0]);
    let layer = disk(&image);
    assert_eq!(gaps(&layer), [(4096, 4096, "unreadable".into()), (51_200, 512, "unreadable".into())]);
    check(&layer);
}

#[test]
fn a_cut_image_keeps_what_its_tables_name() {
    let whole = image();
    let second = places(&whole, "sectors")[1];
    let image = memory(whole[..second + 5000].to_vec());
    assert!(codes(&image).contains(&"EWF-END"), "{:?}", codes(&image));
    let layer = disk(&image);
    assert_eq!(gaps(&layer), [(24 * CHUNK, plain().len() as u64 - 24 * CHUNK, "truncated".into())]);
    check(&layer);
}

#[test]
fn a_lost_volume_section_is_read_from_the_next_segment() {
    let mut parts = segments(&Options { segment: 20, ..Options::default() });
    let at = places(&parts[0], "volume")[0];
    parts[0][at + 76 + 4] ^= 1;
    let image = memory(parts.concat());
    assert_eq!(codes(&image), ["EWF-VOLUME"]);
    assert!(all(&disk(&image)) == plain());
    assert_eq!(trust_of(&disk(&image)), Trust::Inferred);
}

#[test]
fn other_images_of_encase_are_named() {
    for mark in [&b"EVF2\x0D\x0A\x81\x00"[..], b"LVF\x09\x0D\x0A\xFF\x00"] {
        let mut bytes = mark.to_vec();
        bytes.resize(4096, 0);
        let image = memory(bytes);
        assert_eq!(format_of(&image), "ewf");
        let error = (FORMAT.open)(&image, &memo()).unwrap_err();
        assert!(error.to_string().contains("Ex01"), "{error}");
    }
}

#[test]
fn hostile_numbers() {
    let clean = image();
    let open_it = |image: &Bytes| {
        let opened = (FORMAT.open)(image, &memo()).ok()?;
        Some(disks(&opened, &[])[0].bytes.clone())
    };
    let seal = |image: &mut [u8], at: usize, len: usize| {
        let sum = adler32(&image[at..at + len]).to_le_bytes();
        image[at + len..at + len + 4].copy_from_slice(&sum);
    };
    let volume = places(&clean, "volume")[0];
    let table = places(&clean, "table")[0];
    for (at, len, field) in [
        (volume, 72, 16),
        (volume, 72, 24),
        (volume + 76, 1048, 4),
        (volume + 76, 1048, 8),
        (volume + 76, 1048, 16),
        (table, 72, 16),
        (table + 76, 20, 0),
        (table + 76, 20, 8),
    ] {
        for value in [0_u64, 1, u64::MAX, 1 << 63, 0x1000_0000_1000_0000] {
            let mut image = clean.clone();
            image[at + field..at + field + 8].copy_from_slice(&value.to_le_bytes());
            seal(&mut image, at, len);
            if let Some(layer) = open_it(&memory(image)) {
                check(&layer);
            }
        }
    }
    for at in [0, volume, table] {
        mutate(&clean[at..at + 256], 60, 256, |bytes| {
            let (piece, _) = read_vec(&**bytes, 0, bytes.len() as usize);
            let mut image = clean.clone();
            image[at..at + piece.len()].copy_from_slice(&piece);
            open_it(&memory(image))
        });
    }
}
