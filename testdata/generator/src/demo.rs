//! The demo image: a datastore with a virtual machine and its snapshots, a second one, and a deleted third.

use crate::gpt::{self, Guid, Partition};
use crate::guest::Guest;
use crate::hex;
use crate::json::Json;
use crate::qcow2::{self, Compression, Options};
use crate::samples;
use crate::vmdk::{self, Descriptor, Order};
use crate::vmfs::{Allocation, Content, Layout, Version, Vmfs, VmfsSpec};
use crate::vmx::{Machine, Snapshot};
use crate::{Device, iso};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::Path;

const MIB: u64 = 1 << 20;
const DISK: u64 = 8 << 30;
const PARTITION: u64 = MIB;
/// 2025-03-01 09:00:00 UTC.
const START: u64 = 1_740_819_600;
const DAY: u64 = 86_400;

/// A guest disk at one moment, and the files in it.
struct State {
    disk: Device,
    files: BTreeMap<String, Vec<u8>>,
}

/// Writes `datastore.qcow2` and `EXPECTED.json` into `dir`.
pub fn write(dir: &Path) -> io::Result<()> {
    fs::create_dir_all(dir)?;
    let scratch = dir.join(".scratch");
    fs::create_dir_all(&scratch)?;
    let made = build(&scratch);
    fs::remove_dir_all(&scratch)?;
    let (image, expected) = made?;
    fs::write(dir.join("datastore.qcow2"), image)?;
    fs::write(dir.join("EXPECTED.json"), expected.to_string())
}

fn build(scratch: &Path) -> io::Result<(Vec<u8>, Json)> {
    let partition = DISK - 2 * MIB;
    let mut store = Vmfs::new(VmfsSpec { seed: 1, ..VmfsSpec::new(Version::Six, partition) });
    let web = web_states(scratch)?;
    let db = db_state(scratch)?;
    let mail = mail_state(scratch)?;
    store.set_time(START as u32);
    store.mkdir("iso");
    let readme: &[u8] = b"Guest tools, demo edition.\n";
    store.file("iso/tools.iso", Content::bytes(iso::image("TOOLS", &[("README.TXT", readme)])), &Layout::default());
    add_web(&mut store, &web);
    add_db(&mut store, &db);
    add_and_delete_mail(&mut store, &mail);
    let (files, gone) = (store.expected(), store.deleted().to_vec());
    let uuid = store.uuid();
    let volume = store.finish().remove(0);

    let mut disk = Device::new(DISK);
    let parts = [Partition { kind: gpt::TYPE_VMFS, name: "", start: PARTITION, len: partition }];
    gpt::write_gpt(&mut disk, Guid::seeded(0xDE30), &parts);
    disk.embed(PARTITION, &volume);
    let image = qcow2::write(&disk, &Options { compression: Compression::Deflate, ..Options::default() });

    let states = [
        ("web01/web01.vmdk", "before upgrade", &web[0]),
        ("web01/web01-000001.vmdk", "after upgrade", &web[1]),
        ("web01/web01-000002.vmdk", "current", &web[2]),
        ("db01/db01.vmdk", "current", &db),
    ];
    let expected = Json::object([
        ("image", Json::text("datastore.qcow2")),
        ("sha256_of_raw", Json::text(Content::device(&disk).sha256())),
        ("partition_offset", Json::Number(PARTITION)),
        ("partition_length", Json::Number(partition)),
        ("volume_uuid", Json::text(uuid)),
        ("label", Json::text("datastore1")),
        ("entries", Json::List(files.iter().map(samples::entry).collect())),
        ("disks", Json::List(states.iter().map(|(path, state, s)| disk_json(path, state, s)).collect())),
        ("deleted", Json::List(gone.iter().map(samples::gone).collect())),
        ("deleted_disk", disk_json("mail01/mail01.vmdk", "deleted", &mail)),
    ]);
    Ok((image, expected))
}

