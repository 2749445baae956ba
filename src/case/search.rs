//! Searching the free space of a tree for what is left of files that nothing names any more.

use super::keep::Kept;
use super::{Case, Noted, Options, Store};
use crate::progress::Progress;
use crate::ranges::RangeSet;
use crate::sweep::{SweepOptions, sweep};
use std::ops::ControlFlow;
use std::sync::Arc;
use vdrecover_formats::format::{Clue, Holds, Sweep, score};
use vdrecover_formats::link::Opened;
use vdrecover_formats::tree::Search;
use vdrecover_formats::{Bytes, Error, Finding, Format, Layer, Memo, Note, Tree, Trust};

/// Clues of one search, 32 bytes each: a device of 64 TiB that is full has 4 million stretches of 16 MiB to tell of.
const CLUES: usize = 1 << 22;

/// What a search found.
#[derive(Debug)]
pub struct Searched {
    /// What was put together; all of it are finds. Their parents are nodes of the tree that was searched.
    pub tree: Arc<dyn Tree>,
    /// What could not be looked at.
    pub findings: Vec<Finding>,
}

/// Searches what `tree` has as free, on all cores; what comes out does not depend on how many. Space that is a hole
/// is not read. `None` if the tree knows no such search. The range and clues of `options` are not used.
#[must_use]
pub fn search(tree: &dyn Tree, options: &SweepOptions, progress: &Progress) -> Option<Searched> {
    let search = tree.search()?;
    let (clues, findings) = look(&search, options, progress);
    Some(Searched { tree: (search.build)(&clues), findings })
}

/// What there is in the free space, and what could not be looked at.
fn look(search: &Search, options: &SweepOptions, progress: &Progress) -> (Vec<Clue>, Vec<Finding>) {
    // To the sweep a search is a format like any other, of which only the look is used.
    let format = Format {
        name: "search",
        about: "free space",
        holds: Holds::Files,
        spec: "",
        magics: &[],
        probe: never,
        open: refuse,
        sweep: Some(Sweep { look: search.look, build: refuse_all, near: &[] }),
    };
    let ranges = Some(RangeSet::build(search.free.clone()));
    let options = SweepOptions { ranges, clues: CLUES, ..options.clone() };
    let swept = sweep(&*search.layer, &[&format], &options, progress);
    let mut findings = swept.findings;
    if swept.lost_bytes > 0 {
        let text = format!("{} bytes of free space could not be read and were not searched", swept.lost_bytes);
        findings.push(Finding::new("SEARCH-GAPS", 0..0, Trust::Inferred, text));
    }
    if let Some(at) = swept.stopped_at {
        let text = format!("the search of free space was stopped at {at:#x}");
        findings.push(Finding::new("SEARCH-STOPPED", at..at, Trust::Inferred, text));
    }
    (swept.clues.into_iter().flat_map(|(_, clues)| clues).collect(), findings)
}

/// The same with the clues that the case folder keeps, if they still hold; else what was seen is kept there.
fn kept(case: &Case, store: &Store, options: &Options, progress: &Progress) -> Option<Searched> {
    let search = store.tree.search()?;
    let keep = options.keep.as_deref().map(|folder| Kept::new(folder, case, store, options, &search.free));
    if let Some(clues) = keep.as_ref().and_then(Kept::load) {
        return Some(Searched { tree: (search.build)(&clues), findings: Vec::new() });
    }
    let (clues, mut findings) = look(&search, &SweepOptions::default(), progress);
    // What could not be read may be there the next time.
    if let Some(keep) = keep.filter(|_| findings.is_empty()) {
        findings.extend(keep.save(&clues).err().map(|error| {
            let text = format!("the search could not be kept: {error:#}");
            Finding::new("CASE-KEEP", 0..0, Trust::Sound, text)
        }));
    }
    Some(Searched { tree: (search.build)(&clues), findings })
}

/// Searches the free space of every store that is shown, and tells what was seen.
pub(super) fn run(case: &mut Case, options: &Options, progress: &Progress) {
    for index in 0..case.stores.len() {
        let store = &case.stores[index];
        if !store.shown {
            continue;
        }
        let about = case.store_label(store);
        let Some(Searched { tree, mut findings }) = kept(case, store, options, progress) else { continue };
        store.tree.left_out(&mut |finding| findings.push(finding));
        for part in 0..tree.parts() {
            let _ = tree.audit(part, &mut |note| {
                if let Note::Finding(finding) = note {
                    findings.push(finding);
                }
                ControlFlow::Continue(())
            });
        }
        case.findings.extend(findings.into_iter().map(|finding| Noted { about: about.clone(), finding }));
        case.searched.push((index, tree));
    }
}

