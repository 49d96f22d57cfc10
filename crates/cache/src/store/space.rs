//! The stores of an identity: one for each kind of key, in a folder of the module's identity.
//!
//! ```text
//! <dir>/<module id>/<identity>/identity.json    the parts of the identity
//!                              timing.json      the mean seconds per sample
//!                              str/ u64/ bytes/ the stores, each created on first use
//! ```

use std::any::Any;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, OnceLock, Weak};
use std::time::Duration;

use parking_lot::Mutex;

use super::backend::{Source, Space};
use super::json::{read_json, write_json};
use super::temporary::TemporaryFolder;
use super::used::{DiskScope, ROW_BYTES, Room, Used};
use crate::identity::names::{self, KINDS, RECORD, TIMING};
use crate::identity::record::Identity;
use crate::identity::size::folder_len_bytes;
use crate::rank::Rank;
use tensorcask::flight::Flight;
use tensorcask::folder::check_module_id;
use tensorcask::storage::MemoryStorage;
use tensorcask::{Durability, Error, Result};
use tensorcask::{Key, KeyKind};
use tensorcask::{Options, Prune};

/// How long a call that computed outputs waits for another process that compacts the store, before it keeps them.
const EVICTION_PATIENCE: Duration = Duration::from_secs(2);

/// The place where the outputs of a module are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// In this folder, permanently.
    Folder(PathBuf),
    /// In memory, until the last handle is dropped.
    Memory,
    /// In a new folder under this one (or the system's for temporary files), removed with the last handle.
    Temporary(Option<PathBuf>),
}

/// How the stores of an identity are opened.
#[derive(Debug, Clone)]
pub struct Opening {
    pub place: Place,
    pub module_id: String,
    pub options: Options,
    pub rank: Rank,
    /// Whether this process may write.
    pub writes: bool,
    /// The size limit, shared by the identities of a module.
    pub used: Arc<Used>,
    /// The folder of [`Place::Temporary`], shared by the identities of a module.
    pub temporary: Option<Arc<TemporaryFolder>>,
    /// The options of rows held outside of the stores, if any. Handles that share stores share these rows.
    pub held: Option<String>,
}

/// The stores of one identity. Wrapped modules of a process that open it in the same way share one `Spaces`.
#[derive(Debug)]
pub struct Spaces {
    opening: Opening,
    identity: Identity,
    /// `None` in memory.
    folder: Option<PathBuf>,
    read_only: Option<String>,
    stores: [Mutex<Option<Arc<Space>>>; 3],
    pub flight: Flight,
    /// Rows that the tensor library holds on a device.
    held: OnceLock<Box<dyn Any + Send + Sync>>,
    /// Mean seconds of computation per sample, as the bits of an `f64`.
    mean_s: AtomicU64,
    /// The number of rows that were put, whose index may not be written yet.
    put_rows: AtomicU64,
    /// The last field, so that the stores are closed before their folder is removed.
    _temporary: Option<Arc<TemporaryFolder>>,
}

type Open = HashMap<(PathBuf, String), Weak<Spaces>>;

/// The identities that this process has open.
static OPEN: LazyLock<Mutex<Open>> = LazyLock::new(Mutex::default);

impl Spaces {
    /// Opens the stores of `identity`, or shares those that a handle of this process has opened in the same way. If the
    /// folder cannot be created and `forgiven` accepts the error, the stores are opened later.
    pub fn open(opening: &Opening, identity: &Identity, forgiven: impl Fn(&Error) -> bool) -> Result<Arc<Self>> {
        check_module_id(&opening.module_id)?;
        let Some(module) = module_folder(&opening.place, opening.temporary.as_deref(), &opening.module_id) else {
            return Ok(Arc::new(Self::new(opening, identity, None)));
        };
        let folder = module.join(identity.name());
        let mut opening = opening.clone();
        let mut read_only = None;
        if opening.writes
            && let Err(error) = check_writable(&folder)
        {
            // The engine's advice names functions that the caller may not know.
            let what = match &error {
                Error::Io { action, path, source } => format!("could not {action} {}: {source}", path.display()),
                other => other.to_string(),
            };
            let why =
                format!("{what}: make the folder writable, or wrap the module with CacheOptions::read_only(true)");
            if !forgiven(&error) {
                return Err(Error::ReadOnly { why });
            }
            opening.writes = false;
            read_only = Some(why);
        }
        let folder = if opening.writes {
            made(&folder).or_else(|error| if forgiven(&error) { resolved(&folder) } else { Err(error) })?
        } else {
            resolved(&folder)?
        };
        let opening = &opening;
        let Opening { options, rank, writes, used, held, .. } = opening;
        // A child of a fork cannot use the handles of its parent.
        let settings = format!("{} {read_only:?} {options:?} {rank:?} {writes} {used:?} {held:?}", std::process::id());
        let mut open = OPEN.lock();
        if let Some(spaces) = open.get(&(folder.clone(), settings.clone())).and_then(Weak::upgrade) {
            drop(open);
            // Another handle may have met a full disk long ago.
            spaces.opened().iter().for_each(|space| space.revive());
            spaces.record();
            return Ok(spaces);
        }
        let mut spaces = Self::new(opening, identity, Some(folder.clone()));
        spaces.read_only = read_only;
        let spaces = Arc::new(spaces);
        open.retain(|_, spaces| spaces.strong_count() > 0);
        open.insert((folder, settings), Arc::downgrade(&spaces));
        drop(open);
        if let Some(folder) = spaces.folder.as_deref().filter(|_| spaces.opening.used.is_capped()) {
            spaces.opening.used.begin(spaces.files_len_bytes(), folder);
        }
        spaces.record();
        if spaces.opening.writes
            && let Some(folder) = &spaces.folder
        {
            // The modification time tells when the identity was last used.
            let touched = std::fs::File::options().write(true).open(folder.join(RECORD));
            let _derived = touched.and_then(|file| file.set_modified(std::time::SystemTime::now()));
        }
        Ok(spaces)
    }

