//! Row map files: where the rows of replaced segments are now, so that index runs that cover these remain usable. The
//! files are derived data: if one is missing, the run is refused and its rows are indexed again.

use std::path::Path;

use bytes::Bytes;

use crate::checksum::crc32;
use crate::engine::files::replace::{list_if_exists, open_if_exists, replace_file};
use crate::engine::rows::row_map::RowMap;
use crate::error::Result;
use crate::io::{Durability, ReadFile, Storage};
use crate::names::{self, SegmentId};

const MAGIC: &[u8; 8] = b"TCMOVED\x01";
const HEAD_LEN_BYTES: usize = 64;
const RECORD_LEN_BYTES: usize = 32;

/// A replaced segment and its row map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MovedSegment {
    pub id: SegmentId,
    pub seal_crc: u32,
    pub map: RowMap,
}

/// The content of one file: the row maps of the segments that `target` replaced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RowMaps {
    pub target: SegmentId,
    /// Rows of the target.
    pub rows: u64,
    /// Of these rows: of two copies of a store, each may have a target of its own.
    pub fingerprint: u64,
    pub moved: Vec<MovedSegment>,
}

impl RowMaps {
    fn encode(&self, store: &uuid::Uuid) -> Vec<u8> {
        let maps: usize = self.moved.iter().map(|moved| moved.map.as_bytes().len()).sum();
        let mut bytes = Vec::with_capacity(HEAD_LEN_BYTES + self.moved.len() * RECORD_LEN_BYTES + maps + 4);
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(store.as_bytes());
        for word in
            [u64::from(self.target.lane), self.target.sequence, self.rows, self.fingerprint, self.moved.len() as u64]
        {
            bytes.extend_from_slice(&word.to_le_bytes());
        }
        for moved in &self.moved {
            let rows = moved.map.as_bytes().len() as u64 / 4;
            for word in [u64::from(moved.id.lane), moved.id.sequence, u64::from(moved.seal_crc), rows] {
                bytes.extend_from_slice(&word.to_le_bytes());
            }
        }
        self.moved.iter().for_each(|moved| bytes.extend_from_slice(moved.map.as_bytes()));
        bytes.extend_from_slice(&crc32(&bytes).to_le_bytes());
        bytes
    }

    /// `None` if `bytes` are not a complete, undamaged file of this store.
    fn decode(bytes: &Bytes, store: &uuid::Uuid) -> Option<Self> {
        let (body, crc) = bytes.split_last_chunk::<4>()?;
        let head = body.get(..HEAD_LEN_BYTES)?;
        let is_whole = head.starts_with(MAGIC) && head.get(8..24)? == store.as_bytes();
        if !is_whole || u32::from_le_bytes(*crc) != crc32(body) {
            return None;
        }
        let mut target = words(head.get(24..)?);
        let id = segment_id(target.next()?, target.next()?)?;
        let (rows, fingerprint) = (target.next()?, target.next()?);
        let count = usize::try_from(target.next()?).ok()?;
        let mut at = count.checked_mul(RECORD_LEN_BYTES)?.checked_add(HEAD_LEN_BYTES)?;
        let mut moved = Vec::new();
        for record in body.get(HEAD_LEN_BYTES..at)?.chunks_exact(RECORD_LEN_BYTES) {
            let mut record = words(record);
            let id = segment_id(record.next()?, record.next()?)?;
            let seal_crc = u32::try_from(record.next()?).ok()?;
            let end = usize::try_from(record.next()?).ok()?.checked_mul(4)?.checked_add(at)?;
            body.get(at..end)?;
            moved.push(MovedSegment { id, seal_crc, map: RowMap::from_bytes(bytes.slice(at..end)) });
            at = end;
        }
        let maps = Self { target: id, rows, fingerprint, moved };
        (at == body.len() && maps.fits()).then_some(maps)
    }

    /// Whether each row of the target comes from somewhere, and none from beyond it. O(rows).
    fn fits(&self) -> bool {
        let there: u64 = self.moved.iter().map(|moved| moved.map.targets().count() as u64).sum();
        there == self.rows && self.moved.iter().all(|moved| moved.map.is_within(self.rows))
    }

    /// Writes the file.
    ///
    /// # Errors
    /// IO errors.
    pub(crate) fn write(&self, storage: &dyn Storage, store: &uuid::Uuid, durability: Durability) -> Result<()> {
        replace_file(storage, &names::row_maps(self.target), &self.encode(store), durability)
    }

