//! Index runs: which are merged, how they are built, and how they replace others.

pub(crate) mod build;
pub(crate) mod count;
pub(crate) mod hashes;
pub(crate) mod merge;
pub(crate) mod plan;
pub(crate) mod publish;
pub(crate) mod sources;
