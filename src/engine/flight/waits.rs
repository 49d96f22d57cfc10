//! Deadlock detection between the threads of this process.
//!
//! A thread waits for **claims** (samples that others compute), for a **lock** (of a module, which one thread runs at a
//! time), or for a **thread** (one that reads batches ahead, or one that runs a module for it). One table records all
//! waits, so that a thread can detect a cycle: whether the thread that it waits for waits, directly or indirectly, for
//! itself. In a cycle:
//!
//! - a thread does not wait for claims: it computes these samples itself;
//! - a thread does not wait for a lock: its holder is waiting too, so the holder runs the module on the thread's
//!   behalf, on its own stack, as if the module had called itself;
//! - a thread that needs its own claim, or one of a thread that it runs for, needs its own result: an error.
//!
//! The last wait completes a cycle, and every new wait wakes the waiting threads to look for cycles again. A cycle with
//! a claim or a lock in it is broken by the thread that waits for that; a cycle of threads only is an error.

use std::any::Any;
use std::collections::{HashMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;

use crate::engine::flight::nested;
use crate::engine::lock_order::{Rank, RankedGuard, RankedMutex};
use crate::sync::{Condvar, Global, Mutex, ThreadId, this_thread};

type Job = Box<dyn FnOnce() + Send>;

/// The object that a thread waits for.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Awaited {
    Claims(Vec<u64>),
    Lock(u64),
    /// A thread that reads ahead for the waiting one.
    Ahead(ThreadId),
    /// A thread that runs a job of the waiting one.
    Job(ThreadId),
}

#[derive(Default)]
struct Table {
    last: u64,
    /// The thread that made each claim, and the number of jobs that it was running for others at that time.
    claims: HashMap<u64, (ThreadId, usize)>,
    /// The thread that holds each lock, and how often.
    locks: HashMap<u64, (ThreadId, usize)>,
    waiting: HashMap<ThreadId, Awaited>,
    /// Jobs that a waiting thread has to run for others, with their callers. A thread with jobs does not count as
    /// waiting.
    jobs: HashMap<ThreadId, VecDeque<(ThreadId, Job)>>,
    /// The callers whose jobs a thread runs, the innermost last.
    serving: HashMap<ThreadId, Vec<ThreadId>>,
}

/// The table of this process. It is locked by threads that hold no lock of a store.
struct Waits {
    table: RankedMutex<Table>,
    changed: Condvar,
}

static WAITS: Global<Waits> =
    Global::new(|| Waits { table: RankedMutex::new(Rank::Waits, Table::default()), changed: Condvar::new() });

fn lock_table() -> RankedGuard<'static, Table> {
    WAITS.get().table.lock()
}

/// Makes waiting threads look again whether their waits are over.
fn wake_all() {
    WAITS.get().changed.notify_all();
}

impl Table {
    fn number(&mut self) -> u64 {
        self.last += 1;
        self.last
    }

    /// The object that `thread` waits for, unless it has jobs to run.
    fn awaited(&self, thread: ThreadId) -> Option<&Awaited> {
        self.waiting.get(&thread).filter(|_| self.jobs.get(&thread).is_none_or(VecDeque::is_empty))
    }

    /// The threads that `thread` waits for.
    fn next(&self, thread: ThreadId) -> Vec<ThreadId> {
        match self.awaited(thread) {
            None => Vec::new(),
            Some(Awaited::Claims(claims)) => {
                claims.iter().filter_map(|claim| Some(self.claims.get(claim)?.0)).collect()
            }
            Some(Awaited::Lock(lock)) => self.locks.get(lock).map(|(owner, _)| *owner).into_iter().collect(),
            Some(Awaited::Ahead(thread) | Awaited::Job(thread)) => vec![*thread],
        }
    }

    /// The number of nested jobs that `thread` is running.
    fn level(&self, thread: ThreadId) -> usize {
        self.serving.get(&thread).map_or(0, Vec::len)
    }

    /// Whether `from` is `to`, or waits for it directly or indirectly.
    fn waits_for(&self, from: ThreadId, to: ThreadId) -> bool {
        let (mut seen, mut open) = (Vec::new(), vec![from]);
        while let Some(thread) = open.pop() {
            if thread == to {
                return true;
            }
            if !seen.contains(&thread) {
                seen.push(thread);
                open.extend(self.next(thread));
            }
        }
        false
    }

