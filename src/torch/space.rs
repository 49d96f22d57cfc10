//! Where outputs are kept: one store for each kind of key, in a folder of the module's identity.
//!
//! ```text
//! <dir>/<module id>/<identity>/identity.json    what the identity is made of
//!                              timing.json      the mean seconds a sample took
//!                              str/ u64/ bytes/ the stores, each made when it is needed
//! ```

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Weak};

use parking_lot::{Mutex, RwLock};

use super::fingerprint::Identity;
use super::flight::Flight;
use super::held::Held;
use super::rank::Rank;
use crate::error::{Error, Result};
use crate::io::Durability;
use crate::io::memory::MemoryStorage;
use crate::key::{Key, KeyKind};
use crate::store::options::{Lane, Options};
use crate::store::reader::Reader;
use crate::store::writer::Store;

/// Where the outputs of a module are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// In this folder, for good.
    Folder(PathBuf),
    /// In memory: gone with the last handle.
    Memory,
    /// In a new folder under this one (or the system's for temporary files), removed with the last handle.
    Temporary(Option<PathBuf>),
}

/// How the stores of an identity are opened.
#[derive(Debug, Clone)]
pub(super) struct Opening {
    pub place: Place,
    pub module_id: String,
    pub options: Options,
    pub rank: Rank,
    /// Whether this process may write.
    pub writes: bool,
    pub disk_bytes: Option<u64>,
    pub held: Option<(tch::Device, usize)>,
}

/// A folder that is removed when it is dropped.
#[derive(Debug)]
pub(super) struct TemporaryFolder(PathBuf);

impl TemporaryFolder {
    pub(super) fn new(parent: Option<&Path>) -> Result<Self> {
        let parent = parent.map_or_else(std::env::temp_dir, Path::to_path_buf);
        let path = parent.join(format!("tensorcask-{}", uuid::Uuid::new_v4().simple()));
        std::fs::create_dir_all(&path).map_err(|error| Error::io("create", &path, error))?;
        Ok(Self(path))
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for TemporaryFolder {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            tracing::warn!(folder = %self.0.display(), %error, "a temporary store could not be removed");
        }
    }
}

/// What rows of a store have looked like so far.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Layout {
    Unknown,
    /// One tensor of this dtype and shape: batches are read straight into place.
    Fixed(crate::Dtype, Vec<usize>),
    /// Trees, or rows of several shapes.
    Mixed,
}

#[derive(Debug)]
enum Backend {
    Writer(Store),
    /// A reader can only be opened once the writing rank has made the store.
    Reader {
        cache_dir: PathBuf,
        name: &'static str,
        options: Options,
        reader: RwLock<Option<Reader>>,
    },
}

/// One store.
#[derive(Debug)]
pub(super) struct Space {
    backend: Backend,
    pub layout: RwLock<Layout>,
}

impl Space {
    /// The store for reading, if there is one yet.
    pub(super) fn reader(&self) -> Result<Option<Reader>> {
        match &self.backend {
            Backend::Writer(store) => Ok(Some((**store).clone())),
            Backend::Reader { cache_dir, name, options, reader } => {
                if let Some(reader) = &*reader.read() {
                    return Ok(Some(reader.clone()));
                }
                match options.clone().open_reader(cache_dir, name) {
                    Ok(opened) => Ok(Some(reader.write().get_or_insert(opened).clone())),
                    Err(error) if error.is_not_found() => Ok(None),
                    Err(error) => Err(error),
                }
            }
        }
    }

    /// The store for writing, if this process may.
    pub(super) const fn store(&self) -> Option<&Store> {
        match &self.backend {
            Backend::Writer(store) => Some(store),
            Backend::Reader { .. } => None,
        }
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        if let Backend::Writer(store) = &self.backend
            && let Err(error) = store.close()
        {
            tracing::error!(%error, "closing a store failed; rows not flushed before are lost");
        }
    }
}

