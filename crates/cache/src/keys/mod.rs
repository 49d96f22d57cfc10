//! What samples are found by: ids, and hashes of their content.

pub(crate) mod ids;
pub(crate) mod key;
mod strided;
