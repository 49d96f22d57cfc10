//! Converts errors of libtorch to errors of the caching layer.

use tch::TchError;

pub use tensorcask_cache::{Error, Result};

/// Converts an error that libtorch returned for `action`: `.map_err(torch("copy a tensor"))`.
pub(crate) fn torch(action: &'static str) -> impl FnOnce(TchError) -> Error {
    move |error| Error::Framework { action, what: first_line(&error.to_string()) }
}

/// The first line is the message; libtorch appends its C++ stack.
fn first_line(what: &str) -> String {
    what.lines().next().unwrap_or_default().to_owned()
}

/// An unusable argument.
pub(crate) fn invalid(what: impl Into<String>) -> Error {
    Error::invalid(what)
}
