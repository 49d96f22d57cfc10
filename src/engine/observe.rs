//! Spans and events of the crate `tracing` (feature `tracing`), and metrics of the crate `metrics` (feature `metrics`).
//! Without the features, nothing here compiles to code.

#[cfg(feature = "metrics")]
use std::sync::Arc;

use crate::error::Error;

macro_rules! named {
    ($(#[$doc:meta])* $type:ident { $($variant:ident = $name:literal, $unit:ident, $what:literal;)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(crate) enum $type { $(#[doc = $what] $variant),* }

        #[cfg(feature = "metrics")]
        impl $type {
            const ALL: &'static [(Self, &'static str, ::metrics::Unit, &'static str)] =
                &[$((Self::$variant, $name, ::metrics::Unit::$unit, $what)),*];
        }
    };
}

named! {
    /// A counter. Each starts at 0 when the handle is opened.
    Counter {
        Hits = "tensorcask_hits_total", Count, "Keys that were read and found.";
        Misses = "tensorcask_misses_total", Count, "Keys that were read and not found.";
        Damaged = "tensorcask_damaged_total", Count, "Keys that were read and whose rows are damaged.";
        BytesCopied = "tensorcask_bytes_copied_total", Bytes, "Bytes that get_batch_into copied to callers.";
        RowsPut = "tensorcask_rows_put_total", Count, "Rows that were put, tombstones included.";
        BatchesWritten = "tensorcask_batches_written_total", Count, "Batches that were written to segments.";
        BytesWritten = "tensorcask_bytes_written_total", Bytes, "Bytes that puts wrote to segments.";
        Flushes = "tensorcask_flushes_total", Count, "Calls of flush.";
        Seals = "tensorcask_seals_total", Count, "Segments that were sealed.";
        RunsBuilt = "tensorcask_merges_total", Count, "Index runs that were built.";
        Refreshes = "tensorcask_refreshes_total", Count, "Refreshes.";
        SegmentsEvicted = "tensorcask_segments_evicted_total", Count, "Segments that were evicted.";
        RowsEvicted = "tensorcask_rows_evicted_total", Count, "Rows of evicted segments.";
        BytesEvicted = "tensorcask_bytes_evicted_total", Bytes, "Bytes of evicted segments.";
        SegmentsCompacted = "tensorcask_segments_compacted_total", Count, "Segments that compaction replaced.";
        BytesCompacted = "tensorcask_bytes_compacted_total", Bytes, "Bytes that compaction wrote.";
        BytesFreed = "tensorcask_bytes_freed_total", Bytes, "Bytes by which compaction shrank the store.";
    }
}

named! {
    /// A gauge. `stats` sets it.
    Gauge {
        Keys = "tensorcask_keys", Count, "Live keys.";
        Segments = "tensorcask_segments", Count, "Sealed segments.";
        SegmentBytes = "tensorcask_segment_bytes", Bytes, "Bytes of segment files.";
        RunBytes = "tensorcask_run_bytes", Bytes, "Bytes of index runs.";
        DeadBytes = "tensorcask_dead_bytes", Bytes, "Approximate bytes of dead rows.";
        MemtableKeys = "tensorcask_memtable_keys", Count, "Keys in the memtable.";
        MemtableBytes = "tensorcask_memtable_bytes", Bytes, "Memory of the memtable.";
        LeftOut = "tensorcask_files_left_out", Count, "Files that are quarantined, damaged in place, or missing.";
    }
}

macro_rules! operations {
    ($($variant:ident = $name:literal;)*) => {
        /// An operation that has a span, and a histogram of its duration.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(crate) enum Operation { $($variant),* }

        impl Operation {
            #[cfg(feature = "metrics")]
            const ALL: &'static [(Self, &'static str)] = &[$((Self::$variant, $name)),*];

            #[cfg(feature = "tracing")]
            fn span(self) -> ::tracing::Span {
                use ::tracing::field::Empty;
                match self {
                    $(Self::$variant => ::tracing::debug_span!(
                        target: "tensorcask", $name, keys = Empty, hits = Empty, misses = Empty, damaged = Empty,
                        rows = Empty, bytes = Empty, segments = Empty,
                    )),*
                }
            }
        }
    };
}

operations! {
    Open = "open";
    Recover = "recover";
    Flush = "flush";
    Seal = "seal";
    Merge = "merge";
    Compact = "compact";
    Refresh = "refresh";
    GetBatch = "get_batch";
}

/// A span that is entered until it is dropped.
#[derive(Debug)]
pub(crate) struct Span {
    #[cfg(feature = "tracing")]
    entered: ::tracing::span::EnteredSpan,
}

impl Span {
    /// Begins the span of `operation`.
    #[inline]
    pub(crate) fn begin(operation: Operation) -> Self {
        #[cfg(not(feature = "tracing"))]
        let _unused = operation;
        Self {
            #[cfg(feature = "tracing")]
            entered: operation.span().entered(),
        }
    }

