//! `.vmx`: a virtual machine's configuration. Source: files of ESXi and Workstation.

use super::Dictionary;

/// What of a configuration matters to its disks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine {
    /// `displayName`, if it has one.
    pub name: Option<Vec<u8>>,
    /// `guestOS`.
    pub guest: Option<Vec<u8>>,
    /// Its hard disks, in the order in which a BIOS counts them: by bus, controller and unit.
    pub disks: Vec<Slot>,
}

/// A hard disk's place in a machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slot {
    /// Such as `scsi0:0`.
    pub name: String,
    /// The descriptor, as written: relative to the configuration, or absolute.
    pub file: Vec<u8>,
}

/// What another hypervisor has to know to run it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hardware {
    /// `memSize`, in MiB.
    pub memory: Option<u64>,
    /// `numvcpus`; one where it says nothing.
    pub cpus: u32,
    /// `cpuid.coresPerSocket`; one where it says nothing.
    pub cores: u32,
    /// `firmware` is `efi`.
    pub efi: bool,
    /// `uefi.secureBoot.enabled`.
    pub secure_boot: bool,
    /// `vtpm.present`. What it holds is in the `.nvram`, encrypted.
    pub tpm: bool,
    /// `uuid.bios`.
    pub uuid: Option<[u8; 16]>,
    /// `scsi0.virtualDev`: the controller that its drivers know.
    pub controller: Option<Vec<u8>>,
    /// Its network adapters, by number.
    pub adapters: Vec<Adapter>,
}

/// A network adapter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Adapter {
    /// `address` where its owner chose one, else `generatedAddress`.
    pub mac: Option<[u8; 6]>,
    /// `virtualDev`.
    pub model: Option<Vec<u8>>,
    /// `networkName`: the port group.
    pub network: Option<Vec<u8>>,
}

/// Buses that hard disks are attached to.
const BUSES: [&str; 4] = ["scsi", "sata", "ide", "nvme"];
/// No hypervisor gives a machine more.
const MAX_CPUS: i64 = 4096;
/// ESXi gives ten to a machine.
const MAX_ADAPTERS: u32 = 64;

impl Machine {
    /// Reads a configuration.
    #[must_use]
    pub fn of(text: &Dictionary) -> Self {
        let own = |key| text.get(key).filter(|value| !value.is_empty()).map(<[u8]>::to_vec);
        let mut disks: Vec<Slot> = text.iter().filter_map(|(key, file)| disk(text, key, file)).collect();
        disks.sort_by_key(|slot| place(&slot.name));
        Self { name: own("displayname"), guest: own("guestos"), disks }
    }
}

impl Hardware {
    /// Reads a configuration.
    #[must_use]
    pub fn of(text: &Dictionary) -> Self {
        let count = |key| text.number(key).filter(|n| (1..=MAX_CPUS).contains(n)).and_then(|n| u32::try_from(n).ok());
        Self {
            memory: text.number("memsize").and_then(|n| u64::try_from(n).ok()).filter(|n| *n > 0),
            cpus: count("numvcpus").unwrap_or(1),
            cores: count("cpuid.corespersocket").unwrap_or(1),
            efi: text.get("firmware").is_some_and(|value| value.eq_ignore_ascii_case(b"efi")),
            secure_boot: text.is_true("uefi.secureboot.enabled"),
            tpm: text.is_true("vtpm.present"),
            uuid: text.get("uuid.bios").and_then(hex),
            controller: text.get("scsi0.virtualdev").map(<[u8]>::to_vec),
            adapters: (0..MAX_ADAPTERS).filter_map(|n| adapter(text, n)).collect(),
        }
    }
}

fn adapter(text: &Dictionary, n: u32) -> Option<Adapter> {
    let get = |key: &str| text.get(&format!("ethernet{n}.{key}")).filter(|value| !value.is_empty());
    text.is_true(&format!("ethernet{n}.present")).then(|| Adapter {
        mac: get("address").or_else(|| get("generatedaddress")).and_then(hex),
        model: get("virtualdev").map(<[u8]>::to_vec),
        network: get("networkname").map(<[u8]>::to_vec),
    })
}

