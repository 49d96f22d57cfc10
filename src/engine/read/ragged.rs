//! Copies tensors whose first dimension differs from row to row into one buffer.

use crate::codec::Decoder;
use crate::dtype::Dtype;
use crate::engine::lookup::prefault::prefault_rows;
use crate::engine::lookup::query::Located;
use crate::engine::observe::Operation;
use crate::engine::options::Options;
use crate::engine::read::copy::damaged_rows;
use crate::engine::read::rows::{queries, with_rows};
use crate::engine::rows::decode::{StoredLeaf, no_such_leaf};
use crate::engine::rows::row::Row;
use crate::engine::state::State;
use crate::error::{Error, Result};
use crate::key::Keys;
use crate::schema::leaf_at;
use crate::tensor::Element;

/// A buffer that grows to what a batch needs.
pub(crate) trait Growing {
    /// Makes it `len_bytes` long.
    fn resize_to(&mut self, len_bytes: usize);

    /// Its bytes.
    fn as_bytes(&mut self) -> &mut [u8];
}

impl<T: Element> Growing for Vec<T> {
    fn resize_to(&mut self, len_bytes: usize) {
        // What is there already is not cleared: it is overwritten.
        self.resize(len_bytes / size_of::<T>(), T::zeroed());
    }

    fn as_bytes(&mut self) -> &mut [u8] {
        bytemuck::cast_slice_mut(self)
    }
}

/// What a ragged read copies: one tensor of each row, of `dtype` and shape `[?, …entry_shape]`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ragged<'a> {
    pub path: &'a str,
    pub dtype: Dtype,
    pub entry_shape: &'a [usize],
}

impl Ragged<'_> {
    /// Bytes of an entry.
    fn width(&self) -> Result<usize> {
        let Self { dtype, entry_shape, .. } = self;
        dtype.tensor_len_bytes(entry_shape).ok_or_else(|| {
            Error::invalid(format!(
                "a {dtype} entry cannot have shape {entry_shape:?}: its size overflows or fills no whole bytes"
            ))
        })
    }

    /// The tensor in a row, and its number of entries.
    fn tensor<'r>(&self, options: &Options, row: &'r Row<'_>) -> Result<(StoredLeaf<'r>, usize)> {
        let schema = row.schema();
        let leaf = leaf_at(&schema.tree, self.path).ok_or_else(|| no_such_leaf(schema, self.path))?;
        row.check_leaves(options.verify, &[leaf])?;
        let tensor = StoredLeaf::of(row, leaf)?;
        let dtype = tensor.read_dtype(options);
        match tensor.shape.split_first() {
            Some((entries, entry_shape)) if entry_shape == self.entry_shape && dtype == self.dtype => {
                let entries = *entries;
                tensor.backed_len_bytes(options, row)?;
                Ok((tensor, entries))
            }
            _ => {
                let dims = std::iter::once("?".to_owned()).chain(self.entry_shape.iter().map(usize::to_string));
                let dims = dims.collect::<Vec<_>>().join(", ");
                Err(Error::Mismatch {
                    expected: format!("a {} tensor of shape [{dims}] at {}", self.dtype, self.path),
                    found: format!("a {dtype} tensor of shape {:?}", tensor.shape),
                })
            }
        }
    }
}

/// Copies the tensors of `keys`, one after another, into `out`. `offsets` gets one number more than keys: the entry at
/// which each tensor begins, and the end. Missing and damaged rows have no entries.
pub(crate) fn get_ragged_into(
    state: &State,
    keys: Keys<'_>,
    ragged: Ragged<'_>,
    out: &mut dyn Growing,
    offsets: &mut Vec<usize>,
    found: &mut [bool],
) -> Result<usize> {
    let width = ragged.width()?;
    if found.len() != keys.len() {
        return Err(Error::invalid(format!(
            "{} keys were passed with a found mask of {}: pass one flag a key",
            keys.len(),
            found.len()
        )));
    }
    found.fill(false);
    offsets.clear();
    offsets.resize(keys.len() + 1, 0);
    let span = state.metrics().begin(Operation::GetBatch);
    span.record("keys", keys.len() as u64);
    let Some(queries) = queries(state, keys)? else {
        out.resize_to(0);
        state.metrics().read(&span, 0, keys.len(), 0);
        return Ok(0);
    };
    let copied = with_rows(state, &queries, |located| {
        let reads = |row: &Row<'_>, leaf| leaf_at(&row.schema().tree, ragged.path) == Some(leaf);
        prefault_rows(state, &queries, &located.rows, &reads)?;
        copy_rows(state.options(), located, keys, (ragged, width), out, offsets, found)
    })?;
    let (hits, damaged) = copied?;
    state.metrics().read(&span, hits, keys.len() - hits - damaged.len(), damaged.len());
    damaged_rows(damaged).map_or(Ok(hits), Err)
}

/// Returns how many rows were copied, and the errors of those that are damaged.
fn copy_rows(
    options: &Options,
    located: Located<'_>,
    keys: Keys<'_>,
    (ragged, width): (Ragged<'_>, usize),
    out: &mut dyn Growing,
    offsets: &mut [usize],
    found: &mut [bool],
) -> Result<(usize, Vec<Error>)> {
    let Located { rows, errors: mut damaged } = located;
    if let Some(at) = damaged.iter().position(|(_, error)| !error.is_corrupt()) {
        let (at, error) = damaged.swap_remove(at);
        return Err(keys.item_error(at, error));
    }
    let mut sort_out = |at: usize, error: Error| match error.is_corrupt() {
        true => {
            damaged.push((at, error));
            Ok(())
        }
        false => Err(keys.item_error(at, error)),
    };
    // The size of the buffer is known when all shapes are.
    let mut tensors = Vec::with_capacity(rows.len());
    let mut len_bytes = 0_usize;
    for (at, row) in rows.iter().enumerate() {
        match row.as_ref().map(|row| ragged.tensor(options, row).map(|found| (row, found))).transpose() {
            Ok(tensor) => {
                let entries = tensor.as_ref().map_or(0, |(_, (_, entries))| *entries);
                let end = entries.checked_mul(width).and_then(|len| len.checked_add(len_bytes));
                len_bytes = end.ok_or_else(|| Error::invalid("the size of the batch overflows: read fewer keys"))?;
                tensors.push(tensor);
            }
            Err(error) => {
                sort_out(at, error)?;
                tensors.push(None);
            }
        }
    }
    out.resize_to(len_bytes);
    let (mut hits, mut end, mut decoder) = (0, 0, Decoder::new());
    for (at, ((tensor, flag), offset)) in tensors.iter().zip(found).zip(offsets.iter_mut().skip(1)).enumerate() {
        if let Some((row, (tensor, entries))) = tensor {
            let len = entries * width;
            let place = out.as_bytes().get_mut(end * width..end * width + len);
            let place = place.ok_or_else(|| Error::internal("a tensor beyond the end of the buffer"))?;
            match tensor.copy(options, row, &mut decoder, 0..len, place) {
                Ok(()) => {
                    (*flag, hits, end) = (true, hits + 1, end + entries);
                }
                Err(error) => sort_out(at, error)?,
            }
        }
        *offset = end;
    }
    out.resize_to(end * width);
    damaged.sort_by_key(|(at, _)| *at);
    Ok((hits, damaged.into_iter().map(|(at, error)| keys.item_error(at, error)).collect()))
}
