//! The caching layer over tensors of PyTorch: the class `Cached`, and the adapter that it is built on.

pub(crate) mod cached;
mod compute;
mod framework;
mod ids;
pub(crate) mod inputs;
mod options;
mod outputs;
mod pad;
mod variables;
