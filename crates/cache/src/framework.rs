//! The interface of a tensor library to the caching layer.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::ops::Deref;
use std::path::Path;

use bytes::Bytes;
use tensorcask::Dtype;

use crate::error::{Error, Result};

/// A tensor library.
///
/// The layer is generic over the library, and compiled for each. A *host* tensor lies in the memory of the process, its
/// elements one after the other in row-major order, and carries no gradient.
pub trait Framework: Debug + Clone + Copy + Sized + 'static {
    /// A tensor. Handles can be sent to other threads, and may share memory.
    type Tensor: Debug + Send + 'static;
    /// A batch in host memory while it is filled.
    type Buffer: Debug;
    /// The bytes of a host tensor: a slice, or a lock guard that derefs to one.
    type Bytes<'a>: Debug + Deref<Target = [u8]>;
    /// A device that holds tensors.
    type Device: Debug + Clone + Send + Sync + 'static;
    /// The weights of a module.
    type Variables: Variables;
    /// Options that are specific to this library.
    type Settings: Debug + Clone + Default + Send + Sync + 'static;

    /// The device of host tensors.
    const HOST: Self::Device;

    /// The dtype that the tensor is stored as; `None` if it cannot be stored.
    ///
    /// # Errors
    /// If the library cannot tell.
    fn dtype(tensor: &Self::Tensor) -> Result<Option<Dtype>>;

    /// The name of the element type in keys: [`key_name`], and the library's own name for types without a dtype.
    ///
    /// # Errors
    /// If the library cannot tell.
    fn key_name(tensor: &Self::Tensor) -> Result<String>;

    /// The shape, outermost dimension first.
    fn shape(tensor: &Self::Tensor) -> Vec<usize>;

    /// The length of the first dimension, which is the batch; `None` if there are no dimensions.
    fn batch_len(tensor: &Self::Tensor) -> Option<usize> {
        Self::shape(tensor).first().copied()
    }

    /// The device.
    fn device(tensor: &Self::Tensor) -> Self::Device;

    /// Whether the library has tensors of this dtype.
    fn holds(_dtype: Dtype) -> bool {
        true
    }

    /// Whether the tensor is a block of elements in any order, not sparse.
    fn is_dense(_tensor: &Self::Tensor) -> bool {
        true
    }

    /// Another handle of the tensor. O(1).
    fn share(tensor: &Self::Tensor) -> Self::Tensor;

    /// A copy on the same device that shares nothing with the tensor, and carries no gradient.
    ///
    /// # Errors
    /// If it cannot be copied.
    fn own(tensor: &Self::Tensor) -> Result<Self::Tensor>;

    /// Another handle that carries no gradient. O(1).
    ///
    /// # Errors
    /// Errors of the tensor library.
    fn detach(tensor: &Self::Tensor) -> Result<Self::Tensor> {
        Ok(Self::share(tensor))
    }

    /// The tensor on `device`; another handle if it is there already.
    ///
    /// # Errors
    /// If it cannot be copied there.
    fn to_device(tensor: &Self::Tensor, device: Self::Device) -> Result<Self::Tensor>;

    /// Transfers a result to the caller's device.
    ///
    /// # Errors
    /// If it cannot be copied there.
    fn deliver(tensor: &Self::Tensor, device: Self::Device, _settings: &Self::Settings) -> Result<Self::Tensor> {
        Self::to_device(tensor, device)
    }

    /// The tensor as a host tensor; another handle if it is one already. Waits for the device.
    ///
    /// # Errors
    /// If its bytes do not determine its elements, or cannot be copied.
    fn host(tensor: &Self::Tensor) -> Result<Self::Tensor>;

    /// Like [`Framework::host`], but its elements may be in any order that [`Framework::view`] can describe.
    ///
    /// # Errors
    /// As [`Framework::host`].
    fn host_of_any_layout(tensor: &Self::Tensor) -> Result<Self::Tensor> {
        Self::host(tensor)
    }

    /// The bytes of a host tensor.
    ///
    /// # Errors
    /// [`Error::Invalid`] if it is not a host tensor.
    fn bytes(host: &Self::Tensor) -> Result<Self::Bytes<'_>>;

    /// The bytes of a host tensor, to be kept by the caller. Copies them by default.
    ///
    /// # Errors
    /// As [`Framework::bytes`].
    fn to_bytes(host: &Self::Tensor) -> Result<Bytes> {
        Self::bytes(host).map(|bytes| Bytes::copy_from_slice(&bytes))
    }

    /// The elements of a tensor that [`Framework::host_of_any_layout`] returned.
    ///
    /// # Errors
    /// As [`Framework::bytes`].
    fn view(host: &Self::Tensor) -> Result<View<Self::Bytes<'_>>>;

    /// An uninitialised batch buffer.
    ///
    /// # Errors
    /// [`Error::Invalid`] if the library does not have the dtype.
    fn buffer(dtype: Dtype, shape: &[usize]) -> Result<Self::Buffer>;

    /// The bytes of the buffer; those not yet written are unspecified.
    ///
    /// # Errors
    /// Errors of the tensor library.
    fn buffer_bytes(buffer: &Self::Buffer) -> Result<&[u8]>;

    /// The bytes of the buffer, for writing.
    ///
    /// # Errors
    /// Errors of the tensor library.
    fn buffer_bytes_mut(buffer: &mut Self::Buffer) -> Result<&mut [u8]>;

    /// The filled buffer as a host tensor. Nothing is copied.
    ///
    /// # Errors
    /// Errors of the tensor library.
    fn finish(buffer: Self::Buffer) -> Result<Self::Tensor>;

    /// A host tensor with the elements of a stored tensor.
    ///
    /// # Errors
    /// As [`Framework::buffer`].
    fn from_stored(tensor: &tensorcask::Tensor) -> Result<Self::Tensor> {
        let mut buffer = Self::buffer(tensor.dtype(), tensor.shape())?;
        let place = Self::buffer_bytes_mut(&mut buffer)?;
        if place.len() != tensor.data().len() {
            return Err(Error::invalid(format!(
                "a {} tensor of shape {:?} takes {} bytes, but {} were found",
                tensor.dtype(),
                tensor.shape(),
                place.len(),
                tensor.data().len()
            )));
        }
        place.copy_from_slice(tensor.data());
        Self::finish(buffer)
    }

    /// The rows of `tensor` at `positions`, on its device.
    ///
    /// # Errors
    /// Errors of the tensor library.
    fn select(tensor: &Self::Tensor, positions: &[usize]) -> Result<Self::Tensor>;

    /// A copy of one row on `device`. It shares no memory with the batch.
    ///
    /// # Errors
    /// Errors of the tensor library.
    fn row(batch: &Self::Tensor, at: usize, device: Self::Device) -> Result<Self::Tensor>;

    /// Stacks rows of one dtype and shape to a batch, on their device.
    ///
    /// # Errors
    /// Errors of the tensor library.
    fn stack(rows: &[Self::Tensor]) -> Result<Self::Tensor>;

    /// Stacks host tensors of one dtype and rank, each padded with `value` at the end of its dimensions.
    ///
    /// # Errors
    /// [`Error::Invalid`] if the dtype cannot hold the value.
    fn pad(rows: &[Self::Tensor], value: f64) -> Result<Self::Tensor>;

    /// Describes the first difference between two host tensors: dtypes, shapes, integers that are not equal, or floats
    /// that differ by more than `absolute` plus `relative` times the second one. NaN equals NaN.
    ///
    /// # Errors
    /// Errors of the tensor library.
    fn difference(a: &Self::Tensor, b: &Self::Tensor, relative: f64, absolute: f64) -> Result<Option<String>>;

    /// A host tensor of a complex type without a dtype, as a real tensor with a trailing dimension of 2; `None` for
    /// other types.
    ///
    /// # Errors
    /// Errors of the tensor library.
    fn as_real(_host: &Self::Tensor) -> Result<Option<Self::Tensor>> {
        Ok(None)
    }

    /// The inverse of [`Framework::as_real`].
    ///
    /// # Errors
    /// If the library has no such complex type.
    fn from_real(real: Self::Tensor) -> Result<Self::Tensor> {
        let of = Self::key_name(&real)?;
        Err(Error::invalid(format!(
            "a complex tensor with parts of {of} is kept, which this tensor library does not have"
        )))
    }

    /// Runs a computation whose result is kept, without recording gradients.
    fn without_gradients<T>(run: impl FnOnce() -> T) -> T {
        run()
    }

    /// Runs a computation on behalf of another thread, and records gradients if `records`.
    fn as_recorded<T>(_records: bool, run: impl FnOnce() -> T) -> T {
        run()
    }

    /// Whether this thread records gradients.
    fn records_gradients() -> bool {
        false
    }

    /// Whether an operation on `tensor` in this thread would be recorded for a backward pass.
    ///
    /// # Errors
    /// Errors of the tensor library.
    fn is_recorded(_tensor: &Self::Tensor) -> Result<bool> {
        Ok(false)
    }

    /// Refuses settings that cannot be used.
    ///
    /// # Errors
    /// [`Error::Invalid`].
    fn check_settings(_settings: &Self::Settings) -> Result<()> {
        Ok(())
    }

    /// The length of the tensor's elements in bytes.
    fn len_bytes(tensor: &Self::Tensor) -> usize;
}

