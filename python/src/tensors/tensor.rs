//! A tensor of PyTorch: the object, and what it says of its memory.

use std::fmt;
use std::sync::Arc;

use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{IntoPyDict, PyString, PyTuple};
use tensorcask::Dtype;

use crate::errors::invalid;
use crate::tensors::torch::{Kind, Torch, torch};

/// The device of a tensor.
#[derive(Clone)]
pub(crate) enum Device {
    /// Main memory.
    Cpu,
    /// A `torch.device`, and its name.
    Other(Arc<(Py<PyAny>, String)>),
}

/// A tensor. Handles are cheap to clone, without the interpreter.
#[derive(Clone)]
pub(crate) struct PyTensor(Arc<Described>);

struct Described {
    object: Py<PyAny>,
    kind: &'static Kind,
    shape: Vec<usize>,
    device: Device,
    /// Of the first element, in main memory; 0 otherwise.
    address: usize,
    layout: Layout,
    requires_grad: bool,
    /// Whether this crate made the object, so that nobody can give it other memory.
    is_own: bool,
}

/// How the elements lie in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Layout {
    /// In row-major order, one after the other.
    Contiguous,
    /// With strides, or with a conjugation or negation that is pending.
    Strided,
    /// Sparse, or in a layout of a library.
    Other,
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl PartialEq for Device {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Cpu, Self::Cpu) => true,
            _ => self.name() == other.name(),
        }
    }
}

impl fmt::Debug for PyTensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a {} tensor of shape {:?} on {}", self.kind().key_name, self.shape(), self.device().name())
    }
}

impl Device {
    /// The device that `object` names: a `torch.device`, a string, or the number of a GPU.
    pub(crate) fn of(object: &Bound<'_, PyAny>) -> PyResult<Self> {
        let torch = torch(object.py())?;
        let device = torch.module.bind(object.py()).getattr("device")?.call1((object,))?;
        if device.getattr("type")?.extract::<String>()? == "cuda" && device.getattr("index")?.is_none() {
            // Tensors report the number of their GPU, and the two have to compare equal.
            let cuda = torch.module.bind(object.py()).getattr("cuda")?;
            if cuda.call_method0("is_available")?.extract()? {
                let index = cuda.call_method0("current_device")?;
                return Self::from_torch(&torch.module.bind(object.py()).getattr("device")?.call1(("cuda", index))?);
            }
        }
        Self::from_torch(&device)
    }

    fn from_torch(device: &Bound<'_, PyAny>) -> PyResult<Self> {
        let name: String = device.str()?.extract()?;
        Ok(if name == "cpu" { Self::Cpu } else { Self::Other(Arc::new((device.clone().unbind(), name))) })
    }

    pub(crate) fn name(&self) -> &str {
        match self {
            Self::Cpu => "cpu",
            Self::Other(device) => &device.1,
        }
    }

    pub(crate) fn is_cuda(&self) -> bool {
        self.name().starts_with("cuda")
    }

    /// The `torch.device`.
    pub(crate) fn object<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        match self {
            Self::Cpu => torch(py)?.module.bind(py).getattr("device")?.call1(("cpu",)),
            Self::Other(device) => Ok(device.0.bind(py).clone()),
        }
    }
}

impl PyTensor {
    /// Describes a tensor.
    ///
    /// # Errors
    /// `InvalidError` for tensors without memory of their own: meta, fake, nested and wrapped ones.
    pub(crate) fn of(object: &Bound<'_, PyAny>) -> PyResult<Self> {
        Self::described(object, false)
    }

    /// Describes a tensor that this crate made.
    pub(crate) fn own(object: &Bound<'_, PyAny>) -> PyResult<Self> {
        Self::described(object, true)
    }

