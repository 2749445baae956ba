//! How whole something is, read off its map without reading it.

use serde_json::{Value, json};
use vdrecover_formats::{Layer, Place, Trust, Why, walk};

/// What the map of a layer says of its health.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Health {
    /// The least trusted run.
    pub trust: Trust,
    /// Bytes that can't be had.
    pub missing: u64,
    /// Bytes that hold data.
    pub data: u64,
    /// Bytes that read as zeros because nothing was written there, or a table says so.
    pub empty: u64,
    /// Of them, those where a table says so.
    pub zero: u64,
    /// Of the missing ones, those that somebody else has by now.
    pub overwritten: u64,
    /// Of the missing ones, those on LUNs that raw mappings name and that were not given: they never were in the image.
    pub not_given: u64,
    /// Why bytes can't be had, each reason once.
    pub reasons: Vec<Why>,
    /// Whether the map was too long to look at to its end: then the numbers are lower bounds.
    pub partial: bool,
}

impl Health {
    /// The sums of a find, for JSON: what is good, never written, said to be zero, others' by now, and lost otherwise.
    #[must_use]
    pub fn sums(&self) -> Value {
        json!({
            "good": self.data, "hole": self.empty - self.zero, "zero": self.zero, "overwritten": self.overwritten,
            "lost": self.missing - self.overwritten - self.not_given,
        })
    }

    /// Whether nothing is missing that should be there and nothing is doubted, as far as was looked.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.missing == self.not_given && self.trust == Trust::Sound
    }
}

/// Runs that a listing looks at for one file: 2 million blocks of 1 MiB are 2 TiB in single pieces.
pub const LISTING: usize = 2_000_000;

/// Reads the health of `layer` off at most `runs` runs of its map.
#[must_use]
pub fn of(layer: &dyn Layer, runs: usize) -> Health {
    let mut health = Health::default();
    let mut walked: u64 = 0;
    for run in walk(layer, 0..layer.len()).take(runs) {
        walked = run.at + run.len;
        health.trust = health.trust.max(run.trust);
        match run.place {
            Place::Lost(loss) => {
                health.missing += run.len;
                health.overwritten += if loss.why == Why::Overwritten { run.len } else { 0 };
                health.not_given += if loss.why == Why::NotGiven { run.len } else { 0 };
                if !health.reasons.contains(&loss.why) {
                    health.reasons.push(loss.why);
                }
            }
            Place::Hole => health.empty += run.len,
            Place::Zero => {
                health.empty += run.len;
                health.zero += run.len;
            }
            Place::Own | Place::Coded(_) | Place::Below { .. } => health.data += run.len,
        }
    }
    health.partial = walked < layer.len();
    health.reasons.sort_unstable();
    health
}
