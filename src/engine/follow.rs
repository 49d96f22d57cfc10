//! Following other writers: new sealed segments, and new batches of active ones.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime};

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use crate::checksum::segment_seed;
use crate::engine::files::sync_log;
use crate::engine::options::Recovery;
use crate::engine::report::Quarantined;
use crate::engine::rows::row::Source;
use crate::engine::runs::build::{hash_block, memory_run, publish_run, uncovered};
use crate::engine::state::Core;
use crate::engine::state::registry::{Followed, Known, left_in_place};
use crate::error::{Error, Result};
use crate::io::{LARGE_PAGE_BYTES, ReadFile};
use crate::names::{self, SegmentId, SegmentName};
use crate::segment::batch::Batch;
use crate::segment::begun::begun_bytes;
use crate::segment::layout::Frame;
use crate::segment::reader::Segment;
use crate::segment::scan::{Ahead, Front, Rest, look_ahead, read_any_front, read_front, rows_told, salvage, walk};
use crate::segment::writer::{SegmentWriter, StoreIdentity};

/// Whether a file failed to be read because it was cut while it was looked at: zeros by its writer, or a torn tail by its
/// lane's next one.
fn was_cut(error: &Error) -> bool {
    match error {
        Error::Io { source, .. } => source.kind() == std::io::ErrorKind::UnexpectedEof,
        error => error.is_corrupt(),
    }
}

impl Core {
    /// Refreshes if the last time is long enough ago. Returns whether there was anything new.
    ///
    /// # Errors
    /// As [`Core::refresh`]; that of the last refresh, if it is not due: what could not be looked at may hold the key
    /// that is missing.
    pub(crate) fn refresh_if_due(&self) -> Result<bool> {
        self.check_fork()?;
        let due = self.last_refresh.try_lock().is_some_and(|mut last| {
            let due = last.elapsed() >= self.options.refresh_interval;
            if due {
                *last = Instant::now();
            }
            due
        });
        if due {
            return self.refresh();
        }
        match &*self.refresh_failed.load() {
            Some(error) => Err(Error::clone(error)),
            None => Ok(false),
        }
    }

    /// Takes in what others committed. O(files), and O(rows) of what is new.
    pub(crate) fn refresh(&self) -> Result<bool> {
        self.check_fork()?;
        let result = self.take_in();
        self.refresh_failed.store(result.as_ref().err().cloned().map(Arc::new));
        result
    }

    /// Takes in what others have committed, if there is any, before this handle commits: whoever puts a key last is to
    /// have the later stamp, whatever the clocks say. In a store of no lane but `lane` this is one look at a folder.
    /// What cannot be taken in is told by the next read that misses.
    pub(crate) fn take_in_others(&self, lane: u16) {
        let mut known = self.known.lock();
        if self.is_alone(&mut known, lane) {
            return;
        }
        let changed = |path| self.storage.changed(path).ok().flatten();
        let is_new = known.listed.is_none() || changed(Path::new(names::SEGMENTS)) != known.listed;
        let any = is_new || known.followed.values().any(Followed::has_begun_more);
        drop(known);
        if any {
            let _told_by_misses = self.refresh();
        }
    }

    fn take_in(&self) -> Result<bool> {
        let mut known = self.known.lock();
        known.listed = self.listed_now(names::SEGMENTS);
        *self.last_refresh.lock() = Instant::now();
        self.counters.refreshes.fetch_add(1, Ordering::Relaxed);
        let mut changed = false;
        for entry in self.storage.list(Path::new(names::SEGMENTS))? {
            let taken = match names::parse_segment(&entry.name) {
                _ if !entry.kind.is_file() => Ok(false),
                SegmentName::Sealed(id) if !known.own.contains(&id) && !known.bad.contains(&id) => {
                    self.take_sealed(&mut known, id).map_err(|error| (id, error))
                }
                SegmentName::Active(id)
                    if !known.own.contains(&id)
                        && (!known.bad.contains(&id) || known.hidden.contains(&id))
                        && !self.view.load().segments.contains_key(&id) =>
                {
                    let followed = match self.follow(&mut known, id) {
                        // Sealed since it was listed: rows of a newer segment must not come without those before them.
                        Err(error) if error.is_not_found() => self.take_sealed(&mut known, id),
                        followed => followed,
                    };
                    followed.map_err(|error| (id, error))
                }
                _ => Ok(false),
            };
            match taken {
                Ok(new) => changed |= new,
                // Renamed or removed since it was listed: the next refresh sees what it became.
                Err((_, error)) if error.is_not_found() => {}
                // Tried again by the next refresh: until it works, a key that is missing may be in there.
                Err((_, error))
                    if self.options.recovery == Recovery::Strict || !(error.is_corrupt() || error.is_denied()) =>
                {
                    return Err(error);
                }
                Err((id, error)) => self.leave_damaged(&mut known, id, &error)?,
            }
        }
        drop(known);
        self.bound_reader_delta()?;
        Ok(changed)
    }

