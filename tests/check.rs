//! `check`: silent where nothing contradicts, and with a word for each contradiction.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs, reason = "tests")]

mod common;

use common::{demo, expect, records, unpacked};
use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;

#[test]
fn healthy_volumes_of_real_hosts_end_with_0() {
    for name in ["vmfs5", "vmfs6", "vmfs6l", "vmfs5-no-dense-sbpc", "zero6"] {
        let Some(image) = unpacked("healthy_volumes_of_real_hosts_end_with_0", &format!("vmfs/{name}.bin.gz")) else {
            return;
        };
        let all = records(0, ["check".as_ref(), image.as_os_str(), "--json".as_ref()]);
        let sum = all.last().unwrap();
        assert_eq!((&sum["record"], &sum["doubtful"], &sum["inferred"]), (&"check".into(), &0.into(), &0.into()));
        let hosts = all.iter().filter(|record| record["code"] == "VMFS-HOST").count();
        assert_eq!(hosts, usize::from(name != "zero6"), "{name}: a host that has the volume in use is a fact");
    }
}

#[test]
fn a_span_is_checked_as_one() {
    let images = ["vmfs5-span-0", "vmfs5-span-1"].map(|name| unpacked("a_span", &format!("vmfs/{name}.bin.gz")));
    let [Some(first), Some(second)] = images else { return };
    expect(0, ["check".as_ref(), first.as_os_str(), second.as_os_str()]);
}

#[test]
fn any_image_is_checked() {
    let text = String::from_utf8(expect(0, ["check".as_ref(), demo().as_os_str()])).unwrap();
    assert!(text.lines().last().unwrap().starts_with("nothing contradicts"), "{text}");
    // The image with an entry of its table that leads nowhere.
    let folder = tempfile::tempdir().unwrap();
    let copy = folder.path().join("copy.qcow2");
    fs::copy(demo(), &copy).unwrap();
    let file = OpenOptions::new().read(true).write(true).open(&copy).unwrap();
    let number = |at: u64| {
        let mut bytes = [0; 8];
        file.read_exact_at(&mut bytes, at).unwrap();
        u64::from_be_bytes(bytes) & 0x00FF_FFFF_FFFF_FE00
    };
    let table = number(40);
    let entries = (0..64).map(|entry| table + 8 * entry);
    let used: Vec<u64> = entries.filter(|entry| number(*entry) != 0).collect();
    file.write_all_at(&0x8000_7FFF_FFFF_0000_u64.to_be_bytes(), *used.last().unwrap()).unwrap();
    let all = records(1, ["check".as_ref(), copy.as_os_str(), "--json".as_ref()]);
    let codes: Vec<_> = all.iter().filter_map(|record| record["code"].as_str()).collect();
    assert!(codes.iter().any(|code| code.starts_with("QCOW2-")), "{codes:?}");
}

/// A VM has its own folder's bytes, and not those of a folder whose name ends as its own does.
#[test]
fn a_byte_is_of_the_vm_whose_folder_it_is_in() {
    use vdrecover_testdata::vmfs::{Content, Layout, Version, Vmfs, VmfsSpec};
    let folder = tempfile::tempdir().unwrap();
    let mut store = Vmfs::new(VmfsSpec::new(Version::Six, 2 << 30));
    let auto = Layout::default();
    store.mkdir("web");
    store.file("web/web.vmx", Content::bytes(*b"config.version = \"8\"\ndisplayName = \"web\"\n"), &auto);
    // A name that holds the path of the other's folder.
    store.mkdir("x");
    store.mkdir("x/store");
    store.mkdir("x/store/datastore1");
    store.mkdir("x/store/datastore1/web");
    store.file("x/store/datastore1/web/other", Content::patterned(2 << 20, 3), &auto);
    store.file("web/own", Content::patterned(2 << 20, 4), &auto);
    let places = ["x/store/datastore1/web/other", "web/own"].map(|path| {
        let located = store.locate(path);
        [located.blocks[0].lv, located.fd_lv].map(|lv| store.device_position(lv).1 + 8)
    });
    let image = folder.path().join("store.img");
    store.finish()[0].save(&image).unwrap();
    for (places, vms) in places.iter().zip([vec![], vec!["web"]]) {
        for at in places {
            let rows = records(0, ["owner", "--json", image.to_str().unwrap(), "--offset", &at.to_string()]);
            assert_eq!(rows[0]["vms"], serde_json::json!(vms), "{:#?}", rows[0]);
        }
    }
}
