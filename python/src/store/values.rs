//! Values of a store as Python objects, and the other way round.

use pyo3::prelude::*;
use pyo3::types::{PyBool, PyByteArray, PyBytes, PyDict, PyFloat, PyInt, PyList, PyString, PyTuple};
use tensorcask::{Dtype, MAX_DEPTH, Tensor, TensorView, Value, ValueView};

use crate::classes;
use crate::errors::{invalid, of_store};
use crate::tensors::array::{Array, Format, Output, is_array};

/// A value of one row: an array, a plain value, or a dict, list or tuple of them.
///
/// # Errors
/// `InvalidError` for objects of other types.
pub(crate) fn from_object(object: &Bound<'_, PyAny>) -> PyResult<Value> {
    from_nested(object, 0)
}

fn from_nested(object: &Bound<'_, PyAny>, depth: usize) -> PyResult<Value> {
    let py = object.py();
    if depth > MAX_DEPTH {
        return Err(invalid(py, format!("a value is nested more than {MAX_DEPTH} levels deep")));
    }
    if let Some(plain) = plain(object)? {
        return Ok(plain);
    }
    if is_array(object)? {
        let array = Array::of(object)?;
        let (dtype, bytes) =
            array.dtype().zip(array.bytes(py)).ok_or_else(|| invalid(py, "an array cannot be read"))?;
        return Tensor::new(dtype, array.shape(), bytes.to_vec())
            .map(Value::Tensor)
            .map_err(|error| of_store(py, &error));
    }
    let items =
        |items: Vec<Bound<'_, PyAny>>| items.iter().map(|item| from_nested(item, depth + 1)).collect::<PyResult<_>>();
    if object.get_type().is(py.get_type::<PyTuple>()) {
        return items(object.cast::<PyTuple>()?.iter().collect()).map(Value::Tuple);
    }
    if let Ok(list) = object.cast::<PyList>() {
        return items(list.iter().collect()).map(Value::List);
    }
    let named = |dict: &Bound<'_, PyDict>| {
        dict.iter()
            .map(|(name, item)| Ok((classes::field_name(&name)?, from_nested(&item, depth + 1)?)))
            .collect::<PyResult<Vec<_>>>()
    };
    let encoded = classes::encode(object)?;
    match encoded.class {
        None => named(&encoded.fields).map(Value::Map),
        Some(class) => Ok(Value::Map(vec![(class, Value::Map(named(&encoded.fields)?))])),
    }
}

/// A plain value; `None` if the object is anything else.
fn plain(object: &Bound<'_, PyAny>) -> PyResult<Option<Value>> {
    Ok(Some(if object.is_none() {
        Value::Null
    } else if let Ok(flag) = object.cast::<PyBool>() {
        Value::Bool(flag.is_true())
    } else if object.cast::<PyInt>().is_ok() {
        let number = object.extract().map_err(|_| {
            invalid(object.py(), format!("the integer {object} does not fit 64 bits: store it as a string"))
        })?;
        Value::Int(number)
    } else if let Ok(number) = object.cast::<PyFloat>() {
        Value::Float(number.extract()?)
    } else if let Ok(text) = object.cast::<PyString>() {
        Value::Str(text.to_str()?.to_owned())
    } else if let Ok(bytes) = object.cast::<PyBytes>() {
        Value::Bytes(bytes.as_bytes().to_vec().into())
    } else if let Ok(bytes) = object.cast::<PyByteArray>() {
        Value::Bytes(bytes.to_vec().into())
    } else {
        return Ok(None);
    }))
}

/// A value as a Python object.
pub(crate) fn to_object<'py>(py: Python<'py>, value: &Value, format: Format) -> PyResult<Bound<'py, PyAny>> {
    let all = |items: &[Value]| items.iter().map(|item| to_object(py, item, format)).collect::<PyResult<Vec<_>>>();
    Ok(match value {
        Value::Null => py.None().into_bound(py),
        Value::Bool(flag) => PyBool::new(py, *flag).to_owned().into_any(),
        Value::Int(number) => number.into_pyobject(py)?.into_any(),
        Value::Float(number) => number.into_pyobject(py)?.into_any(),
        Value::Str(text) => PyString::new(py, text).into_any(),
        Value::Bytes(bytes) => PyBytes::new(py, bytes).into_any(),
        Value::Tensor(tensor) => tensor_to_object(py, tensor, format)?,
        Value::List(items) => PyList::new(py, all(items)?)?.into_any(),
        Value::Tuple(items) => PyTuple::new(py, all(items)?)?.into_any(),
        Value::Map(items) => {
            let fields = PyDict::new(py);
            for (name, item) in items {
                fields.set_item(name, to_object(py, item, format)?)?;
            }
            classes::decode(fields)?
        }
    })
}

