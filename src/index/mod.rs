//! The index: a bounded table in memory, and immutable runs on disk.
//!
//! [`entries`] holds what is newer than the newest run. [`run`] finds rows in a file of 64-byte buckets that [`build`]
//! writes from the segments' sorted hash [`block`]s, which [`merge`] merges and [`sort`] sorts. [`keys_fst`] keeps keys
//! in order, which [`sort_keys`] sorts. This module does not know segments: a row is a number.

pub(crate) mod block;
pub(crate) mod build;
pub(crate) mod entries;
pub(crate) mod keys_fst;
pub(crate) mod merge;
pub(crate) mod run;
pub(crate) mod run_layout;
pub(crate) mod sort;
pub(crate) mod sort_keys;
