//! The locks of a store's writers: one a lane, and one for opening.

use std::path::Path;
use std::time::{Duration, Instant};

use crate::engine::options::Lane as LaneChoice;
use crate::error::{Error, Result};
use crate::io::{LockGuard, Storage};
use crate::names;
use crate::sync::sleep;

/// How long to wait for another process that is opening the same store.
const OPEN_PATIENCE: Duration = Duration::from_secs(60);

/// Takes the lane that `choice` says.
///
/// # Errors
/// [`Error::LaneBusy`], IO errors: of kind `PermissionDenied` for a lane that is another user's.
pub(crate) fn take_lane(storage: &dyn Storage, choice: LaneChoice) -> Result<(u16, Box<dyn LockGuard>)> {
    let candidates = match choice {
        LaneChoice::Number(number) => number..=number,
        LaneChoice::Auto => 0..=u16::MAX,
    };
    for number in candidates.clone() {
        let path = names::lane_lock(number);
        match try_lane(storage, &path) {
            Ok(Some(lock)) => return Ok((number, lock)),
            Ok(None) => {}
            // Another user's lane, unless it is the folder that may not be written.
            // Nobody can lock such a lane.
            Err(error) if error.is_no_file() && choice == LaneChoice::Auto => {}
            Err(error) if error.is_denied() && choice == LaneChoice::Auto && storage.len_bytes(&path).is_ok() => {}
            Err(error) => return Err(error),
        }
    }
    let lane = *candidates.start();
    Err(Error::LaneBusy { lane, path: storage.describe(&names::lane_lock(lane)) })
}

/// Locks a lane, if it is free and this user may write it.
fn try_lane(storage: &dyn Storage, path: &Path) -> Result<Option<Box<dyn LockGuard>>> {
    match storage.try_lock(path)? {
        // Who may not write the lock file may not write the lane's segments.
        Some(lock) if !lock.is_writable() => {
            let denied = std::io::ErrorKind::PermissionDenied.into();
            Err(Error::io("write the lock file", storage.describe(path), denied))
        }
        lock => Ok(lock),
    }
}

/// Waits for the lock under which a store is opened, its first key kind is fixed, and damage is acknowledged: by one
/// process at a time, so that two cannot both invent the store's identity or move one damaged file.
///
/// # Errors
/// [`Error::Io`] of kind `TimedOut` after a minute; IO errors.
pub(crate) fn wait_for_open_lock(storage: &dyn Storage) -> Result<Box<dyn LockGuard>> {
    let path = Path::new(names::LANES).join(names::OPEN_LOCK);
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
        sleep(Duration::from_millis(2));
    }
}
