//! OVA and other tar archives against GNU tar, and one outcome for each damage.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::arithmetic_side_effects,
    clippy::as_conversions,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    missing_docs,
    unreachable_pub,
    reason = "tests"
)]

mod disk_support;

use disk_support::*;
use std::ops::ControlFlow;
use std::sync::Arc;
use vdrecover_formats::disk::ova::FORMAT;
use vdrecover_formats::{Bytes, Content, Kind, Note, Opened, Tree, Trust, read_vec};
use vdrecover_testdata::ova::{Member, archive, write};

fn opened(image: &Bytes) -> (Opened, Arc<dyn Tree>) {
    let opened = (FORMAT.open)(image, &memo()).unwrap();
    match opened.join_alone().unwrap() {
        Content::Tree(tree) => (opened, tree),
        other => panic!("{other:?}"),
    }
}

fn codes(image: &Bytes) -> Vec<&'static str> {
    opened(image).0.findings.iter().map(|finding| finding.code).collect()
}

/// All paths with what they hold; a folder holds nothing.
fn listing(tree: &Arc<dyn Tree>) -> Vec<(String, Kind, Vec<u8>)> {
    let mut found = Vec::new();
    let mut todo = vec![(tree.root(), String::new())];
    while let Some((dir, path)) = todo.pop() {
        tree.list(dir, 0, &mut |entry| {
            let entry = entry.unwrap();
            let path = format!("{path}{}", String::from_utf8_lossy(&entry.name));
            assert_eq!(tree.lookup(dir, &entry.name).unwrap().unwrap().kind, entry.kind);
            if entry.kind == Kind::Dir {
                todo.push((entry.id, format!("{path}/")));
            }
            let bytes = tree.open(entry.id).map_or(Vec::new(), |layer| {
                check(&layer);
                read_vec(&*layer, 0, layer.len() as usize).0
            });
            found.push((path, entry.kind, bytes));
            ControlFlow::Continue(())
        })
        .unwrap();
    }
    found.sort_by(|a, b| a.0.cmp(&b.0));
    found
}

fn audited(tree: &Arc<dyn Tree>) -> Vec<String> {
    let mut found = Vec::new();
    for part in 0..tree.parts() {
        let _ = tree.audit(part, &mut |note| {
            if let Note::Finding(finding) = note {
                found.push(format!("{}: {}", finding.code, finding.text));
            }
            ControlFlow::Continue(())
        });
    }
    found
}

fn machine() -> Vec<u8> {
    write("web", &[("web-disk1.vmdk".to_owned(), sample(100_000)), ("web-disk2.vmdk".to_owned(), sample(3000))])
}

#[test]
fn members_are_what_was_put_in() {
    let image = memory(machine());
    assert_eq!((FORMAT.probe)(&*image), vdrecover_formats::format::score::PROVEN);
    let (opened, tree) = opened(&image);
    assert_eq!((opened.findings.len(), opened.link.name.as_deref()), (0, Some(&b"web"[..])));
    let names: Vec<_> = listing(&tree).into_iter().map(|(path, ..)| path).collect();
    assert_eq!(names, ["web-disk1.vmdk", "web-disk2.vmdk", "web.mf", "web.ovf"]);
    assert!(listing(&tree)[0].2 == sample(100_000));
    assert_eq!(audited(&tree), [""; 0]);
    let node = tree.node(tree.lookup(tree.root(), b"web.ovf").unwrap().unwrap().id).unwrap();
    assert_eq!(
        (node.mode, node.uid, node.modified, node.trust),
        (0o644, 64, Some(1_700_000_000_000_000_000), Trust::Sound)
    );
}

