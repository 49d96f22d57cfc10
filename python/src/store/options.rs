//! Options that are given as keyword arguments.

use std::time::Duration;

use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyString};
use tensorcask::{Codec, Dtype, Durability, Eviction, Lane, Options, Recovery, ValueCachePolicy};

use crate::errors::invalid;
use crate::tensors::torch::torch_if_imported;

/// How a store is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// For reading; the store exists.
    Read,
    /// For reading and writing; the store is created if it does not exist.
    Append,
}

impl Mode {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Read => "r",
            Self::Append => "a",
        }
    }
}

/// The options of a store.
pub(crate) struct OpenOptions {
    mode: Mode,
    engine: Options,
    /// As they were given, for pickling.
    given: Py<PyDict>,
    format: Option<String>,
    device: Option<Py<PyAny>>,
}

impl OpenOptions {
    /// The options that `given` names.
    ///
    /// # Errors
    /// `TypeError` for unknown names, `InvalidError` for values that cannot be used.
    pub(crate) fn of(given: &Bound<'_, PyDict>) -> PyResult<Self> {
        let py = given.py();
        let taken = given.copy()?;
        let mode = match take::<String>(&taken, "mode")?.as_deref() {
            None | Some("a") => Mode::Append,
            Some("r") => Mode::Read,
            Some(other) => {
                return Err(invalid(py, format!("the mode is {other:?}: \"r\" reads, \"a\" writes too")));
            }
        };
        let format = take(&taken, "format")?;
        let device = take::<Bound<'_, PyAny>>(&taken, "device")?.map(Bound::unbind);
        // A free lane is chosen, so that several processes write without being told.
        let engine = engine(&taken, Options::new().lane(Lane::Auto))?;
        refuse_unknown(&taken, "tensorcask.open()")?;
        Ok(Self { mode, engine, given: given.copy()?.unbind(), format, device })
    }

    pub(crate) const fn mode(&self) -> Mode {
        self.mode
    }

    pub(crate) const fn engine(&self) -> &Options {
        &self.engine
    }

    pub(crate) fn format(&self) -> Option<&str> {
        self.format.as_deref()
    }

    pub(crate) const fn device(&self) -> Option<&Py<PyAny>> {
        self.device.as_ref()
    }

    /// The options as they were given.
    pub(crate) fn described<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        self.given.bind(py).copy()
    }
}

/// Removes the option `name` and returns its value; `None` if it was not given, or is `None`.
///
/// # Errors
/// `TypeError` if the value has another type.
pub(crate) fn take<'py, T>(options: &Bound<'py, PyDict>, name: &str) -> PyResult<Option<T>>
where
    T: for<'a> FromPyObject<'a, 'py>,
{
    let Some(value) = options.get_item(name)? else { return Ok(None) };
    options.del_item(name)?;
    if value.is_none() {
        return Ok(None);
    }
    let refused = |_| {
        let shown = value.repr().map_or_else(|_| "a value".to_owned(), |text| text.to_string());
        PyTypeError::new_err(format!("the option {name} is {shown}, which has another type than expected"))
    };
    value.extract::<T>().map(Some).map_err(Into::into).map_err(|error: PyErr| refused(error))
}

/// Refuses options that nobody has taken.
pub(crate) fn refuse_unknown(options: &Bound<'_, PyDict>, of: &str) -> PyResult<()> {
    let Some((name, _)) = options.iter().next() else { return Ok(()) };
    Err(PyTypeError::new_err(format!("{of} has no option {name}")))
}

/// A duration in seconds.
pub(crate) fn take_duration(options: &Bound<'_, PyDict>, name: &str) -> PyResult<Option<Duration>> {
    let Some(seconds) = take::<f64>(options, name)? else { return Ok(None) };
    Duration::try_from_secs_f64(seconds)
        .map(Some)
        .map_err(|_| invalid(options.py(), format!("the option {name} is {seconds}: give seconds, not negative")))
}

/// A dtype: a `torch.dtype`, a dtype of NumPy, or a name such as "float16" or "F16".
pub(crate) fn dtype_of(object: &Bound<'_, PyAny>) -> PyResult<Dtype> {
    let py = object.py();
    if let Some(torch) = torch_if_imported(py)?
        && let Some(dtype) = torch.kind(object).and_then(|kind| kind.dtype)
    {
        return Ok(dtype);
    }
    let name: String = match object.cast::<PyString>() {
        Ok(name) => name.extract()?,
        Err(_) => object.getattr("name").or_else(|_| object.getattr("__name__"))?.extract()?,
    };
    let known = match name.trim_start_matches("torch.") {
        "half" | "float16" => Some(Dtype::F16),
        "bfloat16" => Some(Dtype::BF16),
        "float" | "float32" => Some(Dtype::F32),
        "double" | "float64" => Some(Dtype::F64),
        other => Dtype::from_name(other),
    };
    known.ok_or_else(|| invalid(py, format!("{name:?} is no dtype: pass one such as torch.float16 or \"float16\"")))
}