fn disk_json(path: &str, state: &str, s: &State) -> Json {
    let files = s.files.iter().map(|(name, bytes)| {
        Json::object([
            ("path", Json::text(name)),
            ("size", Json::Number(bytes.len() as u64)),
            ("sha256", Json::text(sha256(bytes))),
        ])
    });
    Json::object([
        ("path", Json::text(path)),
        ("state", Json::text(state)),
        ("size", Json::Number(s.disk.len())),
        ("sha256", Json::text(Content::device(&s.disk).sha256())),
        ("files", Json::List(files.collect())),
    ])
}

fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// The three moments of the web server's disk: an MBR and one ext4 partition.
fn web_states(scratch: &Path) -> io::Result<Vec<State>> {
    const LEN: u64 = 128 * MIB;
    let mut guest = Guest::new(scratch, LEN - MIB, "webroot", 1, START)?;
    let state = |guest: &Guest| -> io::Result<State> {
        let mut disk = Device::new(LEN);
        gpt::write_mbr(&mut disk, 0x7765_6230, &[(gpt::MBR_LINUX, MIB, LEN - MIB)]);
        disk.embed(MIB, &guest.device()?);
        Ok(State { disk, files: guest.files().clone() })
    };
    let mut files = vec![
        text("etc/hostname", "web01\n"),
        text("etc/os-release", "NAME=\"Demo Linux\"\nVERSION=\"1.0\"\nID=demo\n"),
        text("etc/fstab", "UUID=5b1d7c20-9a4e-4f63-8c11-2e7d903fa601 / ext4 defaults 0 1\n"),
        text("srv/www/index.html", &page("Welcome", "Our shop opens on Monday.")),
        text("srv/www/about.html", &page("About us", "A family business since 1998.")),
        ("srv/www/logo.png".into(), png()),
        ("var/log/access.log".into(), log("GET /index.html", 0, 3000)),
        ("var/lib/shop/orders.csv".into(), orders(1, 400)),
    ];
    for n in 1..=30 {
        files.push(text(&format!("home/alice/notes/note-{n:02}.txt"), &note("alice", n)));
    }
    guest.change(START + 600, &files, &[])?;
    let base = state(&guest)?;
    let upgrade = [
        text("etc/os-release", "NAME=\"Demo Linux\"\nVERSION=\"2.0\"\nID=demo\n"),
        text("srv/www/index.html", &page("Welcome back", "The shop is open. New: upgraded to version 2.0.")),
        text("var/log/upgrade.log", &"upgraded one more package\n".repeat(500)),
        ("var/lib/shop/orders.csv".into(), orders(1, 900)),
    ];
    guest.change(START + 10 * DAY, &upgrade, &["home/alice/notes/note-07.txt", "srv/www/about.html"])?;
    let after = state(&guest)?;
    let today = [
        text("srv/www/index.html", &page("Sale", "Everything must go: 20 per cent off.")),
        text("home/alice/notes/note-31.txt", &note("alice", 31)),
        ("var/log/access.log".into(), log("GET /sale.html", 3000, 3000)),
    ];
    guest.change(START + 20 * DAY, &today, &["home/alice/notes/note-08.txt"])?;
    Ok(vec![base, after, state(&guest)?])
}

/// The database server's disk: a GPT and one ext4 partition.
fn db_state(scratch: &Path) -> io::Result<State> {
    const LEN: u64 = 96 * MIB;
    let mut guest = Guest::new(scratch, LEN - 2 * MIB, "dbroot", 2, START)?;
    let mut files = vec![
        text("etc/hostname", "db01\n"),
        ("var/lib/db/customers.csv".into(), orders(5000, 2000)),
        ("var/log/db.log".into(), log("checkpoint complete", 0, 2000)),
    ];
    for n in 1..=12 {
        files.push(text(&format!("var/backups/dump-2025-{n:02}.sql"), &note("dump", n)));
    }
    guest.change(START + 900, &files, &[])?;
    let mut disk = Device::new(LEN);
    let root = Partition { kind: gpt::TYPE_LINUX, name: "root", start: MIB, len: LEN - 2 * MIB };
    gpt::write_gpt(&mut disk, Guid::seeded(0xDB01), &[root]);
    disk.embed(MIB, &guest.device()?);
    Ok(State { disk, files: guest.files().clone() })
}

