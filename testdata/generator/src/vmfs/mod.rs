//! VMFS3, VMFS5 and VMFS6 datastores as ESXi writes them, on one or more devices.
//!
//! A [`Vmfs`] is a model of a datastore: blocks are taken and data is written as files are made, while headers,
//! bitmaps and directories are written by [`Vmfs::finish`]. All names, offsets and magics are those observed on
//! volumes that ESXi formatted; comments say where nothing was observed.

mod address;
mod content;
mod crash;
mod data;
mod descriptor;
mod directory;
mod evidence;
mod format;
mod journal;
mod parts;
mod remains;
mod resource;
mod tree;
mod volume;

pub use address::BlockKind;
pub use content::{Addressing, Allocation, Content, Layout, Placement, pattern};
pub use crash::{Crash, Crashed};
pub use descriptor::FileType;
pub use directory::name_hash;
pub use evidence::Lock;
pub use parts::{By, Hangs, Part, PoolKind, What};
pub use remains::{Fate, Remains};
pub use tree::Left;

use crate::Device;
use address::Addresses;
use descriptor::{Descriptor, Shape};
use directory::Directory;
use resource::{Pool, Resource};
use std::collections::BTreeMap;
use volume::Volume;

/// 2025-03-01 08:00:00 UTC, when every datastore was formatted.
pub const FORMAT_TIME: u32 = 1_740_816_000;
pub(crate) const HOST_MAC: [u8; 6] = [0x00, 0x50, 0x56, 0xA1, 0xB2, 0xC3];
const HOST_UUID: [u8; 16] = *b"\x11\xC6\x40\x67\x52\x8B\x0F\xE3\xD0\x97\x00\x50\x56\xA1\xB2\xC3";
const HOST_ADDRESS: &str = "192.0.2.21";
pub(crate) const HEARTBEAT_GENERATION: u64 = 5;
const ROOT: u32 = 4;

/// VMFS version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// 4.31, which hosts show as 3.31
    Three,
    /// 14.81
    Five,
    /// 24.82
    Six,
}

/// What datastore to make.
#[derive(Clone, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is a property of its own that a test sets by name")]
pub struct VmfsSpec {
    /// On-disk version.
    pub version: Version,
    /// VMFS-L, the local kind on ESXi's own disks.
    pub local: bool,
    /// Length in bytes of each device; several make a spanned datastore.
    pub extents: Vec<u64>,
    /// Bytes of a file block: 1 MiB, or on VMFS3 and VMFS5 also others up to 8 MiB.
    pub file_block_size: u64,
    /// VMFS6 only: bytes of a unit of metadata. Only 4096 was observed; what 8192 to 65536 change follows from sources.
    pub metadata_alignment: u64,
    /// Bytes of a sector of the devices: 512, or 4096 as on native 4K disks, which was not observed.
    pub sector_size: u32,
    /// VMFS5 only: 8 KiB sub-blocks instead of 32 KiB.
    pub dense_sub_blocks: bool,
    /// Datastore name.
    pub label: String,
    /// Number of file descriptors; `None` is what ESXi makes on 2 GiB, or less on a smaller volume.
    pub descriptors: Option<u64>,
    /// Number of sub-blocks, as above.
    pub sub_blocks: Option<u64>,
    /// VMFS5 only: number of pointer blocks, as above.
    pub pointer_blocks: Option<u64>,
    /// VMFS6 only: number of journal blocks, as above.
    pub journal_blocks: Option<u64>,
    /// Write the headers of all clusters. `false` leaves out most of those without a used block, for
    /// volumes of many TiB.
    pub all_cluster_headers: bool,
    /// The host did not unmount: its heartbeat is in use, and its journal holds images of the descriptors and
    /// directory blocks that it wrote when files were made, until the journal is full.
    pub crashed: bool,
    /// Makes UUIDs unlike those of other seeds.
    pub seed: u32,
}

impl VmfsSpec {
    /// A datastore on one device of `device_len` bytes with the usual choices.
    #[must_use]
    pub fn new(version: Version, device_len: u64) -> Self {
        Self {
            version,
            local: false,
            extents: vec![device_len],
            file_block_size: 1 << 20,
            metadata_alignment: 4096,
            sector_size: 512,
            dense_sub_blocks: true,
            label: "datastore1".into(),
            descriptors: None,
            sub_blocks: None,
            pointer_blocks: None,
            journal_blocks: None,
            all_cluster_headers: true,
            crashed: false,
            seed: 0,
        }
    }
}

