//! A sealed segment, opened from its two ends in O(1): opening reads no values, no index, and no table of batches until
//! one is needed.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;

use super::batch::Batch;
use super::batches::Batches;
use super::damaged::{self, Damaged, Parsed};
use super::layout::{
    ARROW_TRAILER, END_OF_STREAM, FRAME_LEN_BYTES, Frame, Part, SEAL_LEN_BYTES, Seal, TRAILER_LEN_BYTES,
};
use super::scan::{Front, frames_in_place, front_in_footer, read_front};
use crate::checksum::crc32;
use crate::error::{Error, Result};
use crate::io::residency::{Wanted, prefault};
use crate::io::{ReadFile, Storage};
use crate::names::SegmentId;
use crate::schema::RowSchema;

/// A file whose first and last bytes were read: all that opening a segment needs.
#[derive(Debug)]
struct Ends {
    file: Arc<dyn ReadFile>,
    len_bytes: u64,
    front: Bytes,
    tail: Bytes,
}

impl Ends {
    /// Bytes at each end: the header of a schema of a few leaves; the seal and the list of replaced segments.
    const LEN_BYTES: u64 = 8192;

    fn read(file: &Arc<dyn ReadFile>) -> Result<Self> {
        let len_bytes = file.len_bytes()?;
        let end = len_bytes.min(Self::LEN_BYTES);
        let front = file.copy(0, (end / 2) as usize)?;
        let tail = file.copy(len_bytes - end, end as usize)?;
        Ok(Self { file: Arc::clone(file), len_bytes, front, tail })
    }
}

impl ReadFile for Ends {
    fn len_bytes(&self) -> Result<u64> {
        Ok(self.len_bytes)
    }

    fn bytes(&self, offset: u64, len_bytes: usize) -> Result<Bytes> {
        let within = |bytes: &Bytes, start: u64| {
            let start = usize::try_from(offset.checked_sub(start)?).ok()?;
            let end = start.checked_add(len_bytes)?;
            (end <= bytes.len()).then(|| bytes.slice(start..end))
        };
        let tail_start = self.len_bytes - self.tail.len() as u64;
        match within(&self.front, 0).or_else(|| within(&self.tail, tail_start)) {
            Some(bytes) => Ok(bytes),
            None => self.file.copy(offset, len_bytes),
        }
    }

    fn copy(&self, offset: u64, len_bytes: usize) -> Result<Bytes> {
        self.bytes(offset, len_bytes)
    }
}

/// A sealed segment.
#[derive(Debug)]
pub(crate) struct Segment {
    pub id: SegmentId,
    pub seal: Seal,
    pub front: Front,
    pub replaces: Vec<SegmentId>,
    pub len_bytes: u64,
    /// Why the front was read from the Arrow footer and not from its own place.
    front_damage: Option<Error>,
    /// Whether damage was found in it since this was last asked.
    damaged: AtomicBool,
    described: Arc<Path>,
    file: Arc<dyn ReadFile>,
    batches: OnceLock<Batches>,
    /// The key hash of each row, as far as known; filled if rows cannot be read.
    pub row_hashes: OnceLock<Box<[Option<u64>]>>,
}

impl Segment {
    /// Opens the sealed segment `id` at `path`.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if seal or schema are damaged, [`Error::NewerFormat`] for a newer version.
    pub(crate) fn open(storage: &dyn Storage, path: &Path, id: SegmentId) -> Result<Self> {
        let file = storage.open(path, 0)?;
        let described: Arc<Path> = storage.describe(path).into();
        let len_bytes = file.len_bytes()?;
        let ends: Arc<dyn ReadFile> = Arc::new(Ends::read(&file)?);
        let seal = read_seal(&described, &*ends, len_bytes)?;
        if seal.id() != id {
            return Err(Error::corrupt(&*described, 0, format!("the seal is of segment {}, not {id}", seal.id())));
        }
        let (front, front_damage) = match read_front(&described, &*ends, id) {
            Ok(front) => (front, None),
            Err(error @ Error::Corrupt { .. }) => (spare_front(&described, &*ends, &seal)?, Some(error)),
            Err(error) => return Err(error),
        };
        let mut segment = Self {
            id,
            front,
            replaces: Vec::new(),
            batches: OnceLock::new(),
            row_hashes: OnceLock::new(),
            seal,
            len_bytes,
            front_damage,
            damaged: AtomicBool::new(false),
            described,
            file: ends,
        };
        segment.check_front()?;
        segment.read_replaces()?;
        segment.file = file;
        // From here on, the segment holds no descriptor.
        segment.file.settle();
        Ok(segment)
    }

