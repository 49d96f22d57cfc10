//! Options and their validation.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

mod checks;
mod compaction;
mod copies;

pub use compaction::{Compaction, Order};
pub use copies::{Backup, Merge};

use crate::codec::Codec;
use crate::dtype::Dtype;
use crate::engine::caps::{Caps, Eviction};
use crate::engine::options::checks::{check_share, check_store_as};
use crate::error::{Error, Result};
use crate::io::Durability;
use crate::schema::stored_dtype;
use crate::segment::batch::Verify;

/// The lane that a writer locks. A lane has at most one writer; a store has any number of lanes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Lane {
    /// The lane of this number. [`Error::LaneBusy`] if it has a writer.
    Number(u16),
    /// A free lane: one whose writer was killed and left a segment unsealed, otherwise the first.
    Auto,
}

/// What opening does about damage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Recovery {
    /// Opens with all undamaged data, moves damaged files to `quarantine/`, and reports them.
    #[default]
    Quiet,
    /// Fails on damage and changes nothing. A torn tail is not damage.
    Strict,
}

/// What the value cache does when it is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum ValueCachePolicy {
    /// Evicts the least recently used value.
    #[default]
    Lru,
    /// Admits no more values. For repeated scans over more than fits (epochs): LRU would evict every value just before
    /// its next use, whereas a fixed part of the scan always hits this way.
    StopWhenFull,
}

/// When values enter the value cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum ValueCacheFill {
    /// When they are read.
    #[default]
    OnRead,
    /// When they are put.
    OnWrite,
    /// Both.
    OnReadAndWrite,
}

/// Options of [`Store`](crate::Store) and [`Reader`](crate::Reader). The defaults suit a training loop.
///
/// ```
/// # fn main() -> tensorcask::Result<()> {
/// # let dir = tempfile::tempdir().unwrap();
/// use tensorcask::{Codec, Dtype, Options};
///
/// let store = Options::new()
///     .codec(Codec::ShuffleZstd { level: 3 })
///     .store_as(Dtype::F16)
///     .open(dir.path(), "vit-b16")?;
/// # store.close()
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Options {
    pub(crate) lane: Lane,
    pub(crate) recovery: Recovery,
    pub(crate) verify: Verify,
    pub(crate) codec: Codec,
    pub(crate) store_as: Option<Dtype>,
    pub(crate) restore_dtype: bool,
    pub(crate) segment_bytes: u64,
    pub(crate) segment_rows: u32,
    pub(crate) memtable_keys: usize,
    pub(crate) flush_rows: usize,
    pub(crate) flush_bytes: usize,
    pub(crate) flush_interval: Duration,
    pub(crate) buffer_bytes: usize,
    pub(crate) durability: Durability,
    pub(crate) synchronous: bool,
    pub(crate) max_value_bytes: usize,
    pub(crate) value_cache_bytes: usize,
    pub(crate) value_cache_policy: ValueCachePolicy,
    pub(crate) value_cache_fill: ValueCacheFill,
    pub(crate) refresh_interval: Duration,
    pub(crate) lease_timeout: Duration,
    pub(crate) compaction_live_share: f64,
    pub(crate) compaction_bytes_per_s: Option<u64>,
    pub(crate) allow_network: bool,
    pub(crate) create: bool,
    pub(crate) group_writable: bool,
    pub(crate) read_threads: usize,
    pub(crate) hash_bits: u8,
    pub(crate) hash_seed: Option<u64>,
    pub(crate) caps: Caps,
    /// Microseconds since 1970.
    pub(crate) clock: fn() -> u64,
}

fn system_clock() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_micros() as u64)
}

impl Default for Options {
    fn default() -> Self {
        Self {
            lane: Lane::Number(0),
            recovery: Recovery::default(),
            verify: Verify::default(),
            codec: Codec::default(),
            store_as: None,
            restore_dtype: false,
            segment_bytes: 256 << 20,
            segment_rows: 1 << 22,
            memtable_keys: 1 << 20,
            flush_rows: 8192,
            flush_bytes: 16 << 20,
            flush_interval: Duration::from_millis(100),
            buffer_bytes: 256 << 20,
            durability: Durability::default(),
            synchronous: false,
            max_value_bytes: 1 << 30,
            value_cache_bytes: 0,
            value_cache_policy: ValueCachePolicy::Lru,
            value_cache_fill: ValueCacheFill::default(),
            refresh_interval: Duration::from_secs(1),
            lease_timeout: Duration::from_secs(30),
            compaction_live_share: 0.5,
            compaction_bytes_per_s: Some(64 << 20),
            allow_network: false,
            create: true,
            group_writable: false,
            read_threads: crate::engine::threads::default_threads(),
            hash_bits: 0,
            hash_seed: None,
            caps: Caps::default(),
            clock: system_clock,
        }
    }
}

