//! Mounts a tree and looks at it as any program does, through the kernel.
#![allow(clippy::unwrap_used, clippy::panic, clippy::single_range_in_vec_init, reason = "tests")]

mod tree;

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tree::{GAP, HUGE, MANY, TestTree, pattern};
use vdrecover::mount::{Background, Gaps, MountOptions, Mounted, Started, mount};
use vdrecover::source;
use vdrecover_formats::laws::{Effort, check_laws};
use vdrecover_formats::{Place, Tag, Why, read, walk};

const EIO: Option<i32> = Some(5);

/// Nothing when this machine can't mount; then the test is skipped, by name.
fn mounted(test: &str, change: impl FnOnce(&mut MountOptions)) -> Option<(TempDir, Mounted)> {
    if !can_mount(test) {
        return None;
    }
    let dir = TempDir::new().unwrap();
    let mut options = MountOptions::new(dir.path());
    change(&mut options);
    let mounted = Mounted::new(TestTree::new(None), &options).unwrap();
    Some((dir, mounted))
}

fn can_mount(test: &str) -> bool {
    let usable =
        File::options().read(true).write(true).open("/dev/fuse").is_ok() && rustix::process::geteuid().is_root();
    if !usable {
        // The harness holds back what passing tests print to its own streams.
        let _ = writeln!(std::io::stderr(), "SKIPPED {test}: needs root and /dev/fuse");
    }
    usable
}

fn code(result: std::io::Result<impl Sized>) -> Option<i32> {
    result.err().and_then(|error| error.raw_os_error())
}

#[test]
fn files_are_what_the_tree_says() {
    let Some((dir, mounted)) = mounted("files_are_what_the_tree_says", |_| {}) else { return };
    let at = |name: &str| dir.path().join(name);
    assert_eq!(mounted.point(), dir.path().canonicalize().unwrap());
    assert_eq!(fs::read(at("small")).unwrap(), b"hello\n");
    assert_eq!(fs::read(at("link")).unwrap(), b"hello\n");
    assert_eq!(fs::read_link(at("link")).unwrap(), Path::new("small"));
    assert_eq!(fs::read(at("empty")).unwrap(), b"");
    assert_eq!(fs::read(at(&"n".repeat(600))).unwrap(), b"long");
    assert_eq!(fs::read(at("odd%2Fname")).unwrap(), b"odd");
    let old = fs::metadata(at("old")).unwrap();
    assert_eq!((old.mtime(), old.mtime_nsec()), (-2_177_452_800, 500_000_000));
    assert_eq!((old.uid(), old.gid(), old.mode()), (1234, 99, 0o100_600));
    assert_eq!(fs::metadata(dir.path()).unwrap().ino(), 1);
    assert_eq!(fs::metadata(at("end")).unwrap().len(), i64::MAX.unsigned_abs());

    let names: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(names.len() > 10);
    for name in names {
        assert!(fs::symlink_metadata(dir.path().join(&name)).is_ok(), "{} is listed but not there", name.display());
    }
    assert_eq!(code(fs::metadata(at("none"))), Some(2));
    assert_eq!(code(fs::read(at("lost"))), EIO);
    assert_eq!(code(fs::read_dir(at("small"))), Some(20));
}

#[test]
fn nothing_can_be_written() {
    let Some((dir, _mounted)) = mounted("nothing_can_be_written", |_| {}) else { return };
    let small = dir.path().join("small");
    let erofs = Some(30);
    assert_eq!(code(fs::write(&small, "x")), erofs);
    assert_eq!(code(fs::write(dir.path().join("new"), "x")), erofs);
    assert_eq!(code(fs::remove_file(&small)), erofs);
    assert_eq!(code(fs::create_dir(dir.path().join("d"))), erofs);
    assert_eq!(code(fs::rename(&small, dir.path().join("other"))), erofs);
    assert_eq!(code(fs::set_permissions(&small, fs::Permissions::from_mode(0o400))), erofs);
    let mounts = fs::read_to_string("/proc/mounts").unwrap();
    let line = mounts.lines().find(|line| line.contains(dir.path().to_str().unwrap())).unwrap();
    for option in ["fuse", "ro,", "nosuid", "nodev", "noexec", "vdrecover"] {
        assert!(line.contains(option), "{line}");
    }
}

