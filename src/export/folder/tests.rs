//! Trees with everything that a hostile or broken image can have in them.
#![allow(clippy::unwrap_used, clippy::panic, clippy::single_range_in_vec_init, reason = "tests")]

use super::*;
use crate::digest::{hex, sha256};
use crate::export::Hashing;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::sync::atomic::{AtomicUsize, Ordering};
use vdrecover_formats::adapt::{Blank, Concat, Damaged, Memory};
use vdrecover_formats::tree::Lister;
use vdrecover_formats::{Bytes, Entry, Error, Kind, Node, State, Why};

/// A name and its node.
type Row = (Vec<u8>, u64);

/// Nodes by number; 0 is the root.
#[derive(Debug, Default)]
struct Toy {
    nodes: Vec<(Node, Vec<Row>, Option<Bytes>)>,
    attrs: Vec<(u64, Vec<u8>, u64)>,
    opened: AtomicUsize,
    stop_at: Option<(usize, std::sync::Arc<std::sync::atomic::AtomicBool>)>,
    broken: Option<u64>,
}

impl Toy {
    fn new() -> Self {
        let mut toy = Self::default();
        toy.add(Node::plain(Kind::Dir, 0, 0o755), None);
        toy
    }

    fn add(&mut self, node: Node, bytes: Option<Bytes>) -> u64 {
        self.nodes.push((node, Vec::new(), bytes));
        self.nodes.len() as u64 - 1
    }

    fn link(&mut self, dir: u64, name: impl AsRef<[u8]>, node: u64) {
        self.nodes[usize::try_from(dir).unwrap()].1.push((name.as_ref().to_vec(), node));
    }

    fn dir(&mut self, within: u64, name: impl AsRef<[u8]>) -> u64 {
        let node = self.add(Node::plain(Kind::Dir, 0, 0o750), None);
        self.link(within, name, node);
        node
    }

    fn layer(&mut self, dir: u64, name: impl AsRef<[u8]>, layer: Bytes) -> u64 {
        let node = self.add(Node::plain(Kind::File, layer.len(), 0o640), Some(layer));
        self.link(dir, name, node);
        node
    }

    fn file(&mut self, dir: u64, name: impl AsRef<[u8]>, text: &str) -> u64 {
        self.layer(dir, name, Arc::new(Memory::new(text.as_bytes().to_vec())))
    }

    fn of(&mut self, dir: u64, name: impl AsRef<[u8]>, kind: Kind, text: &[u8]) -> u64 {
        let node = self.add(Node::plain(kind, text.len() as u64, 0o777), Some(Arc::new(Memory::new(text.to_vec()))));
        self.link(dir, name, node);
        node
    }

    fn change(&mut self, node: u64) -> &mut Node {
        &mut self.nodes[usize::try_from(node).unwrap()].0
    }

    fn entry(&self, name: &[u8], id: u64, next: u64) -> Entry {
        let kind = self.nodes.get(usize::try_from(id).unwrap()).map_or(Kind::File, |node| node.0.kind);
        Entry { name: name.to_vec(), id: NodeId(id), kind, state: State::Live, next }
    }
}

impl Tree for Toy {
    fn root(&self) -> NodeId {
        NodeId(0)
    }

    fn node(&self, id: NodeId) -> Result<Node, Error> {
        self.nodes.get(usize::try_from(id.0).unwrap()).map(|node| node.0.clone()).ok_or(Error::NotFound)
    }

    fn list(&self, dir: NodeId, from: u64, sink: Lister<'_>) -> Result<(), Error> {
        let rows = &self.nodes[usize::try_from(dir.0).unwrap()].1;
        for (i, (name, id)) in rows.iter().enumerate().skip(usize::try_from(from).unwrap()) {
            if sink(Ok(self.entry(name, *id, i as u64 + 1))).is_break() {
                return Ok(());
            }
        }
        if self.broken == Some(dir.0) { Err(Error::corrupt("directory block", 7, "garbage")) } else { Ok(()) }
    }

