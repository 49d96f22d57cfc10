//! The interface of an engine, and how it is opened.

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
    /// The limit: rows copied from a memory map at known offsets; an append of the same bytes.
    Raw,
    /// This project.
    Tensorcask,
    /// A hash map over an append-only file that is read with `pread`: the usual handwritten solution.
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
    /// All engines, the control first.
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

    /// The engines in this build.
    #[must_use]
    pub fn built() -> Vec<Self> {
        let has = |id: &Self| cfg!(feature = "rocksdb") || *id != Self::Rocksdb;
        Self::ALL.into_iter().filter(has).collect()
    }

    /// The name in options and tables.
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

    /// Whether it is measured with string keys too: LMDB, the fastest peer for loads in order, is compared with.
    #[must_use]
    pub fn takes_text(self) -> bool {
        matches!(self, Self::Raw | Self::Tensorcask | Self::Lmdb)
    }

    /// Whether it can look up a key that does not exist. The control knows offsets, not keys.
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

/// The order in which keys are loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Order {
    /// Ascending.
    Sorted,
    /// In one random order, the same for all engines.
    Shuffled,
}

/// The type of the keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum KeyForm {
    /// `u64`.
    #[default]
    Number,
    /// Strings of 16 hexadecimal digits, in the order of the numbers.
    Text,
}

/// The options for opening an engine, besides its own settings.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Opening {
    /// The engine's own folder.
    pub dir: PathBuf,
    /// Bytes per row.
    pub row_bytes: usize,
    /// The number of rows that will be, or were, loaded.
    pub rows: usize,
    /// The order of the load.
    pub order: Order,
    /// Whether each batch has to survive power loss when `load` returns; otherwise it has to survive the end of the
    /// process, if the engine can guarantee that.
    pub durable: bool,
    /// The type of the keys.
    pub keys: KeyForm,
}

impl Opening {
    /// Bytes of all rows.
    #[must_use]
    pub fn data_bytes(&self) -> u64 {
        (self.rows * self.row_bytes) as u64
    }

    /// The size of a cache that holds all rows and their index. Engines with their own cache advise this for data that
    /// fits into memory.
    #[must_use]
    pub fn cache_bytes(&self) -> u64 {
        (2 * self.data_bytes()).max(1 << 30)
    }
}

/// An open engine.
pub trait Engine {
    /// Stores a batch. `rows` has the rows of `keys` one after another. [`Opening::durable`] determines how durable
    /// they are when this returns.
    ///
    /// # Errors
    /// Errors of the engine.
    fn load(&mut self, keys: &[u64], rows: &[u8]) -> Fallible;

    /// Converts `keys` to the type of the engine's keys, for [`Engine::load`]. Not measured: an application has them.
    fn prepare(&mut self, _keys: &[u64]) {}

    /// Prepares the control for [`Engine::get_batch`]: finds the offsets of `keys`. Not measured.
    ///
    /// # Errors
    /// If a key has no offset.
    fn place(&mut self, _keys: &[u64]) -> Fallible {
        Ok(())
    }

    /// Does what the engine's documentation advises before many reads of a store that fits into memory. Not measured.
    ///
    /// # Errors
    /// Errors of the engine.
    fn preload(&mut self) -> Fallible {
        Ok(())
    }

    /// Copies the rows of `keys` to `out`, one after another; the space of a missing row is left unchanged. Returns the
    /// number of rows found.
    ///
    /// # Errors
    /// Errors of the engine.
    fn get_batch(&mut self, keys: &[u64], out: &mut [u8]) -> Fallible<usize>;

    /// Makes everything durable, waits for background work, and closes.
    ///
    /// # Errors
    /// Errors of the engine.
    fn close(self: Box<Self>) -> Fallible;
}

/// Creates a store, to load it.
///
/// # Errors
/// Errors of the engine.
pub fn create(id: EngineId, opening: &Opening) -> Fallible<Box<dyn Engine>> {
    open_as(id, opening, true)
}

/// Opens a loaded store, to read it.
///
/// # Errors
/// Errors of the engine.
pub fn open(id: EngineId, opening: &Opening) -> Fallible<Box<dyn Engine>> {
    open_as(id, opening, false)
}

fn open_as(id: EngineId, opening: &Opening, create: bool) -> Fallible<Box<dyn Engine>> {
    if opening.keys == KeyForm::Text && !id.takes_text() {
        return Err(format!("{id} is not measured with string keys").into());
    }
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

/// Bytes that the file system has allocated for the files under `dir`. Holes do not count, as some engines create files
/// of their maximum size.
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
