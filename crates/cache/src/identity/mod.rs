//! What an identity is made of, and how its folder is called and measured.

pub(crate) mod canonical;
pub(crate) mod names;
pub(crate) mod record;
pub(crate) mod size;
