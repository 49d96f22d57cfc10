//! One call: looks a batch up, computes and keeps missing rows, and assembles the result.

use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::Ordering;

use tensorcask::flight::{Work, complete};
use tensorcask::{Durability, Key, Store, Value};

use crate::counters::{Counters, add};
use crate::error::{Error, Result, invalid};
use crate::framework::Framework;
use crate::keys::key::{BatchKeys, layout};
use crate::layer::compute::Compute;
use crate::layer::exclusive::infer;
use crate::layer::gather::{Computed, Rows, empty_batch, value_len_bytes};
use crate::layer::inner::{Batch, Inner, Load, Loads};
use crate::layer::options::Weights;
use crate::values::output::Output;
use crate::values::tree::{Ragged, check_batch, split};

/// The number of attempts of a call whose weights change while it computes.
const MOST_TRIES: usize = 8;

/// The start of the warning that no leases are taken.
const LEASES: &str = "several processes may compute the same samples, as none can reserve them";

/// The maximum number of empty batches that are remembered.
const MOST_EMPTIES: usize = 100;

impl<F: Framework> Inner<F> {
    /// The batch of `keys`. Restarts if the weights change meanwhile.
    pub(crate) fn run(
        &self,
        keys: &BatchKeys,
        device: F::Device,
        loads: Loads,
        load: Load<'_, F>,
    ) -> Result<Output<F>> {
        let _nested = self.enter()?;
        let device = self.options.map_location.clone().unwrap_or(device);
        // From the second attempt on, all variables are checked thoroughly, as after a computation.
        let mut samples = keys.len();
        for _ in 0..MOST_TRIES {
            let sign = self.check_weights(std::mem::replace(&mut samples, usize::MAX))?;
            let spaces = self.spaces();
            let space = spaces.space(keys.kind())?;
            let counters = Counters::default();
            let batch = Batch { spaces: &spaces, space: &space, keys, sign, loads, counters: &counters };
            let resolved = self.resolve(&batch, load);
            // The counts of an attempt with outdated weights are dropped, as the samples are counted again.
            if !matches!(resolved, Ok(None)) {
                self.counters.take_in(&counters);
            }
            if let Some(output) = resolved? {
                return self.deliver(output, device);
            }
        }
        Err(invalid("the weights of the module are changed by every call: freeze it, or turn the cache off"))
    }

    /// Reads kept rows, and loads, computes and keeps missing ones; `None` if the weights changed meanwhile.
    fn resolve(&self, batch: &Batch<'_>, load: Load<'_, F>) -> Result<Option<Output<F>>> {
        let Batch { spaces, keys, .. } = *batch;
        if keys.len() == 0 {
            return self.resolve_empty(batch, load);
        }
        if let Some(held) = self.held(spaces)
            && let Some(rows) = held.batch(keys)?
        {
            batch.counters.hit(keys.len(), F::len_bytes(&rows), spaces.mean_s());
            self.verify(batch, &[], &|chosen| F::select(&rows, chosen).map(Output::Tensor), load)?;
            return Ok(Some(Output::Tensor(rows)));
        }
        let landings = spaces.flight.landings();
        let mut rows = self.read(batch, keys)?;
        let missing = rows.missing();
        batch.counters.hit(keys.len() - missing.len(), rows.len_bytes(), spaces.mean_s());
        if !missing.is_empty() {
            let (todo, twins) = unique(keys, &missing);
            match self.complete(batch, &mut rows, todo, landings, load)? {
                Completed::Whole(output) => return Ok(Some(output)),
                Completed::Changed => return Ok(None),
                Completed::Rows => {}
            }
            add(&batch.counters.duplicates, twins.len());
            rows.copy(&twins)?;
        }
        self.verify(batch, &missing, &|chosen| rows.pick(chosen), load)?;
        let output = rows.finish(self.options.ragged)?;
        if let (Some(held), Output::Tensor(rows), Ragged::List) = (self.held(spaces), &output, self.options.ragged) {
            held.hold(keys, rows)?;
        }
        Ok(Some(output))
    }

