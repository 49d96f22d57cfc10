//! The results of calls: of reads, of opening, and of what looks at a whole store.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::error::{Error, Result};
use crate::key::Key;
use crate::value::Value;

/// One answer of [`crate::Reader::get_batch`]: damage of one row does not hide the others.
pub type Lookup = Result<Option<Value>>;

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

/// Sealed segments of one lane, with consecutive numbers, that something on disk names and that are not there.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Missing {
    /// Where the first of them should be.
    pub path: PathBuf,
    /// How many they are.
    pub segments: u64,
    /// Rows in them, if that is known.
    pub rows: Option<u64>,
    /// What names them.
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

/// Sizes and counters. Those of traffic count from when the handle was opened.
#[derive(Debug, Clone, Default, serde::Serialize)]
#[non_exhaustive]
pub struct Stats {
    /// Live keys; `None` if a crash made the count unknown ([`crate::Reader::len`] counts).
    pub keys: Option<u64>,
    /// Kind of keys.
    pub key_kind: Option<&'static str>,
    /// Identity of the store.
    pub store: String,
    /// Rows in sealed segments, superseded ones and tombstones included.
    pub rows_sealed: u64,
    /// Tombstones among them.
    pub tombstones: u64,
    /// Rows of sealed segments that count no more, at the least: they were overwritten, deleted, or are tombstones. `None`
    /// if the number of live keys is not known.
    pub dead_rows: Option<u64>,
    /// Bytes that these take, about; [`crate::Store::compact`] frees them.
    pub dead_bytes: Option<u64>,
    /// Sealed segments.
    pub segments: usize,
    /// Bytes of segment files, active ones included with the zeros that their last pages were filled with.
    pub segment_bytes: u64,
    /// Bytes of index runs on disk.
    pub run_bytes: u64,
    /// Index runs in use.
    pub runs: usize,
    /// Keys in them.
    pub run_keys: u64,
    /// Keys in the memtable: those that no index run has.
    pub memtable_keys: usize,
    /// Anonymous memory of the memtable, in bytes.
    pub memtable_bytes: usize,
    /// Files in quarantine.
    pub quarantined: usize,
    /// Sealed segments that should be there and are not.
    pub missing: u64,
    /// Segment files of which something is damaged and that could not be moved.
    pub bad_files: usize,
    /// Keys that were read and there.
    pub hits: u64,
    /// Keys that were read and not there.
    pub misses: u64,
    /// Keys that were read and damaged.
    pub damaged: u64,
    /// Pages of 4 KiB that a batch wanted while they were not in memory, and that were prefaulted together.
    pub prefaulted_pages: u64,
    /// Rows put.
    pub rows_put: u64,
    /// Batches written.
    pub batches_written: u64,
    /// Bytes written to segments.
    pub bytes_written: u64,
    /// Calls of `flush`.
    pub flushes: u64,
    /// Runs built.
    pub runs_built: u64,
    /// Looks at what other writers committed.
    pub refreshes: u64,
    /// How far this machine's clock is behind the newest row that other writers or earlier handles committed, in
    /// seconds; 0 if it is not. New rows get later times all the same.
    pub clock_behind_s: f64,
    /// Entries, bytes and counters of the value cache, if there is one.
    pub value_cache: Option<ValueCacheStats>,
}

/// The value cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
#[non_exhaustive]
pub struct ValueCacheStats {
    /// Values held.
    pub entries: usize,
    /// Bytes held.
    pub bytes: usize,
    /// Values found.
    pub hits: u64,
    /// Values not found.
    pub misses: u64,
    /// Values dropped to make room for others.
    pub evictions: u64,
    /// Values not taken: too large, or no room under [`crate::ValueCachePolicy::StopWhenFull`].
    pub refused: u64,
}

/// What [`crate::Reader::preload`] did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
#[non_exhaustive]
pub struct Preloaded {
    /// Bytes of index runs that are in memory now.
    pub index_bytes: u64,
    /// Bytes of segments that are in memory now.
    pub segment_bytes: u64,
    /// Bytes that were read from the disk for it.
    pub read_bytes: u64,
    /// Bytes that were left out, because they would have been more than the limit.
    pub left_bytes: u64,
}

/// What [`crate::Store::compact`] did, or, in a dry run, would do.
#[derive(Debug, Clone, Default, PartialEq, serde::Serialize)]
#[non_exhaustive]
pub struct CompactReport {
    /// Whether nothing was changed.
    pub dry_run: bool,
    /// Sealed segments that were looked at.
    pub segments: usize,
    /// Bytes of them.
    pub bytes: u64,
    /// Rows with values in them.
    pub rows: u64,
    /// Rows among these that counted: neither overwritten nor deleted.
    pub live_rows: u64,
    /// Segments that were written anew.
    pub segments_rewritten: usize,
    /// Segments that took their place.
    pub segments_written: usize,
    /// Rows that were left out, tombstones included.
    pub rows_dropped: u64,
    /// Tombstones that were not needed any more.
    pub tombstones_dropped: u64,
    /// Bytes that were written.
    pub bytes_written: u64,
    /// Bytes by which the store is smaller; in a dry run, about.
    pub bytes_freed: u64,
    /// Segments that were left as they are, because something in them is damaged.
    pub skipped: Vec<Skipped>,
    /// How long it took.
    pub elapsed: Duration,
}

/// A file that was left as it is.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[non_exhaustive]
pub struct Skipped {
    /// The file.
    pub path: PathBuf,
    /// What is wrong with it.
    pub why: String,
}

/// What [`crate::Reader::verify`] found.
#[derive(Debug, Clone, Default, serde::Serialize)]
#[non_exhaustive]
pub struct VerifyReport {
    /// Rows whose checksums were compared.
    pub rows: u64,
    /// Segments and runs that were read.
    pub files: usize,
    /// What is damaged.
    pub damage: Vec<Damage>,
}

/// One thing that is damaged.
#[derive(Debug, Clone, serde::Serialize)]
#[non_exhaustive]
pub struct Damage {
    /// The file.
    pub path: PathBuf,
    /// What is wrong.
    pub what: String,
    /// Rows that cannot be served for it. Damage to an index costs no rows, and rows whose keys were put again since do
    /// not count.
    pub rows: u64,
    /// The keys of these rows, as far as anything tells them: put them again.
    pub keys: Vec<Key>,
}

impl VerifyReport {
    /// Whether nothing is damaged.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.damage.is_empty()
    }

    /// What opening found and what the check found again is one place. Damage to rows is found by the check only.
    pub(crate) fn list_once(&mut self) {
        let mut seen = HashSet::new();
        self.damage.retain(|damage| damage.rows > 0 || seen.insert((damage.path.clone(), damage.what.clone())));
    }

    /// Lists damage.
    pub(crate) fn add(&mut self, path: &Path, what: impl Into<String>, rows: u64) {
        self.add_rows(path, what, rows, Vec::new());
    }

    /// The same, with the keys of the rows.
    pub(crate) fn add_rows(&mut self, path: &Path, what: impl Into<String>, rows: u64, keys: Vec<Key>) {
        self.damage.push(Damage { path: path.to_path_buf(), what: what.into(), rows, keys });
    }
}
