//! `make-testdata`: writes the fixtures.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use vdrecover_testdata::samples;

const USAGE: &str =
    "usage: make-testdata samples -o DIR [NAME]   scenario datastores whose name contains NAME";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let done = match args[..] {
        ["samples", "-o", dir] => samples::write(Path::new(dir), ""),
        ["samples", "-o", dir, only] => samples::write(&PathBuf::from(dir), only),
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
