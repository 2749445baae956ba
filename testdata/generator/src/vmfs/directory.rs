//! Directories: a flat array on VMFS5, a hashed file of blocks on VMFS6.

use super::FileType;
use super::descriptor::Shape;
use super::parts::What;
use super::resource::{put16, put32, put64};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

/// Bytes of a VMFS5 entry.
pub(crate) const ENTRY5: u64 = 140;
/// Bytes of a VMFS6 entry.
pub(crate) const ENTRY6: u64 = 288;
/// Bytes of the header of a VMFS6 directory.
pub(crate) const HEADER6: u64 = 0x1_0000;
const BLOCK_HEADER: usize = 64;
const GROUP: usize = 0x54;
/// What eight bits of a location can number.
const NUMBERED: usize = 256;
const LINKS: usize = 12;
const TABLE: usize = 0x5F8;
const TABLE_SLOTS: u64 = 16001;
/// Names in the root avoid the slots that its system files have to themselves.
const ROOT_SLOTS: u64 = 15973;
const FIRST_SYSTEM_SLOT: u64 = 0x3E66;

/// How many of everything fit into a VMFS6 directory's blocks, which are of one unit of metadata each.
#[derive(Clone, Copy, Debug)]
struct Blocks {
    md: u64,
    /// Entries in a block of entries.
    slots: u64,
    /// Groups in a block of links.
    groups: usize,
    /// Blocks that an allocation map block describes, two a byte.
    mapped: u64,
}

impl Blocks {
    fn of(md: u64) -> Self {
        let room = md - BLOCK_HEADER as u64;
        Self { md, slots: room / ENTRY6, groups: (room as usize / GROUP).min(NUMBERED), mapped: 2 * room }
    }

    /// Where an entry begins inside the directory file.
    fn slot_at(self, slot: u64) -> u64 {
        HEADER6 + (1 + slot / self.slots) * self.md + BLOCK_HEADER as u64 + slot % self.slots * ENTRY6
    }
}

/// One name.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) kind: FileType,
    pub(crate) address: u32,
    pub(crate) generation: u32,
    pub(crate) name: Vec<u8>,
}

/// A directory's names in their slots; `.` and `..` are kept apart.
#[derive(Clone, Debug)]
pub(crate) struct Directory {
    pub(crate) own: Entry,
    pub(crate) parent: Entry,
    slots: Vec<Option<Entry>>,
    /// The slot of each name, and the slots without one.
    index: BTreeMap<Vec<u8>, usize>,
    free: BTreeSet<usize>,
    /// Bytes that a shrunken VMFS5 directory leaves behind its end.
    tail: Vec<u8>,
}

impl Directory {
    pub(crate) fn new(own: Entry, parent: Entry) -> Self {
        Self { own, parent, slots: Vec::new(), index: BTreeMap::new(), free: BTreeSet::new(), tail: Vec::new() }
    }

