//! Batched reads of random keys under each verification policy, with the raw gather as control; misses; membership.

use std::hint::black_box;
use std::path::Path;
use std::time::Instant;

use hdrhistogram::Histogram;
use memmap2::Mmap;
use tensorcask::{Dtype, Options, Reader, Verify};

use crate::random::Random;
use crate::table::{Table, percentiles, quartiles, spread};
use crate::{Fallible, GATHER, MODULE, Size, large, raw};

/// Batches that a contender reads per round; the figure of a round is their median.
const BATCHES: usize = 5;
const POLICIES: [Verify; 3] = [Verify::FirstRead, Verify::Always, Verify::Never];
/// Keys from here on are absent.
const ABSENT: u64 = 1 << 60;
/// How often rows are read into memory again, at other physical addresses.
const PLACEMENTS: u64 = 5;
/// A cache line: the least memory that a lookup has to touch.
const LINE: usize = 64;

/// The batches of one contender, in nanoseconds each.
struct Series {
    all: Histogram<u64>,
    rounds: Vec<f64>,
}

impl Series {
    fn new() -> Fallible<Self> {
        Ok(Self { all: Histogram::new(3)?, rounds: Vec::new() })
    }

    fn add(&mut self, more: Self) -> Fallible {
        self.all.add(more.all)?;
        self.rounds.extend(more.rounds);
        Ok(())
    }

    fn ratios(&self, control: &Self) -> Vec<f64> {
        self.rounds.iter().zip(&control.rounds).map(|(ours, raw)| ours / raw).collect()
    }
}

/// Calls all contenders in turn, several batches per round. Each round begins with another contender. A contender is
/// passed the number of batches it has had before.
fn rounds(rounds: usize, contenders: &mut [&mut dyn FnMut(usize) -> Fallible<u64>]) -> Fallible<Vec<Series>> {
    let mut series = contenders.iter().map(|_| Series::new()).collect::<Fallible<Vec<_>>>()?;
    let count = contenders.len();
    for round in 0..rounds {
        for turn in (0..count).map(|turn| (turn + round) % count) {
            let (Some(contender), Some(series)) = (contenders.get_mut(turn), series.get_mut(turn)) else { continue };
            let mut batches = Vec::with_capacity(BATCHES);
            for batch in round * BATCHES..(round + 1) * BATCHES {
                let nanos = contender(batch)?;
                series.all.record(nanos)?;
                batches.push(nanos as f64);
            }
            series.rounds.push(quartiles(&batches)[0]);
        }
    }
    Ok(series)
}

/// Row numbers of each batch.
enum Draw {
    /// Random rows, with repetition.
    Random(Random),
    /// Every row once, starting at some position of one random order.
    Once(Vec<u64>, usize),
}

impl Draw {
    fn once(rows: usize, share: usize) -> Self {
        let mut numbers: Vec<u64> = (0..rows as u64).collect();
        let mut random = Random(3);
        (1..rows).rev().for_each(|at| numbers.swap(at, random.below(at as u64 + 1) as usize));
        // Contenders start as far apart as possible, so that none finds rows in the cache that another has read.
        Self::Once(numbers, rows / (POLICIES.len() + 1) * share)
    }

    fn batch(&mut self, rows: usize, batch: usize, numbers: &mut Vec<u64>) {
        numbers.clear();
        match self {
            Self::Random(random) => numbers.extend((0..GATHER).map(|_| random.below(rows as u64))),
            Self::Once(all, from) => {
                let places = (0..GATHER).map(|at| (*from + batch * GATHER + at) % rows);
                numbers.extend(places.filter_map(|place| all.get(place)));
            }
        }
    }
}

/// The buffers of a contender.
struct Buffers {
    numbers: Vec<u64>,
    out: Vec<u8>,
    found: Vec<bool>,
}

impl Buffers {
    fn new(row_bytes: usize) -> Self {
        Self { numbers: Vec::new(), out: vec![1; GATHER * row_bytes], found: vec![false; GATHER] }
    }
}

fn read(size: &Size<'_>, reader: &Reader, draw: &mut Draw, batch: usize, with: &mut Buffers) -> Fallible<u64> {
    draw.batch(size.settings.rows, batch, &mut with.numbers);
    let begin = Instant::now();
    let shape = [size.row_bytes];
    let hits = reader.get_batch_into_bytes(&with.numbers, Dtype::U8, &shape, &mut with.out, &mut with.found)?;
    let nanos = begin.elapsed().as_nanos() as u64;
    if hits != GATHER { Err("a row is missing".into()) } else { Ok(nanos) }
}

