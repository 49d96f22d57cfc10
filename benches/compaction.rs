//! Compaction of a large store: bytes freed, bytes written, and latencies of reads during and after it.
//!
//! `cargo bench --bench compaction -- [--rows 1000000] [--row-bytes 3072] [--seconds 5] [--dir DIR] [--report FILE]`
//!
//! 30 % of the rows are overwritten and 20 % deleted at random. The control is a store in which the same live rows were
//! written once. `--report` also writes the tables as Markdown.

#[path = "support/random.rs"]
mod random;

use std::error::Error;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use random::Random;
use tensorcask::{Compaction, Durability, Options, Reader, Store};

type Fallible<T = ()> = Result<T, Box<dyn Error>>;

/// Rows in each put.
const BATCH: usize = 2048;
/// Keys in each read.
const GATHER: usize = 256;

struct Settings {
    rows: usize,
    row_bytes: usize,
    seconds: u64,
    dir: PathBuf,
    report: Option<PathBuf>,
}

fn settings() -> Fallible<Settings> {
    let dir = std::env::temp_dir().join("tensorcask-compaction");
    let mut settings = Settings { rows: 1_000_000, row_bytes: 3072, seconds: 5, dir, report: None };
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().ok_or_else(|| format!("{argument} needs a value"));
        match argument.as_str() {
            "--rows" => settings.rows = value()?.parse()?,
            "--row-bytes" => settings.row_bytes = value()?.parse()?,
            "--seconds" => settings.seconds = value()?.parse()?,
            "--dir" => settings.dir = value()?.into(),
            "--report" => settings.report = Some(value()?.into()),
            "--bench" | "--test" => {}
            other => {
                let options = "--rows, --row-bytes, --seconds, --dir, --report";
                return Err(format!("{other} is not an option: expected {options}").into());
            }
        }
    }
    Ok(settings)
}

/// The version of each key; `None` if it was deleted.
type Versions = Vec<Option<u32>>;

fn fill(row: &mut [u8], key: u64, version: u32) {
    let seed = (key << 8 | u64::from(version)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    for (at, word) in row.chunks_mut(8).enumerate() {
        let bytes = (seed ^ at as u64).to_le_bytes();
        word.iter_mut().zip(bytes).for_each(|(to, from)| *to = from);
    }
}

fn put(store: &Store, keys: &[u64], row_bytes: usize, version: u32) -> Fallible {
    let mut rows = vec![0_u8; BATCH * row_bytes];
    for keys in keys.chunks(BATCH) {
        let rows = rows.get_mut(..keys.len() * row_bytes).ok_or("a batch too large")?;
        keys.iter().zip(rows.chunks_mut(row_bytes)).for_each(|(key, row)| fill(row, *key, version));
        store.put_rows(keys, &[row_bytes], rows)?;
    }
    Ok(store.flush()?)
}

/// A random `percent` percent of the keys `0..rows`.
fn some_keys(random: &mut Random, rows: usize, percent: u64) -> Vec<u64> {
    (0..rows as u64).filter(|_| random.below(100) < percent).collect()
}

fn folder_bytes(folder: &Path) -> Fallible<u64> {
    let mut sum = 0;
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        sum += if metadata.is_dir() { folder_bytes(&entry.path())? } else { metadata.len() };
    }
    Ok(sum)
}

/// Reads batches of random live keys into one buffer.
struct Gather {
    keys: Vec<u64>,
    out: Vec<u8>,
    found: Vec<bool>,
    random: Random,
}

impl Gather {
    fn new(versions: &Versions, row_bytes: usize) -> Self {
        let keys = (0..).zip(versions).filter(|(_, version)| version.is_some()).map(|(key, _)| key).collect();
        Self { keys, out: vec![0; GATHER * row_bytes], found: vec![false; GATHER], random: Random(7) }
    }

