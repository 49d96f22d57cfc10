//! `tensorcask import-torchcachex`
//!
//! Reads the Arrow segments of a cache of torchcachex, and nothing else that could run code: its pickled index is not
//! needed, since each segment holds the keys of its rows. All segments are checked before the store is opened.

mod arguments;
mod layout;
mod put;
mod segment;

use std::time::Instant;

use serde_json::json;

pub(crate) use self::arguments::Arguments;
use self::put::{Counts, Plan};
use crate::failure::Failure;
use crate::output::{Output, bytes, path_json};

/// Imports a cache of torchcachex.
pub(crate) fn run(arguments: &Arguments, output: &Output) -> Result<(), Failure> {
    let start = Instant::now();
    crate::store::check_name(arguments.store())?;
    crate::store::check_place(arguments.store())?;
    let plan = Plan::new(arguments)?;
    let counts = if arguments.dry_run { plan.count()? } else { plan.put(output)? };
    report(arguments, &plan, &counts, start.elapsed().as_secs_f64(), output)
}

fn report(
    arguments: &Arguments,
    plan: &Plan<'_>,
    counts: &Counts,
    seconds: f64,
    output: &Output,
) -> Result<(), Failure> {
    let warnings = warnings(arguments, plan);
    warnings.iter().for_each(|warning| output.warn(warning));
    let skipped: Vec<_> =
        plan.damaged.iter().map(|(path, why)| json!({ "path": path_json(path), "why": why })).collect();
    let existing = plan.distinct.saturating_sub(counts.new);
    let (duplicates, rows) = (plan.usable - plan.distinct, plan.usable + plan.pickled + plan.incomplete);
    let (imported, kept) = if arguments.overwrite { (plan.distinct, 0) } else { (counts.new, existing) };
    output.line(
        || {
            let would = if arguments.dry_run { "would be " } else { "" };
            format!(
                "{imported} of {rows} rows {would}imported, {} in {seconds:.2} s\nskipped: {kept} existing, {duplicates} \
                 duplicates, {} with pickled parts, {} incomplete; {} segments",
                bytes(counts.bytes),
                plan.pickled,
                plan.incomplete,
                plan.damaged.len()
            )
        },
        || {
            json!({
                "segments": plan.segments.len(), "rows": rows, "imported": imported, "bytes": counts.bytes,
                "seconds": seconds, "existing": existing, "duplicates": duplicates, "pickled": plan.pickled,
                "incomplete": plan.incomplete, "skipped_segments": skipped, "dry_run": arguments.dry_run,
                "warnings": warnings,
            })
        },
    )
}

fn warnings(arguments: &Arguments, plan: &Plan<'_>) -> Vec<String> {
    let mut warnings = Vec::new();
    for (path, why) in &plan.damaged {
        warnings.push(format!("{} was skipped: {why}", path.display()));
    }
    if plan.pickled > 0 {
        warnings.push(format!(
            "{} rows have pickled parts, which are not read since that can run code; the rows are computed again{}",
            plan.pickled,
            if plan.has_dicts { ", or --without-pickled imports their tensors" } else { "" }
        ));
    }
    if plan.incomplete > 0 {
        warnings.push(format!("{} rows have no tensor, or one that does not fit its shape", plan.incomplete));
    }
    if let (None, Some(prefix)) = (&arguments.strip_prefix, &plan.common_prefix) {
        warnings.push(format!(
            "all keys start with {prefix:?}: if the cache ids of the program do not, import with --strip-prefix {prefix:?} \
             --overwrite"
        ));
    }
    warnings
}
