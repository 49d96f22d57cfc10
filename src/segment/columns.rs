//! Rows as columns: one form for rows that wait in memory and for rows in a mapped batch.

use std::sync::Arc;

use bytes::Bytes;

use crate::key::KeyHasher;
use crate::prefetch::{lines_at_start, prefetch_lines, prefetch_read};
use crate::schema::RowSchema;

/// The keys of a batch.
#[derive(Debug, Clone)]
pub(crate) enum KeyColumn {
    /// Eight little-endian bytes a row.
    U64(Bytes),
    /// Arrow offsets (`i32`, one more than rows) and the key bytes.
    Variable { offsets: Bytes, data: Bytes },
}

/// The values of one leaf.
#[derive(Debug, Clone)]
pub(crate) enum LeafColumn {
    /// `width` bytes a row.
    Fixed { width: usize, data: Bytes },
    /// One bit a row, least significant first.
    Bits(Bytes),
    /// Offsets in units of `unit` bytes; `dims` has `rank` `i32` a row.
    Variable { offsets: Bytes, unit: usize, data: Bytes, dims: Bytes, rank: usize },
}

/// Rows of one structure.
#[derive(Debug, Clone)]
pub(crate) struct Columns {
    pub schema: Arc<RowSchema>,
    pub rows: usize,
    pub keys: KeyColumn,
    /// The commit timestamp of each row (`u64`), in a segment that has them.
    pub times: Option<Bytes>,
    pub leaves: Vec<LeafColumn>,
}

/// Rows to be written, as columns. The data of their one leaf may still be in the caller's memory.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BatchPart<'a> {
    pub columns: &'a Columns,
    borrowed: Option<&'a [u8]>,
}

impl<'a> From<&'a Columns> for BatchPart<'a> {
    fn from(columns: &'a Columns) -> Self {
        Self { columns, borrowed: None }
    }
}

impl<'a> BatchPart<'a> {
    /// Columns without the data of their one leaf of fixed width, which are `values`.
    pub(crate) fn zero_copy(columns: &'a Columns, values: &'a [u8]) -> Self {
        Self { columns, borrowed: Some(values) }
    }

    /// The data of leaf `leaf`.
    pub(crate) fn data(&self, leaf: usize) -> Option<&'a [u8]> {
        let (LeafColumn::Fixed { data, .. } | LeafColumn::Bits(data) | LeafColumn::Variable { data, .. }) =
            self.columns.leaves.get(leaf)?;
        Some(self.borrowed.unwrap_or(data))
    }

    /// Bytes of the rows in memory.
    pub(crate) fn len_bytes(&self) -> usize {
        self.columns.len_bytes() + self.borrowed.map_or(0, <[u8]>::len)
    }
}

/// The stored bytes of one leaf of one row.
#[derive(Debug, Clone, Copy)]
pub(crate) enum LeafBytes<'a> {
    Bit(bool),
    /// The bytes' position in the column, so that a value can share the column's memory, and the row's dimensions.
    Bytes {
        column: &'a Bytes,
        start: usize,
        end: usize,
        dims: &'a [u8],
    },
}

impl<'a> LeafBytes<'a> {
    /// The bytes; empty for a bit.
    #[inline]
    pub(crate) fn as_slice(&self) -> &'a [u8] {
        match self {
            Self::Bit(_) => &[],
            Self::Bytes { column, start, end, .. } => column.get(*start..*end).unwrap_or(&[]),
        }
    }
}

/// The `index`-th little-endian `i32` of `bytes`, as a count.
#[inline]
pub(crate) fn offset_at(bytes: &[u8], index: usize) -> Option<usize> {
    let start = index.checked_mul(4)?;
    let four: [u8; 4] = bytes.get(start..start.checked_add(4)?)?.try_into().ok()?;
    usize::try_from(i32::from_le_bytes(four)).ok()
}

#[inline]
fn span(offsets: &[u8], unit: usize, data: &[u8], row: usize) -> Option<(usize, usize)> {
    let start = offset_at(offsets, row)?.checked_mul(unit)?;
    let end = offset_at(offsets, row.checked_add(1)?)?.checked_mul(unit)?;
    (start <= end && end <= data.len()).then_some((start, end))
}

impl KeyColumn {
    /// The canonical bytes of the key in `row`; `None` if there is no such row or its offsets are out of bounds.
    #[inline]
    pub(crate) fn get(&self, row: usize) -> Option<&[u8]> {
        match self {
            Self::U64(data) => {
                let start = row.checked_mul(8)?;
                data.get(start..start.checked_add(8)?)
            }
            Self::Variable { offsets, data } => {
                let (start, end) = span(offsets, 1, data, row)?;
                data.get(start..end)
            }
        }
    }

