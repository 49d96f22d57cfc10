//! The handle of a wrapped module.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use tensorcask::folder::check_module_id;

use crate::counters::{Counts, HeldRows};
use crate::error::{Result, invalid};
use crate::framework::{Framework, Variables};
use crate::identity::record::{ENCODING, Identity};
use crate::keys::ids::IntoIds;
use crate::layer::call::Call;
use crate::layer::compute::{Compute, Settings};
use crate::layer::held::Held;
use crate::layer::inner::{Inner, add_weights};
use crate::layer::options::{CacheOptions, Verification, Weights};
use crate::layer::why::WhyMiss;
use crate::rank::Rank;
use crate::store::space::{Opening, Place, module_folder, resolved};
use crate::store::temporary::TemporaryFolder;
use crate::store::used::Used;
use crate::values::input::{Argument, Inputs, IntoInputs};
use crate::values::output::Output;

/// A frozen module whose output for a sample is computed once. The handle is cheap to clone and can be shared by
/// threads.
///
/// Samples are found by ids ([`Cached::forward_with_ids`]) or by content ([`Cached::forward`]). Missing samples are
/// computed in one batch, without gradients. Results come in order, on the input's device, with the structure, dtype,
/// shape and bits of the module's output.
///
/// **The module and the loader of its inputs may call handles**, including the module's own, and may read batches from
/// them. While one thread computes a sample, other threads wait for it. If threads would wait for each other, the
/// samples are computed twice, or a thread that is already inside the module runs it for another. A computation that
/// needs its own result is an error. Threads that the module itself starts and waits for must not ask for samples that
/// it is computing: that wait is not detected, and never ends.
pub struct Cached<F: Framework> {
    inner: Arc<Inner<F>>,
}

impl<F: Framework> Cached<F> {
    /// Wraps `compute`. `name` is the name of its type, unless its settings name a structure.
    pub(crate) fn new(options: CacheOptions<F>, compute: Box<dyn Compute<F>>, name: &str) -> Result<Self> {
        let rank = options.rank.map_or_else(Rank::from_env, Ok)?;
        options.check(rank)?;
        let mut settings = compute.settings();
        if settings.structure.is_empty() {
            name.clone_into(&mut settings.structure);
        }
        let (module_id, base) = describe(&options, settings)?;
        let opening = opening(&options, module_id, rank)?;
        Ok(Self { inner: Inner::new(options, opening, base, compute)? })
    }

    /// The output for a batch, found by content: every byte of every tensor argument of the sample, dtypes, shapes and
    /// plain arguments. If [`CacheOptions::ids_from`] is set, samples are found by the ids that it derives.
    ///
    /// # Errors
    /// [`crate::Error::Invalid`] for arguments that do not form a batch, [`crate::Error::Trainable`],
    /// [`crate::Error::Compute`] from a wrapped function, [`crate::Error::NotReproducible`] from verification, and the
    /// store's errors. A failed computation keeps nothing.
    pub fn forward(&self, inputs: impl IntoInputs<F>) -> Result<Output<F>> {
        self.call(inputs).run()
    }

    /// The output for a batch, found by ids, one per sample. The id names the sample: the elements of tensors do not
    /// count, only their places by position and by name. All other arguments count.
    ///
    /// # Errors
    /// As [`Cached::forward`]; [`crate::Error::Invalid`] if the numbers of ids and samples differ.
    pub fn forward_with_ids(&self, inputs: impl IntoInputs<F>, ids: impl IntoIds<F>) -> Result<Output<F>> {
        self.call(inputs).ids(ids).run()
    }

