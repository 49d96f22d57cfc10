//! One store of many rows, from load to reopening: the engine's promises, each beside its control in the same run.
//!
//! `cargo bench --bench engine -- [--rows 1000000] [--row-bytes 3072] [--dir DIR] [--report FILE]`
//!
//! Figures that count are ratios to a control that is measured in turn with them; absolute times depend on the
//! machine. With `--report` the table is also written as Markdown.
#![expect(unsafe_code, reason = "the raw control reads a memory map")]

use std::error::Error;
use std::fmt::Write as _;
use std::fs::File;
use std::hint::black_box;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use tensorcask::{Durability, Options, Reader, Store, Verify};

type Fallible<T = ()> = Result<T, Box<dyn Error>>;

const BATCH: usize = 2048;
const GATHER: usize = 256;
/// Marks a child process, and tells it what to do and where.
const CHILD: &str = "TENSORCASK_BENCH_CHILD";
const DIR: &str = "TENSORCASK_BENCH_DIR";
const ROWS: &str = "TENSORCASK_BENCH_ROWS";
const ROW_BYTES: &str = "TENSORCASK_BENCH_ROW_BYTES";

struct Settings {
    rows: usize,
    row_bytes: usize,
    dir: PathBuf,
    report: Option<PathBuf>,
}

fn settings() -> Fallible<Settings> {
    let mut settings =
        Settings { rows: 1_000_000, row_bytes: 3072, dir: std::env::temp_dir().join("tensorcask-bench"), report: None };
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().ok_or_else(|| format!("{argument} needs a value"));
        match argument.as_str() {
            "--rows" => settings.rows = value()?.parse()?,
            "--row-bytes" => settings.row_bytes = value()?.parse()?,
            "--dir" => settings.dir = value()?.into(),
            "--report" => settings.report = Some(value()?.into()),
            "--bench" | "--test" => {}
            other => return Err(format!("{other} is no option: --rows, --row-bytes, --dir, --report").into()),
        }
    }
    Ok(settings)
}

/// A pseudo-random number generator that needs no crate: splitmix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        ((u128::from(self.next()) * bound as u128) >> 64) as usize
    }
}

fn fill(batch: usize, row_bytes: usize, buffer: &mut Vec<u8>) {
    let mut random = Random(batch as u64);
    buffer.clear();
    while buffer.len() < BATCH * row_bytes {
        buffer.extend_from_slice(&random.next().to_le_bytes());
    }
    buffer.truncate(BATCH * row_bytes);
}

fn load(store: &Store, rows: usize, row_bytes: usize) -> Fallible<Duration> {
    let mut buffer = Vec::new();
    let mut spent = Duration::ZERO;
    for (batch, start) in (0..rows).step_by(BATCH).enumerate() {
        fill(batch, row_bytes, &mut buffer);
        let keys: Vec<u64> = (start as u64..(start + BATCH).min(rows) as u64).collect();
        let begin = Instant::now();
        let bytes = buffer.get(..keys.len() * row_bytes).unwrap_or(&buffer);
        store.put_rows_bytes(&keys, tensorcask::Dtype::U8, &[row_bytes], bytes)?;
        spent += begin.elapsed();
    }
    let begin = Instant::now();
    store.flush()?;
    Ok(spent + begin.elapsed())
}

fn write_raw(path: &Path, rows: usize, row_bytes: usize) -> Fallible<Duration> {
    let mut file = File::create(path)?;
    let mut buffer = Vec::new();
    let mut spent = Duration::ZERO;
    for batch in 0..rows.div_ceil(BATCH) {
        fill(batch, row_bytes, &mut buffer);
        let begin = Instant::now();
        file.write_all(&buffer)?;
        spent += begin.elapsed();
    }
    let begin = Instant::now();
    file.sync_data()?;
    Ok(spent + begin.elapsed())
}

fn anonymous_bytes() -> Fallible<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find(|line| line.starts_with("RssAnon:")).ok_or("no RssAnon in /proc/self/status")?;
    let kilobytes: u64 = line.split_whitespace().nth(1).ok_or("no number in RssAnon")?.parse()?;
    Ok(kilobytes * 1024)
}

fn folder_bytes(path: &Path) -> Fallible<u64> {
    let mut total = 0;
    for entry in std::fs::read_dir(path)? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        total += if metadata.is_dir() { folder_bytes(&entry.path())? } else { metadata.len() };
    }
    Ok(total)
}

