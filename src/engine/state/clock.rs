//! The hybrid logical clock that commit timestamps come from.

use std::time::Duration;

use crate::error::{Error, Result};
use crate::sync::atomic::{AtomicU64, Ordering};

/// The newest commit timestamp seen in any lane, and this machine's clock.
#[derive(Debug)]
pub(crate) struct Clock {
    newest: AtomicU64,
    /// Microseconds since 1970.
    now: fn() -> u64,
}

impl Clock {
    pub(crate) fn new(now: fn() -> u64) -> Self {
        Self { newest: AtomicU64::new(0), now }
    }

    /// Notes a commit timestamp, so that this handle's next ones are later.
    pub(crate) fn saw(&self, timestamp: u64) {
        self.newest.fetch_max(timestamp, Ordering::Relaxed);
    }

    /// The newest commit timestamp seen.
    pub(crate) fn newest(&self) -> u64 {
        self.newest.load(Ordering::Relaxed)
    }

    /// A timestamp later than `last` and than every timestamp seen: the machine's time, or one more than the newest. So
    /// the rows of several lanes have one order.
    ///
    /// # Errors
    /// [`Error::TooLarge`] if timestamps are used up, which only a damaged clock or a forged file causes.
    pub(crate) fn next(&self, last: u64) -> Result<u64> {
        let newest = last.max(self.newest());
        let next = newest.checked_add(1).ok_or_else(|| Error::TooLarge {
            what: "the commit timestamp of the newest row in the store".into(),
            found: newest,
            limit: u64::MAX - 1,
        })?;
        Ok(next.max((self.now)()))
    }

    /// How far this machine's clock is behind the newest timestamp seen.
    pub(crate) fn behind(&self) -> Duration {
        Duration::from_micros(self.newest().saturating_sub((self.now)()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timestamps_are_later_than_all_that_were_seen() {
        let clock = Clock::new(|| 100);
        assert_eq!((clock.next(0).unwrap(), clock.next(100).unwrap(), clock.behind()), (100, 101, Duration::ZERO));
        clock.saw(500);
        clock.saw(300);
        assert_eq!((clock.next(0).unwrap(), clock.newest(), clock.behind()), (501, 500, Duration::from_micros(400)));
        clock.saw(u64::MAX);
        assert!(matches!(clock.next(0), Err(Error::TooLarge { .. })));
    }
}
