//! How the costs of the store grow with the number of keys. One store is loaded tenfold again and again, and measured
//! at each step together with a raw control.
//!
//! `cargo bench --bench scaling -- [--max-keys 1e7] [--row-bytes 16] [--wide-rows 100000]
//! [--batches 20000] [--dir DIR] [--out reports]`
//!
//! The only assertion is that every row read is the one that was put. Times depend on the machine; the results are
//! their growth, and their ratio to a control that is measured in turn with them.

mod data;
#[path = "../support/kernel.rs"]
mod kernel;
#[path = "../support/large.rs"]
mod large;
mod load;
mod measure;
mod merging;
mod plot;
#[path = "../support/random.rs"]
mod random;
#[path = "../support/raw.rs"]
mod raw;
mod report;
mod residency;
mod statistics;
#[path = "../support/system.rs"]
mod system;
mod wide;

use std::error::Error;
use std::path::PathBuf;

use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use data::Control;
use wide::Wide;

type Fallible<T = ()> = Result<T, Box<dyn Error>>;

/// Keys per measured batch.
const GATHER: usize = 256;
const MODULE: &str = "scaling";
/// Marks a child process.
const CHILD: &str = "TENSORCASK_BENCH_CHILD";

struct Settings {
    max_keys: u64,
    row_bytes: usize,
    wide_rows: u64,
    dir: PathBuf,
    out: PathBuf,
    batches: usize,
}

/// The results at one number of keys.
#[derive(Debug, Clone, Serialize)]
struct Step {
    keys: u64,
    load: load::Load,
    rest: measure::Rest,
    merging: merging::Merging,
}

fn settings() -> Fallible<Settings> {
    let dir = std::env::temp_dir().join("tensorcask-scaling");
    let mut settings = Settings {
        max_keys: 10_000_000,
        row_bytes: 16,
        wide_rows: 100_000,
        dir,
        out: "reports".into(),
        batches: 20_000,
    };
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().ok_or_else(|| format!("{argument} needs a value"));
        match argument.as_str() {
            "--max-keys" => settings.max_keys = value()?.parse::<f64>()? as u64,
            "--row-bytes" => settings.row_bytes = value()?.parse()?,
            "--wide-rows" => settings.wide_rows = value()?.parse()?,
            "--dir" => settings.dir = value()?.into(),
            "--out" => settings.out = value()?.into(),
            "--batches" => settings.batches = value()?.parse()?,
            "--bench" | "--test" => {}
            other => {
                let known = "--max-keys, --row-bytes, --wide-rows, --batches, --dir, --out";
                return Err(format!("{other} is no option: {known}").into());
            }
        }
    }
    let enough = settings.row_bytes > 0 && settings.wide_rows > 0 && settings.max_keys >= 1000;
    if !enough || settings.batches < statistics::BLOCK {
        return Err("give at least 1,000 keys, rows of a byte, a wide row, and 100 batches".into());
    }
    Ok(settings)
}

/// The powers of ten from 1e5 on, followed by the largest number of keys.
fn sizes(max_keys: u64) -> Vec<u64> {
    let powers = std::iter::successors(Some(100_000_u64), |keys| keys.checked_mul(10));
    powers.take_while(|keys| *keys < max_keys).chain([max_keys]).collect()
}

fn main() -> Fallible {
    let settings = settings()?;
    if std::env::var_os(CHILD).is_some() {
        return measure::measure_memory(&settings);
    }
    load::clear(&settings.dir)?;
    let result = climb(&settings);
    // Also after a failure, as the files are large.
    std::fs::remove_dir_all(&settings.dir)?;
    result
}

fn climb(settings: &Settings) -> Fallible {
    let mut control = Control::new(&settings.dir, settings.max_keys, settings.row_bytes)?;
    let wide = Wide::new(settings)?;
    let machine = report::Machine::of(settings, &control)?;
    let bar = ProgressBar::new(settings.max_keys);
    bar.set_style(ProgressStyle::with_template(
        "{elapsed_precise} {wide_bar} {human_pos}/{human_len} keys, {eta} to go {msg}",
    )?);
    let (mut steps, mut loaded) = (Vec::new(), 0);
    let sizes = sizes(settings.max_keys);
    for (number, &keys) in sizes.iter().enumerate() {
        bar.set_message("loading");
        let load = load::load(settings, loaded, keys, &bar)?;
        let rest = measure::rest(settings, keys, &mut control, &wide, &bar)?;
        // Some keys must be left for the next step to load.
        let most = sizes.get(number + 1).map_or(keys * 5, |next| keys + (next - keys) / 2);
        let merging = merging::merging(settings, keys, most, &bar)?;
        loaded = merging.keys_after;
        let step = Step { keys, load, rest, merging };
        bar.suspend(|| println!("{}", report::line(&step)));
        steps.push(step);
        // Written after each step, so that results are kept if the next one fails or takes too long.
        report::write(settings, &machine, &steps)?;
    }
    bar.finish_and_clear();
    println!("\nwritten to {}", settings.out.display());
    Ok(())
}
