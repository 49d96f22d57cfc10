//! A store as a class of Python.

use std::path::PathBuf;

use parking_lot::Mutex;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList, PyTuple};
use tensorcask::Key;

use crate::errors::{invalid, missing, of_store};
use crate::store::handle::Connection;
use crate::store::keys::{self, Items, KeyBatch};
use crate::store::options::OpenOptions;
use crate::store::reports;
use crate::store::rows::{Layout, Wanted};
use crate::store::values::{Rows, from_object, to_object};
use crate::tensors::array::Format;
use crate::tensors::tensor::Device;

/// A store of rows under keys, in the folder `<folder>/<module_id>`.
///
/// Handles can be shared by threads; the interpreter runs other threads while rows are read and written. A handle is
/// pickled as its folder and options, and opened again where it is unpickled. A child of a fork reads with a handle of
/// its own, and must not write.
#[pyclass(frozen, module = "tensorcask", name = "Store", weakref)]
pub(crate) struct Store {
    connection: Connection,
    format: Format,
    device: Option<Device>,
    layout: Layout,
}

impl Store {
    pub(crate) fn open(
        py: Python<'_>,
        folder: PathBuf,
        module_id: String,
        options: OpenOptions,
        lazily: bool,
    ) -> PyResult<Self> {
        let format = Format::named(py, options.format())?;
        let device = options.device().map(|device| Device::of(device.bind(py))).transpose()?;
        if device.as_ref().is_some_and(|device| *device != Device::Cpu) && format != Format::Torch {
            return Err(invalid(
                py,
                "`device` is given, which only tensors have: open the store with format=\"torch\"",
            ));
        }
        let connection = Connection::open(py, folder, module_id, options, lazily)?;
        Ok(Self { connection, format, device, layout: Layout::default() })
    }

    fn pins(&self) -> bool {
        self.device.as_ref().is_some_and(Device::is_cuda)
    }

    /// Rows on the device that the store was opened with.
    fn deliver<'py>(&self, py: Python<'py>, rows: Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        match &self.device {
            None | Some(Device::Cpu) => Ok(rows),
            Some(device) => py.import("tensorcask._devices")?.call_method1("to_device", (rows, device.object(py)?)),
        }
    }

    /// Which rows were found, in the store's format.
    fn mask<'py>(&self, py: Python<'py>, found: Vec<bool>) -> PyResult<Bound<'py, PyAny>> {
        let mut mask =
            crate::tensors::array::Output::new(py, self.format, tensorcask::Dtype::Bool, &[found.len()], false)?;
        if self.format == Format::Bytes {
            return Ok(PyList::new(py, found)?.into_any());
        }
        let place = mask.bytes_mut().ok_or_else(|| invalid(py, "an array cannot be written to"))?;
        place.iter_mut().zip(found).for_each(|(place, found)| *place = u8::from(found));
        mask.finish(py)
    }
}

#[pymethods]
impl Store {
    /// The folder of the store.
    #[getter(path)]
    fn path_text(&self) -> PathBuf {
        self.connection.path()
    }

    /// The name of the store within its folder.
    #[getter]
    fn module_id(&self) -> &str {
        self.connection.module_id()
    }

