//! Building runs: from the sorted index blocks of sealed segments to one file that finds their rows.

use std::collections::HashSet;
use std::hash::BuildHasherDefault;
use std::io::IoSlice;
use std::ops::{Bound, ControlFlow, Range};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;

use crate::engine::lookup::unread::ordered_keys;
use crate::engine::rows::row::{Age, Row, Slot, SlotHasher, Source};
use crate::engine::runs::plan::{Merges, Purpose};
use crate::engine::state::{Core, LoadedRun, View};
use crate::error::{Error, Result};
use crate::index::block::{self, HashBlock};
use crate::index::build::{RunBuilder, RunHeader};
use crate::index::merge::{HashRow, merge_blocks};
use crate::index::run::Run;
use crate::index::run_layout::Covered;
use crate::io::{AppendFile, Durability, Storage};
use crate::names::{self, SegmentId};
use crate::segment::reader::Segment;

/// Says in a run that the number of live keys was not known.
const LIVE_UNKNOWN: u64 = u64::MAX;

/// Rows of several sources under one numbering, as in a run.
#[derive(Debug)]
pub(crate) struct Sources {
    /// Whether rows with one hash are of one key.
    hash_is_key: bool,
    slots: Vec<(u32, Slot)>,
    starts: Vec<u64>,
    end: u64,
    /// The rows that say that their keys were deleted, in order: sources hold nothing else, or none.
    tombstones: Vec<Range<u64>>,
}

impl Sources {
    /// No rows of the store yet.
    pub(crate) fn new(core: &Core) -> Self {
        let hash_is_key = core.hasher.is_whole();
        Self { hash_is_key, slots: Vec::new(), starts: Vec::new(), end: 0, tombstones: Vec::new() }
    }

    /// Adds a source; returns the number of its first row.
    pub(crate) fn add(&mut self, number: u32, slot: Slot) -> u64 {
        let start = self.end;
        self.end += u64::from(slot.rows);
        if slot.source.is_tombstones() {
            self.tombstones.push(start..self.end);
        }
        self.starts.push(start);
        self.slots.push((number, slot));
        start
    }

    fn at(&self, row: u64) -> Option<(&(u32, Slot), u32)> {
        let position = self.starts.partition_point(|start| *start <= row).checked_sub(1)?;
        let within = row - self.starts.get(position)?;
        Some((self.slots.get(position)?, u32::try_from(within).ok()?))
    }

    fn row(&self, row: u64) -> Result<Option<Row<'static>>> {
        match self.at(row) {
            Some(((number, slot), within)) => slot.source.row(*number, within),
            None => Ok(None),
        }
    }

    /// How many of `entries` do not say that their key was deleted. O(entries · log tombstone sources).
    pub(crate) fn count_values(&self, entries: &[HashRow]) -> u64 {
        if self.tombstones.is_empty() {
            return entries.len() as u64;
        }
        let is_value = |row: u64| {
            let before = self.tombstones.partition_point(|rows| rows.start <= row).checked_sub(1);
            before.and_then(|last| self.tombstones.get(last)).is_none_or(|rows| !rows.contains(&row))
        };
        entries.iter().filter(|(_, row)| is_value(*row)).count() as u64
    }

    /// Of rows that share a hash, keeps the newest of each key. A row that cannot be read stays, unless a newer one with its
    /// hash can be: whoever looks it up must learn of the damage, as long as it may hide something.
    pub(crate) fn keep_newest(&self, rows: &mut Vec<u64>) -> Result<()> {
        let mut newest: Vec<(Row<'static>, u64)> = Vec::with_capacity(rows.len());
        let mut unread: Vec<(Age, u64)> = Vec::new();
        for &number in rows.iter() {
            let Ok(Some(row)) = self.row(number) else {
                let age = self.at(number).map_or(Age::NEWEST, |((_, slot), within)| slot.source.age(within));
                unread.push((age, number));
                continue;
            };
            match newest.iter_mut().find(|(kept, _)| kept.key() == row.key()) {
                Some(kept) if kept.0.age() < row.age() => *kept = (row, number),
                Some(_) => {}
                None => newest.push((row, number)),
            }
        }
        if self.hash_is_key && !unread.is_empty() {
            // All are rows of one key: the newest is left, and what is no older than one that cannot be read.
            unread.sort_unstable();
            unread.drain(..unread.len() - 1);
            unread.retain(|(age, _)| newest.iter().all(|(row, _)| row.age() < *age));
            newest.retain(|(row, _)| unread.iter().all(|(age, _)| *age < row.age()));
        }
        rows.clear();
        rows.extend(newest.into_iter().map(|(_, number)| number).chain(unread.into_iter().map(|(_, number)| number)));
        rows.sort_unstable();
        Ok(())
    }
}

