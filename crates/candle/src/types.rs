//! The types of the caching layer for candle's tensors.

use tensorcask_cache::layer;

use crate::framework::Candle;

/// [`layer::CacheOptions`] for candle's tensors. [`crate::WrapModules`] adds the methods that wrap modules.
pub type CacheOptions = layer::CacheOptions<Candle>;
/// [`layer::Call`] for candle's tensors.
pub type Call<'a> = layer::Call<'a, Candle>;
/// [`layer::Inputs`] for candle's tensors.
pub type Inputs = layer::Inputs<Candle>;
/// [`layer::Argument`] for candle's tensors.
pub type Argument = layer::Argument<Candle>;
/// [`layer::Output`] for candle's tensors.
pub type Output = layer::Output<Candle>;
/// [`layer::Batches`] for candle's tensors.
pub type Batches = layer::Batches<Candle>;
/// [`layer::Batch`] for candle's tensors.
pub type Batch = layer::Batch<Candle>;
/// [`layer::BatchIter`] for candle's tensors.
pub type BatchIter = layer::BatchIter<Candle>;
