//! What a case folder keeps: sweeps and searches, so that a device is read from end to end once.
//!
//! A sweep holds for an input with the same path, length and time of change, a search for the same of all inputs and
//! their maps, and for the same free space. Whatever else is in the file, or is not, means that it is done again.

use super::{Case, Options, Store};
use crate::progress::Progress;
use crate::source::Source;
use crate::sweep::{SweepOptions, sweep as pass};
use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};
use vdrecover_formats::format::Clue;
use vdrecover_formats::{Bytes, FORMATS, Finding, Format, Trust};

/// Version of the kept file; another one is not read.
const VERSION: u64 = 1;

/// What a sweep saw.
pub(super) struct Swept {
    pub(super) clues: Vec<(&'static Format, Vec<Clue>)>,
    pub(super) findings: Vec<Finding>,
}

/// Makes the case folder. It may not be where the evidence is: nothing is written there.
pub(super) fn prepare<'a>(folder: &Path, inputs: impl Iterator<Item = &'a PathBuf>) -> Result<()> {
    let exists = folder.exists();
    let home = if exists { folder.canonicalize() } else { absolute(folder) };
    let home = home.with_context(|| folder.display().to_string())?;
    for input in inputs {
        let Ok(input) = input.canonicalize() else { continue };
        let Ok(kind) = fs::metadata(&input).map(|meta| meta.file_type()) else { continue };
        let holds = if kind.is_dir() { input.as_path() } else { input.parent().unwrap_or(&input) };
        if home.starts_with(holds) && !kind.is_block_device() && holds != Path::new("/") {
            bail!(
                "{}: the case folder lies in {}, where the evidence is; name one elsewhere",
                folder.display(),
                holds.display()
            );
        }
    }
    fs::create_dir_all(folder).with_context(|| format!("{}: making the case folder", folder.display()))
}

/// Where a folder that does not exist yet will be.
fn absolute(folder: &Path) -> std::io::Result<PathBuf> {
    let parent = folder.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let known = parent.ancestors().find(|known| known.exists()).unwrap_or(Path::new("."));
    let rest = folder.strip_prefix(known).unwrap_or(folder);
    // Behind a folder that is not there yet `..` could lead anywhere once it is.
    if rest.components().any(|part| part == std::path::Component::ParentDir) {
        return Err(std::io::Error::new(std::io::ErrorKind::NotFound, "a folder before .. does not exist"));
    }
    Ok(known.canonicalize()?.join(rest))
}

