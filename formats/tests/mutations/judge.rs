//! Does everything that one can do with an image without trusting any of it, and compares what comes out with what
//! is right.

use super::fixtures::{Expect, Fixture};
use super::image::Image;
use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::{ControlFlow, Range};
use std::sync::Arc;
use std::thread;
use vdrecover_formats::format::Window;
use vdrecover_formats::laws::{Effort, check_laws};
use vdrecover_formats::note::Sink;
use vdrecover_formats::{
    Bytes, Content, FORMATS, Format, Kind, Layer, NodeId, Note, Opened, Pool, Tree, Trust, read, read_vec, walk,
};
use vdrecover_testdata::vmfs::{Expected, FileType};

/// What came out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// It was opened at all.
    pub opened: bool,
    /// Of the answers to all questions.
    pub digest: u64,
    /// Bytes that are wrong and look right.
    pub wrong: u64,
    /// Where the first of them is.
    pub first: Option<String>,
    /// Bytes that are wrong, but not sound.
    pub doubtful: u64,
    /// Bytes that are lost.
    pub lost: u64,
    /// Names that are missing.
    pub missing: u64,
    /// Observations.
    pub findings: Vec<&'static str>,
}

/// The row of a fixture.
pub fn row(fixture: &Fixture) -> &'static Format {
    FORMATS.iter().find(|format| format.name == fixture.format).unwrap()
}

pub fn join(fixture: &Fixture, opened: &Opened, images: &[Bytes]) -> Option<Content> {
    let mut members = 0;
    let others: Vec<Option<Bytes>> =
        opened.wants.iter().map(|want| fixture.partner(images, want, &mut members)).collect();
    (opened.join)(&others).ok()
}

/// Opens the images as a case would, and looks at all of it. With `threads` more than one asks the same questions.
pub fn judge(fixture: &Fixture, images: &[Image], threads: bool) -> Outcome {
    let images: Vec<Bytes> = images.iter().map(|image| -> Bytes { Arc::new(image.clone()) }).collect();
    let recognised = FORMATS.iter().map(|format| (format.probe)(&*images[0])).max().unwrap_or_default();
    let row = row(fixture);
    let mut outcome = Outcome::default();
    let pool = Pool::new(8 << 20);
    // Robust also against what the probe would have refused.
    let Ok(opened) = (row.open)(&images[0], &pool.share()) else { return outcome };
    if let Ok(alone) = opened.join_alone() {
        exercise(&alone, Effort { runs: 8, bytes: 8 << 10 });
    }
    let Some(content) = join(fixture, &opened, &images) else { return outcome };
    outcome.opened = recognised > 0 && (row.probe)(&*images[0]) == recognised;
    outcome.findings = opened.findings.iter().map(|finding| finding.code).collect();
    exercise(&content, Effort { runs: 48, bytes: 128 << 10 });
    if threads {
        let ask = || {
            let mut outcome = Outcome::default();
            compare(&content, &fixture.expect, &mut outcome);
            outcome
        };
        let (here, there) = thread::scope(|scope| {
            let other = scope.spawn(ask);
            (ask(), other.join())
        });
        let there = there.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        assert_eq!(here, there, "law 6, equal answers from any thread");
    }
    compare(&content, &fixture.expect, &mut outcome);
    if !outcome.opened {
        // Nobody would have read it as this.
        outcome = Outcome { findings: outcome.findings, ..Outcome::default() };
    }
    outcome
}

/// Laws, listings, lookups and audits.
fn exercise(content: &Content, effort: Effort) {
    match content {
        Content::Disks(disks) => disks.iter().take(4).for_each(|disk| lawful(&disk.bytes, effort)),
        Content::Volumes(volumes) => volumes.iter().take(8).for_each(|volume| lawful(&volume.bytes, effort)),
        Content::Tree(tree) => exercise_tree(&**tree, effort),
    }
}

