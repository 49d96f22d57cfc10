//! The `tensorcask` command line tool, run as a script would run it.
#![expect(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    reason = "a test stops at the first thing that is not as expected"
)]

mod bench;
mod compact;
mod copies;
mod damage;
mod generated;
mod identities;
mod import;
mod operations;
mod output;
mod prune;
mod report;
mod round_trips;
mod schemas;
mod support;
mod why_miss;
