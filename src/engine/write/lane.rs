//! The writer's side of the files: one lane's active segments, one for each structure of rows.

use std::path::Path;
use std::sync::Arc;

use crate::engine::files::sync_log::{AllMarks, Mark, Marks};
use crate::engine::open::missing::FreeNumbers;
use crate::engine::rows::row::{PendingBatch, Source};
use crate::engine::state::{Core, Counters};
use crate::engine::write::grouping::groups;
use crate::engine::write::seal::{Sealing, seal_all};
use crate::error::{Error, Result};
use crate::index::block;
use crate::index::keys_fst;
use crate::io::{Durability, LockGuard};
use crate::key::KeyKind;
use crate::names::{self, SegmentId};
use crate::schema::RowSchema;
use crate::segment::batch::Batch;
use crate::segment::columns::BatchPart;
use crate::segment::layout::Seal;
use crate::segment::writer::{SealParts, SegmentWriter};

/// Most active segments of a lane: a store of more structures than this seals the least recently used one.
const MAX_ACTIVE: usize = 8;

/// Rows of a segment from which on its data are synced while its index is sorted.
const SYNCED_AHEAD: usize = 1 << 14;

/// A batch of rows that waits, and the slot that its rows are found by.
pub(crate) type Waiting = (u32, Arc<PendingBatch>);

/// An active segment.
#[derive(Debug)]
pub(crate) struct Active {
    pub writer: SegmentWriter,
    /// The hash of every row, in order, for the index block.
    pub hashes: Vec<u64>,
    /// For the block of ordered keys.
    pub batches: Vec<Arc<Batch>>,
    /// Whether anything was written since the last sync.
    pub dirty: bool,
    /// Stamp of its newest batch that is on the medium.
    durable_stamp: u64,
    /// Bytes of it that are on the medium, if any batch is.
    synced_len_bytes: u64,
}

impl Active {
    /// What `writer` goes on with: nothing of it is known to be on the medium.
    pub(crate) fn new(writer: SegmentWriter) -> Self {
        let (hashes, batches) = (Vec::new(), Vec::new());
        Self { writer, hashes, batches, dirty: true, durable_stamp: 0, synced_len_bytes: 0 }
    }

    /// The same with what a former writer's mark said.
    pub(crate) fn marked(mut self, synced: Option<u64>) -> Self {
        self.synced_len_bytes = synced.unwrap_or(0);
        self
    }

    fn mark(&self) -> Option<Mark> {
        let (id, seed) = (self.writer.id(), self.writer.seed());
        let len_bytes = self.synced_len_bytes;
        (len_bytes > 0).then_some(Mark { sequence: id.sequence, len_bytes, seed })
    }
}

/// One lane, held by its lock.
#[derive(Debug)]
pub(crate) struct Lane {
    pub number: u16,
    pub numbers: FreeNumbers,
    /// Stamp of the newest commit.
    pub last_stamp: u64,
    /// Least recently used first.
    pub actives: Vec<Active>,
    /// Those that were active last.
    pub sealing: Option<Arc<Sealing>>,
    /// Segments that were sealed, or are being sealed, without being brought to the medium.
    pub unsynced: Vec<SegmentId>,
    /// Once the lane is open.
    pub marks: Option<Marks>,
    /// The void numbers that its marks tell of.
    pub voids: Vec<Mark>,
    /// Marks to be written when the segments that are being sealed are.
    pub sealed: Vec<Mark>,
    /// Whether a name was made in the segments folder since it was last synced.
    pub names_dirty: bool,
    /// Held for as long as the lane is.
    pub lock: Box<dyn LockGuard>,
}

impl Lane {
    /// A stamp that is later than every stamp seen: the clock's microseconds, or one more than the newest (a hybrid
    /// logical clock, so that rows of several lanes have one order).
    ///
    /// # Errors
    /// [`Error::TooLarge`] behind the last stamp there is, which only a damaged clock or a forged file comes to.
    fn next_stamp(&mut self, core: &Core) -> Result<u64> {
        let newest = self.last_stamp.max(core.newest_stamp());
        let next = newest.checked_add(1).ok_or_else(|| Error::TooLarge {
            what: "the commit stamp of the newest row in the store".into(),
            found: newest,
            limit: u64::MAX - 1,
        })?;
        self.last_stamp = next.max((core.options.clock)());
        Ok(self.last_stamp)
    }

