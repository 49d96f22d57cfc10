//! Nested calls: a computation may ask for other keys, up to a depth.

use std::cell::Cell;

use crate::sync::thread_local;

thread_local! {
    /// The depth of calls in this thread, including those of the thread that it runs a job for.
    static DEPTH: Cell<usize> = const { Cell::new(0) };
}

/// The maximum depth. Deeper calls could overflow a thread's stack of 2 MiB.
const MOST_CALLS: usize = 100;

/// A call of this thread, until it is dropped.
#[derive(Debug)]
pub struct Nested(());

impl Nested {
    /// `None` if the maximum depth is exceeded.
    #[must_use]
    pub fn enter() -> Option<Self> {
        let depth = self::depth();
        (depth < MOST_CALLS).then(|| {
            set(depth + 1);
            Self(())
        })
    }
}

impl Drop for Nested {
    fn drop(&mut self) {
        set(depth().saturating_sub(1));
    }
}

/// The depth of calls in this thread.
#[must_use]
pub fn depth() -> usize {
    DEPTH.with(Cell::get)
}

fn set(depth: usize) {
    DEPTH.with(|current| current.set(depth));
}

/// Runs a closure on behalf of a thread whose depth of calls is `depth`.
pub fn at_least<T>(depth: usize, run: impl FnOnce() -> T) -> T {
    let own = self::depth();
    set(own.max(depth));
    let result = run();
    set(own);
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
