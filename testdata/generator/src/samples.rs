//! Scenario datastores: one for each way in which a reader may go wrong, with what a right reader finds.

use crate::hex;
use crate::json::Json;
use crate::vmdk::Descriptor;
use crate::vmfs::{
    Addressing, Allocation, Content, Deleted, Deletion, Expected, FORMAT_TIME, FileType, Layout, Version, Vmfs,
    VmfsSpec, name_hash, pattern,
};
use std::fs;
use std::io;
use std::path::Path;

const GIB: u64 = 1 << 30;
const TIB: u64 = 1 << 40;
/// 2 GiB of data behind what LVM takes.
const DISK: u64 = 2 * GIB + (32 << 20);
/// Longer files are described by probes instead of a hash.
const HASHED: u64 = 256 << 20;

/// One scenario.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    /// Name of its files.
    pub name: &'static str,
    /// What it is for.
    pub about: &'static str,
    build: fn() -> Vmfs,
}

impl Sample {
    /// Makes the datastore.
    #[must_use]
    pub fn build(&self) -> Vmfs {
        (self.build)()
    }
}

/// All scenarios.
pub const SAMPLES: &[Sample] = &[
    Sample { name: "vmfs3-1m", about: "VMFS3, 1 MiB file blocks", build: || three(1) },
    Sample { name: "vmfs3-2m", about: "VMFS3, 2 MiB file blocks", build: || three(2) },
    Sample { name: "vmfs3-4m", about: "VMFS3, 4 MiB file blocks", build: || three(4) },
    Sample { name: "vmfs3-8m", about: "VMFS3, 8 MiB file blocks", build: || three(8) },
    Sample { name: "vmfs5-basic", about: "every kind of file", build: || basic(Version::Five) },
    Sample { name: "vmfs6-basic", about: "every kind of file", build: || basic(Version::Six) },
    Sample { name: "vmfs5-layouts", about: "each addressing, order and flag", build: || layouts(Version::Five) },
    Sample { name: "vmfs6-layouts", about: "each addressing, order and flag", build: || layouts(Version::Six) },
    Sample { name: "vmfs5-512k", about: "512 KiB file blocks, 32 KiB sub-blocks", build: half_mib },
    Sample { name: "vmfs5-2m", about: "2 MiB file blocks", build: || large_file_blocks(2) },
    Sample { name: "vmfs5-4m", about: "4 MiB file blocks", build: || large_file_blocks(4) },
    Sample { name: "vmfs5-8m", about: "8 MiB file blocks", build: || large_file_blocks(8) },
    Sample { name: "vmfs6-md8k", about: "metadata aligned to 8 KiB", build: || aligned(8 << 10, 512) },
    Sample { name: "vmfs6-md16k", about: "metadata aligned to 16 KiB", build: || aligned(16 << 10, 512) },
    Sample { name: "vmfs6-md64k", about: "metadata aligned to 64 KiB", build: || aligned(64 << 10, 512) },
    Sample { name: "vmfs6-4kn", about: "sectors of 4096 bytes", build: || aligned(4 << 10, 4096) },
    Sample { name: "vmfs5-span", about: "three extents", build: || span(Version::Five) },
    Sample { name: "vmfs6-span", about: "three extents", build: || span(Version::Six) },
    Sample { name: "vmfs6-large-blocks", about: "512 MiB file blocks", build: large_blocks },
    Sample { name: "vmfs5-names", about: "10,000 names in a directory", build: || names(Version::Five) },
    Sample {
        name: "vmfs6-names",
        about: "10,000 names in a directory, hash collisions",
        build: || names(Version::Six),
    },
    Sample { name: "vmfs5-deleted", about: "deleted and orphaned files", build: || deleted(Version::Five) },
    Sample { name: "vmfs6-deleted", about: "deleted and orphaned files", build: || deleted(Version::Six) },
    Sample { name: "vmfs5-crashed", about: "as deleted, with a journal", build: || crashed(Version::Five) },
    Sample { name: "vmfs6-crashed", about: "as deleted, with a journal", build: || crashed(Version::Six) },
    Sample { name: "vmfs5-reformatted", about: "VMFS5 over VMFS6", build: || reformatted(Version::Five) },
    Sample { name: "vmfs6-reformatted", about: "VMFS6 over VMFS6", build: || reformatted(Version::Six) },
    Sample { name: "vmfs6-local", about: "VMFS-L", build: || local(Version::Six) },
    Sample { name: "vmfs5-local", about: "VMFS-L", build: || local(Version::Five) },
    Sample { name: "vmfs5-small", about: "one extent of 256 MiB", build: || small(Version::Five) },
    Sample { name: "vmfs6-small", about: "one extent of 256 MiB", build: || small(Version::Six) },
    Sample { name: "vmfs5-fragments", about: "one file in a piece, and in many", build: || fragments(Version::Five) },
    Sample { name: "vmfs6-fragments", about: "one file in a piece, and in many", build: || fragments(Version::Six) },
    Sample { name: "vmfs5-17tib", about: "behind the first 16 TiB, data shifts", build: || huge(Version::Five) },
    Sample { name: "vmfs6-17tib", about: "behind the first 16 TiB, data shifts", build: || huge(Version::Six) },
];

