//! Merges sealed segments that no run covers, and runs, into one new run on disk.

use std::collections::HashSet;
use std::io::IoSlice;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::engine::observe::Operation;
use crate::engine::runs::build::{build, fingerprint, open_run};
use crate::engine::runs::plan::{Merges, Purpose};
use crate::engine::runs::publish::publish_run;
use crate::engine::state::State;
use crate::engine::state::loaded_run::LoadedRun;
use crate::engine::state::versions::Version;
use crate::error::Result;
use crate::io::{AppendFile, Durability};
use crate::names::{self, SegmentId};
use crate::segment::reader::Segment;

/// Merges all sealed segments that no run covers (except in a long merge), and runs as `purpose` requires, into one new
/// run of `lane`. If all rows are sealed, the run records the count of live keys. Returns whether there was anything to
/// merge. O(rows merged), sequential.
///
/// # Errors
/// IO errors. The store is then unchanged: runs are derived, and nothing depends on an unpublished one.
pub(crate) fn merge_runs(state: &State, lane: u16, merges: &Merges, purpose: Purpose) -> Result<bool> {
    // While rows are put, the count does not match the sealed segments, and reading all batches would block puts.
    let waited_for = matches!(purpose, Purpose::Rest | Purpose::One);
    let (version, live) = if waited_for { counted_version(state) } else { (settled_version(state), None) };
    let fresh = if purpose == Purpose::Long { Vec::new() } else { version.uncovered() };
    if fresh.is_empty() && purpose == Purpose::Short {
        return Ok(false);
    }
    let claim = merges.claim(state, fresh.iter().map(|segment| u64::from(segment.rows())).sum(), purpose);
    let absorbed = claim.runs();
    let mut segments: Vec<Arc<Segment>> =
        absorbed.iter().flat_map(|run| run.segments().iter().cloned()).chain(fresh).collect();
    if segments.is_empty() {
        return Ok(false);
    }
    let span = state.metrics().begin(Operation::Merge);
    span.record("segments", segments.len() as u64);
    segments.sort_by_key(|segment| segment.id);
    segments.dedup_by_key(|segment| segment.id);
    let covers_all = segments.iter().map(|segment| &segment.id).eq(version.segments().keys());
    let stay = |run: &&Arc<LoadedRun>| !absorbed.iter().any(|gone| gone.is_same_run(run));
    let known = fingerprint(&segments, version.runs().iter().filter(stay).map(|run| run.run()));

    let (id, temporary, mut file) = create_run(state, lane)?;
    file.write_early(state.options().durability > Durability::Buffered);
    build(state, &segments, known, live, covers_all, &mut |bytes| file.append(&[IoSlice::new(bytes)]))?;
    file.sync(state.options().durability)?;
    drop(file);
    let path = names::run(id);
    state.storage().rename(&temporary, &path)?;
    let run = open_run(state.storage(), &path)?;
    // Read back here, so that the first puts and gets that touch a page do not have to.
    run.verify_all()?;
    let run = LoadedRun::new(run, Some(id), segments);
    // A write-only handle needs no cached descriptors, and they take memory.
    if state.metrics().any_hits() {
        let absorbed: HashSet<_> = absorbed.iter().flat_map(|run| run.segments()).map(|segment| segment.id).collect();
        run.locator().cache_batches(run.segments(), |segment| !absorbed.contains(&segment.id));
    }
    // A put may still be inserting rows of the run into the memtable. Once it is done, it cannot take them for older
    // rows.
    drop(state.memtable().lock_inserts());
    publish_run(state, &Arc::new(run), absorbed);
    if state.options().durability > Durability::Buffered {
        state.storage().sync_dir(Path::new(names::RUNS))?;
    }
    // A lane removes only its own files; those of other lanes are found stale and ignored.
    for name in absorbed.iter().filter_map(|run| run.name()).filter(|name| name.lane == lane) {
        state.storage().remove(&names::run(name))?;
    }
    state.metrics().run_built();
    Ok(true)
}

/// The version, while no segment's rows are partly inserted into the memtable.
fn settled_version(state: &State) -> Arc<Version> {
    let _known = state.registry().lock();
    state.versions().load_full()
}

/// The version, and the count of live keys if it holds for the version: no batch waits, and no segment is active.
fn counted_version(state: &State) -> (Arc<Version>, Option<u64>) {
    // Meanwhile, no refresh and no put changes either.
    let _known = state.registry().lock();
    let _inserting = state.memtable().lock_inserts();
    let version = state.versions().load_full();
    let sealed = state
        .memtable()
        .sorted()
        .iter()
        .all(|(_, batch)| batch.source.segment().is_some_and(|id| version.segments().contains_key(&id)));
    let live = if sealed { state.live().get() } else { None };
    (version, live)
}

/// A new file for a run, under its temporary name.
fn create_run(state: &State, lane: u16) -> Result<(SegmentId, PathBuf, Box<dyn AppendFile>)> {
    // Two concurrent merges must not take the same number.
    let _known = state.registry().lock();
    let entries = state.storage().list(Path::new(names::RUNS))?;
    let taken = entries
        .iter()
        .filter_map(|entry| names::parse_run(&entry.name).or_else(|| names::parse_temporary_run(&entry.name)))
        .filter(|id| id.lane == lane)
        .map(|id| id.sequence);
    let sequence = SegmentId::next_sequence(taken).ok_or_else(|| SegmentId::exhausted(lane))?;
    let id = SegmentId { lane, sequence };
    let temporary = names::temporary_run(id);
    let file = state.storage().create(&temporary)?;
    Ok((id, temporary, file))
}
