//! The size of the outputs of a module, and its limit.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock, Weak};

use parking_lot::Mutex;

use super::json::{read_json, write_json};
use crate::identity::names::FULL;

/// Bytes of a row besides its elements: its key and checksum, and its entries in the indexes of its segment and of the
/// store. This is more than most rows take, so that the limit is reached rather early than late.
pub const ROW_BYTES: u64 = 64;
/// Bytes of a batch besides its rows: its frame, its schema, and the padding that aligns its elements to pages.
const BATCH_BYTES: u64 = 600;
const ALIGNED_BATCH_BYTES: u64 = 32 << 10;
const PAGE_BYTES: u64 = 4096;

/// The limit, and the bytes in use.
pub struct Used {
    cap: Option<u64>,
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
    /// `module` is the folder of the module, whose handles share the count.
    pub fn new(cap: Option<u64>, module: Option<&Path>) -> Self {
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
        self.cap.is_some()
    }

    /// The limit in bytes.
    pub fn cap(&self) -> u64 {
        self.cap.unwrap_or(u64::MAX)
    }

    /// Starts with the size of the files. An identity that was full at this limit or a higher one stays full unless
    /// half of the files are gone, so that each run finds the same samples as the last one.
    pub fn begin(&self, files: u64, folder: &Path) {
        let Some(cap) = self.cap else { return };
        *self.usage.lock() = Usage { bytes: files, since: 0 };
        let mut state = self.state.lock();
        let was_full = read_json::<(u64, u64)>(&folder.join(FULL));
        state.full = was_full.is_some_and(|(at, took)| at >= cap && files >= took / 2);
    }

    /// Whether `rows` of `bytes` in total fit; counts them if so. `files` measures the files and pending rows. It is
    /// called more often as less space is left. Once full, an identity stays full, so that each epoch finds the same
    /// samples.
    pub fn reserve(&self, rows: u64, bytes: u64, folder: Option<&Path>, files: impl Fn() -> u64) -> Room {
        let mut usage = self.usage.lock();
        let batch = if bytes >= ALIGNED_BATCH_BYTES { BATCH_BYTES + PAGE_BYTES } else { BATCH_BYTES };
        let wanted = bytes.saturating_add(rows * ROW_BYTES).saturating_add(batch);
        let Some(cap) = self.cap else {
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

    /// Files were removed, so that there may be space again.
    pub fn reopen(&self) {
        self.usage.lock().since = u64::MAX;
        *self.state.lock() = State::default();
    }
}

impl Usage {
    fn add(&mut self, bytes: u64) {
        self.bytes = self.bytes.saturating_add(bytes);
        self.since = self.since.saturating_add(bytes);
    }
}
