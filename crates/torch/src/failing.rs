//! What is done when the store of the outputs fails: nothing that was computed is thrown away for it.

use crate::error::{Error, Result};
use crate::gather::Rows;
use crate::key::BatchKeys;
use crate::resolve::{Batch, Inner};
use tensorcask_cache::store::backend::{Space, is_of_disk};

/// What a store that fails does to a call: a disk that is full, broken or gone.
///
/// Either way the store is opened again by itself, at the first output to be kept when a second has passed since it
/// failed, then when two have, and so on up to thirty; and at once when a module with the same identity is wrapped
/// anew. Outputs that the writer had not written are computed again. [`crate::CachedModule::flush`] and
/// [`crate::CachedModule::close`] always return the failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnStoreError {
    /// The call returns the error.
    Fail,
    /// The call warns once ([`crate::CachedModule::warnings`]), computes what cannot be read, and goes on without
    /// keeping it ([`crate::Counts::not_kept`]).
    #[default]
    WarnAndCompute,
}

/// How the warning begins.
const WHAT: &str = "the store of the outputs failed";

impl Inner {
    /// Nothing, where a failure of the disk is not to stop the caller; any other error as it is.
    pub(crate) fn forgive(&self, space: Option<&Space>, error: Error) -> Result<()> {
        let Some(failure) = error.as_store().filter(|error| is_of_disk(error)) else { return Err(error) };
        let news = space.is_none_or(|space| space.fail(failure));
        if self.options.on_store_error == OnStoreError::Fail {
            return Err(error);
        }
        // Handles that share a store each tell their own callers.
        if news || !self.warnings.lock().iter().any(|warning| warning.starts_with(WHAT)) {
            let cause = if let tensorcask::Error::Poisoned { cause } = failure { cause } else { failure };
            self.warn(format!(
                "{WHAT}, so they are computed and not kept until it can be opened again, which \
                 is tried from time to time: {cause}"
            ));
        }
        Ok(())
    }

    /// What the store has of `keys`; nothing, if the disk fails and that is forgiven.
    pub(crate) fn read_own(&self, batch: &Batch<'_>, keys: &BatchKeys) -> Result<Rows> {
        Rows::read(batch.space, keys, batch.counters, self.options.recompute_damaged).or_else(|error| {
            self.forgive(Some(batch.space), error)?;
            Ok(Rows::none(keys.len()))
        })
    }
}