/// Copies rows with known numbers out of a map, asking for the next while one is copied.
fn raw_gather(map: &[u8], numbers: &[usize], row_bytes: usize, out: &mut [u8]) {
    for (position, (number, place)) in numbers.iter().zip(out.chunks_exact_mut(row_bytes)).enumerate() {
        if let Some(next) = numbers.get(position + 1) {
            for line in 0..row_bytes.div_ceil(64).min(8) {
                if let Some(byte) = map.get(next * row_bytes + line * 64) {
                    #[cfg(target_arch = "x86_64")]
                    // SAFETY: a prefetch reads nothing architecturally and cannot fault.
                    unsafe {
                        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(
                            std::ptr::from_ref(byte).cast(),
                        );
                    }
                    let _ = byte;
                }
            }
        }
        if let Some(row) = map.get(number * row_bytes..(number + 1) * row_bytes) {
            place.copy_from_slice(row);
        }
    }
}

struct Table {
    rows: Vec<[String; 3]>,
}

impl Table {
    fn add(&mut self, what: &str, figure: String, bar: &str) {
        println!("  {what:<58} {figure:>24}   {bar}");
        self.rows.push([what.to_owned(), figure, bar.to_owned()]);
    }
}

fn percentiles(histogram: &Histogram<u64>) -> String {
    let at = |quantile: f64| histogram.value_at_quantile(quantile) as f64 / 1000.0;
    format!("{:.1} / {:.1} / {:.1} µs", at(0.5), at(0.99), at(0.999))
}

/// Gathers from the store and from the raw map in turn; returns the ratio of medians and both histograms.
fn gather(
    reader: &Reader,
    map: &[u8],
    settings: &Settings,
    rounds: usize,
) -> Fallible<(f64, Histogram<u64>, Histogram<u64>)> {
    let row_bytes = settings.row_bytes;
    let mut ours = Histogram::<u64>::new(3)?;
    let mut raw = Histogram::<u64>::new(3)?;
    let mut out = vec![0_u8; GATHER * row_bytes];
    let mut found = vec![false; GATHER];
    let mut random = Random(7);
    for _ in 0..rounds {
        let numbers: Vec<usize> = (0..GATHER).map(|_| random.below(settings.rows)).collect();
        let keys: Vec<u64> = numbers.iter().map(|number| *number as u64).collect();
        let begin = Instant::now();
        reader.get_batch_into_bytes(&keys, tensorcask::Dtype::U8, &[row_bytes], &mut out, &mut found)?;
        ours.record(begin.elapsed().as_nanos() as u64)?;
        if found.contains(&false) {
            return Err("a row is missing".into());
        }
        // Other rows: those were just brought into the processor's caches.
        let numbers: Vec<usize> = (0..GATHER).map(|_| random.below(settings.rows)).collect();
        let begin = Instant::now();
        raw_gather(map, &numbers, row_bytes, &mut out);
        raw.record(begin.elapsed().as_nanos() as u64)?;
        black_box(&out);
    }
    Ok((ours.value_at_quantile(0.5) as f64 / raw.value_at_quantile(0.5) as f64, ours, raw))
}

/// Flushes of 2,048 rows to the loaded store and writes of the same bytes to a file, in turn.
fn flushes(settings: &Settings, table: &mut Table) -> Fallible {
    let store = Options::new().flush_every(1 << 20, 1 << 30).open(&settings.dir, "bench")?;
    let mut file = File::create(settings.dir.join("control.bin"))?;
    let mut buffer = Vec::new();
    for (durability, name) in [(Durability::Buffered, "write"), (Durability::SyncData, "write + fdatasync")] {
        let (mut ours, mut raw) = (Histogram::<u64>::new(3)?, Histogram::<u64>::new(3)?);
        for turn in 0..30_u64 {
            fill(turn as usize, settings.row_bytes, &mut buffer);
            let first = 1 << 50 | (durability as u64) << 40 | turn << 20;
            let keys: Vec<u64> = (first..first + BATCH as u64).collect();
            let begin = Instant::now();
            store.put_rows_bytes(&keys, tensorcask::Dtype::U8, &[settings.row_bytes], &buffer)?;
            store.flush_with(durability)?;
            ours.record(begin.elapsed().as_nanos() as u64)?;
            let begin = Instant::now();
            file.write_all(&buffer)?;
            if durability == Durability::SyncData {
                file.sync_data()?;
            }
            raw.record(begin.elapsed().as_nanos() as u64)?;
        }
        let ratio = ours.value_at_quantile(0.5) as f64 / raw.value_at_quantile(0.5) as f64;
        table.add(&format!("put and flush 2,048 rows, {durability:?} / {name}"), format!("{ratio:.2} ×"), "");
        table.add("  p50 / p99 / p99.9", percentiles(&ours), "");
    }
    store.close()?;
    Ok(())
}

