//! Paths: making, finding and deleting files.

use super::address;
use super::content::{Content, Layout};
use super::descriptor::{Descriptor, FileType, ZLA_FILE_BLOCK, ZLA_RDM, ZLA_RESIDENT, ZLA_SUB_BLOCK};
use super::directory::{Directory, Entry};
use super::resource::Pool;
use super::volume::scsi_disk_id;
use super::{Deleted, Deletion, Expected, Located, Node, ROOT, Vmfs};
use std::collections::BTreeMap;

/// What deleting leaves of bytes that nothing needs any more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Left {
    /// They stay until somebody needs the room.
    #[default]
    Kept,
    /// They are zeros: pointer blocks because ESXi wiped one (the one seen was), data because the host unmapped it.
    Zeroed,
}

impl Vmfs {
    /// Makes a directory; its parent must exist.
    pub fn mkdir(&mut self, path: &str) {
        let (parent, fd, entry) = self.new_descriptor(path, FileType::Directory, 0o755);
        let up = self.directory(parent).own.clone();
        let own = Entry { name: b".".into(), ..entry.clone() };
        let directory = Directory::new(own, Entry { name: b"..".into(), ..up });
        self.add(
            parent,
            entry,
            Node { fd, directory: Some(directory), content: None, blocks: Vec::new(), pointer_blocks: Vec::new() },
        );
        self.node_mut(parent).fd.links += 1;
    }

    /// Makes a file with the given bytes.
    pub fn file(&mut self, path: &str, content: Content, layout: &Layout) {
        let (parent, mut fd, entry) = self.new_descriptor(path, FileType::File, 0o600);
        let (blocks, pointer_blocks) = self.store(&mut fd, &content, layout);
        self.add(parent, entry, Node { fd, directory: None, content: Some(content), blocks, pointer_blocks });
    }

    /// Makes a symbolic link. Its text is resident on VMFS6 and in a sub-block on VMFS5.
    pub fn symlink(&mut self, path: &str, target: &str) {
        let (parent, mut fd, entry) = self.new_descriptor(path, FileType::Symlink, 0o777);
        let content = Content::bytes(target);
        let addressing = if self.six() { super::Addressing::Resident } else { super::Addressing::SubBlock };
        let (blocks, pointer_blocks) = self.store(&mut fd, &content, &Layout::default().addressing(addressing));
        self.add(parent, entry, Node { fd, directory: None, content: Some(content), blocks, pointer_blocks });
    }

    /// Makes a raw device mapping of a disk of `len` bytes.
    pub fn rdm(&mut self, path: &str, len: u64) {
        let (parent, mut fd, entry) = self.new_descriptor(path, FileType::Rdm, 0o600);
        fd.len = len;
        fd.block_size = 512;
        fd.zla = ZLA_RDM;
        fd.resident = scsi_disk_id(7).to_vec();
        self.add(
            parent,
            entry,
            Node { fd, directory: None, content: None, blocks: Vec::new(), pointer_blocks: Vec::new() },
        );
    }

    /// Sets a file's permission bits.
    pub fn set_mode(&mut self, path: &str, mode: u32) {
        let fd = self.lookup(path);
        self.node_mut(fd).fd.mode = mode;
    }

    /// Deletes a file or an empty directory as ESXi does on VMFS6: the descriptor keeps who it was, but its link
    /// count, length, block count, pointers and resident data are zeroed; the directory entry is wiped; descriptor,
    /// data and pointer blocks are marked free and their bytes stay. What ESXi does on VMFS5 is not observed; the
    /// same is done there. Gives where everything was.
    pub fn delete_as_esxi(&mut self, path: &str) -> Located {
        self.delete_leaving(path, Left::Kept, Left::Kept)
    }

