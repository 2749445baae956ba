//! `.vmsd`: the snapshots of a virtual machine. Source: files of ESXi.

use super::Dictionary;

/// More snapshots than any machine has; ESXi allows 32 in a chain, trees have a few hundred.
const MAX_SNAPSHOTS: u32 = 4096;
/// More disks than any machine has.
const MAX_DISKS: u32 = 256;

/// A snapshot: the state in which each disk was frozen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// `uid`, which names it for good.
    pub uid: i64,
    /// `displayName`.
    pub name: Vec<u8>,
    /// `description`.
    pub description: Vec<u8>,
    /// When it was taken: microseconds since 1970, from `createTimeHigh` and `createTimeLow`.
    pub taken: Option<i64>,
    /// The uid of the snapshot before it.
    pub parent: Option<i64>,
    /// The descriptors that hold its state, as written. Later writes went to their children.
    pub disks: Vec<Vec<u8>>,
}

/// The snapshots that a `.vmsd` names, by their place in it.
#[must_use]
pub fn snapshots(text: &Dictionary) -> Vec<Snapshot> {
    // `snapshot.numSnapshots` is not trusted: a damaged file may have lost it and kept the rest.
    (0..MAX_SNAPSHOTS).filter_map(|n| snapshot(text, n)).collect()
}

fn snapshot(text: &Dictionary, n: u32) -> Option<Snapshot> {
    let get = |key: &str| text.get(&format!("snapshot{n}.{key}"));
    let number = |key: &str| text.number(&format!("snapshot{n}.{key}"));
    let uid = number("uid")?;
    let disks = (0..MAX_DISKS).map_while(|d| get(&format!("disk{d}.filename")).map(<[u8]>::to_vec)).collect();
    let taken = number("createtimehigh").zip(number("createtimelow")).map(|(high, low)| {
        // The low half is written as a signed number.
        (high << 32) | (low & 0xffff_ffff)
    });
    Some(Snapshot {
        uid,
        name: get("displayname").unwrap_or_default().to_vec(),
        description: get("description").unwrap_or_default().to_vec(),
        taken,
        parent: number("parent"),
        disks,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn snapshots_without_their_count_are_found() {
        let text = Dictionary::parse(
            b"snapshot0.uid = \"1\"\nsnapshot0.displayName = \"before\"\nsnapshot0.disk0.fileName = \"a.vmdk\"\n\
              snapshot0.createTimeHigh = \"400000\"\nsnapshot0.createTimeLow = \"-1\"\n\
              snapshot7.uid = \"9\"\nsnapshot7.parent = \"1\"\nsnapshot7.disk0.fileName = \"a-000001.vmdk\"",
        );
        let found = snapshots(&text);
        assert_eq!(found.len(), 2);
        assert_eq!((found[0].uid, found[0].taken), (1, Some((400_000 << 32) + 0xffff_ffff)));
        assert_eq!((found[1].uid, found[1].parent, found[1].disks[0].as_slice()), (9, Some(1), &b"a-000001.vmdk"[..]));
    }
}
