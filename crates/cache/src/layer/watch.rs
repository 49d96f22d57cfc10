//! Detects weights that change while a module is wrapped, and warns of ignored weights.

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
    /// A number that changes with `variables`. The check is as thorough as is cheap compared to serving `samples`
    /// samples.
    pub(crate) fn sign(&self, variables: &F::Variables, samples: usize) -> u64 {
        if variables.is_empty() { 0 } else { variables.sign(samples) ^ self.trainings().rotate_left(32) }
    }

    /// Runs the module without the cache. While the cache is off, the module may be trainable.
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

    /// Detects weights that changed since they were fingerprinted, and switches to their identity. Returns the sign of
    /// the weights in force. `samples` is the number of samples that the call serves.
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
        // The order matters: a change between two of these steps shows in the next sign.
        watched.variables.describe();
        let sign = self.sign(&watched.variables, usize::MAX);
        if ignored {
            watched.sign = sign;
            return Ok(sign);
        }
        let identity = self.identify(&watched.variables)?;
        let mut former = None;
        if identity.name() != watched.identity.name() {
            // Outputs of the former weights must not be lost silently.
            self.spaces().flush().or_else(|error| self.forgive(None, error.into()))?;
            former = Some(self.move_to(&identity)?);
        }
        watched.told = self.compare_record(&identity);
        (watched.sign, watched.identity) = (sign, identity);
        drop(watched);
        // Closing may take a while, so the lock is released first.
        drop(former);
        Ok(sign)
    }

    /// With [`Weights::Ignore`], warns if the kept outputs were computed with other weights. Returns whether the
    /// comparison is done.
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
            "outputs were computed with other weights and are served nevertheless, as the options say: {first}{more}"
        ));
        true
    }
}
