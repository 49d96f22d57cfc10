//! Rows wherever they are: waiting in memory, committed to an active segment, or sealed.

use std::sync::{Arc, OnceLock};

use std::collections::HashMap;

use crate::engine::rows::cached_batch::Head;
use crate::error::Result;
use crate::names::SegmentId;
use crate::schema::RowSchema;
use crate::segment::batch::{Batch, Verify};
use crate::segment::columns::Columns;
use crate::segment::reader::Segment;

/// Rows that wait to be written. They can be read at once.
#[derive(Debug)]
pub(crate) struct PendingBatch {
    pub columns: Columns,
    pub hashes: Vec<u64>,
    pub len_bytes: usize,
    /// Where the rows are once they were written, for whoever has them from before.
    pub written: OnceLock<Source>,
}

/// Where the rows of a slot are. A slot keeps its number while its rows move from memory to a segment, so entries of
/// the delta never have to be touched for that.
#[derive(Debug, Clone)]
pub(crate) enum Source {
    Pending(Arc<PendingBatch>),
    /// Rows of `batch` from `first` on.
    Committed {
        segment: SegmentId,
        batch: Arc<Batch>,
        first: u32,
    },
    Sealed(Arc<Segment>),
}

/// How new a row is: by commit stamp, then lane, then order of arrival. Rows that wait are newer than all others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Age {
    pub stamp: u64,
    pub lane: u16,
    pub order: u64,
}

/// A row's batch: kept alive, or borrowed from the view that it was found in (counting owners would cost a write to
/// memory that all readers share, for every row). Beside it the slot, or the lane: with them it says how new a row is.
#[derive(Debug, Clone)]
pub(crate) enum Holder<'v> {
    Pending(Arc<PendingBatch>, u32),
    Batch(Arc<Batch>, u16),
    Viewed(&'v Head),
}

/// One row.
#[derive(Debug, Clone)]
pub(crate) struct Row<'v> {
    pub holder: Holder<'v>,
    pub row: usize,
}

impl Age {
    /// How new row `row` of `segment` is; where no frame tells, how new it can be.
    pub(crate) fn of_segment(segment: &Segment, row: u32) -> Self {
        let stamp = segment.frame_of(row).map_or(segment.seal.last_stamp, |frame| frame.stamp);
        Self { stamp, lane: segment.id.lane, order: u64::from(row) }
    }
}

impl Row<'_> {
    /// The columns that the row is in.
    #[inline]
    pub(crate) fn columns(&self) -> &Columns {
        match &self.holder {
            Holder::Pending(pending, _) => &pending.columns,
            Holder::Batch(batch, _) => &batch.columns,
            Holder::Viewed(head) => &head.batch.columns,
        }
    }

    /// How new the row is.
    #[inline]
    pub(crate) fn age(&self) -> Age {
        let (batch, lane) = match &self.holder {
            Holder::Pending(_, slot) => {
                let order = u64::from(*slot) << 32 | self.row as u64;
                return Age { stamp: u64::MAX, lane: u16::MAX, order };
            }
            Holder::Batch(batch, lane) => (&**batch, *lane),
            Holder::Viewed(head) => (&*head.batch, head.lane),
        };
        Age { stamp: batch.frame.stamp, lane, order: batch.frame.first_row + self.row as u64 }
    }

    /// Whether the row waits to be written.
    pub(crate) fn waits(&self) -> bool {
        matches!(self.holder, Holder::Pending(..))
    }

    /// Whether `other`, which was found later and is as new as it gets, is this row: rows that wait change their age when
    /// they are written.
    pub(crate) fn is_still(&self, other: &Row<'_>) -> Result<bool> {
        let age = other.age();
        if self.age() == age {
            return Ok(true);
        }
        let Holder::Pending(pending, slot) = &self.holder else { return Ok(false) };
        let Some(written) = pending.written.get() else { return Ok(false) };
        Ok(written.row(*slot, self.row as u32)?.is_some_and(|written| written.age() == age))
    }

    /// The canonical bytes of the key.
    #[inline]
    pub(crate) fn key(&self) -> Option<&[u8]> {
        self.columns().key(self.row)
    }

    /// Asks for the row's bytes.
    #[inline]
    pub(crate) fn prefetch(&self) {
        if let Some(leaf) = self.columns().leaves.first() {
            leaf.prefetch(self.row);
        }
    }

    /// Whether the row says that its key was deleted.
    #[inline]
    pub(crate) fn is_tombstone(&self) -> bool {
        match &self.holder {
            Holder::Pending(pending, _) => pending.columns.schema.is_tombstones(),
            Holder::Batch(batch, _) => batch.columns.schema.is_tombstones(),
            Holder::Viewed(head) => head.is_tombstones(),
        }
    }

    /// The structure and the stored bytes of the row, if it is one tensor of `width` bytes, unpacked or not.
    #[inline]
    pub(crate) fn fixed(&self, width: usize) -> Option<(&Arc<RowSchema>, &[u8])> {
        match &self.holder {
            Holder::Pending(pending, _) => pending.columns.fixed_row(self.row, width),
            Holder::Batch(batch, _) => batch.columns.fixed_row(self.row, width),
            Holder::Viewed(head) => head.fixed_row(self.row, width),
        }
    }

    /// Whether [`Row::check`] has nothing to compare any more.
    #[inline]
    pub(crate) fn is_checked(&self, verify: Verify) -> bool {
        match &self.holder {
            Holder::Pending(..) => true,
            Holder::Batch(batch, _) => batch.is_checked(self.row, verify),
            Holder::Viewed(head) => head.is_checked(self.row, verify),
        }
    }

    /// Compares the row's checksum, as the policy wants; rows in memory have none.
    #[inline]
    pub(crate) fn check(&self, verify: Verify) -> Result<()> {
        match &self.holder {
            Holder::Pending(..) => Ok(()),
            Holder::Batch(batch, _) => batch.check_row(self.row, verify),
            Holder::Viewed(head) => head.batch.check_row(self.row, verify),
        }
    }
}

