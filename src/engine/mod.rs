//! The store: the only room that joins segments, index and hot tier.
//!
//! [`state::Core`] is what readers and writers share: the published view of segments and runs, the delta, and the
//! slots its entries point to. `lookup` finds rows in it (`directory`: from a run's row to its batch), `read`
//! turns them into values, `copy` into the caller's buffer; `cold` reads in what a batch misses, `warm` everything.
//! `lane` is the writer's side of the files, `sealing` what goes on beside it, `pending` the queue before it,
//! `worker` the thread between them; `background` starts such threads. `open` opens, `recover` goes on with what
//! a writer left, `refresh` follows other writers, `maintain` builds runs, and `merges` chooses what goes into one.

pub(crate) mod files;
pub(crate) mod findings;
pub(crate) mod follow;
pub(crate) mod lookup;
pub(crate) mod open;
pub(crate) mod options;
pub(crate) mod read;
pub(crate) mod reader;
pub(crate) mod repair;
pub(crate) mod report;
pub(crate) mod rows;
pub(crate) mod runs;
pub(crate) mod state;
pub(crate) mod store;
pub(crate) mod threads;
pub(crate) mod write;
