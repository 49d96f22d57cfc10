//! The layout of a run, shared by its builder and its reader. `FORMAT.md` describes every byte.
//!
//! A bucket is one cache line of eight little-endian words: eleven tags of 10 bits, the overflow distance (6 bits),
//! eleven rows of 36 bits, packed in this order from the lowest bit of the first word on.

use std::path::Path;

use crate::checksum::crc32;
use crate::error::{Error, Result};
use crate::names::SegmentId;

/// The newest version of stores whose runs this library reads. Runs have the version of their store.
pub(crate) const RUN_VERSION: u32 = 3;
/// The magic at the start of a run.
pub(crate) const MAGIC: &[u8; 8] = b"TCRUN\r\n\x01";
/// The magic at the start of the footer.
const FOOTER_MAGIC: &[u8; 8] = b"TCRUNEND";
/// Where buckets start: a page of its own, so that a bucket never straddles two cache lines.
pub(crate) const BUCKETS_OFFSET: u64 = 4096;
/// Bytes of a bucket.
pub(crate) const BUCKET_LEN_BYTES: usize = 64;
/// Slots of a bucket.
pub(crate) const SLOTS: usize = 11;
/// A slot without a row; also the number of rows that a run can distinguish.
pub(crate) const EMPTY: u64 = (1 << ROW_BITS) - 1;
/// The overflow value that says: probe on until a bucket that is not full.
pub(crate) const FAR: u64 = 63;
/// Buckets that share a checksum: 4 KiB.
pub(crate) const PAGE_BUCKETS: u64 = 64;
/// Bytes of the footer.
pub(crate) const FOOTER_LEN_BYTES: usize = 160;
/// Bytes of an entry of the coverage list.
pub(crate) const COVERED_LEN_BYTES: usize = 40;

const TAG_BITS: usize = 10;
const TAG_MASK: u64 = (1 << TAG_BITS) - 1;
const ROW_BITS: usize = 36;
const OVERFLOW_AT: usize = SLOTS * TAG_BITS;
const OVERFLOW_BITS: usize = 6;
const ROWS_AT: usize = OVERFLOW_AT + OVERFLOW_BITS;

/// The lowest bit of every tag, the highest, and those below the highest.
const ONES: u128 = {
    let (mut ones, mut slot) = (0, 0);
    while slot < SLOTS {
        ones |= 1 << (slot * TAG_BITS);
        slot += 1;
    }
    ones
};
const TOPS: u128 = ONES << (TAG_BITS - 1);
const BELOW_TOPS: u128 = TOPS - ONES;

/// For the slot whose tag has its top bit at this position, or 64 further: the first of eight bytes that contain its
/// row, and the row's first bit in them.
#[expect(clippy::indexing_slicing, reason = "in a constant, an index out of bounds does not compile")]
const ROW_OF_BIT: [(u8, u8); 64] = {
    let mut places = [(0, 0); 64];
    let mut slot = 0;
    while slot < SLOTS {
        places[(slot * TAG_BITS + TAG_BITS - 1) % 64] = place_of(ROWS_AT + slot * ROW_BITS);
        slot += 1;
    }
    places
};

/// The first of eight bytes that contain the at most 36 bits from bit `at` on, and the first of these bits in them.
const fn place_of(at: usize) -> (u8, u8) {
    const LAST: usize = BUCKET_LEN_BYTES - 8;
    let byte = if at / 8 < LAST { at / 8 } else { LAST };
    (byte as u8, (at - byte * 8) as u8)
}

/// The tag of a hash: its low bits, since the high ones choose the bucket.
#[inline]
pub(crate) const fn tag(hash: u64) -> u64 {
    hash & TAG_MASK
}

/// The home bucket of a hash among `buckets`. Preserves the order of hashes.
#[inline]
pub(crate) const fn home(hash: u64, buckets: u64) -> u64 {
    ((hash as u128 * buckets as u128) >> 64) as u64
}

/// A bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Bucket([u64; 8]);

impl Bucket {
    /// Its bytes.
    pub(crate) fn to_bytes(self) -> [u8; BUCKET_LEN_BYTES] {
        let mut bytes = [0; BUCKET_LEN_BYTES];
        for (target, word) in bytes.as_chunks_mut::<8>().0.iter_mut().zip(self.0) {
            *target = word.to_le_bytes();
        }
        bytes
    }

