//! Spans and metrics, as a program that collects them sees them.
#![expect(clippy::unwrap_used, reason = "a test stops at the first thing that is not as expected")]

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use metrics::{
    Counter, CounterFn, Gauge, GaugeFn, Histogram, HistogramFn, Key, KeyName, Metadata, Recorder, SharedString, Unit,
};
use tensorcask::{Compaction, Options, Reader};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;

/// What was recorded: a number for each metric (a sum for counters, the last value for gauges, a count for histograms).
#[derive(Default, Clone)]
struct Recorded(Arc<Mutex<BTreeMap<String, f64>>>);

/// One metric of it.
struct Metric(Recorded, String);

impl Metric {
    fn with(&self, change: impl FnOnce(&mut f64)) {
        change(self.0.0.lock().unwrap().entry(self.1.clone()).or_default());
    }
}

impl CounterFn for Metric {
    fn increment(&self, by: u64) {
        self.with(|value| *value += by as f64);
    }

    fn absolute(&self, to: u64) {
        self.with(|value| *value = to as f64);
    }
}

impl GaugeFn for Metric {
    fn increment(&self, by: f64) {
        self.with(|value| *value += by);
    }

    fn decrement(&self, by: f64) {
        self.with(|value| *value -= by);
    }

    fn set(&self, to: f64) {
        self.with(|value| *value = to);
    }
}

impl HistogramFn for Metric {
    fn record(&self, seconds: f64) {
        assert!((0.0..60.0).contains(&seconds), "{seconds}");
        self.with(|value| *value += 1.0);
    }
}

impl Recorded {
    fn metric(&self, key: &Key) -> Arc<Metric> {
        let operation = key.labels().find(|label| label.key() == "operation");
        assert!(key.labels().any(|label| label.key() == "store" && label.value().ends_with("/m")), "{key}");
        Arc::new(Metric(self.clone(), operation.map_or(key.name(), |operation| operation.value()).to_owned()))
    }

    fn get(&self, name: &str) -> f64 {
        self.0.lock().unwrap().get(name).copied().unwrap_or_default()
    }
}

impl Recorder for Recorded {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        Counter::from_arc(self.metric(key))
    }

    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::from_arc(self.metric(key))
    }

    fn register_histogram(&self, key: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::from_arc(self.metric(key))
    }
}

/// A span's id, name and fields.
type Span = (Id, String, BTreeMap<String, u64>);

/// The spans that were begun.
#[derive(Default, Clone)]
struct Spans(Arc<Mutex<Vec<Span>>>);

struct Fields<'a>(&'a mut BTreeMap<String, u64>);

impl Visit for Fields<'_> {
    fn record_u64(&mut self, field: &Field, value: u64) {
        self.0.insert(field.name().to_owned(), value);
    }

    fn record_debug(&mut self, _: &Field, _: &dyn std::fmt::Debug) {}
}

impl<S: tracing::Subscriber + for<'l> LookupSpan<'l>> Layer<S> for Spans {
    fn on_new_span(&self, span: &Attributes<'_>, id: &Id, _: Context<'_, S>) {
        if span.metadata().target() == "tensorcask" {
            let mut fields = BTreeMap::new();
            span.record(&mut Fields(&mut fields));
            self.0.lock().unwrap().push((id.clone(), span.metadata().name().to_owned(), fields));
        }
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, _: Context<'_, S>) {
        let mut spans = self.0.lock().unwrap();
        // Ids are reused, so the last span of this id is meant.
        if let Some((_, _, fields)) = spans.iter_mut().rfind(|(known, ..)| known == id) {
            values.record(&mut Fields(fields));
        }
    }
}

impl Spans {
    fn last(&self, name: &str) -> BTreeMap<String, u64> {
        let spans = self.0.lock().unwrap();
        let span = spans.iter().rfind(|(_, known, _)| known == name);
        span.map_or_else(|| unreachable!("no span {name}"), |(.., fields)| fields.clone())
    }
}

#[test]
fn operations_have_spans_and_metrics() {
    let (recorded, spans) = (Recorded::default(), Spans::default());
    // Not for one thread only: segments are sealed by threads of the store's own.
    tracing::subscriber::set_global_default(tracing_subscriber::registry().with(spans.clone())).unwrap();
    metrics::set_global_recorder(recorded.clone()).ok().unwrap();

    let dir = tempfile::tempdir().unwrap();
    let store = Options::new().compaction_live_share(0.0).open(dir.path(), "m").unwrap();
    let keys: Vec<u64> = (0..100).collect();
    for _ in 0..2 {
        store.put_rows(&keys, &[4], &[1.5_f32; 400]).unwrap();
        store.flush().unwrap();
    }
    let (mut out, mut found) = (vec![0.0_f32; 404], vec![false; 101]);
    let asked: Vec<u64> = (0..101).collect();
    assert_eq!(store.get_batch_into(&asked, &[4], &mut out, &mut found).unwrap(), 100);
    let span = spans.last("get_batch");
    assert_eq!([span["keys"], span["hits"], span["misses"], span["damaged"], span["bytes"]], [101, 100, 1, 0, 1600]);
    assert_eq!(store.get_batch(&[5_u64, 500]).unwrap().len(), 2);
    assert_eq!((spans.last("get_batch")["hits"], spans.last("get_batch")["misses"]), (1, 1));

    let report = store.compact(&Compaction::new()).unwrap();
    assert_eq!((spans.last("compact")["rows"], spans.last("seal")["rows"]), (200, 200));
    assert_eq!(spans.last("merge")["segments"], 1);
    let stats = store.stats().unwrap();
    for (name, expected) in [
        ("tensorcask_hits_total", stats.hits),
        ("tensorcask_misses_total", stats.misses),
        ("tensorcask_bytes_copied_total", 1600),
        ("tensorcask_rows_put_total", 200),
        ("tensorcask_batches_written_total", stats.batches_written),
        ("tensorcask_bytes_written_total", stats.bytes_written),
        ("tensorcask_flushes_total", stats.flushes),
        ("tensorcask_merges_total", stats.runs_built),
        ("tensorcask_refreshes_total", stats.refreshes),
        ("tensorcask_segments_compacted_total", report.segments_rewritten as u64),
        ("tensorcask_bytes_compacted_total", report.bytes_written),
        ("tensorcask_bytes_freed_total", report.bytes_freed),
        ("tensorcask_keys", 100),
        ("tensorcask_segments", stats.segments as u64),
        ("tensorcask_segment_bytes", stats.segment_bytes),
        ("tensorcask_run_bytes", stats.run_bytes),
        ("open", 1),
        ("recover", 1),
        ("get_batch", 2),
        ("flush", stats.flushes),
        ("merge", stats.runs_built),
        ("refresh", stats.refreshes),
        ("compact", 1),
    ] {
        assert!((recorded.get(name) - expected as f64).abs() < 0.5, "{name}: {}, {expected}", recorded.get(name));
    }
    assert!(report.segments_rewritten > 0 && recorded.get("tensorcask_seals_total") >= 1.0);
    assert!((recorded.get("tensorcask_damaged_total") + recorded.get("tensorcask_files_left_out")).abs() < 0.5);
    store.close().unwrap();

    let reader = Reader::open(dir.path(), "m").unwrap();
    assert_eq!((spans.last("open")["rows"], spans.last("open")["segments"]), (100, 1));
    assert_eq!(reader.len().unwrap(), 100);
}
