//! Addresses: where a descriptor or a pointer says that something is.
//!
//! The low three bits are the type, and a pointer is decoded by **its own** type, never by what the file that
//! holds it is made of: one array can mix blocks of three kinds. Zero is a hole.
//!
//! | type | what | VMFS5, 32 bits | VMFS6, 64 bits | how sure |
//! | --- | --- | --- | --- | --- |
//! | 1 | file block (FB, SFB) | 4 copy on write, 5 to be zeroed, 6–31 number | 5 copy on write, 7–14 to be zeroed, 15–45 cluster, 51–63 resource | numbers on real images, flags from sources only |
//! | 2 | sub-block (SB) | 6–27 cluster, 28–31 resource, 3–4 its high bits on dense volumes | 6–41 cluster, 56–63 resource | real images; the high bits from sources only |
//! | 3 | pointer block (PB) | 6–27 cluster, 28–31 resource | as SB, but real volumes use sub-blocks | real images |
//! | 4 | file descriptor (FD) | 6–21 cluster, 22–31 resource | the same, 32 bits | real images |
//! | 5 | pointer block of `.pb2.sf` | as PB | as PB | real images |
//! | 6 | journal block (JB) | – | 3–15 cluster, 26–31 resource, 32 bits | real images |
//! | 7 | large file block (LFB) | – | 5 copy on write, 7–14 to be zeroed, 15–45 number | sources only |

use std::fmt;

/// Address of a file descriptor; on VMFS5 and VMFS6 alike 32 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FdAddress(
    /// As on disk.
    pub u32,
);

impl FdAddress {
    /// The root folder.
    pub const ROOT: Self = Self(0x0000_0004);
    /// `.fbb.sf`, the file blocks.
    pub const FBB: Self = Self(0x0040_0004);
    /// `.fdc.sf`, the file descriptors.
    pub const FDC: Self = Self(0x0080_0004);
    /// `.pbc.sf`, the pointer blocks.
    pub const PBC: Self = Self(0x00C0_0004);
    /// `.sbc.sf`, the sub-blocks.
    pub const SBC: Self = Self(0x0100_0004);
    /// `.vh.sf`, the volume header.
    pub const VH: Self = Self(0x0140_0004);
    /// `.pb2.sf`, the pointer blocks that map other resource files.
    pub const PB2: Self = Self(0x0180_0004);
    /// `.sdd.sf`, a folder.
    pub const SDD: Self = Self(0x01C0_0004);
    /// `.jbc.sf`, the journal blocks of VMFS6.
    pub const JBC: Self = Self(0x0200_0004);

    /// `.unmap.sf`, what VMFS6 still has to tell the storage that it freed.
    pub const UNMAP: Self = Self(0x0240_0004);

    const TYPE: u32 = 4;

    /// An address read from disk, if its type says that it is one of a descriptor.
    #[must_use]
    pub fn of(raw: u32) -> Option<Self> {
        (raw & 7 == Self::TYPE).then_some(Self(raw))
    }

    /// The address of a resource of `.fdc.sf`, if it has one.
    #[must_use]
    pub fn new(spot: Spot) -> Option<Self> {
        let cluster = u32::from(u16::try_from(spot.cluster).ok()?);
        let resource = u32::try_from(spot.resource).ok().filter(|resource| *resource < 1 << 10)?;
        Some(Self(Self::TYPE | cluster << 6 | resource << 22))
    }

    /// Where in `.fdc.sf`.
    #[must_use]
    pub fn spot(self) -> Spot {
        Spot { cluster: u64::from(self.0 >> 6 & 0xFFFF), resource: u64::from(self.0 >> 22) }
    }
}

impl fmt::Display for FdAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Spot { cluster, resource } = self.spot();
        write!(f, "FD c{cluster} r{resource}")
    }
}

/// A place in a resource file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Spot {
    /// Cluster.
    pub cluster: u64,
    /// Resource in it.
    pub resource: u64,
}

/// A decoded pointer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Address {
    /// Nothing was ever allocated.
    Hole,
    /// A file block.
    File(Block),
    /// A large file block.
    Large(Block),
    /// A sub-block.
    Sub(Spot),
    /// A pointer block.
    Pointer(Spot),
    /// A pointer block of `.pb2.sf`.
    Pointer2(Spot),
    /// Nothing that a pointer can be.
    Bad,
}