    /// A bucket of at most [`SLOTS`] (tag, row) pairs, whose home rows reach `reach` buckets further.
    #[inline]
    pub(crate) fn packed(pairs: &[(u64, u64)], reach: u64) -> Self {
        let mut words = Words::default();
        let pair = |slot: usize| pairs.get(slot).copied().unwrap_or((0, EMPTY));
        (0..SLOTS).for_each(|slot| words.push(pair(slot).0 & TAG_MASK, TAG_BITS));
        words.push(reach.min(FAR), OVERFLOW_BITS);
        (0..SLOTS).for_each(|slot| words.push(pair(slot).1 & EMPTY, ROW_BITS));
        Self(words.words)
    }
}

/// Eight words, filled from the lowest bit of the first one on.
#[derive(Default)]
struct Words {
    words: [u64; 8],
    bits: usize,
}

impl Words {
    #[inline]
    fn push(&mut self, value: u64, bits: usize) {
        let (number, shift) = (self.bits / 64, self.bits % 64);
        if let Some(word) = self.words.get_mut(number) {
            *word |= value << shift;
        }
        if shift + bits > 64
            && let Some(word) = self.words.get_mut(number + 1)
        {
            *word |= value >> (64 - shift);
        }
        self.bits += bits;
    }
}

/// A bucket as it lies in a file.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BucketView<'a>(pub &'a [u8; BUCKET_LEN_BYTES]);

impl BucketView<'_> {
    /// `bits` bits at a [place](place_of).
    #[inline]
    fn get(&self, (byte, shift): (u8, u8), bits: usize) -> u64 {
        let eight = self.0.get(usize::from(byte)..).and_then(<[u8]>::first_chunk::<8>);
        eight.map_or(0, |bytes| u64::from_le_bytes(*bytes)) >> (shift & 63) & ((1 << bits) - 1)
    }

    /// One bit for each slot whose tag is `tag`; [`ROW_OF_BIT`] locates its row. Empty slots have tags too.
    ///
    /// All eleven tags are compared at once within a register: adding all ones but the top bit leaves the top bit clear
    /// in a zero lane, and in no other (Hacker's Delight, 6-1).
    #[inline]
    fn matching(&self, tag: u64) -> u64 {
        let tags = self.0.first_chunk::<16>().map_or(0, |bytes| u128::from_le_bytes(*bytes));
        let differing = (tags ^ (ONES * u128::from(tag))) & (TOPS | BELOW_TOPS);
        let matching = !(((differing & BELOW_TOPS) + BELOW_TOPS) | differing) & TOPS;
        // The top bits of the two halves are at different positions.
        matching as u64 | (matching >> 64) as u64
    }

    /// Calls `found` with every row whose tag is `tag`, and possibly with [`EMPTY`]. Whether there is a row is
    /// unpredictable, and a misprediction would serialise the waits for buckets, so the first row is taken without a
    /// branch.
    #[inline]
    pub(crate) fn rows_of(&self, tag: u64, found: &mut impl FnMut(u64)) {
        let mut slots = self.matching(tag);
        let none = slots == 0;
        loop {
            let place = ROW_OF_BIT.get(slots.trailing_zeros() as usize % 64).copied().unwrap_or_default();
            found(std::hint::select_unpredictable(none, EMPTY, self.get(place, ROW_BITS)));
            slots &= slots.wrapping_sub(1);
            if slots == 0 {
                break;
            }
        }
    }

    /// Row of `slot`, or [`EMPTY`].
    #[inline]
    pub(crate) fn row(&self, slot: usize) -> u64 {
        self.get(place_of(ROWS_AT + slot * ROW_BITS), ROW_BITS)
    }

    /// How many buckets further the rows at home here reach.
    #[inline]
    pub(crate) fn overflow(&self) -> u64 {
        self.get(place_of(OVERFLOW_AT), OVERFLOW_BITS)
    }

    /// Whether every slot has a row. Slots fill in order.
    #[inline]
    pub(crate) fn is_full(&self) -> bool {
        self.row(SLOTS - 1) != EMPTY
    }
}

