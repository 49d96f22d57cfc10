//! The cost of writing, measured in turn with controls in the same run: `put_rows` and flush compared to `write`,
//! durable flushes compared to other ways to make raw bytes durable, and a load of small rows to the end of `close`.
//!
//! `cargo bench --bench writes -- [--rows 1000000] [--rounds 5] [--dir DIR] [--only buffered|durable|load]`
#![expect(clippy::expect_used, reason = "a bench stops at the first failure")]
#![expect(unsafe_code, reason = "the libraries have no sync_file_range")]

use std::error::Error;
use std::fs::{File, OpenOptions};
use std::io::{IoSlice, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::ReadWriteFlags;
use tensorcask::{Dtype, Durability, Options, Store};

type Fallible<T = ()> = Result<T, Box<dyn Error>>;

/// Rows per flush: 6 MiB.
const ROWS: usize = 2048;
const ROW_BYTES: usize = 3072;
/// Bytes per row of the load.
const SMALL_BYTES: usize = 128;
const SMALL_BATCH: usize = 65_536;
/// The number of turns of the flushes.
const TURNS: u64 = 40;

struct Settings {
    rows: usize,
    rounds: u64,
    dir: PathBuf,
    only: Option<String>,
}

fn settings() -> Fallible<Settings> {
    let dir = std::env::temp_dir().join("tensorcask-writes");
    let mut settings = Settings { rows: 1_000_000, rounds: 5, dir, only: None };
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().ok_or_else(|| format!("{argument} needs a value"));
        match argument.as_str() {
            "--rows" => settings.rows = value()?.parse()?,
            "--rounds" => settings.rounds = value()?.parse()?,
            "--dir" => settings.dir = value()?.into(),
            "--only" => settings.only = Some(value()?),
            "--bench" | "--test" => {}
            other => return Err(format!("{other} is no option: --rows, --rounds, --dir, --only").into()),
        }
    }
    Ok(settings)
}

/// splitmix64.
fn mixed(value: u64) -> u64 {
    let mixed = value.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    mixed ^ (mixed >> 31)
}

/// The times of one way to write.
struct Times {
    name: &'static str,
    /// Nanoseconds of each turn.
    spent: Vec<u64>,
}

impl Times {
    fn new(name: &'static str) -> Self {
        Self { name, spent: Vec::new() }
    }

    fn add(&mut self, spent: Duration) {
        self.spent.push(spent.as_nanos() as u64);
    }

    fn at(&self, quantile: f64) -> f64 {
        let mut sorted = self.spent.clone();
        sorted.sort_unstable();
        let place = (quantile * sorted.len().saturating_sub(1) as f64).round() as usize;
        sorted.get(place).map_or(0.0, |spent| *spent as f64)
    }
}

/// Prints `all`, each with its ratio to the fastest median of the first `controls`.
fn report(title: &str, unit: (&str, f64), all: &[Times], controls: usize) {
    let control = all.iter().take(controls).map(|times| times.at(0.5)).fold(f64::INFINITY, f64::min);
    println!("\n{title}");
    for times in all {
        let [low, median, high] = [0.25, 0.5, 0.75].map(|quantile| times.at(quantile) / unit.1);
        let ratio = times.at(0.5) / control;
        println!("  {:<52} {median:>9.2} {} ({low:.2} to {high:.2})  {ratio:>5.2} ×", times.name, unit.0);
    }
}

/// The order of `ways` in `turn`. It differs between turns, so that no way always follows the same other one.
fn order(ways: usize, turn: u64) -> Vec<usize> {
    let mut order: Vec<usize> = (0..ways).collect();
    order.sort_by_key(|way| mixed(turn << 8 | *way as u64));
    order
}

/// A way to put raw bytes on disk.
struct Raw {
    name: &'static str,
    file: File,
    at: u64,
    /// Whether each write is durable when it returns.
    write_syncs: bool,
    /// Whether write-back is started for each 2 MiB as they are written.
    starts_early: bool,
}

impl Raw {
    fn open(
        dir: &Path,
        name: &'static str,
        bytes: u64,
        prepare: &str,
        direct: bool,
        write_syncs: bool,
    ) -> Fallible<Self> {
        let path = dir.join(name.replace(' ', "-"));
        let file = OpenOptions::new().create(true).truncate(true).write(true).open(&path)?;
        match prepare {
            "allocated" => fallocate(&file, FallocateFlags::KEEP_SIZE, 0, bytes)?,
            "sized" => fallocate(&file, FallocateFlags::empty(), 0, bytes)?,
            "zeroed" => {
                let zeros = vec![0_u8; 1 << 20];
                for _ in 0..bytes.div_ceil(1 << 20) {
                    (&file).write_all(&zeros)?;
                }
            }
            _ => {}
        }
        file.sync_all()?;
        let flags = if direct { rustix::fs::OFlags::DIRECT.bits() as i32 } else { 0 };
        let file = OpenOptions::new().write(true).custom_flags(flags).open(&path)?;
        Ok(Self { name, file, at: 0, write_syncs, starts_early: prepare == "early" })
    }

