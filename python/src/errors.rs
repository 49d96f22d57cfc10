//! Errors of Rust as exceptions of Python.

use pyo3::prelude::*;
use pyo3::types::PyType;
use tensorcask::Error as StoreError;
use tensorcask_cache::Error;

/// The result of calls of the caching layer.
pub(crate) type CallResult<T> = Result<T, Error>;

/// The class `name` of `tensorcask._errors`.
fn class<'py>(py: Python<'py>, name: &str) -> PyResult<Bound<'py, PyType>> {
    Ok(py.import("tensorcask._errors")?.getattr(name)?.cast_into::<PyType>()?)
}

/// An exception of the class `name`, with a message.
pub(crate) fn exception(py: Python<'_>, name: &str, message: String) -> PyErr {
    class(py, name).and_then(|class| class.call1((message,))).map_or_else(|error| error, PyErr::from_value)
}

/// An `InvalidError`: an argument cannot be used.
pub(crate) fn invalid(py: Python<'_>, message: impl Into<String>) -> PyErr {
    exception(py, "InvalidError", message.into())
}

/// A `KeyMissingError`, which lists `keys`, the first of `count`.
pub(crate) fn missing(py: Python<'_>, keys: Vec<Py<PyAny>>, count: usize) -> PyErr {
    let make = || {
        let keys = pyo3::types::PyList::new(py, keys)?;
        let shown: String = keys.repr()?.extract()?;
        let shown = shown.trim_start_matches('[').trim_end_matches(']').to_owned();
        let more = if count > keys.len() { format!(" and {} more", count - keys.len()) } else { String::new() };
        let noun = if count == 1 { "key is" } else { "keys are" };
        class(py, "KeyMissingError")?.call1((format!("{count} {noun} not in the store: {shown}{more}"), keys, count))
    };
    make().map_or_else(|error| error, PyErr::from_value)
}

/// An error of the store as an exception.
pub(crate) fn of_store(py: Python<'_>, error: &StoreError) -> PyErr {
    if let StoreError::Compute { source } = error.cause()
        && let Some(theirs) = source.downcast_ref::<PyErr>()
    {
        return theirs.clone_ref(py);
    }
    let name = match error.cause() {
        StoreError::Io { source, path, .. } => return os_error(py, source, path, &error.to_string()),
        StoreError::Corrupt { .. } | StoreError::DamagedRows { .. } | StoreError::MissingSegment { .. } => {
            "CorruptError"
        }
        StoreError::NewerFormat { .. } => "VersionError",
        StoreError::Mismatch { .. } => "MismatchError",
        StoreError::Invalid { .. } | StoreError::KeyKind { .. } | StoreError::TooLarge { .. } => "InvalidError",
        StoreError::LaneBusy { .. } => "LockedError",
        StoreError::Full { .. } => "FullError",
        StoreError::ReadOnly { .. } => "ReadOnlyError",
        StoreError::Forked => "ForkedError",
        StoreError::Poisoned { cause } if matches!(cause.cause(), StoreError::Io { .. }) => {
            if let StoreError::Io { source, path, .. } = cause.cause() {
                return os_error(py, source, path, &error.to_string());
            }
            "TensorcaskError"
        }
        _ => "TensorcaskError",
    };
    exception(py, name, error.to_string())
}

/// A `StoreIOError`, with the number of the operating system's error.
fn os_error(py: Python<'_>, source: &std::io::Error, path: &std::path::Path, message: &str) -> PyErr {
    let make = || {
        let class = class(py, "StoreIOError")?;
        let number = source.raw_os_error().or_else(|| number_of(source.kind()));
        match number {
            Some(number) => class.call1((number, message, path.as_os_str())),
            None => class.call1((message,)),
        }
    };
    make().map_or_else(|error| error, PyErr::from_value)
}

/// The number of the errors that the engine itself reports as the operating system would.
fn number_of(kind: std::io::ErrorKind) -> Option<i32> {
    use std::io::ErrorKind;
    Some(match kind {
        ErrorKind::NotFound => 2,
        ErrorKind::PermissionDenied => 13,
        ErrorKind::AlreadyExists => 17,
        _ => return None,
    })
}

/// An error of the caching layer as an exception. What the wrapped computation raised is raised unchanged.
pub(crate) fn of_layer(py: Python<'_>, error: &Error) -> PyErr {
    match error {
        Error::Store(error) => of_store(py, error),
        Error::Compute { source } => match source.downcast_ref::<PyErr>() {
            Some(theirs) => theirs.clone_ref(py),
            None => exception(py, "TensorcaskError", error.to_string()),
        },
        Error::Invalid { .. } => invalid(py, error.to_string()),
        Error::Trainable { .. } => exception(py, "TrainableError", error.to_string()),
        Error::NotReproducible { .. } => exception(py, "NotReproducibleError", error.to_string()),
        _ => exception(py, "TensorcaskError", error.to_string()),
    }
}

/// An exception of Python as an error of the caching layer, which [`of_layer`] raises unchanged.
pub(crate) fn of_python(error: PyErr) -> Error {
    Error::compute(error)
}
