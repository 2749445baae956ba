#![allow(clippy::unwrap_used, clippy::arithmetic_side_effects, reason = "tests")]

use super::*;
use crate::adapt::Memory;

fn clues(bytes: &[u8], at: u64) -> Vec<Clue> {
    let mut clues = Vec::new();
    look(&Window { at, bytes, own: bytes.len() }, &mut |clue| clues.push(clue));
    clues
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

/// The one anchor in 64 KiB with `sector` at `at`.
fn only(at: usize, sector: &[u8]) -> Option<Anchor> {
    let mut bytes = vec![0; 65536];
    put(&mut bytes, at, sector);
    let clues: Vec<Clue> = clues(&bytes, 0).into_iter().filter(|clue| clue.kind != CLASS).collect();
    let layer = Memory::new(bytes);
    let found: Vec<Anchor> = clues.iter().filter_map(|clue| anchor(&layer, clue)).collect();
    assert!(found.len() < 2, "{found:?}");
    found.into_iter().next()
}

fn ext_bytes(block_shift: u32, group: u16) -> Vec<u8> {
    let mut bytes = vec![0; 8192];
    put(&mut bytes, 0x00, &60_000_u32.to_le_bytes());
    put(&mut bytes, 0x04, &1_000_000_u32.to_le_bytes());
    put(&mut bytes, 0x14, &u32::from(block_shift == 0).to_le_bytes());
    put(&mut bytes, 0x18, &block_shift.to_le_bytes());
    put(&mut bytes, 0x20, &(8192_u32 << block_shift).to_le_bytes());
    put(&mut bytes, 0x28, &2048_u32.to_le_bytes());
    put(&mut bytes, 0x38, &0xEF53_u16.to_le_bytes());
    put(&mut bytes, 0x5A, &group.to_le_bytes());
    put(&mut bytes, 0x68, &[7; 16]);
    put(&mut bytes, 0x78, b"data");
    bytes
}

#[test]
fn ext_superblocks_know_their_group() {
    let descriptors = [40_u32, 41, 42].map(u32::to_le_bytes).concat();
    for (group, offset, next) in [(0, 1024, 3072), (1, 128 << 20, 4096), (3, 384 << 20, 4096)] {
        let mut bytes = ext_bytes(2, group);
        put(&mut bytes, next, &descriptors);
        let found = only(1024, &bytes).unwrap();
        assert_eq!((found.offsets.as_slice(), found.len), (&[offset][..], Some(1_000_000 * 4096)));
        assert_eq!(found.label, b"data");
        // A copy in the journal has no descriptors behind it.
        assert_eq!(only(1024, &ext_bytes(2, group)), None);
    }
    assert_eq!(only(1024, &ext_bytes(2, 900)), None, "a group that it does not have");
}

fn exfat_region() -> Vec<u8> {
    let mut region = vec![0; 12 * 512];
    put(&mut region, 3, b"EXFAT   ");
    put(&mut region, 0x40, &2048_u64.to_le_bytes());
    put(&mut region, 0x48, &100_000_u64.to_le_bytes());
    put(&mut region, 0x64, &[1, 2, 3, 4]);
    put(&mut region, 0x6C, &[9, 3, 1]);
    put(&mut region, 510, &[0x55, 0xAA]);
    // As the specification has it: a turn to the right, then the byte.
    let mut sum = 0_u32;
    for (i, byte) in region[..11 * 512].iter().enumerate() {
        if ![106, 107, 112].contains(&i) {
            sum =
                (if sum & 1 == 1 { 0x8000_0000_u32 } else { 0 }).wrapping_add(sum >> 1).wrapping_add(u32::from(*byte));
        }
    }
    for at in (11 * 512..12 * 512).step_by(4) {
        put(&mut region, at, &sum.to_le_bytes());
    }
    region
}

#[test]
fn exfat_boot_regions_are_proven_by_their_sum() {
    let region = exfat_region();
    let alone = only(4096, &region).unwrap();
    assert_eq!((alone.of.sort, alone.offsets.as_slice(), alone.len), (Sort::ExFat, &[12 * 512][..], Some(51_200_000)));
    assert_eq!((alone.hidden, alone.of.to_string().as_str()), (Some(1 << 20), "01020304"));
    // Two in a row: the first has its copy behind it.
    let mut bytes = vec![0; 65536];
    put(&mut bytes, 4096, &[region.clone(), region.clone()].concat());
    let layer = Memory::new(bytes);
    let offsets: Vec<_> = [4096, 4096 + 12 * 512].map(|at| windows::exfat(&layer, at).unwrap().offsets).concat();
    assert_eq!(offsets, [0, 12 * 512]);
    let mut torn = region;
    torn[3000] ^= 1;
    assert_eq!(only(4096, &torn), None);
}

#[test]
fn btrfs_superblocks_know_their_place() {
    for place in [64_u64 << 10, 64 << 20] {
        let mut bytes = vec![0; 4096];
        put(&mut bytes, 0x30, &place.to_le_bytes());
        put(&mut bytes, 0x40, b"_BHRfS_M");
        put(&mut bytes, 0x88, &1_u64.to_le_bytes());
        put(&mut bytes, 0xD1, &(1_u64 << 30).to_le_bytes());
        put(&mut bytes, 0x10B, &[9; 16]);
        put(&mut bytes, 0x12B, b"pool");
        let sum = crc32c::crc32c(&bytes[0x20..]);
        put(&mut bytes, 0, &sum.to_le_bytes());
        let found = only(8192, &bytes).unwrap();
        assert_eq!((found.of.sort, found.offsets.as_slice(), found.len), (Sort::Btrfs, &[place][..], Some(1 << 30)));
        assert_eq!(found.label, b"pool");
        bytes[900] ^= 1;
        assert_eq!(only(8192, &bytes), None, "the checksum");
    }
}

#[test]
fn xfs_superblocks_know_their_group_by_the_agf() {
    let mut bytes = vec![0; 1024];
    put(&mut bytes, 0, b"XFSB");
    put(&mut bytes, 4, &4096_u32.to_be_bytes());
    put(&mut bytes, 8, &262_144_u64.to_be_bytes());
    put(&mut bytes, 32, &[3; 16]);
    put(&mut bytes, 84, &65_536_u32.to_be_bytes());
    put(&mut bytes, 88, &4_u32.to_be_bytes());
    put(&mut bytes, 102, &512_u16.to_be_bytes());
    put(&mut bytes, 108, b"srv");
    assert_eq!(only(512, &bytes), None, "no AGF");
    put(&mut bytes, 512, b"XAGF");
    put(&mut bytes, 516, &1_u32.to_be_bytes());
    put(&mut bytes, 520, &2_u32.to_be_bytes());
    put(&mut bytes, 524, &65_536_u32.to_be_bytes());
    let found = only(512, &bytes).unwrap();
    assert_eq!((found.offsets.as_slice(), found.len), (&[2 * 65_536 * 4096][..], Some(1 << 30)));
    assert_eq!((found.of.sort, found.label.as_slice()), (Sort::Xfs, &b"srv"[..]));
    put(&mut bytes, 520, &4_u32.to_be_bytes());
    assert_eq!(only(512, &bytes), None, "a group that it does not have");
}

#[test]
fn swap_and_lvm_say_who_they_are() {
    let mut bytes = vec![0; 4096];
    put(&mut bytes, 1024, &1_u32.to_le_bytes());
    put(&mut bytes, 1028, &255_u32.to_le_bytes());
    put(&mut bytes, 1036, &[9; 16]);
    put(&mut bytes, 4086, b"SWAPSPACE2");
    let found = only(8192, &bytes).unwrap();
    assert_eq!((found.at, found.len, found.of.sort), (8192, Some(1 << 20), Sort::Swap));

    let mut bytes = vec![0; 512];
    put(&mut bytes, 0, b"LABELONE");
    put(&mut bytes, 8, &1_u64.to_le_bytes());
    put(&mut bytes, 20, &32_u32.to_le_bytes());
    put(&mut bytes, 24, b"LVM2 001");
    put(&mut bytes, 32, b"abcdefghijklmnopqrstuvwxyz012345");
    put(&mut bytes, 64, &(1_u64 << 30).to_le_bytes());
    let found = only(512, &bytes).unwrap();
    assert_eq!((found.offsets.as_slice(), found.len, found.of.sort), (&[512][..], Some(1 << 30), Sort::Lvm));
}

#[test]
fn fat_tells_its_copy_from_itself() {
    let mut boot = vec![0; 512];
    put(&mut boot, 0x0B, &512_u16.to_le_bytes());
    put(&mut boot, 0x0D, &[8]);
    put(&mut boot, 0x1C, &2048_u32.to_le_bytes());
    put(&mut boot, 0x20, &204_800_u32.to_le_bytes());
    put(&mut boot, 0x32, &6_u16.to_le_bytes());
    put(&mut boot, 0x43, &[1, 2, 3, 4]);
    put(&mut boot, 0x52, b"FAT32   ");
    put(&mut boot, 510, &[0x55, 0xAA]);
    let found = only(4096, &boot).unwrap();
    assert_eq!((found.offsets.as_slice(), found.hidden), (&[6 * 512][..], Some(1 << 20)), "the copy alone");
    let mut both = vec![0; 8192];
    put(&mut both, 0, &boot);
    put(&mut both, 6 * 512, &boot);
    let layer = Memory::new(both.clone());
    let offsets: Vec<Vec<u64>> =
        clues(&both, 0).iter().filter_map(|clue| anchor(&layer, clue)).map(|found| found.offsets).collect();
    assert_eq!(offsets, [[0], [6 * 512]]);
}

#[test]
fn runs_of_the_mft_are_followed() {
    let runs = [(10, 100), (5, 40)];
    assert_eq!(Record::place(&runs, 4096, 0), Some(100 * 4096));
    assert_eq!(Record::place(&runs, 4096, 10 * 4096 + 7), Some(40 * 4096 + 7));
    assert_eq!(Record::place(&runs, 4096, 15 * 4096), None);
    assert_eq!(Record::place(&[(u64::MAX, 5)], 4096, 9), None);
}

/// What looks like anchors all over is told of a few times a MiB, and whatever it says is refused or bounded.
#[test]
fn garbage_is_bounded() {
    let mut bytes = vec![0xFF; 4 << 20];
    for at in (0..bytes.len()).step_by(512) {
        let magic: &[u8] = match at / 512 % 4 {
            0 => b"EFI PART",
            1 => b"XFSB",
            2 => b"LABELONE",
            _ => b"FILE",
        };
        put(&mut bytes, at, magic);
    }
    let clues = clues(&bytes, 7 << 30);
    assert!(clues.len() <= 4 * 17, "{}", clues.len());
    let layer = Memory::new(bytes);
    for clue in clues {
        let clue = Clue { at: clue.at - (7 << 30), ..clue };
        assert_eq!(anchor(&layer, &clue), None);
        assert_eq!(record(&layer, &clue), None);
    }
}

#[test]
fn classes_have_sums() {
    let mut bytes = vec![0; 3 << 20];
    for byte in &mut bytes[1 << 20..2 << 20] {
        *byte = b'x';
    }
    put(&mut bytes, (2 << 20) + 5, &[1, 200]);
    let classes = classes(&clues(&bytes, 32 << 20));
    let totals: Vec<(Class, u64)> = classes.totals().into_iter().filter(|total| total.1 > 0).collect();
    assert_eq!(totals, [(Class::Zero, 1 << 20), (Class::Text, 1 << 20), (Class::Other, 1 << 20)]);
    assert_eq!(classes.filled((32 << 20) + 1024, 2 << 20), (1 << 20) + 1024);
    assert_eq!(classes.filled(0, 1 << 20), 0);
}
