//! Copies rows into the caller's buffer.

use std::sync::Arc;

use crate::codec::Decoder;
use crate::dtype::Dtype;
use crate::engine::lookup::prefault::prefault_rows;
use crate::engine::lookup::query::Located;
use crate::engine::observe::{Counter, Operation};
use crate::engine::options::Options;
use crate::engine::read::get::get_batch;
use crate::engine::read::parallel::{Part, in_parts};
use crate::engine::read::rows::{queries, with_rows};
use crate::engine::rows::decode::value_of;
use crate::engine::rows::row::Row;
use crate::engine::state::State;
use crate::error::{Error, ItemError, Result};
use crate::key::Keys;
use crate::prefetch::{lines_at_start, prefetch_lines};
use crate::schema::{LeafKind, RowSchema};
use crate::value::Value;

/// Copies the rows of `keys` into `out`, one after another; the places of missing rows are left unchanged.
pub(crate) fn get_batch_into(
    state: &State,
    keys: Keys<'_>,
    target: &mut Target<'_>,
    found: &mut [bool],
) -> Result<usize> {
    let width = target.check(keys.len(), found.len())?;
    found.fill(false);
    if state.value_cache().is_on() {
        return get_batch_into_cached(state, keys, target, width, found);
    }
    let span = state.metrics().begin(Operation::GetBatch);
    span.record("keys", keys.len() as u64);
    let Some(queries) = queries(state, keys)? else {
        state.metrics().read(&span, 0, keys.len(), 0);
        return Ok(0);
    };
    let (dtype, shape) = (target.dtype, target.shape);
    let whole = Part { first: 0, queries: &queries, out: &mut *target.out, found };
    // Pages on disk are prefaulted for the whole batch at once: the disk is slower than any copy.
    let threads = if state.residency().is_suspected() { 1 } else { state.options().read_threads };
    let copy = |part: Part<'_, '_>| {
        with_rows(state, part.queries, |located| {
            prefault_rows(state, part.queries, &located.rows)?;
            copy_rows(state, located, part, keys, (dtype, shape, width))
        })?
    };
    let (mut hits, mut damaged) = (0, Vec::new());
    for copied in in_parts(threads, width, whole, copy) {
        let copied = copied?;
        hits += copied.hits;
        damaged.extend(copied.damaged);
    }
    state.metrics().read(&span, hits, queries.len() - hits - damaged.len(), damaged.len());
    state.metrics().instruments().add(Counter::BytesCopied, (hits * width) as u64);
    span.record("bytes", (hits * width) as u64);
    damaged_rows(damaged).map_or(Ok(hits), Err)
}

