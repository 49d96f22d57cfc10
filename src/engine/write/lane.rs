//! The writer's files: one lane's active segments, one for each structure of rows.

use std::path::Path;
use std::sync::Arc;

use crate::engine::files::history::History;
use crate::engine::files::sync_log::{SyncLog, SyncLogs, SyncRecord};
use crate::engine::follow::take_in_others;
use crate::engine::rows::row::{QueuedBatch, Source};
use crate::engine::state::State;
use crate::engine::write::active::Active;
use crate::engine::write::grouping::groups;
use crate::engine::write::numbers::FreeNumbers;
use crate::engine::write::seal::{Sealing, seal_all};
use crate::error::{Error, Result};
use crate::io::{Durability, LockGuard};
use crate::names::{self, SegmentId};
use crate::schema::RowSchema;
use crate::segment::batch::Batch;
use crate::segment::columns::BatchPart;
use crate::segment::writer::SegmentWriter;

/// Most active segments of a lane. With more structures, the least recently used segment is sealed.
const MAX_ACTIVE: usize = 8;

/// One lane, held by its lock.
#[derive(Debug)]
pub(crate) struct Lane {
    number: u16,
    numbers: FreeNumbers,
    /// Timestamp of the newest commit.
    last_timestamp: u64,
    /// Least recently used first.
    actives: Vec<Active>,
    /// The segments that are being sealed, or were sealed last.
    sealing: Option<Arc<Sealing>>,
    /// Segments that were sealed, or are being sealed, without a sync.
    unsynced: Vec<SegmentId>,
    /// `None` until the lane is open.
    sync_log: Option<SyncLog>,
    /// The void numbers in its sync log.
    voids: Vec<SyncRecord>,
    /// Whether a void number may be missing from the sync log, or not durable there.
    voids_untold: bool,
    /// To be written to the sync log when the segments that are being sealed are.
    sealed: Vec<SyncRecord>,
    /// Whether a file was created in the segments folder since it was last synced.
    names_dirty: bool,
    /// Whether the lane's history has this writer.
    in_history: bool,
    /// Held as long as the lane.
    lock: Box<dyn LockGuard>,
}

impl Lane {
    /// Lane `number`, which `lock` guards, with nothing active. `voids` are the void numbers in its sync log.
    pub(crate) fn new(number: u16, lock: Box<dyn LockGuard>, numbers: FreeNumbers, voids: Vec<SyncRecord>) -> Self {
        Self {
            number,
            numbers,
            last_timestamp: 0,
            actives: Vec::new(),
            sealing: None,
            unsynced: Vec::new(),
            sync_log: None,
            voids,
            voids_untold: false,
            sealed: Vec::new(),
            names_dirty: true,
            in_history: false,
            lock,
        }
    }

    /// Takes over an active segment of a former writer.
    pub(crate) fn take_over(&mut self, active: Active) {
        self.actives.push(active);
    }

    /// Makes the next commit timestamp later than this one.
    pub(crate) fn saw(&mut self, timestamp: u64) {
        self.last_timestamp = self.last_timestamp.max(timestamp);
    }

    pub(crate) fn number(&self) -> u16 {
        self.number
    }

    /// The structures of active segments.
    pub(crate) fn schemas(&self) -> impl Iterator<Item = &Arc<RowSchema>> {
        self.actives.iter().map(Active::schema)
    }

    /// Writes the waiting batches. Batches of one structure are joined, unless one of their keys was put with another
    /// structure in between: the newest row of a key must be in the newest commit.
    ///
    /// # Errors
    /// After an error the lane must not be used.
    pub(crate) fn commit(&mut self, state: &Arc<State>, waiting: &[QueuedBatch]) -> Result<()> {
        self.tell_voids(state)?;
        self.check_seals()?;
        take_in_others(state, self.number);
        for group in groups(waiting, state.options().flush_bytes.max(1)) {
            self.commit_group(state, &group)?;
        }
        Ok(())
    }

    fn commit_group(&mut self, state: &Arc<State>, group: &[&QueuedBatch]) -> Result<()> {
        let parts: Vec<BatchPart<'_>> = group.iter().map(|(_, pending)| BatchPart::from(&pending.columns)).collect();
        let hashes = group.iter().flat_map(|(_, pending)| &pending.hashes);
        let (segment, batch) = self.write(state, &parts, hashes.copied())?;
        let mut first = 0;
        state.memtable().moved(group.iter().map(|(id, pending)| {
            let source = Source::Committed { segment, batch: Arc::clone(&batch), first };
            pending.written.get_or_init(|| source.clone());
            first += pending.columns.rows as u32;
            (*id, source)
        }));
        self.seal_full(state)
    }