/// Reads a file as `cat` does but goes on behind errors; gives the bytes and what failed, in pieces of `step`.
fn read_over(path: &Path, len: u64, step: usize) -> (Vec<u8>, Vec<u64>) {
    let file = File::open(path).unwrap();
    let mut all = Vec::new();
    let mut failed = Vec::new();
    for at in (0..len).step_by(step) {
        let mut buf = vec![0xee; step];
        match file.read_at(&mut buf, at) {
            Ok(count) => assert_eq!(count, step, "no short read at {at}"),
            Err(error) => {
                assert_eq!(error.raw_os_error(), EIO);
                failed.push(at);
            }
        }
        all.extend(buf);
    }
    (all, failed)
}

#[test]
fn a_gap_costs_its_pages() {
    let Some((dir, _mounted)) = mounted("a_gap_costs_its_pages", |_| {}) else { return };
    let path = dir.path().join("gap");
    let want = pattern(1 << 20);
    // In whichever order and sizes it is read, and however often.
    let mut whole = Vec::new();
    assert_eq!(code(File::open(&path).unwrap().read_to_end(&mut whole)), EIO);
    assert!(whole.len() as u64 <= GAP.start && whole[..] == want[..whole.len()]);
    let page = GAP.start / 4096 * 4096;
    for _ in 0..2 {
        let (bytes, failed) = read_over(&path, 1 << 20, 4096);
        assert_eq!(failed, [page]);
        let page = usize::try_from(page).unwrap();
        assert_eq!(bytes[..page], want[..page]);
        assert_eq!(bytes[page + 4096..], want[page + 4096..]);
    }
    assert_eq!(fs::metadata(&path).unwrap().len(), 1 << 20, "the file has its length still");
    let output = Command::new("cat").arg(&path).output().unwrap();
    assert!(!output.status.success(), "cat says so");
    let missing = rustix_xattr(&path, "user.vdrecover.missing");
    assert_eq!(missing, Some("10".to_owned()));
}

#[test]
fn a_file_shorter_than_its_node_is_an_error_and_not_an_end() {
    let Some((dir, _mounted)) = mounted("a_file_shorter_than_its_node_is_an_error_and_not_an_end", |_| {}) else {
        return;
    };
    let path = dir.path().join("short");
    assert_eq!(code(fs::read(&path)), EIO);
    assert_eq!(fs::metadata(&path).unwrap().len(), 10_000);
    let mut first = [0; 4096];
    File::open(&path).unwrap().read_exact_at(&mut first, 0).unwrap();
    assert_eq!(first[..], pattern(4096));
}

#[test]
fn exact_gaps_cost_their_bytes() {
    let Some((dir, _mounted)) = mounted("exact_gaps_cost_their_bytes", |options| options.gaps = Gaps::Exact) else {
        return;
    };
    let file = File::open(dir.path().join("gap")).unwrap();
    let want = pattern(1 << 20);
    let mut buf = vec![0; 1 << 20];
    let start = usize::try_from(GAP.start).unwrap();
    let mut at = 0;
    while at < start {
        let count = file.read_at(&mut buf[at..], at as u64).unwrap();
        assert!(count > 0);
        at += count;
    }
    assert_eq!(at, start, "a short read up to the gap");
    assert_eq!(buf[..start], want[..start]);
    for at in GAP {
        assert_eq!(code(file.read_at(&mut [0], at)), EIO);
    }
    let end = usize::try_from(GAP.end).unwrap();
    file.read_exact_at(&mut buf[end..], GAP.end).unwrap();
    assert_eq!(buf[end..], want[end..]);
    assert_eq!(file.read_at(&mut buf, 1 << 20).unwrap(), 0);
}

#[test]
fn filled_gaps_are_zeros_but_a_mapping_has_none() {
    let Some((dir, _mounted)) =
        mounted("filled_gaps_are_zeros_but_a_mapping_has_none", |options| options.gaps = Gaps::Fill)
    else {
        return;
    };
    let mut want = pattern(1 << 20);
    want[usize::try_from(GAP.start).unwrap()..usize::try_from(GAP.end).unwrap()].fill(0);
    assert!(fs::read(dir.path().join("gap")).unwrap() == want);
    assert_eq!(code(fs::read(dir.path().join("rdm"))), EIO);
}

#[test]
fn a_disk_of_42_tib_has_its_size_and_its_holes() {
    let Some((dir, _mounted)) = mounted("a_disk_of_42_tib_has_its_size_and_its_holes", |_| {}) else { return };
    let path = dir.path().join("sparse");
    let file = File::open(&path).unwrap();
    assert_eq!(file.metadata().unwrap().len(), HUGE);
    let mut end = [0; 16];
    file.read_exact_at(&mut end, HUGE - 16).unwrap();
    assert_eq!(&end, b"\0\0\0\0\0\0the end is");
    let seek = |to| rustix::fs::seek(&file, to).unwrap();
    assert_eq!(seek(rustix::fs::SeekFrom::Data(0)), HUGE - 10);
    assert_eq!(seek(rustix::fs::SeekFrom::Hole(5)), 5);
    assert_eq!(seek(rustix::fs::SeekFrom::Hole(HUGE - 5)), HUGE);
    assert!(rustix::fs::seek(&file, rustix::fs::SeekFrom::Data(HUGE)).is_err());
    assert_eq!(rustix_xattr(&path, "user.vdrecover.missing"), Some("0".to_owned()));
}

