//! What opening a store found.

use std::path::PathBuf;
use std::time::Duration;

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
    /// Damaged segment files, and where they were moved to.
    pub quarantined: Vec<Quarantined>,
    /// Index runs that were stale or damaged and are not used.
    pub runs_dropped: usize,
    /// Other things worth knowing, a sentence each.
    pub notes: Vec<String>,
    /// How long opening took.
    pub elapsed: Duration,
}

/// A damaged file.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Quarantined {
    /// Where it was.
    pub path: PathBuf,
    /// Where it is now; `None` where it was not moved: by a reader, or by a writer of another lane.
    pub moved_to: Option<PathBuf>,
    /// What is wrong with it.
    pub why: String,
    /// Rows of it that check out: copied to a new segment if it was moved, else served from where they are.
    pub rows_saved: u64,
}

impl OpenReport {
    /// Whether nothing was cut, quarantined or dropped.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.bytes_cut == 0 && self.quarantined.is_empty() && self.runs_dropped == 0
    }
}
