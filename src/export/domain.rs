//! A virtual machine as a domain of libvirt, for KVM.
//!
//! Source: libvirt's "Domain XML format". What the guest has drivers for decides: Linux has had those of virtio for
//! years, Windows has none until somebody installs them, and boots from SATA; before Vista it has none for SATA either.

use crate::digest::hex;
use std::fmt::Write as _;
use vdrecover_formats::vm::Hardware;

/// What becomes a domain.
#[derive(Clone, Debug)]
pub struct Domain<'a> {
    /// Its name.
    pub name: &'a str,
    /// `guestOS` of VMware.
    pub guest: &'a str,
    /// What it had.
    pub hardware: &'a Hardware,
    /// Its disks, the one that it boots from first.
    pub disks: Vec<DomainDisk>,
}

/// A disk of a domain.
#[derive(Clone, Debug)]
pub struct DomainDisk {
    /// What it is called; for the note where it is missing.
    pub name: String,
    /// The whole path of its image; `None` if it is not there.
    pub path: Option<String>,
    /// `raw`, `qcow2`, `vmdk`.
    pub format: &'static str,
}

/// Memory of a machine whose configuration says nothing: 2 GiB.
const MEMORY: u64 = 2048;

/// What a guest has drivers for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Drivers {
    /// virtio.
    Virtio,
    /// AHCI, and an Intel adapter.
    Sata,
    /// Those of the nineties.
    Ide,
}

impl Drivers {
    fn of(guest: &str) -> Self {
        let guest = guest.to_ascii_lowercase();
        let starts = |words: &[&str]| words.iter().any(|word| guest.starts_with(word));
        if starts(&["winxp", "winnet", "win2000", "winnt", "win9", "win3", "winme", "dos"]) {
            Self::Ide
        } else if ["linux", "ubuntu", "debian", "centos", "rhel", "redhat", "sles", "suse", "fedora", "photon", "rocky"]
            .iter()
            .any(|word| guest.contains(word))
        {
            Self::Virtio
        } else {
            Self::Sata
        }
    }

    fn bus(self) -> (&'static str, &'static str) {
        match self {
            Self::Virtio => ("virtio", "vd"),
            Self::Sata => ("sata", "sd"),
            Self::Ide => ("ide", "hd"),
        }
    }

    fn adapter(self) -> &'static str {
        match self {
            Self::Virtio => "virtio",
            Self::Sata => "e1000e",
            Self::Ide => "rtl8139",
        }
    }
}

impl Domain<'_> {
    /// The whole file.
    #[must_use]
    pub fn xml(&self) -> String {
        let Hardware { memory, cpus, cores, efi, secure_boot, tpm, uuid, adapters, controller: _ } = self.hardware;
        let drivers = Drivers::of(self.guest);
        let windows = self.guest.to_ascii_lowercase().starts_with("win");
        let mut out = String::from("<?xml version='1.0' encoding='UTF-8'?>\n");
        let _ = writeln!(out, "<!-- A machine of VMware, guest {}, written by vdrecover. -->", remark(self.guest));
        let _ = writeln!(out, "<domain type='kvm'>\n  <name>{}</name>", escape(&domain_name(self.name)));
        if let Some(uuid) = uuid {
            let _ = writeln!(out, "  <uuid>{}</uuid>", dashed(uuid));
        }
        if memory.is_none() {
            out.push_str("  <!-- Its configuration does not say how much memory it had. -->\n");
        }
        let _ = writeln!(out, "  <memory unit='MiB'>{}</memory>", memory.unwrap_or(MEMORY));
        let _ = writeln!(out, "  <vcpu>{cpus}</vcpu>");
        let machine = if drivers == Drivers::Ide { "pc" } else { "q35" };
        match (efi, secure_boot) {
            (false, _) => out.push_str("  <os>\n"),
            (true, false) => out.push_str("  <os firmware='efi'>\n"),
            (true, true) => out.push_str(
                "  <os firmware='efi'>\n    <firmware>\n      <feature enabled='yes' name='secure-boot'/>\n    </firmware>\n",
            ),
        }
        let _ = writeln!(out, "    <type arch='x86_64' machine='{machine}'>hvm</type>\n    <boot dev='hd'/>\n  </os>");
        let smm = if *efi && *secure_boot { "<smm state='on'/>" } else { "" };
        let _ = writeln!(out, "  <features><acpi/><apic/>{smm}</features>");
        match (cpus.checked_div(*cores), cpus.checked_rem(*cores)) {
            (Some(sockets @ 1..), Some(0)) => {
                let _ = writeln!(
                    out,
                    "  <cpu mode='host-model'>\n    <topology sockets='{sockets}' cores='{cores}' threads='1'/>\n  </cpu>"
                );
            }
            _ => out.push_str("  <cpu mode='host-model'/>\n"),
        }
        let _ = writeln!(out, "  <clock offset='{}'/>\n  <devices>", if windows { "localtime" } else { "utc" });
        let (bus, letters) = drivers.bus();
        for (number, disk) in self.disks.iter().enumerate() {
            let Some(path) = &disk.path else {
                let _ = writeln!(out, "    <!-- Its disk {} was not there. -->", remark(&disk.name));
                continue;
            };
            let _ = writeln!(
                out,
                "    <disk type='file' device='disk'>\n      <driver name='qemu' type='{}'/>\n      <source file='{}'/>\n      \
                 <target dev='{letters}{}' bus='{bus}'/>\n    </disk>",
                disk.format,
                escape(path),
                letter(number)
            );
        }
        for adapter in adapters {
            if let Some(network) = &adapter.network {
                let _ = writeln!(out, "    <!-- It was on {}. -->", remark(&String::from_utf8_lossy(network)));
            }
            out.push_str("    <interface type='network'>\n");
            // libvirt takes no group address.
            if let Some(mac) = adapter.mac.filter(|mac| mac[0] & 1 == 0) {
                let pairs: Vec<String> = mac.iter().map(|byte| format!("{byte:02x}")).collect();
                let _ = writeln!(out, "      <mac address='{}'/>", pairs.join(":"));
            }
            let _ = writeln!(
                out,
                "      <source network='default'/>\n      <model type='{}'/>\n    </interface>",
                drivers.adapter()
            );
        }
        if *tpm {
            out.push_str("    <!-- It had a TPM. What that held is not here: have the recovery keys ready. -->\n");
        }
        out.push_str(
            "    <input type='tablet' bus='usb'/>\n    <graphics type='vnc'/>\n    <video><model type='vga'/></video>\n  \
             </devices>\n</domain>\n",
        );
        out
    }
}

