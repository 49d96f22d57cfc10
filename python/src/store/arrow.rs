//! Rows as a stream of Arrow's [C interface](https://arrow.apache.org/docs/format/CStreamInterface.html).

use arrow::ffi_stream::FFI_ArrowArrayStream;
use pyo3::prelude::*;
use pyo3::types::PyCapsule;
use tensorcask::Reader;
use tensorcask_cli::Batches;

use crate::errors::exception;

/// A capsule with a stream of all rows: a column of keys, and a column for each leaf of the values.
///
/// # Errors
/// `TensorcaskError` if the rows have no common schema.
pub(crate) fn stream<'py>(py: Python<'py>, reader: &Reader) -> PyResult<Bound<'py, PyAny>> {
    let batches = py.detach(|| Batches::new(reader)).map_err(|what| exception(py, "TensorcaskError", what))?;
    let stream = FFI_ArrowArrayStream::new(Box::new(batches));
    Ok(PyCapsule::new_with_value(py, stream, c"arrow_array_stream")?.into_any())
}
