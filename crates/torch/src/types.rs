//! The types of the caching layer, of `tch` tensors.

use tensorcask_cache::layer;

use crate::framework::Torch;

/// [`layer::CacheOptions`] of `tch` tensors. [`crate::WrapModules`] has the ways to wrap modules.
pub type CacheOptions = layer::CacheOptions<Torch>;
/// [`layer::Call`] of `tch` tensors.
pub type Call<'a> = layer::Call<'a, Torch>;
/// [`layer::Inputs`] of `tch` tensors.
pub type Inputs = layer::Inputs<Torch>;
/// [`layer::Argument`] of `tch` tensors.
pub type Argument = layer::Argument<Torch>;
/// [`layer::Output`] of `tch` tensors.
pub type Output = layer::Output<Torch>;
/// [`layer::Batches`] of `tch` tensors.
pub type Batches = layer::Batches<Torch>;
/// [`layer::Batch`] of `tch` tensors.
pub type Batch = layer::Batch<Torch>;
/// [`layer::BatchIter`] of `tch` tensors.
pub type BatchIter = layer::BatchIter<Torch>;