impl Address {
    /// The place in a resource file, if the address is of such.
    #[must_use]
    pub fn spot(self) -> Option<Spot> {
        match self {
            Self::Sub(spot) | Self::Pointer(spot) | Self::Pointer2(spot) => Some(spot),
            _ => None,
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (what, Spot { cluster, resource }, of) = match self {
            Self::Hole => return f.write_str("nothing"),
            Self::Bad => return f.write_str("a pointer of no known kind"),
            Self::File(block) => return write!(f, "file block {}", block.number),
            Self::Large(block) => return write!(f, "large file block {}", block.number),
            Self::Sub(spot) => ("sub-block", spot, ".sbc.sf"),
            Self::Pointer(spot) => ("pointer block", spot, ".pbc.sf"),
            Self::Pointer2(spot) => ("pointer block", spot, ".pb2.sf"),
        };
        write!(f, "{what} {resource} of cluster {cluster} of {of}")
    }
}

/// The address of a file block, large or small.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block {
    /// Number; times the block size it is the position in the volume.
    pub number: u64,
    /// Which of its eighths are still to be zeroed; VMFS5 has one bit for all, here `0xFF`.
    pub tbz: u8,
    /// Shared until somebody writes.
    pub cow: bool,
    /// Bits are set that no source knows.
    pub odd: bool,
}

/// How pointers are written on a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Width {
    /// VMFS3 and VMFS5: 32 bits.
    Narrow {
        /// Sub-block numbers of six bits.
        dense: bool,
    },
    /// VMFS6: 64 bits.
    Wide {
        /// File blocks in a cluster of `.fbb.sf`.
        per_cluster: u64,
    },
}

impl Width {
    /// Bytes of a pointer.
    #[must_use]
    pub fn bytes(self) -> u64 {
        match self {
            Self::Narrow { .. } => 4,
            Self::Wide { .. } => 8,
        }
    }

    /// The pointer to a file block.
    #[must_use]
    pub fn to_block(self, number: u64) -> Option<u64> {
        let raw = match self {
            Self::Narrow { .. } => number.checked_mul(1 << 6)? | 1,
            Self::Wide { per_cluster } => {
                let (cluster, resource) = (number.checked_div(per_cluster)?, number.checked_rem(per_cluster)?);
                cluster.checked_mul(1 << 15)? | resource.checked_mul(1 << 51)? | 1
            }
        };
        matches!(self.decode(raw), Address::File(block) if block.number == number).then_some(raw)
    }

    /// The pointer to a sub-block.
    #[must_use]
    pub fn to_sub(self, spot: Spot) -> Option<u64> {
        let Spot { cluster, resource } = spot;
        let raw = match self {
            Self::Narrow { .. } => 2 | cluster << 6 | (resource & 0xF) << 28 | (resource >> 4 & 3) << 3,
            Self::Wide { .. } => 2 | cluster << 6 | resource << 56,
        };
        (self.decode(raw) == Address::Sub(spot)).then_some(raw)
    }

    /// Decodes a pointer by its own type.
    #[must_use]
    pub fn decode(self, raw: u64) -> Address {
        match self {
            _ if raw == 0 => Address::Hole,
            Self::Narrow { dense } => narrow(raw, dense),
            Self::Wide { per_cluster } => wide(raw, per_cluster),
        }
    }
}

fn narrow(raw: u64, dense: bool) -> Address {
    let spot = Spot { cluster: raw >> 6 & 0x3F_FFFF, resource: raw >> 28 & 0xF };
    match raw & 7 {
        1 => Address::File(Block {
            number: raw >> 6,
            tbz: if raw & 0x20 == 0 { 0 } else { 0xFF },
            cow: raw & 0x10 != 0,
            odd: raw & 0x8 != 0,
        }),
        2 if dense => Address::Sub(Spot { resource: spot.resource | (raw & 0x18) << 1, ..spot }),
        2 => Address::Sub(spot),
        3 => Address::Pointer(spot),
        5 => Address::Pointer2(spot),
        _ => Address::Bad,
    }
}

fn wide(raw: u64, per_cluster: u64) -> Address {
    let spot = Spot { cluster: raw >> 6 & 0xF_FFFF_FFFF, resource: raw >> 56 };
    let [tbz, ..] = (raw >> 7).to_le_bytes();
    let number = raw >> 15 & 0x7FFF_FFFF;
    let cow = raw & 0x20 != 0;
    match raw & 7 {
        // A resource behind the cluster's end would name a block of the next cluster a second time.
        1 if raw >> 51 < per_cluster => {
            let number = number.saturating_mul(per_cluster).saturating_add(raw >> 51);
            Address::File(Block { number, tbz, cow, odd: raw & 0x0007_C000_0000_0058 != 0 })
        }
        2 => Address::Sub(spot),
        3 => Address::Pointer(spot),
        5 => Address::Pointer2(spot),
        7 => Address::Large(Block { number, tbz, cow, odd: raw & 0xFFFF_C000_0000_0058 != 0 }),
        _ => Address::Bad,
    }
}
