//! What programs have open.

use fuser::FileHandle;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

/// Most handles at a time; a program that opens more is told that too many files are open.
const MOST: usize = 1 << 16;

/// Open things by handle. A handle is never used twice.
#[derive(Debug)]
pub(super) struct Handles<T> {
    open: RwLock<HashMap<u64, Arc<T>>>,
    next: AtomicU64,
}

impl<T> Default for Handles<T> {
    fn default() -> Self {
        Self { open: RwLock::default(), next: AtomicU64::new(1) }
    }
}

impl<T> Handles<T> {
    pub(super) fn insert(&self, thing: T) -> Option<FileHandle> {
        let mut open = self.open.write().unwrap_or_else(PoisonError::into_inner);
        if open.len() >= MOST {
            return None;
        }
        let handle = self.next.fetch_add(1, Ordering::Relaxed);
        open.insert(handle, Arc::new(thing));
        Some(FileHandle(handle))
    }

    pub(super) fn get(&self, handle: FileHandle) -> Option<Arc<T>> {
        self.open.read().unwrap_or_else(PoisonError::into_inner).get(&handle.0).map(Arc::clone)
    }

    pub(super) fn remove(&self, handle: FileHandle) {
        self.open.write().unwrap_or_else(PoisonError::into_inner).remove(&handle.0);
    }
}
