//! Rows, wherever they are: waiting in memory, committed to an active segment, or sealed.

use std::sync::{Arc, OnceLock};

use crate::engine::rows::cached_batch::CachedBatch;
use crate::error::{Error, Result};
use crate::names::SegmentId;
use crate::schema::RowSchema;
use crate::segment::batch::{Batch, Verify};
use crate::segment::columns::Columns;
use crate::segment::reader::Segment;

/// The id of a batch of rows, to which entries of the memtable point.
pub(crate) type BatchId = u32;

/// A batch that waits to be written, and its id.
pub(crate) type QueuedBatch = (BatchId, Arc<PendingBatch>);

/// Rows that wait to be written. They can be read at once.
#[derive(Debug)]
pub(crate) struct PendingBatch {
    pub columns: Columns,
    pub hashes: Vec<u64>,
    pub len_bytes: usize,
    /// Where the rows are once they are written, for readers that found them before.
    pub written: OnceLock<Source>,
}

/// Where the rows of a batch are.
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

/// How new a row is: by commit timestamp, then lane, then order of arrival. Rows that wait are newer than all others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct RowVersion {
    pub timestamp: u64,
    pub lane: u16,
    pub order: u64,
}

/// A row's batch: kept alive, or borrowed from the version in which the row was found (a reference count would be a
/// write to memory that all readers share, for every row). The batch id, or the lane, is needed to tell how new the row
/// is.
#[derive(Debug, Clone)]
pub(crate) enum Holder<'v> {
    Pending(Arc<PendingBatch>, BatchId),
    Batch(Arc<Batch>, u16),
    Cached(&'v CachedBatch),
}

/// One row.
#[derive(Debug, Clone)]
pub(crate) struct Row<'v> {
    pub holder: Holder<'v>,
    pub row: usize,
}

impl RowVersion {
    /// Newer than every row.
    pub(crate) const NEWEST: Self = Self { timestamp: u64::MAX, lane: u16::MAX, order: u64::MAX };

    /// The version of row `row` of `segment`; if damage hides it, its upper bound.
    pub(crate) fn of_segment(segment: &Segment, row: u32) -> Self {
        let timestamp = segment.timestamp(row).unwrap_or(segment.seal.last_timestamp);
        Self { timestamp, lane: segment.id.lane, order: u64::from(row) }
    }
}

impl Row<'_> {
    /// An error that says what is damaged in the row.
    pub(crate) fn corrupt(&self, what: &str) -> Error {
        match &self.holder {
            Holder::Batch(batch, _) => batch.corrupt(self.row, what),
            Holder::Cached(cached) => cached.batch.corrupt(self.row, what),
            Holder::Pending(..) => Error::invalid(format!("a row that waits to be written: {what}")),
        }
    }

    /// The columns that the row is in.
    #[inline]
    pub(crate) fn columns(&self) -> &Columns {
        match &self.holder {
            Holder::Pending(pending, _) => &pending.columns,
            Holder::Batch(batch, _) => &batch.columns,
            Holder::Cached(cached) => &cached.batch.columns,
        }
    }

    /// The structure of the row.
    #[inline]
    pub(crate) fn schema(&self) -> &Arc<RowSchema> {
        match &self.holder {
            Holder::Pending(pending, _) => &pending.columns.schema,
            Holder::Batch(batch, _) => &batch.columns.schema,
            Holder::Cached(cached) => cached.schema(),
        }
    }

    /// How new the row is.
    #[inline]
    pub(crate) fn version(&self) -> RowVersion {
        let (batch, lane) = match &self.holder {
            Holder::Pending(_, id) => {
                let order = u64::from(*id) << 32 | self.row as u64;
                return RowVersion { timestamp: u64::MAX, lane: u16::MAX, order };
            }
            Holder::Batch(batch, lane) => (&**batch, *lane),
            Holder::Cached(cached) => (&*cached.batch, cached.lane),
        };
        RowVersion { timestamp: batch.timestamp(self.row), lane, order: batch.frame.first_row + self.row as u64 }
    }

    /// Whether it is newer than `other`; true if there is none.
    #[inline]
    pub(crate) fn is_newer(&self, other: Option<&Row<'_>>) -> bool {
        other.is_none_or(|other| self.version() > other.version())
    }

    /// Whether the row waits to be written.
    pub(crate) fn waits(&self) -> bool {
        matches!(self.holder, Holder::Pending(..))
    }

    /// Whether `other`, which was found later, is this row. A waiting row gets another version when it is written.
    pub(crate) fn is_still(&self, other: &Row<'_>) -> Result<bool> {
        let version = other.version();
        if self.version() == version {
            return Ok(true);
        }
        let Holder::Pending(pending, id) = &self.holder else { return Ok(false) };
        let Some(written) = pending.written.get() else { return Ok(false) };
        Ok(written.row(*id, self.row as u32)?.is_some_and(|written| written.version() == version))
    }

    /// The canonical bytes of the key.
    #[inline]
    pub(crate) fn key(&self) -> Option<&[u8]> {
        self.columns().key(self.row)
    }

    /// Prefetches the row's bytes.
    #[inline]
    pub(crate) fn prefetch(&self) {
        if let Some(leaf) = self.columns().leaves.first() {
            leaf.prefetch(self.row);
        }
    }

    /// Counts a sampled read of the row's batch; rows that wait have none.
    pub(crate) fn note_read(&self) {
        match &self.holder {
            Holder::Pending(..) => {}
            Holder::Batch(batch, _) => batch.note_read(),
            Holder::Cached(cached) => cached.batch.note_read(),
        }
    }

    /// Whether the row is a tombstone.
    #[inline]
    pub(crate) fn is_tombstone(&self) -> bool {
        match &self.holder {
            Holder::Pending(pending, _) => pending.columns.schema.is_tombstones(),
            Holder::Batch(batch, _) => batch.columns.schema.is_tombstones(),
            Holder::Cached(cached) => cached.is_tombstones(),
        }
    }

    /// The stored bytes of leaf `leaf`, if they are `width` in every row.
    #[inline]
    pub(crate) fn fixed_leaf(&self, leaf: usize, width: usize) -> Option<&[u8]> {
        match &self.holder {
            Holder::Pending(pending, _) => pending.columns.fixed_leaf(leaf, self.row, width),
            Holder::Batch(batch, _) => batch.columns.fixed_leaf(leaf, self.row, width),
            Holder::Cached(cached) => cached.fixed_leaf(leaf, self.row, width),
        }
    }

    /// Whether [`Row::check`] has nothing left to compare.
    #[inline]
    pub(crate) fn is_checked(&self, verify: Verify) -> bool {
        match &self.holder {
            Holder::Pending(..) => true,
            Holder::Batch(batch, _) => batch.is_checked(self.row, verify),
            Holder::Cached(cached) => cached.is_checked(self.row, verify),
        }
    }

    /// Compares the row's checksum, as the policy requires; rows in memory have none.
    #[inline]
    pub(crate) fn check(&self, verify: Verify) -> Result<()> {
        match &self.holder {
            Holder::Pending(..) => Ok(()),
            Holder::Batch(batch, _) => batch.check_row(self.row, verify),
            Holder::Cached(cached) => cached.batch.check_row(self.row, verify),
        }
    }

    /// The batch that the row is in; rows in memory are in none.
    fn batch(&self) -> Option<&Batch> {
        match &self.holder {
            Holder::Pending(..) => None,
            Holder::Batch(batch, _) => Some(batch),
            Holder::Cached(cached) => Some(&cached.batch),
        }
    }

    /// Whether [`Row::check_leaves`] has nothing left to compare.
    #[inline]
    pub(crate) fn leaves_are_checked(&self, verify: Verify, leaves: &[usize]) -> bool {
        self.batch().is_none_or(|batch| batch.leaves_are_checked(self.row, verify, leaves))
    }

    /// As [`Row::check`], but only for some of the leaves, if these have checksums of their own.
    #[inline]
    pub(crate) fn check_leaves(&self, verify: Verify, leaves: &[usize]) -> Result<()> {
        self.batch().map_or(Ok(()), |batch| batch.check_leaves(self.row, verify, leaves))
    }

    /// Whether comparing the checksum of the row without any of its leaves reads `leaf`.
    pub(crate) fn is_checked_with(&self, leaf: usize) -> bool {
        self.batch().is_some_and(|batch| !batch.has_leaf_crc(leaf))
    }
}

