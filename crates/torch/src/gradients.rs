//! Inputs that carry gradients: a cached output has none, so what made the inputs would silently not learn.

use tch::Tensor;

use crate::error::Result;
use crate::error::{invalid, torch};
use crate::input::{Argument, Inputs};
use crate::resolve::Inner;

/// Whether an operation on `tensor`, as things are in this thread, would be recorded for a backward pass.
fn is_recorded(tensor: &Tensor) -> Result<bool> {
    // Gradients may be off: only a result tells.
    Ok(tensor.requires_grad() && tensor.f_alias().map_err(torch("look at an input"))?.requires_grad())
}

impl Inner {
    /// Refuses inputs that require gradients while gradients are on, unless the options accept them.
    ///
    /// # Errors
    /// [`crate::Error::Invalid`], with the first such argument.
    pub(crate) fn check_gradients(&self, inputs: &Inputs) -> Result<()> {
        if self.options.allow_grad_inputs {
            return Ok(());
        }
        for (at, (name, argument)) in inputs.sorted().into_iter().enumerate() {
            if let Argument::Tensor(tensor) | Argument::Shared(tensor) = argument
                && tensor.defined()
                && is_recorded(tensor)?
            {
                let argument = name.map_or_else(|| format!("argument {at}"), |name| format!("argument {name:?}"));
                return Err(invalid(format!(
                    "{argument} requires a gradient, but no gradient goes through a cached module: what made this input \
                     would silently not learn. Put layers that learn behind the cached module; or pass the input \
                     detached, call within no_grad, or set `allow_grad_inputs`"
                )));
            }
        }
        Ok(())
    }
}
