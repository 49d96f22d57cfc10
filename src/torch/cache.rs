//! The wrapper: looks samples up, computes what is missing, keeps it.

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use parking_lot::{Mutex, RwLock};
use tch::{Device, Tensor, nn};

use super::counters::{Counters, Counts, add};
use super::error::{invalid, torch};
use super::fingerprint::{ENCODING, Identity, Variables};
use super::gather::{Rows, empty_batch, single, value_len_bytes};
use super::input::Inputs;
use super::key::{BatchKeys, Ids, IntoIds};
use super::module::Compute;
use super::options::{CacheOptions, Weights};
use super::output::{Output, difference};
use super::rank::Rank;
use super::rounding::Rounding;
use super::space::{Opening, Space, Spaces, recorded};
use super::tree::{Ragged, check_batch, join, split};
use crate::error::{Error, Result};
use crate::key::Key;
use crate::value::Value;

/// A frozen module whose outputs are computed once: a handle that is cheap to clone and may be shared by threads.
///
/// Samples are found by ids ([`CachedModule::forward_with_ids`]) or by content ([`CachedModule::forward`]). Only what is
/// missing is computed, in one batch, without gradients; results come back in order, on the input's device, in the
/// structure, dtype, shape and bits that the module gave. It is itself an [`nn::Module`], by content.
#[derive(Clone)]
pub struct CachedModule {
    inner: Arc<Inner>,
}

struct Inner {
    options: CacheOptions,
    opening: Opening,
    base: Identity,
    compute: Mutex<Box<dyn Compute>>,
    weights: Mutex<Watched>,
    spaces: RwLock<Arc<Spaces>>,
    rounding: Rounding,
    enabled: AtomicBool,
    counters: Counters,
    epoch: Mutex<(u64, Counts)>,
    /// Hits since one was verified, for sampling without a random generator.
    unverified: AtomicU64,
    warnings: Mutex<Vec<String>>,
}

/// The variables, and the sign of the moment when they were fingerprinted.
struct Watched {
    variables: Variables,
    sign: u64,
}

/// The inputs of the samples at some positions of a batch.
type Load<'a> = &'a mut dyn FnMut(&[usize]) -> Result<Inputs>;

impl CachedModule {
    pub(super) fn new(options: CacheOptions, compute: Box<dyn Compute>) -> Result<Self> {
        options.check()?;
        let settings = compute.settings();
        let module_id = options.module_id.clone().or(settings.module_id).ok_or_else(|| {
            invalid("no module id was given: name the module with `module_id`, it is the folder of its outputs")
        })?;
        let rank = options.rank.map_or_else(Rank::from_env, Ok)?;
        let mut arguments = settings.arguments;
        arguments.extend(options.arguments.clone());
        let base = Identity {
            encoding: ENCODING,
            version: options.version.clone().or(settings.version).unwrap_or_default(),
            arguments,
            instance: options.instance.clone(),
            weights_count: options.weights == Weights::Check,
            weights: std::collections::BTreeMap::new(),
        };
        let engine = options.engine_options();
        let rounding = Rounding { store_as: engine.store_as, restore: engine.restore_dtype };
        let opening = Opening {
            place: options.place.clone(),
            module_id,
            options: engine,
            rank,
            writes: options.writer_rank.is_none_or(|writer| writer == rank.rank),
            disk_bytes: options.disk_bytes,
            held: options.memory_device.map(|device| (device, options.memory_bytes)),
        };
        let variables = compute.variables();
        if options.enforce_stateless {
            variables.check_frozen()?;
        }
        let sign = variables.sign();
        let identity = Identity { weights: variables.fingerprint()?, ..base.clone() };
        let spaces = Spaces::open(&opening, &identity)?;
        let inner = Inner {
            options,
            opening,
            base,
            compute: Mutex::new(compute),
            weights: Mutex::new(Watched { variables, sign }),
            spaces: RwLock::new(spaces),
            rounding,
            enabled: AtomicBool::new(true),
            counters: Counters::default(),
            epoch: Mutex::default(),
            unverified: AtomicU64::new(0),
            warnings: Mutex::default(),
        };
        inner.compare_record(&identity);
        Ok(Self { inner: Arc::new(inner) })
    }

