//! Every command in the README, run as it stands there.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs, reason = "tests")]

mod common;

use common::skip;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

/// The lines of the README's `sh` blocks.
fn commands() -> Vec<String> {
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")).unwrap();
    let blocks = text.split("```sh\n").skip(1).map(|rest| rest.split("```").next().unwrap());
    blocks.flat_map(|block| block.lines().map(str::to_owned).collect::<Vec<_>>()).collect()
}

#[test]
fn every_command_of_the_readme_does_what_it_says() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folder = tempfile::tempdir().unwrap();
    let bin = folder.path().join("bin");
    fs::create_dir(&bin).unwrap();
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_vdrecover"), bin.join("vdrecover")).unwrap();
    let home = folder.path().join("work");
    fs::create_dir_all(home.join("testdata")).unwrap();
    // A copy: the case folder of an example may not lie beside the evidence of this checkout.
    let demo = home.join("testdata/demo");
    fs::create_dir(&demo).unwrap();
    for entry in fs::read_dir(root.join("testdata/demo")).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), demo.join(entry.file_name())).unwrap();
    }
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
    let fuse = fs::OpenOptions::new().read(true).write(true).open("/dev/fuse").is_ok();
    let commands = commands();
    assert!(commands.len() > 15, "{commands:?}");
    for command in commands {
        // Running the tests is what happens here.
        if command.starts_with("cargo test") {
            continue;
        }
        let mounts = command.contains("vdrecover mount") || command.contains(" view/") || command.starts_with("umount");
        if mounts && !fuse {
            skip("readme", &format!("/dev/fuse can't be opened: {command}"));
            continue;
        }
        let line = command.replace("cargo run --release --", "vdrecover");
        let output = Command::new("sh")
            .args(["-c", &line])
            .env("PATH", &path)
            .current_dir(&home)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let told = String::from_utf8_lossy(&output.stderr);
        // What was deleted is inferred at best, and whoever asks for it is told.
        let asks_for_finds = command.contains("--what found") || command.contains("::found/");
        let good = output.status.success() || asks_for_finds && output.status.code() == Some(1);
        assert!(good, "{command}: {}\n{told}", output.status);
    }
    assert!(home.join("everything/manifest.jsonl").exists());
    assert_eq!(fs::metadata(home.join("before.raw")).unwrap().len(), 128 << 20);
}
