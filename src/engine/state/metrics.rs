//! Counters of traffic since the handle was opened.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::engine::observe::{Counter, Gauge, Instruments, Operation, Timed};
use crate::engine::report::{CompactReport, Stats};
use crate::engine::state::compacting::Compacting;

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
    compacting: Compacting,
    instruments: Instruments,
}

impl Metrics {
    /// Counters of 0, for the store at `store`.
    pub(crate) fn new(store: &Path) -> Self {
        Self { instruments: Instruments::new(store), ..Self::default() }
    }

    /// The metrics that other programs collect.
    #[inline]
    pub(crate) fn instruments(&self) -> &Instruments {
        &self.instruments
    }

    /// The progress of a compaction.
    pub(crate) fn compacting(&self) -> &Compacting {
        &self.compacting
    }

    /// Begins the span of an operation.
    #[inline]
    pub(crate) fn begin(&self, operation: Operation) -> Timed<'_> {
        self.instruments.begin(operation)
    }

    fn add(&self, counter: &AtomicU64, name: Counter, by: u64) {
        counter.fetch_add(by, Ordering::Relaxed);
        self.instruments.add(name, by);
    }

    /// Counts keys that were read by the operation of `span`.
    pub(crate) fn read(&self, span: &Timed<'_>, hits: usize, misses: usize, damaged: usize) {
        for (counter, name, field, keys) in [
            (&self.hits, Counter::Hits, "hits", hits),
            (&self.misses, Counter::Misses, "misses", misses),
            (&self.damaged, Counter::Damaged, "damaged", damaged),
        ] {
            self.add(counter, name, keys as u64);
            span.record(field, keys as u64);
        }
    }

    /// Counts rows that were put.
    pub(crate) fn put(&self, rows: usize) {
        self.add(&self.rows_put, Counter::RowsPut, rows as u64);
    }

    /// Counts a batch that was written.
    pub(crate) fn batch_written(&self, bytes: u64) {
        self.add(&self.batches_written, Counter::BatchesWritten, 1);
        self.add(&self.bytes_written, Counter::BytesWritten, bytes);
    }

    /// Counts a call of `flush`.
    pub(crate) fn flushed(&self) {
        self.add(&self.flushes, Counter::Flushes, 1);
    }

    /// Counts a run that was built.
    pub(crate) fn run_built(&self) {
        self.add(&self.runs_built, Counter::RunsBuilt, 1);
    }

    /// Counts a refresh.
    pub(crate) fn refreshed(&self) {
        self.add(&self.refreshes, Counter::Refreshes, 1);
    }

    /// The index runs that were built.
    pub(crate) fn runs_built(&self) -> u64 {
        self.runs_built.load(Ordering::Relaxed)
    }

    /// Counts what a compaction did.
    pub(crate) fn compacted(&self, report: &CompactReport) {
        self.instruments.add(Counter::SegmentsCompacted, report.segments_rewritten as u64);
        self.instruments.add(Counter::BytesCompacted, report.bytes_written);
        self.instruments.add(Counter::BytesFreed, report.bytes_freed);
    }

    /// Sets the gauges to sizes in `stats`.
    pub(crate) fn publish(&self, stats: &Stats) {
        let left_out = stats.quarantined as u64 + stats.missing + stats.bad_files as u64;
        for (gauge, value) in [
            (Gauge::Keys, stats.keys),
            (Gauge::Segments, Some(stats.segments as u64)),
            (Gauge::SegmentBytes, Some(stats.segment_bytes)),
            (Gauge::RunBytes, Some(stats.run_bytes)),
            (Gauge::DeadBytes, stats.dead_bytes),
            (Gauge::MemtableKeys, Some(stats.memtable_keys as u64)),
            (Gauge::MemtableBytes, Some(stats.memtable_bytes as u64)),
            (Gauge::LeftOut, Some(left_out)),
        ] {
            value.into_iter().for_each(|value| self.instruments.set(gauge, value));
        }
    }

    /// Counts an evicted segment.
    pub(crate) fn evicted(&self, rows: u64, bytes: u64) {
        self.add(&self.segments_evicted, Counter::SegmentsEvicted, 1);
        self.add(&self.rows_evicted, Counter::RowsEvicted, rows);
        self.add(&self.bytes_evicted, Counter::BytesEvicted, bytes);
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
