//! Reports of the engine as dicts.

use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};
use serde_json::Value;
use tensorcask::VerifyReport;

use crate::errors::invalid;
use crate::store::keys;

/// A report as a dict of plain values.
pub(crate) fn to_object<'py>(py: Python<'py>, report: &impl serde::Serialize) -> PyResult<Bound<'py, PyAny>> {
    let value =
        serde_json::to_value(report).map_err(|error| invalid(py, format!("a report cannot be shown: {error}")))?;
    plain(py, &value)
}

fn plain<'py>(py: Python<'py>, value: &Value) -> PyResult<Bound<'py, PyAny>> {
    Ok(match value {
        Value::Null => py.None().into_bound(py),
        Value::Bool(flag) => pyo3::types::PyBool::new(py, *flag).to_owned().into_any(),
        Value::Number(number) => match (number.as_u64(), number.as_i64()) {
            (Some(number), _) => number.into_pyobject(py)?.into_any(),
            (None, Some(number)) => number.into_pyobject(py)?.into_any(),
            _ => number.as_f64().into_pyobject(py)?,
        },
        Value::String(text) => text.into_pyobject(py)?.into_any(),
        Value::Array(items) => {
            PyList::new(py, items.iter().map(|item| plain(py, item)).collect::<PyResult<Vec<_>>>()?)?.into_any()
        }
        Value::Object(fields) => {
            let dict = PyDict::new(py);
            for (name, item) in fields {
                dict.set_item(name, plain(py, item)?)?;
            }
            dict.into_any()
        }
    })
}

/// The result of a verification.
pub(crate) fn verified<'py>(py: Python<'py>, report: &VerifyReport) -> PyResult<Bound<'py, PyAny>> {
    let damage = report.damage.iter().map(|damage| {
        let entry = PyDict::new(py);
        entry.set_item("path", damage.path.as_os_str())?;
        entry.set_item("what", &damage.what)?;
        entry.set_item("rows", damage.rows)?;
        let keys = damage.keys.iter().map(|key| keys::to_object(py, key.as_ref())).collect::<PyResult<Vec<_>>>()?;
        entry.set_item("keys", keys)?;
        Ok(entry)
    });
    let result = PyDict::new(py);
    result.set_item("clean", report.is_clean())?;
    result.set_item("rows", report.rows)?;
    result.set_item("files", report.files)?;
    result.set_item("damage", PyList::new(py, damage.collect::<PyResult<Vec<_>>>()?)?)?;
    Ok(result.into_any())
}
