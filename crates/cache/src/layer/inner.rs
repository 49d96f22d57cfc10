//! The state that the handles of a wrapped module share.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::{Mutex, RwLock};
use tensorcask::flight::nested::Nested;

use crate::counters::{Counters, Counts};
use crate::error::{Result, invalid};
use crate::framework::{Framework, Variables};
use crate::identity::record::Identity;
use crate::keys::key::BatchKeys;
use crate::layer::compute::Compute;
use crate::layer::exclusive::{self, Exclusive};
use crate::layer::held::Held;
use crate::layer::options::{CacheOptions, OnStoreError, Verification};
use crate::store::backend::{Space, is_full, is_of_disk, is_read_only};
use crate::store::space::{Opening, Place, Spaces};
use crate::values::input::Inputs;
use crate::values::output::Output;
use crate::values::rounding::Rounding;

/// The maximum number of warnings that are kept.
const MOST_WARNINGS: usize = 100;

/// The state that the handles of a wrapped module share.
pub(crate) struct Inner<F: Framework> {
    pub options: CacheOptions<F>,
    pub opening: Opening,
    pub weights: Mutex<Watched<F>>,
    pub rounding: Rounding,
    pub counters: Counters,
    /// The module's outputs for empty batches, by weights and layout of the call.
    pub empties: Mutex<HashMap<(u64, u128), Output<F>>>,
    /// A reference to itself, for jobs that other threads run.
    me: Weak<Self>,
    base: Identity,
    /// Acquired before `weights` if both are held. A module may call its own handle.
    compute: Exclusive<F>,
    spaces: RwLock<Arc<Spaces>>,
    /// The stores of identities that are not in a folder.
    fleeting: Mutex<HashMap<String, Arc<Spaces>>>,
    enabled: AtomicBool,
    /// The number of calls in training mode. Each may have changed buffers without a trace in the tensor library.
    trainings: AtomicU64,
    /// What [`CacheOptions::verify`] said, or what the handle was told later.
    pub verification: Mutex<Option<Verification>>,
    epoch: Mutex<(u64, Counts)>,
    /// The number of hits that were considered for verification.
    sampled: AtomicU64,
    warnings: Mutex<Vec<String>>,
}

/// Loads the inputs of the samples at some positions of a batch.
pub(crate) type Load<'a, F> = &'a mut dyn FnMut(&[usize]) -> Result<Inputs<F>>;

/// The variables, and their state when they were last fingerprinted.
pub(crate) struct Watched<F: Framework> {
    pub variables: F::Variables,
    pub sign: u64,
    pub identity: Identity,
    /// Whether the caller was already warned that weights are ignored.
    pub told: bool,
}

/// A batch that is looked up and completed.
#[derive(Clone, Copy)]
pub(crate) struct Batch<'a> {
    pub spaces: &'a Spaces,
    pub space: &'a Space,
    pub keys: &'a BatchKeys,
    /// The sign of the weights in force.
    pub sign: u64,
    /// Whether inputs are available for recomputing hits.
    pub loads: Loads,
    /// The counts of this attempt.
    pub counters: &'a Counters,
}

/// The source of a call's inputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Loads {
    /// The caller passed them.
    Inputs,
    /// A loader makes them for any samples.
    Lazily,
    /// There are none: all outputs have to be kept already.
    Nothing,
}

impl<F: Framework> Inner<F> {
    /// Opens the stores for `compute`, as described by the options, `opening` and `base`.
    pub(crate) fn new(
        options: CacheOptions<F>,
        opening: Opening,
        base: Identity,
        compute: Box<dyn Compute<F>>,
    ) -> Result<Arc<Self>> {
        let variables = compute.variables()?;
        if options.enforce_stateless {
            variables.check_frozen()?;
        }
        // Taken before the variables are read: a change during the read then shows in the next sign.
        let sign = variables.sign(usize::MAX);
        let identity = identify::<F>(&base, &variables)?;
        let lenient = options.on_store_error == OnStoreError::WarnAndCompute;
        let spaces = Spaces::open(&opening, &identity, |error| lenient && (is_full(error) || is_read_only(error)))?;
        let mut fleeting = HashMap::new();
        if !matches!(options.place, Place::Folder(_)) {
            fleeting.insert(identity.name(), Arc::clone(&spaces));
        }
        let watched = Watched { variables, sign, identity: identity.clone(), told: false };
        let inner = Arc::new_cyclic(|me| Self {
            rounding: Rounding(opening.options.clone()),
            opening,
            weights: Mutex::new(watched),
            counters: Counters::default(),
            empties: Mutex::default(),
            me: me.clone(),
            base,
            compute: Exclusive::new(compute),
            spaces: RwLock::new(spaces),
            fleeting: Mutex::new(fleeting),
            enabled: AtomicBool::new(true),
            trainings: AtomicU64::new(0),
            verification: Mutex::new(options.verification),
            epoch: Mutex::default(),
            sampled: AtomicU64::new(0),
            warnings: Mutex::default(),
            options,
        });
        let told = inner.compare_record(&identity);
        inner.weights.lock().told = told;
        if let Some(why) = inner.spaces().read_only() {
            inner.warn(format!("the cache is read only, so missing outputs are computed and not kept: {why}"));
        }
        Ok(inner)
    }

    pub(crate) fn spaces(&self) -> Arc<Spaces> {
        Arc::clone(&self.spaces.read())
    }

