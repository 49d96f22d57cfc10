//! Arrays that rows are read from and written to: tensors of PyTorch, arrays of NumPy, and plain buffers of Python.

use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyByteArray, PyBytes, PyDict, PyMemoryView, PyTuple};
use tensorcask::Dtype;

use crate::errors::invalid;
use crate::tensors::memory;
use crate::tensors::tensor::PyTensor;
use crate::tensors::torch::{imported, torch_if_imported};

/// An array in main memory, in row-major order.
pub(crate) enum Array {
    Tensor(PyTensor),
    Numpy(Numpy),
    /// A copy of any other buffer.
    Buffer {
        bytes: Py<PyBytes>,
        dtype: Dtype,
        shape: Vec<usize>,
    },
}

/// An array of NumPy.
pub(crate) struct Numpy {
    object: Py<PyAny>,
    dtype: Dtype,
    shape: Vec<usize>,
    address: usize,
}

/// The dtypes that have a name in NumPy, or in `ml_dtypes`, which adds the last ones.
const NUMPY_NAMES: [(&str, Dtype); 19] = [
    ("float32", Dtype::F32),
    ("int64", Dtype::I64),
    ("float16", Dtype::F16),
    ("float64", Dtype::F64),
    ("bool", Dtype::Bool),
    ("uint8", Dtype::U8),
    ("int8", Dtype::I8),
    ("int16", Dtype::I16),
    ("int32", Dtype::I32),
    ("uint16", Dtype::U16),
    ("uint32", Dtype::U32),
    ("uint64", Dtype::U64),
    ("complex64", Dtype::C64),
    ("bfloat16", Dtype::BF16),
    ("float8_e5m2", Dtype::F8E5M2),
    ("float8_e4m3fn", Dtype::F8E4M3),
    ("float8_e5m2fnuz", Dtype::F8E5M2Fnuz),
    ("float8_e4m3fnuz", Dtype::F8E4M3Fnuz),
    ("float8_e8m0fnu", Dtype::F8E8M0),
];

/// The dtypes that Python's buffers have a letter for.
const LETTERS: [(&str, Dtype); 11] = [
    ("f", Dtype::F32),
    ("d", Dtype::F64),
    ("e", Dtype::F16),
    ("B", Dtype::U8),
    ("b", Dtype::I8),
    ("h", Dtype::I16),
    ("H", Dtype::U16),
    ("i", Dtype::I32),
    ("I", Dtype::U32),
    ("q", Dtype::I64),
    ("Q", Dtype::U64),
];

/// Whether `object` is a tensor, an array of NumPy, or another buffer of numbers.
pub(crate) fn is_array(object: &Bound<'_, PyAny>) -> PyResult<bool> {
    let py = object.py();
    if let Some(torch) = torch_if_imported(py)?
        && object.is_instance(torch.tensor_type.bind(py))?
    {
        return Ok(true);
    }
    Ok(is_numpy(object)? || object.cast::<PyMemoryView>().is_ok() || is_array_array(object)?)
}

fn is_numpy(object: &Bound<'_, PyAny>) -> PyResult<bool> {
    let of = object.get_type();
    if of.getattr(intern!(object.py(), "__module__"))?.extract::<String>().is_ok_and(|module| module == "numpy") {
        return Ok(of.name()? == "ndarray");
    }
    // A subclass, such as a memory map.
    match imported(object.py(), "numpy")? {
        Some(numpy) if numpy.hasattr("ndarray")? => object.is_instance(&numpy.getattr("ndarray")?),
        _ => Ok(false),
    }
}

fn is_array_array(object: &Bound<'_, PyAny>) -> PyResult<bool> {
    let of = object.get_type();
    Ok(of.name()? == "array"
        && of.getattr(intern!(object.py(), "__module__"))?.extract::<String>().is_ok_and(|module| module == "array"))
}

impl Array {
    /// The array in main memory, in row-major order; copied if it is not there, or has another order.
    ///
    /// # Errors
    /// `InvalidError` for dtypes that cannot be stored.
    pub(crate) fn of(object: &Bound<'_, PyAny>) -> PyResult<Self> {
        let py = object.py();
        if let Some(torch) = torch_if_imported(py)?
            && object.is_instance(torch.tensor_type.bind(py))?
        {
            let tensor = PyTensor::of(object)?.host(py)?;
            if tensor.kind().dtype.is_none() {
                return Err(invalid(
                    py,
                    format!(
                        "a {} tensor cannot be stored: convert it, complex numbers for example with torch.view_as_real",
                        tensor.kind().name()
                    ),
                ));
            }
            return Ok(Self::Tensor(tensor));
        }
        if is_numpy(object)? {
            return Numpy::of(object).map(Self::Numpy);
        }
        let view = PyMemoryView::from(object)?;
        let format: String = view.getattr("format")?.extract()?;
        let dtype = match format.trim_start_matches(['@', '=', '<']) {
            "?" => Dtype::Bool,
            "l" => Dtype::I64,
            "L" => Dtype::U64,
            letter => LETTERS
                .iter()
                .find(|(known, _)| *known == letter)
                .map(|(_, dtype)| *dtype)
                .ok_or_else(|| invalid(py, format!("a buffer has the format {format:?}: pass one of numbers")))?,
        };
        let shape: Vec<usize> = view.getattr("shape")?.extract()?;
        let bytes = view.call_method0("tobytes")?.cast_into::<PyBytes>()?.unbind();
        Ok(Self::Buffer { bytes, dtype, shape })
    }

