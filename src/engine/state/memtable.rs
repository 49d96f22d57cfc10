//! The memtable: the index of rows that no run covers yet, and the batches that its entries point to.
//!
//! An entry is (hash, batch id, row). A batch keeps its id while its rows move from the queue to an active segment and
//! to the sealed one, so its entries do not change.

use std::collections::{HashMap, HashSet};
use std::hash::BuildHasherDefault;
use std::sync::Arc;

use crate::engine::lock_order::{Rank, Ranked, RankedGuard, RankedMutex, RankedRwLock};
use crate::engine::rows::row::{BatchId, Source};
use crate::engine::rows::row_map::RowMap;
use crate::engine::state::batches::{BatchIdHasher, Batches, MemBatch};
use crate::error::{Error, Result};
use crate::index::entries::{Entry, EntryTable};
use crate::names::SegmentId;
use crate::segment::batch::Batch;
use crate::segment::reader::Segment;
use crate::sync::RwLockReadGuard;

/// The memtable.
#[derive(Debug)]
pub(crate) struct Memtable {
    entries: EntryTable,
    batches: RankedRwLock<Batches>,
    /// Held while rows are inserted, so that each row is compared with the newest of its key. Reads never acquire it.
    inserts: RankedMutex<()>,
}

/// The right to insert rows.
#[derive(Debug)]
pub(crate) struct Inserting<'a> {
    _guard: RankedGuard<'a, ()>,
}

impl Memtable {
    /// An empty memtable, for about `keys` keys.
    pub(crate) fn new(keys: usize) -> Self {
        Self {
            entries: EntryTable::new(keys),
            batches: RankedRwLock::new(Rank::Batches, Batches::default()),
            inserts: RankedMutex::new(Rank::Inserts, ()),
        }
    }