/// The weights and buffers of a module, which are fingerprinted and watched for changes.
pub trait Variables: Debug + Default + Send + 'static {
    /// Whether there are none.
    fn is_empty(&self) -> bool;

    /// Returns an error if an optimizer could change the variables.
    ///
    /// # Errors
    /// [`Error::Trainable`].
    fn check_frozen(&self) -> Result<()>;

    /// A number that changes when variables are written to, replaced, or made trainable. The check is as thorough as is
    /// cheap compared to serving `samples` samples.
    fn sign(&self, samples: usize) -> u64;

    /// Records the present state, which [`Variables::sign`] compares with.
    fn describe(&mut self);

    /// A digest of the dtype, shape and bytes of each variable, by name. O(bytes).
    ///
    /// # Errors
    /// If a variable cannot be read.
    fn fingerprint(&self) -> Result<BTreeMap<String, String>>;

    /// Saves the variables to a file.
    ///
    /// # Errors
    /// If the file cannot be written.
    fn save(&self, path: &Path) -> Result<()>;

    /// Loads all variables from a file; changes nothing if one is missing.
    ///
    /// # Errors
    /// If the file cannot be read, or holds the variables of another module.
    fn load(&self, path: &Path) -> Result<()>;
}

/// The elements of a dense tensor in host memory, in any order.
#[derive(Debug)]
pub struct View<B> {
    /// The bytes from the first element in memory to the end of the last.
    pub bytes: B,
    /// Bytes per element.
    pub width: usize,
    /// The shape.
    pub sizes: Vec<usize>,
    /// The strides in elements.
    pub strides: Vec<usize>,
}