/// A codec: "none", "zstd", "shuffle-zstd", or one with a level, such as "zstd:9".
fn codec_of(py: Python<'_>, name: &str) -> PyResult<Codec> {
    let refused = || {
        invalid(
            py,
            format!(
                "the codec is {name:?}: pass \"none\", \"zstd\" or \"shuffle-zstd\", with a level as in \"zstd:9\""
            ),
        )
    };
    let (kind, level) = match name.split_once(':') {
        Some((kind, level)) => (kind, level.parse::<i32>().map_err(|_| refused())?),
        None => (name, 3),
    };
    Ok(match kind {
        "none" => Codec::None,
        "zstd" => Codec::Zstd { level },
        "shuffle" | "shuffle-zstd" => Codec::ShuffleZstd { level },
        _ => return Err(refused()),
    })
}

/// What is removed at a cap.
pub(crate) fn eviction_of(py: Python<'_>, name: &str) -> PyResult<Eviction> {
    Ok(match name {
        "stop" => Eviction::Stop,
        "oldest" => Eviction::OldestFirst,
        "coldest" => Eviction::ColdestFirst,
        _ => {
            return Err(invalid(py, format!("the eviction is {name:?}: pass \"stop\", \"oldest\" or \"coldest\"")));
        }
    })
}

/// The options of the engine among `taken`, which are removed from it.
///
/// # Errors
/// As [`OpenOptions::of`].
pub(crate) fn engine(taken: &Bound<'_, PyDict>, mut options: Options) -> PyResult<Options> {
    let py = taken.py();
    macro_rules! set {
        ($($name:ident: $type:ty),*) => {
            $(if let Some(value) = take::<$type>(taken, stringify!($name))? { options = options.$name(value); })*
        };
    }
    set! {
        segment_bytes: u64, segment_rows: u32, memtable_keys: usize, buffer_bytes: usize, value_cache_bytes: usize,
        compaction_live_share: f64,  allow_network: bool, create: bool, group_writable: bool,
        read_threads: usize, restore_dtype: bool, max_disk_bytes: u64, max_rows: u64, max_value_bytes: usize
    }
    if let Some(rate) = take::<u64>(taken, "compaction_bytes_per_s")? {
        options = options.compaction_bytes_per_s(Some(rate));
    }
    if let Some(lane) = take::<u16>(taken, "lane")? {
        options = options.lane(Lane::Number(lane));
    }
    if let Some(codec) = take::<String>(taken, "codec")? {
        options = options.codec(codec_of(py, &codec)?);
    }
    if let Some(dtype) = take::<Bound<'_, PyAny>>(taken, "store_as")? {
        options = options.store_as(dtype_of(&dtype)?);
    }
    if let Some(durability) = take::<String>(taken, "durability")? {
        options = options.durability(match durability.as_str() {
            "buffered" => Durability::Buffered,
            "data" => Durability::SyncData,
            "all" => Durability::SyncAll,
            other => {
                return Err(invalid(
                    py,
                    format!("the durability is {other:?}: pass \"buffered\", \"data\" or \"all\""),
                ));
            }
        });
    }
    if let Some(recovery) = take::<String>(taken, "recovery")? {
        options = options.recovery(match recovery.as_str() {
            "quiet" => Recovery::Quiet,
            "strict" => Recovery::Strict,
            other => return Err(invalid(py, format!("the recovery is {other:?}: pass \"quiet\" or \"strict\""))),
        });
    }
    if let Some(verify) = take::<String>(taken, "verify_checksums")? {
        options = options.verify(match verify.as_str() {
            "always" => tensorcask::Verify::Always,
            "first" => tensorcask::Verify::FirstRead,
            "never" => tensorcask::Verify::Never,
            other => {
                let what = format!("the option verify_checksums is {other:?}: pass \"first\", \"always\" or \"never\"");
                return Err(invalid(py, what));
            }
        });
    }
    if let Some(policy) = take::<String>(taken, "value_cache_policy")? {
        options = options.value_cache_policy(match policy.as_str() {
            "lru" => ValueCachePolicy::Lru,
            "stop" => ValueCachePolicy::StopWhenFull,
            other => return Err(invalid(py, format!("the value_cache_policy is {other:?}: pass \"lru\" or \"stop\""))),
        });
    }
    if let Some(name) = take::<String>(taken, "eviction")? {
        options = options.eviction(eviction_of(py, &name)?);
    }
    if let Some(age) = take_duration(taken, "max_age_s")? {
        options = options.max_age(age);
    }
    if let Some(interval) = take_duration(taken, "refresh_interval_s")? {
        options = options.refresh_interval(interval);
    }
    if let Some(interval) = take_duration(taken, "flush_interval_s")? {
        options = options.flush_interval(interval);
    }
    Ok(options)
}
