//! The description in an OVA: a machine, its disks and what it ran on.
//!
//! Source: DMTF DSP0243 1.1 (OVF), with the names that VMware gives to its controllers and adapters. Elements of an item
//! stand in the order of the alphabet: the schema asks for it.

use crate::export::domain::escape;
use std::collections::BTreeSet;
use std::fmt::Write as _;
use vdrecover_formats::vm::Hardware;

/// A machine that goes into an OVA.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Appliance {
    /// Its name.
    pub name: String,
    /// `guestOS` of VMware; empty where it is not known.
    pub guest: String,
    /// What it had.
    pub hardware: Hardware,
    /// Length of each disk: whole sectors.
    pub disks: Vec<u64>,
}

/// Memory of a machine whose configuration says nothing: 2 GiB.
const MEMORY: u64 = 2048;
/// Disks on a controller: 16 places, one of which the controller has itself.
const PER_CONTROLLER: usize = 15;
const OWN_PLACE: usize = 7;
/// Longest part of a name that names of members begin with.
const STEM: usize = 60;

impl Appliance {
    /// What the names of all members begin with: nothing that a tool could take for anything else.
    pub(crate) fn stem(&self) -> String {
        let plain = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-') { c } else { '_' };
        let stem: String = self.name.chars().map(plain).take(STEM).collect();
        let stem = stem.trim_start_matches(['.', '-']);
        if stem.is_empty() { "vm".to_owned() } else { stem.to_owned() }
    }

    /// The name of a disk's member.
    pub(crate) fn disk_name(&self, number: usize) -> String {
        format!("{}-disk{}.vmdk", self.stem(), number + 1)
    }

    /// The description, with the lengths of the disks' members.
    pub(crate) fn ovf(&self, members: &[u64]) -> String {
        let mut out = String::from(
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n\
             <Envelope xmlns=\"http://schemas.dmtf.org/ovf/envelope/1\" \
             xmlns:ovf=\"http://schemas.dmtf.org/ovf/envelope/1\" \
             xmlns:rasd=\"http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_ResourceAllocationSettingData\" \
             xmlns:vssd=\"http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_VirtualSystemSettingData\" \
             xmlns:vmw=\"http://www.vmware.com/schema/ovf\">\n  <References>\n",
        );
        for (number, len) in members.iter().enumerate() {
            let (name, id) = (self.disk_name(number), number + 1);
            let _ = writeln!(out, "    <File ovf:href=\"{name}\" ovf:id=\"file{id}\" ovf:size=\"{len}\"/>");
        }
        out.push_str("  </References>\n  <DiskSection>\n    <Info>Virtual disks</Info>\n");
        for (number, len) in self.disks.iter().enumerate() {
            let id = number + 1;
            let _ = writeln!(
                out,
                "    <Disk ovf:capacity=\"{len}\" ovf:capacityAllocationUnits=\"byte\" ovf:diskId=\"vmdisk{id}\" \
                 ovf:fileRef=\"file{id}\" \
                 ovf:format=\"http://www.vmware.com/interfaces/specifications/vmdk.html#streamOptimized\"/>"
            );
        }
        out.push_str("  </DiskSection>\n");
        let networks: BTreeSet<String> = (0..self.hardware.adapters.len()).map(|n| self.network(n)).collect();
        if !networks.is_empty() {
            out.push_str("  <NetworkSection>\n    <Info>Networks</Info>\n");
            for network in networks {
                let _ = writeln!(out, "    <Network ovf:name=\"{network}\"/>");
            }
            out.push_str("  </NetworkSection>\n");
        }
        let (name, guest) = (escape(&self.name), escape(&self.guest));
        let linux = self.guest.to_ascii_lowercase();
        // 101: Linux, 64 bit; 1: other. The guest is told in words.
        let linux = ["linux", "ubuntu", "debian", "centos", "rhel", "sles"].iter().any(|word| linux.contains(word));
        let _ = writeln!(
            out,
            "  <VirtualSystem ovf:id=\"{}\">\n    <Info>A virtual machine</Info>\n    <Name>{name}</Name>\n    \
             <OperatingSystemSection ovf:id=\"{}\">\n      <Info>Guest operating system</Info>\n      \
             <Description>{guest}</Description>\n    </OperatingSystemSection>\n    <VirtualHardwareSection>\n      \
             <Info>Virtual hardware</Info>\n      <System>\n        \
             <vssd:ElementName>Virtual Hardware Family</vssd:ElementName>\n        \
             <vssd:InstanceID>0</vssd:InstanceID>\n        \
             <vssd:VirtualSystemIdentifier>{name}</vssd:VirtualSystemIdentifier>\n        \
             <vssd:VirtualSystemType>vmx-08</vssd:VirtualSystemType>\n      </System>",
            self.stem(),
            if linux { 101 } else { 1 }
        );
        self.items(&mut out);
        if self.hardware.efi {
            out.push_str("      <vmw:Config ovf:required=\"false\" vmw:key=\"firmware\" vmw:value=\"efi\"/>\n");
        }
        out.push_str("    </VirtualHardwareSection>\n  </VirtualSystem>\n</Envelope>\n");
        out
    }

