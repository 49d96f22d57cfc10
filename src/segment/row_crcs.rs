//! Row checksums. Where a row has several leaves, large ones have checksums of their own, so that one of them can be
//! checked without reading the others; the row's checksum then covers theirs.

use super::columns::{BatchPart, Columns, KeyColumn, LeafBytes, LeafColumn};
use crate::checksum::{crc32_from, crc32_on, crc32_start};
use crate::schema::LeafKind;

/// [`crc32_from`] over a leaf of a row: a byte 0 or 1 for a boolean; the bytes alone if all rows have the same number;
/// else the dimensions (`i32` each), the length (`u64`) and the bytes.
fn leaf_crc(seed: u32, column: &LeafColumn, row: usize) -> Option<u32> {
    let leaf = column.get(row)?;
    Some(match (leaf, column) {
        (LeafBytes::Bit(flag), _) => crc32_from(seed, &[&[u8::from(flag)]]),
        (LeafBytes::Bytes { .. }, LeafColumn::Fixed { .. }) => crc32_from(seed, &[leaf.as_slice()]),
        (LeafBytes::Bytes { dims, .. }, _) => {
            let bytes = leaf.as_slice();
            crc32_from(seed, &[dims, &(bytes.len() as u64).to_le_bytes(), bytes])
        }
    })
}

/// The length of a key, as the checksum of its row covers it.
fn length(key: &[u8]) -> Option<[u8; 4]> {
    u32::try_from(key.len()).ok().map(u32::to_le_bytes)
}

impl Columns {
    /// The row checksum: CRC-32 seeded with the segment's identity, over the commit timestamp (`u64`) if rows have their
    /// own, the key's length (`u32`) and bytes, and each leaf. If leaves have checksums of their own, these are
    /// `leaf_crcs` (`u32` each), and follow the other leaves. O(bytes of the row), without leaves that have checksums.
    pub(crate) fn row_crc(&self, seed: u32, row: usize, leaf_crcs: Option<&[u8]>) -> Option<u32> {
        let key = self.key(row)?;
        let seed = self.timed(seed, row)?;
        // One call for the common row: a key and one tensor.
        if let [LeafColumn::Fixed { width, data }] = self.leaves.as_slice() {
            let start = row.checked_mul(*width)?;
            return Some(crc32_from(seed, &[&length(key)?, key, data.get(start..start.checked_add(*width)?)?]));
        }
        let mut crc = crc32_from(seed, &[&length(key)?, key]);
        for (column, kind) in self.leaves.iter().zip(&self.schema.leaves) {
            if leaf_crcs.is_none() || !kind.has_crc() {
                crc = leaf_crc(crc, column, row)?;
            }
        }
        Some(leaf_crcs.map_or(crc, |leaf_crcs| crc32_from(crc, &[leaf_crcs])))
    }

    /// The leaves that have checksums of their own, if any have, and their numbers.
    fn with_crcs(&self) -> impl Iterator<Item = (usize, &LeafColumn)> {
        let leaves = self.leaves.iter().zip(&self.schema.leaves).enumerate();
        leaves.filter(|(_, (_, kind))| LeafKind::has_crc(kind)).map(|(number, (column, _))| (number, column))
    }

    /// Whether those leaves of a row that have checksums of their own, and that are `wanted`, match `leaf_crcs`. O(bytes
    /// of these leaves).
    pub(super) fn leaves_match(
        &self,
        seed: u32,
        row: usize,
        leaf_crcs: &[u8],
        wanted: impl Fn(usize) -> bool,
    ) -> Option<bool> {
        for ((number, column), expected) in self.with_crcs().zip(leaf_crcs.as_chunks::<4>().0) {
            if wanted(number) && leaf_crc(seed, column, row)?.to_le_bytes() != *expected {
                return Some(false);
            }
        }
        Some(true)
    }

    /// `seed`, continued over the commit timestamp of `row` if rows have their own.
    fn timed(&self, seed: u32, row: usize) -> Option<u32> {
        if self.times.is_none() {
            return Some(seed);
        }
        Some(crc32_from(seed, &[&self.time(row)?.to_le_bytes()]))
    }
}

impl BatchPart<'_> {
    /// Appends the checksums of the leaves that have their own, row after row. `None` if the columns are inconsistent.
    /// O(bytes).
    pub(super) fn leaf_crcs(&self, seed: u32, crcs: &mut Vec<u8>) -> Option<()> {
        (0..self.columns.rows).try_for_each(|row| {
            self.columns.with_crcs().try_for_each(|(_, column)| {
                crcs.extend_from_slice(&leaf_crc(seed, column, row)?.to_le_bytes());
                Some(())
            })
        })
    }

    /// Appends [`Columns::row_crc`] of all rows to `crcs`; `leaf_crcs` has those of all leaves that have their own, row
    /// after row. `None` if the columns are inconsistent. O(bytes).
    pub(super) fn row_crcs(&self, seed: u32, leaf_crcs: Option<&[u8]>, crcs: &mut Vec<u8>) -> Option<()> {
        let columns = self.columns;
        let ([LeafColumn::Fixed { width, .. }], None) = (columns.leaves.as_slice(), &columns.times) else {
            let width = leaf_crcs.map_or(0, |leaf_crcs| leaf_crcs.len() / columns.rows.max(1));
            return (0..columns.rows).try_for_each(|row| {
                let of_row = leaf_crcs.map(|leaf_crcs| leaf_crcs.get(row * width..(row + 1) * width).unwrap_or(&[]));
                crcs.extend_from_slice(&columns.row_crc(seed, row, of_row)?.to_le_bytes());
                Some(())
            });
        };
        let data = self.data(0)?;
        // All integers have the same length: its checksum is shared by all rows.
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
