//! The locks of a store's writers: one a lane, and one for opening.

use std::path::Path;
use std::time::{Duration, Instant};

use super::options::Lane as LaneChoice;
use crate::error::{Error, Result};
use crate::io::{LockGuard, Storage};
use crate::names;

/// How long to wait for another process that is opening the same store.
const OPEN_PATIENCE: Duration = Duration::from_secs(60);

/// Takes the lane that `choice` says.
///
/// # Errors
/// [`Error::LaneBusy`], IO errors.
pub(crate) fn take_lane(storage: &dyn Storage, choice: LaneChoice) -> Result<(u16, Box<dyn LockGuard>)> {
    let candidates = match choice {
        LaneChoice::Number(number) => number..=number,
        LaneChoice::Auto => 0..=u16::MAX,
    };
    for number in candidates.clone() {
        if let Some(lock) = storage.try_lock(&names::lane_lock(number))? {
            return Ok((number, lock));
        }
    }
    let lane = *candidates.start();
    Err(Error::LaneBusy { lane, path: storage.describe(&names::lane_lock(lane)) })
}

/// Waits for the lock under which a store is opened, its first key kind is fixed, and damage is acknowledged: by one
/// process at a time, so that two cannot both invent the store's identity or move one damaged file.
///
/// # Errors
/// [`Error::Io`] of kind `TimedOut` after a minute; IO errors.
pub(crate) fn wait_for_open_lock(storage: &dyn Storage) -> Result<Box<dyn LockGuard>> {
    let path = Path::new(names::LANES).join("open.lock");
    let start = Instant::now();
    loop {
        if let Some(lock) = storage.try_lock(&path)? {
            return Ok(lock);
        }
        if start.elapsed() > OPEN_PATIENCE {
            let error = std::io::Error::new(
                std::io::ErrorKind::TimedOut,
                "another process has been opening the store for a minute",
            );
            return Err(Error::io("lock", storage.describe(&path), error));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}
