//! Sizes and counters of a store.

use crate::engine::findings::findings;
use crate::engine::report::Stats;
use crate::engine::state::State;
use crate::engine::state::waste::Waste;
use crate::error::Result;

/// Sizes and counters of `state`. O(segments), without a call of the system for each.
pub(crate) fn stats(state: &State) -> Result<Stats> {
    state.check_fork()?;
    let version = state.versions().load();
    let usage = state.usage()?;
    let (found, waste) = (findings(state)?, Waste::of(state));
    let stats = Stats {
        keys: state.live().get(),
        key_kind: state.identity().key_kind().map(crate::key::KeyKind::name),
        store: state.identity().store().to_string(),
        rows_sealed: version.segments().values().map(|segment| segment.seal.rows).sum(),
        tombstones: version.segments().values().map(|segment| segment.seal.tombstones).sum(),
        dead_rows: waste.map(|waste| waste.dead_rows),
        dead_bytes: waste.map(|waste| waste.dead_bytes()),
        segments: version.segments().len(),
        segment_bytes: usage.segments,
        run_bytes: usage.runs,
        quarantine_bytes: usage.quarantine,
        disk_bytes: usage.total(),
        runs: version.runs().len(),
        run_keys: version.runs().iter().map(|run| run.run().keys()).sum(),
        memtable_keys: state.memtable().len(),
        memtable_bytes: state.memtable().capacity_bytes(),
        quarantined: found.quarantined,
        missing: found.missing.iter().map(|missing| missing.segments).sum(),
        bad_files: state.registry().lock().bad_files(),
        prefaulted_pages: state.residency().prefaulted_pages(),
        clock_behind_s: state.clock().behind().as_secs_f64(),
        value_cache: state.value_cache().stats(),
        ..state.metrics().stats()
    };
    state.metrics().publish(&stats);
    Ok(stats)
}
