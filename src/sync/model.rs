//! The same names over `shuttle`, which runs all threads of a check on one and switches between them at these
//! operations.
//!
//! Every atomic operation is sequentially consistent here, so memory orders are not checked.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::time::{Duration, Instant};

pub(crate) use arc_swap::Guard;
use shuttle::lazy_static::Lazy;
use shuttle::rand::Rng;
pub(crate) use shuttle::sync::atomic;
use shuttle::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
pub(crate) use shuttle::thread::ThreadId;
pub(crate) use shuttle::thread_local;
use shuttle::{sync, thread};

#[derive(Debug, Default)]
pub(crate) struct Mutex<T>(sync::Mutex<T>);

#[derive(Debug)]
pub(crate) struct MutexGuard<'a, T> {
    mutex: &'a Mutex<T>,
    /// `None` only while a condition is waited for.
    guard: Option<sync::MutexGuard<'a, T>>,
}

impl<T> Mutex<T> {
    pub(crate) fn new(value: T) -> Self {
        Self(sync::Mutex::new(value))
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
        MutexGuard { mutex: self, guard: Some(self.0.lock().unwrap()) }
    }

    pub(crate) fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
        self.0.try_lock().ok().map(|guard| MutexGuard { mutex: self, guard: Some(guard) })
    }
}

impl<T> Deref for MutexGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.guard.as_ref().unwrap()
    }
}

impl<T> DerefMut for MutexGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        self.guard.as_mut().unwrap()
    }
}

#[derive(Debug, Default)]
pub(crate) struct Condvar(sync::Condvar);

/// Whether a wait timed out.
pub(crate) struct Waited(bool);

impl Waited {
    pub(crate) fn timed_out(&self) -> bool {
        self.0
    }
}

impl Condvar {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    pub(crate) fn notify_one(&self) {
        self.0.notify_one();
    }

    pub(crate) fn notify_all(&self) {
        self.0.notify_all();
    }

    pub(crate) fn wait<T>(&self, guard: &mut MutexGuard<'_, T>) {
        guard.guard = guard.guard.take().map(|held| self.0.wait(held).unwrap());
    }

    /// There is no time: the wait ends at once, or not before a notification, at random. So a missing notification is
    /// found, although in real time the timeout might hide it.
    pub(crate) fn wait_for<T>(&self, guard: &mut MutexGuard<'_, T>, _: Duration) -> Waited {
        let timed_out = shuttle::rand::thread_rng().gen_ratio(1, 4);
        if timed_out {
            guard.guard = None;
            thread::yield_now();
            guard.guard = Some(guard.mutex.0.lock().unwrap());
        } else {
            self.wait(guard);
        }
        Waited(timed_out)
    }

    pub(crate) fn wait_until<T>(&self, guard: &mut MutexGuard<'_, T>, _: Instant) -> Waited {
        self.wait_for(guard, Duration::ZERO)
    }
}

/// Writers, and readers that may become writers, hold `upgrade` first.
#[derive(Debug, Default)]
pub(crate) struct RwLock<T> {
    upgrade: sync::Mutex<()>,
    lock: sync::RwLock<T>,
}

pub(crate) type RwLockReadGuard<'a, T> = sync::RwLockReadGuard<'a, T>;

#[derive(Debug)]
pub(crate) struct RwLockWriteGuard<'a, T> {
    guard: sync::RwLockWriteGuard<'a, T>,
    _upgrade: sync::MutexGuard<'a, ()>,
}

pub(crate) struct RwLockUpgradableReadGuard<'a, T> {
    lock: &'a RwLock<T>,
    guard: sync::RwLockReadGuard<'a, T>,
    upgrade: sync::MutexGuard<'a, ()>,
}

impl<T> RwLock<T> {
    pub(crate) fn new(value: T) -> Self {
        Self { upgrade: sync::Mutex::new(()), lock: sync::RwLock::new(value) }
    }

