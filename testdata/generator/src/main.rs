//! `make-testdata`: writes the fixtures.

use std::path::Path;
use std::process::ExitCode;
use vdrecover_testdata::{demo, disks, samples, vmdk_cases};

const USAGE: &str = "usage: make-testdata samples -o DIR [NAME]   scenario datastores whose name contains NAME
       make-testdata disks -o DIR            scenario disk images, and the raw disks in them
       make-testdata cases -o DIR            hard VMDK images, a folder each, and the raw disks in them
       make-testdata demo -o DIR             the demo image and what is in it (needs mkfs.ext4 and debugfs)";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let done = match args[..] {
        ["samples", "-o", dir] => samples::write(Path::new(dir), ""),
        ["samples", "-o", dir, only] => samples::write(Path::new(dir), only),
        ["disks", "-o", dir] => disks::write(Path::new(dir)),
        ["cases", "-o", dir] => vmdk_cases::write(Path::new(dir)),
        ["demo", "-o", dir] => demo::write(Path::new(dir)),
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("make-testdata: {error}");
            ExitCode::FAILURE
        }
    }
}
