//! `tensorcask verify`

use std::path::{Path, PathBuf};

use serde_json::json;
use tensorcask::{Damage, Key, Reader, VerifyReport};

use crate::failure::Failure;
use crate::failure::in_words;
use crate::output::{Output, path_json};
use crate::store::ReadArguments;

/// Arguments of `verify`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    read: ReadArguments,
    /// Acknowledges losses, so that they are no longer reported: quarantined files, missing segments, files of other
    /// stores. Deletes nothing.
    #[arg(long)]
    forget: bool,
}

/// Reads every byte and compares all checksums. Ends with exit code 2 if there is damage.
pub(crate) fn run(arguments: &Arguments, output: &Output) -> Result<(), Failure> {
    let reader = crate::store::open(&arguments.read)?;
    let bar = output.progress(0);
    let report = reader.verify(&mut |done, total| {
        bar.set_length(total);
        bar.set_position(done);
    })?;
    bar.finish_and_clear();
    // A file that both opening and verifying report is listed once.
    let again = |path: &PathBuf| report.damage.iter().any(|damage| damage.path == *path);
    let unreadable: Vec<_> = reader.open_report().quarantined.iter().filter(|file| !again(&file.path)).collect();
    for file in &unreadable {
        list(output, &file.path, &file.why, file.rows_lost, &[])?;
    }
    for damage in &report.damage {
        let rows = Some(damage.rows).filter(|rows| *rows > 0 || !is_unknown(&reader, &damage.path));
        list(output, &damage.path, &damage.what, rows, &damage.keys)?;
        // The JSON line already has the keys.
        for key in damage.keys.iter().filter(|_| !output.is_json()) {
            output.line(|| format!("  put again: {key}"), || json!(null))?;
        }
    }
    let found = report.damage.len() + unreadable.len();
    output.line(
        || format!("{} rows in {} files checked, {found} damaged places", report.rows, report.files),
        || json!({ "rows": report.rows, "files": report.files, "damaged": found }),
    )?;
    let left = if arguments.forget { forget(arguments, &reader, &report, output)? } else { found };
    if left == 0 { Ok(()) } else { Err(Failure::damage()) }
}

/// Whether the number of lost rows of the file at `path` is unknown.
fn is_unknown(reader: &Reader, path: &Path) -> bool {
    let opened = reader.open_report();
    opened.quarantined.iter().any(|file| *file.path == *path && file.rows_lost.is_none())
        || opened.missing.iter().any(|missing| *missing.path == *path && missing.rows.is_none())
}

/// Lists a damaged place.
fn list(output: &Output, path: &Path, what: &str, rows: Option<u64>, keys: &[Key]) -> Result<(), Failure> {
    let what = in_words(what);
    // The line starts with the path, and `verify` is the command that is running: neither is repeated.
    let said = format!("{} is ", path.display());
    let what = what.strip_prefix(&said).unwrap_or(&what);
    let advice = "; run `tensorcask verify`, then put the affected rows again";
    let what = what.replace(advice, if rows == Some(0) { "" } else { "; put the affected rows again" });
    output.line(
        || match rows {
            Some(rows) => format!("{}: {what} ({rows} rows)", path.display()),
            None => format!("{}: {what} (unknown number of rows)", path.display()),
        },
        || json!({ "path": path_json(path), "what": what, "rows": rows, "keys": keys }),
    )
}

/// Acknowledges the damage found at opening. Returns the number of other damaged places, which are repaired by putting
/// their rows again.
fn forget(arguments: &Arguments, reader: &Reader, found: &VerifyReport, output: &Output) -> Result<usize, Failure> {
    let opened = reader.open_report();
    let reported: Vec<&Path> = opened.quarantined.iter().map(|file| &*file.path).collect();
    let missing: Vec<&Path> = opened.missing.iter().map(|missing| &*missing.path).collect();
    let store = crate::store::any_lane(&arguments.read.store)?;
    let acknowledged = store.acknowledge_damage()?;
    store.close()?;
    output.line(
        || format!("{acknowledged} of them acknowledged: they are no longer reported"),
        || json!({ "acknowledged": acknowledged }),
    )?;
    let is_reported = |damage: &&Damage| reported.contains(&&*damage.path) || missing.contains(&&*damage.path);
    Ok(found.damage.iter().filter(|damage| !is_reported(damage)).count())
}