    /// Whether `caller` waits for `runner` through threads alone; with `innermost`, only for the job that it runs now.
    fn runs_for(&self, runner: ThreadId, caller: ThreadId, innermost: bool) -> bool {
        let mut at = caller;
        for _ in 0..=self.waiting.len() {
            let (next, now) = match self.awaited(at) {
                Some(Awaited::Ahead(next)) => (*next, !self.serving.contains_key(next)),
                Some(Awaited::Job(next)) => (*next, self.serving.get(next).and_then(|all| all.last()) == Some(&at)),
                _ => return false,
            };
            if innermost && !now {
                return false;
            }
            if next == runner {
                return true;
            }
            at = next;
        }
        false
    }

    /// Whether a claim that `owner` made while it ran `level` jobs belongs to the task that `runner` works on. A claim
    /// from before a job belongs to another task.
    fn is_own(&self, runner: ThreadId, owner: ThreadId, level: usize) -> bool {
        level == self.level(owner) && (owner == runner || self.runs_for(runner, owner, true))
    }

    /// Records that a job is done: its caller no longer waits.
    fn served(&mut self, server: ThreadId, caller: ThreadId) {
        if let Some(callers) = self.serving.get_mut(&server) {
            callers.pop();
            if callers.is_empty() {
                self.serving.remove(&server);
            }
        }
        self.waiting.remove(&caller);
        wake_all();
    }
}

/// How a wait ended.
#[derive(Debug, PartialEq, Eq)]
pub enum Waited {
    /// The awaited object was released.
    Over,
    /// The holders of these claims wait for this thread, so it must do without them.
    Circle(Vec<u64>),
    /// The thread, or one that it runs for, would wait for itself.
    Itself,
}

/// Waits until `over`, and meanwhile runs the jobs of other threads. `look` decides whether the wait has to end early.
fn wait(
    awaited: &Awaited,
    mut over: impl FnMut(&Table) -> bool,
    mut look: impl FnMut(&Table, ThreadId) -> Option<Waited>,
) -> (Waited, RankedGuard<'static, Table>) {
    let me = this_thread();
    let mut table = lock_table();
    loop {
        if let Some((caller, job)) = table.jobs.get_mut(&me).and_then(VecDeque::pop_front) {
            table.waiting.remove(&me);
            table.serving.entry(me).or_default().push(caller);
            drop(table);
            job();
            table = lock_table();
            table.served(me, caller);
            continue;
        }
        let ended = if over(&table) { Some(Waited::Over) } else { look(&table, me) };
        if let Some(ended) = ended {
            table.waiting.remove(&me);
            table.jobs.remove(&me);
            return (ended, table);
        }
        // A new wait may complete a cycle that another thread can break.
        if table.waiting.insert(me, awaited.clone()).is_none() {
            wake_all();
        }
        table.wait(&WAITS.get().changed);
    }
}

/// Samples that this thread computes, until the claim is dropped.
#[derive(Debug)]
pub struct Claim(u64);

impl Claim {
    /// A new claim of this thread.
    #[expect(clippy::new_without_default, reason = "each claim is another one")]
    pub fn new() -> Self {
        let mut table = lock_table();
        let (number, me) = (table.number(), this_thread());
        let level = table.level(me);
        table.claims.insert(number, (me, level));
        Self(number)
    }

    /// Its number, by which others wait for it.
    #[must_use]
    pub const fn number(&self) -> u64 {
        self.0
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        lock_table().claims.remove(&self.0);
        wake_all();
    }
}

/// Waits until none of `claims` is held any more.
pub fn wait_for_claims(claims: &[u64]) -> Waited {
    let held = |table: &Table| claims.iter().any(|claim| table.claims.contains_key(claim));
    let look = |table: &Table, me: ThreadId| {
        let owners =
            || claims.iter().filter_map(|claim| table.claims.get(claim).map(|(owner, level)| (*claim, *owner, *level)));
        if owners().any(|(_, owner, level)| table.is_own(me, owner, level)) {
            return Some(Waited::Itself);
        }
        let waits = |(claim, owner, _)| table.waits_for(owner, me).then_some(claim);
        let circle: Vec<u64> = owners().filter_map(waits).collect();
        (!circle.is_empty()).then_some(Waited::Circle(circle))
    };
    wait(&Awaited::Claims(claims.to_vec()), |table| !held(table), look).0
}

/// A reentrant lock, as a module may call itself.
#[derive(Debug)]
pub struct Lock(u64);

/// A held lock, which is released on drop.
#[derive(Debug)]
pub struct Locked<'a>(&'a Lock);

impl Lock {
    /// A new lock, which nobody holds.
    #[expect(clippy::new_without_default, reason = "each lock is another one")]
    pub fn new() -> Self {
        Self(lock_table().number())
    }

