//! Publishing runs: before what they cover is dropped from the memtable.

use std::path::Path;
use std::sync::Arc;

use crate::engine::runs::build::memory_run;
use crate::engine::state::State;
use crate::engine::state::loaded_run::LoadedRun;
use crate::error::Result;
use crate::names::SegmentId;

/// Publishes `run` in place of `absorbed`, then drops what it covers from the memtable: in this order, so that a reader
/// that misses in the one finds in the other.
pub(crate) fn publish_run(state: &State, run: &Arc<LoadedRun>, absorbed: &[Arc<LoadedRun>]) {
    // Searched for each batch, while puts wait.
    let mut covered: Vec<SegmentId> = run.segments().iter().map(|segment| segment.id).collect();
    covered.sort_unstable();
    state.versions().replace_runs(run, absorbed);
    state.memtable().drop_segments(&|id| covered.binary_search(&id).is_ok());
}

/// Puts a run in memory in the place of the damaged one at `path`.
pub(crate) fn replace_damaged_run(state: &State, path: &Path) -> Result<()> {
    let _building = state.versions().lock_rebuild();
    let version = state.versions().load_full();
    let Some(damaged) = version.runs().iter().find(|run| run.run().path() == path) else { return Ok(()) };
    let fresh = memory_run(state, damaged.segments().to_vec(), false)?;
    publish_run(state, &Arc::new(fresh), std::slice::from_ref(damaged));
    Ok(())
}
