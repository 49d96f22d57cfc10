//! Plans merges, which run concurrently: short ones, which keep the memtable within its bound and which puts may wait
//! for, and a long one, which merges large runs and which no put waits for.

use std::sync::Arc;

use crate::engine::lock_order::{Rank, RankedMutex};
use crate::engine::state::State;
use crate::engine::state::loaded_run::LoadedRun;
use crate::index::merge::{Sizes, plan_merge};

/// Most keys of a short merge, in multiples of the memtable's bound: while it runs, puts fill at most one bound.
const SHORT_MEMTABLES: u64 = 8;
/// Most runs that a lookup probes while rows are put, except those added during a long merge.
const MAX_RUNS: usize = 8;
/// Most runs after closing: from then on, readers probe each run for every key.
pub(crate) const MAX_RUNS_AT_REST: usize = 3;
const AT_REST: Sizes = Sizes { ratio: 8, max_runs: MAX_RUNS_AT_REST, most_keys: u64::MAX };

/// The runs that are being merged: no two merges share one.
#[derive(Debug)]
pub(crate) struct Merges {
    claimed: RankedMutex<Vec<Arc<LoadedRun>>>,
}

impl Default for Merges {
    fn default() -> Self {
        Self { claimed: RankedMutex::new(Rank::Claims, Vec::new()) }
    }
}

/// Runs claimed by one merge, until the claim is dropped.
#[derive(Debug)]
pub(crate) struct Claim<'a> {
    merges: &'a Merges,
    runs: Vec<Arc<LoadedRun>>,
}

impl Claim<'_> {
    /// The runs.
    pub(crate) fn runs(&self) -> &[Arc<LoadedRun>] {
        &self.runs
    }
}

/// The purpose of a merge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// Puts may wait for it.
    Short,
    /// Nobody waits for it, and it merges only runs.
    Long,
    /// The caller wants few runs, and waits.
    Rest,
    /// The caller wants one run, however long it takes.
    One,
}

impl Merges {
    /// Claims the runs to merge with `fresh_rows` rows of segments without a run: none if these rows alone make a large
    /// enough run.
    pub(crate) fn claim(&self, state: &State, fresh_rows: u64, purpose: Purpose) -> Claim<'_> {
        let mut claimed = self.claimed.lock();
        let version = state.versions().load_full();
        let is_free = |run: &&Arc<LoadedRun>| !claimed.iter().any(|other| Arc::ptr_eq(run, other));
        // From new to old, without a gap.
        let busy =
            if purpose == Purpose::Long { version.runs().iter().take_while(|run| !is_free(run)).count() } else { 0 };
        let free: Vec<Arc<LoadedRun>> = version.runs().iter().skip(busy).take_while(is_free).cloned().collect();
        let sizes: Vec<u64> = free.iter().map(|run| run.run().keys()).collect();
        let planned = plan(&sizes, fresh_rows, purpose, state.memtable_bound());
        // Always merge in-memory runs: they exist because a file is missing. If the caller wants one run, also merge
        // those that find rows through replaced segments.
        let is_volatile =
            |run: &Arc<LoadedRun>| run.name().is_none() || purpose == Purpose::One && run.has_moved_rows();
        let volatile = free.iter().rposition(is_volatile).map_or(0, |last| last + 1);
        let runs: Vec<_> = free.into_iter().take(planned.max(volatile)).collect();
        claimed.extend(runs.iter().cloned());
        Claim { merges: self, runs }
    }
}

/// How many of the newest runs to merge with `fresh_rows`; `sizes` are those of runs, from new to old.
fn plan(sizes: &[u64], fresh_rows: u64, purpose: Purpose, memtable_bound: usize) -> usize {
    let limits = match purpose {
        Purpose::Short => {
            let most_keys = SHORT_MEMTABLES.saturating_mul(memtable_bound as u64);
            Sizes { ratio: 1, max_runs: MAX_RUNS, most_keys }
        }
        Purpose::Long => Sizes { ratio: 1, max_runs: MAX_RUNS, most_keys: u64::MAX },
        Purpose::Rest => AT_REST,
        Purpose::One => Sizes { ratio: u64::MAX, max_runs: 1, most_keys: u64::MAX },
    };
    match sizes.split_first() {
        // The newest run takes the place of fresh rows. Alone, it leaves nothing to merge.
        Some((newest, older)) if fresh_rows == 0 => match plan_merge(older, *newest, limits) {
            0 => 0,
            more => more + 1,
        },
        _ => plan_merge(sizes, fresh_rows, limits),
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        self.merges.claimed.lock().retain(|run| !self.runs.iter().any(|own| Arc::ptr_eq(run, own)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merges_take_in_what_their_purpose_says() {
        let of = |purpose, sizes: &[u64], fresh| plan(sizes, fresh, purpose, 100);
        // Up to the first run that is larger than all newer ones, and at most eight bounds of the memtable.
        assert_eq!(of(Purpose::Short, &[50, 120, 1000], 100), 2);
        assert_eq!(of(Purpose::Short, &[50, 120, 600], 100), 2);
        assert_eq!(of(Purpose::Long, &[50, 120, 200], 100), 3);
        // Too many runs are merged, whatever their size.
        let many = [1000, 2001, 4002, 8003, 16_004, 32_005, 64_006, 128_007];
        assert_eq!((of(Purpose::Long, &many, 900), of(Purpose::Long, &many[..7], 900)), (1, 0));
        assert_eq!(of(Purpose::One, &many, 1), many.len());
        assert_eq!(of(Purpose::Rest, &[100, 1000], 10), 0);
        assert_eq!(of(Purpose::Rest, &[100, 500], 100), 2);
    }

    #[test]
    fn without_fresh_rows_one_run_is_left_alone() {
        for purpose in [Purpose::Short, Purpose::Long, Purpose::Rest, Purpose::One] {
            assert_eq!((plan(&[], 0, purpose, 100), plan(&[7], 0, purpose, 100)), (0, 0), "{purpose:?}");
        }
        assert_eq!(plan(&[7, 9], 0, Purpose::One, 100), 2);
        assert_eq!(plan(&[7, 5], 0, Purpose::Short, 100), 2);
    }
}