    fn append(&mut self, bytes: &[u8]) -> Fallible {
        if self.write_syncs {
            let parts = [IoSlice::new(bytes)];
            let written = rustix::io::pwritev2(&self.file, &parts, self.at, ReadWriteFlags::DSYNC)?;
            if written != bytes.len() {
                return Err("a short write".into());
            }
        } else if self.starts_early {
            let mut at = self.at;
            for piece in bytes.chunks(EARLY_BYTES) {
                self.file.write_all_at(piece, at)?;
                start_writing(&self.file, at, piece.len());
                at += piece.len() as u64;
            }
            self.file.sync_data()?;
        } else {
            self.file.write_all_at(bytes, self.at)?;
            self.file.sync_data()?;
        }
        self.at += bytes.len() as u64;
        Ok(())
    }
}

/// The number of bytes after which write-back is started.
const EARLY_BYTES: usize = 2 << 20;

/// Starts write-back of these bytes.
fn start_writing(file: &File, offset: u64, len_bytes: usize) {
    // SAFETY: the call takes only numbers, touches no memory of this process, and the descriptor is open.
    let done = unsafe {
        libc::sync_file_range(file.as_raw_fd(), offset as i64, len_bytes as i64, libc::SYNC_FILE_RANGE_WRITE)
    };
    assert_eq!(done, 0, "sync_file_range failed");
}

/// Touches and frees memory, so that the system has free pages that were touched recently. On a virtual machine the
/// first touch of a page costs many times the write, and would be counted for whichever way gets a fresh page.
fn touch_memory(bytes: usize) {
    let mut memory = vec![1_u8; bytes];
    memory.iter_mut().step_by(4096).for_each(|byte| *byte = 2);
    std::hint::black_box(&memory);
}

/// Bytes of free memory.
fn free_bytes() -> Fallible<usize> {
    let memory = std::fs::read_to_string("/proc/meminfo")?;
    let line = memory.lines().find_map(|line| line.strip_prefix("MemFree:")).ok_or("no MemFree in /proc/meminfo")?;
    Ok(line.split_whitespace().next().ok_or("no number in /proc/meminfo")?.parse::<usize>()? * 1024)
}

/// A slice of `buffer` of `len` bytes that starts at a page boundary.
fn aligned(buffer: &mut Vec<u8>, len: usize) -> &mut [u8] {
    buffer.resize(len + 4096, 0);
    let start = buffer.as_ptr().align_offset(4096);
    buffer.get_mut(start..start + len).expect("room for an aligned part")
}

fn keys(first: u64, rows: usize) -> Vec<u64> {
    (first..first + rows as u64).collect()
}

fn put_and_flush(store: &Store, turn: u64, values: &[u8], durability: Durability) -> Fallible<Duration> {
    let keys = keys(turn * ROWS as u64, ROWS);
    let begin = Instant::now();
    store.put_rows_bytes(&keys, Dtype::U8, &[ROW_BYTES], values)?;
    store.flush_with(durability)?;
    Ok(begin.elapsed())
}

/// `put_rows` and a buffered flush, compared to a plain write of the same bytes.
fn buffered(settings: &Settings) -> Fallible {
    let mut all = [Times::new("write"), Times::new("put_rows and flush"), Times::new("a copy within memory")];
    let mut values: Vec<u8> = (0..ROWS * ROW_BYTES).map(|at| mixed(at as u64) as u8).collect();
    let mut copy = vec![0_u8; values.len()];
    let mut file = File::create(settings.dir.join("write"))?;
    let store = Options::new().segment_bytes(8 << 30).open(&settings.dir, "buffered")?;
    for turn in 0..TURNS {
        values.iter_mut().step_by(64).for_each(|byte| *byte = byte.wrapping_add(1));
        for way in order(all.len(), turn) {
            touch_memory(4 * values.len());
            let begin = Instant::now();
            let spent = match way {
                0 => {
                    file.write_all(&values)?;
                    begin.elapsed()
                }
                1 => put_and_flush(&store, turn, &values, Durability::Buffered)?,
                _ => {
                    copy.copy_from_slice(&values);
                    std::hint::black_box(&copy);
                    begin.elapsed()
                }
            };
            all.get_mut(way).expect("a way").add(spent);
        }
    }
    report("put_rows of 2,048 × 3,072 B, buffered", ("ms", 1e6), &all, 1);
    Ok(store.close()?)
}