    /// Writes the record of the identity if it is missing. It is derived: stores work without it.
    fn record(&self) {
        let Some(folder) = self.folder.as_ref().filter(|_| self.opening.writes) else { return };
        if recorded(folder).is_none()
            && let Err(error) = write_json(&folder.join(RECORD), &self.identity)
        {
            tracing::warn!(%error, "could not write the record of a module's identity");
        }
    }

    fn new(opening: &Opening, identity: &Identity, folder: Option<PathBuf>) -> Self {
        let timing = folder.as_deref().and_then(|folder| read_json::<f64>(&folder.join(TIMING)));
        Self {
            opening: opening.clone(),
            identity: identity.clone(),
            folder,
            stores: Default::default(),
            flight: Flight::default(),
            held: OnceLock::new(),
            read_only: None,
            mean_s: AtomicU64::new(timing.filter(|mean| mean.is_finite()).unwrap_or(0.0).to_bits()),
            put_rows: AtomicU64::new(0),
            _temporary: opening.temporary.clone(),
        }
    }

    fn slot(&self, kind: KeyKind) -> &Mutex<Option<Arc<Space>>> {
        let [strings, integers, bytes] = &self.stores;
        match kind {
            KeyKind::Str => strings,
            KeyKind::U64 => integers,
            KeyKind::Bytes => bytes,
        }
    }

    /// The store for keys of `kind`, which is created if it does not exist.
    pub fn space(&self, kind: KeyKind) -> Result<Arc<Space>> {
        let mut slot = self.slot(kind).lock();
        if let Some(space) = &*slot {
            return Ok(Arc::clone(space));
        }
        let options = self.opening.options.clone();
        let source = match &self.folder {
            None => Source::Memory(Arc::new(MemoryStorage::new())),
            Some(folder) if !self.opening.writes => Source::Reader { cache_dir: folder.clone() },
            Some(folder) => Source::Writer { cache_dir: folder.clone(), rank: self.opening.rank.rank },
        };
        let space = Arc::new(Space::open(source, kind.name(), options)?);
        *slot = Some(Arc::clone(&space));
        self.record();
        Ok(space)
    }

    /// Writes the pending rows for keys of `kind` that other handles of this process have, which were opened with other
    /// options, so that they become visible here. Returns whether there were any.
    pub fn write_neighbours(&self, kind: KeyKind) -> bool {
        let Some(folder) = &self.folder else { return false };
        let mut here = open_in(|open| open == folder);
        here.retain(|spaces| !std::ptr::eq(&raw const **spaces, self));
        let write = |spaces: &Arc<Self>| {
            let Some(space) = spaces.slot(kind).lock().clone() else { return false };
            // The other handle reports its failure itself.
            let Ok(Some(store)) = space.store() else { return false };
            store.waiting().rows > 0 && store.flush_with(Durability::Buffered).is_ok()
        };
        here.iter().filter(|spaces| write(spaces)).count() > 0
    }

    /// The stores that are open.
    fn opened(&self) -> Vec<Arc<Space>> {
        self.stores.iter().filter_map(|slot| slot.lock().clone()).collect()
    }