/// A child that opens the store, reads every row, and says how much anonymous memory that took.
fn measure_memory(dir: &str) -> Fallible {
    let (rows, row_bytes): (usize, usize) = (std::env::var(ROWS)?.parse()?, std::env::var(ROW_BYTES)?.parse()?);
    let mut out = vec![1_u8; GATHER * row_bytes];
    let mut found = vec![true; GATHER];
    let mut keys = vec![1_u64; GATHER];
    let before = anonymous_bytes()?;
    let reader = Reader::open(dir, "bench")?;
    let opened = anonymous_bytes()?;
    for start in (0..rows - rows % GATHER).step_by(GATHER) {
        keys.iter_mut().zip(start as u64..).for_each(|(key, number)| *key = number);
        reader.get_batch_into_bytes(&keys, tensorcask::Dtype::U8, &[row_bytes], &mut out, &mut found)?;
    }
    let read = anonymous_bytes()?;
    println!("{} {} {}", opened.saturating_sub(before), read.saturating_sub(before), black_box(out.len()));
    drop(reader);
    Ok(())
}

fn memory(settings: &Settings, table: &mut Table) -> Fallible {
    let output = child(settings, "memory", &settings.dir)?.stdout(Stdio::piped()).output()?;
    let text = String::from_utf8(output.stdout)?;
    let numbers: Vec<f64> = text.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    let [opened, read, ..] = numbers.as_slice() else { return Err(format!("the child said {text:?}").into()) };
    let a_key = |bytes: f64| format!("{:.2} B a key", bytes / settings.rows as f64);
    table.add("anonymous memory of an open reader", a_key(*opened), "");
    table.add("  after all rows were read and checked", a_key(*read), "≤ 2 B a key");
    Ok(())
}

/// This program again, as a child that does `task` in `dir`.
fn child(settings: &Settings, task: &str, dir: &Path) -> Fallible<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.env(CHILD, task).env(DIR, dir).env(ROWS, settings.rows.to_string());
    command.env(ROW_BYTES, settings.row_bytes.to_string());
    Ok(command)
}

