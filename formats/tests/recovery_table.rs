//! What is left of a disk when its image is damaged: images of every kind, six kinds of damage, and how much of the
//! data comes out right, wrong and lost. What is wrong must never be sound.
//!
//! `VDRECOVER_RECOVERY_TABLE=FILE` writes the table as Markdown: `scripts/recovery-table`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::arithmetic_side_effects,
    clippy::as_conversions,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    missing_docs,
    unreachable_pub,
    reason = "tests"
)]

mod disk_support;

use disk_support::*;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::ops::Range;
use std::sync::Arc;
use vdrecover_formats::adapt::Damaged;
use vdrecover_formats::format::Window;
use vdrecover_formats::{Bytes, Content, FORMATS, Note, Opened, Role, Trust, Use, Why, read_vec};
use vdrecover_testdata::gpt::{Guid, Partition, TYPE_LINUX, write_gpt};
use vdrecover_testdata::guest::Guest;
use vdrecover_testdata::vmdk::{self, Descriptor, Order};
use vdrecover_testdata::vmdk_stream::WRITERS;
use vdrecover_testdata::vmfs::pattern;
use vdrecover_testdata::{Device, qcow2};

const MIB: u64 = 1 << 20;
const BLOCK: usize = 4096;

/// An image, with what it needs beside it.
struct Image {
    name: String,
    family: &'static str,
    bytes: Vec<u8>,
    /// The text that names it as an extent.
    text: Option<String>,
    parent: Option<Vec<u8>>,
    disk: Vec<u8>,
    /// Whether its data has checksums, so that garbage anywhere shows.
    checked: bool,
}

const DAMAGES: [&str; 6] = [
    "header zeroed",
    "first 64 KiB zeroed",
    "middle tables zeroed",
    "cut at 60 %",
    "1 % of sectors unreadable",
    "4 KiB blocks of garbage",
];

fn device(len: u64) -> Device {
    let mut device = Device::new(len);
    device.write(0, &pattern(3 * 512, 1));
    for n in 0..24 {
        let at = len / 24 * n + n * 512;
        let bytes = if n % 3 == 0 { vec![0x5a + n as u8; 150_000] } else { pattern(100_000, n) };
        device.write(at, &bytes);
    }
    device.write(len - 512, &pattern(512, 99));
    device
}

fn plain(device: &Device) -> Vec<u8> {
    device.read(0, device.len() as usize)
}

fn vmdks(all: &mut Vec<Image>) {
    let disk = device(40 * MIB);
    let large = device(700 * MIB);
    let mut add = |name: &str, bytes, text, parent, disk: &Device, checked| {
        all.push(Image { name: name.into(), family: "VMDK", bytes, text, parent, disk: plain(disk), checked });
    };
    add("monolithicSparse, 40 MiB", vmdk::hosted_sparse(&disk, "a", 1), None, None, &disk, false);
    add("monolithicSparse, 700 MiB", vmdk::hosted_sparse(&large, "a", 1), None, None, &large, false);
    for writer in WRITERS {
        add(&format!("stream, as {}", writer.name), writer.write(&disk, 1), None, None, &disk, true);
    }
    for (name, disk) in [("extent of a split sparse disk", &disk), ("the same, 700 MiB", &large)] {
        let mut extent = vmdk::hosted_sparse(disk, "a", 1);
        extent[512..21 * 512].fill(0);
        let mut text = Descriptor::flat(disk.len(), "extent", true, 31);
        text.create_type = "twoGbMaxExtentSparse".into();
        text.extents = vec![("RW".into(), disk.len() / 512, "SPARSE".into(), "extent".into())];
        add(name, extent, Some(text.text()), None, disk, false);
    }
    let mut now = disk.clone();
    now.write(3 * MIB, &pattern(1_500_000, 7));
    now.write(20 * MIB + 512, &pattern(500_000, 8));
    let parent = Some(plain(&disk));
    let cowd = vmdk::cowd(now.len(), &vmdk::difference(&disk, &now, 512));
    let text = Descriptor::delta(now.len(), "VMFSSPARSE", "extent", "parent", 31).text();
    add("COWD over flat", cowd, Some(text), parent.clone(), &now, false);
    let grains = vmdk::difference(&disk, &now, 4096);
    for (name, order) in
        [("SESparse over flat", Order::Ascending), ("SESparse over flat, descending", Order::Descending)]
    {
        let text = Descriptor::delta(now.len(), "SESPARSE", "extent", "parent", 31).text();
        add(name, vmdk::sesparse(now.len(), &grains, order), Some(text), parent.clone(), &now, false);
    }
    // A zero grain is an entry and nothing else: what is left of them tells that others may be gone.
    now.zero(5 * MIB..6 * MIB);
    now.zero(30 * MIB..31 * MIB);
    let grains = vmdk::difference(&disk, &now, 4096);
    let text = Descriptor::delta(now.len(), "SESPARSE", "extent", "parent", 31).text();
    add(
        "SESparse with zero grains over flat",
        vmdk::sesparse(now.len(), &grains, Order::Ascending),
        Some(text),
        parent,
        &now,
        false,
    );
}