    fn lookup(&self, _: NodeId, _: &[u8]) -> Result<Option<Entry>, Error> {
        Ok(None)
    }

    fn attrs(&self, id: NodeId) -> Vec<Entry> {
        let mine = self.attrs.iter().filter(|(of, ..)| *of == id.0);
        mine.map(|(_, name, node)| self.entry(name, *node, 0)).collect()
    }

    fn open(&self, id: NodeId) -> Result<Bytes, Error> {
        let opened = self.opened.fetch_add(1, Ordering::SeqCst);
        if let Some((at, flag)) = &self.stop_at {
            flag.store(opened >= *at, Ordering::SeqCst);
        }
        self.nodes[usize::try_from(id.0).unwrap()].2.clone().ok_or(Error::NotFile)
    }
}

fn options() -> FolderOptions {
    FolderOptions { source: "disk:/p1".into(), ..FolderOptions::default() }
}

fn to(dest: &Path, toy: &Toy, options: &FolderOptions) -> anyhow::Result<Foldered> {
    export_folder(toy, NodeId(0), dest, &Evidence::default(), options, &Progress::silent())
}

fn lines(dest: &Path) -> Vec<Value> {
    let text = fs::read_to_string(dest.join(MANIFEST)).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn line(dest: &Path, path: &str) -> Value {
    let found = lines(dest).into_iter().find(|line| line["path"] == path);
    found.unwrap_or_else(|| panic!("no line for {path}"))
}

fn names(dir: &Path) -> Vec<String> {
    let name = |entry: std::io::Result<fs::DirEntry>| entry.unwrap().file_name().into_string().unwrap();
    let mut names: Vec<_> = fs::read_dir(dir).unwrap().map(name).collect();
    names.sort();
    names
}

/// All files below `dir` with their bytes and modes.
fn content(dir: &Path) -> Vec<(PathBuf, u32, i64, Vec<u8>)> {
    let mut all = Vec::new();
    let mut todo = vec![dir.to_path_buf()];
    while let Some(path) = todo.pop() {
        let meta = path.symlink_metadata().unwrap();
        let bytes = if meta.is_dir() {
            todo.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
            Vec::new()
        } else if meta.is_symlink() {
            fs::read_link(&path).unwrap().into_os_string().into_encoded_bytes()
        } else {
            fs::read(&path).unwrap()
        };
        // Only what the image says of times.
        let time = if meta.is_file() { meta.mtime() } else { 0 };
        let manifest = path.ends_with(MANIFEST);
        all.push((path.strip_prefix(dir).unwrap().into(), meta.mode(), if manifest { 0 } else { time }, bytes));
    }
    all.sort();
    all
}

#[test]
fn files_folders_and_links_as_they_were() {
    let mut toy = Toy::new();
    let sub = toy.dir(0, "sub");
    let hello = toy.file(sub, "hello", "hello");
    *toy.change(hello) =
        Node { mode: 0o4711, modified: Some(1_234_567_890_123_456_789), links: 2, ..toy.change(hello).clone() };
    toy.link(0, "again", hello);
    toy.change(sub).modified = Some(-1_000_000_001);
    toy.of(0, "passwd", Kind::Symlink, b"/etc/passwd");
    toy.of(0, "rdm", Kind::Mapping, b"");
    toy.of(0, "tty", Kind::Special, b"");
    let zone = toy.add(Node::plain(Kind::Stream, 4, 0), Some(Arc::new(Memory::new(b"zone".to_vec()))));
    let acl = toy.add(Node::plain(Kind::Xattr, 3, 0), Some(Arc::new(Memory::new(b"acl".to_vec()))));
    toy.attrs = vec![(hello, b"Zone".to_vec(), zone), (hello, b"user.acl".to_vec(), acl)];
    let dir = tempfile::tempdir().unwrap();
    let dest = dir.path().join("out");
    let done = to(&dest, &toy, &FolderOptions { attributes: true, ..options() }).unwrap();
    assert!(done.is_sound(), "{done:?}");
    assert_eq!(names(&dest), ["again", MANIFEST, "passwd", "sub"]);
    assert_eq!(names(&dest.join("sub")), ["hello", "hello:Zone"]);
    let meta = fs::metadata(dest.join("sub/hello")).unwrap();
    assert_eq!((meta.permissions().mode() & 0o7777, meta.nlink()), (0o711, 2));
    assert_eq!((meta.mtime(), meta.mtime_nsec()), (1_234_567_890, 123_456_789));
    assert_eq!(fs::metadata(dest.join("sub")).unwrap().mtime(), -2);
    assert_eq!(fs::read_link(dest.join("passwd")).unwrap(), Path::new("/etc/passwd"));
    let paths: Vec<_> = lines(&dest).iter().map(|line| line["path"].as_str().unwrap().to_string()).collect();
    assert_eq!(paths, ["sub", "sub/hello", "sub/hello:Zone", "sub/hello:user.acl", "again", "passwd", "rdm", "tty"]);
    assert_eq!(line(&dest, "sub/hello")["sha256"], hex(&sha256(b"hello")));
    assert_eq!(line(&dest, "sub/hello")["mode"], "4711");
    assert_eq!(line(&dest, "sub/hello")["source"], "disk:/p1/sub/hello");
    assert_eq!(line(&dest, "again")["link"], "sub/hello");
    assert_eq!(line(&dest, "passwd")["target"], "/etc/passwd");
    assert_eq!(line(&dest, "sub/hello:user.acl")["value_b64"], "YWNs");
    assert!(line(&dest, "rdm")["reason"].as_str().unwrap().contains("another LUN"));
}

#[test]
fn names_lead_nowhere() {
    let mut toy = Toy::new();
    for name in [
        &b"../../x"[..],
        b"..",
        b".",
        b"",
        b"/etc/x",
        b"a\0b",
        b"\x1b[31m",
        b"manifest.jsonl",
        b"NUL",
        b"twin",
        b"twin",
    ] {
        toy.file(0, name, "x");
    }
    toy.file(0, b"z".repeat(300), "x");
    // A link with the name of a folder that follows: nothing is written through it.
    toy.of(0, "door", Kind::Symlink, b"..");
    let door = toy.dir(0, "door");
    toy.file(door, "planted", "x");
    let dir = tempfile::tempdir().unwrap();
    let dest = dir.path().join("out");
    let done = to(&dest, &toy, &options()).unwrap();
    assert_eq!((done.tally.files, done.tally.failed), (13, 0));
    assert_eq!(names(dir.path()), ["out"]);
    let got = names(&dest);
    assert_eq!(got.len(), 15);
    for want in ["%", "%2E", "%2E%2E", "..%2F..%2Fx", "_NUL", "manifest~2.jsonl", "twin", "door", "a%00b"] {
        assert!(got.iter().any(|name| name == want), "{want} in {got:?}");
    }
    assert_eq!(line(&dest, "..%2F..%2Fx")["original_b64"], manifest::base64(b"../../x"));
}

#[test]
fn damage_and_failures_do_not_stop_it() {
    let mut toy = Toy::new();
    let whole: Bytes = Arc::new(Memory::new(vec![7; 100_000]));
    toy.layer(0, "torn", Arc::new(Damaged::new(whole, vec![10..20, 50_000..60_000], Why::Unreadable)));
    toy.link(0, "gone", 999);
    let empty = toy.add(Node::plain(Kind::File, 5, 0o600), None);
    toy.link(0, "closed", empty);
    let loop_ = toy.dir(0, "loop");
    toy.link(loop_, "self", loop_);
    toy.link(loop_, "root", 0);
    let data: Bytes = Arc::new(Memory::new(vec![9; 512]));
    let huge: Vec<Bytes> = vec![Arc::new(Blank::zero(42 << 40)), data];
    toy.layer(0, "huge", Arc::new(Concat::new(huge).unwrap()));
    toy.broken = Some(loop_);
    toy.file(0, "last", "x");
    let dir = tempfile::tempdir().unwrap();
    let dest = dir.path().join("out");
    let done = to(&dest, &toy, &options()).unwrap();
    assert!(!done.is_sound());
    assert_eq!((done.tally.damaged, done.tally.lost_bytes), (1, 10_010));
    assert_eq!(fs::read(dest.join("last")).unwrap(), b"x");
    let torn = line(&dest, "torn");
    assert_eq!(torn["missing"], serde_json::json!([[10, 10, "unreadable"], [50_000, 10_000, "unreadable"]]));
    assert_eq!(torn["map"], "torn.vdrecover.map");
    assert!(fs::read_to_string(dest.join("torn.vdrecover.map")).unwrap().contains("0x0000000A  0x0000000A  -"));
    for failed in ["gone", "closed", "loop/self", "loop/root"] {
        assert!(line(&dest, failed)["error"].is_string(), "{failed}");
    }
    // ext4 has no files of 42 TiB, others have.
    assert!(line(&dest, "huge")["error"].is_string() || fs::metadata(dest.join("huge")).unwrap().blocks() < 100);
    assert!(done.findings.iter().any(|finding| finding.text.contains("garbage")), "{done:?}");
}

fn many(count: usize) -> Toy {
    let mut toy = Toy::new();
    let mut dir = 0;
    for i in 0..count {
        if i % 1000 == 0 {
            dir = toy.dir(if i % 3000 == 0 { 0 } else { dir }, format!("dir {i}"));
        }
        let file = toy.file(dir, format!("file {i}"), &format!("{i}").repeat(i % 50));
        toy.change(file).modified = Some(i as i128 * 1_000_000_000);
    }
    toy
}

#[test]
fn the_same_from_any_number_of_threads() {
    let toy = many(1500);
    let dir = tempfile::tempdir().unwrap();
    let with = |threads: usize, dest: &Path| {
        let export = ExportOptions { threads, ..ExportOptions::default() };
        to(dest, &toy, &FolderOptions { export, ..options() }).unwrap()
    };
    let (one, seven) = (dir.path().join("one"), dir.path().join("seven"));
    let done = with(1, &one);
    let other = with(7, &seven);
    assert_eq!(Foldered { manifest: done.manifest.clone(), ..other }, done);
    assert!(content(&one) == content(&seven));
}

#[test]
fn ten_thousand_files() {
    let toy = many(10_000);
    let dir = tempfile::tempdir().unwrap();
    let dest = dir.path().join("out");
    let done = to(&dest, &toy, &options()).unwrap();
    assert_eq!((done.tally.files, done.tally.folders), (10_000, 10));
    assert!(done.is_sound());
    assert_eq!(lines(&dest).len(), 10_010);
}

#[test]
fn an_interrupted_export_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let dest = dir.path().join("out");
    let export = ExportOptions { identity: Some("disk".into()), threads: 3, ..ExportOptions::default() };
    let options = FolderOptions { export, ..options() };
    let mut stops = 0;
    let done = loop {
        let progress = Progress::silent();
        let mut toy = many(2000);
        let large = toy.layer(0, "large", Arc::new(Memory::new(vec![5; 40 << 20])));
        toy.change(large).modified = Some(0);
        toy.stop_at = Some((700, progress.stop_flag()));
        match export_folder(&toy, NodeId(0), &dest, &Evidence::default(), &options, &progress) {
            Ok(done) => break done,
            Err(error) => assert!(matches!(error.downcast_ref(), Some(Refused::Stopped)), "{error:#}"),
        }
        assert!(!dest.join(MANIFEST).exists());
        stops += 1;
        assert!(stops < 10);
    };
    assert!(stops > 1 && done.resumed > 600, "{stops} {}", done.resumed);
    assert_eq!((done.tally.files, done.tally.folders), (2001, 2));
    let mut toy = many(2000);
    let large = toy.layer(0, "large", Arc::new(Memory::new(vec![5; 40 << 20])));
    toy.change(large).modified = Some(0);
    let once = dir.path().join("once");
    to(&once, &toy, &options).unwrap();
    assert!(content(&once) == content(&dest));
}

