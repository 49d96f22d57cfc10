//! The fixed-size records of a segment: the commit frame after each message, and the seal. `FORMAT.md` describes every
//! byte.

use std::path::Path;

use crate::checksum::crc32;
use crate::error::{Error, Result};
use crate::names::SegmentId;

/// The format version of new stores, and the newest that this library reads. A store keeps the version with which it
/// was created, so that older programs can still read it.
pub(crate) const FORMAT_VERSION: u32 = 3;
/// The first version whose key hashes have a seed.
pub(crate) const SEEDED_VERSION: u32 = 2;
/// The start of every Arrow IPC file, padded to eight bytes.
pub(crate) const ARROW_MAGIC: &[u8; 8] = b"ARROW1\0\0";
/// The end of every Arrow IPC file.
pub(crate) const ARROW_TRAILER: &[u8; 6] = b"ARROW1";
/// Bytes of the trailer: the footer's length and the magic.
pub(crate) const TRAILER_LEN_BYTES: u64 = 10;
/// End of the stream of messages.
pub(crate) const END_OF_STREAM: [u8; 8] = [0xFF, 0xFF, 0xFF, 0xFF, 0, 0, 0, 0];
/// Marks the start of every encapsulated message.
pub(crate) const CONTINUATION: [u8; 4] = [0xFF; 4];

const FRAME_MAGIC: &[u8; 8] = b"TCFRAME1";
/// Bytes of a commit frame.
pub(crate) const FRAME_LEN_BYTES: usize = 96;
const SEAL_MAGIC: &[u8; 8] = b"TCSEAL\r\n";
/// Bytes of a seal.
pub(crate) const SEAL_LEN_BYTES: usize = 256;
/// Bytes a row in the index block.
const INDEX_ROW_LEN_BYTES: u64 = 12;
/// Timestamps are below this. No clock comes near it, so there are always later timestamps than one that is read.
const MAX_TIMESTAMP: u64 = 1 << 62;

/// Writes little-endian fields one after another.
struct Put<'a>(&'a mut Vec<u8>);

impl Put<'_> {
    fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.extend_from_slice(bytes);
        self
    }
    fn u32(&mut self, value: u32) -> &mut Self {
        self.bytes(&value.to_le_bytes())
    }
    fn u64(&mut self, value: u64) -> &mut Self {
        self.bytes(&value.to_le_bytes())
    }
}

/// Reads little-endian fields one after another; past the end they read as zero.
struct Take<'a>(&'a [u8]);

impl Take<'_> {
    fn array<const N: usize>(&mut self) -> [u8; N] {
        match self.0.split_first_chunk::<N>() {
            Some((taken, rest)) => {
                self.0 = rest;
                *taken
            }
            None => [0; N],
        }
    }
    fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.array())
    }
    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.array())
    }
    fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.array())
    }
}

/// Pads `record` to all but the last four bytes of `len_bytes` and appends its checksum.
fn finish(record: &mut Vec<u8>, len_bytes: usize) {
    record.resize(len_bytes - 4, 0);
    let crc = crc32(record);
    record.extend_from_slice(&crc.to_le_bytes());
}

/// Whether the last four bytes of `record` are the checksum of the rest.
fn checks_out(record: &[u8]) -> bool {
    record.split_last_chunk::<4>().is_some_and(|(rest, crc)| crc32(rest) == u32::from_le_bytes(*crc))
}

/// A commit frame, which describes the message before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Frame {
    /// [`crate::checksum::segment_seed`].
    pub seed: u32,
    /// Rows in the message; 0 for the schema message.
    pub rows: u32,
    /// Rows in the segment before this message.
    pub first_row: u64,
    /// When the batch was committed: microseconds since 1970, never less than any timestamp before it in the lane.
    pub timestamp: u64,
    /// The newest timestamp in this segment that was durable when this frame was written: batches of the lane up to it
    /// were on disk.
    pub durable_timestamp: u64,
    /// Where the message starts in the file.
    pub offset: u64,
    /// Bytes of the message's prefix and metadata.
    pub metadata_len_bytes: u32,
    /// CRC-32 of the message's first `structure_len_bytes`.
    pub structure_crc: u32,
    /// Metadata, keys, row checksums and offsets: all but the values.
    pub structure_len_bytes: u64,
    /// Bytes of the message's body.
    pub body_len_bytes: u64,
}

