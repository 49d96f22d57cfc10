//! The result of an export.

use crate::failure::Failure;

/// The result of an export.
pub(crate) struct Written {
    pub rows: u64,
    /// Whether an existing file was replaced.
    pub replaced: bool,
    /// Tensors without elements of which the format does not record the whole shape.
    pub shapes_lost: u64,
}

/// The failure of an export without rows: their structure is unknown.
pub(crate) fn nothing() -> Failure {
    Failure::input("there is nothing to export".into())
}
