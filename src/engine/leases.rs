//! Leases: while one process computes a key, others wait for it.
//!
//! The lease of a key is the lock on one position of a file ([`PositionLocks`]), so it ends with its process. The
//! position is the key's hash: two keys share one with probability 2^-62, and then only wait for each other. Threads
//! of one handle share its leases; [`Flight`] excludes them from each other. No thread waits for a lease while it holds
//! another one of the same call, so processes that ask for overlapping keys never wait for each other in a cycle.
//!
//! [`Flight`]: crate::engine::flight::claims::Flight

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use crate::engine::follow::{has_others, take_in_others};
use crate::engine::lock_order::{Rank, RankedMutex};
use crate::engine::state::State;
use crate::error::{Error, Result};
use crate::io::PositionLocks;
use crate::key::Key;
use crate::names;
use crate::sync::sleep;

/// The maximum number of leases of one call. The kernel searches all leases of a store for each one.
const MOST: usize = 512;

/// The first and the longest time between two looks whether a lease was released.
const FIRST_WAIT: Duration = Duration::from_millis(1);
const LONGEST_WAIT: Duration = Duration::from_millis(20);

/// The leases of one handle of a store.
#[derive(Debug)]
pub struct Leases {
    state: Arc<State>,
    lane: u16,
    /// Opened at the first miss.
    locks: OnceLock<Option<Box<dyn PositionLocks>>>,
    /// Why no leases are taken, although the options ask for them.
    failure: OnceLock<Error>,
    /// For each position that is locked, how many threads share it.
    held: RankedMutex<HashMap<u64, usize>>,
}

/// Leases that one call holds, until it is dropped.
#[derive(Debug)]
pub(crate) struct Lease<'a> {
    leases: &'a Leases,
    positions: Vec<u64>,
}

/// The result of [`Leases::take`].
#[derive(Debug)]
pub(crate) struct Taken<'a> {
    pub lease: Lease<'a>,
    /// For each key, whether it may be computed: no other process holds its lease.
    pub got: Vec<bool>,
    /// The positions of the leases that other processes hold.
    pub refused: Vec<u64>,
    /// Whether other processes may have written the keys before, or may wait for them.
    pub is_shared: bool,
}

/// How long one call still waits for leases in all.
#[derive(Debug)]
pub(crate) struct Patience {
    end: Option<Instant>,
    wait: Duration,
}

impl Patience {
    pub(crate) fn new() -> Self {
        Self { end: None, wait: FIRST_WAIT }
    }
}

fn open(state: &State) -> Result<Box<dyn PositionLocks>> {
    if let Some(network) = state.storage().network()? {
        return Err(Error::invalid(format!(
            "the store is on a network file system ({network}), whose locks do not end with their process"
        )));
    }
    let locks = state.storage().position_locks(&Path::new(names::LANES).join(names::LEASE_LOCK))?;
    locks.ok_or_else(|| Error::invalid("this system or storage has no locks on positions of a file"))
}

impl Leases {
    pub(crate) fn new(state: Arc<State>, lane: u16) -> Self {
        let held = RankedMutex::new(Rank::Leases, HashMap::new());
        Self { state, lane, locks: OnceLock::new(), failure: OnceLock::new(), held }
    }

    /// Why no leases are taken, if they failed.
    pub fn failure(&self) -> Option<&Error> {
        self.failure.get()
    }

    fn locks(&self) -> Option<&dyn PositionLocks> {
        if self.state.options().lease_timeout.is_zero() || self.failure.get().is_some() {
            return None;
        }
        let opened = self.locks.get_or_init(|| open(&self.state).map_err(|error| self.fail(error)).ok());
        opened.as_deref()
    }

    /// Records that leases do not work here: from now on, none are taken.
    fn fail(&self, error: Error) {
        self.failure.get_or_init(|| error);
    }

    /// Takes the leases of `keys` that no other process holds. If there are more than [`MOST`] keys, it takes those
    /// with the smallest hashes; the others count as held if any of these is. So of two calls with the same keys, one
    /// computes, and calls with different keys do not wait for each other.
    pub(crate) fn take(&self, keys: &[Key]) -> Taken<'_> {
        let mut taken = Taken {
            lease: Lease { leases: self, positions: Vec::new() },
            got: vec![true; keys.len()],
            refused: Vec::new(),
            is_shared: false,
        };
        let Some(locks) = self.locks().filter(|_| !keys.is_empty()) else { return taken };
        let position = |key: &Key| self.state.hasher().hash_key(key.as_ref()) >> 2;
        let mut sorted: Vec<(u64, usize)> = keys.iter().map(position).zip(0..).collect();
        sorted.sort_unstable();
        let (first, rest) = sorted.split_at(sorted.len().min(MOST));
        let mut refuse = |at: usize| taken.got.get_mut(at).into_iter().for_each(|got| *got = false);
        let mut held = self.held.lock();
        for &(position, at) in first {
            match self.share(locks, &mut held, position) {
                Ok(true) => taken.lease.positions.push(position),
                Ok(false) => {
                    refuse(at);
                    taken.refused.push(position);
                }
                Err(error) => {
                    self.fail(error);
                    break;
                }
            }
        }
        drop(held);
        rest.iter().filter(|_| !taken.refused.is_empty()).for_each(|(_, at)| refuse(*at));
        taken.is_shared = has_others(&self.state, self.lane);
        if taken.is_shared && !taken.lease.positions.is_empty() {
            take_in_others(&self.state, self.lane);
        }
        taken
    }

    /// Locks a position, or shares it with another thread of this handle. Returns whether the handle holds it.
    fn share(&self, locks: &dyn PositionLocks, held: &mut HashMap<u64, usize>, position: u64) -> Result<bool> {
        if let Some(threads) = held.get_mut(&position) {
            *threads += 1;
            return Ok(true);
        }
        let is_locked = locks.try_lock(position)?;
        if is_locked {
            held.insert(position, 1);
        }
        Ok(is_locked)
    }

    /// Waits until one of the leases `refused` is released. Returns `false` if the call has waited for as long as the
    /// options allow: then it computes without leases.
    pub(crate) fn wait(&self, refused: &[u64], patience: &mut Patience) -> bool {
        let end = *patience.end.get_or_insert_with(|| Instant::now() + self.state.options().lease_timeout);
        loop {
            let Some(locks) = self.locks().filter(|_| Instant::now() < end) else { return false };
            sleep(patience.wait);
            patience.wait = (patience.wait * 2).min(LONGEST_WAIT);
            match refused.iter().map(|position| locks.is_free(*position)).find(|free| !matches!(free, Ok(false))) {
                Some(Ok(_)) => return true,
                Some(Err(error)) => self.fail(error),
                None => {}
            }
        }
    }
}

impl Drop for Lease<'_> {
    fn drop(&mut self) {
        let Some(locks) = self.leases.locks.get().and_then(Option::as_deref) else { return };
        // A forked child may have inherited this value, but not the leases.
        if self.positions.is_empty() || self.leases.state.check_fork().is_err() {
            return;
        }
        let mut held = self.leases.held.lock();
        for position in &self.positions {
            match held.get_mut(position) {
                Some(threads) if *threads > 1 => *threads -= 1,
                _ => {
                    held.remove(position);
                    if let Err(error) = locks.unlock(*position) {
                        self.leases.fail(error);
                    }
                }
            }
        }
    }
}
