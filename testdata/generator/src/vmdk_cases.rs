//! Hard VMDK images: each is legal, or damaged in a way that readers get wrong in silence. Their numbers are those of
//! a comparison of readers: s for hosted sparse extents, t for streams, d for descriptors, c for chains.

use crate::Device;
use crate::vmdk::{self, Descriptor, Grain, Order};
use crate::vmdk_stream::WRITERS;
use crate::vmfs::pattern;
use std::fs;
use std::io;
use std::ops::Range;
use std::path::Path;

const MIB: u64 = 1 << 20;
const GRAIN: u64 = 64 << 10;

/// One case.
#[derive(Clone, Debug)]
pub struct Case {
    /// Its number, such as `s05`.
    pub name: &'static str,
    /// What is special.
    pub about: &'static str,
    /// The files, by name; the first is the one to open.
    pub files: Vec<(String, Vec<u8>)>,
    /// What a right reader finds.
    pub disk: Vec<u8>,
    /// What no reader can have, ascending.
    pub lost: Vec<Range<u64>>,
}

/// The tables of a hosted extent: directory, first table.
#[derive(Clone, Copy)]
struct Copies {
    redundant: (usize, usize),
    primary: (usize, usize),
}

struct Cases(Vec<Case>);

impl Cases {
    fn add(&mut self, name: &'static str, about: &'static str, files: Vec<(String, Vec<u8>)>, disk: &[u8]) {
        self.0.push(Case { name, about, files, disk: disk.to_vec(), lost: Vec::new() });
    }

    fn lose(&mut self, lost: Vec<Range<u64>>) {
        if let Some(case) = self.0.last_mut() {
            case.lost = lost;
        }
    }
}

/// All cases.
#[must_use]
pub fn all() -> Vec<Case> {
    let mut cases = Cases(Vec::new());
    hosted(&mut cases);
    streams(&mut cases);
    descriptors(&mut cases);
    grammar(&mut cases);
    devices(&mut cases);
    chains(&mut cases);
    cases.0
}

/// Writes each case into a folder of its own below `dir`: its files, and as `expected.raw` what a right reader finds,
/// with zeros where nothing can be had.
pub fn write(dir: &Path) -> io::Result<()> {
    for case in all() {
        let dir = dir.join(case.name);
        fs::create_dir_all(&dir)?;
        for (name, bytes) in &case.files {
            fs::write(dir.join(name), bytes)?;
        }
        let mut disk = case.disk;
        for range in case.lost {
            disk[range.start as usize..range.end as usize].fill(0);
        }
        fs::write(dir.join("expected.raw"), disk)?;
    }
    Ok(())
}

fn file(name: &str, bytes: impl Into<Vec<u8>>) -> (String, Vec<u8>) {
    (name.into(), bytes.into())
}

fn one(bytes: impl Into<Vec<u8>>) -> Vec<(String, Vec<u8>)> {
    vec![file("disk.vmdk", bytes)]
}

fn plain(device: &Device) -> Vec<u8> {
    device.read(0, device.len() as usize)
}

/// Data in both tables, holes between, a cut last grain.
fn sample(len: u64, seed: u64) -> Device {
    let mut device = Device::new(len);
    device.write(0, &pattern(3 * 512, seed));
    device.write(5 * MIB + 1536, &pattern(300_000, seed + 1));
    device.write(9 * MIB, &vec![0x5a; MIB as usize]);
    device.write(len - 3000, &pattern(3000, seed + 2));
    device
}

fn sectors(bytes: &[u8], at: usize) -> usize {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes")) as usize * 512
}

fn copies(bytes: &[u8]) -> Copies {
    let (redundant, primary) = (sectors(bytes, 48), sectors(bytes, 56));
    Copies { redundant: (redundant, redundant + 512), primary: (primary, primary + 512) }
}

fn with(bytes: &[u8], range: Range<usize>, byte: u8) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes[range].fill(byte);
    bytes
}

