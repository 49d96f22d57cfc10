//! The types of the caching layer for `tch` tensors.

use tensorcask_cache::layer;

use crate::framework::Torch;

/// [`layer::CacheOptions`] for `tch` tensors. [`crate::WrapModules`] adds the methods that wrap modules.
pub type CacheOptions = layer::CacheOptions<Torch>;
/// [`layer::Call`] for `tch` tensors.
pub type Call<'a> = layer::Call<'a, Torch>;
/// [`layer::Inputs`] for `tch` tensors.
pub type Inputs = layer::Inputs<Torch>;
/// [`layer::Argument`] for `tch` tensors.
pub type Argument = layer::Argument<Torch>;
/// [`layer::Output`] for `tch` tensors.
pub type Output = layer::Output<Torch>;
/// [`layer::Batches`] for `tch` tensors.
pub type Batches = layer::Batches<Torch>;
/// [`layer::Batch`] for `tch` tensors.
pub type Batch = layer::Batch<Torch>;
/// [`layer::BatchIter`] for `tch` tensors.
pub type BatchIter = layer::BatchIter<Torch>;
