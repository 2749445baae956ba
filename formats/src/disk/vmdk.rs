//! VMDK: a text descriptor and the extents that it names.
//!
//! Facts come from VMware's "Virtual Disk Format 5.0", libyal's format notes and images of real products. The size
//! of the disk is the sum of *all* extents: readers that drop one shift everything behind it.

pub mod cowd;
mod descriptor;
mod extent;
pub mod hosted;
mod layout;
mod packed;
mod rebuild;
mod redundant;
pub mod sesparse;
mod sparse;
mod stream;
mod tally;

use crate::entries::Entries;
use crate::error::Error;
use crate::format::{Format, Holds, score};
use crate::layer::{Bytes, Layer, Trust, Why};
use crate::link::{Content, Disk, Fact, Link, Opened, Role, Value, Want};
use crate::memo::Memo;
use crate::note::Finding;
use crate::num::narrow;
use crate::read::{read, read_vec};
use descriptor::{Access, Descriptor, Extent, Kind, Seal};
use extent::{Part, Stored, Vmdk};
use sparse::Parent;
use std::sync::Arc;

/// The row in the table of formats.
pub static FORMAT: Format = Format {
    name: "vmdk",
    about: "VMware disk descriptor with its extents (flat, VMFS, hosted sparse, COWD, SESparse)",
    holds: Holds::Disk,
    spec: "VMware Virtual Disk Format 5.0; libyal VMDK format notes",
    // The signature may stand behind blanks, and is text in any case.
    magics: &[],
    probe,
    open,
    sweep: None,
};

/// All values of `createType` that are known, in lower case.
const CREATE_TYPES: [&str; 20] = [
    "monolithicsparse",
    "monolithicflat",
    "twogbmaxextentsparse",
    "twogbmaxextentflat",
    "2gbmaxextentsparse",
    "2gbmaxextentflat",
    "streamoptimized",
    "vmfs",
    "vmfsthin",
    "vmfspreallocated",
    "vmfseagerzeroedthick",
    "vmfssparse",
    "sesparse",
    "vmfsraw",
    "vmfsrdm",
    "vmfsrawdevicemap",
    "vmfsrdmp",
    "vmfspassthroughrawdevicemap",
    "vsansparse",
    "custom",
];
/// Those of whole devices and of partitions of them.
const DEVICE_TYPES: [&str; 2] = ["fulldevice", "partitioneddevice"];

fn probe(layer: &dyn Layer) -> u8 {
    if layer.is_empty() {
        return score::NONE;
    }
    let mut buf = vec![0; descriptor::head(layer.len())];
    if !read(layer, 0, &mut buf).is_whole() || !descriptor::is_signed(&buf) {
        return score::NONE;
    }
    score::MAGIC
}

fn open(bytes: &Bytes, memo: &Memo) -> Result<Opened, Error> {
    let len = bytes.len();
    if len > descriptor::MAX_LEN {
        return Err(Error::corrupt("VMDK descriptor", 0, format!("{len} bytes, real ones have less than 64 KiB")));
    }
    let (text, seen) = read_vec(&**bytes, 0, narrow(len));
    if let Some(gap) = seen.gaps.into_iter().next() {
        return Err(Error::Lost { what: "VMDK descriptor", gap });
    }
    if !descriptor::is_signed(&text) {
        return Err(Error::corrupt("VMDK descriptor", 0, "no signature `# Disk DescriptorFile`"));
    }
    opened(Descriptor::parse(&text)?, Vec::new(), memo)
}