fn spec(version: Version, label: &str) -> VmfsSpec {
    VmfsSpec { label: label.into(), ..VmfsSpec::new(version, DISK) }
}

fn fill(store: &mut Vmfs) {
    let auto = Layout::default();
    store.file("small", Content::bytes(*b"tiny\n"), &auto);
    store.set_mode("small", 0o644);
    store.file("empty", Content::default(), &auto);
    store.file("kilobytes", Content::patterned(7000, 1), &auto);
    store.file("big", Content::patterned((1 << 20) + 1, 2), &auto);
    store.file("bigger", Content::patterned(20 << 20, 3), &auto);
    store.symlink("symlink", "/vmfs/volumes/datastore1/small");
    store.mkdir("directory");
    for n in 1..=100 {
        store.file(&format!("directory/file{n}"), Content::bytes(format!("File {n}\n")), &auto);
    }
    store.mkdir("directory/inner");
    store.file("directory/inner/deep", Content::patterned(100_000, 4), &auto);
    store.file("normal-flat.vmdk", Content::sparse(69 * GIB).with(42 * GIB, vec![0x42; 512]), &auto);
    store.file("large-flat.vmdk", Content::sparse(42 * TIB).with(117 * GIB, vec![0x42; 512]), &auto);
    store.rdm("rdm-rdm.vmdk", 6969 * GIB);
    store.file("Grüße ünd 漢字.txt", Content::bytes("näme\n"), &auto);
}

fn basic(version: Version) -> Vmfs {
    let mut store = Vmfs::new(spec(version, "basic"));
    fill(&mut store);
    store
}

fn three(mib: u64) -> Vmfs {
    let spec = VmfsSpec { file_block_size: mib << 20, ..spec(Version::Three, &format!("three-{mib}m")) };
    let mut store = Vmfs::new(spec);
    let auto = Layout::default();
    store.file("small", Content::bytes(*b"tiny\n"), &auto);
    store.file("empty", Content::default(), &auto);
    store.file("kilobytes", Content::patterned(60_000, 1), &auto);
    store.file("bigger", Content::patterned(20 << 20, 3), &auto.clone().shuffled(4));
    store.symlink("symlink", "/vmfs/volumes/datastore1/small");
    store.mkdir("directory");
    for n in 1..=40 {
        store.file(&format!("directory/file{n}"), Content::bytes(format!("File {n}\n")), &auto);
    }
    // The longest that the pointers of a descriptor reach: one pointer block spans 1024 file blocks.
    let most = (256 * 1024) * (mib << 20);
    let piece = most / 2 + (777 << 20);
    store.file("normal-flat.vmdk", Content::sparse(most).with(piece, pattern(3_000_000, 5)), &auto);
    let holes = Content::sparse(96 << 20).with(40 << 20, pattern(100_000, 6));
    store.file("lazy", holes, &auto.clone().allocation(Allocation::LazyThick));
    store.file("single", Content::patterned(5_000_000, 7), &auto.clone().addressing(Addressing::Single));
    store.rdm("rdm-rdm.vmdk", 500 * GIB);
    store.file("gone", Content::patterned(3_000_000, 8), &auto);
    store.delete_keeping_pointers("gone");
    store
}

