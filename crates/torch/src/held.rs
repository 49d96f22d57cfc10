//! Rows held on a device of the caller's choice, so that hits need not come from the store at all.

use std::collections::HashMap;

use parking_lot::{Mutex, RwLock};
use tch::{Device, Tensor};
use tensorcask::{Key, KeyRef};
use xxhash_rust::xxh3::Xxh3DefaultBuilder;

use crate::error::Result;
use crate::error::torch;
use crate::key::BatchKeys;

/// Rows of single-tensor outputs, up to a number of bytes. When that is reached nothing more is held, and what is held
/// stays, so that every epoch finds the same samples.
#[derive(Debug)]
pub(crate) struct Held {
    device: Device,
    most_bytes: usize,
    rows: RwLock<Rows>,
}

#[derive(Debug, Default)]
struct Rows {
    /// `tch` tensors may move between threads but not be shared, hence the locks.
    by_key: HashMap<Key, Mutex<Tensor>, Xxh3DefaultBuilder>,
    len_bytes: usize,
}

/// What a row takes beside its elements and its key: the entry of the table, and what describes the tensor.
const ROW_BYTES: usize = 128;

fn row_len_bytes(key: &Key, row: &Tensor) -> usize {
    let elements = row.numel() * row.f_kind().map_or(8, tch::Kind::elt_size_in_bytes);
    let key = match key.as_ref() {
        KeyRef::Str(key) => key.len(),
        KeyRef::Bytes(key) => key.len(),
        _ => size_of::<u64>(),
    };
    elements + key + ROW_BYTES
}

impl Held {
    pub(crate) fn new(device: Device, bytes: usize) -> Self {
        Self { device, most_bytes: bytes, rows: RwLock::default() }
    }

    /// The whole batch, if all of its rows are held: `[batch, …]` on the held device.
    pub(crate) fn batch(&self, keys: &BatchKeys) -> Result<Option<Tensor>> {
        let held = self.rows.read();
        let row = |at: usize| keys.get(at).and_then(|key| Some(held.by_key.get(&key)?.lock().shallow_clone()));
        let Some(rows) = (0..keys.len()).map(row).collect::<Option<Vec<Tensor>>>() else { return Ok(None) };
        drop(held);
        let alike = |row: &Tensor| {
            rows.first().is_some_and(|first| first.size() == row.size() && first.f_kind().ok() == row.f_kind().ok())
        };
        if rows.is_empty() || !rows.iter().all(alike) {
            return Ok(None);
        }
        Tensor::f_stack(&rows, 0).map(Some).map_err(torch("gather rows that are held"))
    }

    /// Holds the rows of `batch` that are not held yet, while there is room.
    pub(crate) fn hold(&self, keys: &BatchKeys, batch: &Tensor) -> Result<()> {
        let action = "hold rows on a device";
        for at in 0..keys.len() {
            let Some(key) = keys.get(at) else { continue };
            if self.rows.read().by_key.contains_key(&key) {
                continue;
            }
            let row = batch.f_get(i64::try_from(at).unwrap_or(i64::MAX)).map_err(torch(action))?;
            // A copy of its own: neither the caller's writes nor the rest of the batch are held with it.
            let kind = row.f_kind().map_err(torch(action))?;
            let own = row.f_detach().and_then(|row| row.f_to_device_(self.device, kind, false, true));
            let own = own.map_err(torch(action))?;
            let mut rows = self.rows.write();
            let len_bytes = rows.len_bytes + row_len_bytes(&key, &own);
            if len_bytes > self.most_bytes {
                return Ok(());
            }
            if rows.by_key.insert(key, Mutex::new(own)).is_none() {
                rows.len_bytes = len_bytes;
            }
        }
        Ok(())
    }

    /// Rows and bytes held.
    pub(crate) fn size(&self) -> (usize, usize) {
        let rows = self.rows.read();
        (rows.by_key.len(), rows.len_bytes)
    }
}