fn copy(size: &Size<'_>, map: &[u8], draw: &mut Draw, batch: usize, with: &mut Buffers) -> Fallible<u64> {
    draw.batch(size.settings.rows, batch, &mut with.numbers);
    let begin = Instant::now();
    raw::gather(map, &with.numbers, size.row_bytes, &mut with.out);
    let nanos = begin.elapsed().as_nanos() as u64;
    black_box(&with.out);
    Ok(nanos)
}

/// The three policies and the raw gather in turn.
fn policies(
    size: &Size<'_>,
    readers: &[Reader; 3],
    map: &[u8],
    draws: [Draw; 4],
    count: usize,
) -> Fallible<Vec<Series>> {
    let [a, b, c] = readers;
    let [mut of_a, mut of_b, mut of_c, mut of_raw] = draws;
    let mut with = [(); 4].map(|()| Buffers::new(size.row_bytes));
    let [with_a, with_b, with_c, with_raw] = &mut with;
    rounds(
        count,
        &mut [
            &mut |batch| read(size, a, &mut of_a, batch, with_a),
            &mut |batch| read(size, b, &mut of_b, batch, with_b),
            &mut |batch| read(size, c, &mut of_c, batch, with_c),
            &mut |batch| copy(size, map, &mut of_raw, batch, with_raw),
        ],
    )
}

/// The targets of the default policy with everything in memory: a ratio for large rows, a time for small ones.
fn bars(row_bytes: usize) -> (&'static str, &'static str) {
    if row_bytes >= 1024 { ("≤ 1.25 ×", "") } else { ("", "≤ 150 ns") }
}

fn add(table: &mut Table, state: &str, series: &[Series], (ratio_bar, time_bar): (&str, &str)) {
    let Some((control, ours)) = series.split_last() else { return };
    for (policy, series) in POLICIES.iter().zip(ours) {
        let of_default = |bar| if *policy == Verify::FirstRead { bar } else { "" };
        let what = format!("get_batch_into, {GATHER} random keys, {state}, {policy:?} / raw gather");
        table.add(&what, spread(&series.ratios(control), "×"), of_default(ratio_bar));
        table.add("  a row", a_key(series), of_default(time_bar));
        table.add("  p50 / p99 / p99.9", percentiles(&series.all), "");
    }
    table.add(&format!("  raw gather, {state}, a row"), a_key(control), "");
    table.add("  p50 / p99 / p99.9", percentiles(&control.all), "");
}

/// Measures reads of a closed store and of the plain file `path` with the same rows.
pub(crate) fn reads(size: &Size<'_>, path: &Path, table: &mut Table) -> Fallible {
    let open = |verify| Options::new().verify(verify).open_reader(size.dir(), MODULE);
    let readers = [open(POLICIES[0])?, open(POLICIES[1])?, open(POLICIES[2])?];
    let map = raw::map(path)?;
    // Each row is read once, by one contender.
    let most = size.settings.rows / (POLICIES.len() + 1) / GATHER / BATCHES;
    let once = [0, 1, 2, 3].map(|share| Draw::once(size.settings.rows, share));
    let first = policies(size, &readers, &map, once, most.clamp(1, size.settings.rounds))?;
    add(table, "first pass", &first, ("", ""));

    for reader in &readers {
        read_all(size, reader)?;
    }
    black_box(map.iter().step_by(4096).map(|byte| u64::from(*byte)).sum::<u64>());
    let random = [7, 8, 9, 10].map(|seed| Draw::Random(Random(seed << 40)));
    let in_memory = policies(size, &readers, &map, random, size.settings.rounds)?;
    add(table, "in memory", &in_memory, bars(size.row_bytes));
    let [reader, ..] = &readers;
    keys_alone(size, reader, &map, table)?;

    // Pages that are mapped cannot be dropped.
    drop((readers, map));
    preloaded(size, path, table)
}