    /// Writes what waits. Batches of one structure are joined, as long as no key of theirs was put with another
    /// structure in between: the newest row of a key must be in the newest commit.
    ///
    /// # Errors
    /// After an error the lane is finished.
    pub(crate) fn commit(&mut self, core: &Arc<Core>, waiting: &[Waiting]) -> Result<()> {
        self.check_seals()?;
        core.take_in_others(self.number);
        for group in groups(waiting, core.options.flush_bytes.max(1)) {
            self.commit_group(core, &group)?;
        }
        Ok(())
    }

    fn commit_group(&mut self, core: &Arc<Core>, group: &[&Waiting]) -> Result<()> {
        let parts: Vec<BatchPart<'_>> = group.iter().map(|(_, pending)| BatchPart::from(&pending.columns)).collect();
        let hashes = group.iter().flat_map(|(_, pending)| &pending.hashes);
        let (segment, batch) = self.write(core, &parts, hashes)?;
        let mut within = 0;
        let mut slots = core.slots.write();
        for (slot, pending) in group {
            let source = Source::Committed { segment, batch: Arc::clone(&batch), first: within };
            pending.written.get_or_init(|| source.clone());
            slots.moved(*slot, source);
            within += pending.columns.rows as u32;
        }
        drop(slots);
        self.seal_full(core)
    }

    /// Sees to it that [`Lane::write`] of this batch makes no segment: making one waits for whoever takes in what others
    /// wrote, who may wait for the admission of rows.
    ///
    /// # Errors
    /// After an error the lane is finished.
    pub(crate) fn make_room(&mut self, core: &Arc<Core>, part: &BatchPart<'_>) -> Result<()> {
        self.check_seals()?;
        core.take_in_others(self.number);
        self.active_for(core, &part.columns.schema, part.columns.rows, part.len_bytes()).map(drop)
    }

    /// Writes rows of one structure, whose hashes these are, as one batch. [`Lane::seal_full`] has to follow, when the
    /// rows are where they are looked up.
    ///
    /// # Errors
    /// After an error the lane is finished.
    pub(crate) fn write<'a>(
        &mut self,
        core: &Arc<Core>,
        parts: &[BatchPart<'_>],
        hashes: impl Iterator<Item = &'a u64>,
    ) -> Result<(SegmentId, Arc<Batch>)> {
        let schema = parts.first().map(|part| Arc::clone(&part.columns.schema));
        let schema = schema.ok_or_else(|| Error::invalid("a batch of no rows"))?;
        let rows: usize = parts.iter().map(|part| part.columns.rows).sum();
        let len_bytes: usize = parts.iter().map(BatchPart::len_bytes).sum();
        let stamp = self.next_stamp(core)?;
        let active = self.active_for(core, &schema, rows, len_bytes)?;
        let before = active.writer.len_bytes();
        // Who had the batch before synced will have this one synced. What is not synced is the system's to write, when and
        // if it wants: a load would wait for the disk otherwise.
        active.writer.write_early(!active.dirty);
        let batch = Arc::new(active.writer.append(parts, stamp, active.durable_stamp)?);
        active.dirty = true;
        active.batches.push(Arc::clone(&batch));
        active.hashes.extend(hashes);
        Counters::add(&core.counters.batches_written, 1);
        Counters::add(&core.counters.bytes_written, (active.writer.len_bytes() - before) as usize);
        Ok((active.writer.id(), batch))
    }

    /// Seals the segment that was written last, if it has grown to its size.
    pub(crate) fn seal_full(&mut self, core: &Arc<Core>) -> Result<()> {
        let full = self.actives.last().is_some_and(|active| {
            active.writer.len_bytes() >= core.options.segment_bytes
                || active.writer.rows() >= u64::from(core.options.segment_rows)
        });
        if full { self.seal_last(core) } else { Ok(()) }
    }

