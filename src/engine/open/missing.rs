//! Finds sealed segments that are missing. There is no manifest, but segments are also named elsewhere: by index runs
//! that cover them, by sync records, and by the numbers of a lane, which have no gaps except void numbers.

use std::collections::{BTreeMap, BTreeSet};

use crate::engine::files::listing::{Listing, list};
use crate::engine::files::quarantine::{MissingIds, told};
use crate::engine::files::sync_log::SyncLogs;
use crate::engine::open::inventory::Inventory;
use crate::engine::state::State;
use crate::engine::write::numbers::FreeNumbers;
use crate::error::Result;
use crate::names::SegmentId;

/// Intervals of a lane's numbers, ends included.
type Intervals = Vec<(u64, u64)>;

/// The numbers that lanes have given out, as far as known.
#[derive(Debug, Default)]
pub(crate) struct Numbers {
    /// Numbers whose segments are accounted for: found, or known not to exist.
    explained: BTreeMap<u16, Intervals>,
    /// Segments that sync logs record as synced.
    synced: Vec<SegmentId>,
    /// Lanes whose sync logs this user may not read: their void numbers are unknown.
    unknown: Vec<u16>,
}

impl Numbers {
    fn explain(&mut self, first: SegmentId, last: u64) {
        self.explained.entry(first.lane).or_default().push((first.sequence, last));
    }

    fn look(state: &State, found: &Inventory, listing: &Listing, covered: &[(SegmentId, u64)]) -> Result<Self> {
        let mut numbers = Self::default();
        let told = told(state.storage())?;
        let lanes = listing.ids().chain(covered.iter().map(|(id, _)| *id)).map(|id| id.lane);
        let logs = SyncLogs::read(state.storage())?;
        for (id, is_void) in logs.segments(state.identity().store(), lanes) {
            if is_void { numbers.explain(id, id.sequence) } else { numbers.synced.push(id) }
        }
        for id in listing.ids().chain(found.replaced_ids.iter().copied()).chain(told.segments) {
            numbers.explain(id, id.sequence);
        }
        for missing in told.missing.iter().chain(&told.missing_acknowledged) {
            numbers.explain(missing.first, missing.last);
        }
        numbers.unknown = logs.unreadable;
        numbers.explained.values_mut().for_each(|intervals| *intervals = joined(std::mem::take(intervals)));
        Ok(numbers)
    }

    fn is_explained(&self, id: SegmentId) -> bool {
        let Some(intervals) = self.explained.get(&id.lane) else { return false };
        let before = intervals.partition_point(|(first, _)| *first <= id.sequence).checked_sub(1);
        before.and_then(|before| intervals.get(before)).is_some_and(|(_, last)| *last >= id.sequence)
    }

    /// The numbers from 1 to `newest` of `lane` that are not accounted for.
    fn gaps(&self, lane: u16, newest: u64) -> Intervals {
        let mut gaps = Vec::new();
        let mut next = 1_u64;
        for &(first, last) in self.explained.get(&lane).into_iter().flatten() {
            if first > newest {
                break;
            }
            if first > next {
                gaps.push((next, first - 1));
            }
            next = next.max(last.saturating_add(1));
        }
        if next <= newest {
            gaps.push((next, newest));
        }
        gaps
    }
}

/// Sorts and joins intervals.
fn joined(mut intervals: Intervals) -> Intervals {
    intervals.sort_unstable();
    let mut joined: Intervals = Vec::with_capacity(intervals.len());
    for (first, last) in intervals {
        match joined.last_mut() {
            Some((_, end)) if first <= end.saturating_add(1) => *end = (*end).max(last),
            _ => joined.push((first, last)),
        }
    }
    joined
}

/// Sealed segments that are missing. `covered`: the segments, with their rows, that index runs of this store name. A
/// second look distinguishes loss from concurrent changes by other processes. O(segments · log segments).
///
/// # Errors
/// IO errors.
pub(crate) fn missing(
    state: &State,
    found: &Inventory,
    listing: &Listing,
    covered: &[(SegmentId, u64)],
) -> Result<(Vec<MissingIds>, Numbers)> {
    let numbers = Numbers::look(state, found, listing, covered)?;
    let first = find(found, covered, &numbers);
    if first.is_empty() {
        return Ok((first, numbers));
    }
    let again = find(found, covered, &Numbers::look(state, found, &list(state.storage())?, covered)?);
    Ok((first.into_iter().filter(|missing| again.contains(missing)).collect(), numbers))
}

fn find(found: &Inventory, covered: &[(SegmentId, u64)], numbers: &Numbers) -> Vec<MissingIds> {
    let mut newest: BTreeMap<u16, u64> = BTreeMap::new();
    let known = found.own().chain(covered.iter().map(|(id, _)| *id)).chain(numbers.synced.iter().copied());
    for id in known.filter(|id| id.sequence < SegmentId::MOST_SEQUENCE) {
        let newest = newest.entry(id.lane).or_default();
        *newest = (*newest).max(id.sequence);
    }
    let mut missing = Vec::new();
    let mut add = |first: SegmentId, last: u64, rows: Option<u64>, why: &str| {
        missing.push(MissingIds { first, last, rows, why: why.into() });
    };
    let mut rows_of: BTreeMap<SegmentId, u64> = covered.iter().copied().collect();
    rows_of.retain(|id, _| !numbers.is_explained(*id));
    for (lane, newest) in newest {
        if numbers.unknown.contains(&lane) {
            // If the log cannot be read, a gap proves nothing, but a run does.
            let of_lane = rows_of.range(SegmentId { lane, sequence: 0 }..=SegmentId { lane, sequence: u64::MAX });
            of_lane.for_each(|(id, rows)| add(*id, id.sequence, Some(*rows), "an index run covers it"));
            continue;
        }
        for (mut first, last) in numbers.gaps(lane, newest) {
            // Segments that a run covers are reported one by one, with their rows.
            let within = rows_of.range(SegmentId { lane, sequence: first }..=SegmentId { lane, sequence: last });
            for (id, rows) in within {
                if first < id.sequence {
                    add(SegmentId { lane, sequence: first }, id.sequence - 1, None, GAP);
                }
                add(*id, id.sequence, Some(*rows), "an index run covers it");
                first = id.sequence.saturating_add(1);
            }
            if first <= last {
                let why = if last == newest { "the sync log says that it was synced" } else { GAP };
                add(SegmentId { lane, sequence: first }, last, None, why);
            }
        }
    }
    missing
}

const GAP: &str = "its lane has written later segments, and nothing says that this one was removed";

/// The numbers of `lane` after all that segments of this store, runs and sync logs name.
pub(crate) fn free_numbers(
    numbers: &Numbers,
    lane: u16,
    found: &Inventory,
    listing: &Listing,
    covered: &[(SegmentId, u64)],
) -> FreeNumbers {
    let own: BTreeSet<SegmentId> = found.own().collect();
    let known = own.iter().copied().chain(covered.iter().map(|(id, _)| *id)).chain(numbers.synced.iter().copied());
    let of_lane = |id: &SegmentId| id.lane == lane;
    // A larger number is not ours, and must not use up the numbers before it.
    let known = known.filter(of_lane).filter(|id| id.sequence < SegmentId::MOST_SEQUENCE);
    let next = known.map(|id| id.sequence).max().unwrap_or(0) + 1;
    let strangers = listing.ids().chain(listing.copies.iter().copied()).filter(of_lane).filter(|id| !own.contains(id));
    let strangers = strangers.map(|id| id.sequence).collect();
    FreeNumbers::new(next, numbers.explained.get(&lane).cloned().unwrap_or_default(), strangers)
}
