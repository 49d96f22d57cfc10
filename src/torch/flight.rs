//! Single flight: what one thread is computing, the others wait for.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::{Condvar, Mutex};

use crate::key::Key;

/// The keys that are being computed.
#[derive(Debug, Default)]
pub(super) struct Flight {
    keys: Mutex<HashSet<Key>>,
    landed: Condvar,
    landings: AtomicU64,
}

/// Keys that this thread computes. They are given up when it is dropped, also by a panic of the computation.
#[derive(Debug)]
pub(super) struct Claim<'a> {
    flight: &'a Flight,
    keys: Vec<Key>,
}

impl Flight {
    /// Counts up whenever a computation has ended: if it stands still, what was looked up before is still true.
    pub(super) fn landings(&self) -> u64 {
        self.landings.load(Ordering::Acquire)
    }

    /// Claims those of `keys` that nobody else computes. Returns the claim and, for each key, whether it was got.
    pub(super) fn claim(&self, keys: &[Key]) -> (Claim<'_>, Vec<bool>) {
        let mut flying = self.keys.lock();
        let got: Vec<bool> = keys.iter().map(|key| flying.insert(key.clone())).collect();
        let keys = keys.iter().zip(&got).filter(|(_, got)| **got).map(|(key, _)| key.clone()).collect();
        (Claim { flight: self, keys }, got)
    }

    /// Waits until none of `keys` is being computed.
    pub(super) fn wait(&self, keys: &[Key]) {
        let mut flying = self.keys.lock();
        while keys.iter().any(|key| flying.contains(key)) {
            self.landed.wait(&mut flying);
        }
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        let mut flying = self.flight.keys.lock();
        for key in &self.keys {
            flying.remove(key);
        }
        self.flight.landings.fetch_add(1, Ordering::Release);
        self.flight.landed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_thread_computes_and_the_others_wait() {
        let flight = Flight::default();
        let keys = [Key::U64(1), Key::U64(2)];
        let (claim, got) = flight.claim(&keys[..1]);
        assert_eq!(got, [true]);
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| {
                let (other, got) = flight.claim(&keys);
                assert_eq!(got, [false, true]);
                drop(other);
                flight.wait(&keys[..1]);
                flight.landings()
            });
            while flight.landings() == 0 {
                std::thread::yield_now();
            }
            drop(claim);
            assert_eq!(waiter.join().unwrap(), 2);
        });
        flight.wait(&keys);
    }
}
