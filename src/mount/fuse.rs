//! Requests of the kernel, answered from the tree.

use super::attr::{Owner, errno, file_type, size};
use super::handles::Handles;
use super::inode::Inodes;
use super::{Gaps, MountOptions, name, xattr};
use fuser::{
    AccessFlags, Errno, FileAttr, FileHandle, Filesystem, FopenFlags, Generation, INodeNo, InitFlags, KernelConfig,
    LockOwner, OpenAccMode, OpenFlags, ReplyAttr, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty,
    ReplyEntry, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyXattr, Request,
};
use std::cell::RefCell;
use std::ffi::OsStr;
use std::io;
use std::ops::ControlFlow;
use std::os::unix::ffi::OsStrExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use vdrecover_formats::adapt::Blank;
use vdrecover_formats::num::narrow;
use vdrecover_formats::{Bytes, Entry, Kind, Node, Place, Tree, Why, read, walk};

/// Nothing ever changes, so the kernel may keep what it heard for as long as it likes: a year.
const FOREVER: Duration = Duration::from_secs(365 * 24 * 3600);
const NEVER: Duration = Duration::ZERO;
const GENERATION: Generation = Generation(0);

/// Runs that one `lseek` looks at. Where that is not enough, the answer errs on the side of data.
const SEEK_RUNS: usize = 1 << 20;
const SEEK_DATA: i32 = 3;
const SEEK_HOLE: i32 = 4;

/// Longest target of a link that the kernel takes.
const LONGEST_LINK: u64 = 4095;

#[derive(Debug)]
pub(super) struct Server {
    tree: Arc<dyn Tree>,
    inodes: Inodes,
    owner: Owner,
    gaps: Gaps,
    files: Handles<OpenFile>,
    dirs: Handles<OpenDir>,
}

#[derive(Debug)]
struct OpenFile {
    bytes: Bytes,
    /// As the kernel was told. Where the layer is shorter, the rest is a gap; a short read would be an end.
    size: u64,
    /// Has no bytes here, not even zeros in place of them.
    elsewhere: bool,
}

#[derive(Debug, Default)]
struct OpenDir {
    /// A part of the directory could not be read: said at its end, after all that could.
    damaged: AtomicBool,
}

/// A panic over one hostile structure must not take the mount down. The reply that unwinding drops is an error.
fn guarded(answer: impl FnOnce()) {
    let _ = catch_unwind(AssertUnwindSafe(answer));
}

/// Takes a row of a listing, with the offset behind it; says when its buffer is full.
type Add<'a> = &'a mut dyn FnMut(INodeNo, u64, Kind, &[u8]) -> bool;

impl Server {
    pub(super) fn new(tree: Arc<dyn Tree>, options: &MountOptions) -> Self {
        let inodes = Inodes::new(tree.root());
        Self {
            tree,
            inodes,
            owner: Owner::new(options),
            gaps: options.gaps,
            files: Handles::default(),
            dirs: Handles::default(),
        }
    }

    fn attr(&self, inode: INodeNo) -> Result<FileAttr, Errno> {
        let node = self.tree.node(self.inodes.node(inode)).map_err(|error| errno(&error))?;
        Ok(self.owner.attr(inode, &node))
    }

    fn find(&self, parent: INodeNo, shown: &OsStr) -> Result<FileAttr, Errno> {
        let name = name::on_disk(shown.as_bytes());
        let entry = self.tree.lookup(self.inodes.node(parent), &name).map_err(|error| errno(&error))?;
        self.attr(self.inodes.inode(entry.ok_or(Errno::ENOENT)?.id))
    }

    fn open_file(&self, inode: INodeNo) -> Result<OpenFile, Errno> {
        let id = self.inodes.node(inode);
        let node = self.tree.node(id).map_err(|error| errno(&error))?;
        let elsewhere = node.kind == Kind::Mapping;
        let bytes: Bytes = if elsewhere {
            Arc::new(Blank::lost(node.len, Why::NotGiven, 0))
        } else {
            self.tree.open(id).map_err(|error| errno(&error))?
        };
        Ok(OpenFile { bytes, size: size(&node), elsewhere })
    }