fn qcow2s(all: &mut Vec<Image>) {
    let plain_options = qcow2::Options::default;
    for (name, options) in [
        ("v3", plain_options()),
        ("v2", qcow2::Options { version: 2, ..plain_options() }),
        ("clusters of 512", qcow2::Options { cluster_bits: 9, ..plain_options() }),
        ("clusters of 4 KiB", qcow2::Options { cluster_bits: 12, ..plain_options() }),
        ("deflate", qcow2::Options { compression: qcow2::Compression::Deflate, ..plain_options() }),
        ("zstd", qcow2::Options { compression: qcow2::Compression::Zstd, ..plain_options() }),
    ] {
        let disk = device(40 * MIB);
        let bytes = qcow2::write(&disk, &options);
        let (name, disk) = (name.into(), plain(&disk));
        all.push(Image { name, family: "QCOW2", bytes, text: None, parent: None, disk, checked: false });
    }
}

/// Images of qemu-img, where it is installed.
fn of_qemu(all: &mut Vec<Image>) {
    if !has("qemu-img", "recovery_table") {
        return;
    }
    let folder = Folder::new();
    let disk = plain(&device(40 * MIB));
    folder.write("plain.raw", &disk);
    for (family, format, name, options, more) in [
        ("VMDK", "vmdk", "monolithicSparse of qemu-img", "subformat=monolithicSparse", None),
        ("VMDK", "vmdk", "the same with zeroed grains", "subformat=monolithicSparse,zeroed_grain=on", None),
        ("VMDK", "vmdk", "streamOptimized of qemu-img", "subformat=streamOptimized", None),
        ("QCOW2", "qcow2", "of qemu-img", "compat=1.1", None),
        ("QCOW2", "qcow2", "of qemu-img, v2", "compat=0.10", None),
        ("QCOW2", "qcow2", "of qemu-img, clusters of 4 KiB", "cluster_size=4096", None),
        ("QCOW2", "qcow2", "of qemu-img, clusters of 2 MiB", "cluster_size=2M", None),
        ("QCOW2", "qcow2", "of qemu-img, extended L2", "extended_l2=on,cluster_size=128k", None),
        ("QCOW2", "qcow2", "of qemu-img, deflate", "compression_type=zlib", Some("-c")),
        ("QCOW2", "qcow2", "of qemu-img, zstd", "compression_type=zstd", Some("-c")),
    ] {
        let mut args = vec!["convert", "-O", format, "-o", options, "-f", "raw"];
        args.extend(more);
        args.extend(["plain.raw", "image"]);
        folder.run("qemu-img", &args);
        let bytes = std::fs::read(folder.path("image")).unwrap();
        std::fs::remove_file(folder.path("image")).unwrap();
        let checked = name.starts_with("stream");
        all.push(Image { name: name.into(), family, bytes, text: None, parent: None, disk: disk.clone(), checked });
    }
}

