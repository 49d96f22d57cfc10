//! Keys of Python: tensors and arrays of integers, and lists of integers, strings or byte strings.

use pyo3::prelude::*;
use pyo3::types::{PyBool, PyBytes, PyInt, PyList, PyRange, PyString, PyTuple};
use tensorcask::{Key, KeyRef, Keys};

use crate::errors::invalid;
use crate::tensors::array::{self, Array};
use crate::tensors::memory;
use crate::tensors::tensor::PyTensor;
use crate::tensors::torch::torch_if_imported;

/// The keys of a batch. Strings and byte strings are borrowed from their Python objects.
pub(crate) enum KeyBatch<'a> {
    /// An `int64` tensor in main memory.
    Tensor(PyTensor),
    Signed(Vec<i64>),
    Unsigned(Vec<u64>),
    Strings(Vec<&'a str>),
    Bytes(Vec<&'a [u8]>),
}

/// The items of a list or tuple, which keep what is borrowed from them alive.
pub(crate) struct Items<'py>(Vec<Bound<'py, PyAny>>);

/// The first of several keys, as Python objects, for messages.
const SHOWN: usize = 20;

impl<'py> Items<'py> {
    /// The items of `keys`; none for a tensor or array.
    pub(crate) fn of(keys: &Bound<'py, PyAny>) -> PyResult<Self> {
        if let Ok(list) = keys.cast::<PyList>() {
            return Ok(Self(list.iter().collect()));
        }
        if let Ok(tuple) = keys.cast::<PyTuple>() {
            return Ok(Self(tuple.iter().collect()));
        }
        if keys.cast::<PyRange>().is_ok() {
            return Ok(Self(keys.try_iter()?.collect::<PyResult<_>>()?));
        }
        if keys.cast::<PyString>().is_ok() || keys.cast::<PyBytes>().is_ok() || keys.cast::<PyInt>().is_ok() {
            let shown = keys.repr()?;
            return Err(invalid(
                keys.py(),
                format!("the keys are {shown}, one key: pass a list of keys, or use store[key]"),
            ));
        }
        if array::is_array(keys)? {
            return Ok(Self(Vec::new()));
        }
        match keys.try_iter() {
            // Such as the values of a dict, or a column of a table.
            Ok(items) => Ok(Self(items.collect::<PyResult<_>>()?)),
            Err(_) => Err(invalid(
                keys.py(),
                format!(
                    "the keys are of type {}: pass a tensor of integers, or a list of integers, strings or byte strings",
                    keys.get_type().name()?
                ),
            )),
        }
    }
}

impl<'a> KeyBatch<'a> {
    /// The keys of `of`, whose items are `items`.
    ///
    /// # Errors
    /// `InvalidError` for negative or mixed keys, and for tensors that are no list of integers.
    pub(crate) fn of(of: &Bound<'_, PyAny>, items: &'a Items<'_>) -> PyResult<Self> {
        if array::is_array(of)? {
            return Self::of_array(of);
        }
        let py = of.py();
        let Some(first) = items.0.first() else { return Ok(Self::Signed(Vec::new())) };
        if first.cast::<PyString>().is_ok() {
            let strings = items.0.iter().enumerate().map(|(at, item)| match item.cast::<PyString>() {
                Ok(text) => text.to_str(),
                Err(_) => Err(mixed(item, at, "str")),
            });
            return strings.collect::<PyResult<_>>().map(Self::Strings);
        }
        if first.cast::<PyBytes>().is_ok() {
            let bytes = items.0.iter().enumerate().map(|(at, item)| match item.cast::<PyBytes>() {
                Ok(bytes) => Ok(bytes.as_bytes()),
                Err(_) => Err(mixed(item, at, "bytes")),
            });
            return bytes.collect::<PyResult<_>>().map(Self::Bytes);
        }
        let integer = |(at, item): (usize, &Bound<'_, PyAny>)| {
            if item.cast::<PyBool>().is_ok() || item.cast::<PyString>().is_ok() || item.cast::<PyBytes>().is_ok() {
                return Err(mixed(item, at, "int"));
            }
            let number = item.call_method0("__index__").map_err(|_| {
                invalid(
                    py,
                    format!(
                        "key {at} is of type {}: keys are integers, strings or byte strings",
                        item.get_type().name().map_or_else(|_| "unknown".to_owned(), |name| name.to_string())
                    ),
                )
            })?;
            number.extract::<u64>().map_err(|_| {
                invalid(py, format!("key {at} is {number}: integer keys are from 0 to 2^64 - 1; or use strings"))
            })
        };
        items.0.iter().enumerate().map(integer).collect::<PyResult<_>>().map(Self::Unsigned)
    }

