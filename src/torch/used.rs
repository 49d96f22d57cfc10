//! How much the outputs of a module may take, and how much they do.

use std::path::Path;

use parking_lot::Mutex;

use super::space::{read_json, write_json};
use crate::names::FULL;

/// What a row takes beside its elements: its key and checksum, and its places in the index of its segment and of the
/// store. More than most take, so that a cap is met rather early than late.
const ROW_BYTES: u64 = 64;
/// What a batch takes beside its rows: its frame, its description, and what aligns its elements to pages.
const BATCH_BYTES: u64 = 600;
const ALIGNED_BATCH_BYTES: u64 = 32 << 10;
const PAGE_BYTES: u64 = 4096;

/// The bytes that may be used, and those that are.
pub(super) struct Used {
    cap: Option<u64>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    bytes: u64,
    /// Bytes that were added since the files were last measured.
    since: u64,
    /// Rows that were put, whose index may not be written yet.
    rows: u64,
    full: bool,
    told: bool,
}

/// What became of a wish for room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Room {
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
    pub(super) fn new(cap: Option<u64>) -> Self {
        Self { cap, state: Mutex::default() }
    }

    /// Whether there is a cap at all.
    pub(super) const fn is_capped(&self) -> bool {
        self.cap.is_some()
    }

    /// The cap.
    pub(super) fn cap(&self) -> u64 {
        self.cap.unwrap_or(u64::MAX)
    }

    /// Takes in what the files take. An identity that was full at this cap, or a higher one, stays so unless half of the
    /// files are gone: each run is to find the samples of the last one, and no others.
    pub(super) fn begin(&self, files: u64, folder: &Path) {
        let Some(cap) = self.cap else { return };
        let mut state = self.state.lock();
        (state.bytes, state.since, state.rows) = (files, 0, 0);
        let was_full = read_json::<(u64, u64)>(&folder.join(FULL));
        state.full = was_full.is_some_and(|(at, took)| at >= cap && files >= took / 2);
    }

    /// Whether `rows` of `bytes` in all may be put; counts them if so. What `files` take, written or waiting, is asked
    /// for from time to time, and the more often the less room is left. Full once is full for good: what is kept stays, so
    /// that each epoch finds the same samples.
    pub(super) fn reserve(&self, rows: u64, bytes: u64, folder: Option<&Path>, files: impl Fn() -> u64) -> Room {
        let Some(cap) = self.cap else { return Room::Granted };
        let mut state = self.state.lock();
        let batch = if bytes >= ALIGNED_BATCH_BYTES { BATCH_BYTES + PAGE_BYTES } else { BATCH_BYTES };
        let wanted = bytes.saturating_add(rows * ROW_BYTES).saturating_add(batch);
        let often = (cap / 64).min(cap.saturating_sub(state.bytes) / 8).max(cap / 1024);
        let over = state.bytes.saturating_add(wanted) > cap;
        if folder.is_some() && !state.full && (over || state.since > often) {
            state.bytes = files().saturating_add(state.rows * ROW_BYTES / 2);
            state.since = 0;
        }
        if state.full || state.bytes.saturating_add(wanted) > cap {
            if let Some(folder) = folder.filter(|_| !state.full)
                && let Err(error) = write_json(&folder.join(FULL), &(cap, files()))
            {
                tracing::warn!(%error, "it could not be recorded that the cap was reached");
            }
            state.full = true;
            return if std::mem::replace(&mut state.told, true) { Room::Full } else { Room::FullNow };
        }
        state.bytes += wanted;
        state.since += wanted;
        state.rows += rows;
        Room::Granted
    }
}
