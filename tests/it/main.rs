//! Tests of the engine through its public interface, in one binary.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test stops at the first thing that is not as expected"
)]

// First, because it defines a macro.
#[macro_use]
mod storages;

mod absent;
mod adoption;
mod backup;
mod bad_input;
mod batch_errors;
mod capped;
mod compaction;
mod compaction_files;
mod compaction_order;
mod compaction_stops;
mod compaction_values;
mod compute;
mod crash;
mod damage;
mod eviction;
mod eviction_processes;
mod faults;
mod filling;
mod flushing;
mod forged;
mod golden;
mod interop;
mod lanes;
mod leases;
mod leaves;
mod limits;
mod merge_stores;
mod mixed_files;
mod model;
mod odd_files;
mod opening;
mod parallel;
mod processes;
mod repair;
mod residency;
mod row_times;
mod soak;
mod store;
mod survey;
mod values;
