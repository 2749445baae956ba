//! Paths inside trees: bytes with `/` between names, never paths of the host.

use vdrecover_formats::{Entry, Error, Kind, NodeId, State, Tree};

/// A path's folder and last name.
pub(super) fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (&[], path),
    }
}

/// The last part of a name that an image gives, in whichever way its writer separates folders.
pub(super) fn last_part(name: &[u8]) -> &[u8] {
    name.rsplit(|byte| matches!(byte, b'/' | b'\\')).next().unwrap_or(name)
}

/// Whether a name is one plain name and no path.
pub(super) fn is_plain(name: &[u8]) -> bool {
    !name.is_empty() && name != b"." && name != b".." && !name.iter().any(|byte| matches!(byte, b'/' | b'\\' | 0))
}

/// `folder/name`.
pub(super) fn join(folder: &[u8], name: &[u8]) -> Vec<u8> {
    let mut path = folder.to_vec();
    if !path.is_empty() {
        path.push(b'/');
    }
    path.extend_from_slice(name);
    path
}

/// A name relative to a folder, with `.` and `..` applied; `None` if it leads out of the tree.
pub(super) fn normal(folder: &[u8], name: &[u8]) -> Option<Vec<u8>> {
    let mut parts: Vec<&[u8]> = folder.split(|byte| *byte == b'/').filter(|part| !part.is_empty()).collect();
    for part in name.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => {
                parts.pop()?;
            }
            part => parts.push(part),
        }
    }
    Some(parts.join(&b'/'))
}

/// The entry at a path, name by name through each folder's index. The empty path is the start itself.
pub(super) fn resolve(tree: &dyn Tree, start: NodeId, path: &[u8]) -> Result<Option<Entry>, Error> {
    let mut here = Entry { name: Vec::new(), id: start, kind: Kind::Dir, state: State::Live, next: 0 };
    for name in path.split(|byte| *byte == b'/').filter(|name| !name.is_empty() && *name != b".") {
        if here.kind != Kind::Dir {
            return Ok(None);
        }
        match tree.lookup(here.id, name)? {
            Some(entry) => here = entry,
            None => return Ok(None),
        }
    }
    Ok(Some(here))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_inside() {
        assert_eq!(normal(b"a/b", b"../c/x.vmdk").as_deref(), Some(&b"a/c/x.vmdk"[..]));
        assert_eq!(normal(b"a", b"../../x"), None);
        assert_eq!(last_part(b"C:\\vm\\x.vmdk"), b"x.vmdk");
        assert!(!is_plain(b"../x") && !is_plain(b"..") && !is_plain(b"") && is_plain(b"..x"));
    }
}
