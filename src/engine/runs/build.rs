//! Builds a run: one file that finds the rows of sealed segments by their sorted hashes.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;

use crate::engine::rows::row::Source;
use crate::engine::runs::hashes::hash_block;
use crate::engine::runs::sources::Sources;
use crate::engine::state::State;
use crate::engine::state::batches::MemBatch;
use crate::engine::state::loaded_run::LoadedRun;
use crate::error::Result;
use crate::index::build::{RunBuilder, RunHeader};
use crate::index::merge::merge_blocks;
use crate::index::run::Run;
use crate::index::run_layout::Covered;
use crate::io::Storage;
use crate::names::SegmentId;
use crate::segment::reader::Segment;

/// Recorded in a run if the number of live keys is unknown.
const LIVE_UNKNOWN: u64 = u64::MAX;

fn covered(segment: &Segment) -> Covered {
    Covered {
        lane: segment.id.lane,
        sequence: segment.id.sequence,
        rows: segment.seal.rows,
        seal_crc: segment.seal.crc,
        first_timestamp: segment.seal.first_timestamp,
        last_timestamp: segment.seal.last_timestamp,
    }
}

/// Identifies a set of segments.
fn fingerprint_of(mut ids: Vec<(SegmentId, u32)>) -> u64 {
    ids.sort_unstable();
    let mut bytes = Vec::with_capacity(ids.len() * 14);
    for (id, crc) in ids {
        bytes.extend_from_slice(&id.lane.to_le_bytes());
        bytes.extend_from_slice(&id.sequence.to_le_bytes());
        bytes.extend_from_slice(&crc.to_le_bytes());
    }
    xxhash_rust::xxh3::xxh3_64(&bytes)
}

fn ids(run: &Run) -> impl Iterator<Item = (SegmentId, u32)> {
    run.covered().iter().map(|covered| (covered.id(), covered.seal_crc))
}

/// The fingerprint of a run over `segments` together with `others`.
pub(crate) fn fingerprint<'a>(segments: &[Arc<Segment>], others: impl Iterator<Item = &'a Run>) -> u64 {
    let of_segments = segments.iter().map(|segment| (segment.id, segment.seal.crc));
    fingerprint_of(of_segments.chain(others.flat_map(ids)).collect())
}

/// Builds a run over `segments` into `sink`. `live`: the live keys of the whole store afterwards, if known; a run that
/// covers everything counts them itself.
pub(crate) fn build(
    state: &State,
    segments: &[Arc<Segment>],
    known: u64,
    live: Option<u64>,
    covers_all: bool,
    sink: &mut dyn FnMut(&[u8]) -> Result<()>,
) -> Result<u64> {
    let mut sources = Sources::new(state);
    let mut blocks = Vec::with_capacity(segments.len());
    for segment in segments {
        let start = sources.add(0, MemBatch { source: Source::Sealed(Arc::clone(segment)), rows: segment.rows() });
        blocks.push((hash_block(state, segment)?, start));
    }
    let identity = state.identity().recorded();
    let header = RunHeader {
        store: *identity.store.as_bytes(),
        hash_id: identity.hash_id,
        hash_seed: identity.hash_seed,
        version: identity.format,
        covered: segments.iter().map(|segment| covered(segment)).collect(),
        known_fingerprint: known,
    };
    let mut builder = RunBuilder::new(header, sources.rows(), sink)?;
    let mut values = 0_u64;
    merge_blocks(&blocks, &mut |rows| sources.keep_newest(rows), &mut |entries| {
        values += sources.count_values(entries);
        builder.extend(entries)
    })?;
    let live = live.or(covers_all.then_some(values)).unwrap_or(LIVE_UNKNOWN);
    builder.finish(live)
}

/// A run over `segments` in memory: for readers, and to replace a damaged run.
pub(crate) fn memory_run(state: &State, segments: Vec<Arc<Segment>>, covers_all: bool) -> Result<LoadedRun> {
    let mut bytes = Vec::new();
    let known = fingerprint(&segments, std::iter::empty());
    build(state, &segments, known, None, covers_all, &mut |part| {
        bytes.extend_from_slice(part);
        Ok(())
    })?;
    let run = Run::open("(index run in memory)".into(), Bytes::from(bytes))?;
    Ok(LoadedRun::new(run, None, segments))
}

/// The count of live keys that `run` records, if it holds for the state of `runs`. Compaction changes no count, so a
/// replaced segment stands for its replacements.
pub(crate) fn remembered_live<'a>(run: &Run, runs: impl Iterator<Item = &'a Run>) -> Option<u64> {
    let mut rows = 0_u64;
    let runs = runs.inspect(|run| rows = run.covered().iter().fold(rows, |rows, of| rows.saturating_add(of.rows)));
    let known = fingerprint_of(runs.flat_map(ids).collect());
    (run.live_keys() <= rows && run.known_fingerprint() == known).then(|| run.live_keys())
}

/// Whether a run is of this store.
pub(crate) fn is_of_store(state: &State, run: &Run) -> bool {
    let identity = state.identity().recorded();
    run.store() == identity.store.as_bytes() && run.hash() == (identity.hash_id, identity.hash_seed)
}

/// Opens the run at `path`, whole.
pub(crate) fn open_run(storage: &dyn Storage, path: &Path) -> Result<Run> {
    let file = storage.open(path, 0)?;
    let len = usize::try_from(file.len_bytes()?).unwrap_or(usize::MAX);
    Run::open(storage.describe(path), file.bytes(0, len)?)
}
