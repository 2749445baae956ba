//! OVA archives (DMTF DSP0243): a ustar archive of a description, a manifest and disks, in that order.

use crate::hex;
use sha2::{Digest, Sha256};

/// A member's name and bytes.
pub type Member = (String, Vec<u8>);

/// The archive of a virtual machine of that name with these disks.
#[must_use]
pub fn write(name: &str, disks: &[Member]) -> Vec<u8> {
    let file = |(n, (name, bytes)): (usize, &Member)| {
        format!("    <File ovf:href=\"{name}\" ovf:id=\"file{n}\" ovf:size=\"{}\"/>\n", bytes.len())
    };
    let files = disks.iter().enumerate().map(file).collect::<Vec<_>>().concat();
    let description = format!(
        "<?xml version=\"1.0\"?>\n<Envelope xmlns:ovf=\"http://schemas.dmtf.org/ovf/envelope/1\">\n  <References>\n\
         {files}  </References>\n  <VirtualSystem ovf:id=\"{name}\"/>\n</Envelope>\n"
    );
    let mut members = vec![(format!("{name}.ovf"), description.into_bytes())];
    members.extend(disks.iter().cloned());
    let line = |(name, bytes): &Member| format!("SHA256({name})= {}\n", hex(&Sha256::digest(bytes)));
    let manifest = members.iter().map(line).collect::<Vec<_>>().concat();
    members.insert(1, (format!("{name}.mf"), manifest.into_bytes()));
    archive(&members)
}

/// A ustar archive of these members.
#[must_use]
pub fn archive(members: &[Member]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (name, content) in members {
        bytes.extend(header(name, content.len() as u64));
        bytes.extend(content);
        bytes.resize(bytes.len().next_multiple_of(512), 0);
    }
    bytes.resize(bytes.len() + 1024, 0);
    bytes
}

fn header(name: &str, len: u64) -> [u8; 512] {
    let mut header = [0; 512];
    let mut put = |at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, name.as_bytes());
    put(100, b"0000644\0");
    put(108, b"0000100\0");
    put(116, b"0000100\0");
    put(124, format!("{len:011o}\0").as_bytes());
    put(136, format!("{:011o}\0", 1_700_000_000).as_bytes());
    put(148, b"        ");
    put(156, b"0");
    put(257, b"ustar\x0000");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    header
}
