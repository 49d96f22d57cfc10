//! Compaction rewrites segments with few live rows, leaving out the dead ones, and joins small segments.
//!
//! One step takes a few segments: [`live`] finds their live rows, [`plan`] groups the segments that become one new
//! segment, and [`rewrite`] writes, validates and publishes it. The seal of the new segment lists the segments that it
//! replaces, so one rename replaces them all; then they are unlinked. A crash before the rename leaves a temporary
//! file, and a crash after it leaves replaced segments. The next opening removes both.
//!
//! Rows keep their commit timestamps, so a concurrent put or delete, in any process, is newer than the copy. A row is
//! dead only if an index run has a newer row of its key. Rows in runs are sealed, so a power failure cannot lose the
//! newer row after the older one is gone. One process compacts at a time.
//!
//! On request, rows are packed or unpacked, or stored in a narrower dtype, while they are copied ([`recode`]). On request,
//! they are sorted, and rows that were committed one by one get into few batches ([`arrange`]): each row of the new
//! segment then has a commit timestamp of its own.
//!
//! A tombstone is dropped when no segment and no other writer can have an older row of its key ([`tombstones`]).

mod arrange;
pub(crate) mod context;
mod durable;
pub(crate) mod live;
mod plan;
mod recode;
pub(crate) mod replacement;
mod rewrite;
pub(crate) mod ties;
mod tombstones;

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use crate::engine::compact::context::Context;
use crate::engine::compact::durable::sync_sealed;
use crate::engine::compact::live::{Live, Newer, live_rows, sample_is_sparse};
use crate::engine::compact::plan::{Candidate, groups, is_fragmented};
use crate::engine::compact::replacement::remove_left;
use crate::engine::compact::rewrite::rewrite;
use crate::engine::compact::ties::tied;
use crate::engine::compact::tombstones::Tombstones;
use crate::engine::files::locks::{lanes_with_writers, wait_for_compact_lock};
use crate::engine::files::row_maps;
use crate::engine::follow::refresh;
use crate::engine::observe::Operation;
use crate::engine::options::{Compaction, Order};
use crate::engine::report::{CompactReport, Skipped};
use crate::engine::state::State;
use crate::error::{Error, Result};
use crate::key::Keys;
use crate::schema::ROW_LAYOUT_VERSION;
use crate::segment::reader::Segment;

/// Compacts as `options` say. Only segments that index runs cover are rewritten, so the caller seals and merges first.
/// O(rows) lookups, and O(bytes of the rewritten segments).
///
/// # Errors
/// [`Error::Io`] of kind `TimedOut` if another process compacts the store; IO errors. The store stays consistent, and
/// finished steps are kept.
pub(crate) fn compact(context: Context<'_>, options: &Compaction) -> Result<CompactReport> {
    let start = Instant::now();
    check_order(context.state, options)?;
    let span = context.state.metrics().begin(Operation::Compact);
    let _lock = wait_for_compact_lock(context.state.storage(), options.patience)?;
    // Under the lock, so that no two compactions of this process tell how far they are.
    let _running = context.state.metrics().compacting().begin();
    if !options.dry_run {
        remove_left(context)?;
    }
    let others = lanes_of_others(context)?;
    let mut report = CompactReport { dry_run: options.dry_run, ..CompactReport::default() };
    compact_values(context, &others, options, &mut report)?;
    // Now that dead rows are gone, fewer tombstones are needed.
    compact_tombstones(context, &others, options, &mut report)?;
    report.elapsed = start.elapsed();
    span.record("segments", report.segments as u64);
    span.record("rows", report.rows);
    span.record("bytes", report.bytes_written);
    if !options.dry_run {
        context.state.metrics().compacted(&report);
    }
    Ok(report)
}

/// Fails if rows of this store cannot be sorted as `options` ask.
fn check_order(state: &State, options: &Compaction) -> Result<()> {
    let format = state.identity().recorded().format;
    match &options.sort {
        Some(_) if format < ROW_LAYOUT_VERSION => Err(Error::invalid(format!(
            "this store has format version {format}, whose rows cannot be sorted: merge it into a new store, and sort that"
        ))),
        Some(Order::Given(keys)) => Keys::from(keys).check(state.identity().key_kind()).map(drop),
        _ => Ok(()),
    }
}

/// The lanes that other writers hold. Reads what they have committed.
///
/// # Errors
/// IO errors.
pub(crate) fn lanes_of_others(context: Context<'_>) -> Result<Vec<u16>> {
    // Before and after the refresh, so that the rows of a writer that ends meanwhile are seen.
    let mut others = lanes_with_writers(context.state.storage())?;
    // Otherwise a segment that another process has replaced could be rewritten from its old file.
    refresh(context.state)?;
    others.extend(lanes_with_writers(context.state.storage())?);
    others.retain(|lane| *lane != context.lane);
    Ok(others)
}

/// Removes the row map files of `lane`, once no index run needs row maps.
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

/// The sealed segments that may be rewritten: index runs cover them, their lane has no other writer, and none of their
/// timestamps is tied with one of another lane. Until the next merge, the rows of other segments are reachable through
/// the memtable or through segments that these replaced.
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
    let (segments, compacting) = (sealed(context, others, options, false)?, context.state.metrics().compacting());
    compacting.step(false, segments.iter().map(|segment| segment.len_bytes).sum());
    for segment in segments {
        (context.stop)()?;
        compacting.add(segment.len_bytes);
        let is_due = || is_fragmented(&segment) || sample_is_sparse(context.state, &segment, options.live_share);
        if options.by_sample && !is_due() {
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
    let mut candidates = Vec::new();
    for (segment, mut live) in found {
        let needless = needed.forget_others(context.state, &segment, &mut live)?;
        if let Some(mut candidate) = Candidate::new(segment, live, options) {
            candidate.needless = needless;
            candidates.push(candidate);
        }
    }
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
            // A segment that cannot be synced may be lost, so the rows that it supersedes must stay.
            Err(error) if error.is_denied() || error.is_no_file() => {
                let path = error.path().unwrap_or(Path::new("")).to_path_buf();
                report.skipped.push(Skipped { path, why: error.to_string() });
                return Ok(());
            }
            synced => synced?,
        }
    }
    let bytes = |group: &[Candidate]| group.iter().map(|candidate| candidate.segment.len_bytes).sum::<u64>();
    let compacting = context.state.metrics().compacting();
    compacting.step(true, groups.iter().map(|group| bytes(group)).sum());
    groups.into_iter().try_for_each(|group| {
        let bytes = bytes(&group);
        rewrite(context, group, options, report)?;
        compacting.add(bytes);
        Ok(())
    })
}

/// Whether there are enough tombstones to justify reading all index blocks.
fn worth_it(state: &State, tombstones: &[Arc<Segment>]) -> bool {
    const ROWS_PER_TOMBSTONE: u64 = 8;
    let tombstones: u64 = tombstones.iter().map(|segment| u64::from(segment.rows())).sum();
    let rows: u64 = state.versions().load().segments().values().map(|segment| u64::from(segment.rows())).sum();
    tombstones > 0 && tombstones >= rows / ROWS_PER_TOMBSTONE
}

/// Notes and skips a damaged segment; closing salvages it. Returns errors other than damage.
fn skip(report: &mut CompactReport, segment: &Segment, error: &Error) -> Result<()> {
    if !error.is_corrupt() {
        return Err(error.clone());
    }
    segment.note_damaged();
    report.skipped.push(Skipped { path: segment.described().to_path_buf(), why: error.to_string() });
    Ok(())
}
