//! Caps of a store, and what is evicted to keep them.

use std::time::Duration;

use crate::error::{Error, Result};

/// The least number of segments under a cap, so that evicting one frees a small part of the store.
const SEGMENTS: u64 = 16;
/// The smallest size at which segments are sealed under a cap.
const SMALLEST_SEGMENT_BYTES: u64 = 64 << 10;

/// Which segments are evicted first when a store reaches a cap.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Eviction {
    /// Those whose last commit is the oldest.
    #[default]
    OldestFirst,
    /// Those that this handle has read least, as sampled in one of 16 calls; each eviction halves the counts. Of
    /// segments with equal counts, the oldest.
    ColdestFirst,
    /// None: puts fail with [`Error::Full`], so that each epoch finds the same rows.
    Stop,
}

/// The caps of a store, as its options say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Caps {
    pub disk_bytes: Option<u64>,
    pub rows: Option<u64>,
    pub age: Option<Duration>,
    pub eviction: Eviction,
}

impl Caps {
    /// Whether there is no cap.
    pub(crate) fn are_none(&self) -> bool {
        self.disk_bytes.is_none() && self.rows.is_none() && self.age.is_none()
    }

    /// Fails if a cap is too small to hold.
    ///
    /// # Errors
    /// [`Error::Invalid`], with the smallest cap.
    pub(crate) fn check(&self) -> Result<()> {
        let least_bytes = SEGMENTS * SMALLEST_SEGMENT_BYTES;
        let too_small = |name: &str, found: &str, least: String| {
            Err(Error::invalid(format!("the option {name} is {found}, which cannot hold: give at least {least}")))
        };
        match (self.disk_bytes, self.rows, self.age) {
            (Some(bytes), _, _) if bytes < least_bytes => too_small(
                "max_disk_bytes",
                &bytes.to_string(),
                format!("{least_bytes} ({SEGMENTS} segments of 64 KiB)"),
            ),
            (_, Some(rows), _) if rows < SEGMENTS => {
                too_small("max_rows", &rows.to_string(), format!("{SEGMENTS} (as many segments of one row)"))
            }
            (_, _, Some(age)) if age.is_zero() => too_small("max_age", "0", "a microsecond".into()),
            _ => Ok(()),
        }
    }

    /// The largest size of a segment in bytes, small against the cap.
    pub(crate) fn segment_bytes(&self) -> Option<u64> {
        self.disk_bytes.map(|bytes| bytes / SEGMENTS)
    }

    /// The largest number of rows of a segment, small against the cap.
    pub(crate) fn segment_rows(&self) -> Option<u32> {
        self.rows.map(|rows| u32::try_from(rows / SEGMENTS).unwrap_or(u32::MAX))
    }
}

/// Options of [`crate::Store::prune`]. Without any limit, it evicts nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Prune {
    pub(crate) older_than: Option<Duration>,
    pub(crate) to_bytes: Option<u64>,
    pub(crate) to_rows: Option<u64>,
    pub(crate) order: Eviction,
    pub(crate) dry_run: bool,
    pub(crate) patience: Duration,
}

impl Default for Prune {
    fn default() -> Self {
        let (older_than, to_bytes, to_rows) = (None, None, None);
        Self {
            older_than,
            to_bytes,
            to_rows,
            order: Eviction::default(),
            dry_run: false,
            patience: Duration::from_secs(60),
        }
    }
}

impl Prune {
    /// No limit, the oldest segments first.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Evicts segments whose last commit is older than this, by the clock of the commit timestamps.
    #[must_use]
    pub fn older_than(mut self, age: impl Into<Option<Duration>>) -> Self {
        self.older_than = age.into();
        self
    }

    /// Evicts segments until all files of the store take at most this many bytes.
    #[must_use]
    pub fn to_bytes(mut self, bytes: impl Into<Option<u64>>) -> Self {
        self.to_bytes = bytes.into();
        self
    }

    /// Evicts segments until at most this many rows are left. Overwritten and deleted rows count until they are
    /// compacted; tombstones do not.
    #[must_use]
    pub fn to_rows(mut self, rows: impl Into<Option<u64>>) -> Self {
        self.to_rows = rows.into();
        self
    }

    /// Which segments are evicted first (default: [`Eviction::OldestFirst`]).
    #[must_use]
    pub fn order(mut self, order: Eviction) -> Self {
        self.order = order;
        self
    }

    /// Only reports what would be evicted and freed, and changes nothing (default: off).
    #[must_use]
    pub fn dry_run(mut self, dry_run: bool) -> Self {
        self.dry_run = dry_run;
        self
    }

    /// How long to wait for another process that compacts or prunes the store (default: 60 s).
    #[must_use]
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// Fails if an option cannot be used.
    pub(crate) fn check(&self) -> Result<()> {
        match self.order {
            Eviction::Stop => Err(Error::invalid("pruning evicts: give the order OldestFirst or ColdestFirst")),
            _ => Ok(()),
        }
    }
}
