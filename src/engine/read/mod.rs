//! Reads rows. Never imports `write`.
//!
//! [`rows`] finds the newest rows of a batch of keys; [`get`] turns them into values, [`copy`] copies them into the
//! caller's buffer, on several threads ([`parallel`]), and [`again`] repeats a read of an unlinked file. [`scan`] lists all keys and values, [`range`] keys in order;
//! [`preload`], [`stats`] and [`verify`] work on the whole store.

pub(crate) mod again;
pub(crate) mod copy;
pub(crate) mod get;
pub(crate) mod parallel;
pub(crate) mod preload;
pub(crate) mod range;
pub(crate) mod rows;
pub(crate) mod scan;
pub(crate) mod stats;
pub(crate) mod verify;