    /// ``"r"`` or ``"a"``.
    #[getter]
    fn mode(&self) -> &'static str {
        self.connection.options().mode().name()
    }

    /// ``"torch"``, ``"numpy"`` or ``"bytes"``.
    #[getter]
    fn format(&self) -> &'static str {
        self.format.name()
    }

    /// Whether the store was closed.
    #[getter(closed)]
    fn is_closed(&self) -> bool {
        self.connection.is_closed()
    }

    /// The rows of ``keys``, and which of them exist: ``(rows, found)``.
    ///
    /// ``keys`` is a one-dimensional tensor or array of integers, or a list of integers, strings or byte strings.
    /// ``rows`` is a tensor ``[keys, …]`` of the dtype that was put, in the order of the keys, zero where a key does not
    /// exist. Rows that are trees come back as the tree of such tensors. Rows of several shapes or structures come
    /// back as a list of one value a key, ``None`` where a key does not exist. ``found`` is a bool tensor ``[keys]``.
    ///
    /// Raises ``CorruptError`` if a row is damaged, and ``InvalidError`` for keys of another kind.
    fn get<'py>(&self, py: Python<'py>, keys: &Bound<'py, PyAny>) -> PyResult<(Bound<'py, PyAny>, Bound<'py, PyAny>)> {
        let items = Items::of(keys)?;
        let keys = KeyBatch::of(keys, &items)?;
        let wanted = Wanted { format: self.format, pinned: self.pins(), out: None };
        let batch = self.connection.with_reader(py, |reader| self.layout.read(py, reader, &keys, &wanted))?;
        Ok((self.deliver(py, batch.rows)?, self.mask(py, batch.found)?))
    }

    /// The rows of ``keys``, as ``get`` returns them, all of which have to exist.
    ///
    /// ``out`` is a tensor, or a tree of tensors, of the rows' dtype and shape, which is filled and returned.
    ///
    /// Raises ``KeyMissingError`` (a ``KeyError``), whose ``keys`` lists missing keys; ``MismatchError`` if ``out`` has
    /// another dtype or shape; ``CorruptError`` if a row is damaged.
    #[pyo3(signature = (keys, out=None))]
    fn take<'py>(
        &self,
        py: Python<'py>,
        keys: &Bound<'py, PyAny>,
        out: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let items = Items::of(keys)?;
        let keys = KeyBatch::of(keys, &items)?;
        let wanted = Wanted { format: self.format, pinned: self.pins() && out.is_none(), out };
        let batch = self.connection.with_reader(py, |reader| self.layout.read(py, reader, &keys, &wanted))?;
        if batch.found.iter().any(|found| !found) {
            let (first, count) = keys.chosen(py, |at| batch.found.get(at).is_none_or(|found| !found))?;
            return Err(missing(py, first, count));
        }
        if out.is_some() { Ok(batch.rows) } else { self.deliver(py, batch.rows) }
    }

    /// Puts one row a key. An existing row is replaced.
    ///
    /// ``rows`` is a tensor ``[keys, …]``; or a dict, tuple, dataclass or named tuple of them; or a list of one value a
    /// key, each a tensor of any shape, a plain value, or a tree of them. Rows are copied; they can be read at once, and
    /// a thread writes them. Waits if too many wait to be written.
    ///
    /// Raises ``InvalidError`` if the numbers of keys and rows differ, or a value cannot be stored; ``FullError`` at a
    /// cap; ``ReadOnlyError``; ``ForkedError`` in a child of a fork; ``StoreIOError`` for the first failure of a write.
    fn put(&self, py: Python<'_>, keys: &Bound<'_, PyAny>, rows: &Bound<'_, PyAny>) -> PyResult<()> {
        let items = Items::of(keys)?;
        let keys = KeyBatch::of(keys, &items)?;
        let rows = Rows::of(rows, keys.len())?;
        self.layout.put(rows.leaves().as_deref());
        self.connection.with_writer(py, |store| {
            let put = if let Rows::Array(array) = &rows
                && let (Some(dtype), Some(bytes)) = (array.dtype(), array.bytes(py))
            {
                let shape = array.shape().get(1..).unwrap_or_default();
                py.detach(|| keys.with(|keys| store.put_rows_bytes(keys, dtype, shape, bytes)))
            } else if let Rows::Values(values) = &rows {
                py.detach(|| keys.with(|keys| store.put_batch(keys, values)))
            } else {
                let values = (0..keys.len()).map(|at| rows.row(py, at)).collect::<PyResult<Vec<_>>>()?;
                py.detach(|| keys.with(|keys| store.put_batch(keys, &values)))
            };
            put.map_err(|error| of_store(py, &error))
        })
    }

    /// Whether each of ``keys`` exists: a bool tensor ``[keys]``.
    fn contains<'py>(&self, py: Python<'py>, keys: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        let items = Items::of(keys)?;
        let keys = KeyBatch::of(keys, &items)?;
        let found = self.connection.with_reader(py, |reader| {
            py.detach(|| keys.with(|keys| reader.contains_batch(keys))).map_err(|error| of_store(py, &error))
        })?;
        self.mask(py, found)
    }

    fn __getitem__<'py>(&self, py: Python<'py>, key: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        let of = keys::one(key)?;
        let value = self
            .connection
            .with_reader(py, |reader| py.detach(|| reader.get(&of)).map_err(|error| of_store(py, &error)))?;
        match value {
            Some(value) => self.deliver(py, to_object(py, &value, self.format)?),
            None => Err(missing(py, vec![key.clone().unbind()], 1)),
        }
    }

    fn __setitem__(&self, py: Python<'_>, key: &Bound<'_, PyAny>, value: &Bound<'_, PyAny>) -> PyResult<()> {
        let (key, value) = (keys::one(key)?, from_object(value)?);
        self.layout.put(None);
        self.connection
            .with_writer(py, |store| py.detach(|| store.put(&key, &value)).map_err(|error| of_store(py, &error)))
    }

    fn __delitem__(&self, py: Python<'_>, key: &Bound<'_, PyAny>) -> PyResult<()> {
        let of = keys::one(key)?;
        let existed = self
            .connection
            .with_writer(py, |store| py.detach(|| store.delete(&of)).map_err(|error| of_store(py, &error)))?;
        if existed { Ok(()) } else { Err(missing(py, vec![key.clone().unbind()], 1)) }
    }

    fn __contains__(&self, py: Python<'_>, key: &Bound<'_, PyAny>) -> PyResult<bool> {
        let key = keys::one(key)?;
        self.connection
            .with_reader(py, |reader| py.detach(|| reader.contains(&key)).map_err(|error| of_store(py, &error)))
    }

    fn __len__(&self, py: Python<'_>) -> PyResult<usize> {
        let len = self
            .connection
            .with_reader(py, |reader| py.detach(|| reader.len()).map_err(|error| of_store(py, &error)))?;
        usize::try_from(len).map_err(|_| invalid(py, "the number of keys overflows"))
    }

    /// A store without keys is true as well.
    fn __bool__(&self) -> bool {
        true
    }

    fn __iter__(&self, py: Python<'_>) -> PyResult<KeyIter> {
        self.connection.with_reader(py, |reader| Ok(KeyIter { keys: Mutex::new(reader.keys()) }))
    }

    /// All keys, in no order; or those that begin with ``prefix``, or from ``start`` to before ``stop``, in order.
    #[pyo3(signature = (prefix=None, start=None, stop=None))]
    fn keys<'py>(
        &self,
        py: Python<'py>,
        prefix: Option<&Bound<'py, PyAny>>,
        start: Option<&Bound<'py, PyAny>>,
        stop: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyList>> {
        let prefix = prefix.map(keys::one).transpose()?;
        let (start, stop) = (start.map(keys::one).transpose()?, stop.map(keys::one).transpose()?);
        let all = self.connection.with_reader(py, |reader| {
            let list = || -> tensorcask::Result<Vec<Key>> {
                match (&prefix, &start, &stop) {
                    (None, None, None) => reader.keys().collect(),
                    (Some(prefix), None, None) => reader.prefix(prefix).collect(),
                    (None, Some(start), None) => reader.range::<&Key>(start..).collect(),
                    (None, None, Some(stop)) => reader.range::<&Key>(..stop).collect(),
                    (None, Some(start), Some(stop)) => reader.range::<&Key>(start..stop).collect(),
                    _ => Err(tensorcask::Error::invalid("a prefix and a range were given: give one of them")),
                }
            };
            py.detach(list).map_err(|error| of_store(py, &error))
        })?;
        PyList::new(py, all.iter().map(|key| keys::to_object(py, key.as_ref())).collect::<PyResult<Vec<_>>>()?)
    }

    /// Deletes ``keys``, and returns how many existed.
    fn delete(&self, py: Python<'_>, keys: &Bound<'_, PyAny>) -> PyResult<usize> {
        let items = Items::of(keys)?;
        let keys = KeyBatch::of(keys, &items)?;
        self.connection.with_writer(py, |store| {
            py.detach(|| keys.with(|keys| store.delete_batch(keys))).map_err(|error| of_store(py, &error))
        })
    }

    /// Returns when everything that was put is on disk, with the durability that the store was opened with.
    ///
    /// Raises ``StoreIOError`` for the first failure of a write since the store was opened.
    fn flush(&self, py: Python<'_>) -> PyResult<()> {
        self.connection.with_writer(py, |store| py.detach(|| store.flush()).map_err(|error| of_store(py, &error)))
    }

    /// Makes the commits of other processes visible. Returns whether there were any.
    fn refresh(&self, py: Python<'_>) -> PyResult<bool> {
        self.layout.put(None);
        self.connection.with_reader(py, |reader| py.detach(|| reader.refresh()).map_err(|error| of_store(py, &error)))
    }

    /// Flushes and closes. A closed store cannot be used.
    fn close(&self, py: Python<'_>) -> PyResult<()> {
        self.connection.close(py)
    }

    /// Sizes, counts and the state of the index, as a dict of numbers.
    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let stats = self
            .connection
            .with_reader(py, |reader| py.detach(|| reader.stats()).map_err(|error| of_store(py, &error)))?;
        reports::to_object(py, &stats)
    }

    /// Reads every byte and compares all checksums. Returns a dict: ``clean``, ``rows``, ``files``, and ``damage``, a
    /// list of dicts with ``path``, ``what``, ``rows`` and ``keys``.
    fn verify<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let report = self.connection.with_reader(py, |reader| {
            py.detach(|| reader.verify(&mut |_, _| {})).map_err(|error| of_store(py, &error))
        })?;
        reports::verified(py, &report)
    }

    /// The structures of the rows, each with its number of rows.
    fn schemas<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        let schemas = self
            .connection
            .with_reader(py, |reader| py.detach(|| reader.schemas()).map_err(|error| of_store(py, &error)))?;
        let entries = schemas.iter().map(|used| {
            let entry = PyDict::new(py);
            entry.set_item("schema", used.schema.to_string())?;
            entry.set_item("rows", used.rows)?;
            Ok(entry)
        });
        PyList::new(py, entries.collect::<PyResult<Vec<_>>>()?)
    }

    /// Rewrites segments without rows that were overwritten or deleted, and joins small ones.
    ///
    /// ``live_share`` is the share of live rows up to which a segment is rewritten (default: 0.5). ``sort=True`` sorts
    /// all rows by key. ``dry_run=True`` reports what would be done. Returns the report as a dict.
    #[pyo3(signature = (*, live_share=None, sort=false, dry_run=false))]
    fn compact<'py>(
        &self,
        py: Python<'py>,
        live_share: Option<f64>,
        sort: bool,
        dry_run: bool,
    ) -> PyResult<Bound<'py, PyAny>> {
        let mut options = tensorcask::Compaction::new().dry_run(dry_run);
        if let Some(share) = live_share {
            options = options.live_share(share);
        }
        if sort {
            options = options.sort(tensorcask::Order::Keys);
        }
        let report = self
            .connection
            .with_writer(py, |store| py.detach(|| store.compact(&options)).map_err(|error| of_store(py, &error)))?;
        reports::to_object(py, &report)
    }

    /// Reads the index and up to ``limit_bytes`` of segments into the page cache. Returns the bytes that were read.
    fn preload(&self, py: Python<'_>, limit_bytes: u64) -> PyResult<Py<PyAny>> {
        let report = self.connection.with_reader(py, |reader| {
            py.detach(|| reader.preload(limit_bytes)).map_err(|error| of_store(py, &error))
        })?;
        reports::to_object(py, &report).map(Bound::unbind)
    }

    /// The rows as a stream of Arrow's C interface, which polars, DuckDB, pyarrow and pandas read.
    #[pyo3(signature = (requested_schema=None))]
    fn __arrow_c_stream__<'py>(
        &self,
        py: Python<'py>,
        requested_schema: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let _ = requested_schema;
        self.connection.with_reader(py, |reader| crate::store::arrow::stream(py, reader))
    }

    /// All rows as a table of ``pyarrow``.
    fn to_arrow<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        let pyarrow = slf.py().import("pyarrow").map_err(|error| {
            let ours = pyo3::exceptions::PyImportError::new_err(
                "this needs pyarrow, which could not be imported: install it with `pip install tensorcask[arrow]`",
            );
            ours.set_cause(slf.py(), Some(error));
            ours
        })?;
        pyarrow.call_method1("table", (slf,))
    }

    fn __enter__(slf: Bound<'_, Self>) -> Bound<'_, Self> {
        slf
    }

    #[pyo3(signature = (*_error))]
    fn __exit__(&self, py: Python<'_>, _error: &Bound<'_, PyTuple>) -> PyResult<()> {
        self.close(py)
    }

    fn __reduce__<'py>(&self, py: Python<'py>) -> PyResult<(Bound<'py, PyAny>, Bound<'py, PyTuple>)> {
        // What was put is read where the handle is unpickled.
        self.connection.publish(py)?;
        let reopen = py.import("tensorcask._native")?.getattr("_reopen")?;
        let state = (
            self.connection.folder().as_os_str(),
            self.connection.module_id(),
            self.connection.options().described(py)?,
        )
            .into_pyobject(py)?;
        Ok((reopen, state))
    }

    fn __repr__(&self) -> String {
        format!("<tensorcask.Store {:?}, mode {:?}>", self.connection.path(), self.connection.options().mode().name())
    }
}

/// The keys of a store, one by one.
#[pyclass(frozen, module = "tensorcask")]
pub(crate) struct KeyIter {
    keys: Mutex<tensorcask::KeysIter>,
}

#[pymethods]
impl KeyIter {
    fn __iter__(slf: Bound<'_, Self>) -> Bound<'_, Self> {
        slf
    }

    fn __next__(&self, py: Python<'_>) -> PyResult<Option<Py<PyAny>>> {
        let next = py.detach(|| self.keys.lock().next()).transpose().map_err(|error| of_store(py, &error))?;
        next.map(|key| keys::to_object(py, key.as_ref())).transpose()
    }
}