    /// The active segment for rows of `schema` with room for them, as the last (most recently used) one.
    fn active_for(
        &mut self,
        core: &Arc<Core>,
        schema: &Arc<RowSchema>,
        rows: usize,
        len_bytes: usize,
    ) -> Result<&mut Active> {
        // A writer that was killed while it sealed one segment leaves two of a structure.
        while let Some(position) = self.actives.iter().rposition(|active| active.writer.schema() == schema) {
            let active = self.actives.remove(position);
            let room = active.writer.has_room(rows, len_bytes);
            self.actives.push(active);
            if room {
                return self.actives.last_mut().ok_or(Error::Closed);
            }
            self.seal_last(core)?;
        }
        if self.actives.len() >= MAX_ACTIVE {
            let oldest = self.actives.remove(0);
            self.seal(core, vec![oldest])?;
        }
        let active = self.create(core, schema, rows, len_bytes)?;
        self.actives.push(active);
        self.actives.last_mut().ok_or(Error::Closed)
    }

    fn create(&mut self, core: &Core, schema: &Arc<RowSchema>, rows: usize, len_bytes: usize) -> Result<Active> {
        let id = self.next_id(core)?;
        let needed = len_bytes as u64 + rows as u64 * 64 + SegmentWriter::overhead_bytes();
        let capacity = (core.options.segment_bytes + SegmentWriter::overhead_bytes()).max(needed);
        let path = names::active(id);
        let writer = SegmentWriter::create(&core.storage, core.identity, id, &path, schema, capacity)?;
        self.names_dirty = true;
        core.known.lock().own(id);
        Ok(Active::new(writer))
    }

    /// The next segment's name, which is given out once.
    ///
    /// # Errors
    /// [`Error::TooLarge`] if the lane has used up its numbers.
    pub(crate) fn next_id(&mut self, core: &Core) -> Result<SegmentId> {
        let (sequence, passed) = self.numbers.give_out().ok_or_else(|| Error::no_sequence(self.number))?;
        for sequence in passed {
            self.void(core, SegmentId { lane: self.number, sequence })?;
        }
        Ok(SegmentId { lane: self.number, sequence })
    }

    /// Notes that no segment has the number of `id` any more. While the lane is being opened, the marks are written later.
    ///
    /// # Errors
    /// IO errors.
    pub(crate) fn void(&mut self, core: &Core, id: SegmentId) -> Result<()> {
        let void = Mark::void(&core.identity.store, id);
        if self.voids.contains(&void) {
            return Ok(());
        }
        self.voids.push(void);
        self.append_marks(&[void])
    }

    fn seal_last(&mut self, core: &Arc<Core>) -> Result<()> {
        let last = self.actives.pop();
        self.seal(core, last.into_iter().collect())
    }

    /// Seals `actives`, beside what is written next. Waits for what is being sealed already, so that a disk that is slower
    /// than the writer is felt.
    fn seal(&mut self, core: &Arc<Core>, actives: Vec<Active>) -> Result<()> {
        if core.options.durability == Durability::Buffered {
            self.unsynced.extend(actives.iter().map(|active| active.writer.id()));
        }
        if core.options.synchronous {
            return self.seal_now(core, actives);
        }
        self.wait_for_seals()?;
        if !actives.is_empty() {
            self.sealed = sealed_marks(core, &actives);
            self.sealing = Some(Arc::new(Sealing::start(core, actives)));
        }
        Ok(())
    }

    /// Returns when no segment is being sealed.
    fn wait_for_seals(&mut self) -> Result<()> {
        let sealed = std::mem::take(&mut self.sealed);
        match self.sealing.take() {
            Some(sealing) => sealing.wait().and_then(|()| self.append_marks(&sealed)),
            None => Ok(()),
        }
    }

    fn append_marks(&mut self, marks: &[Mark]) -> Result<()> {
        self.marks.as_mut().map_or(Ok(()), |file| file.append(marks))
    }

