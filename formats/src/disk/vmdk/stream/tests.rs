#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::cast_possible_truncation, reason = "tests")]
use super::*;

const GRAIN: u64 = 65_536;

fn head(lba: u64, size: u32) -> Vec<u8> {
    let mut bytes = lba.to_le_bytes().to_vec();
    bytes.extend(size.to_le_bytes());
    bytes.extend([0x78, 0xda]);
    bytes.resize(512, 7);
    bytes
}

#[test]
fn a_record_is_recognised_by_its_head() {
    let known = |bytes: &[u8]| Record::recognise(1024, bytes, GRAIN, 1 << 30);
    assert_eq!(known(&head(128, 501)), Some(Record { at: 1024, start: GRAIN, end: 1024 + 1024 }));
    assert_eq!(known(&head(128, 500)).unwrap().end, 1536);
    // No grain's place, behind the disk, empty, too long, no zlib.
    for wrong in [head(127, 500), head(1 << 21, 500), head(128, 0), head(128, 140_000)] {
        assert_eq!(known(&wrong), None);
    }
    let mut wrong = head(128, 500);
    wrong[13] = 0xdb;
    assert_eq!(known(&wrong), None);
}

#[test]
fn a_damaged_size_costs_no_more_than_its_record() {
    let mut bytes = [head(0, 400), head(128, 400), head(256, 400), head(384, 400)].concat();
    let found = |bytes: &[u8]| {
        let mut starts = Vec::new();
        records(0, bytes, bytes.len(), GRAIN, 1 << 30, &mut |record| starts.push(record.start / GRAIN));
        starts
    };
    assert_eq!(found(&bytes), [0, 1, 2, 3]);
    bytes[512 + 8] = 0;
    bytes[512 + 9] = 4;
    assert_eq!(found(&bytes), [0, 1, 2, 3], "its size says that it has the two behind it too");
    bytes[512..1024].fill(0xee);
    assert_eq!(found(&bytes), [0, 2, 3]);
}