/// A segment that a run covers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Covered {
    pub lane: u16,
    pub sequence: u64,
    pub rows: u64,
    /// Identifies the segment.
    pub seal_crc: u32,
    pub first_timestamp: u64,
    pub last_timestamp: u64,
}

impl Covered {
    /// Its name.
    pub(crate) fn id(&self) -> SegmentId {
        SegmentId { lane: self.lane, sequence: self.sequence }
    }

    pub(crate) fn encode(&self) -> [u8; COVERED_LEN_BYTES] {
        let mut record = [0; COVERED_LEN_BYTES];
        let words = [
            u64::from(self.lane) | u64::from(self.seal_crc) << 32,
            self.sequence,
            self.rows,
            self.first_timestamp,
            self.last_timestamp,
        ];
        for (target, word) in record.as_chunks_mut::<8>().0.iter_mut().zip(words) {
            *target = word.to_le_bytes();
        }
        record
    }

    pub(crate) fn decode(record: &[u8; COVERED_LEN_BYTES]) -> Self {
        let mut words = record.as_chunks::<8>().0.iter().map(|bytes| u64::from_le_bytes(*bytes));
        let mut next = || words.next().unwrap_or(0);
        let first = next();
        Self {
            lane: first as u16,
            seal_crc: (first >> 32) as u32,
            sequence: next(),
            rows: next(),
            first_timestamp: next(),
            last_timestamp: next(),
        }
    }
}

/// The end of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Footer {
    pub version: u32,
    pub store: [u8; 16],
    pub hash_id: u8,
    pub hash_seed: u64,
    /// Slots used.
    pub keys: u64,
    /// Home buckets.
    pub buckets: u64,
    /// Buckets after them that only take spilled rows.
    pub spill_buckets: u64,
    pub live_keys: u64,
    pub known_fingerprint: u64,
    pub pages_offset: u64,
    pub pages: u64,
    pub pages_crc: u32,
    pub covered_offset: u64,
    pub covered: u64,
    pub covered_crc: u32,
}

