//! The results of calls: reads, opening, statistics, preloading, compaction and verification.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::error::{Error, Result};
use crate::key::Key;
use crate::schema::Schema;
use crate::segment::reader::Segment;
use crate::value::Value;

/// The result for one key of [`crate::Reader::get_batch`]. Damage to one row does not hide the others.
pub type Lookup = Result<Option<Value>>;

/// What [`crate::Options::open`] found and did. Opening succeeds if at all possible; the report says what was lost.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct OpenReport {
    /// Sealed segments in use.
    pub segments: usize,
    /// Rows in sealed and active segments, including superseded ones.
    pub rows: u64,
    /// Index runs in use.
    pub runs: usize,
    /// Rows that no run covered and that were indexed again.
    pub rows_indexed: u64,
    /// Rows recovered from active segments, whose writer did not close or is still writing.
    pub rows_recovered: u64,
    /// Bytes cut off active segments: a killed writer began to write them but did not commit them.
    pub bytes_cut: u64,
    /// Files that are not served, or only in part: damaged, of another store, or replaced. Includes those of earlier
    /// openings until they are acknowledged ([`crate::Store::acknowledge_damage`]).
    pub quarantined: Vec<Quarantined>,
    /// Sealed segments that should exist but do not, until they are acknowledged.
    pub missing: Vec<Missing>,
    /// Index runs that were stale or damaged and are not used.
    pub runs_dropped: usize,
    /// Other notes, one sentence each.
    pub notes: Vec<String>,
    /// How long opening took.
    pub elapsed: Duration,
}

/// A file that is not served, or only in part.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Quarantined {
    /// Where it was.
    pub path: PathBuf,
    /// Where it is now; `None` if it was not moved, because a reader or a writer of another lane found it, or because
    /// it belongs to another store.
    pub moved_to: Option<PathBuf>,
    /// What is wrong with it.
    pub why: String,
    /// Rows of it that are served: from a new segment if the file was moved, otherwise in place.
    pub rows_saved: u64,
    /// Rows of it that are lost; `None` if the number is unknown.
    pub rows_lost: Option<u64>,
}

/// Missing sealed segments of one lane with consecutive numbers. Something on disk refers to them.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Missing {
    /// Where the first of them should be.
    pub path: PathBuf,
    /// The number of missing segments.
    pub segments: u64,
    /// Rows in them; `None` if unknown.
    pub rows: Option<u64>,
    /// What refers to them.
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
    /// Converts it to an error, for opening with [`crate::Recovery::Strict`].
    pub(crate) fn error(&self) -> Error {
        Error::MissingSegment { path: self.path.clone(), what: self.to_string() }
    }
}

/// Sizes and counters. Counters of traffic start at 0 when the handle is opened.
#[derive(Debug, Clone, Default, serde::Serialize)]
#[non_exhaustive]
pub struct Stats {
    /// Live keys; `None` if a crash made the number unknown ([`crate::Reader::len`] counts them).
    pub keys: Option<u64>,
    /// Kind of keys.
    pub key_kind: Option<&'static str>,
    /// Identity of the store.
    pub store: String,
    /// Rows in sealed segments, including superseded ones and tombstones.
    pub rows_sealed: u64,
    /// Tombstones among them.
    pub tombstones: u64,
    /// A lower bound of the dead rows of sealed segments: overwritten or deleted rows, and tombstones. `None` if the
    /// number of live keys is unknown.
    pub dead_rows: Option<u64>,
    /// Approximate bytes of the dead rows; [`crate::Store::compact`] frees them.
    pub dead_bytes: Option<u64>,
    /// Sealed segments.
    pub segments: usize,
    /// Bytes of segment files, including active ones and the zeros that fill their last pages.
    pub segment_bytes: u64,
    /// Bytes of index runs and row maps on disk.
    pub run_bytes: u64,
    /// Bytes of quarantined files. They count under a cap, and are never removed.
    pub quarantine_bytes: u64,
    /// Bytes of all files of the store: those above, lock files and sync logs. This is what a cap limits.
    pub disk_bytes: u64,
    /// Index runs in use.
    pub runs: usize,
    /// Keys in these runs.
    pub run_keys: u64,
    /// Keys in the memtable: those with rows that no index run covers.
    pub memtable_keys: usize,
    /// Anonymous memory of the memtable, in bytes.
    pub memtable_bytes: usize,
    /// Files in quarantine.
    pub quarantined: usize,
    /// Sealed segments that should exist but do not.
    pub missing: u64,
    /// Damaged segment files that could not be moved.
    pub bad_files: usize,
    /// Keys that were read and found.
    pub hits: u64,
    /// Keys that were read and not found.
    pub misses: u64,
    /// Keys that were read and whose rows are damaged.
    pub damaged: u64,
    /// Pages of 4 KiB that were not in memory when a batch needed them, and were prefaulted together.
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
    /// Refreshes, which read what other writers have committed.
    pub refreshes: u64,
    /// Segments that this handle evicted, to keep a cap or because it was asked to.
    pub segments_evicted: u64,
    /// Rows of these segments.
    pub rows_evicted: u64,
    /// Bytes of these segments.
    pub bytes_evicted: u64,
    /// Seconds by which this machine's clock is behind the newest row of other writers or earlier handles; 0 if it is
    /// not behind. New rows still get later commit timestamps.
    pub clock_behind_s: f64,
    /// Entries, bytes and counters of the value cache, if there is one.
    pub value_cache: Option<ValueCacheStats>,
}