/// The disk of a descriptor, wherever its text was. `findings` go before its own.
fn opened(descriptor: Descriptor, mut findings: Vec<Finding>, memo: &Memo) -> Result<Opened, Error> {
    if descriptor.extents.is_empty() {
        return Err(Error::corrupt("VMDK descriptor", 0, "no extent line"));
    }
    let total = descriptor.sectors().and_then(|sectors| sectors.checked_mul(512));
    let total = total.ok_or_else(|| Error::corrupt("VMDK descriptor", 0, "extents of more than 64 bits of bytes"))?;
    findings.extend(descriptor.findings.iter().cloned());
    findings.extend(observations(&descriptor));

    let mut wants: Vec<Want> = descriptor.extents.iter().filter_map(|extent| want(&descriptor, extent)).collect();
    let parent = parent(&descriptor);
    let wants_parent = parent.is_some();
    wants.extend(parent);
    let link = Link { id: content_id(&descriptor, "cid"), len: total, ..Link::default() };
    let facts = facts(&descriptor, total);
    let memo = memo.clone();
    let join = move |others: &[Option<Bytes>]| {
        let bytes = Arc::new(join(&descriptor, wants_parent, others, &memo));
        Ok(Content::Disks(vec![Disk { name: Vec::new(), bytes }]))
    };
    Ok(Opened { link, wants, join: Box::new(join), findings, facts })
}

/// What identifies an image. `fffffffe` is what ESXi writes into all of them, so it identifies none.
fn content_id(descriptor: &Descriptor, key: &str) -> Option<Vec<u8>> {
    descriptor.content_id(key).filter(|id| !matches!(id.as_slice(), b"fffffffe" | b"ffffffff"))
}

/// The parent that the descriptor names, if it names one.
fn parent(descriptor: &Descriptor) -> Option<Want> {
    let hint = descriptor.get("parentfilenamehint").filter(|hint| !hint.is_empty());
    let hint = hint.map(|hint| descriptor.name(hint));
    let has_parent = match descriptor.content_id("parentcid") {
        Some(id) => id != b"ffffffff",
        None => hint.is_some(),
    };
    // The format has ids, so one is wanted, even where the text gives one that identifies nothing.
    let id = Some(descriptor.content_id("parentcid").unwrap_or_default());
    has_parent.then_some(Want { role: Role::Parent, id, hint, len: None })
}

/// The file or device of an extent, if it has one that may be read.
fn want(descriptor: &Descriptor, extent: &Extent) -> Option<Want> {
    let len = match extent.kind {
        Kind::Flat | Kind::Device => Some(extent.offset.saturating_add(extent.sectors).saturating_mul(512)),
        Kind::Sparse | Kind::Cowd | Kind::SeSparse => None,
        Kind::Zero | Kind::Unknown(_) => return None,
    };
    let wanted = extent.access != Access::None && extent.has_file();
    let hint = extent.name.as_ref().map(|name| descriptor.name(name));
    wanted.then_some(Want { role: Role::Extent, id: None, hint, len })
}

fn observations(descriptor: &Descriptor) -> Vec<Finding> {
    let mut findings = Vec::new();
    let create_type = descriptor.get("createtype").unwrap_or_default();
    let known = String::from_utf8_lossy(create_type).to_ascii_lowercase();
    if !CREATE_TYPES.iter().chain(&DEVICE_TYPES).any(|name| *name == known) {
        let text = format!("createType is `{}`, which no known product writes", create_type.escape_ascii());
        findings.push(Finding::new("VMDK-CREATE-TYPE", 0..0, Trust::Sound, text));
    }
    let has_parent = parent(descriptor).is_some();
    if !has_parent && descriptor.get("parentfilenamehint").is_some_and(|hint| !hint.is_empty()) {
        let text = "parentFileNameHint names a parent, parentCID says that there is none";
        findings.push(Finding::new("VMDK-PARENT", 0..0, Trust::Sound, text));
    }
    if let Some(Seal { by, cipher, slots, .. }) = descriptor.seal() {
        let text = format!("the disk is encrypted: {by}, {cipher}, {slots} key slots; without a key it can't be read");
        findings.push(Finding::new("VMDK-SEALED", 0..0, Trust::Sound, text));
    }
    for extent in &descriptor.extents {
        let name = extent.name.as_deref().unwrap_or_default().escape_ascii().to_string();
        let mut note = |code, text: String| findings.push(Finding::new(code, extent.line.clone(), Trust::Sound, text));
        match (&extent.kind, extent.access) {
            (Kind::Zero, Access::None) => note("VMDK-NOACCESS", "NOACCESS on an extent of zeros".into()),
            (_, Access::None) => {
                note("VMDK-NOACCESS", format!("NOACCESS: VMware lets no guest read the extent `{name}`"));
            }
            (Kind::Device, _) => note("VMDK-DEVICE", format!("the extent is a device mapping, `{name}`")),
            (Kind::Flat, _) if extent.is_device() => note("VMDK-DEVICE", format!("the extent is a device, `{name}`")),
            (Kind::Unknown(word), _) => note("VMDK-EXTENT-TYPE", format!("extent type {word}, `{name}`")),
            (Kind::Flat | Kind::Sparse | Kind::Cowd | Kind::SeSparse, _) if !extent.has_file() => {
                note("VMDK-OBJECT", format!("the extent is not a file but `{name}`"));
            }
            _ => {}
        }
    }
    findings
}

