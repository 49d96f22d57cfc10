//! Assembles the rows of one batch from the store, the computation and other threads.

use tensorcask::{Dtype, Error as StoreError, Value};

use crate::counters::{Counters, add};
use crate::error::{Error, Result, invalid};
use crate::framework::Framework;
use crate::keys::key::BatchKeys;
use crate::store::backend::{Layout, Space};
use crate::values::output::Output;
use crate::values::tree::{Ragged, join, split};

/// The rows of a batch, some of which may be missing.
#[derive(Debug)]
pub(crate) enum Rows<F: Framework> {
    /// Rows of a single tensor of one dtype and shape, stored in the batch buffer: the common case. `width` is the
    /// bytes of a row.
    Stacked { batch: F::Buffer, dtype: Dtype, shape: Vec<usize>, width: usize, found: Vec<bool> },
    /// Rows of any structure.
    Values(Vec<Option<Value>>),
}

fn no_row(at: usize) -> Error {
    invalid(format!("the batch has no row {at}"))
}

impl<F: Framework> Rows<F> {
    /// `len` missing rows.
    pub(crate) fn none(len: usize) -> Self {
        Self::Values(vec![None; len])
    }

    /// Reads the rows of `keys` from the store. If `heals`, damaged rows are counted and treated as missing.
    pub(crate) fn read(space: &Space, keys: &BatchKeys, counters: &Counters, heals: bool) -> Result<Self> {
        let layout = space.layout.read().clone();
        if let Layout::Fixed(dtype, shape) = &layout
            && let Some(rows) = Self::read_stacked(space, keys, (*dtype, shape), counters, heals)?
        {
            return Ok(rows);
        }
        let values = read_values(space, keys, counters, heals)?;
        learn::<F>(space, &layout, &values);
        Ok(Self::Values(values))
    }

    /// Reads rows into the batch buffer; `None` if they do not all have this layout.
    fn read_stacked(
        space: &Space,
        keys: &BatchKeys,
        (dtype, shape): (Dtype, &Vec<usize>),
        counters: &Counters,
        heals: bool,
    ) -> Result<Option<Self>> {
        let Some(reader) = space.reader()?.filter(|_| F::holds(dtype)) else { return Ok(None) };
        let Some(width) = dtype.tensor_len_bytes(shape) else { return Ok(None) };
        let mut batch = F::buffer(dtype, &[&[keys.len()], shape.as_slice()].concat())?;
        let mut found = vec![false; keys.len()];
        let place = F::buffer_bytes_mut(&mut batch)?;
        match keys.with(|keys| reader.get_batch_into_bytes(keys, dtype, shape, place, &mut found)) {
            Ok(_) => {}
            Err(error) if matches!(error.cause(), StoreError::Mismatch { .. }) => return Ok(None),
            Err(error @ StoreError::DamagedRows { .. }) if heals => heal(&error, counters),
            Err(error) => return Err(error.into()),
        }
        Ok(Some(Self::Stacked { batch, dtype, shape: shape.clone(), width, found }))
    }

    /// Whether no row is missing.
    pub(crate) fn is_whole(&self) -> bool {
        match self {
            Self::Stacked { found, .. } => found.iter().all(|found| *found),
            Self::Values(values) => values.iter().all(Option::is_some),
        }
    }

    /// The positions of missing rows.
    pub(crate) fn missing(&self) -> Vec<usize> {
        match self {
            Self::Stacked { found, .. } => positions(found.iter().map(|found| !found)),
            Self::Values(values) => positions(values.iter().map(Option::is_none)),
        }
    }

    /// Stores rows at the positions `at`.
    pub(crate) fn take(&mut self, at: &[usize], values: impl IntoIterator<Item = Option<Value>>) -> Result<()> {
        at.iter()
            .zip(values)
            .filter_map(|(&to, value)| Some((to, value?)))
            .try_for_each(|(to, value)| self.set(to, value))
    }

