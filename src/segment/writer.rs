//! The writer of one segment: header, batches with their frames, and the seal.

use std::io::IoSlice;
use std::path::Path;
use std::sync::Arc;

use arrow_schema::Schema;

use super::batch::Batch;
use super::columns::BatchPart;
use super::layout::{
    ARROW_MAGIC, ARROW_TRAILER, END_OF_STREAM, FORMAT_VERSION, FRAME_LEN_BYTES, Frame, Part, SEAL_LEN_BYTES,
    SEEDED_VERSION, Seal,
};
use super::message::{encode_batch, footer, schema_message};
use super::scan::{Front, HEADER_OFFSET, Prefix};
use crate::checksum::{crc32, segment_seed};
use crate::error::{Error, Result};
use crate::io::{AppendFile, Durability, ReadFile, Storage};
use crate::key::HashSeed;
use crate::names::{self, SegmentId};
use crate::schema::{Header, ROW_LAYOUT_VERSION, RowLayout, RowSchema, arrow_schema};

/// The identity that all segments of a store share.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct StoreIdentity {
    pub store: uuid::Uuid,
    pub hash_id: u8,
    /// The seed of key hashes.
    pub hash_seed: u64,
    /// Format version.
    pub format: u32,
}

impl StoreIdentity {
    /// A new store, with a random seed unless one is given.
    pub(crate) fn new(hash_id: u8, hash_seed: Option<u64>) -> Self {
        let random = || {
            let (high, low) = uuid::Uuid::new_v4().as_u64_pair();
            // The constant bits of a UUID do not overlap after the rotation.
            high ^ low.rotate_left(32)
        };
        let hash_seed = hash_seed.unwrap_or_else(random);
        Self { store: uuid::Uuid::new_v4(), hash_id, hash_seed, format: FORMAT_VERSION }
    }

    /// The store of a segment with this header.
    pub(crate) fn of(header: &Header) -> Self {
        let hash_seed = header.hash_seed.map_or(0, |seed| seed.0);
        Self { store: header.store, hash_id: header.hash, hash_seed, format: header.format }
    }

    /// The seed as files record it; those of version 1 do not.
    pub(crate) fn recorded_seed(&self) -> Option<HashSeed> {
        (self.format >= SEEDED_VERSION).then_some(HashSeed(self.hash_seed))
    }
}

/// The contents of a seal; index blocks are opaque bytes here.
#[derive(Debug, Default)]
pub(crate) struct SealParts {
    pub index: Vec<u8>,
    pub keys: Option<Vec<u8>>,
    pub replaces: Vec<SegmentId>,
}

const ZEROS: &[u8] = &[0; 8];

/// The parts that a seal writes after the batches, without joining them in memory.
struct Tail<'a> {
    pieces: Vec<&'a [u8]>,
    end_offset: u64,
}

impl<'a> Tail<'a> {
    /// The end of the stream at `offset`, padded to a multiple of 8 as the end of every message.
    fn new(offset: u64) -> Self {
        Self { pieces: vec![&END_OF_STREAM], end_offset: offset + END_OF_STREAM.len() as u64 }
    }

    /// Pads to the next multiple of 8.
    fn align(&mut self) {
        let padding = (self.end_offset.next_multiple_of(8) - self.end_offset) as usize;
        self.pieces.push(ZEROS.get(..padding).unwrap_or(&[]));
        self.end_offset += padding as u64;
    }

    /// Adds a part; empty bytes are an absent part.
    fn add(&mut self, bytes: &'a [u8]) -> Part {
        self.align();
        let part = Part::of(self.end_offset, bytes);
        self.pieces.push(bytes);
        self.end_offset += bytes.len() as u64;
        if bytes.is_empty() { Part::default() } else { part }
    }
}

