//! Weights that change while a module is wrapped, and what the caller is warned of.

use crate::counters::add;
use crate::error::Result;
use crate::framework::{Framework, Variables};
use crate::identity::record::Identity;
use crate::layer::compute::Compute;
use crate::layer::inner::Inner;
use crate::layer::options::Weights;
use crate::store::space::recorded;
use crate::values::input::Inputs;
use crate::values::output::Output;

impl<F: Framework> Inner<F> {
    /// A sign of change of `variables`, looked at as closely as is cheap beside serving so many samples.
    pub(crate) fn sign(&self, variables: &F::Variables, samples: usize) -> u64 {
        if variables.is_empty() { 0 } else { variables.sign(samples) ^ self.trainings().rotate_left(32) }
    }

    /// Past the cache. A module whose cache is off may be trained.
    pub(crate) fn bypass(&self, inputs: &Inputs<F>, training: bool) -> Result<Output<F>> {
        let _nested = self.enter()?;
        if self.options.enforce_stateless && self.is_enabled() {
            self.weights.lock().variables.check_frozen()?;
        }
        add(&self.counters.bypassed, 1);
        let gradients = F::records_gradients();
        let make = || {
            let inputs = inputs.shallow_clone();
            move |module: &dyn Compute<F>, for_another: bool| {
                let run = || if training { module.compute_training(&inputs) } else { module.compute(&inputs) };
                match for_another {
                    false => run(),
                    true => F::as_recorded(gradients, run),
                }
            }
        };
        let output = self.exclusively(&make).map(|(output, _held)| output.with_lists(self.options.lists));
        if training {
            self.trained();
        }
        output
    }

    /// Notices weights that were changed since they were fingerprinted, and moves to their identity. Returns the sign
    /// of those that are in force. `samples` is how many the call serves.
    pub(crate) fn check_weights(&self, samples: usize) -> Result<u64> {
        let mut watched = self.weights.lock();
        let ignored = self.options.weights == Weights::Ignore && watched.told;
        if ignored && !self.options.enforce_stateless {
            return Ok(watched.sign);
        }
        let sign = self.sign(&watched.variables, samples);
        if sign == watched.sign {
            return Ok(sign);
        }
        if self.options.enforce_stateless {
            watched.variables.check_frozen()?;
        }
        // In this order: what changes between two of these steps shows in the next sign.
        watched.variables.describe();
        let sign = self.sign(&watched.variables, usize::MAX);
        if ignored {
            watched.sign = sign;
            return Ok(sign);
        }
        let identity = self.identify(&watched.variables)?;
        let mut former = None;
        if identity.name() != watched.identity.name() {
            // What was computed with the former weights is not to be lost silently.
            self.spaces().flush().or_else(|error| self.forgive(None, error.into()))?;
            former = Some(self.move_to(&identity)?);
        }
        watched.told = self.compare_record(&identity);
        (watched.sign, watched.identity) = (sign, identity);
        drop(watched);
        // Closing may take a while: nobody is to wait for it.
        drop(former);
        Ok(sign)
    }

    /// With [`Weights::Ignore`], warns when the outputs that are there were computed with other weights. Returns
    /// whether there is no more to say.
    pub(crate) fn compare_record(&self, identity: &Identity) -> bool {
        if self.options.weights == Weights::Check {
            return false;
        }
        let Some(record) = self.spaces().folder().and_then(recorded) else { return true };
        let differences = identity.differences(&record);
        let Some(first) = differences.first() else { return false };
        let more = differences.len() - 1;
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        self.warn(format!(
            "outputs were computed with other weights and are served all the same, as the options say: {first}{more}"
        ));
        true
    }
}