fn hosted(cases: &mut Cases) {
    let device = sample(40 * MIB, 1);
    let disk = plain(&device);
    let good = vmdk::hosted_sparse(&device, "renamed.vmdk", 0x1111_0001);
    let Copies { redundant, primary } = copies(&good);
    cases.add("s01", "monolithicSparse", one(good.clone()), &disk);
    let odd = sample(40 * MIB + 5 * 512, 3);
    let image = vmdk::hosted_sparse(&odd, "a.vmdk", 2);
    cases.add("s02", "capacity is no multiple of a grain", one(image), &plain(&odd));
    let mut newer = good.clone();
    newer[4] = 3;
    cases.add("s03", "version 3", one(newer), &disk);
    let mut unclean = good.clone();
    unclean[72] = 1;
    cases.add("s04", "not closed", one(unclean), &disk);
    for (name, about, range, byte) in [
        ("s05", "primary directory garbage", primary.0..primary.0 + 512, 0xee),
        ("s06", "primary directory zero", primary.0..primary.0 + 512, 0),
        ("s07", "primary tables garbage", primary.1..primary.1 + 4096, 0xee),
        ("s08", "primary tables zero", primary.1..primary.1 + 4096, 0),
        ("s09", "header sector gone", 0..512, 0),
        ("s11", "embedded descriptor gone", 512..21 * 512, 0),
        ("s13", "redundant directory garbage", redundant.0..redundant.0 + 512, 0xee),
    ] {
        cases.add(name, about, one(with(&good, range, byte)), &disk);
    }
    let both = with(&with(&good, primary.0..primary.0 + 512, 0), redundant.0..redundant.0 + 512, 0x33);
    cases.add("s14", "both directories gone", one(both), &disk);
    // The last grain in the file is the last of the disk; of 40 MiB it has the last 64 KiB.
    let short = good[..good.len() - GRAIN as usize].to_vec();
    cases.add("s10", "file shorter than its tables say", one(short), &disk);
    cases.lose(one_range(device.len() - GRAIN, GRAIN));
    let mut zeroed = good.clone();
    zeroed[4] = 2;
    zeroed[8] |= 4;
    for table in [primary.1, redundant.1] {
        // Nothing was ever written to the third grain, and zeros to the 9 MiB of 0x5a.
        for grain in [3, 144, 145] {
            zeroed[table + grain * 4..][..4].copy_from_slice(&1_u32.to_le_bytes());
        }
    }
    let mut less = device.clone();
    less.zero(144 * GRAIN..146 * GRAIN);
    cases.add("s12", "zeroed grains", one(zeroed), &plain(&less));
}

fn streams(cases: &mut Cases) {
    const NAMES: [(&str, &str); 5] = [
        ("t01", "VMware's stream, with footer and markers"),
        ("t07", "ovftool's stream: directory in header and footer"),
        ("t08", "VirtualBox's stream"),
        ("t09", "QEMU's stream: tables first, two copies, no footer"),
        ("t10", "open-vmdk's stream: tables first, grains not aligned"),
    ];
    let device = sample(40 * MIB, 11);
    let disk = plain(&device);
    for (writer, (name, about)) in WRITERS.iter().zip(NAMES) {
        cases.add(name, about, one(writer.write(&device, 0x2222_0001)), &disk);
    }
    let good = WRITERS[0].write(&device, 0x2222_0001);
    cases.add("t02", "footer cut off", one(good[..good.len() - 1536].to_vec()), &disk);
    let cut = good.len() / 2;
    cases.add("t03", "half of the file", one(good[..cut].to_vec()), &disk);
    cases.lose(behind(&good[..cut], device.len()));
    let no_places = WRITERS[3].without_places().write(&device, 0x2222_0001);
    cases.add("t04", "records without their place", one(no_places), &disk);
    let mut longer = good.clone();
    longer.extend(pattern(700, 5));
    cases.add("t06", "bytes behind the end", one(longer), &disk);
}

/// What a cut stream has lost: from its last, cut record on. All of that, since packed noise gives no prefix that
/// is worth anything; where it does give one, the reader must not call it sound.
fn behind(stream: &[u8], len: u64) -> Vec<Range<u64>> {
    let mut at = 128 * 512;
    let mut last = 0;
    while at + 12 <= stream.len() {
        let lba = u64::from_le_bytes(stream[at..at + 8].try_into().expect("eight bytes"));
        let size = u32::from_le_bytes(stream[at + 8..at + 12].try_into().expect("four bytes")) as usize;
        last = lba * 512;
        if size == 0 {
            break;
        }
        at += (size + 12).next_multiple_of(512);
    }
    one_range(last, len - last)
}

/// A descriptor of `lines`.
fn text(create_type: &str, lines: &str) -> String {
    format!(
        "# Disk DescriptorFile\nversion=1\nencoding=\"UTF-8\"\nCID=33330001\nparentCID=ffffffff\n\
         createType=\"{create_type}\"\n\n# Extent description\n{lines}\n\n# The Disk Data Base\n#DDB\n\n\
         ddb.adapterType = \"lsilogic\"\n"
    )
}