    /// Acquires the lock; `None` if its holder waits for this thread, see [`Lock::delegate`].
    pub fn lock(&self) -> Option<Locked<'_>> {
        let me = this_thread();
        let owner = |table: &Table| table.locks.get(&self.0).map(|(owner, _)| *owner).filter(|owner| *owner != me);
        let look = |table: &Table, me| {
            owner(table).is_some_and(|o| table.waits_for(o, me)).then(|| Waited::Circle(Vec::new()))
        };
        let (waited, mut table) = wait(&Awaited::Lock(self.0), |table| owner(table).is_none(), look);
        (waited == Waited::Over).then(|| {
            table.locks.entry(self.0).or_insert((me, 0)).1 += 1;
            Locked(self)
        })
    }

    /// Runs `run` in the thread that holds the lock and waits for this one. `None` if there is no such thread any more.
    pub fn delegate<T: Send + 'static>(&self, run: impl FnOnce() -> T + Send + 'static) -> Option<T> {
        let me = this_thread();
        let result: Arc<Mutex<Option<std::thread::Result<T>>>> = Arc::default();
        let owner = {
            let mut table = lock_table();
            let owner = table.locks.get(&self.0).map(|(owner, _)| *owner)?;
            if owner == me || !table.waiting.contains_key(&owner) || !table.waits_for(owner, me) {
                return None;
            }
            let (place, depth) = (Arc::clone(&result), nested::depth());
            let job = move || {
                let ran = nested::at_least(depth, || catch_unwind(AssertUnwindSafe(run)));
                *place.lock() = Some(ran);
            };
            table.jobs.entry(owner).or_default().push_back((me, Box::new(job)));
            wake_all();
            owner
        };
        let _over = wait(&Awaited::Job(owner), |_| result.lock().is_some(), |_, _| None).0;
        let result = result.lock().take();
        result.map(|result| result.unwrap_or_else(|panic: Box<dyn Any + Send>| resume_unwind(panic)))
    }
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        let mut table = lock_table();
        if let Some((_, times)) = table.locks.get_mut(&self.0.0) {
            *times -= 1;
            if *times == 0 {
                table.locks.remove(&self.0.0);
                wake_all();
            }
        }
    }
}

/// Waits until `over`. `thread` makes it true and calls [`announce`].
pub fn wait_for_thread(thread: ThreadId, mut over: impl FnMut() -> bool) -> Waited {
    let look = |table: &Table, me| (thread == me || table.runs_for(me, thread, false)).then_some(Waited::Itself);
    wait(&Awaited::Ahead(thread), |_| over(), look).0
}

/// Wakes the threads that wait for this one.
pub fn announce() {
    let me = this_thread();
    lock_table().waiting.retain(|_, awaited| *awaited != Awaited::Ahead(me));
    wake_all();
}

#[cfg(all(test, not(feature = "model")))]
mod tests {
    use std::sync::Barrier;
    use std::sync::mpsc::channel;
    use std::time::Duration;

    use super::*;

    /// Fails instead of hanging.
    fn within_a_minute(test: impl FnOnce() + Send + 'static) {
        let (done, ended) = channel();
        let thread = std::thread::spawn(move || {
            test();
            done.send(()).unwrap();
        });
        let ended = ended.recv_timeout(Duration::from_secs(60));
        assert!(ended != Err(std::sync::mpsc::RecvTimeoutError::Timeout), "threads wait for each other");
        thread.join().unwrap_or_else(|panic| resume_unwind(panic));
    }

