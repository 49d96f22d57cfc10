//! Batches of rows that are read from a store.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use parking_lot::RwLock;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList, PyTuple};
use tensorcask::{Dtype, Error, Reader, Schema, Tensor, Value};

use crate::classes;
use crate::errors::{invalid, of_store};
use crate::store::keys::KeyBatch;
use crate::store::values::to_object;
use crate::tensors::array::{Format, Output};

/// A leaf of rows of one structure.
#[derive(Debug)]
struct Leaf {
    dtype: Dtype,
    shape: Vec<usize>,
}

/// Rows that are copied without a value in between: all of one structure, whose leaves have fixed sizes.
#[derive(Debug)]
struct Structure {
    schema: Schema,
    leaves: Vec<Leaf>,
    /// A row, from which the tree of a batch is built.
    example: Value,
}

/// What is known of the rows of a store.
#[derive(Debug, Default)]
enum Known {
    #[default]
    Nothing,
    Fixed(Arc<Structure>),
    /// Rows have several structures, or leaves of several sizes. Leaves of several shapes are named: they are returned
    /// as lists, also by a batch in which the shapes are the same.
    Mixed(Arc<HashSet<String>>),
}

/// What the handles of a store know of its rows.
#[derive(Debug, Default)]
pub(crate) struct Layout(RwLock<Known>);

/// How rows are returned.
pub(crate) struct Wanted<'a, 'py> {
    pub format: Format,
    /// In page-locked memory, from which copies to a GPU are fast.
    pub pinned: bool,
    /// Arrays of the caller to fill.
    pub out: Option<&'a Bound<'py, PyAny>>,
}

/// Rows, and which of them were found. Rows that were not found are zeros, or `None` in lists.
pub(crate) struct Batch<'py> {
    pub rows: Bound<'py, PyAny>,
    pub found: Vec<bool>,
}

impl Structure {
    fn of(example: &Value) -> Option<Self> {
        let schema = Schema::of(example).ok()?;
        let leaf = |leaf: &tensorcask::Leaf| {
            let (dtype, shape) = (leaf.dtype()?, leaf.shape()?.to_vec());
            dtype.tensor_len_bytes(&shape)?;
            Some(Leaf { dtype, shape })
        };
        let leaves = schema.leaves().iter().map(leaf).collect::<Option<Vec<_>>>()?;
        has_no_lists(example).then(|| Self { schema, leaves, example: example.clone() })
    }
}

/// Whether no part is a list: a list of a batch has one item a key.
fn has_no_lists(value: &Value) -> bool {
    match value {
        Value::List(_) => false,
        Value::Tuple(items) => items.iter().all(has_no_lists),
        Value::Map(items) => items.iter().all(|(_, item)| has_no_lists(item)),
        _ => true,
    }
}

impl Layout {
    /// The rows of `keys`.
    ///
    /// # Errors
    /// Those of the store, `CorruptError` for damaged rows among them; those of `Wanted::out`.
    pub(crate) fn read<'py>(
        &self,
        py: Python<'py>,
        reader: &Reader,
        keys: &KeyBatch<'_>,
        wanted: &Wanted<'_, 'py>,
    ) -> PyResult<Batch<'py>> {
        let fixed = match &*self.0.read() {
            Known::Fixed(structure) => Some(Arc::clone(structure)),
            _ => None,
        };
        if let Some(structure) = fixed {
            match copy(py, reader, keys, &structure, wanted)? {
                Some(batch) => return Ok(batch),
                None => *self.0.write() = Known::Mixed(structures(py, reader)?.1),
            }
        }
        let lookups = py.detach(|| keys.with(|keys| reader.get_batch(keys))).map_err(|error| of_store(py, &error))?;
        let values = lookups.into_iter().collect::<Result<Vec<_>, Error>>().map_err(|error| of_store(py, &error))?;
        if matches!(&*self.0.read(), Known::Nothing) {
            self.learn(py, reader, &values)?;
            let learned = matches!(&*self.0.read(), Known::Fixed(_));
            if learned {
                return self.read(py, reader, keys, wanted);
            }
        }
        if wanted.out.is_some() {
            return Err(invalid(
                py,
                "the rows differ in structure or shape, so they do not fit one array: leave `out` out",
            ));
        }
        let ragged = match &*self.0.read() {
            Known::Mixed(ragged) => Arc::clone(ragged),
            _ => Arc::default(),
        };
        let found = values.iter().map(Option::is_some).collect();
        let rows: Vec<Option<&Value>> = values.iter().map(Option::as_ref).collect();
        let columns = Columns { wanted, ragged: &ragged };
        Ok(Batch { rows: columns.of(py, &rows, "value")?, found })
    }

    /// Remembers the structure of `values`, or of any row if none was found.
    fn learn(&self, py: Python<'_>, reader: &Reader, values: &[Option<Value>]) -> PyResult<()> {
        let first = match values.iter().flatten().next() {
            Some(first) => first.clone(),
            None => match reader.iter().next() {
                Some(Ok((_, value))) => value,
                _ => return Ok(()),
            },
        };
        let (is_one, ragged) = structures(py, reader)?;
        *self.0.write() = match Structure::of(&first).filter(|_| is_one) {
            Some(structure) => Known::Fixed(Arc::new(structure)),
            None => Known::Mixed(ragged),
        };
        Ok(())
    }

    /// Forgets what is known unless the rows that are put, whose leaves are given, have the known structure.
    pub(crate) fn put(&self, leaves: Option<&[(Dtype, Vec<usize>)]>) {
        let is_known = |known: &Known| match known {
            Known::Fixed(structure) => leaves.is_some_and(|leaves| {
                let same = |(leaf, put): (&Leaf, &(Dtype, Vec<usize>))| leaf.dtype == put.0 && leaf.shape == put.1;
                leaves.len() == structure.leaves.len() && structure.leaves.iter().zip(leaves).all(same)
            }),
            _ => false,
        };
        if !is_known(&self.0.read()) {
            *self.0.write() = Known::Nothing;
        }
    }
}