/// A run of file data and where it lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block {
    /// Byte of the file.
    pub offset: u64,
    /// Bytes, a block's size.
    pub len: u64,
    /// Byte of the volume.
    pub lv: u64,
    /// The address that points here.
    pub address: u64,
    /// What kind of block it is.
    pub kind: BlockKind,
    /// Whether it is flagged to be zeroed, so that its bytes do not count.
    pub to_be_zeroed: bool,
}

/// A pointer block and where it lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PointerBlock {
    /// 0 when its pointers name data, 1 when they name pointer blocks.
    pub level: u32,
    /// First byte of the file that it covers.
    pub offset: u64,
    /// Byte of the volume.
    pub lv: u64,
    /// Bytes of the pointer block.
    pub len: u64,
    /// The address that points here.
    pub address: u64,
    /// What kind of block it is.
    pub kind: BlockKind,
}

/// Where everything that makes up a file lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Located {
    /// Address of its descriptor.
    pub fd: u32,
    /// Volume position of its descriptor.
    pub fd_lv: u64,
    /// Bytes of its descriptor.
    pub fd_len: u64,
    /// Volume position of the header of the descriptor's cluster.
    pub cluster_lv: u64,
    /// Volume position of its directory entry; `None` for the root.
    pub entry_lv: Option<u64>,
    /// Volume position of its resident data, when it has such.
    pub resident_lv: Option<u64>,
    /// Volume position of its own pointer array.
    pub pointers_lv: u64,
    /// Its data blocks in file order.
    pub blocks: Vec<Block>,
    /// Its pointer blocks in file order, leaves first.
    pub pointer_blocks: Vec<PointerBlock>,
}

/// What a right reader must find for one path.
#[derive(Clone, Debug)]
pub struct Expected {
    /// Path from the root, without a leading slash.
    pub path: String,
    /// File type.
    pub kind: FileType,
    /// Length in bytes as the descriptor records it.
    pub len: u64,
    /// Permission bits.
    pub mode: u32,
    /// Modification time, Unix seconds.
    pub time: u32,
    /// Address of its descriptor.
    pub fd: u32,
    /// The bytes of a file or the text of a link.
    pub content: Option<Content>,
}

/// How a file was deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deletion {
    /// Its descriptor lost links, length, pointers and resident data.
    Esxi,
    /// Its descriptor lost its links only.
    KeepingPointers,
    /// Its directory entry is gone; the descriptor is in use.
    NameOnly,
    /// Its datastore was formatted over.
    Formatted,
}

/// A path that is no more, and where everything of it was.
#[derive(Clone, Debug)]
pub struct Deleted {
    /// The path that it had.
    pub path: String,
    /// How it was deleted.
    pub how: Deletion,
    /// Where everything was, and its bytes still are.
    pub located: Located,
    /// What a file held, `None` for a directory.
    pub content: Option<Content>,
}

#[derive(Clone, Debug)]
struct Node {
    fd: Descriptor,
    directory: Option<Directory>,
    content: Option<Content>,
    blocks: Vec<Block>,
    pointer_blocks: Vec<PointerBlock>,
}

/// A datastore in the making.
#[derive(Clone, Debug)]
pub struct Vmfs {
    spec: VmfsSpec,
    volume: Volume,
    shape: Shape,
    addresses: Addresses,
    sub_block_size: u64,
    pools: BTreeMap<Pool, Resource>,
    /// File blocks of each system file, by its descriptor's number.
    system: BTreeMap<u32, Vec<u64>>,
    nodes: BTreeMap<u32, Node>,
    clock: u32,
    generation: u32,
    journal: Option<journal::Journal>,
    deleted: Vec<Deleted>,
    locks: BTreeMap<u32, Lock>,
}

impl Vmfs {
    /// Formats a datastore.
    #[must_use]
    pub fn new(spec: VmfsSpec) -> Self {
        let devices = spec.extents.iter().map(|&len| Device::new(len)).collect();
        format::format(spec, devices)
    }

    /// Formats a datastore over devices that hold an older one, as ESXi does: headers, bitmaps and the root are new;
    /// descriptors, directories, pointer blocks and data of before stay until they are written over. The devices
    /// take the place of `spec.extents`.
    #[must_use]
    pub fn format_over(spec: VmfsSpec, devices: Vec<Device>) -> Self {
        let extents = devices.iter().map(Device::len).collect();
        format::format(VmfsSpec { extents, ..spec }, devices)
    }

    /// Adds the paths of an older datastore, found before it was finished, to those that are no more.
    pub fn remember(&mut self, older: Vec<Deleted>) {
        self.deleted.extend(older);
    }

    /// Bytes of the volume, which is what LV positions count in.
    #[must_use]
    pub fn volume_len(&self) -> u64 {
        self.volume.len()
    }

