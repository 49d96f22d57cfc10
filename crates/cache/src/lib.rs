//! The caching layer of [`tensorcask`], without a tensor library: what adapters such as `tensorcask-torch` are made of.

#![deny(missing_docs)]

pub mod identities;
#[doc(hidden)]
pub mod store;
#[doc(hidden)]
pub mod threads;

#[doc(hidden)]
pub mod counters;
mod error;
mod log;
mod rank;

pub use crate::counters::Counts;
pub use crate::error::{Error, Result};
#[doc(hidden)]
pub use crate::identities::{
    canonical::Canonical,
    list_beside, prune_listed,
    record::{ENCODING, Identity},
};
pub use crate::log::init_logging;
pub use crate::rank::Rank;
pub use crate::store::space::Place;
