//! The costs of a loaded and closed store: opening, memory, disk, and reads with the raw control.

use std::hint::black_box;
use std::ops::Range;
use std::process::{Command, Stdio};
use std::time::Instant;

use indicatif::ProgressBar;
use serde::Serialize;
use tensorcask::{Reader, Store};

use crate::data::{
    Control, Elapsed, Random, check_rows, folder_bytes, major_faults, memory_bytes, mix, preempted, raw_gather,
    resident_bytes, timed,
};
use crate::residency;
use crate::statistics::{Percentiles, block_means, histogram, spread};
use crate::wide::{WIDE_BYTES, Wide};
use crate::{CHILD, Fallible, GATHER, MODULE, Settings};

const OPENS: usize = 9;
/// Counters from here on are never put, so their keys are absent.
const ABSENT: u64 = 1 << 62;

/// The results of one step for a store at rest.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Rest {
    pub runs: usize,
    pub segments: usize,
    /// Milliseconds: median, minimum, maximum.
    pub open_ms: [f64; 3],
    pub disk_bytes: u64,
    pub run_bytes: u64,
    pub memory: Memory,
    /// Nanoseconds per key of the first read of all rows, in the order in which they were put, by two threads,
    /// including checksums.
    pub first_read_ns: f64,
    /// The shares of the pages of runs and of segments that were in memory before the series were measured.
    pub resident_runs: f64,
    pub resident_segments: f64,
    pub hit: Series,
    pub miss: Series,
    pub raw: Series,
    /// Membership of present keys: the index, and the comparison of keys.
    pub contains: Series,
    /// The same with no other reads in between, and for absent keys.
    pub contains_alone: Series,
    pub absent_alone: Series,
    /// Wide rows.
    pub wide: Series,
    pub wide_raw: Series,
    /// Page faults that waited for the disk during the series.
    pub major_faults: u64,
    /// How often the kernel preempted the thread during the series, which affects the tail.
    pub preempted: u64,
}

/// Resident memory of a process that opened the store and read every row, minus its memory before.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Memory {
    pub opened_anonymous: u64,
    pub read_anonymous: u64,
    pub read_file: u64,
}

/// The batches of one kind.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Series {
    /// Nanoseconds per key.
    pub ns: Percentiles,
    /// The same for the time on the core, without preemptions.
    pub core_ns: Percentiles,
    /// The minimum and the maximum of the medians of the tenths of the series.
    pub medians: [f64; 2],
    /// Mean logarithms of blocks of adjacent batches, to which slopes are fitted.
    pub blocks: Vec<f64>,
}

#[derive(Default)]
struct Timed {
    wall: Vec<f64>,
    core: Vec<f64>,
}

impl Timed {
    fn add(&mut self, elapsed: Elapsed) {
        self.wall.push(elapsed.wall as f64 / GATHER as f64);
        self.core.push(elapsed.core as f64 / GATHER as f64);
    }

    fn clear(&mut self) {
        self.wall.clear();
        self.core.clear();
    }

    fn series(&self) -> Fallible<Series> {
        let tenth = self.wall.len().div_ceil(10).max(1);
        let medians: Vec<f64> = self.wall.chunks(tenth).map(|part| spread(part)[0]).collect();
        let [_, low, high] = spread(&medians);
        Ok(Series {
            ns: percentiles(&self.wall)?,
            core_ns: percentiles(&self.core)?,
            medians: [low, high],
            blocks: block_means(&self.wall),
        })
    }
}

fn percentiles(values: &[f64]) -> Fallible<Percentiles> {
    let mut all = histogram()?;
    for value in values {
        // In thousandths of a nanosecond, as a key takes few nanoseconds.
        all.record((value * 1000.0) as u64)?;
    }
    Ok(Percentiles::of(&all, 1000.0))
}