#[test]
fn a_large_directory_lists_fast() {
    let Some((dir, _mounted)) = mounted("a_large_directory_lists_fast", |_| {}) else { return };
    let many = dir.path().join("many");
    let begun = Instant::now();
    let output = Command::new("ls").arg("-f").arg(&many).output().unwrap();
    let listed = begun.elapsed();
    assert!(output.status.success());
    let lines = output.stdout.split(|byte| *byte == b'\n').filter(|line| line.starts_with(b"a file")).count();
    assert_eq!(lines as u64, MANY);
    let begun = Instant::now();
    let output = Command::new("ls").arg("-l").arg(&many).output().unwrap();
    assert!(output.status.success());
    let looked_at = begun.elapsed();
    eprintln!("100,000 entries: ls -f {listed:?}, ls -l {looked_at:?}");
    assert!(listed < Duration::from_secs(5), "{listed:?}");
    assert_eq!(fs::read(many.join("a file with number 099999")).unwrap(), b"hello\n");
}

#[test]
fn a_damaged_directory_lists_what_it_has_and_then_fails() {
    let Some((dir, _mounted)) = mounted("a_damaged_directory_lists_what_it_has_and_then_fails", |_| {}) else { return };
    for _ in 0..2 {
        let entries: Vec<_> = fs::read_dir(dir.path().join("broken")).unwrap().collect();
        let codes: Vec<_> =
            entries.iter().map(|entry| entry.as_ref().err().and_then(std::io::Error::raw_os_error)).collect();
        assert_eq!(codes, [None, None, EIO]);
    }
}

#[test]
fn a_listing_may_have_any_offsets() {
    let Some((dir, _mounted)) = mounted("a_listing_may_have_any_offsets", |_| {}) else { return };
    for _ in 0..2 {
        assert_eq!(fs::read_dir(dir.path().join("far")).unwrap().map(Result::unwrap).count(), 4);
    }
}

/// A mount with a gap is a disk with a bad sector, as good as one gets without breaking one.
#[test]
fn a_source_on_a_failing_disk_loses_what_fails() {
    let Some((dir, _mounted)) = mounted("a_source_on_a_failing_disk_loses_what_fails", |_| {}) else { return };
    let source = source::open(&dir.path().join("gap"), Tag(0)).unwrap();
    let mut bytes = vec![0xee; 1 << 20];
    let seen = read(&*source.bytes, 0, &mut bytes);
    let page = GAP.start / 4096 * 4096;
    let gaps: Vec<_> = seen.gaps.iter().map(|gap| (gap.range.clone(), gap.loss.why)).collect();
    assert_eq!(gaps, [(page..page + 4096, Why::Unreadable)]);
    let mut want = pattern(1 << 20);
    want[usize::try_from(page).unwrap()..][..4096].fill(0);
    assert!(bytes == want);
    check_laws(&*source.bytes, Effort::default()).unwrap();

    let huge = source::open(&dir.path().join("sparse"), Tag(1)).unwrap();
    let data: Vec<_> = walk(&*huge.bytes, 0..huge.len).filter(|run| matches!(run.place, Place::Own)).collect();
    assert_eq!(data.iter().map(|run| run.at..run.at + run.len).collect::<Vec<_>>(), [HUGE - 10..HUGE]);
    check_laws(&*huge.bytes, Effort::default()).unwrap();
}

#[test]
fn a_bug_costs_one_request() {
    let Some((dir, _mounted)) = mounted("a_bug_costs_one_request", |_| {}) else { return };
    for _ in 0..20 {
        assert_eq!(code(fs::read(dir.path().join("panics"))), EIO);
        assert_eq!(code(fs::read(dir.path().join("fails"))), EIO);
        assert_eq!(fs::read(dir.path().join("small")).unwrap(), b"hello\n");
    }
}

#[test]
fn many_threads_read_the_same() {
    let Some((dir, _mounted)) = mounted("many_threads_read_the_same", |options| options.threads = 4) else { return };
    let path = dir.path().join("many");
    std::thread::scope(|scope| {
        for t in 0..8 {
            let path = &path;
            scope.spawn(move || {
                for i in (t..4000).step_by(8) {
                    assert_eq!(fs::read(path.join(format!("a file with number {i:06}"))).unwrap(), b"hello\n");
                }
            });
        }
    });
}

