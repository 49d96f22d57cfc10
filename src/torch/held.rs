//! Rows held on a device of the caller's choice, so that hits need not come from the store at all.

use std::sync::Arc;

use parking_lot::Mutex;
use tch::{Device, Tensor};
use xxhash_rust::xxh3::xxh3_64;

use super::error::torch;
use super::key::BatchKeys;
use crate::engine::options::HotPolicy;
use crate::engine::state::byte_cache::{ByteCache, Weigh};
use crate::error::Result;
use crate::key::Key;

/// A row. `tch` tensors may move between threads but not be shared, hence the lock.
#[derive(Debug, Clone)]
struct Row(Arc<Mutex<Tensor>>);

impl Weigh for Row {
    fn weight_bytes(&self) -> usize {
        let row = self.0.lock();
        row.numel() * row.f_kind().map_or(8, tch::Kind::elt_size_in_bytes)
    }
}

/// A byte-bounded tier of single-tensor rows. It stops when it is full: what it holds stays, so that every epoch finds
/// the same samples.
#[derive(Debug)]
pub(super) struct Held {
    device: Device,
    tier: ByteCache<Row>,
}

/// One tier serves all kinds of keys: the integer 97 is not the string "a".
fn hashed<T>(key: &Key, f: impl FnOnce(u64, &[u8]) -> T) -> T {
    let key = key.as_ref();
    let mut bytes = key.kind().name().as_bytes().to_vec();
    key.with_bytes(|key| bytes.extend_from_slice(key));
    f(xxh3_64(&bytes), &bytes)
}

impl Held {
    pub(super) fn new(device: Device, bytes: usize) -> Self {
        Self { device, tier: ByteCache::new(bytes, HotPolicy::StopWhenFull) }
    }

    /// The whole batch, if all of its rows are held: `[batch, …]` on the held device.
    pub(super) fn batch(&self, keys: &BatchKeys) -> Result<Option<Tensor>> {
        let row = |at: usize| keys.get(at).and_then(|key| hashed(&key, |hash, bytes| self.tier.get(hash, bytes)));
        let Some(rows) = (0..keys.len()).map(row).collect::<Option<Vec<_>>>() else { return Ok(None) };
        let rows: Vec<Tensor> = rows.iter().map(|row| row.0.lock().shallow_clone()).collect();
        let alike = |row: &Tensor| {
            rows.first().is_some_and(|first| first.size() == row.size() && first.f_kind().ok() == row.f_kind().ok())
        };
        if rows.is_empty() || !rows.iter().all(alike) {
            return Ok(None);
        }
        Tensor::f_stack(&rows, 0).map(Some).map_err(torch("gather rows that are held"))
    }

    /// Holds the rows of `batch` that are not held yet, while there is room.
    pub(super) fn hold(&self, keys: &BatchKeys, batch: &Tensor) -> Result<()> {
        let action = "hold rows on a device";
        for at in 0..keys.len() {
            let Some(key) = keys.get(at) else { continue };
            if hashed(&key, |hash, bytes| self.tier.get(hash, bytes)).is_some() {
                continue;
            }
            let row = batch.f_get(i64::try_from(at).unwrap_or(i64::MAX)).map_err(torch(action))?;
            // A copy of its own: neither the caller's writes nor the rest of the batch are held with it.
            let kind = row.f_kind().map_err(torch(action))?;
            let own = row.f_detach().and_then(|row| row.f_to_device_(self.device, kind, false, true));
            let own = own.map_err(torch(action))?;
            if !hashed(&key, |hash, bytes| self.tier.insert(hash, bytes, Row(Arc::new(Mutex::new(own))))) {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Rows and bytes held.
    pub(super) fn size(&self) -> (usize, usize) {
        (self.tier.len(), self.tier.weight_bytes())
    }
}