impl Image {
    /// The disk of a damaged image, as the program opens it: by its head, else by a search.
    fn disk_of(&self, bytes: &Bytes) -> Option<Bytes> {
        if let Some(text) = &self.text {
            let opened = open(&memory(text.clone().into_bytes()));
            return self.join(&opened, Some(bytes));
        }
        let mut rows: Vec<_> = FORMATS.iter().filter(|row| row.name != "raw" && (row.probe)(&**bytes) > 0).collect();
        rows.sort_by_key(|row| std::cmp::Reverse((row.probe)(&**bytes)));
        let disk_rows = rows.iter().filter(|row| ["kdmv", "qcow2", "vmdk"].contains(&row.name));
        let mut disk_rows = disk_rows;
        let opened = disk_rows.find_map(|row| (row.open)(bytes, &memo()).ok());
        opened.or_else(|| swept(bytes)).and_then(|opened| self.join(&opened, None))
    }

    fn join(&self, opened: &Opened, extent: Option<&Bytes>) -> Option<Bytes> {
        let others: Vec<Option<Bytes>> = opened
            .wants
            .iter()
            .map(|want| match want.role {
                Role::Parent => self.parent.clone().map(memory),
                _ => extent.cloned(),
            })
            .collect();
        match (opened.join)(&others).ok()? {
            Content::Disks(disks) => disks.first().map(|disk| disk.bytes.clone()),
            _ => None,
        }
    }

    /// Where its metadata lies, behind the header.
    fn metadata(&self) -> Vec<Range<usize>> {
        let bytes = memory(self.bytes.clone());
        let disk = self.disk_of(&bytes).expect("it is whole");
        let mut ranges = Vec::new();
        for part in 0..disk.parts() {
            let _ = disk.audit(part, &mut |note| {
                if let Note::Claim { range, of: Use::Metadata, layer } = note
                    && layer.len() == bytes.len()
                    && range.start >= 512
                {
                    ranges.push(range.start as usize..range.end as usize);
                }
                std::ops::ControlFlow::Continue(())
            });
        }
        ranges.sort_by_key(|range| range.start);
        ranges.dedup();
        ranges
    }

    fn damaged(&self, damage: usize) -> Bytes {
        let mut bytes = self.bytes.clone();
        let mut random = Random(0x0123_4567_89ab_cdef ^ damage as u64);
        match damage {
            0 => bytes[..512].fill(0),
            1 => {
                let len = bytes.len().min(64 << 10);
                bytes[..len].fill(0);
            }
            2 => {
                // The descriptor in it is no table.
                let tables: Vec<_> = self.metadata().into_iter().filter(|range| range.start != 512).collect();
                let all: usize = tables.iter().map(Range::len).sum();
                let mut passed = 0;
                for range in tables {
                    let from = (all / 3).saturating_sub(passed).min(range.len());
                    let to = (all * 2 / 3).saturating_sub(passed).min(range.len());
                    passed += range.len();
                    bytes[range.start + from..range.start + to].fill(0);
                }
            }
            3 => bytes.truncate(bytes.len() * 6 / 10 / 512 * 512),
            4 => {
                let count = bytes.len() / 512 / 100;
                let all = bytes.len() / 512;
                let bad = (0..count.max(1)).map(|_| random.below(all) as u64 * 512);
                let bad = bad.map(|at| at..at + 512).collect();
                return Arc::new(Damaged::new(memory(bytes), bad, Why::Unreadable));
            }
            _ => {
                let places: Vec<usize> = if self.checked {
                    (0..bytes.len() / BLOCK).collect()
                } else {
                    let touched =
                        self.metadata().into_iter().flat_map(|range| range.start / BLOCK..range.end.div_ceil(BLOCK));
                    let mut touched: Vec<usize> = touched.collect();
                    touched.dedup();
                    touched
                };
                for _ in 0..(places.len() / 20).max(1) {
                    let from = places[random.below(places.len())] * BLOCK;
                    let to = (from + BLOCK).min(bytes.len());
                    // What is no metadata in the block stays.
                    let all = from..to;
                    let metadata = if self.checked { Vec::new() } else { self.metadata() };
                    let only = if self.checked { std::slice::from_ref(&all) } else { &metadata };
                    for range in only {
                        let (start, end) = (range.start.max(from), range.end.min(to));
                        bytes[start.min(end)..end].iter_mut().for_each(|byte| *byte = random.next() as u8);
                    }
                }
            }
        }
        memory(bytes)
    }
}

