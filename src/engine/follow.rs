//! Follows other writers: reads their new sealed segments, and new batches of their active segments.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::checksum::segment_seed;
use crate::engine::admit::{admit_batch, admit_block};
use crate::engine::files::sync_log;
use crate::engine::observe::Operation;
use crate::engine::options::Recovery;
use crate::engine::replace::{hides_deletion, join, join_active, replace_segments};
use crate::engine::report::Quarantined;
use crate::engine::rows::row_map::RowMap;
use crate::engine::runs::build::memory_run;
use crate::engine::runs::hashes::hash_block;
use crate::engine::runs::publish::publish_run;
use crate::engine::state::State;
use crate::engine::state::registry::{Followed, Known, left_in_place};
use crate::engine::state::replaced::Gone;
use crate::error::{Error, Result};
use crate::io::{DirEntry, LARGE_PAGE_BYTES, ReadFile};
use crate::names::{self, SegmentId, SegmentName};
use crate::segment::begun::begun_bytes;
use crate::segment::layout::Frame;
use crate::segment::reader::Segment;
use crate::segment::scan::{Ahead, Rest, look_ahead, read_any_front, read_front, rows_told, salvage, walk};
use crate::segment::writer::SegmentWriter;

/// The maximum number of further listings of a folder that keeps changing.
const LISTINGS: usize = 100;

/// Refreshes if the last refresh is at least the refresh interval ago. Returns whether there was anything new.
///
/// # Errors
/// As [`refresh`]. If no refresh is due, the error of the last one: the missing key may be in a file that could not be
/// read.
pub(crate) fn refresh_if_due(state: &State) -> Result<bool> {
    state.check_fork()?;
    if state.registry().refresh_is_due(state.options().refresh_interval) {
        return refresh(state);
    }
    state.registry().check_refreshed().map(|()| false)
}

/// Reads what other writers have committed. O(files), and O(rows) of what is new.
pub(crate) fn refresh(state: &State) -> Result<bool> {
    state.check_fork()?;
    if state.access().is_pinned() {
        return Ok(false);
    }
    let _span = state.metrics().begin(Operation::Refresh);
    let result = take_in(state);
    state.registry().refresh_ended(&result);
    result
}

/// Reads what other writers have committed, before this handle commits. So the last put of a key has the latest commit
/// timestamp, whatever the clocks say. If no other lane exists, this costs one query of a folder's change time. The
/// next read that misses reports errors.
pub(crate) fn take_in_others(state: &State, lane: u16) {
    let mut known = state.registry().lock();
    if is_alone(state, &mut known, lane) {
        return;
    }
    let changed = || state.storage().changed(Path::new(names::SEGMENTS)).ok().flatten();
    let any = !known.is_as_listed(changed) || known.followed().any(Followed::has_begun_more);
    drop(known);
    if any {
        let _told_by_misses = refresh(state);
    }
}

/// Whether another lane than `lane` has ever had a writer. If not, this costs one query of a folder's change time.
pub(crate) fn has_others(state: &State, lane: u16) -> bool {
    !is_alone(state, &mut state.registry().lock(), lane)
}

fn take_in(state: &State) -> Result<bool> {
    let mut known = state.registry().lock();
    known.note_listed(listed_now(state, names::SEGMENTS));
    state.registry().refresh_begins();
    state.metrics().refreshed();
    let mut compacted: Vec<Segment> = Vec::new();
    let mut listed = state.storage().list(Path::new(names::SEGMENTS))?;
    let mut changed = take_listed(state, &mut known, &listed, &mut compacted)?;
    // A row that was not copied has a newer one, which may be in a segment that was replaced too since the folder was
    // listed: that row has to be seen before the older one goes.
    for _ in 0..LISTINGS {
        if compacted.is_empty() {
            break;
        }
        let now = state.storage().list(Path::new(names::SEGMENTS))?;
        if now == listed {
            break;
        }
        listed = now;
        changed |= take_listed(state, &mut known, &listed, &mut compacted)?;
    }
    changed |= take_compacted(state, &mut known, compacted)?;
    drop(known);
    bound_reader_memtable(state)?;
    Ok(changed)
}

