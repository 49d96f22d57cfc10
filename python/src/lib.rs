//! The native module of the Python package `tensorcask`: stores, and the caching layer over tensors of PyTorch that
//! Python holds.
//!
//! Nothing is linked against libtorch. Tensors are passed as objects; their addresses are asked for here, while their
//! objects are held. The interpreter is released while rows are read, written, hashed and copied. No lock of the engine
//! or the layer is held by a thread that waits for the interpreter and was given it by another that waits for the lock:
//! every call that may wait releases the interpreter first.

mod classes;
mod digests;
mod errors;
mod layer;
mod store;
mod tensors;

use std::ffi::OsString;
use std::path::PathBuf;

use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::store::class::Store;
use crate::store::options::OpenOptions;

/// Opens the store `<folder>/<module_id>`.
#[pyfunction]
#[pyo3(name = "open", signature = (folder, module_id, **options))]
fn open_store(
    py: Python<'_>,
    folder: PathBuf,
    module_id: String,
    options: Option<&Bound<'_, PyDict>>,
) -> PyResult<Store> {
    let given = options.map_or_else(|| PyDict::new(py), Bound::clone);
    Store::open(py, folder, module_id, OpenOptions::of(&given)?, false)
}

/// A pickled handle of a store, which is opened by its first call.
#[pyfunction]
fn _reopen(py: Python<'_>, folder: PathBuf, module_id: String, options: &Bound<'_, PyDict>) -> PyResult<Store> {
    Store::open(py, folder, module_id, OpenOptions::of(options)?, true)
}

/// Runs the command line tool with these arguments, and returns its exit code.
#[pyfunction]
fn main(py: Python<'_>, arguments: Vec<OsString>) -> u8 {
    py.detach(|| tensorcask_cli::run(arguments))
}

#[pymodule(gil_used = false)]
fn _native(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    module.add_class::<Store>()?;
    module.add_class::<layer::cached::Cached>()?;
    module.add_class::<layer::cached::WhyMiss>()?;
    module.add_class::<layer::inputs::Shared>()?;
    module.add_function(wrap_pyfunction!(open_store, module)?)?;
    module.add_function(wrap_pyfunction!(_reopen, module)?)?;
    module.add_function(wrap_pyfunction!(main, module)?)?;
    module.add_function(wrap_pyfunction!(store::handle::_before_fork, module)?)?;
    module.add_function(wrap_pyfunction!(digests::digest, module)?)?;
    Ok(())
}
