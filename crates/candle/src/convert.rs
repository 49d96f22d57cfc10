//! Conversion between candle's tensors and bytes.

use std::fmt;
use std::ops::{Deref, Range};

use candle_core::{CpuStorage, DType, Device, Storage, StorageRef, Tensor};
use tensorcask::Dtype;
use tensorcask_cache::{Error, Result};

/// Converts an error that candle returned for `action`: `.map_err(candle("copy a tensor"))`.
pub(crate) fn candle(action: &'static str) -> impl FnOnce(candle_core::Error) -> Error {
    // The first line is the message; further lines are a backtrace.
    move |error| Error::Framework { action, what: error.to_string().lines().next().unwrap_or_default().to_owned() }
}

macro_rules! dtypes {
    ($($dtype:ident: $element:ty),*) => {
        /// The dtype that a tensor is stored as. Candle has no arithmetic for its packed floats and exponent-only
        /// floats, so these have none.
        pub(crate) const fn dtype_of(dtype: DType) -> Option<Dtype> {
            match dtype { $(DType::$dtype => Some(Dtype::$dtype),)* _ => None }
        }

        /// Whether candle has this dtype.
        pub(crate) const fn holds(dtype: Dtype) -> bool {
            matches!(dtype, $(Dtype::$dtype)|*)
        }

        /// A storage of `len` zeros.
        pub(crate) fn zeros(dtype: Dtype, len: usize) -> Option<CpuStorage> {
            match dtype {
                $(Dtype::$dtype => Some(CpuStorage::$dtype(bytemuck::zeroed_vec::<$element>(len))),)*
                _ => None,
            }
        }

        fn elements(storage: &CpuStorage) -> Option<&[u8]> {
            match storage { $(CpuStorage::$dtype(elements) => Some(bytemuck::cast_slice(elements)),)* _ => None }
        }

        /// The bytes of a storage that [`zeros`] made.
        pub(crate) fn elements_mut(storage: &mut CpuStorage) -> Option<&mut [u8]> {
            match storage { $(CpuStorage::$dtype(elements) => Some(bytemuck::cast_slice_mut(elements)),)* _ => None }
        }
    };
}
dtypes! {
    U8: u8, U32: u32, I16: i16, I32: i32, I64: i64, BF16: half::bf16, F16: half::f16, F32: f32, F64: f64,
    F8E4M3: float8::F8E4M3
}

/// The bytes of a storage in host memory.
pub(crate) fn storage_bytes(storage: &CpuStorage) -> Result<&[u8]> {
    elements(storage).ok_or_else(|| Error::invalid("the bytes of packed elements cannot be read"))
}

/// The dtype of a tensor that can be stored.
pub(crate) fn stored_dtype(tensor: &Tensor) -> Result<Dtype> {
    dtype_of(tensor.dtype()).ok_or_else(|| {
        Error::invalid(format!(
            "a {} tensor cannot be stored: candle does not compute with this dtype; convert it first",
            tensor.dtype().as_str()
        ))
    })
}

/// The bytes of a tensor in host memory. Holds a read lock on the storage, so that they cannot change.
pub struct HostBytes<'a> {
    storage: StorageRef<'a>,
    range: Range<usize>,
}

impl<'a> HostBytes<'a> {
    /// The bytes of a contiguous tensor in host memory; nothing is copied. For any other layout, the bytes from the
    /// first element to the end of the storage.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a tensor on another device or of a dtype that cannot be stored.
    pub(crate) fn of(tensor: &'a Tensor) -> Result<Self> {
        stored_dtype(tensor)?;
        let width = tensor.dtype().size_in_bytes();
        let (storage, layout) = tensor.storage_and_layout();
        let Storage::Cpu(elements) = &*storage else {
            return Err(Error::invalid("a tensor is not in host memory, so its bytes cannot be read"));
        };
        let len = storage_bytes(elements)?.len();
        let start = layout.start_offset() * width;
        let end = layout.contiguous_offsets().map_or(len, |(_, end)| end * width);
        if start > end || end > len {
            return Err(Error::invalid("a tensor reaches beyond its storage"));
        }
        Ok(Self { storage, range: start..end })
    }
}

impl Deref for HostBytes<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // The device and the dtype were checked in `of`, and the lock has been held since.
        let elements = match &*self.storage {
            Storage::Cpu(storage) => elements(storage).and_then(|bytes| bytes.get(self.range.clone())),
            _ => None,
        };
        debug_assert!(elements.is_some(), "the storage of a tensor changed under its lock");
        elements.unwrap_or_default()
    }
}

impl fmt::Debug for HostBytes<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HostBytes({})", self.len())
    }
}

/// The tensor in host memory, without gradients, in its present order of elements. Shares the storage if that is in
/// host memory already.
pub(crate) fn host_of_any_layout(tensor: &Tensor) -> Result<Tensor> {
    stored_dtype(tensor)?;
    tensor.detach().to_device(&Device::Cpu).map_err(candle("copy a tensor to the host"))
}

/// [`host_of_any_layout`], in row-major order.
pub(crate) fn host(tensor: &Tensor) -> Result<Tensor> {
    host_of_any_layout(tensor)?.contiguous().map_err(candle("copy a tensor to the host"))
}

/// Copies a candle tensor from any device to a stored tensor.
///
/// # Errors
/// [`Error::Invalid`] for dtypes that cannot be stored.
pub fn to_stored(tensor: &Tensor) -> Result<tensorcask::Tensor> {
    let host = host(tensor)?;
    Ok(tensorcask::Tensor::new(stored_dtype(&host)?, host.dims(), HostBytes::of(&host)?.to_vec())?)
}