#[test]
fn an_existing_folder_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let toy = many(3);
    fs::write(dir.path().join("mine"), "mine").unwrap();
    let refused = to(dir.path(), &toy, &options()).unwrap_err();
    assert!(matches!(refused.downcast_ref(), Some(Refused::Exists(_))));
    assert_eq!(names(dir.path()), ["mine"]);
    let empty = dir.path().join("empty");
    fs::create_dir(&empty).unwrap();
    assert!(to(&empty, &toy, &options()).unwrap().is_sound());
    let evidence = Evidence::of(&[dir.path()]).unwrap();
    let inside = dir.path().join("new/one");
    let refused = export_folder(&toy, NodeId(0), &inside, &evidence, &options(), &Progress::silent()).unwrap_err();
    assert!(matches!(refused.downcast_ref(), Some(Refused::Evidence { .. })));
    assert!(!dir.path().join("new").exists());
    let forced = FolderOptions { export: ExportOptions { force: true, ..ExportOptions::default() }, ..options() };
    assert!(to(&empty, &toy, &forced).unwrap().is_sound());
}

#[test]
fn folders_in_folders_without_end() {
    let mut toy = Toy::new();
    let mut dir = 0;
    for _ in 0..1500 {
        dir = toy.dir(dir, "d".repeat(20));
        toy.file(dir, "file", "x");
    }
    let home = tempfile::tempdir().unwrap();
    let dest = home.path().join("out");
    let done = to(&dest, &toy, &options()).unwrap();
    assert_eq!((done.tally.folders, done.tally.files, done.tally.failed), (1023, 1023, 1));
    // Too deep for the temporary folder's own clean-up by path.
    let removed = std::process::Command::new("rm").arg("-rf").arg(&dest).status().unwrap();
    assert!(removed.success());
}