    fn described<'py>(object: &Bound<'py, PyAny>, is_own: bool) -> PyResult<Self> {
        let py = object.py();
        let torch = torch(py)?;
        if !is_own {
            refuse_without_memory(object, torch)?;
        }
        let get = |name: &Bound<'py, PyString>| object.getattr(name);
        let dtype = get(intern!(py, "dtype"))?;
        let kind = torch.kind(&dtype).ok_or_else(|| {
            invalid(py, format!("a tensor has the dtype {dtype}, which is not known: convert it to another dtype"))
        })?;
        let shape = dims(&get(intern!(py, "shape"))?)?;
        let device = if get(intern!(py, "is_cpu"))?.extract()? {
            Device::Cpu
        } else {
            Device::from_torch(&get(intern!(py, "device"))?)?
        };
        if device.name() == "meta" {
            return Err(invalid(
                py,
                "a tensor is on the device meta, which has no elements: move the module and its \
                                    inputs to a device with memory"
                    .to_owned(),
            ));
        }
        let flag = |name: &Bound<'py, PyString>| object.call_method0(name)?.extract::<bool>();
        let layout = if !get(intern!(py, "layout"))?.is(&torch.strided) {
            Layout::Other
        } else if flag(intern!(py, "is_contiguous"))?
            && !flag(intern!(py, "is_neg"))?
            && !(kind.key_name.starts_with("Complex") && flag(intern!(py, "is_conj"))?)
        {
            Layout::Contiguous
        } else {
            Layout::Strided
        };
        let requires_grad = get(intern!(py, "requires_grad"))?.extract()?;
        let address = if matches!(device, Device::Cpu) && layout != Layout::Other {
            object.call_method0(intern!(py, "data_ptr"))?.extract()?
        } else {
            0
        };
        if !is_own && device == Device::Cpu && layout != Layout::Other {
            check_storage(object, &shape, layout, kind.width)?;
        }
        let object = object.clone().unbind();
        Ok(Self(Arc::new(Described { object, kind, shape, device, address, layout, requires_grad, is_own })))
    }

    pub(crate) fn kind(&self) -> &'static Kind {
        self.0.kind
    }

    pub(crate) fn shape(&self) -> &[usize] {
        &self.0.shape
    }

    pub(crate) fn device(&self) -> &Device {
        &self.0.device
    }

    pub(crate) fn requires_grad(&self) -> bool {
        self.0.requires_grad
    }

    pub(crate) fn is_dense(&self) -> bool {
        self.0.layout != Layout::Other
    }

    /// Whether it is a row-major block in main memory that no gradient goes through.
    pub(crate) fn is_block(&self) -> bool {
        self.is_row_major() && !self.0.requires_grad
    }

    /// Whether it is a row-major block in main memory.
    pub(crate) fn is_row_major(&self) -> bool {
        self.0.device == Device::Cpu && self.0.layout == Layout::Contiguous
    }

    pub(crate) fn is_own(&self) -> bool {
        self.0.is_own
    }

    pub(crate) fn address(&self) -> usize {
        self.0.address
    }

    pub(crate) fn elements(&self) -> usize {
        self.shape().iter().product()
    }

    pub(crate) fn len_bytes(&self) -> usize {
        self.elements() * self.kind().width
    }

    pub(crate) fn object<'a, 'py>(&'a self, py: Python<'py>) -> &'a Bound<'py, PyAny> {
        self.0.object.bind(py)
    }

    /// Calls a method that returns a tensor, which is then this crate's own.
    pub(crate) fn method(&self, py: Python<'_>, name: &str) -> PyResult<Self> {
        Self::own(&self.object(py).call_method0(name)?)
    }

    /// The strides in elements.
    pub(crate) fn strides(&self, py: Python<'_>) -> PyResult<Vec<usize>> {
        dims(&self.object(py).call_method0(intern!(py, "stride"))?)
    }

    /// The tensor in main memory, detached, dense and with its own handle on the memory: what is assigned to `data` of
    /// the caller's tensor meanwhile changes nothing. The order of elements stays. Waits for the device.
    pub(crate) fn host_of_any_layout(&self, py: Python<'_>) -> PyResult<Self> {
        if self.is_own() && self.is_block() {
            return Ok(self.clone());
        }
        if matches!(self.kind().name(), "qint8" | "quint8" | "qint32" | "quint4x2") {
            return Err(invalid(
                py,
                format!("the bytes of a {} tensor do not tell its scale: pass tensor.dequantize()", self.kind().name()),
            ));
        }
        let mut host = self.object(py).call_method0(intern!(py, "detach"))?;
        if !self.is_dense() {
            host = host.call_method0(intern!(py, "to_dense"))?;
        }
        if *self.device() != Device::Cpu {
            host = host.call_method0(intern!(py, "cpu"))?;
        }
        // They are pending until then, and not in the bytes.
        host = host.call_method0(intern!(py, "resolve_conj"))?.call_method0(intern!(py, "resolve_neg"))?;
        Self::own(&host)
    }

    /// [`PyTensor::host_of_any_layout`], in row-major order.
    pub(crate) fn host(&self, py: Python<'_>) -> PyResult<Self> {
        let host = self.host_of_any_layout(py)?;
        if host.is_block() { Ok(host) } else { host.method(py, "contiguous") }
    }

    /// A new tensor in main memory, whose elements are unspecified.
    pub(crate) fn empty(py: Python<'_>, dtype: Dtype, shape: &[usize], pinned: bool) -> PyResult<Self> {
        let torch = torch(py)?;
        let of = torch.dtype(py, dtype).ok_or_else(|| {
            invalid(
                py,
                format!("a {dtype} tensor is kept, which this release of PyTorch does not have: update PyTorch"),
            )
        })?;
        let options = [(intern!(py, "dtype"), of)].into_py_dict(py)?;
        options.set_item(intern!(py, "device"), intern!(py, "cpu"))?;
        if pinned {
            options.set_item(intern!(py, "pin_memory"), true)?;
        }
        let shape = PyTuple::new(py, shape)?;
        Self::own(&torch.empty.bind(py).call((shape,), Some(&options))?)
    }
}