    pub(crate) fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.slots.iter().flatten()
    }

    pub(crate) fn find(&self, name: &[u8]) -> Option<&Entry> {
        self.slots[*self.index.get(name)?].as_ref()
    }

    /// Puts a name into the first free slot.
    pub(crate) fn insert(&mut self, entry: Entry) {
        assert!(!entry.name.is_empty() && entry.name.len() < 128, "a name takes 1 to 127 bytes: {}", entry.name.len());
        self.tail.clear();
        let slot = self.free.pop_first().unwrap_or(self.slots.len());
        self.index.insert(entry.name.clone(), slot);
        if slot == self.slots.len() {
            self.slots.push(Some(entry));
        } else {
            self.slots[slot] = Some(entry);
        }
    }

    /// Removes a name. VMFS6 leaves a zeroed slot; VMFS5 moves the last entry into the gap, whose old bytes stay
    /// behind the new end.
    pub(crate) fn remove(&mut self, name: &[u8], six: bool) {
        let slot = self.slot_of(name);
        self.index.remove(name);
        if six {
            self.slots[slot] = None;
            self.free.insert(slot);
            return;
        }
        let last = self.slots.pop().flatten().expect("a VMFS5 directory has no empty slots");
        let mut stale = encode5(&last);
        stale.append(&mut self.tail);
        self.tail = stale;
        if slot < self.slots.len() {
            self.index.insert(last.name.clone(), slot);
            self.slots[slot] = Some(last);
        }
    }

    fn slot_of(&self, name: &[u8]) -> usize {
        let at = self.index.get(name);
        *at.unwrap_or_else(|| panic!("no entry {}", String::from_utf8_lossy(name)))
    }

    /// Where a name's entry begins inside the directory file.
    pub(crate) fn entry_at(&self, name: &[u8], shape: Shape) -> u64 {
        let slot = self.slot_of(name) as u64;
        if shape.six { Blocks::of(shape.md).slot_at(slot) } else { (slot + 2) * ENTRY5 }
    }

    /// What each range of the directory file is.
    pub(crate) fn layout(&self, shape: Shape, root: bool) -> Vec<(What, Range<u64>)> {
        if !shape.six {
            let entries = self.entries().count() as u64 + 2;
            return vec![(What::Entries, 0..entries * ENTRY5)];
        }
        let of = Blocks::of(shape.md);
        let entry_blocks = (self.slots.len() as u64).div_ceil(of.slots);
        let (_, groups) = self.hash_table(of, root, 1 + entry_blocks);
        let link_blocks = groups.len().div_ceil(of.groups) as u64;
        let table = TABLE as u64;
        let mut parts = vec![(What::DirectoryHeader, 0..table), (What::HashTable, table..table + 4 * TABLE_SLOTS)];
        for block in 0..1 + entry_blocks + link_blocks {
            let what = match block {
                0 => What::AllocationMap,
                n if n <= entry_blocks => What::Entries,
                _ => What::Links,
            };
            let at = HEADER6 + block * of.md;
            parts.push((what, at..at + of.md));
        }
        parts
    }

    /// The directory file: its bytes, and how many of them count as its length.
    pub(crate) fn encode(&self, shape: Shape, root: bool) -> (Vec<u8>, u64) {
        if shape.six { self.encode6(Blocks::of(shape.md), root) } else { self.encode5() }
    }

    fn encode5(&self) -> (Vec<u8>, u64) {
        let mut out = Vec::new();
        for entry in [&self.own, &self.parent].into_iter().chain(self.entries()) {
            out.extend(encode5(entry));
        }
        let len = out.len() as u64;
        out.extend(&self.tail);
        (out, len)
    }

    fn encode6(&self, of: Blocks, root: bool) -> (Vec<u8>, u64) {
        // Block 0 is the allocation map, then the blocks of entries, then those of links.
        let entry_blocks = (self.slots.len() as u64).div_ceil(of.slots);
        let (table, groups) = self.hash_table(of, root, 1 + entry_blocks);
        let link_blocks = groups.len().div_ceil(of.groups) as u64;
        let blocks = 1 + entry_blocks + link_blocks;
        assert!(blocks <= of.mapped, "a directory of {} entries needs a second map block", self.slots.len());
        let len = HEADER6 + blocks * of.md;
        let mut out = vec![0; len as usize];
        let used = self.entries().count() as u32 + 2;
        put32(&mut out, 0x00, 0x00F5_0001);
        put32(&mut out, 0x04, used);
        put32(&mut out, 0x08, used);
        put32(&mut out, 0x0C, 1);
        self.put_entry6(&mut out, 0x3B8, &self.own, 0);
        self.put_entry6(&mut out, 0x4D8, &self.parent, 0);
        for (&slot, &location) in &table {
            put32(&mut out, TABLE + 4 * slot as usize, location);
        }
        for (n, entry) in self.slots.iter().enumerate() {
            if let Some(entry) = entry {
                let low = if is_system(entry) { 0 } else { name_hash(&entry.name) as u32 };
                self.put_entry6(&mut out, of.slot_at(n as u64) as usize, entry, low);
            }
        }
        put_link_groups(of, &mut out[(HEADER6 + (1 + entry_blocks) * of.md) as usize..], &groups);

        let mut map = vec![0x8; of.mapped as usize];
        map[0] = 3;
        for block in 1..=entry_blocks {
            let first = ((block - 1) * of.slots) as usize;
            let is_free = |s: &usize| self.slots.get(first + s).is_none_or(Option::is_none);
            let free: Vec<usize> = (0..of.slots as usize).filter(is_free).collect();
            let at = (HEADER6 + block * of.md) as usize;
            put_block_header(&mut out[at..], 1, of.slots as u16, &free);
            map[block as usize] = if free.is_empty() { 1 } else { 5 };
        }
        for block in 0..link_blocks {
            let taken = (groups.len() - block as usize * of.groups).min(of.groups);
            let free: Vec<usize> = (taken..of.groups).collect();
            let at = (HEADER6 + (1 + entry_blocks + block) * of.md) as usize;
            put_block_header(&mut out[at..], 2, of.groups as u16, &free);
            map[(1 + entry_blocks + block) as usize] = if free.is_empty() { 2 } else { 6 };
        }
        // Observed: the map's own header carries version 0, type 3 and no counts.
        put16(&mut out, HEADER6 as usize + 2, 3);
        for (byte, pair) in map.chunks_exact(2).enumerate() {
            out[HEADER6 as usize + BLOCK_HEADER + byte] = pair[0] << 4 | pair[1];
        }
        (out, len)
    }

    /// The hash table by slot, and the link groups of the slots that several names share.
    fn hash_table(&self, of: Blocks, root: bool, first_link_block: u64) -> (BTreeMap<u64, u32>, Vec<LinkGroup>) {
        let mut names: BTreeMap<u64, Vec<(u32, u16)>> = BTreeMap::new();
        for (n, entry) in self.slots.iter().enumerate() {
            let Some(entry) = entry else { continue };
            let hash = name_hash(&entry.name);
            let slot = match entry.address >> 22 {
                system if root && is_system(entry) => FIRST_SYSTEM_SLOT + u64::from(system) - 1,
                _ if root => hash % ROOT_SLOTS,
                _ => hash % TABLE_SLOTS,
            };
            let location = location(1, 1 + n as u64 / of.slots, n as u64 % of.slots);
            names.entry(slot).or_default().push((location, (hash >> 16) as u16));
        }
        let mut table = BTreeMap::new();
        let mut groups: Vec<LinkGroup> = Vec::new();
        for (slot, names) in names {
            if let [(only, _)] = names[..] {
                table.insert(slot, only);
                continue;
            }
            let place = |n: usize| location(2, first_link_block + (n / of.groups) as u64, (n % of.groups) as u64);
            table.insert(slot, place(groups.len()));
            let chunks = names.chunks(LINKS).count();
            for (n, links) in names.chunks(LINKS).enumerate() {
                let next = if n + 1 < chunks { place(groups.len() + 1) } else { 0 };
                groups.push(LinkGroup { slot: slot as u16, links: links.to_vec(), next });
            }
        }
        (table, groups)
    }

    #[expect(clippy::unused_self, reason = "a directory writes its entries")]
    fn put_entry6(&self, out: &mut [u8], at: usize, entry: &Entry, hash: u32) {
        put32(out, at, entry.kind as u32);
        put32(out, at + 4, entry.address);
        put32(out, at + 8, entry.generation);
        put32(out, at + 12, hash);
        put64(out, at + 16, at as u64);
        out[at + 24..at + 24 + entry.name.len()].copy_from_slice(&entry.name);
    }
}

