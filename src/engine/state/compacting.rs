//! How far a running compaction is, for those who watch it from another thread.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::engine::report::CompactionProgress;

/// The progress of the compaction that runs, if one does.
#[derive(Debug, Default)]
pub(crate) struct Compacting {
    is_running: AtomicBool,
    is_rewriting: AtomicBool,
    done_bytes: AtomicU64,
    total_bytes: AtomicU64,
}

/// A running compaction: until it is dropped.
pub(crate) struct Running<'a>(&'a Compacting);

impl Compacting {
    /// A compaction begins.
    pub(crate) fn begin(&self) -> Running<'_> {
        self.step(false, 0);
        self.is_running.store(true, Ordering::Relaxed);
        Running(self)
    }

    /// A step over `total_bytes` of segments begins: it rewrites them, or only examines them.
    pub(crate) fn step(&self, is_rewriting: bool, total_bytes: u64) {
        self.done_bytes.store(0, Ordering::Relaxed);
        self.total_bytes.store(total_bytes, Ordering::Relaxed);
        self.is_rewriting.store(is_rewriting, Ordering::Relaxed);
    }

    /// Segments of `bytes` are done.
    pub(crate) fn add(&self, bytes: u64) {
        self.done_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// The progress, or `None` if no compaction runs.
    pub(crate) fn progress(&self) -> Option<CompactionProgress> {
        let is_running = self.is_running.load(Ordering::Relaxed);
        is_running.then(|| CompactionProgress {
            is_rewriting: self.is_rewriting.load(Ordering::Relaxed),
            done_bytes: self.done_bytes.load(Ordering::Relaxed),
            total_bytes: self.total_bytes.load(Ordering::Relaxed),
        })
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.is_running.store(false, Ordering::Relaxed);
    }
}
