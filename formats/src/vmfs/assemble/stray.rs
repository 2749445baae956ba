//! Descriptors where no `.fdc.sf` has one: it was elsewhere once, or its own descriptor is lost.
//!
//! A descriptor says where in the volume it lies. One in free space that lies where it says, and that neither the
//! volume of now nor one of before has in its `.fdc.sf`, is a find of its own.

use super::assembly::Found;
use crate::format::{Clue, Window};
use crate::layer::Trust;
use crate::num::{narrow, round_up, wide};
use crate::tree::{Kind, Named, State};
use crate::vmfs::address::Spot;
use crate::vmfs::descriptor::{Descriptor, MAGIC, Type, read_poisoned};
use crate::vmfs::tree::Datastore;
use std::sync::Arc;

/// The kind of its clues: above all those of guests.
const STRAY: u32 = 1 << 31;
/// Descriptors start at sectors.
const SECTOR: u64 = 512;
/// Finds of one search.
const MOST: usize = 1 << 16;

/// Reports what starts like a descriptor and lies where it says.
pub(super) fn look(window: &Window<'_>, tell: &mut dyn FnMut(Clue)) {
    let end = window.at.saturating_add(wide(window.own));
    for at in (round_up(window.at, SECTOR)..end).step_by(narrow(SECTOR)) {
        let bytes = window.bytes.get(narrow(at.saturating_sub(window.at))..).unwrap_or_default();
        let own = bytes.get(4..12).and_then(|own| own.first_chunk()).map(|own| u64::from_le_bytes(*own));
        if bytes.starts_with(&MAGIC.to_le_bytes()) && own == Some(at) {
            tell(Clue { at, kind: STRAY, len: 0, value: 0 });
        }
    }
}

/// The files of what was seen. Whether there are more than are told.
pub(super) fn finds(store: &Datastore, clues: &[Clue]) -> (Vec<Found>, bool) {
    let mut found = Vec::new();
    for at in clues.iter().filter(|clue| clue.kind == STRAY).map(|clue| clue.at) {
        if found.len() >= MOST {
            return (found, true);
        }
        found.extend(find(store, at));
    }
    (found, false)
}

fn find(store: &Datastore, at: u64) -> Option<Found> {
    let volume = &store.volume;
    let header = &volume.space.header;
    let (bytes, seen) = read_poisoned(volume.lv(), at, narrow(header.descriptor_size()));
    let fd = Descriptor::parse(header, at, &bytes, seen.trust.max(Trust::Inferred)).ok()?;
    let is_known = |place| place == Ok(at);
    let known = is_known(volume.locate(fd.address))
        || store.formers().iter().any(|former| is_known(former.volume.locate(fd.address)));
    let file = matches!(fd.node_kind(), Kind::File | Kind::Symlink) && fd.kind != Type::System && fd.len > 0;
    (file && !known).then_some(())?;
    let Spot { cluster, resource } = fd.address.spot();
    let why = format!(
        "a descriptor that says that it is {} lies at {at:#x} of the volume, as it says, and .fdc.sf has none there",
        fd.address
    );
    let (trust, state) = (fd.trust, if fd.links == 0 { State::Deleted } else { State::Orphaned });
    let file = volume.file(fd).dead(Arc::clone(store.heir()));
    let name = format!("descriptor_{at:x}_c{cluster}_r{resource}").into_bytes();
    Some(Found { name, named: Named::Place, parent: None, why, trust, state, layer: Arc::new(file) })
}
