//! Sizes and counters of a store.

use std::path::Path;

use crate::engine::files::replace::list_if_exists;
use crate::engine::findings::findings;
use crate::engine::report::{HotSize, Stats};
use crate::engine::state::State;
use crate::engine::state::byte_cache::HotStats;
use crate::error::Result;
use crate::names;

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
    let (traffic, found) = (state.metrics().traffic(), findings(state)?);
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
        quarantined: found.quarantined,
        missing: found.missing.iter().map(|missing| missing.segments).sum(),
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
