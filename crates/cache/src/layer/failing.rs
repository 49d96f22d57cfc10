//! Handling of store failures: computed outputs are returned even if they cannot be kept.

use crate::error::{Error, Result};
use crate::framework::Framework;
use crate::keys::key::BatchKeys;
use crate::layer::gather::Rows;
use crate::layer::inner::{Batch, Inner};
use crate::layer::options::OnStoreError;
use crate::store::backend::{Space, is_of_disk};

/// The start of the warning.
const WHAT: &str = "the store of the outputs failed";

impl<F: Framework> Inner<F> {
    /// Returns `Ok` for disk failures that the options forgive, and any other error unchanged.
    pub(crate) fn forgive(&self, space: Option<&Space>, error: Error) -> Result<()> {
        let Some(failure) = error.as_store().filter(|error| is_of_disk(error)) else { return Err(error) };
        let news = space.is_none_or(|space| space.fail(failure));
        if self.options.on_store_error == OnStoreError::Fail {
            return Err(error);
        }
        // Each handle of a shared store warns its own caller.
        if news || !self.warnings().iter().any(|warning| warning.starts_with(WHAT)) {
            let cause = if let tensorcask::Error::Poisoned { cause } = failure { cause } else { failure };
            self.warn(format!(
                "{WHAT}, so they are computed and not kept until it can be opened again, which \
                 is tried from time to time: {cause}"
            ));
        }
        Ok(())
    }

    /// The rows of `keys` in the store; none if the disk fails and the options forgive it.
    pub(crate) fn read_own(&self, batch: &Batch<'_>, keys: &BatchKeys) -> Result<Rows<F>> {
        Rows::read(batch.space, keys, batch.counters, self.options.recompute_damaged).or_else(|error| {
            self.forgive(Some(batch.space), error)?;
            Ok(Rows::none(keys.len()))
        })
    }
}
