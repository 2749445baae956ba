#![allow(clippy::unwrap_used, reason = "tests")]

use super::address::{Address, Block as FileBlock, FdAddress, Spot, Width};
use super::descriptor::{Descriptor, RawLock, RawMetadata, Shape, Type};
use super::file::File;
use super::hash::{SLOTS, hash, slot};
use super::header::{self, Header, RawHeader};
use super::heartbeat::{RawHeartbeat, RawLockSector};
use super::lvm::{self, Device, Logical, RawDevice, RawExtension, RawExtent, VolumeEntry};
use super::resource::RawResource;
use super::volume::{Pools, Space};
use crate::adapt::Memory;
use crate::laws::{Effort, check_laws};
use crate::layer::{Bytes, Fault, Layer, Place, Run, Trust, Why};
use crate::memo::Pool;
use crate::record::Record;
use std::collections::BTreeMap;
use std::sync::Arc;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

fn pins<R: Record>(size: usize) {
    assert_eq!(R::SIZE, size, "{}", R::NAME);
    assert!(R::parse(&vec![0; size], 0).is_ok(), "{}: longer than its size", R::NAME);
    assert!(R::parse(&vec![0; size.saturating_sub(1)], 0).is_err(), "{}", R::NAME);
}

#[test]
fn records_have_their_sizes() {
    pins::<RawHeader>(0x13A);
    pins::<RawDevice>(0xD6);
    pins::<VolumeEntry>(0x94);
    pins::<RawExtension>(0x18);
    pins::<RawExtent>(0x25);
    pins::<RawLock>(12);
    pins::<RawMetadata>(0x8A);
    pins::<RawResource>(0x44);
    pins::<RawHeartbeat>(0x6C);
    pins::<RawLockSector>(0x40);
}

#[test]
fn descriptors_have_addresses() {
    assert_eq!(FdAddress::ROOT.spot(), Spot { cluster: 0, resource: 0 });
    assert_eq!(FdAddress::PB2.spot(), Spot { cluster: 0, resource: 6 });
    let spot = Spot { cluster: 44, resource: 1 };
    assert_eq!(FdAddress(0x0040_0B04).spot(), spot);
    assert_eq!(FdAddress::new(spot), Some(FdAddress(0x0040_0B04)));
    assert_eq!(FdAddress::new(Spot { cluster: 0xFFFF, resource: 1023 }), Some(FdAddress(0xFFFF_FFC4 | 0x3F_FFC0)));
    assert_eq!(FdAddress::new(Spot { cluster: 0x1_0000, resource: 0 }), None);
    assert_eq!(FdAddress::new(Spot { cluster: 0, resource: 1024 }), None);
    assert_eq!(FdAddress::of(0x0040_0B05), None);
}

fn plain(number: u64) -> Address {
    Address::File(FileBlock { number, tbz: 0, cow: false, odd: false })
}

