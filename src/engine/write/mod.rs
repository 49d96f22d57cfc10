//! From a put to sealed segments.

pub(crate) mod grouping;
pub(crate) mod lane;
pub(crate) mod put;
pub(crate) mod queue;
pub(crate) mod seal;
