//! QCOW2, versions 2 and 3: QEMU's `docs/interop/qcow2.rst`.
//!
//! Clusters are found through two levels of tables. Neither is ever read as a whole: entries come in bounded pages
//! through the case's cache, so that a header that claims a table of gigabytes costs nothing.
//! Refcounts are not needed for reading and are not read.

mod anchors;
mod bitmap;
mod bits;
mod census;
mod entry;
mod header;
mod layer;
mod mend;
mod rebuild;
mod seal;
mod snapshot;

use crate::adapt::Trusted;
use crate::codec::Zstd;
use crate::entries::Entries;
use crate::error::Error;
use crate::format::{Clue, Format, Holds, Magic, Sweep, score};
use crate::layer::{Bytes, Layer, Trust};
use crate::link::{Content, Disk, Fact, Link, Opened, Role, Value, Want};
use crate::memo::Memo;
use crate::read::read_exact;
use byteorder::{BigEndian, ByteOrder};
use census::{Plan, Refcounts, State};
use header::{Compression, Header, crypt_name, incompatible};
use layer::{Metadata, Other, Qcow2, Whole};
use snapshot::Snapshot;
use std::sync::Arc;

/// The row in the table of formats.
pub static FORMAT: Format = Format {
    name: "qcow2",
    about: "QEMU copy-on-write image, versions 2 and 3",
    holds: Holds::Disk,
    spec: "QEMU docs/interop/qcow2.rst",
    magics: &[Magic { at: 0, bytes: header::MAGIC }],
    probe,
    open,
    sweep: Some(Sweep { look: rebuild::look, build, near: &[] }),
};

fn probe(layer: &dyn Layer) -> u8 {
    let mut head = [0; 24];
    if layer.len() < 72 {
        return score::NONE;
    }
    if read_exact(layer, 0, &mut head).is_err() || !head.starts_with(header::MAGIC) {
        return if rebuild::is_headless(layer) { score::REMAINS } else { score::NONE };
    }
    let (version, cluster_bits) = (BigEndian::read_u32(&head[4..]), BigEndian::read_u32(&head[20..]));
    match version {
        2 | 3 if (9..=21).contains(&cluster_bits) => score::PROVEN,
        // A format of its own.
        1 => score::NONE,
        _ => score::MAGIC,
    }
}

fn open(bytes: &Bytes, memo: &Memo) -> Result<Opened, Error> {
    let mut magic = [0; 4];
    match Header::load(&**bytes) {
        Ok(mut header) => {
            let (snapshots, findings, snapshots_len) = snapshot::load(&**bytes, &header);
            let lost = !findings.is_empty();
            header.findings.extend(findings);
            Ok(opened(bytes, memo, header, snapshots, snapshots_len, lost))
        }
        // A header that is there is believed: what it asks for and can't be read is not guessed.
        Err(error) if read_exact(&**bytes, 0, &mut magic).is_ok() && magic == *header::MAGIC => Err(error),
        Err(error) if !rebuild::is_headless(&**bytes) => Err(error),
        Err(_) => Ok(rebuilt(bytes, memo, rebuild::load(bytes, memo)?)),
    }
}

/// The image that a search found.
fn build(bytes: &Bytes, memo: &Memo, clues: &[Clue]) -> Result<Opened, Error> {
    Ok(rebuilt(bytes, memo, rebuild::from_clues(bytes, memo, clues)?))
}

fn rebuilt(bytes: &Bytes, memo: &Memo, made: rebuild::Rebuilt) -> Opened {
    let lost = made.snapshots.is_empty();
    opened(bytes, memo, made.header, made.snapshots, made.snapshots_at.1, lost)
}