    /// Fails if a segment that was being sealed could not be.
    ///
    /// # Errors
    /// After an error the lane is finished.
    pub(crate) fn check_seals(&mut self) -> Result<()> {
        if self.sealing.as_ref().is_some_and(|sealing| sealing.is_finished()) { self.wait_for_seals() } else { Ok(()) }
    }

    /// What stopped the lane, of which `later` is known: that its folder is gone, or a segment that could not be sealed
    /// before.
    pub(crate) fn first_failure(&mut self, core: &Core, later: Error) -> Error {
        let earlier = self.wait_for_seals().err();
        self.check_in_place(core).err().or(earlier).unwrap_or(later)
    }

    /// Begins to seal all active segments; returns what is to be waited for.
    ///
    /// # Errors
    /// After an error the lane is finished.
    pub(crate) fn start_seals(&mut self, core: &Arc<Core>) -> Result<Arc<Sealing>> {
        let actives = std::mem::take(&mut self.actives);
        self.seal(core, actives)?;
        Ok(self.sealing.clone().unwrap_or_default())
    }

    /// Rows that are not sealed yet.
    pub(crate) fn unsealed_rows(&self) -> u64 {
        let sealing = self.sealing.as_ref().filter(|sealing| !sealing.is_finished());
        sealing.map_or(0, |sealing| sealing.rows())
            + self.actives.iter().map(|active| active.writer.rows()).sum::<u64>()
    }

    /// Seals all active segments that have rows.
    ///
    /// # Errors
    /// After an error the lane is finished.
    pub(crate) fn seal_all(&mut self, core: &Core) -> Result<()> {
        self.wait_for_seals()?;
        let actives = std::mem::take(&mut self.actives);
        self.seal_now(core, actives)
    }

    fn seal_now(&mut self, core: &Core, actives: Vec<Active>) -> Result<()> {
        let sealed = sealed_marks(core, &actives);
        seal_all(core, actives)?;
        self.append_marks(&sealed)
    }

    /// Makes everything that was committed as durable as asked, and sees whether it is where it will be looked for.
    pub(crate) fn sync(&mut self, core: &Core, durability: Durability) -> Result<()> {
        self.sync_files(core, durability)?;
        self.check_in_place(core)
    }

    /// Fails if the store's folder was moved or removed, or the active segments were: nobody would find what is written.
    ///
    /// # Errors
    /// [`Error::Io`] of kind `NotFound`.
    pub(crate) fn check_in_place(&self, core: &Core) -> Result<()> {
        if self.lock.is_in_place() && self.actives.iter().all(|active| active.writer.is_in_place()) {
            return Ok(());
        }
        let what = "it, or the segments in it, were moved or removed since the store was opened; rows that were flushed \
                    before went with them";
        let error = std::io::Error::new(std::io::ErrorKind::NotFound, what);
        Err(Error::io("write to", core.storage.describe(Path::new("")), error))
    }

    fn sync_files(&mut self, core: &Core, durability: Durability) -> Result<()> {
        self.check_seals()?;
        if durability == Durability::Buffered {
            return Ok(());
        }
        for active in self.actives.iter_mut().filter(|active| active.dirty) {
            active.writer.sync(durability)?;
        }
        self.wait_for_seals()?;
        for id in std::mem::take(&mut self.unsynced) {
            let path = names::sealed(id);
            core.storage.open_append(&path, core.storage.len_bytes(&path)?)?.sync(durability)?;
            self.names_dirty = true;
        }
        if self.names_dirty {
            if core.options.durability == Durability::Buffered {
                // Opening did not.
                core.storage.sync_dir(Path::new(""))?;
            }
            core.storage.sync_dir(Path::new(names::SEGMENTS))?;
            self.names_dirty = false;
        }
        let mut marks = Vec::new();
        for active in self.actives.iter_mut().filter(|active| active.dirty) {
            active.dirty = false;
            // A segment without batches is nothing to be missed.
            let Some(newest) = active.batches.last() else { continue };
            active.durable_stamp = newest.frame.stamp;
            active.synced_len_bytes = active.writer.len_bytes();
            marks.extend(active.mark());
        }
        match &self.marks {
            Some(file) if !file.is_full() => self.append_marks(&marks),
            _ => self.write_marks(core),
        }
    }

