//! What opening a store found.

use std::path::PathBuf;
use std::time::Duration;

use crate::error::Error;

/// What [`crate::Options::open`] found and did. Opening succeeds whenever it can; read this to know what it cost.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct OpenReport {
    /// Sealed segments in use.
    pub segments: usize,
    /// Rows in them and in active segments, superseded ones included.
    pub rows: u64,
    /// Index runs in use.
    pub runs: usize,
    /// Rows that no run covered and that were indexed anew.
    pub rows_indexed: u64,
    /// Rows recovered from active segments: of a writer that did not close, or of one that still writes.
    pub rows_recovered: u64,
    /// Bytes cut off active segments: what a killed writer had begun and not committed.
    pub bytes_cut: u64,
    /// Files that are not served, or not whole: damaged, of another store, or replaced. Those of earlier openings are
    /// among them until somebody acknowledges them ([`crate::Store::acknowledge_damage`]).
    pub quarantined: Vec<Quarantined>,
    /// Sealed segments that should be there and are not, until somebody acknowledges it.
    pub missing: Vec<Missing>,
    /// Index runs that were stale or damaged and are not used.
    pub runs_dropped: usize,
    /// Other things worth knowing, a sentence each.
    pub notes: Vec<String>,
    /// How long opening took.
    pub elapsed: Duration,
}

/// A file that is not served, or not whole.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Quarantined {
    /// Where it was.
    pub path: PathBuf,
    /// Where it is now; `None` where it was not moved: by a reader, by a writer of another lane, or because it belongs
    /// to another store.
    pub moved_to: Option<PathBuf>,
    /// What is wrong with it.
    pub why: String,
    /// Rows of it that are served: copied to a new segment if it was moved, else from where they are.
    pub rows_saved: u64,
    /// Rows of it that are lost; `None` if nothing tells how many there were.
    pub rows_lost: Option<u64>,
}

/// Sealed segments of one lane, with consecutive numbers, that something on disk tells of and that are not there.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Missing {
    /// Where the first of them should be.
    pub path: PathBuf,
    /// How many they are.
    pub segments: u64,
    /// Rows in them, if that is known.
    pub rows: Option<u64>,
    /// What tells of them.
    pub why: String,
}

impl OpenReport {
    /// Whether nothing was cut, left out, dropped or missing.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.bytes_cut == 0 && self.quarantined.is_empty() && self.missing.is_empty() && self.runs_dropped == 0
    }
}

impl std::fmt::Display for Missing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} is missing", self.path.display())?;
        if self.segments > 1 {
            write!(f, ", and the {} segments that follow it", self.segments - 1)?;
        }
        if let Some(rows) = self.rows {
            write!(f, ", with {rows} row(s)")?;
        }
        write!(
            f,
            ": {}; copy it back from where it was lost, or put the rows again and acknowledge the loss with `tensorcask \
             verify --forget`",
            self.why
        )
    }
}

impl Missing {
    /// It as an error, for opening with [`crate::Recovery::Strict`].
    pub(crate) fn error(&self) -> Error {
        Error::MissingSegment { path: self.path.clone(), what: self.to_string() }
    }
}