/// The writer of an active segment. After an error it must be dropped: nothing more may be written to the file.
#[derive(Debug)]
pub(crate) struct SegmentWriter {
    storage: Arc<dyn Storage>,
    header: Header,
    schema: Arc<RowSchema>,
    arrow: Schema,
    seed: u32,
    /// Its sealed path, relative to the storage's root.
    path: Arc<Path>,
    sealed_path: std::path::PathBuf,
    described: Arc<Path>,
    file: Box<dyn AppendFile>,
    reader: Arc<dyn ReadFile>,
    schema_part: Part,
    frames: Vec<Frame>,
    rows: u64,
    /// The earliest commit timestamp, if there are rows.
    first_timestamp: Option<u64>,
    capacity_bytes: u64,
}

/// What a new segment is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct NewSegment {
    pub id: SegmentId,
    /// Whether it will have the rows of other segments, which it replaces.
    pub compacted: bool,
    /// Whether its rows have commit timestamps of their own: then they may come in any order.
    pub row_times: bool,
}

impl From<SegmentId> for NewSegment {
    /// A segment for new rows.
    fn from(id: SegmentId) -> Self {
        Self { id, compacted: false, row_times: false }
    }
}

impl SegmentWriter {
    /// Creates segment `new` as `path`. It takes at most `capacity_bytes` before it must be sealed.
    ///
    /// # Errors
    /// IO errors; [`Error::Invalid`] if the schema has no layout on disk.
    pub(crate) fn create(
        storage: &Arc<dyn Storage>,
        identity: StoreIdentity,
        new: NewSegment,
        path: &Path,
        schema: &Arc<RowSchema>,
        capacity_bytes: u64,
    ) -> Result<Self> {
        schema.check().map_err(Error::invalid)?;
        let NewSegment { id, compacted, row_times } = new;
        if row_times && identity.format < ROW_LAYOUT_VERSION {
            return Err(Error::internal("rows with commit timestamps in a store of an older version"));
        }
        let header = Header {
            format: identity.format,
            store: identity.store,
            lane: id.lane,
            sequence: id.sequence,
            hash: identity.hash_id,
            hash_seed: identity.recorded_seed(),
            compacted,
            row_times,
            schema: RowSchema::clone(schema),
        };
        let arrow = arrow_schema(&header)?;
        let seed = segment_seed(header.store.as_bytes(), id);
        let message = schema_message(&arrow, HEADER_OFFSET)?;
        let frame = Frame {
            seed,
            offset: HEADER_OFFSET,
            metadata_len_bytes: message.len() as u32,
            structure_crc: crc32(&message),
            structure_len_bytes: message.len() as u64,
            ..Frame::default()
        };
        let mut file = storage.create(path)?;
        file.fill_pages(true)?;
        file.append(&[IoSlice::new(ARROW_MAGIC), IoSlice::new(&message), IoSlice::new(&frame.encode())])?;
        let reader = storage.open(path, capacity_bytes)?;
        Ok(Self {
            described: storage.describe(path).into(),
            storage: Arc::clone(storage),
            schema: Arc::clone(schema),
            sealed_path: names::sealed(id),
            path: path.into(),
            schema_part: Part::of(HEADER_OFFSET, &message),
            frames: Vec::new(),
            rows: 0,
            first_timestamp: None,
            header,
            arrow,
            seed,
            file,
            reader,
            capacity_bytes,
        })
    }

    /// Continues an active segment whose committed prefix is `prefix`; cuts what follows it. The caller must call
    /// [`SegmentWriter::note_times`] for each batch of the prefix.
    pub(crate) fn resume(
        storage: &Arc<dyn Storage>,
        front: &Front,
        prefix: &Prefix,
        capacity_bytes: u64,
    ) -> Result<Self> {
        let id = front.header.id();
        let path = names::active(id);
        let mut file = storage.open_append(&path, prefix.end_offset)?;
        file.fill_pages(true)?;
        let reader = storage.open(&path, capacity_bytes.max(prefix.end_offset))?;
        let schema_len = front.frame.structure_len_bytes;
        Ok(Self {
            described: storage.describe(&path).into(),
            storage: Arc::clone(storage),
            schema: Arc::clone(&front.schema),
            arrow: arrow_schema(&front.header)?,
            header: front.header.clone(),
            seed: front.seed,
            sealed_path: names::sealed(id),
            path: path.into(),
            schema_part: Part { offset: HEADER_OFFSET, len_bytes: schema_len, crc: front.frame.structure_crc },
            frames: prefix.frames.clone(),
            rows: prefix.frames.last().map_or(0, |frame| frame.first_row + u64::from(frame.rows)),
            first_timestamp: None,
            file,
            reader,
            capacity_bytes,
        })
    }