fn layouts(version: Version) -> Vmfs {
    let six = version == Version::Six;
    let mut store = Vmfs::new(spec(version, "layouts"));
    let auto = Layout::default();
    for (name, addressing, len) in [
        ("resident", Addressing::Resident, 1000),
        ("sub-blocks", Addressing::SubBlock, if six { 300_000 } else { 200_000 }),
        ("direct", Addressing::Direct, 5_000_001),
        ("single", Addressing::Single, 5_000_001),
        ("pb2", Addressing::SinglePb2, 5_000_001),
        ("double", Addressing::Double, 5_000_001),
    ] {
        store.file(name, Content::patterned(len, 10), &auto.clone().addressing(addressing));
        if addressing != Addressing::Resident {
            let shuffled = auto.clone().addressing(addressing).shuffled(7);
            store.file(&format!("{name}-shuffled"), Content::patterned(len, 11), &shuffled);
        }
    }
    let mib = 1 << 20;
    let holes = Content::sparse(40 * mib)
        .with(3 * mib, pattern(100, 20))
        .with(17 * mib + 5000, pattern(mib as usize, 21))
        .with(39 * mib, pattern(10, 22));
    for (name, allocation) in
        [("thin", Allocation::Thin), ("lazy", Allocation::LazyThick), ("eager", Allocation::EagerThick)]
    {
        store.file(name, holes.clone(), &auto.clone().allocation(allocation));
        let indirect = auto.clone().allocation(allocation).addressing(Addressing::Single).shuffled(9);
        store.file(&format!("{name}-single-shuffled"), holes.clone(), &indirect);
    }
    store.file("zeroed-middle", holes, &auto.clone().to_be_zeroed(8 * mib..12 * mib));
    store.file("all-hole", Content::sparse(300 * mib), &auto);
    // Pieces on both sides of the edges of pointer blocks, each behind empty ones.
    let leaf = if six { 8 * GIB } else { GIB };
    let edges = Content::sparse(200 * GIB + 12_345)
        .with(3 * leaf - 700, pattern(1400, 30))
        .with(9 * leaf - 512, pattern(1024, 31))
        .with(200 * GIB, pattern(12_345, 32));
    store.file("edges", edges.clone(), &auto);
    store.file("edges-double", edges, &auto.addressing(Addressing::Double));
    store
}

fn half_mib() -> Vmfs {
    let spec = spec(Version::Five, "half-mib");
    let mut store = Vmfs::new(VmfsSpec { file_block_size: 512 << 10, dense_sub_blocks: false, ..spec });
    store.file("kilobytes", Content::patterned(30_000, 40), &Layout::default());
    store.file("megabytes", Content::patterned(9_000_000, 41), &Layout::default().shuffled(3));
    let thin = Content::sparse(60 * GIB).with(33 * GIB + 777, pattern(9999, 42));
    store.file("thin-flat.vmdk", thin, &Layout::default());
    store
}

fn large_file_blocks(mib: u64) -> Vmfs {
    let spec = spec(Version::Five, &format!("{mib}-mib"));
    let mut store = Vmfs::new(VmfsSpec {
        file_block_size: mib << 20,
        // ESXi's number of pointer blocks would leave no room.
        pointer_blocks: Some(4096),
        ..spec
    });
    store.file("kilobytes", Content::patterned(8000, 50), &Layout::default());
    store.file("megabytes", Content::patterned(30_000_000, 51), &Layout::default());
    let thin = Content::sparse(500 * GIB).with(333 * GIB + 777, pattern(9999, 52));
    store.file("thin-flat.vmdk", thin, &Layout::default());
    store
}