/// The sorted hashes of a segment: its index block, or, if that is damaged, computed anew from the keys.
pub(crate) fn hash_block(core: &Core, segment: &Segment) -> Result<HashBlock> {
    if let Ok(bytes) = segment.index_block()
        && let Ok(block) = HashBlock::parse(bytes)
        && block.len() == segment.rows() as usize
    {
        return Ok(block);
    }
    let (described, mut pairs) = (segment.described(), Vec::new());
    // The seal's count is bounded by the length of its index block.
    pairs.try_reserve_exact(segment.rows() as usize).map_err(|_| too_many_rows(segment))?;
    let mut unread = Vec::new();
    for (number, frame) in segment.batches()?.frames().iter().enumerate() {
        for (row, within) in (frame.first_row as u32..).zip(0..frame.rows as usize) {
            let batch = segment.batch_of_row(number, within);
            match batch.as_ref().ok().and_then(|batch| batch.columns.key(within)) {
                Some(key) => pairs.push((core.hasher.hash(key), row)),
                None => unread.push(row),
            }
        }
    }
    // Rows that cannot be read have no keys any more, unless the ordered keys have them.
    if !unread.is_empty()
        && let Some(fst) = ordered_keys(segment)
    {
        let walked = fst.range(Bound::Unbounded, Bound::Unbounded, &mut |key, row| {
            if unread.binary_search(&row).is_ok() {
                pairs.push((core.hasher.hash(key), row));
            }
            Ok(ControlFlow::Continue(()))
        });
        drop(walked);
    }
    HashBlock::parse(block::encode(pairs.into_iter()).into()).map_err(|what| Error::corrupt(&**described, 0, what))
}

fn too_many_rows(segment: &Segment) -> Error {
    Error::io(
        "index the rows of",
        &**segment.described(),
        std::io::Error::new(std::io::ErrorKind::OutOfMemory, format!("{} rows do not fit into memory", segment.rows())),
    )
}

fn covered(segment: &Segment) -> Covered {
    Covered {
        lane: segment.id.lane,
        sequence: segment.id.sequence,
        rows: segment.seal.rows,
        seal_crc: segment.seal.crc,
        first_stamp: segment.seal.first_stamp,
        last_stamp: segment.seal.last_stamp,
    }
}

/// What a set of segments is recognised by.
pub(crate) fn fingerprint<'a>(segments: impl Iterator<Item = &'a Arc<Segment>>) -> u64 {
    let mut ids: Vec<_> = segments.map(|segment| (segment.id, segment.seal.crc)).collect();
    ids.sort_unstable();
    let mut bytes = Vec::with_capacity(ids.len() * 14);
    for (id, crc) in ids {
        bytes.extend_from_slice(&id.lane.to_le_bytes());
        bytes.extend_from_slice(&id.sequence.to_le_bytes());
        bytes.extend_from_slice(&crc.to_le_bytes());
    }
    xxhash_rust::xxh3::xxh3_64(&bytes)
}

/// Builds a run over `segments` into `sink`. `live`: what the whole store's count will be, if known; a run that covers
/// everything knows by itself.
fn build(
    core: &Core,
    segments: &[Arc<Segment>],
    known: u64,
    live: Option<u64>,
    covers_all: bool,
    sink: &mut dyn FnMut(&[u8]) -> Result<()>,
) -> Result<u64> {
    let mut sources = Sources::new(core);
    let mut blocks = Vec::with_capacity(segments.len());
    for segment in segments {
        let start = sources.add(0, Slot { source: Source::Sealed(Arc::clone(segment)), rows: segment.rows() });
        blocks.push((hash_block(core, segment)?, start));
    }
    let header = RunHeader {
        store: *core.identity.store.as_bytes(),
        hash_id: core.identity.hash_id,
        hash_seed: core.identity.hash_seed,
        version: core.identity.format,
        covered: segments.iter().map(|segment| covered(segment)).collect(),
        known_fingerprint: known,
    };
    let mut builder = RunBuilder::new(header, sources.end, sink)?;
    let mut values = 0_u64;
    merge_blocks(&blocks, &mut |rows| sources.keep_newest(rows), &mut |entries| {
        values += sources.count_values(entries);
        builder.extend(entries)
    })?;
    let live = live.or(covers_all.then_some(values)).unwrap_or(LIVE_UNKNOWN);
    builder.finish(live)
}

