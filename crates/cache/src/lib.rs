//! The caching layer of [`tensorcask`], without a tensor library: what adapters such as `tensorcask-torch` are made of.

#![deny(missing_docs)]

mod error;

pub use crate::error::{Error, Result};