#[test]
fn a_plan_counts_without_writing() {
    let mut toy = many(100);
    let data: Bytes = Arc::new(Memory::new(vec![9; 512]));
    let huge: Vec<Bytes> = vec![Arc::new(Blank::zero(42 << 40)), data];
    let huge = toy.layer(0, "huge", Arc::new(Concat::new(huge).unwrap()));
    toy.change(huge).links = 2;
    toy.link(0, "huge again", huge);
    toy.of(0, "link", Kind::Symlink, b"x");
    let dir = tempfile::tempdir().unwrap();
    let plan = plan(&toy, NodeId(0), &dir.path().join("out/deep"), &Progress::silent());
    assert_eq!((plan.files, plan.folders, plan.others, plan.failed), (101, 2, 1, 0));
    assert!(plan.bytes > 42 << 40 && plan.data < 10_000 && plan.free.is_some());
    assert!(names(dir.path()).is_empty());
}

#[test]
fn no_hash_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let dest = dir.path().join("out");
    let export = ExportOptions { hash: Hashing::UpTo(2), ..ExportOptions::default() };
    let mut toy = Toy::new();
    toy.file(0, "long", "long");
    toy.file(0, "ab", "ab");
    to(&dest, &toy, &FolderOptions { export, ..options() }).unwrap();
    assert!(line(&dest, "long")["sha256"].is_null());
    assert!(line(&dest, "long")["sha256_reason"].as_str().unwrap().contains("hash limit of 2"));
    assert_eq!(line(&dest, "ab")["sha256"], hex(&sha256(b"ab")));
}
