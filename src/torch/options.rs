//! How a module is wrapped.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tch::{CModule, Device, Tensor, nn};

use super::cache::CachedModule;
use super::error::invalid;
use super::failing::OnStoreError;
use super::fingerprint::Variables;
use super::input::Inputs;
use super::key::{Content, Ids};
use super::module::{Compute, OfInputs, OfModule, OfModuleT, OfScript, OfTensor, WithVariables};
use super::output::{IntoOutput, Lists, Output};
use super::rank::Rank;
use super::space::Place;
use super::structure::Structure;
use super::tree::Ragged;
use crate::codec::Codec;
use crate::dtype::Dtype;
use crate::engine::options::{HotFill, HotPolicy, Options};
use crate::error::Result;

/// What the fingerprint of the weights does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Weights {
    /// It is part of the identity: other weights never meet these outputs. Weights that change while the module is
    /// wrapped are noticed at the next call: by libtorch's count of writes, by their gradients (optimizers), by their
    /// storage (`set_data`), and after a call of the handle in training mode.
    ///
    /// Two kinds of change are not counted: a training pass of batch normalisation behind the handle, and a `set_data`
    /// to other elements of the same storage. Of modules of up to 64 variables the next call notices them. Of
    /// larger ones a later call may, since each looks closely at four running statistics a sample and at half as many
    /// other variables as it has samples, in turn. Writes through `Tensor::data` are noticed where they reach one of the places that a close look reads: all
    /// of up to 256 bytes, else eight places of eight bytes. Call [`CachedModule::weights_changed`] after such writes.
    #[default]
    Check,
    /// It is recorded but does not count: outputs of other weights are served, with a warning
    /// ([`CachedModule::warnings`]).
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

/// What outputs in memory may take, unless the options say.
const MEMORY_BYTES: u64 = 1 << 30;

pub(super) type IdsFrom = Arc<dyn Fn(&Inputs) -> Result<Ids> + Send + Sync>;

/// Options of a [`CachedModule`].
///
/// ```
/// # fn main() -> tensorcask::Result<()> {
/// # let dir = tempfile::tempdir().unwrap();
/// use tch::{Device, Kind, Tensor};
/// use tensorcask::torch::CacheOptions;
///
/// let square = CacheOptions::in_folder(dir.path(), "square").version("1").wrap_fn(|x: &Tensor| x * x)?;
/// let x = Tensor::from_slice(&[1.0_f32, 2.0, 3.0]).reshape([3, 1]);
/// let first = square.forward(&x)?.into_tensor()?;
/// let second = square.forward(&x)?.into_tensor()?;
/// assert!(first.equal(&second));
/// assert_eq!((square.counts().misses, square.counts().hits), (3, 3));
/// # square.close()
/// # }
/// ```
#[derive(Clone)]
pub struct CacheOptions {
    pub(super) place: Place,
    pub(super) module_id: Option<String>,
    pub(super) version: Option<String>,
    pub(super) arguments: BTreeMap<String, String>,
    pub(super) instance: String,
    pub(super) weights: Weights,
    pub(super) enforce_stateless: bool,
    pub(super) check_structure: bool,
    pub(super) content: Content,
    pub(super) ids_from: Option<IdsFrom>,
    pub(super) ragged: Ragged,
    pub(super) lists: Lists,
    pub(super) map_location: Option<Device>,
    pub(super) pinned: bool,
    pub(super) verification: Option<Verification>,
    pub(super) recompute_damaged: bool,
    pub(super) on_store_error: OnStoreError,
    pub(super) allow_grad_inputs: bool,
    pub(super) read_only: bool,
    pub(super) memory_bytes: usize,
    pub(super) memory_device: Option<Device>,
    pub(super) disk_bytes: Option<u64>,
    pub(super) rank: Option<Rank>,
    pub(super) writer_rank: Option<u16>,
    pub(super) engine: Options,
}

impl fmt::Debug for CacheOptions {
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

impl CacheOptions {
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
            weights: Weights::default(),
            enforce_stateless: true,
            check_structure: true,
            content: Content::default(),
            ids_from: None,
            ragged: Ragged::default(),
            lists: Lists::default(),
            map_location: None,
            pinned: false,
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
        /// Takes the name of an `nn::Module`'s type and its `Debug`, which shows its configuration, into the identity
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
        /// Puts results that are read or computed into page-locked memory, for quick copies to a GPU (default: off).
        /// Needs CUDA.
        pinned: bool;
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

    /// A name for this instance: instances of other names do not share outputs, though everything else is the same.
    #[must_use]
    pub fn instance(mut self, instance: impl Into<String>) -> Self {
        self.instance = instance.into();
        self
    }

    /// Derives the ids from the inputs of each call that passes none.
    #[must_use]
    pub fn ids_from(mut self, ids: impl Fn(&Inputs) -> Result<Ids> + Send + Sync + 'static) -> Self {
        self.ids_from = Some(Arc::new(ids));
        self
    }

