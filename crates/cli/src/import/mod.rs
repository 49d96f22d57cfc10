//! `tensorcask import`
//!
//! All files are checked before the store is opened, so a refused import stores nothing. Then rows are put in chunks of
//! bounded size; each chunk is written before the next is read.

pub(crate) mod arguments;
mod array;
mod arrow_file;
mod census;
mod columns;
mod elements;
mod input;
mod key_array;
mod key_text;
pub(crate) mod keys;
mod literal;
mod npy;
mod npz;
mod open;
mod overflow;
mod packed;
mod parquet;
mod plan;
mod put;
mod safetensors;
mod segment;
mod source;
mod table;
pub(crate) mod torchcachex;
mod tree;

use std::time::Instant;

use serde_json::json;

pub(crate) use self::arguments::Arguments;
use self::input::Inputs;
use self::plan::Plan;
use self::put::Done;
use crate::failure::Failure;
use crate::output::{Output, path_json};

/// Imports rows or tensors from files.
pub(crate) fn run(arguments: &Arguments, output: &Output) -> Result<(), Failure> {
    let start = Instant::now();
    crate::store::check_name(&arguments.store)?;
    let inputs = Inputs::list(&arguments.files)?;
    let plan = Plan::new(arguments, &inputs)?;
    let done = put::run(arguments, &plan, output)?;
    report(arguments, &inputs, &plan, &done, start.elapsed().as_secs_f64(), output)
}

fn report(
    arguments: &Arguments,
    inputs: &Inputs,
    plan: &Plan,
    done: &Done,
    seconds: f64,
    output: &Output,
) -> Result<(), Failure> {
    let duplicates = plan.rows - plan.distinct;
    let replaced = plan.distinct.saturating_sub(done.new);
    let mut warnings = Vec::new();
    if let (Some(dtype), true) = (arguments.store_as(), done.infinite > 0) {
        warnings.push(format!("{} finite values are too large for {dtype} and were stored as infinity", done.infinite));
    }
    if duplicates > 0 {
        warnings.push(format!("{duplicates} rows have the key of a later row: the last row of each key is kept"));
    }
    warnings.extend(done.metadata_replaced.iter().cloned());
    if !inputs.left_out.is_empty() {
        let names: Vec<String> = inputs.left_out.iter().take(8).map(|path| path.display().to_string()).collect();
        let more = if inputs.left_out.len() > names.len() { ", …" } else { "" };
        warnings.push(format!(
            "{} entries of the folders were skipped: {}{more}",
            inputs.left_out.len(),
            names.join(", ")
        ));
    }
    warnings.iter().for_each(|warning| output.warn(warning));
    let rows = plan.rows;
    let left_out: Vec<_> = inputs.left_out.iter().map(|path| path_json(path)).collect();
    output.line(
        || {
            format!(
                "{rows} values, {} in {seconds:.2} s\n{} distinct keys, {duplicates} duplicates: {} new, {replaced} \
                 replaced",
                crate::output::bytes(done.bytes),
                plan.distinct,
                done.new
            )
        },
        || {
            json!({
                "values": rows, "bytes": done.bytes, "seconds": seconds, "files": inputs.files.len(),
                "distinct_keys": plan.distinct, "duplicates": duplicates, "new": done.new, "replaced": replaced,
                "infinite": done.infinite, "left_out": left_out, "warnings": warnings,
            })
        },
    )
}
