//! Reads the index runs on disk, and publishes those that fit the segments.

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;

use crate::engine::admit::admit_segment;
use crate::engine::files::replace::list_if_exists;
use crate::engine::open::moved_rows::MovedRows;
use crate::engine::report::OpenReport;
use crate::engine::runs::build::{is_of_store, memory_run, open_run, remembered_live};
use crate::engine::state::State;
use crate::engine::state::loaded_run::LoadedRun;
use crate::error::{Error, Result};
use crate::index::run::Run;
use crate::index::run_layout::Covered;
use crate::io::{FileKind, Storage};
use crate::names::{self, SegmentId};

/// The index runs on disk.
#[derive(Default)]
pub(crate) struct Runs {
    /// Runs of this store.
    own: Vec<(SegmentId, Run)>,
    /// Damaged runs, which may be removed.
    damaged: Vec<SegmentId>,
    /// The number of runs of another store or a newer version, which must not be removed.
    foreign: usize,
    /// The errors of runs that this user may not read.
    unreadable: Vec<Error>,
}

impl Runs {
    /// Opens all runs, of any store. O(runs).
    pub(crate) fn read(storage: &dyn Storage) -> Result<Self> {
        let entries = list_if_exists(storage, names::RUNS)?;
        let mut runs = Self::default();
        for id in entries.iter().filter(|entry| entry.kind.is_file()).filter_map(|entry| names::parse_run(&entry.name))
        {
            match open_run(storage, &names::run(id)) {
                Ok(run) => runs.own.push((id, run)),
                Err(Error::NewerFormat { .. }) => runs.foreign += 1,
                Err(Error::Corrupt { .. }) => runs.damaged.push(id),
                Err(error) if error.is_denied() => runs.unreadable.push(error),
                Err(error) if error.is_not_found() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(runs)
    }

    /// Keeps the runs of the store of `state`; the others are foreign.
    pub(crate) fn of_store(mut self, state: &State) -> Self {
        let all = self.own.len();
        self.own.retain(|(_, run)| is_of_store(state, run));
        self.foreign += all - self.own.len();
        self
    }

    /// The segments that the runs cover, and their numbers of rows.
    pub(crate) fn covered(&self) -> Vec<(SegmentId, u64)> {
        let covered = self.own.iter().flat_map(|(_, run)| run.covered());
        covered.map(|covered| (covered.id(), covered.rows)).collect()
    }

    /// The error of a run that this user may not read, if there is one.
    pub(crate) fn unreadable(&self) -> Option<&Error> {
        self.unreadable.first()
    }
}

/// Publishes runs that fit the segments and do not overlap, largest first. Drops the others, and removes those of
/// `lane` from disk. Row maps say where the rows of replaced segments are.
pub(crate) fn use_runs(state: &State, runs: Runs, lane: Option<u16>, report: &mut OpenReport) -> Result<()> {
    let segments = state.versions().load().segments().clone();
    let moved = MovedRows::read(state, &segments, &runs.own)?;
    let mut fitting: Vec<LoadedRun> = Vec::new();
    let mut useless: Vec<SegmentId> = runs.damaged;
    // How many of these are merely outdated: compaction replaced segments that they cover.
    let mut outdated = 0;
    for (id, run) in runs.own {
        let is_replaced = |covered: &Covered| state.registry().lock().is_replaced(covered.id());
        outdated +=
            usize::from(run.covered().iter().any(|covered| is_replaced(covered) && !moved.has(&segments, covered)));
        let fits = run.covered().iter().all(|covered| moved.has(&segments, covered));
        let resolve = |run| LoadedRun::resolve(run, Some(id), &segments, moved.replaced());
        match fits.then_some(run).and_then(resolve) {
            Some(run) => fitting.push(run),
            None => useless.push(id),
        }
    }
    report.runs_dropped = useless.len() - outdated + runs.foreign + runs.unreadable.len();
    report.notes.extend(runs.unreadable.iter().map(|error| format!("left out: {error}")));
    fitting.sort_by_key(|run| std::cmp::Reverse(run.run().keys()));
    let mut taken: HashSet<SegmentId> = HashSet::new();
    let mut chosen = Vec::new();
    for run in fitting {
        if run.covered().any(|id| taken.contains(&id)) {
            // It is undamaged, but another run covers its rows: lanes merge each other's segments.
            useless.extend(run.name());
        } else {
            taken.extend(run.covered());
            chosen.push(Arc::new(run));
        }
    }
    for id in useless.into_iter().filter(|id| Some(id.lane) == lane) {
        state.storage().remove(&names::run(id))?;
    }
    if let Some(lane) = lane {
        remove_unfinished_runs(state, lane)?;
        moved.remove_unused(state, lane, &chosen)?;
    }
    let runs = || chosen.iter().map(|run: &Arc<LoadedRun>| run.run());
    // Runs count evicted keys until the next merge.
    let counts = !chosen.iter().any(|run| run.may_have_evicted_rows());
    let live = runs().find_map(|run| remembered_live(run, runs())).filter(|_| counts);
    if !chosen.is_empty() {
        state.live().set(live);
    }
    state.versions().set_runs(&chosen, &moved.indexed(&segments, &taken));
    Ok(())
}

/// Removes runs that the lane's previous writer did not finish.
fn remove_unfinished_runs(state: &State, lane: u16) -> Result<()> {
    for entry in state.storage().list(Path::new(names::RUNS))? {
        let is_own = names::parse_unfinished(&entry.name).is_some_and(|id| id.lane == lane);
        if is_own && entry.kind == FileKind::File {
            state.storage().remove(&Path::new(names::RUNS).join(&entry.name))?;
        }
    }
    Ok(())
}

/// Indexes sealed rows that no run covers: in the memtable, or, if they exceed its bound, in a run in memory, which the
/// next merge absorbs.
pub(crate) fn index_uncovered(state: &State, report: &mut OpenReport) -> Result<()> {
    let version = state.versions().load_full();
    let fresh = version.uncovered();
    let rows: u64 = fresh.iter().map(|segment| u64::from(segment.rows())).sum();
    report.rows_indexed = rows;
    if rows as usize <= state.options().memtable_keys {
        return fresh.iter().try_for_each(|segment| admit_segment(state, segment));
    }
    let covers_all = version.runs().is_empty();
    let run = memory_run(state, fresh, covers_all)?;
    state.live().set(remembered_live(run.run(), std::iter::once(run.run())).filter(|_| covers_all));
    state.versions().replace_runs(&Arc::new(run), &[]);
    Ok(())
}
