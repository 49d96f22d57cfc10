//! The wrapped module, as a module of candle.

use std::ops::Deref;

use candle_core::{Device, Module, Tensor};
use tensorcask_cache::Result;
use tensorcask_cache::layer::{Adapter, Cached, IntoIds, IntoInputs};

use crate::framework::Candle;
use crate::types::{Inputs, Output};

/// A frozen module whose output for a sample is computed once. It dereferences to [`Cached`], and is a [`Module`] that
/// finds samples by content.
#[derive(Debug, Clone)]
pub struct CachedModule(Cached<Candle>);

impl CachedModule {
    /// [`Cached::forward`], which `Module::forward` would shadow.
    ///
    /// # Errors
    /// As [`Cached::forward`].
    pub fn forward(&self, inputs: impl IntoInputs<Candle>) -> Result<Output> {
        self.0.forward(inputs)
    }

    /// The output for `ids` on `device`, whose inputs are loaded when they are needed. `load` takes the positions of
    /// samples and returns their inputs, one tensor by position. It is called for missing samples, and for the hits
    /// that [`crate::CacheOptions::verify`] selects. For other arguments or a variant, use [`crate::Call::run_lazy`].
    ///
    /// # Errors
    /// As [`Cached::forward_with_ids`], and errors of `load`.
    pub fn forward_lazy(
        &self,
        ids: impl IntoIds<Candle>,
        device: &Device,
        load: impl FnMut(&[usize]) -> Result<Inputs>,
    ) -> Result<Output> {
        self.call(Inputs::tensors(1)).ids(ids).run_lazy(device.clone(), load)
    }

    /// Flushes, and drops this handle. The stores are closed with the last handle that uses them.
    ///
    /// # Errors
    /// As [`Cached::flush`].
    pub fn close(self) -> Result<()> {
        self.0.close()
    }
}

impl Adapter for Candle {
    type Module = CachedModule;
}

impl From<Cached<Candle>> for CachedModule {
    fn from(cached: Cached<Candle>) -> Self {
        Self(cached)
    }
}

impl AsRef<Cached<Candle>> for CachedModule {
    fn as_ref(&self) -> &Cached<Candle> {
        &self.0
    }
}

impl Deref for CachedModule {
    type Target = Cached<Candle>;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

/// Finds samples by content, in evaluation mode.
impl Module for CachedModule {
    fn forward(&self, xs: &Tensor) -> candle_core::Result<Tensor> {
        self.0.forward(xs).and_then(Output::into_tensor).map_err(candle_core::Error::wrap)
    }
}
