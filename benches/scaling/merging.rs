//! Puts and gets in turn while merges run.

use std::path::Path;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use indicatif::ProgressBar;
use serde::Serialize;
use tensorcask::{Options, Store};

use crate::data::{Elapsed, Random, check_rows, make_keys_and_rows, mix, timed};
use crate::load::{PUT, Watcher, clear};
use crate::statistics::{Percentiles, histogram};
use crate::{Fallible, GATHER, MODULE, Settings};

/// Rows per put while merges run. With smaller puts, more calls fall into a short merge.
pub(crate) const SMALL_PUT: u64 = 256;
const PATIENCE: Duration = Duration::from_secs(20);
/// Stores of up to this size are filled several times, as they outgrow their size before there are enough calls.
const MADE_AGAIN: u64 = 1_000_000;

/// Puts and gets in turn while merges run.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Merging {
    pub memtable_keys: usize,
    /// The number of stores of the same size that were filled one after another.
    pub stores: u64,
    pub keys_after: u64,
    pub merges: u64,
    pub longest_merge_seconds: f64,
    /// Microseconds per put, during merges and between them.
    pub put_us: Percentiles,
    pub put_us_between: Percentiles,
    /// The same during merges for the time on the core, without preemptions and waits for locks.
    pub put_core_us: Percentiles,
    /// Microseconds per batch of gets.
    pub get_us: Percentiles,
    pub get_us_between: Percentiles,
    pub get_core_us: Percentiles,
}

/// The calls of one kind: between merges, during merges, and the time on the core during merges.
struct Seen {
    between: Histogram<u64>,
    during: Histogram<u64>,
    core: Histogram<u64>,
}

impl Seen {
    fn new() -> Fallible<Self> {
        Ok(Self { between: histogram()?, during: histogram()?, core: histogram()? })
    }

    fn record(&mut self, elapsed: Elapsed, merging: bool) -> Fallible {
        if merging {
            self.during.record(elapsed.wall)?;
            self.core.record(elapsed.core)?;
        } else {
            self.between.record(elapsed.wall)?;
        }
        Ok(())
    }
}

/// The calls so far, for all stores of one size.
struct Calls<'a> {
    settings: &'a Settings,
    memtable_keys: usize,
    begun: Instant,
    puts: Seen,
    gets: Seen,
    merges: u64,
    longest_merge_seconds: f64,
}

impl Calls<'_> {
    /// Whether there are as many calls of each kind during merges as batches in other series.
    fn are_enough(&self) -> bool {
        let fewest = self.puts.during.len().min(self.gets.during.len());
        self.begun.elapsed() >= PATIENCE || fewest >= self.settings.batches as u64
    }

    /// Puts and gets in turn on one thread. The memtable limit is so small that merges run all the time. The store
    /// grows to `most` keys at most; returns its number of keys.
    fn grow(&mut self, dir: &Path, from: u64, most: u64, bar: &ProgressBar) -> Fallible<u64> {
        let shape = [self.settings.row_bytes];
        let store = Options::new().memtable_keys(self.memtable_keys).open(dir, MODULE)?;
        let watcher = Watcher::of(&store);
        let (mut keys, mut rows, mut scratch) = (Vec::new(), Vec::new(), Vec::new());
        let mut out = vec![0_u8; GATHER * self.settings.row_bytes];
        let mut found = vec![false; GATHER];
        let mut random = Random(from);
        let mut end = from;
        while end < most && !self.are_enough() {
            make_keys_and_rows(end..end + SMALL_PUT, self.settings.row_bytes, &mut keys, &mut rows);
            let was_merging = watcher.merging();
            let (done, put) = timed(|| store.put_rows(&keys, &shape, &rows));
            done?;
            end += SMALL_PUT;
            let is_merging = watcher.merging();
            keys.clear();
            keys.extend((0..GATHER).map(|_| mix(random.below(end))));
            let (hits, get) = timed(|| store.get_batch_into(&keys, &shape, &mut out, &mut found));
            let hits = hits?;
            if hits != GATHER {
                return Err(format!("{} keys of {GATHER} are missing while merges run", GATHER - hits).into());
            }
            check_rows(&keys, &out, self.settings.row_bytes, &mut scratch)?;
            self.puts.record(put, was_merging || is_merging)?;
            self.gets.record(get, is_merging || watcher.merging())?;
            bar.set_message(format!("merging, {end} keys"));
        }
        let (merges, longest) = watcher.finish()?;
        self.merges += merges;
        self.longest_merge_seconds = self.longest_merge_seconds.max(longest);
        store.close()?;
        Ok(end)
    }
}

/// Fills a store with `keys` keys.
fn fill(settings: &Settings, dir: &Path, keys: u64) -> Fallible {
    clear(dir)?;
    let store = Store::open(dir, MODULE)?;
    let (mut names, mut rows) = (Vec::new(), Vec::new());
    for start in (0..keys).step_by(PUT as usize) {
        make_keys_and_rows(start..keys.min(start + PUT), settings.row_bytes, &mut names, &mut rows);
        store.put_rows(&names, &[settings.row_bytes], &rows)?;
    }
    Ok(store.close()?)
}

/// Grows the store from `from` keys to `most` keys at most, and then further stores of the same size.
pub(crate) fn merging(settings: &Settings, from: u64, most: u64, bar: &ProgressBar) -> Fallible<Merging> {
    let mut calls = Calls {
        settings,
        memtable_keys: usize::try_from(from / 8)?.clamp(1024, 1 << 20),
        begun: Instant::now(),
        puts: Seen::new()?,
        gets: Seen::new()?,
        merges: 0,
        longest_merge_seconds: 0.0,
    };
    let keys_after = calls.grow(&settings.dir, from, most, bar)?;
    let mut stores = 1;
    let again = settings.dir.join("again");
    while from <= MADE_AGAIN && !calls.are_enough() {
        fill(settings, &again, from)?;
        calls.grow(&again, from, most, bar)?;
        std::fs::remove_dir_all(&again)?;
        stores += 1;
    }
    let Calls { memtable_keys, puts, gets, merges, longest_merge_seconds, .. } = calls;
    Ok(Merging {
        memtable_keys,
        stores,
        keys_after,
        merges,
        longest_merge_seconds,
        put_us: Percentiles::of(&puts.during, 1e3),
        put_us_between: Percentiles::of(&puts.between, 1e3),
        put_core_us: Percentiles::of(&puts.core, 1e3),
        get_us: Percentiles::of(&gets.during, 1e3),
        get_us_between: Percentiles::of(&gets.between, 1e3),
        get_core_us: Percentiles::of(&gets.core, 1e3),
    })
}
