//! The wrapped module, as a module of `tch`.

use std::ops::Deref;

use tch::{Device, Tensor, nn};
use tensorcask_cache::layer::{Adapter, Cached, IntoIds, IntoInputs};

use crate::error::Result;
use crate::framework::Torch;
use crate::types::{Inputs, Output};

/// A frozen module whose output for a sample is computed once. It dereferences to [`Cached`], and is an [`nn::Module`]
/// that finds samples by content.
#[derive(Debug, Clone)]
pub struct CachedModule(Cached<Torch>);

impl CachedModule {
    /// [`Cached::forward`], which `nn::Module::forward` would shadow.
    ///
    /// # Errors
    /// As [`Cached::forward`].
    pub fn forward(&self, inputs: impl IntoInputs<Torch>) -> Result<Output> {
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
        ids: impl IntoIds<Torch>,
        device: Device,
        load: impl FnMut(&[usize]) -> Result<Inputs>,
    ) -> Result<Output> {
        self.call(Inputs::tensors(1)).ids(ids).run_lazy(device, load)
    }

    /// Flushes, and drops this handle. The stores are closed with the last handle that uses them.
    ///
    /// # Errors
    /// As [`Cached::flush`].
    pub fn close(self) -> Result<()> {
        self.0.close()
    }

    /// Converts the handle to a plain function from one tensor to one tensor.
    pub fn into_fn(self) -> impl Fn(&Tensor) -> Result<Tensor> + Send + Sync {
        self.0.into_fn()
    }
}

impl Adapter for Torch {
    type Module = CachedModule;
}

impl From<Cached<Torch>> for CachedModule {
    fn from(cached: Cached<Torch>) -> Self {
        Self(cached)
    }
}

impl AsRef<Cached<Torch>> for CachedModule {
    fn as_ref(&self) -> &Cached<Torch> {
        &self.0
    }
}

impl Deref for CachedModule {
    type Target = Cached<Torch>;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

/// Finds samples by content, in evaluation mode.
///
/// # Panics
/// If [`Cached::forward`] returns an error, or an output that is not one tensor. The trait cannot return errors, so
/// tch's own modules panic as well.
impl nn::Module for CachedModule {
    #[expect(clippy::panic, reason = "the trait's signature has no errors; tch's own modules panic as well")]
    fn forward(&self, xs: &Tensor) -> Tensor {
        match self.0.forward(xs).and_then(Output::into_tensor) {
            Ok(tensor) => tensor,
            Err(error) => panic!("the cached module {:?} failed: {error}", self.0.module_id()),
        }
    }
}
