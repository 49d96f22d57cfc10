//! What libtorch reports, as errors of the caching layer.

use tch::TchError;

pub use tensorcask_cache::{Error, Result};

/// Turns libtorch's word on `action` into an error: `.map_err(torch("copy a tensor"))`.
pub(crate) fn torch(action: &'static str) -> impl FnOnce(TchError) -> Error {
    move |error| Error::Framework { action, what: first_line(&error.to_string()) }
}

/// libtorch appends its C++ stack to a message; the first line says what happened.
fn first_line(what: &str) -> String {
    what.lines().next().unwrap_or_default().to_owned()
}

/// An unusable argument.
pub(crate) fn invalid(what: impl Into<String>) -> Error {
    Error::invalid(what)
}