    /// The device that results come back on (default: that of the first input).
    #[must_use]
    pub fn map_location(mut self, device: impl Into<Option<Device>>) -> Self {
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
    pub fn memory_device(mut self, device: impl Into<Option<Device>>) -> Self {
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

    /// Bytes that may be kept.
    pub(super) fn cap_bytes(&self) -> Option<u64> {
        if self.place != Place::Memory {
            return self.disk_bytes;
        }
        let given = if self.memory_device.is_some() { 0 } else { self.memory_bytes as u64 };
        let bound = if given == 0 { MEMORY_BYTES } else { given };
        // A larger cap that was asked for by name counts, unless both were.
        Some(self.disk_bytes.map_or(bound, |cap| if given == 0 { cap } else { cap.min(given) }))
    }

    /// The store's options with what the layer's own options say.
    pub(super) fn engine_options(&self) -> Options {
        let options = self.engine.clone();
        if self.memory_bytes == 0 || self.memory_device.is_some() || self.place == Place::Memory {
            return options;
        }
        options.hot_bytes(self.memory_bytes).hot_policy(HotPolicy::StopWhenFull).hot_fill(HotFill::OnReadAndWrite)
    }

    pub(super) fn check(&self, rank: Rank) -> Result<()> {
        if let Some(writer) = self.writer_rank.filter(|writer| *writer >= rank.world_size) {
            return Err(invalid(format!("rank {writer} is to write, but there are {} processes", rank.world_size)));
        }
        if self.pinned && !tch::Cuda::is_available() {
            return Err(invalid("pinned output buffers need CUDA, and there is no CUDA device: leave `pinned` off"));
        }
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

    /// Wraps a computation of your own type, whose name is part of the identity ([`CacheOptions::check_structure`]).
    ///
    /// # Errors
    /// [`crate::Error::Invalid`] for unusable options or without a module id, [`crate::Error::Trainable`] for modules that are
    /// not frozen, and the errors of opening a store.
    pub fn wrap(self, compute: impl Compute + 'static) -> Result<CachedModule> {
        let name = std::any::type_name_of_val(&compute);
        CachedModule::new(self, Box::new(compute), name)
    }

    /// Wraps an adapter, whose own type says nothing.
    fn adapt(self, compute: impl Compute + 'static) -> Result<CachedModule> {
        CachedModule::new(self, Box::new(compute), "")
    }

    /// What `module` says of its structure, if that is looked at.
    fn structure<M: fmt::Debug>(&self, module: &M, variables: &Variables) -> Structure {
        if self.check_structure {
            Structure::of(module, variables, self.weights == Weights::Check)
        } else {
            Structure { text: String::new(), has_functions: false }
        }
    }

    /// Wraps a function of one tensor. In a folder, it has to have a [`CacheOptions::version`].
    ///
    /// # Errors
    /// As [`CacheOptions::wrap`].
    pub fn wrap_fn<O: IntoOutput + 'static>(self, f: impl Fn(&Tensor) -> O + Send + 'static) -> Result<CachedModule> {
        self.adapt(OfTensor(f))
    }

    /// Wraps a function of several tensors and plain arguments. Errors of its own become [`crate::Error::compute`]. In a
    /// folder, it has to have a [`CacheOptions::version`].
    ///
    /// # Errors
    /// As [`CacheOptions::wrap`].
    pub fn wrap_inputs_fn<O: Into<Output> + 'static>(
        self,
        f: impl Fn(&Inputs) -> Result<O> + Send + 'static,
    ) -> Result<CachedModule> {
        self.adapt(OfInputs(f))
    }

    /// [`CacheOptions::wrap_inputs_fn`] for a function that uses variables: they are fingerprinted and have to be frozen.
    ///
    /// # Errors
    /// As [`CacheOptions::wrap`].
    pub fn wrap_inputs_fn_with<O: Into<Output> + 'static>(
        self,
        variables: impl Into<Variables>,
        f: impl Fn(&Inputs) -> Result<O> + Send + 'static,
    ) -> Result<CachedModule> {
        self.adapt(WithVariables { inner: OfInputs(f), variables: Mutex::new(variables.into()) })
    }

    /// Wraps a module. `variables` are its weights and buffers, most simply `&var_store`, or the part of one under a
    /// prefix ([`Variables::under`]): they are fingerprinted and have to be frozen. Its type and its `Debug` count as well
    /// ([`CacheOptions::check_structure`]); a module with functions in it, as of `nn::func`, has to have a
    /// [`CacheOptions::version`] in a folder.
    ///
    /// # Errors
    /// As [`CacheOptions::wrap`].
    pub fn wrap_module(
        self,
        module: impl nn::Module + 'static,
        variables: impl Into<Variables>,
    ) -> Result<CachedModule> {
        let variables = variables.into();
        let structure = self.structure(&module, &variables);
        self.adapt(WithVariables { inner: OfModule(module, structure), variables: Mutex::new(variables) })
    }

    /// Wraps a module that behaves differently in training. Only evaluation is cached.
    ///
    /// # Errors
    /// As [`CacheOptions::wrap`].
    pub fn wrap_module_t(
        self,
        module: impl nn::ModuleT + 'static,
        variables: impl Into<Variables>,
    ) -> Result<CachedModule> {
        let variables = variables.into();
        let structure = self.structure(&module, &variables);
        self.adapt(WithVariables { inner: OfModuleT(module, structure), variables: Mutex::new(variables) })
    }

    /// Wraps a TorchScript module. It is set to evaluation and frozen; its code, parameters and buffers are
    /// fingerprinted.
    ///
    /// # Errors
    /// As [`CacheOptions::wrap`].
    pub fn wrap_script(self, module: CModule) -> Result<CachedModule> {
        self.wrap_script_method(module, "forward")
    }

    /// [`CacheOptions::wrap_script`] for another method than `forward`.
    ///
    /// # Errors
    /// As [`CacheOptions::wrap`].
    pub fn wrap_script_method(self, module: CModule, method: &str) -> Result<CachedModule> {
        self.adapt(OfScript::new(module, method)?)
    }
}
