//! The torch layer: a frozen module whose outputs are computed once.
//!
//! [`CacheOptions`] wraps a function, an `nn::Module`, an `nn::ModuleT` or a TorchScript module; the [`CachedModule`] looks
//! each sample up by id or by content, computes what is missing, and keeps it in a [`crate::Store`].
//!
//! ```
//! # fn main() -> tensorcask::Result<()> {
//! # let cache_dir = tempfile::tempdir().unwrap();
//! # let cache_dir = cache_dir.path();
//! use tch::{Device, Kind, Tensor, nn, nn::Module};
//! use tensorcask::torch::CacheOptions;
//!
//! let mut variables = nn::VarStore::new(Device::Cpu);
//! let backbone = nn::linear(variables.root(), 16, 8, Default::default());
//! variables.freeze();
//!
//! let backbone = CacheOptions::in_folder(cache_dir, "backbone").wrap_module(backbone, &variables)?;
//! let images = Tensor::randn([3, 16], (Kind::Float, Device::Cpu));
//!
//! // By ids: stable names of the samples.
//! let features = backbone.forward_with_ids(&images, &["cat.jpg", "dog.jpg", "owl.jpg"])?;
//! assert_eq!(features.tensor().unwrap().size(), [3, 8]);
//!
//! // By content; and as a layer of a network.
//! let network = nn::seq().add(backbone.clone()).add_fn(|features| features.relu());
//! assert_eq!(network.forward(&images).size(), [3, 8]);
//! println!("{}", backbone.end_epoch());
//! # backbone.close()
//! # }
//! ```
//!
//! **What decides whether an output is met**: the module id, a fingerprint of the weights, the constructor arguments and
//! the version that the caller gives, the sample's id or content, plain arguments, and the variant. [`CachedModule::why_miss`] tells
//! which of them differs.

mod backend;
mod batches;
mod cache;
mod call;
mod convert;
mod counters;
mod error;
mod exclusive;
mod failing;
mod fingerprint;
mod flight;
mod gather;
mod gradients;
mod held;
mod identities;
mod input;
mod key;
mod log;
mod memory;
mod module;
mod nested;
mod options;
mod output;
mod rank;
mod resolve;
mod rounding;
mod space;
mod strided;
mod structure;
mod temporary;
mod tree;
mod used;
mod verify;
mod waits;
mod watch;
mod why;

pub use self::batches::{Batch, BatchIter, Batches};
pub use self::cache::CachedModule;
pub use self::call::Call;
pub use self::counters::Counts;
pub use self::failing::OnStoreError;
pub use self::fingerprint::Variables;
pub use self::input::{Argument, Inputs};
pub use self::key::{Content, Id, Ids, IntoIds};
pub use self::log::init_logging;
pub use self::module::{Compute, Settings};
pub use self::options::{CacheOptions, Verification, Weights};
pub use self::output::{IntoOutput, Lists, Output};
pub use self::rank::Rank;
pub use self::space::Place;
pub use self::tree::Ragged;
pub use self::why::{Elsewhere, WhyMiss};
pub use crate::identities::{Pruned, Stays, StoredIdentity};