impl Row<'static> {
    /// The row of a sealed segment, if there is one. Of a damaged batch, rows that match their own checksums are there.
    pub(crate) fn of_segment(segment: &Segment, row: u32) -> Result<Option<Self>> {
        let Some((number, within)) = segment.locate(row)? else { return Ok(None) };
        let batch = segment.batch_of_row(number, within)?;
        Ok(Some(Self { holder: Holder::Batch(Arc::clone(batch), segment.id.lane), row: within }))
    }
}

impl Source {
    /// The segment that the rows are in, if they are in one.
    pub(crate) fn segment(&self) -> Option<SegmentId> {
        match self {
            Self::Pending(_) => None,
            Self::Committed { segment, .. } => Some(*segment),
            Self::Sealed(segment) => Some(segment.id),
        }
    }

    /// Whether the rows say that their keys were deleted.
    pub(crate) fn is_tombstones(&self) -> bool {
        match self {
            Self::Pending(pending) => pending.columns.schema.is_tombstones(),
            Self::Committed { batch, .. } => batch.columns.schema.is_tombstones(),
            Self::Sealed(segment) => segment.schema().is_tombstones(),
        }
    }

    /// Where the rows are by now, if they have been written since this was said.
    pub(crate) fn now(self) -> Self {
        match &self {
            Self::Pending(pending) => pending.written.get().cloned().unwrap_or(self),
            Self::Committed { .. } | Self::Sealed(_) => self,
        }
    }

    /// How new row `row` is, or, where it cannot be read, can be.
    pub(crate) fn age(&self, row: u32) -> Age {
        match self {
            Self::Pending(_) => Age::NEWEST,
            Self::Committed { segment, batch, first } => Age {
                stamp: batch.frame.stamp,
                lane: segment.lane,
                order: batch.frame.first_row + u64::from(*first) + u64::from(row),
            },
            Self::Sealed(segment) => Age::of_segment(segment, row),
        }
    }

    /// Row `row` of slot `slot`.
    #[inline]
    pub(crate) fn row(&self, slot: u32, row: u32) -> Result<Option<Row<'static>>> {
        match self {
            Self::Pending(pending) => {
                Ok(Some(Row { holder: Holder::Pending(Arc::clone(pending), slot), row: row as usize }))
            }
            Self::Committed { segment, batch, first } => {
                let row = *first as usize + row as usize;
                Ok(Some(Row { holder: Holder::Batch(Arc::clone(batch), segment.lane), row }))
            }
            Self::Sealed(segment) => Row::of_segment(segment, row),
        }
    }
}

