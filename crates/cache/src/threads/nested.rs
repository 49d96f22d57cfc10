//! Calls inside of calls: a module, or a loader, may ask handles for other samples, but not without end.

use std::cell::Cell;

thread_local! {
    /// Calls that this thread is in, those of the thread that it runs for included.
    static DEPTH: Cell<usize> = const { Cell::new(0) };
}

/// Calls inside of calls, beyond which a thread's stack of 2 MiB is in danger.
const MOST_CALLS: usize = 100;

/// A call that this thread is in, until it is dropped.
#[derive(Debug)]
pub struct Nested(());

impl Nested {
    /// `None` if too many calls are inside of each other.
    pub fn enter() -> Option<Self> {
        let depth = DEPTH.get();
        (depth < MOST_CALLS).then(|| {
            DEPTH.set(depth + 1);
            Self(())
        })
    }
}

impl Drop for Nested {
    fn drop(&mut self) {
        DEPTH.set(DEPTH.get().saturating_sub(1));
    }
}

/// How many calls this thread is in.
pub fn depth() -> usize {
    DEPTH.get()
}

/// Runs something for a thread that is in `depth` calls.
pub fn at_least<T>(depth: usize, run: impl FnOnce() -> T) -> T {
    let own = DEPTH.get();
    DEPTH.set(own.max(depth));
    let result = run();
    DEPTH.set(own);
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_end_at_some_depth() {
        let mut calls = Vec::new();
        while let Some(call) = Nested::enter() {
            calls.push(call);
        }
        assert_eq!((calls.len(), depth()), (MOST_CALLS, MOST_CALLS));
        drop(calls);
        assert_eq!(depth(), 0);
    }
}
