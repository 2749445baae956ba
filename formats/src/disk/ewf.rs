//! EWF, the image of `EnCase`, FTK Imager and others (E01, and S01 of SMART): libyal's "Expert Witness Compression
//! Format specification". All numbers are little-endian.
//!
//! | what | where | how sure |
//! |---|---|---|
//! | segment: `EVF`, its number, then sections | each file of a set; here one behind the other | libyal, and images of libewf |
//! | section: type, place of the next one in the segment, size, Adler-32 | | the same |
//! | `volume`, `disk`: sizes; `data` is its copy in later segments | | the same |
//! | `sectors`: chunks, zlib or plain with an Adler-32 behind | before its table; of SMART in the table's section | the same |
//! | `table`, `table2`: 4 bytes a chunk, the highest bit for zlib; twice the same, each with an Adler-32 | | the same |
//! | `error2`: sectors that the imager could not read | last segment | libyal |
//! | `hash`, `digest`: MD5 and SHA-1 of the disk | last segment | the same |
//!
//! A table does not say which chunks it has: they count on from segment to segment. Where segments are missing, the
//! chunks behind them are counted from the end, as a choice.

mod chunks;
mod sections;

use crate::entries::Entries;
use crate::error::Error;
use crate::format::{Format, Holds, Magic, score};
use crate::layer::{Bytes, Layer};
use crate::link::{Content, Disk, Link, Opened};
use crate::memo::Memo;
use chunks::Ewf;
use std::sync::Arc;

/// The row in the table of formats.
pub static FORMAT: Format = Format {
    name: "ewf",
    about: "EnCase or SMART image (E01, S01)",
    holds: Holds::Disk,
    spec: "libyal Expert Witness Compression Format specification",
    magics: &[
        Magic { at: 0, bytes: sections::MAGIC },
        Magic { at: 0, bytes: sections::MAGIC_2 },
        Magic { at: 0, bytes: sections::MAGIC_LOGICAL },
    ],
    probe,
    open,
    sweep: None,
};

fn probe(layer: &dyn Layer) -> u8 {
    match FORMAT.magics.iter().position(|magic| magic.is_in(layer)) {
        Some(0) if sections::starts(layer) => score::PROVEN,
        Some(_) => score::MAGIC,
        None => score::NONE,
    }
}

fn open(bytes: &Bytes, memo: &Memo) -> Result<Opened, Error> {
    if FORMAT.magics.iter().skip(1).any(|magic| magic.is_in(&**bytes)) {
        let kind = "an image of EnCase 7 (Ex01) or a logical one (L01); export it as E01 or raw:";
        return Err(Error::unsupported(kind));
    }
    let image = sections::read(&**bytes)?;
    // What a missing segment has is lost and nothing else.
    let others = image.findings.iter().filter(|finding| !sections::MISSING.contains(&finding.code));
    let trust = others.map(|finding| finding.trust).max().unwrap_or_default();
    let link = Link { len: image.volume.len(), ..Link::default() };
    let findings = image.findings.clone();
    let facts = image.facts();
    let image = Arc::new(image);
    let (bytes, memo) = (bytes.clone(), memo.clone());
    let join = move |_: &[Option<Bytes>]| {
        let entries = Entries::new(bytes.clone(), memo.share());
        let layer = Ewf { file: entries, image: Arc::clone(&image), tables: memo.share(), units: memo.share(), trust };
        Ok(Content::Disks(vec![Disk { name: Vec::new(), bytes: Arc::new(layer) }]))
    };
    Ok(Opened { link, wants: Vec::new(), join: Box::new(join), findings, facts })
}
