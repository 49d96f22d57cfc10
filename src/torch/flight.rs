//! Single flight: what one thread is computing, the others wait for.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::ThreadId;

use parking_lot::{Condvar, Mutex};

use crate::error::{Error, Result};
use crate::key::Key;

/// The keys that are being computed, and by whom.
#[derive(Debug, Default)]
pub(super) struct Flight {
    keys: Mutex<HashMap<Key, ThreadId>>,
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
        let thread = std::thread::current().id();
        let mut claim = |key: &Key| match flying.entry(key.clone()) {
            Entry::Vacant(free) => {
                free.insert(thread);
                true
            }
            Entry::Occupied(_) => false,
        };
        let got: Vec<bool> = keys.iter().map(&mut claim).collect();
        let keys = keys.iter().zip(&got).filter(|(_, got)| **got).map(|(key, _)| key.clone()).collect();
        (Claim { flight: self, keys }, got)
    }

    /// Waits until none of `keys` is being computed.
    ///
    /// # Errors
    /// [`Error::Invalid`] if it is this thread that computes one: it would wait for itself.
    pub(super) fn wait(&self, keys: &[Key]) -> Result<()> {
        let thread = std::thread::current().id();
        let mut flying = self.keys.lock();
        loop {
            let mut owners = keys.iter().filter_map(|key| flying.get(key)).peekable();
            if owners.peek().is_none() {
                return Ok(());
            }
            if owners.any(|owner| *owner == thread) {
                return Err(Error::invalid(
                    "a computation, or the loading of its inputs, asked for the very sample that it is to make",
                ));
            }
            self.landed.wait(&mut flying);
        }
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        if self.keys.is_empty() {
            return;
        }
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
                flight.wait(&keys[..1]).unwrap();
                flight.landings()
            });
            while flight.landings() == 0 {
                std::thread::yield_now();
            }
            drop(claim);
            assert_eq!(waiter.join().unwrap(), 2);
        });
        flight.wait(&keys).unwrap();
        let (_claim, _) = flight.claim(&keys);
        assert!(flight.wait(&keys).is_err());
    }
}
