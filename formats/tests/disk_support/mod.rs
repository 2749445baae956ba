//! What the tests of disk images share.

#![allow(dead_code, reason = "each test file uses a part of it")]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use vdrecover_formats::adapt::Memory;
use vdrecover_formats::laws::{Effort, check_laws};
use vdrecover_formats::{Bytes, Content, Memo, Opened, Place, Pool, Trust, read, read_vec, walk};

pub fn memo() -> Memo {
    Pool::new(8 << 20).share()
}

pub fn memory(bytes: Vec<u8>) -> Bytes {
    Arc::new(Memory::new(bytes))
}

pub fn load(path: &Path) -> Bytes {
    memory(std::fs::read(path).unwrap())
}

/// A packed image of the corpus.
pub fn unpack(path: &Path) -> Bytes {
    let tool = if path.extension().is_some_and(|suffix| suffix == "bz2") { "bunzip2" } else { "gunzip" };
    let done = Command::new(tool).arg("-c").arg(path).output().unwrap();
    assert!(done.status.success(), "{tool} {}", path.display());
    memory(done.stdout)
}

/// SHA-256 in hexadecimal digits.
pub fn sha256(bytes: &[u8]) -> String {
    use sha2::Digest as _;
    use std::fmt::Write as _;
    sha2::Sha256::digest(bytes).iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}

/// Opens with the row that claims the image most.
pub fn open(image: &Bytes) -> Opened {
    let format = vdrecover_formats::FORMATS.iter().max_by_key(|format| (format.probe)(&**image)).unwrap();
    (format.open)(image, &memo()).unwrap()
}

/// What opening an image finds.
pub fn codes(image: &Bytes) -> Vec<&'static str> {
    open(image).findings.iter().map(|finding| finding.code).collect()
}

/// How far all bytes of a layer can be believed.
pub fn trust_of(layer: &Bytes) -> Trust {
    read_vec(&**layer, 0, usize::try_from(layer.len()).unwrap()).1.trust
}

pub fn format_of(image: &Bytes) -> &'static str {
    vdrecover_formats::FORMATS.iter().max_by_key(|format| (format.probe)(&**image)).unwrap().name
}

pub fn disks(opened: &Opened, others: &[Option<Bytes>]) -> Vec<vdrecover_formats::link::Disk> {
    assert_eq!(opened.wants.len(), others.len(), "{:?}", opened.wants);
    match (opened.join)(others).unwrap() {
        Content::Disks(disks) => disks,
        other => panic!("no disks: {other:?}"),
    }
}

pub fn disk(image: &Bytes) -> Bytes {
    let opened = open(image);
    let others = vec![None; opened.wants.len()];
    disks(&opened, &others)[0].bytes.clone()
}

pub fn all(layer: &Bytes) -> Vec<u8> {
    let (bytes, seen) = read_vec(&**layer, 0, usize::try_from(layer.len()).unwrap());
    assert!(seen.is_whole(), "{:?}", seen.gaps);
    bytes
}

pub fn check(layer: &Bytes) {
    check_laws(&**layer, Effort { bytes: 4 << 20, ..Effort::default() }).unwrap();
    audit(layer);
}

/// The start of a full audit.
pub fn audit(layer: &Bytes) {
    let mut notes = 0;
    for part in 0..layer.parts().min(64) {
        let _ = layer.audit(part, &mut |_| {
            notes += 1;
            if notes > 100_000 { std::ops::ControlFlow::Break(()) } else { std::ops::ControlFlow::Continue(()) }
        });
    }
}

/// Offset, length, kind, trust of the merged runs of a layer.
pub fn map(layer: &Bytes) -> Vec<(u64, u64, String, Trust)> {
    let mut rows: Vec<(u64, u64, String, Trust)> = Vec::new();
    for run in walk(&**layer, 0..layer.len()) {
        let kind = match run.place {
            Place::Own => "data".to_owned(),
            Place::Coded(_) => "coded".to_owned(),
            Place::Zero => "zero".to_owned(),
            Place::Hole => "hole".to_owned(),
            Place::Lost(loss) => loss.why.word().to_owned(),
            Place::Below { .. } => panic!("a cursor gives no Below"),
        };
        match rows.last_mut() {
            Some(row) if row.2 == kind && row.3 == run.trust => row.1 += run.len,
            _ => rows.push((run.at, run.len, kind, run.trust)),
        }
    }
    rows
}

