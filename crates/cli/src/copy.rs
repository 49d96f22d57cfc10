//! `tensorcask copy`

use std::path::PathBuf;

use serde_json::json;
use tensorcask::{Backup, BackupReport};

use crate::failure::Failure;
use crate::output::{Output, bytes, path_json};
use crate::store::ReadArguments;

/// Arguments of `copy`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    read: ReadArguments,
    /// The folder of the copy. It must not exist, or be empty.
    #[arg(value_name = "COPY", value_hint = clap::ValueHint::DirPath)]
    target: PathBuf,
    /// Copies all bytes; without this option, files are hard links where the file system allows it.
    #[arg(long)]
    no_link: bool,
    /// Compares all rows of the copy with their checksums before it gets its name.
    #[arg(long)]
    verify: bool,
    /// Copies a store that has lost rows, with its damaged files.
    #[arg(long)]
    damaged: bool,
}

/// Copies a store, which may be written to meanwhile. Ends with exit code 2 if the store has lost rows.
pub(crate) fn run(arguments: &Arguments, output: &Output) -> Result<(), Failure> {
    let reader = crate::store::open(&arguments.read)?;
    let options = Backup::new().link(!arguments.no_link).verify(arguments.verify).damaged(arguments.damaged);
    let bar = output.progress_bytes(0);
    let copied = reader.backup_with(&arguments.target, &options, &mut |done, total| {
        bar.set_length(total);
        bar.set_position(done);
    });
    bar.finish_and_clear();
    let report = copied.map_err(|error| match error.is_corrupt() {
        true => Failure::from(error).and("; give --damaged to copy what is left"),
        false => Failure::opening(&error),
    })?;
    for file in &report.left_out {
        output.warn(&format!("{}: {}", file.path.display(), file.why));
    }
    for missing in &report.missing {
        output.warn(&missing.to_string());
    }
    output.line(|| summary(&report, arguments), || as_json(&report, arguments))?;
    if report.left_out.is_empty() && report.missing.is_empty() { Ok(()) } else { Err(Failure::damage()) }
}

fn summary(report: &BackupReport, arguments: &Arguments) -> String {
    let (segments, linked, rows) = (report.segments, report.segments_linked, report.rows);
    let size = format!("{} of {} copied", bytes(report.bytes_copied), bytes(report.bytes));
    let verified = report.rows_verified.map_or(String::new(), |rows| format!(", {rows} rows verified"));
    let target = arguments.target.display();
    format!("{target}: {rows} rows in {segments} segments, {linked} of them linked, {size}{verified}")
}

fn as_json(report: &BackupReport, arguments: &Arguments) -> serde_json::Value {
    json!({
        "copy": path_json(&arguments.target),
        "rows": report.rows,
        "segments": report.segments,
        "segments_linked": report.segments_linked,
        "bytes": report.bytes,
        "bytes_copied": report.bytes_copied,
        "rows_verified": report.rows_verified,
        "left_out": report.left_out.iter().map(|file| path_json(&file.path)).collect::<Vec<_>>(),
        "missing": report.missing.iter().map(|missing| path_json(&missing.path)).collect::<Vec<_>>(),
        "elapsed_s": report.elapsed.as_secs_f64(),
    })
}