    /// Opens the file of marks. A new one is synced, so it is only made where marks have to be kept, numbers have become
    /// void, or none is there.
    pub(crate) fn open_marks(&mut self, core: &Core) -> Result<()> {
        let noted = AllMarks::voids(&*core.storage, self.number)?;
        if self.actives.is_empty() && noted.len() == self.voids.len() {
            self.marks = Marks::reopen(&*core.storage, self.number)?;
        }
        if self.marks.is_none() { self.write_marks(core) } else { Ok(()) }
    }

    /// Writes the lane's marks anew, without those of segments that are active no more, but for the newest.
    pub(crate) fn write_marks(&mut self, core: &Core) -> Result<()> {
        let newest = AllMarks::newest(&*core.storage, &core.identity.store, self.number)?;
        let newest =
            newest.filter(|mark| self.actives.iter().all(|active| active.writer.id().sequence != mark.sequence));
        let marks = self.actives.iter().filter_map(Active::mark).chain(newest).chain(self.voids.iter().copied());
        let marks: Vec<Mark> = marks.collect();
        self.marks = Some(Marks::create(&*core.storage, self.number, &marks, core.options.durability)?);
        Ok(())
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        // Whoever takes the lane next must not find a segment that is still being sealed.
        let _reported_by_close = self.wait_for_seals();
    }
}

/// Marks of segments that will have been synced when they are sealed: they tell of a lane's last ones, behind which no
/// number tells that one is missing.
fn sealed_marks(core: &Core, actives: &[Active]) -> Vec<Mark> {
    let synced = actives.iter().filter(|_| core.options.durability > Durability::Buffered);
    let mark = |writer: &SegmentWriter| Mark {
        sequence: writer.id().sequence,
        len_bytes: writer.len_bytes(),
        seed: writer.seed(),
    };
    synced.map(|active| mark(&active.writer)).collect()
}

/// Writes the index and the seal of an active segment.
pub(crate) fn seal_active(core: &Core, active: Active, replaces: Vec<SegmentId>) -> Result<Seal> {
    let durability = core.options.durability;
    let Active { mut writer, hashes, batches, dirty, .. } = active;
    let kind = writer.schema().key;
    // What is written goes to the medium while the index is sorted, so that only the index is left for the last sync.
    let ahead = dirty && durability > Durability::Buffered && !core.options.synchronous && hashes.len() >= SYNCED_AHEAD;
    let (parts, synced) = std::thread::scope(|scope| {
        let file = &mut writer;
        let sync = move || file.sync(durability);
        // Without a thread more, the last sync does it all.
        let syncing =
            ahead.then(|| std::thread::Builder::new().spawn_scoped(scope, sync)).and_then(std::io::Result::ok);
        let keys = match kind {
            KeyKind::U64 => Ok(None),
            KeyKind::Str | KeyKind::Bytes => ordered_keys(&batches).map(Some),
        };
        let pairs = hashes.iter().enumerate().map(|(row, hash)| (*hash, row as u32));
        let parts = keys.map(|keys| SealParts { index: block::encode(pairs), keys, replaces });
        let synced = syncing.map(std::thread::ScopedJoinHandle::join);
        (parts, synced.and_then(std::thread::Result::ok).unwrap_or(Ok(())))
    });
    synced?;
    writer.seal(&parts?, durability)
}

/// The keys of a segment in order, each with its newest row.
fn ordered_keys(batches: &[Arc<Batch>]) -> Result<Vec<u8>> {
    let mut keys: Vec<(&[u8], u32)> = batches
        .iter()
        .flat_map(|batch| {
            (0..batch.columns.rows)
                .filter_map(|row| Some((batch.columns.key(row)?, batch.frame.first_row as u32 + row as u32)))
        })
        .collect();
    keys.sort_unstable();
    // Rows of one key are in order: the last is the newest.
    keys.reverse();
    keys.dedup_by_key(|(key, _)| *key);
    keys.reverse();
    keys_fst::build(keys)
}