    pub(crate) fn read(&self) -> RwLockReadGuard<'_, T> {
        self.lock.read().unwrap()
    }

    pub(crate) fn write(&self) -> RwLockWriteGuard<'_, T> {
        let upgrade = self.upgrade.lock().unwrap();
        RwLockWriteGuard { guard: self.lock.write().unwrap(), _upgrade: upgrade }
    }

    pub(crate) fn upgradable_read(&self) -> RwLockUpgradableReadGuard<'_, T> {
        let upgrade = self.upgrade.lock().unwrap();
        RwLockUpgradableReadGuard { lock: self, guard: self.lock.read().unwrap(), upgrade }
    }
}

impl<'a, T> RwLockUpgradableReadGuard<'a, T> {
    pub(crate) fn upgrade(this: Self) -> RwLockWriteGuard<'a, T> {
        drop(this.guard);
        RwLockWriteGuard { guard: this.lock.lock.write().unwrap(), _upgrade: this.upgrade }
    }
}

impl<T> Deref for RwLockUpgradableReadGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.guard
    }
}

impl<T> Deref for RwLockWriteGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.guard
    }
}

impl<T> DerefMut for RwLockWriteGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.guard
    }
}

/// The real type; each of its operations is also an operation of `turn`.
#[derive(Debug, Default)]
pub(crate) struct ArcSwap<T> {
    swap: arc_swap::ArcSwap<T>,
    turn: AtomicUsize,
}

impl<T> ArcSwap<T> {
    fn take_turn(&self) {
        self.turn.load(Ordering::SeqCst);
    }

    pub(crate) fn load(&self) -> Guard<Arc<T>> {
        self.take_turn();
        self.swap.load()
    }

    pub(crate) fn load_full(&self) -> Arc<T> {
        self.take_turn();
        self.swap.load_full()
    }

    /// As the real one, with a turn before the exchange.
    pub(crate) fn rcu(&self, next: impl Fn(&Arc<T>) -> T) {
        let mut current = self.load_full();
        loop {
            let next = Arc::new(next(&current));
            self.take_turn();
            let found = self.swap.compare_and_swap(&current, next);
            if Arc::ptr_eq(&found, &current) {
                return;
            }
            current = Arc::clone(&found);
        }
    }
}

/// Yields to the other threads.
pub(crate) fn sleep(_: Duration) {
    thread::yield_now();
}

#[derive(Debug, Default)]
pub(crate) struct Builder(Option<String>);

#[derive(Debug)]
pub(crate) struct JoinHandle<T> {
    thread: thread::JoinHandle<T>,
    finished: Arc<AtomicBool>,
}

impl Builder {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    pub(crate) fn name(self, name: String) -> Self {
        Self(Some(name))
    }

    pub(crate) fn spawn<T: Send + 'static>(
        self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> std::io::Result<JoinHandle<T>> {
        let finished = Arc::new(AtomicBool::new(false));
        let done = Arc::clone(&finished);
        let builder = thread::Builder::new().name(self.0.unwrap_or_default());
        let thread = builder.spawn(move || {
            let result = work();
            done.store(true, Ordering::SeqCst);
            result
        })?;
        Ok(JoinHandle { thread, finished })
    }
}

impl<T> JoinHandle<T> {
    pub(crate) fn join(self) -> std::thread::Result<T> {
        self.thread.join()
    }

    pub(crate) fn is_finished(&self) -> bool {
        self.finished.load(Ordering::SeqCst)
    }
}

/// The calling thread.
pub(crate) fn this_thread() -> ThreadId {
    thread::current().id()
}

/// A value that all threads of one schedule share.
pub(crate) struct Global<T: Sync + 'static>(Lazy<T>);

impl<T: Sync> Global<T> {
    pub(crate) const fn new(make: fn() -> T) -> Self {
        Self(Lazy::new(make))
    }

    pub(crate) fn get(&'static self) -> &'static T {
        self.0.get()
    }
}
