//! Rows held on a device of the caller's choice, which are served without the store.

use std::collections::HashMap;

use parking_lot::{Mutex, RwLock};
use tensorcask::{Key, KeyRef};

use crate::counters::HeldRows;
use crate::error::Result;
use crate::framework::Framework;
use crate::keys::key::BatchKeys;
use xxhash_rust::xxh3::Xxh3DefaultBuilder;

/// Rows of single-tensor outputs, up to a number of bytes. At the limit no more rows are added and none are evicted, so
/// that every epoch finds the same samples.
#[derive(Debug)]
pub(crate) struct Held<F: Framework> {
    device: F::Device,
    most_bytes: usize,
    rows: RwLock<Rows<F>>,
}

#[derive(Debug)]
struct Rows<F: Framework> {
    /// The mutex is needed because tensors are `Send` but need not be `Sync`.
    by_key: HashMap<Key, Mutex<F::Tensor>, Xxh3DefaultBuilder>,
    len_bytes: usize,
}

/// Bytes of a row besides its elements and its key: the table entry and the tensor's header.
const ROW_BYTES: usize = 128;

fn row_len_bytes<F: Framework>(key: &Key, row: &F::Tensor) -> usize {
    let elements = F::len_bytes(row);
    let key = match key.as_ref() {
        KeyRef::Str(key) => key.len(),
        KeyRef::Bytes(key) => key.len(),
        _ => size_of::<u64>(),
    };
    elements + key + ROW_BYTES
}

impl<F: Framework> Held<F> {
    pub(crate) fn new(device: F::Device, bytes: usize) -> Self {
        Self { device, most_bytes: bytes, rows: RwLock::new(Rows { by_key: HashMap::default(), len_bytes: 0 }) }
    }

    /// The batch, if all of its rows are held: `[batch, …]` on the device that holds them.
    pub(crate) fn batch(&self, keys: &BatchKeys) -> Result<Option<F::Tensor>> {
        let held = self.rows.read();
        let row = |at: usize| keys.get(at).and_then(|key| Some(F::share(&held.by_key.get(&key)?.lock())));
        let Some(rows) = (0..keys.len()).map(row).collect::<Option<Vec<F::Tensor>>>() else { return Ok(None) };
        drop(held);
        let [first, others @ ..] = rows.as_slice() else { return Ok(None) };
        let (dtype, shape) = (F::dtype(first)?, F::shape(first));
        for row in others {
            if F::dtype(row)? != dtype || F::shape(row) != shape {
                return Ok(None);
            }
        }
        F::stack(&rows).map(Some)
    }

    /// Adds the rows of `batch` that are not held yet, until the limit is reached.
    pub(crate) fn hold(&self, keys: &BatchKeys, batch: &F::Tensor) -> Result<()> {
        for at in 0..keys.len() {
            let Some(key) = keys.get(at) else { continue };
            if self.rows.read().by_key.contains_key(&key) {
                continue;
            }
            // The row is copied, so that neither the caller's writes change it nor the rest of the batch stays
            // allocated.
            let own = F::row(batch, at, self.device.clone())?;
            let mut rows = self.rows.write();
            let len_bytes = rows.len_bytes + row_len_bytes::<F>(&key, &own);
            if len_bytes > self.most_bytes {
                return Ok(());
            }
            if rows.by_key.insert(key, Mutex::new(own)).is_none() {
                rows.len_bytes = len_bytes;
            }
        }
        Ok(())
    }

    /// The number of rows held, and their bytes.
    pub(crate) fn size(&self) -> HeldRows {
        let rows = self.rows.read();
        HeldRows { rows: rows.by_key.len(), bytes: rows.len_bytes }
    }
}
