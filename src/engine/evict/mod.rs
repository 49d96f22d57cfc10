//! Eviction removes whole segments, so that the store keeps its caps.
//!
//! One step replaces a few segments of values by one segment, as compaction does ([`replacement`]). All their rows are
//! dropped, so nearly always it has no rows, and the step writes a few kilobytes however large the segments are. Only a
//! row that hides an older row of its key in another segment ([`older`]) leaves a tombstone with its own commit
//! timestamp. So an older row never counts again: not now, not after the index was rebuilt, not in another process. The
//! next step replaces the segment of the last one along with its own, so that such segments do not add up.
//!
//! Segments that another handle may be writing, or whose order against a third lane depends on their lane, are left
//! alone, as in compaction. One process at a time compacts or evicts.
//!
//! [`replacement`]: crate::engine::compact::replacement

mod older;

use std::cmp::Reverse;
use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::codec::Codec;
use crate::engine::caps::Eviction;
use crate::engine::compact::context::Context;
use crate::engine::compact::live::{Newer, batches, live_rows};
use crate::engine::compact::replacement::{NewRows, Written, remove_left, replace};
use crate::engine::compact::ties::tied;
use crate::engine::compact::{lanes_of_others, remove_row_maps};
use crate::engine::evict::older::rows_that_hide;
use crate::engine::files::locks::wait_for_compact_lock;
use crate::engine::report::{PruneReport, Skipped};
use crate::engine::rows::row::{Row, RowVersion};
use crate::engine::rows::row_map::{RowMap, RowMapBuilder};
use crate::engine::runs::hashes::whole_block;
use crate::engine::state::State;
use crate::engine::state::registry::Followed;
use crate::engine::write::active::Active;
use crate::error::{Error, Result};
use crate::key::KeyRef;
use crate::names::SegmentId;
use crate::schema::{ROW_LAYOUT_VERSION, RowSchema};
use crate::segment::build::ColumnsBuilder;
use crate::segment::columns::BatchPart;
use crate::segment::reader::Segment;

/// Most rows of one step, unless it evicts a single segment: bounds its memory.
const STEP_ROWS: u64 = 1 << 20;
/// Most segments of one step.
const STEP_SEGMENTS: usize = 256;
/// Most tombstones of a batch.
const BATCH_ROWS: usize = 4096;
/// Tombstones of earlier steps are carried along in segments of up to this many rows.
const CARRIED_ROWS: u64 = 4096;

/// What eviction is to reach.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Goal {
    /// Evicts segments whose last commit timestamp is below this.
    pub before: Option<u64>,
    /// At most this many bytes in all files.
    pub bytes: Option<u64>,
    /// At most this many rows, other than tombstones.
    pub rows: Option<u64>,
    pub order: Eviction,
    pub dry_run: bool,
    /// How long to wait for another process that compacts or evicts.
    pub patience: Duration,
}

/// The rows of values in a store, including those that are not sealed.
///
/// # Errors
/// [`Error::Closed`].
fn rows_of_values(context: Context<'_>) -> Result<u64> {
    let unsealed = context.writer.with_lane(|lane| Ok(lane.unsealed_rows()))?;
    Ok(unsealed + rows_not_of_lane(context.state))
}

/// The rows of values in sealed segments, and those that other writers have not sealed.
pub(crate) fn rows_not_of_lane(state: &State) -> u64 {
    let followed: u64 = state.registry().lock().followed().map(|followed| followed.rows).sum();
    let version = state.versions().load();
    let sealed = version.segments().values().map(|segment| segment.seal.rows - segment.seal.tombstones);
    followed + sealed.sum::<u64>()
}