/// Pointers of real volumes, and the flags that sources tell of.
#[test]
fn pointers_are_decoded_by_their_own_type() {
    let five = Width::Narrow { dense: true };
    assert_eq!(five.decode(0), Address::Hole);
    assert_eq!(five.decode(0x1_5E41), plain(0x579));
    assert_eq!(five.decode(0x3_4483), Address::Pointer(Spot { cluster: 0xD12, resource: 0 }));
    assert_eq!(five.decode(0x1003_4483), Address::Pointer(Spot { cluster: 0xD12, resource: 1 }));
    assert_eq!(five.decode(0x1000_0482), Address::Sub(Spot { cluster: 18, resource: 1 }));
    assert_eq!(five.decode(0x1000_049A), Address::Sub(Spot { cluster: 18, resource: 0x31 }));
    assert_eq!(Width::Narrow { dense: false }.decode(0x1000_049A), Address::Sub(Spot { cluster: 18, resource: 1 }));
    assert_eq!(five.decode(0x61), Address::File(FileBlock { number: 1, tbz: 0xFF, cow: false, odd: false }));
    assert_eq!(five.decode(0x51), Address::File(FileBlock { number: 1, tbz: 0, cow: true, odd: false }));
    assert_eq!(five.decode(u64::from(u32::MAX)), Address::Bad);

    let six = Width::Wide { per_cluster: 512 };
    assert_eq!(six.decode(0x0608_0000_0001_8001), plain(3 * 512 + 193));
    assert_eq!(six.decode(0x0100_0000_0000_0482), Address::Sub(Spot { cluster: 18, resource: 1 }));
    assert_eq!(six.decode(0x5), Address::Pointer2(Spot { cluster: 0, resource: 0 }));
    assert_eq!(
        six.decode(0x8001 | 0x7F80),
        Address::File(FileBlock { number: 512, tbz: 0xFF, cow: false, odd: false })
    );
    assert_eq!(six.decode(0x8001 | 0x20), Address::File(FileBlock { number: 512, tbz: 0, cow: true, odd: false }));
    assert_eq!(six.decode(0x8001 | 0x40), Address::File(FileBlock { number: 512, tbz: 0, cow: false, odd: true }));
    assert_eq!(six.decode(0x1_8007), Address::Large(FileBlock { number: 3, tbz: 0, cow: false, odd: false }));
    assert_eq!(six.decode(1 | 512 << 51), Address::Bad, "a resource that no cluster has");
    assert_eq!(six.decode(4), Address::Bad);
}

/// Low halves of hashes as real folders have them, beside their names.
#[test]
fn names_have_the_hashes_of_real_folders() {
    let folder = FdAddress(0x3C4);
    for (name, low) in [
        (&b"small"[..], 0xA46B_776D_u64),
        (b"big", 0xD7E3_1B04),
        (b"bigger", 0x50C0_ECD1),
        (b"file1", 0xD2B9_70EB),
        (b"file10", 0x3D6D_3D61),
        (b"As", 0xA7D6_0C54),
        ("Kusjes van SRT 😘".as_bytes(), 0x81A5_8B05),
        ("En groetjes aan je tante🤤🫰🍆💦😍".as_bytes(), 0xB871_AEF4),
    ] {
        assert_eq!(hash(folder, name) & 0xFFFF_FFFF, low, "{}", String::from_utf8_lossy(name));
    }
    for name in [&b"As"[..], b"e8K", b"j6g", b"aa0s"] {
        assert_eq!(slot(folder, name), 0x26F7);
    }
    assert_eq!(slot(FdAddress::ROOT, b".fbb.sf"), 0x3E66);
    assert_eq!(slot(FdAddress::ROOT, b".dfd.sf"), 0x3E6F);
    assert_eq!(hash(FdAddress::ROOT, b".fbb.sf"), 0);
    assert_ne!(hash(folder, b".fbb.sf"), 0, "in other folders it is a name like any");
    assert!(slot(folder, &[b'x'; 255]) < SLOTS && slot(folder, &[b'x'; 4096]) < SLOTS);
}

#[test]
fn uuids_are_written_as_by_the_host() {
    let bytes = [0x2d, 0x6f, 0x62, 0x68, 0x08, 0x31, 0x47, 0x86, 0xe1, 0xd4, 0xbc, 0x24, 0x11, 0xb1, 0x7e, 0x28];
    assert_eq!(super::uuid(bytes), "68626f2d-86473108-d4e1-bc2411b17e28");
}

/// A volume of zeros with a header.
#[derive(Debug)]
struct Blank {
    len: u64,
    written: BTreeMap<u64, Vec<u8>>,
}

impl Layer for Blank {
    fn len(&self) -> u64 {
        self.len
    }

