//! Merges that run beside one another: short ones, which keep the delta within its bound and which puts may have to wait
//! for, and a long one, which brings large runs together and takes as long as it takes.

use std::sync::Arc;

use parking_lot::Mutex;

use crate::engine::state::{Core, LoadedRun};
use crate::index::merge::{Sizes, plan_merge};

/// Keys that a short merge takes in at most, in bounds of the delta: while it runs, puts fill at most one.
const SHORT_DELTAS: u64 = 8;
/// Most runs that a lookup has to probe while rows are put, but for those that come while a long merge runs.
const MAX_RUNS: usize = 8;
/// Most runs that closing leaves: whoever reads from then on pays for each run, with every key.
pub(crate) const MAX_RUNS_AT_REST: usize = 3;
const AT_REST: Sizes = Sizes { ratio: 8, max_runs: MAX_RUNS_AT_REST, most_keys: u64::MAX };

/// The runs that merges are taking in: no two merges take in the same.
#[derive(Debug, Default)]
pub(crate) struct Merges {
    claimed: Mutex<Vec<Arc<LoadedRun>>>,
}

/// Runs that one merge takes in, until it is dropped.
#[derive(Debug)]
pub(crate) struct Claim<'a> {
    merges: &'a Merges,
    pub runs: Vec<Arc<LoadedRun>>,
}

/// What a merge is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// Puts may wait for it.
    Short,
    /// Nobody waits for it, and it takes in runs only.
    Long,
    /// The caller wants few runs, and waits.
    Rest,
    /// The caller wants one run, however long it takes.
    One,
}

impl Merges {
    /// Claims the runs that a merge beside `fresh_rows` of segments without a run is to take in: none if that is enough
    /// of a run by itself.
    pub(crate) fn claim(&self, core: &Core, fresh_rows: u64, purpose: Purpose) -> Claim<'_> {
        let mut claimed = self.claimed.lock();
        let view = core.view.load_full();
        let is_free = |run: &&Arc<LoadedRun>| !claimed.iter().any(|other| Arc::ptr_eq(run, other));
        // From new to old, without a gap.
        let busy = if purpose == Purpose::Long { view.runs.iter().take_while(|run| !is_free(run)).count() } else { 0 };
        let free: Vec<Arc<LoadedRun>> = view.runs.iter().skip(busy).take_while(is_free).cloned().collect();
        let sizes: Vec<u64> = free.iter().map(|run| run.run.keys()).collect();
        let plan = match purpose {
            Purpose::Short => {
                let most_keys = SHORT_DELTAS.saturating_mul(core.delta_bound() as u64);
                Sizes { ratio: 1, max_runs: MAX_RUNS, most_keys }
            }
            Purpose::Long => Sizes { ratio: 1, max_runs: MAX_RUNS, most_keys: u64::MAX },
            Purpose::Rest => AT_REST,
            Purpose::One => Sizes { ratio: u64::MAX, max_runs: 1, most_keys: u64::MAX },
        };
        let planned = match sizes.split_first() {
            // The newest run stands for what is fresh: alone, there is nothing to bring together.
            Some((newest, older)) if fresh_rows == 0 => match plan_merge(older, *newest, plan) {
                0 => 0,
                more => more + 1,
            },
            _ => plan_merge(&sizes, fresh_rows, plan),
        };
        // Runs in memory only are always rewritten: they exist because a file is missing.
        let volatile = free.iter().rposition(|run| run.name.is_none()).map_or(0, |last| last + 1);
        let runs: Vec<_> = free.into_iter().take(planned.max(volatile)).collect();
        claimed.extend(runs.iter().cloned());
        Claim { merges: self, runs }
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        self.merges.claimed.lock().retain(|run| !self.runs.iter().any(|own| Arc::ptr_eq(run, own)));
    }
}
