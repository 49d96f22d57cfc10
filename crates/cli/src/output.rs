//! Printing results, warnings, progress and failures.

use std::borrow::Cow;
use std::io::{IsTerminal, Write};
use std::path::Path;

use clap::ValueEnum;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use serde_json::{Value as Json, json};

use crate::failure::Failure;

/// The format of the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// Text for people.
    Human,
    /// For programs: one JSON object per line.
    Json,
}

/// Prints results and failures in one format.
#[derive(Debug)]
pub(crate) struct Output {
    format: Format,
}

impl Output {
    /// Output in `format`.
    pub(crate) fn new(format: Format) -> Self {
        Self { format }
    }

    /// Whether the format is JSON.
    pub(crate) fn is_json(&self) -> bool {
        self.format == Format::Json
    }

    /// Prints a summary of what was written to `path`; to standard error if `path` is standard output.
    pub(crate) fn written(
        &self,
        path: &Path,
        human: impl FnOnce() -> String,
        json: impl FnOnce() -> Json,
    ) -> Result<(), Failure> {
        if !crate::new_file::is_standard_output(path) {
            return self.line(human, json);
        }
        let text = if self.is_json() { json().to_string() } else { human() };
        // If standard error is closed, there is nowhere to report it.
        let _ = writeln!(std::io::stderr().lock(), "{text}");
        Ok(())
    }

    /// Prints a line: `human` or `json`, as the format requires.
    pub(crate) fn line(&self, human: impl FnOnce() -> String, json: impl FnOnce() -> Json) -> Result<(), Failure> {
        let mut text = if self.is_json() { json().to_string() } else { human() };
        text.push('\n');
        self.raw(text.as_bytes())
    }

    /// Prints a result: the line `human`, or all of `value` as JSON.
    pub(crate) fn result(&self, human: impl FnOnce() -> String, value: &impl Serialize) -> Result<(), Failure> {
        let json = self.is_json().then(|| serde_json::to_string(value)).transpose();
        let mut text = json.map_err(|error| Failure::standard_output(&error.into()))?.unwrap_or_else(human);
        text.push('\n');
        self.raw(text.as_bytes())
    }

    /// Prints `bytes` as they are, whatever the format is.
    pub(crate) fn raw(&self, bytes: &[u8]) -> Result<(), Failure> {
        let mut stdout = std::io::stdout().lock();
        stdout.write_all(bytes).and_then(|()| stdout.flush()).map_err(|error| Failure::standard_output(&error))
    }

    /// A progress bar over `total` rows, with rate and remaining time; hidden if the format is JSON or standard error
    /// is not a terminal.
    pub(crate) fn progress(&self, total: u64) -> ProgressBar {
        self.bar(total, "{msg}{bar:40} {pos}/{len} rows  {per_sec}  {eta} left")
    }

    /// As [`Output::progress`], over bytes.
    pub(crate) fn progress_bytes(&self, total: u64) -> ProgressBar {
        self.bar(total, "{msg}{bar:40} {bytes}/{total_bytes}  {bytes_per_sec}  {eta} left")
    }

    fn bar(&self, total: u64, template: &str) -> ProgressBar {
        if self.is_json() || !std::io::stderr().is_terminal() {
            return ProgressBar::hidden();
        }
        let bar = ProgressBar::new(total);
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        bar
    }

    /// Prints a warning to standard error.
    pub(crate) fn warn(&self, message: &str) {
        let text = if self.is_json() {
            json!({ "warning": message }).to_string()
        } else {
            format!("tensorcask: warning: {message}")
        };
        // If standard error is closed, there is nowhere to report it.
        let _ = writeln!(std::io::stderr().lock(), "{text}");
    }

    /// Prints why a command failed; returns its exit code.
    pub(crate) fn fail(&self, failure: &Failure) -> u8 {
        if let Some(message) = failure.message() {
            let text = if self.is_json() {
                json!({ "error": message, "code": failure.code() }).to_string()
            } else {
                format!("tensorcask: {message}")
            };
            // If standard error is closed, there is nowhere to report it.
            let _ = writeln!(std::io::stderr().lock(), "{text}");
        }
        failure.code()
    }
}

/// A path in JSON. JSON strings are Unicode, so bytes that are not UTF-8 are replaced.
pub(crate) fn path_json(path: &Path) -> Json {
    Json::String(path.to_string_lossy().into_owned())
}

/// Text from a store for printing on one line: quoted and escaped if it has control characters.
pub(crate) fn one_line(text: &str) -> Cow<'_, str> {
    if text.chars().any(char::is_control) { Cow::Owned(format!("{text:?}")) } else { Cow::Borrowed(text) }
}

/// A size in bytes with a binary unit.
pub(crate) fn bytes(size: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = size as f64;
    let mut units = UNITS.iter();
    let mut unit = units.next().copied().unwrap_or_default();
    while value >= 1024.0
        && let Some(next) = units.next()
    {
        value /= 1024.0;
        unit = next;
    }
    if unit == "B" { format!("{size} B") } else { format!("{value:.1} {unit}") }
}
