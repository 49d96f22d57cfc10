//! Threads that need the same key or the same module: claims, waits, and nested calls.

pub mod claims;
pub mod nested;
pub mod waits;
