//! Threads that want the same sample or the same module, and calls inside of calls.

pub mod flight;
pub mod nested;
pub mod waits;
