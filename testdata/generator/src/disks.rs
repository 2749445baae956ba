//! Scenario disk images: QCOW2 and VMDK files, each with the raw disk that a right reader finds in it.

use crate::Device;
use crate::json::Json;
use crate::qcow2::{self, Compression, Options};
use crate::vhd::{self, Vhd};
use crate::vhdx::{self, Vhdx};
use crate::vmdk::{self, Descriptor, Grain, Order};
use crate::vmfs::pattern;
use crate::{qcow1, vdi};
use std::fs;
use std::io;
use std::path::Path;

const MIB: u64 = 1 << 20;
/// Content ids of the base and its two seSparse deltas.
const CIDS: [u32; 3] = [0x6E1D_00A4, 0xC2B8_7F35, 0x094D_E81C];

/// A disk of `len` bytes with data at both ends, around odd places, and holes between.
fn disk(len: u64, seed: u64) -> Device {
    let mut device = Device::new(len);
    device.write(0, &pattern(3 * 512, seed));
    device.write(5 * MIB + 1536, &pattern(300_000, seed + 1));
    device.write(9 * MIB, &vec![0x5A; MIB as usize]);
    device.write(len / 2 - 700, &pattern(1400, seed + 2));
    device.write(len - 512, &pattern(512, seed + 3));
    device
}

fn qcow2s() -> Vec<(&'static str, Device, Options)> {
    let plain = Options::default;
    let packed = |compression| Options { compression, ..plain() };
    vec![
        ("plain", disk(100 * MIB, 1), plain()),
        ("v2", disk(100 * MIB, 2), Options { version: 2, ..plain() }),
        ("v2-deflate", disk(100 * MIB, 3), Options { version: 2, ..packed(Compression::Deflate) }),
        ("deflate", disk(100 * MIB, 4), packed(Compression::Deflate)),
        ("zstd", disk(100 * MIB, 5), packed(Compression::Zstd)),
        ("clusters-512", disk(24 * MIB, 6), Options { cluster_bits: 9, ..packed(Compression::Deflate) }),
        ("clusters-4k", disk(60 * MIB, 7), Options { cluster_bits: 12, ..plain() }),
        ("clusters-2m", disk(100 * MIB, 8), Options { cluster_bits: 21, ..packed(Compression::Deflate) }),
        ("odd-length", disk(50 * MIB + 512 * 3, 9), packed(Compression::Deflate)),
        ("huge", disk(60 << 40, 10), plain()),
    ]
}

/// Images of other formats: of `base`, and of `now` over it, with the raw disk of each.
fn neighbours(base: &Device, now: &Device) -> Vec<(&'static str, &'static str, Vec<u8>, &'static str)> {
    const ID: [u8; 16] = *b"the parent's id.";
    let (vhd, vhdx) = (Vhd::default, Vhdx::default);
    let below = vhd::Parent { disk: base, id: ID, name: ".\\base.vhd" };
    let below_x = vhdx::Parent { disk: base, data_write: ID, name: ".\\base.vhdx" };
    let ids = vdi::Ids { created: *b"created, as ever", modified: *b"modified at last" };
    let own = vdi::Ids { created: [3; 16], modified: [4; 16] };
    let empty = Device::new(base.len());
    let packed = qcow1::Options { packed: true, ..qcow1::Options::default() };
    let over = qcow1::Options { backing: Some("base.raw".into()), ..qcow1::Options::default() };
    vec![
        ("fixed.vhd", "vpc", vhd().fixed(now), "base-000002.raw"),
        ("base.vhd", "vpc", Vhd { id: ID, ..vhd() }.dynamic(base), "base.raw"),
        ("over.vhd", "vpc", vhd().differencing(now, below), "base-000002.raw"),
        ("base.vhdx", "vhdx", Vhdx { data_write: ID, ..vhdx() }.write(base, None), "base.raw"),
        ("over.vhdx", "vhdx", vhdx().write(now, Some(below_x)), "base-000002.raw"),
        ("dirty.vhdx", "vhdx", Vhdx { dirty: true, ..vhdx() }.write(now, None), "base-000002.raw"),
        ("base.vdi", "vdi", vdi::write(base, ids, None), "base.raw"),
        ("over.vdi", "vdi", vdi::write(now, own, Some((base, ids))), "base-000002.raw"),
        ("plain.qcow", "qcow", qcow1::write(base, &empty, &qcow1::Options::default()), "base.raw"),
        ("packed.qcow", "qcow", qcow1::write(now, &empty, &packed), "base-000002.raw"),
        ("over.qcow", "qcow", qcow1::write(now, base, &over), "base-000002.raw"),
    ]
}

