//! Assembles the rows of one batch from the store, the computation and other threads.

use std::sync::Arc;

use tensorcask::{Dtype, Error as StoreError, Value};

use crate::counters::{Counters, add};
use crate::error::{Error, Result, invalid};
use crate::framework::Framework;
use crate::keys::key::BatchKeys;
use crate::store::backend::{Layout, Space};
use crate::values::output::Output;
use crate::values::stacked::{Stacked, Structure};
use crate::values::tree::{Ragged, join, split};

/// The rows of a batch, some of which may be missing.
#[derive(Debug)]
pub(crate) enum Rows<F: Framework> {
    /// Rows of one structure of fixed shapes, stored in the batch buffers: the common case.
    Stacked(Stacked<F>),
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
        if let Layout::Fixed(structure) = &layout
            && let Some(rows) = Self::read_stacked(space, keys, structure, counters, heals)?
        {
            return Ok(rows);
        }
        let values = read_values(space, keys, counters, heals)?;
        learn::<F>(space, &layout, &values)?;
        Ok(Self::Values(values))
    }

    /// Reads rows into the batch buffers; `None` if they do not all have this structure.
    fn read_stacked(
        space: &Space,
        keys: &BatchKeys,
        structure: &Arc<Structure>,
        counters: &Counters,
        heals: bool,
    ) -> Result<Option<Self>> {
        let Some(reader) = space.reader()?.filter(|_| structure.is_held::<F>()) else { return Ok(None) };
        let mut rows = Stacked::new(Arc::clone(structure), keys.len())?;
        let read = |outs: &mut [&mut [u8]], found: &mut [bool]| {
            keys.with(|keys| reader.get_values_into(keys, structure.schema(), outs, found))
        };
        match rows.fill(read)? {
            Ok(_) => {}
            Err(error) if matches!(error.cause(), StoreError::Mismatch { .. }) => return Ok(None),
            Err(error @ StoreError::DamagedRows { .. }) if heals => heal(&error, counters),
            Err(error) => return Err(error.into()),
        }
        Ok(Some(Self::Stacked(rows)))
    }

    /// Whether no row is missing.
    pub(crate) fn is_whole(&self) -> bool {
        match self {
            Self::Stacked(rows) => rows.found().iter().all(|found| *found),
            Self::Values(values) => values.iter().all(Option::is_some),
        }
    }

    /// The positions of missing rows.
    pub(crate) fn missing(&self) -> Vec<usize> {
        match self {
            Self::Stacked(rows) => positions(rows.found().iter().map(|found| !found)),
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
        if let Self::Stacked(rows) = self {
            if rows.set(at, &value)? {
                return Ok(());
            }
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
                Self::Stacked(rows) => rows.copy(from, to)?,
            }
        }
        Ok(())
    }

    /// A value for each row that is present.
    pub(crate) fn into_values(self) -> Result<Vec<Option<Value>>> {
        match self {
            Self::Values(values) => Ok(values),
            Self::Stacked(rows) => rows.into_values(),
        }
    }

    /// A batch of the rows at `positions`, all of which are present.
    pub(crate) fn pick(&self, positions: &[usize]) -> Result<Output<F>> {
        match self {
            Self::Stacked(rows) => rows.pick(positions),
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
            Self::Stacked(rows) if rows.found().iter().all(|found| *found) => rows.finish(),
            Self::Stacked(_) => Err(missing()),
            Self::Values(values) => {
                let rows: Option<Vec<&Value>> = values.iter().map(Option::as_ref).collect();
                join(&rows.ok_or_else(missing)?, ragged)
            }
        }
    }

    /// Bytes of the rows that are present.
    pub(crate) fn len_bytes(&self) -> usize {
        match self {
            Self::Stacked(rows) => rows.len_bytes(),
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

/// Records the layout of rows, so that the next batch can be read into its buffers directly.
fn learn<F: Framework>(space: &Space, known: &Layout, values: &[Option<Value>]) -> Result<()> {
    let mut rows = values.iter().flatten();
    let Some(first) = rows.next() else { return Ok(()) };
    let learned = match known {
        // Rows have several layouts: reading them directly would fail for every other batch.
        Layout::Fixed(_) => Layout::Mixed,
        Layout::Mixed => return Ok(()),
        Layout::Unknown => {
            let structure = Structure::of(first)?.filter(Structure::is_held::<F>);
            let alike = structure.filter(|structure| rows.all(|row| structure.is_of(row).unwrap_or(false)));
            alike.map_or(Layout::Mixed, |structure| Layout::Fixed(Arc::new(structure)))
        }
    };
    *space.layout.write() = learned;
    Ok(())
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
    if let Layout::Fixed(structure) = &*space.layout.read()
        && structure.is_held::<F>()
        && structure.has_tensors_only()
    {
        return Stacked::new(Arc::clone(structure), 0)?.finish().map(Some);
    }
    let Some(reader) = space.reader()? else { return Ok(None) };
    let Some(key) = reader.keys().next().transpose()? else { return Ok(None) };
    let Some(row) = reader.get(&key)? else { return Ok(None) };
    match join(&[&row], Ragged::List)? {
        Output::Each(_) => Ok(Some(Output::Each(Vec::new()))),
        output => output.try_map(&mut |tensor| F::select(tensor, &[])).map(Some),
    }
}
