//! Threads that need the same sample or the same module, and nested calls.

pub mod flight;
pub mod nested;
pub mod waits;