    fn run(&self, _: u64, want: u64) -> Run<'_> {
        Run::sound(want, Place::Own)
    }

    fn fetch(&self, at: u64, buf: &mut [u8]) -> Result<Trust, Fault> {
        buf.fill(0);
        for (start, bytes) in &self.written {
            for (i, byte) in (*start..).zip(bytes) {
                if let Some(to) = i.checked_sub(at).and_then(|i| buf.get_mut(usize::try_from(i).unwrap())) {
                    *to = *byte;
                }
            }
        }
        Ok(Trust::Sound)
    }
}

fn header_bytes(six: bool) -> Vec<u8> {
    let mut bytes = vec![0; RawHeader::SIZE];
    let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
    put(0, &header::MAGIC.to_le_bytes());
    put(4, &if six { 24_u32 } else { 14 }.to_le_bytes());
    put(0x19, &4_u32.to_le_bytes());
    put(0xA1, &MIB.to_le_bytes());
    put(0xD1, &0x1_0000_u32.to_le_bytes());
    put(0xD5, &if six { 8_u32 } else { 64 }.to_le_bytes());
    put(0xD9, &if six { 0x1_0000_u32 } else { 0x2000 }.to_le_bytes());
    put(0x134, &if six { 0x1000_u32 } else { 0 }.to_le_bytes());
    put(0x138, &9_u16.to_le_bytes());
    bytes
}

fn volume(bytes: Vec<u8>) -> Bytes {
    Arc::new(Blank { len: 64 * GIB, written: BTreeMap::from([(header::HEADER_AT, bytes)]) })
}

/// The header of a volume with the usual sizes.
pub(super) fn header(six: bool) -> Header {
    Header::load(&*volume(header_bytes(six))).unwrap()
}

#[test]
fn system_descriptors_have_fixed_places() {
    let five = Header::load(&*volume(header_bytes(false))).unwrap();
    assert_eq!(five.fixed(FdAddress::ROOT), Some(0x42_0000));
    assert_eq!(five.fixed(FdAddress::PB2), Some(0x42_3000));
    let six = Header::load(&*volume(header_bytes(true))).unwrap();
    assert_eq!(six.fixed(FdAddress::ROOT), Some(0x72_0000));
    assert_eq!(six.fixed(FdAddress::PB2), Some(0x72_C000));
    assert_eq!(six.fixed(FdAddress(0x0240_0004)), Some(0x73_2000));
    assert_eq!(six.fixed(FdAddress(0x3C4)), None);
    // Larger metadata units: heartbeats grow, and descriptors with them.
    let mut bytes = header_bytes(true);
    bytes[0x134..0x138].copy_from_slice(&0x4000_u32.to_le_bytes());
    let large = Header::load(&*volume(bytes)).unwrap();
    assert_eq!((large.fdc_at(), large.descriptor_size()), (0x130_0000, 0x8000));
    // A volume that was not made dense keeps the later system files where its header says.
    let mut bytes = header_bytes(false);
    bytes[0x19] = 2;
    bytes[0xE1..0xE9].copy_from_slice(&0x1234_0000_u64.to_le_bytes());
    bytes[0xE9..0xED].copy_from_slice(&0x0240_0104_u32.to_le_bytes());
    let upgraded = Header::load(&*volume(bytes)).unwrap();
    assert_eq!(upgraded.pb2(), Some(FdAddress(0x0240_0104)));
    assert_eq!(upgraded.fixed(FdAddress(0x0240_0104)), Some(0x1234_0000));
    assert_eq!(upgraded.fixed(FdAddress::PB2), None);
}

#[test]
fn a_bad_header_says_what_is_wrong() {
    for (at, value, what) in [
        (0, 0_u64, "magic"),
        (0xA1, 3 << 19, "file block size"),
        (0xD9, 12345, "sub-block size"),
        (0x134, 0x1001, "metadata alignment"),
        (0xD5, 0, ".fdc.sf"),
    ] {
        let mut bytes = header_bytes(true);
        bytes[at..at + 4].copy_from_slice(&value.to_le_bytes()[..4]);
        let error = Header::load(&*volume(bytes)).unwrap_err().to_string();
        assert!(error.contains(what) && error.contains("0x200"), "{error}");
    }
}

