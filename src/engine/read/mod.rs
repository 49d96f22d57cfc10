//! Reads rows. Never imports `write`.
//!
//! [`rows`] finds the newest rows of a batch of keys; [`get`] turns them into values, [`copy`] copies the leaves that are
//! [`wanted`] into the caller's buffers, as a [`plan`] for each structure says, on several threads ([`parallel`]);
//! [`again`] repeats a read of an unlinked file.
//! [`ragged`] copies tensors whose first dimension differs. [`shapes`] and [`schemas`] describe values. [`scan`] lists
//! all keys and values, [`range`] keys in order; [`preload`], [`stats`], [`survey`] and [`verify`] work on the whole
//! store; [`locate`] explains a miss.

pub(crate) mod again;
pub(crate) mod copy;
pub(crate) mod get;
pub(crate) mod locate;
pub(crate) mod parallel;
mod plan;
pub(crate) mod preload;
pub(crate) mod ragged;
pub(crate) mod range;
pub(crate) mod rows;
pub(crate) mod scan;
pub(crate) mod schemas;
pub(crate) mod shapes;
pub(crate) mod stats;
pub(crate) mod survey;
pub(crate) mod verify;
pub(crate) mod wanted;
