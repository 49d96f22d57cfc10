//! `tensorcask report`

mod data;
mod histogram;
mod page;
mod plot;
mod sections;
mod text;

use std::path::PathBuf;

use serde_json::json;

use self::data::gather;
pub(crate) use self::text::date;
use crate::failure::Failure;
use crate::new_file::{NewFile, check_outside};
use crate::output::{Output, path_json};
use crate::store::ReadArguments;

/// Arguments of `report`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    read: ReadArguments,
    /// The HTML file to write. An existing file is replaced once the new one is complete.
    #[arg(long, short, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    out: PathBuf,
    /// Estimates live shares, keys and shapes from a sample of this many rows.
    #[arg(long, value_name = "N", default_value_t = 16_384, value_parser = clap::value_parser!(u64).range(1..=1 << 22))]
    sample: u64,
    /// Tests reads for about this many seconds; 0 leaves the test out.
    #[arg(long, value_name = "SECONDS", default_value_t = 2.0)]
    seconds: f64,
}

/// Writes a page with plots of the store, without anything from elsewhere. Ends with exit code 2 if files of the store
/// are left out or sampled rows are damaged; the page says so too.
pub(crate) fn run(arguments: &Arguments, output: &Output) -> Result<(), Failure> {
    let seconds = arguments.seconds;
    if !(0.0..=3600.0).contains(&seconds) {
        return Err(Failure::input(format!("--seconds is {seconds}: give at least 0 and at most 3600")));
    }
    check_outside(&arguments.out, &arguments.read.store)?;
    let data = gather(&arguments.read, (arguments.sample, seconds), output)?;
    let page = page::page(&data);
    let mut file = NewFile::create(&arguments.out)?;
    let replaced = file.replaces();
    file.put(page.as_bytes())?;
    file.finish()?;
    let is_damaged = data.is_damaged();
    output.written(
        &arguments.out,
        || format!("report of {} segments to {}", data.segments.len(), arguments.out.display()),
        || {
            json!({
                "path": path_json(&arguments.out), "bytes": page.len(), "replaced": replaced, "damaged": is_damaged,
            })
        },
    )?;
    if is_damaged { Err(Failure::damage()) } else { Ok(()) }
}