    /// Whether no lane but `lane` was ever written in.
    fn is_alone(&self, known: &mut Known, lane: u16) -> bool {
        let changed = self.storage.changed(Path::new(names::LANES)).ok().flatten();
        if changed.is_some() && changed == known.alone {
            return true;
        }
        known.alone = self.listed_now(names::LANES);
        let is_other = |name: &str| names::parse_lane_lock(name).is_some_and(|other| other != lane);
        let entries = self.storage.list(Path::new(names::LANES));
        let is_alone = entries.is_ok_and(|entries| !entries.iter().any(|entry| is_other(&entry.name)));
        known.alone = known.alone.filter(|_| is_alone);
        is_alone
    }

    /// When a folder changed last. A change that follows in the same tick of the file system's clock looks the same, so
    /// only one that is older than a few ticks counts.
    fn listed_now(&self, folder: &str) -> Option<SystemTime> {
        const TICKS: Duration = Duration::from_millis(50);
        let changed = self.storage.changed(Path::new(folder)).ok().flatten()?;
        SystemTime::now().duration_since(changed).is_ok_and(|age| age > TICKS).then_some(changed)
    }

    fn take_sealed(&self, known: &mut Known, id: SegmentId) -> Result<bool> {
        if self.view.load().segments.contains_key(&id) {
            return Ok(false);
        }
        let segment = Arc::new(Segment::open(&*self.storage, &names::sealed(id), id)?);
        self.check_belongs(&segment.front, segment.described())?;
        if let Some(error) = segment.front_damage() {
            if self.options.recovery == Recovery::Strict {
                return Err(error.clone());
            }
            known.leave(error, segment.seal.rows, Some(0));
        }
        self.saw_stamp(segment.seal.last_stamp);
        // Before anybody sees the segment: its rows enter then, or this fails and is tried again.
        let block = hash_block(self, &segment)?;
        self.change_view(|view| {
            view.segments.insert(id, Arc::clone(&segment));
        });
        // Rows that were followed while the segment was active are found to be there already.
        self.admit_block(&segment, &block)?;
        if let Some(followed) = known.followed.remove(&id) {
            self.let_go_of_active(&segment);
            followed.file.settle();
        }
        Ok(true)
    }

