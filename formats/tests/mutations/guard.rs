//! What watches over a mutation: bounds of memory and of time.
#![allow(unsafe_code, reason = "the trait of allocators is unsafe; this one only counts")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::process;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// The system's allocator, which counts what is in use.
#[derive(Debug)]
pub struct Counting;

static LIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

fn grown(by: usize) {
    let live = LIVE.fetch_add(by, Relaxed).saturating_add(by);
    PEAK.fetch_max(live, Relaxed);
}

// SAFETY: every call goes to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        grown(layout.size());
        // SAFETY: the caller keeps to the contract of the same call.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        grown(layout.size());
        // SAFETY: the caller keeps to the contract of the same call.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Relaxed);
        // SAFETY: the caller keeps to the contract of the same call.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        grown(size);
        LIVE.fetch_sub(layout.size(), Relaxed);
        // SAFETY: the caller keeps to the contract of the same call.
        unsafe { System.realloc(at, layout, size) }
    }
}

/// Bytes in use at most since the meter was made, beyond what was in use then.
#[derive(Debug)]
pub struct Meter(usize);

impl Meter {
    pub fn start() -> Self {
        let live = LIVE.load(Relaxed);
        PEAK.store(live, Relaxed);
        Self(live)
    }

    pub fn peak(&self) -> usize {
        PEAK.load(Relaxed).saturating_sub(self.0)
    }
}

/// Ends the process, naming what ran, when something takes longer than it may.
#[derive(Debug)]
pub struct Watchdog(Arc<Mutex<Option<(Instant, String)>>>);

impl Watchdog {
    pub fn new(limit: Duration) -> Self {
        let job = Arc::new(Mutex::new(None::<(Instant, String)>));
        let seen = Arc::downgrade(&job);
        thread::spawn(move || {
            while let Some(job) = seen.upgrade() {
                let job = job.lock().unwrap_or_else(PoisonError::into_inner).clone();
                if let Some((_, what)) = job.filter(|(start, _)| start.elapsed() > limit) {
                    eprintln!("longer than {limit:?}: {what}");
                    process::abort();
                }
                thread::sleep(Duration::from_millis(200));
            }
        });
        Self(job)
    }

    pub fn watch(&self, what: Option<String>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = what.map(|what| (Instant::now(), what));
    }
}
