//! From rows to values, and to the caller's buffer.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;

use super::core::{Core, Counters};
use super::gather::{Part, in_parts};
use super::lookup::{Asked, Located};
use super::options::HotFill;
use super::rows::{Holder, PendingBatch, Row};
use crate::codec::{Codec, Decoder};
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::key::Keys;
use crate::schema::{Dims, LeafKind};
use crate::segment::build::cast_tensor;
use crate::segment::columns::{LeafBytes, LeafColumn, offset_at};
use crate::tensor::Tensor;
use crate::value::Value;

/// One answer of [`crate::Reader::get_batch`]: damage of one row does not hide the others.
pub type Lookup = Result<Option<Value>>;

impl Row<'_> {
    fn corrupt(&self, what: &str) -> Error {
        match &self.holder {
            Holder::Batch(batch, _) => batch.corrupt(self.row, what),
            Holder::Viewed(batch, _) => batch.corrupt(self.row, what),
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
        let mut out = vec![0; len];
        decoder
            .decode(leaf.as_slice(), dtype.unit_len_bytes(), len, &mut out)
            .map_err(|what| row.corrupt(&format!("unpacking failed: {what}")))?;
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
    fn with_rows<T>(&self, asked: &[Asked<'_>], use_rows: impl FnOnce(Located<'_>) -> T) -> Result<T> {
        self.bring_in_index(asked)?;
        let delta = self.newest_in_delta(asked);
        let view = self.view.load();
        let mut located = self.locate_in_view(&view, asked, delta);
        if located.rows.iter().all(Option::is_some) || !self.refresh_if_due()? {
            located.forget_deleted();
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
    fn ask<'k>(&self, keys: Keys<'k>) -> Result<Option<Vec<Asked<'k>>>> {
        let Some(kind) = keys.check()? else { return Ok(None) };
        if self.key_kind().is_none() {
            self.refresh_if_due()?;
        }
        let Some(expected) = self.key_kind() else { return Ok(None) };
        expected.expect(kind)?;
        Ok(Some(keys.iter().map(|key| Asked { key, hash: self.hasher.hash_key(key) }).collect()))
    }

    fn count(&self, found: usize, missing: usize, damaged: usize) {
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
                Ok(())
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

    /// Keeps what was read in the hot tier, unless a put may have superseded it since `epoch`. A put counts the epoch
    /// up before it removes the old value, so one of the two removes it.
    fn keep_hot(&self, row: &Row<'_>, value: &Value, epoch: u64) {
        let (Some(hot), Some(key)) = (&self.hot, row.key()) else { return };
        if self.options.hot_fill == HotFill::OnWrite || self.epoch.load(Ordering::SeqCst) != epoch {
            return;
        }
        let hash = self.hasher.hash(key);
        hot.insert(hash, key, detached(value));
        if self.epoch.load(Ordering::SeqCst) != epoch {
            hot.remove(hash, key);
        }
    }

    /// Copies the rows of `keys` into `out`, one after another; rows that are missing leave their place as it was.
    pub(crate) fn get_batch_into(&self, keys: Keys<'_>, target: &mut Target<'_>, found: &mut [bool]) -> Result<usize> {
        let width = target.check(keys.len(), found.len())?;
        found.fill(false);
        let Some(asked) = self.ask(keys)? else {
            self.count(0, keys.len(), 0);
            return Ok(0);
        };
        if self.hot.is_some() {
            return self.get_batch_into_hot(keys, target, width, found);
        }
        let (dtype, shape) = (target.dtype, target.shape);
        let whole = Part { first: 0, asked: &asked, out: &mut *target.out, found };
        // What lies on disk is asked for with one batch as a whole: the disk is slower than any copy.
        let threads = if self.cold.is_suspected() { 1 } else { self.options.read_threads };
        let copy = |part: Part<'_, '_>| {
            self.with_rows(part.asked, |located| {
                self.bring_in_rows(part.asked, &located.rows)?;
                self.copy_rows(located, part, dtype, shape, width)
            })?
        };
        let (mut hits, mut damaged) = (0, Vec::new());
        for copied in in_parts(threads, width, whole, copy) {
            let copied = copied?;
            hits += copied.hits;
            damaged.extend(copied.damaged);
        }
        self.count(hits, asked.len() - hits - damaged.len(), damaged.len());
        if damaged.is_empty() { Ok(hits) } else { Err(Error::DamagedRows { rows: damaged }) }
    }

    /// Copies what was located into its part of the buffer, asking for rows ahead of the copy.
    fn copy_rows(
        &self,
        located: Located<'_>,
        part: Part<'_, '_>,
        dtype: Dtype,
        shape: &[usize],
        width: usize,
    ) -> Result<Copied> {
        let Located { rows, errors: mut damaged } = located;
        if let Some(at) = damaged.iter().position(|(_, error)| !error.is_corrupt()) {
            return Err(damaged.swap_remove(at).1);
        }
        let mut copier = Copier { core: self, decoder: Decoder::new(), checked: None };
        let mut hits = 0;
        let places = places(part.out, width, rows.len());
        let ask = |position: usize| {
            if let Some(Some(next)) = rows.get(position) {
                next.prefetch();
            }
        };
        let ahead = rows_ahead(width);
        (0..ahead).for_each(ask);
        for (position, ((place, flag), row)) in places.zip(part.found).zip(&rows).enumerate() {
            ask(position + ahead);
            let Some(row) = row else { continue };
            match copier.copy(row, dtype, shape, place, part.first + position) {
                Ok(()) => {
                    *flag = true;
                    hits += 1;
                }
                Err(error) if error.is_corrupt() => damaged.push((position, error)),
                Err(error) => return Err(error),
            }
        }
        damaged.sort_by_key(|(position, _)| *position);
        damaged.iter_mut().for_each(|(position, _)| *position += part.first);
        Ok(Copied { hits, damaged })
    }

    fn get_batch_into_hot(
        &self,
        keys: Keys<'_>,
        target: &mut Target<'_>,
        width: usize,
        found: &mut [bool],
    ) -> Result<usize> {
        let values = self.get_batch(keys)?;
        let mut damaged = Vec::new();
        let mut hits = 0;
        let (dtype, shape) = (target.dtype, target.shape);
        let places = places(target.out, width, keys.len());
        for (position, ((value, place), flag)) in values.into_iter().zip(places).zip(found).enumerate() {
            match value {
                Ok(Some(Value::Tensor(tensor))) if tensor.dtype() == dtype && tensor.shape() == shape => {
                    place.copy_from_slice(tensor.data());
                    *flag = true;
                    hits += 1;
                }
                Ok(Some(other)) => return Err(mismatch(position, dtype, shape, describe(&other))),
                Ok(None) => {}
                Err(error) if error.is_corrupt() => damaged.push((position, error)),
                Err(error) => return Err(error),
            }
        }
        if damaged.is_empty() { Ok(hits) } else { Err(Error::DamagedRows { rows: damaged }) }
    }
}

/// How many rows ahead of the copy are asked for: copying a small row takes less time than waiting for the next.
fn rows_ahead(width: usize) -> usize {
    const AHEAD_BYTES: usize = 2048;
    (AHEAD_BYTES / width.max(1)).clamp(1, 16)
}

fn describe(value: &Value) -> String {
    match value {
        Value::Tensor(tensor) => format!("a {} tensor of shape {:?}", tensor.dtype(), tensor.shape()),
        _ => "no single tensor".into(),
    }
}

fn mismatch(position: usize, dtype: Dtype, shape: &[usize], found: String) -> Error {
    Error::Mismatch { position, expected: format!("a {dtype} tensor of shape {shape:?}"), found }
}

/// The caller's buffer.
pub(crate) struct Target<'a> {
    pub dtype: Dtype,
    pub shape: &'a [usize],
    pub out: &'a mut [u8],
}

impl Target<'_> {
    /// Checks that the buffer and the mask fit `keys`; returns the bytes of a row.
    fn check(&self, keys: usize, mask: usize) -> Result<usize> {
        let (dtype, shape) = (self.dtype, self.shape);
        let width = dtype.tensor_len_bytes(shape).ok_or_else(|| {
            Error::invalid(format!(
                "a {dtype} row cannot have shape {shape:?}: its size overflows or fills no whole bytes"
            ))
        })?;
        if mask != keys {
            return Err(Error::invalid(format!(
                "{keys} keys were passed with a found mask of {mask}: pass one flag a key"
            )));
        }
        if width.checked_mul(keys) != Some(self.out.len()) {
            return Err(Error::invalid(format!(
                "{keys} {dtype} rows of shape {shape:?} take {width} bytes each, but the buffer has {}: pass one \
                 contiguous [keys, …shape] buffer",
                self.out.len()
            )));
        }
        Ok(width)
    }
}

