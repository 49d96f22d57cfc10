//! The sync log of a lane: how much of each of its active segments is known to be on disk (the durable watermark).
//!
//! A frame says what was durable when it was written, so nothing in a segment says whether its newest batches were
//! synced. That matters after a power failure: a hole in a batch that was never synced is a torn tail, but the same
//! hole in a synced batch is damage. A record is appended right after a sync returns and is not synced itself. If it is
//! lost, no row is lost: the batches that it covered are checked like a torn tail.
//!
//! The log also records which segment numbers are *void*: given out, but without a file, because opening removed an
//! empty segment or moved one away. A number that is missing without such a record is a lost segment.

use std::io::IoSlice;
use std::path::Path;

use crate::checksum::{crc32, segment_seed};
use crate::engine::files::replace::{clear, list_if_exists, open_if_exists, set_aside_unless_file};
use crate::error::{Error, Result};
use crate::io::{AppendFile, Durability, FileKind, ReadFile, Storage};
use crate::names::{self, SegmentId};

const RECORD_LEN_BYTES: usize = 24;
/// The file is rewritten once it has this many records.
const MOST_RECORDS: usize = 4096;
/// Marks a void number, in the place of a length.
const VOID: u64 = u64::MAX;

/// The first `len_bytes` bytes of a segment were durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SyncRecord {
    pub sequence: u64,
    pub len_bytes: u64,
    /// [`crate::checksum::segment_seed`]: a number that was used twice, or another store's file, matches no record.
    pub seed: u32,
}

impl SyncRecord {
    /// The record that the number of segment `id` of `store` is void.
    pub(crate) fn void(store: &uuid::Uuid, id: SegmentId) -> Self {
        Self { sequence: id.sequence, len_bytes: VOID, seed: segment_seed(store.as_bytes(), id) }
    }

    /// Whether the record declares its number void.
    pub(crate) fn is_void(&self) -> bool {
        self.len_bytes == VOID
    }

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
        let decoded = Self {
            sequence: u64::from_le_bytes(*sequence),
            len_bytes: u64::from_le_bytes(*len_bytes),
            seed: u32::from_le_bytes(*seed),
        };
        (decoded.encode() == record).then_some(decoded)
    }
}

/// How many bytes of the active segment `id` were durable. `None` if its lane has no log, or none that this user may
/// read: then any of them may have been durable.
///
/// # Errors
/// IO errors.
pub(crate) fn synced(storage: &dyn Storage, seed: u32, id: SegmentId) -> Result<Option<u64>> {
    let file = match storage.open(&names::sync_log(id.lane), 0) {
        Ok(file) => file,
        Err(error) if error.is_not_found() || error.is_denied() || error.is_no_file() => return Ok(None),
        Err(error) => return Err(error),
    };
    let records = decode_all(&*file)?;
    let own =
        records.iter().filter(|record| record.sequence == id.sequence && record.seed == seed && !record.is_void());
    Ok(Some(own.map(|record| record.len_bytes).max().unwrap_or(0)))
}

fn decode_all(file: &dyn ReadFile) -> Result<Vec<SyncRecord>> {
    let bytes = file.bytes(0, usize::try_from(file.len_bytes()?).unwrap_or(usize::MAX))?;
    Ok(bytes.chunks(RECORD_LEN_BYTES).filter_map(SyncRecord::decode).collect())
}

/// The sync logs of all lanes. A lane's log may also name segments of other lanes that it moved away.
#[derive(Debug, Default)]
pub(crate) struct SyncLogs {
    records: Vec<SyncRecord>,
    lanes: Vec<u16>,
    /// Lanes whose logs this user may not read.
    pub unreadable: Vec<u16>,
}

