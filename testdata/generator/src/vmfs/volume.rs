//! LVM5 and LVM6: the devices under a volume, and the volume's own address space (LV).
//!
//! Observed on volumes formatted by ESXi: data starts 17 MiB into each device, and behind every 16 TiB of data the
//! device sets another 16 MiB aside.

use crate::Device;
use std::ops::Range;

/// Bytes of one physical extent.
pub(crate) const PE: u64 = 256 << 20;
const DATA: u64 = 0x110_0000;
const HEADER: u64 = 0x10_0000;
/// From the volume table to the names of the devices, and to the first bitmap of extents.
const NAMES: u64 = 0x7_E000;
const BITMAP: u64 = 0x8_0000;
const SPAN: u64 = 16 << 40;
const GAP: u64 = 16 << 20;
const PES_PER_SPAN: u64 = SPAN / PE;
const PES_PER_MAP: u64 = 8192;
const PE_ENTRY: u64 = 128;
/// 2025-03-01 08:00:00 UTC in microseconds.
const FORMATTED: u64 = 1_740_816_000_000_000;

/// What the volume needs to know of itself.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Identity {
    pub(crate) six: bool,
    pub(crate) three: bool,
    pub(crate) local: bool,
    pub(crate) uuid: [u8; 16],
    pub(crate) snapshot: u32,
    /// Alignment of metadata.
    pub(crate) md: u64,
    pub(crate) sector_size: u32,
}

impl Identity {
    /// Where the volume table begins.
    fn table_at(self) -> u64 {
        HEADER + self.md
    }

    /// Bytes from the start of a bitmap of extents to its table.
    fn bitmap_len(self) -> u64 {
        self.md.max(1024)
    }
}

#[derive(Clone, Debug)]
struct Extent {
    device: Device,
    first_pe: u64,
    pes: u64,
}

/// The devices of a volume, addressed as one.
#[derive(Clone, Debug)]
pub(crate) struct Volume {
    extents: Vec<Extent>,
}

/// Device position of the byte `at` of this extent's data.
fn device_at(at: u64) -> u64 {
    DATA + at + GAP * (at / SPAN)
}

impl Volume {
    /// Lays out LVM over devices; what they hold elsewhere stays.
    pub(crate) fn new(identity: Identity, devices: Vec<Device>) -> Self {
        let count = devices.len();
        let mut first_pe = 0;
        let mut extents = Vec::new();
        for mut device in devices {
            let len = device.len();
            let mut pes = len.saturating_sub(DATA) / PE;
            while pes > 0 && device_at(pes * PE - 1) + 1 > len {
                pes -= 1;
            }
            assert!(pes > 0, "a device of {len:#x} bytes has no room for one extent of 256 MiB behind 17 MiB");
            device.zero(HEADER..DATA);
            extents.push(Extent { device, first_pe, pes });
            first_pe += pes;
        }
        let mut volume = Self { extents };
        for n in 0..count {
            volume.write_header(identity, n);
            volume.write_table_entry(identity, n);
            volume.write_map(identity, n);
        }
        // Observed: LVM3 has no names there.
        for n in 0..if identity.three { 0 } else { count } {
            let at = identity.table_at() + NAMES + 256 * n as u64;
            let name = format!("naa.6000c29{n:x}7f3a5d10c2b48e6d91a0{n:04x}:1");
            volume.extents[0].device.write(at, name.as_bytes());
        }
        volume
    }

    /// Bytes of the volume.
    pub(crate) fn len(&self) -> u64 {
        self.extents.iter().map(|e| e.pes * PE).sum()
    }

    /// (device number, byte on it) of the volume's byte `lv`.
    pub(crate) fn locate(&self, lv: u64) -> (usize, u64) {
        for (n, extent) in self.extents.iter().enumerate() {
            let at = lv.wrapping_sub(extent.first_pe * PE);
            if at < extent.pes * PE {
                return (n, device_at(at));
            }
        }
        panic!("{lv:#x} lies past the volume's {:#x} bytes", self.len())
    }

