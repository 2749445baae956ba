//! Each field of each structure of real VMFS volumes, changed alone: what the damage costs, and whether anybody says so.
//!
//! VMFS data has no checksums. A change that agrees with all else can't be seen; which fields those are is written down
//! in `docs/vmfs-fields.md`, and this test keeps it true. `VDRECOVER_BLESS=1` writes the document anew.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::arithmetic_side_effects,
    clippy::as_conversions,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::too_many_lines,
    missing_docs,
    reason = "tests"
)]

mod vmfs_support;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::{env, fs};
use vdrecover_formats::adapt::Window;
use vdrecover_formats::vmfs::address::FdAddress;
use vdrecover_formats::vmfs::volume::Volume;
use vdrecover_formats::{Bytes, Content, Layer, Place, Pool, Tree, Trust, read_vec, vmfs};
use vmfs_support::{Seen, Sparse, datastore, find, image, is_told, look};

/// Where the logical volume starts on the device.
const LV: u64 = 0x110_0000;

/// What a change of a field came to; the worst of its values counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Outcome {
    /// All is read as before.
    Nothing,
    /// What it concerns is lost.
    Lost,
    /// Something is wrong, and not sound.
    Doubtful,
    /// Something is wrong; the bytes look sound, the check tells.
    Told,
    /// Something is wrong, and nothing says so.
    Silent,
}

