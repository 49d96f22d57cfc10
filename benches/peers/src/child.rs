//! The process of one engine. It reads requests from standard input, one per line, and answers each with a line of
//! numbers.

use std::io::{BufRead, Write};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::Fallible;
use crate::engine::{self, Engine, EngineId, Opening};
use crate::rows::{self, GATHER, Random};

/// The environment variable with the task of a child. It marks the process as one.
pub const TASK: &str = "TENSORCASK_PEERS_TASK";

/// Batches that are read before the timed ones, because the slices of other engines have emptied the processor's
/// caches.
const RUN_UP: usize = 4;

/// The task of a child.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Task {
    /// The engine.
    pub engine: EngineId,
    /// The options for opening its store.
    pub opening: Opening,
}

/// The task of this process, if it is a child.
///
/// # Errors
/// If the variable cannot be parsed.
pub fn task() -> Fallible<Option<Task>> {
    match std::env::var(TASK) {
        Ok(text) => Ok(Some(serde_json::from_str(&text)?)),
        Err(_) => Ok(None),
    }
}

/// Serves requests until the end of standard input.
///
/// # Errors
/// Errors of the standard streams. Errors of the engine are sent as answers.
pub fn serve(task: &Task) -> Fallible {
    let mut child = Child { task, engine: None, keys: Vec::new(), out: vec![0; GATHER * task.opening.row_bytes] };
    let mut stdout = std::io::stdout();
    for line in std::io::stdin().lock().lines() {
        let answer = match child.answer(&line?) {
            Ok(numbers) => numbers.iter().map(u64::to_string).collect::<Vec<_>>().join(" "),
            Err(error) => format!("error: {error}").replace('\n', " "),
        };
        writeln!(stdout, "{answer}")?;
        stdout.flush()?;
    }
    child.engine.map_or(Ok(()), Engine::close)
}

struct Child<'a> {
    task: &'a Task,
    engine: Option<Box<dyn Engine>>,
    keys: Vec<u64>,
    out: Vec<u8>,
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

