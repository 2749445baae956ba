//! Images whose numbers were chosen to do harm, as in the advisories on other readers: none of them panics, takes
//! memory that its file does not back, divides by zero or goes on for ever, and what can't be read is lost by name.
//!
//! The shapes are those of CVE-2014-0142 to 0148, 0150, 0222 and 0223: tables of any size, sizes of zero, offsets that
//! wrap around, structures that lie in each other.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::arithmetic_side_effects,
    clippy::as_conversions,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    unsafe_code,
    missing_docs,
    unreachable_pub,
    reason = "tests; the trait of allocators is unsafe, and this one only counts"
)]

mod disk_support;

use disk_support::*;
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
use vdrecover_formats::{Bytes, Content, FORMATS, Trust, read_vec};
use vdrecover_testdata::vmdk::{self, Order};
use vdrecover_testdata::vmfs::pattern;
use vdrecover_testdata::{Device, ewf, ova, qcow1, qcow2, vdi, vhd, vhdx, vmdk_stream};

/// The system's allocator, which remembers the largest piece that was asked for.
struct Largest;

static LARGEST: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call goes to the system's allocator unchanged.
unsafe impl GlobalAlloc for Largest {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LARGEST.fetch_max(layout.size(), Relaxed);
        // SAFETY: the caller keeps to the contract of the same call.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps to the contract of the same call.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Largest = Largest;

/// One test at a time, so that memory and time are of one.
static ALONE: Mutex<()> = Mutex::new(());

/// What an image of a few MiB may make anybody ask for at once.
const MOST: usize = 40 << 20;
const TIME: Duration = Duration::from_secs(20);
const MIB: u64 = 1 << 20;

fn disk_of(len: u64) -> Device {
    let mut device = Device::new(len);
    device.write(0, &pattern(5000, 1));
    device.write(len / 2 + 512, &pattern(100_000, 2));
    device.write(len - 512, &pattern(512, 3));
    device
}

/// Opens whatever it is, alone, and reads its start, its middle, its end and a part of its audit.
fn try_it(what: &str, image: &Bytes) {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    LARGEST.store(0, Relaxed);
    let start = Instant::now();
    for row in FORMATS.iter().filter(|row| row.name != "raw" && (row.probe)(&**image) > 0) {
        let Ok(opened) = (row.open)(image, &memo()) else { continue };
        let others = vec![None; opened.wants.len()];
        let Ok(Content::Disks(disks)) = (opened.join)(&others) else { continue };
        for disk in disks.iter().take(4) {
            let len = disk.bytes.len();
            for at in [0, len / 2, len.saturating_sub(4096)] {
                let (_, seen) = read_vec(&*disk.bytes, at, (len - at).min(4096) as usize);
                assert!(seen.trust <= Trust::Doubtful, "{what}");
            }
            check(&disk.bytes);
        }
    }
    let largest = LARGEST.load(Relaxed);
    assert!(largest <= MOST, "{what}: {largest} bytes were asked for at once");
    assert!(start.elapsed() < TIME, "{what}: {:?}", start.elapsed());
}

/// Every number of 2, 4 and 8 bytes in `fields` becomes each of the values that break readers.
fn forge(name: &str, image: &[u8], big: bool, fields: &[(usize, usize)], seal: impl Fn(&mut [u8])) {
    for (at, size) in fields {
        for value in [0_u64, 1, 3, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff, 1 << 40, u64::MAX >> 1, u64::MAX] {
            let mut image = image.to_vec();
            let bytes =
                if big { value.to_be_bytes()[8 - size..].to_vec() } else { value.to_le_bytes()[..*size].to_vec() };
            image[*at..*at + size].copy_from_slice(&bytes);
            seal(&mut image);
            try_it(&format!("{name}: {value:#x} at {at}"), &memory(image));
        }
    }
}

fn none(_: &mut [u8]) {}

#[test]
fn numbers_of_headers_and_tables() {
    let disk = disk_of(24 * MIB);
    let empty = Device::new(disk.len());

    let kdmv = vmdk::hosted_sparse(&disk, "a", 1);
    // Capacity, grain, descriptor, entries of a table, both directories, overhead, compression; then the tables.
    let header = [(12, 8), (20, 8), (28, 8), (36, 8), (44, 4), (48, 8), (56, 8), (64, 8), (77, 2), (8, 4)];
    forge("hosted sparse", &kdmv, false, &header, none);
    forge("hosted sparse tables", &kdmv, false, &[(21 * 512, 4), (22 * 512, 4)], none);

    for writer in vmdk_stream::WRITERS {
        let stream = writer.write(&disk, 1);
        let grain = u64::from_le_bytes(stream[64..72].try_into().unwrap()) as usize * 512;
        // The place and the size of the first packed grain too.
        forge(writer.name, &stream, false, &[&header[..], &[(grain, 8), (grain + 8, 4)]].concat(), none);
    }

    let grains = vmdk::difference(&empty, &disk, 512);
    let cowd = vmdk::cowd(disk.len(), &grains);
    forge("COWD", &cowd, false, &[(12, 4), (16, 4), (20, 4), (24, 4), (28, 4), (2048, 4), (2560, 4)], none);

    let grains = vmdk::difference(&empty, &disk, 4096);
    let sesparse = vmdk::sesparse(disk.len(), &grains, Order::Ascending);
    let fields: Vec<(usize, usize)> =
        (2..26).map(|n| (n * 8, 8)).chain([(520, 8), (528, 8), (4096 * 512, 8)]).collect();
    forge("SESparse", &sesparse, false, &fields, none);

    let dynamic = vhd::Vhd::default().dynamic(&disk);
    let sum = |image: &mut [u8]| {
        let end = image.len() - 512;
        for (at, len, sum) in [(0, 512, 64), (end, 512, 64), (512, 1024, 36)] {
            image[at + sum..at + sum + 4].fill(0);
            let all = image[at..at + len].iter().fold(0_u32, |all, byte| all.wrapping_add((*byte).into()));
            image[at + sum..at + sum + 4].copy_from_slice(&(!all).to_be_bytes());
        }
    };
    // Lengths of the footer's copy; where the table is, its entries, a block's bytes; an entry.
    let fields = [(40, 8), (48, 8), (16, 8), (512 + 16, 8), (512 + 28, 4), (512 + 32, 4), (512 + 8, 8), (1536, 4)];
    forge("VHD", &dynamic, true, &fields, sum);

    let image = vdi::write(&disk, vdi::Ids { created: [1; 16], modified: [2; 16] }, None);
    let fields = [(72, 4), (340, 4), (344, 4), (360, 4), (368, 8), (376, 4), (380, 4), (384, 4), (388, 4), (512, 4)];
    forge("VDI", &image, false, &fields, none);

    let image = vhdx::Vhdx::default().write(&disk, None);
    // The log's length and place, the region table's entries, the metadata's; the block table.
    let fields = [(65_536 + 68, 4), (65_536 + 72, 8), (3 << 16, 4), ((3 << 16) + 8, 4), (vhdx::BAT as usize, 8)];
    let all: Vec<(usize, usize)> = fields
        .into_iter()
        .chain((0..8).map(|n| ((3 << 16) + 16 + n * 8, 8)))
        .chain((0..40).map(|n| ((2 << 20) + n * 8, 8)))
        .collect();
    forge("VHDX", &image, false, &all, none);
    forge("VHDX, sealed", &image, false, &all, |image| {
        for at in [1 << 16, 2 << 16] {
            vhdx::seal(&mut image[at..at + 4096]);
        }
        for at in [3 << 16, 4 << 16] {
            vhdx::seal(&mut image[at..at + 65_536]);
        }
    });

    let image = qcow1::write(&disk, &empty, &qcow1::Options::default());
    forge("QCOW v1", &image, true, &[(8, 8), (16, 4), (24, 8), (32, 1), (33, 1), (40, 8), (48, 8)], none);
    let image = qcow2::write(&disk, &qcow2::Options::default());
    let fields =
        [(8, 8), (16, 4), (20, 4), (24, 8), (36, 4), (40, 8), (48, 8), (56, 4), (60, 4), (64, 8), (96, 4), (100, 4)];
    forge("QCOW2", &image, true, &fields, none);

    let image = ewf::write(&disk, &ewf::Options::default()).concat();
    let all: Vec<(usize, usize)> = (0..24).map(|n| (13 + 16 + n * 8, 8)).collect();
    forge("EWF", &image, false, &all, none);
}

#[test]
fn archives_that_lie() {
    let members = vec![("a.vmdk".to_owned(), vmdk::stream_optimized(&disk_of(MIB), "a.vmdk", 1))];
    let archive = ova::write("vm", &members);
    for size in [&b"77777777777"[..], b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff", b"99999999999"] {
        for member in [0, 512 * 4] {
            let mut archive = archive.clone();
            archive[member + 124..member + 124 + size.len()].copy_from_slice(size);
            let header = &mut archive[member..member + 512];
            header[148..156].fill(b' ');
            let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
            header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
            try_it("OVA", &memory(archive));
        }
    }
}

#[test]
fn descriptors_that_lie() {
    let head = "# Disk DescriptorFile\nversion=1\nCID=1\nparentCID=ffffffff\ncreateType=\"monolithicFlat\"\n";
    let most = u64::MAX / 512;
    for (what, lines) in [
        ("a length of more than 64 bits", format!("RW {} FLAT \"a\" 0\n", u64::MAX)),
        ("a sum of more than 64 bits", format!("RW {most} FLAT \"a\" 0\nRW {most} FLAT \"b\" 0\n")),
        ("an offset at the end of all", format!("RW 8 FLAT \"a\" {}\n", u64::MAX)),
        ("no sectors", "RW 0 FLAT \"a\" 0\n".into()),
        ("minus one", "RW -1 FLAT \"a\" 0\n".into()),
        ("a million extents", "RW 1 ZERO\n".repeat(100_000)),
        ("one long line", format!("RW 1 FLAT \"{}\" 0\n", "a".repeat(200_000))),
        ("a million keys", (0..100_000).map(|n| format!("k{n}=1")).collect::<Vec<_>>().join("\n")),
    ] {
        try_it(what, &memory(format!("{head}{lines}").into_bytes()));
    }
}
