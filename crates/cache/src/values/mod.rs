//! Inputs and outputs of a module, and their conversion to values of a store.

pub(crate) mod input;
pub(crate) mod output;
pub(crate) mod rounding;
pub(crate) mod stacked;
pub(crate) mod tree;
