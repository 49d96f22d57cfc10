//! Rows: where their bytes are, and how they are decoded. Imports segments only.

pub(crate) mod cached_batch;
pub(crate) mod decode;
pub(crate) mod locator;
pub(crate) mod ordered_keys;
pub(crate) mod row;
pub(crate) mod row_map;
