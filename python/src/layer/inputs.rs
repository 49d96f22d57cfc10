//! The arguments of a call of a wrapped function: tensors with a batch dimension, and everything else.
//!
//! Tensors and plain values at the top level are arguments of the caching layer as they are, so that a call has the
//! same keys as one from Rust. Nested arguments and values of other types are described in one more argument, a string
//! in JSON, from which the call is put together again; their tensors are arguments with the names of their places.

use std::collections::HashMap;

use parking_lot::Mutex;
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyDict, PyFloat, PyInt, PyList, PyString, PyTuple};
use serde_json::{Value as Json, json};
use tensorcask_cache::layer::{Argument, Inputs};

use crate::errors::invalid;
use crate::layer::framework::PyTorch;
use crate::tensors::array::is_array;
use crate::tensors::tensor::PyTensor;

/// The name of the argument that describes the others.
const DESCRIPTION: &str = "python:arguments";

/// The maximum depth of nested arguments.
const MAX_DEPTH: usize = 64;

/// A tensor that is the same for every sample of a batch. It is part of every key.
#[pyclass(frozen, module = "tensorcask", name = "shared")]
pub(crate) struct Shared {
    tensor: Py<PyAny>,
}

#[pymethods]
impl Shared {
    #[new]
    fn new(tensor: Py<PyAny>) -> Self {
        Self { tensor }
    }

    /// The tensor.
    #[getter]
    fn tensor(&self, py: Python<'_>) -> Py<PyAny> {
        self.tensor.clone_ref(py)
    }
}

/// Values such as dtypes and members of enumerations, by their descriptions. Equal descriptions stand for equal values.
static OBJECTS: Mutex<Option<HashMap<String, Py<PyAny>>>> = Mutex::new(None);

/// Turns arguments into those of the caching layer.
struct Flattening<'a> {
    inputs: &'a mut Inputs<PyTorch>,
}

/// The arguments of the caching layer for a call.
///
/// # Errors
/// `InvalidError` for objects that cannot be part of a key.
pub(crate) fn of_call(args: &Bound<'_, PyTuple>, kwargs: Option<&Bound<'_, PyDict>>) -> PyResult<Inputs<PyTorch>> {
    let mut inputs = Inputs::new();
    let mut nested = serde_json::Map::new();
    for (at, object) in args.iter().enumerate() {
        inputs = add(inputs, None, &at.to_string(), &object, &mut nested)?;
    }
    for (name, object) in kwargs.into_iter().flat_map(|kwargs| kwargs.iter()) {
        let name = name.cast::<PyString>()?.to_str()?.to_owned();
        if name == DESCRIPTION {
            return Err(invalid(args.py(), format!("an argument is named {name:?}, which is reserved: rename it")));
        }
        inputs = add(inputs, Some(&name), &name, &object, &mut nested)?;
    }
    if !nested.is_empty() {
        let description = json!({ "count": args.len(), "nested": nested }).to_string();
        inputs = inputs.named(DESCRIPTION, description);
    }
    Ok(inputs)
}

fn add(
    inputs: Inputs<PyTorch>,
    name: Option<&str>,
    place: &str,
    object: &Bound<'_, PyAny>,
    nested: &mut serde_json::Map<String, Json>,
) -> PyResult<Inputs<PyTorch>> {
    if let Some(argument) = simple(object)? {
        return Ok(match name {
            Some(name) => inputs.named(name, argument),
            None => inputs.with(argument),
        });
    }
    let mut inputs = inputs;
    let key = if name.is_some() { format!("={place}") } else { place.to_owned() };
    let described = Flattening { inputs: &mut inputs }.describe(&key, object, 0)?;
    nested.insert(key, described);
    Ok(inputs)
}

/// A tensor or a plain value; `None` for anything else.
fn simple(object: &Bound<'_, PyAny>) -> PyResult<Option<Argument<PyTorch>>> {
    let py = object.py();
    let torch = crate::tensors::torch::torch(py)?;
    if object.is_instance(torch.tensor_type.bind(py))? {
        let tensor = PyTensor::of(object)?;
        // A tensor without dimensions has no batch: it is a parameter of the call.
        let is_batch = !tensor.shape().is_empty();
        return Ok(Some(if is_batch { Argument::Tensor(tensor) } else { Argument::Shared(tensor) }));
    }
    Ok(Some(if object.is_none() {
        Argument::Null
    } else if let Ok(flag) = object.cast::<PyBool>() {
        Argument::Bool(flag.is_true())
    } else if let Ok(number) = object.cast_exact::<PyFloat>() {
        Argument::Float(number.extract()?)
    } else if let Ok(number) = object.cast_exact::<PyInt>()
        && let Ok(number) = number.extract()
    {
        Argument::Int(number)
    } else if let Ok(text) = object.cast_exact::<PyString>() {
        Argument::Str(text.to_str()?.to_owned())
    } else if let Ok(shared) = object.cast::<Shared>() {
        Argument::Shared(PyTensor::of(shared.get().tensor.bind(py))?)
    } else {
        return Ok(None);
    }))
}

