//! Locks on positions of a file in memory.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

use super::Tree;
use crate::error::Result;
use crate::io::PositionLocks;

/// The locked positions of all files.
#[derive(Debug, Default)]
pub(super) struct Positions {
    /// The number of the handle that holds each position.
    holders: HashMap<(PathBuf, u64), u64>,
    /// The number of handles that were opened.
    opened: u64,
}

/// One handle of a file's positions.
#[derive(Debug)]
pub(super) struct MemoryPositions {
    tree: Arc<Mutex<Tree>>,
    path: PathBuf,
    number: u64,
}

impl MemoryPositions {
    /// A new handle of the file at `path`; `open` is the locked `tree`.
    pub(super) fn new(tree: Arc<Mutex<Tree>>, open: &mut Tree, path: &Path) -> Self {
        open.positions.opened += 1;
        Self { tree, path: path.to_owned(), number: open.positions.opened }
    }
}

impl PositionLocks for MemoryPositions {
    fn try_lock(&self, position: u64) -> Result<bool> {
        let holders = &mut self.tree.lock().positions.holders;
        Ok(*holders.entry((self.path.clone(), position)).or_insert(self.number) == self.number)
    }

    fn is_free(&self, position: u64) -> Result<bool> {
        let holders = &self.tree.lock().positions.holders;
        Ok(holders.get(&(self.path.clone(), position)).is_none_or(|holder| *holder == self.number))
    }

    fn unlock(&self, position: u64) -> Result<()> {
        let holders = &mut self.tree.lock().positions.holders;
        let place = (self.path.clone(), position);
        if holders.get(&place) == Some(&self.number) {
            holders.remove(&place);
        }
        Ok(())
    }
}

impl Drop for MemoryPositions {
    fn drop(&mut self) {
        self.tree.lock().positions.holders.retain(|_, holder| *holder != self.number);
    }
}