    /// The segment's name within its store.
    pub(crate) fn id(&self) -> SegmentId {
        self.header.id()
    }

    /// The structure of its rows.
    pub(crate) fn schema(&self) -> &Arc<RowSchema> {
        &self.schema
    }

    /// [`segment_seed`].
    pub(crate) fn seed(&self) -> u32 {
        self.seed
    }

    /// Rows so far.
    pub(crate) fn rows(&self) -> u64 {
        self.rows
    }

    /// Bytes that were appended.
    pub(crate) fn len_bytes(&self) -> u64 {
        self.file.len_bytes()
    }

    /// The columns of its rows besides keys and leaves.
    pub(crate) fn layout(&self) -> RowLayout {
        self.header.layout()
    }

    fn read_back(&self, frame: Frame) -> Result<Batch> {
        let message = self.reader.bytes(frame.offset, frame.message_len_bytes() as usize)?;
        Batch::parse(&self.described, (&self.schema, self.layout()), frame, &message, false)
    }

    /// Whether `len_bytes` more of rows fit. The margin is for metadata, frames and padding.
    pub(crate) fn has_room(&self, rows: usize, len_bytes: usize) -> bool {
        let margin = 64 * 1024 + rows as u64 * 16 + self.layout().len_bytes(rows) as u64;
        self.rows + rows as u64 <= u64::from(u32::MAX)
            && self.len_bytes() + len_bytes as u64 + margin <= self.capacity_bytes
    }

