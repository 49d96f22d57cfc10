//! Sizes and counters of a store.

use std::path::Path;

use crate::engine::files::replace::list_if_exists;
use crate::engine::findings::findings;
use crate::engine::report::Stats;
use crate::engine::state::State;
use crate::engine::state::waste::Waste;
use crate::error::Result;
use crate::names::{self, SegmentName};

/// Sizes and counters of `state`. O(segments), without a call of the system for each.
pub(crate) fn stats(state: &State) -> Result<Stats> {
    state.check_fork()?;
    let version = state.versions().load();
    let known = |name: &str| {
        let SegmentName::Sealed(id) = names::parse_segment(name) else { return None };
        version.segments().get(&id).map(|segment| segment.len_bytes)
    };
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
        segment_bytes: folder_bytes(state, names::SEGMENTS, known)?,
        run_bytes: folder_bytes(state, names::RUNS, |_| None)?,
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

/// The bytes of the files in `folder`. `known` knows the lengths of some, for which the system is not asked.
fn folder_bytes(state: &State, folder: &str, known: impl Fn(&str) -> Option<u64>) -> Result<u64> {
    let files = list_if_exists(state.storage(), folder)?.into_iter().filter(|entry| entry.kind.is_file());
    let sizes = files.map(|entry| match known(&entry.name) {
        Some(len_bytes) => Ok(len_bytes),
        None => match state.storage().len_bytes(&Path::new(folder).join(entry.name)) {
            // Renamed or removed since.
            Err(error) if error.is_not_found() => Ok(0),
            len_bytes => len_bytes,
        },
    });
    sizes.sum()
}
