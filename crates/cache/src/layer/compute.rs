//! What can be wrapped: functions, and types of the user's. Adapters add the modules of their library.

use std::collections::BTreeMap;

use crate::error::{Result, invalid};
use crate::framework::Framework;
use crate::values::input::{Argument, Inputs};
use crate::values::output::{IntoOutput, Output};

/// What a wrapped object says of itself; options that the caller sets go first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Settings {
    /// The folder that its outputs are kept in.
    pub module_id: Option<String>,
    /// A version of its code.
    pub version: Option<String>,
    /// What it was constructed with.
    pub arguments: BTreeMap<String, String>,
    /// Digests of weights that are not among its variables, by name.
    pub weights: BTreeMap<String, String>,
    /// What it is, such as the name of its type and its configuration: another never meets its outputs.
    pub structure: String,
    /// Why all of the above cannot tell it from another computation, if so: outputs in a folder then ask for a version.
    pub indistinct: Option<String>,
}

/// A computation whose outputs never change for the same inputs: what [`Cached`](crate::layer::Cached) wraps.
///
/// Implement it for a type of your own to give it settings; functions and modules have adapters in
/// [`CacheOptions`](crate::layer::CacheOptions).
pub trait Compute<F: Framework>: Send {
    /// The output for a batch. Called without gradients, by one thread at a time.
    ///
    /// # Errors
    /// The computation's own; nothing is kept then.
    fn compute(&self, inputs: &Inputs<F>) -> Result<Output<F>>;

    /// The output in training mode, which is neither looked up nor kept. By default the same computation.
    ///
    /// # Errors
    /// As [`Compute::compute`].
    fn compute_training(&self, inputs: &Inputs<F>) -> Result<Output<F>> {
        self.compute(inputs)
    }

    /// Weights and buffers, for the fingerprint and the check that they are frozen.
    ///
    /// # Errors
    /// If they cannot be listed.
    fn variables(&self) -> Result<F::Variables> {
        Ok(F::Variables::default())
    }

    /// What it says of itself. Nothing else tells two values of this type apart that have the same variables: what its
    /// other fields hold belongs into the arguments or the structure.
    fn settings(&self) -> Settings {
        Settings::default()
    }
}

/// The one tensor of a call.
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
    /// Of a closure: nothing can be asked of it but to run.
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

/// A function of all arguments.
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