fn rustix_xattr(path: &Path, name: &str) -> Option<String> {
    let mut value = [0; 100];
    let len = rustix::fs::getxattr(path, name, &mut value).ok()?;
    Some(String::from_utf8(value[..len].to_vec()).unwrap())
}

#[test]
fn attributes_say_what_a_file_system_has_no_place_for() {
    let Some((dir, _mounted)) = mounted("attributes_say_what_a_file_system_has_no_place_for", |_| {}) else { return };
    let old = dir.path().join("old");
    assert_eq!(rustix_xattr(&old, "user.vdrecover.state"), Some("deleted".to_owned()));
    assert_eq!(rustix_xattr(&old, "user.vdrecover.trust"), Some("doubtful".to_owned()));
    assert_eq!(rustix_xattr(&old, "user.vdrecover.missing"), Some("0".to_owned()));
    assert_eq!(rustix_xattr(&old, "user.other"), None);
    let mut names = [0; 200];
    let len = rustix::fs::listxattr(&old, &mut names).unwrap();
    assert_eq!(&names[..len], b"user.vdrecover.state\0user.vdrecover.trust\0user.vdrecover.missing\0");
    let len = rustix::fs::listxattr(dir.path(), &mut names).unwrap();
    assert_eq!(&names[..len], b"user.vdrecover.state\0user.vdrecover.trust\0");
}

#[test]
fn owners_can_be_overridden() {
    let change =
        |options: &mut MountOptions| (options.uid, options.gid, options.allow_other) = (Some(5), Some(6), true);
    let Some((dir, _mounted)) = mounted("owners_can_be_overridden", change) else { return };
    let small = fs::metadata(dir.path().join("small")).unwrap();
    assert_eq!((small.uid(), small.gid()), (5, 6));
}

#[test]
fn a_mount_point_in_use_is_refused() {
    let Some((dir, mounted)) = mounted("a_mount_point_in_use_is_refused", |_| {}) else { return };
    let error = Mounted::new(TestTree::new(None), &MountOptions::new(dir.path())).unwrap_err().to_string();
    assert!(error.contains("something is mounted here already"), "{error}");
    drop(mounted);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "dropping it unmounts");
}

#[test]
fn what_is_still_in_use_is_detached() {
    let Some((dir, mounted)) = mounted("what_is_still_in_use_is_detached", |_| {}) else { return };
    let mut file = File::open(dir.path().join("small")).unwrap();
    let closer = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(300));
        let mut text = String::new();
        file.read_to_string(&mut text).unwrap();
        text
    });
    drop(mounted);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    assert_eq!(closer.join().unwrap(), "hello\n");
}

const POINT: &str = "VDRECOVER_TEST_MOUNT_POINT";

/// Not a test of its own: what the process in the background runs.
#[test]
#[ignore = "started by a_background_mount_ends_with_a_signal"]
fn serve() {
    let Some(point) = std::env::var_os(POINT) else { return };
    if let Err(error) = mount(TestTree::new(None), &MountOptions::new(PathBuf::from(point))) {
        // Not a panic: its trace would look like a failure of the test that expects this.
        eprintln!("{error}");
        std::process::exit(1);
    }
}

#[test]
fn a_background_mount_ends_with_a_signal() {
    if !can_mount("a_background_mount_ends_with_a_signal") {
        return;
    }
    for signal in [rustix::process::Signal::TERM, rustix::process::Signal::INT, rustix::process::Signal::HUP] {
        let dir = TempDir::new().unwrap();
        let started = start(dir.path());
        let Started::Ready { pid } = started else { panic!("{started:?}") };
        assert_eq!(fs::read(dir.path().join("small")).unwrap(), b"hello\n", "there as soon as the parent goes on");
        let pid = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
        assert_eq!(rustix::process::getsid(Some(pid)).unwrap(), pid, "has let go of the terminal");
        rustix::process::kill_process(pid, signal).unwrap();
        let status = rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty()).unwrap().unwrap().1;
        assert_eq!(status.exit_status(), Some(0), "{status:?}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
    let started = start(Path::new("/nowhere"));
    assert!(matches!(started, Started::Failed(status) if !status.success()), "{started:?}");
}

fn start(point: &Path) -> Started {
    let args = ["serve", "--exact", "--ignored", "--nocapture"];
    // The environment of the child: a test must not change that of its own process.
    Background::new(args).unwrap().env(POINT, point).start().unwrap()
}
