//! The handle of a wrapped function or module.

use std::collections::BTreeMap;
use std::path::PathBuf;

use parking_lot::Mutex;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyString, PyTuple};
use tensorcask_cache::layer::{Argument, CacheOptions, Cached as LayerCached, Inputs, Settings};
use tensorcask_cache::{Counts, Place, Verification, WhyMiss as LayerWhyMiss};

use crate::errors::{exception, invalid, of_layer, of_python};
use crate::layer::compute::PyCompute;
use crate::layer::framework::{Pinning, PyTorch};
use crate::layer::ids;
use crate::layer::inputs::of_call;
use crate::layer::options as cache_options;
use crate::layer::outputs::to_object;
use crate::store::options::take;
use crate::tensors::tensor::{Device, PyTensor};
use crate::tensors::torch::torch;

/// A wrapped function, whose outputs are kept. `tensorcask.cache` makes it.
#[pyclass(frozen, module = "tensorcask._native", weakref)]
pub(crate) struct Cached {
    /// `None` once it is closed.
    handle: Mutex<Option<LayerCached<PyTorch>>>,
    process: u32,
    /// The device of results that the options name.
    device: Option<Device>,
    pinned: Option<bool>,
}

impl Cached {
    fn handle(&self, py: Python<'_>) -> PyResult<LayerCached<PyTorch>> {
        if self.process != std::process::id() {
            return Err(exception(
                py,
                "ForkedError",
                "the cache was opened before this process was forked: wrap the module again in the child".to_owned(),
            ));
        }
        let handle = self.handle.lock().clone();
        handle.ok_or_else(|| invalid(py, "the cache is closed: wrap the module again"))
    }

    /// Whether results for a call with these inputs are read into page-locked memory.
    fn pins(&self, device: Option<&Device>) -> bool {
        self.pinned.unwrap_or_else(|| self.device.as_ref().or(device).is_some_and(Device::is_cuda))
    }

    /// Runs `f` with the interpreter released.
    fn released<T: Send>(py: Python<'_>, f: impl FnOnce() -> tensorcask_cache::Result<T> + Send) -> PyResult<T> {
        py.detach(f).map_err(|error| of_layer(py, &error))
    }
}

impl Drop for Cached {
    fn drop(&mut self) {
        if self.process != std::process::id() {
            // The parent's threads and locks are not in this process, so nothing of the handle can be ended.
            std::mem::forget(self.handle.get_mut().take());
        }
    }
}

/// The device of the first tensor with a batch dimension.
fn device_of(inputs: &Inputs<PyTorch>) -> Option<Device> {
    let tensor = |(_, argument): (Option<&str>, &Argument<PyTorch>)| match argument {
        Argument::Tensor(tensor) => Some(tensor.device().clone()),
        _ => None,
    };
    inputs.sorted().into_iter().find_map(tensor)
}

/// The settings that the wrapper describes.
fn settings_of(given: &Bound<'_, PyDict>) -> PyResult<Settings> {
    let taken = given.copy()?;
    Ok(Settings {
        module_id: take(&taken, "module_id")?,
        version: take(&taken, "version")?,
        arguments: take::<BTreeMap<String, String>>(&taken, "arguments")?.unwrap_or_default(),
        weights: take::<BTreeMap<String, String>>(&taken, "weights")?.unwrap_or_default(),
        structure: take(&taken, "structure")?.unwrap_or_default(),
        indistinct: take(&taken, "indistinct")?,
    })
}

/// What a loader returned: a tensor, a tuple of tensors by position, or a dict of tensors by name.
fn loaded(object: &Bound<'_, PyAny>) -> PyResult<Inputs<PyTorch>> {
    let py = object.py();
    let nothing = PyTuple::empty(py);
    let inputs = if let Ok(tuple) = object.cast::<PyTuple>() {
        of_call(tuple, None)?
    } else if let Ok(named) = object.cast::<PyDict>() {
        of_call(&nothing, Some(named))?
    } else {
        of_call(&PyTuple::new(py, [object])?, None)?
    };
    Ok(inputs)
}