/// `lost`: there may be snapshots that no table lists.
fn opened(
    bytes: &Bytes,
    memo: &Memo,
    mut header: Header,
    snapshots: Vec<Snapshot>,
    snapshots_len: u64,
    lost: bool,
) -> Opened {
    let findings = std::mem::take(&mut header.findings);
    let trust = findings.iter().map(|finding| finding.trust).max().unwrap_or_default();

    let mut wants = Vec::new();
    if header.backing_at.is_some() {
        wants.push(Want { role: Role::Parent, id: None, hint: header.backing_name.clone(), len: None });
    }
    if header.has(incompatible::DATA_FILE) {
        wants.push(Want { role: Role::DataFile, id: None, hint: header.data_file_name.clone(), len: None });
    }
    let mut facts = facts(&header, &snapshots);
    if let Some(seal) = header.seal(&**bytes) {
        facts.push(Fact::new("encryption_cipher", seal.cipher));
        facts.push(Fact::new("encryption_key_slots", Value::Count(seal.slots)));
    }
    // QEMU's limit for the refcount table is 8 MiB.
    let refcounts = u64::from(header.refcount_table_clusters).saturating_mul(header.cluster_size()).min(8 << 20) >> 3;
    let mut metadata = vec![
        Metadata::Range(0, header.cluster_size()),
        Metadata::Range(header.snapshots_offset, snapshots_len),
        Metadata::Clusters(header.refcount_table_offset, refcounts),
    ];
    metadata.extend(header.crypto_header.map(|(at, len)| Metadata::Range(at, len)));
    metadata.extend(header.bitmaps.into_iter().flat_map(|bitmaps| bitmap::metadata(&**bytes, bitmaps)));
    let tables = Entries::new(bytes.clone(), memo.share());
    let image = Image { tables, memo: memo.clone(), header, snapshots, trust, metadata, lost };
    let link = Link { len: image.header.size, ..Link::default() };
    Opened { link, wants, join: Box::new(move |others| Ok(image.join(others))), findings, facts }
}

/// L1 tables of lost snapshots that are shown.
const MOST_STRAYS: usize = 64;

/// An image that was parsed.
struct Image {
    tables: Entries,
    memo: Memo,
    header: Header,
    snapshots: Vec<Snapshot>,
    trust: Trust,
    metadata: Vec<Metadata>,
    /// Whether there may be snapshots that no table lists.
    lost: bool,
}

impl Image {
    /// The current state and those of the snapshots.
    fn states(&self) -> Vec<State> {
        let file = self.tables.layer().len();
        // Hostile headers claim billions; entries behind the end of the file map nothing.
        let inside = |l1: u64, size: u32| u64::from(size).min(file.saturating_sub(l1).div_ceil(8));
        let Header { l1_table_offset: l1, l1_size, size, .. } = self.header;
        let mut states = vec![State { l1, l1_size: inside(l1, l1_size), len: size }];
        states.extend(self.snapshots.iter().map(|snapshot| {
            let l1 = snapshot.l1_table_offset;
            State { l1, l1_size: inside(l1, snapshot.l1_size), len: snapshot.size }
        }));
        states
    }

    /// The counters, if the header says where they are.
    fn refcounts(&self) -> Option<Refcounts> {
        let Header { refcount_table_offset: at, refcount_order: order, .. } = self.header;
        let entries = u64::from(self.header.refcount_table_clusters).saturating_mul(self.header.cluster_size()) >> 3;
        let right = at != 0 && at.is_multiple_of(self.header.cluster_size()) && entries > 0;
        right.then_some(Refcounts { at, entries, order })
    }