    /// The structure of its rows.
    pub(crate) fn schema(&self) -> &Arc<RowSchema> {
        &self.front.schema
    }

    /// The file, for messages.
    pub(crate) fn described(&self) -> &Arc<Path> {
        &self.described
    }

    /// The damage of its front, if the copy in the Arrow footer is used instead: no row is lost, but further damage may
    /// cost all of them.
    pub(crate) fn front_damage(&self) -> Option<&Error> {
        self.front_damage.as_ref()
    }

    /// Notes that damage was found.
    pub(crate) fn note_damaged(&self) {
        self.damaged.store(true, Ordering::Relaxed);
    }

    /// Whether damage was found since this was last asked.
    pub(crate) fn take_damaged(&self) -> bool {
        self.damaged.swap(false, Ordering::Relaxed)
    }

    fn corrupt(&self, offset: u64, what: impl Into<String>) -> Error {
        Error::corrupt(&*self.described, offset, what)
    }

    fn check_front(&self) -> Result<()> {
        let header = &self.front.header;
        let same = header.store.as_bytes() == &self.seal.store
            && header.schema.key.code() == self.seal.key_kind
            && header.hash == self.seal.hash_id
            && header.format == self.seal.format
            && self.front.seed == self.seal.seed
            && self.front.frame.structure_crc == self.seal.schema.crc;
        if same { Ok(()) } else { Err(self.corrupt(0, "the header and the seal disagree")) }
    }

    /// A part of the file. Compares its checksum.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if it does not, [`Error::Io`] if it cannot be read.
    fn part(&self, part: Part, name: &str) -> Result<Bytes> {
        let bytes = self.file_bytes(part.offset, part.len_bytes as usize)?;
        if crc32(&bytes) == part.crc {
            Ok(bytes)
        } else {
            self.note_damaged();
            Err(self.corrupt(part.offset, format!("the checksum of {name} does not match its bytes")))
        }
    }

    /// The batches that were parsed.
    fn parsed_batches(&self) -> impl Iterator<Item = &Arc<Batch>> {
        self.batches.get().into_iter().flat_map(|batches| {
            (0..batches.frames().len()).filter_map(|number| batches.parsed(number)?.get()?.as_ref().ok())
        })
    }

    /// How often sampled calls have read its batches, halved at each eviction. O(batches).
    pub(crate) fn sampled_reads(&self) -> u64 {
        self.parsed_batches().map(|batch| u64::from(batch.sampled_reads())).sum()
    }

    /// Halves the sampled reads. O(batches).
    pub(crate) fn halve_reads(&self) {
        self.parsed_batches().for_each(|batch| batch.halve_reads());
    }

    /// Its batches. O(batches) at the first call, O(1) after that. If the frame table is damaged, the frames after the
    /// batches are used.
    ///
    /// # Errors
    /// [`Error::Io`] if they cannot be read.
    #[inline]
    pub(crate) fn batches(&self) -> Result<&Batches> {
        match self.batches.get() {
            Some(batches) => Ok(batches),
            None => self.read_batches(),
        }
    }

    #[cold]
    fn read_batches(&self) -> Result<&Batches> {
        let of = |frames| Batches::new(frames, &self.seal, self.len_bytes);
        let batches = match self.part(self.seal.frames, "the frame table") {
            Ok(table) => of(table.chunks(FRAME_LEN_BYTES).filter_map(Frame::decode_checked).collect()),
            Err(error) if error.is_corrupt() => of(frames_in_place(
                &*self.file,
                self.seal.seed,
                self.front.frame.end_offset(),
                self.seal.frames.offset,
            )?),
            Err(error) => return Err(error),
        };
        Ok(self.batches.get_or_init(|| batches))
    }

    /// The error of a row that is in no batch.
    pub(crate) fn lost(&self) -> Error {
        self.corrupt(self.seal.frames.offset, "neither the frame table nor a frame after a batch locates the row")
    }

    /// The batch of `row`, and the row in it; `None` past the end.
    ///
    /// # Errors
    /// As [`Segment::batches`]; [`Error::Corrupt`] if damage hides where the row is.
    #[inline]
    pub(crate) fn locate(&self, row: u32) -> Result<Option<(usize, usize)>> {
        match self.batches()?.locate(row) {
            None if row < self.rows() => Err(self.lost()),
            found => Ok(found),
        }
    }