struct LinkGroup {
    slot: u16,
    links: Vec<(u32, u16)>,
    next: u32,
}

fn put_link_groups(of: Blocks, out: &mut [u8], groups: &[LinkGroup]) {
    for (n, group) in groups.iter().enumerate() {
        let at = n / of.groups * of.md as usize + BLOCK_HEADER + n % of.groups * GROUP;
        put16(out, at, group.slot);
        out[at + 2] = LINKS as u8;
        out[at + 3] = (LINKS - group.links.len()) as u8;
        out[at + 4] = group.links.len() as u8;
        for (k, &(location, high)) in group.links.iter().enumerate() {
            put32(out, at + 6 + 6 * k, location);
            put16(out, at + 10 + 6 * k, high);
        }
        put32(out, at + 0x4E, group.next);
    }
}

fn put_block_header(block: &mut [u8], kind: u16, slots: u16, free: &[usize]) {
    put16(block, 0, 1);
    put16(block, 2, kind);
    put16(block, 4, slots);
    put16(block, 6, free.len() as u16);
    for slot in free {
        block[8 + slot / 8] |= 1 << (slot % 8);
    }
}

fn is_system(entry: &Entry) -> bool {
    // System descriptors are the first of cluster 0; the root itself has resource 0.
    entry.address & 0x3F_FFC0 == 0 && entry.address >> 22 != 0 && entry.kind == FileType::System
}

