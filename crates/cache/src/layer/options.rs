//! How a module is wrapped.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tensorcask::{Codec, Dtype, Options, ValueCacheFill, ValueCachePolicy};

use crate::error::{Result, invalid};
use crate::framework::Framework;
use crate::keys::ids::Ids;
use crate::keys::key::Content;
use crate::rank::Rank;
use crate::store::space::Place;
use crate::values::input::Inputs;
use crate::values::output::Lists;
use crate::values::tree::Ragged;

/// What the fingerprint of the weights does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Weights {
    /// It is part of the identity: other weights never meet these outputs. Weights that change while the module is
    /// wrapped are noticed at the next call, as far as the tensor library tells, and after a call of the handle in training
    /// mode. After a write that it does not tell, call [`Cached::weights_changed`](crate::layer::Cached::weights_changed).
    ///
    /// candle tells by bytes alone: see `Variables` of `tensorcask-candle`.
    ///
    /// `tch` tells by its count of writes, by gradients (steps of optimizers), and by storages (`set_data`). Some changes
    /// leave none of these signs: a training pass of batch normalisation behind the handle, a `set_data` to other elements
    /// of the same storage, and a step of libtorch's SGD that another thread makes or whose graph is older than the call
    /// before. Of modules of up to 64 variables, the next call notices these too. Of larger ones a later call may: each
    /// looks closely at one running statistic, at four more for every further sample, and at one other variable for every
    /// eight samples, in turn. Writes through `Tensor::data` are noticed where they reach one of the places that a close
    /// look reads: all of up to 256 bytes, else eight places of eight bytes.
    #[default]
    Check,
    /// It is recorded but does not count: outputs of other weights are served, with a warning
    /// ([`Cached::warnings`](crate::layer::Cached::warnings)).
    Ignore,
}

/// Computing a share of the hits again, and comparing.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Verification {
    /// The share of hits, 0 to 1.
    pub rate: f64,
    /// Relative tolerance.
    pub relative: f64,
    /// Absolute tolerance.
    pub absolute: f64,
    /// Whether a difference is an error; otherwise a warning.
    pub fails: bool,
}

impl Verification {
    /// This share of hits, with tolerances that allow for sums in another order (1e-3 relative, 1e-5 absolute); a
    /// difference is an error.
    #[must_use]
    pub const fn rate(rate: f64) -> Self {
        Self { rate, relative: 1e-3, absolute: 1e-5, fails: true }
    }
}

/// What a store that fails does to a call: a disk that is full, broken or gone.
///
/// Either way the store is opened again by itself, at the first output to be kept when a second has passed since it
/// failed, then when two have, and so on up to thirty; and at once when a module with the same identity is wrapped
/// anew. Outputs that the writer had not written are computed again. [`Cached::flush`](crate::layer::Cached::flush) and
/// [`Cached::close`](crate::layer::Cached::close) always return the failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnStoreError {
    /// The call returns the error.
    Fail,
    /// The call warns once ([`Cached::warnings`](crate::layer::Cached::warnings)), computes what cannot be read, and goes on without
    /// keeping it ([`Counts::not_kept`](crate::Counts::not_kept)).
    #[default]
    WarnAndCompute,
}