    /// The output for a batch, found by content: every byte of every tensor argument of the sample, dtypes, shapes and
    /// plain arguments; or by the ids that [`CacheOptions::ids_from`] derives.
    ///
    /// # Errors
    /// [`Error::Invalid`] for arguments that are no batch, [`Error::Trainable`], [`Error::Compute`] from a wrapped function,
    /// [`Error::NotReproducible`] from verification, and the store's errors. A failed computation keeps nothing.
    pub fn forward(&self, inputs: impl Into<Inputs>) -> Result<Output> {
        self.call(inputs).run()
    }

    /// The output for a batch, found by ids: one a sample.
    ///
    /// # Errors
    /// As [`CachedModule::forward`]; [`Error::Invalid`] if there are not as many ids as samples.
    pub fn forward_with_ids(&self, inputs: impl Into<Inputs>, ids: impl IntoIds) -> Result<Output> {
        self.call(inputs).ids(ids).run()
    }

    /// A call with more to say than inputs and ids.
    pub fn call(&self, inputs: impl Into<Inputs>) -> Call<'_> {
        Call { module: self, inputs: inputs.into(), ids: None, variant: 0, training: false }
    }

    /// The output for `ids`, on `device`, without inputs at hand: `load` makes the inputs of the samples at some
    /// positions, and is called only if they are missing.
    ///
    /// # Errors
    /// As [`CachedModule::forward_with_ids`], and those of `load`.
    pub fn forward_lazy(
        &self,
        ids: impl IntoIds,
        device: Device,
        mut load: impl FnMut(&[usize]) -> Result<Inputs>,
    ) -> Result<Output> {
        let keys = BatchKeys::by_id(ids.into_ids()?, None, 0)?;
        self.inner.check_weights()?;
        self.inner.resolve(&keys, device, &mut |positions| {
            let inputs = load(positions)?;
            let batch = inputs.batch_size()?;
            if batch == positions.len() {
                return Ok(inputs);
            }
            Err(invalid(format!("{batch} samples were loaded for {} missing ids: load one each", positions.len())))
        })
    }

    /// Which of `ids` are kept.
    ///
    /// # Errors
    /// The store's.
    pub fn contains(&self, ids: impl IntoIds) -> Result<Vec<bool>> {
        let keys = BatchKeys::by_id(ids.into_ids()?, None, 0)?;
        self.inner.check_weights()?;
        match self.inner.spaces().space(keys.kind())?.reader()? {
            Some(reader) => keys.with(|keys| reader.contains_batch(keys)),
            None => Ok(vec![false; keys.len()]),
        }
    }

    /// Turns the cache on or off. Off, calls go straight to the module, with gradients if the caller has them.
    pub fn set_enabled(&self, enabled: bool) {
        self.inner.enabled.store(enabled, Ordering::Relaxed);
    }

    /// Whether the cache is on.
    #[must_use]
    pub fn is_enabled(&self) -> bool {
        self.inner.enabled.load(Ordering::Relaxed)
    }

    /// Returns when every output computed so far is on disk, as durable as the engine's options say.
    ///
    /// # Errors
    /// The first failure of any write since the store was opened.
    pub fn flush(&self) -> Result<()> {
        self.inner.spaces().flush()
    }

    /// Flushes, and gives up this handle. The stores are closed with the last handle that uses them.
    ///
    /// # Errors
    /// As [`CachedModule::flush`].
    pub fn close(self) -> Result<()> {
        self.flush()
    }

    /// Looks for what other processes committed; done by itself whenever a sample is missing.
    ///
    /// # Errors
    /// The store's.
    pub fn refresh(&self) -> Result<()> {
        self.inner.spaces().refresh()
    }

    /// Samples kept for this identity.
    ///
    /// # Errors
    /// The store's.
    pub fn len(&self) -> Result<u64> {
        self.inner.spaces().len()
    }

    /// Whether no samples are kept.
    ///
    /// # Errors
    /// The store's.
    pub fn is_empty(&self) -> Result<bool> {
        self.len().map(|len| len == 0)
    }

    /// The folder of this identity's stores; `None` in memory.
    #[must_use]
    pub fn folder(&self) -> Option<std::path::PathBuf> {
        self.inner.spaces().folder().map(Path::to_path_buf)
    }

    /// Rows and bytes held on the [`CacheOptions::memory_device`].
    #[must_use]
    pub fn held(&self) -> (usize, usize) {
        self.inner.spaces().held.as_ref().map_or((0, 0), super::held::Held::size)
    }

    /// What the cache did since the module was wrapped.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.inner.counters.counts(self.inner.spaces().mean_s())
    }

    /// Ends an epoch: what the cache did since the last one, also logged as one line.
    pub fn end_epoch(&self) -> Counts {
        let now = self.counts();
        let mut epoch = self.inner.epoch.lock();
        let counts = now.since(&epoch.1);
        *epoch = (epoch.0 + 1, now);
        tracing::info!(module = %self.inner.opening.module_id, "epoch {}: {counts}", epoch.0);
        counts
    }

    /// What the caller should know, such as outputs of other weights that are served on request.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        self.inner.warnings.lock().clone()
    }

    /// Saves the wrapped module's variables, and nothing of the cache.
    ///
    /// # Errors
    /// [`Error::Torch`].
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        self.inner.weights.lock().variables.save(path.as_ref())
    }

    /// Loads the wrapped module's variables. Other weights are another identity: from here on, outputs of the former
    /// ones are not met, and are there again when those are loaded again.
    ///
    /// # Errors
    /// [`Error::Torch`]; [`Error::Invalid`] if the file holds another module's variables: nothing is changed then.
    pub fn load(&self, path: impl AsRef<Path>) -> Result<()> {
        self.inner.weights.lock().variables.load(path.as_ref())?;
        self.inner.check_weights()
    }

    /// A plain function of one tensor that gives one tensor.
    pub fn into_fn(self) -> impl Fn(&Tensor) -> Result<Tensor> + Send + Sync {
        move |xs| self.forward(xs)?.into_tensor()
    }

    pub(super) fn inner_spaces(&self) -> Result<Arc<Spaces>> {
        self.inner.check_weights()?;
        Ok(self.inner.spaces())
    }

    pub(super) fn identity(&self) -> Result<Identity> {
        Ok(Identity { weights: self.inner.weights.lock().variables.fingerprint()?, ..self.inner.base.clone() })
    }

    pub(super) fn keys_of(&self, inputs: &Inputs) -> Result<BatchKeys> {
        BatchKeys::by_content(inputs, inputs.batch_size()?, self.inner.options.content, 0)
    }
}

