//! The cached batch descriptor: the fields of a batch that lookups read.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;

use crate::key::KeyRef;
use crate::prefetch::prefetch_read;
use crate::schema::RowSchema;
use crate::segment::batch::{Batch, Verify};
use crate::segment::columns::{KeyColumn, LeafColumn};

/// A sealed batch, with the fields that common hits read (keys of one length, one tensor of fixed size a row) stored
/// inline. A gather of large rows evicts the near caches, so each line that a hit touches counts.
#[derive(Debug)]
pub(crate) struct CachedBatch {
    /// Keys, if all have one length: integers, or for example hashes; else empty.
    keys: Bytes,
    /// That length.
    key_width: u32,
    /// The values of the only leaf; empty if there are several leaves, or rows differ in length.
    values: Bytes,
    /// Bytes of a row of `values`.
    width: Option<u32>,
    pub lane: u16,
    /// Whether the checksums of all rows have been compared.
    verified: AtomicBool,
    schema: Arc<RowSchema>,
    pub batch: Arc<Batch>,
}

impl CachedBatch {
    /// The descriptor of a batch of a segment of `lane`, whose rows are of `schema`.
    pub(crate) fn new(batch: &Arc<Batch>, schema: &Arc<RowSchema>, lane: u16) -> Self {
        let (width, values) = match batch.columns.leaves.as_slice() {
            // No wider row fits a batch.
            [LeafColumn::Fixed { width, data }] => (u32::try_from(*width).ok(), data.clone()),
            _ => (None, Bytes::new()),
        };
        let (key_width, keys) = match &batch.columns.keys {
            KeyColumn::U64(keys) => (8, keys.clone()),
            KeyColumn::Variable { offsets, data } => {
                one_length(offsets).map_or((0, Bytes::new()), |width| (width, data.clone()))
            }
        };
        Self {
            keys,
            key_width,
            values,
            width,
            lane,
            verified: AtomicBool::new(false),
            schema: Arc::clone(schema),
            batch: Arc::clone(batch),
        }
    }

    /// Prefetches the key of `row`, or its offset.
    #[inline]
    pub(crate) fn prefetch_key(&self, row: usize) {
        if self.keys.is_empty() {
            self.batch.columns.keys.prefetch(row);
        } else {
            prefetch_read(&self.keys, row * self.key_width as usize);
        }
    }

    /// Prefetches the key of `row` if keys differ in length.
    #[inline]
    pub(crate) fn prefetch_variable_key(&self, row: usize) {
        if self.keys.is_empty() {
            self.batch.columns.keys.prefetch_variable(row);
        }
    }

    /// Whether `row` has this key.
    #[inline]
    pub(crate) fn holds(&self, row: usize, key: KeyRef<'_>) -> bool {
        if let KeyRef::U64(number) = key {
            let stored = self.keys.as_chunks::<8>().0.get(row);
            return stored.is_some_and(|bytes| u64::from_le_bytes(*bytes) == number);
        }
        key.with_bytes(|bytes| {
            if self.keys.is_empty() {
                return self.batch.columns.key(row) == Some(bytes);
            }
            let start = row * self.key_width as usize;
            self.keys.get(start..start + self.key_width as usize) == Some(bytes)
        })
    }

    /// The structure of the rows.
    #[inline]
    pub(crate) fn schema(&self) -> &Arc<RowSchema> {
        &self.schema
    }

    /// As [`crate::segment::columns::Columns::fixed_leaf`], which is not called if rows are one tensor.
    #[inline]
    pub(crate) fn fixed_leaf(&self, leaf: usize, row: usize, width: usize) -> Option<&[u8]> {
        let Some(stored) = self.width else { return self.batch.columns.fixed_leaf(leaf, row, width) };
        let start = row.checked_mul(width)?;
        if stored as usize == width && leaf == 0 { self.values.get(start..start.checked_add(width)?) } else { None }
    }

    /// Whether the rows are tombstones.
    #[inline]
    pub(crate) fn is_tombstones(&self) -> bool {
        self.width.is_none() && self.schema.is_tombstones()
    }

    /// As [`Batch::is_checked`], which is not called once all rows were checked.
    #[inline]
    pub(crate) fn is_checked(&self, row: usize, verify: Verify) -> bool {
        if verify != Verify::FirstRead || self.verified.load(Ordering::Relaxed) {
            return verify != Verify::Always;
        }
        if self.batch.is_verified() {
            self.verified.store(true, Ordering::Relaxed);
        }
        self.batch.is_checked(row, verify)
    }
}

/// The length of all keys with these offsets, if they have one. O(keys).
fn one_length(offsets: &[u8]) -> Option<u32> {
    let offsets = offsets.as_chunks::<4>().0;
    let width = u32::from_le_bytes(*offsets.get(1)?);
    let expected = |row: usize| u32::try_from(row).ok()?.checked_mul(width).map(u32::to_le_bytes);
    offsets.iter().enumerate().all(|(row, offset)| expected(row) == Some(*offset)).then_some(width)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_one_length_are_recognized() {
        let of =
            |offsets: &[i32]| one_length(offsets.iter().flat_map(|at| at.to_le_bytes()).collect::<Vec<_>>().as_slice());
        assert_eq!((of(&[0, 16, 32, 48]), of(&[0, 0, 0]), of(&[0, 5])), (Some(16), Some(0), Some(5)));
        assert_eq!(
            (of(&[0, 16, 31]), of(&[0, 16, 32, 47]), of(&[1, 2, 3]), of(&[0]), of(&[])),
            (None, None, None, None, None)
        );
        assert_eq!(of(&[0, -1, -2, -3]), None);
    }
}