    /// Acquires the right to insert rows.
    pub(crate) fn lock_inserts(&self) -> Inserting<'_> {
        Inserting { _guard: self.inserts.lock() }
    }

    /// The number of entries.
    #[inline]
    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are no entries.
    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Bytes that the entries take.
    pub(crate) fn capacity_bytes(&self) -> usize {
        self.entries.capacity_bytes()
    }

    /// As [`EntryTable::lacks_room`].
    pub(crate) fn lacks_room(&self, keys: usize) -> bool {
        self.entries.lacks_room(keys)
    }

    /// As [`EntryTable::make_room`].
    pub(crate) fn make_room(&self, keys: usize) {
        self.entries.make_room(keys);
    }

    /// Calls `found`, which must be short, with every entry of `hash`. O(1).
    #[inline]
    pub(crate) fn find(&self, hash: u64, found: &mut impl FnMut(Entry)) {
        self.entries.find(hash, found);
    }

    /// Inserts rows `0..` of a batch, except those whose hashes are there: returns these, in order.
    pub(crate) fn insert_new(&self, _: &Inserting<'_>, hashes: &[u64], batch: BatchId) -> Vec<u32> {
        self.entries.insert_new(hashes, batch)
    }

    /// Inserts an entry in addition to existing ones.
    pub(crate) fn insert(&self, _: &Inserting<'_>, hash: u64, (batch, row): (BatchId, u32)) {
        self.entries.insert(hash, batch, row);
    }

    /// Replaces an older entry; returns whether it was there.
    pub(crate) fn replace(&self, _: &Inserting<'_>, hash: u64, old: (BatchId, u32), new: (BatchId, u32)) -> bool {
        self.entries.replace(hash, old, new)
    }

    /// The batches, for looking up several.
    #[inline]
    pub(crate) fn batches(&self) -> Ranked<RwLockReadGuard<'_, Batches>> {
        self.batches.read()
    }

    /// Where the rows of batch `id` are. `None` if they were merged into a run, which the version that is loaded next
    /// has.
    #[inline]
    pub(crate) fn source(&self, id: BatchId) -> Option<Source> {
        // The lock is held to copy a reference, not while rows are read.
        self.batches.read().get(id).map(|batch| batch.source.clone())
    }

    /// All batches with their ids, oldest first.
    pub(crate) fn sorted(&self) -> Vec<(BatchId, MemBatch)> {
        self.batches.read().sorted()
    }

    /// Adds a batch.
    ///
    /// # Errors
    /// [`Error::ReadOnly`] when the batch ids are used up.
    pub(crate) fn add_batch(&self, source: Source, rows: u32) -> Result<BatchId> {
        let id = self.reserve_batch()?;
        self.fill_batch(id, source, rows);
        Ok(id)
    }

    /// Reserves the id of a batch that is filled later. Until then its entries have no row.
    ///
    /// # Errors
    /// As [`Memtable::add_batch`].
    pub(crate) fn reserve_batch(&self) -> Result<BatchId> {
        self.batches.write().reserve().ok_or_else(|| Error::ReadOnly {
            why: "this handle has used up its 2^32 batches of puts: close and open the store".into(),
        })
    }

    /// Sets the place of the rows of a reserved batch.
    pub(crate) fn fill_batch(&self, id: BatchId, source: Source, rows: u32) {
        self.batches.write().fill(id, source, rows);
    }

    /// Removes a batch without entries.
    pub(crate) fn remove_batch(&self, id: BatchId) {
        self.batches.write().remove(|other| other == id);
    }

    /// Removes a reserved batch that will not be filled, and its entries.
    pub(crate) fn abandon(&self, _: &Inserting<'_>, id: BatchId) {
        self.entries.prune(|entry| entry.batch != id);
    }

    /// Sets the new places of several batches at once.
    pub(crate) fn moved(&self, batches: impl Iterator<Item = (BatchId, Source)>) {
        let mut all = self.batches.write();
        batches.for_each(|(id, source)| all.moved(id, source));
    }

    /// Points the batches of `segment`, which was active, to the sealed file, so that only readers still hold the
    /// growing file. A batch that cannot be read keeps its place.
    pub(crate) fn segment_sealed(&self, segment: &Segment) {
        let batches = segment.batches().map_or(0, |batches| batches.frames().len());
        let batches: Vec<Arc<Batch>> =
            (0..batches).filter_map(|number| segment.batch(number).ok().map(Arc::clone)).collect();
        let before = self.batches.write().sealed(segment.id, &batches);
        // Dropped after the lock is released: dropping the last batch unmaps the file, which takes milliseconds.
        drop(before);
    }

    /// Points the rows of replaced segments, whose maps `map` has, to their new places in `segment`. Their batches are
    /// removed; a lookup that misses one looks up again.
    ///
    /// # Errors
    /// As [`Memtable::add_batch`].
    pub(crate) fn replace_segments<'m>(
        &self,
        _: &Inserting<'_>,
        segment: &Arc<Segment>,
        map: impl Fn(SegmentId) -> Option<&'m RowMap>,
    ) -> Result<()> {
        let is_replaced = |source: &Source| source.segment().is_some_and(|id| map(id).is_some());
        let batches = self.batches.read();
        let gone: HashMap<BatchId, Source, BuildHasherDefault<BatchIdHasher>> =
            batches.ids_of(is_replaced).filter_map(|id| Some((id, batches.get(id)?.source.clone()))).collect();
        drop(batches);
        if gone.is_empty() {
            return Ok(());
        }
        let batch = self.add_batch(Source::Sealed(Arc::clone(segment)), segment.rows())?;
        self.entries.relocate(|entry| {
            let Some(source) = gone.get(&entry.batch) else { return Some((entry.batch, entry.row)) };
            let (id, first_row) = source.first_row()?;
            let row = u32::try_from(first_row + u64::from(entry.row)).ok()?;
            map(id)?.get(row).map(|row| (batch, row))
        });
        let removed = self.batches.write().remove(|id| gone.contains_key(&id));
        drop(removed);
        Ok(())
    }

    /// Drops the rows of `segments`, which are in a published run or gone.
    pub(crate) fn drop_segments(&self, segments: &dyn Fn(SegmentId) -> bool) {
        let dropped = |source: &Source| source.segment().is_some_and(segments);
        // A set, since it is searched for each entry while puts wait for its shard.
        let gone: HashSet<BatchId, BuildHasherDefault<BatchIdHasher>> = self.batches.read().ids_of(dropped).collect();
        if gone.is_empty() {
            return;
        }
        // If no batch is left, no entry is. The thread that publishes may be the one that inserts rows, so it only
        // tries the lock.
        let cleared = self.inserts.try_lock().is_some_and(|_inserting| {
            let all = self.batches.read().ids().all(|id| gone.contains(&id));
            if all {
                self.entries.clear();
            }
            all
        });
        if !cleared {
            self.entries.prune(|entry| !gone.contains(&entry.batch));
        }
        let removed = self.batches.write().remove(|id| gone.contains(&id));
        // Dropped after the lock is released: dropping the last batch of a segment unmaps it, which takes milliseconds.
        drop(removed);
    }
}
