//! Which parts of a file have storage behind them, asked as needed and remembered within a bound.

use std::collections::BTreeMap;
use std::sync::{PoisonError, RwLock};

/// Most extents that are remembered. A fragmented image can have millions.
const MOST: usize = 4096;

/// One stretch of a file, from where it was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Extent {
    /// First byte behind it.
    pub(super) end: u64,
    /// What it has.
    pub(super) kind: ExtentKind,
}

/// What a stretch of a file has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ExtentKind {
    /// Storage.
    Data,
    /// None: it reads as zeros.
    Hole,
    /// It is not there any more: the file became shorter.
    Gone,
}

/// Extents with data by where they start. Holes are not kept: they may become `Gone`, and no read would notice.
#[derive(Debug, Default)]
pub(super) struct Extents(RwLock<BTreeMap<u64, u64>>);

impl Extents {
    /// The extent at `at`, from memory or from `ask`. The end does not depend on which.
    pub(super) fn at(&self, at: u64, ask: impl FnOnce() -> Extent) -> Extent {
        let known = self.0.read().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, &end)) = known.range(..=at).next_back()
            && end > at
        {
            return Extent { end, kind: ExtentKind::Data };
        }
        drop(known);
        let extent = ask();
        if extent.kind == ExtentKind::Data {
            let mut known = self.0.write().unwrap_or_else(PoisonError::into_inner);
            if known.len() >= MOST {
                known.clear();
            }
            known.insert(at, extent.end);
        }
        extent
    }
}
