//! The `tensorcask` command line tool, run as a script would run it.
#![expect(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    reason = "a test stops at the first thing that is not as expected"
)]

mod compact;
mod damage;
mod generated;
mod identities;
mod import;
mod output;
mod prune;
mod round_trips;
mod support;