fn lawful(layer: &Bytes, effort: Effort) {
    check_laws(&**layer, effort).unwrap_or_else(|law| panic!("{law}"));
    let mut notes = 0;
    for part in 0..layer.parts().min(64) {
        let _ = layer.audit(part, &mut |_| {
            notes += 1;
            if notes < 20_000 { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        });
    }
}

fn exercise_tree(tree: &dyn Tree, effort: Effort) {
    let effort = Effort { runs: effort.runs / 4, bytes: effort.bytes / 16 };
    let open = |id: NodeId| {
        if let Ok(layer) = tree.open(id) {
            check_laws(&*layer, effort).unwrap_or_else(|law| panic!("{id:?}: {law}"));
        }
    };
    let mut folders = vec![tree.root()];
    let mut seen = BTreeSet::new();
    while let Some(dir) = folders.pop() {
        if !seen.insert(dir) || seen.len() > 12 {
            continue;
        }
        let mut entries = Vec::new();
        let _ = tree.list(dir, 0, &mut |entry| {
            entries.extend(entry.ok());
            if entries.len() < 200 { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        });
        for entry in entries.iter().step_by(1 + entries.len() / 24) {
            let _ = tree.lookup(dir, &entry.name);
            let _ = tree.node(entry.id);
            if entry.kind == Kind::Dir {
                folders.push(entry.id);
            }
            open(entry.id);
        }
        let _ = tree.lookup(dir, b"none");
    }
    for part in 0..tree.parts().min(64) {
        let mut notes = 0;
        let _ = tree.audit(part, &mut |_| {
            notes += 1;
            if notes < 20_000 { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        });
    }
    let mut finds = Vec::new();
    tree.finds(&mut |find| {
        finds.push(find.entry.id);
        if finds.len() < 10 { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    });
    finds.into_iter().for_each(open);
    tree.left_out(&mut |_| {});
    tree.check(&mut |_| {});
    search(tree);
}

/// Looks at the first windows of free space, and puts together what they show.
fn search(tree: &dyn Tree) {
    let Some(search) = tree.search() else { return };
    let mut clues = Vec::new();
    for range in search.free.iter().take(16) {
        let end = range.end.min(range.start + (1 << 20));
        let (bytes, _) = read_vec(&*search.layer, range.start, (end - range.start) as usize);
        let window = Window { at: range.start, bytes: &bytes, own: bytes.len() };
        (search.look)(&window, &mut |clue| clues.push(clue));
    }
    clues.sort_unstable();
    let found = (search.build)(&clues);
    found.finds(&mut |_| ControlFlow::Continue(()));
}

/// Compares with what is right.
fn compare(content: &Content, expect: &Expect, outcome: &mut Outcome) {
    let mut hash = DefaultHasher::new();
    match (content, expect) {
        (Content::Disks(disks), Expect::Disk(device)) => {
            if let Some(disk) = disks.first() {
                let audit: Audit<'_> =
                    &|sink| (0..disk.bytes.parts().min(64)).try_for_each(|part| disk.bytes.audit(part, sink));
                note(audit, outcome);
                shorter(disk.bytes.len(), device.len(), Trust::Sound, "the disk", outcome);
                let want = |at, len| device.read(at, len);
                let end = device.len().min(disk.bytes.len());
                probe(&*disk.bytes, 0..end, &want, "the disk", &mut hash, outcome);
            }
        }
        (Content::Volumes(volumes), Expect::Volumes(rows)) => {
            for (name, range) in rows {
                let Some(volume) = volumes.iter().find(|volume| volume.name == name.as_bytes()) else {
                    outcome.missing += 1;
                    continue;
                };
                let mut byte = [0];
                let trust = read(&*volume.bytes, 0, &mut byte).trust;
                if volume.range != *range {
                    let by = volume.range.start.abs_diff(range.start) + volume.range.end.abs_diff(range.end);
                    count(by, trust, || format!("{name} is {:x?}", volume.range), outcome);
                }
                volume.range.hash(&mut hash);
                lost(&*volume.bytes, outcome);
            }
        }
        (Content::Tree(tree), Expect::Tree(files)) => compare_tree(&**tree, files, &mut hash, outcome),
        (content, _) => panic!("{content:?}"),
    }
    outcome.findings.sort_unstable();
    outcome.findings.dedup();
    outcome.digest = hash.finish();
}

fn compare_tree(tree: &dyn Tree, files: &[Expected], hash: &mut DefaultHasher, outcome: &mut Outcome) {
    note(&|sink| (0..tree.parts().min(64)).try_for_each(|part| tree.audit(part, sink)), outcome);
    for file in files {
        let mut dir = Some(tree.root());
        for name in file.path.split('/') {
            dir = dir.and_then(|dir| tree.lookup(dir, name.as_bytes()).ok().flatten()).map(|entry| entry.id);
        }
        let Some((id, node)) = dir.and_then(|id| Some((id, tree.node(id).ok()?))) else {
            outcome.missing += 1;
            continue;
        };
        format!("{id:?} {node:?}").hash(hash);
        let (Some(content), Ok(layer)) = (&file.content, tree.open(id)) else { continue };
        if file.kind != FileType::Directory {
            shorter(node.len, file.len, node.trust, &file.path, outcome);
        }
        let end = content.len().min(layer.len());
        let mut places: BTreeSet<u64> = [0, 30 << 30].into();
        for (start, piece) in content.pieces() {
            places.extend((*start..start + piece.len() as u64).step_by(256 << 10));
            places.extend([start.saturating_sub(2000), (start + piece.len() as u64).saturating_sub(2000)]);
        }
        for at in places.into_iter().filter(|at| *at < end) {
            let want = |at, len| content.read(at, len);
            probe(&*layer, at..(at + 4096).min(end), &want, &file.path, hash, outcome);
        }
        lost(&*layer, outcome);
    }
}

type Audit<'a> = &'a dyn Fn(Sink<'_>) -> ControlFlow<()>;

fn note(audit: Audit<'_>, outcome: &mut Outcome) {
    let mut notes = 0;
    let _ = audit(&mut |note| {
        notes += 1;
        if let Note::Finding(finding) = note {
            outcome.findings.push(finding.code);
        }
        if notes < 50_000 { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    });
}

fn count(by: u64, trust: Trust, what: impl Fn() -> String, outcome: &mut Outcome) {
    if trust == Trust::Sound {
        outcome.wrong += by;
        outcome.first.get_or_insert_with(what);
    } else {
        outcome.doubtful += by;
    }
}

fn shorter(have: u64, want: u64, trust: Trust, what: &str, outcome: &mut Outcome) {
    if have != want {
        count(want.abs_diff(have), trust, || format!("{what} has {have:#x} bytes instead of {want:#x}"), outcome);
    }
}

/// Counts what the map says is lost.
fn lost(layer: &dyn Layer, outcome: &mut Outcome) {
    let runs = walk(layer, 0..layer.len()).take(2000);
    let lost = runs.filter(|run| matches!(run.place, vdrecover_formats::Place::Lost(_))).map(|run| run.len);
    outcome.lost = outcome.lost.saturating_add(lost.fold(0, u64::saturating_add));
}

/// Reads a range in pieces and compares each with what is right.
fn probe(
    layer: &dyn Layer,
    range: Range<u64>,
    want: &dyn Fn(u64, usize) -> Vec<u8>,
    what: &str,
    hash: &mut DefaultHasher,
    outcome: &mut Outcome,
) {
    let mut at = range.start;
    while at < range.end {
        let len = (range.end - at).min(4096) as usize;
        let right = want(at, len);
        let (bytes, seen) = read_vec(layer, at, len);
        bytes.hash(hash);
        (seen.trust as u8).hash(hash);
        for gap in &seen.gaps {
            gap.range.hash(hash);
            outcome.lost += gap.range.end - gap.range.start;
        }
        let is_lost = |i: u64| seen.gaps.iter().any(|gap| gap.range.contains(&(at + i)));
        let mut wrong = (0..).zip(bytes.iter().zip(&right)).filter(|(i, (a, b))| a != b && !is_lost(*i));
        if let Some((first, _)) = wrong.next() {
            count(wrong.count() as u64 + 1, seen.trust, || format!("{what} at {:#x}", at + first), outcome);
        }
        at += len as u64;
    }
}