    /// Prefetches the offset of the key in `row`, or the key itself if all have one length.
    #[inline]
    pub(crate) fn prefetch(&self, row: usize) {
        match self {
            Self::U64(data) => prefetch_read(data, row * 8),
            Self::Variable { offsets, .. } => prefetch_read(offsets, row * 4),
        }
    }

    /// Prefetches the key in `row`, if [`KeyColumn::prefetch`] prefetched its offset.
    #[inline]
    pub(crate) fn prefetch_variable(&self, row: usize) {
        if let Self::Variable { offsets, data } = self
            && let Some(start) = offset_at(offsets, row)
        {
            prefetch_read(data, start);
        }
    }
}

impl LeafColumn {
    /// Prefetches the first cache lines of `row`.
    #[inline]
    pub(crate) fn prefetch(&self, row: usize) {
        if let Self::Fixed { width, data } = self {
            let start = row.saturating_mul(*width);
            let row = data.get(start..start.saturating_add(*width));
            row.into_iter().for_each(|row| prefetch_lines(row, lines_at_start(*width)));
        }
    }

    /// The values of all rows, one after another.
    pub(crate) fn data(&self) -> &[u8] {
        match self {
            Self::Fixed { data, .. } | Self::Bits(data) | Self::Variable { data, .. } => data,
        }
    }

    /// A column of this form with these rows. `None` if one of them is missing.
    fn gather<'a>(&self, rows: impl Iterator<Item = Option<LeafBytes<'a>>>) -> Option<Self> {
        let (mut data, mut all_dims, mut offsets) = (Vec::new(), Vec::new(), 0_i32.to_le_bytes().to_vec());
        for (position, row) in rows.enumerate() {
            match row? {
                LeafBytes::Bit(flag) => {
                    data.resize(position / 8 + 1, 0);
                    *data.last_mut()? |= u8::from(flag) << (position % 8);
                }
                leaf @ LeafBytes::Bytes { dims, .. } => {
                    data.extend_from_slice(leaf.as_slice());
                    all_dims.extend_from_slice(dims);
                }
            }
            if let Self::Variable { unit, .. } = self {
                let end = i32::try_from(data.len().checked_div(*unit)?).ok()?;
                offsets.extend_from_slice(&end.to_le_bytes());
            }
        }
        Some(match self {
            Self::Fixed { width, .. } => Self::Fixed { width: *width, data: data.into() },
            Self::Bits(_) => Self::Bits(data.into()),
            Self::Variable { unit, rank, .. } => Self::Variable {
                offsets: offsets.into(),
                unit: *unit,
                data: data.into(),
                dims: all_dims.into(),
                rank: *rank,
            },
        })
    }

    /// The stored bytes of `row`.
    #[inline]
    pub(crate) fn get(&self, row: usize) -> Option<LeafBytes<'_>> {
        match self {
            Self::Fixed { width, data } => {
                let start = row.checked_mul(*width)?;
                let end = start.checked_add(*width)?;
                (end <= data.len()).then_some(LeafBytes::Bytes { column: data, start, end, dims: &[] })
            }
            Self::Bits(data) => data.get(row / 8).map(|byte| LeafBytes::Bit(byte >> (row % 8) & 1 == 1)),
            Self::Variable { offsets, unit, data, dims, rank } => {
                let (start, end) = span(offsets, *unit, data, row)?;
                let width = rank.checked_mul(4)?;
                let from = row.checked_mul(width)?;
                let dims = dims.get(from..from.checked_add(width)?)?;
                Some(LeafBytes::Bytes { column: data, start, end, dims })
            }
        }
    }
}

impl Columns {
    /// The canonical bytes of the key in `row`.
    #[inline]
    pub(crate) fn key(&self, row: usize) -> Option<&[u8]> {
        if row < self.rows { self.keys.get(row) } else { None }
    }

    /// The commit timestamp of `row`, if rows have their own.
    #[inline]
    pub(crate) fn time(&self, row: usize) -> Option<u64> {
        let times = self.times.as_ref()?.as_chunks::<8>().0;
        times.get(row).map(|time| u64::from_le_bytes(*time))
    }

    /// The same rows without their commit timestamps.
    pub(crate) fn without_times(&self) -> Self {
        Self { times: None, ..self.clone() }
    }

