//! The parts of PyTorch that this crate calls. They are looked up once, when a tensor is first met; nothing is linked.

use pyo3::exceptions::PyImportError;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyDict, PyType};
use tensorcask::Dtype;
use tensorcask_cache::layer::key_name;

/// An element type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Kind {
    /// Its attribute of the module `torch`.
    name: &'static str,
    /// Its name in keys of the caching layer.
    pub key_name: &'static str,
    /// The dtype that it is stored as; `None` if it cannot be stored.
    pub dtype: Option<Dtype>,
    /// Bytes per element.
    pub width: usize,
}

const fn stored(name: &'static str, dtype: Dtype, width: usize) -> Kind {
    Kind { name, key_name: key_name(dtype), dtype: Some(dtype), width }
}

const fn not_stored(name: &'static str, key_name: &'static str, width: usize) -> Kind {
    Kind { name, key_name, dtype: None, width }
}

/// All element types. Older releases of PyTorch lack some.
static KINDS: [Kind; 26] = [
    stored("float32", Dtype::F32, 4),
    stored("int64", Dtype::I64, 8),
    stored("float16", Dtype::F16, 2),
    stored("bfloat16", Dtype::BF16, 2),
    stored("float64", Dtype::F64, 8),
    stored("bool", Dtype::Bool, 1),
    stored("uint8", Dtype::U8, 1),
    stored("int8", Dtype::I8, 1),
    stored("int16", Dtype::I16, 2),
    stored("int32", Dtype::I32, 4),
    stored("uint16", Dtype::U16, 2),
    stored("uint32", Dtype::U32, 4),
    stored("uint64", Dtype::U64, 8),
    stored("complex64", Dtype::C64, 8),
    stored("float8_e5m2", Dtype::F8E5M2, 1),
    stored("float8_e4m3fn", Dtype::F8E4M3, 1),
    stored("float8_e5m2fnuz", Dtype::F8E5M2Fnuz, 1),
    stored("float8_e4m3fnuz", Dtype::F8E4M3Fnuz, 1),
    stored("float8_e8m0fnu", Dtype::F8E8M0, 1),
    not_stored("complex32", "ComplexHalf", 4),
    not_stored("complex128", "ComplexDouble", 16),
    not_stored("qint8", "QInt8", 1),
    not_stored("quint8", "QUInt8", 1),
    not_stored("qint32", "QInt32", 4),
    not_stored("quint4x2", "QUInt4x2", 1),
    not_stored("float4_e2m1fn_x2", "Float4e2m1fnX2", 1),
];

/// Objects of the module `torch`.
pub(crate) struct Torch {
    pub module: Py<PyModule>,
    pub tensor_type: Py<PyType>,
    pub parameter_type: Py<PyAny>,
    pub empty: Py<PyAny>,
    pub set_grad_enabled: Py<PyAny>,
    pub is_grad_enabled: Py<PyAny>,
    pub strided: Py<PyAny>,
    dtypes: Vec<(Py<PyAny>, &'static Kind)>,
}

static TORCH: PyOnceLock<Torch> = PyOnceLock::new();

/// PyTorch, which is imported if it was not yet.
///
/// # Errors
/// `ImportError`, which says what to install.
pub(crate) fn torch(py: Python<'_>) -> PyResult<&'static Torch> {
    if let Some(torch) = TORCH.get(py) {
        return Ok(torch);
    }
    let module = py.import("torch").map_err(|error| {
        let what = "this needs PyTorch, which could not be imported: install it with `pip install tensorcask[torch]`";
        let ours = PyImportError::new_err(what);
        ours.set_cause(py, Some(error));
        ours
    })?;
    let looked_up = Torch::of(&module)?;
    Ok(TORCH.get_or_init(py, || looked_up))
}

/// PyTorch, if the process has imported it. Objects of other libraries are then told apart without importing it.
pub(crate) fn torch_if_imported(py: Python<'_>) -> PyResult<Option<&'static Torch>> {
    if let Some(torch) = TORCH.get(py) {
        return Ok(Some(torch));
    }
    // While `torch` is being imported, its module is there but not whole.
    match imported(py, "torch")? {
        Some(module) if module.hasattr("float32")? => torch(py).map(Some),
        _ => Ok(None),
    }
}

/// A module that the process has imported. Nothing is imported.
pub(crate) fn imported<'py>(py: Python<'py>, name: &str) -> PyResult<Option<Bound<'py, PyAny>>> {
    let modules = py.import(intern!(py, "sys"))?.getattr(intern!(py, "modules"))?;
    // A module that must not be imported is `None` there.
    Ok(modules.cast::<PyDict>()?.get_item(name)?.filter(|module| !module.is_none()))
}

impl Torch {
    fn of(module: &Bound<'_, PyModule>) -> PyResult<Self> {
        let get = |name: &str| module.getattr(name).map(Bound::unbind);
        let mut dtypes = Vec::with_capacity(KINDS.len());
        for kind in &KINDS {
            if let Ok(dtype) = module.getattr(kind.name) {
                dtypes.push((dtype.unbind(), kind));
            }
        }
        Ok(Self {
            tensor_type: module.getattr("Tensor")?.cast_into::<PyType>()?.unbind(),
            parameter_type: module.getattr("nn")?.getattr("Parameter")?.unbind(),
            empty: get("empty")?,
            set_grad_enabled: module.getattr("_C")?.getattr("_set_grad_enabled")?.unbind(),
            is_grad_enabled: get("is_grad_enabled")?,
            strided: get("strided")?,
            dtypes,
            module: module.clone().unbind(),
        })
    }

    /// The element type of a `torch.dtype`; `None` if it is not known.
    pub(crate) fn kind(&self, dtype: &Bound<'_, PyAny>) -> Option<&'static Kind> {
        self.dtypes.iter().find(|(known, _)| known.is(dtype)).map(|(_, kind)| *kind)
    }

    /// The `torch.dtype`; `None` if this release of PyTorch has none.
    pub(crate) fn dtype<'py>(&self, py: Python<'py>, dtype: Dtype) -> Option<&Bound<'py, PyAny>> {
        self.dtypes.iter().find(|(_, kind)| kind.dtype == Some(dtype)).map(|(known, _)| known.bind(py))
    }

    /// Whether the process's PyTorch has tensors of this dtype.
    pub(crate) fn has(&self, dtype: Dtype) -> bool {
        self.dtypes.iter().any(|(_, kind)| kind.dtype == Some(dtype))
    }

    /// Whether operations in this thread are recorded for a backward pass.
    pub(crate) fn records_gradients(&self, py: Python<'_>) -> PyResult<bool> {
        self.is_grad_enabled.bind(py).call0()?.extract()
    }
}

impl Kind {
    /// The name of the `torch.dtype`.
    pub(crate) const fn name(&self) -> &'static str {
        self.name
    }
}