/// A file with these pointers and nothing else.
fn file(six: bool, levels: u32, len: u64, pointers: &[(usize, u64)]) -> File {
    let lv = volume(header_bytes(six));
    let header = Header::load(&*lv).unwrap();
    let memo = Pool::new(1 << 20).share();
    let (width, room) = if six { (8, 2560) } else { (4, 1024) };
    let mut array = vec![0; room];
    for (i, raw) in pointers {
        array[i * width..][..width].copy_from_slice(&raw.to_le_bytes()[..width]);
    }
    let space = Space {
        lv,
        logical: None,
        header,
        tables: memo.share(),
        pages: memo.share(),
        clusters: memo.share(),
        folders: memo.share(),
    };
    let descriptor = Descriptor {
        at: 0x4000_0000,
        address: FdAddress(0x3C4),
        generation: 1,
        links: 1,
        kind: Type::File,
        len,
        blocks: pointers.iter().filter(|(_, raw)| *raw != 0).count() as u64,
        modified: 0,
        changed: 0,
        accessed: 0,
        uid: 0,
        gid: 0,
        mode: 0,
        parent: None,
        shape: Shape::Mapped { levels, shift: 20 },
        pointers: array,
        pointers_at: 0x4000_1600,
        content_at: 0x4000_1200,
        content_len: 3584,
        origin: super::descriptor::Origin::Disk,
        trust: Trust::Sound,
    };
    File::new(Arc::new(space), Arc::new(Pools::default()), descriptor)
}

fn runs(file: &File) -> Vec<(u64, String, Trust)> {
    let mut at = 0;
    let mut runs = Vec::new();
    while at < file.len() {
        let run = file.run(at, file.len() - at);
        let place = match run.place {
            Place::Below { offset, .. } => format!("{offset:#x}"),
            Place::Lost(loss) => format!("{} {:#x}", loss.why.word(), loss.at),
            place => format!("{place:?}"),
        };
        runs.push((run.len, place, run.trust));
        at += run.len;
    }
    check_laws(file, Effort::default()).unwrap();
    runs
}

fn sfb(block: u64) -> u64 {
    1 | ((block / 512) << 15) | ((block % 512) << 51)
}

fn sound(len: u64, place: &str) -> (u64, String, Trust) {
    (len, place.to_string(), Trust::Sound)
}

#[test]
fn a_null_pointer_is_a_hole_as_long_as_what_it_maps() {
    // A double indirect pointer of VMFS6 maps 64 TiB, one of VMFS5 a TiB; all of them together are one run.
    assert_eq!(runs(&file(true, 2, 63 << 40, &[])), [sound(63 << 40, "Hole")]);
    assert_eq!(runs(&file(false, 2, 63 << 40, &[])), [sound(63 << 40, "Hole")]);
    // A pointer block that can't be had costs the 8 GiB that it maps: the pools are empty.
    let lost = runs(&file(true, 1, 69 * GIB, &[(5, 0x0100_0000_0000_0482)]));
    let at = 0x4000_1600 + 5 * 8;
    let middle = sound(8 * GIB, &format!("unmapped {at:#x}"));
    assert_eq!(lost, [sound(40 * GIB, "Hole"), middle, sound(21 * GIB, "Hole")]);
    // More than the pointers can map is not a hole.
    let long = runs(&file(true, 0, 321 * MIB, &[]));
    assert_eq!(long, [sound(320 * MIB, "Hole"), sound(MIB, "unmapped 0x40000000")]);
}