    /// Stores bytes at a volume position, across extents where needed.
    pub(crate) fn write(&mut self, lv: u64, bytes: &[u8]) {
        let mut done = 0;
        while done < bytes.len() {
            let at = lv + done as u64;
            let len = ((PE - at % PE) as usize).min(bytes.len() - done);
            let (n, pos) = self.locate(at);
            self.extents[n].device.write(pos, &bytes[done..done + len]);
            done += len;
        }
    }

    /// Copies bytes of another volume of the same devices, if they are not the same.
    pub(crate) fn copy(&mut self, other: &Self, lv: u64, len: u64) {
        let mut at = lv;
        while at < lv + len {
            let part = (lv + len - at).min(1 << 20);
            let bytes = other.read(at, part as usize);
            if bytes != self.read(at, part as usize) {
                self.write(at, &bytes);
            }
            at += part;
        }
    }

    /// Makes bytes of the volume zero.
    pub(crate) fn zero(&mut self, lv: u64, len: u64) {
        let mut at = lv;
        while at < lv + len {
            let part = (PE - at % PE).min(lv + len - at);
            let (n, pos) = self.locate(at);
            self.extents[n].device.zero(pos..pos + part);
            at += part;
        }
    }

    /// Reads bytes back from a volume position.
    pub(crate) fn read(&self, lv: u64, len: usize) -> Vec<u8> {
        let mut out = Vec::with_capacity(len);
        while out.len() < len {
            let at = lv + out.len() as u64;
            let part = ((PE - at % PE) as usize).min(len - out.len());
            let (n, pos) = self.locate(at);
            out.extend(self.extents[n].device.read(pos, part));
        }
        out
    }

    /// Where LVM's header, its volume table and the data behind all begin, for each device.
    pub(crate) fn metadata(&self, md: u64) -> Vec<(u64, u64, u64)> {
        self.extents.iter().map(|_| (HEADER, HEADER + md, DATA)).collect()
    }

    /// Bytes of the volume that lie in a range of a device.
    pub(crate) fn logical(&self, device: usize, range: Range<u64>) -> Vec<Range<u64>> {
        let extent = &self.extents[device];
        let (len, base) = (extent.pes * PE, extent.first_pe * PE);
        let spans = (0..len.div_ceil(SPAN)).map(|span| {
            let data = span * SPAN..len.min((span + 1) * SPAN);
            let from = device_at(data.start);
            let inside = |at: u64| data.start + at.clamp(from, from + data.end - data.start) - from;
            base + inside(range.start)..base + inside(range.end)
        });
        spans.filter(|range| !range.is_empty()).collect()
    }

    /// The finished devices in order.
    pub(crate) fn into_devices(self) -> Vec<Device> {
        self.extents.into_iter().map(|e| e.device).collect()
    }

