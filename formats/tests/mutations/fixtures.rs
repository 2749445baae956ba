//! One fixture or more for every row of the table of formats, with the places of their metadata.

use super::image::Image;
use std::ops::Range;
use std::sync::Arc;
use vdrecover_formats::Bytes;
use vdrecover_formats::link::{Role, Want};
use vdrecover_testdata::vmdk::{self, Descriptor, Grain, Order};
use vdrecover_testdata::vmdk_stream::WRITERS;
use vdrecover_testdata::vmfs::{Addressing, Content, Expected, FileType, Layout, Version, Vmfs, VmfsSpec, pattern};
use vdrecover_testdata::{Device, ewf, gpt, ova, qcow1, qcow2, vdi, vhd, vhdx};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// An image, or several that belong together; the first is the one that is opened.
#[derive(Clone, Debug)]
pub struct Fixture {
    pub name: &'static str,
    /// The row of the table that reads it.
    pub format: &'static str,
    pub parts: Vec<Part>,
    pub expect: Expect,
    /// Whether the format knows how long its image must be.
    pub knows_len: bool,
}

#[derive(Clone, Debug)]
pub struct Part {
    /// What the others call it.
    pub name: String,
    pub device: Arc<Device>,
    /// Where metadata lies. An image without any is not mutated.
    pub areas: Vec<Area>,
}

/// Where a structure lies.
#[derive(Clone, Debug)]
pub struct Area {
    pub what: &'static str,
    pub range: Range<u64>,
    /// Whether the format has a checksum or a copy that reveals any one change.
    pub checked: bool,
}