/// A field: its offset from the structure's start, and its length.
type Field = (&'static str, u64, u64);

struct Structure {
    name: &'static str,
    /// Where it lies on the device, once for each example.
    at: Vec<u64>,
    fields: Vec<Field>,
}

fn judge(image: &Sparse, right: &BTreeMap<String, Seen>) -> Outcome {
    let bytes: Bytes = Arc::new(image.clone());
    let Ok(opened) = (vmfs::FORMAT.open)(&bytes, &Pool::new(8 << 20).share()) else { return Outcome::Lost };
    let Ok(Content::Tree(tree)) = opened.join_alone() else { return Outcome::Lost };
    let found = look(&*tree);
    let mut outcome = Outcome::Nothing;
    let mut wrong = found.keys().any(|path| !right.contains_key(path));
    for (path, right) in right {
        // A name that is missing without a word is wrong, not lost: a user would not know.
        let Some(own) = found.get(path) else {
            wrong = true;
            continue;
        };
        if own == right {
            continue;
        }
        let differs = |(own, right): (&Option<Vec<u8>>, &Option<Vec<u8>>)| own.is_some() && own != right;
        let facts = |seen: &Seen| seen.facts.replace("Doubtful", "Sound").replace("Inferred", "Sound");
        let changed = facts(own) != facts(right) || own.bytes.iter().zip(&right.bytes).any(differs);
        outcome = outcome.max(match (changed, own.trust) {
            (false, _) => Outcome::Lost,
            (true, Trust::Sound) => {
                wrong = true;
                Outcome::Lost
            }
            (true, _) => Outcome::Doubtful,
        });
    }
    match wrong {
        false => outcome,
        true if !opened.findings.is_empty() || is_told(&*tree) => Outcome::Told,
        true => Outcome::Silent,
    }
}

/// Values that a field could take by accident or malice.
fn values(old: &[u8]) -> Vec<Vec<u8>> {
    let number = u64::from_le_bytes(std::array::from_fn(|i| old.get(i).copied().unwrap_or_default()));
    let as_bytes = |number: u64| {
        let mut bytes = old.to_vec();
        let len = bytes.len().min(8);
        bytes[..len].copy_from_slice(&number.to_le_bytes()[..len]);
        bytes
    };
    let top = 1_u64 << (old.len().min(8) * 8 - 1);
    let mut all = vec![
        as_bytes(number.wrapping_add(1)),
        as_bytes(number.wrapping_sub(1)),
        as_bytes(number ^ top),
        as_bytes(number ^ 0x40),
        vec![0; old.len()],
        vec![0xFF; old.len()],
    ];
    all.retain(|value| value != old);
    all.sort_unstable();
    all.dedup();
    all
}

/// Device offsets at which `bytes` lie, at any multiple of four.
fn search(image: &Sparse, bytes: &[u8]) -> Vec<u64> {
    let mut found = Vec::new();
    for (number, chunk) in &image.chunks {
        let hits = chunk.windows(bytes.len()).step_by(4).enumerate().filter(|(_, window)| *window == bytes);
        found.extend(hits.map(|(i, _)| number * vmfs_support::CHUNK as u64 + i as u64 * 4));
    }
    found
}

fn structures(name: &str, image: &Arc<Sparse>, tree: &dyn Tree) -> Vec<Structure> {
    let six = name.starts_with("vmfs6");
    let md: u64 = if six { 4096 } else { 512 };
    let lv: Bytes = Arc::new(Window::new(Arc::<Sparse>::clone(image), LV, image.len - LV));
    let volume = Volume::load(&lv, None, &Pool::new(8 << 20).share()).unwrap();
    let names = ["directory", "small", "bigger", "normal-flat.vmdk", "large-flat.vmdk"];
    let nodes: Vec<FdAddress> = names.iter().map(|path| FdAddress(find(tree, path).0 as u32)).collect();
    let descriptors: Vec<_> = nodes.iter().map(|address| volume.descriptor(*address).unwrap()).collect();
    let mut all = Vec::new();
    let mut add = |name, at: Vec<u64>, fields: Vec<Field>| {
        assert!(!at.is_empty(), "{name}");
        all.push(Structure { name, at, fields });
    };
    let lvm_volume = 0x10_0000 + if six { 0x1000 } else { 512 };
    add(
        "LVM device header",
        vec![0x10_0000],
        vec![
            ("magic", 0, 4),
            ("major version", 4, 4),
            ("disk block size", 0x5A, 4),
            ("device size", 0x5E, 8),
            ("volumes", 0x66, 4),
            ("extents", 0x6A, 4),
            ("data offset", 0x7A, 8),
            ("device UUID", 0x82, 16),
            ("maps", 0xBE, 4),
            ("further metadata", 0xC2, 8),
            ("flags", 0xD2, 4),
        ],
    );
    add(
        "LVM volume entry",
        vec![lvm_volume],
        vec![
            ("logical size", 0, 8),
            ("volume UUID", 0x54, 16),
            ("snapshot id", 0x64, 4),
            ("volume id", 0x70, 4),
            ("extents", 0x74, 4),
            ("first extent", 0x78, 8),
            ("last extent", 0x80, 8),
            ("devices", 0x90, 4),
        ],
    );
    add(
        "LVM extent",
        vec![if six { 0x18_2000 } else { 0x18_0600 }],
        vec![
            ("used", 0, 1),
            ("volume id", 5, 4),
            ("physical offset", 9, 8),
            ("logical offset", 0x11, 8),
            ("length", 0x19, 8),
        ],
    );
    add(
        "file system header",
        vec![LV + 0x20_0000],
        vec![
            ("magic", 0, 4),
            ("major version", 4, 4),
            ("minor version", 8, 1),
            ("UUID", 9, 16),
            ("config", 0x19, 4),
            ("label", 0x1D, 8),
            ("file block size", 0xA1, 8),
            ("creation", 0xA9, 4),
            (".fdc.sf: offset", 0xD1, 4),
            (".fdc.sf: clusters in a group", 0xD5, 4),
            ("sub-block size", 0xD9, 4),
            ("alignment", 0x134, 4),
            ("large block shift", 0x138, 2),
        ],
    );
    let at = |offset: u64| descriptors.iter().map(|fd| LV + fd.at + offset).collect::<Vec<_>>();
    add(
        "descriptor: lock",
        at(0),
        vec![("magic", 0, 4), ("position", 4, 8), ("token", 0x1C, 8), ("mode", 0x24, 4), ("owner", 0x28, 16)],
    );
    add(
        "descriptor",
        at(md),
        vec![
            ("address", 0, 4),
            ("generation", 4, 4),
            ("link count", 8, 4),
            ("type", 0xC, 4),
            ("flags", 0x10, 4),
            ("length", 0x14, 8),
            ("block size", 0x1C, 8),
            ("block count", 0x24, 8),
            ("mtime", 0x2C, 4),
            ("ctime", 0x30, 4),
            ("atime", 0x34, 4),
            ("uid", 0x38, 4),
            ("gid", 0x3C, 4),
            ("mode", 0x40, 4),
            ("addressing (ZLA)", 0x44, 4),
            ("pointer blocks", 0x5C, 4),
            ("signature", 0x64, 4),
            ("parent", 0x70, 4),
            ("block size shift", 0x89, 1),
        ],
    );
    let width = if six { 8 } else { 4 };
    let mapped = descriptors.iter().filter(|fd| matches!(fd.shape, vmfs::descriptor::Shape::Mapped { .. }));
    let first = mapped.filter_map(|fd| {
        let used = fd.pointers.chunks(width as usize).position(|pointer| pointer.iter().any(|byte| *byte != 0))?;
        Some(LV + fd.pointers_at + used as u64 * width)
    });
    add("descriptor: pointer", first.collect(), vec![("pointer", 0, width)]);
    let mut resident = descriptors.iter().filter(|fd| fd.shape == vmfs::descriptor::Shape::Resident);
    add("descriptor: resident content", resident.by_ref().map(|fd| LV + fd.content_at).collect(), vec![("byte", 0, 1)]);
    let mut tables = Vec::new();
    for fd in &descriptors {
        volume.file(fd.clone()).survey(&mut |range| {
            let (bytes, _) = read_vec(&*lv, range.start, (range.end - range.start) as usize);
            let used = bytes.chunks(width as usize).position(|pointer| pointer.iter().any(|byte| *byte != 0));
            tables.extend(used.map(|used| LV + range.start + used as u64 * width));
        });
    }
    add("pointer block: pointer", tables, vec![("pointer", 0, width)]);
    let entries: Vec<u64> = ["small", "directory"]
        .iter()
        .flat_map(|name| {
            let fd = FdAddress(find(tree, name).0 as u32);
            let kind: u32 = if *name == "small" { 3 } else { 2 };
            search(image, &[kind.to_le_bytes(), fd.0.to_le_bytes()].concat())
        })
        .filter(|at| {
            let (entry, _) = read_vec(&**image, *at, 32);
            let name = if six { &entry[0x18..] } else { &entry[12..] };
            name.starts_with(b"small\0") || name.starts_with(b"direc")
        })
        .collect();
    let fields = if six {
        vec![
            ("type", 0, 4),
            ("descriptor", 4, 4),
            ("generation", 8, 4),
            ("hash", 12, 4),
            ("offset", 16, 8),
            ("name", 24, 1),
        ]
    } else {
        vec![("type", 0, 4), ("descriptor", 4, 4), ("generation", 8, 4), ("name", 12, 1)]
    };
    add("folder entry", entries, fields);
    if six {
        // The root folder is contiguous on these images.
        let root = volume.descriptor(FdAddress::ROOT).unwrap();
        let head = volume.file(root);
        let Some(Place::Below { offset, .. }) = walk_first(&head) else { panic!("{head:?}") };
        let block = LV + offset + 0x1_0000;
        let (head, _) = read_vec(&head, 0x5F8, 16001 * 4);
        let slots: Vec<u64> = (0..16001).filter(|i| head[i * 4..][..4] != [0; 4]).map(|i| i as u64).take(12).collect();
        add(
            "folder header",
            vec![LV + offset],
            vec![
                ("version", 0, 4),
                ("entries", 4, 4),
                ("entries again", 8, 4),
                ("map blocks", 12, 4),
                ("map block", 16, 4),
            ],
        );
        add(
            "folder: hash table",
            slots.iter().map(|i| LV + offset + 0x5F8 + i * 4).collect(),
            vec![("location", 0, 4)],
        );
        let kind = |at: &u64| read_vec(&**image, *at + 2, 2).0 == [1, 0];
        let first: Vec<u64> = (0..16).map(|i| block + i * md).filter(kind).take(1).collect();
        add(
            "folder block",
            first,
            vec![("version", 0, 2), ("type", 2, 2), ("slots", 4, 2), ("free slots", 6, 2), ("bitmap", 8, 2)],
        );
    }
    for (name, magic) in [("descriptor cluster", 5_u32), ("file block cluster", 2), ("sub-block cluster", 3)] {
        let clusters = search(image, &(0x10C0_0000 + magic).to_le_bytes());
        let clusters = clusters.into_iter().filter(|at| {
            let (own, _) = read_vec(&**image, *at + 4, 8);
            own == (*at - LV).to_le_bytes()
        });
        let metadata = clusters.take(1).map(|at| at + md).collect();
        let fields = if six {
            vec![
                ("signature", 0x10, 4),
                ("number", 0x18, 8),
                ("resources", 0x20, 2),
                ("free", 0x22, 2),
                ("bitmap", 0x80, 8),
            ]
        } else {
            vec![("number", 0, 4), ("resources", 4, 4), ("free", 8, 4), ("bitmap", 0x10, 8)]
        };
        add(name, metadata, fields);
    }
    for (name, address) in [(".fdc.sf header", FdAddress::FDC), (".sbc.sf header", FdAddress::SBC)] {
        let file = volume.file(volume.descriptor(address).unwrap());
        let Some(Place::Below { offset, .. }) = walk_first(&file) else { panic!("{file:?}") };
        add(
            name,
            vec![LV + offset],
            vec![
                ("resources in a cluster", 0, 4),
                ("clusters in a group", 4, 4),
                ("offset of group 0", 8, 4),
                ("resource size", 12, 4),
                ("group size", 16, 4),
                ("resources", 20, 4),
                ("groups", 24, 4),
            ],
        );
    }
    all
}

/// The place of a layer's first byte.
fn walk_first(layer: &dyn Layer) -> Option<Place<'_>> {
    (!layer.is_empty()).then(|| layer.run(0, 1).place)
}

