//! Work in parallel, results in order, memory bounded: what exporting and sweeping share.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// As many threads as the machine has cores where `threads` is 0.
#[must_use]
pub fn threads(threads: usize) -> usize {
    match threads {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        n => n,
    }
}

/// Takes `items` one after the other, works on them in `threads` threads, and hands the results to `take` on
/// the calling thread in the order of the items, so that the number of threads never shows.
///
/// At most two items a thread are between `items` and `take` at a time: one slow item makes the others wait
/// instead of piling up. `take` ends the work early with `Break`. One thread means the calling one.
pub fn ordered<T: Send, R: Send>(
    threads: usize,
    items: impl Iterator<Item = T> + Send,
    work: impl Fn(T) -> R + Sync,
    mut take: impl FnMut(R) -> ControlFlow<()>,
) {
    let threads = self::threads(threads);
    if threads == 1 {
        for item in items {
            if take(work(item)).is_break() {
                return;
            }
        }
        return;
    }
    let feed = Mutex::new(items.fuse().enumerate());
    let shelf = Shelf::new(threads);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                let _leaving = Leaving(&shelf);
                while shelf.admit() {
                    let Some((number, item)) = lock(&feed).next() else { return };
                    shelf.put(number, work(item));
                }
            });
        }
        let _stop = Stop(&shelf);
        let mut number = 0;
        while let Some(result) = shelf.wait_for(number) {
            if take(result).is_break() {
                return;
            }
            number = number.wrapping_add(1);
        }
    });
}

/// Buffers to use again: fresh ones cost more page faults than the copy itself.
#[derive(Debug, Default)]
pub struct Buffers(Mutex<Vec<Vec<u8>>>);

impl Buffers {
    /// One of `len` bytes. What it holds is not told.
    #[must_use]
    pub fn take(&self, len: usize) -> Vec<u8> {
        let mut buf = lock(&self.0).pop().unwrap_or_default();
        buf.resize(len, 0);
        buf
    }

    /// Takes one back.
    pub fn give(&self, buf: Vec<u8>) {
        lock(&self.0).push(buf);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Results that wait for their turn.
struct Shelf<R> {
    state: Mutex<State<R>>,
    changed: Condvar,
}

struct State<R> {
    ready: BTreeMap<usize, R>,
    room: usize,
    workers: usize,
    stop: bool,
}

impl<R> Shelf<R> {
    fn new(threads: usize) -> Self {
        let room = threads.saturating_mul(2);
        let state = State { ready: BTreeMap::new(), room, workers: threads, stop: false };
        Self { state: Mutex::new(state), changed: Condvar::new() }
    }

    /// Waits for room for one more item. False when the work is over.
    fn admit(&self) -> bool {
        let busy = |state: &mut State<R>| !state.stop && state.room == 0;
        let state = self.changed.wait_while(lock(&self.state), busy);
        let mut state = state.unwrap_or_else(PoisonError::into_inner);
        state.room = state.room.saturating_sub(1);
        !state.stop
    }

    fn put(&self, number: usize, result: R) {
        lock(&self.state).ready.insert(number, result);
        self.changed.notify_all();
    }

    /// The result `number`, or `None` when there will be none.
    fn wait_for(&self, number: usize) -> Option<R> {
        let absent = |state: &mut State<R>| !state.stop && state.workers > 0 && !state.ready.contains_key(&number);
        let state = self.changed.wait_while(lock(&self.state), absent);
        let mut state = state.unwrap_or_else(PoisonError::into_inner);
        let result = state.ready.remove(&number);
        state.room = state.room.saturating_add(1);
        drop(state);
        self.changed.notify_all();
        result
    }
}

/// Counts a worker out, and ends everything if it leaves in a panic: its result will never come.
struct Leaving<'a, R>(&'a Shelf<R>);

impl<R> Drop for Leaving<'_, R> {
    fn drop(&mut self) {
        let mut state = lock(&self.0.state);
        state.workers = state.workers.saturating_sub(1);
        state.stop |= std::thread::panicking();
        drop(state);
        self.0.changed.notify_all();
    }
}

/// Sends the workers home when the results are not wanted any more.
struct Stop<'a, R>(&'a Shelf<R>);

impl<R> Drop for Stop<'_, R> {
    fn drop(&mut self) {
        lock(&self.0.state).stop = true;
        self.0.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::panic, reason = "tests")]
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    #[test]
    fn results_come_in_order_from_any_number_of_threads() {
        for threads in [1, 2, 7] {
            let mut got = Vec::new();
            let work = |i: u64| {
                std::thread::sleep(Duration::from_micros((i * 7919) % 300));
                i * 2
            };
            ordered(threads, 0..500, work, |result| {
                got.push(result);
                ControlFlow::Continue(())
            });
            assert_eq!(got, (0..500).map(|i| i * 2).collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_slow_item_holds_the_others_back() {
        let pulled = AtomicUsize::new(0);
        let most = AtomicUsize::new(0);
        let items = (0..200).inspect(|_| {
            pulled.fetch_add(1, Ordering::SeqCst);
        });
        let mut taken = 0;
        let work = |i: i32| {
            if i % 50 == 0 {
                std::thread::sleep(Duration::from_millis(10));
            }
        };
        ordered(3, items, work, |()| {
            taken += 1;
            most.fetch_max(pulled.load(Ordering::SeqCst) + 1 - taken, Ordering::SeqCst);
            ControlFlow::Continue(())
        });
        assert!(most.load(Ordering::SeqCst) <= 7, "{most:?}");
    }

    #[test]
    fn break_ends_it_early() {
        let mut taken = 0;
        ordered(
            4,
            0_u64..,
            |i| i,
            |i| {
                taken += 1;
                if i == 9 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            },
        );
        assert_eq!(taken, 10);
    }

    #[test]
    fn a_panic_in_a_worker_ends_the_work_instead_of_hanging() {
        let run = || ordered(3, 0..1000, |i| assert!(i != 20, "on purpose"), |()| ControlFlow::Continue(()));
        assert!(std::panic::catch_unwind(run).is_err());
    }
}
