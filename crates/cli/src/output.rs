//! What the commands print, how they show progress, and how they fail.

use std::borrow::Cow;
use std::io::{IsTerminal, Write};
use std::path::Path;
use std::process::ExitCode;

use clap::ValueEnum;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value as Json, json};

use crate::failure::Failure;

/// Who reads the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// People.
    Human,
    /// Programs: one JSON object a line.
    Json,
}

/// Where output goes.
#[derive(Debug)]
pub(crate) struct Output {
    format: Format,
}

impl Output {
    /// Output in `format`.
    pub(crate) fn new(format: Format) -> Self {
        Self { format }
    }

    /// Whether programs read the output.
    pub(crate) fn is_json(&self) -> bool {
        self.format == Format::Json
    }

    /// Prints what was written to `path`; to standard error where the data went to standard output.
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
        // A closed terminal is no reason to say more.
        let _ = writeln!(std::io::stderr().lock(), "{text}");
        Ok(())
    }

    /// Prints a line: `human`, or `json`.
    pub(crate) fn line(&self, human: impl FnOnce() -> String, json: impl FnOnce() -> Json) -> Result<(), Failure> {
        let mut text = if self.is_json() { json().to_string() } else { human() };
        text.push('\n');
        self.raw(text.as_bytes())
    }

    /// Prints `bytes` as they are, whatever the format is.
    pub(crate) fn raw(&self, bytes: &[u8]) -> Result<(), Failure> {
        let mut stdout = std::io::stdout().lock();
        stdout.write_all(bytes).and_then(|()| stdout.flush()).map_err(|error| Failure::standard_output(&error))
    }

    /// A progress bar over `total` rows; shown to people at a terminal only.
    pub(crate) fn progress(&self, total: u64) -> ProgressBar {
        if self.is_json() || !std::io::stderr().is_terminal() {
            return ProgressBar::hidden();
        }
        let bar = ProgressBar::new(total);
        if let Ok(style) = ProgressStyle::with_template("{bar:40} {pos}/{len} rows  {per_sec}  {eta} left") {
            bar.set_style(style);
        }
        bar
    }

    /// Says what to know beside the result.
    pub(crate) fn warn(&self, message: &str) {
        let text = if self.is_json() {
            json!({ "warning": message }).to_string()
        } else {
            format!("tensorcask: warning: {message}")
        };
        // A closed terminal is no reason to say more.
        let _ = writeln!(std::io::stderr().lock(), "{text}");
    }

    /// Says why a command failed; returns its exit code.
    pub(crate) fn fail(&self, failure: &Failure) -> ExitCode {
        if let Some(message) = failure.message() {
            let text = if self.is_json() {
                json!({ "error": message, "code": failure.code() }).to_string()
            } else {
                format!("tensorcask: {message}")
            };
            // A closed terminal is no reason to say more.
            let _ = writeln!(std::io::stderr().lock(), "{text}");
        }
        ExitCode::from(failure.code())
    }
}

/// A path in JSON, which is text: bytes that are none are replaced.
pub(crate) fn path_json(path: &Path) -> Json {
    Json::String(path.to_string_lossy().into_owned())
}

/// Text of a store on a line of its own: in quotes, with escapes, where it would break the line or the terminal.
pub(crate) fn one_line(text: &str) -> Cow<'_, str> {
    if text.chars().any(char::is_control) { Cow::Owned(format!("{text:?}")) } else { Cow::Borrowed(text) }
}

/// A size in bytes for people.
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
