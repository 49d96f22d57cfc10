//! What goes into a module and comes out of it, and how that becomes values of a store.

pub(crate) mod input;
pub(crate) mod output;
pub(crate) mod rounding;
pub(crate) mod tree;
