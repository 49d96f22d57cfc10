//! The process that starts one child an engine, and asks them in turn.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, ChildStdout, Command, Stdio};

use crate::Fallible;
use crate::child::{TASK, Task};
use crate::engine::{EngineId, Opening, Order};
use crate::machine::Machine;
use crate::results::{Measure, Results};
use crate::rows::GATHER;
use crate::settings::Settings;
use crate::{plot, report};

/// Openings of each store.
const OPENS: usize = 9;

/// Measures, and writes the report.
///
/// # Errors
/// The first of any engine.
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

/// Measures everything that was asked for.
///
/// # Errors
/// The first of any engine.
pub fn measure(settings: &Settings) -> Fallible<Results> {
    std::fs::create_dir_all(&settings.dir)?;
    let machine = Machine::here(&settings.dir)?;
    let mut results = Results { machine, settings: settings.clone(), series: Vec::new() };
    for row_bytes in &settings.row_bytes {
        for order in [Order::Sorted, Order::Shuffled] {
            let workload = Workload { settings, row_bytes: *row_bytes, order };
            workload.loads(true, &mut results)?;
            workload.loads(false, &mut results)?;
            workload.reads(&mut results)?;
            std::fs::remove_dir_all(&settings.dir)?;
            std::fs::create_dir_all(&settings.dir)?;
        }
    }
    std::fs::remove_dir_all(&settings.dir)?;
    Ok(results)
}

/// One size of rows, loaded in one order.
struct Workload<'a> {
    settings: &'a Settings,
    row_bytes: usize,
    order: Order,
}

impl Workload<'_> {
    fn rows(&self) -> usize {
        self.settings.rows(self.row_bytes)
    }

    fn say(&self, what: &str) {
        eprintln!("{:>5} B, {:?}: {what}", self.row_bytes, self.order);
    }

    fn dir(&self, engine: EngineId) -> PathBuf {
        self.settings.dir.join(engine.name())
    }

    fn start(&self, engine: EngineId, durable: bool) -> Fallible<Asked> {
        let (row_bytes, rows, order) = (self.row_bytes, self.rows(), self.order);
        let opening = Opening { dir: self.dir(engine), row_bytes, rows, order, durable };
        Asked::start(Task { engine, opening })
    }

    /// The engines, from another one on in each round: what one leaves to the machine is not always left to the same.
    fn turns(&self, round: usize) -> impl Iterator<Item = usize> + use<> {
        let engines = self.settings.engines.len();
        (0..engines).map(move |turn| (turn + round) % engines.max(1))
    }

    /// Loads all engines some times. The stores of the last time are kept.
    fn loads(&self, durable: bool, results: &mut Results) -> Fallible {
        let rows = self.rows() as f64;
        for round in 0..self.settings.loads {
            for turn in self.turns(round) {
                let Some(engine) = self.settings.engines.get(turn).copied() else { continue };
                let dir = self.dir(engine);
                if dir.exists() {
                    std::fs::remove_dir_all(&dir)?;
                }
                std::fs::create_dir_all(&dir)?;
                settle(&self.settings.dir)?;
                let mut child = self.start(engine, durable)?;
                let answer = child.ask("load")?;
                let [load, close, bytes] = answer.as_slice() else { return Err("load has three numbers".into()) };
                child.end()?;
                self.say(&format!("{engine} loaded, durable {durable}, {:.0} ns a row", load / rows));
                let mut push = |measure, sample| results.push(engine, self.row_bytes, self.order, measure, sample);
                if durable {
                    push(Measure::LoadDurable, load / rows);
                } else {
                    push(Measure::LoadBuffered, load / rows);
                    push(Measure::LoadClosed, (load + close) / rows);
                    push(Measure::Disk, bytes / rows);
                }
            }
        }
        Ok(())
    }

    /// Opens all engines at once, and reads from one after another.
    fn reads(&self, results: &mut Results) -> Fallible {
        settle(&self.settings.dir)?;
        let engines = &self.settings.engines;
        let mut children = engines.iter().map(|engine| self.start(*engine, false)).collect::<Fallible<Vec<_>>>()?;
        let (rounds, batches) = (self.settings.rounds, self.settings.batches);
        let batch = GATHER as f64;
        self.rounds(&mut children, results, Measure::Open, OPENS, &|_| "open".into(), 1.0)?;
        for child in &mut children {
            child.ask("warm")?;
        }
        let mut all = |measure: Measure, rounds: usize, line: &dyn Fn(usize) -> String, share: f64| -> Fallible {
            self.rounds(&mut children, results, measure, rounds, line, share)
        };
        all(Measure::Read, rounds, &|round| format!("read {} {batches}", 2 * round + 100), batch)?;
        all(Measure::Miss, rounds, &|round| format!("miss {} {batches}", 2 * round + 101), batch)?;
        all(Measure::Memory, 1, &|_| "memory".into(), self.rows() as f64)?;
        children.into_iter().try_for_each(Asked::end)
    }

    /// Asks all children in turn, some rounds.
    fn rounds(
        &self,
        children: &mut [Asked],
        results: &mut Results,
        measure: Measure,
        rounds: usize,
        line: &dyn Fn(usize) -> String,
        share: f64,
    ) -> Fallible {
        self.say(measure.name());
        for round in 0..rounds {
            for turn in self.turns(round) {
                let Some(child) = children.get_mut(turn) else { continue };
                // The control misses nothing, and its memory is a list of places that nobody would keep.
                if matches!(measure, Measure::Miss | Measure::Memory) && !child.engine.has_keys() {
                    continue;
                }
                let sample = child.ask(&line(round))?.first().copied().ok_or("an answer is empty")?;
                results.push(child.engine, self.row_bytes, self.order, measure, sample / share);
            }
        }
        Ok(())
    }
}

/// Waits until what was written before is on disk: one engine's writes are not another one's wait.
fn settle(dir: &Path) -> Fallible {
    let status = Command::new("sync").arg("-f").arg(dir).status()?;
    if status.success() { Ok(()) } else { Err("sync failed".into()) }
}

/// A child that is asked.
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
