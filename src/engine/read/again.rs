//! Reads that race with the removal of a segment.

use crate::engine::follow::refresh;
use crate::engine::report::Lookup;
use crate::engine::state::State;
use crate::error::Result;

/// A read of a store that is compacted again and again gives up after as many removals.
const TRIES: usize = 4;

/// Results that may say that a file is gone.
pub(crate) trait MayBeGone {
    /// Whether they do.
    fn is_gone(&self) -> bool;
}

impl<T: MayBeGone> MayBeGone for Result<T> {
    fn is_gone(&self) -> bool {
        match self {
            Ok(read) => read.is_gone(),
            Err(error) => error.is_not_found(),
        }
    }
}

impl MayBeGone for Vec<Lookup> {
    fn is_gone(&self) -> bool {
        self.iter().any(|lookup| lookup.as_ref().is_err_and(|error| error.is_not_found()))
    }
}

impl MayBeGone for Vec<bool> {
    fn is_gone(&self) -> bool {
        false
    }
}

impl MayBeGone for Vec<Option<Vec<usize>>> {
    fn is_gone(&self) -> bool {
        false
    }
}

impl MayBeGone for usize {
    fn is_gone(&self) -> bool {
        false
    }
}

/// Reads, and reads again after a refresh if a segment's file is gone. A segment that is mapped outlives its name, but
/// beyond a number of maps, files are opened when they are read. By then, another process may have compacted and
/// unlinked them.
pub(crate) fn unless_gone<T: MayBeGone>(state: &State, mut read: impl FnMut() -> Result<T>) -> Result<T> {
    let mut result = read();
    for _ in 1..TRIES {
        if !result.is_gone() {
            break;
        }
        refresh(state)?;
        result = read();
    }
    result
}
