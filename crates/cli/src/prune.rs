//! `tensorcask prune`

use std::path::PathBuf;
use std::time::Duration;

use serde_json::json;
use tensorcask::{Compaction, Prune, PruneReport};

use crate::failure::Failure;
use crate::output::{Output, bytes};
use crate::quantity::{parse_bytes, parse_duration};

/// Arguments of `prune`.
#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("limit").required(true).multiple(true)
    .args(["older_than", "to_bytes", "to_rows", "prefix", "identity"]))]
pub(crate) struct Arguments {
    /// The store's folder. For --identity, the folder of a wrapped module: <cache dir>/<module id>.
    #[arg(value_hint = clap::ValueHint::DirPath)]
    store: PathBuf,
    /// Removes segments whose last commit is older than this, such as 30d, 12h, 90min or 45s.
    #[arg(long, value_name = "AGE", value_parser = parse_duration)]
    older_than: Option<Duration>,
    /// Removes the oldest segments until all files of the store take at most this many bytes, such as 10GiB.
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes)]
    to_bytes: Option<u64>,
    /// Removes the oldest segments until at most this many rows are left.
    #[arg(long, value_name = "N")]
    to_rows: Option<u64>,
    /// Deletes all keys that start with this, and compacts the store.
    #[arg(long, conflicts_with_all = ["older_than", "to_bytes", "to_rows"])]
    prefix: Option<String>,
    /// Removes these identities of a wrapped module, as `identities --prune` does.
    #[arg(long, value_name = "ID", num_args = 1.., conflicts_with_all = ["older_than", "to_bytes", "to_rows", "prefix"])]
    identity: Vec<String>,
    /// Waits this many seconds for another process that compacts or prunes the store.
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    wait_s: u64,
    /// Shows what would be removed and freed, and removes nothing.
    #[arg(long)]
    dry_run: bool,
}

/// Removes the oldest rows of a store by whole segments, all keys with a prefix, or whole identities. Ends with exit
/// code 2 if damaged segments stayed, and 4 if a limit is not reached because other writers have segments in use.
pub(crate) fn run(arguments: &Arguments, output: &Output) -> Result<(), Failure> {
    if !arguments.identity.is_empty() {
        return crate::identities::prune_named(&arguments.store, &arguments.identity, arguments.dry_run, output);
    }
    match &arguments.prefix {
        Some(prefix) => prune_prefix(arguments, prefix, output),
        None => prune_segments(arguments, output),
    }
}

fn prune_segments(arguments: &Arguments, output: &Output) -> Result<(), Failure> {
    let prune = Prune::new()
        .older_than(arguments.older_than)
        .to_bytes(arguments.to_bytes)
        .to_rows(arguments.to_rows)
        .patience(Duration::from_secs(arguments.wait_s))
        .dry_run(arguments.dry_run);
    let store = crate::store::any_lane(&arguments.store)?;
    let report = store.prune(&prune)?;
    store.close()?;
    for skipped in &report.skipped {
        output.warn(&format!("{} was left as it is: {}", skipped.path.display(), skipped.why));
    }
    output.result(|| summary(&report), &report)?;
    if !report.skipped.is_empty() {
        return Err(Failure::damage());
    }
    if report.reached {
        return Ok(());
    }
    Err(Failure::disk(format!(
        "the limit is not reached: {} segment(s) are in use by other writers, and {} in {} rows are left; close the \
         writers, and look at the quarantine",
        report.segments_in_use,
        bytes(report.bytes_after),
        report.rows_after
    )))
}

fn summary(report: &PruneReport) -> String {
    let would = if report.dry_run { "would be " } else { "" };
    let about = if report.dry_run { "about " } else { "" };
    let freed = report.bytes_before.saturating_sub(report.bytes_after);
    format!(
        "{} of {} segments {would}removed, {} keys {would}gone, {about}{} of {} {would}freed",
        report.segments_evicted,
        report.segments,
        report.keys_evicted,
        bytes(freed),
        bytes(report.bytes_before)
    )
}

fn prune_prefix(arguments: &Arguments, prefix: &str, output: &Output) -> Result<(), Failure> {
    let store = crate::store::any_lane(&arguments.store)?;
    let prefix = crate::key::parse_key(prefix, store.key_kind())?;
    let compaction =
        Compaction::new().live_share(1.0).patience(Duration::from_secs(arguments.wait_s)).dry_run(arguments.dry_run);
    let (deleted, freed) = if arguments.dry_run {
        let (keys, of) = (store.count_prefix(&prefix)?, store.len()?);
        // If all rows have the same size.
        let share = keys as f64 / of.max(1) as f64;
        (keys, (store.stats()?.segment_bytes as f64 * share) as u64)
    } else {
        let before = store.stats()?.disk_bytes;
        let deleted = store.delete_prefix(&prefix)?;
        let report = store.compact(&compaction)?;
        for skipped in &report.skipped {
            output.warn(&format!("{} was left as it is: {}", skipped.path.display(), skipped.why));
        }
        if !report.skipped.is_empty() {
            store.close()?;
            return Err(Failure::damage());
        }
        (deleted, before.saturating_sub(store.stats()?.disk_bytes))
    };
    store.close()?;
    let (would, about) = if arguments.dry_run { ("would be ", "about ") } else { ("", "") };
    output.line(
        || format!("{deleted} keys {would}deleted, {about}{} {would}freed", bytes(freed)),
        || json!({ "deleted": deleted, "dry_run": arguments.dry_run, "bytes_freed": freed }),
    )
}
