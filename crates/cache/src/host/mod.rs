//! The adapter for [`tensorcask::Tensor`], which needs no tensor library. It wraps plain Rust functions, and functions
//! of any library whose tensors are copied to and from bytes.

mod elements;
mod framework;

use crate::error::Result;
use crate::keys::ids::IntoIds;
use crate::layer;

pub use self::framework::Host;

/// [`layer::CacheOptions`] of host tensors.
pub type CacheOptions = layer::CacheOptions<Host>;
/// [`layer::Cached`] of host tensors.
pub type CachedModule = layer::Cached<Host>;
/// [`layer::Call`] of host tensors.
pub type Call<'a> = layer::Call<'a, Host>;
/// [`layer::Inputs`] of host tensors.
pub type Inputs = layer::Inputs<Host>;
/// [`layer::Argument`] of host tensors.
pub type Argument = layer::Argument<Host>;
/// [`layer::Output`] of host tensors.
pub type Output = layer::Output<Host>;
/// [`layer::Batches`] of host tensors.
pub type Batches = layer::Batches<Host>;
/// [`layer::Batch`] of host tensors.
pub type Batch = layer::Batch<Host>;
/// [`layer::BatchIter`] of host tensors.
pub type BatchIter = layer::BatchIter<Host>;

impl layer::Cached<Host> {
    /// The output for `ids`, whose inputs are loaded when they are needed. `load` takes the positions of samples and
    /// returns their inputs, one tensor by position. It is called for missing samples, and for the hits that
    /// [`layer::CacheOptions::verify`] selects. For other arguments or a variant, use [`layer::Call::run_lazy`].
    ///
    /// # Errors
    /// As [`layer::Cached::forward_with_ids`], and errors of `load`.
    pub fn forward_lazy(
        &self,
        ids: impl IntoIds<Host>,
        load: impl FnMut(&[usize]) -> Result<Inputs>,
    ) -> Result<Output> {
        self.call(Inputs::tensors(1)).ids(ids).run_lazy((), load)
    }
}