#[test]
fn archives_of_gnu_tar() {
    if !has("tar", "archives_of_gnu_tar") {
        return;
    }
    let folder = Folder::new();
    let long = format!("{}/{}", "folder".repeat(10), "n".repeat(180));
    std::fs::create_dir_all(folder.path(&"folder".repeat(10))).unwrap();
    folder.write("short", b"short");
    folder.write("disk", &sample(70_000));
    folder.write(&long, b"long");
    std::os::unix::fs::symlink("short", folder.path("link")).unwrap();
    std::fs::hard_link(folder.path("disk"), folder.path("same")).unwrap();
    for format in ["gnu", "pax"] {
        let args =
            [&format!("--format={format}"), "-cf", "all.tar", "short", "disk", "same", "link", &"folder".repeat(10)];
        folder.run("tar", &args);
        let image = folder.load("all.tar");
        assert_eq!(codes(&image), [""; 0], "{format}");
        let (_, tree) = opened(&image);
        let want = [
            ("disk".to_owned(), Kind::File, sample(70_000)),
            ("folder".repeat(10), Kind::Dir, Vec::new()),
            (long.clone(), Kind::File, b"long".to_vec()),
            ("link".to_owned(), Kind::Symlink, b"short".to_vec()),
            ("same".to_owned(), Kind::File, sample(70_000)),
            ("short".to_owned(), Kind::File, b"short".to_vec()),
        ];
        assert!(listing(&tree) == want, "{format}");
    }
    // A disk of more than 8 GiB has a size that octal digits do not hold.
    for format in ["gnu", "pax"] {
        std::fs::File::create(folder.path("large")).unwrap().set_len(9 << 30).unwrap();
        let tar = std::process::Command::new("sh")
            .args(["-c", &format!("tar --format={format} -c large | head -c 4096")])
            .current_dir(&folder.0)
            .output()
            .unwrap();
        let image = memory(tar.stdout);
        let (_, tree) = opened(&image);
        let id = tree.lookup(tree.root(), b"large").unwrap().unwrap().id;
        assert_eq!(tree.node(id).unwrap().len, 9 << 30, "{format}");
        assert_eq!(codes(&image), ["OVA-CUT"], "{format}");
        let layer = tree.open(id).unwrap();
        assert!(map(&layer).last().unwrap().2 == "truncated");
    }
}

#[test]
fn a_changed_member_is_not_what_the_manifest_says() {
    let mut image = machine();
    let at = image.windows(4).position(|window| window == &sample(100_000)[500..504]).unwrap();
    image[at] ^= 1;
    let (opened, tree) = opened(&memory(image.clone()));
    assert_eq!(opened.findings.len(), 0);
    assert_eq!(audited(&tree), ["OVA-DIGEST: web-disk1.vmdk is not what the manifest says: its SHA-256 differs"]);
    // One that is named and not there.
    let gone = write("web", &[("web-disk1.vmdk".to_owned(), sample(3000))]);
    let text = String::from_utf8_lossy(&gone).replacen("SHA256(web-disk1.vmdk)", "SHA256(web-disk7.vmdk)", 1);
    let at = gone.windows(6).position(|window| window == b"SHA256").unwrap();
    let mut bytes = gone.clone();
    let line = at + text[at..].find("disk7").unwrap() + 4;
    bytes[line] = b'7';
    assert_eq!(codes(&memory(bytes)), ["OVA-MEMBER-GONE"]);
}

#[test]
fn a_cut_archive_lists_what_is_there() {
    let whole = machine();
    let (_, tree) = opened(&memory(whole.clone()));
    let start = whole.windows(14).rposition(|window| window == b"web-disk1.vmdk").unwrap();
    let cut = memory(whole[..start + 512 + 40_000].to_vec());
    assert_eq!(codes(&cut), ["OVA-CUT", "OVA-MEMBER-GONE"]);
    let (_, cut_tree) = opened(&cut);
    let id = cut_tree.lookup(cut_tree.root(), b"web-disk1.vmdk").unwrap().unwrap().id;
    let layer = cut_tree.open(id).unwrap();
    assert_eq!(gaps(&layer), [(40_000, 60_000, "truncated".into())]);
    assert!(read_vec(&*layer, 0, 40_000).0 == sample(100_000)[..40_000]);
    assert_eq!(audited(&cut_tree).len(), 1);
    assert_eq!(tree.parts(), 4);
    // Cut between two members.
    let between = archive(&[("a".to_owned(), vec![1; 600]), ("b".to_owned(), vec![2; 600])]);
    assert_eq!(codes(&memory(between[..512 + 1024].to_vec())), ["OVA-END"]);
}