    /// Fills `buf` from `at`; gives how many of its bytes to deliver.
    fn read_file(&self, file: &OpenFile, at: u64, buf: &mut [u8]) -> Result<usize, Errno> {
        let seen = read(&*file.bytes, at, buf);
        let Some(gap) = seen.gaps.first() else { return Ok(buf.len()) };
        match (self.gaps, narrow(gap.range.start.saturating_sub(at))) {
            _ if file.elsewhere => Err(Errno::EIO),
            (Gaps::Fill, _) => Ok(buf.len()),
            (Gaps::Fail, _) | (Gaps::Exact, 0) => Err(Errno::EIO),
            (Gaps::Exact, good) => Ok(good),
        }
    }

    fn link(&self, inode: INodeNo) -> Result<Vec<u8>, Errno> {
        let bytes = self.tree.open(self.inodes.node(inode)).map_err(|error| errno(&error))?;
        if bytes.len() > LONGEST_LINK {
            return Err(Errno::ENAMETOOLONG);
        }
        let mut target = vec![0; narrow(bytes.len())];
        // The kernel ends the target at a NUL: half a path is a wrong path.
        if !read(&*bytes, 0, &mut target).is_whole() || target.contains(&0) {
            return Err(Errno::EIO);
        }
        Ok(target)
    }

    /// Lists from an offset that the kernel was given: 0 for `.`, 1 for `..`, then the tree's own, moved by 2.
    /// `add` says when its buffer is full.
    fn list(&self, inode: INodeNo, handle: FileHandle, offset: u64, add: Add<'_>) -> Result<(), Errno> {
        let open = self.dirs.get(handle).ok_or(Errno::EBADF)?;
        if offset == 0 {
            // A list read again from its start is a new list.
            open.damaged.store(false, Ordering::Relaxed);
        }
        // A tree does not know parents, and the number of `..` is for show: the kernel has its own.
        for (at, name) in [(0, b".".as_slice()), (1, b"..")] {
            if offset <= at && add(inode, at + 1, Kind::Dir, name) {
                return Ok(());
            }
        }
        let mut added = 0_u64;
        let listed = self.tree.list(self.inodes.node(inode), offset.max(2) - 2, &mut |entry| {
            let Ok(Entry { name, id, kind, next, .. }) = entry else {
                open.damaged.store(true, Ordering::Relaxed);
                return ControlFlow::Continue(());
            };
            let Some(name) = name::shown(&name) else {
                open.damaged.store(true, Ordering::Relaxed);
                return ControlFlow::Continue(());
            };
            if add(self.inodes.inode(id), next.wrapping_add(2), kind, &name) {
                return ControlFlow::Break(());
            }
            added += 1;
            ControlFlow::Continue(())
        });
        match listed {
            // What was listed so far goes out; the error comes when the kernel goes on from there.
            Err(error) if added == 0 => Err(errno(&error)),
            Ok(()) if added == 0 && offset > 1 && open.damaged.load(Ordering::Relaxed) => Err(Errno::EIO),
            _ => Ok(()),
        }
    }

    /// A node whose facts are lost still has its name in the list; asking for them gives the error.
    fn attr_or_stub(&self, inode: INodeNo, kind: Kind) -> (FileAttr, Duration) {
        let node = self.tree.node(self.inodes.node(inode));
        let ttl = if node.is_ok() { FOREVER } else { NEVER };
        let node = node.unwrap_or_else(|_| Node::plain(kind, 0, 0));
        // The kernel takes a file type that differs from the list's for a broken file system.
        let attr = self.owner.attr(inode, &node);
        (FileAttr { kind: file_type(node.kind), ..attr }, ttl)
    }

