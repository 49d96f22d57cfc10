//! One call of a wrapped module, and its options.

use crate::error::{Result, invalid};
use crate::framework::Framework;
use crate::keys::ids::{Ids, IntoIds};
use crate::keys::key::BatchKeys;
use crate::layer::inner::{Inner, Load, Loads};
use crate::layer::why::WhyMiss;
use crate::values::input::Inputs;
use crate::values::output::Output;

/// One call of a [`Cached`](crate::layer::Cached), or a query about it.
///
/// ```
/// # fn main() -> tensorcask_cache::Result<()> {
/// use tensorcask::Tensor;
/// use tensorcask_cache::{CacheOptions, Inputs};
///
/// let weighted = CacheOptions::in_memory().module_id("weighted").wrap_inputs_fn(|inputs: &Inputs| {
///     let (x, mask) = (inputs.tensor(0)?, inputs.tensor(1)?);
///     let product: Vec<f64> = x.to_vec::<f64>()?.iter().zip(mask.to_vec::<f64>()?).map(|(x, mask)| x * mask).collect();
///     Ok(Tensor::from_slice(x.shape(), &product)?)
/// })?;
/// let (x, mask) = (Tensor::from_slice(&[2], &[1.0, 2.0])?, Tensor::from_slice(&[2], &[0.0, 1.0])?);
/// weighted.call([&x, &mask]).ids(&["a", "b"]).variant(3).run()?;
///
/// // A lookup needs no tensors, only their places.
/// assert_eq!(weighted.call(Inputs::tensors(2)).ids(&["a", "c"]).variant(3).contains()?, [true, false]);
/// assert!(weighted.call(Inputs::tensors(2)).ids(&["a"]).variant(3).why_miss()?.kept);
/// # Ok(())
/// # }
/// ```
#[must_use = "a call does nothing until it is run"]
pub struct Call<'a, F: Framework> {
    inner: &'a Inner<F>,
    inputs: Inputs<F>,
    ids: Option<Result<Ids>>,
    variant: u32,
    training: bool,
}

impl<'a, F: Framework> Call<'a, F> {
    pub(crate) const fn new(inner: &'a Inner<F>, inputs: Inputs<F>) -> Self {
        Self { inner, inputs, ids: None, variant: 0, training: false }
    }

    /// The ids, one per sample.
    pub fn ids(mut self, ids: impl IntoIds<F>) -> Self {
        self.ids = Some(ids.into_ids());
        self
    }

    /// The variant of the samples, such as an augmentation (default: 0).
    pub fn variant(mut self, variant: u32) -> Self {
        self.variant = variant;
        self
    }

    /// Calls the module in training mode. Its output then varies, so the cache is bypassed.
    pub fn training(mut self, training: bool) -> Self {
        self.training = training;
        self
    }

    /// Runs the call.
    ///
    /// # Errors
    /// As [`Cached::forward`](crate::layer::Cached::forward).
    pub fn run(mut self) -> Result<Output<F>> {
        let inner = self.inner;
        let batch = self.inputs.batch_size()?;
        let ids = self.take_ids()?;
        if self.training || !self.inner.is_enabled() {
            return inner.bypass(&self.inputs, self.training);
        }
        inner.check_gradients(&self.inputs)?;
        let keys = self.keys(ids)?;
        let inputs = &self.inputs;
        inner.run(&keys, inputs.device(), Loads::Inputs, &mut |positions| {
            let whole = positions.len() == batch && positions.iter().enumerate().all(|(at, &position)| at == position);
            if whole { Ok(inputs.shallow_clone()) } else { inputs.select(positions) }
        })
    }

    /// Runs the call by ids, and loads inputs when they are needed. `load` takes positions of samples and returns their
    /// tensors, at the places where this call's inputs have tensors ([`Inputs::tensors`]). It is called for missing
    /// samples and for hits that are verified. Results are returned on `device`.
    ///
    /// # Errors
    /// As [`Cached::forward_with_ids`](crate::layer::Cached::forward_with_ids), and errors of `load`.
    pub fn run_lazy(self, device: F::Device, mut load: impl FnMut(&[usize]) -> Result<Inputs<F>>) -> Result<Output<F>> {
        self.run_from(device, Loads::Lazily, &mut load)
    }