fn aligned(metadata_alignment: u64, sector_size: u32) -> Vmfs {
    let mut store = Vmfs::new(VmfsSpec { metadata_alignment, sector_size, ..spec(Version::Six, "aligned") });
    fill(&mut store);
    let auto = Layout::default();
    // As much as a descriptor holds, and one more; pointers that only a longer array has room for.
    let resident = metadata_alignment - 512;
    store.file("resident-full", Content::patterned(resident, 55), &auto.clone().addressing(Addressing::Resident));
    store.file("resident-over", Content::patterned(resident + 1, 56), &auto);
    let far = metadata_alignment / 16 - 2;
    let direct = Content::sparse(((far + 1) << 20) + 100).with((far << 20) + 7, pattern((1 << 20) - 7, 57));
    let layout = if metadata_alignment > 4096 { auto.clone().addressing(Addressing::Direct) } else { auto.clone() };
    store.file("direct-far", direct, &layout);
    store.mkdir("many");
    for n in 0..700 {
        store.file(&format!("many/name-{n:03}"), Content::bytes(format!("{n}\n")), &auto);
    }
    store.mkdir("collisions");
    for name in colliding_names(30) {
        store.file(&format!("collisions/{name}"), Content::bytes(name.clone()), &auto);
    }
    store.file("gone", Content::patterned(3_000_000, 58), &auto);
    store.delete_as_esxi("gone");
    store.orphan("many/name-005");
    store
}

fn span(version: Version) -> Vmfs {
    let spec = spec(version, "span");
    let extents = vec![DISK, GIB + (32 << 20), 512 << 20];
    let mut store = Vmfs::new(VmfsSpec { extents, ..spec });
    store.file("first", Content::patterned(3_000_000, 60), &Layout::default());
    store.file("everywhere", Content::patterned(60_000_000, 61), &Layout::default().shuffled(5));
    let thin = Content::sparse(30 * GIB).with(20 * GIB, pattern(9999, 62));
    store.file("thin-flat.vmdk", thin, &Layout::default().shuffled(6));
    store
}

/// The same bytes with their blocks one behind the other, and in no order.
fn fragments(version: Version) -> Vmfs {
    let mut store = Vmfs::new(spec(version, "fragments"));
    let content = Content::patterned(64 << 20, 91);
    store.file("contiguous", content.clone(), &Layout::default());
    store.file("fragmented", content, &Layout::default().shuffled(5));
    store
}

fn large_blocks() -> Vmfs {
    let spec = spec(Version::Six, "large-blocks");
    let mut store = Vmfs::new(VmfsSpec { extents: vec![6 * GIB], ..spec });
    let thick = Content::sparse(1500 << 20)
        .with(4096, pattern(70_000, 70))
        .with((512 << 20) - 300, pattern(600, 71))
        .with((1200 << 20) + 1, pattern(70_000, 72));
    let eager = Layout::default().allocation(Allocation::EagerThick).large_blocks();
    store.file("thick-flat.vmdk", thick.clone(), &eager);
    let lazy = Content::sparse(1100 << 20).with(5000, pattern(5000, 73));
    store.file("lazy-flat.vmdk", lazy, &Layout::default().allocation(Allocation::LazyThick).large_blocks());
    store
}

fn names(version: Version) -> Vmfs {
    let mut store = Vmfs::new(spec(version, "names"));
    store.mkdir("many");
    for n in 0..10_000 {
        store.file(&format!("many/name-{n:05}"), Content::bytes(format!("{n}\n")), &Layout::default());
    }
    store.mkdir("collisions");
    for name in colliding_names(30) {
        store.file(&format!("collisions/{name}"), Content::bytes(name.clone()), &Layout::default());
    }
    store.mkdir("limits");
    store.file(&format!("limits/{}", "x".repeat(127)), Content::bytes(*b"long\n"), &Layout::default());
    store.file("limits/new\nline", Content::bytes(*b"line\n"), &Layout::default());
    store
}

/// `count` names that share a slot of the hash table, all but the first few found by trying.
fn colliding_names(count: usize) -> Vec<String> {
    let slot = name_hash(b"c0") % 16001;
    (0..).map(|n| format!("c{n}")).filter(|name| name_hash(name.as_bytes()) % 16001 == slot).take(count).collect()
}

fn deleted(version: Version) -> Vmfs {
    delete_things(Vmfs::new(spec(version, "deleted")))
}

fn crashed(version: Version) -> Vmfs {
    delete_things(Vmfs::new(VmfsSpec { crashed: true, ..spec(version, "crashed") }))
}