    fn set(&mut self, at: usize, value: Value) -> Result<()> {
        if let Self::Stacked { batch, dtype, shape, width, found } = self
            && let Some(tensor) = value.as_tensor()
            && tensor.dtype() == *dtype
            && tensor.shape() == *shape
        {
            let place = F::buffer_bytes_mut(batch)?.get_mut(at * *width..(at + 1) * *width);
            let (Some(place), Some(found)) = (place, found.get_mut(at)) else { return Err(no_row(at)) };
            place.copy_from_slice(tensor.data());
            *found = true;
            return Ok(());
        }
        if matches!(self, Self::Stacked { .. }) {
            let former = std::mem::replace(self, Self::Values(Vec::new()));
            *self = Self::Values(former.into_values()?);
        }
        let place = if let Self::Values(values) = self { values.get_mut(at) } else { None };
        *place.ok_or_else(|| no_row(at))? = Some(value);
        Ok(())
    }

    /// Copies rows to the positions of their duplicates.
    pub(crate) fn copy(&mut self, pairs: &[(usize, usize)]) -> Result<()> {
        for &(from, to) in pairs {
            match self {
                Self::Values(values) => {
                    let value = values.get(from).cloned().ok_or_else(|| no_row(from))?;
                    *values.get_mut(to).ok_or_else(|| no_row(to))? = value;
                }
                Self::Stacked { batch, width, found, .. } => {
                    let there = *found.get(from).ok_or_else(|| no_row(from))?;
                    *found.get_mut(to).ok_or_else(|| no_row(to))? = there;
                    F::buffer_bytes_mut(batch)?.copy_within(from * *width..(from + 1) * *width, to * *width);
                }
            }
        }
        Ok(())
    }

    /// A value for each row that is present.
    pub(crate) fn into_values(self) -> Result<Vec<Option<Value>>> {
        let (batch, dtype, shape, width, found) = match self {
            Self::Values(values) => return Ok(values),
            Self::Stacked { batch, dtype, shape, width, found } => (batch, dtype, shape, width, found),
        };
        let bytes = bytes::Bytes::copy_from_slice(F::buffer_bytes(&batch)?);
        let row = |(at, there): (usize, bool)| {
            let row = || tensorcask::Tensor::new(dtype, &shape, bytes.slice(at * width..(at + 1) * width));
            Ok(there.then(|| row().map(Value::Tensor)).transpose()?)
        };
        found.into_iter().enumerate().map(row).collect()
    }

    /// A batch of the rows at `positions`, all of which are present.
    pub(crate) fn pick(&self, positions: &[usize]) -> Result<Output<F>> {
        match self {
            Self::Stacked { batch, dtype, shape, width, .. } => {
                let bytes = F::buffer_bytes(batch)?;
                let mut picked = F::buffer(*dtype, &[&[positions.len()], shape.as_slice()].concat())?;
                // Rows may have no elements.
                let places = F::buffer_bytes_mut(&mut picked)?.chunks_exact_mut((*width).max(1));
                for (place, &at) in places.zip(positions) {
                    place.copy_from_slice(bytes.get(at * width..(at + 1) * width).ok_or_else(|| no_row(at))?);
                }
                F::finish(picked).map(Output::Tensor)
            }
            Self::Values(values) => {
                let row = |&at: &usize| values.get(at).and_then(Option::as_ref).ok_or_else(|| no_row(at));
                join(&positions.iter().map(row).collect::<Result<Vec<_>>>()?, Ragged::List)
            }
        }
    }

    /// The complete batch, on the CPU.
    pub(crate) fn finish(self, ragged: Ragged) -> Result<Output<F>> {
        let missing = || invalid("a row of the batch is missing");
        match self {
            Self::Stacked { batch, found, .. } if found.iter().all(|found| *found) => {
                F::finish(batch).map(Output::Tensor)
            }
            Self::Stacked { .. } => Err(missing()),
            Self::Values(values) => {
                let rows: Option<Vec<&Value>> = values.iter().map(Option::as_ref).collect();
                join(&rows.ok_or_else(missing)?, ragged)
            }
        }
    }

    /// Bytes of the rows that are present.
    pub(crate) fn len_bytes(&self) -> usize {
        match self {
            Self::Stacked { dtype, shape, found, .. } => {
                let rows = found.iter().filter(|found| **found).count();
                rows * dtype.tensor_len_bytes(shape).unwrap_or(0)
            }
            Self::Values(values) => values.iter().flatten().map(value_len_bytes).sum(),
        }
    }
}

