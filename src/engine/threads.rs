//! Threads that work for the store while its callers go on.

use std::io;
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::{Builder, JoinHandle};

/// Starts a thread that takes its turn. Others take the processor from whoever has it when they wake up: where processors
/// are few, from a put or a get, which then waits for as long as the writer writes.
///
/// # Errors
/// The system has no thread to give.
pub(crate) fn spawn<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    Builder::new().name(name.into()).spawn(|| {
        take_turns();
        work()
    })
}

/// Counts up in every child that is forked.
static FORKS: AtomicU32 = AtomicU32::new(0);

/// How many forks lie between this process and the one that asked first. Before the first call it counts none.
pub(crate) fn forks() -> u32 {
    static WATCH: Once = Once::new();
    if !WATCH.is_completed() {
        WATCH.call_once(watch_forks);
    }
    FORKS.load(Ordering::Relaxed)
}

#[cfg(all(target_os = "linux", not(miri)))]
#[expect(unsafe_code, reason = "only the C library tells of a fork without a system call for each question")]
fn watch_forks() {
    extern "C" fn in_child() {
        FORKS.fetch_add(1, Ordering::Relaxed);
    }
    // SAFETY: the handler is a function of this library, which stays loaded, and does nothing but count, which is allowed
    // between `fork` and the return from it. Where there is no memory for it, forks are not seen.
    let _not_seen = unsafe { libc::pthread_atfork(None, None, Some(in_child)) };
}

#[cfg(not(all(target_os = "linux", not(miri))))]
fn watch_forks() {}

/// `SCHED_BATCH` (`man 7 sched`): the same share of the processors, without preempting anyone by waking up. Left alone
/// where the process was given another policy.
#[cfg(all(target_os = "linux", not(miri)))]
#[expect(unsafe_code, reason = "rustix sets no thread's policy; measured in benches/scaling")]
fn take_turns() {
    // SAFETY: both calls are about the calling thread (0) and touch no memory but `parameter`, which lives until they
    // return. Where they fail the thread stays as it was.
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
