//! Compares tensorcask with other embedded stores: one trait, one set of workloads, one process per engine.
//!
//! `cargo run --release --manifest-path benches/peers/Cargo.toml -- --help` explains the program.

pub mod child;
pub mod engine;
pub mod engines;
pub mod machine;
pub mod parent;
pub mod plot;
pub mod report;
pub mod results;
pub mod rows;
pub mod settings;
pub mod targets;

/// The result of all functions here: a benchmark stops at the first error and reports it.
pub type Fallible<T = ()> = Result<T, Box<dyn std::error::Error>>;
