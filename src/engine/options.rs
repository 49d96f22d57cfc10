//! Options: data, and whether it can be used.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::codec::Codec;
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::io::Durability;
use crate::schema::stored_dtype;
use crate::segment::batch::Verify;

/// Which lane a writer takes. A lane has one writer; a store has any number of lanes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Lane {
    /// This one, or [`Error::LaneBusy`].
    Number(u16),
    /// The first free one.
    Auto,
}

/// What opening does about damage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Recovery {
    /// Opens with whatever is whole, moves damaged files to `quarantine/`, and reports it.
    #[default]
    Quiet,
    /// Damage is an error, and nothing is changed. A torn tail is no damage.
    Strict,
}

/// What the value cache does when it is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum ValueCachePolicy {
    /// Evicts what was not used for the longest time.
    #[default]
    Lru,
    /// Takes nothing more. Right for repeated scans over more than fits (epochs): where LRU would evict every entry
    /// just before its next use, a fixed part of the scan always hits.
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
    pub(crate) compaction_live_share: f64,
    pub(crate) compaction_bytes_per_s: Option<u64>,
    pub(crate) allow_network: bool,
    pub(crate) create: bool,
    pub(crate) group_writable: bool,
    pub(crate) read_threads: usize,
    pub(crate) hash_bits: u8,
    pub(crate) hash_seed: Option<u64>,
    /// Microseconds since 1970.
    pub(crate) clock: fn() -> u64,
}

/// What [`crate::Store::compact`] is to do.
#[derive(Debug, Clone, PartialEq)]
pub struct Compaction {
    pub(crate) live_share: f64,
    pub(crate) join: bool,
    pub(crate) bytes_per_s: Option<u64>,
    pub(crate) dry_run: bool,
    pub(crate) patience: Duration,
    /// Whether a few rows of a segment tell whether all of it is looked at.
    pub(crate) by_sample: bool,
}

impl Default for Compaction {
    fn default() -> Self {
        Self {
            live_share: 0.95,
            join: true,
            bytes_per_s: None,
            dry_run: false,
            patience: Duration::from_secs(60),
            by_sample: false,
        }
    }
}

impl Compaction {
    /// Rewrites segments of which a twentieth of the rows counts no more, joins small ones, and takes the speed that it
    /// gets.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// What an open store does by itself.
    pub(crate) fn in_background(options: &Options) -> Self {
        Self {
            live_share: options.compaction_live_share,
            join: false,
            bytes_per_s: options.compaction_bytes_per_s,
            patience: Duration::ZERO,
            by_sample: true,
            ..Self::default()
        }
    }

    /// The share of its rows that counts, from 0 to 1, up to which a segment is rewritten. 1 rewrites every segment that
    /// has a row too many.
    #[must_use]
    pub fn live_share(mut self, share: f64) -> Self {
        self.live_share = share;
        self
    }

    /// Whether small segments of one structure are joined.
    #[must_use]
    pub fn join(mut self, join: bool) -> Self {
        self.join = join;
        self
    }

    /// How many bytes a second are written at the most; `None`: as many as the disk takes.
    #[must_use]
    pub fn bytes_per_s(mut self, bytes_per_s: Option<u64>) -> Self {
        self.bytes_per_s = bytes_per_s;
        self
    }

    /// Only says what would be rewritten and freed: nothing is changed.
    #[must_use]
    pub fn dry_run(mut self, dry_run: bool) -> Self {
        self.dry_run = dry_run;
        self
    }

    /// How long to wait for another process that compacts the store.
    #[must_use]
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// Refuses options that cannot be used.
    pub(crate) fn check(&self) -> Result<()> {
        check_share("live_share", self.live_share)
    }
}

