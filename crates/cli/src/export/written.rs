//! The result of an export.

use crate::failure::Failure;

/// The result of an export.
pub(crate) struct Written {
    pub rows: u64,
    /// Whether an existing file was replaced.
    pub replaced: bool,
}

/// The failure of an export without rows: their structure is unknown.
pub(crate) fn nothing() -> Failure {
    Failure::input("there is nothing to export".into())
}