/// What a search of the whole file finds.
fn swept(bytes: &Bytes) -> Option<Opened> {
    for row in FORMATS.iter().filter(|row| row.name == "kdmv" || row.name == "qcow2") {
        let Some(sweep) = row.sweep else { continue };
        let mut clues = Vec::new();
        for at in (0..bytes.len()).step_by(1 << 20) {
            let own = (bytes.len() - at).min(1 << 20) as usize;
            let (window, _) = read_vec(&**bytes, at, (bytes.len() - at).min(2 << 20) as usize);
            (sweep.look)(&Window { at, bytes: &window, own }, &mut |clue| clues.push(clue));
        }
        clues.sort_unstable();
        if let Ok(opened) = (sweep.build)(bytes, &memo(), &clues) {
            return Some(opened);
        }
    }
    None
}

#[derive(Clone, Copy, Debug, Default)]
struct Cell {
    all: u64,
    right: u64,
    wrong: u64,
    sound: u64,
    lost: u64,
    opened: bool,
}

impl Cell {
    /// Whether all but `taken` percent of the data is right.
    fn passes(&self, taken: f64) -> bool {
        self.opened && (self.all - self.right) as f64 * 100.0 <= taken * self.all as f64
    }

    fn show(&self, table: &mut String) {
        let share = |bytes: u64| format!("{:.1}", bytes as f64 * 100.0 / self.all as f64);
        let mark = if self.sound > 0 { " !" } else { "" };
        if self.opened {
            write!(table, " {} / {} / {}{mark} |", share(self.right), share(self.wrong), share(self.lost)).unwrap();
        } else {
            write!(table, " - |").unwrap();
        }
    }
}

fn judge(image: &Image, damage: usize) -> Cell {
    compare(&image.disk, image.disk_of(&image.damaged(damage)).as_ref())
}

fn compare(right: &[u8], disk: Option<&Bytes>) -> Cell {
    let mut cell = Cell { opened: disk.is_some(), ..Cell::default() };
    for at in (0..right.len()).step_by(BLOCK) {
        let want = &right[at..(at + BLOCK).min(right.len())];
        let is_data = want.iter().any(|byte| *byte != 0);
        cell.all += if is_data { want.len() as u64 } else { 0 };
        let Some(disk) = disk else {
            cell.lost += if is_data { want.len() as u64 } else { 0 };
            continue;
        };
        let inside = disk.len().saturating_sub(at as u64).min(want.len() as u64) as usize;
        let (bytes, seen) = read_vec(&**disk, at as u64, inside);
        if bytes == want && seen.is_whole() {
            cell.right += if is_data { want.len() as u64 } else { 0 };
            continue;
        }
        let mut gone = vec![false; want.len()];
        gone[inside..].fill(true);
        for gap in &seen.gaps {
            gone[gap.range.start as usize - at..gap.range.end as usize - at].fill(true);
        }
        for (n, byte) in want.iter().enumerate() {
            let right = bytes.get(n) == Some(byte);
            match (gone[n], right) {
                (true, _) => cell.lost += u64::from(is_data),
                (false, true) => cell.right += u64::from(is_data),
                (false, false) => {
                    cell.wrong += 1;
                    cell.sound += u64::from(seen.trust == Trust::Sound);
                }
            }
        }
    }
    cell
}

