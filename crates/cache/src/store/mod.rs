//! The stores of an identity, their folders, and the limit of their size.

pub mod backend;
mod json;
pub mod space;
pub mod temporary;
pub mod used;