#[test]
fn neighbours_make_one_run() {
    let pointers = [(0, sfb(510)), (1, sfb(511)), (2, sfb(512)), (3, sfb(600)), (5, sfb(601))];
    let expected =
        [sound(3 * MIB, "0x1fe00000"), sound(MIB, "0x25800000"), sound(MIB, "Hole"), sound(MIB / 2, "0x25900000")];
    assert_eq!(runs(&file(true, 0, 5 * MIB + MIB / 2, &pointers)), expected);
    let pointers = [(0, 100 << 6 | 1), (1, 101 << 6 | 1), (2, 99 << 6 | 1)];
    assert_eq!(runs(&file(false, 0, 3 * MIB, &pointers)), [sound(2 * MIB, "0x6400000"), sound(MIB, "0x6300000")]);
}

#[test]
fn bad_pointers_cost_their_block() {
    // Types that data never has, and blocks behind the volume's end.
    let pointers = [(0, sfb(1)), (1, 4), (2, sfb(64 << 10)), (3, sfb(2)), (4, u64::MAX)];
    let expected = [
        sound(MIB, "0x100000"),
        sound(MIB, "unmapped 0x40001608"),
        sound(MIB, "unmapped 0x40001610"),
        sound(MIB, "0x200000"),
        sound(MIB, "unmapped 0x40001620"),
    ];
    assert_eq!(runs(&file(true, 0, 5 * MIB, &pointers)), expected);
}

#[test]
fn blocks_to_be_zeroed_are_zero_and_not_quite_certain() {
    let pointers = [(0, sfb(1) | 0x7F80), (1, sfb(2) | 0x80), (2, sfb(3))];
    let expected = [
        (MIB, "Zero".to_string(), Trust::Inferred),
        (MIB, "Zero".to_string(), Trust::Doubtful),
        sound(MIB, "0x300000"),
    ];
    assert_eq!(runs(&file(true, 0, 3 * MIB, &pointers)), expected);
    assert_eq!(runs(&file(false, 0, MIB, &[(0, 0x61)])), [sound(MIB, "Zero")]);
}

#[test]
fn a_large_block_is_read_at_the_files_own_offset() {
    // Slots 511 to 513 of 1 MiB, each naming the large block that has them.
    let pointers = [(255, 7 | 3 << 15), (256, 7 | 3 << 15), (257, sfb(9))];
    let expected = [
        sound(255 * MIB, "Hole"),
        sound(2 * MIB, &format!("{:#x}", 3 * 512 * MIB + 255 * MIB)),
        sound(MIB, "0x900000"),
    ];
    assert_eq!(runs(&file(true, 0, 258 * MIB, &pointers)), expected);
}

fn device_bytes(first: u64, last: u64, devices: u32, uuid: u8) -> Bytes {
    let mut bytes = vec![0; 3 << 20];
    let mut put = |at: usize, value: &[u8]| bytes[0x10_0000 + at..][..value.len()].copy_from_slice(value);
    put(0, &lvm::MAGIC.to_le_bytes());
    put(4, &5_u32.to_le_bytes());
    put(0x5A, &512_u32.to_le_bytes());
    put(0x5E, &(8_u64 << 30).to_le_bytes());
    put(0x66, &1_u32.to_le_bytes());
    let count = u32::try_from(last - first + 1).unwrap();
    put(0x6A, &count.to_le_bytes());
    put(0x7A, &0x110_0000_u64.to_le_bytes());
    put(0x82, &[uuid; 16]);
    put(0x200, &(GIB * 2).to_le_bytes());
    put(0x254, &[7; 16]);
    put(0x278, &first.to_le_bytes());
    put(0x280, &last.to_le_bytes());
    put(0x290, &devices.to_le_bytes());
    for i in 0..u64::from(count) {
        let entry = 0x8_0600 + usize::try_from(i).unwrap() * 128;
        put(0x8_0200, &[u8::try_from((1_u32 << (i + 1)) - 1).unwrap()]);
        put(entry, &[1]);
        put(entry + 9, &(0x110_0000 + i * lvm::EXTENT).to_le_bytes());
        put(entry + 0x11, &((first + i) * lvm::EXTENT).to_le_bytes());
        put(entry + 0x19, &lvm::EXTENT.to_le_bytes());
    }
    Arc::new(Memory::new(bytes))
}