    /// A call with further options than inputs and ids.
    pub fn call(&self, inputs: impl IntoInputs<F>) -> Call<'_, F> {
        Call::new(&self.inner, inputs.into_inputs())
    }

    /// Whether each of `ids` is kept, for calls of one tensor. For other arguments, a variant or content, use
    /// [`Call::contains`].
    ///
    /// # Errors
    /// Errors of the store.
    pub fn contains(&self, ids: impl IntoIds<F>) -> Result<Vec<bool>> {
        self.call(Inputs::tensors(1)).ids(ids).contains()
    }

    /// Turns the cache on or off. While it is off, calls run the module directly, with gradients if the caller records
    /// them.
    pub fn set_enabled(&self, enabled: bool) {
        self.inner.set_enabled(enabled);
    }

    /// Whether the cache is on.
    #[must_use]
    pub fn is_enabled(&self) -> bool {
        self.inner.is_enabled()
    }

    /// Recomputes a share of the hits of later calls and compares, as [`CacheOptions::verify`] does; `None` ends it.
    ///
    /// # Errors
    /// [`crate::Error::Invalid`] for rates and tolerances without meaning.
    pub fn set_verification(&self, verification: impl Into<Option<Verification>>) -> Result<()> {
        let verification = verification.into();
        verification.as_ref().map_or(Ok(()), Verification::check)?;
        *self.inner.verification.lock() = verification;
        Ok(())
    }

    /// Returns when all outputs computed so far are on disk, with the durability level of the engine's options.
    ///
    /// # Errors
    /// The first failure of any write since the store was opened.
    pub fn flush(&self) -> Result<()> {
        Ok(self.inner.spaces().flush()?)
    }

    /// Flushes, and drops this handle. The stores are closed with the last handle that uses them.
    ///
    /// # Errors
    /// As [`Cached::flush`].
    pub fn close(self) -> Result<()> {
        self.flush()
    }

    /// Makes the commits of other processes visible. A miss does this as well.
    ///
    /// # Errors
    /// Errors of the store.
    pub fn refresh(&self) -> Result<()> {
        Ok(self.inner.spaces().refresh()?)
    }

    /// The number of samples kept for this identity.
    ///
    /// # Errors
    /// Errors of the store.
    pub fn len(&self) -> Result<u64> {
        Ok(self.inner.spaces().count_keys()?)
    }

    /// Whether no samples are kept.
    ///
    /// # Errors
    /// Errors of the store.
    pub fn is_empty(&self) -> Result<bool> {
        self.len().map(|len| len == 0)
    }

    /// The folder of this identity's stores; `None` if they are in memory.
    #[must_use]
    pub fn folder(&self) -> Option<std::path::PathBuf> {
        self.inner.spaces().folder().map(Path::to_path_buf)
    }

    /// The number of rows held on the [`CacheOptions::memory_device`], and their bytes.
    #[must_use]
    pub fn held(&self) -> HeldRows {
        self.inner.held(&self.inner.spaces()).map_or_else(HeldRows::default, Held::size)
    }

    /// Counts since the module was wrapped.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.inner.counters.counts()
    }

    /// Ends an epoch: returns the counts since the last one, and logs them as one line.
    pub fn end_epoch(&self) -> Counts {
        let (number, counts) = self.inner.end_epoch();
        tracing::info!(module = %self.module_id(), "epoch {number}: {counts}");
        counts
    }

    /// Warnings for the caller, such as that outputs of other weights are served on request.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        self.inner.warnings()
    }

    /// Saves the variables of the wrapped module; the cached outputs are not part of the file. For a TorchScript module
    /// these are its parameters without buffers, so keep the module's own file.
    ///
    /// # Errors
    /// [`crate::Error::Framework`].
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        self.inner.weights.lock().variables.save(path.as_ref())
    }

    /// Loads the variables of the wrapped module. Other weights are another identity: outputs of the former weights are
    /// not found until those are loaded again.
    ///
    /// # Errors
    /// [`crate::Error::Framework`]; [`crate::Error::Invalid`] if the file holds the variables of another module, which
    /// leaves the weights unchanged.
    pub fn load(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        // The module is locked, so that no computation uses the variables.
        let make = || {
            let (path, inner) = (path.to_path_buf(), Arc::clone(&self.inner));
            move |_: &dyn Compute<F>, _| {
                let mut weights = inner.weights.lock();
                // While the cache is off, the module may be trainable.
                let enabled = inner.is_enabled();
                if enabled && inner.options.enforce_stateless {
                    weights.variables.check_frozen()?;
                }
                weights.variables.load(&path)?;
                weights.told = false;
                drop(weights);
                if enabled { inner.check_weights(usize::MAX).map(|_| ()) } else { Ok(()) }
            }
        };
        self.inner.exclusively(&make).map(|_| ())
    }

    /// Reports that weights were written in a way that is not detected; see [`Weights::Check`]. The next call reads all
    /// weights. Has no effect for a function, which has no variables: wrap it again. O(1).
    pub fn weights_changed(&self) {
        self.inner.trained();
    }

    /// The module id, which names the folder of all its identities.
    #[must_use]
    pub fn module_id(&self) -> &str {
        &self.inner.opening.module_id
    }

    /// Converts the handle to a plain function from one tensor to one tensor.
    pub fn into_fn(self) -> impl Fn(&F::Tensor) -> Result<F::Tensor> + Send + Sync {
        move |xs| {
            let inputs = Inputs::new().with(Argument::Tensor(F::share(xs)));
            self.call(inputs).run()?.into_tensor()
        }
    }

    /// Explains why the sample of an id is missing, for calls of one tensor: lists the identities that keep it, and how
    /// they differ. For other arguments or a variant, use [`Call::why_miss`].
    ///
    /// # Errors
    /// [`crate::Error::Invalid`] unless exactly one id is given; errors of the store.
    pub fn why_miss(&self, id: impl IntoIds<F>) -> Result<WhyMiss> {
        self.call(Inputs::tensors(1)).ids(id).why_miss()
    }

    /// [`Cached::why_miss`] by content, for a batch of one.
    ///
    /// # Errors
    /// As [`Cached::why_miss`].
    pub fn why_miss_content(&self, inputs: impl IntoInputs<F>) -> Result<WhyMiss> {
        self.call(inputs).why_miss()
    }

    pub(crate) fn identity(&self) -> Identity {
        self.inner.weights.lock().identity.clone()
    }

    pub(crate) fn inner(&self) -> &Inner<F> {
        &self.inner
    }
}

