//! Maps the rows of a replaced segment to their new places.

use bytes::Bytes;

/// Marks a row that compaction dropped.
const GONE: u32 = u32::MAX;

/// For each row of a segment: its row in the segment that replaces it, or that it is gone. 4 bytes a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RowMap {
    rows: Bytes,
}

impl RowMap {
    /// A map of `rows` rows, all of which are gone.
    pub(crate) fn builder(rows: u32) -> RowMapBuilder {
        RowMapBuilder { map: vec![GONE.to_le_bytes(); rows as usize] }
    }

    /// The map in these bytes.
    pub(crate) fn from_bytes(rows: Bytes) -> Self {
        Self { rows }
    }

    /// Its bytes.
    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.rows
    }

    /// The new row of `row`; `None` if it is gone. O(1).
    #[inline]
    pub(crate) fn get(&self, row: u32) -> Option<u32> {
        let rows = self.rows.as_chunks::<4>().0;
        rows.get(row as usize).map(|row| u32::from_le_bytes(*row)).filter(|row| *row != GONE)
    }

    /// The new rows, in order of the old ones. O(rows).
    pub(crate) fn targets(&self) -> impl Iterator<Item = u32> {
        let to = self.rows.as_chunks::<4>().0.iter().map(|row| u32::from_le_bytes(*row));
        to.filter(|to| *to != GONE)
    }

    /// Whether no row is at `rows` or behind. O(rows).
    pub(crate) fn is_within(&self, rows: u64) -> bool {
        self.targets().all(|to| u64::from(to) < rows)
    }

    /// The map through this one, then through `next`. O(rows).
    pub(crate) fn then(&self, next: &Self) -> Self {
        let rows = (self.rows.len() / 4) as u32;
        let mut builder = Self::builder(rows);
        for row in 0..rows {
            if let Some(to) = self.get(row).and_then(|between| next.get(between)) {
                builder.set(row, to);
            }
        }
        builder.finish()
    }
}

/// A map under construction.
#[derive(Debug)]
pub(crate) struct RowMapBuilder {
    map: Vec<[u8; 4]>,
}

impl RowMapBuilder {
    /// Maps row `from` to row `to`.
    pub(crate) fn set(&mut self, from: u32, to: u32) {
        if let Some(place) = self.map.get_mut(from as usize) {
            *place = to.to_le_bytes();
        }
    }

    /// The map.
    pub(crate) fn finish(self) -> RowMap {
        RowMap { rows: self.map.into_flattened().into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_followed_through_two_maps() {
        let map = |rows: &[(u32, u32)], len| {
            let mut builder = RowMap::builder(len);
            rows.iter().for_each(|(from, to)| builder.set(*from, *to));
            builder.finish()
        };
        let (first, second) = (map(&[(0, 1), (2, 0), (3, 2)], 4), map(&[(0, 7), (1, 5)], 3));
        let both = first.then(&second);
        assert_eq!((0..5).map(|row| both.get(row)).collect::<Vec<_>>(), [Some(5), None, Some(7), None, None]);
        assert_eq!(RowMap::from_bytes(Bytes::copy_from_slice(both.as_bytes())), both);
    }
}
