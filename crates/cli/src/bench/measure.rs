//! Measures reads of a sample against plain copies of the same rows, which are measured alternately.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use tensorcask::{Key, Reader, Value};

use crate::bench::drop_cache::drop_cache;
use crate::bench::sample::{Batches, Call, copy, len_bytes, most_rows, structures, values};
use crate::failure::Failure;
use crate::store::ReadArguments;

/// What to measure.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Settings {
    pub seconds: f64,
    /// Keys of a batch.
    pub batch: usize,
    /// Most different keys.
    pub sample: u64,
    /// Whether to drop the store from the page cache first.
    pub cold: bool,
}

/// What was measured.
#[derive(Debug)]
pub(crate) struct Measured {
    /// `None` if a crash made it unknown.
    pub keys_in_store: Option<u64>,
    /// Keys of the sample.
    pub keys: usize,
    /// Keys whose rows are damaged.
    pub damaged: usize,
    pub batch: usize,
    /// The mean size of a value.
    pub row_bytes: f64,
    pub structure: String,
    pub call: &'static str,
    pub open_s: f64,
    /// Bytes that the first pass read from disk.
    pub disk_bytes: u64,
    /// Every key once, in random order.
    pub first: Timing,
    pub random: Pass,
    /// In storage order.
    pub sequential: Pass,
}

/// Reads, and copies of the same rows.
#[derive(Debug)]
pub(crate) struct Pass {
    pub engine: Timing,
    pub raw: Timing,
}

/// Quantiles of the time of a batch: their names, and numbers from 0 to 1.
pub(crate) const QUANTILES: [(&str, f64); 7] =
    [("p50", 0.5), ("p75", 0.75), ("p90", 0.9), ("p95", 0.95), ("p99", 0.99), ("p99.9", 0.999), ("max", 1.0)];

/// How long batches took, and the rates that follow.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Timing {
    pub batches: u64,
    /// At [`QUANTILES`].
    pub quantiles_s: [f64; QUANTILES.len()],
    pub rows_per_s: f64,
    pub bytes_per_s: f64,
}

impl Measured {
    /// Whether the first pass found the rows in memory.
    pub(crate) fn state(&self) -> &'static str {
        let bytes = self.keys as f64 * self.row_bytes;
        match self.disk_bytes {
            0 => "warm",
            disk if disk as f64 >= bytes / 2.0 => "cold",
            _ => "partly cold",
        }
    }
}

impl Timing {
    /// The quantile called `name`, in seconds.
    pub(crate) fn at(&self, name: &str) -> f64 {
        QUANTILES.iter().zip(self.quantiles_s).find(|((known, _), _)| *known == name).map_or(0.0, |(_, time)| time)
    }
}

impl Pass {
    /// How much longer a batch takes than a plain copy of as many rows, in the median.
    pub(crate) fn ratio(&self) -> f64 {
        self.engine.at("p50") / self.raw.at("p50").max(1e-9)
    }
}

/// Times of batches in nanoseconds.
struct Times {
    histogram: Histogram<u64>,
    rows: u64,
    bytes: u64,
    total: Duration,
}

impl Times {
    #[expect(clippy::expect_used, reason = "constant bounds, which are valid")]
    fn new() -> Self {
        // Up to two hours, to three digits.
        let histogram = Histogram::new_with_bounds(1, 1 << 43, 3).expect("the bounds are valid");
        Self { histogram, rows: 0, bytes: 0, total: Duration::ZERO }
    }

    fn add(&mut self, took: Duration, rows: usize, bytes: u64) {
        self.histogram.saturating_record(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX));
        self.rows += rows as u64;
        self.bytes += bytes;
        self.total += took;
    }

    fn timing(&self) -> Timing {
        let at = |quantile: f64| self.histogram.value_at_quantile(quantile) as f64 / 1e9;
        let seconds = self.total.as_secs_f64().max(1e-9);
        Timing {
            batches: self.histogram.len(),
            quantiles_s: QUANTILES.map(|(_, quantile)| at(quantile)),
            rows_per_s: self.rows as f64 / seconds,
            bytes_per_s: self.bytes as f64 / seconds,
        }
    }
}

