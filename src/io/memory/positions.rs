//! Locks on positions of a file in memory.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

use crate::error::Result;
use crate::io::PositionLocks;

/// The locked positions of all files. Clones share them.
#[derive(Debug, Clone, Default)]
pub(super) struct Positions(Arc<Mutex<Locked>>);

#[derive(Debug, Default)]
struct Locked {
    /// The number of the handle that holds each position.
    holders: HashMap<(PathBuf, u64), u64>,
    /// The number of handles that were opened.
    opened: u64,
}

/// One handle of a file's positions.
#[derive(Debug)]
pub(super) struct MemoryPositions {
    positions: Positions,
    path: PathBuf,
    number: u64,
}

impl Positions {
    /// A new handle of the file at `path`.
    pub(super) fn open(&self, path: &Path) -> MemoryPositions {
        let mut locked = self.0.lock();
        locked.opened += 1;
        MemoryPositions { positions: self.clone(), path: path.to_owned(), number: locked.opened }
    }
}

impl PositionLocks for MemoryPositions {
    fn try_lock(&self, position: u64) -> Result<bool> {
        let holders = &mut self.positions.0.lock().holders;
        Ok(*holders.entry((self.path.clone(), position)).or_insert(self.number) == self.number)
    }

    fn is_free(&self, position: u64) -> Result<bool> {
        let holders = &self.positions.0.lock().holders;
        Ok(holders.get(&(self.path.clone(), position)).is_none_or(|holder| *holder == self.number))
    }

    fn unlock(&self, position: u64) -> Result<()> {
        let holders = &mut self.positions.0.lock().holders;
        let place = (self.path.clone(), position);
        if holders.get(&place) == Some(&self.number) {
            holders.remove(&place);
        }
        Ok(())
    }
}

impl Drop for MemoryPositions {
    fn drop(&mut self) {
        self.positions.0.lock().holders.retain(|_, holder| *holder != self.number);
    }
}
