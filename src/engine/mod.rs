//! The engine: the only module that joins segments and index.
//!
//! Layers, lowest first; imports go downward, also among files, and `read` and `write` never import each other:
//!
//! | layer | contents |
//! | --- | --- |
//! | [`lock_order`], [`threads`], [`caps`], [`options`], [`report`] | locks with a rank, threads and forks, plain data |
//! | [`observe`] | spans and metrics for programs that collect them (features) |
//! | [`flight`] | threads that compute one key: claims, waits |
//! | [`files`] | the files in the folder other than segments and runs |
//! | [`rows`] | rows: where their bytes are, how they are decoded |
//! | [`state`] | the state that all users of an open store share, by owner |
//! | [`runs`] | index runs: planned, built, merged, published |
//! | [`lookup`] | from keys to rows |
//! | [`admit`], [`replace`], [`follow`] | memtable inserts; replacing segments; following other writers |
//! | [`leases`], [`complete`] | processes that compute one key; completing a batch |
//! | [`findings`] | known damage |
//! | [`read`], [`write`] | values, copies, scans, checks; the queue, the lane, the merger |
//! | [`compact`] | rewriting segments without superseded rows |
//! | [`evict`] | removing whole segments, to keep caps |
//! | [`open`], [`repair`] | opening, and repairing on close |
//! | [`backup`], [`merge_stores`] | copies of a store; merging other stores into one |
//! | [`reader`], [`copies`], [`store`] | the public handles |
//! | `model` | model checks of the protocols below; compiled only for them |
//!
//! # Concurrency
//!
//! **Threads.** Any number of callers read and put. One writer thread writes the queued batches. One thread at a time
//! seals segments, one merges for the memtable's bound, one merges large runs, one compacts. A call may share its work
//! with threads that end with it ([`threads`]).
//!
//! **Locks**, outermost first. A thread that holds a lock acquires only locks below it. [`lock_order::Rank`] has the
//! same order, and debug builds assert it at each lock.
//!
//! | lock | guards | held across IO |
//! | --- | --- | --- |
//! | `Flight`, `Waits` | the claims of a handle; which threads of the process wait for each other | never |
//! | `Leases` | the leases of a handle, each with the number of threads that share it | yes: system calls on locks |
//! | `Close` | the handle of the writer thread, until the store is closed | yes |
//! | `Compaction` | the handle of the thread that compacts | no |
//! | `Room` | what is counted under the caps | yes: eviction, measuring; puts wait for it |
//! | `ShortMerge`, `LongMerge` | the handles of the merge threads | yes, under the first: begins to seal |
//! | `Lane` | the lane: active segments, their numbers, the sync log | yes: all writes and syncs of the lane |
//! | `Merging` | the one merge that covers new segments | yes: puts wait for it at twice the memtable's bound |
//! | `Registry` | what is known of segment files; no segment is partly in the memtable | yes: following, opening |
//! | `Inserts` | the order in which rows enter the memtable | yes: comparing rows, zero-copy writes |
//! | `Rebuild` | a run in memory is built only once | yes: reads, to build it |
//! | `Sealing` | the outcome of sealing | yes: joins the sealing thread |
//! | `Claims`, `Refreshed`, `Queue`, `Schemas`, `MergeFailure`, `Batches` | one structure each | never |
//!
//! Below all of these, and not ranked: the shards of the memtable's entries and of the value cache. They are held for a
//! few steps, and no other lock is acquired under them. Lookups acquire these, `Batches`, and `Refreshed` (`try_lock`),
//! and hold none across IO. Some reads acquire more, and hold it across IO: a refresh `Registry`, with nothing else
//! held; the replacement of a damaged run `Rebuild`; the count of keys after a crash `Registry` and `Inserts`.
//!
//! `Flight`, `Waits` and `Leases` are acquired alone: a thread that computes, or waits for another one to compute, holds
//! no lock at all.
//!
//! Two orders are easy to get wrong. Creating an active segment acquires `Registry`, so a zero-copy write makes room
//! before it acquires `Inserts`. And the thread that publishes a run may hold `Inserts` already, so pruning the
//! memtable only tries that lock.
//!
//! **Protocols.**
//!
//! 1. *Memtable before version.* A lookup reads the memtable, then loads the version. Rows move in the other direction:
//!    a run is in the version before its rows leave the memtable. So a row is found in at least one of them.
//! 2. *Publish before prune.* For the same reason [`runs::publish`] replaces runs first and drops the rows that they
//!    cover second. A batch id that is gone is not an error: the version that is loaded next has the row. A segment is
//!    published before the batches of its growing file are pointed to the sealed one.
//! 3. *Commit timestamps order rows.* A lane reads what other lanes committed before it takes its next timestamp, which
//!    is later than all that it has seen ([`state::clock`]). Newest wins: lookups find the row of a key with the
//!    highest (timestamp, lane, row); rows that wait in the queue are newer than all others. `Inserts` is held from the
//!    queue to the memtable, so of two puts of a key, lookups find the one that is written last.
//! 4. *Cache epoch.* A put inserts its rows, increments the epoch, then removes the old values. A reader loads the
//!    epoch before the lookup, and caches its value only if the epoch is the same, under the lock of the value's shard
//!    ([`state::value_cache`]).
//! 5. *Claim, then look again.* A key is claimed (by a thread) and leased (by a process) before the lookup that decides
//!    that it has to be computed; its row is put, and flushed for other processes, before lease and claim are released.
//!    So a thread or process that gets them next finds the row ([`complete`]).

pub(crate) mod admit;
pub(crate) mod backup;
pub(crate) mod caps;
pub(crate) mod compact;
pub(crate) mod complete;
pub(crate) mod copies;
pub(crate) mod evict;
pub(crate) mod files;
pub(crate) mod findings;
pub(crate) mod flight;
pub(crate) mod follow;
pub(crate) mod leases;
pub(crate) mod lock_order;
pub(crate) mod lookup;
pub(crate) mod merge_stores;
#[cfg(test)]
#[cfg(feature = "model")]
mod model;
pub(crate) mod observe;
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
