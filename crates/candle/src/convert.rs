//! Between candle's tensors and bytes.

use std::fmt;
use std::ops::{Deref, Range};

use candle_core::{CpuStorage, DType, Device, Storage, StorageRef, Tensor};
use tensorcask::Dtype;
use tensorcask_cache::{Error, Result};

/// Turns candle's word on `action` into an error: `.map_err(candle("copy a tensor"))`.
pub(crate) fn candle(action: &'static str) -> impl FnOnce(candle_core::Error) -> Error {
    // Further lines are a backtrace.
    move |error| Error::Framework { action, what: error.to_string().lines().next().unwrap_or_default().to_owned() }
}

macro_rules! dtypes {
    ($($dtype:ident: $element:ty),*) => {
        /// The dtype that a tensor is stored in. Candle computes nothing with its packed floats and its bare exponents.
        pub(crate) const fn dtype_of(dtype: DType) -> Option<Dtype> {
            match dtype { $(DType::$dtype => Some(Dtype::$dtype),)* _ => None }
        }

        /// Whether candle has this dtype.
        pub(crate) const fn holds(dtype: Dtype) -> bool {
            matches!(dtype, $(Dtype::$dtype)|*)
        }

        /// `len` zeros.
        pub(crate) fn zeros(dtype: Dtype, len: usize) -> Option<CpuStorage> {
            match dtype {
                $(Dtype::$dtype => Some(CpuStorage::$dtype(bytemuck::zeroed_vec::<$element>(len))),)*
                _ => None,
            }
        }

        fn elements(storage: &CpuStorage) -> Option<&[u8]> {
            match storage { $(CpuStorage::$dtype(elements) => Some(bytemuck::cast_slice(elements)),)* _ => None }
        }

        /// The elements of a storage that [`zeros`] made.
        pub(crate) fn elements_mut(storage: &mut CpuStorage) -> Option<&mut [u8]> {
            match storage { $(CpuStorage::$dtype(elements) => Some(bytemuck::cast_slice_mut(elements)),)* _ => None }
        }
    };
}
dtypes! {
    U8: u8, U32: u32, I16: i16, I32: i32, I64: i64, BF16: half::bf16, F16: half::f16, F32: f32, F64: f64,
    F8E4M3: float8::F8E4M3
}

/// The elements of a storage in host memory.
pub(crate) fn storage_bytes(storage: &CpuStorage) -> Result<&[u8]> {
    elements(storage).ok_or_else(|| Error::invalid("a storage of packed elements was asked for its bytes"))
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

/// The bytes of a tensor in host memory: they cannot be written to while this lives.
pub struct HostBytes<'a> {
    storage: StorageRef<'a>,
    range: Range<usize>,
}

impl<'a> HostBytes<'a> {
    /// The elements of a tensor from the first on, if it is in host memory; nothing is copied. Of a contiguous one all
    /// elements and nothing else.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a tensor on another device or of a dtype that cannot be stored.
    pub(crate) fn of(tensor: &'a Tensor) -> Result<Self> {
        stored_dtype(tensor)?;
        let width = tensor.dtype().size_in_bytes();
        let (storage, layout) = tensor.storage_and_layout();
        let Storage::Cpu(elements) = &*storage else {
            return Err(Error::invalid("the bytes of a tensor were asked for that is not in host memory"));
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
        // Both were checked, and the lock is held since.
        match &*self.storage {
            Storage::Cpu(storage) => {
                elements(storage).and_then(|bytes| bytes.get(self.range.clone())).unwrap_or_default()
            }
            _ => &[],
        }
    }
}

impl fmt::Debug for HostBytes<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HostBytes({})", self.len())
    }
}

/// The tensor in host memory, without gradients, in the order that its elements lie in: the same storage if it is
/// there.
pub(crate) fn host_of_any_layout(tensor: &Tensor) -> Result<Tensor> {
    stored_dtype(tensor)?;
    tensor.detach().to_device(&Device::Cpu).map_err(candle("copy a tensor to the host"))
}

/// [`host_of_any_layout`], in row-major order.
pub(crate) fn host(tensor: &Tensor) -> Result<Tensor> {
    host_of_any_layout(tensor)?.contiguous().map_err(candle("copy a tensor to the host"))
}

/// A copy of a candle tensor, from any device, as the store keeps it.
///
/// # Errors
/// [`Error::Invalid`] for dtypes that cannot be stored.
pub fn to_stored(tensor: &Tensor) -> Result<tensorcask::Tensor> {
    let host = host(tensor)?;
    Ok(tensorcask::Tensor::new(stored_dtype(&host)?, host.dims(), HostBytes::of(&host)?.to_vec())?)
}
