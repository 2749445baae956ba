//! A raw image: what is in the file is what is on the disk. Every layer is one, if it is nothing else.

use crate::error::Error;
use crate::format::{Format, Holds, score};
use crate::layer::{Bytes, Layer};
use crate::link::{Content, Disk, Link, Opened};
use crate::memo::Memo;

/// The row in the table of formats.
pub static FORMAT: Format = Format {
    name: "raw",
    about: "Raw disk image (dd, img, flat)",
    holds: Holds::Disk,
    spec: "none: byte for byte",
    magics: &[],
    probe,
    open,
    sweep: None,
};

fn probe(_: &dyn Layer) -> u8 {
    score::FALLBACK
}

#[expect(clippy::unnecessary_wraps, reason = "the signature that every row of the table has")]
fn open(bytes: &Bytes, _: &Memo) -> Result<Opened, Error> {
    let link = Link { len: bytes.len(), ..Link::default() };
    Ok(Opened::alone(link, Content::Disks(vec![Disk { name: Vec::new(), bytes: bytes.clone() }])))
}