impl Frame {
    /// The record.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut record = Vec::with_capacity(FRAME_LEN_BYTES);
        Put(&mut record)
            .bytes(FRAME_MAGIC)
            .u32(self.seed)
            .u32(self.rows)
            .u64(self.first_row)
            .u64(self.timestamp)
            .u64(self.durable_timestamp)
            .u64(self.offset)
            .u32(self.metadata_len_bytes)
            .u32(self.structure_crc)
            .u64(self.structure_len_bytes)
            .u64(self.body_len_bytes);
        finish(&mut record, FRAME_LEN_BYTES);
        record
    }

    /// The frame in `record`, if it is valid and its numbers are consistent.
    pub(crate) fn decode(record: &[u8]) -> Option<Self> {
        if checks_out(record) { Self::decode_checked(record) } else { None }
    }

    /// As [`Frame::decode`], for a record in bytes whose checksum was compared.
    pub(crate) fn decode_checked(record: &[u8]) -> Option<Self> {
        if record.len() != FRAME_LEN_BYTES || !record.starts_with(FRAME_MAGIC) {
            return None;
        }
        let mut take = Take(record.get(FRAME_MAGIC.len()..)?);
        let frame = Self {
            seed: take.u32(),
            rows: take.u32(),
            first_row: take.u64(),
            timestamp: take.u64(),
            durable_timestamp: take.u64(),
            offset: take.u64(),
            metadata_len_bytes: take.u32(),
            structure_crc: take.u32(),
            structure_len_bytes: take.u64(),
            body_len_bytes: take.u64(),
        };
        let message = u64::from(frame.metadata_len_bytes).checked_add(frame.body_len_bytes)?;
        frame.offset.checked_add(message)?.checked_add(FRAME_LEN_BYTES as u64)?;
        frame.first_row.checked_add(u64::from(frame.rows))?;
        (frame.structure_len_bytes <= message
            && u64::from(frame.metadata_len_bytes) <= frame.structure_len_bytes
            && frame.timestamp.max(frame.durable_timestamp) < MAX_TIMESTAMP)
            .then_some(frame)
    }

    /// Bytes of the message.
    pub(crate) fn message_len_bytes(&self) -> u64 {
        u64::from(self.metadata_len_bytes) + self.body_len_bytes
    }

    /// Where the frame itself lies.
    pub(crate) fn frame_offset(&self) -> u64 {
        self.offset + self.message_len_bytes()
    }

    /// Where the next message starts.
    pub(crate) fn end_offset(&self) -> u64 {
        self.frame_offset() + FRAME_LEN_BYTES as u64
    }

    /// The magic of frames, for searches.
    pub(crate) const fn magic() -> &'static [u8; 8] {
        FRAME_MAGIC
    }
}

/// The place of a part of a segment, and its checksum; all zero if there is no such part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Part {
    pub offset: u64,
    pub len_bytes: u64,
    pub crc: u32,
}

impl Part {
    /// The part that `bytes` at `offset` are.
    pub(crate) fn of(offset: u64, bytes: &[u8]) -> Self {
        Self { offset, len_bytes: bytes.len() as u64, crc: crc32(bytes) }
    }
}