    /// The module determines the layout of an empty batch; without inputs, the kept rows do.
    fn resolve_empty(&self, batch: &Batch<'_>, load: Load<'_, F>) -> Result<Option<Output<F>>> {
        if batch.loads != Loads::Inputs {
            return empty_batch(batch.space).map(|kept| Some(kept.unwrap_or(Output::Each(Vec::new()))));
        }
        let call = (batch.sign, layout(&load(&[])?)?);
        if let Some(known) = self.empties.lock().get(&call) {
            return Ok(Some(known.shallow_clone()));
        }
        // The modules of some libraries panic on a tensor that does not fit.
        let compute = || self.compute(batch.sign, load, &[], &mut |output| self.rounding.empty(output));
        let computed = match catch_unwind(AssertUnwindSafe(compute)) {
            Ok(computed) => computed,
            Err(panic) => return empty_batch(batch.space)?.map_or_else(|| resume_unwind(panic), |kept| Ok(Some(kept))),
        };
        match computed {
            Ok(Some(output)) => {
                let mut empties = self.empties.lock();
                if empties.len() >= MOST_EMPTIES {
                    empties.clear();
                }
                empties.insert(call, output.shallow_clone());
                Ok(Some(output))
            }
            // The module refuses empty batches.
            Err(error) => empty_batch(batch.space)?.map(Some).ok_or(error),
            Ok(None) => Ok(None),
        }
    }

    /// Reads the kept rows of `keys`, including rows that other handles of this process have not written yet.
    fn read(&self, batch: &Batch<'_>, keys: &BatchKeys) -> Result<Rows<F>> {
        let mut rows = self.read_own(batch, keys)?;
        if rows.is_whole() || !batch.spaces.write_neighbours(keys.kind()) {
            return Ok(rows);
        }
        let missing = rows.missing();
        rows.take(&missing, self.read_own(batch, &keys.select(&missing))?.into_values()?)?;
        Ok(rows)
    }

    /// Computes the missing rows at `open`, or waits for other threads and processes that compute them.
    fn complete(
        &self,
        batch: &Batch<'_>,
        rows: &mut Rows<F>,
        open: Vec<usize>,
        landings: u64,
        load: Load<'_, F>,
    ) -> Result<Completed<F>> {
        // A store that failed is reported where outputs are put.
        let store = batch.space.store().ok().flatten();
        let leases = store.as_ref().map(Store::leases);
        let mut missing = Missing { inner: self, batch, rows, load };
        let stopped = complete(&batch.spaces.flight, leases, &mut missing, open, landings)?;
        if let Some(failure) = store.as_ref().and_then(Store::lease_failure) {
            self.warn_once(format!("{LEASES}: {failure}"));
        }
        Ok(stopped.unwrap_or(Completed::Rows))
    }

    /// Adds the rows at `at` that other threads or processes have finished meanwhile; returns the positions still missing.
    fn look_again(&self, batch: &Batch<'_>, rows: &mut Rows<F>, at: &[usize]) -> Result<Vec<usize>> {
        let again = self.read(batch, &batch.keys.select(at))?;
        let missing: Vec<usize> = again.missing().iter().filter_map(|&place| at.get(place).copied()).collect();
        let found = at.len() - missing.len();
        add(&batch.counters.waited, found);
        batch.counters.hit(found, again.len_bytes(), batch.spaces.mean_s());
        rows.take(at, again.into_values()?)?;
        Ok(missing)
    }

    /// Runs the module on the samples at `positions`, without gradients, and then `then` on its output, before another
    /// thread can run the module. `None` if the sign of the weights is not, or is no longer, `sign`.
    pub(crate) fn compute<T>(
        &self,
        sign: u64,
        load: Load<'_, F>,
        positions: &[usize],
        then: &mut dyn FnMut(&Output<F>) -> Result<T>,
    ) -> Result<Option<T>> {
        let inputs = load(positions)?;
        let make = || {
            let inputs = inputs.shallow_clone();
            move |module: &dyn Compute<F>, for_another| infer(module, &inputs, for_another)
        };
        let ((output, elapsed), _held) = self.exclusively(&make)?;
        let output = output.with_lists(self.options.lists);
        check_batch(&output, positions.len())?;
        if self.options.weights == Weights::Check && self.sign(&self.weights.lock().variables, usize::MAX) != sign {
            return Ok(None);
        }
        let nanoseconds = u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX);
        self.counters.compute_ns.fetch_add(nanoseconds, Ordering::Relaxed);
        if !positions.is_empty() {
            self.spaces().took(positions.len(), elapsed.as_secs_f64());
        }
        then(&output).map(Some)
    }

    /// The values as a later read returns them.
    pub(crate) fn as_read(&self, values: Vec<Value>) -> Result<Vec<Value>> {
        if self.rounding.is_exact() {
            return Ok(values);
        }
        values.into_iter().map(|value| self.rounding.value(value)).collect()
    }

    /// Puts computed rows into the store, which copies them.
    fn keep(&self, batch: &Batch<'_>, at: &[usize], computed: &Computed<F>) -> Result<()> {
        let kept =
            self.put(batch, at, computed).or_else(|error| self.forgive(Some(batch.space), error).map(|()| None))?;
        add(&self.counters.misses, at.len());
        add(if kept.is_some() { &self.counters.put_bytes } else { &self.counters.not_kept }, kept.unwrap_or(at.len()));
        Ok(())
    }

    /// The bytes that were put; `None` if the store is not writable or full.
    fn put(&self, batch: &Batch<'_>, at: &[usize], computed: &Computed<F>) -> Result<Option<usize>> {
        let Batch { spaces, space, keys, .. } = *batch;
        let len_bytes = match computed {
            Computed::Single((.., host)) => F::bytes(host)?.len(),
            Computed::Values(values) => values.iter().map(value_len_bytes).sum(),
        };
        let Some(store) = space.store()? else { return Ok(None) };
        if !self.reserve(spaces, at.len(), len_bytes)? {
            return Ok(None);
        }
        let chosen;
        let keys = if at.len() == keys.len() {
            keys
        } else {
            chosen = keys.select(at);
            &chosen
        };
        let put = match computed {
            Computed::Single((dtype, shape, host)) => {
                let bytes = F::bytes(host)?;
                keys.with(|keys| store.put_rows_bytes(keys, *dtype, shape, &bytes))
            }
            Computed::Values(values) => keys.with(|keys| store.put_batch(keys, values)),
        };
        if matches!(put, Err(tensorcask::Error::Full { .. })) {
            return Ok(None);
        }
        put.map_err(|error| error.at_positions(at))?;
        Ok(Some(len_bytes))
    }

    /// Transfers the output to the caller's device.
    fn deliver(&self, output: Output<F>, device: F::Device) -> Result<Output<F>> {
        output.try_map(&mut |tensor| F::deliver(tensor, device.clone(), &self.options.settings))
    }
}