/// `put_rows` and a durable flush, compared to ways to append raw bytes durably.
fn durable(settings: &Settings) -> Fallible {
    let mut values = Vec::new();
    let values = aligned(&mut values, ROWS * ROW_BYTES);
    values.iter_mut().enumerate().for_each(|(at, byte)| *byte = mixed(at as u64) as u8);
    let bytes = TURNS * values.len() as u64;
    let dir = &settings.dir;
    let mut ways = [
        Raw::open(dir, "append, fdatasync", bytes, "", false, false)?,
        Raw::open(dir, "append by 2 MiB, each started, fdatasync", bytes, "early", false, false)?,
        Raw::open(dir, "append with RWF_DSYNC", bytes, "", false, true)?,
        Raw::open(dir, "allocated beyond the end, fdatasync", bytes, "allocated", false, false)?,
        Raw::open(dir, "allocated, fdatasync", bytes, "sized", false, false)?,
        Raw::open(dir, "written before, fdatasync", bytes, "zeroed", false, false)?,
        Raw::open(dir, "append, O_DIRECT, fdatasync", bytes, "", true, false)?,
        Raw::open(dir, "allocated beyond the end, O_DIRECT, fdatasync", bytes, "allocated", true, false)?,
        Raw::open(dir, "written before, O_DIRECT, fdatasync", bytes, "zeroed", true, false)?,
        Raw::open(dir, "written before, O_DIRECT, RWF_DSYNC", bytes, "zeroed", true, true)?,
    ];
    let store = Options::new().segment_bytes(8 << 30).open(dir, "durable")?;
    let mut all: Vec<Times> = ways.iter().map(|way| Times::new(way.name)).collect();
    let controls = all.len();
    all.push(Times::new("put_rows and flush"));
    for turn in 0..TURNS {
        values.iter_mut().step_by(64).for_each(|byte| *byte = byte.wrapping_add(1));
        for way in order(all.len(), turn) {
            touch_memory(4 * values.len());
            let begin = Instant::now();
            let spent = match ways.get_mut(way) {
                Some(raw) => {
                    raw.append(values)?;
                    begin.elapsed()
                }
                None => put_and_flush(&store, turn, values, Durability::SyncData)?,
            };
            all.get_mut(way).expect("a way").add(spent);
        }
    }
    report("put_rows of 2,048 × 3,072 B, each durable", ("ms", 1e6), &all, controls);
    Ok(store.close()?)
}

fn shuffled(rows: usize) -> Vec<u64> {
    let mut keys: Vec<u64> = (0..rows as u64).collect();
    keys.sort_by_key(|key| mixed(*key));
    keys
}

/// A load of small rows in batches: buffered, and up to the end of `close`, which makes it durable.
fn load(settings: &Settings) -> Fallible {
    let mut buffered = [Times::new("write"), Times::new("in order"), Times::new("shuffled")];
    let mut puts = [Times::new("(nothing)"), Times::new("in order"), Times::new("shuffled")];
    let mut closed = [Times::new("write, fdatasync"), Times::new("in order"), Times::new("shuffled")];
    let orders = [Vec::new(), keys(0, settings.rows), shuffled(settings.rows)];
    let values: Vec<u8> = (0..SMALL_BATCH * SMALL_BYTES).map(|at| mixed(at as u64) as u8).collect();
    for round in 0..settings.rounds {
        for way in order(3, round) {
            let dir = settings.dir.join("load");
            let _ = std::fs::remove_dir_all(&dir);
            std::fs::create_dir_all(&dir)?;
            touch_memory(3 * settings.rows * SMALL_BYTES);
            let (mut put, mut flush) = (Duration::ZERO, Duration::ZERO);
            let begin;
            if way == 0 {
                let mut file = File::create(dir.join("raw"))?;
                for start in (0..settings.rows).step_by(SMALL_BATCH) {
                    let rows = SMALL_BATCH.min(settings.rows - start);
                    let begin = Instant::now();
                    file.write_all(values.get(..rows * SMALL_BYTES).unwrap_or(&values))?;
                    flush += begin.elapsed();
                }
                begin = Instant::now();
                file.sync_data()?;
            } else {
                let store = Store::open(&dir, "m")?;
                for keys in orders.get(way).expect("an order").chunks(SMALL_BATCH) {
                    let rows = values.get(..keys.len() * SMALL_BYTES).unwrap_or(&values);
                    let begin = Instant::now();
                    store.put_rows_bytes(keys, Dtype::U8, &[SMALL_BYTES], rows)?;
                    put += begin.elapsed();
                    store.flush_with(Durability::Buffered)?;
                    flush += begin.elapsed();
                }
                begin = Instant::now();
                store.close()?;
            }
            let close = begin.elapsed();
            let rows = settings.rows as u32;
            puts.get_mut(way).expect("a way").add(put / rows);
            buffered.get_mut(way).expect("a way").add(flush / rows);
            closed.get_mut(way).expect("a way").add((flush + close) / rows);
        }
    }
    report("load of 128 B rows by 65,536, ns a row: put_rows alone", ("ns", 1.0), &puts, 1);
    report("put_rows and flush", ("ns", 1.0), &buffered, 1);
    report("to the end of close", ("ns", 1.0), &closed, 1);
    Ok(())
}

fn main() -> Fallible {
    let settings = settings()?;
    let _ = std::fs::remove_dir_all(&settings.dir);
    std::fs::create_dir_all(&settings.dir)?;
    // Nearly all free memory; otherwise a file that grows for long reaches pages that were never touched.
    touch_memory(free_bytes()? / 8 * 7);
    let wanted = |name: &str| settings.only.as_deref().is_none_or(|only| only == name);
    if wanted("buffered") {
        buffered(&settings)?;
    }
    if wanted("durable") {
        durable(&settings)?;
    }
    if wanted("load") {
        load(&settings)?;
    }
    std::fs::remove_dir_all(&settings.dir)?;
    Ok(())
}