/// The gaps that a read of everything reports: offset, length, why.
pub fn gaps(layer: &Bytes) -> Vec<(u64, u64, String)> {
    let mut bytes = vec![0; usize::try_from(layer.len()).unwrap()];
    let seen = read(&**layer, 0, &mut bytes);
    seen.gaps
        .iter()
        .map(|gap| (gap.range.start, gap.range.end - gap.range.start, gap.loss.why.word().to_owned()))
        .collect()
}

pub fn findings(layer: &Bytes) -> Vec<&'static str> {
    let mut codes = Vec::new();
    for part in 0..layer.parts() {
        let _ = layer.audit(part, &mut |note| {
            if let vdrecover_formats::Note::Finding(finding) = note {
                codes.push(finding.code);
            }
            std::ops::ControlFlow::Continue(())
        });
    }
    codes
}

/// A folder that goes away.
pub struct Folder(pub PathBuf);

impl Folder {
    pub fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("vdrecover-formats-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    pub fn write(&self, name: &str, bytes: &[u8]) {
        std::fs::write(self.path(name), bytes).unwrap();
    }

    /// Runs a tool here and gives its output.
    pub fn run(&self, tool: &str, args: &[&str]) -> String {
        let done = Command::new(tool).args(args).current_dir(&self.0).output().unwrap();
        let text = String::from_utf8_lossy(&done.stderr);
        assert!(done.status.success(), "{tool} {args:?}: {text}");
        String::from_utf8_lossy(&done.stdout).into_owned()
    }

    pub fn load(&self, name: &str) -> Bytes {
        load(&self.path(name))
    }

    /// What qemu-img makes of an image.
    pub fn raw(&self, args: &[&str]) -> Vec<u8> {
        let mut all = vec!["convert", "-O", "raw"];
        all.extend(args);
        all.push("oracle.raw");
        self.run("qemu-img", &all);
        std::fs::read(self.path("oracle.raw")).unwrap()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Whether a tool is there; says so where it is not.
pub fn has(tool: &str, test: &str) -> bool {
    let found = Command::new(tool).arg("--version").output().is_ok();
    if !found {
        skipped(&format!("{test}: {tool} is not installed"));
    }
    found
}

/// A folder of real images, which `VDRECOVER_CORPUS` names.
pub fn corpus(test: &str, path: &str) -> Option<PathBuf> {
    let found = std::env::var_os("VDRECOVER_CORPUS").map(|root| Path::new(&root).join(path)).filter(|p| p.exists());
    if found.is_none() {
        skipped(&format!("{test}: VDRECOVER_CORPUS has no {path}"));
    }
    found
}

/// Numbers with a fixed seed.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub fn below(&mut self, n: usize) -> usize {
        usize::try_from(self.next() % n as u64).unwrap()
    }
}

/// A disk with text, noise and holes, of a length that is a multiple of the sector only.
pub fn sample(len: usize) -> Vec<u8> {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let mut bytes = vec![0; len];
    let mut at = 0;
    while at < len {
        let piece = (1 + random.below(96)) * 1024;
        let end = (at + piece).min(len);
        match random.below(4) {
            0 => {}
            1 => bytes[at..end].iter_mut().for_each(|byte| *byte = random.next() as u8),
            2 => bytes[at..end].iter_mut().enumerate().for_each(|(i, byte)| *byte = b'a' + (i / 7 % 23) as u8),
            _ => bytes[at..end].fill(0x5a),
        }
        at = end;
    }
    bytes[len - 1] = 1;
    bytes
}

/// Patches images at random and checks that every outcome is lawful.
pub fn mutate(image: &[u8], rounds: usize, span: usize, open: impl Fn(&Bytes) -> Option<Bytes>) {
    let mut random = Random(0x1234_5678_9abc_def1);
    for _ in 0..rounds {
        let mut bytes = image.to_vec();
        for _ in 0..=random.below(4) {
            let at = random.below(span.min(bytes.len()));
            match random.below(4) {
                0 => bytes[at] = random.next() as u8,
                1 => bytes[at] ^= 1 << random.below(8),
                2 => bytes[at..].iter_mut().take(8).for_each(|byte| *byte = 0xff),
                _ => {
                    let keep = 1 + random.below(bytes.len());
                    if random.below(8) == 0 {
                        bytes.truncate(keep);
                    }
                }
            }
            if bytes.is_empty() {
                break;
            }
        }
        if let Some(layer) = open(&memory(bytes)) {
            let effort = Effort { runs: 400, bytes: 256 << 10 };
            check_laws(&*layer, effort).unwrap();
            audit(&layer);
        }
    }
}

/// Tells that a test did not run, past the harness, which keeps what a passing test prints to itself.
fn skipped(why: &str) {
    use std::io::Write;
    let _ = writeln!(std::io::stderr(), "SKIPPED {why}");
}