/// A batch whose missing rows are computed.
struct Missing<'a, 'b, F: Framework> {
    inner: &'a Inner<F>,
    batch: &'a Batch<'b>,
    rows: &'a mut Rows<F>,
    load: Load<'a, F>,
}

impl<F: Framework> Work for Missing<'_, '_, F> {
    type Error = Error;
    type Stop = Completed<F>;

    fn keys(&self, at: &[usize]) -> Vec<Key> {
        at.iter().filter_map(|&at| self.batch.keys.get(at)).collect()
    }

    fn look_again(&mut self, at: &[usize]) -> Result<Vec<usize>> {
        self.inner.look_again(self.batch, self.rows, at)
    }

    fn compute(&mut self, at: &[usize]) -> Result<ControlFlow<Completed<F>>> {
        let Self { inner, batch, rows, load } = self;
        let whole = at.len() == batch.keys.len()
            && inner.rounding.is_exact()
            && inner.options.ragged == Ragged::List
            && inner.options.memory_device.is_none();
        // This runs while the module is locked, as the next call may reuse the output buffer.
        let done = inner.compute(batch.sign, &mut **load, at, &mut |output| {
            let computed = Computed::of(output, at.len())?;
            inner.keep(batch, at, &computed)?;
            if whole {
                return output.try_map(&mut F::own).map(Completed::Whole);
            }
            let values = match computed {
                Computed::Values(values) => values,
                Computed::Single(_) => split(output, at.len())?,
            };
            rows.take(at, inner.as_read(values)?.into_iter().map(Some))?;
            Ok(Completed::Rows)
        })?;
        Ok(match done {
            None => ControlFlow::Break(Completed::Changed),
            Some(Completed::Rows) => ControlFlow::Continue(()),
            Some(other) => ControlFlow::Break(other),
        })
    }

    fn publish(&mut self) -> Result<()> {
        let Ok(Some(store)) = self.batch.space.store() else { return Ok(()) };
        let flushed = store.flush_with(Durability::Buffered);
        flushed.or_else(|error| self.inner.forgive(Some(self.batch.space), error.into()))
    }

    fn recursion(&self) -> Error {
        invalid("a computation, or the loading of its inputs, asked for the very sample that it is to make")
    }
}

/// How a batch was completed.
enum Completed<F: Framework> {
    /// All rows are present now.
    Rows,
    /// The module's output is the result, as no other rows were present.
    Whole(Output<F>),
    /// The weights changed.
    Changed,
}

/// The positions of the first occurrence of each missing key, and `(from, to)` for its further occurrences.
fn unique(keys: &BatchKeys, missing: &[usize]) -> (Vec<usize>, Vec<(usize, usize)>) {
    let Some((firsts, of)) = keys.select(missing).unique() else { return (missing.to_vec(), Vec::new()) };
    let at = |place: usize| missing.get(place).copied().unwrap_or(0);
    let todo: Vec<usize> = firsts.iter().map(|&place| at(place)).collect();
    let pairs = of.iter().enumerate().map(|(place, &first)| (todo.get(first).copied().unwrap_or(0), at(place)));
    let twins = pairs.filter(|(from, to)| from != to).collect();
    (todo, twins)
}
