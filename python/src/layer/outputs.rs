//! Outputs of wrapped functions as Python objects, and the other way round.

use pyo3::prelude::*;
use pyo3::types::{PyBool, PyDict, PyFloat, PyInt, PyList, PyString, PyTuple};
use tensorcask_cache::layer::Output;

use crate::classes;
use crate::errors::invalid;
use crate::layer::framework::PyTorch;
use crate::tensors::tensor::PyTensor;
use crate::tensors::torch::{Torch, torch};

/// The maximum depth of nested outputs.
const MAX_DEPTH: usize = 64;

/// The output that a wrapped function returned.
///
/// # Errors
/// `InvalidError` for objects that cannot be kept.
pub(crate) fn of_object(object: &Bound<'_, PyAny>) -> PyResult<Output<PyTorch>> {
    of_nested(object, torch(object.py())?, 0)
}

fn of_nested(object: &Bound<'_, PyAny>, torch: &Torch, depth: usize) -> PyResult<Output<PyTorch>> {
    let py = object.py();
    if depth > MAX_DEPTH {
        return Err(invalid(py, format!("an output is nested more than {MAX_DEPTH} levels deep")));
    }
    let all = |items: Vec<Bound<'_, PyAny>>| {
        items.iter().map(|item| of_nested(item, torch, depth + 1)).collect::<PyResult<Vec<_>>>()
    };
    if object.is_instance(torch.tensor_type.bind(py))? {
        if object.getattr("is_nested")?.extract()? {
            // The rows of a nested tensor are one output a sample.
            return all(object.call_method0("unbind")?.try_iter()?.collect::<PyResult<_>>()?).map(Output::Each);
        }
        return PyTensor::of(object).map(Output::Tensor);
    }
    if object.is_none() {
        return Ok(Output::Null);
    }
    if let Ok(flag) = object.cast::<PyBool>() {
        return Ok(Output::Bool(flag.is_true()));
    }
    if object.cast_exact::<PyInt>().is_ok() {
        let number = object.extract().map_err(|_| invalid(py, format!("the output {object} does not fit 64 bits")))?;
        return Ok(Output::Int(number));
    }
    if let Ok(number) = object.cast_exact::<PyFloat>() {
        return Ok(Output::Float(number.extract()?));
    }
    if let Ok(text) = object.cast_exact::<PyString>() {
        return Ok(Output::Str(text.to_str()?.to_owned()));
    }
    if let Ok(list) = object.cast_exact::<PyList>() {
        return all(list.iter().collect()).map(Output::List);
    }
    if let Ok(tuple) = object.cast_exact::<PyTuple>() {
        return all(tuple.iter().collect()).map(Output::Tuple);
    }
    let encoded = classes::encode(object)?;
    let fields = encoded.fields.iter();
    let fields = fields.map(|(name, item)| Ok((classes::field_name(&name)?, of_nested(&item, torch, depth + 1)?)));
    let map = Output::Map(fields.collect::<PyResult<_>>()?);
    Ok(match encoded.class {
        None => map,
        Some(class) => Output::Map(vec![(class, map)]),
    })
}

/// An output as a Python object. One output a sample is a list.
pub(crate) fn to_object<'py>(py: Python<'py>, output: &Output<PyTorch>) -> PyResult<Bound<'py, PyAny>> {
    let all = |items: &[Output<PyTorch>]| items.iter().map(|item| to_object(py, item)).collect::<PyResult<Vec<_>>>();
    Ok(match output {
        Output::Tensor(tensor) => tensor.object(py).clone(),
        Output::Each(items) | Output::List(items) => PyList::new(py, all(items)?)?.into_any(),
        Output::Tuple(items) => PyTuple::new(py, all(items)?)?.into_any(),
        Output::Map(items) => {
            let fields = PyDict::new(py);
            for (name, item) in items {
                fields.set_item(name, to_object(py, item)?)?;
            }
            classes::decode(fields)?
        }
        Output::Null => py.None().into_bound(py),
        Output::Bool(flag) => PyBool::new(py, *flag).to_owned().into_any(),
        Output::Int(number) => number.into_pyobject(py)?.into_any(),
        Output::Float(number) => number.into_pyobject(py)?.into_any(),
        Output::Str(text) => text.into_pyobject(py)?.into_any(),
    })
}
