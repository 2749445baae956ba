//! Stretches of a disk, and what joins them.

use super::candidate::Pin;
use std::collections::{BTreeMap, BTreeSet};

/// Which stretches of a candidate more than their names join.
pub(super) struct Bonds(BTreeMap<i64, i64>);

impl Bonds {
    pub(super) fn new(pins: &BTreeSet<Pin>) -> Self {
        Self(pins.iter().map(|pin| (pin.shift(), pin.shift())).collect())
    }

    pub(super) fn root(&mut self, shift: i64) -> i64 {
        let mut root = shift;
        // A root is smaller than what it is the root of.
        while let Some(next) = self.0.get(&root).copied().filter(|next| *next < root) {
            root = next;
        }
        // The next who asks has one step to go.
        let mut at = shift;
        while let Some(next) = self.0.insert(at, root).filter(|next| *next > root) {
            at = next;
        }
        root
    }

    pub(super) fn join(&mut self, a: Option<i64>, b: Option<i64>) {
        let (Some(a), Some(b)) = (a, b) else { return };
        let (a, b) = (self.root(a), self.root(b));
        self.0.insert(a.max(b), a.min(b));
    }

    /// What most anchors are in.
    pub(super) fn main(&mut self, pins: &BTreeSet<Pin>) -> i64 {
        let mut counts: BTreeMap<i64, usize> = BTreeMap::new();
        for pin in pins {
            let count = counts.entry(self.root(pin.shift())).or_default();
            *count = count.saturating_add(1);
        }
        let mut main = (0, 0);
        for (root, count) in counts {
            if count > main.1 {
                main = (root, count);
            }
        }
        main.0
    }
}
