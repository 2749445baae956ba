#![allow(clippy::unwrap_used, clippy::panic, clippy::single_range_in_vec_init, reason = "tests")]
use super::*;
use crate::testing::skipped;
use std::process::Command;

const MAP: &str = "\
# Mapfile. Created by GNU ddrescue version 1.27
# Command line: ddrescue /dev/sdb \u{e9}.img map
# current_pos  current_status  current_pass
0x00110000     +               1
#      pos        size  status
0x00000000  0x00100000  +
0x00100000  0x00000200  -
1049088     65024       /
0x00110000  0x00010000  ?
0400000000  0x00001000  *   # octal, behind a hole in the map
";

#[test]
fn every_status_but_finished_is_lost_and_so_is_what_the_map_leaves_out() {
    let map = Mapfile::parse(MAP.as_bytes()).unwrap();
    assert_eq!(map.blocks().len(), 5);
    assert_eq!(map.blocks()[4], (0x400_0000..0x400_1000, Status::Untrimmed));
    assert_eq!(map.lost(0, 0x11_0000), [0x10_0000..0x11_0000]);
    assert_eq!(map.lost(0, 0x10_0000), []);
    assert_eq!(map.uncovered(0, 0x500_0000), [0x12_0000..0x400_0000, 0x400_1000..0x500_0000]);
}

#[test]
fn a_shift_moves_the_device_to_the_image() {
    let map = Mapfile::parse(MAP.as_bytes()).unwrap();
    assert_eq!(map.lost(0xff_000, 0x2000), [0x1000..0x2000]);
    assert_eq!(map.lost(0x1_0000_0000, 0x2000), [0..0x2000], "all behind the map");
}

#[test]
fn an_old_map_has_no_pass() {
    assert!(Mapfile::parse(b"0x0 ?\n0 512 +\n").is_ok());
}

#[test]
fn a_bad_line_is_named() {
    let table = [
        ("", "names no block"),
        ("0x0 +\n", "names no block"),
        ("\n0x0 Z\n", "line 2: found '0x0 Z'"),
        ("0x0\n", "line 1: found '0x0'"),
        ("0 + 1\n0 512\n", "line 2: found '0 512', wanted a position"),
        ("0 + 1\n0 512 x\n", "line 2: found the status 'x'"),
        ("0 + 1\n0 0xg +\n", "line 2: '0xg' is not a number"),
        ("0 + 1\n0 -5 +\n", "line 2: '-5' is not a number"),
        ("0 + 1\n0 089 +\n", "line 2: '089' is not a number"),
        ("0 + 1\n0 512 +\n256 512 -\n", "line 3: the block at 0x100 starts before the end of the last, 0x200"),
        ("0 + 1\n0xffffffffffffffff 512 +\n", "line 2: the block at 0xffffffffffffffff of 0x200 bytes ends"),
    ];
    for (text, want) in table {
        let error = format!("{:#}", Mapfile::parse(text.as_bytes()).unwrap_err());
        assert!(error.starts_with(want) || error.contains(want), "{text:?}: {error}");
    }
}

#[test]
fn noise_is_an_error_and_never_a_panic() {
    let mut seed: u32 = 7;
    for _ in 0..2000 {
        let mut text = MAP.as_bytes().to_vec();
        for _ in 0..4 {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let at = usize::try_from(seed >> 8).unwrap() % text.len();
            text[at] = seed.to_le_bytes()[0];
        }
        if let Ok(map) = Mapfile::parse(&text) {
            let _ = map.lost(3, 1 << 40);
        }
    }
}

#[test]
fn an_argument_names_image_map_and_shift() {
    let parse = |text: &str| MapArg::parse(OsStr::new(text));
    let arg = parse("a.img=b.map@0x100").unwrap();
    assert_eq!((arg.image, arg.map, arg.shift), ("a.img".into(), "b.map".into(), 256));
    let arg = parse("a.img=user@host.map").unwrap();
    assert_eq!((arg.map, arg.shift), ("user@host.map".into(), 0));
    assert_eq!(parse("a=b@1@4K").unwrap().map, PathBuf::from("b@1"));
    for text in ["a.img", "=b", "a="] {
        let error = parse(text).unwrap_err().to_string();
        assert!(error.contains("write IMAGE=MAP"), "{error}");
    }
}

fn written() -> (Vec<u8>, Vec<(Range<u64>, Status)>) {
    let blocks =
        [(0x1000..0x1200, Status::Bad), (0x1200..0x1400, Status::Bad), (0x2000..0x9000, Status::Untried)].to_vec();
    let mut out = Vec::new();
    write_map(&mut out, 0x8000, &[], &blocks).unwrap();
    (out, blocks)
}

#[test]
fn what_is_written_reads_the_same() {
    let (out, _) = written();
    let map = Mapfile::parse(&out).unwrap();
    let want = [
        (0..0x1000, Status::Finished),
        (0x1000..0x1400, Status::Bad),
        (0x1400..0x2000, Status::Finished),
        (0x2000..0x8000, Status::Untried),
    ];
    assert_eq!(map.blocks(), want);
    assert_eq!(map.lost(0, 0x8000), [0x1000..0x1400, 0x2000..0x8000]);
}

#[test]
fn ddrescuelog_reads_what_is_written() {
    if Command::new("ddrescuelog").arg("--version").output().is_err() {
        skipped("ddrescuelog_reads_what_is_written: ddrescuelog (Debian: gddrescue) is not installed");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("map");
    std::fs::write(&path, written().0).unwrap();
    let list = |status: &str| {
        let output = Command::new("ddrescuelog").args(["-b512", "-l", status]).arg(&path).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().lines().count()
    };
    assert_eq!(list("-"), 2);
    assert_eq!(list("?"), 0x6000 / 512);
    assert_eq!(list("+"), (0x8000 - 0x400 - 0x6000) / 512);
}

#[test]
fn what_ddrescue_writes_is_read() {
    if Command::new("ddrescue").arg("--version").output().is_err() {
        skipped("what_ddrescue_writes_is_read: ddrescue (Debian: gddrescue) is not installed");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    std::fs::write(path("in"), vec![7; 1 << 20]).unwrap();
    let status = Command::new("ddrescue")
        .args(["-q", "-i", "256KiB", "-o", "0", "-s", "256KiB"])
        .args([path("in"), path("out"), path("map")])
        .status()
        .unwrap();
    assert!(status.success());
    let map = Mapfile::read(&path("map")).unwrap();
    assert_eq!(map.lost(0x4_0000, 0x4_0000), [], "the image starts at 256 KiB of the device");
    assert_eq!(map.lost(0, 1 << 20), [0..0x4_0000, 0x8_0000..1 << 20]);
}

#[test]
fn a_mapfile_that_is_none_says_so() {
    let dir = tempfile::tempdir().unwrap();
    for (path, want) in [(dir.path().join("none"), "can't be opened"), (dir.path().to_owned(), "is not a file")] {
        let error = format!("{:#}", Mapfile::read(&path).unwrap_err());
        assert!(error.contains(want), "{error}");
    }
}
