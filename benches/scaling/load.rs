//! Loading: the throughput, and the pauses of puts.

use std::cell::Cell;
use std::path::Path;
use std::time::Instant;

use indicatif::ProgressBar;
use serde::Serialize;
use tensorcask::Store;

use crate::data::{make_keys_and_rows, resident_bytes};
use crate::statistics::{Percentiles, histogram};
use crate::{Fallible, MODULE, Settings};

/// Rows per put while loading.
pub(crate) const PUT: u64 = 2048;
/// The number of stretches in which the number of keys grows tenfold.
const STRETCHES: u32 = 12;

/// A part of a load that ends with a flush.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Stretch {
    pub keys_before: u64,
    pub keys: u64,
    pub put_seconds: f64,
    pub flush_seconds: f64,
    /// Rows that were waiting in memory when the last put of the stretch returned.
    pub waiting_rows: usize,
}

impl Stretch {
    fn rows(&self) -> f64 {
        (self.keys - self.keys_before) as f64
    }

    pub(crate) fn puts_per_second(&self) -> f64 {
        self.rows() / self.put_seconds
    }

    pub(crate) fn flushed_per_second(&self) -> f64 {
        self.rows() / (self.put_seconds + self.flush_seconds)
    }
}

/// The load up to one step.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Load {
    pub stretches: Vec<Stretch>,
    /// Milliseconds per put.
    pub put_ms: Percentiles,
    pub put_ms_in_merges: Percentiles,
    pub merges: u64,
    pub longest_merge_seconds: f64,
    pub most_runs: usize,
    pub most_memtable_keys: usize,
    pub most_memtable_bytes: usize,
    pub most_waiting_rows: usize,
    pub most_waiting_bytes: usize,
    pub most_anonymous_bytes: u64,
    pub close_seconds: f64,
    /// Seconds of merging the index into one run afterwards.
    pub one_run_seconds: f64,
}

impl Load {
    /// Keys per second over all stretches, including their flushes.
    pub(crate) fn keys_per_second(&self) -> f64 {
        let seconds: f64 = self.stretches.iter().map(|of| of.put_seconds + of.flush_seconds).sum();
        self.stretches.iter().map(Stretch::rows).sum::<f64>() / seconds
    }
}

/// Detects when merges run, by a query before and after each call. A watching thread would take CPU time from the load.
pub(crate) struct Watcher<'a> {
    store: &'a Store,
    since: Cell<Option<Instant>>,
    longest_seconds: Cell<f64>,
}

impl<'a> Watcher<'a> {
    pub(crate) fn of(store: &'a Store) -> Self {
        Self { store, since: Cell::new(None), longest_seconds: Cell::new(0.0) }
    }

    /// Whether a merge is running.
    pub(crate) fn merging(&self) -> bool {
        let merging = self.store.merges_running() > 0;
        match self.since.get() {
            None if merging => self.since.set(Some(Instant::now())),
            Some(start) if !merging => {
                self.longest_seconds.set(self.longest_seconds.get().max(start.elapsed().as_secs_f64()));
                self.since.set(None);
            }
            _ => {}
        }
        merging
    }

    /// The number of merges, and the seconds of the longest time with one running.
    pub(crate) fn finish(self) -> Fallible<(u64, f64)> {
        Ok((self.store.stats()?.runs_built, self.longest_seconds.get()))
    }
}

/// The numbers of keys at which stretches end.
fn ends(from: u64, to: u64) -> Vec<u64> {
    let factor = 10_f64.powf(1.0 / f64::from(STRETCHES));
    let mut ends = vec![to];
    let mut end = to;
    loop {
        end = (end as f64 / factor) as u64;
        if end <= from + from / 10 || end < 10_000 {
            ends.reverse();
            return ends;
        }
        ends.push(end);
    }
}

/// Loads from `from` keys to `to`, and closes.
pub(crate) fn load(settings: &Settings, from: u64, to: u64, bar: &ProgressBar) -> Fallible<Load> {
    let store = Store::open(&settings.dir, MODULE)?;
    let watcher = Watcher::of(&store);
    let (mut put_ms, mut in_merges) = (histogram()?, histogram()?);
    let mut load = Load {
        stretches: Vec::new(),
        put_ms: Percentiles::default(),
        put_ms_in_merges: Percentiles::default(),
        merges: 0,
        longest_merge_seconds: 0.0,
        most_runs: 0,
        most_memtable_keys: 0,
        most_memtable_bytes: 0,
        most_waiting_rows: 0,
        most_waiting_bytes: 0,
        most_anonymous_bytes: 0,
        close_seconds: 0.0,
        one_run_seconds: 0.0,
    };
    let (mut keys, mut rows) = (Vec::new(), Vec::new());
    let mut start = from;
    for end in ends(from, to) {
        let keys_before = start;
        let mut put_seconds = 0.0;
        while start < end {
            let next = end.min(start + PUT);
            make_keys_and_rows(start..next, settings.row_bytes, &mut keys, &mut rows);
            let merging = watcher.merging();
            let begin = Instant::now();
            store.put_rows(&keys, &[settings.row_bytes], &rows)?;
            let elapsed = begin.elapsed();
            put_seconds += elapsed.as_secs_f64();
            put_ms.record(elapsed.as_nanos() as u64)?;
            if merging || watcher.merging() {
                in_merges.record(elapsed.as_nanos() as u64)?;
            }
            start = next;
            if (start / PUT).is_multiple_of(64) {
                sample(&store, &mut load)?;
                bar.set_position(start);
            }
        }
        let waiting_rows = store.waiting().rows;
        let begin = Instant::now();
        store.flush()?;
        let flush_seconds = begin.elapsed().as_secs_f64();
        sample(&store, &mut load)?;
        load.stretches.push(Stretch { keys_before, keys: end, put_seconds, flush_seconds, waiting_rows });
    }
    (load.merges, load.longest_merge_seconds) = watcher.finish()?;
    let begin = Instant::now();
    store.close()?;
    load.close_seconds = begin.elapsed().as_secs_f64();
    let store = Store::open(&settings.dir, MODULE)?;
    let begin = Instant::now();
    store.merge_index()?;
    load.one_run_seconds = begin.elapsed().as_secs_f64();
    store.close()?;
    load.put_ms = Percentiles::of(&put_ms, 1e6);
    load.put_ms_in_merges = Percentiles::of(&in_merges, 1e6);
    bar.set_position(to);
    Ok(load)
}

/// Updates the maxima of the bounded figures.
fn sample(store: &Store, load: &mut Load) -> Fallible {
    let (stats, waiting) = (store.stats()?, store.waiting());
    load.most_runs = load.most_runs.max(stats.runs);
    load.most_memtable_keys = load.most_memtable_keys.max(stats.memtable_keys);
    load.most_memtable_bytes = load.most_memtable_bytes.max(stats.memtable_bytes);
    load.most_waiting_rows = load.most_waiting_rows.max(waiting.rows);
    load.most_waiting_bytes = load.most_waiting_bytes.max(waiting.bytes);
    load.most_anonymous_bytes = load.most_anonymous_bytes.max(resident_bytes()?.0);
    Ok(())
}

/// Removes the remains of an earlier run.
pub(crate) fn clear(dir: &Path) -> Fallible {
    match std::fs::remove_dir_all(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
        _ => Ok(std::fs::create_dir_all(dir)?),
    }
}