    /// (device number, byte on that device) of a volume position.
    #[must_use]
    pub fn device_position(&self, lv: u64) -> (usize, u64) {
        self.volume.locate(lv)
    }

    /// Volume positions of the records that a volume cannot do without, by name: `fs header`, `heartbeats`, the
    /// descriptors `root` and `.fbb.sf` to `.unmap.sf`, and the resource files' contents as `.fbb.sf data` and so on.
    #[must_use]
    pub fn landmarks(&self) -> BTreeMap<String, u64> {
        let mut marks = BTreeMap::from([("fs header".into(), 0x20_0000), ("heartbeats".into(), 0x30_0000)]);
        for (number, name) in format::names(self.shape) {
            marks.insert((*name).into(), self.descriptor_lv(address::descriptor(0, u64::from(*number))));
            if let Some(&block) = self.system.get(number).and_then(|b| b.first()) {
                marks.insert(format!("{name} data"), block * self.spec.file_block_size);
            }
        }
        marks
    }

    /// Sets the time that the next changes are made at, Unix seconds. Each change lasts a second.
    pub fn set_time(&mut self, time: u32) {
        self.clock = time;
    }

    /// Writes bytes anywhere on the volume, to damage it. Headers, bitmaps and directories are only written by
    /// `finish`: to damage those, change the finished device at `device_position`.
    pub fn write_lv(&mut self, lv: u64, bytes: &[u8]) {
        self.volume.write(lv, bytes);
    }

    /// Reads bytes of the volume.
    #[must_use]
    pub fn read_lv(&self, lv: u64, len: usize) -> Vec<u8> {
        self.volume.read(lv, len)
    }

    /// The volume's UUID, which is its name on a host.
    #[must_use]
    pub fn uuid(&self) -> String {
        volume::uuid_text(format::uuid(self.spec.seed, 2))
    }

    fn six(&self) -> bool {
        self.spec.version == Version::Six
    }

    fn pool(&self, pool: Pool) -> &Resource {
        self.pools.get(&pool).unwrap_or_else(|| panic!("this version has no {pool:?} pool"))
    }

    fn pool_mut(&mut self, pool: Pool) -> &mut Resource {
        self.pools.get_mut(&pool).unwrap_or_else(|| panic!("this version has no {pool:?} pool"))
    }

    /// Volume position of a byte of a system file.
    fn system_lv(&self, number: u32, at: u64) -> u64 {
        let size = self.spec.file_block_size;
        let block = self.system[&number].get((at / size) as usize);
        let block = block.unwrap_or_else(|| panic!("byte {at:#x} is past the end of system file {number}"));
        block * size + at % size
    }

    /// Writes to a system file, across its blocks where needed.
    fn write_system(&mut self, number: u32, at: u64, bytes: &[u8]) {
        let size = self.spec.file_block_size;
        let mut done = 0;
        while done < bytes.len() {
            let pos = at + done as u64;
            let len = ((size - pos % size) as usize).min(bytes.len() - done);
            let lv = self.system_lv(number, pos);
            self.volume.write(lv, &bytes[done..done + len]);
            done += len;
        }
    }

    fn descriptor_lv(&self, fd: u32) -> u64 {
        let (cluster, resource) = (u64::from(fd) >> 6 & 0xFFFF, u64::from(fd) >> 22);
        let fdc = self.pool(Pool::Descriptor);
        self.system_lv(2, fdc.body_at(cluster * fdc.per_cluster + resource))
    }

    fn write_descriptor(&mut self, fd: &Descriptor) {
        let lv = self.descriptor_lv(fd.address);
        let mut record = self.shape.encode(fd, lv);
        self.put_held_lock(fd.address, &mut record);
        self.volume.write(lv, &record);
    }

    /// Writes everything that is still outstanding and gives the devices.
    #[must_use]
    pub fn finish(mut self) -> Vec<Device> {
        self.sync();
        self.into_devices()
    }

    /// The devices as they stand: after `sync` and damage done with `write_lv`.
    #[must_use]
    pub fn into_devices(self) -> Vec<Device> {
        self.volume.into_devices()
    }

    /// Writes everything that is still outstanding: directories, descriptors, and the headers of all clusters.
    pub fn sync(&mut self) {
        let all: Vec<u32> = self.nodes.keys().copied().collect();
        for fd in &all {
            if self.nodes[fd].directory.is_some() {
                self.sync_directory(*fd);
            }
        }
        for fd in &all {
            let fd = self.nodes[fd].fd.clone();
            self.write_descriptor(&fd);
        }
        self.write_resources();
    }
}
