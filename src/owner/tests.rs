//! Questions that are cut, and layers that share bytes.
#![allow(clippy::unwrap_used, reason = "tests")]

use super::*;
use crate::case::Options;
use std::path::Path;

fn demo() -> Case {
    let image = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/demo/datastore.qcow2");
    Case::open(&Options { inputs: vec![image], ..Options::default() }, &Progress::silent()).unwrap()
}

fn pieces(case: &Case, asked: &RangeSet, most: usize) -> Vec<Piece> {
    let mut pieces = Vec::new();
    let source = &case.inputs[0];
    find_in(case, source, asked, most, &Progress::silent(), &mut |piece| {
        pieces.push(piece.clone());
        Ok(())
    })
    .unwrap();
    pieces
}

/// What is told of each byte: the names of its owners, and where in each.
fn at(pieces: &[Piece], byte: u64) -> Vec<(Arc<str>, u64)> {
    let next = pieces.partition_point(|piece| piece.range.end <= byte);
    let piece = &pieces[next];
    assert!(piece.range.contains(&byte));
    let owners = piece.owners.iter().map(|owner| {
        let last = owner.steps.last().unwrap();
        let into = if owner.packed { 0 } else { byte - piece.range.start };
        (last.name.clone(), last.offset + into)
    });
    owners.collect()
}

#[test]
fn a_question_that_is_cut_has_the_same_answer() {
    let case = demo();
    let asked = RangeSet::all(case.inputs[0].len);
    let (whole, cut) = (pieces(&case, &asked, MOST), pieces(&case, &asked, 200));
    assert!(cut.len() > whole.len(), "{} and {}: nothing was cut", cut.len(), whole.len());
    for pieces in [&whole, &cut] {
        let mut end = 0;
        for piece in pieces {
            assert_eq!(piece.range.start, end);
            assert!(!piece.owners.is_empty() && !piece.more);
            end = piece.range.end;
        }
        assert_eq!(end, case.inputs[0].len);
    }
    for byte in (0..case.inputs[0].len).step_by(97) {
        assert_eq!(at(&whole, byte), at(&cut, byte), "{byte:#x}");
    }
}

#[test]
fn every_state_of_a_disk_that_reads_a_byte_is_on_the_way() {
    let case = demo();
    let asked = RangeSet::all(case.inputs[0].len);
    let pieces = pieces(&case, &asked, MOST);
    let ways = pieces.iter().flat_map(|piece| &piece.owners);
    // A block that no snapshot changed since: the file, and the disk at both snapshots and now.
    let names = ["web01-flat.vmdk", "1-before upgrade/web01.raw", "2-after upgrade/web01.raw", "vms/web01/web01.raw"];
    let through_all = |owner: &Owner| {
        let mut steps = owner.steps.iter();
        names.iter().all(|name| steps.any(|step| step.name.ends_with(name)))
    };
    assert!(ways.into_iter().any(through_all));
}
