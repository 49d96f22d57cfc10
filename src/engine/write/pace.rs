//! Slows down puts while the index is merged more slowly than keys are put.
//!
//! A memtable of twice its bound makes puts wait for the running merge. Puts that are faster than merges would run at
//! full speed up to there, and then stand still for a whole merge. Instead they are delayed a little each, the more the
//! nearer they get, so that they arrive there when the merge ends. RocksDB delays writes in the same way.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// The longest delay of one put.
const MOST: Duration = Duration::from_millis(100);

/// When the running merge began, and how long the last one took.
#[derive(Debug)]
pub(crate) struct Pace {
    epoch: Instant,
    /// Microseconds since `epoch`; 0 if no merge runs.
    began_us: AtomicU64,
    took_us: AtomicU64,
}

impl Pace {
    /// No merge runs, and none has.
    pub(crate) fn new() -> Self {
        Self { epoch: Instant::now(), began_us: AtomicU64::new(0), took_us: AtomicU64::new(0) }
    }

    fn now_us(&self) -> u64 {
        u64::try_from(self.epoch.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    /// A merge begins.
    pub(crate) fn begin(&self) {
        self.began_us.store(self.now_us().max(1), Ordering::Relaxed);
    }

    /// It has ended.
    pub(crate) fn end(&self) {
        let began_us = self.began_us.swap(0, Ordering::Relaxed);
        if began_us > 0 {
            self.took_us.store(self.now_us().saturating_sub(began_us), Ordering::Relaxed);
        }
    }

    /// How long a put is delayed if the memtable has `keys` keys and `bound` is its bound.
    pub(crate) fn delay(&self, keys: usize, bound: usize) -> Duration {
        match self.began_us.load(Ordering::Relaxed) {
            0 => Duration::ZERO,
            began_us => {
                delay(keys, bound, self.now_us().saturating_sub(began_us), self.took_us.load(Ordering::Relaxed))
            }
        }
    }
}

/// `since_us` after a merge began that takes as long as the last one, `took_us`. Of the keys beyond the bound, the first
/// half may be put in a quarter of that time: a burst of puts is not slowed down for long.
fn delay(keys: usize, bound: usize, since_us: u64, took_us: u64) -> Duration {
    let part = (keys.saturating_sub(bound) as f64 / bound.max(1) as f64).min(1.0);
    let due_us = part * part * took_us as f64;
    Duration::from_secs_f64((due_us - since_us as f64).max(0.0) / 1e6).min(MOST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn puts_are_delayed_the_more_the_further_they_are_ahead_of_the_merge() {
        let at = |keys: usize, since_ms: u64| delay(keys, 1000, since_ms * 1000, 160_000).as_millis();
        assert_eq!((at(1000, 0), at(900, 0), at(1500, 0)), (0, 0, 40));
        assert_eq!((at(1500, 40), at(1500, 30), at(2000, 100), at(5000, 100)), (0, 10, 60, 60));
        assert_eq!(delay(2000, 1000, 0, 900_000), MOST);
        assert_eq!(delay(2000, 0, 0, 0), Duration::ZERO);
        let pace = Pace::new();
        pace.end();
        assert_eq!(pace.delay(2000, 1000), Duration::ZERO);
    }
}