/// The seal: what a segment is, and where its parts lie.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Seal {
    /// Format version.
    pub format: u32,
    pub store: [u8; 16],
    pub lane: u16,
    pub key_kind: u8,
    pub hash_id: u8,
    pub sequence: u64,
    pub first_timestamp: u64,
    pub last_timestamp: u64,
    pub rows: u64,
    pub tombstones: u64,
    /// The schema message.
    pub schema: Part,
    /// A copy of all commit frames of batches, in order.
    pub frames: Part,
    /// Sorted (hash, row) pairs.
    pub index: Part,
    /// String keys in order; may be absent.
    pub keys: Part,
    /// Lane and sequence of the segments that this one replaces.
    pub replaces: Part,
    /// The Arrow footer.
    pub footer: Part,
    /// [`crate::checksum::segment_seed`].
    pub seed: u32,
    /// CRC-32 of the record, by which an index run identifies a segment.
    pub crc: u32,
}

impl Seal {
    /// The segment's name within its store.
    pub(crate) fn id(&self) -> SegmentId {
        SegmentId { lane: self.lane, sequence: self.sequence }
    }

    /// The record.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut record = Vec::with_capacity(SEAL_LEN_BYTES);
        let mut put = Put(&mut record);
        put.bytes(SEAL_MAGIC)
            .u32(self.format)
            .u32(SEAL_LEN_BYTES as u32)
            .bytes(&self.store)
            .bytes(&self.lane.to_le_bytes())
            .bytes(&[self.key_kind, self.hash_id])
            .u32(self.seed)
            .u64(self.sequence)
            .u64(self.first_timestamp)
            .u64(self.last_timestamp)
            .u64(self.rows)
            .u64(self.tombstones);
        for part in self.parts() {
            put.u64(part.offset).u64(part.len_bytes).u32(part.crc);
        }
        finish(&mut record, SEAL_LEN_BYTES);
        record
    }

    fn parts(&self) -> [Part; 6] {
        [self.schema, self.frames, self.index, self.keys, self.replaces, self.footer]
    }

    /// Reads a seal that lies at `offset` of `path`; every part it names lies before `file_len_bytes`.
    ///
    /// # Errors
    /// [`Error::NewerFormat`] for a newer version, [`Error::Corrupt`] if anything is damaged.
    pub(crate) fn decode(record: &[u8], path: &Path, offset: u64, file_len_bytes: u64) -> Result<Self> {
        let corrupt = |what: String| Error::corrupt(path, offset, what);
        if !record.starts_with(SEAL_MAGIC) {
            return Err(corrupt("expected a seal, found other bytes".into()));
        }
        let mut take = Take(record.get(SEAL_MAGIC.len()..).unwrap_or(&[]));
        let version = take.u32();
        // Size and checksum are the same in every version. Check them first, so that a flipped bit in the version is
        // not taken for another version.
        if record.len() != SEAL_LEN_BYTES || !checks_out(record) {
            return Err(corrupt("the seal's checksum does not match its bytes".into()));
        }
        if version > FORMAT_VERSION {
            return Err(Error::NewerFormat { path: path.into(), found: version, supported: FORMAT_VERSION });
        }
        let _len = take.u32();
        let mut seal = Self { format: version, store: take.array(), lane: take.u16(), ..Self::default() };
        [seal.key_kind, seal.hash_id] = take.array();
        seal.seed = take.u32();
        for field in [
            &mut seal.sequence,
            &mut seal.first_timestamp,
            &mut seal.last_timestamp,
            &mut seal.rows,
            &mut seal.tombstones,
        ] {
            *field = take.u64();
        }
        for part in
            [&mut seal.schema, &mut seal.frames, &mut seal.index, &mut seal.keys, &mut seal.replaces, &mut seal.footer]
        {
            *part = Part { offset: take.u64(), len_bytes: take.u64(), crc: take.u32() };
            if part.offset.checked_add(part.len_bytes).is_none_or(|end| end > file_len_bytes) {
                return Err(corrupt(format!(
                    "the seal names {} bytes at {}, but the file has {file_len_bytes}",
                    part.len_bytes, part.offset
                )));
            }
        }
        seal.crc = record.split_last_chunk::<4>().map_or(0, |(_, crc)| u32::from_le_bytes(*crc));
        if version == 0 || seal.rows > u64::from(u32::MAX) {
            return Err(corrupt(format!("format version {version} with {} rows is not possible", seal.rows)));
        }
        seal.check_counts().map_err(corrupt)?;
        Ok(seal)
    }

    /// Checks counts against the bytes that back them, so that nothing is allocated for a count alone.
    fn check_counts(&self) -> Result<(), String> {
        if self.index.len_bytes != self.rows * INDEX_ROW_LEN_BYTES {
            return Err(format!("{} rows do not have an index block of {} bytes", self.rows, self.index.len_bytes));
        }
        let batches = self.frames.len_bytes / FRAME_LEN_BYTES as u64;
        if !self.frames.len_bytes.is_multiple_of(FRAME_LEN_BYTES as u64) || batches > self.rows {
            return Err(format!("{} rows do not have a frame table of {} bytes", self.rows, self.frames.len_bytes));
        }
        if self.tombstones > self.rows {
            return Err(format!("{} of {} rows cannot be tombstones", self.tombstones, self.rows));
        }
        if self.first_timestamp > self.last_timestamp || self.last_timestamp >= MAX_TIMESTAMP {
            return Err(format!(
                "timestamps from {} to {} are not possible",
                self.first_timestamp, self.last_timestamp
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_and_seals_round_trip() {
        let frame = Frame {
            rows: 7,
            offset: 512,
            metadata_len_bytes: 64,
            structure_len_bytes: 128,
            body_len_bytes: 256,
            ..Frame::default()
        };
        assert_eq!(Frame::decode(&frame.encode()), Some(frame));
        let seal = Seal {
            format: FORMAT_VERSION,
            rows: 9,
            lane: 3,
            sequence: 12,
            index: Part { offset: 0, len_bytes: 9 * 12, crc: 4 },
            footer: Part { offset: 100, len_bytes: 28, crc: 5 },
            ..Seal::default()
        };
        let record = seal.encode();
        assert_eq!(record.len(), SEAL_LEN_BYTES);
        let read = Seal::decode(&record, Path::new("x"), 0, 128).unwrap();
        assert_eq!(Seal { crc: 0, ..read }, seal);
        assert!(Seal::decode(&record, Path::new("x"), 0, 127).is_err());
    }

    #[test]
    fn every_flipped_byte_is_seen() {
        let frame = Frame { rows: 7, ..Frame::default() }.encode();
        let seal = Seal { format: FORMAT_VERSION, ..Seal::default() }.encode();
        for position in 0..FRAME_LEN_BYTES {
            let mut bad = frame.clone();
            bad[position] ^= 0x10;
            assert_eq!(Frame::decode(&bad), None);
        }
        for position in 0..SEAL_LEN_BYTES {
            let mut bad = seal.clone();
            bad[position] ^= 0x10;
            assert!(Seal::decode(&bad, Path::new("x"), 0, 1 << 20).is_err());
        }
    }

    #[test]
    fn impossible_sizes_are_refused() {
        let frame =
            Frame { structure_len_bytes: 10, body_len_bytes: u64::MAX, metadata_len_bytes: 8, ..Frame::default() };
        assert_eq!(Frame::decode(&frame.encode()), None);
        let frame = Frame { timestamp: u64::MAX, ..Frame::default() };
        assert_eq!(Frame::decode(&frame.encode()), None);
        for seal in [
            Seal { rows: 1, ..Seal::default() },
            Seal { tombstones: 1, ..Seal::default() },
            Seal { last_timestamp: u64::MAX, ..Seal::default() },
            Seal { first_timestamp: 1, ..Seal::default() },
            Seal { frames: Part { offset: 0, len_bytes: 96, crc: 0 }, ..Seal::default() },
        ] {
            assert!(Seal::decode(&seal.encode(), Path::new("x"), 0, 1 << 40).is_err(), "{seal:?}");
        }
    }
}
