//! Seeded mutations of the metadata of a fixture.

use super::fixtures::{Area, Fixture};
use super::image::{Image, SECTOR};
use std::collections::BTreeSet;
use vdrecover_formats::Layer;

/// A fixed sequence of numbers: xorshift.
#[derive(Debug)]
pub struct Dice(u64);

impl Dice {
    /// The sequence of one mutation of one fixture.
    pub fn new(fixture: &str, number: u64) -> Self {
        let name = fixture
            .bytes()
            .fold(0xCBF2_9CE4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3));
        let mut dice = Self((name ^ number.wrapping_mul(0x9E37_79B9_7F4A_7C15)) | 1);
        for _ in 0..8 {
            dice.roll(2);
        }
        dice
    }

    pub fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % sides.max(1)
    }
}

/// What was done to a fixture.
#[derive(Debug)]
pub struct Mutation {
    /// The structure that was hit; the images as a whole, or several.
    pub what: &'static str,
    /// Whether the format must reveal it.
    pub revealed: bool,
    /// Each change, for a person.
    pub steps: Vec<String>,
    pub images: Vec<Image>,
}

/// Mutation `number` of a fixture.
pub fn mutate(fixture: &Fixture, number: u64) -> Mutation {
    let mut dice = Dice::new(fixture.name, number);
    let mut mutation = Mutation { what: "", revealed: true, steps: Vec::new(), images: fixture.images() };
    let count = if dice.roll(4) == 0 { 2 + dice.roll(3) } else { 1 };
    for _ in 0..count {
        step(fixture, &mut mutation, &mut dice);
    }
    if count > 1 {
        // Two changes can agree with each other.
        mutation.what = "several";
        mutation.revealed = false;
    }
    mutation
}

fn step(fixture: &Fixture, mutation: &mut Mutation, dice: &mut Dice) {
    let parts: Vec<usize> = (0..fixture.parts.len()).filter(|i| !fixture.parts[*i].areas.is_empty()).collect();
    let index = parts[dice.roll(parts.len() as u64) as usize];
    let areas = &fixture.parts[index].areas;
    let image = &mut mutation.images[index];
    let area = pick(areas, dice);
    let at = place(image, area, dice);
    let (what, revealed, text) = match dice.roll(12) {
        0 => {
            let len = if dice.roll(2) == 0 { dice.roll(image.len()) } else { at };
            image.set_len(len);
            ("length", fixture.knows_len, format!("truncate to {len:#x}"))
        }
        1 => {
            let more = 1 + dice.roll(64 << 10);
            let end = image.len();
            let garbage: Vec<u8> = (0..more).map(|_| dice.roll(256) as u8).collect();
            image.put(end, &garbage);
            image.set_len(end + more);
            ("length", fixture.knows_len, format!("extend by {more:#x}"))
        }
        2 => {
            image.lose_sector(at / SECTOR);
            ("unreadable", true, format!("sector {:#x} can't be read", at / SECTOR))
        }
        _ => {
            let (text, checked) = overwrite(image, areas, area, at, dice);
            (area.what, area.checked && checked, text)
        }
    };
    mutation.what = what;
    mutation.revealed &= revealed;
    mutation.steps.push(format!("{} of {}: {text}", what, fixture.parts[index].name));
}

/// An area of any structure: one of which there are many is hit as often as one of which there is one.
fn pick<'a>(areas: &'a [Area], dice: &mut Dice) -> &'a Area {
    let kinds: BTreeSet<&str> = areas.iter().map(|area| area.what).collect();
    let kind = kinds.iter().nth(dice.roll(kinds.len() as u64) as usize);
    let of_kind: Vec<&Area> = areas.iter().filter(|area| Some(&area.what) == kind).collect();
    of_kind[dice.roll(of_kind.len() as u64) as usize]
}

/// A place in an area, rather where there is something.
fn place(image: &Image, area: &Area, dice: &mut Dice) -> u64 {
    let mut at = area.range.start;
    for _ in 0..6 {
        at = area.range.start + dice.roll(area.range.end - area.range.start);
        let near = image.get(at & !15, 16);
        if near.iter().any(|byte| *byte != 0) {
            break;
        }
    }
    at
}

/// What was done, and whether all else that it hit is checked as well.
fn overwrite(image: &mut Image, areas: &[Area], area: &Area, at: u64, dice: &mut Dice) -> (String, bool) {
    let sector = at / SECTOR;
    let text = match dice.roll(12) {
        0 => {
            let old = image.get(at, 1)[0];
            let new = old ^ 1 << dice.roll(8);
            image.put(at, &[new]);
            format!("{at:#x}: {old:#04x} becomes {new:#04x}, a bit")
        }
        1 => {
            let new = dice.roll(256) as u8;
            image.put(at, &[new]);
            format!("{at:#x}: a byte becomes {new:#04x}")
        }
        2 => {
            image.set_sector(sector, &[0; 512]);
            format!("sector {sector:#x} becomes zeros")
        }
        3 => {
            image.set_sector(sector, &std::array::from_fn(|_| dice.roll(256) as u8));
            format!("sector {sector:#x} becomes garbage")
        }
        4 | 5 => {
            let other_area = pick(areas, dice);
            let other = place(image, other_area, dice) / SECTOR;
            let (mine, theirs) = (image.sector(sector), image.sector(other));
            image.set_sector(sector, &theirs);
            if dice.roll(2) == 0 {
                format!("sector {sector:#x} becomes a copy of {other:#x}")
            } else {
                image.set_sector(other, &mine);
                return (format!("sectors {sector:#x} and {other:#x} change places"), other_area.checked);
            }
        }
        _ => number(image, area, at, dice),
    };
    (text, true)
}

/// A field becomes a number that readers may trip over.
fn number(image: &mut Image, area: &Area, at: u64, dice: &mut Dice) -> String {
    let width = if dice.roll(2) == 0 { 4 } else { 8 };
    let big = dice.roll(2) == 0;
    // Fields are aligned to their structure more often than to the image.
    let start = area.range.start;
    let at = start + (at - start) / width * width;
    let mut bytes = [0; 8];
    let old = image.get(at, width as usize);
    let old = if big {
        bytes[8 - width as usize..].copy_from_slice(&old);
        u64::from_be_bytes(bytes)
    } else {
        bytes[..width as usize].copy_from_slice(&old);
        u64::from_le_bytes(bytes)
    };
    let new = match dice.roll(10) {
        0 => 0,
        1 => 1,
        2 => u64::MAX,
        3 => old.wrapping_add(1),
        4 => old.wrapping_sub(1),
        5 => 1 << dice.roll(width * 8),
        6 => old ^ 1 << dice.roll(width * 8),
        7 => image.len(),
        8 => old.wrapping_mul(2),
        _ => dice.roll(1 << 20) * 4096,
    };
    if big {
        image.put(at, &new.to_be_bytes()[8 - width as usize..]);
    } else {
        image.put(at, &new.to_le_bytes()[..width as usize]);
    }
    format!("{at:#x}: {old:#x} becomes {new:#x}, {width} bytes, {}", if big { "big-endian" } else { "little-endian" })
}
