//! How samples are found: by ids, or by hashes of their content.

pub(crate) mod ids;
pub(crate) mod key;
mod strided;
