//! The batches that memtable entries point to, by batch id.

use std::collections::HashMap;
use std::hash::BuildHasherDefault;
use std::sync::Arc;

use crate::engine::rows::row::{BatchId, Source};
use crate::names::SegmentId;
use crate::segment::batch::Batch;

/// A batch: where its rows are, and how many they are.
#[derive(Debug, Clone)]
pub(crate) struct MemBatch {
    pub source: Source,
    pub rows: u32,
}

/// Batches by batch id.
#[derive(Debug, Default)]
pub(crate) struct Batches {
    batches: HashMap<BatchId, MemBatch, BuildHasherDefault<BatchIdHasher>>,
    next: BatchId,
    /// The batches of each segment that is not sealed yet.
    unsealed: HashMap<SegmentId, Vec<BatchId>>,
}

/// Batch ids are consecutive, so they need no mixing beyond spreading over the table's tag bits.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct BatchIdHasher(u64);

impl std::hash::Hasher for BatchIdHasher {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u32(u32::from(byte));
        }
    }
    fn write_u32(&mut self, value: u32) {
        self.0 = (self.0 ^ u64::from(value)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    }
}

impl Batches {
    /// A new batch id, or `None` if 2^32 are used up. Entries that point to it have no row until it is
    /// [filled](Batches::fill).
    pub(crate) fn reserve(&mut self) -> Option<BatchId> {
        let id = self.next;
        self.next = self.next.checked_add(1)?;
        Some(id)
    }

    /// Sets the place of the rows of a new batch.
    pub(crate) fn fill(&mut self, id: BatchId, source: Source, rows: u32) {
        self.note(id, &source);
        let former = self.batches.insert(id, MemBatch { source, rows });
        debug_assert!(former.is_none(), "batch id {id} was given out twice");
    }

    /// All batch ids.
    pub(crate) fn ids(&self) -> impl Iterator<Item = BatchId> + '_ {
        self.batches.keys().copied()
    }

    /// The ids of the batches whose source is `chosen`. O(batches); puts wait meanwhile.
    pub(crate) fn ids_of(&self, chosen: impl Fn(&Source) -> bool) -> impl Iterator<Item = BatchId> {
        self.batches.iter().filter(move |(_, batch)| chosen(&batch.source)).map(|(id, _)| *id)
    }

    /// Batch `id`.
    #[inline]
    pub(crate) fn get(&self, id: BatchId) -> Option<&MemBatch> {
        self.batches.get(&id)
    }

    /// Sets the new place of the rows of batch `id`.
    pub(crate) fn moved(&mut self, id: BatchId, source: Source) {
        self.note(id, &source);
        let batch = self.batches.get_mut(&id);
        debug_assert!(batch.is_some(), "batch {id} was written and is not known");
        if let Some(batch) = batch {
            batch.source = source;
        }
    }

    fn note(&mut self, id: BatchId, source: &Source) {
        if let Source::Committed { segment, .. } = source {
            self.unsealed.entry(*segment).or_default().push(id);
        }
    }

    /// Marks segment `segment` as sealed, with the batches `sealed`: its batches now point to the sealed file instead
    /// of the growing one. Returns the former sources, which the caller drops after releasing the lock. O(batches of
    /// the segment).
    pub(crate) fn sealed(&mut self, segment: SegmentId, sealed: &[Arc<Batch>]) -> Vec<Source> {
        let mut before = Vec::new();
        for id in self.unsealed.remove(&segment).unwrap_or_default() {
            // A run may cover the batch, which is then gone.
            let Some(MemBatch { source, .. }) = self.batches.get_mut(&id) else { continue };
            let Source::Committed { segment: found, batch: old, first } = &*source else { continue };
            let place = sealed.binary_search_by_key(&old.frame.first_row, |batch| batch.frame.first_row);
            let new = place.ok().and_then(|place| sealed.get(place)).filter(|new| new.frame == old.frame);
            if let (Some(new), true) = (new, *found == segment) {
                new.trust(old);
                let next = Source::Committed { segment, batch: Arc::clone(new), first: *first };
                before.push(std::mem::replace(source, next));
            }
        }
        before
    }

    /// Removes the batches that are `gone`, and returns them.
    pub(crate) fn remove(&mut self, gone: impl Fn(BatchId) -> bool) -> Vec<MemBatch> {
        self.batches.extract_if(|id, _| gone(*id)).map(|(_, batch)| batch).collect()
    }

    /// All batches with their ids, oldest first.
    pub(crate) fn sorted(&self) -> Vec<(BatchId, MemBatch)> {
        let mut batches: Vec<_> = self.batches.iter().map(|(id, batch)| (*id, batch.clone())).collect();
        batches.sort_unstable_by_key(|(id, _)| *id);
        batches
    }
}
