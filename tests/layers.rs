//! What the layers of a case call themselves, and how far they are believed.
#![allow(clippy::unwrap_used, missing_docs, reason = "tests")]

mod common;

use common::{demo, expect, records};
use vdrecover::case::{Case, Options};
use vdrecover::progress::Progress;
use vdrecover_formats::{Trust, read_vec};

/// Whether a name is that of a type: one word of letters and digits that starts with a capital.
fn is_type_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_uppercase()) && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

#[test]
fn a_trace_names_layers_for_people() {
    assert!(is_type_name("Sparse") && !is_type_name("QCOW2 disk") && !is_type_name("a/disk.img"));
    let mut seen = Vec::new();
    for path in ["vms/web01/web01.raw", "vms/db01/db01.raw", "store/datastore1/iso/tools.iso"] {
        let locator = format!("{}::{path}", demo().display());
        for offset in ["0", "0x400", "0x8000"] {
            let rows = records(0, ["trace", "--json", "--offset", offset, &locator]);
            let hops = rows.iter().filter(|row| row["record"] == "hop");
            seen.extend(hops.map(|row| row["layer"].as_str().unwrap().to_owned()));
        }
    }
    let bare: Vec<_> = seen.iter().filter(|name| is_type_name(name)).collect();
    assert!(bare.is_empty(), "{bare:?}");
    for name in ["VMFS file c", "VMFS volume (LVM)", "SESparse delta over its parent"] {
        assert!(seen.iter().any(|seen| seen.starts_with(name)), "{name}: {seen:?}");
    }
}

#[test]
fn a_version_and_times_are_said_as_people_and_programs_want_them() {
    let rows = records(0, ["info".as_ref(), "--json".as_ref(), demo().as_os_str()]);
    let vmfs = rows.iter().find(|row| row["format"] == "vmfs").unwrap();
    let facts = &vmfs["facts"];
    assert_eq!((&facts["version"], &facts["vmfs_version"]), (&"VMFS-6.82".into(), &"24.82".into()));
    assert!(facts["vmfs_created"].as_str().unwrap().ends_with('Z'), "{facts}");
    assert_eq!(facts["vmfs_file_block_size"], 1 << 20);
    let text = String::from_utf8(expect(0, ["info".as_ref(), demo().as_os_str()])).unwrap();
    assert!(text.contains("vmfs_file_block_size: 1 MiB (1048576 bytes)"), "{text}");
}

#[test]
fn the_demo_is_sound() {
    let rows = records(0, ["scan".as_ref(), "--json".as_ref(), demo().as_os_str()]);
    let machine = rows.iter().find(|row| row["record"] == "vm" && row["name"] == "web01").unwrap();
    assert_eq!(machine["verdict"], "sound", "{machine}");
}

#[test]
fn what_has_the_mark_of_a_format_and_does_not_open_is_no_sound_disk() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk.qcow2");
    let mut bytes = vec![0; 128 << 10];
    bytes[..8].copy_from_slice(b"QFI\xfb\0\0\0\x03");
    // log2 of the cluster size, which no image has.
    bytes[20..24].copy_from_slice(&63_u32.to_be_bytes());
    std::fs::write(&path, &bytes).unwrap();
    let options = Options { inputs: vec![path.clone()], ..Options::default() };
    let case = Case::open(&options, &Progress::silent()).unwrap();
    assert_eq!(case.items[0].format.name, "raw");
    assert!(case.findings.iter().any(|noted| noted.finding.code == "FORMAT-OPEN"));
    let (read, seen) = read_vec(&*case.items[0].disk(), 0, bytes.len());
    assert!(read == bytes && seen.is_whole());
    assert_eq!(seen.trust, Trust::Doubtful);
    expect(1, ["scan".as_ref(), path.as_os_str()]);
}