    /// Reads all row map files of the store. Skips damaged, unreadable and foreign files.
    ///
    /// # Errors
    /// IO errors.
    pub(crate) fn read(storage: &dyn Storage, store: &uuid::Uuid) -> Result<Vec<Self>> {
        let mut found = Vec::new();
        for target in targets(storage, store)? {
            let file = match open_if_exists(storage, &names::row_maps(target)) {
                Err(error) if error.is_denied() => continue,
                file => file?,
            };
            let Some(file) = file else { continue };
            let bytes = file.bytes(0, usize::try_from(file.len_bytes()?).unwrap_or(usize::MAX))?;
            found.extend(Self::decode(&bytes, store).filter(|maps| maps.target == target));
        }
        Ok(found)
    }
}

/// The target segments of all row map files, except those of another store or a newer version.
///
/// # Errors
/// IO errors.
pub(crate) fn targets(storage: &dyn Storage, store: &uuid::Uuid) -> Result<Vec<SegmentId>> {
    let entries = list_if_exists(storage, names::RUNS)?;
    let mut found = Vec::new();
    for entry in entries.iter().filter(|entry| entry.kind.is_file()) {
        let Some(target) = names::parse_row_maps(&entry.name) else { continue };
        let is_foreign = match open_if_exists(storage, &names::row_maps(target)) {
            Err(error) if error.is_denied() => true,
            Ok(None) => continue,
            file => file?.is_some_and(|file| is_foreign(&*file, store)),
        };
        if !is_foreign {
            found.push(target);
        }
    }
    Ok(found)
}

/// Whether a file belongs to another store or another version.
fn is_foreign(file: &dyn ReadFile, store: &uuid::Uuid) -> bool {
    const NAME_LEN_BYTES: usize = 7;
    let Ok(head) = file.copy(0, 24) else { return false };
    let (magic, of_store) = head.split_at(MAGIC.len().min(head.len()));
    let is_named = magic.get(..NAME_LEN_BYTES) == MAGIC.get(..NAME_LEN_BYTES);
    is_named && (magic != MAGIC || of_store != store.as_bytes())
}

/// Removes the row map file of `target`, if it exists.
///
/// # Errors
/// IO errors.
pub(crate) fn remove(storage: &dyn Storage, target: SegmentId) -> Result<()> {
    match storage.remove(Path::new(&names::row_maps(target))) {
        Err(error) if !error.is_not_found() => Err(error),
        _ => Ok(()),
    }
}

fn words(bytes: &[u8]) -> impl Iterator<Item = u64> {
    bytes.as_chunks::<8>().0.iter().map(|word| u64::from_le_bytes(*word))
}

fn segment_id(lane: u64, sequence: u64) -> Option<SegmentId> {
    Some(SegmentId { lane: u16::try_from(lane).ok()?, sequence })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_says_what_was_written_or_nothing() {
        let store = uuid::Uuid::from_u128(7);
        let id = |sequence| SegmentId { lane: 3, sequence };
        let mut map = RowMap::builder(3);
        map.set(1, 0);
        let beyond = {
            let mut map = RowMap::builder(1);
            map.set(0, 1);
            map.finish()
        };
        let moved = vec![
            MovedSegment { id: id(4), seal_crc: 9, map: map.finish() },
            MovedSegment { id: id(5), seal_crc: 1, map: RowMap::builder(0).finish() },
        ];
        let forged = |rows, map| {
            let maps = RowMaps {
                target: id(6),
                rows,
                fingerprint: 8,
                moved: vec![MovedSegment { id: id(4), seal_crc: 9, map }],
            };
            RowMaps::decode(&maps.encode(&store).into(), &store)
        };
        assert_eq!((forged(1, beyond), forged(1, RowMap::builder(1).finish())), (None, None));
        assert!(forged(0, RowMap::builder(1).finish()).is_some());
        let maps = RowMaps { target: id(6), rows: 1, fingerprint: 8, moved };
        let bytes = maps.encode(&store);
        assert_eq!(RowMaps::decode(&bytes.clone().into(), &store), Some(maps));
        assert_eq!(RowMaps::decode(&bytes.clone().into(), &uuid::Uuid::nil()), None);
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 1;
            assert_eq!(RowMaps::decode(&changed.into(), &store), None, "byte {at}");
            assert_eq!(RowMaps::decode(&bytes[..at].to_vec().into(), &store), None, "cut at {at}");
        }
    }
}