/// Takes in what `listed` names and was not seen before. Segments that compaction wrote go to `compacted`, for later.
fn take_listed(state: &State, known: &mut Known, listed: &[DirEntry], compacted: &mut Vec<Segment>) -> Result<bool> {
    let mut changed = false;
    for entry in listed {
        let (id, taken) = match names::parse_segment(&entry.name) {
            _ if !entry.kind.is_file() => continue,
            SegmentName::Sealed(id) if !known.is_own(id) && !known.is_bad(id) && !known.is_replaced(id) => {
                (id, take_sealed(state, known, id, compacted))
            }
            SegmentName::Active(id)
                if !known.is_own(id)
                    && (!known.is_bad(id) || known.is_hidden(id))
                    && !state.versions().load().segments().contains_key(&id) =>
            {
                let followed = match follow(state, known, id) {
                    // It was sealed after the listing. Rows of newer segments must not become visible without its rows.
                    Err(error) if error.is_not_found() => take_sealed(state, known, id, compacted),
                    followed => followed,
                };
                (id, followed)
            }
            _ => continue,
        };
        changed |= settle(state, known, id, taken)?;
    }
    Ok(changed)
}

/// Returns whether reading segment `id` found anything new. Notes damage; ignores files that are gone.
fn settle(state: &State, known: &mut Known, id: SegmentId, taken: Result<bool>) -> Result<bool> {
    match taken {
        Ok(new) => Ok(new),
        // Renamed or removed after the listing: the next refresh sees its new state.
        Err(error) if error.is_not_found() => Ok(false),
        // The next refresh tries again. Until it succeeds, a missing key may be in this file.
        Err(error) if state.options().recovery == Recovery::Strict || !(error.is_corrupt() || error.is_denied()) => {
            Err(error)
        }
        Err(error) => leave_damaged(state, known, id, &error).map(|()| false),
    }
}

/// Whether no other lane than `lane` has ever had a writer.
fn is_alone(state: &State, known: &mut Known, lane: u16) -> bool {
    let changed = state.storage().changed(Path::new(names::LANES)).ok().flatten();
    if changed.is_some() && changed == known.alone_since() {
        return true;
    }
    let listed = listed_now(state, names::LANES);
    let is_other = |name: &str| names::parse_lane_lock(name).is_some_and(|other| other != lane);
    let entries = state.storage().list(Path::new(names::LANES));
    let is_alone = entries.is_ok_and(|entries| !entries.iter().any(|entry| is_other(&entry.name)));
    known.note_alone(listed.filter(|_| is_alone));
    is_alone
}

/// The change time of a folder; `None` if it is less than a few ticks of the file system's clock ago, since another
/// change in the same tick would not be visible.
fn listed_now(state: &State, folder: &str) -> Option<SystemTime> {
    const TICKS: Duration = Duration::from_millis(50);
    let changed = state.storage().changed(Path::new(folder)).ok().flatten()?;
    SystemTime::now().duration_since(changed).is_ok_and(|age| age > TICKS).then_some(changed)
}

/// Publishes a sealed segment. A segment that compaction wrote is added to `compacted` instead, for later.
fn take_sealed(state: &State, known: &mut Known, id: SegmentId, compacted: &mut Vec<Segment>) -> Result<bool> {
    if state.versions().load().segments().contains_key(&id) || compacted.iter().any(|segment| segment.id == id) {
        return Ok(false);
    }
    let segment = Segment::open(state.storage(), &names::sealed(id), id)?;
    state.identity().check_belongs(&segment.front, segment.described())?;
    if let Some(error) = segment.front_damage() {
        if state.options().recovery == Recovery::Strict {
            return Err(error.clone());
        }
        known.leave(error, segment.seal.rows, Some(0));
    }
    state.clock().saw(segment.seal.last_timestamp);
    if segment.front.header.compacted {
        compacted.push(segment);
        return Ok(false);
    }
    let segment = Arc::new(segment);
    // Read before the segment is published: if this fails, nothing has changed, and the next refresh tries again.
    let block = hash_block(state, &segment)?;
    state.versions().add_segment(&segment);
    // Rows that were followed while the segment was active are not entered twice.
    admit_block(state, &segment, &block)?;
    if let Some(followed) = known.take_followed(id) {
        state.memtable().segment_sealed(&segment);
        followed.file.settle();
    }
    Ok(true)
}