/// Measures reads of `reader`'s store. `None` if it has no key that can be read.
pub(crate) fn measure(
    mut reader: Reader,
    arguments: &ReadArguments,
    settings: &Settings,
) -> Result<Option<Measured>, Failure> {
    let run_rows = u32::try_from(settings.batch).unwrap_or(u32::MAX);
    let mut keys = reader.survey(settings.sample, run_rows)?.keys;
    keys.truncate(usize::try_from(settings.sample).unwrap_or(usize::MAX));
    // A few rows tell the structure; they do not make the rest warm.
    let few: Vec<Key> = keys.iter().step_by(keys.len().div_ceil(64).max(1)).cloned().collect();
    let (looked_at, _) = values(&reader, &few)?;
    let call = Call::of(&looked_at);
    let mean_bytes = looked_at.iter().map(len_bytes).sum::<u64>() as f64 / looked_at.len().max(1) as f64;
    keys.truncate(most_rows(mean_bytes).max(settings.batch));
    drop(looked_at);
    if settings.cold {
        drop(reader);
        drop_cache(&arguments.store)?;
        reader = crate::store::open(arguments)?;
    }

    let random_order = shuffled(keys.len());
    let mut batches = Batches::new(&reader, call);
    let (mut first, mut damaged) = (Times::new(), HashSet::new());
    let before = reader.stats()?.prefaulted_pages;
    for batch in chunks(&keys, &random_order, settings.batch) {
        let start = Instant::now();
        let read = batches.read(&batch)?;
        first.add(start.elapsed(), batch.len(), read.bytes);
        damaged.extend(read.damaged);
    }
    let disk_bytes = (reader.stats()?.prefaulted_pages - before) * 4096;
    keys.retain(|key| !damaged.contains(key));
    // Values of a live store may have been deleted since the sample was taken.
    let mut kept = Vec::with_capacity(keys.len());
    for batch in keys.chunks(settings.batch) {
        kept.extend(values(&reader, batch)?.0);
    }
    if kept.is_empty() || kept.len() != keys.len() {
        return if kept.is_empty() {
            Ok(None)
        } else {
            Err(Failure::disk("keys were deleted meanwhile: run it again".into()))
        };
    }
    let bytes: u64 = kept.iter().map(len_bytes).sum();

    let each = Duration::from_secs_f64(settings.seconds / 2.0);
    let in_order: Vec<usize> = (0..keys.len()).collect();
    let random = pass(&mut batches, (&keys, &kept), &shuffled(keys.len()), settings.batch, each)?;
    let sequential = pass(&mut batches, (&keys, &kept), &in_order, settings.batch, each)?;
    Ok(Some(Measured {
        keys_in_store: reader.stats()?.keys,
        keys: keys.len(),
        damaged: damaged.len(),
        batch: settings.batch,
        row_bytes: bytes as f64 / kept.len() as f64,
        structure: structures(&kept),
        call: batches.call().name(),
        open_s: reader.open_report().elapsed.as_secs_f64(),
        disk_bytes,
        first: first.timing(),
        random,
        sequential,
    }))
}

/// Reads batches in `order`, and copies the values of other batches in between, until `limit` has passed.
fn pass(
    batches: &mut Batches<'_>,
    (keys, kept): (&[Key], &[Value]),
    order: &[usize],
    batch: usize,
    limit: Duration,
) -> Result<Pass, Failure> {
    let of_keys: Vec<Vec<Key>> = chunks(keys, order, batch).collect();
    let of_values: Vec<Vec<&Value>> =
        order.chunks(batch).map(|chunk| chunk.iter().filter_map(|at| kept.get(*at)).collect()).collect();
    let (mut engine, mut raw, mut out) = (Times::new(), Times::new(), Vec::new());
    // The copied batch is half a round away: a read must not profit from the processor's caches.
    let far = of_values.iter().cycle().skip(of_values.len() / 2);
    let begun = Instant::now();
    for (number, (keys, values)) in of_keys.iter().cycle().zip(far).enumerate() {
        let start = Instant::now();
        let read = batches.read(keys)?;
        let (middle, rows) = (Instant::now(), keys.len());
        let copied = copy(values, &mut out);
        // The first batches fill buffers.
        if number > 1 || of_keys.len() < 4 && number > 0 {
            engine.add(middle - start, rows, read.bytes);
            raw.add(middle.elapsed(), values.len(), copied);
        }
        if begun.elapsed() >= limit && raw.rows > 0 {
            break;
        }
    }
    Ok(Pass { engine: engine.timing(), raw: raw.timing() })
}

/// Batches of `keys` in `order`.
fn chunks<'k>(keys: &'k [Key], order: &'k [usize], batch: usize) -> impl Iterator<Item = Vec<Key>> + 'k {
    order.chunks(batch).map(|chunk| chunk.iter().filter_map(|at| keys.get(*at).cloned()).collect())
}

/// The numbers below `count` in an order that only looks random: the same each time, so that runs can be compared.
fn shuffled(count: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..count).collect();
    order.sort_by_cached_key(|number| xxhash_rust::xxh3::xxh3_64(&number.to_le_bytes()));
    order
}
