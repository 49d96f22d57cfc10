//! How much the outputs of a module may take, and how much they do.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock, Weak};

use parking_lot::Mutex;

use super::json::{read_json, write_json};
use crate::identity::names::FULL;

/// What a row takes beside its elements: its key and checksum, and its places in the index of its segment and of the
/// store. More than most take, so that a cap is met rather early than late.
pub const ROW_BYTES: u64 = 64;
/// What a batch takes beside its rows: its frame, its description, and what aligns its elements to pages.
const BATCH_BYTES: u64 = 600;
const ALIGNED_BATCH_BYTES: u64 = 32 << 10;
const PAGE_BYTES: u64 = 4096;

/// The bytes that may be used, and those that are.
pub struct Used {
    cap: Option<u64>,
    /// Locked before `state`.
    usage: Arc<Mutex<Usage>>,
    state: Mutex<State>,
}

/// What a module takes: all its identities, by all handles of this process.
#[derive(Debug, Default)]
struct Usage {
    bytes: u64,
    /// Bytes that were added since the files were last measured.
    since: u64,
}

/// By the module's folder.
static USAGES: LazyLock<Mutex<HashMap<PathBuf, Weak<Mutex<Usage>>>>> = LazyLock::new(Mutex::default);

#[derive(Debug, Default)]
struct State {
    full: bool,
    told: bool,
}

/// What became of a wish for room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Room {
    Granted,
    Full,
    /// Full, and nobody was told so far.
    FullNow,
}

/// Only what was asked for: handles that were opened in the same way share their stores.
impl std::fmt::Debug for Used {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Used").field("cap", &self.cap).finish_non_exhaustive()
    }
}

impl Used {
    /// `module` is the folder of the module, whose handles share what is counted.
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

    /// Whether there is a cap at all.
    pub const fn is_capped(&self) -> bool {
        self.cap.is_some()
    }

    /// The cap.
    pub fn cap(&self) -> u64 {
        self.cap.unwrap_or(u64::MAX)
    }

    /// Takes in what the files take. An identity that was full at this cap, or a higher one, stays so unless half of the
    /// files are gone: each run is to find the samples of the last one, and no others.
    pub fn begin(&self, files: u64, folder: &Path) {
        let Some(cap) = self.cap else { return };
        *self.usage.lock() = Usage { bytes: files, since: 0 };
        let mut state = self.state.lock();
        let was_full = read_json::<(u64, u64)>(&folder.join(FULL));
        state.full = was_full.is_some_and(|(at, took)| at >= cap && files >= took / 2);
    }

    /// Whether `rows` of `bytes` in all may be put; counts them if so. What `files` take, written or waiting, is asked
    /// for from time to time, and the more often the less room is left. Full once is full for good: what is kept stays, so
    /// that each epoch finds the same samples.
    pub fn reserve(&self, rows: u64, bytes: u64, folder: Option<&Path>, files: impl Fn() -> u64) -> Room {
        let mut usage = self.usage.lock();
        let batch = if bytes >= ALIGNED_BATCH_BYTES { BATCH_BYTES + PAGE_BYTES } else { BATCH_BYTES };
        let wanted = bytes.saturating_add(rows * ROW_BYTES).saturating_add(batch);
        let Some(cap) = self.cap else {
            // Handles with a cap are to know of it.
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
                tracing::warn!(%error, "it could not be recorded that the cap was reached");
            }
            state.full = true;
            return if std::mem::replace(&mut state.told, true) { Room::Full } else { Room::FullNow };
        }
        usage.add(wanted);
        Room::Granted
    }

    /// Files were removed: there may be room again.
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
