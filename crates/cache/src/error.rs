//! The one error type of the caching layer and its adapters.

use std::fmt;
use std::sync::Arc;

/// The result of every fallible call of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Any error of this crate. Errors are cheap to clone.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Error {
    /// The store of the outputs failed. Its [`tensorcask::Error::Invalid`] is [`Error::Invalid`] here.
    Store(tensorcask::Error),
    /// An argument cannot be used.
    Invalid {
        /// The fault, the expected value, and what to do.
        what: String,
    },
    /// The tensor library returned an error.
    Framework {
        /// The action that failed, as a verb phrase.
        action: &'static str,
        /// The library's message.
        what: String,
    },
    /// A wrapped function returned an error; nothing of the call was kept.
    Compute {
        /// The function's error.
        source: Arc<dyn std::error::Error + Send + Sync>,
    },
    /// A module has variables that require gradients, though it has to be frozen.
    Trainable {
        /// The name of the first of these variables.
        first: String,
        /// The number of these variables.
        count: usize,
    },
    /// Outputs that were computed again differ from the kept ones.
    NotReproducible {
        /// Samples that were compared in this call.
        samples: usize,
        /// The key of the first sample that differs.
        first: String,
        /// The difference.
        what: String,
    },
}

impl Error {
    /// An unusable argument.
    pub fn invalid(what: impl Into<String>) -> Self {
        Self::Invalid { what: what.into() }
    }

    /// An error that a wrapped function returned.
    pub fn compute(source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Compute { source: Arc::from(source.into()) }
    }

    /// An IO failure while doing `action` to `path`.
    pub fn io(action: &'static str, path: impl Into<std::path::PathBuf>, source: std::io::Error) -> Self {
        Self::Store(tensorcask::Error::io(action, path, source))
    }

    /// Whether the error reports damaged bytes on disk.
    #[must_use]
    pub fn is_corrupt(&self) -> bool {
        self.as_store().is_some_and(tensorcask::Error::is_corrupt)
    }

    /// The store's error, if it is one.
    #[must_use]
    pub const fn as_store(&self) -> Option<&tensorcask::Error> {
        match self {
            Self::Store(error) => Some(error),
            _ => None,
        }
    }
}

/// An unusable argument.
pub(crate) fn invalid(what: impl Into<String>) -> Error {
    Error::invalid(what)
}

impl From<tensorcask::Error> for Error {
    fn from(error: tensorcask::Error) -> Self {
        match error {
            tensorcask::Error::Invalid { what } => Self::Invalid { what },
            tensorcask::Error::Item(item) if matches!(item.error, tensorcask::Error::Invalid { .. }) => {
                Self::Invalid { what: item.to_string() }
            }
            error => Self::Store(error),
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Store(error) => error.fmt(f),
            Self::Invalid { what } => f.write_str(what),
            Self::Framework { action, what } => write!(f, "could not {action}: {what}"),
            Self::Compute { source } => {
                write!(f, "the wrapped computation failed, and nothing of it was kept: {source}")
            }
            Self::Trainable { first, count } => write!(
                f,
                "{count} variable(s) of the module require gradients, first {first:?}: a module whose weights change must \
                 not be cached; freeze it, or turn `enforce_stateless` off"
            ),
            Self::NotReproducible { samples, first, what } => write!(
                f,
                "of {samples} cached outputs computed again, from key {first} on, some differ: {what}; the module is not \
                 deterministic, its inputs are augmented at random, or its version should have been changed"
            ),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Store(error) => error.source(),
            Self::Compute { source } => Some(source.as_ref()),
            _ => None,
        }
    }
}