impl<F: Framework> fmt::Debug for Cached<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cached").field("options", &self.inner.options).finish_non_exhaustive()
    }
}

impl<F: Framework> AsRef<Self> for Cached<F> {
    fn as_ref(&self) -> &Self {
        self
    }
}

impl<F: Framework> Clone for Cached<F> {
    fn clone(&self) -> Self {
        Self { inner: Arc::clone(&self.inner) }
    }
}

/// The module id, and the identity without the variables.
fn describe<F: Framework>(options: &CacheOptions<F>, settings: Settings) -> Result<(String, Identity)> {
    let module_id = options.module_id.clone().or(settings.module_id).ok_or_else(|| {
        invalid("no module id was given: name the module with `module_id`, it is the folder of its outputs")
    })?;
    let version = options.version.clone().or(settings.version).unwrap_or_default();
    if let (Some(why), Place::Folder(_), "") = (&settings.indistinct, &options.place, version.as_str()) {
        return Err(invalid(format!(
            "no version was given for {module_id:?}, whose outputs stay in a folder: {why}, so old outputs would be \
             served for new code. Give a `version`, and another one whenever the code changes"
        )));
    }
    check_module_id(&module_id)?;
    let stores_as = options.engine_options().stores_as();
    let mut weights = settings.weights;
    add_weights(&mut weights, options.digests.clone())?;
    let identity = Identity {
        encoding: ENCODING,
        version,
        structure: if options.check_structure { settings.structure } else { String::new() },
        arguments: settings.arguments.into_iter().chain(options.arguments.clone()).collect(),
        instance: options.instance.clone(),
        cache_dtype: stores_as.map(|dtype| dtype.name().to_owned()).unwrap_or_default(),
        weights_count: options.weights == Weights::Check,
        weights,
    };
    Ok((module_id, identity))
}

/// The options for opening the stores.
fn opening<F: Framework>(options: &CacheOptions<F>, module_id: String, rank: Rank) -> Result<Opening> {
    let temporary = match &options.place {
        Place::Temporary(parent) => Some(Arc::new(TemporaryFolder::new(parent.as_deref())?)),
        _ => None,
    };
    let module = module_folder(&options.place, temporary.as_deref(), &module_id);
    let module = module.map(|folder| resolved(&folder)).transpose()?;
    Ok(Opening {
        place: options.place.clone(),
        module_id,
        options: options.engine_options(),
        rank,
        writes: !options.read_only && options.writer_rank.is_none_or(|writer| writer == rank.rank),
        used: Arc::new(Used::new(options.cap(), module.as_deref())),
        temporary,
        held: options.memory_device.as_ref().map(|device| format!("{device:?} {}", options.memory_bytes)),
    })
}
