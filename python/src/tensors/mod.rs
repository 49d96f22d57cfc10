//! Tensors and arrays: what their libraries say of them, and their bytes.

pub(crate) mod array;
pub(crate) mod memory;
pub(crate) mod tensor;
pub(crate) mod torch;
