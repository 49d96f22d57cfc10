//! Stores of many rows, from load to reopening: the promises of the engine, each with a control in the same run.
//!
//! `cargo bench --bench engine -- [--rows 1000000] [--row-bytes 3072,128] [--rounds 200] [--dir DIR] [--report FILE]`
//!
//! The relevant figures are ratios to a control that is measured in turn with them; absolute times depend on the
//! machine. With `--report` the tables are also written as Markdown.

mod child;
#[path = "../support/kernel.rs"]
mod kernel;
#[path = "../support/large.rs"]
mod large;
mod load;
#[path = "../support/random.rs"]
mod random;
#[path = "../support/raw.rs"]
mod raw;
mod reads;
#[path = "../support/system.rs"]
mod system;
mod table;
mod threads;

use std::error::Error;
use std::path::{Path, PathBuf};
use std::time::Instant;

use tensorcask::Store;

use crate::table::Table;

type Fallible<T = ()> = Result<T, Box<dyn Error>>;

/// Rows per put.
const BATCH: usize = 2048;
/// Keys per read.
const GATHER: usize = 256;
const MODULE: &str = "bench";

struct Settings {
    rows: usize,
    row_bytes: Vec<usize>,
    /// The number of rounds in which contenders take turns.
    rounds: usize,
    dir: PathBuf,
    report: Option<PathBuf>,
}

/// The settings for rows of one size.
struct Size<'a> {
    settings: &'a Settings,
    row_bytes: usize,
}

impl Size<'_> {
    fn dir(&self) -> &Path {
        &self.settings.dir
    }
}

fn settings() -> Fallible<Settings> {
    let mut settings = Settings {
        rows: 1_000_000,
        row_bytes: vec![3072, 128],
        rounds: 200,
        dir: std::env::temp_dir().join("tensorcask-bench"),
        report: None,
    };
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().ok_or_else(|| format!("{argument} needs a value"));
        match argument.as_str() {
            "--rows" => settings.rows = value()?.parse()?,
            "--row-bytes" => settings.row_bytes = value()?.split(',').map(str::parse).collect::<Result<_, _>>()?,
            "--rounds" => settings.rounds = value()?.parse()?,
            "--dir" => settings.dir = value()?.into(),
            "--report" => settings.report = Some(value()?.into()),
            "--bench" | "--test" => {}
            other => {
                let options = "--rows, --row-bytes, --rounds, --dir, --report";
                return Err(format!("{other} is no option: {options}").into());
            }
        }
    }
    Ok(settings)
}

fn main() -> Fallible {
    if child::serve()? {
        return Ok(());
    }
    let settings = settings()?;
    let mut tables = Vec::new();
    for row_bytes in &settings.row_bytes {
        let _ = std::fs::remove_dir_all(&settings.dir);
        std::fs::create_dir_all(&settings.dir)?;
        println!("\n{} rows of {row_bytes} bytes in {}\n", settings.rows, settings.dir.display());
        tables.push(measure(&Size { settings: &settings, row_bytes: *row_bytes })?);
    }
    std::fs::remove_dir_all(&settings.dir)?;
    if let Some(path) = &settings.report {
        table::write_report(path, &settings, &tables)?;
    }
    Ok(())
}

/// Measures everything for rows of one size.
fn measure(size: &Size<'_>) -> Fallible<Table> {
    let mut table = Table::new(size.row_bytes);
    let raw = size.dir().join("raw.bin");
    load_all(size, &raw, &mut table)?;
    load::open_times(size, &mut table)?;
    child::memory(size, &mut table)?;
    reads::reads(size, &raw, &mut table)?;
    threads::threads(size, &raw, &mut table)?;
    load::flushes(size, &mut table)?;
    std::fs::remove_file(&raw)?;
    std::fs::remove_dir_all(size.dir().join(MODULE))?;
    child::killed(size, &mut table)?;
    Ok(table)
}

/// Writes the rows to a plain file and to the store, and closes the store.
fn load_all(size: &Size<'_>, raw: &Path, table: &mut Table) -> Fallible {
    let (rows, row_bytes) = (size.settings.rows, size.row_bytes);
    let raw_time = load::write_raw(raw, rows, row_bytes)?;
    let store = Store::open(size.dir(), MODULE)?;
    let load_time = load::load(&store, rows, row_bytes)?;
    let begin = Instant::now();
    store.close()?;
    let close_time = begin.elapsed();
    let raw_bytes = (rows * row_bytes) as f64;
    table.add(
        "load in batches of 2,048, flushed / write + fdatasync",
        format!("{:.2} ×", load_time.as_secs_f64() / raw_time.as_secs_f64()),
        "",
    );
    let speed = |seconds: f64| raw_bytes / 1e9 / seconds;
    table.add(
        "  load / raw",
        format!("{:.2} / {:.2} GB/s", speed(load_time.as_secs_f64()), speed(raw_time.as_secs_f64())),
        "",
    );
    table.add("close: seal, merge the index", format!("{:.0} ms", close_time.as_secs_f64() * 1e3), "");
    let disk = system::folder_bytes(&size.dir().join(MODULE))? as f64;
    let overhead = (disk - raw_bytes) / rows as f64;
    table.add("disk over the raw bytes, index included", format!("{overhead:.1} B a row"), "≤ 60 B a row");
    Ok(())
}