fn never(_: &dyn Layer) -> u8 {
    score::NONE
}

fn refuse(_: &Bytes, _: &Memo) -> Result<Opened, Error> {
    Err(Error::NotFound)
}

fn refuse_all(_: &Bytes, _: &Memo, _: &[Clue]) -> Result<Opened, Error> {
    Err(Error::NotFound)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use vdrecover_formats::adapt::{Blank, Concat, Memory};
    use vdrecover_formats::format::Window;
    use vdrecover_formats::tree::{Entry, Find, Finder, Lister, Named, Node, NodeId, State};
    use vdrecover_formats::{Kind, Why};

    /// A tree with free space, and the tree that its clues make.
    #[derive(Debug)]
    struct Wood {
        layer: Bytes,
        clues: Vec<Clue>,
        searchable: bool,
    }

    impl Tree for Wood {
        fn root(&self) -> NodeId {
            NodeId(0)
        }

        fn node(&self, _: NodeId) -> Result<Node, Error> {
            Ok(Node::plain(Kind::Dir, 0, 0))
        }

        fn list(&self, _: NodeId, _: u64, _: Lister<'_>) -> Result<(), Error> {
            Ok(())
        }

        fn lookup(&self, _: NodeId, _: &[u8]) -> Result<Option<Entry>, Error> {
            Ok(None)
        }

        fn open(&self, _: NodeId) -> Result<Bytes, Error> {
            Err(Error::NotFile)
        }

        fn finds(&self, sink: Finder<'_>) {
            for clue in &self.clues {
                let name = clue.at.to_string().into_bytes();
                let entry = Entry { name, id: NodeId(1), kind: Kind::File, state: State::Fragment, next: 0 };
                let _ = sink(Find { entry, parent: None, named: Named::Place, why: String::new() });
            }
        }

        fn search(&self) -> Option<Search> {
            let layer = Bytes::clone(&self.layer);
            let build = move |clues: &[Clue]| -> Arc<dyn Tree> {
                Arc::new(Wood { layer: Bytes::clone(&layer), clues: clues.to_vec(), searchable: false })
            };
            self.searchable.then(|| Search {
                layer: Bytes::clone(&self.layer),
                free: vec![4096..1 << 20, 2 << 20..7 << 20],
                look,
                build: Box::new(build),
            })
        }
    }

    fn look(window: &Window<'_>, tell: &mut dyn FnMut(Clue)) {
        for (at, sector) in (window.at..).step_by(512).zip(window.bytes[..window.own].chunks(512)) {
            if sector.first() == Some(&b'!') {
                tell(Clue { at, kind: 1, len: 512, value: 0 });
            }
        }
    }

    #[test]
    fn free_space_is_searched_by_any_number_of_threads() {
        let mut bytes = vec![0; 6 << 20];
        for at in [0, 4096, 512 << 10, 1 << 20, 3 << 20, 4 << 20] {
            bytes[at] = b'!';
        }
        let parts: [Bytes; 2] = [Arc::new(Memory::new(bytes)), Arc::new(Blank::lost(1 << 20, Why::Unreadable, 0))];
        let wood = Wood { layer: Arc::new(Concat::new(parts).unwrap()), clues: Vec::new(), searchable: true };
        let with = |threads| {
            let options = SweepOptions { window: 64 << 10, margin: 512, threads, ..SweepOptions::default() };
            search(&wood, &options, &Progress::silent()).unwrap()
        };
        let found = |searched: &Searched| {
            let mut names = Vec::new();
            searched.tree.finds(&mut |find| {
                names.push(String::from_utf8(find.entry.name).unwrap().parse::<u64>().unwrap());
                ControlFlow::Continue(())
            });
            names
        };
        let (one, many) = (with(1), with(7));
        // What is in use is not shown.
        assert_eq!(found(&one), [4096, 512 << 10, 3 << 20, 4 << 20]);
        assert_eq!(found(&one), found(&many));
        assert_eq!(one.findings.len(), 1, "the last MiB can't be read: {:?}", one.findings);
        assert!(search(&*one.tree, &SweepOptions::default(), &Progress::silent()).is_none());
    }
}