fn positions(chosen: impl Iterator<Item = bool>) -> Vec<usize> {
    chosen.enumerate().filter_map(|(at, chosen)| chosen.then_some(at)).collect()
}

/// Bytes of the tensors in a value.
pub(crate) fn value_len_bytes(value: &Value) -> usize {
    match value {
        Value::Tensor(tensor) => tensor.data().len(),
        Value::List(items) | Value::Tuple(items) => items.iter().map(value_len_bytes).sum(),
        Value::Map(items) => items.iter().map(|(_, item)| value_len_bytes(item)).sum(),
        Value::Str(text) => text.len(),
        Value::Bytes(bytes) => bytes.len(),
        _ => 8,
    }
}

fn heal(error: &StoreError, counters: &Counters) {
    let rows = if let StoreError::DamagedRows { rows } = error { rows.len() } else { 1 };
    add(&counters.damaged, rows);
    tracing::warn!(%error, "damaged rows are computed again");
}

fn read_values(space: &Space, keys: &BatchKeys, counters: &Counters, heals: bool) -> Result<Vec<Option<Value>>> {
    let Some(reader) = space.reader()? else { return Ok(vec![None; keys.len()]) };
    let lookups = keys.with(|keys| reader.get_batch(keys))?;
    let value = |lookup: tensorcask::Lookup| match lookup {
        Err(error) if heals && error.is_corrupt() => {
            heal(&error, counters);
            Ok(None)
        }
        other => Ok(other?),
    };
    lookups.into_iter().map(value).collect()
}

/// Records the layout of rows, so that the next batch can be read into its buffer directly.
fn learn<F: Framework>(space: &Space, known: &Layout, values: &[Option<Value>]) {
    let mut rows = values.iter().flatten();
    let Some(first) = rows.next() else { return };
    let learned = match (known, first.as_tensor()) {
        // Rows have several layouts: reading them directly would fail for every other batch.
        (Layout::Fixed(..), _) | (_, None) => Layout::Mixed,
        (Layout::Mixed, _) => return,
        (Layout::Unknown, Some(tensor)) => {
            let alike = |row: &Value| {
                row.as_tensor().is_some_and(|row| row.dtype() == tensor.dtype() && row.shape() == tensor.shape())
            };
            if F::holds(tensor.dtype()) && rows.all(alike) {
                Layout::Fixed(tensor.dtype(), tensor.shape().to_vec())
            } else {
                Layout::Mixed
            }
        }
    };
    *space.layout.write() = learned;
}

/// Dtype, shape of a row, and a host tensor.
type Single<F> = (Dtype, Vec<usize>, <F as Framework>::Tensor);

/// The output of a batch, ready to be put.
pub(crate) enum Computed<F: Framework> {
    /// One tensor on the CPU, which needs no work per row.
    Single(Single<F>),
    /// A value per row.
    Values(Vec<Value>),
}

impl<F: Framework> Computed<F> {
    pub(crate) fn of(output: &Output<F>, rows: usize) -> Result<Self> {
        if let Output::Tensor(tensor) = output {
            let host = F::host(tensor)?;
            if let Some(dtype) = F::dtype(&host)? {
                let shape = F::shape(&host).get(1..).unwrap_or_default().to_vec();
                return Ok(Self::Single((dtype, shape, host)));
            }
        }
        split(output, rows).map(Self::Values)
    }
}

/// An empty batch with the layout of the kept rows; `None` if no rows are kept.
pub(crate) fn empty_batch<F: Framework>(space: &Space) -> Result<Option<Output<F>>> {
    if let Layout::Fixed(dtype, shape) = &*space.layout.read()
        && F::holds(*dtype)
    {
        let batch = F::buffer(*dtype, &[&[0], shape.as_slice()].concat())?;
        return F::finish(batch).map(|batch| Some(Output::Tensor(batch)));
    }
    let Some(reader) = space.reader()? else { return Ok(None) };
    let Some(key) = reader.keys().next().transpose()? else { return Ok(None) };
    let Some(row) = reader.get(&key)? else { return Ok(None) };
    match join(&[&row], Ragged::List)? {
        Output::Each(_) => Ok(Some(Output::Each(Vec::new()))),
        output => output.try_map(&mut |tensor| F::select(tensor, &[])).map(Some),
    }
}