#[test]
fn a_damaged_header_costs_no_bytes() {
    let members: Vec<Member> = ["a", "b", "c"].map(|name| (name.to_owned(), name.as_bytes().repeat(700))).into();
    let whole = archive(&members);
    let second = 512 + 1024;
    let names = |image: &Bytes| listing(&opened(image).1).into_iter().map(|(name, ..)| name).collect::<Vec<_>>();
    // Its size still leads on.
    let mut image = whole.clone();
    image[second + 300] = b'x';
    let image = memory(image);
    assert_eq!((codes(&image), names(&image)), (vec!["OVA-HEADER"], vec!["a".to_owned(), "b".into(), "c".into()]));
    let (_, tree) = opened(&image);
    let trust = |name: &[u8]| tree.node(tree.lookup(tree.root(), name).unwrap().unwrap().id).unwrap().trust;
    assert_eq!((trust(b"a"), trust(b"b"), trust(b"c")), (Trust::Sound, Trust::Doubtful, Trust::Sound));
    // Nothing of it is left.
    let mut image = whole.clone();
    image[second..second + 512].fill(0xEE);
    let image = memory(image);
    assert_eq!((codes(&image), names(&image)), (vec!["OVA-HEADER"], vec!["a".to_owned(), "unnamed-600".into()]));
    // Perhaps it is the header before it that is wrong.
    let (_, tree) = opened(&image);
    assert_eq!(tree.node(tree.lookup(tree.root(), b"a").unwrap().unwrap().id).unwrap().trust, Trust::Doubtful);
    let rest = &listing(&tree)[1].2;
    assert!(rest.starts_with(&b"b".repeat(700)) && rest.len() == whole.len() - second - 512);
}

#[test]
fn two_members_of_one_name_are_doubtful() {
    let members = [("a".to_owned(), vec![1; 10]), ("a".to_owned(), vec![2; 10])];
    let image = memory(archive(&members));
    assert_eq!(codes(&image), ["OVA-TWICE"]);
    let (_, tree) = opened(&image);
    let id = tree.lookup(tree.root(), b"a").unwrap().unwrap().id;
    assert_eq!((tree.node(id).unwrap().trust, listing(&tree).len()), (Trust::Doubtful, 2));
}

#[test]
fn names_stay_in_the_archive() {
    let image = memory(archive(&[("../../etc/passwd".to_owned(), vec![1; 10])]));
    assert_eq!(codes(&image), ["OVA-NAME"]);
    assert_eq!(listing(&opened(&image).1).last().unwrap().0, "etc/passwd");
}

#[test]
fn hostile_archives() {
    let good = machine();
    for at in [0, 124, 512] {
        mutate(&good[at..at + 512], 80, 512, |bytes| {
            let (piece, _) = read_vec(&**bytes, 0, bytes.len() as usize);
            let mut image = good.clone();
            image[at..at + piece.len()].copy_from_slice(&piece);
            let image = memory(image);
            let opened = (FORMAT.open)(&image, &memo()).ok()?;
            let Ok(Content::Tree(tree)) = opened.join_alone() else { return None };
            let _ = (listing_len(&tree), audited(&tree));
            None
        });
    }
    // Many folders in folders.
    let deep = "d/".repeat(48) + "x";
    let (_, tree) = opened(&memory(archive(&[(deep, vec![1])])));
    assert_eq!(listing(&tree).len(), 49);
}

fn listing_len(tree: &Arc<dyn Tree>) -> usize {
    let mut count = 0;
    tree.list(tree.root(), 0, &mut |_| {
        count += 1;
        ControlFlow::Continue(())
    })
    .unwrap();
    count
}