/// Publishes compacted segments in place of those that they replace. Rows that were not seen before enter first, from
/// all of them: a row that was not copied has a newer row, which must be visible before the old one disappears.
fn take_compacted(state: &State, known: &mut Known, compacted: Vec<Segment>) -> Result<bool> {
    let replaced: HashSet<SegmentId> = compacted.iter().flat_map(|segment| segment.replaces.iter().copied()).collect();
    let mut changed = false;
    let mut entered = Vec::new();
    for segment in compacted.into_iter().filter(|segment| !replaced.contains(&segment.id)) {
        let segment = Arc::new(segment);
        match enter_compacted(state, known, &segment) {
            Ok((old, has_all)) => entered.push((segment, old, has_all)),
            Err(error) => changed |= settle(state, known, segment.id, Err(error))?,
        }
    }
    for (segment, old, has_all) in entered {
        let hides = hides_deletion(state, &segment, &old);
        replace_segments(state, &segment, &old, has_all, || {})?;
        if hides {
            // Nothing else told of it.
            state.value_cache().supersede_all();
            state.live().set(None);
        }
        known.replace(segment.replaces.iter().copied());
        segment.replaces.iter().for_each(|id| drop(known.take_followed(*id)));
        changed = true;
    }
    Ok(changed)
}

/// Enters the rows of a compacted segment that were not seen before. Returns the known segments that it replaces, with
/// their row maps, and whether every row of it is a copy of one of theirs.
fn enter_compacted(state: &State, known: &Known, segment: &Arc<Segment>) -> Result<(Vec<Gone>, bool)> {
    let version = state.versions().load_full();
    let mut old = Vec::new();
    for &id in &segment.replaces {
        if let Some(sealed) = version.segments().get(&id) {
            let map = match join(state, sealed, segment) {
                // Its file was not mapped and is unlinked. Then no row of it is pointed to its copy; instead, all rows
                // of the new segment enter the memtable.
                Err(error) if error.is_not_found() => RowMap::builder(sealed.rows()).finish(),
                map => map?,
            };
            let map = Arc::new(map);
            old.push(Gone { id, segment: Some(Arc::clone(sealed)), map });
        } else if known.is_followed(id) {
            old.push(Gone { id, segment: None, map: Arc::new(join_active(state, id, segment)?) });
        }
    }
    // A key that occurs twice in a batch has two rows of one timestamp, which are joined with one copy.
    let mut is_copy = vec![false; segment.rows() as usize];
    for row in old.iter().flat_map(|old| old.map.targets()) {
        is_copy.get_mut(row as usize).into_iter().for_each(|copy| *copy = true);
    }
    let has_all = !is_copy.contains(&false);
    if !has_all {
        admit_block(state, segment, &hash_block(state, segment)?)?;
    }
    Ok((old, has_all))
}

/// Serves the undamaged batches of a damaged file in place, and notes the damage. A file without read permission is
/// only noted. O(bytes).
///
/// # Errors
/// IO errors.
pub(crate) fn leave_damaged(state: &State, known: &mut Known, id: SegmentId, error: &Error) -> Result<()> {
    known.bad(id);
    let (path, file) = match open_any(state, id) {
        Ok(found) => found,
        // Removed meanwhile.
        Err(error) if error.is_not_found() => return Ok(()),
        Err(error) if error.is_denied() => {
            known.leave(&error, 0, None);
            return Ok(());
        }
        Err(error) => return Err(error),
    };
    let described: Arc<Path> = state.storage().describe(&path).into();
    let (seed, len_bytes) = (segment_seed(state.identity().store().as_bytes(), id), file.len_bytes()?);
    let mut rows_saved = 0;
    if let Ok(front) = read_any_front(&described, &*file) {
        if let Err(foreign) = state.identity().check_is(&front, id, &described) {
            known.leave_foreign(id, &foreign);
            return Ok(());
        }
        for frame in salvage(&*file, seed, front.frame.end_offset(), len_bytes)? {
            match admit_batch(state, &front, &*file, &described, frame) {
                Ok(_) => rows_saved += u64::from(frame.rows),
                Err(error) if error.is_corrupt() => {}
                Err(error) => return Err(error),
            }
        }
    }
    let rows = rows_told(&*file, seed, 0, len_bytes)?;
    known.leave(error, rows_saved, rows.map(|rows| rows.saturating_sub(rows_saved)));
    Ok(())
}