/// Measures a closed store of `keys` keys.
pub(crate) fn rest(
    settings: &Settings,
    keys: u64,
    control: &mut Control,
    wide: &Wide,
    bar: &ProgressBar,
) -> Fallible<Rest> {
    bar.set_message("opening");
    let open_ms = opens(settings)?;
    let disk_bytes = folder_bytes(&settings.dir.join(MODULE))?;
    bar.set_message("memory");
    let memory = memory(settings, keys)?;
    bar.set_message("control");
    control.grow(keys)?;
    bar.set_message("reading");
    let store = Store::open(&settings.dir, MODULE)?;
    let stats = store.stats()?;
    if store.len()? != keys + wide.rows() {
        return Err(format!("the store counts {} keys, not {keys} and {} wide rows", store.len()?, wide.rows()).into());
    }
    store.preload(stats.run_bytes)?;
    let first_read_ns = read_all(store.reader(), keys, settings.row_bytes)?;
    let folder = settings.dir.join(MODULE);
    // If the store fits into memory together with the control, all of it is loaded into large pages; otherwise the
    // index and the wide rows, which were put first. The small rows have been read into memory already.
    let all = disk_bytes + keys * settings.row_bytes as u64;
    let limit = if all < memory_bytes()? / 2 { u64::MAX } else { stats.run_bytes + wide.store_bytes() };
    store.preload(limit)?;
    control.touch()?;
    wide.touch();
    let resident_runs = residency::resident_share(&folder.join("runs"))?;
    let resident_segments = residency::resident_share(&folder.join("segments"))?;
    let (faults, switches) = (major_faults()?, preempted()?);
    let [hit, raw, miss, contains, of_wide, wide_raw, contains_alone, absent_alone] =
        Reads::new(settings, keys, &store, control, wide)?.measure()?;
    let (major_faults, preempted) = (major_faults()? - faults, preempted()? - switches);
    store.close()?;
    Ok(Rest {
        runs: stats.runs,
        segments: stats.segments,
        open_ms,
        disk_bytes,
        run_bytes: stats.run_bytes,
        memory,
        first_read_ns,
        resident_runs,
        resident_segments,
        hit: hit.series()?,
        miss: miss.series()?,
        raw: raw.series()?,
        contains: contains.series()?,
        contains_alone: contains_alone.series()?,
        absent_alone: absent_alone.series()?,
        wide: of_wide.series()?,
        wide_raw: wide_raw.series()?,
        major_faults,
        preempted,
    })
}

fn opens(settings: &Settings) -> Fallible<[f64; 3]> {
    let mut milliseconds = Vec::new();
    for _ in 0..OPENS {
        let begin = Instant::now();
        let store = Store::open(&settings.dir, MODULE)?;
        milliseconds.push(begin.elapsed().as_secs_f64() * 1e3);
        store.close()?;
    }
    Ok(spread(&milliseconds))
}

/// Reads and checks all rows, in the order in which they were put, by two threads. Returns nanoseconds per key.
fn read_all(reader: &Reader, keys: u64, row_bytes: usize) -> Fallible<f64> {
    const THREADS: u64 = 2;
    let begin = Instant::now();
    std::thread::scope(|scope| {
        let parts = (0..THREADS).map(|part| keys * part / THREADS..keys * (part + 1) / THREADS);
        let threads: Vec<_> = parts
            .map(|counters| {
                scope.spawn(move || read_part(reader, counters, row_bytes).map_err(|error| error.to_string()))
            })
            .collect();
        threads.into_iter().try_for_each(|thread| thread.join().unwrap_or_else(|_| Err("a reader panicked".into())))
    })?;
    Ok(begin.elapsed().as_secs_f64() * 1e9 / keys as f64)
}

fn read_part(reader: &Reader, counters: Range<u64>, row_bytes: usize) -> Fallible {
    const BATCH: u64 = 2048;
    let mut out = vec![0_u8; BATCH as usize * row_bytes];
    let mut found = vec![false; BATCH as usize];
    let (mut asked, mut scratch) = (Vec::new(), Vec::new());
    for start in counters.clone().step_by(BATCH as usize) {
        asked.clear();
        asked.extend((start..counters.end.min(start + BATCH)).map(mix));
        let rows = out.get_mut(..asked.len() * row_bytes).ok_or("the buffer is too short")?;
        let found = found.get_mut(..asked.len()).ok_or("the mask is too short")?;
        let hits = reader.get_batch_into(&asked, &[row_bytes], rows, found)?;
        expect_hits(hits, asked.len())?;
        check_rows(&asked, rows, row_bytes, &mut scratch)?;
    }
    Ok(())
}

fn expect_hits(hits: usize, expected: usize) -> Fallible {
    if hits == expected { Ok(()) } else { Err(format!("{hits} keys were found, not {expected}").into()) }
}

/// Reads batches of several kinds in turn.
struct Reads<'a> {
    settings: &'a Settings,
    keys: u64,
    store: &'a Store,
    all: &'a [u8],
    wide: &'a Wide,
    random: Random,
    numbers: Vec<u64>,
    asked: Vec<u64>,
    out: Vec<u8>,
    wide_out: Vec<u8>,
    found: Vec<bool>,
    scratch: Vec<u8>,
}

/// The kinds: present rows, rows by number, absent rows, membership, wide rows, wide rows by number, membership without
/// other reads in between, membership of absent keys.
const KINDS: usize = 8;
/// Kinds that are read in turn. Wide rows are separate, as they evict everything else from the caches.
const TURNS: [Range<usize>; 4] = [0..4, 4..6, 6..7, 7..8];

