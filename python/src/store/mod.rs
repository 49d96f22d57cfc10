//! Stores: the class `Store`, and what its arguments and results are made of.

mod arrow;
pub(crate) mod class;
pub(crate) mod handle;
pub(crate) mod keys;
pub(crate) mod options;
mod reports;
mod rows;
mod values;
