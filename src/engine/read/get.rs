//! From rows to values.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;

use crate::codec::{Codec, Decoder};
use crate::dtype::Dtype;
use crate::engine::lookup::find::{Asked, Located};
use crate::engine::options::HotFill;
use crate::engine::rows::row::{Holder, PendingBatch, Row};
use crate::engine::state::{Core, Counters};
use crate::error::{Error, Result};
use crate::key::{KeyRef, Keys};
use crate::schema::{Dims, LeafKind};
use crate::segment::build::cast_tensor;
use crate::segment::columns::{LeafBytes, offset_at};
use crate::tensor::Tensor;
use crate::value::Value;

/// One answer of [`crate::Reader::get_batch`]: damage of one row does not hide the others.
pub type Lookup = Result<Option<Value>>;

impl Row<'_> {
    pub(crate) fn corrupt(&self, what: &str) -> Error {
        match &self.holder {
            Holder::Batch(batch, _) => batch.corrupt(self.row, what),
            Holder::Viewed(head) => head.batch.corrupt(self.row, what),
            Holder::Pending(..) => Error::invalid(format!("a row that waits to be written: {what}")),
        }
    }
}

/// The shape of a tensor leaf in one row, and the bytes it takes decoded: bounded before anything is allocated.
fn shape_of(row: &Row<'_>, dtype: Dtype, shape: &Dims, dims: &[u8], most_bytes: usize) -> Result<(Vec<usize>, usize)> {
    let shape = match shape {
        Dims::Fixed(shape) => shape.clone(),
        Dims::Variable { rank } => (0..*rank)
            .map(|dim| offset_at(dims, dim))
            .collect::<Option<Vec<_>>>()
            .ok_or_else(|| row.corrupt("a dimension is negative or missing"))?,
    };
    let len = dtype.tensor_len_bytes(&shape).ok_or_else(|| row.corrupt("the size of a tensor overflows"))?;
    if len > most_bytes {
        return Err(Error::TooLarge {
            what: "a decoded value in bytes".into(),
            found: len as u64,
            limit: most_bytes as u64,
        });
    }
    Ok((shape, len))
}

fn tensor_of(core: &Core, row: &Row<'_>, kind: &LeafKind, leaf: LeafBytes<'_>, decoder: &mut Decoder) -> Result<Value> {
    let (LeafKind::Tensor { dtype, shape, source_dtype, codec }, LeafBytes::Bytes { column, start, end, dims }) =
        (kind, leaf)
    else {
        return Err(row.corrupt("a tensor was expected"));
    };
    let (shape, len) = shape_of(row, *dtype, shape, dims, core.options.max_value_bytes)?;
    let data = if *codec == Codec::None {
        column.slice(start..end)
    } else {
        let failed = |what: String| row.corrupt(&format!("unpacking failed: {what}"));
        Decoder::check_len(leaf.as_slice(), len).map_err(failed)?;
        let mut out = vec![0; len];
        decoder.decode(leaf.as_slice(), dtype.unit_len_bytes(), len, &mut out).map_err(failed)?;
        Bytes::from(out)
    };
    if data.len() != len {
        return Err(row.corrupt(&format!("expected {len} bytes, found {}", data.len())));
    }
    match source_dtype.filter(|_| core.options.restore_dtype) {
        None => Tensor::new(*dtype, &shape, data).map(Value::Tensor),
        Some(source) => {
            let mut restored = Vec::new();
            cast_tensor(*dtype, source, &data, &mut restored)?;
            Tensor::new(source, &shape, restored).map(Value::Tensor)
        }
    }
}