fn delete_things(mut store: Vmfs) -> Vmfs {
    let auto = Layout::default();
    store.mkdir("vm");
    store.file("vm/vm.vmx", Content::bytes(*b"displayName = \"gone\"\n"), &auto);
    let disk = Content::sparse(64 * GIB).with(0, pattern(512, 80)).with(40 * GIB, pattern(3_000_000, 81));
    store.file("vm/vm-flat.vmdk", disk, &auto);
    store.file("vm/stays", Content::patterned(3000, 82), &auto);
    store.delete_as_esxi("vm/vm.vmx");
    store.delete_as_esxi("vm/vm-flat.vmdk");
    store.mkdir("gone");
    store.file("gone/kept-pointers", Content::patterned(4_000_000, 83), &auto);
    store.delete_keeping_pointers("gone/kept-pointers");
    store.delete_as_esxi("gone");
    store.file("orphan", Content::patterned(2_500_000, 84), &auto);
    store.orphan("orphan");
    store.file("after", Content::patterned(1000, 85), &auto);
    store
}

fn reformatted(version: Version) -> Vmfs {
    let auto = Layout::default();
    let mut older = Vmfs::new(VmfsSpec { seed: 7, ..spec(Version::Six, "older") });
    // Files are older than the format over them.
    older.set_time(FORMAT_TIME - 30 * 86_400);
    // The new datastore's file takes this one's descriptor.
    older.file("first", Content::bytes(*b"written over\n"), &auto);
    older.mkdir("test");
    let len = 100 * GIB;
    let disk = Content::sparse(len).with(0, pattern(4096, 95)).with(77 * GIB, pattern(2_000_000, 96));
    older.file("test/test-flat.vmdk", disk, &auto);
    let text = Descriptor::flat(len, "test-flat.vmdk", true, 9).text();
    older.file("test/test.vmdk", Content::bytes(text), &auto);
    let doomed = older.doomed().into_iter().filter(|d| d.path != "first").collect();
    let mut store = Vmfs::format_over(spec(version, "newer"), older.finish());
    store.file("new.txt", Content::bytes(*b"new\n"), &auto);
    store.remember(doomed);
    store
}

fn local(version: Version) -> Vmfs {
    let mut store = Vmfs::new(VmfsSpec { local: true, ..spec(version, "local") });
    fill(&mut store);
    store
}

fn small(version: Version) -> Vmfs {
    let spec = spec(version, "small");
    let mut store = Vmfs::new(VmfsSpec { extents: vec![288 << 20], ..spec });
    fill(&mut store);
    store
}

fn huge(version: Version) -> Vmfs {
    let spec = spec(version, "huge");
    let extents = vec![17 * TIB + 17 * GIB];
    let mut store = Vmfs::new(VmfsSpec { extents, all_cluster_headers: false, ..spec });
    store.file("near", Content::patterned(3_000_000, 90), &Layout::default());
    // Begins 3 MiB before the end of the first 16 TiB; the next lies wholly behind.
    let over = Layout::default().from(16 * TIB - (3 << 20));
    store.file("over", Content::patterned(5 << 20, 91), &over);
    let beyond = Layout::default().from(16 * TIB + (700 << 20));
    store.file("beyond", Content::patterned(3_000_000, 92), &beyond);
    store
}

/// What a right reader finds, as JSON. `images` names the device files in order.
#[must_use]
pub fn expectation(about: &str, images: &[String], entries: &[Expected], deleted: &[Deleted]) -> Json {
    Json::object([
        ("about", Json::text(about)),
        ("images", Json::List(images.iter().map(Json::text).collect())),
        ("entries", Json::List(entries.iter().map(entry).collect())),
        ("deleted", Json::List(deleted.iter().map(gone).collect())),
    ])
}