/// Bytes in hexadecimal, whatever stands between them: `00:50:56:…`, `42 21 0b …-…`. `None` if there are not exactly
/// `N` of them, or there is anything else.
fn hex<const N: usize>(text: &[u8]) -> Option<[u8; N]> {
    let digits = text.iter().filter(|byte| !matches!(byte, b' ' | b'-' | b':'));
    let digits: Vec<u8> =
        digits.map(|byte| u8::try_from(char::from(*byte).to_digit(16)?).ok()).collect::<Option<_>>()?;
    let bytes = digits.chunks(2).map(|pair| pair.first()?.checked_mul(16)?.checked_add(*pair.get(1)?));
    bytes.collect::<Option<Vec<u8>>>()?.try_into().ok()
}

/// Bus, controller and unit of `scsi0:10`, to sort by.
fn place(slot: &str) -> (usize, u32, u32) {
    let bus = BUSES.iter().position(|bus| slot.starts_with(bus)).unwrap_or(BUSES.len());
    let numbers = slot.trim_start_matches(|c: char| c.is_ascii_alphabetic());
    let (controller, unit) = numbers.split_once(':').unwrap_or((numbers, ""));
    (bus, controller.parse().unwrap_or(u32::MAX), unit.parse().unwrap_or(u32::MAX))
}

fn disk(text: &Dictionary, key: &str, file: &[u8]) -> Option<Slot> {
    let slot = key.strip_suffix(".filename")?;
    let bus = BUSES.iter().any(|bus| slot.strip_prefix(bus).is_some_and(|at| at.contains(':')));
    let absent = text.get(&format!("{slot}.present")).is_some_and(|value| value.eq_ignore_ascii_case(b"false"));
    let kind = text.get(&format!("{slot}.devicetype")).unwrap_or_default().to_ascii_lowercase();
    let is_disk = file.to_ascii_lowercase().ends_with(b".vmdk") || kind.ends_with(b"disk");
    let optical = kind.windows(5).any(|part| part == b"cdrom");
    (bus && !absent && is_disk && !optical).then(|| Slot { name: slot.to_owned(), file: file.to_vec() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disks_are_what_is_attached_and_no_optical_drive() {
        let text = Dictionary::parse(
            b"displayName = \"web01\"\nguestOS = \"debian12-64\"\nscsi0:0.fileName = \"web01-000002.vmdk\"\n\
              scsi0:0.deviceType = \"scsi-hardDisk\"\nsata0:0.fileName = \"/vmfs/x.iso\"\n\
              sata0:0.deviceType = \"cdrom-image\"\nscsi0:1.fileName = \"old.vmdk\"\nscsi0:1.present = \"FALSE\"\n\
              floppy0.fileName = \"a.vmdk\"\nnvme0:0.fileName = \"/vmfs/volumes/u/web01/data.vmdk\"\n\
              scsi0:10.fileName = \"k.vmdk\"\nscsi0:2.fileName = \"c.vmdk\"",
        );
        let machine = Machine::of(&text);
        assert_eq!(machine.name.as_deref(), Some(&b"web01"[..]));
        let slots: Vec<_> = machine.disks.iter().map(|slot| slot.name.as_str()).collect();
        assert_eq!(slots, ["scsi0:0", "scsi0:2", "scsi0:10", "nvme0:0"]);
    }

    #[test]
    fn hardware_is_what_can_be_believed() {
        let text = Dictionary::parse(
            b"memSize = \"4096\"\nnumvcpus = \"4\"\ncpuid.coresPerSocket = \"2\"\nfirmware = \"EFI\"\n\
              uuid.bios = \"42 21 0b 7e 5c 3a 90 14-a8 6f 2d 11 73 c0 55 01\"\nethernet0.present = \"TRUE\"\n\
              ethernet0.generatedAddress = \"00:50:56:a1:b2:01\"\nethernet0.networkName = \"VM Network\"\n\
              ethernet1.present = \"FALSE\"\nethernet2.present = \"TRUE\"\nethernet2.address = \"00:50:56\"",
        );
        let found = Hardware::of(&text);
        assert_eq!((found.memory, found.cpus, found.cores, found.efi), (Some(4096), 4, 2, true));
        assert_eq!(found.uuid.map(|uuid| (uuid[0], uuid[15])), Some((0x42, 0x01)));
        assert_eq!(found.adapters.len(), 2);
        assert_eq!(found.adapters[0].mac, Some([0, 0x50, 0x56, 0xA1, 0xB2, 1]));
        assert_eq!(found.adapters[1], Adapter { mac: None, model: None, network: None });
        let none = Hardware::of(&Dictionary::parse(b"memsize = \"-1\"\nnumvcpus = \"0\"\nuuid.bios = \"42 zz\""));
        assert_eq!(none, Hardware { cpus: 1, cores: 1, ..Hardware::default() });
    }
}
