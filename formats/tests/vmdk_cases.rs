//! Hard VMDK images, one row each: what comes out is right, or not sound, or lost with a reason. Silently wrong is no
//! row. `VDRECOVER_TABLE` prints the rows.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::arithmetic_side_effects,
    clippy::as_conversions,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    missing_docs,
    unreachable_pub,
    reason = "tests"
)]

mod disk_support;

use disk_support::*;
use std::fmt::Write as _;
use std::ops::Range;
use vdrecover_formats::{Bytes, Role, Trust, read_vec};
use vdrecover_testdata::vmdk_cases::{self, Case};

/// The disk of one of the files, with the others found by the last part of their names.
fn opened(case: &Case, name: &str) -> Option<Bytes> {
    let bytes = memory(case.files.iter().find(|(known, _)| known == name)?.1.clone());
    let opened = open(&bytes);
    let others = opened.wants.iter().map(|want| {
        let hint = String::from_utf8(want.hint.clone()?).ok()?;
        let last = hint.rsplit(['/', '\\']).next()?;
        if want.role == Role::Parent {
            return opened_parent(case, last);
        }
        case.files.iter().find(|(known, _)| known == last).map(|(_, bytes)| memory(bytes.clone()))
    });
    let others: Vec<Option<Bytes>> = others.collect();
    Some(disks(&opened, &others)[0].bytes.clone())
}

fn opened_parent(case: &Case, name: &str) -> Option<Bytes> {
    opened(case, name)
}

/// What became of a case.
#[derive(Debug, Default)]
struct Row {
    lost: Vec<Range<u64>>,
    wrong: u64,
    wrong_and_sound: u64,
    trust: Trust,
}

fn row(case: &Case, layer: &Bytes) -> Row {
    const STEP: usize = 4096;
    let mut row = Row::default();
    assert_eq!(layer.len(), case.disk.len() as u64, "{}", case.name);
    for (at, want) in (0_u64..).step_by(STEP).zip(case.disk.chunks(STEP)) {
        let (bytes, seen) = read_vec(&**layer, at, want.len());
        row.trust = row.trust.max(seen.trust);
        let gone = |at: u64| seen.gaps.iter().any(|gap| gap.range.contains(&at));
        let wrong = (at..).zip(bytes.iter().zip(want)).filter(|(at, (a, b))| a != b && !gone(*at)).count() as u64;
        row.wrong += wrong;
        row.wrong_and_sound += if seen.trust == Trust::Sound { wrong } else { 0 };
        for gap in seen.gaps {
            match row.lost.last_mut() {
                Some(last) if last.end == gap.range.start => last.end = gap.range.end,
                _ => row.lost.push(gap.range),
            }
        }
    }
    row
}

#[test]
fn no_row_is_silently_wrong() {
    let cases = vmdk_cases::all();
    assert!(cases.len() >= 47, "{}", cases.len());
    let mut table = String::new();
    let mut failed = Vec::new();
    for case in &cases {
        let layer = opened(case, &case.files[0].0).unwrap();
        check(&layer);
        let row = row(case, &layer);
        let lost: u64 = row.lost.iter().map(|range| range.end - range.start).sum();
        writeln!(table, "| {} | {} | {lost} | {} | {} |", case.name, case.about, row.wrong, row.trust.word()).unwrap();
        // A cut deflate stream gives a prefix, which is doubtful: less may be lost than could be.
        let less = lost <= case.lost.iter().map(|range| range.end - range.start).sum::<u64>();
        let right = if case.name == "t03" { less } else { row.lost == case.lost };
        if !right || row.wrong_and_sound > 0 || (row.wrong > 0 && case.name != "t03") {
            failed.push(format!("{} {}: {row:x?}, lost should be {:x?}", case.name, case.about, case.lost));
        }
    }
    if std::env::var_os("VDRECOVER_TABLE").is_some() {
        println!("| case | what | lost bytes | wrong bytes | trust |\n|---|---|---|---|---|\n{table}");
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

#[test]
fn trust_says_what_was_chosen() {
    let trust = |name: &str| {
        let cases = vmdk_cases::all();
        let case = cases.iter().find(|case| case.name == name).unwrap();
        row(case, &opened(case, &case.files[0].0).unwrap()).trust
    };
    for name in ["s01", "s02", "s03", "s04", "t01", "t06", "t07", "t08", "t09", "t10", "d01", "d04", "d13", "c04"] {
        assert_eq!(trust(name), Trust::Sound, "{name}");
    }
    // In s12 the grains that became zeros are still in the file: they could be another's.
    for name in ["s05", "s06", "s07", "s09", "s12", "s11", "s14", "t02", "t04", "d28"] {
        assert_eq!(trust(name), Trust::Inferred, "{name}");
    }
    for name in ["s08", "c07", "c08"] {
        assert_eq!(trust(name), Trust::Doubtful, "{name}");
    }
}

#[test]
fn encrypted_disks_are_sealed() {
    let words = "# Disk DescriptorFile\nversion=4\nCID=1\nparentCID=ffffffff\ncreateType=\"vmfs\"\nkeyID=kms/77\n\
        encryptionKeys=\"vmware:key/list/(pair/(fqid/x,HMAC%2dSHA%2d256,y))\"\nRW 8 VMFS \"a-flat.vmdk\"\nRW 8 ZERO\n\
        ddb.iofilters = \"vmwarevmcrypt\"\n";
    let opened = open(&memory(words.as_bytes().to_vec()));
    assert!(
        opened.findings.iter().any(|finding| finding.code == "VMDK-SEALED" && finding.text.contains("XTS-AES-256"))
    );
    assert!(opened.facts.iter().any(|fact| fact.name == "encryption_key_id" && fact.value == "kms/77"));
    let layer = disks(&opened, &[Some(memory(vec![0xc4; 4096]))])[0].bytes.clone();
    check(&layer);
    assert_eq!(gaps(&layer), [(0, 4096, "sealed".to_owned())]);
}
