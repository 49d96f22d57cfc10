//! Counters of traffic since the handle was opened.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::engine::report::Stats;

/// The counters. Each is exact; together they are not a consistent snapshot.
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    hits: AtomicU64,
    misses: AtomicU64,
    damaged: AtomicU64,
    rows_put: AtomicU64,
    batches_written: AtomicU64,
    bytes_written: AtomicU64,
    flushes: AtomicU64,
    runs_built: AtomicU64,
    refreshes: AtomicU64,
    segments_evicted: AtomicU64,
    rows_evicted: AtomicU64,
    bytes_evicted: AtomicU64,
}

fn add(counter: &AtomicU64, by: u64) {
    counter.fetch_add(by, Ordering::Relaxed);
}

impl Metrics {
    /// Counts keys that were read.
    pub(crate) fn read(&self, hits: usize, misses: usize, damaged: usize) {
        add(&self.hits, hits as u64);
        add(&self.misses, misses as u64);
        add(&self.damaged, damaged as u64);
    }

    /// Counts rows that were put.
    pub(crate) fn put(&self, rows: usize) {
        add(&self.rows_put, rows as u64);
    }

    /// Counts a batch that was written.
    pub(crate) fn batch_written(&self, bytes: u64) {
        add(&self.batches_written, 1);
        add(&self.bytes_written, bytes);
    }

    /// Counts a call of `flush`.
    pub(crate) fn flushed(&self) {
        add(&self.flushes, 1);
    }

    /// Counts a run that was built.
    pub(crate) fn run_built(&self) {
        add(&self.runs_built, 1);
    }

    /// Counts a refresh.
    pub(crate) fn refreshed(&self) {
        add(&self.refreshes, 1);
    }

    /// Counts an evicted segment.
    pub(crate) fn evicted(&self, rows: u64, bytes: u64) {
        add(&self.segments_evicted, 1);
        add(&self.rows_evicted, rows);
        add(&self.bytes_evicted, bytes);
    }

    /// Whether any key was read and found.
    pub(crate) fn any_hits(&self) -> bool {
        self.hits.load(Ordering::Relaxed) > 0
    }

    /// Rows that were put.
    pub(crate) fn rows_put(&self) -> u64 {
        self.rows_put.load(Ordering::Relaxed)
    }

    /// Statistics with all counters, and nothing else.
    pub(crate) fn stats(&self) -> Stats {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Stats {
            hits: get(&self.hits),
            misses: get(&self.misses),
            damaged: get(&self.damaged),
            rows_put: get(&self.rows_put),
            batches_written: get(&self.batches_written),
            bytes_written: get(&self.bytes_written),
            flushes: get(&self.flushes),
            runs_built: get(&self.runs_built),
            refreshes: get(&self.refreshes),
            segments_evicted: get(&self.segments_evicted),
            rows_evicted: get(&self.rows_evicted),
            bytes_evicted: get(&self.bytes_evicted),
            ..Stats::default()
        }
    }
}
