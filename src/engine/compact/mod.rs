//! Compaction: segments of which few rows count are written anew without the others, and small ones are joined.
//!
//! One step takes a few segments: [`live`] finds the rows that count, [`plan`] chooses what is written into one new
//! segment, [`rewrite`] writes it, checks it and publishes it. The seal of the new segment names those that it
//! replaces, so one rename replaces them; then they are unlinked. A crash before the rename leaves a temporary file,
//! which the next opening removes; one behind it leaves files that are replaced, which the next opening removes too.
//!
//! Rows keep their commit timestamps, so a put or delete that happens meanwhile, in whatever process, is newer than the
//! copy. Only rows that index runs find count as newer: these are sealed, so no power failure takes the newer row after
//! the older one is gone. One process compacts at a time.
//!
//! A tombstone is dropped when no segment has an older row of its key, and nothing else can have one ([`tombstones`]).

pub(crate) mod context;
mod durable;
pub(crate) mod live;
mod plan;
mod rewrite;
mod ties;
mod tombstones;

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use crate::engine::compact::context::Context;
use crate::engine::compact::durable::sync_sealed;
use crate::engine::compact::live::{Live, Newer, live_rows, sample_is_sparse};
use crate::engine::compact::plan::{Candidate, groups};
use crate::engine::compact::rewrite::{remove_left, rewrite};
use crate::engine::compact::ties::tied;
use crate::engine::compact::tombstones::Tombstones;
use crate::engine::files::locks::{lanes_with_writers, wait_for_compact_lock};
use crate::engine::files::row_maps;
use crate::engine::follow::refresh;
use crate::engine::options::Compaction;
use crate::engine::report::{CompactReport, Skipped};
use crate::engine::state::State;
use crate::error::{Error, Result};
use crate::segment::reader::Segment;

/// Compacts what `options` say. What was put before is sealed and covered by index runs. O(rows) lookups, and O(bytes
/// of the segments that are rewritten).
///
/// # Errors
/// [`Error::Io`] of kind `TimedOut` if another process compacts the store; IO errors. The store is whole then, and what was finished
/// stays.
pub(crate) fn compact(context: Context<'_>, options: &Compaction) -> Result<CompactReport> {
    let start = Instant::now();
    let _lock = wait_for_compact_lock(context.state.storage(), options.patience)?;
    if !options.dry_run {
        remove_left(context)?;
    }
    // Before the refresh: what a writer has put that is gone by now is seen then.
    let mut others = lanes_with_writers(context.state.storage())?;
    // A segment that another process has written anew must not be written once more from the former one.
    refresh(context.state)?;
    others.extend(lanes_with_writers(context.state.storage())?);
    others.retain(|lane| *lane != context.lane);
    let mut report = CompactReport { dry_run: options.dry_run, ..CompactReport::default() };
    compact_values(context, &others, options, &mut report)?;
    // Now that dead rows are gone, fewer tombstones are needed.
    compact_tombstones(context, &others, options, &mut report)?;
    report.elapsed = start.elapsed();
    Ok(report)
}

/// Removes the files that say where rows were moved, once no index run needs them.
pub(crate) fn remove_row_maps(state: &State, lane: u16) -> Result<()> {
    if state.versions().load().runs().iter().any(|run| run.has_moved_rows()) {
        return Ok(());
    }
    // Opening removes what is left of segments that were replaced, where row maps say that they were.
    if state.registry().lock().replaced_and_there().next().is_some() {
        return Ok(());
    }
    let targets = row_maps::targets(state.storage(), state.identity().store())?;
    targets.into_iter().filter(|id| id.lane == lane).try_for_each(|id| row_maps::remove(state.storage(), id))
}

/// The sealed segments that may be rewritten: those that runs name, and no other writer may have sealed just now. What no
/// run names is found by way of the memtable or of segments that it replaces, until the next merge. Those stay of which
/// rows would change their order.
fn sealed(context: Context<'_>, others: &[u16], options: &Compaction, tombstones: bool) -> Result<Vec<Arc<Segment>>> {
    let version = context.state.versions().load_full();
    let tied = tied(&version, context.lane)?;
    let mut covered: Vec<_> = version.runs().iter().flat_map(|run| run.covered()).collect();
    covered.sort_unstable();
    let of_kind = version.segments().values().filter(|segment| segment.schema().is_tombstones() == tombstones);
    let own = of_kind.filter(|segment| !others.contains(&segment.id.lane) && !tied.contains(&segment.id));
    Ok(own.filter(|segment| options.dry_run || covered.binary_search(&segment.id).is_ok()).cloned().collect())
}

