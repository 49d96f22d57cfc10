//! The locks, atomics and threads of the index and the engine, under names that model checks can redirect.
//!
//! Normally they are the types of `parking_lot`, `arc_swap` and `std`. In unit tests that are built with the private
//! feature `model`, they come from `sync/model.rs`: at each of their operations a scheduler chooses which thread
//! continues, and the checks in `engine::model` run the engine under many such schedules. Types that stay with `std`
//! and `parking_lot` there (`OnceLock`, the locks of `io`) are not held across such an operation.

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
    use std::sync::LazyLock;
    pub(crate) use std::sync::atomic;
    pub(crate) use std::thread::{Builder, JoinHandle, ThreadId, sleep};
    pub(crate) use std::thread_local;

    pub(crate) use arc_swap::{ArcSwap, Guard};
    pub(crate) use parking_lot::{
        Condvar, Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockUpgradableReadGuard, RwLockWriteGuard,
    };

    /// The calling thread.
    pub(crate) fn this_thread() -> ThreadId {
        std::thread::current().id()
    }

    /// A value that all threads of the process share, made at its first use.
    pub(crate) struct Global<T>(LazyLock<T>);

    impl<T> Global<T> {
        pub(crate) const fn new(make: fn() -> T) -> Self {
            Self(LazyLock::new(make))
        }

        pub(crate) fn get(&'static self) -> &'static T {
            &self.0
        }
    }
}