    /// Records a count in the span's field `name`.
    #[inline]
    pub(crate) fn record(&self, name: &'static str, count: u64) {
        #[cfg(feature = "tracing")]
        self.entered.record(name, count);
        let _unused = (name, count);
    }
}

/// A span whose duration is recorded in a histogram when it is dropped.
#[derive(Debug)]
pub(crate) struct Timed<'a> {
    span: Span,
    #[cfg(feature = "metrics")]
    begun: (std::time::Instant, &'a Instruments, Operation),
    #[cfg(not(feature = "metrics"))]
    begun: std::marker::PhantomData<&'a Instruments>,
}

impl Timed<'_> {
    /// As [`Span::record`].
    #[inline]
    pub(crate) fn record(&self, name: &'static str, count: u64) {
        self.span.record(name, count);
    }
}

#[cfg(feature = "metrics")]
impl Drop for Timed<'_> {
    fn drop(&mut self) {
        let (start, instruments, operation) = self.begun;
        instruments.took(operation, start.elapsed());
    }
}

/// The metrics of one open store. They go to the recorder that is installed when the store is opened.
#[derive(Default)]
pub(crate) struct Instruments {
    #[cfg(feature = "metrics")]
    handles: Handles,
}

#[cfg(feature = "metrics")]
#[derive(Default)]
struct Handles {
    counters: Vec<::metrics::Counter>,
    gauges: Vec<::metrics::Gauge>,
    seconds: Vec<::metrics::Histogram>,
}

impl std::fmt::Debug for Instruments {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Instruments")
    }
}

impl Instruments {
    /// Registers the metrics, with the label `store`.
    #[cfg(feature = "metrics")]
    pub(crate) fn new(store: &std::path::Path) -> Self {
        use ::metrics::{counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};
        const SECONDS: &str = "tensorcask_operation_seconds";
        let store: Arc<str> = store.to_string_lossy().trim_end_matches('/').into();
        describe_histogram!(SECONDS, ::metrics::Unit::Seconds, "How long an operation took.");
        let counters = Counter::ALL.iter().map(|&(_, name, unit, what)| {
            describe_counter!(name, unit, what);
            counter!(name, "store" => Arc::clone(&store))
        });
        let gauges = Gauge::ALL.iter().map(|&(_, name, unit, what)| {
            describe_gauge!(name, unit, what);
            gauge!(name, "store" => Arc::clone(&store))
        });
        let seconds = Operation::ALL
            .iter()
            .map(|&(_, name)| histogram!(SECONDS, "store" => Arc::clone(&store), "operation" => name));
        let handles = Handles { counters: counters.collect(), gauges: gauges.collect(), seconds: seconds.collect() };
        Self { handles }
    }

    /// Registers nothing.
    #[cfg(not(feature = "metrics"))]
    pub(crate) fn new(_store: &std::path::Path) -> Self {
        Self {}
    }

    /// Adds to a counter.
    #[inline]
    pub(crate) fn add(&self, counter: Counter, by: u64) {
        #[cfg(feature = "metrics")]
        if let Some(counter) = self.handles.counters.get(counter as usize).filter(|_| by > 0) {
            counter.increment(by);
        }
        let _unused = (counter, by);
    }

    /// Sets a gauge.
    #[inline]
    pub(crate) fn set(&self, gauge: Gauge, value: u64) {
        #[cfg(feature = "metrics")]
        if let Some(gauge) = self.handles.gauges.get(gauge as usize) {
            gauge.set(value as f64);
        }
        let _unused = (gauge, value);
    }

    /// Records how long `operation` took.
    #[inline]
    pub(crate) fn took(&self, operation: Operation, duration: std::time::Duration) {
        #[cfg(feature = "metrics")]
        if let Some(seconds) = self.handles.seconds.get(operation as usize) {
            seconds.record(duration);
        }
        let _unused = (operation, duration);
    }

    /// Begins the span of `operation` and measures its duration.
    #[inline]
    pub(crate) fn begin(&self, operation: Operation) -> Timed<'_> {
        Timed {
            span: Span::begin(operation),
            #[cfg(feature = "metrics")]
            begun: (std::time::Instant::now(), self, operation),
            #[cfg(not(feature = "metrics"))]
            begun: std::marker::PhantomData,
        }
    }
}

/// Emits an error event: the writer of a store stopped.
pub(crate) fn writer_stopped(cause: &Error) {
    #[cfg(feature = "tracing")]
    ::tracing::error!(target: "tensorcask", %cause, "the writer stopped");
    let _unused = cause;
}

/// Emits a warning event: a task in the background failed. A later call of the caller's reports it too.
pub(crate) fn background_failed(cause: &Error) {
    #[cfg(feature = "tracing")]
    ::tracing::warn!(target: "tensorcask", %cause, "a task in the background failed");
    let _unused = cause;
}

/// Emits a warning event: a store was opened without some of its files.
pub(crate) fn opened_without(store: &std::path::Path, left_out: usize, missing: usize) {
    #[cfg(feature = "tracing")]
    ::tracing::warn!(target: "tensorcask", store = %store.display(), left_out, missing, "files of the store are left out");
    let _unused = (store, left_out, missing);
}
