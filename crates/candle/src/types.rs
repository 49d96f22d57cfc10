//! The types of the caching layer, of candle's tensors.

use tensorcask_cache::layer;

use crate::framework::Candle;

/// [`layer::CacheOptions`] of candle's tensors. [`crate::WrapModules`] has the ways to wrap modules.
pub type CacheOptions = layer::CacheOptions<Candle>;
/// [`layer::Call`] of candle's tensors.
pub type Call<'a> = layer::Call<'a, Candle>;
/// [`layer::Inputs`] of candle's tensors.
pub type Inputs = layer::Inputs<Candle>;
/// [`layer::Argument`] of candle's tensors.
pub type Argument = layer::Argument<Candle>;
/// [`layer::Output`] of candle's tensors.
pub type Output = layer::Output<Candle>;
/// [`layer::Batches`] of candle's tensors.
pub type Batches = layer::Batches<Candle>;
/// [`layer::Batch`] of candle's tensors.
pub type Batch = layer::Batch<Candle>;
/// [`layer::BatchIter`] of candle's tensors.
pub type BatchIter = layer::BatchIter<Candle>;