    fn join(&self, others: &[Option<Bytes>]) -> Content {
        let mut others = others.iter();
        let mut other = |wanted: bool, name_at: u64| match others.next() {
            _ if !wanted => Other::None,
            Some(Some(layer)) => Other::Given(layer.clone()),
            _ => Other::Absent(name_at),
        };
        let backing = match self.header.backing_at {
            Some(at) => other(true, at),
            None => Other::None,
        };
        let data_file = if self.header.has(incompatible::DATA_FILE) {
            other(true, self.header.header_length.into())
        } else {
            Other::None
        };
        let states = self.states();
        let plan = Plan {
            tables: self.tables.clone(),
            dialect: self.header.dialect(),
            states: states.clone(),
            refcounts: self.refcounts(),
            first_table: self.header.first_table,
            metadata: self.metadata.clone(),
        };
        let whole = Arc::new(Whole::new(plan));
        let state = |number: usize, state: &State| -> Bytes {
            Arc::new(Qcow2 {
                whole: whole.clone(),
                number,
                tables: self.tables.clone(),
                // Units are keyed by guest offset: each state has its own.
                units: self.memo.share(),
                l1_table_offset: state.l1,
                l1_size: state.l1_size,
                len: state.len,
                dialect: self.header.dialect(),
                compression: self.header.compression,
                zstd: Zstd::default(),
                sealed: self.header.crypt_method != 0,
                backing: backing.clone(),
                data_file: data_file.clone(),
                trust: self.trust,
                metadata: if number == 0 { self.metadata.clone() } else { Vec::new() },
            })
        };
        let names = std::iter::once(Vec::new()).chain(self.snapshots.iter().map(|snapshot| snapshot.name.clone()));
        let disks = names.zip(states.iter().enumerate());
        let mut disks: Vec<Disk> = disks.map(|(name, (number, it))| Disk { name, bytes: state(number, it) }).collect();
        if self.lost {
            // An L1 table that nothing lists is a snapshot's; how long its disk was, it does not say.
            let strays = whole.known().1.stray.iter().copied().filter(|at| *at != self.header.l1_table_offset);
            for (number, l1) in (states.len()..).zip(strays.take(MOST_STRAYS)) {
                let l1_size = states.first().map_or(0, |state| state.l1_size);
                let it = State { l1, l1_size, len: self.header.size };
                let bytes = Arc::new(Trusted::new(state(number, &it), Trust::Inferred));
                disks.push(Disk { name: format!("lost-{l1:x}").into_bytes(), bytes });
            }
        }
        Content::Disks(disks)
    }
}

fn facts(header: &Header, snapshots: &[Snapshot]) -> Vec<Fact> {
    let text = |bytes: &[u8]| bytes.escape_ascii().to_string();
    let mut facts = vec![
        Fact::new("version", Value::Count(header.version.into())),
        Fact::new("size", Value::Bytes(header.size)),
        Fact::new("cluster_size", Value::Bytes(header.cluster_size())),
        Fact::new("l1_table", format!("{} entries at {:#x}", header.l1_size, header.l1_table_offset)),
        Fact::new(
            "refcount_table",
            format!("{} clusters at {:#x}", header.refcount_table_clusters, header.refcount_table_offset),
        ),
        Fact::new("refcount_order", Value::Count(header.refcount_order.into())),
        Fact::new("crypt_method", crypt_name(header.crypt_method)),
        Fact::new(
            "compression_type",
            match header.compression {
                Compression::Deflate => "deflate".to_owned(),
                Compression::Zstd => "zstd".to_owned(),
                Compression::Unknown(kind) => format!("unknown ({kind})"),
            },
        ),
    ];
    if header.version >= 3 {
        facts.push(Fact::new("incompatible_features", Value::Hex(header.incompatible)));
        facts.push(Fact::new("compatible_features", Value::Hex(header.compatible)));
        facts.push(Fact::new("autoclear_features", Value::Hex(header.autoclear)));
        facts.push(Fact::new("extended_l2", Value::Flag(header.has(incompatible::EXTENDED_L2))));
    }
    if let Some(name) = &header.backing_name {
        facts.push(Fact::new("backing_file", text(name)));
    }
    if let Some(format) = &header.backing_format {
        facts.push(Fact::new("backing_format", text(format)));
    }
    if let Some(name) = &header.data_file_name {
        facts.push(Fact::new("data_file", text(name)));
    }
    if let Some(bitmaps) = &header.bitmaps {
        facts.push(Fact::new("bitmaps", Value::Count(bitmaps.count.into())));
    }
    facts.push(Fact::new("snapshots", Value::Count(header.nb_snapshots.into())));
    facts.extend(snapshots.iter().map(|snapshot| {
        let Snapshot { name, size, seconds, vm_state_size, .. } = snapshot;
        let value =
            format!("{}: {size} bytes, taken {seconds} s after 1970, {vm_state_size} bytes of memory", text(name));
        Fact::new("snapshot", value)
    }));
    facts
}