fn spans(lv: &Logical) -> Vec<(u64, &'static str)> {
    let mut at = 0;
    let mut spans = Vec::new();
    while at < lv.len() {
        let run = lv.run(at, lv.len() - at);
        let place = match run.place {
            Place::Below { .. } => "below",
            Place::Lost(loss) => loss.why.word(),
            _ => "else",
        };
        spans.push((run.len / lvm::EXTENT, place));
        at += run.len;
    }
    check_laws(lv, Effort { runs: 100, bytes: 1 << 16 }).unwrap();
    spans
}

#[test]
fn devices_make_a_volume_in_any_order() {
    let first = Device::load(&device_bytes(0, 2, 3, 1)).unwrap();
    let second = Device::load(&device_bytes(3, 4, 3, 2)).unwrap();
    let third = Device::load(&device_bytes(5, 7, 3, 3)).unwrap();
    let lost = Why::Outside.word();
    // The images end behind their tables: what the map names there was not dumped, and is not absent.
    assert_eq!(spans(&Logical::new(second.clone(), [])), [(3, "absent"), (2, lost), (3, "absent")]);
    let partial = Logical::new(third.clone(), [first.clone(), third.clone()]);
    assert!(partial.is_partial());
    assert_eq!(spans(&partial), [(3, lost), (2, "absent"), (3, lost)]);
    let whole = Logical::new(third, [first.clone(), second]);
    assert!(!whole.is_partial());
    assert_eq!(spans(&whole), [(3, lost), (2, lost), (3, lost)]);
    assert_eq!(whole.devices().iter().map(|device| device.volume.first_pe).collect::<Vec<_>>(), [0, 3, 5]);
    // All devices are there, and the tables of one lost the end of it.
    let short = Device::load(&device_bytes(0, 6, 1, 1)).unwrap();
    assert_eq!(spans(&Logical::new(short, [])), [(7, lost), (1, "unmapped")]);
}

#[test]
fn a_lost_bitmap_of_extents_is_made_up_for() {
    let bytes = device_bytes(0, 3, 1, 1);
    let mut copy = vec![0; usize::try_from(bytes.len()).unwrap()];
    bytes.fetch(0, &mut copy).unwrap();
    copy[0x18_0200] = 0;
    let device = Device::load(&(Arc::new(Memory::new(copy)) as Bytes)).unwrap();
    assert_eq!(device.findings.iter().map(|found| found.code).collect::<Vec<_>>(), ["LVM-SHORT", "LVM-PE-BITMAP"]);
    assert_eq!(spans(&Logical::new(device, [])), [(4, "outside"), (4, "unmapped")]);
}

#[test]
fn a_bad_device_says_what_is_wrong() {
    for (at, value) in [(0, 1_u32), (4, 7), (0x5A, 513), (0x7A, 0), (0x280, u32::MAX), (0x290, 1000)] {
        let bytes = device_bytes(1, 2, 2, 1);
        let mut copy = vec![0; usize::try_from(bytes.len()).unwrap()];
        bytes.fetch(0, &mut copy).unwrap();
        copy[0x10_0000 + at..][..4].copy_from_slice(&value.to_le_bytes());
        if at == 0x280 {
            copy[0x10_0000 + at + 4..][..4].copy_from_slice(&value.to_le_bytes());
        }
        let error = Device::load(&(Arc::new(Memory::new(copy)) as Bytes)).unwrap_err().to_string();
        assert!(error.contains("LVM") && error.contains("0x100"), "{error}");
    }
}

#[test]
fn versions_as_esxi_shows_them() {
    let shown = [(false, 14, 81), (false, 24, 82), (true, 14, 60), (false, 19, 1)]
        .map(|(local, major, minor)| super::version(local, major, minor));
    assert_eq!(shown, ["VMFS-5.81", "VMFS-6.82", "VMFS-L", "VMFS 19.1"]);
}