    fn read_replaces(&mut self) -> Result<()> {
        let bytes = self.part(self.seal.replaces, "the list of replaced segments")?;
        for record in bytes.chunks_exact(16) {
            let (lane, rest) = record.split_first_chunk::<2>().map_or(([0; 2], record), |(lane, rest)| (*lane, rest));
            let sequence = rest.last_chunk::<8>().map_or(0, |bytes| u64::from_le_bytes(*bytes));
            self.replaces.push(SegmentId { lane: u16::from_le_bytes(lane), sequence });
        }
        Ok(())
    }

    /// Rows in the segment.
    pub(crate) fn rows(&self) -> u32 {
        self.seal.rows as u32
    }

    /// Batch number `number`, parsed at the first call. O(1) after that, also if it is damaged.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if it is damaged.
    #[inline]
    pub(crate) fn batch(&self, number: usize) -> Result<&Arc<Batch>> {
        match self.parsed(number)? {
            Ok(batch) => Ok(batch),
            Err(damaged) => Err(damaged.error().clone()),
        }
    }

    /// Batch number `number` for row `within` of it: as [`Segment::batch`], but in a damaged batch, the rows that match
    /// their own checksums can be read.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if the row cannot be read.
    pub(crate) fn batch_of_row(&self, number: usize, within: usize) -> Result<&Arc<Batch>> {
        match self.parsed(number)? {
            Ok(batch) => Ok(batch),
            Err(damaged) => damaged.batch_of(within),
        }
    }

    /// Batch number `number`, or its remains.
    ///
    /// # Errors
    /// As [`Segment::batches`]; [`Error::Corrupt`] if nothing tells where it lies.
    #[inline]
    pub(crate) fn parsed(&self, number: usize) -> Result<&Parsed> {
        match self.batches()?.parsed(number) {
            Some(slot) => match slot.get() {
                Some(parsed) => Ok(parsed),
                None => self.parse_batch(number, slot),
            },
            None => Err(self.lost()),
        }
    }

    /// As [`Segment::parsed`], from the bytes that are in the file now.
    pub(crate) fn parse_anew(&self, number: usize) -> Result<Parsed> {
        let frame = *self.batches()?.frames().get(number).ok_or_else(|| self.lost())?;
        let message = match self.file.bytes(frame.offset, frame.message_len_bytes() as usize) {
            // The file was cut since it was opened.
            Err(error) if error.is_corrupt() => return Ok(Err(Box::new(Damaged::new(error, None)))),
            message => message?,
        };
        damaged::parse(&self.described, self.front.rows(), frame, &message)
    }

    /// When `row` was committed; `None` if nothing tells. If rows have commit timestamps of their own and this one is
    /// damaged, an upper bound. O(1), once its batch is parsed.
    pub(crate) fn timestamp(&self, row: u32) -> Option<u64> {
        let batches = self.batches().ok()?;
        let (number, within) = batches.locate(row)?;
        let frame = batches.frames().get(number)?;
        if !self.front.header.row_times {
            return Some(frame.timestamp);
        }
        Some(self.batch_of_row(number, within).map_or(frame.timestamp, |batch| batch.timestamp(within)))
    }

    /// Whether batch `number` was parsed before.
    pub(crate) fn is_parsed(&self, number: usize) -> bool {
        let batches = self.batches.get();
        batches.and_then(|batches| batches.parsed(number)).is_some_and(|slot| slot.get().is_some())
    }

    /// What parsing batch `number` reads, without touching it where it is mapped.
    ///
    /// # Errors
    /// As [`Segment::batches`]; [`Error::Corrupt`] if it lies beyond the end of the file.
    pub(crate) fn structure_bytes(&self, number: usize) -> Result<Bytes> {
        let frame = *self.batches()?.frames().get(number).ok_or_else(|| self.lost())?;
        self.file.bytes(frame.offset, frame.structure_len_bytes as usize)
    }

    /// Bytes of the file as they are.
    ///
    /// # Errors
    /// [`Error::Io`] if they cannot be read: of kind `NotFound` if the file is gone and not mapped.
    pub(crate) fn file_bytes(&self, offset: u64, len_bytes: usize) -> Result<Bytes> {
        let bytes = self.file.bytes(offset, len_bytes)?;
        // The file may have been cut since it was mapped: an unreadable page must be an error, not a signal.
        prefault(&mut [Wanted { bytes: &bytes, position: 0 }])
            .map_err(|(_, error)| Error::io("read", &*self.described, error))?;
        Ok(bytes)
    }

    /// The bytes of all batches, except those that only merges and scans read, without touching them if they are
    /// mapped.
    ///
    /// # Errors
    /// As [`Segment::batches`]; [`Error::Corrupt`] if they lie beyond the end of the file.
    pub(crate) fn rows_area(&self) -> Result<Bytes> {
        let end = self.batches()?.frames().last().map_or(0, |frame| frame.end_offset());
        self.file.bytes(0, usize::try_from(end).unwrap_or(usize::MAX))
    }