/// libvirt takes no slash and no line end in a name, and none that is empty.
fn domain_name(name: &str) -> String {
    let name: String = name.chars().map(|c| if c == '/' || c.is_control() { '_' } else { c }).collect();
    if name.trim().is_empty() { "vm".to_owned() } else { name }
}

/// Text that XML allows and nothing in it means something else. What XML has no way to write becomes `U+FFFD`.
pub(crate) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '\'' => out.push_str("&apos;"),
            '"' => out.push_str("&quot;"),
            '\t' | '\n' | '\r' => {
                let _ = write!(out, "&#{};", u32::from(c));
            }
            '\0'..='\x1F' | '\u{FFFE}' | '\u{FFFF}' => out.push('\u{FFFD}'),
            c => out.push(c),
        }
    }
    out
}

/// As [`escape`], inside of a comment, which two dashes would end.
fn remark(text: &str) -> String {
    escape(text).replace("--", "- -").trim_end_matches('-').to_owned()
}

fn dashed(uuid: &[u8; 16]) -> String {
    let digits = hex(uuid);
    [0..8, 8..12, 12..16, 16..20, 20..32].map(|range| &digits[range]).join("-")
}

/// `a` to `z`, then `aa` and on.
fn letter(number: usize) -> String {
    let own = char::from(b'a' + u8::try_from(number % 26).unwrap_or(0));
    match number / 26 {
        0 => own.to_string(),
        more => format!("{}{own}", letter(more - 1)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vdrecover_formats::vm::Adapter;

    fn xml(guest: &str, hardware: &Hardware) -> String {
        let path = Some("/a & b/d.qcow2".to_owned());
        let disks = vec![
            DomainDisk { name: "d".into(), path, format: "qcow2" },
            DomainDisk { name: "x-->".into(), path: None, format: "qcow2" },
        ];
        Domain { name: "a<b>/c", guest, hardware, disks }.xml()
    }

    #[test]
    fn guests_get_what_they_have_drivers_for() {
        let adapters =
            vec![Adapter { mac: Some([0, 0x50, 0x56, 1, 2, 3]), model: None, network: Some(b"Prod <1>".to_vec()) }];
        let hardware =
            Hardware { cpus: 4, cores: 2, efi: true, adapters, uuid: Some([0x42; 16]), ..Hardware::default() };
        let linux = xml("ubuntu-64", &hardware);
        for part in [
            "<name>a&lt;b&gt;_c</name>",
            "<uuid>42424242-4242-4242-4242-424242424242</uuid>",
            "<topology sockets='2' cores='2' threads='1'/>",
            "<os firmware='efi'>",
            "<source file='/a &amp; b/d.qcow2'/>",
            "<target dev='vda' bus='virtio'/>",
            "<mac address='00:50:56:01:02:03'/>",
            "<model type='virtio'/>",
            "<!-- It was on Prod &lt;1&gt;. -->",
            "<!-- Its disk x- -&gt; was not there. -->",
            "<clock offset='utc'/>",
        ] {
            assert!(linux.contains(part), "{part}: {linux}");
        }
        let windows = xml("windows2019srv-64", &hardware);
        assert!(windows.contains("<target dev='sda' bus='sata'/>") && windows.contains("<model type='e1000e'/>"));
        assert!(windows.contains("<clock offset='localtime'/>"));
        assert!(
            xml("longhorn-64", &hardware).contains("bus='sata'") && xml("freebsd", &hardware).contains("bus='sata'")
        );
        let old = xml("winNetStandard", &Hardware::default());
        assert!(old.contains("<target dev='hda' bus='ide'/>") && old.contains("machine='pc'"));
    }

    #[test]
    fn drives_have_letters() {
        assert_eq!(
            (letter(0), letter(25), letter(26), letter(27 + 25)),
            ("a".into(), "z".into(), "aa".into(), "ba".into())
        );
        assert_eq!(escape("\u{1}\n"), "\u{FFFD}&#10;");
        assert_eq!(domain_name(" \t"), " _");
        assert_eq!(domain_name(""), "vm");
    }
}