fn join(descriptor: &Descriptor, wants_parent: bool, others: &[Option<Bytes>], memo: &Memo) -> Vmdk {
    let mut findings = Vec::new();
    let seal = descriptor.seal();
    // The parent is the last want.
    let parent = match (wants_parent, others.last()) {
        (false, _) => None,
        (true, Some(Some(layer))) => Some(Some(layer.clone())),
        (true, _) => Some(None),
    };
    let mut files = others.iter();
    let mut start: u64 = 0;
    let mut parts = Vec::new();
    for extent in &descriptor.extents {
        let file = want(descriptor, extent).and_then(|_| files.next()).and_then(Option::as_ref);
        let mut trust = Trust::Sound;
        let stored = match (&extent.kind, extent.access) {
            (Kind::Zero, access) => {
                // What a guest would get is an error, but an extent without a file has no other bytes.
                trust = if access == Access::None { Trust::Inferred } else { Trust::Sound };
                Stored::Zero
            }
            (_, Access::None) | (Kind::Unknown(_), _) => Stored::Lost(Why::Unsupported),
            (Kind::Device, _) => match file {
                // The file of a mapping has no data; what is as long as the device is the device, or a copy of it.
                Some(file) if file.len() >= extent.len() => {
                    trust = Trust::Inferred;
                    Stored::In(file.clone(), 0)
                }
                _ => Stored::Lost(Why::NotGiven),
            },
            _ if seal.is_some() => Stored::Lost(Why::Sealed),
            (kind, _) => match file {
                None => Stored::Lost(Why::Absent),
                Some(file) if *kind == Kind::Flat => {
                    let offset = extent.offset.saturating_mul(512);
                    let end = offset.saturating_add(extent.len());
                    if file.len() < end {
                        let text = format!("the extent's file has {} bytes, {end} are needed", file.len());
                        findings.push(Finding::new("VMDK-EXTENT-SHORT", extent.line.clone(), Trust::Sound, text));
                    }
                    Stored::In(file.clone(), offset)
                }
                Some(file) => {
                    let parent = match &parent {
                        None => Parent::None,
                        Some(None) => Parent::Absent,
                        Some(Some(layer)) => Parent::Given(layer.clone(), start),
                    };
                    sparse_extent(extent, file, parent, memo, &mut findings)
                }
            },
        };
        parts.push(Part { start, len: extent.len(), stored, trust, line: extent.line.start });
        start = start.saturating_add(extent.len());
    }
    Vmdk::new(parts, findings)
}