/// Evicts segments until `goal` is reached or no more can be evicted. O(segments) and, for each evicted one, the work
/// of [`rows_that_hide`] and O(rows) lookups, which keep the count of live keys exact.
///
/// # Errors
/// [`Error::Io`] of kind `TimedOut` if another process compacts or evicts; IO errors. Finished steps are kept.
pub(crate) fn evict(context: Context<'_>, goal: &Goal) -> Result<PruneReport> {
    let (start, state) = (Instant::now(), context.state);
    let _lock = wait_for_compact_lock(state.storage(), goal.patience)?;
    if !goal.dry_run {
        remove_left(context)?;
    }
    let alone = LeftAlone::now(context)?;
    let usage = state.usage()?.total();
    let mut report = PruneReport { dry_run: goal.dry_run, bytes_before: usage, ..PruneReport::default() };
    let mut left = candidates(state, &alone, goal, &mut report);
    (report.bytes_after, report.rows_after) = (usage, rows_of_values(context)?);
    loop {
        (context.stop)()?;
        let mut step = next_step(&mut left, goal, &report);
        if step.is_empty() {
            break;
        }
        step.retain(|segment| is_readable(segment) || skip(&mut report, segment, &segment.lost()));
        if goal.dry_run {
            foresee(state, &step, &mut report)?;
            continue;
        }
        match evict_step(context, &step, &alone, &mut report) {
            Err(error) if error.is_corrupt() => step.retain(|segment| skip(&mut report, segment, &error)),
            evicted => evicted?,
        }
        (report.bytes_after, report.rows_after) = (state.usage()?.total(), rows_of_values(context)?);
    }
    if !goal.dry_run && report.segments_evicted > 0 {
        remove_row_maps(state, context.lane)?;
        report.bytes_after = state.usage()?.total();
    }
    report.reached = goal.bytes.is_none_or(|bytes| report.bytes_after <= bytes)
        && goal.rows.is_none_or(|rows| report.rows_after <= rows)
        && (goal.before.is_none() || report.segments_in_use == 0 && report.skipped.is_empty());
    report.elapsed = start.elapsed();
    Ok(report)
}

/// Segments that are left alone: those of lanes that others write, and those whose order depends on their lane.
struct LeftAlone {
    others: Vec<u16>,
    tied: HashSet<SegmentId>,
}

impl LeftAlone {
    fn now(context: Context<'_>) -> Result<Self> {
        let others = lanes_of_others(context)?;
        Ok(Self { others, tied: tied(&context.state.versions().load_full(), context.lane)? })
    }

    fn contains(&self, segment: &Segment) -> bool {
        self.others.contains(&segment.id.lane) || self.tied.contains(&segment.id)
    }
}

/// The segments that may be evicted, the first one last. Counts those that are left alone.
fn candidates(state: &State, alone: &LeftAlone, goal: &Goal, report: &mut PruneReport) -> Vec<Arc<Segment>> {
    let version = state.versions().load();
    let mut found: Vec<(u64, Arc<Segment>)> = Vec::new();
    for segment in version.segments().values().filter(|segment| !segment.schema().is_tombstones()) {
        report.segments += 1;
        if alone.contains(segment) {
            let is_due = goal.before.is_none_or(|before| segment.seal.last_timestamp < before);
            report.segments_in_use += usize::from(is_due);
        } else {
            let reads = if goal.order == Eviction::ColdestFirst { segment.sampled_reads() } else { 0 };
            found.push((reads, Arc::clone(segment)));
        }
    }
    // Those that other writers have not sealed.
    let known = state.registry().lock();
    let is_due = |followed: &&Followed| goal.before.is_none_or(|before| followed.timestamp < before);
    report.segments_in_use += known.followed().filter(|followed| followed.rows > 0).filter(is_due).count();
    drop(known);
    found.sort_by_key(|(reads, segment)| Reverse((*reads, segment.seal.last_timestamp, segment.id)));
    found.into_iter().map(|(_, segment)| segment).collect()
}

/// Whether all rows of a segment are known. Otherwise closing salvages it.
fn is_readable(segment: &Segment) -> bool {
    whole_block(segment).is_some() && batches(segment).is_ok()
}