const HEAD: &str = "# What is left of a damaged disk

Made by `scripts/recovery-table`. Each cell: the share of the bytes that hold data that comes out right / wrong / lost.
Wrong bytes are never called sound in the cells without a mark. A cell with `!` has wrong bytes that are called sound;
`-` says that the image was not recognised at all.

The damage: the first 512 bytes are zeros; the first 64 KiB are; the middle third of all tables is; the last 40 % of the
file are missing; one sector in a hundred, anywhere, can't be read; one 4 KiB block in twenty is overwritten with noise.
Streams have a checksum in every grain, so that the noise may hit anything. In all other images it hits metadata only:
that their data changed, no reader can see, nor in flat images anything at all, which are therefore not in the table.
The zero grains of SESparse are an entry and nothing else: where there are any, what the parent shows is not sound, since
others may be gone. That all of them are gone at once, nobody can tell.
Deltas and the extents of split disks are opened through their descriptor, which is whole, over a parent, which is whole.

";

/// The other table: QCOW2 with a snapshot and a change since, and one structure gone.
const STRUCTURES: [&str; 6] = ["header", "L1", "an L2 table", "refcounts", "snapshot table", "cut at 60 %"];

/// A QCOW2 image of qemu-img with one snapshot, and what its two states hold.
struct Kept {
    name: String,
    bytes: Vec<u8>,
    now: Vec<u8>,
    then: Vec<u8>,
}

fn be64(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap())
}

impl Kept {
    fn cluster(&self) -> usize {
        1 << u32::from_be_bytes(self.bytes[20..24].try_into().unwrap())
    }

    /// The places that a table has, without flags.
    fn places(&self, table: usize, entries: usize) -> Vec<usize> {
        let places = (0..entries).map(|n| be64(&self.bytes, table + n * 8) & 0x00ff_ffff_ffff_fe00);
        places.filter(|place| *place != 0).map(|place| place as usize).collect()
    }

    fn damaged(&self, damage: usize) -> Bytes {
        let mut bytes = self.bytes.clone();
        let cluster = self.cluster();
        let (l1, l1_size) = (be64(&bytes, 40) as usize, (be64(&bytes, 32) & 0xffff_ffff) as usize);
        let (counts, count_tables) = (be64(&bytes, 48) as usize, (be64(&bytes, 56) >> 32) as usize);
        match damage {
            0 => bytes[..cluster].fill(0),
            1 => bytes[l1..l1 + l1_size * 8].fill(0),
            2 => {
                let tables = self.places(l1, l1_size);
                let table = tables[tables.len() / 2];
                bytes[table..table + cluster].fill(0);
            }
            3 => {
                for block in self.places(counts, count_tables * cluster / 8) {
                    bytes[block..block + cluster].fill(0);
                }
                bytes[counts..counts + count_tables * cluster].fill(0);
            }
            4 => {
                let table = be64(&bytes, 64) as usize;
                bytes[table..(table + cluster).min(self.bytes.len())].fill(0);
            }
            _ => bytes.truncate(bytes.len() * 6 / 10 / 512 * 512),
        }
        memory(bytes)
    }

    /// The states of a damaged image, as the program opens it.
    fn states(bytes: &Bytes) -> Vec<Bytes> {
        let row = FORMATS.iter().find(|row| row.name == "qcow2").unwrap();
        let opened = if (row.probe)(&**bytes) > 0 { (row.open)(bytes, &memo()).ok() } else { None };
        match opened.or_else(|| swept(bytes)).map(|opened| (opened.join)(&vec![None; opened.wants.len()])) {
            Some(Ok(Content::Disks(disks))) => disks.into_iter().map(|disk| disk.bytes).collect(),
            _ => Vec::new(),
        }
    }