macro_rules! setters {
    ($($(#[$doc:meta])* $name:ident: $type:ty;)*) => {
        $($(#[$doc])* #[must_use] pub fn $name(mut self, $name: $type) -> Self { self.$name = $name; self })*
    };
}

impl Options {
    /// The defaults.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The dtype that [`Options::store_as`] was given.
    #[must_use]
    pub const fn stores_as(&self) -> Option<Dtype> {
        self.store_as
    }

    /// The dtype that tensors of `source` are stored in.
    #[must_use]
    pub fn stored_dtype(&self, source: Dtype) -> Dtype {
        stored_dtype(source, self.store_as)
    }

    /// The dtype that tensors of `source` come back in.
    #[must_use]
    pub fn read_dtype(&self, source: Dtype) -> Dtype {
        if self.restore_dtype { source } else { self.stored_dtype(source) }
    }

    setters! {
        /// The lane to write in (default: 0).
        lane: Lane;
        /// What to do about damage (default: [`Recovery::Quiet`]).
        recovery: Recovery;
        /// When row checksums are compared (default: [`Verify::FirstRead`]).
        verify: Verify;
        /// The codec of tensors that are put from now on (default: [`Codec::None`]). Stored rows stay as they are.
        codec: Codec;
        /// Returns down-cast tensors in the dtype in which they were put (default: off, in the stored dtype).
        restore_dtype: bool;
        /// Size in bytes at which a segment is sealed (default: 256 MiB).
        segment_bytes: u64;
        /// Rows at which a segment is sealed (default: 4,194,304).
        segment_rows: u32;
        /// Approximate number of keys at which the memtable is merged to a run on disk (default: 1,048,576, which take
        /// 36 MiB). In a store of more than 64 times as many keys, it grows up to fourfold. Puts wait for the merge at
        /// twice as many keys, but never below 262,144.
        memtable_keys: usize;
        /// Time after which waiting rows are written even if they are few (default: 100 ms).
        flush_interval: Duration;
        /// Bytes that may wait to be written before `put` blocks (default: 256 MiB).
        buffer_bytes: usize;
        /// The durability level of `flush`, sealing and `close` (default: [`Durability::SyncData`]).
        durability: Durability;
        /// Does the writer thread's work on the caller's thread, in the same steps (default: off). For tests.
        synchronous: bool;
        /// Maximum size in bytes of a decoded value that is read or put (default: 1 GiB).
        max_value_bytes: usize;
        /// Maximum bytes of decoded values in the value cache (default: 0, no value cache). The page cache already
        /// keeps stored rows in memory, so a value cache pays off for packed stores.
        value_cache_bytes: usize;
        /// What the value cache does when it is full (default: [`ValueCachePolicy::Lru`]).
        value_cache_policy: ValueCachePolicy;
        /// When values enter the value cache (default: [`ValueCacheFill::OnRead`]).
        value_cache_fill: ValueCacheFill;
        /// Minimum time between two refreshes for missing keys, which read what other writers have committed (default:
        /// 1 s).
        refresh_interval: Duration;
        /// How long a call of [`Store::get_or_compute_rows`](crate::Store::get_or_compute_rows) or
        /// [`Store::get_or_compute`](crate::Store::get_or_compute) waits in all for other processes that compute the
        /// same keys, before it computes them too (default: 30 s; zero: processes do not wait for each other). Give
        /// more than a batch takes to compute. A process that ends no longer computes: others continue at once.
        lease_timeout: Duration;
        /// The share of live rows up to which a sealed segment is compacted in the background, after merges and when
        /// the store is idle (default: 0.5; 0: off). Closing compacts stores of up to 64 MiB of which half is dead.
        compaction_live_share: f64;
        /// Maximum write rate of compaction in the background, in bytes a second (default: 64 MiB; `None`: no limit).
        compaction_bytes_per_s: Option<u64>;
        /// Allows writing on network file systems, whose locks and memory maps may be unreliable (default: off).
        allow_network: bool;
        /// Maximum number of threads that share a call of `get_batch_into`, including the caller's (default: the number
        /// of processors, at most 4; 1: only the caller's). Only calls of 8 MiB or more are shared.
        read_threads: usize;
        /// Keeps only the top bits of key hashes, to make collisions common. For tests.
        #[doc(hidden)]
        hash_bits: u8;
        /// The clock that commit timestamps come from, in microseconds since 1970 (default: the system's). For tests.
        #[doc(hidden)]
        clock: fn() -> u64;
        /// Creates the store if it does not exist (default: on). If off, opening a store that does not exist is an
        /// error of kind `NotFound`, and nothing is created.
        create: bool;
        /// Lets the group of the store's folder read and write all files and folders that are created in it, regardless
        /// of the umask, and makes new files belong to that group (by the setgid bit). If off (default), a file gets
        /// these rights if its folder has them for the same group, so that a shared folder stays shared. Unix only.
        group_writable: bool;
    }

    /// Down-casts wider float tensors that are put from now on to this float dtype (default: off). Lossy; the segment's
    /// schema records it.
    #[must_use]
    pub fn store_as(mut self, dtype: impl Into<Option<Dtype>>) -> Self {
        self.store_as = dtype.into();
        self
    }

    /// Maximum size in bytes of all files of the store (default: `None`, no limit): segments of all lanes and runs,
    /// earlier ones too, indexes, and quarantined files, which are never removed. When a put would exceed it, the
    /// segments that [`Options::eviction`] says are evicted first; a step of eviction, merging or compaction may exceed
    /// it by one segment meanwhile. Segments are sealed at a sixteenth of it at most. At least 1 MiB.
    #[must_use]
    pub fn max_disk_bytes(mut self, bytes: impl Into<Option<u64>>) -> Self {
        self.caps.disk_bytes = bytes.into();
        self
    }

    /// Maximum number of rows (default: `None`, no limit), as [`Options::max_disk_bytes`] limits bytes. Overwritten and
    /// deleted rows count until they are compacted; tombstones do not. At least 16.
    #[must_use]
    pub fn max_rows(mut self, rows: impl Into<Option<u64>>) -> Self {
        self.caps.rows = rows.into();
        self
    }

    /// Evicts segments whose last commit is older than this (default: `None`): at opening, and when rows are put, with a
    /// delay of up to a sixteenth of it. An active segment is sealed once its first commit is older than half of it.
    /// Not with [`Eviction::Stop`], which evicts nothing.
    #[must_use]
    pub fn max_age(mut self, age: impl Into<Option<Duration>>) -> Self {
        self.caps.age = age.into();
        self
    }

    /// What is evicted to keep the caps (default: [`Eviction::OldestFirst`]). Whole segments are evicted, by unlinking
    /// their files. Segments of lanes that another handle writes are left alone: that handle evicts them under its own
    /// caps. If nothing can be evicted, puts fail with [`Error::Full`].
    #[must_use]
    pub fn eviction(mut self, eviction: Eviction) -> Self {
        self.caps.eviction = eviction;
        self
    }

    /// The numbers of waiting rows and bytes at which they are written (default: 8,192 and 16 MiB).
    #[must_use]
    pub fn flush_every(mut self, rows: usize, bytes: usize) -> Self {
        (self.flush_rows, self.flush_bytes) = (rows, bytes);
        self
    }

    /// The seed of key hashes of a store that is created (default: random). For tests.
    #[doc(hidden)]
    #[must_use]
    pub fn hash_seed(mut self, seed: u64) -> Self {
        self.hash_seed = Some(seed);
        self
    }

    /// The options of a writer under its caps: segments are small against a cap, and writes small against a segment.
    pub(crate) fn under_caps(mut self) -> Self {
        if let Some(bytes) = self.caps.segment_bytes() {
            self.segment_bytes = self.segment_bytes.min(bytes);
            let write = usize::try_from(self.segment_bytes / 4).unwrap_or(usize::MAX).max(1);
            self.flush_bytes = self.flush_bytes.min(write);
        }
        if let Some(rows) = self.caps.segment_rows() {
            self.segment_rows = self.segment_rows.min(rows);
            self.flush_rows = self.flush_rows.min(rows as usize);
        }
        self
    }

    /// Fails if an option cannot be used.
    pub(crate) fn check(&self) -> Result<()> {
        check_store_as(self.store_as)?;
        check_share("compaction_live_share", self.compaction_live_share)?;
        self.caps.check()?;
        let numbers = [
            ("segment_bytes", self.segment_bytes),
            ("segment_rows", u64::from(self.segment_rows)),
            ("flush_every rows", self.flush_rows as u64),
            ("flush_every bytes", self.flush_bytes as u64),
            ("buffer_bytes", self.buffer_bytes as u64),
            ("max_value_bytes", self.max_value_bytes as u64),
        ];
        match numbers.iter().find(|(_, number)| *number == 0) {
            Some((name, _)) => Err(Error::invalid(format!("the option {name} is 0: give at least 1"))),
            None if self.hash_bits >= 64 => Err(Error::invalid("hash_bits is below 64")),
            None => Ok(()),
        }
    }
}
