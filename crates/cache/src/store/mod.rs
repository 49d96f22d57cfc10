//! Where outputs are kept: the stores of an identity, their folders, and what they may take.

pub mod backend;
mod json;
pub mod space;
pub mod temporary;
pub mod used;