/// Two halves of a megabyte, and the disk that they make with a megabyte of zeros between.
fn halves() -> (Vec<u8>, Vec<u8>, Vec<u8>) {
    let (a, b) = (pattern(MIB as usize, 21), pattern(MIB as usize, 22));
    let disk = [a.clone(), vec![0; MIB as usize], b.clone()].concat();
    (a, b, disk)
}

fn descriptors(cases: &mut Cases) {
    let (a, b, disk) = halves();
    let mut add = |name, about, kind: &str, lines: &str, files: &[(&str, &[u8])], disk: &[u8]| {
        let mut all = one(text(kind, lines));
        all.extend(files.iter().map(|(name, bytes)| file(name, *bytes)));
        cases.add(name, about, all, disk);
    };
    let flat = &[("a.vmdk", &a[..]), ("b.vmdk", &b[..])];
    let zero = "RW 2048 FLAT \"a.vmdk\" 0\nRW 2048 ZERO\nRW 2048 FLAT \"b.vmdk\" 0";
    add("d01", "a ZERO extent in the middle", "twoGbMaxExtentFlat", zero, flat, &disk);
    let both = [&a[..], &b[..]].concat();
    let read_only = "RW 2048 FLAT \"a.vmdk\" 0\nRDONLY 2048 FLAT \"b.vmdk\" 0";
    add("d02", "an RDONLY extent", "twoGbMaxExtentFlat", read_only, flat, &both);
    let offset = "RW 1024 FLAT \"a.vmdk\" 1024\nRW 2048 FLAT \"b.vmdk\" 0";
    add("d04", "a FLAT extent from an offset on", "monolithicFlat", offset, flat, &both[MIB as usize / 2..]);
    let swapped = "RW 1024 FLAT \"b.vmdk\" 1024\nRW 2048 FLAT \"a.vmdk\" 0\nRW 1024 FLAT \"b.vmdk\" 0";
    let half = MIB as usize / 2;
    let custom = [&b[half..], &a[..], &b[..half]].concat();
    add("d05", "custom, one file in two extents", "custom", swapped, flat, &custom);
    let device = sample(40 * MIB, 31);
    let sparse = vmdk::hosted_sparse(&device, "s.vmdk", 4);
    let mixed = "RW 2048 FLAT \"a.vmdk\" 0\nRW 81920 SPARSE \"s.vmdk\"\nRW 2048 FLAT \"b.vmdk\" 0";
    let files = &[flat[0], ("s.vmdk", &sparse[..]), flat[1]];
    add("d06", "FLAT and SPARSE extents", "custom", mixed, files, &[&a[..], &plain(&device), &b].concat());
    let vmfs = "RW 2048 VMFS \"a.vmdk\"";
    for (name, kind) in [
        ("d21", "vmfs"),
        ("d22", "vmfsThin"),
        ("d23", "vmfsPreallocated"),
        ("d24", "vmfsEagerZeroedThick"),
        ("d25", "monolithicFlat"),
    ] {
        add(name, kind, kind, vmfs, flat, &a);
    }
    let split = "RW 81920 SPARSE \"s.vmdk\"\nRW 81920 SPARSE \"s.vmdk\"";
    let twice = [plain(&device), plain(&device)].concat();
    add("d26", "twoGbMaxExtentSparse", "twoGbMaxExtentSparse", split, files, &twice);
    let track = format!("{vmfs}\n\n# Change Tracking File\nchangeTrackPath=\"a-ctk.vmdk\"");
    add("d18", "changeTrackPath", "vmfs", &track, flat, &a);
    let no_access = "RW 2048 FLAT \"a.vmdk\" 0\nNOACCESS 2048 FLAT \"x.vmdk\" 0\nRW 2048 FLAT \"b.vmdk\" 0";
    add("d03", "a NOACCESS extent", "twoGbMaxExtentFlat", no_access, &[flat[0], flat[1], ("x.vmdk", &a)], &disk);
    cases.lose(one_range(MIB, MIB));
    let mut add = |name, about, lines: &str, files: &[(&str, &[u8])], lost: Range<u64>| {
        let mut all = one(text("twoGbMaxExtentFlat", lines));
        all.extend(files.iter().map(|(name, bytes)| file(name, *bytes)));
        cases.add(name, about, all, &disk);
        cases.lose(one_range(lost.start, lost.end - lost.start));
    };
    let zeros = vec![0; MIB as usize];
    let three = "RW 2048 FLAT \"a.vmdk\" 0\nRW 2048 FLAT \"z.vmdk\" 0\nRW 2048 FLAT \"b.vmdk\" 0";
    add("d19", "the first extent's file is missing", three, &[("z.vmdk", &zeros), flat[1]], 0..MIB);
    add("d27", "a middle extent's file is missing", three, flat, MIB..2 * MIB);
    let short = ("a.vmdk", &a[..a.len() - 1000]);
    add("d20", "a file shorter than its extent", three, &[short, ("z.vmdk", &zeros), flat[1]], MIB - 1000..MIB);
}