    fn items(&self, out: &mut String) {
        let hardware = &self.hardware;
        let mut next = 0;
        let mut item = |elements: &[(&str, String)]| {
            next += 1;
            let id = ("InstanceID", next.to_string());
            let mut elements: Vec<_> = elements.iter().chain([&id]).collect();
            elements.sort();
            out.push_str("      <Item>\n");
            for (key, value) in elements {
                let _ = writeln!(out, "        <rasd:{key}>{value}</rasd:{key}>");
            }
            out.push_str("      </Item>\n");
            next
        };
        let text = str::to_owned;
        let cpus = hardware.cpus.max(1);
        item(&[
            ("AllocationUnits", text("hertz * 10^6")),
            ("ElementName", format!("{cpus} virtual CPUs")),
            ("ResourceType", text("3")),
            ("VirtualQuantity", cpus.to_string()),
        ]);
        let memory = hardware.memory.unwrap_or(MEMORY);
        item(&[
            ("AllocationUnits", text("byte * 2^20")),
            ("ElementName", format!("{memory} MiB of memory")),
            ("ResourceType", text("4")),
            ("VirtualQuantity", memory.to_string()),
        ]);
        for controller in 0..self.disks.len().div_ceil(PER_CONTROLLER) {
            let parent = item(&[
                ("Address", controller.to_string()),
                ("ElementName", format!("SCSI controller {controller}")),
                ("ResourceSubType", text(self.controller())),
                ("ResourceType", text("6")),
            ]);
            let disks = self.disks.len() - controller * PER_CONTROLLER;
            for place in 0..disks.min(PER_CONTROLLER) {
                let number = controller * PER_CONTROLLER + place + 1;
                let unit = place + usize::from(place >= OWN_PLACE);
                item(&[
                    ("AddressOnParent", unit.to_string()),
                    ("ElementName", format!("Hard disk {number}")),
                    ("HostResource", format!("ovf:/disk/vmdisk{number}")),
                    ("Parent", parent.to_string()),
                    ("ResourceType", text("17")),
                ]);
            }
        }
        for (number, adapter) in hardware.adapters.iter().enumerate() {
            let model = adapter.model.as_deref().unwrap_or_default().to_ascii_lowercase();
            let model = match &model[..] {
                b"vmxnet3" => "VmxNet3",
                b"e1000e" => "E1000e",
                _ => "E1000",
            };
            item(&[
                ("AddressOnParent", (number + 7).to_string()),
                ("AutomaticAllocation", text("true")),
                ("Connection", self.network(number)),
                ("ElementName", format!("Network adapter {}", number + 1)),
                ("ResourceSubType", text(model)),
                ("ResourceType", text("10")),
            ]);
        }
    }

    fn controller(&self) -> &'static str {
        match self.hardware.controller.as_deref().unwrap_or_default().to_ascii_lowercase().as_slice() {
            b"pvscsi" => "VirtualSCSI",
            b"lsisas1068" => "lsilogicsas",
            b"buslogic" => "buslogic",
            _ => "lsilogic",
        }
    }

    fn network(&self, adapter: usize) -> String {
        let name = self.hardware.adapters.get(adapter).and_then(|adapter| adapter.network.as_deref());
        escape(&String::from_utf8_lossy(name.unwrap_or(b"VM Network")))
    }
}