    fn of_array(of: &Bound<'_, PyAny>) -> PyResult<Self> {
        let py = of.py();
        let refused = |what: String| {
            invalid(py, format!("the keys are {what}: pass a one-dimensional tensor or array of integers, or a list"))
        };
        if let Some(torch) = torch_if_imported(py)?
            && of.is_instance(torch.tensor_type.bind(py))?
        {
            let tensor = PyTensor::of(of)?;
            if tensor.shape().len() != 1 {
                return Err(refused(format!("a tensor of shape {:?}", tensor.shape())));
            }
            if tensor.kind().name() == "int64" && tensor.is_block() {
                return check_natural(py, tensor);
            }
            if !matches!(tensor.kind().name(), "uint8" | "int8" | "int16" | "int32" | "int64") {
                return Err(refused(format!("a {} tensor", tensor.kind().name())));
            }
            let wide = of.call_method0("cpu")?.call_method0("long")?.call_method0("contiguous")?;
            return check_natural(py, PyTensor::own(&wide)?);
        }
        let array = Array::of(of)?;
        if array.shape().len() != 1 {
            return Err(refused(format!("an array of shape {:?}", array.shape())));
        }
        let kind: String = of.getattr("dtype")?.getattr("kind")?.extract()?;
        if kind == "i" || kind == "u" {
            let name = if kind == "u" { "uint64" } else { "int64" };
            let wide = Array::of(&of.call_method1("astype", (name,))?)?;
            let bytes = wide.bytes(py).ok_or_else(|| refused("an array whose elements cannot be read".to_owned()))?;
            if kind == "u" {
                let numbers = bytes.as_chunks::<8>().0.iter().map(|bytes| u64::from_le_bytes(*bytes)).collect();
                return Ok(Self::Unsigned(numbers));
            }
            let numbers: Vec<i64> = bytes.as_chunks::<8>().0.iter().map(|bytes| i64::from_le_bytes(*bytes)).collect();
            refuse_negative(py, &numbers)?;
            return Ok(Self::Signed(numbers));
        }
        Err(refused(format!("an array of dtype {}", of.getattr("dtype")?)))
    }

    /// Calls `f` with the keys in the form that the store takes.
    pub(crate) fn with<T>(&self, f: impl FnOnce(Keys<'_>) -> T) -> T {
        match self {
            Self::Tensor(tensor) => f(Keys::I64(integers(tensor))),
            Self::Signed(numbers) => f(Keys::I64(numbers)),
            Self::Unsigned(numbers) => f(Keys::U64(numbers)),
            Self::Strings(strings) => f(Keys::Strs(strings)),
            Self::Bytes(bytes) => f(Keys::Slices(bytes)),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.with(|keys| keys.len())
    }

    /// The first keys at positions that `is` accepts, as Python objects, and how many there are.
    pub(crate) fn chosen(&self, py: Python<'_>, is: impl Fn(usize) -> bool) -> PyResult<(Vec<Py<PyAny>>, usize)> {
        self.with(|keys| {
            let (mut first, mut count) = (Vec::new(), 0);
            for (_, key) in keys.iter().enumerate().filter(|(at, _)| is(*at)) {
                count += 1;
                if first.len() < SHOWN {
                    first.push(to_object(py, key)?);
                }
            }
            Ok((first, count))
        })
    }
}

fn mixed(item: &Bound<'_, PyAny>, at: usize, first: &str) -> PyErr {
    let of = item.get_type().name().map_or_else(|_| "unknown".to_owned(), |name| name.to_string());
    invalid(
        item.py(),
        format!("key {at} is of type {of}, but the first is of type {first}: keys of a store are of one kind"),
    )
}

/// The elements of an `int64` tensor in main memory.
fn integers(tensor: &PyTensor) -> &[i64] {
    memory::integers(tensor).unwrap_or_default()
}

fn check_natural<'a>(py: Python<'_>, tensor: PyTensor) -> PyResult<KeyBatch<'a>> {
    // An alias, so that nobody can give the memory to another tensor meanwhile.
    let tensor = if tensor.is_own() { tensor } else { tensor.host(py)? };
    refuse_negative(py, integers(&tensor))?;
    Ok(KeyBatch::Tensor(tensor))
}

fn refuse_negative(py: Python<'_>, numbers: &[i64]) -> PyResult<()> {
    // ORs all signs together, which is faster than testing each.
    if numbers.iter().fold(0, |all, number| all | number) >= 0 {
        return Ok(());
    }
    let (at, number) = numbers.iter().enumerate().find(|(_, number)| **number < 0).unwrap_or((0, &-1));
    Err(invalid(py, format!("key {at} is {number}: integer keys count from 0; for other numbers use strings")))
}

/// One key.
///
/// # Errors
/// As [`KeyBatch::of`].
pub(crate) fn one(of: &Bound<'_, PyAny>) -> PyResult<Key> {
    let py = of.py();
    if let Ok(text) = of.cast::<PyString>() {
        return Ok(KeyRef::Str(text.to_str()?).to_key());
    }
    if let Ok(bytes) = of.cast::<PyBytes>() {
        return Ok(KeyRef::Bytes(bytes.as_bytes()).to_key());
    }
    let number = of.call_method0("__index__").ok().filter(|_| of.cast::<PyBool>().is_err());
    let refused = |what: String| {
        invalid(py, format!("the key is {what}: a key is an integer from 0 on, a string or a byte string"))
    };
    match number {
        Some(number) => {
            number.extract::<u64>().map(|n| KeyRef::U64(n).to_key()).map_err(|_| refused(number.to_string()))
        }
        None => Err(refused(format!("of type {}", of.get_type().name()?))),
    }
}

/// A key as a Python object.
pub(crate) fn to_object(py: Python<'_>, key: KeyRef<'_>) -> PyResult<Py<PyAny>> {
    Ok(match key {
        KeyRef::Str(text) => PyString::new(py, text).into_any().unbind(),
        KeyRef::U64(number) => number.into_pyobject(py)?.into_any().unbind(),
        KeyRef::Bytes(bytes) => PyBytes::new(py, bytes).into_any().unbind(),
    })
}