/// The place of each row in `out`. Rows of no bytes have places too.
fn places(out: &mut [u8], width: usize, rows: usize) -> impl Iterator<Item = &mut [u8]> {
    let mut rest = out;
    (0..rows).map(move |_| {
        let (place, after) = std::mem::take(&mut rest).split_at_mut_checked(width).unwrap_or_default();
        rest = after;
        place
    })
}

/// Rows of a part that were copied, and the positions in the batch of those that are damaged.
struct Copied {
    hits: usize,
    damaged: Vec<(usize, Error)>,
}

/// Copies rows, remembering the structure that was found to fit.
struct Copier<'a> {
    core: &'a Core,
    decoder: Decoder,
    checked: Option<*const crate::schema::RowSchema>,
}

impl Copier<'_> {
    fn copy(&mut self, row: &Row<'_>, dtype: Dtype, shape: &[usize], place: &mut [u8], position: usize) -> Result<()> {
        row.check(self.core.options.verify)?;
        let columns = row.columns();
        // The common case: unpacked rows of one shape, as they are.
        if let [LeafColumn::Fixed { width, data }] = columns.leaves.as_slice()
            && *width == place.len()
            && self.fits(&columns.schema, dtype, shape)
        {
            let start = row.row * width;
            return match data.get(start..start + width) {
                Some(bytes) => {
                    place.copy_from_slice(bytes);
                    Ok(())
                }
                None => Err(row.corrupt("the row lies outside of its column")),
            };
        }
        match value_of(self.core, row, &mut self.decoder)? {
            Value::Tensor(tensor) if tensor.dtype() == dtype && tensor.shape() == shape => {
                place.copy_from_slice(tensor.data());
                Ok(())
            }
            other => Err(mismatch(position, dtype, shape, describe(&other))),
        }
    }

    fn fits(&mut self, schema: &Arc<crate::schema::RowSchema>, dtype: Dtype, shape: &[usize]) -> bool {
        let address = Arc::as_ptr(schema);
        if self.checked == Some(address) {
            return true;
        }
        let restores = self.core.options.restore_dtype;
        let fits = schema.single_tensor().is_some_and(|(stored, dims, leaf)| {
            let LeafKind::Tensor { source_dtype, .. } = leaf else { return false };
            stored == dtype && dims == shape && (source_dtype.is_none() || !restores)
        });
        if fits {
            self.checked = Some(address);
        }
        fits
    }
}