#[pymethods]
impl Cached {
    /// Wraps ``compute(args, kwargs, training)``.
    #[new]
    #[pyo3(signature = (compute, *, settings, options, variables=None, folder=None))]
    fn new(
        py: Python<'_>,
        compute: Py<PyAny>,
        settings: &Bound<'_, PyDict>,
        options: &Bound<'_, PyDict>,
        variables: Option<Py<PyAny>>,
        folder: Option<PathBuf>,
    ) -> PyResult<Self> {
        torch(py)?;
        let options = options.copy()?;
        let place = match (take::<String>(&options, "place")?.as_deref(), folder) {
            (None | Some("folder"), Some(folder)) => Place::Folder(folder),
            (Some("memory"), None) => Place::Memory,
            (Some("temporary"), parent) => Place::Temporary(parent),
            (None, None) => Place::Memory,
            (Some(other), folder) => {
                let with = if folder.is_some() { "with" } else { "without" };
                let what = format!(
                    "the place is {other:?}, {with} a folder: pass a folder, or place=\"memory\" or \"temporary\" without one"
                );
                return Err(invalid(py, what));
            }
        };
        let parsed = cache_options::of(&options, CacheOptions::<PyTorch>::new(place))?;
        let compute = PyCompute::new(compute, variables, settings_of(settings)?);
        let wrap = parsed.options;
        let handle = Self::released(py, || wrap.wrap_adapter(compute))?;
        Ok(Self {
            handle: Mutex::new(Some(handle)),
            process: std::process::id(),
            device: parsed.device,
            pinned: parsed.pinned,
        })
    }