    fn write_header(&mut self, identity: Identity, n: usize) {
        let first = n == 0;
        let members = self.extents.len() as u64;
        let Extent { device, pes, .. } = &mut self.extents[n];
        let spans = pes.div_ceil(PES_PER_SPAN);
        // One entry per run on LVM6, one per 256 MiB before.
        let entries = if identity.six { spans } else { *pes };
        device.put_u32(HEADER, 0xC001_D00D);
        let (major, minor) = match (identity.six, identity.three) {
            (true, _) => (6, 21),
            (_, false) => (5, 21),
            (_, true) => (3, 16),
        };
        device.put_u32(HEADER + 0x04, major);
        device.put_u32(HEADER + 0x08, minor);
        device.write(HEADER + 0x0C, &scsi_disk_id(n));
        device.put_u32(HEADER + 0x5A, identity.sector_size);
        device.put_u64(HEADER + 0x5E, device.len());
        device.put_u32(HEADER + 0x66, 1);
        device.put_u32(HEADER + 0x6A, entries as u32);
        device.put_u32(HEADER + 0x6E, entries as u32 - 1);
        device.put_u64(HEADER + 0x72, if first { 1 + 2 * members } else { 3 });
        device.put_u64(HEADER + 0x7A, DATA);
        device.write(HEADER + 0x82, &device_uuid(identity.uuid, n));
        device.put_u64(HEADER + 0x92, FORMATTED);
        device.put_u64(HEADER + 0x9A, FORMATTED + 62_531 + 1000 * n as u64);
        if identity.six {
            device.put_u32(HEADER + 0xCA, identity.md as u32);
            device.put_u32(HEADER + 0xCE, *pes as u32);
            device.put_u32(HEADER + 0xD2, u32::from(identity.local));
        } else {
            let maps = entries.div_ceil(PES_PER_MAP);
            device.put_u32(HEADER + 0xBE, maps.min(8) as u32);
            if spans > 1 {
                device.put_u64(HEADER + 0xC2, DATA + SPAN);
            }
        }
    }

    fn write_table_entry(&mut self, identity: Identity, n: usize) {
        let size = self.len();
        let members = self.extents.len() as u32;
        let Extent { device, first_pe, pes } = &mut self.extents[n];
        let at = identity.table_at();
        device.put_u64(at, size);
        device.put_u64(at + 0x08, 9 * u64::from(members));
        device.put_u32(at + 0x10, 1);
        device.write(at + 0x14, uuid_text(identity.uuid).as_bytes());
        device.write(at + 0x54, &identity.uuid);
        device.put_u32(at + 0x64, identity.snapshot);
        device.put_u64(at + 0x68, FORMATTED + 50_000);
        device.put_u32(at + 0x70, 0);
        device.put_u32(at + 0x74, *pes as u32);
        device.put_u64(at + 0x78, *first_pe);
        device.put_u64(at + 0x80, *first_pe + *pes - 1);
        device.put_u64(at + 0x88, FORMATTED + 51_000);
        device.put_u32(at + 0x90, members);
        if identity.six {
            device.put_u32(at + 0x110, pes.div_ceil(PES_PER_SPAN) as u32);
        }
    }

    fn write_map(&mut self, identity: Identity, n: usize) {
        let Extent { device, first_pe, pes } = &mut self.extents[n];
        let base = *first_pe * PE;
        let entry = |id: u64, at: u64, len: u64| {
            let mut e = [0; 0x25];
            e[0] = 1;
            e[0x01..0x05].copy_from_slice(&(id as u32).to_le_bytes());
            e[0x09..0x11].copy_from_slice(&device_at(at).to_le_bytes());
            e[0x11..0x19].copy_from_slice(&(base + at).to_le_bytes());
            e[0x19..0x21].copy_from_slice(&len.to_le_bytes());
            e[0x21..0x25].copy_from_slice(&1u32.to_le_bytes());
            e
        };
        if identity.six {
            for span in 0..pes.div_ceil(PES_PER_SPAN) {
                let at = span * SPAN;
                let bitmap = identity.table_at() + BITMAP;
                device.write(
                    bitmap + identity.bitmap_len() + span * PE_ENTRY,
                    &entry(span, at, SPAN.min(*pes * PE - at)),
                );
                set_bit(device, bitmap, span);
            }
            return;
        }
        for pe in 0..*pes {
            let (span, inside) = (pe / PES_PER_SPAN, pe % PES_PER_SPAN);
            let header = if span == 0 { HEADER } else { DATA + span * SPAN + (span - 1) * GAP };
            let (map, slot) = (inside / PES_PER_MAP, inside % PES_PER_MAP);
            let bitmap = header + identity.md + BITMAP + map * (identity.bitmap_len() + PES_PER_MAP * PE_ENTRY);
            set_bit(device, bitmap, slot);
            device.write(bitmap + identity.bitmap_len() + slot * PE_ENTRY, &entry(pe, pe * PE, PE));
            if span > 0 && inside == 0 {
                let spans = pes.div_ceil(PES_PER_SPAN);
                device.put_u32(header, 0xC001_D00D);
                device.put_u32(header + 4, (*pes - span * PES_PER_SPAN).min(PES_PER_SPAN).div_ceil(PES_PER_MAP) as u32);
                device.put_u64(header + 8, device_at(span * SPAN));
                let next = if span + 1 < spans { DATA + (span + 1) * SPAN + span * GAP } else { 0 };
                device.put_u64(header + 16, next);
            }
        }
    }
}

