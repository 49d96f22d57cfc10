//! The parameters and buffers of a module: their fingerprint, and the detection of changes.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};
use tensorcask_cache::layer;
use xxhash_rust::xxh3::{xxh3_64, xxh3_128};

use crate::errors::{CallResult, of_python};
use crate::memory;
use crate::tensor::PyTensor;
use crate::torch::torch;

/// Each call inspects all of up to so many tensors; of more it inspects a few, in turn.
const FEW: usize = 64;

/// The bytes of a small tensor, all of which are inspected.
const SMALL: usize = 256;

/// Ranges of eight bytes that are inspected of a larger tensor.
const RANGES: usize = 8;

/// Numbers the descriptions, so that no sign occurs twice.
static GENERATION: AtomicU64 = AtomicU64::new(1);

/// A parameter, buffer or submodule: an entry of a dict of its module.
#[derive(Debug)]
struct Entry {
    name: String,
    object: Py<PyAny>,
    owner: Py<PyDict>,
    key: Py<PyAny>,
}

/// A tensor among the entries.
#[derive(Debug)]
struct Watched {
    entry: usize,
    /// PyTorch does not count the writes to a tensor that was made in inference mode.
    is_counted: bool,
    /// What [`inspect`] returned.
    inspected: u64,
}

/// The variables of a module.
#[derive(Debug, Default)]
pub(crate) struct Variables {
    /// Lists them: `list[tuple[name, object, owner, key]]`, where `owner[key]` is the object.
    list: Option<Py<PyAny>>,
    entries: Vec<Entry>,
    watched: Vec<Watched>,
    generation: u64,
    /// The next tensor to inspect.
    turn: AtomicUsize,
}

impl Variables {
    /// The variables that `list` lists. It is called again after a change.
    ///
    /// # Errors
    /// Errors of `list`.
    pub(crate) fn of(py: Python<'_>, list: Py<PyAny>) -> PyResult<Self> {
        let mut variables = Self { list: Some(list), ..Self::default() };
        variables.list_again(py)?;
        Ok(variables)
    }

    fn list_again(&mut self, py: Python<'_>) -> PyResult<()> {
        let Some(list) = &self.list else { return Ok(()) };
        let torch = torch(py)?;
        let (mut entries, mut watched) = (Vec::new(), Vec::new());
        for item in list.bind(py).call0()?.try_iter()? {
            let item = item?.cast_into::<PyTuple>()?;
            let object = item.get_item(1)?;
            if object.is_instance(torch.tensor_type.bind(py))? {
                let is_counted = !object.call_method0("is_inference")?.extract::<bool>()?;
                watched.push(Watched { entry: entries.len(), is_counted, inspected: inspect(&object, is_counted)? });
            }
            entries.push(Entry {
                name: item.get_item(0)?.extract()?,
                object: object.unbind(),
                owner: item.get_item(2)?.cast_into::<PyDict>()?.unbind(),
                key: item.get_item(3)?.unbind(),
            });
        }
        self.generation = GENERATION.fetch_add(1, Ordering::Relaxed);
        (self.entries, self.watched) = (entries, watched);
        Ok(())
    }

    fn tensors(&self) -> impl Iterator<Item = &Entry> {
        self.watched.iter().filter_map(|watched| self.entries.get(watched.entry))
    }

    fn difference(&self, py: Python<'_>, samples: usize) -> PyResult<u64> {
        let mut sign = self.generation;
        let mut add = |value: u64| sign = (sign.rotate_left(5) ^ value).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        for entry in &self.entries {
            // A tensor or module that was replaced.
            match entry.owner.bind(py).get_item(&entry.key)? {
                Some(now) if now.is(&entry.object) => {}
                now => add(now.map_or(1, |now| now.as_ptr().addr() as u64)),
            }
        }
        let mut writes = 0_u64;
        for watched in self.watched.iter().filter(|watched| watched.is_counted) {
            if let Some(entry) = self.entries.get(watched.entry) {
                writes = writes.wrapping_add(entry.object.bind(py).getattr(intern!(py, "_version"))?.extract()?);
            }
        }
        add(writes);
        for at in self.in_turn(samples) {
            let Some(watched) = self.watched.get(at) else { continue };
            let Some(entry) = self.entries.get(watched.entry) else { continue };
            let now = inspect(entry.object.bind(py), watched.is_counted)?;
            if now != watched.inspected {
                add(now | 1);
            }
        }
        Ok(sign)
    }

