//! Options for wrapping a module.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tensorcask::{Codec, Dtype, Eviction, Options, ValueCacheFill, ValueCachePolicy};

use crate::error::{Result, invalid};
use crate::framework::Framework;
use crate::keys::ids::Ids;
use crate::keys::key::Content;
use crate::rank::Rank;
use crate::store::space::Place;
use crate::store::used::{Cap, DiskScope};
use crate::values::input::Inputs;
use crate::values::output::Lists;
use crate::values::tree::Ragged;

/// How the fingerprint of the weights is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Weights {
    /// The fingerprint is part of the identity: modules with other weights do not share outputs. The next call detects
    /// weights that changed while the module is wrapped, as far as the tensor library reports changes; it also detects
    /// changes by a call of the handle in training mode. After a write that the library does not report, call
    /// [`Cached::weights_changed`](crate::layer::Cached::weights_changed).
    ///
    /// For candle, changes are detected by comparing bytes: see `Variables` of `tensorcask-candle`.
    ///
    /// For `tch`, they are detected by its count of writes, by gradients (steps of optimizers), and by storages
    /// (`set_data`). Some changes leave none of these signs: a training pass of batch normalisation outside of the
    /// handle, a `set_data` to other elements of the same storage, and a step of libtorch's SGD that another thread
    /// makes or whose graph is older than the previous call. For modules of up to 64 variables, the next call detects
    /// these too. For larger modules a later call may: each call inspects one running statistic, four more for every
    /// further sample, and one other variable for every eight samples, in turn. A write through `Tensor::data` is
    /// detected if it changes a byte that an inspection reads: all bytes of variables of up to 256 bytes, else eight
    /// ranges of eight bytes.
    #[default]
    Check,
    /// The fingerprint is recorded but ignored: outputs of other weights are served, with a warning
    /// ([`Cached::warnings`](crate::layer::Cached::warnings)).
    Ignore,
}

/// Verification: a share of the hits is recomputed and compared.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Verification {
    /// The share of hits, from 0 to 1.
    pub rate: f64,
    /// Relative tolerance.
    pub relative: f64,
    /// Absolute tolerance.
    pub absolute: f64,
    /// Whether a difference is an error; otherwise it is a warning.
    pub fails: bool,
}

impl Verification {
    /// Verifies this share of hits. A difference is an error. The tolerances (1e-3 relative, 1e-5 absolute) allow for
    /// sums in another order.
    #[must_use]
    pub const fn rate(rate: f64) -> Self {
        Self { rate, relative: 1e-3, absolute: 1e-5, fails: true }
    }

    /// Refuses rates and tolerances without meaning.
    ///
    /// # Errors
    /// [`crate::Error::Invalid`].
    pub(crate) fn check(&self) -> Result<()> {
        let Self { rate, relative, absolute, .. } = self;
        if (0.0..=1.0).contains(rate) && *relative >= 0.0 && *absolute >= 0.0 {
            return Ok(());
        }
        Err(invalid(format!(
            "a verification rate of {rate} with tolerances {relative} and {absolute}: the rate is between 0 and 1, \
             tolerances are not negative"
        )))
    }
}

/// How a call handles a store that fails, such as on a full or broken disk.
///
/// Either way the store is reopened automatically, when an output has to be kept and one second has passed since the
/// failure, then after two seconds, and so on up to thirty. Wrapping a module with the same identity reopens it at
/// once. Outputs that had not been written are computed again. [`Cached::flush`](crate::layer::Cached::flush) and
/// [`Cached::close`](crate::layer::Cached::close) always return the failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnStoreError {
    /// The call returns the error.
    Fail,
    /// The call warns once ([`Cached::warnings`](crate::layer::Cached::warnings)), computes outputs that cannot be
    /// read, and continues without keeping them ([`Counts::not_kept`](crate::Counts::not_kept)).
    #[default]
    WarnAndCompute,
}

/// The default limit for outputs in memory.
const MEMORY_BYTES: u64 = 1 << 30;