/// A run over `segments` that lives in memory: for readers, and in place of a damaged one.
pub(crate) fn memory_run(core: &Core, segments: Vec<Arc<Segment>>, covers_all: bool) -> Result<LoadedRun> {
    let mut bytes = Vec::new();
    let known = fingerprint(segments.iter());
    build(core, &segments, known, None, covers_all, &mut |part| {
        bytes.extend_from_slice(part);
        Ok(())
    })?;
    let run = Run::open("(index run in memory)".into(), Bytes::from(bytes))?;
    Ok(LoadedRun::new(run, None, segments))
}

/// The count of live keys that a run remembers, if the state it knew is that of `segments`.
pub(crate) fn remembered_live<'a>(run: &Run, segments: impl Iterator<Item = &'a Arc<Segment>>) -> Option<u64> {
    let mut rows = 0_u64;
    let known = fingerprint(segments.inspect(|segment| rows += u64::from(segment.rows())));
    (run.live_keys() <= rows && run.known_fingerprint() == known).then(|| run.live_keys())
}

/// Segments that no run of `view` covers.
pub(crate) fn uncovered(view: &View) -> Vec<Arc<Segment>> {
    let covered: HashSet<SegmentId> =
        view.runs.iter().flat_map(|run| run.segments.iter().map(|segment| segment.id)).collect();
    view.segments.values().filter(|segment| !covered.contains(&segment.id)).cloned().collect()
}

/// Merges all sealed segments that no run covers (but in a long merge), and runs as `purpose` says, into one new run of
/// `lane`. If nothing but sealed segments exists, the count of live keys is written down. Returns whether there was
/// anything to merge. O(rows merged), sequential.
///
/// # Errors
/// IO errors. The store is as before then: runs are derived, and nothing depends on one that was not published.
pub(crate) fn build_run(core: &Core, lane: u16, merges: &Merges, purpose: Purpose) -> Result<bool> {
    // While rows are put, the count holds for no state that is sealed, and looking at all slots would keep puts waiting.
    let waited_for = matches!(purpose, Purpose::Rest | Purpose::One);
    let (view, live) = if waited_for { state(core) } else { (settled_view(core), None) };
    let fresh = if purpose == Purpose::Long { Vec::new() } else { uncovered(&view) };
    if fresh.is_empty() && purpose == Purpose::Short {
        return Ok(false);
    }
    let claim = merges.claim(core, fresh.iter().map(|segment| u64::from(segment.rows())).sum(), purpose);
    let absorbed = &claim.runs;
    let mut segments: Vec<Arc<Segment>> =
        absorbed.iter().flat_map(|run| run.segments.iter().cloned()).chain(fresh).collect();
    if segments.is_empty() {
        return Ok(false);
    }
    segments.sort_by_key(|segment| segment.id);
    segments.dedup_by_key(|segment| segment.id);
    let covers_all = segments.iter().map(|segment| &segment.id).eq(view.segments.keys());
    let known = fingerprint(view.segments.values());

    let (id, temporary, mut file) = create_run(core, lane)?;
    file.write_early(core.options.durability > Durability::Buffered);
    build(core, &segments, known, live, covers_all, &mut |bytes| file.append(&[IoSlice::new(bytes)]))?;
    file.sync(core.options.durability)?;
    drop(file);
    let path = names::run(id);
    core.storage.rename(&temporary, &path)?;
    let run = open_run(&*core.storage, &path)?;
    // It is read back here, and not by the puts and gets that would come first to each of its pages.
    run.verify_all()?;
    let run = LoadedRun::new(run, Some(id), segments);
    // Whoever only writes needs no heads, and they take memory.
    if core.counters.hits.load(Ordering::Relaxed) > 0 {
        let absorbed: HashSet<_> = absorbed.iter().flat_map(|run| &run.segments).map(|segment| segment.id).collect();
        run.directory().make_heads(&run.segments, |segment| !absorbed.contains(&segment.id));
    }
    // A put may still be entering rows of the run into the delta. Once it is done it cannot take them for older ones.
    drop(core.admission());
    publish_run(core, Arc::new(run), absorbed);
    if core.options.durability > Durability::Buffered {
        core.storage.sync_dir(Path::new(names::RUNS))?;
    }
    // Only this lane's files are this lane's to remove; others' are found stale and ignored.
    for name in absorbed.iter().filter_map(|run| run.name).filter(|name| name.lane == lane) {
        core.storage.remove(&names::run(name))?;
    }
    core.counters.runs_built.fetch_add(1, Ordering::Relaxed);
    Ok(true)
}

