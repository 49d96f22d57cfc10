//! The caching layer for any tensor library, from which adapters are built.
//!
//! An adapter implements [`Framework`] and [`Adapter`] for its own type, and defines aliases of the types here: `pub
//! type CacheOptions = tensorcask_cache::layer::CacheOptions<Mine>`. [`crate::conversions`] makes its tensors inputs
//! and outputs of calls; [`IntoIds`] makes them ids. Its tests run the contract, `tensorcask_cache::contract!(Mine);`,
//! which requires the feature `contract`.

mod batches;
mod cached;
mod call;
mod compute;
mod exclusive;
mod failing;
mod gather;
mod gradients;
mod held;
mod inner;
mod kept;
pub(crate) mod options;
mod resolve;
mod room;
mod verify;
mod watch;
pub(crate) mod why;
mod wrap;

pub use crate::error::{Error, Result};
pub use crate::framework::{Framework, Variables, View, key_name};
pub use crate::keys::ids::{IntoIds, natural};
pub use crate::layer::batches::{Batch, BatchIter, Batches};
pub use crate::layer::cached::Cached;
pub use crate::layer::call::Call;
pub use crate::layer::compute::{Compute, OfInputs, Settings, only};
pub use crate::layer::options::CacheOptions;
pub use crate::layer::wrap::Adapter;
pub use crate::padding::{Block, fill_padded, padded_shape};
pub use crate::values::input::{Argument, Inputs, IntoArgument, IntoInputs};
pub use crate::values::output::{IntoOutput, Output, OutputLike};
