//! What an export wrote.

use crate::failure::Failure;

/// What was written.
pub(crate) struct Written {
    pub rows: u64,
    /// Whether there was an earlier file of the name.
    pub replaced: bool,
}

/// There are no rows, so nothing tells what they are.
pub(crate) fn nothing() -> Failure {
    Failure::input("there is nothing to export".into())
}
