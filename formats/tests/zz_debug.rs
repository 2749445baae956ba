#![allow(
    clippy::all,
    clippy::pedantic,
    missing_docs,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::arithmetic_side_effects,
    clippy::as_conversions,
    clippy::indexing_slicing,
    reason = "x"
)]
mod disk_support;
use disk_support::*;
use vdrecover_testdata::Device;
#[test]
fn dbg() {
    let folder = Folder::new();
    let mut d = Device::new(40 << 20);
    for n in 0..24u64 {
        d.write((40 << 20) / 24 * n / 512 * 512, &vec![0x5a + n as u8; 150_000]);
    }
    folder.write("plain.raw", &d.read(0, 40 << 20));
    folder.run(
        "qemu-img",
        &["convert", "-O", "qcow2", "-o", "extended_l2=on,cluster_size=16k", "-f", "raw", "plain.raw", "a"],
    );
    folder.run("qemu-img", &["snapshot", "-c", "then", "a"]);
    folder.run("qemu-io", &["-f", "qcow2", "-c", "write -P 77 20M 64k", "a"]);
    let mut b = std::fs::read(folder.path("a")).unwrap();
    b[..512].fill(0);
    let b = memory(b);
    let mut clues = Vec::new();
    let sw = vdrecover_formats::disk::qcow2::FORMAT.sweep.unwrap();
    let (w, _) = vdrecover_formats::read_vec(&*b, 0, b.len() as usize);
    (sw.look)(&vdrecover_formats::format::Window { at: 0, bytes: &w, own: w.len() }, &mut |c| clues.push(c));
    println!("{} clues", clues.len());
    let o = (sw.build)(&b, &memo(), &clues).unwrap();
    println!("{:?}\n{:?}", o.facts, o.findings);
    let l = match (o.join)(&vec![None; o.wants.len()]).unwrap() {
        vdrecover_formats::Content::Disks(d) => d[0].bytes.clone(),
        _ => panic!(),
    };
    println!("{:?}", &map(&l)[..8.min(map(&l).len())]);
}