impl<'a> Reads<'a> {
    fn new(
        settings: &'a Settings,
        keys: u64,
        store: &'a Store,
        control: &'a Control,
        wide: &'a Wide,
    ) -> Fallible<Self> {
        Ok(Self {
            settings,
            keys,
            store,
            all: control.bytes()?,
            wide,
            random: Random(keys),
            numbers: Vec::new(),
            asked: Vec::new(),
            out: vec![0; GATHER * settings.row_bytes],
            wide_out: Wide::buffer(),
            found: vec![false; GATHER],
            scratch: Vec::new(),
        })
    }

    fn measure(mut self) -> Fallible<[Timed; KINDS]> {
        let mut series: [Timed; KINDS] = Default::default();
        let warm_up = self.settings.batches / 10;
        for kinds in TURNS {
            for turn in 0..self.settings.batches + warm_up {
                if turn == warm_up {
                    series.get_mut(kinds.clone()).ok_or("no series")?.iter_mut().for_each(Timed::clear);
                }
                // The order changes, so that no kind always follows the same other one.
                for kind in kinds.clone().map(|kind| kinds.start + (turn + kind) % kinds.len()) {
                    let elapsed = if TURNS[1].contains(&kind) { self.wide(kind)? } else { self.small(kind)? };
                    series.get_mut(kind).ok_or("no series")?.add(elapsed);
                }
            }
        }
        Ok(series)
    }

    fn draw(&mut self, below: u64) {
        self.numbers.clear();
        self.numbers.extend((0..GATHER).map(|_| self.random.below(below)));
    }

    fn small(&mut self, kind: usize) -> Fallible<Elapsed> {
        self.draw(self.keys);
        let is_absent = matches!(kind, 2 | 7);
        let first = if is_absent { ABSENT } else { 0 };
        self.asked.clear();
        self.asked.extend(self.numbers.iter().map(|number| mix(first + number)));
        let row_bytes = self.settings.row_bytes;
        let Self { store, asked, out, found, numbers, all, .. } = self;
        let (hits, elapsed) = match kind {
            1 => {
                let ((), elapsed) = timed(|| raw_gather(all, numbers, row_bytes, out));
                (GATHER, elapsed)
            }
            3 | 6 | 7 => {
                let (there, elapsed) = timed(|| store.contains_batch(&*asked));
                (there?.iter().filter(|there| **there).count(), elapsed)
            }
            _ => {
                let (hits, elapsed) = timed(|| store.get_batch_into(&*asked, &[row_bytes], out, found));
                (hits?, elapsed)
            }
        };
        expect_hits(hits, if is_absent { 0 } else { GATHER })?;
        if kind < 2 {
            check_rows(&self.asked, black_box(&self.out), row_bytes, &mut self.scratch)?;
        }
        Ok(elapsed)
    }

    fn wide(&mut self, kind: usize) -> Fallible<Elapsed> {
        self.draw(self.wide.rows());
        Wide::keys(&self.numbers, &mut self.asked);
        let Self { store, asked, wide_out, found, numbers, wide, .. } = self;
        let elapsed = if kind == 5 {
            timed(|| wide.gather(numbers, wide_out)).1
        } else {
            let (hits, elapsed) = timed(|| store.get_batch_into(&*asked, &[WIDE_BYTES], wide_out, found));
            expect_hits(hits?, GATHER)?;
            elapsed
        };
        wide.check(numbers, black_box(wide_out))?;
        Ok(elapsed)
    }
}

/// Memory is measured in a process of its own, as the allocator of a process that loaded keeps freed memory.
fn memory(settings: &Settings, keys: u64) -> Fallible<Memory> {
    let mut command = Command::new(std::env::current_exe()?);
    command.env(CHILD, "memory").arg("--dir").arg(&settings.dir);
    command.arg("--row-bytes").arg(settings.row_bytes.to_string()).arg("--max-keys").arg(keys.to_string());
    let output = command.stdout(Stdio::piped()).stderr(Stdio::inherit()).output()?;
    let text = String::from_utf8(output.stdout)?;
    let numbers: Vec<u64> = text.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    match *numbers.as_slice() {
        [opened_anonymous, read_anonymous, read_file] => Ok(Memory { opened_anonymous, read_anonymous, read_file }),
        _ => Err(format!("the child said {text:?}").into()),
    }
}

/// Runs the child.
pub(crate) fn measure_memory(settings: &Settings) -> Fallible {
    let (anonymous, file) = resident_bytes()?;
    let reader = Reader::open(&settings.dir, MODULE)?;
    let opened = resident_bytes()?.0;
    // Preloaded, because sequential reads alone do not keep the index in memory if not everything fits.
    reader.preload(reader.stats()?.run_bytes)?;
    read_all(&reader, settings.max_keys, settings.row_bytes)?;
    let (read, read_file) = resident_bytes()?;
    let less = |now: u64, before: u64| now.saturating_sub(before);
    println!("{} {} {}", less(opened, anonymous), less(read, anonymous), less(read_file, file));
    Ok(())
}
