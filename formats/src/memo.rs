//! One bounded cache a case, for table blocks and decoded units.

use crate::layer::{Fault, Trust};
use crate::num::{narrow, wide};
use quick_cache::{Weighter, sync::Cache};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// A cached block with its damage: asked twice, it answers the same.
#[derive(Clone, Debug, Default)]
pub struct Block {
    /// Content.
    pub bytes: Vec<u8>,
    /// What of it can't be had.
    pub fault: Option<Fault>,
    /// How far to believe it.
    pub trust: Trust,
}

impl Block {
    /// The bytes before the first that can't be had.
    #[must_use]
    pub fn good(&self) -> &[u8] {
        let good = self.fault.map_or(self.bytes.len(), |fault| fault.good.min(self.bytes.len()));
        self.bytes.get(..good).unwrap_or_default()
    }
}

type Key = (u32, u64);

#[derive(Clone, Debug)]
struct Weigh;

/// What an entry costs beside its bytes.
const OVERHEAD: u64 = 96;

impl Weighter<Key, Arc<Block>> for Weigh {
    fn weight(&self, _: &Key, block: &Arc<Block>) -> u64 {
        wide(block.bytes.len()).saturating_add(OVERHEAD)
    }
}

/// The case's cache. Everything whose size the input decides lives here, so that memory stays bounded.
#[derive(Debug)]
pub struct Pool {
    cache: Cache<Key, Arc<Block>, Weigh>,
    owners: AtomicU32,
}

impl Pool {
    /// Holds about `budget` bytes at most.
    #[must_use]
    pub fn new(budget: u64) -> Arc<Self> {
        let blocks = narrow(budget >> 14).max(16);
        Arc::new(Self { cache: Cache::with_weighter(blocks, budget, Weigh), owners: AtomicU32::new(0) })
    }

    /// Forgets all of it: what is asked again is made again, and believed as far as it is then.
    pub fn clear(&self) {
        self.cache.clear();
    }

    /// A share with keys of its own.
    #[must_use]
    pub fn share(self: &Arc<Self>) -> Memo {
        Memo { owner: self.owners.fetch_add(1, Ordering::Relaxed), pool: Arc::clone(self) }
    }
}

/// One user's share of the [`Pool`].
#[derive(Clone, Debug)]
pub struct Memo {
    pool: Arc<Pool>,
    owner: u32,
}

impl Memo {
    /// The block `key`, made when it is absent. It is made outside of any lock: two threads may both make it,
    /// with the same result.
    pub fn get(&self, key: u64, make: impl FnOnce() -> Block) -> Arc<Block> {
        let key = (self.owner, key);
        if let Some(block) = self.pool.cache.get(&key) {
            return block;
        }
        let block = Arc::new(make());
        self.pool.cache.insert(key, Arc::clone(&block));
        block
    }

    /// Another share of the same pool, with keys of its own.
    #[must_use]
    pub fn share(&self) -> Memo {
        self.pool.share()
    }
}
