//! The number of live keys. Every put and delete keeps it exact. After a crash that left several runs it is unknown,
//! and counted on demand.

use crate::sync::atomic::{AtomicBool, AtomicI64, Ordering};

/// The count of live keys.
#[derive(Debug)]
pub(crate) struct LiveCount {
    exact: AtomicBool,
    count: AtomicI64,
}

impl Default for LiveCount {
    fn default() -> Self {
        Self { exact: AtomicBool::new(true), count: AtomicI64::new(0) }
    }
}

impl LiveCount {
    /// Adds `keys` to the count; negative if keys were deleted.
    pub(crate) fn add(&self, keys: i64) {
        self.count.fetch_add(keys, Ordering::Relaxed);
    }

    /// Sets the count; `None` if it is not known.
    pub(crate) fn set(&self, keys: Option<u64>) {
        self.count.store(keys.map_or(0, |keys| i64::try_from(keys).unwrap_or(i64::MAX)), Ordering::Relaxed);
        self.exact.store(keys.is_some(), Ordering::Release);
    }

    /// The count, if it is known.
    pub(crate) fn get(&self) -> Option<u64> {
        let exact = self.exact.load(Ordering::Acquire);
        exact.then(|| u64::try_from(self.count.load(Ordering::Relaxed)).unwrap_or(0))
    }
}