/// Whether all rows of a store are of one structure, and the leaves whose shapes differ from row to row.
fn structures(py: Python<'_>, reader: &Reader) -> PyResult<(bool, Arc<HashSet<String>>)> {
    let schemas = py.detach(|| reader.schemas()).map_err(|error| of_store(py, &error))?;
    let mut shapes: HashMap<&str, &[usize]> = HashMap::new();
    let mut ragged = HashSet::new();
    for leaf in schemas.iter().flat_map(|used| used.schema.leaves()).filter(|leaf| leaf.is_tensor()) {
        if leaf.shape().is_none_or(|shape| *shapes.entry(leaf.path()).or_insert(shape) != shape) {
            ragged.insert(leaf.path().to_owned());
        }
    }
    Ok((schemas.len() == 1, Arc::new(ragged)))
}

/// Copies rows of one structure; `None` if they have others.
fn copy<'py>(
    py: Python<'py>,
    reader: &Reader,
    keys: &KeyBatch<'_>,
    structure: &Structure,
    wanted: &Wanted<'_, 'py>,
) -> PyResult<Option<Batch<'py>>> {
    let len = keys.len();
    let mut given = Vec::new();
    if let Some(out) = wanted.out {
        collect(out, &structure.example, &mut given)?;
    }
    let mut given = given.into_iter();
    let mut outputs = Vec::with_capacity(structure.leaves.len());
    for leaf in &structure.leaves {
        let shape: Vec<usize> = std::iter::once(len).chain(leaf.shape.iter().copied()).collect();
        outputs.push(match given.next() {
            Some(object) => Output::callers(&object, leaf.dtype, &shape)?,
            None => Output::new(py, wanted.format, leaf.dtype, &shape, wanted.pinned)?,
        });
    }
    let mut found = vec![false; len];
    let mut places = outputs.iter_mut().map(Output::bytes_mut).collect::<Option<Vec<_>>>();
    let Some(places) = places.as_mut() else { return Err(invalid(py, "an array cannot be written to")) };
    let read = py.detach(|| keys.with(|keys| reader.get_values_into(keys, &structure.schema, places, &mut found)));
    match read {
        Err(error) if matches!(error.cause(), Error::Mismatch { .. }) => return Ok(None),
        other => other.map_err(|error| of_store(py, &error))?,
    };
    // The rows of other keys are unspecified.
    for (leaf, place) in structure.leaves.iter().zip(places.iter_mut()) {
        let width = leaf.dtype.tensor_len_bytes(&leaf.shape).unwrap_or(0);
        let missing = place.chunks_mut(width.max(1)).zip(&found).filter(|(_, found)| !**found);
        missing.for_each(|(row, _)| row.fill(0));
    }
    let mut arrays = outputs.into_iter().map(|output| output.finish(py));
    let rows = tree(py, &structure.example, &mut arrays)?;
    Ok(Some(Batch { rows, found }))
}