    pub(crate) fn run_from(mut self, device: F::Device, loads: Loads, load: Load<'_, F>) -> Result<Output<F>> {
        let inner = self.inner;
        let ids = self.take_ids()?.ok_or_else(|| invalid("no ids were given: without inputs there is no content"))?;
        let (inputs, training, samples) = (self.inputs.shallow_clone(), self.training, ids.len());
        let off = training || (!self.inner.is_enabled() && loads == Loads::Lazily);
        let mut load = |positions: &[usize]| {
            let loaded = load(positions)?;
            let batch = loaded.batch_size()?;
            if batch != positions.len() {
                return Err(invalid(format!(
                    "{batch} samples were loaded for {} missing ids: load one each",
                    positions.len()
                )));
            }
            if !off {
                inner.check_gradients(&loaded)?;
                loaded.check_dense()?;
            }
            inputs.filled(loaded)
        };
        if off && samples > 0 {
            let all: Vec<usize> = (0..samples).collect();
            return inner.bypass(&load(&all)?, training)?.to_device(device);
        }
        inner.run(&self.keys(Some(ids))?, device, loads, &mut load)
    }

    /// Whether each sample is kept, by ids or by content.
    ///
    /// # Errors
    /// [`crate::Error::Invalid`] for arguments that do not form a batch; errors of the store.
    pub fn contains(mut self) -> Result<Vec<bool>> {
        let ids = self.take_ids()?;
        let keys = self.keys(ids)?;
        let inner = self.inner;
        inner.check_weights(usize::MAX)?;
        let spaces = inner.spaces();
        let Some(reader) = spaces.space(keys.kind())?.reader()? else { return Ok(vec![false; keys.len()]) };
        let found = keys.with(|keys| reader.contains_batch(keys))?;
        if found.iter().all(|found| *found) || !spaces.write_neighbours(keys.kind()) {
            return Ok(found);
        }
        Ok(keys.with(|keys| reader.contains_batch(keys))?)
    }

    /// Explains why the only sample of this call is missing: lists the identities that keep it, and how they differ.
    ///
    /// # Errors
    /// [`crate::Error::Invalid`] unless the call has exactly one sample; errors of the store.
    pub fn why_miss(mut self) -> Result<WhyMiss> {
        let ids = self.take_ids()?;
        let keys = self.keys(ids)?;
        self.inner.why(&keys)
    }

    /// The given ids, or those derived from the inputs.
    fn take_ids(&mut self) -> Result<Option<Ids>> {
        match (self.ids.take(), &self.inner.options.ids_from) {
            (Some(ids), _) => {
                let ids = ids?;
                if self.inputs.has_tensors() {
                    self.check_ids(&ids)?;
                }
                Ok(Some(ids))
            }
            (None, Some(derive)) if self.inputs.has_tensors() => {
                let nested = self.inner.enter()?;
                let ids = derive(&self.inputs)?;
                drop(nested);
                self.check_ids(&ids)?;
                Ok(Some(ids))
            }
            _ => Ok(None),
        }
    }

    fn check_ids(&self, ids: &Ids) -> Result<()> {
        let batch = self.inputs.batch_size()?;
        if ids.len() == batch {
            return Ok(());
        }
        Err(invalid(format!("{} ids were given for {batch} samples: give one id a sample", ids.len())))
    }

    fn keys(&self, ids: Option<Ids>) -> Result<BatchKeys> {
        self.inputs.check_dense()?;
        match ids {
            Some(ids) => BatchKeys::by_id(ids, &self.inputs, self.variant),
            None => {
                let content = self.inner.options.content;
                BatchKeys::by_content(&self.inputs, self.inputs.batch_size()?, content, self.variant)
            }
        }
    }
}
