//! The process that starts one child per engine, and sends them requests in turn.
//!
//! Loads are timed for all engines in turn, and each store is removed at once. Then each peer is loaded once more and
//! read in turn with tensorcask and the control. Only three stores are open at a time, as all of them would not fit
//! into memory and disk.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{ChildStdin, ChildStdout, Command, Stdio};

use crate::Fallible;
use crate::child::{TASK, Task};
use crate::engine::{EngineId, KeyForm, Opening, Order};
use crate::machine::Machine;
use crate::results::{Measure, Results, Workload};
use crate::rows::GATHER;
use crate::settings::Settings;
use crate::{plot, report};

/// How often each store is opened.
const OPENS: usize = 5;

/// The engines that every peer is compared with.
const BESIDE: [EngineId; 2] = [EngineId::Raw, EngineId::Tensorcask];

const ORDERS: [Order; 2] = [Order::Sorted, Order::Shuffled];

/// Measures, and writes the report.
///
/// # Errors
/// The first error of any engine.
pub fn run(settings: &Settings) -> Fallible {
    let results = match &settings.from {
        Some(path) => serde_json::from_str(&std::fs::read_to_string(path)?)?,
        None => measure(settings)?,
    };
    std::fs::create_dir_all(&settings.out)?;
    if settings.from.is_none() {
        std::fs::write(settings.out.join("peers.json"), serde_json::to_string(&results)? + "\n")?;
    }
    std::fs::write(settings.out.join("peers.md"), report::markdown(&results)?)?;
    plot::all(&results, &settings.out)
}

/// Measures everything that the settings select.
///
/// # Errors
/// The first error of any engine.
pub fn measure(settings: &Settings) -> Fallible<Results> {
    std::fs::create_dir_all(&settings.dir)?;
    let machine = Machine::here(&settings.dir)?;
    let mut results = Results { machine, settings: settings.clone(), series: Vec::new() };
    for (row_bytes, keys) in settings.sizes() {
        let size = Size { settings, row_bytes, keys };
        for durable in [true, false] {
            size.loads(durable, &mut results)?;
        }
        let reads = keys == KeyForm::Number && !settings.loads_only;
        for order in ORDERS.into_iter().filter(|_| reads) {
            size.reads(order, &mut results)?;
        }
    }
    std::fs::remove_dir_all(&settings.dir)?;
    Ok(results)
}

/// A timed load.
struct Load {
    /// Nanoseconds of all batches.
    load: f64,
    /// Nanoseconds to the end of closing.
    closed: f64,
    /// Bytes on disk afterwards.
    disk: f64,
    /// The 99th percentile of the time of a batch over its median.
    stall: f64,
    /// Bytes written per byte of rows.
    written: f64,
}

/// The settings for rows of one size.
struct Size<'a> {
    settings: &'a Settings,
    row_bytes: usize,
    keys: KeyForm,
}