/// The stores of one identity. Wrapped modules of one process that have the same share one `Spaces`.
#[derive(Debug)]
pub(super) struct Spaces {
    opening: Opening,
    /// `None` in memory.
    folder: Option<PathBuf>,
    stores: [Mutex<Option<Arc<Space>>>; 3],
    pub flight: Flight,
    pub held: Option<Held>,
    used: Used,
    /// Mean seconds a sample took, as an `f64`'s bits.
    mean_s: AtomicU64,
    /// Last, so that the stores are closed before their folder goes.
    _temporary: Option<TemporaryFolder>,
}

/// Bytes that the stores take, for the cap.
#[derive(Debug, Default)]
struct Used {
    bytes: AtomicU64,
    /// Bytes that were put since the folder was last measured.
    since: AtomicU64,
}

type Open = HashMap<(PathBuf, String), Weak<Spaces>>;

/// The identities that this process has open.
static OPEN: LazyLock<Mutex<Open>> = LazyLock::new(Mutex::default);

const IDENTITY: &str = "identity.json";
const TIMING: &str = "timing.json";

impl Spaces {
    /// Opens the stores of `identity`, or joins a handle of this process that has them open in the same way.
    pub(super) fn open(opening: &Opening, identity: &Identity) -> Result<Arc<Self>> {
        crate::names::check_module_id(&opening.module_id)?;
        let (base, temporary) = match &opening.place {
            Place::Memory => return Ok(Arc::new(Self::new(opening, None, None))),
            Place::Folder(path) => (path.clone(), None),
            Place::Temporary(parent) => {
                let folder = TemporaryFolder::new(parent.as_deref())?;
                (folder.path().to_path_buf(), Some(folder))
            }
        };
        let module = base.join(&opening.module_id);
        let folder = module.join(identity.name());
        std::fs::create_dir_all(&folder).map_err(|error| Error::io("create", &folder, error))?;
        let folder = folder.canonicalize().map_err(|error| Error::io("resolve", &folder, error))?;
        let settings = format!("{:?}", Opening { place: Place::Folder(folder.clone()), ..opening.clone() });
        let mut open = OPEN.lock();
        if let Some(spaces) = open.get(&(folder.clone(), settings.clone())).and_then(Weak::upgrade) {
            return Ok(spaces);
        }
        if opening.writes && recorded(&folder).is_none() {
            write_json(&folder.join(IDENTITY), identity)?;
        }
        let spaces = Arc::new(Self::new(opening, Some(folder.clone()), temporary));
        open.retain(|_, spaces| spaces.strong_count() > 0);
        open.insert((folder, settings), Arc::downgrade(&spaces));
        Ok(spaces)
    }

    fn new(opening: &Opening, folder: Option<PathBuf>, temporary: Option<TemporaryFolder>) -> Self {
        let timing = folder.as_deref().and_then(|folder| read_json::<f64>(&folder.join(TIMING)));
        let spaces = Self {
            opening: opening.clone(),
            folder,
            stores: Default::default(),
            flight: Flight::default(),
            held: opening.held.map(|(device, bytes)| Held::new(device, bytes)),
            used: Used::default(),
            mean_s: AtomicU64::new(timing.filter(|mean| mean.is_finite()).unwrap_or(0.0).to_bits()),
            _temporary: temporary,
        };
        spaces.measure();
        spaces
    }

    fn slot(&self, kind: KeyKind) -> &Mutex<Option<Arc<Space>>> {
        let [strings, integers, bytes] = &self.stores;
        match kind {
            KeyKind::Str => strings,
            KeyKind::U64 => integers,
            KeyKind::Bytes => bytes,
        }
    }

    /// The store for keys of `kind`; makes it if need be.
    pub(super) fn space(&self, kind: KeyKind) -> Result<Arc<Space>> {
        let mut slot = self.slot(kind).lock();
        if let Some(space) = &*slot {
            return Ok(Arc::clone(space));
        }
        let space = Arc::new(Space { backend: self.backend(kind.name())?, layout: RwLock::new(Layout::Unknown) });
        *slot = Some(Arc::clone(&space));
        Ok(space)
    }

