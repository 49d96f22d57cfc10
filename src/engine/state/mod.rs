//! The state that all users of an open store share, divided by owner. The fields of each owner are private, and it
//! imports only rows and files.
//!
//! | owner | contents | changed by |
//! | --- | --- | --- |
//! | [`versions`] ([`loaded_run`], [`replaced`]) | runs and segments | seals, merges, compaction, following, opening |
//! | [`memtable`] | index of rows that no run covers ([`batches`]: their places) | `admit`, commits, runs |
//! | [`value_cache`] ([`byte_cache`], [`eviction`]) | decoded values, their epoch | `admit` (supersede), reads |
//! | [`registry`] | segment files: own, followed, damaged, foreign, missing | lanes, opening, following |
//! | [`live`] | how many keys are alive | `admit`, counting, opening |
//! | [`clock`] | the newest commit timestamp | commits, following |
//! | [`metrics`], [`compacting`], [`residency`] | counters; how far a compaction is; how much of the reads was in memory lately | everything |
//! | [`identity`], [`access`] | the store's identity; what a handle may do | opening, the first put |

pub(crate) mod access;
pub(crate) mod batches;
pub(crate) mod byte_cache;
pub(crate) mod clock;
pub(crate) mod compacting;
pub(crate) mod eviction;
pub(crate) mod identity;
pub(crate) mod live;
pub(crate) mod loaded_run;
pub(crate) mod memtable;
pub(crate) mod metrics;
pub(crate) mod registry;
pub(crate) mod replaced;
pub(crate) mod residency;
pub(crate) mod segments;
pub(crate) mod value_cache;
pub(crate) mod versions;
pub(crate) mod waste;

use std::path::Path;
use std::sync::Arc;

use self::metrics::Metrics;
use access::Access;
use clock::Clock;
use identity::Identity;
use live::LiveCount;
use memtable::Memtable;
use registry::Registry;
use residency::Residency;
use value_cache::ValueCache;
use versions::Versions;

use crate::engine::files::usage::Usage;
use crate::engine::options::Options;
use crate::error::Result;
use crate::io::Storage;
use crate::key::KeyHasher;
use crate::names::{self, SegmentName};
use crate::segment::writer::StoreIdentity;

/// The state of one open store in one process.
#[derive(Debug)]
pub(crate) struct State {
    storage: Arc<dyn Storage>,
    options: Options,
    identity: Identity,
    access: Access,
    versions: Versions,
    memtable: Memtable,
    value_cache: ValueCache,
    registry: Registry,
    live: LiveCount,
    clock: Clock,
    metrics: Metrics,
    residency: Residency,
}

impl State {
    /// An empty store.
    ///
    /// # Errors
    /// As [`Identity::new`].
    pub(crate) fn new(
        storage: Arc<dyn Storage>,
        options: Options,
        identity: StoreIdentity,
        read_only: bool,
    ) -> Result<Self> {
        Ok(Self {
            identity: Identity::new(identity)?,
            access: Access::new(read_only),
            versions: Versions::default(),
            memtable: Memtable::new(options.memtable_keys),
            value_cache: ValueCache::new(&options),
            registry: Registry::default(),
            live: LiveCount::default(),
            clock: Clock::new(options.clock),
            metrics: Metrics::new(&storage.describe(Path::new(""))),
            residency: Residency::default(),
            storage,
            options,
        })
    }

    /// How many keys the memtable may hold before they are merged. Each merge seals a segment, and opening takes
    /// O(segments), so a store of many keys uses up to four times the bound of the options.
    pub(crate) fn memtable_bound(&self) -> usize {
        const MOST: usize = 4;
        const RUN_KEYS_PER_MEMTABLE_KEY: u64 = 64;
        let least = self.options.memtable_keys.max(1);
        let version = self.versions.load();
        let in_runs = version.runs().iter().fold(0_u64, |keys, run| keys.saturating_add(run.run().keys()));
        let bound = usize::try_from(in_runs / RUN_KEYS_PER_MEMTABLE_KEY).unwrap_or(usize::MAX);
        bound.clamp(least, least.saturating_mul(MOST))
    }

    /// The bytes of the store's files. O(files), without a call of the system for each sealed segment.
    ///
    /// # Errors
    /// IO errors.
    pub(crate) fn usage(&self) -> Result<Usage> {
        let version = self.versions.load();
        Usage::of(self.storage(), |name| {
            let SegmentName::Sealed(id) = names::parse_segment(name) else { return None };
            version.segments().get(&id).map(|segment| segment.len_bytes)
        })
    }

    /// As [`Access::check_fork`].
    #[inline]
    pub(crate) fn check_fork(&self) -> Result<()> {
        self.access.check_fork()
    }

    /// The hash of keys.
    #[inline]
    pub(crate) fn hasher(&self) -> KeyHasher {
        self.identity.hasher()
    }

    #[inline]
    pub(crate) fn storage(&self) -> &dyn Storage {
        &*self.storage
    }

    #[inline]
    pub(crate) fn shared_storage(&self) -> &Arc<dyn Storage> {
        &self.storage
    }

    #[inline]
    pub(crate) fn options(&self) -> &Options {
        &self.options
    }

    #[inline]
    pub(crate) fn identity(&self) -> &Identity {
        &self.identity
    }

    #[inline]
    pub(crate) fn access(&self) -> &Access {
        &self.access
    }

    #[inline]
    pub(crate) fn versions(&self) -> &Versions {
        &self.versions
    }

    #[inline]
    pub(crate) fn memtable(&self) -> &Memtable {
        &self.memtable
    }

    #[inline]
    pub(crate) fn value_cache(&self) -> &ValueCache {
        &self.value_cache
    }

    #[inline]
    pub(crate) fn registry(&self) -> &Registry {
        &self.registry
    }

    #[inline]
    pub(crate) fn live(&self) -> &LiveCount {
        &self.live
    }

    #[inline]
    pub(crate) fn clock(&self) -> &Clock {
        &self.clock
    }

    #[inline]
    pub(crate) fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    #[inline]
    pub(crate) fn residency(&self) -> &Residency {
        &self.residency
    }
}
