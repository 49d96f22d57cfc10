//! The history of a lane: the ids of its writers, newest first, and a mark in the folder that is named after the
//! newest.
//!
//! The files of a store have the same names in every store. If one folder is copied over another, some files of the
//! former contents are replaced and others stay, and no file tells. A mark has a name of its own, so it survives. A
//! mark that the history does not know was made by a writer whose files were, at least in part, replaced: by those of
//! another store, of a copy of this store that was written to on its own, or of an older copy.

use std::path::PathBuf;

use bytes::Bytes;
use uuid::Uuid;

use crate::checksum::crc32;
use crate::engine::files::replace::{list_if_exists, open_if_exists, replace_file};
use crate::error::Result;
use crate::io::{Durability, Storage};
use crate::names;

const MAGIC: &[u8; 8] = b"TCHIST\r\n";
const ID_LEN_BYTES: usize = 16;
/// Older writers are forgotten.
const MOST_WRITERS: usize = 1024;

/// The history of a lane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct History {
    store: Uuid,
    /// Newest first.
    writers: Vec<Uuid>,
}

impl History {
    fn encode(&self) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend_from_slice(self.store.as_bytes());
        self.writers.iter().for_each(|writer| bytes.extend_from_slice(writer.as_bytes()));
        bytes.extend_from_slice(&crc32(&bytes).to_le_bytes());
        bytes
    }

    /// `None` if `bytes` are not a whole history.
    fn decode(bytes: &[u8]) -> Option<Self> {
        let (body, crc) = bytes.split_last_chunk::<4>()?;
        let ids = body.strip_prefix(MAGIC).filter(|_| u32::from_le_bytes(*crc) == crc32(body))?;
        let (ids, []) = ids.as_chunks::<ID_LEN_BYTES>() else { return None };
        let (store, writers) = ids.split_first()?;
        let writers = writers.iter().map(|id| Uuid::from_bytes(*id)).collect();
        Some(Self { store: Uuid::from_bytes(*store), writers })
    }

    /// Reads the history of `lane`; `None` if there is none, or it is damaged.
    ///
    /// # Errors
    /// IO errors.
    pub(crate) fn read(storage: &dyn Storage, lane: u16) -> Result<Option<Self>> {
        const MOST_BYTES: u64 = 1 << 16;
        let Some(file) = open_if_exists(storage, &names::history(lane))? else { return Ok(None) };
        let bytes: Bytes = file.bytes(0, file.len_bytes()?.min(MOST_BYTES) as usize)?;
        Ok(Self::decode(&bytes))
    }

    /// Records that a new writer of `lane` begins to write. The history is durable before the mark exists, so that a
    /// crash leaves no mark that it does not know. Marks that it does not know stay.
    ///
    /// # Errors
    /// IO errors.
    pub(crate) fn begin_writer(storage: &dyn Storage, store: &Uuid, lane: u16, durability: Durability) -> Result<()> {
        let before = Self::read(storage, lane)?.filter(|history| history.store == *store);
        let mut writers = vec![Uuid::new_v4()];
        writers.extend(before.into_iter().flat_map(|history| history.writers));
        writers.truncate(MOST_WRITERS);
        Self { store: *store, writers: writers.clone() }.write(storage, lane, durability)?;
        for (of_lane, writer) in marks(storage)? {
            if of_lane == lane && writers.contains(&writer) {
                storage.remove(&names::writer_mark(lane, &writer))?;
            }
        }
        mark(storage, lane, writers.first())
    }

    fn write(&self, storage: &dyn Storage, lane: u16, durability: Durability) -> Result<()> {
        let durability = durability.max(Durability::SyncData);
        replace_file(storage, &names::history(lane), &self.encode(), durability)
    }

    /// Writes the history, with its mark, to a copy of the store.
    ///
    /// # Errors
    /// IO errors.
    pub(crate) fn copy_to(&self, storage: &dyn Storage, lane: u16) -> Result<()> {
        self.write(storage, lane, Durability::SyncData)?;
        mark(storage, lane, self.writers.first())
    }
}