    /// Switches to the stores of `identity`, and returns the former ones.
    pub(crate) fn move_to(&self, identity: &Identity) -> Result<Arc<Spaces>> {
        let next = self.open(identity)?;
        next.expect_mean(self.spaces().mean_s());
        tracing::info!(module = %self.opening.module_id, identity = identity.name(), "the weights were changed");
        Ok(std::mem::replace(&mut *self.spaces.write(), next))
    }

    fn open(&self, identity: &Identity) -> Result<Arc<Spaces>> {
        if matches!(self.opening.place, Place::Folder(_)) {
            let lenient = self.options.on_store_error == OnStoreError::WarnAndCompute;
            return Ok(Spaces::open(&self.opening, identity, |error| lenient && is_of_disk(error))?);
        }
        let mut fleeting = self.fleeting.lock();
        if let Some(spaces) = fleeting.get(&identity.name()) {
            return Ok(Arc::clone(spaces));
        }
        let spaces = Spaces::open(&self.opening, identity, |_| false)?;
        fleeting.insert(identity.name(), Arc::clone(&spaces));
        Ok(spaces)
    }

    /// The identity of the module with these variables.
    pub(crate) fn identify(&self, variables: &F::Variables) -> Result<Identity> {
        identify::<F>(&self.base, variables)
    }

    /// Whether the cache is on.
    pub(crate) fn is_enabled(&self) -> bool {
        self.enabled.load(Ordering::Relaxed)
    }

    pub(crate) fn set_enabled(&self, enabled: bool) {
        self.enabled.store(enabled, Ordering::Relaxed);
    }

    /// The number of calls that may have changed weights without a trace in the tensor library.
    pub(crate) fn trainings(&self) -> u64 {
        self.trainings.load(Ordering::Relaxed)
    }

    /// Counts a call in training mode.
    pub(crate) fn trained(&self) {
        self.trainings.fetch_add(1, Ordering::Relaxed);
    }

    /// The number of the next hit that is considered for verification.
    pub(crate) fn next_hit(&self) -> u64 {
        self.sampled.fetch_add(1, Ordering::Relaxed)
    }

    /// Ends an epoch: returns its number and its counts.
    pub(crate) fn end_epoch(&self) -> (u64, Counts) {
        let mut epoch = self.epoch.lock();
        let now = self.counters.counts();
        let counts = now.since(&epoch.1);
        *epoch = (epoch.0 + 1, now);
        (epoch.0, counts)
    }

    pub(crate) fn warnings(&self) -> Vec<String> {
        self.warnings.lock().clone()
    }

    /// The rows held on a device, if the options name one.
    pub(crate) fn held<'a>(&self, spaces: &'a Spaces) -> Option<&'a Held<F>> {
        let device = self.options.memory_device.as_ref()?;
        spaces.held(|| Held::new(device.clone(), self.options.memory_bytes))
    }

    /// Enters a nested call.
    pub(crate) fn enter(&self) -> Result<Nested> {
        Nested::enter().ok_or_else(|| {
            invalid(format!(
                "calls of the module {:?} are inside of each other without end: what it computes, or the loading of its \
                 inputs, asks for more samples each time",
                self.opening.module_id
            ))
        })
    }

    pub(crate) fn warn(&self, warning: String) {
        tracing::warn!(module = %self.opening.module_id, "{warning}");
        let mut warnings = self.warnings.lock();
        if warnings.len() < MOST_WARNINGS && !warnings.contains(&warning) {
            warnings.push(warning);
        }
    }

    /// As `warn`, unless the caller was warned of it before.
    pub(crate) fn warn_once(&self, warning: String) {
        if !self.warnings.lock().contains(&warning) {
            self.warn(warning);
        }
    }

    /// Runs the closure that `make` returns with the module, and returns the result and the lock on the module. If the
    /// thread that holds the module waits for this one, that thread runs the closure instead, whose second argument is
    /// then `true`.
    pub(crate) fn exclusively<'a, T, R>(&'a self, make: &dyn Fn() -> R) -> Result<(T, Option<exclusive::Held<'a, F>>)>
    where
        T: Send + 'static,
        R: FnOnce(&dyn Compute<F>, bool) -> Result<T> + Send + 'static,
    {
        loop {
            if let Some(held) = self.compute.lock() {
                let result = make()(&*held, false)?;
                return Ok((result, Some(held)));
            }
            let gone = || invalid("the handle is gone");
            let (run, inner) = (make(), self.me.upgrade().ok_or_else(gone)?);
            let job = move || match inner.compute.lock() {
                Some(held) => run(&*held, true),
                None => Err(invalid("the module is held by another thread")),
            };
            if let Some(result) = self.compute.delegate(job) {
                return Ok((result?, None));
            }
        }
    }
}

/// The identity of a module with these variables.
fn identify<F: Framework>(base: &Identity, variables: &F::Variables) -> Result<Identity> {
    let mut identity = base.clone();
    add_weights(&mut identity.weights, variables.fingerprint()?)?;
    Ok(identity)
}

/// Adds digests of weights.
///
/// # Errors
/// [`Error::Invalid`] if a name occurs twice, as one digest would replace the other.
pub(crate) fn add_weights(weights: &mut BTreeMap<String, String>, others: BTreeMap<String, String>) -> Result<()> {
    for (name, digest) in others {
        if weights.contains_key(&name) {
            return Err(invalid(format!(
                "{name:?} names two of the module's weights: give the `fingerprint` another name"
            )));
        }
        weights.insert(name, digest);
    }
    Ok(())
}