impl Flattening<'_> {
    fn describe(&mut self, place: &str, object: &Bound<'_, PyAny>, depth: usize) -> PyResult<Json> {
        let py = object.py();
        if depth > MAX_DEPTH {
            return Err(invalid(py, format!("an argument is nested more than {MAX_DEPTH} levels deep")));
        }
        if let Some(argument) = simple(object)? {
            return Ok(match argument {
                Argument::Null => Json::Null,
                Argument::Bool(flag) => json!(flag),
                Argument::Int(number) => json!(number),
                Argument::Str(text) => json!({ "text": text }),
                // Bits, as JSON has no NaN and rounds.
                Argument::Float(number) => json!({ "float": format!("{:016x}", number.to_bits()) }),
                tensor => self.tensor(place, tensor),
            });
        }
        if is_array(object)? {
            let helpers = py.import("tensorcask._arguments")?;
            let tensor = PyTensor::of(&helpers.call_method1("as_tensor", (object,))?)?;
            let is_batch = !tensor.shape().is_empty();
            let argument = if is_batch { Argument::Tensor(tensor) } else { Argument::Shared(tensor) };
            return Ok(json!({ "array": self.tensor(place, argument) }));
        }
        let mut all = |items: Vec<Bound<'_, PyAny>>| {
            let items = items.iter().enumerate();
            items
                .map(|(at, item)| self.describe(&format!("{place}.{at}"), item, depth + 1))
                .collect::<PyResult<Vec<_>>>()
        };
        if let Ok(list) = object.cast_exact::<PyList>() {
            return Ok(json!({ "list": all(list.iter().collect())? }));
        }
        if let Ok(tuple) = object.cast_exact::<PyTuple>() {
            return Ok(json!({ "tuple": all(tuple.iter().collect())? }));
        }
        let inputs = py.import("tensorcask._arguments")?;
        if let Some(fields) = inputs.call_method1("fields", (object,))?.extract::<Option<Bound<'_, PyDict>>>()? {
            let mut described = Vec::new();
            for (name, item) in fields.iter() {
                let name: String = name.extract().map_err(|_| {
                    invalid(py, format!("a dict among the arguments has the key {name}: names are strings"))
                })?;
                described.push(json!([
                    name,
                    self.describe(
                        &format!("{place}.{}", name.replace('~', "~0").replace('.', "~1")),
                        &item,
                        depth + 1
                    )?
                ]));
            }
            if object.get_type().is(py.get_type::<PyDict>()) {
                return Ok(json!({ "dict": described }));
            }
            return Ok(json!({ "mapping": [remember(object.get_type().as_any(), "describe_class")?, described] }));
        }
        Ok(json!({ "object": remember(object, "describe")? }))
    }

    fn tensor(&mut self, place: &str, argument: Argument<PyTorch>) -> Json {
        let inputs = std::mem::take(self.inputs);
        *self.inputs = inputs.named(place, argument);
        json!({ "tensor": place })
    }
}

/// Remembers a value, and returns the description that the helper `describe` gives.
fn remember(object: &Bound<'_, PyAny>, describe: &str) -> PyResult<String> {
    let py = object.py();
    let description = py.import("tensorcask._arguments")?.call_method1(describe, (object,))?;
    let Some(description) = description.extract::<Option<String>>()? else {
        return Err(invalid(
            py,
            format!(
                "an argument is of type {}, which cannot be part of a key: pass tensors, plain values, and dicts, lists or \
             tuples of them",
                object.get_type().name()?
            ),
        ));
    };
    OBJECTS.lock().get_or_insert_default().insert(description.clone(), object.clone().unbind());
    Ok(description)
}

fn remembered<'py>(py: Python<'py>, description: &str) -> PyResult<Bound<'py, PyAny>> {
    let objects = OBJECTS.lock();
    let object = objects.as_ref().and_then(|objects| objects.get(description));
    object.map(|object| object.bind(py).clone()).ok_or_else(|| broken(py))
}

fn broken(py: Python<'_>) -> PyErr {
    invalid(py, "the description of an argument cannot be read")
}