    /// The output for a batch, by ids or by content.
    #[pyo3(signature = (args, kwargs=None, ids=None, variant=0, training=false))]
    fn call<'py>(
        &self,
        py: Python<'py>,
        args: &Bound<'py, PyTuple>,
        kwargs: Option<&Bound<'py, PyDict>>,
        ids: Option<&Bound<'py, PyAny>>,
        variant: u32,
        training: bool,
    ) -> PyResult<Bound<'py, PyAny>> {
        let handle = self.handle(py)?;
        let inputs = of_call(args, kwargs)?;
        let ids = ids.map(ids::of_object).transpose()?;
        let pins = self.pins(device_of(&inputs).as_ref());
        let output = Self::released(py, || {
            let _pinning = Pinning::new(pins);
            let mut call = handle.call(inputs).variant(variant).training(training);
            if let Some(ids) = ids {
                call = call.ids(ids);
            }
            call.run()
        })?;
        to_object(py, &output)
    }

    /// The output for ids, whose inputs ``load(positions)`` loads when they are needed.
    #[pyo3(signature = (ids, load, *, tensors=None, kwargs=None, variant=0, device=None))]
    #[expect(clippy::too_many_arguments, reason = "each is an argument of Python's function")]
    fn lazy<'py>(
        &self,
        py: Python<'py>,
        ids: &Bound<'py, PyAny>,
        load: Py<PyAny>,
        tensors: Option<&Bound<'py, PyAny>>,
        kwargs: Option<&Bound<'py, PyDict>>,
        variant: u32,
        device: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let handle = self.handle(py)?;
        let ids = ids::of_object(ids)?;
        let mut inputs = of_call(&PyTuple::empty(py), kwargs)?;
        match tensors {
            None => inputs = inputs.with(Argument::Batched),
            Some(count) if let Ok(count) = count.extract::<usize>() => {
                for _ in 0..count {
                    inputs = inputs.with(Argument::Batched);
                }
            }
            Some(names) => {
                for name in names.try_iter()? {
                    inputs = inputs.named(name?.cast::<PyString>()?.to_str()?, Argument::Batched);
                }
            }
        }
        let device = device.map_or(Ok(Device::Cpu), Device::of)?;
        let pins = self.pins(Some(&device));
        let output = Self::released(py, || {
            let _pinning = Pinning::new(pins);
            let load = |positions: &[usize]| {
                Python::attach(|py| loaded(&load.bind(py).call1((positions.to_vec(),))?)).map_err(of_python)
            };
            handle.call(inputs).ids(ids).variant(variant).run_lazy(device, load)
        })?;
        to_object(py, &output)
    }

    /// Whether each sample is kept.
    #[pyo3(signature = (args, kwargs=None, ids=None, variant=0))]
    fn contains(
        &self,
        py: Python<'_>,
        args: &Bound<'_, PyTuple>,
        kwargs: Option<&Bound<'_, PyDict>>,
        ids: Option<&Bound<'_, PyAny>>,
        variant: u32,
    ) -> PyResult<Vec<bool>> {
        let handle = self.handle(py)?;
        let (inputs, ids) = lookup(args, kwargs, ids)?;
        Self::released(py, || {
            let mut call = handle.call(inputs).variant(variant);
            if let Some(ids) = ids {
                call = call.ids(ids);
            }
            call.contains()
        })
    }

    /// Explains why a sample is missing.
    #[pyo3(signature = (args, kwargs=None, ids=None, variant=0))]
    fn why_miss(
        &self,
        py: Python<'_>,
        args: &Bound<'_, PyTuple>,
        kwargs: Option<&Bound<'_, PyDict>>,
        ids: Option<&Bound<'_, PyAny>>,
        variant: u32,
    ) -> PyResult<WhyMiss> {
        let handle = self.handle(py)?;
        let (inputs, ids) = lookup(args, kwargs, ids)?;
        let why = Self::released(py, || {
            let mut call = handle.call(inputs).variant(variant);
            if let Some(ids) = ids {
                call = call.ids(ids);
            }
            call.why_miss()
        })?;
        Ok(WhyMiss(why))
    }

    /// Counts since the module was wrapped.
    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        described(py, &self.handle(py)?.counts())
    }

    /// Ends an epoch: its counts since the last one, and a line that shows them.
    fn end_epoch<'py>(&self, py: Python<'py>) -> PyResult<(Bound<'py, PyDict>, String)> {
        let counts = self.handle(py)?.end_epoch();
        Ok((described(py, &counts)?, counts.to_string()))
    }

    /// Returns when all outputs computed so far are on disk.
    fn flush(&self, py: Python<'_>) -> PyResult<()> {
        let handle = self.handle(py)?;
        Self::released(py, || handle.flush())
    }

    /// Flushes, and drops the handle.
    fn close(&self, py: Python<'_>) -> PyResult<()> {
        if self.process != std::process::id() {
            // The parent closes it.
            return Ok(());
        }
        let Some(handle) = self.handle.lock().take() else { return Ok(()) };
        Self::released(py, || handle.close())
    }

    /// Makes the commits of other processes visible.
    fn refresh(&self, py: Python<'_>) -> PyResult<()> {
        let handle = self.handle(py)?;
        Self::released(py, || handle.refresh())
    }

    fn __len__(&self, py: Python<'_>) -> PyResult<usize> {
        let handle = self.handle(py)?;
        let len = Self::released(py, || handle.len())?;
        usize::try_from(len).map_err(|_| invalid(py, "the number of samples overflows"))
    }

    fn __bool__(&self) -> bool {
        true
    }

    /// Whether the cache is on.
    #[getter]
    fn get_enabled(&self, py: Python<'_>) -> PyResult<bool> {
        Ok(self.handle(py)?.is_enabled())
    }

    #[setter]
    fn set_enabled(&self, py: Python<'_>, enabled: bool) -> PyResult<()> {
        self.handle(py)?.set_enabled(enabled);
        Ok(())
    }

    /// All warnings so far.
    fn warnings(&self, py: Python<'_>) -> PyResult<Vec<String>> {
        Ok(self.handle(py)?.warnings())
    }

    /// The folder of the outputs of the present weights; ``None`` in memory.
    #[getter]
    fn folder(&self, py: Python<'_>) -> PyResult<Option<PathBuf>> {
        Ok(self.handle(py)?.folder())
    }

    /// The module id.
    #[getter]
    fn module_id(&self, py: Python<'_>) -> PyResult<String> {
        Ok(self.handle(py)?.module_id().to_owned())
    }

    /// The process that opened it.
    #[getter]
    fn process(&self) -> u32 {
        self.process
    }

    /// Whether it was closed.
    #[getter]
    fn closed(&self) -> bool {
        self.handle.lock().is_none()
    }

    /// Reports that weights were written in a way that is not detected.
    fn weights_changed(&self, py: Python<'_>) -> PyResult<()> {
        self.handle(py)?.weights_changed();
        Ok(())
    }

    /// Recomputes a share of the hits of later calls, and compares.
    #[pyo3(signature = (share, rtol=1e-3, atol=1e-5, fails=true))]
    fn set_verification(&self, py: Python<'_>, share: f64, rtol: f64, atol: f64, fails: bool) -> PyResult<()> {
        let verification =
            (share != 0.0).then_some(Verification { rate: share, relative: rtol, absolute: atol, fails });
        self.handle(py)?.set_verification(verification).map_err(|error| of_layer(py, &error))
    }

    /// Rows held on the memory device, and their bytes.
    fn held(&self, py: Python<'_>) -> PyResult<(usize, usize)> {
        let held = self.handle(py)?.held();
        Ok((held.rows, held.bytes))
    }
}

