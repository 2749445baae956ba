//! A tree in memory with everything in it that a mount has to get right.

use std::ops::{ControlFlow, Range};
use std::sync::Arc;
use vdrecover_formats::adapt::{Blank, Concat, Damaged, Memory};
use vdrecover_formats::tree::Lister;
use vdrecover_formats::{Bytes, Entry, Error, Finding, Kind, Layer, Node, NodeId, Place, Run, State, Tree, Trust, Why};

pub(crate) const MANY: u64 = 100_000;
pub(crate) const HUGE: u64 = 42 << 40;
pub(crate) const GAP: Range<u64> = 300_000..300_010;
/// Nanoseconds of 1901.
pub(crate) const OLD: i128 = -2_177_452_799_500_000_000;
const LONG: [u8; 600] = [b'n'; 600];
/// Offsets of a listing may be any number, such as a hash.
const FAR: [u64; 4] = [1, 1 << 40, (1 << 63) - 2, u64::MAX - 5];
const FIRST_OF_MANY: u64 = 1_000_000;
const ROOT: u64 = 7;

#[derive(Debug)]
pub(crate) struct TestTree {
    nodes: Vec<(&'static [u8], Node, Option<Bytes>)>,
}

/// A layer with a bug.
#[derive(Debug)]
struct Panics;

impl Layer for Panics {
    fn len(&self) -> u64 {
        4096
    }
    #[allow(clippy::panic, reason = "what is tested")]
    fn run(&self, _: u64, _: u64) -> Run<'_> {
        panic!("a bug in a format")
    }
}

/// Bytes that are missing in the map and fail only when they are read.
#[derive(Debug)]
struct Fails;

impl Layer for Fails {
    fn len(&self) -> u64 {
        4096
    }
    fn run(&self, _: u64, want: u64) -> Run<'_> {
        Run::sound(want, Place::Own)
    }
}

pub(crate) fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| u8::try_from(i % 251).unwrap_or(0)).collect()
}

impl TestTree {
    pub(crate) fn new(big: Option<Bytes>) -> Arc<Self> {
        let memory = |bytes: Vec<u8>| -> Bytes { Arc::new(Memory::new(bytes)) };
        let gap: Bytes = Arc::new(Damaged::new(memory(pattern(1 << 20)), vec![GAP], Why::Unreadable));
        let sparse = Concat::new([Arc::new(Blank::zero(HUGE - 10)) as Bytes, memory(b"the end is".to_vec())]);
        let file = |name: &'static [u8], bytes: Bytes| (name, Node::plain(Kind::File, bytes.len(), 0o644), Some(bytes));
        let old = Node {
            modified: Some(OLD),
            uid: 1234,
            gid: 99,
            state: State::Deleted,
            trust: Trust::Doubtful,
            ..Node::plain(Kind::File, 5, 0o600)
        };
        let dir = |name: &'static [u8]| (name, Node::plain(Kind::Dir, 0, 0o755), None);
        let mut nodes = vec![
            file(b"small", memory(b"hello\n".to_vec())),
            file(b"gap", gap),
            file(b"huge", Arc::new(Blank::zero(HUGE))),
            dir(b"many"),
            (b"link".as_slice(), Node::plain(Kind::Symlink, 5, 0o777), Some(memory(b"small".to_vec()))),
            (b"rdm".as_slice(), Node::plain(Kind::Mapping, 1 << 20, 0o644), None),
            file(b"panics", Arc::new(Panics)),
            file(b"fails", Arc::new(Fails)),
            file(b"odd/name", memory(b"odd".to_vec())),
            (b"short".as_slice(), Node::plain(Kind::File, 10_000, 0o644), Some(memory(pattern(5000)))),
            (b"old".as_slice(), old, Some(memory(b"older".to_vec()))),
            (b"lost".as_slice(), Node::plain(Kind::File, 10, 0o644), None),
            dir(b"broken"),
            dir(b"far"),
            file(&LONG, memory(b"long".to_vec())),
            file(b"empty", memory(Vec::new())),
            file(b"end", Arc::new(Blank::zero(u64::MAX))),
        ];
        if let Some(sparse) = sparse {
            nodes.push(file(b"sparse", Arc::new(sparse)));
        }
        if let Some(big) = big {
            nodes.push(file(b"big", big));
        }
        Arc::new(Self { nodes })
    }