impl fmt::Debug for CachedModule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CachedModule").field("options", &self.inner.options).finish_non_exhaustive()
    }
}

/// By content, in evaluation.
///
/// # Panics
/// Where [`CachedModule::forward`] gives an error or something else than one tensor: the trait has no other way to say
/// so. tch's own modules do the same.
impl nn::Module for CachedModule {
    #[expect(clippy::panic, reason = "the trait's signature has no errors; tch's own modules panic as well")]
    fn forward(&self, xs: &Tensor) -> Tensor {
        match CachedModule::forward(self, xs).and_then(Output::into_tensor) {
            Ok(tensor) => tensor,
            Err(error) => panic!("the cached module {:?} failed: {error}", self.inner.opening.module_id),
        }
    }
}

/// One call of a [`CachedModule`].
#[derive(Debug)]
#[must_use = "a call does nothing until it is run"]
pub struct Call<'a> {
    module: &'a CachedModule,
    inputs: Inputs,
    ids: Option<Result<Ids>>,
    variant: u32,
    training: bool,
}

impl Call<'_> {
    /// One id a sample.
    pub fn ids(mut self, ids: impl IntoIds) -> Self {
        self.ids = Some(ids.into_ids());
        self
    }

    /// Which of several cached augmentations of the samples this is (default: 0).
    pub fn variant(mut self, variant: u32) -> Self {
        self.variant = variant;
        self
    }

    /// Calls the module in training mode: its output then varies, so nothing is looked up or kept.
    pub fn training(mut self, training: bool) -> Self {
        self.training = training;
        self
    }

    /// Runs it.
    ///
    /// # Errors
    /// As [`CachedModule::forward`].
    pub fn run(self) -> Result<Output> {
        let Self { module, inputs, ids, variant, training } = self;
        let inner = &module.inner;
        let batch = inputs.batch_size()?;
        let ids = match (ids, &inner.options.ids_from) {
            (Some(ids), _) => Some(ids?),
            (None, Some(derive)) => Some(derive(&inputs)?),
            (None, None) => None,
        };
        if let Some(ids) = &ids
            && ids.len() != batch
        {
            return Err(invalid(format!("{} ids were given for {batch} samples: give one id a sample", ids.len())));
        }
        inner.check_weights()?;
        if training || !module.is_enabled() {
            add(&inner.counters.bypassed, 1);
            let compute = inner.compute.lock();
            return if training { compute.compute_training(&inputs) } else { compute.compute(&inputs) };
        }
        let keys = match ids {
            Some(ids) => BatchKeys::by_id(ids, Some(&inputs), variant)?,
            None => BatchKeys::by_content(&inputs, batch, inner.options.content, variant)?,
        };
        let device = inputs.device();
        inner.resolve(&keys, device, &mut |positions| {
            let whole = positions.len() == batch && positions.iter().enumerate().all(|(at, &position)| at == position);
            if whole { Ok(inputs.shallow_clone()) } else { inputs.select(positions) }
        })
    }
}

