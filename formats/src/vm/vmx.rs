//! `.vmx`: a virtual machine's configuration. Source: files of ESXi and Workstation.

use super::Dictionary;

/// What of a configuration matters to its disks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine {
    /// `displayName`, if it has one.
    pub name: Option<Vec<u8>>,
    /// `guestOS`.
    pub guest: Option<Vec<u8>>,
    /// Its hard disks, by slot.
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

/// Buses that hard disks are attached to.
const BUSES: [&str; 4] = ["scsi", "sata", "ide", "nvme"];

impl Machine {
    /// Reads a configuration.
    #[must_use]
    pub fn of(text: &Dictionary) -> Self {
        let own = |key| text.get(key).filter(|value| !value.is_empty()).map(<[u8]>::to_vec);
        let disks = text.iter().filter_map(|(key, file)| disk(text, key, file)).collect();
        Self { name: own("displayname"), guest: own("guestos"), disks }
    }
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
              floppy0.fileName = \"a.vmdk\"\nnvme0:0.fileName = \"/vmfs/volumes/u/web01/data.vmdk\"",
        );
        let machine = Machine::of(&text);
        assert_eq!(machine.name.as_deref(), Some(&b"web01"[..]));
        let slots: Vec<_> = machine.disks.iter().map(|slot| slot.name.as_str()).collect();
        assert_eq!(slots, ["nvme0:0", "scsi0:0"]);
    }
}
