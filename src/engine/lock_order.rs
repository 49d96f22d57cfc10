//! Locks with a rank, so that debug builds check the order in which they are acquired.
//!
//! In debug builds each lock has a rank, and each thread a list of the ranks that it holds. Acquiring a lock while one
//! of the same or a higher rank is held fails an assertion, whether or not another thread acquires the two in reverse
//! order at that moment. `try_lock` is exempt, since it never waits. Release builds compile none of this.

use std::ops::{Deref, DerefMut};
use std::time::{Duration, Instant};

use crate::sync::{Condvar, Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// The locks of an open store, outermost first; [`crate::engine`] says what each guards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Rank {
    Flight,
    Waits,
    Leases,
    Close,
    Compaction,
    Room,
    ShortMerge,
    LongMerge,
    Lane,
    Merging,
    Registry,
    Inserts,
    Rebuild,
    Sealing,
    Claims,
    Refreshed,
    Queue,
    Schemas,
    MergeFailure,
    Batches,
}

/// A mutex with a rank.
#[derive(Debug)]
pub(crate) struct RankedMutex<T> {
    mutex: Mutex<T>,
    #[cfg(debug_assertions)]
    rank: Rank,
}

/// A reader-writer lock with a rank.
#[derive(Debug)]
pub(crate) struct RankedRwLock<T> {
    lock: RwLock<T>,
    #[cfg(debug_assertions)]
    rank: Rank,
}

/// A lock that is held.
#[derive(Debug)]
pub(crate) struct Ranked<G> {
    guard: G,
    #[cfg(debug_assertions)]
    _held: held::Held,
}

pub(crate) type RankedGuard<'a, T> = Ranked<MutexGuard<'a, T>>;

impl<G: Deref> Deref for Ranked<G> {
    type Target = G::Target;

    #[inline]
    fn deref(&self) -> &G::Target {
        &self.guard
    }
}

impl<G: DerefMut> DerefMut for Ranked<G> {
    #[inline]
    fn deref_mut(&mut self) -> &mut G::Target {
        &mut self.guard
    }
}

impl<T> RankedMutex<T> {
    pub(crate) fn new(rank: Rank, value: T) -> Self {
        let _in_release = rank;
        Self {
            mutex: Mutex::new(value),
            #[cfg(debug_assertions)]
            rank,
        }
    }

    #[inline]
    pub(crate) fn lock(&self) -> RankedGuard<'_, T> {
        #[cfg(debug_assertions)]
        held::check(self.rank);
        self.ranked(self.mutex.lock())
    }

    #[inline]
    pub(crate) fn try_lock(&self) -> Option<RankedGuard<'_, T>> {
        self.mutex.try_lock().map(|guard| self.ranked(guard))
    }

    #[inline]
    fn ranked<'a>(&'a self, guard: MutexGuard<'a, T>) -> RankedGuard<'a, T> {
        Ranked {
            guard,
            #[cfg(debug_assertions)]
            _held: held::Held::new(self.rank),
        }
    }
}

impl<T> RankedGuard<'_, T> {
    /// Releases the lock, waits for `condition`, and acquires the lock again.
    pub(crate) fn wait(&mut self, condition: &Condvar) {
        condition.wait(&mut self.guard);
    }

    /// As `wait`, but at most until `end`.
    pub(crate) fn wait_until(&mut self, condition: &Condvar, end: Instant) {
        condition.wait_until(&mut self.guard, end);
    }

    /// As `wait`, but at most for `time`. Returns whether it timed out.
    pub(crate) fn wait_for(&mut self, condition: &Condvar, time: Duration) -> bool {
        condition.wait_for(&mut self.guard, time).timed_out()
    }
}

impl<T> RankedRwLock<T> {
    pub(crate) fn new(rank: Rank, value: T) -> Self {
        let _in_release = rank;
        Self {
            lock: RwLock::new(value),
            #[cfg(debug_assertions)]
            rank,
        }
    }

    #[inline]
    pub(crate) fn read(&self) -> Ranked<RwLockReadGuard<'_, T>> {
        #[cfg(debug_assertions)]
        held::check(self.rank);
        Ranked {
            guard: self.lock.read(),
            #[cfg(debug_assertions)]
            _held: held::Held::new(self.rank),
        }
    }

    #[inline]
    pub(crate) fn write(&self) -> Ranked<RwLockWriteGuard<'_, T>> {
        #[cfg(debug_assertions)]
        held::check(self.rank);
        Ranked {
            guard: self.lock.write(),
            #[cfg(debug_assertions)]
            _held: held::Held::new(self.rank),
        }
    }
}

#[cfg(debug_assertions)]
mod held {
    use std::cell::RefCell;

    use super::Rank;
    use crate::sync::thread_local;

    thread_local! {
        static HELD: RefCell<Vec<Rank>> = const { RefCell::new(Vec::new()) };
    }

    /// An entry in the list of its thread, until it is dropped.
    #[derive(Debug)]
    pub(super) struct Held(Rank);

    impl Held {
        pub(super) fn new(rank: Rank) -> Self {
            // A thread that ends may drop guards after its list.
            let _ended = HELD.try_with(|held| held.borrow_mut().push(rank));
            Self(rank)
        }
    }

    impl Drop for Held {
        fn drop(&mut self) {
            let _ended = HELD.try_with(|held| {
                let mut held = held.borrow_mut();
                if let Some(position) = held.iter().rposition(|rank| *rank == self.0) {
                    held.remove(position);
                }
            });
        }
    }

    /// Fails if this thread holds a lock of `rank`, or one that must be acquired after it.
    #[track_caller]
    pub(super) fn check(rank: Rank) {
        let _ended = HELD.try_with(|held| {
            let held = held.borrow();
            assert!(held.iter().all(|other| *other < rank), "{rank:?} is locked while {held:?} are held");
        });
    }
}

#[cfg(all(test, debug_assertions))]
mod tests {
    use super::*;

    fn fails(take: impl FnOnce() + std::panic::UnwindSafe) -> bool {
        std::panic::catch_unwind(take).is_err()
    }

    #[test]
    fn a_lock_out_of_order_fails_an_assertion() {
        let lane = RankedMutex::new(Rank::Lane, ());
        let inserts = RankedMutex::new(Rank::Inserts, 0);
        let batches = RankedRwLock::new(Rank::Batches, 0);
        {
            let _lane = lane.lock();
            let mut held = inserts.lock();
            *held += *batches.read();
            *batches.write() += *held;
        }
        let _inserts = inserts.lock();
        assert!(fails(std::panic::AssertUnwindSafe(|| drop(lane.lock()))), "from inside to outside");
        assert!(fails(std::panic::AssertUnwindSafe(|| drop(inserts.lock()))), "twice");
        drop(lane.try_lock().unwrap());
        std::thread::scope(|scope| {
            scope.spawn(|| drop(lane.lock()));
        });
    }

    #[test]
    fn what_was_let_go_of_may_be_taken_again_in_any_order() {
        let (lane, inserts) = (RankedMutex::new(Rank::Lane, ()), RankedMutex::new(Rank::Inserts, ()));
        let (first, second) = (lane.lock(), inserts.lock());
        drop(first);
        drop(second);
        drop(inserts.lock());
        drop(lane.lock());
    }
}