fn one_range(start: u64, len: u64) -> Vec<Range<u64>> {
    let range = start..start + len;
    Vec::from([range])
}

fn grammar(cases: &mut Cases) {
    let (a, ..) = halves();
    let usual = text("vmfs", "RW 2048 VMFS \"a.vmdk\"");
    let mut add = |name, about, text: Vec<u8>, extent: &str| {
        cases.add(name, about, vec![file("disk.vmdk", text), file(extent, a.clone())], &a);
    };
    add("d07", "lines end in CR LF", usual.replace('\n', "\r\n").into_bytes(), "a.vmdk");
    let shout = usual.replace("createType", "CREATETYPE").replace("CID", "cId").replace("RW 2048 VMFS", "rw 2048 vmfs");
    add("d08", "keys in other case", shout.into_bytes(), "a.vmdk");
    let blanks = usual.replace('=', " =\t").replace("RW 2048 VMFS ", "  RW\t 2048   VMFS\t");
    add("d09", "blanks everywhere", format!("\n \n{blanks}").into_bytes(), "a.vmdk");
    add("d10", "an offset of 0, partition and device", usual.replace(".vmdk\"", ".vmdk\" 0 uuid dev").into(), "a.vmdk");
    add("d11", "blanks in a name", usual.replace("a.vmdk", "my own disk.vmdk").into(), "my own disk.vmdk");
    let mut latin = usual.replace("UTF-8", "windows-1252").into_bytes();
    let at = latin.windows(6).position(|name| name == b"a.vmdk").expect("it names it");
    latin[at] = 0xe4;
    add("d12", "a name in windows-1252", latin, "ä.vmdk");
    add("d17", "a byte order mark", format!("\u{feff}{usual}").into_bytes(), "a.vmdk");
}

fn devices(cases: &mut Cases) {
    let (a, ..) = halves();
    for (name, kind, word) in
        [("d13", "vmfsRawDeviceMap", "VMFSRDM"), ("d14", "vmfsPassthroughRawDeviceMap", "VMFSRDM")]
    {
        let words = text(kind, &format!("RW 2048 {word} \"disk-rdm.vmdk\""));
        cases.add(name, "a mapped device that is not there", one(words.clone()), &a);
        cases.lose(one_range(0, MIB));
        let given = if name == "d13" { "d28" } else { "d29" };
        let files = vec![file("disk.vmdk", words), file("disk-rdm.vmdk", a.clone())];
        cases.add(given, "a mapped device that is given", files, &a);
    }
    let whole = text("fullDevice", "RW 2048 FLAT \"/dev/sdz\" 0");
    cases.add("d15", "fullDevice, the device given", vec![file("disk.vmdk", whole), file("sdz", a.clone())], &a);
    let half = MIB / 2;
    let parts = "RW 1024 FLAT \"disk-pt.vmdk\" 0\nRW 512 FLAT \"/dev/sdz\" 1024\nRW 512 ZERO";
    let files = vec![
        file("disk.vmdk", text("partitionedDevice", parts)),
        file("disk-pt.vmdk", &a[..half as usize]),
        file("sdz", a.clone()),
    ];
    let mut disk = a.clone();
    disk[(MIB * 3 / 4) as usize..].fill(0);
    cases.add("d16", "partitionedDevice, table and device given", files, &disk);
}