    fn judge(&self, damage: usize) -> Cell {
        let states = Self::states(&self.damaged(damage));
        let mut cell = compare(&self.now, states.first());
        if damage == 4 {
            // Its snapshot must be there too.
            let then = compare(&self.then, states.get(1));
            cell.opened &= then.opened;
            for (to, from) in [
                (&mut cell.all, then.all),
                (&mut cell.right, then.right),
                (&mut cell.wrong, then.wrong),
                (&mut cell.sound, then.sound),
                (&mut cell.lost, then.lost),
            ] {
                *to += from;
            }
        }
        cell
    }
}

/// A disk with a GPT, an ext4 file system of so many MiB, and files all over it. `None` without e2fsprogs.
fn guest(folder: &Folder, number: u8, len: u64) -> Option<Device> {
    let mut guest = Guest::new(&folder.0, len - 2 * MIB, "guest", number, 1_700_000_000).ok()?;
    let file = |n: u64, len| (format!("folder{}/file{n}", n % 7), pattern(len, n));
    let files: Vec<_> = (0..40).map(|n| file(n, 200_000 + n as usize * 30_011)).collect();
    guest.change(1_700_000_001, &files, &[]).ok()?;
    let mut disk = Device::new(len);
    write_gpt(
        &mut disk,
        Guid::seeded(9),
        &[Partition { kind: TYPE_LINUX, name: "root", start: MIB, len: len - 2 * MIB }],
    );
    disk.embed(MIB, &guest.device().ok()?);
    Some(disk)
}

/// 24 images: twelve sets of options, each with a disk of text and noise and with a guest's file system.
fn with_snapshots(folder: &Folder) -> Vec<Kept> {
    let options = [
        ("v3", "compat=1.1", false),
        ("v2", "compat=0.10", false),
        ("clusters of 512", "cluster_size=512", false),
        ("clusters of 4 KiB", "cluster_size=4k", false),
        ("clusters of 16 KiB, v2", "cluster_size=16k,compat=0.10", false),
        ("clusters of 2 MiB", "cluster_size=2M", false),
        ("refcounts of 1 bit to start with", "refcount_bits=8", false),
        ("extended L2, 64 KiB", "extended_l2=on", false),
        ("extended L2, 16 KiB", "extended_l2=on,cluster_size=16k", false),
        ("deflate", "compression_type=zlib", true),
        ("zstd", "compression_type=zstd", true),
        ("deflate, 4 KiB", "cluster_size=4k", true),
    ];
    let mut all = Vec::new();
    let sources = [("data", Some(device(40 * MIB))), ("ext4 in GPT", guest(folder, 1, 64 * MIB))];
    for (what, disk) in sources {
        let Some(disk) = disk else { continue };
        folder.write("plain.raw", &plain(&disk));
        for (name, options, packed) in options {
            let mut args = vec!["convert", "-O", "qcow2", "-o", options, "-f", "raw"];
            args.extend(packed.then_some("-c"));
            args.extend(["plain.raw", "image"]);
            folder.run("qemu-img", &args);
            folder.run("qemu-img", &["snapshot", "-c", "then", "image"]);
            folder.run("qemu-io", &["-f", "qcow2", "-c", "write -P 77 20M 64k", "-c", "write -P 78 33M 30k", "image"]);
            let now = folder.raw(&["-f", "qcow2", "image"]);
            let bytes = std::fs::read(folder.path("image")).unwrap();
            all.push(Kept { name: format!("{what}, {name}"), bytes, now, then: plain(&disk) });
        }
    }
    all
}

