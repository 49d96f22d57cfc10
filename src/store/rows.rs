//! Rows wherever they are: waiting in memory, committed to an active segment, or sealed.

use std::sync::Arc;

use std::collections::HashMap;

use crate::error::Result;
use crate::names::SegmentId;
use crate::segment::batch::{Batch, Verify};
use crate::segment::columns::Columns;
use crate::segment::reader::Segment;

/// Rows that wait to be written. They can be read at once.
#[derive(Debug)]
pub(crate) struct PendingBatch {
    pub columns: Columns,
    pub hashes: Vec<u64>,
    pub len_bytes: usize,
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

/// A row's batch, kept alive.
#[derive(Debug, Clone)]
pub(crate) enum Holder {
    Pending(Arc<PendingBatch>),
    Batch(Arc<Batch>),
}

/// One row.
#[derive(Debug, Clone)]
pub(crate) struct Row {
    pub holder: Holder,
    pub row: usize,
    pub age: Age,
}

impl Row {
    /// The columns that the row is in.
    #[inline]
    pub(crate) fn columns(&self) -> &Columns {
        match &self.holder {
            Holder::Pending(pending) => &pending.columns,
            Holder::Batch(batch) => &batch.columns,
        }
    }

    /// The canonical bytes of the key.
    #[inline]
    pub(crate) fn key(&self) -> Option<&[u8]> {
        self.columns().key(self.row)
    }

    /// Whether the row says that its key was deleted.
    #[inline]
    pub(crate) fn is_tombstone(&self) -> bool {
        self.columns().schema.is_tombstones()
    }

    /// Compares the row's checksum, as the policy wants; rows in memory have none.
    #[inline]
    pub(crate) fn check(&self, verify: Verify) -> Result<()> {
        match &self.holder {
            Holder::Pending(_) => Ok(()),
            Holder::Batch(batch) => batch.check_row(self.row, verify),
        }
    }

    /// The row of a sealed segment, if there is one.
    pub(crate) fn of_segment(segment: &Segment, row: u32) -> Result<Option<Self>> {
        let Some((number, within)) = segment.locate(row) else { return Ok(None) };
        let batch = segment.batch(number)?;
        let age = Age { stamp: batch.frame.stamp, lane: segment.id.lane, order: u64::from(row) };
        Ok(Some(Self { holder: Holder::Batch(Arc::clone(batch)), row: within, age }))
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

    /// Row `row` of slot `slot`.
    #[inline]
    pub(crate) fn row(&self, slot: u32, row: u32) -> Result<Option<Row>> {
        match self {
            Self::Pending(pending) => {
                let order = u64::from(slot) << 32 | u64::from(row);
                let age = Age { stamp: u64::MAX, lane: u16::MAX, order };
                Ok(Some(Row { holder: Holder::Pending(Arc::clone(pending)), row: row as usize, age }))
            }
            Self::Committed { segment, batch, first } => {
                let within = *first as usize + row as usize;
                let order = batch.frame.first_row + within as u64;
                let age = Age { stamp: batch.frame.stamp, lane: segment.lane, order };
                Ok(Some(Row { holder: Holder::Batch(Arc::clone(batch)), row: within, age }))
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
    /// A new slot, or `None` when 2^32 were used up.
    pub(crate) fn add(&mut self, source: Source, rows: u32) -> Option<u32> {
        let slot = self.next;
        self.next = self.next.checked_add(1)?;
        self.slots.insert(slot, Slot { source, rows });
        Some(slot)
    }

    /// The rows of `slot`.
    #[inline]
    pub(crate) fn get(&self, slot: u32) -> Option<&Slot> {
        self.slots.get(&slot)
    }

    /// Says where the rows of `slot` are now.
    pub(crate) fn moved(&mut self, slot: u32, source: Source) {
        if let Some(slot) = self.slots.get_mut(&slot) {
            slot.source = source;
        }
    }

    /// Drops slots.
    pub(crate) fn retain(&mut self, mut keep: impl FnMut(u32, &Slot) -> bool) {
        self.slots.retain(|number, slot| keep(*number, slot));
    }

    /// All slots with their numbers, oldest first.
    pub(crate) fn sorted(&self) -> Vec<(u32, Slot)> {
        let mut slots: Vec<_> = self.slots.iter().map(|(number, slot)| (*number, slot.clone())).collect();
        slots.sort_unstable_by_key(|(number, _)| *number);
        slots
    }
}