    /// Appends the rows of `parts` as one batch: one vectored write, nothing copied together. If rows have commit
    /// timestamps, the batch gets the latest of them, or that of the batch before.
    ///
    /// # Errors
    /// IO errors, after which the writer must be dropped; [`Error::TooLarge`] before anything is written.
    pub(crate) fn append(&mut self, parts: &[BatchPart<'_>], timestamp: u64, durable_timestamp: u64) -> Result<Batch> {
        let layout = self.layout();
        let encoded = encode_batch((&self.schema, layout), parts, self.seed, self.len_bytes())?;
        let timestamp = if layout.has_times { self.last_time(parts) } else { timestamp };
        let frame = Frame { first_row: self.rows, timestamp, durable_timestamp, ..encoded.frame };
        let record = frame.encode();
        let mut slices = Vec::with_capacity(encoded.values.len() + 2);
        slices.push(IoSlice::new(&encoded.head));
        slices.extend(encoded.values.iter().filter(|piece| !piece.is_empty()).map(|piece| IoSlice::new(piece)));
        slices.push(IoSlice::new(&record));
        self.file.append(&slices)?;
        self.rows += u64::from(frame.rows);
        self.frames.push(frame);
        let batch = self.read_back(frame)?;
        self.note_times(&batch);
        Ok(batch)
    }

    /// The latest commit timestamp of these rows, which have their own, and of those before them.
    fn last_time(&self, parts: &[BatchPart<'_>]) -> u64 {
        let before = self.frames.last().map_or(0, |frame| frame.timestamp);
        let times = parts.iter().flat_map(|part| (0..part.columns.rows).filter_map(|row| part.columns.time(row)));
        times.fold(before, u64::max)
    }

    /// Notes the commit timestamps of a batch of the segment.
    pub(crate) fn note_times(&mut self, batch: &Batch) {
        let first = batch.first_timestamp();
        self.first_timestamp = Some(self.first_timestamp.map_or(first, |before| before.min(first)));
    }

    /// The earliest commit timestamp, if there are rows.
    pub(crate) fn first_timestamp(&self) -> Option<u64> {
        self.first_timestamp
    }

    /// See [`AppendFile::write_early`].
    pub(crate) fn write_early(&mut self, early: bool) {
        self.file.write_early(early);
    }

    /// See [`AppendFile::is_in_place`].
    pub(crate) fn is_in_place(&self) -> bool {
        self.file.is_in_place()
    }

    /// Makes what was appended durable.
    pub(crate) fn sync(&mut self, durability: Durability) -> Result<()> {
        self.file.sync(durability)
    }

    /// Ends the file with index, seal and Arrow footer, and publishes it under its sealed name.
    ///
    /// # Errors
    /// IO errors; the active file is then left as it is, for recovery.
    pub(crate) fn seal(mut self, parts: &SealParts, durability: Durability) -> Result<Seal> {
        let frames: Vec<u8> = self.frames.iter().flat_map(Frame::encode).collect();
        let replaces: Vec<u8> = parts
            .replaces
            .iter()
            .flat_map(|id| {
                let [a, b] = id.lane.to_le_bytes();
                [[a, b, 0, 0, 0, 0, 0, 0], id.sequence.to_le_bytes()].concat()
            })
            .collect();
        let footer = footer(&self.arrow, &self.frames)?;
        let mut tail = Tail::new(self.len_bytes());
        let index = tail.add(&parts.index);
        let keys = tail.add(parts.keys.as_deref().unwrap_or(&[]));
        let frames_part = tail.add(&frames);
        let replaces = tail.add(&replaces);
        tail.align();
        let footer_part = Part::of(tail.end_offset + SEAL_LEN_BYTES as u64, &footer);
        let mut seal = Seal {
            format: self.header.format,
            store: *self.header.store.as_bytes(),
            lane: self.header.lane,
            sequence: self.header.sequence,
            key_kind: self.schema.key.code(),
            hash_id: self.header.hash,
            seed: self.seed,
            first_timestamp: self.first_timestamp.unwrap_or(0),
            last_timestamp: self.frames.last().map_or(0, |frame| frame.timestamp),
            rows: self.rows,
            tombstones: if self.schema.is_tombstones() { self.rows } else { 0 },
            schema: self.schema_part,
            frames: frames_part,
            index,
            keys,
            replaces,
            footer: footer_part,
            crc: 0,
        };
        let record = seal.encode();
        seal.crc = record.split_last_chunk::<4>().map_or(0, |(_, crc)| u32::from_le_bytes(*crc));
        let footer_len = i32::try_from(footer.len())
            .map_err(|_| Error::TooLarge {
                what: "the Arrow footer".into(),
                found: footer.len() as u64,
                limit: i32::MAX as u64,
            })?
            .to_le_bytes();
        let end: [&[u8]; 4] = [&record, &footer, &footer_len, ARROW_TRAILER];
        let slices: Vec<IoSlice<'_>> = tail.pieces.into_iter().chain(end).map(IoSlice::new).collect();
        self.file.append(&slices)?;
        // After the tail: a reader that follows the file must never see it shorter than its batches.
        self.file.fill_pages(false)?;
        self.file.sync(durability)?;
        if self.storage.kind(&self.sealed_path)?.is_some() {
            // The rename would replace it.
            let taken = std::io::ErrorKind::AlreadyExists.into();
            return Err(Error::io("seal a segment as", self.storage.describe(&self.sealed_path), taken));
        }
        self.storage.rename(&self.path, &self.sealed_path)?;
        // Values that were read share its map; the descriptor is no longer needed.
        self.reader.settle();
        if durability > Durability::Buffered {
            self.storage.sync_dir(Path::new(names::SEGMENTS))?;
        }
        Ok(seal)
    }

    /// Bytes of a segment besides its batches.
    pub(crate) const fn overhead_bytes() -> u64 {
        (FRAME_LEN_BYTES + SEAL_LEN_BYTES) as u64 + 128 * 1024
    }
}
