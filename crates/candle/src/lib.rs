//! The candle layer: a frozen model whose output for a sample is computed once.
//!
//! [`CacheOptions`] wraps a function, or a `candle_core::Module` or `ModuleT`. The [`CachedModule`] looks each sample
//! up by id or by content, computes missing samples, and keeps their outputs in a [`tensorcask::Store`].
//!
//! ```
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let cache_dir = tempfile::tempdir()?;
//! # let cache_dir = cache_dir.path();
//! use candle_core::{DType, Device, Module, Tensor};
//! use candle_nn::VarBuilder;
//! use tensorcask_candle::{CacheOptions, WrapModules as _};
//!
//! // In practice: `candle_core::safetensors::load("model.safetensors", &Device::Cpu)?`.
//! # let weights = std::collections::HashMap::from([
//! #     ("weight".to_owned(), Tensor::ones((8, 16), DType::F32, &Device::Cpu)?),
//! #     ("bias".to_owned(), Tensor::zeros(8, DType::F32, &Device::Cpu)?),
//! # ]);
//! let builder = VarBuilder::from_tensors(weights.clone(), DType::F32, &Device::Cpu);
//! let backbone = candle_nn::linear(16, 8, builder)?;
//!
//! let backbone = CacheOptions::in_folder(cache_dir, "backbone").version("1").wrap_module(backbone, weights)?;
//! let images = Tensor::randn(0.0_f32, 1.0, (3, 16), &Device::Cpu)?;
//!
//! // By ids, which are stable names of the samples.
//! let features = backbone.forward_with_ids(&images, &["cat.jpg", "dog.jpg", "owl.jpg"])?.into_tensor()?;
//! assert_eq!(features.dims(), [3, 8]);
//!
//! // By content, and as a layer of a network.
//! let network = candle_nn::seq().add(backbone.clone()).add(candle_nn::Activation::Relu);
//! assert_eq!(network.forward(&images)?.dims(), [3, 8]);
//! println!("{}", backbone.end_epoch());
//! # Ok(backbone.close()?)
//! # }
//! ```
//!
//! **An output is found if all of these are equal**: the module id, a fingerprint of the weights, the constructor
//! arguments and the version that the caller names, the sample's id or content, plain arguments, and the variant. The
//! other adapters of `tensorcask-cache` derive the same keys, so that they find each other's outputs.
//!
//! **Gradients**: candle records every operation on a variable, in every thread. A kept output is detached. A call
//! whose inputs depend on a variable is refused, as no gradient would reach that variable.

#![deny(missing_docs)]

mod convert;
mod framework;
mod module_handle;
mod types;
mod variables;
mod wrap;

pub use tensorcask_cache::identities::{Pruned, Stays, StoredIdentity};
pub use tensorcask_cache::layer::{self, Compute, IntoArgument, IntoIds, IntoInputs, IntoOutput, OutputLike, Settings};
pub use tensorcask_cache::{
    Content, Counts, DiskScope, Elsewhere, Error, HeldRows, Id, Ids, Lists, OnStoreError, Place, Ragged, Rank, Result,
    Verification, Weights, WhyMiss, init_logging,
};

pub use crate::convert::{HostBytes, to_stored};
pub use crate::framework::{Candle, from_stored};
pub use crate::module_handle::CachedModule;
pub use crate::types::{Argument, Batch, BatchIter, Batches, CacheOptions, Call, Inputs, Output};
pub use crate::variables::Variables;
pub use crate::wrap::WrapModules;
