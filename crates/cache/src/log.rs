//! Logging that is configured by environment variables.

use std::fs::OpenOptions;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::util::SubscriberInitExt;

use crate::error::{Error, Result};

/// Sends the `tracing` events of tensorcask's crates to standard error, or to a file.
///
/// `TENSORCASK_LOG` is a level or filter (default: `warn`; `info` adds a line for each epoch and each change of
/// weights). `TENSORCASK_LOG_FILE` is a file that lines are appended to. If the program has installed a subscriber
/// already, this does nothing and returns `false`.
///
/// # Errors
/// [`Error::Invalid`] for an invalid filter; IO errors of the file.
pub fn init_logging() -> Result<bool> {
    let filter = std::env::var("TENSORCASK_LOG").unwrap_or_default();
    let filter = match filter.trim() {
        "" => "tensorcask=warn".to_owned(),
        level if level.chars().all(char::is_alphanumeric) => {
            format!("tensorcask={level}")
        }
        filter => filter.to_owned(),
    };
    let filter = EnvFilter::try_new(&filter).map_err(|error| {
        Error::invalid(format!("TENSORCASK_LOG is {filter:?}: {error}; use error, warn, info, debug or trace"))
    })?;
    let lines = tracing_subscriber::fmt().with_env_filter(filter);
    let started = match std::env::var_os("TENSORCASK_LOG_FILE") {
        None => lines.with_writer(std::io::stderr).finish().try_init(),
        Some(path) => {
            let file = OpenOptions::new().create(true).append(true).open(&path);
            let file = file.map_err(|error| Error::io("open the log file", &path, error))?;
            lines.with_ansi(false).with_writer(file).finish().try_init()
        }
    };
    Ok(started.is_ok())
}