/// Copies located rows into their part of the buffer, prefetching ahead of the copy.
fn copy_rows(
    state: &State,
    located: Located<'_>,
    part: Part<'_, '_>,
    keys: Keys<'_>,
    (dtype, shape, width): (Dtype, &[usize], usize),
) -> Result<Copied> {
    let Located { rows, errors: mut damaged } = located;
    let at_fault = |(position, error)| keys.item_error(part.first + position, error);
    if let Some(at) = damaged.iter().position(|(_, error)| !error.is_corrupt()) {
        return Err(at_fault(damaged.swap_remove(at)));
    }
    let mut copier = Copier { options: state.options(), decoder: Decoder::new(), fitting: None, dtype, shape };
    // First find the bytes of every row, while the data needed for that are in the processor's caches. Then only copy,
    // prefetching rows while others are copied.
    let plain: Vec<Option<&[u8]>> = rows.iter().map(|row| copier.plain(row.as_ref()?, width)).collect();
    let mut hits = copy_plain(&plain, width, &mut *part.out, &mut *part.found);
    let not_plain = rows.iter().zip(&plain).enumerate().filter(|(_, (_, plain))| plain.is_none());
    let others: Vec<(usize, &Row<'_>)> =
        not_plain.take(rows.len() - hits).filter_map(|(position, (row, _))| Some((position, row.as_ref()?))).collect();
    let mut next = others.iter().skip(rows_ahead(width));
    for (position, row) in &others {
        next.next().into_iter().for_each(|(_, row)| row.prefetch());
        let start = position * width;
        let (Some(place), Some(flag)) = (part.out.get_mut(start..start + width), part.found.get_mut(*position)) else {
            continue;
        };
        match copier.copy(row, place) {
            Ok(()) => {
                *flag = true;
                hits += 1;
            }
            Err(error) if error.is_corrupt() => damaged.push((*position, error)),
            Err(error) => return Err(at_fault((*position, error))),
        }
    }
    damaged.sort_by_key(|(position, _)| *position);
    Ok(Copied { hits, damaged: damaged.into_iter().map(at_fault).collect() })
}

fn get_batch_into_cached(
    state: &State,
    keys: Keys<'_>,
    target: &mut Target<'_>,
    width: usize,
    found: &mut [bool],
) -> Result<usize> {
    let values = get_batch(state, keys)?;
    let mut damaged = Vec::new();
    let mut hits = 0;
    let (dtype, shape) = (target.dtype, target.shape);
    let places = places(target.out, width, keys.len());
    for (position, ((value, place), flag)) in values.into_iter().zip(places).zip(found).enumerate() {
        match &value {
            Ok(Some(Value::Tensor(tensor))) if tensor.dtype() == dtype && tensor.shape() == shape => {
                place.copy_from_slice(tensor.data());
                *flag = true;
                hits += 1;
            }
            Ok(Some(other)) => return Err(keys.item_error(position, mismatch(dtype, shape, other))),
            Ok(None) => {}
            Err(error) if error.is_corrupt() => damaged.push(error.clone()),
            Err(error) => return Err(error.clone()),
        }
    }
    damaged_rows(damaged).map_or(Ok(hits), Err)
}

/// The error for these rows, each an [`Error::Item`]; `None` if there are none.
fn damaged_rows(rows: Vec<Error>) -> Option<Error> {
    let items = |error| if let Error::Item(item) = error { Some(*item) } else { None };
    let rows: Vec<ItemError> = rows.into_iter().filter_map(items).collect();
    (!rows.is_empty()).then_some(Error::DamagedRows { rows })
}

/// Copies the rows whose bytes are known, `width` bytes each, prefetching rows while others are copied. Returns how
/// many.
fn copy_plain(rows: &[Option<&[u8]>], width: usize, out: &mut [u8], found: &mut [bool]) -> usize {
    let (ahead, lines) = (rows_ahead(width), lines_at_start(width));
    let prefetch = |row: &Option<&[u8]>| row.iter().for_each(|bytes| prefetch_lines(bytes, lines));
    rows.iter().take(ahead).for_each(prefetch);
    let mut next = rows.get(ahead..).unwrap_or_default().iter();
    let mut copied = 0;
    for ((row, flag), place) in rows.iter().zip(found).zip(out.chunks_exact_mut(width.max(1))) {
        next.next().into_iter().for_each(prefetch);
        if let Some(bytes) = row {
            place.copy_from_slice(bytes);
            *flag = true;
            copied += 1;
        }
    }
    copied
}

/// How many rows ahead of the copy are prefetched: copying a small row takes less time than waiting for the next.
fn rows_ahead(width: usize) -> usize {
    const AHEAD_BYTES: usize = 2048;
    (AHEAD_BYTES / width.max(1)).clamp(1, 16)
}

fn mismatch(dtype: Dtype, shape: &[usize], found: &Value) -> Error {
    let tensor = |dtype: Dtype, shape: &[usize]| format!("a {dtype} tensor of shape {shape:?}");
    let found = found.as_tensor().map_or("no single tensor".into(), |found| tensor(found.dtype(), found.shape()));
    Error::Mismatch { expected: tensor(dtype, shape), found }
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

/// Rows of a part that were copied, and the errors of those that are damaged.
struct Copied {
    hits: usize,
    damaged: Vec<Error>,
}

/// Copies rows of one dtype and shape; remembers the last structure that fits.
struct Copier<'a> {
    options: &'a Options,
    decoder: Decoder,
    fitting: Option<*const RowSchema>,
    dtype: Dtype,
    shape: &'a [usize],
}

impl Copier<'_> {
    /// The stored bytes of a row, if it is one unpacked tensor of the requested dtype and shape.
    #[inline(always)]
    fn stored<'r>(&mut self, row: &'r Row<'_>, width: usize) -> Option<&'r [u8]> {
        let (schema, bytes) = row.fixed(width)?;
        self.fits(schema).then_some(bytes)
    }

    /// As `stored`, for a non-empty row that needs no more checks.
    #[inline(always)]
    fn plain<'r>(&mut self, row: &'r Row<'_>, width: usize) -> Option<&'r [u8]> {
        self.stored(row, width).filter(|bytes| !bytes.is_empty() && row.is_checked(self.options.verify))
    }

    /// Checks and copies any row.
    fn copy(&mut self, row: &Row<'_>, place: &mut [u8]) -> Result<()> {
        row.check(self.options.verify)?;
        if let Some(bytes) = self.stored(row, place.len()) {
            place.copy_from_slice(bytes);
            return Ok(());
        }
        match &value_of(self.options, row, &mut self.decoder)? {
            Value::Tensor(tensor) if tensor.dtype() == self.dtype && tensor.shape() == self.shape => {
                place.copy_from_slice(tensor.data());
                Ok(())
            }
            other => Err(mismatch(self.dtype, self.shape, other)),
        }
    }

    fn fits(&mut self, schema: &Arc<RowSchema>) -> bool {
        let address = Arc::as_ptr(schema);
        if self.fitting == Some(address) {
            return true;
        }
        let restores = self.options.restore_dtype;
        let fits = schema.single_tensor().is_some_and(|(stored, dims, leaf)| {
            let LeafKind::Tensor { source_dtype, .. } = leaf else { return false };
            stored == self.dtype && dims == self.shape && (source_dtype.is_none() || !restores)
        });
        if fits {
            self.fitting = Some(address);
        }
        fits
    }
}
