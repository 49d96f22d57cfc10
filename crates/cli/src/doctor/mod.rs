//! `tensorcask doctor`

mod disk;
mod limits;
mod store;

use std::path::PathBuf;

use clap::ValueEnum;
use serde_json::json;

use crate::failure::Failure;
use crate::output::{Output, one_line};

/// Arguments of `doctor`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The store's folder, or a folder that stores are to be made in.
    #[arg(value_hint = clap::ValueHint::DirPath)]
    path: PathBuf,
}

/// How serious a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
enum Level {
    /// As it should be.
    Ok,
    /// It works, but not as well, or not for ever.
    Warn,
    /// Rows are lost, or will be, or the store cannot be used.
    Bad,
}

impl Level {
    fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Bad => "bad",
        }
    }
}

/// The outcome of one check.
#[derive(Debug)]
struct Finding {
    check: &'static str,
    level: Level,
    found: String,
    /// What to do; empty if there is nothing to do.
    advice: String,
    /// Whether it is about damage of the store, not about the machine.
    is_damage: bool,
}

impl Finding {
    fn ok(check: &'static str, found: impl Into<String>) -> Self {
        Self { check, level: Level::Ok, found: found.into(), advice: String::new(), is_damage: false }
    }

    fn warn(check: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { level: Level::Warn, advice: advice.into(), ..Self::ok(check, found) }
    }

    fn bad(check: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { level: Level::Bad, advice: advice.into(), ..Self::ok(check, found) }
    }

    fn damage(self) -> Self {
        Self { is_damage: true, ..self }
    }
}

/// Checks the folder's file system, the system's limits, and the store. Ends with exit code 2 if the store is damaged,
/// and with 4 if the machine is not fit for it. Leaves nothing behind.
pub(crate) fn run(arguments: &Arguments, output: &Output) -> Result<(), Failure> {
    let path = &arguments.path;
    match std::fs::metadata(path) {
        Ok(found) if found.is_dir() => {}
        Ok(_) => return Err(Failure::input(format!("{} is not a folder", path.display()))),
        Err(error) => return Err(Failure::io(path, &error)),
    }
    let mut findings = disk::check(path);
    findings.extend(if path.join("segments").is_dir() {
        store::check(path)
    } else {
        vec![Finding::ok("store", "there is none in this folder")]
    });
    findings.extend(limits::check(path));
    for finding in &findings {
        let Finding { check, level, found, advice, .. } = finding;
        output.line(
            || {
                let advice = if advice.is_empty() { String::new() } else { format!(": {advice}") };
                format!("{:<4}  {check:<12}  {}{advice}", level.name(), one_line(found))
            },
            || json!({ "check": check, "level": level.name(), "found": found, "advice": advice }),
        )?;
    }
    let bad = || findings.iter().filter(|finding| finding.level == Level::Bad);
    match (bad().count(), bad().any(|finding| finding.is_damage)) {
        (0, _) => Ok(()),
        (_, true) => Err(Failure::damage()),
        (bad, false) => Err(Failure::disk(format!("{bad} of {} checks failed", findings.len()))),
    }
}
