//! `tensorcask verify`

use std::path::PathBuf;

use serde_json::json;

use crate::output::{Failure, Output};

/// Arguments of `verify`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The store's folder.
    store: PathBuf,
}

/// Reads and checks every byte. Damage ends with exit code 2.
pub(crate) fn run(arguments: &Arguments, output: &Output) -> Result<(), Failure> {
    let reader = crate::reader(&arguments.store)?;
    let bar = output.progress(0);
    let report = reader.verify(&mut |done, total| {
        bar.set_length(total);
        bar.set_position(done);
    })?;
    bar.finish_and_clear();
    // What the check found again is listed once.
    let again = |path: &PathBuf| report.damage.iter().any(|damage| damage.path == *path);
    let unreadable: Vec<_> = reader.open_report().quarantined.iter().filter(|file| !again(&file.path)).collect();
    for file in &unreadable {
        output.line(|| file.why.clone(), || json!({ "path": file.path, "what": file.why }))?;
    }
    for damage in &report.damage {
        output.line(
            || format!("{}: {} ({} rows)", damage.path.display(), damage.what, damage.rows),
            || json!({ "path": damage.path, "what": damage.what, "rows": damage.rows, "keys": damage.keys }),
        )?;
        // Text only: a program has them above.
        for key in damage.keys.iter().filter(|_| !output.is_json()) {
            output.line(|| format!("  put again: {key}"), || json!(null))?;
        }
    }
    let found = report.damage.len() + unreadable.len();
    output.line(
        || format!("{} rows in {} files checked, {found} damaged places", report.rows, report.files),
        || json!({ "rows": report.rows, "files": report.files, "damaged": found }),
    )?;
    if found == 0 { Ok(()) } else { Err(Failure::damage()) }
}
