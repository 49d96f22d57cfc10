//! Tracks how much of what batches touch was in memory lately.

use std::path::Path;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::error::{Error, Result};
use crate::io::residency::{self, Wanted};

/// One watch for each stage of a lookup. They are separate: rows that are read from a disk in order, batch by batch,
/// say nothing about an index in memory, and checking all of its buckets would cost more than reading them.
#[derive(Debug, Default)]
pub(crate) struct Residency {
    buckets: Watch,
    keys: Watch,
    rows: Watch,
}

impl Residency {
    /// The watch on buckets of index runs.
    #[inline]
    pub(crate) fn buckets(&self) -> &Watch {
        &self.buckets
    }

    /// The watch on keys and their offsets.
    #[inline]
    pub(crate) fn keys(&self) -> &Watch {
        &self.keys
    }

    /// The watch on rows.
    #[inline]
    pub(crate) fn rows(&self) -> &Watch {
        &self.rows
    }

    /// How many pages batches needed that were not in memory and were prefaulted.
    pub(crate) fn prefaulted_pages(&self) -> u64 {
        [&self.buckets, &self.keys, &self.rows].map(|watch| watch.prefaulted_pages.load(Ordering::Relaxed)).iter().sum()
    }

    /// Whether pages were missing lately.
    pub(crate) fn is_suspected(&self) -> bool {
        [&self.buckets, &self.keys, &self.rows].into_iter().any(Watch::is_suspected)
    }
}

/// Whether the next batches are checked completely, and how many pages were prefaulted.
#[derive(Debug)]
pub(crate) struct Watch {
    /// How many more checks are complete.
    suspicion: AtomicU32,
    prefaulted_pages: AtomicU64,
}

/// Complete checks after one that found a page missing.
const SUSPICION: u32 = 16;
/// The same for a store that was just opened.
const FIRST_SUSPICION: u32 = 8;
/// Rows for each row that is sampled in a store in memory: a sample takes two microseconds, and copying this many rows
/// of 3 KB takes 350.
pub(crate) const ROWS_A_LOOK: usize = 1024;
/// As [`ROWS_A_LOOK`], for the index, which is a small part of a store and stays in memory longest.
pub(crate) const KEYS_A_LOOK: usize = 4096;
/// A batch of this many keys is sampled at each stage.
const LARGE_BATCH: usize = 1024;

impl Default for Watch {
    fn default() -> Self {
        Self { suspicion: AtomicU32::new(FIRST_SUSPICION), prefaulted_pages: AtomicU64::new(0) }
    }
}

impl Watch {
    /// Whether pages were missing lately.
    #[inline]
    fn is_suspected(&self) -> bool {
        self.suspicion.load(Ordering::Relaxed) > 0
    }

    /// Whether to check a stage of a batch of `keys` completely: pages were missing lately, or one is missing at a few
    /// sampled positions. `salt` chooses them, and differs from batch to batch.
    pub(crate) fn suspects(
        &self,
        keys: usize,
        keys_a_look: usize,
        salt: u64,
        is_resident: impl Fn(usize) -> bool,
    ) -> bool {
        if self.is_suspected() {
            return true;
        }
        // The remainder decides whether a small batch is sampled, the quotient where.
        let (start, turn) = (salt as usize / keys_a_look, salt as usize % keys_a_look);
        if turn >= keys && keys < LARGE_BATCH {
            return false;
        }
        let looks = (0..keys.div_ceil(keys_a_look)).map(|look| (start + look * keys_a_look) % keys);
        let missing = looks.into_iter().any(|position| !is_resident(position));
        if missing {
            self.suspicion.store(SUSPICION, Ordering::Relaxed);
        }
        missing
    }

    /// Prefaults `ranges`; `path_of` names the file of a range.
    pub(crate) fn prefault<'a, 'p>(
        &self,
        ranges: impl Iterator<Item = Option<&'a [u8]>>,
        path_of: impl Fn(usize) -> Option<&'p Path>,
    ) -> Result<()> {
        let wanted = ranges.enumerate().filter_map(|(position, bytes)| Some(Wanted { bytes: bytes?, position }));
        let mut wanted: Vec<_> = wanted.collect();
        if wanted.is_empty() {
            return Ok(());
        }
        let missing_pages = residency::prefault(&mut wanted)
            .map_err(|(position, error)| Error::io("read", path_of(position).unwrap_or(Path::new("")), error))?;
        let suspicion = self.suspicion.load(Ordering::Relaxed);
        if missing_pages > 0 {
            self.suspicion.store(SUSPICION, Ordering::Relaxed);
            self.prefaulted_pages.fetch_add(missing_pages as u64, Ordering::Relaxed);
        } else {
            self.suspicion.store(suspicion.saturating_sub(1), Ordering::Relaxed);
        }
        Ok(())
    }
}
