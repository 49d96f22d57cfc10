//! The options of a compaction.

use std::time::Duration;

use crate::codec::Codec;
use crate::dtype::Dtype;
use crate::engine::options::checks::{check_share, check_store_as};
use crate::error::Result;
use crate::key::Key;

/// The order of rows in sorted segments.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Order {
    /// By key: integers by value, strings and byte strings by their bytes.
    Keys,
    /// As these keys; then all other rows, by key. If a key is named twice, its first place counts. For example the order
    /// in which an epoch reads them.
    Given(Vec<Key>),
}

/// Options of [`crate::Store::compact`].
#[derive(Debug, Clone, PartialEq)]
pub struct Compaction {
    pub(crate) live_share: f64,
    pub(crate) join: bool,
    pub(crate) codec: Option<Codec>,
    pub(crate) store_as: Option<Dtype>,
    pub(crate) sort: Option<Order>,
    pub(crate) sorted_segment_bytes: u64,
    pub(crate) bytes_per_s: Option<u64>,
    pub(crate) dry_run: bool,
    pub(crate) patience: Duration,
    /// Whether a sample of its rows decides whether a segment is examined in full.
    pub(crate) by_sample: bool,
}

impl Default for Compaction {
    fn default() -> Self {
        Self {
            live_share: 0.95,
            join: true,
            codec: None,
            store_as: None,
            sort: None,
            sorted_segment_bytes: 64 << 30,
            bytes_per_s: None,
            dry_run: false,
            patience: Duration::from_secs(60),
            by_sample: false,
        }
    }
}

impl Compaction {
    /// Rewrites segments of which at least a twentieth of the rows is dead, joins small segments, and does not limit
    /// its write rate.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The options of compaction in the background.
    pub(crate) fn in_background(live_share: f64, bytes_per_s: Option<u64>) -> Self {
        Self { live_share, join: false, bytes_per_s, patience: Duration::ZERO, by_sample: true, ..Self::default() }
    }

    /// Rewrites segments of which at most this share of the rows is live, from 0 to 1 (default: 0.95). 1 rewrites every
    /// segment with a dead row.
    #[must_use]
    pub fn live_share(mut self, share: f64) -> Self {
        self.live_share = share;
        self
    }

    /// Whether small segments of one schema are joined (default: on).
    #[must_use]
    pub fn join(mut self, join: bool) -> Self {
        self.join = join;
        self
    }

    /// Packs all tensors with this codec, or unpacks them (default: `None`, as they are). Segments with another codec
    /// are rewritten, whatever their share of live rows; the level of zstd alone rewrites none. Later puts are packed as
    /// [`Options::codec`](crate::Options::codec) says. Segments that would grow to more than a quarter of
    /// [`Options::max_disk_bytes`](crate::Options::max_disk_bytes) are skipped, and what that leaves no room for is
    /// evicted afterwards.
    #[must_use]
    pub fn codec(mut self, codec: impl Into<Option<Codec>>) -> Self {
        self.codec = codec.into();
        self
    }

    /// Stores wider floats in this dtype, as [`Options::store_as`](crate::Options::store_as) does for new rows (default:
    /// `None`, as they are). What is lost does not come back.
    #[must_use]
    pub fn store_as(mut self, dtype: impl Into<Option<Dtype>>) -> Self {
        self.store_as = dtype.into();
        self
    }

    /// Sorts the rows (default: `None`, rows stay in the order in which they were put), so that reading them in this order
    /// reads files from front to back. All rows of one structure get into one segment, as far as
    /// [`Compaction::sorted_segment_bytes`] allows; segments that are in order already are not rewritten. Rows that are
    /// put later are not in order until the next such compaction. Needs free space for another copy of the rows that
    /// are sorted together, and memory for each of them: 8 bytes, and 24 more while they are sorted, besides the index of
    /// the new segment. Stores of format version 1 and 2 cannot be sorted; [`Store::merge_from`](crate::Store::merge_from) copies one into a new store.
    #[must_use]
    pub fn sort(mut self, order: impl Into<Option<Order>>) -> Self {
        self.sort = order.into();
        self
    }

    /// A sorted segment takes about so many bytes at most (default: 64 GiB), and at most a quarter of
    /// [`Options::max_disk_bytes`](crate::Options::max_disk_bytes). Of more rows, several segments are made, each of which
    /// is in order; so are of rows that were put more than a quarter of [`Options::max_age`](crate::Options::max_age)
    /// apart, since a segment is evicted when all its rows are too old.
    #[must_use]
    pub fn sorted_segment_bytes(mut self, bytes: u64) -> Self {
        self.sorted_segment_bytes = bytes;
        self
    }

    /// Maximum write rate in bytes a second (default: `None`, no limit).
    #[must_use]
    pub fn bytes_per_s(mut self, bytes_per_s: Option<u64>) -> Self {
        self.bytes_per_s = bytes_per_s;
        self
    }

    /// Only reports what would be rewritten and freed, and changes nothing (default: off).
    #[must_use]
    pub fn dry_run(mut self, dry_run: bool) -> Self {
        self.dry_run = dry_run;
        self
    }

    /// How long to wait for another process that compacts the store (default: 60 s).
    #[must_use]
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// Fails if an option cannot be used.
    pub(crate) fn check(&self) -> Result<()> {
        check_store_as(self.store_as)?;
        check_share("live_share", self.live_share)
    }
}