    /// Deletes as ESXi does, and says what is left of pointer blocks and of data.
    pub fn delete_leaving(&mut self, path: &str, pointer_blocks: Left, data: Left) -> Located {
        let (located, node) = self.take_away(path);
        let stripped = Descriptor {
            links: 0,
            len: 0,
            block_count: 0,
            tbz_blocks: 0,
            pointer_blocks: 0,
            large_blocks: 0,
            pointers: BTreeMap::new(),
            resident: Vec::new(),
            ..node.fd
        };
        self.write_descriptor(&stripped);
        let tables = located.pointer_blocks.iter().map(|p| (pointer_blocks, p.lv, p.len));
        let blocks = located.blocks.iter().map(|b| (data, b.lv, b.len));
        for (_, lv, len) in tables.chain(blocks).filter(|(left, ..)| *left == Left::Zeroed) {
            self.volume.zero(lv, len);
        }
        self.bury(path, Deletion::Esxi, located, node.content)
    }

    /// Deletes a file or an empty directory but leaves length, pointers and resident data in its descriptor, which
    /// only loses its links. Gives where everything was.
    pub fn delete_keeping_pointers(&mut self, path: &str) -> Located {
        let (located, node) = self.take_away(path);
        self.write_descriptor(&Descriptor { links: 0, ..node.fd });
        self.bury(path, Deletion::KeepingPointers, located, node.content)
    }

    /// Wipes the directory entry only: the descriptor stays in use and nothing names it.
    pub fn orphan(&mut self, path: &str) -> Located {
        let located = self.locate(path);
        let (parent, name) = self.parent_of(path);
        let six = self.six();
        self.directory_mut(parent).remove(name.as_bytes(), six);
        let content = self.node(located.fd).content.clone();
        self.bury(path, Deletion::NameOnly, located, content)
    }

    /// Everything that was deleted, in order.
    #[must_use]
    pub fn deleted(&self) -> &[Deleted] {
        &self.deleted
    }

    /// Everything that exists, as it will be gone when the datastore is formatted over.
    pub fn doomed(&mut self) -> Vec<Deleted> {
        let everything = self.expected();
        let bury = |e: Expected| {
            let located = self.locate(&e.path);
            Deleted { path: e.path, how: Deletion::Formatted, located, content: e.content }
        };
        everything.into_iter().map(bury).collect()
    }

    fn bury(&mut self, path: &str, how: Deletion, located: Located, content: Option<Content>) -> Located {
        self.deleted.push(Deleted { path: path.into(), how, located: located.clone(), content });
        located
    }

    /// Where everything that makes up a file lies.
    pub fn locate(&mut self, path: &str) -> Located {
        let address = self.lookup(path);
        if self.node(address).directory.is_some() {
            self.sync_directory(address);
        }
        let entry_lv = (address != ROOT).then(|| {
            let (parent, name) = self.parent_of(path);
            self.sync_directory(parent);
            let at = self.directory(parent).entry_at(name.as_bytes(), self.shape);
            let parent = self.node(parent);
            let block = parent.blocks.iter().find(|b| (b.offset..b.offset + b.len).contains(&at));
            block.map_or_else(|| panic!("{path} has no entry on disk"), |b| b.lv + at - b.offset)
        });
        let fd_lv = self.descriptor_lv(address);
        let fdc = self.pool(Pool::Descriptor);
        let cluster_lv = self.system_lv(2, fdc.header_at(u64::from(address) >> 6 & 0xFFFF));
        let node = self.node(address);
        Located {
            fd: address,
            fd_lv,
            fd_len: self.shape.size(),
            cluster_lv,
            entry_lv,
            resident_lv: (node.fd.zla == ZLA_RESIDENT).then(|| fd_lv + self.shape.resident_at()),
            pointers_lv: fd_lv + self.shape.pointers_at(),
            blocks: node.blocks.clone(),
            pointer_blocks: node.pointer_blocks.clone(),
        }
    }