fn dims(sizes: &Bound<'_, PyAny>) -> PyResult<Vec<usize>> {
    sizes.cast::<PyTuple>()?.iter_borrowed().map(|dim| dim.extract()).collect()
}

/// Refuses a tensor whose storage was made smaller than its elements need, as by `resize_` of the storage.
fn check_storage(object: &Bound<'_, PyAny>, shape: &[usize], layout: Layout, width: usize) -> PyResult<()> {
    let py = object.py();
    let last = if shape.contains(&0) {
        return Ok(());
    } else if layout == Layout::Contiguous {
        shape.iter().product::<usize>() - 1
    } else {
        let strides = dims(&object.call_method0(intern!(py, "stride"))?)?;
        shape.iter().zip(strides).map(|(dim, stride)| (dim - 1).saturating_mul(stride)).fold(0, usize::saturating_add)
    };
    let offset: usize = object.call_method0(intern!(py, "storage_offset"))?.extract()?;
    let storage = object.call_method0(intern!(py, "untyped_storage"))?;
    let held: usize = storage.call_method0(intern!(py, "nbytes"))?.extract()?;
    let needed = last.saturating_add(offset).saturating_add(1).saturating_mul(width);
    if needed <= held {
        return Ok(());
    }
    Err(invalid(
        py,
        format!(
            "the storage of a tensor of shape {shape:?} has {held} bytes, but its elements need {needed}: it was resized \
             after the tensor was made; pass a tensor that has its memory"
        ),
    ))
}

/// Refuses subclasses whose operations are redefined and that may have no memory: fake, functional, distributed tensors.
fn refuse_without_memory(object: &Bound<'_, PyAny>, torch: &Torch) -> PyResult<()> {
    let py = object.py();
    let of = object.get_type();
    if !of.is(&torch.tensor_type) && !of.is(&torch.parameter_type) {
        let dispatch = intern!(py, "__torch_dispatch__");
        let is_plain = of.getattr(dispatch)?.is(&torch.tensor_type.bind(py).getattr(dispatch)?);
        if !is_plain {
            return Err(invalid(
                py,
                format!(
                    "a {} has no elements in memory of its own: pass a plain torch.Tensor, outside of tracing and export",
                    of.name()?
                ),
            ));
        }
    }
    if object.getattr(intern!(py, "is_nested"))?.extract()? {
        return Err(invalid(
            py,
            "a nested tensor has rows of different shapes: pass its rows as a list, or pad them".to_owned(),
        ));
    }
    Ok(())
}
