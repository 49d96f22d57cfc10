//! What libtorch and wrapped modules report, as errors of this crate.

use tch::TchError;

use crate::error::Error;

/// Turns libtorch's word on `action` into an error: `.map_err(torch("copy a tensor"))`.
pub(super) fn torch(action: &'static str) -> impl FnOnce(TchError) -> Error {
    move |error| Error::Torch { action, what: first_line(&error.to_string()) }
}

/// libtorch appends its C++ stack to a message; the first line says what happened.
fn first_line(what: &str) -> String {
    what.lines().next().unwrap_or_default().to_owned()
}

/// An unusable argument.
pub(super) fn invalid(what: impl Into<String>) -> Error {
    Error::invalid(what)
}

impl From<TchError> for Error {
    /// What libtorch says inside of a wrapped function.
    fn from(error: TchError) -> Self {
        torch("run a wrapped function")(error)
    }
}
