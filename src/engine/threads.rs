//! Background threads, threads that share the work of one call, and the detection of forks.

use std::io;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Once, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use crate::sync::{Builder, JoinHandle};

/// Starts a thread with the policy `SCHED_BATCH`. Under the default policy it would preempt the running thread whenever
/// it wakes up. With few processors that is a put or a get, which would then wait as long as the writer writes.
///
/// # Errors
/// The system cannot start a thread.
pub(crate) fn spawn<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    Builder::new().name(name.into()).spawn(|| {
        take_turns();
        work()
    })
}

/// `wait` after `start`; of waits that no clock can express, some decades.
pub(crate) fn later(start: Instant, wait: Duration) -> Instant {
    const DECADES: Duration = Duration::from_secs(1 << 30);
    start.checked_add(wait).unwrap_or_else(|| start + DECADES)
}

/// Threads unless the options set a number: a few use all the bandwidth, and callers have threads of their own.
const MOST_THREADS: usize = 4;

/// The number of threads that share a batch, if the caller does not choose.
pub(crate) fn default_threads() -> usize {
    // Cached, since the system reads files to answer.
    static THREADS: OnceLock<usize> = OnceLock::new();
    *THREADS.get_or_init(|| thread::available_parallelism().map_or(1, NonZeroUsize::get).min(MOST_THREADS))
}

/// Calls `other` and `own`, concurrently if that is worth a thread and a processor is free, and returns both results.
pub(crate) fn concurrently<A: Send, B>(
    worth_a_thread: bool,
    other: impl Fn() -> A + Sync,
    own: impl FnOnce() -> B,
) -> (A, B) {
    if !worth_a_thread || default_threads() < 2 {
        return (other(), own());
    }
    thread::scope(|scope| {
        let started = thread::Builder::new().name("tensorcask-put".into()).spawn_scoped(scope, &other).ok();
        let own = own();
        // If no thread can be started, or it panics, the caller's thread calls both.
        (started.and_then(|thread| thread.join().ok()).unwrap_or_else(&other), own)
    })
}

/// The results of `each` for all of `items`, in order. A thread takes at least `worth_a_thread` items.
pub(crate) fn in_shares<'t, T: Sync, R: Send>(
    items: &'t [T],
    worth_a_thread: usize,
    each: impl Fn(&'t T) -> R + Sync,
) -> Vec<R> {
    let threads = default_threads().min(items.len() / worth_a_thread.max(1)).max(1);
    let work = |share: &'t [T]| -> Vec<R> { share.iter().map(&each).collect() };
    thread::scope(|scope| {
        let mut shares = items.chunks(items.len().div_ceil(threads).max(1));
        let own = shares.next().unwrap_or_default();
        // This thread takes the share of a thread that cannot be started or panics.
        let others: Vec<_> =
            shares.map(|share| (share, thread::Builder::new().spawn_scoped(scope, move || work(share)).ok())).collect();
        let mut answers = work(own);
        for (share, thread) in others {
            answers.extend(thread.and_then(|thread| thread.join().ok()).unwrap_or_else(|| work(share)));
        }
        answers
    })
}

/// Incremented in every forked child.
static FORKS: AtomicU32 = AtomicU32::new(0);

/// How many forks lie between this process and the one that asked first. Forks before the first call are not counted.
pub(crate) fn forks() -> u32 {
    static WATCH: Once = Once::new();
    if !WATCH.is_completed() {
        WATCH.call_once(watch_forks);
    }
    FORKS.load(Ordering::Relaxed)
}

#[cfg(all(target_os = "linux", not(miri)))]
#[expect(unsafe_code, reason = "only the C library reports a fork without a system call for each check")]
fn watch_forks() {
    extern "C" fn in_child() {
        FORKS.fetch_add(1, Ordering::Relaxed);
    }
    // SAFETY: the handler is a function of this library, which stays loaded. It only increments a counter, which is
    // allowed between `fork` and the return from it. If there is no memory to register it, forks are not detected.
    let _not_seen = unsafe { libc::pthread_atfork(None, None, Some(in_child)) };
}

#[cfg(not(all(target_os = "linux", not(miri))))]
fn watch_forks() {}

/// Sets `SCHED_BATCH` (`man 7 sched`): the same share of the processors, without preempting other threads on wake-up.
/// Does nothing if the process has another policy.
#[cfg(all(target_os = "linux", not(miri)))]
#[expect(unsafe_code, reason = "rustix sets no thread's policy; measured in benches/scaling")]
fn take_turns() {
    // SAFETY: both calls are about the calling thread (0) and access no memory but `parameter`, which lives until they
    // return. If they fail, the thread is unchanged.
    unsafe {
        if libc::sched_getscheduler(0) == libc::SCHED_OTHER {
            let parameter = libc::sched_param { sched_priority: 0 };
            libc::sched_setscheduler(0, libc::SCHED_BATCH, &raw const parameter);
        }
    }
}

#[cfg(not(all(target_os = "linux", not(miri))))]
fn take_turns() {}

#[cfg(all(test, target_os = "linux", not(miri)))]
mod tests {
    #[test]
    #[expect(unsafe_code, reason = "asks the system")]
    fn threads_take_their_turn() {
        // SAFETY: asks about the calling thread.
        let policy = || unsafe { libc::sched_getscheduler(0) };
        let own = policy();
        let of_thread = super::spawn("tensorcask-test", policy).unwrap().join().unwrap();
        let expected = if own == libc::SCHED_OTHER { libc::SCHED_BATCH } else { own };
        assert_eq!((of_thread, policy()), (expected, own));
    }
}
