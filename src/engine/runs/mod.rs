//! Index runs: which are merged, and how they are built.

pub(crate) mod build;
pub(crate) mod plan;