/// The clues on a disk of `source`: kept ones if they still hold, else those of a new pass, which is kept.
pub(super) fn sweep(disk: &Bytes, source: &Source, folder: Option<&Path>, progress: &Progress) -> Swept {
    let identity = identity(source);
    let file = folder.map(|folder| folder.join(file_name(source)));
    if let Some(clues) = file.as_deref().and_then(|file| load(file, &identity)) {
        return Swept { clues, findings: Vec::new() };
    }
    let swept = pass(&**disk, FORMATS, &SweepOptions::default(), progress);
    let mut findings = swept.findings;
    if swept.lost_bytes > 0 {
        let text = format!("{} bytes could not be read and were not searched", swept.lost_bytes);
        findings.push(Finding::new("SWEEP-GAPS", 0..0, Trust::Inferred, text));
    }
    let clues: Vec<(&'static Format, Vec<Clue>)> = swept
        .clues
        .into_iter()
        .filter(|(_, clues)| !clues.is_empty())
        .filter_map(|(index, clues)| Some((*FORMATS.get(index)?, clues)))
        .collect();
    if let Some(file) = file
        && findings.is_empty()
        && swept.stopped_at.is_none()
        && let Err(error) = save(&file, &identity, &clues)
    {
        let text = format!("the sweep could not be kept: {error:#}");
        findings.push(Finding::new("CASE-KEEP", 0..0, Trust::Sound, text));
    }
    Swept { clues, findings }
}

/// What must be unchanged for a kept sweep to hold.
fn identity(source: &Source) -> Value {
    json!({
        "version": VERSION,
        "program": env!("CARGO_PKG_VERSION"),
        "path": source.path.display().to_string(),
        "length": source.len,
        "changed": source.modified_nanos().map(|nanos| nanos.to_string()),
        "formats": FORMATS.iter().map(|format| format.name).collect::<Vec<_>>(),
    })
}

fn file_name(source: &Source) -> String {
    let path = source.path.canonicalize().unwrap_or_else(|_| source.path.clone());
    let digest = crate::digest::sha256(std::os::unix::ffi::OsStrExt::as_bytes(path.as_os_str()));
    format!("sweep-{}.json", &crate::digest::hex(&digest)[..16])
}

fn load(file: &Path, identity: &Value) -> Option<Vec<(&'static Format, Vec<Clue>)>> {
    let kept: Value = serde_json::from_slice(&fs::read(file).ok()?).ok()?;
    if kept.get("identity")? != identity {
        return None;
    }
    let sets = kept.get("clues")?.as_array()?;
    sets.iter()
        .map(|set| {
            let name = set.get("format")?.as_str()?;
            let format = FORMATS.iter().find(|format| format.name == name)?;
            let clues = set.get("clues")?.as_array()?.iter().map(clue).collect::<Option<Vec<_>>>()?;
            Some((*format, clues))
        })
        .collect()
}

/// What a search of the free space of one store saw.
pub(super) struct Kept {
    file: PathBuf,
    identity: Value,
}

impl Kept {
    pub(super) fn new(
        folder: &Path,
        case: &Case,
        store: &Store,
        options: &Options,
        free: &[std::ops::Range<u64>],
    ) -> Self {
        let maps = options.maps.iter().map(|map| {
            let digest = fs::read(&map.map).map(|text| crate::digest::hex(&crate::digest::sha256(&text)));
            json!([map.image.display().to_string(), map.shift, digest.ok()])
        });
        let space: Vec<u8> =
            free.iter().flat_map(|range| [range.start, range.end]).flat_map(u64::to_le_bytes).collect();
        let identity = json!({
            "version": VERSION,
            "inputs": super::identity(case),
            "maps": maps.collect::<Vec<_>>(),
            "store": crate::report::printable(&store.name),
            "free": crate::digest::hex(&crate::digest::sha256(&space)),
        });
        // One file for a store of these inputs: what does not hold any more is replaced.
        let sources = case.sources.all();
        let paths = sources.iter().map(|source| source.path.as_os_str().as_encoded_bytes());
        let name: Vec<u8> = paths.chain([&store.name[..]]).collect::<Vec<_>>().join(&0);
        let digest = crate::digest::hex(&crate::digest::sha256(&name));
        Self { file: folder.join(format!("search-{}.json", &digest[..16])), identity }
    }

    /// The clues, if they still hold.
    pub(super) fn load(&self) -> Option<Vec<Clue>> {
        let kept: Value = serde_json::from_slice(&fs::read(&self.file).ok()?).ok()?;
        let clues = kept.get("clues").filter(|_| kept.get("identity") == Some(&self.identity))?;
        clues.as_array()?.iter().map(clue).collect()
    }

    pub(super) fn save(&self, clues: &[Clue]) -> Result<()> {
        write(&self.file, &json!({"identity": self.identity, "clues": values(clues)}))
    }
}

fn values(clues: &[Clue]) -> Vec<Value> {
    clues.iter().map(|clue| json!([clue.at, clue.kind, clue.len, clue.value])).collect()
}

fn clue(kept: &Value) -> Option<Clue> {
    let number = |at: usize| kept.get(at)?.as_u64();
    Some(Clue { at: number(0)?, kind: u32::try_from(number(1)?).ok()?, len: number(2)?, value: number(3)? })
}

fn save(file: &Path, identity: &Value, clues: &[(&'static Format, Vec<Clue>)]) -> Result<()> {
    let sets: Vec<Value> =
        clues.iter().map(|(format, clues)| json!({"format": format.name, "clues": values(clues)})).collect();
    write(file, &json!({"identity": identity, "clues": sets}))
}

fn write(file: &Path, kept: &Value) -> Result<()> {
    let part = file.with_extension("part");
    // Made anew: a link of that name must not lead the bytes elsewhere.
    let _ = fs::remove_file(&part);
    fs::File::create_new(&part)?.write_all(&serde_json::to_vec(kept)?)?;
    Ok(fs::rename(&part, file)?)
}
