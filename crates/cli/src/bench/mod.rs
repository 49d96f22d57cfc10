//! `tensorcask bench`

mod drop_cache;
pub(crate) mod measure;
pub(crate) mod sample;

use serde_json::{Value as Json, json};

use self::measure::{Measured, Pass, Settings, Timing, measure};
use crate::failure::Failure;
use crate::output::{Output, bytes};
use crate::store::ReadArguments;

/// Arguments of `bench`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    read: ReadArguments,
    /// Measures for about this many seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 4.0)]
    seconds: f64,
    /// Reads this many keys at once.
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    batch: u32,
    /// Reads at most this many different keys of the store.
    #[arg(long, value_name = "N", default_value_t = 65_536, value_parser = clap::value_parser!(u64).range(1..=1 << 24))]
    sample: u64,
    /// Asks the system to drop the store's files from the page cache first. Pages that another process has mapped stay.
    #[arg(long)]
    cold: bool,
}

/// Measures how fast reads are, here and now, against a plain copy of the same rows. Writes nothing. Ends with exit
/// code 2 if rows of the sample are damaged.
pub(crate) fn run(arguments: &Arguments, output: &Output) -> Result<(), Failure> {
    let seconds = arguments.seconds;
    if !(seconds > 0.0 && seconds <= 3600.0) {
        return Err(Failure::input(format!("--seconds is {seconds}: give more than 0 and at most 3600")));
    }
    let settings =
        Settings { seconds, batch: arguments.batch as usize, sample: arguments.sample, cold: arguments.cold };
    let reader = crate::store::reader(&arguments.read, output)?;
    let store = arguments.read.store.display();
    let is_empty = reader.is_empty()?;
    let Some(measured) = measure(reader, &arguments.read, &settings)? else {
        return Err(match is_empty {
            true => Failure::input(format!("{store} has no keys: put some first")),
            false => {
                Failure::damaged(format!("no row of the sample can be read: `tensorcask verify {store}` lists why"))
            }
        });
    };
    output.line(|| human(&measured), || to_json(&measured))?;
    if measured.damaged == 0 {
        return Ok(());
    }
    output.warn(&format!("{} rows of the sample are damaged: `tensorcask verify` lists them", measured.damaged));
    Err(Failure::damage())
}

fn human(measured: &Measured) -> String {
    let Measured { keys, row_bytes, .. } = *measured;
    let in_store = measured.keys_in_store.map_or("unknown".to_owned(), |keys| keys.to_string());
    let sampled = bytes((keys as f64 * row_bytes) as u64);
    let mut lines = vec![
        format!("store      {} keys, {} of {:.0} B a row", in_store, measured.structure, row_bytes),
        format!("sample     {keys} keys, {sampled}, in batches of {}; {}", measured.batch, measured.call),
        format!("cache      {}", cache(measured)),
        String::new(),
        format!(
            "{:<22}{:>11}{:>11}{:>11}{:>13}{:>10}{:>8}",
            "µs a batch", "p50", "p99", "p99.9", "rows/s", "GB/s", "x raw"
        ),
    ];
    for (name, timing, ratio) in rows(measured) {
        let ratio = ratio.map_or(String::new(), |ratio| format!("{ratio:.2}"));
        lines.push(format!(
            "{name:<22}{:>11.1}{:>11.1}{:>11.1}{:>13.0}{:>10.3}{ratio:>8}",
            timing.at("p50") * 1e6,
            timing.at("p99") * 1e6,
            timing.at("p99.9") * 1e6,
            timing.rows_per_s,
            timing.bytes_per_s / 1e9,
        ));
    }
    lines.join("\n")
}

/// Where the rows were before the first pass.
pub(crate) fn cache(measured: &Measured) -> String {
    match measured.disk_bytes {
        0 => "warm: no row of the first pass was read from disk".to_owned(),
        disk => format!("{}: {} were read from disk in the first pass", measured.state(), bytes(disk)),
    }
}

/// The lines of the table: a name, its timing, and the ratio to the raw copy.
pub(crate) fn rows(measured: &Measured) -> [(&'static str, Timing, Option<f64>); 5] {
    let Measured { first, random, sequential, .. } = measured;
    [
        ("random, first pass", *first, None),
        ("random", random.engine, Some(random.ratio())),
        ("raw copy, random", random.raw, None),
        ("in order", sequential.engine, Some(sequential.ratio())),
        ("raw copy, in order", sequential.raw, None),
    ]
}

fn to_json(measured: &Measured) -> Json {
    let timing = |timing: &Timing| {
        json!({
            "batches": timing.batches, "p50_s": timing.at("p50"), "p99_s": timing.at("p99"),
            "p999_s": timing.at("p99.9"), "max_s": timing.at("max"), "rows_per_s": timing.rows_per_s,
            "bytes_per_s": timing.bytes_per_s,
        })
    };
    let pass = |pass: &Pass| json!({ "reads": timing(&pass.engine), "raw_copy": timing(&pass.raw), "times_raw": pass.ratio() });
    json!({
        "keys": measured.keys_in_store,
        "structure": measured.structure,
        "row_bytes": measured.row_bytes,
        "sampled_keys": measured.keys,
        "damaged": measured.damaged,
        "batch": measured.batch,
        "call": measured.call,
        "open_s": measured.open_s,
        "cache": measured.state(),
        "disk_bytes": measured.disk_bytes,
        "first_pass": timing(&measured.first),
        "random": pass(&measured.random),
        "in_order": pass(&measured.sequential),
    })
}