/// Opens the file of a segment, whether it is sealed or active.
fn open_any(state: &State, id: SegmentId) -> Result<(PathBuf, Arc<dyn ReadFile>)> {
    // In this order, since sealing renames the active file.
    let paths = [names::active(id), names::sealed(id)];
    let [active, sealed] = paths.map(|path| state.storage().open(&path, 0).map(|file| (path, file)));
    match (sealed, active) {
        (Err(error), active) if error.is_not_found() => active,
        (sealed, _) => sealed,
    }
}

fn follow(state: &State, known: &mut Known, id: SegmentId) -> Result<bool> {
    let mut followed = match known.take_followed(id) {
        Some(followed) => followed,
        None => match follow_front(state, known, id)? {
            Some(front) => front,
            None => return Ok(false),
        },
    };
    let new = follow_batches(state, known, id, &mut followed);
    known.follow(id, followed);
    new
}

/// Reads the batches that were committed since `followed` was last read.
fn follow_batches(state: &State, known: &mut Known, id: SegmentId, followed: &mut Followed) -> Result<bool> {
    let mut new = false;
    loop {
        let seed = followed.front.seed;
        let prefix = match walk(&*followed.file, seed, followed.end_offset, followed.rows) {
            Err(error) if error.is_cut() => return Ok(new),
            prefix => prefix?,
        };
        for frame in &prefix.frames {
            admit_batch(state, &followed.front, &*followed.file, &followed.described, *frame)?;
            followed.passed(*frame);
            new = true;
        }
        // A file that was truncated at the end of a batch looks complete, so the first time, the search goes on.
        if prefix.rest == Rest::Nothing && followed.looked {
            return Ok(new);
        }
        let synced = sync_log::synced(state.storage(), seed, id)?;
        // Writes to a zero-filled file do not change its length: without a sync log, they are not noticed.
        let tells = synced.is_some() || !prefix.len_bytes.is_multiple_of(LARGE_PAGE_BYTES);
        if followed.searched == Some((prefix.len_bytes, synced)) && tells {
            return Ok(new);
        }
        let frames = match look_ahead(&*followed.file, seed, &prefix, (followed.rows, followed.timestamp), synced) {
            Err(error) if error.is_cut() => return Ok(new),
            Err(error) => return Err(error),
            Ok(Ahead::More) => continue,
            Ok(Ahead::Nothing) => {
                followed.looked(&prefix, synced);
                return Ok(new);
            }
            Ok(Ahead::Damage(frames)) => frames,
        };
        let error = Error::corrupt(&*followed.described, prefix.end_offset, prefix.why());
        if state.options().recovery == Recovery::Strict {
            return Err(error);
        }
        let is_known = followed.damaged_at.replace(prefix.end_offset) == Some(prefix.end_offset);
        if frames.is_empty() {
            // Its writer may append more after the damage.
            followed.looked(&prefix, synced);
            if !is_known {
                let told = rows_told(&*followed.file, seed, 0, prefix.len_bytes)?;
                let rows_lost = told.map(|rows| rows.saturating_sub(followed.rows)).filter(|rows| *rows > 0);
                known.leave_reported(left_in_place(&error, followed.rows, rows_lost));
            }
            return Ok(new);
        }
        let (report, passed) = pass_damage(state, followed, &frames, &error);
        known.leave_reported(report);
        passed?;
        new = true;
    }
}

/// Reads the batches after a damaged place. It stops at a batch that fails with an IO error, where the next refresh
/// continues.
fn pass_damage(state: &State, followed: &mut Followed, frames: &[Frame], error: &Error) -> (Quarantined, Result<()>) {
    let (mut rows_lost, mut passed) = (0, Ok(()));
    for frame in frames {
        rows_lost += frame.first_row.saturating_sub(followed.rows);
        match admit_batch(state, &followed.front, &*followed.file, &followed.described, *frame) {
            Ok(_) => {}
            Err(error) if error.is_corrupt() => rows_lost += u64::from(frame.rows),
            Err(error) => {
                passed = Err(error);
                break;
            }
        }
        followed.passed(*frame);
    }
    (left_in_place(error, followed.rows.saturating_sub(rows_lost), Some(rows_lost)), passed)
}

