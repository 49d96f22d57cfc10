//! Room for computed outputs under the limit of the files: what is removed if there is none.

use std::path::Path;

use tensorcask::{Error as StoreError, Eviction};

use crate::error::Result;
use crate::framework::Framework;
use crate::identities::{list, prune_listed};
use crate::layer::inner::Inner;
use crate::store::space::Spaces;
use crate::store::used::{DiskScope, Room};

/// More than is needed is removed by this part of the limit, so that small batches do not evict one by one.
const MORE: u64 = 32;

impl<F: Framework> Inner<F> {
    /// Whether `rows` of `bytes` in total may be kept; counts them if so.
    ///
    /// # Errors
    /// Those of evicting. Nothing is counted then.
    pub(crate) fn reserve(&self, spaces: &Spaces, rows: usize, bytes: usize) -> Result<bool> {
        let mut room = spaces.reserve(rows, bytes);
        if room == Room::Full && spaces.used().eviction() != Eviction::Stop {
            let used = spaces.used();
            let missing = used.missing_bytes(rows as u64, bytes as u64).saturating_add(used.cap() / MORE);
            let freed = self.remove_unused(spaces, missing)?;
            if freed < missing {
                match spaces.evict(missing - freed) {
                    Err(error) if !is_busy(&error) => return Err(error.into()),
                    _ => {}
                }
            }
            used.measure_again();
            room = spaces.reserve(rows, bytes);
            if room == Room::Full && used.is_news() {
                room = Room::FullNow;
            }
        }
        if room == Room::FullNow {
            self.warn(format!("the cap of {} bytes is reached: no more outputs are kept", spaces.cap_bytes()));
        }
        Ok(room == Room::Granted)
    }

    /// Removes identities that nobody has open, the least recently used ones first, until `bytes` are freed; returns
    /// how many were.
    fn remove_unused(&self, spaces: &Spaces, bytes: u64) -> Result<u64> {
        let own = spaces.folder();
        let Some(module) = own.and_then(Path::parent).filter(|_| spaces.used().scope() == DiskScope::Module) else {
            return Ok(0);
        };
        let mut others = list(module)?;
        others.retain(|identity| Some(&*identity.folder) != own);
        let mut freed = 0;
        // The last used one is the first.
        while let Some(oldest) = others.pop().filter(|_| freed < bytes) {
            let id = oldest.id.clone();
            let removed = prune_listed(module, vec![oldest], false, |_| true)?.freed_bytes();
            if removed > 0 {
                tracing::info!(identity = id, bytes = removed, "an unused identity was removed: the cap is reached");
            }
            freed += removed;
        }
        Ok(freed)
    }
}

/// Whether another process compacted or evicted for too long.
fn is_busy(error: &StoreError) -> bool {
    matches!(error.cause(), StoreError::Io { source, .. } if source.kind() == std::io::ErrorKind::TimedOut)
}