/// The value in `row`, whose checksum was compared. Unpacked tensors share the segment's memory.
pub(crate) fn value_of(core: &Core, row: &Row<'_>, decoder: &mut Decoder) -> Result<Value> {
    let columns = row.columns();
    let schema = Arc::clone(&columns.schema);
    schema.assemble(&mut |number| {
        let (Some(kind), Some(leaf)) = (schema.leaves.get(number), columns.leaf(number, row.row)) else {
            return Err(row.corrupt("a leaf lies outside of its column"));
        };
        let bytes = leaf.as_slice();
        let eight = || bytes.try_into().map_err(|_| row.corrupt("a scalar is not eight bytes long"));
        Ok(match (kind, leaf) {
            (LeafKind::Tensor { .. }, _) => return tensor_of(core, row, kind, leaf, decoder),
            (LeafKind::Bool, LeafBytes::Bit(flag)) => Value::Bool(flag),
            (LeafKind::Int, _) => Value::Int(i64::from_le_bytes(eight()?)),
            (LeafKind::Float, _) => Value::Float(f64::from_le_bytes(eight()?)),
            (LeafKind::Str, _) => match std::str::from_utf8(bytes) {
                Ok(text) => Value::Str(text.to_owned()),
                Err(_) => return Err(row.corrupt("a string is not UTF-8")),
            },
            (LeafKind::Bytes, LeafBytes::Bytes { column, start, end, .. }) => Value::Bytes(column.slice(start..end)),
            _ => return Err(row.corrupt("a leaf is of another kind than its column")),
        })
    })
}

/// A copy that shares no memory with a segment or a waiting batch.
fn detached(value: &Value) -> Value {
    let all = |items: &[Value]| items.iter().map(detached).collect();
    match value {
        Value::Tensor(tensor) => Value::Tensor(tensor.view().to_tensor()),
        Value::Bytes(bytes) => Value::Bytes(Bytes::copy_from_slice(bytes)),
        Value::Map(items) => Value::Map(items.iter().map(|(name, item)| (name.clone(), detached(item))).collect()),
        Value::List(items) => Value::List(all(items)),
        Value::Tuple(items) => Value::Tuple(all(items)),
        scalar => scalar.clone(),
    }
}

/// Puts rows that were just admitted into the hot tier.
pub(crate) fn fill_hot(core: &Core, pending: &Arc<PendingBatch>) {
    let Some(hot) = &core.hot else { return };
    let mut decoder = Decoder::new();
    for (row, hash) in pending.hashes.iter().enumerate() {
        let row = Row { holder: Holder::Pending(Arc::clone(pending), 0), row };
        if let (Some(key), Ok(value)) = (row.key(), value_of(core, &row, &mut decoder)) {
            hot.insert(*hash, key, detached(&value));
        }
    }
}

impl Core {
    /// Calls `use_rows` with the newest rows of `asked`; looks once for what other writers committed if some are missing.
    /// Deleted keys have no row. Rows are borrowed from the view, which is why they are passed and not returned.
    pub(crate) fn with_rows<T>(&self, asked: &[Asked<'_>], use_rows: impl FnOnce(Located<'_>) -> T) -> Result<T> {
        self.bring_in_index(asked)?;
        let delta = self.newest_in_delta(asked);
        let view = self.view.load();
        let mut located = self.locate_in_view(&view, asked, delta);
        // What was deleted may have been put again by another writer.
        located.forget_deleted();
        if located.rows.iter().all(Option::is_some) || !self.refresh_if_due()? {
            return Ok(use_rows(located));
        }
        let missing = located.missing();
        let again: Vec<Asked<'_>> = missing.iter().filter_map(|at| asked.get(*at).copied()).collect();
        let delta = self.newest_in_delta(&again);
        let newer_view = self.view.load();
        located.add(&missing, self.locate_in_view(&newer_view, &again, delta));
        located.forget_deleted();
        Ok(use_rows(located))
    }