    pub(crate) fn dtype(&self) -> Option<Dtype> {
        match self {
            Self::Tensor(tensor) => tensor.kind().dtype,
            Self::Numpy(array) => Some(array.dtype),
            Self::Buffer { dtype, .. } => Some(*dtype),
        }
    }

    pub(crate) fn shape(&self) -> &[usize] {
        match self {
            Self::Tensor(tensor) => tensor.shape(),
            Self::Numpy(array) => &array.shape,
            Self::Buffer { shape, .. } => shape,
        }
    }

    pub(crate) fn bytes<'a>(&'a self, py: Python<'_>) -> Option<&'a [u8]> {
        match self {
            Self::Tensor(tensor) => memory::bytes(tensor),
            Self::Numpy(array) => {
                memory::array_bytes(&array.object, array.address, array.dtype.tensor_len_bytes(&array.shape)?)
            }
            Self::Buffer { bytes, .. } => Some(bytes.as_bytes(py)),
        }
    }
}

impl Numpy {
    fn of(object: &Bound<'_, PyAny>) -> PyResult<Self> {
        let py = object.py();
        let dtype = object.getattr(intern!(py, "dtype"))?;
        let name: String = dtype.getattr(intern!(py, "name"))?.extract()?;
        let known = NUMPY_NAMES.iter().find(|(known, _)| *known == name).map(|(_, dtype)| *dtype).ok_or_else(|| {
            invalid(
                py,
                format!("an array of dtype {name} cannot be stored: convert it to a type of numbers that a tensor has"),
            )
        })?;
        let flags = object.getattr(intern!(py, "flags"))?;
        let is_native: bool = dtype.getattr(intern!(py, "isnative"))?.extract()?;
        let is_block = flags.getattr(intern!(py, "c_contiguous"))?.extract::<bool>()?;
        let object = if is_block && is_native {
            object.clone()
        } else {
            let options = PyDict::new(py);
            options.set_item("order", "C")?;
            object.call_method("astype", (dtype.call_method1("newbyteorder", ("=",))?,), Some(&options))?
        };
        Self::described(&object, known)
    }

    fn described(object: &Bound<'_, PyAny>, dtype: Dtype) -> PyResult<Self> {
        let py = object.py();
        let shape = object.getattr(intern!(py, "shape"))?.extract()?;
        let interface = object.getattr(intern!(py, "__array_interface__"))?;
        let address = interface.get_item("data")?.get_item(0)?.extract()?;
        Ok(Self { object: object.clone().unbind(), dtype, shape, address })
    }

    fn empty(py: Python<'_>, dtype: Dtype, shape: &[usize]) -> PyResult<Self> {
        let name = NUMPY_NAMES.iter().find(|(_, known)| *known == dtype).map(|(name, _)| *name);
        let name = name.ok_or_else(|| {
            invalid(py, format!("NumPy has no arrays of {dtype}: open the store with format=\"torch\""))
        })?;
        let of = if name.starts_with("bfloat") || name.starts_with("float8") {
            let ml_dtypes = py.import("ml_dtypes").map_err(|_| {
                invalid(
                    py,
                    format!(
                        "NumPy has no arrays of {dtype}: install ml_dtypes, or open the store with format=\"torch\""
                    ),
                )
            })?;
            ml_dtypes.getattr(name)?
        } else {
            pyo3::types::PyString::new(py, name).into_any()
        };
        let object = py.import("numpy")?.call_method1("empty", (PyTuple::new(py, shape)?, of))?;
        Self::described(&object, dtype)
    }
}

/// The library whose arrays rows are returned as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    Torch,
    Numpy,
    /// Memory views over byte arrays.
    Bytes,
}

impl Format {
    /// The format of this name. Without one: PyTorch or NumPy, the one that the process has imported, or that is
    /// installed.
    pub(crate) fn named(py: Python<'_>, name: Option<&str>) -> PyResult<Self> {
        match name {
            Some("torch") => crate::tensors::torch::torch(py).map(|_| Self::Torch),
            Some("numpy") => py.import("numpy").map(|_| Self::Numpy),
            Some("bytes") => Ok(Self::Bytes),
            Some(other) => Err(invalid(py, format!("the format is {other:?}: pass \"torch\", \"numpy\" or \"bytes\""))),
            None => {
                let all = [("torch", Self::Torch), ("numpy", Self::Numpy)];
                for (name, format) in all {
                    if imported(py, name)?.is_some() {
                        return Ok(format);
                    }
                }
                let find = py.import("importlib.util")?.getattr("find_spec")?;
                for (name, format) in all {
                    // It is an error to look for a module that must not be imported.
                    if find.call1((name,)).is_ok_and(|found| !found.is_none()) {
                        return Ok(format);
                    }
                }
                Ok(Self::Bytes)
            }
        }
    }

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Torch => "torch",
            Self::Numpy => "numpy",
            Self::Bytes => "bytes",
        }
    }
}