/// The arguments of a lookup. Without tensors, ids are looked up for calls of one tensor.
fn lookup(
    args: &Bound<'_, PyTuple>,
    kwargs: Option<&Bound<'_, PyDict>>,
    ids: Option<&Bound<'_, PyAny>>,
) -> PyResult<(Inputs<PyTorch>, Option<tensorcask_cache::Ids>)> {
    let mut inputs = of_call(args, kwargs)?;
    let ids = ids.map(ids::of_object).transpose()?;
    if ids.is_some() && device_of(&inputs).is_none() {
        // The places of tensors come first.
        inputs = inputs.sorted().into_iter().fold(Inputs::tensors(1), |inputs, (name, argument)| {
            let argument = again(argument);
            match name {
                Some(name) => inputs.named(name, argument),
                None => inputs.with(argument),
            }
        });
    }
    Ok((inputs, ids))
}

/// Another handle of an argument.
fn again(argument: &Argument<PyTorch>) -> Argument<PyTorch> {
    match argument {
        Argument::Tensor(tensor) => Argument::Tensor(PyTensor::clone(tensor)),
        Argument::Shared(tensor) => Argument::Shared(PyTensor::clone(tensor)),
        Argument::Int(number) => Argument::Int(*number),
        Argument::Float(number) => Argument::Float(*number),
        Argument::Str(text) => Argument::Str(text.clone()),
        Argument::Bool(flag) => Argument::Bool(*flag),
        Argument::Batched => Argument::Batched,
        _ => Argument::Null,
    }
}

fn described<'py>(py: Python<'py>, counts: &Counts) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    let numbers = [
        ("hits", counts.hits),
        ("misses", counts.misses),
        ("duplicates", counts.duplicates),
        ("waited", counts.waited),
        ("not_kept", counts.not_kept),
        ("damaged", counts.damaged),
        ("verified", counts.verified),
        ("bypassed", counts.bypassed),
        ("read_bytes", counts.read_bytes),
        ("put_bytes", counts.put_bytes),
    ];
    for (name, number) in numbers {
        dict.set_item(name, number)?;
    }
    dict.set_item("compute_s", counts.compute_s)?;
    dict.set_item("saved_s", counts.saved_s)?;
    dict.set_item("hit_rate", counts.hit_rate())?;
    Ok(dict)
}

/// The explanation of a miss.
#[pyclass(frozen, module = "tensorcask")]
pub(crate) struct WhyMiss(LayerWhyMiss);

#[pymethods]
impl WhyMiss {
    /// Whether the sample is kept after all.
    #[getter]
    fn kept(&self) -> bool {
        self.0.kept
    }

    /// For each other identity that keeps the sample, the parts that differ.
    #[getter]
    fn differences(&self) -> Vec<Vec<String>> {
        self.0.elsewhere.iter().map(|elsewhere| elsewhere.differences.clone()).collect()
    }

    fn __str__(&self) -> String {
        self.0.to_string()
    }

    fn __repr__(&self) -> String {
        format!("<tensorcask.WhyMiss: {}>", self.0)
    }
}
