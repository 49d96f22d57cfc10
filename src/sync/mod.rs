//! The locks, atomics and threads of the index and the engine, by names that the model checks can exchange.
//!
//! They are those of `parking_lot`, `arc_swap` and `std`, and nothing else. Only in unit tests that are built with the
//! private feature `model` they are those of `sync/model.rs`: a scheduler chooses at each of their operations which
//! thread goes on, and the checks in `engine::model` run the engine under many of its choices. What stays with `std`
//! and `parking_lot` there (`OnceLock`, the locks of `io`) is held for no such operation.

#[cfg(test)]
#[cfg(feature = "model")]
mod model;

#[cfg(test)]
#[cfg(feature = "model")]
pub(crate) use model::*;

#[cfg(not(all(test, feature = "model")))]
pub(crate) use system::*;

#[cfg(not(all(test, feature = "model")))]
mod system {
    pub(crate) use std::sync::atomic;
    pub(crate) use std::thread::{Builder, JoinHandle, sleep};
    pub(crate) use std::thread_local;

    pub(crate) use arc_swap::{ArcSwap, Guard};
    pub(crate) use parking_lot::{
        Condvar, Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockUpgradableReadGuard, RwLockWriteGuard,
    };
}