/// The mail server's disk. It is long enough for a pointer block, which deletion leaves behind.
fn mail_state(scratch: &Path) -> io::Result<State> {
    const LEN: u64 = 512 * MIB;
    let mut guest = Guest::new(scratch, LEN - MIB, "mailroot", 3, START)?;
    let mut files = vec![text("etc/hostname", "mail01\n")];
    for n in 1..=40 {
        files.push(text(&format!("var/mail/bob/{n:03}.eml"), &letter(n)));
    }
    guest.change(START + 1200, &files, &[])?;
    let mut disk = Device::new(LEN);
    gpt::write_mbr(&mut disk, 0x6D61_696C, &[(gpt::MBR_LINUX, MIB, LEN - MIB)]);
    disk.embed(MIB, &guest.device()?);
    Ok(State { disk, files: guest.files().clone() })
}

fn put(store: &mut Vmfs, path: &str, content: impl Into<Vec<u8>>) {
    store.file(path, Content::bytes(content), &Layout::default());
}

fn add_web(store: &mut Vmfs, states: &[State]) {
    let len = states[0].disk.len();
    let machine = Machine { name: "web01", disk: "web01-000002.vmdk", guest: "ubuntu-64", memory: 2048, number: 1 };
    let snapshots = [
        Snapshot { name: "before upgrade", disk: "web01.vmdk", time: START + 10 * DAY - 60 },
        Snapshot { name: "after upgrade", disk: "web01-000001.vmdk", time: START + 10 * DAY + 3600 },
    ];
    store.set_time(START as u32 + 300);
    store.mkdir("web01");
    store.file("web01/web01-flat.vmdk", Content::device(&states[0].disk), &Layout::default());
    put(store, "web01/web01.vmdk", Descriptor::flat(len, "web01-flat.vmdk", true, 101).text());
    put(store, "web01/web01.nvram", nvram(1));
    let vmxf = "<?xml version=\"1.0\"?>\n<Foundry>\n<VM><VMId type=\"string\">web01</VMId></VM></Foundry>\n";
    put(store, "web01/web01.vmxf", vmxf);
    for (n, snapshot) in (1usize..).zip(&snapshots) {
        store.set_time(snapshot.time as u32);
        let name = format!("web01-{n:06}");
        let grains = vmdk::difference(&states[n - 1].disk, &states[n].disk, 4096);
        let order = if n == 1 { Order::Ascending } else { Order::Descending };
        let file = format!("{name}-sesparse.vmdk");
        let extent = Device::from_bytes(&vmdk::sesparse(len, &grains, order));
        store.file(&format!("web01/{file}"), Content::device(&extent), &Layout::default());
        let text = Descriptor::delta(len, "SESPARSE", &file, snapshot.disk, 101 + n as u64).text();
        put(store, &format!("web01/{name}.vmdk"), text);
        put(store, &format!("web01/web01-Snapshot{n}.vmsn"), *b"\xD2\xBE\xD2\xBE\x08\0\0\0\0\0\0\0");
    }
    put(store, "web01/web01.vmsd", machine.vmsd(&snapshots));
    put(store, "web01/web01.vmx", machine.vmx());
    let chain = [
        ("web01-000002.vmdk", "web01-000002-sesparse.vmdk", len / 512),
        ("web01-000001.vmdk", "web01-000001-sesparse.vmdk", len / 512),
        ("web01.vmdk", "web01-flat.vmdk", len / 512),
    ];
    put(store, "web01/vmware.log", machine.log(&chain));
}

fn add_db(store: &mut Vmfs, state: &State) {
    let len = state.disk.len();
    let machine = Machine { name: "db01", disk: "db01.vmdk", guest: "ubuntu-64", memory: 4096, number: 2 };
    store.set_time(START as u32 + 2 * DAY as u32);
    store.mkdir("db01");
    let eager = Layout::default().allocation(Allocation::EagerThick);
    store.file("db01/db01-flat.vmdk", Content::device(&state.disk), &eager);
    put(store, "db01/db01.vmdk", Descriptor::flat(len, "db01-flat.vmdk", false, 201).text());
    put(store, "db01/db01.nvram", nvram(2));
    put(store, "db01/db01.vmsd", ".encoding = \"UTF-8\"\n");
    put(store, "db01/db01.vmx", machine.vmx());
    put(store, "db01/vmware.log", machine.log(&[("db01.vmdk", "db01-flat.vmdk", len / 512)]));
}

