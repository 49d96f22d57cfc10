//! The lock files of a store: one for each lane, one for opening, and one for compaction.

use std::path::Path;
use std::time::{Duration, Instant};

use crate::engine::options::Lane as LaneChoice;
use crate::error::{Error, Result};
use crate::io::{LockGuard, Storage};
use crate::names::{self, SegmentName};
use crate::sync::sleep;

/// How long to wait for another process that is opening the same store.
const OPEN_PATIENCE: Duration = Duration::from_secs(60);
/// How long to wait for a lane that was requested by its number.
const LANE_PATIENCE: Duration = Duration::from_millis(20);

/// The lanes that have active segments. If such a lane is free, its writer was killed.
fn lanes_with_active_segments(storage: &dyn Storage) -> Result<Vec<u16>> {
    let mut lanes = Vec::new();
    let listed = match storage.list(Path::new(names::SEGMENTS)) {
        Err(error) if error.is_not_found() => return Ok(lanes),
        listed => listed?,
    };
    for entry in listed {
        if let SegmentName::Active(id) = names::parse_segment(&entry.name) {
            lanes.push(id.lane);
        }
    }
    lanes.dedup();
    Ok(lanes)
}

/// Locks the lane that `choice` asks for. [`LaneChoice::Auto`] first tries the lanes of killed writers, whose active
/// segments only the writer of their lane can seal.
///
/// # Errors
/// [`Error::LaneBusy`]; IO errors, of kind `PermissionDenied` for another user's lane.
pub(crate) fn take_lane(storage: &dyn Storage, choice: LaneChoice) -> Result<(u16, Box<dyn LockGuard>)> {
    let (unsealed, others) = match choice {
        LaneChoice::Number(number) => (Vec::new(), number..=number),
        LaneChoice::Auto => (lanes_with_active_segments(storage)?, 0..=u16::MAX),
    };
    let lane = *others.start();
    // A process that checks which lanes have writers holds the lock for a moment.
    let patience = if choice == LaneChoice::Auto { Duration::ZERO } else { LANE_PATIENCE };
    for number in unsealed.into_iter().chain(others) {
        let path = names::lane_lock(number);
        match retry(patience, || try_lane(storage, &path)) {
            Ok(Some(lock)) => return Ok((number, lock)),
            Ok(None) => {}
            // Its lock path is not a file, so nobody can lock this lane.
            Err(error) if error.is_no_file() && choice == LaneChoice::Auto => {}
            // Another user's lane, unless the folder itself is not writable.
            Err(error) if error.is_denied() && choice == LaneChoice::Auto && storage.len_bytes(&path).is_ok() => {}
            Err(error) => return Err(error),
        }
    }
    Err(Error::LaneBusy { lane, path: storage.describe(&names::lane_lock(lane)) })
}

/// Locks a lane, if it is free and this user may write it.
fn try_lane(storage: &dyn Storage, path: &Path) -> Result<Option<Box<dyn LockGuard>>> {
    match storage.try_lock(path)? {
        // A user who may not write the lock file may not write the lane's segments either.
        Some(lock) if !lock.is_writable() => {
            let denied = std::io::ErrorKind::PermissionDenied.into();
            Err(Error::io("write the lock file", storage.describe(path), denied))
        }
        lock => Ok(lock),
    }
}

/// Waits for the lock that is held while a store is opened, its kind of keys is fixed, or damage is acknowledged. So no
/// two processes both create the store's identity, or both move one damaged file.
///
/// # Errors
/// [`Error::Io`] of kind `TimedOut` after a minute; IO errors.
pub(crate) fn wait_for_open_lock(storage: &dyn Storage) -> Result<Box<dyn LockGuard>> {
    wait_for(storage, names::OPEN_LOCK, OPEN_PATIENCE, "another process has been opening the store for a minute")
}

/// Waits for the lock of compaction, under which one process at a time rewrites segments.
///
/// # Errors
/// [`Error::Io`] of kind `TimedOut`, IO errors.
pub(crate) fn wait_for_compact_lock(storage: &dyn Storage, patience: Duration) -> Result<Box<dyn LockGuard>> {
    wait_for(storage, names::COMPACT_LOCK, patience, "another process is compacting the store: try again later")
}

fn wait_for(storage: &dyn Storage, name: &str, patience: Duration, what: &str) -> Result<Box<dyn LockGuard>> {
    let path = Path::new(names::LANES).join(name);
    retry(patience, || storage.try_lock(&path))?.ok_or_else(|| {
        Error::io("lock", storage.describe(&path), std::io::Error::new(std::io::ErrorKind::TimedOut, what))
    })
}

/// Tries to lock until it succeeds or `patience` has passed.
fn retry(
    patience: Duration,
    lock: impl Fn() -> Result<Option<Box<dyn LockGuard>>>,
) -> Result<Option<Box<dyn LockGuard>>> {
    let start = Instant::now();
    loop {
        let locked = lock()?;
        if locked.is_some() || start.elapsed() >= patience {
            return Ok(locked);
        }
        sleep(Duration::from_millis(2));
    }
}

/// The lanes that have a writer now, including this process's own.
///
/// # Errors
/// IO errors.
pub(crate) fn lanes_with_writers(storage: &dyn Storage) -> Result<Vec<u16>> {
    let mut lanes = Vec::new();
    for entry in storage.list(Path::new(names::LANES))? {
        let Some(lane) = names::parse_lane_lock(&entry.name) else { continue };
        match storage.try_lock(&names::lane_lock(lane)) {
            Ok(Some(_free)) => {}
            Ok(None) => lanes.push(lane),
            // A lane of another user may have a writer.
            Err(error) if error.is_denied() || error.is_no_file() => lanes.push(lane),
            Err(error) => return Err(error),
        }
    }
    Ok(lanes)
}
