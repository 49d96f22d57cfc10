//! The engine: the only module that joins segments and index.
//!
//! Layers, lowest first; imports go downward, also among files, and `read` and `write` never import each other:
//!
//! | layer | what it is |
//! | --- | --- |
//! | [`lock_order`], [`threads`], [`options`], [`report`] | locks with a rank, threads and forks, plain data |
//! | [`files`] | the files in the folder other than segments and runs |
//! | [`rows`] | a row, where its bytes are, what they say |
//! | [`state`] | what all users of an open store share, by owner |
//! | [`runs`] | index runs: planned, built, merged, published |
//! | [`lookup`] | from keys to rows |
//! | [`admit`], [`replace`], [`follow`] | rows enter the memtable; a segment takes the place of others; what other writers
//! committed is taken in |
//! | [`findings`] | what is known to be wrong |
//! | [`read`], [`write`] | values, copies, scans, checks; the queue, the lane, the merger |
//! | [`compact`] | segments are written anew without what counts no more |
//! | [`open`], [`repair`] | opening, and mending on close |
//! | [`reader`], [`store`] | the public handles |
//! | `model` | model checks of the protocols below; compiled for them alone |
//!
//! # Concurrency
//!
//! **Threads.** Any number of callers read and put. One writer thread writes what waits in the queue. One thread at a
//! time seals segments, one merges for the memtable's bound, one merges large runs, one compacts. A call may share its work with
//! threads that end with it ([`threads`]).
//!
//! **Locks**, outermost first. A thread that holds one takes only locks below it. [`lock_order::Rank`] has the same
//! order, and debug builds assert it at each lock.
//!
//! | lock | guards | held across IO |
//! | --- | --- | --- |
//! | `Close` | the handle of the writer thread, until the store is closed | yes |
//! | `Compaction` | the handle of the thread that compacts | never |
//! | `ShortMerge`, `LongMerge` | the handles of the merge threads | begins to seal under the first |
//! | `Lane` | the lane: active segments, their numbers, the sync log | yes: all writes and syncs of the lane |
//! | `Merging` | the one merge that takes in what no run covers | yes: puts wait for it at twice the memtable's bound |
//! | `Registry` | what is known of segment files; that no segment's rows are half entered | yes: following, opening |
//! | `Inserts` | the order in which rows enter the memtable | where rows are compared; zero-copy writes |
//! | `Rebuild` | that a run in memory is built once | reads, to build it |
//! | `Sealing` | the outcome of sealing | joins the sealing thread |
//! | `Claims`, `Refreshed`, `Queue`, `Schemas`, `MergeFailure`, `Batches` | one structure each | never |
//!
//! Below all of these, and not ranked: the shards of the memtable's entries and of the value cache. They are held for a
//! few steps, and no other lock is acquired under them. Lookups take these, `Batches`, and `Refreshed` (`try_lock`), and
//! hold none across IO. A reader that refreshes takes `Registry` with nothing else held; one that replaces a damaged run
//! takes `Rebuild`, and one that counts keys after a crash `Registry` and `Inserts`: these are held across IO.
//!
//! Two orders that are easy to get wrong: making an active segment takes `Registry`, so a zero-copy write makes room
//! before it takes `Inserts`; and a run may be published by a thread that holds `Inserts` already, so pruning the
//! memtable only tries that lock.
//!
//! **Protocols.**
//!
//! 1. *Memtable before version.* A lookup reads the memtable, then loads the version. Rows move in the other direction:
//!    a run is in the version before its rows leave the memtable. So a row is found in at least one of them.
//! 2. *Publish before prune.* For the same reason [`runs::publish`] replaces runs first and drops the rows that they
//!    cover second. A batch id that is gone is not an error: the version that is loaded next has the row. A segment is
//!    published before the batches of its growing file are pointed to the sealed one.
//! 3. *Commit timestamps order rows.* A lane takes in what other lanes committed before it takes its next timestamp,
//!    which is later than all that it has seen ([`state::clock`]). The row with the highest (timestamp, lane, row) is
//!    the one that is read; rows that wait in the queue are newer than all others. `Inserts` is held from the queue to
//!    the memtable, so of two puts of a key the one that is written last is also the one that is read.
//! 4. *Cache epoch.* A put enters its rows, counts the epoch up, then removes the old values. A reader loads the epoch
//!    before the lookup and keeps its value only if the epoch is the same, under the lock of the value's shard
//!    ([`state::value_cache`]).

pub(crate) mod admit;
pub(crate) mod compact;
pub(crate) mod files;
pub(crate) mod findings;
pub(crate) mod follow;
pub(crate) mod lock_order;
pub(crate) mod lookup;
#[cfg(test)]
#[cfg(feature = "model")]
mod model;
pub(crate) mod open;
pub(crate) mod options;
pub(crate) mod read;
pub(crate) mod reader;
pub(crate) mod repair;
pub(crate) mod replace;
pub(crate) mod report;
pub(crate) mod rows;
pub(crate) mod runs;
pub(crate) mod state;
pub(crate) mod store;
pub(crate) mod threads;
pub(crate) mod write;