    /// Acquires the lock, or has its holder run the closure.
    fn locked<T: Send + 'static>(lock: &Arc<Lock>, run: impl FnOnce() -> T + Clone + Send + 'static) -> T {
        loop {
            if let Some(_held) = lock.lock() {
                return run();
            }
            let (here, run) = (Arc::clone(lock), run.clone());
            let job = move || {
                let held = here.lock();
                assert!(held.is_some(), "the owner has the lock");
                run()
            };
            if let Some(result) = lock.delegate(job) {
                return result;
            }
        }
    }

    #[test]
    fn claims_are_waited_for() {
        within_a_minute(|| {
            let claim = Claim::new();
            let number = claim.number();
            assert_eq!(wait_for_claims(&[number]), Waited::Itself);
            let waiter = std::thread::spawn(move || wait_for_claims(&[number]));
            std::thread::sleep(Duration::from_millis(20));
            assert!(!waiter.is_finished());
            drop(claim);
            assert_eq!(waiter.join().unwrap(), Waited::Over);
            assert_eq!(wait_for_claims(&[number]), Waited::Over);
        });
    }

    #[test]
    fn claims_in_a_circle_are_not_waited_for() {
        within_a_minute(|| {
            let start = Arc::new(Barrier::new(2));
            let numbers = Arc::new(Mutex::new([0, 0]));
            let threads = [0, 1].map(|at| {
                let (start, numbers) = (Arc::clone(&start), Arc::clone(&numbers));
                std::thread::spawn(move || {
                    let claim = Claim::new();
                    numbers.lock()[at] = claim.number();
                    start.wait();
                    let other = numbers.lock()[1 - at];
                    wait_for_claims(&[other])
                })
            });
            let waited = threads.map(|thread| thread.join().unwrap());
            let numbers = *numbers.lock();
            // At least one thread does without the claim; the other may see it released.
            assert!(waited.iter().zip([1, 0]).any(|(w, other)| *w == Waited::Circle(vec![numbers[other]])));
            assert!(!waited.contains(&Waited::Itself));
        });
    }

    #[test]
    fn locks_in_a_circle_are_run_by_their_owners() {
        within_a_minute(|| {
            let locks = [Arc::new(Lock::new()), Arc::new(Lock::new()), Arc::new(Lock::new())];
            let start = Arc::new(Barrier::new(3));
            let threads = [0, 1, 2].map(|at: usize| {
                let (locks, start) = (locks.clone(), Arc::clone(&start));
                std::thread::spawn(move || {
                    let next = Arc::clone(&locks[(at + 1) % 3]);
                    let mut ran = Vec::new();
                    for round in 0..200 {
                        let (start, next) = (Arc::clone(&start), Arc::clone(&next));
                        ran.push(locked(&locks[at], move || {
                            // In the first round each thread holds its own lock before it acquires the next one's.
                            if round == 0 {
                                start.wait();
                            }
                            locked(&next, move || {
                                std::thread::sleep(Duration::from_micros(50));
                                at + 10
                            })
                        }));
                    }
                    ran
                })
            });
            for (at, thread) in threads.into_iter().enumerate() {
                assert_eq!(thread.join().unwrap(), vec![at + 10; 200]);
            }
        });
    }

    #[test]
    fn a_thread_that_reads_ahead_runs_for_the_one_that_waits() {
        within_a_minute(|| {
            let lock = Arc::new(Lock::new());
            let claim = Claim::new();
            let number = claim.number();
            let result = locked(&Arc::clone(&lock), move || {
                let (send, receive) = channel();
                let ahead = std::thread::spawn(move || {
                    let first = wait_for_claims(&[number]);
                    let second = locked(&lock, || std::thread::current().id());
                    send.send((first, second)).unwrap();
                    announce();
                });
                let mut got = None;
                let waited = wait_for_thread(ahead.thread().id(), || {
                    got = receive.try_recv().ok();
                    got.is_some()
                });
                ahead.join().unwrap();
                (waited, got)
            });
            assert_eq!(result, (Waited::Over, Some((Waited::Itself, std::thread::current().id()))));
            assert_eq!(wait_for_thread(std::thread::current().id(), || false), Waited::Itself);
        });
    }

    #[test]
    fn a_job_is_another_task_than_what_lies_under_it() {
        let [first, second, third] = [(); 3].map(|()| std::thread::spawn(|| ()).thread().id());
        let mut table = Table::default();
        // The second thread runs a job of the first, and has the third run a job for it.
        table.serving.insert(second, vec![first]);
        table.serving.insert(third, vec![second]);
        table.waiting.insert(first, Awaited::Job(second));
        table.waiting.insert(second, Awaited::Job(third));
        assert!(table.is_own(third, first, 0) && table.is_own(third, second, 1) && table.is_own(third, third, 1));
        assert!(!table.is_own(third, second, 0) && !table.is_own(third, third, 0));
        assert!(table.waits_for(first, third) && !table.waits_for(third, first));
        // A thread that has a job to run does not count as waiting.
        table.jobs.insert(second, VecDeque::from([(third, Box::new(|| ()) as Job)]));
        assert!(!table.waits_for(first, third) && !table.is_own(third, first, 0));
    }

    #[test]
    fn a_panic_goes_to_the_thread_that_asked() {
        within_a_minute(|| {
            let locks = [Arc::new(Lock::new()), Arc::new(Lock::new())];
            let start = Arc::new(Barrier::new(2));
            let threads = [0, 1].map(|at: usize| {
                let (locks, start) = (locks.clone(), Arc::clone(&start));
                std::thread::spawn(move || {
                    let other = Arc::clone(&locks[1 - at]);
                    locked(&locks[at], move || {
                        start.wait();
                        locked(&other, move || assert!(at == 0, "the second fails"));
                    });
                })
            });
            let failed = threads.map(|thread| thread.join().is_err());
            assert_eq!(failed, [false, true]);
        });
    }
}
