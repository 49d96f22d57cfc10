//! The caching layer of [`tensorcask`]: it computes the output of a function once per sample, and keeps it.
//!
//! [`CacheOptions`] wraps a function of [`tensorcask::Tensor`]s. The [`CachedModule`] looks each sample up by id or by
//! content, computes missing samples in one batch, and keeps their outputs in a [`tensorcask::Store`].
//!
//! ```
//! # fn main() -> tensorcask_cache::Result<()> {
//! # let dir = tempfile::tempdir().unwrap();
//! use tensorcask::Tensor;
//! use tensorcask_cache::{CacheOptions, Inputs};
//!
//! // Any function from a batch to a batch, such as one that runs a model of burn or ort.
//! let norm = |batch: &Tensor| {
//!     let dims = batch.shape()[1];
//!     let rows = batch.to_vec::<f32>()?;
//!     let norms: Vec<f32> = rows.chunks(dims).map(|row| row.iter().map(|x| x * x).sum::<f32>().sqrt()).collect();
//!     Tensor::from_slice(&[batch.shape()[0]], &norms)
//! };
//! let norm = CacheOptions::in_folder(dir.path(), "norm").version("1").wrap_fn(norm)?;
//! let batch = Tensor::from_slice(&[2, 2], &[3.0_f32, 4.0, 6.0, 8.0])?;
//!
//! // By ids, which are stable names of the samples; by content; and lazily: only missing inputs are loaded.
//! let first = norm.forward_with_ids(&batch, &["a", "b"])?;
//! assert_eq!(first.into_tensor()?.to_vec::<f32>()?, [5.0, 10.0]);
//! norm.forward(&batch)?;
//! let load = |missing: &[usize]| {
//!     assert_eq!(missing, [2]);
//!     Ok(Inputs::from(&Tensor::from_slice(&[1, 2], &[0.0_f32, 1.0])?))
//! };
//! let all = norm.forward_lazy(&["a", "b", "c"], load)?;
//! assert_eq!(all.into_tensor()?.to_vec::<f32>()?, [5.0, 10.0, 1.0]);
//! println!("{}", norm.end_epoch());
//! # norm.close()
//! # }
//! ```
//!
//! **An output is found if all of these are equal**: the module id, the constructor arguments, the version and the
//! weights that the caller names, the sample's id or content, plain arguments, and the variant.
//! [`CachedModule::why_miss`] lists those that differ.
//!
//! The layer is generic over the tensor library. [`layer`] has the types for adapters: [`host`], which is used above,
//! `tensorcask-torch` and `tensorcask-candle`.

#![deny(missing_docs)]

#[cfg(feature = "contract")]
pub mod contract;
pub mod host;
pub mod identities;
mod identity;
pub mod layer;

mod conversions;
mod counters;
mod error;
mod framework;
mod keys;
mod log;
mod padding;
mod rank;
mod store;
mod values;

pub use crate::counters::{Counts, HeldRows};
pub use crate::error::{Error, Result};
pub use crate::host::{Argument, Batch, BatchIter, Batches, CacheOptions, CachedModule, Call, Inputs, Output};
pub use crate::identities::{Pruned, Stays, StoredIdentity};
pub use crate::keys::ids::{Id, Ids};
pub use crate::keys::key::Content;
pub use crate::layer::options::{OnStoreError, Verification, Weights};
pub use crate::layer::why::{Elsewhere, WhyMiss};
pub use crate::log::init_logging;
pub use crate::rank::Rank;
pub use crate::store::space::Place;
pub use crate::store::temporary::TemporaryFolder;
pub use crate::store::used::DiskScope;
pub use crate::values::output::Lists;
pub use crate::values::tree::Ragged;