fn dict_of<'py>(py: Python<'py>, fields: &[Json], inputs: &Inputs<PyTorch>) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    for field in fields {
        let name = field.get(0).and_then(Json::as_str).ok_or_else(|| broken(py))?;
        dict.set_item(name, built(py, field.get(1).ok_or_else(|| broken(py))?, inputs)?)?;
    }
    Ok(dict)
}

/// The call that `inputs` describe: arguments by position, and by name.
pub(crate) fn to_call<'py>(
    py: Python<'py>,
    inputs: &Inputs<PyTorch>,
) -> PyResult<(Bound<'py, PyTuple>, Bound<'py, PyDict>)> {
    let description = match inputs.get(DESCRIPTION) {
        Some(Argument::Str(text)) => serde_json::from_str::<Json>(text).unwrap_or_default(),
        _ => Json::Null,
    };
    let nested = description.get("nested").and_then(Json::as_object);
    let is_inner = |name: &str| nested.is_some_and(|nested| nested.keys().any(|key| is_within(name, key)));
    let kwargs = PyDict::new(py);
    let mut positional = Vec::new();
    for (name, argument) in inputs.sorted() {
        match name {
            None => positional.push(of_argument(py, argument)?),
            Some(name) if name == DESCRIPTION || is_inner(name) => {}
            Some(name) => kwargs.set_item(name, of_argument(py, argument)?)?,
        }
    }
    let Some(nested) = nested else { return Ok((PyTuple::new(py, positional)?, kwargs)) };
    let count = description.get("count").and_then(Json::as_u64).unwrap_or(0);
    let mut rest = positional.into_iter();
    let mut args = Vec::new();
    for at in 0..count {
        match nested.get(&at.to_string()) {
            Some(described) => args.push(built(py, described, inputs)?),
            None => args.extend(rest.next()),
        }
    }
    for (key, described) in nested {
        if let Some(name) = key.strip_prefix('=') {
            kwargs.set_item(name, built(py, described, inputs)?)?;
        }
    }
    Ok((PyTuple::new(py, args)?, kwargs))
}

fn is_within(name: &str, key: &str) -> bool {
    name.strip_prefix(key).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

fn of_argument<'py>(py: Python<'py>, argument: &Argument<PyTorch>) -> PyResult<Bound<'py, PyAny>> {
    Ok(match argument {
        Argument::Tensor(tensor) | Argument::Shared(tensor) => tensor.object(py).clone(),
        Argument::Int(number) => number.into_pyobject(py)?.into_any(),
        Argument::Float(number) => number.into_pyobject(py)?.into_any(),
        Argument::Str(text) => text.into_pyobject(py)?.into_any(),
        Argument::Bool(flag) => PyBool::new(py, *flag).to_owned().into_any(),
        _ => py.None().into_bound(py),
    })
}

fn built<'py>(py: Python<'py>, described: &Json, inputs: &Inputs<PyTorch>) -> PyResult<Bound<'py, PyAny>> {
    let broken = || broken(py);
    Ok(match described {
        Json::Null => py.None().into_bound(py),
        Json::Bool(flag) => PyBool::new(py, *flag).to_owned().into_any(),
        Json::Number(number) => number.as_i64().into_pyobject(py)?.into_any(),
        Json::Object(of) => {
            let Some((kind, inner)) = of.iter().next() else { return Err(broken()) };
            let all = || {
                inner.as_array().into_iter().flatten().map(|item| built(py, item, inputs)).collect::<PyResult<Vec<_>>>()
            };
            match (kind.as_str(), inner) {
                ("tensor", Json::String(place)) => of_argument(py, inputs.get(place).ok_or_else(broken)?)?,
                ("array", inner) => built(py, inner, inputs)?.call_method0("numpy")?,
                ("text", Json::String(text)) => text.into_pyobject(py)?.into_any(),
                ("float", Json::String(bits)) => {
                    let bits = u64::from_str_radix(bits, 16).map_err(|_| broken())?;
                    f64::from_bits(bits).into_pyobject(py)?.into_any()
                }
                ("list", _) => PyList::new(py, all()?)?.into_any(),
                ("tuple", _) => PyTuple::new(py, all()?)?.into_any(),
                ("dict", Json::Array(fields)) => dict_of(py, fields, inputs)?.into_any(),
                ("mapping", Json::Array(of)) => match of.as_slice() {
                    [Json::String(class), Json::Array(fields)] => {
                        remembered(py, class)?.call1((dict_of(py, fields, inputs)?,))?
                    }
                    _ => return Err(broken()),
                },
                ("object", Json::String(description)) => remembered(py, description)?,
                _ => return Err(broken()),
            }
        }
        _ => return Err(broken()),
    })
}