impl Size<'_> {
    fn say(&self, order: Order, what: &str) {
        eprintln!("{:>5} B, {:?} keys, {order:?}: {what}", self.row_bytes, self.keys);
    }

    fn workload(&self, order: Order, measure: Measure) -> Workload {
        Workload { row_bytes: self.row_bytes, keys: self.keys, order, measure }
    }

    /// The numbers below `count`, in each round from another one on, so that each engine follows different ones.
    fn turns(round: usize, count: usize) -> impl Iterator<Item = usize> {
        (0..count).map(move |turn| (turn + round) % count)
    }

    fn start(&self, engine: EngineId, order: Order, rows: usize, durable: bool) -> Fallible<Asked> {
        let dir = self.settings.dir.join(engine.name());
        let opening = Opening { dir, row_bytes: self.row_bytes, rows, order, durable, keys: self.keys };
        Asked::start(Task { engine, opening })
    }

    /// Loads a new store.
    fn load(&self, engine: EngineId, order: Order, rows: usize, durable: bool) -> Fallible<Load> {
        self.remove(engine)?;
        std::fs::create_dir_all(self.settings.dir.join(engine.name()))?;
        settle(&self.settings.dir)?;
        let mut child = self.start(engine, order, rows, durable)?;
        let answer = child.ask("load")?;
        child.end()?;
        let [load, close, disk, median, slow, written] = *answer.as_slice() else {
            return Err("a load has six numbers".into());
        };
        let data = (rows * self.row_bytes) as f64;
        let load = Load { load, closed: load + close, disk, stall: slow / median.max(1.0), written: written / data };
        let (seconds, stall, written) = (load.closed / 1e9, load.stall, load.written);
        self.say(order, &format!(
            "{engine}: {rows} rows loaded and closed, durable {durable}, {seconds:.2} s, {stall:.1} p99/p50, \
             {written:.2} written"
        ));
        Ok(load)
    }

    fn remove(&self, engine: EngineId) -> Fallible {
        let dir = self.settings.dir.join(engine.name());
        if dir.exists() {
            std::fs::remove_dir_all(dir)?;
        }
        Ok(())
    }

    /// Loads all engines in both orders, several times.
    fn loads(&self, durable: bool, results: &mut Results) -> Fallible {
        let takes = |engine: &EngineId| self.keys == KeyForm::Number || engine.takes_text();
        let engines: Vec<EngineId> = self.settings.engines.iter().copied().filter(takes).collect();
        let count = self.settings.load_rows(self.row_bytes);
        let rows = count as f64;
        for round in 0..self.settings.loads {
            for order in ORDERS {
                for engine in Self::turns(round, engines.len()).filter_map(|turn| engines.get(turn).copied()) {
                    let load = self.load(engine, order, count, durable)?;
                    self.remove(engine)?;
                    let mut push = |measure, sample| results.push(engine, None, self.workload(order, measure), sample);
                    if durable {
                        push(Measure::LoadDurable, load.load / rows);
                        push(Measure::DurableClosed, load.closed / rows);
                        push(Measure::Stall, load.stall);
                    } else {
                        push(Measure::LoadBuffered, load.load / rows);
                        push(Measure::LoadClosed, load.closed / rows);
                        push(Measure::Written, load.written);
                    }
                }
            }
        }
        Ok(())
    }

    /// Loads every engine once, and reads each peer in turn with the engines of [`BESIDE`].
    fn reads(&self, order: Order, results: &mut Results) -> Fallible {
        let rows = self.settings.rows(self.row_bytes);
        let (beside, peers): (Vec<EngineId>, Vec<EngineId>) =
            self.settings.engines.iter().partition(|engine| BESIDE.contains(engine));
        let mut children = Vec::new();
        for engine in beside {
            children.push(self.ready(engine, order, rows, results)?);
        }
        if peers.is_empty() {
            self.ask_all(order, &mut children, None, results)?;
        }
        for peer in peers {
            children.push(self.ready(peer, order, rows, results)?);
            self.ask_all(order, &mut children, Some(peer), results)?;
            children.pop().map_or(Ok(()), Asked::end)?;
            self.remove(peer)?;
        }
        for child in children {
            let engine = child.engine;
            child.end()?;
            self.remove(engine)?;
        }
        Ok(())
    }

    /// A child with a loaded and opened store.
    fn ready(&self, engine: EngineId, order: Order, rows: usize, results: &mut Results) -> Fallible<Asked> {
        let load = self.load(engine, order, rows, false)?;
        results.push(engine, None, self.workload(order, Measure::Disk), load.disk / rows as f64);
        self.start(engine, order, rows, false)
    }

    /// Measures everything on open stores.
    fn ask_all(
        &self,
        order: Order,
        children: &mut [Asked],
        beside: Option<EngineId>,
        results: &mut Results,
    ) -> Fallible {
        settle(&self.settings.dir)?;
        let (rounds, batches) = (self.settings.rounds, self.settings.batches);
        let rows = self.settings.rows(self.row_bytes) as f64;
        self.say(order, &beside.map_or("reads".into(), |peer| format!("reads beside {peer}")));
        let mut ask = |children: &mut [Asked], measure, rounds, line: &dyn Fn(usize) -> String, share: f64| {
            let workload = self.workload(order, measure);
            let mut push = |engine, sample: f64| results.push(engine, beside, workload, sample / share);
            ask_rounds(children, measure, rounds, line, &mut push)
        };
        ask(children, Measure::Open, OPENS, &|_| "open".into(), 1.0)?;
        for child in children.iter_mut() {
            child.ask("preload")?;
        }
        let batch = GATHER as f64;
        ask(children, Measure::Read, rounds, &|round| format!("read {} {batches}", 2 * round + 100), batch)?;
        ask(children, Measure::Miss, rounds, &|round| format!("miss {} {batches}", 2 * round + 101), batch)?;
        ask(children, Measure::Memory, 1, &|_| "memory".into(), rows)
    }
}

/// Sends requests to all children in turn, for several rounds.
fn ask_rounds(
    children: &mut [Asked],
    measure: Measure,
    rounds: usize,
    line: &dyn Fn(usize) -> String,
    push: &mut dyn FnMut(EngineId, f64),
) -> Fallible {
    for round in 0..rounds {
        for turn in Size::turns(round, children.len()) {
            let Some(child) = children.get_mut(turn) else { continue };
            // The control has no misses, and its memory is a list of positions that no application would keep.
            if matches!(measure, Measure::Miss | Measure::Memory) && !child.engine.has_keys() {
                continue;
            }
            push(child.engine, child.ask(&line(round))?.first().copied().ok_or("an answer is empty")?);
        }
    }
    Ok(())
}

/// Waits until earlier writes are on disk, so that no engine waits for the writes of another.
fn settle(dir: &Path) -> Fallible {
    let status = Command::new("sync").arg("-f").arg(dir).status()?;
    if status.success() { Ok(()) } else { Err("sync failed".into()) }
}

/// A child process.
struct Asked {
    engine: EngineId,
    process: std::process::Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Asked {
    fn start(task: Task) -> Fallible<Self> {
        let mut process = Command::new(std::env::current_exe()?)
            .env(TASK, serde_json::to_string(&task)?)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let stdin = process.stdin.take().ok_or("a child has no standard input")?;
        let stdout = BufReader::new(process.stdout.take().ok_or("a child has no standard output")?);
        Ok(Self { engine: task.engine, process, stdin, stdout })
    }

    fn ask(&mut self, line: &str) -> Fallible<Vec<f64>> {
        writeln!(self.stdin, "{line}")?;
        self.stdin.flush()?;
        let mut answer = String::new();
        if self.stdout.read_line(&mut answer)? == 0 {
            return Err(format!("the process of {} ended while it was asked to {line}", self.engine).into());
        }
        if answer.starts_with("error") {
            return Err(format!("{} was asked to {line}: {}", self.engine, answer.trim()).into());
        }
        Ok(answer.split_whitespace().map(str::parse).collect::<Result<_, _>>()?)
    }

    fn end(self) -> Fallible {
        let Self { engine, mut process, stdin, stdout } = self;
        drop((stdin, stdout));
        let status = process.wait()?;
        if status.success() { Ok(()) } else { Err(format!("the process of {engine} ended with {status}").into()) }
    }
}
