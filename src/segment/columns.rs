//! Rows as columns: one form for rows that wait in memory and for rows in a mapped batch.

use std::sync::Arc;

use bytes::Bytes;

use crate::checksum::{crc32_from, crc32_on, crc32_start};
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

    /// Appends [`Columns::row_crc`] of all rows to `crcs`. `None` if the columns are inconsistent. O(bytes).
    pub(crate) fn row_crcs(&self, seed: u32, crcs: &mut Vec<u8>) -> Option<()> {
        let columns = self.columns;
        let [LeafColumn::Fixed { width, .. }] = columns.leaves.as_slice() else {
            return (0..columns.rows).try_for_each(|row| {
                crcs.extend_from_slice(&columns.row_crc(seed, row)?.to_le_bytes());
                Some(())
            });
        };
        let data = self.data(0)?;
        // All integers have the same length: its checksum is shared by all rows.
        let length = |key: &[u8]| u32::try_from(key.len()).ok().map(u32::to_le_bytes);
        let integers = matches!(columns.keys, KeyColumn::U64(_)).then(|| length(&[0; 8])).flatten();
        let integers = integers.map(|length| crc32_start(crc32_from(seed, &[&length])));
        for row in 0..columns.rows {
            let key = columns.key(row)?;
            let start = row.checked_mul(*width)?;
            let value = data.get(start..start.checked_add(*width)?)?;
            let crc = match &integers {
                Some(start) => crc32_on(start, &[key, value]),
                None => crc32_from(seed, &[&length(key)?, key, value]),
            };
            crcs.extend_from_slice(&crc.to_le_bytes());
        }
        Some(())
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

    /// The row checksum: CRC-32 seeded with the segment's identity, over the key's length (`u32`) and bytes, then each
    /// leaf: a byte 0 or 1 for a boolean; the bytes alone if all rows have the same number; else the dimensions (`i32`
    /// each), the length (`u64`) and the bytes. O(bytes of the row).
    pub(crate) fn row_crc(&self, seed: u32, row: usize) -> Option<u32> {
        let key = self.key(row)?;
        let key_len = u32::try_from(key.len()).ok()?.to_le_bytes();
        // One call for the common row: a key and one tensor.
        if let [LeafColumn::Fixed { width, data }] = self.leaves.as_slice() {
            let start = row.checked_mul(*width)?;
            return Some(crc32_from(seed, &[&key_len, key, data.get(start..start.checked_add(*width)?)?]));
        }
        let mut crc = crc32_from(seed, &[&key_len, key]);
        for column in &self.leaves {
            let leaf = column.get(row)?;
            crc = match (leaf, column) {
                (LeafBytes::Bit(flag), _) => crc32_from(crc, &[&[u8::from(flag)]]),
                (LeafBytes::Bytes { .. }, LeafColumn::Fixed { .. }) => crc32_from(crc, &[leaf.as_slice()]),
                (LeafBytes::Bytes { dims, .. }, _) => {
                    let bytes = leaf.as_slice();
                    crc32_from(crc, &[dims, &(bytes.len() as u64).to_le_bytes(), bytes])
                }
            };
        }
        Some(crc)
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
        keys + leaves.sum::<usize>()
    }

    /// A copy of some of the rows, as they are stored. `None` if one of them is out of bounds.
    pub(crate) fn take(&self, rows: &[usize]) -> Option<Self> {
        let offset = |len: usize| i32::try_from(len).ok().map(i32::to_le_bytes);
        let mut key_offsets = 0_i32.to_le_bytes().to_vec();
        let mut key_data = Vec::new();
        for &row in rows {
            key_data.extend_from_slice(self.key(row)?);
            key_offsets.extend_from_slice(&offset(key_data.len())?);
        }
        let keys = match &self.keys {
            KeyColumn::U64(_) => KeyColumn::U64(key_data.into()),
            KeyColumn::Variable { .. } => KeyColumn::Variable { offsets: key_offsets.into(), data: key_data.into() },
        };
        let mut leaves = Vec::with_capacity(self.leaves.len());
        for column in &self.leaves {
            let (mut data, mut all_dims, mut offsets) = (Vec::new(), Vec::new(), 0_i32.to_le_bytes().to_vec());
            let mut bits = vec![0_u8; rows.len().div_ceil(8)];
            for (position, &row) in rows.iter().enumerate() {
                match column.get(row)? {
                    LeafBytes::Bit(flag) => *bits.get_mut(position / 8)? |= u8::from(flag) << (position % 8),
                    leaf @ LeafBytes::Bytes { dims, .. } => {
                        data.extend_from_slice(leaf.as_slice());
                        all_dims.extend_from_slice(dims);
                    }
                }
                if let LeafColumn::Variable { unit, .. } = column {
                    offsets.extend_from_slice(&offset(data.len().checked_div(*unit)?)?);
                }
            }
            leaves.push(match column {
                LeafColumn::Fixed { width, .. } => LeafColumn::Fixed { width: *width, data: data.into() },
                LeafColumn::Bits(_) => LeafColumn::Bits(bits.into()),
                LeafColumn::Variable { unit, rank, .. } => LeafColumn::Variable {
                    offsets: offsets.into(),
                    unit: *unit,
                    data: data.into(),
                    dims: all_dims.into(),
                    rank: *rank,
                },
            });
        }
        Some(Self { schema: Arc::clone(&self.schema), rows: rows.len(), keys, leaves })
    }
}