impl Child<'_> {
    fn answer(&mut self, line: &str) -> Fallible<Vec<u64>> {
        let mut words = line.split_whitespace();
        let command = words.next().unwrap_or_default();
        let numbers = words.map(str::parse).collect::<Result<Vec<u64>, _>>()?;
        match (command, numbers.as_slice()) {
            ("load", []) => self.load(),
            ("open", []) => Ok(vec![self.open()?]),
            ("preload", []) => self.preload(),
            ("read", [seed, batches]) => Ok(vec![self.slice(*seed, *batches, true)?]),
            ("miss", [seed, batches]) => Ok(vec![self.slice(*seed, *batches, false)?]),
            ("memory", []) => Ok(vec![anonymous_bytes()?]),
            _ => Err(format!("a child was asked for {line:?}").into()),
        }
    }

    /// Nanoseconds of all batches and of closing, bytes on disk afterwards, the median and the 99th percentile of the
    /// batches, and the bytes that were written.
    fn load(&mut self) -> Fallible<Vec<u64>> {
        let opening = &self.task.opening;
        let batch = rows::load_batch(opening.row_bytes);
        let order = rows::load_order(opening.rows, opening.order);
        let mut engine = engine::create(self.task.engine, opening)?;
        let (mut values, mut batches) = (Vec::new(), Vec::new());
        let written_before = written_bytes()?;
        for numbers in order.chunks(batch) {
            self.keys.clear();
            self.keys.extend(numbers.iter().map(|number| rows::key(*number as usize)));
            rows::fill(&self.keys, opening.row_bytes, &mut values);
            engine.prepare(&self.keys);
            let begin = Instant::now();
            engine.load(&self.keys, &values)?;
            batches.push(begin.elapsed());
        }
        let begin = Instant::now();
        engine.close()?;
        let closing = begin.elapsed();
        let written = written_bytes()? - written_before;
        let spent = batches.iter().sum();
        batches.sort_unstable();
        let at = |share: usize| batches.get((batches.len() * share).div_ceil(100).saturating_sub(1)).copied();
        let (median, slow) = at(50).zip(at(99)).ok_or("a load has no batches")?;
        let disk = engine::disk_bytes(&opening.dir)?;
        Ok(vec![nanos(spent), nanos(closing), disk, nanos(median), nanos(slow), written])
    }

    /// Nanoseconds to open the store and read one row, as some engines defer work to the first read.
    fn open(&mut self) -> Fallible<u64> {
        if let Some(engine) = self.engine.take() {
            engine.close()?;
        }
        let opening = &self.task.opening;
        let key = [rows::key(opening.rows / 2)];
        let begin = Instant::now();
        let mut engine = engine::open(self.task.engine, opening)?;
        let mut spent = begin.elapsed();
        engine.place(&key)?;
        let out = self.out.get_mut(..opening.row_bytes).ok_or("rows are longer than batches")?;
        let begin = Instant::now();
        let found = engine.get_batch(&key, out)?;
        spent += begin.elapsed();
        if found != 1 {
            return Err("the first row is missing".into());
        }
        rows::check(&key, opening.row_bytes, out, true)?;
        self.engine = Some(engine);
        Ok(nanos(spent))
    }

    /// Reads and checks every byte once, to fill caches.
    fn preload(&mut self) -> Fallible<Vec<u64>> {
        let (row_bytes, rows) = (self.task.opening.row_bytes, self.task.opening.rows);
        if self.engine.is_none() {
            self.open()?;
        }
        self.engine.as_mut().ok_or("the engine is not open")?.preload()?;
        for start in (0..rows).step_by(GATHER) {
            self.keys.clear();
            self.keys.extend((start..(start + GATHER).min(rows)).map(rows::key));
            self.timed_batch(true)?;
            let read = self.out.get(..self.keys.len() * row_bytes).ok_or("a batch is too long")?;
            rows::check(&self.keys, row_bytes, read, true)?;
        }
        Ok(Vec::new())
    }

    /// Nanoseconds of the median of `batches` reads of random keys, all present or all absent. The median is used
    /// because a slice of a slow engine is long enough to be interrupted, and one of a fast engine is not.
    fn slice(&mut self, seed: u64, batches: u64, present: bool) -> Fallible<u64> {
        let opening = &self.task.opening;
        let mut random = Random(seed);
        let mut spent = Vec::new();
        for batch in 0..RUN_UP + usize::try_from(batches)? {
            self.keys.clear();
            for _ in 0..GATHER {
                let number = random.below(opening.rows);
                self.keys.push(if present { rows::key(number) } else { rows::absent_key(number) });
            }
            let elapsed = self.timed_batch(present)?;
            if batch >= RUN_UP {
                spent.push(nanos(elapsed));
            }
            if present {
                rows::check(&self.keys, opening.row_bytes, &self.out, false)?;
            }
        }
        spent.sort_unstable();
        Ok(*spent.get(spent.len() / 2).ok_or("a slice has no batches")?)
    }

    fn timed_batch(&mut self, present: bool) -> Fallible<Duration> {
        if self.engine.is_none() {
            self.open()?;
        }
        let engine = self.engine.as_mut().ok_or("the engine is not open")?;
        engine.place(&self.keys)?;
        let out = self.out.get_mut(..self.keys.len() * self.task.opening.row_bytes).ok_or("a batch is too long")?;
        // Invalidates the rows, so that a row that an engine reports as found but does not copy is not mistaken for one
        // of an earlier batch.
        out.iter_mut().step_by(self.task.opening.row_bytes).for_each(|byte| *byte = !*byte);
        let begin = Instant::now();
        let found = engine.get_batch(&self.keys, out)?;
        let elapsed = begin.elapsed();
        let expected = if present { self.keys.len() } else { 0 };
        if found != expected {
            return Err(format!("{found} rows were found, not {expected}").into());
        }
        Ok(elapsed)
    }
}

/// The bytes that this process has written to files, counted when pages become dirty.
fn written_bytes() -> Fallible<u64> {
    let counters = std::fs::read_to_string("/proc/self/io")?;
    let line = counters.lines().find_map(|line| line.strip_prefix("write_bytes:"));
    Ok(line.ok_or("no write_bytes in /proc/self/io")?.trim().parse()?)
}

/// Anonymous memory of this process.
fn anonymous_bytes() -> Fallible<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find(|line| line.starts_with("RssAnon:")).ok_or("no RssAnon in /proc/self/status")?;
    let kilobytes: u64 = line.split_whitespace().nth(1).ok_or("no number in RssAnon")?.parse()?;
    Ok(kilobytes * 1024)
}