/// What was computed: the module's own output, and its rows as they will be read.
struct Computed {
    output: Output,
    rows: usize,
}

impl Inner {
    fn spaces(&self) -> Arc<Spaces> {
        Arc::clone(&self.spaces.read())
    }

    /// Notices weights that were changed since they were fingerprinted, and moves to their identity.
    fn check_weights(&self) -> Result<()> {
        let mut watched = self.weights.lock();
        if watched.variables.is_empty() {
            return Ok(());
        }
        if self.options.enforce_stateless {
            watched.variables.check_frozen()?;
        }
        let sign = watched.variables.sign();
        if sign == watched.sign {
            return Ok(());
        }
        let identity = Identity { weights: watched.variables.fingerprint()?, ..self.base.clone() };
        let spaces = Spaces::open(&self.opening, &identity)?;
        tracing::info!(module = %self.opening.module_id, identity = identity.name(), "the weights were changed");
        self.compare_record(&identity);
        *self.spaces.write() = spaces;
        watched.sign = sign;
        Ok(())
    }

    /// With [`Weights::Ignore`], warns when the outputs that are there were computed with other weights.
    fn compare_record(&self, identity: &Identity) {
        let spaces = self.spaces();
        let Some(record) = spaces.folder().and_then(recorded) else { return };
        let differences = identity.differences(&record);
        if let Some(first) = differences.first() {
            let warning = format!(
                "outputs of module {:?} were computed with other weights and are served all the same, as the options \
                 say: {first}{}",
                self.opening.module_id,
                if differences.len() > 1 { format!(" and {} more", differences.len() - 1) } else { String::new() }
            );
            tracing::warn!("{warning}");
            self.warnings.lock().push(warning);
        }
    }

    /// The batch of `keys`: what is kept is read, what is missing is loaded, computed and kept.
    fn resolve(&self, keys: &BatchKeys, device: Device, load: Load<'_>) -> Result<Output> {
        let device = self.options.map_location.unwrap_or(device);
        let spaces = self.spaces();
        let space = spaces.space(keys.kind())?;
        if keys.len() == 0 {
            return match empty_batch(&space)? {
                Some(output) => self.deliver(output, device),
                None => self.deliver(self.compute(&mut |at| load(at), &[])?.output, device),
            };
        }
        if let Some(held) = &spaces.held
            && let Some(batch) = held.batch(keys)?
        {
            add(&self.counters.hits, keys.len());
            return self.deliver(Output::Tensor(batch), device);
        }
        let landings = spaces.flight.landings();
        let mut rows = Rows::read(&space, keys, &self.counters, self.options.recompute_damaged)?;
        let missing = rows.missing();
        add(&self.counters.hits, keys.len() - missing.len());
        add(&self.counters.read_bytes, rows.len_bytes());
        if !missing.is_empty() {
            let (todo, twins) = unique(keys, &missing);
            add(&self.counters.duplicates, twins.len());
            let flight = Flown { spaces: &spaces, space: &space, keys, landings };
            if let Some(whole) = self.complete(&flight, &mut rows, todo, load)? {
                return self.deliver(whole, device);
            }
            rows.copy(&twins)?;
        }
        self.verify(&rows, keys, &missing, load)?;
        let output = rows.finish(self.options.ragged)?;
        if let (Some(held), Output::Tensor(batch)) = (&spaces.held, &output) {
            held.hold(keys, batch)?;
        }
        self.deliver(output, device)
    }