    /// The same rows with these commit timestamps, one a row.
    pub(crate) fn with_times(self, times: &[u64]) -> Self {
        let times: Vec<u8> = times.iter().flat_map(|time| time.to_le_bytes()).collect();
        Self { times: Some(times.into()), ..self }
    }

    /// The hashes of all keys.
    pub(crate) fn hashes(&self, hasher: KeyHasher) -> Vec<u64> {
        match &self.keys {
            KeyColumn::U64(data) => data.as_chunks::<8>().0.iter().map(|key| hasher.hash(key)).collect(),
            keys @ KeyColumn::Variable { .. } => {
                (0..self.rows).map(|row| keys.get(row).map_or(0, |key| hasher.hash(key))).collect()
            }
        }
    }

    /// The stored bytes of leaf `leaf` in `row`.
    #[inline]
    pub(crate) fn leaf(&self, leaf: usize, row: usize) -> Option<LeafBytes<'_>> {
        if row < self.rows { self.leaves.get(leaf)?.get(row) } else { None }
    }

    /// The stored bytes of leaf `leaf` in `row`, if they are `width` in every row.
    #[inline]
    pub(crate) fn fixed_leaf(&self, leaf: usize, row: usize, width: usize) -> Option<&[u8]> {
        let LeafColumn::Fixed { width: stored, data } = self.leaves.get(leaf)? else { return None };
        let start = row.checked_mul(width)?;
        if *stored == width { data.get(start..start.checked_add(width)?) } else { None }
    }

    /// Bytes of the columns in memory.
    pub(crate) fn len_bytes(&self) -> usize {
        let keys = match &self.keys {
            KeyColumn::U64(data) => data.len(),
            KeyColumn::Variable { offsets, data } => offsets.len() + data.len(),
        };
        let leaves = self.leaves.iter().map(|leaf| match leaf {
            LeafColumn::Fixed { data, .. } | LeafColumn::Bits(data) => data.len(),
            LeafColumn::Variable { offsets, data, dims, .. } => offsets.len() + data.len() + dims.len(),
        });
        keys + self.times.as_ref().map_or(0, Bytes::len) + leaves.sum::<usize>()
    }

    /// Bytes of the key and the leaves of `row`; `None` if some of them are out of bounds. O(leaves).
    pub(crate) fn row_len_bytes(&self, row: usize) -> Option<usize> {
        let leaves = self.leaves.iter().map(|leaf| match leaf.get(row)? {
            LeafBytes::Bit(_) => Some(1),
            LeafBytes::Bytes { start, end, dims, .. } => Some(end - start + dims.len()),
        });
        leaves.sum::<Option<usize>>()?.checked_add(self.key(row)?.len())
    }

    /// A copy of some of the rows, as they are stored. `None` if one of them is out of bounds.
    pub(crate) fn take(&self, rows: &[usize]) -> Option<Self> {
        self.gather(rows.iter().map(|row| (self, *row)))
    }

    /// A copy of rows of columns of this structure, in this order. `None` if one of them is out of bounds.
    pub(crate) fn gather<'a>(&self, rows: impl Iterator<Item = (&'a Self, usize)> + Clone) -> Option<Self> {
        let offset = |len: usize| i32::try_from(len).ok().map(i32::to_le_bytes);
        let mut key_offsets = 0_i32.to_le_bytes().to_vec();
        let mut key_data = Vec::new();
        for (columns, row) in rows.clone() {
            key_data.extend_from_slice(columns.key(row)?);
            key_offsets.extend_from_slice(&offset(key_data.len())?);
        }
        let keys = match &self.keys {
            KeyColumn::U64(_) => KeyColumn::U64(key_data.into()),
            KeyColumn::Variable { .. } => KeyColumn::Variable { offsets: key_offsets.into(), data: key_data.into() },
        };
        let times = match &self.times {
            Some(_) => {
                let times = rows.clone().map(|(columns, row)| columns.time(row).map(u64::to_le_bytes));
                Some(times.collect::<Option<Vec<[u8; 8]>>>()?.into_flattened().into())
            }
            None => None,
        };
        let leaves = self.leaves.iter().enumerate();
        let leaves = leaves.map(|(leaf, like)| like.gather(rows.clone().map(|(columns, row)| columns.leaf(leaf, row))));
        let leaves = leaves.collect::<Option<Vec<_>>>()?;
        Some(Self { schema: Arc::clone(&self.schema), rows: rows.count(), keys, times, leaves })
    }
}
