//! Publishes runs before what they cover is dropped from the memtable.

use std::path::Path;
use std::sync::Arc;

use crate::engine::runs::build::memory_run;
use crate::engine::state::State;
use crate::engine::state::loaded_run::LoadedRun;
use crate::error::Result;
use crate::names::SegmentId;

/// Publishes `run` in place of `absorbed`, then drops what it covers from the memtable. In this order, a reader that
/// misses a row in the memtable finds it in the version.
pub(crate) fn publish_run(state: &State, run: &Arc<LoadedRun>, absorbed: &[Arc<LoadedRun>]) {
    // Sorted, since it is searched for each batch while puts wait.
    let mut covered: Vec<SegmentId> = run.segments().iter().map(|segment| segment.id).collect();
    covered.sort_unstable();
    state.versions().replace_runs(run, absorbed);
    state.memtable().drop_segments(&|id| covered.binary_search(&id).is_ok());
}

/// Replaces the damaged run at `path` by one in memory.
pub(crate) fn replace_damaged_run(state: &State, path: &Path) -> Result<()> {
    let _building = state.versions().lock_rebuild();
    let version = state.versions().load_full();
    let Some(damaged) = version.runs().iter().find(|run| run.run().path() == path) else { return Ok(()) };
    let fresh = memory_run(state, damaged.segments().to_vec(), false)?;
    publish_run(state, &Arc::new(fresh), std::slice::from_ref(damaged));
    Ok(())
}
