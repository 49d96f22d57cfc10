//! Checksums: CRC-32 (IEEE, as in zlib), chained over parts.
//!
//! They detect damage and do not authenticate: a program that can write the files can also write matching checksums.

use crc32fast::Hasher;

use crate::names::SegmentId;

/// CRC-32 of `bytes`.
#[inline]
pub(crate) fn crc32(bytes: &[u8]) -> u32 {
    crc32fast::hash(bytes)
}

/// CRC-32 that continues from `seed`, as zlib's `crc32(bytes, seed)` does.
#[inline]
pub(crate) fn crc32_from(seed: u32, parts: &[&[u8]]) -> u32 {
    crc32_on(&crc32_start(seed), parts)
}

/// The state that [`crc32_on`] continues from: shared by many checksums that begin alike.
#[inline]
pub(crate) fn crc32_start(seed: u32) -> Hasher {
    Hasher::new_with_initial(seed)
}

/// [`crc32_from`], continuing from `start`.
#[inline]
pub(crate) fn crc32_on(start: &Hasher, parts: &[&[u8]]) -> u32 {
    let mut hasher = start.clone();
    parts.iter().for_each(|part| hasher.update(part));
    hasher.finalize()
}

/// The seed of everything in one segment. A block that belongs to another segment, or to an older file of the same
/// name in another store, does not validate.
pub(crate) fn segment_seed(store: &[u8; 16], id: SegmentId) -> u32 {
    crc32_from(0, &[store, &id.lane.to_le_bytes(), &id.sequence.to_le_bytes()])
}