    /// Returns when everything that was put is on disk.
    pub fn flush(&self) -> Result<()> {
        // All stores are flushed, even if one fails.
        let flushed: Vec<Result<()>> = self.opened().iter().map(|space| space.flush()).collect();
        self.record();
        self.write_timing();
        flushed.into_iter().collect()
    }

    /// Makes the commits of other processes visible.
    pub fn refresh(&self) -> Result<()> {
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

    /// The rows that the tensor library holds, created on first use.
    pub fn held<T: Any + Send + Sync>(&self, make: impl FnOnce() -> T) -> Option<&T> {
        self.held.get_or_init(|| Box::new(make())).downcast_ref()
    }

    /// The number of keys in all stores.
    pub fn count_keys(&self) -> Result<u64> {
        let mut keys = 0;
        for kind in KINDS {
            self.write_neighbours(kind);
            if let Some(space) = self.existing(kind)?
                && let Some(reader) = space.reader()?
            {
                keys += reader.len()?;
            }
        }
        Ok(keys)
    }

    /// Whether `rows` of `bytes` in total fit under the limit; counts them if so.
    pub fn reserve(&self, rows: usize, bytes: usize) -> Room {
        let files = || self.files_len_bytes();
        let room = self.opening.used.reserve(rows as u64, bytes as u64, self.folder.as_deref(), files);
        if room == Room::Granted {
            self.put_rows.fetch_add(rows as u64, Ordering::Relaxed);
        }
        room
    }

    /// Bytes of the files that the limit counts, and of rows that this process has not written yet.
    fn files_len_bytes(&self) -> u64 {
        let Some(own) = self.folder.as_deref() else { return 0 };
        let counted = match self.opening.used.scope() {
            DiskScope::Module => own.parent().unwrap_or(own),
            DiskScope::Identity => own,
        };
        let here = open_in(|open| open.starts_with(counted));
        let waiting = |spaces: &Arc<Self>| {
            let waiting: usize = spaces.opened().iter().map(|space| space.waiting_len_bytes()).sum();
            waiting as u64 + spaces.put_rows.load(Ordering::Relaxed) * ROW_BYTES / 2
        };
        folder_len_bytes(counted) + here.iter().map(waiting).sum::<u64>()
    }

    /// Evicts at least `bytes` of the rows of this identity, if there are as many, from the largest store first. Returns
    /// the bytes that were freed.
    ///
    /// # Errors
    /// As [`tensorcask::Store::prune`].
    pub fn evict(&self, bytes: u64) -> Result<u64> {
        let mut stores = Vec::new();
        for space in KINDS.map(|kind| self.existing(kind)) {
            if let Some(store) = space?.map(|space| space.store()).transpose()?.flatten() {
                stores.push((store.stats()?.disk_bytes, store));
            }
        }
        stores.sort_by_key(|(len_bytes, _)| std::cmp::Reverse(*len_bytes));
        let mut freed = 0;
        for (len_bytes, store) in stores {
            if freed < bytes {
                let to = len_bytes.saturating_sub(bytes - freed);
                let prune = Prune::new().to_bytes(to).order(self.opening.used.eviction()).patience(EVICTION_PATIENCE);
                let report = store.prune(&prune)?;
                freed += report.bytes_before.saturating_sub(report.bytes_after);
            }
        }
        Ok(freed)
    }

    /// The limit, and how much is kept under it.
    pub fn used(&self) -> &Used {
        &self.opening.used
    }

    /// The limit of kept bytes.
    pub fn cap_bytes(&self) -> u64 {
        self.opening.used.cap()
    }

    /// Why outputs are read only, though the caller did not ask for it.
    pub fn read_only(&self) -> Option<&str> {
        self.read_only.as_deref()
    }

    /// Mean seconds of computation per sample; 0 if unknown.
    pub fn mean_s(&self) -> f64 {
        f64::from_bits(self.mean_s.load(Ordering::Relaxed))
    }

    /// Records that computing `samples` took `seconds`.
    #[expect(clippy::cast_precision_loss, reason = "a mean of measured times")]
    pub fn took(&self, samples: usize, seconds: f64) {
        let now = seconds / samples.max(1) as f64;
        let mean = self.mean_s();
        let mean = if mean == 0.0 { now } else { mean + (now - mean) / 8.0 };
        self.mean_s.store(mean.to_bits(), Ordering::Relaxed);
    }

    /// Takes the mean time of another identity as the initial value.
    pub fn expect_mean(&self, mean_s: f64) {
        if self.mean_s() == 0.0 {
            self.mean_s.store(mean_s.to_bits(), Ordering::Relaxed);
        }
    }

    /// Writes the mean time of a sample. It is derived: without it, a process starts from 0.
    fn write_timing(&self) {
        let Some(folder) = self.folder.as_ref().filter(|_| self.opening.writes && self.mean_s() > 0.0) else { return };
        if let Err(error) = write_json(&folder.join(TIMING), &self.mean_s()) {
            tracing::warn!(%error, "could not record the mean time of a sample");
        }
    }

    /// The records of other identities of this module that keep `key`.
    pub fn siblings(&self, key: &Key) -> Result<Vec<Option<Identity>>> {
        let Some(folder) = &self.folder else { return Ok(Vec::new()) };
        let Some(module) = folder.parent() else { return Ok(Vec::new()) };
        let list = std::fs::read_dir(module).map_err(|error| Error::io("list", module, error))?;
        let mut found = Vec::new();
        for entry in list {
            let path = entry.map_err(|error| Error::io("list", module, error))?.path();
            // Skips the remains of an interrupted removal.
            let is_identity = path.file_name().and_then(|name| name.to_str()).is_some_and(names::is_identity);
            if is_identity && path != *folder && path.is_dir() && keeps(&path, key)? {
                found.push(recorded(&path));
            }
        }
        Ok(found)
    }

    /// The folder of the identity; `None` in memory.
    pub fn folder(&self) -> Option<&Path> {
        self.folder.as_deref()
    }
}

impl Drop for Spaces {
    fn drop(&mut self) {
        self.write_timing();
    }
}

/// The handles of this process whose folder `is` accepts.
fn open_in(is: impl Fn(&Path) -> bool) -> Vec<Arc<Spaces>> {
    OPEN.lock().iter().filter(|((folder, _), _)| is(folder)).filter_map(|(_, spaces)| spaces.upgrade()).collect()
}

/// Whether this process has the identity in `folder` open.
pub fn is_open(folder: &Path) -> bool {
    let folder = folder.canonicalize().unwrap_or_else(|_| folder.to_path_buf());
    OPEN.lock().iter().any(|((open, _), spaces)| *open == folder && spaces.strong_count() > 0)
}

/// Whether the identity in `folder` keeps `key`, in its files or in a handle of this process.
fn keeps(folder: &Path, key: &Key) -> Result<bool> {
    let kind = key.as_ref().kind();
    for spaces in open_in(|open| open == folder) {
        // Rows that this process has put may not be in the files yet.
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

/// The record in `folder`, if it can be read.
pub fn recorded(folder: &Path) -> Option<Identity> {
    read_json(&folder.join(RECORD))
}

/// The folder of a module, which contains its identities; `None` in memory.
pub fn module_folder(place: &Place, temporary: Option<&TemporaryFolder>, module_id: &str) -> Option<PathBuf> {
    let base = match place {
        Place::Folder(folder) => folder,
        _ => temporary?.path(),
    };
    Some(base.join(module_id))
}

/// Checks that an identity's folder and the existing stores in it are writable.
fn check_writable(folder: &Path) -> Result<()> {
    check_access(folder)?;
    let stores = KINDS.iter().map(|kind| folder.join(kind.name()));
    stores
        .flat_map(|store| [store.join("lanes"), store.join("segments"), store])
        .filter(|part| part.exists())
        .try_for_each(|part| check_access(&part))
}

/// Checks that the folder, or the one that it would be created in, is writable.
fn check_access(folder: &Path) -> Result<()> {
    let there = folder.ancestors().find(|ancestor| ancestor.exists());
    let there = there.filter(|there| !there.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let access = rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK;
    match rustix::fs::accessat(rustix::fs::CWD, there, access, rustix::fs::AtFlags::EACCESS) {
        Err(error @ (rustix::io::Errno::ACCESS | rustix::io::Errno::ROFS | rustix::io::Errno::PERM)) => {
            Err(Error::io("write to", there, error.into()))
        }
        // Other errors show when the folder is used.
        _ => Ok(()),
    }
}

/// Creates the folder, and returns its canonical path.
fn made(folder: &Path) -> Result<PathBuf> {
    std::fs::create_dir_all(folder).map_err(|error| Error::io("create", folder, error))?;
    folder.canonicalize().map_err(|error| Error::io("resolve", folder, error))
}

/// The canonical path, whether or not the folder exists: links are resolved in the part that exists.
pub fn resolved(folder: &Path) -> Result<PathBuf> {
    let absolute = std::path::absolute(folder).map_err(|error| Error::io("resolve", folder, error))?;
    for there in absolute.ancestors() {
        if let Ok(canonical) = there.canonicalize() {
            let rest = absolute.strip_prefix(there).unwrap_or(Path::new(""));
            return Ok(if rest.as_os_str().is_empty() { canonical } else { canonical.join(rest) });
        }
    }
    Ok(absolute)
}