    /// The positions of the tensors to inspect: all of a few; of many, one and one more for every eight samples.
    fn in_turn(&self, samples: usize) -> impl Iterator<Item = usize> + use<> {
        let len = self.watched.len();
        let some = if len <= FEW { len } else { (1 + samples / 8).min(len) };
        let start = self.turn.fetch_add(some, Ordering::Relaxed) % len.max(1);
        (start..len).chain(0..start).take(some)
    }
}

/// A hash of the address, the dtype, whether a gradient is required, and some bytes of a tensor in main memory: all of a
/// small one, and up to 16 KiB of one whose writes are not counted.
fn inspect(object: &Bound<'_, PyAny>, is_counted: bool) -> PyResult<u64> {
    let py = object.py();
    let Ok(tensor) = PyTensor::of(object) else {
        // Such as a tensor on meta, or a quantized or distributed one.
        return Ok(object.as_ptr().addr() as u64);
    };
    let mut sign = xxh3_64(tensor.kind().key_name.as_bytes()) ^ u64::from(tensor.requires_grad());
    let mut add = |value: u64| sign = (sign.rotate_left(5) ^ value).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    for dim in tensor.shape() {
        add(*dim as u64);
    }
    if tensor.device().is_cuda() {
        add(object.call_method0(intern!(py, "data_ptr"))?.extract()?);
        return Ok(sign);
    }
    add(tensor.address() as u64);
    if let Some(bytes) = memory::watched_bytes(&tensor) {
        let all = if is_counted { SMALL } else { 16 << 10 };
        if bytes.len() <= all {
            add(xxh3_64(bytes));
        } else {
            let step = bytes.len() / RANGES;
            (0..RANGES).filter_map(|range| bytes.get(range * step..range * step + 8)).for_each(|range| add(xxh3_64(range)));
        }
    }
    Ok(sign)
}

impl layer::Variables for Variables {
    fn is_empty(&self) -> bool {
        self.watched.is_empty()
    }

    fn check_frozen(&self) -> CallResult<()> {
        Python::attach(|py| {
            let mut trainable = Vec::new();
            for entry in self.tensors() {
                if entry.object.bind(py).getattr(intern!(py, "requires_grad"))?.extract()? {
                    trainable.push(entry.name.clone());
                }
            }
            PyResult::Ok(trainable)
        })
        .map_err(of_python)
        .and_then(|trainable| match trainable.first() {
            None => Ok(()),
            Some(first) => Err(layer::Error::Trainable { first: first.clone(), count: trainable.len() }),
        })
    }

    /// PyTorch counts most writes to a tensor. A replaced tensor or module is another object. Some changes leave neither
    /// sign: running statistics of a batch normalisation, writes through `data`, and of `requires_grad`. They are
    /// detected when a tensor is inspected.
    fn sign(&self, samples: usize) -> u64 {
        if self.list.is_none() {
            return 0;
        }
        // A tensor that cannot be looked at has changed; what is wrong with it is reported when it is read.
        Python::attach(|py| self.difference(py, samples)).unwrap_or_else(|_| GENERATION.fetch_add(1, Ordering::Relaxed))
    }

    fn describe(&mut self) {
        // If they cannot be listed, the former ones are described, and reading them reports the error.
        let listed = Python::attach(|py| self.list_again(py));
        if let Err(error) = listed {
            self.entries.clear();
            self.watched.clear();
            Python::attach(|py| error.write_unraisable(py, None));
        }
    }

    fn fingerprint(&self) -> CallResult<BTreeMap<String, String>> {
        let one = |entry: &Entry| {
            let (host, of) = Python::attach(|py| {
                let mut tensor = PyTensor::of(entry.object.bind(py))?;
                let of = tensor.kind().key_name;
                if of.starts_with('Q') {
                    // Scale and zero point are not part of the bytes.
                    tensor = tensor.method(py, "dequantize")?;
                }
                PyResult::Ok((tensor.host(py)?, of))
            })
            .map_err(of_python)?;
            let bytes = memory::bytes(&host);
            let bytes = bytes.ok_or_else(|| layer::Error::invalid(format!("the variable {:?} cannot be read", entry.name)))?;
            Ok((entry.name.clone(), format!("{of} {:?} {:032x}", host.shape(), xxh3_128(bytes))))
        };
        self.tensors().map(one).collect()
    }

    fn save(&self, _path: &Path) -> CallResult<()> {
        Err(layer::Error::invalid("save the module's state_dict() with torch.save"))
    }

    fn load(&self, _path: &Path) -> CallResult<()> {
        Err(layer::Error::invalid("load the module's weights with load_state_dict()"))
    }
}