fn newer(options: &Compaction) -> Newer {
    if options.dry_run { Newer::Anywhere } else { Newer::Sealed }
}

fn compact_values(
    context: Context<'_>,
    others: &[u16],
    options: &Compaction,
    report: &mut CompactReport,
) -> Result<()> {
    let mut candidates = Vec::new();
    for segment in sealed(context, others, options, false)? {
        (context.stop)()?;
        if options.by_sample && !sample_is_sparse(context.state, &segment, options.live_share) {
            continue;
        }
        report.segments += 1;
        report.rows += u64::from(segment.rows());
        report.bytes += segment.len_bytes;
        match live_rows(context.state, &segment, newer(options)) {
            Ok(live) => {
                report.live_rows += live.count();
                candidates.extend(Candidate::new(segment, live, options));
            }
            Err(error) => skip(report, &segment, &error)?,
        }
    }
    rewrite_all(context, candidates, options, report)
}

fn compact_tombstones(
    context: Context<'_>,
    others: &[u16],
    options: &Compaction,
    report: &mut CompactReport,
) -> Result<()> {
    let segments = sealed(context, others, options, true)?;
    if options.by_sample && !worth_it(context.state, &segments) {
        return Ok(());
    }
    let mut found: Vec<(Arc<Segment>, Live)> = Vec::new();
    for segment in segments {
        report.segments += 1;
        report.bytes += segment.len_bytes;
        match live_rows(context.state, &segment, newer(options)) {
            Ok(live) => found.push((segment, live)),
            Err(error) => skip(report, &segment, &error)?,
        }
    }
    if found.is_empty() {
        return Ok(());
    }
    let needed = Tombstones::needed(context, others.is_empty(), &found)?;
    for (segment, live) in &mut found {
        report.tombstones_dropped += needed.forget_others(context.state, segment, live)?;
    }
    let candidates = found.into_iter().filter_map(|(segment, live)| Candidate::new(segment, live, options)).collect();
    rewrite_all(context, candidates, options, report)
}

/// Rewrites those of `candidates` that are worth it.
fn rewrite_all(
    context: Context<'_>,
    candidates: Vec<Candidate>,
    options: &Compaction,
    report: &mut CompactReport,
) -> Result<()> {
    let groups = groups(candidates, context.state.options(), options);
    if !groups.is_empty() && !options.dry_run {
        match sync_sealed(context.state) {
            // What may not be synced may be lost, and what it replaces has to stay.
            Err(error) if error.is_denied() || error.is_no_file() => {
                let path = error.path().unwrap_or(Path::new("")).to_path_buf();
                report.skipped.push(Skipped { path, why: error.to_string() });
                return Ok(());
            }
            synced => synced?,
        }
    }
    groups.into_iter().try_for_each(|group| rewrite(context, group, options, report))
}

/// Whether tombstones are so many that reading all index blocks for them is worth it.
fn worth_it(state: &State, tombstones: &[Arc<Segment>]) -> bool {
    const ROWS_PER_TOMBSTONE: u64 = 8;
    let tombstones: u64 = tombstones.iter().map(|segment| u64::from(segment.rows())).sum();
    let rows: u64 = state.versions().load().segments().values().map(|segment| u64::from(segment.rows())).sum();
    tombstones > 0 && tombstones >= rows / ROWS_PER_TOMBSTONE
}

/// Leaves out a segment of which something is damaged: closing repairs it, or its rows are lost.
fn skip(report: &mut CompactReport, segment: &Segment, error: &Error) -> Result<()> {
    if !error.is_corrupt() {
        return Err(error.clone());
    }
    segment.note_damaged();
    report.skipped.push(Skipped { path: segment.described().to_path_buf(), why: error.to_string() });
    Ok(())
}