    fn entry(&self, i: u64) -> Option<Entry> {
        let (name, node, _) = self.nodes.get(usize::try_from(i).ok()?)?;
        // The number after the root's, so that one of them is 1 when the root is not.
        let id = NodeId(if i == 0 { 1 } else { ROOT + i });
        Some(Entry { name: name.to_vec(), id, kind: node.kind, state: node.state, next: i + 1 })
    }

    fn find(&self, id: NodeId) -> Option<&(&'static [u8], Node, Option<Bytes>)> {
        let i = if id.0 == 1 { 0 } else { id.0.checked_sub(ROOT).filter(|i| *i > 0)? };
        self.nodes.get(usize::try_from(i).ok()?)
    }

    fn is(&self, id: NodeId, name: &[u8]) -> bool {
        self.find(id).is_some_and(|(found, ..)| *found == name)
    }
}

fn one_of_many(i: u64) -> Entry {
    let name = format!("a file with number {i:06}").into_bytes();
    Entry { name, id: NodeId(FIRST_OF_MANY + i), kind: Kind::File, state: State::Live, next: i + 1 }
}

impl Tree for TestTree {
    fn root(&self) -> NodeId {
        NodeId(ROOT)
    }

    fn node(&self, id: NodeId) -> Result<Node, Error> {
        match id.0 {
            ROOT => Ok(Node::plain(Kind::Dir, 1 << 30, 0o755)),
            n if (FIRST_OF_MANY..FIRST_OF_MANY + MANY).contains(&n) => Ok(Node::plain(Kind::File, 6, 0o644)),
            _ => self.find(id).map(|(_, node, _)| node.clone()).ok_or(Error::NotFound),
        }
    }

    fn list(&self, dir: NodeId, from: u64, sink: Lister<'_>) -> Result<(), Error> {
        if dir.0 == ROOT {
            for entry in (from..).map_while(|i| self.entry(i)) {
                if sink(Ok(entry)).is_break() {
                    break;
                }
            }
        } else if self.is(dir, b"many") {
            for i in from..MANY {
                if sink(Ok(one_of_many(i))).is_break() {
                    break;
                }
            }
        } else if self.is(dir, b"far") {
            for (i, next) in (0..).zip(FAR).filter(|(_, next)| *next > from) {
                if sink(Ok(Entry { next, ..one_of_many(i) })).is_break() {
                    break;
                }
            }
        } else if self.is(dir, b"broken") {
            if from == 0 {
                let _ = sink(Ok(one_of_many(0)));
            }
            if sink(Err(Finding::new("TEST", 0..1, Trust::Doubtful, "a block is lost"))) == ControlFlow::Continue(())
                && from < 2
            {
                let _ = sink(Ok(one_of_many(1)));
            }
        } else {
            return Err(Error::NotFolder);
        }
        Ok(())
    }

    fn lookup(&self, dir: NodeId, name: &[u8]) -> Result<Option<Entry>, Error> {
        if dir.0 == ROOT {
            return Ok((0..).map_while(|i| self.entry(i)).find(|entry| entry.name == name));
        }
        let number = std::str::from_utf8(name).ok().and_then(|name| name.rsplit(' ').next()?.parse().ok());
        Ok(number.filter(|i| *i < MANY).map(one_of_many).filter(|entry| entry.name == name))
    }

    fn open(&self, id: NodeId) -> Result<Bytes, Error> {
        if id.0 >= FIRST_OF_MANY {
            return Ok(Arc::new(Memory::new(b"hello\n".to_vec())));
        }
        let (name, node, bytes) = self.find(id).ok_or(Error::NotFound)?;
        match bytes {
            Some(bytes) => Ok(Arc::clone(bytes)),
            None if node.kind == Kind::Dir => Err(Error::NotFile),
            None if *name == b"lost" => Err(Error::corrupt("block list", 0, "nothing")),
            None => Err(Error::unsupported("raw device mapping")),
        }
    }
}
