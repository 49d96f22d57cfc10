//! Marks: how far each active segment of a lane is known to be on the medium.
//!
//! A frame says what was durable when it was written, so nothing in a segment says that its newest batches were synced.
//! After a power failure that matters: a hole in a batch that was never synced is a torn tail, the same bytes in one
//! that was synced are damage. A mark is written right after a sync returns, and is itself not synced: if it gets lost,
//! so did nothing that was synced before it.

use std::io::IoSlice;
use std::path::Path;

use super::aside::{clear, set_aside_unless_file};
use crate::checksum::crc32;
use crate::error::Result;
use crate::io::{AppendFile, Durability, FileKind, Storage};
use crate::names::{self, SegmentId};

const RECORD_LEN_BYTES: usize = 24;
/// From this many records on, the file is written anew.
const MOST_RECORDS: usize = 4096;

/// The first `len_bytes` bytes of a segment were on the medium.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mark {
    pub sequence: u64,
    pub len_bytes: u64,
    /// [`crate::checksum::segment_seed`]: a number that was used twice, or another store's file, is no mark of it.
    pub seed: u32,
}

impl Mark {
    fn encode(self) -> [u8; RECORD_LEN_BYTES] {
        let mut record = [0; RECORD_LEN_BYTES];
        let fields = self.sequence.to_le_bytes().into_iter().chain(self.len_bytes.to_le_bytes());
        let fields: Vec<u8> = fields.chain(self.seed.to_le_bytes()).collect();
        let crc = crc32(&fields).to_le_bytes();
        record.iter_mut().zip(fields.into_iter().chain(crc)).for_each(|(to, from)| *to = from);
        record
    }

    fn decode(record: &[u8]) -> Option<Self> {
        let (sequence, rest) = record.split_first_chunk()?;
        let (len_bytes, rest) = rest.split_first_chunk()?;
        let (seed, _) = rest.split_first_chunk()?;
        let mark = Self {
            sequence: u64::from_le_bytes(*sequence),
            len_bytes: u64::from_le_bytes(*len_bytes),
            seed: u32::from_le_bytes(*seed),
        };
        (mark.encode() == record).then_some(mark)
    }
}

/// How many bytes of the active segment `id` were on the medium; `None` if its lane has no marks, so that any might
/// have been.
///
/// # Errors
/// IO errors.
pub(crate) fn synced(storage: &dyn Storage, seed: u32, id: SegmentId) -> Result<Option<u64>> {
    let file = match storage.open(&names::lane_marks(id.lane), 0) {
        Ok(file) => file,
        Err(error) if error.is_not_found() || error.is_no_file() => return Ok(None),
        Err(error) => return Err(error),
    };
    let bytes = file.bytes(0, file.len_bytes()? as usize)?;
    let marks = bytes.chunks(RECORD_LEN_BYTES).filter_map(Mark::decode);
    let own = marks.filter(|mark| mark.sequence == id.sequence && mark.seed == seed);
    Ok(Some(own.map(|mark| mark.len_bytes).max().unwrap_or(0)))
}

/// A lane's file of marks, open for appending.
#[derive(Debug)]
pub(crate) struct Marks {
    file: Box<dyn AppendFile>,
    records: usize,
}

impl Marks {
    /// Goes on with the file as it is, if there is one: for a lane without active segments, of which all marks are stale.
    ///
    /// # Errors
    /// IO errors.
    pub(crate) fn reopen(storage: &dyn Storage, lane: u16) -> Result<Option<Self>> {
        let path = names::lane_marks(lane);
        if storage.kind(&path)? != Some(FileKind::File) {
            return Ok(None);
        }
        let len_bytes = storage.len_bytes(&path)?;
        let records = len_bytes / RECORD_LEN_BYTES as u64;
        let file = storage.open_append(&path, records * RECORD_LEN_BYTES as u64)?;
        Ok(Some(Self { file, records: records as usize }))
    }

    /// Writes the file anew with `marks` and nothing else.
    ///
    /// # Errors
    /// IO errors; the former file is then still there.
    pub(crate) fn create(storage: &dyn Storage, lane: u16, marks: &[Mark], durability: Durability) -> Result<Self> {
        let path = names::lane_marks(lane);
        let temporary = names::temporary_lane_marks(lane);
        clear(storage, &temporary)?;
        let mut written = Self { file: storage.create(&temporary)?, records: 0 };
        written.append(marks)?;
        written.file.sync(durability)?;
        set_aside_unless_file(storage, &path)?;
        storage.rename(&temporary, &path)?;
        if durability > Durability::Buffered {
            storage.sync_dir(Path::new(names::LANES))?;
        }
        Ok(written)
    }

    /// Whether it is time to write the file anew.
    pub(crate) fn is_full(&self) -> bool {
        self.records >= MOST_RECORDS
    }

    /// Appends `marks`.
    ///
    /// # Errors
    /// IO errors.
    pub(crate) fn append(&mut self, marks: &[Mark]) -> Result<()> {
        let records: Vec<u8> = marks.iter().flat_map(|mark| mark.encode()).collect();
        self.records += marks.len();
        if records.is_empty() { Ok(()) } else { self.file.append(&[IoSlice::new(&records)]) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::memory::MemoryStorage;

    #[test]
    fn the_farthest_mark_that_checks_out_counts() {
        let storage = MemoryStorage::new();
        storage.create_dir(Path::new(names::LANES)).unwrap();
        let id = SegmentId { lane: 3, sequence: 7 };
        assert_eq!(synced(&storage, 9, id).unwrap(), None);
        let mark = |sequence, len_bytes, seed| Mark { sequence, len_bytes, seed };
        let mut marks = Marks::create(&storage, 3, &[mark(7, 100, 9)], Durability::SyncData).unwrap();
        marks.append(&[mark(7, 200, 9), mark(7, 300, 8), mark(8, 400, 9)]).unwrap();
        marks.append(&[]).unwrap();
        assert_eq!(synced(&storage, 9, id).unwrap(), Some(200));
        assert_eq!(synced(&storage, 1, id).unwrap(), Some(0));
        let path = names::lane_marks(3);
        for byte in 24..48 {
            storage.corrupt(&path, byte, 0x15).unwrap();
            assert_eq!(synced(&storage, 9, id).unwrap(), Some(100));
            storage.corrupt(&path, byte, 0x15).unwrap();
        }
        storage.truncate(&path, 30).unwrap();
        assert_eq!(synced(&storage, 9, id).unwrap(), Some(100));
        Marks::create(&storage, 3, &[], Durability::SyncData).unwrap();
        assert_eq!(synced(&storage, 9, id).unwrap(), Some(0));
    }
}
