//! What readers do with rows.

pub(crate) mod copy;
pub(crate) mod get;
pub(crate) mod parallel;
pub(crate) mod preload;
pub(crate) mod scan;
pub(crate) mod stats;
pub(crate) mod verify;