/// Segments under a limit, if they are evicted, and their sizes.
const SEGMENTS: u64 = 16;
const SEGMENT_BYTES: std::ops::Range<u64> = 64 << 10..256 << 20;

pub(crate) type IdsFrom<F> = Arc<dyn Fn(&Inputs<F>) -> Result<Ids> + Send + Sync>;

/// Options of a [`Cached`](crate::layer::Cached).
///
/// ```
/// # fn main() -> tensorcask_cache::Result<()> {
/// # let dir = tempfile::tempdir().unwrap();
/// use tensorcask::Tensor;
/// use tensorcask_cache::CacheOptions;
///
/// let square = CacheOptions::in_folder(dir.path(), "square").version("1").wrap_fn(|x: &Tensor| {
///     let squares: Vec<f32> = x.to_vec::<f32>()?.iter().map(|x| x * x).collect();
///     Tensor::from_slice(x.shape(), &squares)
/// })?;
/// let x = Tensor::from_slice(&[3, 1], &[1.0_f32, 2.0, 3.0])?;
/// let first = square.forward(&x)?.into_tensor()?;
/// let second = square.forward(&x)?.into_tensor()?;
/// assert_eq!(first, second);
/// assert_eq!((square.counts().misses, square.counts().hits), (3, 3));
/// # square.close()
/// # }
/// ```
#[derive(Clone)]
pub struct CacheOptions<F: Framework> {
    pub(crate) place: Place,
    pub(crate) module_id: Option<String>,
    pub(crate) version: Option<String>,
    pub(crate) arguments: BTreeMap<String, String>,
    pub(crate) instance: String,
    pub(crate) digests: BTreeMap<String, String>,
    pub(crate) weights: Weights,
    pub(crate) enforce_stateless: bool,
    pub(crate) check_structure: bool,
    pub(crate) content: Content,
    pub(crate) ids_from: Option<IdsFrom<F>>,
    pub(crate) ragged: Ragged,
    pub(crate) lists: Lists,
    pub(crate) map_location: Option<F::Device>,
    pub(crate) settings: F::Settings,
    pub(crate) verification: Option<Verification>,
    pub(crate) recompute_damaged: bool,
    pub(crate) on_store_error: OnStoreError,
    pub(crate) allow_grad_inputs: bool,
    pub(crate) read_only: bool,
    pub(crate) memory_bytes: usize,
    pub(crate) memory_device: Option<F::Device>,
    pub(crate) disk_bytes: Option<u64>,
    pub(crate) disk_scope: DiskScope,
    pub(crate) eviction: Eviction,
    pub(crate) rank: Option<Rank>,
    pub(crate) writer_rank: Option<u16>,
    pub(crate) engine: Options,
}

impl<F: Framework> fmt::Debug for CacheOptions<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut f = f.debug_struct("CacheOptions");
        f.field("place", &self.place).field("module_id", &self.module_id).field("version", &self.version);
        f.field("arguments", &self.arguments).field("weights", &self.weights).finish_non_exhaustive()
    }
}