fn add_and_delete_mail(store: &mut Vmfs, state: &State) {
    let len = state.disk.len();
    let machine = Machine { name: "mail01", disk: "mail01.vmdk", guest: "ubuntu-64", memory: 1024, number: 3 };
    store.set_time(START as u32 + 3 * DAY as u32);
    store.mkdir("mail01");
    store.file("mail01/mail01-flat.vmdk", Content::device(&state.disk), &Layout::default());
    put(store, "mail01/mail01.vmdk", Descriptor::flat(len, "mail01-flat.vmdk", true, 301).text());
    put(store, "mail01/mail01.nvram", nvram(3));
    put(store, "mail01/mail01.vmsd", ".encoding = \"UTF-8\"\n");
    put(store, "mail01/mail01.vmx", machine.vmx());
    put(store, "mail01/vmware.log", machine.log(&[("mail01.vmdk", "mail01-flat.vmdk", len / 512)]));
    store.set_time(START as u32 + 21 * DAY as u32);
    for path in store.expected().into_iter().map(|e| e.path).filter(|p| p.starts_with("mail01/")) {
        store.delete_as_esxi(&path);
    }
    store.delete_as_esxi("mail01");
}

fn text(path: &str, text: &str) -> (String, Vec<u8>) {
    (path.into(), text.into())
}

fn page(title: &str, line: &str) -> String {
    format!("<!DOCTYPE html>\n<html>\n<head><title>{title}</title></head>\n<body><p>{line}</p></body>\n</html>\n")
}

fn note(who: &str, n: u32) -> String {
    let mut out = format!("Note {n} by {who}\n\n");
    for line in 1..=n * 7 {
        let _ = writeln!(out, "{who} {n}.{line}: remember item {} of the list", line * 31 % 97);
    }
    out
}

fn letter(n: u32) -> String {
    let body = note("bob", n);
    format!(
        "From: sender{n}@example.org\nTo: bob@example.org\nSubject: Letter {n}\n\
         Date: Sat, 01 Mar 2025 09:{:02}:00 +0000\nMessage-ID: <{n}@example.org>\n\n{body}",
        n % 60
    )
}

fn log(what: &str, from: u32, count: u32) -> Vec<u8> {
    (from..from + count).flat_map(|n| format!("192.0.2.{} - {n:06} {what}\n", n * 7 % 250).into_bytes()).collect()
}

fn orders(from: u32, count: u32) -> Vec<u8> {
    let rows = (from..from + count).map(|n| format!("{n},customer{},{}.00\n", n * 17 % 503, n * 13 % 211));
    std::iter::once("number,customer,amount\n".to_string()).chain(rows).collect::<String>().into_bytes()
}

/// A PNG of 1 × 1 pixel.
fn png() -> Vec<u8> {
    let mut out = b"\x89PNG\r\n\x1A\n".to_vec();
    let mut zlib = flate2::Compress::new(flate2::Compression::best(), true);
    let mut pixel = Vec::with_capacity(64);
    let status = zlib.compress_vec(&[0, 0xFF, 0x80, 0], &mut pixel, flate2::FlushCompress::Finish);
    assert!(matches!(status, Ok(flate2::Status::StreamEnd)), "a pixel compresses at once: {status:?}");
    for (kind, data) in
        [(b"IHDR", &b"\0\0\0\x01\0\0\0\x01\x08\x02\0\0\0"[..]), (b"IDAT", &pixel[..]), (b"IEND", &b""[..])]
    {
        out.extend((data.len() as u32).to_be_bytes());
        let start = out.len();
        out.extend(kind);
        out.extend(data);
        let crc = crc32fast::hash(&out[start..]);
        out.extend(crc.to_be_bytes());
    }
    out
}

fn nvram(number: u8) -> Vec<u8> {
    let mut bytes = vec![0; 8684];
    bytes[..8].copy_from_slice(b"MRVN\x01\0\0\0");
    bytes[16] = number;
    bytes
}
