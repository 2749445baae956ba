//! A minimal ISO 9660 image (ECMA-119): one volume, one directory, a handful of files.

const SECTOR: usize = 2048;

/// The image with `files` in its root; names are upper case with an extension, as the standard wants them.
#[must_use]
pub fn image(volume: &str, files: &[(&str, &[u8])]) -> Vec<u8> {
    const ROOT: u32 = 20;
    let mut out = vec![0; (ROOT as usize + 1) * SECTOR];
    let mut root = [record(b"\0", ROOT, SECTOR as u32, true), record(b"\x01", ROOT, SECTOR as u32, true)].concat();
    for (name, bytes) in files {
        let sector = (out.len() / SECTOR) as u32;
        root.extend(record(format!("{name};1").as_bytes(), sector, bytes.len() as u32, false));
        out.extend(*bytes);
        out.resize(out.len().next_multiple_of(SECTOR), 0);
    }
    assert!(root.len() <= SECTOR, "the directory takes more than a sector");
    out[ROOT as usize * SECTOR..][..root.len()].copy_from_slice(&root);

    let sectors = (out.len() / SECTOR) as u32;
    let descriptor = &mut out[16 * SECTOR..17 * SECTOR];
    descriptor[..7].copy_from_slice(b"\x01CD001\x01");
    descriptor[8..40].fill(b' ');
    descriptor[40..72].fill(b' ');
    descriptor[40..40 + volume.len()].copy_from_slice(volume.as_bytes());
    descriptor[80..88].copy_from_slice(&both32(sectors));
    descriptor[120..124].copy_from_slice(&both16(1));
    descriptor[124..128].copy_from_slice(&both16(1));
    descriptor[128..132].copy_from_slice(&both16(SECTOR as u16));
    descriptor[132..140].copy_from_slice(&both32(10));
    descriptor[140..144].copy_from_slice(&18u32.to_le_bytes());
    descriptor[148..152].copy_from_slice(&19u32.to_be_bytes());
    let own = record(b"\0", ROOT, SECTOR as u32, true);
    descriptor[156..156 + own.len()].copy_from_slice(&own);
    descriptor[190..813].fill(b' ');
    for at in [813, 830, 847, 864] {
        descriptor[at..at + 16].copy_from_slice(if at > 840 { b"0000000000000000" } else { b"2025030108000000" });
    }
    descriptor[881] = 1;
    out[17 * SECTOR..17 * SECTOR + 7].copy_from_slice(b"\xFFCD001\x01");
    out[18 * SECTOR..18 * SECTOR + 10].copy_from_slice(&[1, 0, 20, 0, 0, 0, 1, 0, 0, 0]);
    out[19 * SECTOR..19 * SECTOR + 10].copy_from_slice(&[1, 0, 0, 0, 0, 20, 0, 1, 0, 0]);
    out
}

/// A directory record, dated 2025-03-01 08:00:00 UTC.
fn record(name: &[u8], sector: u32, len: u32, directory: bool) -> Vec<u8> {
    let mut r = vec![0; (33 + name.len()).next_multiple_of(2)];
    r[0] = r.len() as u8;
    r[2..10].copy_from_slice(&both32(sector));
    r[10..18].copy_from_slice(&both32(len));
    r[18..25].copy_from_slice(&[125, 3, 1, 8, 0, 0, 0]);
    r[25] = if directory { 2 } else { 0 };
    r[28..32].copy_from_slice(&both16(1));
    r[32] = name.len() as u8;
    r[33..33 + name.len()].copy_from_slice(name);
    r
}

fn both32(value: u32) -> [u8; 8] {
    let mut out = [0; 8];
    out[..4].copy_from_slice(&value.to_le_bytes());
    out[4..].copy_from_slice(&value.to_be_bytes());
    out
}

fn both16(value: u16) -> [u8; 4] {
    let mut out = [0; 4];
    out[..2].copy_from_slice(&value.to_le_bytes());
    out[2..].copy_from_slice(&value.to_be_bytes());
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_lie_where_the_root_says() {
        let image = image("TOOLS", &[("README.TXT", b"hello\n")]);
        assert_eq!(&image[16 * SECTOR + 1..][..5], b"CD001");
        let file = &image[20 * SECTOR + 68..];
        assert_eq!(&file[33..45], b"README.TXT;1");
        let sector = u32::from_le_bytes([file[2], file[3], file[4], file[5]]) as usize;
        assert_eq!(&image[sector * SECTOR..][..6], b"hello\n");
    }
}
