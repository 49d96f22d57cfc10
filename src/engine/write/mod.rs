//! From a put to sealed segments and merged runs. Never imports `read`.
//!
//! [`put`] makes rows readable and pushes them to the [`queue`]; the [`writer`] takes them to the [`lane`], which
//! writes them to [`active`] segments ([`grouping`]: which batches are written as one) and has these [`seal`]ed; the
//! [`merger`] merges sealed segments into runs.

pub(crate) mod active;
pub(crate) mod grouping;
pub(crate) mod key_kind;
pub(crate) mod lane;
pub(crate) mod merger;
pub(crate) mod numbers;
pub(crate) mod put;
pub(crate) mod queue;
pub(crate) mod schemas;
pub(crate) mod seal;
#[cfg(test)]
pub(crate) mod testing;
pub(crate) mod writer;
