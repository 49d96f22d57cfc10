//! What every engine has to do, and how it is opened.

use std::fmt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::Fallible;
use crate::engines;

/// An engine, or one of the controls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EngineId {
    /// The limit: rows copied from a memory map at known places; an append of the same bytes.
    Raw,
    /// This project.
    Tensorcask,
    /// A hash map over an append-only file, read with `pread`: what people write by hand.
    Bitcask,
    /// The same, read through a memory map.
    BitcaskMmap,
    /// LMDB, through `heed`.
    Lmdb,
    /// redb.
    Redb,
    /// fjall.
    Fjall,
    /// RocksDB.
    Rocksdb,
    /// SQLite, through `rusqlite`.
    Sqlite,
}

impl EngineId {
    /// All of them, the control first.
    pub const ALL: [Self; 9] = [
        Self::Raw,
        Self::Tensorcask,
        Self::Bitcask,
        Self::BitcaskMmap,
        Self::Lmdb,
        Self::Redb,
        Self::Fjall,
        Self::Rocksdb,
        Self::Sqlite,
    ];

    /// Those that this build has.
    #[must_use]
    pub fn built() -> Vec<Self> {
        let has = |id: &Self| cfg!(feature = "rocksdb") || *id != Self::Rocksdb;
        Self::ALL.into_iter().filter(has).collect()
    }

    /// Its name, as in options and tables.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Tensorcask => "tensorcask",
            Self::Bitcask => "bitcask",
            Self::BitcaskMmap => "bitcask-mmap",
            Self::Lmdb => "lmdb",
            Self::Redb => "redb",
            Self::Fjall => "fjall",
            Self::Rocksdb => "rocksdb",
            Self::Sqlite => "sqlite",
        }
    }

    /// Whether it can be asked for a key that is not there. The control knows places and no keys.
    #[must_use]
    pub fn has_keys(self) -> bool {
        self != Self::Raw
    }
}

impl fmt::Display for EngineId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for EngineId {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let built = Self::built();
        built.iter().copied().find(|id| id.name() == name).ok_or_else(|| {
            let names: Vec<&str> = built.iter().map(|id| id.name()).collect();
            format!("{name} is no engine of this build: {}", names.join(", "))
        })
    }
}

/// In which order keys are loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Order {
    /// Ascending.
    Sorted,
    /// In one random order, the same for all engines.
    Shuffled,
}

/// What an engine is opened with, beside its own settings.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Opening {
    /// The engine's own folder.
    pub dir: PathBuf,
    /// Bytes of a row.
    pub row_bytes: usize,
    /// Rows that will be, or were, loaded.
    pub rows: usize,
    /// The order of the load.
    pub order: Order,
    /// Whether each batch has to survive power loss when `load` returns; otherwise the end of the process, where the
    /// engine can promise that.
    pub durable: bool,
}

impl Opening {
    /// Bytes of all rows.
    #[must_use]
    pub fn data_bytes(&self) -> u64 {
        (self.rows * self.row_bytes) as u64
    }

    /// A cache in which all rows and their index fit: what the engines that keep a cache of their own advise for data
    /// that fits memory.
    #[must_use]
    pub fn cache_bytes(&self) -> u64 {
        (2 * self.data_bytes()).max(1 << 30)
    }
}

/// An open engine.
pub trait Engine {
    /// Stores a batch: `rows` has the rows of `keys` one after another. How durable it is when this returns,
    /// [`Opening::durable`] says.
    ///
    /// # Errors
    /// The engine's.
    fn load(&mut self, keys: &[u64], rows: &[u8]) -> Fallible;

    /// What the control has to know before [`Engine::get_batch`], and what is not measured: the places of `keys`.
    ///
    /// # Errors
    /// If a key has no place.
    fn place(&mut self, _keys: &[u64]) -> Fallible {
        Ok(())
    }

    /// What the engine's documentation advises to do before many reads of a store that fits memory; not measured.
    ///
    /// # Errors
    /// The engine's.
    fn preload(&mut self) -> Fallible {
        Ok(())
    }

    /// Copies the rows of `keys` to `out`, one after another; the place of a missing row stays as it is. Returns how
    /// many were found.
    ///
    /// # Errors
    /// The engine's.
    fn get_batch(&mut self, keys: &[u64], out: &mut [u8]) -> Fallible<usize>;

    /// Makes everything durable, lets background work come to its end, and closes.
    ///
    /// # Errors
    /// The engine's.
    fn close(self: Box<Self>) -> Fallible;
}

/// Creates an engine's store, to load it.
///
/// # Errors
/// The engine's.
pub fn create(id: EngineId, opening: &Opening) -> Fallible<Box<dyn Engine>> {
    open_as(id, opening, true)
}

/// Opens what was loaded, to read it.
///
/// # Errors
/// The engine's.
pub fn open(id: EngineId, opening: &Opening) -> Fallible<Box<dyn Engine>> {
    open_as(id, opening, false)
}

fn open_as(id: EngineId, opening: &Opening, create: bool) -> Fallible<Box<dyn Engine>> {
    Ok(match id {
        EngineId::Raw => Box::new(engines::raw::Raw::open(opening, create)?),
        EngineId::Tensorcask => Box::new(engines::tensorcask::Tensorcask::open(opening, create)?),
        EngineId::Bitcask => Box::new(engines::bitcask::Bitcask::open(opening, create, false)?),
        EngineId::BitcaskMmap => Box::new(engines::bitcask::Bitcask::open(opening, create, true)?),
        EngineId::Lmdb => Box::new(engines::lmdb::Lmdb::open(opening, create)?),
        EngineId::Redb => Box::new(engines::redb::Redb::open(opening, create)?),
        EngineId::Fjall => Box::new(engines::fjall::Fjall::open(opening, create)?),
        #[cfg(feature = "rocksdb")]
        EngineId::Rocksdb => Box::new(engines::rocksdb::Rocksdb::open(opening, create)?),
        #[cfg(not(feature = "rocksdb"))]
        EngineId::Rocksdb => return Err("this build has no RocksDB: build with the feature rocksdb".into()),
        EngineId::Sqlite => Box::new(engines::sqlite::Sqlite::open(opening, create)?),
    })
}

/// Bytes that the file system has allocated for the files under `dir`. Holes do not count: some engines create files
/// as large as they may ever become.
///
/// # Errors
/// If the folder cannot be read.
pub fn disk_bytes(dir: &Path) -> Fallible<u64> {
    let mut total = 0;
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        total += if metadata.is_dir() { disk_bytes(&entry.path())? } else { metadata.blocks() * 512 };
    }
    Ok(total)
}
