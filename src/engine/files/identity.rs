//! `store.json`: the store's id, its key hash and the kind of its keys. The segments repeat all of it.

use std::path::Path;

use crate::checksum::crc32;
use crate::engine::files::replace::{open_if_exists, replace_file};
use crate::error::{Error, Result};
use crate::io::{Durability, Storage};
use crate::key::{HashSeed, KeyKind};
use crate::names;
use crate::segment::layout::{FORMAT_VERSION, SEEDED_VERSION};
use crate::segment::writer::StoreIdentity;

/// The contents of `store.json`.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
struct IdentityFile {
    format: u32,
    store: uuid::Uuid,
    hash: u8,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    hash_seed: Option<HashSeed>,
    /// Fixed by the first write, before any segment records it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    key: Option<KeyKind>,
    /// Over the fields of every version, so that a newer version is distinguished from a damaged file.
    crc32: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    seed_crc32: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    key_crc32: Option<u32>,
}

impl IdentityFile {
    fn new(identity: StoreIdentity, key: Option<KeyKind>) -> Self {
        let StoreIdentity { store, hash_id: hash, format, .. } = identity;
        let hash_seed = identity.recorded_seed();
        let file = Self { format, store, hash, hash_seed, key, crc32: 0, seed_crc32: None, key_crc32: None };
        let (crc32, seed_crc32, key_crc32) = file.checksums();
        Self { crc32, seed_crc32, key_crc32, ..file }
    }

    /// The checksums of the fields of every version, of the seed, and of the kind of keys.
    fn checksums(&self) -> (u32, Option<u32>, Option<u32>) {
        let of_member = |text: &str| crc32(format!("{} {text}", self.store).as_bytes());
        (
            crc32(format!("{} {} {}", self.format, self.store, self.hash).as_bytes()),
            self.hash_seed.map(|seed| of_member(&String::from(seed))),
            self.key.map(|key| of_member(key.name())),
        )
    }
}

/// The outcome of reading `store.json`.
#[derive(Debug, Clone)]
pub(crate) enum Recorded {
    /// There is no such file.
    Absent,
    /// Its checksum does not match.
    Damaged(Error),
    /// The identity, and the kind of keys once it is fixed.
    Identity(StoreIdentity, Option<KeyKind>),
}

/// Reads `store.json`.
///
/// # Errors
/// [`Error::NewerFormat`] for a newer version, IO errors.
pub(crate) fn read(storage: &dyn Storage) -> Result<Recorded> {
    const MOST_BYTES: u64 = 4096;
    let Some(file) = open_if_exists(storage, Path::new(names::IDENTITY))? else { return Ok(Recorded::Absent) };
    let path = storage.describe(Path::new(names::IDENTITY));
    let bytes = file.bytes(0, file.len_bytes()?.min(MOST_BYTES) as usize)?;
    let found = match serde_json::from_slice::<IdentityFile>(&bytes) {
        Ok(found) if found.crc32 == found.checksums().0 => found,
        Ok(_) => return Ok(Recorded::Damaged(Error::corrupt(path, 0, "its checksum does not match what it says"))),
        Err(error) => return Ok(Recorded::Damaged(Error::corrupt(path, 0, format!("it is no identity: {error}")))),
    };
    if found.format > FORMAT_VERSION {
        return Err(Error::NewerFormat { path, found: found.format, supported: FORMAT_VERSION });
    }
    let is_seeded = found.format >= SEEDED_VERSION;
    if found.hash_seed.is_some() != is_seeded
        || (found.seed_crc32, found.key_crc32) != (found.checksums().1, found.checksums().2)
    {
        return Ok(Recorded::Damaged(Error::corrupt(path, 0, "its hash seed or its kind of keys is damaged")));
    }
    let hash_seed = found.hash_seed.map_or(0, |seed| seed.0);
    let identity = StoreIdentity { store: found.store, hash_id: found.hash, hash_seed, format: found.format };
    Ok(Recorded::Identity(identity, found.key))
}

/// Writes `store.json`, replacing a former one. It is synced even in a store whose options sync nothing: a later flush
/// may ask for durability.
///
/// # Errors
/// IO errors; the former file is then still there.
pub(crate) fn write(
    storage: &dyn Storage,
    identity: StoreIdentity,
    key: Option<KeyKind>,
    durability: Durability,
) -> Result<()> {
    let json = serde_json::to_vec(&IdentityFile::new(identity, key))
        .map_err(|error| Error::invalid(format!("identity: {error}")))?;
    replace_file(storage, Path::new(names::IDENTITY), &json, durability.max(Durability::SyncData))
}