    /// The keys with their hashes, or `None` if the store holds nothing yet.
    ///
    /// # Errors
    /// [`Error::KeyKind`] if they are of another kind than the store's.
    pub(crate) fn ask<'k>(&self, keys: Keys<'k>) -> Result<Option<Vec<Asked<'k>>>> {
        self.check_fork()?;
        let Some(kind) = keys.check()? else { return Ok(None) };
        if self.key_kind().is_none() {
            self.refresh_if_due()?;
        }
        let Some(expected) = self.key_kind() else { return Ok(None) };
        expected.expect(kind)?;
        let asked = |key| Asked { key, hash: self.hasher.hash_key(key) };
        Ok(Some(match keys.integers() {
            // Without a look at the kind of each.
            Some(integers) => integers.iter().map(|integer| asked(KeyRef::U64(*integer))).collect(),
            None => keys.iter().map(asked).collect(),
        }))
    }

    pub(crate) fn count(&self, found: usize, missing: usize, damaged: usize) {
        Counters::add(&self.counters.hits, found);
        Counters::add(&self.counters.misses, missing);
        Counters::add(&self.counters.damaged, damaged);
    }

    /// Values of `keys`, each with its own fate.
    pub(crate) fn get_batch(&self, keys: Keys<'_>) -> Result<Vec<Lookup>> {
        let Some(asked) = self.ask(keys)? else {
            self.count(0, keys.len(), 0);
            return Ok((0..keys.len()).map(|_| Ok(None)).collect());
        };
        let epoch = self.epoch.load(Ordering::SeqCst);
        let mut values: Vec<Lookup> = match &self.hot {
            None => (0..asked.len()).map(|_| Ok(None)).collect(),
            Some(hot) => {
                asked.iter().map(|asked| Ok(asked.key.with_bytes(|bytes| hot.get(asked.hash, bytes)))).collect()
            }
        };
        let cold: Vec<usize> =
            values.iter().enumerate().filter(|(_, value)| matches!(value, Ok(None))).map(|(at, _)| at).collect();
        if !cold.is_empty() {
            let wanted: Vec<Asked<'_>> = cold.iter().filter_map(|at| asked.get(*at).copied()).collect();
            self.with_rows(&wanted, |located| {
                self.bring_in_rows(&wanted, &located.rows)?;
                let mut decoder = Decoder::new();
                for (at, row) in cold.iter().zip(&located.rows) {
                    if let (Some(row), Some(slot)) = (row, values.get_mut(*at)) {
                        *slot = self.read_row(row, &mut decoder, epoch).map(Some);
                    }
                }
                for (at, error) in located.errors {
                    if let Some(slot) = cold.get(at).and_then(|at| values.get_mut(*at)) {
                        *slot = Err(error);
                    }
                }
                Ok::<(), Error>(())
            })??;
        }
        let found = values.iter().filter(|value| matches!(value, Ok(Some(_)))).count();
        let damaged = values.iter().filter(|value| value.is_err()).count();
        self.count(found, values.len() - found - damaged, damaged);
        Ok(values)
    }

    fn read_row(&self, row: &Row<'_>, decoder: &mut Decoder, epoch: u64) -> Result<Value> {
        row.check(self.options.verify)?;
        let value = value_of(self, row, decoder)?;
        self.keep_hot(row, &value, epoch);
        Ok(value)
    }

    /// Which of `keys` are there.
    pub(crate) fn contains_batch(&self, keys: Keys<'_>) -> Result<Vec<bool>> {
        let Some(asked) = self.ask(keys)? else { return Ok(vec![false; keys.len()]) };
        self.with_rows(&asked, |located| match located.errors.into_iter().next() {
            Some((_, error)) => Err(error),
            None => Ok(located.rows.iter().map(Option::is_some).collect()),
        })?
    }

    /// Keeps what was read in the hot tier, unless a put may have superseded it since `epoch`. A put counts the epoch up
    /// before it removes the old value: either that is seen here, or the value is there to be removed.
    fn keep_hot(&self, row: &Row<'_>, value: &Value, epoch: u64) {
        let (Some(hot), Some(key)) = (&self.hot, row.key()) else { return };
        if self.options.hot_fill == HotFill::OnWrite || self.epoch.load(Ordering::SeqCst) != epoch {
            return;
        }
        hot.insert_if(self.hasher.hash(key), key, detached(value), || self.epoch.load(Ordering::SeqCst) == epoch);
    }
}
