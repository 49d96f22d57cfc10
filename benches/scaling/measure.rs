//! What a loaded and closed store costs: opening, memory, disk, and reads beside the raw control.

use std::hint::black_box;
use std::process::{Command, Stdio};
use std::time::Instant;

use indicatif::ProgressBar;
use serde::Serialize;
use tensorcask::{Reader, Store};

use crate::data::{
    Control, Elapsed, Random, check_rows, folder_bytes, major_faults, mix, preempted, raw_gather, resident_bytes, timed,
};
use crate::statistics::{Percentiles, block_means, histogram, spread};
use crate::{CHILD, Fallible, GATHER, MODULE, Settings};

const OPENS: usize = 9;
/// Blocks of counters behind all that are ever put: their keys are absent.
const ABSENT: u64 = 1 << 62;

/// What one step measured of a store at rest.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Rest {
    pub runs: usize,
    pub segments: usize,
    /// Milliseconds: the middle, the lowest, the highest.
    pub open_ms: [f64; 3],
    pub disk_bytes: u64,
    pub run_bytes: u64,
    pub memory: Memory,
    /// Nanoseconds a key of the first read of all rows in the order in which they were put, checksums included.
    pub first_read_ns: f64,
    pub hit: Series,
    pub miss: Series,
    pub raw: Series,
    /// Page faults that waited for the disk while the three series were measured.
    pub major_faults: u64,
    /// How often the kernel took the core away meanwhile: what others did to the tail.
    pub preempted: u64,
}

/// Resident memory of a process that opened the store and read every row, less what it had before.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Memory {
    pub opened_anonymous: u64,
    pub read_anonymous: u64,
    pub read_file: u64,
}

/// Batches of one kind.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Series {
    /// Nanoseconds a key.
    pub ns: Percentiles,
    /// The same of the time on the core: without what other programs took.
    pub core_ns: Percentiles,
    /// The lowest and the highest median of the tenths of the series.
    pub medians: [f64; 2],
    /// Means of the logarithms of blocks of neighbouring batches: what slopes are fitted to.
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
        // In thousandths of a nanosecond: a key takes few of them.
        all.record((value * 1000.0) as u64)?;
    }
    Ok(Percentiles::of(&all, 1000.0))
}

/// Measures a closed store of `keys` keys.
pub(crate) fn rest(settings: &Settings, keys: u64, control: &mut Control, bar: &ProgressBar) -> Fallible<Rest> {
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
    if store.len()? != keys {
        return Err(format!("the store counts {} keys, not {keys}", store.len()?).into());
    }
    let first_read_ns = read_all(&store, keys, settings.row_bytes)?;
    let (faults, switches) = (major_faults()?, preempted()?);
    let [hit, raw, miss] = reads(settings, keys, &store, control)?;
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
        hit: hit.series()?,
        miss: miss.series()?,
        raw: raw.series()?,
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

/// Reads and checks all rows in the order in which they were put; nanoseconds a key, checks of this bench left out.
fn read_all(reader: &Reader, keys: u64, row_bytes: usize) -> Fallible<f64> {
    const BATCH: u64 = 2048;
    let mut out = vec![0_u8; BATCH as usize * row_bytes];
    let mut found = vec![false; BATCH as usize];
    let (mut asked, mut scratch) = (Vec::new(), Vec::new());
    let mut seconds = 0.0;
    for start in (0..keys).step_by(BATCH as usize) {
        asked.clear();
        asked.extend((start..keys.min(start + BATCH)).map(mix));
        let rows = out.get_mut(..asked.len() * row_bytes).ok_or("the buffer is too short")?;
        let found = found.get_mut(..asked.len()).ok_or("the mask is too short")?;
        let begin = Instant::now();
        let hits = reader.get_batch_into(&asked, &[row_bytes], rows, found)?;
        seconds += begin.elapsed().as_secs_f64();
        if hits != asked.len() {
            return Err(format!("{} of {} keys from counter {start} on are missing", asked.len() - hits, hits).into());
        }
        check_rows(&asked, rows, row_bytes, &mut scratch)?;
    }
    Ok(seconds * 1e9 / keys as f64)
}

/// Batches of present keys, of rows with known numbers, and of absent keys, in turn.
fn reads(settings: &Settings, keys: u64, store: &Store, control: &Control) -> Fallible<[Timed; 3]> {
    let row_bytes = settings.row_bytes;
    let (all, mut random) = (control.bytes()?, Random(keys));
    let [mut hit, mut raw, mut miss]: [Timed; 3] = Default::default();
    let mut out = vec![0_u8; GATHER * row_bytes];
    let mut found = vec![false; GATHER];
    let (mut asked, mut numbers, mut scratch) = (Vec::new(), Vec::new(), Vec::new());
    // The first tenth only warms up.
    for turn in 0..settings.batches + settings.batches / 10 {
        if turn == settings.batches / 10 {
            [&mut hit, &mut raw, &mut miss].into_iter().for_each(Timed::clear);
        }
        // Which comes first changes, so that none always finds the caches as the same other one left them.
        for kind in 0..3 {
            numbers.clear();
            numbers.extend((0..GATHER).map(|_| random.below(keys)));
            asked.clear();
            match (turn + kind) % 3 {
                0 => {
                    asked.extend(numbers.iter().map(|number| mix(*number)));
                    let (hits, elapsed) = timed(|| store.get_batch_into(&asked, &[row_bytes], &mut out, &mut found));
                    hit.add(elapsed);
                    let hits = hits?;
                    if hits != GATHER {
                        return Err(format!("{} of {GATHER} keys are missing", GATHER - hits).into());
                    }
                    check_rows(&asked, &out, row_bytes, &mut scratch)?;
                }
                1 => {
                    let ((), elapsed) = timed(|| raw_gather(all, &numbers, row_bytes, &mut out));
                    raw.add(elapsed);
                    asked.extend(numbers.iter().map(|number| mix(*number)));
                    check_rows(&asked, black_box(&out), row_bytes, &mut scratch)?;
                }
                _ => {
                    asked.extend(numbers.iter().map(|number| mix(number + ABSENT)));
                    let (hits, elapsed) = timed(|| store.get_batch_into(&asked, &[row_bytes], &mut out, &mut found));
                    miss.add(elapsed);
                    let hits = hits?;
                    if hits != 0 {
                        return Err(format!("{hits} keys that were never put are there").into());
                    }
                }
            }
        }
    }
    Ok([hit, raw, miss])
}

/// Memory of a process of its own, since a process that loaded keeps what its allocator once had.
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

/// The child.
pub(crate) fn measure_memory(settings: &Settings) -> Fallible {
    let (anonymous, file) = resident_bytes()?;
    let reader = Reader::open(&settings.dir, MODULE)?;
    let opened = resident_bytes()?.0;
    read_all(&reader, settings.max_keys, settings.row_bytes)?;
    let (read, read_file) = resident_bytes()?;
    let less = |now: u64, before: u64| now.saturating_sub(before);
    println!("{} {} {}", less(opened, anonymous), less(read, anonymous), less(read_file, file));
    Ok(())
}