    /// What a right reader finds, by path, system files left out.
    #[must_use]
    pub fn expected(&self) -> Vec<Expected> {
        let mut out = Vec::new();
        let mut todo = vec![(String::new(), ROOT)];
        while let Some((path, address)) = todo.pop() {
            let node = self.node(address);
            for entry in node.directory.iter().flat_map(Directory::entries) {
                if entry.kind != FileType::System {
                    let name = String::from_utf8_lossy(&entry.name);
                    let path = if path.is_empty() { name.into() } else { format!("{path}/{name}") };
                    todo.push((path, entry.address));
                }
            }
            if address != ROOT {
                out.push(Expected {
                    path,
                    kind: node.fd.kind,
                    len: node.fd.len,
                    mode: node.fd.mode,
                    time: node.fd.time,
                    fd: address,
                    content: node.content.clone(),
                });
            }
        }
        out.sort_by(|a, b| a.path.cmp(&b.path));
        out
    }

    /// Writes a directory's file, taking blocks as it has grown.
    pub(super) fn sync_directory(&mut self, address: u32) {
        let (bytes, len) = self.directory(address).encode(self.shape, address == ROOT);
        self.node_mut(address).fd.len = len;
        let mut node = self.nodes.remove(&address).unwrap_or_else(|| panic!("no descriptor {address:#x}"));
        self.reserve(&mut node, bytes.len() as u64, len);
        let mut rest = &bytes[..];
        for block in &node.blocks {
            let (now, later) = rest.split_at(rest.len().min(block.len as usize));
            self.volume.write(block.lv, now);
            rest = later;
        }
        self.nodes.insert(address, node);
    }

    /// Sub-blocks first, file blocks when VMFS5 has outgrown one sub-block or VMFS6 its pointer array.
    fn reserve(&mut self, node: &mut Node, bytes: u64, len: u64) {
        let (small, large) = (self.sub_block_size, self.spec.file_block_size);
        let in_sub_blocks = node.fd.address != ROOT
            && node.fd.kind == FileType::Directory
            && bytes <= if self.six() { small * self.shape.slots() } else { small };
        let size = if in_sub_blocks { small } else { large };
        let was = node.blocks.len() as u64;
        if was > 0 && node.fd.block_size == size && was * size >= bytes {
            return;
        }
        if was > 0 && node.fd.block_size != size {
            self.release(&node.blocks, &[]);
            node.blocks.clear();
            node.fd.pointers.clear();
        }
        node.fd.block_size = size;
        node.fd.zla = if in_sub_blocks { ZLA_SUB_BLOCK } else { ZLA_FILE_BLOCK };
        for slot in node.blocks.len() as u64..bytes.div_ceil(size) {
            assert!(slot < self.shape.slots(), "a directory of {len} bytes needs pointer blocks");
            let address = self.take_one(node.fd.address, in_sub_blocks);
            node.fd.pointers.insert(slot as u32, address);
        }
        let pointers = node.fd.pointers.iter().map(|(&slot, &a)| (u64::from(slot), a)).collect();
        node.blocks = self.data_blocks_of(&pointers, size);
        node.fd.block_count = node.blocks.len() as u64;
    }

    fn take_one(&mut self, owner: u32, in_sub_blocks: bool) -> u64 {
        let addresses = self.addresses;
        if in_sub_blocks {
            let pool = self.pool_mut(Pool::SubBlock);
            let n = pool.take(owner, 0);
            return addresses.in_cluster(super::BlockKind::SubBlock, n / pool.per_cluster, n % pool.per_cluster);
        }
        addresses.file_block(self.pool_mut(Pool::FileBlock).take(owner, 0), false)
    }

    fn new_descriptor(&mut self, path: &str, kind: FileType, mode: u32) -> (u32, Descriptor, Entry) {
        let (parent, name) = self.parent_of(path);
        assert!(self.directory(parent).find(name.as_bytes()).is_none(), "{path} exists");
        let fdc = self.pool_mut(Pool::Descriptor);
        let n = fdc.take(parent, 0);
        let address = address::descriptor(n / fdc.per_cluster, n % fdc.per_cluster);
        self.generation += 1;
        self.clock += 1;
        let directory = kind == FileType::Directory;
        let fd = Descriptor {
            address,
            generation: self.generation,
            links: if directory { 2 } else { 1 },
            kind,
            flags: 0,
            len: 0,
            block_size: self.sub_block_size,
            block_count: 0,
            time: self.clock,
            mode,
            zla: ZLA_SUB_BLOCK,
            tbz_blocks: 0,
            pointer_blocks: 0,
            large_blocks: 0,
            parent: if self.six() { parent } else { 0 },
            last_cluster: 0,
            pointers: BTreeMap::new(),
            resident: Vec::new(),
        };
        let entry = Entry { kind, address, generation: self.generation, name: name.into() };
        (parent, fd, entry)
    }