#[derive(Clone, Debug)]
pub enum Expect {
    Disk(Device),
    Volumes(Vec<(&'static str, Range<u64>)>),
    Tree(Vec<Expected>),
}

fn area(what: &'static str, at: u64, len: u64) -> Area {
    Area { what, range: at..at + len, checked: false }
}

fn checked(what: &'static str, at: u64, len: u64) -> Area {
    Area { checked: true, ..area(what, at, len) }
}

fn part(name: &str, bytes: &[u8], areas: Vec<Area>) -> Part {
    Part { name: name.into(), device: Arc::new(Device::from_bytes(bytes)), areas }
}

impl Fixture {
    /// What a want of the opened image gets, by its role and the name in it.
    pub fn partner(&self, images: &[Bytes], want: &Want, members: &mut usize) -> Option<Bytes> {
        let named = |name: &[u8]| self.parts.iter().position(|part| part.name.as_bytes() == name);
        let index = match want.role {
            Role::Parent => named(b"parent"),
            Role::Extent | Role::DataFile => want.hint.as_deref().and_then(named),
            Role::Member => {
                *members += 1;
                Some(*members)
            }
        };
        images.get(index?).cloned()
    }

    pub fn images(&self) -> Vec<Image> {
        self.parts.iter().map(|part| Image::new(&part.device)).collect()
    }
}

/// All fixtures.
pub fn all() -> Vec<Fixture> {
    let mut all = vec![raw(), mbr_disk(), gpt_disk(), flat(), sesparse(), stream()];
    all.extend(hosted());
    all.extend(streams());
    all.extend(cowd());
    all.extend(vhds());
    all.extend(vhdxs());
    all.extend(vdis());
    all.extend(qcow1s());
    all.push(exported());
    all.push(examined());
    let plain = qcow2::Options { cluster_bits: 12, ..qcow2::Options::default() };
    for (name, options) in [
        ("qcow2", plain.clone()),
        ("qcow2-v2", qcow2::Options { version: 2, ..plain.clone() }),
        ("qcow2-deflate", qcow2::Options { compression: qcow2::Compression::Deflate, ..plain.clone() }),
        ("qcow2-zstd", qcow2::Options { compression: qcow2::Compression::Zstd, cluster_bits: 16, ..plain.clone() }),
        (
            "qcow2-backed",
            qcow2::Options {
                backing: Some(("parent".into(), "raw".into())),
                zero_clusters: Vec::from([3 * MIB..3 * MIB + 64 * KIB]),
                ..plain
            },
        ),
    ] {
        all.push(qcow2_disk(name, &options));
    }
    all.extend([
        vmfs("vmfs5", VmfsSpec::new(Version::Five, 288 << 20)),
        vmfs("vmfs6", VmfsSpec::new(Version::Six, 288 << 20)),
        vmfs("vmfs6-span", VmfsSpec { extents: vec![320 << 20, 288 << 20], ..VmfsSpec::new(Version::Six, 0) }),
    ]);
    all
}

/// A disk with data at both ends and holes between.
pub fn disk(len: u64, seed: u64) -> Device {
    let mut device = Device::new(len);
    device.write(0, &pattern(9000, seed));
    device.write(len / 4 + 700, &pattern(100_000, seed + 1));
    device.write(len / 2, &vec![0x5A; 70_000]);
    device.write(len - 5000, &pattern(5000, seed + 2));
    device
}

fn be64(bytes: &[u8], at: u64) -> u64 {
    u64::from_be_bytes(bytes[at as usize..at as usize + 8].try_into().unwrap())
}

fn le64(bytes: &[u8], at: u64) -> u64 {
    u64::from_le_bytes(bytes[at as usize..at as usize + 8].try_into().unwrap())
}

fn le32(bytes: &[u8], at: u64) -> u64 {
    u64::from(u32::from_le_bytes(bytes[at as usize..at as usize + 4].try_into().unwrap()))
}

fn raw() -> Fixture {
    let device = disk(MIB, 1);
    let parts =
        vec![Part { name: "disk".into(), device: Arc::new(device.clone()), areas: vec![area("data", 0, 4096)] }];
    Fixture { name: "raw", format: "raw", parts, expect: Expect::Disk(device), knows_len: false }
}

fn mbr_disk() -> Fixture {
    let mut device = disk(8 * MIB, 10);
    gpt::write_mbr(&mut device, 0x1234_5678, &[(0x83, MIB, 2 * MIB), (0xFB, 4 * MIB, 3 * MIB)]);
    let parts = vec![Part { name: "disk".into(), device: Arc::new(device), areas: vec![area("table", 440, 72)] }];
    let expect = Expect::Volumes(vec![("p1", MIB..3 * MIB), ("p2", 4 * MIB..7 * MIB)]);
    Fixture { name: "mbr", format: "mbr", parts, expect, knows_len: true }
}

fn gpt_disk() -> Fixture {
    let len = 8 * MIB;
    let mut device = disk(len, 20);
    let partition = |name, start, len| gpt::Partition { kind: gpt::Guid::seeded(7), name, start, len };
    let rows = [partition("first", MIB, 2 * MIB), partition("second", 4 * MIB, 3 * MIB)];
    gpt::write_gpt(&mut device, gpt::Guid::seeded(9), &rows);
    let areas = vec![
        checked("protective MBR", 440, 72),
        checked("primary header", 512, 92),
        checked("primary table", 1024, 512),
        checked("backup table", len - 33 * 512, 512),
        checked("backup header", len - 512, 92),
    ];
    let parts = vec![Part { name: "disk".into(), device: Arc::new(device), areas }];
    let expect = Expect::Volumes(vec![("p1", MIB..3 * MIB), ("p2", 4 * MIB..7 * MIB)]);
    Fixture { name: "gpt", format: "gpt", parts, expect, knows_len: true }
}

fn flat() -> Fixture {
    let device = disk(2 * MIB, 30);
    let text = Descriptor::flat(device.len(), "disk-flat.vmdk", true, 30).text();
    let text = part("disk.vmdk", text.as_bytes(), vec![area("descriptor", 0, text.len() as u64)]);
    let extent = Part { name: "disk-flat.vmdk".into(), device: Arc::new(device.clone()), areas: Vec::new() };
    let expect = Expect::Disk(device);
    Fixture { name: "vmdk-flat", format: "vmdk", parts: vec![text, extent], expect, knows_len: true }
}

/// A sparse extent, opened through a descriptor that names it.
fn sparse(
    name: &'static str,
    kind: &str,
    bytes: &[u8],
    areas: Vec<Area>,
    device: Device,
    parent: Option<Device>,
) -> Fixture {
    let text = if parent.is_some() {
        Descriptor::delta(device.len(), kind, "extent.vmdk", "parent", 31).text()
    } else {
        let mut descriptor = Descriptor::flat(device.len(), "extent.vmdk", true, 31);
        descriptor.create_type = "twoGbMaxExtentSparse".into();
        descriptor.extents = vec![("RW".into(), device.len() / 512, kind.into(), "extent.vmdk".into())];
        descriptor.text()
    };
    let mut parts = vec![part("disk.vmdk", text.as_bytes(), Vec::new()), part("extent.vmdk", bytes, areas)];
    parts.extend(parent.map(|device| Part { name: "parent".into(), device: Arc::new(device), areas: Vec::new() }));
    Fixture { name, format: "vmdk", parts, expect: Expect::Disk(device), knows_len: true }
}

/// A hosted extent that a descriptor names, and one that stands alone with its descriptor in it.
fn hosted() -> [Fixture; 2] {
    let device = disk(4 * MIB, 40);
    let bytes = vmdk::hosted_sparse(&device, "extent.vmdk", 0x1234_5678);
    let mut areas = vec![area("header", 0, 79)];
    for (directory, tables, field) in
        [("second directory", "second tables", 48), ("first directory", "first tables", 56)]
    {
        let at = le64(&bytes, field) * 512;
        areas.push(checked(directory, at, 4));
        areas.push(checked(tables, le32(&bytes, at) * 512, 64 * 4));
    }
    let mut alone = areas.clone();
    alone.push(area("descriptor", le64(&bytes, 28) * 512, 300));
    let expect = Expect::Disk(device.clone());
    let parts = vec![part("disk", &bytes, alone)];
    let alone = Fixture { name: "kdmv", format: "kdmv", parts, expect, knows_len: true };
    [sparse("vmdk-hosted", "SPARSE", &bytes, areas, device, None), alone]
}

/// Packed grains, with the directory that the footer names.
fn stream() -> Fixture {
    let device = disk(4 * MIB, 45);
    let bytes = vmdk::stream_optimized(&device, "stream.vmdk", 0x8765_4321);
    let footer = bytes.len() as u64 - 1024;
    let directory = le64(&bytes, footer + 56) * 512;
    let areas = vec![
        area("header", 0, 79),
        area("footer", footer, 79),
        area("directory", directory, 4),
        area("tables", le32(&bytes, directory) * 512, 64 * 4),
    ];
    let parts = vec![part("disk", &bytes, areas)];
    Fixture { name: "kdmv-stream", format: "kdmv", parts, expect: Expect::Disk(device), knows_len: true }
}

/// The layouts in which the header names the directory: behind the grains, and before them in one copy and in two.
fn streams() -> Vec<Fixture> {
    let device = disk(4 * MIB, 46);
    let names = ["kdmv-ovftool", "kdmv-qemu", "kdmv-open-vmdk"];
    let writers = WRITERS.into_iter().filter(|writer| names.iter().any(|name| name[5..] == *writer.name));
    let fixtures = writers.zip(names).map(|(writer, name)| {
        let bytes = writer.write(&device, 0x8765_4321);
        let directory = le64(&bytes, 56) * 512;
        let mut areas = vec![
            area("header", 0, 79),
            area("directory", directory, 4),
            checked("tables", le32(&bytes, directory) * 512, 64 * 4),
        ];
        let second = le64(&bytes, 48) * 512;
        if second != 0 {
            areas.push(checked("second tables", le32(&bytes, second) * 512, 64 * 4));
        }
        let parts = vec![part("disk", &bytes, areas)];
        Fixture { name, format: "kdmv", parts, expect: Expect::Disk(device.clone()), knows_len: true }
    });
    fixtures.collect()
}

/// A parent, what a delta of grains makes of it, and the grains.
fn delta(grain: u64) -> (Device, Device, std::collections::BTreeMap<u64, Grain>) {
    let parent = disk(4 * MIB, 50);
    let mut now = parent.clone();
    now.write(64 * KIB, &pattern(50_000, 53));
    now.zero(2 * MIB..2 * MIB + 16 * KIB);
    let grains = vmdk::difference(&parent, &now, grain);
    (parent, now, grains)
}

/// A COWD delta that a descriptor names, and the same one without.
fn cowd() -> [Fixture; 2] {
    let (parent, now, grains) = delta(512);
    let bytes = vmdk::cowd(now.len(), &grains);
    let directory = le32(&bytes, 20) * 512;
    let entries = le32(&bytes, 24);
    let mut areas = vec![area("header", 0, 32), area("directory", directory, entries * 4)];
    for entry in 0..entries {
        let table = le32(&bytes, directory + entry * 4) * 512;
        areas.extend((table != 0).then(|| area("tables", table, 4096)));
    }
    let beside = Part { name: "parent".into(), device: Arc::new(parent.clone()), areas: Vec::new() };
    let parts = vec![part("extent.vmdk", &bytes, areas.clone()), beside];
    let alone = Fixture { name: "cowd", format: "cowd", parts, expect: Expect::Disk(now.clone()), knows_len: true };
    [sparse("vmdk-cowd", "VMFSSPARSE", &bytes, areas, now, Some(parent)), alone]
}

fn sesparse() -> Fixture {
    let (parent, now, grains) = delta(4096);
    let bytes = vmdk::sesparse(now.len(), &grains, Order::Descending);
    let field = |n: u64| le64(&bytes, n * 8) * 512;
    let areas = vec![
        area("constant header", 0, 208),
        area("volatile header", 512, 32),
        area("directory", field(16), 8),
        area("tables", field(18), 8 * KIB),
    ];
    let extent = part("extent.vmdk", &bytes, areas);
    let parent = Part { name: "parent".into(), device: Arc::new(parent), areas: Vec::new() };
    let expect = Expect::Disk(now);
    Fixture { name: "sesparse", format: "sesparse", parts: vec![extent, parent], expect, knows_len: true }
}

fn be32(bytes: &[u8], at: u64) -> u64 {
    u64::from(u32::from_be_bytes(bytes[at as usize..at as usize + 4].try_into().unwrap()))
}

/// A fixed, a dynamic and a differencing VHD.
fn vhds() -> [Fixture; 3] {
    let writer = vhd::Vhd { block: 512 * KIB, ..vhd::Vhd::default() };
    let (parent, now, _) = delta(512);
    let fixture = |name, bytes: &[u8], areas, disk: &Device, beside: Option<&Device>| {
        let mut parts = vec![part("disk", bytes, areas)];
        let beside = beside.map(|device| Arc::new(device.clone()));
        parts.extend(beside.map(|device| Part { name: "parent".into(), device, areas: Vec::new() }));
        Fixture { name, format: "vhd", parts, expect: Expect::Disk(disk.clone()), knows_len: true }
    };
    let fixed = writer.fixed(&now);
    let end = fixed.len() as u64 - 512;
    let fixed = fixture("vhd-fixed", &fixed, vec![checked("footer", end, 512)], &now, None);
    let areas = |bytes: &[u8]| {
        let blocks = now.len() / writer.block;
        let mut areas = vec![
            checked("footer copy", 0, 512),
            checked("header", 512, 1024),
            area("table", 1536, blocks * 4),
            checked("footer", bytes.len() as u64 - 512, 512),
        ];
        let at = (0..blocks).map(|block| be32(bytes, 1536 + block * 4)).filter(|at| *at != 0xFFFF_FFFF);
        areas.extend(at.map(|at| area("bitmaps", at * 512, 512)));
        areas
    };
    let dynamic = writer.dynamic(&now);
    let dynamic = fixture("vhd", &dynamic, areas(&dynamic), &now, None);
    let link = vhd::Parent { disk: &parent, id: [7; 16], name: "parent" };
    let child = writer.differencing(&now, link);
    [fixed, dynamic, fixture("vhd-differencing", &child, areas(&child), &now, Some(&parent))]
}

/// A VHDX as it should be, one whose table is in its log, and a differencing one.
fn vhdxs() -> [Fixture; 3] {
    let (parent, now, _) = delta(512);
    let areas = |bytes: &[u8], dirty: bool| {
        let mut areas = vec![
            area("identifier", 0, 8),
            checked("first header", 64 * KIB, 4 * KIB),
            checked("second header", 128 * KIB, 4 * KIB),
            checked("first regions", 192 * KIB, 128),
            checked("second regions", 256 * KIB, 128),
            area("metadata", 2 * MIB, 256),
            area("metadata items", 2 * MIB + 64 * KIB, 48),
        ];
        // The chunk of 8,192 blocks has its bitmap behind the entries of all of them.
        let bitmap = vhdx::BAT + 8192 * 8;
        if dirty {
            areas.push(area("log", MIB, 8 * KIB));
            areas.push(area("log", 2 * MIB - 12 * KIB, 12 * KIB));
        } else {
            areas.push(area("table", vhdx::BAT, now.len() / MIB * 8));
        }
        if le64(bytes, bitmap) != 0 {
            areas.push(area("bitmap entry", bitmap, 8));
            areas.push(area("bitmap", le64(bytes, bitmap) & !7, 1024));
        }
        areas
    };
    let fixture = |name, bytes: &[u8], dirty, beside: Option<&Device>| {
        let mut parts = vec![part("disk", bytes, areas(bytes, dirty))];
        let beside = beside.map(|device| Arc::new(device.clone()));
        parts.extend(beside.map(|device| Part { name: "parent".into(), device, areas: Vec::new() }));
        Fixture { name, format: "vhdx", parts, expect: Expect::Disk(now.clone()), knows_len: true }
    };
    let writer = vhdx::Vhdx::default();
    let link = vhdx::Parent { disk: &parent, data_write: [7; 16], name: "parent" };
    let dirty = vhdx::Vhdx { dirty: true, ..vhdx::Vhdx::default() };
    [
        fixture("vhdx", &writer.write(&now, None), false, None),
        fixture("vhdx-dirty", &dirty.write(&now, None), true, None),
        fixture("vhdx-differencing", &vhdx::Vhdx::default().write(&now, Some(link)), false, Some(&parent)),
    ]
}

/// A VDI, and a child of one.
fn vdis() -> [Fixture; 2] {
    let (parent, now, _) = delta(512);
    let ids = vdi::Ids { created: [5; 16], modified: [6; 16] };
    let fixture = |name, bytes: &[u8], beside: Option<&Device>| {
        let areas = vec![area("header", 64, 392), area("map", vdi::MAP, now.len() / vdi::BLOCK * 4)];
        let mut parts = vec![part("disk", bytes, areas)];
        let beside = beside.map(|device| Arc::new(device.clone()));
        parts.extend(beside.map(|device| Part { name: "parent".into(), device, areas: Vec::new() }));
        Fixture { name, format: "vdi", parts, expect: Expect::Disk(now.clone()), knows_len: true }
    };
    [
        fixture("vdi", &vdi::write(&now, ids, None), None),
        fixture("vdi-differencing", &vdi::write(&now, ids, Some((&parent, ids))), Some(&parent)),
    ]
}

/// A plain, a packed and a backed QCOW of version 1.
fn qcow1s() -> [Fixture; 3] {
    let (parent, now, _) = delta(512);
    let empty = Device::new(now.len());
    let fixture = |name, options: &qcow1::Options| {
        let is_backed = options.backing.is_some();
        let bytes = qcow1::write(&now, if is_backed { &parent } else { &empty }, options);
        let (l1, entries) = (be64(&bytes, 40), now.len() >> (options.cluster_bits + options.l2_bits));
        let mut areas = vec![area("header", 0, 48), area("L1", l1, entries * 8)];
        for index in 0..entries {
            let table = be64(&bytes, l1 + index * 8);
            areas.extend((table != 0).then(|| area("L2", table, 8 << options.l2_bits)));
        }
        let mut parts = vec![part("disk", &bytes, areas)];
        let device = Arc::new(parent.clone());
        parts.extend(is_backed.then(|| Part { name: "parent".into(), device, areas: Vec::new() }));
        Fixture { name, format: "qcow", parts, expect: Expect::Disk(now.clone()), knows_len: true }
    };
    let plain = qcow1::Options::default();
    let backed = qcow1::Options { cluster_bits: 9, l2_bits: 12, backing: Some("parent".into()), ..plain.clone() };
    let packed = qcow1::Options { packed: true, ..plain.clone() };
    [fixture("qcow", &plain), fixture("qcow-deflate", &packed), fixture("qcow-backed", &backed)]
}

/// An exported machine.
fn exported() -> Fixture {
    let disks = [("web-disk1.vmdk".to_owned(), pattern(200_000, 90)), ("web-disk2.vmdk".to_owned(), pattern(9000, 91))];
    let bytes = ova::write("web", &disks);
    let mut areas = Vec::new();
    let mut expected = Vec::new();
    let mut at = 0;
    while bytes[at] != 0 {
        let text = |from: usize, len| String::from_utf8(bytes[from..from + len].to_vec()).unwrap();
        let path = text(at, 100).trim_end_matches('\0').to_owned();
        let len = u64::from_str_radix(&text(at + 124, 11), 8).unwrap();
        areas.push(checked("headers", at as u64, 512));
        let content = Content::bytes(&bytes[at + 512..at + 512 + len as usize]);
        let content = Some(content);
        expected.push(Expected { path, kind: FileType::File, len, mode: 0o644, time: 1_700_000_000, fd: 0, content });
        at += 512 + (len as usize).next_multiple_of(512);
    }
    let parts = vec![part("web.ova", &bytes, areas)];
    Fixture { name: "ova", format: "ova", parts, expect: Expect::Tree(expected), knows_len: true }
}

/// An image of an examiner.
fn examined() -> Fixture {
    let device = disk(4 * MIB, 95);
    let bytes = ewf::write(&device, &ewf::Options::default()).concat();
    let mut areas = vec![area("segment", 0, 13)];
    let mut at = 13;
    loop {
        let kind = bytes[at as usize..at as usize + 16].split(|byte| *byte == 0).next().unwrap();
        areas.push(checked("section heads", at, 76));
        match kind {
            b"volume" => areas.push(checked("volume", at + 76, 1052)),
            b"table" => areas.push(checked("tables", at + 76, le64(&bytes, at + 24) - 76)),
            b"table2" => areas.push(checked("second tables", at + 76, le64(&bytes, at + 24) - 76)),
            b"sectors" => areas.push(checked("chunks", at + 76, 4096)),
            b"done" => break,
            _ => {}
        }
        at = le64(&bytes, at + 16);
    }
    let parts = vec![part("disk.E01", &bytes, areas)];
    Fixture { name: "ewf", format: "ewf", parts, expect: Expect::Disk(device), knows_len: true }
}

fn qcow2_disk(name: &'static str, options: &qcow2::Options) -> Fixture {
    let mut device = disk(4 * MIB, 60);
    let bytes = qcow2::write(&device, options);
    let cluster = 1 << options.cluster_bits;
    let header = if options.version == 3 { 112 } else { 72 };
    let (l1, l1_size) = (be64(&bytes, 40), be64(&bytes, 32) & 0xFFFF_FFFF);
    let refcounts = be64(&bytes, 48);
    let mut areas = vec![area("header", 0, header), area("refcounts", refcounts, 8), area("L1", l1, l1_size * 8)];
    let entries = device.len() >> options.cluster_bits;
    for index in 0..l1_size {
        let table = be64(&bytes, l1 + index * 8) & 0x00FF_FFFF_FFFF_FE00;
        areas.extend((table != 0).then(|| area("L2", table, cluster.min(entries * 8))));
    }
    let mut parts = vec![part("disk.qcow2", &bytes, areas)];
    if options.backing.is_some() {
        let parent = disk(3 * MIB + 512, 70);
        let mut seen = Device::new(device.len());
        seen.embed(0, &parent);
        // Whole clusters cover the parent; flagged ones cover it with zeros.
        let clusters: std::collections::BTreeSet<u64> = device.blocks().map(|(at, _)| at / cluster).collect();
        for n in clusters {
            seen.write(n * cluster, &device.read(n * cluster, cluster as usize));
        }
        for range in &options.zero_clusters {
            seen.zero(range.clone());
        }
        device = seen;
        parts.push(Part { name: "parent".into(), device: Arc::new(parent), areas: Vec::new() });
    }
    Fixture { name, format: "qcow2", parts, expect: Expect::Disk(device), knows_len: true }
}

/// The files of the VMFS fixtures: every addressing that the version has.
pub fn fill(store: &mut Vmfs, six: bool) {
    let auto = Layout::default();
    let by = |addressing| Layout::default().addressing(addressing);
    store.file("small", Content::bytes(*b"tiny\n"), &auto);
    store.file("sub-blocks", Content::patterned(70_000, 80), &by(Addressing::SubBlock));
    store.file("direct", Content::patterned(2_500_000, 81), &by(Addressing::Direct));
    store.file("single", Content::patterned(3_000_001, 82), &by(Addressing::Single).shuffled(3));
    store.file("double", Content::patterned(2_000_000, 83), &by(Addressing::Double));
    if !six {
        store.file("pb2", Content::patterned(1_500_000, 84), &by(Addressing::SinglePb2));
    }
    store.file("thin", Content::sparse(40 * GIB).with(20 * GIB, pattern(9999, 85)), &auto);
    store.symlink("link", "/vmfs/volumes/datastore1/small");
    store.rdm("raw", 7 * GIB);
    store.mkdir("folder");
    for n in 0..40 {
        store.file(&format!("folder/file{n}"), Content::bytes(format!("File {n}\n")), &auto);
    }
    store.mkdir("folder/inner");
    store.file("folder/inner/deep", Content::patterned(20_000, 86), &auto);
    store.file("gone", Content::patterned(1_200_000, 87), &auto);
    store.delete_keeping_pointers("gone");
}

fn vmfs(name: &'static str, spec: VmfsSpec) -> Fixture {
    let six = spec.version == Version::Six;
    let devices = spec.extents.len();
    let mut store = Vmfs::new(spec);
    fill(&mut store, six);
    let mut places: Vec<(&'static str, u64, u64)> = Vec::new();
    for (mark, lv) in store.landmarks() {
        match mark.as_str() {
            "fs header" => places.push(("header", lv, 0x13A)),
            "heartbeats" => places.push(("heartbeats", lv, 4096)),
            mark if mark.ends_with(" data") => places.push(("resource files", lv, 0x44)),
            _ => places.push(("system descriptors", lv, if six { 8192 } else { 2048 })),
        }
    }
    for Expected { path, kind, .. } in store.expected() {
        let at = store.locate(&path);
        places.push(("clusters", at.cluster_lv, if six { 8192 } else { 1024 }));
        places.push(("descriptors", at.fd_lv, if six { 4096 + 0x8A } else { 512 + 0x8A }));
        // Resident data and mappings have other things there.
        let mapped = at.resident_lv.is_none() && kind != FileType::Rdm;
        places.extend(mapped.then_some(("pointers", at.pointers_lv, 64)));
        places.extend(at.entry_lv.map(|lv| ("folders", lv, if six { 280 } else { 140 })));
        for table in &at.pointer_blocks {
            places.push(("pointer blocks", table.lv, table.len));
        }
        if path.starts_with("folder") && !path.contains("file") && path != "folder/inner/deep" {
            places.extend(at.blocks.iter().map(|block| ("folders", block.lv, block.len.min(128 * KIB))));
        }
    }
    let mut areas: Vec<Vec<Area>> = (0..devices)
        .map(|_| vec![area("LVM header", 0x10_0000, 0x1200), area("LVM extents", 0x18_0000, 0x2200)])
        .collect();
    for (what, lv, len) in places {
        let (device, at) = store.device_position(lv);
        areas[device].push(area(what, at, len));
    }
    let expect = Expect::Tree(store.expected());
    let parts = store
        .finish()
        .into_iter()
        .zip(areas)
        .enumerate()
        .map(|(n, (device, areas))| Part { name: format!("device{n}"), device: Arc::new(device), areas })
        .collect();
    Fixture { name, format: "vmfs", parts, expect, knows_len: true }
}
