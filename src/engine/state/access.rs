//! Whether a handle may be used, and whether it may write.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::engine::threads;
use crate::error::{Error, Result};

/// The rights of a handle.
#[derive(Debug)]
pub(crate) struct Access {
    read_only: bool,
    /// Why puts fail although the store was opened for writing.
    refusal: OnceLock<Error>,
    /// How many forks lay between the first process and this one when the store was opened.
    forks: u32,
    /// Whether it shows the state as of its opening.
    pinned: AtomicBool,
}

impl Access {
    pub(crate) fn new(read_only: bool) -> Self {
        Self { read_only, refusal: OnceLock::new(), forks: threads::forks(), pinned: AtomicBool::new(false) }
    }

    /// Whether no writer is attached.
    pub(crate) fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// Makes the handle ignore what is committed from now on.
    pub(crate) fn pin(&self) {
        self.pinned.store(true, Ordering::Relaxed);
    }

    /// Whether the handle ignores what was committed since it was opened.
    pub(crate) fn is_pinned(&self) -> bool {
        self.pinned.load(Ordering::Relaxed)
    }

    /// Makes every put fail with `error`.
    pub(crate) fn refuse_writes(&self, error: Error) {
        self.refusal.get_or_init(|| error);
    }

    /// Fails if puts are refused.
    ///
    /// # Errors
    /// The error with which they are refused.
    pub(crate) fn check_writes(&self) -> Result<()> {
        self.refusal.get().map_or(Ok(()), |error| Err(error.clone()))
    }

    /// Fails in a child that was forked since the store was opened: other threads may have held any lock at the fork,
    /// and the child's copies of these locks are never released. Costs one load.
    #[inline]
    pub(crate) fn check_fork(&self) -> Result<()> {
        if threads::forks() == self.forks { Ok(()) } else { Err(Error::Forked) }
    }
}