/// Opens a sparse extent by the magic in its file: the word in the descriptor is only what its writer thought.
fn sparse_extent(extent: &Extent, file: &Bytes, parent: Parent, memo: &Memo, findings: &mut Vec<Finding>) -> Stored {
    let entries = || Entries::new(file.clone(), memo.share());
    let mut magic = [0; 4];
    let _ = read(&**file, 0, &mut magic);
    let hosted_or_cowd = magic == *hosted::MAGIC || magic == *cowd::MAGIC;
    let sesparse = sesparse::is_sesparse(&**file) || (extent.kind == Kind::SeSparse && !hosted_or_cowd);
    let opened: Result<Bytes, Error> = if sesparse {
        sesparse::Header::load(&**file).map(|header| {
            let found = header.findings.clone();
            let layer: Bytes = Arc::new(header.into_layer(entries(), memo, parent, found));
            layer
        })
    } else if magic == *cowd::MAGIC || (magic != *hosted::MAGIC && extent.kind == Kind::Cowd) {
        cowd::load(file, extent.len(), memo).map(|header| {
            let found = header.findings.clone();
            let layer: Bytes = Arc::new(header.into_layer(entries(), memo, parent, found));
            layer
        })
    } else {
        rebuild::load(&**file, Some(extent.len())).map(|header| {
            let found = header.findings.clone();
            header.into_layer(&entries(), memo, &parent, found)
        })
    };
    let name = extent.name.as_deref().unwrap_or_default().escape_ascii();
    match opened {
        Ok(layer) => {
            if layer.len() != extent.len() {
                let text = format!("extent `{name}`: {} bytes, its line says {}", layer.len(), extent.len());
                findings.push(Finding::new("VMDK-EXTENT-SIZE", extent.line.clone(), Trust::Sound, text));
            }
            Stored::In(layer, 0)
        }
        Err(error) => {
            let text = format!("extent `{name}`: {error}");
            findings.push(Finding::new("VMDK-EXTENT", extent.line.clone(), Trust::Sound, text));
            let foreign = !hosted_or_cowd && !magic.iter().all(|byte| *byte == 0);
            let unread = foreign || matches!(error, Error::Unsupported { .. });
            Stored::Lost(if unread { Why::Unsupported } else { Why::Unmapped })
        }
    }
}

fn facts(descriptor: &Descriptor, total: u64) -> Vec<Fact> {
    const PAIRS: [(&str, &str); 14] = [
        ("create_type", "createtype"),
        ("version", "version"),
        ("encoding", "encoding"),
        ("cid", "cid"),
        ("parent_cid", "parentcid"),
        ("parent_file_name_hint", "parentfilenamehint"),
        ("is_native_snapshot", "isnativesnapshot"),
        ("change_track_path", "changetrackpath"),
        ("adapter_type", "ddb.adaptertype"),
        ("uuid", "ddb.uuid"),
        ("long_content_id", "ddb.longcontentid"),
        ("thin_provisioned", "ddb.thinprovisioned"),
        ("virtual_hw_version", "ddb.virtualhwversion"),
        ("tools_version", "ddb.toolsversion"),
    ];
    let mut facts = vec![Fact::new("size", Value::Bytes(total))];
    facts.extend(
        PAIRS.iter().filter_map(|(name, key)| {
            descriptor.get(key).map(|value| Fact::new(name, value.escape_ascii().to_string()))
        }),
    );
    if let Some(Seal { by, cipher, slots, key }) = descriptor.seal() {
        facts.push(Fact::new("encryption", by));
        facts.push(Fact::new("encryption_cipher", cipher));
        facts.push(Fact::new("encryption_key_slots", Value::Count(slots)));
        facts.extend(key.map(|key| Fact::new("encryption_key_id", key.escape_ascii().to_string())));
    }
    facts.extend(descriptor.extents.iter().map(|extent| {
        let name = extent.name.as_deref().unwrap_or_default().escape_ascii();
        let value =
            format!("{} {} {} `{name}` {}", extent.access.word(), extent.sectors, extent.kind.word(), extent.offset);
        Fact::new("extent", value.replace(" `` 0", ""))
    }));
    facts
}
