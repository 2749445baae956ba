//! `IMAGE[::PATH]`: an image of the host, and a path in the case's tree.

use crate::case::{Case, Origin, Target};
use anyhow::{Context, Result, bail};
use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use vdrecover_formats::cursor::same_layer;
use vdrecover_formats::{Bytes, Entry, Kind, NodeId, State, Tree};

/// Where to look, and for what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Locator {
    /// The image, folder or device.
    pub image: PathBuf,
    /// The path in the tree, as bytes; `None` for the image as a whole.
    pub path: Option<Vec<u8>>,
}

impl Locator {
    /// Splits at the first `::` before which there is an existing file: names of images may hold `::` too.
    #[must_use]
    pub fn parse(text: &OsStr) -> Self {
        let bytes = text.as_bytes();
        if Path::new(text).symlink_metadata().is_ok() {
            return Self { image: text.into(), path: None };
        }
        let splits: Vec<Self> = (0..bytes.len())
            .filter(|at| bytes[*at..].starts_with(b"::"))
            .map(|at| Self {
                image: PathBuf::from(OsString::from_vec(bytes[..at].to_vec())),
                path: Some(bytes[at + 2..].to_vec()),
            })
            .collect();
        let existing = splits.iter().position(|locator| locator.image.symlink_metadata().is_ok());
        match splits.into_iter().nth(existing.unwrap_or(0)) {
            Some(locator) => locator,
            None => Self { image: text.into(), path: None },
        }
    }
}

/// One clear line for an image that is not there.
pub fn check_exists(image: &Path) -> Result<()> {
    fs::symlink_metadata(image).map(|_| ()).with_context(|| image.display().to_string())
}

/// What a locator leads to.
#[derive(Debug)]
pub struct Found {
    /// Its path in the tree, for messages.
    pub path: Vec<u8>,
    /// Its entry.
    pub entry: Entry,
}

/// The node of a locator with a path.
pub fn find(case: &Case, path: &[u8]) -> Result<Found> {
    let shown = crate::report::printable(path);
    match case.find(path) {
        Ok(Some(entry)) => Ok(Found { path: path.to_vec(), entry }),
        Ok(None) => bail!("{shown}: there is no such path in the image; `vdrecover ls -R IMAGE` lists them all"),
        Err(error) => bail!("{shown}: {error}"),
    }
}

/// The bytes that a locator leads to: of the path, or of the one disk that the image has.
pub fn open(case: &Case, locator: &Locator) -> Result<(Found, Bytes)> {
    let found = match &locator.path {
        Some(path) => find(case, path)?,
        None => one_disk(case)?,
    };
    let shown = crate::report::printable(&found.path);
    if found.entry.kind == Kind::Dir {
        bail!("{shown}: is a folder; `vdrecover ls` lists it, `vdrecover export` takes it out");
    }
    let bytes = case.open(found.entry.id).with_context(|| shown)?;
    Ok((found, bytes))
}

/// The only disk of a case. Where there are several, the message lists them.
pub fn one_disk(case: &Case) -> Result<Found> {
    let disks = disks(case);
    // What was given with --with helps to read the image, and is not what was asked for.
    let own: Vec<&Vec<u8>> = disks.iter().filter(|path| is_of_input(case, path)).collect();
    match (own.as_slice(), disks.as_slice()) {
        ([path], _) => find(case, path),
        (_, disks) => one_of(case, disks),
    }
}

/// Whether a disk lies in what was named, be it deep inside.
fn is_of_input(case: &Case, path: &[u8]) -> bool {
    let item = case.find(path).ok().flatten().and_then(|entry| case.target(entry.id)).map(|target| target.item);
    let mut next = item;
    while let Some(item) = next.and_then(|id| case.items.get(id)) {
        next = match &item.origin {
            Origin::Source(source) => return case.inputs.iter().any(|input| Arc::ptr_eq(input, source)),
            Origin::File { store, .. } => case.stores[*store].item,
            Origin::Inside(of) | Origin::Volume { of, .. } => Some(*of),
        };
    }
    false
}

fn one_of(case: &Case, disks: &[Vec<u8>]) -> Result<Found> {
    match disks {
        [path] => find(case, path),
        [] => bail!("there is no disk in it; `vdrecover ls` shows what there is, name it as IMAGE::PATH"),
        several => {
            let list: Vec<String> =
                several.iter().map(|path| format!("  {}", crate::report::printable(path))).collect();
            bail!("there are {} disks in it; name one as IMAGE::PATH:\n{}", several.len(), list.join("\n"))
        }
    }
}

/// Paths of the disks that a user may mean: those of the machines as they are now, and the loose ones.
#[must_use]
pub fn disks(case: &Case) -> Vec<Vec<u8>> {
    let mut found = Vec::new();
    for top in [&b"vms"[..], b"disks"] {
        let Ok(Some(dir)) = case.find(top) else { continue };
        if top == b"disks" {
            collect(case, dir.id, top, &mut found);
            continue;
        }
        for machine in children(case, dir.id) {
            if machine.kind == Kind::Dir {
                collect(case, machine.id, &[top, b"/", &machine.name].concat(), &mut found);
            }
        }
    }
    found
}

fn collect(case: &Case, dir: NodeId, path: &[u8], found: &mut Vec<Vec<u8>>) {
    for entry in children(case, dir) {
        // An internal snapshot is an older state of a disk, and none of its own.
        let current = |target: &Target| same_layer(&*target.bytes, &*case.items[target.item].disk());
        if case.target(entry.id).is_some_and(current) {
            found.push([path, b"/", &entry.name].concat());
        }
    }
}

/// The entries of one of the case's own folders.
fn children(case: &Case, dir: NodeId) -> Vec<Entry> {
    let mut entries = Vec::new();
    // The case's own folders are always listed whole.
    let _ = case.list(dir, 0, &mut |entry| {
        entries.extend(entry.ok().filter(|entry| entry.state == State::Live));
        std::ops::ControlFlow::Continue(())
    });
    entries
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_colons_is_a_name_if_it_exists() {
        let folder = tempfile::tempdir().unwrap();
        let image = folder.path().join("a::b.img");
        fs::write(&image, b"x").unwrap();
        let whole = Locator::parse(image.as_os_str());
        assert_eq!(whole, Locator { image: image.clone(), path: None });
        let mut text = image.clone().into_os_string();
        text.push("::vms/x::y");
        assert_eq!(Locator::parse(&text), Locator { image, path: Some(b"vms/x::y".to_vec()) });
        let missing = Locator::parse(OsStr::new("no-such-image::store"));
        assert_eq!(missing.image, PathBuf::from("no-such-image"));
    }
}
