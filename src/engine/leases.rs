//! Leases: while one process computes a key, others wait for it.
//!
//! The lease of a key is the lock on one position of a file ([`PositionLocks`]), so it ends with its process. File and
//! position are the key's hash: keys of one hash only wait for each other. Threads of one handle share its leases;
//! [`Flight`] excludes them from each other. No thread waits for a lease while it holds another one of the same call, so
//! processes that ask for overlapping keys never wait for each other in a cycle.
//!
//! [`Flight`]: crate::engine::flight::claims::Flight

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use crate::engine::follow::{has_others, take_in_others};
use crate::engine::lock_order::{Rank, RankedMutex};
use crate::engine::state::State;
use crate::engine::threads::later;
use crate::error::{Error, Result};
use crate::io::PositionLocks;
use crate::key::Key;
use crate::names;
use crate::sync::sleep;

/// The maximum number of leases of one call.
const MOST: usize = 512;

/// The number of files. The kernel keeps the locks of a file in a list, which it searches for each lock and unlock.
const FILES: usize = 16;

/// The first and the longest time between two looks whether a lease was released.
const FIRST_WAIT: Duration = Duration::from_millis(1);
const LONGEST_WAIT: Duration = Duration::from_millis(20);

/// The leases of one handle of a store.
#[derive(Debug)]
pub struct Leases {
    state: Arc<State>,
    lane: u16,
    /// Opened at the first miss.
    locks: OnceLock<Option<Locks>>,
    /// Why no leases are taken, although the options ask for them.
    failure: OnceLock<Error>,
    /// For each hash whose lease is held, how many threads share it.
    held: RankedMutex<HashMap<u64, usize>>,
}

/// Leases that one call holds, until it is dropped.
#[derive(Debug)]
pub(crate) struct Lease<'a> {
    leases: &'a Leases,
    hashes: Vec<u64>,
}

/// The result of [`Leases::take`].
#[derive(Debug)]
pub(crate) struct Taken<'a> {
    pub lease: Lease<'a>,
    /// For each key, whether it may be computed: no other process holds its lease.
    pub got: Vec<bool>,
    /// The hashes of the leases that other processes hold.
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

/// The locks of a store's files of leases. The lowest bits of a hash choose the file.
#[derive(Debug)]
struct Locks(Vec<Box<dyn PositionLocks>>);

impl Locks {
    fn open(state: &State) -> Result<Self> {
        if let Some(network) = state.storage().network()? {
            return Err(Error::invalid(format!(
                "the store is on a network file system ({network}), whose locks do not end with their process"
            )));
        }
        let open = |file| {
            let locks = state.storage().position_locks(&names::lease_lock(file))?;
            locks.ok_or_else(|| Error::invalid("this system or storage has no locks on positions of a file"))
        };
        (0..FILES).map(open).collect::<Result<_>>().map(Self)
    }

    /// The file of a hash, and the position in it.
    fn place(&self, hash: u64) -> Result<(&dyn PositionLocks, u64)> {
        let file = self.0.get(hash as usize % FILES).ok_or_else(|| Error::internal("a file of leases is not open"))?;
        Ok((&**file, hash >> 1))
    }

    fn try_lock(&self, hash: u64) -> Result<bool> {
        self.place(hash).and_then(|(file, position)| file.try_lock(position))
    }

    fn is_free(&self, hash: u64) -> Result<bool> {
        self.place(hash).and_then(|(file, position)| file.is_free(position))
    }

    fn unlock(&self, hash: u64) -> Result<()> {
        self.place(hash).and_then(|(file, position)| file.unlock(position))
    }
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

    fn locks(&self) -> Option<&Locks> {
        if self.state.options().lease_timeout.is_zero() || self.failure.get().is_some() {
            return None;
        }
        let opened = self.locks.get_or_init(|| Locks::open(&self.state).map_err(|error| self.fail(error)).ok());
        opened.as_ref()
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
            lease: Lease { leases: self, hashes: Vec::new() },
            got: vec![true; keys.len()],
            refused: Vec::new(),
            is_shared: false,
        };
        let Some(locks) = self.locks().filter(|_| !keys.is_empty()) else { return taken };
        let hash = |key: &Key| self.state.hasher().hash_key(key.as_ref());
        let mut sorted: Vec<(u64, usize)> = keys.iter().map(hash).zip(0..).collect();
        sorted.sort_unstable();
        let (first, rest) = sorted.split_at(sorted.len().min(MOST));
        let mut refuse = |at: usize| taken.got.get_mut(at).into_iter().for_each(|got| *got = false);
        let mut held = self.held.lock();
        for &(hash, at) in first {
            match self.share(locks, &mut held, hash) {
                Ok(true) => taken.lease.hashes.push(hash),
                Ok(false) => {
                    refuse(at);
                    taken.refused.push(hash);
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
        if taken.is_shared && !taken.lease.hashes.is_empty() {
            take_in_others(&self.state, self.lane);
        }
        taken
    }

    /// Whether other processes have the store open to write.
    pub(crate) fn is_shared(&self) -> bool {
        has_others(&self.state, self.lane)
    }

    /// Takes a lease, or shares it with another thread of this handle. Returns whether the handle holds it.
    fn share(&self, locks: &Locks, held: &mut HashMap<u64, usize>, hash: u64) -> Result<bool> {
        if let Some(threads) = held.get_mut(&hash) {
            *threads += 1;
            return Ok(true);
        }
        let is_locked = locks.try_lock(hash)?;
        if is_locked {
            held.insert(hash, 1);
        }
        Ok(is_locked)
    }

    /// Waits until one of the leases `refused` is released. Returns `false` if the call has waited for as long as the
    /// options allow: then it computes without leases.
    pub(crate) fn wait(&self, refused: &[u64], patience: &mut Patience) -> bool {
        let end = *patience.end.get_or_insert_with(|| later(Instant::now(), self.state.options().lease_timeout));
        loop {
            let Some(locks) = self.locks().filter(|_| Instant::now() < end) else { return false };
            sleep(patience.wait);
            patience.wait = (patience.wait * 2).min(LONGEST_WAIT);
            match refused.iter().map(|hash| locks.is_free(*hash)).find(|free| !matches!(free, Ok(false))) {
                Some(Ok(_)) => return true,
                Some(Err(error)) => self.fail(error),
                None => {}
            }
        }
    }
}

impl Drop for Lease<'_> {
    fn drop(&mut self) {
        let Some(locks) = self.leases.locks.get().and_then(Option::as_ref) else { return };
        // A forked child may have inherited this value, but not the leases.
        if self.hashes.is_empty() || self.leases.state.check_fork().is_err() {
            return;
        }
        let mut held = self.leases.held.lock();
        for hash in &self.hashes {
            match held.get_mut(hash) {
                Some(threads) if *threads > 1 => *threads -= 1,
                _ => {
                    held.remove(hash);
                    if let Err(error) = locks.unlock(*hash) {
                        self.leases.fail(error);
                    }
                }
            }
        }
    }
}