fn location(kind: u32, block: u64, slot: u64) -> u32 {
    kind | (block << 2 | slot << 24) as u32
}

fn encode5(entry: &Entry) -> Vec<u8> {
    let mut e = vec![0; ENTRY5 as usize];
    put32(&mut e, 0, entry.kind as u32);
    put32(&mut e, 4, entry.address);
    put32(&mut e, 8, entry.generation);
    e[12..12 + entry.name.len()].copy_from_slice(&entry.name);
    e
}

/// The 64-bit hash of a VMFS6 name: Jenkins' `lookup8` over a key of 32 words, 256 bytes.
#[must_use]
pub fn name_hash(name: &[u8]) -> u64 {
    let mut key = [0; 256];
    key[..name.len()].copy_from_slice(name);
    for at in ((name.len() + 8) & !7..=126).step_by(8) {
        key[at..at + 8].copy_from_slice(&0x739A_75C2_8E61_B017u64.to_le_bytes());
    }
    let words: Vec<u64> = key.chunks_exact(8).map(|w| u64::from_le_bytes(w.try_into().expect("eight bytes"))).collect();
    let (mut a, mut b, mut c) = (42u64, 42u64, 0x9E37_79B9_7F4A_7C13u64);
    for three in words.chunks(3) {
        a = a.wrapping_add(three[0]);
        b = b.wrapping_add(three[1]);
        match three.get(2) {
            Some(&word) => c = c.wrapping_add(word),
            None => c = c.wrapping_add(words.len() as u64),
        }
        mix(&mut a, &mut b, &mut c);
    }
    c
}

fn mix(a: &mut u64, b: &mut u64, c: &mut u64) {
    for [x, y, z] in [[43, 9, 8], [38, 23, 5], [35, 49, 11], [12, 18, 22]] {
        *a = a.wrapping_sub(*b).wrapping_sub(*c) ^ (*c >> x);
        *b = b.wrapping_sub(*c).wrapping_sub(*a) ^ (*a << y);
        *c = c.wrapping_sub(*a).wrapping_sub(*b) ^ (*b >> z);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_of_real_entries() {
        // Observed on a volume that ESXi filled: names and the low halves of their hashes.
        for (name, low) in [
            (&b"small"[..], 0xA46B_776Du32),
            (b"big", 0xD7E3_1B04),
            (b"bigger", 0x50C0_ECD1),
            (b"symlink", 0xFCDD_1580),
            (b"directory", 0x0DBC_9F66),
            (b"normal-flat.vmdk", 0x1F64_94D2),
            (b"large.vmdk", 0xEFA6_4EFE),
        ] {
            assert_eq!(name_hash(name) as u32, low, "{}", String::from_utf8_lossy(name));
        }
        // Observed: its place in the root's table.
        assert_eq!(name_hash(b"small") % ROOT_SLOTS, 0x11B7);
    }

    fn entry(name: &str, n: u32) -> Entry {
        Entry { kind: FileType::File, address: 0x104 | n << 22, generation: n, name: name.into() }
    }

    #[test]
    fn a_removed_name_leaves_no_byte_on_vmfs6_and_a_copy_behind_the_end_on_vmfs5() {
        let mut six = Directory::new(entry(".", 1), entry("..", 1));
        for n in 0..20 {
            six.insert(entry(&format!("file{n}"), n));
        }
        let mut five = six.clone();
        six.remove(b"file3", true);
        let (bytes, len) = six.encode(Shape { six: true, three: false, md: 4096 }, false);
        assert_eq!(len, 0x1_3000);
        assert!(!bytes.windows(5).any(|w| w == b"file3"));
        assert_eq!(bytes[0x1_1008], 1 << 3);
        five.remove(b"file19", false);
        let (bytes, len) = five.encode(Shape::FIVE, false);
        assert_eq!(len, 21 * ENTRY5);
        assert_eq!(&bytes[21 * 140 + 12..][..6], b"file19");
    }
}
