//! The torch layer: a frozen module whose output for a sample is computed once.
//!
//! [`CacheOptions`] wraps a function, an `nn::Module`, an `nn::ModuleT` or a TorchScript module. The [`CachedModule`]
//! looks each sample up by id or by content, computes missing samples, and keeps their outputs in a
//! [`tensorcask::Store`].
//!
//! ```
//! # fn main() -> tensorcask_torch::Result<()> {
//! # let cache_dir = tempfile::tempdir().unwrap();
//! # let cache_dir = cache_dir.path();
//! use tch::{Device, Kind, Tensor, nn, nn::Module};
//! use tensorcask_torch::{CacheOptions, WrapModules as _};
//!
//! let mut variables = nn::VarStore::new(Device::Cpu);
//! let backbone = nn::linear(variables.root(), 16, 8, Default::default());
//! variables.freeze();
//!
//! let backbone = CacheOptions::in_folder(cache_dir, "backbone").wrap_module(backbone, &variables)?;
//! let images = Tensor::randn([3, 16], (Kind::Float, Device::Cpu));
//!
//! // By ids, which are stable names of the samples.
//! let features = backbone.forward_with_ids(&images, &["cat.jpg", "dog.jpg", "owl.jpg"])?;
//! assert_eq!(features.tensor().unwrap().size(), [3, 8]);
//!
//! // By content, and as a layer of a network.
//! let network = nn::seq().add(backbone.clone()).add_fn(|features| features.relu());
//! assert_eq!(network.forward(&images).size(), [3, 8]);
//! println!("{}", backbone.end_epoch());
//! # backbone.close()
//! # }
//! ```
//!
//! **An output is found if all of these are equal**: the module id, a fingerprint of the weights, the constructor
//! arguments and the version that the caller names, the sample's id or content, plain arguments, and the variant.
//! [`why_miss`](layer::Cached::why_miss) lists those that differ.

#![deny(missing_docs)]

mod convert;
mod error;
mod fingerprint;
mod framework;
mod ivalue;
mod memory;
mod module;
mod module_handle;
mod structure;
mod tensors;
mod types;
mod wrap;

pub use tensorcask_cache::identities::{Pruned, Stays, StoredIdentity};
pub use tensorcask_cache::layer::{self, Compute, IntoArgument, IntoIds, IntoInputs, IntoOutput, OutputLike, Settings};
pub use tensorcask_cache::{
    Content, Counts, DiskScope, Elsewhere, HeldRows, Id, Ids, Lists, OnStoreError, Place, Ragged, Rank, Verification,
    Weights, WhyMiss, init_logging,
};

pub use crate::convert::to_stored;
pub use crate::error::{Error, Result};
pub use crate::fingerprint::Variables;
pub use crate::framework::{Torch, TorchSettings, from_stored};
pub use crate::ivalue::{argument_from_ivalue, ivalue_of, output_from_ivalue};
pub use crate::module_handle::CachedModule;
pub use crate::types::{Argument, Batch, BatchIter, Batches, CacheOptions, Call, Inputs, Output};
pub use crate::wrap::WrapModules;