/// A base of 40 MiB and what a delta makes of it.
fn chains(cases: &mut Cases) {
    let base = sample(40 * MIB, 41);
    let mut now = base.clone();
    now.write(5 * MIB, &pattern(200_000, 44));
    now.zero(9 * MIB..9 * MIB + 4 * GRAIN);
    now.write(30 * MIB, &pattern(5000, 45));
    let (before, after) = (plain(&base), plain(&now));
    let flat = Descriptor::flat(base.len(), "base-flat.vmdk", true, 1).written(0x4444_0001);
    let beside = || vec![file("base.vmdk", flat.text()), file("base-flat.vmdk", before.clone())];
    let delta = |kind: &str, parent: &str| {
        Descriptor::delta(base.len(), kind, "delta.vmdk", parent, 2).written(0x4444_0002).over(0x4444_0001)
    };
    let mut add = |name, about, text: String, delta: Vec<u8>, disk: &[u8]| {
        let mut files = vec![file("disk.vmdk", text), file("delta.vmdk", delta)];
        files.extend(beside());
        cases.add(name, about, files, disk);
    };
    let cowd = vmdk::cowd(base.len(), &vmdk::difference(&base, &now, 512));
    let grains = vmdk::difference(&base, &now, 4096);
    let sesparse = vmdk::sesparse(base.len(), &grains, Order::Descending);
    add("c04", "COWD over flat", delta("VMFSSPARSE", "base.vmdk").text(), cowd.clone(), &after);
    add("c06", "SESparse over flat", delta("SESPARSE", "base.vmdk").text(), sesparse.clone(), &after);
    let absolute = "/vmfs/volumes/5f-1234/vm/base.vmdk";
    add("c09", "the parent by a path of its host", delta("SESPARSE", absolute).text(), sesparse.clone(), &after);
    let mut unmapped = grains.clone();
    unmapped.insert(10 * MIB / 4096, Grain::Unmapped);
    let unmapped = vmdk::sesparse(base.len(), &unmapped, Order::Ascending);
    let mut zeros = now.clone();
    zeros.zero(10 * MIB..10 * MIB + 4096);
    add("c07", "an unmapped grain", delta("SESPARSE", "base.vmdk").text(), unmapped, &plain(&zeros));
    let mut waiting = sesparse;
    waiting[512 + 24] = 1;
    add("c08", "a journal that was not replayed", delta("SESPARSE", "base.vmdk").text(), waiting, &after);
    let other = delta("VMFSSPARSE", "base.vmdk").over(0x0bad_0bad);
    add("c02", "the parent's content id differs", other.text(), cowd.clone(), &after);
    // A hosted delta: the whole grains that changed, over a hosted base.
    let mut changed = Device::new(base.len());
    for grain in vmdk::difference(&base, &now, GRAIN).keys() {
        changed.write(grain * GRAIN, &now.read(grain * GRAIN, GRAIN as usize));
    }
    let words = delta("SPARSE", "base.vmdk").text().replace("vmfsSparse", "monolithicSparse");
    let hosted = |device: &Device, words: &str| {
        let mut bytes = vmdk::hosted_sparse(device, "x.vmdk", 0x4444_0001);
        bytes[512..21 * 512].fill(0);
        bytes[512..512 + words.len()].copy_from_slice(words.as_bytes());
        bytes
    };
    let base_image = vmdk::hosted_sparse(&base, "base.vmdk", 0x4444_0001);
    let mut over = hosted(&changed, &words);
    cases.add(
        "c01",
        "a hosted delta over a hosted disk",
        vec![file("disk.vmdk", over.clone()), file("base.vmdk", base_image.clone())],
        &hosted_result(&base, &now),
    );
    let Copies { redundant, primary } = copies(&over);
    for table in [redundant.1, primary.1] {
        // Grains that became zeros.
        for grain in 144..148 {
            over[table + grain * 4..][..4].copy_from_slice(&1_u32.to_le_bytes());
        }
    }
    over[8] |= 4;
    cases.add(
        "c03",
        "zeroed grains in a hosted delta",
        vec![file("disk.vmdk", over), file("base.vmdk", base_image)],
        &after,
    );
    let orphan = delta("VMFSSPARSE", "base.vmdk").text();
    let sectors = vmdk::difference(&base, &now, 512);
    let mut lost = Vec::new();
    let mut at = 0;
    for sector in sectors.keys() {
        if sector * 512 > at {
            lost.push(at..sector * 512);
        }
        at = sector * 512 + 512;
    }
    lost.push(at..base.len());
    cases.add("c05", "a delta without its parent", vec![file("disk.vmdk", orphan), file("delta.vmdk", cowd)], &after);
    cases.lose(lost);
}

/// Without zeroed grains, what became zeros shows the parent, unless its grain was written as zeros.
fn hosted_result(base: &Device, now: &Device) -> Vec<u8> {
    let mut disk = now.clone();
    let zeroed = 9 * MIB..9 * MIB + 4 * GRAIN;
    disk.write(zeroed.start, &base.read(zeroed.start, (zeroed.end - zeroed.start) as usize));
    plain(&disk)
}