/// An array that rows are copied into.
pub(crate) enum Output<'py> {
    Tensor(PyTensor),
    /// A tensor of the caller, and the tensor that is filled if it is not the same.
    Callers(Bound<'py, PyAny>, Option<PyTensor>, PyTensor),
    Numpy(Numpy),
    Bytes(Bound<'py, PyByteArray>, Dtype, Vec<usize>),
}

impl<'py> Output<'py> {
    /// A new array. Its elements are unspecified.
    pub(crate) fn new(py: Python<'py>, format: Format, dtype: Dtype, shape: &[usize], pinned: bool) -> PyResult<Self> {
        Ok(match format {
            Format::Torch => Self::Tensor(PyTensor::empty(py, dtype, shape, pinned)?),
            Format::Numpy => Self::Numpy(Numpy::empty(py, dtype, shape)?),
            Format::Bytes => {
                let len = dtype.tensor_len_bytes(shape).ok_or_else(|| invalid(py, "the size of the rows overflows"))?;
                Self::Bytes(PyByteArray::new_with(py, len, |_| Ok(()))?, dtype, shape.to_vec())
            }
        })
    }

    /// The caller's own array, of this dtype and shape.
    ///
    /// # Errors
    /// `MismatchError` if it has another dtype or shape; `InvalidError` if it cannot be written to.
    pub(crate) fn callers(object: &Bound<'py, PyAny>, dtype: Dtype, shape: &[usize]) -> PyResult<Self> {
        let py = object.py();
        let mismatch = |found: String| {
            let expected = format!("{dtype} {shape:?}");
            crate::errors::exception(py, "MismatchError", format!("`out` is {found}, but the rows are {expected}"))
        };
        if let Some(torch) = torch_if_imported(py)?
            && object.is_instance(torch.tensor_type.bind(py))?
        {
            let tensor = PyTensor::of(object)?;
            if tensor.kind().dtype != Some(dtype) || tensor.shape() != shape {
                return Err(mismatch(format!("{} {:?}", tensor.kind().name(), tensor.shape())));
            }
            if tensor.requires_grad() {
                return Err(invalid(py, "`out` requires a gradient, so it cannot be overwritten: pass out.detach()"));
            }
            let other = if tensor.is_block() {
                None
            } else {
                Some(PyTensor::empty(py, dtype, shape, tensor.device().is_cuda())?)
            };
            return Ok(Self::Callers(object.clone(), other, tensor));
        }
        if is_numpy(object)? {
            let flags = object.getattr("flags")?;
            if !flags.getattr("writeable")?.extract::<bool>()? || !flags.getattr("c_contiguous")?.extract::<bool>()? {
                return Err(invalid(py, "`out` is not a writable array in row-major order: pass numpy.empty(…)"));
            }
            let array = Numpy::of(object)?;
            if array.dtype != dtype || array.shape != shape || !array.object.is(object) {
                return Err(mismatch(format!("{} {:?}", array.dtype, array.shape)));
            }
            return Ok(Self::Numpy(array));
        }
        Err(invalid(py, format!("`out` is of type {}: pass a tensor or an array of NumPy", object.get_type().name()?)))
    }

    /// The bytes to fill.
    pub(crate) fn bytes_mut(&mut self) -> Option<&mut [u8]> {
        match self {
            Self::Tensor(tensor) | Self::Callers(_, Some(tensor), _) => memory::bytes_mut(tensor),
            Self::Callers(_, None, tensor) => memory::caller_bytes_mut(tensor),
            Self::Numpy(array) => {
                let len = array.dtype.tensor_len_bytes(&array.shape)?;
                memory::array_bytes_mut(&mut array.object, array.address, len)
            }
            Self::Bytes(array, ..) => Some(memory::byte_array_mut(array)),
        }
    }

    /// The array, filled.
    pub(crate) fn finish(self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        match self {
            Self::Tensor(tensor) => Ok(tensor.object(py).clone()),
            Self::Callers(object, None, _) => Ok(object),
            Self::Callers(object, Some(tensor), _) => {
                let options = PyDict::new(py);
                options.set_item("non_blocking", true)?;
                object.call_method("copy_", (tensor.object(py),), Some(&options))?;
                Ok(object)
            }
            Self::Numpy(array) => Ok(array.object.bind(py).clone()),
            Self::Bytes(array, dtype, shape) => {
                let view = PyMemoryView::from(array.as_any())?.into_any();
                if shape.contains(&0) {
                    return Ok(view);
                }
                let letter = if dtype == Dtype::Bool {
                    Some("?")
                } else {
                    LETTERS.iter().find(|(_, known)| *known == dtype).map(|(letter, _)| *letter)
                };
                match letter {
                    Some(letter) if shape.len() > 1 => {
                        view.call_method1("cast", ("B",))?.call_method1("cast", (letter, shape))
                    }
                    Some(letter) => view.call_method1("cast", (letter,)),
                    None => Ok(view),
                }
            }
        }
    }
}
