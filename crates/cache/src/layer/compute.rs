//! The trait of computations that can be wrapped. Adapters implement it for the modules of their library.

use std::collections::BTreeMap;

use crate::error::{Result, invalid};
use crate::framework::Framework;
use crate::values::input::{Argument, Inputs};
use crate::values::output::{IntoOutput, Output};

/// The settings that a wrapped object has by itself. Options that the caller sets take precedence.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Settings {
    /// The name of the folder that its outputs are kept in.
    pub module_id: Option<String>,
    /// The version of its code.
    pub version: Option<String>,
    /// The arguments that it was constructed with.
    pub arguments: BTreeMap<String, String>,
    /// Digests, by name, of weights that are not among its variables.
    pub weights: BTreeMap<String, String>,
    /// A description such as the name of its type and its configuration. Objects with different descriptions do not
    /// share outputs.
    pub structure: String,
    /// Why the settings above cannot tell it from other computations, if they cannot. A folder then requires a version.
    pub indistinct: Option<String>,
}

/// A computation whose output depends only on its inputs. [`Cached`](crate::layer::Cached) wraps it.
///
/// Implement it for your own type to give it settings. For functions and modules,
/// [`CacheOptions`](crate::layer::CacheOptions) has adapters.
pub trait Compute<F: Framework>: Send {
    /// The output for a batch. Called without gradients, by one thread at a time.
    ///
    /// # Errors
    /// Errors of the computation; nothing is kept then.
    fn compute(&self, inputs: &Inputs<F>) -> Result<Output<F>>;

    /// The output in training mode, which bypasses the cache. The same as [`Compute::compute`] by default.
    ///
    /// # Errors
    /// As [`Compute::compute`].
    fn compute_training(&self, inputs: &Inputs<F>) -> Result<Output<F>> {
        self.compute(inputs)
    }

    /// Weights and buffers, which are fingerprinted and have to be frozen.
    ///
    /// # Errors
    /// If they cannot be listed.
    fn variables(&self) -> Result<F::Variables> {
        Ok(F::Variables::default())
    }

    /// The settings. Values of this type with the same variables are told apart only by them, so the arguments or the
    /// structure must cover all other fields.
    fn settings(&self) -> Settings {
        Settings::default()
    }
}

/// Returns the only argument of a call, a tensor.
///
/// # Errors
/// [`crate::Error::Invalid`] for other arguments.
pub fn only<F: Framework>(inputs: &Inputs<F>) -> Result<&F::Tensor> {
    let mut arguments = inputs.sorted().into_iter();
    match (arguments.next(), arguments.next()) {
        (Some((None, Argument::Tensor(tensor))), None) => Ok(tensor),
        _ => Err(invalid(
            "the wrapped module takes one tensor, but other arguments were passed: wrap a function of &Inputs",
        )),
    }
}

impl Settings {
    /// The settings of a closure, which cannot be inspected.
    #[must_use]
    pub fn of_closure() -> Self {
        let why = "two closures, or one before and after a change of its code, look the same from outside";
        Self { indistinct: Some(why.to_owned()), ..Self::default() }
    }
}

/// A function of one tensor.
pub(crate) struct OfTensor<C>(pub C);

impl<F: Framework, C: Fn(&F::Tensor) -> O + Send, O: IntoOutput<F>> Compute<F> for OfTensor<C> {
    fn compute(&self, inputs: &Inputs<F>) -> Result<Output<F>> {
        (self.0)(only(inputs)?).into_output()
    }

    fn settings(&self) -> Settings {
        Settings::of_closure()
    }
}

/// A function of several arguments.
#[derive(Debug)]
pub struct OfInputs<C>(pub C);

impl<F: Framework, C: Fn(&Inputs<F>) -> Result<O> + Send, O: IntoOutput<F>> Compute<F> for OfInputs<C> {
    fn compute(&self, inputs: &Inputs<F>) -> Result<Output<F>> {
        (self.0)(inputs)?.into_output()
    }

    fn settings(&self) -> Settings {
        Settings::of_closure()
    }
}