/// Takes the segments of the next step off the end of `left`.
fn next_step(left: &mut Vec<Arc<Segment>>, goal: &Goal, report: &PruneReport) -> Vec<Arc<Segment>> {
    let mut over_bytes = goal.bytes.map_or(0, |bytes| report.bytes_after.saturating_sub(bytes));
    let mut over_rows = goal.rows.map_or(0, |rows| report.rows_after.saturating_sub(rows));
    let (mut step, mut step_rows) = (Vec::new(), 0);
    let mut at = left.len();
    while at > 0 && step.len() < STEP_SEGMENTS {
        at -= 1;
        let Some(segment) = left.get(at) else { break };
        let is_old = goal.before.is_some_and(|before| segment.seal.last_timestamp < before);
        if !(is_old || over_bytes > 0 || over_rows > 0) {
            // In order of reads, an older segment may follow.
            if goal.before.is_none() {
                break;
            }
            continue;
        }
        if step_rows + segment.seal.rows > STEP_ROWS && !step.is_empty() {
            break;
        }
        step_rows += segment.seal.rows;
        over_bytes = over_bytes.saturating_sub(segment.len_bytes);
        over_rows = over_rows.saturating_sub(segment.seal.rows);
        step.push(left.remove(at));
    }
    step
}

/// Counts what evicting `step` would do.
fn foresee(state: &State, step: &[Arc<Segment>], report: &mut PruneReport) -> Result<()> {
    for segment in step {
        match live_rows(state, segment, Newer::Anywhere) {
            Ok(live) => report.keys_evicted += live.count(),
            Err(error) if error.is_corrupt() => {
                skip(report, segment, &error);
                continue;
            }
            Err(error) => return Err(error),
        }
        report.count(segment);
        report.bytes_after = report.bytes_after.saturating_sub(segment.len_bytes);
        report.rows_after = report.rows_after.saturating_sub(segment.seal.rows);
    }
    Ok(())
}

/// Evicts `step`, all of it or nothing.
fn evict_step(context: Context<'_>, step: &[Arc<Segment>], alone: &LeftAlone, report: &mut PruneReport) -> Result<()> {
    if step.is_empty() {
        return Ok(());
    }
    let state = context.state;
    let mut sources = step.to_vec();
    sources.extend(carried(state, step, alone));
    let hiding = rows_that_hide(state, &sources)?;
    let kind = state.identity().key_kind().ok_or_else(|| Error::internal("rows without a kind of keys"))?;
    let schema = Arc::new(RowSchema::tombstones(kind));
    // Counted while no row can be inserted. A key that cannot be read makes the number unknown.
    let mut live = Some(0_u64);
    let count = || {
        for segment in step {
            let rows = live_rows(state, segment, Newer::Anywhere).ok();
            live = live.zip(rows).map(|(live, rows)| live + rows.count());
        }
    };
    let write = |active| write_tombstones(state, active, &schema, &sources, &hiding);
    let rows = NewRows {
        schema: &schema,
        most_bytes: sources.iter().map(|source| source.len_bytes).sum(),
        // A batch for each commit could take more space than the rows that are evicted.
        row_times: state.identity().recorded().format >= ROW_LAYOUT_VERSION,
    };
    let (_, unlinked) = replace(context, &sources, rows, write, count)?;
    match live {
        Some(live) => state.live().add(-i64::try_from(live).unwrap_or(i64::MAX)),
        None => state.live().set(None),
    }
    forget_values(state, step);
    for segment in step {
        report.count(segment);
        state.metrics().evicted(segment.seal.rows, segment.len_bytes);
    }
    report.keys_evicted += live.unwrap_or(0);
    report.tombstones_kept += hiding.len() as u64;
    unlinked
}