impl Footer {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut record = FOOTER_MAGIC.to_vec();
        record.extend_from_slice(&self.version.to_le_bytes());
        record.extend_from_slice(&u32::from(self.hash_id).to_le_bytes());
        record.extend_from_slice(&self.store);
        for word in self.words() {
            record.extend_from_slice(&word.to_le_bytes());
        }
        record.extend_from_slice(&self.pages_crc.to_le_bytes());
        record.extend_from_slice(&self.covered_crc.to_le_bytes());
        record.extend_from_slice(&self.hash_seed.to_le_bytes());
        record.resize(FOOTER_LEN_BYTES - 4, 0);
        let crc = crc32(&record);
        record.extend_from_slice(&crc.to_le_bytes());
        record
    }

    fn words(&self) -> [u64; 9] {
        [
            self.keys,
            self.buckets,
            self.spill_buckets,
            self.live_keys,
            self.known_fingerprint,
            self.pages_offset,
            self.pages,
            self.covered_offset,
            self.covered,
        ]
    }

    /// Reads the footer at `offset` of `path`, whose length is `offset` and the footer.
    ///
    /// # Errors
    /// [`Error::NewerFormat`] for a newer version, [`Error::Corrupt`] if it is damaged.
    pub(crate) fn decode(record: &[u8], path: &Path, offset: u64) -> Result<Self> {
        let corrupt = |what: &str| Error::corrupt(path, offset, what);
        let Some(rest) = record.strip_prefix(FOOTER_MAGIC) else {
            return Err(corrupt("expected the footer of an index run, found other bytes"));
        };
        let mut rest = rest;
        let mut four = || match rest.split_first_chunk::<4>() {
            Some((taken, after)) => {
                rest = after;
                u32::from_le_bytes(*taken)
            }
            None => 0,
        };
        let version = four();
        let checks_out = record
            .split_last_chunk::<4>()
            .is_some_and(|(body, crc)| crc32(body) == u32::from_le_bytes(*crc) && record.len() == FOOTER_LEN_BYTES);
        if !checks_out || version == 0 {
            return Err(corrupt("the checksum of the footer does not match its bytes"));
        }
        if version > RUN_VERSION {
            return Err(Error::NewerFormat { path: path.into(), found: version, supported: RUN_VERSION });
        }
        let mut footer = Self { version, hash_id: four() as u8, ..Self::default() };
        for bytes in footer.store.as_chunks_mut::<4>().0 {
            *bytes = four().to_le_bytes();
        }
        let mut eight = || u64::from(four()) | u64::from(four()) << 32;
        footer.keys = eight();
        footer.buckets = eight();
        footer.spill_buckets = eight();
        footer.live_keys = eight();
        footer.known_fingerprint = eight();
        footer.pages_offset = eight();
        footer.pages = eight();
        footer.covered_offset = eight();
        footer.covered = eight();
        footer.pages_crc = four();
        footer.covered_crc = four();
        // Zeros in version 1.
        footer.hash_seed = u64::from(four()) | u64::from(four()) << 32;
        if footer.is_consistent(offset) { Ok(footer) } else { Err(corrupt("the footer's numbers do not fit the file")) }
    }

    fn is_consistent(&self, end: u64) -> bool {
        let fits = || {
            let buckets = self.buckets.checked_add(self.spill_buckets)?;
            let pages_offset = BUCKETS_OFFSET.checked_add(buckets.checked_mul(BUCKET_LEN_BYTES as u64)?)?;
            let covered_offset = pages_offset.checked_add(self.pages.checked_mul(4)?)?;
            let footer_offset = covered_offset.checked_add(self.covered.checked_mul(COVERED_LEN_BYTES as u64)?)?;
            Some(
                self.buckets > 0
                    && self.keys <= buckets.saturating_mul(SLOTS as u64)
                    && pages_offset == self.pages_offset
                    && self.pages == buckets.div_ceil(PAGE_BUCKETS)
                    && covered_offset == self.covered_offset
                    && footer_offset == end,
            )
        };
        fits().unwrap_or(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_keep_every_bit() {
        let pairs: Vec<(u64, u64)> =
            (0..SLOTS as u64).map(|slot| ((slot * 93) & 1023, (0xABC_DEF0_1230 + slot) & (EMPTY - 1))).collect();
        for filled in 0..=SLOTS {
            let bytes = Bucket::packed(&pairs[..filled], 5).to_bytes();
            let view = BucketView(&bytes);
            for (slot, (tag, row)) in pairs.iter().enumerate() {
                assert_eq!(view.row(slot), if slot < filled { *row } else { EMPTY });
                let mut found = false;
                view.rows_of(*tag, &mut |found_row| found |= found_row == *row);
                assert_eq!(found, slot < filled);
            }
            assert_eq!((view.overflow(), view.is_full()), (5, filled == SLOTS));
        }
        assert_eq!(BucketView(&Bucket::packed(&pairs, 1 << 20).to_bytes()).overflow(), FAR);
    }

    fn rows_of(bucket: &[u8; BUCKET_LEN_BYTES], tag: u64) -> Vec<u64> {
        let mut rows = Vec::new();
        BucketView(bucket).rows_of(tag, &mut |row| rows.push(row));
        rows.retain(|row| *row != EMPTY);
        rows.sort_unstable();
        rows
    }

    #[test]
    fn tags_match_like_one_by_one() {
        let mut state = 1_u64;
        for _ in 0..2000 {
            let tags: [u64; SLOTS] = std::array::from_fn(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                // A few different values, chosen so that a carry between neighbours would show.
                [0, 1, 0x1FF, 0x200, 0x3FF, state >> 54][(state >> 33) as usize % 6]
            });
            let pairs: [(u64, u64); SLOTS] = std::array::from_fn(|slot| (tags[slot], slot as u64));
            let bytes = Bucket::packed(&pairs, 3).to_bytes();
            for tag in tags.into_iter().chain([0, 1, 0x1FF, 0x200, 0x3FF]) {
                let expected: Vec<u64> = pairs.iter().filter(|pair| pair.0 == tag).map(|pair| pair.1).collect();
                assert_eq!(rows_of(&bytes, tag), expected, "{tags:?}");
            }
        }
    }
}