/// Writes the images into `dir`, with `disks.json`: a list of (image, its format, the raw disk to expect).
pub fn write(dir: &Path) -> io::Result<()> {
    fs::create_dir_all(dir)?;
    let mut listed = Vec::new();
    let mut list = |image: &str, format: &str, raw: &str, about: &str| {
        listed.push(Json::object([
            ("image", Json::text(image)),
            ("format", Json::text(format)),
            ("raw", Json::text(raw)),
            ("about", Json::text(about)),
        ]));
    };
    for (name, device, options) in qcow2s() {
        let image = format!("{name}.qcow2");
        fs::write(dir.join(&image), qcow2::write(&device, &options))?;
        // A file system that cannot hold the raw disk leaves the image checked for structure only.
        let raw = format!("{name}.raw");
        let fits = device.len() < 1 << 40;
        if fits {
            device.save(&dir.join(&raw))?;
        }
        list(&image, "qcow2", if fits { &raw } else { "" }, "QCOW2");
    }

    let base = disk(40 * MIB, 20);
    base.save(&dir.join("base-flat.vmdk"))?;
    // The seSparse chain was written by a machine, the COWD delta lies over a base that carries ESXi's first id.
    let text = Descriptor::flat(base.len(), "base-flat.vmdk", true, 20);
    fs::write(dir.join("fresh.vmdk"), text.text())?;
    fs::write(dir.join("base.vmdk"), text.written(CIDS[0]).text())?;
    base.save(&dir.join("base.raw"))?;
    list("base.vmdk", "vmdk", "base.raw", "flat");

    let mut zeroed = disk(40 * MIB, 30);
    zeroed.write(0, &pattern(40_000, 31));
    zeroed.zero(9 * MIB + 4096..9 * MIB + 65_536);
    let mut first = vmdk::difference(&base, &zeroed, 4096);
    // Zero grains without a reason, and unmapped ones where the parent has data.
    first.insert(2, Grain::Zero);
    first.insert(20 * MIB / 4096, Grain::Zero);
    first.insert(9 * MIB / 4096 + 100, Grain::Unmapped);
    let one = vmdk::apply(&base, &first, 4096);
    let mut newest = one.clone();
    newest.write(33 * MIB + 512, &pattern(9000, 40));
    let second = vmdk::difference(&one, &newest, 4096);
    let two = vmdk::apply(&one, &second, 4096);
    for (name, parent, grains, order, flat, n) in [
        ("base-000001", "base.vmdk", &first, Order::Ascending, &one, 1),
        ("base-000002", "base-000001.vmdk", &second, Order::Descending, &two, 2),
    ] {
        let extent = format!("{name}-sesparse.vmdk");
        fs::write(dir.join(&extent), vmdk::sesparse(base.len(), grains, order))?;
        let delta = Descriptor::delta(base.len(), "SESPARSE", &extent, parent, 20 + n as u64);
        let delta = delta.written(CIDS[n]).over(CIDS[n - 1]);
        fs::write(dir.join(format!("{name}.vmdk")), delta.text())?;
        flat.save(&dir.join(format!("{name}.raw")))?;
        list(&format!("{name}.vmdk"), "vmdk", &format!("{name}.raw"), "seSparse over flat");
    }

    let changes = vmdk::difference(&base, &two, 512);
    fs::write(dir.join("cowd-000001-delta.vmdk"), vmdk::cowd(base.len(), &changes))?;
    let text = Descriptor::delta(base.len(), "VMFSSPARSE", "cowd-000001-delta.vmdk", "fresh.vmdk", 23).text();
    fs::write(dir.join("cowd-000001.vmdk"), text)?;
    list("cowd-000001.vmdk", "vmdk", "base-000002.raw", "COWD over flat");

    fs::write(dir.join("hosted.vmdk"), vmdk::hosted_sparse(&two, "hosted.vmdk", 0x1234_5678))?;
    list("hosted.vmdk", "vmdk", "base-000002.raw", "monolithicSparse");
    let stream = vmdk::stream_optimized(&two, "generated-stream.vmdk", 0x8765_4321);
    fs::write(dir.join("stream.vmdk"), stream)?;
    list("stream.vmdk", "vmdk", "base-000002.raw", "streamOptimized, with a footer");

    for (name, format, bytes, raw) in neighbours(&base, &two) {
        fs::write(dir.join(name), bytes)?;
        list(name, format, raw, "written by another product's format");
    }
    fs::write(dir.join("disks.json"), Json::List(listed).to_string())
}
