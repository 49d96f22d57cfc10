//! The size of the outputs of a module, and its limit.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock, Weak};

use parking_lot::Mutex;

use tensorcask::Eviction;

use super::json::{read_json, write_json};
use crate::identity::names::FULL;

/// Bytes of a row besides its elements: its key and checksum, and its entries in the indexes of its segment and of the
/// store. This is more than most rows take, so that the limit is reached rather early than late.
pub const ROW_BYTES: u64 = 64;
/// Bytes of a batch besides its rows: its frame, its schema, and the padding that aligns its elements to pages.
const BATCH_BYTES: u64 = 600;
const ALIGNED_BATCH_BYTES: u64 = 32 << 10;
const PAGE_BYTES: u64 = 4096;

/// The outputs that a limit counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum DiskScope {
    /// Those of all identities of the module id: outputs of former weights and versions too.
    #[default]
    Module,
    /// Those of the identity that is used.
    Identity,
}

/// A limit on the bytes of files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cap {
    pub bytes: Option<u64>,
    pub scope: DiskScope,
    pub eviction: Eviction,
}

/// The limit, and the bytes in use.
pub struct Used {
    cap: Cap,
    /// Acquired before `state`.
    usage: Arc<Mutex<Usage>>,
    state: Mutex<State>,
}

/// The size of a module: all its identities, written by all handles of this process.
#[derive(Debug, Default)]
struct Usage {
    bytes: u64,
    /// Bytes that were added since the files were last measured.
    since: u64,
}

/// Keyed by the folder of the module.
static USAGES: LazyLock<Mutex<HashMap<PathBuf, Weak<Mutex<Usage>>>>> = LazyLock::new(Mutex::default);

#[derive(Debug, Default)]
struct State {
    full: bool,
    told: bool,
}

/// The result of [`Used::reserve`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Room {
    Granted,
    Full,
    /// Full, and no caller was warned before.
    FullNow,
}

/// Shows only the limit. The output is part of the key of shared stores, so equal options must give equal text.
impl std::fmt::Debug for Used {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Used").field("cap", &self.cap).finish_non_exhaustive()
    }
}

impl Used {
    /// `module` is the folder of the module, whose handles share the count if it is the module's.
    pub fn new(cap: Cap, module: Option<&Path>) -> Self {
        let module = module.filter(|_| cap.scope == DiskScope::Module);
        let usage = module.map_or_else(Arc::default, |module| {
            let mut usages = USAGES.lock();
            usages.retain(|_, usage| usage.strong_count() > 0);
            let known = usages.get(module).and_then(Weak::upgrade);
            known.unwrap_or_else(|| {
                let usage = Arc::default();
                usages.insert(module.to_path_buf(), Arc::downgrade(&usage));
                usage
            })
        });
        Self { cap, usage, state: Mutex::default() }
    }

    /// Whether there is a limit.
    pub const fn is_capped(&self) -> bool {
        self.cap.bytes.is_some()
    }

    /// The limit in bytes.
    pub fn cap(&self) -> u64 {
        self.cap.bytes.unwrap_or(u64::MAX)
    }

    /// Which outputs count.
    pub const fn scope(&self) -> DiskScope {
        self.cap.scope
    }

    /// What is evicted at the limit.
    pub const fn eviction(&self) -> Eviction {
        self.cap.eviction
    }

    /// By how many bytes the limit would be exceeded by a batch that was just refused, if it is not latched as full.
    pub fn missing_bytes(&self, rows: u64, bytes: u64) -> u64 {
        (self.usage.lock().bytes.saturating_add(wanted_bytes(rows, bytes))).saturating_sub(self.cap())
    }

    /// Starts with the size of the files. An identity that was full at this limit or a higher one stays full unless
    /// half of the files are gone, so that each run finds the same samples as the last one.
    pub fn begin(&self, files: u64, folder: &Path) {
        let Some(cap) = self.cap.bytes else { return };
        *self.usage.lock() = Usage { bytes: files, since: 0 };
        let mut state = self.state.lock();
        let was_full = read_json::<(u64, u64)>(&folder.join(FULL));
        let stops = self.cap.eviction == Eviction::Stop;
        state.full = stops && was_full.is_some_and(|(at, took)| at >= cap && files >= took / 2);
    }

    /// Whether `rows` of `bytes` in total fit; counts them if so. `files` measures the files and pending rows. It is
    /// called more often as less space is left. Once full, an identity stays full, so that each epoch finds the same
    /// samples, unless outputs are evicted.
    pub fn reserve(&self, rows: u64, bytes: u64, folder: Option<&Path>, files: impl Fn() -> u64) -> Room {
        let mut usage = self.usage.lock();
        let wanted = wanted_bytes(rows, bytes);
        let Some(cap) = self.cap.bytes else {
            // Counted for handles that have a limit.
            usage.add(wanted);
            return Room::Granted;
        };
        let mut state = self.state.lock();
        let often = (cap / 64).min(cap.saturating_sub(usage.bytes) / 8).max(cap / 1024);
        let over = usage.bytes.saturating_add(wanted) > cap;
        if folder.is_some() && !state.full && (over || usage.since > often) {
            *usage = Usage { bytes: files(), since: 0 };
        }
        if state.full || usage.bytes.saturating_add(wanted) > cap {
            if self.cap.eviction != Eviction::Stop {
                return Room::Full;
            }
            if let Some(folder) = folder.filter(|_| !state.full)
                && let Err(error) = write_json(&folder.join(FULL), &(cap, files()))
            {
                tracing::warn!(%error, "could not record that the cap was reached");
            }
            state.full = true;
            return if std::mem::replace(&mut state.told, true) { Room::Full } else { Room::FullNow };
        }
        usage.add(wanted);
        Room::Granted
    }

    /// The files are measured at the next reservation.
    pub fn measure_again(&self) {
        self.usage.lock().since = u64::MAX;
    }

    /// Whether no caller was warned before that the limit is reached although outputs are evicted.
    pub fn is_news(&self) -> bool {
        !std::mem::replace(&mut self.state.lock().told, true)
    }

    /// Files were removed, so that there may be space again.
    pub fn reopen(&self) {
        self.usage.lock().since = u64::MAX;
        *self.state.lock() = State::default();
    }
}

/// Bytes on disk of a batch of `rows` rows with elements of `bytes` in total.
fn wanted_bytes(rows: u64, bytes: u64) -> u64 {
    let batch = if bytes >= ALIGNED_BATCH_BYTES { BATCH_BYTES + PAGE_BYTES } else { BATCH_BYTES };
    bytes.saturating_add(rows * ROW_BYTES).saturating_add(batch)
}

impl Usage {
    fn add(&mut self, bytes: u64) {
        self.bytes = self.bytes.saturating_add(bytes);
        self.since = self.since.saturating_add(bytes);
    }
}