    fn seek(file: &OpenFile, offset: i64, whence: i32) -> Result<i64, Errno> {
        let at = u64::try_from(offset).map_err(|_| Errno::EINVAL)?;
        if !matches!(whence, SEEK_DATA | SEEK_HOLE) {
            return Err(Errno::EINVAL);
        }
        if at >= file.size {
            return Err(Errno::ENXIO);
        }
        let mut rest = at;
        for run in walk(&*file.bytes, at..file.size).take(SEEK_RUNS) {
            let hole = matches!(run.place, Place::Zero | Place::Hole);
            if hole == (whence == SEEK_HOLE) {
                return i64::try_from(run.at).map_err(|_| Errno::EOVERFLOW);
            }
            rest = run.at.saturating_add(run.len);
        }
        // There is always a hole at the end of a file. Data that was not found may still come.
        match whence {
            SEEK_HOLE => i64::try_from(file.size).map_err(|_| Errno::EOVERFLOW),
            _ if rest < file.size => i64::try_from(rest).map_err(|_| Errno::EOVERFLOW),
            _ => Err(Errno::ENXIO),
        }
    }
}

thread_local! {
    /// A buffer a thread: allocating one a request costs more than reading.
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Largest read that the kernel may ask for, which bounds the buffers. FUSE knows one limit for both directions.
const LARGEST_READ: u32 = 1 << 20;

impl Filesystem for Server {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // Each on its own: a kernel that lacks one still gets the others. Facts come with every listing, not only
        // where the kernel guesses that they will be wanted: `ls -l` of 100,000 entries takes two thirds of the time.
        for wanted in [
            InitFlags::FUSE_DO_READDIRPLUS,
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_ASYNC_DIO,
            InitFlags::FUSE_CACHE_SYMLINKS,
        ] {
            let _ = config.add_capabilities(wanted);
        }
        let _ = config.set_max_write(LARGEST_READ);
        // Reads wait for disks: more of them at a time than the usual 12 keeps all threads busy.
        let _ = config.set_max_background(64);
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        guarded(|| match self.find(parent, name) {
            Ok(attr) => reply.entry(&FOREVER, &attr, GENERATION),
            Err(error) => reply.error(error),
        });
    }

    fn getattr(&self, _: &Request, inode: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        guarded(|| match self.attr(inode) {
            Ok(attr) => reply.attr(&FOREVER, &attr),
            Err(error) => reply.error(error),
        });
    }

    fn readlink(&self, _: &Request, inode: INodeNo, reply: ReplyData) {
        guarded(|| match self.link(inode) {
            Ok(target) => reply.data(&target),
            Err(error) => reply.error(error),
        });
    }

    fn open(&self, _: &Request, inode: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        guarded(|| {
            if flags.acc_mode() != OpenAccMode::O_RDONLY {
                return reply.error(Errno::EROFS);
            }
            let how = match self.gaps {
                Gaps::Exact => FopenFlags::FOPEN_DIRECT_IO,
                Gaps::Fail | Gaps::Fill => FopenFlags::FOPEN_KEEP_CACHE,
            };
            match self.open_file(inode).and_then(|file| self.files.insert(file).ok_or(Errno::ENFILE)) {
                Ok(handle) => reply.opened(handle, how | FopenFlags::FOPEN_NOFLUSH),
                Err(error) => reply.error(error),
            }
        });
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        len: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        guarded(|| {
            let Some(file) = self.files.get(handle) else { return reply.error(Errno::EBADF) };
            let len = narrow(file.size.saturating_sub(offset).min(len.into()));
            BUFFER.with_borrow_mut(|buffer| {
                if buffer.len() < len {
                    buffer.resize(len, 0);
                }
                let buf = buffer.get_mut(..len).unwrap_or_default();
                match self.read_file(&file, offset, buf) {
                    Ok(count) => reply.data(buf.get(..count).unwrap_or_default()),
                    Err(error) => reply.error(error),
                }
            });
        });
    }

    fn release(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        guarded(|| {
            self.files.remove(handle);
            reply.ok();
        });
    }

    fn opendir(&self, _: &Request, inode: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        guarded(|| {
            let node = self.tree.node(self.inodes.node(inode)).map_err(|error| errno(&error));
            let is_dir = node.and_then(|node| if node.kind == Kind::Dir { Ok(()) } else { Err(Errno::ENOTDIR) });
            let keep = FopenFlags::FOPEN_CACHE_DIR | FopenFlags::FOPEN_KEEP_CACHE;
            match is_dir.and_then(|()| self.dirs.insert(OpenDir::default()).ok_or(Errno::ENFILE)) {
                Ok(handle) => reply.opened(handle, keep),
                Err(error) => reply.error(error),
            }
        });
    }

    fn readdir(&self, _: &Request, inode: INodeNo, handle: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        guarded(|| {
            let listed = self.list(inode, handle, offset, &mut |inode, next, kind, name| {
                reply.add(inode, next, file_type(kind), OsStr::from_bytes(name))
            });
            match listed {
                Ok(()) => reply.ok(),
                Err(error) => reply.error(error),
            }
        });
    }

    fn readdirplus(&self, _: &Request, inode: INodeNo, handle: FileHandle, offset: u64, mut reply: ReplyDirectoryPlus) {
        guarded(|| {
            let listed = self.list(inode, handle, offset, &mut |inode, next, kind, name| {
                let (attr, ttl) = self.attr_or_stub(inode, kind);
                reply.add(inode, next, OsStr::from_bytes(name), &ttl, &attr, GENERATION)
            });
            match listed {
                Ok(()) => reply.ok(),
                Err(error) => reply.error(error),
            }
        });
    }

    fn releasedir(&self, _: &Request, _: INodeNo, handle: FileHandle, _: OpenFlags, reply: ReplyEmpty) {
        guarded(|| {
            self.dirs.remove(handle);
            reply.ok();
        });
    }

    /// Full, with the length of the root as its size: there is no place to write to.
    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        const BLOCK: u32 = 4096;
        guarded(|| {
            let len = self.tree.node(self.tree.root()).map_or(0, |node| node.len);
            reply.statfs(len.div_ceil(BLOCK.into()), 0, 0, 0, 0, BLOCK, 255, BLOCK);
        });
    }

    fn getxattr(&self, _: &Request, inode: INodeNo, name: &OsStr, room: u32, reply: ReplyXattr) {
        guarded(|| match xattr::get(&*self.tree, self.inodes.node(inode), name.as_bytes()) {
            Ok(Some(value)) => answer(reply, &value, room),
            Ok(None) => reply.error(Errno::NO_XATTR),
            Err(error) => reply.error(errno(&error)),
        });
    }

    fn listxattr(&self, _: &Request, inode: INodeNo, room: u32, reply: ReplyXattr) {
        guarded(|| match xattr::list(&*self.tree, self.inodes.node(inode)) {
            Ok(names) => answer(reply, &names, room),
            Err(error) => reply.error(errno(&error)),
        });
    }

    /// Everything may be read. That nothing may be written the kernel knows from the mount.
    fn access(&self, _: &Request, _: INodeNo, _: AccessFlags, reply: ReplyEmpty) {
        reply.ok();
    }

    fn lseek(&self, _: &Request, _: INodeNo, handle: FileHandle, offset: i64, whence: i32, reply: ReplyLseek) {
        guarded(|| {
            let file = self.files.get(handle).ok_or(Errno::EBADF);
            match file.and_then(|file| Self::seek(&file, offset, whence)) {
                Ok(offset) => reply.offset(offset),
                Err(error) => reply.error(error),
            }
        });
    }
}

/// The length when there is no room, the value when there is enough.
fn answer(reply: ReplyXattr, value: &[u8], room: u32) {
    match u32::try_from(value.len()) {
        Ok(len) if room == 0 => reply.size(len),
        Ok(len) if len <= room => reply.data(value),
        _ => reply.error(Errno::ERANGE),
    }
}