impl SyncLogs {
    /// Reads the logs of every lane.
    ///
    /// # Errors
    /// IO errors.
    pub(crate) fn read(storage: &dyn Storage) -> Result<Self> {
        let entries = list_if_exists(storage, names::LANES)?;
        let mut all = Self::default();
        for lane in entries.iter().filter_map(|entry| names::parse_sync_log(&entry.name)) {
            match storage.open(&names::sync_log(lane), 0).and_then(|file| decode_all(&*file)) {
                Ok(records) => {
                    all.records.extend(records);
                    all.lanes.push(lane);
                }
                Err(error) if error.is_denied() => all.unreadable.push(lane),
                // Rewritten meanwhile, or not a file of ours.
                Err(Error::Io { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(all)
    }

    /// The segments of `store` that the records name, of `lanes` and of all lanes with logs, and whether each number is
    /// void.
    pub(crate) fn segments(&self, store: &uuid::Uuid, lanes: impl Iterator<Item = u16>) -> Vec<(SegmentId, bool)> {
        let mut lanes: Vec<u16> = lanes.chain(self.lanes.iter().copied()).collect();
        lanes.sort_unstable();
        lanes.dedup();
        let mut found = Vec::new();
        for record in &self.records {
            let ids = lanes.iter().map(|lane| SegmentId { lane: *lane, sequence: record.sequence });
            let of_record = ids.filter(|id| segment_seed(store.as_bytes(), *id) == record.seed);
            found.extend(of_record.map(|id| (id, record.is_void())));
        }
        found
    }

    /// The record of the newest segment of lane `lane` of `store`. No later number would show that this segment is
    /// missing.
    ///
    /// # Errors
    /// IO errors.
    pub(crate) fn newest(storage: &dyn Storage, store: &uuid::Uuid, lane: u16) -> Result<Option<SyncRecord>> {
        let Some(file) = open_if_exists(storage, &names::sync_log(lane))? else { return Ok(None) };
        let seed = |record: &SyncRecord| segment_seed(store.as_bytes(), SegmentId { lane, sequence: record.sequence });
        let own = decode_all(&*file)?.into_iter().filter(|record| !record.is_void() && record.seed == seed(record));
        Ok(own.max_by_key(|record| (record.sequence, record.len_bytes)))
    }

    /// The void numbers in the log of lane `lane`.
    ///
    /// # Errors
    /// IO errors.
    pub(crate) fn voids(storage: &dyn Storage, lane: u16) -> Result<Vec<SyncRecord>> {
        let Some(file) = open_if_exists(storage, &names::sync_log(lane))? else { return Ok(Vec::new()) };
        Ok(decode_all(&*file)?.into_iter().filter(SyncRecord::is_void).collect())
    }
}

/// A lane's sync log, open for appending.
#[derive(Debug)]
pub(crate) struct SyncLog {
    file: Box<dyn AppendFile>,
    /// Records since the file was last rewritten.
    records: usize,
}

impl SyncLog {
    /// Reopens the file as it is, if there is one: for a lane without active segments, whose records are all stale.
    ///
    /// # Errors
    /// IO errors.
    pub(crate) fn reopen(storage: &dyn Storage, lane: u16) -> Result<Option<Self>> {
        let path = names::sync_log(lane);
        if storage.kind(&path)? != Some(FileKind::File) {
            return Ok(None);
        }
        let len_bytes = storage.len_bytes(&path)?;
        let records = len_bytes / RECORD_LEN_BYTES as u64;
        let file = storage.open_append(&path, records * RECORD_LEN_BYTES as u64)?;
        Ok(Some(Self { file, records: records as usize }))
    }

    /// Rewrites the file with `records` only.
    ///
    /// # Errors
    /// IO errors; the former file is then still there.
    pub(crate) fn create(
        storage: &dyn Storage,
        lane: u16,
        records: &[SyncRecord],
        durability: Durability,
    ) -> Result<Self> {
        let path = names::sync_log(lane);
        let temporary = names::temporary_sync_log(lane);
        clear(storage, &temporary)?;
        let mut written = Self { file: storage.create(&temporary)?, records: 0 };
        written.append(records)?;
        written.records = 0;
        written.file.sync(durability)?;
        set_aside_unless_file(storage, &path)?;
        storage.rename(&temporary, &path)?;
        if durability > Durability::Buffered {
            storage.sync_dir(Path::new(names::LANES))?;
        }
        Ok(written)
    }

    /// Whether the file should be rewritten.
    pub(crate) fn is_full(&self) -> bool {
        self.records >= MOST_RECORDS
    }

    /// Appends `records`.
    ///
    /// # Errors
    /// IO errors.
    pub(crate) fn append(&mut self, records: &[SyncRecord]) -> Result<()> {
        let bytes: Vec<u8> = records.iter().flat_map(|record| record.encode()).collect();
        self.records += records.len();
        if bytes.is_empty() { Ok(()) } else { self.file.append(&[IoSlice::new(&bytes)]) }
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
        let record = |sequence, len_bytes, seed| SyncRecord { sequence, len_bytes, seed };
        let mut log = SyncLog::create(&storage, 3, &[record(7, 100, 9)], Durability::SyncData).unwrap();
        log.append(&[record(7, 200, 9), record(7, 300, 8), record(8, 400, 9)]).unwrap();
        log.append(&[]).unwrap();
        assert_eq!(synced(&storage, 9, id).unwrap(), Some(200));
        assert_eq!(synced(&storage, 1, id).unwrap(), Some(0));
        let path = names::sync_log(3);
        for byte in 24..48 {
            storage.corrupt(&path, byte, 0x15).unwrap();
            assert_eq!(synced(&storage, 9, id).unwrap(), Some(100));
            storage.corrupt(&path, byte, 0x15).unwrap();
        }
        storage.truncate(&path, 30).unwrap();
        assert_eq!(synced(&storage, 9, id).unwrap(), Some(100));
        SyncLog::create(&storage, 3, &[], Durability::SyncData).unwrap();
        assert_eq!(synced(&storage, 9, id).unwrap(), Some(0));
    }

    #[test]
    fn void_numbers_are_told_from_marks_and_found_by_their_lane() {
        let storage = MemoryStorage::new();
        storage.create_dir(Path::new(names::LANES)).unwrap();
        let store = uuid::Uuid::from_u128(7);
        let (own, other) = (SegmentId { lane: 0, sequence: 3 }, SegmentId { lane: 9, sequence: 3 });
        let seed = segment_seed(store.as_bytes(), own);
        let record = SyncRecord { sequence: 3, len_bytes: 500, seed };
        SyncLog::create(&storage, 0, &[record, SyncRecord::void(&store, other)], Durability::SyncData).unwrap();
        assert_eq!(synced(&storage, seed, own).unwrap(), Some(500));
        assert_eq!(SyncLogs::voids(&storage, 0).unwrap(), [SyncRecord::void(&store, other)]);
        let all = SyncLogs::read(&storage).unwrap();
        assert_eq!(all.segments(&store, [9].into_iter()), [(own, false), (other, true)]);
        assert_eq!(all.segments(&store, std::iter::empty()), [(own, false)], "no such lane is known");
        assert!(all.segments(&uuid::Uuid::from_u128(8), [9].into_iter()).is_empty(), "of another store");
    }

    #[test]
    fn a_log_is_gone_on_with_behind_its_last_whole_record_and_rewritten_when_it_is_full() {
        let storage = MemoryStorage::new();
        storage.create_dir(Path::new(names::LANES)).unwrap();
        let record = |sequence| SyncRecord { sequence, len_bytes: 100, seed: 9 };
        assert!(SyncLog::reopen(&storage, 3).unwrap().is_none());
        SyncLog::create(&storage, 3, &[record(1), record(2)], Durability::SyncData).unwrap();
        let path = names::sync_log(3);
        storage.truncate(&path, 2 * RECORD_LEN_BYTES as u64 - 5).unwrap();
        let mut log = SyncLog::reopen(&storage, 3).unwrap().unwrap();
        log.append(&[record(3)]).unwrap();
        let id = |sequence| SegmentId { lane: 3, sequence };
        let lengths = [1, 2, 3].map(|sequence| synced(&storage, 9, id(sequence)).unwrap());
        assert_eq!(lengths, [Some(100), Some(0), Some(100)]);
        let many: Vec<SyncRecord> = (0..MOST_RECORDS as u64).map(record).collect();
        assert!(!log.is_full());
        log.append(&many).unwrap();
        assert!(log.is_full());
        let fresh = SyncLog::create(&storage, 3, &many, Durability::SyncData).unwrap();
        assert!(!fresh.is_full(), "only what was appended since counts");
    }
}