fn table(name: &str) -> Option<Vec<(String, Outcome)>> {
    let image = image(name)?;
    let store = datastore(name)?;
    let right = look(&*store);
    assert_eq!(judge(&image, &right), Outcome::Nothing, "{name}");
    let mut rows = Vec::new();
    for structure in structures(name, &image, &*store) {
        for (field, offset, len) in structure.fields {
            let mut worst = Outcome::Nothing;
            for at in structure.at.iter().map(|at| at + offset) {
                let (old, _) = read_vec(&*image, at, len as usize);
                for value in values(&old) {
                    let mut changed = Sparse::clone(&image);
                    changed.write(at, &value);
                    let outcome = judge(&changed, &right);
                    if outcome == Outcome::Silent && env::var_os("VDRECOVER_SHOW").is_some() {
                        println!("{name}: {}: {field} at {at:#x}: {old:02x?} became {value:02x?}", structure.name);
                    }
                    worst = worst.max(outcome);
                }
            }
            rows.push((format!("{}: {field}", structure.name), worst));
        }
    }
    Some(rows)
}

#[test]
fn the_fields_whose_damage_nobody_can_see_are_those_of_the_document() {
    let Some(tables) = ["vmfs5", "vmfs6"].map(table).into_iter().collect::<Option<Vec<_>>>() else { return };
    let mut rows: BTreeMap<String, [Option<Outcome>; 2]> = BTreeMap::new();
    for (i, table) in tables.into_iter().enumerate() {
        for (field, outcome) in table {
            rows.entry(field).or_default()[i] = Some(outcome);
        }
    }
    let word = |outcome: Option<Outcome>| match outcome {
        None => "",
        Some(Outcome::Nothing) => "nothing",
        Some(Outcome::Lost) => "lost",
        Some(Outcome::Doubtful) => "doubtful",
        Some(Outcome::Told) => "told by the check",
        Some(Outcome::Silent) => "**silent**",
    };
    let mut text = String::from(
        "# What a changed field costs\n\n\
        Each field of the structures of two volumes that ESXi made, changed alone to several values; the worst outcome\n\
        counts. *nothing*: all is read as before. *lost*: what it concerns is lost or doubted, and said to be. *doubtful*:\n\
        something is wrong and not sound. *told by the check*: the bytes look sound, `scan` and `check` tell. **silent**: the change\n\
        agrees with all else. VMFS has no checksums, so that these can't be seen.\n\n\
        | field | VMFS5 | VMFS6 |\n| --- | --- | --- |\n",
    );
    for (field, [five, six]) in rows {
        writeln!(text, "| {field} | {} | {} |", word(five), word(six)).unwrap();
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/vmfs-fields.md");
    if env::var_os("VDRECOVER_BLESS").is_some() {
        fs::write(&path, &text).unwrap();
    }
    let written = fs::read_to_string(&path).unwrap_or_default();
    assert!(text == written, "docs/vmfs-fields.md is not what was found:\n{text}");
}
