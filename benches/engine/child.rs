//! Child processes: one reports the memory that reading takes, one is killed while it puts.

use std::hint::black_box;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use tensorcask::{Dtype, Reader, Store};

use crate::load::load;
use crate::system::resident_bytes;
use crate::table::Table;
use crate::{BATCH, Fallible, GATHER, MODULE, Size};

/// Marks a child process, and passes it the task and the folder.
const CHILD: &str = "TENSORCASK_BENCH_CHILD";
const DIR: &str = "TENSORCASK_BENCH_DIR";
const ROWS: &str = "TENSORCASK_BENCH_ROWS";
const ROW_BYTES: &str = "TENSORCASK_BENCH_ROW_BYTES";

/// Runs the task of a child, if this process is one. Returns whether it is.
pub(crate) fn serve() -> Fallible<bool> {
    let Ok(task) = std::env::var(CHILD) else { return Ok(false) };
    let dir = std::env::var(DIR)?;
    if task == "memory" {
        measure_memory(&dir)?
    } else {
        be_killed(&dir)?
    }
    Ok(true)
}

/// A child that opens the store, reads every row, and prints how much anonymous memory that took.
fn measure_memory(dir: &str) -> Fallible {
    let (rows, row_bytes): (usize, usize) = (std::env::var(ROWS)?.parse()?, std::env::var(ROW_BYTES)?.parse()?);
    let mut out = vec![1_u8; GATHER * row_bytes];
    let mut found = vec![true; GATHER];
    let mut keys = vec![1_u64; GATHER];
    let before = resident_bytes()?.0;
    let reader = Reader::open(dir, MODULE)?;
    let opened = resident_bytes()?.0;
    for start in (0..rows - rows % GATHER).step_by(GATHER) {
        keys.iter_mut().zip(start as u64..).for_each(|(key, number)| *key = number);
        reader.get_batch_into_bytes(&keys, Dtype::U8, &[row_bytes], &mut out, &mut found)?;
    }
    let read = resident_bytes()?.0;
    println!("{} {} {}", opened.saturating_sub(before), read.saturating_sub(before), black_box(out.len()));
    drop(reader);
    Ok(())
}

/// Anonymous memory of a reader.
pub(crate) fn memory(size: &Size<'_>, table: &mut Table) -> Fallible {
    let output = child(size, "memory", size.dir())?.stdout(Stdio::piped()).output()?;
    let text = String::from_utf8(output.stdout)?;
    let numbers: Vec<f64> = text.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    let [opened, read, ..] = numbers.as_slice() else { return Err(format!("the child said {text:?}").into()) };
    let a_key = |bytes: f64| format!("{:.2} B a key", bytes / size.settings.rows as f64);
    table.add("anonymous memory of an open reader", a_key(*opened), "");
    table.add("  after all rows were read and checked", a_key(*read), "≤ 2 B a key");
    Ok(())
}

/// This program as a child process that runs `task` in `dir`.
fn child(size: &Size<'_>, task: &str, dir: &Path) -> Fallible<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.env(CHILD, task).env(DIR, dir).env(ROWS, size.settings.rows.to_string());
    command.env(ROW_BYTES, size.row_bytes.to_string());
    Ok(command)
}

/// The child: loads, flushes, reports that, and puts until it is killed.
fn be_killed(dir: &str) -> Fallible {
    let (rows, row_bytes) = (std::env::var(ROWS)?.parse()?, std::env::var(ROW_BYTES)?.parse()?);
    let store = Store::open(dir, "killed")?;
    load(&store, rows, row_bytes)?;
    println!("loaded");
    let bytes = vec![1_u8; BATCH * row_bytes];
    for batch in 0_u64.. {
        let keys: Vec<u64> = (0..BATCH as u64).map(|key| 1 << 40 | batch << 20 | key).collect();
        store.put_rows_bytes(&keys, Dtype::U8, &[row_bytes], &bytes)?;
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// Kills a child while it puts, and opens its store.
pub(crate) fn killed(size: &Size<'_>, table: &mut Table) -> Fallible {
    let dir = size.dir().join("killed");
    let mut child = child(size, "killed", &dir)?.stdout(Stdio::piped()).spawn()?;
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
    if store.len()? < size.settings.rows as u64 {
        return Err("rows that were flushed are missing after kill -9".into());
    }
    store.close()?;
    std::fs::remove_dir_all(&dir)?;
    Ok(())
}