/// Begins to follow an active segment; `None` if nothing was committed to it yet.
fn follow_front(state: &State, known: &mut Known, id: SegmentId) -> Result<Option<Followed>> {
    let path = names::active(id);
    let described: Arc<Path> = state.storage().describe(&path).into();
    let file = state.storage().open(&path, state.options().segment_bytes + SegmentWriter::overhead_bytes())?;
    let len_bytes = file.len_bytes()?;
    let mut front = read_front(&described, &*file, id);
    if let Err(Error::Corrupt { .. }) = &front {
        // Unless batches follow, its writer has just begun or has died, which the lane's next writer finds out.
        if known.has_only_begun(id, len_bytes) {
            return Ok(None);
        }
        let seed = segment_seed(state.identity().store().as_bytes(), id);
        let synced = sync_log::synced(state.storage(), seed, id)?.unwrap_or(0);
        if synced == 0 && begun_bytes(&*file, seed)?.is_some() {
            known.note_begun(id, len_bytes);
            return Ok(None);
        }
        // Batches follow the front, so it was written before them: by now it is complete, or damaged.
        front = read_front(&described, &*file, id);
    }
    let front = front?;
    state.identity().check_belongs(&front, &described)?;
    let end_offset = front.frame.end_offset();
    Ok(Some(Followed {
        front,
        file,
        described,
        end_offset,
        rows: 0,
        timestamp: 0,
        searched: None,
        looked: false,
        damaged_at: None,
    }))
}

/// Bounds the memtable of a reader. A reader writes no runs, so it indexes new sealed segments by a run in memory.
fn bound_reader_memtable(state: &State) -> Result<()> {
    if !state.access().is_read_only() || state.memtable().len() < state.options().memtable_keys.max(1) {
        return Ok(());
    }
    // The thread that holds the lock builds the run.
    let Some(_building) = state.versions().try_lock_rebuild() else { return Ok(()) };
    // While the registry lock is held, no thread enters rows of a published segment. A thread that holds it now gets
    // here afterwards.
    let Some(known) = state.registry().try_lock() else { return Ok(()) };
    let version = state.versions().load_full();
    drop(known);
    let fresh = version.uncovered();
    if fresh.is_empty() {
        return Ok(());
    }
    // There is one run in memory at a time: the new one absorbs the last one.
    let absorbed: Vec<_> = version.runs().iter().filter(|run| run.name().is_none()).cloned().collect();
    let segments = absorbed.iter().flat_map(|run| run.segments().iter().cloned()).chain(fresh).collect();
    publish_run(state, &Arc::new(memory_run(state, segments, false)?), &absorbed);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::open::open_reader;
    use crate::io::Storage;
    use crate::io::memory::MemoryStorage;
    use crate::{Options, Store, Value};

    #[test]
    fn a_torn_tail_is_searched_once_for_each_length_and_followed_when_it_is_whole() {
        const PATH: &str = "segments/0000-0000000001.arrow.open";
        let storage = MemoryStorage::new();
        let store = Store::open_on(Arc::new(storage.clone()), Options::new().synchronous(true)).unwrap();
        for key in 0..2_u64 {
            store.put(key, Value::Int(1)).unwrap();
            store.flush().unwrap();
        }
        let whole = storage.read(PATH).unwrap();
        let copy = storage.power_loss();
        let len = whole.len() as u64 - 50;
        let mut writer = copy.open_append(Path::new(PATH), len).unwrap();
        let (state, _) = open_reader(Arc::new(copy.clone()), Options::new().recovery(Recovery::Strict)).unwrap();
        let searched = || {
            let known = state.registry().lock();
            known.followed().map(|followed| followed.searched.map(|(len, _)| len)).collect::<Vec<_>>()
        };
        let rows = || state.registry().lock().followed().map(|followed| followed.rows).sum::<u64>();
        assert_eq!((searched(), rows()), (vec![Some(len)], 1));
        assert!(!refresh(&state).unwrap());
        for (from, to) in [(len, len + 20), (len + 20, whole.len() as u64)] {
            writer.append(&[std::io::IoSlice::new(&whole[from as usize..to as usize])]).unwrap();
            assert_eq!(refresh(&state).unwrap(), to == whole.len() as u64);
        }
        assert_eq!((searched(), rows()), (vec![None], 2));
    }
}
