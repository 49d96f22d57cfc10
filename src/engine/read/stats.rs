//! Sizes and counters of a store.

use std::path::Path;

use crate::engine::files::quarantine::told;
use crate::engine::files::replace::list_if_exists;
use crate::engine::findings::findings;
use crate::engine::state::State;
use crate::engine::state::byte_cache::HotStats;
use crate::error::Result;
use crate::names;

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
    /// Keys in the in-memory part of the index.
    pub delta_keys: usize,
    /// Anonymous memory of that part, in bytes.
    pub delta_bytes: usize,
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
    /// Pages of 4 KiB that a batch wanted while they were not in memory, and that were read in together.
    pub cold_pages: u64,
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
    pub hot: Option<HotSize>,
}

/// The value cache.
#[derive(Debug, Clone, Copy, Default, serde::Serialize)]
#[non_exhaustive]
pub struct HotSize {
    /// Values held.
    pub entries: usize,
    /// Bytes held.
    pub bytes: usize,
    /// Values found.
    pub hits: u64,
    /// Values not found.
    pub misses: u64,
    /// Values dropped to make room.
    pub evictions: u64,
    /// Values not taken.
    pub refused: u64,
}

/// Sizes and counters of `state`.
pub(crate) fn stats(state: &State) -> Result<Stats> {
    state.check_fork()?;
    let version = state.versions().load();
    let folder_bytes = |folder: &str| {
        let files = list_if_exists(state.storage(), folder)?.into_iter().filter(|entry| entry.kind.is_file());
        let sizes = files.map(|entry| match state.storage().len_bytes(&Path::new(folder).join(entry.name)) {
            // Renamed or removed since.
            Err(error) if error.is_not_found() => Ok(0),
            len_bytes => len_bytes,
        });
        sizes.sum::<Result<u64>>()
    };
    let traffic = state.metrics().traffic();
    Ok(Stats {
        keys: state.live().get(),
        key_kind: state.identity().key_kind().map(crate::key::KeyKind::name),
        store: state.identity().store().to_string(),
        rows_sealed: version.segments().values().map(|segment| segment.seal.rows).sum(),
        tombstones: version.segments().values().map(|segment| segment.seal.tombstones).sum(),
        segments: version.segments().len(),
        segment_bytes: folder_bytes(names::SEGMENTS)?,
        run_bytes: folder_bytes(names::RUNS)?,
        runs: version.runs().len(),
        run_keys: version.runs().iter().map(|run| run.run().keys()).sum(),
        delta_keys: state.memtable().len(),
        delta_bytes: state.memtable().capacity_bytes(),
        quarantined: told(state.storage())?.file_count,
        missing: findings(state)?.missing.iter().map(|missing| missing.segments).sum(),
        bad_files: state.registry().lock().bad_files(),
        hits: traffic.hits,
        misses: traffic.misses,
        damaged: traffic.damaged,
        cold_pages: state.residency().pages_read(),
        rows_put: traffic.rows_put,
        batches_written: traffic.batches_written,
        bytes_written: traffic.bytes_written,
        flushes: traffic.flushes,
        runs_built: traffic.runs_built,
        refreshes: traffic.refreshes,
        clock_behind_s: state.clock().behind().as_secs_f64(),
        hot: state.value_cache().size().map(|(entries, bytes, counted)| {
            let HotStats { hits, misses, evictions, refused } = counted;
            HotSize { entries, bytes, hits, misses, evictions, refused }
        }),
    })
}
