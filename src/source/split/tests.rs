#![allow(clippy::unwrap_used, clippy::panic, clippy::single_range_in_vec_init, reason = "tests")]
use super::*;
use std::fs;
use tempfile::TempDir;
use vdrecover_formats::laws::{Effort, check_laws};
use vdrecover_formats::read;

fn folder(files: &[(&str, usize)]) -> TempDir {
    let dir = TempDir::new().unwrap();
    for (i, (name, len)) in files.iter().enumerate() {
        fs::write(dir.path().join(name), vec![u8::try_from(i + 1).unwrap(); *len]).unwrap();
    }
    dir
}

fn opened(dir: &TempDir, name: &str) -> Source {
    let source = crate::source::open(&dir.path().join(name), Tag(1)).unwrap();
    check_laws(&*source.bytes, Effort::default()).unwrap();
    assert_eq!(source.bytes.tag(), Some(Tag(1)));
    source
}

fn content(source: &Source) -> (Vec<u8>, Vec<(Range<u64>, Why)>) {
    let mut bytes = vec![9; usize::try_from(source.len).unwrap()];
    let seen = read(&*source.bytes, 0, &mut bytes);
    (bytes, seen.gaps.into_iter().map(|gap| (gap.range, gap.loss.why)).collect())
}

fn codes(source: &Source) -> Vec<&str> {
    source.findings.iter().map(|finding| finding.code).collect()
}

#[test]
fn a_set_is_joined_by_its_first_part() {
    let sets: [[&str; 3]; 5] = [
        ["d.001", "d.002", "d.003"],
        ["d.000", "d.001", "d.002"],
        ["d.raw.00", "d.raw.01", "d.raw.02"],
        ["d.aa", "d.ab", "d.ac"],
        ["d.0001", "d.0002", "d.0003"],
    ];
    for set in sets {
        let dir = folder(&[(set[0], 1000), (set[1], 1000), (set[2], 10), ("d.0x4", 5), ("e.004", 5), ("d.04", 5)]);
        if set[0] == "d.raw.00" {
            fs::remove_file(dir.path().join("d.04")).unwrap();
        }
        let source = opened(&dir, set[0]);
        let SourceKind::Split { parts } = &source.kind else { panic!("{set:?}: {:?}", source.kind) };
        assert_eq!(parts.len(), 3);
        let (bytes, gaps) = content(&source);
        assert_eq!(bytes, [vec![1; 1000], vec![2; 1000], vec![3; 10]].concat());
        assert_eq!((gaps, codes(&source)), (vec![], vec![]));
        source.bytes.advise(&[0..5000]);
    }
}

#[test]
fn a_missing_part_is_a_gap_of_its_length() {
    let dir = folder(&[("d.001", 1000), ("d.002", 1000), ("d.004", 1000), ("d.005", 7)]);
    let source = opened(&dir, "d.001");
    let (bytes, gaps) = content(&source);
    assert_eq!(bytes, [vec![1; 1000], vec![2; 1000], vec![0; 1000], vec![3; 1000], vec![4; 7]].concat());
    assert_eq!(gaps, [(2000..3000, Why::Absent)]);
    assert_eq!(codes(&source), ["SPLIT-PART-MISSING"]);
    let trust = |at| read(&*source.bytes, at, &mut [0]).trust;
    assert_eq!((trust(1999), trust(3000)), (Trust::Sound, Trust::Inferred), "what is placed by inference");
}

#[test]
fn a_short_part_is_truncated() {
    let dir = folder(&[("d.001", 1000), ("d.002", 600), ("d.003", 1000), ("d.004", 1000)]);
    let source = opened(&dir, "d.001");
    let (bytes, gaps) = content(&source);
    assert_eq!(bytes, [vec![1; 1000], vec![2; 600], vec![0; 400], vec![3; 1000], vec![4; 1000]].concat());
    assert_eq!(gaps, [(1600..2000, Why::Truncated)]);
    assert_eq!(codes(&source), ["SPLIT-PART-SHORT"]);
    let dir = folder(&[("d.001", 1000), ("d.002", 0), ("d.003", 1000)]);
    assert_eq!(content(&opened(&dir, "d.001")).1, [(1000..2000, Why::Truncated)]);
}

#[test]
fn files_that_only_look_like_a_set_stay_alone() {
    let dir = folder(&[("log.001", 100), ("log.002", 300), ("a.001", 10), ("b.001", 5), ("b.100", 5)]);
    let uneven = opened(&dir, "log.001");
    assert_eq!((uneven.kind.clone(), uneven.len, codes(&uneven)), (SourceKind::File, 100, vec!["SPLIT-UNEVEN"]));
    for name in ["a.001", "b.001"] {
        let source = opened(&dir, name);
        assert_eq!((source.kind.clone(), codes(&source)), (SourceKind::File, vec![]), "{name}");
    }
}

#[test]
fn a_later_part_is_itself_and_says_so() {
    let dir = folder(&[("d.001", 1000), ("d.002", 1000), ("d.003", 10)]);
    let source = opened(&dir, "d.002");
    assert_eq!((source.kind.clone(), source.len), (SourceKind::File, 1000));
    assert_eq!(codes(&source), ["SPLIT-LATER-PART"]);
    assert!(source.findings[0].text.contains("give d.001"), "{}", source.findings[0].text);
}

#[test]
fn a_link_is_no_part() {
    let dir = folder(&[("d.001", 10), ("secret", 10), ("d.003", 10)]);
    std::os::unix::fs::symlink("secret", dir.path().join("d.002")).unwrap();
    let source = opened(&dir, "d.001");
    assert_eq!(content(&source).1, [(10..20, Why::Absent)]);
}

#[test]
fn names_count_in_their_own_digits() {
    let name = |text: &str| PartName::parse(OsStr::new(text));
    let last = name("x.az").unwrap();
    assert_eq!(last.with_number(last.number + 1), "x.ba");
    assert_eq!(name("x.009").unwrap().with_number(10), "x.010");
    for text in ["x.1", "x", ".001", "x.img", "x.0o1", "x.1234567", "x.AA"] {
        assert!(name(text).is_none_or(|name| !name.is_first()), "{text}");
    }
}