/// The view, of which no segment's rows are still entering the delta.
fn settled_view(core: &Core) -> Arc<View> {
    let _known = core.known.lock();
    core.view.load_full()
}

/// The view, and the count of live keys if it is that of the view: nothing waits, and no segment is active.
fn state(core: &Core) -> (Arc<View>, Option<u64>) {
    // No refresh and no put changes either meanwhile.
    let _known = core.known.lock();
    let _admission = core.admission();
    let view = core.view.load_full();
    let sealed = core
        .slots
        .read()
        .sorted()
        .iter()
        .all(|(_, slot)| slot.source.segment().is_some_and(|id| view.segments.contains_key(&id)));
    let live = if sealed { core.live.get() } else { None };
    (view, live)
}

/// A new file for a run, under its temporary name.
fn create_run(core: &Core, lane: u16) -> Result<(SegmentId, PathBuf, Box<dyn AppendFile>)> {
    // Two merges at once do not take the same number.
    let _known = core.known.lock();
    let entries = core.storage.list(Path::new(names::RUNS))?;
    let taken = entries
        .iter()
        .filter_map(|entry| names::parse_run(&entry.name).or_else(|| names::parse_temporary_run(&entry.name)))
        .filter(|id| id.lane == lane)
        .map(|id| id.sequence);
    let sequence = SegmentId::next_sequence(taken).ok_or_else(|| Error::no_sequence(lane))?;
    let id = SegmentId { lane, sequence };
    let temporary = names::temporary_run(id);
    let file = core.storage.create(&temporary)?;
    Ok((id, temporary, file))
}

/// Whether a run is of this store.
pub(crate) fn is_of_store(core: &Core, run: &Run) -> bool {
    let identity = &core.identity;
    run.store() == identity.store.as_bytes() && run.hash() == (identity.hash_id, identity.hash_seed)
}

/// Opens the run at `path`, whole.
pub(crate) fn open_run(storage: &dyn Storage, path: &Path) -> Result<Run> {
    let file = storage.open(path, 0)?;
    let len = usize::try_from(file.len_bytes()?).unwrap_or(usize::MAX);
    Run::open(storage.describe(path), file.bytes(0, len)?)
}

/// Publishes `run` in place of `absorbed`, then drops what it covers from the delta: in this order, so that a reader
/// that misses in the one finds in the other.
pub(crate) fn publish_run(core: &Core, run: Arc<LoadedRun>, absorbed: &[Arc<LoadedRun>]) {
    // Searched for each slot, while puts wait.
    let mut covered: Vec<SegmentId> = run.segments.iter().map(|segment| segment.id).collect();
    covered.sort_unstable();
    core.change_view(|view| {
        view.runs.retain(|old| !absorbed.iter().any(|gone| Arc::ptr_eq(old, gone)));
        view.runs.push(Arc::clone(&run));
    });
    drop_from_delta(core, &|id| covered.binary_search(&id).is_ok());
}

/// Drops the rows of `segments` from the delta: they are found elsewhere by now.
pub(crate) fn drop_from_delta(core: &Core, segments: &dyn Fn(SegmentId) -> bool) {
    let in_run = |source: &Source| source.segment().is_some_and(segments);
    // Asked for each entry of the delta, while puts wait for its shard.
    let gone: HashSet<u32, BuildHasherDefault<SlotHasher>> = core.slots.read().numbers_of(in_run).collect();
    if gone.is_empty() {
        return;
    }
    // Where no slot is left, no entry is. Whoever admits rows may be the one that publishes, so it is not waited for.
    let cleared = core.try_admission().is_some_and(|_admission| {
        let all = core.slots.read().numbers().all(|number| gone.contains(&number));
        if all {
            core.delta.clear();
        }
        all
    });
    if !cleared {
        core.delta.prune(|entry| !gone.contains(&entry.slot));
    }
    let removed = core.slots.write().remove(|number| gone.contains(&number));
    // Behind the lock: with the last batch of a segment goes its map, which takes milliseconds.
    drop(removed);
}

impl Core {
    /// Puts a run in memory in the place of the damaged one at `path`.
    pub(crate) fn replace_damaged_run(&self, path: &Path) -> Result<()> {
        let _building = self.memory_runs.lock();
        let view = self.view.load_full();
        let Some(damaged) = view.runs.iter().find(|run| run.run.path() == path) else { return Ok(()) };
        let fresh = memory_run(self, damaged.segments.clone(), false)?;
        publish_run(self, Arc::new(fresh), std::slice::from_ref(damaged));
        Ok(())
    }
}