    /// Computes the rows at `open`, or waits for another thread that does. Gives the module's own output back if it is
    /// the whole batch as it is.
    fn complete(
        &self,
        flown: &Flown<'_>,
        rows: &mut Rows,
        mut open: Vec<usize>,
        load: Load<'_>,
    ) -> Result<Option<Output>> {
        let Flown { spaces, space, keys, mut landings } = *flown;
        let heals = self.options.recompute_damaged;
        // Rows of `at` that others have finished meanwhile; returns what is still missing.
        let look_again = |rows: &mut Rows, at: Vec<usize>| -> Result<Vec<usize>> {
            let again = Rows::read(space, &keys.select(&at), &self.counters, heals)?;
            let missing: Vec<usize> = again.missing().iter().filter_map(|&place| at.get(place).copied()).collect();
            let found = at.len() - missing.len();
            add(&self.counters.waited, found);
            add(&self.counters.hits, found);
            rows.take(&at, again)?;
            Ok(missing)
        };
        while !open.is_empty() {
            let owned: Vec<Key> = open.iter().filter_map(|&at| keys.get(at)).collect();
            let (claim, got) = spaces.flight.claim(&owned);
            let chosen = |mine: bool| -> Vec<usize> {
                open.iter().zip(&got).filter(|(_, got)| **got == mine).map(|(&at, _)| at).collect()
            };
            let (mut mine, others) = (chosen(true), chosen(false));
            if spaces.flight.landings() != landings {
                mine = look_again(rows, mine)?;
            }
            if !mine.is_empty() {
                let computed = self.compute(&mut |at| load(at), &mine)?;
                self.keep(spaces, space, keys, &mine, &computed.output)?;
                add(&self.counters.misses, mine.len());
                let as_it_is = self.rounding.is_exact() && self.options.ragged == Ragged::List && spaces.held.is_none();
                if mine.len() == keys.len() && as_it_is {
                    return Ok(Some(computed.output));
                }
                rows.take_computed(&mine, self.as_read(&computed)?)?;
            }
            drop(claim);
            if others.is_empty() {
                break;
            }
            let owned: Vec<Key> = others.iter().filter_map(|&at| keys.get(at)).collect();
            spaces.flight.wait(&owned);
            landings = spaces.flight.landings();
            open = look_again(rows, others)?;
        }
        Ok(None)
    }

    /// Runs the module on the samples at `positions`, without gradients.
    fn compute(&self, load: Load<'_>, positions: &[usize]) -> Result<Computed> {
        let inputs = load(positions)?;
        let started = Instant::now();
        let output = {
            let _guard = tch::no_grad_guard();
            let compute = self.compute.lock();
            compute.compute(&inputs)?
        };
        check_batch(&output, positions.len())?;
        let output = output.try_map(&mut |tensor| tensor.f_detach().map_err(torch("detach an output")))?;
        let elapsed = started.elapsed();
        let nanoseconds = u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX);
        self.counters.compute_ns.fetch_add(nanoseconds, Ordering::Relaxed);
        if !positions.is_empty() {
            self.spaces().took(positions.len(), elapsed.as_secs_f64());
        }
        Ok(Computed { output, rows: positions.len() })
    }

    /// One value a row, as a later read will give it.
    fn as_read(&self, computed: &Computed) -> Result<Vec<Value>> {
        let values = split(&computed.output, computed.rows)?;
        if self.rounding.is_exact() {
            return Ok(values);
        }
        values.into_iter().map(|value| self.rounding.value(value)).collect()
    }

    /// Puts computed rows into the store, which copies them: nothing of the caller's is kept.
    fn keep(&self, spaces: &Spaces, space: &Space, keys: &BatchKeys, at: &[usize], output: &Output) -> Result<()> {
        let Some(store) = space.store() else {
            add(&self.counters.not_kept, at.len());
            return Ok(());
        };
        let chosen;
        let keys = if at.len() == keys.len() {
            keys
        } else {
            chosen = keys.select(at);
            &chosen
        };
        if let Some((dtype, shape, host)) = single(output)? {
            let bytes = super::memory::bytes(&host)?;
            if spaces.reserve(bytes.len() as u64) {
                add(&self.counters.put_bytes, bytes.len());
                return keys.with(|keys| store.put_rows_bytes(keys, dtype, &shape, bytes));
            }
        } else {
            let values = split(output, at.len())?;
            let len_bytes: usize = values.iter().map(value_len_bytes).sum();
            if spaces.reserve(len_bytes as u64) {
                add(&self.counters.put_bytes, len_bytes);
                return keys.with(|keys| store.put_batch(keys, &values));
            }
        }
        add(&self.counters.not_kept, at.len());
        Ok(())
    }

    /// Computes some of the hits again, and compares.
    fn verify(&self, rows: &Rows, keys: &BatchKeys, missing: &[usize], load: Load<'_>) -> Result<()> {
        let Some(verification) = self.options.verification.filter(|v| v.rate > 0.0) else { return Ok(()) };
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a rate of at most 1 in 2^32")]
        let every = (1.0 / verification.rate).round().clamp(1.0, f64::from(u32::MAX)) as u64;
        let hits = (0..keys.len()).filter(|at| missing.binary_search(at).is_err());
        let due = |_: &usize| (self.unverified.fetch_add(1, Ordering::Relaxed) + 1).is_multiple_of(every);
        let chosen: Vec<usize> = hits.filter(due).collect();
        if chosen.is_empty() {
            return Ok(());
        }
        add(&self.counters.verified, chosen.len());
        let kept = rows.pick(&chosen)?;
        let computed = self.compute(&mut |at| load(at), &chosen)?;
        let values = self.as_read(&computed)?;
        let now = join(&values.iter().collect::<Vec<_>>(), Ragged::List)?;
        let Some(what) = differs(&kept, &now, verification.relative, verification.absolute)? else { return Ok(()) };
        let first = chosen.first().and_then(|&at| keys.get(at)).map(|key| key.to_string()).unwrap_or_default();
        let error = Error::NotReproducible { samples: chosen.len(), first, what };
        if verification.fails {
            return Err(error);
        }
        tracing::warn!(%error, "verification");
        self.warnings.lock().push(error.to_string());
        Ok(())
    }

    /// To where the caller wants it.
    fn deliver(&self, output: Output, device: Device) -> Result<Output> {
        let action = "copy an output to a device";
        if !self.options.pinned {
            // A blocking copy: on MPS it waits for the device as well.
            return output.try_map(&mut |tensor| {
                if tensor.device() == device {
                    Ok(tensor.shallow_clone())
                } else {
                    tensor.f_to_device(device).map_err(torch(action))
                }
            });
        }
        output.try_map(&mut |tensor| {
            let pinned = match tensor.device() {
                Device::Cpu => tensor.f_pin_memory(Device::Cuda(0)).map_err(torch("pin an output"))?,
                _ => tensor.shallow_clone(),
            };
            let kind = pinned.f_kind().map_err(torch(action))?;
            pinned.f_to_device_(device, kind, true, false).map_err(torch(action))
        })
    }
}

