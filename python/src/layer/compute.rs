//! A function of Python as a computation of the caching layer.

use pyo3::prelude::*;
use tensorcask_cache::layer::{Compute, Inputs, Output, Settings};

use crate::errors::{CallResult, of_python};
use crate::layer::framework::PyTorch;
use crate::layer::inputs::to_call;
use crate::layer::outputs::of_object;
use crate::layer::variables::Variables;

/// A function of Python: `compute(args, kwargs, training)`.
pub(crate) struct PyCompute {
    compute: Py<PyAny>,
    /// Lists the variables; see [`Variables::of`].
    variables: Option<Py<PyAny>>,
    settings: Settings,
}

impl PyCompute {
    pub(crate) const fn new(compute: Py<PyAny>, variables: Option<Py<PyAny>>, settings: Settings) -> Self {
        Self { compute, variables, settings }
    }

    fn run(&self, inputs: &Inputs<PyTorch>, training: bool) -> CallResult<Output<PyTorch>> {
        Python::attach(|py| {
            let (args, kwargs) = to_call(py, inputs)?;
            of_object(&self.compute.bind(py).call1((args, kwargs, training))?)
        })
        .map_err(of_python)
    }
}

impl Compute<PyTorch> for PyCompute {
    fn compute(&self, inputs: &Inputs<PyTorch>) -> CallResult<Output<PyTorch>> {
        self.run(inputs, false)
    }

    fn compute_training(&self, inputs: &Inputs<PyTorch>) -> CallResult<Output<PyTorch>> {
        self.run(inputs, true)
    }

    fn variables(&self) -> CallResult<Variables> {
        let Some(list) = &self.variables else { return Ok(Variables::default()) };
        Python::attach(|py| Variables::of(py, list.clone_ref(py))).map_err(of_python)
    }

    fn settings(&self) -> Settings {
        self.settings.clone()
    }
}