impl<B: Deref<Target = [u8]>> View<B> {
    /// Whether the view covers all elements of `samples` samples.
    pub(crate) fn is_of(&self, samples: usize) -> bool {
        let dims = || self.sizes.iter().zip(&self.strides);
        let last =
            dims().try_fold(0_usize, |at, (&len, &stride)| at.checked_add(len.saturating_sub(1).checked_mul(stride)?));
        let end = last.and_then(|last| last.checked_add(1)?.checked_mul(self.width));
        let is_whole = end.is_some_and(|end| end <= self.bytes.len()) || self.sizes.contains(&0);
        is_whole && self.width > 0 && self.sizes.len() == self.strides.len() && self.sizes.first() == Some(&samples)
    }
}

/// The name of a dtype in keys. It is the same for every library.
#[must_use]
pub const fn key_name(dtype: Dtype) -> &'static str {
    match dtype {
        Dtype::Bool => "Bool",
        Dtype::U8 => "Uint8",
        Dtype::I8 => "Int8",
        Dtype::I16 => "Int16",
        Dtype::I32 => "Int",
        Dtype::I64 => "Int64",
        Dtype::F16 => "Half",
        Dtype::BF16 => "BFloat16",
        Dtype::F32 => "Float",
        Dtype::F64 => "Double",
        Dtype::C64 => "ComplexFloat",
        Dtype::F8E5M2 => "Float8e5m2",
        Dtype::F8E4M3 => "Float8e4m3fn",
        Dtype::F8E5M2Fnuz => "Float8e5m2fnuz",
        Dtype::F8E4M3Fnuz => "Float8e4m3fnuz",
        other => other.name(),
    }
}

/// Whether two floats are equal within the tolerance. NaN equals NaN.
pub(crate) fn is_close(a: f64, b: f64, relative: f64, absolute: f64) -> bool {
    a == b || (a.is_nan() && b.is_nan()) || (b.is_finite() && (a - b).abs() <= absolute + relative * b.abs())
}