/// A slot: its rows, and how many they are.
#[derive(Debug, Clone)]
pub(crate) struct Slot {
    pub source: Source,
    pub rows: u32,
}

/// The slots that entries of the delta point to.
#[derive(Debug, Default)]
pub(crate) struct Slots {
    slots: HashMap<u32, Slot, std::hash::BuildHasherDefault<SlotHasher>>,
    next: u32,
    /// The slots whose rows are in each segment that is not sealed yet.
    unsealed: HashMap<SegmentId, Vec<u32>>,
}

/// Slot numbers count up, so they need no mixing beyond spreading over the table's tag bits.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct SlotHasher(u64);

impl std::hash::Hasher for SlotHasher {
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

impl Slots {
    /// The number of a new slot, or `None` when 2^32 were used up. Entries that point to it are of no row until it is
    /// [filled](Slots::fill).
    pub(crate) fn reserve(&mut self) -> Option<u32> {
        let slot = self.next;
        self.next = self.next.checked_add(1)?;
        Some(slot)
    }

    /// Says where the rows of a new slot are.
    pub(crate) fn fill(&mut self, slot: u32, source: Source, rows: u32) {
        self.note(slot, &source);
        self.slots.insert(slot, Slot { source, rows });
    }

    /// The numbers of all slots.
    pub(crate) fn numbers(&self) -> impl Iterator<Item = u32> + '_ {
        self.slots.keys().copied()
    }

    /// The numbers of the slots whose rows are where `chosen` says. O(slots); puts wait meanwhile.
    pub(crate) fn numbers_of(&self, chosen: impl Fn(&Source) -> bool) -> impl Iterator<Item = u32> {
        self.slots.iter().filter(move |(_, slot)| chosen(&slot.source)).map(|(number, _)| *number)
    }

    /// The rows of `slot`.
    #[inline]
    pub(crate) fn get(&self, slot: u32) -> Option<&Slot> {
        self.slots.get(&slot)
    }

    /// Says where the rows of `slot` are now.
    pub(crate) fn moved(&mut self, slot: u32, source: Source) {
        self.note(slot, &source);
        if let Some(slot) = self.slots.get_mut(&slot) {
            slot.source = source;
        }
    }

    fn note(&mut self, slot: u32, source: &Source) {
        if let Source::Committed { segment, .. } = source {
            self.unsealed.entry(*segment).or_default().push(slot);
        }
    }

    /// Says that segment `id` is sealed, and that these are its batches: its slots let go of the file as it was while it
    /// grew. Returns what they had of it, to be dropped when nobody waits. O(slots of the segment).
    pub(crate) fn sealed(&mut self, id: SegmentId, batches: &[Arc<Batch>]) -> Vec<Source> {
        let mut before = Vec::new();
        for number in self.unsealed.remove(&id).unwrap_or_default() {
            let Some(Slot { source, .. }) = self.slots.get_mut(&number) else { continue };
            let Source::Committed { segment, batch: old, first } = &*source else { continue };
            let place = batches.binary_search_by_key(&old.frame.first_row, |batch| batch.frame.first_row);
            let new = place.ok().and_then(|place| batches.get(place)).filter(|new| new.frame == old.frame);
            if let (Some(new), true) = (new, *segment == id) {
                new.trust(old);
                let next = Source::Committed { segment: id, batch: Arc::clone(new), first: *first };
                before.push(std::mem::replace(source, next));
            }
        }
        before
    }

    /// Takes out the slots that are `gone`.
    pub(crate) fn remove(&mut self, gone: impl Fn(u32) -> bool) -> Vec<Slot> {
        self.slots.extract_if(|number, _| gone(*number)).map(|(_, slot)| slot).collect()
    }

    /// All slots with their numbers, oldest first.
    pub(crate) fn sorted(&self) -> Vec<(u32, Slot)> {
        let mut slots: Vec<_> = self.slots.iter().map(|(number, slot)| (*number, slot.clone())).collect();
        slots.sort_unstable_by_key(|(number, _)| *number);
        slots
    }
}