    fn read(&mut self, reader: &Reader, row_bytes: usize) -> Fallible<Duration> {
        let mut key = || self.keys.get(self.random.below(self.keys.len() as u64) as usize).copied();
        let batch: Vec<u64> = (0..GATHER).filter_map(|_| key()).collect();
        let begin = Instant::now();
        let hits = reader.get_batch_into(&batch, &[row_bytes], &mut self.out, &mut self.found)?;
        let time = begin.elapsed();
        if hits == GATHER { Ok(time) } else { Err(format!("{hits} of {GATHER} keys were found").into()) }
    }
}

/// Latencies of reads for some seconds, or until `stop`.
fn latencies(
    gather: &mut Gather,
    reader: &Reader,
    row_bytes: usize,
    seconds: Option<u64>,
    stop: &AtomicBool,
) -> Fallible<Histogram<u64>> {
    let mut histogram = Histogram::new(3)?;
    let begin = Instant::now();
    while seconds.is_none_or(|seconds| begin.elapsed().as_secs() < seconds) && !stop.load(Ordering::Acquire) {
        histogram.record(gather.read(reader, row_bytes)?.as_nanos() as u64)?;
    }
    Ok(histogram)
}

fn us(histogram: &Histogram<u64>, quantile: f64) -> f64 {
    histogram.value_at_quantile(quantile) as f64 / 1e3
}

fn check(reader: &Reader, versions: &Versions, row_bytes: usize) -> Fallible {
    let (mut out, mut found) = (vec![0_u8; BATCH * row_bytes], vec![false; BATCH]);
    let mut expected = vec![0_u8; row_bytes];
    let keys: Vec<u64> = (0..versions.len() as u64).collect();
    for keys in keys.chunks(BATCH) {
        let out = out.get_mut(..keys.len() * row_bytes).ok_or("a batch too large")?;
        let found = found.get_mut(..keys.len()).ok_or("a batch too large")?;
        reader.get_batch_into(keys, &[row_bytes], out, found)?;
        for ((key, found), row) in keys.iter().zip(found).zip(out.chunks(row_bytes)) {
            let version = versions.get(*key as usize).copied().flatten();
            if let Some(version) = version {
                fill(&mut expected, *key, version);
            }
            if version.is_some() != *found || version.is_some() && row != expected {
                return Err(format!("key {key}: expected version {version:?}").into());
            }
        }
    }
    Ok(())
}

fn prepare(settings: &Settings) -> Fallible<(Store, Versions)> {
    let store = options().open(&settings.dir, "sparse")?;
    let mut random = Random(3);
    let all: Vec<u64> = (0..settings.rows as u64).collect();
    put(&store, &all, settings.row_bytes, 0)?;
    let overwritten = some_keys(&mut random, settings.rows, 30);
    put(&store, &overwritten, settings.row_bytes, 1)?;
    let deleted = some_keys(&mut random, settings.rows, 20);
    deleted.chunks(BATCH).try_for_each(|keys| store.delete_batch(keys).map(drop))?;
    store.flush()?;
    let mut versions: Versions = vec![Some(0); settings.rows];
    let changes = overwritten.iter().map(|key| (*key, Some(1))).chain(deleted.iter().map(|key| (*key, None)));
    for (key, version) in changes {
        if let Some(place) = versions.get_mut(key as usize) {
            *place = version;
        }
    }
    Ok((store, versions))
}

fn fresh(settings: &Settings, versions: &Versions) -> Fallible<Store> {
    let store = options().open(&settings.dir, "fresh")?;
    for version in 0..2 {
        let keys = (0..).zip(versions).filter(|(_, found)| **found == Some(version)).map(|(key, _)| key);
        put(&store, &keys.collect::<Vec<_>>(), settings.row_bytes, version)?;
    }
    store.close()?;
    Ok(store)
}

fn options() -> Options {
    Options::new().durability(Durability::SyncData).compaction_live_share(0.0)
}