    #[cold]
    fn parse_batch<'a>(&'a self, number: usize, slot: &'a OnceLock<Parsed>) -> Result<&'a Parsed> {
        let parsed = self.parse_anew(number)?;
        Ok(slot.get_or_init(|| parsed))
    }

    /// Checks again what opening read, and what reads do not need: the frames after the messages, and the end of the
    /// stream. O(batches).
    pub(crate) fn check_structure(&self) -> Vec<Error> {
        let mut checks = vec![
            read_front(&self.described, &*self.file, self.id).map(drop),
            read_seal(&self.described, &*self.file, self.len_bytes).map(drop),
            self.part(self.seal.frames, "the frame table").map(drop),
            self.part(self.seal.replaces, "the list of replaced segments").map(drop),
            self.part(self.seal.footer, "the Arrow footer").map(drop),
        ];
        let in_place = |offset: u64, expected: &[u8], name: &str| match self.file.bytes(offset, expected.len()) {
            Ok(bytes) if bytes == expected => Ok(()),
            Ok(_) => Err(self.corrupt(offset, format!("{name} is not as it was written"))),
            Err(error) => Err(error),
        };
        let mut end = self.front.frame.end_offset();
        // If they cannot be read, a read of the batches returns the error.
        let frames = self.batches().map_or(&[][..], Batches::frames);
        for (number, frame) in frames.iter().enumerate() {
            checks.push(in_place(frame.frame_offset(), &frame.encode(), &format!("the frame of batch {number}")));
            end = frame.end_offset();
        }
        if !frames.is_empty() {
            checks.push(in_place(end, &END_OF_STREAM, "the end of the stream"));
        }
        checks.into_iter().filter_map(Result::err).collect()
    }

    /// The sorted hash block, checked.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if its checksum does not match.
    pub(crate) fn index_block(&self) -> Result<Bytes> {
        self.part(self.seal.index, "the index block")
    }

    /// The block of keys in order and its offset, checked; `None` if the segment has none.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if its checksum does not match.
    pub(crate) fn keys_block(&self) -> Result<Option<(u64, Bytes)>> {
        if self.seal.keys.len_bytes == 0 {
            return Ok(None);
        }
        self.part(self.seal.keys, "the block of ordered keys").map(|bytes| Some((self.seal.keys.offset, bytes)))
    }
}

/// The front from the Arrow footer that `seal` names.
fn spare_front(path: &Path, file: &dyn ReadFile, seal: &Seal) -> Result<Front> {
    let footer = file.bytes(seal.footer.offset, seal.footer.len_bytes as usize)?;
    if crc32(&footer) != seal.footer.crc {
        return Err(Error::corrupt(path, seal.footer.offset, "front and Arrow footer are both damaged"));
    }
    front_in_footer(path, &footer, seal)
}

/// Reads the seal, which lies just before the Arrow footer.
fn read_seal(path: &Path, file: &dyn ReadFile, len_bytes: u64) -> Result<Seal> {
    let corrupt = |offset: u64, what: &str| Error::corrupt(path, offset, what);
    let trailer_offset = len_bytes
        .checked_sub(TRAILER_LEN_BYTES)
        .ok_or_else(|| corrupt(0, "the file is shorter than an Arrow trailer"))?;
    let trailer = file.bytes(trailer_offset, TRAILER_LEN_BYTES as usize)?;
    let (footer_len, magic) = trailer.split_first_chunk::<4>().ok_or_else(|| corrupt(trailer_offset, "no trailer"))?;
    if magic != ARROW_TRAILER {
        return Err(corrupt(trailer_offset, "expected the end of an Arrow file, found other bytes"));
    }
    let offset = u64::try_from(i32::from_le_bytes(*footer_len))
        .ok()
        .and_then(|footer| trailer_offset.checked_sub(footer)?.checked_sub(SEAL_LEN_BYTES as u64))
        .ok_or_else(|| corrupt(trailer_offset, "the Arrow footer is longer than the file"))?;
    let seal = Seal::decode(&file.bytes(offset, SEAL_LEN_BYTES)?, path, offset, len_bytes)?;
    if seal.footer.offset != offset + SEAL_LEN_BYTES as u64
        || seal.footer.offset + seal.footer.len_bytes != trailer_offset
    {
        return Err(corrupt(offset, "the Arrow footer is not where the seal says"));
    }
    Ok(seal)
}
