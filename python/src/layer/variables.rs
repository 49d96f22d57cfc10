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
use crate::tensors::memory;
use crate::tensors::tensor::PyTensor;
use crate::tensors::torch::torch;

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

/// A tensor among the entries, as it was when it was described.
#[derive(Debug)]
struct Watched {
    entry: usize,
    /// PyTorch does not count the writes to a tensor that was made in inference mode.
    is_counted: bool,
    /// Bytes of a row-major tensor in main memory; 0 for any other.
    len_bytes: usize,
    seen: Seen,
}

/// What an inspection sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Seen {
    address: usize,
    elements: usize,
    requires_grad: bool,
    /// A hash of some of its bytes.
    bytes: u64,
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
                watched.push(Watched::of(entries.len(), &object, is_counted)?);
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
            let now = watched.look(entry.object.bind(py))?;
            if now != watched.seen {
                add(now.bytes
                    ^ (now.address as u64).rotate_left(17)
                    ^ now.elements as u64
                    ^ u64::from(now.requires_grad)
                    | 1);
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

impl Watched {
    fn of(entry: usize, object: &Bound<'_, PyAny>, is_counted: bool) -> PyResult<Self> {
        let len_bytes = match PyTensor::of(object) {
            Ok(tensor) if tensor.is_row_major() => tensor.len_bytes(),
            // Such as a tensor of a GPU, or a quantized or distributed one.
            _ => 0,
        };
        let seen = Seen { address: 0, elements: 0, requires_grad: false, bytes: 0 };
        let mut watched = Self { entry, is_counted, len_bytes, seen };
        watched.seen.elements = elements(object)?;
        watched.seen = watched.look(object)?;
        Ok(watched)
    }

    /// Looks at the address, and at some bytes: all of a small tensor, and up to 16 KiB of one whose writes are not
    /// counted.
    fn look(&self, object: &Bound<'_, PyAny>) -> PyResult<Seen> {
        let py = object.py();
        // Sparse tensors have no address.
        let address = object.call_method0(intern!(py, "data_ptr")).and_then(|address| address.extract()).unwrap_or(0);
        let requires_grad = object.getattr(intern!(py, "requires_grad"))?.extract()?;
        let elements = elements(object)?;
        let mut bytes = 0;
        if elements == self.seen.elements
            && let Some(all) = memory::watched_bytes(object, address, self.len_bytes)
        {
            let most = if self.is_counted { SMALL } else { 16 << 10 };
            let step = all.len() / RANGES;
            if all.len() <= most {
                bytes = xxh3_64(all);
            } else {
                let ranges = (0..RANGES).filter_map(|range| all.get(range * step..range * step + 8));
                ranges.for_each(|range| {
                    bytes = (bytes.rotate_left(5) ^ xxh3_64(range)).wrapping_mul(0x9E37_79B9_7F4A_7C15)
                });
            }
        }
        Ok(Seen { address, elements, requires_grad, bytes })
    }
}

fn elements(object: &Bound<'_, PyAny>) -> PyResult<usize> {
    object.call_method0(intern!(object.py(), "numel"))?.extract()
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
            let bytes =
                bytes.ok_or_else(|| layer::Error::invalid(format!("the variable {:?} cannot be read", entry.name)))?;
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
