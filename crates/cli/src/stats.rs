//! `tensorcask stats`

use crate::failure::Failure;
use crate::output::{Output, bytes};
use crate::store::ReadArguments;

/// Arguments of `stats`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    read: ReadArguments,
}

/// Shows sizes, the state of the index, and damage found at opening.
pub(crate) fn run(arguments: &Arguments, output: &Output) -> Result<(), Failure> {
    let reader = crate::store::reader(&arguments.read, output)?;
    let keys = reader.len()?;
    let stats = reader.stats()?;
    let report = reader.open_report();
    let metadata = crate::metadata::load(&arguments.read.store).unwrap_or_else(|failure| {
        output.warn(failure.message().unwrap_or_default());
        Default::default()
    });
    let human = || {
        let rows = [
            ("keys", format!("{keys} ({})", stats.key_kind.unwrap_or("none yet"))),
            (
                "segments",
                format!("{} sealed, {} rows, {} tombstones", stats.segments, stats.rows_sealed, stats.tombstones),
            ),
            (
                "on disk",
                format!(
                    "{}: {} in segments, {} in index runs, {} in quarantine",
                    bytes(stats.disk_bytes),
                    bytes(stats.segment_bytes),
                    bytes(stats.run_bytes),
                    bytes(stats.quarantine_bytes)
                ),
            ),
            (
                "dead",
                match (stats.dead_rows, stats.dead_bytes) {
                    (Some(rows), Some(size)) => format!("{rows} rows, about {} (see `compact`)", bytes(size)),
                    _ => "unknown".to_owned(),
                },
            ),
            (
                "index",
                format!("{} runs of {} keys, {} keys in memory", stats.runs, stats.run_keys, stats.memtable_keys),
            ),
            (
                "damaged files",
                format!("{} in quarantine, {} in place, {} missing", stats.quarantined, stats.bad_files, stats.missing),
            ),
            (
                "opened in",
                format!("{:.2} ms, {} rows reindexed", report.elapsed.as_secs_f64() * 1e3, report.rows_indexed),
            ),
            ("store", stats.store.clone()),
        ];
        let metadata = metadata.iter().map(|(name, text)| ("metadata", format!("{name:?} is {text:?}")));
        let rows = rows.into_iter().chain(metadata);
        let lines: Vec<String> = rows.map(|(name, figure)| format!("{name:<14} {figure}")).collect();
        lines.join("\n")
    };
    let json = || {
        let mut json = serde_json::to_value(&stats).unwrap_or_default();
        if let Some(object) = json.as_object_mut() {
            object.insert("keys".into(), keys.into());
            object.insert("metadata".into(), serde_json::to_value(&metadata).unwrap_or_default());
            object.insert("open_ms".into(), (report.elapsed.as_secs_f64() * 1e3).into());
        }
        json
    };
    output.line(human, json)
}