fn run(settings: &Settings) -> Fallible<String> {
    let (store, versions) = prepare(settings)?;
    let control = fresh(settings, &versions)?;
    let folder = |name: &str| folder_bytes(&settings.dir.join(name));
    let (before, fresh_bytes) = (folder("sparse")?, folder("fresh")?);
    let (width, never) = (settings.row_bytes, AtomicBool::new(false));
    let mut gather = Gather::new(&versions, width);
    // Rows that were read once are not validated again.
    store.reader().preload(u64::MAX)?;
    check(store.reader(), &versions, width)?;
    latencies(&mut gather, store.reader(), width, Some(1), &never)?;
    let idle = latencies(&mut gather, store.reader(), width, Some(settings.seconds), &never)?;
    // Another thread reads while this one compacts.
    let done = AtomicBool::new(false);
    let (report, meanwhile) = std::thread::scope(|scope| -> Fallible<_> {
        let reads = scope
            .spawn(|| latencies(&mut gather, store.reader(), width, None, &done).map_err(|error| error.to_string()));
        let report = store.compact(&Compaction::new());
        done.store(true, Ordering::Release);
        let reads = reads.join().map_err(|_| "the reading thread failed")?;
        Ok((report?, reads?))
    })?;
    store.close()?;
    let after = folder("sparse")?;
    for store in [&store, &control] {
        store.reader().preload(u64::MAX)?;
        check(store.reader(), &versions, width)?;
    }
    let mut ratios = Histogram::<u64>::new(3)?;
    let rounds = if settings.rows > 100_000 { 400 } else { 40 };
    for round in 0..rounds + 20 {
        // Both stores read the same keys, alternately.
        let seed = gather.random.0;
        let ours = gather.read(store.reader(), width)?;
        gather.random = Random(seed);
        let theirs = gather.read(control.reader(), width)?;
        if round >= 20 {
            ratios.record((ours.as_secs_f64() / theirs.as_secs_f64() * 1e4) as u64)?;
        }
    }
    let mut table = String::new();
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    writeln!(table, "| {} rows of {width} B, 30 % overwritten, 20 % deleted | |\n| --- | --- |", settings.rows)?;
    let amplification = report.bytes_written as f64 / report.bytes_freed.max(1) as f64;
    let rows = [
        ("on disk before, MiB", format!("{:.0}", mib(before))),
        ("on disk after, MiB", format!("{:.0}", mib(after))),
        ("of a store of the same rows that was written once", format!("{:.3}", after as f64 / fresh_bytes as f64)),
        ("segments rewritten to", format!("{} to {}", report.segments_rewritten, report.segments_written)),
        ("rows dropped", format!("{}", report.rows_dropped)),
        ("bytes written for each byte freed", format!("{amplification:.2}")),
        ("seconds", format!("{:.2}", report.elapsed.as_secs_f64())),
        ("reads of 256 rows, idle: p50, p99, us", format!("{:.0}, {:.0}", us(&idle, 0.5), us(&idle, 0.99))),
        ("meanwhile: p50, p99, us", format!("{:.0}, {:.0}", us(&meanwhile, 0.5), us(&meanwhile, 0.99))),
        ("p99 meanwhile / idle", format!("{:.2}", us(&meanwhile, 0.99) / us(&idle, 0.99))),
        (
            "reads after, of those of the other store (median)",
            format!("{:.3}", ratios.value_at_quantile(0.5) as f64 / 1e4),
        ),
    ];
    for (name, figure) in rows {
        writeln!(table, "| {name} | {figure} |")?;
    }
    Ok(table)
}

fn main() -> Fallible {
    let settings = settings()?;
    if settings.dir.exists() {
        return Err(format!("{} exists: give a folder that does not", settings.dir.display()).into());
    }
    let table = run(&settings);
    std::fs::remove_dir_all(&settings.dir)?;
    let table = table?;
    println!("{table}");
    if let Some(report) = &settings.report {
        let page = format!(
            "# Compaction\n\n`cargo bench --bench compaction` on {} processors.\n\n{table}",
            std::thread::available_parallelism()?
        );
        std::fs::write(report, page)?;
    }
    Ok(())
}