/// The child: loads, flushes, says so, and goes on putting until it is killed.
fn be_killed(dir: &str) -> Fallible {
    let (rows, row_bytes) = (std::env::var(ROWS)?.parse()?, std::env::var(ROW_BYTES)?.parse()?);
    let store = Store::open(dir, "killed")?;
    load(&store, rows, row_bytes)?;
    println!("loaded");
    let bytes = vec![1_u8; BATCH * row_bytes];
    for batch in 0_u64.. {
        let keys: Vec<u64> = (0..BATCH as u64).map(|key| 1 << 40 | batch << 20 | key).collect();
        store.put_rows_bytes(&keys, tensorcask::Dtype::U8, &[row_bytes], &bytes)?;
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

fn killed(settings: &Settings, table: &mut Table) -> Fallible {
    let dir = settings.dir.join("killed");
    let mut child = child(settings, "killed", &dir)?.stdout(Stdio::piped()).spawn()?;
    let stdout = child.stdout.take().ok_or("no stdout")?;
    let mut line = String::new();
    BufReader::new(stdout).read_line(&mut line)?;
    std::thread::sleep(Duration::from_millis(300));
    child.kill()?;
    child.wait()?;
    let begin = Instant::now();
    let store = Store::open(&dir, "killed")?;
    let elapsed = begin.elapsed();
    let report = store.open_report();
    table.add("open after kill -9 (no run was written)", format!("{:.1} ms", elapsed.as_secs_f64() * 1e3), "≤ 500 ms");
    table.add("  rows indexed anew / recovered", format!("{} / {}", report.rows_indexed, report.rows_recovered), "");
    if store.len()? < settings.rows as u64 {
        return Err("rows that were flushed are missing after kill -9".into());
    }
    store.close()?;
    std::fs::remove_dir_all(&dir)?;
    Ok(())
}

fn open_times(settings: &Settings, table: &mut Table) -> Fallible {
    let mut writer = Histogram::<u64>::new(3)?;
    let mut reader = Histogram::<u64>::new(3)?;
    for _ in 0..11 {
        let begin = Instant::now();
        let store = Store::open(&settings.dir, "bench")?;
        writer.record(begin.elapsed().as_nanos() as u64)?;
        store.close()?;
        let begin = Instant::now();
        let opened = Reader::open(&settings.dir, "bench")?;
        reader.record(begin.elapsed().as_nanos() as u64)?;
        drop(opened);
    }
    table.add(
        "open after a clean close, warm, p50 of 11",
        format!("{:.2} ms", writer.value_at_quantile(0.5) as f64 / 1e6),
        "≤ 5 ms",
    );
    table.add("  as a reader", format!("{:.2} ms", reader.value_at_quantile(0.5) as f64 / 1e6), "");
    Ok(())
}

fn reads(settings: &Settings, raw: &Path, table: &mut Table) -> Fallible {
    let file = File::open(raw)?;
    // SAFETY: the file is this benchmark's own, and nothing changes it.
    let map = unsafe { memmap2::Mmap::map(&file)? };
    for verify in [Verify::FirstRead, Verify::Always, Verify::Never] {
        let reader = Options::new().verify(verify).open_reader(&settings.dir, "bench")?;
        // Once through everything: pages are mapped and first reads are checked in both.
        gather(&reader, &map, settings, (settings.rows * 3 / GATHER).max(1))?;
        let (ratio, ours, raw) = gather(&reader, &map, settings, 4000)?;
        let bar = if verify == Verify::FirstRead { "≤ 2.0 ×" } else { "" };
        table.add(
            &format!("get_batch_into, {GATHER} random keys, warm, {verify:?} / raw gather"),
            format!("{ratio:.2} ×"),
            bar,
        );
        table.add("  p50 / p99 / p99.9", percentiles(&ours), "");
        table.add("  raw p50 / p99 / p99.9", percentiles(&raw), "");
    }
    Ok(())
}

fn main() -> Fallible {
    if let Ok(task) = std::env::var(CHILD) {
        let dir = std::env::var(DIR)?;
        return if task == "memory" { measure_memory(&dir) } else { be_killed(&dir) };
    }
    let settings = settings()?;
    let _ = std::fs::remove_dir_all(&settings.dir);
    std::fs::create_dir_all(&settings.dir)?;
    let mut table = Table { rows: Vec::new() };
    println!("{} rows of {} bytes in {}\n", settings.rows, settings.row_bytes, settings.dir.display());

    let raw = settings.dir.join("raw.bin");
    let raw_time = write_raw(&raw, settings.rows, settings.row_bytes)?;
    let store = Store::open(&settings.dir, "bench")?;
    let load_time = load(&store, settings.rows, settings.row_bytes)?;
    let begin = Instant::now();
    store.close()?;
    let close_time = begin.elapsed();
    let gigabytes = (settings.rows * settings.row_bytes) as f64 / 1e9;
    table.add(
        "load in batches of 2,048, flushed / write + fdatasync",
        format!("{:.2} ×", load_time.as_secs_f64() / raw_time.as_secs_f64()),
        "",
    );
    table.add(
        "  load / raw",
        format!("{:.2} / {:.2} GB/s", gigabytes / load_time.as_secs_f64(), gigabytes / raw_time.as_secs_f64()),
        "",
    );
    table.add("close: seal, merge the index", format!("{:.0} ms", close_time.as_secs_f64() * 1e3), "");
    let disk = folder_bytes(&settings.dir.join("bench"))?;
    let overhead = (disk as f64 - (settings.rows * settings.row_bytes) as f64) / settings.rows as f64;
    table.add("disk over the raw bytes, index included", format!("{overhead:.1} B a row"), "≤ 60 B a row");
    open_times(&settings, &mut table)?;
    memory(&settings, &mut table)?;
    reads(&settings, &raw, &mut table)?;
    flushes(&settings, &mut table)?;
    std::fs::remove_file(&raw)?;
    std::fs::remove_dir_all(settings.dir.join("bench"))?;
    killed(&settings, &mut table)?;
    if let Some(path) = &settings.report {
        write_report(path, &settings, &table)?;
    }
    Ok(())
}

fn write_report(path: &Path, settings: &Settings, table: &Table) -> Fallible {
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let cpu = cpu
        .lines()
        .find_map(|line| line.strip_prefix("model name"))
        .map_or("", |name| name.trim_start_matches(['\t', ' ', ':']));
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let cores = std::thread::available_parallelism()?;
    let mut text = String::new();
    writeln!(text, "# The engine's promises, measured\n")?;
    writeln!(
        text,
        "Written by `cargo bench --bench engine -- --rows {} --row-bytes {} --report reports/engine.md`. {} rows of {} B; {cpu}, {cores} \
         cores, Linux {}. Ratios are to a control measured in turn in the same run.\n",
        settings.rows,
        settings.row_bytes,
        settings.rows,
        settings.row_bytes,
        kernel.trim()
    )?;
    writeln!(text, "| what | measured | bar |\n| --- | --- | --- |")?;
    for [what, figure, bar] in &table.rows {
        writeln!(text, "| {} | {} | {} |", what.trim(), figure.trim(), bar)?;
    }
    std::fs::write(path, text)?;
    Ok(())
}