    fn add(&mut self, parent: u32, entry: Entry, node: Node) {
        let time = node.fd.time;
        let name = entry.name.clone();
        let fd = node.fd.clone();
        self.nodes.insert(entry.address, node);
        self.directory_mut(parent).insert(entry);
        self.node_mut(parent).fd.time = time;
        if self.journal.is_some() {
            self.write_descriptor(&fd);
            let lv = self.descriptor_lv(fd.address);
            // Observed: the lock and the rest are logged as records of their own.
            let half = self.shape.md;
            let mut targets = vec![(lv + half, self.shape.size() - half)];
            self.sync_directory(parent);
            let at = self.directory(parent).entry_at(&name, self.shape);
            let unit = self.shape.md;
            let blocks = &self.node(parent).blocks;
            let of = |at: u64| blocks.iter().find(|b| (b.offset..b.offset + b.len).contains(&at));
            let block = of(at).copied();
            if let Some(block) = block {
                // A VMFS5 entry may straddle sectors.
                let first = (at - block.offset) / unit * unit;
                let end = (at - block.offset + 140).next_multiple_of(unit).min(block.len);
                targets.push((block.lv + first, if self.six() { unit } else { end - first }));
            }
            self.log(&targets);
        }
    }

    fn take_away(&mut self, path: &str) -> (Located, Node) {
        let located = self.locate(path);
        let address = located.fd;
        let (parent, name) = self.parent_of(path);
        if let Some(directory) = &self.node(address).directory {
            assert!(directory.entries().next().is_none(), "{path} is not empty");
            self.node_mut(parent).fd.links -= 1;
        }
        let node = self.nodes.remove(&address).unwrap_or_else(|| panic!("no descriptor {address:#x}"));
        self.release(&node.blocks, &node.pointer_blocks);
        self.locks.remove(&address);
        let per_cluster = self.pool(Pool::Descriptor).per_cluster;
        let n = (u64::from(address) >> 6 & 0xFFFF) * per_cluster + (u64::from(address) >> 22);
        self.pool_mut(Pool::Descriptor).release(n);
        let six = self.six();
        self.directory_mut(parent).remove(name.as_bytes(), six);
        self.clock += 1;
        self.node_mut(parent).fd.time = self.clock;
        (located, node)
    }

    fn parent_of<'p>(&self, path: &'p str) -> (u32, &'p str) {
        match path.rsplit_once('/') {
            Some((parent, name)) => (self.lookup(parent), name),
            None => (ROOT, path),
        }
    }

    fn lookup(&self, path: &str) -> u32 {
        path.split('/').filter(|part| !part.is_empty()).fold(ROOT, |dir, part| {
            let found = self.directory(dir).find(part.as_bytes());
            found.unwrap_or_else(|| panic!("{path}: no {part}")).address
        })
    }

    fn node(&self, address: u32) -> &Node {
        self.nodes.get(&address).unwrap_or_else(|| panic!("no descriptor {address:#x}"))
    }

    fn node_mut(&mut self, address: u32) -> &mut Node {
        self.nodes.get_mut(&address).unwrap_or_else(|| panic!("no descriptor {address:#x}"))
    }

    fn directory(&self, address: u32) -> &Directory {
        self.node(address).directory.as_ref().unwrap_or_else(|| panic!("{address:#x} is not a directory"))
    }

    fn directory_mut(&mut self, address: u32) -> &mut Directory {
        self.node_mut(address).directory.as_mut().unwrap_or_else(|| panic!("{address:#x} is not a directory"))
    }
}