/// What a right reader finds for one path, as JSON.
#[must_use]
pub fn entry(e: &Expected) -> Json {
    let kind = match e.kind {
        FileType::Directory => "directory",
        FileType::File => "file",
        FileType::Symlink => "symlink",
        FileType::System => "system",
        FileType::Rdm => "rdm",
    };
    let mut members = vec![
        ("path", Json::text(&e.path)),
        ("type", Json::text(kind)),
        ("mode", Json::text(format!("{:04o}", e.mode))),
        ("mtime", Json::Number(e.time.into())),
        ("fd", Json::text(format!("{:#010x}", e.fd))),
    ];
    if e.kind != FileType::Directory {
        members.push(("size", Json::Number(e.len)));
    }
    match &e.content {
        Some(content) if e.kind == FileType::Symlink => {
            let text = content.read(0, content.len() as usize);
            members.push(("target", Json::text(String::from_utf8_lossy(&text))));
        }
        Some(content) if content.len() <= HASHED => {
            members.push(("sha256", Json::text(content.sha256())));
        }
        Some(content) => members.push(("probes", Json::List(probes(content)))),
        None => {}
    }
    Json::object(members)
}

/// What is left of one deleted path, as JSON. Positions are bytes of the volume.
#[must_use]
pub fn gone(d: &Deleted) -> Json {
    let at = &d.located;
    let blocks = at.blocks.iter().map(|b| {
        Json::object([
            ("file_offset", Json::Number(b.offset)),
            ("length", Json::Number(b.len)),
            ("volume_offset", Json::Number(b.lv)),
        ])
    });
    let how = match d.how {
        Deletion::Esxi => "as ESXi",
        Deletion::KeepingPointers => "keeping pointers",
        Deletion::NameOnly => "name only",
        Deletion::Formatted => "formatted over",
    };
    let mut members = vec![
        ("path", Json::text(&d.path)),
        ("how", Json::text(how)),
        ("fd", Json::text(format!("{:#010x}", at.fd))),
        ("fd_volume_offset", Json::Number(at.fd_lv)),
    ];
    if let Some(content) = &d.content {
        members.push(("size", Json::Number(content.len())));
        if content.len() <= 4 * HASHED {
            members.push(("sha256", Json::text(content.sha256())));
        }
    }
    let pointer_blocks = at.pointer_blocks.iter().map(|p| Json::Number(p.lv)).collect();
    members.push(("pointer_blocks", Json::List(pointer_blocks)));
    members.push(("blocks", Json::List(blocks.collect())));
    Json::object(members)
}

/// Short reads of a long file: around both ends of each piece, and at both ends of the file.
fn probes(content: &Content) -> Vec<Json> {
    let mut at = vec![0, content.len() - 32];
    for (start, piece) in content.pieces() {
        at.extend([start.saturating_sub(16), start + piece.len() as u64 - 16]);
    }
    at.sort_unstable();
    at.dedup();
    at.into_iter()
        .map(|offset| {
            let hex = hex(&content.read(offset, 32));
            Json::object([("offset", Json::Number(offset)), ("hex", Json::Text(hex))])
        })
        .collect()
}

/// Writes the scenarios whose name contains `only` into `dir`, with one JSON file each.
pub fn write(dir: &Path, only: &str) -> io::Result<()> {
    fs::create_dir_all(dir)?;
    'samples: for sample in SAMPLES.iter().filter(|s| s.name.contains(only)) {
        let store = sample.build();
        let (entries, deleted) = (store.expected(), store.deleted().to_vec());
        let devices = store.finish();
        let mut images = Vec::new();
        for (n, device) in devices.iter().enumerate() {
            let image =
                if devices.len() == 1 { format!("{}.img", sample.name) } else { format!("{}-{n}.img", sample.name) };
            match device.save(&dir.join(&image)) {
                // ext4 ends at 16 TiB; tmpfs and XFS do not.
                Err(error) if error.kind() == io::ErrorKind::FileTooLarge => {
                    eprintln!(
                        "{}: skipped, {} cannot hold a file of {} bytes",
                        sample.name,
                        dir.display(),
                        device.len()
                    );
                    fs::remove_file(dir.join(&image))?;
                    continue 'samples;
                }
                done => done?,
            }
            images.push(image);
        }
        let json = expectation(sample.about, &images, &entries, &deleted);
        fs::write(dir.join(format!("{}.json", sample.name)), json.to_string())?;
    }
    Ok(())
}
