#![allow(clippy::unwrap_used, clippy::panic, clippy::single_range_in_vec_init, reason = "tests")]
use super::*;
use crate::testing::skipped;
use std::fs;
use std::os::unix::fs::{FileExt, symlink};
use tempfile::TempDir;
use vdrecover_formats::laws::{Effort, check_laws};
use vdrecover_formats::{Place, read, walk};

const TAG: Tag = Tag(3);

fn write(dir: &TempDir, name: &str, bytes: &[u8]) -> PathBuf {
    let path = dir.path().join(name);
    fs::write(&path, bytes).unwrap();
    path
}

fn opened(path: &Path) -> Source {
    let source = open(path, TAG).unwrap();
    assert_eq!(source.len, source.bytes.len());
    check_laws(&*source.bytes, Effort::default()).unwrap();
    source
}

fn refused(path: &Path) -> String {
    let error = format!("{:#}", open(path, TAG).unwrap_err());
    assert!(error.starts_with(path.to_str().unwrap()), "names the place: {error}");
    assert!(!error.contains('\n'), "one line: {error}");
    error
}

fn codes(source: &Source) -> Vec<&str> {
    source.findings.iter().map(|finding| finding.code).collect()
}

fn pattern(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|i| u8::try_from(i % 253).unwrap() ^ seed | 1).collect()
}

#[test]
fn a_file_is_its_bytes() {
    let dir = TempDir::new().unwrap();
    let bytes = pattern(100_001, 9);
    let path = write(&dir, "disk.img", &bytes);
    let source = opened(&path);
    assert_eq!((source.kind.clone(), source.len, source.sector), (SourceKind::File, 100_001, 512));
    assert_eq!(source.bytes.tag(), Some(TAG));
    assert_eq!(codes(&source), [""; 0]);
    assert_eq!(source.modified, Some(fs::metadata(&path).unwrap().modified().unwrap()));
    let mut buf = vec![0; 100_001];
    assert!(read(&*source.bytes, 0, &mut buf).is_whole());
    assert_eq!(buf, bytes);
    source.bytes.advise(&[0..4096, 5..5]);

    let link = dir.path().join("link");
    symlink(&path, &link).unwrap();
    assert_eq!(opened(&link).identity, source.identity);
}

#[test]
fn an_input_is_open_for_reading_only() {
    let dir = TempDir::new().unwrap();
    let input = Input::open(&write(&dir, "disk.img", b"x")).unwrap();
    let flags = rustix::fs::fcntl_getfl(&input.fd).unwrap();
    assert_eq!(flags & rustix::fs::OFlags::RWMODE, rustix::fs::OFlags::RDONLY);
    assert!(rustix::io::write(&input.fd, b"y").is_err());
}

#[test]
fn what_is_no_input_is_refused_with_a_reason() {
    let dir = TempDir::new().unwrap();
    let fifo = dir.path().join("fifo");
    rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, rustix::fs::Mode::RUSR).unwrap();
    let socket = dir.path().join("socket");
    let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let looped = dir.path().join("loop");
    symlink(&looped, &looped).unwrap();
    let table = [
        (dir.path().join("none"), "no such file"),
        (write(&dir, "file", b"x").join("below"), "not a directory"),
        (write(&dir, "empty", b""), "is empty: 0 bytes"),
        (dir.path().to_owned(), "is a directory"),
        (fifo, "is a pipe"),
        (socket, "is a socket"),
        (PathBuf::from("/dev/zero"), "is a character device"),
        (looped, "symbolic link"),
    ];
    for (path, want) in table {
        let error = refused(&path);
        assert!(error.contains(want), "{error}");
    }
}

#[test]
fn holes_are_in_the_map() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("sparse.img");
    let file = fs::File::create(&path).unwrap();
    file.set_len(1 << 30).unwrap();
    file.write_all_at(&[1; 4096], 1 << 20).unwrap();
    file.write_all_at(&[2; 4096], 512 << 20).unwrap();
    let source = opened(&path);
    let holes: u64 =
        walk(&*source.bytes, 0..source.len).filter(|run| matches!(run.place, Place::Hole)).map(|run| run.len).sum();
    if holes == 0 {
        skipped("holes_are_in_the_map: the file system of the temporary folder has no holes");
        return;
    }
    assert!(holes >= (1 << 30) - (4 << 20), "{holes}");
    assert_eq!(codes(&source), ["SOURCE-HOLES"]);
    let mut buf = [9; 2];
    assert!(read(&*source.bytes, (1 << 20) - 1, &mut buf).is_whole());
    assert_eq!(buf, [0, 1]);

    let map = Mapfile::parse(b"0 +\n0 0x20000000 +\n").unwrap();
    let mapped = source.with_map(&map, 0);
    assert_eq!(codes(&mapped), ["SOURCE-MAP-PART"], "the map answers for the holes");
    let seen = read(&*mapped.bytes, 512 << 20, &mut buf);
    assert_eq!((buf, seen.gaps[0].loss.why), ([0, 0], Why::Unreadable), "not in the map");
    check_laws(&*mapped.bytes, Effort::default()).unwrap();
}

#[test]
fn a_huge_sparse_file_opens_at_once() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("huge.img");
    // 15 TiB is what ext4 takes; a file system that takes less is none for this test.
    if fs::File::create(&path).unwrap().set_len(15 << 40).is_err() {
        skipped("a_huge_sparse_file_opens_at_once: no files of 15 TiB here");
        return;
    }
    assert_eq!(opened(&path).len, 15 << 40);
}

#[test]
fn a_file_that_becomes_shorter_is_truncated() {
    let dir = TempDir::new().unwrap();
    let dense = write(&dir, "dense.img", &pattern(100_000, 1));
    let sparse = dir.path().join("sparse.img");
    fs::File::create(&sparse).unwrap().set_len(100_000).unwrap();
    for path in [dense, sparse] {
        let source = opened(&path);
        fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(10_000).unwrap();
        let mut buf = vec![7; 100_000];
        let seen = read(&*source.bytes, 0, &mut buf);
        assert_eq!(source.bytes.len(), 100_000, "fixed for life");
        assert_eq!(seen.gaps.len(), 1, "{}", path.display());
        assert_eq!((seen.gaps[0].range.clone(), seen.gaps[0].loss.why), (10_000..100_000, Why::Truncated));
    }
}

#[test]
fn a_block_device_tells_its_size() {
    let dir = TempDir::new().unwrap();
    let path = write(&dir, "disk.img", &pattern(1 << 20, 5));
    let output = std::process::Command::new("losetup").args(["-r", "-f", "--show"]).arg(&path).output();
    let Some(output) = output.ok().filter(|output| output.status.success()) else {
        skipped("a_block_device_tells_its_size: losetup can't set up a loop device (needs root)");
        return;
    };
    let device = PathBuf::from(String::from_utf8(output.stdout).unwrap().trim());
    let source = open(&device, TAG);
    let laws = source.as_ref().map(|source| check_laws(&*source.bytes, Effort::default()));
    std::process::Command::new("losetup").arg("-d").arg(&device).status().unwrap();
    laws.unwrap().unwrap();
    let source = source.unwrap();
    assert_eq!((source.kind, source.len, source.modified), (SourceKind::BlockDevice, 1 << 20, None));
    assert!(matches!(source.identity, Identity::Device { .. }));
}