macro_rules! setters {
    ($($(#[$doc:meta])* $name:ident: $type:ty;)*) => {
        $($(#[$doc])* #[must_use] pub fn $name(mut self, $name: $type) -> Self { self.$name = $name; self })*
    };
}

impl<F: Framework> CacheOptions<F> {
    /// Keeps outputs in `place`.
    #[must_use]
    pub fn new(place: Place) -> Self {
        // A miss costs a computation, so that checking for commits of other ranks is comparatively cheap.
        let engine = Options::new().refresh_interval(Duration::ZERO);
        Self {
            place,
            module_id: None,
            version: None,
            arguments: BTreeMap::new(),
            instance: String::new(),
            digests: BTreeMap::new(),
            weights: Weights::default(),
            enforce_stateless: true,
            check_structure: true,
            content: Content::default(),
            ids_from: None,
            ragged: Ragged::default(),
            lists: Lists::default(),
            map_location: None,
            settings: F::Settings::default(),
            verification: None,
            recompute_damaged: true,
            on_store_error: OnStoreError::default(),
            allow_grad_inputs: false,
            read_only: false,
            memory_bytes: 0,
            memory_device: None,
            disk_bytes: None,
            disk_scope: DiskScope::default(),
            eviction: Eviction::Stop,
            rank: None,
            writer_rank: None,
            engine,
        }
    }

    /// Keeps the outputs of `module_id` in `folder`.
    #[must_use]
    pub fn in_folder(folder: impl Into<PathBuf>, module_id: impl Into<String>) -> Self {
        Self::new(Place::Folder(folder.into())).module_id(module_id)
    }

    /// Keeps outputs in memory.
    #[must_use]
    pub fn in_memory() -> Self {
        Self::new(Place::Memory)
    }

    /// Keeps outputs in a temporary folder that is removed with the last handle.
    #[must_use]
    pub fn temporary() -> Self {
        Self::new(Place::Temporary(None))
    }

    setters! {
        /// Refuses modules with variables that require gradients, both in training and evaluation mode (default: on).
        enforce_stateless: bool;
        /// Includes the name of a module's type and its `Debug` output, which shows its configuration, in the identity
        /// (default: on). Parts that differ between processes are left out: values of variables, addresses, devices,
        /// the order of hash maps. If off, only weights, `version`, `argument`s and `instance` tell modules apart. Turn
        /// it off for modules whose `Debug` output shows counters or times.
        check_structure: bool;
        /// How weights count for the identity (default: [`Weights::Check`]).
        weights: Weights;
        /// How much of each sample a content key covers (default: all of it).
        content: Content;
        /// How tensors whose shapes differ between samples are returned (default: as a list).
        ragged: Ragged;
        /// The meaning of lists in the module's output (default: outputs of the whole batch).
        lists: Lists;
        /// Recomputes damaged rows, with a warning, instead of returning an error (default: on).
        recompute_damaged: bool;
        /// How a call handles a full or broken disk (default: it warns once, and computes without keeping).
        on_store_error: OnStoreError;
        /// Accepts inputs that require gradients while gradients are recorded, and treats them as detached: no gradient
        /// reaches the model that produced them, neither on a miss nor on a hit (default: off, which refuses them).
        allow_grad_inputs: bool;
        /// Only reads the outputs in the folder, and computes missing ones without keeping them (default: off; a folder
        /// that is not writable is opened read only automatically, with a warning).
        read_only: bool;
        /// The limit of outputs held in memory, in bytes per kind of key (default: 0, as the page cache holds rows that
        /// were read). At the limit no more are added. For [`CacheOptions::in_memory`], the limit of all outputs
        /// (default: 1 GiB). With a [`CacheOptions::memory_device`], the limit of tensors on that device.
        memory_bytes: usize;
    }

    /// The name of the folder that outputs are kept in. Wrapped modules with the same id and identity share outputs.
    #[must_use]
    pub fn module_id(mut self, module_id: impl Into<String>) -> Self {
        self.module_id = Some(module_id.into());
        self
    }

    /// The version of the module's code. Modules with different versions do not share outputs. Closures whose outputs
    /// are kept in a folder require a version, and so do modules that contain functions, as nothing else identifies
    /// their code.
    #[must_use]
    pub fn version(mut self, version: impl Into<String>) -> Self {
        self.version = Some(version.into());
        self
    }

    /// A value that the module was constructed with. Modules with different values do not share outputs.
    #[must_use]
    pub fn argument(mut self, name: impl Into<String>, value: impl ToString) -> Self {
        self.arguments.insert(name.into(), value.to_string());
        self
    }

    /// Weights or other large data that the outputs depend on, for computations without variables. Modules with
    /// different bytes do not share outputs. Only a 128-bit hash of the bytes is kept.
    #[must_use]
    pub fn fingerprint(mut self, name: impl Into<String>, bytes: &[u8]) -> Self {
        self.digests.insert(name.into(), format!("{:032x}", xxhash_rust::xxh3::xxh3_128(bytes)));
        self
    }

    /// A name for this instance. Instances with different names do not share outputs, even if everything else is the
    /// same.
    #[must_use]
    pub fn instance(mut self, instance: impl Into<String>) -> Self {
        self.instance = instance.into();
        self
    }

    /// A function that derives the ids from the inputs, for calls without ids.
    #[must_use]
    pub fn ids_from(mut self, ids: impl Fn(&Inputs<F>) -> Result<Ids> + Send + Sync + 'static) -> Self {
        self.ids_from = Some(Arc::new(ids));
        self
    }

    /// Changes the options that are specific to the tensor library.
    #[must_use]
    pub fn settings(mut self, change: impl FnOnce(F::Settings) -> F::Settings) -> Self {
        self.settings = change(self.settings);
        self
    }

    /// The device of results (default: that of the first input).
    #[must_use]
    pub fn map_location(mut self, device: impl Into<Option<F::Device>>) -> Self {
        self.map_location = device.into();
        self
    }

    /// Recomputes a share of the hits and compares (default: off).
    #[must_use]
    pub fn verify(mut self, verification: impl Into<Option<Verification>>) -> Self {
        self.verification = verification.into();
        self
    }

    /// The device that holds up to [`CacheOptions::memory_bytes`] of single-tensor outputs (default: the CPU, in the
    /// store's format). Cannot be combined with [`Ragged::Pad`], whose rows depend on the batch.
    #[must_use]
    pub fn memory_device(mut self, device: impl Into<Option<F::Device>>) -> Self {
        self.memory_device = device.into();
        self
    }

    /// The limit of the module's files in bytes (default: none). It covers all its identities, unless
    /// [`CacheOptions::disk_scope`] says otherwise, ranks and indexes, by file length, and rows that are not yet
    /// written; in memory, the outputs. At the limit no more outputs are kept and none are removed, so that each epoch
    /// and each run finds the same samples, unless [`CacheOptions::eviction`] says otherwise. Writes of other processes
    /// are counted with a delay.
    #[must_use]
    pub fn disk_bytes(mut self, bytes: impl Into<Option<u64>>) -> Self {
        self.disk_bytes = bytes.into();
        self
    }

    /// What [`CacheOptions::disk_bytes`] limits: the files of all identities of the module id, or of the one that is
    /// used (default: all).
    #[must_use]
    pub fn disk_scope(mut self, scope: DiskScope) -> Self {
        self.disk_scope = scope;
        self
    }

    /// What is removed when [`CacheOptions::disk_bytes`] is reached (default: [`Eviction::Stop`], nothing). Otherwise
    /// identities that nobody has open go first, the least recently used one before the others, if the limit covers
    /// them; then whole segments of the outputs of the identity that is used, those of other ranks excepted. Reading
    /// an identity does not count as use. For folders only. Only an epoch that fits under the limit hits.
    #[must_use]
    pub fn eviction(mut self, eviction: Eviction) -> Self {
        self.eviction = eviction;
        self
    }

    /// The codec that packs outputs on disk (default: none).
    #[must_use]
    pub fn codec(mut self, codec: Codec) -> Self {
        self.engine = self.engine.codec(codec);
        self
    }

    /// Keeps wider floats as this dtype: F16, BF16 or F32 (default: unchanged). On a miss as on a hit, results have
    /// this dtype, or with [`CacheOptions::restore_dtype`] the module's dtype, rounded through it.
    #[must_use]
    pub fn cache_dtype(mut self, dtype: impl Into<Option<Dtype>>) -> Self {
        self.engine = self.engine.store_as(dtype);
        self
    }

    /// Converts down-cast results back to the dtype of the module (default: off).
    #[must_use]
    pub fn restore_dtype(mut self, restore_dtype: bool) -> Self {
        self.engine = self.engine.restore_dtype(restore_dtype);
        self
    }

    /// The rank of this process in a distributed job (default: [`Rank::from_env`]).
    #[must_use]
    pub fn rank(mut self, rank: Rank) -> Self {
        self.rank = Some(rank);
        self
    }

    /// The only rank that writes. The others read, and compute missing outputs without keeping them (default: all ranks
    /// write, each in its own lane).
    #[must_use]
    pub fn writer_rank(mut self, rank: impl Into<Option<u16>>) -> Self {
        self.writer_rank = rank.into();
        self
    }

    /// How long a call waits in all for other processes that compute the same samples, before it computes them too
    /// (default: 30 s; zero: processes do not wait for each other). Give more than a batch takes to compute. If a
    /// process ends, others continue at once. See [`Options::lease_timeout`].
    #[must_use]
    pub fn lease_timeout(mut self, time: Duration) -> Self {
        self.engine = self.engine.lease_timeout(time);
        self
    }

    /// Changes the store's own options: segment sizes, durability level, verification of checksums.
    #[must_use]
    pub fn engine(mut self, change: impl FnOnce(Options) -> Options) -> Self {
        self.engine = change(self.engine);
        self
    }

    /// Whether the configuration of a module is part of the identity: see [`CacheOptions::check_structure`].
    #[must_use]
    pub const fn checks_structure(&self) -> bool {
        self.check_structure
    }

    /// Whether weights are part of the identity: see [`CacheOptions::weights`].
    #[must_use]
    pub fn checks_weights(&self) -> bool {
        self.weights == Weights::Check
    }

    /// The limit of kept bytes, and how it is kept.
    pub(crate) fn cap(&self) -> Cap {
        Cap { bytes: self.cap_bytes(), scope: self.disk_scope, eviction: self.eviction }
    }

    fn cap_bytes(&self) -> Option<u64> {
        if self.place != Place::Memory {
            return self.disk_bytes;
        }
        let given = if self.memory_device.is_some() { 0 } else { self.memory_bytes as u64 };
        let bound = if given == 0 { MEMORY_BYTES } else { given };
        // `disk_bytes` replaces the default; of two explicit limits the smaller one counts.
        Some(self.disk_bytes.map_or(bound, |cap| if given == 0 { cap } else { cap.min(given) }))
    }

    /// The store's options, adjusted to the options of the layer.
    pub(crate) fn engine_options(&self) -> Options {
        let mut options = self.engine.clone();
        // Reads are only counted for this order, and small segments make evictions small.
        options = options.eviction(self.eviction);
        if let Some(cap) = self.disk_bytes.filter(|_| self.eviction != Eviction::Stop) {
            options = options.segment_bytes((cap / SEGMENTS).clamp(SEGMENT_BYTES.start, SEGMENT_BYTES.end));
        }
        if self.memory_bytes == 0 || self.memory_device.is_some() || self.place == Place::Memory {
            return options;
        }
        options
            .value_cache_bytes(self.memory_bytes)
            .value_cache_policy(ValueCachePolicy::StopWhenFull)
            .value_cache_fill(ValueCacheFill::OnReadAndWrite)
    }

    pub(crate) fn check(&self, rank: Rank) -> Result<()> {
        if let Some(writer) = self.writer_rank.filter(|writer| *writer >= rank.world_size) {
            return Err(invalid(format!("rank {writer} is to write, but there are {} processes", rank.world_size)));
        }
        F::check_settings(&self.settings)?;
        self.verification.as_ref().map_or(Ok(()), Verification::check)?;
        if self.eviction != Eviction::Stop && self.place == Place::Memory {
            return Err(invalid("outputs in memory are not evicted: keep them in a folder, or leave out `eviction`"));
        }
        if self.memory_device.is_some() && self.memory_bytes == 0 {
            return Err(invalid("a memory_device was given without memory_bytes: say how much it may hold"));
        }
        Ok(())
    }
}
