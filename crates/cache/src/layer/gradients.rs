//! The check of inputs for gradients. A cached output carries none, so the model that produced the inputs would
//! silently not learn.

use crate::error::{Result, invalid};
use crate::framework::Framework;
use crate::layer::inner::Inner;
use crate::values::input::Inputs;

impl<F: Framework> Inner<F> {
    /// Refuses inputs that require gradients while gradients are recorded, unless the options allow them.
    ///
    /// # Errors
    /// [`crate::Error::Invalid`], which names the first such argument.
    pub(crate) fn check_gradients(&self, inputs: &Inputs<F>) -> Result<()> {
        if self.options.allow_grad_inputs {
            return Ok(());
        }
        let Some(argument) = inputs.first_tensor(F::is_recorded)? else { return Ok(()) };
        Err(invalid(format!(
            "{argument} requires a gradient, but no gradient goes through a cached module: what made this input would \
             silently not learn. Put layers that learn behind the cached module; or pass the input detached, call within \
             no_grad, or set `allow_grad_inputs`"
        )))
    }
}