/// The segments of tombstones that are replaced along with `step`: small ones that earlier steps left, so that there
/// are few, and those that are older than all values that stay, since nobody needs their tombstones any more.
fn carried(state: &State, step: &[Arc<Segment>], alone: &LeftAlone) -> Vec<Arc<Segment>> {
    let version = state.versions().load();
    let (tombstones, values): (Vec<_>, Vec<_>) =
        version.segments().values().partition(|segment| segment.schema().is_tombstones());
    let staying = values.iter().filter(|segment| step.iter().all(|leaving| leaving.id != segment.id));
    let oldest = staying.map(|segment| segment.seal.first_timestamp).min().unwrap_or(u64::MAX);
    let is_carried = |segment: &Segment| {
        let is_left = segment.front.header.compacted && segment.seal.rows <= CARRIED_ROWS;
        is_left || segment.seal.last_timestamp < oldest && segment.seal.rows <= STEP_ROWS
    };
    let carried = tombstones.into_iter().filter(|segment| is_carried(segment) && !alone.contains(segment));
    carried.filter(|segment| is_readable(segment)).cloned().collect()
}

/// Writes a tombstone in the place of each of `rows`, which are in commit order.
fn write_tombstones(
    state: &State,
    mut active: Active,
    schema: &Arc<RowSchema>,
    sources: &[Arc<Segment>],
    rows: &[(usize, u32)],
) -> Result<Written> {
    let mut maps: Vec<RowMapBuilder> = sources.iter().map(|source| RowMap::builder(source.rows())).collect();
    let has_times = active.layout().has_times;
    let at = |(source, row): &(usize, u32)| sources.get(*source).map(|source| RowVersion::of_segment(source, *row));
    let commits = rows.chunk_by(|a, b| has_times || at(a).map(|a| a.timestamp) == at(b).map(|b| b.timestamp));
    for commit in commits.flat_map(|commit| commit.chunks(BATCH_ROWS)) {
        let mut column = ColumnsBuilder::new(Arc::clone(schema), Codec::None)?;
        let mut times = Vec::with_capacity(commit.len());
        for (number, row) in commit {
            let (Some(source), Some(map)) = (sources.get(*number), maps.get_mut(*number)) else { continue };
            let lost = || source.lost();
            let found = Row::of_segment(source, *row)?.ok_or_else(lost)?;
            column.push(KeyRef::Bytes(found.key().ok_or_else(lost)?), &[])?;
            map.set(*row, active.rows() as u32 + column.rows() as u32 - 1);
            times.push(found.version().timestamp);
        }
        let columns = column.finish();
        let columns = if has_times { columns.with_times(&times) } else { columns };
        let timestamp = times.last().copied().unwrap_or(0);
        active.append(&[BatchPart::from(&columns)], timestamp, columns.hashes(state.hasher()).into_iter())?;
    }
    Ok((active, maps.into_iter().map(RowMapBuilder::finish).collect()))
}

/// Drops the values of evicted rows from the value cache, and lets the counts of reads decay.
fn forget_values(state: &State, step: &[Arc<Segment>]) {
    for segment in step.iter().filter(|_| state.value_cache().is_on()) {
        let Ok(batches) = batches(segment) else { return state.value_cache().supersede_all() };
        for batch in batches {
            let Ok(batch) = batch else { return state.value_cache().supersede_all() };
            let hashes = batch.columns.hashes(state.hasher());
            let keys = hashes.iter().enumerate().filter_map(|(row, hash)| Some((*hash, batch.columns.key(row)?)));
            state.value_cache().supersede(keys);
        }
    }
    state.versions().load().segments().values().for_each(|segment| segment.halve_reads());
}

/// Notes a damaged segment; returns that it is not evicted.
fn skip(report: &mut PruneReport, segment: &Segment, error: &Error) -> bool {
    segment.note_damaged();
    report.skipped.push(Skipped { path: segment.described().to_path_buf(), why: error.to_string() });
    false
}

/// The oldest last commit timestamp of the sealed segments of values. O(segments).
pub(crate) fn oldest(state: &State) -> Option<u64> {
    let version = state.versions().load();
    let values = version.segments().values().filter(|segment| !segment.schema().is_tombstones());
    values.map(|segment| segment.seal.last_timestamp).min()
}