/// A structure of values in a store, and how much of it there is; see [`crate::Reader::schemas`].
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[non_exhaustive]
pub struct SchemaUse {
    /// The structure.
    #[serde(flatten)]
    pub schema: Schema,
    /// Rows of this structure: sealed, active and waiting ones, including superseded ones.
    pub rows: u64,
    /// Sealed and active segments of this structure; 0 if all of its rows wait to be written.
    pub segments: usize,
}

/// What [`crate::Store::get_or_compute_rows`] did. The positions of a batch are those that were found, those of
/// duplicates, and one each for the keys that were computed or waited for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ComputeReport {
    /// Positions whose rows were found at once.
    pub found: usize,
    /// Keys that this call computed.
    pub computed: usize,
    /// Of these, keys that are not kept, since the caps leave no room for them.
    pub not_kept: usize,
    /// Keys that other threads or processes computed meanwhile.
    pub waited: usize,
    /// Further positions of missing keys.
    pub duplicates: usize,
    /// Positions whose rows were damaged, and were therefore computed again.
    pub damaged: usize,
}

/// What waits to be written; see [`crate::Store::waiting`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
#[non_exhaustive]
pub struct Waiting {
    /// Rows.
    pub rows: usize,
    /// Bytes of them, and of batches that are being put.
    pub bytes: usize,
}

impl Waiting {
    /// Whether nothing waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rows == 0 && self.bytes == 0
    }
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
    /// Values evicted to make room for others.
    pub evictions: u64,
    /// Values not admitted: too large, or no room under [`crate::ValueCachePolicy::StopWhenFull`].
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
    /// Bytes that were read from disk.
    pub read_bytes: u64,
    /// Bytes that were left out because of the limit.
    pub left_bytes: u64,
}

/// What [`crate::Store::compact`] did, or, in a dry run, would do.
#[derive(Debug, Clone, Default, PartialEq, serde::Serialize)]
#[non_exhaustive]
pub struct CompactReport {
    /// Whether it was a dry run, which changes nothing.
    pub dry_run: bool,
    /// Sealed segments that were examined.
    pub segments: usize,
    /// Bytes of these segments.
    pub bytes: u64,
    /// Rows of these segments, not counting tombstones.
    pub rows: u64,
    /// Live rows among them: neither overwritten nor deleted.
    pub live_rows: u64,
    /// Segments that were rewritten.
    pub segments_rewritten: usize,
    /// Segments that replaced them.
    pub segments_written: usize,
    /// Rows that were dropped, including tombstones.
    pub rows_dropped: u64,
    /// Live rows that were packed, unpacked or stored in a narrower dtype.
    pub rows_recoded: u64,
    /// Live rows that were put into order.
    pub rows_sorted: u64,
    /// Tombstones that were no longer needed.
    pub tombstones_dropped: u64,
    /// Bytes that were written.
    pub bytes_written: u64,
    /// Bytes by which the store shrank; an estimate in a dry run.
    pub bytes_freed: u64,
    /// Segments that were skipped because they are damaged, or because a row cannot be stored as asked.
    pub skipped: Vec<Skipped>,
    /// How long it took.
    pub elapsed: Duration,
}

/// What [`crate::Reader::backup_to`] copied.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct BackupReport {
    /// Sealed segments of the copy.
    pub segments: usize,
    /// Sealed segments that are hard links to those of the source.
    pub segments_linked: usize,
    /// Rows of the copy, including superseded ones and tombstones.
    pub rows: u64,
    /// Bytes of its segments.
    pub bytes: u64,
    /// Bytes of segments that were copied and not linked.
    pub bytes_copied: u64,
    /// Rows whose checksums were compared, if [`crate::Backup::verify`] asked for it.
    pub rows_verified: Option<u64>,
    /// Files of the source that may have rows that are not served, if [`crate::Backup::damaged`] allows them.
    pub left_out: Vec<Quarantined>,
    /// Segments that the source misses, if [`crate::Backup::damaged`] allows it.
    pub missing: Vec<Missing>,
    /// How long it took.
    pub elapsed: Duration,
}