fn mark(storage: &dyn Storage, lane: u16, writer: Option<&Uuid>) -> Result<()> {
    writer.map_or(Ok(()), |writer| storage.create(&names::writer_mark(lane, writer)).map(drop))
}

/// The marks in the folder: lanes, and ids of writers.
fn marks(storage: &dyn Storage) -> Result<Vec<(u16, Uuid)>> {
    let entries = list_if_exists(storage, names::LANES)?;
    Ok(entries.iter().filter_map(|entry| names::parse_writer_mark(&entry.name)).collect())
}

/// Signs that the files of other copies or other stores were copied over those of `store`: marks that the history of
/// their lane does not know, each with what it means.
///
/// # Errors
/// IO errors.
pub(crate) fn signs_of_other_copies(storage: &dyn Storage, store: &Uuid) -> Result<Vec<(PathBuf, String)>> {
    // Marks first: a writer makes its mark after the history.
    let marks = marks(storage)?;
    let mut signs = Vec::new();
    for entry in list_if_exists(storage, names::LANES)? {
        let Some(lane) = names::parse_history(&entry.name).filter(|_| entry.kind.is_file()) else { continue };
        let history = match History::read(storage, lane) {
            Err(error) if error.is_denied() => continue,
            history => history?,
        };
        // Another store's segments tell of it.
        let Some(history) = history.filter(|history| history.store == *store) else { continue };
        let unknown = marks.iter().filter(|(of, writer)| *of == lane && !history.writers.contains(writer));
        signs.extend(unknown.map(|(lane, writer)| {
            let why = format!(
                "it is of a writer of lane {lane} that {} does not know: files of another store, or of another or \
                 older copy of this store, were copied over those that it wrote; {ADVICE}",
                storage.describe(&names::history(*lane)).display()
            );
            (names::writer_mark(*lane, writer), why)
        }));
    }
    Ok(signs)
}

const ADVICE: &str = "rows may be lost: take both copies from where they were before, and merge them with `tensorcask \
                      merge`, or acknowledge the loss with `tensorcask verify --forget`";

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::io::memory::MemoryStorage;

    fn begin(storage: &MemoryStorage, store: &Uuid) {
        History::begin_writer(storage, store, 0, Durability::SyncData).unwrap();
    }

    #[test]
    fn a_mark_is_known_if_its_writer_is_in_the_history() {
        let (storage, store) = (MemoryStorage::new(), Uuid::from_u128(7));
        storage.create_dir(Path::new(names::LANES)).unwrap();
        begin(&storage, &store);
        let first = marks(&storage).unwrap();
        let older = storage.read(names::history(0)).unwrap();
        begin(&storage, &store);
        let second = marks(&storage).unwrap();
        assert!(second.len() == 1 && first != second);
        assert!(signs_of_other_copies(&storage, &store).unwrap().is_empty());
        // A newer copy over an older one: the mark of the older one is left.
        storage.write(names::writer_mark(0, &first[0].1), b"").unwrap();
        assert!(signs_of_other_copies(&storage, &store).unwrap().is_empty());
        // An older copy over a newer one.
        storage.write(names::history(0), &older).unwrap();
        let signs = signs_of_other_copies(&storage, &store).unwrap();
        assert_eq!(
            signs.iter().map(|(path, _)| path.clone()).collect::<Vec<_>>(),
            [names::writer_mark(0, &second[0].1)]
        );
        // The next writer leaves it.
        begin(&storage, &store);
        assert_eq!(signs_of_other_copies(&storage, &store).unwrap(), signs);
        assert!(signs_of_other_copies(&storage, &Uuid::nil()).unwrap().is_empty());
    }

    #[test]
    fn a_damaged_history_says_nothing() {
        let history = History { store: Uuid::from_u128(7), writers: vec![Uuid::from_u128(1), Uuid::from_u128(2)] };
        let bytes = history.encode();
        assert_eq!(History::decode(&bytes), Some(history));
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 1;
            assert_eq!((History::decode(&changed), History::decode(&bytes[..at])), (None, None), "byte {at}");
        }
    }
}