fn check_share(name: &str, share: f64) -> Result<()> {
    if (0.0..=1.0).contains(&share) {
        return Ok(());
    }
    Err(Error::invalid(format!("the option {name} is {share}: give a share from 0 to 1")))
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
            compaction_live_share: 0.5,
            compaction_bytes_per_s: Some(64 << 20),
            allow_network: false,
            create: true,
            group_writable: false,
            read_threads: crate::engine::threads::default_threads(),
            hash_bits: 0,
            hash_seed: None,
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
        /// How tensors that are put from now on are packed (default: [`Codec::None`]). What is stored stays as it is.
        codec: Codec;
        /// Gives down-cast tensors back in the dtype in which they were put (default: as stored).
        restore_dtype: bool;
        /// Size in bytes at which a segment is sealed (default: 256 MiB).
        segment_bytes: u64;
        /// Rows at which a segment is sealed (default: 4,194,304).
        segment_rows: u32;
        /// About how many keys the memtable holds before it is merged to a run on disk (default:
        /// 1,048,576, which take 36 MiB); up to four times as many in a store of more than 64 times as many. Puts wait
        /// for the merge at twice as many, but never below 262,144.
        memtable_keys: usize;
        /// Time after which waiting rows are written even if they are few (default: 100 ms).
        flush_interval: Duration;
        /// Bytes that may wait to be written before `put` blocks (default: 256 MiB).
        buffer_bytes: usize;
        /// How durably `flush`, sealing and `close` write (default: [`Durability::SyncData`]).
        durability: Durability;
        /// Does the writer thread's work on the caller's thread, in the same steps (default: off). For tests.
        synchronous: bool;
        /// Largest decoded value in bytes that is read or put (default: 1 GiB).
        max_value_bytes: usize;
        /// Bytes of decoded values kept in memory (default: 0, no value cache). The page cache already keeps what was read;
        /// a value cache pays for packed stores.
        value_cache_bytes: usize;
        /// How the value cache makes room (default: [`ValueCachePolicy::Lru`]).
        value_cache_policy: ValueCachePolicy;
        /// When values enter the value cache (default: [`ValueCacheFill::OnRead`]).
        value_cache_fill: ValueCacheFill;
        /// Shortest time between two looks for what other writers committed, made when a key is missing
        /// (default: 1 s).
        refresh_interval: Duration;
        /// The share of its rows that counts, up to which a sealed segment is compacted in the background, when the store
        /// is at rest and after merges (default: 0.5; 0 turns that off). Closing compacts stores of up to 64 MiB.
        compaction_live_share: f64;
        /// How many bytes a second compaction in the background writes at the most (default: 64 MiB; `None`: as many as
        /// the disk takes).
        compaction_bytes_per_s: Option<u64>;
        /// Allows writing on network file systems, whose locks and maps may not hold what they promise
        /// (default: off).
        allow_network: bool;
        /// Most threads that share one call of `get_batch_into`, the caller's among them (default: as many as there are
        /// processors, at most 4; 1 for none but the caller's). Only calls of 8 MiB and more are shared.
        read_threads: usize;
        /// Keeps only the top bits of key hashes, to make collisions common. For tests.
        #[doc(hidden)]
        hash_bits: u8;
        /// The clock that commit timestamps come from, in microseconds since 1970 (default: the system's). For tests.
        #[doc(hidden)]
        clock: fn() -> u64;
        /// Makes the store if there is none (default: on). Where it is off, opening a store that does not exist is an
        /// error of kind `NotFound`, and nothing is made.
        create: bool;
        /// Lets the group of the store's folder read and write all files and folders that are made in it, whatever the
        /// process's umask is, and makes new files there belong to that group (the setgid bit). Where it is off, the
        /// default, a file gets these rights if the folder it is made in has them for the same group, so that a shared
        /// folder stays shared. On Unix.
        group_writable: bool;
    }

    /// Down-casts wider float tensors that are put from now on to this float dtype (default: off). Lossy; says so in
    /// the segment's schema.
    #[must_use]
    pub fn store_as(mut self, dtype: impl Into<Option<Dtype>>) -> Self {
        self.store_as = dtype.into();
        self
    }

    /// Rows and bytes that are gathered before they are written (default: 8,192 and 16 MiB).
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

    /// Fails if an option cannot be used.
    pub(crate) fn check(&self) -> Result<()> {
        if let Some(dtype) = self.store_as
            && !matches!(dtype, Dtype::F16 | Dtype::BF16 | Dtype::F32)
        {
            return Err(Error::invalid(format!("cannot store as {dtype}: choose F16, BF16 or F32")));
        }
        check_share("compaction_live_share", self.compaction_live_share)?;
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
