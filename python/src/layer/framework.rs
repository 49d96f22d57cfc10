//! PyTorch, as Python has it, as a library of the caching layer.

use std::cell::Cell;

use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};
use tensorcask::Dtype;
use tensorcask_cache::layer::{self, Adapter, Cached, Framework, View};

use crate::errors::{CallResult, of_python};
use crate::layer::pad;
use crate::layer::variables::Variables;
use crate::tensors::memory;
use crate::tensors::tensor::{Device, PyTensor};
use crate::tensors::torch::torch;

/// PyTorch.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PyTorch;

/// How results are copied to a GPU.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Transfer {
    /// Through page-locked memory: always, never, or if the result goes to a GPU (`None`).
    pub pinned: Option<bool>,
}

thread_local! {
    /// Whether batches are read into page-locked memory by this thread.
    static PINS: Cell<bool> = const { Cell::new(false) };
}

/// Reads batches into page-locked memory while it lives, if `pins`.
pub(crate) struct Pinning(bool);

impl Pinning {
    pub(crate) fn new(pins: bool) -> Self {
        Self(PINS.replace(pins))
    }
}

impl Drop for Pinning {
    fn drop(&mut self) {
        PINS.set(self.0);
    }
}

/// Whether batches are read into page-locked memory by this thread.
fn pins() -> bool {
    PINS.get()
}

