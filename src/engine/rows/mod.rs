//! A row, and where its bytes are.

pub(crate) mod cached_batch;
pub(crate) mod locator;
pub(crate) mod row;