/// What outputs in memory may take, unless the options say.
const MEMORY_BYTES: u64 = 1 << 30;

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
    /// Outputs kept in `place`.
    #[must_use]
    pub fn new(place: Place) -> Self {
        // A miss costs a computation, so looking for what other ranks committed is cheap by comparison.
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
            rank: None,
            writer_rank: None,
            engine,
        }
    }

    /// Outputs of `module_id` kept in `folder`, for good.
    #[must_use]
    pub fn in_folder(folder: impl Into<PathBuf>, module_id: impl Into<String>) -> Self {
        Self::new(Place::Folder(folder.into())).module_id(module_id)
    }

    /// Outputs kept in memory.
    #[must_use]
    pub fn in_memory() -> Self {
        Self::new(Place::Memory)
    }

    /// Outputs kept in a temporary folder that is removed with the last handle.
    #[must_use]
    pub fn temporary() -> Self {
        Self::new(Place::Temporary(None))
    }

    setters! {
        /// Refuses modules with variables that require gradients, in training and in evaluation (default: on).
        enforce_stateless: bool;
        /// Takes the name of a module's type and its `Debug`, which shows its configuration, into the identity
        /// (default: on). What differs from process to process is left out: values of variables, addresses, devices, the
        /// order of hash maps. Off, only weights, `version`, `argument`s and `instance` tell modules apart: for modules
        /// whose `Debug` shows counters or times.
        check_structure: bool;
        /// What other weights do to the identity (default: [`Weights::Check`]).
        weights: Weights;
        /// How much of each sample a content key covers (default: all of it).
        content: Content;
        /// What becomes of tensors whose shapes differ between samples (default: a list).
        ragged: Ragged;
        /// What the lists are that the module gives (default: outputs of the whole batch).
        lists: Lists;
        /// Computes damaged rows again, with a warning, rather than failing (default: on).
        recompute_damaged: bool;
        /// What a full or broken disk does to a call (default: it warns once, and computes without keeping).
        on_store_error: OnStoreError;
        /// Accepts inputs that require gradients while gradients are on, as if they were detached: no gradient reaches
        /// what made them, on a miss as on a hit (default: off, they are refused).
        allow_grad_inputs: bool;
        /// Only reads the outputs that are kept in the folder, and computes what is missing without keeping it (default:
        /// off; a folder that cannot be written to is opened in this way by itself, with a warning).
        read_only: bool;
        /// Bytes of outputs held in memory for each kind of key (default: 0; the system's page cache holds what was
        /// read). Stops when full. Of [`CacheOptions::in_memory`], what all outputs may take (default there: 1 GiB). With a
        /// [`CacheOptions::memory_device`], of tensors on that device.
        memory_bytes: usize;
    }

    /// The folder that outputs are kept in; wrapped modules with the same id and identity share them.
    #[must_use]
    pub fn module_id(mut self, module_id: impl Into<String>) -> Self {
        self.module_id = Some(module_id.into());
        self
    }

    /// A version of the module's code: another version never meets these outputs. Closures ask for one where outputs are
    /// kept in a folder, and so do modules with functions in them: nothing else tells their code.
    #[must_use]
    pub fn version(mut self, version: impl Into<String>) -> Self {
        self.version = Some(version.into());
        self
    }

    /// Something that the module was constructed with: another value never meets these outputs.
    #[must_use]
    pub fn argument(mut self, name: impl Into<String>, value: impl ToString) -> Self {
        self.arguments.insert(name.into(), value.to_string());
        self
    }

    /// Weights, or anything else of many bytes, that the outputs depend on: other bytes never meet these outputs. What is
    /// kept of them is a 128-bit hash. For computations that do not show their variables.
    #[must_use]
    pub fn fingerprint(mut self, name: impl Into<String>, bytes: &[u8]) -> Self {
        self.digests.insert(name.into(), format!("{:032x}", xxhash_rust::xxh3::xxh3_128(bytes)));
        self
    }

    /// A name for this instance: instances of other names do not share outputs, though everything else is the same.
    #[must_use]
    pub fn instance(mut self, instance: impl Into<String>) -> Self {
        self.instance = instance.into();
        self
    }

    /// Derives the ids from the inputs of each call that passes none.
    #[must_use]
    pub fn ids_from(mut self, ids: impl Fn(&Inputs<F>) -> Result<Ids> + Send + Sync + 'static) -> Self {
        self.ids_from = Some(Arc::new(ids));
        self
    }

    /// The options that only this tensor library has, changed by `change`.
    #[must_use]
    pub fn settings(mut self, change: impl FnOnce(F::Settings) -> F::Settings) -> Self {
        self.settings = change(self.settings);
        self
    }

    /// The device that results come back on (default: that of the first input).
    #[must_use]
    pub fn map_location(mut self, device: impl Into<Option<F::Device>>) -> Self {
        self.map_location = device.into();
        self
    }

    /// Computes a share of the hits again and compares (default: off).
    #[must_use]
    pub fn verify(mut self, verification: impl Into<Option<Verification>>) -> Self {
        self.verification = verification.into();
        self
    }

    /// The device that [`CacheOptions::memory_bytes`] of single-tensor outputs are held on (default: the CPU, as the
    /// store keeps them). Not with [`Ragged::Pad`], whose rows depend on the batch.
    #[must_use]
    pub fn memory_device(mut self, device: impl Into<Option<F::Device>>) -> Self {
        self.memory_device = device.into();
        self
    }

    /// Bytes that the files of the module may take: of all its identities, ranks and indexes, by their lengths, and what
    /// waits to be written; in memory, the outputs (default: no cap). At the cap nothing more is kept and what is kept
    /// stays, so that each epoch and each run finds the same samples. What other processes write at the same time is seen
    /// a little later.
    #[must_use]
    pub fn disk_bytes(mut self, bytes: impl Into<Option<u64>>) -> Self {
        self.disk_bytes = bytes.into();
        self
    }

    /// How outputs are packed on disk (default: not).
    #[must_use]
    pub fn codec(mut self, codec: Codec) -> Self {
        self.engine = self.engine.codec(codec);
        self
    }

    /// Keeps wider floats as this dtype: F16, BF16 or F32 (default: as they are). Results come back in it, or, with
    /// [`CacheOptions::restore_dtype`], rounded through it; on a miss as on a hit.
    #[must_use]
    pub fn cache_dtype(mut self, dtype: impl Into<Option<Dtype>>) -> Self {
        self.engine = self.engine.store_as(dtype);
        self
    }

    /// Gives down-cast results back in the dtype of the module (default: off).
    #[must_use]
    pub fn restore_dtype(mut self, restore_dtype: bool) -> Self {
        self.engine = self.engine.restore_dtype(restore_dtype);
        self
    }

    /// The process of a distributed job that this is (default: [`Rank::from_env`]).
    #[must_use]
    pub fn rank(mut self, rank: Rank) -> Self {
        self.rank = Some(rank);
        self
    }

    /// The only rank that writes; the others read, and compute what is missing without keeping it (default: all
    /// ranks write, each in a lane of its own).
    #[must_use]
    pub fn writer_rank(mut self, rank: impl Into<Option<u16>>) -> Self {
        self.writer_rank = rank.into();
        self
    }

    /// The store's own options, changed by `change`: segment sizes, durability, verification of checksums.
    #[must_use]
    pub fn engine(mut self, change: impl FnOnce(Options) -> Options) -> Self {
        self.engine = change(self.engine);
        self
    }

    /// Whether the configuration of a module counts: see [`CacheOptions::check_structure`].
    #[must_use]
    pub const fn checks_structure(&self) -> bool {
        self.check_structure
    }

    /// Whether weights count: see [`CacheOptions::weights`].
    #[must_use]
    pub fn checks_weights(&self) -> bool {
        self.weights == Weights::Check
    }

    /// Bytes that may be kept.
    pub(crate) fn cap_bytes(&self) -> Option<u64> {
        if self.place != Place::Memory {
            return self.disk_bytes;
        }
        let given = if self.memory_device.is_some() { 0 } else { self.memory_bytes as u64 };
        let bound = if given == 0 { MEMORY_BYTES } else { given };
        // A larger cap that was asked for by name counts, unless both were.
        Some(self.disk_bytes.map_or(bound, |cap| if given == 0 { cap } else { cap.min(given) }))
    }

    /// The store's options with what the layer's own options say.
    pub(crate) fn engine_options(&self) -> Options {
        let options = self.engine.clone();
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
        if let Some(Verification { rate, relative, absolute, .. }) = self.verification
            && !((0.0..=1.0).contains(&rate) && relative >= 0.0 && absolute >= 0.0)
        {
            return Err(invalid(format!(
                "a verification rate of {rate} with tolerances {relative} and {absolute}: the rate is between 0 and \
                 1, tolerances are not negative"
            )));
        }
        if self.memory_device.is_some() && self.memory_bytes == 0 {
            return Err(invalid("a memory_device was given without memory_bytes: say how much it may hold"));
        }
        Ok(())
    }
}