/// What [`crate::Store::merge_from`] did, or, in a dry run, would do.
#[derive(Debug, Clone, Default, PartialEq, serde::Serialize)]
#[non_exhaustive]
pub struct MergeReport {
    /// Whether it was a dry run, which changes nothing.
    pub dry_run: bool,
    /// Stores that were merged.
    pub stores: usize,
    /// Rows in them, including superseded ones and tombstones.
    pub rows: u64,
    /// Rows that were copied. Of each key, at most one.
    pub rows_merged: u64,
    /// Tombstones that were copied.
    pub tombstones_merged: u64,
    /// Values of this store that copied rows or tombstones supersede.
    pub rows_replaced: u64,
    /// Keys of which this store has a row that is newer, or the same.
    pub rows_kept: u64,
    /// Keys with differing values: the newest counts.
    pub conflicts: u64,
    /// The first hundred of these keys.
    pub conflicting_keys: Vec<Key>,
    /// Rows that could not be read, if [`crate::Merge::damaged`] allows them.
    pub rows_damaged: u64,
    /// Segments that were written.
    pub segments_written: usize,
    /// Bytes of these.
    pub bytes_written: u64,
    /// How long it took.
    pub elapsed: Duration,
}

/// What [`crate::Store::prune`] did, or, in a dry run, would do.
#[derive(Debug, Clone, Default, PartialEq, serde::Serialize)]
#[non_exhaustive]
pub struct PruneReport {
    /// Whether it was a dry run, which changes nothing.
    pub dry_run: bool,
    /// Sealed segments of values.
    pub segments: usize,
    /// Segments that were evicted.
    pub segments_evicted: usize,
    /// Bytes of these segments.
    pub bytes_evicted: u64,
    /// Rows of these segments, including overwritten and deleted ones.
    pub rows_evicted: u64,
    /// Keys that do not exist any more because of it.
    pub keys_evicted: u64,
    /// Tombstones that took the place of rows, so that older rows of their keys do not come back. Compaction drops them
    /// once these are gone. 0 in a dry run.
    pub tombstones_kept: u64,
    /// Bytes of all files of the store before, and after; an estimate in a dry run.
    pub bytes_before: u64,
    /// See `bytes_before`.
    pub bytes_after: u64,
    /// Rows of values that are left, including overwritten and deleted ones, and those that are not sealed yet.
    pub rows_after: u64,
    /// Segments that were left alone because another writer has their lane, or their order depends on it.
    pub segments_in_use: usize,
    /// Segments that were left alone because they are damaged.
    pub skipped: Vec<Skipped>,
    /// Whether the limits hold now.
    pub reached: bool,
    /// How long it took.
    pub elapsed: Duration,
}

/// How far a compaction is; see [`crate::Store::compaction_progress`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[non_exhaustive]
pub struct CompactionProgress {
    /// Whether segments are rewritten; before that, they are examined.
    pub is_rewriting: bool,
    /// Bytes of the segments that this step is done with.
    pub done_bytes: u64,
    /// Bytes of all segments of this step.
    pub total_bytes: u64,
}

impl PruneReport {
    /// Counts an evicted segment.
    pub(crate) fn count(&mut self, segment: &Segment) {
        self.segments_evicted += 1;
        self.bytes_evicted += segment.len_bytes;
        self.rows_evicted += segment.seal.rows;
    }
}

/// A file that was skipped.
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

/// One damaged place.
#[derive(Debug, Clone, serde::Serialize)]
#[non_exhaustive]
pub struct Damage {
    /// The file.
    pub path: PathBuf,
    /// What is wrong.
    pub what: String,
    /// Rows that cannot be served because of it. Damage to an index costs no rows, and rows whose keys were put again
    /// are not counted.
    pub rows: u64,
    /// The keys of these rows, if they are known: put them again.
    pub keys: Vec<Key>,
}

impl VerifyReport {
    /// Whether nothing is damaged.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.damage.is_empty()
    }

    /// Removes duplicates: opening and verification may both find the same place. Only verification finds damage to
    /// rows.
    pub(crate) fn list_once(&mut self) {
        let mut seen = HashSet::new();
        self.damage.retain(|damage| damage.rows > 0 || seen.insert((damage.path.clone(), damage.what.clone())));
    }

    /// Adds damage.
    pub(crate) fn add(&mut self, path: &Path, what: impl Into<String>, rows: u64) {
        self.add_rows(path, what, rows, Vec::new());
    }

    /// Adds damage, with the keys of its rows.
    pub(crate) fn add_rows(&mut self, path: &Path, what: impl Into<String>, rows: u64, keys: Vec<Key>) {
        self.damage.push(Damage { path: path.to_path_buf(), what: what.into(), rows, keys });
    }
}
