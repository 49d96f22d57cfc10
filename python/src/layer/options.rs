//! Options of the caching layer that are given as a dict.

use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyDict};
use tensorcask_cache::layer::{CacheOptions, Inputs};
use tensorcask_cache::{Content, DiskScope, Lists, OnStoreError, Ragged, Rank, Verification, Weights};

use crate::errors::{invalid, of_layer, of_python};
use crate::layer::framework::{PyTorch, Transfer};
use crate::layer::ids;
use crate::layer::inputs::to_call;
use crate::store::options::{self, dtype_of, eviction_of, refuse_unknown, take, take_duration};
use crate::tensors::tensor::Device;

/// The options, and what the handle itself needs of them.
pub(crate) struct Parsed {
    pub options: CacheOptions<PyTorch>,
    pub device: Option<Device>,
    pub pinned: Option<bool>,
}

/// One of several names.
fn one_of<T: Copy>(py: Python<'_>, option: &str, found: &str, known: &[(&str, T)]) -> PyResult<T> {
    known.iter().find(|(name, _)| *name == found).map(|(_, value)| *value).ok_or_else(|| {
        let names: Vec<String> = known.iter().map(|(name, _)| format!("{name:?}")).collect();
        invalid(py, format!("the option {option} is {found:?}: pass {}", names.join(" or ")))
    })
}

/// The options that `taken` names, which are removed from it.
///
/// # Errors
/// `TypeError` for unknown names, `InvalidError` for values that cannot be used.
pub(crate) fn of(taken: &Bound<'_, PyDict>, mut options: CacheOptions<PyTorch>) -> PyResult<Parsed> {
    let py = taken.py();
    macro_rules! set {
        ($($name:ident: $type:ty),*) => {
            $(if let Some(value) = take::<$type>(taken, stringify!($name))? { options = options.$name(value); })*
        };
    }
    set! {
        instance: String, enforce_stateless: bool, check_structure: bool, recompute_damaged: bool,
        allow_grad_inputs: bool, read_only: bool, memory_bytes: usize, disk_bytes: u64, restore_dtype: bool,
        writer_rank: u16
    }
    macro_rules! named {
        ($($name:ident: [$($text:literal => $value:expr),*]),*) => {
            $(if let Some(found) = take::<String>(taken, stringify!($name))? {
                options = options.$name(one_of(py, stringify!($name), &found, &[$(($text, $value)),*])?);
            })*
        };
    }
    named! {
        weights: ["check" => Weights::Check, "ignore" => Weights::Ignore],
        lists: ["batched" => Lists::Batched, "each" => Lists::Each],
        on_store_error: ["warn" => OnStoreError::WarnAndCompute, "raise" => OnStoreError::Fail],
        disk_scope: ["module" => DiskScope::Module, "identity" => DiskScope::Identity]
    }
    if let Some((edge_bytes, stride_bytes)) = take::<(usize, usize)>(taken, "content")? {
        options = options.content(Content::Sampled { edge_bytes, stride_bytes });
    }
    if let Some(ragged) = take::<Bound<'_, PyAny>>(taken, "ragged")? {
        options = options.ragged(ragged_of(&ragged)?);
    }
    if let Some(verify) = take::<Bound<'_, PyAny>>(taken, "verify")? {
        options = options.verify(verification_of(&verify)?);
    }
    if let Some(name) = take::<String>(taken, "eviction")? {
        options = options.eviction(eviction_of(py, &name)?);
    }
    if let Some(dtype) = take::<Bound<'_, PyAny>>(taken, "cache_dtype")? {
        options = options.cache_dtype(dtype_of(&dtype)?);
    }
    if let Some(timeout) = take_duration(taken, "lease_timeout_s")? {
        options = options.lease_timeout(timeout);
    }
    if let Some(ids_from) = take::<Bound<'_, PyAny>>(taken, "ids_from")? {
        options = with_ids_from(options, ids_from.unbind());
    }
    let pinned = take::<bool>(taken, "pinned")?;
    options = options.settings(|_| Transfer { pinned });
    let device = take::<Bound<'_, PyAny>>(taken, "map_location")?.map(|device| Device::of(&device)).transpose()?;
    options = options.map_location(device.clone());
    if let Some(device) = take::<Bound<'_, PyAny>>(taken, "memory_device")? {
        options = options.memory_device(Device::of(&device)?);
    }
    options = match (take::<u16>(taken, "rank")?, take::<u16>(taken, "world_size")?) {
        (Some(rank), Some(world)) => options.rank(Rank::new(rank, world).map_err(|error| of_layer(py, &error))?),
        (None, None) => options,
        _ => return Err(invalid(py, "rank and world_size are given together")),
    };
    let mut failed = None;
    options = options.engine(|engine| match options::engine(taken, engine.clone()) {
        Ok(changed) => changed,
        Err(error) => {
            failed = Some(error);
            engine
        }
    });
    if let Some(error) = failed {
        return Err(error);
    }
    refuse_unknown(taken, "the cache")?;
    Ok(Parsed { options, device, pinned })
}

fn ragged_of(ragged: &Bound<'_, PyAny>) -> PyResult<Ragged> {
    let py = ragged.py();
    if let Ok(name) = ragged.extract::<String>() {
        return one_of(py, "ragged", &name, &[("list", Ragged::List), ("pad", Ragged::Pad(0.0))]);
    }
    match ragged.extract::<f64>() {
        Ok(value) if ragged.cast::<PyBool>().is_err() => Ok(Ragged::Pad(value)),
        _ => Err(PyTypeError::new_err("the option ragged is \"list\", \"pad\", or the number to pad with")),
    }
}

/// A share of the hits, or a dict of `share`, `rtol`, `atol` and `fails`.
fn verification_of(verify: &Bound<'_, PyAny>) -> PyResult<Verification> {
    if let Ok(share) = verify.extract::<f64>() {
        return Ok(Verification::rate(share));
    }
    let given = verify.cast::<PyDict>().map_err(|_| {
        PyTypeError::new_err("the option verify is a share of the hits, or a dict of share, rtol, atol and fails")
    })?;
    let taken = given.copy()?;
    let mut verification = Verification::rate(take(&taken, "share")?.unwrap_or(1.0));
    verification.relative = take(&taken, "rtol")?.unwrap_or(verification.relative);
    verification.absolute = take(&taken, "atol")?.unwrap_or(verification.absolute);
    verification.fails = take(&taken, "fails")?.unwrap_or(verification.fails);
    refuse_unknown(&taken, "verify")?;
    Ok(verification)
}

/// Derives ids by `ids_from(*args, **kwargs)`.
fn with_ids_from(options: CacheOptions<PyTorch>, ids_from: Py<PyAny>) -> CacheOptions<PyTorch> {
    options.ids_from(move |inputs: &Inputs<PyTorch>| {
        Python::attach(|py| {
            let (args, kwargs) = to_call(py, inputs)?;
            ids::of_object(&ids_from.bind(py).call(args, Some(&kwargs))?)
        })
        .map_err(of_python)
    })
}