/// The same after [`Reader::preload`], with the plain file loaded in the same way, several times: the speed of memory
/// depends on its physical addresses, by a third and more under a hypervisor.
fn preloaded(size: &Size<'_>, path: &Path, table: &mut Table) -> Fallible {
    let mut all: Vec<Series> = Vec::new();
    for placement in 0..PLACEMENTS {
        for folder in ["segments", "runs"] {
            drop_from_memory(&size.dir().join(MODULE).join(folder))?;
        }
        let open = |verify| Options::new().verify(verify).open_reader(size.dir(), MODULE);
        let readers = [open(POLICIES[0])?, open(POLICIES[1])?, open(POLICIES[2])?];
        let [reader, ..] = &readers;
        reader.preload(u64::MAX)?;
        let map = large::map(path)?;
        for reader in &readers {
            read_all(size, reader)?;
        }
        let random = [7, 8, 9, 10].map(|seed| Draw::Random(Random((seed + placement) << 40)));
        let rounds = size.settings.rounds.div_ceil(PLACEMENTS as usize);
        for (number, series) in policies(size, &readers, &map, random, rounds)?.into_iter().enumerate() {
            match all.get_mut(number) {
                Some(all) => all.add(series)?,
                None => all.push(series),
            }
        }
    }
    let state = format!("in pages of 2 MiB, {PLACEMENTS} places in memory");
    add(table, &state, &all, bars(size.row_bytes));
    Ok(())
}

/// Drops the files of a folder from memory. They must not be mapped.
fn drop_from_memory(folder: &Path) -> Fallible {
    for entry in std::fs::read_dir(folder)? {
        let file = std::fs::File::open(entry?.path())?;
        file.sync_data()?;
        #[cfg(target_os = "linux")]
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)?;
    }
    Ok(())
}

/// Reads every row, so that all pages are mapped and all first reads are done.
pub(crate) fn read_all(size: &Size<'_>, reader: &Reader) -> Fallible {
    let mut with = Buffers::new(size.row_bytes);
    let rows = size.settings.rows as u64;
    for start in (0..rows).step_by(GATHER) {
        with.numbers.clear();
        with.numbers.extend((start..start + GATHER as u64).map(|number| number % rows));
        reader.get_batch_into_bytes(&with.numbers, Dtype::U8, &[size.row_bytes], &mut with.out, &mut with.found)?;
    }
    Ok(())
}

/// Finds keys without copying rows; the control copies one cache line per key.
fn keys_alone(size: &Size<'_>, reader: &Reader, map: &Mmap, table: &mut Table) -> Fallible {
    let rows = size.settings.rows as u64;
    let keys =
        |random: &mut Random, from: u64| -> Vec<u64> { (0..GATHER).map(|_| from + random.below(rows)).collect() };
    let contains = |random: &mut Random, from: u64, expected: bool| -> Fallible<u64> {
        let keys = keys(random, from);
        let begin = Instant::now();
        let found = reader.contains_batch(&keys)?;
        let nanos = begin.elapsed().as_nanos() as u64;
        if found.contains(&!expected) { Err("membership is wrong".into()) } else { Ok(nanos) }
    };
    let mut randoms = [21, 22, 23, 24].map(|seed| Random(seed << 40));
    let [of_hits, of_misses, of_reads, of_raw] = &mut randoms;
    let (mut out, mut found) = (vec![1_u8; GATHER * size.row_bytes], vec![false; GATHER]);
    let mut lines = vec![0_u8; GATHER * LINE];
    let series = rounds(
        size.settings.rounds,
        &mut [
            &mut |_| contains(of_hits, 0, true),
            &mut |_| contains(of_misses, ABSENT, false),
            &mut |_| {
                let keys = keys(of_reads, ABSENT);
                let begin = Instant::now();
                let hits = reader.get_batch_into_bytes(&keys, Dtype::U8, &[size.row_bytes], &mut out, &mut found)?;
                let nanos = begin.elapsed().as_nanos() as u64;
                if hits != 0 { Err("an absent key was found".into()) } else { Ok(nanos) }
            },
            &mut |_| {
                let numbers: Vec<u64> = (0..GATHER).map(|_| of_raw.below((map.len() / LINE) as u64)).collect();
                let begin = Instant::now();
                raw::gather(map, &numbers, LINE, &mut lines);
                let nanos = begin.elapsed().as_nanos() as u64;
                black_box(&lines);
                Ok(nanos)
            },
        ],
    )?;
    let Some((control, ours)) = series.split_last() else { return Ok(()) };
    let names = ["contains_batch, all there", "contains_batch, all absent", "get_batch_into, all absent"];
    for (name, series) in names.iter().zip(ours) {
        let what = format!("{name}, {GATHER} random keys, in memory / a random line a key");
        table.add(&what, spread(&series.ratios(control), "×"), "");
        table.add("  a key", a_key(series), "");
    }
    table.add("  a random line", a_key(control), "");
    Ok(())
}

fn a_key(series: &Series) -> String {
    let keys: Vec<f64> = series.rounds.iter().map(|nanos| nanos / GATHER as f64).collect();
    spread(&keys, "ns")
}
