//! The text files beside a disk: virtual machine configuration (`.vmx`), snapshot dictionary (`.vmsd`) and log.

use std::fmt::Write;

/// A virtual machine with one disk.
#[derive(Clone, Debug)]
pub struct Machine<'a> {
    /// Its name.
    pub name: &'a str,
    /// The descriptor of the disk that it runs on.
    pub disk: &'a str,
    /// For example `ubuntu-64`.
    pub guest: &'a str,
    /// Memory in MiB.
    pub memory: u32,
    /// Last byte of its UUID and of its network address.
    pub number: u8,
}

/// One snapshot.
#[derive(Clone, Debug)]
pub struct Snapshot<'a> {
    /// Its name.
    pub name: &'a str,
    /// The descriptor that froze when it was taken.
    pub disk: &'a str,
    /// When it was taken, Unix seconds.
    pub time: u64,
}

impl Machine<'_> {
    /// The `.vmx` file.
    #[must_use]
    pub fn vmx(&self) -> String {
        let Self { name, disk, guest, memory, number } = self;
        let mut out = String::from(".encoding = \"UTF-8\"\n");
        for (key, value) in [
            ("config.version", "8"),
            ("virtualHW.version", "19"),
            ("nvram", &format!("{name}.nvram")),
            ("svga.present", "TRUE"),
            ("vmci0.present", "TRUE"),
            ("displayName", name),
            ("extendedConfigFile", &format!("{name}.vmxf")),
            ("numvcpus", "2"),
            ("memSize", &memory.to_string()),
            ("scsi0.virtualDev", "pvscsi"),
            ("scsi0.present", "TRUE"),
            ("scsi0:0.deviceType", "scsi-hardDisk"),
            ("scsi0:0.fileName", disk),
            ("scsi0:0.present", "TRUE"),
            ("ethernet0.virtualDev", "vmxnet3"),
            ("ethernet0.networkName", "VM Network"),
            ("ethernet0.addressType", "vpx"),
            ("ethernet0.generatedAddress", &format!("00:50:56:a1:b2:{number:02x}")),
            ("ethernet0.present", "TRUE"),
            ("guestOS", guest),
            ("uuid.bios", &format!("42 21 0b 7e 5c 3a 90 14-a8 6f 2d 11 73 c0 55 {number:02x}")),
            ("vc.uuid", &format!("50 21 7d 1a c4 00 3b 52-9e 61 f8 20 3d 44 91 {number:02x}")),
            ("tools.syncTime", "FALSE"),
        ] {
            let _ = writeln!(out, "{key} = \"{value}\"");
        }
        out
    }

    /// The `.vmsd` file of a line of snapshots, oldest first.
    #[must_use]
    pub fn vmsd(&self, snapshots: &[Snapshot<'_>]) -> String {
        let mut out = String::from(".encoding = \"UTF-8\"\n");
        let _ = writeln!(out, "snapshot.lastUID = \"{}\"", snapshots.len());
        let _ = writeln!(out, "snapshot.current = \"{}\"", snapshots.len());
        for (n, snapshot) in snapshots.iter().enumerate() {
            let micros = snapshot.time * 1_000_000;
            let _ = writeln!(out, "snapshot{n}.uid = \"{}\"", n + 1);
            let _ = writeln!(out, "snapshot{n}.filename = \"{}-Snapshot{}.vmsn\"", self.name, n + 1);
            if n > 0 {
                let _ = writeln!(out, "snapshot{n}.parent = \"{n}\"");
            }
            let _ = writeln!(out, "snapshot{n}.displayName = \"{}\"", snapshot.name);
            let _ = writeln!(out, "snapshot{n}.createTimeHigh = \"{}\"", micros >> 32);
            // The low half is written as a signed number.
            let _ = writeln!(out, "snapshot{n}.createTimeLow = \"{}\"", (micros as u32).cast_signed());
            let _ = writeln!(out, "snapshot{n}.numDisks = \"1\"");
            let _ = writeln!(out, "snapshot{n}.disk0.fileName = \"{}\"", snapshot.disk);
            let _ = writeln!(out, "snapshot{n}.disk0.node = \"scsi0:0\"");
        }
        let _ = writeln!(out, "snapshot.numSnapshots = \"{}\"", snapshots.len());
        out
    }

    /// A short `vmware.log` that names every disk of the chain, from the running one to the base.
    #[must_use]
    pub fn log(&self, chain: &[(&str, &str, u64)]) -> String {
        let mut out = String::new();
        let mut line = |text: &str| {
            let _ = writeln!(out, "2025-03-01T09:00:00.000Z In(05) vmx - {text}");
        };
        line("Log for VMware ESX pid=2100463 version=8.0.3 build=build-24022510 option=Release");
        line(&format!("DICT             displayName = \"{}\"", self.name));
        line(&format!("DICT        scsi0:0.fileName = \"{}\"", self.disk));
        for (disk, extent, sectors) in chain {
            line(&format!("DISKLIB-DSCPTR: Opened [0]: \"{extent}\" (0xe)"));
            line(&format!("DISKLIB-LINK  : Opened '{disk}' (0xe): vmfs, {sectors} sectors / {} MB.", sectors / 2048));
        }
        let (cids, parent) = (crate::vmdk::ESXI_CID, crate::vmdk::NO_PARENT);
        line(&format!("DISKLIB-CHAIN : \"{}\" : opened, base parentCID {parent:08x}, CID {cids:08x}.", self.disk));
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn snapshots_name_their_parents_and_disks() {
        let machine = Machine { name: "vm", disk: "vm-000001.vmdk", guest: "ubuntu-64", memory: 512, number: 1 };
        let text = machine.vmsd(&[
            Snapshot { name: "first", disk: "vm.vmdk", time: 1_740_819_600 },
            Snapshot { name: "second", disk: "vm-000001.vmdk", time: 1_740_819_700 },
        ]);
        assert!(text.contains("snapshot1.parent = \"1\"\nsnapshot1.displayName = \"second\"\n"), "{text}");
        assert!(text.contains("snapshot0.disk0.fileName = \"vm.vmdk\"\n"), "{text}");
        let micros = 1_740_819_600_000_000u64;
        assert!(text.contains(&format!("snapshot0.createTimeHigh = \"{}\"\n", micros >> 32)), "{text}");
    }
}
