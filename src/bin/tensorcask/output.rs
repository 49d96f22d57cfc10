//! What the commands print, how they show progress, and how they fail.

use std::io::{IsTerminal, Write};
use std::process::ExitCode;

use clap::ValueEnum;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::Value as Json;

/// Who reads the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// People.
    Human,
    /// Programs: one JSON object a line.
    Json,
}

/// Why a command ends early.
#[derive(Debug)]
pub(crate) struct Failure {
    code: u8,
    message: Option<String>,
}

impl Failure {
    /// A key is not there.
    pub(crate) fn missing(message: String) -> Self {
        Self { code: 1, message: Some(message) }
    }

    /// Damage was found, and already listed.
    pub(crate) fn damage() -> Self {
        Self { code: 2, message: None }
    }

    /// The input or its use is wrong.
    pub(crate) fn input(message: String) -> Self {
        Self { code: 3, message: Some(message) }
    }

    /// Reading or writing `what` failed.
    pub(crate) fn io(what: &std::path::Path, error: &std::io::Error) -> Self {
        Self { code: 4, message: Some(format!("{}: {error}", what.display())) }
    }

    /// The same with more to say.
    pub(crate) fn and(self, more: &str) -> Self {
        Self { message: self.message.map(|message| message + more), ..self }
    }

    /// Nobody reads the output any more.
    fn closed() -> Self {
        Self { code: 0, message: None }
    }
}

impl From<tensorcask::Error> for Failure {
    fn from(error: tensorcask::Error) -> Self {
        use tensorcask::Error;
        let code = match &error {
            error if error.is_corrupt() => 2,
            Error::Invalid { .. } | Error::KeyKind { .. } | Error::Mismatch { .. } | Error::TooLarge { .. } => 3,
            _ => 4,
        };
        Self { code, message: Some(error.to_string()) }
    }
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

    /// Prints a line: `human`, or `json`.
    pub(crate) fn line(&self, human: impl FnOnce() -> String, json: impl FnOnce() -> Json) -> Result<(), Failure> {
        let text = if self.is_json() { json().to_string() } else { human() };
        match writeln!(std::io::stdout().lock(), "{text}") {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Err(Failure::closed()),
            Err(error) => Err(Failure::io(std::path::Path::new("standard output"), &error)),
        }
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

    /// Says why a command failed; returns its exit code.
    pub(crate) fn fail(&self, failure: &Failure) -> ExitCode {
        if let Some(message) = &failure.message {
            if self.is_json() {
                eprintln!("{}", serde_json::json!({ "error": message, "code": failure.code }));
            } else {
                eprintln!("tensorcask: {message}");
            }
        }
        ExitCode::from(failure.code)
    }
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
