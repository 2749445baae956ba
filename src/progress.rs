//! How far a long operation is, and whether it should stop.

use indicatif::{ProgressBar, ProgressFinish, ProgressStyle};
use std::io::IsTerminal;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Shared by everything that takes long. Cheap enough to be told of every megabyte from every thread.
#[derive(Debug, Default)]
pub struct Progress {
    done: AtomicU64,
    total: AtomicU64,
    stop: Arc<AtomicBool>,
    bar: Option<ProgressBar>,
}

impl Progress {
    /// Counts, shows nothing.
    #[must_use]
    pub fn silent() -> Self {
        Self::default()
    }

    /// A bar on stderr if that is a terminal and the user did not ask for quiet.
    #[must_use]
    pub fn on_terminal(quiet: bool) -> Self {
        let show = !quiet && std::io::stderr().is_terminal();
        Self { bar: show.then(bar), ..Self::default() }
    }

    /// Setting this flag stops the operation at its next step; what resumes, resumes from there.
    #[must_use]
    pub fn stop_flag(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.stop)
    }

    /// Whether somebody asked to stop.
    #[must_use]
    pub fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Starts a step of `total` bytes; the count goes back to zero.
    pub fn start(&self, message: &str, total: u64) {
        self.total.store(total, Ordering::Relaxed);
        self.done.store(0, Ordering::Relaxed);
        if let Some(bar) = &self.bar {
            bar.reset();
            bar.set_length(total);
            bar.set_message(message.escape_debug().to_string());
        }
    }

    /// More bytes than were known at the start.
    pub fn grow(&self, bytes: u64) {
        let total = self.total.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes);
        if let Some(bar) = &self.bar {
            bar.set_length(total);
        }
    }

    /// `bytes` more are done.
    pub fn add(&self, bytes: u64) {
        self.done.fetch_add(bytes, Ordering::Relaxed);
        if let Some(bar) = &self.bar {
            bar.inc(bytes);
        }
    }

    /// What is being done now. Names of files in images are escaped.
    pub fn message(&self, message: &str) {
        if let Some(bar) = &self.bar {
            bar.set_message(message.escape_debug().to_string());
        }
    }

    /// A line above the bar, or on stderr where there is none.
    pub fn say(&self, line: &str) {
        match &self.bar {
            Some(bar) => bar.println(line),
            None => eprintln!("{line}"),
        }
    }

    /// Bytes done in this step.
    #[must_use]
    pub fn done(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }

    /// Bytes of this step.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.total.load(Ordering::Relaxed)
    }

    /// Takes the bar away.
    pub fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn bar() -> ProgressBar {
    let bar = ProgressBar::new(0).with_finish(ProgressFinish::AndClear);
    let template = "{msg} {wide_bar} {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {eta}";
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_from_every_thread() {
        let progress = Progress::silent();
        progress.start("x", 80);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| progress.add(10));
            }
        });
        progress.grow(20);
        assert_eq!((progress.done(), progress.total()), (80, 100));
        assert!(!progress.stopped());
        progress.stop_flag().store(true, Ordering::Relaxed);
        assert!(progress.stopped());
    }
}
