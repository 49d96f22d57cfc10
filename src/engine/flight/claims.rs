//! Single flight: while one thread computes a key, others wait for it.

use std::collections::HashMap;

use crate::engine::flight::waits;
use crate::engine::lock_order::{Rank, RankedMutex};
use crate::key::Key;
use crate::sync::atomic::{AtomicU64, Ordering};

/// The keys that are being computed, and the claims on each. A key has several claims if a thread could not wait.
#[derive(Debug)]
pub struct Flight {
    keys: RankedMutex<HashMap<Key, Vec<u64>>>,
    landings: AtomicU64,
}

impl Default for Flight {
    fn default() -> Self {
        Self { keys: RankedMutex::new(Rank::Flight, HashMap::new()), landings: AtomicU64::new(0) }
    }
}

/// Keys that this thread computes. They are released on drop, also if the computation panics.
#[derive(Debug)]
pub struct Claim<'a> {
    flight: &'a Flight,
    keys: Vec<Key>,
    /// Dropped last, so that a thread that waited for the claim finds the keys free.
    number: waits::Claim,
}

/// The result of [`Flight::claim`].
#[derive(Debug)]
pub struct Claimed<'a> {
    /// The claim on the keys that were free.
    pub claim: Claim<'a>,
    /// For each key, whether it was claimed.
    pub got: Vec<bool>,
    /// The claims of others on the remaining keys.
    pub others: Vec<u64>,
}

impl Flight {
    /// The number of computations that have ended. If it has not changed, an earlier lookup is still valid.
    pub fn landings(&self) -> u64 {
        self.landings.load(Ordering::Acquire)
    }

    /// Claims those of `keys` that have no claims other than `passed_by`.
    pub fn claim(&self, keys: &[Key], passed_by: &[u64]) -> Claimed<'_> {
        let number = waits::Claim::new();
        let mut flying = self.keys.lock();
        let mut others = Vec::new();
        let mut claim = |key: &Key| {
            let claims = flying.entry(key.clone()).or_default();
            let free = claims.iter().all(|claim| passed_by.contains(claim));
            if free {
                claims.push(number.number());
            } else {
                others.extend(claims.iter().filter(|claim| !passed_by.contains(claim)));
            }
            free
        };
        let got: Vec<bool> = keys.iter().map(&mut claim).collect();
        drop(flying);
        others.sort_unstable();
        others.dedup();
        let keys = keys.iter().zip(&got).filter(|(_, got)| **got).map(|(key, _)| key.clone()).collect();
        Claimed { claim: Claim { flight: self, keys, number }, got, others }
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        if self.keys.is_empty() {
            return;
        }
        let mut flying = self.flight.keys.lock();
        for key in &self.keys {
            if let Some(claims) = flying.get_mut(key) {
                claims.retain(|claim| *claim != self.number.number());
                if claims.is_empty() {
                    flying.remove(key);
                }
            }
        }
        self.flight.landings.fetch_add(1, Ordering::Release);
    }
}

#[cfg(all(test, not(feature = "model")))]
mod tests {
    use super::waits::{Waited, wait_for_claims};
    use super::*;

    #[test]
    fn one_thread_computes_and_the_others_wait() {
        let flight = Flight::default();
        let keys = [Key::U64(1), Key::U64(2)];
        let first = flight.claim(&keys[..1], &[]);
        assert_eq!((&first.got, first.others.len()), (&vec![true], 0));
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| {
                let second = flight.claim(&keys, &[]);
                assert_eq!((second.got, second.others.len()), (vec![false, true], 1));
                drop(second.claim);
                assert_eq!(wait_for_claims(&second.others), Waited::Over);
                flight.landings()
            });
            while flight.landings() == 0 {
                std::thread::yield_now();
            }
            drop(first.claim);
            assert_eq!(waiter.join().unwrap(), 2);
        });
        let all = flight.claim(&keys, &[]);
        assert_eq!(all.got, [true, true]);
        let again = flight.claim(&keys, &[]);
        assert_eq!(wait_for_claims(&again.others), Waited::Itself);
        // A key whose claim was passed by has two claims, and stays claimed until both are dropped.
        let passing = flight.claim(&keys, &again.others);
        assert_eq!(passing.got, [true, true]);
        drop(all.claim);
        assert_eq!(flight.claim(&keys, &[]).got, [false, false]);
        drop(passing.claim);
        assert_eq!(flight.claim(&keys, &[]).got, [true, true]);
    }
}
