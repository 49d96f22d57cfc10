//! Digests of texts and byte strings, as ids of their content.

use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyString};
use xxhash_rust::xxh3::xxh3_128;

use crate::errors::invalid;
use crate::tensors::array::{Array, is_array};

/// The 128-bit XXH3 hashes of strings, byte strings or arrays, in hexadecimal.
///
/// Equal items have equal digests, in every process and release. An array counts with its bytes, dtype and shape.
#[pyfunction]
pub(crate) fn digest(items: &Bound<'_, PyAny>) -> PyResult<Vec<String>> {
    items.try_iter()?.map(|item| one(&item?)).collect()
}

fn one(item: &Bound<'_, PyAny>) -> PyResult<String> {
    let py = item.py();
    let hash = if let Ok(text) = item.cast::<PyString>() {
        xxh3_128(text.to_str()?.as_bytes())
    } else if let Ok(bytes) = item.cast::<PyBytes>() {
        xxh3_128(bytes.as_bytes())
    } else if is_array(item)? {
        let array = Array::of(item)?;
        let bytes = array.bytes(py).ok_or_else(|| invalid(py, "an array cannot be read"))?;
        let header = format!("{:?} {:?} ", array.dtype(), array.shape());
        xxh3_128(&[header.as_bytes(), &xxh3_128(bytes).to_le_bytes()].concat())
    } else {
        return Err(invalid(
            py,
            format!("an item is of type {}: pass strings, byte strings or arrays", item.get_type().name()?),
        ));
    };
    Ok(format!("{hash:032x}"))
}
