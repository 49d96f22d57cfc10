//! Segments whose rows would change their order if they moved to another lane.

use std::collections::{BTreeMap, HashSet};

use crate::engine::state::versions::Version;
use crate::error::Result;
use crate::names::SegmentId;
use crate::segment::reader::Segment;

/// The segments of other lanes than `lane` that have a commit timestamp in common with a segment of a third lane: there
/// the lane decides which row is newer. O(segments · lanes); O(commits) of segments that were written while another lane
/// was, and O(rows) of those whose rows have commit timestamps of their own.
///
/// # Errors
/// IO errors.
pub(crate) fn tied(version: &Version, lane: u16) -> Result<HashSet<SegmentId>> {
    let spans = Spans::of(version);
    let mut moving: Vec<(u64, SegmentId)> = Vec::new();
    for segment in version.segments().values().filter(|segment| segment.id.lane != lane && spans.overlap(segment)) {
        moving.extend(timestamps(segment)?.into_iter().map(|timestamp| (timestamp, segment.id)));
    }
    moving.sort_unstable();
    let mut tied = HashSet::new();
    let (Some(first), Some(last)) = (moving.first(), moving.last()) else { return Ok(tied) };
    let overlaps = |segment: &Segment| segment.seal.first_timestamp <= last.0 && segment.seal.last_timestamp >= first.0;
    for segment in version.segments().values().filter(|segment| overlaps(segment) && spans.overlap(segment)) {
        for timestamp in timestamps(segment)? {
            let start = moving.partition_point(|(other, _)| *other < timestamp);
            let same = moving.iter().skip(start).take_while(|(other, _)| *other == timestamp);
            tied.extend(same.map(|(_, id)| *id).filter(|id| id.lane != segment.id.lane));
        }
    }
    Ok(tied)
}

/// From which commit timestamp to which the segments of each lane reach.
struct Spans {
    /// For each lane: the first timestamps in order, each with the latest timestamp of the segments up to there.
    lanes: BTreeMap<u16, Vec<(u64, u64)>>,
}

impl Spans {
    fn of(version: &Version) -> Self {
        let mut lanes: BTreeMap<u16, Vec<(u64, u64)>> = BTreeMap::new();
        for segment in version.segments().values() {
            let span = (segment.seal.first_timestamp, segment.seal.last_timestamp);
            lanes.entry(segment.id.lane).or_default().push(span);
        }
        for spans in lanes.values_mut() {
            spans.sort_unstable();
            let mut latest = 0;
            for (_, last) in spans {
                latest = latest.max(*last);
                *last = latest;
            }
        }
        Self { lanes }
    }

    /// Whether a segment of another lane has timestamps in the span of `segment`.
    fn overlap(&self, segment: &Segment) -> bool {
        let others = self.lanes.iter().filter(|(lane, _)| **lane != segment.id.lane);
        others.map(|(_, spans)| spans).any(|spans| {
            let begun = spans.partition_point(|(first, _)| *first <= segment.seal.last_timestamp);
            let latest = begun.checked_sub(1).and_then(|at| spans.get(at));
            latest.is_some_and(|(_, latest)| *latest >= segment.seal.first_timestamp)
        })
    }
}

/// The commit timestamps of a segment; none if they cannot be read.
fn timestamps(segment: &Segment) -> Result<Vec<u64>> {
    match segment.batches() {
        Ok(_) if segment.front.header.row_times => {
            let mut times: Vec<u64> = (0..segment.rows()).filter_map(|row| segment.timestamp(row)).collect();
            times.sort_unstable();
            times.dedup();
            Ok(times)
        }
        Ok(batches) => Ok(batches.frames().iter().map(|frame| frame.timestamp).collect()),
        Err(error) if error.is_corrupt() => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use crate::io::Storage;
    use crate::io::memory::MemoryStorage;
    use crate::{Compaction, Lane, Options, Store};

    fn open(storage: &MemoryStorage, lane: u16) -> Store {
        let options = Options { clock: || 1_000_000, ..Options::new().synchronous(true).lane(Lane::Number(lane)) };
        Store::open_on(std::sync::Arc::new(storage.clone()), options).unwrap()
    }

    fn put(storage: &MemoryStorage, lane: u16, keys: &[u64], value: f32) {
        let store = open(storage, lane);
        store.put_rows(keys, &[1], &vec![value; keys.len()]).unwrap();
        store.close().unwrap();
    }

    #[test]
    fn a_row_stays_newer_than_one_that_was_put_at_the_same_time() {
        let storage = MemoryStorage::new();
        open(&storage, 0).close().unwrap();
        let copy = storage.power_loss();
        put(&storage, 1, &[0, 1, 2, 3, 4, 5], 1.0);
        put(&copy, 2, &[0, 10], 2.0);
        let path = Path::new("segments/0002-0000000001.arrow");
        storage.write(path, &copy.read(path).unwrap()).unwrap();
        put(&storage, 0, &[10], 3.0);
        let store = open(&storage, 0);
        let value = || store.get(0_u64).unwrap().unwrap().into_tensor().unwrap().to_vec::<f32>().unwrap();
        assert_eq!(value(), [2.0]);
        store.compact(&Compaction::new().live_share(0.5).join(false)).unwrap();
        assert_eq!(value(), [2.0]);
        store.compact(&Compaction::new()).unwrap();
        assert_eq!(value(), [2.0]);
        store.close().unwrap();
        assert!(storage.kind(path).unwrap().is_some());
    }
}