    /// Ensures that [`Lane::write`] of this batch creates no segment. Creating one waits for the registry, and a thread
    /// that holds the registry may be waiting to insert rows.
    ///
    /// # Errors
    /// After an error the lane must not be used.
    pub(crate) fn make_room(&mut self, state: &Arc<State>, part: &BatchPart<'_>) -> Result<()> {
        self.check_seals()?;
        take_in_others(state, self.number);
        self.active_for(state, &part.columns.schema, part.columns.rows, part.len_bytes()).map(drop)
    }

    /// Writes rows of one structure, with these hashes, as one batch. The caller must call [`Lane::seal_full`] once
    /// lookups find the rows.
    ///
    /// # Errors
    /// After an error the lane must not be used.
    pub(crate) fn write(
        &mut self,
        state: &Arc<State>,
        parts: &[BatchPart<'_>],
        hashes: impl Iterator<Item = u64>,
    ) -> Result<(SegmentId, Arc<Batch>)> {
        let schema = parts.first().map(|part| Arc::clone(&part.columns.schema));
        let schema = schema.ok_or_else(|| Error::internal("a batch of no parts"))?;
        let rows: usize = parts.iter().map(|part| part.columns.rows).sum();
        let len_bytes: usize = parts.iter().map(BatchPart::len_bytes).sum();
        self.enter_history(state)?;
        let timestamp = state.clock().next(self.last_timestamp)?;
        self.last_timestamp = timestamp;
        let active = self.active_for(state, &schema, rows, len_bytes)?;
        let before = active.len_bytes();
        let batch = active.append(parts, timestamp, hashes)?;
        state.metrics().batch_written(active.len_bytes() - before);
        Ok((active.id(), batch))
    }

    /// Seals the segment that was written last, if it has reached its full size.
    pub(crate) fn seal_full(&mut self, state: &Arc<State>) -> Result<()> {
        let full = self.actives.last().is_some_and(|active| active.is_full(state.options()));
        if full { self.seal_last(state) } else { Ok(()) }
    }

    /// The active segment for rows of `schema` with room for them. It becomes the last (most recently used) one.
    fn active_for(
        &mut self,
        state: &Arc<State>,
        schema: &Arc<RowSchema>,
        rows: usize,
        len_bytes: usize,
    ) -> Result<&mut Active> {
        // A writer that was killed while it sealed a segment leaves two of its structure. One that was killed while it
        // merged stores may leave one whose rows have commit timestamps of their own: it takes no more rows.
        let takes = |active: &Active| active.schema() == schema && !active.layout().has_times;
        while let Some(position) = self.actives.iter().rposition(takes) {
            let active = self.actives.remove(position);
            let room = active.has_room(rows, len_bytes);
            self.actives.push(active);
            if room {
                return self.actives.last_mut().ok_or_else(|| Error::internal("no segment is active"));
            }
            self.seal_last(state)?;
        }
        if self.actives.len() >= MAX_ACTIVE {
            let oldest = self.actives.remove(0);
            self.seal(state, vec![oldest])?;
        }
        let active = self.create(state, schema, rows, len_bytes)?;
        self.actives.push(active);
        self.actives.last_mut().ok_or_else(|| Error::internal("no segment is active"))
    }

    fn create(&mut self, state: &State, schema: &Arc<RowSchema>, rows: usize, len_bytes: usize) -> Result<Active> {
        let id = self.next_id(state)?;
        let needed = len_bytes as u64 + rows as u64 * 64 + SegmentWriter::overhead_bytes();
        let capacity = (state.options().segment_bytes + SegmentWriter::overhead_bytes()).max(needed);
        let (storage, identity) = (state.shared_storage(), state.identity().recorded());
        let writer = SegmentWriter::create(storage, identity, id.into(), &names::active(id), schema, capacity)?;
        self.names_dirty = true;
        state.registry().lock().own(id);
        Ok(Active::new(writer))
    }

    /// Adds this writer to the lane's history, before it writes anything.
    fn enter_history(&mut self, state: &State) -> Result<()> {
        if self.in_history {
            return Ok(());
        }
        let (store, durability) = (state.identity().store(), state.options().durability);
        History::begin_writer(state.storage(), store, self.number, durability)?;
        self.in_history = true;
        Ok(())
    }

    /// The next segment's name; each is given out once.
    ///
    /// # Errors
    /// [`Error::TooLarge`] if the lane has used up its numbers.
    pub(crate) fn next_id(&mut self, state: &State) -> Result<SegmentId> {
        self.enter_history(state)?;
        let (sequence, passed) = self.numbers.give_out().ok_or_else(|| SegmentId::exhausted(self.number))?;
        for sequence in passed {
            self.void(state, SegmentId { lane: self.number, sequence })?;
        }
        Ok(SegmentId { lane: self.number, sequence })
    }

    /// Notes that no segment has the number of `id` any more. While the lane is being opened, the sync log is written
    /// later.
    ///
    /// # Errors
    /// IO errors.
    pub(crate) fn void(&mut self, state: &State, id: SegmentId) -> Result<()> {
        let void = SyncRecord::void(state.identity().store(), id);
        if self.voids.contains(&void) {
            return Ok(());
        }
        self.voids.push(void);
        self.voids_untold |= self.sync_log.is_some();
        self.log(&[void])
    }

    /// Rewrites the sync log durably if a number has become void. This happens before rows of a later number are
    /// promised, since a reader would then report the void number as missing.
    fn tell_voids(&mut self, state: &State) -> Result<()> {
        if self.voids_untold {
            self.rewrite_sync_log(state)?;
            self.voids_untold = false;
        }
        Ok(())
    }

    fn seal_last(&mut self, state: &Arc<State>) -> Result<()> {
        let last = self.actives.pop();
        self.seal(state, last.into_iter().collect())
    }

    /// Seals `actives` in the background. Waits for the segments that are being sealed already, which slows down a
    /// writer that is faster than the disk.
    fn seal(&mut self, state: &Arc<State>, actives: Vec<Active>) -> Result<()> {
        if state.options().durability == Durability::Buffered {
            self.unsynced.extend(actives.iter().map(Active::id));
        }
        if state.options().synchronous {
            return self.seal_now(state, actives);
        }
        self.wait_for_seals()?;
        if !actives.is_empty() {
            self.sealed = sealed_records(state, &actives);
            self.sealing = Some(Arc::new(Sealing::start(state, actives)));
        }
        Ok(())
    }

    /// Waits until no segment is being sealed.
    fn wait_for_seals(&mut self) -> Result<()> {
        let sealed = std::mem::take(&mut self.sealed);
        match self.sealing.take() {
            Some(sealing) => sealing.wait().and_then(|()| self.log(&sealed)),
            None => Ok(()),
        }
    }

    /// Makes the rows of segments that are being sealed as durable as asked, and returns their records for the sync log.
    /// Their index may not be durable.
    fn sync_seals(&mut self, state: &State, durability: Durability) -> Result<Vec<SyncRecord>> {
        let Some(sealing) = &self.sealing else { return Ok(Vec::new()) };
        // A full sync log is rewritten from the records of segments that are not sealed, and one that is sealed.
        let is_full = self.sync_log.as_ref().is_none_or(SyncLog::is_full);
        if durability > state.options().durability || is_full || !sealing.wait_for_data() {
            return self.wait_for_seals().map(|()| Vec::new());
        }
        Ok(std::mem::take(&mut self.sealed))
    }

    /// Records that a segment which the lane does not append to was sealed, and synced.
    ///
    /// # Errors
    /// IO errors.
    pub(crate) fn record_sealed(&mut self, record: SyncRecord) -> Result<()> {
        self.log(&[record])
    }

    fn log(&mut self, records: &[SyncRecord]) -> Result<()> {
        self.sync_log.as_mut().map_or(Ok(()), |log| log.append(records))
    }

    /// Fails if a segment could not be sealed in the background.
    ///
    /// # Errors
    /// After an error the lane must not be used.
    pub(crate) fn check_seals(&mut self) -> Result<()> {
        if self.sealing.as_ref().is_some_and(|sealing| sealing.is_finished()) { self.wait_for_seals() } else { Ok(()) }
    }

    /// The cause of the failure `later`: the folder is gone, or an earlier segment could not be sealed.
    pub(crate) fn first_failure(&mut self, state: &State, later: Error) -> Error {
        let earlier = self.wait_for_seals().err();
        self.check_in_place(state).err().or(earlier).unwrap_or(later)
    }

    /// Begins to seal all active segments; returns what to wait for.
    ///
    /// # Errors
    /// After an error the lane must not be used.
    pub(crate) fn start_seals(&mut self, state: &Arc<State>) -> Result<Arc<Sealing>> {
        let actives = std::mem::take(&mut self.actives);
        self.seal(state, actives)?;
        Ok(self.running_seals())
    }

    /// The segments that are being sealed, to wait for.
    pub(crate) fn running_seals(&self) -> Arc<Sealing> {
        self.sealing.clone().unwrap_or_default()
    }

    /// Rows that are not sealed yet.
    pub(crate) fn unsealed_rows(&self) -> u64 {
        let sealing = self.sealing.as_ref().filter(|sealing| !sealing.is_finished());
        sealing.map_or(0, |sealing| sealing.rows()) + self.actives.iter().map(Active::rows).sum::<u64>()
    }

    /// The commit timestamp of the oldest row that is not sealed yet; 0 while segments are being sealed, `None` if all
    /// rows are sealed.
    pub(crate) fn oldest_unsealed(&self) -> Option<u64> {
        let is_sealing = self.sealing.as_ref().is_some_and(|sealing| !sealing.is_finished());
        if is_sealing { Some(0) } else { self.actives.iter().filter_map(Active::first_timestamp).min() }
    }

    /// Seals all active segments that have rows.
    ///
    /// # Errors
    /// After an error the lane must not be used.
    pub(crate) fn seal_all(&mut self, state: &State) -> Result<()> {
        self.tell_voids(state)?;
        self.wait_for_seals()?;
        let actives = std::mem::take(&mut self.actives);
        self.seal_now(state, actives)
    }

    fn seal_now(&mut self, state: &State, actives: Vec<Active>) -> Result<()> {
        let sealed = sealed_records(state, &actives);
        seal_all(state, actives)?;
        self.log(&sealed)
    }

    /// Makes everything that was committed as durable as asked, and checks that it is in place.
    pub(crate) fn sync(&mut self, state: &State, durability: Durability) -> Result<()> {
        self.sync_files(state, durability)?;
        self.check_in_place(state)
    }

    /// Fails if the store's folder, or an active segment, was moved or removed: nobody would find what is written.
    ///
    /// # Errors
    /// [`Error::Io`] of kind `NotFound`.
    pub(crate) fn check_in_place(&self, state: &State) -> Result<()> {
        if self.lock.is_in_place() && self.actives.iter().all(Active::is_in_place) {
            return Ok(());
        }
        let what = "it, or the segments in it, were moved or removed since the store was opened; rows that were flushed \
                    before went with them";
        let error = std::io::Error::new(std::io::ErrorKind::NotFound, what);
        Err(Error::io("write to", state.storage().describe(Path::new("")), error))
    }

    fn sync_files(&mut self, state: &State, durability: Durability) -> Result<()> {
        self.tell_voids(state)?;
        self.check_seals()?;
        if durability == Durability::Buffered {
            return Ok(());
        }
        self.actives.iter_mut().try_for_each(|active| active.sync(durability))?;
        let sealed = self.sync_seals(state, durability)?;
        let storage = state.storage();
        for id in std::mem::take(&mut self.unsynced) {
            let path = names::sealed(id);
            let synced = storage.len_bytes(&path).and_then(|len| storage.open_append(&path, len)?.sync(durability));
            match synced {
                // Compaction replaced it by a segment that is synced.
                Err(error) if error.is_not_found() && state.registry().lock().is_replaced(id) => {}
                synced => synced?,
            }
            self.names_dirty = true;
        }
        if self.names_dirty {
            if state.options().durability == Durability::Buffered {
                // Opening did not sync it.
                storage.sync_dir(Path::new(""))?;
            }
            storage.sync_dir(Path::new(names::SEGMENTS))?;
            self.names_dirty = false;
        }
        // Not before the names are durable: a record without a file is a lost segment.
        let records: Vec<SyncRecord> =
            sealed.into_iter().chain(self.actives.iter_mut().filter_map(Active::synced)).collect();
        match &self.sync_log {
            Some(log) if !log.is_full() => self.log(&records),
            _ => self.rewrite_sync_log(state),
        }
    }

    /// Opens the sync log. Creating one syncs it, so one is only created if records have to be kept, numbers have
    /// become void, or there is none.
    pub(crate) fn open_sync_log(&mut self, state: &State) -> Result<()> {
        let noted = SyncLogs::voids(state.storage(), self.number)?;
        if self.actives.is_empty() && noted.len() == self.voids.len() {
            self.sync_log = SyncLog::reopen(state.storage(), self.number)?;
        }
        if self.sync_log.is_none() { self.rewrite_sync_log(state) } else { Ok(()) }
    }

    /// Rewrites the sync log with the records of active segments, the newest record, and the void numbers.
    fn rewrite_sync_log(&mut self, state: &State) -> Result<()> {
        let newest = SyncLogs::newest(state.storage(), state.identity().store(), self.number)?;
        let newest = newest.filter(|record| self.actives.iter().all(|active| active.id().sequence != record.sequence));
        let records =
            self.actives.iter().filter_map(Active::sync_record).chain(newest).chain(self.voids.iter().copied());
        let records: Vec<SyncRecord> = records.collect();
        self.sync_log = Some(SyncLog::create(state.storage(), self.number, &records, state.options().durability)?);
        Ok(())
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        // The lane's next writer must not find a segment that is still being sealed.
        let _reported_by_close = self.wait_for_seals();
    }
}

/// Records of segments that will have been synced when they are sealed. They protect the last segments of a lane, whose
/// loss leaves no gap in the numbers.
fn sealed_records(state: &State, actives: &[Active]) -> Vec<SyncRecord> {
    let synced = actives.iter().filter(|_| state.options().durability > Durability::Buffered);
    synced.map(Active::sealed_record).collect()
}
