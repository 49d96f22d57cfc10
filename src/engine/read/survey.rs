//! The segments of a store, and a sample of its rows.

use std::collections::BTreeMap;
use std::path::PathBuf;

use crate::engine::lookup::find::Finder;
use crate::engine::read::scan::{live_row, sources_of_scan};
use crate::engine::rows::row::Source;
use crate::engine::state::State;
use crate::engine::state::batches::MemBatch;
use crate::error::Result;
use crate::key::Key;
use crate::names::{self, SegmentId};

/// The segments of a store and a sample of its keys; see [`crate::Reader::survey`].
#[derive(Debug, Clone, Default, PartialEq, serde::Serialize)]
#[non_exhaustive]
pub struct Survey {
    /// The segments, by lane and number, the active ones included.
    pub segments: Vec<SegmentSurvey>,
    /// Rows that wait to be written and are in no segment.
    pub rows_waiting: u64,
    /// Live keys of the sample, in storage order.
    pub keys: Vec<Key>,
}

/// One segment.
#[derive(Debug, Clone, Default, PartialEq, serde::Serialize)]
#[non_exhaustive]
pub struct SegmentSurvey {
    /// Its file.
    pub path: PathBuf,
    /// Whether it is sealed. Otherwise a writer appends to it, or was killed.
    pub sealed: bool,
    /// Whether compaction wrote it.
    pub compacted: bool,
    /// The lane of its writer.
    pub lane: u16,
    /// Rows, including dead ones and tombstones.
    pub rows: u64,
    /// Tombstones among them.
    pub tombstones: u64,
    /// Length of the file in bytes.
    pub bytes: u64,
    /// Commit timestamp of its oldest row, in seconds since 1970. A copy of a row keeps the timestamp.
    pub first_commit_s: f64,
    /// Commit timestamp of its newest row, in seconds since 1970.
    pub last_commit_s: f64,
    /// Rows of the sample that are in this segment.
    pub sampled: u64,
    /// Live rows among them: neither overwritten nor deleted.
    pub sampled_live: u64,
    /// Damaged rows among them.
    pub sampled_damaged: u64,
}

/// Describes all segments, and samples about `rows` rows, in runs of `run_rows` rows that follow each other on disk.
/// Rows have equal chances, and the same state of the store gives the same sample.
pub(crate) fn survey(state: &State, rows: u64, run_rows: u32) -> Result<Survey> {
    state.check_fork()?;
    let (sources, _scan) = sources_of_scan(state);
    let in_all: u64 = sources.iter().map(|(_, batch)| value_rows(batch)).sum();
    let run_rows = run_rows.max(1);
    let runs = (rows / u64::from(run_rows)).max(1) as f64;
    let (mut random, mut finder) = (Random(0x9e37_79b9_7f4a_7c15), Finder::new(1));
    let (mut segments, mut survey) = (BTreeMap::<SegmentId, SegmentSurvey>::new(), Survey::default());
    // Parts of runs that earlier sources did not get.
    let mut carried = 0.0;
    for (number, batch) in &sources {
        let mut waiting = SegmentSurvey::default();
        let segment = match batch.source.segment() {
            Some(id) => segments.entry(id).or_insert_with(|| described(state, id, &batch.source)),
            None => &mut waiting,
        };
        add_rows(segment, batch);
        carried += runs * value_rows(batch) as f64 / in_all.max(1) as f64;
        let due = carried.floor();
        carried -= due;
        for row in random.rows(batch.rows, due as u32, run_rows) {
            segment.sampled += 1;
            match live_row(state, &mut finder, *number, batch, row) {
                Ok(Some((key, _))) => {
                    segment.sampled_live += 1;
                    survey.keys.push(key);
                }
                Ok(None) => {}
                Err(error) if error.is_corrupt() => segment.sampled_damaged += 1,
                Err(error) => return Err(error),
            }
        }
        survey.rows_waiting += waiting.rows;
    }
    survey.segments = segments.into_values().collect();
    Ok(survey)
}

/// Rows that are not tombstones.
fn value_rows(batch: &MemBatch) -> u64 {
    if batch.source.is_tombstones() { 0 } else { u64::from(batch.rows) }
}

/// What is known of a segment without its rows.
fn described(state: &State, id: SegmentId, source: &Source) -> SegmentSurvey {
    let storage = state.storage();
    if let Source::Sealed(segment) = source {
        return SegmentSurvey {
            path: segment.described().to_path_buf(),
            sealed: true,
            compacted: segment.front.header.compacted,
            lane: id.lane,
            bytes: segment.len_bytes,
            first_commit_s: seconds(segment.seal.first_timestamp),
            last_commit_s: seconds(segment.seal.last_timestamp),
            ..SegmentSurvey::default()
        };
    }
    let path = names::active(id);
    SegmentSurvey {
        path: storage.describe(&path),
        lane: id.lane,
        // It may be sealed by now, under another name.
        bytes: storage.len_bytes(&path).or_else(|_| storage.len_bytes(&names::sealed(id))).unwrap_or(0),
        first_commit_s: f64::INFINITY,
        ..SegmentSurvey::default()
    }
}

fn add_rows(segment: &mut SegmentSurvey, batch: &MemBatch) {
    segment.rows += u64::from(batch.rows);
    segment.tombstones += u64::from(batch.rows) - value_rows(batch);
    if let Source::Committed { batch, .. } = &batch.source {
        segment.first_commit_s = segment.first_commit_s.min(seconds(batch.first_timestamp()));
        segment.last_commit_s = segment.last_commit_s.max(seconds(batch.frame.timestamp));
    }
}

/// A commit timestamp, which counts microseconds, in seconds.
fn seconds(timestamp: u64) -> f64 {
    timestamp as f64 / 1e6
}

/// Marsaglia's xorshift generator.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u32) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        ((u64::from(limit) * (self.0 >> 32)) >> 32) as u32
    }

    /// Distinct numbers below `rows`, in order: `runs` runs of `run_rows`, one in each of as many equal stretches.
    fn rows(&mut self, rows: u32, runs: u32, run_rows: u32) -> Vec<u32> {
        let runs = runs.min(rows.div_ceil(run_rows));
        let mut chosen = Vec::new();
        for run in 0..runs {
            let edge = |run: u32| (u64::from(rows) * u64::from(run) / u64::from(runs.max(1))) as u32;
            let (start, end) = (edge(run), edge(run + 1));
            let first = start + self.below((end - start).saturating_sub(run_rows) + 1);
            chosen.extend(first..end.min(first.saturating_add(run_rows)));
        }
        chosen
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chosen_rows_are_distinct_and_spread() {
        let mut random = Random(1);
        for (rows, runs, run_rows) in
            [(0, 3, 4), (1, 3, 4), (10, 3, 4), (10, 10, 1), (1000, 10, 16), (u32::MAX, 100, 8)]
        {
            let chosen = random.rows(rows, runs, run_rows);
            assert!(chosen.is_sorted_by(|a, b| a < b) && chosen.last().is_none_or(|last| *last < rows));
            let most = (u64::from(runs) * u64::from(run_rows)).min(u64::from(rows));
            assert!(chosen.len() as u64 <= most && (chosen.len() as u64 * 2 >= most), "{rows} {runs} {run_rows}");
        }
        let mut counts = [0_u32; 10];
        for _ in 0..10_000 {
            random.rows(10, 3, 1).iter().for_each(|row| counts[*row as usize] += 1);
        }
        assert!(counts.iter().all(|count| (2000..4000).contains(count)), "{counts:?}");
    }
}
