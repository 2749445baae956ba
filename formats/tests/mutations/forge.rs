//! Entries that a format does not allow, put in place of good ones.

use super::fixtures::{Area, Fixture};
use super::image::Image;
use vdrecover_formats::Layer;

/// A fixture with one entry that can't be right.
#[derive(Debug)]
pub struct Forged {
    pub what: String,
    pub at: u64,
    pub images: Vec<Image>,
}

/// A bad value of an entry, by what is wrong with it.
type Bad = (&'static str, u64);

/// How the entries of a structure are written.
struct Entries {
    width: u64,
    big: bool,
    bad: fn(old: u64, len: u64) -> Vec<Bad>,
}

/// All that can be forged in a fixture: the first, a middle and the last entry in use of each structure.
pub fn all(fixture: &Fixture) -> Vec<Forged> {
    let mut forged = Vec::new();
    for (index, part) in fixture.parts.iter().enumerate() {
        for area in &part.areas {
            let Some(entries) = entries(fixture, area) else { continue };
            let clean = Image::new(&part.device);
            let places: Vec<u64> = (area.range.start..area.range.end.saturating_sub(entries.width - 1))
                .step_by(entries.width as usize)
                .filter(|at| get(&clean, *at, &entries) != 0)
                .collect();
            let mut chosen = vec![0, places.len() / 2, places.len().saturating_sub(1)];
            chosen.dedup();
            for at in chosen.into_iter().filter_map(|i| places.get(i)) {
                let bad = (entries.bad)(get(&clean, *at, &entries), clean.len());
                // Nothing is what an entry may well say.
                for (what, value) in bad.into_iter().filter(|(what, value)| *value != 0 || *what == "nowhere") {
                    let mut images = fixture.images();
                    put(&mut images[index], *at, value, &entries);
                    forged.push(Forged { what: format!("{}, {what}: {value:#x}", area.what), at: *at, images });
                }
            }
        }
    }
    forged
}

fn get(image: &Image, at: u64, entries: &Entries) -> u64 {
    let mut bytes = image.get(at, entries.width as usize);
    if !entries.big {
        bytes.reverse();
    }
    bytes.iter().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

fn put(image: &mut Image, at: u64, value: u64, entries: &Entries) {
    let width = entries.width as usize;
    if entries.big {
        image.put(at, &value.to_be_bytes()[8 - width..]);
    } else {
        image.put(at, &value.to_le_bytes()[..width]);
    }
}

fn entries(fixture: &Fixture, area: &Area) -> Option<Entries> {
    let entries = |width, big, bad| Some(Entries { width, big, bad });
    match (fixture.name, area.what) {
        ("qcow2-v2", "L2") => {
            entries(8, true, |old, len| [qcow2_table(old, len), vec![("the zero bit", old | 1)]].concat())
        }
        ("qcow2" | "qcow2-backed", "L2") => entries(8, true, |old, len| match old {
            // A zero cluster may keep its place.
            1 => vec![("a reserved bit", old | 1 << 57), ("a reserved bit", old | 1 << 5)],
            _ => qcow2_table(old, len),
        }),
        ("qcow2-deflate" | "qcow2-zstd", "L2") => entries(8, true, |old, len| {
            if old & 1 << 62 == 0 {
                return qcow2_table(old, len);
            }
            let bits = 0xFFFF_FFFF;
            vec![("compressed, out of range", old & !bits | (len + 512)), ("compressed and copied", old | 1 << 63)]
        }),
        (name, "L1") if name.starts_with("qcow2") => entries(8, true, qcow2_table),
        ("vmdk-cowd", "directory" | "tables") => {
            entries(4, false, |_, len| vec![("out of range", len / 512 + 1), ("out of range", 0xFFFF_FFF0)])
        }
        ("vmdk-hosted", "first directory" | "second directory" | "first tables" | "second tables") => {
            entries(4, false, |old, len| {
                vec![("out of range", len / 512 + 1), ("another place", old + 1), ("nowhere", 0), ("no place", 2)]
            })
        }
        ("vhd" | "vhd-differencing", "table") => entries(4, true, |old, len| {
            if old == 0xFFFF_FFFF {
                return Vec::new();
            }
            let mut bad = vec![("out of range", len / 512), ("out of range", 0xFFFF_FFF0), ("in the table", 3)];
            bad.push(("in a footer", len / 512 - 1));
            bad
        }),
        ("vhdx" | "vhdx-differencing", "table") => entries(8, false, |old, len| {
            let mut bad = vec![("no state", old & !7 | 4), ("no state", old & !7 | 5), ("reserved", old | 1 << 10)];
            if old & 7 == 6 {
                bad.push(("out of range", len.next_multiple_of(1 << 20) | old & 7));
                bad.push(("in the table", 3 << 20 | old & 7));
            }
            bad
        }),
        ("vhdx-differencing", "bitmap entry") => entries(8, false, |old, len| {
            vec![("no state", old & !7 | 1), ("out of range", len.next_multiple_of(1 << 20) | 6)]
        }),
        ("vdi" | "vdi-differencing", "map") => entries(4, false, |old, _| {
            if old < 0xFFFF_FFFE { vec![("out of range", 1000), ("out of range", 0xFFFF_FFF0)] } else { Vec::new() }
        }),
        ("qcow" | "qcow-backed", "L1" | "L2") => entries(8, true, |old, len| {
            let len = len.next_multiple_of(4096);
            vec![("out of range", len), ("out of range", 1 << 62), ("unaligned", old + 8), ("the header", 8)]
        }),
        ("qcow-deflate", "L2") => entries(8, true, |old, len| match old >> 63 {
            1 => vec![("out of range", old & !((1 << 51) - 1) | (len + 512))],
            _ => vec![("unaligned", old + 8)],
        }),
        ("sesparse", "directory") => entries(8, false, |old, _| {
            vec![("no magic", old & 0xFFFF_FFFF), ("out of range", old + 1000), ("wrong magic", old ^ 1 << 40)]
        }),
        ("sesparse", "tables") => entries(8, false, |old, _| {
            let mut bad: Vec<Bad> = (4..16).map(|kind| ("no type", old & !(0xF << 60) | kind << 60)).collect();
            if old >> 60 == 3 {
                bad.push(("out of range", old | 0xFFFF_FFFF));
            }
            bad
        }),
        ("vmfs5", "pointers" | "pointer blocks") => entries(4, false, narrow_pointer),
        ("vmfs6" | "vmfs6-span", "pointers" | "pointer blocks") => entries(8, false, wide_pointer),
        ("gpt", "primary table" | "primary header") => {
            entries(8, false, |old, len| vec![("another number", old ^ 64), ("out of range", len)])
        }
        _ => None,
    }
}

fn qcow2_table(old: u64, len: u64) -> Vec<Bad> {
    let flags = old & 1 << 63;
    vec![
        ("out of range", flags | (len.next_multiple_of(1 << 21) + (1 << 21))),
        ("out of range", flags | 0x00FF_FFFF_FFE0_0000),
        ("unaligned", old | 512),
        ("a reserved bit", old | 1 << 57),
        ("a reserved bit", old | 1 << 5),
    ]
}

/// Types 0, 4, 6 and 7 are no pointers of VMFS5.
fn narrow_pointer(old: u64, _: u64) -> Vec<Bad> {
    let mut bad: Vec<Bad> = [0, 4, 6, 7].into_iter().map(|kind| ("no type", old & !7 | kind)).collect();
    bad.push(match old & 7 {
        1 => ("out of range", old | 0xFFFF_FFC0),
        _ => ("out of range", old | 0x0FFF_FFC0),
    });
    bad
}

fn wide_pointer(old: u64, _: u64) -> Vec<Bad> {
    let mut bad: Vec<Bad> = [0, 4, 6].into_iter().map(|kind| ("no type", old & !7 | kind)).collect();
    bad.push(match old & 7 {
        1 => ("out of range", old | 0x7FFF_FFFF << 15),
        _ => ("out of range", old | 0xF_FFFF_FFFF << 6),
    });
    bad
}
