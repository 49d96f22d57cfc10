//! One call of a wrapped module, with all that decides where its outputs are kept.

use crate::error::{Result, invalid};
use crate::framework::Framework;
use crate::keys::ids::{Ids, IntoIds};
use crate::keys::key::BatchKeys;
use crate::layer::inner::{Inner, Load, Loads};
use crate::layer::why::WhyMiss;
use crate::values::input::Inputs;
use crate::values::output::Output;

/// One call of a [`Cached`](crate::layer::Cached), or a question about it.
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
/// // Without the tensors at hand: the places that they had.
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

    /// One id a sample.
    pub fn ids(mut self, ids: impl IntoIds<F>) -> Self {
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

    /// Runs it by ids without inputs at hand: `load` makes the tensors of the samples at some positions, at the places
    /// that this call's inputs have tensors ([`Inputs::tensors`]). It is called only for what is missing, and for the
    /// hits that are verified. Results come on `device`.
    ///
    /// # Errors
    /// As [`Cached::forward_with_ids`](crate::layer::Cached::forward_with_ids), and those of `load`.
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

    /// Which of the samples are kept, by ids or by content.
    ///
    /// # Errors
    /// [`crate::Error::Invalid`] for arguments that are no batch; the store's.
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

    /// Tells why the only sample of this call is missing: which part of the identity differs from those that keep it.
    ///
    /// # Errors
    /// [`crate::Error::Invalid`] unless it is one sample; the store's.
    pub fn why_miss(mut self) -> Result<WhyMiss> {
        let ids = self.take_ids()?;
        let keys = self.keys(ids)?;
        self.inner.why(&keys)
    }

    /// The ids that were given, or derived from the inputs.
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