fn tensor_to_object<'py>(py: Python<'py>, tensor: &Tensor, format: Format) -> PyResult<Bound<'py, PyAny>> {
    let mut output = Output::new(py, format, tensor.dtype(), tensor.shape(), false)?;
    let place = output.bytes_mut().filter(|place| place.len() == tensor.data().len());
    place.ok_or_else(|| invalid(py, "a row does not fit its array"))?.copy_from_slice(tensor.data());
    output.finish(py)
}

/// The rows of a batch that is put.
pub(crate) enum Rows {
    /// One array, whose first dimension is the batch.
    Array(Array),
    /// A value a row.
    Values(Vec<Value>),
    Map(Vec<(String, Rows)>),
    Tuple(Vec<Rows>),
}

impl Rows {
    /// The rows of `object` for `count` keys: an array, a list of values, or a dict, tuple or class of them.
    ///
    /// # Errors
    /// `InvalidError` if a part does not have `count` rows.
    pub(crate) fn of(object: &Bound<'_, PyAny>, count: usize) -> PyResult<Self> {
        let py = object.py();
        let check = |found: Option<usize>| match found {
            Some(found) if found == count => Ok(()),
            Some(found) => Err(invalid(py, format!("{found} rows were passed for {count} keys: pass one row a key"))),
            None => Err(invalid(py, "an array has no dimensions: its first is the batch")),
        };
        if is_array(object)? {
            let array = Array::of(object)?;
            check(array.shape().first().copied())?;
            return Ok(Self::Array(array));
        }
        if let Ok(list) = object.cast::<PyList>() {
            check(Some(list.len()))?;
            return list.iter().map(|item| from_object(&item)).collect::<PyResult<_>>().map(Self::Values);
        }
        if object.get_type().is(py.get_type::<PyTuple>()) {
            let items = object.cast::<PyTuple>()?;
            return items.iter().map(|item| Self::of(&item, count)).collect::<PyResult<_>>().map(Self::Tuple);
        }
        if plain(object)?.is_some() {
            return Err(invalid(
                py,
                format!(
                    "the rows are of type {}: pass a tensor [keys, …], a dict or tuple of them, or a list of one value a key",
                    object.get_type().name()?
                ),
            ));
        }
        let encoded = classes::encode(object)?;
        let fields =
            encoded.fields.iter().map(|(name, item)| Ok((classes::field_name(&name)?, Self::of(&item, count)?)));
        let map = Self::Map(fields.collect::<PyResult<_>>()?);
        Ok(match encoded.class {
            None => map,
            Some(class) => Self::Map(vec![(class, map)]),
        })
    }

    /// The dtype and shape of each leaf of a row, in order; `None` if they may differ from row to row.
    pub(crate) fn leaves(&self) -> Option<Vec<(Dtype, Vec<usize>)>> {
        match self {
            Self::Array(array) => Some(vec![(array.dtype()?, array.shape().get(1..)?.to_vec())]),
            Self::Values(_) => None,
            Self::Map(items) => concatenated(items.iter().map(|(_, rows)| rows.leaves())),
            Self::Tuple(items) => concatenated(items.iter().map(Self::leaves)),
        }
    }

    /// The value of one row.
    pub(crate) fn row<'a>(&'a self, py: Python<'_>, at: usize) -> PyResult<ValueView<'a>> {
        let broken = || invalid(py, "a row cannot be read");
        Ok(match self {
            Self::Values(values) => values.get(at).ok_or_else(broken)?.view(),
            Self::Array(array) => {
                let shape = array.shape().get(1..).unwrap_or_default();
                let dtype = array.dtype().ok_or_else(broken)?;
                let width = dtype.tensor_len_bytes(shape).ok_or_else(broken)?;
                let bytes =
                    array.bytes(py).and_then(|bytes| bytes.get(at * width..(at + 1) * width)).ok_or_else(broken)?;
                ValueView::Tensor(TensorView::new(dtype, shape, bytes).map_err(|error| of_store(py, &error))?)
            }
            Self::Map(items) => ValueView::Map(
                items.iter().map(|(name, rows)| Ok((name.as_str(), rows.row(py, at)?))).collect::<PyResult<_>>()?,
            ),
            Self::Tuple(items) => ValueView::Tuple(items.iter().map(|rows| rows.row(py, at)).collect::<PyResult<_>>()?),
        })
    }
}

fn concatenated<T>(parts: impl Iterator<Item = Option<Vec<T>>>) -> Option<Vec<T>> {
    Some(parts.collect::<Option<Vec<_>>>()?.into_iter().flatten().collect())
}
