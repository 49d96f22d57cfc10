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

/// Opens the store ``<folder>/<module_id>``.
///
/// ``mode="a"`` reads and writes, and creates the store if it does not exist; each handle writes in a lane of its own, so
/// several processes may write. ``mode="r"`` reads a store that exists, also while others write it. ``format`` is
/// ``"torch"``, ``"numpy"`` or ``"bytes"``: what rows are returned as (default: PyTorch or NumPy, the first that the
/// process has imported, or that is installed). ``device`` is where tensors are returned.
///
/// Options of the engine: ``codec`` ("none", "zstd", "shuffle-zstd", with a level as in "zstd:9"), ``store_as`` (a
/// dtype that wider floats are stored as), ``restore_dtype``, ``durability`` ("buffered", "data", "all"), ``lane``,
/// ``recovery`` ("quiet", "strict"), ``verify_checksums`` ("first", "always", "never"), ``create``, ``max_disk_bytes``,
/// ``max_rows``, ``max_age_s``, ``eviction`` ("oldest", "coldest", "stop"), ``segment_bytes``, ``segment_rows``,
/// ``memtable_keys``, ``buffer_bytes``, ``value_cache_bytes``, ``value_cache_policy`` ("lru", "stop"),
/// ``compaction_live_share``, ``compaction_bytes_per_s``, ``refresh_interval_s``, ``flush_interval_s``, ``read_threads``,
/// ``max_value_bytes``, ``allow_network``, ``group_writable``.
///
/// Raises ``StoreIOError`` (an ``OSError``), ``LockedError`` if the lane has a writer, ``VersionError`` if a newer
/// release wrote the store, ``CorruptError`` with ``recovery="strict"``, ``TypeError`` for unknown options. Warns with
/// ``TensorcaskWarning`` if files were damaged or missing.
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