/// The arrays of `out`, in the order of the leaves of `example`.
fn collect<'py>(out: &Bound<'py, PyAny>, example: &Value, arrays: &mut Vec<Bound<'py, PyAny>>) -> PyResult<()> {
    match example {
        Value::Null => Ok(()),
        Value::Map(items) => items.iter().try_for_each(|(name, item)| collect(&out.get_item(name)?, item, arrays)),
        Value::Tuple(items) => {
            items.iter().enumerate().try_for_each(|(at, item)| collect(&out.get_item(at)?, item, arrays))
        }
        _ => {
            arrays.push(out.clone());
            Ok(())
        }
    }
}

/// The tree of `example`, with the next of `arrays` for each leaf.
fn tree<'py>(
    py: Python<'py>,
    example: &Value,
    arrays: &mut dyn Iterator<Item = PyResult<Bound<'py, PyAny>>>,
) -> PyResult<Bound<'py, PyAny>> {
    Ok(match example {
        Value::Null => py.None().into_bound(py),
        Value::Map(items) => {
            let fields = PyDict::new(py);
            for (name, item) in items {
                fields.set_item(name, tree(py, item, arrays)?)?;
            }
            classes::decode(fields)?
        }
        Value::Tuple(items) => {
            let items = items.iter().map(|item| tree(py, item, arrays)).collect::<PyResult<Vec<_>>>()?;
            PyTuple::new(py, items)?.into_any()
        }
        _ => arrays.next().ok_or_else(|| invalid(py, "a leaf has no array"))??,
    })
}

/// Builds batches of rows of any structure.
struct Columns<'a, 'b, 'py> {
    wanted: &'a Wanted<'b, 'py>,
    /// Leaves of several shapes.
    ragged: &'a HashSet<String>,
}

impl<'py> Columns<'_, '_, 'py> {
    /// Arrays where all rows have the same dtype and shape, lists elsewhere. `path` names the leaf as schemas do.
    fn of(&self, py: Python<'py>, rows: &[Option<&Value>], path: &str) -> PyResult<Bound<'py, PyAny>> {
        match rows.iter().flatten().next() {
            Some(Value::Map(first)) if rows.iter().flatten().all(|row| has_names(row, first)) => {
                let fields = PyDict::new(py);
                for (name, _) in first {
                    let of_name: Vec<Option<&Value>> =
                        rows.iter().map(|row| row.and_then(|row| row.get(name))).collect();
                    let path = format!("{path}/{}", name.replace('~', "~0").replace('/', "~1"));
                    fields.set_item(name, self.of(py, &of_name, &path)?)?;
                }
                classes::decode(fields)
            }
            Some(Value::Tensor(first))
                if !self.ragged.contains(path) && rows.iter().flatten().all(|row| is_like(row, first)) =>
            {
                self.stacked(py, rows, first)
            }
            _ => {
                let items = rows.iter().map(|row| match row {
                    Some(value) => to_object(py, value, self.wanted.format),
                    None => Ok(py.None().into_bound(py)),
                });
                Ok(PyList::new(py, items.collect::<PyResult<Vec<_>>>()?)?.into_any())
            }
        }
    }

    fn stacked(&self, py: Python<'py>, rows: &[Option<&Value>], first: &Tensor) -> PyResult<Bound<'py, PyAny>> {
        let shape: Vec<usize> = std::iter::once(rows.len()).chain(first.shape().iter().copied()).collect();
        let mut output = Output::new(py, self.wanted.format, first.dtype(), &shape, self.wanted.pinned)?;
        let place = output.bytes_mut().ok_or_else(|| invalid(py, "an array cannot be written to"))?;
        for (place, row) in place.chunks_mut(first.data().len().max(1)).zip(rows) {
            match row {
                Some(Value::Tensor(tensor)) => place.copy_from_slice(tensor.data()),
                _ => place.fill(0),
            }
        }
        output.finish(py)
    }
}

fn has_names(row: &Value, names: &[(String, Value)]) -> bool {
    row.as_map().is_some_and(|items| items.len() == names.len() && items.iter().zip(names).all(|(a, b)| a.0 == b.0))
}

fn is_like(row: &Value, first: &Tensor) -> bool {
    row.as_tensor().is_some_and(|tensor| tensor.dtype() == first.dtype() && tensor.shape() == first.shape())
}
