//! Values of Python's classes: dataclasses, named tuples, outputs of models. They are stored as a map of one entry, which
//! is named `python:` and the class, so that a row costs nothing more.

use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyString};

use crate::errors::invalid;

/// The start of the name that marks a class.
const MARK: &str = "python:";

/// A value of a class, as its named fields.
pub(crate) struct Encoded<'py> {
    /// The marker; `None` for a dict.
    pub class: Option<String>,
    pub fields: Bound<'py, PyDict>,
}

/// The fields of a dict, or of a value of a class that is known how to take apart.
///
/// # Errors
/// `InvalidError` for any other object.
pub(crate) fn encode<'py>(object: &Bound<'py, PyAny>) -> PyResult<Encoded<'py>> {
    let py = object.py();
    if object.get_type().is(py.get_type::<PyDict>()) {
        let fields = object.cast::<PyDict>()?.clone();
        // A dict that looks like a marked value is marked itself.
        let class = is_marked(&fields)?.then(|| format!("{MARK}dict"));
        return Ok(Encoded { class, fields });
    }
    let encoded = helpers(py)?.call_method1(intern!(py, "encode"), (object,))?;
    if encoded.is_none() {
        return Err(invalid(
            py,
            format!(
                "an object of type {} cannot be stored: return or pass tensors, arrays, plain values, and dicts, lists, \
             tuples, dataclasses or named tuples of them",
                object.get_type().name()?
            ),
        ));
    }
    let (class, fields) = encoded.extract::<(Option<String>, Bound<'py, PyDict>)>()?;
    Ok(Encoded { class: class.map(|class| format!("{MARK}{class}")), fields })
}

/// The value with these fields: of a class if they are marked, else the dict.
///
/// # Errors
/// `MismatchError` if the class is not known to the process: no code is imported because bytes on disk name it.
pub(crate) fn decode(fields: Bound<'_, PyDict>) -> PyResult<Bound<'_, PyAny>> {
    if !is_marked(&fields)? {
        return Ok(fields.into_any());
    }
    let py = fields.py();
    let Some((name, inner)) = fields.iter().next() else { return Ok(fields.into_any()) };
    let name: String = name.extract()?;
    helpers(py)?.call_method1(intern!(py, "decode"), (name.trim_start_matches(MARK), inner))
}

fn is_marked(fields: &Bound<'_, PyDict>) -> PyResult<bool> {
    if fields.len() != 1 {
        return Ok(false);
    }
    let Some((name, _)) = fields.iter().next() else { return Ok(false) };
    Ok(name.cast::<PyString>().is_ok_and(|name| name.to_str().is_ok_and(|name| name.starts_with(MARK))))
}

/// The name of a field.
///
/// # Errors
/// `InvalidError` for keys of dicts that are no strings.
pub(crate) fn field_name(name: &Bound<'_, PyAny>) -> PyResult<String> {
    match name.cast::<PyString>() {
        Ok(name) => Ok(name.to_str()?.to_owned()),
        Err(_) => Err(invalid(name.py(), format!("a dict has the key {}: names are strings", name.repr()?))),
    }
}

fn helpers(py: Python<'_>) -> PyResult<Bound<'_, PyModule>> {
    py.import(intern!(py, "tensorcask._classes"))
}