fn set_bit(device: &mut Device, bitmap: u64, bit: u64) {
    let byte = device.read(bitmap + bit / 8, 1)[0];
    device.write(bitmap + bit / 8, &[byte | 1 << (bit % 8)]);
}

/// The 78-byte identity of SCSI disk `n`, as LVM headers and raw device mappings hold it.
pub(crate) fn scsi_disk_id(n: usize) -> [u8; 78] {
    let mut id = [0; 78];
    id[..2].copy_from_slice(&[1, 26]);
    id[6..14].copy_from_slice(b"VMware  ");
    id[14..30].copy_from_slice(b"Virtual disk    ");
    id[30..34].copy_from_slice(b"2.0 ");
    id[34..50].copy_from_slice(format!("6000c29{n:09x}").as_bytes());
    id
}

fn device_uuid(lv: [u8; 16], n: usize) -> [u8; 16] {
    let mut uuid = lv;
    uuid[4] ^= 0x5A;
    uuid[8] = uuid[8].wrapping_add(n as u8 + 1);
    uuid
}

/// The usual text form: two words, a half-word and six bytes.
pub(crate) fn uuid_text(uuid: [u8; 16]) -> String {
    let word = |at: usize| u32::from_le_bytes([uuid[at], uuid[at + 1], uuid[at + 2], uuid[at + 3]]);
    let mac = crate::hex(&uuid[10..]);
    format!("{:08x}-{:08x}-{:04x}-{mac}", word(0), word(4), u16::from_le_bytes([uuid[8], uuid[9]]))
}

#[cfg(test)]
mod tests {
    use super::*;

    const UUID: [u8; 16] = *b"\xfc\x6e\x62\x68\xd0\x1c\xce\x23\x8b\x1f\xbc\x24\x11\xb1\x7e\x28";

    #[test]
    fn uuid_reads_as_esxi_prints_it() {
        assert_eq!(uuid_text(UUID), "68626efc-23ce1cd0-1f8b-bc2411b17e28");
    }

    #[test]
    fn positions_shift_by_16_mib_each_16_tib() {
        let identity =
            Identity { six: true, three: false, local: false, uuid: UUID, snapshot: 1, md: 4096, sector_size: 512 };
        let volume = Volume::new(identity, vec![Device::new(0x3FFF_FFE0_0000)]);
        // Observed on a device of 64 TiB.
        for (lv, device) in [
            (0, 0x110_0000),
            (0x1000_0000_0000, 0x1000_0210_0000),
            (0x2000_0000_0000, 0x2000_0310_0000),
            (0x3000_0000_0000, 0x3000_0410_0000),
        ] {
            assert_eq!(volume.locate(lv), (0, device));
        }
        assert_eq!(volume.len(), 0x3FFF_F000_0000);
    }

    #[test]
    fn a_write_may_cross_extents() {
        let identity =
            Identity { six: false, three: false, local: false, uuid: UUID, snapshot: 1, md: 512, sector_size: 512 };
        let mut volume = Volume::new(identity, vec![Device::new(DATA + PE); 2]);
        volume.write(PE - 2, b"abcd");
        assert_eq!(volume.read(PE - 3, 6), b"\0abcd\0");
        assert_eq!(volume.locate(PE), (1, DATA));
    }
}
