//! The parts of an identity, the names in its folder, and the size of its files.

pub(crate) mod canonical;
pub(crate) mod names;
pub(crate) mod record;
pub(crate) mod size;