    /// Serves what can be read of a damaged file from where it lies, and notes the damage. A file that may not be read at
    /// all is left out in the same way. O(bytes).
    ///
    /// # Errors
    /// IO errors.
    pub(crate) fn leave_damaged(&self, known: &mut Known, id: SegmentId, error: &Error) -> Result<()> {
        known.bad(id);
        let (path, file) = match self.open_any(id) {
            Ok(found) => found,
            // Removed since.
            Err(error) if error.is_not_found() => return Ok(()),
            Err(error) if error.is_denied() => {
                known.leave(&error, 0, None);
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        let described: Arc<Path> = self.storage.describe(&path).into();
        let (seed, len_bytes) = (segment_seed(self.identity.store.as_bytes(), id), file.len_bytes()?);
        let mut rows_saved = 0;
        if let Ok(front) = read_any_front(&described, &*file) {
            if let Err(foreign) = self.check_is(&front, id, &described) {
                known.leave_foreign(id, &foreign);
                return Ok(());
            }
            for frame in salvage(&*file, seed, front.frame.end_offset(), len_bytes)? {
                match self.admit_batch(&front, &*file, &described, frame) {
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

    /// The file of a segment, whether it is sealed or not.
    fn open_any(&self, id: SegmentId) -> Result<(PathBuf, Arc<dyn ReadFile>)> {
        // In this order: sealing renames.
        let paths = [names::active(id), names::sealed(id)];
        let [active, sealed] = paths.map(|path| self.storage.open(&path, 0).map(|file| (path, file)));
        match (sealed, active) {
            (Err(error), active) if error.is_not_found() => active,
            (sealed, _) => sealed,
        }
    }

    /// As [`Core::check_belongs`], and it is segment `id`.
    pub(crate) fn check_is(&self, front: &Front, id: SegmentId, path: &Path) -> Result<()> {
        self.check_belongs(front, path)?;
        let found = front.header.id();
        if found == id {
            Ok(())
        } else {
            Err(Error::corrupt(path, 0, format!("it is segment {found}, not {id} as its name says")))
        }
    }

    /// A segment is of this store only if it has its identity and its kind of keys.
    pub(crate) fn check_belongs(&self, front: &Front, path: &Path) -> Result<()> {
        let header = &front.header;
        if StoreIdentity::of(header) != self.identity {
            return Err(Error::corrupt(
                path,
                0,
                format!("it belongs to store {}, not to {}", header.store, self.identity.store),
            ));
        }
        self.fix_key_kind(header.schema.key).map_err(|error| Error::corrupt(path, 0, error.to_string()))
    }

    fn follow(&self, known: &mut Known, id: SegmentId) -> Result<bool> {
        let Known { followed, begun, damage, .. } = known;
        let followed = match followed.entry(id) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => match self.follow_front(begun, id)? {
                Some(front) => entry.insert(front),
                None => return Ok(false),
            },
        };
        let mut new = false;
        loop {
            let seed = followed.front.seed;
            let prefix = match walk(&*followed.file, seed, followed.end_offset, followed.rows) {
                Err(error) if was_cut(&error) => return Ok(new),
                prefix => prefix?,
            };
            for frame in &prefix.frames {
                self.admit_batch(&followed.front, &*followed.file, &followed.described, *frame)?;
                followed.passed(*frame);
                new = true;
            }
            // What was cut off at the end of a batch is seen when the file is first looked at.
            if prefix.rest == Rest::Nothing && followed.looked {
                return Ok(new);
            }
            let synced = sync_log::synced(&*self.storage, seed, id)?;
            // A file that was filled up with zeros is written to without growing: without marks nothing tells of it.
            let tells = synced.is_some() || !prefix.len_bytes.is_multiple_of(LARGE_PAGE_BYTES);
            if followed.searched == Some((prefix.len_bytes, synced)) && tells {
                return Ok(new);
            }
            let frames = match look_ahead(&*followed.file, seed, &prefix, (followed.rows, followed.stamp), synced) {
                Err(error) if was_cut(&error) => return Ok(new),
                Err(error) => return Err(error),
                Ok(Ahead::More) => continue,
                Ok(Ahead::Nothing) => {
                    followed.looked(&prefix, synced);
                    return Ok(new);
                }
                Ok(Ahead::Damage(frames)) => frames,
            };
            let error = Error::corrupt(&*followed.described, prefix.end_offset, prefix.why());
            if self.options.recovery == Recovery::Strict {
                return Err(error);
            }
            let known = followed.damaged_at.replace(prefix.end_offset) == Some(prefix.end_offset);
            if frames.is_empty() {
                // Its writer may go on behind the damage.
                followed.looked(&prefix, synced);
                if !known {
                    let told = rows_told(&*followed.file, seed, 0, prefix.len_bytes)?;
                    let rows_lost = told.map(|rows| rows.saturating_sub(followed.rows)).filter(|rows| *rows > 0);
                    damage.push(left_in_place(&error, followed.rows, rows_lost));
                }
                return Ok(new);
            }
            damage.push(self.pass_damage(followed, &frames, &error));
            new = true;
        }
    }

    /// Takes in the batches behind a damaged place.
    fn pass_damage(&self, followed: &mut Followed, frames: &[Frame], error: &Error) -> Quarantined {
        let mut rows_lost = 0;
        for frame in frames {
            rows_lost += frame.first_row.saturating_sub(followed.rows);
            if self.admit_batch(&followed.front, &*followed.file, &followed.described, *frame).is_err() {
                rows_lost += u64::from(frame.rows);
            }
            followed.passed(*frame);
        }
        left_in_place(error, followed.rows.saturating_sub(rows_lost), Some(rows_lost))
    }

    /// The front of an active segment; `None` if nothing was committed to it yet.
    fn follow_front(&self, begun: &mut HashMap<SegmentId, u64>, id: SegmentId) -> Result<Option<Followed>> {
        let path = names::active(id);
        let described: Arc<Path> = self.storage.describe(&path).into();
        let file = self.storage.open(&path, self.options.segment_bytes + SegmentWriter::overhead_bytes())?;
        let len_bytes = file.len_bytes()?;
        let mut front = read_front(&described, &*file, id);
        if let Err(Error::Corrupt { .. }) = &front {
            // Its writer has just begun, or has died: its lane's next writer will tell. Unless batches follow.
            if begun.get(&id) == Some(&len_bytes) {
                return Ok(None);
            }
            let seed = segment_seed(self.identity.store.as_bytes(), id);
            let synced = sync_log::synced(&*self.storage, seed, id)?.unwrap_or(0);
            if synced == 0 && begun_bytes(&*file, seed)?.is_some() {
                begun.insert(id, len_bytes);
                return Ok(None);
            }
            // The front was written before them: it is whole by now, or damaged.
            front = read_front(&described, &*file, id);
        }
        let front = front?;
        self.check_belongs(&front, &described)?;
        let end_offset = front.frame.end_offset();
        Ok(Some(Followed {
            front,
            file,
            described,
            end_offset,
            rows: 0,
            stamp: 0,
            searched: None,
            looked: false,
            damaged_at: None,
        }))
    }

    /// Enters the rows of one committed batch into the delta.
    pub(crate) fn admit_batch(
        &self,
        front: &Front,
        file: &dyn ReadFile,
        path: &Arc<Path>,
        frame: Frame,
    ) -> Result<Arc<Batch>> {
        self.saw_stamp(frame.stamp);
        let message = file.bytes(frame.offset, frame.message_len_bytes() as usize)?;
        let batch = Arc::new(Batch::parse(path, &front.schema, frame, &message, false)?);
        let source = Source::Committed { segment: front.header.id(), batch: Arc::clone(&batch), first: 0 };
        let slot = self.add_slot(source.clone(), frame.rows)?;
        let tombstone = front.schema.is_tombstones();
        let _admission = self.admission();
        for row in 0..frame.rows {
            if let Some(key) = batch.columns.key(row as usize) {
                self.admit(self.hasher.hash(key), slot, row, tombstone, || source.row(slot, row));
            }
        }
        Ok(batch)
    }

    /// A reader writes no runs, so it keeps what has been sealed since in runs of its own in memory.
    fn bound_reader_delta(&self) -> Result<()> {
        if !self.read_only || self.delta.len() < self.options.delta_keys.max(1) {
            return Ok(());
        }
        // Whoever has it builds the run.
        let Some(_building) = self.memory_runs.try_lock() else { return Ok(()) };
        // With what is known in hand: of no segment of the view, rows are still entering. Who has it comes here next.
        let Some(known) = self.known.try_lock() else { return Ok(()) };
        let view = self.view.load_full();
        drop(known);
        let fresh = uncovered(&view);
        if fresh.is_empty() {
            return Ok(());
        }
        // One run in memory at a time: it takes in the last one.
        let absorbed: Vec<_> = view.runs.iter().filter(|run| run.name.is_none()).cloned().collect();
        let segments = absorbed.iter().flat_map(|run| run.segments.iter().cloned()).chain(fresh).collect();
        publish_run(self, Arc::new(memory_run(self, segments, false)?), &absorbed);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::open::open_reader;
    use crate::io::Storage;
    use crate::io::memory::MemoryStorage;
    use crate::{Options, Value};

    #[test]
    fn a_torn_tail_is_searched_once_for_each_length_and_followed_when_it_is_whole() {
        const PATH: &str = "segments/0000-0000000001.arrow.open";
        let storage = MemoryStorage::new();
        let store = Options::new().synchronous(true).open_on(Arc::new(storage.clone())).unwrap();
        for key in 0..2_u64 {
            store.put(key, &Value::Int(1)).unwrap();
            store.flush().unwrap();
        }
        let whole = storage.read(PATH).unwrap();
        let copy = storage.power_loss();
        let len = whole.len() as u64 - 50;
        let mut writer = copy.open_append(Path::new(PATH), len).unwrap();
        let (core, _) = open_reader(Arc::new(copy.clone()), Options::new().recovery(Recovery::Strict)).unwrap();
        let searched = || {
            let known = core.known.lock();
            known.followed.values().map(|followed| followed.searched.map(|(len, _)| len)).collect::<Vec<_>>()
        };
        let rows = || core.known.lock().followed.values().map(|followed| followed.rows).sum::<u64>();
        assert_eq!((searched(), rows()), (vec![Some(len)], 1));
        assert!(!core.refresh().unwrap());
        for (from, to) in [(len, len + 20), (len + 20, whole.len() as u64)] {
            writer.append(&[std::io::IoSlice::new(&whole[from as usize..to as usize])]).unwrap();
            assert_eq!(core.refresh().unwrap(), to == whole.len() as u64);
        }
        assert_eq!((searched(), rows()), (vec![None], 2));
    }
}