    fn backend(&self, name: &'static str) -> Result<Backend> {
        let options = self.opening.options.clone();
        let Some(folder) = &self.folder else {
            return options.open_on(Arc::new(MemoryStorage::new())).map(Backend::Writer);
        };
        if !self.opening.writes {
            return Ok(Backend::Reader { cache_dir: folder.clone(), name, options, reader: RwLock::new(None) });
        }
        // A rank keeps its lane from run to run where it can; another job in the same folder may have it.
        let opened = match options.clone().lane(Lane::Number(self.opening.rank.rank)).open(folder, name) {
            Err(Error::LaneBusy { .. }) => options.lane(Lane::Auto).open(folder, name),
            other => other,
        };
        let store = opened?;
        if !store.open_report().is_clean() {
            tracing::warn!(report = ?store.open_report(), "the store was repaired when it was opened");
        }
        Ok(Backend::Writer(store))
    }

    /// Writes out what other handles of this process, with other options, have waiting for keys of `kind`, so that it
    /// is seen here. Returns whether there was any.
    pub(super) fn write_neighbours(&self, kind: KeyKind) -> bool {
        let Some(folder) = &self.folder else { return false };
        let open = OPEN.lock();
        let here = open.iter().filter(|((open, _), _)| open == folder);
        let here: Vec<_> =
            here.filter_map(|(_, s)| s.upgrade().filter(|s| !std::ptr::eq(&raw const **s, self))).collect();
        drop(open);
        let write = |spaces: &Arc<Self>| {
            let Some(space) = spaces.slot(kind).lock().clone() else { return false };
            let Some(store) = space.store().filter(|store| store.waiting().0 > 0) else { return false };
            // Its own handle is told of a failure.
            store.flush_with(Durability::Buffered).is_ok()
        };
        here.iter().filter(|spaces| write(spaces)).count() > 0
    }

    /// The stores that are open.
    fn opened(&self) -> Vec<Arc<Space>> {
        self.stores.iter().filter_map(|slot| slot.lock().clone()).collect()
    }

    /// A true barrier: returns when everything that was put is on disk.
    pub(super) fn flush(&self) -> Result<()> {
        for space in self.opened() {
            if let Some(store) = space.store() {
                store.flush()?;
            }
        }
        self.write_timing()
    }

    /// Looks for what other processes committed.
    pub(super) fn refresh(&self) -> Result<()> {
        for space in self.opened() {
            if let Some(reader) = space.reader()? {
                reader.refresh()?;
            }
        }
        Ok(())
    }

    /// The store for keys of `kind`, if there is one.
    fn existing(&self, kind: KeyKind) -> Result<Option<Arc<Space>>> {
        let opened = self.slot(kind).lock().clone();
        let there = || self.folder.as_ref().is_some_and(|folder| folder.join(kind.name()).is_dir());
        if opened.is_none() && there() { self.space(kind).map(Some) } else { Ok(opened) }
    }

    /// Keys in all stores.
    pub(super) fn len(&self) -> Result<u64> {
        let mut keys = 0;
        for kind in [KeyKind::Str, KeyKind::U64, KeyKind::Bytes] {
            if let Some(space) = self.existing(kind)?
                && let Some(reader) = space.reader()?
            {
                keys += reader.len()?;
            }
        }
        Ok(keys)
    }