/// Where a batch is looked up and kept.
#[derive(Clone, Copy)]
struct Flown<'a> {
    spaces: &'a Spaces,
    space: &'a Space,
    keys: &'a BatchKeys,
    landings: u64,
}

/// Positions of the first of each missing key, and `(from, to)` for those that stand again.
fn unique(keys: &BatchKeys, missing: &[usize]) -> (Vec<usize>, Vec<(usize, usize)>) {
    let Some((firsts, of)) = keys.select(missing).unique() else { return (missing.to_vec(), Vec::new()) };
    let at = |place: usize| missing.get(place).copied().unwrap_or(0);
    let todo: Vec<usize> = firsts.iter().map(|&place| at(place)).collect();
    let pairs = of.iter().enumerate().map(|(place, &first)| (todo.get(first).copied().unwrap_or(0), at(place)));
    let twins = pairs.filter(|(from, to)| from != to).collect();
    (todo, twins)
}

/// Where two outputs differ by more than the tolerance.
fn differs(a: &Output, b: &Output, relative: f64, absolute: f64) -> Result<Option<String>> {
    let all = |a: &[Output], b: &[Output]| {
        if a.len() != b.len() {
            return Ok(Some(format!("{} items against {}", a.len(), b.len())));
        }
        for (a, b) in a.iter().zip(b) {
            if let Some(what) = differs(a, b, relative, absolute)? {
                return Ok(Some(what));
            }
        }
        Ok(None)
    };
    match (a, b) {
        (Output::Tensor(a), Output::Tensor(b)) => difference(a, b, relative, absolute),
        (Output::Each(a), Output::Each(b))
        | (Output::List(a), Output::List(b))
        | (Output::Tuple(a), Output::Tuple(b)) => all(a, b),
        (Output::Map(a), Output::Map(b)) => {
            for ((name, a), (other, b)) in a.iter().zip(b) {
                if name != other {
                    return Ok(Some(format!("{name:?} against {other:?}")));
                }
                if let Some(what) = differs(a, b, relative, absolute)? {
                    return Ok(Some(format!("{name}: {what}")));
                }
            }
            Ok((a.len() != b.len()).then(|| format!("{} names against {}", a.len(), b.len())))
        }
        (a, b) => Ok((format!("{a:?}") != format!("{b:?}")).then(|| format!("{a:?} against {b:?}"))),
    }
}