/// Calls `f` with the interpreter. What it raises becomes an error of the layer, which is raised again unchanged.
fn attached<T>(f: impl FnOnce(Python<'_>) -> PyResult<T>) -> CallResult<T> {
    Python::attach(|py| f(py).map_err(of_python))
}

fn no_bytes(tensor: &PyTensor) -> layer::Error {
    layer::Error::invalid(format!("the bytes of {tensor:?} were asked for: it has to be a block in main memory"))
}

impl Framework for PyTorch {
    type Tensor = PyTensor;
    type Buffer = PyTensor;
    type Bytes<'a> = &'a [u8];
    type Device = Device;
    type Variables = Variables;
    type Settings = Transfer;

    const HOST: Device = Device::Cpu;

    fn dtype(tensor: &PyTensor) -> CallResult<Option<Dtype>> {
        Ok(tensor.kind().dtype)
    }

    fn key_name(tensor: &PyTensor) -> CallResult<String> {
        Ok(tensor.kind().key_name.to_owned())
    }

    fn shape(tensor: &PyTensor) -> Vec<usize> {
        tensor.shape().to_vec()
    }

    fn batch_len(tensor: &PyTensor) -> Option<usize> {
        tensor.shape().first().copied()
    }

    fn device(tensor: &PyTensor) -> Device {
        tensor.device().clone()
    }

    fn holds(dtype: Dtype) -> bool {
        Python::attach(|py| torch(py).is_ok_and(|torch| torch.has(dtype)))
    }

    fn is_dense(tensor: &PyTensor) -> bool {
        tensor.is_dense()
    }

    fn share(tensor: &PyTensor) -> PyTensor {
        tensor.clone()
    }

    fn own(tensor: &PyTensor) -> CallResult<PyTensor> {
        attached(|py| {
            let mut copied = tensor.object(py).call_method0(intern!(py, "detach"))?;
            if !tensor.is_dense() {
                copied = copied.call_method0(intern!(py, "to_dense"))?;
            }
            PyTensor::own(&copied.call_method0(intern!(py, "clone"))?)
        })
    }

    fn detach(tensor: &PyTensor) -> CallResult<PyTensor> {
        if tensor.requires_grad() { attached(|py| tensor.method(py, "detach")) } else { Ok(tensor.clone()) }
    }

    fn to_device(tensor: &PyTensor, device: Device) -> CallResult<PyTensor> {
        if *tensor.device() == device {
            return Ok(tensor.clone());
        }
        attached(|py| PyTensor::own(&tensor.object(py).call_method1(intern!(py, "to"), (device.object(py)?,))?))
    }

    fn deliver(tensor: &PyTensor, device: Device, settings: &Transfer) -> CallResult<PyTensor> {
        let pins = settings.pinned.unwrap_or_else(|| device.is_cuda());
        if !pins {
            return Self::to_device(tensor, device);
        }
        attached(|py| {
            let mut source = tensor.object(py).clone();
            if *tensor.device() == Device::Cpu && !source.call_method0(intern!(py, "is_pinned"))?.extract::<bool>()? {
                source = source.call_method0(intern!(py, "pin_memory"))?;
            }
            if *tensor.device() != device {
                let options = PyDict::new(py);
                // A copy to main memory has to end before it is read.
                options.set_item(intern!(py, "non_blocking"), device.is_cuda())?;
                source = source.call_method(intern!(py, "to"), (device.object(py)?,), Some(&options))?;
            }
            PyTensor::own(&source)
        })
    }

    fn host(tensor: &PyTensor) -> CallResult<PyTensor> {
        if tensor.is_own() && tensor.is_block() { Ok(tensor.clone()) } else { attached(|py| tensor.host(py)) }
    }

    fn host_of_any_layout(tensor: &PyTensor) -> CallResult<PyTensor> {
        attached(|py| tensor.host_of_any_layout(py))
    }

    fn bytes(host: &PyTensor) -> CallResult<&[u8]> {
        memory::bytes(host).ok_or_else(|| no_bytes(host))
    }

    fn view(host: &PyTensor) -> CallResult<View<&[u8]>> {
        let strides = attached(|py| host.strides(py))?;
        let bytes = memory::strided_bytes(host, &strides).ok_or_else(|| no_bytes(host))?;
        Ok(View { bytes, width: host.kind().width, sizes: host.shape().to_vec(), strides })
    }

    fn buffer(dtype: Dtype, shape: &[usize]) -> CallResult<PyTensor> {
        attached(|py| PyTensor::empty(py, dtype, shape, pins()))
    }

    fn buffer_bytes(buffer: &PyTensor) -> CallResult<&[u8]> {
        Self::bytes(buffer)
    }

    fn buffer_bytes_mut(buffer: &mut PyTensor) -> CallResult<&mut [u8]> {
        let refused = no_bytes(buffer);
        memory::bytes_mut(buffer).ok_or(refused)
    }

    fn finish(buffer: PyTensor) -> CallResult<PyTensor> {
        Ok(buffer)
    }

    fn select(tensor: &PyTensor, positions: &[usize]) -> CallResult<PyTensor> {
        attached(|py| {
            let mut index = PyTensor::empty(py, Dtype::I64, &[positions.len()], false)?;
            if let Some(place) = memory::bytes_mut(&mut index) {
                let numbers = positions.iter().flat_map(|&at| (at as u64).to_le_bytes());
                place.iter_mut().zip(numbers).for_each(|(place, byte)| *place = byte);
            }
            let index = index.object(py).call_method1(intern!(py, "to"), (tensor.device().object(py)?,))?;
            PyTensor::own(&tensor.object(py).get_item(index)?)
        })
    }

    fn row(batch: &PyTensor, at: usize, device: Device) -> CallResult<PyTensor> {
        attached(|py| {
            let row = batch.object(py).get_item(at)?.call_method0(intern!(py, "detach"))?;
            let options = PyDict::new(py);
            options.set_item(intern!(py, "copy"), true)?;
            PyTensor::own(&row.call_method(intern!(py, "to"), (device.object(py)?,), Some(&options))?)
        })
    }

    fn stack(rows: &[PyTensor]) -> CallResult<PyTensor> {
        attached(|py| {
            let rows = PyTuple::new(py, rows.iter().map(|row| row.object(py)))?;
            PyTensor::own(&torch(py)?.module.bind(py).call_method1(intern!(py, "stack"), (rows,))?)
        })
    }

    fn pad(rows: &[PyTensor], value: f64) -> CallResult<PyTensor> {
        pad::pad(rows, value, pins())
    }

    fn difference(a: &PyTensor, b: &PyTensor, relative: f64, absolute: f64) -> CallResult<Option<String>> {
        attached(|py| {
            let compare = py.import(intern!(py, "tensorcask._compare"))?.getattr(intern!(py, "difference"))?;
            compare.call1((a.object(py), b.object(py), relative, absolute))?.extract()
        })
    }

    fn as_real(host: &PyTensor) -> CallResult<Option<PyTensor>> {
        if !matches!(host.kind().name(), "complex32" | "complex128") {
            return Ok(None);
        }
        attached(|py| {
            let module = torch(py)?.module.bind(py);
            let real = module.call_method1(intern!(py, "view_as_real"), (host.object(py),))?;
            PyTensor::own(&real.call_method0(intern!(py, "contiguous"))?).map(Some)
        })
    }

    fn from_real(real: PyTensor) -> CallResult<PyTensor> {
        attached(|py| {
            let mut object = real.object(py).clone();
            // Down-casting may have produced BF16, which has no complex type.
            if real.kind().name() == "bfloat16" {
                object = object.call_method0(intern!(py, "float"))?;
            }
            PyTensor::own(&torch(py)?.module.bind(py).call_method1(intern!(py, "view_as_complex"), (object,))?)
        })
    }

    fn without_gradients<T>(run: impl FnOnce() -> T) -> T {
        let _recording = Recording::set(false);
        run()
    }

    fn as_recorded<T>(records: bool, run: impl FnOnce() -> T) -> T {
        let _recording = Recording::set(records);
        run()
    }

    fn records_gradients() -> bool {
        Python::attach(|py| torch(py).and_then(|torch| torch.records_gradients(py)).unwrap_or(false))
    }

    fn is_recorded(tensor: &PyTensor) -> CallResult<bool> {
        if !tensor.requires_grad() {
            return Ok(false);
        }
        attached(|py| torch(py)?.records_gradients(py))
    }

    fn check_settings(settings: &Transfer) -> CallResult<()> {
        if settings.pinned != Some(true) {
            return Ok(());
        }
        let is_there =
            attached(|py| torch(py)?.module.bind(py).getattr("cuda")?.call_method0("is_available")?.extract::<bool>())?;
        if is_there {
            return Ok(());
        }
        Err(layer::Error::invalid("pinned=True needs CUDA, and there is no CUDA device: leave `pinned` out"))
    }

    fn len_bytes(tensor: &PyTensor) -> usize {
        tensor.len_bytes()
    }
}

impl Adapter for PyTorch {
    type Module = Cached<Self>;
}

tensorcask_cache::conversions!(PyTorch, PyTensor);

/// Whether this thread records gradients, which is restored when it is dropped.
struct Recording(Option<bool>);

impl Recording {
    fn set(records: bool) -> Self {
        let former = Python::attach(|py| {
            let torch = torch(py)?;
            let former = torch.records_gradients(py)?;
            if former != records {
                torch.set_grad_enabled.bind(py).call1((records,))?;
            }
            PyResult::Ok(former)
        });
        Self(former.ok().filter(|former| *former != records))
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        if let Some(former) = self.0 {
            let restored = Python::attach(|py| torch(py)?.set_grad_enabled.bind(py).call1((former,)).map(|_| ()));
            debug_assert!(restored.is_ok(), "torch sets a flag without fail");
        }
    }
}
