//! What the tests of the program share: the program itself, the corpus, and how a test is skipped.
#![allow(dead_code, reason = "each test uses a part of it")]

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// Tells that a test did not run. A test that needs something absent says so by name and proves nothing.
pub(crate) fn skip(test: &str, reason: &str) {
    // Past the harness, which keeps what a passing test prints to itself.
    let _ = writeln!(io::stderr(), "SKIPPED {test}: {reason}");
}

/// Runs the program.
pub(crate) fn vdrecover<I: IntoIterator<Item = S>, S: AsRef<OsStr>>(args: I) -> Output {
    Command::new(env!("CARGO_BIN_EXE_vdrecover")).args(args).stdin(Stdio::null()).output().unwrap()
}

/// Runs the program and expects an exit code; what it wrote to stdout.
#[track_caller]
pub(crate) fn expect<I: IntoIterator<Item = S>, S: AsRef<OsStr>>(code: i32, args: I) -> Vec<u8> {
    let output = vdrecover(args);
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "stderr: {told}");
    assert!(!told.contains("panicked"), "{told}");
    output.stdout
}

/// As [`expect`], with the records of a `--json` run.
#[track_caller]
pub(crate) fn records<I: IntoIterator<Item = S>, S: AsRef<OsStr>>(code: i32, args: I) -> Vec<serde_json::Value> {
    let out = expect(code, args);
    let lines = out.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    lines.map(|line| serde_json::from_slice(line).unwrap()).collect()
}

/// The project's own demo image.
pub(crate) fn demo() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/demo/datastore.qcow2")
}

/// A file of the corpus, as it is there; `None` and a word why if there is no corpus.
pub(crate) fn corpus(test: &str, name: &str) -> Option<PathBuf> {
    let Some(folder) = std::env::var_os("VDRECOVER_CORPUS") else {
        skip(test, "VDRECOVER_CORPUS is not set");
        return None;
    };
    let path = Path::new(&folder).join(name);
    if !path.exists() {
        skip(test, &format!("the corpus has no {name}"));
        return None;
    }
    Some(path)
}

/// A gzipped image of the corpus, unpacked sparsely, once for all tests and runs.
pub(crate) fn unpacked(test: &str, name: &str) -> Option<PathBuf> {
    let packed = corpus(test, name)?;
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("corpus");
    let file_name = packed.file_stem().unwrap();
    let path = folder.join(file_name);
    if path.exists() {
        return Some(path);
    }
    fs::create_dir_all(&folder).unwrap();
    // Another test may do the same at the same time; whoever is last renames the same content.
    let mut part = tempfile::NamedTempFile::new_in(&folder).unwrap();
    unpack(&packed, part.as_file_mut()).unwrap();
    part.persist(&path).unwrap();
    Some(path)
}

fn unpack(packed: &Path, out: &mut File) -> io::Result<()> {
    let mut from = flate2::read::GzDecoder::new(File::open(packed)?);
    let mut block = vec![0; 64 << 10];
    let mut at = 0;
    loop {
        let mut len = 0;
        while len < block.len() {
            match from.read(&mut block[len..])? {
                0 => break,
                n => len += n,
            }
        }
        if block[..len].iter().any(|byte| *byte != 0) {
            out.seek(SeekFrom::Start(at))?;
            out.write_all(&block[..len])?;
        }
        at += len as u64;
        if len < block.len() {
            return out.set_len(at);
        }
    }
}

/// A program of the machine, if it is there and says yes to `args`.
pub(crate) fn tool(test: &str, program: &str, args: &[&str]) -> bool {
    let found = Command::new(program).args(args).stdin(Stdio::null()).output();
    let there = found.is_ok_and(|output| output.status.success());
    if !there {
        skip(test, &format!("{program} {} does not run", args.join(" ")));
    }
    there
}