impl Row<'static> {
    /// The row of a sealed segment, if there is one. In a damaged batch, rows that match their own checksums can be
    /// read.
    pub(crate) fn of_segment(segment: &Segment, row: u32) -> Result<Option<Self>> {
        let Some((number, within)) = segment.locate(row)? else { return Ok(None) };
        let batch = segment.batch_of_row(number, within)?;
        Ok(Some(Self { holder: Holder::Batch(Arc::clone(batch), segment.id.lane), row: within }))
    }
}

impl Source {
    /// The segment of the rows, if they are in one.
    pub(crate) fn segment(&self) -> Option<SegmentId> {
        match self {
            Self::Pending(_) => None,
            Self::Committed { segment, .. } => Some(*segment),
            Self::Sealed(segment) => Some(segment.id),
        }
    }

    /// The segment of the rows, and the number of the first row there.
    pub(crate) fn first_row(&self) -> Option<(SegmentId, u64)> {
        match self {
            Self::Pending(_) => None,
            Self::Committed { segment, batch, first } => Some((*segment, batch.frame.first_row + u64::from(*first))),
            Self::Sealed(segment) => Some((segment.id, 0)),
        }
    }

    /// Whether the rows are tombstones.
    pub(crate) fn is_tombstones(&self) -> bool {
        match self {
            Self::Pending(pending) => pending.columns.schema.is_tombstones(),
            Self::Committed { batch, .. } => batch.columns.schema.is_tombstones(),
            Self::Sealed(segment) => segment.schema().is_tombstones(),
        }
    }

    /// The current place of the rows: they may have been written since.
    pub(crate) fn now(self) -> Self {
        match &self {
            Self::Pending(pending) => pending.written.get().cloned().unwrap_or(self),
            Self::Committed { .. } | Self::Sealed(_) => self,
        }
    }

    /// The version of row `row`; its upper bound if the row cannot be read.
    pub(crate) fn version(&self, row: u32) -> RowVersion {
        match self {
            Self::Pending(_) => RowVersion::NEWEST,
            Self::Committed { segment, batch, first } => RowVersion {
                timestamp: batch.timestamp(*first as usize + row as usize),
                lane: segment.lane,
                order: batch.frame.first_row + u64::from(*first) + u64::from(row),
            },
            Self::Sealed(segment) => RowVersion::of_segment(segment, row),
        }
    }

    /// Row `row` of batch `id`.
    #[inline]
    pub(crate) fn row(&self, id: BatchId, row: u32) -> Result<Option<Row<'static>>> {
        match self {
            Self::Pending(pending) => {
                Ok(Some(Row { holder: Holder::Pending(Arc::clone(pending), id), row: row as usize }))
            }
            Self::Committed { segment, batch, first } => {
                let row = *first as usize + row as usize;
                Ok(Some(Row { holder: Holder::Batch(Arc::clone(batch), segment.lane), row }))
            }
            Self::Sealed(segment) => Row::of_segment(segment, row),
        }
    }
}
