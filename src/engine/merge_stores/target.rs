//! Writes the merged rows: to active segments of this lane that only the merge appends to, one for each structure.

use std::sync::Arc;

use crate::engine::admit::admit_block;
use crate::engine::compact::context::Context;
use crate::engine::follow::refresh;
use crate::engine::runs::hashes::hash_block;
use crate::engine::write::active::Active;
use crate::error::{Error, Result};
use crate::io::Durability;
use crate::names;
use crate::segment::batch::Batch;
use crate::segment::columns::{BatchPart, Columns};
use crate::segment::reader::Segment;
use crate::segment::writer::{NewSegment, SegmentWriter};

/// Most segments that are open at once. With more structures, the least recently used segment is sealed.
const MAX_ACTIVE: usize = 8;

/// The segments that are being written. Dropping it leaves them as a kill does: their rows are recovered.
pub(super) struct Target<'a> {
    context: Context<'a>,
    /// Called when rows have become visible.
    sealed: &'a dyn Fn() -> Result<()>,
    /// Least recently used first.
    actives: Vec<Active>,
    segments: usize,
    bytes: u64,
}

impl<'a> Target<'a> {
    /// A target for rows with commit timestamps up to `newest`. What is put from now on is newer.
    pub(super) fn new(context: Context<'a>, newest: u64, sealed: &'a dyn Fn() -> Result<()>) -> Self {
        context.state.clock().saw(newest);
        Self { context, sealed, actives: Vec::new(), segments: 0, bytes: 0 }
    }

    /// Appends `rows` of `batch`, with its commit timestamp. Timestamps must not descend from call to call. A batch that
    /// is larger than the writes of this store is divided, so that segments stay as small as its options say.
    pub(super) fn append(&mut self, batch: &Batch, rows: &[usize]) -> Result<()> {
        let options = self.context.state.options();
        let of_bytes = BatchPart::from(&batch.columns).len_bytes().div_ceil(options.flush_bytes.max(1));
        let of_rows = batch.columns.rows.div_ceil(options.segment_rows.max(1) as usize);
        let most = batch.columns.rows.div_ceil(of_bytes.max(of_rows).max(1)).max(1);
        rows.chunks(most).try_for_each(|rows| self.append_part(batch, rows))
    }

    fn append_part(&mut self, batch: &Batch, rows: &[usize]) -> Result<()> {
        let some: Columns;
        let columns = if rows.len() == batch.columns.rows {
            &batch.columns
        } else {
            some = batch.columns.take(rows).ok_or_else(|| batch.corrupt(0, "a row is out of bounds"))?;
            &some
        };
        let hashes = columns.hashes(self.context.state.hasher());
        let part = BatchPart::from(columns);
        let options = self.context.state.options();
        let active = self.active_for(columns, part.len_bytes())?;
        active.append(&[part], batch.frame.timestamp, hashes.into_iter())?;
        if active.is_full(options) { self.seal_last() } else { Ok(()) }
    }

    /// Seals what is open. Returns the numbers of segments and bytes written.
    pub(super) fn finish(mut self) -> Result<(usize, u64)> {
        while !self.actives.is_empty() {
            self.seal_last()?;
        }
        Ok((self.segments, self.bytes))
    }

    /// The active segment for rows like `columns`. It becomes the last (most recently used) one.
    fn active_for(&mut self, columns: &Columns, len_bytes: usize) -> Result<&mut Active> {
        let of_these = |active: &Active| {
            active.schema() == &columns.schema && active.layout().has_times == columns.times.is_some()
        };
        if let Some(position) = self.actives.iter().position(of_these) {
            let active = self.actives.remove(position);
            let has_room = active.has_room(columns.rows, len_bytes);
            self.actives.push(active);
            if !has_room {
                self.seal_last()?;
            }
        }
        if !self.actives.last().is_some_and(of_these) {
            if self.actives.len() >= MAX_ACTIVE {
                self.actives.rotate_left(1);
                self.seal_last()?;
            }
            let created = self.create(columns, len_bytes)?;
            self.actives.push(created);
        }
        self.actives.last_mut().ok_or_else(|| Error::internal("no segment is active"))
    }

    fn create(&self, columns: &Columns, len_bytes: usize) -> Result<Active> {
        let state = self.context.state;
        let needed = len_bytes as u64 + columns.rows as u64 * 64 + SegmentWriter::overhead_bytes();
        let capacity = (state.options().segment_bytes + SegmentWriter::overhead_bytes()).max(needed);
        // The lane is held: no later number is given out before the file exists, since a gap counts as a missing
        // segment.
        let writer = self.context.writer.with_lane(|lane| {
            let id = lane.next_id(state)?;
            let (storage, identity) = (state.shared_storage(), state.identity().recorded());
            // The registry is held, so that a refresh does not follow the file before it is known.
            let mut known = state.registry().lock();
            let new = NewSegment { row_times: columns.times.is_some(), ..id.into() };
            let path = names::active(id);
            let writer = SegmentWriter::create(storage, identity, new, &path, &columns.schema, capacity)?;
            known.own(id);
            Ok(writer)
        })?;
        Ok(Active::new(writer))
    }

    fn seal_last(&mut self) -> Result<()> {
        let Some(active) = self.actives.last() else { return Ok(()) };
        let (state, id, record) = (self.context.state, active.id(), active.sealed_record());
        let Some(active) = self.actives.pop() else { return Ok(()) };
        // The caller may remove the sources when the merge is done.
        let durability = state.options().durability.max(Durability::SyncData);
        if let Err(error) = active.seal(&state.options().clone().durability(durability), Vec::new(), &|| {}) {
            state.registry().lock().disown(id);
            return Err(error);
        }
        let segment = Arc::new(Segment::open(state.storage(), &names::sealed(id), id)?);
        let block = hash_block(state, &segment)?;
        // As for a segment of another writer: nobody else enters rows of a segment that is published.
        let known = state.registry().lock();
        state.versions().add_segment(&segment);
        admit_block(state, &segment, &block)?;
        drop(known);
        self.segments += 1;
        self.bytes += segment.len_bytes;
        self.context.writer.with_lane(|lane| lane.record_sealed(record))?;
        (self.sealed)()
    }
}

impl Drop for Target<'_> {
    fn drop(&mut self) {
        if self.actives.is_empty() {
            return;
        }
        // The merge has failed. From now on these segments are followed, so that the rows in them are visible.
        let mut known = self.context.state.registry().lock();
        self.actives.drain(..).for_each(|active| known.disown(active.id()));
        drop(known);
        let _told_by_misses = refresh(self.context.state);
    }
}