    /// Whether `bytes` more may be put under the cap; counts them if so. Stops when full: what is kept stays, so that
    /// the next epoch finds the same samples.
    pub(super) fn reserve(&self, bytes: u64) -> bool {
        let Some(cap) = self.opening.disk_bytes else { return true };
        let granted = self.used.bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
            used.checked_add(bytes).filter(|used| *used <= cap)
        });
        // Other ranks write too, and rows take more than their bytes.
        if self.used.since.fetch_add(bytes, Ordering::Relaxed) > cap / 64 {
            self.measure();
        }
        granted.is_ok()
    }

    fn measure(&self) {
        if self.opening.disk_bytes.is_none() {
            return;
        }
        self.used.since.store(0, Ordering::Relaxed);
        if let Some(folder) = &self.folder {
            let opened = self.opened();
            let waiting = opened.iter().filter_map(|space| space.store().map(|store| store.waiting().1 as u64));
            self.used.bytes.store(folder_len_bytes(folder) + waiting.sum::<u64>(), Ordering::Relaxed);
        }
    }

    /// Mean seconds of computation a sample; 0 while nothing is known.
    pub(super) fn mean_s(&self) -> f64 {
        f64::from_bits(self.mean_s.load(Ordering::Relaxed))
    }

    /// Takes in that `samples` took `seconds`.
    #[expect(clippy::cast_precision_loss, reason = "a mean of measured times")]
    pub(super) fn took(&self, samples: usize, seconds: f64) {
        let now = seconds / samples.max(1) as f64;
        let mean = self.mean_s();
        let mean = if mean == 0.0 { now } else { mean + (now - mean) / 8.0 };
        self.mean_s.store(mean.to_bits(), Ordering::Relaxed);
    }

    /// Starts from what another identity of the module took.
    pub(super) fn expect_mean(&self, mean_s: f64) {
        if self.mean_s() == 0.0 {
            self.mean_s.store(mean_s.to_bits(), Ordering::Relaxed);
        }
    }

    fn write_timing(&self) -> Result<()> {
        match &self.folder {
            Some(folder) if self.opening.writes && self.mean_s() > 0.0 => {
                write_json(&folder.join(TIMING), &self.mean_s())
            }
            _ => Ok(()),
        }
    }

    /// The other identities of this module that keep `key`, by what is recorded of them.
    pub(super) fn siblings(&self, key: &Key) -> Result<Vec<Option<Identity>>> {
        let Some(folder) = &self.folder else { return Ok(Vec::new()) };
        let Some(module) = folder.parent() else { return Ok(Vec::new()) };
        let list = std::fs::read_dir(module).map_err(|error| Error::io("list", module, error))?;
        let mut found = Vec::new();
        for entry in list {
            let path = entry.map_err(|error| Error::io("list", module, error))?.path();
            if path != *folder && path.is_dir() && keeps(&path, key)? {
                found.push(recorded(&path));
            }
        }
        Ok(found)
    }

    /// The folder of the identity; `None` in memory.
    pub(super) fn folder(&self) -> Option<&Path> {
        self.folder.as_deref()
    }
}

impl Drop for Spaces {
    fn drop(&mut self) {
        if let Err(error) = self.write_timing() {
            tracing::warn!(%error, "the mean time of a sample could not be recorded");
        }
    }
}

/// Whether the identity in `folder` keeps `key`, in files or in a handle of this process.
fn keeps(folder: &Path, key: &Key) -> Result<bool> {
    let kind = key.as_ref().kind();
    let open = OPEN.lock();
    let here: Vec<_> = open.iter().filter(|((open, _), _)| open == folder).filter_map(|(_, s)| s.upgrade()).collect();
    drop(open);
    for spaces in here {
        // What this process has put there need not be in files yet.
        if let Some(space) = spaces.slot(kind).lock().clone()
            && let Some(reader) = space.reader()?
            && reader.contains(key)?
        {
            return Ok(true);
        }
    }
    match Options::new().open_reader(folder, kind.name()) {
        Ok(reader) => reader.contains(key),
        Err(error) if error.is_not_found() => Ok(false),
        Err(error) => Err(error),
    }
}

/// The identity recorded in `folder`, if there is one that can be read.
pub(super) fn recorded(folder: &Path) -> Option<Identity> {
    read_json(&folder.join(IDENTITY))
}

/// Replaces a small file whole. It is derived: a reader that finds it missing or damaged does without.
fn write_json(path: &Path, content: &impl serde::Serialize) -> Result<()> {
    let text = serde_json::to_vec_pretty(content).map_err(|error| Error::invalid(error.to_string()))?;
    let part = path.with_extension(format!("{}.part", uuid::Uuid::new_v4().simple()));
    let written = std::fs::write(&part, text).and_then(|()| std::fs::rename(&part, path));
    written.map_err(|error| Error::io("write", path, error))
}

fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Option<T> {
    serde_json::from_slice(&std::fs::read(path).ok()?).ok()
}

/// Bytes of all files below `folder`. What vanishes meanwhile counts nothing.
fn folder_len_bytes(folder: &Path) -> u64 {
    let Ok(list) = std::fs::read_dir(folder) else { return 0 };
    let len = |entry: std::fs::DirEntry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => folder_len_bytes(&entry.path()),
        Ok(metadata) => metadata.len(),
        Err(_) => 0,
    };
    list.flatten().map(len).sum()
}
