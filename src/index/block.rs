//! The sorted hash block of a segment: all hashes in order, then the row of each. 12 bytes a row.

use bytes::Bytes;

use super::sort::sort_by_hash;

/// Bytes a row.
const ROW_LEN_BYTES: usize = 12;

/// Lays out (hash, row) pairs in order: n hashes (`u64`), then n rows (`u32`). O(n), as hashes are uniform.
pub(crate) fn encode(pairs: impl ExactSizeIterator<Item = (u64, u32)> + Clone) -> Vec<u8> {
    let mut block = Vec::with_capacity(pairs.len() * ROW_LEN_BYTES);
    let mut sorted = Vec::new();
    sort_by_hash(pairs, &mut sorted);
    sorted.iter().for_each(|(hash, _)| block.extend_from_slice(&hash.to_le_bytes()));
    sorted.iter().for_each(|(_, row)| block.extend_from_slice(&row.to_le_bytes()));
    block
}

/// A fingerprint of (hash, row) pairs, in any order: tells segments apart that have other rows, or the same in another
/// order.
pub(crate) fn fingerprint(pairs: impl Iterator<Item = (u64, u32)>) -> u64 {
    let mix = |(hash, row): (u64, u32)| xxhash_rust::xxh3::xxh3_64_with_seed(&hash.to_le_bytes(), row.into());
    pairs.fold(0, |sum, pair| sum.wrapping_add(mix(pair)))
}

/// A block, as it lies in its segment.
#[derive(Debug, Clone)]
pub(crate) struct HashBlock {
    hashes: Bytes,
    rows: Bytes,
}

impl HashBlock {
    /// The block in `bytes`, whose checksum the caller has compared.
    ///
    /// # Errors
    /// A message if no block has this length.
    pub(crate) fn parse(bytes: Bytes) -> Result<Self, String> {
        if !bytes.len().is_multiple_of(ROW_LEN_BYTES) {
            return Err(format!("expected a multiple of {ROW_LEN_BYTES} bytes, found {}", bytes.len()));
        }
        let split = bytes.len() / ROW_LEN_BYTES * 8;
        Ok(Self { hashes: bytes.slice(..split), rows: bytes.slice(split..) })
    }

    /// The number of rows.
    pub(crate) fn len(&self) -> usize {
        self.rows.len() / 4
    }

    /// The position of the first hash from `from` on that is not below `bound`. O(distance): the caller reads the
    /// hashes in between anyway, and a binary search would touch more cold pages.
    pub(crate) fn end_below(&self, from: usize, bound: u64) -> usize {
        let hashes = self.hashes.get(from * 8..).unwrap_or(&[]).as_chunks::<8>().0;
        from + hashes.iter().take_while(|bytes| u64::from_le_bytes(**bytes) < bound).count()
    }

    /// (hash, row) pairs from position `from` up to, but not including, `to`.
    pub(crate) fn range(&self, from: usize, to: usize) -> impl Iterator<Item = (u64, u32)> + '_ {
        let hashes = self.hashes.get(from * 8..to * 8).unwrap_or(&[]);
        let rows = self.rows.get(from * 4..to * 4).unwrap_or(&[]);
        let hashes = hashes.as_chunks::<8>().0.iter().map(|bytes| u64::from_le_bytes(*bytes));
        hashes.zip(rows.as_chunks::<4>().0.iter().map(|bytes| u32::from_le_bytes(*bytes)))
    }

    /// All (hash, row) pairs.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u64, u32)> + '_ {
        self.range(0, self.len())
    }

    /// Checks that hashes are in order and that every row occurs once. O(rows).
    ///
    /// # Errors
    /// What is wrong.
    pub(crate) fn validate(&self) -> Result<(), String> {
        let mut seen = vec![false; self.len()];
        let mut last = (0, 0);
        for (position, pair) in self.iter().enumerate() {
            if position > 0 && pair <= last {
                return Err(format!("pair {position} is out of order"));
            }
            last = pair;
            match seen.get_mut(pair.1 as usize) {
                Some(seen) if !*seen => *seen = true,
                _ => return Err(format!("row {} is out of bounds or occurs twice", pair.1)),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trips_in_order() {
        let pairs = [(9, 0), (3, 1), (9, 2), (u64::MAX, 3)];
        let block = HashBlock::parse(encode(pairs.into_iter()).into()).unwrap();
        assert_eq!(block.iter().collect::<Vec<_>>(), [(3, 1), (9, 0), (9, 2), (u64::MAX, 3)]);
        assert_eq!((block.end_below(0, 9), block.end_below(0, 10), block.end_below(2, 0)), (1, 3, 2));
        block.validate().unwrap();
        assert!(HashBlock::parse(Bytes::from_static(&[0; 13])).is_err());
        assert!(HashBlock::parse(Bytes::from_static(&[0; 24])).unwrap().validate().is_err());
    }
}