/// The rows of the other table, cells, cells that pass, and those with something wrong that is called sound.
fn structures(table: &mut String) -> (u64, u64, Vec<String>) {
    let (mut cells, mut passed, mut silent) = (0, 0, Vec::new());
    if !has("qemu-io", "recovery_table") {
        return (cells, passed, silent);
    }
    let folder = Folder::new();
    writeln!(table, "| image | {} |\n|---|{}", STRUCTURES.join(" | "), "---|".repeat(STRUCTURES.len())).unwrap();
    let mut of_each = [0; STRUCTURES.len()];
    for image in with_snapshots(&folder) {
        write!(table, "| {} |", image.name).unwrap();
        for (n, damage) in STRUCTURES.iter().enumerate() {
            let cell = image.judge(n);
            cells += 1;
            let taken = if n == 5 { 45.0 } else { 5.0 };
            let pass = u64::from(cell.passes(taken));
            passed += pass;
            of_each[n] += pass;
            cell.show(table);
            if cell.sound > 0 {
                silent.push(format!("{}, {damage}: {cell:?}", image.name));
            }
        }
        table.push('\n');
    }
    let each: Vec<String> = STRUCTURES.iter().zip(of_each).map(|(name, count)| format!("{name} {count}")).collect();
    writeln!(
        table,
        "\n{cells} cells, {passed} of them recovered, {} with something wrong that is called sound.",
        silent.len()
    )
    .unwrap();
    writeln!(table, "By structure, of {}: {}.", cells / 6, each.join(", ")).unwrap();
    (cells, passed, silent)
}

const STRUCTURES_HEAD: &str = "
## QCOW2 without one of its structures

Each image was made by qemu-img, then a snapshot was taken and 94 KiB written. One structure is zeros: the cluster of
the header, the current L1 table, the middle one of its L2 tables, the table of refcounts with all its blocks, or the
cluster of the snapshot table; or the file ends at 60 %. The share is that of the current state; where the snapshot table
is gone, that of both. A cell is recovered if 95 % of its data is right, 55 % where the file is cut.

";

#[test]
fn what_is_wrong_is_never_sound() {
    let mut images = Vec::new();
    vmdks(&mut images);
    qcow2s(&mut images);
    of_qemu(&mut images);
    let mut table = String::from(HEAD);
    writeln!(table, "| image | {} |\n|---|{}", DAMAGES.join(" | "), "---|".repeat(DAMAGES.len())).unwrap();
    let mut sums: BTreeMap<&str, (u64, u64, u64)> = BTreeMap::new();
    let mut failed = Vec::new();
    for image in &images {
        write!(table, "| {} {} |", image.family, image.name).unwrap();
        for (n, damage) in DAMAGES.iter().enumerate() {
            let cell = judge(image, n);
            cell.show(&mut table);
            let sum = sums.entry(image.family).or_default();
            sum.0 += 1;
            // Whole, but for what the damage itself took.
            let taken = if n == 3 { 45.0 } else { 5.0 };
            sum.1 += u64::from(cell.passes(taken));
            sum.2 += u64::from(cell.sound > 0);
            if cell.sound > 0 {
                failed.push(format!("{}, {damage}: {cell:?}", image.name));
            }
        }
        table.push('\n');
    }
    table.push('\n');
    for (family, (all, whole, silent)) in sums {
        writeln!(
            table,
            "{family}: {all} cells; in {whole} at least 95 % of the data is right (55 % where the file is cut), in \
             {silent} something wrong is called sound."
        )
        .unwrap();
    }
    table.push_str(STRUCTURES_HEAD);
    let (cells, passed, silent) = structures(&mut table);
    failed.extend(silent);
    if let Some(path) = std::env::var_os("VDRECOVER_RECOVERY_TABLE") {
        std::fs::write(path, &table).unwrap();
    }
    assert!(images.len() >= 17, "{}", images.len());
    assert!(cells == 0 || passed > 98, "{passed} of {cells} cells\n{table}");
    assert!(failed.is_empty(), "wrong and sound:\n{}\n{table}", failed.join("\n"));
}
